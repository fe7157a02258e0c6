"""IPv4 (RFC 791): whole packets, and what a router does to them.

     0               1               2               3
    +-------+-------+---------------+-------------------------------+
  0 |   4   |  IHL  |   DSCP, ECN   |         total length          |
    +-------+-------+---------------+-+-+-+-------------------------+
  4 |        identification         |0|D|M|   fragment offset / 8   |
    +---------------+---------------+-+-+-+-------------------------+
  8 |      TTL      |   protocol    |        header checksum        |
    +---------------+---------------+-------------------------------+
 12 |                        source address                         |
    +---------------------------------------------------------------+
 16 |                      destination address                      |
    +---------------------------------------------------------------+
 20 |     options, 0 to 40 bytes: end (0), no-op (1), or            |
    |     type (bit 7: copy into every fragment), length, data      |
    +---------------------------------------------------------------+

Two ways to read a packet, with the same checks in the same order: header_untrusted, which the slow path runs for each
packet, and parse_ipv4_untrusted, which also cuts it up. Invariant: a packet that passes has a true version,
header length, total length and checksum, options that can be walked, no source route, and fragments that neither
run over 64 KiB nor hide their ports (RFC 1858). decrement_ttl and fragment, the router's, take packets that passed.
"""

from dataclasses import dataclass
from enum import IntEnum, unique
from struct import Struct
from typing import NamedTuple

from divhook.core.addressing import Address
from divhook.core.reasons import DropReason
from divhook.core.wire.checksum import checksum, update
from divhook.core.wire.errors import WireError

IPV4_HEADER = 20
"""Bytes of a header without options."""
IPV4_MAX_OPTIONS = 40
IPV4_MAX_TOTAL = 0xFFFF
IPV4_MIN_MTU = 84
"""Bytes: the longest header and 24, so that the first piece holds a whole TCP header (RFC 1858). RFC 791 has 68."""
DEFAULT_TTL = 64

FLAG_DONT_FRAGMENT = 0x4000
FLAG_MORE_FRAGMENTS = 0x2000
OFFSET_MASK = 0x1FFF

OPTION_END = 0
OPTION_NOP = 1
OPTION_COPIED = 0x80
OPTION_LSRR = 131
OPTION_SSRR = 137


@unique
class Protocol(IntEnum):
    """What the payload is (IANA protocol numbers), where the core has a reason to know."""

    ICMP = 1
    IGMP = 2
    TCP = 6
    UDP = 17


_FIRST_FRAGMENT_MIN: dict[int, int] = {Protocol.ICMP: 8, Protocol.TCP: 20, Protocol.UDP: 8}
"""Bytes that a first fragment must hold, so that ports, flags and ICMP type are in it (RFC 1858, 3)."""

_FIXED = Struct("!BBHHHBBH4s4s")


class Header(NamedTuple):
    """What forwarding needs of a packet. Lengths and offset in bytes; the packet ends at total_length."""

    source: Address
    destination: Address
    protocol: int
    ttl: int
    total_length: int
    header_length: int
    dont_fragment: bool
    more_fragments: bool
    fragment_offset: int

    @property
    def is_fragment(self) -> bool:
        """Whether the packet is only a part of a datagram."""
        return self.more_fragments or self.fragment_offset > 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Ipv4:
    """One packet, cut up. fragment_offset in bytes, a multiple of 8; options as on the wire, padding left to emit."""

    source: Address
    destination: Address
    protocol: int
    payload: bytes
    ttl: int = DEFAULT_TTL
    identification: int = 0
    dscp_ecn: int = 0
    dont_fragment: bool = False
    more_fragments: bool = False
    fragment_offset: int = 0
    options: bytes = b""

    def emit(self) -> bytes:
        """The packet's bytes, lengths and checksum filled in; the reserved flag is zero.

        Raises ValueError for what no packet can hold: an address not of 4 bytes, options above 40, more than 65535 in
        all, an offset that is no multiple of 8.
        """
        if len(self.source) != 4 or len(self.destination) != 4:
            raise ValueError("an IPv4 address has 4 bytes")
        if self.fragment_offset % 8 or not 0 <= self.fragment_offset <= OFFSET_MASK * 8:
            raise ValueError(f"fragment offset {self.fragment_offset} is not a multiple of 8 up to {OFFSET_MASK * 8}")
        options = self.options + bytes(-len(self.options) % 4)
        total = IPV4_HEADER + len(options) + len(self.payload)
        if len(options) > IPV4_MAX_OPTIONS or total > IPV4_MAX_TOTAL:
            raise ValueError(f"{len(options)} bytes of options and {len(self.payload)} of payload don't fit")
        flags = FLAG_DONT_FRAGMENT * self.dont_fragment | FLAG_MORE_FRAGMENTS * self.more_fragments
        fixed = _FIXED.pack(
            0x45 + len(options) // 4,
            self.dscp_ecn,
            total,
            self.identification,
            flags | self.fragment_offset // 8,
            self.ttl,
            self.protocol,
            0,
            self.source,
            self.destination,
        )
        return _with_checksum(fixed + options) + self.payload


