"""Contender ovs: Open vSwitch on each host, with a router made of flows on each ("distributed").

Own databases and sockets in the host's private /run; no service of this machine is used. The datapath is the kernel's
where the kernel has it, else the userspace one (datapath_type netdev: vswitchd reads and writes packet sockets), with
TSO on (userspace-tso-enable). As with OVN, every guest's place is known beforehand and only broadcast is flooded;
routed frames leave with a router MAC of their host, so that no switch sees one MAC at two ports.
"""

import shutil
import subprocess
from pathlib import Path

from bench.plain import NETWORKS, PlainLab, bridge_uplink
from divhook.lab import processes
from divhook.lab.errors import LabError
from divhook.lab.host import UPLINK, LabHost

SCHEMA = "/usr/share/openvswitch/vswitch.ovsschema"
DATABASE = "/run/openvswitch/conf.db"
SOCKET = "/run/openvswitch/db.sock"
START_S = 15.0
ROUTER_MAC = "02:d1:00:00:00:01"
HOST_ROUTER_MAC = {"A": "02:d1:00:00:0a:01", "B": "02:d1:00:00:0b:01"}


def absent() -> str | None:
    """Why there can be no Open vSwitch here; None where there can."""
    missing = [name for name in ("ovs-vswitchd", "ovsdb-server", "ovs-vsctl", "ovs-ofctl") if not shutil.which(name)]
    return f"not installed: {', '.join(missing)} (Debian package openvswitch-switch)" if missing else None


def kernel_datapath() -> bool:
    """Whether the kernel has, or can load, its own datapath."""
    subprocess.run(["modprobe", "-q", "openvswitch"], check=False, capture_output=True)
    return Path("/sys/module/openvswitch").exists()


class OvsLab(PlainLab):
    """Two hosts with a vswitchd each."""

    def wire(self) -> None:
        """Start the daemons; one bridge of taps and uplink; the flows."""
        kind = "system" if kernel_datapath() else "netdev"
        self.detail = f"datapath_type {kind}{', userspace-tso-enable' if kind == 'netdev' else ''}"
        for host in self.hosts.values():
            bridge_uplink(host)
            self._start(host, kind)
            ports = [f"-- add-port br0 {port}" for port in (UPLINK, *self.taps(host))]
            add = f"add-br br0 -- set bridge br0 datapath_type={kind} fail_mode=secure {' '.join(ports)}"
            self._vsctl(host, "--timeout=20", *add.split())
            host.namespaces.run("ovs-ofctl", "add-flows", "br0", "-", input_text=self._flows(host))

    def _vsctl(self, host: LabHost, *arguments: str) -> None:
        host.exec("ovs-vsctl", f"--db=unix:{SOCKET}", *arguments)

    def _start(self, host: LabHost, kind: str) -> None:
        host.exec("mkdir", "-p", "/run/openvswitch")
        host.exec("ovsdb-tool", "create", DATABASE, SCHEMA)
        self._spawn(host, "ovsdb-server", DATABASE, f"--remote=punix:{SOCKET}", "--pidfile")
        begun = processes.wait_until(lambda: host.outside(SOCKET).exists(), START_S)
        if not begun:
            raise LabError(f"ovsdb-server of host {host.name} does not start: see {host.root}/log")
        self._vsctl(host, "--no-wait", "init")
        if kind == "netdev":
            self._vsctl(host, "--no-wait", "set", "Open_vSwitch", ".", "other_config:userspace-tso-enable=true")
        self._spawn(host, "ovs-vswitchd", f"unix:{SOCKET}", "--pidfile")

    def _spawn(self, host: LabHost, *command: str) -> None:
        processes.spawn(
            host.namespaces.enter(*command), host.root / "pids" / command[0], host.root / "log" / command[0]
        )

    def _flows(self, host: LabHost) -> str:
        flows = ["priority=0,actions=NORMAL"]
        for network in NETWORKS.values():
            flows.append(
                f"priority=200,arp,arp_op=1,arp_tpa={network}.1,actions="
                "move:NXM_OF_ETH_SRC[]->NXM_OF_ETH_DST[],"
                f"set_field:{ROUTER_MAC}->eth_src,set_field:2->arp_op,"
                "move:NXM_NX_ARP_SHA[]->NXM_NX_ARP_THA[],move:NXM_OF_ARP_SPA[]->NXM_OF_ARP_TPA[],"
                f"set_field:{ROUTER_MAC}->arp_sha,set_field:{network}.1->arp_spa,in_port"
            )
        for guest in self.bare.values():
            port = guest.spec.tap if guest.host is host else UPLINK
            flows += [
                f"priority=100,ip,dl_dst={ROUTER_MAC},nw_dst={guest.spec.address},actions=dec_ttl,"
                f"set_field:{HOST_ROUTER_MAC[host.name]}->eth_src,set_field:{guest.spec.mac}->eth_dst,output:{port}",
                f"priority=50,dl_dst={guest.spec.mac},actions=output:{port}",
            ]
        return "\n".join(flows) + "\n"

    def forwarders(self) -> list[int]:
        """Both vswitchds."""
        pids = (processes.running(host.root / "pids" / "ovs-vswitchd") for host in self.hosts.values())
        return [pid for pid in pids if pid is not None]
