"""`divhook agent`: run this host's agent."""

import argparse
from pathlib import Path

from divhook.config.model import DEFAULT_DIRECTORY

DESCRIPTION = """\
Run this host's agent, as systemd does (divhook-agent.service). It stays in the foreground. SIGHUP reads the files
again; SIGTERM ends it and leaves the guests' traffic as it is; --teardown removes all that it ever made, and ends."""
EXAMPLES = """\
examples:
  divhook agent
  divhook agent --config ./etc --foreground
  divhook agent --teardown"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of the command."""

    def directory(name: str, default: str, text: str) -> None:
        parser.add_argument(name, type=Path, default=Path(default), metavar="DIR", help=f"{text} ({default})")

    directory("--config", DEFAULT_DIRECTORY, "configuration")
    directory("--state-dir", "/var/lib/divhook", "registry, kept over reboots")
    directory("--run-dir", "/run/divhook", "control socket")
    parser.add_argument("--foreground", action="store_true", help="log to the terminal, not to the journal")
    parser.add_argument("--teardown", action="store_true", help="remove all that the agent ever made on this host")


def run(args: argparse.Namespace) -> int:
    """Run the agent until it ends. Returns its exit code. Imported here: help needs none of what the agent needs."""
    from divhook.agent import main

    return main.run(args)
