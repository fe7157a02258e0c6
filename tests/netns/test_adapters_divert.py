"""What a guest sends reaches the agent's side of the kernel: whole, once, with its port's mark."""

import os
import select
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from host_bench import GUEST_MACS, MARKS, QUEUE, Bench, Witness, wait_for
from hostile_frames import ALL_ONES, BRIDGE_MAC, ROUTER_MAC, checksum, ethernet, ipv4, udp

from divhook.adapters.nfqueue import MAX_PACKET, DivertQueue
from divhook.adapters.packet import DivertSocket, FrameSender, GroupMembership

pytestmark = pytest.mark.no_agent


@pytest.fixture
def packets() -> list[tuple[int, bytes | None, bytes]]:
    return []


@pytest.fixture
def queue(ruled: Bench, packets: list[Any]) -> Iterator[DivertQueue]:
    with ruled.host.entered():
        made = DivertQueue(QUEUE, lambda mark, hardware, packet: packets.append((mark, hardware, packet)))
    yield made
    made.close()


@pytest.fixture
def divert(ruled: Bench) -> Iterator[DivertSocket]:
    with ruled.host.entered():
        made = DivertSocket(ruled.bridge.ifindex)
    yield made
    made.close()


def arrived(queue: DivertQueue, packets: list[Any], count: int) -> Callable[[], bool]:
    def read() -> bool:
        queue.read()
        return len(packets) >= count

    return read


@pytest.mark.parametrize("br_netfilter", [0, 1])
@pytest.mark.parametrize(
    "destination_mac",
    [ROUTER_MAC, GUEST_MACS[1], BRIDGE_MAC, ALL_ONES, bytes.fromhex("01005e000001"), bytes.fromhex("0180c200000e")],
    ids=lambda mac: mac.hex(),
)
def test_ipv4_to_any_mac_reaches_the_queue_whole_and_with_its_ports_mark(
    ruled: Bench, queue: DivertQueue, packets: list[Any], destination_mac: bytes, br_netfilter: int
) -> None:
    ruled.host.sysctl("bridge/bridge-nf-call-iptables", br_netfilter)
    expected = []
    for guest in (0, 1):
        packet = ipv4(f"10.11.12.{13 + guest}", "10.21.22.23", 17, udp(1001, 1002, b"payload %d" % guest))
        ruled.guest_sends(ethernet(destination_mac, GUEST_MACS[guest], 0x0800, packet), guest=guest)
        expected.append((MARKS[guest], GUEST_MACS[guest], packet))
    assert wait_for(arrived(queue, packets, 2))
    assert packets == expected
    queue.read()
    assert packets == expected


def test_two_fragments_arrive_as_two_though_the_host_tracks_connections(
    ruled: Bench, queue: DivertQueue, packets: list[Any]
) -> None:
    ruled.host.run("nft add table inet admin; nft add chain inet admin c '{type filter hook prerouting priority 0;}'")
    ruled.host.run("nft add rule inet admin c ct state established accept")
    first = ipv4("10.11.12.13", "10.21.22.23", 17, udp(1001, 1002, bytes(1000))[:800], 0x2000)
    last = ipv4("10.11.12.13", "10.21.22.23", 17, udp(1001, 1002, bytes(1000))[800:], 100)
    ruled.guest_sends(*(ethernet(ROUTER_MAC, GUEST_MACS[0], 0x0800, packet) for packet in (first, last)))
    assert wait_for(arrived(queue, packets, 2))
    assert [packet for _, _, packet in packets] == [first, last]
    assert ruled.host.run("conntrack -L 2>/dev/null") == ""


def test_a_guests_large_tcp_send_arrives_as_segments_of_mtu_size_with_valid_checksums(
    ruled: Bench, queue: DivertQueue, packets: list[Any]
) -> None:
    """The agent's side plays the TCP peer just enough to be sent a burst: SYN-ACK, then it counts."""
    script = (
        "import socket; s = socket.create_connection(('10.21.22.23', 80), 5);"
        "s.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1); s.send(b'x' * 14480); input()"
    )
    with ruled.guests[0].entered():
        client = subprocess.Popen([sys.executable, "-c", script], stdin=subprocess.PIPE)
    try:
        assert wait_for(arrived(queue, packets, 1))
        syn = packets[0][2]
        sequence = int.from_bytes(syn[24:28], "big")
        packets.clear()
        with ruled.host.entered():
            sender = FrameSender()
        tcp = syn[22:24] + syn[20:22] + (77).to_bytes(4, "big") + (sequence + 1).to_bytes(4, "big")
        tcp += bytes.fromhex("6012ffff00000000") + bytes.fromhex("020405b4")  # SYN ACK, window, MSS 1460
        pseudo = syn[16:20] + syn[12:16] + bytes([0, 6]) + len(tcp).to_bytes(2, "big")
        tcp = tcp[:16] + checksum(pseudo + tcp).to_bytes(2, "big") + tcp[18:]
        answer = ipv4("10.21.22.23", "10.11.12.13", 6, tcp)
        assert sender.send(ruled.ports[0].ifindex, ethernet(GUEST_MACS[0], ROUTER_MAC, 0x0800, answer))
        sender.close()
        wait_for(lambda: (queue.read(), sum(len(p) - 40 for _, _, p in packets) >= 10 * 1460 - 120)[1], 3)
    finally:
        client.kill()
        client.communicate()
    segments = [packet for _, _, packet in packets if len(packet) > 60]
    assert len(segments) >= 9
    assert max(len(segment) for segment in segments) == 1500
    for segment in segments:
        assert checksum(segment[:20]) == 0
        pseudo = segment[12:20] + bytes([0, 6]) + (len(segment) - 20).to_bytes(2, "big")
        assert checksum(pseudo + segment[20:]) == 0


