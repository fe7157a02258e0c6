"""The reference pipeline: decides what becomes of any frame from_guest or from_wire.

    from_guest   DHCP ─ router ─ broadcast/multicast ─ same subnet | routed | external ─ policy ─ rewrite ─ emit
    from_wire    is it ours ─ source check ─ policy ─ rewrite ─ emit

Frames come from the divert, so the eBPF programs have validated them; what is cheap is checked again here, since this
code is also the complete data plane of `fastpath: off` and the reference of the fast path. Every frame ends in exactly
one of: emitted, held by discovery, or dropped with a reason. "Dropped" includes CONSUMED: answered here.

    to_wire   src := own pmac   dst := the peer's pmac
    to_guest  src := the sender's vmac in the same subnet, else rmac   dst := vmac
    routed    TTL-1 at the sending host: one visible hop, wherever the guests are
"""

from collections.abc import Sequence
from dataclasses import dataclass

from divhook.core.addressing import (
    LIMITED_BROADCAST,
    ZERO_ADDRESS,
    Address,
    AddressPlan,
    Mac,
    SubnetId,
    rmac,
)
from divhook.core.dhcp import DhcpResult, DhcpServer, LeaseEvent
from divhook.core.discovery import (
    Discovery,
    Event,
    Found,
    Outcome,
    Released,
    SourceConfirmed,
    SourceRefused,
    Unreachable,
)
from divhook.core.endpoint import PORT_WIRE, Endpoint, PortState, PortTable
from divhook.core.outputs import Drop, Output, ToGuest, ToWire
from divhook.core.reasons import DropReason
from divhook.core.router import Router, SubnetFacts, Topology
from divhook.core.wire.arp import ARP_REPLY, ARP_REQUEST, Arp, parse_arp_untrusted
from divhook.core.wire.discovery import Claim
from divhook.core.wire.errors import WireError
from divhook.core.wire.ethernet import (
    ETHERTYPE_ARP,
    ETHERTYPE_IPV4,
    ETHERTYPE_RARP,
    Ethernet,
    parse_ethernet_untrusted,
)
from divhook.core.wire.ipv4 import Header, Protocol, decrement_ttl, fragment, header_untrusted

DHCP_SERVER_PORT = 67
DHCP_CLIENT_PORT = 68


@dataclass(frozen=True, slots=True)
class HeldPacket:
    """A guest's packet that waits for its destination; pieces are what will be sent, ready but for the MACs."""

    port: int
    packet: bytes
    pieces: tuple[bytes, ...]
    destination: Address
    routed: bool


@dataclass(frozen=True, slots=True)
class HeldArp:
    """A guest's ARP request that waits for the one it asks for."""

    port: int
    request: Arp


@dataclass(frozen=True, slots=True)
class HeldWire:
    """A packet from the wire that waits for its source to be confirmed."""

    host: Mac
    packet: bytes


