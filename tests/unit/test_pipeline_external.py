"""The pipeline between guests and what is outside: whole frames out and in, and what is refused."""

from ipaddress import IPv4Network

import pytest
from pipeline_hosts import DB, HOST_A, LAN, MTU, OUTSIDE, PLAN, RMAC, ROUTER, WEB, Net
from toy_policies import ToyPolicies

from divhook.core.addressing import BROADCAST_MAC, Address, Mac, parse_address, parse_mac
from divhook.core.border import Border
from divhook.core.endpoint import PORT_WIRE, Endpoint, PortState
from divhook.core.external import ExternalMap, Externals, NextHop, OnLink, OwnAddress, Route
from divhook.core.outputs import Drop, Output, ToGuest, ToWire
from divhook.core.reasons import DropReason
from divhook.core.verdict import Direction
from divhook.core.wire import icmp
from divhook.core.wire.arp import ARP_REPLY, ARP_REQUEST, Arp, reply_frame, request_frame
from divhook.core.wire.ethernet import ETHERTYPE_ARP, ETHERTYPE_IPV4, Ethernet
from divhook.core.wire.icmp import IcmpEcho
from divhook.core.wire.ipv4 import Ipv4, Protocol, decrement_ttl

LINK = IPv4Network("192.0.2.0/24")
OWN, HOP, FAR = (parse_address(text) for text in ("192.0.2.10", "192.0.2.1", "198.51.100.9"))
SERVER = parse_mac("06:5e:00:00:00:71")
GATE = parse_mac("06:5e:00:00:00:01")
PING = (Direction.EGRESS, Protocol.ICMP, icmp.TYPE_ECHO << 8)
PINGED = (Direction.INGRESS, Protocol.ICMP, icmp.TYPE_ECHO << 8)
LINK_MTU = 1450


@pytest.fixture
def net() -> Net:
    """Host A with a server and a router on link; WEB and DB may ping and be pinged, APP may not."""
    net = Net()
    pipeline = net.a.pipeline
    externals = ExternalMap(
        [OnLink(LINK, LINK_MTU)], [Route(IPv4Network("198.51.100.0/24"), (NextHop(HOP),), LINK_MTU)]
    )
    machine = Externals(HOST_A, externals, [OwnAddress(OWN, LINK)])
    pipeline.border = Border(PLAN, HOST_A, net.a.ports, pipeline.router, pipeline.guard, machine, pipeline._sender_gone)
    policies = ToyPolicies()
    policies.police(WEB, PING, PINGED)
    policies.police(DB, PING, PINGED)
    pipeline.policies = policies
    return net


def echo(source: Address, destination: Address, size: int = 8, **fields: object) -> bytes:
    message = IcmpEcho(False, 1, 1, bytes(size)).emit()
    return Ipv4(source=source, destination=destination, protocol=Protocol.ICMP, payload=message, **fields).emit()  # type: ignore[arg-type]


def guest_sends(net: Net, guest: Endpoint, packet: bytes) -> list[Output]:
    out = net.a.pipeline.from_guest_ipv4(guest.port, packet, False, net.now)
    return out + net.a.pipeline.collect(net.now)


def wire_sends(net: Net, mac: Mac, packet: bytes) -> list[Output]:
    out = net.a.pipeline.from_wire_ipv4(mac, packet, False, net.now)
    return out + net.a.pipeline.collect(net.now)


def arp(net: Net, mac: Mac, spa: Address, tpa: Address, operation: int = ARP_REPLY) -> list[Output]:
    payload = Arp(operation, mac, spa, HOST_A, tpa).emit()
    frame = Ethernet(HOST_A if operation == ARP_REPLY else BROADCAST_MAC, mac, ETHERTYPE_ARP, payload).emit()
    return net.a.pipeline.from_wire(frame, net.now) + net.a.pipeline.collect(net.now)


def met(net: Net, address: Address, mac: Mac) -> None:
    """The host has asked for an external, which has answered."""
    net.a.pipeline.border.externals.resolve(address, WEB.port, net.now, None)
    net.a.pipeline.collect(net.now)
    arp(net, mac, address, OWN)
    net.a.pipeline.collect(net.now)


def ipv4(destination: Mac, source: Mac, packet: bytes) -> bytes:
    return Ethernet(destination, source, ETHERTYPE_IPV4, packet).emit()


def drops(out: list[Output]) -> list[tuple[int, DropReason]]:
    return [(each.port, each.reason) for each in out if isinstance(each, Drop)]


@pytest.mark.parametrize(("target", "asked", "mac"), [(OUTSIDE, OUTSIDE, SERVER), (FAR, HOP, GATE)])
def test_a_guests_packet_waits_for_the_arp_answer_and_goes_out_from_the_pmac(
    net: Net, target: Address, asked: Address, mac: Mac
) -> None:
    packet = echo(WEB.address or b"", target)
    assert guest_sends(net, WEB, packet) == [ToWire(request_frame(HOST_A, OWN, asked))]
    out = arp(net, mac, asked, OWN)
    assert ToWire(ipv4(mac, HOST_A, decrement_ttl(packet))) in out
    assert guest_sends(net, WEB, packet) == [ToWire(ipv4(mac, HOST_A, decrement_ttl(packet)))]
    assert net.a.pipeline.border.decided[-1] == asked


