"""The namespace that translates, without agent and programs: frames in at the host's end, and what comes out."""

import os
import socket
import struct
import subprocess
import time
from collections.abc import Iterator
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path

import pytest
from bare_fixtures import Place, wait_for

from divhook.adapters.links import LinkError, nat
from divhook.adapters.links.nat import LINK, NAT_MAC, NatNamespace, Translation
from divhook.core.addressing import parse_address
from divhook.core.wire import icmp
from divhook.core.wire.checksum import checksum
from divhook.core.wire.ipv4 import Ipv4, Protocol, header_untrusted
from divhook.core.wire.udp import Udp
from divhook.lab.lab import SYSCTL_NO_IPV6
from divhook.lab.namespaces import Namespaces, pin_directory

pytestmark = pytest.mark.no_agent
GUEST, OTHER, UNKNOWN = (parse_address(text) for text in ("10.1.1.5", "10.2.1.5", "10.9.1.5"))
SERVER, HOST = parse_address("198.51.100.9"), parse_address("192.0.2.10")
POOL = [parse_address(f"192.0.2.{n}") for n in (160, 161)]
PLAN = (
    Translation((IPv4Network("10.1.0.0/16"),), IPv4Address(POOL[0]), IPv4Address(POOL[1])),
    Translation((IPv4Network("10.2.0.0/16"),), IPv4Address(HOST), IPv4Address(HOST), 61000),
)
FEW, GRE = 5, 47
RST, ACK = 0x04, 0x10


class Bench:
    """A host of which there is nothing but the namespace. mine: what it is kept by."""

    def __init__(self, place: Place, path: Path) -> None:
        self.place = place
        self.mine = NatNamespace(path)
        self.ifindex = self.mine.ensure(1500)
        self.mine.translate(PLAN)
        self._socket = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(0x0800))
        self._socket.bind((LINK, 0x0800))

    def close(self) -> None:
        self._socket.close()
        self.mine.remove()

    def sends(self, *packets: bytes) -> None:
        for packet in packets:
            self._socket.send(NAT_MAC + NAT_MAC + b"\x08\x00" + packet)

    def out(self) -> list[bytes]:
        """The packets that have come out, once no more do."""
        found: list[bytes] = []
        self._socket.settimeout(0.15)
        try:
            while True:
                frame, address = self._socket.recvfrom(2000)
                if address[2] != socket.PACKET_OUTGOING:  # type: ignore[attr-defined]
                    found.append(frame[14 : 14 + header_untrusted(frame[14:]).total_length])
        except TimeoutError:
            return found

    def translated(self, packet: bytes) -> bytes:
        self.sends(packet)
        [out] = self.out()
        return out


def udp(source: bytes, destination: bytes, source_port: int, destination_port: int, ttl: int = 64) -> bytes:
    payload = Udp(source_port, destination_port, b"divhook").emit(source, destination)
    return Ipv4(source=source, destination=destination, protocol=Protocol.UDP, payload=payload, ttl=ttl).emit()


def tcp(source: bytes, destination: bytes, ports: tuple[int, int], numbers: tuple[int, int], flags: int) -> bytes:
    header = struct.pack("!HHIIBBHHH", *ports, *numbers, 0x50, flags, 1000, 0, 0)
    pseudo = source + destination + struct.pack("!BBH", 0, Protocol.TCP, len(header))
    sum_be = checksum(pseudo + header).to_bytes(2, "big")
    payload = header[:16] + sum_be + header[18:]
    return Ipv4(source=source, destination=destination, protocol=Protocol.TCP, payload=payload).emit()


def listing(directory: Path) -> str:
    words = ["nsenter", f"--net={directory / 'nat'}", "nft", "-a", "list", "ruleset"]
    return subprocess.run(words, capture_output=True, text=True, check=True).stdout


def ports(packet: bytes) -> tuple[int, int]:
    return int.from_bytes(packet[20:22], "big"), int.from_bytes(packet[22:24], "big")


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    namespaces = tmp_path / "ns"
    pin_directory(namespaces)
    host = Namespaces(namespaces, "host")
    host.create(("net",), SYSCTL_NO_IPV6)
    place = Place(host)
    with place.entered():
        made = Bench(place, tmp_path / "nat")
        try:
            yield made
        finally:
            made.close()
    os.system(f"umount {host.file('net')} {namespaces}")


def test_a_packet_comes_out_with_an_address_of_the_pool_and_its_answer_with_the_guests(bench: Bench) -> None:
    out = bench.translated(udp(GUEST, SERVER, 4000, 53))
    header = header_untrusted(out)
    assert header.source in POOL
    assert (header.destination, header.ttl, ports(out)) == (SERVER, 63, (4000, 53))
    back = bench.translated(udp(SERVER, header.source, 53, 4000, ttl=50))
    assert back == udp(SERVER, GUEST, 53, 4000, ttl=49)
    assert bench.mine.figures().connections == 1
    again = {header_untrusted(bench.translated(udp(GUEST, SERVER, port, 53))).source for port in range(4001, 4009)}
    assert again == {header.source}  # one guest, one address


