"""A move that is cancelled or loses an agent, the wire or QEMU: the guest is in one place, and traffic goes there.

migrate hook ─ start hook: port ─ ready ─ … memory … ─ pause ─ commit ─ resume ─ announced
                                 └── `slowed` moves stay here until something is done to them
"""

import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

import pytest
from lab_cast import Cast
from moving import EXTENDED, Attempt, Traveller, dropped, full_speed, remove, slowed, two_legged
from test_running_on import reconciled

from divhook.lab.errors import LabError
from divhook.lab.host import LabHost
from divhook.lab.lab import Lab
from divhook.lab.processes import wait_until

pytestmark = pytest.mark.one_mode
HOOK_DEADLINE_S = 5.0
TELL_DEADLINE_S = 1.0
SLACK_S = 10.0
"""The move itself, and what a loaded machine adds."""


@pytest.fixture(scope="module")
def travellers(lab: Lab, cast: Cast) -> Iterator[list[Traveller]]:
    """One, which a test may replace."""
    found = [two_legged(lab, cast)]
    yield found
    found[-1].end()
    remove(lab, found[-1].name)


@pytest.fixture
def traveller(lab: Lab, travellers: list[Traveller]) -> Iterator[Traveller]:
    """On A."""
    found = travellers[-1]
    if found.place != "A":
        found.move("A")
    found.settled("A")
    yield found
    lab.host("A").try_virsh("domjobabort", found.name)  # of a test that failed


def qemu_pid(host: LabHost, guest: str) -> int:
    return int(host.outside(f"/run/libvirt/qemu/{guest}.pid").read_text())


def begin_slowly(traveller: Traveller) -> Attempt:
    """A move from A to B that stays where all is prepared, until something is done to it."""
    slowed(traveller.lab.host("A"), traveller.name)
    attempt = traveller.begin("B")
    pid = traveller.lab.host("B").outside(f"/run/libvirt/qemu/{traveller.name}.pid")
    state = lambda: [record["state"] for record in traveller.records("A")][-1:]  # noqa: E731
    assert wait_until(lambda: pid.exists() and state() == ["ready"], 30, 0.05), (attempt.error, state())
    return attempt


def gone_from(traveller: Traveller, place: str) -> None:
    assert wait_until(lambda: not traveller.known_on(place), 30, 0.1), f"host {place} still has something of it"


def agent_again(host: LabHost) -> None:
    host.agent_start()
    assert wait_until(lambda: reconciled(host), 60, 0.1)


@contextmanager
def frozen(host: LabHost) -> Iterator[None]:
    pid = host.agent_pid
    assert pid is not None
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGCONT)


# ------------------------------------------------------------------ given up: it is where it was, and lost nothing


def cancel(traveller: Traveller) -> None:
    traveller.lab.host("A").virsh("domjobabort", traveller.name)


def kill_the_new_qemu(traveller: Traveller) -> None:
    os.kill(qemu_pid(traveller.lab.host("B"), traveller.name), signal.SIGKILL)


@pytest.mark.parametrize("end", [cancel, kill_the_new_qemu])
def test_move_that_is_given_up_costs_no_packet(traveller: Traveller, end: Callable[[Traveller], None]) -> None:
    with traveller.talking():
        attempt = begin_slowly(traveller)
        end(traveller)
        attempt.end()
        full_speed(traveller.lab.host("A"), traveller.name)
    assert attempt.error is not None
    traveller.settled("A")
    gone_from(traveller, "B")


def test_move_whose_wire_is_cut_and_that_is_cancelled_leaves_it_where_it_was(traveller: Traveller) -> None:
    attempt = begin_slowly(traveller)
    traveller.lab.switch.ip("link set pB down")
    try:
        with suppress(LabError):
            traveller.lab.host("A").virsh("domjobabort", traveller.name, timeout_s=10)
        time.sleep(0.3)
    finally:
        traveller.lab.switch.ip("link set pB up")
    attempt.end()
    full_speed(traveller.lab.host("A"), traveller.name)
    assert attempt.error is not None
    traveller.settled("A")
    gone_from(traveller, "B")


# ------------------------------------------------------------------ goes on: it is there, and its connections live


