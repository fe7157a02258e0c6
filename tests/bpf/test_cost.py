"""What a frame costs may not creep up: docs/cost.md is the ratchet.

Instructions are counted by bpf_machine, which must first come to the kernel's own result on the very frame.
"""

import ctypes
import re
from pathlib import Path

import pytest
from bpf_bench import PORT_ID, Bench, host_entry, port_entry
from bpf_frames import ADDRESS, OTHER_MAC, OUTSIDE, PEER, PMAC, ROUTER, TCP, UDP, VMAC, arp, ethernet, ipv4, udp
from bpf_machine import Cost, Machine, read_object, stack_bytes

from divhook.abi.entries import LocalEndpoint, RemoteEndpoint
from divhook.abi.layout import Flow, FlowKey
from divhook.abi.policy_entries import identity_key, policy_class, policy_entry, policy_key, port_policy
from divhook.adapters.bpf import FROM_GUEST, FROM_WIRE
from divhook.adapters.bpf.flows import kernel_ticks_per_s
from divhook.adapters.bpf.policy import PolicyMaps
from divhook.adapters.bpf.program_info import program_info
from divhook.adapters.bpf.programs import _LAYOUTS, FROM_NAT, OBJECT_FILE
from divhook.core.verdict import Relation
from divhook.core.wire.discovery import Claim

DOCUMENT = Path(__file__).parents[2] / "docs" / "cost.md"
INSTRUCTIONS_RATIO = 1.1
SIZE_RATIO = 1.25
MAX_STACK_BYTES = 512
"""Of a chain of calls: MAX_BPF_STACK, linux/filter.h. Later kernels count less for each call than Linux 6.1."""

SCRATCH_BYTES = 240
"""struct scratch, lib/policy.h"""
IDENTITY, PEER_IDENTITY, SCOPE, CLASS = 5, 1, 11, 1 << 63
SAME, ROUTED, BESIDE = bytes((10, 21, 37, 99)), bytes((10, 21, 38, 98)), bytes((10, 21, 37, 77))
PAYLOAD = udp(1000, 2000, bytes(18))
SEGMENTED = ipv4(bytes(12) + b"\x50" + bytes(7 + 2 * 1448), destination=SAME, protocol=TCP)


def packet(source: bytes = ADDRESS, destination: bytes = SAME) -> bytes:
    return ipv4(PAYLOAD, source=source, destination=destination, protocol=UDP)


def to_host(source: bytes, destination: bytes = ADDRESS) -> bytes:
    return ethernet(packet(source, destination), source=PEER, destination=PMAC)


FRAMES = {
    "from_guest: to a peer, same subnet": (FROM_GUEST, ethernet(packet()), 0),
    "from_guest: to a peer, routed": (FROM_GUEST, ethernet(packet(destination=ROUTED)), 0),
    "from_guest: to a guest here, same subnet": (FROM_GUEST, ethernet(packet(destination=BESIDE)), 0),
    "from_guest: to a peer, 2 segments": (FROM_GUEST, ethernet(SEGMENTED), 1448),
    "from_guest: ARP for the router": (FROM_GUEST, ethernet(arp(tpa=ROUTER), 0x0806), 0),
    "from_guest: to an unknown, diverted": (FROM_GUEST, ethernet(packet(destination=bytes((10, 21, 37, 5)))), 0),
    "from_guest: spoofed, dropped": (FROM_GUEST, ethernet(packet(source=SAME)), 0),
    "from_wire: to a guest, same subnet": (FROM_WIRE, to_host(SAME), 0),
    "from_wire: to a guest, routed": (FROM_WIRE, to_host(ROUTED), 0),
    "from_guest: to a peer, same subnet, tracked": (FROM_GUEST, ethernet(packet()), 0),
    "from_wire: to a guest, same subnet, tracked": (FROM_WIRE, to_host(SAME), 0),
    "from_guest: to a peer, same subnet, policed": (FROM_GUEST, ethernet(packet()), 0),
    "from_wire: to a guest, same subnet, policed": (FROM_WIRE, to_host(SAME), 0),
    "from_guest: to a peer, same subnet, policed, first of a flow": (FROM_GUEST, ethernet(packet()), 0),
    "from_wire: to a guest, same subnet, policed, first of a flow": (FROM_WIRE, to_host(SAME), 0),
    "from_wire: the host's own": (FROM_WIRE, to_host(OUTSIDE, OUTSIDE), 0),
}


