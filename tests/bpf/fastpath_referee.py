"""Core and programs side by side: frames of a world through both, all that may change compared, counts kept.

    python tests/bpf/fastpath_referee.py --frames 10000000 --jobs 2 [--seed TEXT] [--object FILE]

A round is one world from one seed. Counters and maps are compared every SETTLE frames; where they differ, the round
is run again with a look after every frame, to name the one that is to blame.
"""

import argparse
import multiprocessing
import random
import socket
import sys
import tempfile
import time
import traceback
from collections import Counter
from dataclasses import replace
from pathlib import Path

from bpf_bench import run
from bpf_host import bpffs_at, loaded_programs, network_namespace
from fastpath_captures import captured_packets
from fastpath_frames import Frames, Sent
from fastpath_judge import MARK, Judge, Outcome, segments
from fastpath_turns import turn
from fastpath_world import MAKE_TAPS, TAPS, World

from divhook.abi.entries import ExternalEndpoint, RemoteEndpoint, TrafficCount
from divhook.adapters.bpf import FROM_GUEST, FROM_WIRE, REDIRECT, Programs
from divhook.core.addressing import Address, AddressPlan
from divhook.core.endpoint import PORT_WIRE
from divhook.core.wire.checksum import verifies

FRAMES_PER_WORLD = 4_000
SETTLE = 200
"""Frames between two looks at counters and maps. Lengths differ: two wrong reasons do not cancel out in bytes."""
TURN = 400
"""Frames between two changes of the world."""
ASK_USE = 5
"""Of so many frames one shows by itself that it marks a neighbour; marks of the others add up."""
Mark = tuple[Address, str]
"""A neighbour that is "used", or "heard" as well."""


class DifferenceError(AssertionError):
    """Core and programs disagree."""


def brief(frame: bytes) -> str:
    """Headers and the length."""
    return f"{frame[:62].hex()} ({len(frame)} bytes)"


def told(sent: Sent) -> str:
    """A frame, for people."""
    way = "from the wire" if sent.ifindex is None else f"from a guest at {sent.ifindex}"
    return f"{way}, segments of {sent.gso_size}: {brief(sent.frame)}"


