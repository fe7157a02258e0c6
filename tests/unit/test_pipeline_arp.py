"""ARP from guests: every request is answered by the host itself, or not at all; none goes to the wire."""

import pytest
from pipeline_hosts import (
    APP,
    BACK,
    DB,
    FAR,
    FOREIGN,
    HOST_A,
    HOST_B,
    LAN,
    LOG,
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
    ipv4,
    on_wire,
)

from divhook.core.discovery import Limits
from divhook.core.endpoint import PortState
from divhook.core.outputs import Drop, ToGuest
from divhook.core.reasons import DropReason as R
from divhook.core.wire.arp import Arp

NONE = bytes(4)


@pytest.fixture
def net() -> Net:
    return Net()


def answer(guest, mac: bytes, address: bytes, to: bytes | None = None) -> ToGuest:
    arp = Arp(2, mac, address, guest.vmac, guest.address if to is None else to)
    return ToGuest(guest.port, frame_of(guest.vmac, mac, arp.emit(), 0x0806))


def consumed(request: bytes, guest=WEB) -> Drop:
    return Drop(R.CONSUMED, guest.port, request[14:])


@pytest.mark.parametrize(("guest", "subnet"), [(WEB, LAN), (DB, BACK), (SPY, FOREIGN)])
def test_router_answers_with_its_mac(net, guest, subnet):
    request = arp_from(guest, ROUTER[subnet])
    assert net.sent(net.a, guest, request) == [answer(guest, RMAC[subnet], ROUTER[subnet]), consumed(request, guest)]


def test_unicast_request_to_refresh_an_entry_is_answered_alike(net):
    request = RMAC[LAN] + arp_from(WEB, ROUTER[LAN])[6:]
    assert net.sent(net.a, WEB, request) == [answer(WEB, RMAC[LAN], ROUTER[LAN]), consumed(request)]


def test_padded_request_is_answered_alike(net):
    request = arp_from(WEB, ROUTER[LAN]) + bytes(18)
    assert net.sent(net.a, WEB, request) == [answer(WEB, RMAC[LAN], ROUTER[LAN]), consumed(request)]


def test_peer_on_the_same_host_is_answered_for_at_once(net):
    request = arp_from(WEB, APP.address)
    assert net.sent(net.a, WEB, request) == [answer(WEB, APP.vmac, APP.address), consumed(request)]
    assert net.log == []


def test_peer_on_another_host_is_found_first_then_answered_for_then_known(net):
    request = arp_from(WEB, FAR.address)
    assert net.a.pipeline.from_guest(WEB.port, request, net.now) == []
    net.settle()
    assert net.a.take() == [answer(WEB, FAR.vmac, FAR.address)]
    assert net.sent(net.a, WEB, request) == [answer(WEB, FAR.vmac, FAR.address), consumed(request)]


def test_nobody_is_silence(net):
    request = arp_from(WEB, NOBODY)
    assert net.sent(net.a, WEB, request) == []
    net.run(0.61)
    assert net.a.take() == [Drop(R.NO_SUCH_ENDPOINT, WEB.port, request[14:])]
    assert net.sent(net.a, WEB, request) == [Drop(R.NEGATIVE_CACHED, WEB.port, request[14:])]


def test_probe_for_a_taken_address_is_answered_wherever_it_is(net):
    for taken in (APP, FAR):
        request = arp_from(WEB, taken.address, NONE)
        assert answer(WEB, taken.vmac, taken.address, NONE) in net.sent(net.a, WEB, request)


def test_probe_for_the_routers_address_is_answered(net):
    request = arp_from(WEB, ROUTER[LAN], NONE)
    assert net.sent(net.a, WEB, request) == [answer(WEB, RMAC[LAN], ROUTER[LAN], NONE), consumed(request)]


@pytest.mark.parametrize(
    "request_",
    [
        arp_from(WEB, WEB.address),
        arp_from(WEB, WEB.address, NONE),
        arp_from(WEB, WEB.address, operation=2),
        arp_from(WEB, APP.address, operation=2),
        arp_from(WEB, NONE, NONE),
    ],
    ids=["gratuitous request", "probe of the own address", "gratuitous reply", "reply", "probe of nothing"],
)
def test_announcements_probes_of_the_own_address_and_replies_end_here(net, request_):
    assert net.sent(net.a, WEB, request_) == [consumed(request_)]
    assert net.log == []


@pytest.mark.parametrize(
    "target",
    [
        *(DB.address, LOG.address, ROUTER[BACK], SPY.address, OUTSIDE, b"\xff" * 4, bytes((224, 0, 0, 1))),
        *(PLAN.address(LAN, 0), PLAN.broadcast(LAN)),
    ],
)
def test_off_link_network_and_broadcast_addresses_are_silence(net, target):
    request = arp_from(WEB, target)
    assert net.sent(net.a, WEB, request) == [Drop(R.NO_SUCH_ENDPOINT, WEB.port, request[14:])]
    assert net.log == []


def test_request_that_finds_the_queue_full_is_dropped(net):
    net.cut = {HOST_B}
    request = arp_from(WEB, FAR.address)
    outs = [net.a.pipeline.from_guest(WEB.port, request, net.now) for _ in range(65)]
    assert outs == [[]] * 64 + [[Drop(R.HOLD_QUEUE_FULL, WEB.port, request[14:])]]


def test_request_over_the_miss_rate_is_dropped():
    net = Net(Limits(misses_per_s_port=1))
    requests = [arp_from(WEB, NOBODY[:3] + bytes((n,))) for n in (100, 101)]
    assert net.a.pipeline.from_guest(WEB.port, requests[0], net.now) == []
    assert net.a.pipeline.from_guest(WEB.port, requests[1], net.now) == [
        Drop(R.RESOLVE_RATE_PORT, WEB.port, requests[1][14:])
    ]


def test_request_whose_port_was_fenced_or_removed_while_it_waited_is_not_answered(net):
    for request in (arp_from(WEB, FAR.address), arp_from(APP, FAR.address)):
        net.a.pipeline.from_guest(WEB.port if request[6:12] == WEB.vmac else APP.port, request, net.now)
    net.a.put(WEB, PortState.FENCED)
    net.a.ports.remove(APP.port)
    net.settle()
    assert net.a.take() == [
        Drop(R.PORT_NOT_ACTIVE, WEB.port, arp_from(WEB, FAR.address)[14:]),
        Drop(R.PORT_UNKNOWN, 0, arp_from(APP, FAR.address)[14:]),
    ]


def test_peer_that_starts_here_meanwhile_is_answered_for(net):
    request = arp_from(WEB, NOBODY)
    assert net.a.pipeline.from_guest(WEB.port, request, net.now) == []
    net.a.discovery.activate(NOBODY, b"\x52\x54\x00\x15\x99\x35", 15, 0, None, net.now)
    net.settle()
    assert net.a.take() == [answer(WEB, b"\x52\x54\x00\x15\x99\x35", NOBODY)]


def test_packet_and_request_that_wait_for_one_peer_are_served_in_their_order(net):
    packet, request = ipv4(WEB.address, FAR.address), arp_from(WEB, FAR.address)
    net.a.pipeline.from_guest(WEB.port, from_guest(WEB, packet), net.now)
    net.a.pipeline.from_guest(WEB.port, request, net.now)
    net.settle()
    assert net.a.take() == [on_wire(HOST_A, HOST_B, packet), answer(WEB, FAR.vmac, FAR.address)]
