"""Whole agents, real from the control socket's handler down to sealed frames; kernel, libvirt and the clock are not.

    real    Agent, Guests, Dataplane, Pipeline, Discovery, AddressCensus, Authenticator, Registry on a file, the files
    fake    Programs, Links, LibvirtWatch, packet sockets, NFQUEUE; time goes on at once when everybody waits

Hosts A and B share a wire that carries frames at once and in order, except from hosts in `cut`.
Subnets: shop/web 10.1.1.0/24, shop/db 10.1.2.0/24, shop/tiny 10.1.3.0/24 with MTU 3000, lab/web 10.2.1.0/24.
"""

import asyncio
import functools
import inspect
import os
import selectors
import tempfile
from collections.abc import Awaitable, Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

from divhook.abi.entries import EndpointEntry, GroupList, PortEntry, TrafficCount
from divhook.adapters.bpf.errors import BpfError
from divhook.adapters.bpf.policy import POLICY_TABLES
from divhook.adapters.bpf.programs import FROM_GUEST, FROM_HOST, FROM_WIRE
from divhook.adapters.libvirt import EventKind, Guest, GuestEvent, LibvirtError
from divhook.adapters.links import BridgeInfo, HostLink, LinkError, PortLink, UplinkInfo
from divhook.agent import dataplane as dataplane_module
from divhook.agent.agent import Agent, Paths, read_key
from divhook.agent.nic import Nic
from divhook.config.load import load
from divhook.core.addressing import Address, Mac, SubnetId, group_mac, parse_mac
from divhook.core.endpoint import Endpoint
from divhook.core.flow import FlowTable
from divhook.core.keys import new_key_text

START_S = 5000.0
ALL_SYSTEMS_MAC = bytes.fromhex("01005e000001")
BRIDGE = BridgeInfo(3, parse_mac("06:d1:d1:d1:d1:d1"))
HOST_LINK = HostLink(4, 5)
UPLINK_IFINDEX = 2
WEB, DB, TINY, LAB = SubnetId(1, 1), SubnetId(1, 2), SubnetId(1, 3), SubnetId(2, 1)
SHOP_YAML = """\
cell: shop
number: 1
subnets:
  web: {number: 1}
  db: {number: 2}
  tiny: {number: 3, mtu: 3000}
"""
LAB_YAML = "cell: lab\nnumber: 2\nsubnets:\n  web: {number: 1}\n"


class _Selector(selectors.DefaultSelector):
    """Never waits: says how long it would have."""

    skipped_s = 0.0

    def select(self, timeout: float | None = None) -> list[Any]:
        ready = super().select(0)
        if not ready:
            if timeout is None:
                raise AssertionError("everybody waits, and nothing is under way")
            self.skipped_s += max(timeout, 0)
        return ready


class ClockLoop(asyncio.SelectorEventLoop):
    """An event loop whose clock jumps to the next timer."""

    def __init__(self) -> None:
        self._clock = _Selector()
        super().__init__(self._clock)

    def time(self) -> float:
        return START_S + self._clock.skipped_s


def story(test: Callable[..., Awaitable[None]]) -> Callable[..., None]:
    """A test that is a coroutine: its first argument is a Lan, whose clock is not the machine's."""

    def run(*arguments: Any, **named: Any) -> None:
        with tempfile.TemporaryDirectory() as root, asyncio.Runner(loop_factory=ClockLoop) as runner:
            runner.run(_told(test, Path(root), *arguments, **named))

    functools.update_wrapper(run, test)
    del run.__wrapped__  # type: ignore[attr-defined]
    signature = inspect.signature(test)
    run.__signature__ = signature.replace(parameters=list(signature.parameters.values())[1:])  # type: ignore[attr-defined]
    return run


async def _told(test: Callable[..., Awaitable[None]], root: Path, *arguments: Any, **named: Any) -> None:
    lan = Lan(root)
    try:
        await test(lan, *arguments, **named)
    finally:
        for host in lan.hosts:
            await host.stop()


