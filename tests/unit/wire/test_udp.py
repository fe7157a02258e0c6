"""UDP over IPv4: lengths, and a checksum that covers the addresses."""

import pytest

from divhook.core.reasons import DropReason
from divhook.core.wire.checksum import checksum
from divhook.core.wire.errors import WireError
from divhook.core.wire.udp import UDP_MAX_PAYLOAD, Udp, parse_udp_untrusted

SOURCE, DESTINATION = bytes.fromhex("0a152237"), bytes.fromhex("0a424d58")
DATAGRAM = bytes.fromhex("5e6f 7081 000b 685e 91a2b3")
VALUE = Udp(0x5E6F, 0x7081, b"\x91\xa2\xb3")


def reason_of(payload: bytes, source: bytes = SOURCE, destination: bytes = DESTINATION) -> DropReason:
    with pytest.raises(WireError) as error:
        parse_udp_untrusted(payload, source, destination)
    return error.value.reason


def test_parse_takes_each_field_from_its_place() -> None:
    assert parse_udp_untrusted(DATAGRAM, SOURCE, DESTINATION) == VALUE


def test_emit_is_the_whole_datagram() -> None:
    assert VALUE.emit(SOURCE, DESTINATION) == DATAGRAM


def test_bytes_after_the_length_are_cut_off() -> None:
    assert parse_udp_untrusted(DATAGRAM + b"\xee" * 5, SOURCE, DESTINATION) == VALUE


def test_no_checksum_is_allowed() -> None:
    assert parse_udp_untrusted(DATAGRAM[:6] + b"\0\0" + DATAGRAM[8:], SOURCE, DESTINATION) == VALUE


def test_each_damaged_bit_is_noticed() -> None:
    for bit in range(8 * len(DATAGRAM)):
        damaged = bytearray(DATAGRAM)
        damaged[bit // 8] ^= 1 << bit % 8
        assert reason_of(bytes(damaged)) is DropReason.UDP_MALFORMED


def test_datagram_of_other_addresses_is_malformed() -> None:
    assert reason_of(DATAGRAM, source=bytes.fromhex("0a152238")) is DropReason.UDP_MALFORMED
    assert reason_of(DATAGRAM, destination=bytes.fromhex("0a424d59")) is DropReason.UDP_MALFORMED


@pytest.mark.parametrize("length", range(11))
def test_datagram_cut_anywhere_is_malformed(length: int) -> None:
    assert reason_of(DATAGRAM[:length]) is DropReason.UDP_MALFORMED


@pytest.mark.parametrize("length", [0, 1, 7, 12, 0xFFFF])
def test_length_below_the_header_or_beyond_the_data_is_malformed_also_without_checksum(length: int) -> None:
    assert reason_of(DATAGRAM[:4] + length.to_bytes(2, "big") + b"\0\0" + DATAGRAM[8:]) is DropReason.UDP_MALFORMED


def test_sum_of_zero_is_sent_as_its_other_form() -> None:
    pseudo = SOURCE + DESTINATION + b"\x00\x11\x00\x0a"
    payload = checksum(pseudo + bytes.fromhex("5e6f7081000a0000")).to_bytes(2, "big")
    datagram = Udp(0x5E6F, 0x7081, payload).emit(SOURCE, DESTINATION)
    assert datagram == bytes.fromhex("5e6f7081000affff") + payload
    assert parse_udp_untrusted(datagram, SOURCE, DESTINATION) == Udp(0x5E6F, 0x7081, payload)


def test_emit_refuses_what_no_datagram_can_hold() -> None:
    assert len(Udp(1, 2, bytes(UDP_MAX_PAYLOAD)).emit(SOURCE, DESTINATION)) == 0xFFFF
    with pytest.raises(ValueError, match="don't fit"):
        Udp(1, 2, bytes(UDP_MAX_PAYLOAD + 1)).emit(SOURCE, DESTINATION)


@pytest.mark.parametrize(("source", "destination"), [(b"\x0a", DESTINATION), (SOURCE, b"\x0a" * 6)])
def test_addresses_of_wrong_length_are_the_callers_bug(source: bytes, destination: bytes) -> None:
    with pytest.raises(ValueError, match="4 bytes"):
        VALUE.emit(source, destination)
