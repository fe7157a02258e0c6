"""The DHCP codec: header fields, options, overload, long options, and what is refused."""

import pytest
from dhcp_bytes import VMAC, XID, bootp, tlv

from divhook.core.addressing import parse_address
from divhook.core.reasons import DropReason
from divhook.core.wire.dhcp import (
    MAX_REQUEST_BYTES,
    DhcpMessage,
    Op,
    encode,
    encode_routes,
    encode_search,
    parse_dhcp_untrusted,
)
from divhook.core.wire.errors import WireError

CI, YI, SI, GI = b"\x0a\x01\x02\x03", b"\x0b\x04\x05\x06", b"\x0c\x07\x08\x09", b"\x0d\x0a\x0b\x0c"
FULL = DhcpMessage(
    op=Op.REPLY,
    xid=XID,
    chaddr=VMAC,
    secs=0x0102,
    broadcast=True,
    ciaddr=CI,
    yiaddr=YI,
    siaddr=SI,
    giaddr=GI,
    sname=b"server",
    file=b"boot/file",
    options=((53, b"\x05"), (12, b"web-1")),
)
FULL_BYTES = bootp(
    tlv((53, b"\x05"), (12, b"web-1")),
    op=2,
    flags=0x8000,
    ciaddr=CI,
    yiaddr=YI,
    siaddr=SI,
    giaddr=GI,
    sname=b"server",
    file=b"boot/file",
)


def message(*options: tuple[int, bytes], file: bytes = b"", sname: bytes = b"") -> DhcpMessage:
    return DhcpMessage(op=Op.REPLY, xid=1, chaddr=VMAC, file=file, sname=sname, options=options)


def refused(payload: bytes) -> DropReason:
    with pytest.raises(WireError) as caught:
        parse_dhcp_untrusted(payload)
    return caught.value.reason


def test_every_field_is_read_from_its_place():
    assert parse_dhcp_untrusted(FULL_BYTES) == FULL


def test_every_field_is_written_to_its_place():
    assert FULL.emit() == FULL_BYTES


def test_flag_bits_other_than_broadcast_are_ignored_and_not_sent():
    parsed = parse_dhcp_untrusted(bootp(tlv((53, b"\x01")), flags=0x7FFF))
    assert not parsed.broadcast
    assert parsed.emit()[10:12] == b"\0\0"


def test_pads_between_options_are_skipped_and_what_follows_the_end_is_not_read():
    parsed = parse_dhcp_untrusted(bootp(b"\0\0\x35\x01\x01\0\x0c\x02ab\xff\x0c\x01c"))
    assert parsed.options == ((53, b"\x01"), (12, b"ab"))


def test_pieces_of_one_option_are_one_value():
    parsed = parse_dhcp_untrusted(bootp(tlv((12, b"ab"), (53, b"\x01"), (12, b"cd"))))
    assert parsed.options == ((12, b"abcd"), (53, b"\x01"))


@pytest.mark.parametrize(
    ("overload", "expected"),
    [
        (1, ((53, b"\x01"), (12, b"onFILE"))),
        (2, ((53, b"\x01"), (12, b"onSNAME"))),
        (3, ((53, b"\x01"), (12, b"onFILESNAME"))),
    ],
)
def test_overloaded_fields_are_joined_in_the_order_options_file_sname(overload, expected):
    payload = bootp(
        tlv((53, b"\x01"), (52, bytes([overload])), (12, b"on")),
        file=tlv((12, b"FILE")),
        sname=tlv((12, b"SNAME")),
    )
    parsed = parse_dhcp_untrusted(payload)
    assert parsed.options == expected
    assert (parsed.file == b"") == bool(overload & 1)
    assert (parsed.sname == b"") == bool(overload & 2)


def test_missing_end_option_is_tolerated():
    assert parse_dhcp_untrusted(bootp(b"\x35\x01\x01", size=0)).options == ((53, b"\x01"),)


def test_fields_without_a_nul_are_read_whole():
    parsed = parse_dhcp_untrusted(bootp(tlv((53, b"\x01")), sname=b"s" * 64, file=b"f" * 128))
    assert (parsed.sname, parsed.file) == (b"s" * 64, b"f" * 128)


