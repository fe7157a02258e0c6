"""The slow path's shell: diverted frames in, the core's outputs out, everything counted.

All of it runs in the event loop's thread. Time is read here, once per batch, and handed to the core.
"""

import asyncio
import logging
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

from divhook.abi.layout import MARK_GROUP, MARK_NAT
from divhook.adapters.bpf.programs import Programs
from divhook.adapters.links import HOST_LINK_MAC, HostLink
from divhook.adapters.nfqueue import BATCH, MAX_WAITING, DivertQueue
from divhook.adapters.packet import DivertSocket, FrameSender, GroupMembership, HostSocket
from divhook.agent.fastpath import FastPath
from divhook.agent.flow_log import FlowLog
from divhook.agent.group_lists import GroupLists
from divhook.agent.outside import Outside
from divhook.agent.shared import SharedMaps
from divhook.agent.traffic import Tally
from divhook.core.addressing import ALL_HOSTS_GROUP, Address, Mac, SubnetId
from divhook.core.auth import MAX_PEERS, Authenticator, Opened, Refused
from divhook.core.census import AddressCensus, CensusEvent
from divhook.core.dhcp import LeaseEvent
from divhook.core.discovery import Event, NeighbourChanged, TentativeObjected, TentativePassed, UnknownHost
from divhook.core.endpoint import PORT_WIRE, Endpoint, PortState
from divhook.core.identities import IdentityLearned
from divhook.core.keys import KeyRing
from divhook.core.moves.asking import MoveQuestions
from divhook.core.outputs import Drop, Output, ToGuest, ToHost, ToNat, ToNewHost, ToWire
from divhook.core.pipeline import Pipeline
from divhook.core.reasons import DropReason
from divhook.core.wire.discovery import Message, is_discovery
from divhook.core.wire.ethernet import ETH_HEADER, ETHERTYPE_ARP, ETHERTYPE_IPV4, ipv4_frame

MAX_ROUNDS = 64
"""Times in a row that the machines may answer each other before frames are read again."""
MAX_DRAINS = 8
"""Batches that are read from the queue before an endpoint is given to the kernel, so that frames keep their order."""
MAX_RECENT_DROPS = 256
"""Dropped frames kept for `divhook drops --recent`."""

log = logging.getLogger(__name__)


class Talker(Protocol):
    """A sans-IO machine that speaks discovery messages: Discovery, AddressCensus."""

    def receive(self, message: Message, now: float) -> None:
        """An authenticated message."""

    def messages_to_send(self) -> list[Message]:
        """What to seal and send."""

    def next_timer(self) -> float | None:
        """When on_timer wants to be called."""

    def on_timer(self, now: float) -> None:
        """Its time has come."""


class Listener(Protocol):
    """The owner, told of what concerns guests."""

    def on_discovery(self, event: Event) -> None:
        """Of a claim of ours, or a neighbour."""

    def on_census(self, event: CensusEvent) -> None:
        """Of a search for an address."""

    def on_identity(self, event: IdentityLearned) -> None:
        """What an identity of another host's endpoint stands for."""

    def on_lease(self, endpoint: Endpoint, event: LeaseEvent) -> None:
        """Of a DHCP client."""

    def on_first_frame(self, port: int) -> None:
        """Of a frame from a port whose guest was still to come in: it runs here."""

    def on_moves(self) -> None:
        """Of other hosts' questions for guests that move there, perhaps."""

    def on_host_routes(self) -> None:
        """Of guests that the host's stack is to reach, or not any more."""

    def on_late(self, late: ToNewHost) -> None:
        """Of a packet for an endpoint that has moved away."""


@dataclass(slots=True)
class Counters:
    """What the slow path did since the agent's start."""

    drops: dict[tuple[int, int], list[int]] = field(default_factory=dict)  # (port, reason) -> [packets, bytes]
    delivered: dict[int, Tally] = field(default_factory=dict)  # by port: what was sent into its tap
    from_guest: int = 0
    from_wire: int = 0
    discovery: int = 0
    to_guest: int = 0
    to_wire: int = 0
    from_host: int = 0
    to_host: int = 0
    send_failed: int = 0


