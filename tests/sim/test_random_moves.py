"""1,000 random moves among 100 hosts: aborts, loss, broken channels, agents that die. DIVHOOK_SIM_MOVES=10000: more."""

import os
import random

import pytest
from moving_world import MoveRun, MovingWorld
from simulator import Faults, Guest, Host

from divhook.core.addressing import AddressPlan, SubnetId
from divhook.core.discovery import ClaimState, Limits

HOSTS, GUESTS = 100, 12
MOVES_EACH = 50
SEEDS = max(1, int(os.environ.get("DIVHOOK_SIM_MOVES", "1000")) // MOVES_EACH // 2)
"""Of each of two kinds."""
LIMITS = Limits(repeat_s=5.0, fence_probe_s=2.0)
CALM_S = 12.0
PLAN = AddressPlan()


class Tour:
    """Guests that move at random, and frames for them at every moment."""

    def __init__(self, seed: int, faults: bool) -> None:
        self.chance = random.Random(seed)
        self.faults = faults
        self.world = world = MovingWorld(seed, HOSTS, limits=LIMITS, skew_s=3600.0 if seed % 2 else 0.0)
        self.guests = [
            Guest(PLAN.address(SubnetId(3, 7 + n % 2), 20 + n), bytes((0x52, 0x54, 0, 0xAA, 0, n)), 100 + n)
            for n in range(GUESTS)
        ]
        for guest in self.guests:
            world.start_here(guest, self.chance.choice(world.hosts))
            world.run(0.02)
        world.run(1.0)
        if faults:
            world.faults = Faults(loss=self.chance.choice((0.0, 0.1, 0.3)), duplicate=0.05, late=0.02, late_s=0.3)

    def place(self, guest: Guest) -> Host:
        return self.world.where[guest.address]

    def run(self, moves: int) -> None:
        for _ in range(moves):
            self.one_move()
        self.world.calm()
        self.world.run(CALM_S)
        self.world.check_quiet()
        self.world.check_everybody_can_talk()
        self.account()

    def one_move(self) -> None:
        """Times in ms, as measured; anything may go wrong at any of them."""
        world, chance = self.world, self.chance
        guest = chance.choice(self.guests)
        source = self.place(guest)
        target = chance.choice(
            [h for h in world.hosts if h is not source and h.ready and guest.address not in h.running]
        )
        if source.agent is None:
            world.boot_agent(source)
        begin, run = world.now, world.begin(guest, source, target)
        paused = begin + chance.uniform(0.08, 0.3)
        resumed = paused + chance.uniform(0.03, 0.15)
        world.at(begin + 0.002, lambda: world.asked(run))
        world.at(begin + chance.choice((0.005, 0.05, 0.15, 0.5)), lambda: world.link(run))
        world.at(begin + 0.03, lambda: world.port(run))
        going_on = lambda act: lambda: None if run.over else act(run)  # noqa: E731
        world.at(paused, going_on(world.pause))
        world.at(resumed - 0.006, going_on(world.settle))
        if chance.random() < 0.3:
            world.at(begin + chance.uniform(0.04, resumed - begin - 0.001), going_on(world.abort))
        world.at(resumed, going_on(world.commit))
        if self.faults:
            self.misfortune(run, begin, resumed)
        self.talkers(guest, begin, resumed + 0.15)
        world.run(resumed - begin + 0.3)

    def misfortune(self, run: MoveRun, begin: float, resumed: float) -> None:
        world, chance = self.world, self.chance
        when, kind = chance.uniform(begin, resumed + 0.05), chance.random()
        if kind < 0.2:
            world.at(when, lambda: world.cut(run))
        elif kind < 0.3:
            world.at(when, lambda: self.reborn(run.source))
        elif kind < 0.4:
            world.at(when, lambda: self.reborn(run.target))

    def reborn(self, host: Host) -> None:
        self.world.kill_agent(host)
        self.world.boot_agent(host)

    def talkers(self, guest: Guest, begin: float, end: float) -> None:
        others = [g for g in self.guests if g is not guest]
        for talker in self.chance.sample(others, 3):
            at = begin
            while at < end:
                self.world.at(at, lambda t=talker: self.world.talk(self.place(t), t.address, guest.address))
                at += self.chance.uniform(0.001, 0.02)

    def account(self) -> None:
        """Invariant 5, over all frames that came to a tap."""
        world = self.world
        unread = [number for number in world.put if not world.read[number]]
        if not self.faults and len(unread) > sum(world.counted.values()):
            world.fail("5", len(unread), "frames were not read, and counted are", world.counted, unread[:9])


@pytest.mark.parametrize("seed", range(SEEDS))
def test_moves_with_agents_that_live_lose_nothing_uncounted_and_nothing_is_read_twice(seed: int) -> None:
    tour = Tour(seed, faults=False)
    tour.run(MOVES_EACH)
    assert sum(tour.world.read.values()) > 100


@pytest.mark.parametrize("seed", range(SEEDS))
def test_every_rule_holds_with_loss_broken_channels_and_agents_that_die(seed: int) -> None:
    Tour(1000 + seed, faults=True).run(MOVES_EACH)


def test_frames_reach_the_new_place_by_copies_and_by_late_senders() -> None:
    """The simulation does exercise what it is there for."""
    tour = Tour(1007, faults=True)
    tour.run(MOVES_EACH)
    assert tour.world.sent_on > 0
    assert tour.world.copies > 100
    assert {ClaimState.ACTIVE} == {
        host.agent.state(g.address) for g in tour.guests if (host := tour.place(g)).agent is not None
    }
