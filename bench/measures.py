"""One figure at a time: what is run for each measure, and what is made of it.

Everything of host A and its guests runs on CPU 0, of host B on CPU 1: askers and senders, servers and receivers. A
frame's way runs in softirqs of its sender's CPU, up to the queue of the receiving socket.

fwd_cost_ns   frames injected at a guest's port (inject.c), discarded at the NIC of the target guest: CPU time per
              frame of the injecting thread, in which all of it runs, and of the contender's own processes; less the
              same into an interface that drops. A contender that forwards in a process gets paced frames, and is
              divided by those that arrive. fwd_cost_hosts_ns: less the same over a switch of this kind, which in the
              world takes no host's time; fwd_cost_one_host_ns: from port to port of one host, no switch;
              fwd_cost_spread_ns: to as many destinations as are known, in no order
udp64_pps     frames of a packet socket in the guest, as trafgen sends, that arrive, per second of wall time
cpu_…         CPU time of thread and processes of that flood; of the whole machine for a gigabyte of TCP
"""

import json
import subprocess
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from bench.endpoints import COPIES_FROM
from bench.plain import INJECTORS, address
from bench.toolbox import Toolbox, attach_tc, result
from divhook.lab.bare import NIC, BareGuest
from divhook.lab.errors import LabError
from divhook.lab.host import LabHost
from divhook.lab.lab import SWITCH
from divhook.lab.namespaces import Namespaces

CPU = {"A": 0, "B": 1}
TARGETS = {"intra": "web", "inter-single": "db", "inter-double": "db"}
"""Who ask talks to. In inter-double the target sends to ask at the same time."""
COLD_SPACING_MS = 50
FLOOD_MARGIN_MS = 40
ARRIVED_SHARE = 0.998
"""Fewer arrivals than this of what was injected, and the figure would be of frames lost half-way."""
PROBE_FRAMES = 20_000
"""More than any queue to a process holds."""
SETTLE_S = 6.0
WARM_TRIES = 5
"""A machine that is busy with something else loses a datagram now and then."""
SINK = "b-sink"
"""The interface that drops: on host A of every contender, beside the taps."""
WIRE_IN, WIRE_OUT = "b-in", "b-out"
"""Two more ports of the switch: what it costs to pass it."""
WIRE_MACS = ("06:0d:5e:00:02:01", "06:0d:5e:00:02:02")
"""Destination and source of frames into sink and switch. Not a guest's: the switch learns where it sees them."""

Figures = Mapping[str, float]
Hop = tuple[str, str, str, str]
"""(MAC that the sender's neighbour table has for the way there, own MAC, own address, target's address)"""


class Network(Protocol):
    """What is measured: a lab that is up."""

    bare: dict[str, BareGuest]
    switch: Namespaces
    detail: str

    def host(self, name: str) -> LabHost:
        """One host."""

    def forwarders(self) -> list[int]:
        """Pids of processes that forward."""


@dataclass(frozen=True, slots=True)
class Effort:
    """How often and how long. `frames` are per run, `cold` and `injections` per round; paced_ms: in place of frames."""

    rounds: int
    tcp_ms: int
    flood_ms: int
    rr_ms: int
    crr_ms: int
    cold: int
    injections: int
    frames: int
    paced_ms: int


QUICK = Effort(3, tcp_ms=300, flood_ms=150, rr_ms=250, crr_ms=250, cold=4, injections=3, frames=32_000, paced_ms=100)
FULL = Effort(9, tcp_ms=1500, flood_ms=300, rr_ms=1000, crr_ms=700, cold=4, injections=5, frames=96_000, paced_ms=200)


