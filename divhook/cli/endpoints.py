"""`divhook endpoints`: the guest NICs of this host."""

import argparse

from divhook.cli import listing
from divhook.cli.listing import Row

DESCRIPTION = """\
List the guest NICs that this host's agent serves, with their place, address, tap and state.
States: tentative (the address is being confirmed), active, incoming (a guest that is moving here), fenced (another
host holds a better claim to the address: nothing passes). SOURCE is what put the NIC there.
SENT and RECEIVED are frames/bytes as the guest sees them, kernel and agent together: sent ones also where they were
dropped after (`divhook drops`). What the agent itself sent to a guest is counted since the agent's start, the rest
since the guest's."""
EXAMPLES = """\
examples:
  divhook endpoints
  divhook endpoints --cell shop
  divhook endpoints --json | jq '.[].address'"""
FILTERS = ("guest", "cell", "subnet", "state")
COLUMNS = ("guest", "nic", "cell", "subnet", "address", "port", "ifname", "state", "sent", "received", "source")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of the command."""
    listing.add_arguments(parser, FILTERS)


def run(args: argparse.Namespace) -> int:
    """Print the list. Raises CommandError."""
    rows = listing.rows_of(args, "endpoints", FILTERS)
    if not args.json:
        rows = [{**row, "sent": counted(row, "sent"), "received": counted(row, "received")} for row in rows]
    return listing.show(args, rows, COLUMNS, "no guest of this host has a divhook NIC")


def counted(row: Row, what: str) -> str | None:
    """Frames/bytes."""
    packets, octets = row.get(f"{what}_packets"), row.get(f"{what}_bytes")
    return f"{packets}/{octets}" if packets is not None else None
