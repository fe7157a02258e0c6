"""from_wire: what reaches the agent, what ends here, and the rest, which the host gets as if we were not there."""

import bpf_frames as f
import pytest
from bpf_bench import Bench
from bpf_frames import PMAC, STRANGER, ethernet

from divhook.adapters.bpf import FROM_WIRE, PASS
from divhook.core.reasons import DropReason as R


def wire(payload: bytes, ethertype: int = f.IPV4, destination: bytes = PMAC, source: bytes = STRANGER) -> bytes:
    return ethernet(payload, ethertype, source, destination)


HERE = {"source": f.NEIGHBOUR, "destination": f.ADDRESS}
VIRTUAL = f.ipv4(**HERE)

DIVERTED = {
    "virtual to virtual": wire(VIRTUAL),
    "from outside to virtual": wire(f.ipv4(source=f.OUTSIDE, destination=f.ADDRESS)),
    "from a known peer": wire(VIRTUAL, source=f.PEER),
    "padded": wire(f.ipv4(b"x", **HERE) + bytes(25)),
    "a fragment": wire(f.ipv4(bytes(24), offset=1480, **HERE)),
    "with options": wire(f.ipv4(options=b"\x01\x01\x01\x00", **HERE)),
    "UDP": wire(f.ipv4(f.udp(5353, 53), protocol=f.UDP, **HERE)),
    "a subnet's broadcast in its group": wire(
        f.ipv4(source=f.NEIGHBOUR, destination=f.SUBNET_BROADCAST), destination=f.GROUP
    ),
    "limited broadcast in a group": wire(
        f.ipv4(source=f.NEIGHBOUR, destination=f.LIMITED_BROADCAST), destination=f.GROUP
    ),
    "multicast in a group": wire(f.ipv4(source=f.NEIGHBOUR, destination=f.MULTICAST), destination=f.GROUP),
}

