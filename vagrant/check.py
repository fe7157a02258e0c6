"""Does the fast path do its work on the kernel of the machines that `vagrant up` brought up? Four guests on two hosts.

    same subnet, same host     web1 -- web2  on host1     same subnet, across   web1 -- web3  on host2
    routed, same host          web3 -- db1   on host2     routed, across        web1 -- db1

Claims: programs load and are attached; once a flow is known the agent sees no frame of it; a stream arrives whole; an
agent that is killed and started again costs no packet; after a teardown nothing is left. Exit code: claims that failed.
"""

import json
import re
import shlex
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from divhook.lab import image

HERE = Path(__file__).resolve().parent
HOSTS = ("host1", "host2")
GUESTS = {"web1": ("host1", "web"), "web2": ("host1", "web"), "web3": ("host2", "web"), "db1": ("host2", "db")}
PAIRS = {
    "same subnet, same host": ("web1", "web2", 64),
    "same subnet, across": ("web1", "web3", 64),
    "routed, same host": ("web3", "db1", 63),
    "routed, across": ("web1", "db1", 63),
}
PYTHON = "/opt/divhook/bin/python"
STREAM_BYTES = 2_000_000
PINGS = 30
STRAYS = 2
"""A guest's ARP for a neighbour that is not in use any more is the agent's."""
RESTART_PINGS = 400


class Machines:
    """ssh to the hosts, as vagrant says it is done."""

    def __init__(self, config: Path) -> None:
        self._ssh = ("-F", str(config), "-o", "LogLevel=ERROR")
        shown = subprocess.run(["vagrant", "ssh-config"], capture_output=True, text=True, check=True).stdout
        config.write_text(shown)

    def run(self, host: str, command: str, given: bytes = b"", check: bool = True) -> str:
        """Run as root; what it prints."""
        done = subprocess.run(
            ["ssh", *self._ssh, host, f"sudo {command}"], input=given, capture_output=True, check=False, timeout=600
        )
        if check and done.returncode:
            sys.exit(f"{host}: {command}: {done.stderr.decode()}{done.stdout.decode()}")
        return done.stdout.decode()

    def ask(self, host: str, *arguments: str, check: bool = True) -> str:
        """Run a command of on_host.py."""
        command = shlex.join([PYTHON, "-", *arguments])
        return self.run(host, command, (HERE / "on_host.py").read_bytes(), check)

    def look(self, host: str) -> dict[str, Any]:
        """What there is of divhook on a host."""
        found: dict[str, Any] = json.loads(self.ask(host, "look"))
        return found

    def guest(self, name: str, command: str) -> str:
        """Run a command in a guest."""
        return self.ask(GUESTS[name][0], "guest", name, command, check=False)


class Claims:
    """Told one by one, and counted."""

    failed = 0

    def tell(self, text: str, ok: bool, detail: object = "") -> None:
        """One claim."""
        self.failed += not ok
        print(f"{'ok    ' if ok else 'FAILED'} {text}{f': {detail}' if detail else ''}", flush=True)


def ping(machines: Machines, guest: str, address: str, count: int, interval_s: float = 0.1) -> tuple[int, set[int]]:
    """How many answers came, and their TTLs."""
    output = machines.guest(guest, f"ping -c {count} -i {interval_s} -W 10 {address}")
    received = re.search(r"(\d+) packets received", output)
    return int(received[1]) if received else 0, {int(ttl) for ttl in re.findall(r"ttl=(\d+)", output)}


def stream(machines: Machines, sender: str, receiver: str, address: str) -> bool:
    """Whether a stream arrives as it was sent."""
    machines.guest(receiver, "(socat -u TCP-LISTEN:5000,reuseaddr STDOUT | sha256sum >/tmp/got) >/dev/null 2>&1 &")
    machines.guest(sender, f"dd if=/dev/urandom of=/tmp/sent bs=100000 count={STREAM_BYTES // 100000}")
    machines.guest(sender, f"socat -u /tmp/sent TCP:{address}:5000,retry=20")
    sent = machines.guest(sender, "sha256sum </tmp/sent")
    return bool(sent) and sent == machines.guest(receiver, "sleep 1; cat /tmp/got")


