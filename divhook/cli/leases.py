"""`divhook leases`: DHCP leases of this host's guests."""

import argparse

from divhook.cli import listing

DESCRIPTION = """\
List the DHCP leases that this host's agent has given to its guests."""
EXAMPLES = """\
examples:
  divhook leases
  divhook leases --guest shop-web-1"""
FILTERS = ("guest",)
COLUMNS = ("guest", "nic", "address", "hostname", "remaining_s")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of the command."""
    listing.add_arguments(parser, FILTERS)


def run(args: argparse.Namespace) -> int:
    """Print the list. Raises CommandError."""
    rows = listing.rows_of(args, "leases", FILTERS)
    return listing.show(args, rows, COLUMNS, "no guest of this host has asked for an address")
