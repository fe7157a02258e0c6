"""Discovery: the state machine of one host, without IO.

The shell calls receive(message, now) and on_timer(now) when next_timer() has come, and after every call takes
messages_to_send() and events(). Messages come in authenticated (core/auth.py) and go out to be sealed.

        asker                                     holder
          │ REQUEST to the subnet's group (nonce) ──▶ │ installs the asker's claim
          │ ◀────────────────── REPLY (claim, nonce)  │
          │ PROBE, unicast (nonce) ─────────────────▶ │ or whoever was thought to be it
          │ ◀───────── REPLY, or MOVED, or GONE       │

Only a ready host answers, and says REPLY only for an address that is active and unfenced here.
"""

from collections import OrderedDict
from collections.abc import Callable, Iterable
from dataclasses import replace

from divhook.core.addressing import Address, AddressPlan, Mac
from divhook.core.discovery.claims import Claims, ClaimState, Record
from divhook.core.discovery.events import Event, Resolution, SourceVerdict
from divhook.core.discovery.limits import HoldBudget, Limits
from divhook.core.discovery.resolve import Resolver
from divhook.core.discovery.seam import Questions, Random, Seam
from divhook.core.discovery.source_check import SourceChecks
from divhook.core.neighbor import NeighbourTable
from divhook.core.wire.discovery import Claim, Message, MessageType


