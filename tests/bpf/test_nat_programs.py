"""Source NAT: what core's border hands to the namespace and takes from it, the programs do alike, to the byte."""

import random
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace

import bpf_frames as f
import pytest
from bpf_bench import PORT_ID, Bench, host_entry, port_entry
from test_external_fastpath import FAR, GUEST, GUEST_MTU, MACS, ONE, OUTSIDE, OWN, SERVER, Both, inward, outward

from divhook.abi.entries import LocalEndpoint
from divhook.adapters.bpf import DROP, FROM_GUEST, FROM_WIRE, PASS, REDIRECT
from divhook.adapters.bpf.programs import FROM_NAT
from divhook.core.addressing import Address, AddressPlan, Mac
from divhook.core.nat import FIRST_PORT, Nat, Share
from divhook.core.outputs import Drop, Output, ToGuest, ToNat, ToWire
from divhook.core.reasons import DropReason
from divhook.core.validate import Divert, Lane, WireFacts, from_wire
from divhook.core.wire.arp import request_frame
from divhook.core.wire.ipv4 import Ipv4, header_untrusted

MINE, OTHER, NAT_IFINDEX = bytes((192, 0, 2, 160)), bytes((192, 0, 2, 161)), 77
BEYOND = bytes((198, 51, 100, 160))
"""Of the pool as MINE is, and in no prefix that is declared on link."""
NAT_MAC = bytes.fromhex("06d1d1d1d1d2")
STRANGER = bytes((203, 0, 113, 5))


class BothNat(Both):
    """The border, and the programs with what it knows; the guest's cell has NAT."""

    def __init__(self, bench: Bench) -> None:
        super().__init__(bench)
        self.border.nat = Nat(NAT_MAC, frozenset({MINE, BEYOND}))
        self.guest = replace(GUEST, translated=True)
        self.border._ports.put(self.guest)
        programs = bench.programs
        programs.nat.open(NAT_IFINDEX, NAT_MAC)
        assert programs.nat.is_open()
        programs.nat.set_addresses({MINE, BEYOND})
        programs.set_port(bench.port, port_entry(tracked=True, policed=True, translated=True))
        local = LocalEndpoint(f.VMAC, bench.port, PORT_ID, GUEST_MTU, tracked=True, policed=True, translated=True)
        programs.set_endpoint(f.ADDRESS, local)
        assert programs.endpoint(f.ADDRESS) == local
        assert programs.ports()[bench.port].translated

    @property
    def facts(self) -> WireFacts:
        return WireFacts(AddressPlan(), f.PMAC, frozenset(), OUTSIDE, self.border.nat)

    def close(self) -> None:
        self.bench.programs.nat.close()
        self.bench.programs.nat.set_addresses(())
        super().close()

    def decide(self, program: str, frame: bytes) -> list[Output]:
        packet, out = frame[14:], list[Output]()
        header = header_untrusted(packet)
        if program == FROM_GUEST:
            reason = self.border.from_guest(self.guest, header, packet, 0.0, out)
        elif program == FROM_NAT:
            reason = self.border.from_nat(header, packet, 0.0, out)
        elif header.destination == MINE:
            reason = self.border.from_wire_translated(frame[6:12], header, packet, 0.0, out)
        else:
            reason = self.border.from_wire(frame[6:12], header, packet, 0.0, out)
        return out if reason is None else [*out, Drop(reason, 0, packet)]

    def check(self, program: str, frame: bytes) -> None:
        header = header_untrusted(frame[14:])
        if program == FROM_GUEST and header.destination == OWN:
            self.check_host(program, frame, header, frame[14:])
            return
        out = self.decide(program, frame)
        before = self.bench.programs.drop_counters()
        ran = self.bench.programs.test_run(program, frame, self.bench.port)
        what = f"{program} {frame.hex()}: border {out}, kernel {ran.verdict}"
        first = out[0] if out else None  # None: held
        if len(out) == 1 and isinstance(first, ToWire | ToNat | ToGuest):
            targets = {ToWire: host_entry().uplink_ifindex, ToNat: NAT_IFINDEX, ToGuest: self.bench.port}
            assert (ran.verdict, ran.frame) == (REDIRECT, first.frame), what
            assert ran.target == targets[type(first)], what
            self.seen[type(first).__name__] += 1
        elif ran.verdict == DROP:
            assert isinstance(first, Drop), what
            moved = {k[1] for k, v in self.bench.programs.drop_counters().items() if before.get(k) != v}
            assert moved == {first.reason}, what
            self.seen[f"drop {first.reason.name}"] += 1
        else:
            assert ran.verdict == PASS, what
            assert ran.mark == {FROM_GUEST: PORT_ID << 16 | 0xD1, FROM_WIRE: 0xD1, FROM_NAT: 0x2D1}[program], what
            self.seen["left"] += 1


@pytest.fixture
def both(bench: Bench) -> Iterator[BothNat]:
    made = BothNat(bench)
    yield made
    made.close()


