"""The network namespace in which the kernel translates guests' addresses, and the link to it.

    host                                  namespace divhook-nat (ip netns exec divhook-nat …)
    divnat0 (no address, from_nat) ═════ nat0: ip_forward, no address; default route back by nat0; nft table ip divhook

Its conntrack, rules and settings are its own: whatever firewall, container engine or administrator does on the host
touches neither it nor what it translates, and it leaves the host's conntrack alone. Both ends have one MAC, and nat0
has no ARP: so a frame that it sends is addressed to the host's end. It outlives the agent.

Invariants: nothing is translated that nobody asked for (policy drop on every chain that packets pass), nothing in it
answers anybody but for ICMP errors about what it has translated, and no packet leaves it untranslated (the NAT chain's
own policy: a flow without a translation does not begin). Calls block for some 10 ms: they are for a thread.
"""

import ctypes
import hashlib
import json
import os
import socket
import struct
import subprocess
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path
from typing import Any, TypeVar

from divhook.adapters.links.errors import LinkError
from divhook.adapters.links.sysctl import read_sysctl, write_sysctl
from divhook.adapters.links.wall import wall_port
from divhook.core.addressing import Mac

NETNS = Path("/run/netns/divhook-nat")
"""Where `ip netns` looks for it, too."""
LINK, INNER_LINK = "divnat0", "nat0"
NAT_MAC: Mac = b"\x06\xd1\xd1\xd1\xd1\xd2"
"""Of both ends, the same everywhere: it never leaves the host."""
MAX_TRANSLATIONS_PER_GUEST = 8192
"""Connections that one address may have translated at a time: one guest can't fill the table for all."""
MAX_TRANSLATIONS_PER_SERVER = 1024
"""Of these, to one server's port: as `snat: host` has 4,536 ports for each of them, for all guests together."""

_CLONE_NEWNET, _MS_BIND, _MNT_DETACH = 0x40000000, 0x1000, 2
_DUMMY = "192.0.0.8"  # RFC 7600: source of a node's ICMP errors that has no address; conntrack translates it
_NEXT = "192.0.0.9"  # whoever; without ARP one neighbour stands for all
_TIMEOUT_S = 5.0
_NETLINK_NETFILTER = 12  # linux/netlink.h
_HOST_SYSCTLS = {"ipv4/conf/{}/rp_filter": 1, "ipv4/conf/{}/forwarding": 0, "ipv6/conf/{}/disable_ipv6": 1}
_INNER_SYSCTLS = {
    "ipv6/conf/all/disable_ipv6": 1,
    "ipv6/conf/default/disable_ipv6": 1,
    "ipv4/ip_forward": 1,
    "ipv4/conf/all/rp_filter": 0,
    f"ipv4/conf/{INNER_LINK}/rp_filter": 0,
    "ipv4/conf/all/send_redirects": 0,
    f"ipv4/conf/{INNER_LINK}/send_redirects": 0,
    f"ipv4/conf/{INNER_LINK}/accept_redirects": 0,
    # as a port's flows are kept: bpf/abi.h, FLOW_…
    "netfilter/nf_conntrack_udp_timeout": 120,
    "netfilter/nf_conntrack_udp_timeout_stream": 300,
    "netfilter/nf_conntrack_icmp_timeout": 60,
}
_libc = ctypes.CDLL(None, use_errno=True)
Result = TypeVar("Result")


@dataclass(frozen=True, slots=True)
class Translation:
    """What the guests of these prefixes (cells) send gets a source address of this range.

    first_port: above 0, TCP and UDP get ports from there to 65535, and nothing but them and ICMP is translated.
    """

    prefixes: tuple[IPv4Network, ...]
    first: IPv4Address
    last: IPv4Address
    first_port: int = 0

    def rules(self) -> list[str]:
        """In nft's language."""
        guests = f"ip saddr {{ {', '.join(map(str, self.prefixes))} }}"
        if not self.first_port:
            return [f"{guests} snat to {self.first}-{self.last} persistent"]
        return [
            f"{guests} meta l4proto {{ tcp, udp }} snat to {self.first}:{self.first_port}-65535",
            f"{guests} ip protocol icmp snat to {self.first}",
        ]


@dataclass(frozen=True, slots=True)
class NatFigures:
    """connections: translated now. limit: as many as the kernel keeps. Since the namespace exists: refused, as the
    guest had MAX_TRANSLATIONS_PER_GUEST; table_full: found no room in the table; no_port: nor a free port; invalid: of
    no connection."""

    connections: int = 0
    limit: int = 0
    refused: int = 0
    table_full: int = 0
    no_port: int = 0
    invalid: int = 0


