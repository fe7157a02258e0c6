"""Between guests and what is outside: the pipeline's part for packets with one virtual and one external address.

    from_guest   declared? ─ policy ─ TTL ─ MTU ─ MAC of it, or of a next hop ─▶ to_wire, src := pmac
    from_wire    port here? ─ policy ─ source: sent by its MAC, or by a next hop's ─ TTL ─ MTU ─▶ to_guest, src := rmac
    ARP          asks for a guest of this host that may be reached ─▶ answered with pmac; all else teaches MACs at most

and of a cell with source NAT, by way of the namespace that translates (core/nat.py), which decrements the TTL:

    from_guest   as above ─▶ to_nat                             from_nat, translated  MAC of it, or of a hop ─▶ to_wire
    from_wire    to NAT's address ─ source as above ─▶ to_nat   from_nat, for a guest  policy ─ MTU ─▶ to_guest

The host is a router between the two: TTL-1 each way, and the ICMP errors of the guest's subnet's router each way.
Default deny: without a policy that permits, no packet goes out or in, and no ARP is answered.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from divhook.core.addressing import Address, AddressPlan, Mac
from divhook.core.discovery.events import Outcome
from divhook.core.endpoint import PORT_WIRE, Endpoint, PortTable
from divhook.core.external import ExternalEvent, ExternalFound, Externals, ExternalSilent, Way
from divhook.core.guard import Guard, Unsure
from divhook.core.nat import Nat
from divhook.core.outputs import Drop, Output, ToNat, ToWire
from divhook.core.reasons import DropReason
from divhook.core.router import Router
from divhook.core.wire.arp import ARP_REQUEST, Arp, parse_arp_untrusted, reply_frame
from divhook.core.wire.errors import WireError
from divhook.core.wire.ethernet import ETH_HEADER, ZERO_MAC, ipv4_frame, is_group
from divhook.core.wire.ipv4 import Header, decrement_ttl, fragment, header_untrusted


@dataclass(frozen=True, slots=True)
class HeldOut:
    """A guest's packet that waits for a next hop; pieces are what will be sent, ready but for the MACs."""

    sender: Endpoint
    packet: bytes
    pieces: tuple[bytes, ...]
    destination: Address


@dataclass(frozen=True, slots=True)
class HeldTranslated:
    """A guest's packet that NAT has translated, and that waits for a next hop."""

    packet: bytes
    pieces: tuple[bytes, ...]


@dataclass(frozen=True, slots=True)
class HeldIn:
    """A server's packet that waits for the server's MAC to be confirmed."""

    mac: Mac
    packet: bytes


