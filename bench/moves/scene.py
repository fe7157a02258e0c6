"""A lab with a guest that moves and a client on each host, and one `virsh migrate` of it.

    host A   host B   host C        client-a, client-b, client-c: eth0 in subnet web, eth1 in subnet db
      └── mover ──▶ … ──▶ …         mover: subnet web

On a plain bridge the two subnets are one flat network, where no router costs anything: the best case of a bridge.
"""

import re
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from bench.moves.traffic import FIRST_PORT, Flow, Talk, Where, build
from divhook.core.addressing import parse_address
from divhook.lab.capture import Capture
from divhook.lab.errors import LabError
from divhook.lab.guest import GuestSpec, LabGuest, Nic
from divhook.lab.host import LabHost
from divhook.lab.lab import AGENT, PLAIN, Lab, quiet
from divhook.lab.wire import read_pcap

MOVER = "mover"
CELL, NEAR, FAR = "shop", "web", "db"
MIGRATE_TIMEOUT_S = 120.0
ORDINARY = ("--live", "--persistent", "--undefinesource")
PLAIN_ADDRESSES = {MOVER: ("10.1.1.20",)} | {
    f"client-{n}": (f"10.1.1.3{i}", f"10.1.2.3{i}") for i, n in enumerate("abc")
}
UDP = b"\x11"
NEW_TAP = """
for n in $(seq 1500); do
  for tap in /sys/class/net/vnet*; do
    tap=${tap##*/}
    case "$1" in *" $tap "*) ;; *) [ -e "/sys/class/net/$tap" ] && echo "$tap" && exit;; esac
  done
  sleep 0.02
done
"""
"""Prints the first tap that is not among the links named by the argument, as soon as there is one; waits for 30 s."""
LAST_DROPPED = "for n in $(seq 600); do cat /sys/class/net/$1/statistics/tx_dropped 2>&- || break; sleep 0.05; done"
"""Prints what a tap had no room for, again and again, until the tap is gone: for 30 s at most."""
PLAIN_LENGTH = 16
"""All addresses of the cell are on link."""


Times = dict[Flow, dict[int, float]]
"""By number of the datagram, in ms of the host's clock."""


@dataclass(frozen=True, slots=True)
class Move:
    """One migration. downtime_ms: libvirt's; pause_ms: from QEMU's STOP to its RESUME, where both were seen."""

    source: str
    target: str
    begin_s: float
    took_s: float
    downtime_ms: float | None
    pause_ms: float | None
    stop_s: float | None
    resume_s: float | None
    hooks_ms: tuple[tuple[str, str, float], ...] = ()
    """(host, operation, ms) of each call of divhook's hook by libvirt, at both hosts, in their order."""

    @property
    def hook_ms(self) -> float:
        """For how long libvirt waited for the hook in all."""
        return sum(took_ms for _, _, took_ms in self.hooks_ms)


