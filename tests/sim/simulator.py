"""A world in one process: hosts with the real Discovery, one fake clock, a bad network, and a registry that may lie.

The world knows what the agents cannot: where libvirt really runs each guest. After every call into a Discovery the
host that was called is checked (invariants 3, 8, 9 of docs/protocol.md §Invariants; frames are conserved); `calm`
then ends all faults, and `check_quiet` demands the rest (1, 2, 6, 11, 13). A failure shows seed and event log.
"""

import heapq
import random
from collections import Counter, defaultdict, deque
from collections.abc import Callable
from dataclasses import dataclass, field

from divhook.core.addressing import ALL_HOSTS_GROUP, Address, AddressPlan, Mac, SubnetId, address_text, group_mac
from divhook.core.discovery import (
    ClaimChanged,
    ClaimState,
    Discovery,
    Found,
    Limits,
    NeighbourChanged,
    Outcome,
    Record,
    Released,
    SourceConfirmed,
    SourceRefused,
    TentativeObjected,
    TentativePassed,
    Unreachable,
)
from divhook.core.reasons import DropReason
from divhook.core.wire.discovery import Claim, Message, MessageType

OWN_CLAIMS = frozenset({MessageType.REPLY, MessageType.ANNOUNCE, MessageType.REQUEST, MessageType.PROBE})
"""Types whose claim is the sender's own."""
LOG_LINES = 400


@dataclass(frozen=True)
class Faults:
    """What the network does to each copy of a message. Random delays reorder."""

    loss: float = 0.0
    duplicate: float = 0.0
    delay_s: tuple[float, float] = (0.0001, 0.001)
    late: float = 0.0  # share of messages that come up to late_s later
    late_s: float = 2.0


@dataclass(frozen=True)
class Guest:
    """A guest NIC as its domain XML says. Two guests may want one address."""

    address: Address
    vmac: Mac
    guest_id: int

    def __str__(self) -> str:
        return f"{address_text(self.address)}#{self.guest_id}"


@dataclass
class Frame:
    """A data frame between two guests, or a copy of one that arrived. `fate` is set exactly once."""

    number: int
    source: Address
    target: Address
    origin: "Frame | None" = None
    fate: str | None = None
    delivered: bool = False


@dataclass
class Host:
    """A server: what libvirt runs, the agent (None while it is down), the registry and its older states."""

    pmac: Mac
    skew_us: int
    number: int
    powered: bool = True
    agent: Discovery | None = None
    ready: bool = False
    running: dict[Address, Guest] = field(default_factory=dict)
    registry: tuple[list[Record], int] = field(default_factory=lambda: ([], 0))
    backups: list[tuple[list[Record], int]] = field(default_factory=list)
    tentative: dict[Address, Guest] = field(default_factory=dict)
    accepted: dict[Address, tuple[int, Mac]] = field(default_factory=dict)  # of this session: invariant 3
    pending: dict[int, Frame] = field(default_factory=dict)  # frames that the agent holds
    side: int = 0  # of a partition


class InvariantError(AssertionError):
    """A rule of the protocol is broken."""


