"""What the copies of a group frame are, byte for byte, at the taps that they leave by."""

import select
import socket
from collections.abc import Iterator
from contextlib import ExitStack

import bpf_frames as f
import pytest
from bpf_bench import PORT_ID, Bench, host_entry, port_entry, run
from bpf_frames import ADDRESS, DIVBR_MAC, OTHER_MAC, PEER, PMAC, VMAC, ethernet, ipv4, udp

from divhook.abi.entries import GroupList, RemoteEndpoint
from divhook.adapters.bpf import DROP, FROM_GUEST, FROM_WIRE, PASS, REDIRECT
from divhook.core.addressing import AddressPlan, group_mac
from divhook.core.endpoint import PortState
from divhook.core.wire.discovery import Claim

PLAN = AddressPlan()
SUBNET = PLAN.locate(ADDRESS)
assert SUBNET is not None
NETWORK, ROUTER, GROUP_MAC = PLAN.address(SUBNET, 0), PLAN.router(SUBNET), group_mac(SUBNET)
OTHER_SUBNET = PLAN.router(PLAN.locate(bytes((10, 21, 38, 1))))  # type: ignore[arg-type]
ALL = b"\xff" * 4
GROUP, GROUP_LINK = bytes((239, 129, 2, 3)), bytes((1, 0, 0x5E, 1, 2, 3))
FAR = bytes((10, 21, 37, 99))
PAYLOAD = udp(5000, 5001, b"to all of them")
TAPS = ("c0", "c2", "c4", "c6")


@pytest.fixture
def members(bench: Bench) -> Iterator[dict[str, int]]:
    """Four ports of the subnet beside the bench's own, with lists of all, and of two for the group."""
    run(" && ".join(f"ip link add {tap} type veth peer name {tap}p && ip link set {tap} up" for tap in TAPS))
    run(" && ".join(f"ip link set {tap}p up" for tap in TAPS))
    ports = {tap: socket.if_nametoindex(tap) for tap in TAPS}
    bench.programs.configure(host_entry(fastpath=True))
    bench.programs.set_port(bench.port, port_entry(router=ROUTER))
    for number, ifindex in enumerate(ports.values(), 1):
        bench.programs.set_port(ifindex, port_entry(port_id=PORT_ID + number, vmac=OTHER_MAC, router=ROUTER))
    everyone = [(bench.port, PORT_ID), *((ifindex, PORT_ID + n) for n, ifindex in enumerate(ports.values(), 1))]
    bench.programs.set_group_list(NETWORK, ALL, GroupList(1500, tuple(everyone), complete=True))
    bench.programs.set_group_list(NETWORK, GROUP, GroupList(1500, tuple(everyone[:3])))
    claim = Claim(FAR, OTHER_MAC, PEER, 1, 1, 1, 1)
    bench.programs.set_endpoint(FAR, RemoteEndpoint(claim, 1500))
    yield ports
    for key in bench.programs.group_lists():
        bench.programs.remove_group_list(*key)
    for ifindex in ports.values():
        bench.programs.remove_port(ifindex)
    run(" && ".join(f"ip link del {tap}" for tap in TAPS))


def copies(bench: Bench, program: str, frame: bytes, verdict: int) -> tuple[bytes, dict[str, list[bytes]]]:
    """What a program leaves of a frame, and what left by each tap."""
    with ExitStack() as stack:
        ends = {}
        for tap in TAPS:
            end = stack.enter_context(socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3)))
            end.bind((f"{tap}p", 3))
            end.setblocking(False)
            ends[tap] = end
        ran = bench.programs.test_run(program, frame, bench.port if program == FROM_GUEST else bench.uplink)
        assert ran.verdict == verdict
        found: dict[str, list[bytes]] = {tap: [] for tap in TAPS}
        while ready := select.select(list(ends.values()), [], [], 0.1)[0]:
            for tap, end in ends.items():
                if end in ready:
                    got = end.recv(2048)
                    if got[12:14] == b"\x08\x00":
                        found[tap].append(got)
        return ran.frame, found


@pytest.mark.parametrize(
    ("destination", "link", "reached"),
    [
        (ALL, b"\xff" * 6, TAPS),
        (GROUP, GROUP_LINK, TAPS[:2]),
        (bytes((239, 9, 9, 9)), bytes((1, 0, 0x5E, 9, 9, 9)), ()),
    ],
)
def test_each_member_gets_the_frame_and_the_wire_one(
    bench: Bench, members: dict[str, int], destination: bytes, link: bytes, reached: tuple[str, ...]
) -> None:
    packet = ipv4(PAYLOAD, source=ADDRESS, destination=destination, protocol=f.UDP)
    for sent_to in (b"\xff" * 6, f.MDNS_GROUP):
        frame = ethernet(packet, destination=sent_to) + b"hidden"
        left, found = copies(bench, FROM_GUEST, frame, REDIRECT)
        assert left == GROUP_MAC + PMAC + b"\x08\x00" + packet
        copy = link + VMAC + b"\x08\x00" + packet
        assert found == {tap: [copy] if tap in reached else [] for tap in TAPS}


def test_from_the_wire_members_hear_the_senders_vmac(bench: Bench, members: dict[str, int]) -> None:
    packet = ipv4(PAYLOAD, source=FAR, destination=GROUP, protocol=f.UDP)
    bench.programs.set_groups({GROUP_MAC})
    _, found = copies(bench, FROM_WIRE, ethernet(packet, source=PEER, destination=GROUP_MAC), DROP)
    copy = GROUP_LINK + OTHER_MAC + b"\x08\x00" + packet
    assert found == {tap: [copy] if tap in TAPS[:2] else [] for tap in TAPS}


@pytest.mark.parametrize(
    "changes",
    [
        {"router": OTHER_SUBNET},
        {"state": PortState.FENCED},
        {"port_id": PORT_ID + 77},
        {"policed": True, "tracked": True},
    ],
)
def test_a_list_that_is_out_of_date_reaches_no_other_port(
    bench: Bench, members: dict[str, int], changes: dict[str, object]
) -> None:
    entry = {"port_id": PORT_ID + 1, "vmac": OTHER_MAC, "router": ROUTER, **changes}
    bench.programs.set_port(members[TAPS[0]], port_entry(**entry))
    packet = ipv4(PAYLOAD, source=ADDRESS, destination=ALL, protocol=f.UDP)
    _, found = copies(bench, FROM_GUEST, ethernet(packet, destination=b"\xff" * 6), REDIRECT)
    assert {tap: len(frames) for tap, frames in found.items()} == {TAPS[0]: 0, **dict.fromkeys(TAPS[1:], 1)}


@pytest.mark.parametrize("flag", ["agents", "routed", "complete", "none"])
def test_what_a_list_does_not_decide_is_the_agents(bench: Bench, members: dict[str, int], flag: str) -> None:
    unknown = bytes((239, 9, 9, 9))
    packet = ipv4(PAYLOAD, source=ADDRESS, destination=unknown, protocol=f.UDP)
    if flag == "none":
        bench.programs.remove_group_list(NETWORK, ALL)
    else:
        bench.programs.set_group_list(NETWORK, ALL, GroupList(1500, (), **{"complete": True, flag: flag != "complete"}))
    frame = ethernet(packet, destination=b"\xff" * 6)
    left, found = copies(bench, FROM_GUEST, frame, PASS)
    assert left == DIVBR_MAC + frame[6:]
    assert not any(found.values())
