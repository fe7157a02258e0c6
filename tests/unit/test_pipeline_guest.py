"""What a guest may not send, its port's states, and DHCP: every drop from_guest by its reason."""

from dataclasses import replace

import pytest
from pipeline_hosts import (
    APP,
    BACK,
    DB,
    FAR,
    FOREIGN,
    LAN,
    MOLE,
    NOBODY,
    OUTSIDE,
    PLAN,
    RMAC,
    ROUTER,
    SPY,
    WEB,
    Net,
    arp_from,
    frame_of,
    from_guest,
    in_port,
    ipv4,
    ping,
    udp,
)

from divhook.core.addressing import SubnetId, parse_address
from divhook.core.dhcp import DhcpServer, LeaseChange
from divhook.core.endpoint import PortState
from divhook.core.outputs import Drop
from divhook.core.reasons import DropReason as R
from divhook.core.wire.arp import Arp
from divhook.core.wire.icmp import net_unreachable
from divhook.core.wire.ipv4 import Protocol
from divhook.core.wire.udp import Udp

VALID = ipv4(WEB.address, APP.address)
LIMITED, NONE = b"\xff" * 4, bytes(4)
ALL_STATES = [PortState.TENTATIVE, PortState.INCOMING, PortState.FENCED]
GROUP = b"\x01\x00\x5e\x00\x00\xfb"
DISCOVER = (
    b"\x01\x01\x06\x00\x3c\x4d\x5e\x6f"
    + bytes(20)
    + WEB.vmac
    + bytes(202)
    + bytes.fromhex("6382536335 01 01 ff")
    + bytes(56)
)


@pytest.fixture
def net() -> Net:
    return Net()


def rarp(sha: bytes = WEB.vmac, tha: bytes = WEB.vmac, operation: int = 3) -> bytes:
    return frame_of(b"\xff" * 6, WEB.vmac, Arp(operation, sha, NONE, tha, NONE).emit(), 0x8035)


def dhcp(source: bytes = NONE, destination: bytes = LIMITED, sport: int = 68, dport: int = 67) -> bytes:
    datagram = Udp(sport, dport, DISCOVER).emit(source, destination)
    return ipv4(source, destination, datagram, protocol=Protocol.UDP)


def patched(packet: bytes, at: int, value: bytes) -> bytes:
    """The packet with other bytes at an offset, its header checksum not made true again."""
    return packet[:at] + value + packet[at + len(value) :]


