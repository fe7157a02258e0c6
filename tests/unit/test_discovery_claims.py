import pytest
from discovery_hosts import (
    DB_MAC,
    HOST_A,
    HOST_B,
    HOST_C,
    WALL_US,
    WEB,
    WEB_ID,
    WEB_MAC,
    Wire,
    announce,
    claim_of,
)

from divhook.core.addressing import ALL_HOSTS_GROUP, SubnetId, group_mac
from divhook.core.discovery import (
    ClaimChanged,
    ClaimState,
    Fenced,
    Found,
    Limits,
    NeighbourState,
    Record,
    TentativeObjected,
    TentativePassed,
    Unfenced,
)
from divhook.core.wire.discovery import Claim, Message, MessageType

HOUR_US = 3_600_000_000
OTHER_ID = 0x0F0E0D0C0B0A0908


@pytest.fixture
def wire() -> Wire:
    return Wire(HOST_A, HOST_B, HOST_C)


def states(wire: Wire) -> dict:
    return {pmac: s for pmac, host in wire.hosts.items() if (s := host.state(WEB)) is not None}


# --- making a claim


def test_start_claims_with_a_stamp_of_the_wall_clock_and_announces_it_three_times_to_all_hosts(wire):
    claim = wire.start_web(HOST_A)
    assert claim == Claim(WEB, WEB_MAC, HOST_A, claim.stamp, claim.born, WEB_ID, 0)
    assert WALL_US + 1000e6 < claim.born <= claim.stamp < WALL_US + 1000e6 + 10
    wire.run(1)
    assert wire.log == [Message(MessageType.ANNOUNCE, HOST_A, ALL_HOSTS_GROUP, bytes(4), WEB, claim)] * 3
    assert wire.of(HOST_A, ClaimChanged)[-1].claim == claim


def test_claim_is_repeated_every_ten_minutes_or_so(wire):
    wire.start_web(HOST_A)
    wire.run(1)
    wire.log.clear()
    wire.run(6600)
    assert 10 <= len(wire.log) <= 12
    assert {m.type for m in wire.log} == {MessageType.ANNOUNCE}


def test_all_claims_are_repeated_soon_after_carrier_up(wire):
    wire.start_web(HOST_A)
    wire.run(1)
    wire.log.clear()
    wire.hosts[HOST_A].carrier_up(wire.now)
    wire.run(1)
    assert [m.type for m in wire.log] == [MessageType.ANNOUNCE]


def test_agent_that_has_not_reconciled_says_and_answers_nothing(wire):
    host = wire.boot(HOST_A, ready=False)
    claim = wire.start_web(HOST_A)
    host.resolve(claim.address[:3] + b"\x63", 1, WEB, wire.now)
    host.tentative(WEB[:3] + b"\x64", DB_MAC, 9, 0, None, wire.now)
    host.receive(Message(MessageType.PROBE, HOST_B, HOST_A, bytes(4), WEB, nonce=5), wire.now)
    host.receive(announce(claim_of(HOST_B, claim.stamp + 9)), wire.now)
    host.not_held(HOST_B, WEB[:3] + b"\x65", wire.now)
    host.carrier_up(wire.now)
    host.withdraw(WEB, wire.now)
    wire.start_web(HOST_A)
    wire.run(2)
    assert [m for m in wire.log if m.source == HOST_A] == []
    host.ready(wire.now)
    assert {m.type for m in host.messages_to_send()} == {MessageType.ANNOUNCE, MessageType.REQUEST}


def test_agent_that_has_not_reconciled_defends_nothing_yet_but_notes_stamps(wire):
    host = wire.boot(HOST_A, ready=False)
    claim = wire.start_web(HOST_A)
    rival = claim_of(HOST_B, claim.stamp + 1000)
    host.receive(announce(rival), wire.now)
    wire.run(5)
    assert host.claims() == [claim]
    assert host.highest_seen_stamp == rival.stamp


