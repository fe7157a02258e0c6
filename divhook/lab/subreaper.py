"""python -m divhook.lab.subreaper CMD…: run CMD, and adopt and reap every daemon it leaves behind.

libvirt waits for a QEMU it has killed with kill(pid, 0), which also succeeds on a zombie; where
PID 1 reaps late, each `virsh destroy` takes seconds longer. prctl(PR_SET_CHILD_SUBREAPER) makes
the daemonized QEMUs children of this process instead (prctl(2)).
"""

import ctypes
import os
import signal
import sys

PR_SET_CHILD_SUBREAPER = 36


def main(argv: list[str]) -> int:
    """Run a command as the first child; reap until no child is left. SIGTERM goes on to the command."""
    ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    child = os.posix_spawnp(argv[0], argv, dict(os.environ))
    signal.signal(signal.SIGTERM, lambda *_: os.kill(child, signal.SIGTERM))
    while True:
        try:
            os.wait()
        except ChildProcessError:
            return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
