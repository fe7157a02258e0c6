"""AddressCensus with real Discovery machines: hosts on one wire, a fake clock, no sleep."""

from collections.abc import Callable
from dataclasses import replace
from ipaddress import IPv4Network
from random import Random

import pytest

from divhook.core import census
from divhook.core.addressing import ZERO_ADDRESS, AddressPlan, SubnetId, group_mac
from divhook.core.census import AddressCensus, CensusEvent, Chosen, Confirmed, Lost, Refused
from divhook.core.discovery import Discovery
from divhook.core.discovery.events import TentativeObjected, TentativePassed
from divhook.core.wire.discovery import Bitmaps, Claim, Message, MessageType, emit_bitmaps

PLAN = AddressPlan()
SMALL = AddressPlan(IPv4Network("10.0.0.0/8"), 12, 10, 2)
"""Two bits of host number: 0 network, 1 router, 2 the one address to give, 3 broadcast."""
SUBNET = SubnetId(7, 9)
NETWORK = bytes([10, 7, 9, 0])
VMAC = bytes.fromhex("525400112233")
GUEST = 0x1111_2222_3333_4444
OTHER_VMAC = bytes.fromhex("5254005a5b5c")
OTHER = 0x5555_6666_7777_8888


def pmac(number: int) -> bytes:
    return bytes([0x02, 0x0A, 0x0B, 0x0C, 0x0D, number])


class Host:
    """One host's Discovery and AddressCensus, joined as the agent joins them."""

    def __init__(self, number: int, plan: AddressPlan = PLAN, clock_us: int = 1_700_000_000_000_000) -> None:
        self.pmac = pmac(number)
        self.discovery = Discovery(self.pmac, plan, Random(number), clock_us)
        self.census = AddressCensus(self.pmac, plan, self.discovery)
        self.discovery.ready(0.0)
        self.census.ready()
        self.seen: list[tuple[float, CensusEvent]] = []

    def settle(self, now: float) -> list[Message]:
        """Timers, then the events of both machines; what they want to send."""
        self.discovery.on_timer(now)
        self.census.on_timer(now)
        for event in self.discovery.events():
            if isinstance(event, TentativePassed | TentativeObjected):
                self.census.on_tentative(event, now)
        self.seen += [(now, event) for event in self.census.events()]
        return [*self.discovery.messages_to_send(), *self.census.messages_to_send()]

    def events(self) -> list[CensusEvent]:
        return [event for _, event in self.seen]


class Wire:
    """Delivers at once, except what `lost` says."""

    def __init__(self, *hosts: Host) -> None:
        self.hosts = hosts
        self.now = 0.0
        self.sent: list[tuple[float, Message]] = []
        self.lost: Callable[[Message, Host], bool] = lambda message, to: False

    def run(self, until_s: float) -> None:
        while True:
            queue = [message for host in self.hosts for message in host.settle(self.now)]
            while queue:
                message = queue.pop(0)
                self.sent.append((self.now, message))
                for host in self.hosts:
                    group = bool(message.destination[0] & 1)
                    meant = host.pmac != message.source and (group or host.pmac == message.destination)
                    if meant and not self.lost(message, host):
                        host.discovery.receive(message, self.now)
                        host.census.receive(message, self.now)
                queue += [message for host in self.hosts for message in host.settle(self.now)]
            timers = [t for h in self.hosts for t in (h.discovery.next_timer(), h.census.next_timer()) if t is not None]
            if not timers or min(timers) > until_s:
                self.now = until_s
                return
            self.now = max(self.now, min(timers))


@pytest.fixture
def a() -> Host:
    return Host(1)


@pytest.fixture
def b() -> Host:
    return Host(2)


@pytest.fixture
def wire(a: Host, b: Host) -> Wire:
    return Wire(a, b)


def first_choice(vmac: bytes = VMAC, guest_id: int = GUEST) -> bytes:
    """What a host alone chooses for this MAC."""
    host = Host(9)
    host.census.begin(SUBNET, vmac, guest_id, 0.0)
    Wire(host).run(0.1)
    (event,) = host.events()
    assert isinstance(event, Chosen)
    return event.address


def test_the_former_guest_of_an_address_in_quarantine_here_gets_it_back(a: Host):
    former = PLAN.address(SUBNET, 200)
    assert former != first_choice()
    a.census.release(former, 0.0, guest_id=GUEST)
    a.census.begin(SUBNET, VMAC, GUEST, 0.0)
    Wire(a).run(1.0)
    assert a.events() == [Chosen(GUEST, former), Confirmed(GUEST, former)]


