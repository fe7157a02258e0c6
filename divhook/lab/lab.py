"""The lab: N hosts on one machine, each with its own libvirtd and agent, on one switch.

             172.30.0.0/24
    switch ── sw0 ──┬── pA ═══ up0  host A: libvirtd, agent, divbr0, guests
                    ├── pB ═══ up0  host B
                    └── pX ═══ up0  station X: a network namespace alone (a neighbour without an agent)

Everything is below one directory and named after it: two labs run side by side, and nothing of the
machine's own network is touched.
"""

import hashlib
import json
import os
import shutil
import string
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType

from divhook.lab import image, namespaces, processes
from divhook.lab.capture import SNAP_LENGTH, Capture
from divhook.lab.errors import LabError
from divhook.lab.guest import GuestSpec, LabGuest, Nic, domain_xml
from divhook.lab.host import BRIDGE, UPLINK, HostPlan, LabHost, cell_files, host_settings, package_environment
from divhook.lab.namespaces import Namespaces

DEFAULT_DIRECTORY = Path("/var/tmp/divhook-lab")
MAX_HOSTS = 26
NETWORK = "172.30.0"
PREFIX_LENGTH = 24
FIRST_HOST = 11
FIRST_STATION = 101
SWITCH = "sw0"
LOCKS = Path("/run/lock")
PROGRAMS = ("ip", "nsenter", "unshare", "libvirtd", "virsh", "qemu-system-x86_64", "tcpdump", "sysctl", "nft")
SYSCTL_NO_IPV6 = "sysctl -qw net.ipv6.conf.all.disable_ipv6=1 net.ipv6.conf.default.disable_ipv6=1; ip link set lo up"
QUIET_SWITCH = "for f in /proc/sys/net/bridge/bridge-nf-call-*; do [ ! -e $f ] || echo 0 >$f; done"
"""A real switch looks at no IP header: br_netfilter would drop malformed packets on the way."""
AGENT = "agent"
PLAIN = "plain"


def default_directory() -> Path:
    """$DIVHOOK_LAB_DIR, else /var/tmp/divhook-lab."""
    return Path(os.environ.get("DIVHOOK_LAB_DIR", DEFAULT_DIRECTORY))


def quiet(_message: str) -> None:
    """Report no progress."""