class Bench:
    """One contender with servers in its guests. A context manager: the servers end with it.

    paced_pps: rate of injected frames for a contender that forwards in a process; 0 for the kernel's.
    gen_answered: whether the guests at whose taps frames are injected can be answered.
    """

    def __init__(
        self, name: str, lab: Network, toolbox: Toolbox, effort: Effort, paced_pps: int = 0, gen_answered: bool = True
    ) -> None:
        self.name = name
        self.lab = lab
        self.paced_pps = paced_pps
        self._toolbox = toolbox
        self._effort = effort
        self._gen_answered = gen_answered
        self._stack = ExitStack()
        self._hops: dict[tuple[str, str], Hop] = {}

    def __enter__(self) -> "Bench":
        try:
            a = self.lab.host("A").namespaces
            a.ip(f"link add {SINK} type veth peer name {SINK}2", f"link set {SINK}2 up", f"link set {SINK} up")
            attach_tc(a, SINK, self._toolbox.programs)
            self._arm(a, SINK)
            self._probe_switch()
            for guest in {id(each): each for each in self.lab.bare.values()}.values():
                attach_tc(guest.namespace, NIC, self._toolbox.programs)
                if guest.name in INJECTORS:
                    self._arm(guest.host.namespaces, guest.spec.tap)
                else:
                    self._stack.enter_context(self._served(guest))
        except BaseException:
            self._stack.close()
            raise
        return self

    def __exit__(self, *_error: object) -> None:
        self._stack.close()

    def _probe_switch(self) -> None:
        switch, inner, outer = self.lab.switch, WIRE_IN, WIRE_OUT
        switch.ip(
            *(f"link add {each} type veth peer name {each}2" for each in (inner, outer)),
            *(f"link set {each} master {SWITCH} up" for each in (inner, outer)),
            f"link set {inner}2 up",
            f"link set {outer}2 address {WIRE_MACS[0]} up",
        )
        switch.run("bridge", "fdb", "replace", WIRE_MACS[0], "dev", outer, "master", "static")
        attach_tc(switch, f"{outer}2", self._toolbox.programs)
        self._arm(switch, inner)

    def _arm(self, namespaces: Namespaces, device: str) -> None:
        """Let a veth take live frames."""
        namespaces.ip(f"link set dev {device} xdpdrv object {self._toolbox.programs} section xdp")

    @contextmanager
    def _served(self, guest: BareGuest) -> Iterator[None]:
        command = guest.namespace.enter(str(self._toolbox.traffic), "serve", str(CPU[guest.host.name]))
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
            try:
                if server.stdout is None or server.stdout.readline().strip() != "ready":
                    raise LabError(f"{self.name}: no server in guest {guest.name}")
                yield
            finally:
                server.kill()

    # running

    def _start(self, source: str, mode: str, *arguments: object) -> "subprocess.Popen[str]":
        command = self.lab.bare[source].namespace.enter(str(self._toolbox.traffic), mode, *map(str, arguments))
        return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

    def _end(self, process: "subprocess.Popen[str]") -> dict[str, Any]:
        try:
            out, err = process.communicate(timeout=60)
        finally:
            process.kill()
        if process.returncode:
            raise LabError(f"{self.name}: {' '.join(map(str, process.args))}: {err.strip()}")  # type: ignore[arg-type]
        return result(out)

    def _ask(self, source: str, mode: str, *arguments: object) -> dict[str, Any]:
        return self._end(self._start(source, mode, *arguments))

    def _pairs(self, scenario: str) -> list[tuple[str, str]]:
        """(sender, receiver), all at once."""
        target = TARGETS[scenario]
        return [("ask", target), (target, "ask")] if scenario == "inter-double" else [("ask", target)]

    def _cpu(self, guest: str) -> int:
        return CPU[self.lab.bare[guest].host.name]

    def _forwarders_ns(self) -> int:
        """CPU time that the contender's processes have used so far, all threads."""
        total = 0
        for pid in self.lab.forwarders():
            for task in Path(f"/proc/{pid}/task").iterdir():
                total += int((task / "schedstat").read_text().split()[0])
        return total

    # measures; each returns its figures

    def tcp(self, scenario: str, streams: int) -> Figures:
        """Throughput of all pairs together."""
        busy = _busy_s()
        ms = self._effort.tcp_ms
        running = [
            self._start(source, "stream", address(target), ms, self._cpu(source), streams)
            for source, target in self._pairs(scenario)
        ]
        done = [self._end(process) for process in running]
        busy = _busy_s() - busy
        figures = {f"tcp{streams}_gbps": sum(each["bytes"] * 8 / each["wall_ns"] for each in done)}
        if streams == 1:
            figures["cpu_s_per_gb"] = busy / (sum(each["bytes"] for each in done) / 1e9)
        return figures

    def rr(self, scenario: str) -> Figures:
        """Round trips."""
        done = self._ask("ask", "rr", address(TARGETS[scenario]), self._effort.rr_ms, CPU["A"])
        return {f"rr_{part}_us": done[f"{part}_us"] for part in ("p50", "p99", "p999")}

    def crr(self, scenario: str) -> Figures:
        """Connections, one after the other."""
        return {
            "crr_per_s": self._ask("ask", "crr", address(TARGETS[scenario]), self._effort.crr_ms, CPU["A"])["per_s"]
        }

    def cold(self, targets: list[str]) -> list[float]:
        """First round trips to guests that nobody has talked to; of those that were answered."""
        done = self._ask("ask", "first", COLD_SPACING_MS, *(address(each) for each in targets))
        if not done["us"]:
            raise LabError(f"{self.name}: none of {len(targets)} first packets was answered")
        return [float(us) for us in done["us"]]

    def flood(self, scenario: str) -> Figures:
        """64-byte frames as fast as one CPU per sender makes them, counted where they arrive."""
        ms, pairs = self._effort.flood_ms, self._pairs(scenario)
        for pair in pairs:
            self.warm(*pair)
        hops = {pair: self._next_hop(*pair) for pair in pairs}
        before = [self._received(target) for _, target in pairs]
        spent = self._forwarders_ns()
        floods = [
            self._start(source, "flood", NIC, mac, own, peer, ms + 2 * FLOOD_MARGIN_MS, self._cpu(source))
            for (source, _), (mac, _, own, peer) in hops.items()
        ]
        time.sleep(FLOOD_MARGIN_MS / 1000)
        counters = [self._start(target, "count", NIC, ms) for _, target in pairs]
        rates = [self._end(process) for process in counters]
        done = [self._end(process) for process in floods]
        arrived = sum(self._settled(target) for _, target in pairs) - sum(before)
        spent = self._forwarders_ns() - spent + sum(each["cpu_ns"] for each in done)
        figures = {
            "udp64_pps": sum((each["end"] - each["begin"]) * 1e9 / each["wall_ns"] for each in rates),
            "cpu_ns_per_packet": spent / max(1, arrived),
        }
        if min(each["instructions"] for each in done) >= 0:
            figures["instructions_per_packet"] = sum(each["instructions"] for each in done) / max(1, arrived)
        return figures

    def forwarding(self, scenario: str) -> Figures:
        """Cost per frame over the wire, what the generator costs subtracted; and what the switch costs, too."""
        target = TARGETS[scenario]
        self.warm("gen", target)
        hop = self._next_hop("gen", target)
        generator, switch = self._generator_ns(), self._switch_ns()
        whole = self._forwarding_ns("gen", target, hop)
        return {"fwd_cost_ns": whole - generator, "fwd_cost_hosts_ns": whole - switch}

    def forwarding_one_host(self) -> Figures:
        """The same from tap to tap on one host."""
        self.warm("local", "near")
        hop = self._next_hop("local", "near")
        return {"fwd_cost_one_host_ns": self._forwarding_ns("local", "near", hop) - self._generator_ns()}

    def forwarding_spread(self, count: int) -> Figures:
        """The same over the wire, to `count` endpoints that are known (bench/endpoints.py)."""
        self.warm("gen", "db")
        mac, own_mac, own, _ = self._next_hop("gen", "db")
        whole = self._forwarding_ns("gen", "web", (mac, own_mac, own, str(COPIES_FROM)), count)
        return {"fwd_cost_spread_ns": whole - self._generator_ns(count)}

    def forwards_in_kernel(self) -> bool:
        """Whether injected frames all arrive when they come as fast as they can."""
        self.warm("gen", "web")
        before, gen = self._received("web"), self.lab.bare["gen"]
        sent = self._inject(gen.host.namespaces, gen.spec.tap, self._next_hop("gen", "web"), PROBE_FRAMES, 0, 0)["sent"]
        return bool(self._settled("web") - before >= sent * ARRIVED_SHARE)

    def _forwarding_ns(self, source: str, target: str, hop: Hop, spread: int = 0) -> float:
        """CPU time of all that happens to an injected frame."""
        guest, frames = self.lab.bare[source], self._frames
        before, spent = self._received(target), self._forwarders_ns()
        done = self._inject(guest.host.namespaces, guest.spec.tap, hop, frames, self.paced_pps, spread)
        arrived = self._settled(target) - before
        if arrived < done["sent"] * ARRIVED_SHARE and not self.paced_pps:
            raise LabError(f"{self.name}: {arrived} of {done['sent']} injected frames arrived at {target}")
        return float(self._forwarders_ns() - spent + done["cpu_ns"]) / max(1, arrived)

    def _generator_ns(self, spread: int = 0) -> float:
        """CPU time of a frame into an interface that drops."""
        hop = (*WIRE_MACS, address("gen"), str(COPIES_FROM))
        return _per_frame(self._inject(self.lab.host("A").namespaces, SINK, hop, self._frames, self.paced_pps, spread))

    def _switch_ns(self) -> float:
        """The same over the switch."""
        hop = (*WIRE_MACS, address("gen"), address("web"))
        return _per_frame(self._inject(self.lab.switch, WIRE_IN, hop, self._frames, self.paced_pps, 0))

    @property
    def _frames(self) -> int:
        return self.paced_pps * self._effort.paced_ms // 1000 or self._effort.frames

    def _inject(self, where: Namespaces, device: str, hop: Hop, frames: int, pps: int, spread: int) -> dict[str, Any]:
        command = ["nsenter", f"--net={where.file('net')}", "--", str(self._toolbox.inject)]
        arguments = [self._toolbox.programs, device, *hop, frames, CPU["A"], pps, spread]
        command += map(str, arguments)
        return self._end(subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True))

    def warm(self, source: str, target: str) -> None:
        """Nobody on the way has forgotten the pair."""
        if source in INJECTORS and not self._gen_answered:
            return
        for _ in range(WARM_TRIES):
            if not self._ask(source, "first", 0, address(target))["lost"]:
                return
        raise LabError(f"{self.name}: {source} gets no answer from {target}")

    def _next_hop(self, source: str, target: str) -> Hop:
        """To be called after warm."""
        if (source, target) not in self._hops:
            self._hops[source, target] = self._find_hop(source, target)
        return self._hops[source, target]

    def _find_hop(self, source: str, target: str) -> Hop:
        guest, peer = self.lab.bare[source], address(target)
        route = json.loads(guest.namespace.run("ip", "-j", "route", "get", peer).stdout)[0]
        hop = route.get("gateway", peer)
        known = json.loads(guest.namespace.run("ip", "-j", "neigh", "show", "to", hop, "dev", NIC).stdout)
        if not known or "lladdr" not in known[0]:
            raise LabError(f"{self.name}: {source} has no neighbour {hop}")
        return str(known[0]["lladdr"]), guest.spec.mac, address(source), peer

    def _received(self, guest: str) -> int:
        return int(self._ask(guest, "count", NIC, 0)["begin"])

    def _settled(self, guest: str) -> int:
        """What a guest has received, once no more comes."""
        end = time.monotonic() + SETTLE_S
        while time.monotonic() < end:
            seen = self._ask(guest, "count", NIC, 20)
            if seen["begin"] == seen["end"]:
                break
        return int(seen["end"])


def _per_frame(done: Mapping[str, Any]) -> float:
    return float(done["cpu_ns"] / done["sent"])


def _busy_s() -> float:
    """CPU time that all of the machine has spent, idle and stolen time left out (proc(5))."""
    fields = [int(word) for word in Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:]]
    user, nice, system, _idle, _iowait, irq, softirq = fields[:7]
    return (user + nice + system + irq + softirq) / 100
