"""python -m bench [--quick] [--only NAME…] [--out DIR]: `make bench`.

Sets up all contenders side by side, measures them in turn, prints rows and verdicts, writes results.json,
environment.json, results.md, results.svg and fwd_cost.svg. Ends what it started whatever happens.
"""

import argparse
import dataclasses
import fcntl
import json
import os
import shutil
import signal
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import TextIO

from bench import chart, contenders, environment, ovs, results
from bench.divhook_lab import DivhookLab
from bench.measures import FULL, QUICK, Bench, Effort, Figures
from bench.plain import PlainLab, guest_specs
from bench.toolbox import Toolbox
from divhook.lab.errors import LabError

LABS = Path("/var/tmp/divhook-bench")
SLOW_PPS = 2000
OVS_PPS = 20_000


def say(text: str) -> None:
    """Progress."""
    print(f"bench: {text}", file=sys.stderr, flush=True)


def bring_up(stack: ExitStack, wanted: Sequence[str], effort: Effort, toolbox: Toolbox) -> list[Bench]:
    """All contenders, up and served."""
    guests = guest_specs(effort.cold * effort.rounds)
    makers: dict[str, Callable[[Path], PlainLab | DivhookLab]] = {
        "divhook": lambda path: DivhookLab(path, guests, fastpath=True),
        "divhook-policy": lambda path: DivhookLab(path, guests, fastpath=True, policy=True),
        "divhook-slow": lambda path: DivhookLab(path, guests, fastpath=False),
        "bridge": lambda path: contenders.BridgeLab(path, guests),
        "bridge-nft": lambda path: contenders.BridgeNftLab(path, guests),
        "vxlan-router": lambda path: contenders.VxlanLab(path, guests),
        "ovs": lambda path: ovs.OvsLab(path, guests),
        "bare-redirect": lambda path: contenders.BareRedirectLab(path, guests, toolbox),
    }
    benches = []
    for name in wanted:
        begin = time.monotonic()
        lab = makers[name](LABS / name)
        stack.enter_context(lab)
        bench = Bench(name, lab, toolbox, effort, gen_answered=name != "bare-redirect")
        benches.append(stack.enter_context(bench))
        if not bench.forwards_in_kernel():
            if name not in ("divhook-slow", "ovs"):
                raise LabError(f"{name}: the kernel does not forward all that is injected")
            bench.paced_pps = OVS_PPS if name == "ovs" else SLOW_PPS
        say(f"{name} is up after {time.monotonic() - begin:.1f} s{f' ({lab.detail})' if lab.detail else ''}")
    return benches


def jobs() -> list[tuple[str, Callable[[Bench], Figures]]]:
    """(scenario, measurement), in the order of one round."""
    found: list[tuple[str, Callable[[Bench], Figures]]] = []
    for scenario in results.SCENARIOS:
        names = ["tcp1", "tcp8", "flood"] + ["rr", "crr"] * (scenario != "inter-double")
        found += [(scenario, partial(run, name=name, scenario=scenario)) for name in names]
    return found


def run(bench: Bench, name: str, scenario: str) -> Figures:
    """One measurement of one contender."""
    if name.startswith("tcp"):
        return bench.tcp(scenario, int(name[3:]))
    return {"flood": bench.flood, "rr": bench.rr, "crr": bench.crr}[name](scenario)


def measure(benches: Sequence[Bench], effort: Effort, samples: results.Samples) -> None:
    """All rounds."""
    for number in range(effort.rounds):
        begin = time.monotonic()
        turn = [*benches[number % len(benches) :], *benches[: number % len(benches)]]
        for bench in turn:
            if bench.name != "bare-redirect":
                first = number * effort.cold
                for n, us in enumerate(bench.cold([f"c{first + n}" for n in range(effort.cold)])):
                    samples.add(bench.name, "intra", "cold_first_us", first + n, us)
        for scenario, job in jobs():
            for bench in turn:
                record(samples, bench, scenario, number, job(bench))
        for again in range(effort.injections):
            place = number * effort.injections + again
            for scenario in ("intra", "inter-single"):
                for bench in turn:
                    record(samples, bench, scenario, place, bench.forwarding(scenario))
            for bench in turn:
                record(samples, bench, "intra", place, bench.forwarding_one_host())
        for bench in turn:
            if bench.name == "divhook":
                many_endpoints(bench, number, effort, samples)
            elif bench.name == "divhook-policy":
                many_rules(bench, number, effort, samples)
        say(f"round {number + 1} of {effort.rounds}: {time.monotonic() - begin:.0f} s")


def many_endpoints(bench: Bench, number: int, effort: Effort, samples: results.Samples) -> None:
    """What it costs to know more endpoints: frames to one of them, and to all."""
    lab = bench.lab
    assert isinstance(lab, DivhookLab)
    for count in results.ENDPOINT_COUNTS:
        bench.warm("gen", "web")
        lab.know_endpoints(count)
        mark = f"@{count}"
        record(samples, bench, "intra", number, bench.flood("intra"), mark)
        for again in range(effort.injections):
            place = number * effort.injections + again
            record(samples, bench, "intra", place, bench.forwarding("intra"), mark)
            if count > len(lab.bare):
                spread = count - len(lab.bare)
                record(samples, bench, "inter-single", place, bench.forwarding_spread(spread), mark)
    lab.know_endpoints(0)


