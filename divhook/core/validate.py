"""What the tc programs decide of a frame before the agent sees it: divhook/bpf/divhook.c and lib/, in Python.

    from_guest   state ─ Ethernet ─ vmac ─┬ IPv4: header ─ source ─ no DHCP but a client's ─▶ divert
                                          ├ ARP: form ─ sha ─ spa ─▶ divert
                                          └ RARP: form ─ its own MAC ─▶ divert
    from_wire    for us? ─┬ IPv4, virtual: MACs, tags ─ header ─ group or pmac ─ no DHCP ─▶ divert
                          ├ discovery: MACs, tags ─ length ─▶ divert
                          ├ plain ARP of a declared external ─▶ divert; on its own affairs, a copy
                          ├ plain ARP on a virtual address ─▶ drop
                          └ all else ─▶ the host's own stack

The order of checks and the reasons are the same on both sides: tests/bpf/test_differential.py gives them the same
frames. Invariant: what a guest gets diverted bears the port's own MAC and address, and is no DHCP server's. What only
the kernel sees (tags in metadata, rates, segments) is not here.
"""

from dataclasses import dataclass
from enum import Enum, auto

from divhook.core.addressing import GROUP_PREFIX, LIMITED_BROADCAST, ZERO_ADDRESS, Address, AddressPlan, Mac
from divhook.core.endpoint import Endpoint, PortState
from divhook.core.external import ExternalMap
from divhook.core.nat import Nat, Share
from divhook.core.reasons import DropReason
from divhook.core.wire.arp import ARP_LENGTH, ARP_REQUEST, parse_arp_untrusted, parse_rarp_untrusted
from divhook.core.wire.discovery import MAGIC, MAX_PAYLOAD, TRAILER_LENGTH, TRAILER_OFFSET
from divhook.core.wire.errors import WireError
from divhook.core.wire.ethernet import (
    ETH_HEADER,
    ETHERTYPE_ARP,
    ETHERTYPE_DISCOVERY,
    ETHERTYPE_IPV4,
    ETHERTYPE_VLAN,
    ZERO_MAC,
    is_group,
    parse_ethernet_untrusted,
)
from divhook.core.wire.ipv4 import IPV4_HEADER, Header, Protocol, header_untrusted

DHCP_SERVER_PORT = 67
DHCP_CLIENT_PORT = 68
MAX_TAGS = 4
"""Tags of a frame from the wire that are looked below; one more is no honest frame's."""
TAG_LENGTH = 4
NOTHING_OUTSIDE = ExternalMap()
DISCOVERY_MIN_LENGTH = TRAILER_OFFSET + TRAILER_LENGTH
DISCOVERY_MAX_LENGTH = DISCOVERY_MIN_LENGTH + MAX_PAYLOAD
"""Bytes of a whole discovery frame."""


class Lane(Enum):
    """What is diverted, each with a limit of its own: enum port_bucket and enum wire_bucket of abi.h."""

    IPV4 = auto()
    ARP = auto()  # and RARP
    DHCP = auto()  # a client's, from a guest
    DISCOVERY = auto()  # from the wire


@dataclass(frozen=True, slots=True)
class Divert:
    """To the agent. group: the frame's destination MAC is a group address (bit G of the mark).

    copied: to the host's own stack as well; above its rate, to that alone.
    """

    lane: Lane
    group: bool
    copied: bool = False


class Addressed(Enum):
    """Whom a frame from the wire is for."""

    OTHER = auto()  # another host's MAC
    HOST = auto()  # pmac
    GROUP = auto()  # 03:d1:…, joined
    FOREIGN_GROUP = auto()  # 03:d1:…, not joined
    MULTICAST = auto()  # any other group address, broadcast included


@dataclass(frozen=True, slots=True)
class WireFacts:
    """What from_wire knows of its host. groups: group MACs that are joined."""

    plan: AddressPlan
    pmac: Mac
    groups: frozenset[Mac]
    externals: ExternalMap = NOTHING_OUTSIDE
    nat: Nat | None = None

    def addressed(self, destination: Mac) -> Addressed:
        """Whom a destination MAC means."""
        if destination == self.pmac:
            return Addressed.HOST
        if not is_group(destination):
            return Addressed.OTHER
        if destination[:2] == GROUP_PREFIX:
            return Addressed.GROUP if destination in self.groups else Addressed.FOREIGN_GROUP
        return Addressed.MULTICAST


def udp_ports(header: Header, packet: bytes) -> tuple[int, int] | None:
    """(source, destination) where the packet is UDP and shows them: unfragmented, or the first fragment."""
    at = header.header_length
    if header.protocol != Protocol.UDP or header.fragment_offset or header.total_length < at + 4:
        return None
    return packet[at] << 8 | packet[at + 1], packet[at + 2] << 8 | packet[at + 3]


