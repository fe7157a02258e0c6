"""Whatever an authenticated but mad peer says, in whatever order: no exception, no bound exceeded, no lie."""

import random

from hypothesis import given, settings
from hypothesis import strategies as st

from divhook.core.addressing import AddressPlan, parse_address, parse_mac
from divhook.core.discovery import ClaimState, Discovery, Limits, Outcome
from divhook.core.discovery.timers import Timers
from divhook.core.wire.discovery import Claim, Message, MessageType

PLAN = AddressPlan()
OWN = parse_mac("52:54:00:0a:11:01")
PEERS = [parse_mac(f"52:54:00:0b:22:0{n}") for n in range(3)]
HOSTS = [OWN, *PEERS]
ADDRESSES = [parse_address(text) for text in ("10.3.7.20", "10.3.7.21", "10.3.9.34", "10.3.7.1", "192.0.2.1")]
OWN_MAC = parse_mac("52:54:00:77:15:01")
LIMITS = Limits(neighbours=3, hold_total=6, hold_per_destination=3, source_checks=3, peers=2, withdrawn=2, spacings=4)

stamps = st.one_of(st.integers(0, 9), st.integers(1_700_000_000_000_000, 1_700_000_000_000_009), st.just(1 << 62))
claims = st.builds(
    Claim,
    st.sampled_from(ADDRESSES),
    st.just(OWN_MAC),
    st.sampled_from(HOSTS),
    stamps,
    st.integers(0, 5),
    st.integers(1, 2),
    st.just(0),
    st.booleans(),
)
messages = st.builds(
    Message,
    st.sampled_from(MessageType),
    st.sampled_from(HOSTS),
    st.just(OWN),
    st.sampled_from(ADDRESSES),
    st.sampled_from(ADDRESSES),
    st.none() | claims,
    st.integers(0, 3),
)
addresses = st.sampled_from(ADDRESSES)
steps = st.one_of(
    st.tuples(st.just("receive"), messages),
    st.tuples(st.just("answer"), st.tuples(st.integers(0, 9), st.sampled_from(MessageType), claims)),
    st.tuples(st.just("resolve"), addresses),
    st.tuples(st.just("check"), st.tuples(st.sampled_from(HOSTS), addresses)),
    st.tuples(st.just("not_held"), st.tuples(st.sampled_from(HOSTS), addresses)),
    st.tuples(st.just("start"), st.sampled_from(ADDRESSES[:3])),
    st.tuples(st.just("tentative"), st.sampled_from(ADDRESSES[:3])),
    st.tuples(st.just("stop"), addresses),
    st.tuples(st.just("touch"), addresses),
    st.tuples(st.just("adopt"), claims),
    st.tuples(st.just("wait"), st.sampled_from((0.01, 0.2, 1.0, 70.0, 700.0))),
)


class Shell:
    """Does the steps, answers with real nonces where it can, and keeps count of what it gave to be held."""

    def __init__(self) -> None:
        self.now = 50.0
        self.machine = Discovery(OWN, PLAN, random.Random(4), 1_700_000_000_000_000, LIMITS)
        self.used: set[bytes] = set()
        self.machine.used_elsewhere = self.took_use
        self.machine.ready(self.now)
        self.nonces = [0]
        self.held: set[int] = set()
        self.number = 0
        self.accepted: dict[bytes, tuple[int, bytes]] = {}

    def took_use(self, address: bytes) -> bool:
        used = address in self.used
        self.used.discard(address)
        return used

    def give(self) -> int:
        self.number += 1
        return self.number

    def do(self, what: str, value) -> None:
        machine, now = self.machine, self.now
        if what == "receive":
            machine.receive(value, now)
        elif what == "answer":
            which, kind, claim = value
            nonce = self.nonces[-1 - which % len(self.nonces)]
            machine.receive(Message(kind, claim.host, OWN, ADDRESSES[0], claim.address, claim, nonce), now)
        elif what == "resolve":
            item = self.give()
            if machine.resolve(value, 7, ADDRESSES[0], now, item) is Outcome.PENDING:
                self.held.add(item)
        elif what == "check":
            item = self.give()
            if machine.check_source(value[0], value[1], ADDRESSES[0], now, item) is Outcome.PENDING:
                self.held.add(item)
        elif what == "not_held":
            machine.not_held(*value, now)
        elif what == "start" and machine.state(value) is not ClaimState.TENTATIVE:
            machine.activate(value, OWN_MAC, 1, 0, None, now)
        elif what == "tentative" and machine.state(value) is None:
            machine.tentative(value, OWN_MAC, 1, 0, None, now)
        elif what == "stop":
            machine.withdraw(value, now)
            self.accepted.pop(value, None)
        elif what == "touch":
            self.used.add(value)
        elif what == "adopt" and value.host != OWN:
            machine.adopt(value, now)
        elif what == "wait":
            until = now + value
            while (when := machine.next_timer()) is not None and when <= until:
                assert when > self.now - 1e-9 or when <= now
                self.now = max(self.now, when)
                machine.on_timer(self.now)
                self.check()
            self.now = until
        self.check()

    def check(self) -> None:
        machine = self.machine
        for event in machine.events():
            for item in getattr(event, "items", ()):
                self.held.remove(item)  # KeyError: given back twice, or never taken
        for message in machine.messages_to_send():
            assert message.source == OWN
            self.nonces.append(message.nonce)
            if message.claim is not None and message.claim.host == OWN and message.type is MessageType.REPLY:
                assert machine.state(message.tpa) is ClaimState.ACTIVE
        assert len(self.held) <= LIMITS.hold_total
        assert len(machine.neighbours) <= LIMITS.neighbours
        assert machine.highest_seen_stamp < 1 << 62
        for entry in machine.neighbours:
            assert (entry.found is not None) == (entry.state.name in ("REACHABLE", "STALE", "PROBE"))
            assert entry.found is None or entry.found.claim.host != OWN
        assert len(machine.records()) <= LIMITS.withdrawn + 3


@settings(max_examples=300, deadline=None)
@given(st.lists(steps, max_size=60))
def test_machine_stays_sane_whatever_peers_and_guests_do(sequence):
    shell = Shell()
    for what, value in sequence:
        shell.do(what, value)
    for address in ADDRESSES:
        shell.do("stop", address)
    shell.do("wait", 10.0)
    assert shell.held == set()  # every frame that was held has been given back


@given(
    st.lists(
        st.tuples(st.sampled_from("abc"), st.one_of(st.none(), st.integers(0, 20))),
        max_size=30,
    ),
    st.lists(st.integers(0, 25), min_size=1, max_size=5),
)
def test_timers_agree_with_a_simple_model(settings_of_keys, times):
    timers, model, ran = Timers(), {}, []
    for key, when in settings_of_keys:
        if when is None:
            timers.cancel(key)
            model.pop(key, None)
        else:
            timers.set(key, when, lambda now, key=key: ran.append(key))
            model[key] = when
    for now in sorted(times):
        assert timers.next() == min(model.values(), default=None)
        due = {key: when for key, when in model.items() if when <= now}
        before = len(ran)
        timers.run(now)
        assert [due[key] for key in ran[before:]] == sorted(due.values())
        assert set(ran[before:]) == set(due)
        for key in due:
            del model[key]
