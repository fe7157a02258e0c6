"""How values of one layout become values of another, and how layouts are read from BTF."""

import struct
import sys

import pytest

from divhook.adapters.bpf.btf import Btf, BtfError, Field, Kind
from divhook.adapters.bpf.carry import converter

U8, U16, U32 = 1, 2, 3
MAC, RATE, RATES, PORT = 4, 7, 8, 9


class Types:
    """Makes a blob of BTF, type by type from number 1."""

    def __init__(self) -> None:
        self.strings = b"\0"
        self.types = b""

    def name(self, text: str) -> int:
        self.strings += text.encode() + b"\0"
        return len(self.strings) - len(text) - 1

    def add(self, kind: int, name: str, size: int, count: int = 0, added: bytes = b"") -> "Types":
        self.types += struct.pack("=III", self.name(name), kind << 24 | count, size) + added
        return self

    def struct(self, name: str, size: int, *members: tuple[str, int, int]) -> "Types":
        added = b"".join(struct.pack("=III", self.name(own), type_id, at * 8) for own, type_id, at in members)
        return self.add(Kind.STRUCT, name, size, len(members), added)

    def array(self, element: int, count: int) -> "Types":
        return self.add(Kind.ARRAY, "", 0, 0, struct.pack("=III", element, U32, count))

    def blob(self) -> bytes:
        sizes = (0, len(self.types), len(self.types), len(self.strings))
        return struct.pack("=HBBIIIII", 0xEB9F, 1, 0, 24, *sizes) + self.types + self.strings


def port_types() -> Types:
    types = Types()
    for size in (1, 2, 4):
        types.add(Kind.INT, f"u{size * 8}", size, added=struct.pack("=I", size * 8))
    types.struct("mac", 6, ("octets", 5, 0)).array(6, 6).add(Kind.TYPEDEF, "__u8", U8)
    types.struct("rate", 8, ("packets_per_s", U32, 0), ("burst", U32, 4)).array(RATE, 2)
    return types.struct("port", 32, ("state", U32, 0), ("vmac", MAC, 4), ("pad", U16, 10), ("rates", RATES, 12))


def test_fields_of_a_struct_are_told_with_their_paths_and_without_padding() -> None:
    assert Btf(port_types().blob()).fields(PORT) == [
        Field("state", 0, 4),
        Field("vmac.octets", 4, 6, array=True),
        Field("rates.0.packets_per_s", 12, 4),
        Field("rates.0.burst", 16, 4),
        Field("rates.1.packets_per_s", 20, 4),
        Field("rates.1.burst", 24, 4),
    ]


def test_a_plain_number_is_a_field_without_name() -> None:
    assert Btf(port_types().blob()).fields(U32) == [Field("", 0, 4)]


@pytest.mark.parametrize("blob", [b"", b"\x9f\xeb", b"\xeb\x9f" + bytes(22), port_types().blob()[:60]])
def test_what_is_no_btf_is_refused(blob: bytes) -> None:
    with pytest.raises(BtfError):
        Btf(blob).fields(PORT)


def test_a_type_that_no_map_has_is_refused() -> None:
    types = port_types().add(Kind.PTR, "", U32).struct("bad", 8, ("pointer", 10, 0))
    with pytest.raises(BtfError, match="pointer is of kind 2"):
        Btf(types.blob()).fields(11)


def number(value: int, size: int) -> bytes:
    return value.to_bytes(size, sys.byteorder)


def test_fields_go_where_their_names_are_and_new_ones_are_zero() -> None:
    old = [Field("a", 0, 2), Field("gone", 2, 2), Field("mac", 4, 6, True)]
    new = [Field("fresh", 0, 4), Field("mac", 4, 6, True), Field("a", 10, 2)]
    convert = converter(old, new, 12)
    assert convert(b"\x11\x12\x21\x22\x31\x32\x33\x34\x35\x36") == bytes(4) + b"\x31\x32\x33\x34\x35\x36\x11\x12"


def test_numbers_grow_and_shrink_and_one_without_room_is_refused() -> None:
    convert = converter([Field("a", 0, 2), Field("b", 2, 4)], [Field("a", 0, 4), Field("b", 4, 2)], 6)
    assert convert(number(0xA1B2, 2) + number(0xC3D4, 4)) == number(0xA1B2, 4) + number(0xC3D4, 2)
    with pytest.raises(OverflowError):
        convert(number(1, 2) + number(0x10000, 4))


def test_arrays_keep_their_beginning() -> None:
    assert converter([Field("a", 0, 3, True)], [Field("a", 1, 5, True)], 6)(b"\x01\x02\x03") == b"\0\x01\x02\x03\0\0"
    assert converter([Field("a", 0, 3, True)], [Field("a", 0, 2, True)], 2)(b"\x01\x02\x03") == b"\x01\x02"


def test_a_number_that_became_an_array_is_not_carried() -> None:
    assert converter([Field("a", 0, 4)], [Field("a", 0, 4, True)], 4)(b"\x01\x02\x03\x04") == bytes(4)