DROPPED = {
    "group that is not joined": (wire(VIRTUAL, destination=f.FOREIGN_GROUP), R.NOT_JOINED),
    "discovery to a group that is not joined": (f.discovery(destination=f.FOREIGN_GROUP), R.NOT_JOINED),
    "anything to a group that is not joined": (wire(bytes(46), 0x88CC, f.FOREIGN_GROUP), R.NOT_JOINED),
    "tagged": (f.tag(wire(VIRTUAL), 100), R.VLAN_TAGGED),
    "priority-tagged": (f.tag(wire(VIRTUAL), 0), R.VLAN_TAGGED),
    "tagged twice": (f.tag(f.tag(wire(VIRTUAL), 0), 0, f.QINQ), R.VLAN_TAGGED),
    "tagged four times": (f.tag(f.tag(f.tag(f.tag(wire(VIRTUAL), 0), 0), 0), 0), R.VLAN_TAGGED),
    "tagged too often to tell": (f.tag(f.tag(f.tag(f.tag(f.tag(wire(VIRTUAL), 0), 0), 0), 0), 0), R.VLAN_TAGGED),
    "tagged ARP for a virtual address": (f.tag(wire(f.arp(), f.ARP), 0), R.VLAN_TAGGED),
    "tagged discovery": (f.tag(f.discovery(), 0), R.VLAN_TAGGED),
    "group source": (wire(VIRTUAL, source=f.GROUP), R.SOURCE_MAC_GROUP),
    "zero source": (wire(VIRTUAL, source=bytes(6)), R.SOURCE_MAC_GROUP),
    "discovery from a group": (f.discovery(source=f.GROUP), R.SOURCE_MAC_GROUP),
    "version": (wire(f.ipv4(version=6, **HERE)), R.IPV4_VERSION),
    "IHL": (wire(f.ipv4(ihl=3, **HERE)), R.IPV4_HEADER_LENGTH),
    "total length": (wire(f.ipv4(total_length=9, **HERE)), R.IPV4_TOTAL_LENGTH),
    "IHL beyond the frame": (wire(f.ipv4(b"", ihl=6, **HERE)), R.TRUNCATED),
    "truncated": (wire(f.ipv4(total_length=99, **HERE)), R.TRUNCATED),
    "checksum": (wire(f.ipv4(checksum_error=0x8000, **HERE)), R.IPV4_CHECKSUM),
    "source route": (wire(f.ipv4(options=b"\x83\x03\x04\x00", **HERE)), R.IPV4_OPTION),
    "fragment past 64 KiB": (wire(f.ipv4(offset=65520, **HERE)), R.FRAGMENT_INVALID),
    "checksum of what claims a virtual source only": (
        wire(f.ipv4(source=f.NEIGHBOUR, destination=f.OUTSIDE, checksum_error=1)),
        R.IPV4_CHECKSUM,
    ),
    "unicast in a group": (wire(VIRTUAL, destination=f.GROUP), R.WIRE_GROUP_UNICAST),
    "unicast to the host in a group": (
        wire(f.ipv4(source=f.NEIGHBOUR, destination=f.OUTSIDE), destination=f.GROUP),
        R.WIRE_GROUP_UNICAST,
    ),
    "virtual source to the host itself": (
        wire(f.ipv4(source=f.NEIGHBOUR, destination=f.OUTSIDE)),
        R.SPOOF_SOURCE,
    ),
    "virtual source to the host by multicast address": (
        wire(f.ipv4(source=f.NEIGHBOUR, destination=f.MULTICAST)),
        R.SPOOF_SOURCE,
    ),
    "broadcast MAC": (wire(VIRTUAL, destination=f.BROADCAST), R.L2_MULTICAST_MISMATCH),
    "virtual source to the host by broadcast MAC": (
        wire(f.ipv4(source=f.NEIGHBOUR, destination=f.LIMITED_BROADCAST), destination=f.BROADCAST),
        R.L2_MULTICAST_MISMATCH,
    ),
    "virtual source to the host by multicast MAC": (
        wire(f.ipv4(source=f.NEIGHBOUR, destination=f.MULTICAST), destination=f.MDNS_GROUP),
        R.L2_MULTICAST_MISMATCH,
    ),
    "DHCP request": (wire(f.dhcp(f.NEIGHBOUR, f.ADDRESS)), R.ROGUE_DHCP),
    "DHCP offer": (wire(f.dhcp(f.NEIGHBOUR, f.ADDRESS, 67, 68)), R.ROGUE_DHCP),
    "DHCP offer from outside": (wire(f.dhcp(f.OUTSIDE, f.ADDRESS, 67, 68)), R.ROGUE_DHCP),
    "to DHCP's client port": (wire(f.dhcp(f.NEIGHBOUR, f.ADDRESS, 5353, 68)), R.ROGUE_DHCP),
    "first fragment of a DHCP offer": (
        wire(f.ipv4(f.udp(67, 68), protocol=f.UDP, more=True, **HERE)),
        R.ROGUE_DHCP,
    ),
    "plain ARP claims a virtual address": (
        wire(f.arp(f.ADDRESS, f.OUTSIDE), f.ARP, f.BROADCAST),
        R.UNKNOWN_HOST,
    ),
    "plain ARP asks for a virtual address": (
        wire(f.arp(f.OUTSIDE, f.ADDRESS), f.ARP, f.BROADCAST),
        R.UNKNOWN_HOST,
    ),
    "plain ARP claims a virtual address, unicast": (
        wire(f.arp(f.ADDRESS, f.OUTSIDE, op=2), f.ARP),
        R.UNKNOWN_HOST,
    ),
    "plain ARP claims a virtual address, in a group": (
        wire(f.arp(f.ADDRESS, f.OUTSIDE), f.ARP, f.GROUP),
        R.UNKNOWN_HOST,
    ),
    "discovery by broadcast is plain ARP": (f.discovery(destination=f.BROADCAST), R.UNKNOWN_HOST),
    "ARP with another magic": (f.discovery(magic=0xD17F), R.UNKNOWN_HOST),
    "discovery too short": (f.discovery(length=137), R.DISCOVERY_MALFORMED),
    "discovery too long": (f.discovery(length=1163), R.DISCOVERY_MALFORMED),
}

