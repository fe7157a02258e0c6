"""What the kernel is told of endpoints, when, and when it is taken back: FastPath over a map that is a dictionary."""

import itertools
import logging
from dataclasses import replace
from typing import Any

import pytest
from agent_fakes import DB, WEB, FakePrograms, Lan, settle, story, vm

from divhook.abi.entries import LocalEndpoint, RemoteEndpoint
from divhook.adapters.bpf.errors import BpfError
from divhook.agent.fastpath import ADOPTED_AT_ONCE, LATE_S, FastPath
from divhook.core.addressing import Address, AddressPlan, parse_address, parse_mac
from divhook.core.discovery import NeighbourChanged
from divhook.core.neighbor import Found, Neighbour, NeighbourState
from divhook.core.router import SubnetFacts
from divhook.core.wire.discovery import Claim
from divhook.core.wire.ipv4 import Ipv4, Protocol
from divhook.core.wire.udp import Udp

NOW = 7000.0
PMAC_B, PMAC_C = parse_mac("06:0b:0b:0b:0b:02"), parse_mac("06:0c:0c:0c:0c:03")
ADDRESS, OTHER, NOWHERE = (parse_address(text) for text in ("10.1.1.21", "10.1.2.22", "10.9.9.23"))
MTU = {WEB: 1500, DB: 1400}
UNASKED: Any = None
"""What DHCP hands out."""


def claim(address: Address = ADDRESS, host: bytes = PMAC_B, stamp: int = 11) -> Claim:
    return Claim(address, parse_mac("52:54:00:01:02:03"), host, stamp, 5, 77, 99)


def remote(of: Claim, mtu: int = 1500, used: bool = False) -> RemoteEndpoint:
    return RemoteEndpoint(of, mtu, used)


def local(port: int = 3, fenced: bool = False) -> LocalEndpoint:
    return LocalEndpoint(parse_mac("52:54:00:0a:0b:0c"), 40 + port, port, 1500, fenced)


class FakeDiscovery:
    """The table of neighbours, and which claims it takes from a cache."""

    def __init__(self) -> None:
        self.neighbours: dict[Address, Neighbour] = {}
        self.used_elsewhere: Any = None
        self.heard_elsewhere: Any = None
        self.adopts: set[Address] = set()
        self.adopted: list[tuple[Claim, float]] = []

    def has(self, of: Claim, state: NeighbourState = NeighbourState.REACHABLE) -> None:
        self.neighbours[of.address] = Neighbour(of.address, state, of, Found(of, state))

    def next_of(self, address: Address) -> None:
        return None

    def adopt(self, of: Claim, now: float) -> bool:
        self.adopted.append((of, now))
        return of.address in self.adopts


class World:
    """One FastPath and what is around it."""

    def __init__(self, enabled: bool = True) -> None:
        self.programs, self.discovery = FakePrograms(), FakeDiscovery()
        self.topology = {subnet: SubnetFacts(mtu, UNASKED) for subnet, mtu in MTU.items()}
        parts: Any = (self.programs, AddressPlan(), self.topology, self.discovery)
        self.fastpath = FastPath(*parts, enabled)

    def published(self, *claims: Claim) -> "World":
        """With neighbours that the slow path has used."""
        for each in claims:
            self.discovery.has(each)
            self.fastpath.used([each.address], NOW)
        self.programs.written.clear()
        return self

    def changed(self, address: Address, state: NeighbourState | None, now: float = NOW) -> None:
        self.fastpath.changed(NeighbourChanged(address, None, state), now)


# ---------------------------------------------------------------------- neighbours


def test_a_neighbour_is_published_once_the_slow_path_has_used_it() -> None:
    world = World()
    world.discovery.has(claim())
    assert world.programs.known == {}
    assert ADDRESS not in world.fastpath
    world.fastpath.used([ADDRESS], NOW)
    assert world.programs.known == {ADDRESS: remote(claim())}
    assert ADDRESS in world.fastpath
    assert world.fastpath.knows(ADDRESS)
    assert (len(world.fastpath), world.fastpath.late) == (1, 0)


def test_it_has_the_mtu_of_its_own_subnet() -> None:
    world = World().published(claim(), claim(OTHER))
    assert world.programs.known == {ADDRESS: remote(claim(), 1500), OTHER: remote(claim(OTHER), 1400)}


def test_what_discovery_cannot_use_is_not_published() -> None:
    world = World()
    world.discovery.neighbours[OTHER] = Neighbour(OTHER, NeighbourState.INCOMPLETE)
    world.discovery.has(claim(NOWHERE))  # in a subnet that the files do not have
    world.fastpath.used([ADDRESS, OTHER, NOWHERE], NOW)
    assert world.programs.written == []
    assert len(world.fastpath) == 0


