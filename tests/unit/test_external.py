"""Servers without an agent: found by ARP, believed until silent, next hops that fall silent and come back."""

from ipaddress import IPv4Network

import pytest

from divhook.core.addressing import BROADCAST_MAC, Address, Mac, parse_address, parse_mac
from divhook.core.discovery.events import Outcome
from divhook.core.external import (
    ANNOUNCE_COUNT,
    ASK_COUNT,
    ASK_INTERVAL_S,
    HOLD_PER_DESTINATION,
    HOLD_TOTAL,
    MAX_EXTERNALS,
    MISSES_PER_S_PORT,
    NEGATIVE_S,
    NEXT_HOP_IDLE_S,
    NEXT_HOP_PROBE_S,
    REACHABLE_S,
    SLOTS,
    ExternalChanged,
    ExternalConflict,
    ExternalEvent,
    ExternalFound,
    ExternalMap,
    Externals,
    ExternalSilent,
    NextHop,
    OnLink,
    OwnAddress,
    Route,
    RouteChanged,
    flow_hash,
    spread,
)
from divhook.core.reasons import DropReason
from divhook.core.wire.arp import ARP_REPLY, ARP_REQUEST, Arp, request_frame
from divhook.core.wire.ipv4 import Ipv4, Protocol, header_untrusted
from divhook.core.wire.udp import Udp

PMAC = parse_mac("02:a0:0a:0b:0c:0d")
LINK = IPv4Network("192.0.2.0/24")
HOST, SERVER, ONE, TWO, SPARE = (parse_address(f"192.0.2.{n}") for n in (10, 80, 1, 2, 3))
FAR = parse_address("198.51.100.9")
GUEST = parse_address("10.1.1.5")
MACS = {address: bytes((6, 0x5E, 0, 0, 1, address[3])) for address in (SERVER, ONE, TWO, SPARE)}
THIEF = parse_mac("06:66:66:66:66:66")
ROUTE = Route(IPv4Network("198.51.100.0/24"), (NextHop(ONE, 2), NextHop(TWO), NextHop(SPARE, 0)), 1500)
PORT = 7


class Wire:
    """Externals, a clock, and the servers that answer them."""

    def __init__(self) -> None:
        self.now = 100.0
        self.machine = Externals(PMAC, ExternalMap([OnLink(LINK, 1500)], [ROUTE]), [OwnAddress(HOST, LINK)])
        self.alive = dict(MACS)
        self.asked: list[tuple[Address, Mac]] = []
        self.events: list[ExternalEvent] = []

    def answer(self) -> None:
        for _ in range(8):
            frames = self.machine.frames_to_send()
            self.events += self.machine.events()
            if not frames:
                return
            for frame in frames:
                target, to = frame[38:42], frame[:6]
                assert frame == request_frame(PMAC, HOST, target, to)
                self.asked.append((target, to))
                mac = self.alive.get(target)
                if mac is not None and to in (mac, BROADCAST_MAC):
                    self.says(target, mac)

    def says(
        self, spa: Address, mac: Mac, operation: int = ARP_REPLY, tpa: Address = HOST, guest: bool = False
    ) -> object:
        return self.machine.receive_untrusted(Arp(operation, mac, spa, PMAC, tpa), mac, guest, self.now)

    def wait(self, seconds: float) -> None:
        until = self.now + seconds
        self.answer()
        while (when := self.machine.next_timer()) is not None and when <= until:
            self.now = max(self.now, when)
            self.machine.on_timer(self.now)
            self.answer()
        self.now = until

    def resolve(self, address: Address, item: object = "packet") -> object:
        return self.machine.resolve(address, PORT, self.now, item)

    def take(self) -> list[ExternalEvent]:
        self.answer()
        events, self.events = self.events, []
        return events


@pytest.fixture
def wire() -> Wire:
    return Wire()


def packet(number: int = 0, fragment: bool = False) -> bytes:
    udp = Udp(4000 + number, 53, bytes(8)).emit(GUEST, FAR)
    return Ipv4(source=GUEST, destination=FAR, protocol=Protocol.UDP, payload=udp, more_fragments=fragment).emit()


def slot(data: bytes) -> int:
    return flow_hash(header_untrusted(data), data)


def test_a_server_is_asked_for_by_ordinary_arp_and_what_waited_goes_on_in_order(wire: Wire) -> None:
    assert [wire.resolve(SERVER, item) for item in ("first", "second")] == [None, None]
    assert wire.take() == [
        ExternalChanged(SERVER, MACS[SERVER]),
        ExternalFound(SERVER, MACS[SERVER], ("first", "second")),
    ]
    assert wire.asked == [(SERVER, BROADCAST_MAC)]
    assert wire.resolve(SERVER) == MACS[SERVER]


