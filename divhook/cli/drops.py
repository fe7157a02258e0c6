"""`divhook drops`: what was dropped, where and why; `--follow`: what policies deny and log, as it happens."""

import argparse
import json
import time
from datetime import datetime
from typing import Any

from divhook.cli import listing
from divhook.cli.client import ask
from divhook.cli.flows import end_text
from divhook.core.reasons import DropReason, reason_text

DESCRIPTION = """\
List the frames that were dropped, counted by port and reason since the port exists. WHERE says which part decided:
kernel (the tc program) or agent. Port 0 is the uplink. Frames that were answered (reason `consumed`: ARP, DHCP, ping of
the router) are no loss, and shown only with --all.
--follow prints what policies deny from now on, and what rules with `log` allow, one line each, with guests, rule and
reason: what is denied as often as it is tried, what is allowed when the flow begins. The kernel tells at most 100 a
second of each port; the counters have all."""
EXAMPLES = """\
examples:
  divhook drops
  divhook drops --guest shop-web-1
  divhook drops --reason cell_denied --json
  divhook drops --follow
  divhook drops --follow --json | jq 'select(.verdict == "deny") | .rule_place'"""
POLL_S = 0.25
FILTERS = ("guest", "port", "reason")
COLUMNS = ("port", "guest", "reason", "packets", "bytes", "where")
_NO_LOSS = reason_text(DropReason.CONSUMED)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of the command."""
    listing.add_arguments(parser, FILTERS)
    parser.add_argument("--follow", action="store_true", help="print what policies deny and log, as it happens")
    parser.add_argument("--all", action="store_true", help="also what was answered, and counters of 0")


def run(args: argparse.Namespace) -> int:
    """Print the list. Raises CommandError."""
    if args.follow:
        return _follow(args)
    everything = args.all or args.reason == _NO_LOSS
    rows = listing.rows_of(args, "drops", FILTERS, all=everything)
    if not everything:
        rows = [row for row in rows if row.get("packets") != 0 and row.get("reason") != _NO_LOSS]
    return listing.show(args, rows, COLUMNS, "nothing was dropped")


def _follow(args: argparse.Namespace) -> int:
    """Until interrupted. JSON: one object per line."""
    since = ask(args.socket, "flow log")["next"]
    while True:
        answer = ask(args.socket, "flow log", since=since)
        since = answer["next"]
        if answer["missed"]:
            gap = {"missed": answer["missed"]}
            print(json.dumps(gap) if args.json else f"({answer['missed']} were not read in time)", flush=True)
        for event in answer["events"]:
            wanted = {name: getattr(args, name) for name in FILTERS if getattr(args, name) is not None}
            if all(listing.cell(event.get(n)).lower() == v.lower() for n, v in wanted.items()):
                print(json.dumps(event) if args.json else line_of(event), flush=True)
        if not answer["events"]:
            time.sleep(POLL_S)


def line_of(event: dict[str, Any]) -> str:
    """One event for people."""
    when = datetime.fromtimestamp(event["time"]).strftime("%H:%M:%S.%f")[:-3]
    icmp = event["service"].startswith("icmp")
    ends = event | ({"source_port": 0, "destination_port": 0} if icmp else {})
    source, destination = listing.cell(end_text(ends, "source")), listing.cell(end_text(ends, "destination"))
    what = "ended" if event["ended"] else "picked up" if event["picked_up"] else event["verdict"]
    rule = f"{event['rule_place']}: {event['rule']}" if event["rule_place"] else event["rule"]
    why = "" if event["reason"] in (None, "policy_denied") else f" ({event['reason']})"
    return f"{when} {what}{why} {source} → {destination} {event['service']} at {listing.cell(event['guest'])}: {rule}"
