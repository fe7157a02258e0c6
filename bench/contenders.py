"""What divhook is compared with: PlainLab, wired in the ways people do it.

bridge         taps and uplink in one Linux bridge per host, no filter: one flat layer 2, the bound of what users run.
               It has no router: guests of other subnets are on link.
bridge-nft     the same with a stateful filter: connection tracking and a default of drop
vxlan-router   a VXLAN and a bridge per subnet; the router between subnets is a namespace on a third host
ovs            Open vSwitch with a distributed router made of flows: bench/ovs.py
bare-redirect  tc programs without any look-up: the physical limit. One pair of guests; their neighbours are static
divhook        the agent with the fast path; divhook-slow: the agent alone. bench/divhook_lab.py
"""

from collections.abc import Sequence
from pathlib import Path

from bench.plain import NETWORKS, NUMBERS, PlainLab, bridge, bridge_uplink, call_netfilter, on_link
from bench.toolbox import Toolbox, attach_tc
from divhook.core.addressing import parse_mac
from divhook.lab.bare import NIC, BareSpec
from divhook.lab.host import UPLINK, LabHost
from divhook.lab.lab import SYSCTL_NO_IPV6
from divhook.lab.namespaces import Namespaces

BRIDGE_TABLE = """
table bridge filter {
  chain forward {
    type filter hook forward priority filter; policy drop;
    ether type arp accept
    ct state established,related accept
    ct state invalid drop
    ip saddr 10.16.0.0/12 ip daddr 10.16.0.0/12 meta l4proto { tcp, udp, icmp } ct state new accept
  }
}
"""
INET_TABLE = """
table ip filter {
  chain forward {
    type filter hook forward priority filter; policy drop;
    ct state established,related accept
    ct state invalid drop
    ip saddr 10.16.0.0/12 ip daddr 10.16.0.0/12 meta l4proto { tcp, udp, icmp } ct state new accept
  }
}
"""
VNI = {"web": 1001, "db": 1002}
VXLAN_MTU = 1450


class BridgeLab(PlainLab):
    """Contender bridge."""

    def wire(self) -> None:
        """Taps and uplink in one bridge."""
        for host in self.hosts.values():
            bridge_uplink(host)
            bridge(host, "br0", UPLINK, *self.taps(host))

    def configure(self) -> None:
        """All guests on link."""
        super().configure()
        for guest in self.bare.values():
            on_link(guest)


class BridgeNftLab(BridgeLab):
    """Contender bridge-nft: in the bridge family where the kernel tracks there, else by br_netfilter."""

    def wire(self) -> None:
        """The bridge, then the filter."""
        super().wire()
        for host in self.hosts.values():
            if host.namespaces.run("nft", "-f", "-", input_text=BRIDGE_TABLE, check=False).returncode == 0:
                self.detail = "nft family bridge with ct state"
            else:
                call_netfilter(host, 1)
                host.namespaces.run("nft", "-f", "-", input_text=INET_TABLE)
                self.detail = "br_netfilter and nft family ip with ct state: no connection tracking in family bridge"


class VxlanLab(PlainLab):
    """Contender vxlan-router."""

    hosts_needed = 3

    def wire(self) -> None:
        """A VXLAN per subnet on every host; on the third one the router's namespace."""
        router = Namespaces(self.directory / "ns", "router")
        router.create(("net",), f"{SYSCTL_NO_IPV6}; sysctl -qw net.ipv4.ip_forward=1")
        for host in self.hosts.values():
            others = [each.plan.address for each in self.hosts.values() if each is not host]
            for subnet, vni in VNI.items():
                tunnel, local = f"vx-{subnet}", host.plan.address
                host.namespaces.ip(
                    f"link add {tunnel} mtu {VXLAN_MTU} type vxlan id {vni} local {local} dev {UPLINK} dstport 4789",
                    f"link set {tunnel} up",
                )
                for other in others:
                    host.exec("bridge", "fdb", "append", "00:00:00:00:00:00", "dev", tunnel, "dst", other)
                taps = [g.spec.tap for g in self.bare.values() if g.host is host and g.spec.subnet == subnet]
                bridge(host, f"br-{subnet}", tunnel, *taps)
                if host.name == "C":
                    self._router_leg(router, host, subnet)

    def _router_leg(self, router: Namespaces, host: LabHost, subnet: str) -> None:
        peer = host.namespaces.file("net")
        router.ip(
            f"link add {subnet} mtu {VXLAN_MTU} type veth peer name r-{subnet} netns {peer}",
            f"link set {subnet} up",
            f"address add {NETWORKS[subnet]}.1/24 dev {subnet}",
        )
        host.namespaces.ip(f"link set r-{subnet} mtu {VXLAN_MTU} master br-{subnet} up")

    def configure(self) -> None:
        """The guests' MTU leaves room for the tunnel's headers."""
        super().configure()
        for guest in self.bare.values():
            guest.namespace.ip(f"link set {NIC} mtu {VXLAN_MTU}")
        self.detail = f"guests' MTU {VXLAN_MTU}"


class BareRedirectLab(PlainLab):
    """Contender bare-redirect. With no look-up to tell them apart, db is another address of the guest web."""

    def __init__(self, directory: Path, guests: Sequence[BareSpec], toolbox: Toolbox) -> None:
        super().__init__(directory, [spec for spec in guests if spec.name in NUMBERS and spec.name != "db"])
        self._toolbox = toolbox

    def wire(self) -> None:
        """A program at every tap that sends, and at both uplinks."""
        a, b = self.host("A"), self.host("B")
        ask, near, web = (self.bare[name].spec for name in ("ask", "near", "web"))
        self._redirect(a, ask.tap, UPLINK, b.plan.mac, a.plan.mac)
        self._redirect(a, self.bare["gen"].spec.tap, UPLINK, b.plan.mac, a.plan.mac)
        self._redirect(a, self.bare["local"].spec.tap, near.tap, near.mac, self.bare["local"].spec.mac)
        self._redirect(a, UPLINK, ask.tap, ask.mac, web.mac)
        self._redirect(b, web.tap, UPLINK, a.plan.mac, b.plan.mac)
        self._redirect(b, UPLINK, web.tap, web.mac, ask.mac)

    def _redirect(self, host: LabHost, at: str, to: str, dst_mac: str, src_mac: str) -> None:
        index = int(host.exec("cat", f"/sys/class/net/{to}/ifindex").stdout)
        program = self._toolbox.bare_redirect(index, parse_mac(dst_mac), parse_mac(src_mac))
        attach_tc(host.namespaces, at, program)

    def configure(self) -> None:
        """Static neighbours, since nothing answers ARP."""
        known = {str(guest.spec.address): guest.spec.mac for guest in self.bare.values()}
        known[f"{NETWORKS['db']}.{NUMBERS['db']}"] = self.bare["web"].spec.mac
        for guest in self.bare.values():
            guest.configure()
            on_link(guest)
            lines = [f"neigh replace {address} lladdr {mac} dev {NIC} nud permanent" for address, mac in known.items()]
            guest.namespace.ip(*lines)
        self.bare["web"].namespace.ip(f"address add {NETWORKS['db']}.{NUMBERS['db']}/32 dev {NIC}")
        self.bare["db"] = self.bare["web"]
