"""One host of a lab: namespaces with a libvirtd, an agent and files of its own.

    DIR/hosts/A/run  etc-libvirt  etc-divhook  lib-libvirt  lib-divhook  log-libvirt  cache-libvirt
                |         |             |            |            |            |            |
              /run  /etc/libvirt  /etc/divhook   /var/lib/libvirt, divhook  /var/log/libvirt  /var/cache/libvirt

/sys is a fresh sysfs, since it shows the network namespace it was mounted from, with a bpffs of its own.
"""

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import divhook
from divhook.lab import libvirtd, namespaces, processes
from divhook.lab.errors import LabError

UPLINK = "up0"
BRIDGE = "divbr0"
FASTPATH_VARIABLE = "DIVHOOK_LAB_FASTPATH"
MOUNTS = {
    "etc-libvirt": "/etc/libvirt",
    "etc-divhook": "/etc/divhook",
    "lib-libvirt": "/var/lib/libvirt",
    "lib-divhook": "/var/lib/divhook",
    "log-libvirt": "/var/log/libvirt",
    "cache-libvirt": "/var/cache/libvirt",
    "run": "/run",
}
DIRECTORIES = (
    "etc-libvirt/hooks/qemu.d",
    "etc-libvirt/qemu",
    "etc-divhook/cells",
    "lib-libvirt/qemu",
    "lib-libvirt/images",
    "lib-libvirt/boot",
    "lib-divhook",
    "log-libvirt/qemu",
    "cache-libvirt/qemu",
    "run/lock",
    "run/libvirt",
    "run/divhook",
    "run/divhook-lab",
    "pids",
    "log",
)
AGENT_TIMEOUT_S = 60.0
AGENT_POLL_S = 0.1
NICE = "-10"
"""As systemd/divhook-agent.service has it."""
ENTER_SCRIPT = """
hostname "$1"; shift
umount -R -l "$1"; shift      # do not pin the other namespaces from in here
mount -t sysfs sysfs /sys
mount -t bpf bpf /sys/fs/bpf
root=$1; shift
while [ $# -gt 0 ]; do
  mkdir -p "$2"
  mount --bind "$root/$1" "$2"
  shift 2
done
mount --bind "$root/hosts" /etc/hosts
resolver=$(realpath -m /etc/resolv.conf)
case $resolver in /run/*) mkdir -p "${resolver%/*}"; : >>"$resolver";; esac
if [ -e "$resolver" ]; then mount --bind "$root/resolv.conf" "$resolver"; fi
sysctl -qw net.ipv6.conf.all.disable_ipv6=1 net.ipv6.conf.default.disable_ipv6=1
ip link set lo up
"""


@dataclass(frozen=True, slots=True)
class HostPlan:
    """What tells one host from another. `address` is on the uplink's /24, `mac` is the uplink's."""

    name: str
    address: str
    mac: str


def package_environment() -> dict[str, str]:
    """A clean environment in which Python finds this package."""
    parent = str(Path(divhook.__file__).parent.parent)
    return processes.clean_environment(PYTHONPATH=parent, PYTHONDONTWRITEBYTECODE="1", PYTHONUNBUFFERED="1")


def cell_files() -> Path:
    """The example cells: of the source tree, or their copy in the installed package. Raises LabError."""
    package = Path(divhook.__file__).parent
    for path in (package.parent / "policies" / "cells", package / "data" / "policies" / "cells"):
        if path.is_dir():
            return path
    raise LabError(f"no cell files: policies/cells is neither in {package.parent} nor in the installed package")


def host_settings(further: str = "") -> str:
    """A host's divhook.yaml. $DIVHOOK_LAB_FASTPATH, on or off, counts where `further` leaves that open.

    Raises LabError where it is neither.
    """
    text = f"uplink: {UPLINK}\n{further}"
    fastpath = os.environ.get(FASTPATH_VARIABLE)
    if fastpath is None or "fastpath:" in further:
        return text
    if fastpath not in ("on", "off"):
        raise LabError(f"${FASTPATH_VARIABLE} is {fastpath!r}, not on or off")
    return f"{text}fastpath: {fastpath}\n"


