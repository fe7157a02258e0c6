"""Token buckets: who is limited by whom, what a frame costs, and that time refills."""

import time

import bpf_frames as f
import pytest
from bpf_bench import PORT_ID, Bench, host_entry, port_entry
from bpf_frames import ethernet

from divhook.abi.entries import NO_LIMIT, Rate, TrafficCount
from divhook.adapters.bpf import FROM_GUEST, FROM_WIRE, PASS
from divhook.core.reasons import DropReason as R

BURST = 5
SLOW = Rate(1, BURST)
"""No token comes back within a test."""
NOTHING = Rate(0, 1)

DATA = ethernet(f.ipv4())
ARP = ethernet(f.arp(), f.ARP)
RARP = ethernet(f.arp(tha=f.VMAC, op=3), f.RARP)
DHCP = ethernet(f.dhcp())
GUEST = {"ipv4_rate": DATA, "arp_rate": ARP, "dhcp_rate": DHCP}

VIRTUAL = f.ipv4(source=f.NEIGHBOUR, destination=f.ADDRESS)
WIRE = {
    "peer_ipv4_rate": (ethernet(VIRTUAL, source=f.PEER, destination=f.PMAC), R.DIVERT_RATE_LIMITED),
    "stranger_ipv4_rate": (ethernet(VIRTUAL, source=f.STRANGER, destination=f.PMAC), R.DIVERT_RATE_LIMITED),
    "peer_discovery_rate": (f.discovery(f.PEER), R.DISCOVERY_RATE_LIMITED),
    "stranger_discovery_rate": (f.discovery(f.STRANGER), R.DISCOVERY_RATE_LIMITED),
}


@pytest.mark.parametrize("limited", GUEST)
def test_port_over_one_limit_is_dropped_and_its_other_traffic_passes(bench: Bench, limited: str) -> None:
    bench.programs.set_port(bench.port, port_entry(**{limited: SLOW}))
    for _ in range(BURST):
        bench.guest_diverted(GUEST[limited])
    for _ in range(3):
        bench.guest_dropped(GUEST[limited], R.DIVERT_RATE_LIMITED)
    for name, frame in GUEST.items():
        if name != limited:
            bench.guest_diverted(frame)


def test_rarp_shares_the_limit_of_arp(bench: Bench) -> None:
    bench.programs.set_port(bench.port, port_entry(arp_rate=Rate(1, 1)))
    bench.guest_diverted(RARP)
    bench.guest_dropped(ARP, R.DIVERT_RATE_LIMITED)


GROUP_FRAMES = {
    "broadcast": ethernet(f.ipv4(destination=f.LIMITED_BROADCAST), destination=f.BROADCAST),
    "multicast": ethernet(f.ipv4(destination=f.MULTICAST), destination=f.MDNS_GROUP),
    "unicast in a broadcast frame": ethernet(f.ipv4(), destination=f.BROADCAST),
}
IGMP = ethernet(f.ipv4(bytes(8), destination=f.MULTICAST, protocol=2), destination=f.MDNS_GROUP)
DHCP_BROADCAST = ethernet(f.dhcp(), destination=f.BROADCAST)


@pytest.mark.parametrize("kind", GROUP_FRAMES)
def test_group_frames_have_a_limit_of_their_own_and_its_own_reason(bench: Bench, kind: str) -> None:
    bench.programs.set_port(bench.port, port_entry(group_rate=SLOW))
    for _ in range(BURST):
        bench.guest_diverted(GROUP_FRAMES[kind])
    for frame in GROUP_FRAMES.values():
        bench.guest_dropped(frame, R.GROUP_RATE_LIMITED)
    for frame in (DATA, ARP, DHCP, IGMP, DHCP_BROADCAST):
        bench.guest_diverted(frame)


def test_without_a_limit_of_their_own_group_frames_have_that_of_what_is_diverted(bench: Bench) -> None:
    bench.programs.set_port(bench.port, port_entry(group_rate=NO_LIMIT, ipv4_rate=SLOW))
    for _ in range(BURST):
        bench.guest_diverted(GROUP_FRAMES["broadcast"])
    bench.guest_dropped(GROUP_FRAMES["broadcast"], R.DIVERT_RATE_LIMITED)


def test_igmp_shares_the_limit_of_arp(bench: Bench) -> None:
    bench.programs.set_port(bench.port, port_entry(arp_rate=Rate(1, 1), group_rate=NOTHING))
    bench.guest_diverted(IGMP)
    bench.guest_dropped(IGMP, R.DIVERT_RATE_LIMITED)


