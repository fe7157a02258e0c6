"""Hosts with Authenticator and Discovery on a wire that loses, doubles, delays, and belongs to a recording attacker.

tests/sim/simulator.py asks whether the rules between honest hosts hold; here every message is sealed, and the question
is whether sessions, challenges and holds let honest hosts through, and nobody else.
"""

import heapq
import random
from dataclasses import dataclass

import pytest

from divhook.core.addressing import AddressPlan, Mac
from divhook.core.auth import Authenticator, Opened, Refused
from divhook.core.discovery import Discovery, Found
from divhook.core.keys import Key, KeyRing
from divhook.core.reasons import DropReason
from divhook.core.wire.discovery import Claim, parse_discovery_untrusted

RING = KeyRing((Key(1, bytes(range(1, 33)), send=True),))
STRANGERS_RING = KeyRing((Key(1, bytes(range(2, 34)), send=True),))
PLAN = AddressPlan()
WALL_US = 1_700_000_000_000_000
LATENCY_S = 0.0001


def pmac(number: int) -> Mac:
    return bytes([0x02, 0x0A, 0x0B, 0x0C, 0x0D, number])


def address(number: int) -> bytes:
    return bytes([10, 7, 9, 10 + number])


class Host:
    """One agent: it dies and comes back with a new session and an empty memory."""

    def __init__(self, number: int, rng: random.Random) -> None:
        self.number = number
        self.pmac = pmac(number)
        self._rng = rng
        self.believed: dict[bytes, tuple[int, Mac]] = {}
        self.made: set[Claim] = set()  # every claim of every life
        self.start(0.0)

    def start(self, now: float, keys: KeyRing = RING) -> None:
        self.auth = Authenticator(self.pmac, keys, self._rng.getrandbits(64))
        self.discovery = Discovery(self.pmac, PLAN, random.Random(self._rng.random()), WALL_US)
        vmac = bytes([0x52, 0x54, 0, 0, 0, self.number])
        self.discovery.activate(address(self.number), vmac, self.number, 0, None, now)
        self.discovery.ready(now)
        self.believed = {}

    def receive(self, frame: bytes, now: float) -> None:
        result = self.auth.open_untrusted(frame, now)
        for message in result.messages if isinstance(result, Opened) else ():
            self.discovery.receive(message, now)

    def frames(self, now: float) -> list[bytes]:
        self.auth.on_timer(now)
        self.discovery.on_timer(now)
        self.made.update(self.discovery.claims())
        sealed = [self.auth.seal(message, now) for message in self.discovery.messages_to_send()]
        self.discovery.events()
        return sealed + self.auth.frames_to_send()

    def next_timer(self) -> float:
        timers = (self.auth.next_timer(), self.discovery.next_timer())
        return min((t for t in timers if t is not None), default=float("inf"))

    def resolve(self, other: int, now: float) -> Claim | None:
        found = self.discovery.resolve(address(other), 1, address(self.number), now)
        return found.claim if isinstance(found, Found) else None


@dataclass
class Noise:
    loss: float = 0.0
    duplicate: float = 0.0
    late: float = 0.0  # share that comes up to 50 ms late
    attacks_per_s: float = 0.0


class Wire:
    def __init__(self, hosts: list[Host], rng: random.Random) -> None:
        self.hosts = hosts
        self.noise = Noise()
        self.now = 0.0
        self.tape: list[bytes] = []
        self._rng = rng
        self._queue: list[tuple[float, int, bytes, Host]] = []
        self._count = 0
        self._next_attack_s = 0.0

    def _put(self, at: float, frame: bytes, to: Host) -> None:
        self._count += 1
        heapq.heappush(self._queue, (at, self._count, frame, to))

    def _send(self, frames: list[bytes]) -> None:
        for frame in frames:
            self.tape.append(frame)
            for host in self.hosts:
                if frame[6:12] == host.pmac or not (frame[0] & 1 or frame[:6] == host.pmac):
                    continue
                for _ in range(1 + (self._rng.random() < self.noise.duplicate)):
                    if self._rng.random() >= self.noise.loss:
                        late_s = self._rng.random() * 0.05 if self._rng.random() < self.noise.late else 0.0
                        self._put(self.now + LATENCY_S + late_s, frame, host)

    def _attack(self) -> None:
        """A recording, as it was or altered, to anybody."""
        frame = bytearray(self._rng.choice(self.tape))
        victim = self._rng.choice(self.hosts)
        how = self._rng.randrange(4)
        if how == 1:
            frame[self._rng.randrange(len(frame))] ^= 1 << self._rng.randrange(8)
        elif how == 2:
            frame[:6] = victim.pmac
        elif how == 3:
            forger = Authenticator(bytes(frame[6:12]), STRANGERS_RING, self._rng.getrandbits(64))
            frame = bytearray(forger.seal(parse_discovery_untrusted(bytes(frame))[0], self.now))
        self._put(self.now, bytes(frame), victim)

    def run(self, until_s: float) -> None:
        while True:
            for host in self.hosts:
                self._send(host.frames(self.now))
            due = [self._queue[0][0] if self._queue else float("inf"), *(h.next_timer() for h in self.hosts)]
            if self.noise.attacks_per_s and self.tape:
                due.append(self._next_attack_s)
            at = max(min(due), self.now)
            if at > until_s:
                self.now = until_s
                return
            self.now = at
            if self.noise.attacks_per_s and self.tape and self._next_attack_s <= at:
                self._next_attack_s = at + 1 / self.noise.attacks_per_s
                self._attack()
            while self._queue and self._queue[0][0] <= at:
                _, _, frame, host = heapq.heappop(self._queue)
                host.receive(frame, at)
                self._check(host)

    def _check(self, host: Host) -> None:
        """Invariants 3 and 7: what is believed was claimed by that very host, and never falls."""
        for entry in host.discovery.neighbours:
            if entry.claim is None:
                continue
            owner = next(h for h in self.hosts if h.pmac == entry.claim.host)
            assert entry.claim in owner.made
            assert host.believed.get(entry.address, (0, b"")) <= entry.claim.order
            host.believed[entry.address] = entry.claim.order


