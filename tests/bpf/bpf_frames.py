"""Frames for the tc programs, built by hand: every field can be wrong. All octets are distinct where it matters."""

import struct

VMAC = bytes.fromhex("525400123456")
PMAC = bytes.fromhex("02a1b2c3d4e5")
DIVBR_MAC = bytes.fromhex("0e1a2b3c4d5e")
PEER = bytes.fromhex("02b7c8d9eafb")
STRANGER = bytes.fromhex("02c647586970")
OTHER_MAC = bytes.fromhex("52540065432f")
BROADCAST = b"\xff" * 6
GROUP = bytes.fromhex("03d100150025")
FOREIGN_GROUP = bytes.fromhex("03d100160026")
MDNS_GROUP = bytes.fromhex("01005e0000fb")

ADDRESS = bytes((10, 21, 37, 54))
ROUTER = bytes((10, 21, 37, 1))
NEIGHBOUR = bytes((10, 21, 38, 99))
SUBNET_BROADCAST = bytes((10, 21, 37, 255))
OUTSIDE = bytes((192, 0, 2, 71))
LIMITED_BROADCAST = b"\xff" * 4
MULTICAST = bytes((224, 0, 0, 251))
NONE = bytes(4)

IPV4, ARP, RARP, IPV6, VLAN, QINQ, OLD_QINQ, DISCOVERY = (
    0x0800,
    0x0806,
    0x8035,
    0x86DD,
    0x8100,
    0x88A8,
    0x9100,
    0x88B5,
)
TCP, UDP, ICMP, GRE = 6, 17, 1, 47


def ethernet(payload: bytes, ethertype: int = IPV4, source: bytes = VMAC, destination: bytes = OTHER_MAC) -> bytes:
    return destination + source + ethertype.to_bytes(2, "big") + payload


def tag(frame: bytes, vid: int, ethertype: int = VLAN) -> bytes:
    return frame[:12] + struct.pack("!HH", ethertype, vid) + frame[12:]


def rfc1071(data: bytes) -> int:
    total = sum(struct.unpack(f"!{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return total ^ 0xFFFF


def ipv4(
    payload: bytes = b"payload-of-24-bytes-text",
    source: bytes = ADDRESS,
    destination: bytes = NEIGHBOUR,
    protocol: int = GRE,
    *,
    version: int = 4,
    ihl: int | None = None,
    total_length: int | None = None,
    offset: int = 0,
    more: bool = False,
    options: bytes = b"",
    checksum_error: int = 0,
) -> bytes:
    """offset in bytes; ihl in words and total_length are true unless given."""
    if ihl is None:
        ihl = 5 + len(options) // 4
    if total_length is None:
        total_length = 20 + len(options) + len(payload)
    fixed = struct.pack(
        "!BBHHHBBH4s4s",
        version << 4 | ihl,
        0x28,
        total_length,
        0x1D2E,
        more << 13 | offset // 8,
        64,
        protocol,
        0,
        source,
        destination,
    )
    header = fixed + options
    checksum = rfc1071(header) ^ checksum_error
    return header[:10] + checksum.to_bytes(2, "big") + header[12:] + payload


def udp(source_port: int, destination_port: int, payload: bytes = b"datagram") -> bytes:
    return struct.pack("!HHHH", source_port, destination_port, 8 + len(payload), 0) + payload


def dhcp(source: bytes = NONE, destination: bytes = LIMITED_BROADCAST, sport: int = 68, dport: int = 67) -> bytes:
    return ipv4(udp(sport, dport, b"\x01" + bytes(299)), source, destination, UDP)


def arp(
    spa: bytes = ADDRESS,
    tpa: bytes = NEIGHBOUR,
    sha: bytes = VMAC,
    tha: bytes = bytes(6),
    op: int = 1,
    *,
    htype: int = 1,
    ptype: int = 0x0800,
    hlen: int = 6,
    plen: int = 4,
) -> bytes:
    return struct.pack("!HHBBH6s4s6s4s", htype, ptype, hlen, plen, op, sha, spa, tha, tpa)


def discovery(
    source: bytes = STRANGER, destination: bytes = PMAC, *, length: int = 138, ethertype: int = ARP, magic: int = 0xD17E
) -> bytes:
    """What the kernel can tell of a discovery frame: an ARP packet, the magic, a length."""
    frame = ethernet(arp(sha=source) + magic.to_bytes(2, "big"), ethertype, source, destination)
    return (frame + bytes(length))[:length]