@pytest.fixture
def known(bench: Bench) -> Bench:
    bench.programs.configure(host_entry(fastpath=True))
    bench.programs.set_endpoint(BESIDE, LocalEndpoint(OTHER_MAC, bench.port, PORT_ID + 1, 1500))
    for address in (SAME, ROUTED):
        bench.programs.set_endpoint(address, RemoteEndpoint(Claim(address, OTHER_MAC, PEER, 1, 1, 1, 1), 1500))
    return bench


def cost(bench: Bench, name: str) -> Cost:
    """Of the second frame of its kind, when counters and marks of use are there."""
    program, frame, gso_size = FRAMES[name]
    policed = "policed" in name
    tracked = policed or name.endswith("tracked")
    flows = bench.programs.flows.install(PORT_ID)
    polices(bench.programs.policy)
    bench.programs.set_port(bench.port, port_entry(tracked=tracked, policed=policed))
    local = LocalEndpoint(VMAC, bench.port, PORT_ID, 1500, tracked=tracked, policed=policed, identity=IDENTITY)
    bench.programs.set_endpoint(ADDRESS, local)
    ifindex = bench.port if program == FROM_GUEST else bench.uplink
    for _ in range(2):
        ran = bench.programs.test_run(program, frame, ifindex, gso_size=gso_size)
    sizes = {name: (key_length, ctypes.sizeof(layout)) for name, (key_length, layout) in _LAYOUTS.items()}
    sizes["flow"] = ctypes.sizeof(FlowKey), ctypes.sizeof(Flow)
    sizes["scratch"] = 4, SCRATCH_BYTES
    if name.endswith("first of a flow"):
        for key, _ in list(flows.items()):
            flows.delete(key)
    maps = {**bench.programs._maps, "flow": flows._table, "scratch": Zeros()}
    ticks = round(bench.programs.flows.now_s() * kernel_ticks_per_s())
    machine = Machine(read_object(OBJECT_FILE), maps, sizes, {"flows": "flow"}, ticks)
    found = machine.run(program, frame, ifindex, gso_size)
    flows.close()
    bench.programs.flows.remove(PORT_ID)
    assert (found.verdict, found.frame) == (ran.verdict, ran.frame)
    return found


class Zeros:
    """Stands for the programs' own room."""

    def get(self, key: bytes) -> bytes:
        return bytes(SCRATCH_BYTES)


def polices(policy: PolicyMaps) -> None:
    """Rules for both directions that single out the peer; what they say of UDP is said port by port."""
    cell = bytes((10, 21, 0, 0))
    record = port_policy(cell, IDENTITY, 1, (SCOPE, SCOPE), (frozenset(), frozenset()))
    policy.set_port(PORT_ID, record)
    policy.write("policy_identities", identity_key(cell, PEER_IDENTITY), policy_class(CLASS))
    for remote in (CLASS, Relation.CELL):
        for port in (2000, 2001):
            policy.write("policy_entries", policy_key(SCOPE, remote, UDP, port, 24), policy_entry(True, False, 7))


def stated() -> dict[str, list[int]]:
    """Rows of the tables: the first cell, and the numbers after it."""
    rows = re.findall(r"^\| ([^|]+?) \|((?: [\d,]+ \|)+)$", DOCUMENT.read_text(), re.MULTILINE)
    return {name: [int(number.replace(",", "")) for number in re.findall(r"[\d,]+", cells)] for name, cells in rows}


@pytest.mark.parametrize("name", FRAMES)
def test_a_frame_costs_no_more_instructions_and_helpers_than_stated(known: Bench, name: str) -> None:
    instructions, look_ups, helpers = stated()[name]
    found = cost(known, name)
    row = f"| {name} | {found.instructions} | {found.helpers['map_lookup_elem']} | {found.helpers.total()} |"
    assert found.instructions <= instructions * INSTRUCTIONS_RATIO, row
    assert found.helpers["map_lookup_elem"] <= look_ups, row
    assert found.helpers.total() <= helpers, row


@pytest.mark.parametrize("program", [FROM_GUEST, FROM_WIRE, FROM_NAT])
def test_a_program_is_no_bigger_than_stated(bench: Bench, program: str) -> None:
    verified, xlated = stated()[program]
    info = program_info(bench.programs._programs[program])
    row = f"| {program} | {info.verified} | {info.xlated} |"
    assert info.verified <= verified * SIZE_RATIO, row
    assert info.xlated <= xlated * SIZE_RATIO, row


@pytest.mark.parametrize("program", [FROM_GUEST, FROM_WIRE, FROM_NAT])
def test_the_stack_is_enough_for_linux_6_1(program: str) -> None:
    assert stack_bytes(read_object(OBJECT_FILE), program) <= MAX_STACK_BYTES