def many_rules(bench: Bench, number: int, effort: Effort, samples: results.Samples) -> None:
    """What it costs to have more rules: connections, and frames of one flow."""
    lab = bench.lab
    assert isinstance(lab, DivhookLab)
    for count in results.RULE_COUNTS:
        lab.have_rules(count)
        mark = f"@{count}"
        record(samples, bench, "intra", number, bench.crr("intra"), mark)
        record(samples, bench, "intra", number, bench.flood("intra"), mark)
        for again in range(effort.injections):
            record(samples, bench, "intra", number * effort.injections + again, bench.forwarding("intra"), mark)
    lab.have_rules(0)


def record(
    samples: results.Samples, bench: Bench, scenario: str, number: int, figures: Figures, mark: str = ""
) -> None:
    """Add what one measurement gave."""
    for name, value in figures.items():
        samples.add(bench.name, scenario, name + mark, number, value)


def main() -> None:
    """Run, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer and shorter rounds: under five minutes")
    parser.add_argument("--only", nargs="+", metavar="NAME", help=f"of {', '.join(results.CONTENDERS)}")
    parser.add_argument("--publish", action="store_true", help="put tables and charts into docs/benchmark.md, too")
    parser.add_argument("--out", type=Path, default=Path("bench/out"))
    arguments = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    os.nice(-10)  # what else this machine does disturbs less
    wanted = arguments.only or list(results.CONTENDERS)
    absent = {"ovs": reason} if "ovs" in wanted and (reason := ovs.absent()) else {}
    if arguments.only and absent:
        sys.exit(f"bench: ovs: {absent['ovs']}")
    effort = QUICK if arguments.quick else FULL
    arguments.out.mkdir(parents=True, exist_ok=True)
    LABS.mkdir(exist_ok=True)
    samples = results.Samples()
    load, stolen, begin = os.getloadavg()[0], environment.stolen_s(), time.monotonic()
    with ExitStack() as stack, (LABS / "lock").open("w") as lock:
        wait_turn(lock)
        tools = LABS / "tools"
        tools.mkdir(exist_ok=True)
        stack.callback(shutil.rmtree, tools, ignore_errors=True)
        benches = bring_up(stack, [name for name in wanted if name not in absent], effort, Toolbox(tools))
        paced = [bench.name for bench in benches if bench.paced_pps]
        measure(benches, effort, samples)
    rows = samples.rows()
    counted = any(row.measure == "instructions_per_packet" for row in rows)
    facts = environment.collect({bench.name: bench.lab.detail for bench in benches}, absent, paced, counted)
    facts |= {"load_before": load, "seconds": round(time.monotonic() - begin), "effort": dataclasses.asdict(effort)}
    facts["stolen_s"] = round(environment.stolen_s() - stolen, 1)
    verdicts = results.judge(samples)
    write(arguments.out, rows, verdicts, facts)
    if arguments.publish:
        publish(arguments.out, Path("docs"), facts)
    print("\n".join(f"{name}: {value}" for name, value in facts.items()))
    print()
    print(results.table(rows))
    print()
    print(results.verdict_table(verdicts))


def wait_turn(lock: TextIO) -> None:
    """One benchmark at a time."""
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        say("another benchmark runs on this machine: waiting for its end")
        fcntl.flock(lock, fcntl.LOCK_EX)


def write(
    out: Path, rows: Sequence[results.Row], verdicts: Sequence[results.Verdict], facts: Mapping[str, object]
) -> None:
    """All files."""
    paced = facts["forward_in_a_process"]
    in_kernel = [name for name in results.CONTENDERS if isinstance(paced, list) and name not in paced]
    (out / "results.json").write_text(json.dumps([dataclasses.asdict(row) for row in rows], indent=1) + "\n")
    (out / "environment.json").write_text(json.dumps(facts, indent=1) + "\n")
    (out / "results.md").write_text(f"{results.matrix(rows)}\n{results.verdict_matrix(verdicts)}")
    (out / "results.svg").write_text(chart.throughput(rows))
    (out / "fwd_cost.svg").write_text(chart.forwarding_cost(rows, in_kernel))


def publish(out: Path, docs: Path, facts: Mapping[str, object]) -> None:
    """Replace what is between the marks of docs/benchmark.md, and the charts beside it."""
    page = docs / "benchmark.md"
    before, begin, rest = page.read_text().partition("<!-- begin of results -->\n")
    _, end, after = rest.partition("<!-- end of results -->\n")
    shown = [name for name in facts if name not in ("versions", "bpf_jit")]
    environment_lines = "".join(f"    {name}: {json.dumps(facts[name])}\n" for name in shown)
    charts = "![TCP throughput](benchmark.svg)\n![Forwarding cost](benchmark-cost.svg)\n"
    tables = (out / "results.md").read_text()
    page.write_text(f"{before}{begin}\n{charts}\n{tables}\n{environment_lines}\n{end}{after}")
    shutil.copy(out / "results.svg", docs / "benchmark.svg")
    shutil.copy(out / "fwd_cost.svg", docs / "benchmark-cost.svg")


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        sys.exit("bench: interrupted; what it set up is gone again")
    except LabError as error:
        sys.exit(f"bench: error: {error}")
