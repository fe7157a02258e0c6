"""The two machines of a move: what they send, in which order, and what becomes of a move that goes wrong."""

import pytest

from divhook.core.addressing import parse_address, parse_mac
from divhook.core.moves.destination import DestinationMove
from divhook.core.moves.source import Lost, MovedOut, SendCommitted, SendFlows, SendFrames, SourceMove, Stayed, knows
from divhook.core.moves.states import (
    DESTINATION_ENDS,
    DestinationEvent,
    DestinationState,
    SourceEvent,
    SourceState,
    move_states_markdown,
)
from divhook.core.moves.unread import DOUBT_NS, Delivered, Unread
from divhook.core.reasons import DropReason
from divhook.core.transitions import TransitionError
from divhook.core.wire.discovery import Claim

PEER, OWN = parse_mac("06:00:00:00:00:0b"), parse_mac("06:00:00:00:00:0a")
CLAIM = Claim(parse_address("10.1.1.5"), parse_mac("52:54:00:00:00:01"), OWN, 100, 50, 7, 9)
THERE = Claim(CLAIM.address, CLAIM.vmac, PEER, 101, 50, 7, 9)
STOP_NS = 1_000_000_000
LONG_BEFORE = -2 * DOUBT_NS
ALL, CHANGED = SendFlows(changed=False), SendFlows(changed=True)


def frame(number: int) -> Delivered:
    return Delivered(STOP_NS + number, bytes([number % 256]))


def move(*, ready: bool = True) -> SourceMove:
    made = SourceMove(CLAIM, PEER)
    made.unread = Unread(0, 0)
    if ready:
        made.on_linked()
        assert made.on_ready(0) == [SendFlows(changed=False)]
    return made


def test_frames_of_the_pause_are_sent_once_qemu_is_settled_then_live_ones_then_the_claim_is_given_up() -> None:
    m = move()
    assert m.on_frame(frame(LONG_BEFORE)) == []
    m.on_paused(STOP_NS, 0)
    assert m.on_frame(frame(1)) == m.on_frame(frame(2)) == []
    assert m.on_settled(2) == [CHANGED, SendFrames((frame(1), frame(2)))]
    assert m.on_frame(frame(3)) == [SendFrames((frame(3),))]
    assert m.on_active(THERE, 2, 0, STOP_NS) == [MovedOut(THERE)]
    assert m.on_frame(frame(4)) == [SendFrames((frame(4),))]
    assert m.on_active(THERE, 2, 0, STOP_NS) == []
    assert m.on_ended(2) == [SendCommitted()]
    assert (m.copied, m.state, m.on_expired(), m.ended) == (4, SourceState.MOVED, [], True)


def test_an_unread_frame_from_before_the_pause_goes_first() -> None:
    m = move()
    m.on_frame(frame(-9))
    m.on_paused(STOP_NS, 0)
    m.on_frame(frame(1))
    assert m.on_settled(1) == [CHANGED, SendFrames((frame(-9), frame(1)))]
    assert m.unread_at_pause == 1


def test_a_second_telling_of_the_pause_changes_nothing() -> None:
    m = move()
    m.on_paused(STOP_NS, 0)
    m.on_paused(STOP_NS + 10, 0)
    m.on_frame(frame(1))
    assert m.on_settled(1) == [CHANGED, SendFrames((frame(1),))]


def test_copies_wait_until_the_destination_is_ready() -> None:
    m = move(ready=False)
    m.on_paused(STOP_NS, 0)
    m.on_frame(frame(1))
    assert m.on_settled(1) == []
    m.on_linked()
    assert m.on_ready(1) == [ALL, CHANGED, SendFrames((frame(1),))]
    assert m.state is SourceState.COPYING


def test_what_was_not_settled_yet_is_sent_when_the_destination_claims() -> None:
    m = move()
    m.on_paused(STOP_NS, 0)
    m.on_frame(frame(1))
    assert m.on_active(THERE, 1, 0, STOP_NS) == [CHANGED, SendFrames((frame(1),)), MovedOut(THERE)]


def test_the_end_of_the_guest_here_tells_the_destination_what_it_missed() -> None:
    m = move()
    m.on_paused(STOP_NS, 0)
    m.on_frame(frame(1))
    assert m.on_ended(1) == [CHANGED, SendFrames((frame(1),)), SendCommitted()]


@pytest.mark.parametrize("settled", [False, True])
def test_a_guest_that_resumes_here_keeps_its_claim_with_a_new_stamp(settled: bool) -> None:
    m = move()
    m.on_paused(STOP_NS, 0)
    m.on_frame(frame(1))
    if settled:
        m.on_settled(1)
    assert m.on_resumed() == [Stayed(announce=True)]
    assert (m.state, m.ended) == (SourceState.STAYED, True)
    m.on_paused(STOP_NS, 0)  # ends stay ends
    assert m.state is SourceState.STAYED


def test_an_owner_who_resumes_the_guest_in_the_middle_does_not_end_the_move() -> None:
    m = move()
    assert m.on_resumed() == []
    assert m.state is SourceState.READY


