"""ARP and RARP, and the whole frames that carry them."""

import pytest

from divhook.core.reasons import DropReason
from divhook.core.wire.arp import (
    ARP_REPLY,
    ARP_REQUEST,
    RARP_REPLY,
    RARP_REQUEST,
    Arp,
    parse_arp_untrusted,
    parse_rarp_untrusted,
    reply_frame,
    request_frame,
)
from divhook.core.wire.errors import WireError

SHA, SPA = bytes.fromhex("02a1a2a3a4a5"), bytes.fromhex("0ab1b2b3")
THA, TPA = bytes.fromhex("02c1c2c3c4c5"), bytes.fromhex("0ad1d2d3")
REPLY_BYTES = bytes.fromhex("0001 0800 06 04 0002 02a1a2a3a4a5 0ab1b2b3 02c1c2c3c4c5 0ad1d2d3")


def with_operation(operation: int) -> bytes:
    return REPLY_BYTES[:6] + operation.to_bytes(2, "big") + REPLY_BYTES[8:]


def reason_of(payload: bytes) -> DropReason:
    with pytest.raises(WireError) as error:
        parse_arp_untrusted(payload)
    return error.value.reason


def test_parse_takes_each_field_from_its_place() -> None:
    assert parse_arp_untrusted(REPLY_BYTES) == Arp(ARP_REPLY, SHA, SPA, THA, TPA)


def test_emit_is_28_bytes_in_wire_order() -> None:
    assert Arp(ARP_REPLY, SHA, SPA, THA, TPA).emit() == REPLY_BYTES


def test_padding_and_trailers_are_not_looked_at() -> None:
    assert parse_arp_untrusted(REPLY_BYTES + b"\xee" * 18) == Arp(ARP_REPLY, SHA, SPA, THA, TPA)


@pytest.mark.parametrize("length", range(28))
def test_short_packet_is_malformed(length: int) -> None:
    assert reason_of(REPLY_BYTES[:length]) is DropReason.ARP_MALFORMED


@pytest.mark.parametrize(
    ("at", "octet"),
    [
        pytest.param(0, 1, id="hardware type, high octet"),
        pytest.param(1, 6, id="hardware type IEEE 802"),
        pytest.param(2, 0x86, id="protocol type, high octet"),
        pytest.param(3, 0x01, id="protocol type, low octet"),
        pytest.param(4, 8, id="hardware length"),
        pytest.param(5, 16, id="protocol length"),
    ],
)
def test_packet_that_is_not_ipv4_over_ethernet_is_malformed(at: int, octet: int) -> None:
    packet = bytearray(REPLY_BYTES)
    packet[at] = octet
    assert reason_of(bytes(packet)) is DropReason.ARP_MALFORMED


@pytest.mark.parametrize("operation", [0, 3, 4, 5, 8, 9, 0x0100, 0x0201, 0xFFFF])
def test_arp_operation_other_than_request_and_reply_is_malformed(operation: int) -> None:
    assert reason_of(with_operation(operation)) is DropReason.ARP_MALFORMED


@pytest.mark.parametrize("operation", [RARP_REQUEST, RARP_REPLY])
def test_rarp_operations_pass_the_rarp_parser(operation: int) -> None:
    assert parse_rarp_untrusted(with_operation(operation)) == Arp(operation, SHA, SPA, THA, TPA)


@pytest.mark.parametrize("operation", [ARP_REQUEST, ARP_REPLY, 0, 5])
def test_rarp_parser_takes_no_other_operation(operation: int) -> None:
    with pytest.raises(WireError) as error:
        parse_rarp_untrusted(with_operation(operation))
    assert error.value.reason is DropReason.ARP_MALFORMED


def test_request_frame_is_broadcast_unless_told_otherwise() -> None:
    body = "02a1a2a3a4a5 0806 0001 0800 06 04 0001 02a1a2a3a4a5 0ab1b2b3 000000000000 0ad1d2d3"
    assert request_frame(SHA, SPA, TPA) == bytes.fromhex("ffffffffffff" + body)
    assert request_frame(SHA, SPA, TPA, destination=THA) == bytes.fromhex("02c1c2c3c4c5" + body)


def test_reply_frame_goes_to_who_asked() -> None:
    assert reply_frame(SHA, SPA, THA, TPA) == bytes.fromhex("02c1c2c3c4c5 02a1a2a3a4a5 0806") + REPLY_BYTES


@pytest.mark.parametrize(
    "bad",
    [Arp(1, SHA[1:], SPA, THA, TPA), Arp(1, SHA, SPA[1:], THA, TPA), Arp(1, SHA, SPA, THA + b"\x01", TPA + b"\x01")],
)
def test_emit_refuses_addresses_of_wrong_length(bad: Arp) -> None:
    with pytest.raises(ValueError, match="6 bytes"):
        bad.emit()
