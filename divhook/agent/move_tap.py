"""The tap of a NIC that leaves: every frame into it seen, its counters compared, and kept until all is said.

The capture must be read empty before a count of it means anything; what it had no room for counts as sent, too. The tap
is held (adapters/tap_hold.py), for libvirt ends QEMU before this agent has heard that the guest runs elsewhere.
"""

import asyncio
import logging
from collections.abc import Callable

from divhook.adapters.tap_capture import BATCH, TapCapture
from divhook.adapters.tap_hold import TapHold
from divhook.adapters.tap_reads import TapReads
from divhook.agent.move_record import MoveRecord
from divhook.agent.nic import Nic
from divhook.core.moves.unread import Delivered, Unread

SAMPLE_S = 0.02
"""How often the tap's counter is compared with what was sent into it."""
MAX_LOOKS = 3
"""QEMU may read one frame more while it is looked at."""
MAX_DRAINS = 256
"""Batches that are read in a row: more frames than a capture has room for."""

log = logging.getLogger(__name__)


class TapWatch:
    """`deliver` is called with each frame, in order; it may close this. Raises OSError where it can't be watched."""

    def __init__(
        self, nic: Nic, record: MoveRecord, pid_of: Callable[[str], int], deliver: Callable[[Delivered], None]
    ) -> None:
        self._nic = nic
        self._record = record
        self._deliver = deliver
        self._loop = asyncio.get_running_loop()
        capture = TapCapture(nic.ifindex)
        self._capture: TapCapture | None = capture
        self._last = capture.before
        self.unread = Unread(*capture.before)
        self._hold: TapHold | None = None
        self._reads: TapReads | None = None
        try:
            pid = pid_of(nic.guest)
            self._hold = TapHold(pid, nic.ifname)
            if len(self._hold.theirs) > 1:
                raise ValueError(f"it has {len(self._hold.theirs)} queues, and which one a frame is in can't be told")
            self._reads = TapReads(pid, self._hold.theirs[0])
        except (OSError, ValueError) as error:
            if self._hold is None:
                record.note(f"its tap goes with QEMU, and what is sent into it just then is lost: {error}")
            else:
                record.note(f"a frame may be lost, or come twice: how QEMU reads its tap is not shown: {error}")
            log.info("%s: its tap cannot be held, or QEMU not be watched: %s", nic, error)
        self._loop.add_reader(capture.fileno(), self._readable)
        self._loop.call_later(SAMPLE_S, self._sample)

    def counters(self) -> tuple[int, int]:
        """(tx_packets, tx_dropped) of the tap, or the last that were seen."""
        if self._capture is not None:
            self._last = self._capture.counters() or self._last
        return self._last

    def look(self) -> bool:
        """Find out what the guest has not seen, which is paused now. False where that can't be told yet."""
        for _ in range(MAX_LOOKS):
            self.drain()
            if self._reads is None:
                return False
            read, _ = self.counters()
            steps = self._reads.steps(self._reads.ring())
            if steps is not None and read == self.counters()[0]:
                told = self.unread.looked(read, steps)
                if told:
                    self._watch_no_more()
                return told
        return False

    def _watch_no_more(self) -> None:
        if self._reads is not None:
            self._loop.run_in_executor(None, self._reads.close)
            self._reads = None

    def drain(self) -> None:
        """Read all that waits now."""
        for _ in range(MAX_DRAINS):
            if self._read() < BATCH:
                break
        self._count_lost()

    def let_go(self) -> None:
        """Nothing is sent into the tap any more: without QEMU it goes now."""
        self._watch_no_more()
        if self._hold is not None:
            self.drain()
            self._hold.close()
            self._hold = None

    def close(self) -> None:
        """Let go, and see nothing more."""
        self.let_go()
        self._end()

    def _end(self) -> None:
        if self._capture is not None:
            self._loop.remove_reader(self._capture.fileno())
            self._capture.close()
            self._capture = None
        self._watch_no_more()

    def _readable(self) -> None:
        if self._read() < BATCH:
            self._count_lost()

    def _read(self) -> int:
        """How many frames were read; 0 where none waits, or the tap is gone."""
        if self._capture is None:
            return 0
        try:
            frames = self._capture.read()
        except OSError:
            self._end()
            return 0
        for at_ns, data in frames:
            self._deliver(Delivered(at_ns, data))
        return len(frames)

    def _count_lost(self) -> None:
        """What the capture had no room for was sent into the tap all the same, behind all that it had."""
        if self._capture is not None and (lost := self._capture.lost()):
            self.unread.missed(lost)
            self._record.note(f"{lost} frames found the capture full")
            log.warning("%s: the capture of its tap has lost %d frames", self._nic, lost)

    def _sample(self) -> None:
        if self._capture is None or self.unread.stop_ns is not None:
            return
        counters = self.counters()
        self.drain()  # all of it: a frame that waits here and was read there would seem to be older than it is
        if self.unread.stop_ns is None:
            self.unread.sample(*counters)
            self._loop.call_later(SAMPLE_S, self._sample)