@dataclass
class Card:
    """A NIC in a domain's XML. place: cell/subnet; empty: no metadata. tap: named once libvirt has made it."""

    mac: str
    place: str = "shop/web"
    address: str = ""
    mtu: int = 0
    tap: str = ""

    @property
    def octets(self) -> Mac:
        return parse_mac(self.mac)

    def interface(self) -> str:
        target = f"<target dev='{self.tap}'/>" if self.tap else ""
        mtu = f"<mtu size='{self.mtu}'/>" if self.mtu else ""
        return (
            f"<interface type='network'><mac address='{self.mac}'/><source network='divhook'/>{target}{mtu}</interface>"
        )

    def metadata(self) -> str:
        cell, subnet = self.place.split("/")
        address = f" address='{self.address}'" if self.address else ""
        return f"<d:nic mac='{self.mac}' cell='{cell}' subnet='{subnet}'{address}/>"


@dataclass
class Vm:
    """A domain. state: off, starting (paused as far as libvirt tells), running, paused; gone: not defined."""

    name: str
    number: int
    cards: list[Card]
    state: str = "off"

    @property
    def uuid(self) -> str:
        return f"{self.number:08x}-0000-4000-8000-00000000abcd"

    @property
    def xml(self) -> str:
        entries = "".join(card.metadata() for card in self.cards if card.place)
        return (
            f"<domain type='kvm'><name>{self.name}</name><uuid>{self.uuid}</uuid><metadata>"
            f"<d:guest xmlns:d='urn:divhook:guest:1'>{entries}</d:guest></metadata>"
            f"<devices>{''.join(card.interface() for card in self.cards)}</devices></domain>"
        )

    def guest(self) -> Guest:
        running = self.state in ("starting", "running", "paused")
        return Guest(self.name, self.uuid, running, self.state in ("starting", "paused"), self.xml)


def vm(number: int, name: str = "", place: str = "shop/web", address: str = "", cards: int = 1) -> Vm:
    """A domain with NICs 52:54:00:00:<number>:01, …:02."""
    macs = [f"52:54:00:5a:{number:02x}:{index:02x}" for index in range(1, cards + 1)]
    return Vm(name or f"vm{number}", number, [Card(mac, place, address) for mac in macs])


async def _at_once(function: Callable[..., object], *arguments: object) -> object:
    """Instead of a thread."""
    return function(*arguments)


class FakePolicyMaps:
    """The policy maps as dictionaries. written: every change, in order."""

    def __init__(self) -> None:
        self.tables: dict[str, dict[bytes, bytes]] = {name: {} for name in POLICY_TABLES}
        self.records: dict[int, bytes] = {}
        self.written: list[tuple[str, object, bytes | None]] = []

    def write(self, table: str, key: bytes, value: bytes | None) -> None:
        self.written.append((table, key, value))
        if value is None:
            self.tables[table].pop(key, None)
        else:
            self.tables[table][key] = value

    def get(self, table: str, key: bytes) -> bytes | None:
        return self.tables[table].get(key)

    def keys(self, table: str) -> list[bytes]:
        return list(self.tables[table])

    def set_port(self, port_id: int, value: bytes) -> None:
        if self.records.get(port_id) != value:
            self.written.append(("port_policies", port_id, value))
            self.records[port_id] = value

    def port(self, port_id: int) -> bytes | None:
        return self.records.get(port_id)

    def remove_port(self, port_id: int) -> None:
        self.records.pop(port_id, None)

    def ports(self) -> list[int]:
        return list(self.records)

    def rule_counts(self) -> dict[int, int]:
        return {}

    def ticks(self, seconds: float) -> int:
        return round(seconds * 250)


class FakeFlowTable(FlowTable):
    def close(self) -> None:
        """It lives on."""


class FakeFlows:
    """Tables of flows by port; a clock that began 1,000 s earlier."""

    ticks_per_s = 250

    def __init__(self) -> None:
        self.tables: dict[int, FakeFlowTable] = {}

    def now_s(self) -> float:
        return asyncio.get_running_loop().time() + 1000

    def install(self, port_id: int) -> FakeFlowTable:
        return self.tables.setdefault(port_id, FakeFlowTable(64))

    def remove(self, port_id: int) -> None:
        self.tables.pop(port_id, None)


