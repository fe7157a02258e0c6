"""A host with divbr0, two guests and a wire, each a network namespace.

ka-g1 [eth0] ──── [tap1] ┐
                         ├ divbr0, in ka-host [up0] ──── [w0] ka-wire
ka-g2 [eth0] ──── [tap2] ┘
"""

import asyncio
import contextlib
import select
import socket
import time
from collections.abc import Coroutine, Iterable
from ipaddress import IPv4Network
from typing import Any, TypeVar

import marker
from namespaces import Namespace

from divhook.adapters.links import BridgeInfo, Links, PortLink
from divhook.adapters.rules import Rules

SUPERNET = IPv4Network("10.0.0.0/8")
QUEUE = 7
GUEST_MACS = (b"\x52\x54\x00\x01\x02\x03", b"\x52\x54\x00\x04\x05\x06")
GUEST_ADDRESSES = ("10.11.12.13", "10.11.12.14")
HOST_MAC = b"\x52\x54\x00\x07\x08\x09"
HOST_ADDRESS, WIRE_ADDRESS = "192.0.2.1", "192.0.2.9"
PORT_IDS = (0x0102, 0x0304)
MARKS = tuple(0xD1 | port << 16 for port in PORT_IDS)

_T = TypeVar("_T")
_ETH_P_ALL = socket.htons(3)
_PACKET_OUTGOING = 4
_MLD_REPORTS = bytes.fromhex("333300000016")  # of the host's own links


class Bench:
    """The namespaces, and what the tests do with them."""

    def __init__(self, prefix: str) -> None:
        self._made: list[Namespace] = []
        self.host = self._namespace(f"{prefix}-host")
        self.guests = (self._namespace(f"{prefix}-g1"), self._namespace(f"{prefix}-g2"))
        self.wire = self._namespace(f"{prefix}-wire")
        self.bridge = BridgeInfo(0, b"")
        self.ports: tuple[PortLink, ...] = ()

    def _namespace(self, name: str) -> Namespace:
        self._made.append(Namespace(name))
        return self._made[-1]

    def cable(self) -> None:
        """Links and addresses."""
        for setting in ("accept_dad", "router_solicitations"):  # the host has IPv6, and keeps silent
            self.host.sysctl(f"ipv6/conf/all/{setting}", 0)
            self.host.sysctl(f"ipv6/conf/default/{setting}", 0)
        for namespace in (*self.guests, self.wire):
            namespace.sysctl("ipv6/conf/all/disable_ipv6", 1)
            namespace.sysctl("ipv6/conf/default/disable_ipv6", 1)
        self.host.run(f"ip link add up0 address {HOST_MAC.hex(':')} type veth peer name w0 netns {self.wire.name}")
        self.host.run(f"ip addr add {HOST_ADDRESS}/24 dev up0; ip link set up0 up")
        self.wire.run(f"ip addr add {WIRE_ADDRESS}/24 dev w0; ip link set w0 up")
        self.host.run(f"ip route add default via {WIRE_ADDRESS}")
        for number, guest in enumerate(self.guests):
            tap = f"tap{number + 1}"
            self.host.run(f"ip link add {tap} type veth peer name eth0 netns {guest.name}")
            guest.run(f"ip link set eth0 address {GUEST_MACS[number].hex(':')} mtu 1500 up")
            guest.run(f"ip addr add {GUEST_ADDRESSES[number]}/24 dev eth0")
            guest.run("ip neigh add 10.11.12.1 lladdr 02:d1:00:0b:00:0c dev eth0; ip route add default via 10.11.12.1")
            self.host.run(f"ip link set {tap} up")
        self.host.sysctl("bridge/bridge-nf-call-iptables", 0)

    def remove(self) -> None:
        for namespace in self._made:
            namespace.remove()

    def on_host(self, work: Coroutine[Any, Any, _T]) -> _T:
        """Run a coroutine in the host's namespace, to its end."""
        with self.host.entered():
            return asyncio.run(work)

    async def lay_out(self) -> None:
        """divbr0, ports and walls as the agent makes them, and the marker in from_guest's place."""
        links = Links()
        await links.open()
        self.bridge = await links.ensure_bridge()
        ports = []
        for tap in ("tap1", "tap2"):
            self.host.run(f"ip link set {tap} master divbr0")
            ports.append(await links.ensure_port(tap))
        self.ports = tuple(ports)
        for port, mark in zip(ports, MARKS, strict=True):
            await marker.attach(port.ifindex, mark, self.bridge.mac)
        await links.ensure_blackhole(SUPERNET)
        await links.close()

    async def set_rules(self) -> None:
        await Rules(QUEUE).ensure()

    def unmark(self) -> None:
        """Take the marker away, as if from_guest had been removed."""
        self.host.run("tc filter del dev tap1 ingress prio 1; tc filter del dev tap2 ingress prio 1")

    def unwall_ports(self) -> None:
        """Take away every filter of the ports, clsact and all."""
        self.host.run("tc qdisc del dev tap1 clsact; tc qdisc del dev tap2 clsact")

    def guest_sends(self, *frames: bytes, guest: int = 0) -> None:
        _send(self.guests[guest], "eth0", frames)

    def wire_sends(self, *frames: bytes) -> None:
        _send(self.wire, "w0", frames)


