"""Rules that are not wrong but hardly meant: what `divhook policy check` warns of.

    no effect      a deny covers all of an allow: it never allows anything
    repeats        another rule with the same action, and the same log, covers all of it
    overlap        a deny takes a part of an allow away and reaches beyond it: neither is an exception to the other
    changes nothing  an allow where the default already allows and no deny comes near
    matches nobody a selector contradicts itself, a peer is all exception, a group that another cell does not export
    unused         a group that no rule names and the cell does not export

Whether one peer covers another is read off what they are (any covers all, the cell its subnets, a prefix a longer one);
what guests there happen to be says nothing here, so that a warning stays true tomorrow.
"""

from bisect import bisect_right
from collections import defaultdict
from collections.abc import Iterable, Iterator
from itertools import product

from divhook.config.problems import Position, Problem, did_you_mean
from divhook.core.verdict import Direction, Relation
from divhook.policy.cell import CellPolicy, Rule
from divhook.policy.files import PolicySet
from divhook.policy.peers import EXTERNAL, Anyone, CellPeer, Cidr, DnsName, OwnHost, Peer, Selection
from divhook.policy.services import SPACE_BITS, Service

MAX_WARNINGS = 1000
"""Of one cell; a generated policy can repeat itself ten thousand times."""

_Key = tuple[Direction, tuple[Selection, ...], tuple[Peer, ...], bool, bool]


def warnings(policies: PolicySet) -> list[Problem]:
    """Warnings on all cells, in file order."""
    found: list[Problem] = []
    for policy in policies.cells.values():
        cell = [
            *_selectors(policy),
            *_unused_groups(policy),
            *_other_cells(policy, policies),
            *_Rules(policy).problems(),
        ]
        found += sorted(cell)[:MAX_WARNINGS]
    return sorted(found)


def covers(wide: Peer, narrow: Peer) -> bool:
    """Whether every end that is the narrow peer is the wide one, by what they are."""
    if wide == narrow or (isinstance(wide, Anyone) and not isinstance(narrow, OwnHost)):
        return True
    if isinstance(wide, Selection) and isinstance(narrow, Selection):
        if wide.exclude:
            return False
        parts = ("subnet", "group", "guest")
        if any(getattr(wide, p) is not None and getattr(wide, p) != getattr(narrow, p) for p in parts):
            return False
        return wide.labels is None or (
            narrow.labels is not None and set(wide.labels.requirements) <= set(narrow.labels.requirements)
        )
    if isinstance(wide, CellPeer) and isinstance(narrow, CellPeer):
        same = wide.cell == narrow.cell
        return same and wide.subnet in (None, narrow.subnet) and wide.group in (None, narrow.group)
    if isinstance(wide, Cidr) and isinstance(narrow, Cidr):
        inside = narrow.network.subnet_of(wide.network)
        kept = [e for e in wide.exclude if e.overlaps(narrow.network)]
        return inside and all(any(e.subnet_of(n) for n in narrow.exclude) for e in kept)
    if isinstance(wide, DnsName) and isinstance(narrow, DnsName):
        return wide.name.startswith("*.") and narrow.name.removeprefix("*").endswith(wide.name[1:])
    return wide == EXTERNAL and isinstance(narrow, (Cidr, DnsName))


def all_covered(wide: Iterable[Peer], narrow: Iterable[Peer]) -> bool:
    """Whether each of some peers is covered by one of others."""
    wide = tuple(wide)
    return all(any(covers(w, n) for w in wide) for n in narrow)


def _selectors(policy: CellPolicy) -> Iterator[Problem]:
    for where, selection in _selections(policy):
        if selection.labels is not None and (key := selection.labels.contradiction()):
            text = f"{selection} matches nobody: no guest meets all that it asks of label {key}"
            yield Problem(where, text, "is one of the two meant for another peer?")
        elif any(covers(e, Selection(selection.subnet, selection.group, selection.guest, selection.labels))
                 for e in selection.exclude):  # fmt: skip
            yield Problem(where, f"{selection} matches nobody: its exception takes all of it", "leave it out")