def test_move_whose_wire_is_cut_for_a_second_goes_on_after_it(traveller: Traveller) -> None:
    attempt = begin_slowly(traveller)
    traveller.lab.switch.ip("link set pB down")
    time.sleep(1.0)
    full_speed(traveller.lab.host("A"), traveller.name)
    traveller.lab.switch.ip("link set pB up")
    attempt.succeeded()
    traveller.settled("B")
    gone_from(traveller, "A")


@pytest.mark.parametrize("place", ["A", "B"], ids=["source", "destination"])
@pytest.mark.parametrize("when", ["ready", "moved"] if EXTENDED else ["ready"])
def test_agent_that_is_killed_during_or_right_after_a_move_costs_no_connection(
    traveller: Traveller, place: str, when: str, record_property: Callable[[str, object], None]
) -> None:
    """No hand-over, or half of one: until the agent is back, packets are lost, and some of them nobody counts."""
    host = traveller.lab.host(place)
    before = dropped(traveller.lab)
    with traveller.talking(uncounted=None) as conversation:
        attempt = begin_slowly(traveller)
        try:
            if when == "ready":
                host.agent_stop(signal.SIGKILL)
            full_speed(traveller.lab.host("A"), traveller.name)
            attempt.succeeded()
            if when == "moved":
                host.agent_stop(signal.SIGKILL)
        finally:
            agent_again(host)
        traveller.settled("B")
    counted = dropped(traveller.lab) - before
    print(f"\n{place} killed when {when}: {conversation.worst('network_lost')} lost, counted {counted}\n{conversation}")
    record_property("lost", conversation.worst("network_lost"))
    record_property("counted", counted.total())
    gone_from(traveller, "A")


def test_guest_leaves_a_host_whose_agent_is_away(traveller: Traveller) -> None:
    """The destination announces, and its log says that nothing was handed over. Guests left behind follow it late.

    web1 is on the host without an agent: what its kernel knows of the mover stays until there is one again.
    """
    here, there = traveller.lab.host("A"), traveller.lab.host("B")
    here.agent_stop()
    try:
        traveller.begin("B").succeeded()
        traveller.look()
        traveller.went_on("db1")
    finally:
        agent_again(here)
    traveller.settled("B")
    assert "came without a hand-over" in there.agent_log.read_text()


# ------------------------------------------------------------------ frozen agents: libvirt waits no longer than said


def test_frozen_destination_refuses_at_the_deadline_and_the_guest_runs_on(
    traveller: Traveller, record_property: Callable[[str, object], None]
) -> None:
    with frozen(traveller.lab.host("B")):
        attempt = traveller.begin("B").end()
    print(f"\nrefused after {attempt.took_s:.2f} s")
    record_property("refused_after_s", round(attempt.took_s, 2))
    assert attempt.error is not None
    assert "did not answer within 5 s" in attempt.error
    assert HOOK_DEADLINE_S <= attempt.took_s < HOOK_DEADLINE_S + 2 * TELL_DEADLINE_S + SLACK_S
    traveller.settled("A")
    there = traveller.lab.host("B")
    assert wait_until(lambda: "read after the hook's deadline" in there.agent_log.read_text(), 10, 0.1)
    assert not traveller.known_on("B")


def test_frozen_source_delays_the_move_by_two_tellings_at_most(
    traveller: Traveller, record_property: Callable[[str, object], None]
) -> None:
    with frozen(traveller.lab.host("A")):
        attempt = traveller.begin("B").succeeded()
    print(f"\nmoved in {attempt.took_s:.2f} s")
    record_property("migrate_s", round(attempt.took_s, 2))
    assert attempt.took_s < 2 * TELL_DEADLINE_S + SLACK_S
    traveller.settled("B")
    gone_from(traveller, "A")


# ------------------------------------------------------------------ the guest itself ends


def test_guest_that_ends_during_a_move_is_nowhere(traveller: Traveller, travellers: list[Traveller]) -> None:
    """Its QEMU on the source is killed: nobody claims it any more."""
    attempt = begin_slowly(traveller)
    os.kill(qemu_pid(traveller.lab.host("A"), traveller.name), signal.SIGKILL)
    attempt.end()
    assert attempt.error is not None
    gone_from(traveller, "A")
    gone_from(traveller, "B")
    assert traveller.runs_on() == []
