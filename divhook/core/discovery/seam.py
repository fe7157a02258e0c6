"""What the parts of discovery share: who and when we are, timers, and the two queues towards the shell."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Protocol

from divhook.core.addressing import ZERO_ADDRESS, Address, AddressPlan, Mac
from divhook.core.discovery.events import Event
from divhook.core.discovery.limits import MAX_STAMP, Limits, Spacing, TokenBucket
from divhook.core.discovery.timers import Timers
from divhook.core.wire.discovery import Claim, Message, MessageType


class Random(Protocol):
    """The part of random.Random that discovery needs; the shell gives a real or a seeded one."""

    def random(self) -> float:
        """Uniform in [0, 1)."""

    def getrandbits(self, k: int, /) -> int:
        """k random bits."""


class Stamps:
    """Hybrid logical clock: max(wall clock in microseconds, highest stamp seen) + 1. Works with any wall clock."""

    def __init__(self, wall_offset_us: int) -> None:
        self.wall_offset_us = wall_offset_us
        self.highest = 0

    def observe(self, stamp: int) -> None:
        """Note a stamp that somebody used."""
        self.highest = max(self.highest, stamp)

    def next(self, now: float) -> int:
        """A stamp above all that were seen."""
        self.highest = max(int(now * 1e6) + self.wall_offset_us, self.highest) + 1
        return self.highest


class Seam:
    """Shared by the parts. `active` holds the claims that may be answered for: unfenced, confirmed."""

    def __init__(self, pmac: Mac, plan: AddressPlan, rng: Random, wall_offset_us: int, limits: Limits) -> None:
        self.pmac = pmac
        self.plan = plan
        self.rng = rng
        self.limits = limits
        self.stamps = Stamps(wall_offset_us)
        self.timers = Timers()
        self.ready = False
        self.active: dict[Address, Claim] = {}
        self.messages: list[Message] = []
        self.events: list[Event] = []
        self._told = Spacing(limits.answer_spacing_s, limits.spacings)
        self._answers = TokenBucket(limits.answers_per_s, limits.answers_per_s)

    def send(self, message: Message) -> None:
        """Queue a message. An agent that has not reconciled is silent: nothing is queued then."""
        if self.ready:
            self.messages.append(message)

    def tell(self, kind: MessageType, peer: Mac, address: Address, claim: Claim | None, now: float) -> None:
        """Say something unasked to one host (MOVED, GONE, STALE), unless it was said a moment ago."""
        if self._answers.available(now) and self._told.allow((kind, peer, address), now):
            self._answers.take(now)
            self.send(Message(kind, self.pmac, peer, ZERO_ADDRESS, address, claim))

    def acceptable(self, claim: Claim) -> bool:
        """Whether a claim can be true at all: an endpoint's address, a stamp below the clock's end."""
        return claim.stamp < MAX_STAMP and claim.born < MAX_STAMP and self.plan.assignable(claim.address)

    def jittered(self, interval_s: float, share: float) -> float:
        """interval_s, up to `share` of it earlier or later."""
        return interval_s * (1 + share * (2 * self.rng.random() - 1))


def group_of(mac: Mac) -> bool:
    """Whether a MAC is a group address."""
    return bool(mac[0] & 1)


@dataclass(slots=True)
class Question:
    """REQUEST to a group, or PROBE to a host, asked up to `left` times more; the nonce stays the same."""

    key: tuple[object, ...]
    address: Address
    peer: Mac
    spa: Address
    nonce: int
    left: int
    on_answer: Callable[["Question", Message, float], None]
    on_silence: Callable[["Question", float], None]
    interval_s: float
    about: Claim | None = None  # the claim that the question is about
    tentative: Claim | None = None  # the statement to send along, instead of the active claim of spa
    kind: MessageType | None = None  # instead of REQUEST or PROBE
    payload: bytes = b""


class Questions:
    """Questions under way, by key and by nonce. An answer counts only with the nonce, from the host that was asked."""

    def __init__(self, seam: Seam) -> None:
        self._seam = seam
        self._by_key: dict[tuple[object, ...], Question] = {}
        self._by_nonce: dict[int, Question] = {}

    def get(self, key: tuple[object, ...]) -> Question | None:
        """The question under way with this key."""
        return self._by_key.get(key)

    def ask(
        self,
        key: tuple[object, ...],
        address: Address,
        peer: Mac,
        on_answer: Callable[[Question, Message, float], None],
        on_silence: Callable[[Question, float], None],
        now: float,
        spa: Address = ZERO_ADDRESS,
        interval_s: float | None = None,
        about: Claim | None = None,
        tentative: Claim | None = None,
        kind: MessageType | None = None,
        payload: bytes = b"",
    ) -> None:
        """Ask peer (a host or a group) for address now, and again until an answer closes it; replaces the key's.

        interval_s: between two askings; probe_interval_s by default.
        """
        self.close(key)
        nonce = self._seam.rng.getrandbits(64) | 1
        question = Question(
            key,
            address,
            peer,
            spa,
            nonce,
            self._seam.limits.probe_count,
            on_answer,
            on_silence,
            self._seam.limits.probe_interval_s if interval_s is None else interval_s,
            about,
            tentative,
            kind,
            payload,
        )
        self._by_key[key] = self._by_nonce[nonce] = question
        self._again(question, now)

    def close(self, key: tuple[object, ...]) -> None:
        """End a question, if it is under way. No callback is made."""
        question = self._by_key.pop(key, None)
        if question is not None:
            del self._by_nonce[question.nonce]
            self._seam.timers.cancel(question.nonce)

    def match(self, message: Message) -> Question | None:
        """The question that a message answers."""
        question = self._by_nonce.get(message.nonce)
        if question is None or question.address != message.tpa:
            return None
        return question if question.peer == message.source or group_of(question.peer) else None

    def _again(self, question: Question, now: float) -> None:
        if not question.left:
            self.close(question.key)
            question.on_silence(question, now)
            return
        question.left -= 1
        kind = question.kind or (MessageType.REQUEST if group_of(question.peer) else MessageType.PROBE)
        claim = question.tentative or self._seam.active.get(question.spa)
        # One that is only tentative has no address yet: a probe (RFC 5227), of which plain machines learn nothing.
        spa = question.spa if claim and not question.tentative else ZERO_ADDRESS
        message = Message(kind, self._seam.pmac, question.peer, spa, question.address, claim, question.nonce)
        self._seam.send(replace(message, payload=question.payload) if question.payload else message)
        when = now + question.interval_s
        self._seam.timers.set(question.nonce, when, lambda at: self._again(question, at))
