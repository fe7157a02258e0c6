"""A guest that moves between the session's hosts, and what it and its clients say to each other meanwhile."""

import os
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from host_state import rows
from lab_cast import Cast

from bench.moves.traffic import Conversation, Flow, Talk, Where
from divhook.lab.errors import LabError
from divhook.lab.guest import GuestSpec, LabGuest, Nic
from divhook.lab.host import LabHost
from divhook.lab.lab import Lab
from divhook.lab.processes import wait_until

EXTENDED = "DIVHOOK_MOVES" in os.environ
"""`make move-tests`: all of it, and longer series."""
MOVES = int(os.environ.get("DIVHOOK_MOVES", "2"))
"""In a row, without a rest."""
PER_SECOND = 100
"""Of each flow, each way: less than an emulated guest can read on a busy machine, which would lose them itself."""
SESSION_MS = 50
ORDINARY = ("--live", "--persistent", "--undefinesource")
MAX_COUNTED = 2
"""Lost by one test's moves, and counted: one for each queue of the guest and pause."""
BEFORE_S, AFTER_S = 0.4, 0.6
SETTLE_S = 60.0
"""What a loaded machine may take for anything that is a matter of a second."""


@dataclass
class Attempt:
    """A `virsh migrate` that runs beside the test. error: what libvirt said, where it refused or gave up."""

    thread: threading.Thread
    begin_s: float
    took_s: float = 0.0
    error: str | None = None

    def end(self, timeout_s: float = 120.0) -> "Attempt":
        """Wait for it."""
        self.thread.join(timeout_s)
        assert not self.thread.is_alive(), "libvirt still moves the guest"
        return self

    def succeeded(self) -> "Attempt":
        """Wait for it, and libvirt says nothing bad."""
        self.end()
        assert self.error is None, self.error
        return self


class Traveller:
    """A running guest, its clients by `flows`, and where it is. Each client has a session with it: talk.c."""

    def __init__(self, lab: Lab, guest: LabGuest, clients: Sequence[LabGuest], flows: Sequence[Flow]) -> None:
        self.lab = lab
        self.name = guest.name
        self.where = Where([guest, *clients])
        self.talk = Talk(self.name, guest.wait_address(), flows, self.where)
        self.talk.warm()
        self.talk.open_sessions(SESSION_MS)
        self.went_on()

    # where it is

    @property
    def place(self) -> str:
        """The one host on which libvirt runs it. Not to be asked during a move: then there are two."""
        (name,) = self.runs_on()
        return name

    @property
    def elsewhere(self) -> str:
        return "B" if self.place == "A" else "A"

    def runs_on(self) -> list[str]:
        return [name for name, host in self.lab.hosts.items() if self.name in host.guests()]

    def host(self) -> LabHost:
        return self.lab.host(self.place)

    def active_on(self) -> list[str]:
        """Hosts whose agent has all its NICs as active; one that has only some is listed as well, with "(part)"."""
        found = []
        for name, host in self.lab.hosts.items():
            states = {row["state"] for row in rows(host, "endpoints") if row["guest"] == self.name}
            if "active" in states:
                found.append(name if states == {"active"} else f"{name} (part)")
        return found

    def known_on(self, place: str) -> bool:
        """Whether that host's agent has anything of it."""
        return any(row["guest"] == self.name for row in rows(self.lab.host(place), "endpoints"))

    # moves

    def begin(self, target: str, *options: str, uri: str = "") -> Attempt:
        """`virsh migrate`, beside the caller."""
        return begin_move(self.host(), self.name, target, *options, uri=uri)

    def move(self, target: str, *options: str) -> Attempt:
        """`virsh migrate` that must succeed."""
        attempt = self.begin(target, *options).succeeded()
        self.look()
        return attempt

    def look(self) -> None:
        """Find it again, in one place."""
        assert wait_until(lambda: len(self.runs_on()) == 1, SETTLE_S, 0.1), self.runs_on()
        self.where.moved(LabGuest(self.host(), self.name))

    def records(self, place: str) -> list[dict[str, Any]]:
        """What a host's agent has of its moves."""
        return [row for row in self.lab.host(place).ask_agent({"op": "moves"})["result"] if row["guest"] == self.name]

    # what it says

    @contextmanager
    def talking(self, uncounted: int | None = 0) -> Iterator[Conversation]:
        """Datagrams pass both ways, from before the body to after it, and none is lost or doubled.

        uncounted: how many may be lost without being counted; None: any number, and none is doubled.
        """
        self.talk.warm()
        before = counted_lost(self.lab)
        with self.talk.running(PER_SECOND) as conversation:
            time.sleep(BEFORE_S)
            yield conversation
            self.look()
            time.sleep(AFTER_S)
        assert_whole(conversation, counted_lost(self.lab) - before, uncounted)

    def settled(self, place: str) -> None:
        """It runs in that one place, claimed there only; everyone reaches it, and its old connections live."""
        assert self.runs_on() == [place]
        assert wait_until(lambda: self.active_on() == [place], SETTLE_S, 0.1), self.active_on()
        self.look()
        self.went_on()

    def went_on(self, *clients: str) -> None:
        """Every session is open, and both its ends speak; or those of some clients."""
        before = self.sessions(*clients)

        def all_did() -> bool:
            now = self.sessions(*clients)
            return all(int(now[n][what]) > int(before[n][what]) for n in now for what in ("answered", "ticks"))

        assert wait_until(all_did, SETTLE_S, 0.2), (before, self.sessions())
        assert {state["state"] for state in self.sessions(*clients).values()} == {"open"}, self.sessions()

    def sessions(self, *clients: str) -> dict[int, dict[str, Any]]:
        """By the number of their flow."""
        told = self.talk.sessions().items()
        return {flow.number: state for flow, state in told if not clients or flow.client in clients}

    def end(self) -> None:
        """End the sessions. The guest runs on, if it does."""
        self.talk.close_sessions(server=bool(self.runs_on()))


