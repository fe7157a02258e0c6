"""What the wire may bring a guest: source check, claims elsewhere, and every drop from_wire by its reason."""

import pytest
from pipeline_hosts import (
    APP,
    BACK,
    DB,
    FAR,
    HOST_A,
    HOST_B,
    HOST_C,
    LAN,
    LOG,
    MOLE,
    NOBODY,
    OUTSIDE,
    PLAN,
    RMAC,
    ROUTER,
    SPY,
    STRANGER,
    WEB,
    Net,
    frame_of,
    in_port,
    ipv4,
    udp,
)

from divhook.core.addressing import ALL_HOSTS_GROUP, SubnetId, group_mac, parse_mac
from divhook.core.discovery import Limits, UnknownHost
from divhook.core.endpoint import PortState
from divhook.core.outputs import Drop
from divhook.core.reasons import DropReason as R
from divhook.core.wire.arp import Arp
from divhook.core.wire.discovery import Message, MessageType

GROUP = group_mac(LAN)
VALID = ipv4(FAR.address, WEB.address)


@pytest.fixture
def net() -> Net:
    """B has spoken, so it is a peer; A knows none of its guests."""
    return Net()


@pytest.fixture
def known(net: Net) -> Net:
    """FAR and WEB know each other."""
    net.know(net.b, FAR, WEB.address)
    net.log.clear()
    return net


def wire(packet: bytes, source: bytes = HOST_B, destination: bytes = HOST_A) -> bytes:
    return frame_of(destination, source, packet)


# --- delivered


def test_known_talker_of_the_same_subnet_arrives_with_its_vmac_and_its_ttl(known):
    for ttl in (1, 64):
        packet = ipv4(FAR.address, WEB.address, ttl=ttl)
        assert known.heard(known.a, wire(packet)) == [in_port(WEB, FAR.vmac, packet)]
    assert known.log == []


def test_known_talker_of_another_subnet_arrives_from_the_router_with_the_ttl_that_its_host_left(net):
    net.know(net.b, LOG, WEB.address)
    packet = ipv4(LOG.address, WEB.address, ttl=63)
    assert net.heard(net.a, wire(packet)) == [in_port(WEB, RMAC[LAN], packet)]


def test_fragments_and_options_arrive_as_they_are(known):
    for packet in (
        ipv4(FAR.address, WEB.address, more=True),
        ipv4(FAR.address, WEB.address, offset=1480),
        ipv4(FAR.address, WEB.address, options=b"\x94\x04\0\0"),
    ):
        assert known.heard(known.a, wire(packet)) == [in_port(WEB, FAR.vmac, packet)]


def test_stale_talker_is_delivered_and_asked(known):
    known.run(61)
    known.log.clear()
    assert known.heard(known.a, wire(VALID)) == [in_port(WEB, FAR.vmac, VALID)]
    assert [(m.type, m.source, m.destination) for m in known.log] == [
        (MessageType.PROBE, HOST_A, HOST_B),
        (MessageType.REPLY, HOST_B, HOST_A),
    ]


# --- the source check


def test_talker_that_is_not_known_yet_is_held_asked_at_its_host_and_delivered_in_order(net):
    packets = [ipv4(FAR.address, WEB.address, identification=n) for n in range(3)]
    for packet in packets:
        assert net.a.pipeline.from_wire(wire(packet), net.now) == []
    net.settle()
    assert net.a.take() == [in_port(WEB, FAR.vmac, packet) for packet in packets]
    assert [(m.type, m.source, m.destination, m.tpa) for m in net.log] == [
        (MessageType.PROBE, HOST_A, HOST_B, FAR.address),
        (MessageType.REPLY, HOST_B, HOST_A, FAR.address),
    ]


def test_address_that_its_sender_does_not_hold_is_never_delivered(net):
    packet = ipv4(NOBODY, WEB.address)
    assert net.a.pipeline.from_wire(wire(packet), net.now) == []
    net.settle()
    assert net.a.take() == [Drop(R.UNVERIFIED, 0, packet)]


