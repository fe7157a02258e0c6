"""Processes of a lab: found by pid and start time, ended without mistaking a reused pid."""

import os
import signal
from pathlib import Path

from divhook.lab import namespaces, processes


def test_spawned_process_is_running_until_stopped(tmp_path: Path) -> None:
    pid_file = tmp_path / "pids" / "sleep"
    pid = processes.spawn(["sleep", "60"], pid_file, tmp_path / "log")
    assert processes.running(pid_file) == pid
    processes.stop(pid_file)
    assert processes.running(pid_file) is None
    assert not pid_file.exists()


def test_process_that_ignores_sigterm_is_killed(tmp_path: Path) -> None:
    pid_file = tmp_path / "stubborn"
    log = tmp_path / "log"
    processes.spawn(["sh", "-c", "trap '' TERM; echo ready; while :; do sleep 0.05; done"], pid_file, log)
    assert processes.wait_until(lambda: "ready" in log.read_text(), 10)
    processes.stop(pid_file, grace_s=0.2)
    assert processes.running(pid_file) is None


def test_pid_used_again_by_another_process_is_left_alone(tmp_path: Path) -> None:
    pid_file = tmp_path / "reused"
    pid_file.write_text(f"{os.getpid()} 1\n")
    assert processes.running(pid_file) is None
    processes.stop(pid_file, signal.SIGKILL)  # would end this test run
    assert not pid_file.exists()


def test_output_goes_to_the_log(tmp_path: Path) -> None:
    log = tmp_path / "log"
    processes.spawn(["sh", "-c", "echo one; echo two >&2"], tmp_path / "pid", log)
    assert processes.wait_until(lambda: log.read_text() == "one\ntwo\n", 10)
    processes.stop(tmp_path / "pid")


def test_environment_has_nothing_of_the_callers(monkeypatch) -> None:  # type: ignore[no-untyped-def]
    monkeypatch.setenv("PYENV_ROOT", "/x")
    monkeypatch.setenv("PATH", "/x/shims:/usr/bin")
    environment = processes.clean_environment(EXTRA="1")
    assert environment["PATH"] == processes.CLEAN_PATH
    assert "PYENV_ROOT" not in environment
    assert environment["EXTRA"] == "1"


def test_sets_are_found_by_their_files(tmp_path: Path) -> None:
    for name in ("A.net", "A.mnt", "switch.net"):
        (tmp_path / name).touch()
    assert namespaces.members(tmp_path) == ["A", "switch"]
    assert namespaces.members(tmp_path / "none") == []
    assert namespaces.Namespaces(tmp_path, "A").enter("true") == [
        "nsenter",
        f"--mount={tmp_path}/A.mnt",
        f"--net={tmp_path}/A.net",
        "--",
        "true",
    ]


def test_namespace_file_with_nothing_mounted_counts_no_process(tmp_path: Path) -> None:
    (tmp_path / "A.net").touch()
    half = namespaces.Namespaces(tmp_path, "A")
    assert half.inodes() == set()
    half.kill_inhabitants()
    half.destroy()
    assert not (tmp_path / "A.net").exists()