def settled(hosts: list[Host], now: float) -> bool:
    """Everybody finds everybody's claim of now."""
    current = {host.number: host.discovery.claims()[0] for host in hosts}
    found = [one.resolve(n, now) == current[n] for one in hosts for n in current if n != one.number]
    return all(found)  # a list first, for everybody has to ask


def types(frames: list[bytes]) -> list[str]:
    return [parse_discovery_untrusted(frame)[0].type.name for frame in frames]


def test_cold_resolution_costs_two_round_trips_and_four_frames_the_next_one_round_trip_and_two():
    rng = random.Random(1)
    a, b = Host(1, rng), Host(2, rng)
    wire = Wire([a, b], rng)
    for host in (a, b):
        host.frames(0.0)  # the announcements of the start are lost
        host.discovery.withdraw(address(host.number), 0.0, gone=False)
        host.discovery.activate(address(host.number), host.pmac, host.number, 0, None, 0.0)
        host.frames(0.0)
    assert a.resolve(2, 0.0) is None
    wire.run(2 * 2 * LATENCY_S + 1e-9)
    assert types(wire.tape) == ["REQUEST", "CHALLENGE", "CHALLENGE_REPLY", "REPLY"]
    assert a.resolve(2, wire.now) is not None
    del wire.tape[:]
    b.discovery.activate(address(3), b.pmac, 3, 0, None, wire.now)
    b.discovery.messages_to_send()
    assert a.resolve(3, wire.now) is None
    wire.run(wire.now + 2 * LATENCY_S + 1e-9)
    assert types(wire.tape) == ["REQUEST", "REPLY"]
    assert a.resolve(3, wire.now) is not None


@pytest.mark.parametrize("seed", range(40))
def test_hosts_find_each_other_through_loss_restarts_and_an_attacker_that_goes_on(seed: int):
    rng = random.Random(seed)
    hosts = [Host(number, rng) for number in range(1, 5)]
    wire = Wire(hosts, rng)
    wire.noise = Noise(loss=0.2, duplicate=0.1, late=0.1, attacks_per_s=300)
    for _ in range(3):
        for _ in range(10):
            settled(hosts, wire.now)  # everybody asks for everybody
            wire.run(wire.now + 0.1)
        rng.choice(hosts).start(wire.now)
    wire.noise = Noise(attacks_per_s=300)
    for _ in range(100):
        if settled(hosts, wire.now):
            break
        wire.run(wire.now + 0.1)
    assert settled(hosts, wire.now)


def test_host_with_another_key_changes_nothing_and_learns_nothing():
    rng = random.Random(5)
    hosts = [Host(number, rng) for number in range(1, 4)]
    stranger = hosts[2]
    stranger.start(0.0, STRANGERS_RING)
    wire = Wire(hosts, rng)
    for _ in range(20):
        settled(hosts, wire.now)
        wire.run(wire.now + 0.1)
    assert settled(hosts[:2], wire.now)
    assert [entry.claim for entry in stranger.discovery.neighbours] == [None, None]
    for host in hosts[:2]:
        assert host.resolve(3, wire.now) is None
        assert not host.auth.is_peer(stranger.pmac)
    theirs = [frame for frame in wire.tape if frame[6:12] == stranger.pmac]
    assert len(theirs) >= 6  # two addresses, three questions each
    results = [hosts[0].auth.open_untrusted(frame, wire.now) for frame in theirs]
    assert {result.reason for result in results if isinstance(result, Refused)} == {DropReason.DISCOVERY_AUTH}
    assert all(isinstance(result, Refused) for result in results)
