"""The walls with the real tc programs: what they divert gets through to the agent, and the rest nowhere."""

import ctypes
import os
import select
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest
from host_bench import GUEST_ADDRESSES, GUEST_MACS, HOST_MAC, MARKS, PORT_IDS, QUEUE, SUPERNET, Bench, wait_for
from hostile_frames import ALL_ONES, BRIDGE_MAC, ROUTER_MAC, arp_request, ethernet, ipv4, udp
from test_walls import Watch, as_it_is, br_netfilter, docker, flush_all, flush_raw, ip_forward, send_everything

from divhook.abi.entries import HostEntry, PortEntry
from divhook.adapters.bpf import Programs, ensure_bpffs, pin_dir_in
from divhook.adapters.nfqueue import DivertQueue
from divhook.adapters.packet import DivertSocket, GroupMembership
from divhook.core.addressing import AddressPlan
from divhook.core.endpoint import PortState

pytestmark = pytest.mark.no_agent

PEER_MAC = b"\x52\x54\x00\x0a\x0b\x0c"
GROUP = bytes.fromhex("03d1000b000c")
_MNT_DETACH = 2
_libc = ctypes.CDLL(None, use_errno=True)


def address(text: str) -> bytes:
    return socket.inet_aton(text)


@pytest.fixture
def bpffs(tmp_path: Path) -> Iterator[Path]:
    path = tmp_path / "bpffs"
    ensure_bpffs(path)
    yield path
    _libc.umount2(os.fsencode(path), _MNT_DETACH)


@pytest.fixture(params=["tcx", "tc"])
def host(request: pytest.FixtureRequest, ruled: Bench, bpffs: Path) -> Iterator[Bench]:
    """Ports and uplink with the programs instead of the marker."""
    ruled.unmark()
    with ruled.host.entered():
        uplink = socket.if_nametoindex("up0")
        programs = Programs.load(pin_dir_in(bpffs), mode=request.param)
        bridge, plan = ruled.bridge, AddressPlan(SUPERNET)
        programs.configure(HostEntry(HOST_MAC, uplink, bridge.ifindex, bridge.mac, plan, fastpath=False))
        programs.set_groups({GROUP})
        programs.add_peer(PEER_MAC)
        for link, port_id, vmac, text in zip(ruled.ports, PORT_IDS, GUEST_MACS, GUEST_ADDRESSES, strict=True):
            entry = PortEntry(port_id, PortState.ACTIVE, vmac, address(text), address("10.11.12.1"))
            programs.set_port(link.ifindex, entry)
            programs.attach_port(link.ifindex)
        programs.attach_uplink(uplink)
        yield ruled
        programs.teardown()
        programs.close()


@pytest.fixture
def diverted(host: Bench) -> Iterator[Callable[[], list[tuple[int, bytes]]]]:
    """(mark, packet or frame) that came to the agent's side since the last call."""
    packets: list[tuple[int, bytes]] = []
    with host.host.entered():
        queue = DivertQueue(QUEUE, lambda mark, hardware, packet: packets.append((mark, packet)))
        frames = DivertSocket(host.bridge.ifindex)
        membership = GroupMembership(socket.if_nametoindex("up0"))
        membership.join(GROUP)

    def read() -> list[tuple[int, bytes]]:
        select.select([queue, frames], [], [], 0.5)
        time.sleep(0.05)
        queue.read()
        seen = packets + frames.read()
        packets.clear()
        return seen

    yield read
    queue.close()
    frames.close()
    membership.close()