class Referee:
    """Holds the programs to the judge's word, in one world."""

    def __init__(self, programs: Programs, world: World) -> None:
        self.programs = programs
        self.world = world
        self.judge = Judge(world)
        self.seen: Counter[str] = Counter()
        self.look()

    def look(self, counters: bool = True) -> None:
        """Take marks as they are, and counters."""
        self.marks = self._marks_now()
        if counters or self.traffic.keys() != self._ports():
            self.drops, self.traffic = self._counters()

    def _counters(self) -> tuple[dict[tuple[int, int], tuple[int, int]], dict[int, TrafficCount]]:
        return dict(self.programs.drop_counters()), {port: self.programs.traffic(port) for port in self._ports()}

    def _ports(self) -> set[int]:
        return {PORT_WIRE, *(endpoint.port for endpoint in self.world.pipeline.ports.all())}

    def _marks_now(self) -> set[Mark]:
        """Marks of neighbours; all else in map `endpoints` must be as the world has it."""
        table = self.programs.endpoints()
        marks = set()
        for address, entry in table.items():
            if isinstance(entry, RemoteEndpoint | ExternalEndpoint):
                marks |= {(address, name) for name in ("used", "heard") if getattr(entry, name)}
                counted = {"sent_on": 0} if isinstance(entry, RemoteEndpoint) and entry.forwarded else {}
                table[address] = replace(entry, used=False, heard=False, **counted)  # `check` compares sent_on
        expected = self.world.endpoints()
        if table != expected:
            wrong = {a for a in table.keys() | expected.keys() if table.get(a) != expected.get(a)}
            lines = "\n".join(f"{a.hex('.')}: kernel {table.get(a)}, must be {expected.get(a)}" for a in wrong)
            raise DifferenceError(f"map endpoints:\n{lines}")
        return marks

    def check(self, sent: Sent) -> None:
        """All but counters and maps."""
        if sent.ifindex is None:
            expected = self.judge.from_wire(sent.frame, sent.gso_size)
            program, ifindex = FROM_WIRE, self.world.uplink
        else:
            expected = self.judge.from_guest(sent.ifindex, sent.frame, sent.gso_size)
            program, ifindex = FROM_GUEST, sent.ifindex
        segs = -(-len(sent.frame) // sent.gso_size) if sent.gso_size else 0
        if sent.gso_size and expected.packets > 1:
            segs = expected.packets
        asked = self.seen.total() % ASK_USE == 0 and expected.used is not None
        if asked:
            self._neighbour(expected.used, clear=True)
        late = self._sent_on(expected) + expected.packets
        ran = self.programs.test_run(program, sent.frame, ifindex, MARK, sent.gso_size, segs)
        frames = (ran.frame,)
        if sent.gso_size and expected.verdict == REDIRECT and ran.verdict == REDIRECT:
            if len(ran.frame) != len(sent.frame) or not verifies(ran.frame[14 : 14 + (ran.frame[14] & 15) * 4]):
                raise DifferenceError(f"{program}: {brief(ran.frame)} of {told(sent)}")
            frames = tuple(segments(ran.frame, sent.gso_size))
        got = (ran.verdict, frames, ran.mark, ran.target)
        if got != (expected.verdict, expected.frames, expected.mark, expected.target):
            raise DifferenceError(
                f"{told(sent)}\ncore: {self.judge.outputs_text()}\n"
                f"so: {expected.kind}, {' '.join(brief(frame) for frame in expected.frames)}, {expected}\n"
                f"kernel: verdict {ran.verdict}, {' '.join(brief(frame) for frame in frames)}, "
                f"mark {ran.mark:#x}, target {ran.target}"
            )
        if asked and (found := self._neighbour(expected.used)) != (True, expected.heard):
            raise DifferenceError(f"{told(sent)}: (used, heard) is {found}, must be {True, expected.heard}")
        if expected.late is not None and self._sent_on(expected) != late:
            raise DifferenceError(f"{told(sent)}: {self._sent_on(expected)} packets were sent on, must be {late}")
        self._count(expected, len(sent.frame))
        self.world.frame_done(expected.diverted is not None)
        self.world.sync()

    def _sent_on(self, expected: Outcome) -> int:
        entry = self.programs.endpoint(expected.late) if expected.late is not None else None
        return entry.sent_on if isinstance(entry, RemoteEndpoint) else 0

    def _neighbour(self, address: Address, clear: bool = False) -> tuple[bool, bool]:
        entry = self.programs.endpoint(address)
        assert isinstance(entry, RemoteEndpoint | ExternalEndpoint), address
        if clear:
            self.programs.set_endpoint(address, replace(entry, used=False, heard=False))
            self.marks -= {(address, "used"), (address, "heard")}
        return entry.used, entry.heard

    def _count(self, expected: Outcome, length: int) -> None:
        self.seen[expected.kind] += 1
        if expected.drop is not None:
            packets, octets = self.drops.get(expected.drop, (0, 0))
            self.drops[expected.drop] = packets + 1, octets + length
        if expected.diverted is not None:
            old = self.traffic[expected.diverted]
            self.traffic[expected.diverted] = replace(
                old, diverted_packets=old.diverted_packets + 1, diverted_bytes=old.diverted_bytes + length
            )
        if expected.sender is not None:
            old = self.traffic[expected.sender]
            self.traffic[expected.sender] = replace(
                old, from_packets=old.from_packets + expected.packets, from_bytes=old.from_bytes + length
            )
        if expected.receiver is not None:
            old = self.traffic[expected.receiver]
            self.traffic[expected.receiver] = replace(
                old, to_packets=old.to_packets + expected.packets, to_bytes=old.to_bytes + length
            )
        for port in expected.copies or ():
            old = self.traffic[port]
            self.traffic[port] = replace(
                old, to_packets=old.to_packets + expected.packets, to_bytes=old.to_bytes + length
            )
        if expected.used is not None:
            self.marks |= {(expected.used, name) for name in ("used", "heard")[: 1 + expected.heard]}

    def settle(self) -> None:
        """Every counter and the whole map."""
        if self.world.twins is not None and (lines := self.world.twins.differences()):
            raise DifferenceError("\n".join(lines[:20]))
        drops, traffic = self._counters()
        marks = self._marks_now()
        if (drops, traffic, marks) != (self.drops, self.traffic, self.marks):
            parts = ((self.drops, drops), (self.traffic, traffic), (dict.fromkeys(self.marks), dict.fromkeys(marks)))
            lines = "\n".join(
                f"{key}: kernel {kernel.get(key, 'none')}, must be {must.get(key, 'none')}"
                for must, kernel in parts
                for key in must.keys() | kernel.keys()
                if (key in must, must.get(key)) != (key in kernel, kernel.get(key))
            )
            raise DifferenceError(lines)


def play(
    programs: Programs,
    taps: list[int],
    seed: str,
    frames: int,
    settle: int = SETTLE,
    plan: AddressPlan | None = None,
) -> Counter[str]:
    """One world; kinds of ends. Raises DifferenceError."""
    world = World(programs, taps, seed, plan)
    referee = Referee(programs, world)
    supply = Frames(world, random.Random(f"frames of {seed}"), captured_packets())
    sent = None
    try:
        for number in range(1, frames + 1):
            sent = supply.next()
            referee.check(sent)
            if number % settle == 0 or number % SETTLE == 0:
                referee.settle()
            if number % SETTLE == 0:
                turn(world) if number % TURN == 0 else world.exchange()
                referee.look(counters=number % TURN == 0)
    except DifferenceError as error:
        error.add_note(f"seed {seed!r}, frame {number} of {frames}: {told(sent) if sent else None}")
        raise
    referee.settle()
    return referee.seen


def rounds(programs: Programs, seed: str, frames: int) -> Counter[str]:
    """Worlds one after the other, until so many frames were compared. Raises DifferenceError."""
    taps = [socket.if_nametoindex(name) for name in TAPS]
    seen: Counter[str] = Counter()
    number = 0
    while seen.total() < frames:
        name, count = f"{seed} {number}", min(FRAMES_PER_WORLD, frames - seen.total())
        try:
            seen += play(programs, taps, name, count)
        except DifferenceError:
            play(programs, taps, name, count, settle=1)
            raise
        number += 1
    return seen


def report(seen: Counter[str], seconds: float) -> str:
    """Ends, most frequent first, and the rate."""
    total = seen.total()
    lines = [f"{count:10d}  {count / total:6.1%}  {kind}" for kind, count in seen.most_common()]
    return "\n".join([*lines, f"{total:10d} frames, no difference, {total / seconds:,.0f} frames/s"])


def _worker(seed: str, frames: int, object_file: Path | None, results: "multiprocessing.Queue[object]") -> None:
    try:
        with tempfile.TemporaryDirectory() as directory, network_namespace(), bpffs_at(Path(directory)) as bpffs:
            run(MAKE_TAPS)
            with loaded_programs(bpffs, object_file) as programs:
                results.put(rounds(programs, seed, frames))
    except Exception as error:
        results.put(f"{type(error).__name__}: " + "".join(traceback.format_exception(error)[-12:]))


def compare(seed: str, frames: int, jobs: int, object_file: Path | None = None) -> Counter[str]:
    """`frames` in all over so many processes. Raises DifferenceError, or RuntimeError where one could not work."""
    results: multiprocessing.Queue[object] = multiprocessing.Queue()
    workers = [
        multiprocessing.Process(target=_worker, args=(f"{seed}/{job}", frames // jobs, object_file, results))
        for job in range(jobs)
    ]
    for worker in workers:
        worker.start()
    seen: Counter[str] = Counter()
    try:
        for _ in workers:
            result = results.get()
            if not isinstance(result, Counter):
                raise (DifferenceError if str(result).startswith("DifferenceError") else RuntimeError)(result)
            seen += result
    finally:
        for worker in workers:
            worker.kill()
            worker.join()
    return seen


def main() -> int:
    """Compare, report; 1 where they differ."""
    arguments = argparse.ArgumentParser(description="frames through core and programs, side by side")
    arguments.add_argument("--frames", type=int, default=1_000_000)
    arguments.add_argument("--jobs", type=int, default=2)
    arguments.add_argument("--seed", default="divhook")
    arguments.add_argument("--object", type=Path)
    options = arguments.parse_args()
    begin = time.monotonic()
    try:
        seen = compare(options.seed, options.frames, options.jobs, options.object)
    except DifferenceError as error:
        print(f"DIFFERENT\n{error}", file=sys.stderr)
        return 1
    print(report(seen, time.monotonic() - begin))
    return 0


if __name__ == "__main__":
    sys.exit(main())