@pytest.mark.parametrize(
    "payload",
    [
        b"",
        bootp(b"", size=0)[:239],
        bootp(tlv((53, b"\x01")), size=MAX_REQUEST_BYTES + 1),
        bootp(tlv((53, b"\x01")), op=0),
        bootp(tlv((53, b"\x01")), op=3),
        bootp(tlv((53, b"\x01")), htype=6),
        bootp(tlv((53, b"\x01")), hlen=5),
        bootp(tlv((53, b"\x01")), hlen=16),
        bootp(b"", cookie=bytes(4)),
        bootp(b"\x35", size=0),
        bootp(b"\x35\x02\x01", size=0),
        bootp(b"\x0c\xff" + b"a" * 254, size=0),
        bootp(tlv((52, b"\x00"))),
        bootp(tlv((52, b"\x04"))),
        bootp(tlv((52, b""))),
        bootp(tlv((52, b"\x01"), (52, b"\x01"))),
        bootp(tlv((52, b"\x01")), file=b"\x0c\x7fab"),
        bootp(tlv((52, b"\x02")), sname=tlv((52, b"\x01"))),
    ],
    ids=[
        "empty",
        "shorter than its cookie",
        "longer than one Ethernet frame",
        "op 0",
        "op 3",
        "token ring",
        "hlen 5",
        "hlen 16",
        "BOOTP without cookie",
        "code without length",
        "option over the end",
        "long option over the end",
        "overload 0",
        "overload 4",
        "overload empty",
        "overload twice",
        "option over the end of file",
        "overload inside sname",
    ],
)
def test_what_is_no_message_is_dhcp_malformed(payload):
    assert refused(payload) is DropReason.DHCP_MALFORMED


def test_longest_request_is_read():
    assert parse_dhcp_untrusted(bootp(tlv((53, b"\x01")), size=MAX_REQUEST_BYTES)).xid == XID


def test_option_of_256_bytes_is_written_in_two_pieces():
    value = bytes(range(256))
    wire = message((121, value)).emit()
    assert wire[240:] == b"\x79\xff" + value[:255] + b"\x79\x01" + value[255:] + b"\xff"
    assert parse_dhcp_untrusted(wire).options == ((121, value),)


def test_empty_option_is_written_with_length_zero():
    assert message((80, b"")).emit()[240:243] == b"\x50\0\xff"


def test_options_that_fill_the_room_exactly_need_no_overload():
    # 548 - 240 = 308 bytes: 257 for a full option, 50 for the second, the end
    full = message((12, b"a" * 255), (15, b"b" * 48))
    wire = full.emit(548)
    assert len(wire) == 548
    assert wire[240:] == tlv((12, b"a" * 255), (15, b"b" * 48))


def test_one_byte_more_goes_to_file_with_overload_1():
    wire, omitted = encode(message((12, b"a" * 255), (15, b"b" * 49)), 548)
    assert omitted == ()
    assert wire[240:] == tlv((12, b"a" * 255), (52, b"\x01"))
    assert wire[108:236] == tlv((15, b"b" * 49)).ljust(128, b"\0")
    assert wire[44:108] == bytes(64)


def test_file_and_sname_are_filled_in_this_order():
    options = ((12, b"a" * 255), (15, b"b" * 125), (17, b"c" * 61))
    wire, omitted = encode(message(*options), 548)
    assert omitted == ()
    assert wire[240:] == tlv((12, b"a" * 255), (52, b"\x03"))
    assert wire[108:236] == tlv((15, b"b" * 125))
    assert wire[44:108] == tlv((17, b"c" * 61))
    assert parse_dhcp_untrusted(wire).options == options


def test_a_file_in_use_is_not_overloaded():
    wire, omitted = encode(message((12, b"a" * 255), (15, b"b" * 49), file=b"pxelinux.0"), 548)
    assert omitted == ()
    assert wire[108:236] == b"pxelinux.0".ljust(128, b"\0")
    assert wire[44:108] == tlv((15, b"b" * 49)).ljust(64, b"\0")
    assert wire[240:] == tlv((12, b"a" * 255), (52, b"\x02"))


