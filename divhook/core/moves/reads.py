"""What of that which QEMU has read out of a tap its guest has not got, told from how QEMU went about it.

A round of QEMU's main loop, in QEMU's net/tap.c (tap_send), for a tap that is ready:

    sleep │ READ READ … READ DRY   │ sleep     every frame was given to the guest, and there is no more
    sleep │ READ READ … READ       │ sleep     the last one was not taken: QEMU holds it and watches the tap no more,
                                               until the guest has receive buffers or the virtual machine stops
    sleep │ READ × ROUND_FRAMES    │ sleep     given; the next round goes on

A guest that is being paused takes none. At the end of its pausing QEMU throws away what it holds, watches the tap again
(net_vm_change_state_handler in QEMU's net/net.c), and so reads one frame more, which it holds, too: up to two frames
that were read are unseen by the guest, which runs on elsewhere.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum, auto

ROUND_FRAMES = 50
"""After so many frames of one tap the others have their turn."""
UNWATCHED_SLEEPS = 2
"""A loop that went to sleep so often while a frame waited does not watch the tap: the first time it would have woken at
once, and read. How long a frame waited proves nothing, for the loop may have waited for a processor."""
PAUSING_NS = 2_000_000
"""A frame that was held so shortly before the end of the pausing was in all likelihood held for it."""


class Doing(Enum):
    """What QEMU's main loop did."""

    READ = auto()  # took a frame from the tap
    DRY = auto()  # tried to, and there was none
    SLEEP = auto()  # waited until there is something to do


@dataclass(frozen=True, slots=True)
class Step:
    """at_ns: of the wall clock."""

    at_ns: int
    doing: Doing


@dataclass(frozen=True, slots=True)
class NotGiven:
    """Of the frames that were read, the last so many were not given to the guest; of one more it can't be told."""

    frames: int
    doubtful: int = 0


@dataclass(slots=True)
class _Round:
    frames: int = 0
    last_ns: int = 0
    dry: bool = False

    @property
    def held(self) -> bool:
        return not self.dry and self.frames % ROUND_FRAMES != 0


def not_given(
    steps: Sequence[Step], stop_ns: int, last_sent_ns: int | None, waits_since_ns: int | None
) -> NotGiven | None:
    """Of a guest that was paused at stop_ns. steps: the latest ones, oldest first.

    last_sent_ns: when the frame that QEMU read last was sent into the tap; None: not known. waits_since_ns: the same of
    the first that waits there; None: none does. None where the steps do not go back far enough, or are not those of
    such a main loop.
    """
    rounds = _rounds(steps)
    if rounds is None:
        return None
    unread_left = _left(steps, waits_since_ns, stop_ns)
    if not rounds:
        return NotGiven(0, doubtful=int(unread_left))
    last, before = rounds[-1], rounds[-2] if len(rounds) > 1 else None
    if not last.held:
        return NotGiven(0, doubtful=int(not last.dry and last.frames == ROUND_FRAMES))
    if last.last_ns < stop_ns - PAUSING_NS:  # held long before, and none was read in the pause yet
        return NotGiven(1) if unread_left else NotGiven(0, doubtful=1)
    last_left = _left(steps, last_sent_ns, min(last.last_ns, stop_ns))
    if before is None:
        return NotGiven(1, doubtful=int(last_left))
    if last.frames > 1 or not before.held:
        return NotGiven(1)
    if last_left or before.last_ns > stop_ns - PAUSING_NS:
        return NotGiven(2)
    return NotGiven(1, doubtful=1)


def _left(steps: Sequence[Step], since_ns: int | None, until_ns: int) -> bool:
    """Whether QEMU has left a frame in the tap that it could have read."""
    if since_ns is None:
        return False
    slept = sum(1 for step in steps if step.doing is Doing.SLEEP and since_ns < step.at_ns < until_ns)
    return slept >= UNWATCHED_SLEEPS


def _rounds(steps: Sequence[Step]) -> list[_Round] | None:
    """Those with frames, of which the beginning is known."""
    found: list[_Round] = []
    current: _Round | None = None
    for step in steps:
        if step.doing is Doing.SLEEP:
            current = _Round()
        elif current is None:
            continue
        elif step.doing is Doing.DRY:
            current.dry = True
        else:
            if not current.frames:
                found.append(current)
            current.frames += 1
            current.last_ns = step.at_ns
    return found if current is not None else None