def _selections(policy: CellPolicy) -> Iterator[tuple[Position, Selection]]:
    for name, members in policy.groups.items():
        yield from ((policy.group_places[name], m) for m in members)
    for rule in policy.rules:
        yield from ((rule.where, s) for s in (*rule.endpoints, *rule.peers) if isinstance(s, Selection))


def _unused_groups(policy: CellPolicy) -> Iterator[Problem]:
    used = {s.group for _, selection in _selections(policy) for s in (selection, *selection.exclude)} | policy.exports
    for name in policy.groups:
        if name not in used:
            yield Problem(policy.group_places[name], f"group {name!r} is not used", "name it in a rule, or export it")


def _other_cells(policy: CellPolicy, policies: PolicySet) -> Iterator[Problem]:
    known = policies.configuration
    for rule in policy.rules:
        for peer in rule.peers:
            if not isinstance(peer, CellPeer):
                continue
            if known is not None and known.cell(peer.cell) is None:
                hint = did_you_mean(peer.cell, [c.cell for c in known.cells], "cells here")
                yield Problem(rule.where, f"cell {peer.cell!r} is not known here", f"{hint}; right on hosts without it")
            elif peer.group is not None and peer.cell in policies.cells:
                exports = policies.cells[peer.cell].exports
                if peer.group not in exports:
                    text = f"cell {peer.cell!r} does not export a group {peer.group!r}: this peer is nobody"
                    yield Problem(rule.where, text, did_you_mean(peer.group, exports, "it exports"))


def _bare(peer: Peer) -> Peer:
    return Cidr(peer.network) if isinstance(peer, Cidr) else peer


def coverers(peer: Peer) -> Iterator[Peer]:
    """Peers that may cover one, prefixes without their exceptions: to look for among thousands, not to compare each."""
    yield peer
    yield Anyone()
    match peer:
        case Selection():
            kinds = ("subnet", "group", "guest", "labels")
            for kept in product((True, False), repeat=len(kinds)):
                yield Selection(**{k: getattr(peer, k) for k, keep in zip(kinds, kept, strict=True) if keep})
        case CellPeer(cell, subnet, group):
            yield from (CellPeer(cell, subnet), CellPeer(cell, None, group), CellPeer(cell))
        case Cidr(network):
            yield from (Cidr(network.supernet(new_prefix=length)) for length in range(network.prefixlen, -1, -1))
        case DnsName(name):
            labels = name.split(".")
            yield from (DnsName("*." + ".".join(labels[at:])) for at in range(1, len(labels)))
            yield EXTERNAL


