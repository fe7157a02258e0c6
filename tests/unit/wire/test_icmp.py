"""ICMP: echo, the errors of a router, and when it must be silent."""

from dataclasses import replace

import pytest

from divhook.core.reasons import DropReason
from divhook.core.wire import icmp
from divhook.core.wire.checksum import checksum
from divhook.core.wire.errors import WireError
from divhook.core.wire.icmp import IcmpEcho, IcmpMessage, echo_reply, may_answer_with_error, parse_icmp_untrusted
from divhook.core.wire.ipv4 import Ipv4, header_untrusted

GUEST, OTHER, ROUTER = bytes.fromhex("0a152237"), bytes.fromhex("0a424d58"), bytes.fromhex("0a152201")
ECHO = bytes.fromhex("08 00 d317 1a2b 3c4d 5e6f70")
REPLY = bytes.fromhex("00 00 db17 1a2b 3c4d 5e6f70")
ORIGINAL = bytes.fromhex("4500001d1a2b000001631b6e0a1522370a424d58e1e2e3e4e5e6e7e8e9")
ERROR_HEADER = bytes.fromhex("45 c0 0039 0000 4000 40 01 e1a2 0a152201 0a152237")


def message(kind: int, code: int, rest: str, payload: bytes) -> bytes:
    body = bytes.fromhex(rest) + payload
    return bytes((kind, code)) + checksum(bytes((kind, code)) + body).to_bytes(2, "big") + body


def reason_of(payload: bytes) -> DropReason:
    with pytest.raises(WireError) as error:
        parse_icmp_untrusted(payload)
    return error.value.reason


def allowed(packet: bytes, to_group: bool = False) -> bool:
    return may_answer_with_error(header_untrusted(packet), packet, to_group=to_group)


@pytest.mark.parametrize(("data", "reply"), [(ECHO, False), (REPLY, True)], ids=["request", "reply"])
def test_echo_is_parsed_and_emitted_field_by_field(data: bytes, reply: bool) -> None:
    value = IcmpEcho(reply, 0x1A2B, 0x3C4D, b"\x5e\x6f\x70")
    assert parse_icmp_untrusted(data) == value
    assert value.emit() == data


def test_other_message_is_parsed_and_emitted_field_by_field() -> None:
    data = message(3, 4, "1a2b3c4d", ORIGINAL)
    value = IcmpMessage(3, 4, 0x1A2B3C4D, ORIGINAL)
    assert parse_icmp_untrusted(data) == value
    assert value.emit() == data
    assert value.is_error


def test_echo_with_a_code_is_no_echo() -> None:
    value = parse_icmp_untrusted(message(8, 1, "1a2b3c4d", b"\x5e"))
    assert value == IcmpMessage(8, 1, 0x1A2B3C4D, b"\x5e")
    assert not value.is_error


@pytest.mark.parametrize("length", range(11))
def test_message_cut_anywhere_is_malformed(length: int) -> None:
    assert reason_of(ECHO[:length]) is DropReason.ICMP_MALFORMED


