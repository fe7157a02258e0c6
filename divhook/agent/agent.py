"""The agent of one host: starts everything in order, keeps it true, stops without touching guests' traffic.

Start: configuration, key, walls, programs, then the sockets; hooks are refused until libvirt has said what runs.
Reconcile (at start, on events, every RECONCILE_S): desired state from files, registry and libvirt against what is
there; every step is safe to repeat. Stop: sockets are closed, all kernel state stays; `teardown` removes it.
"""

import asyncio
import contextlib
import errno
import logging
import random
import secrets
import time
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from divhook.abi.entries import HostEntry
from divhook.adapters.bpf import bpffs
from divhook.adapters.bpf.errors import BpfError
from divhook.adapters.bpf.programs import FROM_HOST, FROM_WIRE, Programs
from divhook.adapters.handover import Pinned
from divhook.adapters.libvirt import EventKind, GuestEvent, LibvirtError, LibvirtWatch
from divhook.adapters.links import BridgeInfo, HostLink, LinkError, LinkEvent, Links, UplinkInfo
from divhook.adapters.resolver import Resolver
from divhook.adapters.rules import Rules, RulesError, RulesWatcher
from divhook.agent import systemd
from divhook.agent.control import ControlServer, RequestError
from divhook.agent.dataplane import Dataplane
from divhook.agent.enforcement import Enforcement
from divhook.agent.fastpath import FastPath
from divhook.agent.flow_log import FlowLog
from divhook.agent.guests import Guests
from divhook.agent.moves import Moves
from divhook.agent.names import Names
from divhook.agent.nat import NatService
from divhook.agent.outside import external_map
from divhook.agent.registry import Registry, RegistryError
from divhook.agent.topology import topology_of
from divhook.config import domain
from divhook.config.configuration import Configuration
from divhook.config.load import load
from divhook.config.problems import ConfigError
from divhook.core.auth import Authenticator
from divhook.core.census import AddressCensus, CensusEvent
from divhook.core.dhcp import LeaseEvent
from divhook.core.discovery import ClaimChanged, Discovery, Event, Limits
from divhook.core.endpoint import Endpoint, PortTable
from divhook.core.external import Externals, OwnAddress
from divhook.core.identities import IdentityLearned
from divhook.core.keys import KeyFileError, KeyRing, parse_key_text
from divhook.core.outputs import ToNewHost
from divhook.core.pipeline import Pipeline
from divhook.core.router import Topology
from divhook.policy.files import POLICIES_DIRECTORY
from divhook.policy.names import NameBook

RECONCILE_S = 30.0
FILES_POLL_S = 1.0
RULES_POLL_S = 1.0
ADOPT_DELAYS_S = (0.3, 0.7, 2.0)
"""When to ask libvirt for the guest of a new tap. A tap of a guest that starts is known by then, through its hook."""
SHOWS_ANOTHER_GUEST = (EventKind.CONNECTED, EventKind.DEVICE_ADDED, EventKind.DEVICE_REMOVED)
HIGHEST_STAMP = "highest stamp"
BPFFS = Path("/sys/fs/bpf")

log = logging.getLogger(__name__)


class AgentError(Exception):
    """The agent can't start. The text is for a person."""


@dataclass(frozen=True)
class Paths:
    """Where the agent finds and keeps things."""

    config: Path = Path("/etc/divhook")
    state: Path = Path("/var/lib/divhook")
    run: Path = Path("/run/divhook")

    @property
    def socket(self) -> Path:
        """The control socket."""
        return self.run / "agent.sock"


def read_key(configuration: Configuration) -> KeyRing:
    """The cluster key. Raises AgentError."""
    path = Path(configuration.host.key_file)
    try:
        if path.stat().st_mode & 0o077:
            raise AgentError(f"{path}: others than root may read the cluster key; run: chmod 600 {path}")
        return parse_key_text(path.read_text(), str(path))
    except FileNotFoundError:
        raise AgentError(
            f"{path}: there is no cluster key. Make one on one host with `divhook key new` and copy it to all others"
        ) from None
    except KeyFileError as error:
        raise AgentError(str(error)) from error
    except (OSError, UnicodeDecodeError) as error:
        raise AgentError(f"{path}: the cluster key cannot be read: {error}") from error


