"""`divhook reload`: make the agent read its files again."""

import argparse

from divhook.cli.client import add_socket_argument, ask

DESCRIPTION = """\
Make the agent read /etc/divhook again, and say what it found. The agent also does so by itself when a file changes. Bad
files never replace good ones: the last good configuration stays in force."""
EXAMPLES = """\
examples:
  divhook reload
  divhook check && divhook reload"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of the command."""
    add_socket_argument(parser)


def run(args: argparse.Namespace) -> int:
    """Reload. Raises CommandError with the agent's own words where it refuses the files."""
    result = ask(args.socket, "reload")
    counts = ", ".join(f"{value} {key}" for key, value in result.items()) if isinstance(result, dict) else ""
    print("the agent uses the files as they are now" + (f": {counts}" if counts else ""))
    return 0
