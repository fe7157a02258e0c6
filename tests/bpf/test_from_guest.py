"""from_guest: what a guest may hand over, and the reason for everything that it may not."""

import bpf_frames as f
import pytest
from bpf_bench import PORT_ID, Bench, port_entry
from bpf_frames import ethernet

from divhook.adapters.bpf import DROP, FROM_GUEST
from divhook.core.endpoint import PortState
from divhook.core.reasons import DropReason as R

ROUTER_ALERT = bytes((148, 4, 0, 0))

PASSES = {
    "IPv4 to a unicast MAC": ethernet(f.ipv4()),
    "IPv4 to a group MAC": ethernet(f.ipv4(destination=f.MULTICAST), destination=f.MDNS_GROUP),
    "IPv4 with Ethernet padding": ethernet(f.ipv4(b"short") + bytes(21)),
    "the longest option list": ethernet(f.ipv4(options=b"\x01" * 36 + ROUTER_ALERT)),
    "options behind the end mark are not looked at": ethernet(f.ipv4(options=b"\x00\x83\x03\x04")),
    "a timestamp option of the full 40 bytes": ethernet(f.ipv4(options=bytes((68, 40)) + bytes(38))),
    "a first fragment": ethernet(f.ipv4(bytes(24), more=True)),
    "a last fragment that ends at 65535": ethernet(f.ipv4(bytes(11), offset=65504)),
    "a fragment of TCP behind its header": ethernet(f.ipv4(bytes(9), protocol=f.TCP, offset=24)),
    "TCP's first fragment with its whole header": ethernet(f.ipv4(bytes(20), protocol=f.TCP, more=True)),
    "UDP": ethernet(f.ipv4(f.udp(5353, 53), protocol=f.UDP)),
    "TCP from port 67": ethernet(f.ipv4(f.udp(67, 68) + bytes(12), protocol=f.TCP)),
    "a later fragment of UDP, whose payload looks like port 67": ethernet(
        f.ipv4(f.udp(67, 68), protocol=f.UDP, offset=1480)
    ),
    "DHCP from no address": ethernet(f.dhcp(), destination=f.BROADCAST),
    "DHCP from no address to the router": ethernet(f.dhcp(destination=f.ROUTER)),
    "DHCP renewal": ethernet(f.dhcp(f.ADDRESS, f.ROUTER)),
    "ARP request": ethernet(f.arp(), f.ARP, destination=f.BROADCAST),
    "ARP request, padded": ethernet(f.arp() + bytes(18), f.ARP),
    "ARP reply": ethernet(f.arp(op=2, tha=f.OTHER_MAC), f.ARP),
    "ARP probe": ethernet(f.arp(spa=f.NONE, tpa=f.ADDRESS), f.ARP, destination=f.BROADCAST),
    "RARP request of its own MAC": ethernet(f.arp(f.NONE, f.NONE, tha=f.VMAC, op=3), f.RARP, destination=f.BROADCAST),
    "RARP reply of its own MAC": ethernet(f.arp(f.NONE, f.NONE, tha=f.VMAC, op=4), f.RARP),
    "to divbr0's own MAC": ethernet(f.ipv4(), destination=f.DIVBR_MAC),
    "ARP that looks like discovery is a guest's ARP": ethernet(f.arp() + b"\xd1\x7e" + bytes(94), f.ARP),
}

SHARED = bytes((10, 21, 37, 200))

