"""Addresses without a server: one question to all hosts of a subnet, then a claim that anybody may object to.

    agent          other hosts of the subnet
      │ CENSUS ──▶ all          (group of the subnet, joined before; names vmac and guest id)
      │ ◀── CENSUS_REPLY        bitmaps of what is active, reserved, in quarantine there; for 40 ms
      │ choose: the guest's former address, else the first free one in the order of its MAC's hash  ──▶ Chosen
      │ REQUEST for it, tentative, 3 times in 600 ms (core/discovery)
      │ ◀── STALE               objection: Lost; another census, and another address is Chosen, or Refused
      │ silence                 ──▶ Confirmed: DHCP may offer it

A configured address skips the census: it is tentative at once, and Chosen if nobody objects within those 40 ms.

What this host answers, and defends:

| address is           | in the census as | objection to another guest's tentative claim          |
| -------------------- | ---------------- | ----------------------------------------------------- |
| held by a local port | active           | by core/discovery, which knows the claim              |
| of a stopped guest   | reserved         | here: STALE with a claim of stamp 0 and born 0        |
| static for a guest   | reserved         | none: the guest that it is for may run anywhere       |
| in quarantine        | quarantined      | none: an operator may give it to a guest by name      |

`born` 0 is older than any, so that a wrong clock can't take a stopped guest's address; stamp 0 and the tentative
flag say that nobody runs it here. A guest is never kept from its own address: entries of the guest id that asks are
left out of the answer, and named in it (tpa) instead. The first choice of two MACs is often the same (a /24 with 20
guests: 53 %), so the hash also gives a stride by which all addresses are visited.
"""

import hashlib
from collections import OrderedDict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from enum import Enum, auto
from itertools import chain
from math import gcd
from typing import Protocol

from divhook.core.addressing import (
    ZERO_ADDRESS,
    Address,
    AddressPlan,
    Mac,
    SubnetId,
    address_text,
    group_mac,
    mac_text,
)
from divhook.core.discovery.events import TentativeObjected, TentativePassed
from divhook.core.wire.discovery import (
    Bitmaps,
    Claim,
    Message,
    MessageType,
    emit_bitmaps,
    parse_bitmaps_untrusted,
)
from divhook.core.wire.errors import WireError

CENSUS_S = 0.040
"""How long answers are awaited, and how long the hook waits for an objection to a configured address."""
QUARANTINE_S = 600.0
"""After DECLINE and release: longer than guests' ARP caches, and than most reboots."""
MAX_RELEASED = 4_096
"""Former addresses remembered, in quarantine or after it; the one released first is forgotten first."""
MAX_PENDING = 256
"""Guests that get an address at one time."""
MAX_OBJECTIONS = 16
"""Addresses tried for one guest; then something else is wrong."""


class TentativeClaims(Protocol):
    """The part of Discovery that asks whether anybody objects."""

    def tentative(
        self, address: Address, vmac: Mac, guest_id: int, identity: int, born: int | None, now: float
    ) -> None:
        """See Discovery.tentative."""

    def withdraw(self, address: Address, now: float, gone: bool = True) -> None:
        """See Discovery.withdraw."""


@dataclass(frozen=True, slots=True)
class Chosen:
    """The hook may go on: the guest is to have this address, if nobody objects in the next 600 ms."""

    guest_id: int
    address: Address


@dataclass(frozen=True, slots=True)
class Confirmed:
    """Nobody objected: the address may be offered, and claimed once the guest runs."""

    guest_id: int
    address: Address


@dataclass(frozen=True, slots=True)
class Lost:
    """An address that was Chosen belongs to another guest. Another Chosen follows, or Refused."""

    guest_id: int
    address: Address
    reason: str


@dataclass(frozen=True, slots=True)
class Refused:
    """There is no address for the guest. reason is for a person, without the guest's name."""

    guest_id: int
    reason: str


CensusEvent = Chosen | Confirmed | Lost | Refused


class _Phase(Enum):
    CENSUS = auto()  # answers are awaited
    FIXED = auto()  # a configured address, tentative, the hook waits
    TENTATIVE = auto()  # Chosen


@dataclass(slots=True)
class _Pending:
    """A guest on its way to an address."""

    subnet: SubnetId
    vmac: Mac
    guest_id: int
    identity: int
    born: int | None
    fixed: bool
    preferred: list[Address]
    phase: _Phase
    due_s: float | None
    address: Address | None = None
    seen: Bitmaps = field(default_factory=Bitmaps)  # what other hosts answered
    objections: int = 0


