"""What may happen in a world between two frames: to guests here and elsewhere, to a subnet, to the agent."""

from collections.abc import Callable, Iterable

from fastpath_policies import TIERS
from fastpath_world import HOPS, PEERS, SERVERS, Place, World

from divhook.abi.entries import RemoteEndpoint
from divhook.core.addressing import ALL_HOSTS_GROUP
from divhook.core.discovery import ClaimState
from divhook.core.endpoint import PortState
from divhook.core.wire.arp import request_frame
from divhook.core.wire.discovery import Message, MessageType


def turn(world: World) -> None:
    """Something happens, or several things, or nothing; time goes on."""
    rng = world.rng
    if not world.fast:  # soon on again
        agent_restarts(world)
    for _ in range(rng.choice((0, 1, 1, 2, 4))):
        rng.choice(TURNS)(world)
        world.sync()
    world.pass_time(rng.choice((0.0, 0.02, 0.1, 0.3, 1.0, 5.0, 30.0, 70.0)))


def _any(world: World, places: Iterable[Place]) -> Place | None:
    found = list(places)
    return world.rng.choice(found) if found else None


def remote_moves(world: World) -> None:
    if place := _any(world, world.elsewhere()):
        world.start_elsewhere(place, world.rng.choice(PEERS), announced=world.rng.random() < 0.7)


def remote_stops(world: World) -> None:
    if place := _any(world, (p for p in world.places if p.host is not None)):
        claim, place.host, place.claim = place.claim, None, None
        if claim is not None and world.rng.random() < 0.7:
            world.say(Message(MessageType.GONE, claim.host, ALL_HOSTS_GROUP, bytes(4), place.address, claim))


def guest_is_about_to_move(world: World) -> None:
    for _ in range(3):
        if place := _any(world, world.places):
            host = world.rng.choice(PEERS)
            world.prepare(place, host)
            if place.nic is not None and world.rng.random() < 0.2:  # it goes there, or so that host says
                world.start_elsewhere(place, host)


def guest_has_moved(world: World) -> None:
    for _ in range(3):
        if place := _any(world, world.places):
            world.send_on(place, place.host or world.rng.choice((*PEERS, None)))


def local_is_claimed_elsewhere(world: World) -> None:
    if place := _any(world, world.here()):
        world.start_elsewhere(place, world.rng.choice(PEERS))


def local_stops(world: World) -> None:
    if place := _any(world, world.here()):
        world.unplug(place)


def guest_comes(world: World) -> None:
    if place := _any(world, world.elsewhere()):
        world.plug(place, world.rng.choice((PortState.ACTIVE, PortState.INCOMING, PortState.TENTATIVE)))


def guest_resumes(world: World) -> None:
    for place in world.here():
        assert place.nic is not None
        endpoint = world.pipeline.ports.port(place.nic.port)
        if endpoint is not None and endpoint.state is PortState.INCOMING:
            world.activate(place)


def subnet_changes(world: World) -> None:
    subnet = world.rng.choice(world.subnets)
    used = any(place.nic and place.subnet == subnet for place in world.places)
    if not used and world.rng.random() < 0.5:  # the agent keeps what is in use
        world.topology.pop(subnet, None)
    else:
        world.topology[subnet] = world.facts(subnet)
    world.fastpath.topology_changed(world.now)
    world.group_lists.again()
    world._join()
    world.told = {a for a in world.told if world.plan.locate(a) in world.topology}
    world.ports.topology_changed(place.nic for place in world.here() if place.nic is not None)


def reconciled(world: World) -> None:
    world.fastpath.keep_true()


def agent_restarts(world: World) -> None:
    """Another agent finds ports and maps as they are."""
    old, known = world.discovery, world.programs.endpoints()
    states = {place.address: world.pipeline.ports.at(place.address) for place in world.here()}
    records, highest = old.records(), old.highest_seen_stamp
    tentative = [p for p in world.here() if old.state(p.address) is ClaimState.TENTATIVE]
    for place in tentative:
        world.unplug(place)
    met, macs = world.met, {address: world.externals.mac(address) for address in world.met}
    world.boot()
    world.discovery.restore(records, highest)
    world.told.clear()
    world.frame_done()
    for place in world.here():
        assert place.nic is not None
        endpoint = states[place.address]
        assert endpoint is not None
        world.put(place, endpoint.state)
        if endpoint.state is not PortState.INCOMING:
            identity = place.nic.identity
            world.discovery.reclaim(place.address, place.vmac, place.nic.guest_id, identity, world.now)
    world.group_lists.adopt(world.now)
    world.met = {address for address in met if macs[address] is not None}
    list(world.fastpath.adopt(world.now, lambda address: any(p.address == address for p in world.here())))
    world.discovery.ready(world.now)
    if world.twins is not None:
        world.twins.enforcement.sweep()
    mine = {place.address for place in world.here()}
    world.told = {a for a, e in known.items() if world.fast and isinstance(e, RemoteEndpoint) and a not in mine}


def policy_changes(world: World) -> None:
    """The files of a cell are others now."""
    if world.policies is not None and world.twins is not None:
        name = world.policies.rewrite()
        world.twins.enforcement.policies = world.policies.set()
        world.twins.enforcement._change_cell(name)
        world.twins.settle()


def label_changes(world: World) -> None:
    here = world.here() if world.policies is not None else []
    for place in world.rng.sample(here, min(len(here), 3)):
        assert place.nic is not None
        place.nic.labels = (("tier", world.rng.choice(TIERS)),)
        world._policy_changed(place.nic)


def mid_stream_is_welcome(world: World) -> None:
    if (place := _any(world, world.here())) and place.nic is not None and world.twins is not None:
        world.twins.enforcement.pick_up(place.nic.port, world.now, 3600.0)


def server_falls_silent(world: World) -> None:
    """Or answers again; or has another NIC."""
    address = world.rng.choice((*HOPS, *SERVERS))
    world.silent ^= {address}
    if world.rng.random() < 0.3:
        world.macs[address] = bytes((6, 0x5E, 0, 0, 1, world.rng.randrange(256)))


def server_asks_for_a_guest(world: World) -> None:
    address = world.rng.choice((*HOPS, *SERVERS))
    if place := _any(world, world.here()):
        world.server_says(request_frame(world.macs[address], address, place.address))


TURNS: tuple[Callable[[World], None], ...] = (
    remote_moves,
    remote_moves,
    remote_stops,
    guest_is_about_to_move,
    guest_is_about_to_move,
    guest_is_about_to_move,
    guest_has_moved,
    guest_has_moved,
    guest_has_moved,
    local_is_claimed_elsewhere,
    local_stops,
    guest_comes,
    guest_comes,
    guest_resumes,
    subnet_changes,
    reconciled,
    agent_restarts,
    policy_changes,
    policy_changes,
    policy_changes,
    label_changes,
    label_changes,
    label_changes,
    mid_stream_is_welcome,
    server_falls_silent,
    server_falls_silent,
    server_asks_for_a_guest,
)
