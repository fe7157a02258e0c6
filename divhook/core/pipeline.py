"""The reference pipeline: decides what becomes of any frame from_guest or from_wire.

    from_guest   DHCP ─ router ─ broadcast/multicast ─ same subnet | routed | external ─ policy ─ rewrite ─ emit
    from_wire    is it ours ─ source check ─ policy ─ rewrite ─ emit
    from_host    is it the host's own ─ policy ─ rewrite ─ emit

Whole frames go through core/validate, the twin of the tc programs, first. Packets come from the divert, where tc has
validated them; what is cheap is checked again, by the same functions. Every frame ends in exactly one of: emitted,
held by discovery, or dropped with a reason. "Dropped" includes CONSUMED: answered here. What was held and comes back
is sent only for a sender that is still there and still active: a port id may be another guest's by then.

    to_wire   src := own pmac   dst := the peer's pmac
    to_guest  src := the sender's vmac in the same subnet, else rmac   dst := vmac
    routed    TTL-1 at the sending host: one visible hop, wherever the guests are
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from divhook.core import validate
from divhook.core.addressing import (
    ZERO_ADDRESS,
    Address,
    AddressPlan,
    Mac,
    SubnetId,
    rmac,
)
from divhook.core.border import Border
from divhook.core.dhcp import DhcpResult, DhcpServer, LeaseEvent
from divhook.core.discovery import (
    ClaimState,
    Discovery,
    Event,
    Found,
    NeighbourState,
    Outcome,
    Released,
    SourceConfirmed,
    SourceRefused,
    Unreachable,
    Yielded,
)
from divhook.core.endpoint import PORT_WIRE, Endpoint, PortState, PortTable
from divhook.core.external import ExternalMap, Externals
from divhook.core.group import Groups
from divhook.core.guard import Guard, Unsure
from divhook.core.host import HostDoor
from divhook.core.identities import IdentityExchange, IdentityLearned, IdentityMissing
from divhook.core.late import LatePackets
from divhook.core.nat import Share
from divhook.core.outputs import Drop, Output, ToGuest, ToWire
from divhook.core.reasons import DropReason
from divhook.core.router import Router, SubnetFacts, Topology
from divhook.core.shared import SharedAddresses, may_be_shared
from divhook.core.validate import Lane, WireFacts
from divhook.core.verdict import NoPolicies, Policies
from divhook.core.wire.arp import ARP_REPLY, ARP_REQUEST, Arp, parse_arp_untrusted
from divhook.core.wire.discovery import Claim, is_discovery
from divhook.core.wire.errors import WireError
from divhook.core.wire.ethernet import ETH_HEADER, ETHERTYPE_ARP, ETHERTYPE_RARP, Ethernet, ipv4_frame
from divhook.core.wire.ipv4 import Header, decrement_ttl, fragment, header_untrusted


@dataclass(frozen=True, slots=True)
class HeldPacket:
    """A guest's packet that waits for its destination; pieces are what will be sent, ready but for the MACs."""

    sender: Endpoint
    packet: bytes
    pieces: tuple[bytes, ...]
    destination: Address
    routed: bool


@dataclass(frozen=True, slots=True)
class HeldArp:
    """A guest's ARP request that waits for the one it asks for."""

    sender: Endpoint
    request: Arp


@dataclass(frozen=True, slots=True)
class HeldWire:
    """A packet from the wire that waits for its source to be confirmed."""

    host: Mac
    packet: bytes


