"""Network namespaces for tests: made, entered by the calling thread, and removed."""

import ctypes
import os
import subprocess
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

_CLONE_NEWNET = 0x40000000
_libc = ctypes.CDLL(None, use_errno=True)


def run(command: str, check: bool = True) -> str:
    """Output of a command line, run in the calling thread's namespace."""
    done = subprocess.run(command, shell=True, text=True, capture_output=True, timeout=60, check=False)
    if check and done.returncode:
        raise AssertionError(f"{command}: {done.stderr or done.stdout}")
    return done.stdout


def _set_namespace(descriptor: int) -> None:
    if _libc.setns(descriptor, _CLONE_NEWNET):
        raise OSError(ctypes.get_errno(), "setns")


@contextmanager
def entered(file: Path) -> Iterator[None]:
    """Put the calling thread into the namespace of an nsfs file. Sockets made inside stay in it."""
    here = os.open("/proc/thread-self/ns/net", os.O_RDONLY)
    there = os.open(file, os.O_RDONLY)
    try:
        _set_namespace(there)
        yield
    finally:
        _set_namespace(here)
        os.close(here)
        os.close(there)


class Namespace:
    """A network namespace that `ip netns` knows. Sockets made inside `with namespace.entered():` stay in it."""

    def __init__(self, name: str) -> None:
        self.name = name
        subprocess.run(["ip", "netns", "add", name], check=True, timeout=30)
        self.run("ip link set lo up")

    def entered(self) -> AbstractContextManager[None]:
        """Put the calling thread into the namespace."""
        return entered(Path("/run/netns", self.name))

    def run(self, command: str, check: bool = True) -> str:
        """Output of a command line in the namespace."""
        with self.entered():
            return run(command, check)

    def sysctl(self, name: str, value: int) -> bool:
        """Set a kernel setting of the namespace; False where the kernel has none of that name."""
        with self.entered():
            file = Path("/proc/sys/net", name)
            if not file.exists():
                return False
            file.write_text(str(value))
            return True

    def remove(self) -> None:
        """Remove it, and all links in it."""
        subprocess.run(["ip", "netns", "del", self.name], check=True, timeout=30)