class Lab:
    """A lab below `directory`. `hosts` counts only when it is brought up; `mode` "plain" is bridges without divhook.

    `cells` is a directory of cell files for /etc/divhook/cells, or None for the repository's own; `settings` are
    further lines for each host's divhook.yaml, in which $number is 1 for host A, 2 for B, …; `programs` are static ones
    for the guests' /usr/bin. As a context manager it is up inside and down after, whatever happens.
    """

    def __init__(
        self,
        directory: Path | None = None,
        hosts: int = 2,
        mode: str = AGENT,
        cells: Path | None = None,
        progress: Callable[[str], None] = quiet,
        settings: str = "",
        programs: Sequence[Path] = (),
    ) -> None:
        self.directory = (directory or default_directory()).resolve()
        self.mode = mode
        self._cells = cells
        self._settings = settings
        self._programs = programs
        self._progress = progress
        self._image: image.Image | None = None
        self._held = False
        state = self._state()
        self.mode = str(state.get("mode", mode))
        names = str(state.get("hosts", string.ascii_uppercase[:hosts]))
        if not 1 <= hosts <= MAX_HOSTS:
            raise LabError(f"a lab has 1 to {MAX_HOSTS} hosts, not {hosts}")
        self.hosts = {plan.name: LabHost(self.directory, plan) for plan in map(_plan, names)}
        self.switch = Namespaces(self.directory / "ns", "switch")

    def __enter__(self) -> "Lab":
        try:
            self.up()
        except BaseException:
            self.down()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.down()

    def host(self, name: str) -> LabHost:
        """One host. Raises LabError where there is none of that name."""
        try:
            return self.hosts[name.upper()]
        except KeyError:
            raise LabError(f"no host {name!r} in this lab: it has {', '.join(self.hosts)}") from None

    # up and down

    @property
    def _state_file(self) -> Path:
        return self.directory / "lab.json"

    def _state(self) -> dict[str, object]:
        try:
            state = json.loads(self._state_file.read_text())
        except (FileNotFoundError, ValueError):
            return {}
        return state if isinstance(state, dict) else {}

    @property
    def is_up(self) -> bool:
        """Whether an up() was finished and no down() begun."""
        return bool(self._state().get("up"))

    def require_up(self) -> "Lab":
        """This lab, or LabError where it is not up."""
        if not self.is_up:
            raise LabError(f"no lab is up below {self.directory}: start one with `divhook lab up`")
        return self

    @property
    def image(self) -> image.Image:
        """What guests boot; built where it is not in the cache."""
        if self._image is None:
            self._image = image.build(image.cache_directory(), self._progress, self._programs)
        return self._image

    @contextmanager
    def _exclusive(self) -> Iterator[None]:
        """One up() or down() at a time on a directory; a second one waits."""
        if self._held:
            yield
            return
        name = hashlib.sha256(os.fsencode(self.directory)).hexdigest()[:16]
        with image.locked(LOCKS / f"divhook-lab-{name}"):
            self._held = True
            try:
                yield
            finally:
                self._held = False

    def up(self) -> None:
        """Bring everything up. Idempotent; what an interrupted up() left is removed first. Raises LabError."""
        with self._exclusive():
            self._up()

    def _up(self) -> None:
        if os.geteuid() != 0:
            raise LabError("the lab makes namespaces and mounts: run it as root")
        missing = [program for program in PROGRAMS if shutil.which(program, path=processes.CLEAN_PATH) is None]
        if missing:
            raise LabError(
                f"missing on this machine: {', '.join(missing)}; scripts/bootstrap installs all that is needed"
            )
        if self.is_up:
            return
        self.down()
        _ = self.image
        self.directory.mkdir(parents=True, exist_ok=True)
        self._write_state(up=False)
        self._progress(f"making {len(self.hosts)} hosts and a switch")
        namespaces.pin_directory(self.directory / "ns")
        self._make_switch()
        plans = [host.plan for host in self.hosts.values()]
        for host in self.hosts.values():
            host.prepare(plans)
            self._attach(host.namespaces, host.plan)
            self._restore_capabilities(host)
        if self.mode == AGENT:
            self._configure_divhook()
        else:
            self._bridge_uplinks()
        self._progress("starting libvirtd on each host")
        self._on_all(LabHost.start_libvirtd)
        self._save_capabilities()
        if self.mode == AGENT:
            self._progress("starting the agents")
            self._on_all(LabHost.agent_start)
        self._write_state(up=True)

    def _write_state(self, up: bool) -> None:
        state = {"hosts": "".join(self.hosts), "mode": self.mode, "up": up}
        image.replace(self._state_file, json.dumps(state).encode())

    def _on_all(self, action: Callable[[LabHost], None]) -> None:
        with ThreadPoolExecutor(len(self.hosts)) as pool:
            for _ in pool.map(action, self.hosts.values()):
                pass

    def _make_switch(self) -> None:
        self.switch.create(("net",), SYSCTL_NO_IPV6)
        self.switch.ip(
            f"link add {SWITCH} type bridge stp_state 0 forward_delay 0 mcast_snooping 0",
            f"link set {SWITCH} up",
        )
        self.switch.run("sh", "-c", QUIET_SWITCH)

    def _attach(self, member: Namespaces, plan: HostPlan) -> None:
        """Join a namespace's uplink to the switch."""
        peer = member.file("net")
        self.switch.ip(
            f"link add p{plan.name} type veth peer name {UPLINK} netns {peer}",
            f"link set p{plan.name} master {SWITCH} up",
        )
        member.ip(
            f"link set {UPLINK} address {plan.mac} up",
            f"address add {plan.address}/{PREFIX_LENGTH} brd + dev {UPLINK}",
        )

    def _bridge_uplinks(self) -> None:
        """The plain mode: what guests reach without divhook, for comparison."""
        for host in self.hosts.values():
            host.namespaces.ip(
                f"link add {BRIDGE} address {host.plan.mac} type bridge stp_state 0 forward_delay 0 mcast_snooping 0",
                f"link set {UPLINK} master {BRIDGE}",
                f"address flush dev {UPLINK}",
                f"link set {BRIDGE} up",
                f"address add {host.plan.address}/{PREFIX_LENGTH} dev {BRIDGE}",
            )

    def _configure_divhook(self) -> None:
        cells = self._cells or cell_files()
        settings = host_settings(self._settings)
        key = self.directory / "cluster.key"
        made = subprocess.run(
            [sys.executable, "-m", "divhook.cli.main", "key", "new", "--out", str(key), "--force"],
            capture_output=True,
            text=True,
            env=package_environment(),
            check=False,
        )
        if made.returncode:
            raise LabError(f"divhook key new: {made.stderr.strip()}")
        for number, host in enumerate(self.hosts.values(), 1):
            etc = host.root / "etc-divhook"
            shutil.copy(key, etc / "cluster.key")
            (etc / "cluster.key").chmod(0o600)
            (etc / "divhook.yaml").write_text(string.Template(settings).safe_substitute(number=number))
            shutil.copytree(cells, etc / "cells", dirs_exist_ok=True)
            host.install_hook()

    def _restore_capabilities(self, host: LabHost) -> None:
        """What libvirtd found out about QEMU the last time saves it seconds; it checks that this is still true."""
        saved = image.cache_directory() / "capabilities"
        if saved.is_dir():
            shutil.copytree(saved, host.root / "cache-libvirt/qemu/capabilities", dirs_exist_ok=True)

    def _save_capabilities(self) -> None:
        fresh = next(iter(self.hosts.values())).root / "cache-libvirt/qemu/capabilities"
        if fresh.is_dir():
            shutil.copytree(fresh, image.cache_directory() / "capabilities", dirs_exist_ok=True)

    def down(self) -> None:
        """Remove all of the lab, finished or half-made. Idempotent; files that it did not make stay."""
        with self._exclusive():
            self._down()

    def _down(self) -> None:
        directory = self.directory
        if self._state_file.exists():
            self._write_state(up=False)
        sets = [Namespaces(directory / "ns", name) for name in namespaces.members(directory / "ns")]
        hosts = [each for each in sets if each.file("mnt").exists()]
        with ThreadPoolExecutor(max(1, len(hosts))) as pool:
            for _ in pool.map(lambda each: LabHost(directory, _plan(each.name)).stop(), hosts):
                pass
        for each in sets:
            each.kill_inhabitants()
            each.destroy()
        namespaces.unpin_directory(directory / "ns")
        for part in ("ns", "hosts", "captures"):
            shutil.rmtree(directory / part, ignore_errors=True)
        for file in ("lab.json", "cluster.key"):
            (directory / file).unlink(missing_ok=True)
        if directory.is_dir() and not any(directory.iterdir()):
            directory.rmdir()

    # guests

    def define(self, spec: GuestSpec, host: str) -> None:
        """`virsh define`."""
        place = self.host(host)
        path = place.outside(f"/run/divhook-lab/{spec.name}.xml")
        path.write_text(domain_xml(spec, self.image))
        place.virsh("define", f"/run/divhook-lab/{spec.name}.xml")

    def start(self, spec: GuestSpec, host: str, wait: bool = True) -> LabGuest:
        """`virsh define` and `virsh start`; with `wait`, until the guest answers. Raises LabError."""
        self.define(spec, host)
        place = self.host(host)
        begin = processes.now_s()
        place.virsh("start", spec.name)
        guest = LabGuest(place, spec.name, processes.now_s() - begin)
        return guest.wait_up() if wait else guest

    def start_guest(
        self, name: str, host: str, cell: str, subnet: str, address: str | None = None, mac: str | None = None
    ) -> LabGuest:
        """Start a guest with one NIC and wait until it has booted. Raises LabError."""
        return self.start(GuestSpec(name, (Nic(cell, subnet, address, mac),)), host)

    def start_all(self, wanted: Sequence[tuple[GuestSpec, str]]) -> list[LabGuest]:
        """Start several guests at once: (spec, host) each."""
        pool = ThreadPoolExecutor(max(1, len(wanted)))
        try:
            return list(pool.map(lambda pair: self.start(*pair), wanted))
        finally:  # on Ctrl-C do not wait for guests to boot: down() ends them, and with them the threads
            pool.shutdown(wait=False, cancel_futures=True)

    def guest(self, name: str) -> LabGuest:
        """A running guest, on whatever host. Raises LabError."""
        for host in self.hosts.values():
            if name in host.guests():
                return LabGuest(host, name)
        raise LabError(f"no guest {name!r} runs in this lab")

    def guests(self) -> Iterable[LabGuest]:
        """All running guests."""
        return [LabGuest(host, name) for host in self.hosts.values() for name in host.guests()]

    # the wire

    def capture(self, name: str = "switch", snap_length: int = SNAP_LENGTH) -> Capture:
        """Start capturing all that passes over the switch."""
        directory = self.directory / "captures"
        directory.mkdir(exist_ok=True)
        return Capture(self.switch, SWITCH, directory / f"{name}.pcap", snap_length)

    def add_station(self, name: str) -> Namespaces:
        """A machine on the wire with no agent: a network namespace with `up0` on the switch."""
        station = Namespaces(self.directory / "ns", name)
        if station.kinds():
            return station
        number = sum(1 for member in namespaces.members(self.directory / "ns") if member not in (*self.hosts, "switch"))
        station.create(("net",), SYSCTL_NO_IPV6)
        mac = f"06:0d:5e:00:01:{number + 1:02x}"
        self._attach(station, HostPlan(name, f"{NETWORK}.{FIRST_STATION + number}", mac))
        return station


def _plan(name: str) -> HostPlan:
    index = string.ascii_uppercase.find(name)
    return HostPlan(name, f"{NETWORK}.{FIRST_HOST + index}", f"06:0d:5e:00:00:{index + 1:02x}")
