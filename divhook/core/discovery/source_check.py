"""A frame from_wire must come from the host that holds its source address.

ROWS is the table of docs/protocol.md, first match. Invariant: a frame whose sending pmac has not confirmed the
source address to us is never delivered; what waits for that is bounded per pair, in pairs and in frames.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from enum import Enum, auto
from typing import NamedTuple

from divhook.core.addressing import Address, Mac
from divhook.core.discovery.events import Outcome, SourceConfirmed, SourceRefused, SourceVerdict, UnknownHost
from divhook.core.discovery.limits import HoldBudget, Spacing, TokenBucket
from divhook.core.discovery.resolve import Resolver
from divhook.core.discovery.seam import Question, Questions, Seam
from divhook.core.reasons import DropReason
from divhook.core.wire.discovery import Claim, Message, MessageType


class Facts(NamedTuple):
    """What decides: a = source address, p = sending pmac."""

    leaving: bool  # a is active here and about to move, and p is where it goes
    local: bool  # a is active or fenced here
    usable: bool  # there is a usable entry for a
    holder: bool  # ... and p is its host, or the next one by that host's word
    peer: bool  # p has authenticated to us


class Action(Enum):
    """What a row does."""

    DROP = auto()
    DELIVER = auto()  # and refresh the entry if it is stale
    CHALLENGE = auto()  # drop, nothing is held; p may be challenged
    PROBE = auto()  # hold, ask p: confirmed means learn and deliver, else drop


class Row(NamedTuple):
    """One case of the table. reason: of the drop."""

    case: str
    applies: Callable[[Facts], bool]
    action: Action
    reason: DropReason | None


ROWS = (
    Row("a is about to move from here, p is its next host", lambda f: f.leaving, Action.DELIVER, None),
    Row("a is active here, or fenced here", lambda f: f.local, Action.DROP, DropReason.SPOOF_LOCAL),
    Row("entry for a usable, p is its host or its `next`", lambda f: f.holder, Action.DELIVER, None),
    Row("p is no authenticated peer", lambda f: not f.peer, Action.CHALLENGE, DropReason.UNKNOWN_HOST),
    Row("entry usable, p differs", lambda f: f.usable, Action.PROBE, DropReason.SPOOF_SOURCE),
    Row("none, INCOMPLETE, FAILED, negative", lambda f: True, Action.PROBE, DropReason.UNVERIFIED),
)


def decide(facts: Facts) -> Row:
    """First row that applies."""
    return next(row for row in ROWS if row.applies(facts))


@dataclass(slots=True)
class Pair:
    """A source address and a pmac in question. reason: why its frames are dropped if it is refused."""

    reason: DropReason
    held: list[object] = field(default_factory=list)


class SourceChecks:
    """Pairs under way. `confirmed` and `local` are called by the other parts when they learn something."""

    def __init__(self, seam: Seam, questions: Questions, resolver: Resolver, hold: HoldBudget) -> None:
        self._seam = seam
        self._questions = questions
        self._resolver = resolver
        self._hold = hold
        limits = self._limits = seam.limits
        self._pairs: dict[tuple[Address, Mac], Pair] = {}
        self._spacing = Spacing(limits.pair_spacing_s, limits.spacings)
        self._probes = TokenBucket(limits.source_probes_per_s, limits.source_probes_per_s)
        self._challenged = Spacing(limits.challenge_spacing_s, limits.spacings)
        self._challenges = TokenBucket(limits.challenges_per_s, limits.challenges_per_s)

    def check(
        self,
        pmac: Mac,
        source: Address,
        target: Address,
        now: float,
        held: object,
        local: bool,
        leaving: bool,
        peer: bool,
    ) -> SourceVerdict:
        """The table of docs/protocol.md. See Discovery.check_source."""
        entry = self._resolver.table.get(source)
        found = entry.found if entry is not None else None
        holder = entry is not None and entry.speaks_from(pmac, now)
        row = decide(Facts(leaving, local, found is not None, holder, peer))
        if row.reason is None:
            if entry is not None and found is not None:
                entry.heard_s = now
                self._resolver.use(entry, now)
            return Outcome.DELIVER
        if row.action is Action.CHALLENGE:
            if self._challenges.available(now) and self._challenged.allow(pmac, now):
                self._challenges.take(now)
                self._seam.events.append(UnknownHost(pmac))
        elif row.action is Action.PROBE and self._seam.plan.assignable(source):
            return self._probe(pmac, source, target, now, held, row.reason)
        return row.reason

    def confirmed(self, claim: Claim, now: float) -> None:
        """A host confirmed its claim: frames from there may pass."""
        pair = self._end(claim.address, claim.host)
        if pair is not None:
            items = self._hold.drain(pair.held)
            self._seam.events.append(SourceConfirmed(claim.address, claim.host, items))

    def _probe(
        self, pmac: Mac, source: Address, target: Address, now: float, held: object, reason: DropReason
    ) -> SourceVerdict:
        pair = self._pairs.get((source, pmac))
        if pair is None:
            if len(self._pairs) >= self._limits.source_checks:
                return DropReason.HOLD_TABLE_FULL
            if not self._probes.available(now) or not self._spacing.allow((source, pmac), now):
                return reason
            self._probes.take(now)
            pair = self._pairs[source, pmac] = Pair(reason)
            key = ("source", source, pmac)
            self._questions.ask(key, source, pmac, self._answered, self._silent, now, target)
        return self._hold.add(pair.held, held) or Outcome.PENDING

    def _answered(self, question: Question, message: Message, now: float) -> None:
        claim = message.claim if message.type is MessageType.REPLY else None
        local = question.address in self._seam.active
        if claim is None or local or not self._resolver.heard(claim, now, install=True, matched=True):
            self._silent(question, now)

    def _silent(self, question: Question, now: float) -> None:
        pair = self._end(question.address, question.peer)
        if pair is not None:
            items = self._hold.drain(pair.held)
            self._seam.events.append(SourceRefused(question.address, question.peer, items, pair.reason))

    def _end(self, address: Address, pmac: Mac) -> Pair | None:
        pair = self._pairs.pop((address, pmac), None)
        if pair is not None:
            self._questions.close(("source", address, pmac))
        return pair
