"""The file system that keeps pinned maps, programs and links alive while no process holds them."""

import ctypes
import os
from pathlib import Path

from divhook.abi.layout import ABI_VERSION
from divhook.adapters.bpf.errors import BpfError, os_error

BPF_FS_MAGIC = 0xCAFE4A11
"""linux/magic.h"""

_LIBC = ctypes.CDLL(None, use_errno=True)


def pin_dir_in(bpffs: Path) -> Path:
    """Where this version's objects are pinned: one directory per ABI version, so that two never mix."""
    return bpffs / "divhook" / f"v{ABI_VERSION}"


def is_bpffs(path: Path) -> bool:
    """Whether an existing path lies in a bpffs."""
    buffer = ctypes.create_string_buffer(256)  # struct statfs begins with f_type, a long
    if _LIBC.statfs(os.fsencode(path), buffer) != 0:
        raise os_error(f"cannot examine {path}", ctypes.get_errno())
    return ctypes.c_long.from_buffer(buffer).value & 0xFFFFFFFF == BPF_FS_MAGIC


def ensure_bpffs(path: Path) -> None:
    """Mount a bpffs at path where none is. Raises BpfError.

    `ip netns exec` hides /sys/fs/bpf behind a fresh sysfs: enter a namespace by nsenter or setns instead.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise BpfError(f"cannot make {path} for the bpf file system: {error.strerror}", error.errno or 0) from None
    if is_bpffs(path):
        return
    if _LIBC.mount(b"bpf", os.fsencode(path), b"bpf", ctypes.c_ulong(0), b"mode=0700") != 0:
        code = ctypes.get_errno()
        raise os_error(f"cannot mount a bpf file system; try `mount -t bpf bpf {path}`", code)
