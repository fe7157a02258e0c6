"""Source NAT in the pipeline: what goes into the namespace that translates, and where what comes out of it goes."""

from dataclasses import replace

import pytest
from pipeline_hosts import DB, HOST_A, OUTSIDE, RMAC, ROUTER, WEB, Net
from test_pipeline_external import (
    FAR,
    GATE,
    HOP,
    LINK_MTU,
    OWN,
    PING,
    PINGED,
    SERVER,
    arp,
    drops,
    echo,
    guest_sends,
    ipv4,
    met,
    wire_sends,
)
from test_pipeline_external import net as _outside
from toy_policies import ToyPolicies

from divhook.core import validate
from divhook.core.addressing import Address, parse_address, parse_mac
from divhook.core.endpoint import PORT_WIRE, PortState
from divhook.core.external import ExternalConflict
from divhook.core.nat import Nat, Share
from divhook.core.outputs import Drop, Output, ToGuest, ToNat, ToWire
from divhook.core.reasons import DropReason
from divhook.core.wire import icmp
from divhook.core.wire.arp import ARP_REPLY, ARP_REQUEST, Arp, reply_frame, request_frame
from divhook.core.wire.ethernet import ETHERTYPE_ARP, Ethernet
from divhook.core.wire.icmp import IcmpEcho
from divhook.core.wire.ipv4 import Ipv4, Protocol, header_untrusted

outside = _outside
MINE, NOT_MINE = parse_address("192.0.2.160"), parse_address("192.0.2.161")
NAT_MAC = parse_mac("06:d1:d1:d1:d1:d2")
GUEST = replace(WEB, translated=True)
WEB_ADDRESS = WEB.address or b""


@pytest.fixture
def net(outside: Net) -> Net:
    """Host A with NAT for WEB, and none for DB."""
    outside.a.pipeline.border.nat = Nat(NAT_MAC, frozenset({MINE}))
    outside.a.ports.put(GUEST)
    return outside


def nat_sends(net: Net, packet: bytes) -> list[Output]:
    return net.a.pipeline.from_nat_ipv4(packet, net.now) + net.a.pipeline.collect(net.now)


def reply(source: Address, destination: Address, size: int = 8, **fields: object) -> bytes:
    message = IcmpEcho(True, 1, 1, bytes(size)).emit()
    return Ipv4(source=source, destination=destination, protocol=Protocol.ICMP, payload=message, **fields).emit()  # type: ignore[arg-type]


@pytest.mark.parametrize(("target", "asked", "mac"), [(OUTSIDE, OUTSIDE, SERVER), (FAR, HOP, GATE)])
def test_a_guests_packet_goes_into_nat_as_it_is_and_translated_to_the_wire(
    net: Net, target: Address, asked: Address, mac: object
) -> None:
    packet = echo(WEB_ADDRESS, target)
    assert guest_sends(net, GUEST, packet) == [ToWire(request_frame(HOST_A, OWN, asked))]  # held meanwhile
    assert isinstance(mac, bytes)
    assert ToNat(ipv4(NAT_MAC, HOST_A, packet)) in arp(net, mac, asked, OWN)
    assert guest_sends(net, GUEST, packet) == [ToNat(ipv4(NAT_MAC, HOST_A, packet))]
    translated = echo(MINE, target, ttl=63)
    assert nat_sends(net, translated) == [ToWire(ipv4(mac, HOST_A, translated))]


def test_a_reply_goes_through_nat_to_its_guest(net: Net) -> None:
    met(net, HOP, GATE)
    guest_sends(net, GUEST, echo(WEB_ADDRESS, FAR))
    from_far = reply(FAR, MINE)
    assert wire_sends(net, GATE, from_far) == [ToNat(ipv4(NAT_MAC, HOST_A, from_far))]
    back = reply(FAR, WEB_ADDRESS, ttl=62)
    assert nat_sends(net, back) == [ToGuest(WEB.port, ipv4(WEB.vmac, RMAC[WEB.subnet], back))]