DROPS = {
    "802.1Q": (f.tag(ethernet(f.ipv4()), 100), R.VLAN_TAGGED),
    "802.1Q, VID 0": (f.tag(ethernet(f.ipv4()), 0), R.VLAN_TAGGED),
    "802.1ad": (f.tag(ethernet(f.arp(), f.ARP), 100, f.QINQ), R.VLAN_TAGGED),
    "old QinQ": (f.tag(ethernet(f.ipv4()), 100, f.OLD_QINQ), R.VLAN_TAGGED),
    "group source": (ethernet(f.ipv4(), source=bytes((0x53,)) + f.VMAC[1:]), R.SOURCE_MAC_GROUP),
    "broadcast source": (ethernet(f.ipv4(), source=f.BROADCAST), R.SOURCE_MAC_GROUP),
    "zero source": (ethernet(f.ipv4(), source=bytes(6)), R.SOURCE_MAC_GROUP),
    "IPv6": (ethernet(b"\x60" + bytes(39), f.IPV6), R.IPV6_UNSUPPORTED),
    "LLDP": (ethernet(bytes(46), 0x88CC), R.ETHERTYPE),
    "discovery's EtherType": (ethernet(f.arp() + b"\xd1\x7e", f.DISCOVERY), R.ETHERTYPE),
    "802.3 length": (ethernet(bytes(46), 46), R.ETHERTYPE),
    "EtherType 0": (ethernet(bytes(46), 0), R.ETHERTYPE),
    "version 5": (ethernet(f.ipv4(version=5)), R.IPV4_VERSION),
    "version 6": (ethernet(f.ipv4(version=6)), R.IPV4_VERSION),
    "IHL 4": (ethernet(f.ipv4(ihl=4)), R.IPV4_HEADER_LENGTH),
    "IHL 0": (ethernet(f.ipv4(ihl=0)), R.IPV4_HEADER_LENGTH),
    "IHL beyond the frame": (ethernet(f.ipv4(b"", ihl=6)), R.TRUNCATED),
    "total length below the header": (ethernet(f.ipv4(total_length=19)), R.IPV4_TOTAL_LENGTH),
    "total length below a header with options": (
        ethernet(f.ipv4(options=ROUTER_ALERT, total_length=23)),
        R.IPV4_TOTAL_LENGTH,
    ),
    "total length beyond the frame": (ethernet(f.ipv4(total_length=45)), R.TRUNCATED),
    "checksum, one bit": (ethernet(f.ipv4(checksum_error=0x0400)), R.IPV4_CHECKSUM),
    "checksum over options, one bit": (
        ethernet(f.ipv4(options=ROUTER_ALERT, checksum_error=0x0001)),
        R.IPV4_CHECKSUM,
    ),
    "option of length 0": (ethernet(f.ipv4(options=b"\x94\x00\x00\x00")), R.IPV4_OPTION),
    "option of length 1": (ethernet(f.ipv4(options=b"\x94\x01\x00\x00")), R.IPV4_OPTION),
    "option longer than the header": (ethernet(f.ipv4(options=b"\x01\x94\x04\x00")), R.IPV4_OPTION),
    "option without length octet": (ethernet(f.ipv4(options=b"\x01\x01\x01\x94")), R.IPV4_OPTION),
    "last octet of 40 needs a length": (ethernet(f.ipv4(options=b"\x01" * 39 + b"\x94")), R.IPV4_OPTION),
    "loose source route": (ethernet(f.ipv4(options=b"\x83\x03\x04\x00")), R.IPV4_OPTION),
    "strict source route": (ethernet(f.ipv4(options=b"\x01\x89\x03\x04")), R.IPV4_OPTION),
    "source route after another option": (
        ethernet(f.ipv4(options=ROUTER_ALERT + b"\x83\x03\x04\x00")),
        R.IPV4_OPTION,
    ),
    "fragment that ends at 65536": (ethernet(f.ipv4(bytes(12), offset=65504)), R.FRAGMENT_INVALID),
    "fragment at the highest offset": (ethernet(f.ipv4(offset=65528)), R.FRAGMENT_INVALID),
    "TCP's first fragment without its flags": (
        ethernet(f.ipv4(bytes(16), protocol=f.TCP, more=True)),
        R.FRAGMENT_INVALID,
    ),
    "fragment over TCP's flags": (ethernet(f.ipv4(bytes(16), protocol=f.TCP, offset=8)), R.FRAGMENT_INVALID),
    "UDP's first fragment without its header": (
        ethernet(f.ipv4(bytes(7), protocol=f.UDP, more=True)),
        R.FRAGMENT_INVALID,
    ),
    "another's MAC": (ethernet(f.ipv4(), source=f.OTHER_MAC), R.SPOOF_MAC),
    "another's MAC by its last octet": (ethernet(f.arp(), f.ARP, source=f.VMAC[:5] + b"\x57"), R.SPOOF_MAC),
    "the host's MAC": (ethernet(f.ipv4(), source=f.PMAC), R.SPOOF_MAC),
    "another's address": (ethernet(f.ipv4(source=f.NEIGHBOUR)), R.SPOOF_IPV4),
    "an address outside": (ethernet(f.ipv4(source=f.OUTSIDE)), R.SPOOF_IPV4),
    "another's address in a fragment": (ethernet(f.ipv4(source=f.NEIGHBOUR, offset=1480)), R.SPOOF_IPV4),
    "no address, no DHCP": (ethernet(f.ipv4(source=f.NONE)), R.SPOOF_IPV4),
    "no address, TCP with DHCP's ports": (
        ethernet(f.ipv4(f.udp(68, 67), f.NONE, f.LIMITED_BROADCAST, f.TCP)),
        R.SPOOF_IPV4,
    ),
    "no address, DHCP to anybody": (ethernet(f.dhcp(destination=f.NEIGHBOUR)), R.SPOOF_IPV4),
    "no address, DHCP to no address": (ethernet(f.dhcp(destination=f.NONE)), R.SPOOF_IPV4),
    "no address, wrong source port": (ethernet(f.dhcp(sport=69)), R.SPOOF_IPV4),
    "no address, wrong destination port": (ethernet(f.dhcp(dport=69)), R.SPOOF_IPV4),
    "no address, fragment of DHCP": (
        ethernet(f.ipv4(f.udp(68, 67), f.NONE, f.LIMITED_BROADCAST, f.UDP, more=True)),
        R.SPOOF_IPV4,
    ),
    "a DHCP offer": (ethernet(f.dhcp(f.ADDRESS, f.NEIGHBOUR, 67, 68)), R.ROGUE_DHCP),
    "a DHCP offer from any other port": (ethernet(f.dhcp(f.ADDRESS, f.NEIGHBOUR, 5353, 68)), R.ROGUE_DHCP),
    "to another's DHCP server, not as a client": (ethernet(f.dhcp(f.ADDRESS, f.NEIGHBOUR, 69, 67)), R.ROGUE_DHCP),
    "the first fragment of a DHCP request": (
        ethernet(f.ipv4(f.udp(68, 67), f.ADDRESS, f.NEIGHBOUR, f.UDP, more=True)),
        R.ROGUE_DHCP,
    ),
    "a DHCP relay": (ethernet(f.dhcp(f.ADDRESS, f.NEIGHBOUR, 67, 67)), R.ROGUE_DHCP),
    "the first fragment of a DHCP offer": (
        ethernet(f.ipv4(f.udp(67, 68), f.ADDRESS, f.NEIGHBOUR, f.UDP, more=True)),
        R.ROGUE_DHCP,
    ),
    "a DHCP offer behind options": (
        ethernet(f.ipv4(f.udp(67, 68), f.ADDRESS, f.NEIGHBOUR, f.UDP, options=ROUTER_ALERT)),
        R.ROGUE_DHCP,
    ),
    "ARP cut short": (ethernet(f.arp()[:-1], f.ARP), R.ARP_MALFORMED),
    "ARP htype": (ethernet(f.arp(htype=6), f.ARP), R.ARP_MALFORMED),
    "ARP ptype": (ethernet(f.arp(ptype=0x86DD), f.ARP), R.ARP_MALFORMED),
    "ARP hlen": (ethernet(f.arp(hlen=8), f.ARP), R.ARP_MALFORMED),
    "ARP plen": (ethernet(f.arp(plen=16), f.ARP), R.ARP_MALFORMED),
    "ARP op 0": (ethernet(f.arp(op=0), f.ARP), R.ARP_MALFORMED),
    "ARP with RARP's op": (ethernet(f.arp(op=3), f.ARP), R.ARP_MALFORMED),
    "InARP": (ethernet(f.arp(op=8), f.ARP), R.ARP_MALFORMED),
    "forged sha": (ethernet(f.arp(sha=f.OTHER_MAC), f.ARP), R.SPOOF_ARP_SHA),
    "forged spa": (ethernet(f.arp(spa=f.NEIGHBOUR), f.ARP), R.SPOOF_ARP_SPA),
    "the router's spa": (ethernet(f.arp(spa=f.ROUTER, op=2), f.ARP), R.SPOOF_ARP_SPA),
    "RARP cut short": (ethernet(f.arp(tha=f.VMAC, op=3)[:20], f.RARP), R.ARP_MALFORMED),
    "RARP with ARP's op": (ethernet(f.arp(tha=f.VMAC, op=1), f.RARP), R.ARP_MALFORMED),
    "RARP for another": (ethernet(f.arp(tha=f.OTHER_MAC, op=3), f.RARP), R.ARP_MALFORMED),
    "RARP by another": (ethernet(f.arp(sha=f.OTHER_MAC, tha=f.VMAC, op=3), f.RARP), R.ARP_MALFORMED),
}


