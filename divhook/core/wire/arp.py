"""ARP for IPv4 over Ethernet (RFC 826), and reverse ARP in the same form (RFC 903).

     0       2       4   5   6       8              14          18              24          28
    +-------+-------+---+---+-------+--------------+-----------+--------------+-----------+
    | htype | ptype | 6 | 4 |  op   |     sha      |    spa    |     tha      |    tpa    |
    |   1   | 0x0800|   |   |       |              |           |              |           |
    +-------+-------+---+---+-------+--------------+-----------+--------------+-----------+

What follows the 28 bytes is padding, or the trailer of a discovery frame (discovery.py); it is not looked at here.
"""

from dataclasses import dataclass

from divhook.core.addressing import BROADCAST_MAC, Address, Mac
from divhook.core.reasons import DropReason
from divhook.core.wire.errors import WireError
from divhook.core.wire.ethernet import ETHERTYPE_ARP, ZERO_MAC, Ethernet

ARP_LENGTH = 28
ARP_REQUEST = 1
ARP_REPLY = 2
RARP_REQUEST = 3
RARP_REPLY = 4

_PREFIX = b"\x00\x01\x08\x00\x06\x04"  # htype 1, ptype 0x0800, hlen 6, plen 4


@dataclass(frozen=True, slots=True)
class Arp:
    """One ARP or RARP packet. operation: ARP_REQUEST, ARP_REPLY, RARP_REQUEST or RARP_REPLY."""

    operation: int
    sha: Mac
    spa: Address
    tha: Mac
    tpa: Address

    def emit(self) -> bytes:
        """The 28 bytes. ValueError: an address has the wrong length."""
        packet = b"".join((_PREFIX, self.operation.to_bytes(2, "big"), self.sha, self.spa, self.tha, self.tpa))
        if (len(self.sha), len(self.spa), len(self.tha), len(self.tpa)) != (6, 4, 6, 4):
            raise ValueError("ARP: sha and tha have 6 bytes, spa and tpa 4")
        return packet


def _parse(payload: bytes, operations: tuple[int, int]) -> Arp:
    if len(payload) < ARP_LENGTH:
        raise WireError(DropReason.ARP_MALFORMED, f"{len(payload)} of {ARP_LENGTH} bytes")
    if payload[:6] != _PREFIX:
        raise WireError(DropReason.ARP_MALFORMED, f"not IPv4 over Ethernet: {payload[:6].hex()}")
    operation = payload[6] << 8 | payload[7]
    if operation not in operations:
        raise WireError(DropReason.ARP_MALFORMED, f"operation {operation}")
    return Arp(operation, payload[8:14], payload[14:18], payload[18:24], payload[24:28])


def parse_arp_untrusted(payload: bytes) -> Arp:
    """A request or reply, from the payload of an Ethernet frame. Raises WireError(ARP_MALFORMED)."""
    return _parse(payload, (ARP_REQUEST, ARP_REPLY))


def parse_rarp_untrusted(payload: bytes) -> Arp:
    """A RARP request or reply (QEMU announces a moved guest with one). Raises WireError(ARP_MALFORMED)."""
    return _parse(payload, (RARP_REQUEST, RARP_REPLY))


def request_frame(sha: Mac, spa: Address, tpa: Address, destination: Mac = BROADCAST_MAC) -> bytes:
    """A whole frame that asks who holds tpa."""
    return Ethernet(destination, sha, ETHERTYPE_ARP, Arp(ARP_REQUEST, sha, spa, ZERO_MAC, tpa).emit()).emit()


def reply_frame(sha: Mac, spa: Address, tha: Mac, tpa: Address) -> bytes:
    """A whole frame that tells tha (which holds tpa) that spa is at sha."""
    return Ethernet(tha, sha, ETHERTYPE_ARP, Arp(ARP_REPLY, sha, spa, tha, tpa).emit()).emit()
