"""Runs the tests tier by tier and ends with one line per tier and a verdict.

    python scripts/run_tests.py [--require-all] [--tier NAME …] [-- pytest arguments]

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
MEASURED = tuple(
    f"divhook.{name}" for name in ("core", "config", "policy") if len(list((ROOT / "divhook" / name).glob("*.py"))) > 1
)


def run(tiers: list[str], report: Path, extra: list[str]) -> int:
    """One pytest process over some tiers; its exit code. The JUnit report goes to `report`."""
    command = [sys.executable, "-m", "pytest", "-q", "-o", "junit_family=xunit1", f"--junit-xml={report}", *extra]
    return subprocess.run([*command, *(f"tests/{tier}" for tier in tiers)], cwd=ROOT, check=False).returncode


def count(report: Path) -> dict[str, dict[str, float]]:
    """Per tier: passed, failed, skipped, seconds."""
    table: dict[str, dict[str, float]] = {}
    if not report.exists():
        return table
    for case in ET.parse(report).iter("testcase"):
        parts = case.get("classname", "").split(".")
        tier = next((part for part in parts if part in (*PURE, *SYSTEM)), "other")
        row = table.setdefault(tier, {"passed": 0, "failed": 0, "skipped": 0, "seconds": 0.0})
        kinds = {child.tag for child in case}
        outcome = "failed" if kinds & {"failure", "error"} else "skipped" if "skipped" in kinds else "passed"
        row[outcome] += 1
        row["seconds"] += float(case.get("time", "0"))
    return table


def main() -> int:
    """Run; 0 where all is well."""
    arguments = argparse.ArgumentParser(description="run the tests, tier by tier")
    arguments.add_argument("--require-all", action="store_true", help="a tier that cannot run is a failure")
    arguments.add_argument("--tier", action="append", choices=(*PURE, *SYSTEM), help="only this tier")
    arguments.add_argument("pytest", nargs="*", help="arguments for pytest")
    options = arguments.parse_args()
    wanted = options.tier or [*PURE, *SYSTEM]
    extra = ["--require-all", *options.pytest] if options.require_all else options.pytest
    ratchet = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["divhook"]["ratchet"]["coverage"]
    whole = not options.tier and not options.pytest
    begin = time.monotonic()
    ok = True
    table: dict[str, dict[str, float]] = {}
    with tempfile.TemporaryDirectory() as directory:
        for name, group in (("pure", PURE), ("system", SYSTEM)):
            tiers = [tier for tier in group if tier in wanted]
            if not tiers:
                continue
            print(f"== {', '.join(tiers)}", flush=True)
            measure = [f"--cov={package}" for package in MEASURED] if group is PURE and whole else []
            if measure:
                measure += ["--cov-branch", "--cov-report=term:skip-covered", f"--cov-fail-under={ratchet}"]
            report = Path(directory) / f"{name}.xml"
            ok = run(tiers, report, [*extra, *measure]) == 0 and ok
            table |= count(report)
    print()
    for tier in (*wanted, "other"):
        if row := table.get(tier):
            line = f"{tier:9} {row['passed']:5.0f} passed {row['failed']:3.0f} failed {row['skipped']:3.0f} skipped"
            print(f"{line} {row['seconds']:7.1f} s")
        elif tier in wanted:
            print(f"{tier:9} no tests ran")
            ok = ok and not options.require_all
    passed, skipped = (sum(row[key] for row in table.values()) for key in ("passed", "skipped"))
    minutes = (time.monotonic() - begin) / 60
    print(f"{'PASSED' if ok else 'FAILED'}: {passed:.0f} tests passed, {skipped:.0f} skipped, in {minutes:.1f} min")
    return 0 if ok else 1


if __name__ == "__main__":
    sys.exit(main())
