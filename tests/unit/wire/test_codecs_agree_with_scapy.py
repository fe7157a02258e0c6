"""Scapy builds, the codecs parse; the codecs emit, scapy dissects. Two authors, one wire."""

from typing import Any

import pytest

from divhook.core.wire import arp, icmp
from divhook.core.wire.ethernet import Ethernet, parse_ethernet_untrusted
from divhook.core.wire.icmp import IcmpEcho, parse_icmp_untrusted
from divhook.core.wire.ipv4 import Ipv4, fragment, parse_ipv4_untrusted
from divhook.core.wire.udp import Udp, parse_udp_untrusted

GUEST, OTHER, ROUTER = bytes.fromhex("0a152237"), bytes.fromhex("0a424d58"), bytes.fromhex("0a152201")
VMAC, PMAC = bytes.fromhex("52545566778a"), bytes.fromhex("021122334455")
PAYLOAD = bytes(range(0x80, 0xB5))


@pytest.fixture(scope="module")
def scapy() -> Any:
    import scapy.layers.inet
    import scapy.layers.l2

    return scapy.layers


def rebuilt(packet: Any, *fields: str) -> bytes:
    """The bytes once scapy has computed these fields of the outermost layer by itself."""
    for field in fields:
        delattr(packet, field)
    return bytes(packet)


def test_arp_request(scapy: Any) -> None:
    frame = arp.request_frame(VMAC, GUEST, OTHER)
    built = scapy.l2.Ether(dst="ff:ff:ff:ff:ff:ff", src="52:54:55:66:77:8a") / scapy.l2.ARP(
        op=1, hwsrc="52:54:55:66:77:8a", psrc="10.21.34.55", hwdst="00:00:00:00:00:00", pdst="10.66.77.88"
    )
    assert frame == bytes(built)
    parsed = parse_ethernet_untrusted(bytes(built))
    assert arp.parse_arp_untrusted(parsed.payload) == arp.Arp(arp.ARP_REQUEST, VMAC, GUEST, bytes(6), OTHER)


def test_udp_in_ipv4_in_ethernet(scapy: Any) -> None:
    built = bytes(
        scapy.l2.Ether(dst="02:11:22:33:44:55", src="52:54:55:66:77:8a")
        / scapy.inet.IP(src="10.21.34.55", dst="10.66.77.88", id=0x1A2B, ttl=60, tos=0x4D, flags="DF")
        / scapy.inet.UDP(sport=0x5E6F, dport=0x7081)
        / PAYLOAD
    )
    udp = Udp(0x5E6F, 0x7081, PAYLOAD)
    ip = Ipv4(
        source=GUEST,
        destination=OTHER,
        protocol=17,
        payload=udp.emit(GUEST, OTHER),
        ttl=60,
        identification=0x1A2B,
        dscp_ecn=0x4D,
        dont_fragment=True,
    )
    assert Ethernet(PMAC, VMAC, 0x0800, ip.emit()).emit() == built
    assert parse_ipv4_untrusted(parse_ethernet_untrusted(built).payload) == ip
    assert parse_udp_untrusted(ip.payload, GUEST, OTHER) == udp


def test_ipv4_options(scapy: Any) -> None:
    options = [
        scapy.inet.IPOption_Router_Alert(alert=0x0102),
        scapy.inet.IPOption_NOP(),
        scapy.inet.IPOption_RR(routers=["10.1.2.3", "10.4.5.6"], pointer=12),
        scapy.inet.IPOption_EOL(),
    ]
    built = bytes(scapy.inet.IP(src="10.21.34.55", dst="10.66.77.88", id=7, proto=0x63, options=options) / PAYLOAD)
    ip = parse_ipv4_untrusted(built)
    assert ip.options == bytes.fromhex("94040102 01 070b0c0a0102030a040506 00000000")
    assert ip.emit() == built


def test_echo(scapy: Any) -> None:
    built = bytes(scapy.inet.ICMP(type=8, id=0x1A2B, seq=0x3C4D) / PAYLOAD)
    assert parse_icmp_untrusted(built) == IcmpEcho(False, 0x1A2B, 0x3C4D, PAYLOAD)
    assert IcmpEcho(False, 0x1A2B, 0x3C4D, PAYLOAD).emit() == built


def test_fragmentation_needed(scapy: Any) -> None:
    original = Ipv4(source=GUEST, destination=OTHER, protocol=17, payload=Udp(1, 2, PAYLOAD).emit(GUEST, OTHER)).emit()
    packet = icmp.fragmentation_needed(original, ROUTER, GUEST, 1400)
    seen = scapy.inet.IP(packet)
    del seen[scapy.inet.ICMP].chksum
    assert rebuilt(seen, "chksum", "len") == packet
    assert (seen.src, seen.dst, seen[scapy.inet.ICMP].type, seen[scapy.inet.ICMP].code) == (
        "10.21.34.1",
        "10.21.34.55",
        3,
        4,
    )
    assert seen[scapy.inet.ICMP].nexthopmtu == 1400
    assert bytes(seen[scapy.inet.IPerror]) == original


@pytest.mark.parametrize("mtu", [84, 100, 576, 1400])
def test_fragments_are_reassembled_by_scapy(scapy: Any, mtu: int) -> None:
    packet = Ipv4(
        source=GUEST,
        destination=OTHER,
        protocol=17,
        payload=Udp(0x5E6F, 0x7081, bytes(i % 251 for i in range(3000))).emit(GUEST, OTHER),
        identification=0x1A2B,
    ).emit()
    pieces = fragment(packet, mtu)
    assert max(map(len, pieces)) <= mtu
    assert [rebuilt(scapy.inet.IP(piece), "chksum", "len") for piece in pieces] == pieces
    (whole,) = scapy.inet.defragment([scapy.inet.IP(piece) for piece in pieces])
    assert rebuilt(whole, "chksum", "len") == packet