def test_ipv4_arp_and_dhcp_of_a_guest_arrive_each_once(
    host: Bench, diverted: Callable[[], list[tuple[int, bytes]]]
) -> None:
    guest, far = GUEST_ADDRESSES[0], "10.21.22.23"
    packet = ipv4(guest, far, 17, udp(1001, 1002, b"payload"))
    arp = arp_request(GUEST_MACS[0], guest, far)
    dhcp = ipv4("0.0.0.0", "255.255.255.255", 17, udp(68, 67, bytes(300)))
    for frame, expected in (
        (ethernet(ROUTER_MAC, GUEST_MACS[0], 0x0800, packet), (MARKS[0], packet)),
        (
            ethernet(ALL_ONES, GUEST_MACS[0], 0x0806, arp),
            (MARKS[0] | 0x100, ethernet(BRIDGE_MAC, GUEST_MACS[0], 0x0806, arp)),
        ),
        (
            ethernet(ALL_ONES, GUEST_MACS[0], 0x0800, dhcp),
            (MARKS[0] | 0x100, ethernet(BRIDGE_MAC, GUEST_MACS[0], 0x0800, dhcp)),
        ),
    ):
        host.guest_sends(frame)
        assert diverted() == [expected]


@pytest.mark.parametrize("forwarding", [0, 1])
def test_virtual_ipv4_and_discovery_from_the_wire_arrive_each_once(
    host: Bench, diverted: Callable[[], list[tuple[int, bytes]]], forwarding: int
) -> None:
    host.host.sysctl("ipv4/ip_forward", forwarding)
    packet = ipv4("10.21.22.23", GUEST_ADDRESSES[0], 17, udp(1001, 1002, b"payload"))
    to_group = ipv4("10.11.12.99", "10.11.12.255", 17, udp(1001, 1002, b"payload"))
    discovery = arp_request(PEER_MAC, "10.21.22.23", GUEST_ADDRESSES[0]) + b"\xd1\x7e" + bytes(200)
    for frame, expected in (
        (ethernet(HOST_MAC, PEER_MAC, 0x0800, packet), (0xD1, packet)),
        (ethernet(GROUP, PEER_MAC, 0x0800, to_group), (0x1D1, to_group)),
        (ethernet(HOST_MAC, PEER_MAC, 0x0806, discovery), (0xD1, ethernet(HOST_MAC, PEER_MAC, 0x0806, discovery))),
        (ethernet(GROUP, PEER_MAC, 0x0806, discovery), (0x1D1, ethernet(GROUP, PEER_MAC, 0x0806, discovery))),
    ):
        host.wire_sends(frame)
        assert diverted() == [expected]


@pytest.mark.parametrize("setting", [as_it_is, br_netfilter, ip_forward, docker])
@pytest.mark.parametrize("state", [as_it_is, flush_raw, flush_all])
def test_nothing_of_a_hostile_guest_crosses(
    host: Bench, setting: Callable[[Bench], None], state: Callable[[Bench], None]
) -> None:
    setting(host)
    state(host)
    with closing(Watch(host)) as watch:
        time.sleep(0.05)
        watch.seen()
        send_everything(host)
        time.sleep(0.1)
        assert watch.seen() == []


@pytest.mark.parametrize("state", [as_it_is, flush_all])
def test_virtual_frames_from_the_wire_reach_no_guest_and_no_socket_without_an_agent(
    host: Bench, state: Callable[[Bench], None]
) -> None:
    ip_forward(host)
    state(host)
    with closing(Watch(host)) as watch:
        watch.seen()
        for destination in (GUEST_ADDRESSES[0], "10.11.12.255", "10.255.255.255", "10.0.0.0"):
            for source in ("10.21.22.23", "192.0.2.9", "192.0.2.1"):
                packet = ipv4(source, destination, 17, udp(1001, 53, b"payload"))
                host.wire_sends(
                    ethernet(HOST_MAC, PEER_MAC, 0x0800, packet),
                    ethernet(GROUP, PEER_MAC, 0x0800, packet),
                    ethernet(ALL_ONES, PEER_MAC, 0x0800, packet),
                )
        time.sleep(0.1)
        assert watch.seen() == []


def test_service_for_the_hosts_own_traffic_goes_on_with_everything_in_place(host: Bench) -> None:
    host.host.run("ping -c 1 -W 2 192.0.2.9")
    host.wire.run("ping -c 1 -W 2 192.0.2.1")
    assert wait_for(lambda: "192.0.2.1" in host.wire.run("ip neigh"))