def test_a_silent_server_is_asked_three_times_and_then_not_for_a_while(wire: Wire) -> None:
    del wire.alive[SERVER]
    wire.resolve(SERVER)
    wire.wait(ASK_COUNT * ASK_INTERVAL_S)
    assert wire.take() == [ExternalSilent(SERVER, ("packet",), DropReason.EXTERNAL_UNREACHABLE)]
    assert len(wire.asked) == ASK_COUNT
    assert wire.resolve(SERVER) is DropReason.EXTERNAL_UNREACHABLE
    wire.wait(NEGATIVE_S)
    wire.alive[SERVER] = MACS[SERVER]
    assert wire.resolve(SERVER) is None
    assert wire.take()[-1] == ExternalFound(SERVER, MACS[SERVER], ("packet",))


def test_a_server_in_use_is_asked_by_unicast_and_an_idle_one_is_not(wire: Wire) -> None:
    wire.resolve(SERVER)
    wire.answer()
    wire.now += 1
    wire.resolve(SERVER)
    wire.wait(REACHABLE_S)
    assert wire.asked[1:] == [(SERVER, MACS[SERVER])]
    wire.wait(3 * REACHABLE_S)
    assert len(wire.asked) == 2
    assert wire.resolve(SERVER) == MACS[SERVER]  # stale: usable, and asked
    wire.answer()
    assert wire.asked[2:] == [(SERVER, MACS[SERVER])]


def test_frames_from_a_server_spare_it_the_question(wire: Wire) -> None:
    wire.resolve(SERVER)
    wire.answer()
    wire.now += 1
    assert wire.machine.check_source(SERVER, MACS[SERVER], wire.now, None) is Outcome.DELIVER
    wire.wait(REACHABLE_S)
    assert len(wire.asked) == 1


@pytest.mark.parametrize("operation", [ARP_REQUEST, ARP_REPLY])
def test_who_answers_keeps_its_address_whatever_others_claim(wire: Wire, operation: int) -> None:
    wire.resolve(SERVER)
    wire.take()
    for _ in range(50):
        assert wire.says(SERVER, THIEF, operation) is DropReason.EXTERNAL_CONFLICT
    wire.wait(5)
    assert wire.take() == [ExternalConflict(SERVER, MACS[SERVER], THIEF)]
    assert wire.resolve(SERVER) == MACS[SERVER]
    assert wire.machine.check_source(SERVER, THIEF, wire.now, None) is DropReason.EXTERNAL_SPOOF


def test_a_server_with_a_new_mac_is_believed_once_the_old_one_is_silent(wire: Wire) -> None:
    wire.resolve(SERVER)
    wire.take()
    wire.alive[SERVER] = THIEF
    assert wire.says(SERVER, THIEF) is DropReason.EXTERNAL_CONFLICT
    wire.wait(ASK_COUNT * ASK_INTERVAL_S + 0.1)
    assert wire.resolve(SERVER) == THIEF
    assert ExternalChanged(SERVER, THIEF) in wire.take()


def test_a_server_that_asks_for_a_guest_is_known_at_once_and_verified(wire: Wire) -> None:
    assert wire.says(SERVER, MACS[SERVER], ARP_REQUEST, GUEST, guest=True) is DropReason.CONSUMED
    assert wire.resolve(SERVER) == MACS[SERVER]
    wire.answer()
    assert wire.asked == [(SERVER, BROADCAST_MAC)]


@pytest.mark.parametrize("guest", [False])
def test_arp_that_nobody_needs_makes_no_entry(wire: Wire, guest: bool) -> None:
    for number in range(200):
        wire.says(bytes((192, 0, 2, number)), bytes((6, 0, 0, 0, 0, number)), ARP_REPLY, guest=guest)
    assert [address for address, *_, hop in wire.machine.known() if not hop] == []


@pytest.mark.parametrize(
    ("spa", "mac", "reason"),
    [
        (GUEST, THIEF, DropReason.UNKNOWN_HOST),
        (parse_address("203.0.113.1"), THIEF, DropReason.UNKNOWN_HOST),
        (FAR, THIEF, DropReason.UNKNOWN_HOST),
        (HOST, THIEF, DropReason.UNKNOWN_HOST),
        (SERVER, PMAC, DropReason.EXTERNAL_SPOOF),
        (SERVER, BROADCAST_MAC, DropReason.EXTERNAL_SPOOF),
    ],
)
def test_arp_of_what_is_not_declared_teaches_nothing(wire: Wire, spa: Address, mac: Mac, reason: DropReason) -> None:
    assert wire.says(spa, mac, ARP_REQUEST, GUEST, guest=True) is reason
    assert wire.machine.mac(spa) is None


def test_sha_must_be_the_frames_own_source(wire: Wire) -> None:
    arp = Arp(ARP_REPLY, MACS[SERVER], SERVER, PMAC, HOST)
    assert wire.machine.receive_untrusted(arp, THIEF, False, wire.now) is DropReason.EXTERNAL_SPOOF


