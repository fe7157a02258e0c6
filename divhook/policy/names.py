"""DNS names of rules to addresses, with what is known of each: sans-IO, the time is an argument.

    want(cell, names)        the names that a cell's rules have now
    take_due(now)            exact names to be resolved now; each is answered() or failed() once
    learned(cell, name, …)   what a guest of the cell got from the local resolver: the only source of *.example.net
    addresses(cell)          every name of the cell with its addresses, as CellTable.set_names takes them

An answer holds for its TTL, no shorter than MIN_TTL_S and no longer than MAX_TTL_S, and is then asked for again. An
address that is in the newest answer no more stays for KEEP_S: names of many servers give a few of them each time, in
turns, and connections to the others are not to end. Where no answer comes, the last one stays for STALE_S (RFC 8767),
and the state says so. That a name does not exist is an answer. What one cell's guests got says nothing to another cell.

Everything is bounded: names, addresses of a name, questions at once. What finds no room is counted and matches nobody.
"""

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from divhook.core.addressing import Address, address_text
from divhook.policy.peers import DnsName

MIN_TTL_S = 30.0
"""No name is asked for more often, whatever its TTL."""
MAX_TTL_S = 3600.0
"""No answer goes unasked longer."""
KEEP_S = 3600.0
"""How long an address outlives the answers that it was in."""
STALE_S = 86_400.0
"""How long the last answer stays while none comes. RFC 8767, 5: one to three days."""
RETRY_S = (5.0, 300.0)
"""After a failure: first, and doubled up to."""
EXPIRE_S = 60.0
"""How much longer than that an address may stay."""
MAX_NAMES = 4096
"""Names of the rules of all cells of a host, wildcards included."""
MAX_ADDRESSES = 256
"""Addresses of an exact name."""
MAX_WILDCARD_ADDRESSES = 4096
"""Addresses of all names below a wildcard, of one cell."""
MAX_QUESTIONS = 16
"""Names that are asked for at once."""


class NameState(StrEnum):
    """What is known of a name."""

    PENDING = "pending"  # no answer yet
    GOOD = "good"  # the last question was answered
    EMPTY = "no address"  # it was, and there is none: the name does not exist, or has no IPv4 address
    STALE = "stale"  # the last question failed: what was known before holds for a while
    FAILED = "failed"  # … and nothing is known
    LEARNED = "learned"  # a wildcard: from what guests resolve
    NO_ROOM = "no room"  # beyond MAX_NAMES


@dataclass(slots=True)
class _Name:
    """An exact name, of all cells. going_s: until when each address stays."""

    due_s: float
    going_s: dict[Address, float] = field(default_factory=dict)
    answered: bool = False
    failures: int = 0
    asking: bool = False
    problem: str = ""
    evicted: int = 0


@dataclass(slots=True)
class _Learned:
    """What guests of one cell got, by name of a rule."""

    going_s: dict[Address, float] = field(default_factory=dict)
    evicted: int = 0


@dataclass(frozen=True, slots=True)
class NameRow:
    """What is known of one name of one cell. evicted: addresses that found no room."""

    cell: str
    name: str
    state: NameState
    addresses: tuple[Address, ...]
    problem: str = ""
    evicted: int = 0

    def plain(self) -> dict[str, object]:
        """For JSON."""
        return {
            "cell": self.cell,
            "name": self.name,
            "state": str(self.state),
            "addresses": [address_text(a) for a in self.addresses],
            "problem": self.problem,
            "evicted": self.evicted,
        }


