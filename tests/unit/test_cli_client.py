"""Commands that ask the agent: what is sent, what is shown, and one clear line where the agent can't answer."""

import asyncio
import json
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from divhook.agent.control import ControlServer
from divhook.cli import client
from divhook.cli.main import main

ENDPOINTS = [
    {"guest": "shop-web-1", "nic": "52:54:00:11:22:33", "cell": "shop", "subnet": "web", "address": "10.1.1.20",
     "port": 3, "ifname": "vnet7", "state": "active", "source": "metadata",
     "sent_packets": 12, "sent_bytes": 903, "received_packets": 7, "received_bytes": 588},
    {"guest": "lab-1", "nic": "52:54:00:44:55:66", "cell": "lab", "subnet": "web", "address": None,
     "port": 12, "ifname": "vnet8", "state": "tentative", "source": "cells/lab.yaml:9"},
]  # fmt: skip
DROPS = [
    {"port": 3, "guest": "shop-web-1", "reason": "cell_denied", "packets": 17, "bytes": 1666, "where": "agent"},
    {"port": 3, "guest": "shop-web-1", "reason": "consumed", "packets": 4, "bytes": 168, "where": "agent"},
    {"port": 0, "guest": "", "reason": "unknown_host", "packets": 0, "bytes": 0, "where": "kernel"},
]


