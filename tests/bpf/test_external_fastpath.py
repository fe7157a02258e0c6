"""Between guests and what is outside, or their host, core and programs forward alike, over a policy that lets all pass.

Each frame goes through both. What the programs forward must be what the border sends, to the byte; what the border does
not send in one piece, the programs must leave to the agent.
"""

import random
from collections import Counter
from collections.abc import Iterator
from ipaddress import IPv4Network

import bpf_frames as f
import pytest
from bpf_bench import PORT_ID, Bench, host_entry, port_entry

from divhook.abi.entries import ExternalEndpoint, LocalEndpoint
from divhook.abi.policy_entries import port_policy
from divhook.adapters.bpf import DROP, FROM_GUEST, FROM_HOST, FROM_WIRE, PASS, REDIRECT
from divhook.adapters.links import HOST_LINK_MAC
from divhook.core.addressing import Address, AddressPlan, Mac, SubnetId
from divhook.core.border import Border
from divhook.core.endpoint import Endpoint, PortState, PortTable
from divhook.core.external import ExternalMap, Externals, NextHop, OnLink, OwnAddress, Route, flow_hash
from divhook.core.flow import FlowTable
from divhook.core.guard import Guard
from divhook.core.host import HostDoor
from divhook.core.outputs import Output, ToGuest, ToHost, ToWire
from divhook.core.reasons import DropReason
from divhook.core.router import Router
from divhook.core.verdict import Decision, PortPolicy, Relation
from divhook.core.wire.arp import ARP_REPLY, Arp
from divhook.core.wire.ipv4 import Header, Ipv4, header_untrusted

FRAMES = 3_000
GUEST_MTU, LINK_MTU, ROUTE_MTU = 1300, 1400, 1350
OWN, SERVER, QUIET, ONE, TWO = (bytes((192, 0, 2, n)) for n in (10, 71, 72, 1, 2))
FAR, FARTHER = bytes((198, 51, 100, 9)), bytes((198, 51, 100, 77))
MACS = {SERVER: bytes.fromhex("065e00000071"), ONE: bytes.fromhex("065e00000001"), TWO: bytes.fromhex("065e00000002")}
LINK = IPv4Network("192.0.2.0/24")
ROUTE = Route(IPv4Network("198.51.100.0/24"), (NextHop(ONE, 3), NextHop(TWO)), ROUTE_MTU)
OUTSIDE = ExternalMap([OnLink(LINK, LINK_MTU)], [ROUTE])
GUEST = Endpoint(PORT_ID, SubnetId(21, 37), f.VMAC, f.ADDRESS, "web", "uuid", GUEST_MTU, PortState.ACTIVE)
IDENTITY = 5
HOST_LINK = 77  # ifindex
ELSEWHERE = bytes((10, 21, 37, 99))


class Open:
    """Everything passes at the guest's port."""

    def __init__(self, policed: bool) -> None:
        self._port = PortPolicy(IDENTITY, 1, FlowTable(1024)) if policed else None

    def port(self, endpoint: Endpoint) -> PortPolicy | None:
        return self._port

    def decide(self, *_: object) -> Decision:
        return Decision(True)

    def told(self, event: object) -> None: ...

    def now_s(self, now: float) -> float:
        return now


