"""The virtual router as guests see it: what it answers by itself, and when it is silent."""

import pytest
from pipeline_hosts import (
    APP,
    BACK,
    DB,
    FOREIGN,
    LAN,
    NOBODY_BACK,
    OUTSIDE,
    RMAC,
    ROUTER,
    SPY,
    WEB,
    Net,
    from_guest,
    in_port,
    ipv4,
    ping,
    udp,
)

from divhook.core.outputs import Drop
from divhook.core.reasons import DropReason as R
from divhook.core.router import ICMP_ERROR_BURST, ICMP_ERRORS_PER_S, TokenBucket
from divhook.core.wire.icmp import IcmpEcho, IcmpMessage, port_unreachable, time_exceeded
from divhook.core.wire.ipv4 import Ipv4, Protocol

BURST = int(ICMP_ERROR_BURST)


@pytest.fixture
def net() -> Net:
    return Net()


def pong(source: bytes, destination: bytes, size: int = 32) -> bytes:
    echo = IcmpEcho(True, 0x0A0B, 0x0C0D, bytes(range(256)) * (size // 256) + bytes(range(size % 256)))
    return Ipv4(
        source=source,
        destination=destination,
        protocol=Protocol.ICMP,
        payload=echo.emit(),
        identification=0x1D2E,
        dscp_ecn=0x28,
    ).emit()


@pytest.mark.parametrize("ttl", [0, 1, 64])
@pytest.mark.parametrize(
    ("guest", "router"),
    [(WEB, LAN), (WEB, BACK), (DB, BACK), (DB, LAN), (SPY, FOREIGN)],
    ids=["own", "other subnet's", "own", "other subnet's", "own, other cell"],
)
def test_ping_of_a_router_address_of_the_cell_is_answered_from_it(net, guest, router, ttl):
    packet = ping(guest.address, ROUTER[router], ttl=ttl)
    assert net.sent(net.a, guest, from_guest(guest, packet)) == [
        in_port(guest, RMAC[guest.subnet], pong(ROUTER[router], guest.address)),
        Drop(R.CONSUMED, guest.port, packet),
    ]
    assert net.log == []


def test_router_of_another_cell_is_silent(net):
    packet = ping(WEB.address, ROUTER[FOREIGN])
    assert net.sent(net.a, WEB, from_guest(WEB, packet)) == [Drop(R.CELL_DENIED, WEB.port, packet)]


@pytest.mark.parametrize("router", [LAN, BACK], ids=["own", "other subnet's"])
def test_udp_to_the_router_is_port_unreachable_from_the_address_asked(net, router):
    packet = udp(WEB.address, ROUTER[router], ttl=1)
    assert net.sent(net.a, WEB, from_guest(WEB, packet)) == [
        in_port(WEB, RMAC[LAN], port_unreachable(packet, ROUTER[router], WEB.address)),
        Drop(R.ROUTER_SERVICE, WEB.port, packet),
    ]


SILENT = {
    "TCP": ipv4(WEB.address, ROUTER[LAN]),
    "echo reply": ipv4(WEB.address, ROUTER[LAN], IcmpEcho(True, 1, 2, b"").emit(), protocol=1),
    "timestamp": ipv4(WEB.address, ROUTER[LAN], IcmpMessage(13, 0, 0, bytes(12)).emit(), protocol=1),
    "an ICMP error": ipv4(
        WEB.address, ROUTER[LAN], IcmpMessage(3, 1, 0, ipv4(ROUTER[LAN], WEB.address)).emit(), protocol=1
    ),
    "first fragment of UDP": ipv4(WEB.address, ROUTER[LAN], bytes(24), protocol=17, more=True),
    "last fragment of UDP": ipv4(WEB.address, ROUTER[LAN], bytes(24), protocol=17, offset=1480),
    "fragment of a ping": ipv4(WEB.address, ROUTER[LAN], IcmpEcho(False, 1, 2, b"").emit(), protocol=1, more=True),
    "IGMP": ipv4(WEB.address, ROUTER[LAN], bytes(8), protocol=2),
}


@pytest.mark.parametrize("packet", SILENT.values(), ids=SILENT)
def test_what_is_no_service_of_the_router_is_silence(net, packet):
    assert net.sent(net.a, WEB, from_guest(WEB, packet)) == [Drop(R.ROUTER_SERVICE, WEB.port, packet)]


@pytest.mark.parametrize("message", [b"\x08\0\0\0", IcmpEcho(False, 1, 2, b"x").emit()[:-1] + b"y", b""])
def test_malformed_ping_is_dropped_with_its_reason(net, message):
    packet = ipv4(WEB.address, ROUTER[LAN], message, protocol=1)
    assert net.sent(net.a, WEB, from_guest(WEB, packet)) == [Drop(R.ICMP_MALFORMED, WEB.port, packet)]


@pytest.mark.parametrize(
    ("packet", "reason"),
    [
        (ping(WEB.address, DB.address, ttl=1), R.TTL_EXPIRED),
        (ipv4(WEB.address, OUTSIDE), R.EXTERNAL_UNSUPPORTED),
        (ipv4(WEB.address, bytes((10, 3, 200, 5))), R.NO_SUCH_ENDPOINT),
        (ipv4(WEB.address, DB.address, bytes(1381), df=True), R.FRAGMENTATION_NEEDED),
        (udp(WEB.address, ROUTER[LAN]), R.ROUTER_SERVICE),
    ],
    ids=["time exceeded", "outside", "no such subnet", "too big", "port unreachable"],
)
def test_errors_beyond_the_rate_of_a_port_are_silence_and_counted_as_such(net, packet, reason):
    frame = from_guest(WEB, packet)
    for _ in range(BURST):
        answer, drop = net.a.pipeline.from_guest(WEB.port, frame, net.now)
        assert (answer.port, drop) == (WEB.port, Drop(reason, WEB.port, packet))
    limited = [Drop(R.ICMP_RATE_LIMITED, WEB.port, packet)]
    assert net.a.pipeline.from_guest(WEB.port, frame, net.now) == limited
    another = ping(APP.address, DB.address, ttl=1)
    assert len(net.a.pipeline.from_guest(APP.port, from_guest(APP, another), net.now)) == 2
    net.now += 2 / ICMP_ERRORS_PER_S + 1e-9
    lengths = [len(net.a.pipeline.from_guest(WEB.port, frame, net.now)) for _ in range(3)]
    assert lengths == [2, 2, 1]


def test_errors_for_held_packets_count_against_the_same_rate(net):
    expired = from_guest(WEB, ping(WEB.address, DB.address, ttl=1))
    for _ in range(BURST):
        net.a.pipeline.from_guest(WEB.port, expired, net.now)
    packet = ipv4(WEB.address, NOBODY_BACK)
    assert net.a.pipeline.from_guest(WEB.port, from_guest(WEB, packet), net.now) == []
    for _ in range(3):
        net.now = net.a.discovery.next_timer()
        for _ in range(BURST):
            net.a.pipeline.from_guest(WEB.port, expired, net.now)
        net.a.discovery.on_timer(net.now)
    assert net.a.pipeline.collect(net.now) == [Drop(R.ICMP_RATE_LIMITED, WEB.port, packet)]
    assert net.a.pipeline.from_guest(WEB.port, from_guest(WEB, packet), net.now) == [
        Drop(R.ICMP_RATE_LIMITED, WEB.port, packet)
    ]


def test_pings_are_not_errors_and_have_no_limit_here(net):
    frame = from_guest(WEB, ping(WEB.address, ROUTER[LAN]))
    assert all(len(net.a.pipeline.from_guest(WEB.port, frame, net.now)) == 2 for _ in range(3 * BURST))


def test_heir_of_a_port_starts_with_a_fresh_limit(net):
    frame = from_guest(WEB, ping(WEB.address, DB.address, ttl=1))
    for _ in range(BURST + 1):
        net.a.pipeline.from_guest(WEB.port, frame, net.now)
    net.a.pipeline.forget_port(WEB.port)
    assert len(net.a.pipeline.from_guest(WEB.port, frame, net.now)) == 2


def test_errors_are_never_answered_with_errors(net):
    quoted = ipv4(DB.address, WEB.address)
    for message in (IcmpMessage(3, 1, 0, quoted), IcmpMessage(11, 0, 0, quoted), IcmpMessage(99, 0, 0, b"")):
        packet = ipv4(WEB.address, DB.address, message.emit(), ttl=1, protocol=1)
        assert net.sent(net.a, WEB, from_guest(WEB, packet)) == [Drop(R.TTL_EXPIRED, WEB.port, packet)]


def test_only_a_first_fragment_is_answered_with_an_error(net):
    first = ipv4(WEB.address, DB.address, ttl=1, more=True)
    assert net.sent(net.a, WEB, from_guest(WEB, first)) == [
        in_port(WEB, RMAC[LAN], time_exceeded(first, ROUTER[LAN], WEB.address)),
        Drop(R.TTL_EXPIRED, WEB.port, first),
    ]
    later = ipv4(WEB.address, DB.address, ttl=1, offset=1480)
    assert net.sent(net.a, WEB, from_guest(WEB, later)) == [Drop(R.TTL_EXPIRED, WEB.port, later)]


def test_error_quotes_at_most_what_fits_576_bytes_and_the_packet_as_it_came(net):
    packet = ipv4(WEB.address, DB.address, bytes(range(256)) * 5, ttl=1)
    answer, _ = net.sent(net.a, WEB, from_guest(WEB, packet))
    assert len(answer.frame) - 14 == 576
    assert answer.frame[14 + 28 :] == packet[:548]


def test_bucket_at_its_bound_makes_all_new_keys_share_one():
    bucket = TokenBucket(rate=1, burst=1, bound=2)
    assert [bucket.take(key, 0.0) for key in ("a", "b")] == [True, True]
    assert bucket.take("c", 0.0)
    assert not bucket.take("d", 0.0)
    bucket.forget("a")
    bucket.forget("never seen")
    assert not bucket.take("b", 0.5)
    assert bucket.take("b", 1.0)
