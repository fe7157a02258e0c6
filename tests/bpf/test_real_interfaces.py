"""What test-run cannot express, through a real tap and a real uplink: tags in metadata, frames that are hardly linear,
segmented frames, and where a diverted frame arrives."""

import fcntl
import json
import os
import socket
import struct
from collections.abc import Iterator
from dataclasses import dataclass

import bpf_frames as f
import pytest
from bpf_bench import PORT_ID, Bench, port_entry, run
from bpf_frames import ethernet

from divhook.abi.entries import Rate, TrafficCount
from divhook.core.reasons import DropReason as R

TUNSETIFF = 0x400454CA
IFF_TAP, IFF_NO_PI, IFF_VNET_HDR = 0x0002, 0x1000, 0x4000
ETH_P_ALL = 0x0003
SO_RCVMARK = 75
VNET_HDR = struct.Struct("=BBHHHH")  # flags, gso_type, hdr_len, gso_size, csum_start, csum_offset
GSO_TCPV4, NEEDS_CSUM = 1, 1
HOST = bytes((192, 0, 2, 1))
QUIET_S = 0.2
MARK = PORT_ID << 16 | 0xD1


class Ear:
    """A packet socket, as the agent's: every frame with the mark it bears."""

    def __init__(self, interface: str) -> None:
        self.socket = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
        self.socket.setsockopt(socket.SOL_SOCKET, SO_RCVMARK, 1)
        self.socket.bind((interface, ETH_P_ALL))

    def hear(self, timeout_s: float = 5) -> tuple[bytes, int]:
        self.socket.settimeout(timeout_s)
        while True:
            frame, ancillary, _, address = self.socket.recvmsg(65536, 64)
            if address[2] != socket.PACKET_OUTGOING:
                marks = [struct.unpack("=I", data)[0] for _, kind, data in ancillary if kind == socket.SO_MARK]
                return frame, marks[0] if marks else 0

    def silent(self) -> bool:
        try:
            self.hear(QUIET_S)
        except TimeoutError:
            return True
        return False


@dataclass(frozen=True, slots=True)
class Tap:
    """A guest NIC: what QEMU would hold."""

    fd: int
    bench: Bench

    def send(self, frame: bytes, **vnet: int) -> None:
        names = ("flags", "gso_type", "hdr_len", "gso_size", "csum_start", "csum_offset")
        os.write(self.fd, VNET_HDR.pack(*(vnet.get(name, 0) for name in names)) + frame)


def interface(name: str) -> int:
    return socket.if_nametoindex(name)


@pytest.fixture
def tap(bench: Bench) -> Iterator[Tap]:
    fd = os.open("/dev/net/tun", os.O_RDWR)
    fcntl.ioctl(fd, TUNSETIFF, struct.pack("16sH22x", b"tap0", IFF_TAP | IFF_NO_PI | IFF_VNET_HDR))
    run("ip link set tap0 mtu 9000 master divbr0 up")
    bench.programs.remove_port(bench.port)
    bench.programs.set_port(interface("tap0"), port_entry())
    bench.programs.attach_port(interface("tap0"))
    yield Tap(fd, bench)
    os.close(fd)


@pytest.fixture
def wire(bench: Bench) -> Iterator[socket.socket]:
    """The other end of the uplink, which has an address of the host's own."""
    bench.programs.attach_uplink(bench.uplink)
    run("ip address replace 192.0.2.1/24 dev uplink0 && sysctl -qw net.ipv4.conf.uplink0.rp_filter=0")
    with socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0) as end:
        end.bind(("wire0", 0))
        yield end
    bench.programs.detach_uplink()


@pytest.fixture
def bridge_ear(bench: Bench) -> Iterator[Ear]:
    ear = Ear("divbr0")
    yield ear
    ear.socket.close()


@pytest.fixture
def raw_prerouting(bench: Bench) -> Iterator[None]:
    """Where NFQUEUE will be: counts by interface and mark, and drops."""
    run(
        "nft 'table ip divhook_test { chain pre { type filter hook prerouting priority raw; "
        f"iifname divbr0 meta mark {MARK} counter drop; iifname uplink0 meta mark 0xd1 counter drop; "
        "iifname uplink0 meta mark 0 ip daddr 192.0.2.1 counter; }; }'"
    )
    yield
    run("nft delete table ip divhook_test")


def counted() -> list[int]:
    """Packets at divbr0 with the port's mark, at the uplink with its mark, at the uplink without."""
    rules = [r["rule"]["expr"] for r in json.loads(run("nft -j list table ip divhook_test"))["nftables"] if "rule" in r]
    return [next(e["counter"]["packets"] for e in expressions if "counter" in e) for expressions in rules]


