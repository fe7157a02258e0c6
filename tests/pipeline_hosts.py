"""Hosts with the real pipeline and the real discovery on a perfect little wire, and the frames of their guests.

host A   WEB, APP in 3.7   DB in 3.9 (MTU 1400)   SPY in 5.7
host B   FAR in 3.7        LOG in 3.9             MOLE in 5.7
host C   no guests
"""

import random
from dataclasses import dataclass, field

from divhook.core.addressing import RMAC_PREFIX, Address, AddressPlan, Mac, SubnetId, parse_address, parse_mac, rmac
from divhook.core.dhcp import SubnetService
from divhook.core.discovery import Discovery, Event, Limits
from divhook.core.endpoint import Endpoint, PortState, PortTable
from divhook.core.outputs import Output, ToGuest, ToWire
from divhook.core.pipeline import Pipeline
from divhook.core.router import SubnetFacts, Topology
from divhook.core.wire.arp import Arp
from divhook.core.wire.discovery import Message
from divhook.core.wire.icmp import IcmpEcho
from divhook.core.wire.ipv4 import Ipv4, Protocol
from divhook.core.wire.udp import Udp

PLAN = AddressPlan()
HOST_A = parse_mac("02:a0:0a:0b:0c:0d")
HOST_B = parse_mac("02:b0:1a:1b:1c:1d")
HOST_C = parse_mac("02:c0:2a:2b:2c:2d")
STRANGER = parse_mac("02:e0:3a:3b:3c:3d")
LAN, BACK, FOREIGN = SubnetId(3, 7), SubnetId(3, 9), SubnetId(5, 7)
MTU = {LAN: 1500, BACK: 1400, FOREIGN: 1500}
RMAC = {subnet: rmac(subnet) for subnet in MTU}
ROUTER = {subnet: PLAN.router(subnet) for subnet in MTU}
START_S = 1000.0
WALL_US = 1_700_000_000_000_000


def endpoint(port: int, subnet: SubnetId, host: int, vmac: str, state: PortState = PortState.ACTIVE) -> Endpoint:
    address = PLAN.address(subnet, host)
    return Endpoint(port, subnet, parse_mac(vmac), address, f"guest{port}", f"uuid-{port}", MTU[subnet], state)


WEB = endpoint(11, LAN, 21, "52:54:00:11:21:31")
APP = endpoint(12, LAN, 22, "52:54:00:12:22:32")
DB = endpoint(13, BACK, 34, "52:54:00:13:34:33")
SPY = endpoint(14, FOREIGN, 61, "52:54:00:14:61:34")
FAR = endpoint(21, LAN, 41, "52:54:00:21:41:51")
LOG = endpoint(22, BACK, 52, "52:54:00:22:52:62")
MOLE = endpoint(23, FOREIGN, 62, "52:54:00:23:62:72")
NOBODY = PLAN.address(LAN, 99)
NOBODY_BACK = PLAN.address(BACK, 98)
OUTSIDE = parse_address("192.0.2.71")


def topology() -> Topology:
    """A fresh one: the caller of a pipeline owns it."""
    return {
        subnet: SubnetFacts(mtu, SubnetService(PLAN.router(subnet), PLAN.mask(), PLAN.broadcast(subnet)))
        for subnet, mtu in MTU.items()
    }


@dataclass
class Host:
    """One host: what its machines were given and what they said."""

    pmac: Mac
    limits: Limits
    out: list[Output] = field(default_factory=list)  # of `collect`
    events: list[Event] = field(default_factory=list)  # for the shell
    queries: list[ToGuest] = field(default_factory=list)  # IGMP, which the router asks by itself

    def __post_init__(self) -> None:
        self.discovery = Discovery(self.pmac, PLAN, random.Random(self.pmac), WALL_US, self.limits)
        self.ports = PortTable()
        self.pipeline = Pipeline(PLAN, self.pmac, self.ports, topology(), self.discovery)
        self.talkers = (self.discovery, self.pipeline.identities)

    def start(self, guest: Endpoint, now: float) -> None:
        self.ports.put(guest)
        if guest.state is PortState.ACTIVE and guest.address is not None:
            self.discovery.activate(guest.address, guest.vmac, guest.port, guest.identity, None, now)

    def put(self, guest: Endpoint, state: PortState) -> None:
        self.ports.put(guest.with_state(state))

    def collect(self, now: float) -> None:
        for output in self.pipeline.collect(now):
            routers = isinstance(output, ToGuest) and output.frame[0] & 1 and output.frame[6:8] == RMAC_PREFIX
            if isinstance(output, ToGuest) and routers and output.frame[23] == Protocol.IGMP:
                self.queries.append(output)
            else:
                self.out.append(output)
        self.events += self.pipeline.pending_events
        self.pipeline.pending_events.clear()

    def take(self) -> list[Output]:
        """What `collect` returned since the last call."""
        out, self.out = self.out, []
        return out


