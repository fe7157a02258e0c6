"""Externals: servers and routers without an agent, found by ordinary ARP (RFC 826). The theory is in docs/external.md.

    guest ─▶ server    who-has server, tell host's own address ─▶ broadcast, src pmac
                       server is-at MAC                        ─▶ learnt: frames that waited go on
    server ─▶ guest    who-has guest, tell server              ─▶ the guest's host: guest is-at pmac (pipeline)

Unauthenticated ARP teaches nothing but the MACs of addresses that divhook.yaml declares as on link. Invariants:

- no ARP changes anything about a virtual address;
- a MAC that is believed is replaced only once its holder is silent: one that answers keeps its address, whatever
  others claim (a conflict, counted and told);
- nothing is asked for, and nothing is held, beyond the bounds below.

States and events are those of neighbours (neighbor.py), with ARP in the place of discovery:

    CONFIRMED  it answered, or spoke while it was asked          HINTED  it asked for a guest: usable, and asked
    SILENT     no answer to the last question                    IDLE, USED  lifetime over

A next hop of a route that is in use is asked every NEXT_HOP_PROBE_S unless frames come from it; one that is silent
gives its flows to the others (spread), and gets them back when it answers.
"""

from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from ipaddress import IPv4Network

from divhook.core.addressing import BROADCAST_MAC, ZERO_ADDRESS, Address, Mac
from divhook.core.discovery.events import Outcome
from divhook.core.discovery.limits import HoldBudget, Spacing, TokenBucket
from divhook.core.discovery.timers import Timers
from divhook.core.neighbor import TRANSITIONS, USABLE, NeighbourEvent, NeighbourState
from divhook.core.reasons import DropReason
from divhook.core.wire.arp import ARP_REPLY, Arp, request_frame
from divhook.core.wire.ethernet import ZERO_MAC, is_group
from divhook.core.wire.ipv4 import Header, Protocol

REACHABLE_S = 30.0
"""A server that answered is trusted this long; then it is asked again, if it is in use."""
NEXT_HOP_PROBE_S = 1.0
"""The same for a next hop of a route in use, and how often a silent one is asked."""
NEXT_HOP_IDLE_S = 30.0
"""A route that nothing has used for so long has its next hops no longer asked."""
ASK_COUNT = 3
ASK_INTERVAL_S = 0.3
"""A question is asked so often, and so far apart: 0.9 s until somebody is silent."""
NEGATIVE_S = 2.0
"""A silent server is asked no more for this long, and guests are told at once."""
RIVAL_SPACING_S = 1.0
"""A claim by another MAC makes the holder be asked, so often at most."""
DEFEND_SPACING_S = 10.0
"""Against another machine that claims an address of ours, that is announced so often at most (RFC 5227 §2.4 c)."""
CONFLICT_TELL_S = 60.0
"""A conflict is told so often at most, per address; every single one is counted."""
ANNOUNCE_COUNT = 3
ANNOUNCE_INTERVAL_S = 0.2

MAX_EXTERNALS = 8192
"""Servers known at one time, least recently used first out; next hops are not in it."""
MISSES_PER_S_PORT = 20.0
MISSES_PER_S_HOST = 50.0
"""Servers that are asked for: each is a broadcast on the wire."""
HOLD_PER_DESTINATION = 64
HOLD_TOTAL = 1024
"""Frames that wait for an answer."""
SLOTS = 64
"""Of a route: flows are spread over them by hash, and they over next hops by weight."""

_S, _E = NeighbourState, NeighbourEvent


@dataclass(frozen=True, slots=True)
class OnLink:
    """Servers on the uplink's layer 2. mtu: bytes of IP packet that they take."""

    prefix: IPv4Network
    mtu: int


@dataclass(frozen=True, slots=True)
class NextHop:
    """A router on link. weight 0: it takes over when all others are silent."""

    address: Address
    weight: int = 1


@dataclass(frozen=True, slots=True)
class Route:
    """A network behind routers."""

    prefix: IPv4Network
    hops: tuple[NextHop, ...]
    mtu: int


@dataclass(frozen=True, slots=True)
class OwnAddress:
    """An address of this host on the uplink, and the prefix that is on link by it."""

    address: Address
    prefix: IPv4Network


