"""RFC 1071 and RFC 1624, by the RFCs' own examples."""

import pytest

from divhook.core.wire.checksum import checksum, ones_sum, update, verifies

RFC_1071_EXAMPLE = bytes.fromhex("0001f203f4f5f6f7")


def test_sum_and_checksum_are_those_of_rfc_1071_section_3() -> None:
    assert ones_sum(RFC_1071_EXAMPLE) == 0xDDF2
    assert checksum(RFC_1071_EXAMPLE) == 0x220D


def test_odd_last_byte_is_padded_with_zero() -> None:
    assert ones_sum(b"\x12\x34\x56") == ones_sum(b"\x12\x34\x56\x00") == 0x1234 + 0x5600


@pytest.mark.parametrize(
    ("data", "total"),
    [
        pytest.param(b"", 0, id="nothing"),
        pytest.param(bytes(6), 0, id="zeros sum to zero"),
        pytest.param(b"\xff\xff", 0xFFFF, id="ones sum to the other zero"),
        pytest.param(b"\xff\xff\x00\x01", 1, id="the carry comes round"),
        pytest.param(b"\xff\xfe\x00\x01", 0xFFFF, id="a sum of exactly 65535"),
    ],
)
def test_sum_at_its_two_zeros(data: bytes, total: int) -> None:
    assert ones_sum(data) == total


def test_data_with_its_checksum_verifies_and_a_changed_bit_does_not() -> None:
    sealed = RFC_1071_EXAMPLE + b"\x22\x0d"
    assert verifies(sealed)
    for bit in range(8 * len(sealed)):
        damaged = bytearray(sealed)
        damaged[bit // 8] ^= 1 << bit % 8
        assert not verifies(bytes(damaged))


def test_all_zeros_do_not_verify() -> None:
    assert not verifies(bytes(20))


def test_update_of_rfc_1624_section_4_yields_zero_and_not_its_other_form() -> None:
    assert update(0xDD2F, 0x5555, 0x3285) == 0x0000


def test_update_adds_the_carry_of_the_carry_round() -> None:
    assert update(checksum(b"\xff\xff\x00\x00"), 0x0000, 0x0001) == checksum(b"\xff\xff\x00\x01") == 0xFFFE