def test_flows_are_spread_by_weight_and_a_datagrams_fragments_stay_together() -> None:
    slots = spread(ROUTE, lambda _: True)
    assert len(slots) == SLOTS
    assert {hop: slots.count(hop) for hop in (ONE, TWO, SPARE)} == {ONE: 43, TWO: 21, SPARE: 0}
    found = {slot(packet(number)) for number in range(400)}
    assert found == set(range(SLOTS))
    assert len({slot(packet(number, fragment=True)) for number in range(50)}) == 1


def test_a_silent_next_hop_gives_its_flows_away_and_only_those() -> None:
    before, after = spread(ROUTE, lambda _: True), spread(ROUTE, lambda hop: hop != TWO)
    assert set(after) == {ONE}
    assert all(new == old for old, new in zip(before, after, strict=True) if old == ONE)
    assert set(spread(ROUTE, lambda hop: hop == SPARE)) == {SPARE}
    assert spread(ROUTE, lambda _: False) == before


def test_next_hops_fall_silent_and_come_back(wire: Wire) -> None:
    for hop in (ONE, TWO):
        wire.resolve(hop)
    wire.take()
    del wire.alive[ONE]
    for _ in range(8):
        wire.resolve(wire.machine.slots(ROUTE)[0])
        wire.wait(0.5)
    assert set(wire.machine.slots(ROUTE)) == {TWO}
    assert [type(event) for event in wire.take()] == [ExternalChanged, RouteChanged]
    wire.alive[ONE] = MACS[ONE]
    for _ in range(4):
        wire.resolve(TWO)
        wire.wait(NEXT_HOP_PROBE_S)
    assert set(wire.machine.slots(ROUTE)) == {ONE, TWO}
    assert wire.machine.mac(ONE) == MACS[ONE]


def test_a_route_that_nobody_uses_asks_nobody(wire: Wire) -> None:
    wire.resolve(ONE)
    wire.wait(2 * NEXT_HOP_IDLE_S)
    wire.asked.clear()
    wire.wait(2 * NEXT_HOP_IDLE_S)
    assert wire.asked == []


def test_a_routed_source_must_come_from_one_of_its_next_hops(wire: Wire) -> None:
    wire.resolve(TWO)
    wire.answer()
    check = wire.machine.check_source
    assert check(FAR, MACS[TWO], wire.now, None) is Outcome.DELIVER
    wire.alive = {TWO: MACS[TWO]}
    assert check(FAR, MACS[ONE], wire.now, "who is asked now") is Outcome.PENDING
    wire.wait(0.95)
    assert check(FAR, MACS[ONE], wire.now, None) is DropReason.EXTERNAL_SPOOF
    assert check(FAR, THIEF, wire.now, None) is DropReason.EXTERNAL_SPOOF
    assert check(parse_address("203.0.113.1"), MACS[TWO], wire.now, None) is DropReason.EXTERNAL_UNSUPPORTED
    assert check(HOST, THIEF, wire.now, None) is DropReason.EXTERNAL_SPOOF


def test_the_longest_prefix_decides() -> None:
    inner = OnLink(IPv4Network("198.51.100.128/25"), 1400)
    found = ExternalMap([OnLink(LINK, 1500), inner], [ROUTE])
    assert found.get(parse_address("198.51.100.200")) is inner
    assert found.get(FAR) is ROUTE
    assert found.get(parse_address("203.0.113.1")) is None
    assert not found.is_on_link(FAR)


def test_bounds_hold(wire: Wire) -> None:
    wire.alive.clear()
    assert [wire.resolve(SERVER) for _ in range(HOLD_PER_DESTINATION)] == [None] * HOLD_PER_DESTINATION
    assert wire.resolve(SERVER) is DropReason.HOLD_QUEUE_FULL
    refused = [wire.resolve(bytes((192, 0, 2, 100 + n))) for n in range(int(MISSES_PER_S_PORT))]
    assert refused[-1] is DropReason.RESOLVE_RATE_PORT
    assert refused[:-1] == [None] * (len(refused) - 1)
    assert HOLD_TOTAL < 64 * HOLD_PER_DESTINATION


def test_the_table_forgets_the_least_recently_used(wire: Wire) -> None:
    machine = Externals(PMAC, ExternalMap([OnLink(IPv4Network("192.0.0.0/8"), 1500)]))
    for number in range(MAX_EXTERNALS + 1):
        machine.check_source(bytes((192, 1, number >> 8, number & 255)), THIEF, number * 1.0, None)
    assert len(list(machine.known())) == MAX_EXTERNALS
    assert ExternalChanged(bytes((192, 1, 0, 0)), None) in machine.events()


def test_a_guest_that_is_new_here_is_told_three_times(wire: Wire) -> None:
    wire.machine.announce(GUEST, wire.now)
    frames = wire.machine.frames_to_send()
    while (when := wire.machine.next_timer()) is not None:
        wire.machine.on_timer(when)
        frames += wire.machine.frames_to_send()
    assert frames == [request_frame(PMAC, GUEST, GUEST)] * ANNOUNCE_COUNT