class FakeNatMaps:
    """Maps nat and nat_addresses."""

    def __init__(self) -> None:
        self.way: tuple[int, Mac] | None = None
        self.pool: set[Address] = set()

    def open(self, ifindex: int, mac: Mac) -> None:
        self.way = ifindex, mac

    def close(self) -> None:
        self.way = None

    def set_addresses(self, pool: Collection[Address], host: Address | None = None) -> set[Address]:
        wanted = {*pool, *([host] if host is not None else [])}
        gone, self.pool = self.pool - wanted, wanted
        return gone


class FakePrograms:
    """The maps as dictionaries. fail: names of methods that the kernel refuses. written: every change, in order."""

    def __init__(self) -> None:
        self.written: list[tuple[object, object]] = []
        self.entries: dict[int, PortEntry] = {}
        self.on: dict[int, str] = {UPLINK_IFINDEX: FROM_WIRE, HOST_LINK.peer_ifindex: FROM_HOST}
        self.known: dict[Address, EndpointEntry] = {}
        self.groups: set[Mac] = set()
        self.lists: dict[tuple[Address, Address], GroupList] = {}
        self.shares: dict[int, dict[Address, bool]] = {}
        self.proven: set[Mac] = set()
        self.forgotten: list[int] = []
        self.fail: set[str] = set()
        self.policy = FakePolicyMaps()
        self.flows = FakeFlows()
        self.flow_log = None
        self.nat = FakeNatMaps()

    def _may(self, name: str) -> None:
        if name in self.fail:
            raise BpfError(f"the kernel refuses {name}")

    def attached(self) -> dict[int, str]:
        return dict(self.on)

    def attach(self, program: str, ifindex: int) -> None:
        self._may("attach")
        self.on[ifindex] = program

    def attach_port(self, ifindex: int) -> None:
        self._may("attach_port")
        self.on[ifindex] = FROM_GUEST

    def detach_port(self, ifindex: int) -> None:
        self._may("detach_port")
        self.on.pop(ifindex, None)

    def attach_uplink(self, ifindex: int) -> None:
        self.on[ifindex] = FROM_WIRE

    def attach_host(self, ifindex: int) -> None:
        self.on[ifindex] = FROM_HOST

    def set_port(self, ifindex: int, entry: PortEntry) -> None:
        self._may("set_port")
        self.written += [(ifindex, entry)] if self.entries.get(ifindex) != entry else []
        self.entries[ifindex] = entry

    def remove_port(self, ifindex: int) -> None:
        self._may("remove_port")
        self.written += [(ifindex, None)] if ifindex in self.entries else []
        self.entries.pop(ifindex, None)

    def ports(self) -> dict[int, PortEntry]:
        return dict(self.entries)

    def set_endpoint(self, address: Address, entry: EndpointEntry) -> None:
        self._may("set_endpoint")
        self.written += [(address, entry)] if self.known.get(address) != entry else []
        self.known[address] = entry

    def remove_endpoint(self, address: Address) -> None:
        self._may("remove_endpoint")
        self.written += [(address, None)] if address in self.known else []
        self.known.pop(address, None)

    def endpoint(self, address: Address) -> EndpointEntry | None:
        return self.known.get(address)

    def endpoints(self) -> dict[Address, EndpointEntry]:
        return dict(self.known)

    def endpoint_batches(self) -> Iterator[dict[Address, EndpointEntry]]:
        return iter([dict(self.known)])

    def set_group_list(self, network: Address, group: Address, entry: GroupList) -> None:
        self._may("set_group_list")
        self.lists[network, group] = entry

    def remove_group_list(self, network: Address, group: Address) -> None:
        self.lists.pop((network, group), None)

    def group_lists(self) -> dict[tuple[Address, Address], GroupList]:
        return dict(self.lists)

    def set_shared(self, port_id: int, addresses: dict[Address, bool]) -> None:
        self._may("set_shared")
        self.shares[port_id] = dict(addresses)

    def shared(self) -> dict[int, dict[Address, bool]]:
        return {port: dict(of) for port, of in self.shares.items() if of}

    def set_groups(self, groups: set[Mac]) -> None:
        self._may("set_groups")
        self.groups = set(groups)

    def add_peer(self, pmac: Mac) -> None:
        self.proven.add(pmac)

    def peers(self) -> list[Mac]:
        return sorted(self.proven)

    def remove_peer(self, pmac: Mac) -> None:
        self.proven.discard(pmac)

    def traffic(self, port_id: int) -> TrafficCount:
        return TrafficCount(
            from_packets=10 * port_id, from_bytes=1000 * port_id, to_packets=port_id, to_bytes=50 * port_id
        )

    def drop_counters(self) -> dict[tuple[int, int], tuple[int, int]]:
        return {}

    def forget_port_counters(self, port_id: int) -> None:
        self.forgotten.append(port_id)

    def close(self) -> None:
        """Kernel state stays."""