def test_what_nobody_has_asked_for_reaches_no_guest(net: Net) -> None:
    met(net, HOP, GATE)
    assert drops(nat_sends(net, reply(FAR, WEB_ADDRESS))) == [(PORT_WIRE, DropReason.FLOW_UNKNOWN)]
    assert drops(nat_sends(net, reply(FAR, parse_address("10.1.1.99")))) == [(PORT_WIRE, DropReason.NOT_LOCAL)]


def test_what_is_not_translated_never_leaves(net: Net) -> None:
    met(net, HOP, GATE)
    for source in (WEB_ADDRESS, NOT_MINE, OWN):
        assert drops(nat_sends(net, echo(source, FAR))) == [(PORT_WIRE, DropReason.NAT_UNTRANSLATED)]
    net.a.pipeline.border.nat = None
    assert drops(guest_sends(net, GUEST, echo(WEB_ADDRESS, FAR))) == [(WEB.port, DropReason.NAT_UNTRANSLATED)]


def test_a_packet_that_waits_while_nat_ends_is_dropped_with_reason(net: Net) -> None:
    guest_sends(net, GUEST, echo(WEB_ADDRESS, FAR))
    net.a.pipeline.border.nat = None
    assert (WEB.port, DropReason.NAT_UNTRANSLATED) in drops(arp(net, GATE, HOP, OWN))


def test_from_outside_a_guest_with_nat_is_reached_by_nat_alone(net: Net) -> None:
    met(net, HOP, GATE)
    met(net, OUTSIDE, SERVER)
    assert drops(wire_sends(net, GATE, echo(FAR, WEB_ADDRESS))) == [(PORT_WIRE, DropReason.NAT_UNTRANSLATED)]
    assert drops(arp(net, SERVER, OUTSIDE, WEB_ADDRESS, ARP_REQUEST)) == [(PORT_WIRE, DropReason.POLICY_DENIED)]
    border = net.a.pipeline.border
    border.announce(WEB_ADDRESS, net.now)
    assert border.externals.frames_to_send() == []


def test_a_cell_without_nat_is_not_translated(net: Net) -> None:
    met(net, HOP, GATE)
    out = guest_sends(net, DB, echo(DB.address or b"", FAR))
    assert [type(each) for each in out] == [ToWire]


def test_an_answer_to_nat_from_another_mac_is_a_spoof(net: Net) -> None:
    met(net, HOP, GATE)
    assert drops(wire_sends(net, SERVER, reply(FAR, MINE))) == [(PORT_WIRE, DropReason.EXTERNAL_SPOOF)]
    stranger = parse_address("203.0.113.7")
    assert drops(wire_sends(net, GATE, reply(stranger, MINE))) == [(PORT_WIRE, DropReason.EXTERNAL_UNSUPPORTED)]


def test_an_answer_of_an_unknown_server_waits_until_that_is_asked(net: Net) -> None:
    packet = reply(OUTSIDE, MINE)
    assert wire_sends(net, SERVER, packet) == [ToWire(request_frame(HOST_A, OWN, OUTSIDE))]
    assert ToNat(ipv4(NAT_MAC, HOST_A, packet)) in arp(net, SERVER, OUTSIDE, OWN)


def test_a_guest_with_a_source_of_nats_own_is_a_spoof(net: Net) -> None:
    assert drops(wire_sends(net, SERVER, echo(WEB_ADDRESS, MINE))) == [(PORT_WIRE, DropReason.SPOOF_SOURCE)]


def test_nobody_reaches_the_pool_itself(net: Net) -> None:
    for guest in (GUEST, DB):
        assert drops(guest_sends(net, guest, echo(guest.address or b"", MINE))) == [
            (guest.port, DropReason.HOST_SERVICE)
        ]