def forwarding(machines: Machines, claims: Claims, addresses: dict[str, str]) -> None:
    """Known flows never reach the agents."""
    for name, (one, other, ttl) in PAIRS.items():
        ping(machines, one, addresses[other], 3)  # neighbours that nobody has asked for lately are the agent's again
        before = [machines.look(host) for host in HOSTS]
        received, ttls = ping(machines, one, addresses[other], PINGS)
        after = [machines.look(host) for host in HOSTS]
        seen = [
            new["slow_path"][key] - old["slow_path"][key]
            for old, new in zip(before, after, strict=True)
            for key in ("from_guest", "from_wire", "to_guest", "to_wire")
        ]
        moved = sum(new["traffic"] - old["traffic"] for old, new in zip(before, after, strict=True))
        claims.tell(f"{name}: {PINGS} pings answered, TTL {ttl}", (received, ttls) == (PINGS, {ttl}), (received, ttls))
        claims.tell(
            f"{name}: the kernel forwarded them, not the agents",
            sum(seen) <= STRAYS and moved >= 2 * PINGS,
            f"forwarded to guests {moved}, by the agents {sum(seen)}",
        )
        claims.tell(f"{name}: {STREAM_BYTES} bytes by TCP arrive whole", stream(machines, one, other, addresses[other]))


def restart(machines: Machines, claims: Claims, addresses: dict[str, str]) -> None:
    """The agents die under traffic, and are there again. What no one knows yet would wait for them."""
    talkers = (("web1", "web3"), ("db1", "web1"))
    named = [(one, addresses[other]) for one, other in talkers]
    for one, address in named:
        ping(machines, one, address, 3)
    with ThreadPoolExecutor() as pool:
        flows = [pool.submit(ping, machines, *talker, RESTART_PINGS, 0.05) for talker in named]
        time.sleep(5)
        for host in HOSTS:
            machines.run(host, "systemctl kill -s KILL divhook-agent")
            machines.run(host, "systemctl restart divhook-agent")
        received = [flow.result()[0] for flow in flows]
    claims.tell("killed and restarted agents cost no packet", received == [RESTART_PINGS] * 2, received)


def main() -> int:
    """All of it."""
    claims = Claims()
    with tempfile.TemporaryDirectory() as work, ThreadPoolExecutor() as pool:
        machines = Machines(Path(work) / "ssh.config")
        files = image.build(image.cache_directory(), print)
        for host in HOSTS:
            for path, name in ((files.kernel, "kernel"), (files.initramfs, "initramfs")):
                target = f"/var/lib/libvirt/images/divhook-check-{name}"
                machines.run(host, f"dd of={target} status=none", path.read_bytes())
        for host in HOSTS:
            found = machines.look(host)
            claims.tell(
                f"{host}: both programs are loaded and attached",
                {"from_guest", "from_wire"} <= found.keys(),
                {key: found.get(key) for key in ("kernel", "attached", "from_guest", "from_wire")},
            )
        for name, (host, subnet) in GUESTS.items():
            machines.run(host, f"virsh destroy {name}", check=False)  # of a check that was interrupted
            machines.ask(host, "start", name, "shop", subnet)
        wait = "i=0; until ip -4 -o address show dev eth0 | grep -q inet || [ $((i += 1)) = 90 ]; do sleep 1; done;"
        shown = pool.map(lambda name: machines.guest(name, f"{wait} ip -4 -o address show dev eth0"), GUESTS)
        addresses = {name: re.findall(r"inet ([\d.]+)/", text)[0] for name, text in zip(GUESTS, shown, strict=True)}
        claims.tell("guests have addresses", len(set(addresses.values())) == len(GUESTS), addresses)
        forwarding(machines, claims, addresses)
        restart(machines, claims, addresses)
        for name, (host, _) in GUESTS.items():
            machines.run(host, f"virsh destroy {name}")
        for host in HOSTS:
            machines.run(host, "systemctl stop divhook-agent")
            machines.run(host, "divhook agent --teardown")
            remains = machines.look(host)["remains"]
            claims.tell(f"{host}: after a teardown nothing is left", not remains, remains)
            machines.run(host, "systemctl start divhook-agent")
    return claims.failed


if __name__ == "__main__":
    sys.exit(main())
