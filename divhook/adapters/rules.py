"""Netfilter rules: divert to NFQUEUE, and the walls that netfilter can be. Restored when somebody takes them away.

    table bridge divhook
      prerouting -300   from a port and not marked by tc: drop        (input: the same, for link-local groups,
      forward   filter  from or to a port: drop                        which pass by prerouting)
      output    filter  to a port: drop; the agent sends past the bridge
    table ip divhook
      prerouting -450   marked: notrack, before defragmentation at -400 reassembles
      prerouting -300   marked: NFQUEUE; by nft's `queue`, or where the kernel has none, by iptables' raw table
      prerouting -299   marked: drop what should have been queued

A port is known by its link group (links.PORT_GROUP), and by `ibrname` where the kernel has that too: so a tap that
libvirt has just plugged in is under the same rules. Forward is at priority `filter` (-200): at exactly 0 a bridge
chain sees ARP only while br_netfilter is on. Nothing else of the host matches: what is not from, to or marked by
divhook passes each chain untouched, and the loopback is left out (a local program may set any mark).

Each restore of the nft tables is one transaction: no moment without them.
"""

import asyncio
import contextlib
import os
import re
import shutil
import socket
import struct

MARK_DIVERT, MARK_MASK = 0xD1, 0xFF  # bpf/abi.h
PORT_GROUP = 0xD1  # as links.PORT_GROUP
_TIMEOUT_S = 5.0
_NETLINK_NETFILTER, _NFNLGRP_NFTABLES = 12, 7  # linux/netfilter/nfnetlink.h
_SOL_NETLINK, _NETLINK_ADD_MEMBERSHIP = 270, 1


class RulesError(Exception):
    """Rules could not be set. The text is meant for a person."""


async def _run(*command: str, stdin: str = "") -> tuple[int, str, str]:
    """Exit code, output and errors of a command. Raises RulesError where it is missing or hangs."""
    try:
        process = await asyncio.create_subprocess_exec(
            *command,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            env={**os.environ, "LC_ALL": "C"},
        )
    except FileNotFoundError:
        raise RulesError(f"{command[0]} is not installed") from None
    try:
        output, error = await asyncio.wait_for(process.communicate(stdin.encode()), _TIMEOUT_S)
    except TimeoutError:
        with contextlib.suppress(ProcessLookupError):  # it may end just now
            process.kill()
        await process.wait()
        raise RulesError(f"{' '.join(command)} took more than {_TIMEOUT_S:.0f} s") from None
    return process.returncode or 0, output.decode(errors="replace"), error.decode(errors="replace").strip()


_MARKED = f"iifname != lo meta mark & {MARK_MASK:#x} == {MARK_DIVERT:#x}"
_UNMARKED = f"meta mark & {MARK_MASK:#x} != {MARK_DIVERT:#x}"


def _bridge_table(bridge: str, by_bridge_name: bool) -> str:
    sources, targets = [f"iifgroup {PORT_GROUP}"], [f"oifgroup {PORT_GROUP}"]
    if by_bridge_name:
        sources.append(f'meta ibrname "{bridge}"')
        targets.append(f'meta obrname "{bridge}"')
    unmarked = "\n".join(f"    {source} {_UNMARKED} counter drop" for source in sources)
    to_ports = "\n".join(f"    {target} counter drop" for target in targets)
    across = "\n".join(f"    {end} counter drop" for end in sources + targets)
    return f"""
table bridge divhook {{
  chain prerouting {{
    type filter hook prerouting priority -300; policy accept;
{unmarked}
  }}
  chain input {{
    type filter hook input priority filter; policy accept;
{unmarked}
  }}
  chain forward {{
    type filter hook forward priority filter; policy accept;
{across}
  }}
  chain output {{
    type filter hook output priority filter; policy accept;
{to_ports}
  }}
}}"""


def _ip_table(queue_number: int, by_nft: bool) -> str:
    queue = f"""
  chain divert {{
    type filter hook prerouting priority raw; policy accept;
    {_MARKED} counter queue num {queue_number}
  }}"""
    return f"""
table ip divhook {{
  chain untracked {{
    type filter hook prerouting priority -450; policy accept;
    {_MARKED} notrack
  }}{queue if by_nft else ""}
  chain unqueued {{
    type filter hook prerouting priority -299; policy accept;
    {_MARKED} counter drop
  }}
}}"""


_CHAINS_ONLY = re.compile(r"# Warning.*|table ip raw {|chain \w+ {\s*type filter hook .*; policy accept;\s*}|\s+|}")
_REMOVE = "\n".join(f"table {family} divhook\ndelete table {family} divhook" for family in ("bridge", "ip"))