class Border:
    """One host's traffic with what is outside."""

    def __init__(
        self,
        plan: AddressPlan,
        pmac: Mac,
        ports: PortTable,
        router: Router,
        guard: Guard,
        externals: Externals,
        gone: Callable[[Endpoint], DropReason | None],
    ) -> None:
        self.externals = externals
        self.nat: Nat | None = None
        self.decided: list[Address] = []  # servers and next hops that a frame has just gone to or come from
        self.pending_events: list[ExternalEvent] = []
        self._plan = plan
        self._pmac = pmac
        self._ports = ports
        self._router = router
        self._guard = guard
        self._gone = gone
        externals.still_here = self._is_here

    def _refuses(
        self, endpoint: Endpoint, header: Header, packet: bytes, outward: bool, now: float
    ) -> DropReason | None:
        """Why a packet may not pass between a guest and what is outside: nothing does without a policy."""
        if self._guard.policies.port(endpoint) is None:
            return DropReason.POLICY_DENIED
        verdict = self._guard.check(endpoint, header, packet, outward, 0, now)
        return DropReason.IDENTITY_UNKNOWN if isinstance(verdict, Unsure) else verdict

    def _is_here(self, address: Address) -> bool:
        """Whether it is a guest's or NAT's at this host."""
        return self.translates(address) or not isinstance(self._ports.active_at(address), DropReason)

    def announce(self, address: Address, now: float) -> None:
        """A claim of this host's own is new: externals that may reach the guest learn where it is now."""
        local = self._ports.active_at(address)
        if isinstance(local, DropReason) or local.translated:
            return
        if self._guard.policies.port(local) is not None:
            self.externals.announce(address, now)

    # ------------------------------------------------------------------ from_guest

    def from_guest(
        self, endpoint: Endpoint, header: Header, packet: bytes, now: float, out: list[Output]
    ) -> DropReason | None:
        """A guest's packet to an external address. None: sent, or held."""
        destination = header.destination
        way = self.externals.way(header, packet, destination)
        if way is None:
            unreachable = self._router.net_unreachable(endpoint, header, packet, now, out)
            return unreachable or DropReason.EXTERNAL_UNSUPPORTED
        if self.translates(destination):
            return DropReason.HOST_SERVICE
        if endpoint.translated and self.nat is None:
            return DropReason.NAT_UNTRANSLATED
        refused = self._refuses(endpoint, header, packet, True, now)
        if refused is not None:
            return refused
        if header.ttl <= 1:
            return self._router.time_exceeded(endpoint, header, packet, now, out) or DropReason.TTL_EXPIRED
        if header.total_length > way.mtu and header.dont_fragment:
            told = self._router.too_big(endpoint, header, packet, way.mtu, now, out)
            return told or DropReason.FRAGMENTATION_NEEDED
        pieces = tuple(fragment(packet if endpoint.translated else decrement_ttl(packet), way.mtu))
        return self._send(HeldOut(endpoint, packet, pieces, destination), way, now, out)

    def _send(self, held: HeldOut, way: Way, now: float, out: list[Output]) -> DropReason | None:
        answer = self.externals.resolve(way.next_hop, held.sender.port, now, held)
        if isinstance(answer, bytes):
            self.decided.append(way.next_hop)
            self._emit(held, answer, out)
            return None
        if answer is DropReason.EXTERNAL_UNREACHABLE:
            return self._tell_unreachable(held, now, out) or answer
        return answer

    def _emit(self, held: HeldOut, mac: Mac, out: list[Output]) -> None:
        if not held.sender.translated:
            self._to_wire(mac, held.pieces, out)
        elif self.nat is not None:
            out.extend(ToNat(ipv4_frame(self.nat.mac, self._pmac, piece)) for piece in held.pieces)
        else:
            out.append(_held_drop(held, DropReason.NAT_UNTRANSLATED))

    def _to_wire(self, mac: Mac, pieces: Iterable[bytes], out: list[Output]) -> None:
        out.extend(ToWire(ipv4_frame(mac, self._pmac, piece)) for piece in pieces)

    def _tell_unreachable(self, held: HeldOut, now: float, out: list[Output]) -> DropReason | None:
        header = header_untrusted(held.packet)
        return self._router.host_unreachable(held.sender, header, held.packet, now, out)

    # ------------------------------------------------------------------ from_wire

    def from_wire(self, mac: Mac, header: Header, packet: bytes, now: float, out: list[Output]) -> DropReason | None:
        """A packet from an external address, in a frame from `mac` to the host. None: delivered, or held."""
        if self.externals.map.get(header.source) is None:
            return DropReason.EXTERNAL_UNSUPPORTED
        local = self._ports.active_at(header.destination)
        if isinstance(local, DropReason):
            return local
        if local.translated:
            return DropReason.NAT_UNTRANSLATED
        verdict = self.externals.check_source(header.source, mac, now, HeldIn(mac, packet))
        if verdict is Outcome.DELIVER:
            return self._to_guest(mac, local, header, packet, now, out)
        return verdict if isinstance(verdict, DropReason) else None

    def _to_guest(
        self, mac: Mac, local: Endpoint, header: Header, packet: bytes, now: float, out: list[Output]
    ) -> DropReason | None:
        refused = self._refuses(local, header, packet, False, now)
        if refused is not None:
            return refused
        if header.ttl <= 1:
            told = self._router.tell_external(local, header, packet, mac, self._pmac, now, out)
            return told or DropReason.TTL_EXPIRED
        if header.total_length > local.mtu and header.dont_fragment:
            told = self._router.tell_external(local, header, packet, mac, self._pmac, now, out, mtu=local.mtu)
            return told or DropReason.FRAGMENTATION_NEEDED
        self._spoke(header.source, mac)
        for piece in fragment(decrement_ttl(packet), local.mtu):
            out.append(self._router.to_guest(local, piece))
        return None

    def _spoke(self, source: Address, mac: Mac) -> None:
        """A packet of an external goes on: who has sent it is in use."""
        speaker = self.externals.speaker(source, mac)
        if speaker is not None:
            self.decided.append(speaker)

    # ------------------------------------------------------------------ NAT

    def translates(self, address: Address) -> bool:
        """Whether guests' packets are translated to this address here."""
        return self.nat is not None and self.nat.owns(address)

    def from_wire_translated(
        self, mac: Mac, header: Header, packet: bytes, now: float, out: list[Output]
    ) -> DropReason | None:
        """A packet to NAT, or a copy of one, in a frame from `mac` to the host. None: handed on, or held."""
        verdict = self.externals.check_source(header.source, mac, now, HeldIn(mac, packet))
        if verdict is Outcome.DELIVER:
            return self._into_nat(mac, header, packet, out)
        return verdict if isinstance(verdict, DropReason) else None

    def _into_nat(self, mac: Mac, header: Header, packet: bytes, out: list[Output]) -> DropReason | None:
        if self.nat is None or not self.nat.owns(header.destination):
            return DropReason.NOT_LOCAL
        self._spoke(header.source, mac)
        out.append(ToNat(ipv4_frame(self.nat.mac, self._pmac, packet)))
        return None

    def from_nat(self, header: Header, packet: bytes, now: float, out: list[Output]) -> DropReason | None:
        """A packet that the namespace gives out; None: sent, delivered or held."""
        if self._plan.contains(header.destination):
            return self._translated_to_guest(header, packet, now, out)
        if self._plan.contains(header.source) or not self.translates(header.source):
            return DropReason.NAT_UNTRANSLATED
        way = self.externals.way(header, packet, header.destination)
        if way is None:
            return DropReason.EXTERNAL_UNSUPPORTED
        held = HeldTranslated(packet, tuple(fragment(packet, way.mtu)))
        answer = self.externals.resolve(way.next_hop, PORT_WIRE, now, held)
        if not isinstance(answer, bytes):
            return answer
        self.decided.append(way.next_hop)
        self._to_wire(answer, held.pieces, out)
        return None

    def _translated_to_guest(self, header: Header, packet: bytes, now: float, out: list[Output]) -> DropReason | None:
        local = self._ports.active_at(header.destination)
        if isinstance(local, DropReason):
            return local
        refused = self._refuses(local, header, packet, False, now)
        if refused is not None:
            return refused
        if header.total_length > local.mtu and header.dont_fragment:
            return self._too_big_for_guest(local, header, packet, now, out) or DropReason.FRAGMENTATION_NEEDED
        for piece in fragment(packet, local.mtu):
            out.append(self._router.to_guest(local, piece))
        return None

    def _too_big_for_guest(
        self, local: Endpoint, header: Header, packet: bytes, now: float, out: list[Output]
    ) -> DropReason | None:
        """The server is told by way of NAT: conntrack translates the error, and what it quotes."""
        if self.nat is None:  # it has just been closed
            return DropReason.NAT_UNTRANSLATED
        told: list[Output] = []
        refused = self._router.tell_external(local, header, packet, self.nat.mac, self._pmac, now, told, mtu=local.mtu)
        out.extend(ToNat(each.frame) for each in told if isinstance(each, ToWire))
        return refused

    def announce_pool(self, now: float) -> None:
        """Whoever knew NAT's addresses elsewhere learns that they are here; whoever has one, too, answers."""
        for address in sorted(self.nat.pool) if self.nat is not None else ():
            self.externals.announce(address, now)

    def _pool_claimed(self, arp: Arp, source: Mac, now: float) -> DropReason:
        """ARP of another machine from an address of the pool: it is told, and defended (RFC 5227 §2.4 c)."""
        if arp.sha != source or source == self._pmac:
            return DropReason.EXTERNAL_SPOOF
        self.externals.defend(arp.spa, arp.sha, now)
        return DropReason.EXTERNAL_CONFLICT

    # ------------------------------------------------------------------ ARP

    def arp_untrusted(self, frame: bytes, now: float) -> list[Output]:
        """A whole plain ARP frame from the uplink that concerns an external: it asks for a guest, or tells
        where the external is. Every one ends here; the host's own ARP has seen what is its own."""
        out: list[Output] = []
        try:
            reason = self._arp(frame, now, out)
        except WireError as error:
            reason = error.reason
        return [*out, Drop(reason, PORT_WIRE, frame)]

    def _arp(self, frame: bytes, now: float, out: list[Output]) -> DropReason:
        arp = parse_arp_untrusted(frame[ETH_HEADER:])
        source = frame[6:12]
        if self._plan.contains(arp.spa):
            return DropReason.UNKNOWN_HOST  # nobody claims a virtual address by plain ARP
        if self.nat is not None and arp.spa in self.nat.pool:
            return self._pool_claimed(arp, source, now)
        if self.nat is not None and arp.tpa in self.nat.pool and arp.operation == ARP_REQUEST:
            if arp.sha != source or is_group(source) or source in (ZERO_MAC, self._pmac):
                return DropReason.EXTERNAL_SPOOF
            out.append(ToWire(reply_frame(self._pmac, arp.tpa, arp.sha, arp.spa)))
            return DropReason.CONSUMED
        answer = refused = False
        if self._plan.contains(arp.tpa):
            if arp.operation != ARP_REQUEST:
                return DropReason.UNKNOWN_HOST
            local = self._ports.active_at(arp.tpa)
            if not isinstance(local, DropReason):
                answer = not local.translated and self._guard.policies.may_reach(local, arp.spa)
                refused = not answer
        reason = self.externals.receive_untrusted(arp, source, answer, now)
        if answer and reason is DropReason.CONSUMED:
            out.append(ToWire(reply_frame(self._pmac, arp.tpa, arp.sha, arp.spa)))
        return DropReason.POLICY_DENIED if refused and reason is DropReason.CONSUMED else reason

    # ------------------------------------------------------------------ what ARP decided later

    def collect(self, now: float, out: list[Output]) -> None:
        """Turn the externals' events into outputs, and their questions into frames; the rest is for the shell."""
        for event in self.externals.events():
            if isinstance(event, ExternalFound):
                self.decided.append(event.address)
                for held in event.items:
                    self._found(held, event.mac, now, out)
            elif isinstance(event, ExternalSilent):
                for held in event.items:
                    self._silent(held, event, now, out)
            else:
                self.pending_events.append(event)
        out.extend(ToWire(frame) for frame in self.externals.frames_to_send())

    def _found(self, held: object, mac: Mac, now: float, out: list[Output]) -> None:
        if isinstance(held, HeldOut):
            gone = self._gone(held.sender)
            if gone is not None:
                out.append(_held_drop(held, gone))
            else:
                self._emit(held, mac, out)
            return
        if isinstance(held, HeldTranslated):
            self._to_wire(mac, held.pieces, out)
            return
        assert isinstance(held, HeldIn)
        self._again(held, now, out)

    def _again(self, held: HeldIn, now: float, out: list[Output]) -> None:
        """Something is known now of those that may have sent it; of a route, perhaps not of all."""
        header = header_untrusted(held.packet)
        decide = self.from_wire_translated if self.translates(header.destination) else self.from_wire
        reason = decide(held.mac, header, held.packet, now, out)
        if reason is not None:
            out.append(Drop(reason, PORT_WIRE, held.packet))

    def _silent(self, held: object, event: ExternalSilent, now: float, out: list[Output]) -> None:
        if isinstance(held, HeldIn):
            if event.reason is DropReason.EXTERNAL_UNREACHABLE:
                self._again(held, now, out)
            else:
                out.append(Drop(event.reason, PORT_WIRE, held.packet))
            return
        if isinstance(held, HeldTranslated):  # other next hops have its flows now, or nobody has
            out.append(Drop(event.reason, PORT_WIRE, held.packet))
            return
        assert isinstance(held, HeldOut)
        reason = self._gone(held.sender)
        if reason is None:
            way = self.externals.way(header_untrusted(held.packet), held.packet, held.destination)
            if way is not None and way.next_hop != event.address:  # another next hop has its flows now
                reason = self._send(held, way, now, out)
                if reason is not None:
                    out.append(_held_drop(held, reason))
                return
            reason = self._tell_unreachable(held, now, out) or event.reason
        out.append(_held_drop(held, reason))


def _held_drop(held: HeldOut, reason: DropReason) -> Drop:
    port = PORT_WIRE if reason is DropReason.PORT_UNKNOWN else held.sender.port
    return Drop(reason, port, held.packet)
