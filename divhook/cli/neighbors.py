"""`divhook neighbors`: which host holds which address."""

import argparse

from divhook.cli import listing

DESCRIPTION = """\
List what this host knows of endpoints on other hosts: address, the MAC of the host that holds it, the guest's MAC.
States: incomplete (being asked for), reachable, stale (to be refreshed at the next use), probe, failed. KERNEL says
whether the kernel forwards to it by itself: with the fast path on, once frames have passed. Servers and routers
without an agent are in the list, too: HOST is their own MAC then, VMAC says `external` or `next hop`."""
EXAMPLES = """\
examples:
  divhook neighbors
  divhook neighbors --state failed"""
FILTERS = ("host", "state")
COLUMNS = ("address", "host", "vmac", "state", "kernel", "age_s")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of the command."""
    listing.add_arguments(parser, FILTERS)


def run(args: argparse.Namespace) -> int:
    """Print the list. Raises CommandError."""
    rows = listing.rows_of(args, "neighbors", FILTERS)
    return listing.show(
        args, rows, COLUMNS, "no neighbour is known: no guest of this host has talked to another host lately"
    )