def test_the_hosts_own_address_is_used_with_ports_of_nats_alone(bench: Bench) -> None:
    out = bench.translated(udp(OTHER, SERVER, 4000, 53))
    assert header_untrusted(out).source == HOST
    assert ports(out)[0] >= 61000
    bench.sends(Ipv4(source=OTHER, destination=SERVER, protocol=GRE, payload=bytes(20)).emit())
    assert bench.out() == []


def test_nothing_comes_out_untranslated_and_nothing_is_answered(bench: Bench) -> None:
    bench.sends(
        udp(UNKNOWN, SERVER, 4000, 53),  # of a cell without NAT
        udp(SERVER, POOL[0], 53, 4000),  # to nobody
        udp(SERVER, GUEST, 53, 4000),  # no answer to anything
        udp(SERVER, parse_address("192.0.0.8"), 53, 4000),  # to the namespace itself
    )
    assert bench.out() == []
    assert bench.mine.figures().connections == 0
    assert bench.mine.figures().invalid == 3  # the one to itself is none of those that pass


def test_an_error_about_a_translated_packet_is_translated_back(bench: Bench) -> None:
    out = bench.translated(udp(GUEST, SERVER, 4000, 53))
    router = parse_address("203.0.113.1")
    error = icmp.time_exceeded(out, router, header_untrusted(out).source)
    back = bench.translated(error)
    header = header_untrusted(back)
    assert (header.source, header.destination) == (router, GUEST)
    quoted = back[28:48]
    assert (quoted[12:16], quoted[16:20]) == (GUEST, SERVER)


def test_a_connection_that_began_elsewhere_is_reset_by_its_server(bench: Bench) -> None:
    """As of a guest that has moved here: the server does not know the new address, and its RST reaches the guest."""
    out = bench.translated(tcp(GUEST, SERVER, (4000, 80), (1000, 5000), ACK))
    address = header_untrusted(out).source
    assert address in POOL
    back = bench.translated(tcp(SERVER, address, (80, ports(out)[0]), (5000, 0), RST))
    assert header_untrusted(back).destination == GUEST
    assert (ports(back), back[33]) == ((80, 4000), RST)


def test_a_guest_has_so_many_connections_and_no_more(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nat, "MAX_TRANSLATIONS_PER_GUEST", FEW)
    bench.mine.translate(PLAN)
    bench.sends(*(udp(GUEST, SERVER, 4000 + n, 53) for n in range(FEW + 3)))
    assert len(bench.out()) == FEW
    assert bench.mine.figures().refused == 3
    assert len(bench.out()) == 0
    assert bench.translated(udp(OTHER, SERVER, 4000, 53))  # another guest has its own
    bench.mine.forget()
    assert wait_for(lambda: bench.mine.figures().connections == 0)


def test_one_server_port_is_shared_out_among_guests(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the host's own address there are some 4,500 ports towards it for all of them."""
    monkeypatch.setattr(nat, "MAX_TRANSLATIONS_PER_SERVER", FEW)
    bench.mine.translate(PLAN)
    bench.sends(*(udp(GUEST, SERVER, 4000 + n, 53) for n in range(FEW + 3)))
    assert len(bench.out()) == FEW
    assert bench.mine.figures().refused == 3
    assert bench.translated(udp(GUEST, SERVER, 4000, 54))  # another port of it
    assert bench.translated(udp(OTHER, SERVER, 4000, 53))  # another guest
    bench.mine.forget()
    assert wait_for(lambda: bench.mine.figures().connections == 0)


def test_connections_keep_their_address_when_the_rules_are_set_again(bench: Bench) -> None:
    first = bench.translated(udp(OTHER, SERVER, 4000, 53))
    pooled = Translation((IPv4Network("10.2.0.0/16"),), IPv4Address(POOL[0]), IPv4Address(POOL[1]))
    bench.mine.translate((PLAN[0], pooled))
    assert bench.translated(udp(OTHER, SERVER, 4000, 53)) == first
    bench.mine.forget()
    time.sleep(0.1)
    assert header_untrusted(bench.translated(udp(OTHER, SERVER, 4000, 53))).source in POOL


def test_it_is_made_once_and_brought_back_and_removed(bench: Bench, tmp_path: Path) -> None:
    assert bench.mine.ensure(1500) == bench.ifindex
    assert bench.mine.intact(PLAN)
    assert not bench.mine.intact(PLAN[:1])
    before = listing(tmp_path)
    bench.mine.translate(PLAN)
    assert listing(tmp_path) == before  # handles and all: nothing was set again
    first, last, reserved = bench.mine.host_ports()
    assert 0 < first < last <= 65535
    assert reserved == ""
    os.system(f"nsenter --net={tmp_path / 'nat'} nft flush ruleset")
    assert not bench.mine.intact(PLAN)
    os.system(f"ip link del {LINK}")
    assert bench.mine.ensure(1400) != bench.ifindex
    bench.mine.translate(PLAN)
    assert bench.mine.intact(PLAN)
    bench.mine.remove()
    assert not bench.mine.exists()
    assert LINK not in {name for _, name in socket.if_nameindex()}
    bench.mine.remove()  # again is no error
    with pytest.raises(LinkError, match="nat"):
        bench.mine.figures()


def test_where_it_cannot_be_made_the_error_says_what_to_run() -> None:
    with pytest.raises(LinkError, match="Run: ip netns add nat"):
        NatNamespace(Path("/proc/none/nat")).ensure(1500)
