"""Addresses that move between endpoints: the newest gratuitous ARP of one that is allowed them wins, nothing else."""

from dataclasses import replace

import pytest
from pipeline_hosts import (
    APP,
    DB,
    FAR,
    HOST_A,
    HOST_B,
    HOST_C,
    LAN,
    LOG,
    PLAN,
    RMAC,
    ROUTER,
    WEB,
    Host,
    Net,
    arp_from,
    frame_of,
    from_guest,
    in_port,
    ipv4,
    on_wire,
)

from divhook.core import validate
from divhook.core.endpoint import Endpoint, PortState
from divhook.core.outputs import Drop, Output, ToGuest, ToWire
from divhook.core.reasons import DropReason as R
from divhook.core.shared import ANSWER_S, MOVES_BURST
from divhook.core.wire.arp import Arp
from divhook.core.wire.discovery import MessageType

SHARED, SECOND = PLAN.address(LAN, 200), PLAN.address(LAN, 201)
ONE, TWO, THREE = (replace(guest, allowed=(SHARED, SECOND)) for guest in (WEB, APP, FAR))


@pytest.fixture
def net() -> Net:
    """ONE and TWO on host A, THREE on host B may have it; nobody has. The router has asked them already."""
    net = Net()
    for host, guest in ((net.a, ONE), (net.a, TWO), (net.b, THREE)):
        host.ports.put(guest)
    net.settle()
    for host in net.hosts:
        host.take()
    net.log.clear()
    return net


def says(net: Net, host: Host, guest: Endpoint, operation: int = 1, address: bytes = SHARED) -> list[Output]:
    """Gratuitous ARP, as a request or a reply."""
    return net.sent(host, guest, arp_from(guest, address, address, operation))


def ends(out: list[Output]) -> list[R]:
    return [o.reason for o in out if isinstance(o, Drop)]


def reached(net: Net, host: Host, sender: Endpoint) -> list[Output]:
    """What becomes of a packet to the address."""
    return net.sent(host, sender, from_guest(sender, ipv4(sender.address or b"", SHARED)))


def from_shared(net: Net, host: Host, guest: Endpoint) -> list[Output]:
    return net.sent(host, guest, from_guest(guest, ipv4(SHARED, DB.address or b"")))


def holder(net: Net) -> list[str]:
    """Where it is active."""
    return [name for name, host in zip("ABC", net.hosts, strict=True) if host.discovery.claim(SHARED) is not None]


@pytest.mark.parametrize("operation", [1, 2])
def test_gratuitous_arp_takes_the_address_for_guests_here_and_everywhere(net: Net, operation: int) -> None:
    assert ends(says(net, net.a, ONE, operation)) == [R.CONSUMED]
    assert [m.type for m in net.log if m.source == HOST_A] == [MessageType.ANNOUNCE]
    packet = ipv4(DB.address or b"", SHARED)
    [here] = net.sent(net.a, DB, from_guest(DB, packet))
    assert isinstance(here, ToGuest)
    assert (here.port, here.frame[:12]) == (ONE.port, ONE.vmac + RMAC[LAN])
    packet = ipv4(FAR.address or b"", SHARED)
    assert net.sent(net.b, FAR, from_guest(FAR, packet)) == [on_wire(HOST_B, HOST_A, packet)]
    assert net.heard(net.a, frame_of(HOST_A, HOST_B, packet)) == [in_port(ONE, FAR.vmac, packet)]


def test_arp_for_it_is_answered_with_the_holders_mac_and_not_to_the_holder(net: Net) -> None:
    says(net, net.a, ONE)
    [answer, _] = net.sent(net.a, TWO, arp_from(TWO, SHARED))
    assert isinstance(answer, ToGuest)
    assert answer.frame[22:32] == ONE.vmac + SHARED
    [end] = net.sent(net.a, ONE, arp_from(ONE, SHARED, bytes(4)))
    assert isinstance(end, Drop)
    assert end.reason is R.CONSUMED