class FakeLinks:
    """Taps by name. slow_s: how long a tap takes to be set up."""

    def __init__(self) -> None:
        self.taps: dict[str, int] = {}
        self.slow_s = 0.0
        self.last = 100
        self.host_routes: dict[Address, int] = {}

    def make(self, name: str) -> int:
        self.last += 1
        self.taps[name] = self.last
        return self.last

    async def ensure_port(self, port: str | int) -> PortLink:
        await asyncio.sleep(self.slow_s)
        name = port if isinstance(port, str) else next((n for n, i in self.taps.items() if i == port), "")
        if name not in self.taps:
            raise LinkError(f"there is no link {port}")
        return PortLink(self.taps[name], name, bytes(6), 1500)

    async def ensure_bridge(self, *_: object) -> BridgeInfo:
        return BRIDGE

    async def ensure_blackhole(self, *_: object) -> None:
        """Nothing to route."""

    async def ensure_host_link(self, *_: object) -> HostLink:
        return HOST_LINK

    async def set_host_routes(self, wanted: Mapping[Address, int], source: Address) -> None:
        self.host_routes = dict(wanted)

    async def close(self) -> None:
        """Nothing is open."""


class FakeLibvirt:
    """libvirt's truth. away: libvirtd does not answer. slow_s: how long it takes to answer with what it knew before."""

    def __init__(self) -> None:
        self.vms: list[Vm] = []
        self.away = False
        self.slow_s = 0.0
        self.asked = 0

    async def guests(self) -> list[Guest]:
        self.asked += 1
        known = [vm.guest() for vm in self.vms]
        await asyncio.sleep(self.slow_s)
        if self.away:
            raise LibvirtError("libvirt at test: does not answer")
        return known

    async def guest(self, uuid: str) -> Guest | None:
        return next((g for g in await self.guests() if g.uuid == uuid), None)

    def stop(self) -> None:
        """No threads."""


class FakeRules:
    """Netfilter stays as it is."""

    needs_poll = False

    async def intact(self) -> bool:
        return True


class _Socket:
    """DivertSocket, DivertQueue and GroupMembership in one: a descriptor that is never readable."""

    def __init__(self, *_: object) -> None:
        self._fd = os.eventfd(0)
        self.frames: list[tuple[int, bytes]] = []
        self.joined: set[Mac] = set()

    def fileno(self) -> int:
        return self._fd

    def read(self) -> list[tuple[int, bytes]]:
        frames, self.frames = self.frames, []
        return frames

    def join(self, group: Mac) -> None:
        self.joined.add(group)

    def leave(self, group: Mac) -> None:
        self.joined.remove(group)

    def close(self) -> None:
        os.close(self._fd)


@dataclass
class Sent:
    """FrameSender: what left the host, by interface."""

    host: "Host"
    frames: list[tuple[int, bytes]] = field(default_factory=list)

    def send(self, ifindex: int, frame: bytes) -> bool:
        self.frames.append((ifindex, frame))
        if ifindex == UPLINK_IFINDEX:
            self.host.lan.carry(self.host, frame)
        return True

    def close(self) -> None:
        """Nothing is open."""