def test_sender_that_is_silent_is_never_delivered(net):
    net.cut = {HOST_B}
    assert net.heard(net.a, wire(VALID)) == []
    net.run(0.61)
    assert net.a.take() == [Drop(R.UNVERIFIED, 0, VALID)]


def test_peer_that_sends_with_the_address_of_anothers_guest_is_refused_and_the_entry_stays(known):
    known.c.discovery.activate(PLAN.address(LAN, 200), parse_mac("52:54:00:c2:00:77"), 99, 0, None, known.now)
    known.run(1)
    assert known.a.pipeline.from_wire(wire(VALID, HOST_C), known.now) == []
    known.settle()
    assert known.a.take() == [Drop(R.SPOOF_SOURCE, 0, VALID)]
    assert known.heard(known.a, wire(VALID)) == [in_port(WEB, FAR.vmac, VALID)]


def test_stranger_is_dropped_and_may_be_challenged_once_a_second(net):
    assert net.heard(net.a, wire(VALID, STRANGER)) == [Drop(R.UNKNOWN_HOST, 0, VALID)]
    assert net.heard(net.a, wire(VALID, STRANGER)) == [Drop(R.UNKNOWN_HOST, 0, VALID)]
    assert net.a.events == [UnknownHost(STRANGER)]


def test_our_own_pmac_from_the_wire_is_dropped_and_we_do_not_challenge_ourselves(net):
    assert net.heard(net.a, wire(VALID, HOST_A)) == [Drop(R.UNKNOWN_HOST, 0, VALID)]
    assert (net.a.events, net.log) == ([], [])


@pytest.mark.parametrize("state", [PortState.ACTIVE, PortState.FENCED, PortState.TENTATIVE])
def test_address_of_a_guest_of_this_host_never_comes_from_the_wire(net, state):
    net.a.put(APP, state)
    packet = ipv4(APP.address, WEB.address)
    for host in (HOST_B, STRANGER):
        assert net.heard(net.a, wire(packet, host)) == [Drop(R.SPOOF_LOCAL, 0, packet)]
    assert net.log == []


@pytest.mark.parametrize(
    ("source", "reason"), [(APP.address, R.SPOOF_LOCAL), (FAR.address, R.FRAGMENTATION_NEEDED)], ids=["forged", "true"]
)
def test_packet_too_long_for_its_subnet_is_told_by_its_source_first(known, source, reason):
    packet = ipv4(source, WEB.address, bytes(1481))
    assert known.heard(known.a, wire(packet)) == [Drop(reason, 0, packet)]


@pytest.mark.parametrize(
    "source", [ROUTER[LAN], ROUTER[BACK], PLAN.address(LAN, 0), PLAN.broadcast(LAN)], ids=lambda a: a.hex()
)
def test_address_that_no_endpoint_can_hold_is_no_source(net, source):
    packet = ipv4(source, WEB.address)
    assert net.heard(net.a, wire(packet)) == [Drop(R.SPOOF_SOURCE, 0, packet)]
    assert net.log == []


def test_packets_over_the_bounds_of_the_check_are_dropped():
    net = Net(Limits(hold_per_destination=1, source_checks=1, source_probes_per_s=1))
    second, other = ipv4(FAR.address, WEB.address, identification=2), ipv4(LOG.address, WEB.address)
    assert net.a.pipeline.from_wire(wire(VALID), net.now) == []
    assert net.a.pipeline.from_wire(wire(second), net.now) == [Drop(R.HOLD_QUEUE_FULL, 0, second)]
    assert net.a.pipeline.from_wire(wire(other), net.now) == [Drop(R.HOLD_TABLE_FULL, 0, other)]
    net.settle()
    assert net.a.take() == [in_port(WEB, FAR.vmac, VALID)]
    assert net.a.pipeline.from_wire(wire(other), net.now) == [Drop(R.UNVERIFIED, 0, other)]


