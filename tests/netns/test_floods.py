"""A guest that floods costs its neighbours nothing they notice, and the wire no more than the limits say.

Frames per second, losses and latencies are printed: on a busy machine latency is the machine's, loss must be none.
"""

import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path

import pytest
from bare_fixtures import DB, FAR, MAL, NEAR, WEB_RMAC, BareBench, Place, WireWitness, bare_bench
from guest_attacks import arp
from hostile_frames import ALL_ONES, ethernet, ipv4, udp

from divhook.core.addressing import parse_address, parse_mac
from divhook.core.wire.discovery import MessageType, is_discovery, parse_discovery_untrusted
from divhook.lab.bare import BareSpec

DRY = BareSpec("dry", "A", "shop", "web", "10.1.1.75")
LOUD = BareSpec("loud", "A", "shop", "web", "10.1.1.76")
NEXT = BareSpec("next", "A", "shop", "web", "10.1.1.77")
COLD = tuple(BareSpec(f"cold{n}", "B", "shop", "db", f"10.1.2.{80 + n}") for n in range(4))
CAST = (MAL, DRY, LOUD, NEAR, NEXT, FAR, DB, *COLD)
ROUTER = "10.1.1.1"
"""The agent answers for it, also where the fast path carries all that goes to guests."""
FLOODERS = ("mal", "dry", "loud")
SECONDS = 4.0
RATES = {"mal": (5000, 2000), "dry": (20, 20), "loud": (200, 100)}  # what the kernel lets through of each, and at once
PORT_MISSES_PER_S, HOST_MISSES_PER_S, ASKINGS = 20, 50, 3  # core/discovery/limits.py

# Sends the frames of a file, one a line in hex, over and over; prints how many in all.
FLOOD = """
import socket, sys, time
frames = [bytes.fromhex(line) for line in open(sys.argv[1])]
s = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0); s.bind(("eth0", 0))
end = time.monotonic() + float(sys.argv[2]); sent = at = 0
while time.monotonic() < end:
    for _ in range(int(sys.argv[3])):
        try: s.send(frames[at]); sent += 1
        except OSError: pass
        at = (at + 1) % len(frames)
    time.sleep(0.005)
print(sent)
"""


@pytest.fixture(scope="module")
def crowd() -> Iterator[BareBench]:
    with bare_bench(CAST, hosts=2, quiet=FLOODERS) as bench:
        yield bench


def scan(guest: BareSpec) -> list[bytes]:
    """UDP to every address of the subnet, of the cell's other subnet, and of some that do not exist."""
    targets = [f"10.1.{subnet}.{number}" for number in range(2, 255) for subnet in (1, 2, 3, 200)]
    mac = parse_mac(guest.mac)
    packets = (ipv4(str(guest.address), target, 17, udp(1001, 9, b"x")) for target in targets if target not in OWN)
    return [ethernet(WEB_RMAC, mac, 0x0800, packet) for packet in packets]


OWN = {spec.address for spec in CAST}


def dhcp(guest: BareSpec) -> list[bytes]:
    """DISCOVER, and REQUEST of its own address: each of those is a lease to be kept."""
    mac = parse_mac(guest.mac)
    body = bytes.fromhex("01010600") + b"\x11\x22\x33\x44" + bytes(20) + mac.ljust(16, b"\0") + bytes(192)
    wanted = bytes([50, 4]) + parse_address(str(guest.address))
    options = (bytes([53, 1, 1, 255]), bytes([53, 1, 3]) + wanted + b"\xff")
    packets = (body + bytes.fromhex("63825363") + each for each in options)
    return [
        ethernet(ALL_ONES, mac, 0x0800, ipv4("0.0.0.0", "255.255.255.255", 17, udp(68, 67, each))) for each in packets
    ]


def arps(guest: BareSpec) -> list[bytes]:
    mac = parse_mac(guest.mac)
    targets = [f"10.1.1.{number}" for number in range(1, 255)]
    return [
        ethernet(ALL_ONES, mac, 0x0806, arp(sha=mac, spa=str(guest.address), tpa=target))
        for target in targets
        if target not in OWN
    ]


@contextmanager
def flood(bench: BareBench, name: str, frames: Sequence[bytes], at_once: int = 50) -> Iterator["subprocess.Popen[str]"]:
    """at_once: frames in 5 ms."""
    path = Path(bench.lab.directory / f"flood-{name}")
    path.write_text("\n".join(frame.hex() for frame in frames))
    with bench.in_guest(name, FLOOD, str(path), str(SECONDS), str(at_once)) as process:
        yield process