class Host:
    """One host with its agent. The kernel's and libvirt's part outlives `restart`."""

    def __init__(self, lan: "Lan", name: str, pmac: str) -> None:
        self.lan = lan
        self.uplink = UplinkInfo(UPLINK_IFINDEX, "up0", parse_mac(pmac), 1500, True, None)
        self.paths = Paths(lan.root / name / "etc", lan.root / name / "lib", lan.root / name / "run")
        (self.paths.config / "cells").mkdir(parents=True)
        self.write("cells/shop.yaml", SHOP_YAML)
        self.write("cells/lab.yaml", LAB_YAML)
        key = self.write("cluster.key", new_key_text(bytes(range(32)), "today"))
        key.chmod(0o600)
        self.write("divhook.yaml", f"key_file: {key}\n")
        self.programs, self.links, self.libvirt = FakePrograms(), FakeLinks(), FakeLibvirt()
        self.agent: Agent
        self.boot()

    def write(self, name: str, text: str) -> Path:
        path = self.paths.config / name
        path.write_text(text)
        return path

    def boot(self) -> None:
        """A new agent. It knows nothing but the registry, and has not reconciled."""
        agent = self.agent = Agent(self.paths, load(self.paths.config))
        agent.in_thread = _at_once
        fakes: Any = {"programs": self.programs, "_links": self.links, "libvirt": self.libvirt, "rules": FakeRules()}
        for attribute, fake in fakes.items():
            setattr(agent, attribute, fake)
        agent.uplink, agent.bridge, agent.host_link = self.uplink, BRIDGE, HOST_LINK
        self.sent = Sent(self)
        self.diverted = _Socket()
        with (
            patch.object(dataplane_module, "FrameSender", lambda: self.sent),
            patch.object(dataplane_module, "DivertSocket", lambda *_: self.diverted),
            patch.object(dataplane_module, "DivertQueue", _Socket),
            patch.object(dataplane_module, "HostSocket", _Socket),
            patch.object(dataplane_module, "GroupMembership", _Socket),
        ):
            agent._build(read_key(agent.configuration))

    async def stop(self) -> None:
        await self.agent.stop()

    async def restart(self) -> None:
        """The agent alone; guests go on."""
        await self.stop()
        self.boot()
        await self.agent.reconcile()

    # ------------------------------------------------------------------ what libvirt does

    async def hook(self, vm: Vm, operation: str, **more: object) -> None:
        sub = "end" if operation in ("stopped", "release") else "begin"
        await self.agent._hook({"guest": vm.name, "operation": operation, "suboperation": sub, "xml": vm.xml, **more})

    async def prepare(self, vm: Vm) -> None:
        """To where taps exist and the `start` hook would be called."""
        if vm not in self.libvirt.vms:
            self.libvirt.vms.append(vm)
        vm.state = "starting"
        await self.hook(vm, "prepare")
        self.tap(vm)

    async def begin(self, vm: Vm) -> None:
        """The hooks that may refuse."""
        await self.prepare(vm)
        await self.hook(vm, "start")

    def tap(self, vm: Vm) -> None:
        for card in vm.cards:
            card.tap = card.tap or f"vnet{self.links.last + 1}"
            if card.tap not in self.links.taps:
                self.links.make(card.tap)

    async def start(self, vm: Vm) -> None:
        """`virsh start`; what the agent refuses is raised, after what libvirt does then."""
        try:
            await self.begin(vm)
        except BaseException:
            await self.shut(vm)
            raise
        vm.state = "running"
        await self.hook(vm, "started")

    async def shut(self, vm: Vm) -> None:
        """The guest ends: hooks, taps gone, and the state that libvirt tells."""
        vm.state = "off"
        await self.hook(vm, "stopped")
        for card in vm.cards:
            if card.tap:
                self.agent.guests.tap_gone(self.links.taps.pop(card.tap, 0))
            card.tap = ""
        await self.hook(vm, "release")

    def event(self, kind: EventKind, vm: Vm) -> None:
        self.agent._from_libvirt(GuestEvent(kind, vm.name, vm.uuid))

    # ------------------------------------------------------------------ what a test asks

    def nic(self, vm: Vm, card: int = 0) -> Nic:
        return next(n for n in self.agent.guests.all() if n.key == (vm.uuid, vm.cards[card].octets))

    def port(self, vm: Vm, card: int = 0) -> Endpoint:
        endpoint = self.agent.dataplane.pipeline.ports.port(self.nic(vm, card).port)
        assert endpoint is not None
        return endpoint

    def address(self, vm: Vm, card: int = 0) -> Address:
        address = self.nic(vm, card).address
        assert address is not None
        return address

    def said(self, vm: Vm, packet: bytes, group: bool = False) -> None:
        """The guest's first NIC sends an IPv4 packet that comes on the packet socket (DHCP)."""
        nic = self.nic(vm)
        frame = b"\xff" * 6 + nic.mac + b"\x08\x00" + packet
        self.diverted.frames.append((nic.port << 16 | group << 8 | 0xD1, frame))
        self.agent.dataplane._read_diverted()

    def answers(self, vm: Vm) -> list[bytes]:
        """What was sent into the tap of the guest's first NIC, but for IGMP queries, which nobody asked for."""
        sent = [frame for ifindex, frame in self.sent.frames if ifindex == self.nic(vm).ifindex]
        return [frame for frame in sent if not frame.startswith(ALL_SYSTEMS_MAC)]

    def traces(self) -> dict[str, Any]:
        """Everything that a guest may leave on the host, but its reservations and the groups that defend them."""
        agent, plane = self.agent, self.agent.dataplane
        defended = {group_mac(entry.subnet) for entry in agent.registry.reservations()}
        assert defended <= plane.groups
        census: Any = plane.census
        return {
            "nics": agent.guests.all(),
            "locks": list(agent.guests._locks),
            "told": dict(agent.guests._told),
            "ports": plane.pipeline.ports.all(),
            "hostnames": dict(plane.pipeline.hostnames),
            "ifindex_of": dict(plane.ifindex_of),
            "map": self.programs.ports(),
            "attached": self.programs.attached(),
            "groups": plane.groups - defended,
            "map groups": self.programs.groups - defended,
            "pending": dict(census._pending),
            "active": dict(census._active),
            "claims": [c.address for c in plane.pipeline.discovery.claims()],
            "local": list(plane.pipeline.discovery._claims._local),
            "leases": (plane.pipeline.dhcp.leases(plane.now()), agent.registry.leases()),
        }

    def reserved(self) -> dict[str, Address]:
        """Addresses in the registry by guest; the census must defend exactly those that nobody uses."""
        entries = self.agent.registry.reservations()
        return {entry.guest: entry.address for entry in entries}

    @contextmanager
    def refusing(self, *methods: str) -> Iterator[None]:
        """The kernel refuses these calls of Programs."""
        self.programs.fail |= set(methods)
        try:
            yield
        finally:
            self.programs.fail -= set(methods)


