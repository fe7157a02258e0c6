"""`divhook flows`: who talks now, and which rule lets them."""

import argparse
import json
from typing import Any

from divhook.cli import listing
from divhook.cli.client import add_socket_argument, ask

DESCRIPTION = """\
List the live flows of this host's guests, as the kernel keeps them for cells with a policy (a port of a cell without
one keeps none). A flow is listed at each of its ends that is here. DIRECTION is that end's: egress began it. SENT and
ANSWERED are packets/bytes of who began it and of the other. IDLE is seconds since the last packet. RULE is what lets it
in as the policy is now; `default` where no rule speaks of it."""
EXAMPLES = """\
examples:
  divhook flows
  divhook flows --guest shop-web-1
  divhook flows --json | jq '.flows[] | select(.state == "open")'"""
COLUMNS = ("guest", "direction", "protocol", "source", "destination", "state", "sent", "answered", "idle", "rule")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of the command."""
    parser.add_argument("--guest", metavar="GUEST", help="only those at ports of this guest")
    parser.add_argument("--json", action="store_true", help="print JSON, for programs")
    add_socket_argument(parser)


def run(args: argparse.Namespace) -> int:
    """Print the list. Raises CommandError."""
    answer = ask(args.socket, "flows", guest=args.guest)
    if args.json:
        print(json.dumps(answer, indent=2))
        return 0
    rows = [row_of(flow) for flow in answer["flows"]]
    print(listing.table(rows, COLUMNS) if rows else "no flow is kept: no guest of a cell with a policy talks")
    if answer["truncated"]:
        print(f"only the first {len(rows)} are shown: name a guest")
    return 0


def row_of(flow: dict[str, Any]) -> dict[str, Any]:
    """One flow as a row of the table."""
    return {
        **flow,
        "source": end_text(flow, "source"),
        "destination": end_text(flow, "destination"),
        "sent": f"{flow['packets']}/{flow['bytes']}",
        "answered": f"{flow['reply_packets']}/{flow['reply_bytes']}",
        "idle": flow["idle_s"],
        "rule": flow["rule_place"] or flow["rule"],
    }


def end_text(row: dict[str, Any], which: str) -> str:
    """An end by its guest's name where that is here, else by its address; with the port, if it has one."""
    name = row[f"{which}_guest"] or row[which]
    return f"{name}:{row[f'{which}_port']}" if row[f"{which}_port"] else str(name)
