"""DHCP packets built by hand and by scapy: the oracle that the codec and the server are held against."""

import struct

from scapy.layers.inet import IP, UDP
from scapy.layers.l2 import Ether
from scapy.packet import Raw

from divhook.core.addressing import SubnetId, parse_address, parse_mac
from divhook.core.dhcp import SubnetService
from divhook.core.endpoint import Endpoint, PortState

VMAC = parse_mac("52:54:00:a1:b2:c3")
RMAC = parse_mac("02:d1:00:07:00:09")
ROUTER, ADDRESS, MASK = parse_address("10.7.9.1"), parse_address("10.7.9.42"), parse_address("255.255.255.0")
OTHER = parse_address("10.7.9.43")
ZERO, ALL_ONES = bytes(4), b"\xff" * 4
BROADCAST = parse_address("10.7.9.255")
XID = 0x3C4D5E6F
DISCOVER, OFFER, REQUEST, DECLINE, ACK, NAK, RELEASE, INFORM = (bytes([code]) for code in range(1, 9))

ENDPOINT = Endpoint(
    port=11,
    subnet=SubnetId(7, 9),
    vmac=VMAC,
    address=ADDRESS,
    guest="web-1",
    guest_uuid="0c1d2e3f-0000-4000-8000-000000000001",
    state=PortState.ACTIVE,
)
SERVICE = SubnetService(router=ROUTER, mask=MASK, broadcast=BROADCAST, lease_s=0x0E10)


def tlv(*options: tuple[int, bytes]) -> bytes:
    """Options on the wire, end included."""
    return b"".join(bytes([code, len(value)]) + value for code, value in options) + b"\xff"


def bootp(
    options: bytes,
    op: int = 1,
    htype: int = 1,
    hlen: int = 6,
    hops: int = 0,
    xid: int = XID,
    secs: int = 0x0102,
    flags: int = 0,
    ciaddr: bytes = ZERO,
    yiaddr: bytes = ZERO,
    siaddr: bytes = ZERO,
    giaddr: bytes = ZERO,
    chaddr: bytes = VMAC,
    sname: bytes = b"",
    file: bytes = b"",
    cookie: bytes = b"\x63\x82\x53\x63",
    size: int = 300,
) -> bytes:
    """A message, padded to size."""
    head = struct.pack("!BBBBIHH", op, htype, hlen, hops, xid, secs, flags) + ciaddr + yiaddr + siaddr + giaddr
    return (head + struct.pack("16s64s128s", chaddr, sname, file) + cookie + options).ljust(size, b"\0")


def text(address: bytes) -> str:
    return ".".join(str(byte) for byte in address)


def packet(
    payload: bytes, source: bytes = ZERO, destination: bytes = ALL_ONES, sport: int = 68, dport: int = 67
) -> bytes:
    """A guest's IPv4 packet."""
    return bytes(IP(src=text(source), dst=text(destination)) / UDP(sport=sport, dport=dport) / Raw(payload))


def to_guest(payload: bytes, destination: bytes = ADDRESS, mac: bytes = VMAC) -> bytes:
    """The frame that carries an answer: from the router to the client's port."""
    return bytes(
        Ether(dst=mac.hex(":"), src=RMAC.hex(":"), type=0x0800)
        / IP(src=text(ROUTER), dst=text(destination), id=0, ttl=64)
        / UDP(sport=67, dport=68)
        / Raw(payload)
    )
