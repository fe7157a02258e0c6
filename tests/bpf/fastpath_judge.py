"""What the programs must make of a frame, by the word of core's Pipeline on it; and segments of a frame that has them.

    Pipeline says                                     the programs must
    ------------------------------------------------  ------------------------------------------------------------
    one ToGuest or ToWire, nothing else               redirect it so, where discovery has told both ends' places
    of ARP: one ToGuest to the asker, and CONSUMED    the same, and count CONSUMED
    of a group frame: copies, and one for the wire    the same, where no port of the subnet has a policy and groups
                                                      are not routed; as many copies are counted at the same ports
    one ToHost, nothing else                          into dvhost, the packet as it is
    one Drop, its reason in KERNELS                   drop it so, under the condition there
    anything else                                     divert the frame, as validation alone would

"Told" is the world's: a neighbour that is REACHABLE or PROBE, and was used since it became so. What is STALE, or was
not used yet, is new knowledge: the agent's.
"""

import struct
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import bpf_frames as f
from fastpath_world import HOPS, HOST_LINK, SERVERS, World

from divhook.abi.layout import MARK_DIVERT, MARK_GROUP, MARK_PORT_SHIFT, MARK_SEGMENTS
from divhook.adapters.bpf import DROP, PASS, REDIRECT
from divhook.adapters.links import HOST_LINK_MAC
from divhook.core import validate
from divhook.core.addressing import Address, Mac, SubnetId
from divhook.core.endpoint import PORT_WIRE, Endpoint, PortState
from divhook.core.outputs import Drop, Output, ToGuest, ToHost, ToWire
from divhook.core.reasons import DropReason
from divhook.core.validate import Divert, Lane, WireFacts
from divhook.core.wire.ipv4 import header_untrusted

MARK = 0xBADC0DE
"""On every frame before: a guest's must not stay, the wire's must."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """All that a program may change. frames: the one that is left, or the segments that will be made of it."""

    verdict: int
    frames: tuple[bytes, ...] = field(repr=False)
    mark: int
    target: int = 0
    drop: tuple[int, DropReason] | None = None  # (port id, reason)
    diverted: int | None = None  # port id
    sender: int | None = None  # port id, of a forwarded frame
    receiver: int | None = None
    packets: int = 1  # that it counts for, where it is forwarded
    copies: tuple[int, ...] | None = None  # port ids, of a group frame
    used: Address | None = None  # neighbour
    heard: bool = False  # the frame came from it
    late: Address | None = None  # it has moved away: packets for it, sent on, are counted
    why: str = ""  # the agent gets it: what it makes of it

    @property
    def kind(self) -> str:
        """For people."""
        if self.drop is not None:
            return ("answered " if self.verdict == REDIRECT else "") + self.drop[1].name
        if self.diverted is not None:
            return f"diverted: {self.why}"
        if self.copies is not None:
            return f"{'guest' if self.sender else 'wire'} to group, {min(len(self.copies), 2)} copies or more"
        if self.verdict != REDIRECT:
            return "untouched"
        wire = "outside" if self.used in (*HOPS, *SERVERS) else "host" if self.target == HOST_LINK else "wire"
        way = f"{'guest' if self.sender else wire} to {'guest' if self.receiver else wire}"
        return way + (", segmented" if len(self.frames) > 1 else "")


class Ends(NamedTuple):
    """Addresses of a frame whose fate is asked for."""

    source: Address
    destination: Address
    host: Mac  # of the wire's frames: who sent it
    length: int = 0  # of the packet


def _sender_known(world: World, ends: Ends) -> bool:
    """A forged pmac of our own, and a sender that nobody has told of, are the agent's."""
    known = ends.source in world.told or world.shown(ends.source) is not None
    local = world.shown(ends.destination)
    active = local is not None and local.state is PortState.ACTIVE
    return known and active and ends.host != f.PMAC


Condition = Callable[[World, Ends], bool]


def _cells_denied(world: World, ends: Ends) -> bool:
    """The plan tells, where no rule could allow it; else the other end of this host has no policy."""
    sender, target = world.pipeline.ports.at(ends.source), world.plan.locate(ends.destination)
    assert sender is not None
    assert target is not None
    policies = world.pipeline.policies
    if policies.port(sender) is None or not policies.may_talk(sender.subnet.cell, target.cell):
        return True
    return _shown_or_told(world, ends)


