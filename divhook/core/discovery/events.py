"""What discovery tells its shell: answers to calls, and events. Frozen values.

`items` are the opaque values that the shell gave to be held, in the order of their coming.
"""

from dataclasses import dataclass
from enum import Enum, auto

from divhook.core.addressing import Address, Mac
from divhook.core.neighbor import Found, NeighbourState
from divhook.core.reasons import DropReason
from divhook.core.wire.discovery import Claim


class Outcome(Enum):
    """Answer where no drop reason applies."""

    PENDING = auto()  # asked; what was given is held and comes back in an event
    DELIVER = auto()  # the source check passed


Resolution = Found | Outcome | DropReason
"""Found: send there. Outcome.PENDING. NEGATIVE_CACHED, RESOLVE_RATE_*, HOLD_*: not held, drop with it."""
SourceVerdict = Outcome | DropReason
"""Outcome.DELIVER, Outcome.PENDING, or the reason to drop."""


@dataclass(frozen=True, slots=True)
class Released:
    """An address that was asked for is known now (items may be empty). claim.host may be the own pmac."""

    address: Address
    claim: Claim
    items: tuple[object, ...]


@dataclass(frozen=True, slots=True)
class Unreachable:
    """Nobody answered for an address: drop the items with `reason`; host unreachable where they were routed."""

    address: Address
    items: tuple[object, ...]
    reason: DropReason


@dataclass(frozen=True, slots=True)
class SourceConfirmed:
    """The sending host holds the source address: deliver the items."""

    address: Address
    pmac: Mac
    items: tuple[object, ...]


@dataclass(frozen=True, slots=True)
class SourceRefused:
    """It does not, or was silent: drop the items with `reason`."""

    address: Address
    pmac: Mac
    items: tuple[object, ...]
    reason: DropReason


@dataclass(frozen=True, slots=True)
class Fenced:
    """Another host holds a better claim of a local address: its port passes nothing. Loud."""

    address: Address
    owner: Claim


@dataclass(frozen=True, slots=True)
class Unfenced:
    """The local endpoint is active again, with a new claim."""

    address: Address


@dataclass(frozen=True, slots=True)
class Yielded:
    """An address that moves between endpoints has been taken by one of another host: it is not held here any more."""

    address: Address
    owner: Claim


@dataclass(frozen=True, slots=True)
class ClaimChanged:
    """A local endpoint has a new claim or fence: save `Discovery.records`."""

    address: Address
    claim: Claim


@dataclass(frozen=True, slots=True)
class TentativePassed:
    """Nobody objected to a tentative address: call `confirm`."""

    address: Address


@dataclass(frozen=True, slots=True)
class TentativeObjected:
    """Another endpoint holds the address, or wins it: the tentative claim is withdrawn; choose another."""

    address: Address
    holder: Claim


@dataclass(frozen=True, slots=True)
class NeighbourChanged:
    """An entry has another claim, or became usable or not. state None: forgotten."""

    address: Address
    claim: Claim | None
    state: NeighbourState | None


@dataclass(frozen=True, slots=True)
class UnknownHost:
    """Data from a pmac that never authenticated: the shell may challenge it. At most one per second and pmac."""

    pmac: Mac


Event = (
    Released
    | Unreachable
    | SourceConfirmed
    | SourceRefused
    | Fenced
    | Unfenced
    | Yielded
    | ClaimChanged
    | TentativePassed
    | TentativeObjected
    | NeighbourChanged
    | UnknownHost
)
