"""A BareLab for tests that are hostile: raw frames out of any namespace, what arrives anywhere, every counter.

host A   mal .66 (hostile), near .67, alien (cell lab) .70        host C   no guest
host B   far .68, db (subnet db) .69                              station  on the wire, no key
"""

import contextlib
import os
import re
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import pytest
from host_bench import LocalDelivery, Witness
from namespaces import _set_namespace

from divhook.core.addressing import AddressPlan, Mac, SubnetId, group_mac, parse_mac, rmac
from divhook.core.wire.discovery import is_discovery
from divhook.lab.bare import NIC, BareGuest, BareLab, BareSpec
from divhook.lab.namespaces import Namespaces
from divhook.lab.wire import examine

ADDRESS = {
    "mal": "10.1.1.66",
    "near": "10.1.1.67",
    "far": "10.1.1.68",
    "db": "10.1.2.69",
    "alien": "10.2.1.70",
}
MAL = BareSpec("mal", "A", "shop", "web", ADDRESS["mal"])
NEAR = BareSpec("near", "A", "shop", "web", ADDRESS["near"])
FAR = BareSpec("far", "B", "shop", "web", ADDRESS["far"])
DB = BareSpec("db", "B", "shop", "db", ADDRESS["db"])
ALIEN = BareSpec("alien", "A", "lab", "web", ADDRESS["alien"])
CAST = (MAL, NEAR, FAR, DB, ALIEN)
WEB = SubnetId(1, 1)
WEB_RMAC, WEB_GROUP = rmac(WEB), group_mac(WEB)

Drops = Counter[tuple[str, str, str]]
"""Packets by (host, guest or "(wire)", reason)."""

TRAFFIC = ("sent_packets", "sent_bytes", "received_packets", "received_bytes")
"""Counters of an endpoint."""
HOSTS_NETWORK = bytes([172, 30, 0])
_SETTLE_S = 0.06
_SOL_PACKET, _PACKET_ADD_MEMBERSHIP, _PACKET_STATISTICS, _PACKET_MR_PROMISC = 263, 1, 6, 1
_SO_RCVBUFFORCE, _WITNESS_BUFFER = 33, 64 << 20


def between_hosts(frame: bytes) -> bool:
    """Whether it is discovery, or ARP of the hosts' own network."""
    own_arp = frame[12:14] == b"\x08\x06" and frame[28:31] == frame[38:41] == HOSTS_NETWORK
    return own_arp or is_discovery(frame)


class Place:
    """A namespace of the lab, for the calling thread to enter: what host_bench's witnesses ask for."""

    def __init__(self, of: Namespaces) -> None:
        self._file = of.file("net")

    @contextmanager
    def entered(self) -> Iterator[None]:
        here = os.open("/proc/thread-self/ns/net", os.O_RDONLY)
        there = os.open(self._file, os.O_RDONLY)
        try:
            _set_namespace(there)
            yield
        finally:
            _set_namespace(here)
            os.close(here)
            os.close(there)


class PatientWitness(Witness):
    """It has room for what comes while nobody looks, and says so where that was not enough."""

    def __init__(self, place: Place, link: str) -> None:
        super().__init__(place, link)
        self._socket.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, _WITNESS_BUFFER)

    def frames(self, wait_s: float = 0.0) -> list[bytes]:
        seen = super().frames(wait_s)
        _, lost = struct.unpack("=II", self._socket.getsockopt(_SOL_PACKET, _PACKET_STATISTICS, 8))
        assert lost == 0, f"a witness missed {lost} frames"
        return seen


class WireWitness(PatientWitness):
    """Every frame that passes the switch."""

    def __init__(self, switch: Place) -> None:
        super().__init__(switch, "sw0")
        with switch.entered():
            link = socket.if_nametoindex("sw0").to_bytes(4, sys.byteorder)
        promiscuous = link + bytes([_PACKET_MR_PROMISC, 0]) + bytes(10)
        self._socket.setsockopt(_SOL_PACKET, _PACKET_ADD_MEMBERSHIP, promiscuous)


