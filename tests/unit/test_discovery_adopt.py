"""A restarted agent takes its neighbours back from what the kernel still knows."""

import pytest
from discovery_hosts import DB, HOST_A, HOST_B, HOST_C, WEB, Wire, announce, claim_of

from divhook.core.discovery import Found, NeighbourState, Outcome, Released
from divhook.core.reasons import DropReason
from divhook.core.wire.discovery import Claim, MessageType

PORT = 7
LIFETIME_S = 60.0


@pytest.fixture
def wire() -> Wire:
    """WEB runs on A; B's agent is new, and has not reconciled."""
    wire = Wire(HOST_A, HOST_B)
    wire.start_web(HOST_A)
    wire.run(1)
    wire.boot(HOST_B, ready=False)
    wire.log.clear()
    return wire


def web(wire: Wire) -> Claim:
    [claim] = wire.hosts[HOST_A].claims()
    return claim


def test_an_adopted_neighbour_is_usable_at_once_and_asked_within_a_lifetime(wire: Wire) -> None:
    new = wire.hosts[HOST_B]
    assert new.adopt(web(wire), wire.now)
    new.ready(wire.now)
    assert new.resolve(WEB, PORT, DB, wire.now) == Found(web(wire), NeighbourState.REACHABLE)
    wire.settle()
    assert wire.log == []
    wire.run(LIFETIME_S + 1)
    asked = [m for m in wire.log if m.source == HOST_B]
    assert [(m.type, m.destination, m.tpa) for m in asked][:1] == [(MessageType.PROBE, HOST_A, WEB)]


def test_frames_that_asked_before_the_adoption_are_released_by_it(wire: Wire) -> None:
    new = wire.hosts[HOST_B]
    assert new.resolve(WEB, PORT, DB, wire.now, "frame") is Outcome.PENDING
    assert new.adopt(web(wire), wire.now)
    assert [event for event in new.events() if isinstance(event, Released)] == [Released(WEB, web(wire), ("frame",))]


def test_a_better_claim_that_is_known_already_stays(wire: Wire) -> None:
    new = wire.hosts[HOST_B]
    new.adopt(web(wire), wire.now)
    better = claim_of(HOST_C, web(wire).stamp + 9)
    new.ready(wire.now)
    wire.deliver(announce(better))
    assert new.adopt(web(wire), wire.now)
    assert new.neighbours.get(WEB).claim == better  # type: ignore[union-attr]


def test_a_claim_that_its_host_gave_up_is_not_adopted(wire: Wire) -> None:
    new = wire.hosts[HOST_B]
    new.adopt(web(wire), wire.now)
    new.ready(wire.now)
    wire.hosts[HOST_A].withdraw(WEB, wire.now)
    wire.settle()
    assert not new.adopt(claim_of(HOST_A, 7), wire.now)
    assert new.resolve(WEB, PORT, DB, wire.now) in (Outcome.PENDING, DropReason.NEGATIVE_CACHED)


def test_what_this_host_claims_itself_is_not_adopted(wire: Wire) -> None:
    new = wire.hosts[HOST_B]
    assert not new.adopt(claim_of(HOST_B, 7), wire.now)
    new.activate(WEB, web(wire).vmac, web(wire).guest_id, 0, None, wire.now)
    assert not new.adopt(web(wire), wire.now)
