"""Guests run on under an agent or a libvirtd that is killed, and are served as before by the next one."""

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator

import pytest
from host_state import claims, differences, everything, rows
from lab_cast import Cast

from divhook.lab.errors import LabError
from divhook.lab.guest import GuestSpec, LabGuest, Nic
from divhook.lab.host import LabHost
from divhook.lab.lab import Lab
from divhook.lab.processes import wait_until

PING_INTERVAL_S = 0.1
HOOK_DEADLINE_S = 5.0
TELL_DEADLINE_S = 1.0
"""After a refusal libvirt calls the hook twice more, for stopped and release."""
SLACK_S = 3.0
"""For what a loaded machine adds to a deadline."""


class Stream:
    """A ping at 10/s from one guest to an address, for as long as the block lasts."""

    def __init__(self, guest: LabGuest, address: str) -> None:
        self._guest = guest
        self._address = address
        self.sent = 0
        self.seen: list[int] = []
        """Sequence numbers in the order of their answers, doubles included."""

    def __enter__(self) -> "Stream":
        self._guest.exec(f"ping -i {PING_INTERVAL_S} -W 2 {self._address} >/tmp/stream 2>&1 & echo $! >/tmp/stream.pid")
        assert wait_until(lambda: self._answers() >= 5, 60)
        return self

    def _answers(self) -> int:
        return int(self._guest.exec("grep -c seq= /tmp/stream || true"))

    def go_on(self, answers: int = 10) -> None:
        """Wait until so many more are answered."""
        until = self._answers() + answers
        assert wait_until(lambda: self._answers() >= until, 60)

    def __exit__(self, *_: object) -> None:
        output = self._guest.exec("kill -INT $(cat /tmp/stream.pid); sleep 0.5; cat /tmp/stream")
        self.seen = [int(line.split("seq=")[1].split()[0]) for line in output.splitlines() if "seq=" in line]
        self.sent = int(output.split(" packets transmitted")[0].split("\n")[-1])

    @property
    def lost(self) -> list[int]:
        """Sequence numbers without an answer, without the last one: it may have been on its way."""
        return sorted(set(range(self.sent - 1)) - set(self.seen))

    @property
    def twice(self) -> list[int]:
        """Sequence numbers with more than one answer."""
        return sorted({number for number in self.seen if self.seen.count(number) > 1})


def reconciled(host: LabHost) -> bool:
    try:
        status = host.ask_agent({"op": "status"})
    except (OSError, ValueError):
        return False
    return bool(status["ok"] and status["result"]["reconciled"] and status["result"]["libvirt"] == "connected")


def end_agent_and_start(host: LabHost, number: signal.Signals = signal.SIGKILL) -> float:
    """Returns for how many seconds no agent served."""
    begin = time.monotonic()
    host.agent_stop(number)
    host.agent_start()
    assert wait_until(lambda: reconciled(host), 60, 0.05)
    return time.monotonic() - begin


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_agent_that_ended_comes_back_with_everything_and_loses_at_most_its_own_absence(
    lab: Lab, cast: Cast, number: signal.Signals, fastpath: bool, record_property: Callable[[str, object], None]
) -> None:
    """Nothing at all is lost with the fast path: the kernel goes on with what it knows."""
    host = lab.host("A")
    target = cast.address("web2")
    before, claimed = everything(host), claims(host)
    saved = rows(host, "leases")
    with Stream(cast.web1, target) as stream:
        away_s = end_agent_and_start(host, number)
        stream.go_on()
    assert differences(before, everything(host)) == {}
    assert claims(host) == claimed, "a restart of the agent says nothing on who holds an address: no new stamp"
    assert [row["remaining_s"] for row in rows(host, "leases")] <= [row["remaining_s"] for row in saved]
    assert stream.twice == []
    gap_s = len(stream.lost) * PING_INTERVAL_S
    print(f"\nagent away for {away_s:.2f} s; ping at 10/s lost {len(stream.lost)} of {stream.sent}")
    record_property("agent_away_s", round(away_s, 2))
    record_property("ping_gap_s", round(gap_s, 2))
    assert gap_s <= (0 if fastpath else away_s + SLACK_S)
    if stream.lost:
        assert stream.lost == list(range(stream.lost[0], stream.lost[-1] + 1)), "one gap, and no loss after it"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_libvirtds_end_and_return_cost_no_packet_and_change_nothing(
    lab: Lab, cast: Cast, number: signal.Signals
) -> None:
    host = lab.host("A")
    target = cast.address("web2")
    before, claimed = everything(host), claims(host)
    with Stream(cast.web1, target) as stream:
        host.stop_libvirtd(number)
        assert wait_until(lambda: not reconciled(host), 30, 0.1), "the agent has noticed"
        stream.go_on(5)
        host.start_libvirtd()
        assert wait_until(lambda: reconciled(host), 60, 0.1)
        stream.go_on(5)
    assert (stream.lost, stream.twice) == ([], [])
    assert differences(before, everything(host)) == {}
    assert claims(host) == claimed
    guest = lab.start(GuestSpec("after", (Nic("shop", "web"),)), "A", wait=False)
    assert [row["guest"] for row in rows(host, "endpoints")].count("after") == 1
    guest.stop()


