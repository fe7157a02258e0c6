"""`divhook groups`: multicast groups of this host's guests."""

import argparse

from divhook.cli import listing

DESCRIPTION = """\
List the multicast groups that guests of this host have joined (IGMP). 224.0.0.0/24 needs no joining."""
EXAMPLES = """\
examples:
  divhook groups
  divhook groups --group 239.1.2.3"""
FILTERS = ("guest", "cell", "subnet", "group")
COLUMNS = ("guest", "nic", "cell", "subnet", "group")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of the command."""
    listing.add_arguments(parser, FILTERS)


def run(args: argparse.Namespace) -> int:
    """Print the list. Raises CommandError."""
    rows = listing.rows_of(args, "groups", FILTERS)
    return listing.show(args, rows, COLUMNS, "no guest of this host is in a group")
