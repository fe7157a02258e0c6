"""BTF: the types that the kernel keeps beside a map. Layout: linux/btf.h, Documentation/bpf/btf.rst.

    header ─▶ types: { name offset, info (kind, vlen), size or type } and what the kind adds, one after the other from 1
           └▶ strings

Read here for one purpose: where in a map's key or value each named field lies, whichever version of divhook made it.
"""

import struct
from dataclasses import dataclass
from enum import IntEnum

_HEADER = struct.Struct("=HBBIIIII")
_TYPE = struct.Struct("=III")
_MEMBER = struct.Struct("=III")
_ARRAY = struct.Struct("=III")
_MAGIC = 0xEB9F


class Kind(IntEnum):
    """BTF_KIND_*, those that have to be told apart."""

    INT = 1
    PTR = 2
    ARRAY = 3
    STRUCT = 4
    UNION = 5
    ENUM = 6
    TYPEDEF = 8
    VOLATILE = 9
    CONST = 10
    FUNC_PROTO = 13
    VAR = 14
    DATASEC = 15
    DECL_TAG = 17
    ENUM64 = 19


_ADDED = {Kind.INT: 4, Kind.ARRAY: _ARRAY.size, Kind.VAR: 4, Kind.DECL_TAG: 4}
_ADDED_EACH = {
    Kind.STRUCT: _MEMBER.size,
    Kind.UNION: _MEMBER.size,
    Kind.ENUM: 8,
    Kind.FUNC_PROTO: 8,
    Kind.DATASEC: 12,
    Kind.ENUM64: 12,
}


class BtfError(Exception):
    """Types that cannot be read, or are of a kind that no map of divhook has."""


@dataclass(frozen=True, slots=True)
class Field:
    """A scalar, or an array of them, at `offset` bytes. name: its path, as `rates.0.burst_packets`; "" if it is all."""

    name: str
    offset: int
    size: int
    array: bool = False


class Btf:
    """One blob of types. Raises BtfError."""

    def __init__(self, blob: bytes) -> None:
        try:
            magic, _, _, length, types_at, types_length, strings_at, strings_length = _HEADER.unpack_from(blob)
            if magic != _MAGIC:
                raise BtfError("no BTF of this machine's byte order")
            self._strings = blob[length + strings_at :][:strings_length]
            self._blob = blob[length + types_at :][:types_length]
            self._at = [0]
            at = 0
            while at < types_length:
                self._at.append(at)
                _, info, _ = _TYPE.unpack_from(self._blob, at)
                kind, count = info >> 24 & 0x1F, info & 0xFFFF
                at += _TYPE.size + _ADDED.get(kind, 0) + _ADDED_EACH.get(kind, 0) * count
        except struct.error as error:
            raise BtfError(f"types end too early: {error}") from None

    def fields(self, number: int) -> list[Field]:
        """The fields of a type, by offset. Padding (`pad`, or without a name) is left out."""
        return sorted(self._fields(number, "", 0), key=lambda field: field.offset)

    def _type(self, number: int) -> tuple[int, int, int, int]:
        """Kind, count, size or type, and where what follows begins."""
        if not 0 < number < len(self._at):
            raise BtfError(f"there is no type {number}")
        at = self._at[number]
        _, info, size = _TYPE.unpack_from(self._blob, at)
        kind, count, at = info >> 24 & 0x1F, info & 0xFFFF, at + _TYPE.size
        if kind in (Kind.TYPEDEF, Kind.VOLATILE, Kind.CONST):
            return self._type(size)
        return kind, count, size, at

    def _size(self, number: int) -> int:
        kind, _, size, at = self._type(number)
        if kind == Kind.ARRAY:
            element, _, count = _ARRAY.unpack_from(self._blob, at)
            return self._size(element) * int(count)
        return size

    def _fields(self, number: int, name: str, offset: int) -> list[Field]:
        kind, count, size, at = self._type(number)
        if kind in (Kind.INT, Kind.ENUM, Kind.ENUM64):
            return [Field(name, offset, size)]
        dot = f"{name}." if name else ""
        if kind == Kind.ARRAY:
            element, _, length = _ARRAY.unpack_from(self._blob, at)
            each = self._size(element)
            if self._type(element)[0] == Kind.INT:
                return [Field(name, offset, each * length, array=True)]
            return [f for i in range(length) for f in self._fields(element, f"{dot}{i}", offset + i * each)]
        if kind != Kind.STRUCT:
            raise BtfError(f"{name or 'the type'} is of kind {kind}")
        found: list[Field] = []
        for index in range(count):
            name_at, member, bits = _MEMBER.unpack_from(self._blob, at + index * _MEMBER.size)
            own = self._strings[name_at : self._strings.index(b"\0", name_at)].decode()
            if own not in ("", "pad"):
                found += self._fields(member, dot + own, offset + (bits & 0xFFFFFF) // 8)
        return found
