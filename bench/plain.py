"""The wire, hosts and guests that every contender but divhook forwards for; the same as divhook's own lab has.

    guests ask, near, gen, local ── t-… [host A] up0 ═══ sw0 ═══ up0 [host B] t-… ── guests web, db, c0, c1, …
                                                   ║
                                                  up0 [host C], where a contender has routers of its own

Every `──` and `═══` is a veth pair. A contender is a subclass that joins taps and uplinks.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import cast

from divhook.lab import namespaces
from divhook.lab.bare import NIC, BareGuest, BareLab, BareSpec
from divhook.lab.host import UPLINK, LabHost
from divhook.lab.lab import SYSCTL_NO_IPV6, Lab

NETWORKS = {"web": "10.16.1", "db": "10.16.2"}
NUMBERS = {"ask": 10, "near": 11, "gen": 12, "local": 13, "web": 20, "db": 20}
INJECTORS = ("gen", "local")
"""Guests at whose taps frames are injected: gen's go to the other host, local's to near."""
FIRST_COLD = 100
PREFIX = "10.16.0.0/12"
"""All guests of the benchmark; what a flat layer 2 has on link."""


def address(name: str) -> str:
    """The address of a guest, with every contender."""
    if name in NUMBERS:
        return f"{NETWORKS['db' if name == 'db' else 'web']}.{NUMBERS[name]}"
    return f"{NETWORKS['web']}.{FIRST_COLD + int(name[1:])}"


def guest_specs(cold: int) -> list[BareSpec]:
    """The guests of every contender: the same names, places, MACs and addresses."""
    places = dict.fromkeys(("ask", "near", "gen", "local"), ("A", "web")) | {"web": ("B", "web"), "db": ("B", "db")}
    places |= {f"c{n}": ("B", "web") for n in range(cold)}
    return [BareSpec(name, host, "bench", subnet, address(name)) for name, (host, subnet) in places.items()]


class PlainGuest(BareGuest):
    """A guest without an agent: its tap is nobody's port yet."""

    def __init__(self, lab: Lab, spec: BareSpec) -> None:
        super().__init__(cast(BareLab, lab), spec)  # of which it asks what every Lab has

    def plug(self) -> None:
        """Make the namespace and its veth."""
        self.namespace.create(("net",), SYSCTL_NO_IPV6)
        peer = self.host.namespaces.file("net")
        self.namespace.ip(f"link add {NIC} address {self.spec.mac} type veth peer name {self.spec.tap} netns {peer}")
        self.host.namespaces.ip(f"link set {self.spec.tap} up")
        self.namespace.ip(f"link set {NIC} up")

    def configure(self) -> str:
        """Address and a route by the router of the subnet."""
        address = str(self.spec.address)
        router = address.rsplit(".", 1)[0] + ".1"
        self.namespace.ip(f"address replace {address}/24 dev {NIC}", f"route replace default via {router} dev {NIC}")
        return address


class PlainLab(Lab):
    """Hosts on a switch, guests on taps, nothing that forwards on the hosts. Subclasses do `wire`."""

    hosts_needed = 2
    detail = ""
    """What was set up, where there was a choice: for the environment."""

    def __init__(self, directory: Path, guests: Sequence[BareSpec]) -> None:
        super().__init__(directory, self.hosts_needed)
        self.bare: dict[str, BareGuest] = {spec.name: PlainGuest(self, spec) for spec in guests}

    def wire(self) -> None:
        """Make taps and uplinks of all hosts one virtual network. Raises LabError."""
        raise NotImplementedError

    def configure(self) -> None:
        """Addresses and routes in the guests."""
        for guest in self.bare.values():
            guest.configure()

    def taps(self, host: LabHost) -> list[str]:
        """The taps of one host."""
        return [guest.spec.tap for guest in self.bare.values() if guest.host is host]

    def forwarders(self) -> list[int]:
        """Pids of processes that forward; none where the kernel does."""
        return []

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
            call_netfilter(host, 0)
        for guest in self.bare.values():
            guest.plug()
        self.wire()
        self.configure()
        self._write_state(up=True)


def call_netfilter(host: LabHost, on: int) -> None:
    """Whether bridges of this host show IPv4 packets to the host's own netfilter; ARP never."""
    script = f"""for f in /proc/sys/net/bridge/bridge-nf-call-*; do [ ! -e $f ] || echo 0 >$f; done
    [ {on} = 0 ] || echo 1 >/proc/sys/net/bridge/bridge-nf-call-iptables"""
    host.exec("sh", "-euc", script)


def bridge(host: LabHost, name: str, *ports: str) -> None:
    """A bridge as anybody makes it, of these ports."""
    host.namespaces.ip(
        f"link add {name} type bridge stp_state 0 forward_delay 0 mcast_snooping 0",
        *(f"link set {port} master {name}" for port in ports),
        f"link set {name} up",
    )


def bridge_uplink(host: LabHost) -> None:
    """One flat layer 2: the uplink itself is a port, without addresses."""
    host.namespaces.ip(f"address flush dev {UPLINK}")


def on_link(guest: BareGuest) -> None:
    """All other guests are this one's neighbours: a flat layer 2 without any router."""
    guest.namespace.ip(f"route del default dev {NIC}", f"route replace {PREFIX} dev {NIC}")
