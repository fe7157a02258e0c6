"""What the kernel may decide by itself: the endpoints that the slow path has already found.

    slow path delivers a frame to or from a neighbour ──▶ published: the programs forward the next ones
    discovery: another host, another claim            ──▶ exchanged in place, no frame between
    discovery: idle, failed, forgotten                ──▶ taken back: the next frame is the slow path's

Invariants: an address is published only while discovery has a usable entry for it, or an active or fenced port here
holds it; a port of this host always goes before a neighbour. Nothing is taken back because an agent ends: the next one
adopts what is there.

Order within a flow: frames that waited for their neighbour are sent, and the queue is read empty, before the entry is
published. A frame that was diverted in the moment between can still be overtaken by the flow's next: `late` counts
every frame that came to the slow path for a neighbour published within LATE_S, so it is an upper bound.
"""

import logging
from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import replace

from divhook.abi.entries import ExternalEndpoint, LocalEndpoint, RemoteEndpoint
from divhook.adapters.bpf.errors import BpfError
from divhook.adapters.bpf.programs import Programs
from divhook.agent.outside import Outside
from divhook.core.addressing import Address, AddressPlan, Mac, address_text
from divhook.core.discovery import Discovery, NeighbourChanged
from divhook.core.neighbor import USABLE, NeighbourState
from divhook.core.router import Topology

LATE_S = 1.0
ADOPTED_AT_ONCE = 256
"""Entries that are taken over from the agent before, between other things."""
PUBLISH_WITHIN_S = 0.1
"""A flow faster than the agent never leaves the queue empty: after this time it goes over all the same."""
_KEPT_STATES = USABLE - {NeighbourState.STALE}

log = logging.getLogger(__name__)