def _shown_or_told(world: World, ends: Ends) -> bool:
    """The programs know the destination, and the packet fits: nothing is left to the agent."""
    local, subnet = world.shown(ends.destination), world.plan.locate(ends.destination)
    if local is None and ends.destination not in world.told:
        return False
    assert subnet is not None
    return ends.length <= (local.mtu if local is not None else world.topology[subnet].mtu)


GUEST_KERNELS: dict[DropReason, Condition] = {
    DropReason.CELL_DENIED: _cells_denied,
    DropReason.POLICY_DENIED: _shown_or_told,
    DropReason.FLOW_UNKNOWN: _shown_or_told,
}
"""Beyond validation: reasons of the pipeline that from_guest drops with, and when. All others are diverted: the agent
answers (TTL_EXPIRED, FRAGMENTATION_NEEDED, EXTERNAL_UNSUPPORTED, ROUTER_SERVICE, NO_SUCH_ENDPOINT, NEGATIVE_CACHED,
DHCP), asks (HOLD_*, RESOLVE_*), or will have more to say (BROADCAST_UNSUPPORTED, MULTICAST_UNSUPPORTED,
MARTIAN_DESTINATION, L2_MULTICAST_MISMATCH, PORT_NOT_ACTIVE, RARP_FROM_GUEST, CONSUMED without an answer)."""
WIRE_KERNELS: dict[DropReason, Condition] = {
    DropReason.CELL_DENIED: _sender_known,
    DropReason.POLICY_DENIED: _sender_known,
    DropReason.FLOW_UNKNOWN: _sender_known,
    DropReason.SPOOF_LOCAL: lambda world, ends: world.shown(ends.source) is not None,
}
"""The same of from_wire. Diverted: what needs an answer to the sender (NOT_LOCAL, PORT_NOT_ACTIVE of a fenced port),
a challenge or a question (UNKNOWN_HOST, SPOOF_SOURCE, UNVERIFIED, HOLD_*), and what is not to come yet
(EXTERNAL_UNSUPPORTED, BROADCAST_UNSUPPORTED, MULTICAST_UNSUPPORTED, FRAGMENTATION_NEEDED)."""