@dataclass(frozen=True, slots=True)
class Way:
    """How an external address is reached: next_hop is itself where it is on link. mtu in bytes of IP packet."""

    next_hop: Address
    mtu: int
    route: Route | None


@dataclass(frozen=True, slots=True)
class ExternalFound:
    """It answered: what waited for it goes on."""

    address: Address
    mac: Mac
    items: tuple[object, ...]


@dataclass(frozen=True, slots=True)
class ExternalSilent:
    """It did not answer. reason: what becomes of the items."""

    address: Address
    items: tuple[object, ...]
    reason: DropReason


@dataclass(frozen=True, slots=True)
class ExternalChanged:
    """mac: where it is now; None: it is not usable any more."""

    address: Address
    mac: Mac | None


@dataclass(frozen=True, slots=True)
class ExternalIdle:
    """Nobody has used it for its lifetime: the next use is to be told, so that it is asked."""

    address: Address


@dataclass(frozen=True, slots=True)
class RouteChanged:
    """A route's flows go other ways from now on."""

    route: Route
    slots: tuple[Address, ...]


@dataclass(frozen=True, slots=True)
class ExternalConflict:
    """Two MACs claim one address; `mac` answers, and keeps it."""

    address: Address
    mac: Mac
    rival: Mac


ExternalEvent = ExternalFound | ExternalSilent | ExternalChanged | ExternalIdle | RouteChanged | ExternalConflict


class ExternalMap:
    """What divhook.yaml declares: longest prefix first, over servers and routes together."""

    def __init__(self, on_link: Sequence[OnLink] = (), routes: Sequence[Route] = ()) -> None:
        self.on_link = tuple(on_link)
        self.routes = tuple(routes)
        self._by_length: dict[int, dict[int, OnLink | Route]] = {}
        declared: list[OnLink | Route] = [*routes, *on_link]  # of two equal prefixes, the one on link counts
        for entry in declared:
            self._by_length.setdefault(entry.prefix.prefixlen, {})[int(entry.prefix.network_address)] = entry
        self._lengths = sorted(self._by_length, reverse=True)

    def __bool__(self) -> bool:
        return bool(self._lengths)

    def get(self, address: Address) -> OnLink | Route | None:
        """The entry whose prefix is the longest that has the address."""
        value = int.from_bytes(address, "big")
        for length in self._lengths:
            found = self._by_length[length].get(value >> (32 - length) << (32 - length))
            if found is not None:
                return found
        return None

    def is_on_link(self, address: Address) -> bool:
        """Whether ARP may say where the address is."""
        return isinstance(self.get(address), OnLink)


def flow_hash(header: Header, packet: bytes) -> int:
    """Which of SLOTS a packet's flow has: twin of flow_slot in divhook/bpf/lib/external.h.

    Addresses, protocol, and the ports of TCP and UDP that is in one piece: all fragments of a datagram go one way.
    """
    ports = 0
    at = header.header_length
    if header.protocol in (Protocol.TCP, Protocol.UDP) and not header.is_fragment and header.total_length >= at + 4:
        ports = int.from_bytes(packet[at : at + 4], "big")
    value = int.from_bytes(header.source, "big")
    for word in (int.from_bytes(header.destination, "big"), ports, header.protocol):
        value = (value * 0x9E3779B1 & 0xFFFFFFFF) ^ word
        value ^= value >> 15
    return (value * 0x85EBCA6B & 0xFFFFFFFF) >> 26


def spread(route: Route, usable: Callable[[Address], bool]) -> tuple[Address, ...]:
    """The next hop of each slot. A silent hop's slots go to the others, and only they: other flows keep their way."""
    shares = [hop.address for hop in route.hops for _ in range(hop.weight)]
    base = [shares[slot % len(shares)] for slot in range(SLOTS)]
    left = [address for address in shares if usable(address)]
    if not left:
        left = [hop.address for hop in route.hops if hop.weight == 0 and usable(hop.address)]
    if not left:
        return tuple(base)  # nobody answers: those who should are asked
    return tuple(address if address in left else left[slot % len(left)] for slot, address in enumerate(base))


