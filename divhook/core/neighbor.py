"""Neighbours: which host holds an address. States of neighbour unreachability detection (RFC 4861, 7.3.2), for ARP.

    nothing known ─▶ INCOMPLETE ──claim──▶ REACHABLE ──60 s, idle──▶ STALE ──use──▶ PROBE ──claim──▶ REACHABLE
                        │                     └────60 s, in use─────────────────────▶ │
                        └──3 × silence──▶ FAILED ◀──3 × silence, or "not here"────────┘

An entry in REACHABLE, STALE or PROBE is usable: time alone never stops traffic. A claim is replaced by a higher
one only, whatever the state: FAILED keeps its claim as the bar for the next.
"""

from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass, field
from enum import Enum, auto

from divhook.core.addressing import ZERO_ADDRESS, Address, Mac
from divhook.core.transitions import TransitionTable
from divhook.core.wire.discovery import Claim


class NeighbourState(Enum):
    """What is believed of an entry's claim."""

    INCOMPLETE = auto()  # asking the subnet's group
    REACHABLE = auto()  # confirmed within the lifetime
    STALE = auto()  # usable; the next use asks its host
    PROBE = auto()  # usable; its host is being asked
    FAILED = auto()  # not usable; asked again when the negative time is over


class NeighbourEvent(Enum):
    """What can happen to an entry."""

    CONFIRMED = auto()  # the claiming host itself says so
    HINTED = auto()  # a third host names a higher claim
    IDLE = auto()  # lifetime over, not used within it
    USED = auto()  # needed for a frame (or lifetime over and used within it)
    SILENT = auto()  # no answer to the last question
    HEARD = auto()  # no answer either, but frames from its host: the host is there, its agent is not
    DENIED = auto()  # its host says that it does not hold the address


_S, _E = NeighbourState, NeighbourEvent
TRANSITIONS: TransitionTable[NeighbourState, NeighbourEvent] = TransitionTable(
    {
        _S.INCOMPLETE: {_E.CONFIRMED: _S.REACHABLE, _E.HINTED: _S.STALE, _E.SILENT: _S.FAILED},
        _S.REACHABLE: {
            _E.CONFIRMED: _S.REACHABLE,
            _E.HINTED: _S.STALE,
            _E.IDLE: _S.STALE,
            _E.USED: _S.PROBE,
            _E.DENIED: _S.FAILED,
        },
        _S.STALE: {
            _E.CONFIRMED: _S.REACHABLE,
            _E.HINTED: _S.STALE,
            _E.USED: _S.PROBE,
            _E.DENIED: _S.FAILED,
        },
        _S.PROBE: {
            _E.CONFIRMED: _S.REACHABLE,
            _E.HINTED: _S.STALE,
            _E.SILENT: _S.FAILED,
            _E.HEARD: _S.REACHABLE,
            _E.DENIED: _S.FAILED,
        },
        _S.FAILED: {_E.CONFIRMED: _S.REACHABLE, _E.HINTED: _S.STALE, _E.USED: _S.INCOMPLETE},
    }
)
USABLE = frozenset({_S.REACHABLE, _S.STALE, _S.PROBE})


@dataclass(frozen=True, slots=True)
class Found:
    """A usable neighbour: send to `claim.host`; the guest's MAC is `claim.vmac`."""

    claim: Claim
    state: NeighbourState


@dataclass(slots=True)
class Neighbour:
    """One entry. Times are the `now` of the caller, in seconds. `found` is set exactly while the entry is usable."""

    address: Address
    state: NeighbourState = NeighbourState.FAILED
    claim: Claim | None = None  # the highest accepted so far
    found: Found | None = None
    gone: bool = False  # its host gave this very claim up
    used_s: float = float("-inf")
    confirmed_s: float = float("-inf")
    heard_s: float = float("-inf")  # a frame from its host, with this address as its source
    retry_at_s: float = float("-inf")  # FAILED: no question before this
    negative_s: float = 0.0  # FAILED: length of that wait, doubling
    due_s: float = float("inf")  # end of a REACHABLE entry's lifetime, or of a FAILED one's memory
    queued_s: float = float("inf")  # when the owner of the table looks at due_s
    next: Mac | None = None  # where its host says that it is about to move: frames from there pass, too
    next_until_s: float = float("-inf")
    asker: Address = ZERO_ADDRESS  # local endpoint on whose behalf the group is asked
    held: list[object] = field(default_factory=list)

    def step(self, event: NeighbourEvent) -> None:
        """Move along the table. Raises TransitionError, and then nothing has changed."""
        self.state = TRANSITIONS.next(self.state, event)
        usable = self.claim is not None and self.state in USABLE
        self.found = Found(self.claim, self.state) if usable and self.claim is not None else None

    def speaks_from(self, pmac: Mac, now: float) -> bool:
        """Whether frames of the address may come from that host."""
        if self.found is None:
            return False
        return pmac == self.found.claim.host or (pmac == self.next and now < self.next_until_s)


class NeighbourTable:
    """Entries by address, least recently used first. The bound is the caller's: see `overflow`."""

    def __init__(self, bound: int) -> None:
        self._bound = bound
        self._entries: OrderedDict[Address, Neighbour] = OrderedDict()
        self.get = self._entries.get

    def __len__(self) -> int:
        return len(self._entries)

    def __iter__(self) -> Iterator[Neighbour]:
        return iter(self._entries.values())

    def newest(self) -> Iterator[Neighbour]:
        """All, most recently used first."""
        return reversed(self._entries.values())

    def add(self, address: Address) -> Neighbour:
        """A new entry, FAILED and without a claim, as the most recently used."""
        entry = self._entries[address] = Neighbour(address)
        return entry

    def overflow(self) -> Neighbour | None:
        """The least recently used entry where there are more than the bound: the caller must remove it."""
        return next(iter(self._entries.values())) if len(self._entries) > self._bound else None

    def used(self, entry: Neighbour, now: float) -> None:
        """Note a use."""
        entry.used_s = now
        self._entries.move_to_end(entry.address)

    def remove(self, address: Address) -> Neighbour | None:
        """Forget an entry; returns it."""
        return self._entries.pop(address, None)


def transition_table_markdown() -> str:
    """The states of an entry for docs/protocol.md: a diagram and a table, both drawn from TRANSITIONS."""
    return f"```mermaid\n{TRANSITIONS.mermaid()}```\n\n{TRANSITIONS.markdown()}"
