"""`divhook endpoints`: the guest NICs of this host."""

import argparse

from divhook.cli import listing

DESCRIPTION = """\
List the guest NICs that this host's agent serves, with their place, address, tap and state.
States: tentative (the address is being confirmed), active, incoming (a guest that is moving here), fenced (another
host holds a better claim to the address: nothing passes). SOURCE is what put the NIC there."""
EXAMPLES = """\
examples:
  divhook endpoints
  divhook endpoints --cell shop
  divhook endpoints --json | jq '.[].address'"""
FILTERS = ("guest", "cell", "subnet", "state")
COLUMNS = ("guest", "nic", "cell", "subnet", "address", "port", "ifname", "state", "source")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of the command."""
    listing.add_arguments(parser, FILTERS)


def run(args: argparse.Namespace) -> int:
    """Print the list. Raises CommandError."""
    rows = listing.rows_of(args, "endpoints", FILTERS)
    return listing.show(args, rows, COLUMNS, "no guest of this host has a divhook NIC")
