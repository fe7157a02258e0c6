"""eBPF: the tc programs of divhook/bpf, their maps and where they are attached."""

from divhook.adapters.bpf.bpffs import ensure_bpffs, pin_dir_in
from divhook.adapters.bpf.errors import BpfError
from divhook.adapters.bpf.programs import (
    DROP,
    FROM_GUEST,
    FROM_HOST,
    FROM_WIRE,
    PASS,
    REDIRECT,
    AttachMode,
    Programs,
    teardown,
)
from divhook.adapters.bpf.syscall import TestRun

__all__ = [
    "DROP",
    "FROM_GUEST",
    "FROM_HOST",
    "FROM_WIRE",
    "PASS",
    "REDIRECT",
    "AttachMode",
    "BpfError",
    "Programs",
    "TestRun",
    "ensure_bpffs",
    "pin_dir_in",
    "teardown",
]
