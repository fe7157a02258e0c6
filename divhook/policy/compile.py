"""A cell's policy to its table (table.py), kept in step with every change of rules, endpoints and DNS answers.

    CellTable.set_policy        the files changed
    …add_local, remove_local    an identity of the cell has its first endpoint here, or lost its last
    …add_remote, remove_remote  an identity is heard of, or forgotten; those of local endpoints are remote ends, too
    …set_names                  what the DNS names of rules resolve to

Each returns the Delta that it made; the table is then what compiling everything afresh would give (a property test). A
change costs what it touches: a rule is taken out of, or put into, the programs (paint.py) of those scopes and classes
that it speaks of. A peer or an endpoint that no rule had before gives the ends that it matches another class or scope,
whose programs are made anew.
"""

from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Hashable, Iterable, Mapping
from functools import partial
from operator import attrgetter
from typing import Generic, TypeVar

from divhook.core.addressing import Address
from divhook.core.verdict import Direction, Relation
from divhook.policy.cell import CellPolicy, Rule
from divhook.policy.external import ExternalPrefixes
from divhook.policy.identity import Identity, content_number
from divhook.policy.paint import Program
from divhook.policy.peers import ALL, EXTERNAL, Anyone, CellPeer, Cidr, DnsName, OwnHost, Peer, Selection, content_text
from divhook.policy.table import Delta, LocalScopes, Scope, Table

RELATIONS = (Relation.CELL, Relation.OTHER, Relation.EXTERNAL, Relation.HOST)
"""Those that are a `remote` of their own: the same subnet is part of the cell."""
_BROAD: Mapping[Peer, tuple[Relation, ...]] = {
    Anyone(): (Relation.CELL, Relation.OTHER, Relation.EXTERNAL),
    ALL: (Relation.CELL,),
    EXTERNAL: (Relation.EXTERNAL,),
    OwnHost(): (Relation.HOST,),
}
DIRECTIONS = (Direction.INGRESS, Direction.EGRESS)

Key = TypeVar("Key", bound=Hashable)
Part = TypeVar("Part", bound=Hashable)
_Side = tuple[Direction, Selection]


def split_peers(peers: Iterable[Peer]) -> tuple[frozenset[Relation], tuple[Peer, ...]]:
    """Peers as the relations that they take whole, and those that single somebody out of the other relations."""
    peers = tuple(peers)
    broad = frozenset(r for p in peers for r in _BROAD.get(p, ()))
    return broad, tuple(p for p in peers if p not in _BROAD and _home(p) not in broad)


def _home(peer: Peer) -> Relation:
    if isinstance(peer, Selection):
        return Relation.CELL
    return Relation.OTHER if isinstance(peer, CellPeer) else Relation.EXTERNAL


class _Parts:
    """A rule as the index has it: its own sides, and its peers as whole relations and single ones, groups bound."""

    __slots__ = ("broad", "remotes", "rule", "sides", "single")

    def __init__(self, rule: Rule, policy: CellPolicy) -> None:
        self.rule = rule
        self.sides: list[_Side] = [(rule.direction, policy.bind(e)) for e in rule.endpoints]
        self.broad, single = split_peers(rule.peers)
        self.single: list[Peer] = [policy.bind(p) if isinstance(p, Selection) else p for p in single]
        self.remotes: list[Peer | Relation] = [*self.broad, *self.single]


class _Kinds(Generic[Key, Part]):
    """Which parts of rules each end matches. Ends that match the same parts are of one kind, which has a number."""

    def __init__(self, number: Callable[[frozenset[Part]], int]) -> None:
        self._number = number
        self._count: Counter[int] = Counter()
        self._touched: set[int] = set()
        self._known: set[int] = set()
        self.of: dict[Key, frozenset[Part]] = {}
        self.numbers: dict[Key, int] = {}
        self.parts: dict[int, frozenset[Part]] = {}
        self.having: defaultdict[Part, set[int]] = defaultdict(set)

    def put(self, key: Key, matched: frozenset[Part] | None) -> int:
        """An end and what it matches (None: the end is gone). Returns its kind; 0 matches nothing."""
        number = self._number(matched) if matched else 0
        if matched is not None and number:
            self._count[number] += 1
            if number not in self.parts:
                self.parts[number] = matched
                for part in matched:
                    self.having[part].add(number)
        self.of.pop(key, None)
        if old := self.numbers.pop(key, 0):
            self._count[old] -= 1
        self._touched.update((number, old))
        if matched is not None:
            self.of[key], self.numbers[key] = matched, number
        return number

    def settle(self) -> tuple[list[int], list[int]]:
        """Kinds that have come and gone since this was asked last."""
        touched, self._touched = self._touched - {0}, set()
        unused = [n for n in touched if self._count[n] <= 0]
        for number in unused:
            del self._count[number]
            for part in self.parts.pop(number):
                self.having[part].discard(number)
                if not self.having[part]:
                    del self.having[part]
        come = [n for n in touched if n in self.parts and n not in self._known]
        gone = [n for n in unused if n in self._known]
        self._known.update(come)
        self._known.difference_update(gone)
        return come, gone