class World:
    """Hosts, network, clock. All randomness comes from one seed."""

    def __init__(
        self,
        seed: int,
        hosts: int,
        limits: Limits | None = None,
        faults: Faults | None = None,
        skew_s: float = 0.0,
        lean: bool = False,
    ) -> None:
        """lean: for big worlds. No log, no checks at every step; announcements reach only those whom they concern."""
        self.seed = seed
        self.rng = random.Random(seed)
        self.limits = limits or Limits()
        self.faults = faults or Faults()
        self.plan = AddressPlan()
        self.now = 1000.0
        self.log: deque[tuple[object, ...]] = deque(maxlen=LOG_LINES)
        self.sent: Counter[MessageType] = Counter()
        self.sent_by_host: Counter[Mac] = Counter()
        self.woken_by_host: Counter[Mac] = Counter()
        self.fates: Counter[str] = Counter()
        self.watch: Callable[[Message], None] = lambda message: None
        self.lean = lean
        self._frames = 0
        self._serial = 0
        self._queue: list[tuple[float, int, Callable[[], None]]] = []
        self._timers: list[tuple[float, int]] = []
        self._timer_of: dict[int, float] = {}
        self._members: defaultdict[Mac, Counter[int]] = defaultdict(Counter)  # group: ports by host number
        self._concerned: defaultdict[Address, set[int]] = defaultdict(set)  # lean: hosts that ever had an entry
        self.addresses: set[Address] = set()  # all that ever ran
        self.hosts = [
            Host(bytes((0x52, 0x54, 0, 0xEE, n >> 8, n & 255)), int(self.rng.uniform(-skew_s, skew_s) * 1e6), n)
            for n in range(hosts)
        ]
        self._by_pmac = {host.pmac: host for host in self.hosts}
        for host in self.hosts:
            self.boot_agent(host)

    # --- what an operator, libvirt or bad luck does

    def boot_agent(self, host: Host, reconcile_s: float = 0.0) -> None:
        """The agent starts: restores its registry, and after reconcile_s knows what libvirt runs."""
        self.note("agent starts", host)
        rng = random.Random(self.rng.getrandbits(64))
        wall_us = 1_700_000_000_000_000 + host.skew_us
        host.agent = agent = Discovery(host.pmac, self.plan, rng, wall_us, self.limits)
        host.ready = False
        host.accepted.clear()
        records, highest = host.registry
        agent.restore(records, highest)

        def reconciled() -> None:
            if host.agent is not agent:
                return
            self.note("agent has reconciled", host)
            for guest in host.running.values():
                agent.reclaim(guest.address, guest.vmac, guest.guest_id, 0, self.now)
            host.ready = True
            agent.ready(self.now)
            self.after_call(host)

        if reconcile_s:
            self.at(self.now + reconcile_s, reconciled)
        else:
            reconciled()

    def kill_agent(self, host: Host) -> None:
        """kill -9: all that is not in the registry is lost, held frames too; guests run on."""
        self.note("agent dies", host)
        host.agent, host.ready = None, False
        host.tentative.clear()
        for frame in list(host.pending.values()):
            self._end(host, frame, "agent died")

    def lose_registry(self, host: Host) -> None:
        """Disk wiped."""
        self.note("registry lost", host)
        host.registry = ([], 0)

    def roll_back_registry(self, host: Host) -> None:
        """An older backup is played back."""
        if host.backups:
            host.registry = self.rng.choice(host.backups)
            self.note("registry rolled back", host)

    def start(self, guest: Guest, host: Host) -> Claim | None:
        """libvirt starts a guest."""
        self.note("start", guest, host)
        self._run_guest(guest, host)
        if host.agent is None:
            return None
        return self.activate(guest, host)

    def activate(self, guest: Guest, host: Host, identity: int = 0) -> Claim:
        """The agent claims a guest that runs: it started, its identity changed, or an operator lifts its fence."""
        self.note("activate", guest, host)
        assert host.agent is not None
        claim = host.agent.activate(guest.address, guest.vmac, guest.guest_id, identity, None, self.now)
        self.after_call(host)
        return claim

    def start_tentatively(self, guest: Guest, host: Host) -> None:
        """A guest starts whose address the agent has chosen: the port waits until nobody objects."""
        self.note("start tentatively", guest, host)
        assert host.agent is not None
        host.tentative[guest.address] = guest
        host.agent.tentative(guest.address, guest.vmac, guest.guest_id, 0, None, self.now)
        self.after_call(host)

    def stop(self, address: Address, host: Host) -> None:
        """libvirt has stopped a guest."""
        self.note("stop", address_text(address), host)
        del host.running[address]
        self._members[group_mac(self.subnet(address))].subtract((host.number,))
        if host.agent is not None:
            host.agent.withdraw(address, self.now)
            self.after_call(host)

    def power_off(self, host: Host) -> None:
        """The whole server, guests too, and nobody is told."""
        self.note("power off", host)
        if host.agent is not None:
            self.kill_agent(host)
        for address in list(host.running):
            self.stop(address, host)
        host.powered = False

    def power_on(self, host: Host) -> None:
        """The server boots, with no guests."""
        host.powered = True
        self.boot_agent(host)

    def partition(self, island: set[int]) -> None:
        """Hosts with these numbers hear each other only."""
        self.note("partition", sorted(island))
        for host in self.hosts:
            host.side = int(host.number in island)

    def heal(self) -> None:
        """One network again."""
        self.note("heal")
        for host in self.hosts:
            host.side = 0

    def calm(self) -> None:
        """All faults end: one network without loss, every server and agent is up."""
        self.note("calm")
        self.heal()
        self.faults = Faults()
        for host in self.hosts:
            if not host.powered:
                self.power_on(host)
            elif host.agent is None:
                self.boot_agent(host)

    # --- what guests do

    def talk(self, host: Host, source: Address, target: Address) -> Frame | None:
        """A guest of this host sends one frame. None where its port does not let it: no agent, or not active."""
        agent = host.agent
        if agent is None or not host.ready or agent.state(source) is not ClaimState.ACTIVE:
            return None
        self._frames += 1
        frame = Frame(self._frames, source, target)
        if agent.state(target) is ClaimState.ACTIVE:
            self._end(host, frame, "delivered")
            return frame
        host.pending[frame.number] = frame
        answer = agent.resolve(target, source[-1] or 1, source, self.now, frame)
        if isinstance(answer, Found):
            self._to_wire(host, frame, answer.claim.host)
        elif isinstance(answer, DropReason):
            self._end(host, frame, answer.name)
        self.after_call(host)
        return frame

    # --- the clock

    def at(self, when: float, action: Callable[[], None]) -> None:
        """Call action at a time."""
        self._serial += 1
        heapq.heappush(self._queue, (when, self._serial, action))

    def run(self, seconds: float) -> None:
        """Let time go on."""
        until = self.now + seconds
        while True:
            event = self._queue[0][0] if self._queue else until + 1
            timer = self._timers[0][0] if self._timers else until + 1
            if min(event, timer) > until:
                break
            self.now = max(self.now, min(event, timer))
            if event <= timer:
                heapq.heappop(self._queue)[2]()
            else:
                self._fire(*heapq.heappop(self._timers))
        self.now = until

    # --- checks

    def note(self, *what: object) -> None:
        """A line of the event log."""
        if not self.lean:
            self.log.append((self.now, *what))

    def fail(self, invariant: str, *what: object) -> None:
        """Stop, and show how it came to this."""
        lines = [f"{line[0]:.6f} " + " ".join(_text(part) for part in line[1:]) for line in self.log]
        raise InvariantError(
            "\n".join((f"invariant {invariant}: " + " ".join(_text(w) for w in what), f"seed {self.seed}", *lines))
        )

    def check_split_brain_is_over(self) -> None:
        """Invariant 6, one repeat interval after the last partition healed."""
        for address in self.addresses:
            free = [h for h in self.hosts if h.agent and h.agent.state(address) is ClaimState.ACTIVE]
            if len(free) > 1:
                self.fail("6", "still", len(free), "unfenced owners of", address_text(address), *free)

    def check_quiet(self) -> None:
        """Connected and quiet: one unfenced claim per address that runs, where it runs; all entries agree."""
        for address in self.addresses:
            runners = [h for h in self.hosts if address in h.running]
            free = [h for h in runners if h.agent and h.agent.state(address) is ClaimState.ACTIVE]
            if len(runners) == 1 and not free:
                self.fail("2", "a sole running guest is fenced", address_text(address), runners[0])
            if runners and len(free) != 1:
                self.fail("1, 6, 11", len(free), "unfenced owners of", address_text(address), *free)
            for host in self.hosts:
                agent = host.agent
                assert agent is not None
                entry = agent.neighbours.get(address)
                if runners and entry and entry.found and entry.found.claim.host != free[0].pmac:
                    self.fail("1", "entry of", host, "is", entry.found.claim, "and it runs on", free[0])
                if address not in host.running and agent.state(address) is not None:
                    self.fail("9", host, "keeps a claim of", address_text(address))

    def check_everybody_can_talk(self, patience_s: float = 40.0) -> None:
        """Every active endpoint reaches every other, if it keeps trying.

        Except a guest whose twin is fenced on the other's host: a source address that is fenced there is dropped there.
        """
        active = {a: h for h in self.hosts for a in h.running if h.agent and h.agent.state(a) is ClaimState.ACTIVE}
        missing = {
            (a, b) for a in active for b in active if a != b and (active[a] is active[b] or a not in active[b].running)
        }
        until = self.now + patience_s
        while missing and self.now < until:
            tried = [(pair, self.talk(active[pair[0]], *pair)) for pair in sorted(missing)]
            self.run(1.0)
            missing -= {pair for pair, frame in tried if frame and frame.delivered}
        if missing:
            self.fail("1", "never delivered:", sorted((address_text(a), address_text(b)) for a, b in missing))

    # --- inside

    def after_call(self, host: Host) -> None:
        """After every call: send, handle events, check."""
        agent = host.agent
        if agent is None:
            return
        for message in agent.messages_to_send():
            self._send(host, message)
        for event in agent.events():
            self._handle(host, event)
        if not self.lean:
            self._check_host(host)
        timer = agent.next_timer()
        if timer is not None and timer != self._timer_of.get(host.number):
            self._timer_of[host.number] = timer
            heapq.heappush(self._timers, (timer, host.number))

    def _fire(self, when: float, number: int) -> None:
        host = self.hosts[number]
        if self._timer_of.get(number) == when:
            del self._timer_of[number]
            if host.agent is not None:
                host.agent.on_timer(self.now)
                self.after_call(host)

    def _handle(self, host: Host, event: object) -> None:
        agent = host.agent
        assert agent is not None
        if isinstance(event, Released):
            for frame in event.items:
                assert isinstance(frame, Frame)
                self._to_wire(host, frame, event.claim.host)
        elif isinstance(event, Unreachable | SourceRefused | SourceConfirmed):
            fate = "delivered" if isinstance(event, SourceConfirmed) else event.reason.name
            for frame in event.items:
                assert isinstance(frame, Frame)
                self._end(host, frame, fate)
        elif isinstance(event, NeighbourChanged):
            self._concerned[event.address].add(host.number)
        elif isinstance(event, ClaimChanged) and not self.lean:
            host.backups = [*host.backups[-4:], host.registry]
            host.registry = (agent.records(), agent.highest_seen_stamp)
        elif isinstance(event, TentativeObjected):
            self.note("address refused", host, event.holder)
            del host.tentative[event.address]
        elif isinstance(event, TentativePassed):
            self._run_guest(host.tentative.pop(event.address), host)
            agent.confirm(event.address, self.now)
            self.after_call(host)

    def _end(self, host: Host, frame: Frame, fate: str) -> None:
        host.pending.pop(frame.number, None)
        if frame.fate is not None:
            self.fail("5", "frame", frame, "also ends as", fate)
        frame.fate = fate
        if fate == "delivered":
            frame.delivered = True
            if frame.origin is not None:
                frame.origin.delivered = True
        self.fates[fate] += 1

    def _to_wire(self, host: Host, frame: Frame, pmac: Mac) -> None:
        peer = self._by_pmac.get(pmac)
        if peer is None:
            self.fail("7", "frame for a host that does not exist", pmac)
            return
        self._end(host, frame, "sent")
        for copy in self._copies(host, peer):
            self.at(copy, lambda: self._from_wire(peer, host.pmac, frame))

    def _from_wire(self, host: Host, pmac: Mac, origin: Frame) -> None:
        agent = host.agent
        if agent is None or not host.ready:
            return
        if agent.state(origin.target) is not ClaimState.ACTIVE:
            agent.not_held(pmac, origin.target, self.now)
        else:
            self._frames += 1
            frame = Frame(self._frames, origin.source, origin.target, origin)
            host.pending[frame.number] = frame
            verdict = agent.check_source(pmac, frame.source, frame.target, self.now, frame)
            if verdict is Outcome.DELIVER:
                self._end(host, frame, "delivered")
            elif isinstance(verdict, DropReason):
                self._end(host, frame, verdict.name)
        self.after_call(host)

    def _send(self, host: Host, message: Message) -> None:
        self.sent[message.type] += 1
        self.sent_by_host[host.pmac] += 1
        self.watch(message)
        claim = message.claim
        if not host.ready or message.source != host.pmac:
            self.fail("9", "an unreconciled agent says", message)
        if claim is not None and message.type in OWN_CLAIMS and not claim.tentative:
            guest = host.running.get(claim.address)
            if claim.host != host.pmac or guest is None or guest.guest_id != claim.guest_id:
                self.fail("9", host, "claims what it does not run:", message)
            if host.agent and host.agent.state(claim.address) is ClaimState.FENCED:
                self.fail("9", host, "claims while fenced:", message)
        self.note("send", message)
        receivers = self._receivers(host, message)
        if self.lean:
            lucky = [r for r in receivers if self.rng.random() >= self.faults.loss]
            self.at(self.now + self.rng.uniform(*self.faults.delay_s), lambda: self._receive_all(lucky, message))
            return
        for receiver in receivers:
            for when in self._copies(host, receiver):
                self.at(when, lambda r=receiver: self._receive(r, message))  # type: ignore[misc]

    def _receive_all(self, receivers: list[Host], message: Message) -> None:
        for receiver in receivers:
            self._receive(receiver, message)

    def _receivers(self, sender: Host, message: Message) -> list[Host]:
        """Whose NIC and kernel let a message through to the agent."""
        destination, address = message.destination, message.tpa
        if not destination[0] & 1:
            host = self._by_pmac.get(destination)
            return [host] if host is not None else []
        if destination != ALL_HOSTS_GROUP:
            return [self.hosts[n] for n, ports in self._members[destination].items() if ports and n != sender.number]
        if self.lean and not self._concerned[address]:
            return []
        others = [h for h in self.hosts if h is not sender]
        if not self.lean:
            return others
        return [h for h in others if address in h.running or h.number in self._concerned[address]]

    def _run_guest(self, guest: Guest, host: Host) -> None:
        host.running[guest.address] = guest
        self._members[group_mac(self.subnet(guest.address))][host.number] += 1
        self.addresses.add(guest.address)

    def subnet(self, address: Address) -> SubnetId:
        """Of a virtual address."""
        subnet = self.plan.locate(address)
        assert subnet is not None
        return subnet

    def _copies(self, sender: Host, receiver: Host) -> list[float]:
        """When the copies of a message arrive: none if it is lost, two if it is duplicated."""
        if sender.side != receiver.side or not receiver.powered:
            return []
        faults = self.faults
        copies = []
        for _ in range(2 if self.rng.random() < faults.duplicate else 1):
            if self.rng.random() >= faults.loss:
                delay = self.rng.uniform(*faults.delay_s)
                if self.rng.random() < faults.late:
                    delay += self.rng.uniform(0, faults.late_s)
                copies.append(self.now + delay)
        return copies

    def _receive(self, host: Host, message: Message) -> None:
        if host.agent is None or not host.powered:
            return
        if host.side != self._by_pmac[message.source].side:
            return
        self.woken_by_host[host.pmac] += 1
        self.note("recv", host, message)
        host.agent.receive(message, self.now)
        self.after_call(host)

    def _check_host(self, host: Host) -> None:
        agent = host.agent
        assert agent is not None
        if len(host.pending) > self.limits.hold_total:
            self.fail("8", host, "holds", len(host.pending), "frames")
        if len(agent.neighbours) > self.limits.neighbours:
            self.fail("8", host, "has", len(agent.neighbours), "neighbours")
        for address in self.addresses:
            entry = agent.neighbours.get(address)
            if entry is None or entry.claim is None:
                continue
            before = host.accepted.get(address)
            if before is not None and entry.claim.order < before:
                self.fail("3", host, "falls back to", entry.claim, "from stamp", before[0])
            host.accepted[address] = entry.claim.order
        for claim in agent.claims():
            host.accepted[claim.address] = max(claim.order, host.accepted.get(claim.address, claim.order))


def _text(part: object) -> str:
    if isinstance(part, Host):
        return f"host {part.number}"
    if isinstance(part, bytes):
        return part.hex(":")
    if isinstance(part, Claim):
        kind = "tentative " if part.tentative else ""
        name = f"{kind}{address_text(part.address)}#{part.guest_id}"
        return f"({name} on {part.host[-1]} stamp {part.stamp} born {part.born})"
    if isinstance(part, Message):
        to = "all" if part.destination[0] & 1 else str(part.destination[-1])
        return f"{part.type.name} {part.source[-1]}->{to} {address_text(part.tpa)} {_text(part.claim)}"
    return str(part)
