"""Two agents' moves with real taps: what is sent into the source's tap is read at the destination, once, in order.

sender ─▶ from0 ─▶ QEMU (the test, which reads its descriptor)       source
            └─ capture, TLS on loopback ─▶ to0 ─▶ QEMU (the test)    destination
"""

import asyncio
import contextlib
import ctypes
import fcntl
import os
import socket
import struct
import time
from collections.abc import Callable, Coroutine, Iterator
from ipaddress import ip_address
from types import SimpleNamespace
from typing import Any, cast

import pytest
from namespaces import Namespace

from divhook.abi.entries import TrafficCount
from divhook.adapters.handover import Pinned
from divhook.adapters.libvirt import EventKind, GuestEvent
from divhook.agent import move_tap
from divhook.agent.move_sides import Coming
from divhook.agent.moves import Moves
from divhook.agent.nic import Nic
from divhook.config.configuration import Placement
from divhook.core.addressing import AddressPlan, SubnetId, parse_address, parse_mac
from divhook.core.keys import Key, KeyRing
from divhook.core.moves.asking import Asked, MoveQuestions
from divhook.core.moves.messages import Handover
from divhook.core.wire.discovery import Claim

pytestmark = [pytest.mark.require_root, pytest.mark.no_agent]

SOURCE, TARGET = parse_mac("06:00:00:00:00:0a"), parse_mac("06:00:00:00:00:0b")
MAC, ADDRESS = parse_mac("52:54:00:00:00:01"), parse_address("10.1.1.5")
PLAN, SUBNET, UUID = AddressPlan(), SubnetId(1, 1), "7c1a"
TUNSETIFF, TAP, NO_PI, VNET_HDR = 0x400454CA, 0x2, 0x1000, 0x4000
HEADERS = 10 + 14
PORT = 5111


class Tap:
    """A tap that QEMU has open, and a socket that sends into it."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.fd = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
        fcntl.ioctl(self.fd, TUNSETIFF, struct.pack("16sH22x", name.encode(), TAP | NO_PI | VNET_HDR))
        self.ifindex = socket.if_nametoindex(name)

    def send(self, *numbers: int) -> None:
        with socket.socket(socket.AF_PACKET, socket.SOCK_RAW) as sender:
            sender.bind((self.name, 0))
            for number in numbers:
                sender.send(MAC + SOURCE + b"\x88\xb6" + struct.pack("!I", number) + bytes(42))

    def read(self, frames: int = 1 << 30) -> list[int]:
        """What QEMU reads."""
        found: list[int] = []
        with contextlib.suppress(BlockingIOError):
            while len(found) < frames:
                data = os.read(self.fd, 4096)
                found.append(struct.unpack_from("!I", data, HEADERS)[0])
        return found

    def end(self) -> None:
        """QEMU ends. Idempotent."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1


_libc = ctypes.CDLL(None)


def qemu_sleeps() -> None:
    """As its main loop does between two rounds."""
    _libc.ppoll(None, 0, (ctypes.c_long * 2)(0, 0), None)


class Host:
    """One agent's moves. What the rest of the agent would do is noted."""

    def __init__(self, pmac: bytes, nic: Nic) -> None:
        self.nic, self.said, self.dropped = nic, list[str](), list[Any]()
        self.claim = Claim(ADDRESS, MAC, pmac, 100 if pmac == SOURCE else 101, 50, nic.guest_id, 9)
        discovery = SimpleNamespace(claims=lambda: [self.claim])
        pipeline = SimpleNamespace(discovery=discovery, moved={}, former={}, from_former=lambda *_: [])
        words = {name: getattr(self, name) for name in ("forward", "came_from")}
        figures = SimpleNamespace(drop_counters=dict, traffic=lambda _: TrafficCount())
        plane = SimpleNamespace(
            pipeline=pipeline,
            execute=self.dropped.extend,
            inject=lambda *_: None,
            now=time.monotonic,
            fastpath=SimpleNamespace(**words),
            programs=figures,
            counters=SimpleNamespace(delivered={}),
        )
        plane.drain = lambda: self.said.append("drain")
        self.questions = MoveQuestions(pmac, PLAN)
        keys = KeyRing((Key(1, bytes(32), send=True),))
        self.moves = Moves(cast(Any, plane), self.questions, cast(Any, self), Pinned(keys, "x"), lambda _: self.pid())

    def pid(self) -> int:
        """Of QEMU: asked for when the move begins."""
        self.meanwhile()
        return os.getpid()

    def meanwhile(self) -> None:
        """What happens while the tap is being watched for the first time."""

    def all(self) -> list[Nic]:
        return [self.nic]

    def handover_of(self, nic: Nic, claim: Claim) -> Handover:
        return Handover(claim, nic.guest, None, {}, (), (), "")

    def flows_of(self, nic: Nic, within_s: float) -> None:
        return None

    def __getattr__(self, name: str) -> Callable[..., None]:
        return lambda *_: self.said.append(name)

    def event(self, kind: EventKind, detail: str = "", at_ns: int = 0) -> None:
        self.moves.event(GuestEvent(kind, "g", UUID, detail, at_ns or time.time_ns()))