def test_arp_for_an_address_of_nat_is_answered_and_for_no_other(net: Net) -> None:
    stranger = parse_address("192.0.2.200")
    for asker in (OUTSIDE, stranger, bytes(4)):
        out = arp(net, SERVER, asker, MINE, ARP_REQUEST)
        assert out[0] == ToWire(reply_frame(HOST_A, MINE, SERVER, asker))
        assert drops(out) == [(PORT_WIRE, DropReason.CONSUMED)]
    assert not [each for each in arp(net, SERVER, OUTSIDE, NOT_MINE, ARP_REQUEST) if isinstance(each, ToWire)]
    forged = reply_frame(SERVER, OUTSIDE, GATE, MINE)
    asked = forged[:20] + b"\0\1" + forged[22:]
    out = net.a.pipeline.from_wire_arp(GATE + GATE + asked[12:], net.now)
    assert drops(out) == [(PORT_WIRE, DropReason.EXTERNAL_SPOOF)]


def test_the_first_router_is_the_guests_own(net: Net) -> None:
    met(net, HOP, GATE)
    packet = echo(WEB_ADDRESS, FAR, ttl=1)
    assert guest_sends(net, GUEST, packet)[0] == ToGuest(
        WEB.port,
        ipv4(WEB.vmac, RMAC[WEB.subnet], icmp.time_exceeded(packet, ROUTER[WEB.subnet], WEB_ADDRESS)),
    )


def test_a_packet_that_is_too_long_is_cut_before_nat_or_refused(net: Net) -> None:
    met(net, HOP, GATE)
    out = guest_sends(net, GUEST, echo(WEB_ADDRESS, FAR, LINK_MTU))
    assert [type(each) for each in out] == [ToNat, ToNat]
    assert all(len(each.frame) - 14 <= LINK_MTU for each in out if isinstance(each, ToNat))
    refused = guest_sends(net, GUEST, echo(WEB_ADDRESS, FAR, LINK_MTU, dont_fragment=True))
    assert [type(each) for each in refused] == [ToGuest, Drop]


def test_a_server_learns_the_mtu_of_a_guest_by_way_of_nat(net: Net) -> None:
    met(net, HOP, GATE)
    guest = replace(GUEST, mtu=1000)
    net.a.ports.put(guest)
    guest_sends(net, guest, echo(WEB_ADDRESS, FAR))
    packet = reply(FAR, WEB_ADDRESS, 1200, dont_fragment=True)
    out = nat_sends(net, packet)
    error = icmp.fragmentation_needed(packet, ROUTER[WEB.subnet], FAR, mtu=1000)
    assert out[0] == ToNat(ipv4(NAT_MAC, HOST_A, error))
    cut = nat_sends(net, reply(FAR, WEB_ADDRESS, 1200))
    assert [type(each) for each in cut] == [ToGuest, ToGuest]


def test_a_next_hop_that_is_silent_is_told_to_the_guest_before_nat(net: Net) -> None:
    guest_sends(net, GUEST, echo(WEB_ADDRESS, FAR))
    out: list[Output] = []
    for _ in range(11):
        net.now += 0.1
        net.a.pipeline.on_timer(net.now)
        out += net.a.pipeline.collect(net.now)
    assert [each for each in out if isinstance(each, ToGuest)]
    assert (PORT_WIRE, DropReason.EXTERNAL_UNREACHABLE) not in drops(out)
    assert drops(nat_sends(net, echo(MINE, FAR))) == [(PORT_WIRE, DropReason.EXTERNAL_UNREACHABLE)]


