"""Guests' NICs on this host, from the first hook to the last: where they belong, their port, their claim.

    hook prepare ──▶ placed; others are asked for a free address, or whether they object       (may refuse)
    hook start   ──▶ address chosen, the tap exists: port made, walls up, tc program on         (may refuse)
    hook started ──▶ claim and port active, for a new address once nobody objected in 600 ms
    stopped, release, tap gone, event STOPPED ──▶ port and claim gone, reservation kept
    UNDEFINED    ──▶ reservation gone

A hot-plugged NIC has no hook: `adopt` does the same steps at once, from netlink and libvirt events, and so does a
restarted agent that finds guests running. Each step is safe to repeat.
"""

import asyncio
import hashlib
import logging
import math
import time
from dataclasses import dataclass
from enum import Enum
from typing import Any

from divhook.abi.entries import PortEntry, Rate
from divhook.adapters.bpf.programs import Programs
from divhook.adapters.libvirt import Guest
from divhook.adapters.links import LinkError, Links
from divhook.agent.control import RequestError
from divhook.agent.dataplane import Dataplane
from divhook.agent.registry import Registry, Reservation
from divhook.config.configuration import Configuration, Placement, PlacementError
from divhook.config.domain import Domain, DomainError, DomainNic, parse_domain
from divhook.core.addressing import Address, Mac, SubnetId, address_text, mac_text
from divhook.core.census import QUARANTINE_S, AddressCensus, CensusEvent, Chosen, Confirmed, Lost, Refused
from divhook.core.dhcp import Lease, LeaseChange, LeaseEvent
from divhook.core.discovery import ClaimState, Discovery, Event, Fenced, Unfenced
from divhook.core.endpoint import MAX_PORT, Endpoint, PortState

NEED_PLACE = frozenset(("prepare", "start", "migrate", "restore"))
"""Operations that read where a guest belongs."""
CHOICE_WAIT_S = 1.0
"""The census answers within 40 ms by its own timer; this is for an event loop that is late."""
LAST_PORT = "last port"

log = logging.getLogger(__name__)


class Phase(Enum):
    """How far a NIC has come."""

    PREPARED = "prepared"  # no tap yet
    PLUGGED = "plugged"  # port exists, guest does not run yet
    RUNNING = "running"


