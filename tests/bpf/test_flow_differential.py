"""core/flow and the programs keep the same flows: the same packets through both, classes and all entries compared."""

import random
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest
from bpf_bench import Bench
from bpf_flows import FlowBench
from flow_packets import Age, walk
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from divhook.core.flow import HEARD, SENT, FlowClass, TcpEvent, TcpState

SEQUENCES, STEPS = 70, 100


def reachable() -> set[tuple[TcpState, TcpState]]:
    """States of opener and other side, by the tables alone."""
    found, fresh = set(), {(SENT.next(TcpState.NONE, TcpEvent.SYN), TcpState.NONE)}
    while fresh:
        found |= fresh
        sent = {(SENT.next(a, e), HEARD.next(b, e)) for a, b in fresh for e in TcpEvent}
        replied = {(HEARD.next(a, e), SENT.next(b, e)) for a, b in fresh for e in TcpEvent}
        fresh = (sent | replied) - found
    return found


REACHABLE = reachable()


@pytest.fixture
def flows(bench: Bench) -> Iterator[FlowBench]:
    made = FlowBench(bench)
    yield made
    made.close()


def test_random_sequences_leave_the_same_flows(flows: FlowBench) -> None:
    seen: Counter[FlowClass] = Counter()
    states: set[tuple[TcpState, TcpState]] = set()
    for seed in range(SEQUENCES):
        rng = random.Random(seed)
        flows.forget()
        for what in walk(rng.choice, STEPS):
            if isinstance(what, Age):
                flows.age(what.seconds)
            else:
                seen.update(flows.check(what))
                states |= flows.tcp_states()
    assert set(seen) == set(FlowClass), "a class was never met"
    assert min(seen.values()) > 20, seen
    assert states == REACHABLE


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_sequence_leaves_the_same_flows(flows: FlowBench, data: st.DataObject) -> None:
    def pick(choices: Any) -> Any:
        return data.draw(st.sampled_from(choices))

    flows.forget()
    for what in walk(pick, data.draw(st.integers(1, 12))):
        if isinstance(what, Age):
            flows.age(what.seconds)
        else:
            flows.check(what)
