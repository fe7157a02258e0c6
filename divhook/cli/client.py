"""Client of the agent's control socket: one JSON object per line each way.

request {"op": "endpoints", …}      answer {"ok": true, "result": …} or {"ok": false, "error": "text for a person"}
"""

import argparse
import json
import socket
from pathlib import Path
from typing import Any

from divhook.cli.errors import CommandError

SOCKET = Path("/run/divhook/agent.sock")
TIMEOUT_S = 10.0
"""An agent that takes longer is stuck: its own work per request is milliseconds."""
MAX_ANSWER_BYTES = 256 << 20
"""A host has at most 65,535 endpoints; their answer is some 20 MB."""


def add_socket_argument(parser: argparse.ArgumentParser) -> None:
    """`--socket PATH`."""
    parser.add_argument("--socket", type=Path, default=SOCKET, metavar="PATH", help=f"the agent's socket ({SOCKET})")


def ask(path: Path, op: str, **arguments: Any) -> Any:
    """Send one request; its result. Raises CommandError where the agent is away, refuses or answers nonsense."""
    request = json.dumps({"op": op, **arguments}).encode() + b"\n"
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
            connection.settimeout(TIMEOUT_S)
            connection.connect(str(path))
            connection.sendall(request)
            with connection.makefile("rb") as stream:
                line = stream.readline(MAX_ANSWER_BYTES)
    except PermissionError:
        raise CommandError(f"no permission for {path}: run this as root") from None
    except TimeoutError:
        raise CommandError(
            f"the agent at {path} did not answer within {TIMEOUT_S:g} s: look at journalctl -u divhook-agent"
        ) from None
    except OSError:
        raise CommandError(
            f"the agent does not answer at {path}: is it running? systemctl status divhook-agent"
        ) from None
    try:
        answer = json.loads(line)
        if answer["ok"] is True:
            return answer["result"]
        text = str(answer["error"])
    except (ValueError, KeyError, TypeError):
        raise CommandError(
            f"the agent at {path} gave no usable answer: is it of another version? journalctl -u divhook-agent"
        ) from None
    raise CommandError(text)
