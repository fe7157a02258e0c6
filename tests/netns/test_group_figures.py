"""How long a broadcast takes to 64 guests, and what a storm of them costs a neighbour. Figures are printed."""

import json
import socket
import statistics
import struct
import subprocess
import time
from collections.abc import Iterator
from contextlib import ExitStack

import pytest
from bare_fixtures import NIC, BareBench, Place, WireWitness, bare_bench, wait_for
from hostile_frames import ALL_ONES, ethernet, ipv4, udp
from test_floods import FLOOD

from divhook.lab.bare import BareSpec

RECEIVERS, BROADCASTS = 64, 30
WITHIN_S = 1e-3
"""From the first receiver to the last."""
STORM_S = 4.0
GROUP_PPS = 200
"""Default of a subnet."""
RATE = "10M"
LENGTH = 1000
SENDER = BareSpec("sender", "A", "shop", "web", "10.1.1.10")
CROWD = tuple(BareSpec(f"r{number}", "A", "shop", "web", f"10.1.1.{100 + number}") for number in range(RECEIVERS))
NEAR, NEXT = (BareSpec(name, "A", "shop", "web", f"10.1.1.{11 + n}") for n, name in enumerate(("near", "next")))
FAR = BareSpec("far", "B", "shop", "web", "10.1.1.13")
_SO_TIMESTAMPNS = 35


@pytest.fixture(scope="module")
def crowd() -> Iterator[BareBench]:
    with bare_bench((SENDER, NEAR, NEXT, FAR, *CROWD), hosts=2, quiet=()) as bench:
        yield bench


def arrivals_ns(receiver: socket.socket) -> list[int]:
    """When the kernel took in each frame that waits."""
    found = []
    while True:
        try:
            frame, ancillary, _, _ = receiver.recvmsg(2048, 64)
        except BlockingIOError:
            return found
        seconds, rest = struct.unpack("=qq", ancillary[0][2])
        if frame[:6] == ALL_ONES and frame[36:38] == b"\x13\x8d":
            found.append(seconds * 1_000_000_000 + rest)


def test_a_broadcast_reaches_64_guests_within_a_millisecond(
    crowd: BareBench, fastpath: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    with ExitStack() as stack:
        receivers = []
        for spec in CROWD:
            with Place(crowd.guest(spec.name).namespace).entered():
                each = socket.socket(socket.AF_PACKET, socket.SOCK_RAW | socket.SOCK_NONBLOCK, socket.htons(3))
                each.bind((NIC, 3))
            each.setsockopt(socket.SOL_SOCKET, _SO_TIMESTAMPNS, 1)
            receivers.append(stack.enter_context(each))
        packet = ipv4(str(SENDER.address), "10.1.1.255", 17, udp(5000, 5005, b"to all"))
        frame = ethernet(ALL_ONES, crowd.macs["sender"], 0x0800, packet)
        for _ in range(BROADCASTS):
            crowd.guest_sends("sender", frame)
            time.sleep(0.05)
        times = [arrivals_ns(each) for each in receivers]
    assert [len(each) for each in times] == [BROADCASTS] * RECEIVERS
    spreads_us = sorted((max(turn) - min(turn)) / 1000 for turn in zip(*times, strict=True))
    with capsys.disabled():
        print(f"\n    first to last of {RECEIVERS}: median {statistics.median(spreads_us):.0f} µs", end=", ")
        print(f"least {spreads_us[0]:.0f}, most {spreads_us[-1]:.0f}")
    assert not fastpath or statistics.median(spreads_us) < WITHIN_S * 1e6


def stream(bench: BareBench) -> tuple[float, float]:
    """(bits/s received, share lost) of a paced UDP stream from near to next."""
    with subprocess.Popen(
        bench.guest("next").namespace.enter("iperf3", "-s", "-1"), stdout=subprocess.DEVNULL
    ) as server:
        try:
            time.sleep(0.3)
            words = ("iperf3", "-c", str(NEXT.address), "-u", "-b", RATE, "-l", str(LENGTH), "-t", "3", "-J")
            end = json.loads(bench.guest("near").exec(*words).stdout)["end"]["sum"]
            server.wait(10)
        finally:
            server.kill()
    return end["bits_per_second"], end["lost_percent"] / 100


def test_a_storm_of_broadcasts_costs_a_neighbour_nothing(crowd: BareBench, capsys: pytest.CaptureFixture[str]) -> None:
    calm, calm_lost = stream(crowd)
    packet = ipv4(str(SENDER.address), "255.255.255.255", 17, udp(5000, 5006, b"storm"))
    path = crowd.lab.directory / "storm"
    path.write_text(ethernet(ALL_ONES, crowd.macs["sender"], 0x0800, packet).hex())
    before, used = crowd.drops(), crowd.slow_path("A")
    with ExitStack() as stack:
        wire = WireWitness(Place(crowd.lab.switch))
        stack.callback(wire.close)
        storm = stack.enter_context(crowd.in_guest("sender", FLOOD, str(path), str(STORM_S), "500"))
        with crowd.steady_ping("near", "10.1.1.1", STORM_S - 0.5) as router:
            stormy, stormy_lost = stream(crowd)
        sent = int(storm.communicate(timeout=60)[0])
        limited = on_wire = 0

        def all_accounted_for() -> bool:
            """Without the fast path some are under way still."""
            nonlocal limited, on_wire
            on_wire += sum(frame[36:38] == b"\x13\x8e" for frame in wire.frames())
            limited = (crowd.drops() - before)["A", "sender", "group_rate_limited"]
            return limited + on_wire >= sent

        assert wait_for(all_accounted_for, 10), (sent, limited, on_wire)
    after = crowd.slow_path("A")
    with capsys.disabled():
        print(
            f"\n    {sent / STORM_S:,.0f} broadcasts/s, {limited / sent:.2%} dropped at the tap, {on_wire} on the wire"
        )
        print(f"    near to next: {calm / 1e6:.2f} Mb/s, {stormy / 1e6:.2f} in the storm; router: {router.result}")
    assert limited + on_wire == sent
    assert on_wire <= GROUP_PPS * (STORM_S + 2)
    assert stormy >= 0.95 * calm
    assert stormy_lost <= calm_lost + 0.05
    assert router.result.received == router.result.sent
    assert {k: after[k] - used[k] for k in ("queue_lost", "socket_lost")} == {"queue_lost": 0, "socket_lost": 0}
