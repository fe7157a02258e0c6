"""Frames for the property tests: valid ones of each codec, and valid ones that something happened to."""

from collections.abc import Callable
from dataclasses import dataclass

from hypothesis import settings
from hypothesis import strategies as st

from divhook.core.wire.arp import Arp, parse_arp_untrusted, parse_rarp_untrusted
from divhook.core.wire.checksum import checksum
from divhook.core.wire.ethernet import (
    GUEST_ETHERTYPES,
    WIRE_ETHERTYPES,
    Ethernet,
    parse_ethernet_untrusted,
)
from divhook.core.wire.icmp import ERROR_TYPES, IcmpEcho, IcmpMessage, echo_reply, parse_icmp_untrusted
from divhook.core.wire.igmp import parse_igmp_untrusted
from divhook.core.wire.ipv4 import IPV4_MAX_TOTAL, Ipv4, header_untrusted, parse_ipv4_untrusted
from divhook.core.wire.udp import Udp, parse_udp_untrusted

no_deadline = settings(deadline=None)
"""A shared machine may stop for longer than any deadline; the examples themselves take microseconds."""

UDP_SOURCE, UDP_DESTINATION = bytes.fromhex("0a152237"), bytes.fromhex("0a424d58")

macs = st.binary(min_size=6, max_size=6)
host_macs = macs.map(lambda mac: bytes((mac[0] & 0xFE | 0x02,)) + mac[1:])
addresses = st.binary(min_size=4, max_size=4)
octets = st.integers(0, 0xFF)
words = st.integers(0, 0xFFFF)
payloads = st.binary(max_size=200)

ethernets = st.builds(Ethernet, macs, host_macs, st.sampled_from(sorted(GUEST_ETHERTYPES)), payloads)
arps = st.builds(Arp, st.sampled_from((1, 2)), macs, addresses, macs, addresses)
rarps = st.builds(Arp, st.sampled_from((3, 4)), macs, addresses, macs, addresses)
udps = st.builds(Udp, words, words, payloads)
echoes = st.builds(IcmpEcho, st.booleans(), words, words, payloads)
icmp_messages = st.builds(
    IcmpMessage,
    st.sampled_from(sorted(set(range(256)) - {0, 8} - ERROR_TYPES)),
    octets,
    st.integers(0, 0xFFFFFFFF),
    payloads,
)


@st.composite
def option_lists(draw: st.DrawFn) -> bytes:
    """Options that can be walked, without source routes, padded to whole words."""
    found = b""
    for _ in range(draw(st.integers(0, 4))):
        kind = draw(st.sampled_from(sorted(set(range(256)) - {0, 131, 137})))
        data = draw(st.binary(max_size=12))
        option = b"\x01" if kind == 1 else bytes((kind, 2 + len(data))) + data
        if len(found + option) <= 40:
            found += option
    return found + bytes(-len(found) % 4)


