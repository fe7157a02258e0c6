"""The fast path on real interfaces: what a guest hands over by virtio arrives as who is behind the redirect expects it.

Test-run has no partial checksums, no frames in pages, no tags in metadata and no segmentation: here are two taps with
virtio headers, and an uplink. Each frame's bytes are compared, after the kernel has cut and summed what it must.
"""

import fcntl
import os
import select
import socket
import struct
from collections.abc import Iterator
from dataclasses import dataclass

import bpf_frames as f
import pytest
from bpf_bench import PORT_ID, Bench, host_entry, port_entry, run
from bpf_frames import ethernet
from test_real_interfaces import (
    GSO_TCPV4,
    IFF_NO_PI,
    IFF_TAP,
    IFF_VNET_HDR,
    NEEDS_CSUM,
    TUNSETIFF,
    VNET_HDR,
    Ear,
    interface,
)

from divhook.abi.entries import LocalEndpoint, RemoteEndpoint, TrafficCount
from divhook.adapters.bpf import Programs
from divhook.core.addressing import SubnetId, rmac
from divhook.core.reasons import DropReason as R
from divhook.core.wire.discovery import Claim

TUNSETOFFLOAD, TUN_F_CSUM, TUN_F_TSO4 = 0x400454D0, 1, 2
SOL_PACKET, PACKET_VNET_HDR = 263, 15
WAIT_S, QUIET_S = 10.0, 0.2
PLAIN_VNET = bytes(VNET_HDR.size)

SAME = bytes((10, 21, 37, 88))
"""A guest beside the sender, on tap1."""
ROUTED = bytes((10, 21, 38, 77))
"""The same in another subnet."""
FAR, FAR_ROUTED = bytes((10, 21, 37, 99)), bytes((10, 21, 38, 99))
"""Neighbours at the peer."""
LOCAL_MAC, FAR_MAC = bytes.fromhex("5254008899aa"), bytes.fromhex("525400bbccdd")
RECEIVER_ID = PORT_ID + 1
MTU = 9000
RMAC = rmac(SubnetId(21, 38))
OWN_RMAC = rmac(SubnetId(21, 37))


@dataclass(frozen=True, slots=True)
class VirtioTap:
    """A guest's NIC: frames with virtio headers, both ways."""

    name: str
    fd: int

    @classmethod
    def made(cls, name: str) -> "VirtioTap":
        fd = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
        fcntl.ioctl(fd, TUNSETIFF, struct.pack("16sH22x", name.encode(), IFF_TAP | IFF_NO_PI | IFF_VNET_HDR))
        run(f"ip link set {name} mtu {MTU} master divbr0 up")
        return cls(name, fd)

    def offload(self, flags: int) -> None:
        fcntl.ioctl(self.fd, TUNSETOFFLOAD, flags)

    def send(self, frame: bytes, vnet: bytes = PLAIN_VNET) -> None:
        os.write(self.fd, vnet + frame)

    def hear(self, wait_s: float = WAIT_S) -> tuple[bytes, bytes]:
        """(virtio header, frame), but for what the bridge says of its own groups. Raises TimeoutError."""
        while select.select([self.fd], [], [], wait_s)[0]:
            data = os.read(self.fd, 70_000)
            header, frame = data[: VNET_HDR.size], data[VNET_HDR.size :]
            if frame[6:12] != f.DIVBR_MAC:
                return header, frame
        raise TimeoutError(self.name)

    def silent(self) -> bool:
        try:
            self.hear(QUIET_S)
        except TimeoutError:
            return True
        return False


@dataclass(frozen=True, slots=True)
class Wired:
    """Two guests of one host, its uplink, and who listens at the other end."""

    programs: Programs
    sender: VirtioTap
    receiver: VirtioTap
    ear: Ear


