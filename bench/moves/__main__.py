"""python -m bench.moves [--moves N] [--only divhook|bridge] [--rate N] [--out DIR]: `make bench-move`.

A guest moves A → B → C → A … under traffic, with divhook and on a plain bridge, one after the other: each move with
one client (on the source, the destination and the third host in turn) that talks from both subnets, and a TCP
connection from every client's NIC that is to outlive all moves. Writes moves.json, moves.md and moves.svg. Ctrl-C ends
the moves of one contender early.
"""

import argparse
import dataclasses
import json
import os
import signal
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from bench.moves import chart, record
from bench.moves.scene import Move, Scene, make_lab
from bench.moves.traffic import Account, Talk
from divhook.lab.errors import LabError
from divhook.lab.host import FASTPATH_VARIABLE

LABS = Path("/var/tmp/divhook-bench-move")
BEFORE_S, AFTER_S = 0.7, 1.0
PLACES = "ABC"
Shown = list[tuple[str, str, Account, float | None]]


def say(text: str) -> None:
    """Progress."""
    print(f"bench-move: {text}", file=sys.stderr, flush=True)


def run(contender: str, moves: int, rate: int, tools: Path, shown: Shown, made: list[Move]) -> list[record.Row]:
    """All moves of one contender, added to `made`; the account of one of them for the chart."""
    begin = time.monotonic()
    found: list[record.Row] = []
    with make_lab(LABS / contender, contender, tools) as lab:
        scene = Scene(lab)
        scene.talk.warm()
        scene.talk.open_sessions(interval_ms=50)
        say(f"{contender} is up after {time.monotonic() - begin:.1f} s")
        try:
            for number in range(moves):
                source, target, third = (PLACES[(number + n) % 3] for n in range(3))
                client = (source, target, third)[number // 3 % 3 if moves >= 9 else number % 3]
                flows = [flow for flow in scene.flows if flow.client[-1].upper() == client]
                talk = Talk(scene.mover.name, scene.address, flows, scene.where)
                talk.warm()
                scene.talk.sessions(forget=True)
                with (
                    scene.seen_by(flows) as seen,
                    scene.sent_by_mover(target, flows) as sent,
                    scene.dropped_at_taps() as dropped,
                    talk.running(rate) as conversation,
                ):
                    time.sleep(BEFORE_S)
                    move = scene.migrate(target)
                    time.sleep(AFTER_S)
                made.append(move)
                sessions = scene.talk.sessions()
                new = record.rows(contender, number, move, conversation, sessions, seen, sent, dropped[0])
                found += new
                say(f"{number + 1}/{moves} {record.sentence(new)}")
                if any(r.lost or r.duplicated for r in new) and contender == "divhook":
                    say(str(conversation))
                if contender not in [name for name, *_ in shown]:
                    flow = flows[0]
                    times = [seen[flow].get(n) for n in range(max(seen[flow], default=0) + 1)]
                    arrivals = [None if at is None else round(at * 1000) for at in times]
                    at_nic = dataclasses.replace(conversation.to_client[flow], arrivals_us=arrivals)
                    shown.append((contender, "from the guest", at_nic, move.downtime_ms))
                    shown.append((contender, "to the guest", conversation.to_mover[flow], move.downtime_ms))
        except KeyboardInterrupt:
            say(f"{contender}: ends after {len(made)} moves")
    return found


def main(arguments: Sequence[str] | None = None) -> int:
    """Run, print, write; 1 where a verdict on divhook is bad."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--moves", type=int, default=30, help="of each contender (%(default)s)")
    parser.add_argument("--rate", type=int, default=1000, help="datagrams per second, each way, per flow (%(default)s)")
    parser.add_argument("--only", choices=record.CONTENDERS, help="one contender")
    parser.add_argument("--out", type=Path, default=Path("bench/out"))
    options = parser.parse_args(arguments)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    os.environ.setdefault(FASTPATH_VARIABLE, "on")
    os.nice(-10)
    options.out.mkdir(parents=True, exist_ok=True)
    LABS.mkdir(exist_ok=True)
    found: list[record.Row] = []
    shown: Shown = []
    made: dict[str, list[Move]] = {contender: [] for contender in record.CONTENDERS}
    with tempfile.TemporaryDirectory(prefix="divhook-bench-move-") as tools:
        for contender in [options.only] if options.only else record.CONTENDERS:
            try:
                found += run(contender, options.moves, options.rate, Path(tools), shown, made[contender])
            except LabError as error:
                say(f"{contender}: {error}")
                return 1
    (options.out / "moves.json").write_text(json.dumps([dataclasses.asdict(row) for row in found], indent=1) + "\n")
    text = record.table(found)
    verdicts = record.verdicts(found)
    text += "\n" + "".join(f"- {'met' if good else 'NOT MET'}: {claim}: {figure}\n" for claim, good, figure in verdicts)
    text += "".join(f"\n{hooks}" for moves in made.values() if (hooks := record.hook_table(moves)))
    (options.out / "moves.md").write_text(text)
    (options.out / "moves.svg").write_text(chart.arrivals(shown))
    print(text)
    return 0 if all(good for _, good, _ in verdicts) else 1


if __name__ == "__main__":
    sys.exit(main())
