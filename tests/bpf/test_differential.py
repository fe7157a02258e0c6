"""core/validate and the tc programs decide alike: the same frames through both, everything that may change compared.

Test-run cannot express tags in metadata, non-linear frames and frames without an Ethernet or a whole IPv4 header:
those are in test_real_interfaces.py.
"""

import random
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from ipaddress import IPv4Network

import bpf_frames as f
import pytest
from bpf_bench import Bench, host_entry, port_entry
from bpf_mutator import GUEST_CORPUS, WIRE_CORPUS, mutant, runnable
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from divhook.abi.entries import PortEntry, Rate, TrafficCount
from divhook.abi.layout import MARK_DIVERT, MARK_GROUP, MARK_PORT_SHIFT
from divhook.adapters.bpf import DROP, FROM_GUEST, FROM_WIRE, PASS, REDIRECT
from divhook.core import validate
from divhook.core.addressing import AddressPlan, SubnetId
from divhook.core.endpoint import PORT_WIRE, Endpoint, PortState
from divhook.core.external import ExternalMap, NextHop, OnLink, Route
from divhook.core.reasons import DropReason
from divhook.core.validate import Divert, Lane, WireFacts
from divhook.core.wire.discovery import is_discovery

FRAMES = 2_500
"""Per set-up: 30,000 in all."""
BATCH = 50
"""Frames between two looks at all counters. Their lengths differ, so two wrong reasons do not cancel out in bytes."""
MARK = 0xBADC0DE
CLOSED = Rate(0, 1)
"""Nothing passes: shows which of the token buckets a frame is charged to."""
PLAN = AddressPlan()
OTHER_PLAN = AddressPlan(IPv4Network("10.16.0.0/12"), 4, 10, 6)


@dataclass(frozen=True, slots=True)
class Outcome:
    """All that a program may change."""

    verdict: int
    frame: bytes
    mark: int
    drop: tuple[int, DropReason] | None = None  # (port id, reason)
    diverted: int | None = None  # port id


Judge = Callable[[bytes], Outcome]
"""The twin's word on a frame."""


def mark_of(port_id: int, divert: Divert) -> int:
    return MARK_DIVERT | (MARK_GROUP if divert.group else 0) | port_id << MARK_PORT_SHIFT


def guest_judge(entry: PortEntry) -> Judge:
    endpoint = Endpoint(entry.port_id, SubnetId(21, 37), entry.vmac, entry.address, "web", "uuid", state=entry.state)
    rates = {Lane.IPV4: entry.ipv4_rate, Lane.ARP: entry.arp_rate, Lane.DHCP: entry.dhcp_rate}

    def judge(frame: bytes) -> Outcome:
        verdict = validate.from_guest(endpoint, entry.router, frame)
        if isinstance(verdict, Divert) and rates[verdict.lane] == CLOSED:
            verdict = DropReason.DIVERT_RATE_LIMITED
        if isinstance(verdict, DropReason):
            return Outcome(DROP, frame, 0, drop=(entry.port_id, verdict))
        return Outcome(PASS, f.DIVBR_MAC + frame[6:], mark_of(entry.port_id, verdict), diverted=entry.port_id)

    return judge


def wire_judge(
    plan: AddressPlan, closed_to: Callable[[bytes], bool], externals: ExternalMap = validate.NOTHING_OUTSIDE
) -> Judge:
    facts = WireFacts(plan, f.PMAC, frozenset({f.GROUP}), externals)

    def judge(frame: bytes) -> Outcome:
        verdict = validate.from_wire(facts, frame)
        if isinstance(verdict, Divert) and verdict.copied:
            # Any sender's: nobody has the key who speaks plain ARP. The host's own stack has it in either case.
            closed = closed_to(bytes(6))
            return Outcome(PASS, frame, MARK, diverted=None if closed else PORT_WIRE)
        plain = isinstance(verdict, Divert) and verdict.lane is Lane.DISCOVERY and not is_discovery(frame)
        if isinstance(verdict, Divert) and closed_to(bytes(6) if plain else frame[6:12]):
            limits = {Lane.IPV4: DropReason.DIVERT_RATE_LIMITED, Lane.DISCOVERY: DropReason.DISCOVERY_RATE_LIMITED}
            verdict = limits[verdict.lane]
        if verdict is None:
            return Outcome(PASS, frame, MARK)
        if isinstance(verdict, DropReason):
            return Outcome(DROP, frame, MARK, drop=(PORT_WIRE, verdict))
        code = REDIRECT if verdict.lane is Lane.DISCOVERY else PASS
        return Outcome(code, frame, mark_of(PORT_WIRE, verdict), diverted=PORT_WIRE)

    return judge


