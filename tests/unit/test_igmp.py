"""IGMP: what hosts say, whom the router asks and when, and who is a member by that (RFC 2236, 3376, 4541)."""

from typing import Any

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
    MTU,
    PLAN,
    RMAC,
    ROUTER,
    SPY,
    WEB,
    Net,
    frame_of,
    from_guest,
    ipv4,
    on_wire,
    udp,
)

from divhook.core.addressing import Address, Mac, cell_group_mac, group_mac
from divhook.core.endpoint import Endpoint, PortState
from divhook.core.igmp import (
    GROUP_MEMBERSHIP_S,
    LAST_MEMBER_QUERY_COUNT,
    LAST_MEMBER_QUERY_INTERVAL_S,
    MAX_GROUPS_PER_PORT,
    QUERY_INTERVAL_S,
    STARTUP_QUERY_COUNT,
    STARTUP_QUERY_INTERVAL_S,
)
from divhook.core.outputs import Drop, Output, ToGuest
from divhook.core.reasons import DropReason as R
from divhook.core.router import SubnetFacts
from divhook.core.wire.checksum import checksum
from divhook.core.wire.errors import WireError
from divhook.core.wire.igmp import Wish, parse_igmp_untrusted, query

GROUP, OTHER = bytes((239, 129, 2, 3)), bytes((239, 129, 2, 4))
GROUP_MAC = bytes((1, 0, 0x5E, 1, 2, 3))
ALL_SYSTEMS, ALL_ROUTERS, V3_ROUTERS = bytes((224, 0, 0, 1)), bytes((224, 0, 0, 2)), bytes((224, 0, 0, 22))
ALERT = b"\x94\x04\0\0"
INCLUDE, EXCLUDE, TO_INCLUDE, TO_EXCLUDE, ALLOW, BLOCK = range(1, 7)


@pytest.fixture
def net() -> Net:
    return Net()


def sealed(message: bytes) -> bytes:
    return message[:2] + checksum(message[:2] + bytes(2) + message[4:]).to_bytes(2, "big") + message[4:]


def v2(kind: int, group: Address) -> bytes:
    return sealed(bytes((kind, 0, 0, 0)) + group)


def record(kind: int, group: Address, *sources: Address, aux: int = 0) -> bytes:
    return bytes((kind, aux, 0, len(sources))) + group + b"".join(sources) + bytes(4 * aux)


def v3(*records: bytes) -> bytes:
    return sealed(bytes((0x22, 0, 0, 0, 0, 0, 0, len(records))) + b"".join(records))


def said(guest: Endpoint, message: bytes, destination: Address = V3_ROUTERS) -> bytes:
    packet = ipv4(guest.address or bytes(4), destination, message, 1, protocol=2, options=ALERT)
    return from_guest(guest, packet, bytes((1, 0, 0x5E, destination[1] & 0x7F)) + destination[2:])


def say(net: Net, guest: Endpoint, message: bytes, host: Any = None) -> list[R]:
    """The one end that it has."""
    out = net.sent(host or net.a, guest, said(guest, message))
    assert all(isinstance(o, Drop) for o in out), out
    return [o.reason for o in out if isinstance(o, Drop)]


def join(net: Net, guest: Endpoint, group: Address = GROUP, host: Any = None) -> None:
    assert say(net, guest, v3(record(TO_EXCLUDE, group)), host) == [R.CONSUMED]


def passes(net: Net, seconds: float) -> list[tuple[float, ToGuest]]:
    """Time, and the queries that were asked meanwhile, each with when since now."""
    pipeline, begin = net.a.pipeline, net.now
    until, asked = begin + seconds, []
    net.a.collect(net.now)
    while (due := pipeline.next_timer()) is not None and due <= until:
        pipeline.on_timer(due)
        net.a.queries.clear()
        net.a.collect(due)
        asked += [(round(due - begin, 3), each) for each in net.a.queries]
    net.a.queries.clear()
    net.run(seconds)
    net.now = until
    return asked


