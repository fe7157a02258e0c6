"""A move without a hand-over loses what comes during the pause: each frame is counted, whoever is heard of first."""

import pytest
from test_moves import STOP_NS, THERE, frame, move

from divhook.core.moves.source import Lost, MovedOut, SourceMove
from divhook.core.reasons import DropReason

LOST = Lost(DropReason.MOVE_NOT_HANDED_OVER, 2)


@pytest.fixture
def alone() -> SourceMove:
    """The channel broke; two frames came during the pause. QEMU has read the first, and holds it."""
    found = move()
    found.on_lost()
    found.on_paused(STOP_NS, 0)
    assert found.on_frame(frame(1)) == found.on_frame(frame(2)) == []
    return found


def test_frames_are_counted_where_the_announcement_comes_before_the_end_of_qemu(alone: SourceMove) -> None:
    assert alone.on_active(THERE, 1, 0, STOP_NS) == [LOST, MovedOut(THERE)]
    assert alone.on_ended(1) == []


def test_frames_are_counted_where_qemu_ends_first(alone: SourceMove) -> None:
    assert alone.on_ended(1) == [LOST]
    assert alone.ended


def test_frames_are_read_here_where_the_guest_goes_on(alone: SourceMove) -> None:
    assert not any(isinstance(action, Lost) for action in alone.on_resumed())