class Judge:
    """Speaks for the core of a world; the core sees each frame once, whatever the programs do with it."""

    def __init__(self, world: World) -> None:
        self._world = world
        self.outputs: list[Output] = []  # the core's, of the last frame or segment

    def outputs_text(self) -> str:
        """For people."""
        return ", ".join(
            f"{type(o).__name__} {getattr(o, 'reason', None) or getattr(o, 'port', '')!r}" for o in self.outputs
        )

    # ------------------------------------------------------------------ from_guest

    def from_guest(self, ifindex: int, frame: bytes, gso_size: int = 0) -> Outcome:
        """A frame of whoever is behind an interface."""
        endpoint = self._world.port_of(ifindex)
        if endpoint is None:
            return Outcome(DROP, (frame,), 0, drop=(PORT_WIRE, DropReason.PORT_UNKNOWN))
        return self._whole(frame, gso_size, lambda piece: self._guest(endpoint, piece))

    def _guest(self, endpoint: Endpoint, frame: bytes) -> Outcome:
        world, port = self._world, endpoint.port
        verdict = validate.from_guest(endpoint, world.plan.router(endpoint.subnet), frame)
        outputs = self.outputs = world.pipeline.from_guest(port, frame, world.now)
        if isinstance(verdict, DropReason):
            assert outputs == [Drop(verdict, port, frame)], outputs
            return Outcome(DROP, (frame,), 0, drop=(port, verdict))
        found = None
        if verdict.lane is Lane.IPV4 and world.fast:
            found = self._guest_ipv4(endpoint, frame, outputs)
        elif verdict.lane is Lane.ARP and world.fast:
            found = self._guest_arp(endpoint, frame, outputs)
        return found or Outcome(
            PASS, (f.DIVBR_MAC + frame[6:],), _mark(port, verdict), diverted=port, why=_why(outputs)
        )

    def _guest_ipv4(self, endpoint: Endpoint, frame: bytes, outputs: list[Output]) -> Outcome | None:
        world, destination = self._world, frame[30:34]
        if frame[0] & 1:
            return self._group_from_guest(endpoint, outputs)
        if not world.plan.contains(destination):
            return self._guest_outside(endpoint, frame, outputs)
        receiver = world.shown(destination)
        if endpoint.state is not PortState.ACTIVE and receiver is not None:
            match outputs:
                case [Drop(DropReason.CELL_DENIED, _, _)]:
                    pass
                case _ if world.pipeline.policies.port(receiver) is not None:
                    return None
        match outputs:
            case [ToGuest(port, sent)]:
                target = world.ifindex_of[port]
                return Outcome(REDIRECT, (sent,), 0, target, sender=endpoint.port, receiver=port)
            case [ToWire(sent)] if destination in world.told:
                return Outcome(REDIRECT, (sent,), 0, world.uplink, sender=endpoint.port, used=destination)
            case [Drop(reason, port, _)] if reason in GUEST_KERNELS:
                length = int.from_bytes(frame[16:18], "big")
                if GUEST_KERNELS[reason](world, Ends(frame[26:30], destination, b"", length)):
                    return Outcome(DROP, (frame,), 0, drop=(port, reason))
        return None

    def _guest_outside(self, endpoint: Endpoint, frame: bytes, outputs: list[Output]) -> Outcome | None:
        """To an address outside, or of the host itself."""
        world, destination = self._world, frame[30:34]
        if world.pipeline.policies.port(endpoint) is None or endpoint.state is not PortState.ACTIVE:
            return None  # nothing goes there: the agent says so
        if world.externals.is_own(destination):
            match outputs:
                case [ToHost(packet)]:
                    sent = HOST_LINK_MAC + endpoint.vmac + frame[12:14] + packet
                    return Outcome(REDIRECT, (sent,), 0, HOST_LINK, sender=endpoint.port)
                case [Drop(DropReason.HOST_SERVICE | DropReason.FLOW_UNKNOWN as reason, port, _)]:
                    return Outcome(DROP, (frame,), 0, drop=(port, reason))
            return None
        packet = frame[14:]
        way = world.externals.way(header_untrusted(packet), packet, destination)
        known = way is not None and way.next_hop in world.met
        match outputs:
            case [ToWire(sent)] if known and way is not None:
                return Outcome(REDIRECT, (sent,), 0, world.uplink, sender=endpoint.port, used=way.next_hop)
            case [Drop(DropReason.POLICY_DENIED | DropReason.FLOW_UNKNOWN as reason, port, _)] if known:
                assert way is not None
                if packet[8] > 1 and int.from_bytes(packet[2:4], "big") <= way.mtu:
                    return Outcome(DROP, (frame,), 0, drop=(port, reason))
        return None

    def _wire_outside(self, ends: Ends, frame: bytes, outputs: list[Output]) -> Outcome | None:
        """From an address outside, to a guest."""
        world, local = self._world, self._world.shown(ends.destination)
        speaker = world.externals.speaker(ends.source, ends.host)
        if speaker not in world.met or local is None or local.state is not PortState.ACTIVE:
            return None
        if world.pipeline.policies.port(local) is None or world.externals.is_own(ends.source):
            return None
        match outputs:
            case [ToGuest(port, sent)]:
                target = world.ifindex_of[port]
                return Outcome(REDIRECT, (sent,), MARK, target, receiver=port, used=speaker, heard=True)
            case [Drop(DropReason.POLICY_DENIED | DropReason.FLOW_UNKNOWN as reason, port, _)]:
                if frame[22] > 1 and int.from_bytes(frame[16:18], "big") <= local.mtu:
                    return Outcome(DROP, (frame,), MARK, drop=(port, reason))
        return None

    def _guest_arp(self, endpoint: Endpoint, frame: bytes, outputs: list[Output]) -> Outcome | None:
        world, tpa = self._world, frame[38:42]
        match outputs:
            case [ToGuest(port, reply), Drop(DropReason.CONSUMED, counted, _)]:
                assert port == counted == endpoint.port
                own = tpa == world.plan.router(endpoint.subnet) or world.shown(tpa) is not None
                told = tpa in world.told
                if not own and not told:
                    return None
                used = None if own else tpa
                ifindex = world.ifindex_of[port]
                return Outcome(REDIRECT, (reply,), 0, ifindex, drop=(port, DropReason.CONSUMED), used=used)
        return None

    # ------------------------------------------------------------------ to groups

    def _lists_speak(self, subnet: SubnetId) -> bool:
        """Whether the kernel has a list of the subnet, and is to go by it."""
        world = self._world
        here = [e for e in world.pipeline.ports.in_subnet(subnet) if e.state is PortState.ACTIVE]
        policed = any(world.pipeline.policies.port(endpoint) is not None for endpoint in here)
        return bool(here) and not policed and subnet in world.topology

    def _is_routed(self, subnet: SubnetId, destination: Address) -> bool:
        local = destination[:3] == bytes((224, 0, 0)) or destination[0] >> 4 != 14
        return self._world.topology[subnet].groups_routed and not local

    def _group_from_guest(self, endpoint: Endpoint, outputs: list[Output]) -> Outcome | None:
        world, subnet = self._world, endpoint.subnet
        if (
            endpoint.state is not PortState.ACTIVE
            or not outputs
            or not isinstance(outputs[-1], ToWire)
            or not self._lists_speak(subnet)
        ):
            return None
        wire = outputs[-1].frame
        if self._is_routed(subnet, wire[30:34]):
            return None
        copies = [output for output in outputs[:-1] if isinstance(output, ToGuest)]
        assert len(copies) == len(outputs) - 1
        assert {copy.frame[14:] for copy in copies} <= {wire[14:]}
        ports = tuple(copy.port for copy in copies)
        return Outcome(REDIRECT, (wire,), 0, world.uplink, sender=endpoint.port, copies=ports)

    def _group_from_wire(self, ends: Ends, frame: bytes, outputs: list[Output]) -> Outcome | None:
        world, subnet = self._world, self._world.plan.locate(ends.source)
        if subnet is None or not self._lists_speak(subnet) or self._is_routed(subnet, ends.destination):
            return None
        match outputs:
            case [Drop(DropReason.NO_MEMBER, port, _)]:
                return Outcome(DROP, (frame,), MARK, drop=(port, DropReason.NO_MEMBER))
            case [ToGuest(), *_] if ends.source in world.told and ends.host != f.PMAC:
                copies = [output for output in outputs if isinstance(output, ToGuest)]
                assert len(copies) == len(outputs)
                assert len({copy.frame for copy in copies}) == 1
                ports = tuple(copy.port for copy in copies)
                return Outcome(DROP, (copies[0].frame,), MARK, used=ends.source, heard=True, copies=ports)
        return None

    # ------------------------------------------------------------------ from_wire

    def from_wire(self, frame: bytes, gso_size: int = 0) -> Outcome:
        """A frame from the uplink."""
        return self._whole(frame, gso_size, self._wire)

    def _wire(self, frame: bytes) -> Outcome:
        world = self._world
        verdict = validate.from_wire(self._facts(), frame)
        outputs = self.outputs = world.pipeline.from_wire(frame, world.now)
        if verdict is None:
            assert outputs == [], outputs
            return Outcome(PASS, (frame,), MARK)
        if isinstance(verdict, DropReason):
            assert outputs == [Drop(verdict, PORT_WIRE, frame)], outputs
            return Outcome(DROP, (frame,), MARK, drop=(PORT_WIRE, verdict))
        if verdict.copied:  # also the host's own
            return Outcome(PASS, (frame,), MARK, diverted=PORT_WIRE, why="ARP of a server")
        found = self._wire_ipv4(frame, outputs) if verdict.lane is Lane.IPV4 and world.fast else None
        code = REDIRECT if verdict.lane is Lane.DISCOVERY else PASS
        return found or Outcome(code, (frame,), _mark(PORT_WIRE, verdict), diverted=PORT_WIRE, why=_why(outputs))

    def _wire_ipv4(self, frame: bytes, outputs: list[Output]) -> Outcome | None:
        world, ends = self._world, Ends(frame[26:30], frame[30:34], frame[6:12])
        if frame[0] & 1:
            return self._group_from_wire(ends, frame, outputs)
        if not world.plan.contains(ends.source):
            return self._wire_outside(ends, frame, outputs)
        match outputs:
            case [ToGuest(port, sent)] if ends.source in world.told:
                target, sender = world.ifindex_of[port], world.discovery.neighbours.get(ends.source)
                assert sender is not None
                heard = ends.source if sender.speaks_from(ends.host, world.now) else None  # else it was sent on
                return Outcome(REDIRECT, (sent,), MARK, target, receiver=port, used=heard, heard=heard is not None)
            case [ToWire(sent)] if {ends.source, ends.destination} <= world.told:  # it has moved away
                late = ends.destination
                return Outcome(REDIRECT, (sent,), MARK, world.uplink, used=ends.source, heard=True, late=late)
            case [ToGuest(port, sent)] if world.shown(ends.source) is not None:  # about to move from here
                return Outcome(REDIRECT, (sent,), MARK, world.ifindex_of[port], receiver=port)
            case [Drop(reason, port, _)] if reason in WIRE_KERNELS and WIRE_KERNELS[reason](world, ends):
                assert port == PORT_WIRE
                return Outcome(DROP, (frame,), MARK, drop=(port, reason))
        return None

    def _subnet_of(self, frame: bytes) -> SubnetId:
        subnet = self._world.plan.locate(frame[26:30])
        assert subnet is not None
        return subnet

    def _mtu_of(self, frame: bytes, gso_size: int) -> int:
        """Above which a segmented frame counts its segments."""
        world, packet, destination = self._world, frame[14:], frame[30:34]
        subnet = world.plan.locate(destination)
        if subnet is not None:
            return world.topology[subnet].mtu
        if world.externals.is_own(destination):
            return gso_size + 120
        way = world.externals.way(header_untrusted(packet), packet, destination)
        assert way is not None
        return way.mtu

    def _facts(self) -> WireFacts:
        return self._world.pipeline._wire_facts()

    # ------------------------------------------------------------------ segmented frames

    def _whole(self, frame: bytes, gso_size: int, judge: Callable[[bytes], Outcome]) -> Outcome:
        """The core's word on every segment: all end alike, or the agent gets the frame, and sees each.

        A segmented frame that is longer than a packet may be in its target's subnet counts its segments.
        """
        if not gso_size:
            return judge(frame)
        outcomes = [judge(piece) for piece in segments(frame, gso_size)]
        first = outcomes[0]
        if any((o.verdict, o.target, o.drop) != (first.verdict, first.target, first.drop) for o in outcomes):
            # The agent sees them all; but one that ends a flow makes others of the rest.
            first = next((o for o in outcomes if o.diverted is not None), first)
        if first.copies is not None:
            mtu = self._world.topology[self._subnet_of(frame)].mtu
            packets = len(outcomes) if len(frame) - 14 > mtu else 1
            whole = first.frames[0][:14] + frame[14:]
            frames = tuple(o.frames[0] for o in outcomes) if first.verdict == REDIRECT else (whole,)
            return replace(first, frames=frames, packets=packets)
        if first.verdict == REDIRECT:
            port = first.receiver or 0
            endpoint = self._world.pipeline.ports.port(port)
            mtu = endpoint.mtu if endpoint is not None else self._mtu_of(frame, gso_size)
            packets = len(outcomes) if len(frame) - 14 > mtu else 1
            frames = tuple(o.frames[0] for o in outcomes)
            return Outcome(
                REDIRECT,
                frames,
                first.mark,
                first.target,
                sender=first.sender,
                receiver=first.receiver,
                packets=packets,
                used=first.used,
                heard=first.heard,
            )
        whole = first.frames[0][:14] + frame[14:]
        if first.diverted == PORT_WIRE:  # its segments bear who sent it
            mark = first.mark | MARK_SEGMENTS | int.from_bytes(frame[6:8], "big") << MARK_PORT_SHIFT
            return replace(first, frames=(whole,), mark=mark)
        return Outcome(first.verdict, (whole,), first.mark, drop=first.drop, diverted=first.diverted, why=first.why)