def touches_dhcp(ports: tuple[int, int] | None) -> bool:
    """Whether a DHCP client or server might read it: clients look at the destination port alone."""
    return ports is not None and (ports[0] == DHCP_SERVER_PORT or ports[1] in (DHCP_SERVER_PORT, DHCP_CLIENT_PORT))


# --- from_guest


def from_guest(endpoint: Endpoint, router: Address, frame: bytes) -> Divert | DropReason:
    """Any frame that the guest of an endpoint sent. router: of its subnet, or zero where that is not known."""
    try:
        ethernet = parse_ethernet_untrusted(frame)
        if ethernet.source != endpoint.vmac:
            return DropReason.SPOOF_MAC
        if ethernet.ethertype == ETHERTYPE_IPV4:
            lane = guest_ipv4(endpoint, router, header_untrusted(ethernet.payload), ethernet.payload)
        elif ethernet.ethertype == ETHERTYPE_ARP:
            lane = _guest_arp(endpoint, ethernet.payload)
        else:
            lane = _guest_rarp(endpoint, ethernet.payload)
    except WireError as error:
        return error.reason
    if isinstance(lane, DropReason):
        return lane
    if endpoint.state is PortState.FENCED and lane is not Lane.DHCP:  # DHCP: it gets a NAK
        return DropReason.PORT_NOT_ACTIVE
    return Divert(lane, is_group(ethernet.destination))


def guest_ipv4(endpoint: Endpoint, router: Address, header: Header, packet: bytes) -> Lane | DropReason:
    """Anti-spoof of a packet that has passed header_untrusted: the guest's address, and no DHCP but a client's."""
    ports = udp_ports(header, packet)
    dhcp = ports == (DHCP_CLIENT_PORT, DHCP_SERVER_PORT) and not header.is_fragment
    # RFC 2131 §4.1, §4.3.2: a DHCP client may have no address yet, or one from before; the agent answers, and no frame
    # goes on. Nothing else may speak from 0.0.0.0 (RFC 1122 §3.2.1.3).
    to_server = header.destination in (LIMITED_BROADCAST, router) and header.destination != ZERO_ADDRESS
    if not (dhcp and to_server) and (header.source == ZERO_ADDRESS or not endpoint.speaks_from(header.source)):
        return DropReason.SPOOF_IPV4
    if dhcp:
        return Lane.DHCP
    return DropReason.ROGUE_DHCP if touches_dhcp(ports) else Lane.IPV4


def _guest_arp(endpoint: Endpoint, payload: bytes) -> Lane | DropReason:
    arp = parse_arp_untrusted(payload)
    if arp.sha != endpoint.vmac:
        return DropReason.SPOOF_ARP_SHA
    if arp.spa not in (ZERO_ADDRESS, endpoint.address, *endpoint.allowed):  # zero: a probe, RFC 5227 §2.1.1
        return DropReason.SPOOF_ARP_SPA
    return Lane.ARP


def _guest_rarp(endpoint: Endpoint, payload: bytes) -> Lane | DropReason:
    """QEMU announces a guest that has moved here with a RARP of its own MAC; nothing else speaks RARP."""
    rarp = parse_rarp_untrusted(payload)
    own = rarp.sha == endpoint.vmac and rarp.tha == endpoint.vmac
    return Lane.ARP if own else DropReason.ARP_MALFORMED


# --- from_wire


def from_wire(facts: WireFacts, frame: bytes) -> Divert | DropReason | None:
    """Any frame from the uplink. None: not ours, it goes on to the host's own stack."""
    if len(frame) < ETH_HEADER:
        return None
    to = facts.addressed(frame[:6])
    if to is Addressed.OTHER:
        return None
    if to is Addressed.FOREIGN_GROUP:
        return DropReason.NOT_JOINED
    ethertype, at = _below_tags(frame)
    if ethertype in ETHERTYPE_VLAN:
        return DropReason.VLAN_TAGGED
    payload, tagged = frame[at:], at != ETH_HEADER
    if ethertype == ETHERTYPE_IPV4:
        return _wire_ipv4(facts, to, frame[6:12], tagged, payload)
    if ethertype not in (ETHERTYPE_ARP, ETHERTYPE_DISCOVERY):
        return None
    if to is not Addressed.MULTICAST and payload[ARP_LENGTH:].startswith(MAGIC):
        return _wire_discovery(to, frame, tagged)
    return _wire_plain_arp(facts, to, tagged, payload) if ethertype == ETHERTYPE_ARP else None


def _below_tags(frame: bytes) -> tuple[int, int]:
    """EtherType below at most MAX_TAGS tags, and where its header starts."""
    at = ETH_HEADER
    for _ in range(MAX_TAGS):
        if int.from_bytes(frame[at - 2 : at], "big") not in ETHERTYPE_VLAN or len(frame) < at + TAG_LENGTH:
            break
        at += TAG_LENGTH
    return int.from_bytes(frame[at - 2 : at], "big"), at