FRAMES = {
    "no Ethernet header": (from_guest(WEB, VALID)[:13], R.TRUNCATED),
    "empty": (b"", R.TRUNCATED),
    "no IPv4 header": (from_guest(WEB, VALID)[:33], R.TRUNCATED),
    "cut short": (from_guest(WEB, VALID)[:-1], R.TRUNCATED),
    "priority tag": (frame_of(APP.vmac, WEB.vmac, b"\x00\x00\x08\x00" + VALID, 0x8100), R.VLAN_TAGGED),
    "LLDP": (frame_of(APP.vmac, WEB.vmac, bytes(46), 0x88CC), R.ETHERTYPE),
    "discovery's EtherType": (frame_of(APP.vmac, WEB.vmac, bytes(160), 0x88B5), R.ETHERTYPE),
    "IPv6": (frame_of(APP.vmac, WEB.vmac, b"\x60" + bytes(39), 0x86DD), R.IPV6_UNSUPPORTED),
    "group source": (frame_of(APP.vmac, b"\x53" + WEB.vmac[1:], VALID), R.SOURCE_MAC_GROUP),
    "zero source": (frame_of(APP.vmac, bytes(6), VALID), R.SOURCE_MAC_GROUP),
    "another's MAC": (frame_of(APP.vmac, APP.vmac, VALID), R.SPOOF_MAC),
    "router's MAC": (frame_of(APP.vmac, RMAC[LAN], VALID), R.SPOOF_MAC),
    "version": (from_guest(WEB, b"\x65" + VALID[1:]), R.IPV4_VERSION),
    "IHL": (from_guest(WEB, b"\x44" + VALID[1:]), R.IPV4_HEADER_LENGTH),
    "IHL beyond the frame": (from_guest(WEB, b"\x4f" + VALID[1:44]), R.TRUNCATED),
    "total length": (from_guest(WEB, patched(VALID, 2, b"\0\x13")), R.IPV4_TOTAL_LENGTH),
    "checksum": (from_guest(WEB, patched(VALID, 10, b"\0\0")), R.IPV4_CHECKSUM),
    "source route": (from_guest(WEB, ipv4(WEB.address, APP.address, options=b"\x83\x03\x04\x00")), R.IPV4_OPTION),
    "tiny fragment": (from_guest(WEB, ipv4(WEB.address, APP.address, bytes(16), more=True)), R.FRAGMENT_INVALID),
    "another's address": (from_guest(WEB, ipv4(APP.address, DB.address)), R.SPOOF_IPV4),
    "router's address": (from_guest(WEB, ipv4(ROUTER[LAN], APP.address)), R.SPOOF_IPV4),
    "no address, no DHCP": (from_guest(WEB, ipv4(NONE, APP.address)), R.SPOOF_IPV4),
    "no address, DHCP to a guest": (from_guest(WEB, dhcp(NONE, APP.address)), R.SPOOF_IPV4),
    "another's address, DHCP to a guest": (from_guest(WEB, dhcp(APP.address, APP.address)), R.SPOOF_IPV4),
    "offer": (from_guest(WEB, dhcp(WEB.address, APP.address, 67, 68)), R.ROGUE_DHCP),
    "offer from any port": (from_guest(WEB, dhcp(WEB.address, APP.address, 4011, 68)), R.ROGUE_DHCP),
    "relay": (from_guest(WEB, dhcp(WEB.address, APP.address, 67, 67)), R.ROGUE_DHCP),
    "no client's port": (from_guest(WEB, dhcp(WEB.address, APP.address, 1068, 67)), R.ROGUE_DHCP),
    "fragmented offer": (
        from_guest(WEB, ipv4(WEB.address, APP.address, b"\0\x43\0\x44" + bytes(20), protocol=17, more=True)),
        R.ROGUE_DHCP,
    ),
    "fragmented request": (
        from_guest(WEB, ipv4(WEB.address, APP.address, b"\0\x44\0\x43" + bytes(20), protocol=17, more=True)),
        R.ROGUE_DHCP,
    ),
    "ARP cut short": (arp_from(WEB, FAR.address)[:41], R.ARP_MALFORMED),
    "ARP with RARP's operation": (arp_from(WEB, FAR.address, operation=3), R.ARP_MALFORMED),
    "forged sha": (
        frame_of(b"\xff" * 6, WEB.vmac, Arp(1, APP.vmac, WEB.address, bytes(6), DB.address).emit(), 0x0806),
        R.SPOOF_ARP_SHA,
    ),
    "forged spa": (arp_from(WEB, FAR.address, APP.address), R.SPOOF_ARP_SPA),
    "router's spa": (arp_from(WEB, FAR.address, ROUTER[LAN], operation=2), R.SPOOF_ARP_SPA),
    "RARP": (rarp(), R.RARP_FROM_GUEST),
    "RARP for another": (rarp(tha=APP.vmac), R.ARP_MALFORMED),
    "RARP by another": (rarp(sha=APP.vmac), R.ARP_MALFORMED),
    "RARP with ARP's operation": (rarp(operation=1), R.ARP_MALFORMED),
}

PACKETS = {
    "limited broadcast in a unicast frame": (LIMITED, R.L2_MULTICAST_MISMATCH),
    "own subnet's broadcast in a unicast frame": (PLAN.broadcast(LAN), R.L2_MULTICAST_MISMATCH),
    "multicast in a unicast frame": (bytes((224, 0, 0, 251)), R.L2_MULTICAST_MISMATCH),
    "highest multicast in a unicast frame": (bytes((239, 255, 255, 255)), R.L2_MULTICAST_MISMATCH),
    "class E": (bytes((240, 0, 0, 1)), R.MARTIAN_DESTINATION),
    "loopback": (bytes((127, 0, 0, 1)), R.MARTIAN_DESTINATION),
    "this network": (bytes((0, 1, 2, 3)), R.MARTIAN_DESTINATION),
    "own address": (WEB.address, R.MARTIAN_DESTINATION),
    "own subnet's network address": (PLAN.address(LAN, 0), R.MARTIAN_DESTINATION),
    "other subnet's network address": (PLAN.address(BACK, 0), R.MARTIAN_DESTINATION),
    "other cell, same host": (SPY.address, R.CELL_DENIED),
    "other cell, other host": (MOLE.address, R.CELL_DENIED),
    "other cell's router": (ROUTER[FOREIGN], R.CELL_DENIED),
    "cell that is not there": (parse_address("10.77.1.2"), R.CELL_DENIED),
}


