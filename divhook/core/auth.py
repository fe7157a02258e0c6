"""Who speaks: tags, sessions and challenges of discovery. Nothing unauthenticated, replayed or re-aimed gets past here.

A frame says something new when three things hold:

1. *Its tag verifies*: a host with the cluster key made exactly these bytes for exactly this destination.
2. *Its session is live*: the sender's agent runs now. A session is a random number per agent start; a recorded frame
   carries a dead one, or a live one that the receiver has not met. So a frame of an unknown session teaches nothing
   until something fresh of ours comes back under a tag that names the session:

       asker            responder that has not met the asker           sender            receiver, unasked
         |--- REQUEST, nonce n ->|  tag good, session unknown: hold      |--- ANNOUNCE --->|  hold
         |<-- CHALLENGE, w ------|                                       |<- CHALLENGE ----|
         |--- CHALLENGE_REPLY, w>|  proven: deliver what was held        |- CHALLENGE_R. ->|  deliver
         |<-- REPLY, n ----------|  the echo of n proves the responder to the asker: no challenge the other way

   Nonces never repeat and can't be guessed without the key, so whoever echoes one under a tag has made that frame
   after we made the nonce: the session it names was live then. This holds for any answer, not for CHALLENGE_REPLY
   alone. It replaces a session that we know only if the nonce was made after that one had been proven: so a session
   once superseded never comes back, however long its answers were held back. A cold resolution between two hosts that
   never met costs one extra round trip, once per agent start.

3. *It is new within the session*: a window of 64 sequence numbers, and a floor. The floor closes the gap that the
   window leaves for a session just met: of its earlier frames, any of the last 64 might be a recording, hours old if
   the host is quiet. So CHALLENGE_REPLY states the lowest sequence of the sender's last FRESH_S seconds, and what was
   held below that is refused. An echo states nothing, so its own sequence is the floor. No clock is compared, and
   nothing is stored.

Challenges are answered without knowing the challenger (else two new hosts would challenge each other for ever): that
changes no table and is as long as the question. Source: docs/protocol.md.
"""

import hmac
from collections import deque
from dataclasses import dataclass, replace

from divhook.core.addressing import ZERO_ADDRESS, Mac
from divhook.core.keys import DEFAULT_CLUSTER, PURPOSE_DISCOVERY, KeyRing
from divhook.core.reasons import DropReason
from divhook.core.wire.discovery import (
    ALGORITHM_HMAC_SHA256_128,
    ANSWERS,
    ETHER_TYPE_ARP,
    TAG_LENGTH,
    Envelope,
    Message,
    MessageType,
    emit,
    parse_discovery_untrusted,
)
from divhook.core.wire.errors import WireError

WINDOW_FRAMES = 64
"""Frames of one session that may arrive out of order."""
FRESH_S = 3.0
"""Held frames that their sender does not confirm to be younger than this are refused."""
HELD_LIFETIME_S = FRESH_S
"""How long a frame is held for the answer to a challenge."""
CHALLENGE_INTERVAL_S = 1.0
"""A host is challenged once in this time, whatever it or anyone in its name sends. Later answers are refused."""
NONCE_LIFETIME_S = 3.0
"""How long the echo of a question's nonce proves a session."""
MAX_PEERS = 16_384
"""Proven sessions; the least recently heard is forgotten first and is challenged again. Only keyholders get in."""
MAX_CHALLENGES = 1_024
"""Challenges under way, all hosts."""
MAX_UNPROVOKED_CHALLENGES = 64
"""Of these, started by data frames, which carry no tag: a flood of forged sources must leave room for keyholders."""
MAX_NONCES = 4_096
"""Questions whose answer may prove a session; the oldest is forgotten first, its answer then meets a challenge."""
HELD_PER_PEER = 16
HELD_TOTAL = 1_024
"""Frames held for the answer to a challenge."""
ANSWERS_PER_S = 1_000
"""Challenges from sessions not known here that are answered: an agent's restart in a large cluster stays below."""

