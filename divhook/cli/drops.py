"""`divhook drops`: what was dropped, where and why."""

import argparse

from divhook.cli import listing
from divhook.core.reasons import DropReason, reason_text

DESCRIPTION = """\
List the frames that were dropped, counted by port and reason since the port exists. WHERE says which part decided:
kernel (the tc program) or agent. Port 0 is the uplink. Frames that were answered (reason `consumed`: ARP, DHCP, ping of
the router) are no loss, and shown only with --all."""
EXAMPLES = """\
examples:
  divhook drops
  divhook drops --guest shop-web-1
  divhook drops --reason cell_denied --json"""
FILTERS = ("guest", "port", "reason")
COLUMNS = ("port", "guest", "reason", "packets", "bytes", "where")
_NO_LOSS = reason_text(DropReason.CONSUMED)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of the command."""
    listing.add_arguments(parser, FILTERS)
    parser.add_argument("--all", action="store_true", help="also what was answered, and counters of 0")


def run(args: argparse.Namespace) -> int:
    """Print the list. Raises CommandError."""
    everything = args.all or args.reason == _NO_LOSS
    rows = listing.rows_of(args, "drops", FILTERS, all=everything)
    if not everything:
        rows = [row for row in rows if row.get("packets") != 0 and row.get("reason") != _NO_LOSS]
    return listing.show(args, rows, COLUMNS, "nothing was dropped")
