"""Source NAT, as the core sees it: a namespace of the host that takes guests' packets, and gives them back translated.

The kernel's conntrack in that namespace decides ports and addresses; the core decides what goes in, and where what
comes out goes to. Invariants (core/border.py, bpf/lib/nat.h):

- what a cell with NAT sends outside goes into the namespace, or nowhere;
- what comes out of it has a source of NAT's own, or is for a guest; all else is NAT_UNTRANSLATED.

An address of a pool is NAT's alone. The host's own address it shares with the host, by ports:

    TCP, UDP   destination port from FIRST_PORT on: NAT's     else the host's
    ICMP       echo reply, errors: a copy for NAT             else the host's
    fragments, but the first of a datagram: a copy for NAT    other protocols: the host's

The namespace answers nothing, and the host's stack ignores an ICMP answer that it has no use for: a copy harms neither.
"""

from dataclasses import dataclass
from enum import Enum, auto

from divhook.core.addressing import Address, Mac
from divhook.core.wire import icmp
from divhook.core.wire.ipv4 import Header, Protocol

FIRST_PORT = 61000
"""Of the host's address, up to 65535: above ip_local_port_range of Linux, from which the host takes its own."""
_ICMP_ANSWERS = (icmp.TYPE_ECHO_REPLY, icmp.TYPE_UNREACHABLE, icmp.TYPE_TIME_EXCEEDED, icmp.TYPE_PARAMETER_PROBLEM)


class Share(Enum):
    """Whose a packet from outside is."""

    NONE = auto()  # not NAT's
    ALL = auto()
    COPY = auto()  # nobody can tell


@dataclass(frozen=True, slots=True)
class Nat:
    """mac: of the namespace's own end of the link to it. pool: addresses that nobody else has. host: the host's own,
    where guests go out with it."""

    mac: Mac
    pool: frozenset[Address] = frozenset()
    host: Address | None = None

    def owns(self, address: Address) -> bool:
        """Whether guests' packets are translated to this address here."""
        return address in self.pool or address == self.host

    def share(self, header: Header, packet: bytes) -> Share:
        """Whose a valid packet from the wire is."""
        if header.destination in self.pool:
            return Share.ALL
        if header.destination != self.host or header.protocol not in (Protocol.TCP, Protocol.UDP, Protocol.ICMP):
            return Share.NONE
        if header.fragment_offset:
            return Share.COPY
        at = header.header_length
        if header.protocol == Protocol.ICMP:
            return Share.COPY if header.total_length > at and packet[at] in _ICMP_ANSWERS else Share.NONE
        if header.total_length < at + 4 or int.from_bytes(packet[at + 2 : at + 4], "big") < FIRST_PORT:
            return Share.NONE
        return Share.ALL