_PURPOSE_NONCE = "divhook nonce v1"
_WINDOW_MASK = (1 << WINDOW_FRAMES) - 1
_FLOOR_STEP_S = FRESH_S / 8


@dataclass(frozen=True, slots=True)
class Refused:
    """A frame ended here, for this reason; detail is for the debug log."""

    reason: DropReason
    detail: str = ""


@dataclass(frozen=True, slots=True)
class Opened:
    """Proven messages, in the order in which their sender made them.

    None for a challenge, which the Authenticator answers itself. A CHALLENGE_REPLY is given, for it shows a peer to all
    who keep a list of them, and after it what it set free. refused: held frames that turned out to be recordings.
    """

    messages: tuple[Message, ...] = ()
    refused: tuple[Refused, ...] = ()


@dataclass(frozen=True, slots=True)
class Held:
    """The tag is good, the session is not proven: the frame waits for the answer to a challenge."""


class _Peer:
    """A proven session: when it was proven, and which of its sequence numbers have been seen."""

    __slots__ = ("_seen", "_top", "floor", "key", "proven_s", "session")

    def __init__(self, session: int, sequence: int, floor: int, key: bytes, now: float) -> None:
        self.session = session
        self.proven_s = now
        self.floor = floor
        self.key = key
        self._top = sequence
        self._seen = 1  # bit n: sequence top - n was seen

    def accept(self, sequence: int) -> bool:
        """Whether this sequence is new, and note it."""
        if sequence < self.floor:
            return False
        ahead = sequence - self._top
        if ahead > 0:
            self._seen = (self._seen << ahead if ahead < WINDOW_FRAMES else 0) & _WINDOW_MASK | 1
            self._top = sequence
            return True
        if ahead <= -WINDOW_FRAMES or self._seen >> -ahead & 1:
            return False
        self._seen |= 1 << -ahead
        return True

    def accept_held(self, sequence: int) -> bool:
        """As `accept`, for a frame that was held: its sender may have sent more than a window of others since."""
        return self.accept(sequence) or self.floor <= sequence <= self._top - WINDOW_FRAMES


@dataclass(frozen=True, slots=True)
class _Question:
    asked: int  # the nonce that our own core knows
    destination: Mac
    made_s: float


@dataclass(frozen=True, slots=True)
class _HeldFrame:
    message: Message
    envelope: Envelope
    until_s: float


@dataclass(slots=True)
class _Waiting:
    """What is held for one host, oldest first, and when to challenge it again."""

    retry_s: float
    frames: list[_HeldFrame]

    def find(self, envelope: Envelope) -> int | None:
        """Index of a frame that is held."""
        wanted = (envelope.session, envelope.sequence)
        return next((i for i, f in enumerate(self.frames) if (f.envelope.session, f.envelope.sequence) == wanted), None)


