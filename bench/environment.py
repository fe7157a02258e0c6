"""What the figures were measured on: for environment.json and the head of the printed table."""

import os
import platform
import re
import subprocess
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path

VERSIONS = (
    ("clang", "--version"),
    ("gcc", "--version"),
    ("nft", "--version"),
    ("ovs-vswitchd", "--version"),
    ("ip", "-V"),
)
SOURCE = Path(__file__).parent.parent


def _first_line(*command: str) -> str | None:
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=SOURCE)
    except FileNotFoundError:
        return None
    return (done.stdout.strip().splitlines() or [""])[0] if done.returncode == 0 else None


def _cpu_model() -> str:
    found = re.search(r"^model name\s*:\s*(.*)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    return found[1] if found else platform.machine()


def stolen_s() -> float:
    """CPU time that the hypervisor has kept from this machine since it started."""
    return int(Path("/proc/stat").read_text().split("\n", 1)[0].split()[8]) / 100


def mitigations() -> list[str]:
    """Vulnerabilities that the kernel works around: they cost per system call and per indirect call."""
    directory = Path("/sys/devices/system/cpu/vulnerabilities")
    files = sorted(directory.iterdir()) if directory.is_dir() else []
    return [f"{file.name}: {text}" for file in files if (text := file.read_text().strip()).startswith("Mitigation")]


def collect(
    details: Mapping[str, str], absent: Mapping[str, str], paced: Sequence[str], counted: bool
) -> dict[str, object]:
    """The environment. details, absent: by contender. paced: forward in a process. counted: by perf counters."""
    dirty = _first_line("git", "status", "--porcelain", "--untracked-files=no")
    return {
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        "commit": _first_line("git", "rev-parse", "--short=12", "HEAD"),
        "changed_since_commit": bool(dirty),
        "kernel": platform.release(),
        "cpu": _cpu_model(),
        "cpus": os.cpu_count(),
        "mitigations": mitigations(),
        "bpf_jit": Path("/proc/sys/net/core/bpf_jit_enable").read_text().strip() != "0",
        "versions": {name: _first_line(name, flag) for name, flag in VERSIONS},
        "contenders": dict(details),
        "absent": dict(absent),
        "forward_in_a_process": list(paced),
        "instructions": "counted" if counted else "not counted: this machine has no hardware counters",
    }
