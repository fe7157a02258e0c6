"""What a router does to a packet: one hop less, and pieces that fit the next link."""

from dataclasses import replace

import pytest

from divhook.core.wire.ipv4 import Ipv4, decrement_ttl, fragment, header_untrusted

SOURCE, DESTINATION = bytes.fromhex("0a152237"), bytes.fromhex("0a424d58")
WHOLE = Ipv4(
    source=SOURCE,
    destination=DESTINATION,
    protocol=0x63,
    payload=bytes(range(120)),
    ttl=0x3C,
    identification=0x1A2B,
    dscp_ecn=0x4D,
)
COPIED = bytes.fromhex("9404c1c2")
WITH_OPTIONS = replace(WHOLE, options=bytes.fromhex("01 9404c1c2 070704d1d2d3d4"))


def piece(of: Ipv4, start: int, end: int, more: bool, options: bytes = b"") -> bytes:
    offset = of.fragment_offset + start
    return replace(
        of, payload=of.payload[start:end], fragment_offset=offset, more_fragments=more, options=options
    ).emit()


def test_one_hop_changes_ttl_and_checksum_and_nothing_else() -> None:
    before = bytes.fromhex("45 4d 0017 1a2b 4000 3c 63 a026 0a152237 0a424d58 91a2b3 eeee")
    after = bytes.fromhex("45 4d 0017 1a2b 4000 3b 63 a126 0a152237 0a424d58 91a2b3 eeee")
    assert decrement_ttl(before) == after


def test_every_ttl_and_every_checksum_near_a_carry_stays_true() -> None:
    for identification in (0, 0xFFFF, *range(0x10000)[::251]):
        packet = replace(WHOLE, identification=identification, ttl=255, protocol=255).emit()
        for ttl in (254, 253):
            packet = decrement_ttl(packet)
            assert packet == replace(WHOLE, identification=identification, ttl=ttl, protocol=255).emit()
    packet = replace(WHOLE, ttl=255).emit()
    for ttl in range(254, -1, -1):
        packet = decrement_ttl(packet)
        assert packet == replace(WHOLE, ttl=ttl).emit()


def test_checksum_sent_in_its_other_form_of_zero_stays_true() -> None:
    """A header whose checksum is 0x0000 verifies with 0xffff as well: some senders do that."""
    zero = next(
        packet for n in range(0x10000) if (packet := replace(WHOLE, identification=n).emit())[10:12] == b"\x00\x00"
    )
    other = zero[:10] + b"\xff\xff" + zero[12:]
    assert header_untrusted(other) == header_untrusted(zero)
    assert decrement_ttl(other) == decrement_ttl(zero)


def test_ttl_zero_is_the_callers_bug() -> None:
    with pytest.raises(ValueError, match="TTL"):
        decrement_ttl(replace(WHOLE, ttl=0).emit())


def test_packet_that_fits_stays_whole_without_its_padding() -> None:
    packet = WITH_OPTIONS.emit()
    assert fragment(packet + b"\xee" * 7, len(packet)) == [packet]


def test_packet_that_fits_needs_no_leave_to_be_fragmented() -> None:
    packet = replace(WHOLE, dont_fragment=True).emit()
    assert fragment(packet, 140) == [packet]


def test_one_byte_too_long_makes_two_pieces_at_a_multiple_of_eight() -> None:
    assert fragment(WHOLE.emit() + b"\xee" * 9, 139) == [piece(WHOLE, 0, 112, True), piece(WHOLE, 112, 120, False)]


def test_options_are_whole_in_the_first_piece_and_those_with_the_copied_flag_in_each() -> None:
    assert fragment(WITH_OPTIONS.emit(), 84) == [
        piece(WITH_OPTIONS, 0, 48, True, WITH_OPTIONS.options),
        piece(WITH_OPTIONS, 48, 104, True, COPIED),
        piece(WITH_OPTIONS, 104, 120, False, COPIED),
    ]


def test_copied_options_are_padded_to_whole_words() -> None:
    odd = replace(WHOLE, options=bytes.fromhex("01 960701020304 05"))
    assert fragment(odd.emit(), 84)[1] == piece(odd, 56, 112, True, bytes.fromhex("96070102030405"))


def test_fragment_of_a_fragment_goes_on_from_its_offset_and_keeps_more_to_come() -> None:
    middle = replace(WHOLE, fragment_offset=800, more_fragments=True)
    assert fragment(middle.emit(), 84) == [piece(middle, 0, 64, True), piece(middle, 64, 120, True)]
    last = replace(middle, more_fragments=False)
    assert fragment(last.emit(), 84) == [piece(last, 0, 64, True), piece(last, 64, 120, False)]


def test_longest_header_leaves_room_for_a_tcp_header_at_the_least_mtu() -> None:
    longest = replace(WHOLE, options=b"\x94\x04\xc1\xc2" * 10)
    pieces = fragment(longest.emit(), 84)
    assert pieces == [piece(longest, n, n + 24, n < 96, longest.options) for n in range(0, 120, 24)]


def test_packet_with_df_is_the_callers_bug() -> None:
    with pytest.raises(ValueError, match="may not be fragmented"):
        fragment(replace(WHOLE, dont_fragment=True).emit(), 99)


def test_mtu_below_the_least_is_the_callers_bug() -> None:
    with pytest.raises(ValueError, match="below 84"):
        fragment(WHOLE.emit(), 83)
