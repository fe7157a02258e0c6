"""Guests' NICs on this host, from the first hook to the last: where they belong, their port, their claim.

    hook prepare ──▶ placed; others are asked for a free address, or whether they object       (may refuse)
    hook start   ──▶ address chosen, the tap exists: port made, walls up, tc program on         (may refuse)
    hook started ──▶ claim and port active, for a new address once nobody objected in 600 ms
    stopped, release, tap gone, event STOPPED ──▶ port and claim gone, reservation kept
    UNDEFINED    ──▶ reservation gone

A hot-plugged NIC has no hook: `adopt` does the same steps at once, from netlink and libvirt events, and so does a
restarted agent that finds guests running. Each step is safe to repeat. A step that fails, however, leaves nothing of
what it made. A guest's steps wait for each other where they wait (`lock`); all else happens between two waits.
"""

import asyncio
import logging
import math
from weakref import WeakValueDictionary

from divhook.adapters.bpf.errors import BpfError
from divhook.adapters.bpf.programs import Programs
from divhook.adapters.libvirt import Guest
from divhook.adapters.links import LinkError, Links
from divhook.agent import leases, move_contents
from divhook.agent.addresses import Addresses
from divhook.agent.control import RequestError
from divhook.agent.dataplane import Dataplane
from divhook.agent.enforcement import Enforcement
from divhook.agent.moves import Moves
from divhook.agent.nic import Key, Nic, Phase
from divhook.agent.ports import Ports, tell_kernel
from divhook.agent.registry import Registry, RegistryError
from divhook.config.configuration import Configuration, Placement, PlacementError
from divhook.config.domain import Domain, DomainError, DomainNic, parse_domain
from divhook.config.values import BadValueError
from divhook.core.addressing import Mac, address_text, mac_text
from divhook.core.census import CensusEvent, Chosen, Confirmed, Lost, Refused
from divhook.core.dhcp import LeaseChange, LeaseEvent
from divhook.core.discovery import ClaimState, Event, Fenced, Unfenced
from divhook.core.endpoint import Endpoint, PortState
from divhook.core.moves.messages import Handover
from divhook.core.wire.discovery import Claim
from divhook.policy.labels import parse_labels

NEED_PLACE = frozenset(("prepare", "start", "migrate", "restore"))
"""Operations that read where a guest belongs."""
CHOICE_WAIT_S = 1.0
"""The census answers within 40 ms by its own timer; this is for an event loop that is late."""
PEER_WAIT_S = 1.0
"""How long a guest that comes in waits for a word of any host with this cluster's key, where none is known."""
PICK_UP_S = 30.0
"""How long TCP in mid-stream may begin flows at the port of a guest that came without a hand-over of its own."""
FAULTS = (BpfError, LinkError, OSError, RegistryError)
"""What the host may refuse us; the texts are for a person."""
NOT_YET = "the agent has not yet learned from libvirt what runs here; try again in a second"

log = logging.getLogger(__name__)


