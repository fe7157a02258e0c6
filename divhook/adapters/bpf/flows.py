"""Map `flows`: for each tracked port a table of its own, made here and filled by the programs.

    flows (array of maps) ── port id modulo MAX_PORTS ──▶ table (LRU hash): flow_key ─▶ flow

The outer map is pinned and holds the tables, so they outlive the agent as all else does. Set the port's and its
endpoint's `tracked` after `install`, and clear both before `remove`: without a table every packet is INVALID.

`install` and `remove` wait until no CPU is in a program any more (some 10 ms); all else is as short as any map
operation.
"""

import ctypes
import os
import struct
import time
from collections.abc import Iterator

from divhook.abi import layout
from divhook.abi.flow_entries import pack_flow, pack_flow_key, unpack_flow, unpack_flow_key
from divhook.adapters.bpf import syscall
from divhook.core.flow import FlowEntry, FlowKey
from divhook.core.wire.ethernet import ETH_HEADER

TICKS = "ticks"
"""The program that tells the time."""
CLOCK_MONOTONIC_COARSE = 6
"""linux/time.h: moves with the ticks."""
LRU_HASH = 9
"""BPF_MAP_TYPE_LRU_HASH"""

_U32 = struct.Struct("=I")
_U64 = struct.Struct("=Q")
_KEY_LENGTH, _VALUE_LENGTH = ctypes.sizeof(layout.FlowKey), ctypes.sizeof(layout.Flow)
_EPOCH_AT = layout.Flow.epoch.offset
EXPORTED = _KEY_LENGTH + _VALUE_LENGTH
"""Bytes of one flow between hosts: age in ms (64, host order: hosts are little-endian x86-64), key, the rest of it."""


def kernel_ticks_per_s() -> int:
    """How often the kernel's jiffies tick (CONFIG_HZ)."""
    return round(1 / time.clock_getres(CLOCK_MONOTONIC_COARSE))


def flow_bound(cpus: int, wanted: int = layout.FLOWS_PER_PORT) -> int:
    """Entries of a port's table: CPUs take free ones by the batch, and must not starve each other."""
    return max(wanted, layout.FLOWS_PER_CPU * cpus)


class PortFlows:
    """The flows of one port: a FlowStore. Owns its descriptor; the table lives on after close."""

    def __init__(self, fd: int, ticks_per_s: int) -> None:
        self._table = syscall.Map("flows of a port", fd, _KEY_LENGTH, _VALUE_LENGTH)
        self._ticks_per_s = ticks_per_s

    @property
    def fd(self) -> int:
        """Descriptor of the table."""
        return self._table.fd

    def get(self, key: FlowKey) -> FlowEntry | None:
        """The entry, live or not."""
        raw = self._table.get(pack_flow_key(key))
        return unpack_flow(key, raw, self._ticks_per_s) if raw is not None else None

    def put(self, key: FlowKey, entry: FlowEntry) -> None:
        """Insert or exchange: of a guest that has moved here, or of a packet that the agent forwards."""
        self._table.put(pack_flow_key(key), pack_flow(entry, self._ticks_per_s))

    def delete(self, key: FlowKey) -> bool:
        """End one flow; False where it was not there."""
        return self._table.delete(pack_flow_key(key))

    def items(self) -> Iterator[tuple[FlowKey, FlowEntry]]:
        """All entries, those past their timeout too: compare with `FlowTables.now_s`."""
        for batch in self._table.batches():
            for raw_key, raw in batch:
                key = unpack_flow_key(raw_key)
                yield key, unpack_flow(key, raw, self._ticks_per_s)

    def export(self, now_s: float, within_s: float) -> Iterator[bytes]:
        """Entries that were seen within so long, for another host: EXPORTED bytes each, with an age in place of a time.

        They are not told from dead ones: the other host does that by the age, as this one would.
        """
        now = round(now_s * self._ticks_per_s)
        for batch in self._table.batches():
            for key, raw in batch:
                age_ms = max(0, now - _U64.unpack_from(raw)[0]) * 1000 // self._ticks_per_s
                if age_ms <= within_s * 1000:
                    yield _U64.pack(age_ms) + key + raw[_U64.size :]

    def merge_untrusted(self, now_s: float, exported: bytes) -> int:
        """Take what `export` gave, in whatever order: an entry that was seen later here stays. Returns how many came.

        Epochs are this host's own business: its policy is asked about each flow once more. Raises ValueError.
        """
        count, rest = divmod(len(exported), EXPORTED)
        if rest:
            raise ValueError(f"{len(exported)} bytes of flows are no whole number of them")
        now = round(now_s * self._ticks_per_s)
        for at in range(0, len(exported), EXPORTED):
            key = exported[at + _U64.size : at + _U64.size + _KEY_LENGTH]
            value = exported[at + _U64.size + _KEY_LENGTH : at + EXPORTED]
            age_ms = _U64.unpack_from(exported, at)[0]
            unpack_flow(unpack_flow_key(key), bytes(_U64.size) + value, self._ticks_per_s)  # else ValueError
            seen = max(0, now - age_ms * self._ticks_per_s // 1000)
            known = self._table.get(key)
            if known is None or _U64.unpack_from(known)[0] < seen:
                raw = bytearray(_U64.pack(seen) + value)
                raw[_EPOCH_AT : _EPOCH_AT + 4] = bytes(4)
                self._table.put(key, bytes(raw))
        return count

    def close(self) -> None:
        """Give up the descriptor."""
        self._table.close()


class FlowTables:
    """Map `flows`, and the clock by which entries are dated. Both descriptors stay the caller's."""

    def __init__(self, outer: syscall.Map, clock_fd: int) -> None:
        self._outer = outer
        self._clock_fd = clock_fd
        self._ticks_per_s = kernel_ticks_per_s()

    def now_s(self) -> float:
        """Seconds, by the clock of `seen_s`."""
        told = syscall.run_frame(self._clock_fd, bytes(ETH_HEADER), 0, 0, 0, 0)
        return (told.mark << 32 | told.target) / self._ticks_per_s

    @property
    def ticks_per_s(self) -> int:
        """How often the clock ticks."""
        return self._ticks_per_s

    def install(self, port_id: int, bound: int = layout.FLOWS_PER_PORT) -> PortFlows:
        """The table of a port: the one that is there, or a new one. Raises BpfError (no memory, for one)."""
        there = self.table(port_id)
        if there is not None:
            return there
        entries = flow_bound(syscall.possible_cpus(), bound)
        fd = syscall.map_create(LRU_HASH, f"flows_{port_id}", _KEY_LENGTH, _VALUE_LENGTH, entries)
        try:
            self._outer.put(self._slot(port_id), _U32.pack(fd))
        except BaseException:
            os.close(fd)
            raise
        return PortFlows(fd, self._ticks_per_s)

    def table(self, port_id: int) -> PortFlows | None:
        """The table of a port, also from before this load; None where it has none."""
        raw = self._outer.get(self._slot(port_id))
        fd = syscall.map_by_id(_U32.unpack(raw)[0]) if raw is not None else None
        return PortFlows(fd, self._ticks_per_s) if fd is not None else None

    def remove(self, port_id: int) -> None:
        """Forget all flows of a port, and their table. No error where there is none."""
        self._outer.delete(self._slot(port_id))

    @staticmethod
    def _slot(port_id: int) -> bytes:
        return _U32.pack(port_id % layout.MAX_PORTS)
