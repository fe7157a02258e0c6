"""Real conversations, as the host's own TCP, UDP and ICMP speak, through the programs and the twins.

They are recorded on lo when the test runs, and get the endpoints' addresses. What lo cannot bring about, since it
delivers at once (both sides at the same time), is written down by flags.
"""

import contextlib
import socket
import struct
from collections.abc import Callable, Iterator
from dataclasses import replace

import pytest
from bpf_bench import Bench, run
from bpf_flows import FlowBench
from flow_packets import ACK, FAR, FIN, PSH, RST, SYN, TCP, WEB, message, tcp

from divhook.core.flow import Flow, FlowClass, TcpState
from divhook.core.wire.ipv4 import parse_ipv4_untrusted

NEW, ESTABLISHED, REPLY, RELATED, INVALID, UNTRACKED = FlowClass
CLIENT, SERVER = "127.0.0.2", "127.0.0.3"
ALIASES = {socket.inet_aton(CLIENT): WEB, socket.inet_aton(SERVER): FAR}
PACKET_HOST, ETH_P_IP = 0, 0x0800
ABORT = struct.pack("ii", 1, 0)


def record(conversation: Callable[[], None]) -> list[bytes]:
    """The IPv4 packets on lo meanwhile, from WEB and FAR."""
    run("ip link set lo mtu 1500")
    with socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM, socket.htons(ETH_P_IP)) as tap:
        tap.bind(("lo", ETH_P_IP))
        conversation()
        packets = []
        tap.setblocking(False)
        with contextlib.suppress(BlockingIOError):
            while True:
                packet, (_, _, direction, *_) = tap.recvfrom(65535)
                if direction == PACKET_HOST:
                    packets.append(_renamed(packet))
    return packets


def _renamed(raw: bytes) -> bytes:
    packet = parse_ipv4_untrusted(raw)
    payload = packet.payload
    if packet.protocol == socket.IPPROTO_ICMP:
        for old, new in ALIASES.items():
            payload = payload.replace(old, new)
    return replace(
        packet, source=ALIASES[packet.source], destination=ALIASES[packet.destination], payload=payload
    ).emit()


@contextlib.contextmanager
def connection() -> Iterator[tuple[socket.socket, socket.socket]]:
    with socket.create_server((SERVER, 0)) as listener:
        client = socket.create_connection(listener.getsockname(), source_address=(CLIENT, 0))
        server, _ = listener.accept()
        with client, server:
            yield client, server


def transfer() -> None:
    with connection() as (client, server):
        client.sendall(b"request")
        assert server.recv(100) == b"request"
        server.sendall(b"answer" * 100)
        assert client.recv(1000) == b"answer" * 100
        client.close()
        assert server.recv(1) == b""


def half_close() -> None:
    with connection() as (client, server):
        client.sendall(b"request")
        client.shutdown(socket.SHUT_WR)
        assert server.recv(100) == b"request"
        assert server.recv(100) == b""
        server.sendall(b"answer")
        server.close()
        assert client.recv(100) == b"answer"
        assert client.recv(100) == b""


def abort() -> None:
    with connection() as (client, server):
        client.sendall(b"request")
        server.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, ABORT)
        server.close()
        with pytest.raises(ConnectionResetError):
            client.recv(1)


def refused() -> None:
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection((SERVER, 9), source_address=(CLIENT, 0))


@contextlib.contextmanager
def datagrams() -> Iterator[tuple[socket.socket, socket.socket]]:
    with socket.socket(type=socket.SOCK_DGRAM) as client, socket.socket(type=socket.SOCK_DGRAM) as server:
        client.bind((CLIENT, 0))
        server.bind((SERVER, 0))
        yield client, server


def question(length: int) -> Callable[[], None]:
    def converse() -> None:
        with datagrams() as (client, server):
            client.sendto(bytes(length), server.getsockname())
            data, client_address = server.recvfrom(65535)
            server.sendto(data, client_address)
            assert client.recv(65535) == data

    return converse