def made_nic(tap: Tap, incoming: bool) -> Nic:
    place = Placement(SUBNET, cast(Any, None), None, None, "test")
    nic = Nic("g", UUID, place, MAC, fixed=True, address=ADDRESS, incoming=incoming)
    nic.port, nic.ifindex, nic.ifname = 1, tap.ifindex, tap.name
    return nic


class Run:
    """A move up to READY, in the namespace."""

    def __init__(self) -> None:
        self.here, self.there = Tap("from0"), Tap("to0")
        for tap in (self.here, self.there):
            os.system(f"ip link set {tap.name} up")
        self.source, self.target = Host(SOURCE, made_nic(self.here, False)), Host(TARGET, made_nic(self.there, True))

    async def ready(self) -> None:
        await self.target.moves.listen(ip_address("127.0.0.1"), PORT)
        self.target.moves.expect(self.target.nic)
        self.target.moves.port_ready(self.target.nic)
        asked = Asked(self.source.nic.guest_id, TARGET, ip_address("127.0.0.1"), PORT)
        self.source.questions._asked.append(asked)
        self.source.moves.asked()
        await until(lambda: self.state() == "ready")

    def state(self) -> str:
        return self.source.moves.records[-1].state

    def pause(self, at_ns: int = 0) -> None:
        self.source.event(EventKind.QEMU_STOP, at_ns=at_ns)

    def load(self) -> None:
        """QEMU has the guest's state at the destination."""
        self.target.event(EventKind.QEMU_MIGRATION, "completed")

    async def keep(self, *numbers: int) -> Coming:
        """A pause, and frames in it that the destination keeps."""
        qemu_sleeps()
        self.pause()
        self.here.send(*numbers)
        (coming,) = self.target.moves._coming.values()
        await until(lambda: len(coming._waiting) == len(numbers))
        return coming

    async def settle(self) -> None:
        self.source.event(EventKind.QEMU_MIGRATION, "completed")
        self.load()
        await until(lambda: self.state() in ("copying", "moved"))

    async def came(self, frames: int) -> list[int]:
        """What the destination's guest reads."""
        found: list[int] = []

        def enough() -> bool:
            found.extend(self.there.read())
            return len(found) >= frames

        with contextlib.suppress(TimeoutError):
            await until(enough)
        await asyncio.sleep(0.05)  # for one too many
        return found + self.there.read()

    async def end(self) -> None:
        for host in (self.source, self.target):
            await host.moves.stop()
        for tap in (self.here, self.there):
            tap.end()


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(5):
        while not condition():
            await asyncio.sleep(0.002)


@pytest.fixture
def namespace() -> Iterator[Namespace]:
    made = Namespace(f"mt{os.getpid() % 100000}")
    made.sysctl("ipv6/conf/default/disable_ipv6", 1)
    yield made
    made.remove()


def play(namespace: Namespace, story: Callable[[Run], Coroutine[Any, Any, None]]) -> None:
    async def whole() -> None:
        run = Run()
        await run.ready()
        try:
            await story(run)
        finally:
            await run.end()

    with namespace.entered():
        asyncio.run(whole())


def test_what_is_sent_into_a_tap_whose_qemu_has_ended_is_not_lost(namespace: Namespace) -> None:
    """libvirt ends the source's QEMU before the destination's agent has said that the guest runs there."""

    async def story(run: Run) -> None:
        run.here.send(1, 2)
        assert run.here.read() == [1, 2]
        run.pause()
        run.here.send(3, 4)
        run.here.read(1)
        await run.settle()
        run.here.end()
        run.here.send(5, 6)
        assert await run.came(4) == [3, 4, 5, 6]
        run.target.moves.runs(run.target.nic)
        await until(lambda: run.state() == "moved")
        order = [said for said in run.source.said if said in ("drain", "forward", "moved_out")]
        assert order == ["drain", "drain", "forward", "moved_out"]
        assert "came_from" in run.target.said
        run.here.send(7)
        assert await run.came(1) == [7]

    play(namespace, story)


def test_a_held_tap_goes_once_the_move_is_over(namespace: Namespace) -> None:
    async def story(run: Run) -> None:
        run.pause()
        await run.settle()
        run.here.end()
        run.target.moves.runs(run.target.nic)
        assert socket.if_nametoindex("from0")
        await until(lambda: "from0" not in [name for _, name in socket.if_nameindex()])

    play(namespace, story)


def test_an_agent_that_is_late_with_a_burst_takes_no_read_frame_for_unread(namespace: Namespace) -> None:
    """600 frames wait in the capture when the tap's counter is compared: more than it reads at a time."""

    async def story(run: Run) -> None:
        for first in range(0, 600, 100):
            run.here.send(*range(first, first + 100))
            assert len(run.here.read()) == 100
        (leaving,) = run.source.moves._leaving.values()
        leaving.watch._sample()
        run.pause()
        run.here.send(600, 601)
        run.here.read(1)
        await run.settle()
        assert await run.came(2) == [600, 601]

    play(namespace, story)


