"""A guest moves among hosts while somebody lies about it: replayed, without the key, of a former stamp. Nothing moves.

Every frame is sealed (test_sealed_wire.py). The liar records the wire, sends what it has again, seals it with a key of
its own in any host's name, and says through a former host, with its key, what was true before.
"""

import random
from dataclasses import replace

import pytest
from test_sealed_wire import LATENCY_S, STRANGERS_RING, Host, Noise, Wire, address, pmac

from divhook.core.addressing import ALL_HOSTS_GROUP
from divhook.core.auth import Authenticator
from divhook.core.discovery import ClaimState
from divhook.core.wire.discovery import Claim, Message, MessageType

MOVER, GUEST_ID, VMAC = address(50), 50, bytes.fromhex("525400000050")
HOSTS, MOVES = 5, 8
LIES_PER_MOVE = 40
KINDS = (MessageType.ANNOUNCE, MessageType.PREPARE, MessageType.MOVED, MessageType.GONE, MessageType.REPLY)


class Tale:
    """One guest, its host, and everything that was ever true of it."""

    def __init__(self, seed: int) -> None:
        self.rng = random.Random(seed)
        self.hosts = [Host(number, self.rng) for number in range(1, HOSTS + 1)]
        self.wire = Wire(self.hosts, self.rng)
        self.place = self.hosts[0]
        self.claim = self.activate(self.place)
        self.former: list[Claim] = []
        for _ in range(4):
            self.ask()

    def activate(self, host: Host) -> Claim:
        claim = host.discovery.activate(MOVER, VMAC, GUEST_ID, 0, 5, self.wire.now)
        host.made.add(claim)
        return claim

    def others(self) -> list[Host]:
        return [host for host in self.hosts if host is not self.place]

    def ask(self) -> None:
        for host in self.others():
            host.discovery.resolve(MOVER, 1, address(host.number), self.wire.now)
        self.wire.run(self.wire.now + 0.3)

    def move(self) -> None:
        """As agents do it: hand-over, PREPARE, the new claim, the old one given up."""
        source, target, now = self.place, self.rng.choice(self.others()), self.wire.now
        talkers = [host.pmac for host in self.others() if host is not target]
        target.discovery.observe(self.claim)
        source.discovery.leaving(MOVER, target.pmac, talkers, now)
        self.wire.run(now + 0.05)
        self.lie()
        self.former.append(self.claim)
        self.place, self.claim = target, self.activate(target)
        source.discovery.moved_out(MOVER, self.claim, self.wire.now)
        self.wire.run(self.wire.now + 0.05)

    def lie(self) -> None:
        for _ in range(LIES_PER_MOVE):
            victim = self.rng.choice(self.hosts)
            self.wire._put(self.wire.now + self.rng.random() * 0.04, self.lied(victim), victim)
        self.wire.run(self.wire.now + 0.04 + LATENCY_S)

    def lied(self, victim: Host) -> bytes:
        liar = self.rng.choice([host for host in self.hosts if host is not victim])
        way = self.rng.randrange(3)
        if way == 0:  # what was said before, word for word
            return self.rng.choice(self.wire.tape)
        if way == 1 and self.former:  # with the key: a host says again what it once held
            claim = self.rng.choice(self.former)
            host = next(h for h in self.hosts if h.pmac == claim.host)
            return host.auth.seal(self.message(claim.host, victim, claim), self.wire.now)
        # without the key, in a host's name: it is there, by a stamp above all
        claim = replace(self.claim, host=liar.pmac, stamp=self.claim.stamp + self.rng.randrange(1, 1 << 40))
        forger = Authenticator(liar.pmac, STRANGERS_RING, self.rng.getrandbits(64))
        return forger.seal(self.message(liar.pmac, victim, claim), self.wire.now)

    def message(self, source: bytes, victim: Host, claim: Claim) -> Message:
        kind = self.rng.choice(KINDS)
        whereto = pmac(self.rng.randrange(1, HOSTS + 1)) if kind is MessageType.PREPARE else b""
        group = kind is MessageType.ANNOUNCE and self.rng.random() < 0.5
        destination = ALL_HOSTS_GROUP if group else victim.pmac
        return Message(kind, source, destination, MOVER, MOVER, claim, self.rng.getrandbits(64), payload=whereto)

    def check(self) -> None:
        """It is where it is, for everybody, and nobody awaits it elsewhere."""
        assert self.place.discovery.state(MOVER) is ClaimState.ACTIVE
        assert self.place.discovery.claim(MOVER) == self.claim
        for host in self.others():
            assert host.discovery.state(MOVER) is None
            entry = host.discovery.neighbours.get(MOVER)
            assert entry is not None
            assert entry.claim == self.claim, host.number
            assert entry.next is None


@pytest.mark.parametrize("seed", range(20))
def test_forged_replayed_and_outdated_words_move_nothing(seed: int) -> None:
    tale = Tale(seed)
    tale.wire.noise = Noise(attacks_per_s=100)
    for _ in range(MOVES):
        tale.move()
        tale.check()
        tale.lie()
        tale.check()
    tale.ask()
    tale.check()
