from itertools import product

import pytest
from discovery_hosts import DB, DB_MAC, HOST_A, HOST_B, HOST_C, NOBODY, PLAN, WALL_US, WEB, Wire, announce, claim_of

from divhook.core.addressing import SubnetId, parse_address
from divhook.core.discovery import (
    Limits,
    NeighbourState,
    Outcome,
    SourceConfirmed,
    SourceRefused,
    TentativeObjected,
    UnknownHost,
)
from divhook.core.discovery.source_check import ROWS, Action, Facts, decide
from divhook.core.reasons import DropReason
from divhook.core.wire.discovery import Message, MessageType


@pytest.fixture
def wire() -> Wire:
    """WEB on A, DB on B, nothing on C; all hosts have heard each other, nobody has talked."""
    wire = Wire(HOST_A, HOST_B, HOST_C)
    wire.start_web(HOST_A)
    wire.start_db(HOST_B)
    wire.hosts[HOST_B].receive(Message(MessageType.CENSUS, HOST_C, HOST_B, bytes(4), NOBODY), wire.now)
    wire.run(1)
    wire.log.clear()
    return wire


def check(wire: Wire, pmac: bytes, source: bytes = WEB, held: object = None):
    """A frame for DB arrives at B."""
    return wire.hosts[HOST_B].check_source(pmac, source, DB, wire.now, held)


def test_every_combination_of_facts_has_exactly_one_row_and_every_row_is_reached():
    rows = {decide(Facts(*bits)).case for bits in product((False, True), repeat=5)}
    assert rows == {row.case for row in ROWS}


def test_nothing_is_delivered_but_from_the_host_of_a_usable_entry():
    for bits in product((False, True), repeat=5):
        facts = Facts(*bits)
        assert (decide(facts).action is Action.DELIVER) == (facts.leaving or (facts.holder and not facts.local))


def test_peer_of_the_agents_former_life_is_asked_and_not_refused():
    wire = Wire(HOST_A, HOST_B)
    wire.start_web(HOST_A)
    wire.start_db(HOST_B)
    wire.run(1)
    wire.hosts[HOST_B].forget_peer(HOST_A)
    wire.hosts[HOST_B].neighbours.remove(WEB)
    assert check(wire, HOST_A) is DropReason.UNKNOWN_HOST
    wire.hosts[HOST_B].known_peer(HOST_A)
    assert check(wire, HOST_A, held="frame") is Outcome.PENDING
    wire.run(1)
    assert wire.of(HOST_B, SourceConfirmed) == [SourceConfirmed(WEB, HOST_A, ("frame",))]


def test_source_that_is_active_here_is_spoofed(wire):
    assert check(wire, HOST_A, DB, "frame") is DropReason.SPOOF_LOCAL
    assert wire.hosts[HOST_B].messages_to_send() == []


def test_source_that_is_fenced_here_is_spoofed(wire):
    wire.start_web(HOST_B)
    wire.settle()
    wire.start_web(HOST_A)
    wire.settle()
    assert check(wire, HOST_A, WEB, "frame") is DropReason.SPOOF_LOCAL


def test_source_that_is_only_tried_here_is_asked_about_like_any_other(wire):
    """Its holder must not be cut off from our guests because we try to give its address to another."""
    wire.cut = {HOST_A}
    wire.hosts[HOST_B].tentative(WEB, DB_MAC, 77, 0, None, wire.now)
    wire.settle()
    wire.cut = set()
    assert check(wire, HOST_A, WEB, "frame") is Outcome.PENDING
    wire.run(1)
    assert wire.of(HOST_B, SourceConfirmed) == [SourceConfirmed(WEB, HOST_A, ("frame",))]
    assert [type(e) for e in wire.of(HOST_B, TentativeObjected)] == [TentativeObjected]


