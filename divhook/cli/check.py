"""`divhook check`: check configuration files, offline."""

import argparse
import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from divhook.cli.policy import policies_summary, warning_text
from divhook.config.configuration import Configuration
from divhook.config.load import check
from divhook.config.model import DEFAULT_DIRECTORY
from divhook.config.problems import ConfigError, Problem
from divhook.policy.analyse import warnings
from divhook.policy.files import PolicyLoader, PolicySet, is_policy_file, load_file

DESCRIPTION = """\
Check the configuration without touching anything: a directory with divhook.yaml, cells/ and policies/, or one file.
Prints every problem as file:line:column: message (what to do), and exits with 1 if there is one. Rules of policies that
are hardly meant are warnings (`divhook policy check` for these alone)."""
EXAMPLES = f"""\
examples:
  divhook check                        check {DEFAULT_DIRECTORY}
  divhook check ./etc                  check another directory, for example in a repository
  divhook check cells/shop.yaml        check one file, against the divhook.yaml above it
  divhook check policies/shop.yaml     the same for a policy
  divhook check --json | jq .problems"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of the command."""
    parser.add_argument(
        "path", nargs="?", type=Path, default=Path(DEFAULT_DIRECTORY), metavar="PATH", help=f"({DEFAULT_DIRECTORY})"
    )
    parser.add_argument("--json", action="store_true", help="print JSON, for programs")


def run(args: argparse.Namespace) -> int:
    """Check and print. Returns 0 where the files are good, else 1."""
    policies = PolicySet()
    configuration: Configuration | None = None
    problems: list[Problem] = []
    if args.path.is_file() and is_policy_file(args.path):
        policies, problems = _checked(lambda: load_file(args.path))
    else:
        configuration, found = check(args.path)
        problems = list(found)
        if args.path.is_dir():
            policies, wrong = _checked(lambda: PolicyLoader().load(args.path, configuration))
            problems += wrong
    doubts = warnings(policies)
    if args.json:
        answer = {"ok": not problems, "problems": [_plain(p) for p in problems]}
        print(json.dumps(answer | ({"warnings": [_plain(p) for p in doubts]} if doubts else {}), indent=2))
        return 1 if problems else 0
    for problem in problems:
        print(problem)
    for doubt in doubts:
        print(warning_text(doubt))
    if problems:
        print(f"{len(problems)} problem{'s' if len(problems) > 1 else ''}")
    else:
        parts = [*([policies_summary(policies)] if policies.cells else [])]
        parts += [_summary(configuration)] if configuration else []
        print(f"{args.path}: good: {'; '.join(parts)}")
    return 1 if problems else 0


def _checked(read: Callable[[], PolicySet]) -> tuple[PolicySet, list[Problem]]:
    try:
        return read(), []
    except ConfigError as error:
        return PolicySet(), list(error.problems)


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
