"""The policy maps: what divhook/policy/table.py has compiled, one write at a time, in the order that it says.

port_policies   port id → identity, scopes, defaults, epoch     exchanged as a whole: no frame sees half of it
policy_entries, policy_identities, policy_prefixes              of all cells; scopes and classes are a cell's own
cell_pairs      cells that may have to do with each other
"""

import struct
from collections.abc import Iterator, Mapping

from divhook.abi import layout
from divhook.adapters.bpf import syscall
from divhook.adapters.bpf.flows import FlowTables

RULE_PICKED_UP = 1
"""In `rule_counts`: flows that were picked up in mid-stream."""
POLICY_TABLES = ("policy_entries", "policy_identities", "policy_prefixes", "cell_pairs")
_U32, _U64 = struct.Struct("=I"), struct.Struct("=Q")


class PolicyMaps:
    """Raw keys and values are those of divhook/abi/policy_entries.py."""

    def __init__(self, maps: Mapping[str, syscall.Map], flows: FlowTables) -> None:
        self._maps = maps
        self._flows = flows

    def write(self, table: str, key: bytes, value: bytes | None) -> None:
        """One key of one of POLICY_TABLES; None removes it. Raises BpfError where it is full."""
        if value is None:
            self._maps[table].delete(key)
        else:
            self._maps[table].put(key, value)

    def get(self, table: str, key: bytes) -> bytes | None:
        """What the programs have there."""
        return self._maps[table].get(key)

    def keys(self, table: str) -> Iterator[bytes]:
        """All keys of one of POLICY_TABLES, also from before this load."""
        return self._maps[table].all_keys()

    def set_port(self, port_id: int, value: bytes) -> None:
        """What holds at a port; before it becomes `policed`."""
        if self.port(port_id) != value:
            self._maps["port_policies"].put(_U32.pack(port_id), value)

    def port(self, port_id: int) -> bytes | None:
        """What holds there, also from before this load."""
        return self._maps["port_policies"].get(_U32.pack(port_id))

    def remove_port(self, port_id: int) -> None:
        """After it has ceased to be `policed`: without a record nothing passes."""
        self._maps["port_policies"].delete(_U32.pack(port_id))

    def ports(self) -> list[int]:
        """Ids of all ports with a record."""
        return [_U32.unpack(key)[0] for key in self._maps["port_policies"].all_keys()]

    def rule_counts(self) -> dict[int, int]:
        """Rule → flows that it has decided in the kernel. RULE_PICKED_UP: begun in mid-stream."""
        found = {}
        for key in self._maps["rule_counts"].all_keys():
            raw = self._maps["rule_counts"].get(key)
            if raw is not None:
                found[_U64.unpack(key)[0]] = sum(struct.unpack(f"={len(raw) // 8}Q", raw))
        return found

    def forget_rule(self, rule: int) -> None:
        """It is in no policy any more."""
        self._maps["rule_counts"].delete(_U64.pack(rule))

    def ticks(self, seconds: float) -> int:
        """A time of the flows' clock, in its ticks."""
        return round(seconds * self._flows.ticks_per_s)


def epoch_of(raw: bytes) -> int:
    """Of a record."""
    return int(layout.PortPolicy.from_buffer_copy(raw).epoch)
