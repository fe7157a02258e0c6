"""A lab without QEMU: guests are network namespaces whose veth stands for a tap, under the real agent.

For what needs many guests, hostile frames or high rates. libvirt's own test driver plays libvirtd: the agent reads
from it that the guests run, as after a restart, and adopts their NICs. No hook runs. Guests' offloads are on, as a
virtio NIC's are; they get their address by DHCP (`address`) or are given the one of their metadata by hand.
"""

import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from subprocess import CompletedProcess

from divhook.core.addressing import mac_text
from divhook.lab import namespaces, processes
from divhook.lab.errors import LabError
from divhook.lab.host import BRIDGE, LabHost
from divhook.lab.lab import SYSCTL_NO_IPV6, Lab, quiet
from divhook.lab.namespaces import Namespaces

READY_TIMEOUT_S = 60.0
NIC = "eth0"


@dataclass(frozen=True, slots=True)
class BareSpec:
    """One guest with one NIC. address: None for one that the agent chooses. name: at most 12 characters.

    allowed: addresses that it may take besides.
    """

    name: str
    host: str
    cell: str
    subnet: str
    address: str | None = None
    labels: str | None = None
    allowed: tuple[str, ...] = ()

    @property
    def mac(self) -> str:
        """A MAC that follows from the name."""
        return mac_text(b"\x52\x54\x00" + uuid.uuid5(uuid.NAMESPACE_OID, self.name).bytes[:3])

    @property
    def tap(self) -> str:
        """The host's end of the veth."""
        return f"t-{self.name}"

    def xml(self) -> str:
        """The domain, as the test driver takes it."""
        fixed = f" address='{self.address}'" if self.address else ""
        fixed += f" labels='{self.labels}'" if self.labels is not None else ""
        if self.allowed:
            fixed += f" allowed-addresses='{' '.join(self.allowed)}'"
        return f"""<domain type='test'><name>{self.name}</name><uuid>{uuid.uuid5(uuid.NAMESPACE_DNS, self.name)}</uuid>
<metadata><divhook:guest xmlns:divhook='urn:divhook:guest:1'>
<divhook:nic mac='{self.mac}' cell='{self.cell}' subnet='{self.subnet}'{fixed}/></divhook:guest></metadata>
<memory>1024</memory><vcpu>1</vcpu><os><type>hvm</type></os><devices><interface type='bridge'>
<mac address='{self.mac}'/><source bridge='{BRIDGE}'/><target dev='{self.tap}'/></interface></devices></domain>"""


class BareGuest:
    """A guest of a BareLab: run commands in it by `exec`."""

    def __init__(self, lab: "BareLab", spec: BareSpec) -> None:
        self.spec = spec
        self.name = spec.name
        self.host = lab.host(spec.host)
        self.namespace = Namespaces(lab.directory / "ns", f"g-{spec.name}")

    def plug(self) -> None:
        """Make the namespace and its veth, a port of divbr0."""
        self.namespace.create(("net",), SYSCTL_NO_IPV6)
        peer = self.host.namespaces.file("net")
        self.namespace.ip(f"link add {NIC} address {self.spec.mac} type veth peer name {self.spec.tap} netns {peer}")
        self.host.namespaces.ip(f"link set {self.spec.tap} master {BRIDGE} up")
        self.namespace.ip(f"link set {NIC} up")

    def exec(
        self, *command: str, check: bool = True, timeout_s: float | None = 60, input_text: str | None = None
    ) -> CompletedProcess[str]:
        """Run a command in the guest. With `check`, a failure raises LabError."""
        return self.namespace.run(*command, check=check, timeout_s=timeout_s, input_text=input_text)

    def endpoint(self) -> dict[str, object]:
        """What the agent says of the NIC. Raises LabError where it says nothing."""
        rows = self.host.ask_agent({"op": "endpoints"}).get("result") or []
        for row in rows:
            if row["guest"] == self.name:
                return dict(row)
        raise LabError(f"the agent of host {self.host.name} knows no guest {self.name}")

    def configure(self) -> str:
        """Give the NIC the address that the agent has for it, without DHCP; returns it."""
        address = str(self.endpoint()["address"])
        router = address.rsplit(".", 1)[0] + ".1"
        self.namespace.ip(f"address replace {address}/24 dev {NIC}", f"route replace default via {router} dev {NIC}")
        return address


class BareLab(Lab):
    """Hosts with agents, and namespaces for guests."""

    def __init__(
        self,
        directory: Path | None,
        guests: Sequence[BareSpec],
        hosts: int = 2,
        cells: Path | None = None,
        settings: str = "",
        progress: Callable[[str], None] = quiet,
    ) -> None:
        settings = f"libvirt_uri: test:///etc/divhook/guests.xml\n{settings}"
        super().__init__(directory, hosts, cells=cells, progress=progress, settings=settings)
        self.bare = {spec.name: BareGuest(self, spec) for spec in guests}

    def _up(self) -> None:
        self.down()
        self.directory.mkdir(parents=True, exist_ok=True)
        self._write_state(up=False)
        namespaces.pin_directory(self.directory / "ns")
        self._make_switch()
        plans = [host.plan for host in self.hosts.values()]
        for host in self.hosts.values():
            host.prepare(plans)
            self._attach(host.namespaces, host.plan)
        self._configure_divhook()
        for host in self.hosts.values():
            mine = [guest.spec for guest in self.bare.values() if guest.host is host]
            etc = host.root / "etc-divhook"
            node = "<node>" + "".join(spec.xml() for spec in mine) + "</node>"
            (etc / "guests.xml").write_text(node)
            host.namespaces.ip(f"link add {BRIDGE} type bridge", f"link set {BRIDGE} up")
        for guest in self.bare.values():
            guest.plug()
        self._on_all(LabHost.agent_start)
        self.wait_active()
        self._write_state(up=True)

    def wait_active(self) -> None:
        """Until every guest's port is active. Raises LabError."""

        def waiting() -> list[str]:
            found = {
                row["guest"]: row["state"]
                for host in self.hosts.values()
                for row in host.ask_agent({"op": "endpoints"}).get("result") or []
            }
            return [name for name in self.bare if found.get(name) != "active"]

        if not processes.wait_until(lambda: not waiting(), READY_TIMEOUT_S, 0.1):
            raise LabError(f"not active after {READY_TIMEOUT_S:g} s: {', '.join(waiting())}")

    def drops(self, host: str) -> dict[tuple[str, str], int]:
        """Packets by (guest, reason), kernel and agent together."""
        answer = self.host(host).ask_agent({"op": "drops"})
        counted: dict[tuple[str, str], int] = {}
        for row in answer.get("result") or []:
            key = (str(row["guest"]), str(row["reason"]))
            counted[key] = counted.get(key, 0) + int(row["packets"])
        return counted
