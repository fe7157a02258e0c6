"""`divhook moves`: guests that move from or to this host."""

import argparse
import json
from typing import Any

from divhook.cli import listing
from divhook.cli.listing import Row

DESCRIPTION = """\
List live migrations of guests' NICs from or to this host, under way and past ones, each with its timeline as both
agents saw it: hook, pause, resume, announcement, the first frame at the new place, the last late one. COPIED frames
were sent on while the guest was paused; UNREAD of them it had in its queue at the pause; LATE ones came
from senders that did not know yet."""
EXAMPLES = """\
examples:
  divhook moves
  divhook moves --guest web-a --timeline"""
FILTERS = ("guest", "role", "state")
COLUMNS = ("guest", "nic", "address", "role", "peer", "state", "copied", "unread", "late")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of the command."""
    listing.add_arguments(parser, FILTERS)
    parser.add_argument("--timeline", action="store_true", help="show what happened when, below each move")


def run(args: argparse.Namespace) -> int:
    """Print the list. Raises CommandError."""
    rows = listing.rows_of(args, "moves", FILTERS)
    if args.json:
        print(json.dumps(rows, indent=2))
        return 0
    if not args.timeline:
        return listing.show(args, rows, COLUMNS, "no guest has moved from or to this host since its agent started")
    for row in rows:
        print(listing.table([row], COLUMNS))
        print(_timeline(row))
    return 0


def _timeline(row: Row) -> str:
    lines: list[dict[str, Any]] = list(row.get("timeline") or [])
    shown = [{"ms": line.get("ms"), "where": line.get("where"), "what": line.get("what")} for line in lines]
    return listing.table(shown, ("ms", "where", "what")) + "\n"
