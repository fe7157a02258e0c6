"""What `divhook moves` shows: each move of a NIC from or to this host, with its timeline from both agents."""

import time
from collections import deque
from dataclasses import dataclass, field
from typing import Any

from divhook.core.addressing import Address, Mac, address_text, mac_text
from divhook.core.moves.messages import MAX_NOTES

MAX_RECORDS = 256
"""Moves that are remembered; the oldest is forgotten first."""


@dataclass(slots=True)
class MoveRecord:
    """One move of one NIC. at_s: of the wall clock. other: what the other host noted, once it has said so."""

    role: str  # "source" or "destination"
    guest: str
    mac: Mac
    peer: Mac | None = None
    address: Address | None = None
    state: str = ""
    began_s: float = field(default_factory=time.time)
    notes: list[tuple[float, str]] = field(default_factory=list)
    other: list[tuple[float, str]] = field(default_factory=list)
    copied: int = 0  # source: frames that were sent to the destination; destination: that came
    late: int = 0  # sent on after the guest ran there, by whichever way
    late_at_s: float = 0.0  # the last of them
    unread: int = 0  # source: of them, those that were in the tap at the pause

    def note(self, text: str, at_s: float | None = None) -> None:
        """One line more, of MAX_NOTES with that of the late packets."""
        if len(self.notes) < MAX_NOTES - 1:
            self.notes.append((time.time() if at_s is None else at_s, text))

    def lines(self) -> list[tuple[float, str]]:
        """(wall clock, text) of what this host has to say of it."""
        if not self.late_at_s:
            return self.notes
        what = "sent on" if self.role == "source" else "came"
        return [*self.notes, (self.late_at_s, f"the last late packet {what}, of {self.late}")]

    def row(self) -> dict[str, Any]:
        """For the control socket."""
        here, there = ("source", "destination") if self.role == "source" else ("destination", "source")
        lines = [(at, here, text) for at, text in self.lines()] + [(at, there, text) for at, text in self.other]
        return {
            "guest": self.guest,
            "nic": mac_text(self.mac),
            "address": address_text(self.address) if self.address is not None else None,
            "role": self.role,
            "peer": mac_text(self.peer) if self.peer is not None else None,
            "state": self.state,
            "began": self.began_s,
            "copied": self.copied,
            "unread": self.unread,
            "late": self.late,
            "timeline": [
                {"at": round(at, 6), "ms": round((at - self.began_s) * 1e3, 2), "where": where, "what": text}
                for at, where, text in sorted(lines)
            ],
        }


def records() -> deque[MoveRecord]:
    """An empty list of them."""
    return deque(maxlen=MAX_RECORDS)