def is_query(frame: bytes) -> bool:
    """An IGMP query to all systems by the router of 10.1.1.0/24 or alike, from its own MAC."""
    source, cell, subnet = frame[26:30], frame[27], frame[28]
    router = bytes((0x02, 0xD1, 0, cell, 0, subnet))
    return (
        frame[:12] == bytes.fromhex("01005e000001") + router
        and frame[23] == 2
        and source == bytes((10, cell, subnet, 1))
    )


class Everywhere:
    """Witnesses of all that a guest's frame must not reach: other guests, the wire, the host's own sockets."""

    def __init__(self, bench: "BareBench", but: Sequence[str] = ()) -> None:
        self._guests = {
            name: PatientWitness(Place(guest.namespace), NIC)
            for name, guest in bench.lab.bare.items()
            if name not in but
        }
        self._wire = WireWitness(Place(bench.lab.switch))
        self._hosts = {name: LocalDelivery(Place(host.namespaces)) for name, host in bench.lab.hosts.items()}
        self._bench = bench
        self._stack = self._delivered()

    def _delivered(self) -> dict[str, dict[str, int]]:
        return {name: self._bench.stack_counters(name) for name in self._hosts}

    def seen(self) -> list[str]:
        """What has arrived anywhere since the last call, one line each. What hosts say to each other is no leak.

        Nor are the virtual router's own IGMP queries, that each host sends to its guests from time to time.
        """
        lines = [
            f"{name} got {f.hex()}" for name, each in self._guests.items() for f in each.frames() if not is_query(f)
        ]
        lines += [f"the wire has {f.hex()}" for f in self._wire.frames() if not between_hosts(f)]
        lines += [f"host {name}: {line}" for name, each in self._hosts.items() for line in each.seen()]
        now = self._delivered()
        for name, counters in now.items():
            lines += [
                f"host {name}: {k} {v - self._stack[name][k]:+}"
                for k, v in counters.items()
                if v != self._stack[name][k]
            ]
        self._stack = now
        return lines

    def close(self) -> None:
        for each in (*self._guests.values(), self._wire, *self._hosts.values()):
            each.close()


