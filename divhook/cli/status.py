"""`divhook status`: how this host's agent is."""

import argparse
import json
from collections.abc import Iterator
from typing import Any

from divhook.cli.client import add_socket_argument, ask
from divhook.cli.listing import cell

DESCRIPTION = """\
Show how this host's agent is: version, uplink, configuration, counts, and what it complains about.
fast_path is what the kernel did by itself for the guests that run now: frames forwarded from and to them, ARP requests
answered; neighbours that it knows; `late`, frames that may have been overtaken in the moment when it learned of one.
slow_path is what the agent saw and sent since its start."""
EXAMPLES = """\
examples:
  divhook status
  divhook status --json"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of the command."""
    parser.add_argument("--json", action="store_true", help="print JSON, for programs")
    add_socket_argument(parser)


def run(args: argparse.Namespace) -> int:
    """Print the status. Raises CommandError."""
    result = ask(args.socket, "status")
    print(json.dumps(result, indent=2) if args.json else "\n".join(lines(result)))
    return 0


def lines(value: Any, indent: str = "") -> Iterator[str]:
    """A nested answer as indented `key: value` lines, values aligned."""
    if not isinstance(value, dict):
        yield indent + cell(value)
        return
    width = max((len(str(key)) for key in value), default=0) + 2
    for key, item in value.items():
        if isinstance(item, dict) and item:
            yield f"{indent}{key}:"
            yield from lines(item, indent + "  ")
        elif isinstance(item, list) and any(isinstance(entry, (dict, list)) or " " in str(entry) for entry in item):
            yield f"{indent}{key}:"
            for entry in item:
                text = ", ".join(f"{k} {cell(v)}" for k, v in entry.items()) if isinstance(entry, dict) else cell(entry)
                yield f"{indent}  - {text}"
        else:
            yield f"{indent}{f'{key}:':<{width}}{cell(item)}"