def _with_checksum(header: bytes) -> bytes:
    """The header with its checksum put in, whatever bytes 10 and 11 were."""
    return header[:10] + checksum(header[:10] + header[12:]).to_bytes(2, "big") + header[12:]


def _options_untrusted(options: bytes) -> list[bytes]:
    """The options one by one, no-ops and what follows the end mark left out. Raises WireError(IPV4_OPTION)."""
    found = []
    at = 0
    while at < len(options):
        kind = options[at]
        if kind == OPTION_END:
            break
        if kind == OPTION_NOP:
            at += 1
            continue
        if kind in (OPTION_LSRR, OPTION_SSRR):
            raise WireError(DropReason.IPV4_OPTION, f"source route, option {kind}")
        length = options[at + 1] if at + 1 < len(options) else 0
        if length < 2 or at + length > len(options):
            raise WireError(DropReason.IPV4_OPTION, f"option {kind} at {at} with length {length}")
        found.append(options[at : at + length])
        at += length
    return found


def header_untrusted(packet: bytes) -> Header:
    """Check a packet and return what forwarding needs. Bytes after total_length are padding, and not looked at.

    Raises WireError, first match: TRUNCATED (no 20 bytes), IPV4_VERSION, IPV4_HEADER_LENGTH (IHL below 5), TRUNCATED
    (fewer bytes than IHL says), IPV4_TOTAL_LENGTH (less than the header), TRUNCATED (fewer bytes than total length),
    IPV4_CHECKSUM, IPV4_OPTION, FRAGMENT_INVALID. divhook/bpf/lib/ipv4.h has the same order.
    """
    if len(packet) < IPV4_HEADER:
        raise WireError(DropReason.TRUNCATED, f"IPv4 packet of {len(packet)} bytes")
    version_ihl, _, total, _, flags_offset, ttl, protocol, _, source, destination = _FIXED.unpack_from(packet)
    header_length = IPV4_HEADER
    if version_ihl != 0x45:
        if version_ihl >> 4 != 4:
            raise WireError(DropReason.IPV4_VERSION, f"version {version_ihl >> 4}")
        header_length = (version_ihl & 15) * 4
        if header_length < IPV4_HEADER:
            raise WireError(DropReason.IPV4_HEADER_LENGTH, f"header of {header_length} bytes")
        if header_length > len(packet):
            raise WireError(DropReason.TRUNCATED, f"header of {header_length} bytes in {len(packet)}")
    if total < header_length:
        raise WireError(DropReason.IPV4_TOTAL_LENGTH, f"total length {total} with a header of {header_length}")
    if total > len(packet):
        raise WireError(DropReason.TRUNCATED, f"total length {total} in {len(packet)} bytes")
    # One's complement: a true header, which is never all zero, is a multiple of 65535 (checksum.py).
    if int.from_bytes(packet[:header_length], "big") % 0xFFFF:
        raise WireError(DropReason.IPV4_CHECKSUM, "header checksum")
    if header_length > IPV4_HEADER:
        _options_untrusted(packet[IPV4_HEADER:header_length])
    offset = (flags_offset & OFFSET_MASK) * 8
    more = flags_offset & FLAG_MORE_FRAGMENTS != 0
    if more or offset:
        if offset + total > IPV4_MAX_TOTAL:
            raise WireError(DropReason.FRAGMENT_INVALID, f"at {offset} with {total} bytes: past 64 KiB")
        _check_ports_shown(protocol, offset, total - header_length)
    return Header(
        source,
        destination,
        protocol,
        ttl,
        total,
        header_length,
        flags_offset & FLAG_DONT_FRAGMENT != 0,
        more,
        offset,
    )