def receivers(net: Net, source: Endpoint, group: Address = GROUP) -> list[int]:
    """Ports of A that get a datagram of a guest of A."""
    packet = udp(source.address or bytes(4), group)
    out = net.sent(net.a, source, from_guest(source, packet, GROUP_MAC))
    assert out[-1] == on_wire(HOST_A, group_mac(source.subnet), packet)
    return [o.port for o in out[:-1] if isinstance(o, ToGuest)]


def asked_for(guest: Endpoint, group: Address, destination: Address, response_s: float) -> ToGuest:
    packet = ipv4(ROUTER[guest.subnet], destination, query(response_s, 2, 125, group), 1, protocol=2, options=ALERT)
    packet = packet[:1] + b"\xc0" + packet[2:4] + bytes(2) + packet[6:10] + bytes(2) + packet[12:]
    packet = packet[:10] + checksum(packet[:24]).to_bytes(2, "big") + packet[12:]
    mac = bytes((1, 0, 0x5E, destination[1] & 0x7F)) + destination[2:]
    return ToGuest(guest.port, frame_of(mac, RMAC[guest.subnet], packet))


# --- the codec

MESSAGES = {
    "v1 report": (sealed(b"\x12\0\0\0" + GROUP), [Wish(GROUP, True)]),
    "v2 report": (v2(0x16, GROUP), [Wish(GROUP, True)]),
    "v2 leave": (v2(0x17, GROUP), [Wish(GROUP, False)]),
    "include nothing": (v3(record(TO_INCLUDE, GROUP)), [Wish(GROUP, False)]),
    "include a source": (v3(record(TO_INCLUDE, GROUP, WEB.address)), [Wish(GROUP, True)]),
    "is including a source": (v3(record(INCLUDE, GROUP, WEB.address, aux=2)), [Wish(GROUP, True)]),
    "exclude": (v3(record(TO_EXCLUDE, GROUP)), [Wish(GROUP, True)]),
    "is excluding": (v3(record(EXCLUDE, GROUP, WEB.address)), [Wish(GROUP, True)]),
    "allow": (v3(record(ALLOW, GROUP, WEB.address)), [Wish(GROUP, True)]),
    "block": (v3(record(BLOCK, GROUP, WEB.address)), [Wish(GROUP, False)]),
    "unknown record": (v3(record(9, GROUP, WEB.address)), []),
    "several": (v3(record(EXCLUDE, GROUP, aux=1), record(TO_INCLUDE, OTHER)), [Wish(GROUP, True), Wish(OTHER, False)]),
}


@pytest.mark.parametrize(("message", "wishes"), MESSAGES.values(), ids=MESSAGES)
def test_what_a_host_says(message: bytes, wishes: list[Wish]) -> None:
    assert parse_igmp_untrusted(message) == wishes


BAD = {
    "query": v2(0x11, bytes(4)),
    "v3 query": query(10, 2, 125),
    "PIM": v2(0x14, bytes(4)),
    "DVMRP": v2(0x13, bytes(4)),
    "short": v2(0x16, GROUP)[:7],
    "checksum": v2(0x16, GROUP)[:2] + b"\0\0" + GROUP,
    "no group": v2(0x16, WEB.address),
    "a record more than there is": sealed(v3(record(EXCLUDE, GROUP))[:7] + b"\2" + record(EXCLUDE, GROUP)),
    "sources that are not there": v3(bytes((EXCLUDE, 0, 0, 1)) + GROUP),
}


@pytest.mark.parametrize("message", BAD.values(), ids=BAD)
def test_what_no_host_says_is_refused(net: Net, message: bytes) -> None:
    with pytest.raises(WireError) as refused:
        parse_igmp_untrusted(message)
    assert refused.value.reason is R.IGMP_REFUSED
    assert say(net, WEB, message) == [R.IGMP_REFUSED]
    assert receivers(net, APP) == []