def test_a_translated_packet_waits_for_its_next_hop_and_goes_or_is_dropped(net: Net) -> None:
    packet = echo(MINE, FAR)
    assert nat_sends(net, packet) == [ToWire(request_frame(HOST_A, OWN, HOP))]
    assert ToWire(ipv4(GATE, HOST_A, packet)) in arp(net, GATE, HOP, OWN)
    assert drops(nat_sends(net, echo(MINE, parse_address("203.0.113.7")))) == [
        (PORT_WIRE, DropReason.EXTERNAL_UNSUPPORTED)
    ]
    nat_sends(net, echo(MINE, OUTSIDE))
    out: list[Output] = []
    for _ in range(20):
        net.now += 0.1
        net.a.pipeline.on_timer(net.now)
        out += net.a.pipeline.collect(net.now)
    assert (PORT_WIRE, DropReason.EXTERNAL_UNREACHABLE) in drops(out)


def test_the_policy_decides_of_the_guests_own_address(net: Net) -> None:
    met(net, HOP, GATE)
    policies = ToyPolicies()
    policies.police(WEB, PINGED)
    policies.police(DB, PING)
    net.a.pipeline.policies = policies
    assert drops(guest_sends(net, GUEST, echo(WEB_ADDRESS, FAR))) == [(WEB.port, DropReason.POLICY_DENIED)]


HOSTS = parse_address("192.0.2.10")


def to_host(protocol: int, payload: bytes, offset: int = 0) -> bytes:
    return Ipv4(source=FAR, destination=HOSTS, protocol=protocol, payload=payload, fragment_offset=offset).emit()


@pytest.mark.parametrize(
    ("packet", "share"),
    [
        (to_host(Protocol.TCP, b"\x01\xbb" + (61000).to_bytes(2, "big") + bytes(16)), Share.ALL),
        (to_host(Protocol.UDP, b"\x00\x35" + (65535).to_bytes(2, "big") + b"\x00\x08" + bytes(2)), Share.ALL),
        (to_host(Protocol.UDP, b"\x00\x35" + (60999).to_bytes(2, "big") + b"\x00\x08" + bytes(2)), Share.NONE),
        (to_host(Protocol.ICMP, bytes(8)), Share.COPY),
        (to_host(Protocol.ICMP, b"\x03\x04" + bytes(6)), Share.COPY),
        (to_host(Protocol.ICMP, b"\x08\x00" + bytes(6)), Share.NONE),
        (to_host(Protocol.UDP, bytes(8), offset=64), Share.COPY),
        (to_host(47, bytes(8), offset=64), Share.NONE),
    ],
)
def test_the_hosts_own_address_is_shared_by_ports(net: Net, packet: bytes, share: Share) -> None:
    met(net, HOP, GATE)
    net.a.pipeline.border.nat = nat = Nat(NAT_MAC, frozenset(), HOSTS)
    assert nat.share(header_untrusted(packet), packet) is share
    verdict = validate.from_wire(net.a.pipeline._wire_facts(), ipv4(HOST_A, GATE, packet))
    if share is Share.NONE:
        assert verdict is None
        assert drops(wire_sends(net, GATE, packet)) == [(PORT_WIRE, DropReason.SPOOF_SOURCE)]  # never comes so far
        return
    assert isinstance(verdict, validate.Divert)
    assert verdict.copied is (share is Share.COPY)
    assert wire_sends(net, GATE, packet) == [ToNat(ipv4(NAT_MAC, HOST_A, packet))]


def test_what_is_wrong_with_a_frame_to_the_hosts_own_address_is_the_hosts_to_see(net: Net) -> None:
    net.a.pipeline.border.nat = Nat(NAT_MAC, frozenset({MINE}), HOSTS)
    facts = net.a.pipeline._wire_facts()
    good = to_host(Protocol.TCP, b"\x01\xbb" + (61000).to_bytes(2, "big") + bytes(16))
    broken = good[:10] + b"\0\0" + good[12:]
    assert validate.from_wire(facts, ipv4(HOST_A, GATE, broken)) is None
    assert validate.from_wire(facts, ipv4(HOST_A, b"\x01" + GATE[1:], good)) is None
    to_pool = echo(FAR, MINE)
    broken = to_pool[:10] + b"\0\0" + to_pool[12:]
    assert validate.from_wire(facts, ipv4(HOST_A, GATE, broken)) is DropReason.IPV4_CHECKSUM
    stranger = echo(parse_address("203.0.113.7"), MINE)
    assert validate.from_wire(facts, ipv4(HOST_A, GATE, stranger)) is DropReason.EXTERNAL_UNSUPPORTED
    assert validate.from_wire(facts, ipv4(HOST_A, GATE, echo(FAR, NOT_MINE))) is None