def rules(translations: Sequence[Translation]) -> str:
    """The namespace's whole ruleset, as one transaction. A comment tells it from any other."""
    table = _table(translations)
    return f"""
table ip divhook
delete table ip divhook
table ip divhook {{
  comment "{_mark(table)}"
{table}}}
"""


def _mark(table: str) -> str:
    return f"divhook {hashlib.sha256(table.encode()).hexdigest()[:16]}"


def _table(translations: Sequence[Translation]) -> str:
    source = "\n".join(f"    {rule}" for each in translations for rule in each.rules())
    guests = ", ".join(str(prefix) for each in translations for prefix in each.prefixes)
    server = "ip saddr . ip daddr . meta l4proto . th dport"
    share = f"add @shares {{ {server} ct count over {MAX_TRANSLATIONS_PER_SERVER} }}"
    return f"""\
  counter refused {{ }}
  counter invalid {{ }}
  set guests {{
    type ipv4_addr
    size 65536
    flags dynamic
  }}
  set shares {{
    type ipv4_addr . ipv4_addr . inet_proto . inet_service
    size 65536
    flags dynamic
  }}
  chain forward {{
    type filter hook forward priority filter; policy drop;
    ct state invalid counter name invalid drop
    ct state established,related accept
    ip saddr != {{ {guests} }} counter name invalid drop
    ct state new add @guests {{ ip saddr ct count over {MAX_TRANSLATIONS_PER_GUEST} }} counter name refused drop
    ct state new meta l4proto {{ tcp, udp }} {share} counter name refused drop
    ct state new accept
  }}
  chain input {{
    type filter hook input priority filter; policy drop;
  }}
  chain output {{
    type filter hook output priority filter; policy drop;
    ip protocol icmp ct state related accept
  }}
  chain source {{
    type nat hook postrouting priority srcnat; policy drop;
{source}
  }}
"""


class NatNamespace:
    """One host's. `path`: where it is kept."""

    def __init__(self, path: Path = NETNS) -> None:
        self._path = path

    # ------------------------------------------------------------------ making

    def ensure(self, mtu: int) -> int:
        """Make the namespace and the link to it, or bring them to what they must be; the ifindex of the host's end.

        mtu: bytes of IP packet, the uplink's. Raises LinkError.
        """
        if not self.exists():
            self._make()
        if not (_has_link(LINK) and self._inside(lambda: _has_link(INNER_LINK))):
            if _has_link(LINK):  # to a namespace that is gone
                _ip("link", "del", LINK)
            mac = NAT_MAC.hex(":")
            peer = ("peer", "name", INNER_LINK, "address", mac, "netns", str(self._path))
            _ip("link", "add", LINK, "address", mac, "mtu", str(mtu), "type", "veth", *peer)
        for name, value in _HOST_SYSCTLS.items():
            write_sysctl(name.format(LINK), value)
        self._inside(lambda: _set_up(mtu))
        _ip("link", "set", LINK, "mtu", str(mtu), "arp", "off", "multicast", "off", "up")
        return socket.if_nametoindex(LINK)

    async def wall(self) -> None:
        """What comes out of the namespace without the program's mark ends at the host's end. Raises LinkError."""
        await wall_port(LINK)

    def exists(self) -> bool:
        """Whether there is such a namespace."""
        try:
            self._inside(lambda: None)
        except LinkError:
            return False
        return True

    def _make(self) -> None:
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            self._path.touch(mode=0o444)
            _in_thread(lambda: _unshare_to(self._path))
        except OSError as error:
            raise LinkError(
                f"the network namespace for NAT cannot be made at {self._path}: {error.strerror or error}. "
                f"Run: ip netns add {self._path.name}"
            ) from None

    def translate(self, translations: Sequence[Translation]) -> None:
        """Translate so from now on. Connections that there are keep their translation. Raises LinkError.

        Rules that are so already, as after the agent's restart, are left alone.
        """
        if not self.intact(translations):
            self._inside(lambda: _run("nft", "-f", "-", stdin=rules(translations)))

    def forget(self) -> None:
        """End every translation. Raises LinkError."""
        self._inside(_flush_conntrack)

    def intact(self, translations: Sequence[Translation]) -> bool:
        """Whether the namespace has these rules."""
        try:
            return _mark(_table(translations)) in self._inside(lambda: _run("nft", "list", "table", "ip", "divhook"))
        except LinkError:
            return False

    def host_ports(self) -> tuple[int, int, str]:
        """First and last port that the host takes for its own connections, and which of them it does not."""
        first, last = (read_sysctl("ipv4/ip_local_port_range") or "32768 60999").split()
        return int(first), int(last), read_sysctl("ipv4/ip_local_reserved_ports") or ""

    def figures(self) -> NatFigures:
        """What it does. Raises LinkError."""
        return self._inside(_figures)

    def remove(self) -> None:
        """Undo all of it; nothing there is no error. Raises LinkError."""
        if _has_link(LINK):
            _ip("link", "del", LINK)
        _libc.umount2(os.fsencode(self._path), _MNT_DETACH)
        self._path.unlink(missing_ok=True)

    def _inside(self, work: Callable[[], Result]) -> Result:
        """Do something in the namespace, in a thread of its own. Raises LinkError."""
        try:
            descriptor = os.open(self._path, os.O_RDONLY | os.O_CLOEXEC)
        except OSError as error:
            raise LinkError(f"{self._path}: {error.strerror}") from None

        def entered() -> Result:
            if _libc.setns(descriptor, _CLONE_NEWNET):
                raise LinkError(f"{self._path} is no network namespace: {os.strerror(ctypes.get_errno())}")
            return work()

        try:
            return _in_thread(entered)
        finally:
            os.close(descriptor)