class Both:
    """The border, and the programs with what it knows."""

    def __init__(self, bench: Bench, policed: bool = True) -> None:
        self.bench = bench
        plan = AddressPlan()
        ports = PortTable()
        ports.put(GUEST)
        machine = Externals(f.PMAC, OUTSIDE, [OwnAddress(OWN, LINK)])
        guard = Guard(plan, Open(policed), lambda _: 0, machine.is_own)  # type: ignore[arg-type]
        self.door = HostDoor(ports, Router(plan), guard, machine)
        self.border = Border(plan, f.PMAC, ports, Router(plan), guard, machine, lambda _: None)
        for address, mac in MACS.items():
            machine.resolve(address, PORT_ID, 0.0, None)
            machine.receive_untrusted(Arp(ARP_REPLY, mac, address, f.PMAC, OWN), mac, False, 0.0)
        programs = bench.programs
        programs.configure(host_entry(fastpath=True))
        programs.external.set_next_hops(0, ROUTE, machine.slots(ROUTE))
        programs.external.declare(OUTSIDE, machine.own, HOST_LINK)
        for address, mac in MACS.items():
            programs.set_endpoint(address, ExternalEndpoint(mac))
        everything = frozenset(Relation)
        programs.policy.set_port(
            PORT_ID, port_policy(bytes((10, 21, 0, 0)), IDENTITY, 1, (0, 0), (everything, everything))
        )
        programs.flows.install(PORT_ID, 1024).close()
        programs.set_port(bench.port, port_entry(tracked=policed, policed=policed))
        programs.set_endpoint(
            f.ADDRESS, LocalEndpoint(f.VMAC, bench.port, PORT_ID, GUEST_MTU, tracked=policed, policed=policed)
        )
        self.seen: Counter[str] = Counter()

    def close(self) -> None:
        programs = self.bench.programs
        programs.set_port(self.bench.port, port_entry())
        programs.external.declare(ExternalMap(), ())
        for address in (*MACS, f.ADDRESS):
            programs.remove_endpoint(address)
        programs.policy.remove_port(PORT_ID)
        programs.flows.remove(PORT_ID)

    def check(self, program: str, frame: bytes) -> None:
        packet = frame[14:]
        header = header_untrusted(packet)
        out: list[Output] = []
        if program == FROM_GUEST and header.destination == OWN:
            self.check_host(program, frame, header, packet)
            return
        if program == FROM_GUEST:
            self.border.from_guest(GUEST, header, packet, 0.0, out)
            ifindex, target = self.bench.port, host_entry().uplink_ifindex
        else:
            self.border.from_wire(frame[6:12], header, packet, 0.0, out)
            ifindex, target = self.bench.uplink, self.bench.port
        ran = self.bench.programs.test_run(program, frame, ifindex)
        sent = [each for each in out if isinstance(each, ToWire if program == FROM_GUEST else ToGuest)]
        if len(sent) == 1 and len(out) == 1:
            assert (ran.verdict, ran.frame) == (REDIRECT, sent[0].frame), f"{program} {frame.hex()}"
            assert ran.target == target
            self.seen["forwarded"] += 1
        else:
            assert ran.verdict == PASS, f"{program} {frame.hex()}: border {out}, kernel {ran.verdict}"
            assert ran.mark & 0xFF == 0xD1
            self.seen["left"] += 1

    def check_host(self, program: str, frame: bytes, header: Header, packet: bytes) -> None:
        out: list[Output] = []
        if program == FROM_GUEST:
            reason = self.door.from_guest(GUEST, header, packet, 0.0, out)
            ifindex, target = self.bench.port, HOST_LINK
        else:
            reason = self.door.from_host(packet, 0.0, out)
            ifindex, target = self.bench.uplink, self.bench.port
        before = self.bench.programs.drop_counters()
        ran = self.bench.programs.test_run(program, frame, ifindex)
        if not out:
            assert reason is not None
            if ran.verdict == PASS:
                assert reason is DropReason.HOST_SERVICE, "without a policy the agent says no"
                self.seen["left"] += 1
                return
            after = self.bench.programs.drop_counters()
            assert ran.verdict == DROP, f"{program} {frame.hex()}: core {reason}"
            assert [r for _, r in after if after[_, r] != before.get((_, r), (0, 0))] == [reason]
            self.seen["dropped"] += 1
            return
        [sent] = out
        if isinstance(sent, ToHost):
            expected = HOST_LINK_MAC + f.VMAC + frame[12:14] + sent.packet
        else:
            assert isinstance(sent, ToGuest)
            expected = sent.frame
        assert (ran.verdict, ran.frame, ran.target) == (REDIRECT, expected, target), f"{program} {frame.hex()}"
        self.seen["forwarded"] += 1


@pytest.fixture
def both(bench: Bench) -> Iterator[Both]:
    made = Both(bench)
    yield made
    made.close()


def outward(rng: random.Random, destination: Address) -> bytes:
    return f.ethernet(_packet(rng, f.ADDRESS, destination))