def test_another_guest_of_the_same_host_cannot_take_an_active_address(wire):
    wire.start_web(HOST_A)
    with pytest.raises(ValueError, match=r"10\.3\.7\.21 is held by another guest of this host"):
        wire.start_web(HOST_A, OTHER_ID)
    with pytest.raises(ValueError, match="held by a guest"):
        wire.hosts[HOST_A].tentative(WEB, WEB_MAC, WEB_ID, 0, None, wire.now)


def test_change_of_identity_takes_a_new_stamp_and_keeps_born(wire):
    old = wire.start_web(HOST_A)
    new = wire.hosts[HOST_A].activate(WEB, WEB_MAC, WEB_ID, 0xBEEF, None, wire.now)
    assert (new.identity, new.born) == (0xBEEF, old.born)
    assert new.stamp > old.stamp


def test_own_active_address_resolves_to_this_host(wire):
    claim = wire.start_web(HOST_A)
    assert wire.hosts[HOST_A].resolve(WEB, 1, WEB, wire.now) == Found(claim, NeighbourState.REACHABLE)


def test_stop_says_gone_three_times_with_the_last_claim(wire):
    claim = wire.start_web(HOST_A)
    wire.run(1)
    wire.log.clear()
    wire.hosts[HOST_A].withdraw(WEB, wire.now)
    wire.run(5)
    assert wire.log == [Message(MessageType.GONE, HOST_A, ALL_HOSTS_GROUP, bytes(4), WEB, claim)] * 3


def test_start_after_stop_is_born_when_it_was_and_stops_the_gones(wire):
    old = wire.start_web(HOST_A)
    wire.hosts[HOST_A].withdraw(WEB, wire.now)
    wire.settle()
    new = wire.start_web(HOST_A)
    wire.run(1)
    assert new.born == old.born
    assert len(wire.sent(MessageType.GONE)) == 1


# --- conflicts


def test_host_that_caches_a_higher_claim_returns_it_and_a_fresh_start_outbids_it_at_once(wire):
    old = claim_of(HOST_B, WALL_US + 2 * HOUR_US)  # a dead host whose clock was ahead
    wire.hosts[HOST_C].resolve(WEB, 1, bytes(4), wire.now)
    wire.hosts[HOST_C].receive(announce(old), wire.now)
    wire.hosts[HOST_C].messages_to_send()
    wire.cut = {HOST_B}
    wire.start_web(HOST_A)
    wire.settle()
    assert [m.claim for m in wire.sent(MessageType.STALE)] == [old]
    assert wire.sent(MessageType.PROBE) == []
    assert wire.hosts[HOST_C].neighbours.get(WEB).claim == wire.hosts[HOST_A].claims()[0]
    assert wire.hosts[HOST_A].claims()[0].stamp == old.stamp + 1


def test_own_higher_claim_from_before_is_outbid_without_asking(wire):
    old = claim_of(HOST_A, WALL_US + 2 * HOUR_US)
    wire.start_web(HOST_A)
    wire.run(1)
    wire.hosts[HOST_A].receive(Message(MessageType.STALE, HOST_C, HOST_A, bytes(4), WEB, old), wire.now)
    assert wire.hosts[HOST_A].claims()[0].stamp == old.stamp + 1
    wire.settle()
    assert wire.sent(MessageType.PROBE) == []


@pytest.mark.parametrize("kind", [MessageType.STALE, MessageType.ANNOUNCE])
def test_higher_claim_of_a_host_that_does_not_run_the_guest_is_outbid_after_asking_it(wire, kind):
    wire.start_web(HOST_A)
    wire.run(1)
    rival = claim_of(HOST_B, WALL_US + 2 * HOUR_US)
    source = HOST_C if kind is MessageType.STALE else HOST_B
    wire.hosts[HOST_A].receive(Message(kind, source, HOST_A, bytes(4), WEB, rival), wire.now)
    assert wire.hosts[HOST_A].state(WEB) is ClaimState.ACTIVE
    wire.settle()
    assert [(m.source, m.destination) for m in wire.sent(MessageType.PROBE)] == [(HOST_A, HOST_B)]
    assert wire.hosts[HOST_A].claims()[0].stamp == rival.stamp + 1


