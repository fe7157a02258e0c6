"""Runs the tests tier by tier and ends with one line per tier and mode, and a verdict.

    python scripts/run_tests.py [--require-all] [--tier NAME …] [--fastpath on|off|both] [-- pytest arguments]

Tests that start agents run twice: with the agents' fast path on, and with it off. All others run once, and so do those
marked `one_mode`.

The pure tiers (unit, property, sim) run first, under coverage of the packages that decide: it may not fall
below the ratchet in pyproject.toml ([tool.divhook.ratchet] coverage, per cent with branches; raise it, never lower it).
"""

import argparse
import subprocess
import sys
import tempfile
import time
import tomllib
import xml.etree.ElementTree as ET
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PURE = ("unit", "property", "sim")
SYSTEM = ("bpf", "netns", "libvirt")
AGENT_TIERS = ("netns", "libvirt")  # the same as in tests/conftest.py
NO_TESTS = 5  # pytest's exit code
MODES = {"on": ("on",), "off": ("off",), "both": ("on", "off")}
MEASURED = tuple(
    f"divhook.{name}" for name in ("core", "config", "policy") if len(list((ROOT / "divhook" / name).glob("*.py"))) > 1
)

Row = dict[str, float]


def run(tiers: list[str], report: Path, extra: list[str]) -> int:
    """One pytest process over some tiers; its exit code. The JUnit report goes to `report`."""
    command = [sys.executable, "-m", "pytest", "-q", "-o", "junit_family=xunit1", f"--junit-xml={report}", *extra]
    return subprocess.run([*command, *(f"tests/{tier}" for tier in tiers)], cwd=ROOT, check=False).returncode


def count(report: Path) -> dict[tuple[str, str], Row]:
    """Per tier, and mode of the fast path (empty: no agent): passed, failed, skipped, seconds."""
    table: dict[tuple[str, str], Row] = {}
    if not report.exists():
        return table
    for case in ET.parse(report).iter("testcase"):
        parts = case.get("classname", "").split(".")
        tier = next((part for part in parts if part in (*PURE, *SYSTEM)), "other")
        modes = [each.get("value", "") for each in case.iter("property") if each.get("name") == "fastpath"]
        empty: Row = {"passed": 0, "failed": 0, "skipped": 0, "seconds": 0.0}
        row = table.setdefault((tier, "".join(modes)), empty)
        kinds = {child.tag for child in case}
        outcome = "failed" if kinds & {"failure", "error"} else "skipped" if "skipped" in kinds else "passed"
        row[outcome] += 1
        row["seconds"] += float(case.get("time", "0"))
    return table


def plan(wanted: list[str], modes: tuple[str, ...]) -> list[tuple[str, list[str], list[str]]]:
    """pytest processes: (title, tiers, arguments). The second of two modes leaves out what the mode is nothing to."""
    pure = [tier for tier in PURE if tier in wanted]
    runs = [(", ".join(pure), pure, list[str]())]
    for number, mode in enumerate(modes):
        tiers = [tier for tier in SYSTEM if tier in wanted and (number == 0 or tier in AGENT_TIERS)]
        only = ["-m", "not no_agent and not one_mode"] if number else []
        runs.append((f"{', '.join(tiers)}, fast path {mode}", tiers, ["--fastpath", mode, *only]))
    return [each for each in runs if each[1]]


def main() -> int:
    """Run; 0 where all is well."""
    arguments = argparse.ArgumentParser(description="run the tests, tier by tier")
    arguments.add_argument("--require-all", action="store_true", help="a tier that cannot run is a failure")
    arguments.add_argument("--tier", action="append", choices=(*PURE, *SYSTEM), help="only this tier")
    arguments.add_argument("--fastpath", choices=MODES, default="both", help="modes of the agents (%(default)s)")
    arguments.add_argument("pytest", nargs="*", help="arguments for pytest")
    options = arguments.parse_args()
    wanted = options.tier or [*PURE, *SYSTEM]
    extra = ["--require-all", *options.pytest] if options.require_all else options.pytest
    ratchet = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["divhook"]["ratchet"]["coverage"]
    whole = not options.tier and not options.pytest
    begin = time.monotonic()
    ok = True
    modes = MODES[options.fastpath]
    table: dict[tuple[str, str], Row] = {}
    with tempfile.TemporaryDirectory() as directory:
        for number, (title, tiers, arguments_of_run) in enumerate(plan(wanted, modes)):
            print(f"== {title}", flush=True)
            measure = [f"--cov={package}" for package in MEASURED] if tiers[0] in PURE and whole else []
            if measure:
                measure += ["--cov-branch", "--cov-report=term:skip-covered", f"--cov-fail-under={ratchet}"]
            report = Path(directory) / f"{number}.xml"
            good = (0, NO_TESTS) if options.pytest else (0,)  # a -k may leave none in one of the runs
            ok = run(tiers, report, [*arguments_of_run, *extra, *measure]) in good and ok
            table |= count(report)
    print()
    for tier in wanted:
        for mode in modes if tier in AGENT_TIERS else ("",):
            if (tier, mode) not in table:
                print(f"{tier:8} {mode:3} no tests ran")
                ok = ok and not options.require_all
    for (tier, mode), row in table.items():
        outcomes = ", ".join(f"{row[outcome]:5.0f} {outcome}" for outcome in ("passed", "failed", "skipped"))
        print(f"{tier:8} {mode:3} {outcomes} {row['seconds']:7.1f} s")
    passed, skipped = (sum(row[key] for row in table.values()) for key in ("passed", "skipped"))
    minutes = (time.monotonic() - begin) / 60
    if any(mode for _, mode in table):
        print("on, off: the fast path of the agents that these tests started")
    print(f"{'PASSED' if ok else 'FAILED'}: {passed:.0f} tests passed, {skipped:.0f} skipped, in {minutes:.1f} min")
    return 0 if ok else 1


if __name__ == "__main__":
    sys.exit(main())
