"""ICMP (RFC 792): echo, and the errors that a router sends.

     0       1       2               4               6               8
    +-------+-------+---------------+---------------+---------------+--- - -
    | type  | code  |   checksum    |  identifier   |   sequence    | data              echo (8), echo reply (0)
    +-------+-------+---------------+---------------+---------------+--- - -
    |   3   | code  |   checksum    |       0       | MTU if code 4 | the packet quoted unreachable (RFC 1191)
    +-------+-------+---------------+---------------+---------------+--- - -
    |  11   |   0   |   checksum    |               0               | the packet quoted time exceeded
    +-------+-------+---------------+---------------+---------------+--- - -

An error quotes as much of the packet as fits 576 bytes (RFC 1812, 4.3.2.3), has precedence 6 (4.3.2.5) and goes to the
packet's source. Whether one may be sent at all is may_answer_with_error: the caller asks it first, each time. Without
it, two routers can answer each other for ever, and one packet to a broadcast address raises a storm.
"""

from collections.abc import Callable
from dataclasses import dataclass
from struct import Struct

from divhook.core.addressing import Address
from divhook.core.reasons import DropReason
from divhook.core.wire.checksum import checksum, verifies
from divhook.core.wire.errors import WireError
from divhook.core.wire.ipv4 import IPV4_HEADER, Header, Ipv4, Protocol, parse_ipv4_untrusted

ICMP_HEADER = 8
ERROR_TOTAL_MAX = 576
"""Bytes of a whole error packet at most."""
QUOTE_MAX = ERROR_TOTAL_MAX - IPV4_HEADER - ICMP_HEADER
ERROR_DSCP = 0xC0
"""Precedence 6, internetwork control."""

TYPE_ECHO_REPLY = 0
TYPE_UNREACHABLE = 3
TYPE_ECHO = 8
TYPE_TIME_EXCEEDED = 11
TYPE_PARAMETER_PROBLEM = 12

CODE_FRAGMENTATION_NEEDED = 4

ERROR_TYPES = frozenset((3, 4, 5, 11, 12))
"""Unreachable, source quench, redirect, time exceeded, parameter problem."""
QUERY_TYPES = frozenset((0, 8, 9, 10, 13, 14, 15, 16, 17, 18, 42, 43))
"""Types known to be no error. A type known to neither set is never answered: it may be an error."""

_FIXED = Struct("!BBHI")


def _message(kind: int, code: int, rest: int, data: bytes) -> bytes:
    value = checksum(_FIXED.pack(kind, code, 0, rest) + data)
    return _FIXED.pack(kind, code, value, rest) + data


@dataclass(frozen=True, slots=True)
class IcmpEcho:
    """An echo request, or the reply to one."""

    reply: bool
    identifier: int
    sequence: int
    payload: bytes

    def emit(self) -> bytes:
        """The message's bytes, checksum filled in."""
        kind = TYPE_ECHO_REPLY if self.reply else TYPE_ECHO
        return _message(kind, 0, self.identifier << 16 | self.sequence, self.payload)


@dataclass(frozen=True, slots=True)
class IcmpMessage:
    """Any other message. rest: the 32 bits after the checksum; payload: of an error, the packet it quotes."""

    type: int
    code: int
    rest: int
    payload: bytes

    @property
    def is_error(self) -> bool:
        """Whether it reports an error on the packet that it quotes."""
        return self.type in ERROR_TYPES

    def emit(self) -> bytes:
        """The message's bytes, checksum filled in."""
        return _message(self.type, self.code, self.rest, self.payload)


def parse_icmp_untrusted(payload: bytes) -> IcmpEcho | IcmpMessage:
    """A message, from the payload of an unfragmented IPv4 packet.

    Raises WireError(ICMP_MALFORMED): shorter than 8 bytes, a false checksum, or an error that quotes no IPv4 header.
    """
    if len(payload) < ICMP_HEADER:
        raise WireError(DropReason.ICMP_MALFORMED, f"{len(payload)} bytes")
    if not verifies(payload):
        raise WireError(DropReason.ICMP_MALFORMED, "checksum")
    kind, code, _, rest = _FIXED.unpack_from(payload)
    data = payload[ICMP_HEADER:]
    if kind in (TYPE_ECHO, TYPE_ECHO_REPLY) and code == 0:
        return IcmpEcho(kind == TYPE_ECHO_REPLY, rest >> 16, rest & 0xFFFF, data)
    if kind in ERROR_TYPES and (len(data) < IPV4_HEADER or data[0] >> 4 != 4 or data[0] & 15 < 5):
        raise WireError(DropReason.ICMP_MALFORMED, f"type {kind} quotes no IPv4 header")
    return IcmpMessage(kind, code, rest, data)