def test_higher_claim_of_a_silent_host_is_outbid_after_three_probes(wire):
    wire.start_web(HOST_A)
    wire.run(1)
    wire.cut = {HOST_B}
    rival = claim_of(HOST_B, WALL_US + 2 * HOUR_US)
    wire.hosts[HOST_A].receive(announce(rival), wire.now)
    wire.run(0.599)
    assert wire.hosts[HOST_A].claims()[0].stamp < rival.stamp
    wire.run(0.002)
    assert len(wire.sent(MessageType.PROBE)) == 3
    assert wire.hosts[HOST_A].claims()[0].stamp == rival.stamp + 1


def test_same_guest_on_two_hosts_the_newer_claim_wins_and_the_other_is_fenced_loudly(wire):
    wire.start_web(HOST_A)
    wire.run(1)
    newer = wire.start_web(HOST_B)
    wire.settle()
    assert states(wire) == {HOST_A: ClaimState.FENCED, HOST_B: ClaimState.ACTIVE}
    assert wire.of(HOST_A, Fenced) == [Fenced(WEB, newer)]
    assert wire.hosts[HOST_A].claims() == []


def test_two_guests_with_one_address_the_one_born_earlier_stays_whoever_has_the_higher_stamp():
    for ahead in (HOST_A, HOST_B):
        wire = Wire(HOST_A, HOST_B, wall_us={ahead: HOUR_US})
        wire.cut = {HOST_A}
        born = {
            HOST_A: wire.hosts[HOST_A].activate(WEB, WEB_MAC, WEB_ID, 0, 500, wire.now),
            HOST_B: wire.hosts[HOST_B].activate(WEB, DB_MAC, OTHER_ID, 0, 499, wire.now),
        }
        wire.run(1)
        wire.cut = set()
        assert {c.born for c in born.values()} == {500, 499}
        for host in wire.hosts.values():
            host.carrier_up(wire.now)
        wire.run(3)
        assert states(wire) == {HOST_A: ClaimState.FENCED, HOST_B: ClaimState.ACTIVE}


def test_host_whose_claim_is_lower_than_was_said_is_shown_ours_and_fenced(wire):
    """A third host believes B to have a claim from the future; B runs the guest, with an older claim than A's."""
    wire.start_web(HOST_B)
    wire.run(1)
    wire.cut = {HOST_B}
    wire.start_web(HOST_A)
    wire.run(1)
    wire.cut = set()
    rumour = claim_of(HOST_B, WALL_US + 2 * HOUR_US)
    wire.hosts[HOST_A].receive(Message(MessageType.STALE, HOST_C, HOST_A, bytes(4), WEB, rumour), wire.now)
    wire.settle()
    assert states(wire) == {HOST_A: ClaimState.ACTIVE, HOST_B: ClaimState.FENCED}


def test_claims_that_were_given_up_are_remembered_up_to_a_bound():
    wire = Wire(HOST_A, limits=Limits(withdrawn=2))
    for n in (30, 31, 32):
        address = WEB[:3] + bytes((n,))
        wire.hosts[HOST_A].activate(address, WEB_MAC, WEB_ID, 0, None, wire.now)
        wire.hosts[HOST_A].withdraw(address, wire.now)
    assert [r.claim.address[3] for r in wire.hosts[HOST_A].records()] == [31, 32]


def fenced(wire: Wire) -> None:
    wire.start_web(HOST_A)
    wire.run(1)
    wire.start_web(HOST_B)
    wire.run(1)
    assert states(wire) == {HOST_A: ClaimState.FENCED, HOST_B: ClaimState.ACTIVE}


def test_fenced_host_refers_senders_to_the_owner_and_does_not_answer_for_the_address(wire):
    fenced(wire)
    owner = wire.hosts[HOST_B].claims()[0]
    wire.hosts[HOST_A].receive(Message(MessageType.PROBE, HOST_C, HOST_A, bytes(4), WEB, nonce=77), wire.now)
    wire.hosts[HOST_A].receive(
        Message(MessageType.REQUEST, HOST_C, group_mac(SubnetId(3, 7)), bytes(4), WEB, nonce=78), wire.now
    )
    wire.hosts[HOST_A].not_held(HOST_C, WEB, wire.now)
    assert wire.hosts[HOST_A].messages_to_send() == [
        Message(MessageType.MOVED, HOST_A, HOST_C, bytes(4), WEB, owner, nonce=77),
        Message(MessageType.MOVED, HOST_A, HOST_C, bytes(4), WEB, owner),
    ]