def test_first_frame_waits_for_the_senders_answer_and_is_delivered_in_order(wire):
    assert check(wire, HOST_A, WEB, 1) is Outcome.PENDING
    assert check(wire, HOST_A, WEB, 2) is Outcome.PENDING
    wire.settle()
    probe, reply = wire.log
    assert (probe.type, probe.destination, probe.spa, probe.tpa) == (MessageType.PROBE, HOST_A, DB, WEB)
    assert reply.type is MessageType.REPLY
    assert wire.of(HOST_B, SourceConfirmed) == [SourceConfirmed(WEB, HOST_A, (1, 2))]
    assert check(wire, HOST_A, WEB, 3) is Outcome.DELIVER
    assert wire.hosts[HOST_A].neighbours.get(DB).claim.host == HOST_B


def test_source_that_the_sender_does_not_hold_is_unverified(wire):
    assert check(wire, HOST_C, WEB, "frame") is Outcome.PENDING
    wire.settle()
    assert wire.of(HOST_B, SourceRefused) == [SourceRefused(WEB, HOST_C, ("frame",), DropReason.UNVERIFIED)]
    assert wire.hosts[HOST_B].neighbours.get(WEB) is None


def test_silent_sender_is_unverified_after_three_probes(wire):
    wire.cut = {HOST_A}
    assert check(wire, HOST_A, WEB, "frame") is Outcome.PENDING
    wire.run(1)
    assert [m.type for m in wire.log] == [MessageType.PROBE] * 3
    assert wire.of(HOST_B, SourceRefused) == [SourceRefused(WEB, HOST_A, ("frame",), DropReason.UNVERIFIED)]


def test_known_source_from_another_host_is_probed_and_refused_with_the_entry_unchanged(wire):
    check(wire, HOST_A)
    wire.settle()
    before = wire.hosts[HOST_B].neighbours.get(WEB).claim
    assert check(wire, HOST_C, WEB, "forged") is Outcome.PENDING
    wire.settle()
    assert wire.of(HOST_B, SourceRefused) == [SourceRefused(WEB, HOST_C, ("forged",), DropReason.SPOOF_SOURCE)]
    assert wire.hosts[HOST_B].neighbours.get(WEB).claim == before
    assert check(wire, HOST_A) is Outcome.DELIVER


def test_known_source_from_its_new_host_is_learned_and_delivered(wire):
    check(wire, HOST_A)
    wire.settle()
    wire.hosts[HOST_A].withdraw(WEB, wire.now, gone=False)
    new = wire.start_web(HOST_C)
    wire.hosts[HOST_C].messages_to_send()  # the announcement is lost
    assert check(wire, HOST_C, WEB, "frame") is Outcome.PENDING
    wire.settle()
    assert wire.of(HOST_B, SourceConfirmed)[-1] == SourceConfirmed(WEB, HOST_C, ("frame",))
    assert wire.hosts[HOST_B].neighbours.get(WEB).claim == new


def test_announcement_of_the_new_host_releases_what_waits_for_it(wire):
    check(wire, HOST_A)
    wire.settle()
    check(wire, HOST_C, WEB, "frame")
    new = claim_of(HOST_C, WALL_US * 2)
    wire.hosts[HOST_B].receive(announce(new), wire.now)
    assert SourceConfirmed(WEB, HOST_C, ("frame",)) in wire.hosts[HOST_B].events()


def test_answer_to_another_question_confirms_nothing(wire):
    check(wire, HOST_C, WEB, "frame")
    probe = wire.hosts[HOST_B].messages_to_send()[0]
    claim = claim_of(HOST_C, 1)
    for source, nonce, said in ((HOST_C, probe.nonce ^ 2, claim), (HOST_A, probe.nonce, claim_of(HOST_A, 1))):
        wire.hosts[HOST_B].receive(Message(MessageType.REPLY, source, HOST_B, DB, WEB, said, nonce), wire.now)
    assert wire.hosts[HOST_B].neighbours.get(WEB) is None
    assert [e for e in wire.hosts[HOST_B].events() if isinstance(e, SourceConfirmed)] == []


def test_stale_source_is_delivered_and_refreshed(wire):
    check(wire, HOST_A)
    wire.settle()
    wire.run(61)
    wire.log.clear()
    assert wire.hosts[HOST_B].neighbours.get(WEB).state is NeighbourState.STALE
    assert check(wire, HOST_A) is Outcome.DELIVER
    wire.settle()
    assert [m.type for m in wire.log] == [MessageType.PROBE, MessageType.REPLY]


