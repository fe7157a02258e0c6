"""Numbered datagrams both ways between a guest that moves and its clients (talk.c), and an exact account of each.

    mover ◀────────▶ client c, NIC eth0   same subnet
          ◀────────▶ client c, NIC eth1   another subnet, by the router

Each arrow is one flow: the same two ports both ways. A datagram that a guest's own socket had no room for is the
guest's loss, not the network's.
"""

import json
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path

from divhook.lab.guest import LabGuest

FIRST_PORT = 7000
SESSION_PORT = 22
TICK_MS = 170
"""How often a session's server speaks unasked."""
DRAIN_S = 0.5
"""Between the last datagram and the count: more than any queue holds."""
_SOURCE = Path(__file__).with_name("talk.c")


def build(directory: Path) -> Path:
    """Compile the program for the guests, static."""
    binary = directory / "talk"
    subprocess.run(["cc", "-O2", "-static", "-Wall", "-Werror", "-o", str(binary), str(_SOURCE)], check=True)
    return binary


@dataclass(frozen=True, slots=True)
class Flow:
    """Datagrams both ways between the mover and one NIC of a client. number: makes the ports."""

    number: int
    client: str
    nic: str
    subnet: str
    address: str
    """The client's."""
    mover_nic: str = "-"
    mover_address: str = ""
    """Of the mover's NIC that it talks to, where that is not the first one."""


@dataclass(frozen=True, slots=True)
class Account:
    """One direction of a flow. arrivals_us: by number, the receiver's wall clock; None: it did not arrive."""

    sent: int
    received: int
    duplicated: int
    reordered: int
    overflowed: int
    """Of the lost ones, those that the receiver's socket had no room for."""
    arrivals_us: Sequence[int | None]

    @property
    def lost(self) -> int:
        """Sent and not received, whoever lost them."""
        return self.sent - self.received

    @property
    def network_lost(self) -> int:
        """Without those that arrived at the receiver and found its socket full."""
        return self.lost - self.overflowed

    @property
    def gap_ms(self) -> float:
        """The longest time without an arrival, between two arrivals."""
        times = sorted(at for at in self.arrivals_us if at is not None)
        return max((after - before for before, after in pairwise(times)), default=0) / 1000

    @property
    def missing(self) -> list[tuple[int, int]]:
        """(first number, how many) of each run of datagrams that did not arrive."""
        runs: list[tuple[int, int]] = []
        arrivals = [*self.arrivals_us, *[None] * (self.sent - len(self.arrivals_us))]
        for number, at in enumerate(arrivals[: self.sent]):
            if at is None and runs and sum(runs[-1]) == number:
                runs[-1] = (runs[-1][0], runs[-1][1] + 1)
            elif at is None:
                runs.append((number, 1))
        return runs


def account(sender: Mapping[str, object], receiver: Mapping[str, object]) -> Account:
    """From what talk says of one flow at its two ends."""
    arrivals: list[int | None] = []
    last = 0
    steps = receiver["arrived_us"]
    assert isinstance(steps, list)
    for step in steps:
        last += step or 0
        arrivals.append(None if step is None else last)
    numbers = (int(str(receiver[name])) for name in ("received", "doubled", "reordered", "overflowed"))
    return Account(int(str(sender["sent"])), *numbers, arrivals)


@dataclass
class Conversation:
    """What came of it, once it has ended: by flow, to the client and to the mover."""

    to_client: dict[Flow, Account] = field(default_factory=dict)
    to_mover: dict[Flow, Account] = field(default_factory=dict)

    @property
    def accounts(self) -> list[tuple[str, Flow, Account]]:
        """(direction, flow, account) of each."""
        named = (("to_client", self.to_client), ("to_mover", self.to_mover))
        return [(name, flow, each) for name, accounts in named for flow, each in accounts.items()]

    def worst(self, what: str) -> int:
        """The sum over all flows of one figure of Account."""
        return sum(int(getattr(each, what)) for _, _, each in self.accounts)

    def __str__(self) -> str:
        lines = [
            f"{flow.client} {flow.subnet} {name}: {a.sent} sent, {a.lost} lost ({a.overflowed} at the socket), "
            f"{a.duplicated} doubled, {a.reordered} reordered, gap {a.gap_ms:.1f} ms"
            + (f", missing {a.missing[:8]}" if a.lost else "")
            for name, flow, a in self.accounts
        ]
        return "\n".join(lines)


