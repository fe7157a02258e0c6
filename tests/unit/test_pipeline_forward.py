"""Where a guest's packets go: same host or not, same subnet or routed, known or to be found first."""

from dataclasses import replace

import pytest
from pipeline_hosts import (
    APP,
    BACK,
    DB,
    FAR,
    HOST_A,
    HOST_B,
    LAN,
    LOG,
    NOBODY,
    NOBODY_BACK,
    RMAC,
    ROUTER,
    WEB,
    Net,
    arp_from,
    from_guest,
    in_port,
    ipv4,
    on_wire,
    ping,
)

from divhook.core.addressing import SubnetId, parse_mac
from divhook.core.discovery import Limits
from divhook.core.endpoint import PortState
from divhook.core.outputs import Drop, ToGuest, ToWire
from divhook.core.reasons import DropReason
from divhook.core.wire.checksum import verifies
from divhook.core.wire.icmp import fragmentation_needed, host_unreachable, time_exceeded
from divhook.core.wire.ipv4 import parse_ipv4_untrusted

ROUTER_ALERT = bytes((148, 4, 0, 0))


@pytest.fixture
def net() -> Net:
    return Net()


# --- who gets it, and with which MACs


@pytest.mark.parametrize("ttl", [0, 1, 64, 255])
def test_same_subnet_same_host_keeps_the_ttl_and_shows_the_senders_vmac(net, ttl):
    packet = ipv4(WEB.address, APP.address, ttl=ttl)
    assert net.sent(net.a, WEB, from_guest(WEB, packet)) == [in_port(APP, WEB.vmac, packet)]


@pytest.mark.parametrize("ttl", [2, 64, 255])
def test_routed_on_the_same_host_costs_one_hop_and_shows_the_router_of_the_targets_subnet(net, ttl):
    packet = ipv4(WEB.address, DB.address, ttl=ttl)
    hop = ipv4(WEB.address, DB.address, ttl=ttl - 1)
    assert verifies(hop[:20])
    assert net.sent(net.a, WEB, from_guest(WEB, packet)) == [in_port(DB, RMAC[BACK], hop)]


def test_same_subnet_on_another_host_goes_there_as_it_is_and_arrives_from_the_senders_vmac(net):
    packet = ipv4(WEB.address, FAR.address, ttl=1)
    assert net.sent(net.a, WEB, from_guest(WEB, packet)) == [on_wire(HOST_A, HOST_B, packet)]
    assert net.heard(net.b, on_wire(HOST_A, HOST_B, packet).frame) == [in_port(FAR, WEB.vmac, packet)]


def test_routed_to_another_host_costs_one_hop_in_all(net):
    packet, hop = ipv4(WEB.address, LOG.address, ttl=64), ipv4(WEB.address, LOG.address, ttl=63)
    assert net.sent(net.a, WEB, from_guest(WEB, packet)) == [on_wire(HOST_A, HOST_B, hop)]
    assert net.heard(net.b, on_wire(HOST_A, HOST_B, hop).frame) == [in_port(LOG, RMAC[BACK], hop)]


def test_answer_finds_its_way_without_another_question(net):
    net.sent(net.a, WEB, from_guest(WEB, ipv4(WEB.address, FAR.address)))
    net.log.clear()
    back = ipv4(FAR.address, WEB.address)
    assert net.sent(net.b, FAR, from_guest(FAR, back)) == [on_wire(HOST_B, HOST_A, back)]
    assert net.heard(net.a, on_wire(HOST_B, HOST_A, back).frame) == [in_port(WEB, FAR.vmac, back)]
    assert net.log == []


def test_ethernet_padding_is_cut_off(net):
    packet = ipv4(WEB.address, APP.address, bytes(20))
    padded = from_guest(WEB, packet) + b"padding"
    assert net.sent(net.a, WEB, padded) == [in_port(APP, WEB.vmac, packet)]
    net.know(net.b, FAR, WEB.address)
    packet = ipv4(FAR.address, WEB.address, bytes(20))
    assert net.heard(net.a, on_wire(HOST_B, HOST_A, packet).frame + b"padding") == [in_port(WEB, FAR.vmac, packet)]


