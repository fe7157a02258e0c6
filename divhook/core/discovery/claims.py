"""The claims of this host: made, announced, defended, fenced, given up.

    start ─▶ ACTIVE: ANNOUNCE, three times, then every ten minutes
    a receiver that knows a higher claim returns it (STALE), or its host announces it:
        it is our own, from before        ─▶ take a stamp above it
        within the first 0.6 s of a start,
        and it is the same guest          ─▶ take a stamp above it: a start is newer than anything that is cached
        else ask its host, three times:
            it holds the address          ─▶ FENCED; but where another guest has it and ours was born earlier,
                                             take a stamp above it
            it does not, or is silent     ─▶ take a stamp above it
    an address that moves between endpoints (`take`): not FENCED, but given up to the higher claim of another host,
    at its announcement; on hearsay, once that host has said so itself
    FENCED: ask the owner every ten seconds; when it does not hold the address any more ─▶ ACTIVE, with a new stamp

Invariants: no claim before the agent has reconciled; a claim above our own is never fenced on hearsay, only on its
host's own answer; of two hosts the one with the higher confirmed claim stays unfenced.
"""

from collections import OrderedDict
from collections.abc import Iterable
from dataclasses import dataclass, replace
from enum import Enum, auto
from itertools import islice

from divhook.core.addressing import ALL_HOSTS_GROUP, ZERO_ADDRESS, Address, Mac, address_text, group_mac
from divhook.core.discovery.events import (
    ClaimChanged,
    Fenced,
    Released,
    TentativeObjected,
    TentativePassed,
    Unfenced,
    Yielded,
)
from divhook.core.discovery.resolve import Resolver
from divhook.core.discovery.seam import Question, Questions, Seam
from divhook.core.discovery.timers import Action
from divhook.core.transitions import TransitionTable
from divhook.core.wire.discovery import Claim, Message, MessageType


class ClaimState(Enum):
    """What a local endpoint's claim is good for."""

    TENTATIVE = auto()  # chosen, not confirmed: defended against other tentative ones only
    ACTIVE = auto()
    FENCED = auto()  # another host holds it


class ClaimEvent(Enum):
    """What can happen to it."""

    CONFIRMED = auto()  # nobody objected
    RENEWED = auto()  # a new stamp
    OUTRANKED = auto()  # the host of a better claim says that it holds the address
    FREED = auto()  # that host does not any more; or the operator, or a resume, says so


_S, _E = ClaimState, ClaimEvent
CLAIM_TRANSITIONS: TransitionTable[ClaimState, ClaimEvent] = TransitionTable(
    {
        _S.TENTATIVE: {_E.CONFIRMED: _S.ACTIVE},
        _S.ACTIVE: {_E.RENEWED: _S.ACTIVE, _E.OUTRANKED: _S.FENCED},
        _S.FENCED: {_E.OUTRANKED: _S.FENCED, _E.FREED: _S.ACTIVE},
    }
)


@dataclass(frozen=True, slots=True)
class Record:
    """What the registry keeps of a claim: also of withdrawn ones, for their `born` and for GONE."""

    claim: Claim
    fenced_by: Claim | None = None


@dataclass(slots=True)
class LocalClaim:
    """One endpoint of this host. left: announcements still to make at the short interval."""

    claim: Claim
    state: ClaimState
    owner: Claim | None = None  # FENCED: who holds it
    hear_until_s: float = float("-inf")
    left: int = 0
    next: Mac | None = None  # where its guest is about to move
    shared: bool = False  # it moves between endpoints: whoever takes it last has it, and nobody is fenced

    def step(self, event: ClaimEvent) -> None:
        """Move along the table. Raises TransitionError."""
        self.state = CLAIM_TRANSITIONS.next(self.state, event)


