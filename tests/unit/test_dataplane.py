"""The slow path's shell: what comes in, goes out and is counted; what listeners are told, and in which order."""

import asyncio
import logging
from dataclasses import replace
from typing import Any, cast

import pytest
from agent_fakes import DB, UPLINK_IFINDEX, WEB, Host, Lan, settle, story, vm

from divhook.adapters.bpf.errors import BpfError
from divhook.adapters.libvirt import EventKind
from divhook.adapters.nfqueue import BATCH
from divhook.agent import dataplane as dataplane_module
from divhook.agent.dataplane import Dataplane
from divhook.agent.traffic import Tally
from divhook.core.addressing import ALL_HOSTS_GROUP, ZERO_ADDRESS, Address, group_mac, parse_address, parse_mac, rmac
from divhook.core.census import Chosen, Confirmed
from divhook.core.discovery import Unfenced
from divhook.core.outputs import Drop, ToGuest, ToWire
from divhook.core.reasons import DropReason
from divhook.core.wire.arp import ARP_REQUEST, Arp
from divhook.core.wire.discovery import Message, MessageType
from divhook.core.wire.ipv4 import Ipv4

PEER = parse_mac("02:fe:1a:1b:1c:1d")
FIRST, SECOND, THIRD = (parse_address(f"10.1.1.{host}") for host in (21, 32, 43))


class Recorder:
    """A listener that notes what it is told, and does what a test wants then."""

    def __init__(self, plane: Dataplane) -> None:
        self.plane = plane
        self.told: list[object] = []
        self.then: Any = lambda event: None
        plane._listener = self

    def on_discovery(self, event: object) -> None:
        self.told.append(event)
        self.then(event)

    on_census = on_discovery

    def on_lease(self, endpoint: object, event: object) -> None:
        self.on_discovery((endpoint, event))


def drops(host: Host) -> dict[tuple[int, int], list[int]]:
    return host.agent.dataplane.counters.drops


async def running(lan: Lan) -> tuple[Host, Any]:
    host, web = await lan.host(), vm(1)
    await host.start(web)
    await settle()
    return host, web


# ---------------------------------------------------------------------- events


@story
async def test_events_that_a_listener_causes_come_after_those_that_were_there(lan: Lan) -> None:
    plane = (await lan.host()).agent.dataplane
    listener = Recorder(plane)
    depth: list[int] = []

    def then(event: object) -> None:
        depth.append(len(depth))
        if event == Unfenced(FIRST):
            plane.pipeline.pending_events.append(Unfenced(THIRD))
            plane.census._events.append(Confirmed(1, THIRD))
            plane.inject(plane.now(), [])
            assert len(depth) == 1  # nobody was told anything meanwhile

    listener.then = then
    plane.pipeline.pending_events += [Unfenced(FIRST), Unfenced(SECOND)]
    plane.census._events.append(Chosen(1, FIRST))
    plane.inject(plane.now(), [])
    assert listener.told == [
        Unfenced(FIRST),
        Unfenced(SECOND),
        Chosen(1, FIRST),
        Confirmed(1, THIRD),
        Unfenced(THIRD),
    ]


@story
async def test_outputs_that_a_listener_injects_leave_before_the_call_returns(lan: Lan) -> None:
    host, web = await running(lan)
    plane = host.agent.dataplane
    frame = b"\x02" * 14
    host.sent.frames.clear()
    Recorder(plane).then = lambda _: plane.inject(plane.now(), [ToGuest(host.nic(web).port, frame)])
    plane.pipeline.pending_events.append(Unfenced(FIRST))
    plane.pump()
    assert host.sent.frames == [(host.nic(web).ifindex, frame)]