def may_answer_with_error(header: Header, packet: bytes, to_group: bool = False) -> bool:
    """Whether a router may send an ICMP error about this packet (RFC 1122, 3.2.2; RFC 1812, 4.3.2.7).

    header: of the packet, from header_untrusted. to_group: the frame was sent to a group MAC. A subnet-directed
    broadcast can't be told from the address alone: the caller, who has the plan, does not get here with one.
    """
    if to_group or header.fragment_offset:
        return False
    # Zero, loopback, multicast, class E, broadcast: a source that is no single host.
    if header.source[0] in (0, 127) or header.source[0] >= 224 or header.destination[0] >= 224:
        return False
    if header.protocol != Protocol.ICMP:
        return True
    return header.total_length > header.header_length and packet[header.header_length] in QUERY_TYPES


def icmp_error(kind: int, code: int, rest: int, packet: bytes, *, source: Address, destination: Address) -> bytes:
    """A whole IPv4 packet from source to destination that reports an error on packet.

    packet has passed header_untrusted. kind, code: ICMP type and code; rest: the 32 bits after the checksum. The error
    is atomic (DF, identification 0: RFC 6864).
    """
    total = packet[2] << 8 | packet[3]
    message = _message(kind, code, rest, packet[: min(total, QUOTE_MAX)])
    return Ipv4(
        source=source,
        destination=destination,
        protocol=Protocol.ICMP,
        payload=message,
        dscp_ecn=ERROR_DSCP,
        dont_fragment=True,
    ).emit()


ErrorBuilder = Callable[[bytes, Address, Address], bytes]
"""(packet as it arrived, source, destination) -> whole IPv4 packet. source: the router; destination: the sender."""


def _builder(kind: int, code: int) -> ErrorBuilder:
    def build(packet: bytes, source: Address, destination: Address) -> bytes:
        return icmp_error(kind, code, 0, packet, source=source, destination=destination)

    return build


time_exceeded = _builder(TYPE_TIME_EXCEEDED, 0)
"""The TTL ran out."""
net_unreachable = _builder(TYPE_UNREACHABLE, 0)
"""No way to the destination's network."""
host_unreachable = _builder(TYPE_UNREACHABLE, 1)
"""Nobody holds the destination."""
protocol_unreachable = _builder(TYPE_UNREACHABLE, 2)
"""To the router itself, in a protocol that it has not."""
port_unreachable = _builder(TYPE_UNREACHABLE, 3)
"""UDP to the router itself, where nothing listens: traceroute to the router ends by it."""
prohibited = _builder(TYPE_UNREACHABLE, 13)
"""Communication administratively prohibited: policy does not allow it (RFC 1812, 5.2.7.1)."""


def fragmentation_needed(packet: bytes, source: Address, destination: Address, mtu: int) -> bytes:
    """The answer to a packet with DF that is longer than the next hop's mtu, in bytes (RFC 1191, 4)."""
    if not 0 < mtu <= 0xFFFF:
        raise ValueError(f"MTU {mtu} does not fit the message")
    return icmp_error(TYPE_UNREACHABLE, CODE_FRAGMENTATION_NEEDED, mtu, packet, source=source, destination=destination)


def echo_reply(packet: bytes) -> bytes | None:
    """The whole IPv4 packet that answers a whole echo request: addresses swapped, a fresh TTL, no options.

    None for a fragment, or what is no echo request. Raises WireError where the packet or its ICMP message is malformed.
    """
    request = parse_ipv4_untrusted(packet)
    if request.protocol != Protocol.ICMP or request.more_fragments or request.fragment_offset:
        return None
    echo = parse_icmp_untrusted(request.payload)
    if not isinstance(echo, IcmpEcho) or echo.reply:
        return None
    return Ipv4(
        source=request.destination,
        destination=request.source,
        protocol=Protocol.ICMP,
        payload=IcmpEcho(True, echo.identifier, echo.sequence, echo.payload).emit(),
        identification=request.identification,
        dscp_ecn=request.dscp_ecn,
        dont_fragment=request.dont_fragment,
    ).emit()
