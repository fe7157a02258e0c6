"""A tap that outlives its QEMU for a moment: the file descriptor that QEMU has of it, had by the agent, too.

    QEMU ends ─▶ its descriptor closes ─▶ the kernel removes the tap: what is redirected into it from then on is lost,
                                          and no counter tells
    held by us ─▶ the tap stays, and the capture on it sees every frame, until we close ours

pidfd_getfd(2), Linux 5.6; needs CAP_SYS_PTRACE, since QEMU runs as another user. Nothing is ever read through it.
"""

import ctypes
import os
from pathlib import Path

RUN = Path("/run/libvirt/qemu")
"""Where libvirt writes the pid of each guest's QEMU (virPidFileBuildPath)."""
TUN = "/dev/net/tun"
_PIDFD_GETFD = 438  # the same on every architecture
_libc = ctypes.CDLL(None, use_errno=True)


def qemu_pid(guest: str) -> int:
    """Pid of a running guest's QEMU, as libvirt has written it. Raises OSError or ValueError."""
    return int((RUN / f"{guest}.pid").read_text())


class TapHold:
    """Keeps a tap in being until `close`. Raises OSError where it can't be had; then it goes with QEMU."""

    def __init__(self, pid: int, ifname: str) -> None:
        self.theirs = [fd for fd in _taps_of(pid) if _interface(pid, fd) == ifname]
        """QEMU's own numbers of it: one for each queue."""
        if not self.theirs:
            raise FileNotFoundError(f"process {pid} has no descriptor of {ifname}")
        process = os.pidfd_open(pid)
        try:
            self._descriptor = _libc.syscall(_PIDFD_GETFD, process, self.theirs[0], 0)
            if self._descriptor < 0:
                error = ctypes.get_errno()
                raise OSError(error, f"pidfd_getfd: {os.strerror(error)}")
        finally:
            os.close(process)

    def close(self) -> None:
        """Let go: with QEMU gone, this removes the tap. Idempotent."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1


def _taps_of(pid: int) -> list[int]:
    found = []
    for link in Path(f"/proc/{pid}/fd").iterdir():
        try:
            if os.readlink(link) == TUN:
                found.append(int(link.name))
        except OSError:  # closed meanwhile
            continue
    return found


def _interface(pid: int, descriptor: int) -> str | None:
    """Name of the link, from `iff:` of fdinfo (tun_chr_show_fdinfo)."""
    try:
        lines = Path(f"/proc/{pid}/fdinfo/{descriptor}").read_text().splitlines()
    except OSError:
        return None
    return next((line.split()[1] for line in lines if line.startswith("iff:") and len(line.split()) > 1), None)
