import pytest
from discovery_hosts import (
    DB,
    DB_MAC,
    HOST_A,
    HOST_B,
    HOST_C,
    NOBODY,
    PLAN,
    WEB,
    Wire,
    announce,
    claim_of,
)

from divhook.core.addressing import ALL_HOSTS_GROUP, SubnetId, group_mac
from divhook.core.discovery import Found, Limits, NeighbourState, Outcome, Released, Unreachable
from divhook.core.reasons import DropReason
from divhook.core.wire.discovery import Message, MessageType

PORT = 7
SUBNET = SubnetId(3, 7)


@pytest.fixture
def wire() -> Wire:
    """WEB runs on A, DB on B; their first announcements are over and nobody has talked yet."""
    wire = Wire(HOST_A, HOST_B)
    wire.start_web(HOST_A)
    wire.start_db(HOST_B)
    wire.run(1)
    wire.log.clear()
    return wire


def ask(wire: Wire, held=None):
    return wire.hosts[HOST_B].resolve(WEB, PORT, DB, wire.now, held)


def entry(wire: Wire, pmac=HOST_B, address=WEB):
    return wire.hosts[pmac].neighbours.get(address)


def test_first_frame_asks_the_group_of_the_targets_subnet_and_is_released_by_the_reply(wire):
    assert ask(wire, "frame 1") is Outcome.PENDING
    assert ask(wire, "frame 2") is Outcome.PENDING
    wire.settle()
    request, reply = wire.log
    web = wire.hosts[HOST_A].claims()[0]
    db = wire.hosts[HOST_B].claims()[0]
    assert request == Message(MessageType.REQUEST, HOST_B, group_mac(SUBNET), DB, WEB, db, nonce=request.nonce)
    assert reply == Message(MessageType.REPLY, HOST_A, HOST_B, DB, WEB, web, nonce=request.nonce)
    assert request.nonce != 0
    assert wire.of(HOST_B, Released) == [Released(WEB, web, ("frame 1", "frame 2"))]
    assert ask(wire, "frame 3") == Found(web, NeighbourState.REACHABLE)


def test_responder_knows_the_asker_before_it_replies(wire):
    ask(wire)
    wire.settle()
    found = wire.hosts[HOST_A].resolve(DB, PORT, WEB, wire.now)
    assert (found.claim.host, found.claim.vmac) == (HOST_B, DB_MAC)


def test_waiting_without_a_frame_is_released_with_no_items(wire):
    ask(wire, None)
    wire.settle()
    assert [e.items for e in wire.of(HOST_B, Released)] == [()]


def test_lost_request_is_asked_again_and_frames_keep_their_order(wire):
    wire.cut = {HOST_A}
    for n in range(5):
        ask(wire, n)
    wire.run(0.3)
    wire.cut = set()
    wire.run(0.2)
    assert len(wire.sent(MessageType.REQUEST)) == 3
    assert [e.items for e in wire.of(HOST_B, Released)] == [(0, 1, 2, 3, 4)]


def test_address_of_nobody_is_asked_for_three_times_then_unreachable_then_negative(wire):
    host = wire.hosts[HOST_B]
    assert host.resolve(NOBODY, PORT, DB, wire.now, "frame") is Outcome.PENDING
    wire.run(0.599)
    assert wire.of(HOST_B, Unreachable) == []
    wire.run(0.002)
    assert len(wire.sent(MessageType.REQUEST)) == 3
    assert wire.of(HOST_B, Unreachable) == [Unreachable(NOBODY, ("frame",), DropReason.NO_SUCH_ENDPOINT)]
    assert host.resolve(NOBODY, PORT, DB, wire.now, "next") is DropReason.NEGATIVE_CACHED


def test_negative_time_doubles_from_1_to_30_seconds_and_is_then_forgotten(wire):
    host = wire.hosts[HOST_B]
    waits = []
    for _ in range(7):
        assert host.resolve(NOBODY, PORT, DB, wire.now) is Outcome.PENDING
        wire.run(0.61)
        waits.append(entry(wire, address=NOBODY).negative_s)
        wire.now = entry(wire, address=NOBODY).retry_at_s
    assert waits == [1, 2, 4, 8, 16, 30, 30]
    wire.run(61)
    assert entry(wire, address=NOBODY) is None