def test_where_it_is_off_nothing_is_published_nor_asked_for() -> None:
    world = World(enabled=False)
    world.discovery.has(claim())
    world.fastpath.used([ADDRESS], NOW)
    world.fastpath.set_local(OTHER, local())
    world.fastpath.keep_true()
    world.changed(ADDRESS, NeighbourState.FAILED)
    assert world.programs.written == []
    assert ADDRESS in world.fastpath, "the slow path need not tell of it"
    assert not world.fastpath.knows(ADDRESS)


def test_another_claim_is_exchanged_in_place() -> None:
    """The guest has moved: no frame may meet a map that knows neither host."""
    world = World().published(claim())
    moved = claim(host=PMAC_C, stamp=12)
    world.discovery.has(moved)
    world.changed(ADDRESS, NeighbourState.REACHABLE)
    assert world.programs.written == [(ADDRESS, remote(moved))]


@pytest.mark.parametrize("state", [NeighbourState.REACHABLE, NeighbourState.PROBE])
def test_the_same_claim_again_leaves_the_kernels_use_alone(state: NeighbourState) -> None:
    world = World().published(claim())
    world.programs.known[ADDRESS] = used = remote(claim(), used=True)
    world.discovery.has(claim(), state)
    world.changed(ADDRESS, state)
    assert world.programs.written == []
    assert world.programs.known == {ADDRESS: used}


@pytest.mark.parametrize("state", [NeighbourState.STALE, NeighbourState.FAILED, NeighbourState.INCOMPLETE, None])
def test_what_is_idle_failed_or_forgotten_is_taken_back(state: NeighbourState | None) -> None:
    world = World().published(claim(), claim(OTHER))
    world.changed(ADDRESS, state)
    assert world.programs.written == [(ADDRESS, None)]
    assert ADDRESS not in world.fastpath
    world.fastpath.used([ADDRESS], NOW)  # its next frame is the slow path's, and brings it back
    assert world.programs.known[ADDRESS] == remote(claim())


def test_changes_of_what_was_never_published_are_no_matter() -> None:
    world = World()
    world.discovery.has(claim())
    for state in (*NeighbourState, None):
        world.changed(ADDRESS, state)
    assert world.programs.written == []


def test_use_is_told_once_and_only_of_neighbours() -> None:
    world = World().published(claim())
    took_use = world.discovery.used_elsewhere
    assert not took_use(ADDRESS)
    world.programs.known[ADDRESS] = remote(claim(), used=True)
    assert took_use(ADDRESS)
    assert world.programs.known == {ADDRESS: remote(claim())}
    assert not took_use(ADDRESS)
    world.programs.known[OTHER] = remote(claim(OTHER), used=True)  # none of ours
    assert not took_use(OTHER)
    world.fastpath.set_local(ADDRESS, local())
    assert not took_use(ADDRESS)


def test_what_was_heard_of_a_neighbour_is_told_until_its_use_is_asked_for() -> None:
    world = World().published(claim())
    heard = world.discovery.heard_elsewhere
    assert not heard(ADDRESS)
    world.programs.known[ADDRESS] = replace(remote(claim(), used=True), heard=True)
    assert heard(ADDRESS)
    assert heard(ADDRESS)
    assert world.discovery.used_elsewhere(ADDRESS)
    assert not heard(ADDRESS)
    world.programs.known[OTHER] = replace(remote(claim(OTHER)), heard=True)  # none of ours
    assert not heard(OTHER)


def test_frames_that_come_the_slow_way_right_after_count_as_late() -> None:
    world = World().published(claim())
    world.fastpath.used([ADDRESS], NOW + LATE_S * 0.9)
    assert world.fastpath.late == 1
    world.fastpath.used([ADDRESS], NOW + LATE_S)  # too long for one that was under way
    assert world.fastpath.late == 1
    world.fastpath.used([OTHER], NOW)  # not published
    assert world.fastpath.late == 1


# ---------------------------------------------------------------------- a full table


def test_a_full_table_leaves_neighbours_to_the_slow_path_and_says_so_once(caplog: pytest.LogCaptureFixture) -> None:
    world = World()
    world.discovery.has(claim())
    world.discovery.has(claim(OTHER))
    world.programs.fail.add("set_endpoint")
    world.fastpath.used([ADDRESS, OTHER, ADDRESS], NOW)
    assert (world.programs.known, len(world.fastpath), world.fastpath.late) == ({}, 0, 0)
    assert [record.levelno for record in caplog.records] == [logging.ERROR]
    world.programs.fail.clear()
    world.fastpath.used([ADDRESS], NOW)
    assert world.programs.known == {ADDRESS: remote(claim())}
    world.programs.fail.add("set_endpoint")
    world.fastpath.used([OTHER], NOW)
    assert len(caplog.records) == 2, "it had room again: this is news"


