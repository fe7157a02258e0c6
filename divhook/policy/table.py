"""The compiled policy of one cell on one host, and the look-up that a frame costs: what the kernel does, in Python.

Four maps, all of whose keys and values are fixed-size numbers:

    locals      identity of a local endpoint → for each direction its scope and its three defaults
    identities  identity of a remote endpoint → its class            (every known one; class 0: no rule singles it out)
    prefixes    external prefix → class of the addresses whose longest match it is
    entries     (scope, remote, protocol and port prefix) → verdict  (longest prefix match)

A *scope* stands for local endpoints to which the same rules of one direction apply, a *class* for remote ends that are
the same peers of rules: so the table grows with rules that differ, not with endpoints. `remote` is a class (its highest
bit is set) or a Relation, for rules whose peers are any, cell, external or host as a whole. Scopes, classes and rule
numbers are hashes of content: a restarted agent finds the same numbers, and lines that move in a file change nothing.

A frame that starts a flow costs, per side that is enforced on this host, and whatever the number of rules:

    0  scope and defaults of the local end        in the value of its port, which the frame's way has read already
    1  class of the remote end                    identities[cell, identity]; external: prefixes[cell, address] (LPM);
                                                  the host has none: no prefix or name means it
    2  a := entries[scope, class, proto, port]    (LPM; only where the class is not 0)
    3  b := entries[scope, relation, proto, port] (LPM)
    →  a denying entry of the two, a first; else an allowing one, a first; else the default of the relation

Scope 0 has no rules: steps 1 to 3 are left out. An identity that `identities` does not have is unknown: the frame waits
at the agent. The relation is read off the two addresses by the address plan: one subnet, one cell, two cells, external;
and the host knows its own.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Generic, NamedTuple, TypeVar

from divhook.core.addressing import Address
from divhook.core.verdict import Direction, Relation
from divhook.policy.prefixes import ADDRESS_BITS, covering, pack, unpack
from divhook.policy.services import SPACE_BITS

MAX_ENTRIES = 1 << 20
"""Entries of one cell on one host. Past it the agent keeps the policy that it had."""
MAX_PREFIXES = 1 << 18
"""External prefixes of one cell: CIDRs, their exceptions, and addresses of DNS names."""

K = TypeVar("K")
V = TypeVar("V")


class EntryKey(NamedTuple):
    """Key of `entries`. length: significant bits of protocol and port, 0 (any protocol) to 24."""

    scope: int
    remote: int
    protocol: int
    port: int
    length: int


class Verdict(NamedTuple):
    """Value of `entries`. rule: Rule.number of the rule that decides."""

    allow: bool
    log: bool
    rule: int


class Scope(NamedTuple):
    """One direction of a local endpoint: its rules, and whether each relation is allowed where none speaks."""

    rules: int
    subnet: bool
    cell: bool
    external: bool

    def default(self, relation: Relation) -> bool:
        """What holds where no rule speaks. Between cells, and of hosts: nothing."""
        return {Relation.SUBNET: self.subnet, Relation.CELL: self.cell, Relation.EXTERNAL: self.external}.get(
            relation, False
        )


class LocalScopes(NamedTuple):
    """Value of `locals`."""

    ingress: Scope
    egress: Scope


class Decision(NamedTuple):
    """What the look-up found. verdict: None where the default decided. lookups: of maps."""

    allow: bool
    verdict: Verdict | None
    lookups: int


class UnknownIdentityError(LookupError):
    """The table has never heard of an identity: the frame has to wait until it has."""


@dataclass(frozen=True, slots=True)
class Changes(Generic[K, V]):
    """What one map gained, got another value for, and lost (with the value it had)."""

    added: Mapping[K, V] = field(default_factory=dict)
    changed: Mapping[K, V] = field(default_factory=dict)
    removed: Mapping[K, V] = field(default_factory=dict)

    def __bool__(self) -> bool:
        return bool(self.added or self.changed or self.removed)


class Step(NamedTuple):
    """One write of a map, by name: value None removes the key."""

    map: str
    key: object
    value: object | None


@dataclass(frozen=True, slots=True)
class Delta:
    """What changed in the four maps."""

    locals: Changes[int, LocalScopes] = Changes()
    identities: Changes[int, int] = Changes()
    prefixes: Changes[int, int] = Changes()
    entries: Changes[EntryKey, Verdict] = Changes()
    denied: Mapping[EntryKey, Verdict] = field(default_factory=dict)
    """Allowing entries among those removed that lie within a denying one: its verdict."""

    def __bool__(self) -> bool:
        return bool(self.locals or self.identities or self.prefixes or self.entries)

    def steps(self) -> Iterator[Step]:
        """Single writes in an order in which a flow with the same verdict before and after has it at every moment.

        What is denied, then what is allowed, then who belongs where, then removals. A deny takes nothing from what
        stays allowed, as below a denying entry there are only denying ones. Old allowing entries below a new one are
        made denying first: else one of them could pass what an entry that is allowing now had denied. Allowing entries
        go before the denying ones that may have held them down.
        """
        yield from (Step("entries", key, verdict) for key, verdict in self.denied.items())
        written = self.entries.added | self.entries.changed  # type: ignore[operator]
        for allow in (False, True):
            yield from (Step("entries", key, v) for key, v in written.items() if v.allow is allow)
        for name in ("identities", "prefixes", "locals"):
            changes = getattr(self, name)
            for part in (changes.added, changes.changed):
                yield from (Step(name, key, value) for key, value in part.items())
            yield from (Step(name, key, None) for key in changes.removed)
        for allow in (True, False):
            yield from (Step("entries", key, None) for key, v in self.entries.removed.items() if v.allow is allow)


class PolicyMap(dict[K, V], Generic[K, V]):
    """A map that remembers what it held before the change under way."""

    def __init__(self, entries: Mapping[K, V] | None = None) -> None:
        super().__init__(entries or {})
        self._before: dict[K, V | None] = {}

    def put(self, key: K, value: V) -> None:
        """Set a key."""
        old = self.get(key)
        if old != value:
            self._before.setdefault(key, old)
            self[key] = value

    def drop(self, key: K) -> None:
        """Remove a key, if it is there."""
        if (old := self.pop(key, None)) is not None:
            self._before.setdefault(key, old)

    def changes(self) -> Changes[K, V]:
        """What has changed since this was asked last."""
        before, self._before = self._before, {}
        added: dict[K, V] = {}
        changed: dict[K, V] = {}
        removed: dict[K, V] = {}
        for key, old in before.items():
            new = self.get(key)
            if old is None and new is not None:
                added[key] = new
            elif old is not None and new is None:
                removed[key] = old
            elif old is not None and new is not None and old != new:
                changed[key] = new
        return Changes(added, changed, removed)


@dataclass(slots=True)
class Table:
    """The four maps. prefixes has packed prefixes (policy/prefixes.py) as keys."""

    locals: PolicyMap[int, LocalScopes] = field(default_factory=PolicyMap)
    identities: PolicyMap[int, int] = field(default_factory=PolicyMap)
    prefixes: PolicyMap[int, int] = field(default_factory=PolicyMap)
    entries: PolicyMap[EntryKey, Verdict] = field(default_factory=PolicyMap)

    def changes(self) -> Delta:
        """What has changed since this was asked last."""
        entries = self.entries.changes()
        denied = {k: v for k, old in entries.removed.items() if old.allow and (v := self._around(k)) and not v.allow}
        return Delta(self.locals.changes(), self.identities.changes(), self.prefixes.changes(), entries, denied)

    def _around(self, key: EntryKey) -> Verdict | None:
        return self._longest(key.scope, key.remote, pack(key.protocol << 16 | key.port, key.length))

    def over_bounds(self) -> str:
        """Which bound the table exceeds, for people; empty where it is within all."""
        for what, size, bound in (
            ("table entries", len(self.entries), MAX_ENTRIES),
            ("external prefixes", len(self.prefixes), MAX_PREFIXES),
        ):
            if size > bound:
                return f"{size} {what}: at most {bound} (fewer port ranges, or fewer rules with many peers)"
        return ""

    def decide(
        self, direction: Direction, local: int, relation: Relation, remote: int | Address, protocol: int, port: int
    ) -> Decision:
        """The look-up. remote: an identity's number, or an address. Raises UnknownIdentityError."""
        scopes = self.locals.get(local)
        if scopes is None:
            raise UnknownIdentityError(f"identity {local:016x} is not local")
        scope = scopes.ingress if direction is Direction.INGRESS else scopes.egress
        if not scope.rules:
            return Decision(scope.default(relation), None, 0)
        found: int | None
        if relation is Relation.HOST:
            found = 0
        elif isinstance(remote, bytes):
            address = pack(int.from_bytes(remote, "big"), ADDRESS_BITS)
            found = next((self.prefixes[p] for p in covering(address, 32) if p in self.prefixes), 0)
        else:
            found = self.identities.get(remote)
        if found is None:
            raise UnknownIdentityError(f"identity {remote!r} is not known")
        point = pack(protocol << 16 | port, SPACE_BITS)
        a = self._longest(scope.rules, found, point) if found else None
        b = self._longest(scope.rules, remote_of(relation), point)
        lookups = 3 if found else 2
        matches = [v for v in (a, b) if v is not None]
        verdict = next((v for v in matches if not v.allow), matches[0] if matches else None)
        return Decision(scope.default(relation) if verdict is None else verdict.allow, verdict, lookups)

    def may_reach(self, local: int, external: Address) -> bool:
        """Whether anything at all may pass between a local identity and an external address, either way.

        It looks at every entry: the caller remembers the answer.
        """
        scopes = self.locals.get(local)
        if scopes is None:
            return False
        address = pack(int.from_bytes(external, "big"), ADDRESS_BITS)
        found = next((self.prefixes[p] for p in covering(address, 32) if p in self.prefixes), 0)
        remotes = {int(Relation.EXTERNAL), found} - {0}
        return any(s.external for s in scopes) or any(
            verdict.allow and key.remote in remotes and key.scope in (s.rules for s in scopes)
            for key, verdict in self.entries.items()
        )

    def _longest(self, scope: int, remote: int, within: int) -> Verdict | None:
        for packed in covering(within, SPACE_BITS):
            if verdict := self.entries.get(entry_key(scope, remote, packed)):
                return verdict
        return None


def remote_of(relation: Relation) -> int:
    """The `remote` under which rules for all of a relation stand: same subnet and same cell are one."""
    return Relation.CELL if relation is Relation.SUBNET else relation


def entry_key(scope: int, remote: int, packed: int) -> EntryKey:
    """Key of a packed prefix of protocol and port."""
    value, length = unpack(packed)
    return EntryKey(scope, int(remote), value >> 16, value & 0xFFFF, length)
