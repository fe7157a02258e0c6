"""A move that is cancelled or loses an agent, the wire or QEMU: the guest is in one place, and traffic goes there."""

import contextlib
import os
import signal
import time
from collections.abc import Callable, Iterator

import pytest
from host_state import rows
from lab_cast import Cast
from moving import NAME, ORDINARY, Traveller, full_speed, slowed
from test_running_on import reconciled

from divhook.lab.host import LabHost
from divhook.lab.lab import Lab
from divhook.lab.processes import wait_until

HOOK_DEADLINE_S = 5.0
TELL_DEADLINE_S = 1.0
SLACK_S = 6.0
"""The move itself, and what a loaded machine adds."""


@pytest.fixture(scope="module")
def travellers(lab: Lab, cast: Cast) -> Iterator[Traveller]:
    found = Traveller(lab, cast)
    yield found
    found.end()


@pytest.fixture
def traveller(travellers: Traveller) -> Traveller:
    """On A."""
    if travellers.place != "A":
        travellers.move("A")
    travellers.settled("A")
    return travellers


def begun(host: LabHost) -> bool:
    """The destination's agent has a port for it."""
    return any(row["guest"] == NAME for row in rows(host, "endpoints"))


def qemu_pid(host: LabHost) -> int:
    return int((host.root / f"run/libvirt/qemu/{NAME}.pid").read_text())


def test_cancelled_move_loses_nothing_and_leaves_the_guest_where_it_was(traveller: Traveller, lab: Lab) -> None:
    here, there = lab.host("A"), lab.host("B")
    slowed(here)
    with traveller.talking():
        attempt = traveller.begin("B")
        assert wait_until(lambda: begun(there), 20, 0.1)
        here.virsh("domjobabort", NAME)
        attempt.end()
    full_speed(here)
    assert attempt.error is not None
    traveller.settled("A")
    assert wait_until(lambda: not begun(there), 10, 0.1)


def test_destinations_qemu_that_dies_leaves_the_guest_where_it_was(traveller: Traveller, lab: Lab) -> None:
    here, there = lab.host("A"), lab.host("B")
    slowed(here)
    with traveller.talking():
        attempt = traveller.begin("B")
        assert wait_until(lambda: begun(there) and (there.root / f"run/libvirt/qemu/{NAME}.pid").exists(), 20, 0.1)
        os.kill(qemu_pid(there), signal.SIGKILL)
        attempt.end()
    full_speed(here)
    assert attempt.error is not None
    traveller.settled("A")
    assert wait_until(lambda: not begun(there), 10, 0.1)


def test_wire_cut_during_a_move_and_the_move_cancelled(traveller: Traveller, lab: Lab) -> None:
    here, there = lab.host("A"), lab.host("B")
    slowed(here)
    attempt = traveller.begin("B")
    assert wait_until(lambda: begun(there), 20, 0.1)
    lab.switch.ip("link set pB down")
    try:
        with contextlib.suppress(Exception):
            here.virsh("domjobabort", NAME, timeout_s=10)
        time.sleep(0.3)
    finally:
        lab.switch.ip("link set pB up")
    attempt.end(90)
    full_speed(here)
    assert attempt.error is not None
    traveller.settled("A")
    assert wait_until(lambda: not begun(there), 30, 0.1)


def test_sources_agent_killed_during_a_move_costs_no_connection(traveller: Traveller, lab: Lab) -> None:
    """No hand-over: the destination announces, and that is all."""
    here = lab.host("A")
    slowed(here)
    attempt = traveller.begin("B")
    try:
        assert wait_until(lambda: begun(lab.host("B")), 20, 0.1)
        here.agent_stop(signal.SIGKILL)
        full_speed(here)
        attempt.end()
    finally:
        here.agent_start()
    assert attempt.error is None
    assert wait_until(lambda: reconciled(here), 60, 0.1)
    traveller.look()
    traveller.settled("B")


def test_guest_that_ends_during_a_move_is_nowhere(traveller: Traveller, lab: Lab, cast: Cast) -> None:
    """Its QEMU on the source is killed: nobody claims it any more. It is started again."""
    here, there = lab.host("A"), lab.host("B")
    slowed(here)
    attempt = traveller.begin("B")
    assert wait_until(lambda: begun(there), 20, 0.1)
    os.kill(qemu_pid(here), signal.SIGKILL)
    attempt.end()
    assert attempt.error is not None
    assert wait_until(lambda: not begun(there) and not begun(here), 20, 0.1)
    assert traveller.runs_on() == []
    traveller.end()
    traveller.__init__(lab, cast)  # type: ignore[misc]  # the module's one traveller, anew
    traveller.settled("A")


def test_frozen_destination_refuses_at_the_deadline(
    traveller: Traveller, lab: Lab, record_property: Callable[[str, object], None]
) -> None:
    pid = lab.host("B").agent_pid
    assert pid is not None
    os.kill(pid, signal.SIGSTOP)
    try:
        attempt = traveller.begin("B").end()
    finally:
        os.kill(pid, signal.SIGCONT)
    print(f"\nrefused after {attempt.took_s:.2f} s")
    record_property("refused_after_s", round(attempt.took_s, 2))
    assert attempt.error is not None
    assert "did not answer within 5 s" in attempt.error
    assert HOOK_DEADLINE_S <= attempt.took_s < HOOK_DEADLINE_S + 2 * TELL_DEADLINE_S + SLACK_S
    traveller.settled("A")


def test_frozen_source_delays_the_move_by_two_tellings_at_most(
    traveller: Traveller, lab: Lab, record_property: Callable[[str, object], None]
) -> None:
    pid = lab.host("A").agent_pid
    assert pid is not None
    os.kill(pid, signal.SIGSTOP)
    try:
        attempt = traveller.begin("B", *ORDINARY).end()
    finally:
        os.kill(pid, signal.SIGCONT)
    print(f"\nmoved in {attempt.took_s:.2f} s")
    record_property("migrate_s", round(attempt.took_s, 2))
    assert attempt.error is None
    assert attempt.took_s < 2 * TELL_DEADLINE_S + SLACK_S
    traveller.look()
    traveller.settled("B")
