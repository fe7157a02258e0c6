"""Ethernet II (IEEE 802.3 with a type field).

     0                   6                  12      14
    +-------------------+-------------------+-------+---- - -
    |    destination    |      source       | type  | payload (and padding, up to 46 bytes)
    +-------------------+-------------------+-------+---- - -

Invariant: what parse_ethernet_untrusted returns is untagged and of an EtherType that the caller asked for. A tag is
never skipped over: a frame that hides another VLAN's behind a tag is VLAN hopping.
"""

from dataclasses import dataclass

from divhook.core.addressing import Mac
from divhook.core.reasons import DropReason
from divhook.core.wire.errors import WireError

ETH_HEADER = 14
"""Bytes of the header, without the frame check sequence, which the NIC keeps to itself."""

ETHERTYPE_IPV4 = 0x0800
ETHERTYPE_ARP = 0x0806
ETHERTYPE_RARP = 0x8035
ETHERTYPE_IPV6 = 0x86DD
ETHERTYPE_DISCOVERY = 0x88B5  # IEEE local experimental 1
ETHERTYPE_VLAN = frozenset((0x8100, 0x88A8, 0x9100))  # 802.1Q, 802.1ad, and the QinQ from before 802.1ad

GUEST_ETHERTYPES = frozenset((ETHERTYPE_IPV4, ETHERTYPE_ARP, ETHERTYPE_RARP))
"""What a guest may send."""
WIRE_ETHERTYPES = GUEST_ETHERTYPES | {ETHERTYPE_DISCOVERY}
"""What a host may send to another."""

ZERO_MAC: Mac = bytes(6)


@dataclass(frozen=True, slots=True)
class Ethernet:
    """One untagged frame. payload is all that follows the header, padding included."""

    destination: Mac
    source: Mac
    ethertype: int
    payload: bytes

    def emit(self) -> bytes:
        """The frame's bytes. Not padded: the kernel pads what goes out of a NIC. ValueError: a MAC is not 6 bytes."""
        if len(self.destination) != 6 or len(self.source) != 6:
            raise ValueError("a MAC has 6 bytes")
        return self.destination + self.source + self.ethertype.to_bytes(2, "big") + self.payload


def ipv4_frame(destination: Mac, source: Mac, packet: bytes) -> bytes:
    """The frame of an IPv4 packet. MACs are taken as they are: a frame of every packet is made here."""
    return destination + source + b"\x08\x00" + packet


def is_group(mac: Mac) -> bool:
    """Whether a MAC is a multicast or broadcast address (the I/G bit)."""
    return mac[0] & 1 == 1


def parse_ethernet_untrusted(frame: bytes, accepted: frozenset[int] = GUEST_ETHERTYPES) -> Ethernet:
    """A frame as it came from a guest or from the wire. accepted: the EtherTypes that may pass.

    Raises WireError, first match: TRUNCATED, VLAN_TAGGED, SOURCE_MAC_GROUP, IPV6_UNSUPPORTED, ETHERTYPE.
    """
    if len(frame) < ETH_HEADER:
        raise WireError(DropReason.TRUNCATED, f"Ethernet frame of {len(frame)} bytes")
    ethertype = frame[12] << 8 | frame[13]
    if ethertype in ETHERTYPE_VLAN:
        raise WireError(DropReason.VLAN_TAGGED, f"tag protocol {ethertype:#06x}")
    source = frame[6:12]
    if source[0] & 1 or source == ZERO_MAC:
        raise WireError(DropReason.SOURCE_MAC_GROUP, f"source {source.hex(':')}")
    if ethertype not in accepted:
        if ethertype == ETHERTYPE_IPV6:
            raise WireError(DropReason.IPV6_UNSUPPORTED, "IPv6 frame")
        raise WireError(DropReason.ETHERTYPE, f"EtherType {ethertype:#06x}")
    return Ethernet(frame[:6], source, ethertype, frame[ETH_HEADER:])
