"""What identities stand for: asked by their number from the hosts that claim them, before the first packet is decided.

    asker                                             host of the endpoint
      │ IDENTITY (tpa: the endpoint, number, nonce) ──▶ │
      │ ◀──────── IDENTITY_REPLY (encoding, nonce)      │    its hash must be the number: nobody can lie about it

Invariants: no verdict is given on an unknown identity: frames wait, and are dropped after ASKS silent askings. What
waits, what is asked and what is known stay within the bounds below; what is in use here is never forgotten.
"""

import hashlib
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass, field

from divhook.core.addressing import ZERO_ADDRESS, Address, Mac
from divhook.core.discovery.limits import HoldBudget, TokenBucket
from divhook.core.reasons import DropReason
from divhook.core.wire.discovery import Message, MessageType

NUMBER_BYTES = 8
MAX_KNOWN = 65_536
"""Identities; at most 1,024 bytes each. Least recently asked about go first."""
MAX_WANTED = 1_024
HOLD_PER_IDENTITY, HOLD_TOTAL = 64, 2_048
"""Frames."""
ASKS, ASK_INTERVAL_S = 3, 0.2
SILENT_S = 1.0
"""After that many askings nobody is asked again for so long."""
ASKS_PER_S, ANSWERS_PER_S = 500.0, 1_000.0


@dataclass(frozen=True, slots=True)
class IdentityLearned:
    """What items waited for is known: decide again."""

    number: int
    encoding: bytes
    items: tuple[object, ...]


@dataclass(frozen=True, slots=True)
class IdentityMissing:
    """Nobody said what it stands for."""

    number: int
    items: tuple[object, ...]


@dataclass(slots=True)
class _Wanted:
    host: Mac
    address: Address
    nonce: int
    left: int
    due_s: float
    held: list[object] = field(default_factory=list)


def number_of(encoding: bytes) -> int:
    """The identity's number: the first 64 bits of SHA-256."""
    return int.from_bytes(hashlib.sha256(encoding).digest()[:NUMBER_BYTES], "big")


class IdentityExchange:
    """One host's knowledge of identities; a Talker. Times are monotonic seconds."""

    def __init__(self, pmac: Mac) -> None:
        self._pmac = pmac
        self._known: OrderedDict[int, bytes] = OrderedDict()
        self._own: dict[int, bytes] = {}
        self._wanted: dict[int, _Wanted] = {}
        self._silent: OrderedDict[int, float] = OrderedDict()
        self._hold = HoldBudget(HOLD_PER_IDENTITY, HOLD_TOTAL)
        self._asking = TokenBucket(ASKS_PER_S, ASKS_PER_S)
        self._answering = TokenBucket(ANSWERS_PER_S, ANSWERS_PER_S)
        self._nonces = 0
        self._messages: list[Message] = []
        self._events: list[IdentityLearned | IdentityMissing] = []
        self.forgotten: list[int] = []
        """Numbers that had to make room: the caller takes them, and forgets them too."""

    def __len__(self) -> int:
        return len(self._known) + len(self._own)

    def set_own(self, encodings: Mapping[int, bytes]) -> None:
        """What endpoints of this host have: answered for, and never forgotten."""
        before, self._own = self._own, dict(encodings)
        for number, encoding in before.items():
            self.know(number, encoding)

    def know(self, number: int, encoding: bytes) -> None:
        """Known from elsewhere, or from before this start."""
        if number in self._own:
            return
        self._known[number] = encoding
        self._known.move_to_end(number)
        if len(self._known) > MAX_KNOWN:
            self.forgotten.append(self._known.popitem(last=False)[0])

    def get(self, number: int) -> bytes | None:
        """The encoding, where it is known."""
        if number in self._own:
            return self._own[number]
        encoding = self._known.get(number)
        if encoding is not None:
            self._known.move_to_end(number)
        return encoding

    def want(self, number: int, host: Mac, address: Address, now: float, held: object) -> DropReason | None:
        """Ask the host of an endpoint. None: held comes back in an event; else it is not held."""
        wanted = self._wanted.get(number)
        if wanted is None:
            if self._silent.get(number, float("-inf")) > now or not number or host == self._pmac:
                return DropReason.IDENTITY_UNKNOWN
            if len(self._wanted) >= MAX_WANTED or not self._asking.take(now):
                return DropReason.HOLD_TABLE_FULL
            self._nonces += 1
            wanted = self._wanted[number] = _Wanted(host, address, self._nonces, ASKS, now)
            self._ask(number, wanted, now)
        return self._hold.add(wanted.held, held)

    def _ask(self, number: int, wanted: _Wanted, now: float) -> None:
        wanted.left -= 1
        wanted.due_s = now + ASK_INTERVAL_S
        payload = number.to_bytes(NUMBER_BYTES, "big")
        self._messages.append(
            Message(
                MessageType.IDENTITY,
                self._pmac,
                wanted.host,
                ZERO_ADDRESS,
                wanted.address,
                nonce=wanted.nonce,
                payload=payload,
            )
        )

    def receive(self, message: Message, now: float) -> None:
        """An authenticated message; all but the two types are others' concern."""
        if message.type is MessageType.IDENTITY:
            self._asked(message, now)
        elif message.type is MessageType.IDENTITY_REPLY:
            number = number_of(message.payload)
            wanted = self._wanted.get(number)
            if wanted is not None and (wanted.host, wanted.nonce) == (message.source, message.nonce):
                del self._wanted[number]
                self._silent.pop(number, None)
                self.know(number, message.payload)
                self._events.append(IdentityLearned(number, message.payload, self._hold.drain(wanted.held)))

    def _asked(self, message: Message, now: float) -> None:
        number = int.from_bytes(message.payload, "big")
        encoding = self._own.get(number) or self._known.get(number)
        if len(message.payload) != NUMBER_BYTES or encoding is None or not self._answering.take(now):
            return
        kind, nonce = MessageType.IDENTITY_REPLY, message.nonce
        self._messages.append(
            Message(kind, self._pmac, message.source, message.spa, message.tpa, nonce=nonce, payload=encoding)
        )

    def messages_to_send(self) -> list[Message]:
        """Messages since the last call, in order."""
        messages, self._messages = self._messages, []
        return messages

    def events(self) -> list[IdentityLearned | IdentityMissing]:
        """Events since the last call, in order."""
        events, self._events = self._events, []
        return events

    def next_timer(self) -> float | None:
        """When on_timer wants to be called."""
        return min((wanted.due_s for wanted in self._wanted.values()), default=None)

    def on_timer(self, now: float) -> None:
        """Ask again, or give up."""
        for number, wanted in [(n, w) for n, w in self._wanted.items() if w.due_s <= now]:
            if wanted.left:
                self._ask(number, wanted, now)
                continue
            del self._wanted[number]
            self._silent[number] = now + SILENT_S
            self._silent.move_to_end(number)
            if len(self._silent) > MAX_WANTED:
                self._silent.popitem(last=False)
            self._events.append(IdentityMissing(number, self._hold.drain(wanted.held)))
