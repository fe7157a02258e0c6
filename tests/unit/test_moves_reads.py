"""What a paused guest was not given, by the steps of its QEMU: written out, and against a QEMU that is played."""

import random

import pytest

from divhook.core.moves.reads import PAUSING_NS, ROUND_FRAMES, Doing, NotGiven, Step, not_given
from divhook.core.moves.unread import Delivered, Unread

STOP_NS = 1_000_000_000
LETTERS = {"s": Doing.SLEEP, "r": Doing.READ, "d": Doing.DRY}


def steps(text: str, end_ns: int = STOP_NS + 1000) -> list[Step]:
    """Of letters, a microsecond apart, the last at end_ns; a blank is a pause of 50 ms."""
    found, at_ns = list[Step](), end_ns
    for letter in reversed(text):
        if letter == " ":
            at_ns -= 50_000_000
        else:
            found.append(Step(at_ns, LETTERS[letter]))
            at_ns -= 1000
    return found[::-1]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("s", NotGiven(0)),
        ("srds", NotGiven(0)),  # all given, and nothing came since
        ("srrds srs", NotGiven(1)),  # the paused QEMU's one frame
        ("srd srrs", NotGiven(1)),  # one was given before it
        ("srs srs", NotGiven(1, doubtful=1)),  # held long before: for want of buffers, perhaps until it had some
        ("srssrs", NotGiven(2)),  # held while it was pausing, and thrown away
        ("srrdsrssrs", NotGiven(2)),
        ("srssrrs", NotGiven(1)),  # it had buffers again: one of the two was given
        ("rsrds", NotGiven(0)),  # the beginning of the first round is not known
        ("", None),
        ("rdrd", None),  # a loop that does not sleep in ppoll
        ("s" + "r" * ROUND_FRAMES + "srds", NotGiven(0)),  # a round has its limit, and the next goes on
    ],
)
def test_what_was_not_given(text: str, expected: NotGiven | None) -> None:
    assert not_given(steps(text), STOP_NS, STOP_NS + 1000, None) == expected


def test_one_that_was_left_while_qemu_held_another_says_that_it_was_held_until_the_pause() -> None:
    """Left: the loop went to sleep twice without reading it. Time alone proves nothing."""
    held = steps("srs sss rs")
    first_sleep_ns = next(step.at_ns for step in held[2:] if step.doing is Doing.SLEEP)
    assert not_given(held, STOP_NS, first_sleep_ns, None) == NotGiven(2)
    second_ns = held[4].at_ns
    assert held[4].doing is Doing.SLEEP
    assert not_given(held, STOP_NS, second_ns, None) == NotGiven(1, doubtful=1)
    assert not_given(held, STOP_NS, None, None) == NotGiven(1, doubtful=1)


def test_one_that_was_held_is_not_given_if_others_were_left_behind_it_until_the_pause() -> None:
    """And doubtful if none was, unless it was held just then. QEMU may read its one frame of the pause much later."""
    held = steps("srs ss", STOP_NS - PAUSING_NS)
    assert not_given(held, STOP_NS, None, None) == NotGiven(0, doubtful=1)
    assert not_given(held, STOP_NS, None, held[2].at_ns) == NotGiven(1)
    assert not_given(held, STOP_NS, None, held[3].at_ns) == NotGiven(0, doubtful=1)
    assert not_given(steps("srs", STOP_NS), STOP_NS, None, None) == NotGiven(1)


def test_where_the_steps_do_not_go_back_to_what_was_held_it_is_doubtful() -> None:
    assert not_given(steps("sss", STOP_NS - 1), STOP_NS, None, STOP_NS - 9000) == NotGiven(0, doubtful=1)
    assert not_given(steps("sss srs"), STOP_NS, steps("sss srs")[0].at_ns, None) == NotGiven(1, doubtful=1)
    assert not_given(steps("sss srs"), STOP_NS, STOP_NS + 500, None) == NotGiven(1)


def test_whether_the_last_of_a_whole_round_was_given_is_doubtful() -> None:
    """It ends in any case; with nothing left in the tap there is no next one."""
    whole = "s" + "r" * ROUND_FRAMES + "s"
    assert not_given(steps(whole), STOP_NS, None, None) == NotGiven(0, doubtful=1)


class Qemu:
    """A main loop and its tap: the guest has some receive buffers, and may get more."""

    def __init__(self, chance: random.Random) -> None:
        self.chance, self.now_ns = chance, STOP_NS - 3_000_000_000
        self.unread = Unread(0, 0)
        self.queue: list[int] = []
        self.sent = self.tx = 0
        self.seen: list[int] = []
        self.held: int | None = None
        self.buffers, self.running, self.watches = 5, True, True
        self.steps: list[Step] = []

    def passes(self, least_ns: int, most_ns: int) -> None:
        self.now_ns += self.chance.randrange(least_ns, most_ns)

    def step(self, doing: Doing) -> None:
        self.now_ns += 1000
        self.steps.append(Step(self.now_ns, doing))

    def send(self) -> None:
        self.queue.append(self.sent)
        self.unread.delivered(Delivered(self.now_ns, self.sent.to_bytes(2)))
        self.sent += 1

    def round(self) -> None:
        if not self.watches or not self.queue:
            self.step(Doing.SLEEP)
            return
        frames = 0
        while frames < ROUND_FRAMES:
            if not self.queue:
                self.step(Doing.DRY)
                break
            self.step(Doing.READ)
            self.tx += 1
            frame = self.queue.pop(0)
            if not self.running or not self.buffers:
                self.held, self.watches = frame, False
                break
            self.buffers -= 1
            self.seen.append(frame)
            frames += 1
        self.step(Doing.SLEEP)

    def refill(self) -> None:
        self.buffers = 5
        if self.held is not None:
            self.seen.append(self.held)
            self.held, self.buffers = None, 4
        self.watches = True
        self.step(Doing.SLEEP)
        self.round()

    def pause(self) -> None:
        """Takes a while: the loop may run before it is complete."""
        self.running = False
        for _ in range(self.chance.randrange(3)):
            self.passes(1000, 300_000)
            if self.chance.random() < 0.5:
                self.send()
            self.round()
        self.held, self.watches = None, True
        self.unread.paused(self.now_ns, 0)


@pytest.mark.parametrize("seed", range(400))
def test_every_frame_is_seen_or_sent_on_and_none_twice(seed: int) -> None:
    """Frames come every few milliseconds at most, as they do where a guest has no buffers left."""
    qemu = Qemu(random.Random(seed))
    qemu.step(Doing.SLEEP)
    for _ in range(qemu.chance.randrange(200)):
        qemu.passes(100_000, 5_000_000)
        chosen = qemu.chance.random()
        if chosen < 0.7:
            qemu.send()
        if chosen > 0.97:
            qemu.refill()
        qemu.round()
    qemu.pause()
    reads_soon = qemu.chance.random() < 0.5
    for _ in range(qemu.chance.randrange(9)):
        qemu.passes(100_000, 5_000_000)
        qemu.send()
        if reads_soon and qemu.chance.random() < 0.8:
            qemu.round()
    assert qemu.unread.looked(qemu.tx, qemu.steps)
    assert qemu.unread.settled(qemu.tx)
    unseen = [int.from_bytes(frame.data) for frame in qemu.unread.unseen(qemu.tx)]
    lost, twice = set(range(qemu.sent)) - {*qemu.seen, *unseen}, set(qemu.seen) & set(unseen)
    assert not twice
    assert len(lost) <= qemu.unread.doubtful(qemu.tx) <= 1