class Scene:
    """The guests of a lab that is up. `clients`: letters of the hosts that have one."""

    def __init__(self, lab: Lab, clients: str = "ABC", progress: Callable[[str], None] = quiet) -> None:
        self.lab = lab
        self.place = "A"
        if lab.mode == AGENT:
            for host in lab.hosts.values():
                time_hooks(host)
        self._clients = clients
        progress("starting the guests")
        wanted = [(GuestSpec(MOVER, (Nic(CELL, NEAR),), kernel_arguments=self._arguments), "A")]
        for letter in clients:
            nics = (Nic(CELL, NEAR), Nic(CELL, FAR))
            wanted.append((GuestSpec(f"client-{letter.lower()}", nics, kernel_arguments=self._arguments), letter))
        self._guests = lab.start_all(wanted)
        self.where = Where(self._guests)
        self.address = self._configure(self._guests[0], 0)
        flows = []
        for guest in self._guests[1:]:
            for index, subnet in enumerate((NEAR, FAR)):
                address = self._configure(guest, index)
                flows.append(Flow(len(flows), guest.name, f"eth{index}", subnet, address))
            self._route_by_second_nic(guest)
        self.flows = flows
        self.talk = Talk(MOVER, self.address, flows, self.where)

    @property
    def _arguments(self) -> str:
        return "" if self.lab.mode == AGENT else "divhook.dhcp=off"

    def _configure(self, guest: LabGuest, index: int) -> str:
        nic = f"eth{index}"
        if self.lab.mode == AGENT:
            return guest.wait_address(nic)
        address = PLAIN_ADDRESSES[guest.name][index]
        guest.exec(f"ip address add {address}/{PLAIN_LENGTH} dev {nic}")
        return address

    def _route_by_second_nic(self, guest: LabGuest) -> None:
        """What is bound to eth1 goes that way, and ARP on a NIC is answered for its own address only."""
        guest.exec("for f in /proc/sys/net/ipv4/conf/*/rp_filter; do echo 0 >$f; done")
        guest.exec("for f in /proc/sys/net/ipv4/conf/*/arp_ignore; do echo 1 >$f; done")
        guest.exec("for f in /proc/sys/net/ipv4/conf/*/arp_announce; do echo 2 >$f; done")
        if self.lab.mode == AGENT:
            router = guest.dhcp_options("eth1")["router"].split()[0]
            guest.exec(f"ip route add 10.1.1.0/24 via {router} dev eth1 metric 50")

    @property
    def mover(self) -> LabGuest:
        """The guest that moves, where it is now."""
        return self.where(MOVER)

    def host(self) -> LabHost:
        """Where the mover is."""
        return self.lab.host(self.place)

    def tap_dropped(self) -> dict[tuple[str, str], int]:
        """By (host, tap): frames that the taps of all guests had no room for, since they exist."""
        script = "for f in /sys/class/net/vnet*/statistics/tx_dropped; do [ ! -e $f ] || echo $f $(cat $f); done"
        found = {}
        for name, host in self.lab.hosts.items():
            for line in host.exec("sh", "-c", script).stdout.splitlines():
                path, count = line.split()
                found[name, path.split("/")[4]] = int(count)
        return found

    @contextmanager
    def dropped_at_taps(self) -> Iterator[list[int]]:
        """One number, at the end: frames that the taps of all guests had no room for; the mover's until it goes."""
        found: list[int] = []
        before, here = self.tap_dropped(), self.host()
        leaving = taps(here, MOVER)[0]
        last: list[int] = []

        def follow() -> None:
            said = here.exec("sh", "-c", LAST_DROPPED, "-", leaving, check=False, timeout_s=MIGRATE_TIMEOUT_S).stdout
            last.extend(int(line) for line in said.split()[-1:])

        follower = threading.Thread(target=follow)
        follower.start()
        try:
            yield found
        finally:
            follower.join()
        after = {(here.name, leaving): last[0]} if last else {}
        after |= self.tap_dropped()
        found.append(sum(count - before.get(tap, 0) for tap, count in after.items()))

    @contextmanager
    def seen_by(self, flows: Sequence[Flow]) -> Iterator[Times]:
        """When datagrams of the mover came to the clients' NICs.

        The guest's own clock says less: under emulation it stands still whenever the processor is another's.
        """
        found: Times = {}
        captures = {}
        for flow in flows:
            host = self.where(flow.client).host
            tap = taps(host, flow.client)[int(flow.nic[-1])]
            captures[flow] = self._capture(host, tap, f"{flow.client}-{flow.nic}")
        try:
            yield found
        finally:
            for flow, capture in captures.items():
                found |= self._times([flow], capture)

    @contextmanager
    def sent_by_mover(self, target: str, flows: Sequence[Flow]) -> Iterator[Times]:
        """When the mover itself sent them, at either of its taps: it moves to a host meanwhile."""
        here, there = self.host(), self.lab.host(target)
        captures = [self._capture(here, taps(here, MOVER)[0], "mover-here")]
        old = " ".join(there.exec("ls", "/sys/class/net").stdout.split())

        def follow() -> None:
            tap = there.exec("sh", "-c", NEW_TAP, "-", f" {old} ", check=False, timeout_s=MIGRATE_TIMEOUT_S).stdout
            if tap:
                captures.append(self._capture(there, tap.strip(), "mover-there"))

        follower = threading.Thread(target=follow)
        follower.start()
        found: Times = {flow: {} for flow in flows}
        try:
            yield found
        finally:
            follower.join()
            for capture in captures:
                for flow, times in self._times(flows, capture).items():
                    found[flow].update(times)

    def _capture(self, host: LabHost, tap: str, name: str) -> Capture:
        return Capture(host.namespaces, tap, self.lab.directory / f"{name}.pcap", snap_length=46)

    def _times(self, flows: Sequence[Flow], capture: Capture) -> Times:
        """Of the mover's datagrams; ends the capture."""
        by_port = {(FIRST_PORT + flow.number).to_bytes(2): flow for flow in flows}
        address = parse_address(self.address)
        found: Times = {flow: {} for flow in flows}
        for at, frame in read_pcap(capture.stop()):
            if frame[23:24] == UDP and frame[26:30] == address and frame[36:38] in by_port:
                found[by_port[frame[36:38]]][int.from_bytes(frame[42:46])] = at * 1000
        if capture.dropped:
            raise LabError(f"tcpdump missed {capture.dropped} frames at {capture.path.stem}")
        capture.path.unlink()
        return found

    def runs_on(self) -> list[str]:
        """All hosts on which libvirt runs the mover."""
        return [name for name, host in self.lab.hosts.items() if MOVER in host.guests()]

    def arrived(self, place: str) -> None:
        """The mover runs there now."""
        self.place = place
        self.where.moved(LabGuest(self.lab.host(place), MOVER))

    def migrate(self, target: str, *options: str, uris: Sequence[str] = ()) -> Move:
        """`virsh migrate` to a host; options: instead of the ordinary ones. Raises LabError where libvirt refuses."""
        here, there = self.host(), self.lab.host(target)
        events = [_Events(here), _Events(there)]
        begin_s = time.time()
        try:
            where = uris or (f"qemu+tcp://host{target}/system",)
            here.virsh("migrate", *(options or ORDINARY), MOVER, *where, timeout_s=MIGRATE_TIMEOUT_S)
        finally:
            took_s = time.time() - begin_s
            time.sleep(0.05)
            seen = [each.end() for each in events]
        stop_s = next((at for at, name in seen[0] if name == "STOP"), None)
        resume_s = next((at for at, name in seen[1] if name == "RESUME"), None)
        pause_ms = (resume_s - stop_s) * 1000 if stop_s and resume_s else None
        source, _ = self.place, self.arrived(target)
        hooks = [(host.name, *call[1:]) for host in (there, here) for call in hook_calls(host, MOVER, begin_s)]
        return Move(source, target, begin_s, took_s, downtime_ms(there), pause_ms, stop_s, resume_s, tuple(hooks))


