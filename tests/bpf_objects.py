"""Which programs, maps and links are alive in this kernel; the numbers are the same in every namespace."""

import json
from collections.abc import Callable

Shell = Callable[[str], str]
"""Runs a command line; its output."""

_KINDS = {"programs": "prog", "maps": "map", "links": "link"}


def pinned(shell: Shell, root: str = "/sys/fs/bpf") -> set[tuple[str, int]]:
    """(kind, id) of everything that divhook has pinned below a bpffs, and of programs that a pinned link holds."""
    found = set()
    for pin in shell(f"find {root} -path '*/divhook/*' -type f").split():
        kind = _KINDS[pin.split("/")[-2]]
        shown = json.loads(shell(f"bpftool -j {kind} show pinned {pin}"))
        found |= {(kind, shown["id"])} | ({("prog", shown["prog_id"])} if kind == "link" else set())
    return found


def alive(shell: Shell) -> set[tuple[str, int]]:
    """(kind, id) of everything in the kernel, whoever's."""
    return {(kind, each["id"]) for kind in _KINDS.values() for each in json.loads(shell(f"bpftool -j {kind} show"))}