def out_of_nat(rng: random.Random, source: Address, destination: Address) -> bytes:
    frame = outward(rng, destination)
    packet = Ipv4(
        source=source, destination=destination, protocol=f.UDP, payload=frame[34:], ttl=rng.choice((1, 2, 64))
    ).emit()
    return NAT_MAC + NAT_MAC + b"\x08\x00" + packet


def to_nat(rng: random.Random, source: Address, mac: Mac) -> bytes:
    frame = inward(rng, source, mac)
    packet = Ipv4(source=source, destination=MINE, protocol=f.UDP, payload=frame[34:], ttl=rng.choice((1, 64))).emit()
    return f.ethernet(packet, source=mac, destination=f.PMAC)


def test_frames_go_into_nat_and_come_out_alike(both: BothNat) -> None:
    rng = random.Random("nat")
    addresses = (SERVER, ONE, OWN, FAR, STRANGER, MINE, bytes((198, 51, 100, 3)))
    macs = (*MACS.values(), f.PEER)
    for _ in range(800):
        address = rng.choice(addresses)
        both.check(FROM_GUEST, outward(rng, address))
        both.check(FROM_WIRE, inward(rng, address, rng.choice(macs)))
        both.check(FROM_NAT, out_of_nat(rng, rng.choice((MINE, MINE, OTHER, f.ADDRESS)), address))
        both.check(FROM_NAT, out_of_nat(rng, address, f.ADDRESS))
        if address not in (MINE, OWN):
            both.check(FROM_WIRE, to_nat(rng, address, rng.choice(macs)))
    print(both.seen)
    for what in ("ToNat", "ToWire", "ToGuest", "left", "drop NAT_UNTRANSLATED", "drop EXTERNAL_UNSUPPORTED"):
        assert both.seen[what] > 50, what


def test_arp_for_an_address_of_nat_is_answered_alike(both: BothNat) -> None:
    stranger = bytes((192, 0, 2, 200))
    for asker in (SERVER, stranger, bytes(4)):
        frame = request_frame(MACS[SERVER], asker, MINE)
        out = both.border.arp_untrusted(frame, 0.0)
        ran = both.bench.programs.test_run(FROM_WIRE, frame, both.bench.uplink)
        assert out[0] == ToWire(ran.frame)
        assert (ran.verdict, ran.target) == (REDIRECT, host_entry().uplink_ifindex)
    forged = b"\xff" * 6 + f.PEER + request_frame(MACS[SERVER], stranger, MINE)[12:]
    both.bench.assert_dropped(FROM_WIRE, forged, DropReason.EXTERNAL_SPOOF, 0)
    assert both.border.arp_untrusted(forged, 0.0)[-1] == Drop(DropReason.EXTERNAL_SPOOF, 0, forged)
    malformed = bytearray(request_frame(MACS[SERVER], stranger, MINE))
    malformed[18] = 8
    both.bench.assert_dropped(FROM_WIRE, bytes(malformed), DropReason.ARP_MALFORMED, 0)
    both.bench.assert_untouched(request_frame(MACS[SERVER], STRANGER, OTHER))
    for claimed in (MINE, BEYOND):
        rival = request_frame(f.PEER, claimed, claimed)  # for the agent, and the host's own ARP
        assert from_wire(both.facts, rival) == Divert(Lane.DISCOVERY, True, copied=True)
        before = both.bench.programs.traffic(0).diverted_packets
        ran = both.bench.programs.test_run(FROM_WIRE, rival, both.bench.uplink, mark=0x5AFE)
        assert (ran.verdict, ran.frame, ran.mark) == (PASS, rival, 0x5AFE)
        assert both.bench.programs.traffic(0).diverted_packets == before + 1


def test_without_the_fast_path_the_agent_decides_of_all(both: BothNat) -> None:
    rng = random.Random("slow")
    both.bench.programs.configure(host_entry(fastpath=False))
    wire = to_nat(rng, FAR, MACS[ONE])
    both.bench.wire_diverted(wire)
    both.bench.wire_redirected(request_frame(MACS[SERVER], SERVER, MINE))
    for frame in (out_of_nat(rng, MINE, FAR), out_of_nat(rng, FAR, f.ADDRESS)):
        ran = both.bench.programs.test_run(FROM_NAT, frame, both.bench.uplink)
        assert (ran.verdict, ran.frame, ran.mark) == (PASS, frame, 0x2D1)


def test_without_a_namespace_nothing_goes_in_or_comes_out(both: BothNat) -> None:
    rng = random.Random("shut")
    both.bench.programs.nat.close()
    both.border.nat = None
    both.check(FROM_GUEST, outward(rng, FAR))
    assert both.seen == {"left": 1}
    both.bench.assert_untouched(to_nat(rng, FAR, MACS[ONE]))
    for frame in (out_of_nat(rng, MINE, FAR), out_of_nat(rng, FAR, f.ADDRESS)):
        both.bench.assert_dropped(FROM_NAT, frame, DropReason.NAT_UNTRANSLATED, 0)


