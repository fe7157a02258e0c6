"""core/flow and the programs keep the same flows: the same packets through both, classes and all entries compared."""

import random
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest
from bpf_bench import Bench
from bpf_flows import FlowBench
from flow_packets import ACK, FAR, FIN, RST, SYN, WEB, Age, tcp, walk
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from divhook.core.flow import HEARD, SENT, FlowClass, TcpEvent, TcpState

SEQUENCES, STEPS = 50, 100


FLAGS = {
    TcpEvent.SYN: SYN,
    TcpEvent.SYN_ACK: SYN | ACK,
    TcpEvent.ACK: ACK,
    TcpEvent.FIN: FIN | ACK,
    TcpEvent.RST: RST,
}
States = tuple[TcpState, TcpState]
Path = tuple[tuple[bool, TcpEvent], ...]
"""Who sends (True: the side that did not open), and what."""


def shortest_paths() -> dict[States, Path]:
    """To all states of opener and other side that the tables allow, one packet after the other."""
    begun = (SENT.next(TcpState.NONE, TcpEvent.SYN), TcpState.NONE)
    found: dict[States, Path] = {begun: ((False, TcpEvent.SYN),)}
    fresh = [begun]
    for opener, other in fresh:  # which grows
        for event in TcpEvent:
            sent = SENT.next(opener, event), HEARD.next(other, event)
            replied = HEARD.next(opener, event), SENT.next(other, event)
            for replies, states in ((False, sent), (True, replied)):
                if states not in found:
                    found[states] = (*found[opener, other], (replies, event))
                    fresh.append(states)
    return found


@pytest.fixture
def flows(bench: Bench) -> Iterator[FlowBench]:
    made = FlowBench(bench)
    yield made
    made.close()


def test_every_segment_in_every_state_of_a_connection(flows: FlowBench) -> None:
    paths = shortest_paths()
    assert len(paths) > 15
    for states, path in paths.items():
        for last in ((replies, event) for replies in (False, True) for event in TcpEvent):
            flows.forget()
            for replies, event in path:
                flows.check(_segment(replies, event))
            assert flows.tcp_states() == {states}
            flows.check(_segment(*last))


def _segment(replies: bool, event: TcpEvent) -> bytes:
    ends = (FAR, WEB, 22, 5000) if replies else (WEB, FAR, 5000, 22)
    return tcp(*ends, FLAGS[event])


def test_random_sequences_leave_the_same_flows(flows: FlowBench) -> None:
    seen: Counter[FlowClass] = Counter()
    for seed in range(SEQUENCES):
        rng = random.Random(seed)
        flows.forget()
        for what in walk(rng.choice, STEPS):
            if isinstance(what, Age):
                flows.age(what.seconds)
            else:
                seen.update(flows.check(what))
    assert set(seen) == set(FlowClass), "a class was never met"
    assert min(seen.values()) > 20, seen


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
