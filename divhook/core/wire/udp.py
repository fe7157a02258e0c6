"""UDP over IPv4 (RFC 768). The checksum covers a pseudo-header of both addresses; zero means that there is none.

 0               2               4               6               8
+---------------+---------------+---------------+---------------+--- - -
|  source port  |   dest. port  |    length     |   checksum    | payload
+---------------+---------------+---------------+---------------+--- - -
"""

from dataclasses import dataclass
from struct import Struct

from divhook.core.addressing import Address
from divhook.core.reasons import DropReason
from divhook.core.wire.checksum import checksum, verifies
from divhook.core.wire.errors import WireError
from divhook.core.wire.ipv4 import Protocol

UDP_HEADER = 8
UDP_MAX_PAYLOAD = 0xFFFF - UDP_HEADER

_FIXED = Struct("!HHHH")


def _pseudo_header(source: Address, destination: Address, length: int) -> bytes:
    if len(source) != 4 or len(destination) != 4:
        raise ValueError("an IPv4 address has 4 bytes")
    return source + destination + bytes((0, Protocol.UDP, length >> 8, length & 0xFF))


@dataclass(frozen=True, slots=True)
class Udp:
    """One datagram."""

    source_port: int
    destination_port: int
    payload: bytes

    def emit(self, source: Address, destination: Address) -> bytes:
        """The datagram's bytes with the checksum for these IPv4 addresses. ValueError: more than 65527 bytes."""
        length = UDP_HEADER + len(self.payload)
        if length > 0xFFFF:
            raise ValueError(f"{len(self.payload)} bytes don't fit a UDP datagram")
        header = _FIXED.pack(self.source_port, self.destination_port, length, 0)
        # A sum that comes out as zero is sent as its other form: zero would say that there is none.
        value = checksum(_pseudo_header(source, destination, length) + header + self.payload) or 0xFFFF
        return header[:6] + value.to_bytes(2, "big") + self.payload


def parse_udp_untrusted(payload: bytes, source: Address, destination: Address) -> Udp:
    """A datagram, from the payload of an unfragmented IPv4 packet between these addresses.

    Bytes after the UDP length are cut off. Raises WireError(UDP_MALFORMED) for a false length or checksum.
    """
    if len(payload) < UDP_HEADER:
        raise WireError(DropReason.UDP_MALFORMED, f"{len(payload)} bytes")
    source_port, destination_port, length, value = _FIXED.unpack_from(payload)
    if not UDP_HEADER <= length <= len(payload):
        raise WireError(DropReason.UDP_MALFORMED, f"length {length} in {len(payload)} bytes")
    datagram = payload[:length]
    if value and not verifies(_pseudo_header(source, destination, length) + datagram):
        raise WireError(DropReason.UDP_MALFORMED, "checksum")
    return Udp(source_port, destination_port, datagram[UDP_HEADER:])