OUTSIDE = ExternalMap(
    [OnLink(IPv4Network(prefix), 1500) for prefix in ("192.0.2.0/24", "203.0.113.0/24", "198.51.100.0/24")],
    [Route(IPv4Network("0.0.0.0/0"), (NextHop(bytes((192, 0, 2, 1))),), 1500)],
)
GUEST_SETUPS: dict[str, dict[str, object]] = {
    "active": {},
    "tentative": {"state": PortState.TENTATIVE},
    "incoming, no router known": {"state": PortState.INCOMING, "router": f.NONE},
    "fenced": {"state": PortState.FENCED},
    "no address": {"address": None},
    "no DHCP": {"dhcp_rate": CLOSED},
    "no ARP": {"arp_rate": CLOSED},
    "no IPv4": {"ipv4_rate": CLOSED},
}
WIRE_SETUPS: dict[str, tuple[dict[str, object], Judge]] = {
    "open": ({}, wire_judge(PLAN, lambda source: False)),
    "another plan": (
        {"plan": OTHER_PLAN},
        wire_judge(OTHER_PLAN, lambda source: False),
    ),
    "no strangers": (
        {"stranger_ipv4_rate": CLOSED, "stranger_discovery_rate": CLOSED},
        wire_judge(PLAN, lambda source: source != f.PEER),
    ),
    "no peers": (
        {"peer_ipv4_rate": CLOSED, "peer_discovery_rate": CLOSED},
        wire_judge(PLAN, lambda source: source == f.PEER),
    ),
}


class Referee:
    """Runs frames through a program and holds verdict, frame, mark and counters against the twin's word."""

    def __init__(self, bench: Bench, program: str, judge: Judge) -> None:
        self._bench = bench
        self._program = program
        self._ifindex = bench.port if program == FROM_GUEST else bench.uplink
        self._judge = judge
        self.seen: Counter[str] = Counter()
        self._drops, self._traffic = self._counters()

    def _counters(self) -> tuple[dict[tuple[int, int], tuple[int, int]], dict[int, TrafficCount]]:
        return self._bench.counters()

    def check(self, frame: bytes) -> None:
        """All but the counters."""
        expected = self._judge(frame)
        ran = self._bench.programs.test_run(self._program, frame, self._ifindex, mark=MARK)
        got = (ran.verdict, ran.frame, ran.mark)
        assert got == (expected.verdict, expected.frame, expected.mark), (
            f"{self._program} {frame.hex()}: twin {expected.drop or expected}, kernel {got}"
        )
        if expected.drop is not None:
            packets, octets = self._drops.get(expected.drop, (0, 0))
            self._drops[expected.drop] = packets + 1, octets + len(frame)
            self.seen[expected.drop[1].name] += 1
        elif expected.diverted is not None:
            old = self._traffic[expected.diverted]
            self._traffic[expected.diverted] = replace(
                old, diverted_packets=old.diverted_packets + 1, diverted_bytes=old.diverted_bytes + len(frame)
            )
            self.seen["diverted"] += 1
        else:
            self.seen["untouched"] += 1

    def settle(self, frames: list[bytes]) -> None:
        """Every counter; where one differs, the frames again one by one, to name the first that is to blame."""
        if self._counters() == (self._drops, self._traffic):
            return
        for frame in frames:
            self._drops, self._traffic = self._counters()
            self.check(frame)
            now = self._counters()
            assert now == (self._drops, self._traffic), (
                f"{self._program} {frame.hex()}: twin {self._judge(frame).drop}, kernel's counters {now}"
            )
        raise AssertionError(f"{self._program}: counters differ after {len(frames)} frames, but not one by one")

    def run(self, frames: list[bytes]) -> None:
        for frame in frames:
            self.check(frame)
        self.settle(frames)


