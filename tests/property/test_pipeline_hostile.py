"""Any frames in any order, from guests and from the wire, while ports change their state: what must never happen.

Each step is accounted for: a frame ends in exactly one of emitted, held, or dropped with one reason.
"""

from dataclasses import dataclass, replace

from hypothesis import given, settings
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
from wire_strategies import mutated, sealed_ipv4

from divhook.core import validate
from divhook.core.addressing import ALL_HOSTS_GROUP, SubnetId, group_mac
from divhook.core.discovery import Limits
from divhook.core.endpoint import Endpoint, PortState
from divhook.core.outputs import Drop, Output, ToGuest, ToWire
from divhook.core.reasons import DropReason
from divhook.core.validate import Lane
from divhook.core.wire.arp import Arp
from divhook.core.wire.udp import Udp

LOCAL = (WEB, APP, DB, SPY)
SPECIAL = (NOBODY, NOBODY_BACK, OUTSIDE, *ROUTER.values(), PLAN.broadcast(LAN), b"\xff" * 4, bytes(4))
ADDRESSES = (*(e.address for e in (*LOCAL, FAR, LOG, MOLE)), *SPECIAL, bytes((224, 0, 0, 5)), bytes((10, 3, 200, 7)))
MACS = (*(e.vmac for e in (WEB, FAR)), HOST_A, HOST_B, HOST_C, STRANGER, group_mac(LAN), ALL_HOSTS_GROUP, b"\xff" * 6)
SMALL = Limits(hold_per_destination=2, hold_total=5, neighbours=3, source_checks=2, misses_per_s_port=5)
"""Bounds that a few frames reach."""
DHCP_DISCOVER = bytes((1, 1, 6, 0)) + bytes(24) + WEB.vmac + bytes(202) + bytes.fromhex("63825363350101ff")


def dhcp(source: bytes, destination: bytes, sport: int, dport: int) -> bytes:
    datagram = Udp(sport, dport, DHCP_DISCOVER).emit(source, destination)
    return ipv4(source, destination, datagram, protocol=17)


def packets(sources: tuple[bytes, ...]) -> st.SearchStrategy[bytes]:
    source, destination = st.sampled_from(sources), st.sampled_from(ADDRESSES)
    ttl, port = st.sampled_from((0, 1, 2, 64)), st.sampled_from((67, 68, 53, 4011))
    tcp = st.builds(
        lambda s, d, size, ttl, df, more, offset, options: ipv4(
            s, d, bytes(size), ttl, df=df, more=more, offset=offset, options=options
        ),
        *(source, destination, st.sampled_from((20, 24, 1380, 1381, 1480, 3000)), ttl, st.booleans(), st.booleans()),
        *(st.sampled_from((0, 0, 24, 1480)), st.sampled_from((b"", b"", b"\x94\x04\0\0", b"\x83\x03\x04\0"))),
    )
    return st.one_of(
        tcp,
        st.builds(ping, source, destination, ttl),
        st.builds(udp, source, destination, port, port, ttl),
        st.builds(dhcp, source, destination, port, port),
    )


def any_of(valid: st.SearchStrategy[bytes]) -> st.SearchStrategy[bytes]:
    """Valid frames, mutants, mutants whose header checksum is true again, and noise."""
    sealed = mutated(valid).map(lambda frame: frame[:14] + sealed_ipv4(frame[14:]))
    return st.one_of(valid, valid, sealed, mutated(valid), st.binary(max_size=80))


def frames_of(guest: Endpoint) -> st.SearchStrategy[bytes]:
    own = packets((guest.address, guest.address, guest.address, bytes(4), APP.address))
    ipv4s = st.builds(lambda packet, mac: from_guest(guest, packet, mac), own, st.sampled_from(MACS))
    arps = st.builds(
        arp_from,
        st.just(guest),
        st.sampled_from(ADDRESSES),
        st.sampled_from((None, None, bytes(4), APP.address)),
        st.sampled_from((1, 1, 2, 3)),
    )
    rarps = st.just(
        frame_of(b"\xff" * 6, guest.vmac, Arp(3, guest.vmac, bytes(4), guest.vmac, bytes(4)).emit(), 0x8035)
    )
    return any_of(st.one_of(ipv4s, ipv4s, arps, rarps))


WIRE_FRAMES = any_of(
    st.one_of(
        st.builds(
            frame_of,
            st.sampled_from((HOST_A, HOST_A, HOST_A, *MACS)),
            st.sampled_from((HOST_B, HOST_B, HOST_C, STRANGER, *MACS)),
            packets(ADDRESSES),
        ),
        st.builds(
            lambda to, spa, tpa: frame_of(to, HOST_B, Arp(1, HOST_B, spa, bytes(6), tpa).emit(), 0x0806),
            st.sampled_from(MACS),
            st.sampled_from(ADDRESSES),
            st.sampled_from(ADDRESSES),
        ),
    )
)


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