@pytest.mark.parametrize(("frame", "reason"), FRAMES.values(), ids=FRAMES)
def test_bad_frame_is_dropped_with_its_reason_and_nothing_is_asked(net, frame, reason):
    assert net.sent(net.a, WEB, frame) == [Drop(reason, WEB.port, frame)]
    assert net.log == []


@pytest.mark.parametrize(("destination", "reason"), PACKETS.values(), ids=PACKETS)
def test_packet_to_nowhere_it_may_go_is_dropped_in_silence(net, destination, reason):
    for packet in (
        ipv4(WEB.address, destination),
        udp(WEB.address, destination),
        ping(WEB.address, destination, ttl=1),
    ):
        assert net.sent(net.a, WEB, from_guest(WEB, packet)) == [Drop(reason, WEB.port, packet)]
    assert net.log == []


@pytest.mark.parametrize("target", [APP.address, FAR.address, DB.address, ROUTER[LAN], NOBODY, OUTSIDE])
def test_unicast_packet_in_a_group_frame_is_dropped_in_silence(net, target):
    packet = udp(WEB.address, target, ttl=1)
    for group in (GROUP, b"\xff" * 6):
        assert net.sent(net.a, WEB, from_guest(WEB, packet, group)) == [Drop(R.L2_MULTICAST_MISMATCH, WEB.port, packet)]
    assert net.log == []


@pytest.mark.parametrize(
    ("target", "reason"),
    [(OUTSIDE, R.EXTERNAL_UNSUPPORTED), (PLAN.address(SubnetId(3, 200), 5), R.NO_SUCH_ENDPOINT)],
    ids=["outside the plan", "subnet that is not there"],
)
def test_no_way_there_is_net_unreachable(net, target, reason):
    packet = ipv4(WEB.address, target)
    assert net.sent(net.a, WEB, from_guest(WEB, packet)) == [
        in_port(WEB, RMAC[LAN], net_unreachable(packet, ROUTER[LAN], WEB.address)),
        Drop(reason, WEB.port, packet),
    ]


def test_subnet_of_an_other_cell_and_of_no_cell_look_the_same(net):
    there, not_there = ipv4(WEB.address, SPY.address), ipv4(WEB.address, PLAN.address(SubnetId(5, 200), 61))
    assert [type(o) for o in net.sent(net.a, WEB, from_guest(WEB, there))] == [Drop]
    assert net.sent(net.a, WEB, from_guest(WEB, not_there)) == [Drop(R.CELL_DENIED, WEB.port, not_there)]


# --- ports


@pytest.mark.parametrize("packet", [VALID, b"", dhcp()])
def test_unknown_port_passes_nothing(net, packet):
    frame = from_guest(WEB, packet)
    assert net.a.pipeline.from_guest(99, frame, net.now) == [Drop(R.PORT_UNKNOWN, 99, frame)]
    assert net.a.pipeline.from_guest_ipv4(99, packet, False, net.now) == [Drop(R.PORT_UNKNOWN, 99, packet)]


def test_unknown_port_gets_no_arp(net):
    payload = arp_from(WEB, APP.address)[14:]
    assert net.a.pipeline.from_guest_arp(99, payload, net.now) == [Drop(R.PORT_UNKNOWN, 99, payload)]
    assert net.a.pipeline.from_guest_arp(99, b"short", net.now) == [Drop(R.ARP_MALFORMED, 99, b"short")]


