"""Numbered datagrams between guests of a BareLab, with an exact account of every one (stream.c), and TCP transfers."""

import json
import signal
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bare_fixtures import BareBench

PORT = 9009
_SOURCE = Path(__file__).with_name("stream.c")
Pair = tuple[str, str]


def build(directory: Path) -> Path:
    """Compile the program."""
    binary = directory / "stream"
    subprocess.run(["clang", "-O2", "-Wall", "-Werror", "-o", str(binary), str(_SOURCE)], check=True)
    return binary


@dataclass
class Account:
    """Of one pair of guests. gaps: (wall clock, first number, how many) of what was missing when more came."""

    pair: Pair
    sent: int
    received: int
    doubled: int
    late: int
    gaps: list[tuple[float, int, int]]

    @property
    def lost(self) -> int:
        return self.sent - self.received


@dataclass
class Streams:
    """What came of them; filled once they have ended."""

    accounts: list[Account] = field(default_factory=list)
    seconds: float = 0.0
    refused: int = 0  # by the sender's own kernel
    overflowed: int = 0  # at a receiver's socket

    @property
    def sent(self) -> int:
        return sum(each.sent for each in self.accounts)

    @property
    def lost(self) -> int:
        return sum(each.lost for each in self.accounts)

    def __str__(self) -> str:
        rate = self.sent / self.seconds if self.seconds else 0
        doubled, late = (sum(getattr(each, name) for each in self.accounts) for name in ("doubled", "late"))
        text = f"{self.sent} datagrams in {self.seconds:.0f} s ({rate:.0f}/s): {self.lost} lost, {doubled} doubled"
        text += f", {late} late, {self.overflowed} overflowed at receivers, {self.refused} sends refused"
        return text + "".join(f"\n  {each.pair}: {each.lost} lost, {each.gaps}" for each in self.accounts if each.lost)


_SINK = """import socket, sys, threading
def drain(connection):
    while connection.recv(1 << 20):
        pass
server = socket.create_server(("", int(sys.argv[1])))
while True:
    threading.Thread(target=drain, args=server.accept()[:1], daemon=True).start()
"""
_SOURCE_TCP = """import socket, sys, time
connection = socket.create_connection((sys.argv[1], int(sys.argv[2])))
begin, sent = time.monotonic(), 0
while True:
    due = (time.monotonic() - begin) * float(sys.argv[3])
    while sent < due:
        sent += connection.send(bytes(min(65536, int(due - sent) + 1)))
    time.sleep(0.002)
"""


@dataclass
class Transfers:
    """TCP segments that the guests sent, and those that they sent again.

    needless: that the receiver had already, as it says itself (DSACK, RFC 2883): the first was late, not lost.
    """

    segments: int = 0
    again: int = 0
    needless: int = 0

    @property
    def lost(self) -> int:
        return max(self.again - self.needless, 0)

    def __str__(self) -> str:
        return f"{self.segments} TCP segments, {self.again} sent again, {self.needless} of them needlessly"


def _tcp_counters(bench: BareBench, guests: Sequence[str]) -> Transfers:
    found = Transfers()
    for guest in guests:
        lines = bench.guest(guest).exec("cat", "/proc/net/snmp", "/proc/net/netstat").stdout.splitlines()
        pairs = zip(lines[::2], lines[1::2], strict=True)
        counters = {k: v for names, values in pairs for k, v in zip(names.split(), values.split(), strict=True)}
        found.segments += int(counters["OutSegs"])
        found.again += int(counters["RetransSegs"])
        found.needless += int(counters["TCPDSACKRecv"]) + int(counters["TCPDSACKOfoRecv"])
    return found


@contextmanager
def transferring(bench: BareBench, pairs: Sequence[Pair], bytes_per_s: int) -> Iterator[Transfers]:
    """As long as the body runs, each pair's first guest sends over one TCP connection to its second."""
    guests = sorted({name for pair in pairs for name in pair})
    found = Transfers()
    with ExitStack() as running:
        for target in sorted({target for _, target in pairs}):
            running.enter_context(bench.in_guest(target, _SINK, str(PORT)))
        time.sleep(0.5)
        for source, target in pairs:
            arguments = (bench.address(target), str(PORT), str(bytes_per_s))
            running.enter_context(bench.in_guest(source, _SOURCE_TCP, *arguments))
        before = _tcp_counters(bench, guests)
        yield found
        after = _tcp_counters(bench, guests)
    for name in ("segments", "again", "needless"):
        setattr(found, name, getattr(after, name) - getattr(before, name))


def _end(process: "subprocess.Popen[str]") -> dict[str, Any]:
    process.send_signal(signal.SIGTERM)
    output, _ = process.communicate(timeout=30)
    found: dict[str, Any] = json.loads(output)
    return found


@contextmanager
def streaming(
    bench: BareBench, binary: Path, pairs: Sequence[Pair], per_second: int, length: int = 18
) -> Iterator[Streams]:
    """As long as the body runs, each pair's first guest sends to its second. length: bytes of payload."""
    found = Streams()
    running: list[subprocess.Popen[str]] = []

    def start(guest: str, *arguments: str) -> "subprocess.Popen[str]":
        command = bench.guest(guest).namespace.enter(str(binary), *arguments)
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        running.append(process)
        return process

    try:
        receivers = [start(name, "recv", str(PORT)) for name in sorted({target for _, target in pairs})]
        senders = []
        for source in sorted({source for source, _ in pairs}):
            targets = [f"{n}={bench.address(pair[1])}" for n, pair in enumerate(pairs) if pair[0] == source]
            senders.append(start(source, "send", str(PORT), str(per_second), str(length), *targets))
        yield found
        sent = [_end(process) for process in senders]
        came = [_end(process) for process in receivers]
    finally:
        for process in running:
            process.kill()
            process.wait()
    found.seconds = max(each["seconds"] for each in sent)
    found.refused = sum(each["refused"] for each in sent)
    found.overflowed = sum(each["overflowed"] for each in came)
    for n, pair in enumerate(pairs):
        out = next(each[str(n)] for each in sent if str(n) in each)
        into = next((each[str(n)] for each in came if str(n) in each), {})
        numbers = (into.get(key, 0) for key in ("received", "doubled", "late"))
        found.accounts.append(Account(pair, out, *numbers, gaps=[tuple(gap) for gap in into.get("gaps", [])]))
