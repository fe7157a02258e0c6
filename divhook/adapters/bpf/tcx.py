"""tcx links (Linux 6.6), pinned as <program>_<ifindex> so that they outlive the agent."""

import contextlib
import os
from collections.abc import Mapping
from pathlib import Path

from divhook.adapters.bpf import syscall


def _pin(links: Path, program: str, ifindex: int) -> Path:
    return links / f"{program}_{ifindex}"


def _parse(pin: Path) -> tuple[str, int]:
    program, _, ifindex = pin.name.rpartition("_")
    return program, int(ifindex)


def attach(links: Path, program: str, program_fd: int, ifindex: int) -> None:
    """Put a program at the ingress of an interface, or exchange ours there. Raises BpfError."""
    pin = _pin(links, program, ifindex)
    held = syscall.open_pinned(pin)
    if held is not None:
        try:
            # An interface that has gone leaves a dead link behind, and its index may be another's by now.
            if syscall.link_update(held, program_fd):
                return
        finally:
            os.close(held)
        pin.unlink(missing_ok=True)
    fd = syscall.link_create(program_fd, ifindex)
    try:
        syscall.pin(fd, pin)
    finally:
        os.close(fd)


def detach(links: Path, program: str, ifindex: int) -> None:
    """Detach and unpin. Not an error where the link, or the interface, is gone."""
    detach_pin(_pin(links, program, ifindex))


def detach_pin(pin: Path) -> None:
    """The same for a link's pin, of whatever version."""
    held = syscall.open_pinned(pin)
    if held is not None:
        syscall.link_detach(held)
        os.close(held)
        with contextlib.suppress(FileNotFoundError):
            pin.unlink()


def take_over(source: Path, links: Path, programs: Mapping[str, int]) -> None:
    """Exchange the programs of another version's links, no frame between, and pin the links as this version's.

    Links of programs that this version has not, or whose interface has one of ours already, stay where they are.
    """
    for pin in sorted(source.iterdir()) if source.is_dir() else ():
        program, _ = _parse(pin)
        if program not in programs or (links / pin.name).exists():
            continue
        held = syscall.open_pinned(pin)
        if held is None:
            continue
        try:
            alive = syscall.link_update(held, programs[program])
        finally:
            os.close(held)
        if alive:
            pin.rename(links / pin.name)


def attached(links: Path) -> dict[int, str]:
    """Interfaces with a live link of ours, and the program's name. Pins of dead links are removed."""
    found: dict[int, str] = {}
    for pin in sorted(links.iterdir()) if links.is_dir() else ():
        program, ifindex = _parse(pin)
        held = syscall.open_pinned(pin)
        if held is None:
            continue
        alive = syscall.link_ifindex(held) == ifindex
        os.close(held)
        if alive:
            found[ifindex] = program
        else:
            pin.unlink(missing_ok=True)
    return found
