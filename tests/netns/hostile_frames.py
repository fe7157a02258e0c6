"""Frames, and their wire form, for the tests of divert and walls."""

import socket

BRIDGE_MAC = bytes.fromhex("06d1d1d1d1d1")
ROUTER_MAC = bytes.fromhex("02d1000b000c")
ALL_ONES = b"\xff" * 6


def checksum(data: bytes) -> int:
    total = sum(int.from_bytes(data[i : i + 2].ljust(2, b"\0"), "big") for i in range(0, len(data), 2))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


def ipv4(source: str, destination: str, protocol: int, payload: bytes, flags_offset: int = 0) -> bytes:
    header = bytes([0x45, 0]) + (20 + len(payload)).to_bytes(2, "big") + b"\x12\x34" + flags_offset.to_bytes(2, "big")
    header += bytes([64, protocol, 0, 0]) + socket.inet_aton(source) + socket.inet_aton(destination)
    return header[:10] + checksum(header).to_bytes(2, "big") + header[12:] + payload


def udp(source: int, destination: int, payload: bytes) -> bytes:
    return b"".join(n.to_bytes(2, "big") for n in (source, destination, 8 + len(payload), 0)) + payload


def tcp_syn(source: str, destination: str, port: int) -> bytes:
    segment = (1001).to_bytes(2, "big") + port.to_bytes(2, "big") + bytes(8) + bytes.fromhex("5002ffff00000000")
    pseudo = socket.inet_aton(source) + socket.inet_aton(destination) + bytes([0, 6]) + len(segment).to_bytes(2, "big")
    return segment[:16] + checksum(pseudo + segment).to_bytes(2, "big") + segment[18:]


def echo_request() -> bytes:
    message = bytes.fromhex("0800000000010002") + b"hello"
    return message[:2] + checksum(message).to_bytes(2, "big") + message[4:]


def ethernet(destination: bytes, source: bytes, ethertype: int, payload: bytes) -> bytes:
    return destination + source + ethertype.to_bytes(2, "big") + payload


def arp_request(sha: bytes, spa: str, tpa: str) -> bytes:
    fixed = bytes.fromhex("0001080006040001")
    return fixed + sha + socket.inet_aton(spa) + bytes(6) + socket.inet_aton(tpa)


def _packets(guest: str, neighbour: str, host: str, far: str) -> dict[str, bytes]:
    """IPv4 packets by what they try."""
    return {
        "udp to the host": ipv4(guest, host, 17, udp(1001, 53, b"x")),
        "tcp to the host": ipv4(guest, host, 6, tcp_syn(guest, host, 22)),
        "ping of the host": ipv4(guest, host, 1, echo_request()),
        "unknown protocol to the host": ipv4(guest, host, 253, b"x"),
        "fragment to the host": ipv4(guest, host, 17, udp(1001, 53, bytes(16)), 0x2000),
        "to the host's loopback": ipv4(guest, "127.0.0.1", 17, udp(1001, 53, b"x")),
        "from the host's own address": ipv4(host, host, 17, udp(1001, 53, b"x")),
        "from loopback": ipv4("127.0.0.1", host, 17, udp(1001, 53, b"x")),
        "from the wire's subnet": ipv4(far, host, 17, udp(1001, 53, b"x")),
        "from the internet": ipv4("198.51.100.7", host, 17, udp(1001, 53, b"x")),
        "to the wire": ipv4(guest, far, 17, udp(1001, 53, b"x")),
        "ping of the wire": ipv4(guest, far, 1, echo_request()),
        "from the host to the wire": ipv4(host, far, 17, udp(1001, 53, b"x")),
        "to the internet": ipv4(guest, "198.51.100.7", 17, udp(1001, 53, b"x")),
        "to the neighbour": ipv4(guest, neighbour, 17, udp(1001, 53, b"x")),
        "ttl 1 to the internet": ipv4(guest, "198.51.100.7", 17, udp(1001, 33434, b"x")).replace(b"\x40", b"\x01", 1),
        "dhcp": ipv4("0.0.0.0", "255.255.255.255", 17, udp(68, 67, bytes(300))),
        "rogue dhcp offer": ipv4("0.0.0.0", "255.255.255.255", 17, udp(67, 68, bytes(300))),
        "limited broadcast with source": ipv4(guest, "255.255.255.255", 17, udp(68, 67, bytes(300))),
        "limited broadcast from the host": ipv4(host, "255.255.255.255", 17, udp(68, 67, bytes(300))),
        "all zero": ipv4("0.0.0.0", "0.0.0.0", 17, udp(68, 67, bytes(300))),
        "zero to the host": ipv4("0.0.0.0", host, 17, udp(68, 67, bytes(300))),
        "zero to all systems": ipv4("0.0.0.0", "224.0.0.1", 17, udp(5353, 5353, b"x")),
        "igmp from zero": ipv4("0.0.0.0", "224.0.0.1", 2, bytes.fromhex("1100eeff00000000")),
        "igmp": ipv4(guest, "224.0.0.1", 2, bytes.fromhex("1100eeff00000000")),
        "mdns": ipv4(guest, "224.0.0.251", 17, udp(5353, 5353, b"x")),
        "subnet broadcast of the host": ipv4(guest, "192.0.2.255", 17, udp(1001, 53, b"x")),
        "class e source": ipv4("240.0.0.1", host, 17, udp(1001, 53, b"x")),
        "multicast source": ipv4("224.0.0.1", host, 17, udp(1001, 53, b"x")),
    }


def hostile_frames(
    own_mac: bytes, macs: dict[str, bytes], guest: str, neighbour: str, host: str, far: str
) -> dict[str, bytes]:
    """What a hostile guest sends: every packet to every MAC, and what is not IPv4. By description."""
    frames = {}
    for mac_name, mac in macs.items():
        for name, packet in _packets(guest, neighbour, host, far).items():
            frames[f"{name}, to {mac_name}"] = ethernet(mac, own_mac, 0x0800, packet)
        to_host = ipv4(guest, host, 17, udp(1001, 53, b"x"))
        dhcp = ipv4("0.0.0.0", "255.255.255.255", 17, udp(68, 67, bytes(300)))
        tag0, tag7 = bytes.fromhex("81000000"), bytes.fromhex("81000007")
        others = {
            "arp for the host": (0x0806, arp_request(own_mac, guest, host)),
            "gratuitous arp of the host's address": (0x0806, arp_request(own_mac, host, host)),
            "rarp": (0x8035, arp_request(own_mac, "0.0.0.0", "0.0.0.0")),
            "priority tagged": (0x8100, tag0[2:] + b"\x08\x00" + to_host),
            "priority tagged dhcp": (0x8100, tag0[2:] + b"\x08\x00" + dhcp),
            "vlan 7": (0x8100, tag7[2:] + b"\x08\x00" + to_host),
            "provider tagged": (0x88A8, tag0[2:] + tag0 + b"\x08\x00" + to_host),
            "lldp": (0x88CC, bytes(46)),
            "802.1x": (0x888E, bytes(46)),
            "pppoe": (0x8863, bytes(46)),
            "mpls": (0x8847, bytes.fromhex("00001140") + to_host),
            "router advertisement": (
                0x86DD,
                bytes.fromhex("6000000000103aff")
                + bytes.fromhex("fe80000000000000505400fffe010203")
                + bytes.fromhex("ff020000000000000000000000000001")
                + bytes.fromhex("86002cd040000708")
                + bytes(8),
            ),
        }
        for name, (ethertype, payload) in others.items():
            frames[f"{name}, to {mac_name}"] = ethernet(mac, own_mac, ethertype, payload.ljust(46, b"\0"))
    return frames
