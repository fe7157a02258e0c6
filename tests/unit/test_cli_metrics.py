"""`divhook metrics`: the whole text, and what it says of an agent that is away."""

import re
from pathlib import Path
from typing import Any

import pytest

from divhook.cli import client, metrics
from divhook.cli.main import main

STATUS: dict[str, Any] = {
    "version": "0.1.0",
    "uptime_s": 12.5,
    "reconciled": True,
    "libvirt": "connected",
    "config": "ok",
    "neighbours": 3,
    "peers": 2,
    "rules_restored": 1,
    "policy": {"files": "policies/shop.yaml:3:9: …", "rules": 7, "applied": 4, "picked_up": 5, "log_lost": 6},
    "fast_path": {"from_guest": 100, "to_guest": 90},
    "slow_path": {
        "from_guest": 10, "from_wire": 11, "to_guest": 12, "to_wire": 13, "queue_lost": 14, "socket_lost": 15,
    },
    "nat": {
        "cells": 1, "addresses": 8, "state": "ok", "connections": 21, "limit": 22,
        "refused": 23, "table_full": 24, "no_port": 25, "invalid": 26,
    },
    "moves": {"leaving": 1, "coming": 2, "copied": 33, "late": 4},
}  # fmt: skip
NIC = {"guest": 'a"b\\c', "nic": "52:54:00:11:22:33", "cell": "shop", "subnet": "web", "state": "active"}
NIC |= {"sent_packets": 1, "sent_bytes": 20, "received_packets": 2, "received_bytes": 12345678901234}
DROPS = [{"port": 3, "guest": "web", "reason": "cell_denied", "packets": 17, "bytes": 1666, "where": "agent"}]
RULES = [{"cell": "shop", "where": "policies/shop.yaml:8:5", "rule": "…", "comment": "", "flows": 9}]
SAMPLE = re.compile(r'divhook_[a-z_]+(\{[a-z_]+="([^"\\\n]|\\.)*"(,[a-z_]+="([^"\\\n]|\\.)*")*\})? [-+.0-9e]+')


def lines() -> list[str]:
    return metrics.render(STATUS, [NIC], DROPS, RULES).splitlines()


def test_every_line_is_of_the_format_and_every_family_is_told_once() -> None:
    named: list[str] = []
    for line in lines():
        if line.startswith("# TYPE "):
            named.append(line.split()[2])
        elif not line.startswith("# HELP "):
            assert SAMPLE.fullmatch(line), line
            assert line.split("{")[0].split(" ")[0] == named[-1]
    assert len(named) == len(set(named))


@pytest.mark.parametrize(
    "line",
    [
        "divhook_up 1",
        'divhook_info{version="0.1.0"} 1',
        "divhook_uptime_seconds 12.5",
        "divhook_libvirt_connected 1",
        "divhook_config_ok 1",
        "divhook_reconciled 1",
        "divhook_policy_files_ok 0",
        "divhook_policy_changes_total 4",
        'divhook_frames{path="slow",direction="to_wire"} 13',
        'divhook_frames_lost_total{where="queue"} 14',
        'divhook_moves{direction="coming"} 2',
        "divhook_nat_ok 1",
        "divhook_nat_connections 21",
        "divhook_nat_connections_limit 22",
        'divhook_nat_refused_total{why="table_full"} 24',
        'divhook_move_packets{kind="copied"} 33',
        'divhook_endpoints{state="active"} 1',
        'divhook_endpoints{state="fenced"} 0',
        'divhook_guest_received_bytes_total{guest="a\\"b\\\\c",nic="52:54:00:11:22:33",cell="shop",subnet="web"} '
        "12345678901234",
        'divhook_dropped_packets_total{guest="web",reason="cell_denied",where="agent"} 17',
        'divhook_rule_flows_total{cell="shop",where="policies/shop.yaml:8:5"} 9',
    ],
)
def test_a_figure_has_its_name_and_labels(line: str) -> None:
    assert line in lines()


def test_the_command_asks_the_agent_for_all_of_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    answers = {"status": STATUS, "endpoints": [NIC], "drops": DROPS, "policy counters": RULES}
    monkeypatch.setattr(client, "ask", lambda _path, op: answers[op])
    assert main(["metrics"]) == 0
    assert capsys.readouterr().out.splitlines() == lines()


def test_an_agent_that_is_away_is_a_figure_and_an_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["metrics", "--socket", str(tmp_path / "none.sock")]) == 1
    captured = capsys.readouterr()
    assert captured.out == "divhook_up 0\n"
    assert "is it running?" in captured.err
