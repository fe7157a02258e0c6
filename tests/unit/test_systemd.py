"""What the agent tells systemd: sd_notify(3) datagrams and journal entries."""

import logging
import socket
import struct
from pathlib import Path

import pytest

from divhook.agent import systemd


def receiver(path: Path) -> socket.socket:
    it = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    it.bind(str(path))
    it.settimeout(2)
    return it


def test_readiness_goes_to_the_service_manager(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with receiver(tmp_path / "notify") as it:
        monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
        systemd.notify("READY=1")
        assert it.recv(100) == b"READY=1"


def test_without_a_service_manager_nothing_happens(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NOTIFY_SOCKET", raising=False)
    systemd.notify("READY=1")
    monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "gone"))
    systemd.notify("READY=1")


@pytest.mark.parametrize(("text", "interval_s"), [("30000000", 15.0), ("", None), ("x", None)])
def test_watchdog_is_fed_twice_per_period(monkeypatch: pytest.MonkeyPatch, text: str, interval_s: float | None) -> None:
    monkeypatch.setenv("WATCHDOG_USEC", text)
    assert systemd.watchdog_interval_s() == interval_s


def test_a_journal_entry_has_its_fields_and_survives_line_breaks(tmp_path: Path) -> None:
    with receiver(tmp_path / "journal") as it:
        handler = systemd.JournalHandler(str(tmp_path / "journal"))
        record = logging.LogRecord("divhook.x", logging.WARNING, "/a/b.py", 12, "one\nMESSAGE=two", (), None)
        record.DIVHOOK_GUEST = "web1"
        handler.emit(record)
        handler.close()
        text = b"one\nMESSAGE=two"
        assert it.recv(4096) == (
            b"MESSAGE\n" + struct.pack("<Q", len(text)) + text + b"\n"
            b"PRIORITY=4\nSYSLOG_IDENTIFIER=divhook-agent\nLOGGER=divhook.x\nCODE_FILE=/a/b.py\nCODE_LINE=12\n"
            b"DIVHOOK_GUEST=web1\n"
        )
