"""The libvirt hook, run as libvirt runs it, against a stand-in for the agent."""

import json
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from divhook.hook import qemu

HOOK = Path(qemu.__file__)
OURS = "<domain><devices><interface type='network'><source network='divhook'/></interface></devices></domain>"
BY_BRIDGE = "<domain><devices><interface type='bridge'><source bridge='divbr0'/></interface></devices></domain>"
OTHER = "<domain><name>divhook</name><devices><interface><source network='default'/></interface></devices></domain>"
ELSEWHERE = "<domain><metadata><x><interface><source network='divhook'/></interface></x></metadata></domain>"

Answerer = Callable[[dict[str, str]], bytes | None]


class Agent:
    """Listens, records requests, answers with what it was given."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.requests: list[dict[str, str]] = []
        self.answer: bytes | None = b'{"ok": true, "result": null}\n'
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.bind(str(path))
        self._socket.listen()
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def _serve(self) -> None:
        while True:
            try:
                connection, _ = self._socket.accept()
            except OSError:
                return
            with connection, connection.makefile("rb") as stream:
                self.requests.append(json.loads(stream.readline()))
                if self.answer is not None:
                    connection.sendall(self.answer)
                else:
                    connection.recv(1)

    def close(self) -> None:
        self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()
        self._thread.join(5)


@pytest.fixture
def agent(tmp_path: Path) -> Iterator[Agent]:
    it = Agent(tmp_path / "agent.sock")
    yield it
    it.close()


def call(socket_path: Path, xml: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(HOOK), *arguments],
        input=xml,
        capture_output=True,
        text=True,
        check=False,
        env={"DIVHOOK_AGENT_SOCKET": str(socket_path), "PATH": "/usr/bin:/bin"},
        timeout=30,
    )


@pytest.mark.parametrize("xml", [OURS, BY_BRIDGE])
def test_agent_is_told_of_a_guest_with_a_divhook_nic(agent: Agent, xml: str) -> None:
    begin_s = time.monotonic()
    done = call(agent.path, xml, "web1", "prepare", "begin", "-")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert begin_s + 5 < float(agent.requests[0].pop("until_s")) < time.monotonic() + 5
    assert agent.requests == [
        {"op": "hook", "guest": "web1", "operation": "prepare", "suboperation": "begin", "extra": "-", "xml": xml}
    ]


def test_what_cannot_be_refused_is_told_however_late(agent: Agent) -> None:
    call(agent.path, OURS, "web1", "stopped", "end", "-")
    assert "until_s" not in agent.requests[0]


@pytest.mark.parametrize("xml", [OTHER, ELSEWHERE, "", "<domain", "<domain/>"])
def test_a_guest_without_divhook_nic_needs_no_agent(tmp_path: Path, xml: str) -> None:
    done = call(tmp_path / "nobody", xml, "plain", "prepare", "begin", "-")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_a_guest_without_divhook_nic_is_not_told_to_the_agent(agent: Agent) -> None:
    call(agent.path, OTHER, "plain", "start", "begin", "-")
    assert agent.requests == []


@pytest.mark.parametrize("operation", ["prepare", "start", "migrate", "restore"])
def test_start_fails_with_remedy_where_no_agent_runs(tmp_path: Path, operation: str) -> None:
    done = call(tmp_path / "nobody", OURS, "web1", operation, "begin", "-")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == (
        "divhook: guest web1: the divhook agent is not running on this host. Start it: systemctl start divhook-agent\n"
    )


@pytest.mark.parametrize(
    ("operation", "suboperation"),
    [("started", "begin"), ("stopped", "end"), ("release", "end"), ("reconnect", "begin")],
)
def test_what_cannot_be_refused_is_only_a_warning(tmp_path: Path, operation: str, suboperation: str) -> None:
    done = call(tmp_path / "nobody", OURS, "web1", operation, suboperation, "-")
    assert done.returncode == 0
    assert "agent is not running" in done.stderr


def test_refusal_of_the_agent_is_what_the_person_reads(agent: Agent) -> None:
    agent.answer = b'{"ok": false, "error": "cell \'shpo\' is not known here"}\n'
    done = call(agent.path, OURS, "web1", "prepare", "begin", "-")
    assert (done.returncode, done.stderr) == (1, "divhook: guest web1: cell 'shpo' is not known here\n")


@pytest.mark.parametrize("answer", [b"\n", b"nonsense\n", b"[]\n", b'{"ok":', b""])
def test_a_broken_answer_refuses_the_start(agent: Agent, answer: bytes) -> None:
    agent.answer = answer
    done = call(agent.path, OURS, "web1", "start", "begin", "-")
    assert done.returncode == 1
    assert done.stderr.startswith("divhook: guest web1: the divhook agent could not be asked")


def test_a_silent_agent_costs_the_deadline_and_no_more(agent: Agent) -> None:
    agent.answer = None
    begin = time.monotonic()
    done = call(agent.path, OURS, "web1", "start", "begin", "-")
    assert qemu.DEADLINE_S - 0.1 <= time.monotonic() - begin < qemu.DEADLINE_S + 5
    assert done.returncode == 1
    assert "did not answer within 5 s" in done.stderr
    assert "systemctl restart divhook-agent" in done.stderr


def test_hook_imports_nothing_but_the_standard_library() -> None:
    done = subprocess.run(
        ["/usr/bin/python3", "-IS", "-X", "importtime", str(HOOK), "g", "started", "begin", "-"],
        input="",
        capture_output=True,
        text=True,
        check=True,
    )
    modules = {line.split("|")[-1].strip() for line in done.stderr.splitlines() if "|" in line}
    assert "socket" in modules
    assert not {m for m in modules if m.startswith(("divhook", "libvirt", "yaml", "pydantic", "xml.etree"))}