class Discovery:
    """One host's discovery. Times are monotonic seconds; addresses and MACs are bytes in network order.

    pmac: MAC of the uplink. wall_offset_us: what to add to now, in microseconds, for the wall clock; it may be wrong.
    rng: jitter and nonces (random.SystemRandom() in production).
    """

    def __init__(
        self, pmac: Mac, plan: AddressPlan, rng: Random, wall_offset_us: int, limits: Limits | None = None
    ) -> None:
        self.limits = limits or Limits()
        self._seam = seam = Seam(pmac, plan, rng, wall_offset_us, self.limits)
        hold = self._hold = HoldBudget(self.limits.hold_per_destination, self.limits.hold_total)
        self._questions = Questions(seam)
        self._resolver = Resolver(seam, self._questions, hold)
        self._checks = SourceChecks(seam, self._questions, self._resolver, hold)
        self._claims = Claims(seam, self._questions, self._resolver)
        self._resolver.on_confirmed = self._checks.confirmed
        self._peers: OrderedDict[Mac, None] = OrderedDict()

    # --- what runs here

    def restore(self, records: Iterable[Record], highest_seen_stamp: int) -> None:
        """Give back what the registry has of `records` and `highest_seen_stamp`, before `activate` or `reclaim`."""
        self._seam.stamps.observe(highest_seen_stamp)
        self._claims.restore(records)

    def ready(self, now: float) -> None:
        """The agent has reconciled with libvirt: all claims are announced. Before this nothing is said or answered."""
        if not self._seam.ready:
            self._seam.ready = True
            self._claims.start(now)

    def activate(
        self, address: Address, vmac: Mac, guest_id: int, identity: int, born: int | None, now: float
    ) -> Claim:
        """A guest starts, resumes, or changes its identity here: a claim with a new stamp, announced three times.

        On a fenced address it lifts the fence: for resumes and for the operator. born: from the registry; None takes
        the remembered one of the same guest, else the new stamp. Raises ValueError where another guest has the address.
        """
        return self._claims.activate(address, vmac, guest_id, identity, born, now)

    def take(self, address: Address, vmac: Mac, guest_id: int, identity: int, now: float) -> Claim:
        """A guest takes an address that moves between endpoints: a new stamp, announced, whoever had it before.

        From then on it is given up (Yielded) as soon as another host announces a higher claim. Raises ValueError where
        the address is a guest's own.
        """
        return self._claims.take(address, vmac, guest_id, identity, now)

    def claim(self, address: Address) -> Claim | None:
        """The active, unfenced claim of this host on an address."""
        return self._seam.active.get(address)

    def reclaim(self, address: Address, vmac: Mac, guest_id: int, identity: int, now: float) -> Claim:
        """A restarted agent finds the guest running: the restored claim and fence again; a new claim if there is none.

        A claim that is restored keeps its stamp, for a restart of an agent says nothing on which of two hosts runs the
        guest by right; if others know a higher one, they say so.
        """
        return self._claims.reclaim(address, vmac, guest_id, identity, now)

    def tentative(
        self, address: Address, vmac: Mac, guest_id: int, identity: int, born: int | None, now: float
    ) -> None:
        """Ask the subnet whether anybody objects to this address: TentativePassed after 0.6 s, or TentativeObjected.

        Raises ValueError where a guest of this host has the address.
        """
        self._claims.tentative(address, vmac, guest_id, identity, born, now)

    def confirm(self, address: Address, now: float) -> Claim:
        """Make a tentative address active. Raises ValueError where it is not tentative (any more)."""
        return self._claims.confirm(address, now)

    def withdraw(self, address: Address, now: float, gone: bool = True) -> None:
        """The guest is not here any more. gone: tell all hosts, three times. Unknown addresses are ignored."""
        self._claims.withdraw(address, now, gone)

    def moved_out(self, address: Address, claim: Claim, now: float) -> None:
        """The guest runs at another host, which says so itself: its claim is believed at once, and ours is given up."""
        self._claims.withdraw(address, now, gone=False)
        if self._seam.acceptable(claim):
            self._seam.stamps.observe(claim.stamp)
            self._resolver.heard(claim, now, install=True)

    def leaving(self, address: Address, host: Mac | None, talkers: Iterable[Mac], now: float) -> None:
        """The guest is about to move to a host, which has its port: frames of it from there pass. None: it stays.

        talkers: hosts that have to do with it; each is told (PREPARE) until it says so (PREPARED), three times at most.
        """
        self._claims.leaving(address, host, talkers, now)

    def next_of(self, address: Address) -> Mac | None:
        """Where an endpoint of this host, or a neighbour, is about to move."""
        local = self._claims.get(address)
        if local is not None:
            return local.next
        entry = self._resolver.table.get(address)
        return entry.next if entry is not None else None

    def observe(self, claim: Claim) -> None:
        """A claim that was handed over: the next stamp of ours is above it."""
        if self._seam.acceptable(claim):
            self._seam.stamps.observe(claim.stamp)

    def carrier_up(self, now: float) -> None:
        """The uplink has its carrier back: all claims are repeated within a second."""
        self._claims.carrier_up(now)

    def state(self, address: Address) -> ClaimState | None:
        """State of a local endpoint; None where it is none."""
        local = self._claims.get(address)
        return local.state if local is not None else None

    def claims(self) -> list[Claim]:
        """The active, unfenced claims of this host."""
        return list(self._seam.active.values())

    def records(self) -> list[Record]:
        """What the registry should keep; changes are announced by ClaimChanged."""
        return self._claims.records()

    @property
    def highest_seen_stamp(self) -> int:
        """To be kept in the registry, now and then."""
        return self._seam.stamps.highest

    # --- the pipeline asks

    @property
    def neighbours(self) -> NeighbourTable:
        """The neighbour table, to read."""
        return self._resolver.table

    def resolve(self, address: Address, port: int, asker: Address, now: float, held: object = None) -> Resolution:
        """Which host holds a virtual address? On behalf of a port and its endpoint's address (zero: the router).

        Found: send now. Outcome.PENDING: held is kept and comes back in Released or Unreachable (None is not kept, but
        the event comes all the same). A DropReason: held is not kept.
        """
        return self._resolver.resolve(address, port, asker, now, held)

    @property
    def used_elsewhere(self) -> Callable[[Address], bool]:
        """Asked when the lifetime of an entry ends: has a cache of our decisions used it since it was last asked?"""
        return self._resolver.used_elsewhere

    @used_elsewhere.setter
    def used_elsewhere(self, function: Callable[[Address], bool]) -> None:
        self._resolver.used_elsewhere = function

    @property
    def heard_elsewhere(self) -> Callable[[Address], bool]:
        """The same, asked when a host is silent: whether frames of the address have come from there lately."""
        return self._resolver.heard_elsewhere

    @heard_elsewhere.setter
    def heard_elsewhere(self, function: Callable[[Address], bool]) -> None:
        self._resolver.heard_elsewhere = function

    def adopt(self, claim: Claim, now: float) -> bool:
        """A cache of our decisions still holds this claim, from before this start.

        The entry is usable at once, and its host is asked within a lifetime if it is in use. False where the address
        cannot be sent to; true with another claim in the table where that is known to be better.
        """
        mine = claim.host == self._seam.pmac or self._claims.get(claim.address) is not None
        if mine or not self._seam.acceptable(claim):
            return False
        self._seam.stamps.observe(claim.stamp)
        return self._resolver.adopt(claim, now)

    def check_source(
        self, pmac: Mac, source: Address, target: Address, now: float, held: object = None
    ) -> SourceVerdict:
        """May a frame from pmac with this virtual source address reach the local target? Table: docs/protocol.md.

        Outcome.DELIVER; Outcome.PENDING: held comes back in SourceConfirmed or SourceRefused; else the drop reason.
        """
        local = self._claims.get(source)
        here = local is not None and local.state is not ClaimState.TENTATIVE
        leaving = local is not None and local.state is ClaimState.ACTIVE and local.next == pmac
        return self._checks.check(pmac, source, target, now, held, here, leaving, pmac in self._peers)

    def known_peer(self, pmac: Mac) -> None:
        """A host that had proved itself before this start: its data frames are held and asked about, not refused."""
        self._peers[pmac] = None
        self._peers.move_to_end(pmac)
        if len(self._peers) > self.limits.peers:
            self._peers.popitem(last=False)

    def forget_peer(self, pmac: Mac) -> None:
        """The host lost its key: its data frames are a stranger's from now on, where no entry names it."""
        self._peers.pop(pmac, None)

    def not_held(self, pmac: Mac, address: Address, now: float) -> None:
        """A frame from pmac came for an address that is not active here: tell that host, if it is a peer."""
        if pmac in self._peers and address not in self._seam.active:
            kind, claim = self._elsewhere(address)
            self._seam.tell(kind, pmac, address, claim, now)

    # --- IO

    def receive(self, message: Message, now: float) -> None:
        """An authenticated message. Types that are not discovery's own (challenges, census) only show a peer."""
        if message.source == self._seam.pmac:
            return
        self.known_peer(message.source)
        claim = message.claim
        if claim is not None:
            if not self._seam.acceptable(claim):
                return
            self._seam.stamps.observe(claim.stamp)
        if not self._seam.ready:
            return
        if message.type in (MessageType.REQUEST, MessageType.PROBE):
            self._asked(message, now)
        elif message.type in (MessageType.REPLY, MessageType.ANNOUNCE):
            self._stated(message, now)
        elif message.type in (MessageType.MOVED, MessageType.GONE):
            question = self._questions.match(message)
            if question is not None:
                question.on_answer(question, message, now)
            else:
                self._claims.gone(message, now)
                self._resolver.not_here(message, now)
        elif message.type is MessageType.PREPARE:
            self._prepare(message, now)
        elif message.type is MessageType.PREPARED:
            question = self._questions.match(message)
            if question is not None and question.kind is MessageType.PREPARE:
                question.on_answer(question, message, now)
        elif message.type is MessageType.STALE and claim is not None and not self._claims.told(claim, now):
            self._resolver.hinted(claim, now)

    def messages_to_send(self) -> list[Message]:
        """Messages since the last call, in order."""
        messages, self._seam.messages = self._seam.messages, []
        return messages

    def events(self) -> list[Event]:
        """Events since the last call, in order."""
        events, self._seam.events = self._seam.events, []
        return events

    def next_timer(self) -> float | None:
        """When on_timer wants to be called."""
        return self._seam.timers.next()

    def on_timer(self, now: float) -> None:
        """Do what is due. Early calls do no harm."""
        self._seam.timers.run(now)

    # --- inside

    def _prepare(self, message: Message, now: float) -> None:
        """PREPARE: the host that holds an endpoint names the one that it will be on."""
        claim, host = message.claim, message.payload
        if claim is None or claim.tentative or (claim.host, claim.address) != (message.source, message.tpa):
            return
        if len(host) != 6 or host[0] & 1 or host in (self._seam.pmac, message.source):
            host = b""
        if not self._claims.stated(claim, now) and self._resolver.heard(claim, now) and host:
            self._resolver.prepare(claim, host, now)
        answer = Message(MessageType.PREPARED, self._seam.pmac, message.source, message.spa, message.tpa)
        self._seam.send(replace(answer, nonce=message.nonce))

    def _asked(self, message: Message, now: float) -> None:
        """REQUEST or PROBE: install the asker's mapping, then answer."""
        claim = self._seam.active.get(message.tpa)
        own = message.claim
        if (
            own is not None
            and own.host == message.source
            and own.address in (message.spa, message.tpa)
            and not self._claims.stated(own, now)
            and not own.tentative
        ):
            self._resolver.heard(own, now, install=claim is not None)
        kind = MessageType.REPLY
        if claim is None:
            if message.type is MessageType.REQUEST:
                return
            kind, claim = self._elsewhere(message.tpa)
        self._seam.send(Message(kind, self._seam.pmac, message.source, message.spa, message.tpa, claim, message.nonce))

    def _stated(self, message: Message, now: float) -> None:
        """REPLY or ANNOUNCE: a host states its claim."""
        claim = message.claim
        if claim is None or claim.host != message.source or claim.address != message.tpa or claim.tentative:
            return
        question = self._questions.match(message) if message.type is MessageType.REPLY else None
        if question is not None:
            question.on_answer(question, message, now)
        elif not self._claims.stated(claim, now):
            self._resolver.heard(claim, now)

    def _elsewhere(self, address: Address) -> tuple[MessageType, Claim | None]:
        """What to say of an address that is not active here."""
        local = self._claims.get(address)
        if local is not None and local.owner is not None:
            return MessageType.MOVED, local.owner
        entry = self._resolver.table.get(address)
        if entry is not None and entry.found is not None:
            return MessageType.MOVED, entry.found.claim
        return MessageType.GONE, self._claims.former(address)