guests = st.sampled_from(LOCAL)
STEPS = st.one_of(
    guests.flatmap(lambda g: st.builds(GuestFrame, st.just(g), frames_of(g), st.booleans())),
    guests.flatmap(lambda g: st.builds(GuestFrame, st.just(g), frames_of(g), st.just(False))),
    st.builds(WireFrame, WIRE_FRAMES, st.booleans()),
    st.builds(Change, guests, st.sampled_from((*PortState, PortState.ACTIVE, None)), st.booleans()),
    st.builds(Wait, st.sampled_from((0.0, 0.05, 0.7, 61.0)), st.booleans()),
)


def cell_of(address: bytes) -> int | None:
    place = PLAN.locate(address)
    return place.cell if place is not None else None


class Auditor:
    """Runs steps on host A and looks at each output, and at what became of each input."""

    def __init__(self) -> None:
        self.net = Net(SMALL)
        self.host: Host = self.net.a

    @property
    def held(self) -> int:
        return self.host.discovery._hold.used

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
        if any(isinstance(o, ToWire | ToGuest) for o in out):
            assert sender is not None
            answered_fenced_dhcp = step.packet_only and {o.port for o in out} == {port}
            assert sender.state is PortState.ACTIVE or answered_fenced_dhcp or sender.state is PortState.TENTATIVE

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
        elif drops:
            assert out[-1] is drops[0]
            assert len(drops) == 1
            assert drops[0].port == port
            assert all(isinstance(o, ToGuest) and o.port == port for o in emitted), "only answers go with a drop"
        else:
            assert emitted
            assert len({(type(o), o.port if isinstance(o, ToGuest) else o.frame[:6]) for o in emitted}) == 1

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
        if isinstance(output, ToWire):
            assert output.frame[6:14] == HOST_A + b"\x08\x00"
            assert output.frame[:6] in (HOST_B, HOST_C)
            sender = self.host.ports.at(output.frame[26:30])
            assert sender is not None
            assert sender.state is PortState.ACTIVE
            assert cell_of(output.frame[30:34]) == sender.subnet.cell
        elif isinstance(output, ToGuest):
            receiver = self.host.ports.port(output.port)
            assert receiver is not None
            assert output.frame[:6] in (receiver.vmac, b"\xff" * 6)
            source = output.frame[26:30] if output.frame[12:14] == b"\x08\x00" else output.frame[28:32]
            assert cell_of(source) == receiver.subnet.cell
            if output.frame[:6] == receiver.vmac and output.frame[34:38] != b"\0\x43\0\x44":
                assert receiver.state is PortState.ACTIVE
                assert output.frame[6:12] not in (HOST_A, HOST_B, HOST_C)
        else:
            assert isinstance(output, Drop)
            assert isinstance(output.reason, DropReason)
            assert output.reason is not DropReason.INTERNAL_ERROR


@settings(max_examples=120, deadline=None)
@given(steps=st.lists(STEPS, max_size=30))
def test_whatever_comes_in_whatever_order_every_frame_has_one_end_and_no_wall_is_crossed(steps):
    auditor = Auditor()
    for step in steps:
        auditor.step(step)
    auditor.later(2)
    assert auditor.held == 0


@settings(deadline=None)
@given(frame=any_of(st.one_of(frames_of(WEB), WIRE_FRAMES)), port=st.integers(0, 0xFFFF), group=st.booleans())
def test_no_bytes_at_any_entry_point_raise(frame, port, group):
    pipeline, now = QUIET.a.pipeline, QUIET.now
    pipeline.from_guest(port, frame, now)
    pipeline.from_guest_ipv4(port, frame, group, now)
    pipeline.from_guest_arp(port, frame, now)
    pipeline.from_wire(frame, now)
    pipeline.from_wire_ipv4(HOST_B, frame, group, now)
    for endpoint in (WEB, replace(WEB, address=None)):
        for state in PortState:
            validate.from_guest(endpoint.with_state(state), ROUTER[LAN], frame)


@settings(deadline=None)
@given(frame=any_of(st.one_of(*(frames_of(guest) for guest in LOCAL))), guest=guests)
def test_fenced_guest_gets_no_frame_anywhere(frame, guest):
    QUIET.a.put(guest, PortState.FENCED)
    try:
        assert QUIET.a.pipeline.from_guest(guest.port, frame, QUIET.now) == [
            Drop(DropReason.PORT_NOT_ACTIVE, guest.port, frame)
        ]
    finally:
        QUIET.a.put(guest, PortState.ACTIVE)


QUIET = Net()
"""Built once: these tests leave nothing behind that the next example could see."""