@pytest.mark.parametrize("state", ALL_STATES)
def test_port_that_is_not_active_sends_no_data_and_hears_none_of_its_neighbours(net, state):
    net.a.put(WEB, state)
    for target in (APP, DB, FAR):
        packet = ipv4(WEB.address, target.address, ttl=1)
        (drop,) = net.sent(net.a, WEB, from_guest(WEB, packet))
        assert (drop.reason, drop.port) == (R.PORT_NOT_ACTIVE, WEB.port)
    (drop,) = net.sent(net.a, WEB, arp_from(WEB, APP.address))
    assert drop.reason is R.PORT_NOT_ACTIVE
    for sender in (APP, DB):
        packet = ipv4(sender.address, WEB.address)
        assert net.sent(net.a, sender, from_guest(sender, packet)) == [Drop(R.PORT_NOT_ACTIVE, sender.port, packet)]
    request = arp_from(APP, WEB.address)
    assert net.sent(net.a, APP, request) == [Drop(R.PORT_NOT_ACTIVE, APP.port, request[14:])]
    assert net.log == []


def test_fenced_port_hears_not_even_the_router(net):
    net.a.put(WEB, PortState.FENCED)
    for frame in (from_guest(WEB, ping(WEB.address, ROUTER[LAN])), rarp()):
        assert net.sent(net.a, WEB, frame) == [Drop(R.PORT_NOT_ACTIVE, WEB.port, frame)]


def test_fenced_port_reaches_the_dhcp_server_and_no_more(net):
    net.a.put(WEB, PortState.FENCED)
    assert net.sent(net.a, WEB, from_guest(WEB, dhcp())) == [Drop(R.PORT_NOT_ACTIVE, WEB.port, dhcp())]  # DISCOVER


def test_dhcp_request_with_an_address_from_before_reaches_the_server(net):
    packet = dhcp(APP.address, ROUTER[LAN])
    offer, drop = net.sent(net.a, WEB, from_guest(WEB, packet))
    assert (offer.port, drop) == (WEB.port, Drop(R.CONSUMED, WEB.port, packet))


def test_incoming_port_gets_no_dhcp(net):
    net.a.put(WEB, PortState.INCOMING)
    assert net.sent(net.a, WEB, from_guest(WEB, dhcp())) == [Drop(R.PORT_NOT_ACTIVE, WEB.port, dhcp())]


def test_port_without_address_passes_dhcp_alone(net):
    net.a.ports.put(replace(WEB, address=None))
    assert net.sent(net.a, WEB, from_guest(WEB, VALID)) == [Drop(R.SPOOF_IPV4, WEB.port, from_guest(WEB, VALID))]
    probe = arp_from(WEB, FAR.address, NONE)
    assert net.sent(net.a, WEB, probe) == [Drop(R.PORT_NOT_ACTIVE, WEB.port, probe[14:])]
    assert net.sent(net.a, WEB, from_guest(WEB, dhcp())) == [Drop(R.CONSUMED, WEB.port, dhcp())]


def test_packet_entry_point_checks_again_what_tc_has_checked(net):
    def drops(packet: bytes) -> list:
        return net.a.pipeline.from_guest_ipv4(WEB.port, packet, False, net.now)

    for packet, reason in (
        (VALID[:19], R.TRUNCATED),
        (ipv4(APP.address, DB.address), R.SPOOF_IPV4),
        (dhcp(WEB.address, APP.address, 4011, 68), R.ROGUE_DHCP),
    ):
        assert drops(packet) == [Drop(reason, WEB.port, packet)]
    payload = Arp(1, APP.vmac, WEB.address, bytes(6), DB.address).emit()
    assert net.a.pipeline.from_guest_arp(WEB.port, payload, net.now) == [Drop(R.SPOOF_ARP_SHA, WEB.port, payload)]
    payload = Arp(1, WEB.vmac, APP.address, bytes(6), DB.address).emit()
    assert net.a.pipeline.from_guest_arp(WEB.port, payload, net.now) == [Drop(R.SPOOF_ARP_SPA, WEB.port, payload)]


# --- DHCP, whose own tests are test_dhcp_server.py