@dataclass(slots=True)
class Nic:
    """One NIC of one guest.

    fixed: its address is configured. known: it had this address before, and was defended while it did not run.
    started: the guest runs here. confirmed: nobody objected to the address. refusal: why there is none, in words.
    """

    guest: str
    guest_uuid: str
    placement: Placement
    mac: Mac
    fixed: bool
    address: Address | None = None
    phase: Phase = Phase.PREPARED
    incoming: bool = False
    known: bool = False
    started: bool = False
    confirmed: bool = False
    refusal: str = ""
    port: int = 0
    ifindex: int = 0
    ifname: str = ""
    asked_s: float = 0.0

    @property
    def key(self) -> tuple[str, Mac]:
        """Guest and MAC: what makes a NIC."""
        return (self.guest_uuid, self.mac)

    @property
    def guest_id(self) -> int:
        """64 bits that are the same wherever the guest runs."""
        return guest_id_of(self.guest_uuid, self.mac)

    def __str__(self) -> str:
        return f"guest {self.guest}, NIC {mac_text(self.mac)}"


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
    ) -> None:
        self.configuration = configuration
        self.reconciled = False
        self._registry = registry
        self._programs = programs
        self._dataplane = dataplane
        self._links = links
        self._uplink_mtu = uplink_mtu
        self._nics: dict[tuple[str, Mac], Nic] = {}
        self._locks: dict[str, asyncio.Lock] = {}
        self._changed = asyncio.Event()

        self._take_up()

    def _take_up(self) -> None:
        """Give the census what the registry and the files know."""
        now, now_us = self._dataplane.now(), int(time.time() * 1e6)
        for entry in self._registry.reservations():
            self._census.reserve(entry.address, guest_id_of(entry.guest_uuid, entry.mac))
        for address, until_us in self._registry.quarantined(now_us).items():
            self._census.release(address, now, (until_us - now_us) / 1e6)
        self.configure(self.configuration)

    def configure(self, configuration: Configuration) -> None:
        """Use these files from now on. Guests that run keep the place they have."""
        self.configuration = configuration
        self._census.set_static({e.config.address for e in configuration.endpoints if e.config.address is not None})

    @property
    def _discovery(self) -> Discovery:
        return self._dataplane.pipeline.discovery

    @property
    def _census(self) -> AddressCensus:
        return self._dataplane.census

    def all(self) -> list[Nic]:
        """Every NIC, in the order of coming."""
        return list(self._nics.values())

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
            if (operation, suboperation) in (("prepare", "begin"), ("migrate", "begin"), ("restore", "begin")):
                if not self.reconciled:
                    raise RequestError(
                        "the agent has not yet learned from libvirt what runs here; try again in a second"
                    )
                if operation != "restore":
                    await self.prepare(domain, incoming=operation == "migrate")
            elif (operation, suboperation) == ("start", "begin"):
                await self.plug(domain)
            elif (operation, suboperation) == ("started", "begin"):
                await self.run(domain)
            elif operation in ("stopped", "release"):
                await self.unplug(domain.uuid)

    def _parse(self, xml: str, metadata: bool = True) -> Domain:
        host = self.configuration.host
        return parse_domain(xml, network=host.network, bridge=host.bridge, metadata=metadata)

    async def prepare(self, domain: Domain, incoming: bool = False) -> None:
        """Find every NIC's place and address; start asking whether anybody objects. All or nothing."""
        known = {nic.key for nic in self._nics.values() if nic.guest_uuid == domain.uuid and nic.incoming}
        made: list[Nic] = []
        try:
            for wanted in domain.nics:
                if (domain.uuid, wanted.mac) in known:
                    continue  # migrate came before prepare
                await self._forget((domain.uuid, wanted.mac))
                nic = self._place(domain, wanted)
                nic.incoming = incoming
                self._nics[nic.key] = nic
                made.append(nic)
                self._ask(nic)
        except RequestError:
            for nic in made:
                await self._forget(nic.key)
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

    def _ask(self, nic: Nic) -> None:
        """Ask all hosts of the subnet for a free address, or whether anybody objects to the one that is wanted."""
        now = nic.asked_s = self._dataplane.now()
        reserved = self._registry.find(nic.guest_uuid, nic.mac)
        fixed, preferred = nic.placement.address, None
        if reserved is not None and reserved.subnet == nic.placement.id and not reserved.fixed:
            preferred = reserved.address
        nic.known = reserved is not None and reserved.address in (fixed, preferred)
        holder = self._registry.holder(fixed) if fixed is not None else None
        if holder is not None and (holder.guest_uuid, holder.mac) != nic.key:
            raise RequestError(
                f"{nic}: address {address_text(holder.address)} belongs to guest {holder.guest} "
                f"(NIC {mac_text(holder.mac)}) on this host; give one of them another with `divhook assign`"
            )
        self._join()
        born = reserved.born if nic.known and reserved is not None else 0
        self._census.begin(
            nic.placement.id, nic.mac, nic.guest_id, now, fixed=fixed, preferred=preferred, born=born or None
        )
        self._dataplane.inject(now, [])

    def _born(self, nic: Nic) -> int | None:
        reserved = self._registry.find(nic.guest_uuid, nic.mac)
        return reserved.born if reserved is not None and reserved.address == nic.address and reserved.born else None

    def _pending_subnets(self) -> list[SubnetId]:
        return [n.placement.id for n in self._nics.values() if n.phase is Phase.PREPARED]

    async def plug(self, domain: Domain) -> None:
        """The taps exist: make them ports. Raises RequestError where an address was objected to meanwhile."""
        if any((domain.uuid, wanted.mac) not in self._nics for wanted in domain.nics):
            await self.prepare(domain)
        for wanted in domain.nics:  # every answer before the first port: a refusal leaves nothing
            await self._answered(self._nics[(domain.uuid, wanted.mac)])
        for wanted in domain.nics:
            await self._plug(self._nics[(domain.uuid, wanted.mac)], wanted)

    async def _plug(self, nic: Nic, wanted: DomainNic) -> None:
        if nic.phase is not Phase.PREPARED:
            return
        await self._answered(nic)
        if wanted.target is None:
            raise RequestError(f"{nic}: libvirt names no tap for it; is the interface of type network or bridge?")
        nic.ifname = wanted.target
        try:
            nic.ifindex = (await self._links.ensure_port(wanted.target)).ifindex
        except LinkError as error:
            raise RequestError(f"{nic}: {error}") from error
        nic.port = self._port_of(nic)
        self._put(nic, PortState.INCOMING if nic.incoming else PortState.TENTATIVE)
        self._programs.attach_port(nic.ifindex)
        nic.phase = Phase.PLUGGED
        self._reserve(nic)

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

    def _reserve(self, nic: Nic, born: int = 0) -> None:
        assert nic.address is not None
        self._registry.reserve(
            Reservation(
                nic.guest_uuid,
                nic.mac,
                nic.guest,
                nic.placement.id,
                nic.address,
                born or self._born(nic) or 0,
                nic.fixed,
            )
        )

    def _port_of(self, nic: Nic) -> int:
        """The port id that the tap has already (a restarted agent), or a fresh one."""
        adopted = self._programs.ports().get(nic.ifindex)
        used = {n.port for n in self._nics.values() if n is not nic}
        if adopted is not None and adopted.port_id not in used and adopted.vmac == nic.mac:
            return adopted.port_id
        used |= {entry.port_id for entry in self._programs.ports().values()}
        last = self._registry.get(LAST_PORT)
        for step in range(MAX_PORT):
            port = (last + step) % MAX_PORT + 1
            if port not in used:
                self._registry.put(LAST_PORT, port)
                return port
        raise RequestError(f"{nic}: this host has {MAX_PORT} ports already")

    def _put(self, nic: Nic, state: PortState) -> None:
        """Tell the core and the kernel of a port, or of its new state."""
        pipeline = self._dataplane.pipeline
        facts = pipeline.topology.get(nic.placement.id)
        mtu = facts.mtu if facts is not None else self._uplink_mtu
        endpoint = Endpoint(
            nic.port, nic.placement.id, nic.mac, nic.address, nic.guest, nic.guest_uuid, mtu=mtu, state=state
        )
        pipeline.ports.put(endpoint)
        pipeline.hostnames[nic.port] = nic.placement.hostname or nic.guest
        self._dataplane.ifindex_of[nic.port] = nic.ifindex
        limits = self.configuration.host.limits
        self._programs.set_port(
            nic.ifindex,
            PortEntry(
                nic.port,
                state,
                nic.mac,
                nic.address,
                router=self.configuration.plan.router(nic.placement.id),
                ipv4_rate=Rate(limits.divert_pps, limits.divert_burst),
                dhcp_rate=Rate(limits.dhcp_pps, max(limits.dhcp_pps, 1)),
            ),
        )
        self._join()

    def _join(self) -> None:
        self._dataplane.join_groups([*self._dataplane.active_subnets(), *self._pending_subnets()])

    async def run(self, domain: Domain) -> None:
        """The guest runs: claim its addresses. An incoming guest runs elsewhere until libvirt's RESUMED."""
        for wanted in domain.nics:
            nic = self._nics.get((domain.uuid, wanted.mac))
            if nic is not None and not nic.incoming:
                self._started(nic)

    def _started(self, nic: Nic) -> None:
        nic.started = True
        nic.incoming = False
        if nic.confirmed or nic.known or nic.fixed:
            self._claim(nic)

    def _claim(self, nic: Nic) -> None:
        """Take the address; the port passes traffic from here on."""
        if nic.phase is not Phase.PLUGGED or nic.address is None or nic.refusal:
            return
        now = self._dataplane.now()
        self._census.cancel(nic.guest_id, now)
        if self._discovery.state(nic.address) is not ClaimState.ACTIVE:  # else a restarted agent has taken it up
            claim = self._discovery.activate(nic.address, nic.mac, nic.guest_id, 0, self._born(nic), now)
            self._reserve(nic, claim.born)
        self._census.hold(nic.address, nic.guest_id)
        nic.phase = Phase.RUNNING
        self._activate_port(nic)

    def _activate_port(self, nic: Nic) -> None:
        now = self._dataplane.now()
        self._put(nic, PortState.ACTIVE)
        self._dataplane.inject(now, self._dataplane.pipeline.confirm(nic.port, now))

    def resumed(self, guest_uuid: str) -> None:
        """libvirt: the guest runs here from now on."""
        for nic in self._nics.values():
            if nic.guest_uuid == guest_uuid and nic.incoming and nic.phase is Phase.PLUGGED:
                self._started(nic)

    # ------------------------------------------------------------------ without hooks

    async def adopt(self, guest: Guest) -> None:
        """A guest that runs: make sure of every NIC that it has, and forget those that it has not any more."""
        try:
            domain = self._parse(guest.xml)
        except DomainError as error:
            log.error("%s; what runs keeps its place until its next start", error)
            try:
                domain = self._parse(guest.xml, metadata=False)
            except DomainError:
                return
        async with self.lock(domain.uuid):
            present = {wanted.mac for wanted in domain.nics}
            for nic in [n for n in self._nics.values() if n.guest_uuid == domain.uuid and n.mac not in present]:
                if nic.phase is not Phase.PREPARED:
                    await self._forget(nic.key)
            for wanted in domain.nics:
                try:
                    await self._adopt(domain, wanted)
                except RequestError as error:
                    log.error("NIC stays without network: %s", error)

    async def _adopt(self, domain: Domain, wanted: DomainNic) -> None:
        nic = self._nics.get((domain.uuid, wanted.mac))
        if nic is not None and nic.phase is not Phase.PREPARED:
            return
        if nic is None:
            nic = self._place_again(domain, wanted)
            self._nics[nic.key] = nic
            try:
                if not self._reclaim(nic):
                    self._ask(nic)
            except RequestError:
                await self._forget(nic.key)
                raise
        try:
            await self._plug(nic, wanted)
        except RequestError:
            await self._forget(nic.key)
            raise
        if nic.address is not None and self._discovery.state(nic.address) is ClaimState.FENCED:
            nic.phase = Phase.RUNNING
            self._put(nic, PortState.FENCED)
        elif nic.phase is Phase.PLUGGED:
            self._started(nic)

    def _place_again(self, domain: Domain, wanted: DomainNic) -> Nic:
        """A restarted agent leaves a guest that runs where it is, whatever the files and its metadata say by now."""
        reserved = self._registry.find(domain.uuid, wanted.mac)
        subnet = self.configuration.subnet(reserved.subnet) if reserved is not None else None
        has_port = any(entry.vmac == wanted.mac for entry in self._programs.ports().values())
        if self.reconciled or not has_port or reserved is None or subnet is None:
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
        log.warning("%s keeps its place in %s until its next start: %s", nic, subnet, reason)
        return nic

    def _reclaim(self, nic: Nic) -> bool:
        """A restarted agent takes up address, claim and lease that the registry has for a guest that went on."""
        reserved = self._registry.find(nic.guest_uuid, nic.mac)
        if self.reconciled or reserved is None or reserved.subnet != nic.placement.id:
            return False
        if nic.placement.address not in (None, reserved.address):
            return False
        nic.address = reserved.address
        nic.known = True
        self._discovery.reclaim(nic.address, nic.mac, nic.guest_id, 0, self._dataplane.now())
        self._census.hold(nic.address, nic.guest_id)
        return True

    async def unplug(self, guest_uuid: str, seen_s: float = math.inf) -> None:
        """The guest was not here any more at seen_s; its next start may have begun since. Its reservations stay."""
        for nic in [n for n in self._nics.values() if n.guest_uuid == guest_uuid and n.asked_s <= seen_s]:
            await self._forget(nic.key)

    async def tap_gone(self, ifindex: int) -> None:
        """A tap has disappeared: detach, destroy, or a crash of QEMU."""
        for nic in [n for n in self._nics.values() if n.ifindex == ifindex]:
            await self._forget(nic.key)

    def undefined(self, guest_uuid: str) -> None:
        """libvirt does not know the guest any more: its addresses are free after their quarantine."""
        for entry in self._registry.release(guest_uuid):
            self._quarantine(entry.address, guest_id_of(entry.guest_uuid, entry.mac))
        lock = self._locks.get(guest_uuid)
        if lock is not None and not lock.locked():
            del self._locks[guest_uuid]

    def _quarantine(self, address: Address, guest_id: int = 0) -> None:
        """guest_id: of the guest that had it and may have it back at once, as one that is defined again elsewhere."""
        self._registry.quarantine(address, int((time.time() + QUARANTINE_S) * 1e6))
        self._census.release(address, self._dataplane.now(), guest_id=guest_id)

    async def _forget(self, key: tuple[str, Mac]) -> None:
        nic = self._nics.pop(key, None)
        if nic is None:
            return
        now = self._dataplane.now()
        self._census.cancel(nic.guest_id, now)
        if nic.address is not None:
            self._discovery.withdraw(nic.address, now, gone=nic.phase is Phase.RUNNING)
            self._registry.save_lease(nic.address, None)
            reserved = self._registry.find(*key)
            if reserved is not None and reserved.address == nic.address:
                self._census.reserve(nic.address, nic.guest_id)
            else:
                self._census.release(nic.address, now, 0.0)
        if nic.port:
            self._dataplane.pipeline.ports.remove(nic.port)
            self._dataplane.pipeline.forget_port(nic.port)
            self._dataplane.forget_port(nic.port)
            self._programs.detach_port(nic.ifindex)
            self._programs.remove_port(nic.ifindex)
            self._programs.forget_port_counters(nic.port)
        self._join()
        self._dataplane.inject(now, [])

    # ------------------------------------------------------------------ discovery

    def census_event(self, event: CensusEvent) -> None:
        """What became of the search for an address."""
        nic = next((n for n in self._nics.values() if n.guest_id == event.guest_id), None)
        if nic is None:
            return
        if isinstance(event, Chosen):
            nic.address = event.address
            if nic.port:
                self._put(nic, PortState.TENTATIVE)
                self._reserve(nic)
        elif isinstance(event, Confirmed):
            nic.confirmed = True
            if nic.started:
                self._claim(nic)
        elif isinstance(event, Lost):
            log.warning("%s: %s; choosing another", nic, event.reason)
            nic.address = None
            if nic.port:
                self._put(nic, PortState.TENTATIVE)
        elif isinstance(event, Refused):
            nic.refusal = event.reason
            log.error("%s: %s", nic, event.reason)
        self._changed.set()

    def event(self, event: Event) -> None:
        """What discovery says of an address of ours."""
        address = getattr(event, "address", None)
        nic = next((n for n in self._nics.values() if n.address == address), None)
        if nic is None or not nic.port:
            return
        if isinstance(event, Fenced):
            log.error(
                "%s: FENCED: host %s holds a better claim on %s; nothing passes until it gives it up",
                nic,
                mac_text(event.owner.host),
                address_text(event.address),
            )
            self._put(nic, PortState.FENCED)
        elif isinstance(event, Unfenced):
            log.warning("%s: free again, %s is active here", nic, address_text(event.address))
            self._activate_port(nic)

    # ------------------------------------------------------------------ leases

    def lease_event(self, endpoint: Endpoint, event: LeaseEvent) -> None:
        """A DHCP client did something: keep its lease over restarts; find another address after DECLINE."""
        nic = next((n for n in self._nics.values() if n.port == endpoint.port), None)
        if nic is None or nic.address is None:
            return
        lease = next(
            (x for x in self._dataplane.pipeline.dhcp.leases(self._dataplane.now()) if x.port == nic.port), None
        )
        self._registry.save_lease(nic.address, _saved(lease) if lease is not None else None)
        if event.kind is LeaseChange.DECLINED:
            self._declined(nic)

    def _declined(self, nic: Nic) -> None:
        """The guest found somebody else at its address (RFC 2131 §3.1): quarantine, and another address."""
        assert nic.address is not None
        if nic.fixed:
            log.error("%s declined its configured address %s: is it in use twice?", nic, address_text(nic.address))
            return
        log.warning("%s declined %s: choosing another address", nic, address_text(nic.address))
        now, address = self._dataplane.now(), nic.address
        self._registry.release(nic.guest_uuid, nic.mac)
        self._discovery.withdraw(address, now)
        self._quarantine(address)
        nic.address, nic.phase, nic.confirmed = None, Phase.PLUGGED, False
        self._put(nic, PortState.TENTATIVE)
        self._ask(nic)

    def restore_leases(self) -> None:
        """After a restart: clients that renew find their leases."""
        now = self._dataplane.now()
        leases = []
        for address, value in self._registry.leases().items():
            nic = next((n for n in self._nics.values() if n.address == address and n.port), None)
            if nic is not None:
                leases.append(_lease(nic, address, value))
        self._dataplane.pipeline.dhcp.restore(leases, now)


def guest_id_of(guest_uuid: str, mac: Mac) -> int:
    """64 bits that name a NIC wherever its guest runs."""
    return int.from_bytes(hashlib.sha256(guest_uuid.encode() + mac).digest()[:8], "big")


def _saved(lease: Lease) -> dict[str, object]:
    return {
        "lease_s": lease.lease_s,
        "until": time.time() + lease.remaining_s,
        "hostname": lease.hostname,
        "vendor_class": lease.vendor_class,
        "client_id": lease.client_id.hex(),
    }


def _lease(nic: Nic, address: Address, value: dict[str, Any]) -> Lease:
    remaining_s = max(0.0, value["until"] - time.time())
    client_id = bytes.fromhex(value["client_id"])
    return Lease(
        nic.port,
        nic.placement.id,
        nic.mac,
        address,
        value["lease_s"],
        remaining_s,
        value["hostname"],
        value["vendor_class"],
        client_id,
    )