def _in_thread(work: Callable[[], Result]) -> Result:
    """A thread that ends: what it does to its own namespaces ends with it."""
    results: list[Result] = []
    faults: list[BaseException] = []

    def run() -> None:
        try:
            results.append(work())
        except BaseException as fault:
            faults.append(fault)

    thread = threading.Thread(target=run, name="divhook-nat")
    thread.start()
    thread.join()
    if faults:
        raise faults[0]
    return results[0]


def _unshare_to(path: Path) -> None:
    if _libc.unshare(_CLONE_NEWNET) or _libc.mount(
        b"/proc/thread-self/ns/net", os.fsencode(path), b"none", _MS_BIND, None
    ):
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))


def _set_up(mtu: int) -> None:
    for name, value in _INNER_SYSCTLS.items():
        write_sysctl(name, value)
    _ip("link", "set", "lo", "up")
    _ip("address", "replace", f"{_DUMMY}/32", "dev", "lo")
    _ip("link", "set", INNER_LINK, "mtu", str(mtu), "arp", "off", "multicast", "off", "up")
    _ip("route", "replace", "default", "via", _NEXT, "dev", INNER_LINK, "onlink")


def _has_link(name: str) -> bool:
    return read_sysctl(f"ipv4/conf/{name}/forwarding") is not None


def _ip(*arguments: str) -> str:
    return _run("ip", *arguments)


def _run(*command: str, stdin: str = "") -> str:
    """What a command says, in the namespace of the calling thread. Raises LinkError."""
    try:
        done = subprocess.run(
            command, input=stdin, capture_output=True, text=True, timeout=_TIMEOUT_S, check=False, env=_environment()
        )
    except FileNotFoundError:
        raise LinkError(f"{command[0]} is not installed") from None
    except subprocess.TimeoutExpired:
        raise LinkError(f"{' '.join(command)} took more than {_TIMEOUT_S:.0f} s") from None
    if done.returncode:
        raise LinkError(f"{' '.join(command)}: {done.stderr.strip()}")
    return done.stdout


def _environment() -> dict[str, str]:
    return {**os.environ, "LC_ALL": "C"}


def _figures() -> NatFigures:
    lines = Path("/proc/thread-self/net/stat/nf_conntrack").read_text().splitlines()
    names, sums = lines[0].split(), dict.fromkeys(lines[0].split(), 0)
    for line in lines[1:]:  # one per CPU, hexadecimal
        for name, value in zip(names, line.split(), strict=False):
            sums[name] += int(value, 16)
    listed: list[Any] = json.loads(_run("nft", "-j", "list", "counters", "table", "ip", "divhook"))["nftables"]
    counted = {each["counter"]["name"]: each["counter"]["packets"] for each in listed if "counter" in each}
    return NatFigures(
        connections=int(read_sysctl("netfilter/nf_conntrack_count") or 0),
        limit=int(read_sysctl("netfilter/nf_conntrack_max") or 0),
        refused=counted.get("refused", 0),
        table_full=sums.get("drop", 0) + sums.get("early_drop", 0),
        no_port=sums.get("insert_failed", 0),
        invalid=counted.get("invalid", 0),
    )


def _flush_conntrack() -> None:
    """ctnetlink: delete without a tuple deletes all (linux/netfilter/nfnetlink_conntrack.h)."""
    kind, flags = 1 << 8 | 2, 0x1 | 0x4  # NFNL_SUBSYS_CTNETLINK, IPCTNL_MSG_CT_DELETE; NLM_F_REQUEST, NLM_F_ACK
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, _NETLINK_NETFILTER) as netlink:
        netlink.send(struct.pack("=IHHII", 20, kind, flags, 1, 0) + bytes((socket.AF_INET, 0, 0, 0)))
        answer = netlink.recv(4096)
    code = -struct.unpack_from("=i", answer, 16)[0]
    if code:
        raise LinkError(f"conntrack of NAT cannot be emptied: {os.strerror(code)}")