def test_the_pool_is_announced_and_defended(net: Net) -> None:
    border = net.a.pipeline.border
    border.nat = Nat(NAT_MAC, frozenset({MINE}))
    border.announce_pool(net.now)
    mine = request_frame(HOST_A, MINE, MINE)
    assert net.a.pipeline.collect(net.now) == [ToWire(mine)]
    for _ in range(3):
        net.now += 0.2
        net.a.pipeline.on_timer(net.now)
    assert net.a.pipeline.collect(net.now) == [ToWire(mine)] * 2
    out = arp(net, SERVER, MINE, OWN)
    assert ToWire(mine) in out
    assert drops(out) == [(PORT_WIRE, DropReason.EXTERNAL_CONFLICT)]
    assert border.pending_events == [ExternalConflict(MINE, HOST_A, SERVER)]
    for operation in (ARP_REPLY, ARP_REQUEST):  # also one that announces itself
        out = arp(net, SERVER, MINE, MINE, operation)
        assert [type(each) for each in out] == [Drop]
        assert drops(out) == [(PORT_WIRE, DropReason.EXTERNAL_CONFLICT)]
    assert len(border.pending_events) == 1
    forged = Arp(ARP_REPLY, GATE, MINE, HOST_A, OWN).emit()
    out = net.a.pipeline.from_wire_arp(Ethernet(HOST_A, SERVER, ETHERTYPE_ARP, forged).emit(), net.now)
    assert drops(out) == [(PORT_WIRE, DropReason.EXTERNAL_SPOOF)]


def test_a_pool_on_link_is_defended_whatever_prefixes_are_declared(net: Net) -> None:
    border, beyond = net.a.pipeline.border, parse_address("198.51.100.77")
    border.nat = Nat(NAT_MAC, frozenset({beyond}))
    border.announce_pool(net.now)
    announced = request_frame(HOST_A, beyond, beyond)
    assert net.a.pipeline.collect(net.now) == [ToWire(announced)]
    rival = request_frame(SERVER, beyond, beyond)
    assert validate.from_wire(net.a.pipeline._wire_facts(), rival) == validate.Divert(
        validate.Lane.DISCOVERY, group=True, copied=True
    )
    assert drops(arp(net, SERVER, beyond, beyond)) == [(PORT_WIRE, DropReason.EXTERNAL_CONFLICT)]
    assert border.pending_events == [ExternalConflict(beyond, HOST_A, SERVER)]


def test_an_answer_that_waits_while_nat_ends_is_for_nobody(net: Net) -> None:
    wire_sends(net, SERVER, reply(OUTSIDE, MINE))
    net.a.pipeline.border.nat = Nat(NAT_MAC, frozenset({NOT_MINE}))
    assert (PORT_WIRE, DropReason.NOT_LOCAL) in drops(arp(net, SERVER, OUTSIDE, OWN))


def test_a_reply_for_a_guest_that_is_not_active_is_dropped_with_reason(net: Net) -> None:
    met(net, HOP, GATE)
    guest_sends(net, GUEST, echo(WEB_ADDRESS, FAR))
    net.a.ports.put(GUEST.with_state(PortState.FENCED))
    assert drops(nat_sends(net, reply(FAR, WEB_ADDRESS))) == [(PORT_WIRE, DropReason.PORT_NOT_ACTIVE)]
    assert drops(nat_sends(net, reply(FAR, WEB_ADDRESS)[:12])) == [(PORT_WIRE, DropReason.TRUNCATED)]
