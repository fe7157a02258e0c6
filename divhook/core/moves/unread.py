"""Which frames a paused guest has not seen: what was sent into its tap, against what QEMU has read out of it.

    frames into the tap   0 … n-1, as a packet socket counts them, each with the time of its sending
    read by QEMU          tx_packets of the tap, since the socket was opened
    queued before that    the smallest difference that was ever seen between the two, if negative
    read and not given    told from the steps of QEMU's main loop (reads.py): `looked`, as soon as the guest is paused

Where those steps are not to be had, QEMU's habits must do, tried with QEMU 7.2: a paused QEMU reads exactly one frame
more and holds it, which tx_packets counts and the guest has not seen. So, once QEMU has had the time to do so
(`settled`), the unseen ones begin one before the first that was not read; and never after the first one that was sent
after the pause.

A frame may be lost, and is counted as doubtful, where whether QEMU gave it to the guest can't be told. A second copy
would be the other mistake. Without those steps that is:
    - nothing at all came after the pause, and the last one came within DOUBT_NS before it;
    - the first unread one had waited for DOUBT_NS: perhaps QEMU held the one before it, and threw it away at the pause;
    - the one before it was sent within DOUBT_NS before the pause: perhaps it was read while QEMU was pausing.
"""

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

from divhook.core.moves.reads import Step, not_given

RING_FRAMES = 4096
"""Frames kept for a guest that is paused soon; those of the pause itself too. Four times a tap's own queue."""
RING_BYTES = 32 << 20
"""And their bytes: segmented frames have up to 64 KiB."""
DOUBT_NS = 500_000
"""How long before the pause QEMU may have had a frame in its hands, where its steps are not known."""
HELD_BY_QEMU = 1
"""Frames that a paused QEMU has read and not given to its guest."""


@dataclass(frozen=True, slots=True)
class Delivered:
    """One frame that was sent into the tap. at_ns: of the wall clock. data: what the shell needs to send it again."""

    at_ns: int
    data: bytes


class Unread:
    """The frames into one tap since a socket listens. Counters are those of the tap's link, as they were read."""

    def __init__(self, tx_packets: int, tx_dropped: int) -> None:
        self._tx0, self._dropped0 = tx_packets, tx_dropped
        self._before = 0  # frames that were in the tap's queue already
        self._ring: deque[Delivered] = deque()
        self._bytes = 0
        self.count = 0
        """Frames so far."""
        self.overflow = 0
        """Frames of the pause that the ring had no room for."""
        self.stop_ns: int | None = None
        self._dropped_at_stop = tx_dropped
        self._first_unseen: int | None = None  # as `looked` found
        self._in_doubt = 0

    def delivered(self, frame: Delivered) -> None:
        """The next frame. Before the pause the oldest makes room for it, from then on it finds none."""
        if len(self._ring) >= RING_FRAMES or self._bytes + len(frame.data) > RING_BYTES:
            if self.stop_ns is not None and self._ring and self._ring[0].at_ns >= self.stop_ns:
                self.overflow += 1
                return
            while self._ring and (len(self._ring) >= RING_FRAMES or self._bytes + len(frame.data) > RING_BYTES):
                self._bytes -= len(self._ring.popleft().data)
        self.count += 1
        self._ring.append(frame)
        self._bytes += len(frame.data)

    def missed(self, frames: int) -> None:
        """The socket lost so many: they were sent into the tap, and nobody has them."""
        self.count += frames
        if self.stop_ns is not None:
            self.overflow += frames

    def sample(self, tx_packets: int, tx_dropped: int) -> None:
        """The tap's counters, read before the frames up to now were `delivered`. While the guest runs."""
        read = tx_packets - self._tx0 + tx_dropped - self._dropped0
        self._before = max(self._before, read - self.count)

    def paused(self, stop_ns: int, tx_dropped: int) -> None:
        """The guest was paused at stop_ns; counters a moment later."""
        self.stop_ns = stop_ns
        self._dropped_at_stop = tx_dropped

    def resumed(self) -> None:
        """It runs again here, and reads what waits."""
        self.stop_ns = self._first_unseen = None
        self.overflow = 0

    def looked(self, tx_packets: int, steps: Sequence[Step]) -> bool:
        """What QEMU did, and the counter, of one moment after the pause. False where that tells nothing."""
        if self.stop_ns is None:
            return False
        read, first = self._read(tx_packets), self.count - len(self._ring)
        last_sent_ns = self._ring[read - 1 - first].at_ns if first < read <= self.count else None
        waits_since_ns = self._ring[read - first].at_ns if first <= read < self.count else None
        found = not_given(steps, self.stop_ns, last_sent_ns, waits_since_ns)
        if found is None:
            return False
        self._first_unseen = read - found.frames
        self._in_doubt = found.doubtful
        return True

    def settled(self, tx_packets: int) -> bool:
        """False where QEMU may still be about to read its one frame: it has read as many as came before the pause."""
        stop_ns = self.stop_ns
        if stop_ns is None or self._first_unseen is not None:
            return True
        return not self._after(stop_ns) == self._read(tx_packets) < self.count

    def unseen(self, tx_packets: int) -> list[Delivered]:
        """What the guest has not seen, in order, of what is in the ring; QEMU has read tx_packets and no more will."""
        if self.stop_ns is None:
            return []
        first = self.count - len(self._ring)
        if self._first_unseen is not None:
            return list(self._ring)[max(first, self._first_unseen) - first :]
        after, read = self._after(self.stop_ns), self._read(tx_packets)
        if after == self.count and read >= self.count:
            return []
        start = max(first, min(after, read - HELD_BY_QEMU))
        return list(self._ring)[start - first :]

    def _after(self, stop_ns: int) -> int:
        """Number of the first frame that was sent after the pause."""
        first = self.count - len(self._ring)
        return next((first + i for i, frame in enumerate(self._ring) if frame.at_ns > stop_ns), self.count)

    def _read(self, tx_packets: int) -> int:
        """How many of the frames QEMU has read, or the tap had no room for."""
        return tx_packets - self._tx0 + self._dropped_at_stop - self._dropped0 - self._before

    def doubtful(self, tx_packets: int) -> int:
        """Frames of which it can't be told whether the guest has seen them, or that it has not and nobody has them."""
        if self._first_unseen is not None:
            return self._in_doubt + max(0, self.count - len(self._ring) - self._first_unseen)
        if self.stop_ns is None or not self._ring:
            return 0
        unseen = self.unseen(tx_packets)
        if not unseen:
            return int(0 <= self.stop_ns - self._ring[-1].at_ns < DOUBT_NS)
        before = len(self._ring) - len(unseen) - 1
        just_read = before >= 0 and 0 <= self.stop_ns - self._ring[before].at_ns < DOUBT_NS
        return int(just_read or self.stop_ns - unseen[0].at_ns > DOUBT_NS)