@pytest.mark.parametrize("length", [3990, 3991, 9000, 60000, MAX_PACKET])
def test_a_packet_above_4096_bytes_arrives_whole(
    ruled: Bench, queue: DivertQueue, packets: list[Any], length: int
) -> None:
    ruled.guests[0].run("ip link set eth0 mtu 65535")
    ruled.host.run("ip link set tap1 mtu 65535")
    packet = ipv4("10.11.12.13", "10.21.22.23", 253, os.urandom(length - 20))
    ruled.guest_sends(ethernet(ROUTER_MAC, GUEST_MACS[0], 0x0800, packet))
    assert wait_for(arrived(queue, packets, 1))
    assert packets == [(MARKS[0], GUEST_MACS[0], packet)]


def test_read_takes_a_bounded_batch_and_the_rest_waits(ruled: Bench, queue: DivertQueue, packets: list[Any]) -> None:
    packet = ipv4("10.11.12.13", "10.21.22.23", 17, udp(1001, 1002, b"again"))
    ruled.guest_sends(*[ethernet(ROUTER_MAC, GUEST_MACS[0], 0x0800, packet)] * 150)
    assert wait_for(lambda: bool(select.select([queue], [], [], 0)[0]))
    batches = []
    while (count := queue.read()) or len(packets) < 150:
        batches.append(count)
    assert max(batches) == 64
    assert len(packets) == 150


def test_what_the_callback_raises_comes_out_of_read_and_the_queue_lives(ruled: Bench) -> None:
    seen = []

    def callback(mark: int, hardware: bytes | None, packet: bytes) -> None:
        seen.append(packet)
        if len(seen) == 1:
            raise KeyError("a bug of the agent")

    with ruled.host.entered():
        queue = DivertQueue(QUEUE, callback)
    packet = ipv4("10.11.12.13", "10.21.22.23", 17, udp(1001, 1002, b"x"))
    ruled.guest_sends(*[ethernet(ROUTER_MAC, GUEST_MACS[0], 0x0800, packet)] * 3)
    select.select([queue], [], [], 5)
    with pytest.raises(KeyError, match="a bug of the agent"):
        queue.read()
    assert wait_for(lambda: (queue.read(), len(seen) == 3)[1])
    queue.close()


def test_a_full_queue_drops_and_counts(ruled: Bench, queue: DivertQueue) -> None:
    packet = ipv4("10.11.12.13", "10.21.22.23", 17, udp(1001, 1002, b"flood"))
    ruled.guest_sends(*[ethernet(ROUTER_MAC, GUEST_MACS[0], 0x0800, packet)] * 6000)

    def dropped() -> int:
        with ruled.host.entered():
            counts = queue.counts()
        return counts.queue_dropped + counts.user_dropped

    assert wait_for(lambda: dropped() > 0)


@pytest.mark.parametrize("ethertype", [0x0806, 0x8035, 0x88B5])
def test_arp_rarp_and_discovery_reach_the_packet_socket_with_the_mark(
    ruled: Bench, divert: DivertSocket, ethertype: int
) -> None:
    payload = bytes(range(1, 47))
    ruled.guest_sends(ethernet(ALL_ONES, GUEST_MACS[1], ethertype, payload), guest=1)
    assert wait_for(lambda: bool(select.select([divert], [], [], 0)[0]))
    assert divert.read() == [(MARKS[1], ethernet(BRIDGE_MAC, GUEST_MACS[1], ethertype, payload))]
    assert divert.read() == []


def test_dhcp_of_a_guest_without_address_reaches_the_packet_socket_once(
    ruled: Bench, divert: DivertSocket, queue: DivertQueue, packets: list[Any]
) -> None:
    packet = ipv4("0.0.0.0", "255.255.255.255", 17, udp(68, 67, b"discover"))
    ruled.guest_sends(ethernet(ALL_ONES, GUEST_MACS[0], 0x0800, packet))
    assert wait_for(lambda: bool(select.select([divert], [], [], 0)[0]))
    assert divert.read() == [(MARKS[0], ethernet(BRIDGE_MAC, GUEST_MACS[0], 0x0800, packet))]
    assert divert.read() == []
    assert queue.read() == 0
    assert packets == []