def test_port_that_left_or_lost_its_state_while_the_source_was_asked_gets_nothing(net):
    to_app = ipv4(FAR.address, APP.address)
    for packet in (VALID, to_app):
        assert net.a.pipeline.from_wire(wire(packet), net.now) == []
    net.a.ports.remove(WEB.port)
    net.a.put(APP, PortState.FENCED)
    net.settle()
    assert net.a.take() == [Drop(R.NOT_LOCAL, 0, VALID), Drop(R.PORT_NOT_ACTIVE, 0, to_app)]


def test_packet_whose_source_was_confirmed_but_starts_here_before_delivery_is_not_delivered(net):
    assert net.a.pipeline.from_wire(wire(VALID), net.now) == []
    for message in net.a.discovery.messages_to_send():
        net.b.discovery.receive(message, net.now)
    for message in net.b.discovery.messages_to_send():
        net.a.discovery.receive(message, net.now)
    net.a.discovery.activate(FAR.address, FAR.vmac, FAR.port, 0, None, net.now)
    assert net.a.pipeline.collect(net.now) == [Drop(R.UNVERIFIED, 0, VALID)]


def test_packet_whose_source_was_confirmed_but_is_anothers_before_delivery_is_not_delivered(net):
    assert net.a.pipeline.from_wire(wire(VALID), net.now) == []
    for message in net.a.discovery.messages_to_send():
        net.b.discovery.receive(message, net.now)
    for message in net.b.discovery.messages_to_send():
        net.a.discovery.receive(message, net.now)
    net.c.discovery.activate(FAR.address, FAR.vmac, FAR.port, 0, None, net.now + 1)
    for message in net.c.discovery.messages_to_send():
        net.a.discovery.receive(message, net.now)
    assert net.a.pipeline.collect(net.now) == [Drop(R.UNVERIFIED, 0, VALID)]


# --- not here


def test_peer_that_sends_for_a_guest_that_is_gone_is_told_so(known):
    known.a.ports.remove(WEB.port)
    known.a.discovery.withdraw(WEB.address, known.now, gone=False)
    assert known.a.pipeline.from_wire(wire(VALID), known.now) == [Drop(R.NOT_LOCAL, 0, VALID)]
    (message,) = known.a.discovery.messages_to_send()
    assert (message.type, message.destination, message.tpa) == (MessageType.GONE, HOST_B, WEB.address)


def test_peer_that_sends_for_a_guest_that_moved_is_told_where(known):
    known.a.ports.remove(WEB.port)
    known.a.discovery.withdraw(WEB.address, known.now, gone=False)
    known.now += 1
    known.cut = {HOST_B}
    known.c.discovery.activate(WEB.address, WEB.vmac, WEB.port, 0, None, known.now)
    known.know(known.a, DB, WEB.address)
    known.cut = set()
    known.log.clear()
    assert known.heard(known.a, wire(VALID)) == [Drop(R.NOT_LOCAL, 0, VALID)]
    (told, *_) = known.log
    assert (told.type, told.destination, told.claim.host) == (MessageType.MOVED, HOST_B, HOST_C)


def test_peer_that_sends_for_a_fenced_guest_is_referred_to_the_owner(known):
    known.now += 1
    known.cut = {HOST_B}
    owner = known.c.discovery.activate(WEB.address, WEB.vmac, WEB.port, 0, None, known.now)
    known.run(1)
    assert known.a.discovery.state(WEB.address).name == "FENCED"
    known.a.put(WEB, PortState.FENCED)
    known.cut = set()
    assert known.a.pipeline.from_wire(wire(VALID), known.now) == [Drop(R.PORT_NOT_ACTIVE, 0, VALID)]
    (told,) = known.a.discovery.messages_to_send()
    assert told == Message(MessageType.MOVED, HOST_A, HOST_B, bytes(4), WEB.address, owner)