def test_stranger_is_dropped_unheld_and_challenged_once_a_second():
    wire = Wire(HOST_B)
    wire.start_db(HOST_B)
    answers = []
    for _ in range(3):
        answers.append(check(wire, HOST_C, WEB, "frame"))
        wire.run(0.5)
    assert answers == [DropReason.UNKNOWN_HOST] * 3
    assert wire.of(HOST_B, UnknownHost) == [UnknownHost(HOST_C)] * 2
    assert wire.sent(MessageType.PROBE) == []


def test_host_that_lost_its_key_is_a_stranger_again(wire):
    wire.hosts[HOST_B].forget_peer(HOST_A)
    assert check(wire, HOST_A, WEB, "frame") is DropReason.UNKNOWN_HOST


def test_challenges_to_many_strangers_are_limited_in_total():
    wire = Wire(HOST_B)
    for n in range(200):
        check(wire, bytes((2, 0, 0, 0, 7, n)))
    wire.settle()
    assert len(wire.of(HOST_B, UnknownHost)) == 50


def test_one_probe_per_address_and_host_in_100_ms(wire):
    check(wire, HOST_C)
    wire.settle()
    assert check(wire, HOST_C, WEB, "too soon") is DropReason.UNVERIFIED
    wire.run(0.11)
    assert check(wire, HOST_C, WEB, "later") is Outcome.PENDING


def test_addresses_that_no_endpoint_may_hold_are_refused_without_a_question(wire):
    for text in ("10.3.7.0", "10.3.7.1", "10.3.7.255", "192.0.2.7"):
        assert check(wire, HOST_A, parse_address(text), "frame") is DropReason.UNVERIFIED
    assert wire.hosts[HOST_B].messages_to_send() == []


def test_pairs_in_question_frames_held_and_probes_are_bounded():
    limits = Limits(source_checks=5, hold_per_destination=2, hold_total=7, source_probes_per_s=8)
    wire = Wire(HOST_B, limits=limits)
    host = wire.hosts[HOST_B]
    host.receive(announce(claim_of(HOST_C, 9)), wire.now)
    sources = [PLAN.address(SubnetId(3, 7), n) for n in range(10, 30)]
    first = [check(wire, HOST_C, source, "frame") for source in sources[:6]]
    assert first == [Outcome.PENDING] * 5 + [DropReason.HOLD_TABLE_FULL]
    assert [check(wire, HOST_C, sources[0], n) for n in range(2)] == [Outcome.PENDING, DropReason.HOLD_QUEUE_FULL]
    assert [check(wire, HOST_C, s, "2nd") for s in sources[1:3]] == [Outcome.PENDING, DropReason.HOLD_TABLE_FULL]
    wire.run(0.61)
    assert sum(len(e.items) for e in wire.of(HOST_B, SourceRefused)) == 7
    wire.now -= 0.5  # before the bucket has refilled for long
    answers = [check(wire, HOST_C, source) for source in sources[6:12]]
    assert answers.count(Outcome.PENDING) <= 5


def test_probe_rate_is_bounded_for_forged_sources_of_a_known_peer():
    wire = Wire(HOST_B, limits=Limits(source_probes_per_s=8))
    wire.hosts[HOST_B].receive(announce(claim_of(HOST_C, 9)), wire.now)
    answers = [check(wire, HOST_C, PLAN.address(SubnetId(3, 7), n), "frame") for n in range(10, 30)]
    assert answers == [Outcome.PENDING] * 8 + [DropReason.UNVERIFIED] * 12


def test_peers_are_remembered_up_to_a_bound_the_one_silent_longest_is_forgotten():
    wire = Wire(HOST_B, limits=Limits(peers=2))
    for host in (HOST_A, HOST_C, HOST_A, b"\x52\x54\x00\x0d\x44\x04"):
        wire.hosts[HOST_B].receive(announce(claim_of(host, 9)), wire.now)
    assert check(wire, HOST_C) is DropReason.UNKNOWN_HOST
    assert check(wire, HOST_A) is Outcome.PENDING
