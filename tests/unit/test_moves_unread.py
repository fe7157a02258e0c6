"""Which frames a paused guest has not seen: against a tap and a QEMU that are played by the test."""

import random

import pytest

from divhook.core.moves import unread as unread_module
from divhook.core.moves.unread import DOUBT_NS, RING_FRAMES, Delivered, Unread

STOP_NS = 1_000_000_000


class Tap:
    """A tap with a queue, and a QEMU that reads it; paused, it reads one frame more and holds it."""

    def __init__(self, queued: int = 0) -> None:
        self.queue: list[int] = [-1] * queued
        self.tx, self.seen, self.sent = 7, list[int](), 0
        self.paused = self.holds = False
        self.unread = Unread(self.tx, 3)

    def send(self, at_ns: int) -> None:
        self.queue.append(self.sent)
        self.unread.delivered(Delivered(at_ns, self.sent.to_bytes(2, "big")))
        self.sent += 1

    def read(self, frames: int = 1 << 30) -> None:
        for _ in range(min(frames, len(self.queue))):
            if self.paused and self.holds:
                return
            self.tx += 1
            frame = self.queue.pop(0)
            if self.paused:
                self.holds = True
            elif frame >= 0:
                self.seen.append(frame)

    def sample(self) -> None:
        self.unread.sample(self.tx, 3)

    def pause(self) -> None:
        self.paused = True
        self.unread.paused(STOP_NS, 3)

    def unseen(self) -> list[int]:
        return [int.from_bytes(frame.data, "big") for frame in self.unread.unseen(self.tx)]


@pytest.mark.parametrize("seed", range(300))
def test_what_was_seen_and_what_is_unseen_is_every_frame_once(seed: int) -> None:
    chance = random.Random(seed)
    tap = Tap(queued=chance.choice((0, 0, 3)))
    tap.read()
    for step in range(chance.randrange(60)):
        tap.send(STOP_NS - 100_000_000 + step)
        tap.read(chance.choice((0, 1, 2, 9)))
        if not tap.queue:
            tap.sample()
    tap.read()
    tap.sample()
    for _ in range(chance.randrange(6)):
        tap.send(STOP_NS - 1000)
    tap.pause()
    for step in range(chance.randrange(1, 9)):
        tap.send(STOP_NS + 1 + step)
        tap.read()
    assert tap.seen + tap.unseen() == list(range(tap.sent))
    assert tap.unread.doubtful(tap.tx) == 0


def test_frames_that_were_queued_before_the_capture_are_not_counted_as_its_own() -> None:
    tap = Tap(queued=5)
    tap.send(STOP_NS - 10_000_000)
    tap.read()
    tap.sample()
    tap.pause()
    tap.send(STOP_NS + 1)
    tap.read()
    assert (tap.seen, tap.unseen()) == ([0], [1])


def test_a_frame_just_before_the_pause_with_none_after_is_doubtful_and_not_sent_twice() -> None:
    tap = Tap()
    tap.send(STOP_NS - DOUBT_NS + 1)
    tap.pause()
    tap.read()
    assert (tap.unseen(), tap.unread.doubtful(tap.tx)) == ([], 1)


def test_a_frame_long_before_the_pause_is_not_doubtful() -> None:
    tap = Tap()
    tap.send(STOP_NS - DOUBT_NS)
    tap.read()
    tap.pause()
    assert (tap.unseen(), tap.unread.doubtful(tap.tx)) == ([], 0)
    assert Unread(0, 0).doubtful(0) == 0


def test_what_qemu_may_have_held_for_a_guest_without_receive_buffers_is_doubtful() -> None:
    """It had read the first frame, and no more; both of the others waited longer than it takes to read them."""
    tap = Tap()
    tap.send(STOP_NS - 9 * DOUBT_NS)
    tap.read()
    tap.send(STOP_NS - 2 * DOUBT_NS)
    tap.pause()
    tap.send(STOP_NS + 1)
    tap.read()
    assert (tap.seen, tap.unseen(), tap.unread.doubtful(tap.tx)) == ([0], [1, 2], 1)


def test_a_qemu_that_has_not_read_its_one_frame_yet_is_not_settled() -> None:
    """All from before the pause was read: until it has, the last of them looks like the one that it holds."""
    tap = Tap()
    tap.send(STOP_NS - 9 * DOUBT_NS)
    assert tap.unread.settled(tap.tx)
    tap.read()
    tap.pause()
    assert tap.unread.settled(tap.tx)
    tap.send(STOP_NS + 1)
    assert not tap.unread.settled(tap.tx)
    tap.read()
    assert (tap.unread.settled(tap.tx), tap.unseen()) == (True, [1])


def test_before_the_pause_and_after_a_resume_nothing_is_unseen() -> None:
    tap = Tap()
    tap.send(STOP_NS + 5)
    assert tap.unseen() == []
    tap.pause()
    assert tap.unseen() == [0]
    tap.unread.resumed()
    assert tap.unseen() == []


def test_the_ring_forgets_old_frames_before_the_pause_and_refuses_new_ones_in_it() -> None:
    unread = Unread(0, 0)
    for number in range(RING_FRAMES + 10):
        unread.delivered(Delivered(STOP_NS - 1000 + number % 7, number.to_bytes(2, "big")))
    unread.paused(STOP_NS, 0)
    for number in range(RING_FRAMES + 5):
        unread.delivered(Delivered(STOP_NS + 1 + number, b"xx"))
    assert (unread.overflow, len(unread.unseen(RING_FRAMES + 11))) == (5, RING_FRAMES)
    unread.missed(3)
    assert unread.overflow == 8


def test_the_ring_is_bounded_in_bytes_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(unread_module, "RING_BYTES", 100)
    unread = Unread(0, 0)
    unread.missed(1)
    unread.paused(STOP_NS, 0)
    for number in range(4):
        unread.delivered(Delivered(STOP_NS + 1 + number, bytes(40)))
    assert (unread.overflow, [f.at_ns - STOP_NS for f in unread.unseen(0)]) == (2, [1, 2])