class Talk:
    """The parties. `where`: how a guest is reached now, asked each time, since guests move."""

    def __init__(self, mover: str, address: str, flows: Sequence[Flow], where: "Where") -> None:
        self._mover = mover
        self.address = address
        self.flows = flows
        self._where = where

    @property
    def _parties(self) -> list[str]:
        return [self._mover, *self._by_client()]

    def warm(self) -> None:
        """Everyone has found everyone."""
        for client, flows in self._by_client().items():
            pings = (f"ping -c 2 -i 0.1 -W 3 -I {flow.nic} {self._address_for(flow)} &" for flow in flows)
            self._where(client).exec(" ".join([*pings, "wait"]), 30)

    def _by_client(self) -> dict[str, list[Flow]]:
        """A command in a guest costs more than what it does: one for all flows of a client."""
        found: dict[str, list[Flow]] = {}
        for flow in self.flows:
            found.setdefault(flow.client, []).append(flow)
        return found

    @contextmanager
    def running(self, per_second: int) -> Iterator[Conversation]:
        """As long as the body lasts, datagrams pass both ways; filled in at the end."""
        found = Conversation()
        for name in self._parties:
            self._where(name).exec(
                f"talk udp {per_second} {self._specs(name)} >/tmp/talk.json 2>/tmp/talk.err &"
                " echo $! >/tmp/talk.pid; sleep 0.05"
            )
        self._toggle()
        try:
            yield found
        finally:
            self._toggle()
            time.sleep(DRAIN_S)
            told = {name: self._told(name) for name in self._parties}
        for index, flow in enumerate(self.flows):
            mine = self._by_client()[flow.client]
            here, there = told[self._mover][index], told[flow.client][mine.index(flow)]
            found.to_client[flow] = account(here, there)
            found.to_mover[flow] = account(there, here)

    def _toggle(self) -> None:
        for name in self._parties:
            self._where(name).exec("kill -USR1 $(cat /tmp/talk.pid)")

    def _told(self, name: str) -> list[dict[str, object]]:
        output = self._where(name).exec(
            "p=$(cat /tmp/talk.pid); kill -TERM $p; while kill -0 $p 2>/dev/null; do sleep 0.05; done;"
            " cat /tmp/talk.json /tmp/talk.err"
        )
        told: list[dict[str, object]] = json.loads(output)
        return told

    def _address_for(self, flow: Flow) -> str:
        return flow.mover_address or self.address

    def _specs(self, name: str) -> str:
        if name == self._mover:
            ends = [(flow.mover_nic, flow.number, flow.address) for flow in self.flows]
        else:
            mine = self._by_client()[name]
            ends = [(flow.nic, flow.number, self._address_for(flow)) for flow in mine]
        return " ".join(f"{nic},{FIRST_PORT + number},{to},{FIRST_PORT + number}" for nic, number, to in ends)

    # TCP, for as long as the guests live

    def open_sessions(self, interval_ms: int = 20) -> None:
        """From each client's NIC a connection to the mover, that is to outlive all moves."""
        self._where(self._mover).exec(
            f"talk serve {SESSION_PORT} {TICK_MS} >/tmp/serve.log 2>&1 & echo $! >/tmp/serve.pid; sleep 0.1"
        )
        for client, flows in self._by_client().items():
            begin = (
                f"rm -f {_session(flow)}.json;"
                f" talk session {flow.nic} {self._address_for(flow)} {SESSION_PORT} {interval_ms} {_session(flow)}.json"
                f" >/dev/null 2>&1 & echo $! >{_session(flow)}.pid;"
                for flow in flows
            )
            begun = (f"until [ -e {_session(flow)}.json ]; do sleep 0.1; done;" for flow in flows)
            self._where(client).exec(" ".join([*begin, *begun]))

    def sessions(self, forget: bool = False) -> dict[Flow, dict[str, object]]:
        """What each connection has come to. forget: the longest stall counts anew."""
        found = {}
        for client, flows in self._by_client().items():
            forgetting = (f"kill -USR1 $(cat {_session(flow)}.pid);" for flow in flows if forget)
            files = (f"{_session(flow)}.json" for flow in flows)
            output = self._where(client).exec(" ".join(["cat", *files, ";", *forgetting]))
            found |= dict(zip(flows, map(json.loads, output.splitlines()), strict=True))
        return {flow: found[flow] for flow in self.flows}

    def close_sessions(self, server: bool = True) -> None:
        """End them, and the server, too."""
        for client, flows in self._by_client().items():
            self._where(client).exec(" ".join(["kill -TERM", *(f"$(cat {_session(f)}.pid)" for f in flows), "|| true"]))
        if server:
            self._where(self._mover).exec("kill -TERM $(cat /tmp/serve.pid) || true")


def _session(flow: Flow) -> str:
    """Its files in the client, without their endings."""
    return f"/tmp/session.{flow.number}"


class Where:
    """Finds a guest by its name; `moved` says that it runs on another host now."""

    def __init__(self, guests: Sequence[LabGuest]) -> None:
        self._guests = {guest.name: guest for guest in guests}

    def __call__(self, name: str) -> LabGuest:
        return self._guests[name]

    def moved(self, guest: LabGuest) -> None:
        """It runs where `guest` says."""
        self._guests[guest.name] = guest