@pytest.mark.parametrize(("source", "via", "mac"), [(OUTSIDE, OUTSIDE, SERVER), (FAR, HOP, GATE)])
def test_a_packet_from_outside_comes_from_the_router(net: Net, source: Address, via: Address, mac: Mac) -> None:
    met(net, via, mac)
    packet = echo(source, DB.address or b"")
    assert wire_sends(net, mac, packet) == [ToGuest(DB.port, ipv4(DB.vmac, RMAC[DB.subnet], decrement_ttl(packet)))]


def test_a_router_that_this_host_has_not_met_is_asked_and_its_packet_waits(net: Net) -> None:
    """A guest has come here from another host, and is sent to by a router that needs not ask where it is."""
    packet = echo(FAR, WEB.address or b"")
    assert wire_sends(net, GATE, packet) == [ToWire(request_frame(HOST_A, OWN, HOP))]
    forged = echo(FAR, WEB.address or b"", identification=2)
    assert wire_sends(net, SERVER, forged) == []  # may be it, for all that is known
    out = arp(net, GATE, HOP, OWN)
    assert ToGuest(WEB.port, ipv4(WEB.vmac, RMAC[WEB.subnet], decrement_ttl(packet))) in out
    assert (PORT_WIRE, DropReason.EXTERNAL_SPOOF) in drops(out)
    assert len([each for each in out if isinstance(each, ToGuest)]) == 1


def test_a_next_hop_that_stays_silent_has_sent_nothing(net: Net) -> None:
    packet = echo(FAR, WEB.address or b"")
    wire_sends(net, GATE, packet)
    out: list[Output] = []
    for _ in range(10):
        net.now += 0.1
        net.a.pipeline.on_timer(net.now)
        out += net.a.pipeline.collect(net.now)
    assert (PORT_WIRE, DropReason.EXTERNAL_SPOOF) in drops(out)
    assert not [each for each in out if isinstance(each, ToGuest)]


def test_without_a_policy_nothing_goes_out_or_in_and_no_arp_is_answered(net: Net) -> None:
    from pipeline_hosts import APP

    met(net, OUTSIDE, SERVER)
    assert drops(guest_sends(net, APP, echo(APP.address or b"", OUTSIDE))) == [(APP.port, DropReason.POLICY_DENIED)]
    assert drops(wire_sends(net, SERVER, echo(OUTSIDE, APP.address or b""))) == [(PORT_WIRE, DropReason.POLICY_DENIED)]
    assert arp(net, SERVER, OUTSIDE, APP.address or b"", ARP_REQUEST) == [
        Drop(DropReason.POLICY_DENIED, PORT_WIRE, request_frame(SERVER, OUTSIDE, APP.address or b"")[:22]
             + SERVER + OUTSIDE + HOST_A + (APP.address or b""))
    ]  # fmt: skip


def test_a_declared_server_is_told_the_pmac_of_a_guest_here(net: Net) -> None:
    out = arp(net, SERVER, OUTSIDE, WEB.address or b"", ARP_REQUEST)
    assert out[0] == ToWire(reply_frame(HOST_A, WEB.address or b"", SERVER, OUTSIDE))
    assert drops(out) == [(PORT_WIRE, DropReason.CONSUMED)]


@pytest.mark.parametrize(
    ("spa", "tpa", "operation"),
    [
        (WEB.address, OUTSIDE, ARP_REQUEST),  # claims a guest's address
        (WEB.address, OWN, ARP_REPLY),
        (OUTSIDE, WEB.address, ARP_REPLY),
        (parse_address("203.0.113.7"), WEB.address, ARP_REQUEST),  # not declared
        (FAR, WEB.address, ARP_REQUEST),  # behind a router
    ],
)
def test_other_arp_about_a_guest_is_dropped(net: Net, spa: Address, tpa: Address, operation: int) -> None:
    out = arp(net, SERVER, spa, tpa, operation)
    assert drops(out) == [(PORT_WIRE, DropReason.UNKNOWN_HOST)]
    assert len(out) == 1


@pytest.mark.parametrize("target", [ROUTER[LAN], PLAN.address(LAN, 41), PLAN.address(LAN, 200)])
def test_arp_for_who_is_no_guest_of_this_host_is_not_answered(net: Net, target: Address) -> None:
    out = arp(net, SERVER, OUTSIDE, target, ARP_REQUEST)
    assert drops(out) == [(PORT_WIRE, DropReason.CONSUMED)]
    assert not any(isinstance(each, ToWire) for each in out)