@story
async def test_a_listener_that_fails_takes_no_other_event_and_no_timer_with_it(
    lan: Lan, caplog: pytest.LogCaptureFixture
) -> None:
    plane = (await lan.host()).agent.dataplane
    listener = Recorder(plane)

    def then(event: object) -> None:
        raise KeyError(event)

    listener.then = then
    plane.census.begin(WEB, parse_mac("52:54:00:11:22:33"), 7, plane.now())
    plane.pipeline.pending_events += [Unfenced(FIRST), Unfenced(SECOND)]
    plane.pump()
    await settle()
    assert listener.told[:2] == [Unfenced(FIRST), Unfenced(SECOND)]
    assert [type(event) for event in listener.told[2:]] == [Chosen, Confirmed]
    assert caplog.records[0].getMessage() == f"the agent failed on ({Unfenced(FIRST)!r},)"
    assert len(caplog.records) == 4


@story
async def test_a_machine_whose_timer_fails_stops_neither_the_others_nor_the_clock(
    lan: Lan, monkeypatch: pytest.MonkeyPatch
) -> None:
    host = await lan.host()
    plane = host.agent.dataplane
    listener = Recorder(plane)

    def fails(now: float) -> None:
        raise KeyError("a bug")

    monkeypatch.setattr(plane.pipeline.discovery, "on_timer", fails)
    for number in (7, 8):
        plane.census.begin(WEB, bytes([2, 0, 0, 0, 0, number]), number, plane.now())
        plane.inject(plane.now(), [])
        await settle(0.1)
    assert [type(event) for event in listener.told] == [Chosen, Chosen]
    assert drops(host)[0, int(DropReason.INTERNAL_ERROR)][0] >= 2


@story
async def test_machines_that_never_stop_talking_leave_time_for_frames(lan: Lan) -> None:
    plane = (await lan.host()).agent.dataplane
    listener = Recorder(plane)

    def again(event: Any) -> None:
        plane.pipeline.pending_events.append(event)

    listener.then = again
    plane.pipeline.pending_events.append(Unfenced(FIRST))
    plane.pump()
    assert len(listener.told) == dataplane_module.MAX_ROUNDS
    await asyncio.sleep(0)
    assert len(listener.told) == 2 * dataplane_module.MAX_ROUNDS
    listener.then = lambda event: None
    await settle(0.1)
    assert len(listener.told) == 2 * dataplane_module.MAX_ROUNDS + 1


# ---------------------------------------------------------------------- frames


def arp(host: Host, guest: Any, tpa: Address) -> tuple[int, bytes]:
    """What the packet socket gives for a guest's ARP request."""
    nic = host.nic(guest)
    request = Arp(ARP_REQUEST, nic.mac, host.address(guest), bytes(6), tpa)
    return nic.port << 16 | 1 << 8 | 0xD1, b"\xff" * 6 + nic.mac + b"\x08\x06" + request.emit()


@story
async def test_a_guests_request_for_its_router_is_answered_into_its_own_tap(lan: Lan) -> None:
    host, web = await running(lan)
    host.sent.frames.clear()
    router = host.agent.configuration.plan.router(WEB)
    mark, frame = arp(host, web, router)
    host.diverted.frames.append((mark, frame))
    host.agent.dataplane._read_diverted()
    nic, mac = host.nic(web), rmac(WEB)
    reply = Arp(2, mac, router, nic.mac, host.address(web)).emit()
    assert host.sent.frames == [(nic.ifindex, nic.mac + mac + b"\x08\x06" + reply)]
    assert drops(host) == {(nic.port, int(DropReason.CONSUMED)): [1, len(frame) - 14]}


@story
async def test_frames_from_guests_are_counted_by_what_they_are(lan: Lan) -> None:
    host, web = await running(lan)
    plane, port, mac = host.agent.dataplane, host.nic(web).port, host.nic(web).mac
    drops(host).clear()
    before = plane.counters.from_guest
    rarp = b"\xff" * 6 + mac + b"\x80\x35" + bytes(28)
    host.diverted.frames += [
        (port << 16 | 0xD1, rarp),
        (77 << 16 | 0xD1, b"\xff" * 6 + mac + b"\x08\x06" + bytes(28)),
        (0xD1, b"\x02" * 60),
    ]
    plane._read_diverted()
    plane._ipv4(port << 16 | 0xD1, mac, b"\x45")
    plane._ipv4(0xD1, PEER, b"\x45")
    assert drops(host) == {
        (port, int(DropReason.RARP_FROM_GUEST)): [1, len(rarp)],
        (77, int(DropReason.ARP_MALFORMED)): [1, 28],
        (0, int(DropReason.DISCOVERY_MALFORMED)): [1, 60],
        (port, int(DropReason.TRUNCATED)): [1, 1],
        (0, int(DropReason.TRUNCATED)): [1, 1],
    }
    assert (plane.counters.from_guest - before, plane.counters.from_wire) == (3, 1)


