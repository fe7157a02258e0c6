"""Which link is the uplink, whether it may be one, and what of this host overlaps the virtual space.

Pure judgement over what netlink tells; `Links` asks netlink.
"""

import ctypes
import fcntl
import socket
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path

from divhook.adapters.links.errors import LinkError
from divhook.core.addressing import Mac

RESOLV_CONFS = (
    Path("/etc/resolv.conf"),
    Path("/run/systemd/resolve/resolv.conf"),  # what is behind systemd's stub resolver 127.0.0.53
)

_UPLINK_KINDS = frozenset({None, "bond", "team", "vlan"})  # None: a driver of its own, so hardware
_UPLINK_KINDS_ALONE = frozenset({"veth", "macvlan", "ipvlan"})  # in a container or a lab, where it is the only one
_BOND_MODES = {
    0: "balance-rr",
    1: "active-backup",
    2: "balance-xor",
    3: "broadcast",
    4: "802.3ad",
    5: "balance-tlb",
    6: "balance-alb",
}
_BOND_MODES_REFUSED = (5, 6)  # these write MACs of their own choice into what the host sends (and its ARP)


@dataclass(frozen=True, slots=True)
class Link:
    """One network interface as the kernel describes it. kind: "bridge", "tun", …; None for a driver's own."""

    ifindex: int
    name: str
    mac: Mac
    mtu: int
    kind: str | None
    master: int | None  # ifindex
    up: bool
    carrier: bool
    loopback: bool = False
    bond_mode: int | None = None
    netns_peer: bool = False  # a veth whose other end is in another namespace


@dataclass(frozen=True, slots=True)
class UplinkInfo:
    """The uplink. mac is the host's pmac; mtu in bytes of IP packet."""

    ifindex: int
    name: str
    mac: Mac
    mtu: int
    carrier: bool
    bond_mode: str | None


_SAY_WHICH = "Name it as `uplink:` in /etc/divhook/divhook.yaml."


def choose_uplink(links: Sequence[Link], default_route_ifindexes: Sequence[int]) -> str:
    """The NIC with the default route (best metric first), else the only NIC that is up. Raises LinkError."""
    by_index = {link.ifindex: link for link in links}
    for ifindex in default_route_ifindexes:
        link = by_index.get(ifindex)
        if link is not None and link.kind in _UPLINK_KINDS | _UPLINK_KINDS_ALONE:
            return link.name
    free = [link for link in links if link.up and not link.loopback and link.master is None]
    candidates = [link.name for link in free if link.kind in _UPLINK_KINDS and len(link.mac) == 6]
    if not candidates:
        candidates = [link.name for link in free if link.kind in _UPLINK_KINDS_ALONE and link.netns_peer]
    if len(candidates) == 1:
        return candidates[0]
    if candidates:
        raise LinkError(f"more than one NIC could be the uplink: {', '.join(sorted(candidates))}. {_SAY_WHICH}")
    raise LinkError(f"no NIC that could be the uplink is up. {_SAY_WHICH}")


def check_uplink(link: Link, master: Link | None) -> UplinkInfo:
    """Describe the uplink. Raises LinkError, with the way out, where this link cannot be one."""
    if link.loopback or len(link.mac) != 6:
        raise LinkError(f"uplink {link.name} is not an Ethernet NIC")
    if link.kind == "bridge":
        raise LinkError(
            f"uplink {link.name} is a bridge: name the NIC itself, and take it out of the bridge "
            "(divhook's guests attach to divbr0, which never has the uplink as a port)"
        )
    if link.kind == "tun":
        raise LinkError(f"uplink {link.name} is a tap or tun device, not a NIC")
    if master is not None:
        way_out = f"name {master.name} instead" if master.kind in ("bond", "team") else f"take it out of {master.name}"
        raise LinkError(f"uplink {link.name} is a port of the {master.kind or 'device'} {master.name}: {way_out}")
    mode = None if link.bond_mode is None else _BOND_MODES.get(link.bond_mode, str(link.bond_mode))
    if link.bond_mode in _BOND_MODES_REFUSED:
        raise LinkError(
            f"uplink {link.name} is a bond of mode {mode}, which rewrites MAC addresses: "
            "use active-backup, balance-xor or 802.3ad"
        )
    return UplinkInfo(link.ifindex, link.name, link.mac, link.mtu, link.carrier, mode)


def overlap_of_resolvers(supernet: IPv4Network, files: Iterable[Path]) -> list[str]:
    """Name servers of the host that are virtual addresses, one line each for a person."""
    found = []
    for file in files:
        try:
            text = file.read_text(errors="replace")
        except OSError:
            continue
        for line in text.splitlines():
            words = line.split()
            if len(words) < 2 or words[0] != "nameserver":
                continue
            try:
                address = IPv4Address(words[1])
            except ValueError:
                continue
            if address in supernet:
                found.append(f"name server {address} in {file}")
    return found


class _IfReq(ctypes.Structure):
    _fields_ = (("name", ctypes.c_char * 16), ("data", ctypes.c_void_p), ("rest", ctypes.c_char * 16))


class _EthtoolValue(ctypes.Structure):
    _fields_ = (("command", ctypes.c_uint32), ("value", ctypes.c_uint32))


_SIOCETHTOOL = 0x8946  # linux/sockios.h
_ETHTOOL_OFFLOADS = (0x17, 0x1F, 0x24)  # ETHTOOL_STXCSUM, STSO, SGSO: linux/ethtool.h
_ETHTOOL_GFLAGS, _ETHTOOL_SFLAGS = 0x25, 0x26  # linux/ethtool.h
_ETH_FLAG_LRO = 1 << 15


def _ethtool(control: socket.socket, name: str, command: int, value: int = 0) -> int:
    argument = _EthtoolValue(command, value)
    request = _IfReq(name.encode(), ctypes.addressof(argument))
    fcntl.ioctl(control, _SIOCETHTOOL, request)
    return int(argument.value)


def _control() -> socket.socket:
    return socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC)


def set_offloads(name: str, on: bool) -> None:
    """Whether the link takes frames that are to be cut, and to be given checksums, by whoever gets them.

    Raises OSError."""
    with _control() as control:
        for command in _ETHTOOL_OFFLOADS:
            _ethtool(control, name, command, int(on))


def switch_off_lro(name: str) -> bool:
    """Switch large receive offload off: it merges frames for good, so that they cannot be forwarded at their size.

    True if it was on. Raises LinkError where it is on and stays on.
    """
    with _control() as control:
        try:
            flags = _ethtool(control, name, _ETHTOOL_GFLAGS)
        except OSError:
            return False  # no such driver operation: no LRO either
        if not flags & _ETH_FLAG_LRO:
            return False
        try:
            _ethtool(control, name, _ETHTOOL_SFLAGS, flags & ~_ETH_FLAG_LRO)
        except OSError as error:
            raise LinkError(f"uplink {name}: large receive offload cannot be switched off: {error.strerror}") from error
        return True
