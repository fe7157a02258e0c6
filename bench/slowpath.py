"""What the slow path bears: every frame through NFQUEUE, the agent, and a packet socket.

    python bench/slowpath.py [--quick] [--out DIR]

Two hosts and veth guests on this machine (divhook.lab.bare). Rows as in every benchmark of divhook: contender,
scenario, measure, unit, median, min, max, runs; written to bench/out/slowpath.json and printed as a table.

    udp64_pps       64-byte datagrams per second that arrive at a guest of the other host, one sender
    tcp1_gbps       one TCP stream, MTU 1500
    rr_p50_us …     round trips of an established pair, one after the other
    cold_first_us   first round trip to an address that nobody has talked to: ARP, discovery, both directions
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from divhook.lab.bare import BareGuest, BareLab, BareSpec

COLD_TARGETS = 40
MISS_SPACING_S = 0.08
UNLIMITED = "limits: {divert_pps: 1000000, divert_burst: 100000, miss_pps_port: 1000, miss_pps_host: 1000}\n"

# One round trip: a UDP datagram to an echo server. Connected socket, blocking, time of each in µs on stdout.
ECHO = """
import socket
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); s.bind(("0.0.0.0", 7))
while True:
    data, peer = s.recvfrom(2048); s.sendto(data, peer)
"""
ASK = """
import socket, sys, time
count, spacing, targets = int(sys.argv[1]), float(sys.argv[2]), sys.argv[3:]
for target in targets:
    s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); s.settimeout(2); s.connect((target, 7))
    for n in range(count):
        begin = time.perf_counter_ns(); s.send(b"x" * 22)
        try: s.recv(2048)
        except TimeoutError: print("lost"); continue
        print((time.perf_counter_ns() - begin) / 1000)
        time.sleep(spacing)
"""
FLOOD = """
import socket, sys, time
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); s.connect((sys.argv[1], 9))
end = time.monotonic() + float(sys.argv[2])
while time.monotonic() < end:
    for _ in range(64):
        try: s.send(b"x" * 22)
        except OSError: pass
"""
COUNT = """
import socket, sys, time
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); s.bind(("0.0.0.0", 9)); s.settimeout(float(sys.argv[1]) + 2)
s.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 24)
print("ready", flush=True)
s.recv(64); begin = time.monotonic(); n = 1; last = begin
s.settimeout(0.5)
try:
    while True: s.recv(64); n += 1; last = time.monotonic()
except TimeoutError: pass
print(n / max(last - begin, 1e-9))
"""


def background(guest: BareGuest, program: str, *arguments: str) -> "subprocess.Popen[str]":
    """Start a Python program in a guest."""
    command = guest.namespace.enter(sys.executable, "-c", program, *arguments)
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def python(guest: BareGuest, program: str, *arguments: str) -> list[str]:
    """Run one to its end; its lines."""
    return guest.exec(sys.executable, "-c", program, *arguments, timeout_s=120).stdout.split()


def udp64_pps(source: BareGuest, target: BareGuest, address: str, seconds: float) -> float:
    """Datagrams per second that arrive."""
    counter = background(target, COUNT, str(seconds))
    assert counter.stdout is not None
    counter.stdout.readline()
    python(source, FLOOD, address, str(seconds))
    return float(counter.communicate(timeout=30)[0].split()[-1])


def tcp_gbps(source: BareGuest, target: BareGuest, address: str, seconds: float) -> float:
    """Goodput of one stream, as the receiver saw it."""
    server = subprocess.Popen(target.namespace.enter("iperf3", "-s", "-1"), stdout=subprocess.DEVNULL)
    try:
        time.sleep(0.5)
        done = source.exec("iperf3", "-c", address, "-t", str(int(seconds)), "-J", timeout_s=seconds + 60)
        return float(json.loads(done.stdout)["end"]["sum_received"]["bits_per_second"]) / 1e9
    finally:
        server.kill()
        server.wait()


def quantile(values: Sequence[float], share: float) -> float:
    """The value below which this share of the sorted values lies."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


def row(scenario: str, measure: str, unit: str, values: Sequence[float]) -> dict[str, object]:
    """One line of the results."""
    return {
        "contender": "divhook-slow",
        "scenario": scenario,
        "measure": measure,
        "unit": unit,
        "median": round(statistics.median(values), 3),
        "min": round(min(values), 3),
        "max": round(max(values), 3),
        "runs": len(values),
    }


def measure(lab: BareLab, quick: bool) -> list[dict[str, object]]:
    """All rows."""
    runs, seconds = (2, 2.0) if quick else (5, 4.0)
    address = {name: guest.configure() for name, guest in lab.bare.items()}
    asker = lab.bare["ask"]
    echoes = [background(guest, ECHO) for name, guest in lab.bare.items() if name != "ask"]
    rows = []
    try:
        cold = [address[f"c{n}"] for n in range(COLD_TARGETS)]
        times = [float(t) for t in python(asker, ASK, "1", str(MISS_SPACING_S), *cold) if t != "lost"]
        rows += [
            row("intra", "cold_first_us", "us", times),
            row("intra", "cold_first_p99_us", "us", [quantile(times, 0.99)]),
        ]
        for scenario, target in (("intra", "web"), ("inter-single", "db")):
            warm = [float(t) for t in python(asker, ASK, "300", "0.001", address[target]) if t != "lost"]
            rows += [
                row(scenario, "rr_p50_us", "us", [quantile(warm, 0.5)]),
                row(scenario, "rr_p99_us", "us", [quantile(warm, 0.99)]),
            ]
            tests: list[tuple[str, str, Callable[[BareGuest, BareGuest, str, float], float]]] = [
                ("udp64_pps", "1/s", udp64_pps),
                ("tcp1_gbps", "Gb/s", tcp_gbps),
            ]
            for name, unit, test in tests:
                values = [test(asker, lab.bare[target], address[target], seconds) for _ in range(runs)]
                rows.append(row(scenario, name, unit, values))
    finally:
        for process in echoes:
            process.kill()
            process.wait()
    return rows


def main() -> None:
    """Run, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer and shorter runs")
    parser.add_argument("--out", type=Path, default=Path("bench/out"))
    arguments = parser.parse_args()
    specs = [
        BareSpec("ask", "A", "shop", "web"),
        BareSpec("web", "B", "shop", "web"),
        BareSpec("db", "B", "shop", "db"),
        *(BareSpec(f"c{n}", "B", "shop", "web") for n in range(COLD_TARGETS)),
    ]
    with (
        tempfile.TemporaryDirectory(prefix="divhook-bench-", dir="/var/tmp") as directory,
        BareLab(Path(directory) / "lab", specs, settings=UNLIMITED, progress=print) as lab,
    ):
        rows = measure(lab, arguments.quick)
    arguments.out.mkdir(parents=True, exist_ok=True)
    environment = {"kernel": platform.release(), "cpus": os.cpu_count(), "load_1min": os.getloadavg()[0]}
    result = {"environment": environment, "rows": rows}
    (arguments.out / "slowpath.json").write_text(json.dumps(result, indent=1) + "\n")
    print(f"{'scenario':14}{'measure':20}{'median':>12}{'min':>12}{'max':>12}{'runs':>6}  unit")
    for line in rows:
        figures = "".join(f"{line[name]:>12}" for name in ("median", "min", "max"))
        print(f"{line['scenario']:14}{line['measure']:20}{figures}{line['runs']:>6}  {line['unit']}")
    print(f"environment: {environment}")


if __name__ == "__main__":
    main()