def test_a_guest_that_comes_back_ends_what_the_agent_before_had_sent_on(namespace: Namespace) -> None:
    """Its new host would send back what comes late there: it could go round."""

    async def whole() -> None:
        run = Run()
        run.target.moves.forwarding.adopted(ADDRESS, SOURCE)
        assert run.target.moves._plane.pipeline.moved == {ADDRESS: SOURCE}
        await run.ready()
        assert run.target.moves._plane.pipeline.moved == {}
        assert run.target.said.count("forward") == 1
        run.target.moves.forwarding._not_adopted(ADDRESS, SOURCE)
        assert run.target.said.count("forward") == 1
        await run.end()

    with namespace.entered():
        asyncio.run(whole())


def test_what_is_read_while_the_watch_begins_is_not_sent_again(namespace: Namespace) -> None:
    async def whole() -> None:
        run = Run()

        def busy() -> None:
            run.here.send(1, 2, 3)
            assert run.here.read() == [1, 2, 3]

        run.source.meanwhile = busy  # type: ignore[method-assign]
        await run.ready()
        run.here.send(4)
        assert run.here.read() == [4]
        run.pause()
        run.here.send(5)
        run.here.read(1)
        await run.settle()
        assert await run.came(1) == [5]
        await run.end()

    with namespace.entered():
        asyncio.run(whole())


def test_what_qemu_held_as_it_paused_and_threw_away_is_sent_on_at_once(namespace: Namespace) -> None:
    """It reads frame 3 and can't give it, throws it away, and reads frame 4, which it holds: both are unseen.

    Known as soon as it is paused: libvirt has not said that all is copied, and 5 and 6 follow as they come.
    """

    async def story(run: Run) -> None:
        run.here.send(1, 2)
        qemu_sleeps()
        assert run.here.read() == [1, 2]
        qemu_sleeps()
        run.here.send(3, 4)
        assert run.here.read(1) == [3]
        for _ in range(3):
            qemu_sleeps()
        paused_ns = time.time_ns()
        assert run.here.read(1) == [4]
        qemu_sleeps()
        run.pause(paused_ns)
        assert run.state() == "copying"
        run.here.send(5, 6)
        run.load()
        assert await run.came(4) == [3, 4, 5, 6]
        assert not run.source.dropped

    play(namespace, story)


def test_what_a_running_qemu_has_given_its_guest_is_not_sent_on(namespace: Namespace) -> None:
    """All was read, and the tap tried once more: whatever was sent a moment before the pause, the guest has it."""

    async def story(run: Run) -> None:
        qemu_sleeps()
        run.here.send(1, 2)
        assert run.here.read() == [1, 2]
        qemu_sleeps()
        run.pause()
        assert run.state() == "copying"
        run.here.send(3)
        run.load()
        assert await run.came(1) == [3]
        assert not run.source.dropped

    play(namespace, story)


def test_where_qemus_steps_are_not_shown_its_habits_must_do(namespace: Namespace, monkeypatch: Any) -> None:
    def refused(*_: object) -> None:
        raise OSError(1, "perf_event_open: Operation not permitted")

    monkeypatch.setattr(move_tap, "TapReads", refused)

    async def story(run: Run) -> None:
        run.here.send(1)
        assert run.here.read() == [1]
        await asyncio.sleep(0.01)
        run.pause()
        run.here.send(2)
        run.here.read(1)
        assert run.state() == "paused"
        await run.settle()
        assert await run.came(1) == [2]
        assert any("how QEMU reads its tap is not shown" in text for _, text in run.source.moves.records[-1].notes)

    play(namespace, story)


def test_nothing_is_put_into_a_tap_before_its_new_qemu_knows_the_nic(namespace: Namespace) -> None:
    """It would read one frame and hold it without the header that the guest's driver has agreed on: rubbish."""

    async def story(run: Run) -> None:
        await run.keep(1, 2)
        assert run.there.read() == []
        run.load()
        run.here.send(3)
        assert await run.came(3) == [1, 2, 3]

    play(namespace, story)


@pytest.mark.parametrize("word", ["resumed", "runs"])
def test_a_guest_that_runs_has_its_nic(namespace: Namespace, word: str) -> None:
    """Where QEMU has not told that all is loaded."""

    async def story(run: Run) -> None:
        qemu_sleeps()
        run.pause()
        run.here.send(1)
        if word == "resumed":
            run.target.event(EventKind.QEMU_RESUME)
        else:
            run.target.moves.runs(run.target.nic)
        assert await run.came(1) == [1]

    play(namespace, story)


def test_copies_that_came_before_the_channel_ended_are_read_all_the_same(namespace: Namespace) -> None:
    async def story(run: Run) -> None:
        coming = await run.keep(1, 2)
        (leaving,) = run.source.moves._leaving.values()
        leaving.channel.close()
        await until(lambda: coming.channel is None)
        run.load()
        run.target.moves.runs(run.target.nic)
        assert await run.came(2) == [1, 2]

    play(namespace, story)


def test_an_agent_that_stops_puts_what_it_has_kept_into_the_tap(namespace: Namespace) -> None:
    async def story(run: Run) -> None:
        await run.keep(1, 2)
        await run.target.moves.stop()
        assert run.there.read() == [1, 2]

    play(namespace, story)
