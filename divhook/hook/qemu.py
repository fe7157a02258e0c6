#!/usr/bin/python3 -IS
"""libvirt's qemu hook: tell the host's divhook agent what happens to a guest that has a divhook NIC.

Installed as /etc/libvirt/hooks/qemu.d/divhook. libvirt calls it as `divhook GUEST OPERATION SUBOPERATION EXTRA`
with the domain XML on standard input (https://libvirt.org/hooks.html), and waits for it: so it is small, imports
only the standard library, never calls libvirt (that would deadlock), and gives up at a deadline.

    guest without a divhook NIC   exit 0 at once; the agent is not asked and need not run
    prepare, start, migrate,      the agent's answer decides; no agent or a refusal: exit 1, and what standard error
      restore                     says becomes the error that `virsh start` shows
    everything else               the agent is told; a failure is a warning in libvirt's log, never an error

Standard output stays empty: for `migrate` and `restore` libvirt would take it for the guest's new XML.
"""

import json
import os
import socket
import sys
import time
from xml.parsers import expat

AGENT_SOCKET = "/run/divhook/agent.sock"
NETWORK = "divhook"
BRIDGE = "divbr0"
DEADLINE_S = 5.0
TELL_DEADLINE_S = 1.0
"""Where the answer decides nothing: libvirt calls twice more after a refused start, and on every stop."""
MAX_ANSWER_BYTES = 1 << 16
MAY_REFUSE = frozenset(("prepare", "start", "migrate", "restore"))


def has_divhook_nic(xml: bytes) -> bool:
    """Whether a domain XML has an interface on the divhook network or bridge (unreadable XML: False)."""
    if NETWORK.encode() not in xml and BRIDGE.encode() not in xml:
        return False
    path: list[str] = []
    found = False

    def start(name: str, attributes: dict[str, str]) -> None:
        nonlocal found
        path.append(name)
        if path == ["domain", "devices", "interface", "source"] and (
            attributes.get("network") == NETWORK or attributes.get("bridge") == BRIDGE
        ):
            found = True

    def end(_name: str) -> None:
        path.pop()

    parser = expat.ParserCreate()
    parser.StartElementHandler = start
    parser.EndElementHandler = end
    try:
        parser.Parse(xml, True)
    except expat.ExpatError:
        return False
    return found


def ask(request: dict[str, object], path: str, deadline_s: float) -> dict[str, object]:
    """One request line to the agent, one answer line back. Raises OSError (TimeoutError) or ValueError."""
    end = time.monotonic() + deadline_s
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:

        def remaining() -> float:
            left = end - time.monotonic()
            if left <= 0:
                raise TimeoutError
            return left

        connection.settimeout(remaining())
        connection.connect(path)
        connection.settimeout(remaining())
        connection.sendall(json.dumps(request).encode() + b"\n")
        answer = b""
        while not answer.endswith(b"\n"):
            connection.settimeout(remaining())
            chunk = connection.recv(4096)
            if not chunk or len(answer) > MAX_ANSWER_BYTES:
                raise ConnectionError("it closed the connection without an answer")
            answer += chunk
    value = json.loads(answer)
    if not isinstance(value, dict):
        raise ValueError("its answer is not an object")
    return value


def explain(error: Exception, deadline_s: float) -> str:
    """What a person reads when the agent could not be asked."""
    if isinstance(error, TimeoutError):
        return (
            f"the divhook agent did not answer within {deadline_s:g} s. Is it stuck? "
            "See: journalctl -u divhook-agent; then: systemctl restart divhook-agent"
        )
    if isinstance(error, (FileNotFoundError, ConnectionRefusedError)):
        return "the divhook agent is not running on this host. Start it: systemctl start divhook-agent"
    return f"the divhook agent could not be asked: {error}. See: journalctl -u divhook-agent"


def main(argv: list[str], stdin: bytes) -> int:
    """Exit status for libvirt: 0 go on, 1 refuse."""
    guest, operation, suboperation = [*argv, "-", "-", "-"][1:4]
    if not has_divhook_nic(stdin):
        return 0
    request: dict[str, object] = {
        "op": "hook",
        "guest": guest,
        "operation": operation,
        "suboperation": suboperation,
        "extra": argv[4] if len(argv) > 4 else "-",
        "xml": stdin.decode("utf-8", "replace"),
    }
    decides = operation in MAY_REFUSE and suboperation == "begin"
    deadline_s = DEADLINE_S if decides else TELL_DEADLINE_S
    if decides:  # an agent that was stuck must not begin what libvirt has been refused
        request["until_s"] = time.monotonic() + deadline_s
    try:
        answer = ask(request, os.environ.get("DIVHOOK_AGENT_SOCKET", AGENT_SOCKET), deadline_s)
    except (OSError, ValueError) as error:
        message = explain(error, deadline_s)
    else:
        if answer.get("ok"):
            return 0
        message = str(answer.get("error", "the agent gave no reason"))
    print(f"divhook: guest {guest}: {message}", file=sys.stderr)
    return 1 if decides else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv, sys.stdin.buffer.read()))