def test_what_is_refused_says_why(net: Net) -> None:
    web = WEB.address or b""
    met(net, OUTSIDE, SERVER)
    out = guest_sends(net, WEB, echo(web, parse_address("203.0.113.7")))
    assert drops(out) == [(WEB.port, DropReason.EXTERNAL_UNSUPPORTED)]  # and told: net unreachable
    assert isinstance(out[0], ToGuest)
    assert out[0].frame[34:36] == b"\x03\x00"
    assert drops(wire_sends(net, GATE, echo(OUTSIDE, web))) == [(PORT_WIRE, DropReason.EXTERNAL_SPOOF)]
    met(net, HOP, GATE)
    assert drops(wire_sends(net, SERVER, echo(FAR, web))) == [(PORT_WIRE, DropReason.EXTERNAL_SPOOF)]
    assert drops(wire_sends(net, SERVER, echo(parse_address("203.0.113.7"), web))) == [
        (PORT_WIRE, DropReason.EXTERNAL_UNSUPPORTED)
    ]
    assert drops(wire_sends(net, SERVER, echo(OUTSIDE, PLAN.address(LAN, 200)))) == [(PORT_WIRE, DropReason.NOT_LOCAL)]
    net.a.put(WEB, PortState.FENCED)
    assert drops(wire_sends(net, SERVER, echo(OUTSIDE, web))) == [(PORT_WIRE, DropReason.PORT_NOT_ACTIVE)]


def test_the_router_tells_either_side_of_ttl_and_mtu(net: Net) -> None:
    web, db = WEB.address or b"", DB.address or b""
    met(net, OUTSIDE, SERVER)
    [ttl, dropped] = guest_sends(net, WEB, echo(web, OUTSIDE, ttl=1))
    assert isinstance(ttl, ToGuest)
    assert drops([dropped]) == [(WEB.port, DropReason.TTL_EXPIRED)]
    assert ttl.frame[26:36] == ROUTER[LAN] + web + b"\x0b\x00"
    [big, dropped] = guest_sends(net, WEB, echo(web, OUTSIDE, 1460, dont_fragment=True))
    assert isinstance(big, ToGuest)
    assert drops([dropped]) == [(WEB.port, DropReason.FRAGMENTATION_NEEDED)]
    assert (big.frame[34:36], int.from_bytes(big.frame[40:42], "big")) == (b"\x03\x04", LINK_MTU)
    pieces = guest_sends(net, WEB, echo(web, OUTSIDE, 1460))
    assert [len(each.frame) - 14 <= LINK_MTU for each in pieces if isinstance(each, ToWire)] == [True, True]
    packet = echo(OUTSIDE, db, 1430, dont_fragment=True)
    error = icmp.fragmentation_needed(packet, ROUTER[DB.subnet], OUTSIDE, MTU[DB.subnet])
    lost = Drop(DropReason.FRAGMENTATION_NEEDED, PORT_WIRE, packet)
    assert wire_sends(net, SERVER, packet) == [ToWire(ipv4(SERVER, HOST_A, error)), lost]
    packet = echo(OUTSIDE, db, ttl=1)
    error = icmp.time_exceeded(packet, ROUTER[DB.subnet], OUTSIDE)
    lost = Drop(DropReason.TTL_EXPIRED, PORT_WIRE, packet)
    assert wire_sends(net, SERVER, packet) == [ToWire(ipv4(SERVER, HOST_A, error)), lost]
    assert len(wire_sends(net, SERVER, echo(OUTSIDE, db, 1430))) == 2


def test_a_silent_server_is_unreachable_and_says_so_at_once_afterwards(net: Net) -> None:
    packet = echo(WEB.address or b"", OUTSIDE)
    guest_sends(net, WEB, packet)
    out: list[Output] = []
    machine = net.a.pipeline.border.externals
    while (when := machine.next_timer()) is not None and when < net.now + 1.5:
        machine.on_timer(when)
        out += net.a.pipeline.collect(when)
    told = [each for each in out if isinstance(each, ToGuest)]
    assert [each.frame[34:36] for each in told] == [b"\x03\x01"]
    assert drops(out) == [(WEB.port, DropReason.EXTERNAL_UNREACHABLE)]
    net.now += 1.5
    [again, _] = guest_sends(net, WEB, packet)
    assert isinstance(again, ToGuest)


def test_a_guest_that_is_gone_again_is_announced_no_more(net: Net) -> None:
    address = WEB.address or b""
    announcement = ToWire(request_frame(HOST_A, address, address))
    net.a.pipeline.border.announce(address, net.now)
    assert net.a.pipeline.collect(net.now).count(announcement) == 1
    net.a.ports.remove(WEB.port)
    net.now += 1.0
    net.a.pipeline.on_timer(net.now)
    assert announcement not in net.a.pipeline.collect(net.now)


def test_a_guest_that_has_a_new_claim_here_is_announced_if_anybody_outside_may_reach_it(net: Net) -> None:
    from pipeline_hosts import APP

    for guest, count in ((WEB, 1), (APP, 0)):
        net.a.pipeline.border.announce(guest.address or b"", net.now)
        out = net.a.pipeline.collect(net.now)
        assert out.count(ToWire(request_frame(HOST_A, guest.address or b"", guest.address or b""))) == count