def test_network_broadcast_and_router_addresses_are_never_asked_for(wire):
    for host_number in (0, 1, 255):
        address = PLAN.address(SUBNET, host_number)
        assert wire.hosts[HOST_B].resolve(address, PORT, DB, wire.now) is DropReason.NO_SUCH_ENDPOINT
    assert wire.hosts[HOST_B].messages_to_send() == []


def test_entry_not_in_use_becomes_stale_without_a_frame_and_is_still_usable(wire):
    ask(wire)
    wire.settle()
    wire.log.clear()
    wire.run(61)
    assert entry(wire).state is NeighbourState.STALE
    assert wire.log == []
    assert ask(wire).claim.host == HOST_A


def test_use_of_a_stale_entry_probes_its_host_by_unicast(wire):
    ask(wire)
    wire.settle()
    wire.run(61)
    wire.log.clear()
    ask(wire)
    assert entry(wire).state is NeighbourState.PROBE
    wire.settle()
    assert [(m.type, m.source, m.destination) for m in wire.log] == [
        (MessageType.PROBE, HOST_B, HOST_A),
        (MessageType.REPLY, HOST_A, HOST_B),
    ]
    assert entry(wire).state is NeighbourState.REACHABLE


def test_entry_in_use_is_refreshed_when_its_lifetime_ends(wire):
    ask(wire)
    wire.settle()
    wire.run(10)
    wire.hosts[HOST_B].used_elsewhere = lambda address: address == WEB
    wire.log.clear()
    wire.run(51)
    assert [m.type for m in wire.log] == [MessageType.PROBE, MessageType.REPLY]
    assert entry(wire).state is NeighbourState.REACHABLE


def test_silent_host_fails_after_three_probes_in_six_seconds_and_the_next_frame_asks_the_group(wire):
    ask(wire)
    wire.settle()
    wire.run(61)
    wire.log.clear()
    wire.cut = {HOST_A}
    ask(wire)
    wire.run(5.9)
    assert entry(wire).state is NeighbourState.PROBE
    wire.run(0.2)
    assert [m.type for m in wire.log] == [MessageType.PROBE] * 3
    assert entry(wire).state is NeighbourState.FAILED
    assert ask(wire) is Outcome.PENDING
    assert wire.hosts[HOST_B].messages_to_send()[0].type is MessageType.REQUEST


@pytest.mark.parametrize("by", ["agent", "cache"])
def test_silent_host_whose_frames_still_come_is_believed_until_they_end(wire, by):
    ask(wire)
    wire.settle()
    wire.cut = {HOST_A}
    heard = wire.hosts[HOST_B]
    heard.used_elsewhere = lambda address: True
    for _ in range(300):
        heard.heard_elsewhere = lambda address: by == "cache"
        if by == "agent":
            assert heard.check_source(HOST_A, WEB, DB, wire.now) is Outcome.DELIVER
        wire.run(1)
    assert entry(wire).found is not None
    heard.heard_elsewhere = lambda address: False
    wire.run(68)
    assert entry(wire).state is NeighbourState.FAILED


def test_frames_held_per_destination_are_bounded(wire):
    wire.cut = {HOST_A}
    outcomes = [ask(wire, n) for n in range(66)]
    assert outcomes == [Outcome.PENDING] * 64 + [DropReason.HOLD_QUEUE_FULL] * 2
    wire.run(1)
    assert wire.of(HOST_B, Unreachable) == [Unreachable(WEB, tuple(range(64)), DropReason.NO_SUCH_ENDPOINT)]
    wire.now += 5
    assert ask(wire, "again") is Outcome.PENDING


