"""MOVE: the destination asks whoever runs the guest to hand it over, and says where its agent listens.

One discovery message to the group of the guest's subnet: so the host need not be known, nor its address. The host that
runs the guest id connects. The payload: port (16) | 4 or 6 (8) | zero (8) | IPv4 or IPv6 address of the asking host.
The frame's tag makes it the word of a keyholder; that it is the same one that listens is TLS's to show.
"""

import struct
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address

from divhook.core.addressing import AddressPlan, Mac, SubnetId, group_mac
from divhook.core.wire.discovery import Claim, Message, MessageType

ASK_COUNT = 3
"""Times that a MOVE is sent; a guest has no more than some 700 ms between its `migrate` hook and its pause."""
ASK_INTERVAL_S = 0.2
MAX_ASKING = 1024
"""Moves to this host at one time that have no hand-over yet."""
MAX_ASKED = 1024
"""Questions of others that are kept for the shell."""
_HEAD = struct.Struct(">HBB")

HostAddress = IPv4Address | IPv6Address


@dataclass(frozen=True, slots=True)
class Asked:
    """A peer is the destination of a guest's move."""

    guest_id: int
    peer: Mac
    address: HostAddress
    port: int


@dataclass(slots=True)
class _Question:
    message: Message
    left: int
    due_s: float


class MoveQuestions:
    """Questions of this host, and those of others that wait for the shell. `where`: our own address and port."""

    def __init__(self, pmac: Mac, plan: AddressPlan) -> None:
        self._pmac = pmac
        self._plan = plan
        self.where: tuple[HostAddress, int] | None = None
        self._asking: dict[int, _Question] = {}
        self._messages: list[Message] = []
        self._asked: list[Asked] = []

    def ask(self, guest_id: int, vmac: Mac, subnet: SubnetId, now: float) -> bool:
        """Ask the subnet's group, up to ASK_COUNT times until `answered`. False where nobody listens here."""
        if self.where is None or len(self._asking) >= MAX_ASKING:
            return False
        address, port = self.where
        network = self._plan.address(subnet, 0)
        claim = Claim(network, vmac, self._pmac, 0, 0, guest_id, 0, tentative=True)
        payload = _HEAD.pack(port, address.version, 0) + address.packed
        message = Message(MessageType.MOVE, self._pmac, group_mac(subnet), bytes(4), network, claim, payload=payload)
        self._asking[guest_id] = _Question(message, ASK_COUNT, now)
        self.on_timer(now)
        return True

    def answered(self, guest_id: int) -> None:
        """It was handed over, or does not come any more."""
        self._asking.pop(guest_id, None)

    @property
    def waiting(self) -> bool:
        """Whether `asked` has any."""
        return bool(self._asked)

    def asked(self) -> list[Asked]:
        """Questions of others since the last call."""
        asked, self._asked = self._asked, []
        return asked

    # --- a talker, as the data plane wants it

    def receive(self, message: Message, now: float) -> None:
        """An authenticated message. Only MOVE matters; what has not its form is nothing."""
        claim = message.claim
        if message.type is not MessageType.MOVE or claim is None or claim.host != message.source:
            return
        if len(message.payload) < _HEAD.size or len(self._asked) >= MAX_ASKED:
            return
        port, family, _ = _HEAD.unpack_from(message.payload)
        raw = message.payload[_HEAD.size :]
        if not port or len(raw) != {4: 4, 6: 16}.get(family):
            return
        address: HostAddress = IPv4Address(raw) if family == 4 else IPv6Address(raw)
        self._asked.append(Asked(claim.guest_id, message.source, address, port))

    def messages_to_send(self) -> list[Message]:
        """What to seal and send."""
        messages, self._messages = self._messages, []
        return messages

    def next_timer(self) -> float | None:
        """When on_timer wants to be called."""
        return min((q.due_s for q in self._asking.values()), default=None)

    def on_timer(self, now: float) -> None:
        """Its time has come."""
        for guest_id, question in list(self._asking.items()):
            if question.due_s > now:
                continue
            if not question.left:
                del self._asking[guest_id]
                continue
            question.left -= 1
            question.due_s = now + ASK_INTERVAL_S
            self._messages.append(question.message)