@story
async def test_a_frame_that_meets_a_bug_is_counted_and_the_next_is_served(
    lan: Lan, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    host, web = await running(lan)
    plane = host.agent.dataplane
    real = plane.pipeline.from_guest_arp
    calls: list[bytes] = []

    def fragile(port: int, payload: bytes, now: float) -> Any:
        calls.append(payload)
        if len(calls) == 1:
            raise KeyError("a bug")
        return real(port, payload, now)

    monkeypatch.setattr(plane.pipeline, "from_guest_arp", fragile)
    host.sent.frames.clear()
    host.diverted.frames += [arp(host, web, host.agent.configuration.plan.router(WEB))] * 2
    plane._read_diverted()
    assert drops(host)[0, int(DropReason.INTERNAL_ERROR)] == [1, 0]
    assert [ifindex for ifindex, _ in host.sent.frames] == [host.nic(web).ifindex]
    assert "met a bug" in caplog.text


@story
async def test_what_cannot_be_sent_is_counted(lan: Lan, monkeypatch: pytest.MonkeyPatch) -> None:
    host = await lan.host()
    plane = host.agent.dataplane
    plane.inject(plane.now(), [ToGuest(41, b"no such port")])
    monkeypatch.setattr(host.sent, "send", lambda *_: False)
    plane.inject(plane.now(), [ToWire(b"no carrier")])
    plane.census.begin(WEB, parse_mac("52:54:00:11:22:33"), 7, plane.now())
    plane.inject(plane.now(), [])
    assert plane.counters.send_failed == 3


@story
async def test_dropped_frames_are_kept_but_not_those_that_were_answered_and_only_so_many(lan: Lan) -> None:
    plane = (await lan.host()).agent.dataplane
    plane.execute([Drop(DropReason.CONSUMED, 3, b"x")])
    plane.execute([Drop(DropReason.NOT_LOCAL, 0, bytes([n % 256])) for n in range(300)])
    assert len(plane.recent) == dataplane_module.MAX_RECENT_DROPS
    assert plane.recent[-1][1] == Drop(DropReason.NOT_LOCAL, 0, bytes([43]))
    assert plane.counters.drops == {(3, int(DropReason.CONSUMED)): [1, 1], (0, int(DropReason.NOT_LOCAL)): [300, 300]}


@story
async def test_counters_of_a_port_end_with_it_and_late_frames_count_for_no_later_owner(lan: Lan) -> None:
    host, web = await running(lan)
    port = host.nic(web).port
    late = arp(host, web, host.agent.configuration.plan.router(WEB))
    await host.shut(web)
    assert [key for key in drops(host) if key[0] == port] == []
    host.diverted.frames.append(late)
    host.agent.dataplane._read_diverted()
    assert drops(host)[port, int(DropReason.PORT_UNKNOWN)][0] == 1
    host.agent.registry.put("last port", port - 1)
    await host.start(vm(2))
    assert [key for key in drops(host) if key[0] == port] == []


# ---------------------------------------------------------------------- peers


@story
async def test_a_peer_is_told_to_the_kernel_when_it_has_proven_its_key_and_once(
    lan: Lan, monkeypatch: pytest.MonkeyPatch
) -> None:
    a, b = await lan.host(), await lan.host()
    told: list[bytes] = []
    monkeypatch.setattr(a.programs, "add_peer", told.append)
    await a.start(vm(1))
    await b.start(vm(2))
    await settle(2)
    assert told == [b.uplink.mac]
    assert a.agent.dataplane.authenticator.is_peer(b.uplink.mac)


@story
async def test_a_frame_sealed_with_another_key_changes_nothing_and_is_counted(lan: Lan) -> None:
    a, b = await lan.host(), await lan.host()
    b.write("cluster.key", (b.paths.config / "cluster.key").read_text().replace("00010203", "ff010203"))
    await b.restart()
    await a.start(vm(1))
    await b.start(vm(2))
    await settle(2)
    assert (a.programs.proven, b.programs.proven) == (set(), set())
    assert drops(a)[0, int(DropReason.DISCOVERY_AUTH)][0] > 0


@story
async def test_the_table_of_known_peers_is_bounded(lan: Lan, monkeypatch: pytest.MonkeyPatch) -> None:
    host = await lan.host()
    plane = host.agent.dataplane
    monkeypatch.setattr(dataplane_module, "MAX_PEERS", 3)
    for number in range(5):
        plane._peer(bytes([2, 0, 0, 0, 0, number]))
    assert len(plane._known_peers) <= 3
    assert len(host.programs.proven) == 5


@story
async def test_every_frame_to_the_wire_has_our_own_mac_and_a_discovery_message_one_seal(lan: Lan) -> None:
    host = await lan.host()
    plane = host.agent.dataplane
    message = Message(MessageType.CENSUS, PEER, ALL_HOSTS_GROUP, ZERO_ADDRESS, FIRST)
    with pytest.raises(ValueError, match="another host"):
        plane.authenticator.seal(message, plane.now())
    await host.start(vm(1))
    await settle()
    frames = [frame for ifindex, frame in host.sent.frames if ifindex == UPLINK_IFINDEX]
    assert {frame[6:12] for frame in frames} == {host.uplink.mac}
    assert len(set(frames)) == len(frames)


# ---------------------------------------------------------------------- groups


@story
async def test_groups_are_those_of_ports_of_guests_that_start_and_of_reserved_addresses(lan: Lan) -> None:
    host, web, db = await lan.host(), vm(1), vm(2, place="shop/db")
    plane, groups = host.agent.dataplane, plane_groups(host)
    assert groups() == {ALL_HOSTS_GROUP}
    await host.start(web)
    await host.prepare(db)
    assert groups() == {ALL_HOSTS_GROUP, group_mac(WEB), group_mac(DB)}
    await host.shut(db)
    await host.shut(web)
    assert groups() == {ALL_HOSTS_GROUP, group_mac(WEB)}  # web is defined, and its address defended
    assert plane.active_subnets() == []
    host.libvirt.vms.clear()
    host.event(EventKind.UNDEFINED, web)
    await settle(1)
    assert groups() == {ALL_HOSTS_GROUP}


@story
async def test_a_full_group_table_joins_nothing_and_what_is_joined_stays(lan: Lan) -> None:
    host, web = await lan.host(), vm(1)
    await host.start(web)
    groups = plane_groups(host)
    with host.refusing("set_groups"), pytest.raises(BpfError):
        host.agent.dataplane.join_groups([WEB, DB])
    assert groups() == {ALL_HOSTS_GROUP, group_mac(WEB)}
    host.agent.dataplane.join_groups([DB])
    assert groups() == {ALL_HOSTS_GROUP, group_mac(DB)}


@story
async def test_a_link_that_refuses_a_group_is_asked_again(lan: Lan, monkeypatch: pytest.MonkeyPatch) -> None:
    host = await lan.host()
    plane = host.agent.dataplane
    memberships: Any = plane._groups

    def refuses(group: bytes) -> None:
        raise OSError(19, "no such device")

    with monkeypatch.context() as patch:
        patch.setattr(memberships, "join", refuses)
        with pytest.raises(OSError, match="no such device"):
            plane.join_groups([WEB])
    assert plane.groups == {ALL_HOSTS_GROUP}
    plane.join_groups([WEB])
    assert plane_groups(host)() == {ALL_HOSTS_GROUP, group_mac(WEB)}


def plane_groups(host: Host) -> Any:
    """The groups that all three agree on: the agent, the NIC, the programs."""

    def groups() -> set[bytes]:
        plane = host.agent.dataplane
        memberships: Any = plane._groups
        assert plane.groups == memberships.joined == host.programs.groups
        return plane.groups

    return groups


@story
async def test_after_close_nothing_is_read_and_no_timer_runs(lan: Lan, caplog: pytest.LogCaptureFixture) -> None:
    host, web = await running(lan)
    loop = asyncio.get_running_loop()
    await host.stop()
    sent = len(host.sent.frames)
    await settle(700)
    assert len(host.sent.frames) == sent
    assert not loop.remove_reader(host.diverted.fileno())
    assert [r for r in caplog.records if r.levelno >= logging.ERROR] == []
    host.boot()  # for the end of the story
    assert web


@story
async def test_what_reached_a_tap_is_counted_by_port_until_the_port_is_gone(lan: Lan) -> None:
    host, web = await running(lan)
    plane, port = host.agent.dataplane, host.nic(web).port
    plane.counters.delivered.clear()
    plane.execute([ToGuest(port, bytes(60)), ToGuest(port, bytes(100)), ToGuest(99, bytes(60))])
    assert plane.counters.delivered == {port: Tally(2, 160)}
    plane.forget_port(port)
    assert plane.counters.delivered == {}


@story
async def test_what_waits_in_the_queue_is_read_whole_before_a_port_is_given_up(lan: Lan) -> None:
    host, web = await running(lan)
    plane = host.agent.dataplane
    waiting, port, packet = 3 * BATCH + 5, host.nic(web).port, bytes(20)

    class Queue:
        """As DivertQueue: at most BATCH at a time."""

        left = waiting

        def read(self) -> None:
            for _ in range(min(BATCH, self.left)):
                self.left -= 1
                plane._ipv4(port << 16 | 0xD1, None, packet)

    before, former, queue = plane.counters.from_guest, plane._queue, Queue()
    plane._queue = cast(Any, queue)
    try:
        plane._pumping = True
        plane.drain()
        assert plane.counters.from_guest == before
        plane._pumping = False
        plane.drain()
    finally:
        plane._queue = former
    assert (plane.counters.from_guest, queue.left) == (before + waiting, 0)


@story
async def test_an_agent_that_was_frozen_hears_where_a_guest_is_before_it_judges_its_frames(lan: Lan) -> None:
    """90 frames from the new place wait in the queue, more than may be held, and the announcement on its socket."""
    a, b, c = await lan.host(), await lan.host(), await lan.host()
    web, db = vm(1), vm(2, place="shop/web")
    await a.start(web)
    await b.start(vm(3))  # so that C knows B
    await c.start(db)
    await settle()
    here, there = c.agent.dataplane, b.agent.dataplane
    (claim,) = a.agent.dataplane.pipeline.discovery.claims()
    here.pipeline.discovery.adopt(claim, here.now())
    moved = replace(claim, host=b.uplink.mac, stamp=claim.stamp + 1)
    message = Message(MessageType.ANNOUNCE, b.uplink.mac, ALL_HOSTS_GROUP, ZERO_ADDRESS, claim.address, moved)
    c.diverted.frames.append((0xD1, there.authenticator.seal(message, there.now())))
    packet = Ipv4(source=claim.address, destination=c.address(db), protocol=17, payload=bytes(8)).emit()

    class Queue:
        """As DivertQueue."""

        left = 90

        def read(self) -> None:
            while self.left:
                self.left -= 1
                here._ipv4(0xD1, b.uplink.mac, packet)

    former, here._queue = here._queue, cast(Any, Queue())
    c.sent.frames.clear()
    try:
        here._read_queue()
    finally:
        here._queue = former
    assert len([frame for ifindex, frame in c.sent.frames if ifindex == c.nic(db).ifindex]) == 90