def test_frames_held_in_total_are_bounded():
    wire = Wire(HOST_A, limits=Limits(hold_total=3))
    host = wire.hosts[HOST_A]
    targets = [PLAN.address(SUBNET, n) for n in range(10, 14)]
    outcomes = [host.resolve(t, PORT, DB, wire.now, "frame") for t in targets]
    assert outcomes == [Outcome.PENDING] * 3 + [DropReason.HOLD_TABLE_FULL]


def test_misses_are_limited_per_port_and_per_host():
    wire = Wire(HOST_A)
    host = wire.hosts[HOST_A]

    def scan(port: int, first: int) -> list:
        return [host.resolve(PLAN.address(SUBNET, n), port, DB, wire.now) for n in range(first, first + 25)]

    assert scan(1, 10) == [Outcome.PENDING] * 20 + [DropReason.RESOLVE_RATE_PORT] * 5
    assert scan(2, 40) == [Outcome.PENDING] * 20 + [DropReason.RESOLVE_RATE_PORT] * 5
    assert scan(3, 70) == [Outcome.PENDING] * 10 + [DropReason.RESOLVE_RATE_HOST] * 15
    wire.now += 0.1
    assert scan(1, 100).count(Outcome.PENDING) == 2


def test_full_neighbour_table_evicts_the_least_recently_used_entry_and_gives_its_frames_back():
    wire = Wire(HOST_A, limits=Limits(neighbours=3))
    host = wire.hosts[HOST_A]
    first, *others = [PLAN.address(SUBNET, n) for n in range(10, 14)]
    host.resolve(first, PORT, DB, wire.now, "frame")
    for address in others:
        host.resolve(address, PORT, DB, wire.now)
    wire.settle()
    assert [e.address for e in host.neighbours] == others
    assert wire.of(HOST_A, Unreachable) == [Unreachable(first, ("frame",), DropReason.HOLD_TABLE_FULL)]


def test_announcement_of_an_address_that_nobody_here_asked_for_makes_no_entry(wire):
    wire.hosts[HOST_B].receive(announce(claim_of(HOST_A, 50, NOBODY)), wire.now)
    assert entry(wire, address=NOBODY) is None


def test_higher_announcement_replaces_the_entry_and_a_lower_one_is_answered_with_the_higher(wire):
    ask(wire)
    wire.settle()
    low = wire.hosts[HOST_A].claims()[0]
    high = claim_of(HOST_C, low.stamp + 1000)
    host = wire.hosts[HOST_B]
    host.receive(announce(high), wire.now)
    assert entry(wire).claim == high
    host.receive(announce(low), wire.now)
    assert entry(wire).claim == high
    assert host.messages_to_send() == [Message(MessageType.STALE, HOST_B, HOST_A, bytes(4), WEB, high)]


def test_reply_in_another_hosts_name_is_ignored(wire):
    ask(wire)
    request = wire.hosts[HOST_B].messages_to_send()[0]
    forged = Message(MessageType.REPLY, HOST_C, HOST_B, DB, WEB, claim_of(HOST_A, 1 << 60), request.nonce)
    wire.hosts[HOST_B].receive(forged, wire.now)
    assert entry(wire).state is NeighbourState.INCOMPLETE


def test_claim_beyond_the_end_of_the_clock_is_ignored(wire):
    wire.hosts[HOST_A].receive(announce(claim_of(HOST_C, 1 << 62)), wire.now)
    assert wire.hosts[HOST_A].highest_seen_stamp < 1 << 62
    wire.settle()
    assert wire.log == []


def test_gone_from_the_host_fails_the_entry_and_a_late_announcement_does_not_revive_it(wire):
    ask(wire)
    wire.settle()
    late = announce(wire.hosts[HOST_A].claims()[0])
    wire.hosts[HOST_A].withdraw(WEB, wire.now)
    wire.run(1)
    gone = wire.sent(MessageType.GONE)
    assert [m.destination for m in gone] == [ALL_HOSTS_GROUP] * 3
    assert entry(wire).state is NeighbourState.FAILED
    wire.hosts[HOST_B].receive(late, wire.now)
    assert entry(wire).state is NeighbourState.FAILED