TAGGED = {
    "802.1Q": f.tag(ethernet(f.ipv4()), 100),
    "VID 0": f.tag(ethernet(f.arp(), f.ARP), 0),
    "802.1ad": f.tag(ethernet(f.ipv4()), 100, f.QINQ),
    "tag on tag": f.tag(f.tag(ethernet(f.ipv4()), 100), 0),
}


@pytest.mark.parametrize("frame", TAGGED.values(), ids=TAGGED)
def test_guest_tag_that_the_kernel_took_into_metadata_is_seen(tap: Tap, bridge_ear: Ear, frame: bytes) -> None:
    tap.send(frame)
    untagged = len(frame) - 4  # the outermost is in metadata by then
    assert tap.bench.programs.drop_counters() == {(PORT_ID, R.VLAN_TAGGED): (1, untagged)}
    assert bridge_ear.silent()


SHORT = {
    "Ethernet header alone": (ethernet(b""), R.TRUNCATED),
    "IPv4 header cut short": (ethernet(f.ipv4()[:19]), R.TRUNCATED),
    "IPv4 header without the last octet of its options": (ethernet(f.ipv4(b"", options=b"\1" * 8)[:27]), R.TRUNCATED),
    "ARP header alone": (ethernet(b"", f.ARP), R.ARP_MALFORMED),
    "RARP cut short": (ethernet(f.arp(op=3)[:27], f.RARP), R.ARP_MALFORMED),
}


@pytest.mark.parametrize(("frame", "reason"), SHORT.values(), ids=SHORT)
def test_short_frame_from_a_guest_is_dropped_with_its_reason(tap: Tap, frame: bytes, reason: R) -> None:
    tap.send(frame)
    assert tap.bench.programs.drop_counters() == {(PORT_ID, reason): (1, len(frame))}


HARDLY_LINEAR = {
    "valid": (f.ipv4(bytes(6000)), None),
    "with options": (f.ipv4(bytes(6000), options=b"\x01" * 36 + b"\x94\x04\x00\x00"), None),
    "bad checksum": (f.ipv4(bytes(6000), checksum_error=1), R.IPV4_CHECKSUM),
    "bad last option": (f.ipv4(bytes(6000), options=b"\x01" * 36 + b"\x94\x05\x00\x00"), R.IPV4_OPTION),
    "forged source": (f.ipv4(bytes(6000), source=f.NEIGHBOUR), R.SPOOF_IPV4),
    "DHCP offer": (f.ipv4(f.udp(67, 68, bytes(6000)), protocol=f.UDP), R.ROGUE_DHCP),
}


@pytest.mark.parametrize(("packet", "reason"), HARDLY_LINEAR.values(), ids=HARDLY_LINEAR)
def test_frame_with_fourteen_linear_bytes_is_judged_like_any(
    tap: Tap, bridge_ear: Ear, packet: bytes, reason: R | None
) -> None:
    frame = ethernet(packet)
    tap.send(frame, hdr_len=14)
    if reason is None:
        assert bridge_ear.hear() == (f.DIVBR_MAC + frame[6:], MARK)
        assert tap.bench.programs.drop_counters() == {}
    else:
        assert tap.bench.programs.drop_counters() == {(PORT_ID, reason): (1, len(frame))}


def test_segments_of_a_guest_cost_one_token_each(tap: Tap, bridge_ear: Ear) -> None:
    tcp = struct.pack("!HHIIBBHHH", 40001, 5001, 1, 1, 5 << 4, 0x10, 8192, 0, 0)
    frame = ethernet(f.ipv4(tcp + bytes(4000), protocol=f.TCP))
    tap.bench.programs.set_port(interface("tap0"), port_entry(ipv4_rate=Rate(1, 10)))
    segmented = {
        "flags": NEEDS_CSUM,
        "gso_type": GSO_TCPV4,
        "hdr_len": 54,
        "gso_size": 1000,
        "csum_start": 34,
        "csum_offset": 16,
    }
    for _ in range(4):
        tap.send(frame, **segmented)
    assert tap.bench.programs.traffic(PORT_ID) == TrafficCount(2, 2 * len(frame))  # 5 tokens each, of 10
    assert tap.bench.programs.drop_counters() == {(PORT_ID, R.DIVERT_RATE_LIMITED): (2, 2 * len(frame))}


@pytest.mark.parametrize("destination", [f.BROADCAST, f.OTHER_MAC, f.DIVBR_MAC])
def test_guest_arp_arrives_at_divbr0_with_the_port_in_its_mark(tap: Tap, bridge_ear: Ear, destination: bytes) -> None:
    frame = ethernet(f.arp(), f.ARP, destination=destination)
    tap.send(frame)
    group = 0x100 if destination == f.BROADCAST else 0
    assert bridge_ear.hear() == (f.DIVBR_MAC + frame[6:], MARK | group)