@pytest.mark.parametrize(
    "shape",
    [
        {"options": ROUTER_ALERT},
        {"options": b"\x01" * 36 + ROUTER_ALERT},
        {"more": True},
        {"offset": 1480},
        {"offset": 1480, "more": True},
        {"df": True},
        {"protocol": 132},
    ],
)
def test_options_fragments_and_any_protocol_pass_as_they_are(net, shape):
    packet = ipv4(WEB.address, APP.address, **shape)
    assert net.sent(net.a, WEB, from_guest(WEB, packet)) == [in_port(APP, WEB.vmac, packet)]
    routed, hop = ipv4(WEB.address, LOG.address, ttl=9, **shape), ipv4(WEB.address, LOG.address, ttl=8, **shape)
    assert net.sent(net.a, WEB, from_guest(WEB, routed)) == [on_wire(HOST_A, HOST_B, hop)]


def test_known_target_that_moved_to_a_higher_claim_is_followed(net):
    net.know(net.a, WEB, FAR.address)
    net.now += 1
    net.c.discovery.activate(FAR.address, FAR.vmac, FAR.port, 0, None, net.now)
    net.settle()
    packet = ipv4(WEB.address, FAR.address)
    assert net.sent(net.a, WEB, from_guest(WEB, packet)) == [on_wire(HOST_A, net.c.pmac, packet)]


@pytest.mark.parametrize("state", [PortState.INCOMING, PortState.TENTATIVE])
def test_guest_that_is_only_coming_in_is_still_reached_where_it_runs(net, state):
    net.a.ports.put(replace(FAR, port=15, state=state))
    packet = ipv4(WEB.address, FAR.address)
    assert net.sent(net.a, WEB, from_guest(WEB, packet)) == [on_wire(HOST_A, HOST_B, packet)]
    request = arp_from(WEB, FAR.address)
    answer, _ = net.sent(net.a, WEB, request)
    assert answer.frame[6:12] == FAR.vmac
    assert net.sent(net.a, WEB, from_guest(WEB, packet)) == [on_wire(HOST_A, HOST_B, packet)]


# --- one visible hop


@pytest.mark.parametrize("target", [DB.address, LOG.address, NOBODY_BACK], ids=["same host", "other host", "nobody"])
@pytest.mark.parametrize("ttl", [0, 1])
def test_first_hop_of_a_traceroute_is_the_senders_own_router(net, target, ttl):
    packet = ping(WEB.address, target, ttl=ttl)
    answer = time_exceeded(packet, ROUTER[LAN], WEB.address)
    assert net.sent(net.a, WEB, from_guest(WEB, packet)) == [
        in_port(WEB, RMAC[LAN], answer),
        Drop(DropReason.TTL_EXPIRED, WEB.port, packet),
    ]
    assert net.log == []


def test_second_hop_of_a_traceroute_is_the_target(net):
    packet, hop = ping(WEB.address, LOG.address, ttl=2), ping(WEB.address, LOG.address, ttl=1)
    assert net.sent(net.a, WEB, from_guest(WEB, packet)) == [on_wire(HOST_A, HOST_B, hop)]
    assert net.heard(net.b, on_wire(HOST_A, HOST_B, hop).frame) == [in_port(LOG, RMAC[BACK], hop)]


# --- nobody there


def test_nobody_in_the_same_subnet_is_silence(net):
    packet = ipv4(WEB.address, NOBODY)
    assert net.sent(net.a, WEB, from_guest(WEB, packet)) == []
    net.run(0.61)
    assert net.a.take() == [Drop(DropReason.NO_SUCH_ENDPOINT, WEB.port, packet)]
    assert net.sent(net.a, WEB, from_guest(WEB, packet)) == [Drop(DropReason.NEGATIVE_CACHED, WEB.port, packet)]


def test_nobody_in_another_subnet_is_host_unreachable_from_the_senders_router(net):
    packet = ipv4(WEB.address, NOBODY_BACK, ttl=7)
    answer = in_port(WEB, RMAC[LAN], host_unreachable(packet, ROUTER[LAN], WEB.address))
    assert net.sent(net.a, WEB, from_guest(WEB, packet)) == []
    net.run(0.61)
    assert net.a.take() == [answer, Drop(DropReason.NO_SUCH_ENDPOINT, WEB.port, packet)]
    assert net.sent(net.a, WEB, from_guest(WEB, packet)) == [
        answer,
        Drop(DropReason.NEGATIVE_CACHED, WEB.port, packet),
    ]


# --- held packets


def test_packets_are_held_and_released_in_order(net):
    packets = [ipv4(WEB.address, FAR.address, identification=n) for n in range(5)]
    for packet in packets:
        assert net.a.pipeline.from_guest(WEB.port, from_guest(WEB, packet), net.now) == []
    net.settle()
    assert net.a.take() == [on_wire(HOST_A, HOST_B, packet) for packet in packets]