def begin_move(here: LabHost, guest: str, target: str, *options: str, uri: str = "") -> Attempt:
    """`virsh migrate` of a guest, beside the caller."""

    def work() -> None:
        try:
            here.virsh(
                *("migrate", *(options or ORDINARY), guest, uri or f"qemu+tcp://host{target}/system"), timeout_s=120
            )
        except LabError as error:
            attempt.error = str(error)
        attempt.took_s = time.monotonic() - attempt.begin_s

    attempt = Attempt(threading.Thread(target=work), time.monotonic())
    attempt.thread.start()
    return attempt


def dropped(lab: Lab) -> Counter[str]:
    """Frames that all hosts have dropped so far, by reason."""
    found: Counter[str] = Counter()
    for host in lab.hosts.values():
        for row in rows(host, "drops"):
            if row["reason"] != "consumed":
                found[str(row["reason"])] += int(row["packets"])
    return found


def counted_lost(lab: Lab) -> Counter[str]:
    """Those of them that the agents say a move has lost."""
    return Counter({reason: count for reason, count in dropped(lab).items() if reason.startswith("move_")})


def assert_whole(conversation: Conversation, counted: Counter[str], uncounted: int | None) -> None:
    """Nothing came twice, and nothing was lost by the network but what the agents counted as lost by a move.

    That is at most what QEMU had in its hands at the pause: docs/protocol.md.
    """
    assert conversation.worst("duplicated") == 0, str(conversation)
    if uncounted is None:
        return
    assert counted.total() <= MAX_COUNTED, f"{counted}\n{conversation}"
    assert conversation.worst("network_lost") <= counted.total() + uncounted, f"{counted} counted\n{conversation}"


def slowed(host: LabHost, guest: str) -> None:
    """Its next move from there takes until it is cancelled, or the speed is full again."""
    host.virsh("migrate-setspeed", guest, "1")


def full_speed(host: LabHost, guest: str) -> None:
    host.virsh("migrate-setspeed", guest, "8796093022207")


def two_legged(lab: Lab, cast: Cast, name: str = "mover") -> Traveller:
    """A guest with NICs in two subnets, on A. web1 on A and db1 on B talk to its first NIC, db1 also to its second."""
    guest = lab.start(GuestSpec(name, (Nic("shop", "web"), Nic("shop", "db"))), "A")
    first, second = (guest.wait_address(nic) for nic in ("eth0", "eth1"))
    router = guest.dhcp_options("eth0")["router"].split()[0]
    subnet_of_both = f"{second.rsplit('.', 1)[0]}.0/24"
    guest.exec(  # what belongs to the first NIC goes there, also to the subnet that the second is in
        f"ip route add {subnet_of_both} via {router} dev eth0 metric 50;"
        f" ip route add default via {router} dev eth0 table 7; ip rule add from {first} table 7"
    )
    flows = [
        Flow(0, "web1", "eth0", "web", cast.address("web1"), "eth0"),
        Flow(1, "db1", "eth0", "db", cast.address("db1"), "eth0"),
        Flow(2, "db1", "eth0", "db", cast.address("db1"), "eth1", second),
    ]
    return Traveller(lab, guest, [cast.web1, cast.db1], flows)


def remove(lab: Lab, name: str) -> None:
    """It is nowhere, running, saved or defined."""
    for host in lab.hosts.values():
        host.try_virsh("destroy", name)
        host.try_virsh("managedsave-remove", name)
        host.try_virsh("undefine", name)