def inward(rng: random.Random, source: Address, mac: Mac) -> bytes:
    return f.ethernet(_packet(rng, source, f.ADDRESS), source=mac, destination=f.PMAC)


def _packet(rng: random.Random, source: Address, destination: Address, port: int | None = None) -> bytes:
    edge = rng.choice((40, GUEST_MTU, ROUTE_MTU, LINK_MTU)) - 28
    size = (edge + rng.choice((0, 1, 4))) & ~7 if rng.random() < 0.2 else edge + rng.choice((0, 1))
    payload = f.udp(rng.randrange(1024, 60000), port or rng.randrange(1024, 60000), bytes(size))
    ttl, fragment = rng.choice((1, 2, 64, 255)), rng.random() < 0.2
    return Ipv4(
        source=source, destination=destination, protocol=f.UDP, payload=payload, ttl=ttl, more_fragments=fragment
    ).emit()


def test_mutated_frames_are_forwarded_alike(both: Both) -> None:
    rng = random.Random("outside")
    macs = (*MACS.values(), f.PEER, f.PMAC)
    addresses = (SERVER, QUIET, ONE, OWN, FAR, FARTHER, bytes((203, 0, 113, 5)), bytes((8, 8, 8, 8)))
    for _ in range(FRAMES // 2):
        address = rng.choice((*addresses, bytes((198, 51, 100, rng.randrange(256)))))
        if address != QUIET:  # asked for: the machine would hold it, and its state go on
            both.check(FROM_GUEST, outward(rng, address))
            both.check(FROM_WIRE, inward(rng, address, rng.choice(macs)))
    print(both.seen)
    assert min(both.seen["forwarded"], both.seen["left"]) > 500


def test_every_slot_of_a_route_goes_to_the_next_hop_that_the_core_says(both: Both) -> None:
    rng = random.Random("slots")
    found = set()
    for _ in range(3000):
        frame = outward(rng, FAR)
        if header_untrusted(frame[14:]).ttl > 1 and len(frame) - 14 <= ROUTE_MTU:
            found.add(flow_hash(header_untrusted(frame[14:]), frame[14:]))
            both.check(FROM_GUEST, frame)
    assert found == set(range(64))


def test_guests_and_their_host_speak_as_the_core_says(both: Both) -> None:
    rng = random.Random("host")
    for _ in range(FRAMES // 2):
        frame = outward(rng, OWN)
        both.check(FROM_GUEST, frame)
        source, destination = rng.choice((OWN, OWN, OWN, SERVER)), rng.choice((f.ADDRESS, f.ADDRESS, ELSEWHERE))
        packet = _packet(rng, source, destination, rng.choice((None, None, None, 67, 68)))
        frame = f.ethernet(packet, source=HOST_LINK_MAC, destination=HOST_LINK_MAC)
        both.check_host(FROM_HOST, frame, header_untrusted(packet), packet)
    print(both.seen)
    assert both.seen["forwarded"] > 1000
    assert both.seen["dropped"] > 300


def test_from_the_host_nothing_but_valid_ipv4_comes_out(both: Both) -> None:
    packet = f.ethernet(f.ipv4(source=OWN, destination=f.ADDRESS))
    for frame in (packet[:12] + b"\x86\xdd" + packet[14:], f.tag(packet, 5), packet[:24] + b"\0\0" + packet[26:]):
        assert both.bench.programs.test_run(FROM_HOST, frame, both.bench.uplink).verdict == DROP
    both.bench.programs.configure(host_entry(fastpath=False))
    assert both.bench.programs.test_run(FROM_HOST, packet, both.bench.uplink).verdict == PASS
    both.bench.programs.configure(host_entry(fastpath=True))


def test_without_a_policy_the_programs_let_nothing_out_or_in(bench: Bench) -> None:
    both = Both(bench, policed=False)
    try:
        rng = random.Random("closed")
        for _ in range(50):
            both.check(FROM_GUEST, outward(rng, SERVER))
            both.check(FROM_WIRE, inward(rng, SERVER, MACS[SERVER]))
            both.check(FROM_GUEST, outward(rng, OWN))
        assert set(both.seen) == {"left"}
    finally:
        both.close()