def test_codec_and_scapy_agree() -> None:
    from scapy.layers import igmp

    report = igmp.IGMPv2_MR(gaddr="239.129.2.3", mrcode=0)
    assert parse_igmp_untrusted(bytes(report)) == [Wish(GROUP, True)]
    records = [igmp.IGMPv3_MR_Group(rtype=4, maddr="239.129.2.3"), igmp.IGMPv3_MR_Group(rtype=3, maddr="239.129.2.4")]
    assert parse_igmp_untrusted(bytes(igmp.IGMPv3_MR(records=records))) == [Wish(GROUP, True), Wish(OTHER, False)]
    asked = igmp.IGMPv3_MQ(query(1.0, 2, 125, GROUP))
    assert (asked.gaddr, asked.qrv, asked.qqic, asked.numsrc) == ("239.129.2.3", 2, 125, 0)
    assert bytes(igmp.IGMPv3_MQ(mrcode=10, gaddr="239.129.2.3", qrv=2, qqic=125)) == query(1.0, 2, 125, GROUP)


# --- members


def test_only_members_get_a_group_and_the_wire_gets_one_frame(net: Net) -> None:
    assert receivers(net, WEB) == []
    join(net, APP)
    assert receivers(net, WEB) == [APP.port]
    assert receivers(net, WEB, OTHER) == []
    assert receivers(net, APP) == []


def test_a_copy_has_the_groups_mac_and_the_senders(net: Net) -> None:
    join(net, APP)
    packet = udp(WEB.address or b"", GROUP, ttl=1)
    [copy, _] = net.sent(net.a, WEB, from_guest(WEB, packet, b"\xff" * 6))
    assert copy == ToGuest(APP.port, frame_of(GROUP_MAC, WEB.vmac, packet))


def test_members_hear_the_wire_and_without_one_nobody_is_asked(net: Net) -> None:
    packet = udp(FAR.address or b"", GROUP)
    frame = frame_of(group_mac(LAN), HOST_B, packet)
    assert net.heard(net.a, frame) == [Drop(R.NO_MEMBER, 0, packet)]
    assert net.log == []
    join(net, WEB)
    assert net.heard(net.a, frame) == [ToGuest(WEB.port, frame_of(GROUP_MAC, FAR.vmac, packet))]


def test_nothing_of_igmp_reaches_another_guest_or_the_wire(net: Net) -> None:
    join(net, WEB)
    for message in (v2(0x16, GROUP), v2(0x17, GROUP), v3(record(EXCLUDE, GROUP))):
        for destination in (ALL_SYSTEMS, ALL_ROUTERS, V3_ROUTERS, GROUP):
            [end] = net.sent(net.a, APP, said(APP, message, destination))
            assert isinstance(end, Drop)
            assert end.reason is R.CONSUMED
    packet = ipv4(FAR.address or b"", V3_ROUTERS, v2(0x16, GROUP), 1, protocol=2)
    assert net.heard(net.a, frame_of(group_mac(LAN), HOST_B, packet)) == [Drop(R.IGMP_REFUSED, 0, packet)]


def test_a_fragment_of_igmp_is_refused(net: Net) -> None:
    packet = ipv4(WEB.address or b"", V3_ROUTERS, v2(0x16, GROUP), 1, protocol=2, more=True)
    assert net.sent(net.a, WEB, from_guest(WEB, packet, GROUP_MAC)) == [Drop(R.IGMP_REFUSED, WEB.port, packet)]


def test_link_local_groups_need_and_cost_no_membership(net: Net) -> None:
    join(net, APP, bytes((224, 0, 0, 251)))
    assert net.a.pipeline.groups.members.of(APP.port) == []
    assert receivers(net, WEB, bytes((224, 0, 0, 251))) == [APP.port]


def test_a_port_joins_so_many_groups_and_no_more(net: Net) -> None:
    groups = [bytes((239, 1, 0, number)) for number in range(MAX_GROUPS_PER_PORT)]
    for group in groups:
        join(net, APP, group)
    assert say(net, APP, v2(0x16, OTHER)) == [R.IGMP_REFUSED]
    assert net.a.pipeline.groups.members.of(APP.port) == groups
    join(net, APP, groups[0])
    join(net, WEB, OTHER)


