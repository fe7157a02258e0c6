"""Any frames in any order, from guests and from the wire, while ports change their state: what must never happen.

Each step is accounted for: a frame ends in exactly one of emitted, held, or dropped with one reason.
"""

import random
from collections import Counter
from dataclasses import dataclass, replace

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pipeline_hosts import (
    APP,
    DB,
    FAR,
    HOST_A,
    HOST_B,
    HOST_C,
    LAN,
    LOG,
    MOLE,
    NOBODY,
    NOBODY_BACK,
    OUTSIDE,
    PLAN,
    ROUTER,
    SPY,
    STRANGER,
    WEB,
    Host,
    Net,
    arp_from,
    frame_of,
    from_guest,
    ipv4,
    ping,
    udp,
)
from wire_strategies import sealed_ipv4

from divhook.core import validate
from divhook.core.addressing import ALL_HOSTS_GROUP, SubnetId, group_mac
from divhook.core.discovery import Limits
from divhook.core.endpoint import Endpoint, PortState
from divhook.core.group import link_destination
from divhook.core.outputs import Drop, Output, ToGuest, ToWire
from divhook.core.reasons import DropReason
from divhook.core.validate import Lane
from divhook.core.wire.arp import Arp
from divhook.core.wire.checksum import checksum
from divhook.core.wire.udp import Udp

LOCAL = (WEB, APP, DB, SPY)
SPECIAL = (NOBODY, NOBODY_BACK, OUTSIDE, *ROUTER.values(), PLAN.broadcast(LAN), b"\xff" * 4, bytes(4))
ADDRESSES = (
    *(e.address for e in (*LOCAL, FAR, FAR, LOG, LOG, MOLE)),
    *SPECIAL,
    bytes((224, 0, 0, 5)),
    bytes((239, 1, 2, 3)),
    bytes((10, 3, 200, 7)),
)
MACS = (
    *(e.vmac for e in (WEB, FAR)),
    HOST_A,
    HOST_B,
    HOST_C,
    STRANGER,
    group_mac(LAN),
    group_mac(SubnetId(3, 200)),
    ALL_HOSTS_GROUP,
    b"\xff" * 6,
)
SMALL = Limits(hold_per_destination=2, hold_total=5, neighbours=3, source_checks=2, misses_per_s_port=2)
"""Bounds that a few frames reach."""
SEEDS, LONG = 50, 600
"""Seeded runs, and steps of each."""
R = DropReason
REACHABLE = {
    *(R.TRUNCATED, R.VLAN_TAGGED, R.ETHERTYPE, R.SOURCE_MAC_GROUP, R.IPV4_VERSION, R.IPV4_HEADER_LENGTH),
    *(R.IPV4_TOTAL_LENGTH, R.IPV4_CHECKSUM, R.IPV4_OPTION, R.ARP_MALFORMED, R.L2_MULTICAST_MISMATCH),
    *(R.FRAGMENT_INVALID, R.SPOOF_MAC, R.SPOOF_IPV4, R.SPOOF_ARP_SHA, R.SPOOF_ARP_SPA, R.SPOOF_LOCAL),
    *(R.SPOOF_SOURCE, R.UNKNOWN_HOST, R.UNVERIFIED, R.ROGUE_DHCP, R.RARP_FROM_GUEST, R.CELL_DENIED),
    *(R.NO_SUCH_ENDPOINT, R.NEGATIVE_CACHED, R.RESOLVE_RATE_PORT, R.HOLD_QUEUE_FULL, R.HOLD_TABLE_FULL),
    *(R.TTL_EXPIRED, R.FRAGMENTATION_NEEDED, R.DIRECTED_BROADCAST, R.NO_MEMBER, R.IGMP_REFUSED, R.NOT_JOINED),
    *(R.EXTERNAL_UNSUPPORTED, R.MARTIAN_DESTINATION, R.NOT_LOCAL, R.ROUTER_SERVICE, R.WIRE_GROUP_UNICAST),
    *(R.PORT_NOT_ACTIVE, R.PORT_UNKNOWN, R.CONSUMED),
}
DHCP_DISCOVER = bytes((1, 1, 6, 0)) + bytes(24) + WEB.vmac + bytes(202) + bytes.fromhex("63825363350101ff")


