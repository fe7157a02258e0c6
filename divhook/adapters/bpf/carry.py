"""Carry what the maps of another version hold into this version's: field by field, by the names that BTF has.

    v2/maps/endpoints   stamp, born, guest_id, …                ─┐ same name ─▶ same value
    v3/maps/endpoints   weight, stamp, born, guest_id, …        ◀┘ new       ─▶ 0

So an upgrade and a downgrade are the same, and neither version describes the other's layout. What it asks of abi.h:
a field's name keeps its meaning for good (another meaning is another name), codes are only added, and 0 in a new field
is what is right until the agent has set it. `config` is not carried: it is the agent's to say, before any frame.
"""

import logging
import os
import struct
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

from divhook.adapters.bpf import syscall
from divhook.adapters.bpf.btf import Btf, BtfError, Field
from divhook.adapters.bpf.errors import BpfError

NOT_CARRIED = frozenset({"config"})
_MAP_ID = struct.Struct("=I")

log = logging.getLogger(__name__)

Converter = Callable[[bytes], bytes]


def converter(old: list[Field], new: list[Field], length: int) -> Converter:
    """From values with the old fields to values of `length` bytes with the new ones.

    What it makes raises OverflowError where a number does not fit into its new field.
    """
    moves: list[tuple[int, int, int]] = []
    numbers: list[tuple[Field, Field]] = []
    before = {field.name: field for field in old}
    for to in new:
        field = before.get(to.name)
        if field is None or field.array != to.array:
            continue
        if field.size != to.size and not field.array:
            numbers.append((field, to))
            continue
        at, size = field.offset, min(field.size, to.size)
        if moves and moves[-1][0] + moves[-1][2] == at and moves[-1][1] + moves[-1][2] == to.offset:
            moves[-1] = (moves[-1][0], moves[-1][1], moves[-1][2] + size)
        else:
            moves.append((at, to.offset, size))

    def convert(value: bytes) -> bytes:
        made = bytearray(length)
        for at, to, size in moves:
            made[to : to + size] = value[at : at + size]
        for field, to_field in numbers:
            number = int.from_bytes(value[field.offset : field.offset + field.size], sys.byteorder)
            place = slice(to_field.offset, to_field.offset + to_field.size)
            made[place] = number.to_bytes(to_field.size, sys.byteorder)
        return bytes(made)

    return convert


def _each_cpu(convert: Converter, old: int, new: int) -> Converter:
    """Values of all CPUs, each padded to 8 bytes."""
    stride = (old + 7) // 8 * 8
    padding = bytes(-new % 8)
    return lambda value: b"".join(convert(value[at : at + old]) + padding for at in range(0, len(value), stride))


def _carry_map(old: syscall.MapInfo, fd: int, table: syscall.Map, cpus: int) -> tuple[int, int]:
    """Entries carried, and lost. Raises BtfError or BpfError."""
    new = syscall.map_info(table.fd)
    if not old.btf_id or not new.btf_id:
        raise BtfError("the kernel has no types of it")
    per_cpu = old.type in syscall.PER_CPU_TYPES
    if per_cpu != (new.type in syscall.PER_CPU_TYPES):
        raise BtfError("it was of another type")
    types, own = Btf(syscall.btf_bytes(old.btf_id)), Btf(syscall.btf_bytes(new.btf_id))
    convert_key = converter(types.fields(old.btf_key_type_id), own.fields(new.btf_key_type_id), new.key_size)
    convert = converter(types.fields(old.btf_value_type_id), own.fields(new.btf_value_type_id), new.value_size)
    length = old.value_size
    if per_cpu:
        convert, length = _each_cpu(convert, old.value_size, new.value_size), (length + 7) // 8 * 8 * cpus
    carried = lost = 0
    source = syscall.Map(table.name, fd, old.key_size, length)
    for batch in source.batches():
        for key, value in batch:
            try:
                table.put(convert_key(key), convert(value))
                carried += 1
            except (BpfError, OverflowError):
                lost += 1
    return carried, lost


def _carry_tables(old: syscall.MapInfo, fd: int, table: syscall.Map) -> tuple[int, int]:
    """An array of maps: the same maps, which both versions' programs fill for a moment.

    The kernel takes none of another size; a layout that changes and keeps its size needs another name for the array.
    """
    carried = lost = 0
    source = syscall.Map(table.name, fd, old.key_size, old.value_size)
    for key in source.all_keys():
        raw = source.get(key)
        inner = syscall.map_by_id(_MAP_ID.unpack(raw)[0]) if raw is not None else None
        if inner is None:
            continue
        try:
            table.put(key, _MAP_ID.pack(inner))
            carried += 1
        except BpfError:
            lost += 1
        finally:
            os.close(inner)
    return carried, lost


def carry(directory: Path, maps: Mapping[str, syscall.Map]) -> None:
    """Fill these maps from those of the same names that are pinned in a directory.

    What cannot be carried is told: its frames are the agent's until the agent has made it anew.
    """
    cpus = syscall.possible_cpus()
    for name, table in maps.items():
        fd = syscall.open_pinned(directory / name) if name not in NOT_CARRIED else None
        if fd is None:
            continue
        try:
            old = syscall.map_info(fd)
            tables = old.type == syscall.ARRAY_OF_MAPS
            carried, lost = _carry_tables(old, fd, table) if tables else _carry_map(old, fd, table, cpus)
            log.info("map %s: %d entries taken over from %s", name, carried, directory)
            if lost:
                log.warning("map %s: %d entries of %s have no room in this version", name, lost, directory)
        except (BtfError, BpfError, struct.error) as error:
            log.warning("map %s: what %s held cannot be taken over: %s", name, directory, error)
        finally:
            os.close(fd)