def test_fragment_with_dhcp_ports_uses_the_limit_of_data(bench: Bench) -> None:
    bench.programs.set_port(bench.port, port_entry(dhcp_rate=NOTHING))
    bench.guest_diverted(ethernet(f.ipv4(f.udp(68, 67), protocol=f.UDP, offset=1480)))


def test_one_port_over_its_limit_costs_another_nothing(bench: Bench) -> None:
    bench.programs.set_port(bench.port, port_entry(ipv4_rate=NOTHING))
    bench.programs.set_port(bench.uplink, port_entry(port_id=PORT_ID + 1))
    bench.guest_dropped(DATA, R.DIVERT_RATE_LIMITED)
    assert bench.programs.test_run(FROM_GUEST, DATA, bench.uplink).verdict == PASS


def test_dropped_frames_cost_no_tokens(bench: Bench) -> None:
    bench.programs.set_port(bench.port, port_entry(ipv4_rate=Rate(1, 1)))
    for _ in range(3):
        bench.guest_dropped(ethernet(f.ipv4(source=f.NEIGHBOUR)), R.SPOOF_IPV4)
    bench.guest_diverted(DATA)


def test_update_of_a_port_does_not_refill_its_buckets(bench: Bench) -> None:
    bench.programs.set_port(bench.port, port_entry(ipv4_rate=Rate(1, 1)))
    bench.guest_diverted(DATA)
    bench.programs.set_port(bench.port, port_entry(ipv4_rate=Rate(1, 1)))
    bench.guest_dropped(DATA, R.DIVERT_RATE_LIMITED)


def test_time_refills_a_bucket_at_its_rate(bench: Bench) -> None:
    bench.programs.set_port(bench.port, port_entry(ipv4_rate=Rate(200, 1)))
    started = time.monotonic()
    passed = 0
    while time.monotonic() < started + 0.25:
        passed += bench.programs.test_run(FROM_GUEST, DATA, bench.port).verdict == PASS
    most = 1 + (time.monotonic() - started) * 200
    assert 3 < passed <= most  # a busy machine may not ask in time for each token


def test_segmented_frame_costs_its_segments(bench: Bench) -> None:
    bench.programs.set_port(bench.port, port_entry(ipv4_rate=Rate(1, 10)))
    frame = ethernet(f.ipv4(bytes(3200 - 34)))
    verdicts = [bench.programs.test_run(FROM_GUEST, frame, bench.port, gso_size=800).verdict for _ in range(4)]
    assert verdicts == [PASS, PASS, 2, 2]  # four tokens each, of ten
    bench.guest_diverted(DATA)


def test_segmented_frame_larger_than_the_burst_passes_a_full_bucket(bench: Bench) -> None:
    bench.programs.set_port(bench.port, port_entry(ipv4_rate=Rate(1, 3)))
    frame = ethernet(f.ipv4(bytes(3200 - 34)))
    verdicts = [bench.programs.test_run(FROM_GUEST, frame, bench.port, gso_size=800).verdict for _ in range(2)]
    assert verdicts == [PASS, 2]


@pytest.mark.parametrize("limited", WIRE)
def test_wire_over_one_limit_is_dropped_and_its_other_traffic_passes(bench: Bench, limited: str) -> None:
    bench.programs.configure(host_entry(**{limited: SLOW}))
    frame, reason = WIRE[limited]
    verdicts = {bench.programs.test_run(FROM_WIRE, frame, bench.uplink).verdict for _ in range(BURST)}
    assert len(verdicts) == 1
    assert 2 not in verdicts
    bench.wire_dropped(frame, reason)
    for name, (other, _) in WIRE.items():
        if name != limited:
            assert bench.programs.test_run(FROM_WIRE, other, bench.uplink).verdict != 2


def test_peer_that_is_removed_has_the_share_of_strangers(bench: Bench) -> None:
    bench.programs.configure(host_entry(stranger_discovery_rate=NOTHING))
    bench.wire_redirected(f.discovery(f.PEER))
    bench.programs.remove_peer(f.PEER)
    bench.programs.remove_peer(f.PEER)
    bench.wire_dropped(f.discovery(f.PEER), R.DISCOVERY_RATE_LIMITED)


def test_flood_of_strangers_leaves_their_drops_counted(bench: Bench) -> None:
    bench.programs.configure(host_entry(stranger_discovery_rate=SLOW))
    frame = f.discovery(f.STRANGER)
    for _ in range(1000):
        bench.programs.test_run(FROM_WIRE, frame, bench.uplink)
    dropped = 1000 - BURST
    assert bench.programs.drop_counters() == {(0, R.DISCOVERY_RATE_LIMITED): (dropped, dropped * len(frame))}
    assert bench.programs.traffic(0) == TrafficCount(BURST, BURST * len(frame))
