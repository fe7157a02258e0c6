"""The rules between one scope and one remote, as prefixes of protocol and port with the verdict of each.

Every service of a rule is a few prefixes, and prefixes either lie within each other or apart. The verdict of a point is
that of the best rule among the prefixes that cover it: a deny before an allow, then the one with the fewest ports, then
the first in file order. A prefix needs an entry only where its best differs from that of the entry around it; then the
longest matching entry of a point has the point's verdict:

    allow tcp               ├──────────────────────────────────────┤   entry 6/8
    deny  tcp/22                 │                                     entry 6.22/24
    allow tcp/22                 ×                                     none: the deny covers it
    allow tcp/8000-8003, log                     ├──┤                  entry 6.8000/22: fewer ports
"""

from collections.abc import Mapping
from typing import NamedTuple

from divhook.policy.cell import Rule
from divhook.policy.prefixes import LENGTH_BITS, PrefixSet, covering, last_of, pack
from divhook.policy.services import SPACE_BITS
from divhook.policy.table import EntryKey, PolicyMap, Verdict, entry_key

_REGION_LIMIT = 1 << SPACE_BITS


class Item(NamedTuple):
    """One service of a rule at one prefix, in order of precedence but for the last place: file order decides there."""

    allow: bool
    width: int
    rule: int
    log: bool


def items_of(rule: Rule) -> list[tuple[int, Item]]:
    """(packed prefix, item) of all services of a rule."""
    return [
        (pack(*prefix), Item(not rule.deny, service.width, rule.number, rule.log))
        for service in rule.services
        for prefix in service.prefixes()
    ]


class Program:
    """What stands in `entries` for one (scope, remote)."""

    def __init__(self, scope: int, remote: int, rules: list[Rule]) -> None:
        self._scope = scope
        self._remote = remote
        self._items: dict[int, list[Item]] = {}
        for rule in rules:
            for packed, item in items_of(rule):
                self._items.setdefault(packed, []).append(item)
        self._prefixes = PrefixSet(SPACE_BITS, self._items)

    def write(self, entries: PolicyMap[EntryKey, Verdict], order: Mapping[int, int]) -> None:
        """Write all entries. order: rule number → place in file order."""
        self._paint(0, entries, order)

    def erase(self, entries: PolicyMap[EntryKey, Verdict]) -> None:
        """Remove all entries."""
        for packed in self._items:
            entries.drop(entry_key(self._scope, self._remote, packed))

    def change(
        self, old: list[Rule], new: list[Rule], entries: PolicyMap[EntryKey, Verdict], order: Mapping[int, int]
    ) -> bool:
        """Take rules out and put others in. Returns whether any is left. Touches only what these rules cover."""
        gone = [pair for rule in old for pair in items_of(rule)]
        come = [pair for rule in new for pair in items_of(rule)]
        for packed, item in gone:
            items = self._items[packed]
            items.remove(item)
            if not items:
                del self._items[packed]
                self._prefixes.remove(packed)
                entries.drop(entry_key(self._scope, self._remote, packed))
        for packed, item in come:
            if packed not in self._items:
                self._prefixes.add(packed)
            self._items.setdefault(packed, []).append(item)
        end = -1
        for packed in sorted({packed for packed, _ in (*gone, *come)}):
            if last_of(packed, SPACE_BITS) > end:  # not within the one before
                end = last_of(packed, SPACE_BITS)
                self._paint(packed, entries, order)
        return bool(self._items)

    def _paint(self, region: int, entries: PolicyMap[EntryKey, Verdict], order: Mapping[int, int]) -> None:
        """Make the entries within a prefix what they must be."""

        def precedence(item: Item) -> tuple[bool, int, int]:
            return item.allow, item.width, order[item.rule]

        around = [i for p in covering(region, SPACE_BITS) if p != region for i in self._items.get(p, ())]
        stack: list[tuple[int, tuple[bool, int, int], int]] = []
        if around:
            best = min(around, key=precedence)
            stack.append((_REGION_LIMIT, precedence(best), best.rule))
        for packed in self._prefixes.below(region):
            value = packed >> LENGTH_BITS
            while stack and stack[-1][0] < value:
                stack.pop()
            items = self._items[packed]
            best = items[0] if len(items) == 1 else min(items, key=precedence)
            key = entry_key(self._scope, self._remote, packed)
            rank = precedence(best)
            if stack and stack[-1][1] <= rank:
                entries.drop(key)
                continue
            if stack and stack[-1][2] == best.rule:
                entries.drop(key)
            else:
                entries.put(key, Verdict(best.allow, best.log, best.rule))
            stack.append((last_of(packed, SPACE_BITS), rank, best.rule))
