"""Runs frames through the loaded programs and compares everything that may change."""

import socket
import subprocess
from dataclasses import dataclass, replace

from bpf_frames import ADDRESS, DIVBR_MAC, PMAC, ROUTER, VMAC

from divhook.abi.entries import HostEntry, PortEntry, Rate, TrafficCount
from divhook.adapters.bpf import DROP, FROM_GUEST, FROM_WIRE, PASS, REDIRECT, Programs
from divhook.core.addressing import AddressPlan
from divhook.core.endpoint import PortState
from divhook.core.reasons import DropReason

PORT_ID = 0x1A2B
UNLIMITED = Rate(1_000_000_000, 1_000_000)
WIRE_RATES = ("peer_ipv4_rate", "stranger_ipv4_rate", "peer_discovery_rate", "stranger_discovery_rate")


def run(command: str) -> str:
    done = subprocess.run(command, shell=True, check=False, capture_output=True, text=True)
    assert done.returncode == 0, f"{command}: {done.stderr}"
    return done.stdout


def host_entry(**changes: object) -> HostEntry:
    rates = dict.fromkeys(WIRE_RATES, UNLIMITED)
    fields = {
        "pmac": PMAC,
        "uplink_ifindex": socket.if_nametoindex("uplink0"),
        "divbr_ifindex": socket.if_nametoindex("divbr0"),
        "divbr_mac": DIVBR_MAC,
        "plan": AddressPlan(),
        "fastpath": False,
    }
    return HostEntry(**{**fields, **rates, **changes})  # type: ignore[arg-type]


def port_entry(**changes: object) -> PortEntry:
    fields = {
        "port_id": PORT_ID,
        "state": PortState.ACTIVE,
        "vmac": VMAC,
        "address": ADDRESS,
        "router": ROUTER,
        "ipv4_rate": UNLIMITED,
        "arp_rate": UNLIMITED,
        "dhcp_rate": UNLIMITED,
        "group_rate": UNLIMITED,
    }
    return PortEntry(**{**fields, **changes})  # type: ignore[arg-type]


@dataclass(frozen=True, slots=True)
class Bench:
    """The programs, and the interfaces whose frames they are given."""

    programs: Programs
    port: int  # ifindex
    uplink: int

    def counters(self) -> tuple[dict[tuple[int, int], tuple[int, int]], dict[int, TrafficCount]]:
        """Drops by (port id, reason), and what was handed on by port id."""
        ports = {PORT_ID, 0} | {entry.port_id for entry in self.programs.ports().values()}
        return dict(self.programs.drop_counters()), {port: self.programs.traffic(port) for port in ports}

    def assert_dropped(self, program: str, frame: bytes, reason: DropReason, port_id: int) -> None:
        """Dropped, the frame as it was, one drop counted under (port, reason), no other counter moved."""
        drops, traffic = self.counters()
        packets, octets = drops.get((port_id, reason), (0, 0))
        drops[port_id, reason] = packets + 1, octets + len(frame)
        result = self.programs.test_run(program, frame, self._ifindex(program))
        assert (result.verdict, result.frame) == (DROP, frame)
        assert self.counters() == (drops, traffic)

    def assert_diverted(self, program: str, frame: bytes, expected: bytes, mark: int, verdict: int = PASS) -> None:
        """Handed to the agent: the whole frame, the mark whatever it was before, the traffic counter alone moved."""
        port_id = mark >> 16
        drops, traffic = self.counters()
        old = traffic[port_id]
        traffic[port_id] = replace(
            old, diverted_packets=old.diverted_packets + 1, diverted_bytes=old.diverted_bytes + len(frame)
        )
        result = self.programs.test_run(program, frame, self._ifindex(program), mark=0xBADC0DE)
        assert (result.verdict, result.frame, result.mark) == (verdict, expected, mark)
        assert self.counters() == (drops, traffic)

    def assert_untouched(self, frame: bytes) -> None:
        """from_wire leaves it to the host: frame, mark and counters are as before."""
        before = self.counters()
        result = self.programs.test_run(FROM_WIRE, frame, self.uplink, mark=0x5AFE)
        assert (result.verdict, result.frame, result.mark) == (PASS, frame, 0x5AFE)
        assert self.counters() == before

    def guest_dropped(self, frame: bytes, reason: DropReason) -> None:
        self.assert_dropped(FROM_GUEST, frame, reason, PORT_ID)

    def guest_diverted(self, frame: bytes) -> None:
        group = 0x100 if frame[0] & 1 else 0
        self.assert_diverted(FROM_GUEST, frame, DIVBR_MAC + frame[6:], PORT_ID << 16 | group | 0xD1)

    def wire_dropped(self, frame: bytes, reason: DropReason) -> None:
        self.assert_dropped(FROM_WIRE, frame, reason, 0)

    def wire_diverted(self, frame: bytes, verdict: int = PASS) -> None:
        self.assert_diverted(FROM_WIRE, frame, frame, 0x1D1 if frame[0] & 1 else 0xD1, verdict)

    def wire_redirected(self, frame: bytes) -> None:
        self.wire_diverted(frame, REDIRECT)

    def _ifindex(self, program: str) -> int:
        return self.port if program == FROM_GUEST else self.uplink
