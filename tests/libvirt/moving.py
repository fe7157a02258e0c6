"""A guest that moves between the session's hosts, and what it and its clients say to each other meanwhile."""

import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from host_state import rows
from lab_cast import Cast

from bench.moves.traffic import Conversation, Flow, Talk, Where
from divhook.lab.errors import LabError
from divhook.lab.guest import GuestSpec, LabGuest, Nic
from divhook.lab.host import LabHost
from divhook.lab.lab import Lab
from divhook.lab.processes import wait_until

NAME = "mover"
PER_SECOND = 200
"""Less than an emulated guest can read on a busy machine: what is lost then is not the network's."""
ORDINARY = ("--live", "--persistent", "--undefinesource")
MAX_COUNTED = 2
"""Lost by one test's moves, and counted: one for each queue of the guest and pause."""
BEFORE_S, AFTER_S = 0.4, 0.6


@dataclass
class Attempt:
    """A `virsh migrate` that runs beside the test. error: what libvirt said, where it refused or gave up."""

    thread: threading.Thread
    begin_s: float
    took_s: float = 0.0
    error: str | None = None

    def end(self, timeout_s: float = 60.0) -> "Attempt":
        """Wait for it."""
        self.thread.join(timeout_s)
        assert not self.thread.is_alive(), "libvirt still moves the guest"
        return self


class Traveller:
    """The guest, its two clients (web1 on A in its own subnet, db1 on B in another), and where it is."""

    def __init__(self, lab: Lab, cast: Cast) -> None:
        self.lab = lab
        guest = lab.start(GuestSpec(NAME, (Nic("shop", "web"),)), "A")
        self.address = guest.wait_address()
        self.where = Where([guest, cast.web1, cast.db1])
        self.flows = [
            Flow(0, "web1", "eth0", "web", cast.address("web1")),
            Flow(1, "db1", "eth0", "db", cast.address("db1")),
        ]
        self.talk = Talk(NAME, self.address, self.flows, self.where)
        self.talk.open_sessions(interval_ms=50)

    @property
    def place(self) -> str:
        """The one host on which libvirt runs it."""
        (name,) = self.runs_on()
        return name

    @property
    def elsewhere(self) -> str:
        return "B" if self.place == "A" else "A"

    def runs_on(self) -> list[str]:
        return [name for name, host in self.lab.hosts.items() if NAME in host.guests()]

    def host(self) -> LabHost:
        return self.lab.host(self.place)

    def active_on(self) -> list[str]:
        """Hosts whose agent has it as active."""
        return [
            name
            for name, host in self.lab.hosts.items()
            for row in rows(host, "endpoints")
            if row["guest"] == NAME and row["state"] == "active"
        ]

    def begin(self, target: str, *options: str, uri: str = "") -> Attempt:
        """`virsh migrate`, beside the caller."""
        here = self.host()

        def work() -> None:
            try:
                here.virsh("migrate", *(options or ORDINARY), NAME, uri or f"qemu+tcp://host{target}/system")
            except LabError as error:
                attempt.error = str(error)
            attempt.took_s = time.monotonic() - attempt.begin_s

        attempt = Attempt(threading.Thread(target=work), time.monotonic())
        attempt.thread.start()
        return attempt

    def move(self, target: str, *options: str) -> Attempt:
        """`virsh migrate` that must succeed."""
        attempt = self.begin(target, *options).end()
        assert attempt.error is None, attempt.error
        self.look()
        return attempt

    def look(self) -> None:
        """Find it again, in one place."""
        assert wait_until(lambda: len(self.runs_on()) == 1, 20, 0.1), self.runs_on()
        self.where.moved(LabGuest(self.host(), NAME))

    @contextmanager
    def talking(self, uncounted: int = 0) -> Iterator[Conversation]:
        """Datagrams pass both ways, from before the body to after it, and none is lost or doubled but `uncounted`."""
        self.talk.warm()
        before = self.counted_lost()
        with self.talk.running(PER_SECOND) as conversation:
            time.sleep(BEFORE_S)
            yield conversation
            self.look()
            time.sleep(AFTER_S)
        assert_whole(conversation, self.counted_lost() - before, uncounted)

    def counted_lost(self) -> Counter[str]:
        """Frames that the agents of both hosts say a move has lost, so far, by reason."""
        found: Counter[str] = Counter()
        for host in self.lab.hosts.values():
            for row in rows(host, "drops"):
                if str(row["reason"]).startswith("move_"):
                    found[str(row["reason"])] += int(row["packets"])
        return found

    def settled(self, place: str) -> None:
        """It runs in that one place, claimed there only; everyone reaches it, and its old connections live."""
        assert self.runs_on() == [place]
        assert wait_until(lambda: self.active_on() == [place], 30, 0.1), self.active_on()
        self.look()
        before = self.answered()
        assert wait_until(lambda: all(now > before[c] for c, now in self.answered().items()), 30, 0.2), self.sessions()

    def sessions(self) -> dict[str, dict[str, object]]:
        return {flow.client: state for flow, state in self.talk.sessions().items()}

    def answered(self) -> dict[str, int]:
        return {client: int(str(state["answered"])) for client, state in self.sessions().items()}

    def end(self) -> None:
        self.talk.close_sessions()
        for host in self.lab.hosts.values():
            host.try_virsh("destroy", NAME)
            host.try_virsh("managedsave-remove", NAME)
            host.try_virsh("undefine", NAME)


def assert_whole(conversation: Conversation, counted: Counter[str], uncounted: int) -> None:
    """Nothing came twice, and nothing was lost by the network but what the agents counted as lost by a move.

    That is at most what QEMU had in its hands at the pause: docs/protocol.md.
    """
    assert conversation.worst("duplicated") == 0, str(conversation)
    assert counted.total() <= MAX_COUNTED, f"{counted}\n{conversation}"
    assert conversation.worst("network_lost") <= counted.total() + uncounted, f"{counted} counted\n{conversation}"


def slowed(host: LabHost) -> None:
    """Its next move takes until it is cancelled."""
    host.virsh("migrate-setspeed", NAME, "1")


def full_speed(host: LabHost) -> None:
    host.virsh("migrate-setspeed", NAME, "8796093022207")
