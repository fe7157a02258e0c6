"""Every parser, on any bytes: it returns, or raises WireError. Nothing else, ever."""

import pytest
from hypothesis import event, given
from hypothesis import strategies as st
from wire_strategies import CODECS, Codec, ipv4s, mutated, no_deadline, sealed_ipv4

from divhook.core.wire.errors import WireError
from divhook.core.wire.icmp import (
    IcmpMessage,
    echo_reply,
    host_unreachable,
    may_answer_with_error,
    parse_icmp_untrusted,
)
from divhook.core.wire.ipv4 import Ipv4, decrement_ttl, fragment, header_untrusted, parse_ipv4_untrusted

each_codec = pytest.mark.parametrize("codec", CODECS, ids=lambda codec: codec.name)
ROUTER, GUEST = bytes.fromhex("0a152201"), bytes.fromhex("0a152237")


def attempt(codec: Codec, data: bytes) -> None:
    try:
        codec.parse(data)
    except WireError as error:
        event(error.reason.name)
    else:
        event("accepted")


@each_codec
@given(data=st.binary(max_size=100))
@no_deadline
def test_any_bytes_are_taken_or_refused_by_the_one_declared_error(codec: Codec, data: bytes) -> None:
    attempt(codec, data)


@each_codec
@given(data=st.data())
@no_deadline
def test_valid_bytes_are_taken(codec: Codec, data: st.DataObject) -> None:
    codec.parse(data.draw(codec.valid))


@each_codec
@given(data=st.data())
@no_deadline
def test_damaged_bytes_are_taken_or_refused_by_the_one_declared_error(codec: Codec, data: st.DataObject) -> None:
    damaged = data.draw(mutated(codec.valid))
    attempt(codec, damaged)
    attempt(codec, codec.seal(damaged))


@given(packet=mutated(ipv4s(min_payload=0).map(Ipv4.emit)).map(sealed_ipv4), mtu=st.integers(84, 400))
@no_deadline
def test_whatever_ipv4_packet_passes_can_be_forwarded_answered_and_sent_again(packet: bytes, mtu: int) -> None:
    try:
        header = header_untrusted(packet)
    except WireError as error:
        event(error.reason.name)
        with pytest.raises(WireError, match=error.reason.name.lower()):
            parse_ipv4_untrusted(packet)
        return
    event("accepted")
    value = parse_ipv4_untrusted(packet)
    assert parse_ipv4_untrusted(value.emit()) == value
    if header.ttl:
        assert header_untrusted(decrement_ttl(packet)) == header._replace(ttl=header.ttl - 1)
    if header.total_length <= mtu or not header.dont_fragment:
        sizes = [header_untrusted(piece).total_length for piece in fragment(packet, mtu)]
        assert max(sizes) <= mtu
    if may_answer_with_error(header, packet):
        error_packet = parse_ipv4_untrusted(host_unreachable(packet, ROUTER, header.source))
        assert parse_icmp_untrusted(error_packet.payload) == IcmpMessage(3, 1, 0, packet[: header.total_length])
    try:
        reply = echo_reply(packet)
    except WireError:
        return
    assert reply is None or header_untrusted(reply).destination == header.source