class LabHost:
    """A host of a lab that is being made, or is up."""

    def __init__(self, lab_directory: Path, plan: HostPlan) -> None:
        self.plan = plan
        self.name = plan.name
        self.root = lab_directory / "hosts" / plan.name
        self.namespaces = namespaces.Namespaces(lab_directory / "ns", plan.name)

    def __repr__(self) -> str:
        return f"LabHost({self.name!r})"

    # making

    def prepare(self, neighbours: list[HostPlan]) -> None:
        """Make directories, configuration of libvirt, and the namespaces."""
        for directory in DIRECTORIES:
            (self.root / directory).mkdir(parents=True, exist_ok=True)
        libvirtd.write_configuration(self.root / "etc-libvirt", self.name, self.plan.address)
        names = "".join(f"{plan.address} host{plan.name}\n" for plan in neighbours)
        (self.root / "hosts").write_text(f"127.0.0.1 localhost\n{names}")
        (self.root / "resolv.conf").write_text("# the lab has no resolver\n")
        mounts = [word for pair in MOUNTS.items() for word in pair]
        self.namespaces.create(
            namespaces.KINDS,
            ENTER_SCRIPT,
            f"host{self.name}",
            str(self.namespaces.directory),
            str(self.root),
            *mounts,
        )

    def install_hook(self) -> None:
        """Install libvirt's hook, as an administrator does."""
        source = Path(divhook.__file__).parent / "hook" / "qemu.py"
        target = self.root / "etc-libvirt/hooks/qemu.d/divhook"
        shutil.copy(source, target)
        target.chmod(0o755)

    # libvirt

    def start_libvirtd(self) -> None:
        """Start libvirtd under the subreaper and wait until it answers. Raises LabError."""
        command = [sys.executable, "-m", "divhook.lab.subreaper", "libvirtd", "--listen", "-p", "/run/libvirtd.pid"]
        processes.spawn(
            self.namespaces.enter(*command),
            self.root / "pids" / f"libvirtd-{time.monotonic_ns()}",
            self.root / "log" / "libvirtd.log",
            package_environment(),
        )
        if not processes.wait_until(lambda: self.try_virsh("version") is not None, libvirtd.START_TIMEOUT_S, 0.1):
            raise LabError(f"libvirtd of host {self.name} does not answer; see {self.root}/log and log-libvirt")

    def stop_libvirtd(self, number: int = signal.SIGTERM) -> None:
        """End libvirtd; its guests run on."""
        with contextlib.suppress(FileNotFoundError, ValueError):
            processes.terminate(int((self.root / "run/libvirtd.pid").read_text()), number)

    def virsh(self, *arguments: str, timeout_s: float = 60.0) -> str:
        """Run virsh on this host. Raises LabError."""
        return self.namespaces.run("virsh", "-q", "-c", "qemu:///system", *arguments, timeout_s=timeout_s).stdout

    def try_virsh(self, *arguments: str) -> str | None:
        """The same, with None where it fails."""
        try:
            return self.virsh(*arguments, timeout_s=20)
        except LabError:
            return None

    def guests(self) -> list[str]:
        """Names of the running guests."""
        return (self.try_virsh("list", "--name") or "").split()

    # agent

    @property
    def _agent_pid_file(self) -> Path:
        return self.root / "pids" / "agent"

    @property
    def agent_pid(self) -> int | None:
        """Pid of the running agent."""
        return processes.running(self._agent_pid_file)

    def agent_start(self, wait: bool = True) -> None:
        """Start the agent and wait until it says on its control socket that it is ready. Raises LabError."""
        if self.agent_pid is not None:
            return
        processes.spawn(
            self.namespaces.enter(
                *("nice", "-n", NICE, sys.executable, "-m", "divhook.cli.main", "agent", "--foreground")
            ),
            self._agent_pid_file,
            self.agent_log,
            package_environment(),
        )
        if wait:
            self.wait_agent()

    def wait_agent(self, timeout_s: float = AGENT_TIMEOUT_S) -> dict[str, Any]:
        """Wait until the agent is ready; its status. Raises LabError with the end of its log."""
        end = time.monotonic() + timeout_s
        while True:
            with contextlib.suppress(OSError, ValueError):
                answer = self.ask_agent({"op": "status"})
                if answer.get("ok"):
                    return answer
            if self.agent_pid is None or time.monotonic() > end:
                state = "ended" if self.agent_pid is None else f"is not ready after {timeout_s:g} s"
                lines = self.agent_log.read_text(errors="replace").splitlines()[-15:] if self.agent_log.exists() else []
                raise LabError(f"the agent of host {self.name} {state}\n  " + "\n  ".join(lines))
            time.sleep(AGENT_POLL_S)

    def agent_stop(self, number: int = signal.SIGTERM) -> None:
        """End the agent with a signal; guests run on."""
        processes.stop(self._agent_pid_file, number)

    @property
    def agent_log(self) -> Path:
        """What the agent writes."""
        return self.root / "log" / "agent.log"

    def ask_agent(self, request: dict[str, Any], timeout_s: float = 10.0) -> dict[str, Any]:
        """One request on the agent's control socket. Raises OSError or ValueError."""
        directory = os.open(self.outside("/run/divhook"), os.O_PATH)
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
                connection.settimeout(timeout_s)
                connection.connect(f"/proc/self/fd/{directory}/agent.sock")
                connection.sendall(json.dumps(request).encode() + b"\n")
                with connection.makefile("rb") as stream:
                    answer = json.loads(stream.readline())
        finally:
            os.close(directory)
        if not isinstance(answer, dict):
            raise ValueError(f"not an answer: {answer!r}")
        return answer

    # commands

    def outside(self, path: str) -> Path:
        """Where a path of this host is to be found from outside."""
        for directory, point in MOUNTS.items():
            if path == point or path.startswith(point + "/"):
                return self.root / directory / path[len(point) :].lstrip("/")
        return Path(path)

    def exec(
        self, *command: str, check: bool = True, timeout_s: float | None = 60.0
    ) -> "subprocess.CompletedProcess[str]":
        """Run a command on this host. With `check`, a failure raises LabError."""
        return self.namespaces.run(*command, check=check, timeout_s=timeout_s)

    def divhook(self, *arguments: str, check: bool = True) -> "subprocess.CompletedProcess[str]":
        """Run the `divhook` command on this host."""
        variables = [f"{key}={value}" for key, value in package_environment().items()]
        return self.exec("env", *variables, sys.executable, "-m", "divhook.cli.main", *arguments, check=check)

    def interactive(self, *command: str) -> int:
        """Run a command on this host with the caller's terminal; its exit code."""
        environment = package_environment() | {"PS1": f"host{self.name}:\\w# "}
        return subprocess.run(self.namespaces.enter(*command), env=environment, check=False).returncode

    # ending

    def stop(self) -> None:
        """End guests, agent and libvirtd, then whatever else is left inside. Safe on a half-made host."""
        for guest in self.guests() if (self.root / "run/libvirtd.pid").exists() else ():
            self.try_virsh("destroy", guest)
        self.agent_stop()
        self.stop_libvirtd()
        self.namespaces.kill_inhabitants()