@pytest.mark.parametrize("frame", PASSES.values(), ids=PASSES)
def test_valid_frame_is_diverted_to_divbr0_with_its_port_in_the_mark(bench: Bench, frame: bytes) -> None:
    bench.guest_diverted(frame)


@pytest.mark.parametrize(("frame", "reason"), DROPS.values(), ids=DROPS)
def test_bad_frame_is_dropped_with_its_reason(bench: Bench, frame: bytes, reason: R) -> None:
    bench.guest_dropped(frame, reason)


@pytest.mark.parametrize("name", ["IPv4 to a unicast MAC", "ARP request", "RARP request of its own MAC"])
def test_fenced_port_passes_nothing(bench: Bench, name: str) -> None:
    bench.programs.set_port(bench.port, port_entry(state=PortState.FENCED))
    bench.guest_dropped(PASSES[name], R.PORT_NOT_ACTIVE)


@pytest.mark.parametrize("name", ["DHCP from no address", "DHCP renewal"])
def test_fenced_port_passes_dhcp_so_that_the_client_gets_its_nak(bench: Bench, name: str) -> None:
    bench.programs.set_port(bench.port, port_entry(state=PortState.FENCED))
    bench.guest_diverted(PASSES[name])


@pytest.mark.parametrize("state", [PortState.TENTATIVE, PortState.INCOMING])
@pytest.mark.parametrize("name", ["IPv4 to a unicast MAC", "DHCP from no address", "RARP request of its own MAC"])
def test_port_that_is_not_active_yet_leaves_the_decision_to_the_agent(
    bench: Bench, state: PortState, name: str
) -> None:
    bench.programs.set_port(bench.port, port_entry(state=state))
    bench.guest_diverted(PASSES[name])


