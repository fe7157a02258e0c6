"""From compiled tables to the kernel's maps: keys and values packed, in the order that the table's steps have.

Everything that is written is remembered by nobody here: the maps themselves say what is there, so a restarted agent
finds what it would write, and writes nothing.
"""

from collections.abc import Iterable, Set

from divhook.abi import policy_entries as pack
from divhook.adapters.bpf.policy import POLICY_TABLES, PolicyMaps
from divhook.core.addressing import Address
from divhook.policy.prefixes import ADDRESS_BITS, unpack
from divhook.policy.table import EntryKey, Step, Table, Verdict


class PolicyWriter:
    """Writes the maps of all cells. changed: how many keys were not as they had to be since it was last set to 0."""

    def __init__(self, maps: PolicyMaps) -> None:
        self._maps = maps
        self.changed = 0

    def write(self, cell: Address, step: Step) -> None:
        """One step of a delta, but those of `locals`. cell: its address. Raises BpfError where a map is full."""
        if isinstance(step.key, EntryKey):
            entry = step.value
            key = pack.policy_key(*step.key)
            self._put("policy_entries", key, _entry(entry) if isinstance(entry, Verdict) else None)
        elif isinstance(step.key, int):
            number = step.value if isinstance(step.value, int) else None
            value = pack.policy_class(number) if number is not None else None
            if step.map == "identities":
                self._put("policy_identities", pack.identity_key(cell, step.key), value)
            else:
                self._put("policy_prefixes", _prefix_key(cell, step.key), value)

    def pairs(self, cell: Address, others: Set[Address], before: Set[Address]) -> None:
        """Which cells it may have to do with. Raises BpfError."""
        for other in others - before:
            self._put("cell_pairs", pack.cell_pair(cell, other), b"\x01\0\0\0")
        for other in before - others:
            self._put("cell_pairs", pack.cell_pair(cell, other), None)

    def _put(self, table: str, key: bytes, value: bytes | None) -> None:
        if self._maps.get(table, key) != value or table in ("policy_entries", "policy_prefixes"):
            self._maps.write(table, key, value)
            self.changed += 1

    def sweep(self, tables: Iterable[tuple[Address, Table, Set[Address]]]) -> int:
        """Remove what is in no table, from an agent before this one. Returns how many keys."""
        wanted: dict[str, set[bytes]] = {name: set() for name in POLICY_TABLES}
        for cell, table, others in tables:
            wanted["policy_entries"].update(pack.policy_key(*key) for key in table.entries)
            wanted["policy_identities"].update(pack.identity_key(cell, number) for number in table.identities)
            wanted["policy_prefixes"].update(_prefix_key(cell, packed) for packed in table.prefixes)
            wanted["cell_pairs"].update(pack.cell_pair(cell, other) for other in others)
        removed = 0
        for name, keys in wanted.items():
            for key in [key for key in self._maps.keys(name) if key not in keys]:
                self._maps.write(name, key, None)
                removed += name != "policy_identities"
        return removed


def _entry(verdict: Verdict) -> bytes:
    return pack.policy_entry(verdict.allow, verdict.log, verdict.rule)


def _prefix_key(cell: Address, packed: int) -> bytes:
    value, length = unpack(packed)
    return pack.external_key(cell, value.to_bytes(ADDRESS_BITS // 8, "big"), length)
