"""Every bound, rate and lifetime of discovery, by name and unit; and the three counters that hold them.

Hostile guests can cause misses and held frames; wire neighbours that forge a peer's pmac can cause source checks,
and answers to frames for nobody. Each of these has a rate and a table bound here.
"""

from collections import OrderedDict
from collections.abc import Hashable
from dataclasses import dataclass

from divhook.core.reasons import DropReason

MAX_STAMP = 1 << 62
"""Claims with a stamp from here on are ignored: the clock must not run over (today's microseconds are 2^51)."""


@dataclass(frozen=True, slots=True)
class Limits:
    """Defaults are for a LAN. `_s` are seconds."""

    reachable_s: float = 60.0  # a confirmed entry is trusted this long
    tick_s: float = 0.1  # to which its end is looked for
    reachable_jitter: float = 0.1  # shortened by up to this share, so that refreshes spread
    probe_count: int = 3  # how often a question is asked
    probe_interval_s: float = 0.2  # between two askings, and after the last
    refresh_interval_s: float = 2.0  # the same for a refresh: an agent may restart meanwhile, its guests run on
    negative_first_s: float = 1.0  # nobody answered: silence after the first time, then doubled
    negative_max_s: float = 30.0
    negative_memory_s: float = 60.0  # an entry that never had a claim is forgotten this long after
    neighbours: int = 131072  # about 700 bytes each; the fast path holds as many

    misses_per_s_port: float = 20.0  # new questions to a group, per port; bursts of as many
    misses_per_s_host: float = 50.0
    hold_per_destination: int = 64  # frames
    hold_total: int = 4096  # frames, with 1500 bytes: 6 MiB

    pair_spacing_s: float = 0.1  # one source probe per (address, pmac)
    source_checks: int = 1024  # pairs in question at one time
    source_probes_per_s: float = 500.0
    challenge_spacing_s: float = 1.0  # per pmac
    challenges_per_s: float = 50.0
    answer_spacing_s: float = 0.1  # unasked MOVED, GONE, STALE per (pmac, address)
    answers_per_s: float = 200.0

    announce_count: int = 3  # a new claim, and GONE
    announce_interval_s: float = 0.2
    repeat_s: float = 600.0  # every claim is announced again
    repeat_jitter: float = 0.1  # by up to this share earlier or later
    carrier_spread_s: float = 1.0  # after carrier-up all claims are repeated within this time
    hear_s: float = 0.6  # after a start, a higher cached claim of the same guest is outbid unseen
    fence_probe_s: float = 10.0  # a fenced endpoint asks its owner
    next_s: float = 60.0  # frames of an endpoint that is about to move may come from its next host as well
    prepared: int = 256  # hosts of talkers that are told so

    peers: int = 16384  # hosts heard from
    withdrawn: int = 4096  # former claims remembered
    spacings: int = 8192  # keys remembered by each spacing


class TokenBucket:
    """At most `rate_per_s` over time, and bursts of `burst`. Starts full."""

    def __init__(self, rate_per_s: float, burst: float) -> None:
        self._rate_per_s = rate_per_s
        self._burst = burst
        self._tokens = burst
        self._at_s = float("-inf")

    def available(self, now: float) -> bool:
        """Whether `take` would succeed."""
        if now > self._at_s:
            elapsed = now - self._at_s
            self._tokens = min(self._burst, self._tokens + elapsed * self._rate_per_s)
            self._at_s = now
        return self._tokens >= 1

    def take(self, now: float) -> bool:
        """Use one token if there is one."""
        if not self.available(now):
            return False
        self._tokens -= 1
        return True


class Spacing:
    """Once per key and interval. Remembers at most `bound` keys; beyond, the oldest is forgotten."""

    def __init__(self, interval_s: float, bound: int) -> None:
        self._interval_s = interval_s
        self._bound = bound
        self._last_s: OrderedDict[Hashable, float] = OrderedDict()

    def __len__(self) -> int:
        return len(self._last_s)

    def allow(self, key: Hashable, now: float) -> bool:
        """Whether the interval since the last allowed time is over; if so, that time is now."""
        last_s = self._last_s.get(key)
        if last_s is not None and now - last_s < self._interval_s:
            return False
        self._last_s[key] = now
        self._last_s.move_to_end(key)
        if len(self._last_s) > self._bound:
            self._last_s.popitem(last=False)
        return True


class HoldBudget:
    """Frames that wait, over all queues: bounded per queue and in total. A queue is a list; order is kept."""

    def __init__(self, per_queue: int, total: int) -> None:
        self._per_queue = per_queue
        self._total = total
        self.used = 0

    def add(self, queue: list[object], item: object) -> DropReason | None:
        """Append an item, or say which bound refuses it. None as an item is not held: nothing waits."""
        if item is None:
            return None
        if len(queue) >= self._per_queue:
            return DropReason.HOLD_QUEUE_FULL
        if self.used >= self._total:
            return DropReason.HOLD_TABLE_FULL
        self.used += 1
        queue.append(item)
        return None

    def drain(self, queue: list[object]) -> tuple[object, ...]:
        """Empty a queue; its items in the order of their coming."""
        items = tuple(queue)
        self.used -= len(items)
        queue.clear()
        return items