def _bad_link(source: Mac, tagged: bool) -> DropReason | None:
    if tagged:
        return DropReason.VLAN_TAGGED
    return DropReason.SOURCE_MAC_GROUP if is_group(source) or source == ZERO_MAC else None


def _wire_ipv4(facts: WireFacts, to: Addressed, source: Mac, tagged: bool, packet: bytes) -> Divert | DropReason | None:
    if len(packet) < IPV4_HEADER:
        return None  # too short to show its addresses: the host's stack refuses it
    if not (facts.plan.contains(packet[12:16]) or facts.plan.contains(packet[16:20])):
        return _wire_translated(facts, to, source, tagged, packet)
    if to is Addressed.MULTICAST:
        return DropReason.L2_MULTICAST_MISMATCH
    try:
        reason = _bad_link(source, tagged) or wire_ipv4(
            facts.plan, header_untrusted(packet), packet, to is Addressed.GROUP
        )
    except WireError as error:
        return error.reason
    return reason or Divert(Lane.IPV4, to is Addressed.GROUP)


def _wire_translated(
    facts: WireFacts, to: Addressed, source: Mac, tagged: bool, packet: bytes
) -> Divert | DropReason | None:
    nat, destination = facts.nat, packet[16:20]
    if nat is None or to is not Addressed.HOST or not nat.owns(destination):
        return None
    try:
        header = header_untrusted(packet)
        bad = _bad_link(source, tagged)
    except WireError as error:
        header, bad = None, _bad_link(source, tagged) or error.reason
    if header is None or bad is not None:
        return bad if destination in nat.pool else None
    share = nat.share(header, packet)
    if share is Share.NONE:
        return None
    declared = facts.externals.get(header.source) is not None
    if not declared:
        return DropReason.EXTERNAL_UNSUPPORTED if destination in nat.pool else None
    return Divert(Lane.IPV4, False, copied=share is Share.COPY)


def wire_ipv4(plan: AddressPlan, header: Header, packet: bytes, group: bool) -> DropReason | None:
    """A packet that has passed header_untrusted, in a frame to the host or (group) to a joined group."""
    if group and not is_group_address(plan, header.destination):
        return DropReason.WIRE_GROUP_UNICAST
    if not group and not plan.contains(header.destination):
        return DropReason.SPOOF_SOURCE  # a guest speaks to a host through its agent only
    return DropReason.ROGUE_DHCP if touches_dhcp(udp_ports(header, packet)) else None


def is_group_address(plan: AddressPlan, address: Address) -> bool:
    """Whether a group frame may bear it: multicast (RFC 1112), limited broadcast, or a subnet's broadcast."""
    if address[0] >> 4 == 14 or address == LIMITED_BROADCAST:
        return True
    return plan.contains(address) and plan.host_number(address) == plan.max_host


def _wire_discovery(to: Addressed, frame: bytes, tagged: bool) -> Divert | DropReason:
    reason = _bad_link(frame[6:12], tagged)
    if reason is None and not DISCOVERY_MIN_LENGTH <= len(frame) <= DISCOVERY_MAX_LENGTH:
        reason = DropReason.DISCOVERY_MALFORMED
    return reason or Divert(Lane.DISCOVERY, to is Addressed.GROUP)


def _wire_plain_arp(facts: WireFacts, to: Addressed, tagged: bool, payload: bytes) -> Divert | DropReason | None:
    """Nobody claims a virtual address by plain ARP: such a frame never reaches the host's ARP.

    A declared external may ask for one, and what else it says of itself is the host's and the agent's.
    """
    if len(payload) < ARP_LENGTH:
        return None  # the host's ARP refuses it
    spa, about_guests = payload[14:18], any(facts.plan.contains(payload[at : at + 4]) for at in (14, 24))
    if about_guests and (tagged or facts.plan.contains(spa)):
        return DropReason.VLAN_TAGGED if tagged else DropReason.UNKNOWN_HOST
    asks = payload[6:8] == ARP_REQUEST.to_bytes(2, "big")
    pool = facts.nat.pool if facts.nat is not None else frozenset()
    if not about_guests and not tagged and asks and payload[24:28] in pool and spa not in pool:
        return Divert(Lane.DISCOVERY, to is not Addressed.HOST)
    if tagged or not (facts.externals.is_on_link(spa) or spa in pool):
        return DropReason.UNKNOWN_HOST if about_guests else None
    if about_guests and not asks:
        return DropReason.UNKNOWN_HOST
    return Divert(Lane.DISCOVERY, to is not Addressed.HOST, copied=not about_guests)