class Claims:
    """Local endpoints by address. Their number is bounded by the ports of the host."""

    def __init__(self, seam: Seam, questions: Questions, resolver: Resolver) -> None:
        self._seam = seam
        self._questions = questions
        self._resolver = resolver
        self._limits = seam.limits
        self._local: dict[Address, LocalClaim] = {}
        self._former: OrderedDict[Address, Record] = OrderedDict()
        self.get = self._local.get

    # --- the shell says what runs here

    def restore(self, records: Iterable[Record]) -> None:
        """What the registry has kept. None of it is claimed until `activate` or `reclaim`."""
        for record in records:
            self._seam.stamps.observe(record.claim.stamp)
            self._remember(record)

    def records(self) -> list[Record]:
        """What the registry should keep."""
        running = [Record(c.claim, c.owner) for c in self._local.values() if c.state is not ClaimState.TENTATIVE]
        return [*self._former.values(), *running]

    def start(self, now: float) -> None:
        """The agent has reconciled: everything that was activated until now is announced."""
        for address in self._local:
            self._begin(address, now)

    def activate(
        self, address: Address, vmac: Mac, guest_id: int, identity: int, born: int | None, now: float
    ) -> Claim:
        """See Discovery.activate."""
        local = self._local.get(address)
        if local is not None and (local.claim.vmac, local.claim.guest_id) != (vmac, guest_id):
            raise ValueError(f"{address_text(address)} is held by another guest of this host")
        if local is None:
            local = self._local[address] = self._new(address, vmac, guest_id, identity, born, now, ClaimState.ACTIVE)
        else:
            event = {_S.TENTATIVE: _E.CONFIRMED, _S.ACTIVE: _E.RENEWED, _S.FENCED: _E.FREED}[local.state]
            local.claim = replace(local.claim, identity=identity, tentative=False)
            self._questions.close(("tentative", address))
            if local.state is ClaimState.FENCED:
                self._seam.events.append(Unfenced(address))
            local.step(event)
        local.hear_until_s = now + self._limits.hear_s
        self._renew(local, now)
        return local.claim

    def take(self, address: Address, vmac: Mac, guest_id: int, identity: int, now: float) -> Claim:
        """See Discovery.take."""
        local = self._local.get(address)
        if local is not None and not local.shared:
            raise ValueError(f"{address_text(address)} is a guest's own address")
        if local is not None:
            del self._local[address]
            self._remember(Record(local.claim))
        local = self._local[address] = self._new(address, vmac, guest_id, identity, None, now, ClaimState.ACTIVE)
        local.shared = True
        local.hear_until_s = now + self._limits.hear_s
        self._renew(local, now)
        return local.claim

    def reclaim(self, address: Address, vmac: Mac, guest_id: int, identity: int, now: float) -> Claim:
        """See Discovery.reclaim."""
        record = self._former.get(address)
        same = record is not None and (record.claim.vmac, record.claim.guest_id) == (vmac, guest_id)
        if record is None or not same or address in self._local:
            return self.activate(address, vmac, guest_id, identity, None, now)
        del self._former[address]
        claim = record.claim
        if (claim.identity, claim.host) != (identity, self._seam.pmac):
            stamp = self._seam.stamps.next(now)
            claim = replace(claim, identity=identity, host=self._seam.pmac, stamp=stamp)
        local = self._local[address] = LocalClaim(claim, ClaimState.ACTIVE)
        if record.fenced_by is not None:
            self._fence(local, record.fenced_by, now)
        else:
            self._take(local)
            self._begin(address, now)
        return claim

    def leaving(self, address: Address, host: Mac | None, talkers: Iterable[Mac], now: float) -> None:
        """See Discovery.leaving."""
        local = self._local.get(address)
        if local is None:
            return
        local.next = host
        if host is None or local.state is not ClaimState.ACTIVE:
            return
        for peer in islice(talkers, self._limits.prepared):
            self._questions.ask(
                ("prepare", address, peer),
                address,
                peer,
                self._prepared,
                lambda question, at: None,
                now,
                tentative=local.claim,
                kind=MessageType.PREPARE,
                payload=host,
            )

    def _prepared(self, question: Question, message: Message, now: float) -> None:
        self._questions.close(question.key)

    def tentative(
        self, address: Address, vmac: Mac, guest_id: int, identity: int, born: int | None, now: float
    ) -> None:
        """See Discovery.tentative."""
        if address in self._local:
            raise ValueError(f"{address_text(address)} is held by a guest of this host")
        self._local[address] = self._new(address, vmac, guest_id, identity, born, now, ClaimState.TENTATIVE)
        self._begin(address, now)

    def confirm(self, address: Address, now: float) -> Claim:
        """See Discovery.confirm."""
        local = self._local.get(address)
        if local is None or local.state is not ClaimState.TENTATIVE:
            raise ValueError(f"{address_text(address)} is not tentative")
        claim = local.claim
        return self.activate(address, claim.vmac, claim.guest_id, claim.identity, None, now)

    def withdraw(self, address: Address, now: float, gone: bool) -> None:
        """See Discovery.withdraw."""
        local = self._local.pop(address, None)
        if local is None:
            return
        self._seam.active.pop(address, None)
        for purpose in ("tentative", "verify", "fence"):
            self._questions.close((purpose, address))
        self._seam.timers.cancel(("claim", address))
        if local.state is not ClaimState.TENTATIVE:
            self._remember(Record(local.claim))
        if local.state is ClaimState.ACTIVE:
            self._resolver.retire(local.claim)
        if local.state is ClaimState.ACTIVE and gone:
            self._say_gone(local.claim, self._limits.announce_count, now)

    def carrier_up(self, now: float) -> None:
        """The uplink is back: repeat every claim soon."""
        for address, local in self._local.items():
            if local.state is ClaimState.ACTIVE and not local.left:
                when = now + self._limits.carrier_spread_s * self._seam.rng.random()
                self._seam.timers.set(("claim", address), when, self._announcer(local))

    # --- other hosts say something

    def former(self, address: Address) -> Claim | None:
        """The claim that this host made last on an address that it does not hold now."""
        record = self._former.get(address)
        return record.claim if record is not None and record.claim.host == self._seam.pmac else None

    def stated(self, claim: Claim, now: float) -> bool:
        """Another host states its own claim. True where that was on an active or tentative address of ours."""
        local = self._local.get(claim.address)
        if local is None:
            return False
        if local.state is ClaimState.TENTATIVE:
            self._object(local, claim, now)
        elif local.state is ClaimState.FENCED:
            assert local.owner is not None
            if not claim.tentative and claim.order > local.owner.order:
                self._outranked(local, claim)
            return False
        elif claim.tentative or claim.order < local.claim.order:
            self._seam.tell(MessageType.STALE, claim.host, claim.address, local.claim, now)
        elif local.shared:
            self._yield(local, claim, now)
        else:
            self._verify(local, claim, now)
        return True

    def told(self, claim: Claim, now: float) -> bool:
        """STALE: somebody knows this claim on an address. True where that address is ours."""
        local = self._local.get(claim.address)
        if local is None:
            return False
        if local.state is ClaimState.TENTATIVE:
            self._object(local, claim, now)
        elif local.state is ClaimState.ACTIVE and not claim.tentative and claim.order > local.claim.order:
            just_started = now < local.hear_until_s and (local.shared or claim.guest_id == local.claim.guest_id)
            if claim.host == self._seam.pmac or just_started:
                self._outbid(local, now)
            else:
                self._verify(local, claim, now)
        return local.state is not ClaimState.FENCED

    def gone(self, message: Message, now: float) -> None:
        """Unasked GONE or MOVED: if it comes from the owner of a fenced address, that one is free, or asked at once."""
        local = self._local.get(message.tpa)
        if local is None or local.owner is None or local.owner.host != message.source:
            return
        claim = message.claim
        if claim and claim.host == message.source and claim.order >= local.owner.order:
            self._free(local, now)
        elif self._questions.get(("fence", message.tpa)) is None:
            self._ask_owner(local, now)

    # --- inside

    def _new(
        self,
        address: Address,
        vmac: Mac,
        guest_id: int,
        identity: int,
        born: int | None,
        now: float,
        state: ClaimState,
    ) -> LocalClaim:
        former = self._former.pop(address, None)
        stamp = self._seam.stamps.next(now)
        if born is None:
            born = former.claim.born if former is not None and former.claim.guest_id == guest_id else stamp
        claim = Claim(
            address, vmac, self._seam.pmac, stamp, born, guest_id, identity, tentative=state is ClaimState.TENTATIVE
        )
        return LocalClaim(claim, state)

    def _remember(self, record: Record) -> None:
        self._former[record.claim.address] = record
        self._former.move_to_end(record.claim.address)
        if len(self._former) > self._limits.withdrawn:
            self._former.popitem(last=False)

    def _renew(self, local: LocalClaim, now: float) -> None:
        """Take a stamp above all that were seen, and announce it."""
        local.claim = replace(local.claim, stamp=self._seam.stamps.next(now))
        self._take(local)
        self._begin(local.claim.address, now)

    def _outbid(self, local: LocalClaim, now: float) -> None:
        local.step(ClaimEvent.RENEWED)
        self._renew(local, now)

    def _take(self, local: LocalClaim) -> None:
        """The local claim may be answered for from here on; what was believed of other hosts is void."""
        claim = local.claim
        local.owner = None
        self._seam.timers.cancel(("gone", claim.address))
        for purpose in ("verify", "fence"):
            self._questions.close((purpose, claim.address))
        self._seam.active[claim.address] = claim
        self._seam.events.append(ClaimChanged(claim.address, claim))
        items = self._resolver.forget(claim.address)
        if items:
            self._seam.events.append(Released(claim.address, claim, items))

    def _begin(self, address: Address, now: float) -> None:
        """Announce, or ask whether anybody objects, or ask the owner: from the beginning."""
        if not self._seam.ready:
            return
        local = self._local[address]
        if local.state is ClaimState.ACTIVE:
            local.left = self._limits.announce_count
            self._announce(local, now)
        elif local.state is ClaimState.FENCED:
            self._ask_owner(local, now)
        else:
            subnet = self._seam.plan.locate(address)
            assert subnet is not None
            self._questions.ask(
                ("tentative", address),
                address,
                group_mac(subnet),
                self._tentative_answered,
                self._tentative_silent,
                now,
                spa=address,
                tentative=local.claim,
            )

    def _announcer(self, local: LocalClaim) -> Action:
        return lambda at: self._announce(local, at)

    def _announce(self, local: LocalClaim, now: float) -> None:
        claim = local.claim
        self._seam.send(
            Message(MessageType.ANNOUNCE, self._seam.pmac, ALL_HOSTS_GROUP, ZERO_ADDRESS, claim.address, claim)
        )
        local.left = max(local.left - 1, 0)
        wait_s = (
            self._limits.announce_interval_s
            if local.left
            else self._seam.jittered(self._limits.repeat_s, self._limits.repeat_jitter)
        )
        self._seam.timers.set(("claim", claim.address), now + wait_s, self._announcer(local))

    def _say_gone(self, claim: Claim, left: int, now: float) -> None:
        self._seam.send(Message(MessageType.GONE, self._seam.pmac, ALL_HOSTS_GROUP, ZERO_ADDRESS, claim.address, claim))
        if left > 1:
            when = now + self._limits.announce_interval_s
            self._seam.timers.set(("gone", claim.address), when, lambda at: self._say_gone(claim, left - 1, at))

    def _object(self, local: LocalClaim, claim: Claim, now: float) -> None:
        """Two want one address, ours is tentative: a confirmed claim wins, else the older (born, pmac)."""
        ours = local.claim
        if claim.host == ours.host:
            return
        if claim.tentative and (ours.born, ours.host) < (claim.born, claim.host):
            self._seam.tell(MessageType.STALE, claim.host, claim.address, ours, now)
            return
        self.withdraw(claim.address, now, gone=False)
        self._seam.events.append(TentativeObjected(claim.address, claim))

    def _tentative_answered(self, question: Question, message: Message, now: float) -> None:
        if message.claim is not None and message.type is MessageType.REPLY:
            self._object(self._local[question.address], message.claim, now)

    def _tentative_silent(self, question: Question, now: float) -> None:
        self._seam.events.append(TentativePassed(question.address))

    def _verify(self, local: LocalClaim, rival: Claim, now: float) -> None:
        """A claim above ours is said to be: ask its host."""
        key = ("verify", rival.address)
        question = self._questions.get(key)
        if question is not None and question.about is not None and question.about.order >= rival.order:
            return
        self._questions.ask(key, rival.address, rival.host, self._verified, self._unverified, now, about=rival)

    def _verified(self, question: Question, message: Message, now: float) -> None:
        local = self._local[question.address]
        self._questions.close(question.key)
        rival = message.claim
        if message.type is not MessageType.REPLY or rival is None:
            self._unverified(question, now)
        elif rival.order < local.claim.order:
            self._seam.tell(MessageType.STALE, rival.host, rival.address, local.claim, now)
        elif local.shared:
            self._yield(local, rival, now)
        elif rival.guest_id == local.claim.guest_id or _older(rival, local.claim):
            self._fence(local, rival, now)
        else:
            self._outbid(local, now)

    def _unverified(self, question: Question, now: float) -> None:
        """Its host does not hold the address, or is silent."""
        local = self._local[question.address]
        if question.about is not None and question.about.order > local.claim.order:
            self._outbid(local, now)

    def _yield(self, local: LocalClaim, owner: Claim, now: float) -> None:
        """Another host's guest has taken the address after ours: it goes there from now on."""
        address = owner.address
        self.withdraw(address, now, gone=False)
        self._seam.events.append(Yielded(address, owner))
        self._resolver.heard(owner, now, install=True)

    def _fence(self, local: LocalClaim, owner: Claim, now: float) -> None:
        self._seam.active.pop(owner.address, None)
        self._outranked(local, owner)
        self._resolver.heard(owner, now, install=True)
        self._ask_owner_later(local, now)

    def _outranked(self, local: LocalClaim, owner: Claim) -> None:
        """Fenced, or fenced by another owner than before."""
        local.step(ClaimEvent.OUTRANKED)
        local.owner = owner
        self._seam.events += [Fenced(owner.address, owner), ClaimChanged(owner.address, local.claim)]

    def _ask_owner_later(self, local: LocalClaim, now: float) -> None:
        when = now + self._seam.jittered(self._limits.fence_probe_s, self._limits.repeat_jitter)
        self._seam.timers.set(("claim", local.claim.address), when, lambda at: self._ask_owner(local, at))

    def _ask_owner(self, local: LocalClaim, now: float) -> None:
        assert local.owner is not None
        address = local.claim.address
        self._ask_owner_later(local, now)
        silent = self._owner_silent
        self._questions.ask(("fence", address), address, local.owner.host, self._owner_answered, silent, now)

    def _owner_silent(self, question: Question, now: float) -> None:
        """It may be dead, or cut off with its guest alive: only the operator can know."""

    def _owner_answered(self, question: Question, message: Message, now: float) -> None:
        local = self._local[question.address]
        assert local.owner is not None
        self._questions.close(question.key)
        claim = message.claim
        if message.type is MessageType.REPLY and claim is not None:
            if claim.order > local.owner.order:
                self._outranked(local, claim)
            self._resolver.heard(claim, now, install=True)
        elif (
            message.type is MessageType.MOVED
            and claim is not None
            and claim.host not in (self._seam.pmac, message.source)
            and claim.order > local.owner.order
        ):
            self._outranked(local, claim)
            self._ask_owner(local, now)
        else:
            self._free(local, now)

    def _free(self, local: LocalClaim, now: float) -> None:
        local.step(ClaimEvent.FREED)
        self._renew(local, now)
        self._seam.events.append(Unfenced(local.claim.address))


def _older(one: Claim, other: Claim) -> bool:
    return (one.born, one.host) < (other.born, other.host)
