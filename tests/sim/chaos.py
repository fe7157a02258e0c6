"""A random operator, random talkers and random bad luck for a small world; everything follows from the seed."""

from simulator import Faults, Guest, Host, World

from divhook.core.addressing import AddressPlan, SubnetId
from divhook.core.discovery import Limits

QUICK = Limits(repeat_s=5.0, fence_probe_s=2.0)
"""Split brain is bounded by the repeat interval; a shorter one only makes the runs shorter."""
REPEATED_S = QUICK.repeat_s * (1 + QUICK.repeat_jitter) + 2
"""One repeat, three probes, and what both lead to."""
FENCES_ASKED_S = 2 * QUICK.fence_probe_s * (1 + QUICK.repeat_jitter) + 2
"""Chains of owners: each fenced host has asked its owner, and that one's."""
PLAN = AddressPlan()


class Chaos:
    """One run. `run` raises InvariantError with seed and log where a rule is broken."""

    def __init__(self, seed: int) -> None:
        skew_s = 3600.0 if seed % 2 else 0.0
        self.world = world = World(seed, 3 + seed % 3, QUICK, skew_s=skew_s)
        rng = self.rng = world.rng
        world.faults = Faults(
            loss=rng.choice((0, 0.1, 0.2, 0.5)),
            duplicate=rng.choice((0, 0.1)),
            delay_s=(0.0001, rng.choice((0.001, 0.05, 0.3))),
            late=rng.choice((0, 0.05)),
        )
        self.guests = [self._guest(n) for n in range(rng.randint(1, 4))]
        if rng.random() < 0.3:
            twin = self.guests[0]
            self.guests.append(Guest(twin.address, b"\x52\x54\x00\xbb\x00\x01", 900))
        self.steps = rng.randint(30, 150)

    def _guest(self, number: int) -> Guest:
        subnet = SubnetId(3, 7 + number % 2)
        return Guest(PLAN.address(subnet, 20 + number), bytes((0x52, 0x54, 0, 0xAA, 0, number)), 100 + number)

    def run(self) -> None:
        """Chaos, then calm, then the checks."""
        world = self.world
        acts, weights = zip(
            (self._start, 4),
            (self._stop, 1.5),
            (self._talk, 6),
            (self._partition, 1),
            (self._agent_dies, 0.7),
            (self._agent_returns, 1.5),
            (self._carrier, 0.5),
            (self._operator, 0.3),
            (self._registry, 0.5),
            (self._power, 0.7),
            strict=True,
        )
        for _ in range(self.steps):
            self.rng.choices(acts, weights)[0]()
            world.run(self.rng.choice((0.001, 0.05, 0.3, 1.0, 4.0)))
        world.calm()
        world.run(REPEATED_S)
        world.check_split_brain_is_over()
        world.run(FENCES_ASKED_S)
        world.check_quiet()
        world.check_everybody_can_talk()
        world.check_quiet()

    def _start(self) -> None:
        """A guest starts where no runner of it can be seen: what an HA manager makes sure of."""
        guest, host = self.rng.choice(self.guests), self.rng.choice(self.world.hosts)
        runners = [h for h in self.world.hosts if h.running.get(guest.address) == guest]
        free = host.ready and host.agent is not None and host.agent.state(guest.address) is None
        if free and all(other.side != host.side for other in runners):
            if self.rng.random() < 0.2:
                self.world.start_tentatively(guest, host)
            else:
                self.world.start(guest, host)

    def _stop(self) -> None:
        running = [(a, h) for h in self.world.hosts for a in h.running]
        if running:
            self.world.stop(*self.rng.choice(running))

    def _talk(self) -> None:
        running = [(h, a) for h in self.world.hosts for a in h.running]
        if running:
            host, source = self.rng.choice(running)
            nobody = PLAN.address(SubnetId(3, 7), 99)
            for _ in range(self.rng.randint(1, 3)):
                target = self.rng.choice([*(g.address for g in self.guests), nobody])
                if target != source:
                    self.world.talk(host, source, target)

    def _partition(self) -> None:
        if any(h.side for h in self.world.hosts):
            self.world.heal()
        else:
            self.world.partition({self.rng.randrange(len(self.world.hosts))})

    def _agent_dies(self) -> None:
        host = self._any_host()
        if host.agent is not None:
            self.world.kill_agent(host)

    def _agent_returns(self) -> None:
        host = self._any_host()
        if host.powered and host.agent is None:
            self.world.boot_agent(host, self.rng.choice((0.0, 0.2)))

    def _registry(self) -> None:
        host = self._any_host()
        self.rng.choice((self.world.lose_registry, self.world.roll_back_registry))(host)

    def _power(self) -> None:
        host = self._any_host()
        if host.powered:
            if self.rng.random() < 0.5:
                self.world.power_off(host)
        else:
            self.world.power_on(host)

    def _carrier(self) -> None:
        host = self._any_host()
        if host.agent is not None:
            host.agent.carrier_up(self.world.now)
            self.world.after_call(host)

    def _operator(self) -> None:
        """Decides for a fenced copy, or changes the identity of an active one."""
        host = self._any_host()
        for guest in host.running.values():
            if host.ready:
                self.world.activate(guest, host, identity=self.rng.randrange(4))

    def _any_host(self) -> Host:
        return self.rng.choice(self.world.hosts)