@pytest.mark.parametrize(
    "name",
    [
        "DHCP from no address",
        "DHCP from no address to the router",
        "DHCP renewal",  # of an address from before
        "ARP probe",
        "RARP request of its own MAC",
    ],
)
def test_port_without_address_passes_what_asks_for_one(bench: Bench, name: str) -> None:
    bench.programs.set_port(bench.port, port_entry(address=None))
    bench.guest_diverted(PASSES[name])


@pytest.mark.parametrize(
    ("frame", "reason"),
    [
        (PASSES["IPv4 to a unicast MAC"], R.SPOOF_IPV4),
        (DROPS["no address, no DHCP"][0], R.SPOOF_IPV4),
        (PASSES["ARP request"], R.SPOOF_ARP_SPA),
    ],
)
def test_port_without_address_passes_nothing_else(bench: Bench, frame: bytes, reason: R) -> None:
    bench.programs.set_port(bench.port, port_entry(address=None))
    bench.guest_dropped(frame, reason)


def test_port_without_router_sends_dhcp_by_broadcast_only(bench: Bench) -> None:
    bench.programs.set_port(bench.port, port_entry(address=None, router=f.NONE))
    bench.guest_diverted(PASSES["DHCP from no address"])
    bench.guest_dropped(ethernet(f.dhcp(destination=f.NONE)), R.SPOOF_IPV4)


def test_interface_without_port_passes_nothing(bench: Bench) -> None:
    bench.programs.remove_port(bench.port)
    bench.assert_dropped(FROM_GUEST, PASSES["ARP request"], R.PORT_UNKNOWN, 0)


def test_port_id_of_sixteen_bits_arrives_whole_in_the_mark(bench: Bench) -> None:
    bench.programs.set_port(bench.port, port_entry(port_id=0xFFFF))
    frame = PASSES["ARP probe"]
    bench.assert_diverted(FROM_GUEST, frame, f.DIVBR_MAC + frame[6:], 0xFFFF01D1)
    bench.programs.forget_port_counters(0xFFFF)


def test_dropped_frame_keeps_no_mark(bench: Bench) -> None:
    result = bench.programs.test_run(FROM_GUEST, DROPS["IPv6"][0], bench.port, mark=PORT_ID << 16 | 0xD1)
    assert (result.verdict, result.mark) == (DROP, 0)


TAKING = ethernet(f.arp(spa=SHARED, tpa=SHARED), f.ARP, destination=f.BROADCAST)
FROM_SHARED = ethernet(f.ipv4(source=SHARED))


def test_arp_may_take_an_allowed_address_and_packets_pass_from_a_held_one_alone(bench: Bench) -> None:
    bench.programs.set_port(bench.port, port_entry(shares=True))
    bench.programs.set_shared(PORT_ID + 1, {SHARED: True})
    for frame, reason in ((TAKING, R.SPOOF_ARP_SPA), (FROM_SHARED, R.SPOOF_IPV4)):
        bench.guest_dropped(frame, reason)
    bench.programs.set_shared(PORT_ID, {SHARED: False})
    bench.guest_diverted(TAKING)
    bench.guest_dropped(FROM_SHARED, R.SPOOF_IPV4)
    bench.programs.set_shared(PORT_ID, {SHARED: True})
    bench.guest_diverted(TAKING)
    bench.guest_diverted(FROM_SHARED)
    bench.programs.set_port(bench.port, port_entry())
    bench.guest_dropped(FROM_SHARED, R.SPOOF_IPV4)
    for port in (PORT_ID, PORT_ID + 1):
        bench.programs.set_shared(port, {})
    assert bench.programs.shared() == {}