HOOK = "/etc/libvirt/hooks/qemu.d/divhook"
TIMED = "/etc/libvirt/hooks/divhook.timed"
HOOK_LOG = "/run/divhook-lab/hooks"
TIMER = f"""#!/bin/bash
begin=$EPOCHREALTIME
{TIMED} "$@"
code=$?
echo "$1 $2 $begin $EPOCHREALTIME" >>{HOOK_LOG}
exit $code
"""


def time_hooks(host: LabHost) -> None:
    """From now on `hook_calls` knows how long libvirt waits for the host's hook."""
    timed, hook = host.outside(TIMED), host.outside(HOOK)
    if not timed.exists():
        hook.rename(timed)
        hook.write_text(TIMER)
        hook.chmod(0o755)


def hook_calls(host: LabHost, guest: str, since_s: float) -> list[tuple[float, str, float]]:
    """(wall clock in seconds, operation, how long it took in ms) of each since then."""
    log = host.outside(HOOK_LOG)
    found = []
    for line in log.read_text().splitlines() if log.exists() else ():
        name, operation, begin, end = line.split()
        if name == guest and float(begin) >= since_s:
            found.append((float(begin), operation, (float(end) - float(begin)) * 1000))
    return found


def taps(host: LabHost, guest: str) -> list[str]:
    """Names of a running guest's taps, by its NICs."""
    return [line.split()[0] for line in host.virsh("domiflist", guest).splitlines() if line.strip()]


def downtime_ms(host: LabHost) -> float | None:
    """What libvirt at the destination says of the last move."""
    said = host.try_virsh("domjobinfo", MOVER, "--completed") or ""
    match = re.search(r"Total downtime:\s+([\d.]+)\s+(\w+)", said)
    return float(match[1]) * {"ms": 1.0, "s": 1000.0}[match[2]] if match else None


class _Events:
    """QEMU's own events on one host, with its times: STOP and RESUME are when the guest stands still and goes on."""

    def __init__(self, host: LabHost) -> None:
        command = ("virsh", "-q", "-c", "qemu:///system", "qemu-monitor-event", "--loop", "--timestamp")
        self._process = subprocess.Popen(
            host.namespaces.enter(*command), stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        )

    def end(self) -> list[tuple[float, str]]:
        """(wall clock in seconds, name) of each."""
        self._process.send_signal(signal.SIGINT)  # which virsh takes as the end, and writes out what it has
        output, _ = self._process.communicate(timeout=20)
        found = re.findall(r"^(\S+ \S+): event (\w+) for domain '" + MOVER, output, re.MULTILINE)
        return [(datetime.strptime(when, "%Y-%m-%d %H:%M:%S.%f%z").timestamp(), name) for when, name in found]


def make_lab(directory: Path, contender: str, programs: Path, hosts: int = 3, settings: str = "") -> Lab:
    """divhook or bridge. programs: a directory to build in."""
    if contender not in ("divhook", "bridge"):
        raise LabError(f"no contender {contender!r}: divhook or bridge")
    mode = AGENT if contender == "divhook" else PLAIN
    return Lab(directory, hosts=hosts, mode=mode, settings=settings, programs=(build(programs),))