def test_with_both_fields_in_use_what_does_not_fit_is_left_out_and_named():
    wire, omitted = encode(message((12, b"a" * 255), (15, b"b" * 49), (17, b"c"), file=b"f", sname=b"s"), 548)
    assert omitted == (15,)
    assert wire[240:] == tlv((12, b"a" * 255), (17, b"c"))


def test_a_value_that_fits_no_field_is_split_between_them():
    value = bytes(i % 251 for i in range(320))
    options = ((53, b"\x05"), (121, value), (15, b"d" * 4))
    wire, omitted = encode(message(*options), 548)
    assert omitted == ()
    assert wire[240:] == tlv((53, b"\x05"), (121, value[:255]), (121, value[255:297]), (52, b"\x01"))
    assert wire[108:236] == tlv((121, value[297:]), (15, b"d" * 4)).ljust(128, b"\0")
    assert parse_dhcp_untrusted(wire).options == options


def test_a_value_that_fits_nowhere_leaves_room_for_what_follows():
    wire, omitted = encode(message((53, b"\x05"), (121, bytes(600)), (12, b"web")), 548)
    assert omitted == (121,)
    assert wire == message((53, b"\x05"), (12, b"web")).emit()


def test_an_empty_value_that_fits_nowhere_is_named_too():
    wire, omitted = encode(message((12, b"a" * 253), (13, b"b" * 49), (2, b""), file=b"f", sname=b"s"), 548)
    assert omitted == (2,)
    assert wire[240:] == tlv((12, b"a" * 253), (13, b"b" * 49))


def test_a_maximum_below_the_minimum_still_gives_300_bytes():
    assert len(message((53, b"\x05")).emit(0)) == 300


@pytest.mark.parametrize(
    "broken",
    [
        {"chaddr": bytes(5)},
        {"yiaddr": bytes(16)},
        {"sname": bytes(65)},
        {"file": bytes(129)},
        {"options": ((12, b"a"), (12, b"b"))},
        {"options": ((0, b""),)},
        {"options": ((255, b""),)},
        {"options": ((52, b"\x01"),)},
    ],
    ids=lambda broken: next(iter(broken)),
)
def test_a_message_that_cannot_be_on_the_wire_cannot_be_made(broken):
    with pytest.raises(ValueError):
        DhcpMessage(**({"op": Op.REPLY, "xid": 1, "chaddr": VMAC} | broken))


def test_routes_are_written_with_the_significant_bytes_of_their_prefix():
    """The examples of RFC 3442."""
    gateway = b"\x0a\x07\x09\x02"
    cases = [("0.0.0.0", 0, "00"), ("10.0.0.0", 8, "080a"), ("10.0.0.0", 24, "180a0000"), ("10.17.0.0", 16, "100a11")]
    cases += [
        ("10.27.129.0", 24, "180a1b81"),
        ("10.229.0.128", 25, "190a e500 80"),
        ("10.198.122.47", 32, "200ac67a2f"),
    ]
    for prefix, length, expected in cases:
        assert encode_routes([(parse_address(prefix), length, gateway)]) == bytes.fromhex(expected) + gateway


@pytest.mark.parametrize(("prefix", "length"), [("10.0.0.1", 24), ("10.0.0.0", 33), ("0.0.0.1", 0)])
def test_a_route_with_bits_beyond_its_length_is_refused(prefix, length):
    with pytest.raises(ValueError, match="beyond"):
        encode_routes([(parse_address(prefix), length, bytes(4))])


def test_search_list_is_compressed_as_in_rfc_3397():
    """The example of RFC 3397 §2."""
    expected = b"\x03eng\x05apple\x03com\x00\x09marketing\xc0\x04"
    assert encode_search(["eng.apple.com.", "marketing.apple.com."]) == expected


def test_a_repeated_name_is_one_pointer():
    assert encode_search(["a.b", "a.b"]) == b"\x01a\x01b\x00\xc0\x00"


@pytest.mark.parametrize("name", ["", ".", "a..b", "a" * 64, ".".join(["abcdefg"] * 40), "ä.example"])
def test_what_is_no_dns_name_is_refused(name):
    with pytest.raises(ValueError, match="not a DNS name"):
        encode_search([name])
