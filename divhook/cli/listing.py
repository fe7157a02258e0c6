"""Lists for people (a table) and for programs (--json), from what the agent answers."""

import argparse
import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from divhook.cli.client import add_socket_argument, ask
from divhook.cli.errors import CommandError

Row = Mapping[str, Any]


def add_arguments(parser: argparse.ArgumentParser, filters: Sequence[str]) -> None:
    """`--json`, `--socket`, and one option per column to filter by."""
    for name in filters:
        parser.add_argument(f"--{name}", metavar=name.upper(), help=f"only those of this {name}")
    parser.add_argument("--json", action="store_true", help="print JSON, for programs")
    add_socket_argument(parser)


def rows_of(args: argparse.Namespace, op: str, filters: Sequence[str], **request: Any) -> list[Row]:
    """The agent's list, filtered. Raises CommandError."""
    rows = ask(args.socket, op, **request)
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise CommandError("the agent's answer is no list: is it of another version?")
    wanted = {name: getattr(args, name) for name in filters if getattr(args, name) is not None}
    return [row for row in rows if all(cell(row.get(n)).lower() == value.lower() for n, value in wanted.items())]


def show(args: argparse.Namespace, rows: list[Row], columns: Sequence[str], none: str) -> int:
    """Print rows; `none` is what to say where there are none. Returns the exit code."""
    if args.json:
        print(json.dumps(rows, indent=2))
    elif rows:
        print(table(rows, columns))
    else:
        print(none)
    return 0


def table(rows: Iterable[Row], columns: Sequence[str]) -> str:
    """Rows under upper-case column titles; columns of numbers are aligned to the right."""
    rows = list(rows)
    cells = [[name.upper() for name in columns]] + [[cell(row.get(name)) for name in columns] for row in rows]
    widths = [max(len(line[i]) for line in cells) for i in range(len(columns))]
    right = [
        bool(rows) and all(isinstance(row.get(name), (int, float, type(None))) for row in rows) for name in columns
    ]
    return "\n".join(
        "  ".join(t.rjust(w) if r else t.ljust(w) for t, w, r in zip(line, widths, right, strict=True)).rstrip()
        for line in cells
    )


def cell(value: Any) -> str:
    """A value as a table shows it. Guests choose some of it (host names): no control character reaches the terminal."""
    if value is None or value == "":
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.1f}"
    if isinstance(value, (list, tuple)):
        return ", ".join(cell(item) for item in value) or "-"
    return "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in str(value))