class Pipeline:
    """One host's data plane. The caller owns ports and topology, and sends what the methods return."""

    def __init__(
        self, plan: AddressPlan, pmac: Mac, ports: PortTable, topology: Topology, discovery: Discovery
    ) -> None:
        self.plan = plan
        self.pmac = pmac
        self.ports = ports
        self.topology = topology
        self.discovery = discovery
        self.dhcp = DhcpServer()
        self.router = Router(plan)
        self.lease_events: list[tuple[Endpoint, LeaseEvent]] = []
        self.pending_events: list[Event] = []
        self.hostnames: dict[int, str] = {}

    # ------------------------------------------------------------------ from_guest

    def from_guest(self, port: int, frame: bytes, now: float) -> list[Output]:
        """Any whole Ethernet frame that a guest sent, as the wire of its NIC shows it."""
        try:
            ethernet = parse_ethernet_untrusted(frame)
        except WireError as error:
            return [Drop(error.reason, port, frame)]
        endpoint = self.ports.port(port)
        if endpoint is None:
            return [Drop(DropReason.PORT_UNKNOWN, port, frame)]
        if ethernet.source != endpoint.vmac:
            return [Drop(DropReason.SPOOF_MAC, port, frame)]
        if ethernet.ethertype == ETHERTYPE_IPV4:
            return self.from_guest_ipv4(port, ethernet.payload, bool(ethernet.destination[0] & 1), now)
        if ethernet.ethertype == ETHERTYPE_ARP:
            return self.from_guest_arp(port, ethernet.payload, now)
        reason = DropReason.RARP_FROM_GUEST if ethernet.ethertype == ETHERTYPE_RARP else DropReason.ETHERTYPE
        return [Drop(reason, port, frame)]

    def from_guest_ipv4(self, port: int, packet: bytes, group: bool, now: float) -> list[Output]:
        """An IPv4 packet that a guest sent; group: its frame went to a group MAC."""
        out: list[Output] = []
        endpoint = self.ports.port(port)
        if endpoint is None:
            reason: DropReason | None = DropReason.PORT_UNKNOWN
        else:
            try:
                reason = self._guest_ipv4(endpoint, packet, group, now, out)
            except WireError as error:
                reason = error.reason
        if reason is not None:
            out.append(Drop(reason, port, packet))
        return out

    def _guest_ipv4(
        self, endpoint: Endpoint, packet: bytes, group: bool, now: float, out: list[Output]
    ) -> DropReason | None:
        header = header_untrusted(packet)
        packet = packet[: header.total_length]
        if endpoint.state is PortState.INCOMING:
            return DropReason.PORT_NOT_ACTIVE
        if header.protocol == Protocol.UDP and not header.fragment_offset and self._is_dhcp(header, packet):
            return self._guest_dhcp(endpoint, packet, now, out)
        if endpoint.state is not PortState.ACTIVE or endpoint.address is None:
            return DropReason.PORT_NOT_ACTIVE
        if header.source != endpoint.address:
            return DropReason.SPOOF_IPV4
        destination = header.destination
        target = self._guest_target(endpoint, destination, group)
        if isinstance(target, DropReason):
            if target is DropReason.EXTERNAL_UNSUPPORTED:
                self.router.net_unreachable(endpoint, header, packet, now, out)
            return target
        facts = self.topology.get(target)
        if facts is None:
            self.router.net_unreachable(endpoint, header, packet, now, out)
            return DropReason.NO_SUCH_ENDPOINT
        number = self.plan.host_number(destination)
        if number == 1:
            return self.router.receive(endpoint, header, packet, now, out)
        if number in (0, self.plan.max_host):
            return DropReason.BROADCAST_UNSUPPORTED if number else DropReason.MARTIAN_DESTINATION
        return self._guest_unicast(endpoint, header, packet, target, facts, now, out)

    def _guest_target(self, endpoint: Endpoint, destination: Address, group: bool) -> SubnetId | DropReason:
        first = destination[0]
        if destination == LIMITED_BROADCAST:
            return DropReason.BROADCAST_UNSUPPORTED
        if 224 <= first < 240:
            return DropReason.MULTICAST_UNSUPPORTED
        if first in (0, 127) or first >= 240 or destination == endpoint.address:
            return DropReason.MARTIAN_DESTINATION
        target = self.plan.locate(destination)
        if target is not None and self.plan.host_number(destination) == self.plan.max_host:
            return target if target == endpoint.subnet else DropReason.BROADCAST_UNSUPPORTED
        if group:
            return DropReason.L2_MULTICAST_MISMATCH
        if target is None:
            return DropReason.EXTERNAL_UNSUPPORTED
        if target.cell != endpoint.subnet.cell:
            return DropReason.CELL_DENIED
        return target

    def _guest_unicast(
        self,
        endpoint: Endpoint,
        header: Header,
        packet: bytes,
        target: SubnetId,
        facts: SubnetFacts,
        now: float,
        out: list[Output],
    ) -> DropReason | None:
        original = packet
        routed = target != endpoint.subnet
        if routed:
            if header.ttl <= 1:
                self.router.time_exceeded(endpoint, header, packet, now, out)
                return DropReason.TTL_EXPIRED
            packet = decrement_ttl(packet)
        pieces: Sequence[bytes] = (packet,)
        if header.total_length > facts.mtu:
            if not routed or header.dont_fragment:
                if routed:
                    self.router.too_big(endpoint, header, original, facts.mtu, now, out)
                return DropReason.FRAGMENTATION_NEEDED
            pieces = fragment(packet, facts.mtu)
        destination = header.destination
        local = self.ports.at(destination)
        if local is not None:
            if local.state is not PortState.ACTIVE:
                return DropReason.PORT_NOT_ACTIVE
            source = rmac(target) if routed else endpoint.vmac
            out.extend(ToGuest(local.port, _ipv4_frame(local.vmac, source, piece)) for piece in pieces)
            return None
        held = HeldPacket(endpoint.port, original, tuple(pieces), destination, routed)
        return self._resolve(endpoint, destination, held, now, out)

    def _resolve(
        self, endpoint: Endpoint, destination: Address, held: HeldPacket | HeldArp, now: float, out: list[Output]
    ) -> DropReason | None:
        answer = self.discovery.resolve(destination, endpoint.port, endpoint.address or ZERO_ADDRESS, now, held)
        if isinstance(answer, Found):
            self._deliver(held, answer.claim, out)
            return None
        if isinstance(answer, DropReason):
            if answer is DropReason.NEGATIVE_CACHED:
                self._tell_unreachable(held, now, out)
            return answer
        return None

    @staticmethod
    def _is_dhcp(header: Header, packet: bytes) -> bool:
        ports = packet[header.header_length : header.header_length + 4]
        return ports == b"\x00\x44\x00\x43"

    def _guest_dhcp(self, endpoint: Endpoint, packet: bytes, now: float, out: list[Output]) -> DropReason:
        facts = self.topology.get(endpoint.subnet)
        if facts is None:
            return DropReason.PORT_NOT_ACTIVE
        hostname = self.hostnames.get(endpoint.port)
        result = self.dhcp.handle(endpoint, facts.service, hostname, packet, now)
        return self._dhcp_result(endpoint, result, out)

    def _dhcp_result(self, endpoint: Endpoint, result: DhcpResult, out: list[Output]) -> DropReason:
        out.extend(ToGuest(endpoint.port, frame) for frame in result.frames)
        if result.event is not None:
            self.lease_events.append((endpoint, result.event))
        return result.drop if result.drop is not None else DropReason.CONSUMED

    def from_guest_arp(self, port: int, payload: bytes, now: float) -> list[Output]:
        """The payload of an ARP frame that a guest sent. All of them end here: answered, or dropped."""
        out: list[Output] = []
        endpoint = self.ports.port(port)
        try:
            reason = self._guest_arp(endpoint, parse_arp_untrusted(payload), now, out)
        except WireError as error:
            reason = error.reason
        if reason is not None:
            out.append(Drop(reason, port, payload))
        return out

    def _guest_arp(self, endpoint: Endpoint | None, arp: Arp, now: float, out: list[Output]) -> DropReason | None:
        if endpoint is None:
            return DropReason.PORT_UNKNOWN
        if arp.sha != endpoint.vmac:
            return DropReason.SPOOF_ARP_SHA
        if arp.spa not in (endpoint.address, ZERO_ADDRESS):
            return DropReason.SPOOF_ARP_SPA
        if endpoint.state is not PortState.ACTIVE or endpoint.address is None:
            return DropReason.PORT_NOT_ACTIVE
        if arp.operation != ARP_REQUEST or arp.tpa in (endpoint.address, arp.spa):
            return DropReason.CONSUMED  # replies, probes and announcements of its own address
        if self.plan.locate(arp.tpa) != endpoint.subnet:
            return DropReason.NO_SUCH_ENDPOINT  # off-link: a router does not answer for others (no proxy ARP)
        if arp.tpa == self.plan.router(endpoint.subnet):
            out.append(_arp_answer(endpoint, arp, rmac(endpoint.subnet)))
            return DropReason.CONSUMED
        if not self.plan.assignable(arp.tpa):
            return DropReason.NO_SUCH_ENDPOINT
        local = self.ports.at(arp.tpa)
        if local is not None:
            if local.state is not PortState.ACTIVE:
                return DropReason.PORT_NOT_ACTIVE
            out.append(_arp_answer(endpoint, arp, local.vmac))
            return DropReason.CONSUMED
        reason = self._resolve(endpoint, arp.tpa, HeldArp(endpoint.port, arp), now, out)
        return DropReason.CONSUMED if reason is None and out else reason  # None: held

    # ------------------------------------------------------------------ from_wire

    def from_wire(self, frame: bytes, now: float) -> list[Output]:
        """A whole Ethernet frame from the uplink that carries IPv4; discovery frames go to the authenticator."""
        try:
            ethernet = parse_ethernet_untrusted(frame)
        except WireError as error:
            return [Drop(error.reason, PORT_WIRE, frame)]
        if ethernet.ethertype != ETHERTYPE_IPV4:
            return [Drop(DropReason.ETHERTYPE, PORT_WIRE, frame)]
        group = bool(ethernet.destination[0] & 1)
        return self.from_wire_ipv4(ethernet.source, ethernet.payload, group, now)

    def from_wire_ipv4(self, host: Mac, packet: bytes, group: bool, now: float) -> list[Output]:
        """An IPv4 packet from the uplink, sent by the pmac `host`; group: its frame went to a group MAC."""
        out: list[Output] = []
        try:
            reason = self._wire_ipv4(host, packet, group, now, out)
        except WireError as error:
            reason = error.reason
        if reason is not None:
            out.append(Drop(reason, PORT_WIRE, packet))
        return out

    def _wire_ipv4(self, host: Mac, packet: bytes, group: bool, now: float, out: list[Output]) -> DropReason | None:
        header = header_untrusted(packet)
        packet = packet[: header.total_length]
        source = self.plan.locate(header.source)
        target = self.plan.locate(header.destination)
        if source is None or target is None:
            return DropReason.EXTERNAL_UNSUPPORTED
        if group:
            return DropReason.WIRE_GROUP_UNICAST
        if not self.plan.assignable(header.source):
            return DropReason.SPOOF_SOURCE
        if header.protocol == Protocol.UDP and not header.fragment_offset and self._touches_dhcp(header, packet):
            return DropReason.ROGUE_DHCP
        local = self.ports.at(header.destination)
        if local is None:
            self.discovery.not_held(host, header.destination, now)
            return DropReason.NOT_LOCAL
        if source.cell != target.cell:
            return DropReason.CELL_DENIED
        if local.state is not PortState.ACTIVE:
            return DropReason.PORT_NOT_ACTIVE
        verdict = self.discovery.check_source(host, header.source, header.destination, now, HeldWire(host, packet))
        if verdict is Outcome.DELIVER:
            out.append(self._wire_to_guest(local, header, packet))
        return verdict if isinstance(verdict, DropReason) else None

    @staticmethod
    def _touches_dhcp(header: Header, packet: bytes) -> bool:
        ports = packet[header.header_length : header.header_length + 4]
        return ports[:2] == b"\x00\x43" or ports[2:] in (b"\x00\x43", b"\x00\x44")

    def _wire_to_guest(self, local: Endpoint, header: Header, packet: bytes) -> ToGuest:
        if self.plan.locate(header.source) == local.subnet:
            entry = self.discovery.neighbours.get(header.source)
            source = entry.claim.vmac if entry is not None and entry.claim is not None else rmac(local.subnet)
        else:
            source = rmac(local.subnet)
        return ToGuest(local.port, _ipv4_frame(local.vmac, source, packet))

    # ------------------------------------------------------------------ what discovery decided later

    def confirm(self, port: int, now: float) -> list[Output]:
        """The address of a port has been confirmed: answer the DHCP request that waits for it."""
        endpoint = self.ports.port(port)
        facts = self.topology.get(endpoint.subnet) if endpoint is not None else None
        out: list[Output] = []
        if endpoint is not None and facts is not None:
            self._dhcp_result(
                endpoint, self.dhcp.confirmed(endpoint, facts.service, self.hostnames.get(port), now), out
            )
        return out

    def forget_port(self, port: int) -> None:
        """A port is gone: its DHCP state and limits go with it."""
        self.dhcp.forget(port)
        self.router.forget_port(port)
        self.hostnames.pop(port, None)

    def collect(self, now: float) -> list[Output]:
        """Turn discovery's events into outputs; those that concern the shell go to `pending_events`.

        Call after each receive() or on_timer() of discovery.
        """
        out: list[Output] = []
        for event in self.discovery.events():
            self._event(event, now, out)
        return out

    def _event(self, event: Event, now: float, out: list[Output]) -> None:
        if isinstance(event, Released):
            for held in event.items:
                assert isinstance(held, HeldPacket | HeldArp)
                self._deliver(held, event.claim, out)
        elif isinstance(event, Unreachable):
            for held in event.items:
                assert isinstance(held, HeldPacket | HeldArp)
                self._tell_unreachable(held, now, out)
                out.append(Drop(event.reason, held.port, held.packet if isinstance(held, HeldPacket) else b""))
        elif isinstance(event, SourceConfirmed):
            for held in event.items:
                assert isinstance(held, HeldWire)
                self._confirmed(held, out)
        elif isinstance(event, SourceRefused):
            for held in event.items:
                assert isinstance(held, HeldWire)
                out.append(Drop(event.reason, PORT_WIRE, held.packet))
        else:
            self.pending_events.append(event)

    def _confirmed(self, held: HeldWire, out: list[Output]) -> None:
        header = header_untrusted(held.packet)
        local = self.ports.at(header.destination)
        if local is None or local.state is not PortState.ACTIVE:
            reason = DropReason.NOT_LOCAL if local is None else DropReason.PORT_NOT_ACTIVE
            out.append(Drop(reason, PORT_WIRE, held.packet))
        else:
            out.append(self._wire_to_guest(local, header, held.packet))

    def _deliver(self, held: HeldPacket | HeldArp, claim: Claim, out: list[Output]) -> None:
        if isinstance(held, HeldArp):
            endpoint = self.ports.port(held.port)
            if endpoint is not None:
                out.append(_arp_answer(endpoint, held.request, claim.vmac))
        elif claim.host != self.pmac:
            out.extend(ToWire(_ipv4_frame(claim.host, self.pmac, piece)) for piece in held.pieces)
        else:  # it started here while the packet waited
            local = self.ports.at(held.destination)
            sender = self.ports.port(held.port)
            if local is None or sender is None or local.state is not PortState.ACTIVE:
                out.append(Drop(DropReason.PORT_NOT_ACTIVE, held.port, held.packet))
                return
            source = rmac(local.subnet) if held.routed else sender.vmac
            out.extend(ToGuest(local.port, _ipv4_frame(local.vmac, source, piece)) for piece in held.pieces)

    def _tell_unreachable(self, held: HeldPacket | HeldArp, now: float, out: list[Output]) -> None:
        endpoint = self.ports.port(held.port)
        if endpoint is not None and isinstance(held, HeldPacket) and held.routed:
            self.router.host_unreachable(endpoint, header_untrusted(held.packet), held.packet, now, out)


def _ipv4_frame(destination: Mac, source: Mac, packet: bytes) -> bytes:
    return destination + source + b"\x08\x00" + packet


def _arp_answer(endpoint: Endpoint, request: Arp, mac: Mac) -> ToGuest:
    reply = Arp(ARP_REPLY, mac, request.tpa, request.sha, request.spa)
    return ToGuest(endpoint.port, Ethernet(endpoint.vmac, mac, ETHERTYPE_ARP, reply.emit()).emit())