def unreachable() -> None:
    with datagrams() as (client, _):
        client.connect((SERVER, 9))
        client.send(b"anybody?")
        with pytest.raises(ConnectionRefusedError):
            client.recv(1)


def ping() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP) as client:
        client.bind((CLIENT, 0))
        request = message(8, 0, b"\x12\x34\x00\x01", bytes(16))
        total = sum(struct.unpack(f"!{len(request) // 2}H", request)) % 0xFFFF
        client.sendto(request[:2] + (0xFFFF - total).to_bytes(2, "big") + request[4:], (SERVER, 0))
        assert client.recv(1000)[20] == 0


CONVERSATIONS = {
    "transfer": (transfer, (TcpState.FIN_ACKED, TcpState.FIN_ACKED)),
    "half-close": (half_close, (TcpState.FIN_ACKED, TcpState.FIN_ACKED)),
    "abort": (abort, (TcpState.RESET, TcpState.RESET)),
    "refused": (refused, (TcpState.RESET, TcpState.RESET)),
    "question": (question(200), None),
    "fragmented question": (question(4000), None),
    "unreachable": (unreachable, None),
    "ping": (ping, None),
}


@pytest.fixture
def flows(bench: Bench) -> Iterator[FlowBench]:
    made = FlowBench(bench)
    yield made
    made.close()


@pytest.mark.parametrize("name", CONVERSATIONS)
def test_real_conversation_is_one_flow_from_end_to_end(flows: FlowBench, name: str) -> None:
    conversation, end = CONVERSATIONS[name]
    packets = record(conversation)
    assert len(packets) >= 2
    classes = [flow_class for packet in packets for flow_class in flows.check(packet)]
    assert classes[0] is NEW
    inside = {RELATED} if name == "unreachable" else {ESTABLISHED, REPLY}
    assert set(classes[1:]) <= inside, classes
    kept = [entry for _, entry in flows.twins[WEB].items() if isinstance(entry, Flow)]
    assert len(kept) == 1
    assert end in (None, kept[0].tcp)


@pytest.mark.parametrize("name", sorted(CONVERSATIONS.keys() - {"question", "fragmented question"}))
def test_the_same_without_its_first_packet_is_no_flow(flows: FlowBench, name: str) -> None:
    packets = [packet for packet in record(CONVERSATIONS[name][0]) if packet[12:16] == FAR or packet[9] == TCP][1:]
    classes = [flow_class for packet in packets for flow_class in flows.check(packet)]
    assert set(classes) <= {INVALID}


WRITTEN = {
    "simultaneous close": (
        [(0, SYN), (1, SYN | ACK), (0, ACK), (0, FIN | ACK), (1, FIN | ACK), (0, ACK), (1, ACK)],
        (TcpState.FIN_ACKED, TcpState.FIN_ACKED),
    ),
    "simultaneous open": (
        [(0, SYN), (1, SYN), (0, SYN | ACK), (1, SYN | ACK), (0, ACK | PSH), (1, ACK)],
        (TcpState.OPEN, TcpState.OPEN),
    ),
    "port used again": (
        [(0, SYN), (1, SYN | ACK), (0, ACK), (0, RST), (0, SYN), (1, SYN | ACK), (0, ACK)],
        (TcpState.OPEN, TcpState.OPEN),
    ),
}


@pytest.mark.parametrize("name", WRITTEN)
def test_written_conversation_ends_as_it_should(flows: FlowBench, name: str) -> None:
    sequence, end = WRITTEN[name]
    for sender, flags in sequence:
        packet = tcp(FAR, WEB, 22, 5000, flags) if sender else tcp(WEB, FAR, 5000, 22, flags)
        assert flows.check(packet)[0] in {NEW, ESTABLISHED, REPLY}
    assert flows.tcp_states() == {end}