@pytest.fixture
def wired(bench: Bench) -> Iterator[Wired]:
    programs = bench.programs
    run(f"ip link set uplink0 mtu {MTU} && ip link set wire0 mtu {MTU} && ip link set divbr0 mtu 1500")
    programs.configure(host_entry(fastpath=True))
    sender, receiver = VirtioTap.made("tap0"), VirtioTap.made("tap1")
    programs.set_port(interface("tap0"), port_entry())
    programs.set_port(interface("tap1"), port_entry(port_id=RECEIVER_ID, vmac=LOCAL_MAC, address=SAME))
    for tap in (sender, receiver):
        programs.attach_port(interface(tap.name))
    programs.attach_uplink(bench.uplink)
    table = {
        f.ADDRESS: LocalEndpoint(f.VMAC, interface("tap0"), PORT_ID, MTU),
        SAME: LocalEndpoint(LOCAL_MAC, interface("tap1"), RECEIVER_ID, MTU),
        ROUTED: LocalEndpoint(LOCAL_MAC, interface("tap1"), RECEIVER_ID, MTU),
        FAR: RemoteEndpoint(Claim(FAR, FAR_MAC, f.PEER, 9, 8, 7, 6), MTU),
        FAR_ROUTED: RemoteEndpoint(Claim(FAR_ROUTED, FAR_MAC, f.PEER, 9, 8, 7, 6), MTU),
    }
    for address, entry in table.items():
        programs.set_endpoint(address, entry)
    ear = Ear("wire0")
    yield Wired(programs, sender, receiver, ear)
    ear.socket.close()
    programs.detach_uplink()
    for address in table:
        programs.remove_endpoint(address)
    for tap in (sender, receiver):
        programs.detach_port(interface(tap.name))
        os.close(tap.fd)
    run("ethtool -K uplink0 tx on sg on tso on gso on")


def ones(data: bytes) -> int:
    return 0xFFFF ^ f.rfc1071(data + bytes(len(data) % 2))


def pseudo(source: bytes, destination: bytes, protocol: int, length: int) -> bytes:
    return source + destination + struct.pack("!BBH", 0, protocol, length)


def tcp_packet(destination: bytes, payload: bytes, ttl: int = 64, partial: bool = True) -> bytes:
    """From f.ADDRESS, 40 bytes of headers. partial: its checksum is the pseudo-header's, and the NIC does the rest."""
    header = struct.pack("!HHIIBBHHH", 40001, 5001, 0x01020304, 5, 5 << 4, 0x10, 8192, 0, 0)
    length = len(header) + len(payload)
    summed = pseudo(f.ADDRESS, destination, f.TCP, length) + (b"" if partial else header + payload)
    checksum = ones(summed) if partial else 0xFFFF ^ ones(summed)
    segment = header[:16] + checksum.to_bytes(2, "big") + header[18:] + payload
    return with_ttl(f.ipv4(segment, f.ADDRESS, destination, f.TCP), ttl)


def with_ttl(packet: bytes, ttl: int) -> bytes:
    header = packet[:8] + bytes((ttl,)) + packet[9:10] + b"\0\0" + packet[12:20]
    return header[:10] + f.rfc1071(header).to_bytes(2, "big") + header[12:] + packet[20:]


def vnet(hdr_len: int = 54, gso_size: int = 0, csum_offset: int = 16) -> bytes:
    """The virtio header of a frame with a partial checksum, of TCP or UDP (offset 6)."""
    kind = GSO_TCPV4 if gso_size else 0
    return VNET_HDR.pack(NEEDS_CSUM, kind, hdr_len, gso_size, 34, csum_offset)