def test_fence_ends_with_the_owners_gone(wire):
    fenced(wire)
    wire.hosts[HOST_B].withdraw(WEB, wire.now)
    wire.settle()
    assert states(wire) == {HOST_A: ClaimState.ACTIVE}
    assert wire.of(HOST_A, Unfenced) == [Unfenced(WEB)]


def test_fence_ends_when_the_owner_is_asked_after_a_lost_gone(wire):
    fenced(wire)
    wire.hosts[HOST_B].withdraw(WEB, wire.now, gone=False)
    wire.run(11)
    assert states(wire) == {HOST_A: ClaimState.ACTIVE}


def test_owner_of_a_fence_that_says_gone_without_a_claim_is_asked_at_once(wire):
    fenced(wire)
    wire.hosts[HOST_A].receive(Message(MessageType.GONE, HOST_B, HOST_A, bytes(4), WEB), wire.now)
    wire.log.clear()
    wire.settle()
    assert {(m.source, m.destination) for m in wire.sent(MessageType.PROBE)} == {(HOST_A, HOST_B)}
    assert states(wire) == {HOST_A: ClaimState.FENCED, HOST_B: ClaimState.ACTIVE}


def test_fence_does_not_end_by_anyone_elses_gone_nor_by_the_owners_silence(wire):
    fenced(wire)
    message = Message(MessageType.GONE, HOST_C, HOST_A, bytes(4), WEB, claim_of(HOST_C, 1 << 60))
    wire.hosts[HOST_A].receive(message, wire.now)
    wire.cut = {HOST_B}
    wire.run(60)
    assert wire.hosts[HOST_A].state(WEB) is ClaimState.FENCED


def test_fence_follows_the_guest_to_its_next_host(wire):
    fenced(wire)
    wire.hosts[HOST_A].messages_to_send()
    wire.hosts[HOST_B].withdraw(WEB, wire.now, gone=False)
    newest = wire.start_web(HOST_C)
    wire.run(30)
    assert states(wire) == {HOST_A: ClaimState.FENCED, HOST_C: ClaimState.ACTIVE}
    assert wire.of(HOST_A, Fenced)[-1] == Fenced(WEB, newest)


def test_resume_or_operator_lifts_the_fence_with_a_newer_claim(wire):
    fenced(wire)
    wire.start_web(HOST_A)
    wire.settle()
    assert states(wire) == {HOST_A: ClaimState.ACTIVE, HOST_B: ClaimState.FENCED}


# --- restarts


def restart(wire: Wire, pmac: bytes, records: list[Record]) -> None:
    wire.boot(pmac, ready=False)
    wire.hosts[pmac].restore(records, 0)
    wire.hosts[pmac].reclaim(WEB, WEB_MAC, WEB_ID, 0, wire.now)
    wire.hosts[pmac].ready(wire.now)


def test_restarted_agent_announces_the_claim_that_it_had(wire):
    claim = wire.start_web(HOST_A)
    wire.run(1)
    wire.log.clear()
    restart(wire, HOST_A, wire.hosts[HOST_A].records())
    wire.run(1)
    assert [m.claim for m in wire.log] == [claim] * 3


def test_restarted_agent_of_a_stale_owner_does_not_win_over_the_restart_elsewhere(wire):
    wire.start_web(HOST_A)
    records = wire.hosts[HOST_A].records()
    wire.run(1)
    wire.cut = {HOST_A}
    wire.start_web(HOST_B)
    wire.run(1)
    wire.cut = set()
    restart(wire, HOST_A, records)
    wire.settle()
    assert states(wire) == {HOST_A: ClaimState.FENCED, HOST_B: ClaimState.ACTIVE}


def test_fence_outlives_a_restart_of_the_agent(wire):
    fenced(wire)
    wire.cut = {HOST_B}
    restart(wire, HOST_A, wire.hosts[HOST_A].records())
    wire.run(5)
    assert wire.hosts[HOST_A].state(WEB) is ClaimState.FENCED
    assert wire.hosts[HOST_A].claims() == []