class Net:
    """The hosts, their clock, and discovery's messages, which arrive at once except at hosts in `cut`."""

    def __init__(self, limits: Limits | None = None, guests: bool = True) -> None:
        self.now = START_S
        self.log: list[Message] = []
        self.cut: set[Mac] = set()
        self.a, self.b, self.c = self.hosts = [Host(pmac, limits or Limits()) for pmac in (HOST_A, HOST_B, HOST_C)]
        for host in self.hosts:
            host.discovery.ready(self.now)
        if guests:
            for host, residents in ((self.a, (WEB, APP, DB, SPY)), (self.b, (FAR, LOG, MOLE))):
                for guest in residents:
                    host.start(guest, self.now)
        self.run(1)
        for host in self.hosts:  # nothing of the start is what a test asks for
            host.take()
            host.events.clear()
            host.queries.clear()
        self.log.clear()

    def settle(self) -> None:
        """Carry messages until nobody says anything more; time stands still."""
        for _ in range(1000):
            pending = [message for host in self.hosts for each in host.talkers for message in each.messages_to_send()]
            if not pending:
                break
            for message in pending:
                self.log.append(message)
                for host in self.hosts:
                    group = bool(message.destination[0] & 1)
                    cut = {host.pmac, message.source} & self.cut
                    if not cut and host.pmac != message.source and (group or message.destination == host.pmac):
                        for each in host.talkers:
                            each.receive(message, self.now)
        else:
            raise AssertionError("hosts talk without end")
        for host in self.hosts:
            host.collect(self.now)

    def run(self, seconds: float) -> None:
        """Let time go on; timers run when they are due."""
        until = self.now + seconds
        self.settle()
        while True:
            timers = [each.next_timer() for host in self.hosts for each in host.talkers]
            due = min((t for t in timers if t is not None), default=until)
            if due > until:
                break
            self.now = max(self.now, due)
            for host in self.hosts:
                for each in host.talkers:
                    each.on_timer(self.now)
            self.settle()
        self.now = until

    def sent(self, host: Host, guest: Endpoint, frame: bytes) -> list[Output]:
        """What a frame of a guest gives, at once and after discovery has spoken."""
        out = host.pipeline.from_guest(guest.port, frame, self.now)
        self.settle()
        return [*out, *host.take()]

    def heard(self, host: Host, frame: bytes) -> list[Output]:
        """What a frame from the uplink gives, at once and after discovery has spoken."""
        out = host.pipeline.from_wire(frame, self.now)
        self.settle()
        return [*out, *host.take()]

    def know(self, host: Host, guest: Endpoint, target: Address) -> None:
        """Make a host of a guest know where a target is, and the target's host know the guest."""
        host.discovery.resolve(target, guest.port, guest.address or bytes(4), self.now)
        self.settle()


def ipv4(
    source: Address,
    destination: Address,
    payload: bytes = b"0123456789abcdefghijklmn",
    ttl: int = 64,
    *,
    protocol: int = Protocol.TCP,
    df: bool = False,
    more: bool = False,
    offset: int = 0,
    options: bytes = b"",
    identification: int = 0x1D2E,
) -> bytes:
    """A whole packet; TCP by default, for which nothing but its length matters here."""
    return Ipv4(
        source=source,
        destination=destination,
        protocol=protocol,
        payload=payload,
        ttl=ttl,
        identification=identification,
        dscp_ecn=0x28,
        dont_fragment=df,
        more_fragments=more,
        fragment_offset=offset,
        options=options,
    ).emit()


def udp(source: Address, destination: Address, sport: int = 5353, dport: int = 33434, ttl: int = 64) -> bytes:
    datagram = Udp(sport, dport, b"datagram").emit(source, destination)
    return ipv4(source, destination, datagram, ttl, protocol=Protocol.UDP)


def ping(source: Address, destination: Address, ttl: int = 64, size: int = 32) -> bytes:
    echo = IcmpEcho(False, 0x0A0B, 0x0C0D, bytes(range(256)) * (size // 256) + bytes(range(size % 256)))
    return ipv4(source, destination, echo.emit(), ttl, protocol=Protocol.ICMP)


def frame_of(destination: Mac, source: Mac, packet: bytes, ethertype: int = 0x0800) -> bytes:
    return destination + source + ethertype.to_bytes(2, "big") + packet


def from_guest(guest: Endpoint, packet: bytes, destination: Mac | None = None) -> bytes:
    """A frame as a guest sends it: to its router's MAC, unless said otherwise (the pipeline does not look at it)."""
    return frame_of(destination or RMAC[guest.subnet], guest.vmac, packet)


def arp_from(guest: Endpoint, tpa: Address, spa: Address | None = None, operation: int = 1) -> bytes:
    """An ARP request as a guest sends it."""
    arp = Arp(operation, guest.vmac, guest.address if spa is None else spa, bytes(6), tpa)
    return frame_of(b"\xff" * 6, guest.vmac, arp.emit(), 0x0806)


def on_wire(host: Mac, to: Mac, packet: bytes) -> ToWire:
    return ToWire(frame_of(to, host, packet))


def in_port(guest: Endpoint, source: Mac, packet: bytes) -> ToGuest:
    return ToGuest(guest.port, frame_of(guest.vmac, source, packet))