def assert_whole_tcp(
    frames: list[bytes], destination: bytes, source: bytes, packet: bytes, ttl: int, size: int
) -> None:
    """Segments of `size` bytes, each with true checksums and MACs, that make up the packet's payload."""
    payload = packet[40:]
    assert len(frames) == -(-len(payload) // size)
    for number, frame in enumerate(frames):
        data = payload[number * size : (number + 1) * size]
        assert frame[:14] == destination + source + b"\x08\x00"
        ip, segment = frame[14:34], frame[34:]
        assert (ip[:2], int.from_bytes(ip[2:4], "big"), ip[8], ip[9]) == (packet[:2], 40 + len(data), ttl, f.TCP)
        assert ip[12:20] == packet[12:20]
        assert ones(ip) == 0xFFFF
        assert int.from_bytes(segment[4:8], "big") == 0x01020304 + number * size
        assert segment[20:] == data
        assert ones(pseudo(ip[12:16], ip[16:20], f.TCP, len(segment)) + segment) == 0xFFFF


PAYLOAD = bytes(range(256)) * 40
TAP_TARGETS = {"same subnet": (SAME, f.VMAC, 64), "routed": (ROUTED, RMAC, 63)}
WIRE_TARGETS = {"same subnet": (FAR, 64), "routed": (FAR_ROUTED, 63)}


@pytest.mark.parametrize("target", TAP_TARGETS)
def test_segmented_frame_reaches_a_guest_that_takes_it_in_one_piece(wired: Wired, target: str) -> None:
    address, source, ttl = TAP_TARGETS[target]
    wired.receiver.offload(TUN_F_CSUM | TUN_F_TSO4)
    packet = tcp_packet(address, PAYLOAD[:8000] + PAYLOAD[:4000])
    wired.sender.send(ethernet(packet), vnet(gso_size=1000))
    header, frame = wired.receiver.hear()
    flags, kind, _, gso_size, start, offset = VNET_HDR.unpack(header)
    assert (flags, kind, gso_size, start, offset) == (NEEDS_CSUM, GSO_TCPV4, 1000, 34, 16)
    assert frame == ethernet(with_ttl(packet, ttl), source=source, destination=LOCAL_MAC)
    length = 14 + len(packet)
    assert wired.programs.traffic(PORT_ID) == TrafficCount(from_packets=12, from_bytes=length)
    assert wired.programs.traffic(RECEIVER_ID) == TrafficCount(to_packets=12, to_bytes=length)
    assert wired.programs.drop_counters() == {}


@pytest.mark.parametrize("target", TAP_TARGETS)
@pytest.mark.parametrize("hdr_len", [14, 54])
def test_segmented_frame_is_cut_right_for_a_guest_that_takes_none(wired: Wired, target: str, hdr_len: int) -> None:
    address, source, ttl = TAP_TARGETS[target]
    wired.receiver.offload(0)
    packet = tcp_packet(address, PAYLOAD[:9900])
    wired.sender.send(ethernet(packet), vnet(hdr_len, 1000))
    frames = [wired.receiver.hear()[1] for _ in range(10)]
    assert_whole_tcp(frames, LOCAL_MAC, source, packet, ttl, 1000)
    assert wired.receiver.silent()


@pytest.mark.parametrize("target", WIRE_TARGETS)
def test_segmented_frame_is_cut_right_for_a_wire_without_offloads(wired: Wired, target: str) -> None:
    address, ttl = WIRE_TARGETS[target]
    run("ethtool -K uplink0 tso off gso off tx off sg off")
    packet = tcp_packet(address, PAYLOAD[:5500])
    wired.sender.send(ethernet(packet), vnet(gso_size=1000))
    frames = [wired.ear.hear()[0] for _ in range(6)]
    assert_whole_tcp(frames, f.PEER, f.PMAC, packet, ttl, 1000)
    assert wired.programs.traffic(PORT_ID) == TrafficCount(from_packets=1, from_bytes=14 + len(packet))  # fits an MTU
    assert wired.ear.silent()


@pytest.mark.parametrize("size", [0, 1, 7, 1400])
def test_partial_checksum_is_made_whole_for_a_guest_that_takes_none(wired: Wired, size: int) -> None:
    wired.receiver.offload(0)
    packet = tcp_packet(ROUTED, PAYLOAD[:size])
    wired.sender.send(ethernet(packet), vnet())
    header, frame = wired.receiver.hear()
    assert header == PLAIN_VNET
    whole = tcp_packet(ROUTED, PAYLOAD[:size], ttl=63, partial=False)
    assert frame == ethernet(whole, source=RMAC, destination=LOCAL_MAC)


def test_partial_checksum_is_made_whole_for_a_wire_without_offloads(wired: Wired) -> None:
    run("ethtool -K uplink0 tso off gso off tx off sg off")
    wired.sender.send(ethernet(tcp_packet(FAR, PAYLOAD[:333])), vnet())
    whole = tcp_packet(FAR, PAYLOAD[:333], partial=False)
    assert wired.ear.hear()[0] == ethernet(whole, source=f.PMAC, destination=f.PEER)


PAGED = {
    "plain": f.ipv4(PAYLOAD[:6000], destination=ROUTED),
    "with options": f.ipv4(PAYLOAD[:6000], destination=ROUTED, options=b"\x01" * 36 + b"\x94\x04\x00\x00"),
    "a fragment": f.ipv4(PAYLOAD[:6000], destination=ROUTED, offset=1480, more=True),
    "UDP": f.ipv4(f.udp(5353, 53, PAYLOAD[:6000]), destination=ROUTED, protocol=f.UDP),
}


@pytest.mark.parametrize("packet", PAGED.values(), ids=PAGED)
@pytest.mark.parametrize("padding", [b"", b"\xa5" * 100], ids=["exact", "padded"])
def test_frame_with_fourteen_linear_bytes_is_forwarded_whole(wired: Wired, packet: bytes, padding: bytes) -> None:
    wired.sender.send(ethernet(packet) + padding, VNET_HDR.pack(0, 0, 14, 0, 0, 0))
    header_length = (packet[0] & 15) * 4
    header = packet[:8] + b"\x3f" + packet[9:10] + b"\0\0" + packet[12:header_length]
    hop = header[:10] + f.rfc1071(header).to_bytes(2, "big") + header[12:] + packet[header_length:]
    assert wired.receiver.hear()[1] == ethernet(hop, source=RMAC, destination=LOCAL_MAC)
    assert wired.programs.traffic(PORT_ID) == TrafficCount(from_packets=1, from_bytes=14 + len(packet) + len(padding))


@pytest.mark.parametrize("vid", [0, 100])
@pytest.mark.parametrize("kind", [f.VLAN, f.QINQ])
def test_tag_in_metadata_keeps_a_frame_from_being_forwarded(wired: Wired, vid: int, kind: int) -> None:
    frame = ethernet(f.ipv4(destination=SAME))
    wired.sender.send(f.tag(frame, vid, kind))
    assert wired.receiver.silent()
    assert wired.programs.drop_counters() == {(PORT_ID, R.VLAN_TAGGED): (1, len(frame))}


def test_tag_in_metadata_keeps_a_frame_of_the_wire_from_being_forwarded(wired: Wired) -> None:
    frame = ethernet(f.ipv4(source=FAR, destination=SAME), source=f.PEER, destination=f.PMAC)
    with socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0) as end:
        end.bind(("wire0", 0))
        end.send(f.tag(frame, 0))
    assert wired.receiver.silent()
    assert wired.programs.drop_counters() == {(0, R.VLAN_TAGGED): (1, len(frame))}