@pytest.mark.parametrize("frame", [b"\x86\xdd", b"\x08\x06", b"\x81\x00"], ids=["IPv6", "ARP", "a tag"])
def test_nothing_but_ipv4_comes_out_of_nat(both: BothNat, frame: bytes) -> None:
    whole = NAT_MAC + NAT_MAC + frame + bytes(46)
    both.bench.assert_dropped(FROM_NAT, whole, DropReason.NAT_UNTRANSLATED, 0)


def test_a_frame_with_a_tag_or_an_invalid_header_does_not_reach_nat(both: BothNat) -> None:
    rng = random.Random("odd")
    frame = to_nat(rng, FAR, MACS[ONE])
    both.bench.wire_dropped(frame[:12] + b"\x81\x00\x00\x05" + frame[12:], DropReason.VLAN_TAGGED)
    broken = bytearray(frame)
    broken[24] ^= 1  # its checksum
    both.bench.wire_dropped(bytes(broken), DropReason.IPV4_CHECKSUM)
    both.bench.wire_dropped(frame[:6] + b"\x01" + frame[7:], DropReason.SOURCE_MAC_GROUP)
    both.bench.assert_untouched(b"\xff" * 6 + frame[6:])


@pytest.fixture
def shared(both: BothNat) -> BothNat:
    """The guest's cell goes out with the host's own address."""
    both.border.nat = Nat(NAT_MAC, frozenset({MINE, BEYOND}), OWN)
    assert both.bench.programs.nat.set_addresses({MINE, BEYOND}, OWN) == set()
    return both


def hosts_packet(rng: random.Random, source: Address) -> bytes:
    """To the host's own address: of any protocol, whole or a fragment, ports around NAT's first."""
    protocol = rng.choice((f.TCP, f.UDP, f.ICMP, 47))
    port = rng.choice((22, FIRST_PORT - 1, FIRST_PORT, 65535))
    payload = {
        f.TCP: b"\x01\xbb" + port.to_bytes(2, "big") + bytes(8) + b"\x50\x10" + bytes(6),
        f.UDP: f.udp(53, port, bytes(32)),
        f.ICMP: bytes((rng.choice((0, 3, 4, 5, 8, 11, 12)), 0)) + bytes(30),
        47: bytes(40),
    }[protocol]
    offset, more = rng.choice(((0, False), (0, False), (0, True), (64, False)))
    if offset or more:
        payload += bytes(-len(payload) % 8)
    return Ipv4(
        source=source, destination=OWN, protocol=protocol, payload=payload, fragment_offset=offset, more_fragments=more
    ).emit()


def test_the_hosts_own_address_is_shared_alike(shared: BothNat) -> None:
    rng = random.Random("shared")
    nat = shared.border.nat
    assert nat is not None
    programs, seen = shared.bench.programs, Counter[str]()
    for _ in range(1500):
        source, mac = rng.choice(((FAR, MACS[ONE]), (SERVER, MACS[SERVER]), (SERVER, f.PEER), (STRANGER, MACS[ONE])))
        packet = hosts_packet(rng, source)
        frame = f.ethernet(packet, source=mac, destination=f.PMAC)
        verdict = from_wire(shared.facts, frame)
        share = nat.share(header_untrusted(packet), packet)
        before = shared.bench.counters()
        ran = programs.test_run(FROM_WIRE, frame, shared.bench.uplink, mark=0x5AFE)
        known = mac == (MACS[ONE] if source == FAR else MACS[SERVER])
        what = f"{verdict} {share} {frame.hex()}"
        if verdict is None:
            assert (ran.verdict, ran.frame, ran.mark) == (PASS, frame, 0x5AFE), what
            assert shared.bench.counters() == before, what
        elif share is Share.ALL and known:
            assert (ran.verdict, ran.frame) == (REDIRECT, NAT_MAC + f.PMAC + frame[12:]), what
        elif share is Share.ALL:
            assert (ran.verdict, ran.frame, ran.mark) == (PASS, frame, 0xD1), what
        else:
            assert isinstance(verdict, Divert), what
            assert verdict.copied, what
            assert (ran.verdict, ran.frame, ran.mark) == (PASS, frame, 0x5AFE), what
            assert ran.target == (NAT_IFINDEX if known else host_entry().divbr_ifindex), what
        seen[f"{share.name} {known} {verdict is None}"] += 1
    print(seen)
    assert len(seen) == 8
    assert min(seen.values()) > 20


def test_arp_for_the_hosts_own_address_is_the_hosts(shared: BothNat) -> None:
    shared.bench.assert_untouched(request_frame(MACS[SERVER], STRANGER, OWN))


def test_what_comes_out_with_the_hosts_own_address_goes_on(shared: BothNat) -> None:
    rng = random.Random("mine")
    for _ in range(50):
        shared.check(FROM_NAT, out_of_nat(rng, OWN, FAR))
    assert shared.seen["ToWire"] > 10