class _Rules:
    """Rules against rules. They are put together by (direction, endpoints, peers, action), so that 10,000 are few."""

    def __init__(self, policy: CellPolicy) -> None:
        self.policy = policy
        self.buckets: defaultdict[_Key, list[tuple[Service, Rule]]] = defaultdict(list)
        for rule in policy.rules:
            for service in rule.services:
                key = (rule.direction, rule.endpoints, rule.peers, rule.deny, rule.log)
                self.buckets[key].append((service, rule))
        self.ranges = {key: _Ranges(items) for key, items in self.buckets.items()}
        self.by_pair: defaultdict[tuple[Direction, Peer, Peer], list[_Key]] = defaultdict(list)
        for key in self.buckets:
            for endpoint, peer in product(key[1], key[2]):
                self.by_pair[key[0], endpoint, _bare(peer)].append(key)
        denied = [item for key, items in self.buckets.items() if key[3] for item in items]
        self.denied = {d: _Ranges([i for i in denied if i[1].direction is d]) for d in Direction}

    def problems(self) -> Iterator[Problem]:
        """At most one warning a rule."""
        first: dict[int, Rule] = {}
        for rule in self.policy.rules:
            if rule.number in first:
                yield Problem(rule.where, f"this rule is also at {first[rule.number].where}", "remove one of the two")
            first.setdefault(rule.number, rule)
        for key, items in self.buckets.items():
            covering = self._covering(key)
            told: set[int] = set()
            for service, rule in items:
                if rule.number not in told and (found := self._problem(service, rule, covering)) is not None:
                    told.add(rule.number)
                    yield found

    def _covering(self, key: _Key) -> list[_Key]:
        """Buckets whose endpoints and peers cover all of another's."""
        direction, endpoints, peers = key[:3]
        pairs = product(dict.fromkeys(coverers(endpoints[0])), dict.fromkeys(coverers(peers[0])))
        keys = dict.fromkeys(k for e, p in pairs for k in self.by_pair.get((direction, e, p), ()))
        return [k for k in keys if all_covered(k[1], endpoints) and all_covered(k[2], peers)]

    def _problem(self, service: Service, rule: Rule, covering: list[_Key]) -> Problem | None:
        for key in covering:
            if key[3] and not rule.deny and (other := self.ranges[key].covering(service, rule)):
                text = f"{service} is never allowed here: the deny at {other.where} covers it"
                return Problem(rule.where, text, "a deny wins whatever the order: narrow it, or remove this")
        for key in covering:
            if key[3] and not rule.deny and (other := self.ranges[key].crossing(service)):
                cut = next(s for s in other.services if s.overlaps(service) and not service.covers(s))
                text = f"{service} is partly denied by {other.where} ({cut}), which reaches beyond it"
                return Problem(rule.where, text, "the deny wins where they overlap: is that meant?")
        for key in covering:
            same = key[3] is rule.deny and key[4] is rule.log
            mutual = same and all_covered(rule.endpoints, key[1]) and all_covered(rule.peers, key[2])
            if same and (other := self.ranges[key].covering(service, rule, first=mutual)):
                return Problem(rule.where, f"{service} repeats what {other.where} says", "remove one of the two")
        if not rule.deny and not rule.log and self._idle(service, rule):
            text = f"{service} is allowed within the cell by default: this rule changes nothing"
            return Problem(rule.where, text, f"for isolation set defaults: {{{rule.direction}: deny}}")
        return None

    def _idle(self, service: Service, rule: Rule) -> bool:
        """Whether it allows what the default allows, for everybody that it speaks of, and no deny is near."""
        if not all(isinstance(p, Selection) for p in rule.peers) or self.denied[rule.direction].meeting(service):
            return False
        named = {e.subnet for e in rule.endpoints}
        subnets = {subnet or "" for subnet, *_ in self.policy.defaults} | {""} if None in named else named
        return all(
            self.policy.default(subnet or "", rule.direction, relation).allow
            for subnet in subnets
            for relation in (Relation.SUBNET, Relation.CELL)
        )


class _Ranges:
    """Services of one bucket on the line of protocol and port, for questions in logarithmic time."""

    def __init__(self, items: list[tuple[Service, Rule]]) -> None:
        spans = sorted((*_span(s), i) for i, (s, _) in enumerate(items))
        self._items = items
        self._lows = [low for low, _, _ in spans]
        self._spans = spans
        self._reach: list[tuple[int, int]] = []
        reach = (-1, -1)
        for _, high, index in spans:
            reach = max(reach, (high, index))
            self._reach.append(reach)

    def covering(self, service: Service, but: Rule, *, first: bool = False) -> Rule | None:
        """A rule that has all of a service, and is another one. first: where it has no more, it must come before."""
        low, high = _span(service)
        end = bisect_right(self._lows, low)
        for at in range(end - 1, -1, -1):
            if self._reach[at][0] < high:
                return None
            found, rule = self._items[self._spans[at][2]]
            counts = not first or found != service or rule.where < but.where
            if self._spans[at][1] >= high and rule.number != but.number and counts:
                return rule
        return None

    def meeting(self, service: Service) -> Rule | None:
        """A rule that has a part of a service."""
        low, high = _span(service)
        end = bisect_right(self._lows, high)
        if end and self._reach[end - 1][0] >= low:
            return self._items[self._reach[end - 1][1]][1]
        return None

    def crossing(self, service: Service) -> Rule | None:
        """A rule that has a part of a service, and something beyond it, and not all of it."""
        low, high = _span(service)
        for at in range(bisect_right(self._lows, high) - 1, -1, -1):
            if self._reach[at][0] < low:
                return None
            start, end, index = self._spans[at]
            if end >= low and (start < low) is not (end > high) and not (start <= low and end >= high):
                return self._items[index][1]
        return None


def _span(service: Service) -> tuple[int, int]:
    if service.protocol is None:
        return 0, (1 << SPACE_BITS) - 1
    return service.protocol << 16 | service.low, service.protocol << 16 | service.high
