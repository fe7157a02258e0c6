"""From an address to the host that holds it: the neighbour table, kept by questions and by what hosts announce.

Invariants: the accepted (stamp, pmac) of an entry never falls; a usable entry is never dropped for its age;
misses, held frames and the table itself stay within their Limits.
"""

from collections.abc import Callable

from divhook.core.addressing import Address, Mac, group_mac
from divhook.core.discovery.events import NeighbourChanged, Outcome, Released, Resolution, Unreachable
from divhook.core.discovery.limits import HoldBudget, TokenBucket
from divhook.core.discovery.seam import Question, Questions, Seam
from divhook.core.discovery.timers import Wheel
from divhook.core.neighbor import Found, Neighbour, NeighbourEvent, NeighbourState, NeighbourTable
from divhook.core.reasons import DropReason
from divhook.core.wire.discovery import Claim, Message, MessageType

_NEVER = float("inf")


class Resolver:
    """Owner of the neighbour table. `on_confirmed` is called with every claim that a host has just confirmed."""

    def __init__(self, seam: Seam, questions: Questions, hold: HoldBudget) -> None:
        self._seam = seam
        self._questions = questions
        self._hold = hold
        self._limits = seam.limits
        self.table = NeighbourTable(self._limits.neighbours)
        self.on_confirmed: Callable[[Claim, float], None] = lambda claim, now: None
        self.used_elsewhere: Callable[[Address], bool] = lambda address: False
        self.heard_elsewhere: Callable[[Address], bool] = lambda address: False
        self._wheel = Wheel(seam.timers, self._limits.tick_s, self._tick)
        self._host_misses = TokenBucket(self._limits.misses_per_s_host, self._limits.misses_per_s_host)
        self._port_misses: dict[int, TokenBucket] = {}  # at most one per port id: 65,535

    def resolve(self, address: Address, port: int, asker: Address, now: float, held: object) -> Resolution:
        """Who holds address? See Discovery.resolve."""
        entry = self.table.get(address)
        if entry is not None:
            if entry.found is not None:
                return self.use(entry, now)
            if entry.state is NeighbourState.INCOMPLETE:
                return self._hold.add(entry.held, held) or Outcome.PENDING
            if now < entry.retry_at_s:
                return DropReason.NEGATIVE_CACHED
        own = self._seam.active.get(address)
        if own is not None:
            return Found(own, NeighbourState.REACHABLE)
        subnet = self._seam.plan.locate(address)
        if subnet is None or not self._seam.plan.assignable(address):
            return DropReason.NO_SUCH_ENDPOINT
        refusal = self._miss(port, now)
        if refusal is not None:
            return refusal
        if entry is None:
            entry = self._add(address)
        entry.step(NeighbourEvent.USED)
        entry.asker = asker
        self.table.used(entry, now)
        entry.due_s = _NEVER
        outcome = self._hold.add(entry.held, held) or Outcome.PENDING
        self._questions.ask(
            ("resolve", address), address, group_mac(subnet), self._resolved, self._unresolved, now, asker
        )
        return outcome

    def use(self, entry: Neighbour, now: float) -> Found:
        """Note the use of a usable entry; its host is asked if the entry is stale."""
        self.table.used(entry, now)
        if entry.state is NeighbourState.STALE:
            self._refresh(entry, now)
        assert entry.found is not None
        return entry.found

    def heard(self, claim: Claim, now: float, install: bool = False, matched: bool = False) -> bool:
        """A host states its own claim. True where that is now the entry's claim, confirmed.

        install: make an entry where there is none. matched: it is the answer to a question of ours.
        A lower claim than the known one is answered with the known one (STALE).
        """
        entry = self.table.get(claim.address)
        if entry is None:
            if not install:
                return False
            entry = self._add(claim.address)
        known = entry.claim
        if known is not None:
            if claim.order < known.order:
                self._seam.tell(MessageType.STALE, claim.host, claim.address, known, now)
                return False
            if claim.order == known.order and entry.gone and not matched:
                return False
        entry.confirmed_s = now
        self._due(entry, now + self._lifetime_s())
        self._learn(entry, claim, NeighbourEvent.CONFIRMED)
        self.on_confirmed(claim, now)
        return True

    def hinted(self, claim: Claim, now: float) -> bool:
        """A third host names the holder. Believed if higher than what the entry has; asked if that is in use."""
        entry = self.table.get(claim.address)
        if entry is None or claim.host == self._seam.pmac or (entry.claim and claim.order <= entry.claim.order):
            return False
        in_use = bool(entry.held) or entry.used_s > now - self._limits.reachable_s
        entry.due_s = _NEVER
        self._learn(entry, claim, NeighbourEvent.HINTED)
        if in_use:
            self._refresh(entry, now)
        return True

    def not_here(self, message: Message, now: float, matched: bool = False) -> None:
        """MOVED or GONE: the sender says that it does not hold the address.

        Believed at once as an answer to a question, or where its claim is not lower than the entry's;
        otherwise (it may be late) the host is asked.
        """
        claim = message.claim
        if message.type is MessageType.MOVED and claim and claim.host != message.source and self.hinted(claim, now):
            return
        entry = self.table.get(message.tpa)
        if entry is None or entry.found is None or entry.found.claim.host != message.source:
            return
        known = entry.found.claim
        if matched or (claim and claim.host == message.source and claim.order >= known.order):
            entry.gone = True
            self._questions.close(("refresh", entry.address))
            self._fail(entry, NeighbourEvent.DENIED, now)
        elif entry.state is not NeighbourState.PROBE:
            self._refresh(entry, now)

    def prepare(self, claim: Claim, host: Mac, now: float) -> None:
        """The holder of an endpoint says that it is about to move to another host: frames from there pass, too."""
        entry = self.table.get(claim.address)
        if entry is None or entry.found is None or entry.found.claim.host != claim.host:
            return
        until_s = now + self._limits.next_s
        entry.next, entry.next_until_s = host, until_s
        self._seam.events.append(NeighbourChanged(entry.address, entry.claim, entry.state))
        self._seam.timers.set(("next", entry.address), until_s, lambda at: self._not_next(claim.address, until_s))

    def _not_next(self, address: Address, until_s: float) -> None:
        """It has not moved there in time."""
        entry = self.table.get(address)
        if entry is not None and entry.next is not None and entry.next_until_s <= until_s:
            entry.next = None
            self._seam.events.append(NeighbourChanged(entry.address, entry.claim, entry.state))

    def forget(self, address: Address) -> tuple[object, ...]:
        """Remove an entry. Frames that wait are given back; the caller says what becomes of them, or of none."""
        entry = self.table.remove(address)
        if entry is None:
            return ()
        self._questions.close(("resolve", address))
        self._questions.close(("refresh", address))
        self._seam.events.append(NeighbourChanged(address, entry.claim, None))
        return self._hold.drain(entry.held)

    def adopt(self, claim: Claim, now: float) -> bool:
        """A cache of our decisions still holds this claim, from before this start: as if heard, to be asked soon.

        Frames that have asked for it meanwhile are released. Whether the address can be sent to, by this claim or by
        the one that is known.
        """
        entry = self.table.get(claim.address) or self._add(claim.address)
        if entry.found is None and (entry.claim is None or (entry.claim.order <= claim.order and not entry.gone)):
            self._due(entry, now + self._limits.reachable_s * self._seam.rng.random())
            self._learn(entry, claim, NeighbourEvent.CONFIRMED)
        return entry.found is not None

    def retire(self, claim: Claim) -> None:
        """A claim of our own is given up: from now on it is the bar for the claims of others."""
        entry = self._add(claim.address)
        entry.claim = claim
        entry.gone = True

    def _miss(self, port: int, now: float) -> DropReason | None:
        bucket = self._port_misses.get(port)
        if bucket is None:
            rate = self._limits.misses_per_s_port
            bucket = self._port_misses[port] = TokenBucket(rate, rate)
        if not bucket.available(now):
            return DropReason.RESOLVE_RATE_PORT
        if not self._host_misses.take(now):
            return DropReason.RESOLVE_RATE_HOST
        bucket.take(now)
        return None

    def _add(self, address: Address) -> Neighbour:
        entry = self.table.add(address)
        victim = self.table.overflow()
        if victim is not None:
            items = self.forget(victim.address)
            if items:
                self._seam.events.append(Unreachable(victim.address, items, DropReason.HOLD_TABLE_FULL))
        return entry

    def _learn(self, entry: Neighbour, claim: Claim, event: NeighbourEvent) -> None:
        before, waited = entry.found, entry.state is NeighbourState.INCOMPLETE
        if claim != entry.claim:
            entry.next = None
        entry.claim = claim
        entry.gone = False
        entry.negative_s = 0.0
        entry.step(event)
        self._questions.close(("resolve", entry.address))
        self._questions.close(("refresh", entry.address))
        if before is None or before.claim != claim:
            self._seam.events.append(NeighbourChanged(entry.address, claim, entry.state))
        if waited:
            self._seam.events.append(Released(entry.address, claim, self._hold.drain(entry.held)))

    def _refresh(self, entry: Neighbour, now: float) -> None:
        assert entry.claim is not None
        entry.step(NeighbourEvent.USED)
        key = ("refresh", entry.address)
        host = entry.claim.host
        wait_s = self._limits.refresh_interval_s
        self._questions.ask(key, entry.address, host, self._refreshed, self._unanswered, now, entry.asker, wait_s)

    def _lifetime_s(self) -> float:
        return self._limits.reachable_s * (1 - self._limits.reachable_jitter * self._seam.rng.random())

    def _due(self, entry: Neighbour, when: float) -> None:
        entry.due_s = when
        if when < entry.queued_s:
            entry.queued_s = when
            self._wheel.add(entry.address, when)

    def _tick(self, address: Address, now: float) -> None:
        """Lifetime of a REACHABLE entry is over, or the memory of a FAILED one; or it has got a later end since."""
        entry = self.table.get(address)
        if entry is None:
            return
        entry.queued_s = _NEVER
        if entry.due_s > now:
            if entry.due_s < _NEVER:
                self._due(entry, entry.due_s)
        elif entry.state is NeighbourState.FAILED:
            self.forget(entry.address)
        elif entry.state is NeighbourState.REACHABLE:
            if self.used_elsewhere(address):
                self.table.used(entry, now)
            if entry.used_s > entry.confirmed_s:
                self._refresh(entry, now)
            else:
                entry.step(NeighbourEvent.IDLE)
                self._seam.events.append(NeighbourChanged(entry.address, entry.claim, entry.state))

    def _resolved(self, question: Question, message: Message, now: float) -> None:
        if message.type is MessageType.REPLY and message.claim is not None:
            self.heard(message.claim, now, matched=True)

    def _refreshed(self, question: Question, message: Message, now: float) -> None:
        if message.type is MessageType.REPLY and message.claim is not None:
            self.heard(message.claim, now, matched=True)
        else:
            self.not_here(message, now, matched=True)

    def _unanswered(self, question: Question, now: float) -> None:
        entry = self.table.get(question.address)
        assert entry is not None
        asked_s = self._limits.probe_count * self._limits.refresh_interval_s
        if entry.heard_s > now - asked_s or self.heard_elsewhere(entry.address):
            entry.step(NeighbourEvent.HEARD)
            self._due(entry, now + self._lifetime_s())
        else:
            self._fail(entry, NeighbourEvent.SILENT, now)

    def _fail(self, entry: Neighbour, event: NeighbourEvent, now: float) -> None:
        """A usable entry fails: the next frame asks the group at once."""
        entry.step(event)
        entry.retry_at_s = now
        entry.due_s = _NEVER
        self._seam.events.append(NeighbourChanged(entry.address, entry.claim, entry.state))

    def _unresolved(self, question: Question, now: float) -> None:
        entry = self.table.get(question.address)
        assert entry is not None
        entry.step(NeighbourEvent.SILENT)
        entry.negative_s = min(max(entry.negative_s * 2, self._limits.negative_first_s), self._limits.negative_max_s)
        entry.retry_at_s = now + entry.negative_s
        if entry.claim is None:
            self._due(entry, entry.retry_at_s + self._limits.negative_memory_s)
        items = self._hold.drain(entry.held)
        self._seam.events.append(Unreachable(entry.address, items, DropReason.NO_SUCH_ENDPOINT))
