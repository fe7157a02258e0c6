"""A flow keeps its order while it goes over from the slow path to the kernel.

Numbered datagrams to a neighbour that nobody has asked for yet: the first ones wait for discovery, the next are in the
queue to the agent, the rest goes by the kernel. The same from the wire: the other host checks the source at first.
"""

import json
from collections.abc import Iterator
from contextlib import ExitStack

import pytest
from bare_fixtures import NEAR, BareBench, bare_bench

from divhook.lab.bare import BareSpec

COLD = tuple(BareSpec(f"cold{n}", "B", "shop", "db", f"10.1.2.{80 + n}") for n in range(12))
DATAGRAMS = 2000
RATES = (1000, 4000, 20_000)
"""Datagrams per second. Above some 5,000 the port's limit on the slow path drops what comes before the kernel knows."""
HELD = 64

RECEIVE = """
import json, socket, sys
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
s.setsockopt(socket.SOL_SOCKET, 33, 1 << 24)  # SO_RCVBUFFORCE
s.bind(("", 7001)); s.settimeout(3); print("ready", flush=True); got = []
try:
    while True: got.append(int(s.recv(2048))); s.settimeout(1)
except TimeoutError: print(json.dumps(got))
"""
SEND = """
import socket, sys, time
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); s.connect((sys.argv[1], 7001))
rate, count = float(sys.argv[2]), int(sys.argv[3]); begin = time.monotonic(); sent = 0
while sent < count:
    while sent < min(count, (time.monotonic() - begin) * rate): s.send(b"%d" % sent); sent += 1
    time.sleep(0.0002)
"""


@pytest.fixture(scope="module")
def lan() -> Iterator[BareBench]:
    with bare_bench((NEAR, *COLD), hosts=2) as bench:
        yield bench


def overtaken(numbers: list[int]) -> int:
    """Datagrams that came after one that was sent later."""
    highest, late = -1, 0
    for number in numbers:
        late += number < highest
        highest = max(highest, number)
    return late


def late(bench: BareBench) -> int:
    return sum(int(bench.lab.host(name).ask_agent({"op": "status"})["result"]["fast_path"]["late"]) for name in "AB")


@pytest.mark.parametrize("rate", RATES)
def test_a_cold_flow_loses_nothing_within_the_limits_and_what_is_overtaken_is_counted(
    lan: BareBench, fastpath: bool, rate: int, capsys: pytest.CaptureFixture[str]
) -> None:
    report = []
    targets = COLD[RATES.index(rate) * 4 :][:4]
    for target in targets:
        before = late(lan)
        with ExitStack() as stack:
            receiver = stack.enter_context(lan.in_guest(target.name, RECEIVE))
            assert receiver.stdout is not None
            assert receiver.stdout.readline() == "ready\n"
            stack.enter_context(lan.in_guest("near", SEND, str(target.address), str(rate), str(DATAGRAMS))).wait(30)
            numbers = json.loads(receiver.stdout.readline())
        assert len(numbers) == len(set(numbers)), "delivered twice"
        report.append((len(numbers), overtaken(numbers), late(lan) - before))
        if rate <= 4000:
            assert sorted(numbers) == list(range(DATAGRAMS)), f"lost at {rate}/s"
        assert overtaken(numbers) <= report[-1][2]
        if not fastpath:
            assert overtaken(numbers) == 0
    with capsys.disabled():
        print(f"\n    {rate}/s: (received, overtaken, counted as late) {report}")
