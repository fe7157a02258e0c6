from divhook.core.discovery.limits import HoldBudget, Spacing, TokenBucket
from divhook.core.discovery.timers import Timers, Wheel
from divhook.core.reasons import DropReason


def test_bucket_gives_its_burst_then_its_rate():
    bucket = TokenBucket(10, 3)
    assert [bucket.take(5.0) for _ in range(4)] == [True, True, True, False]
    assert [bucket.take(5.1001), bucket.take(5.1001)] == [True, False]
    assert sum(bucket.take(100.0) for _ in range(10)) == 3


def test_bucket_survives_a_clock_that_stands_still_or_goes_back():
    bucket = TokenBucket(10, 1)
    assert bucket.take(5.0)
    assert not bucket.take(4.0)
    assert not bucket.take(5.0)


def test_spacing_allows_each_key_once_per_interval_and_forgets_the_oldest_when_full():
    spacing = Spacing(1.0, bound=2)
    assert [spacing.allow("a", 0.0), spacing.allow("a", 0.9), spacing.allow("b", 0.9)] == [True, False, True]
    assert spacing.allow("c", 0.95)
    assert len(spacing) == 2
    assert spacing.allow("a", 0.96)  # forgotten
    assert not spacing.allow("c", 0.97)


def test_hold_budget_names_the_bound_that_refuses_and_gives_frames_back_in_order():
    budget = HoldBudget(per_queue=2, total=3)
    first: list[object] = []
    second: list[object] = []
    assert [budget.add(first, n) for n in (1, 2, 3)] == [None, None, DropReason.HOLD_QUEUE_FULL]
    assert [budget.add(second, n) for n in (4, 5)] == [None, DropReason.HOLD_TABLE_FULL]
    assert budget.add(second, None) is None
    assert budget.drain(first) == (1, 2)
    assert (budget.used, second) == (1, [4])


def run(timers: Timers, *times: float) -> None:
    for now in times:
        timers.run(now)


def test_timers_run_once_when_due_earliest_first():
    timers, ran = Timers(), []
    timers.set("late", 2.0, lambda now: ran.append(("late", now)))
    timers.set("soon", 1.0, lambda now: ran.append(("soon", now)))
    assert timers.next() == 1.0
    run(timers, 0.5, 3.0, 4.0)
    assert ran == [("soon", 3.0), ("late", 3.0)]
    assert timers.next() is None


def test_timer_that_is_set_again_runs_at_the_new_time_only():
    for second in (0.5, 1.0, 5.0):
        timers, ran = Timers(), []
        timers.set("key", 1.0, lambda now, ran=ran: ran.append("old"))
        timers.set("key", second, lambda now, ran=ran: ran.append(now))
        assert timers.next() == second
        run(timers, 0.4, 0.5, 1.0, 4.0, 5.0, 9.0)
        assert ran == [second]


def test_cancelled_timer_does_not_run_and_may_be_set_again():
    timers, ran = Timers(), []
    timers.set("key", 1.0, ran.append)
    timers.cancel("key")
    timers.cancel("unknown")
    assert timers.next() is None
    timers.set("key", 3.0, ran.append)
    timers.set("key", 2.0, ran.append)
    timers.cancel("key")
    timers.set("key", 4.0, ran.append)
    run(timers, 3.5)
    assert (ran, timers.next()) == ([], 4.0)


def test_timer_may_set_itself_while_it_runs():
    timers, ran = Timers(), []

    def again(now: float) -> None:
        ran.append(now)
        timers.set("key", now + 1, again)

    timers.set("key", 1.0, again)
    run(timers, 1.0, 1.5, 2.0)
    assert ran == [1.0, 2.0]
    assert len(timers) == 1


def test_postponing_a_timer_again_and_again_does_not_grow_the_heap():
    timers = Timers()
    for n in range(10_000):
        timers.set("key", 100.0 + n, lambda now: None)
    assert len(timers._heap) == 1


def test_wheel_runs_items_in_the_tick_after_their_time_with_one_timer_per_tick():
    timers, ran = Timers(), []
    wheel = Wheel(timers, 0.1, lambda item, now: ran.append((item, now)))
    for item, when in ((b"a", 5.02), (b"b", 5.31), (b"c", 5.04)):
        wheel.add(item, when)
    assert len(timers) == 2
    run(timers, 5.01)
    assert ran == []
    run(timers, 5.11, 5.2, 5.41)
    assert ran == [(b"a", 5.11), (b"c", 5.11), (b"b", 5.41)]


def test_wheel_does_not_spin_on_an_item_that_is_added_again_for_the_same_time():
    timers, ran = Timers(), []

    def again(item: bytes, now: float) -> None:
        ran.append(now)
        wheel.add(item, 5.0)

    wheel = Wheel(timers, 0.1, again)
    wheel.add(b"a", 5.0)
    run(timers, 5.15)
    assert ran == [5.15]