@pytest.fixture
def by_name(lab: Lab, cast: Cast) -> Iterator[LabGuest]:
    """A guest that a cell file places by its name, with a second NIC that was plugged in while it ran."""
    host = lab.host("A")
    guest = lab.start(GuestSpec("shop-db", (Nic("shop", "db"),), metadata=False), "A")
    assert guest.wait_address() == "10.1.2.20"
    mac = "52:54:00:77:0b:02"
    host.virsh("attach-interface", "shop-db", "bridge", "divbr0", "--mac", mac, "--model", "virtio", "--live")
    yield guest
    guest.stop()


def test_guest_placed_by_name_stays_when_it_has_a_second_nic_at_the_agents_restart(
    lab: Lab, cast: Cast, by_name: LabGuest
) -> None:
    host = lab.host("A")
    assert wait_until(lambda: "10.1.2.20" in {row["address"] for row in rows(host, "endpoints")}, 10)
    before = [row for row in rows(host, "endpoints") if row["address"] == "10.1.2.20"]
    end_agent_and_start(host)
    after = [row for row in rows(host, "endpoints") if row["address"] == "10.1.2.20"]
    assert [{**row, "source": ""} for row in after] == [{**row, "source": ""} for row in before]
    assert "3 packets received" in cast.web1.exec("ping -c 3 -i 0.2 -W 5 10.1.2.20")


def test_place_that_was_changed_meanwhile_counts_from_the_next_start(lab: Lab, cast: Cast) -> None:
    """Assigned anew while it runs, then metadata that nobody can read: neither moves nor cuts off what runs."""
    host = lab.host("A")
    guest = lab.start(GuestSpec("settled", (Nic("shop", "web"),)), "A")
    address = guest.wait_address()
    host.divhook("assign", "settled", "--cell", "shop", "--subnet", "db")
    end_agent_and_start(host)
    assert [(row["address"], row["subnet"]) for row in rows(host, "endpoints") if row["guest"] == "settled"] == [
        (address, "web")
    ]
    broken = "<guest><nic cell='shop' subnet='web' colour='red'/></guest>"
    host.virsh("metadata", "settled", "urn:divhook:guest:1", "--live", "--key", "divhook", "--set", broken)
    end_agent_and_start(host)
    assert [row["address"] for row in rows(host, "endpoints") if row["guest"] == "settled"] == [address]
    assert "3 packets received" in guest.exec(f"ping -c 3 -i 0.2 -W 5 {cast.address('web2')}")
    host.virsh("destroy", "settled")
    host.virsh("start", "settled")
    assert [row["subnet"] for row in rows(host, "endpoints") if row["guest"] == "settled"] == ["db"]
    guest.stop()


@pytest.fixture
def frozen_agent(lab: Lab, cast: Cast) -> Iterator[LabHost]:
    host = lab.host("A")
    pid = host.agent_pid
    assert pid is not None
    os.kill(pid, signal.SIGSTOP)
    yield host
    os.kill(pid, signal.SIGCONT)


def test_frozen_agent_refuses_at_the_deadline_and_only_guests_of_divhook(lab: Lab, frozen_agent: LabHost) -> None:
    host = frozen_agent
    lab.define(GuestSpec("unlucky", (Nic("shop", "web"),)), "A")
    errors: list[str] = []

    def start() -> None:
        try:
            host.virsh("start", "unlucky")
        except LabError as error:
            errors.append(str(error))

    begin = time.monotonic()
    attempt = threading.Thread(target=start)
    attempt.start()
    bystander = lab.start(GuestSpec("bystander"), "A", wait=False)
    assert attempt.is_alive(), "the guest without divhook did not wait for the hook of the other"
    attempt.join()
    took_s = time.monotonic() - begin
    bystander.stop()
    host.virsh("undefine", "unlucky")
    assert HOOK_DEADLINE_S <= took_s < HOOK_DEADLINE_S + 2 * TELL_DEADLINE_S + SLACK_S
    assert len(errors) == 1
    assert "did not answer within 5 s" in errors[0]
    assert "systemctl restart divhook-agent" in errors[0]
