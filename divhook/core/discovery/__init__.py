"""Discovery between hosts (docs/protocol.md): who holds an address, and who may say so. Sans-IO."""

from divhook.core.discovery.claims import ClaimState, Record
from divhook.core.discovery.events import (
    ClaimChanged,
    Event,
    Fenced,
    NeighbourChanged,
    Outcome,
    Released,
    Resolution,
    SourceConfirmed,
    SourceRefused,
    SourceVerdict,
    TentativeObjected,
    TentativePassed,
    Unfenced,
    UnknownHost,
    Unreachable,
    Yielded,
)
from divhook.core.discovery.limits import Limits
from divhook.core.discovery.machine import Discovery
from divhook.core.neighbor import Found, NeighbourState

__all__ = [
    "ClaimChanged",
    "ClaimState",
    "Discovery",
    "Event",
    "Fenced",
    "Found",
    "Limits",
    "NeighbourChanged",
    "NeighbourState",
    "Outcome",
    "Record",
    "Released",
    "Resolution",
    "SourceConfirmed",
    "SourceRefused",
    "SourceVerdict",
    "TentativeObjected",
    "TentativePassed",
    "Unfenced",
    "UnknownHost",
    "Unreachable",
    "Yielded",
]