@st.composite
def ipv4s(draw: st.DrawFn, min_payload: int = 20) -> Ipv4:
    """Valid packets, fragments among them."""
    payload = draw(st.binary(min_size=min_payload, max_size=300))
    options = draw(option_lists())
    room = IPV4_MAX_TOTAL - 20 - len(options) - len(payload)
    return Ipv4(
        source=draw(addresses),
        destination=draw(addresses),
        protocol=draw(octets),
        payload=payload,
        ttl=draw(octets),
        identification=draw(words),
        dscp_ecn=draw(octets),
        dont_fragment=draw(st.booleans()),
        more_fragments=draw(st.booleans()),
        fragment_offset=draw(st.sampled_from((0, 0, 24)) | st.integers(3, room // 8).map(lambda units: units * 8)),
        options=options,
    )


icmp_errors = st.builds(
    IcmpMessage,
    st.sampled_from(sorted(ERROR_TYPES)),
    octets,
    st.integers(0, 0xFFFFFFFF),
    ipv4s().map(Ipv4.emit),
)
pings = st.builds(
    lambda source, destination, echo: Ipv4(source=source, destination=destination, protocol=1, payload=echo.emit()),
    addresses,
    addresses,
    echoes,
)


def sealed(data: bytes, at: int, length: int, pseudo: bytes = b"") -> bytes:
    """data with a true checksum at `at`, over its first `length` bytes and a pseudo-header; untouched if too short."""
    if len(data) < max(at + 2, length):
        return data
    total = int.from_bytes(pseudo + data[:at] + b"\0\0" + data[at + 2 : length] + bytes(length % 2), "big") % 0xFFFF
    return data[:at] + (0xFFFF - total).to_bytes(2, "big") + data[at + 2 :]


def sealed_ipv4(packet: bytes) -> bytes:
    return sealed(packet, 10, max(20, (packet[0] & 15) * 4) if packet else 20)


def sealed_icmp(message: bytes) -> bytes:
    return sealed(message, 2, len(message))


def sealed_udp(datagram: bytes) -> bytes:
    length = datagram[4:6]
    return sealed(datagram, 6, int.from_bytes(length, "big"), UDP_SOURCE + UDP_DESTINATION + b"\0\x11" + length)


def parse_udp(data: bytes) -> Udp:
    return parse_udp_untrusted(data, UDP_SOURCE, UDP_DESTINATION)


def parse_ethernet_wire(data: bytes) -> Ethernet:
    return parse_ethernet_untrusted(data, WIRE_ETHERTYPES)


@st.composite
def igmp_messages(draw: st.DrawFn) -> bytes:
    """What hosts say, in all versions."""
    groups = st.binary(min_size=3, max_size=3).map(lambda rest: b"\xe5" + rest)
    kind = draw(st.sampled_from((0x12, 0x16, 0x17, 0x22, 0x22)))
    if kind != 0x22:
        return bytes((kind, draw(octets), 0, 0)) + draw(groups)
    records = []
    for _ in range(draw(st.integers(0, 3))):
        aux, sources = draw(st.integers(0, 2)), draw(st.integers(0, 2))
        records.append(bytes((draw(octets), aux, 0, sources)) + draw(groups) + bytes(4 * (aux + sources)))
    return bytes((kind, 0, 0, 0, 0, 0, 0, len(records))) + b"".join(records)


def sealed_igmp(message: bytes) -> bytes:
    """With its checksum made true."""
    if len(message) < 4:
        return message
    return message[:2] + checksum(message[:2] + bytes(2) + message[4:]).to_bytes(2, "big") + message[4:]


igmps = igmp_messages().map(sealed_igmp)


@dataclass(frozen=True)
class Codec:
    """A parser of hostile bytes, a strategy for bytes that it takes, and what makes a mutant's checksum true again."""

    name: str
    parse: Callable[[bytes], object]
    valid: st.SearchStrategy[bytes]
    seal: Callable[[bytes], bytes] = bytes


CODECS = [
    Codec("ethernet", parse_ethernet_untrusted, ethernets.map(Ethernet.emit)),
    Codec("ethernet_wire", parse_ethernet_wire, ethernets.map(Ethernet.emit)),
    Codec("arp", parse_arp_untrusted, arps.map(Arp.emit)),
    Codec("rarp", parse_rarp_untrusted, rarps.map(Arp.emit)),
    Codec("ipv4", parse_ipv4_untrusted, ipv4s().map(Ipv4.emit), sealed_ipv4),
    Codec("ipv4_header", header_untrusted, ipv4s().map(Ipv4.emit), sealed_ipv4),
    Codec("udp", parse_udp, udps.map(lambda udp: udp.emit(UDP_SOURCE, UDP_DESTINATION)), sealed_udp),
    Codec("icmp", parse_icmp_untrusted, (echoes | icmp_messages | icmp_errors).map(lambda m: m.emit()), sealed_icmp),
    Codec("igmp", parse_igmp_untrusted, igmps, sealed_igmp),
    Codec("icmp_echo_reply", echo_reply, pings.map(Ipv4.emit), sealed_ipv4),
]


@st.composite
def mutated(draw: st.DrawFn, valid: st.SearchStrategy[bytes]) -> bytes:
    """Valid bytes after one to four of: a bit flipped, an octet set, cut off, cut out, doubled, appended."""
    data = bytearray(draw(valid))
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, len(data)))
        match draw(st.integers(0, 5)):
            case 0 if at < len(data):
                data[at] ^= 1 << draw(st.integers(0, 7))
            case 1 if at < len(data):
                data[at] = draw(st.sampled_from((0, 1, 0x7F, 0x80, 0xFF)) | octets)
            case 2:
                del data[at:]
            case 3:
                del data[at : at + draw(st.integers(1, 8))]
            case 4:
                data[at:at] = data[at : at + draw(st.integers(1, 8))]
            case _:
                data += draw(st.binary(max_size=8))
    return bytes(data)