class Pipeline:
    """One host's data plane. The caller owns ports and topology, and sends what the methods return."""

    def __init__(
        self,
        plan: AddressPlan,
        pmac: Mac,
        ports: PortTable,
        topology: Topology,
        discovery: Discovery,
        externals: Externals | None = None,
    ) -> None:
        self.plan = plan
        self.pmac = pmac
        self.ports = ports
        self.topology = topology
        self.discovery = discovery
        self.dhcp = DhcpServer()
        self.router = Router(plan)
        externals = externals or Externals(pmac, ExternalMap())
        self.guard = Guard(plan, NoPolicies(), self._identity_of, externals.is_own)
        self.groups = Groups(plan, pmac, ports, topology, self.guard)
        self.host = HostDoor(ports, self.router, self.guard, externals)
        self.border = Border(plan, pmac, ports, self.router, self.guard, externals, self._sender_gone)
        self.identities = IdentityExchange(pmac)
        self.learned: list[IdentityLearned] = []  # to be kept over a restart
        self.shared = SharedAddresses(plan, ports, discovery)
        self.lease_events: list[tuple[Endpoint, LeaseEvent]] = []
        self.pending_events: list[Event] = []
        self.decided: list[Address] = []  # neighbours that a frame has just been delivered to or from, or told of
        self.hostnames: dict[int, str] = {}
        self.late = LatePackets(plan, pmac, topology, discovery, self._holder, self._heard)
        self.former, self.moved = self.late.former, self.late.moved

    # ------------------------------------------------------------------ from_guest

    def from_guest(self, port: int, frame: bytes, now: float) -> list[Output]:
        """Any whole Ethernet frame that a guest sent, as the wire of its NIC shows it."""
        endpoint = self.ports.port(port)
        if endpoint is None:
            return [Drop(DropReason.PORT_UNKNOWN, port, frame)]
        verdict = validate.from_guest(endpoint, self.plan.router(endpoint.subnet), frame)
        if isinstance(verdict, DropReason):
            return [Drop(verdict, port, frame)]
        payload = frame[ETH_HEADER:]
        if verdict.lane is not Lane.ARP:
            return self.from_guest_ipv4(port, payload, verdict.group, now)
        if frame[12:ETH_HEADER] == ETHERTYPE_RARP.to_bytes(2, "big"):
            return [Drop(DropReason.RARP_FROM_GUEST, port, frame)]
        return self.from_guest_arp(port, payload, now)

    def from_guest_ipv4(self, port: int, packet: bytes, group: bool, now: float) -> list[Output]:
        """An IPv4 packet that a guest sent; group: its frame went to a group MAC."""
        endpoint = self.ports.port(port)
        if endpoint is None:
            return [Drop(DropReason.PORT_UNKNOWN, port, packet)]
        return _ended(packet, lambda out: self._guest_ipv4(endpoint, packet, group, now, out), port)

    def _guest_ipv4(
        self, endpoint: Endpoint, packet: bytes, group: bool, now: float, out: list[Output]
    ) -> DropReason | None:
        header = header_untrusted(packet)
        packet = packet[: header.total_length]
        if endpoint.state is PortState.INCOMING and not endpoint.passes:
            return DropReason.PORT_NOT_ACTIVE
        lane = validate.guest_ipv4(endpoint, self.plan.router(endpoint.subnet), header, packet)
        if isinstance(lane, DropReason):
            return lane
        if lane is Lane.DHCP:
            return self._guest_dhcp(endpoint, packet, now, out)
        if not endpoint.passes:
            return DropReason.PORT_NOT_ACTIVE
        destination = header.destination
        if validate.is_group_address(self.plan, destination):
            return self.groups.from_guest(endpoint, header, packet, group, now, out)
        target = self._guest_target(endpoint, destination, group)
        if target is DropReason.EXTERNAL_UNSUPPORTED and self.border.externals.is_own(destination):
            return self.host.from_guest(endpoint, header, packet, now, out)
        if target is DropReason.EXTERNAL_UNSUPPORTED:
            return self.border.from_guest(endpoint, header, packet, now, out)
        if isinstance(target, DropReason):
            return target
        facts = self.topology.get(target)
        if facts is None:
            return self.router.net_unreachable(endpoint, header, packet, now, out) or DropReason.NO_SUCH_ENDPOINT
        if destination == self.plan.router(target):
            return self.router.receive(endpoint, header, packet, now, out)
        return self._guest_unicast(endpoint, header, packet, target, facts, now, out)

    def _guest_target(self, endpoint: Endpoint, destination: Address, group: bool) -> SubnetId | DropReason:
        first = destination[0]
        if first in (0, 127) or first >= 240 or endpoint.speaks_from(destination):
            return DropReason.MARTIAN_DESTINATION
        target = self.plan.locate(destination)
        if group:
            return DropReason.L2_MULTICAST_MISMATCH
        if target is None:
            return DropReason.EXTERNAL_UNSUPPORTED
        if self.plan.host_number(destination) == 0:
            return DropReason.MARTIAN_DESTINATION
        if target.cell != endpoint.subnet.cell and not self._may_talk(endpoint, target, destination):
            return DropReason.CELL_DENIED
        return target

    @property
    def policies(self) -> Policies:
        """Who may talk to whom."""
        return self.guard.policies

    @policies.setter
    def policies(self, policies: Policies) -> None:
        self.guard.policies = policies

    def _may_talk(self, endpoint: Endpoint, target: SubnetId, destination: Address) -> bool:
        """Whether anything to another cell could be allowed: asked before anybody is asked where it is.

        Its routers serve nobody else's guests.
        """
        if destination == self.plan.router(target) or self.policies.port(endpoint) is None:
            return False
        return self.policies.may_talk(endpoint.subnet.cell, target.cell)

    def _identity_of(self, address: Address) -> int:
        """The identity of an endpoint that is known here."""
        local = self.ports.at(address)
        if local is not None:
            return local.identity
        entry = self.discovery.neighbours.get(address)
        return entry.found.claim.identity if entry is not None and entry.found is not None else 0

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
                return self.router.time_exceeded(endpoint, header, packet, now, out) or DropReason.TTL_EXPIRED
            packet = decrement_ttl(packet)
        pieces: Sequence[bytes] = (packet,)
        if header.total_length > facts.mtu:
            if not routed:
                return DropReason.FRAGMENTATION_NEEDED
            if header.dont_fragment:
                refused = self.router.too_big(endpoint, header, original, facts.mtu, now, out)
                return refused or DropReason.FRAGMENTATION_NEEDED
            pieces = fragment(packet, facts.mtu)
        destination = header.destination
        local = self._holder(destination)
        if local is not None:
            if local.state is not PortState.ACTIVE:
                return DropReason.PORT_NOT_ACTIVE
            denied = self._denied_here(endpoint, local, header, original, now)
            if denied is not None:
                return denied
            source = rmac(target) if routed else endpoint.vmac
            out.extend(ToGuest(local.port, ipv4_frame(local.vmac, source, piece)) for piece in pieces)
            return None
        held = HeldPacket(endpoint, original, tuple(pieces), destination, routed)
        return self._resolve(endpoint, destination, held, now, out)

    def _denied_here(
        self, sender: Endpoint, receiver: Endpoint, header: Header, packet: bytes, now: float
    ) -> DropReason | None:
        """Why a packet between two ports of this host does not pass: both cells are asked."""
        if sender.subnet.cell != receiver.subnet.cell and self.policies.port(receiver) is None:
            return DropReason.CELL_DENIED
        for end, other in ((sender, receiver), (receiver, sender)):
            verdict = self.guard.check(end, header, packet, end is sender, other.identity, now)
            if verdict is not None:
                return verdict if isinstance(verdict, DropReason) else DropReason.IDENTITY_UNKNOWN
        return None

    def _holder(self, address: Address) -> Endpoint | None:
        """The endpoint of this host that holds an address, or held it until it was fenced.

        One that is still coming in, or tentative, has no claim yet: discovery says where the address is until then.
        """
        local = self.ports.at(address)
        if local is None or local.state in (PortState.ACTIVE, PortState.FENCED):
            return local
        return local if self.discovery.state(address) is ClaimState.ACTIVE else None

    def _resolve(
        self, endpoint: Endpoint, destination: Address, held: HeldPacket | HeldArp, now: float, out: list[Output]
    ) -> DropReason | None:
        answer = self.discovery.resolve(destination, endpoint.port, endpoint.address or ZERO_ADDRESS, now, held)
        if isinstance(answer, Found):
            self._deliver(held, answer.claim, now, out)
            return None
        if answer is DropReason.NEGATIVE_CACHED:
            return self._tell_unreachable(held, now, out) or answer
        return answer if isinstance(answer, DropReason) else None

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
        endpoint = self.ports.port(port)
        return _ended(payload, lambda out: self._guest_arp(endpoint, parse_arp_untrusted(payload), now, out), port)

    def _guest_arp(self, endpoint: Endpoint | None, arp: Arp, now: float, out: list[Output]) -> DropReason | None:
        if endpoint is None:
            return DropReason.PORT_UNKNOWN
        if arp.sha != endpoint.vmac:
            return DropReason.SPOOF_ARP_SHA
        shared = may_be_shared(endpoint, arp)
        if arp.spa not in (endpoint.address, ZERO_ADDRESS) and not shared:
            return DropReason.SPOOF_ARP_SPA
        if endpoint.state is not PortState.ACTIVE or endpoint.address is None:
            return DropReason.PORT_NOT_ACTIVE
        refused = self.shared.heard(endpoint, arp, now) if shared else None
        if refused is not None:
            return refused
        if arp.operation != ARP_REQUEST or arp.tpa in (endpoint.address, arp.spa, *endpoint.held):
            return DropReason.CONSUMED  # replies, probes and announcements of its own address
        if self.plan.locate(arp.tpa) != endpoint.subnet:
            return DropReason.NO_SUCH_ENDPOINT  # off-link: a router does not answer for others (no proxy ARP)
        if arp.tpa == self.plan.router(endpoint.subnet):
            out.append(_arp_answer(endpoint, arp, rmac(endpoint.subnet)))
            return DropReason.CONSUMED
        if not self.plan.assignable(arp.tpa):
            return DropReason.NO_SUCH_ENDPOINT
        local = self._holder(arp.tpa)
        if local is not None:
            if local.state is not PortState.ACTIVE:
                return DropReason.PORT_NOT_ACTIVE
            out.append(_arp_answer(endpoint, arp, local.vmac))
            return DropReason.CONSUMED
        reason = self._resolve(endpoint, arp.tpa, HeldArp(endpoint, arp), now, out)
        return DropReason.CONSUMED if reason is None and out else reason  # None: held

    # ------------------------------------------------------------------ from_wire

    def from_wire(self, frame: bytes, now: float) -> list[Output]:
        """Any whole Ethernet frame from the uplink. No output where it is the host's own, or discovery's."""
        verdict = validate.from_wire(self._wire_facts(), frame)
        if isinstance(verdict, DropReason):
            return [Drop(verdict, PORT_WIRE, frame)]
        if verdict is None:
            return []
        if verdict.lane is Lane.DISCOVERY:
            return [] if is_discovery(frame) else self.from_wire_arp(frame, now)
        return self.from_wire_ipv4(frame[6:12], frame[ETH_HEADER:], verdict.group, now)

    def _wire_facts(self) -> WireFacts:
        groups = frozenset(self.groups.listened())
        return WireFacts(self.plan, self.pmac, groups, self.border.externals.map, self.border.nat)

    def from_wire_ipv4(self, host: Mac, packet: bytes, group: bool, now: float) -> list[Output]:
        """An IPv4 packet from the uplink, sent by the pmac `host`; group: its frame went to a group MAC."""
        return _ended(packet, lambda out: self._wire_ipv4(host, packet, group, now, out))

    def _wire_ipv4(self, host: Mac, packet: bytes, group: bool, now: float, out: list[Output]) -> DropReason | None:
        header = header_untrusted(packet)
        packet = packet[: header.total_length]
        nat = self.border.nat
        if nat is not None and not self.plan.contains(header.source) and nat.share(header, packet) is not Share.NONE:
            return self.border.from_wire_translated(host, header, packet, now, out)
        reason = validate.wire_ipv4(self.plan, header, packet, group)
        if reason is not None:
            return reason
        source = self.plan.locate(header.source)
        if source is None:
            return self.border.from_wire(host, header, packet, now, out)
        if not self.plan.assignable(header.source):
            return DropReason.SPOOF_SOURCE
        if group:
            return self._wire_group(host, source, header, packet, now, out)
        local = self.ports.at(header.destination)
        if local is None or local.state is PortState.FENCED:
            self.discovery.not_held(host, header.destination, now)  # refers the sender to the owner, where one is known
        if local is None:
            return self.late.from_wire(host, header, packet, now, out)
        if source.cell != local.subnet.cell and self.policies.port(local) is None:
            return DropReason.CELL_DENIED
        if local.state is not PortState.ACTIVE:
            return DropReason.PORT_NOT_ACTIVE
        if host == self.pmac:
            return DropReason.UNKNOWN_HOST  # forged, or a loop in the fabric: not ourselves to be challenged
        sent_on = self.late.sender(host, header)
        if sent_on is not None:
            return self._wire_to_guest(host, local, header, packet, now, out, sent_on)
        verdict = self.discovery.check_source(host, header.source, header.destination, now, HeldWire(host, packet))
        if verdict is Outcome.DELIVER:
            return self._wire_to_guest(host, local, header, packet, now, out)
        return verdict if isinstance(verdict, DropReason) else None

    def from_former(self, host: Mac, packet: bytes, now: float) -> list[Output]:
        """A late sender's packet, from the host that an endpoint has left; `host` sent it there.

        As if it had come from the wire; or, where that was this very host, from the guest here that has sent it.
        """
        if host != self.pmac:
            return self.from_wire_ipv4(host, packet, False, now)
        return _ended(packet, lambda out: self._late_here(packet, now, out))

    def _late_here(self, packet: bytes, now: float, out: list[Output]) -> DropReason | None:
        """Sent while the receiver was elsewhere; by now both are here. Its TTL was decremented then."""
        header = header_untrusted(packet)
        sender, local = self.ports.at(header.source), self.ports.at(header.destination)
        if sender is None or local is None:
            return DropReason.MOVE_RETURNS  # sent on, it could go round
        if not sender.state is local.state is PortState.ACTIVE:
            return DropReason.PORT_NOT_ACTIVE
        denied = self._denied_here(sender, local, header, packet, now)
        if denied is not None:
            return denied
        source = sender.vmac if sender.subnet == local.subnet else rmac(local.subnet)
        out.append(ToGuest(local.port, ipv4_frame(local.vmac, source, packet[: header.total_length])))
        return None

    def _wire_group(
        self, host: Mac, source: SubnetId, header: Header, packet: bytes, now: float, out: list[Output]
    ) -> DropReason | None:
        receiver = self.groups.asker(source, header)
        if isinstance(receiver, DropReason):
            return receiver  # nobody here wants it: nobody is asked
        if host == self.pmac:
            return DropReason.UNKNOWN_HOST
        asker = receiver.address or ZERO_ADDRESS
        verdict = self.discovery.check_source(host, header.source, asker, now, HeldWire(host, packet))
        if verdict is Outcome.DELIVER:
            return self._wire_to_group(host, header, packet, now, out)
        return verdict if isinstance(verdict, DropReason) else None

    def _wire_to_group(
        self, host: Mac, header: Header, packet: bytes, now: float, out: list[Output]
    ) -> DropReason | None:
        claim, source = self._claim_of(header.source, host, now), self.plan.locate(header.source)
        if claim is None or source is None:
            return DropReason.UNVERIFIED
        copies = self.groups.from_wire(source, header, claim.vmac, claim.identity, packet)
        if isinstance(copies, Unsure):
            return self._want(copies, HeldWire(host, packet), now)
        if isinstance(copies, DropReason):
            return copies
        out.extend(copies)
        self._heard(header.source)
        return None

    def _heard(self, source: Address) -> None:
        """A frame of a neighbour is delivered. One that has waited for long may find it STALE: not to be told of."""
        entry = self.discovery.neighbours.get(source)
        if entry is not None and entry.state is not NeighbourState.STALE:
            self.decided.append(source)

    def _claim_of(self, source: Address, host: Mac, now: float) -> Claim | None:
        """The claim of a source that the host was confirmed to have, or is about to; another may hold it by now."""
        own = self.discovery.claim(source)
        if own is not None:
            if self.discovery.next_of(source) != host:
                return None
            return replace(own, identity=self._identity_of(source))
        entry = self.discovery.neighbours.get(source)
        return entry.claim if entry is not None and entry.speaks_from(host, now) else None

    def _wire_to_guest(
        self,
        host: Mac,
        local: Endpoint,
        header: Header,
        packet: bytes,
        now: float,
        out: list[Output],
        claim: Claim | None = None,
    ) -> DropReason | None:
        """claim: the sender's, where it came by way of the receiver's former host."""
        claim = claim or self._claim_of(header.source, host, now)
        if claim is None:
            return DropReason.UNVERIFIED
        if header.total_length > local.mtu:
            return DropReason.FRAGMENTATION_NEEDED  # its own host would have cut or refused it
        self._heard(header.source)
        verdict = self.guard.check(local, header, packet, False, claim.identity, now)
        if isinstance(verdict, Unsure):
            return self._want(verdict, HeldWire(host, packet), now)
        if verdict is not None:
            return verdict
        same = self.plan.locate(header.source) == local.subnet
        source = claim.vmac if same else rmac(local.subnet)
        out.append(ToGuest(local.port, ipv4_frame(local.vmac, source, packet)))
        return None

    def _want(self, unsure: Unsure, held: HeldPacket | HeldWire, now: float) -> DropReason | None:
        """Ask the other end's host who that is. None: the packet waits."""
        entry = self.discovery.neighbours.get(unsure.address)
        if entry is None or entry.found is None:
            return DropReason.IDENTITY_UNKNOWN
        return self.identities.want(unsure.identity, entry.found.claim.host, unsure.address, now, held)

    def from_host(self, packet: bytes, now: float) -> list[Output]:
        """An IPv4 packet that the host's own stack sends to a guest."""
        return _ended(packet, lambda out: self.host.from_host(packet, now, out))

    def from_wire_arp(self, frame: bytes, now: float) -> list[Output]:
        """A whole plain ARP frame that the programs have handed on: it is about an external."""
        return self.border.arp_untrusted(frame, now)

    # ------------------------------------------------------------------ from_nat

    def from_nat_ipv4(self, packet: bytes, now: float) -> list[Output]:
        """An IPv4 packet that the namespace with source NAT gives out."""

        def decide(out: list[Output]) -> DropReason | None:
            header = header_untrusted(packet)
            return self.border.from_nat(header, packet[: header.total_length], now, out)

        return _ended(packet, decide)

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
        self.shared.forget_port(port)
        self.border.externals.forget_port(port)
        self.hostnames.pop(port, None)

    def collect(self, now: float) -> list[Output]:
        """Turn discovery's events into outputs; those that concern the shell go to `pending_events`.

        Call after each receive() or on_timer() of discovery.
        """
        out: list[Output] = []
        for event in self.discovery.events():
            self._event(event, now, out)
        for told in self.identities.events():
            if isinstance(told, IdentityLearned):
                self.learned.append(told)
            for held in told.items:
                assert isinstance(held, HeldPacket | HeldWire)
                self._identified(told, held, now, out)
        out += self.shared.refresh(now)
        for event in self.discovery.events():  # of what was given up just now
            self._event(event, now, out)
        self.groups.members.ports_changed(now)
        out += self.groups.members.outputs()
        self.border.collect(now, out)
        return out

    def next_timer(self) -> float | None:
        """When on_timer wants to be called; discovery's timers are its own."""
        timers = (self.groups.members.next_timer(), self.border.externals.next_timer())
        return min((when for when in timers if when is not None), default=None)

    def on_timer(self, now: float) -> None:
        """Its time has come; `collect` has what it said."""
        self.groups.members.on_timer(now)
        self.border.externals.on_timer(now)

    def _identified(
        self, told: IdentityLearned | IdentityMissing, held: HeldPacket | HeldWire, now: float, out: list[Output]
    ) -> None:
        """What waited to know the other end: decided again."""
        if isinstance(told, IdentityMissing):
            port = PORT_WIRE if isinstance(held, HeldWire) else held.sender.port
            out.append(Drop(DropReason.IDENTITY_UNKNOWN, port, held.packet))
        elif isinstance(held, HeldWire):
            self._confirmed(held, now, out)
        else:
            entry = self.discovery.neighbours.get(held.destination)
            if entry is None or entry.found is None:
                out.append(_held_drop(held, self._gone(held) or DropReason.NO_SUCH_ENDPOINT))
            else:
                self._deliver(held, entry.found.claim, now, out)

    def _event(self, event: Event, now: float, out: list[Output]) -> None:
        if isinstance(event, Released):
            for held in event.items:
                assert isinstance(held, HeldPacket | HeldArp)
                self._deliver(held, event.claim, now, out)
        elif isinstance(event, Unreachable):
            for held in event.items:
                assert isinstance(held, HeldPacket | HeldArp)
                reason = self._gone(held) or self._tell_unreachable(held, now, out) or event.reason
                out.append(_held_drop(held, reason))
        elif isinstance(event, SourceConfirmed):
            for held in event.items:
                assert isinstance(held, HeldWire)
                self._confirmed(held, now, out)
        elif isinstance(event, SourceRefused):
            for held in event.items:
                assert isinstance(held, HeldWire)
                out.append(Drop(event.reason, PORT_WIRE, held.packet))
        elif isinstance(event, Yielded):
            self.shared.yielded(event)
        else:
            self.pending_events.append(event)

    def _confirmed(self, held: HeldWire, now: float, out: list[Output]) -> None:
        header = header_untrusted(held.packet)
        local = self.ports.at(header.destination)
        reason: DropReason | None
        if validate.is_group_address(self.plan, header.destination):
            reason = self._wire_to_group(held.host, header, held.packet, now, out)
        elif local is None:
            reason = DropReason.NOT_LOCAL
        elif local.state is not PortState.ACTIVE:
            reason = DropReason.PORT_NOT_ACTIVE
        else:
            reason = self._wire_to_guest(held.host, local, header, held.packet, now, out)
        if reason is not None:
            out.append(Drop(reason, PORT_WIRE, held.packet))

    def _deliver(self, held: HeldPacket | HeldArp, claim: Claim, now: float, out: list[Output]) -> None:
        gone = self._gone(held)
        if gone is not None:
            out.append(_held_drop(held, gone))
        elif isinstance(held, HeldArp):
            out.append(_arp_answer(held.sender, held.request, claim.vmac))
            self.decided.append(claim.address)
        elif claim.host != self.pmac:
            self.decided.append(claim.address)
            header = header_untrusted(held.packet)
            verdict = self.guard.check(held.sender, header, held.packet, True, claim.identity, now)
            reason = self._want(verdict, held, now) if isinstance(verdict, Unsure) else verdict
            if reason is not None:
                out.append(_held_drop(held, reason))
            if verdict is not None:
                return
            out.extend(ToWire(ipv4_frame(claim.host, self.pmac, piece)) for piece in held.pieces)
        else:  # it started here while the packet waited
            local = self.ports.at(held.destination)
            if local is None or local.state is not PortState.ACTIVE:
                out.append(_held_drop(held, DropReason.PORT_NOT_ACTIVE))
                return
            denied = self._denied_here(held.sender, local, header_untrusted(held.packet), held.packet, now)
            if denied is not None:
                out.append(_held_drop(held, denied))
                return
            source = rmac(local.subnet) if held.routed else held.sender.vmac
            out.extend(ToGuest(local.port, ipv4_frame(local.vmac, source, piece)) for piece in held.pieces)

    def _gone(self, held: HeldPacket | HeldArp) -> DropReason | None:
        return self._sender_gone(held.sender)

    def _sender_gone(self, then: Endpoint) -> DropReason | None:
        """Why the sender of something held has no say any more: its port is gone, another's, or not active."""
        sender = self.ports.port(then.port)
        if sender is None or (sender.vmac, sender.address) != (then.vmac, then.address):
            return DropReason.PORT_UNKNOWN
        return None if sender.passes else DropReason.PORT_NOT_ACTIVE

    def _tell_unreachable(self, held: HeldPacket | HeldArp, now: float, out: list[Output]) -> DropReason | None:
        if isinstance(held, HeldArp) or not held.routed:
            return None
        return self.router.host_unreachable(held.sender, header_untrusted(held.packet), held.packet, now, out)


def _ended(packet: bytes, decide: Callable[[list[Output]], DropReason | None], port: int = PORT_WIRE) -> list[Output]:
    """What becomes of a packet: what was decided, and a drop where there is a reason for it."""
    out: list[Output] = []
    try:
        reason = decide(out)
    except WireError as error:
        reason = error.reason
    if reason is not None:
        out.append(Drop(reason, port, packet))
    return out


def _held_drop(held: HeldPacket | HeldArp, reason: DropReason) -> Drop:
    port = PORT_WIRE if reason is DropReason.PORT_UNKNOWN else held.sender.port
    return Drop(reason, port, held.packet if isinstance(held, HeldPacket) else held.request.emit())


def _arp_answer(endpoint: Endpoint, request: Arp, mac: Mac) -> ToGuest:
    reply = Arp(ARP_REPLY, mac, request.tpa, request.sha, request.spa)
    return ToGuest(endpoint.port, Ethernet(endpoint.vmac, mac, ETHERTYPE_ARP, reply.emit()).emit())