def test_lone_host_chooses_after_the_census_and_confirms_after_600_ms(a: Host):
    wire = Wire(a)
    a.census.begin(SUBNET, VMAC, GUEST, 0.0)
    wire.run(1.0)
    address = first_choice()
    assert a.seen == [
        (pytest.approx(census.CENSUS_S), Chosen(GUEST, address)),
        (pytest.approx(census.CENSUS_S + 0.6), Confirmed(GUEST, address)),
    ]
    asked = Claim(NETWORK, VMAC, a.pmac, 0, 0, GUEST, 0, tentative=True)
    assert wire.sent[0] == (
        0.0,
        Message(MessageType.CENSUS, a.pmac, group_mac(SUBNET), ZERO_ADDRESS, NETWORK, asked, 1),
    )
    assert [m.type for _, m in wire.sent[1:]] == [MessageType.REQUEST] * 3


def test_choice_depends_on_the_mac_alone_and_is_stable():
    assert first_choice() == first_choice(guest_id=OTHER)
    assert len({first_choice(bytes([0x52, 0x54, 0, 0, 0, n])) for n in range(20)}) > 10


def test_address_active_elsewhere_is_not_chosen(wire: Wire, a: Host, b: Host):
    taken = first_choice()
    b.census.hold(taken, OTHER)
    a.census.begin(SUBNET, VMAC, GUEST, 0.0)
    wire.run(1.0)
    chosen, confirmed = a.events()
    assert isinstance(chosen, Chosen)
    assert chosen.address != taken
    assert confirmed == Confirmed(GUEST, chosen.address)


@pytest.mark.parametrize("how", ["reserve", "static", "quarantine"])
def test_reserved_static_and_quarantined_addresses_elsewhere_are_not_chosen(wire: Wire, a: Host, b: Host, how: str):
    taken = first_choice()
    if how == "reserve":
        b.census.reserve(taken, OTHER)
    elif how == "static":
        b.census.set_static({taken})
    else:
        b.census.release(taken, 0.0)
    a.census.begin(SUBNET, VMAC, GUEST, 0.0)
    wire.run(1.0)
    assert [type(e) for e in a.events()] == [Chosen, Confirmed]
    assert a.events()[0].address != taken  # type: ignore[union-attr]


def test_guest_gets_its_own_reserved_address_back_on_another_host(wire: Wire, a: Host, b: Host):
    own = bytes([10, 7, 9, 200])
    b.census.reserve(own, GUEST)
    a.census.begin(SUBNET, VMAC, GUEST, 0.0)
    wire.run(1.0)
    assert a.events() == [Chosen(GUEST, own), Confirmed(GUEST, own)]


def test_remembered_address_is_preferred(wire: Wire, a: Host):
    own = bytes([10, 7, 9, 201])
    a.census.begin(SUBNET, VMAC, GUEST, 0.0, preferred=own)
    wire.run(1.0)
    assert a.events() == [Chosen(GUEST, own), Confirmed(GUEST, own)]


def test_remembered_address_that_is_taken_is_not_chosen(wire: Wire, a: Host, b: Host):
    b.census.hold(bytes([10, 7, 9, 201]), OTHER)
    a.census.begin(SUBNET, VMAC, GUEST, 0.0, preferred=bytes([10, 7, 9, 201]))
    wire.run(1.0)
    assert a.events() == [Chosen(GUEST, first_choice()), Confirmed(GUEST, first_choice())]


def test_stopped_guest_is_defended_though_the_census_was_lost(wire: Wire, a: Host, b: Host):
    taken = first_choice()
    b.census.reserve(taken, OTHER)
    wire.lost = lambda message, to: message.type is MessageType.CENSUS
    a.census.begin(SUBNET, VMAC, GUEST, 0.0)
    wire.run(2.0)
    chosen, lost, again, confirmed = a.events()
    assert chosen == Chosen(GUEST, taken)
    assert isinstance(lost, Lost)
    assert lost.address == taken
    assert isinstance(again, Chosen)
    assert again.address != taken
    assert confirmed == Confirmed(GUEST, again.address)


def test_clock_of_the_claimant_does_not_outdo_a_stopped_guest(b: Host):
    """Its `born` would be older than any real one."""
    slow = Host(1, clock_us=0)
    wire = Wire(slow, b)
    taken = first_choice()
    b.census.reserve(taken, OTHER)
    slow.census.begin(SUBNET, VMAC, GUEST, 0.0, fixed=taken)
    wire.run(1.0)
    (refused,) = slow.events()
    assert isinstance(refused, Refused)