def test_a_membership_ends_unless_it_is_renewed(net: Net) -> None:
    join(net, APP)
    passes(net, GROUP_MEMBERSHIP_S - 1)
    assert receivers(net, WEB) == [APP.port]
    join(net, APP)
    passes(net, GROUP_MEMBERSHIP_S - 1)
    assert receivers(net, WEB) == [APP.port]
    passes(net, 1)
    assert receivers(net, WEB) == []


def test_ports_that_are_fenced_gone_or_anothers_are_members_no_more(net: Net) -> None:
    join(net, APP)
    net.a.put(APP, PortState.FENCED)
    assert receivers(net, WEB) == []
    net.a.put(APP, PortState.ACTIVE)
    net.settle()
    assert receivers(net, WEB) == []
    join(net, APP)
    net.a.ports.remove(APP.port)
    net.settle()
    net.a.put(APP, PortState.ACTIVE)
    net.settle()
    assert receivers(net, WEB) == []


# --- the querier


def test_a_port_is_asked_when_it_becomes_active_and_then_at_intervals(net: Net) -> None:
    net.a.ports.remove(APP.port)
    net.settle()
    passes(net, 1)
    net.a.put(APP, PortState.TENTATIVE)
    net.settle()
    assert net.a.queries == []
    net.a.put(APP, PortState.ACTIVE)
    net.settle()
    general = asked_for(APP, bytes(4), ALL_SYSTEMS, 10.0)
    assert net.a.queries == [general]
    later = [(at, q) for at, q in passes(net, 2 * QUERY_INTERVAL_S + 40) if q.port == APP.port]
    first = STARTUP_QUERY_INTERVAL_S
    assert STARTUP_QUERY_COUNT == 2
    assert later == [(first, general), (first + QUERY_INTERVAL_S, general), (first + 2 * QUERY_INTERVAL_S, general)]


@pytest.mark.parametrize(
    "leave", [v2(0x17, GROUP), v3(record(TO_INCLUDE, GROUP)), v3(record(BLOCK, GROUP, WEB.address))]
)
def test_who_leaves_is_asked_for_that_group_and_then_no_member(net: Net, leave: bytes) -> None:
    join(net, APP)
    net.a.queries.clear()
    assert say(net, APP, leave) == [R.CONSUMED]
    asked = asked_for(APP, GROUP, GROUP, 1.0)
    assert net.a.queries == [asked]
    assert say(net, APP, leave) == [R.CONSUMED]
    assert net.a.queries == [asked], "once for one leave, however often it is said"
    assert [q for _, q in passes(net, LAST_MEMBER_QUERY_INTERVAL_S)] == [asked]
    assert receivers(net, WEB) == [APP.port]
    passes(net, LAST_MEMBER_QUERY_INTERVAL_S * (LAST_MEMBER_QUERY_COUNT - 1))
    assert receivers(net, WEB) == []


def test_a_report_after_a_leave_keeps_the_membership(net: Net) -> None:
    join(net, APP)
    say(net, APP, v2(0x17, GROUP))
    join(net, APP)
    passes(net, 10)
    assert receivers(net, WEB) == [APP.port]


def test_leaving_a_group_that_one_is_not_in_asks_nobody(net: Net) -> None:
    net.a.queries.clear()
    assert say(net, APP, v2(0x17, GROUP)) == [R.CONSUMED]
    assert net.a.queries == []


# --- routed within the cell


@pytest.fixture
def routed(net: Net) -> Net:
    for host in net.hosts:
        for subnet, facts in list(host.pipeline.topology.items()):
            host.pipeline.topology[subnet] = SubnetFacts(facts.mtu, facts.service, groups_routed=True)
    return net


def hop(packet: bytes) -> bytes:
    """One hop on: TTL-1."""
    header = bytearray(packet[:20])
    header[8] -= 1
    header[10:12] = bytes(2)
    header[10:12] = checksum(bytes(header)).to_bytes(2, "big")
    return bytes(header) + packet[20:]