def test_stranger_is_told_nothing(net):
    packet = ipv4(FAR.address, NOBODY)
    assert net.heard(net.a, wire(packet, STRANGER)) == [Drop(R.NOT_LOCAL, 0, packet)]
    assert net.log == []


# --- policy and ports


def test_other_cell_is_dropped_before_anything_is_asked(net):
    for packet in (ipv4(MOLE.address, WEB.address), ipv4(FAR.address, SPY.address)):
        assert net.heard(net.a, wire(packet)) == [Drop(R.CELL_DENIED, 0, packet)]
    assert net.log == []


@pytest.mark.parametrize("state", [PortState.TENTATIVE, PortState.INCOMING, PortState.FENCED])
def test_port_that_is_not_active_hears_nothing(known, state):
    known.a.put(WEB, state)
    assert known.heard(known.a, wire(VALID)) == [Drop(R.PORT_NOT_ACTIVE, 0, VALID)]


@pytest.mark.parametrize("ports", [(68, 67), (67, 68), (67, 67), (4011, 68), (5353, 67)])
def test_dhcp_never_comes_from_the_wire(known, ports):
    packet = udp(FAR.address, WEB.address, *ports)
    assert known.heard(known.a, wire(packet)) == [Drop(R.ROGUE_DHCP, 0, wire(packet))]
    assert known.a.pipeline.from_wire_ipv4(HOST_B, packet, False, known.now) == [Drop(R.ROGUE_DHCP, 0, packet)]


def test_external_talkers_have_no_way_in_yet(net):
    packet = ipv4(OUTSIDE, WEB.address)
    assert net.heard(net.a, wire(packet)) == [Drop(R.EXTERNAL_UNSUPPORTED, 0, packet)]


# --- frames

BAD_FRAMES = {
    "tagged": (frame_of(HOST_A, HOST_B, b"\0\0\x08\0" + VALID, 0x8100), R.VLAN_TAGGED),
    "tagged four times": (
        frame_of(HOST_A, HOST_B, b"\0\0\x88\xa8\0\0\x91\0\0\0\x81\0\0\0\x08\0" + VALID, 0x8100),
        R.VLAN_TAGGED,
    ),
    "tagged too often to tell": (frame_of(HOST_A, HOST_B, b"\0\0\x81\0" * 4 + b"\0\0\x08\0", 0x8100), R.VLAN_TAGGED),
    "tag cut off": (frame_of(HOST_A, HOST_B, b"\0", 0x8100), R.VLAN_TAGGED),
    "group source": (wire(VALID, GROUP), R.SOURCE_MAC_GROUP),
    "zero source": (wire(VALID, bytes(6)), R.SOURCE_MAC_GROUP),
    "checksum": (wire(VALID[:10] + b"\0\0" + VALID[12:]), R.IPV4_CHECKSUM),
    "cut short": (wire(VALID[:-1]), R.TRUNCATED),
    "unicast in a group": (wire(VALID, destination=GROUP), R.WIRE_GROUP_UNICAST),
    "unicast by broadcast": (wire(VALID, destination=b"\xff" * 6), R.L2_MULTICAST_MISMATCH),
    "group of a subnet that is not here": (
        wire(VALID, destination=group_mac(SubnetId(3, 200))),
        R.NOT_JOINED,
    ),
    "virtual source to the host": (wire(ipv4(FAR.address, OUTSIDE)), R.SPOOF_SOURCE),
    "plain ARP claims a virtual address": (
        frame_of(b"\xff" * 6, HOST_B, Arp(1, HOST_B, FAR.address, bytes(6), OUTSIDE).emit(), 0x0806),
        R.UNKNOWN_HOST,
    ),
    "plain ARP asks for a virtual address": (
        frame_of(HOST_A, HOST_B, Arp(1, HOST_B, OUTSIDE, bytes(6), FAR.address).emit(), 0x0806),
        R.UNKNOWN_HOST,
    ),
    "tagged ARP for a virtual address": (
        frame_of(b"\xff" * 6, HOST_B, b"\0\0\x08\x06" + Arp(1, HOST_B, OUTSIDE, bytes(6), FAR.address).emit(), 0x88A8),
        R.VLAN_TAGGED,
    ),
    "discovery too short": (
        frame_of(HOST_A, HOST_B, bytes(28) + b"\xd1\x7e" + bytes(93), 0x0806),
        R.DISCOVERY_MALFORMED,
    ),
    "discovery too long": (
        frame_of(HOST_A, HOST_B, bytes(28) + b"\xd1\x7e" + bytes(1119), 0x88B5),
        R.DISCOVERY_MALFORMED,
    ),
    "tagged discovery": (
        frame_of(HOST_A, HOST_B, b"\0\0\x08\x06" + bytes(28) + b"\xd1\x7e" + bytes(94), 0x8100),
        R.VLAN_TAGGED,
    ),
    "discovery from a group": (
        frame_of(HOST_A, GROUP, bytes(28) + b"\xd1\x7e" + bytes(94), 0x0806),
        R.SOURCE_MAC_GROUP,
    ),
}