class BareBench:
    """What the tests do with the lab. `macs` are the guests' MACs by name."""

    def __init__(self, lab: BareLab) -> None:
        self.lab = lab
        self.macs = {name: parse_mac(guest.spec.mac) for name, guest in lab.bare.items()}
        self.pmacs = {name: parse_mac(host.plan.mac) for name, host in lab.hosts.items()}
        self._senders: dict[Path, socket.socket] = {}

    def close(self) -> None:
        for each in self._senders.values():
            each.close()

    def guest(self, name: str) -> BareGuest:
        return self.lab.bare[name]

    def address(self, name: str) -> str:
        """Of a guest; what is no guest's name is taken for an address."""
        return str(self.guest(name).spec.address) if name in self.lab.bare else name

    @contextmanager
    def serving(self, place: Namespaces, *command: str) -> Iterator[None]:
        """A server program while the body runs."""
        with subprocess.Popen(place.enter(*command), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
            try:
                yield
            finally:
                process.kill()

    # frames

    def send(self, of: Namespaces, link: str, *frames: bytes) -> None:
        """Whole frames out of a link of a namespace."""
        sender = self._senders.get(of.file("net"))
        if sender is None:
            with Place(of).entered():
                sender = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
                sender.bind((link, 0))
            self._senders[of.file("net")] = sender
        for frame in frames:
            sender.send(frame)

    def guest_sends(self, name: str, *frames: bytes) -> None:
        self.send(self.guest(name).namespace, NIC, *frames)

    # counters

    def drops(self, consumed: bool = False, hosts: Iterable[str] = ()) -> Drops:
        """Every counter of these hosts, or of all; consumed: also frames that were answered."""
        counted: Drops = Counter()
        for name in hosts or self.lab.hosts:
            for row in self.lab.host(name).ask_agent({"op": "drops", "all": consumed})["result"]:
                counted[name, row["guest"], row["reason"]] += row["packets"]
        return counted

    def new_drops(self, before: Drops, at_least: int = 1, timeout_s: float = 5.0, consumed: bool = False) -> Drops:
        """What was counted since `before`, once there is as much as expected and no more comes."""
        end = time.monotonic() + timeout_s
        while True:
            found = self.drops(consumed) - before
            if found.total() >= at_least or time.monotonic() > end:
                time.sleep(_SETTLE_S)
                again = self.drops(consumed) - before
                if again == found or time.monotonic() > end:
                    return again

    def slow_path(self, host: str) -> dict[str, int]:
        """The agent's own counters."""
        return dict(self.lab.host(host).ask_agent({"op": "status"})["result"]["slow_path"])

    def neighbours(self) -> dict[tuple[str, str], tuple[str, str]]:
        """(host, address) → (pmac, vmac): what each host believes."""
        return {
            (name, row["address"]): (row["host"], row["vmac"])
            for name, host in self.lab.hosts.items()
            for row in host.ask_agent({"op": "neighbors"})["result"]
        }

    def endpoints(self) -> dict[str, dict[str, object]]:
        """What the agents say of each guest, without counters."""
        return {
            row["guest"]: {**{k: v for k, v in row.items() if k not in TRAFFIC}, "host": name}
            for name, host in self.lab.hosts.items()
            for row in host.ask_agent({"op": "endpoints"})["result"]
        }

    def stack_counters(self, host: str) -> dict[str, int]:
        """What the host's own IP stack delivered, forwarded or answered (/proc/net/snmp)."""
        place = Place(self.lab.host(host).namespaces)
        with place.entered():
            lines = [line.split() for line in Path("/proc/thread-self/net/snmp").read_text().splitlines()]
        values = {
            f"{n[0]}{k}": int(v)
            for n, d in zip(lines[::2], lines[1::2], strict=True)
            for k, v in zip(n[1:], d[1:], strict=True)
        }
        return {
            k: values[k]
            for k in (
                "Ip:InDelivers",
                "Ip:ForwDatagrams",
                "Icmp:InMsgs",
                "Icmp:OutMsgs",
                "Udp:InDatagrams",
                "Udp:NoPorts",
                "Tcp:InSegs",
            )
        }

    # service

    def ping(
        self, source: str, target: str, count: int = 3, interval_s: float = 0.1, size: int = 56, wait_s: float = 3
    ) -> "Ping":
        """From a guest to another's address."""
        words = ("ping", "-n", "-c", str(count), "-i", str(interval_s), "-s", str(size), "-W", str(wait_s))
        return Ping(self.guest(source).exec(*words, self.address(target), check=False).stdout)

    @contextmanager
    def steady_ping(self, source: str, target: str, seconds: float, interval_s: float = 0.1) -> Iterator["SteadyPing"]:
        """A ping that runs while the body does; its figures come after."""
        running = SteadyPing(self.guest(source), self.address(target), seconds, interval_s)
        try:
            yield running
        finally:
            running.end()

    def in_guest(self, name: str, program: str, *arguments: str) -> "AbstractContextManager[subprocess.Popen[str]]":
        """A Python program in a guest, in the background for as long as the body runs."""
        return self.running(self.guest(name).namespace, program, *arguments)

    @contextmanager
    def running(self, place: Namespaces, program: str, *arguments: str) -> Iterator["subprocess.Popen[str]"]:
        """A Python program anywhere, in the background for as long as the body runs."""
        command = place.enter(sys.executable, "-c", program, *arguments)
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
            try:
                yield process
            finally:
                process.kill()

    def assert_clean_wire(self, frames: Sequence[bytes], strangers: Sequence[Mac] = ()) -> None:
        """No guest's or router's MAC, no broadcast, requests only to groups."""
        known = {*self.pmacs.values(), *strangers}
        report = examine(((0.0, frame) for frame in frames), known, set(self.macs.values()), AddressPlan())
        assert report.clean, report


class Ping:
    """What a ping printed."""

    def __init__(self, output: str) -> None:
        self.output = output
        self.times_ms = [float(each) for each in re.findall(r"time=([\d.]+)", output)]
        self.ttls = set(re.findall(r"ttl=(\d+)", output))
        sent = re.search(r"(\d+) packets transmitted, (\d+) received", output)
        self.sent, self.received = (int(sent[1]), int(sent[2])) if sent else (0, 0)

    def __str__(self) -> str:
        ordered = sorted(self.times_ms) or [float("nan")]
        middle, late = ordered[len(ordered) // 2], ordered[int(0.99 * (len(ordered) - 1))]
        return f"{self.received}/{self.sent}, median {middle:.1f} ms, p99 {late:.1f} ms, max {ordered[-1]:.1f} ms"


class SteadyPing:
    """A ping in the background. result is set when the block is over."""

    def __init__(self, guest: BareGuest, address: str, seconds: float, interval_s: float) -> None:
        count = str(round(seconds / interval_s))
        words = ("ping", "-n", "-D", "-c", count, "-i", str(interval_s), "-W", "3", address)
        self._process = subprocess.Popen(guest.namespace.enter(*words), stdout=subprocess.PIPE, text=True)
        self.result = Ping("")

    def stop(self) -> None:
        """Send no more."""
        self._process.send_signal(signal.SIGINT)

    def end(self) -> None:
        try:
            self.result = Ping(self._process.communicate(timeout=120)[0])
        finally:
            with contextlib.suppress(ProcessLookupError):
                self._process.kill()
            self._process.wait()


def wait_for(what: Callable[[], object], seconds: float = 5.0) -> bool:
    """Whether the callable became true in time."""
    end = time.monotonic() + seconds
    while not what():
        if time.monotonic() > end:
            return False
        time.sleep(0.02)
    return True


@contextmanager
def witnesses(bench: BareBench) -> Iterator[tuple[dict[str, PatientWitness], WireWitness]]:
    """What arrives at each guest, and what passes the switch."""
    with contextlib.ExitStack() as stack:
        guests = {
            name: stack.enter_context(contextlib.closing(PatientWitness(Place(guest.namespace), NIC)))
            for name, guest in bench.lab.bare.items()
        }
        yield guests, stack.enter_context(contextlib.closing(WireWitness(Place(bench.lab.switch))))


@contextmanager
def bare_bench(
    specs: Sequence[BareSpec] = CAST,
    hosts: int = 3,
    settings: str = "",
    quiet: Sequence[str] = ("mal",),
    bench_class: type["BareBench"] = BareBench,
    cells: Path | None = None,
    lab_class: type[BareLab] = BareLab,
) -> Iterator[BareBench]:
    """A lab that is up, all guests but the quiet ones configured, and hosts no longer announcing."""
    with tempfile.TemporaryDirectory(prefix="divhook-test-", dir="/var/tmp") as directory:
        lab = lab_class(Path(directory) / "lab", specs, hosts=hosts, cells=cells, settings=settings)
        with lab:
            bench = bench_class(lab)
            try:
                for name, guest in lab.bare.items():
                    if name not in quiet:
                        guest.configure()
                        guest.exec("sysctl", "-qw", f"net.ipv4.neigh.{NIC}.base_reachable_time_ms=3600000")
                time.sleep(1.0)  # three announcements 0.2 s apart, and what the guests' kernels say of their addresses
                yield bench
            finally:
                bench.close()


@pytest.fixture(scope="module")
def bare() -> Iterator[BareBench]:
    """One lab for a module: its tests leave it as they found it."""
    with bare_bench() as bench:
        yield bench