def test_dhcp_is_answered_into_the_port_as_the_server_says(net):
    server = DhcpServer().handle(WEB, net.a.pipeline.topology[LAN].service, "web-1", dhcp(), net.now)
    net.a.pipeline.hostnames[WEB.port] = "web-1"
    (frame,) = server.frames
    out = net.sent(net.a, WEB, from_guest(WEB, dhcp(), b"\xff" * 6))
    assert [(type(o).__name__, o.port, o.frame) for o in out] == [
        ("ToGuest", WEB.port, frame),
        ("Drop", WEB.port, dhcp()),
    ]
    assert out[1].reason is R.CONSUMED


def test_dhcp_of_a_tentative_port_waits_for_the_address_to_be_confirmed(net):
    net.a.put(WEB, PortState.TENTATIVE)
    assert net.sent(net.a, WEB, from_guest(WEB, dhcp())) == [Drop(R.CONSUMED, WEB.port, dhcp())]
    net.a.put(WEB, PortState.ACTIVE)
    (offer,) = net.a.pipeline.confirm(WEB.port, net.now)
    assert (offer.port, offer.frame[:6], offer.frame[6:12]) == (WEB.port, WEB.vmac, RMAC[LAN])
    assert offer.frame[26:30] == ROUTER[LAN]
    assert net.a.pipeline.confirm(WEB.port, net.now) == []


def test_confirmation_of_a_port_that_is_gone_or_of_no_subnet_says_nothing(net):
    net.a.put(WEB, PortState.TENTATIVE)
    net.sent(net.a, WEB, from_guest(WEB, dhcp()))
    assert net.a.pipeline.confirm(99, net.now) == []
    del net.a.pipeline.topology[LAN]
    assert net.a.pipeline.confirm(WEB.port, net.now) == []


def test_forgotten_port_leaves_no_waiting_dhcp_no_hostname_and_no_used_up_limit(net):
    net.a.put(WEB, PortState.TENTATIVE)
    net.a.pipeline.hostnames[WEB.port] = "web-1"
    net.sent(net.a, WEB, from_guest(WEB, dhcp()))
    net.a.pipeline.forget_port(WEB.port)
    net.a.put(WEB, PortState.ACTIVE)
    assert net.a.pipeline.confirm(WEB.port, net.now) == []
    assert net.a.pipeline.hostnames == {}


def test_dhcp_in_a_subnet_that_is_not_configured_is_dropped(net):
    del net.a.pipeline.topology[LAN]
    assert net.sent(net.a, WEB, from_guest(WEB, dhcp())) == [Drop(R.PORT_NOT_ACTIVE, WEB.port, dhcp())]


def test_dhcp_with_another_chaddr_and_malformed_dhcp_have_their_reasons(net):
    theirs = dhcp().replace(WEB.vmac, APP.vmac)
    packet = ipv4(NONE, LIMITED, b"\0\x44\0\x43" + theirs[24:26] + b"\0\0" + theirs[28:], protocol=17)
    assert net.sent(net.a, WEB, from_guest(WEB, packet)) == [Drop(R.SPOOF_MAC, WEB.port, packet)]
    short = ipv4(NONE, LIMITED, b"\0\x44\0\x43\0\x10\0\0" + bytes(8), protocol=17)
    assert net.sent(net.a, WEB, from_guest(WEB, short)) == [Drop(R.DHCP_MALFORMED, WEB.port, short)]
    no_udp = ipv4(NONE, LIMITED, b"\0\x44\0\x43", protocol=17)
    assert net.sent(net.a, WEB, from_guest(WEB, no_udp)) == [Drop(R.UDP_MALFORMED, WEB.port, no_udp)]


def test_lease_events_are_handed_to_the_shell(net):
    request = DISCOVER[:236] + b"\x63\x82\x53\x63\x35\x01\x03\x32\x04" + WEB.address + b"\xff" + bytes(50)
    packet = ipv4(
        NONE, LIMITED, b"\0\x44\0\x43" + (8 + len(request)).to_bytes(2, "big") + b"\0\0" + request, protocol=17
    )
    out = net.sent(net.a, WEB, from_guest(WEB, packet))
    assert out[-1] == Drop(R.CONSUMED, WEB.port, packet)
    assert [(e, event.kind) for e, event in net.a.pipeline.lease_events] == [(WEB, LeaseChange.BOUND)]