def test_a_claim_that_cannot_be_exchanged_is_taken_back() -> None:
    """Else the kernel would go on sending to the host before."""
    world = World().published(claim())
    world.discovery.has(claim(host=PMAC_C, stamp=12))
    world.programs.fail.add("set_endpoint")
    world.changed(ADDRESS, NeighbourState.REACHABLE)
    assert world.programs.known == {}
    assert ADDRESS not in world.fastpath


# ---------------------------------------------------------------------- ports of this host


def test_a_port_of_this_host_goes_before_a_neighbour() -> None:
    world = World().published(claim())
    world.fastpath.set_local(ADDRESS, local())
    assert world.programs.written == [(ADDRESS, local())]
    assert len(world.fastpath) == 0
    world.fastpath.used([ADDRESS], NOW)  # discovery still has an entry
    world.changed(ADDRESS, None)
    world.fastpath.topology_changed(NOW)
    assert world.programs.known == {ADDRESS: local()}


def test_a_port_that_is_fenced_or_free_again_is_exchanged_in_place() -> None:
    world = World()
    for fenced in (False, True, True, False):
        world.fastpath.set_local(ADDRESS, local(fenced=fenced))
    assert world.programs.written == [(ADDRESS, local(fenced=fenced)) for fenced in (False, True, False)]


def test_a_ports_former_addresses_go_and_other_ports_stay() -> None:
    world = World()
    for address, port in ((ADDRESS, 3), (OTHER, 3), (NOWHERE, 4)):
        world.fastpath.set_local(address, local(port))
    world.fastpath.remove_local(3, but=OTHER)
    assert world.programs.known == {OTHER: local(3), NOWHERE: local(4)}
    world.fastpath.remove_local(3)
    assert world.programs.known == {NOWHERE: local(4)}


def test_what_somebody_removed_or_changed_is_set_again() -> None:
    world = World()
    for address, port in ((ADDRESS, 3), (OTHER, 4), (NOWHERE, 5)):
        world.fastpath.set_local(address, local(port))
    del world.programs.known[ADDRESS]
    world.programs.known[OTHER] = remote(claim(OTHER))
    world.programs.written.clear()
    world.fastpath.keep_true()
    assert world.programs.written == [(ADDRESS, local(3)), (OTHER, local(4))]


def test_a_port_that_the_kernel_refused_is_set_by_the_next_look() -> None:
    world = World()
    world.programs.fail.add("set_endpoint")
    with pytest.raises(BpfError):
        world.fastpath.set_local(ADDRESS, local())
    world.programs.fail.clear()
    world.fastpath.keep_true()
    assert world.programs.known == {ADDRESS: local()}


# ---------------------------------------------------------------------- the files have changed


def test_another_mtu_reaches_what_is_published_and_a_subnet_that_is_gone_takes_its_neighbours_along() -> None:
    world = World().published(claim(), claim(OTHER))
    world.topology[WEB] = SubnetFacts(900, UNASKED)
    del world.topology[DB]
    world.fastpath.topology_changed(NOW + 50)
    assert world.programs.known == {ADDRESS: remote(claim(), 900)}
    assert len(world.fastpath) == 1
    world.fastpath.used([ADDRESS], NOW + 50)
    assert world.fastpath.late == 0, "it was published long ago"


# ---------------------------------------------------------------------- a restarted agent


def test_a_restarted_agent_takes_over_neighbours_and_removes_what_is_no_ones() -> None:
    world = World()
    dead = parse_address("10.1.1.99")
    kept = remote(claim(), used=True)
    world.programs.known = {
        ADDRESS: kept,
        OTHER: remote(claim(OTHER)),  # discovery will not have it
        NOWHERE: local(4),  # a port of this host: its guest runs
        dead: local(9),  # its guest ended while no agent ran
    }
    world.fastpath.set_local(NOWHERE, local(4))
    world.discovery.adopts = {ADDRESS}
    list(world.fastpath.adopt(NOW, lambda _: False))
    assert world.programs.known == {ADDRESS: kept, NOWHERE: local(4)}
    assert world.discovery.adopted == [(claim(), NOW), (claim(OTHER), NOW)]
    assert len(world.fastpath) == 1
    world.fastpath.used([ADDRESS], NOW)
    assert world.fastpath.late == 0


def test_a_neighbour_whose_address_is_now_of_a_port_here_is_not_taken_over() -> None:
    world = World()
    world.programs.known = {ADDRESS: remote(claim())}
    world.discovery.adopts = {ADDRESS}
    list(world.fastpath.adopt(NOW, lambda address: address == ADDRESS))
    assert (world.programs.known, world.discovery.adopted) == ({}, [])