class Authenticator:
    """Seals own messages and opens those of others.

    pmac: own; session: 64 random bits, new at every start; cluster: its name, part of every derived key.
    After each call, send what `frames_to_send` gives, and call `on_timer` at `next_timer`.
    """

    def __init__(
        self,
        pmac: Mac,
        keys: KeyRing,
        session: int,
        cluster: str = DEFAULT_CLUSTER,
        ether_type: int = ETHER_TYPE_ARP,
    ) -> None:
        self._pmac = pmac
        self._session = session
        self._cluster = cluster
        self._ether_type = ether_type
        self._sequence = 0
        self._nonces_made = 0
        self._nonce_key = keys.sending.derive(_PURPOSE_NONCE, cluster)
        self._peers: dict[Mac, _Peer] = {}  # least recently heard first
        self._challenges: dict[Mac, tuple[int, float]] = {}  # pmac -> (nonce, until), oldest first
        self._questions: dict[int, _Question] = {}  # by nonce on the wire, oldest first
        self._held: dict[Mac, _Waiting] = {}
        self._held_total = 0
        self._steps: deque[tuple[float, int]] = deque()  # (time, first sequence sent from then on)
        self._answer_tokens = float(ANSWERS_PER_S)
        self._answer_time_s = 0.0
        self._outbox: list[bytes] = []
        self._derived: dict[int, bytes] = {}
        self.replace_keys(keys)

    def replace_keys(self, keys: KeyRing) -> None:
        """Take a changed key file. Hosts that proved themselves with a key that is gone are strangers again."""
        self._derived = {key.key_id: key.derive(PURPOSE_DISCOVERY, self._cluster) for key in keys.keys}
        self._sending = keys.sending.key_id
        accepted = set(self._derived.values())
        self._peers = {pmac: peer for pmac, peer in self._peers.items() if peer.key in accepted}

    # --- own frames

    def seal(self, message: Message, now: float) -> bytes:
        """The frame of an own message. A question's nonce is replaced on the wire by a fresh one, and comes back as it
        was in the answer. Raises ValueError for a message that is not ours to send."""
        if message.source != self._pmac:
            raise ValueError("a message from another host")
        if message.type not in ANSWERS:
            message = replace(message, nonce=self._ask(message, now))
        return self._emit(message, now)

    def frames_to_send(self) -> list[bytes]:
        """Challenges and answers to challenges, sealed; each is given once."""
        frames, self._outbox = self._outbox, []
        return frames

    # --- frames of others

    def open_untrusted(self, frame: bytes, now: float) -> Opened | Held | Refused:
        """Verify one frame from the wire. Raises nothing."""
        try:
            message, envelope, tag, covered = parse_discovery_untrusted(frame)
        except WireError as error:
            return Refused(error.reason, str(error))
        key = self._derived.get(envelope.key_id)
        if key is None or envelope.algorithm != ALGORITHM_HMAC_SHA256_128:
            return Refused(DropReason.DISCOVERY_AUTH, f"key {envelope.key_id}, algorithm {envelope.algorithm}")
        if not hmac.compare_digest(_tag(key, covered), tag):
            return Refused(DropReason.DISCOVERY_AUTH, "tag")
        if message.source == self._pmac:
            return Refused(DropReason.DISCOVERY_REPLAY, "our own frame came back")
        if message.destination != self._pmac and not message.destination[0] & 1:
            return Refused(DropReason.DISCOVERY_REPLAY, "made for another host")

        peer = self._peers.get(message.source)
        known = peer is not None and peer.session == envelope.session
        if peer is not None and known:
            if not peer.accept(envelope.sequence):
                return Refused(DropReason.DISCOVERY_REPLAY, f"sequence {envelope.sequence}")
            peer.key = key
            self._peers[message.source] = self._peers.pop(message.source)
            waiting = self._held.get(message.source)
            if waiting and (index := waiting.find(envelope)) is not None:
                del waiting.frames[index]
                self._held_total -= 1
        if message.type is MessageType.CHALLENGE:
            return self._answer_challenge(message, known, now)
        if message.type is MessageType.CHALLENGE_REPLY:
            return self._take_challenge_reply(message, envelope, key, now)
        if not known:
            question = self._question(message, now)
            if question is None or not self._is_later(message.source, question.made_s):
                return self._hold(message, envelope, now)
            self._learn(message.source, _Peer(envelope.session, envelope.sequence, envelope.sequence, key, now))
        return Opened((self._restored(message, now),))

    def is_peer(self, pmac: Mac) -> bool:
        """Whether a live session of this host has been proven (source check, row `unknown_host`)."""
        return pmac in self._peers

    @property
    def peer_count(self) -> int:
        """Hosts with a proven session."""
        return len(self._peers)

    def challenge(self, pmac: Mac, now: float) -> bool:
        """Ask a host that sent a data frame to prove itself; False where the limits forbid it."""
        return self._challenge(pmac, now, MAX_UNPROVOKED_CHALLENGES)

    # --- time

    def next_timer(self) -> float | None:
        """When `on_timer` is due; None while nothing is held."""
        times = (time for w in self._held.values() for time in (w.retry_s, *(f.until_s for f in w.frames[:1])))
        return min(times, default=None)

    def on_timer(self, now: float) -> list[Refused]:
        """Repeat challenges that frames wait for; give up frames that waited too long, and say so."""
        refused = []
        for pmac, waiting in list(self._held.items()):
            while waiting.frames and waiting.frames[0].until_s <= now:
                frame = waiting.frames.pop(0)
                self._held_total -= 1
                refused.append(Refused(DropReason.DISCOVERY_UNCHALLENGED, f"no answer for a {frame.message.type.name}"))
            if not waiting.frames:
                del self._held[pmac]
            elif waiting.retry_s <= now:
                waiting.retry_s = now + CHALLENGE_INTERVAL_S
                self._challenge(pmac, now, MAX_CHALLENGES)
        return refused

    # --- inside

    def _emit(self, message: Message, now: float) -> bytes:
        self._sequence += 1
        if not self._steps or now >= self._steps[-1][0] + _FLOOR_STEP_S:
            self._steps.append((now, self._sequence))
        while self._steps and self._steps[0][0] < now - FRESH_S:
            self._steps.popleft()
        covered = emit(message, Envelope(self._session, self._sequence, self._sending, ether_type=self._ether_type))
        return covered + _tag(self._derived[self._sending], covered)

    def _fresh_nonce(self) -> int:
        self._nonces_made += 1
        seed = self._session.to_bytes(8, "big") + self._nonces_made.to_bytes(8, "big")
        return int.from_bytes(hmac.digest(self._nonce_key, seed, "sha256")[:8], "big") or 1

    def _ask(self, message: Message, now: float) -> int:
        while self._questions:
            oldest = next(iter(self._questions))
            if len(self._questions) < MAX_NONCES and now < self._questions[oldest].made_s + NONCE_LIFETIME_S:
                break
            del self._questions[oldest]
        nonce = self._fresh_nonce()
        self._questions[nonce] = _Question(message.nonce, message.destination, now)
        return nonce

    def _question(self, message: Message, now: float) -> _Question | None:
        """The question of ours that this answer echoes, if it is still open and was put to this host."""
        question = self._questions.get(message.nonce) if message.type in ANSWERS else None
        if question is None or now >= question.made_s + NONCE_LIFETIME_S:
            return None
        return question if question.destination[0] & 1 or question.destination == message.source else None

    def _is_later(self, pmac: Mac, nonce_made_s: float) -> bool:
        """Whether the echo of a nonce shows a session that is later than the one we know of this host.

        The session we know was alive before we proved it. So one that echoes a nonce made after that is later; of an
        older nonce we can't tell, and the echo may be of a session that has ended since, held back by an attacker.
        """
        peer = self._peers.get(pmac)
        return peer is None or nonce_made_s > peer.proven_s

    def _restored(self, message: Message, now: float) -> Message:
        """The answer with the nonce that the core gave the question; 0 where it answers none of ours."""
        if message.type not in ANSWERS:
            return message
        question = self._question(message, now)
        return replace(message, nonce=question.asked if question else 0)

    def _learn(self, pmac: Mac, peer: _Peer) -> None:
        self._peers.pop(pmac, None)
        while len(self._peers) >= MAX_PEERS:
            del self._peers[next(iter(self._peers))]
        self._peers[pmac] = peer

    def _hold(self, message: Message, envelope: Envelope, now: float) -> Held | Refused:
        pmac = message.source
        waiting = self._held.get(pmac) or _Waiting(now + CHALLENGE_INTERVAL_S, [])
        self._challenge(pmac, now, MAX_CHALLENGES)
        if waiting.find(envelope) is not None:
            return Refused(DropReason.DISCOVERY_REPLAY, f"sequence {envelope.sequence} is held already")
        if len(waiting.frames) >= HELD_PER_PEER or self._held_total >= HELD_TOTAL:
            return Refused(DropReason.DISCOVERY_UNCHALLENGED, "too many frames wait for a challenge")
        waiting.frames.append(_HeldFrame(message, envelope, now + HELD_LIFETIME_S))
        self._held[pmac] = waiting
        self._held_total += 1
        return Held()

    def _challenge(self, pmac: Mac, now: float, limit: int) -> bool:
        while self._challenges and self._challenges[oldest := next(iter(self._challenges))][1] <= now:
            del self._challenges[oldest]
        if pmac in self._challenges or len(self._challenges) >= limit or pmac == self._pmac or pmac[0] & 1:
            return False
        nonce = self._fresh_nonce()
        self._challenges[pmac] = (nonce, now + CHALLENGE_INTERVAL_S)
        question = Message(MessageType.CHALLENGE, self._pmac, pmac, ZERO_ADDRESS, ZERO_ADDRESS, nonce=nonce)
        self._outbox.append(self._emit(question, now))
        return True

    def _answer_challenge(self, message: Message, known: bool, now: float) -> Opened | Refused:
        if message.destination != self._pmac:
            return Refused(DropReason.DISCOVERY_MALFORMED, "challenge to a group")
        if not known:
            gained = max(0.0, now - self._answer_time_s) * ANSWERS_PER_S
            self._answer_tokens = min(float(ANSWERS_PER_S), self._answer_tokens + gained)
            self._answer_time_s = now
            if self._answer_tokens < 1:
                return Refused(DropReason.DISCOVERY_RATE_LIMITED, "challenges of unknown sessions")
            self._answer_tokens -= 1
        while self._steps and self._steps[0][0] < now - FRESH_S:
            self._steps.popleft()
        floor = self._steps[0][1] if self._steps else self._sequence + 1
        answer = Message(
            MessageType.CHALLENGE_REPLY,
            self._pmac,
            message.source,
            ZERO_ADDRESS,
            ZERO_ADDRESS,
            nonce=message.nonce,
            payload=floor.to_bytes(8, "big"),
        )
        self._outbox.append(self._emit(answer, now))
        return Opened()

    def _take_challenge_reply(self, message: Message, envelope: Envelope, key: bytes, now: float) -> Opened | Refused:
        pmac = message.source
        nonce, until_s = self._challenges.get(pmac, (0, 0.0))
        if message.nonce != nonce or until_s <= now or message.destination != self._pmac:
            return Refused(DropReason.DISCOVERY_REPLAY, "answer to no open challenge")
        floor = int.from_bytes(message.payload, "big")
        if len(message.payload) != 8 or floor > envelope.sequence:
            return Refused(DropReason.DISCOVERY_MALFORMED, "challenge reply without its floor")
        peer = self._peers.get(pmac)
        if peer is None or peer.session != envelope.session:
            if not self._is_later(pmac, until_s - CHALLENGE_INTERVAL_S):
                return Refused(DropReason.DISCOVERY_REPLAY, "challenge older than the session that is known")
            peer = _Peer(envelope.session, envelope.sequence, floor, key, now)
            self._learn(pmac, peer)
        peer.floor = min(peer.floor, floor)
        waiting = self._held.pop(pmac, None)
        frames = waiting.frames if waiting else []
        self._held_total -= len(frames)
        messages, refused = [replace(message, nonce=0)], []
        for frame in sorted(frames, key=lambda held: held.envelope.sequence):
            if frame.envelope.session == peer.session and peer.accept_held(frame.envelope.sequence):
                messages.append(self._restored(frame.message, now))
            else:
                refused.append(Refused(DropReason.DISCOVERY_REPLAY, "held frame of a dead session, or not fresh"))
        return Opened(tuple(messages), tuple(refused))


def _tag(key: bytes, covered: bytes) -> bytes:
    return hmac.digest(key, covered, "sha256")[:TAG_LENGTH]