class Agent:
    """One host. `start`, then `stop`; in between it works by itself."""

    def __init__(self, paths: Paths, configuration: Configuration) -> None:
        self.paths = paths
        self.configuration = configuration
        self.started_s = time.time()
        self.config_error = ""
        self.uplink: UplinkInfo
        self.bridge: BridgeInfo
        self.host_link: HostLink
        self.dataplane: Dataplane
        self.guests: Guests
        self.enforcement: Enforcement
        self.names: Names
        self.programs: Programs
        self.registry = Registry(paths.state / "registry.sqlite")
        self.libvirt = LibvirtWatch(
            configuration.host.libvirt_uri, self._from_libvirt_thread, configuration.host.network
        )
        self.rules = Rules(configuration.host.queue, configuration.host.bridge)
        self.rules_restored = 0
        self._links = Links(configuration.host.bridge)
        self._rules_watcher: RulesWatcher | None = None
        self._loop = asyncio.get_running_loop()
        self._tasks: set[asyncio.Task[None]] = set()
        self._reconcile_lock = asyncio.Lock()
        self._reconcile_waits = False
        self._rules_lock = asyncio.Lock()
        self._policy_lock = asyncio.Lock()
        self._host_routes_lock = asyncio.Lock()
        self.in_thread: Callable[..., Awaitable[Any]] = asyncio.to_thread
        self._control: ControlServer | None = None
        self._taps: set[int] = set()  # ports of the bridge that have been seen
        self._restoring = False
        self.ended = asyncio.Event()
        self.failure = ""
        self._files_seen = self._file_times()

    # ------------------------------------------------------------------ start and stop

    async def start(self, handlers: dict[str, Any]) -> None:
        """Bring the host to where guests can start. Raises AgentError, LinkError, RulesError, BpfError, …"""
        host = self.configuration.host
        plan = self.configuration.plan
        keys = read_key(self.configuration)
        await self._links.open()
        self.uplink = await self._links.uplink_info(host.uplink or await self._links.find_uplink())
        overlaps = await self._links.overlaps(plan.supernet)
        if overlaps:
            raise AgentError(
                f"the virtual supernet {plan.supernet} overlaps this host's own network: {'; '.join(overlaps)}. "
                "Choose another with `addresses: supernet:` in divhook.yaml, the same on every host"
            )
        await self._links.disable_lro(self.uplink.name)
        self.bridge = await self._links.ensure_bridge(host.bridge, self.uplink.mtu)
        await self._links.ensure_blackhole(plan.supernet)
        self.host_link = await self._links.ensure_host_link(host.fastpath)
        await self.rules.ensure()
        bpffs.ensure_bpffs(BPFFS)
        entry = HostEntry(
            self.uplink.mac, self.uplink.ifindex, self.bridge.ifindex, self.bridge.mac, plan, fastpath=host.fastpath
        )
        self.programs = Programs.load(bpffs.pin_dir_in(BPFFS), host=entry)
        own = [OwnAddress(a.ip.packed, a.network) for a in await self._links.addresses(self.uplink.ifindex)]
        self._build(keys, own)
        self.dataplane.outside.start()
        await self.nat.apply(self.configuration)
        self.programs.attach_uplink(self.uplink.ifindex)
        self.programs.attach_host(self.host_link.peer_ifindex)
        self._control = ControlServer(self.paths.socket, {"hook": self._hook, **handlers})
        await self._control.start()
        await self._listen()
        self._rules_watcher = RulesWatcher()
        self._loop.add_reader(self._rules_watcher.fileno(), self._rules_changed)
        self.libvirt.start()
        self._spawn(
            self._every(
                RECONCILE_S,
                self._ensure_links,
                self.nat.keep_true,
                self.reconcile,
                self._restore_rules,
                self._keep_stamp,
            )
        )
        self._spawn(self._every(FILES_POLL_S, self._reload_changed))
        for task in (self._watch_links(), self._feed_watchdog(), self.names.run()):
            self._spawn(task)
        if self.rules.needs_poll:
            self._spawn(self._every(RULES_POLL_S, self._restore_rules))
        systemd.notify(f"READY=1\nSTATUS=uplink {self.uplink.name}")
        log.info("ready: uplink %s, supernet %s", self.uplink.name, plan.supernet)

    def _build(self, keys: KeyRing, own: Sequence[OwnAddress] = ()) -> None:
        host, plan = self.configuration.host, self.configuration.plan
        offset_us = int((time.time() - self._loop.time()) * 1e6)
        limits = Limits(misses_per_s_port=host.limits.miss_pps_port, misses_per_s_host=host.limits.miss_pps_host)
        discovery = Discovery(self.uplink.mac, plan, random.SystemRandom(), offset_us, limits)
        discovery.restore(self.registry.claims(), self.registry.get(HIGHEST_STAMP))
        for pmac in self.programs.peers():  # an agent before this one had proof
            discovery.known_peer(pmac)
        ether_type = 0x88B5 if host.discovery.ethertype == "0x88b5" else 0x0806
        authenticator = Authenticator(self.uplink.mac, keys, secrets.randbits(64), host.cluster, ether_type)
        topology = topology_of(self.configuration, self.uplink.mtu)
        externals = Externals(self.uplink.mac, external_map(host.external, self.uplink.mtu), own)
        pipeline = Pipeline(plan, self.uplink.mac, PortTable(), topology, discovery, externals)
        flow_log = FlowLog()
        self.enforcement = Enforcement(
            self.paths.config, self.paths.state, plan, self.programs, pipeline.identities, flow_log
        )
        pipeline.policies = self.enforcement
        for number, encoding in self.registry.identities().items():
            pipeline.identities.know(number, encoding)
        self.names = Names(
            NameBook(lambda address: not plan.contains(address)),
            Resolver(host.resolvers),
            self.enforcement.set_names,
            self.paths.state / "names.json",
        )
        self.enforcement.start(self.configuration)
        self.names.want_all(self.enforcement.names_wanted())
        try:
            self.dataplane = Dataplane(
                pipeline,
                authenticator,
                AddressCensus(self.uplink.mac, plan, discovery),
                self.programs,
                FastPath(self.programs, plan, topology, discovery, host.fastpath),
                self.uplink.ifindex,
                self.bridge.ifindex,
                host.queue,
                self,
                flow_log,
                self.host_link,
            )
        except OSError as error:
            if error.errno in (errno.EPERM, errno.EBUSY):
                raise AgentError(f"NFQUEUE {host.queue} is taken by another program: {error}") from error
            raise
        self.nat = NatService(self.programs, self.dataplane, self.uplink.mtu, [each.address for each in own])
        self.guests = Guests(
            self.configuration,
            self.registry,
            self.programs,
            self.dataplane,
            self._links,
            self.uplink.mtu,
            self.enforcement,
        )
        self.moves = self.guests.moves = Moves(
            self.dataplane, self.dataplane.moves, self.guests, Pinned(keys, host.cluster)
        )

    async def _listen(self) -> None:
        """Take hand-overs. A host that cannot is told of; guests that move to it are announced only."""
        port = self.configuration.host.handover_port
        address = await self._links.address_of(self.uplink.name)
        if address is None:
            log.error(
                "the uplink %s has no address: no hand-over can come, guests' moves here lose packets", self.uplink.name
            )
            return
        try:
            await self.moves.listen(address, port)
        except OSError as error:
            log.error("no hand-over can come: %s port %d: %s", address, port, error)

    async def stop(self) -> None:
        """Stop. Guests' kernel state, rules and programs stay as they are."""
        systemd.notify("STOPPING=1")
        if self._control is not None:
            await self._control.stop()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if self._rules_watcher is not None:
            self._loop.remove_reader(self._rules_watcher.fileno())
            self._rules_watcher.close()
        self.libvirt.stop()
        if hasattr(self, "moves"):
            await self.moves.stop()
        if hasattr(self, "dataplane"):
            self._save_stamp()
            self.dataplane.close()
            self.programs.close()
        await self._links.close()
        self.registry.close()

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        async def guarded() -> None:
            try:
                await work
            except asyncio.CancelledError:
                raise
            except LibvirtError as error:  # its return is an event, and that reconciles
                log.warning("%s", error)
            except Exception:
                log.exception("a task of the agent ended with a bug; please report it with this trace")

        task = self._loop.create_task(guarded())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    # ------------------------------------------------------------------ libvirt

    async def _hook(self, request: dict[str, Any]) -> None:
        operation, xml = str(request.get("operation")), request.get("xml")
        if not isinstance(xml, str):
            raise RequestError("the hook sent no domain XML")
        if operation == "reconnect":
            self._spawn(self.reconcile())
            return
        until_s = request.get("until_s")  # of CLOCK_MONOTONIC, which the hook shares
        try:
            if isinstance(until_s, int | float) and time.monotonic() >= until_s:
                raise RequestError("read after the hook's deadline: libvirt has been refused")
            await self.guests.hook(operation, str(request.get("suboperation")), xml)
        except RequestError as error:
            log.warning("guest %s, %s refused: %s", request.get("guest"), operation, error)
            raise

    def _from_libvirt_thread(self, event: GuestEvent) -> None:
        with contextlib.suppress(RuntimeError):  # the loop is closed already
            self._loop.call_soon_threadsafe(self._from_libvirt, event)

    def _from_libvirt(self, event: GuestEvent) -> None:
        self.moves.event(event)
        if event.kind in SHOWS_ANOTHER_GUEST or (
            event.kind is EventKind.METADATA_CHANGED and event.detail == domain.NAMESPACE
        ):
            self._spawn(self.reconcile())
        elif event.kind is EventKind.RESUMED:
            self.guests.resumed(event.guest_uuid)
        elif event.kind in (EventKind.STOPPED, EventKind.UNDEFINED):
            self._spawn(self._ended(event.guest_uuid, self._loop.time()))

    async def _ended(self, guest_uuid: str, seen_s: float) -> None:
        """It ended, or was undefined, at seen_s at the latest; what libvirt says of it now decides."""
        guest = await self.libvirt.guest(guest_uuid)
        if guest is None or not guest.running:
            await self.guests.ended(guest_uuid, seen_s, defined=guest is not None)

    async def reconcile(self) -> None:
        """Make this host's ports and claims what libvirt says runs here.

        Many who want this at once get it once: one that has not begun yet will see what each of them has seen.
        """
        if self._reconcile_waits:
            return
        self._reconcile_waits = True
        async with self._reconcile_lock:
            self._reconcile_waits = False
            try:
                await self._reconcile()
            except LibvirtError as error:
                log.warning("%s", error)

    async def _reconcile(self) -> None:
        listed_s = self._loop.time()
        guests = await self.libvirt.guests()
        for guest in guests:
            await asyncio.sleep(0)  # reading a guest's XML takes some 0.3 ms: frames come first
            try:
                if guest.running:
                    await self.guests.adopt(guest, listed_s)
                else:
                    self.guests.at_rest(guest)
            except Exception:
                log.exception("guest %s was not looked after; please report this trace", guest.name)
        running = {g.uuid for g in guests if g.running}
        for nic in self.guests.all():
            stale = nic.started or listed_s - nic.began_s > RECONCILE_S  # a `migrate` hook precedes libvirt's own list
            if nic.guest_uuid not in running and nic.began_s <= listed_s and stale:
                log.info("%s: libvirt does not run it any more", nic)
                await self.guests.ended(nic.guest_uuid, listed_s, defined=True)
        known = {g.uuid for g in guests} | {n.guest_uuid for n in self.guests.all()}
        for uuid in {r.guest_uuid for r in self.registry.reservations()} - known:
            await self.guests.ended(uuid, listed_s, defined=False)
        self.guests.keep_true()
        self.enforcement.set_clock(self._loop.time())
        if not self.guests.reconciled:
            await self._adopt_neighbours()
            now = self._loop.time()
            self.guests.restore_leases()
            self.guests.reconciled = True
            self.enforcement.sweep()
            self.dataplane.pipeline.discovery.ready(now)
            self.dataplane.census.ready()
            log.info("reconciled with libvirt: %d guests run, %d NICs are ours", len(running), len(self.guests.all()))
        self.dataplane.inject(self._loop.time(), [])
        if self.dataplane.pipeline.topology.keys() - self.configuration.subnets.keys():  # perhaps not in use any more
            self._set_topology(topology_of(self.configuration, self.uplink.mtu))
        claims = {record.claim.address for record in self.dataplane.pipeline.discovery.records()}
        self.registry.tidy(int(time.time() * 1e6), claims)

    async def _adopt_neighbours(self) -> None:
        begin_s, mine = self._loop.time(), self.dataplane.pipeline.ports.at
        self.dataplane.group_lists.adopt(begin_s)
        for _ in self.dataplane.fastpath.adopt(begin_s, lambda address: mine(address) is not None):
            self.dataplane.inject(self._loop.time(), [])
            await asyncio.sleep(0)  # frames come first
        count, took_s = len(self.dataplane.fastpath), self._loop.time() - begin_s
        if count:
            log.info("the kernel knew %d neighbours: taken over in %.2f s", count, took_s)

    # ------------------------------------------------------------------ discovery

    def on_discovery(self, event: Event) -> None:
        """A claim of ours has changed, or a neighbour."""
        if isinstance(event, ClaimChanged):
            records = [r for r in self.dataplane.pipeline.discovery.records() if r.claim.address == event.address]
            for record in records:
                self.registry.save_claim(record)
            self._save_stamp()
            self.dataplane.pipeline.border.announce(event.address, self.dataplane.now())
        self.guests.event(event)

    def on_census(self, event: CensusEvent) -> None:
        """A search for an address has come further."""
        self.guests.census_event(event)

    def on_identity(self, event: IdentityLearned) -> None:
        """An identity is known now."""
        self.registry.save_identity(event.number, event.encoding)
        forgotten, self.dataplane.pipeline.identities.forgotten = self.dataplane.pipeline.identities.forgotten, []
        self.enforcement.forget(forgotten)

    def on_first_frame(self, port: int) -> None:
        """A guest that comes in has spoken."""
        self.guests.first_frame(port)

    def on_moves(self) -> None:
        """Other hosts are to run guests of ours, perhaps."""
        self.moves.asked()

    def on_late(self, late: ToNewHost) -> None:
        """A packet for an endpoint that has moved away."""
        self.moves.late_senders.packet(late)

    def on_lease(self, endpoint: Endpoint, event: LeaseEvent) -> None:
        """A DHCP client did something."""
        self.guests.lease_event(endpoint, event)

    async def _keep_stamp(self) -> None:
        self._save_stamp()

    def _save_stamp(self) -> None:
        self.registry.put(HIGHEST_STAMP, self.dataplane.pipeline.discovery.highest_seen_stamp)

    # ------------------------------------------------------------------ what may change around us

    async def _every(self, interval_s: float, *steps: Callable[[], Awaitable[object]]) -> None:
        """For as long as the agent lives. A step that fails is told; the others, and the next time, are not lost."""
        while True:
            await asyncio.sleep(interval_s)
            for step in steps:
                try:
                    await step()
                except (BpfError, LinkError, LibvirtError, RegistryError, RulesError) as error:
                    log.error("%s", error)
                except Exception:
                    log.exception("a task of the agent failed; please report this trace")

    async def _ensure_links(self) -> None:
        await self._links.ensure_bridge(self.configuration.host.bridge, self.uplink.mtu)
        await self._links.ensure_blackhole(self.configuration.plan.supernet)
        host_link = await self._links.ensure_host_link(self.configuration.host.fastpath)
        if host_link != self.host_link:
            self.fail("dvhost has been made anew by somebody: the agent must start afresh")
            return
        attached = self.programs.attached()
        if attached.get(self.uplink.ifindex) != FROM_WIRE:
            log.warning("the program was missing on %s: attached again", self.uplink.name)
            self.programs.attach_uplink(self.uplink.ifindex)
        if attached.get(host_link.peer_ifindex) != FROM_HOST:
            log.warning("the program was missing at dvhost's peer: attached again")
            self.programs.attach_host(host_link.peer_ifindex)
        await self._sync_host_routes()

    async def _sync_host_routes(self) -> None:
        """The host's stack reaches exactly those guests of which a rule says so."""
        async with self._host_routes_lock:
            self.dataplane.host_routes_seen = self.dataplane.host_routes_wanted()
            own = self.dataplane.pipeline.border.externals.own
            if own:
                await self._links.set_host_routes(self.dataplane.host_routes_seen, own[0].address)

    def on_host_routes(self) -> None:
        """A guest that may talk with the host has come, or gone, or has another address."""
        self._spawn(self._sync_host_routes())

    async def _feed_watchdog(self) -> None:
        interval_s = systemd.watchdog_interval_s()
        while interval_s is not None:
            systemd.notify("WATCHDOG=1")
            await asyncio.sleep(interval_s)

    def _rules_changed(self) -> None:
        assert self._rules_watcher is not None
        if self._rules_watcher.changed() and not self._restoring:
            self._restoring = True
            self._spawn(self._restore_rules())

    async def _restore_rules(self) -> None:
        async with self._rules_lock:
            self._restoring = False  # a change from here on asks for another look
            if not await self.rules.intact():
                self.rules_restored += 1
                log.warning("netfilter rules of divhook were removed or changed by somebody: restored")
                await self.rules.ensure()

    async def _watch_links(self) -> None:
        """Taps that come and go, and the uplink."""
        while True:
            try:
                async for event in self._links.watch():
                    await self._link_event(event)
            except (LinkError, OSError) as error:
                log.warning("watching links: %s; beginning again", error)
            except Exception:
                log.exception("watching links failed, and begins again; please report this trace")
            await asyncio.sleep(1)
            self._taps.clear()  # those that are there are found, or told, again
            self._spawn(self.reconcile())

    async def _link_event(self, event: LinkEvent) -> None:
        if event.kind == "gone":
            self._taps.discard(event.ifindex)
            self.guests.tap_gone(event.ifindex)
        elif event.became_port or (event.master_is_bridge and event.ifindex not in self._taps):
            self._taps.add(event.ifindex)
            with contextlib.suppress(LinkError):  # gone again
                await self._links.ensure_port(event.ifindex)
            self._spawn(self._adopt_soon())
        elif event.ifindex in self._taps and not event.master_is_bridge:
            self._taps.discard(event.ifindex)  # moved to another bridge: libvirt's XML says whether that NIC is ours
            self._spawn(self.reconcile())
        if event.name == self.uplink.name and event.kind != "gone":
            await self._uplink_event(event)

    async def _uplink_event(self, event: LinkEvent) -> None:
        uplink = await self._links.uplink_info(self.uplink.name)
        if (uplink.ifindex, uplink.mac, uplink.mtu) != (self.uplink.ifindex, self.uplink.mac, self.uplink.mtu):
            self.fail(f"the uplink {uplink.name} is not what it was (index, MAC or MTU): the agent must start afresh")
        elif event.carrier:
            self.dataplane.pipeline.discovery.carrier_up(self._loop.time())
            self.dataplane.inject(self._loop.time(), [])

    def fail(self, why: str) -> None:
        """Give up: the service manager starts the agent again."""
        log.error("%s", why)
        self.failure = why
        self.ended.set()

    async def _adopt_soon(self) -> None:
        """A tap that no hook spoke of is hot-plugged: libvirt's XML has it a moment later."""
        for delay_s in ADOPT_DELAYS_S:
            await asyncio.sleep(delay_s)
            if self._taps <= {nic.ifindex for nic in self.guests.all()}:
                return
            await self.reconcile()

    # ------------------------------------------------------------------ files

    def _file_times(self) -> dict[str, int]:
        times: dict[str, int] = {}
        files = [*self.paths.config.glob("*.yaml"), *self.paths.config.glob("cells/*.yaml")]
        policies = self.paths.config / POLICIES_DIRECTORY
        files += [policies, *policies.glob("*"), *policies.glob("*/*.yaml")]
        for path in [*files, Path(self.configuration.host.key_file)]:
            with contextlib.suppress(OSError):
                times[str(path)] = path.stat().st_mtime_ns
        return times

    async def _reload_changed(self) -> None:
        seen = self._file_times()
        if seen != self._files_seen:
            self._files_seen = seen
            await self.reload_all()

    def reload(self) -> str:
        """Read the files again. What is wrong leaves everything as it was, and is said loudly; returns that text.

        divhook.yaml is read at the agent's start only; a reload takes the cells.
        """
        host, plan = self.configuration.host, self.configuration.plan
        try:
            configuration = load(self.paths.config)
            if configuration.plan != plan:
                raise AgentError(
                    f"{self.paths.config}/divhook.yaml: the address plan has changed, and the cells with it; it takes "
                    "effect at the agent's next start: systemctl restart divhook-agent, on every host"
                )
            if configuration.host != host:
                log.warning("divhook.yaml has changed: it takes effect at the agent's next start")
            configuration = replace(configuration, host=host)
            keys = read_key(configuration)
        except (ConfigError, AgentError, OSError) as error:
            self.config_error = str(error)
            log.error("the files have a mistake, the last good ones stay in force: %s", error)
            return self.config_error
        self.config_error = ""
        self.configuration = configuration
        self.guests.configure(configuration)
        self.dataplane.replace_keys(keys)
        self.moves.replace_keys(keys, host.cluster)
        fresh = topology_of(configuration, self.uplink.mtu)
        for nic in self.guests.all():
            if nic.placement.id not in fresh:
                log.error("%s runs in %s, which the files have no more: until it stops", nic, nic.placement.subnet)
        self._set_topology(fresh)
        log.info("files read: %d cells, %d subnets", len(configuration.cells), len(fresh))
        return ""

    async def reload_all(self) -> str:
        """The same, and the policies. Returns what is wrong with either."""
        problem = self.reload()
        await self.nat.apply(self.configuration)
        await self.reconcile()  # labels in cell files
        try:
            await self.apply_policies()
        except ConfigError as error:
            problem = problem or str(error)
        return problem

    def reload_soon(self) -> None:
        """For a signal."""
        self._spawn(self._reload())

    async def _reload(self) -> None:
        await self.reload_all()

    async def apply_policies(self) -> dict[str, Any]:
        """Read the policy files, and put them in force before this returns. Raises ConfigError: all stays then.

        Files are read in a thread: frames go on meanwhile.
        """
        begin_s = self._loop.time()
        async with self._policy_lock:
            try:
                fresh = await self.in_thread(self.enforcement.read, self.configuration)
            except ConfigError as error:
                self.enforcement.refuse(error)
                raise
            changed = self.enforcement.take(fresh)
            await self._sync_host_routes()
            took_ms = round((self._loop.time() - begin_s) * 1e3, 3)
            if changed:
                self._loop.call_soon(self._policies_changed)
        return {"changed": changed, "ms": took_ms}

    def _policies_changed(self) -> None:
        self.names.want_all(self.enforcement.names_wanted())
        self.enforcement.keep()

    def _set_topology(self, fresh: Topology) -> None:
        """Use these facts, and the last known ones of subnets that are in use but not in the files any more."""
        topology = self.dataplane.pipeline.topology
        used = {nic.placement.id for nic in self.guests.all()}
        kept = {subnet: facts for subnet, facts in topology.items() if subnet in used}
        topology.clear()
        topology.update(kept | fresh)
        self.guests.topology_changed()
        self.dataplane.fastpath.topology_changed(self._loop.time())
