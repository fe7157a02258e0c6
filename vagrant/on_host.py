"""What check.py asks of a host, run there by divhook's own interpreter: python - COMMAND [ARGUMENT…] < on_host.py

look                       JSON: kernel, programs, the agent's counters, the kernel's, what there is of divhook
start NAME CELL SUBNET     a guest from the files that check.py has put below /var/lib/libvirt/images
guest NAME COMMAND         a shell command inside a guest
"""

import ctypes
import json
import os
import platform
import shutil
import struct
import subprocess
import sys
from pathlib import Path
from typing import Any

from divhook.abi.layout import MAX_PORTS, Traffic
from divhook.adapters.bpf import syscall, tc
from divhook.adapters.bpf.program_info import program_info
from divhook.lab import control
from divhook.lab.guest import CONTROL_DIRECTORY, GuestSpec, Nic, domain_xml
from divhook.lab.image import Image

IMAGES = Path("/var/lib/libvirt/images")
BPFFS = Path("/sys/fs/bpf/divhook")
REMAINS = {
    "links": "ip -o link show divbr0",
    "filters": "for d in $(ls /sys/class/net); do tc filter show dev $d ingress; done | grep divhook",
    "programs": "bpftool prog show | grep -wE 'from_(guest|wire)'",
    "pins": f"find {BPFFS}",
    "nft": "nft list tables | grep divhook",
    "iptables": "iptables-save 2>/dev/null | grep -i -e NFQUEUE -e divhook",
    "routes": "ip route show type blackhole",
}


def shell(command: str) -> str:
    """Output of a shell command, whatever its exit code."""
    return subprocess.run(command, shell=True, capture_output=True, text=True, check=False).stdout.strip()


def traffic() -> int:
    """Packets that the programs have forwarded to guests of this host."""
    (pin,) = BPFFS.glob("v*/maps/traffic")
    fd = syscall.open_pinned(pin)
    assert fd is not None
    width = ctypes.sizeof(Traffic)
    table = syscall.Map("traffic", fd, 4, width * syscall.possible_cpus())
    total = 0
    for row in json.loads(shell("divhook endpoints --json")):
        raw = table.get(struct.pack("=I", (row["port"] or 0) % MAX_PORTS)) or b""
        total += sum(Traffic.from_buffer_copy(raw, at).to_packets for at in range(0, len(raw), width))
    table.close()
    return total


def look() -> dict[str, Any]:
    """The state of this host."""
    found: dict[str, Any] = {
        "kernel": platform.release(),
        "remains": {name: output for name, command in REMAINS.items() if (output := shell(command))},
    }
    for pin in sorted(BPFFS.glob("v*/programs/*")):
        fd = syscall.open_pinned(pin)
        if fd is not None:
            info = program_info(fd)
            found[pin.name] = {"verified": info.verified, "xlated": info.xlated, "jited_bytes": info.jited_bytes}
            os.close(fd)
    if (status := shell("divhook status --json")) and status.startswith("{"):
        found["slow_path"] = json.loads(status)["slow_path"]
        found["traffic"] = traffic()
        found["attached"] = "clsact filters" if tc.attached() else "tcx links"
    return found


def start(name: str, cell: str, subnet: str) -> None:
    """Create a transient guest."""
    directory = Path(CONTROL_DIRECTORY)
    directory.mkdir(exist_ok=True)
    shutil.chown(directory, "libvirt-qemu")
    accelerator = "kvm" if Path("/dev/kvm").exists() else "qemu"
    image = Image(IMAGES / "divhook-check-kernel", IMAGES / "divhook-check-initramfs", accelerator)
    spec = GuestSpec(name, (Nic(cell, subnet),))
    subprocess.run(["virsh", "create", "/dev/stdin"], input=domain_xml(spec, image), text=True, check=True)


def guest(name: str, command: str) -> int:
    """Run a command in a guest; its exit code."""
    channel = Path(CONTROL_DIRECTORY) / f"{name}.sock"
    control.greet(channel, 240)
    result = control.run(channel, command, 120)
    print(result.output, end="")
    return result.code


match sys.argv[1:]:
    case ["look"]:
        print(json.dumps(look()))
    case ["start", name, cell, subnet]:
        start(name, cell, subnet)
    case ["guest", name, command]:
        sys.exit(guest(name, command))
