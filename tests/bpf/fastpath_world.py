"""One host with the real core, the real publisher and the real maps, among peers that are played; all from one seed.

    places   addresses of guests: here, on another host, on both (fenced), nowhere
    outside  servers and routers without an agent, that answer ARP or not; OWN is the host itself
    sync     what the agent's shell does after a frame
    ports    as agent/ports.py keeps them, with map `endpoints` as agent/fastpath.py keeps it

What may happen in a world is in fastpath_turns.py.

What the kernel may know of neighbours is kept here a second time, by its definition: a frame was delivered to or from
it since discovery last said that it is neither REACHABLE nor PROBE.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from ipaddress import IPv4Network
from types import SimpleNamespace

from bpf_bench import UNLIMITED, host_entry
from bpf_frames import PMAC
from fastpath_policies import TIERS, TwinPolicies, WorldPolicies, cell_name, enforcement_of

from divhook.abi.entries import EndpointEntry, ExternalEndpoint, LocalEndpoint, PortEntry, RemoteEndpoint
from divhook.adapters.bpf import Programs
from divhook.adapters.bpf.policy import POLICY_TABLES
from divhook.agent.enforcement import Enforcement
from divhook.agent.fastpath import FastPath
from divhook.agent.group_lists import GroupLists
from divhook.agent.nic import Nic
from divhook.agent.outside import Outside
from divhook.agent.ports import Ports
from divhook.agent.shared import SharedMaps
from divhook.core.addressing import ALL_HOSTS_GROUP, Address, AddressPlan, Mac, SubnetId
from divhook.core.dhcp import SubnetService
from divhook.core.discovery import (
    ClaimState,
    Discovery,
    Fenced,
    Limits,
    NeighbourChanged,
    NeighbourState,
    TentativeObjected,
    TentativePassed,
    Unfenced,
)
from divhook.core.endpoint import PORT_WIRE, Endpoint, PortState, PortTable
from divhook.core.external import (
    ExternalChanged,
    ExternalIdle,
    ExternalMap,
    Externals,
    NextHop,
    OnLink,
    OwnAddress,
    Route,
)
from divhook.core.outputs import Output, ToWire
from divhook.core.pipeline import Pipeline
from divhook.core.router import SubnetFacts, Topology
from divhook.core.wire.arp import reply_frame
from divhook.core.wire.discovery import Claim, Message, MessageType

PLANS = {
    "8+8+8": AddressPlan(),
    "12+4+8": AddressPlan(IPv4Network("10.0.0.0/8"), 12, 4, 8),
    "4+10+6 below a /12": AddressPlan(IPv4Network("10.16.0.0/12"), 4, 10, 6),
    "10+4+6 below a /12": AddressPlan(IPv4Network("172.16.0.0/12"), 10, 4, 6),
    "one cell": AddressPlan(IPv4Network("10.7.0.0/16"), 0, 8, 8),
    "one subnet in each cell": AddressPlan(IPv4Network("10.0.0.0/8"), 16, 0, 8),
    "one host in each subnet": AddressPlan(IPv4Network("10.0.0.0/8"), 6, 16, 2),
    "many hosts": AddressPlan(IPv4Network("10.0.0.0/8"), 5, 3, 16),
}
PEERS = tuple(bytes.fromhex(mac) for mac in ("02b7c8d9eafb", "02c7d8e9fa0b", "02d7e8f90a1b"))
TAPS = tuple(f"t{number}" for number in range(8))
MAKE_TAPS = " && ".join(
    [f"ip link add t{n} type veth peer name t{n + 1}" for n in range(0, len(TAPS), 2)]
    + [f"ip link set {tap} addrgenmode none up" for tap in TAPS]
)
LINK, BEHIND = IPv4Network("192.0.2.0/24"), IPv4Network("198.51.100.0/24")
OWN, HOST_LINK = bytes((192, 0, 2, 10)), 77
HOPS = tuple(bytes((192, 0, 2, n)) for n in (1, 2, 3))
SERVERS = tuple(bytes((192, 0, 2, n)) for n in (71, 72, 73))
FAR = tuple(bytes((198, 51, 100, n)) for n in (9, 77, 130))
FIRST_PORT_ID = 0x1A2B
MTUS = (1500, 1500, 1400, 576, 2000)
POLICIES = 0.6
"""Share of worlds whose cells have policies."""
TRACKED, FLOWS = 3, 64
"""Every third port is tracked, with room for so many flows."""
START_S = 1_000.0
WALL_US = 1_700_000_000_000_000
KNOWN_STATES = {NeighbourState.REACHABLE, NeighbourState.PROBE}
SHOWN_STATES = {PortState.ACTIVE, PortState.FENCED}
LIMITS = Limits(misses_per_s_port=200, misses_per_s_host=400, hold_per_destination=8)


@dataclass(slots=True, eq=False)
class Place:
    """An address and its guest. host: where a peer says that it runs; nic: it is here, too."""

    subnet: SubnetId
    address: Address
    vmac: Mac
    guest: str
    host: Mac | None = None
    claim: Claim | None = None
    nic: Nic | None = None


class UnlimitedPorts(Ports):
    """The agent's, with token buckets that are never empty. Without policies some are tracked: it changes no frame."""

    def _entry(self, nic: Nic, state: PortState) -> PortEntry:
        entry = super()._entry(nic, state)
        tracked = entry.tracked if self._enforcement is not None else nic.port % TRACKED == 0
        return replace(entry, arp_rate=UNLIMITED, group_rate=UNLIMITED, tracked=tracked)


