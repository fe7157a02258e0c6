"""The fast path and core's Pipeline decide alike: frames of guests and peers, in worlds that change, through both.

Whole output frames, verdicts, marks, targets, every counter, and map `endpoints` as the publisher keeps it, are held
against what must be (fastpath_referee.py), which follows from what the core did (fastpath_judge.py). This is the short
run; `make differential FRAMES=10000000` is the long one, and `make mutants` shows that planted faults are found.
"""

import random
import socket
import time
from collections.abc import Iterator
from dataclasses import replace

import pytest
from bpf_bench import run
from bpf_mutator import altered, runnable
from fastpath_captures import captured_packets, conversation
from fastpath_frames import Frames, Sent
from fastpath_mutants import FEW, hunt
from fastpath_referee import Referee, play, report, rounds
from fastpath_turns import turn
from fastpath_world import MAKE_TAPS, PLANS, TAPS, World
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from divhook.adapters.bpf import Programs

FRAMES = 40_000
REACHED = {
    *("guest to guest", "guest to wire", "wire to guest"),
    *("guest to guest, segmented", "guest to wire, segmented", "wire to guest, segmented"),
    *("answered CONSUMED", "CELL_DENIED", "SPOOF_LOCAL", "SPOOF_IPV4", "ROGUE_DHCP", "PORT_NOT_ACTIVE", "untouched"),
    *(
        "guest to group, 0 copies or more",
        "guest to group, 2 copies or more",
        "wire to group, 1 copies or more",
        "NO_MEMBER",
    ),
    *("guest to outside", "outside to guest", "guest to host", "HOST_SERVICE", "diverted: EXTERNAL_SPOOF"),
    *("diverted: forwarded", "diverted: fragmented", "diverted: held, or discovery", "diverted: TTL_EXPIRED"),
    *("diverted: FRAGMENTATION_NEEDED", "diverted: NOT_LOCAL", "diverted: UNKNOWN_HOST", "diverted: NO_SUCH_ENDPOINT"),
}
"""Ends that the short run comes to, whatever else."""
FORWARDED = 0.15
"""Share of frames that the programs must forward at least: else it would be a test of diverting."""


@pytest.fixture(scope="module")
def taps(namespace: None) -> Iterator[list[int]]:
    run(MAKE_TAPS)
    return [socket.if_nametoindex(name) for name in TAPS]


def test_frames_in_changing_worlds_end_alike_in_core_and_kernel(loaded: Programs, taps: list[int]) -> None:
    begin = time.monotonic()
    seen = rounds(loaded, "short", FRAMES)
    print(report(seen, time.monotonic() - begin))
    assert seen.keys() >= REACHED, REACHED - seen.keys()
    assert sum(count for kind, count in seen.items() if " to " in kind) > FORWARDED * seen.total()


@pytest.mark.parametrize("plan", PLANS)
def test_frames_end_alike_under_every_address_plan(loaded: Programs, taps: list[int], plan: str) -> None:
    seen = play(loaded, taps, f"plan {plan}", 1_000, plan=PLANS[plan])
    assert any(" to " in kind for kind in seen)


@pytest.mark.parametrize("seed", range(3))
def test_what_real_guests_said_ends_alike_as_it_was_and_altered(loaded: Programs, taps: list[int], seed: int) -> None:
    cast, frames = conversation()
    world = World(loaded, taps, f"conversation {seed}", PLANS["8+8+8"], [replace(place) for place in cast])
    referee = Referee(loaded, world)
    rng = random.Random(seed)
    for way, frame in frames:
        near = world.places[0].nic
        ifindex = near.ifindex if way == "guest" and near is not None else None
        for each in (frame, *(runnable(altered(frame, rng)) for _ in range(8))):
            referee.check(Sent(ifindex, each))
        referee.settle()
        world.exchange()
        referee.look()
    assert {
        "guest to wire",
        "wire to guest",
        "answered CONSUMED",
        "diverted: held, or discovery",
        "diverted: CONSUMED",
    } <= referee.seen.keys()


@settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)
@given(seed=st.integers(0, 2**32), rng=st.randoms(use_true_random=False), frames=st.integers(1, 12))
def test_any_frame_in_any_world_ends_alike(
    loaded: Programs, taps: list[int], seed: int, rng: random.Random, frames: int
) -> None:
    world = World(loaded, taps, f"any {seed}")
    for _ in range(seed % 3):
        turn(world)
    referee = Referee(loaded, world)
    supply = Frames(world, rng, captured_packets())
    for _ in range(frames):
        referee.check(supply.next())
        referee.settle()


@pytest.mark.parametrize("name", FEW)
def test_planted_fault_in_the_fast_path_is_found(name: str) -> None:
    assert hunt(name) is not None