def test_gone_from_another_host_changes_nothing(wire):
    ask(wire)
    wire.settle()
    message = Message(MessageType.GONE, HOST_C, HOST_B, bytes(4), WEB, claim_of(HOST_C, 1 << 60))
    wire.hosts[HOST_B].receive(message, wire.now)
    assert entry(wire).state is NeighbourState.REACHABLE


def test_late_gone_without_a_claim_only_makes_us_ask(wire):
    ask(wire)
    wire.settle()
    wire.log.clear()
    wire.hosts[HOST_B].receive(Message(MessageType.GONE, HOST_A, HOST_B, bytes(4), WEB), wire.now)
    assert entry(wire).state is NeighbourState.PROBE
    wire.settle()
    assert entry(wire).state is NeighbourState.REACHABLE


def test_frame_for_an_address_that_left_is_answered_with_gone_once_per_100_ms(wire):
    ask(wire)
    wire.settle()
    wire.hosts[HOST_A].withdraw(WEB, wire.now, gone=False)
    for _ in range(3):
        wire.hosts[HOST_A].not_held(HOST_B, WEB, wire.now)
    wire.settle()
    assert len(wire.sent(MessageType.GONE)) == 1
    assert entry(wire).state is NeighbourState.FAILED


def test_frame_for_an_address_known_elsewhere_is_answered_with_moved_and_followed(wire):
    wire.boot(HOST_C)
    ask(wire)
    wire.settle()
    wire.hosts[HOST_A].withdraw(WEB, wire.now, gone=False)
    wire.start_web(HOST_C)
    wire.hosts[HOST_C].messages_to_send()  # its first announcement is lost
    wire.hosts[HOST_A].resolve(WEB, PORT, bytes(4), wire.now)
    wire.settle()
    wire.hosts[HOST_A].not_held(HOST_B, WEB, wire.now)
    wire.settle()
    assert [m.claim.host for m in wire.sent(MessageType.MOVED)] == [HOST_C]
    assert (entry(wire).claim.host, entry(wire).state) == (HOST_C, NeighbourState.REACHABLE)


def test_hint_at_a_claim_that_is_not_higher_changes_nothing(wire):
    ask(wire)
    wire.settle()
    known = entry(wire).claim
    for stamp in (known.stamp - 1, 7):
        hint = Message(MessageType.STALE, HOST_C, HOST_B, bytes(4), WEB, claim_of(HOST_C, stamp))
        wire.hosts[HOST_B].receive(hint, wire.now)
    assert (entry(wire).claim, entry(wire).state) == (known, NeighbourState.REACHABLE)


def test_own_claim_that_was_given_up_is_the_bar_for_the_claims_of_others(wire):
    own = wire.hosts[HOST_A].claims()[0]
    wire.hosts[HOST_A].withdraw(WEB, wire.now)
    wire.hosts[HOST_A].messages_to_send()
    lower = claim_of(HOST_B, own.stamp - 1)
    wire.hosts[HOST_A].receive(announce(lower), wire.now)
    assert entry(wire, HOST_A).claim == own
    assert wire.hosts[HOST_A].messages_to_send() == [Message(MessageType.STALE, HOST_A, HOST_B, bytes(4), WEB, own)]


def test_stranger_gets_no_answer_for_a_frame_to_an_address_that_is_not_here(wire):
    wire.hosts[HOST_A].not_held(HOST_C, WEB, wire.now)
    wire.hosts[HOST_A].not_held(HOST_C, NOBODY, wire.now)
    assert wire.hosts[HOST_A].messages_to_send() == []


def test_start_here_of_an_address_that_is_being_asked_for_releases_to_ourselves(wire):
    host = wire.hosts[HOST_B]
    host.resolve(NOBODY, PORT, DB, wire.now, "frame")
    claim = host.activate(NOBODY, DB_MAC, 77, 0, None, wire.now)
    assert Released(NOBODY, claim, ("frame",)) in host.events()
    assert claim.host == HOST_B
    wire.run(2)
    assert wire.of(HOST_B, Unreachable) == []
