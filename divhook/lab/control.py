"""The host's end of a guest's control channel: one shell command, its output and exit code.

The channel is the guest's second serial port, a unix socket on this side; initramfs/control.sh has the
line format. It depends on no network of the guest. A request is repeated until it is answered only for
the empty command, with which a fresh guest is greeted: any other runs once.
"""

import base64
import fcntl
import gzip
import os
import secrets
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from divhook.lab.errors import LabError

GREETING_INTERVAL_S = 0.5
MAX_GREETING_INTERVAL_S = 8.0
"""Each unanswered greeting doubles the interval: a slow guest must not fall ever further behind."""
SLACK_S = 20.0
"""Beyond the command's own limit, for a guest under TCG on a busy machine."""
READ_SIZE = 65536


@dataclass(frozen=True, slots=True)
class Result:
    """What a command in a guest came to. `output` is stdout and stderr; exit code 137 is the time limit."""

    code: int
    output: str


def request(identifier: str, command: str, limit_s: float) -> bytes:
    """The line that asks for a command. It starts with a line end, to cut off what was garbled before."""
    text = base64.b64encode(command.encode()).decode()
    return f"\nRUN {identifier} {limit_s:g} {text or '-'} END\n".encode()


def parse_answer(line: bytes, identifier: str) -> Result | None:
    """The result in one line from the guest; None where it answers nothing, or another request."""
    words = line.split()
    if len(words) != 5 or words[0] != b"OUT" or words[4] != b"END" or words[1] != identifier.encode():
        return None
    output = gzip.decompress(base64.b64decode(words[3])) if words[3] != b"-" else b""
    return Result(int(words[2]), output.decode(errors="replace"))


@contextmanager
def connected(path: Path, timeout_s: float) -> Iterator[socket.socket]:
    """A connection of one's own to a guest's channel, whatever the length of the path. Raises LabError."""
    directory = os.open(path.parent, os.O_PATH)
    lock = os.open(path.parent / (path.name + ".lock"), os.O_CREAT | os.O_RDWR, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)  # the socket serves one connection at a time
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as channel:
            channel.settimeout(timeout_s)
            try:
                channel.connect(f"/proc/self/fd/{directory}/{path.name}")
            except OSError as error:
                raise LabError(f"no control channel at {path}: is the guest running? ({error})") from None
            yield channel
    finally:
        os.close(lock)
        os.close(directory)


def run(path: Path, command: str, limit_s: float) -> Result:
    """Run a shell command in the guest behind a channel. Raises LabError where no answer comes."""
    identifier = secrets.token_hex(6)
    with connected(path, limit_s + SLACK_S) as channel:
        channel.sendall(request(identifier, command, limit_s))
        answer = _await(channel, identifier, limit_s + SLACK_S)
    if answer is None:
        raise LabError(f"{path.stem}: no answer to {command!r} within {limit_s + SLACK_S:g} s")
    return answer


def greet(path: Path, timeout_s: float) -> None:
    """Wait until a booting guest answers. Raises LabError."""
    end = time.monotonic() + timeout_s
    identifier, interval_s = secrets.token_hex(6), GREETING_INTERVAL_S
    with connected(path, timeout_s) as channel:
        while time.monotonic() < end:
            channel.sendall(request(identifier, "", 5))
            if _await(channel, identifier, interval_s) is not None:
                return
            interval_s = min(2 * interval_s, MAX_GREETING_INTERVAL_S)
    raise LabError(f"{path.stem}: the guest did not come up within {timeout_s:g} s; see its console log")


def _await(channel: socket.socket, identifier: str, timeout_s: float) -> Result | None:
    end = time.monotonic() + timeout_s
    held = b""
    while (left := end - time.monotonic()) > 0:
        channel.settimeout(left)
        try:
            data = channel.recv(READ_SIZE)
        except TimeoutError:
            return None
        if not data:
            raise LabError("the guest went away")
        *lines, held = (held + data).split(b"\n")
        for line in lines:
            if (answer := parse_answer(line, identifier)) is not None:
                return answer
    return None