DISCOVERY = {
    "shortest": f.discovery(),
    "longest": f.discovery(length=1162),
    "from a known peer": f.discovery(source=f.PEER),
    "to a joined group": f.discovery(destination=f.GROUP),
    "by its own EtherType": f.discovery(ethertype=f.DISCOVERY),
}

UNTOUCHED = {
    "unicast to another": wire(VIRTUAL, destination=f.OTHER_MAC),
    "the host's own traffic": wire(f.ipv4(source=f.OUTSIDE, destination=bytes((192, 0, 2, 1)))),
    "the host's broadcasts": wire(f.ipv4(source=f.OUTSIDE, destination=f.LIMITED_BROADCAST), destination=f.BROADCAST),
    "the host's multicast": wire(f.ipv4(source=f.OUTSIDE, destination=f.MULTICAST), destination=f.MDNS_GROUP),
    "the host's DHCP": wire(f.dhcp(f.OUTSIDE, f.LIMITED_BROADCAST, 67, 68), destination=f.BROADCAST),
    "the host's malformed IPv4": wire(f.ipv4(source=f.OUTSIDE, destination=f.OUTSIDE, checksum_error=1)),
    "IPv6": wire(b"\x60" + bytes(39), f.IPV6),
    "LLDP": wire(bytes(46), 0x88CC, bytes.fromhex("0180c200000e")),
    "the host's VLANs": f.tag(wire(f.ipv4(source=f.OUTSIDE, destination=f.OUTSIDE)), 7),
    "the host's VLANs in VLANs": f.tag(
        f.tag(f.tag(f.tag(wire(f.ipv4(source=f.OUTSIDE, destination=f.OUTSIDE)), 7), 8), 9), 10, f.QINQ
    ),
    "the host's ARP": wire(f.arp(f.OUTSIDE, bytes((192, 0, 2, 1)), sha=STRANGER), f.ARP, f.BROADCAST),
    "ARP cut short": wire(f.arp()[:27], f.ARP, f.BROADCAST),
    "RARP": wire(f.arp(op=3), f.RARP, f.BROADCAST),
    "discovery for another": f.discovery(destination=f.OTHER_MAC),
    "the experimental EtherType of somebody else": f.discovery(ethertype=f.DISCOVERY, magic=0x1234),
}


def test_a_packet_that_is_to_be_cut_bears_its_source_mac_where_segments_inherit_it(bench: Bench) -> None:
    segments = f.ethernet(
        f.ipv4(protocol=6, payload=bytes(12) + b"\x50" + bytes(2007)), destination=f.PMAC, source=f.PEER
    )
    ran = bench.programs.test_run(FROM_WIRE, segments, bench.uplink, gso_size=500, gso_segs=4)
    assert (ran.verdict, ran.mark) == (PASS, int.from_bytes(f.PEER[:2], "big") << 16 | 0x4D1)


@pytest.mark.parametrize("frame", DIVERTED.values(), ids=DIVERTED)
def test_virtual_packet_is_marked_for_the_agent_and_not_changed(bench: Bench, frame: bytes) -> None:
    bench.wire_diverted(frame)


@pytest.mark.parametrize(("frame", "reason"), DROPPED.values(), ids=DROPPED)
def test_bad_frame_is_dropped_with_its_reason(bench: Bench, frame: bytes, reason: R) -> None:
    bench.wire_dropped(frame, reason)


@pytest.mark.parametrize("frame", DISCOVERY.values(), ids=DISCOVERY)
def test_discovery_is_redirected_as_it_is(bench: Bench, frame: bytes) -> None:
    bench.wire_redirected(frame)


@pytest.mark.parametrize("frame", UNTOUCHED.values(), ids=UNTOUCHED)
def test_what_is_not_ours_reaches_the_host_untouched(bench: Bench, frame: bytes) -> None:
    bench.assert_untouched(frame)


def test_group_is_heard_while_it_is_joined(bench: Bench) -> None:
    frame = f.discovery(destination=f.FOREIGN_GROUP)
    bench.programs.set_groups({f.GROUP, f.FOREIGN_GROUP})
    bench.wire_redirected(frame)
    bench.programs.set_groups({f.GROUP})
    bench.wire_dropped(frame, R.NOT_JOINED)