class AddressCensus:
    """Chooses addresses for guests that start here, and answers for the addresses of this host.

    The same seam as Discovery: receive, on_timer at next_timer, then messages_to_send and events. All messages may be
    given to both; each takes what is its own. Discovery's TentativePassed and TentativeObjected go to `on_tentative`.
    """

    def __init__(self, pmac: Mac, plan: AddressPlan, claims: TentativeClaims) -> None:
        self._pmac = pmac
        self._plan = plan
        self._claims = claims
        self.malformed = 0  # answers of peers that could not be read
        self._ready = False
        self._pending: dict[int, _Pending] = {}
        self._asked: dict[int, int] = {}  # nonce -> guest id
        self._nonces = 0
        self._active: dict[Address, int] = {}  # address -> guest id
        self._reserved: dict[Address, int] = {}
        self._static: set[Address] = set()
        self._released: OrderedDict[Address, tuple[float, int]] = OrderedDict()  # -> end of quarantine, guest id
        self._messages: list[Message] = []
        self._events: list[CensusEvent] = []

    # --- what is taken here

    def ready(self) -> None:
        """The agent has reconciled. Before this nothing is asked or answered."""
        self._ready = True

    def hold(self, address: Address, guest_id: int) -> None:
        """A port here has the address: running, incoming or fenced."""
        self._active[address] = guest_id
        self._reserved.pop(address, None)
        self._released.pop(address, None)

    def reserve(self, address: Address, guest_id: int) -> None:
        """A guest that is defined here and does not run keeps the address: it is defended."""
        self._active.pop(address, None)
        self._reserved[address] = guest_id
        self._released.pop(address, None)

    def set_static(self, addresses: set[Address]) -> None:
        """The addresses that the configuration gives to guests by name or MAC: nobody else is offered one."""
        self._static = set(addresses)

    def release(self, address: Address, now: float, quarantine_s: float = QUARANTINE_S, guest_id: int = 0) -> None:
        """The address is free again after its quarantine: the guest is undefined, or its client sent DECLINE.

        guest_id: of a guest that may have it back before that, here or elsewhere. Not after DECLINE.
        """
        self._active.pop(address, None)
        self._reserved.pop(address, None)
        self._released.pop(address, None)
        self._released[address] = (now + quarantine_s, guest_id)
        if len(self._released) > MAX_RELEASED:
            self._released.popitem(last=False)

    def taken(self, subnet: SubnetId, now: float, asker: int = 0) -> Bitmaps:
        """What is taken on this host, without what belongs to the asking guest id."""

        def of_others(addresses: Iterable[tuple[Address, int]]) -> list[Address]:
            return [address for address, guest_id in addresses if not asker or guest_id != asker]

        waiting = [(a, guest_id) for a, (until_s, guest_id) in self._released.items() if until_s > now]
        return Bitmaps(
            self._bits(subnet, of_others(self._active.items())),
            self._bits(subnet, [*of_others(self._reserved.items()), *self._static]),
            self._bits(subnet, of_others(waiting)),
        )

    # --- a guest needs an address

    def begin(
        self,
        subnet: SubnetId,
        vmac: Mac,
        guest_id: int,
        now: float,
        fixed: Address | None = None,
        preferred: Address | None = None,
        born: int | None = None,
        identity: int = 0,
    ) -> None:
        """Look for an address, or ask about a configured one (fixed). Chosen or Refused follows within CENSUS_S.

        preferred: what the registry remembers; born: of that claim. A guest that is under way starts afresh.
        The host must have joined the subnet's group.
        """
        self.cancel(guest_id, now)
        wanted = [] if preferred is None else [preferred]
        wanted += [address for address, (_, former) in self._released.items() if former == guest_id]
        pending = _Pending(
            subnet, vmac, guest_id, identity, born, fixed is not None, wanted, _Phase.CENSUS, now + CENSUS_S
        )
        if len(self._pending) >= MAX_PENDING:
            self._refuse(pending, f"{MAX_PENDING} guests are being given an address now; start it again in a second")
            return
        self._pending[guest_id] = pending
        if fixed is None:
            self._ask(pending, now)
            return
        pending.phase = _Phase.FIXED
        refusal = self._unusable(fixed, pending)
        if refusal or not self._try(fixed, pending, now):
            self._refuse(pending, refusal or f"address {address_text(fixed)} is held by another guest of this host")

    def cancel(self, guest_id: int, now: float) -> None:
        """The guest does not start after all. Nothing is kept; without an address that is Confirmed, no harm."""
        pending = self._pending.get(guest_id)
        if pending is not None:
            if pending.address is not None:
                self._claims.withdraw(pending.address, now, gone=False)
            self._end(pending)

    def on_tentative(self, event: TentativePassed | TentativeObjected, now: float) -> None:
        """What Discovery found out about an address that is tentative here. Others' are ignored."""
        pending = next((p for p in self._pending.values() if p.address == event.address), None)
        if pending is None or pending.address is None:
            return
        address = pending.address
        # The same guest elsewhere: which of the two runs is the claims' business, the address is its own.
        if isinstance(event, TentativePassed) or event.holder.guest_id == pending.guest_id:
            if pending.phase is _Phase.FIXED:
                self._events.append(Chosen(pending.guest_id, address))
            self._events.append(Confirmed(pending.guest_id, address))
            pending.address = None
            self._end(pending)
            self.hold(address, pending.guest_id)
            return
        reason = (
            f"address {address_text(address)} belongs to another guest (NIC {mac_text(event.holder.vmac)}) "
            f"of host {mac_text(event.holder.host)}"
        )
        self._active.pop(address, None)
        pending.address = None
        pending.objections += 1
        pending.seen |= Bitmaps(self._bits(pending.subnet, [address]))
        if pending.phase is _Phase.TENTATIVE:
            self._events.append(Lost(pending.guest_id, address, reason))
        if pending.fixed:
            self._refuse(pending, f"{reason}; give one of them another with 'divhook assign'")
        elif pending.objections >= MAX_OBJECTIONS:
            self._refuse(pending, f"{MAX_OBJECTIONS} addresses in a row met an objection; the last: {reason}")
        else:
            self._ask(pending, now)  # many start at once: what they chose since the first census counts as active

    # --- IO

    def receive(self, message: Message, now: float) -> None:
        """An authenticated message. Those that are Discovery's alone are ignored."""
        subnet = self._plan.locate(message.tpa)
        if subnet is None or not self._ready:
            return
        claim = message.claim
        if message.type is MessageType.CENSUS and claim is not None:
            self._answer(message, claim, subnet, now)
        elif message.type is MessageType.REQUEST and claim is not None and claim.tentative:
            self._defend(message, claim)
        elif message.type is MessageType.CENSUS_REPLY:
            pending = self._pending.get(self._asked.get(message.nonce, 0))
            if pending is not None and pending.subnet == subnet:
                self._take_answer(message, pending)

    def messages_to_send(self) -> list[Message]:
        """Messages since the last call, in order."""
        messages, self._messages = self._messages, []
        return messages

    def events(self) -> list[CensusEvent]:
        """Events since the last call, in order."""
        events, self._events = self._events, []
        return events

    def next_timer(self) -> float | None:
        """When on_timer wants to be called."""
        return min((p.due_s for p in self._pending.values() if p.due_s is not None), default=None)

    def on_timer(self, now: float) -> None:
        """Do what is due. Early calls do no harm."""
        for pending in list(self._pending.values()):
            if pending.due_s is None or pending.due_s > now:
                continue
            pending.due_s = None
            if pending.phase is _Phase.CENSUS:
                self._choose(pending, now)
            elif pending.address is not None:
                pending.phase = _Phase.TENTATIVE
                self._events.append(Chosen(pending.guest_id, pending.address))

    # --- inside

    def _ask(self, pending: _Pending, now: float) -> None:
        pending.phase, pending.due_s = _Phase.CENSUS, now + CENSUS_S
        self._nonces += 1
        self._asked[self._nonces] = pending.guest_id
        network = self._plan.address(pending.subnet, 0)
        claim = Claim(network, pending.vmac, self._pmac, 0, 0, pending.guest_id, 0, tentative=True)
        self._send(MessageType.CENSUS, group_mac(pending.subnet), network, claim, nonce=self._nonces)

    def _take_answer(self, message: Message, pending: _Pending) -> None:
        try:
            pending.seen |= parse_bitmaps_untrusted(message.payload) if message.payload else Bitmaps()
        except WireError:
            self.malformed += 1
            return
        if self._plan.assignable(message.tpa) and message.tpa not in pending.preferred:
            pending.preferred.append(message.tpa)

    def _answer(self, message: Message, claim: Claim, subnet: SubnetId, now: float) -> None:
        left = ((address, guest_id) for address, (_, guest_id) in self._released.items())
        known = chain(self._active.items(), self._reserved.items(), left)
        own = [address for address, guest_id in known if guest_id == claim.guest_id]
        former = next((a for a in own if self._plan.locate(a) == subnet), self._plan.address(subnet, 0))
        payloads = emit_bitmaps(self.taken(subnet, now, claim.guest_id))
        if not payloads and self._plan.assignable(former):
            payloads = [b""]
        for payload in payloads:
            self._send(MessageType.CENSUS_REPLY, message.source, former, None, nonce=message.nonce, payload=payload)

    def _defend(self, message: Message, claim: Claim) -> None:
        """Object to a tentative claim on the address of a guest that is stopped here."""
        guest_id = self._reserved.get(claim.address, claim.guest_id)
        if guest_id != claim.guest_id:
            ours = Claim(claim.address, claim.vmac, self._pmac, 0, 0, guest_id, 0, tentative=True)
            self._send(MessageType.STALE, message.source, claim.address, ours)

    def _choose(self, pending: _Pending, now: float) -> None:
        pending.phase = _Phase.TENTATIVE
        here = self.taken(pending.subnet, now, pending.guest_id)
        taken = pending.seen | here
        for address in self._order(pending, taken.taken):
            if self._try(address, pending, now):
                self._events.append(Chosen(pending.guest_id, address))
                return
        self._refuse(
            pending,
            f"subnet full: no free address in {self._plan.network(pending.subnet)} "
            f"({taken.active.bit_count()} in use, {taken.reserved.bit_count()} reserved, "
            f"{taken.quarantined.bit_count()} released in the last {QUARANTINE_S / 60:.0f} minutes)",
        )

    def _order(self, pending: _Pending, taken: int) -> Iterator[Address]:
        """Free addresses, best first: the guest's former ones, those never used here, those released longest ago."""

        def free(address: Address) -> bool:
            return self._plan.assignable(address) and not taken >> self._plan.host_number(address) & 1

        yield from (a for a in pending.preferred if free(a) and self._plan.locate(a) == pending.subnet)
        hosts = self._plan.max_host - 2  # 2 … max_host - 1
        digest = hashlib.sha256(pending.vmac + repr(pending.subnet).encode()).digest()
        first = int.from_bytes(digest[:8], "big") % hosts
        stride = int.from_bytes(digest[8:16], "big") % hosts or 1
        while gcd(stride, hosts) != 1:
            stride += 1
        addresses = (self._plan.address(pending.subnet, 2 + (first + n * stride) % hosts) for n in range(hosts))
        yield from (a for a in addresses if free(a) and a not in self._released)
        yield from [a for a in self._released if self._plan.locate(a) == pending.subnet and free(a)]

    def _try(self, address: Address, pending: _Pending, now: float) -> bool:
        """Make an address tentative; False where Discovery knows a local guest that holds it."""
        try:
            self._claims.tentative(address, pending.vmac, pending.guest_id, pending.identity, pending.born, now)
        except ValueError:
            return False
        pending.address = address
        self._active[address] = pending.guest_id
        return True

    def _unusable(self, address: Address, pending: _Pending) -> str | None:
        """Why a configured address can't be had; None where it can."""
        if self._plan.locate(address) != pending.subnet or not self._plan.assignable(address):
            return (
                f"address {address_text(address)} can't be given to a guest of subnet "
                f"{self._plan.network(pending.subnet)}: take one from host number 2 to {self._plan.max_host - 1}"
            )
        if self._active.get(address, pending.guest_id) != pending.guest_id:
            return f"address {address_text(address)} is held by another guest of this host"
        if self._reserved.get(address, pending.guest_id) != pending.guest_id:
            return f"address {address_text(address)} is reserved for another guest that is defined on this host"
        return None

    def _refuse(self, pending: _Pending, reason: str) -> None:
        self._end(pending)
        self._events.append(Refused(pending.guest_id, reason))

    def _end(self, pending: _Pending) -> None:
        """Forget a guest that was under way, its tentative address with it."""
        self._pending.pop(pending.guest_id, None)
        self._asked = {nonce: guest_id for nonce, guest_id in self._asked.items() if guest_id != pending.guest_id}
        if pending.address is not None:
            self._active.pop(pending.address, None)

    def _bits(self, subnet: SubnetId, addresses: list[Address]) -> int:
        bits = 0
        for address in addresses:
            if self._plan.locate(address) == subnet:
                bits |= 1 << self._plan.host_number(address)
        return bits

    def _send(
        self,
        kind: MessageType,
        destination: Mac,
        tpa: Address,
        claim: Claim | None,
        nonce: int = 0,
        payload: bytes = b"",
    ) -> None:
        if self._ready:
            self._messages.append(Message(kind, self._pmac, destination, ZERO_ADDRESS, tpa, claim, nonce, payload))
