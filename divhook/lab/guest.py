"""Guests of a lab: their domain XML, and a handle on a running one."""

import hashlib
import re
import time
import uuid
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING
from xml.sax.saxutils import quoteattr

from divhook.config.domain import NAMESPACE as METADATA_NAMESPACE
from divhook.lab import control
from divhook.lab.errors import LabError
from divhook.lab.image import Image

if TYPE_CHECKING:
    from divhook.lab.host import LabHost

NETWORK = "divhook"
MEMORY_MIB = 160
BOOT_TIMEOUT_S = 240.0
ADDRESS_TIMEOUT_S = 60.0
ADDRESS_POLL_S = 0.3
CONTROL_DIRECTORY = "/run/divhook-lab"
CONSOLE_DIRECTORY = "/var/log/libvirt/qemu"


@dataclass(frozen=True, slots=True)
class Nic:
    """One NIC of a guest, and the endpoint it asks for. Without `mac`, one that follows from the guest's name."""

    cell: str
    subnet: str
    address: str | None = None
    mac: str | None = None


@dataclass(frozen=True, slots=True)
class GuestSpec:
    """What to define: `nics` may be empty; `network` and `bridge` say how the NICs attach."""

    name: str
    nics: Sequence[Nic] = ()
    memory_mib: int = MEMORY_MIB
    kernel_arguments: str = ""
    metadata: bool = True
    bridge: str | None = None
    plain_nics: Sequence[str] = field(default=())
    """MACs of further NICs that have no divhook metadata."""


def default_mac(name: str, index: int) -> str:
    """A MAC in QEMU's usual range that follows from a guest's name."""
    digest = hashlib.sha256(f"{name} {index}".encode()).hexdigest()
    return f"52:54:00:{digest[0:2]}:{digest[2:4]}:{digest[4:6]}"


def domain_xml(spec: GuestSpec, image: Image) -> str:
    """The libvirt domain of a guest."""
    macs = [nic.mac or default_mac(spec.name, index) for index, nic in enumerate(spec.nics)]
    entries = []
    for nic, mac in zip(spec.nics, macs, strict=True):
        attributes = {"cell": nic.cell, "subnet": nic.subnet, "address": nic.address, "mac": mac}
        text = " ".join(f"{key}={quoteattr(value)}" for key, value in attributes.items() if value is not None)
        entries.append(f"      <divhook:nic {text}/>")
    metadata = ""
    if entries and spec.metadata:
        inner = "\n".join(entries)
        metadata = f"""
  <metadata>
    <divhook:guest xmlns:divhook="{METADATA_NAMESPACE}">
{inner}
    </divhook:guest>
  </metadata>"""
    kind, source = (
        ("bridge", f"bridge={quoteattr(spec.bridge)}") if spec.bridge else ("network", f"network='{NETWORK}'")
    )
    interfaces = "".join(
        f"""
    <interface type='{kind}'>
      <mac address='{mac}'/>
      <source {source}/>
      <model type='virtio'/>
      <rom enabled='no'/>
    </interface>"""
        for mac in [*macs, *spec.plain_nics]
    )
    return f"""<domain type='{image.accelerator}'>
  <name>{spec.name}</name>
  <uuid>{uuid.uuid5(uuid.NAMESPACE_URL, METADATA_NAMESPACE + ":lab:" + spec.name)}</uuid>{metadata}
  <memory unit='MiB'>{spec.memory_mib}</memory>
  <vcpu>1</vcpu>
  <os>
    <type arch='x86_64' machine='pc'>hvm</type>
    <kernel>{image.kernel}</kernel>
    <initrd>{image.initramfs}</initrd>
    <cmdline>console=ttyS0 quiet panic=-1 net.ifnames=0 divhook.name={spec.name} {spec.kernel_arguments}</cmdline>
  </os>
  <features><acpi/><apic/></features>
  <cpu mode='custom' match='exact' check='none'><model>qemu64</model></cpu>
  <on_poweroff>destroy</on_poweroff>
  <on_reboot>restart</on_reboot>
  <on_crash>destroy</on_crash>
  <devices>
    <emulator>/usr/bin/qemu-system-x86_64</emulator>
    <controller type='usb' model='none'/>
    <serial type='pty'>
      <log file='{CONSOLE_DIRECTORY}/{spec.name}.console'/>
      <target port='0'/>
    </serial>
    <serial type='unix'>
      <source mode='bind' path='{CONTROL_DIRECTORY}/{spec.name}.sock'/>
      <target port='1'/>
    </serial>{interfaces}
    <memballoon model='none'/>
  </devices>
</domain>
"""


class LabGuest:
    """A guest on one host of the lab. `start_s` is what `virsh start` took, in seconds."""

    def __init__(self, host: "LabHost", name: str, start_s: float = 0.0) -> None:
        self.host = host
        self.name = name
        self.start_s = start_s

    def __repr__(self) -> str:
        return f"LabGuest({self.name!r} on {self.host.name})"

    @property
    def channel(self) -> Path:
        """The control socket, as seen from outside the host."""
        return self.host.outside(f"{CONTROL_DIRECTORY}/{self.name}.sock")

    @property
    def console(self) -> str:
        """What the guest wrote to its console so far."""
        log = self.host.outside(f"{CONSOLE_DIRECTORY}/{self.name}.console")
        return log.read_text(errors="replace") if log.exists() else ""

    @property
    def mac(self) -> str:
        """MAC of the first NIC."""
        match = re.search(r"<mac address='([^']+)'", self.host.virsh("dumpxml", self.name))
        if match is None:
            raise LabError(f"{self.name} has no NIC")
        return match[1]

    def wait_up(self, timeout_s: float = BOOT_TIMEOUT_S) -> "LabGuest":
        """Wait until the guest answers on its control channel."""
        control.greet(self.channel, timeout_s)
        return self

    def run(self, command: str, timeout_s: float = 60.0) -> control.Result:
        """Run a shell command as root; output and exit code."""
        return control.run(self.channel, command, timeout_s)

    def exec(self, command: str, timeout_s: float = 60.0) -> str:
        """Run a shell command as root; its output. Raises LabError where it fails."""
        result = self.run(command, timeout_s)
        if result.code:
            raise LabError(f"{self.name}: {command}: exit code {result.code}: {result.output.strip()}")
        return result.output

    def address(self, nic: str = "eth0") -> str | None:
        """The guest's IPv4 address on a NIC, if it has one."""
        match = re.search(r"inet ([\d.]+)/", self.exec(f"ip -4 -o address show dev {nic}"))
        return match[1] if match else None

    def wait_address(self, nic: str = "eth0", timeout_s: float = ADDRESS_TIMEOUT_S) -> str:
        """Wait for an address from DHCP. Raises LabError."""
        end = time.monotonic() + timeout_s
        while (address := self.address(nic)) is None:
            if time.monotonic() > end:
                log = self.run(f"cat /var/log/udhcpc.{nic}.log").output.strip()
                raise LabError(f"{self.name}: no address on {nic} after {timeout_s:g} s\n{log}")
            time.sleep(ADDRESS_POLL_S)
        return address

    def dhcp_options(self, nic: str = "eth0") -> dict[str, str]:
        """All that udhcpc was given with the last lease, by udhcpc's names."""
        text = self.exec(f"cat /run/dhcp.{nic}.env")
        return dict(re.findall(r"^(\w+)='([^']*)'$", text, re.MULTILINE))

    def stop(self) -> None:
        """`virsh destroy` and `virsh undefine`; nothing where it is gone already."""
        self.host.try_virsh("destroy", self.name)
        self.host.try_virsh("undefine", self.name)