HOSTS_OWN = {
    "no Ethernet header": wire(VALID)[:13],
    "to another": wire(VALID, destination=HOST_C),
    "the host's IPv4": wire(ipv4(OUTSIDE, bytes((192, 0, 2, 1)))),
    "the host's broken IPv4": wire(b"\x45" + bytes(30)),
    "no whole IPv4 header": wire(VALID[:19]),
    "the host's multicast": wire(ipv4(OUTSIDE, bytes((224, 0, 0, 251))), destination=b"\x01\0\x5e\0\0\xfb"),
    "the host's ARP": frame_of(
        b"\xff" * 6, HOST_B, Arp(1, HOST_B, OUTSIDE, bytes(6), bytes((192, 0, 2, 1))).emit(), 0x0806
    ),
    "ARP cut short": frame_of(HOST_A, HOST_B, bytes(27), 0x0806),
    "IPv6": frame_of(HOST_A, HOST_B, b"\x60" + bytes(39), 0x86DD),
    "the experimental EtherType of somebody else": frame_of(HOST_A, HOST_B, bytes(160), 0x88B5),
    "discovery": frame_of(HOST_A, HOST_B, bytes(28) + b"\xd1\x7e" + bytes(94), 0x0806),
    "discovery to all hosts": frame_of(ALL_HOSTS_GROUP, HOST_B, bytes(28) + b"\xd1\x7e" + bytes(94), 0x0806),
    "discovery by its own EtherType": frame_of(GROUP, HOST_B, bytes(28) + b"\xd1\x7e" + bytes(1118), 0x88B5),
}


@pytest.mark.parametrize(("frame", "reason"), BAD_FRAMES.values(), ids=BAD_FRAMES)
def test_bad_frame_is_dropped_with_its_reason(known, frame, reason):
    assert known.heard(known.a, frame) == [Drop(reason, 0, frame)]
    assert known.log == []


@pytest.mark.parametrize("frame", HOSTS_OWN.values(), ids=HOSTS_OWN)
def test_what_is_not_the_pipelines_gives_no_output(known, frame):
    assert known.heard(known.a, frame) == []
    assert known.log == []


def test_packet_entry_point_checks_again_what_tc_has_checked(known):
    for packet, group, reason in (
        (VALID[:19], False, R.TRUNCATED),
        (VALID, True, R.WIRE_GROUP_UNICAST),
        (ipv4(FAR.address, OUTSIDE), False, R.SPOOF_SOURCE),
        (ipv4(OUTSIDE, OUTSIDE), False, R.SPOOF_SOURCE),
    ):
        assert known.a.pipeline.from_wire_ipv4(HOST_B, packet, group, known.now) == [Drop(reason, 0, packet)]