class FastPath:
    """Keeps map `endpoints`. With `enabled` false it stays empty, and every frame is the slow path's."""

    def __init__(
        self, programs: Programs, plan: AddressPlan, topology: Topology, discovery: Discovery, enabled: bool
    ) -> None:
        self.enabled = enabled
        self.late = 0
        self.on_forwarded: Callable[[Address, Mac], None] = lambda address, host: None  # of the agent before
        self.outside: Outside | None = None  # keeps its own entries in the same map
        self._programs = programs
        self._plan = plan
        self._topology = topology
        self._discovery = discovery
        self._local: dict[Address, LocalEndpoint] = {}
        self._published: dict[Address, float] = {}  # neighbours, and when
        self._waiting: dict[Address, float] = {}  # to be published, and since when; as many as frames held in the queue
        self._full = False
        self._former: dict[Address, Mac] = {}  # of endpoints here: where they were, as long as that host sends on
        self._forwarded: dict[Address, Mac] = {}  # endpoints that have moved away, and whereto, as long as we do
        discovery.used_elsewhere = self.took_use
        discovery.heard_elsewhere = self.heard

    def __len__(self) -> int:
        """Neighbours that the kernel knows."""
        return len(self._published)

    def __contains__(self, address: Address) -> bool:
        """Whether the slow path need not tell of a neighbour any more."""
        return address in self._published or not self.enabled

    def wants(self, addresses: Iterable[Address]) -> bool:
        """Whether `used` has something to publish, with these neighbours or from before."""
        return self.enabled and (bool(self._waiting) or any(a not in self._published for a in addresses))

    def knows(self, address: Address) -> bool:
        """Whether the kernel forwards to this neighbour by itself."""
        return address in self._published

    # ------------------------------------------------------------------ ports of this host

    def set_local(self, address: Address, entry: LocalEndpoint) -> None:
        """An active or fenced port holds the address. Raises BpfError."""
        entry = replace(entry, next=self._discovery.next_of(address), former=self._former.get(address))
        if self.enabled and self._local.get(address) != entry:
            self._local[address] = entry
            self._published.pop(address, None)
            self._programs.set_endpoint(address, entry)

    def leaving(self, address: Address) -> None:
        """Discovery has another word on where the endpoint of a port is about to move. Raises BpfError."""
        entry = self._local.get(address)
        if entry is not None:
            self.set_local(address, entry)

    def came_from(self, address: Address, host: Mac | None) -> None:
        """The endpoint of a port was on a host that sends on what still comes there; None: it does not any more.

        Raises BpfError.
        """
        if host is None:
            self._former.pop(address, None)
        else:
            self._former[address] = host
        self.leaving(address)

    def forward(self, address: Address, host: Mac | None, now: float) -> None:
        """What comes for an endpoint that has moved from here to that host is sent on; None: it is not, any more."""
        if host is not None:
            self._forwarded[address] = host
        elif self._forwarded.pop(address, None) is None:
            return
        if address in self._published:
            self._publish(address, now)

    def sent_on(self, address: Address) -> int:
        """How many packets the programs have sent on for an endpoint that has moved away; 0 where they do not."""
        entry = self._programs.endpoint(address) if address in self._forwarded else None
        return entry.sent_on if isinstance(entry, RemoteEndpoint) and entry.forwarded else 0

    def moved_out(self, address: Address, now: float) -> None:
        """The endpoint of a port is on another host, as discovery knows: exchanged in place, no frame between."""
        if self._local.pop(address, None) is not None:
            self._publish(address, now)
            if address not in self._published:
                self._programs.remove_endpoint(address)

    def share_local(self, address: Address, owner: Address | None) -> None:
        """The port whose own address is `owner` holds this one, too; None: no port here does. Raises BpfError."""
        entry = self._local.get(owner) if owner is not None else None
        if entry is not None:
            self.set_local(address, entry)
        elif address in self._local:
            del self._local[address]
            self._programs.remove_endpoint(address)

    def remove_local(self, port_id: int, but: Collection[Address] = ()) -> None:
        """The port holds no address any more, or these only. Raises BpfError."""
        for address in [a for a, e in self._local.items() if e.port_id == port_id and a not in but]:
            del self._local[address]
            self._programs.remove_endpoint(address)

    def keep_true(self) -> None:
        """Bring the kernel's entries of this host's ports back to what they must be. Raises BpfError."""
        for address, entry in self._local.items():
            if self._programs.endpoint(address) != entry:
                log.warning("%s: the kernel had lost or changed this endpoint: set again", address_text(address))
                self._programs.set_endpoint(address, entry)

    # ------------------------------------------------------------------ neighbours

    def used(self, addresses: Iterable[Address], now: float, drained: bool = True) -> None:
        """The slow path has just delivered frames to or from these neighbours. drained: the queue was read empty."""
        if not self.enabled:
            return
        for address in addresses:
            since = self._published.get(address)
            if since is None:
                self._waiting.setdefault(address, now)
            elif now - since < LATE_S:
                self.late += 1
        ready = [a for a, since in self._waiting.items() if drained or now - since >= PUBLISH_WITHIN_S]
        for address in ready:
            del self._waiting[address]
            self._publish(address, now)

    def _publish(self, address: Address, now: float) -> None:
        entry = self._discovery.neighbours.get(address)
        if not self.enabled or entry is None or entry.found is None or address in self._local:
            return
        subnet = self._plan.locate(address)
        facts = self._topology.get(subnet) if subnet is not None else None
        if facts is None:
            self._take_back(address)
            return
        claim = entry.found.claim
        forwarded = self._forwarded.get(address) == claim.host
        fresh = RemoteEndpoint(claim, facts.mtu, next=entry.next, forwarded=forwarded)
        try:
            known = self._programs.endpoint(address)
            counted = known.sent_on if forwarded and isinstance(known, RemoteEndpoint) else 0
            fresh = replace(fresh, sent_on=counted)
            if not isinstance(known, RemoteEndpoint) or replace(known, used=False, heard=False) != fresh:
                self._programs.set_endpoint(address, fresh)
        except BpfError as error:
            if not self._full:
                log.error("a neighbour stays on the slow path: %s", error)
            self._full = True
            self._take_back(address)  # what could not be exchanged is not true any more
            return
        self._full = False
        self._published.setdefault(address, now)

    def changed(self, event: NeighbourChanged, now: float) -> None:
        """Discovery has changed its mind on a neighbour."""
        if event.address not in self._published:
            return
        if event.state in _KEPT_STATES:
            self._publish(event.address, now)
        else:
            self._take_back(event.address)

    def _take_back(self, address: Address) -> None:
        if self._published.pop(address, None) is not None:
            self._programs.remove_endpoint(address)

    def topology_changed(self, now: float) -> None:
        """MTUs may differ, or subnets be gone."""
        for address in list(self._published):
            self._publish(address, now)

    def took_use(self, address: Address) -> bool:
        """Whether the programs have used a neighbour since this was last asked."""
        entry = self._programs.endpoint(address) if address in self._published else None
        if not isinstance(entry, RemoteEndpoint) or not entry.used:
            return False
        self._programs.set_endpoint(address, replace(entry, used=False, heard=False))
        return True

    def heard(self, address: Address) -> bool:
        """Whether the programs have forwarded a frame from a neighbour since `took_use` was last asked."""
        entry = self._programs.endpoint(address) if address in self._published else None
        return isinstance(entry, RemoteEndpoint) and entry.heard

    # ------------------------------------------------------------------ a restarted agent

    def adopt(self, now: float, mine: Callable[[Address], bool]) -> Iterator[None]:
        """Take back the neighbours that the programs know from the agent before, and remove what is no one's.

        A step at a time, each of some 10 ms: iterate to the end. mine: whether a port of this host holds the address.
        Call when libvirt has been asked, and before discovery is ready: what it hears is compared with what it knows.
        """
        for batch in self._programs.endpoint_batches():
            for count, (address, entry) in enumerate(batch.items()):
                if count % ADOPTED_AT_ONCE == 0:
                    yield
                if isinstance(entry, ExternalEndpoint):
                    if self.outside is None or not self.outside.adopt(address, entry, now):
                        self._programs.remove_endpoint(address)
                    continue
                if isinstance(entry, RemoteEndpoint) and self.enabled and not mine(address):
                    self._adopt(entry, now)
                if address not in self._local and address not in self._published:
                    self._programs.remove_endpoint(address)

    def _adopt(self, entry: RemoteEndpoint, now: float) -> None:
        address = entry.claim.address
        if entry.forwarded:
            self._forwarded[address] = entry.claim.host
            self.on_forwarded(address, entry.claim.host)
        if not self._discovery.adopt(entry.claim, now):
            self._published.pop(address, None)
            return
        self._published.setdefault(address, now - LATE_S)
        known = self._discovery.neighbours.get(address)
        if known is not None and (known.claim, known.next) != (entry.claim, entry.next):  # a frame has asked meanwhile
            self._publish(address, now)