def to(guest: Endpoint, source: Mac, packet: bytes) -> ToGuest:
    return ToGuest(guest.port, frame_of(GROUP_MAC, source, packet))


def send(net: Net, guest: Endpoint, packet: bytes) -> list[Output]:
    return net.sent(net.a, guest, from_guest(guest, packet, GROUP_MAC))


def test_members_in_other_subnets_of_the_cell_get_it_from_their_router_one_hop_on(routed: Net) -> None:
    for guest in (APP, DB, SPY):
        join(routed, guest)
    packet = udp(WEB.address or b"", GROUP, ttl=2)
    assert send(routed, WEB, packet) == [
        to(APP, WEB.vmac, packet),
        to(DB, RMAC[BACK], hop(packet)),
        on_wire(HOST_A, cell_group_mac(LAN.cell), packet),
    ]


def test_from_the_wire_the_delivering_host_decrements(routed: Net) -> None:
    for guest in (WEB, DB, SPY):
        join(routed, guest)
    packet = udp(LOG.address or b"", GROUP, ttl=9)
    assert routed.heard(routed.a, frame_of(cell_group_mac(LAN.cell), HOST_B, packet)) == [
        to(DB, LOG.vmac, packet),
        to(WEB, RMAC[LAN], hop(packet)),
    ]


def test_a_host_with_members_in_other_subnets_alone_asks_for_the_source(routed: Net) -> None:
    routed.a.ports.remove(DB.port)
    join(routed, WEB)
    packet = udp(LOG.address or b"", GROUP, ttl=9)
    frame = frame_of(cell_group_mac(LAN.cell), HOST_B, packet)
    assert routed.heard(routed.a, frame) == [to(WEB, RMAC[LAN], hop(packet))]


@pytest.mark.parametrize(("group", "ttl"), [(GROUP, 1), (bytes((239, 255, 1, 2)), 64), (bytes((224, 0, 0, 251)), 255)])
def test_what_must_stay_in_its_subnet_does(routed: Net, group: Address, ttl: int) -> None:
    join(routed, DB, group)
    packet = udp(WEB.address or b"", group, ttl=ttl)
    out = send(routed, WEB, packet)
    assert out[-1] == on_wire(HOST_A, group_mac(LAN), packet)
    assert DB.port not in [o.port for o in out if isinstance(o, ToGuest)]
    from_log = udp(LOG.address or b"", group, ttl=ttl)
    heard = routed.heard(routed.a, frame_of(group_mac(BACK), HOST_B, from_log))
    assert [o.port for o in heard if isinstance(o, ToGuest)] == [DB.port]


def test_broadcast_is_never_routed(routed: Net) -> None:
    packet = udp(WEB.address or b"", b"\xff" * 4)
    out = send(routed, WEB, packet)
    assert [o.port for o in out if isinstance(o, ToGuest)] == [APP.port]
    assert out[-1] == on_wire(HOST_A, group_mac(LAN), packet)


def test_what_is_longer_than_the_other_subnets_packets_is_cut_or_dropped_for_it_alone(routed: Net) -> None:
    join(routed, DB)
    for df in (False, True):
        packet = ipv4(WEB.address or b"", GROUP, bytes(MTU[LAN] - 20), protocol=17, df=df)
        out = [o.frame[14:] for o in send(routed, WEB, packet) if isinstance(o, ToGuest)]
        assert [len(piece) <= MTU[BACK] for piece in out] == ([] if df else [True, True])


def test_hosts_listen_to_the_cells_group_only_where_it_is_routed(net: Net) -> None:
    cell = cell_group_mac(LAN.cell)
    assert cell not in net.a.pipeline.groups.listened()
    net.a.pipeline.topology[LAN] = SubnetFacts(1500, net.a.pipeline.topology[LAN].service, groups_routed=True)
    assert cell in net.a.pipeline.groups.listened()
    assert PLAN.contains(WEB.address or b"")