class CellTable:
    """One cell's compiled policy on this host."""

    def __init__(self, cell: str) -> None:
        self.table = Table()
        self.policy = CellPolicy(cell)
        self.rules: dict[int, Rule] = {}
        """By number. Of rules that say the same, the first in file order."""
        self._parts: dict[int, _Parts] = {}
        self._order: dict[int, int] = {}
        self._locals: dict[int, Identity] = {}
        self._remotes: dict[int, Identity] = {}
        self._external = ExternalPrefixes()
        self._index: dict[_Side, dict[Peer | Relation, dict[int, Rule]]] = {}
        self._peers: Counter[Peer] = Counter()
        self._guests: set[Peer] = set()
        self._texts: dict[Peer, str] = {}
        self._scopes = {d: _Kinds[int, Selection](partial(self._hash, str(d))) for d in DIRECTIONS}
        self._classes = _Kinds[tuple[str, int], Peer](partial(self._hash, "class"))
        self._programs: defaultdict[int, dict[int, Program]] = defaultdict(dict)

    # --- what changes --------------------------------------------------------------------------------------------

    def set_policy(self, policy: CellPolicy) -> list[Delta]:
        """The cell's policy is another one. Returns changes to be written one after the other.

        One key of a map changes at a time, so they are made in stages, and each leaves verdicts alone but the third:
        new scopes, then new classes (by what only the new rules name), both with the old rules; the rules and defaults;
        then classes and scopes without what only the old rules named. A change of one rule rarely needs more than two.
        """
        rules: dict[int, Rule] = {}
        for rule in sorted(policy.rules, key=attrgetter("place")):
            rules.setdefault(rule.number, rule)
        again = _moved([n for n in self.rules if n in rules], [n for n in rules if n in self.rules])
        groups = {g for g in {*policy.groups, *self.policy.groups} if policy.groups.get(g) != self.policy.groups.get(g)}
        if groups:
            again |= {n for n, rule in rules.items() if n in self.rules and _names_group(rule, groups)}
        old = {n: self._parts[n] for n in self.rules if n not in rules or n in again}
        new = {n: _Parts(rule, policy) for n, rule in rules.items() if n not in self.rules or n in again}

        sides = {s for parts in (*old.values(), *new.values()) for s in parts.sides}
        peers = {p for parts in (*old.values(), *new.values()) for p in parts.single}
        had_sides, had_peers = {s for s in sides if s in self._index}, {p for p in peers if p in self._peers}
        self._count_peers(old.values(), new.values())
        deltas = []
        if come := {s for parts in new.values() for s in parts.sides} - had_sides:
            self._match_endpoints(set(), come)
            deltas.append(self._settle())
        if known := {p for p in peers if p in self._peers} - had_peers:
            self._match_peers(frozenset(), frozenset(known))
            deltas.append(self._settle())
        self.policy, self.rules, self._order = policy, rules, {n: at for at, n in enumerate(rules)}
        self._parts = {n: p for n, p in self._parts.items() if n not in old} | new
        self._reindex(old, new)
        self._change_programs(old, new)
        deltas.append(self._settle())
        if gone_peers := {p for p in had_peers if p not in self._peers}:
            self._match_peers(frozenset(gone_peers), frozenset())
            deltas.append(self._settle())
        if gone_sides := {s for s in had_sides if s not in self._index}:
            self._match_endpoints(gone_sides, set())
            deltas.append(self._settle())
        return [delta for delta in deltas if delta]

    def add_local(self, identity: Identity) -> Delta:
        """An identity of this cell has endpoints on this host."""
        self._locals[identity.number] = identity
        for direction in DIRECTIONS:
            matched = (e for d, e in self._index if d is direction and e.matches(identity))
            self._scopes[direction].put(identity.number, frozenset(matched))
        return self._settle()

    def remove_local(self, identity: Identity) -> Delta:
        """It has none any more."""
        self._locals.pop(identity.number, None)
        for direction in DIRECTIONS:
            self._scopes[direction].put(identity.number, None)
        return self._settle()

    def add_remote(self, identity: Identity) -> Delta:
        """An identity, of this or another cell, is known here."""
        self._remotes[identity.number] = identity
        self._classify(identity, frozenset(self._guests), frozenset())
        return self._settle()

    def remove_remote(self, identity: Identity) -> Delta:
        """It is forgotten."""
        self._remotes.pop(identity.number, None)
        self._classes.put(("identity", identity.number), None)
        self.table.identities.drop(identity.number)
        return self._settle()

    def remove_remote_number(self, number: int) -> Delta:
        """It is forgotten, by its number; no error where it was not known."""
        identity = self._remotes.get(number)
        return self.remove_remote(identity) if identity is not None else Delta()

    def identities(self) -> tuple[tuple[Identity, ...], tuple[Identity, ...]]:
        """Those that were added: local, remote."""
        return tuple(self._locals.values()), tuple(self._remotes.values())

    def set_names(self, addresses: Mapping[DnsName, Collection[Address]]) -> Delta:
        """What the names of rules resolve to, all of them: a name that is missing resolves to nothing."""
        self._place(self._external.set_names(addresses))
        return self._settle()

    # --- rules ---------------------------------------------------------------------------------------------------

    def _count_peers(self, old: Iterable[_Parts], new: Iterable[_Parts]) -> None:
        for parts in new:
            for peer in parts.single:
                self._peers[peer] += 1
                if isinstance(peer, (Selection, CellPeer)):
                    self._guests.add(peer)
        for parts in old:
            for peer in parts.single:
                self._peers[peer] -= 1
                if not self._peers[peer]:
                    del self._peers[peer]
                    self._guests.discard(peer)

    def _reindex(self, old: Mapping[int, _Parts], new: Mapping[int, _Parts]) -> None:
        for number, parts in old.items():
            for side in parts.sides:
                by_peer = self._index[side]
                for remote in parts.remotes:
                    del by_peer[remote][number]
                    if not by_peer[remote]:
                        del by_peer[remote]
                if not by_peer:
                    del self._index[side]
        for number, parts in new.items():
            for side in parts.sides:
                for remote in parts.remotes:
                    self._index.setdefault(side, {}).setdefault(remote, {})[number] = parts.rule

    def _change_programs(self, old: Mapping[int, _Parts], new: Mapping[int, _Parts]) -> None:
        touched: defaultdict[tuple[int, int], tuple[list[Rule], list[Rule]]] = defaultdict(lambda: ([], []))
        for place, changed in ((0, old), (1, new)):
            for parts in changed.values():
                for key in self._programs_of(parts):
                    touched[key][place].append(parts.rule)
        for (scope, remote), (out, into) in touched.items():
            program = self._programs[scope].get(remote)
            if program is None:
                program = self._programs[scope][remote] = Program(scope, remote, [])
            if not program.change(out, into, self.table.entries, self._order):
                del self._programs[scope][remote]

    def _programs_of(self, parts: _Parts) -> set[tuple[int, int]]:
        """(scope, remote) of every end that a rule speaks of, by the scopes and classes there are."""
        kinds = self._scopes[parts.rule.direction]
        remotes = {int(r) for r in parts.broad}.union(*(self._classes.having.get(p, ()) for p in parts.single))
        scopes: set[int] = set().union(*(kinds.having.get(e, ()) for _, e in parts.sides))
        return {(scope, remote) for scope in scopes for remote in remotes}

    # --- ends ----------------------------------------------------------------------------------------------------

    def _match_endpoints(self, gone: set[_Side], come: set[_Side]) -> None:
        for direction in DIRECTIONS:
            lost = frozenset(e for d, e in gone if d is direction)
            wanted = [e for d, e in come if d is direction]
            if not lost and not wanted:
                continue
            for number, identity in self._locals.items():
                matched = frozenset(e for e in wanted if e.matches(identity))
                before = self._scopes[direction].of[number]
                if matched or not before.isdisjoint(lost):
                    self._scopes[direction].put(number, (before - lost) | matched)

    def _match_peers(self, gone: frozenset[Peer], come: frozenset[Peer]) -> None:
        if not gone and not come:
            return
        if any(isinstance(p, (Selection, CellPeer)) for p in gone | come):
            for identity in self._remotes.values():
                self._classify(identity, come, gone)
        out, into = ([p for p in part if isinstance(p, Cidr)] for part in (gone, come))
        lost, new = ([p for p in part if isinstance(p, DnsName)] for part in (gone, come))
        self._place(self._external.change(out, into, lost, new))

    def _classify(self, identity: Identity, come: frozenset[Peer], gone: frozenset[Peer]) -> None:
        key = ("identity", identity.number)
        before = self._classes.of.get(key)
        kind = Selection if identity.cell == self.policy.cell else CellPeer
        matched = frozenset(p for p in come if isinstance(p, kind) and p.matches(identity))
        if before is None or matched or not before.isdisjoint(gone):
            number = self._classes.put(key, ((before or frozenset()) - gone) | matched)
            self.table.identities.put(identity.number, number)

    def _place(self, changed: Mapping[int, frozenset[Peer] | None]) -> None:
        for packed, matched in changed.items():
            number = self._classes.put(("prefix", packed), matched)
            if matched is None:
                self.table.prefixes.drop(packed)
            else:
                self.table.prefixes.put(packed, number)

    # --- programs ------------------------------------------------------------------------------------------------

    def _settle(self) -> Delta:
        """Programs for scopes and classes that have come, none for those that have gone; then what has changed."""
        classes, lost = self._classes.settle()
        for scope, programs in list(self._programs.items()):
            for number in lost:
                if number in programs:
                    programs.pop(number).erase(self.table.entries)
            if not programs:
                del self._programs[scope]
        for direction in DIRECTIONS:
            kinds = self._scopes[direction]
            before = set(kinds.parts)
            come, gone = kinds.settle()
            for number in gone:
                for program in self._programs.pop(number, {}).values():
                    program.erase(self.table.entries)
            for number in come:
                self._make(direction, number, (*RELATIONS, *self._classes.parts))
            for number in before.intersection(kinds.parts).difference(come):
                self._make(direction, number, classes)
        self._write_locals()
        return self.table.changes()

    def _make(self, direction: Direction, scope: int, remotes: Iterable[int]) -> None:
        rules = [self._index.get((direction, e), {}) for e in self._scopes[direction].parts[scope]]
        for remote in remotes:
            parts = self._classes.parts.get(remote) or (Relation(remote),)
            found = {n: r for by_peer in rules for part in parts for n, r in by_peer.get(part, {}).items()}
            if found:
                program = self._programs[scope][int(remote)] = Program(scope, int(remote), list(found.values()))
                program.write(self.table.entries, self._order)

    def _write_locals(self) -> None:
        for number, identity in self._locals.items():
            self.table.locals.put(number, LocalScopes(*(self._scope(d, number, identity.subnet) for d in DIRECTIONS)))
        for number in [n for n in self.table.locals if n not in self._locals]:
            self.table.locals.drop(number)

    def _scope(self, direction: Direction, number: int, subnet: str) -> Scope:
        ways = (Relation.SUBNET, Relation.CELL, Relation.EXTERNAL)
        defaults = (self.policy.default(subnet, direction, way).allow for way in ways)
        return Scope(self._scopes[direction].numbers[number], *defaults)

    def _hash(self, what: str, parts: Collection[Peer]) -> int:
        for part in parts:
            if part not in self._texts:
                self._texts[part] = content_text(part)
        texts = sorted(self._texts[p] for p in parts)
        return content_number([what, self.policy.cell, *texts], top=what == "class")


def _names_group(rule: Rule, groups: set[str]) -> bool:
    selections = [s for s in (*rule.endpoints, *rule.peers) if isinstance(s, Selection)]
    return any(s.group in groups for part in selections for s in (part, *part.exclude))


def _moved(before: list[int], after: list[int]) -> set[int]:
    """Numbers to place again, so that all stand in the new order: those between the common start and end."""
    if before == after:
        return set()
    start = next(i for i, pair in enumerate(zip(before, after, strict=True)) if pair[0] != pair[1])
    end = next(i for i, (a, b) in enumerate(zip(reversed(before), reversed(after), strict=True)) if a != b)
    return set(after[start : len(after) - end])


def compile_policy(
    policy: CellPolicy,
    local: Iterable[Identity],
    remote: Iterable[Identity],
    names: Mapping[DnsName, Collection[Address]] | None = None,
) -> Table:
    """A cell's table from nothing."""
    cell = CellTable(policy.cell)
    cell.set_names(names or {})
    cell.set_policy(policy)
    for identity in local:
        cell.add_local(identity)
    for identity in remote:
        cell.add_remote(identity)
    return cell.table