def dhcp(source: bytes, destination: bytes, sport: int, dport: int) -> bytes:
    datagram = Udp(sport, dport, DHCP_DISCOVER).emit(source, destination)
    return ipv4(source, destination, datagram, protocol=17)


def igmp(source: bytes, destination: bytes, rng: random.Random) -> bytes:
    """A report or leave for one of a few groups, a query, or noise."""
    group = bytes((239, 1, 2, rng.randrange(3, 7)))
    head = bytes((rng.choice((0x11, 0x12, 0x16, 0x16, 0x16, 0x17, 0x22, 0x23)), 0))
    body = (
        group
        if head[0] != 0x22
        else b"\0\0\0\2"
        + b"".join(
            bytes((rng.randrange(8), 0, 0, rng.randrange(2))) + group + bytes(4 * rng.randrange(2)) for _ in range(2)
        )
    )
    message = head + checksum(head + bytes(2) + body).to_bytes(2, "big") + body
    return ipv4(source, destination, message, 1, protocol=2, options=b"\x94\x04\0\0")


@dataclass(frozen=True)
class GuestFrame:
    guest: Endpoint
    frame: bytes
    packet_only: bool  # by the entry point behind the divert


@dataclass(frozen=True)
class WireFrame:
    frame: bytes
    packet_only: bool


@dataclass(frozen=True)
class Change:
    """A port's new state; None: it is removed. heir: it is another cell's guest's from now on."""

    guest: Endpoint
    state: PortState | None
    heir: bool = False


@dataclass(frozen=True)
class Wait:
    seconds: float
    cut: bool  # peers are silent meanwhile


class Chaos:
    """Frames and steps out of a random source: seeded for long runs, Hypothesis's own where a failure must shrink."""

    def __init__(self, rng: random.Random) -> None:
        self._rng = rng

    def _often(self, usual: bytes, *others: bytes) -> bytes:
        return usual if self._rng.randrange(8) else self._rng.choice(others)

    def packet(self, source: bytes) -> bytes:
        rng = self._rng
        destination, ttl = rng.choice(ADDRESSES), rng.choice((0, 1, 2, 64, 64, 64))
        ports = rng.choice((67, 68, 53, 4011)), rng.choice((67, 68, 53, 4011))
        match rng.randrange(8):
            case 0:
                return ping(source, destination, ttl)
            case 1:
                return udp(source, destination, *ports, ttl)
            case 2:
                return dhcp(source, destination, *ports)
            case 3:
                return igmp(source, destination, rng)
        return ipv4(
            source,
            destination,
            bytes(rng.choice((16, 20, 24, 1380, 1381, 1480, 3000))),
            ttl,
            df=rng.random() < 0.5,
            more=rng.random() < 0.2,
            offset=rng.choice((0, 0, 0, 24, 1480)),
            options=rng.choice((b"", b"", b"", b"\x94\x04\0\0", b"\x83\x03\x04\0")),
        )

    def _hurt(self, frame: bytes) -> bytes:
        """Most frames are left as they are; the others are changed, and the header checksum often made true again."""
        rng = self._rng
        if rng.random() < 0.8:
            return frame
        data = bytearray(frame)
        at = rng.randrange(min(len(data), 60))
        match rng.randrange(6):
            case 0:
                data[at] ^= 1 << rng.randrange(8)
            case 1:
                data[at] = rng.choice((0, 1, 2, 0x44, 0x45, 0x46, 0x7F, 0x80, 0xFF))
            case 2:
                del data[at:]
            case 3:
                data[12:12] = b"\x81\x00\0\x07"
            case 4:
                data[at:at] = bytes(rng.randrange(256) for _ in range(rng.randrange(1, 9)))
            case _:
                data = bytearray(rng.randrange(256) for _ in range(rng.randrange(60)))
        return bytes(data[:14]) + sealed_ipv4(bytes(data[14:])) if rng.random() < 0.6 else bytes(data)

    def guest_frame(self, guest: Endpoint) -> bytes:
        rng = self._rng
        if rng.randrange(12) == 0:
            announce = Arp(3, guest.vmac, bytes(4), guest.vmac, bytes(4))
            return self._hurt(frame_of(b"\xff" * 6, guest.vmac, announce.emit(), 0x8035))
        if rng.randrange(4) == 0:
            spa = self._often(guest.address, bytes(4), APP.address)
            return self._hurt(arp_from(guest, rng.choice(ADDRESSES), spa, rng.choice((1, 1, 1, 2, 3))))
        packet = self.packet(self._often(guest.address, bytes(4), APP.address))
        return self._hurt(from_guest(guest, packet, self._often(HOST_B, *MACS)))

    def wire_frame(self) -> bytes:
        rng = self._rng
        to, source = self._often(HOST_A, *MACS), self._often(HOST_B, HOST_C, STRANGER, *MACS)
        if rng.randrange(12) == 0:
            arp = Arp(1, HOST_B, rng.choice(ADDRESSES), bytes(6), rng.choice(ADDRESSES))
            return self._hurt(frame_of(to, source, arp.emit(), 0x0806))
        return self._hurt(frame_of(to, source, self.packet(rng.choice((FAR.address, LOG.address, *ADDRESSES)))))

    def step(self) -> GuestFrame | WireFrame | Change | Wait:
        rng = self._rng
        guest = rng.choice(LOCAL)
        lot = rng.randrange(40)
        if lot < 18:
            return GuestFrame(guest, self.guest_frame(guest), rng.randrange(4) == 0)
        if lot < 30:
            return WireFrame(self.wire_frame(), rng.randrange(4) == 0)
        if lot < 35:
            return Change(guest, rng.choice((None, *PortState, *[PortState.ACTIVE] * 12)), heir=rng.randrange(6) == 0)
        return Wait(rng.choice((0.0, 0.0, 0.0, 0.05, 0.7, 61.0)), cut=rng.randrange(3) == 0)