def test_each_damaged_bit_is_noticed() -> None:
    for bit in range(8 * len(ECHO)):
        damaged = bytearray(ECHO)
        damaged[bit // 8] ^= 1 << bit % 8
        assert reason_of(bytes(damaged)) is DropReason.ICMP_MALFORMED


@pytest.mark.parametrize("kind", [3, 4, 5, 11, 12])
@pytest.mark.parametrize(
    "quote",
    [
        pytest.param(b"", id="nothing"),
        pytest.param(ORIGINAL[:19], id="cut within the header"),
        pytest.param(b"\x65" + ORIGINAL[1:], id="version 6"),
        pytest.param(b"\x44" + ORIGINAL[1:], id="header length 16"),
    ],
)
def test_error_that_quotes_no_ipv4_header_is_malformed(kind: int, quote: bytes) -> None:
    assert reason_of(message(kind, 0, "00000000", quote)) is DropReason.ICMP_MALFORMED


@pytest.mark.parametrize(
    ("build", "kind", "code"),
    [
        pytest.param(icmp.time_exceeded, 11, 0, id="time exceeded"),
        pytest.param(icmp.net_unreachable, 3, 0, id="net unreachable"),
        pytest.param(icmp.host_unreachable, 3, 1, id="host unreachable"),
        pytest.param(icmp.protocol_unreachable, 3, 2, id="protocol unreachable"),
        pytest.param(icmp.port_unreachable, 3, 3, id="port unreachable"),
        pytest.param(icmp.prohibited, 3, 13, id="prohibited"),
    ],
)
def test_error_is_a_whole_packet_that_quotes_what_arrived(build: icmp.ErrorBuilder, kind: int, code: int) -> None:
    assert build(ORIGINAL, ROUTER, GUEST) == ERROR_HEADER + message(kind, code, "00000000", ORIGINAL)


def test_time_exceeded_byte_by_byte() -> None:
    expected = ERROR_HEADER + bytes.fromhex("0b 00 7867 00000000") + ORIGINAL
    assert icmp.time_exceeded(ORIGINAL, ROUTER, GUEST) == expected


def test_fragmentation_needed_names_the_mtu_of_the_next_hop() -> None:
    expected = ERROR_HEADER + bytes.fromhex("03 04 7aeb 0000 0578") + ORIGINAL
    assert icmp.fragmentation_needed(ORIGINAL, ROUTER, GUEST, 1400) == expected


@pytest.mark.parametrize("mtu", [0, -1, 65536])
def test_mtu_that_does_not_fit_is_the_callers_bug(mtu: int) -> None:
    with pytest.raises(ValueError, match="MTU"):
        icmp.fragmentation_needed(ORIGINAL, ROUTER, GUEST, mtu)


def test_padding_is_not_quoted() -> None:
    padded = ORIGINAL + b"\xee" * 17
    assert icmp.time_exceeded(padded, ROUTER, GUEST) == icmp.time_exceeded(ORIGINAL, ROUTER, GUEST)


@pytest.mark.parametrize(("length", "quoted"), [(547, 547), (548, 548), (549, 548), (1500, 548)])
def test_error_quotes_as_much_as_fits_576_bytes(length: int, quoted: int) -> None:
    packet = Ipv4(
        source=GUEST, destination=OTHER, protocol=17, payload=bytes(i % 251 for i in range(length - 20))
    ).emit()
    error = icmp.host_unreachable(packet, ROUTER, GUEST)
    assert len(error) == 28 + quoted <= 576
    assert error[28:] == packet[:quoted]


PING = Ipv4(
    source=GUEST,
    destination=ROUTER,
    protocol=1,
    payload=ECHO,
    ttl=7,
    identification=0x6172,
    dscp_ecn=0x4D,
    dont_fragment=True,
    options=b"\x94\x04\x00\x00",
)


def test_ping_is_answered_with_addresses_swapped_and_a_fresh_ttl() -> None:
    reply = replace(PING, source=ROUTER, destination=GUEST, ttl=64, options=b"", payload=REPLY)
    assert echo_reply(PING.emit()) == reply.emit()
    assert echo_reply(PING.emit() + b"\xee" * 9) == reply.emit()


@pytest.mark.parametrize(
    "change",
    [
        pytest.param({"payload": REPLY}, id="a reply"),
        pytest.param({"payload": message(13, 0, "1a2b0000", bytes(12))}, id="another query"),
        pytest.param({"protocol": 17}, id="not ICMP"),
        pytest.param({"more_fragments": True, "dont_fragment": False}, id="a first fragment"),
        pytest.param({"fragment_offset": 64, "dont_fragment": False}, id="a later fragment"),
    ],
)
def test_what_is_no_whole_echo_request_gets_no_reply(change: dict[str, object]) -> None:
    assert echo_reply(replace(PING, **change).emit()) is None  # type: ignore[arg-type]


def test_ping_with_a_false_checksum_is_malformed() -> None:
    with pytest.raises(WireError) as error:
        echo_reply(replace(PING, payload=ECHO[:-1] + b"\x71").emit())
    assert error.value.reason is DropReason.ICMP_MALFORMED


PLAIN = Ipv4(source=GUEST, destination=OTHER, protocol=17, payload=bytes(16))


def test_ordinary_packet_may_be_answered_with_an_error() -> None:
    assert allowed(PLAIN.emit())


@pytest.mark.parametrize("source", ["00000000", "00010203", "7f000001", "e0000001", "f0000001", "ffffffff"])
def test_source_that_is_no_single_host_gets_no_error(source: str) -> None:
    assert not allowed(replace(PLAIN, source=bytes.fromhex(source)).emit())


@pytest.mark.parametrize("destination", ["e0000001", "efffffff", "f0000001", "ffffffff"])
def test_packet_to_many_gets_no_error(destination: str) -> None:
    assert not allowed(replace(PLAIN, destination=bytes.fromhex(destination)).emit())


def test_frame_to_a_group_mac_gets_no_error() -> None:
    assert not allowed(PLAIN.emit(), to_group=True)


def test_only_the_first_fragment_gets_an_error() -> None:
    assert allowed(replace(PLAIN, more_fragments=True).emit())
    assert not allowed(replace(PLAIN, more_fragments=True, fragment_offset=8).emit())
    assert not allowed(replace(PLAIN, fragment_offset=8).emit())


@pytest.mark.parametrize("kind", range(256))
def test_only_icmp_that_is_known_to_be_no_error_gets_an_error(kind: int) -> None:
    packet = replace(PLAIN, protocol=1, payload=message(kind, 0, "00000000", ORIGINAL)).emit()
    assert allowed(packet) is (kind in {0, 8, 9, 10, 13, 14, 15, 16, 17, 18, 42, 43})


def test_type_is_read_behind_the_options() -> None:
    packet = replace(PLAIN, protocol=1, payload=ECHO, options=b"\x94\x04\x0b\x03").emit()
    assert allowed(packet)


def test_icmp_without_a_type_gets_no_error_and_padding_is_no_type() -> None:
    assert not allowed(replace(PLAIN, protocol=1, payload=b"").emit() + b"\x08" * 26)