class Lan:
    """The hosts and their wire."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.hosts: list[Host] = []
        self.cut: set[Host] = set()
        self.frames: list[bytes] = []

    async def host(self, reconciled: bool = True) -> Host:
        """One more host."""
        number = len(self.hosts)
        host = Host(self, f"host-{number}", f"02:a{number}:0a:0b:0c:{number:02x}")
        self.hosts.append(host)
        if reconciled:
            await host.agent.reconcile()
        return host

    async def destination(self) -> Host:
        """A host that guests may come to: another with the same key is on the wire, and runs one."""
        host, other = await self.host(), await self.host()
        await other.start(vm(99))
        await settle()
        return host

    def carry(self, sender: Host, frame: bytes) -> None:
        self.frames.append(frame)
        for host in self.hosts:
            meant = frame[0] & 1 or frame[:6] == host.uplink.mac
            if host is not sender and meant and not {host, sender} & self.cut:
                asyncio.get_running_loop().call_soon(self._arrive, host, frame)

    @staticmethod
    def _arrive(host: Host, frame: bytes) -> None:
        if frame[0] & 1 and frame[:6] not in host.agent.dataplane.groups:
            return
        host.diverted.frames.append((0xD1, frame))
        host.agent.dataplane._read_diverted()


async def settle(seconds: float = 1.0) -> None:
    """Let time go on."""
    await asyncio.sleep(seconds)


__all__ = ["Card", "Host", "Lan", "Vm", "replace", "settle", "story", "vm"]
