"""`divhook check`: check configuration files, offline."""

import argparse
import dataclasses
import json
from pathlib import Path
from typing import Any

from divhook.config.configuration import Configuration
from divhook.config.load import check
from divhook.config.model import DEFAULT_DIRECTORY
from divhook.config.problems import Problem

DESCRIPTION = """\
Check the configuration without touching anything: a directory with divhook.yaml and cells/*.yaml, or one such file.
Prints every problem as file:line:column: message (what to do), and exits with 1 if there is one."""
EXAMPLES = f"""\
examples:
  divhook check                        check {DEFAULT_DIRECTORY}
  divhook check ./etc                  check another directory, for example in a repository
  divhook check cells/shop.yaml        check one file, against the divhook.yaml above it
  divhook check --json | jq .problems"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of the command."""
    parser.add_argument(
        "path", nargs="?", type=Path, default=Path(DEFAULT_DIRECTORY), metavar="PATH", help=f"({DEFAULT_DIRECTORY})"
    )
    parser.add_argument("--json", action="store_true", help="print JSON, for programs")


def run(args: argparse.Namespace) -> int:
    """Check and print. Returns 0 where the files are good, else 1."""
    configuration, found = check(args.path)
    problems = list(found)
    if args.json:
        print(json.dumps({"ok": not problems, "problems": [_plain(p) for p in problems]}, indent=2))
    elif configuration is not None:
        print(f"{args.path}: good: {_summary(configuration)}")
    else:
        for problem in problems:
            print(problem)
        print(f"{len(problems)} problem{'s' if len(problems) > 1 else ''}")
    return 1 if problems else 0


def _plain(problem: Problem) -> dict[str, Any]:
    return dataclasses.asdict(problem.where) | {"message": problem.message, "hint": problem.hint}


def _summary(configuration: Configuration) -> str:
    plan = configuration.plan
    counts = [
        (len(configuration.cells), "cell"),
        (len(configuration.subnets), "subnet"),
        (len(configuration.endpoints), "endpoint"),
    ]
    parts = [f"{count} {word}{'' if count == 1 else 's'}" for count, word in counts]
    bits = f"{plan.cell_bits}+{plan.subnet_bits}+{plan.host_bits}"
    return f"{', '.join(parts)} in {plan.supernet} as {bits} bits"