def _why(outputs: list[Output]) -> str:
    if not outputs:
        return "held, or discovery"
    last = outputs[-1]
    if isinstance(last, Drop):
        return last.reason.name
    return "forwarded" if len(outputs) == 1 else "fragmented"


def _mark(port_id: int, divert: Divert) -> int:
    return MARK_DIVERT | (MARK_GROUP if divert.group else 0) | port_id << MARK_PORT_SHIFT


def segments(frame: bytes, gso_size: int) -> list[bytes]:
    """What a NIC would make of a TCP or UDP frame: gso_size bytes of payload each. Transport checksums stay."""
    packet = frame[14:]
    header = header_untrusted(packet)
    at = header.header_length
    headers = at + (8 if header.protocol == f.UDP else (packet[at + 12] >> 4) * 4)
    payload = packet[headers : header.total_length]
    pieces = []
    for number, start in enumerate(range(0, max(1, len(payload)), gso_size)):
        data = payload[start : start + gso_size]
        words = bytearray(packet[:headers])
        struct.pack_into("!H", words, 2, headers + len(data))
        struct.pack_into("!H", words, 4, (struct.unpack_from("!H", packet, 4)[0] + number) & 0xFFFF)
        if header.protocol == f.UDP:
            struct.pack_into("!H", words, at + 4, 8 + len(data))
        else:
            sequence = (struct.unpack_from("!I", packet, at + 4)[0] + start) & 0xFFFFFFFF
            struct.pack_into("!I", words, at + 4, sequence)
        struct.pack_into("!H", words, 10, 0)
        struct.pack_into("!H", words, 10, f.rfc1071(bytes(words[:at])))
        pieces.append(frame[:14] + bytes(words) + data)
    return pieces