class Rules:
    """The rules of one host, for one queue. All methods may be called at any time, and again."""

    def __init__(self, queue_number: int, bridge: str = "divbr0") -> None:
        self._queue_number = queue_number
        self._bridge = bridge
        self._by_nft: bool | None = None  # does nft `queue` work here?
        self._by_bridge_name: bool | None = None
        self._as_set: str | None = None
        self._needs_poll = False

    @property
    def needs_poll(self) -> bool:
        """Whether RulesWatcher does not see every change (iptables-legacy): then ask intact() once a second."""
        return self._needs_poll

    def _iptables_rule(self, action: str, *place: str) -> tuple[str, ...]:
        match = ("!", "-i", "lo", "-m", "mark", "--mark", f"{MARK_DIVERT:#x}/{MARK_MASK:#x}")
        queue = ("-j", "NFQUEUE", "--queue-num", str(self._queue_number))
        return ("iptables", "-w", "2", "-t", "raw", action, "PREROUTING", *place, *match, *queue)

    async def _kernel_has(self, table: str) -> bool:
        """Whether the kernel takes this table: tried under a name of its own, in a transaction that leaves nothing."""
        name = "divhook_try"
        trial = table.replace("divhook", name, 1)
        family = trial.split()[1]
        code, _, _ = await _run("nft", "-f", "-", stdin=f"{trial}\ndelete table {family} {name}\n")
        return code == 0

    async def ensure(self) -> None:
        """Set every rule, or set it again. Raises RulesError."""
        if self._by_nft is None or self._by_bridge_name is None:
            self._by_nft = await self._kernel_has(_ip_table(self._queue_number, True))
            self._by_bridge_name = await self._kernel_has(_bridge_table(self._bridge, True))
        tables = _bridge_table(self._bridge, self._by_bridge_name) + _ip_table(self._queue_number, self._by_nft)
        code, _, error = await _run("nft", "-f", "-", stdin=_REMOVE + tables)
        if code:
            raise RulesError(f"nft refuses the rules of divhook: {error}")
        if not self._by_nft:
            await self._ensure_iptables()
        self._as_set = await self._listing()

    async def _ensure_iptables(self) -> None:
        if shutil.which("iptables") is None:
            raise RulesError("this kernel has no nft `queue`, and iptables is not installed: install iptables")
        _, version, _ = await _run("iptables", "--version")
        self._needs_poll = "nf_tables" not in version
        code, _, _ = await _run(*self._iptables_rule("-C"))
        if code == 0:
            return
        code, _, error = await _run(*self._iptables_rule("-I", "1"))
        if code:
            raise RulesError(f"iptables refuses the NFQUEUE rule: {error}")

    async def _listing(self) -> str:
        """The nft tables without their counters; empty where one is missing."""
        text = ""
        for family in ("bridge", "ip"):
            code, output, _ = await _run("nft", "-s", "list", "table", family, "divhook")
            if code:
                return ""
            text += output
        return text

    async def intact(self) -> bool:
        """Whether every rule is as ensure() set it; False before ensure()."""
        if not self._as_set or await self._listing() != self._as_set:
            return False
        if self._by_nft:
            return True
        code, _, _ = await _run(*self._iptables_rule("-C"))
        return code == 0

    async def teardown(self) -> None:
        """Remove every rule that divhook ever set for this queue."""
        await _run("nft", "-f", "-", stdin=_REMOVE)
        self._as_set = None
        if shutil.which("iptables") is None:
            return
        for _ in range(16):  # an earlier run may have left more than one
            code, _, _ = await _run(*self._iptables_rule("-D"))
            if code:
                break
        # iptables-nft leaves its table behind. Without a rule it does nothing: away with it, so that all is as it was.
        code, raw, _ = await _run("nft", "-s", "list", "table", "ip", "raw")
        if code == 0 and not _CHAINS_ONLY.sub("", raw):
            await _run("nft", "delete", "table", "ip", "raw")


class RulesWatcher:
    """Hears of every change of nft rules on this host, iptables-nft's included; iptables-legacy's are not told."""

    def __init__(self) -> None:
        flags = socket.SOCK_RAW | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC
        self._socket = socket.socket(socket.AF_NETLINK, flags, _NETLINK_NETFILTER)
        self._socket.bind((0, 0))
        self._socket.setsockopt(_SOL_NETLINK, _NETLINK_ADD_MEMBERSHIP, _NFNLGRP_NFTABLES)

    def fileno(self) -> int:
        """For the event loop: readable when rules have changed."""
        return self._socket.fileno()

    def changed(self) -> bool:
        """Take what waits: whether any rule of the host changed (ours or not: ask Rules.intact())."""
        changed = False
        for _ in range(1024):
            try:
                data = self._socket.recv(65536)
            except BlockingIOError:
                break
            except OSError:  # ENOBUFS: more changes than fit
                changed = True
                continue
            changed = changed or self._tells_of_change(data)
        return changed

    @staticmethod
    def _tells_of_change(data: bytes) -> bool:
        return len(data) >= 16 and struct.unpack_from("=IH", data)[1] >> 8 == 10  # NFNL_SUBSYS_NFTABLES

    def close(self) -> None:
        """Close the socket."""
        self._socket.close()
