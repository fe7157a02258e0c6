"""Ethernet: what a frame may be, and why it is refused."""

import pytest

from divhook.core.reasons import DropReason
from divhook.core.wire.errors import WireError
from divhook.core.wire.ethernet import WIRE_ETHERTYPES, Ethernet, is_group, parse_ethernet_untrusted

DESTINATION = bytes.fromhex("021122334455")
SOURCE = bytes.fromhex("52545566778a")
FRAME = bytes.fromhex("021122334455 52545566778a 0800 9b9c9d")
VALUE = Ethernet(DESTINATION, SOURCE, 0x0800, b"\x9b\x9c\x9d")


def reason_of(frame: bytes) -> DropReason:
    with pytest.raises(WireError) as error:
        parse_ethernet_untrusted(frame)
    return error.value.reason


def test_parse_takes_each_field_from_its_place() -> None:
    assert parse_ethernet_untrusted(FRAME) == VALUE


def test_emit_is_the_whole_frame() -> None:
    assert VALUE.emit() == FRAME


@pytest.mark.parametrize("ethertype", ["0800", "0806", "8035"])
def test_ipv4_arp_and_rarp_pass(ethertype: str) -> None:
    frame = FRAME[:12] + bytes.fromhex(ethertype)
    assert parse_ethernet_untrusted(frame) == Ethernet(DESTINATION, SOURCE, int(ethertype, 16), b"")


@pytest.mark.parametrize("length", range(14))
def test_frame_shorter_than_its_header_is_truncated(length: int) -> None:
    assert reason_of(FRAME[:length]) is DropReason.TRUNCATED


@pytest.mark.parametrize("tag", ["8100", "88a8", "9100"])
@pytest.mark.parametrize("vid", ["0000", "0001", "e123"])
def test_tagged_frame_is_dropped_whatever_its_vid_and_what_it_holds(tag: str, vid: str) -> None:
    assert reason_of(FRAME[:12] + bytes.fromhex(tag + vid + "0800") + bytes(46)) is DropReason.VLAN_TAGGED


def test_ipv6_is_dropped_with_its_own_reason() -> None:
    assert reason_of(FRAME[:12] + b"\x86\xdd" + bytes(46)) is DropReason.IPV6_UNSUPPORTED


@pytest.mark.parametrize("ethertype", ["0000", "05dc", "0801", "0805", "0807", "8847", "8863", "88b5", "88cc", "ffff"])
def test_other_ethertype_or_a_length_field_is_dropped(ethertype: str) -> None:
    assert reason_of(FRAME[:12] + bytes.fromhex(ethertype) + bytes(46)) is DropReason.ETHERTYPE


@pytest.mark.parametrize("source", ["53545566778a", "ffffffffffff", "01005e000001", "000000000000"])
def test_source_that_is_a_group_or_zero_is_dropped(source: str) -> None:
    assert reason_of(FRAME[:6] + bytes.fromhex(source) + FRAME[12:]) is DropReason.SOURCE_MAC_GROUP


def test_tag_is_named_before_the_source_and_the_source_before_the_ethertype() -> None:
    group = FRAME[:6] + b"\xff" * 6
    assert reason_of(group + b"\x81\x00") is DropReason.VLAN_TAGGED
    assert reason_of(group + b"\x86\xdd") is DropReason.SOURCE_MAC_GROUP


def test_discovery_ethertype_passes_only_where_it_is_asked_for() -> None:
    frame = FRAME[:12] + b"\x88\xb5\x01"
    assert parse_ethernet_untrusted(frame, WIRE_ETHERTYPES) == Ethernet(DESTINATION, SOURCE, 0x88B5, b"\x01")


def test_group_bit_is_the_lowest_of_the_first_octet() -> None:
    assert is_group(bytes.fromhex("010000000000"))
    assert is_group(b"\xff" * 6)
    assert not is_group(bytes.fromhex("feffffffffff"))


@pytest.mark.parametrize(
    "bad", [Ethernet(b"\x02" * 5, SOURCE, 0x0800, b""), Ethernet(SOURCE, b"\x02" * 7, 0x0800, b"")]
)
def test_emit_refuses_a_mac_of_wrong_length(bad: Ethernet) -> None:
    with pytest.raises(ValueError, match="6 bytes"):
        bad.emit()
