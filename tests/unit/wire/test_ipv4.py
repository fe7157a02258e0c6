"""IPv4: what a packet may be, and why it is refused."""

import pytest

from divhook.core.reasons import DropReason
from divhook.core.wire.checksum import checksum
from divhook.core.wire.errors import WireError
from divhook.core.wire.ipv4 import Header, Ipv4, header_untrusted, parse_ipv4_untrusted

SOURCE, DESTINATION = bytes.fromhex("0a152237"), bytes.fromhex("0a424d58")
PLAIN = bytes.fromhex("45 4d 0017 1a2b 4000 3c 63 a026 0a152237 0a424d58 91a2b3")
PLAIN_VALUE = Ipv4(
    source=SOURCE,
    destination=DESTINATION,
    protocol=0x63,
    payload=b"\x91\xa2\xb3",
    ttl=0x3C,
    identification=0x1A2B,
    dscp_ecn=0x4D,
    dont_fragment=True,
)
# Three options (no-op, router alert, record route) and a fragment in the middle: every field in use, but for DF.
RICH = bytes.fromhex("48 4d 0028 1a2b 2123 3c 63 46ea 0a152237 0a424d58 01 9404c1c2 070704d1d2d3d4 e1e2e3e4e5e6e7e8")
RICH_VALUE = Ipv4(
    source=SOURCE,
    destination=DESTINATION,
    protocol=0x63,
    payload=bytes.fromhex("e1e2e3e4e5e6e7e8"),
    ttl=0x3C,
    identification=0x1A2B,
    dscp_ecn=0x4D,
    more_fragments=True,
    fragment_offset=0x123 * 8,
    options=bytes.fromhex("01 9404c1c2 070704d1d2d3d4"),
)


def sealed(header: bytes, payload: bytes = b"") -> bytes:
    """A packet with the right checksum on whatever header was made."""
    return header[:10] + checksum(header[:10] + header[12:]).to_bytes(2, "big") + header[12:] + payload


