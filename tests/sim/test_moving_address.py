"""An address that several endpoints may hold, under loss, duplication, partition: the newest taker has it."""

import random

import pytest
from simulator import Faults, Guest, Host, World

from divhook.core.addressing import AddressPlan, SubnetId
from divhook.core.discovery import ClaimState

PLAN, SUBNET = AddressPlan(), SubnetId(3, 7)
SHARED = PLAN.address(SUBNET, 200)
HOUR_US = 3_600_000_000
RUNS, MOVES = 25, 12


def guest(number: int) -> Guest:
    return Guest(PLAN.address(SUBNET, 20 + number), bytes((0x52, 0x54, 0, 0x77, 0, number)), 100 + number)


def take(world: World, host: Host, taker: Guest) -> None:
    """A gratuitous ARP of a guest that is allowed the address."""
    world.note("take", taker, host)
    assert host.agent is not None
    world._run_guest(Guest(SHARED, taker.vmac, taker.guest_id), host)
    host.agent.take(SHARED, taker.vmac, taker.guest_id, 0, world.now)
    world.after_call(host)


def holders(world: World) -> list[Host]:
    return [host for host in world.hosts if host.agent and host.agent.state(SHARED) is not None]


@pytest.mark.parametrize("seed", range(RUNS))
def test_whoever_took_it_last_has_it_whatever_the_wire_loses(seed: int) -> None:
    """Clocks are wrong by up to an hour. Of two that take it within Limits.hear_s either may be left."""
    rng = random.Random(seed)
    world = World(seed, 4, faults=Faults(loss=0.2, duplicate=0.1), skew_s=3600)
    takers = [guest(number) for number in range(3)]
    for host, taker in zip(world.hosts, takers, strict=False):
        world.start(taker, host)
    talker = guest(9)
    world.start(talker, world.hosts[3])
    world.addresses.add(SHARED)
    world.run(5)
    last: set[int] = set()
    for move in range(MOVES):
        if move == MOVES - 1:
            world.run(1)
        movers = rng.sample(range(3), rng.choice((1, 1, 2)))
        for mover in movers:
            take(world, world.hosts[mover], takers[mover])
        last = set(movers)
        world.talk(world.hosts[3], talker.address, SHARED)
        world.run(rng.choice((0.05, 0.7, 3.0)))
        states = {host.agent.state(SHARED) for host in world.hosts if host.agent}
        assert ClaimState.FENCED not in states, "nobody is fenced for it"
    world.calm()
    world.run(700)  # a repetition, for announcements that were all lost
    [holder] = holders(world)
    assert holder.number in last
    frame = world.talk(world.hosts[3], talker.address, SHARED)
    world.run(5)
    assert frame is not None
    entry = world.hosts[3].agent.neighbours.get(SHARED)
    assert entry.found.claim.host == holder.pmac


@pytest.mark.parametrize("skew_us", [-HOUR_US, 0, HOUR_US])
def test_a_partition_leaves_one_holder_once_it_heals(skew_us: int) -> None:
    world = World(1, 3)
    world.hosts[0].skew_us = skew_us
    world.kill_agent(world.hosts[0])
    world.boot_agent(world.hosts[0])
    one, two = guest(0), guest(1)
    world.start(one, world.hosts[0])
    world.start(two, world.hosts[1])
    take(world, world.hosts[0], one)
    world.run(2)
    world.partition({0})
    take(world, world.hosts[1], two)
    world.run(5)
    assert {host.number for host in holders(world)} == {0, 1}
    world.heal()
    world.run(700)
    assert [host.number for host in holders(world)] == [1]