def is_dhcp_answer(frame: bytes) -> bool:
    return frame[12:14] == b"\x08\x00" and frame[23] == 17 and frame[34:38] == b"\0\x43\0\x44"


def is_group_frame(frame: bytes) -> bool:
    return bool(frame[0] & 1)


def cell_of(address: bytes) -> int | None:
    place = PLAN.locate(address)
    return place.cell if place is not None else None


class Auditor:
    """Runs steps on host A and looks at each output, and at what became of each input."""

    def __init__(self) -> None:
        self.net = Net(SMALL)
        self.host: Host = self.net.a
        self.seen: Counter[str] = Counter()

    @property
    def held(self) -> int:
        """Frames that wait, and those that an eviction has just given back."""
        given_back = [item for event in self.host.discovery._seam.events for item in getattr(event, "items", ())]
        return self.host.discovery._hold.used + len(given_back)

    def step(self, step: object) -> None:
        if isinstance(step, GuestFrame):
            self._guest(step)
        elif isinstance(step, WireFrame):
            self._wire(step)
        elif isinstance(step, Change):
            self._change(step)
        elif isinstance(step, Wait):
            self.net.cut = {HOST_B, HOST_C} if step.cut else set()
            self.later(step.seconds)
            self.net.cut = set()

    def later(self, seconds: float) -> None:
        """What was held comes back, each once: emitted, or dropped with one reason."""
        before = self.held
        self.net.run(seconds)
        out = self.host.take()
        for output in out:
            self._check(output)
        endings = sum(isinstance(o, Drop) for o in out)
        assert before - self.held >= endings
        if not any(isinstance(o, ToGuest | ToWire) for o in out):
            assert before - self.held == endings

    def _guest(self, step: GuestFrame) -> None:
        port, now, pipeline = step.guest.port, self.net.now, self.host.pipeline
        sender = self.host.ports.port(port)
        before = self.held
        if not step.packet_only:
            out = pipeline.from_guest(port, step.frame, now)
        elif step.frame[12:14] == b"\x08\x06":
            out = pipeline.from_guest_arp(port, step.frame[14:], now)
        else:
            out = pipeline.from_guest_ipv4(port, step.frame[14:], bool(step.frame[:1] and step.frame[0] & 1), now)
        self._one_ending(out, before, port)
        for output in out:
            self._check(output)
            if isinstance(output, ToGuest):
                receiver = self.host.ports.port(output.port)
                assert sender is not None
                assert receiver is not None
                assert receiver.subnet.cell == sender.subnet.cell
        emitted = [o for o in out if isinstance(o, ToWire | ToGuest)]
        if sender is None or sender.state is not PortState.ACTIVE:  # hears DHCP at most
            assert all(isinstance(o, ToGuest) and o.port == port and is_dhcp_answer(o.frame) for o in emitted)

    def _wire(self, step: WireFrame) -> None:
        before = self.held
        if step.packet_only:
            out = self.host.pipeline.from_wire_ipv4(step.frame[6:12], step.frame[14:], False, self.net.now)
            ours = True
        else:
            facts = self.host.pipeline._wire_facts()
            verdict = validate.from_wire(facts, step.frame)
            ours = verdict is not None and getattr(verdict, "lane", None) is not Lane.DISCOVERY
            out = self.host.pipeline.from_wire(step.frame, self.net.now)
        if ours:
            self._one_ending(out, before, 0)
        else:
            assert (out, self.held) == ([], before)
        for output in out:
            self._check(output)
            assert not isinstance(output, ToWire)  # a host forwards nothing from the wire to the wire

    def _one_ending(self, out: list[Output], before: int, port: int) -> None:
        drops = [o for o in out if isinstance(o, Drop)]
        emitted = [o for o in out if isinstance(o, ToWire | ToGuest)]
        if self.held != before:
            assert (self.held, out) == (before + 1, [])
            self.seen["held"] += 1
        elif drops:
            assert out[-1] is drops[0]
            assert len(drops) == 1
            assert drops[0].port == port
            assert all(isinstance(o, ToGuest) and o.port == port for o in emitted), "only answers go with a drop"
        else:
            assert emitted
            targets = [(type(o), o.port if isinstance(o, ToGuest) else o.frame[:6]) for o in emitted]
            if is_group_frame(emitted[0].frame):
                assert len(set(targets)) == len(targets)
                assert all(is_group_frame(o.frame) for o in emitted)
                assert sum(isinstance(o, ToWire) for o in emitted) == (port != 0), "once on the wire, from a guest"
            else:
                assert len(set(targets)) == 1

    def _change(self, step: Change) -> None:
        ports, discovery, now = self.host.ports, self.host.discovery, self.net.now
        if step.state is None:
            ports.remove(step.guest.port)
            discovery.withdraw(step.guest.address, now)
            self.host.pipeline.forget_port(step.guest.port)
        elif step.heir:
            other = SubnetId(8 - step.guest.subnet.cell, 7)
            address = PLAN.address(other, 100 + step.guest.port)
            ports.put(replace(step.guest, subnet=other, address=address, state=step.state))
        else:
            ports.put(step.guest.with_state(step.state))
            if step.state is PortState.ACTIVE:
                discovery.activate(step.guest.address, step.guest.vmac, step.guest.port, 0, None, now)
        self.later(0)

    def _check(self, output: Output) -> None:
        """What holds for every output, whenever it comes."""
        self.seen[output.reason.name if isinstance(output, Drop) else type(output).__name__] += 1
        if isinstance(output, ToWire):
            assert output.frame[6:14] == HOST_A + b"\x08\x00"
            sender = self.host.ports.at(output.frame[26:30])
            assert sender is not None
            assert sender.state is PortState.ACTIVE
            if output.frame[:6] in (HOST_B, HOST_C):
                assert cell_of(output.frame[30:34]) == sender.subnet.cell
            else:
                assert output.frame[:6] == group_mac(sender.subnet)
                assert validate.is_group_address(PLAN, output.frame[30:34])
        elif isinstance(output, ToGuest):
            receiver = self.host.ports.port(output.port)
            assert receiver is not None
            source = output.frame[26:30] if output.frame[12:14] == b"\x08\x00" else output.frame[28:32]
            assert cell_of(source) == receiver.subnet.cell
            if is_group_frame(output.frame) and not is_dhcp_answer(output.frame):
                assert receiver.state is PortState.ACTIVE
                assert output.frame[:6] == link_destination(output.frame[30:34])
                assert PLAN.locate(source) == receiver.subnet
                assert source != receiver.address
                assert output.frame[6:12] not in (HOST_A, HOST_B, HOST_C, receiver.vmac)
            elif not is_dhcp_answer(output.frame):
                assert output.frame[:6] == receiver.vmac
                assert receiver.state is PortState.ACTIVE
                assert output.frame[6:12] not in (HOST_A, HOST_B, HOST_C)
        else:
            assert isinstance(output, Drop)
            assert isinstance(output.reason, DropReason)
            assert output.reason is not DropReason.INTERNAL_ERROR


