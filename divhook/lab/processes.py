"""Background processes of a lab, each remembered by a file that holds its pid and start time.

A pid alone is not enough to end a process: it may have been used again since. The start time
(proc(5), stat field 22, clock ticks since boot) makes the pair unique on a running machine.
"""

import contextlib
import os
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

CLEAN_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
"""libvirtd hands its PATH on to hooks: nothing of the user's shell belongs in it."""
POLL_INTERVAL_S = 0.02


def clean_environment(**extra: str) -> dict[str, str]:
    """The environment of everything that a lab starts: independent of the caller's."""
    return {"PATH": CLEAN_PATH, "LANG": "C.UTF-8", "HOME": "/root", "TERM": os.environ.get("TERM", "dumb"), **extra}


def start_time(pid: int) -> int | None:
    """Start time of a process in clock ticks since boot; None where it is gone or a zombie."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return None
    return None if fields[0] in "ZX" else int(fields[19])


def spawn(argv: Sequence[str], pid_file: Path, log: Path, environment: dict[str, str] | None = None) -> int:
    """Start a process in a session of its own, its output appended to `log`. Returns its pid."""
    pid_file.parent.mkdir(parents=True, exist_ok=True)
    log.parent.mkdir(parents=True, exist_ok=True)
    pid = os.posix_spawnp(
        argv[0],
        list(argv),
        clean_environment() if environment is None else environment,
        file_actions=[
            (os.POSIX_SPAWN_OPEN, 0, "/dev/null", os.O_RDONLY, 0),
            (os.POSIX_SPAWN_OPEN, 1, str(log), os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644),
            (os.POSIX_SPAWN_DUP2, 1, 2),
        ],
        setsid=True,
        setsigmask=[],
        setsigdef=[signal.SIGINT, signal.SIGTERM, signal.SIGPIPE],
    )
    pid_file.write_text(f"{pid} {start_time(pid) or 0}\n")
    return pid


def running(pid_file: Path) -> int | None:
    """The pid that a pid file names, where that same process still runs."""
    try:
        pid, started = map(int, pid_file.read_text().split())
    except (FileNotFoundError, ValueError):
        return None
    return pid if start_time(pid) == started else None


def stop(pid_file: Path, number: int = signal.SIGTERM, grace_s: float = 10.0) -> None:
    """End the process of a pid file: the signal, then SIGKILL after `grace_s`. Returns when it is gone."""
    pid = running(pid_file)
    if pid is not None:
        terminate(pid, number, grace_s)
    pid_file.unlink(missing_ok=True)


def terminate(pid: int, number: int = signal.SIGTERM, grace_s: float = 10.0) -> None:
    """Signal one process, wait for its end, kill it after `grace_s`."""
    for each in (number, signal.SIGKILL):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, each)
        if wait_until(lambda: _gone(pid), grace_s):
            return


def _gone(pid: int) -> bool:
    with contextlib.suppress(ChildProcessError):
        os.waitpid(pid, os.WNOHANG)  # our own child would stay a zombie
    return start_time(pid) is None


def wait_until(condition: Callable[[], bool], timeout_s: float, interval_s: float = POLL_INTERVAL_S) -> bool:
    """Poll until `condition()` is true; False after `timeout_s`."""
    end = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > end:
            return False
        time.sleep(interval_s)
    return True


def inhabitants(namespaces: set[tuple[int, int]]) -> Iterator[int]:
    """Pids of all processes in any of these namespaces, each given by (device, inode) of its nsfs file."""
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        for kind in ("net", "mnt", "uts"):
            try:
                status = (entry / "ns" / kind).stat()
            except (FileNotFoundError, ProcessLookupError, PermissionError):
                break
            if (status.st_dev, status.st_ino) in namespaces:
                yield int(entry.name)
                break


def now_s() -> float:
    """Monotonic time in seconds."""
    return time.monotonic()