def test_lost_registry_gives_a_new_claim_above_what_others_cache(wire):
    wire.hosts[HOST_C].resolve(WEB, 1, bytes(4), wire.now)
    wire.start_web(HOST_A)
    wire.settle()
    wire.hosts[HOST_A] = wire.boot(HOST_A, WALL_US - HOUR_US, ready=False)
    wire.hosts[HOST_A].reclaim(WEB, WEB_MAC, WEB_ID, 0, wire.now)
    wire.hosts[HOST_A].ready(wire.now)
    wire.settle()
    assert wire.hosts[HOST_C].neighbours.get(WEB).claim == wire.hosts[HOST_A].claims()[0]


def test_guest_that_stopped_while_the_agent_was_down_is_answered_for_with_gone(wire):
    claim = wire.start_web(HOST_A)
    records = wire.hosts[HOST_A].records()
    host = wire.boot(HOST_A)
    host.restore(records, 0)
    host.receive(Message(MessageType.PROBE, HOST_C, HOST_A, bytes(4), WEB, nonce=9), wire.now)
    assert host.messages_to_send() == [Message(MessageType.GONE, HOST_A, HOST_C, bytes(4), WEB, claim, nonce=9)]


# --- tentative addresses


def try_address(wire: Wire, pmac: bytes, guest_id: int = WEB_ID, born: int | None = None) -> None:
    wire.hosts[pmac].tentative(WEB, WEB_MAC, guest_id, 0, born, wire.now)


def test_tentative_address_passes_after_three_unanswered_requests(wire):
    try_address(wire, HOST_A)
    wire.run(0.599)
    assert wire.of(HOST_A, TentativePassed) == []
    wire.run(0.002)
    assert wire.of(HOST_A, TentativePassed) == [TentativePassed(WEB)]
    assert [(m.type, m.destination, m.spa, m.claim.tentative) for m in wire.log] == [
        (MessageType.REQUEST, group_mac(SubnetId(3, 7)), bytes(4), True)
    ] * 3
    assert wire.hosts[HOST_A].claims() == []
    claim = wire.hosts[HOST_A].confirm(WEB, wire.now)
    assert wire.hosts[HOST_A].claims() == [claim]
    assert not claim.tentative


def test_tentative_claim_is_never_installed_by_others(wire):
    wire.hosts[HOST_C].resolve(WEB, 1, bytes(4), wire.now)
    try_address(wire, HOST_A)
    wire.run(0.1)
    assert wire.hosts[HOST_C].neighbours.get(WEB).state is NeighbourState.INCOMPLETE


def test_active_holder_objects_at_once_and_the_tentative_claim_is_gone(wire):
    holder = wire.start_web(HOST_B)
    wire.settle()
    try_address(wire, HOST_A, OTHER_ID)
    wire.settle()
    assert wire.of(HOST_A, TentativeObjected) == [TentativeObjected(WEB, holder)]
    assert states(wire) == {HOST_B: ClaimState.ACTIVE}
    with pytest.raises(ValueError, match="is not tentative"):
        wire.hosts[HOST_A].confirm(WEB, wire.now)


@pytest.mark.parametrize("first", [HOST_A, HOST_B])
def test_of_two_tentative_claims_the_older_born_stays(wire, first):
    second = HOST_B if first is HOST_A else HOST_A
    try_address(wire, second, WEB_ID, born=41)
    try_address(wire, first, OTHER_ID, born=40)
    wire.run(1)
    assert states(wire) == {first: ClaimState.TENTATIVE}
    assert [e.holder.born for e in wire.of(second, TentativeObjected)] == [40]
    assert wire.of(first, TentativePassed) == [TentativePassed(WEB)]


def test_of_two_tentative_claims_born_at_one_time_the_lower_pmac_stays(wire):
    try_address(wire, HOST_B, OTHER_ID, born=40)
    try_address(wire, HOST_A, WEB_ID, born=40)
    wire.run(1)
    assert states(wire) == {HOST_A: ClaimState.TENTATIVE}