def test_running_guest_objects_to_a_configured_address_within_the_hooks_deadline(wire: Wire, a: Host, b: Host):
    taken = bytes([10, 7, 9, 50])
    b.discovery.activate(taken, OTHER_VMAC, OTHER, 0, None, 0.0)
    b.census.hold(taken, OTHER)
    wire.run(5.0)
    a.census.begin(SUBNET, VMAC, GUEST, 5.0, fixed=taken)
    wire.run(5.0)
    assert a.events() == [
        Refused(
            GUEST,
            "address 10.7.9.50 belongs to another guest (NIC 52:54:00:5a:5b:5c) of host 02:0a:0b:0c:0d:02; "
            "give one of them another with 'divhook assign'",
        )
    ]


def test_configured_address_is_chosen_when_nobody_objects_in_40_ms(wire: Wire, a: Host):
    address = bytes([10, 7, 9, 50])
    a.census.begin(SUBNET, VMAC, GUEST, 0.0, fixed=address)
    wire.run(1.0)
    assert a.seen == [
        (pytest.approx(census.CENSUS_S), Chosen(GUEST, address)),
        (pytest.approx(0.6), Confirmed(GUEST, address)),
    ]
    assert MessageType.CENSUS not in [m.type for _, m in wire.sent]


def test_late_objection_to_a_configured_address_is_a_loss_and_a_refusal(wire: Wire, a: Host, b: Host):
    address = bytes([10, 7, 9, 50])
    b.census.reserve(address, OTHER)
    wire.lost = lambda message, to: wire.now < 0.3
    a.census.begin(SUBNET, VMAC, GUEST, 0.0, fixed=address)
    wire.run(1.0)
    assert [type(e) for e in a.events()] == [Chosen, Lost, Refused]


def test_static_address_of_a_guest_is_not_defended_against_it(wire: Wire, a: Host, b: Host):
    address = bytes([10, 7, 9, 50])
    b.census.set_static({address})
    a.census.set_static({address})
    a.census.begin(SUBNET, VMAC, GUEST, 0.0, fixed=address)
    wire.run(1.0)
    assert [type(e) for e in a.events()] == [Chosen, Confirmed]


@pytest.mark.parametrize(
    ("address", "why"),
    [
        (bytes([10, 7, 9, 1]), "host number 2 to 254"),
        (bytes([10, 7, 9, 255]), "host number 2 to 254"),
        (bytes([10, 7, 8, 20]), "host number 2 to 254"),
        (bytes([10, 7, 9, 60]), "held by another guest of this host"),
        (bytes([10, 7, 9, 61]), "reserved for another guest that is defined on this host"),
    ],
)
def test_configured_address_that_can_not_be_had_is_refused_at_once(a: Host, address: bytes, why: str):
    a.census.hold(bytes([10, 7, 9, 60]), OTHER)
    a.census.reserve(bytes([10, 7, 9, 61]), OTHER)
    a.census.begin(SUBNET, VMAC, GUEST, 0.0, fixed=address)
    (event,) = a.census.events()
    assert isinstance(event, Refused)
    assert why in event.reason
    assert a.census.next_timer() is None
    assert a.discovery.messages_to_send() == []


def test_address_that_discovery_knows_of_another_local_guest_is_passed_over(wire: Wire, a: Host):
    taken = first_choice()
    a.discovery.activate(taken, OTHER_VMAC, OTHER, 0, None, 0.0)
    a.census.begin(SUBNET, VMAC, GUEST, 0.0)
    wire.run(1.0)
    assert [type(e) for e in a.events()] == [Chosen, Confirmed]
    assert a.events()[0].address != taken  # type: ignore[union-attr]


def test_events_of_addresses_that_are_not_under_way_are_ignored(a: Host):
    a.census.on_tentative(TentativePassed(bytes([10, 7, 9, 5])), 0.0)
    assert a.census.events() == []


def test_two_hosts_that_choose_one_address_end_with_two(a: Host, b: Host):
    wire = Wire(a, b)
    a.census.begin(SUBNET, VMAC, GUEST, 0.0)
    b.census.begin(SUBNET, VMAC, OTHER, 0.0)  # a cloned MAC hashes to the same order
    wire.run(3.0)
    confirmed = [e.address for h in (a, b) for e in h.events() if isinstance(e, Confirmed)]
    assert len(confirmed) == 2
    assert len(set(confirmed)) == 2
    assert sum(isinstance(e, Lost) for h in (a, b) for e in h.events()) == 1