class Guests:
    """Every divhook NIC of this host. All methods run in the event loop's thread."""

    def __init__(
        self,
        configuration: Configuration,
        registry: Registry,
        programs: Programs,
        dataplane: Dataplane,
        links: Links,
        uplink_mtu: int,
        enforcement: Enforcement | None = None,
    ) -> None:
        self.configuration = configuration
        self.reconciled = False
        self._registry = registry
        self._programs = programs
        self._dataplane = dataplane
        self._links = links
        self._uplink_mtu = uplink_mtu
        self._addresses = Addresses(registry, dataplane)
        self._ports = Ports(registry, programs, dataplane, configuration, uplink_mtu, enforcement)
        self._enforcement = enforcement
        if enforcement is not None:
            enforcement.on_change = self._policy_changed
        self._nics: dict[Key, Nic] = {}
        self._locks: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()
        self.moves: Moves | None = None
        self._told: dict[Key, str] = {}  # why a NIC has no network; said once, though tried every 30 s
        self._changed = asyncio.Event()
        self.configure(configuration)

    def configure(self, configuration: Configuration) -> None:
        """Use these files from now on. Guests that run keep the place they have."""
        self.configuration = configuration
        statics = {e.config.address for e in configuration.endpoints if e.config.address is not None}
        self._dataplane.census.set_static(statics | configuration.allowed_addresses())

    def all(self) -> list[Nic]:
        """Every NIC, in the order of coming."""
        return list(self._nics.values())

    def of(self, guest_uuid: str) -> list[Nic]:
        """The NICs of one guest."""
        return [nic for nic in self._nics.values() if nic.guest_uuid == guest_uuid]

    def lock(self, guest_uuid: str) -> asyncio.Lock:
        """Steps of one guest never overlap."""
        return self._locks.setdefault(guest_uuid, asyncio.Lock())

    # ------------------------------------------------------------------ hooks

    async def hook(self, operation: str, suboperation: str, xml: str) -> None:
        """One call of libvirt's qemu hook. Raises RequestError: what the person who starts the guest should read."""
        try:
            domain = self._parse(xml, metadata=operation in NEED_PLACE)
        except DomainError as error:
            raise RequestError(str(error)) from error
        if not domain.nics:
            return
        async with self.lock(domain.uuid):
            try:
                await self._step(operation, suboperation, domain)
            except FAULTS as error:
                raise RequestError(f"guest {domain.name}: {error}") from error

    async def _step(self, operation: str, suboperation: str, domain: Domain) -> None:
        if operation in ("stopped", "release"):
            self.unplug(domain.uuid)
        elif suboperation != "begin":
            return
        elif operation in ("prepare", "migrate", "restore"):
            if not self.reconciled:
                raise RequestError(NOT_YET)
            if operation != "restore":
                self.prepare(domain, incoming=operation == "migrate")
        elif operation == "start":
            await self.plug(domain)
        elif operation == "started":
            self.run(domain)

    def _parse(self, xml: str, metadata: bool = True) -> Domain:
        host = self.configuration.host
        return parse_domain(xml, network=host.network, bridge=host.bridge, metadata=metadata)

    def prepare(self, domain: Domain, incoming: bool = False) -> None:
        """Find every NIC's place and address; start asking whether anybody objects. All or nothing."""
        made: list[Nic] = []
        try:
            self._absent(domain)
            for wanted in domain.nics:
                old = self._nics.get((domain.uuid, wanted.mac))
                if old is not None:
                    if old.incoming and not incoming and old.phase is Phase.PREPARED and not old.refusal:
                        continue  # migrate came before prepare
                    self._forget(old)
                nic = self._place(domain, wanted)
                nic.incoming, nic.began_s = incoming, self._dataplane.now()
                self._nics[nic.key] = nic
                made.append(nic)
                self._ask(nic)
                if incoming and self.moves is not None:
                    self.moves.expect(nic)
        except BaseException:
            for nic in made:
                self._forget(nic)
            raise

    def _place(self, domain: Domain, wanted: DomainNic) -> Nic:
        try:
            placement = self.configuration.place(wanted, domain.name)
        except PlacementError as error:
            raise RequestError(str(error)) from error
        holder = next((n for n in self._nics.values() if n.mac == wanted.mac), None)
        if holder is not None:
            raise RequestError(f"NIC {mac_text(wanted.mac)}: this MAC is used by {holder} on this host; change one")
        nic = Nic(domain.name, domain.uuid, placement, wanted.mac, placement.address is not None)
        self._label(nic, placement.labels)
        mtu = placement.subnet.mtu_with(self._uplink_mtu)
        if mtu > self._uplink_mtu:
            raise RequestError(
                f"{nic}: subnet {placement.subnet} has mtu {mtu}, but this host's uplink takes {self._uplink_mtu} "
                "bytes; lower the one in the cell's file, or raise the other"
            )
        if wanted.mtu is not None and wanted.mtu > mtu:
            raise RequestError(
                f"{nic}: <mtu size='{wanted.mtu}'/> is more than the {mtu} of subnet {placement.subnet}; remove it"
            )
        return nic

    def _label(self, nic: Nic, labels: str) -> None:
        """Give a NIC its labels, and so its identity. Raises RequestError."""
        try:
            nic.labels = parse_labels(labels)
        except BadValueError as error:
            hint = f" ({error.hint})" if error.hint else ""
            raise RequestError(f"{nic}: {error}{hint}") from error
        if self._enforcement is not None:
            nic.identity = self._enforcement.identity_of(nic).number

    def _labels_of(self, domain: Domain, wanted: DomainNic) -> str:
        """What its metadata and the cell's file say now; nothing where they disagree, which is told."""
        try:
            return self.configuration.place(wanted, domain.name).labels
        except PlacementError as error:
            self._tell((domain.uuid, wanted.mac), f"{error}; its labels count for nothing until then")
            return ""

    def _relabel(self, nic: Nic, domain: Domain, wanted: DomainNic) -> None:
        """Labels may have changed while the guest runs: they count at once."""
        before = nic.labels
        self._label(nic, self._labels_of(domain, wanted))
        if nic.labels != before:
            log.info("%s: its labels are now %s", nic, ",".join(f"{k}={v}" for k, v in nic.labels) or "none")
            self._policy_changed(nic)

    def _policy_changed(self, nic: Nic) -> None:
        """What its cell's policy makes of a NIC has changed: tell the port, and who it is."""
        endpoint = self._dataplane.pipeline.ports.port(nic.port)
        if endpoint is None or self._nics.get(nic.key) is not nic:
            return
        try:
            self._ports.put(nic, endpoint.state)
        except (RequestError, BpfError) as error:
            log.error("%s: its policy cannot be put in force: %s", nic, error)
        if nic.identity != endpoint.identity:
            self._addresses.identify(nic)
            self._dataplane.inject(self._dataplane.now(), [])

    def _ask(self, nic: Nic) -> None:
        self._join()
        self._addresses.ask(nic)
        self._dataplane.inject(self._dataplane.now(), [])

    def _join(self) -> None:
        waiting = [n.placement.id for n in self._nics.values() if n.phase is Phase.PREPARED]
        subnets = {*self._dataplane.active_subnets(), *waiting, *self._addresses.subnets()}
        self._dataplane.join_groups(sorted(subnets))

    async def plug(self, domain: Domain) -> None:
        """The taps exist: make them ports. All or nothing. Raises RequestError where an address was objected to."""
        if any((domain.uuid, wanted.mac) not in self._nics for wanted in domain.nics):
            if not self.reconciled:
                raise RequestError(NOT_YET)
            self.prepare(domain)
        nics = [(self._nics[(domain.uuid, wanted.mac)], wanted) for wanted in domain.nics]
        try:
            for nic, _ in nics:  # every answer before the first port
                await self._answered(nic)
                await self._of_this_cluster(nic)
            for nic, wanted in nics:
                await self._plug(nic, wanted)
        except BaseException:
            for nic, _ in nics:
                if nic.phase is not Phase.RUNNING:
                    self._forget(nic)
            raise

    async def _plug(self, nic: Nic, wanted: DomainNic, runs: bool = False) -> None:
        """runs: the guest does already; then a port that passes its traffic goes on passing it."""
        if nic.phase is not Phase.PREPARED:
            return
        await self._answered(nic)
        if wanted.target is None:
            raise RequestError(f"{nic}: libvirt names no tap for it; is the interface of type network or bridge?")
        try:
            link = await self._links.ensure_port(wanted.target)
        except LinkError as error:
            raise RequestError(f"{nic}: {error}") from error
        if nic.refusal:  # while the link was set up
            raise RequestError(f"{nic}: {nic.refusal}")
        holder = next((n for n in self._nics.values() if n.ifindex == link.ifindex), None)
        if holder is not None:
            raise RequestError(f"{nic}: its tap {wanted.target} is that of {holder}")
        nic.ifname, nic.ifindex = wanted.target, link.ifindex
        state = _quiet(nic)
        if runs and (nic.known or nic.fixed) and self._ports.passes(nic):  # a restarted agent
            state = PortState.FENCED if self._claim_state(nic) is ClaimState.FENCED else PortState.ACTIVE
        if state is PortState.ACTIVE:
            self._addresses.claim(nic)
        self._ports.make(nic, state, {n.port for n in self._nics.values() if n is not nic})
        nic.phase = Phase.PLUGGED
        self._join()
        if nic.address is not None:  # else lost meanwhile, and another is being chosen
            self._addresses.reserve(nic)
        if nic.incoming and self.moves is not None:
            self._take_over(nic)
            self.moves.port_ready(nic)

    async def _answered(self, nic: Nic) -> None:
        """Wait until an address is chosen. Raises RequestError where it is refused, or not chosen in time."""
        until = self._dataplane.now() + CHOICE_WAIT_S
        while nic.address is None and not nic.refusal:
            self._changed.clear()
            try:
                await asyncio.wait_for(self._changed.wait(), until - self._dataplane.now())
            except TimeoutError:
                break
        if nic.refusal or nic.address is None:
            raise RequestError(f"{nic}: {nic.refusal or 'no address could be chosen for it in time; try again'}")

    async def _of_this_cluster(self, nic: Nic) -> None:
        """A guest that comes from another host needs one with this key: to all others it would be nobody here.

        One that is known is enough, though it hands nothing over: its agent may be away. Raises RequestError.
        """
        until = self._dataplane.now() + PEER_WAIT_S
        while nic.incoming and not nic.handed and not self._dataplane.authenticator.peer_count:
            self._changed.clear()
            try:
                await asyncio.wait_for(self._changed.wait(), until - self._dataplane.now())
            except TimeoutError:
                raise RequestError(
                    f"{nic}: it comes from another host, but none answers that has this host's cluster key. Compare "
                    "`divhook key show` on both; and its agent has to run there: systemctl status divhook-agent"
                ) from None

    def run(self, domain: Domain) -> None:
        """The guest runs: claim its addresses. An incoming guest runs elsewhere until libvirt's RESUMED."""
        for wanted in domain.nics:
            nic = self._nics.get((domain.uuid, wanted.mac))
            if nic is not None and not nic.incoming:
                self._started(nic)

    def resumed(self, guest_uuid: str) -> None:
        """libvirt: the guest runs here from now on. Comes at a plain start too, a little before its `started` hook."""
        for nic in self.of(guest_uuid):
            if nic.phase is Phase.PLUGGED and not nic.started:
                self._started(nic)

    def _started(self, nic: Nic) -> None:
        came, nic.started, nic.incoming = nic.incoming, True, False
        if nic.confirmed or nic.known or nic.fixed:
            self._claim(nic)
        for group in nic.groups if nic.phase is Phase.RUNNING else ():
            self._dataplane.pipeline.groups.members.restore(nic.port, group, self._dataplane.now())
        if came and self.moves is not None:
            self.moves.runs(nic)

    # ------------------------------------------------------------------ moves

    def first_frame(self, port: int) -> None:
        """A guest that comes in has spoken."""
        nic = next((n for n in self._nics.values() if n.port == port), None)
        if nic is not None:
            if self.moves is not None:
                self.moves.first_frame(nic)
            self.resumed(nic.guest_uuid)

    def may_speak(self, nic: Nic) -> None:
        """All is ready for a NIC that comes in: its first frames need not wait until this agent has seen one."""
        if nic.incoming and nic.port and nic.phase is Phase.PLUGGED and not nic.started:
            nic.speaks = True
            try:
                self._ports.put(nic, PortState.INCOMING)
            except (RequestError, *FAULTS) as error:
                log.error("%s: %s", nic, error)

    def leaving(self, nic: Nic, host: Mac | None) -> None:
        """A NIC is about to move to a host, which is ready for it; None: it stays. Hosts of its neighbours are told."""
        if nic.address is None or self._nics.get(nic.key) is not nic:
            return
        plane, now = self._dataplane, self._dataplane.now()
        hosts = move_contents.hosts_of_talkers(plane, host)
        plane.pipeline.discovery.leaving(nic.address, host, hosts, now)
        tell_kernel(plane.fastpath.leaving, nic.address)
        plane.inject(now, [])

    def moved_out(self, nic: Nic, claim: Claim) -> None:
        """Another host holds it now: nothing of it stays here but the reservation, and nobody is told GONE."""
        now = self._dataplane.now()
        if nic.address == claim.address:
            self._dataplane.pipeline.discovery.moved_out(claim.address, claim, now)
            tell_kernel(self._dataplane.fastpath.moved_out, claim.address, now)
            self._dataplane.pipeline.decided.append(claim.address)
        self._forget(nic)
        self._dataplane.inject(now, [])

    def stayed(self, nic: Nic, announce: bool) -> None:
        """A move was given up: the guest is here. announce: it was paused for it."""
        if announce and self._nics.get(nic.key) is nic and nic.phase is Phase.RUNNING:
            self._addresses.identify(nic)
            self._dataplane.inject(self._dataplane.now(), [])

    def handed_over(self, nic: Nic, handover: Handover) -> None:
        """What the former host says of a NIC that comes: its address, its lease, whom it talks to."""
        now, claim = self._dataplane.now(), handover.claim
        self._dataplane.pipeline.discovery.observe(claim)
        nic.handed = True
        move_contents.take(nic, handover, self._dataplane, self._enforcement)
        self._changed.set()
        if (
            nic.placement.address in (None, claim.address)
            and self._dataplane.pipeline.plan.locate(claim.address) == nic.placement.id
        ):
            nic.known = nic.known or nic.address in (None, claim.address)
            if nic.address != claim.address and nic.phase is Phase.PREPARED:
                self._addresses.handed(nic, claim.address)
        for talker in handover.talkers:
            mine = self._dataplane.pipeline.ports.at(talker.address) is not None
            if not mine and self._dataplane.pipeline.discovery.adopt(talker, now):
                self._dataplane.pipeline.decided.append(talker.address)
        self._take_over(nic)

    def _take_over(self, nic: Nic) -> None:
        """Its lease, once there is both lease and port."""
        if nic.port and nic.lease is not None and nic.address is not None:
            value, nic.lease = nic.lease, None
            leases.take_over(self._registry, self._dataplane.pipeline.dhcp, nic, value, self._dataplane.now())

    def flows_of(self, nic: Nic, within_s: float) -> list[bytes] | None:
        """Its connections that were seen within so long, as the other host takes them; None: not tracked here."""
        return self._enforcement.export_flows(nic.port, within_s) if self._enforcement is not None else None

    def take_flows(self, nic: Nic, exported: bytes) -> int:
        """Connections from the former host. Raises ValueError."""
        return self._enforcement.take_flows_untrusted(nic.port, exported) if self._enforcement is not None else 0

    def pick_up(self, nic: Nic) -> None:
        """It came without its connections: take up those in mid-stream that policy allows."""
        if self._enforcement is not None:
            self._enforcement.pick_up(nic.port, self._dataplane.now(), PICK_UP_S)

    def handover_of(self, nic: Nic, claim: Claim) -> Handover:
        """What the next host is to know."""
        return move_contents.handover_of(nic, claim, self._dataplane, self._enforcement)

    def _claim(self, nic: Nic) -> None:
        """Take the address; the port passes traffic from here on."""
        if nic.phase is Phase.PLUGGED and nic.address is not None and not nic.refusal:
            self._addresses.claim(nic)
            nic.phase = Phase.RUNNING
            self._activate_port(nic)

    def _activate_port(self, nic: Nic) -> None:
        now = self._dataplane.now()
        self._put(nic, PortState.ACTIVE)
        self._dataplane.inject(now, self._dataplane.pipeline.confirm(nic.port, now))

    def _put(self, nic: Nic, state: PortState) -> None:
        self._ports.put(nic, state)
        self._join()

    # ------------------------------------------------------------------ without hooks

    async def adopt(self, guest: Guest, listed_s: float) -> None:
        """A guest that ran when libvirt was asked, at listed_s: make sure of the NICs that it has, and of no others."""
        try:
            domain = self._parse(guest.xml)
        except DomainError as error:
            self._tell((guest.uuid, b""), f"{error}; what runs keeps its place until its next start")
            try:
                domain = self._parse(guest.xml, metadata=False)
            except DomainError:
                return
        if not domain.nics and not self.of(guest.uuid) and not self._registry.reservations(guest.uuid):
            return
        async with self.lock(domain.uuid):
            present = {wanted.mac for wanted in domain.nics}
            for nic in self.of(domain.uuid):
                if nic.mac not in present and nic.phase is not Phase.PREPARED and nic.began_s <= listed_s:
                    self._forget(nic)
            for wanted in domain.nics:
                try:
                    await self._adopt(domain, wanted, guest.paused, listed_s)
                except (RequestError, *FAULTS) as error:
                    self._tell((domain.uuid, wanted.mac), f"NIC stays without network: {error}")
            self._absent(domain)

    async def _adopt(self, domain: Domain, wanted: DomainNic, paused: bool, listed_s: float) -> None:
        nic = self._nics.get((domain.uuid, wanted.mac))
        if nic is not None and nic.phase is Phase.PREPARED and (paused or wanted.target is None):
            return  # its start hook is still to come
        if nic is not None and nic.phase is not Phase.PREPARED:
            self._relabel(nic, domain, wanted)
            self._heal(nic, paused)
            return
        if nic is None and paused and self.moves is not None and self.moves.left((domain.uuid, wanted.mac)):
            return  # it has moved away: libvirt is about to say so
        before = self._port_before(wanted)
        runs = not paused or before in (PortState.ACTIVE, PortState.FENCED)  # else it starts, or comes in, just now
        try:
            if nic is None:
                nic = self._place_again(domain, wanted)
                nic.began_s, nic.incoming = listed_s, paused and before is PortState.INCOMING
                self._nics[nic.key] = nic
                if self.reconciled or not runs or not self._addresses.reclaim(nic):
                    self._ask(nic)
            await self._plug(nic, wanted, runs)
            if nic.address is not None and self._claim_state(nic) is ClaimState.FENCED:
                nic.started, nic.phase = True, Phase.RUNNING
                self._put(nic, PortState.FENCED)
            elif runs:
                self._started(nic)
        except BaseException:
            if nic is not None:
                self._forget(nic)
            raise
        self._told.pop(nic.key, None)

    def _heal(self, nic: Nic, paused: bool) -> None:
        """A port whose guest did not get as far as libvirt says it is: `started` or RESUMED was lost, or no address."""
        if nic.phase is not Phase.PLUGGED:
            return
        if nic.refusal:
            self._ask(nic)
        if not paused and not nic.started:
            self._started(nic)

    def _claim_state(self, nic: Nic) -> ClaimState | None:
        return self._dataplane.pipeline.discovery.state(nic.address) if nic.address is not None else None

    def _place_again(self, domain: Domain, wanted: DomainNic) -> Nic:
        """A restarted agent leaves a guest that runs where it is, whatever the files and its metadata say by now."""
        reserved = self._registry.find(domain.uuid, wanted.mac)
        subnet = self.configuration.subnet(reserved.subnet) if reserved is not None else None
        if self.reconciled or reserved is None or subnet is None or self._port_before(wanted) is None:
            return self._place(domain, wanted)
        try:
            nic = self._place(domain, wanted)
            if nic.placement.id == reserved.subnet and nic.placement.address in (None, reserved.address):
                return nic
            reason = f"{nic.placement.source} now says {nic.placement.subnet}"
        except RequestError as error:
            reason = str(error)
        fixed = reserved.address if reserved.fixed else None
        placement = Placement(reserved.subnet, subnet, fixed, None, "registry")
        nic = Nic(domain.name, domain.uuid, placement, wanted.mac, reserved.fixed)
        self._label(nic, self._labels_of(domain, wanted))
        log.warning("%s keeps its place in %s until its next start: %s", nic, subnet, reason)
        return nic

    def _port_before(self, wanted: DomainNic) -> PortState | None:
        """What the NIC's port was to the agent that ran before this one: its map is still there."""
        return next((entry.state for entry in self._programs.ports().values() if entry.vmac == wanted.mac), None)

    def at_rest(self, guest: Guest) -> None:
        """A guest that is defined and does not run: addresses of NICs that it has no more are free."""
        if not self.of(guest.uuid) and self._registry.reservations(guest.uuid):
            try:
                self._absent(self._parse(guest.xml, metadata=False))
            except DomainError as error:
                log.debug("%s", error)

    def _absent(self, domain: Domain) -> None:
        present = {wanted.mac for wanted in domain.nics} | {nic.mac for nic in self.of(domain.uuid)}
        self._addresses.absent(domain.uuid, present)
        self._join_told()

    async def ended(self, guest_uuid: str, seen_s: float, defined: bool) -> None:
        """The guest did not run at seen_s, or was not even defined; its next start may have begun since."""
        async with self.lock(guest_uuid):
            self.unplug(guest_uuid, seen_s)
            if not defined and not self.of(guest_uuid):
                self._addresses.undefined(guest_uuid)
                self._join_told()

    def unplug(self, guest_uuid: str, seen_s: float = math.inf) -> None:
        """The guest was not here any more at seen_s; its next start may have begun since. Its reservations stay."""
        for nic in self.of(guest_uuid):
            if nic.began_s <= seen_s:
                self._forget(nic)
        for key in [key for key in self._told if key[0] == guest_uuid]:
            del self._told[key]

    def tap_gone(self, ifindex: int) -> None:
        """A tap has disappeared: detach, destroy, or a crash of QEMU."""
        for nic in [n for n in self._nics.values() if n.ifindex == ifindex]:
            self._forget(nic)

    def _forget(self, nic: Nic) -> None:
        """Nothing stays but the reservation. What the host refuses is told: the rest is done all the same."""
        if self._nics.get(nic.key) is not nic:
            return
        leaves = self.moves is not None and (self.moves.leaves(nic) or self.moves.may_have_moved(nic.guest_uuid))
        if self.moves is not None:
            self.moves.gone(nic)
        if self._nics.pop(nic.key, None) is None:
            return  # the last word on its move has done it
        if nic.port:
            self._ports.remove(nic)
        self._addresses.let_go(nic, moved=leaves and not nic.incoming)
        self._join_told()
        self._dataplane.inject(self._dataplane.now(), [])

    def keep_true(self) -> None:
        """Bring the kernel's ports and the uplink's groups back to what they must be."""
        self._ports.keep_true(self._nics.values())
        self._join_told()

    def topology_changed(self) -> None:
        """MTUs and limits of subnets may differ, and whether groups are routed."""
        self._join_told()
        self._ports.topology_changed(self._nics.values())

    def _join_told(self) -> None:
        try:
            self._join()
        except FAULTS as error:
            log.error("%s", error)

    def _tell(self, key: Key, text: str) -> None:
        if self._told.get(key) != text:
            self._told[key] = text
            log.error("%s", text)

    # ------------------------------------------------------------------ what the core decides

    def census_event(self, event: CensusEvent) -> None:
        """What became of the search for an address."""
        nic = next((n for n in self._nics.values() if n.guest_id == event.guest_id), None)
        if nic is None:
            return
        if isinstance(event, Chosen):
            nic.address = event.address
            if nic.port:
                self._addresses.reserve(nic)
                self._put(nic, _quiet(nic))
        elif isinstance(event, Confirmed):
            nic.confirmed = nic.address == event.address
            if nic.started and nic.confirmed:
                self._claim(nic)
        elif isinstance(event, Lost):
            log.warning("%s: %s; choosing another", nic, event.reason)
            self._addresses.lost(nic)
            if nic.port:
                self._put(nic, _quiet(nic))
        elif isinstance(event, Refused):
            nic.refusal = event.reason
            self._tell(nic.key, f"{nic}: {event.reason}")
        self._changed.set()

    def event(self, event: Event) -> None:
        """What discovery says of an address of ours."""
        if not isinstance(event, Fenced | Unfenced):
            return
        nic = next((n for n in self._nics.values() if n.address == event.address), None)
        if nic is None or not nic.port:
            return
        if isinstance(event, Fenced) and self._has_moved(nic, event.owner):
            return
        if isinstance(event, Fenced) and not nic.fixed and event.owner.guest_id != nic.guest_id:
            log.error(
                "%s: address %s belongs to another guest (NIC %s) on host %s: choosing another; the guest learns of "
                "it when its DHCP client renews",
                nic,
                address_text(event.address),
                mac_text(event.owner.vmac),
                mac_text(event.owner.host),
            )
            self._addresses.outranked(nic)
            self._choose_again(nic)
        elif isinstance(event, Fenced):
            log.error(
                "%s: FENCED: host %s holds a better claim on %s; nothing passes until it gives it up",
                nic,
                mac_text(event.owner.host),
                address_text(event.address),
            )
            self._put(nic, PortState.FENCED)
        else:
            log.warning("%s: free again, %s is active here", nic, address_text(event.address))
            self._activate_port(nic)

    def _has_moved(self, nic: Nic, owner: Claim) -> bool:
        """A better claim of the same guest, while it moves from here: no rival, but the end of the move."""
        if owner.guest_id != nic.guest_id or self.moves is None:
            return False
        if self.moves.active_elsewhere(nic, owner):
            return True
        if self.moves.may_have_moved(nic.guest_uuid):
            log.info("%s: moved to host %s, without a hand-over", nic, mac_text(owner.host))
            self.moved_out(nic, owner)
            return True
        return False

    def lease_event(self, endpoint: Endpoint, event: LeaseEvent) -> None:
        """A DHCP client did something: keep its lease over restarts; find another address after DECLINE."""
        nic = next((n for n in self._nics.values() if n.port == endpoint.port), None)
        if nic is None or nic.address is None:
            return
        leases.save(self._registry, self._dataplane.pipeline.dhcp, nic, self._dataplane.now())
        if event.kind is LeaseChange.DECLINED and self._addresses.decline(nic):
            self._choose_again(nic)

    def _choose_again(self, nic: Nic) -> None:
        """A running guest needs another address."""
        nic.phase = Phase.PLUGGED
        self._put(nic, PortState.TENTATIVE)
        self._ask(nic)

    def restore_leases(self) -> None:
        """After a restart: clients that renew find their leases."""
        now = self._dataplane.now()
        leases.restore(self._registry, self._dataplane.pipeline.dhcp, self.all(), now)


def _quiet(nic: Nic) -> PortState:
    """What a port may pass that is not active yet."""
    return PortState.INCOMING if nic.incoming else PortState.TENTATIVE