def test_packets_of_two_guests_for_one_target_each_keep_their_own_hop(net):
    first, second = ipv4(WEB.address, FAR.address, ttl=9), ipv4(DB.address, FAR.address, ttl=9)
    net.a.pipeline.from_guest(WEB.port, from_guest(WEB, first), net.now)
    net.a.pipeline.from_guest(DB.port, from_guest(DB, second), net.now)
    net.settle()
    assert net.a.take() == [
        on_wire(HOST_A, HOST_B, first),
        on_wire(HOST_A, HOST_B, ipv4(DB.address, FAR.address, ttl=8)),
    ]


def test_held_packets_beyond_the_bound_of_a_target_are_dropped(net):
    net.cut = {HOST_B}
    packet = ipv4(WEB.address, FAR.address)
    outs = [net.a.pipeline.from_guest(WEB.port, from_guest(WEB, packet), net.now) for _ in range(66)]
    assert outs == [[]] * 64 + [[Drop(DropReason.HOLD_QUEUE_FULL, WEB.port, packet)]] * 2


def test_held_packets_beyond_the_bound_of_the_host_are_dropped():
    net = Net(Limits(hold_total=2))
    packets = [ipv4(WEB.address, target) for target in (FAR.address, NOBODY, LOG.address)]
    outs = [net.a.pipeline.from_guest(WEB.port, from_guest(WEB, packet), net.now) for packet in packets]
    assert outs == [[], [], [Drop(DropReason.HOLD_TABLE_FULL, WEB.port, packets[2])]]


def test_misses_beyond_the_rates_of_port_and_host_are_dropped():
    net = Net(Limits(misses_per_s_port=1, misses_per_s_host=2))
    near = [ipv4(WEB.address, NOBODY[:3] + bytes((n,))) for n in (100, 101)]
    far = [ipv4(APP.address, NOBODY[:3] + bytes((102,))), ipv4(DB.address, NOBODY[:3] + bytes((103,)))]
    assert net.a.pipeline.from_guest(WEB.port, from_guest(WEB, near[0]), net.now) == []
    assert net.a.pipeline.from_guest(WEB.port, from_guest(WEB, near[1]), net.now) == [
        Drop(DropReason.RESOLVE_RATE_PORT, WEB.port, near[1])
    ]
    assert net.a.pipeline.from_guest(APP.port, from_guest(APP, far[0]), net.now) == []
    assert net.a.pipeline.from_guest(DB.port, from_guest(DB, far[1]), net.now) == [
        Drop(DropReason.RESOLVE_RATE_HOST, DB.port, far[1])
    ]


def test_entry_that_is_evicted_drops_its_packets_and_tells_routed_senders():
    net = Net(Limits(neighbours=1))
    packet = ipv4(WEB.address, NOBODY_BACK)
    assert net.a.pipeline.from_guest(WEB.port, from_guest(WEB, packet), net.now) == []
    net.a.discovery.resolve(NOBODY, APP.port, APP.address, net.now)
    assert net.a.pipeline.collect(net.now) == [
        in_port(WEB, RMAC[LAN], host_unreachable(packet, ROUTER[LAN], WEB.address)),
        Drop(DropReason.HOLD_TABLE_FULL, WEB.port, packet),
    ]


@pytest.mark.parametrize("routed", [False, True])
def test_target_that_starts_here_meanwhile_gets_the_packets_directly(net, routed):
    sender, source = (DB, RMAC[LAN]) if routed else (WEB, WEB.vmac)
    packet = ipv4(sender.address, NOBODY, ttl=9)
    assert net.a.pipeline.from_guest(sender.port, from_guest(sender, packet), net.now) == []
    late = WEB.__class__(15, LAN, parse_mac("52:54:00:15:99:35"), NOBODY, "late", "uuid-15", state=PortState.ACTIVE)
    net.a.start(late, net.now)
    net.settle()
    hop = ipv4(sender.address, NOBODY, ttl=8) if routed else packet
    assert net.a.take() == [in_port(late, source, hop)]


def test_target_whose_port_is_not_active_when_it_is_found_here_gets_nothing(net):
    packet = ipv4(WEB.address, NOBODY)
    assert net.a.pipeline.from_guest(WEB.port, from_guest(WEB, packet), net.now) == []
    net.a.discovery.activate(NOBODY, parse_mac("52:54:00:15:99:35"), 15, 0, None, net.now)
    net.settle()
    assert net.a.take() == [Drop(DropReason.PORT_NOT_ACTIVE, WEB.port, packet)]


