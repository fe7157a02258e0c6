"""Two tracked ports of one host, a peer with three endpoints behind it, and the twins of both ports' flows."""

import ctypes
import socket
from dataclasses import replace

import bpf_frames as f
from bpf_bench import PORT_ID, Bench, host_entry, port_entry
from flow_packets import BESIDE, FAR, OTHER_SUBNET, ROUTER, TCP, WEB

from divhook.abi import layout
from divhook.abi.entries import LocalEndpoint, RemoteEndpoint
from divhook.abi.flow_entries import unpack_flow_key
from divhook.adapters.bpf import FROM_GUEST, FROM_WIRE, REDIRECT, TestRun, syscall
from divhook.adapters.bpf.flows import PortFlows
from divhook.core.addressing import Address, AddressPlan
from divhook.core.flow import Flow, FlowClass, FlowEntry, FlowKey, FlowTable, TcpState, judge, note
from divhook.core.wire.discovery import Claim
from divhook.core.wire.ipv4 import header_untrusted

PLAN = AddressPlan()
BESIDE_ID = 0x0B0C
LOCAL = {WEB: (PORT_ID, f.VMAC, "port0"), BESIDE: (BESIDE_ID, f.OTHER_MAC, "guest0")}
IDENTITIES = {WEB: 0x1111_2222_3333_4444, BESIDE: 0x5555, FAR: 0x6666, OTHER_SUBNET: 0x7777, ROUTER: 0x8888}
SLACK_S = 5.0
"""Time that a test may take between a packet and the look at it; ages jump past timeouts by more."""


class FlowBench:
    """Runs packets through programs and twins alike. The router is behind the peer: so its errors come by the wire."""

    def __init__(self, bench: Bench, *, bound: int = 512, tracked: bool = True) -> None:
        self.bench = bench
        self.programs = bench.programs
        self.programs.configure(host_entry(fastpath=True))
        self.tables: dict[Address, PortFlows] = {}
        self.twins: dict[Address, FlowTable] = {}
        self.ifindexes = {}
        for address, (port_id, vmac, name) in LOCAL.items():
            ifindex = self.ifindexes[address] = socket.if_nametoindex(name)
            self.tables[address] = self.programs.flows.install(port_id, bound)
            entry = port_entry(port_id=port_id, vmac=vmac, address=address, tracked=tracked)
            self.programs.set_port(ifindex, entry)
            self.programs.set_endpoint(
                address,
                LocalEndpoint(vmac, ifindex, port_id, 1500, tracked=tracked, identity=IDENTITIES[address]),
            )
        for address in (FAR, OTHER_SUBNET, ROUTER):
            claim = Claim(address, bytes((2, 0, *address)), f.PEER, 5, 5, 5, IDENTITIES[address])
            self.programs.set_endpoint(address, RemoteEndpoint(claim, 1500))
        self.forget()

    def close(self) -> None:
        for address, (port_id, _, _) in LOCAL.items():
            self.tables[address].close()
            self.programs.flows.remove(port_id)
        for address in IDENTITIES:
            self.programs.remove_endpoint(address)

    def forget(self) -> None:
        """No flows any more."""
        for table in self.tables.values():
            for key in entries(table):
                table.delete(key)
        self.twins = {address: FlowTable(10_000) for address in self.tables}

    def run(self, packet: bytes, gso_size: int = 0, padding: int = 0) -> TestRun:
        """A packet through the program that would see it; it must be forwarded."""
        source = packet[12:16]
        payload = packet + bytes(padding)
        if source in LOCAL:
            frame = f.ethernet(payload, source=LOCAL[source][1], destination=f.STRANGER)
            ran = self.programs.test_run(FROM_GUEST, frame, self.ifindexes[source], gso_size=gso_size)
        else:
            frame = f.ethernet(payload, source=f.PEER, destination=f.PMAC)
            ran = self.programs.test_run(FROM_WIRE, frame, self.bench.uplink, gso_size=gso_size)
        assert ran.verdict == REDIRECT, packet.hex()
        return ran

    def check(self, packet: bytes, gso_size: int = 0, segments: int = 1) -> list[FlowClass]:
        """The same packet through both; classes and all entries are alike. Returns the classes."""
        header = header_untrusted(packet)
        ran = self.run(packet, gso_size)
        now = self.programs.flows.now_s()
        classes = []
        for address, got in ((header.source, ran.flows[0]), (header.destination, ran.flows[1])):
            if address not in LOCAL:
                assert got == 0
                continue
            remote = header.destination if address == header.source else header.source
            judgement = judge(self.twins[address], PLAN, header, packet, now)
            assert FlowClass(got) == judgement.flow_class, (packet.hex(), FlowClass(got), judgement)
            identities = {"local_identity": IDENTITIES[address], "remote_identity": IDENTITIES[remote]}
            note(self.twins[address], judgement, header, now, packets=segments, **identities)
            classes.append(judgement.flow_class)
        self.compare(packet)
        return classes

    def compare(self, packet: bytes = b"") -> None:
        """All entries of both ports are those of the twins, but for the time that the test itself takes."""
        for address, table in self.tables.items():
            kernel, twin = entries(table), dict(self.twins[address].items())
            assert _timeless(kernel) == _timeless(twin), packet.hex()
            for key, entry in kernel.items():
                assert abs(entry.seen_s - twin[key].seen_s) < SLACK_S, (packet.hex(), key)

    def tcp_states(self) -> set[tuple[TcpState, TcpState]]:
        """Of all flows, opener first."""
        entries = [entry for twin in self.twins.values() for key, entry in twin.items() if key.protocol == TCP]
        return {entry.tcp for entry in entries if isinstance(entry, Flow)}

    def age(self, seconds: float) -> None:
        """Everything was seen so much earlier."""
        for address, table in self.tables.items():
            for store, found in ((table, entries(table)), (self.twins[address], dict(self.twins[address].items()))):
                for key, entry in found.items():
                    store.put(key, replace(entry, seen_s=entry.seen_s - seconds))


def entries(table: PortFlows) -> dict[FlowKey, FlowEntry]:
    """All of a small table, sooner than by items()."""
    raw = syscall.Map("flows", table.fd, ctypes.sizeof(layout.FlowKey), ctypes.sizeof(layout.Flow))
    keys = [unpack_flow_key(key) for key in raw.all_keys()]
    return {key: entry for key in keys if (entry := table.get(key)) is not None}


def _timeless(entries: dict[FlowKey, FlowEntry]) -> dict[FlowKey, FlowEntry]:
    return {key: replace(entry, seen_s=0.0) for key, entry in entries.items()}