@pytest.mark.parametrize("padding", [b"", bytes(18)], ids=["42 bytes", "60 bytes"])
@pytest.mark.parametrize(("target", "mac"), [(f.ROUTER, OWN_RMAC), (SAME, LOCAL_MAC), (FAR, FAR_MAC)])
def test_arp_is_answered_into_the_tap_that_asked(wired: Wired, target: bytes, mac: bytes, padding: bytes) -> None:
    wired.sender.send(ethernet(f.arp(tpa=target) + padding, f.ARP, destination=f.BROADCAST))
    answer = ethernet(f.arp(target, f.ADDRESS, mac, f.VMAC, 2), f.ARP, mac, f.VMAC)
    assert wired.sender.hear() == (PLAIN_VNET, answer)
    assert wired.programs.drop_counters() == {(PORT_ID, R.CONSUMED): (1, 42 + len(padding))}
    assert wired.receiver.silent()


@pytest.mark.parametrize("takes", ["all", "nothing"])
def test_segmented_frame_of_the_wire_reaches_a_guest(wired: Wired, takes: str) -> None:
    wired.receiver.offload(TUN_F_CSUM | TUN_F_TSO4 if takes == "all" else 0)
    header = struct.pack("!HHIIBBHHH", 40001, 5001, 0x01020304, 5, 5 << 4, 0x10, 8192, 0, 0)
    payload = PAYLOAD[:9500]
    start = pseudo(FAR_ROUTED, SAME, f.TCP, 20 + len(payload))
    segment = header[:16] + ones(start).to_bytes(2, "big") + header[18:] + payload
    packet = f.ipv4(segment, FAR_ROUTED, SAME, f.TCP)
    with socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0) as end:
        end.setsockopt(SOL_PACKET, PACKET_VNET_HDR, 1)
        end.bind(("wire0", 0))
        end.send(vnet(gso_size=1000) + ethernet(packet, source=f.PEER, destination=f.PMAC))
    if takes == "all":
        assert wired.receiver.hear()[1] == ethernet(packet, source=OWN_RMAC, destination=LOCAL_MAC)
    else:
        frames = [wired.receiver.hear()[1] for _ in range(10)]
        assert_whole_tcp(frames, LOCAL_MAC, OWN_RMAC, packet, 64, 1000)
    assert wired.programs.traffic(RECEIVER_ID) == TrafficCount(to_packets=10, to_bytes=14 + len(packet))


def test_segments_too_long_for_the_target_are_the_agents(wired: Wired) -> None:
    wired.programs.set_endpoint(SAME, LocalEndpoint(LOCAL_MAC, interface("tap1"), RECEIVER_ID, 1039))
    wired.sender.send(ethernet(tcp_packet(SAME, PAYLOAD[:5000])), vnet(gso_size=1000))
    assert wired.receiver.silent()
    assert wired.programs.traffic(PORT_ID) == TrafficCount(diverted_packets=1, diverted_bytes=5054)
    wired.programs.set_endpoint(SAME, LocalEndpoint(LOCAL_MAC, interface("tap1"), RECEIVER_ID, 1040))
    wired.receiver.offload(TUN_F_CSUM | TUN_F_TSO4)
    wired.sender.send(ethernet(tcp_packet(SAME, PAYLOAD[:5000])), vnet(gso_size=1000))
    assert VNET_HDR.unpack(wired.receiver.hear()[0])[3] == 1000