def run_seeded(referee: Referee, corpus: list[bytes], seed: str) -> None:
    rng = random.Random(seed)
    begin = time.perf_counter()
    referee.run(corpus)
    for _ in range(FRAMES // BATCH):
        referee.run([mutant(corpus, rng) for _ in range(BATCH)])
    seconds = time.perf_counter() - begin
    total = referee.seen.total()
    print(f"{seed}: {total} frames, {total / seconds:,.0f} frames/s, {len(referee.seen)} kinds of end: {referee.seen}")


@pytest.mark.parametrize("name", GUEST_SETUPS)
def test_mutated_frames_of_a_guest_end_alike_in_the_twin_and_in_the_kernel(bench: Bench, name: str) -> None:
    entry = port_entry(**GUEST_SETUPS[name])
    bench.programs.set_port(bench.port, entry)
    run_seeded(Referee(bench, FROM_GUEST, guest_judge(entry)), GUEST_CORPUS, f"from_guest, {name}")


@pytest.mark.parametrize("name", WIRE_SETUPS)
def test_mutated_frames_from_the_wire_end_alike_in_the_twin_and_in_the_kernel(bench: Bench, name: str) -> None:
    changes, judge = WIRE_SETUPS[name]
    bench.programs.configure(host_entry(**changes))
    run_seeded(Referee(bench, FROM_WIRE, judge), WIRE_CORPUS, f"from_wire, {name}")


@pytest.mark.parametrize(
    ("changes", "closed_to"),
    [({}, lambda source: False), ({"stranger_discovery_rate": CLOSED}, lambda source: source != f.PEER)],
    ids=["open", "no strangers"],
)
def test_mutated_arp_of_externals_ends_alike_in_the_twin_and_in_the_kernel(
    bench: Bench, changes: dict[str, object], closed_to: Callable[[bytes], bool]
) -> None:
    bench.programs.configure(host_entry(**changes))
    bench.programs.external.declare(OUTSIDE, ())
    senders = [f.OUTSIDE, f.ADDRESS, bytes((192, 0, 2, 1)), bytes((8, 8, 8, 8))]
    corpus = [
        f.ethernet(f.arp(spa, tpa, op=op, sha=f.PEER), f.ARP, source=f.PEER, destination=destination)
        for spa in senders
        for tpa in senders
        for op in (1, 2)
        for destination in (f.PMAC, f.BROADCAST)
    ]
    referee = Referee(bench, FROM_WIRE, wire_judge(PLAN, closed_to, OUTSIDE))
    try:
        run_seeded(referee, corpus, f"ARP of externals {sorted(changes)}")
        assert {"untouched", "UNKNOWN_HOST", "diverted" if not changes else "DISCOVERY_RATE_LIMITED"} <= set(
            referee.seen
        )
    finally:
        bench.programs.external.declare(ExternalMap(), ())


def test_mutants_reach_every_end_that_tc_has(bench: Bench) -> None:
    guest = Referee(bench, FROM_GUEST, guest_judge(port_entry()))
    wire = Referee(bench, FROM_WIRE, WIRE_SETUPS["open"][1])
    rng = random.Random("every end")
    for _ in range(3000):
        guest.check(mutant(GUEST_CORPUS, rng))
        wire.check(mutant(WIRE_CORPUS, rng))
    ipv4 = {"IPV4_VERSION", "IPV4_HEADER_LENGTH", "IPV4_TOTAL_LENGTH", "IPV4_CHECKSUM", "IPV4_OPTION"}
    both = {"diverted", "TRUNCATED", "VLAN_TAGGED", "SOURCE_MAC_GROUP", "FRAGMENT_INVALID", "ROGUE_DHCP", *ipv4}
    spoofed = {"SPOOF_MAC", "SPOOF_IPV4", "SPOOF_ARP_SHA", "SPOOF_ARP_SPA", "ARP_MALFORMED"}
    assert set(guest.seen) == both | spoofed | {"ETHERTYPE", "IPV6_UNSUPPORTED"}
    refused = {"NOT_JOINED", "L2_MULTICAST_MISMATCH", "WIRE_GROUP_UNICAST", "SPOOF_SOURCE", "UNKNOWN_HOST"}
    assert set(wire.seen) == both | refused | {"untouched", "DISCOVERY_MALFORMED"}


@settings(
    max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)
@given(rng=st.randoms(use_true_random=False), noise=st.binary(max_size=120), guest=st.booleans(), at=st.integers(0, 60))
def test_any_frame_ends_alike_in_the_twin_and_in_the_kernel(
    bench: Bench, rng: random.Random, noise: bytes, guest: bool, at: int
) -> None:
    corpus = GUEST_CORPUS if guest else WIRE_CORPUS
    frame = mutant(corpus, rng)
    judge = guest_judge(port_entry()) if guest else WIRE_SETUPS["open"][1]
    spliced = runnable(frame[:at] + noise)
    Referee(bench, FROM_GUEST if guest else FROM_WIRE, judge).run([frame, spliced])


def test_every_length_of_a_frame_ends_alike(bench: Bench) -> None:
    for corpus, program, judge in (
        (GUEST_CORPUS, FROM_GUEST, guest_judge(port_entry())),
        (WIRE_CORPUS, FROM_WIRE, WIRE_SETUPS["open"][1]),
    ):
        referee = Referee(bench, program, judge)
        for frame in corpus:
            cuts = [frame[:length] for length in range(14, min(len(frame), 90))]
            referee.run([cut for cut in cuts if cut == runnable(cut)])
