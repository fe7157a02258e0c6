"""Stories that random runs tell too seldom, or whose ending has to be one and not another."""

import pytest
from simulator import Faults, Guest, Host, World

from divhook.core.addressing import AddressPlan, SubnetId
from divhook.core.discovery import ClaimState, Limits

SUBNET = SubnetId(3, 7)
WEB = Guest(AddressPlan().address(SUBNET, 21), b"\x52\x54\x00\x77\x15\x01", 21)
TALKER = Guest(AddressPlan().address(SUBNET, 34), b"\x52\x54\x00\x99\x22\x02", 34)
HOUR_US = 3_600_000_000


def world_of(*skews_us: int, **more) -> World:
    world = World(1, len(skews_us), **more)
    for host, skew_us in zip(world.hosts, skews_us, strict=True):
        host.skew_us = skew_us
        world.kill_agent(host)
        world.boot_agent(host)
    return world


def owner(world: World) -> Host:
    (host,) = [h for h in world.hosts if h.agent and h.agent.state(WEB.address) is ClaimState.ACTIVE]
    return host


@pytest.mark.parametrize("skew_us", [-HOUR_US, 0, HOUR_US])
def test_guest_restarted_elsewhere_wins_over_its_old_copy_when_the_partition_heals(skew_us):
    """Whatever the clocks: the host that starts it hears from the talker's host what claim was there before."""
    world = world_of(skew_us, 0, 0)
    old, new, other = world.hosts
    world.start(WEB, old)
    world.start(TALKER, other)
    world.talk(other, TALKER.address, WEB.address)
    world.run(2)
    world.partition({old.number})
    world.start(WEB, new)
    world.run(2)
    frame = world.talk(other, TALKER.address, WEB.address)
    world.run(1)
    assert frame.delivered
    assert old.agent.state(WEB.address) is new.agent.state(WEB.address) is ClaimState.ACTIVE
    world.heal()
    world.run(670)
    assert owner(world) is new
    assert old.agent.state(WEB.address) is ClaimState.FENCED
    world.check_quiet()


def test_restart_of_the_agents_changes_nothing_about_who_won():
    world = world_of(0, 0, 0)
    old, new, _ = world.hosts
    world.start(WEB, old)
    world.run(1)
    world.partition({old.number})
    world.start(WEB, new)
    world.run(1)
    world.kill_agent(old)
    world.heal()
    world.boot_agent(old, reconcile_s=0.5)
    world.run(5)
    for host in (old, new, old):
        world.kill_agent(host)
        world.run(0.5)
        world.boot_agent(host, reconcile_s=0.5)
        world.run(5)
        assert owner(world) is new
    world.check_quiet()


def test_fenced_copy_takes_over_when_the_winner_stops_even_if_every_gone_is_lost():
    world = world_of(0, 0)
    old, new = world.hosts
    world.start(WEB, old)
    world.run(1)
    world.partition({old.number})
    world.start(WEB, new)
    world.run(1)
    world.heal()
    world.run(670)
    assert owner(world) is new
    world.faults = Faults(loss=1)
    world.stop(WEB.address, new)
    world.run(1)
    world.faults = Faults()
    world.run(15)
    assert owner(world) is old


def test_split_brain_ends_within_one_repeat_interval_without_anybody_talking():
    limits = Limits()
    world = world_of(0, HOUR_US, limits=limits)
    world.partition({0})
    for host in world.hosts:
        world.start(WEB, host)
    world.run(30)
    world.heal()
    world.run(limits.repeat_s * (1 + limits.repeat_jitter) + 2)
    world.check_quiet()


def test_carrier_that_comes_back_ends_split_brain_within_seconds():
    world = world_of(0, 0)
    world.partition({0})
    for host in world.hosts:
        world.start(WEB, host)
    world.run(30)
    world.heal()
    world.hosts[0].agent.carrier_up(world.now)
    world.after_call(world.hosts[0])
    world.run(2)
    world.check_quiet()


def test_wiped_registry_and_a_clock_an_hour_behind_cost_a_round_and_no_more():
    world = world_of(HOUR_US, 0)
    host, other = world.hosts
    world.start(WEB, host)
    world.start(TALKER, other)
    world.talk(other, TALKER.address, WEB.address)
    world.run(1)
    world.kill_agent(host)
    world.lose_registry(host)
    host.skew_us = -HOUR_US
    world.boot_agent(host)
    world.run(0.1)
    world.check_quiet()
    frame = world.talk(other, TALKER.address, WEB.address)
    world.run(0.1)
    assert frame.delivered


def test_host_that_dies_leaves_a_claim_that_its_successor_outbids_at_once():
    world = world_of(HOUR_US, 0, 0)
    dead, new, other = world.hosts
    world.start(WEB, dead)
    world.start(TALKER, other)
    world.talk(other, TALKER.address, WEB.address)
    world.run(1)
    world.power_off(dead)
    world.start(WEB, new)
    world.run(0.05)  # no three probes of the dead host before
    frame = world.talk(other, TALKER.address, WEB.address)
    world.run(0.05)
    assert frame.delivered


def test_talkers_keep_a_host_whose_agent_restarts():
    world = world_of(0, 0)
    host, other = world.hosts
    world.start(WEB, host)
    world.start(TALKER, other)
    world.talk(other, TALKER.address, WEB.address)
    world.run(50)
    world.talk(other, TALKER.address, WEB.address)
    world.kill_agent(host)  # the entry's lifetime ends while the agent is away
    world.run(11)
    world.boot_agent(host, reconcile_s=1.0)
    assert other.agent.neighbours.get(WEB.address).found is not None
    world.run(2)
    assert other.agent.neighbours.get(WEB.address).state.name == "REACHABLE"


def test_two_hosts_that_choose_one_address_at_one_moment_end_with_one_owner():
    for loss in (0.0, 0.2, 0.5, 1.0):
        world = world_of(0, 0, faults=Faults(loss=loss), limits=Limits(repeat_s=5))
        twins = [WEB, Guest(WEB.address, b"\x52\x54\x00\x77\x15\x02", 22)]
        for guest, host in zip(twins, world.hosts, strict=True):
            world.start(TALKER if host.number else Guest(TALKER.address[:3] + b"\x23", guest.vmac, 35), host)
            world.start_tentatively(guest, host)
        world.run(1)
        passed = [host for host in world.hosts if WEB.address in host.running]
        assert len(passed) == 1 or loss >= 0.2
        world.faults = Faults()
        world.run(12)
        world.check_quiet()


def test_endpoint_that_is_moved_from_host_to_host_under_loss_is_found_by_its_talker():
    world = world_of(0, -HOUR_US, HOUR_US, 0, faults=Faults(loss=0.2, duplicate=0.1, delay_s=(0.0001, 0.05)))
    talkers_host = world.hosts[3]
    world.start(TALKER, talkers_host)
    for turn in range(30):
        host = world.hosts[turn % 3]
        world.start(WEB, host)
        for _ in range(20):
            frame = world.talk(talkers_host, TALKER.address, WEB.address)
            world.run(0.7)
            if frame.delivered:
                break
        else:
            world.fail("1", "turn", turn, "never delivered")
        world.stop(WEB.address, host)
        world.run(world.rng.choice((0.0, 0.1, 1.0)))