def test_packets_from_it_pass_at_the_port_that_holds_it_alone(net: Net) -> None:
    assert ends(from_shared(net, net.a, ONE)) == [R.SPOOF_IPV4]
    says(net, net.a, ONE)
    assert ends(from_shared(net, net.a, ONE)) == []
    assert ends(from_shared(net, net.a, TWO)) == [R.SPOOF_IPV4]
    assert ends(from_shared(net, net.b, THREE)) == [R.SPOOF_IPV4]


def test_the_newest_gratuitous_arp_wins_on_one_host(net: Net) -> None:
    says(net, net.a, ONE)
    first = net.a.discovery.claim(SHARED)
    says(net, net.a, TWO)
    claim = net.a.discovery.claim(SHARED)
    assert first is not None
    assert claim is not None
    assert claim.order > first.order
    assert claim.vmac == TWO.vmac
    assert [o.port for o in reached(net, net.a, DB) if isinstance(o, ToGuest)] == [TWO.port]
    assert ends(from_shared(net, net.a, ONE)) == [R.SPOOF_IPV4]


def test_the_newest_gratuitous_arp_wins_between_hosts_at_once_and_nobody_is_fenced(net: Net) -> None:
    for round_number in range(3):
        says(net, net.a, ONE)
        assert holder(net) == ["A"], round_number
        [sent] = reached(net, net.b, LOG)
        assert isinstance(sent, ToWire)
        assert sent.frame[:6] == HOST_A
        assert ends(from_shared(net, net.b, THREE)) == [R.SPOOF_IPV4]
        says(net, net.b, THREE)
        assert holder(net) == ["B"], round_number
        [sent] = reached(net, net.a, DB)
        assert isinstance(sent, ToWire)
        assert sent.frame[:6] == HOST_B
        assert ends(from_shared(net, net.a, ONE)) == [R.SPOOF_IPV4]
    assert not [e for host in net.hosts for e in host.events if type(e).__name__ == "Fenced"]


def test_who_has_it_already_says_so_without_a_new_claim(net: Net) -> None:
    says(net, net.a, ONE)
    claim = net.a.discovery.claim(SHARED)
    net.log.clear()
    assert ends(says(net, net.a, ONE)) == [R.CONSUMED]
    assert net.a.discovery.claim(SHARED) == claim
    assert net.log == []


def answer(net: Net, guest: Endpoint) -> list[R]:
    reply = Arp(2, guest.vmac, SHARED, RMAC[LAN], ROUTER[LAN])
    return ends(net.sent(net.a, guest, frame_of(RMAC[LAN], guest.vmac, reply.emit(), 0x0806)))


def test_other_arp_from_it_takes_nothing(net: Net) -> None:
    net.run(ANSWER_S + 1)
    for operation in (1, 2):
        for target in (DB.address, FAR.address, ROUTER[LAN]):
            net.sent(net.a, ONE, arp_from(ONE, target or b"", SHARED, operation))
    assert answer(net, ONE) == [R.CONSUMED]
    assert holder(net) == []


def test_who_is_not_allowed_it_cannot_take_it_nor_a_neighbours_own(net: Net) -> None:
    assert ends(says(net, net.b, replace(LOG, allowed=()))) == [R.SPOOF_ARP_SPA]
    assert ends(says(net, net.a, ONE, address=APP.address or b"")) == [R.SPOOF_ARP_SPA]
    assert ends(says(net, net.a, ONE, address=ROUTER[LAN])) == [R.SPOOF_ARP_SPA]
    forged = frame_of(b"\xff" * 6, ONE.vmac, Arp(1, TWO.vmac, SHARED, bytes(6), SHARED).emit(), 0x0806)
    assert ends(net.sent(net.a, ONE, forged)) == [R.SPOOF_ARP_SHA]
    assert holder(net) == []