def run(chaos: Chaos, steps: int) -> Auditor:
    auditor = Auditor()
    for _ in range(steps):
        auditor.step(chaos.step())
    auditor.later(2)
    assert auditor.held == 0
    return auditor


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
@given(rng=st.randoms(use_true_random=False), steps=st.integers(1, 30))
def test_whatever_comes_in_whatever_order_every_frame_has_one_end_and_no_wall_is_crossed(rng, steps):
    run(Chaos(rng), steps)


def test_long_runs_cross_no_wall_and_reach_every_end_that_frames_alone_can_bring_about():
    seen: Counter[str] = Counter()
    for seed in range(SEEDS):
        try:
            seen += run(Chaos(random.Random(seed)), LONG).seen
        except AssertionError as error:
            raise AssertionError(f"seed {seed}") from error
    unreached = {reason.name for reason in REACHABLE} | {"ToGuest", "ToWire", "held"}
    assert unreached - set(seen) == set()


@settings(deadline=None)
@given(rng=st.randoms(use_true_random=False), noise=st.binary(max_size=80), port=st.integers(0, 0xFFFF))
def test_no_bytes_at_any_entry_point_raise(rng, noise, port):
    pipeline, now = QUIET.a.pipeline, QUIET.now
    chaos = Chaos(rng)
    for frame in (noise, chaos.guest_frame(WEB), chaos.wire_frame(), chaos.wire_frame()[:-1]):
        for at in (port, WEB.port):
            pipeline.from_guest(at, frame, now)
            pipeline.from_guest_ipv4(at, frame[14:], bool(port & 1), now)
            pipeline.from_guest_arp(at, frame[14:], now)
        pipeline.from_wire(frame, now)
        pipeline.from_wire_ipv4(HOST_B, frame[14:], bool(port & 1), now)
        for endpoint in (WEB, replace(WEB, address=None)):
            for state in PortState:
                validate.from_guest(endpoint.with_state(state), ROUTER[LAN], frame)


@settings(deadline=None)
@given(rng=st.randoms(use_true_random=False), guest=st.sampled_from(LOCAL))
def test_fenced_guest_gets_no_frame_anywhere(rng, guest):
    frame = Chaos(rng).guest_frame(guest)
    QUIET.a.put(guest, PortState.FENCED)
    try:
        outputs = QUIET.a.pipeline.from_guest(guest.port, frame, QUIET.now)
        (drop,) = [output for output in outputs if isinstance(output, Drop)]
        assert drop.port == guest.port
        answers = [output for output in outputs if output is not drop]  # at most a NAK, to itself
        assert all(isinstance(answer, ToGuest) and answer.port == guest.port for answer in answers)
        assert not answers or drop.reason is DropReason.CONSUMED
    finally:
        QUIET.a.put(guest, PortState.ACTIVE)


QUIET = Net()
"""Built once: these tests leave nothing behind that the next example could see."""