class NameBook:
    """All names of a host's policies. usable: whether an address of an answer may stand for something external."""

    def __init__(self, usable: Callable[[Address], bool]) -> None:
        self._usable = usable
        self._wanted: dict[str, tuple[DnsName, ...]] = {}
        self._names: dict[str, _Name] = {}
        self._learned: dict[tuple[str, str], _Learned] = {}
        self._no_room: set[str] = set()
        self._restored: dict[str, dict[Address, float]] = {}
        self._changed: set[str] = set()
        self._asking = 0

    # --- what is wanted ------------------------------------------------------------------------------------------

    def want(self, cell: str, names: Collection[DnsName], now: float) -> None:
        """The names of a cell's rules, all of them."""
        wanted = tuple(sorted(set(names), key=lambda n: n.name))
        if wanted == self._wanted.get(cell, ()):
            return
        self._wanted[cell] = wanted
        if not wanted:
            del self._wanted[cell]
        everywhere = dict.fromkeys(n.name for each in self._wanted.values() for n in each)
        admitted = [n for n in everywhere if n in self._names or _is_wildcard(n)][:MAX_NAMES]
        fresh = [n for n in everywhere if n not in self._names and not _is_wildcard(n)]
        room = MAX_NAMES - len(admitted)
        for name in fresh[:room]:
            self._names[name] = _Name(now, going_s=self._restored.pop(name, {}))
        self._no_room = everywhere.keys() - set(admitted) - set(fresh[:room])
        for name in [n for n in self._names if n not in everywhere]:
            self._asking -= self._names.pop(name).asking
        for key in [k for k in self._learned if k[0] == cell and DnsName(k[1]) not in wanted]:
            del self._learned[key]
        self._changed.add(cell)

    def take_due(self, now: float) -> list[str]:
        """Exact names to be asked for now, those first that wait longest. Each is then answered() or failed()."""
        due = sorted((e.due_s, n) for n, e in self._names.items() if e.due_s <= now and not e.asking)
        names = [name for _, name in due[: MAX_QUESTIONS - self._asking]]
        for name in names:
            self._names[name].asking = True
        self._asking += len(names)
        return names

    def next_timer(self) -> float | None:
        """When the next name is due. None: there is none, or no room for a question until one is done."""
        if self._asking >= MAX_QUESTIONS:
            return None
        return min((e.due_s for e in self._names.values() if not e.asking), default=None)

    # --- what is heard -------------------------------------------------------------------------------------------

    def answered(self, name: str, addresses: Collection[Address], ttl_s: float, now: float) -> None:
        """A question was answered; no address: there is none."""
        entry = self._done(name)
        if entry is None:
            return
        ttl_s = min(max(ttl_s, MIN_TTL_S), MAX_TTL_S)
        entry.due_s, entry.answered, entry.failures, entry.problem = now + ttl_s, True, 0, ""
        found = [a for a in dict.fromkeys(addresses) if self._usable(a)]
        if len(found) < len(addresses):
            entry.problem = "answers with addresses that are not external are not used"
        going_s = {a: min(t, now + KEEP_S) for a, t in entry.going_s.items()}
        going_s.update(dict.fromkeys(found, now + ttl_s + STALE_S))
        if self._exchange(entry, going_s, MAX_ADDRESSES):
            self._changed.update(self._cells_of(name))

    def failed(self, name: str, problem: str, now: float) -> None:
        """A question was not answered. problem: why, for people."""
        entry = self._done(name)
        if entry is not None:
            first, last = RETRY_S
            entry.due_s = now + min(first * 2.0**entry.failures, last)
            entry.failures, entry.problem = min(entry.failures + 1, 16), problem

    def learned(self, cell: str, name: str, addresses: Collection[Address], ttl_s: float, now: float) -> None:
        """A guest of a cell got these addresses for a name from the local resolver, just now.

        Call it before the guest has the answer, and the first packet finds the rule in force.
        """
        found = [a for a in dict.fromkeys(addresses) if self._usable(a)]
        goes_s = now + min(max(ttl_s, MIN_TTL_S), MAX_TTL_S) + KEEP_S
        for wanted in self._wanted.get(cell, ()):
            if found and wanted.name not in self._no_room and wanted.matches(name):
                entry = self._learned.setdefault((cell, wanted.name), _Learned())
                bound = MAX_WILDCARD_ADDRESSES if _is_wildcard(wanted.name) else MAX_ADDRESSES
                if self._exchange(entry, entry.going_s | dict.fromkeys(found, goes_s), bound):
                    self._changed.add(cell)

    def expire(self, now: float) -> None:
        """Let go what has stayed long enough. To be called every EXPIRE_S."""
        for name, entry in self._names.items():
            if _let_go(entry, now):
                self._changed.update(self._cells_of(name))
        for (cell, _), learned in self._learned.items():
            if _let_go(learned, now):
                self._changed.add(cell)

    # --- what is known -------------------------------------------------------------------------------------------

    def cells(self) -> list[str]:
        """Cells that want names."""
        return list(self._wanted)

    def take_changed(self) -> list[str]:
        """Cells whose addresses are others than when this was asked last."""
        changed, self._changed = sorted(self._changed), set()
        return changed

    def addresses(self, cell: str) -> dict[DnsName, frozenset[Address]]:
        """Every name of a cell that has addresses."""
        found = {wanted: frozenset(self._known(cell, wanted.name)) for wanted in self._wanted.get(cell, ())}
        return {name: addresses for name, addresses in found.items() if addresses}

    def names_at(self, cell: str, address: Address) -> tuple[str, ...]:
        """Names of a cell's rules by which an address is known."""
        return tuple(n.name for n in self._wanted.get(cell, ()) if address in self._known(cell, n.name))

    def rows(self) -> list[NameRow]:
        """Every name of every cell, for people."""
        return [self._row(cell, w.name) for cell in sorted(self._wanted) for w in self._wanted[cell]]

    def _row(self, cell: str, name: str) -> NameRow:
        addresses = tuple(sorted(self._known(cell, name)))
        learned = self._learned.get((cell, name), _Learned())
        entry = self._names.get(name)
        if entry is None:
            problem = f"more than {MAX_NAMES} names in the rules of this host" if name in self._no_room else ""
            state = NameState.NO_ROOM if problem else NameState.LEARNED
            return NameRow(cell, name, state, addresses, problem, learned.evicted)
        if entry.failures:
            state = NameState.STALE if entry.going_s else NameState.FAILED
        elif not entry.answered:
            state = NameState.STALE if entry.going_s else NameState.PENDING
        else:
            state = NameState.GOOD if entry.going_s else NameState.EMPTY
        return NameRow(cell, name, state, addresses, entry.problem, entry.evicted + learned.evicted)

    # --- over a restart ------------------------------------------------------------------------------------------

    def dump(self) -> dict[str, dict[str, float]]:
        """Exact names with their addresses, and until when they stay: what the next agent begins with."""
        return {n: {address_text(a): t for a, t in e.going_s.items()} for n, e in self._names.items() if e.going_s}

    def restore(self, known: Mapping[str, Mapping[Address, float]]) -> None:
        """What an agent before this one knew, until when. It counts as stale. Before the first want()."""
        kept = list(known.items())[:MAX_NAMES]
        latest = {n: sorted(a.items(), key=lambda pair: -pair[1])[:MAX_ADDRESSES] for n, a in kept}
        self._restored = {n: {a: t for a, t in pairs if self._usable(a)} for n, pairs in latest.items()}

    # -------------------------------------------------------------------------------------------------------------

    def _done(self, name: str) -> _Name | None:
        entry = self._names.get(name)
        if entry is not None and entry.asking:
            entry.asking = False
            self._asking -= 1
        return entry

    def _known(self, cell: str, name: str) -> set[Address]:
        exact, learned = self._names.get(name), self._learned.get((cell, name))
        return set(exact.going_s if exact else ()).union(learned.going_s if learned else ())

    def _cells_of(self, name: str) -> list[str]:
        return [cell for cell, wanted in self._wanted.items() if DnsName(name) in wanted]

    @staticmethod
    def _exchange(entry: _Name | _Learned, going_s: dict[Address, float], bound: int) -> bool:
        """Other addresses, those that stay longest. Whether the set has changed."""
        if len(going_s) > bound:
            entry.evicted += len(going_s) - bound
            going_s = dict(sorted(going_s.items(), key=lambda pair: (-pair[1], pair[0]))[:bound])
        changed = going_s.keys() != entry.going_s.keys()
        entry.going_s = going_s
        return changed


def _let_go(entry: _Name | _Learned, now: float) -> bool:
    gone = [a for a, t in entry.going_s.items() if t <= now]
    for address in gone:
        del entry.going_s[address]
    return bool(gone)


def _is_wildcard(name: str) -> bool:
    return name.startswith("*.")
