"""Named sets of Linux namespaces, kept alive by nsfs files below the lab's own directory.

    DIR/ns/A.net  DIR/ns/A.mnt  DIR/ns/A.uts      a host: network, mounts, host name
    DIR/ns/switch.net                             the switch: network only

Nothing is registered in /run/netns, so that two labs never meet, and `ip netns exec`, which would
hide the host's bpffs under a sysfs of its own, is not needed. The directory is a private mount:
a mount namespace cannot be pinned below a shared one.
"""

import contextlib
import ctypes
import os
import signal
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from divhook.lab import processes
from divhook.lab.errors import LabError

KINDS = ("mnt", "net", "uts")
OPTIONS = {"mnt": "--mount", "net": "--net", "uts": "--uts"}
MNT_DETACH = 2
KILL_ROUNDS = 5


@dataclass(frozen=True, slots=True)
class Namespaces:
    """One named set; `directory` is DIR/ns."""

    directory: Path
    name: str

    def file(self, kind: str) -> Path:
        """The nsfs file of one kind: mnt, net or uts."""
        return self.directory / f"{self.name}.{kind}"

    def kinds(self) -> list[str]:
        """The kinds this set has."""
        return [kind for kind in KINDS if self.file(kind).exists()]

    def create(self, kinds: Sequence[str], script: str, *arguments: str) -> None:
        """Make the namespaces and run a shell script as the first thing in them. Raises LabError."""
        for kind in kinds:
            self.file(kind).touch()
        options = [f"{OPTIONS[kind]}={self.file(kind)}" for kind in kinds]
        propagation = ["--propagation", "private"] if "mnt" in kinds else []
        command = ["unshare", *options, *propagation, "sh", "-euc", script, "sh", *arguments]
        done = subprocess.run(
            command, capture_output=True, text=True, env=processes.clean_environment(), cwd="/", check=False
        )
        if done.returncode:
            raise LabError(f"cannot make the namespaces of {self.name}: {done.stderr.strip()}")

    def enter(self, *command: str) -> list[str]:
        """The command line that runs `command` inside."""
        return ["nsenter", *(f"{OPTIONS[kind]}={self.file(kind)}" for kind in self.kinds()), "--", *command]

    def run(
        self, *command: str, check: bool = True, timeout_s: float | None = 60, input_text: str | None = None
    ) -> subprocess.CompletedProcess[str]:
        """Run a command inside and capture its output. With `check`, a failure raises LabError."""
        try:
            done = subprocess.run(
                self.enter(*command),
                capture_output=True,
                text=True,
                errors="replace",
                env=processes.clean_environment(),
                cwd="/",
                timeout=timeout_s,
                input=input_text,
                stdin=subprocess.DEVNULL if input_text is None else None,
                check=False,
            )
        except subprocess.TimeoutExpired as error:
            raise LabError(f"{self.name}: {' '.join(command)}: no end after {error.timeout:g} s") from None
        if check and done.returncode:
            text = (done.stderr or done.stdout).strip()
            raise LabError(f"{self.name}: {' '.join(command)}: exit code {done.returncode}: {text}")
        return done

    def ip(self, *lines: str) -> None:
        """Run lines of ip(8) inside, all in one process."""
        self.run("ip", "-batch", "-", input_text="\n".join(lines) + "\n")

    def inodes(self) -> set[tuple[int, int]]:
        """(device, inode) of each live namespace of the set."""
        found = set()
        for kind in self.kinds():
            if mounted(self.file(kind)):
                status = self.file(kind).stat()
                found.add((status.st_dev, status.st_ino))
        return found

    def kill_inhabitants(self) -> None:
        """End every process inside, whoever started it. Processes fork: so look again until none is left."""
        inodes = self.inodes()
        for attempt in range(KILL_ROUNDS):
            pids = list(processes.inhabitants(inodes)) if inodes else []
            if not pids:
                return
            for pid in pids:
                processes.terminate(pid, signal.SIGTERM if attempt == 0 else signal.SIGKILL, grace_s=2)

    def destroy(self) -> None:
        """Remove the nsfs files; the kernel frees what nobody uses. Safe on a half-made set."""
        for kind in self.kinds():
            unmount(self.file(kind))
            self.file(kind).unlink(missing_ok=True)


def pin_directory(directory: Path) -> None:
    """Make `directory` a private mount of itself. Idempotent."""
    directory.mkdir(parents=True, exist_ok=True)
    if not mounted(directory):
        subprocess.run(["mount", "--bind", str(directory), str(directory)], check=True)
    subprocess.run(["mount", "--make-private", str(directory)], check=True)


def unpin_directory(directory: Path) -> None:
    """Undo pin_directory."""
    while mounted(directory) and unmount(directory):
        pass


def mounted(path: Path) -> bool:
    """Whether something is mounted exactly here (os.path.ismount misses a directory bound onto itself)."""
    wanted = os.path.realpath(path)
    with open("/proc/self/mountinfo", encoding="utf-8") as table:
        return any(line.split()[4].replace("\\040", " ") == wanted for line in table)


def unmount(path: Path) -> bool:
    """Unmount, lazily; False where nothing was mounted."""
    libc = ctypes.CDLL(None, use_errno=True)
    return bool(libc.umount2(os.fsencode(path), MNT_DETACH) == 0)


def members(directory: Path) -> list[str]:
    """Names of all sets whose files are in a directory, also of half-made ones."""
    with contextlib.suppress(FileNotFoundError):
        return sorted({entry.name.rpartition(".")[0] for entry in directory.iterdir()} - {""})
    return []