def requests(frames: Sequence[bytes], pmac: bytes) -> list[bytes]:
    """Addresses that a host asked a group for, one for each frame."""
    parsed = [parse_discovery_untrusted(f)[0] for f in frames if is_discovery(f)]
    return [m.tpa for m in parsed if m.type is MessageType.REQUEST and m.source == pmac]


FLOODS = {
    "a scan": {"mal": scan(MAL)},
    "DHCP": {"dry": dhcp(DRY)},
    "ARP": {"loud": arps(LOUD)},
    "all three": {"mal": scan(MAL), "dry": dhcp(DRY), "loud": arps(LOUD)},
    "three scans": {"mal": scan(MAL), "dry": scan(DRY), "loud": scan(LOUD)},
}


@pytest.mark.parametrize("kind", FLOODS)
def test_neighbours_lose_nothing_and_misses_stay_within_their_limits(
    crowd: BareBench, kind: str, capsys: pytest.CaptureFixture[str]
) -> None:
    before = crowd.slow_path("A")
    drops = crowd.drops()
    with closing(WireWitness(Place(crowd.lab.switch))) as wire, ExitStack() as stack:
        begin = time.monotonic()
        # Each port has a limit, the host has none: three at theirs are more than a small machine's slow path carries.
        at_once = 5 if kind == "three scans" else 50
        flooders = [stack.enter_context(flood(crowd, name, f, at_once)) for name, f in FLOODS[kind].items()]
        with (
            crowd.steady_ping("near", "next", SECONDS) as same_host,
            crowd.steady_ping("near", "far", SECONDS) as same_subnet,
            crowd.steady_ping("near", "db", SECONDS) as routed,
            crowd.steady_ping("near", ROUTER, SECONDS) as slow_path,
        ):
            sent = [int(each.communicate(timeout=60)[0]) for each in flooders]
        took_s = time.monotonic() - begin
        time.sleep(ASKINGS * 0.2)
        frames = wire.frames()
    asked = requests(frames, crowd.pmacs["A"])
    used = {k: v - before[k] for k, v in crowd.slow_path("A").items()}
    pings = (same_host, same_subnet, routed, slow_path)
    lost = {k: used[k] for k in ("queue_lost", "socket_lost")}
    with capsys.disabled():
        print(f"\n    {kind}: {sum(sent) / SECONDS:.0f} frames/s sent, {len(asked) / took_s:.0f} requests/s")
        for name, steady in zip(("same host", "other host", "routed", "router"), pings, strict=True):
            print(f"      {name}: {steady.result}")
    for steady in pings:
        assert steady.result.received == steady.result.sent == SECONDS * 10, steady.result.output[-500:]
    assert lost == {"queue_lost": 0, "socket_lost": 0}
    assert min(sent) > 40 * at_once * SECONDS
    rates = [RATES["mal" if kind == "three scans" else name] for name in FLOODS[kind]]
    assert used["from_guest"] <= sum(rate * took_s + burst for rate, burst in rates) + 2 * len(pings) * SECONDS * 10
    limit = min(HOST_MISSES_PER_S, PORT_MISSES_PER_S * len(FLOODS[kind]))
    if kind == "DHCP":
        limit = 0
    assert len(asked) <= ASKINGS * limit * (took_s + 1)
    if kind == "a scan":  # the later ones meet addresses that are known to be nobody's
        assert len(asked) >= ASKINGS * limit * SECONDS / 2
    crowd.assert_clean_wire(frames)
    assert {guest for _, guest, _ in crowd.drops() - drops} <= {*FLOODS[kind]}


def test_a_scan_does_not_keep_a_neighbour_from_resolving_new_addresses(crowd: BareBench) -> None:
    with flood(crowd, "mal", scan(MAL)):
        time.sleep(1)
        for spec in COLD:
            found = crowd.ping("near", str(spec.address), 1)
            assert found.received == 1, (spec, found.output)


def test_a_flooding_client_is_still_served(crowd: BareBench) -> None:
    with flood(crowd, "dry", dhcp(DRY)):
        time.sleep(1)
        answers = crowd.lab.host("A").ask_agent({"op": "leases"})["result"]
    assert [lease["address"] for lease in answers if lease["guest"] == "dry"] == [DRY.address]


def test_the_agents_still_run(crowd: BareBench) -> None:
    for host in crowd.lab.hosts.values():
        assert "Traceback" not in host.agent_log.read_text()
        assert host.agent_pid == host.ask_agent({"op": "status"})["result"]["pid"]