class FakeAgent:
    """Answers every request with the same bytes, and keeps what it was asked."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.asked: list[Any] = []
        self.answer = b""
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._listener.bind(str(path))
        self._listener.listen()
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()

    def _serve(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            with connection, connection.makefile("rb") as stream:
                line = stream.readline()
                if line:
                    self.asked.append(json.loads(line))
                    connection.sendall(self.answer)

    def close(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._thread.join()


@pytest.fixture
def agent(tmp_path: Path) -> Iterator[FakeAgent]:
    fake = FakeAgent(tmp_path / "agent.sock")
    yield fake
    fake.close()


Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(agent: FakeAgent, capsys: pytest.CaptureFixture[str]) -> Run:
    """Run a command against the fake agent: exit code, standard output, standard error."""

    def run(*argv: str, result: Any = None, answer: bytes | None = None) -> tuple[int, str, str]:
        agent.answer = answer if answer is not None else json.dumps({"ok": True, "result": result}).encode() + b"\n"
        code = main([*argv, "--socket", str(agent.path)])
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return run


def test_endpoints_are_a_table(run: Run, agent: FakeAgent) -> None:
    assert run("endpoints", result=ENDPOINTS) == (
        0,
        "GUEST       NIC                CELL  SUBNET  ADDRESS    PORT  IFNAME  STATE      SENT    RECEIVED  SOURCE\n"
        "shop-web-1  52:54:00:11:22:33  shop  web     10.1.1.20     3  vnet7   active     12/903  7/588     metadata\n"
        "lab-1       52:54:00:44:55:66  lab   web     -            12  vnet8   tentative  -       -         "
        "cells/lab.yaml:9\n",
        "",
    )
    assert agent.asked == [{"op": "endpoints"}]


def test_lists_are_json_for_programs(run: Run) -> None:
    code, out, _ = run("endpoints", "--json", result=ENDPOINTS)
    assert (code, json.loads(out)) == (0, ENDPOINTS)


def test_lists_are_filtered_by_column(run: Run) -> None:
    _, out, _ = run("endpoints", "--json", "--cell", "lab", result=ENDPOINTS)
    assert json.loads(out) == ENDPOINTS[1:]
    _, out, _ = run("endpoints", "--cell", "nowhere", result=ENDPOINTS)
    assert out == "no guest of this host has a divhook NIC\n"


def test_neighbors_show_their_age_and_whether_the_kernel_has_them(run: Run) -> None:
    row = {
        "address": "10.1.1.9",
        "host": "02:00:00:00:0b:01",
        "vmac": "52:54:00:77:88:99",
        "state": "STALE",
        "kernel": True,
        "age_s": 61.25,
    }
    assert run("neighbors", "--state", "stale", result=[row])[1] == (
        "ADDRESS   HOST               VMAC               STATE  KERNEL  AGE_S\n"
        "10.1.1.9  02:00:00:00:0b:01  52:54:00:77:88:99  STALE     yes   61.2\n"
    )


def test_drops_leave_out_what_is_no_loss_unless_asked(run: Run, agent: FakeAgent) -> None:
    assert run("drops", result=DROPS)[1] == (
        "PORT  GUEST       REASON       PACKETS  BYTES  WHERE\n   3  shop-web-1  cell_denied       17   1666  agent\n"
    )
    assert agent.asked == [{"op": "drops", "all": False}]
    assert json.loads(run("drops", "--all", "--json", result=DROPS)[1]) == DROPS
    assert agent.asked[1] == {"op": "drops", "all": True}
    assert json.loads(run("drops", "--reason", "consumed", "--json", result=DROPS)[1]) == [DROPS[1]]
    assert json.loads(run("drops", "--all", "--port", "0", "--json", result=DROPS)[1]) == [DROPS[2]]


def test_nothing_dropped_is_said(run: Run) -> None:
    assert run("drops", result=[])[1] == "nothing was dropped\n"


def test_leases_are_listed(run: Run) -> None:
    assert run("leases", result=[])[1] == "no guest of this host has asked for an address\n"


def test_what_a_guest_chose_cannot_drive_the_terminal(run: Run) -> None:
    row = {"guest": "g", "nic": "52:54:00:11:22:33", "address": "10.1.1.9", "remaining_s": 7, "hostname": "a\x1b[2Jb\r"}
    line = run("leases", result=[row])[1].splitlines()[1]
    assert line.split() == ["g", "52:54:00:11:22:33", "10.1.1.9", "a\ufffd[2Jb\ufffd", "7"]


def test_status_is_shown_nested(run: Run) -> None:
    result = {
        "version": "0.1",
        "uplink": {"name": "up0", "mtu": 1500},
        "warnings": ["a b", "c d"],
        "groups": [],
        "ok": True,
    }
    assert run("status", result=result)[1] == (
        "version:  0.1\nuplink:\n  name: up0\n  mtu:  1500\nwarnings:\n  - a b\n  - c d\ngroups:   -\nok:       yes\n"
    )
    assert json.loads(run("status", "--json", result=result)[1]) == result


def test_reload_asks_the_agent(run: Run, agent: FakeAgent) -> None:
    assert run("reload", result={"cells": 2})[:2] == (0, "the agent uses the files as they are now: 2 cells\n")
    assert agent.asked == [{"op": "reload"}]


def test_a_refusal_is_shown_in_the_agents_words(run: Run) -> None:
    answer = b'{"ok": false, "error": "cells/a.yaml:3:1: unknown key"}\n'
    assert run("reload", answer=answer) == (1, "", "divhook: cells/a.yaml:3:1: unknown key\n")


@pytest.mark.parametrize(
    "answer", [b"", b"\n", b"[]\n", b"nonsense\n", b'{"ok": true}\n', b'{"ok": false}\n', b"\xff\n"]
)
def test_an_unusable_answer_is_one_clear_line(run: Run, agent: FakeAgent, answer: bytes) -> None:
    assert run("endpoints", answer=answer) == (
        1,
        "",
        f"divhook: the agent at {agent.path} gave no usable answer: is it of another version? "
        "journalctl -u divhook-agent\n",
    )


def test_an_answer_that_is_no_list_is_one_clear_line(run: Run) -> None:
    assert run("endpoints", result={"a": 1})[2] == "divhook: the agent's answer is no list: is it of another version?\n"


def test_an_agent_that_is_away_is_one_clear_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for path in (tmp_path / "missing.sock", tmp_path / "stale.sock"):
        if path.name == "stale.sock":
            with socket.socket(socket.AF_UNIX) as dead:
                dead.bind(str(path))
        assert main(["status", "--socket", str(path)]) == 1
        assert capsys.readouterr().err == (
            f"divhook: the agent does not answer at {path}: is it running? systemctl status divhook-agent\n"
        )


def test_an_agent_that_hangs_is_given_up(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client, "TIMEOUT_S", 0.05)
    path = tmp_path / "hung.sock"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()
        assert main(["status", "--socket", str(path)]) == 1
    assert "did not answer within 0.05 s" in capsys.readouterr().err


def test_the_agents_own_server_understands_the_client(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    async def serve() -> int:
        async def drops(request: dict[str, Any]) -> list[dict[str, Any]]:
            return [{"port": 1, "reason": "spoof_mac", "packets": int(request["all"]), "bytes": 60, "where": "kernel"}]

        server = ControlServer(tmp_path / "agent.sock", {"drops": drops})
        await server.start()
        try:
            return await asyncio.to_thread(main, ["drops", "--all", "--socket", str(tmp_path / "agent.sock")])
        finally:
            await server.stop()

    assert asyncio.run(serve()) == 0
    assert capsys.readouterr().out.splitlines()[1].split() == ["1", "-", "spoof_mac", "1", "60", "kernel"]


def test_groups_are_listed(run: Run) -> None:
    assert run("groups", result=[])[1] == "no guest of this host is in a group\n"
    row = {"guest": "web1", "nic": "52:54:00:00:00:01", "cell": "shop", "subnet": "web", "group": "239.1.2.3"}
    assert "239.1.2.3" in run("groups", result=[row])[1].splitlines()[1]