def test_a_neighbour_that_is_known_by_a_better_claim_is_exchanged_not_removed() -> None:
    world = World()
    better = claim(host=PMAC_C, stamp=12)
    world.programs.known = {ADDRESS: remote(claim())}
    world.discovery.has(better)
    world.discovery.adopts = {ADDRESS}
    list(world.fastpath.adopt(NOW, lambda _: False))
    assert world.programs.written == [(ADDRESS, remote(better))]


def test_a_full_map_is_taken_over_step_by_step() -> None:
    world = World()
    addresses = [parse_address(f"10.1.{n // 250}.{n % 250}") for n in range(600)]
    world.programs.known = {address: remote(claim(address)) for address in addresses}
    world.discovery.adopts = set(addresses)
    seen = [len(world.fastpath) for _ in world.fastpath.adopt(NOW, lambda _: False)]
    assert max(after - before for before, after in itertools.pairwise(seen)) <= ADOPTED_AT_ONCE
    assert len(world.fastpath) == len(addresses)
    assert world.programs.written == []


def test_an_agent_that_starts_with_it_off_empties_the_map() -> None:
    world = World(enabled=False)
    world.programs.known = {ADDRESS: remote(claim()), OTHER: local()}
    world.discovery.adopts = {ADDRESS}
    list(world.fastpath.adopt(NOW, lambda _: False))
    assert (world.programs.known, world.discovery.adopted) == ({}, [])


@story
async def test_whole_agents_publish_what_frames_have_gone_to_until_its_guest_ends(lan: Lan) -> None:
    here, there = await lan.host(), await lan.host()
    one, two = vm(1), vm(2)
    await here.start(one)
    await there.start(two)
    await settle()
    own, far = here.address(one), there.address(two)
    assert isinstance(here.programs.known[own], LocalEndpoint)
    assert far not in here.programs.known
    datagram = Udp(1001, 1002, b"x").emit(own, far)
    here.said(one, Ipv4(source=own, destination=far, protocol=Protocol.UDP, payload=datagram).emit())
    await settle()
    [holds] = [each for each in there.agent.dataplane.pipeline.discovery.claims() if each.address == far]
    assert here.programs.known[far] == remote(holds)
    await there.shut(two)
    await settle()
    assert far not in here.programs.known


# ---------------------------------------------------------------------- endpoints that have moved


def test_one_that_has_moved_away_is_sent_on_to_that_host_alone_and_for_as_long_as_is_said() -> None:
    world = World().published(claim())
    world.fastpath.forward(ADDRESS, PMAC_B, NOW)
    assert world.programs.known == {ADDRESS: RemoteEndpoint(claim(), 1500, forwarded=True)}
    further = claim(host=PMAC_C, stamp=12)
    world.discovery.has(further)
    world.changed(ADDRESS, NeighbourState.REACHABLE)
    assert world.programs.known == {ADDRESS: remote(further)}
    world.fastpath.forward(ADDRESS, PMAC_C, NOW)
    world.fastpath.forward(ADDRESS, None, NOW)
    world.fastpath.forward(ADDRESS, None, NOW)
    world.fastpath.forward(OTHER, PMAC_B, NOW)  # not published yet
    assert world.programs.known == {ADDRESS: remote(further)}
    world.published(claim(OTHER))
    assert world.programs.known[OTHER] == RemoteEndpoint(claim(OTHER), 1400, forwarded=True)


def test_one_that_came_here_bears_the_host_that_it_came_from() -> None:
    world = World()
    world.fastpath.came_from(ADDRESS, PMAC_B)
    world.fastpath.set_local(ADDRESS, local())
    assert world.programs.known == {ADDRESS: replace(local(), former=PMAC_B)}
    world.fastpath.came_from(ADDRESS, None)
    assert world.programs.known == {ADDRESS: local()}


def test_a_restarted_agent_goes_on_sending_on() -> None:
    world = World()
    told: list[tuple[Address, bytes]] = []
    world.fastpath.on_forwarded = lambda address, host: told.append((address, host))
    kept = RemoteEndpoint(claim(), 1500, forwarded=True)
    world.programs.known = {ADDRESS: kept}
    world.discovery.has(claim())
    world.discovery.adopts = {ADDRESS}
    list(world.fastpath.adopt(NOW, lambda _: False))
    world.fastpath.topology_changed(NOW)
    assert (world.programs.known, told) == ({ADDRESS: kept}, [(ADDRESS, PMAC_B)])
    world.fastpath.forward(ADDRESS, None, NOW)
    assert world.programs.known == {ADDRESS: remote(claim())}