def _check_ports_shown(protocol: int, offset: int, length: int) -> None:
    """Raise WireError(FRAGMENT_INVALID) where the transport header is not wholly in the first fragment (RFC 1858)."""
    minimum = _FIRST_FRAGMENT_MIN.get(protocol, 0)
    if offset == 0 and length < minimum:
        raise WireError(DropReason.FRAGMENT_INVALID, f"first fragment of {length} bytes, protocol {protocol}")
    if 0 < offset < minimum:
        raise WireError(DropReason.FRAGMENT_INVALID, f"fragment at {offset} would overwrite the TCP header")


def parse_ipv4_untrusted(packet: bytes) -> Ipv4:
    """A packet, from the payload of an Ethernet frame; what follows total length (padding) is cut off.

    Raises WireError with the reasons of header_untrusted.
    """
    header = header_untrusted(packet)
    return Ipv4(
        source=header.source,
        destination=header.destination,
        protocol=header.protocol,
        payload=packet[header.header_length : header.total_length],
        ttl=header.ttl,
        identification=packet[4] << 8 | packet[5],
        dscp_ecn=packet[1],
        dont_fragment=header.dont_fragment,
        more_fragments=header.more_fragments,
        fragment_offset=header.fragment_offset,
        options=packet[IPV4_HEADER : header.header_length],
    )


def decrement_ttl(packet: bytes) -> bytes:
    """The packet one hop on: TTL - 1, checksum patched (RFC 1624). The packet has passed header_untrusted.

    Raises ValueError where the TTL is 0; what becomes 0 is for the caller to answer with time exceeded, not to send.
    """
    ttl, protocol = packet[8], packet[9]
    if ttl == 0:
        raise ValueError("the TTL is 0 already")
    word = ttl << 8 | protocol
    patched = update(packet[10] << 8 | packet[11], word, word - 0x100)
    return b"".join((packet[:8], bytes((ttl - 1, protocol, patched >> 8, patched & 0xFF)), packet[12:]))


def fragment(packet: bytes, mtu: int) -> list[bytes]:
    """The packet in pieces of at most mtu bytes, in order (RFC 791, 3.2); it alone, without padding, if it fits.

    The packet has passed header_untrusted, and may be a fragment itself. Options are all in the first piece, those with
    the copied flag in each. Raises ValueError for a packet that may not be fragmented, or an MTU below IPV4_MIN_MTU.
    """
    header = header_untrusted(packet)
    if header.total_length <= mtu:
        return [packet[: header.total_length]]
    if header.dont_fragment:
        raise ValueError("the packet may not be fragmented")
    if mtu < IPV4_MIN_MTU:
        raise ValueError(f"MTU {mtu} is below {IPV4_MIN_MTU}")
    first = packet[: header.header_length]
    options = _options_untrusted(first[IPV4_HEADER:])
    copied = b"".join(option for option in options if option[0] & OPTION_COPIED)
    rest = first[:IPV4_HEADER] + copied + bytes(-len(copied) % 4)
    pieces = []
    at = header.header_length
    offset = header.fragment_offset
    fixed = first
    while at < header.total_length:
        step = (mtu - len(fixed)) & ~7
        data = packet[at : min(at + step, header.total_length)]
        at += len(data)
        more = at < header.total_length or header.more_fragments
        pieces.append(_piece(fixed, data, offset, more))
        offset += len(data)
        fixed = rest
    return pieces


def _piece(header: bytes, data: bytes, offset: int, more: bool) -> bytes:
    """One fragment, with the identification, addresses and options of header. offset in bytes."""
    words = bytearray(header)
    words[0] = 0x40 | len(header) // 4
    words[2:4] = (len(header) + len(data)).to_bytes(2, "big")
    reserved = header[6] & 0x80
    words[6:8] = (reserved << 8 | FLAG_MORE_FRAGMENTS * more | offset // 8).to_bytes(2, "big")
    return _with_checksum(bytes(words)) + data