def with_options(options: bytes) -> bytes:
    assert len(options) % 4 == 0
    length = 20 + len(options)
    return sealed(bytes((0x40 | length // 4, 0, 0, length)) + PLAIN[4:20] + options)


def fragment_of(protocol: int, offset: int, length: int, more: bool) -> bytes:
    head = bytes((0x45, 0)) + (20 + length).to_bytes(2, "big") + b"\x1a\x2b"
    flags = (0x2000 * more | offset // 8).to_bytes(2, "big")
    return sealed(head + flags + bytes((0x3C, protocol, 0, 0)) + SOURCE + DESTINATION, bytes(length))


def reason_of(packet: bytes) -> DropReason:
    with pytest.raises(WireError) as quick:
        header_untrusted(packet)
    with pytest.raises(WireError) as full:
        parse_ipv4_untrusted(packet)
    assert full.value.reason is quick.value.reason
    return quick.value.reason


@pytest.mark.parametrize(("packet", "value"), [(PLAIN, PLAIN_VALUE), (RICH, RICH_VALUE)], ids=["plain", "rich"])
def test_parse_takes_each_field_from_its_place_and_emit_puts_it_back(packet: bytes, value: Ipv4) -> None:
    assert parse_ipv4_untrusted(packet) == value
    assert value.emit() == packet


def test_header_has_what_forwarding_needs() -> None:
    assert header_untrusted(PLAIN) == Header(SOURCE, DESTINATION, 0x63, 0x3C, 23, 20, True, False, 0)
    assert header_untrusted(RICH) == Header(SOURCE, DESTINATION, 0x63, 0x3C, 40, 32, False, True, 0x918)


def test_fragment_is_known_by_either_sign() -> None:
    assert not header_untrusted(PLAIN).is_fragment
    assert header_untrusted(fragment_of(0x63, 0, 8, more=True)).is_fragment
    assert header_untrusted(fragment_of(0x63, 8, 8, more=False)).is_fragment


def test_ethernet_padding_is_cut_off() -> None:
    assert parse_ipv4_untrusted(PLAIN + b"\xee" * 23) == PLAIN_VALUE
    assert header_untrusted(PLAIN + b"\xee" * 23) == header_untrusted(PLAIN)


@pytest.mark.parametrize("packet", [PLAIN, RICH], ids=["plain", "rich"])
def test_packet_cut_anywhere_is_truncated(packet: bytes) -> None:
    for length in range(len(packet)):
        assert reason_of(packet[:length]) is DropReason.TRUNCATED


@pytest.mark.parametrize("version", [0, 3, 5, 6, 15])
def test_other_version_is_dropped(version: int) -> None:
    assert reason_of(sealed(bytes((version << 4 | 5,)) + PLAIN[1:20])) is DropReason.IPV4_VERSION


@pytest.mark.parametrize("ihl", range(5))
def test_header_length_below_twenty_is_dropped(ihl: int) -> None:
    assert reason_of(sealed(bytes((0x40 | ihl,)) + PLAIN[1:20])) is DropReason.IPV4_HEADER_LENGTH


@pytest.mark.parametrize("total", [0, 1, 19])
def test_total_length_below_the_header_is_dropped(total: int) -> None:
    assert reason_of(sealed(PLAIN[:2] + bytes((0, total)) + PLAIN[4:20])) is DropReason.IPV4_TOTAL_LENGTH


def test_total_length_that_ends_within_the_options_is_dropped() -> None:
    assert reason_of(sealed(RICH[:2] + bytes((0, 31)) + RICH[4:32])) is DropReason.IPV4_TOTAL_LENGTH


def test_total_length_beyond_the_data_is_truncated() -> None:
    assert reason_of(sealed(PLAIN[:2] + bytes((0, 24)) + PLAIN[4:20], b"\x91\xa2\xb3")) is DropReason.TRUNCATED


@pytest.mark.parametrize("packet", [PLAIN, RICH], ids=["plain", "rich"])
def test_each_damaged_bit_of_the_header_is_noticed(packet: bytes) -> None:
    header_bits = 8 * (packet[0] & 15) * 4
    for bit in range(header_bits):
        damaged = bytearray(packet)
        damaged[bit // 8] ^= 0x80 >> bit % 8
        first_words = bit < 32  # version, lengths: have reasons of their own
        reason = reason_of(bytes(damaged) + bytes(70))
        assert first_words or reason is DropReason.IPV4_CHECKSUM


@pytest.mark.parametrize(
    "options",
    [
        pytest.param("00000000", id="end"),
        pytest.param("01010101", id="no-ops"),
        pytest.param("94040000", id="router alert"),
        pytest.param("00ffffff", id="after the end mark nothing is read"),
        pytest.param("01000783", id="after the end mark not even a source route is"),
        pytest.param("07" + "27" + "04" + "00" * 36 + "01", id="record route as long as can be"),
        pytest.param("c802cb02", id="an unknown option is walked by its length, then its neighbour's"),
    ],
)
def test_options_that_can_be_walked_pass(options: str) -> None:
    packet = with_options(bytes.fromhex(options))
    assert parse_ipv4_untrusted(packet).options == bytes.fromhex(options)


@pytest.mark.parametrize(
    "options",
    [
        pytest.param("07000000", id="length 0: would walk for ever"),
        pytest.param("07010000", id="length 1: shorter than its own two octets"),
        pytest.param("07050000", id="one octet past the header"),
        pytest.param("01010107", id="no room for the length"),
        pytest.param("010107ff", id="length 255"),
        pytest.param("83030400", id="loose source route"),
        pytest.param("89030400", id="strict source route"),
        pytest.param("01010183", id="source route without a length"),
        pytest.param("94040000 83030400", id="source route behind another option"),
    ],
)
def test_malformed_options_and_source_routes_are_dropped(options: str) -> None:
    assert reason_of(with_options(bytes.fromhex(options))) is DropReason.IPV4_OPTION


@pytest.mark.parametrize(
    ("offset", "length", "good"),
    [
        pytest.param(65504, 11, True, id="datagram of 65535 bytes, header included"),
        pytest.param(65504, 12, False, id="one byte more"),
        pytest.param(65528, 1, False, id="the ping of death"),
    ],
)
def test_fragment_must_end_within_64_kib(offset: int, length: int, good: bool) -> None:
    packet = fragment_of(0x63, offset, length, more=False)
    if good:
        assert header_untrusted(packet).fragment_offset == offset
    else:
        assert reason_of(packet) is DropReason.FRAGMENT_INVALID


@pytest.mark.parametrize(("protocol", "minimum"), [(1, 8), (6, 20), (17, 8)], ids=["icmp", "tcp", "udp"])
def test_first_fragment_too_short_for_its_ports_is_dropped(protocol: int, minimum: int) -> None:
    assert reason_of(fragment_of(protocol, 0, minimum - 1, more=True)) is DropReason.FRAGMENT_INVALID
    assert header_untrusted(fragment_of(protocol, 0, minimum, more=True)).more_fragments


@pytest.mark.parametrize("offset", [8, 16])
def test_fragment_that_would_overwrite_the_tcp_header_is_dropped(offset: int) -> None:
    assert reason_of(fragment_of(6, offset, 64, more=False)) is DropReason.FRAGMENT_INVALID
    assert header_untrusted(fragment_of(17, offset, 64, more=False)).fragment_offset == offset


def test_short_payload_that_is_no_fragment_is_for_the_next_codec_to_judge() -> None:
    assert header_untrusted(fragment_of(6, 0, 3, more=False)).total_length == 23


def test_emit_pads_options_to_whole_words() -> None:
    value = Ipv4(
        source=SOURCE, destination=DESTINATION, protocol=0x63, payload=b"\x91", options=b"\x94\x04\x00\x00\x01"
    )
    assert parse_ipv4_untrusted(value.emit()).options == b"\x94\x04\x00\x00\x01\x00\x00\x00"


@pytest.mark.parametrize(
    "fault",
    [
        {"source": b"\x0a"},
        {"destination": b"\x0a" * 5},
        {"fragment_offset": 4},
        {"fragment_offset": 65536},
        {"fragment_offset": -8},
        {"options": bytes(41)},
        {"payload": bytes(65516)},
    ],
    ids=lambda fault: next(iter(fault)),
)
def test_emit_refuses_what_no_packet_can_hold(fault: dict[str, object]) -> None:
    fields: dict[str, object] = {"source": SOURCE, "destination": DESTINATION, "protocol": 0x63, "payload": b""}
    with pytest.raises(ValueError):
        Ipv4(**(fields | fault)).emit()  # type: ignore[arg-type]