def _send(namespace: Namespace, link: str, frames: Iterable[bytes]) -> None:
    with namespace.entered(), socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0) as sender:
        sender.bind((link, 0))
        for frame in frames:
            sender.send(frame)


class Witness:
    """A packet socket on every link of a namespace: what frames come in there from now on."""

    def __init__(self, namespace: Namespace, link: str) -> None:
        with namespace.entered():
            self._socket = socket.socket(socket.AF_PACKET, socket.SOCK_RAW | socket.SOCK_NONBLOCK, _ETH_P_ALL)
            self._socket.bind((link, 3))

    def frames(self, wait_s: float = 0.0) -> list[bytes]:
        """Frames that came in, since the last call; waits at most wait_s for the first."""
        select.select([self._socket], [], [], wait_s)
        seen = []
        with contextlib.suppress(BlockingIOError):
            while True:
                frame, address = self._socket.recvfrom(65536)
                if address[2] != _PACKET_OUTGOING and frame[:6] != _MLD_REPORTS:
                    seen.append(frame)
        return seen

    def close(self) -> None:
        self._socket.close()


class LocalDelivery:
    """Sockets of the host that would get whatever its IP stack delivers locally."""

    def __init__(self, host: Namespace) -> None:
        protocols = (socket.IPPROTO_ICMP, socket.IPPROTO_UDP, socket.IPPROTO_TCP, socket.IPPROTO_IGMP, 253)
        with host.entered():
            self._sockets = [socket.socket(socket.AF_INET, socket.SOCK_RAW, protocol) for protocol in protocols]
            self._sockets += [
                socket.socket(socket.AF_INET6, socket.SOCK_RAW, protocol) for protocol in (socket.IPPROTO_ICMPV6, 17)
            ]
            for port in (67, 68, 53, 5353):
                bound = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
                bound.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)
                bound.bind(("0.0.0.0", port))
                self._sockets.append(bound)
            listener = socket.create_server(("0.0.0.0", 22))
            self._sockets.append(listener)

    def seen(self) -> list[str]:
        """What was delivered, one line each."""
        ready, _, _ = select.select(self._sockets, [], [], 0)
        return [f"socket {s.type}/{s.proto} {s.getsockname()} got something" for s in ready]

    def close(self) -> None:
        for each in self._sockets:
            each.close()


def wait_for(what: Any, seconds: float = 5.0) -> bool:
    """Whether the callable became true in time."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if what():
            return True
        time.sleep(0.02)
    return bool(what())