def test_a_move_that_is_given_up_before_the_pause_changes_nothing() -> None:
    m = move()
    assert m.on_abandoned() == [Stayed(announce=False)]


def test_without_a_channel_the_destination_is_believed_and_what_nobody_reads_is_counted() -> None:
    m = move()
    m.on_lost()
    m.on_paused(STOP_NS, 0)
    m.on_frame(frame(1))
    assert m.on_abandoned() == []
    assert m.on_ended(1) == [Lost(DropReason.MOVE_NOT_HANDED_OVER, 1)]
    assert m.state is SourceState.DONE
    n = move(ready=False)
    n.on_lost()
    assert n.on_active(THERE, 0, 0, STOP_NS) == [MovedOut(THERE)]


def test_a_channel_that_breaks_during_the_pause_leaves_frames_counted_as_not_handed_over() -> None:
    m = move(ready=False)
    m.on_paused(STOP_NS, 0)
    m.on_frame(frame(1))
    assert m.on_active(THERE, 1, 0, STOP_NS) == [Lost(DropReason.MOVE_NOT_HANDED_OVER, 1), MovedOut(THERE)]


def test_frames_past_the_ring_and_doubtful_ones_are_counted() -> None:
    m = move()
    assert m.unread is not None
    m.on_paused(STOP_NS, 0)
    m.unread.missed(2)
    assert m.on_settled(5) == [CHANGED, Lost(DropReason.MOVE_COPY_OVERFLOW, 2)]
    n = move()
    n.on_frame(frame(-1))
    n.on_paused(STOP_NS, 0)
    assert n.on_settled(1) == [CHANGED, Lost(DropReason.MOVE_DOUBTFUL, 1)]


def test_a_tap_that_cannot_be_watched_costs_its_frames_and_no_more() -> None:
    m = SourceMove(CLAIM, PEER)
    m.on_linked()
    m.on_ready(0)
    m.on_paused(STOP_NS, 0)
    assert (m.on_frame(frame(1)), m.on_settled(0), m.on_active(THERE, 0, 0, STOP_NS)) == (
        [],
        [CHANGED],
        [MovedOut(THERE)],
    )
    assert m.on_resumed() == [Stayed(announce=True)]


def test_a_move_that_nothing_becomes_of_expires() -> None:
    m = SourceMove(CLAIM, PEER)
    assert m.on_expired() == [Stayed(announce=False)]


def test_an_event_that_the_table_does_not_know_is_our_bug_and_changes_nothing() -> None:
    m = SourceMove(CLAIM, PEER)
    assert not knows(m.state, SourceEvent.READY)
    assert knows(m.state, SourceEvent.LINKED)
    with pytest.raises(TransitionError):
        m.on_ready(0)
    assert m.state is SourceState.ASKED


V = DestinationEvent


@pytest.mark.parametrize(
    ("events", "state"),
    [
        ((V.HANDED, V.PORT, V.RUNS, V.EXPIRED), DestinationState.DONE),
        ((V.PORT, V.HANDED, V.RUNS), DestinationState.ACTIVE),
        ((V.PORT, V.RUNS, V.HANDED), DestinationState.ACTIVE),
        ((V.HANDED, V.LOST, V.PORT, V.RUNS), DestinationState.ACTIVE),
        ((V.HANDED, V.PORT, V.LOST), DestinationState.WAITING),
        ((V.HANDED, V.PORT, V.GONE, V.RUNS), DestinationState.GONE),
    ],
)
def test_the_destination_is_active_however_it_came_there(
    events: tuple[DestinationEvent, ...], state: DestinationState
) -> None:
    m = DestinationMove()
    for event in events:
        m.step(event)
    assert (m.state, m.ended) == (state, state in DESTINATION_ENDS)


def test_copies_go_into_the_tap_once_there_is_one_and_late_ones_are_counted() -> None:
    m = DestinationMove()
    m.step(V.HANDED)
    assert m.handed
    assert not m.on_frames(1)
    m.step(V.PORT)
    assert m.on_frames(2)
    m.step(V.RUNS)
    assert m.on_frames(3)
    assert (m.received, m.late, m.handed) == (5, 3, False)


def test_nothing_is_active_before_there_is_a_port() -> None:
    with pytest.raises(TransitionError):
        DestinationMove().step(V.RUNS)


def test_the_tables_are_drawn() -> None:
    assert "| READY | PAUSED | PAUSED |" in move_states_markdown()


@pytest.mark.parametrize("ready", [True, False])
def test_an_announcement_that_outruns_the_news_of_the_pause_still_brings_what_is_unread(ready: bool) -> None:
    """Two frames were read, the second of them by the paused QEMU alone."""
    m = move()
    if not ready:
        m = move(ready=False)
        m.on_linked()
    for number in (LONG_BEFORE, 2, 3):
        m.on_frame(frame(number))
    assert m.on_active(THERE, 2, 0, STOP_NS + 10) == [CHANGED, SendFrames((frame(2), frame(3))), MovedOut(THERE)]
    m.on_paused(STOP_NS, 0)
    assert m.on_settled(2) == []
    assert m.on_frame(frame(4)) == [SendFrames((frame(4),))]