class Dataplane:
    """Joins the core to the kernel. `ifindex_of` maps port ids to taps; the owner keeps it."""

    def __init__(
        self,
        pipeline: Pipeline,
        authenticator: Authenticator,
        census: AddressCensus,
        programs: Programs,
        fastpath: FastPath,
        uplink_ifindex: int,
        bridge_ifindex: int,
        queue_number: int,
        listener: Listener,
        flow_log: FlowLog | None = None,
        host_link: HostLink | None = None,
    ) -> None:
        self.pipeline = pipeline
        self.authenticator = authenticator
        self.counters = Counters()
        self.recent: deque[tuple[float, Drop]] = deque(maxlen=MAX_RECENT_DROPS)
        self.ifindex_of: dict[int, int] = {}
        self.nat_ifindex = 0  # of the link to the namespace that translates
        self.census = census
        self.flow_log = flow_log or FlowLog()
        self.moves = MoveQuestions(pipeline.pmac, pipeline.plan)
        self._talkers: tuple[Talker, ...] = (pipeline.discovery, census, pipeline.identities, self.moves)
        self.programs = programs
        self.fastpath = fastpath
        self.shared = SharedMaps(programs, fastpath, pipeline.ports)
        self.outside = Outside(
            programs, pipeline.border.externals, fastpath.enabled, host_link.ifindex if host_link is not None else 0
        )
        fastpath.outside = self.outside
        self.group_lists = GroupLists(programs, pipeline, self.ifindex_of, fastpath.enabled)
        self._uplink = uplink_ifindex
        self._listener = listener
        self._sender = FrameSender()
        self._diverted = DivertSocket(bridge_ifindex)
        self._queue = DivertQueue(queue_number, self._ipv4)
        self._host_link = host_link
        self._host = HostSocket(host_link.peer_ifindex) if host_link is not None else None
        self._groups = GroupMembership(uplink_ifindex)
        self.host_routes_seen: dict[Address, int] = {}
        """What the owner has last made routes of."""
        self._ports_seen = -1
        self._joined: set[Mac] = set()
        self._known_peers: set[Mac] = set()
        self._loop = asyncio.get_running_loop()
        self._timer: asyncio.TimerHandle | None = None
        self._pumping = False
        self._now = self._loop.time()
        self._loop.add_reader(self._diverted.fileno(), self._read_diverted)
        self._loop.add_reader(self._queue.fileno(), self._read_queue)
        if self._host is not None:
            self._loop.add_reader(self._host.fileno(), self._read_host)
        if programs.flow_log is not None:
            self._loop.add_reader(programs.flow_log.fd, self._read_flow_log)
        self.join_groups([])

    def _read_flow_log(self) -> None:
        if self.programs.flow_log is not None:
            self._guarded(self.flow_log.kernel, self.programs.flow_log.read())

    def close(self) -> None:
        """Stop reading and release the sockets. Kernel state stays as it is."""
        self._loop.remove_reader(self._diverted.fileno())
        self._loop.remove_reader(self._queue.fileno())
        if self.programs.flow_log is not None:
            self._loop.remove_reader(self.programs.flow_log.fd)
        if self._timer is not None:
            self._timer.cancel()
        if self._host is not None:
            self._loop.remove_reader(self._host.fileno())
            self._host.close()
        for thing in (self._diverted, self._queue, self._groups, self._sender):
            thing.close()

    def now(self) -> float:
        """Monotonic seconds, the loop's clock."""
        return self._loop.time()

    # ------------------------------------------------------------------ frames

    def _ipv4(self, mark: int, hw_source: bytes | None, packet: bytes) -> None:
        port = mark >> 16
        group = bool(mark & MARK_GROUP)
        if mark & MARK_NAT:
            self.counters.from_wire += 1
            self.execute(self.pipeline.from_nat_ipv4(packet, self._now))
        elif port == PORT_WIRE:
            self.counters.from_wire += 1
            self.execute(self.pipeline.from_wire_ipv4(hw_source or bytes(6), packet, group, self._now))
        else:
            self.counters.from_guest += 1
            self._awaken(port)
            self.execute(self.pipeline.from_guest_ipv4(port, packet, group, self._now))

    def _awaken(self, port: int) -> None:
        """A guest that comes in speaks: it runs here. QEMU's RARP is the first to tell, ahead of libvirt."""
        endpoint = self.pipeline.ports.port(port)
        if endpoint is None or endpoint.state is not PortState.INCOMING:
            return
        pumping, self._pumping = self._pumping, True  # the caller pumps, once what it reads is read
        try:
            self._tell(self._listener.on_first_frame, port)
        finally:
            self._pumping = pumping

    def _read_queue(self) -> None:
        """After what other hosts have said: where this agent stood still, that is of the very packets that wait."""
        self._now = self.now()
        if self._take_diverted():
            self.pump()  # frames that were held for it go before those of the queue
        self._guarded(self._queue.read)
        self.pump()

    def drain(self) -> None:
        """Read what waits in the queue now: a port that is about to be forgotten has frames there, perhaps."""
        if self._pumping:  # they may be in the middle of being read
            return
        self._now = self.now()
        for _ in range(MAX_WAITING // BATCH):
            before = self.counters.from_guest + self.counters.from_wire
            self._guarded(self._queue.read)
            if self.counters.from_guest + self.counters.from_wire < before + BATCH:
                break
        self.pump()

    def _read_diverted(self) -> None:
        self._now = self.now()
        self._take_diverted()
        self.pump()

    def _take_diverted(self) -> bool:
        """Whether there was anything."""
        frames = self._diverted.read()
        for mark, frame in frames:
            self._guarded(self._divert, mark, frame)
        return bool(frames)

    def _read_host(self) -> None:
        assert self._host is not None
        self._now = self.now()
        for packet in self._host.read():
            self.counters.from_host += 1
            self._guarded(self._from_host, packet)
        self.pump()

    def _from_host(self, packet: bytes) -> None:
        self.execute(self.pipeline.from_host(packet, self._now))

    def _guarded(self, function: Callable[..., object], *arguments: object) -> None:
        """A frame or timer that trips over a bug of ours is counted and logged; the agent goes on."""
        try:
            function(*arguments)
        except Exception:
            log.exception("a frame or timer met a bug; please report it with this trace")
            self._count(Drop(DropReason.INTERNAL_ERROR, PORT_WIRE))

    def _divert(self, mark: int, frame: bytes) -> None:
        port = mark >> 16
        if port == PORT_WIRE:
            if frame[12:ETH_HEADER] == ETHERTYPE_ARP.to_bytes(2, "big") and not is_discovery(frame):
                self.execute(self.pipeline.from_wire_arp(frame, self._now))
            else:
                self._discovery(frame)
            return
        self.counters.from_guest += 1
        self._awaken(port)
        ethertype = int.from_bytes(frame[12:14], "big")
        if ethertype == ETHERTYPE_ARP:
            self.execute(self.pipeline.from_guest_arp(port, frame[ETH_HEADER:], self._now))
        elif ethertype == ETHERTYPE_IPV4:  # of a guest without address: DHCP
            self.execute(self.pipeline.from_guest_ipv4(port, frame[ETH_HEADER:], bool(mark & MARK_GROUP), self._now))
        else:
            self._count(Drop(DropReason.RARP_FROM_GUEST, port, frame))

    def _discovery(self, frame: bytes) -> None:
        self.counters.discovery += 1
        if not is_discovery(frame):
            self._count(Drop(DropReason.DISCOVERY_MALFORMED, PORT_WIRE, frame))
            return
        opened = self.authenticator.open_untrusted(frame, self._now)
        if isinstance(opened, Refused):
            self._count(Drop(opened.reason, PORT_WIRE, frame))
        elif isinstance(opened, Opened):
            for refused in opened.refused:
                self._count(Drop(refused.reason, PORT_WIRE))
            for message in opened.messages:
                self._peer(message.source)
                for talker in self._talkers:
                    talker.receive(message, self._now)

    def _peer(self, pmac: Mac) -> None:
        if pmac not in self._known_peers:
            if len(self._known_peers) >= MAX_PEERS:
                self._known_peers.clear()  # they are told to the kernel again, whose own table forgets the oldest
            self._known_peers.add(pmac)
            self.programs.add_peer(pmac)
            log.info("peer %s proved its key", pmac.hex(":"))

    def replace_keys(self, keys: KeyRing) -> None:
        """Take a changed key file: hosts that proved themselves with a key that is gone are strangers again."""
        self.authenticator.replace_keys(keys)
        for pmac in [p for p in self._known_peers if not self.authenticator.is_peer(p)]:
            self._known_peers.discard(pmac)
            self.programs.remove_peer(pmac)
            self.pipeline.discovery.forget_peer(pmac)

    def inject(self, now: float, outputs: list[Output]) -> None:
        """Outputs that the agent itself caused."""
        self._now = now
        self.execute(outputs)
        self.pump()

    def execute(self, outputs: list[Output]) -> None:
        """Send and count."""
        for output in outputs:
            if isinstance(output, ToWire):
                self.counters.to_wire += 1
                if not self._sender.send(self._uplink, output.frame):
                    self.counters.send_failed += 1
            elif isinstance(output, ToNat):
                if not self.nat_ifindex or not self._sender.send(self.nat_ifindex, output.frame):
                    self.counters.send_failed += 1
            elif isinstance(output, ToGuest):
                self.counters.to_guest += 1
                ifindex = self.ifindex_of.get(output.port)
                if ifindex is None or not self._sender.send(ifindex, output.frame):
                    self.counters.send_failed += 1
                else:
                    self.counters.delivered.setdefault(output.port, Tally()).add(1, len(output.frame))
            elif isinstance(output, ToHost):
                self.counters.to_host += 1
                frame = ipv4_frame(HOST_LINK_MAC, HOST_LINK_MAC, output.packet)
                if self._host_link is None or not self._sender.send(self._host_link.peer_ifindex, frame):
                    self.counters.send_failed += 1
            elif isinstance(output, ToNewHost):
                self._tell(self._listener.on_late, output)
            elif isinstance(output, Drop):
                self._count(output)

    def _count(self, drop: Drop) -> None:
        entry = self.counters.drops.setdefault((drop.port, int(drop.reason)), [0, 0])
        entry[0] += 1
        entry[1] += len(drop.frame)
        if drop.reason is not DropReason.CONSUMED:
            self.recent.append((time.time(), drop))

    def forget_port(self, port: int) -> None:
        """A port is gone: so are its counters."""
        for key in [k for k in self.counters.drops if k[0] == port]:
            del self.counters.drops[key]
        self.counters.delivered.pop(port, None)
        self.ifindex_of.pop(port, None)

    # ------------------------------------------------------------------ machines

    def pump(self) -> None:
        """Let the machines speak, hand out what they decided, and set the next timer.

        A listener may call inject, which calls this: the outer call then does another round. So everything is told
        once and in order, and nothing is told to a listener that is in the middle of something.
        """
        if self._pumping:
            return
        self._pumping = True
        try:
            if not any(self._round() is False for _ in range(MAX_ROUNDS)):
                self._loop.call_soon(self.pump)
        finally:
            self._pumping = False
            self._schedule()

    def _publish(self) -> bool:
        """Give the kernel what has just been decided, once frames of those flows in the queue have been sent.

        Whether there were any: they may have made new decisions.
        """
        decided, self.pipeline.decided = self.pipeline.decided, []
        before = read = self.counters.from_guest + self.counters.from_wire
        drained = True
        outside, self.pipeline.border.decided = self.pipeline.border.decided, []
        if self.fastpath.wants(decided) or self.outside.wants(outside):
            for _ in range(MAX_DRAINS):
                self._guarded(self._queue.read)
                last, read = read, self.counters.from_guest + self.counters.from_wire
                drained = read < last + BATCH
                if drained:
                    break
        self._guarded(self.fastpath.used, decided, self._now, drained)
        self._guarded(self.outside.used, outside)
        return read > before

    def host_routes_wanted(self) -> dict[Address, int]:
        """Addresses of active guests here that a rule lets talk with the host, each with its MTU."""
        pipeline = self.pipeline
        return {
            address: endpoint.mtu
            for endpoint in pipeline.ports.all()
            if endpoint.state is PortState.ACTIVE and pipeline.policies.reaches_host(endpoint)
            for address in (endpoint.address, *endpoint.held)
            if address is not None
        }

    def _watch_host_routes(self) -> None:
        generation = self.pipeline.ports.generation
        if generation != self._ports_seen:
            self._ports_seen = generation
            if self.host_routes_wanted() != self.host_routes_seen:
                self._listener.on_host_routes()

    def _round(self) -> bool:
        """Whether there was anything."""
        self.execute(self.pipeline.collect(self._now))
        self._guarded(self.shared.sync)
        self._guarded(self.group_lists.sync)
        self._guarded(self._watch_host_routes)
        events, self.pipeline.pending_events = self.pipeline.pending_events, []
        for event in events:
            if isinstance(event, UnknownHost):
                self.authenticator.challenge(event.pmac, self._now)
            elif isinstance(event, TentativePassed | TentativeObjected):
                self.census.on_tentative(event, self._now)
            elif isinstance(event, NeighbourChanged):
                self._guarded(self.fastpath.changed, event, self._now)
            else:
                self._tell(self._listener.on_discovery, event)
        outside, self.pipeline.border.pending_events = self.pipeline.border.pending_events, []
        for change in outside:
            self._guarded(self.outside.event, change)
        learned, self.pipeline.learned = self.pipeline.learned, []
        for identity in learned:
            self._tell(self._listener.on_identity, identity)
        found = self.census.events()
        for choice in found:
            self._tell(self._listener.on_census, choice)
        leases, self.pipeline.lease_events = self.pipeline.lease_events, []
        for endpoint, lease in leases:
            self._tell(self._listener.on_lease, endpoint, lease)
        if self.moves.waiting:
            self._tell(self._listener.on_moves)
        frames = [
            self.authenticator.seal(message, self._now)
            for talker in self._talkers
            for message in talker.messages_to_send()
        ]
        frames += self.authenticator.frames_to_send()
        for frame in frames:
            self.counters.to_wire += 1
            if not self._sender.send(self._uplink, frame):
                self.counters.send_failed += 1
        return self._publish() or bool(frames or events or found or leases)

    def _tell(self, listener: Callable[..., None], *what: object) -> None:
        """An event that trips over a bug of ours, or a full disk, takes no other event with it."""
        try:
            listener(*what)
        except Exception:
            log.exception("the agent failed on %s", what)

    def _schedule(self) -> None:
        times = [talker.next_timer() for talker in self._talkers]
        times += [self.authenticator.next_timer(), self.pipeline.next_timer()]
        wanted = [at for at in times if at is not None]
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if wanted:
            self._timer = self._loop.call_at(max(min(wanted), self._now), self._on_timer)

    def _on_timer(self) -> None:
        self._now = self.now()
        self._guarded(self._authenticator_timer)
        for talker in self._talkers:
            self._guarded(talker.on_timer, self._now)
        self._guarded(self.pipeline.on_timer, self._now)
        self.pump()

    def _authenticator_timer(self) -> None:
        for refused in self.authenticator.on_timer(self._now):
            self._count(Drop(refused.reason, PORT_WIRE))

    # ------------------------------------------------------------------ groups

    def join_groups(self, subnets: list[SubnetId]) -> None:
        """Admit exactly the groups of these subnets, and the all-hosts group. Raises BpfError or OSError."""
        wanted = {ALL_HOSTS_GROUP}.union(*map(self.pipeline.groups.of_subnet, subnets))
        if wanted == self._joined:
            return
        self.programs.set_groups(wanted)  # it may be full: then nothing is joined
        for group in wanted - self._joined:
            self._groups.join(group)
            self._joined.add(group)
        for group in self._joined - wanted:
            self._joined.discard(group)
            self._groups.leave(group)

    @property
    def groups(self) -> set[Mac]:
        """Group MACs that the uplink admits now."""
        return set(self._joined)

    def active_subnets(self) -> list[SubnetId]:
        """Subnets with a port here that is not fenced."""
        return sorted({e.subnet for e in self.pipeline.ports.all() if e.state is not PortState.FENCED})

    def queue_losses(self) -> tuple[int, int]:
        """(NFQUEUE, packet socket) frames that the kernel could not hand over since the agent's start."""
        queue = self._queue.counts()
        return queue.queue_dropped + queue.user_dropped, self._diverted.counts().lost