def test_dhcp_with_br_netfilter_comes_by_the_queue_once(
    ruled: Bench, divert: DivertSocket, queue: DivertQueue, packets: list[Any]
) -> None:
    """br_netfilter queues it while it is in the bridge: divbr0 and its packet socket do not see it."""
    ruled.host.sysctl("bridge/bridge-nf-call-iptables", 1)
    packet = ipv4("0.0.0.0", "255.255.255.255", 17, udp(68, 67, b"discover"))
    ruled.guest_sends(ethernet(ALL_ONES, GUEST_MACS[0], 0x0800, packet))
    assert wait_for(arrived(queue, packets, 1))
    assert packets == [(MARKS[0], GUEST_MACS[0], packet)]
    assert divert.read() == []


def test_a_checksum_that_a_guest_left_to_its_nic_is_filled_in_on_the_packet_socket(
    ruled: Bench, divert: DivertSocket
) -> None:
    with ruled.guests[0].entered(), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
        ruled.guests[0].run("ip addr flush dev eth0; ip route add 255.255.255.255 dev eth0")
        client.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)
        client.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, b"eth0")
        client.bind(("0.0.0.0", 68))
        client.sendto(b"odd number of bytes", ("255.255.255.255", 67))
    assert wait_for(lambda: bool(select.select([divert], [], [], 0)[0]))
    ((mark, frame),) = divert.read()
    assert mark == MARKS[0]
    assert frame[26:34] == bytes(4) + b"\xff" * 4
    datagram = frame[34:]
    assert checksum(frame[26:34] + bytes([0, 17]) + len(datagram).to_bytes(2, "big") + datagram) == 0
    assert datagram[6:8] != bytes(2)


def test_a_frame_with_neither_mark_nor_admitted_type_stays_out_of_the_packet_socket(
    ruled: Bench, divert: DivertSocket
) -> None:
    packet = ipv4("10.11.12.13", "10.21.22.23", 17, udp(1001, 1002, b"x"))
    ruled.guest_sends(ethernet(ALL_ONES, GUEST_MACS[0], 0x0800, packet))
    ruled.guest_sends(ethernet(ALL_ONES, GUEST_MACS[0], 0x88CC, bytes(46)))
    ruled.unmark()
    ruled.guest_sends(ethernet(BRIDGE_MAC, GUEST_MACS[0], 0x0806, bytes(46)))
    assert not select.select([divert], [], [], 0.1)[0]
    assert divert.read() == []


def test_the_packet_socket_outlives_a_bridge_that_goes_down_and_up(ruled: Bench, divert: DivertSocket) -> None:
    ruled.host.run("ip link set divbr0 down")
    assert divert.read() == []
    ruled.host.run("ip link set divbr0 up")
    frame = ethernet(ALL_ONES, GUEST_MACS[0], 0x0806, bytes(46))
    ruled.host.run("while ! bridge link show dev tap1 | grep -q forwarding; do sleep 0.1; done")
    ruled.guest_sends(frame)
    assert wait_for(lambda: bool(select.select([divert], [], [], 0)[0]))
    assert divert.read() == [(MARKS[0], BRIDGE_MAC + frame[6:])]


def test_a_full_packet_socket_counts_what_it_lost(ruled: Bench, divert: DivertSocket) -> None:
    frame = ethernet(ALL_ONES, GUEST_MACS[0], 0x0806, bytes(1400))
    ruled.guest_sends(*[frame] * 8000)
    assert wait_for(lambda: divert.counts().lost > 0)
    read = 0
    while batch := divert.read():
        read += len(batch)
    assert divert.counts().received == read


def test_frames_sent_reach_the_guest_and_refused_ones_say_so(ruled: Bench) -> None:
    witness = Witness(ruled.guests[1], "eth0")
    with ruled.host.entered():
        sender = FrameSender()
    frame = ethernet(GUEST_MACS[1], ROUTER_MAC, 0x0800, ipv4("10.21.22.23", "10.11.12.14", 253, bytes(60)))
    assert sender.send(ruled.ports[1].ifindex, frame)
    assert witness.frames(2.0) == [frame]
    assert not sender.send(ruled.ports[1].ifindex, ethernet(GUEST_MACS[1], ROUTER_MAC, 0x0800, bytes(1501)))
    ruled.host.run("ip link set tap2 down")
    assert not sender.send(ruled.ports[1].ifindex, frame)
    assert not sender.send(9999, frame)
    assert sender.refused == 3
    sender.close()
    witness.close()


def test_group_macs_are_joined_and_left(bench: Bench) -> None:
    group = bytes.fromhex("03d1000b000c")
    with bench.host.entered():
        membership = GroupMembership(socket.if_nametoindex("up0"))

    def on_link() -> bool:
        return group.hex(":") in bench.host.run("ip maddr show dev up0")

    membership.join(group)
    membership.join(group)
    assert on_link()
    assert membership.joined == {group}
    membership.leave(group)
    assert not on_link()
    membership.join(group)
    membership.close()
    assert not on_link()