def subnets_of(plan: AddressPlan) -> list[SubnetId]:
    """Three in a cell and two in another, as far as the plan has room; numbers with bits at both ends."""
    cells = sorted({plan.max_cell * 5 // 8, plan.max_cell})
    numbers = sorted({plan.max_subnet * 3 // 4, plan.max_subnet // 2 + 1 if plan.max_subnet > 1 else 0, 0})
    return [SubnetId(cell, number) for cell in cells for number in numbers][:5]


class World:
    """See above. `taps`: ifindexes that may become ports; ifindex_of: those that are, by port id.

    cast: places to begin with, those with no host here; by default made up from the seed.
    """

    def __init__(
        self,
        programs: Programs,
        taps: list[int],
        seed: str,
        plan: AddressPlan | None = None,
        cast: Sequence[Place] = (),
    ) -> None:
        self.programs = programs
        self.taps = taps
        self.rng = random.Random(seed)
        self._routes = random.Random(f"routes of {seed}")
        self.plan = plan or self.rng.choice(list(PLANS.values()))
        self.now = START_S
        self.told: set[Address] = set()
        self._stamp = WALL_US
        self._port_id = FIRST_PORT_ID
        self.subnets = sorted({place.subnet for place in cast}) or subnets_of(self.plan)
        self.places = list(cast) or self._make_places()
        self.topology: Topology = {subnet: self.facts(subnet) for subnet in self.subnets}
        wanted = not cast and self.rng.random() < POLICIES
        self.policies = WorldPolicies(self.rng, self.plan, self.subnets) if wanted else None
        self.twins: TwinPolicies | None = None
        self._outside = random.Random(f"outside of {seed}")
        mtus = self._outside.sample(MTUS, 2)
        weights = (1, self._outside.choice((1, 3)), 0)
        route = Route(BEHIND, tuple(map(NextHop, HOPS, weights)), mtus[0])
        self.declared = ExternalMap([OnLink(LINK, mtus[1])], [route])
        self.macs = {address: bytes((6, 0x5E, 0, 0, 0, address[3])) for address in (*HOPS, *SERVERS)}
        self.silent: set[Address] = set()
        self.met: set[Address] = set()
        """Of these, the programs know where they are."""
        self._clear()
        self.boot()
        self.discovery.ready(self.now)
        here = len([place for place in cast if place.host is None]) or len(taps) - 2
        for place in self.places[:here]:
            self.plug(place, PortState.ACTIVE)
        for place in self.places[here:]:
            if cast or self.rng.random() < 0.8:
                self.start_elsewhere(place, place.host or self.rng.choice(PEERS))
        self.pass_time(1)

    def _make_places(self) -> list[Place]:
        numbers = min(4, self.plan.max_host - 2)
        places = []
        for subnet in self.subnets:
            for number in range(numbers):
                host = 2 + number * (self.plan.max_host - 3) // max(1, numbers - 1) if numbers > 1 else 2
                vmac = bytes((0x52, 0x54, 0, 0x10 + subnet.cell % 7, 0x20 + subnet.subnet % 11, 0x30 + number))
                place = Place(subnet, self.plan.address(subnet, host), vmac, f"g{len(places)}")
                places.append(replace(place, vmac=vmac[:3] + bytes((len(places),)) + vmac[4:]))
        self.rng.shuffle(places)
        return places

    def facts(self, subnet: SubnetId) -> SubnetFacts:
        plan = self.plan
        service = SubnetService(plan.router(subnet), plan.mask(), plan.broadcast(subnet))
        return SubnetFacts(self.rng.choice(MTUS), service, groups_routed=self._routes.random() < 0.2)

    def _clear(self) -> None:
        for port in {port for port, _ in self.programs.drop_counters()}:
            self.programs.forget_port_counters(port)
        for ifindex, entry in self.programs.ports().items():
            self.programs.remove_port(ifindex)
            self.programs.forget_port_counters(entry.port_id)
            self.programs.flows.remove(entry.port_id)
        self.programs.forget_port_counters(PORT_WIRE)
        for address in list(self.programs.endpoints()):
            self.programs.remove_endpoint(address)
        for key in self.programs.group_lists():
            self.programs.remove_group_list(*key)
        for port in self.programs.policy.ports():
            self.programs.policy.remove_port(port)
            self.programs.flows.remove(port)
        for table in POLICY_TABLES:
            for key in list(self.programs.policy.keys(table)):
                self.programs.policy.write(table, key, None)

    def boot(self) -> None:
        """An agent, of which nothing is told yet. fast: its file does not say `fastpath: off`."""
        self.fast = self.rng.random() > 0.25
        host = host_entry(plan=self.plan, fastpath=self.fast)
        self.programs.configure(host)
        self.uplink = host.uplink_ifindex
        self.discovery = Discovery(PMAC, self.plan, random.Random(self.rng.random()), WALL_US, LIMITS)
        self.externals = Externals(PMAC, self.declared, [OwnAddress(OWN, LINK)])
        self.pipeline = Pipeline(self.plan, PMAC, PortTable(), self.topology, self.discovery, self.externals)
        self.fastpath = FastPath(self.programs, self.plan, self.topology, self.discovery, self.fast)
        self.outside = self.fastpath.outside = Outside(self.programs, self.externals, self.fast, HOST_LINK)
        self.outside.start()
        self._questions: list[bytes] = []
        self.fastpath.on_forwarded = self.pipeline.moved.__setitem__
        self.ifindex_of: dict[int, int] = {}
        self.group_lists = GroupLists(self.programs, self.pipeline, self.ifindex_of, self.fast)
        shell = SimpleNamespace(
            pipeline=self.pipeline,
            fastpath=self.fastpath,
            ifindex_of=self.ifindex_of,
            forget_port=self.ifindex_of.pop,
            now=lambda: self.now,
            group_lists=self.group_lists,
            shared=SharedMaps(self.programs, self.fastpath, self.pipeline.ports),
        )
        limits = SimpleNamespace(
            divert_pps=UNLIMITED.packets_per_s, divert_burst=UNLIMITED.burst_packets, dhcp_pps=UNLIMITED.packets_per_s
        )
        configuration = SimpleNamespace(plan=self.plan, host=SimpleNamespace(limits=limits))
        enforcement = self._boot_policies()
        self.ports = UnlimitedPorts(None, self.programs, shell, configuration, max(MTUS), enforcement)  # type: ignore[arg-type]

    def _boot_policies(self) -> Enforcement | None:
        if self.policies is None:
            return None
        exchange = self.pipeline.identities
        enforcement = enforcement_of(self.policies, self.plan, self.programs, exchange)
        enforcement.on_change = self._policy_changed
        before, self.twins = self.twins, TwinPolicies(enforcement, self.programs)
        if before is not None:
            self.twins.adopt(before)
        self.pipeline.policies = self.twins
        for known in self.rng.sample(sorted(self.policies.known), len(self.policies.known) // 2):
            exchange.know(known, self.policies.known[known].encode())
        return enforcement

    def _policy_changed(self, nic: Nic) -> None:
        """As agent/guests.py does it."""
        place = next(p for p in self.places if p.nic is nic)
        endpoint = self.pipeline.ports.port(nic.port)
        assert endpoint is not None
        self.put(place, endpoint.state)
        if nic.identity != endpoint.identity and self.discovery.state(place.address) is ClaimState.ACTIVE:
            self.discovery.activate(place.address, place.vmac, nic.guest_id, nic.identity, None, self.now)

    def frame_done(self, diverted: bool = True) -> None:
        """What it told of flows is where it belongs."""
        if self.twins is not None:
            self.twins.done(diverted)

    # ------------------------------------------------------------------ what is there

    def port_of(self, ifindex: int) -> Endpoint | None:
        """The endpoint behind an interface."""
        return next((e for e in self.pipeline.ports.all() if self.ifindex_of.get(e.port) == ifindex), None)

    def shown(self, address: Address) -> Endpoint | None:
        """The port of this host that the kernel knows to hold an address."""
        endpoint = self.pipeline.ports.at(address)
        return endpoint if endpoint is not None and endpoint.state in SHOWN_STATES else None

    def passes(self, place: Place) -> bool:
        """Whether what its guest sends is forwarded."""
        endpoint = self.pipeline.ports.at(place.address)
        return endpoint is not None and endpoint.passes

    def here(self) -> list[Place]:
        return [place for place in self.places if place.nic is not None]

    def elsewhere(self) -> list[Place]:
        return [place for place in self.places if place.nic is None]

    def endpoints(self) -> dict[Address, EndpointEntry]:
        """Map `endpoints` as it must be, but for `used`."""
        table: dict[Address, EndpointEntry] = {}
        for address in self.told:
            entry, subnet = self.discovery.neighbours.get(address), self.plan.locate(address)
            assert entry is not None, address
            assert entry.found is not None, address
            assert entry.state in KNOWN_STATES, (address, entry.state)
            assert subnet is not None
            claim = entry.found.claim
            forwarded = self.pipeline.moved.get(address) == claim.host
            table[address] = RemoteEndpoint(claim, self.topology[subnet].mtu, next=entry.next, forwarded=forwarded)
        for address in self.met:
            mac = self.externals.mac(address)
            assert mac is not None, address
            table[address] = ExternalEndpoint(mac)
        for port in self.pipeline.ports.all() if self.fast else ():
            if port.address is not None and port.state in SHOWN_STATES:
                fenced = port.state is PortState.FENCED
                policed = self.pipeline.policies.port(port) is not None
                ifindex = self.ifindex_of[port.port]
                entry = LocalEndpoint(port.vmac, ifindex, port.port, port.mtu, fenced, policed, port.identity, policed)
                former = self.pipeline.former.get(port.address)
                table[port.address] = replace(entry, next=self.discovery.next_of(port.address), former=former)
        return table

    # ------------------------------------------------------------------ as the agent's shell does it

    def sync(self) -> None:
        """What Dataplane does after a frame: events, then what was decided."""
        pipeline = self.pipeline
        self._take(pipeline.collect(self.now))
        self.frame_done()
        if pipeline.pending_events:
            events, pipeline.pending_events = pipeline.pending_events, []
            for event in events:
                self._event(event)
        if pipeline.decided:
            decided, pipeline.decided = pipeline.decided, []
            self.fastpath.used(decided, self.now)
            for address in decided:
                self._learn(address)
        self._sync_outside()
        pipeline.groups.members.ports_changed(self.now)
        self.group_lists.sync()

    def _take(self, outputs: list[Output]) -> None:
        """The host's own questions, of all that it sends by itself."""
        sent = [output.frame for output in outputs if isinstance(output, ToWire)]
        self._questions += [frame for frame in sent if frame[12:14] == b"\x08\x06" and frame[38:42] in self.macs]

    def _sync_outside(self) -> None:
        border = self.pipeline.border
        events, border.pending_events = border.pending_events, []
        for event in events:
            self.outside.event(event)
            if isinstance(event, ExternalIdle) or (isinstance(event, ExternalChanged) and event.mac is None):
                self.met.discard(event.address)
        used, border.decided = border.decided, []
        self.outside.used(used)
        self.met |= {address for address in used if self.externals.mac(address) is not None}
        if self._questions and self._outside.random() < 0.3:
            self.servers_answer()

    def servers_answer(self) -> None:
        """Those that the host has asked, where they are not silent."""
        asked, self._questions = self._questions, []
        for frame in asked:
            target = frame[38:42]
            if target not in self.silent and self._outside.random() < 0.9:
                self.server_says(reply_frame(self.macs[target], target, PMAC, frame[28:32]))

    def server_says(self, frame: bytes) -> None:
        self._take(self.pipeline.from_wire(frame, self.now))
        self.sync()

    def _event(self, event: object) -> None:
        if isinstance(event, NeighbourChanged):
            self.fastpath.changed(event, self.now)
            if event.state not in KNOWN_STATES:
                self.told.discard(event.address)
        elif isinstance(event, Fenced | Unfenced):
            place = self._place(event.address)
            if place.nic is not None:
                self.put(place, PortState.FENCED if isinstance(event, Fenced) else PortState.ACTIVE)
        elif isinstance(event, TentativePassed | TentativeObjected):
            place = self._place(event.address)
            if place.nic is not None and isinstance(event, TentativePassed):
                self.discovery.confirm(event.address, self.now)
                self.put(place, PortState.ACTIVE)
            elif place.nic is not None:
                self.unplug(place)

    def _learn(self, address: Address) -> None:
        entry, subnet = self.discovery.neighbours.get(address), self.plan.locate(address)
        usable = entry is not None and entry.found is not None
        if self.fast and usable and not self.shown(address) and subnet in self.topology:
            self.told.add(address)

    def _place(self, address: Address) -> Place:
        return next(place for place in self.places if place.address == address)

    def put(self, place: Place, state: PortState) -> None:
        assert place.nic is not None
        self.ports.put(place.nic, state)
        if state in SHOWN_STATES:
            self.told.discard(place.address)
        self._join()

    def _join(self) -> None:
        self.programs.set_groups(self.pipeline.groups.listened())

    def plug(self, place: Place, state: PortState) -> None:
        free = [tap for tap in self.taps if tap not in self.ifindex_of.values()]
        if not free or place.nic is not None or place.subnet not in self.topology:  # the agent refuses such a guest
            return
        self._port_id += self.rng.choice((1, 3))
        subnet = SimpleNamespace(cell=cell_name(place.subnet.cell), name=f"s{place.subnet.subnet}")
        placement = SimpleNamespace(id=place.subnet, hostname=None, subnet=subnet, allowed=())
        nic = Nic(place.guest, f"uuid-{place.guest}", placement, place.vmac, fixed=True, address=place.address)  # type: ignore[arg-type]
        nic.port, nic.ifindex = self._port_id, self.rng.choice(free)
        place.nic = nic
        nic.incoming = nic.speaks = state is PortState.INCOMING and self.rng.random() < 0.5
        nic.labels = (("tier", self.rng.choice(TIERS)),)
        if self.policies is None and nic.port % TRACKED == 0:
            self.programs.flows.install(nic.port, FLOWS).close()
        self.put(place, state)
        if state is PortState.TENTATIVE:
            self.discovery.tentative(place.address, place.vmac, nic.guest_id, 0, None, self.now)
        elif state is PortState.ACTIVE:
            self.activate(place)

    def activate(self, place: Place) -> None:
        assert place.nic is not None
        place.host = place.claim = None
        self.discovery.activate(place.address, place.vmac, place.nic.guest_id, place.nic.identity, None, self.now)
        self.put(place, PortState.ACTIVE)

    def unplug(self, place: Place) -> None:
        assert place.nic is not None
        self.ports.remove(place.nic)
        self.programs.flows.remove(place.nic.port)
        if self.twins is not None:
            self.twins.tables.pop(place.nic.port, None)
        place.nic = None
        self._join()
        self.discovery.withdraw(place.address, self.now, gone=self.rng.random() < 0.5)

    # ------------------------------------------------------------------ peers

    def start_elsewhere(self, place: Place, host: Mac, announced: bool = True) -> None:
        self._stamp = max(self._stamp, self.discovery.highest_seen_stamp) + self.rng.randrange(1, 1000)
        guest_id = place.nic.guest_id if place.nic else int.from_bytes(place.vmac, "big")
        born = place.claim.born if place.claim else 5
        place.host = host
        known = self.policies.known if self.policies is not None else {}
        ours = [n for n, i in known.items() if i.cell == cell_name(place.subnet.cell)]
        number = self.rng.choice(ours) if ours and self.rng.random() < 0.9 else self.rng.getrandbits(64)
        place.claim = Claim(place.address, place.vmac, host, self._stamp, born, guest_id, number)
        if announced:
            self.say(Message(MessageType.ANNOUNCE, host, ALL_HOSTS_GROUP, bytes(4), place.address, place.claim))

    def prepare(self, place: Place, host: Mac) -> None:
        """Its guest is about to move from a peer to another, or from here."""
        if place.nic is not None:
            self.discovery.leaving(place.address, host if self.rng.random() < 0.8 else None, (), self.now)
            self.fastpath.leaving(place.address)
        elif place.claim is not None and place.host is not None:
            self.say(
                Message(
                    MessageType.PREPARE, place.host, PMAC, place.address, place.address, place.claim, 1, payload=host
                )
            )

    def send_on(self, place: Place, host: Mac | None) -> None:
        """It has moved: away from here, to a peer that takes what comes late; or here, from one that sends it on."""
        if place.nic is not None:
            table, tell = self.pipeline.former, lambda: self.fastpath.came_from(place.address, host)
        else:
            table, tell = self.pipeline.moved, lambda: self.fastpath.forward(place.address, host, self.now)
        if host is None:
            table.pop(place.address, None)
        else:
            table[place.address] = host
        tell()

    def say(self, message: Message) -> None:
        self.discovery.receive(message, self.now)
        self.sync()

    def exchange(self) -> None:
        """Carry the agent's questions to its peers, who answer most of them."""
        known = self.policies.known if self.policies is not None else {}
        for message in self.pipeline.identities.messages_to_send():
            found = known.get(int.from_bytes(message.payload, "big"))
            if found is not None and self.rng.random() < 0.8:
                kind, source, nonce = MessageType.IDENTITY_REPLY, message.destination, message.nonce
                answer = Message(kind, source, PMAC, message.spa, message.tpa, nonce=nonce, payload=found.encode())
                self.pipeline.identities.receive(answer, self.now)
                self.sync()
        self.servers_answer()
        for _ in range(8):
            asked = [m for m in self.discovery.messages_to_send() if m.type in (MessageType.REQUEST, MessageType.PROBE)]
            if not asked:
                return
            for message in asked:
                place = next((p for p in self.places if p.address == message.tpa), None)
                group = bool(message.destination[0] & 1)
                if self.rng.random() < 0.1 or (group and (place is None or place.host is None)):
                    continue
                holds = place is not None and place.host is not None and (group or place.host == message.destination)
                claim = place.claim if place is not None else None
                host = claim.host if holds and claim is not None else message.destination
                kind = MessageType.REPLY if holds else MessageType.MOVED if claim else MessageType.GONE
                self.say(Message(kind, host, PMAC, message.spa, message.tpa, claim, message.nonce))

    def _timers(self) -> list[float]:
        return [at for at in (self.discovery.next_timer(), self.pipeline.next_timer()) if at is not None]

    def pass_time(self, seconds: float) -> None:
        """Timers run when they are due."""
        until = self.now + seconds
        self.exchange()
        while (due := min(self._timers(), default=until + 1)) <= until:
            self.now = max(self.now, due)
            self.discovery.on_timer(self.now)
            self.pipeline.on_timer(self.now)
            self.sync()
            self.exchange()
        self.now = until
        self.pipeline.identities.on_timer(self.now)
        self.sync()
