"""Timers of a sans-IO machine: one per key, in a heap. Cancelled and postponed ones are dealt with on top."""

import heapq
from collections.abc import Callable, Hashable

Action = Callable[[float], None]


class Timers:
    """`set` replaces the key's timer. Setting one later than before costs no heap operation."""

    def __init__(self) -> None:
        self._wanted: dict[Hashable, tuple[float, Action]] = {}
        self._queued_s: dict[Hashable, float] = {}  # the one heap item of a key that counts
        self._heap: list[tuple[float, int, Hashable]] = []
        self._serial = 0

    def __len__(self) -> int:
        return len(self._wanted)

    def set(self, key: Hashable, when: float, action: Action) -> None:
        """Call action(now) at the first `run(now)` with now >= when."""
        self._wanted[key] = (when, action)
        queued_s = self._queued_s.get(key)
        if queued_s is None or when < queued_s:
            self._push(key, when)

    def cancel(self, key: Hashable) -> None:
        """Forget the key's timer, if there is one."""
        self._wanted.pop(key, None)

    def next(self) -> float | None:
        """Time of the earliest timer."""
        while self._heap:
            when, _, key = self._heap[0]
            wanted = self._wanted.get(key)
            if wanted is not None and wanted[0] == when == self._queued_s.get(key):
                return when
            heapq.heappop(self._heap)
            if self._queued_s.get(key) == when:
                del self._queued_s[key]
                if wanted is not None:
                    self._push(key, wanted[0])
        return None

    def run(self, now: float) -> None:
        """Run all that are due, earliest first."""
        while (when := self.next()) is not None and when <= now:
            _, _, key = heapq.heappop(self._heap)
            del self._queued_s[key]
            _, action = self._wanted.pop(key)
            action(now)

    def _push(self, key: Hashable, when: float) -> None:
        self._serial += 1
        self._queued_s[key] = when
        heapq.heappush(self._heap, (when, self._serial, key))


class Wheel:
    """Deadlines of many items, late by up to tick_s, at 8 bytes each: one timer per tick that has any."""

    def __init__(self, timers: Timers, tick_s: float, action: Callable[[bytes, float], None]) -> None:
        self._timers = timers
        self._tick_s = tick_s
        self._action = action
        self._slots: dict[int, list[bytes]] = {}
        self._last = 0  # slot that ran last: an action that adds again gets a later one, whatever the rounding

    def add(self, item: bytes, when: float) -> None:
        """Call action(item, now) soon after `when`. Not to be cancelled: the action looks whether it still matters."""
        slot = max(int(when / self._tick_s), self._last) + 1
        if slot not in self._slots:
            self._slots[slot] = []
            self._timers.set((self, slot), slot * self._tick_s, lambda now: self._run(slot, now))
        self._slots[slot].append(item)

    def _run(self, slot: int, now: float) -> None:
        self._last = max(self._last, slot)
        for item in self._slots.pop(slot):
            self._action(item, now)