@pytest.mark.parametrize("protocol", [f.GRE, f.ICMP])
def test_guest_ipv4_arrives_at_raw_prerouting_with_its_mark(tap: Tap, raw_prerouting: None, protocol: int) -> None:
    tap.send(ethernet(f.ipv4(bytes(24), protocol=protocol)))
    assert counted() == [1, 0, 0]


def test_interface_under_no_port_lets_nothing_into_the_bridge(tap: Tap, bridge_ear: Ear) -> None:
    tap.bench.programs.remove_port(interface("tap0"))
    tap.send(ethernet(f.arp(), f.ARP, destination=f.DIVBR_MAC))
    assert bridge_ear.silent()
    assert tap.bench.programs.drop_counters() == {(0, R.PORT_UNKNOWN): (1, 42)}


DISCOVERY = {
    "unicast": (f.discovery(), 0xD1),
    "to a group": (f.discovery(destination=f.GROUP), 0x1D1),
    "by its own EtherType": (f.discovery(ethertype=f.DISCOVERY), 0xD1),
    "longest": (f.discovery(length=1162), 0xD1),
}


@pytest.mark.parametrize(("frame", "mark"), DISCOVERY.values(), ids=DISCOVERY)
def test_discovery_arrives_at_divbr0_whole_and_marked(
    wire: socket.socket, bridge_ear: Ear, frame: bytes, mark: int
) -> None:
    wire.send(frame)
    assert bridge_ear.hear() == (frame, mark)


def test_discovery_socket_for_arp_alone_hears_it_too(wire: socket.socket) -> None:
    with socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0) as arp_socket:
        arp_socket.bind(("divbr0", f.ARP))
        arp_socket.settimeout(5)
        wire.send(f.discovery())
        assert arp_socket.recv(2000) == f.discovery()


def test_the_hosts_arp_answers_plain_arp_and_never_discovery(wire: socket.socket) -> None:
    ear = Ear("wire0")
    asker = bytes((192, 0, 2, 9))
    question = ethernet(f.arp(asker, HOST, sha=f.STRANGER), f.ARP, f.STRANGER, f.PMAC)
    wire.send((question + b"\xd1\x7e" + bytes(200))[:138])
    assert ear.silent()
    wire.send(question)
    answer = ethernet(f.arp(HOST, asker, f.PMAC, f.STRANGER, 2), f.ARP, f.PMAC, f.STRANGER)
    assert ear.hear()[0] == answer
    ear.socket.close()


def test_the_host_learns_no_virtual_address_from_plain_arp(wire: socket.socket, bench: Bench) -> None:
    ear = Ear("wire0")
    wire.send(ethernet(f.arp(f.NEIGHBOUR, HOST, sha=f.STRANGER), f.ARP, f.STRANGER, f.BROADCAST))
    assert ear.silent()
    assert "10.21.38.99" not in run("ip neighbour show dev uplink0")
    assert bench.programs.drop_counters() == {(0, R.UNKNOWN_HOST): (1, 42)}
    ear.socket.close()


def test_wire_packets_arrive_at_raw_prerouting_marked_if_virtual(wire: socket.socket, raw_prerouting: None) -> None:
    virtual = f.ipv4(source=f.NEIGHBOUR, destination=f.ADDRESS)
    wire.send(ethernet(virtual, source=f.PEER, destination=f.PMAC))
    wire.send(ethernet(f.ipv4(source=f.OUTSIDE, destination=HOST), source=f.STRANGER, destination=f.PMAC))
    assert counted() == [0, 1, 1]


@pytest.mark.parametrize("tags", [1, 2, 3, 5, 6])
def test_virtual_packet_below_any_number_of_tags_never_reaches_the_host(
    wire: socket.socket, raw_prerouting: None, bench: Bench, tags: int
) -> None:
    frame = ethernet(f.ipv4(source=f.NEIGHBOUR, destination=HOST), source=f.STRANGER, destination=f.PMAC)
    for _ in range(tags):
        frame = f.tag(frame, 0)
    wire.send(frame)
    assert counted() == [0, 0, 0]
    assert bench.programs.drop_counters() == {(0, R.VLAN_TAGGED): (1, len(frame) - 4)}


def test_tagged_traffic_of_the_host_is_untouched(wire: socket.socket, raw_prerouting: None, bench: Bench) -> None:
    frame = ethernet(f.ipv4(source=f.OUTSIDE, destination=HOST), source=f.STRANGER, destination=f.PMAC)
    wire.send(f.tag(frame, 0))
    assert counted() == [0, 0, 1]
    assert bench.programs.drop_counters() == {}
