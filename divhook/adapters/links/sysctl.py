"""Kernel settings below /proc/sys/net, of the network namespace of the calling thread."""

from pathlib import Path

_ROOT = Path("/proc/sys/net")


def read_sysctl(name: str) -> str | None:
    """Value of e.g. "ipv4/conf/divbr0/rp_filter"; None where the kernel has no such setting."""
    try:
        return (_ROOT / name).read_text().strip()
    except FileNotFoundError:
        return None


def write_sysctl(name: str, value: int) -> bool:
    """Set it where it differs; False where the kernel has no such setting. Raises OSError (read-only /proc, say)."""
    present = read_sysctl(name)
    if present is None:
        return False
    if present != str(value):
        (_ROOT / name).write_text(str(value))
    return True