@dataclass(slots=True)
class _Entry:
    address: Address
    state: NeighbourState = _S.FAILED
    mac: Mac = ZERO_MAC
    asked: int = 0  # of ASK_COUNT
    used_s: float = float("-inf")
    heard_s: float = float("-inf")
    confirmed_s: float = float("-inf")
    retry_at_s: float = float("-inf")
    rival: Mac | None = None
    held: list[object] = field(default_factory=list)

    @property
    def usable(self) -> bool:
        return self.state in USABLE


class Externals:
    """The servers and routers that one host's guests talk to.

    Sans-IO: the caller gives ARP and the time, sends frames_to_send(), and reads events(). used_elsewhere,
    heard_elsewhere: whether the fast path has sent to, or had frames from, an address since that was last asked.
    """

    def __init__(self, pmac: Mac, externals: ExternalMap, own: Sequence[OwnAddress] = ()) -> None:
        self.map = externals
        self.own = tuple(own)
        self.used_elsewhere: Callable[[Address], bool] = lambda address: False
        self.heard_elsewhere: Callable[[Address], bool] = lambda address: False
        self.still_here: Callable[[Address], bool] = lambda address: True  # asked before each announcement
        self._pmac = pmac
        self._entries: OrderedDict[Address, _Entry] = OrderedDict()
        self._hops: dict[Address, _Entry] = {
            hop.address: _Entry(hop.address) for route in externals.routes for hop in route.hops
        }
        self._slots = {route: spread(route, lambda _: True) for route in externals.routes}
        self._timers = Timers()
        self._hold = HoldBudget(HOLD_PER_DESTINATION, HOLD_TOTAL)
        self._host_misses = TokenBucket(MISSES_PER_S_HOST, MISSES_PER_S_HOST)
        self._port_misses: dict[int, TokenBucket] = {}
        self._rivals = Spacing(RIVAL_SPACING_S, MAX_EXTERNALS)
        self._told = Spacing(CONFLICT_TELL_S, MAX_EXTERNALS)
        self._defended = Spacing(DEFEND_SPACING_S, MAX_EXTERNALS)
        self._frames: list[bytes] = []
        self._events: list[ExternalEvent] = []

    # ------------------------------------------------------------------ the seam

    def frames_to_send(self) -> list[bytes]:
        """Whole ARP frames for the uplink."""
        frames, self._frames = self._frames, []
        return frames

    def events(self) -> list[ExternalEvent]:
        """What has come of questions, oldest first."""
        events, self._events = self._events, []
        return events

    def next_timer(self) -> float | None:
        """When on_timer wants to be called."""
        return self._timers.next()

    def on_timer(self, now: float) -> None:
        """Its time has come."""
        self._timers.run(now)

    def forget_port(self, port: int) -> None:
        """A port is gone."""
        self._port_misses.pop(port, None)

    # ------------------------------------------------------------------ where things are

    def is_own(self, address: Address) -> bool:
        """Whether it is this host itself."""
        return any(each.address == address for each in self.own)

    def way(self, header: Header, packet: bytes, address: Address) -> Way | None:
        """How a packet to an external address goes; None where nothing is declared."""
        found = self.map.get(address)
        if found is None:
            return None
        if isinstance(found, OnLink):
            return Way(address, found.mtu, None)
        return Way(self._slots[found][flow_hash(header, packet)], found.mtu, found)

    def mac(self, address: Address) -> Mac | None:
        """Of a usable server or next hop."""
        entry = self._get(address)
        return entry.mac if entry is not None and entry.usable else None

    def known(self) -> Iterator[tuple[Address, NeighbourState, Mac, bool]]:
        """(address, state, MAC or zero, is a next hop) of everything that was asked for: for `divhook neighbors`."""
        for entry in (*self._hops.values(), *self._entries.values()):
            yield entry.address, entry.state, entry.mac, entry.address in self._hops

    def slots(self, route: Route) -> tuple[Address, ...]:
        """Next hop of each slot now."""
        return self._slots[route]

    def resolve(self, address: Address, port: int, now: float, held: object) -> Mac | DropReason | None:
        """The MAC to send to. None: `held` waits, and comes back with an event. Else why it can't be."""
        entry = self._get(address)
        if entry is not None and entry.usable:
            self._use(entry, now)
            return entry.mac
        if entry is not None and entry.state is _S.FAILED and now < entry.retry_at_s:
            if address in self._hops:
                entry.used_s = now
            return DropReason.EXTERNAL_UNREACHABLE
        if entry is None or entry.state is _S.FAILED:
            refused = self._miss(port, now)
            if refused is not None:
                return refused
            entry = entry or self._add(address)
            entry.used_s = now
            self._ask_afresh(entry, now)
        return self._hold.add(entry.held, held)

    def check_source(self, source: Address, mac: Mac, now: float, held: object) -> Outcome | DropReason:
        """Whether a frame from `mac` may bear an external source. PENDING: `held` waits, and comes back."""
        found = self.map.get(source)
        if found is None:
            return DropReason.EXTERNAL_UNSUPPORTED
        if self.is_own(source) or mac == self._pmac:
            return DropReason.EXTERNAL_SPOOF
        if isinstance(found, Route):
            for hop in found.hops:
                entry = self._hops[hop.address]
                if entry.usable and entry.mac == mac:
                    entry.heard_s = now
                    self._use(entry, now)
                    return Outcome.DELIVER
            return self._ask_next_hops(found, now, held)
        entry = self._get(source) or self._add(source)
        if not entry.usable:
            if entry.state is _S.FAILED:
                if now < entry.retry_at_s:
                    return DropReason.EXTERNAL_SPOOF
                if not self._host_misses.take(now):
                    return DropReason.RESOLVE_RATE_HOST
                self._ask_afresh(entry, now)
            return self._hold.add(entry.held, held) or Outcome.PENDING
        if entry.mac != mac:
            self._rival(entry, mac, now)
            return DropReason.EXTERNAL_SPOOF
        entry.heard_s = now
        self._use(entry, now)
        return Outcome.DELIVER

    def _ask_next_hops(self, route: Route, now: float, held: object) -> Outcome | DropReason:
        """A frame from none that is known: one that nobody has asked yet may have sent it, as to a guest that has just
        come to a host that never had to do with its router."""
        unknown = [entry for hop in route.hops if not (entry := self._hops[hop.address]).usable]
        for entry in unknown:
            if entry.state is _S.FAILED and now >= entry.retry_at_s and self._host_misses.take(now):
                self._ask_afresh(entry, now)
        waiting = next((entry for entry in unknown if entry.state is _S.INCOMPLETE), None)
        if waiting is None:
            return DropReason.EXTERNAL_SPOOF
        return self._hold.add(waiting.held, held) or Outcome.PENDING

    # ------------------------------------------------------------------ ARP

    def receive_untrusted(self, arp: Arp, source: Mac, asked_for_guest: bool, now: float) -> DropReason:
        """ARP from the uplink, in a frame from `source`. asked_for_guest: it asks for a guest that it may reach.

        Returns what the frame is counted under.
        """
        if arp.sha != source or is_group(source) or source in (ZERO_MAC, self._pmac):
            return DropReason.EXTERNAL_SPOOF
        if not self.map.is_on_link(arp.spa) or self.is_own(arp.spa):
            return DropReason.UNKNOWN_HOST
        entry = self._get(arp.spa)
        if entry is None or (entry.state is _S.FAILED and arp.spa not in self._hops):
            if asked_for_guest and self._host_misses.take(now):
                self._hint(entry or self._add(arp.spa), arp.sha, now)
            return DropReason.CONSUMED
        if entry.usable and entry.mac != arp.sha:
            self._rival(entry, arp.sha, now)
            return DropReason.EXTERNAL_CONFLICT
        if entry.state in (_S.INCOMPLETE, _S.PROBE) and (arp.operation == ARP_REPLY or entry.mac == arp.sha):
            self._confirm(entry, arp.sha, now)
        elif entry.state in (_S.INCOMPLETE, _S.FAILED) and asked_for_guest:
            self._hint(entry, arp.sha, now)
        elif entry.state is _S.FAILED and arp.operation == ARP_REPLY:  # a next hop that is back
            self._confirm(entry, arp.sha, now)
        return DropReason.CONSUMED

    def announce(self, address: Address, now: float) -> None:
        """A guest is here now: externals that knew it elsewhere learn of it, by gratuitous ARP from pmac."""
        if self.map.on_link:
            self._announce(address, ANNOUNCE_COUNT, now)

    def defend(self, address: Address, rival: Mac, now: float) -> None:
        """Another machine claims an address of this host: told, and announced again, each so often at most."""
        if self._defended.allow(address, now):
            self._frames.append(request_frame(self._pmac, address, address))
        if self._told.allow(address, now):
            self._events.append(ExternalConflict(address, self._pmac, rival))

    def _announce(self, address: Address, left: int, now: float) -> None:
        """Once, and again in a while, unless it is somewhere else by then."""
        if not self.still_here(address):
            return
        self._frames.append(request_frame(self._pmac, address, address))
        if left > 1:
            when = now + ANNOUNCE_INTERVAL_S
            self._timers.set(("announce", address), when, lambda at: self._announce(address, left - 1, at))

    def adopt(self, address: Address, mac: Mac, now: float) -> bool:
        """An agent before this one knew it there: usable, and asked. Whether it is declared still."""
        if address not in self._hops and not self.map.is_on_link(address):
            return False
        entry = self._get(address) or self._add(address)
        if not entry.usable:
            self._hint(entry, mac, now)
        return entry.mac == mac

    def speaker(self, source: Address, mac: Mac) -> Address | None:
        """Whose MAC it is: the source's own, or a next hop's on the way to it."""
        found = self.map.get(source)
        candidates = [hop.address for hop in found.hops] if isinstance(found, Route) else [source]
        return next((each for each in candidates if self.mac(each) == mac), None)

    # ------------------------------------------------------------------ entries

    def _get(self, address: Address) -> _Entry | None:
        return self._hops.get(address) or self._entries.get(address)

    def _add(self, address: Address) -> _Entry:
        entry = self._entries[address] = _Entry(address)
        if len(self._entries) > MAX_EXTERNALS:
            _, victim = self._entries.popitem(last=False)
            self._timers.cancel(victim.address)
            items = self._hold.drain(victim.held)
            if items:
                self._events.append(ExternalSilent(victim.address, items, DropReason.HOLD_TABLE_FULL))
            self._events.append(ExternalChanged(victim.address, None))
        return entry

    def _miss(self, port: int, now: float) -> DropReason | None:
        bucket = self._port_misses.setdefault(port, TokenBucket(MISSES_PER_S_PORT, MISSES_PER_S_PORT))
        if not bucket.available(now):
            return DropReason.RESOLVE_RATE_PORT
        if not self._host_misses.take(now):
            return DropReason.RESOLVE_RATE_HOST
        bucket.take(now)
        return None

    def _use(self, entry: _Entry, now: float) -> None:
        entry.used_s = now
        if entry.address in self._entries:
            self._entries.move_to_end(entry.address)
        if entry.state is _S.STALE:
            self._probe(entry, now)

    def _step(self, entry: _Entry, event: NeighbourEvent, mac: Mac | None = None) -> None:
        before = entry.mac if entry.usable else None
        entry.state = TRANSITIONS.next(entry.state, event)
        if mac is not None:
            entry.mac = mac
        after = entry.mac if entry.usable else None
        if before == after:
            return
        self._events.append(ExternalChanged(entry.address, after))
        if (before is None) != (after is None) and entry.address in self._hops:
            self._respread(entry.address)

    def _respread(self, address: Address) -> None:
        for route, slots in self._slots.items():
            if any(hop.address == address for hop in route.hops):
                # One that was never asked counts as usable: else the first answer would take all flows.
                fresh = spread(route, lambda each: self._hops[each].usable or self._hops[each].retry_at_s < 0)
                if fresh != slots:
                    self._slots[route] = fresh
                    self._events.append(RouteChanged(route, fresh))

    def _confirm(self, entry: _Entry, mac: Mac, now: float) -> None:
        waited = entry.held
        entry.confirmed_s = now
        entry.rival = None
        self._step(entry, _E.CONFIRMED, mac)
        self._expire_at(entry, now)
        if waited:
            self._events.append(ExternalFound(entry.address, mac, self._hold.drain(waited)))

    def _hint(self, entry: _Entry, mac: Mac, now: float) -> None:
        """It asked for a guest. It may be sent to at once; and all are asked, so that a second holder shows."""
        self._step(entry, _E.HINTED, mac)
        if entry.held:
            self._events.append(ExternalFound(entry.address, mac, self._hold.drain(entry.held)))
        entry.used_s = now
        self._probe(entry, now, BROADCAST_MAC)

    def _rival(self, entry: _Entry, mac: Mac, now: float) -> None:
        """Another MAC claims the address of a usable entry: its holder is asked, and keeps it if it answers."""
        entry.rival = mac
        if self._told.allow(entry.address, now):
            self._events.append(ExternalConflict(entry.address, entry.mac, mac))
        if entry.state is not _S.PROBE and self._rivals.allow(entry.address, now):
            self._probe(entry, now)

    # ------------------------------------------------------------------ questions

    def _ask_afresh(self, entry: _Entry, now: float) -> None:
        self._step(entry, _E.USED)
        entry.asked = 0
        self._ask(entry, BROADCAST_MAC, now)

    def _probe(self, entry: _Entry, now: float, to: Mac | None = None) -> None:
        self._step(entry, _E.USED)
        entry.asked = 0
        self._ask(entry, to or entry.mac, now)

    def _ask(self, entry: _Entry, to: Mac, now: float) -> None:
        if entry.asked == ASK_COUNT:
            self._silent(entry, now)
            return
        entry.asked += 1
        teller = next((o.address for o in self.own if _within(entry.address, o.prefix)), ZERO_ADDRESS)
        self._frames.append(request_frame(self._pmac, teller, entry.address, to))
        self._timers.set(entry.address, now + ASK_INTERVAL_S, lambda at: self._ask(entry, to, at))

    def _silent(self, entry: _Entry, now: float) -> None:
        contested = entry.state is _S.PROBE and entry.rival is not None
        hop = entry.address in self._hops
        entry.retry_at_s = now if contested else now + (NEXT_HOP_PROBE_S if hop else NEGATIVE_S)
        entry.rival = None
        self._step(entry, _E.SILENT)
        items = self._hold.drain(entry.held)
        if items:
            self._events.append(ExternalSilent(entry.address, items, DropReason.EXTERNAL_UNREACHABLE))
        if contested:
            self._ask_afresh(entry, now)  # its rival may answer now
        elif hop:
            self._timers.set(entry.address, entry.retry_at_s, lambda at: self._try_again(entry, at))

    def _try_again(self, entry: _Entry, now: float) -> None:
        """A silent next hop: asked for as long as a route of its is in use."""
        if self._route_in_use(entry.address, now) and entry.state is _S.FAILED:
            self._ask_afresh(entry, now)

    def _route_in_use(self, hop: Address, now: float) -> bool:
        return any(
            self._hops[each.address].used_s > now - NEXT_HOP_IDLE_S
            for route in self.map.routes
            if any(each.address == hop for each in route.hops)
            for each in route.hops
        )

    def _expire_at(self, entry: _Entry, now: float) -> None:
        lifetime_s = NEXT_HOP_PROBE_S if entry.address in self._hops else REACHABLE_S
        self._timers.set(entry.address, now + lifetime_s, lambda at: self._expired(entry, at))

    def _expired(self, entry: _Entry, now: float) -> None:
        """The lifetime of a REACHABLE entry is over."""
        if self.used_elsewhere(entry.address):
            entry.used_s = now
        if self.heard_elsewhere(entry.address):
            entry.heard_s = now
        hop = entry.address in self._hops
        if entry.heard_s > entry.confirmed_s:  # its frames come: it is there (RFC 4861 §7.3.1)
            entry.confirmed_s = now
            self._expire_at(entry, now)
        elif entry.used_s > entry.confirmed_s or (hop and self._route_in_use(entry.address, now)):
            self._probe(entry, now)
        else:
            self._step(entry, _E.IDLE)
            self._events.append(ExternalIdle(entry.address))


def _within(address: Address, prefix: IPv4Network) -> bool:
    shift = 32 - prefix.prefixlen
    return int.from_bytes(address, "big") >> shift == int(prefix.network_address) >> shift
