"""Directories of pins, one for each ABI version: at rest there is exactly one, and it is whole.

    v2          adopted, if it is this version's
    v3_filling  being made: maps filled, nothing attached. Renamed to v3 when it is whole
    v3 and v2   everything attached is switched to v3, one interface after the other
    v2_gone     nothing is attached to it: being removed

A start that is interrupted anywhere leaves a state from which a start of either version goes on: a name without suffix
is a whole one, and all others are removed.
"""

import re
from pathlib import Path

from divhook.adapters.bpf import tcx

_WHOLE = re.compile(r"v(\d+)")


def filling(pin_dir: Path) -> Path:
    """Where a version's directory is made."""
    return pin_dir.with_name(f"{pin_dir.name}_filling")


def others(pin_dir: Path) -> list[Path]:
    """Whole directories of other versions, newest first."""
    root = pin_dir.parent
    found = {
        int(match[1]): path
        for path in (root.iterdir() if root.is_dir() else ())
        if path != pin_dir and (match := _WHOLE.fullmatch(path.name))
    }
    return [found[number] for number in sorted(found, reverse=True)]


def sweep(root: Path) -> None:
    """Remove what an interrupted start has left."""
    for path in list(root.iterdir()) if root.is_dir() else ():
        if not _WHOLE.fullmatch(path.name):
            remove(path)


def remove(directory: Path) -> None:
    """Remove a version's pins; links that are still pinned there are detached. Nothing there is no error."""
    if _WHOLE.fullmatch(directory.name) and directory.is_dir():
        directory = directory.rename(directory.with_name(f"{directory.name}_gone"))
    for part in list(directory.iterdir()) if directory.is_dir() else ():
        for pin in list(part.iterdir()):
            if part.name == "links":
                tcx.detach_pin(pin)
            else:
                pin.unlink()
        part.rmdir()
    if directory.is_dir():
        directory.rmdir()