@pytest.mark.parametrize(("hosts", "guests", "loss"), [(10, 100, 0.0), (10, 100, 0.2), (10, 253, 0.0)])
def test_boot_storm_gives_every_guest_an_address_of_its_own(hosts: int, guests: int, loss: float):
    """All guests of a /24 at one moment, up to the last free address."""
    machines = [Host(number) for number in range(1, hosts + 1)]
    rng = Random(3)
    wire = Wire(*machines)
    wire.lost = lambda message, to: rng.random() < loss
    for number in range(guests):
        vmac = bytes([0x52, 0x54, 0, 0, 1, number])
        machines[number % hosts].census.begin(SUBNET, vmac, 1000 + number, 0.0)
    wire.run(10.0)
    confirmed = [e.address for machine in machines for e in machine.events() if isinstance(e, Confirmed)]
    assert len(set(confirmed)) == len(confirmed) == guests
    assert max(at for machine in machines for at, _ in machine.seen) < 3.0


def test_same_guest_active_elsewhere_keeps_its_address(wire: Wire, a: Host, b: Host):
    """High availability restarts a guest whose old host lives: the claims decide which one runs, not the census."""
    own = bytes([10, 7, 9, 70])
    b.discovery.activate(own, VMAC, GUEST, 0, None, 0.0)
    b.census.hold(own, GUEST)
    wire.run(5.0)
    a.census.begin(SUBNET, VMAC, GUEST, 5.0)
    wire.run(6.0)
    assert a.events() == [Chosen(GUEST, own), Confirmed(GUEST, own)]


def test_full_subnet_is_refused_with_its_numbers():
    a, b = Host(1, SMALL), Host(2, SMALL)
    subnet = SubnetId(7, 9)
    b.census.hold(SMALL.address(subnet, 2), OTHER)
    a.census.begin(subnet, VMAC, GUEST, 0.0)
    Wire(a, b).run(1.0)
    assert a.events() == [
        Refused(
            GUEST,
            "subnet full: no free address in 10.0.112.36/30 (1 in use, 0 reserved, 0 released in the last 10 minutes)",
        )
    ]


def test_released_address_is_in_quarantine_for_ten_minutes_then_free(a: Host):
    a.census.release(bytes([10, 7, 9, 5]), 100.0)
    assert a.census.taken(SUBNET, 100.0 + census.QUARANTINE_S - 0.1) == Bitmaps(quarantined=1 << 5)
    assert a.census.taken(SUBNET, 100.0 + census.QUARANTINE_S) == Bitmaps()


def test_guest_that_is_undefined_here_and_started_there_keeps_its_address(wire: Wire, a: Host, b: Host):
    own = bytes([10, 7, 9, 77])
    b.census.reserve(own, GUEST)
    b.census.release(own, 0.0, guest_id=GUEST)
    a.census.begin(SUBNET, VMAC, GUEST, 0.0)
    a.census.begin(SUBNET, OTHER_VMAC, OTHER, 0.0, preferred=own)
    wire.run(1.0)
    assert Confirmed(GUEST, own) in a.events()
    assert sum(isinstance(e, Confirmed) for e in a.events()) == 2


def test_declined_address_is_not_given_to_the_same_guest_again(wire: Wire, a: Host):
    declined = first_choice()
    a.census.release(declined, 0.0)
    a.census.begin(SUBNET, VMAC, GUEST, 0.0, preferred=declined)
    wire.run(0.5)
    (chosen,) = a.events()
    assert isinstance(chosen, Chosen)
    assert chosen.address != declined


def test_used_addresses_come_last_and_the_least_recently_used_first(a: Host):
    hosts = list(range(2, 255))
    for when, number in enumerate(reversed(hosts)):
        a.census.release(bytes([10, 7, 9, number]), float(when))
    late = 2000.0
    for number, (vmac, guest) in enumerate([(VMAC, GUEST), (OTHER_VMAC, OTHER)]):
        a.census.begin(SUBNET, vmac, guest, late)
        a.census.on_timer(late + 1)
        assert a.census.events() == [Chosen(guest, bytes([10, 7, 9, 254 - number]))]


