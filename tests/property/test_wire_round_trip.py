"""What a codec emits it parses back, and what the router does to packets can be undone by their receiver."""

from dataclasses import replace

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from wire_strategies import (
    UDP_DESTINATION,
    UDP_SOURCE,
    addresses,
    arps,
    echoes,
    ethernets,
    icmp_errors,
    icmp_messages,
    ipv4s,
    no_deadline,
    parse_udp,
    rarps,
    udps,
    words,
)

from divhook.core.wire.arp import Arp, parse_arp_untrusted, parse_rarp_untrusted
from divhook.core.wire.checksum import checksum, ones_sum, update, verifies
from divhook.core.wire.errors import WireError
from divhook.core.wire.ethernet import Ethernet, parse_ethernet_untrusted
from divhook.core.wire.icmp import IcmpEcho, IcmpMessage, echo_reply, parse_icmp_untrusted
from divhook.core.wire.ipv4 import Ipv4, decrement_ttl, fragment, parse_ipv4_untrusted
from divhook.core.wire.udp import Udp, parse_udp_untrusted


def naive_sum(data: bytes) -> int:
    """RFC 1071, word by word."""
    total = 0
    for at in range(0, len(data), 2):
        total += int.from_bytes(data[at : at + 2].ljust(2, b"\0"), "big")
        total = (total & 0xFFFF) + (total >> 16)
    return total


@given(data=st.binary(max_size=64))
@no_deadline
def test_sum_is_that_of_rfc_1071_word_by_word(data: bytes) -> None:
    assert ones_sum(data) == naive_sum(data)


@given(data=st.lists(words, min_size=2, max_size=30), place=st.integers(0, 29), word=words)
@no_deadline
def test_updated_checksum_is_the_one_computed_anew(data: list[int], place: int, word: int) -> None:
    before = b"".join(value.to_bytes(2, "big") for value in data)
    place %= len(data)
    after = before[: 2 * place] + word.to_bytes(2, "big") + before[2 * place + 2 :]
    assume(any(before))
    assume(any(after))
    assert update(checksum(before), data[place], word) == checksum(after)
    assert verifies(after + checksum(after).to_bytes(2, "big"))


@given(value=ethernets)
@no_deadline
def test_ethernet(value: Ethernet) -> None:
    assert parse_ethernet_untrusted(value.emit()) == value


@given(value=arps, padding=st.binary(max_size=18))
@no_deadline
def test_arp(value: Arp, padding: bytes) -> None:
    assert parse_arp_untrusted(value.emit() + padding) == value


@given(value=rarps, padding=st.binary(max_size=18))
@no_deadline
def test_rarp(value: Arp, padding: bytes) -> None:
    assert parse_rarp_untrusted(value.emit() + padding) == value


@given(value=ipv4s(), padding=st.binary(max_size=26))
@no_deadline
def test_ipv4(value: Ipv4, padding: bytes) -> None:
    assert parse_ipv4_untrusted(value.emit() + padding) == value


@given(value=udps, padding=st.binary(max_size=18))
@no_deadline
def test_udp(value: Udp, padding: bytes) -> None:
    assert parse_udp(value.emit(UDP_SOURCE, UDP_DESTINATION) + padding) == value


@given(value=udps, source=addresses)
@no_deadline
def test_udp_does_not_pass_under_another_source(value: Udp, source: bytes) -> None:
    assume(naive_sum(source) != naive_sum(UDP_SOURCE))
    with pytest.raises(WireError):
        parse_udp_untrusted(value.emit(UDP_SOURCE, UDP_DESTINATION), source, UDP_DESTINATION)


@given(value=echoes | icmp_messages | icmp_errors)
@no_deadline
def test_icmp(value: IcmpEcho | IcmpMessage) -> None:
    assert parse_icmp_untrusted(value.emit()) == value


@given(value=ipv4s(), ttl=st.integers(1, 255))
@no_deadline
def test_packet_one_hop_on_is_the_one_emitted_with_one_ttl_less(value: Ipv4, ttl: int) -> None:
    assert decrement_ttl(replace(value, ttl=ttl).emit()) == replace(value, ttl=ttl - 1).emit()


@given(value=ipv4s(), echo=echoes)
@no_deadline
def test_reply_to_a_ping_carries_back_all_that_it_brought(value: Ipv4, echo: IcmpEcho) -> None:
    ping = replace(value, protocol=1, payload=echo.emit(), more_fragments=False, fragment_offset=0)
    reply = echo_reply(ping.emit())
    if echo.reply:
        assert reply is None
        return
    assert reply is not None
    assert parse_ipv4_untrusted(reply) == replace(
        ping,
        source=ping.destination,
        destination=ping.source,
        ttl=64,
        options=b"",
        payload=replace(echo, reply=True).emit(),
    )


@given(value=ipv4s(), mtus=st.lists(st.integers(84, 330), min_size=1, max_size=3))
@no_deadline
def test_pieces_of_pieces_come_together_again(value: Ipv4, mtus: list[int]) -> None:
    value = replace(value, dont_fragment=False)
    pieces = [value.emit()]
    for mtu in mtus:
        pieces = [smaller for piece in pieces for smaller in fragment(piece, mtu)]
        assert max(map(len, pieces)) <= mtu
    parsed = [parse_ipv4_untrusted(piece) for piece in pieces]
    at = value.fragment_offset
    for piece in parsed:
        assert piece.fragment_offset == at
        at += len(piece.payload)
    assert [piece.more_fragments for piece in parsed] == [True] * (len(parsed) - 1) + [value.more_fragments]
    assert replace(parsed[0], payload=b"".join(piece.payload for piece in parsed)) == replace(
        value, more_fragments=parsed[0].more_fragments
    )
    rest = {replace(p, payload=b"", fragment_offset=0, more_fragments=False, options=b"") for p in parsed}
    assert rest == {replace(value, payload=b"", fragment_offset=0, more_fragments=False, options=b"")}
