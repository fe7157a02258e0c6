"""PREPARE: hosts of talkers are told where an endpoint is about to move, and take frames of it from there at once."""

from dataclasses import replace

import pytest
from discovery_hosts import DB, HOST_A, HOST_B, HOST_C, WEB, Wire

from divhook.core.discovery import NeighbourChanged, Outcome
from divhook.core.reasons import DropReason
from divhook.core.wire.discovery import Message, MessageType


@pytest.fixture
def wire() -> Wire:
    """WEB on A talks to DB on B, and is about to move to C, which is a peer of both."""
    wire = Wire(HOST_A, HOST_B, HOST_C)
    wire.start_web(HOST_A)
    wire.start_db(HOST_B)
    wire.hosts[HOST_B].resolve(WEB, 1, DB, wire.now)
    wire.run(1)
    wire.log.clear()
    return wire


def passes(wire: Wire, host: bytes, pmac: bytes, source: bytes = WEB) -> object:
    return wire.hosts[host].check_source(pmac, source, DB, wire.now)


def prepare(wire: Wire) -> None:
    wire.hosts[HOST_A].leaving(WEB, HOST_C, [HOST_B], wire.now)
    wire.run(1)


def test_talkers_host_takes_frames_from_the_next_place_and_sends_to_the_former(wire: Wire) -> None:
    assert passes(wire, HOST_B, HOST_C) is not Outcome.DELIVER
    wire.run(1)
    prepare(wire)
    assert passes(wire, HOST_B, HOST_C) is Outcome.DELIVER
    assert passes(wire, HOST_B, HOST_A) is Outcome.DELIVER
    assert wire.hosts[HOST_B].next_of(WEB) == HOST_C
    found = wire.hosts[HOST_B].resolve(WEB, 1, DB, wire.now)
    assert found.claim.host == HOST_A


def test_it_is_asked_again_until_the_talkers_host_has_heard_and_no_more(wire: Wire) -> None:
    said = [m.type for m in prepared(wire, answered=True)]
    assert said == [MessageType.PREPARE]
    assert [m.type for m in prepared(wire, answered=False)] == [MessageType.PREPARE] * 3


def prepared(wire: Wire, answered: bool) -> list[Message]:
    """What A says within a second."""
    a, b = wire.hosts[HOST_A], wire.hosts[HOST_B]
    a.messages_to_send()
    a.leaving(WEB, HOST_C, [HOST_B], wire.now)
    found = []
    for tick in range(10):
        now = wire.now + tick / 10
        a.on_timer(now)
        for message in a.messages_to_send():
            found.append(message)
            if answered:
                b.receive(message, now)
                for answer in b.messages_to_send():
                    a.receive(answer, now)
    return found


def test_the_next_place_counts_for_a_minute_and_the_cache_is_told(wire: Wire) -> None:
    prepare(wire)
    assert [e.address for e in wire.of(HOST_B, NeighbourChanged)][-1] == WEB
    wire.log.clear()
    wire.run(61)
    assert wire.hosts[HOST_B].next_of(WEB) is None
    assert WEB in [e.address for e in wire.of(HOST_B, NeighbourChanged)]
    assert passes(wire, HOST_B, HOST_C) is not Outcome.DELIVER


def test_a_new_claim_ends_it(wire: Wire) -> None:
    prepare(wire)
    wire.start_web(HOST_A)
    wire.run(1)
    assert wire.hosts[HOST_B].next_of(WEB) is None


def test_frames_of_one_that_leaves_come_from_where_it_goes_and_from_nowhere_else(wire: Wire) -> None:
    """To another guest of the host that it leaves."""
    assert passes(wire, HOST_A, HOST_C) is DropReason.SPOOF_LOCAL
    prepare(wire)
    assert passes(wire, HOST_A, HOST_C) is Outcome.DELIVER
    assert passes(wire, HOST_A, HOST_B) is DropReason.SPOOF_LOCAL
    wire.hosts[HOST_A].leaving(WEB, None, (), wire.now)
    assert passes(wire, HOST_A, HOST_C) is DropReason.SPOOF_LOCAL


def test_only_the_holder_says_where_its_endpoint_moves(wire: Wire) -> None:
    b = wire.hosts[HOST_B]
    claim = next(c for c in wire.hosts[HOST_A].claims() if c.address == WEB)
    good = Message(MessageType.PREPARE, HOST_A, HOST_B, WEB, WEB, claim, 5, payload=HOST_C)
    lies = [
        replace(good, source=HOST_C),  # in another's name
        replace(good, claim=replace(claim, stamp=claim.stamp - 1)),  # of before
        replace(good, claim=None),
        replace(good, payload=HOST_C[:5]),
        replace(good, payload=b"\x01" + HOST_C[1:]),
        replace(good, payload=HOST_B),
        replace(good, claim=replace(claim, address=DB), tpa=DB),
    ]
    for lie in lies:
        b.receive(lie, wire.now)
        assert b.next_of(WEB) is None, lie
        assert b.next_of(DB) is None, lie
    b.receive(good, wire.now)
    assert b.next_of(WEB) == HOST_C


def test_what_does_not_run_here_is_not_leaving(wire: Wire) -> None:
    wire.hosts[HOST_B].leaving(WEB, HOST_C, [HOST_A], wire.now)
    assert wire.hosts[HOST_B].next_of(WEB) is None