def test_memory_of_released_addresses_is_bounded(monkeypatch: pytest.MonkeyPatch, a: Host):
    monkeypatch.setattr(census, "MAX_RELEASED", 2)
    for number in (6, 5, 6, 7):
        a.census.release(bytes([10, 7, 9, number]), 0.0)
    assert a.census.taken(SUBNET, 1.0) == Bitmaps(quarantined=1 << 6 | 1 << 7)


def test_guests_under_way_are_bounded(monkeypatch: pytest.MonkeyPatch, a: Host):
    monkeypatch.setattr(census, "MAX_PENDING", 1)
    a.census.begin(SUBNET, VMAC, GUEST, 0.0)
    a.census.begin(SUBNET, OTHER_VMAC, OTHER, 0.0)
    assert a.census.events() == [Refused(OTHER, "1 guests are being given an address now; start it again in a second")]
    a.census.begin(SUBNET, VMAC, GUEST, 0.0)
    assert a.census.events() == [], "the same guest starts afresh"


def test_endless_objections_end_in_a_refusal(monkeypatch: pytest.MonkeyPatch, a: Host):
    monkeypatch.setattr(census, "MAX_OBJECTIONS", 2)
    a.census.begin(SUBNET, VMAC, GUEST, 0.0)
    for now in (1.0, 2.0):
        a.census.on_timer(now)
        chosen = [e for e in a.census.events() if isinstance(e, Chosen)][-1]
        a.discovery.withdraw(chosen.address, now)
        holder = Claim(chosen.address, OTHER_VMAC, pmac(2), 5, 5, OTHER, 0)
        a.census.on_tentative(TentativeObjected(chosen.address, holder), now)
    events = a.census.events()
    assert [type(e) for e in events] == [Lost, Refused]
    assert "2 addresses in a row" in events[1].reason  # type: ignore[union-attr]


def test_cancelled_guest_leaves_nothing_behind(wire: Wire, a: Host):
    a.census.begin(SUBNET, VMAC, GUEST, 0.0)
    wire.run(0.1)
    assert a.census.taken(SUBNET, 0.1) != Bitmaps()
    a.census.cancel(GUEST, 0.1)
    assert a.census.taken(SUBNET, 0.1) == Bitmaps()
    assert a.discovery.state(first_choice()) is None
    wire.run(2.0)
    assert [type(e) for e in a.events()] == [Chosen]


def test_host_that_has_not_reconciled_is_silent(a: Host):
    b = Host(2)
    b.census = AddressCensus(b.pmac, PLAN, b.discovery)
    b.census.hold(first_choice(), OTHER)
    wire = Wire(a, b)
    a.census.begin(SUBNET, VMAC, GUEST, 0.0)
    wire.run(0.1)
    assert {m.source for _, m in wire.sent} == {a.pmac}


def test_host_with_nothing_taken_does_not_answer(wire: Wire, a: Host, b: Host):
    b.census.hold(bytes([10, 7, 8, 20]), OTHER)  # another subnet
    a.census.begin(SUBNET, VMAC, GUEST, 0.0)
    wire.run(0.1)
    assert {m.source for _, m in wire.sent} == {a.pmac}


def test_answer_holds_every_kind_in_its_own_bitmap(wire: Wire, a: Host, b: Host):
    b.census.hold(bytes([10, 7, 9, 20]), OTHER)
    b.census.reserve(bytes([10, 7, 9, 30]), OTHER)
    b.census.set_static({bytes([10, 7, 9, 31])})
    b.census.release(bytes([10, 7, 9, 40]), 0.0)
    a.census.begin(SUBNET, VMAC, GUEST, 0.0)
    wire.run(0.01)
    (payload,) = emit_bitmaps(Bitmaps(1 << 20, 1 << 30 | 1 << 31, 1 << 40))
    assert wire.sent[1:] == [
        (0.0, Message(MessageType.CENSUS_REPLY, b.pmac, a.pmac, ZERO_ADDRESS, NETWORK, None, 1, payload))
    ]


def test_answer_that_can_not_be_read_is_counted_and_ignored(a: Host):
    a.census.begin(SUBNET, VMAC, GUEST, 0.0)
    broken = Message(MessageType.CENSUS_REPLY, pmac(2), a.pmac, ZERO_ADDRESS, first_choice(), None, 1, b"\x00\x00\x01")
    a.census.receive(broken, 0.01)
    assert a.census.malformed == 1
    a.census.receive(replace(broken, nonce=99), 0.01)
    assert a.census.malformed == 1, "an answer to no question of ours is not even read"