@pytest.mark.parametrize("state", [PortState.FENCED, PortState.TENTATIVE, PortState.INCOMING])
def test_sender_that_lost_its_port_while_its_packet_waited_sends_nothing(net, state):
    packet = ipv4(WEB.address, FAR.address)
    assert net.a.pipeline.from_guest(WEB.port, from_guest(WEB, packet), net.now) == []
    net.a.put(WEB, state)
    net.settle()
    assert net.a.take() == [Drop(DropReason.PORT_NOT_ACTIVE, WEB.port, packet)]


def test_packet_of_a_port_that_is_gone_is_not_sent(net):
    packet = ipv4(WEB.address, FAR.address)
    assert net.a.pipeline.from_guest(WEB.port, from_guest(WEB, packet), net.now) == []
    net.a.ports.remove(WEB.port)
    net.settle()
    assert net.a.take() == [Drop(DropReason.PORT_UNKNOWN, 0, packet)]


def test_heir_of_a_port_is_told_nothing_of_what_the_former_guest_had_sent(net):
    packet = ipv4(WEB.address, NOBODY_BACK)
    assert net.a.pipeline.from_guest(WEB.port, from_guest(WEB, packet), net.now) == []
    heir_address = net.a.pipeline.plan.address(SubnetId(5, 7), 77)
    net.a.ports.put(
        WEB.__class__(WEB.port, SubnetId(5, 7), WEB.vmac, heir_address, "heir", "uuid-16", state=PortState.ACTIVE)
    )
    net.run(0.61)
    assert net.a.take() == [Drop(DropReason.PORT_UNKNOWN, 0, packet)]


# --- MTU


def test_packet_of_exactly_the_next_subnets_mtu_passes(net):
    packet = ipv4(WEB.address, DB.address, bytes(1380), df=True)
    hop = ipv4(WEB.address, DB.address, bytes(1380), ttl=63, df=True)
    assert net.sent(net.a, WEB, from_guest(WEB, packet)) == [in_port(DB, RMAC[BACK], hop)]


@pytest.mark.parametrize("target", [DB, LOG], ids=["same host", "other host"])
def test_longer_packet_with_df_is_answered_with_the_next_subnets_mtu(net, target):
    packet = ipv4(WEB.address, target.address, bytes(1381), df=True)
    answer = fragmentation_needed(packet, ROUTER[LAN], WEB.address, 1400)
    assert int.from_bytes(answer[26:28], "big") == 1400
    assert net.sent(net.a, WEB, from_guest(WEB, packet)) == [
        in_port(WEB, RMAC[LAN], answer),
        Drop(DropReason.FRAGMENTATION_NEEDED, WEB.port, packet),
    ]
    assert net.log == []


@pytest.mark.parametrize("options", [b"", ROUTER_ALERT + bytes((7, 3, 4, 0))])
@pytest.mark.parametrize("target", [DB, LOG], ids=["same host", "other host"])
def test_longer_packet_without_df_arrives_in_fragments_that_make_the_whole(net, target, options):
    payload = bytes(n % 251 for n in range(3000))
    packet = ipv4(WEB.address, target.address, payload, ttl=9, options=options)
    out = net.sent(net.a, WEB, from_guest(WEB, packet))
    prefix = in_port(DB, RMAC[BACK], b"").frame if target is DB else on_wire(HOST_A, HOST_B, b"").frame
    kind = ToGuest if target is DB else ToWire
    assert [type(o) for o in out] == [kind] * 3
    assert [o.frame[:14] for o in out] == [prefix] * 3
    assert all(len(o.frame) - 14 <= 1400 and verifies(o.frame[14 : 14 + (o.frame[14] & 15) * 4]) for o in out)
    pieces = [parse_ipv4_untrusted(o.frame[14:]) for o in out]
    assert b"".join(p.payload for p in pieces) == payload
    assert [p.fragment_offset for p in pieces] == [sum(len(q.payload) for q in pieces[:n]) for n in range(3)]
    assert [(p.more_fragments, p.ttl, p.identification) for p in pieces] == [
        (True, 8, 0x1D2E),
        (True, 8, 0x1D2E),
        (False, 8, 0x1D2E),
    ]
    assert pieces[0].options == options
    assert {p.options for p in pieces[1:]} == {options[:4]}  # record route is not copied (RFC 791)


def test_longer_packet_within_a_subnet_is_dropped_as_a_switch_does(net):
    packet = ipv4(WEB.address, APP.address, bytes(1481))
    assert net.sent(net.a, WEB, from_guest(WEB, packet)) == [Drop(DropReason.FRAGMENTATION_NEEDED, WEB.port, packet)]