def test_one_port_cannot_move_addresses_without_end(net: Net) -> None:
    moves = [ends(says(net, net.a, guest)) for _ in range(int(MOVES_BURST) + 3) for guest in (ONE, TWO)]
    assert moves[: 2 * int(MOVES_BURST)] == [[R.CONSUMED]] * 2 * int(MOVES_BURST)
    assert moves[2 * int(MOVES_BURST) :] == [[R.RESOLVE_RATE_PORT], [R.CONSUMED]] * 3, "the last one keeps it"
    net.run(1)
    assert ends(says(net, net.a, ONE)) == [R.CONSUMED]


@pytest.mark.parametrize("state", [PortState.FENCED, PortState.INCOMING, None])
def test_a_port_that_is_not_active_gives_it_up_and_others_hear_so(net: Net, state: PortState | None) -> None:
    says(net, net.a, ONE)
    net.know(net.b, LOG, SHARED)
    net.log.clear()
    if state is None:
        net.a.ports.remove(ONE.port)
    else:
        net.a.put(ONE, state)
    net.settle()
    net.settle()
    assert holder(net) == []
    assert MessageType.GONE in [m.type for m in net.log if m.tpa == SHARED]
    assert not [o for o in reached(net, net.a, DB) if isinstance(o, ToGuest) and o.port == ONE.port]
    says(net, net.b, THREE)
    assert holder(net) == ["B"]


def test_an_address_that_is_allowed_no_more_is_given_up(net: Net) -> None:
    says(net, net.a, ONE)
    net.a.ports.put(replace(ONE, allowed=(SECOND,)))
    net.settle()
    assert holder(net) == []
    assert ends(from_shared(net, net.a, ONE)) == [R.SPOOF_IPV4]


def test_a_port_that_becomes_active_is_asked_for_what_it_may_hold_and_its_answer_takes_it(net: Net) -> None:
    net.a.ports.remove(ONE.port)
    net.settle()
    net.a.ports.put(ONE)
    net.settle()
    asked = [
        ToGuest(ONE.port, frame_of(ONE.vmac, RMAC[LAN], Arp(1, RMAC[LAN], ROUTER[LAN], bytes(6), a).emit(), 0x0806))
        for a in (SHARED, SECOND)
    ]
    assert net.a.take() == asked
    assert answer(net, ONE) == [R.CONSUMED]
    assert holder(net) == ["A"]


def test_an_answer_takes_nothing_from_whom_this_host_knows_to_hold_it(net: Net) -> None:
    net.a.ports.remove(ONE.port)
    says(net, net.b, THREE)
    net.know(net.a, DB, SHARED)
    net.a.ports.put(ONE)
    net.settle()
    assert answer(net, ONE) == [R.CONSUMED]
    assert holder(net) == ["B"]


def test_a_claim_that_was_missed_is_made_good_by_a_question(net: Net) -> None:
    """The wire is cut while the address moves: both think they have it. The newer one wins once they hear."""
    says(net, net.a, ONE)
    net.cut = {HOST_A}
    net.run(0.1)
    says(net, net.b, THREE)
    assert holder(net) == ["A", "B"]
    net.run(5)
    net.cut = set()
    for host in net.hosts:
        host.discovery.carrier_up(net.now)
    net.run(5)
    assert holder(net) == ["B"]
    assert net.c.discovery.claim(SHARED) is None
    assert HOST_C not in {m.source for m in net.log if m.type is MessageType.ANNOUNCE}


def test_validation_alone_knows_what_is_held() -> None:
    frame = from_guest(ONE, ipv4(SHARED, DB.address or b""))
    assert validate.from_guest(ONE, ROUTER[LAN], frame) is R.SPOOF_IPV4
    held = replace(ONE, held=(SHARED,))
    assert isinstance(validate.from_guest(held, ROUTER[LAN], frame), validate.Divert)
    assert isinstance(validate.from_guest(ONE, ROUTER[LAN], arp_from(ONE, SHARED, SHARED)), validate.Divert)
