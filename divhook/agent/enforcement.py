"""Policies in force on this host: files to tables, tables to the kernel, answers to the core (core/verdict.Policies).

    files ──▶ PolicySet ──▶ CellTable of each cell with a guest here ──▶ maps (policy_writer.py)
    guest's labels ──▶ identity ──▶ claim, port, table

Invariants:
 - a cell whose files say no more than the built-in defaults is not tracked: its ports run no policy code;
 - a port has its table of flows and its record before it is policed, and loses them after;
 - a change is written in the steps of the table, then the epoch: a flow that is the same before and after is never
   refused, and one that is forbidden passes nothing more once the epoch is written;
 - files with a mistake change nothing, and are told of; a restarted agent that finds such files takes the last good
   ones, which it keeps below its state directory.
"""

import contextlib
import hashlib
import logging
import shutil
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from divhook.abi.policy_entries import ANY_CELL, port_policy, unpack_port_policy
from divhook.adapters.bpf.errors import BpfError
from divhook.adapters.bpf.flows import PortFlows
from divhook.adapters.bpf.programs import Programs
from divhook.agent.flow_log import FlowLog
from divhook.agent.nic import Nic
from divhook.agent.policy_writer import PolicyWriter
from divhook.config.configuration import Configuration
from divhook.config.problems import ConfigError
from divhook.core.addressing import Address, AddressPlan, SubnetId
from divhook.core.endpoint import Endpoint
from divhook.core.flow_log import FlowEvent
from divhook.core.identities import IdentityExchange
from divhook.core.verdict import PICKUP_TRACKED_S, Decision, Direction, PortPolicy, Relation
from divhook.policy.cell import BUILT_IN, CellPolicy, Rule
from divhook.policy.compile import CellTable
from divhook.policy.files import POLICIES_DIRECTORY, PolicyLoader, PolicySet
from divhook.policy.identity import SUBNET_LABEL, Identity, IdentityError, Workload, decode_identity_untrusted, identify
from divhook.policy.peers import Anyone, CellPeer, DnsName, OwnHost
from divhook.policy.table import Delta, LocalScopes, Scope, UnknownIdentityError

KEPT_FILES = "policies"
"""Below the state directory: the files that are in force, for a start that finds others unusable."""
MAX_REACH = 8192
"""Answers to external servers' ARP that are remembered."""
DEFAULT_RELATIONS = (Relation.SUBNET, Relation.CELL, Relation.EXTERNAL)

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Standing:
    """What a NIC's port is to be."""

    identity: int
    policed: bool


class PolicedPort(NamedTuple):
    """A port at which a policy is enforced."""

    nic: Nic
    cell: str
    identity: Identity
    flows: PortFlows


@dataclass(slots=True, eq=False)
class _Cell:
    """A cell with policed ports here. others: addresses of cells that its rules could have to do with."""

    table: CellTable
    address: Address
    epoch: int
    others: frozenset[Address] = frozenset()
    locals: Counter[int] = field(default_factory=Counter)


@dataclass(slots=True, eq=False)
class _Port:
    """A NIC's port. flows: where it is policed."""

    nic: Nic
    cell: str
    identity: Identity
    flows: PortFlows | None = None
    pickup_until_s: float = 0.0
    shown: PortPolicy | None = None


def is_policed(policy: CellPolicy) -> bool:
    """Whether a policy says more than nothing."""
    return bool(policy.rules) or any(d.allow is not BUILT_IN[r].allow for (_, _, r), d in policy.defaults.items())


class Enforcement:
    """See above. on_change: called with NICs whose port or claim has to be told anew.

    All methods run in the event loop's thread. problem: what is wrong with the files now; empty where nothing is.
    """

    def __init__(
        self,
        directory: Path,
        state: Path,
        plan: AddressPlan,
        programs: Programs,
        exchange: IdentityExchange,
        flow_log: FlowLog,
    ) -> None:
        self.policies = PolicySet()
        self.problem = ""
        self.applied = 0
        self.pickups = 0
        self.flow_log = flow_log
        self.rule_flows: Counter[int] = Counter()
        self.on_change: Callable[[Nic], None] = lambda nic: None
        self._directory = directory
        self._kept = state / KEPT_FILES
        self._plan = plan
        self._programs = programs
        self._exchange = exchange
        self._loader = PolicyLoader()
        self._writer = PolicyWriter(programs.policy)
        self._configuration: Configuration | None = None
        self._cells: dict[str, _Cell] = {}
        self._ports: dict[int, _Port] = {}
        self._names: dict[str, Mapping[DnsName, Collection[Address]]] = {}
        self._interim: dict[int, Identity] = {}  # by port, while the patterns of a cell change
        self._reach: dict[tuple[str, int, int, Address], bool] = {}
        self._host_rules: dict[str, tuple[CellPolicy, list[Rule]]] = {}
        self._swept = False
        self._clock_s = 0.0

    # ------------------------------------------------------------------ files

    def start(self, configuration: Configuration) -> None:
        """Take the files at the agent's start; those that were good last where they are not."""
        self._configuration = configuration
        self.set_clock(0.0)
        try:
            self.policies = self._loader.load(self._directory, configuration)
            self.keep()
        except ConfigError as error:
            self._bad(error)
            try:
                self.policies = PolicyLoader().load(self._kept.parent, configuration)
                log.error("the policies that were good last are in force, from %s", self._kept)
            except ConfigError as worse:
                log.error(
                    "and those in %s are not usable, so nothing of a cell with a policy passes: %s", self._kept, worse
                )
                self.policies = self._closed(configuration)

    def _closed(self, configuration: Configuration) -> PolicySet:
        """No usable policy at all: cells that have files pass nothing."""
        from divhook.policy.cell import Default

        keys = [(None, d, r) for d in Direction for r in DEFAULT_RELATIONS]
        names = {p.stem for p in (self._directory / POLICIES_DIRECTORY).glob("*")}
        return PolicySet({n: CellPolicy(n, defaults={k: Default(False) for k in keys}) for n in names}, configuration)

    def read(self, configuration: Configuration) -> PolicySet:
        """Read the files. Changes nothing, so it may be in a thread, one at a time. Raises ConfigError."""
        return self._loader.load(self._directory, configuration)

    def refuse(self, error: ConfigError) -> None:
        """The files have a mistake: all stays as it is, and is told."""
        self._bad(error)

    def take(self, fresh: PolicySet) -> int:
        """Put policies in force that were read. Returns how many cells changed."""
        self._configuration = fresh.configuration or self._configuration
        self.problem = ""
        before, self.policies = self.policies, fresh
        changed = [name for name in {*before.cells, *fresh.cells} if before.cell(name) != fresh.cell(name)]
        for name in changed:
            self._change_cell(name)
        if changed:
            self.applied += 1
            log.info("policies in force: %s changed", ", ".join(sorted(changed)))
        return len(changed)

    def _bad(self, error: ConfigError) -> None:
        self.problem = str(error)
        log.error("the policies have a mistake, the last good ones stay in force: %s", error)

    def keep(self) -> None:
        """Copy the files that are in force, as far as they differ: for a start that finds others."""
        source = self._directory / POLICIES_DIRECTORY
        try:
            self._kept.mkdir(parents=True, exist_ok=True)
            files = {path.relative_to(source): path for path in source.rglob("*.yaml")} if source.is_dir() else {}
            for name, path in files.items():
                copy = self._kept / name
                if not copy.exists() or copy.stat().st_mtime_ns != path.stat().st_mtime_ns:
                    copy.parent.mkdir(parents=True, exist_ok=True)
                    shutil.copy2(path, copy)
            for copy in self._kept.rglob("*.yaml"):
                if copy.relative_to(self._kept) not in files:
                    copy.unlink()
        except OSError as error:
            log.error("the policies that are in force cannot be kept for the next start: %s", error)

    def _change_cell(self, name: str) -> None:
        policy, cell = self.policies.cell(name), self._cells.get(name)
        ports = [port for port in self._ports.values() if port.cell == name]
        if cell is not None and is_policed(policy):
            # Rules of before and after both know a guest by what is in its identity: first it has what either needs.
            for port in ports:
                other = self.identity_of(port.nic)
                if other != port.identity:
                    self._interim[port.nic.port] = _both(port.identity, other)
                    self.on_change(port.nic)
            self._interim.clear()
            others = self._others(policy)
            self._pair(cell, others | cell.others)
            for delta in cell.table.set_policy(policy):
                self._write(cell, delta)
            self._pair(cell, others)
            self._next_epoch(name, cell)
        for port in ports:
            if (port.flows is not None) != is_policed(policy) or port.identity != self.identity_of(port.nic):
                self.on_change(port.nic)

    def set_names(self, cell: str, names: Mapping[DnsName, Collection[Address]]) -> None:
        """What the DNS names of a cell's rules resolve to, all of them."""
        self._names[cell] = names
        here = self._cells.get(cell)
        if here is not None and (delta := here.table.set_names(names)):
            self._write(here, delta)
            self._next_epoch(cell, here)

    def names_wanted(self) -> dict[str, set[DnsName]]:
        """The DNS names that each cell's rules speak of."""
        return {
            name: {p for rule in policy.rules for p in rule.peers if isinstance(p, DnsName)}
            for name, policy in self.policies.cells.items()
        }

    def digest_of(self, cell: str) -> str:
        """Of a cell's policy files in force, comments included: hosts that differ here may differ in what passes."""
        digest = hashlib.sha256()
        found = [p for p in self._kept.rglob("*.yaml") if p.relative_to(self._kept).parts[0] in (cell, f"{cell}.yaml")]
        for path in sorted(found):
            with contextlib.suppress(OSError):
                digest.update(f"{path.relative_to(self._kept)} ".encode() + path.read_bytes())
        return digest.hexdigest()[:16]

    # ------------------------------------------------------------------ ports

    def identity_of(self, nic: Nic) -> Identity:
        """Who a NIC is, by its cell's files as they are in force. Labels that cannot be used are told of."""
        if nic.port in self._interim:
            return self._interim[nic.port]
        subnet = nic.placement.subnet
        workload = Workload(subnet.cell, subnet.name, nic.guest, nic.labels, nic.address)
        try:
            return identify(workload, self.policies.cell(subnet.cell))
        except IdentityError as error:
            log.error("%s: its labels and groups count for nothing: %s", nic, error)
            return Identity(subnet.cell, ((SUBNET_LABEL, subnet.name),))

    def admit(self, nic: Nic, now: float, live: bool = False) -> Standing:
        """A NIC has a port, or another address, label or policy: what it is now. live: its guest may have connections.

        Raises BpfError where the kernel has no room; then call `leave`.
        """
        identity, name = self.identity_of(nic), nic.placement.subnet.cell
        port = self._ports.get(nic.port)
        if port is not None and port.nic is not nic:
            self.leave(nic.port)
            port = None
        policed = is_policed(self.policies.cell(name))
        if port is None:
            port = self._ports[nic.port] = _Port(nic, name, identity)
            before = None
        else:
            before, port.identity = port.identity, identity
        if policed:
            cell = self._cell_of(name, nic.placement.id)
            if before is None or before != identity or port.flows is None:
                self._enter(cell, identity)
                if port.flows is not None and before is not None:
                    self._show(cell, port)
                    self._exit(cell, before)
            if port.flows is None:
                port.flows = self._programs.flows.install(nic.port)
                self._pickup_of(port, now, live)
            self._show(cell, port)
        if before != identity:
            self._exchange.set_own({p.identity.number: p.identity.encode() for p in self._ports.values()})
        return Standing(identity.number, policed)

    def _pickup_of(self, port: _Port, now: float, live: bool) -> None:
        raw = self._programs.policy.port(port.nic.port)
        if raw is not None:  # a restarted agent goes on
            port.pickup_until_s = unpack_port_policy(raw).pickup_until_ticks / self._programs.flows.ticks_per_s
        elif live:
            self.set_clock(now)
            port.pickup_until_s = self.now_s(now) + PICKUP_TRACKED_S

    def pick_up(self, port_id: int, now: float, seconds: float) -> None:
        """For so long TCP in mid-stream may begin flows at a port: its guest has come here without them."""
        port = self._ports.get(port_id)
        cell = self._cells.get(port.cell) if port is not None else None
        if port is not None and cell is not None and port.flows is not None:
            self.set_clock(now)
            port.pickup_until_s = max(port.pickup_until_s, self.now_s(now) + seconds)
            self._show(cell, port)

    def export_flows(self, port_id: int, within_s: float) -> list[bytes] | None:
        """Connections of a port that were seen within so long, for its guest's next host; None: not tracked."""
        port = self._ports.get(port_id)
        if port is None or port.flows is None:
            return None
        return list(port.flows.export(self._programs.flows.now_s(), within_s))

    def take_flows_untrusted(self, port_id: int, exported: bytes) -> int:
        """What `export_flows` gave at another host; nothing where the port is not tracked here. Raises ValueError."""
        port = self._ports.get(port_id)
        if port is None or port.flows is None:
            return 0
        return port.flows.merge_untrusted(self._programs.flows.now_s(), exported)

    def told_policed(self, nic: Nic) -> None:
        """The port's flags in the kernel are as `admit` said: what it does not need any more goes."""
        port = self._ports.get(nic.port)
        if port is not None and port.flows is not None and not is_policed(self.policies.cell(port.cell)):
            self._unpolice(port)

    def leave(self, port_id: int) -> None:
        """The port is gone. Raises BpfError."""
        port = self._ports.pop(port_id, None)
        if port is not None and port.flows is not None:
            self._unpolice(port)
        self._exchange.set_own({p.identity.number: p.identity.encode() for p in self._ports.values()})

    def _unpolice(self, port: _Port) -> None:
        assert port.flows is not None
        port.flows.close()
        port.flows = port.shown = None
        self._programs.flows.remove(port.nic.port)
        self._programs.policy.remove_port(port.nic.port)
        cell = self._cells.get(port.cell)
        if cell is None:
            return
        self._exit(cell, port.identity)
        if not cell.locals:
            del self._cells[port.cell]
            self._writer.pairs(cell.address, frozenset(), cell.others)
            for delta in cell.table.set_policy(CellPolicy(port.cell)):
                self._write(cell, delta)
            for number in list(cell.table.table.identities):
                self._write(cell, cell.table.remove_remote_number(number))

    def _cell_of(self, name: str, place: SubnetId) -> _Cell:
        cell = self._cells.get(name)
        if cell is None:
            network = self._plan.network(SubnetId(place.cell, 0))
            address = network.network_address.packed
            cell = self._cells[name] = _Cell(CellTable(name), address, self._epoch_before())
            policy = self.policies.cell(name)
            self._pair(cell, self._others(policy))
            if name in self._names:
                cell.table.set_names(self._names[name])
            for delta in cell.table.set_policy(policy):
                self._write(cell, delta)
        return cell

    def _epoch_before(self) -> int:
        """That of an agent before this one: flows that it let in are asked about again only where something changed."""
        records = [self._programs.policy.port(port_id) for port_id in self._programs.policy.ports()]
        return max([1, *(int(unpack_port_policy(raw).epoch) for raw in records if raw is not None)])

    def _enter(self, cell: _Cell, identity: Identity) -> None:
        cell.locals[identity.number] += 1
        if cell.locals[identity.number] == 1:
            self._write(cell, cell.table.add_remote(identity))
            self._write(cell, cell.table.add_local(identity))

    def _exit(self, cell: _Cell, identity: Identity) -> None:
        cell.locals[identity.number] -= 1
        if cell.locals[identity.number] <= 0:
            del cell.locals[identity.number]
            self._write(cell, cell.table.remove_local(identity))

    def _write(self, cell: _Cell, delta: Delta) -> None:
        for step in delta.steps():
            if step.map == "locals":
                for port in self._ports.values():
                    if port.flows is not None and port.identity.number == step.key and step.value is not None:
                        assert isinstance(step.value, LocalScopes)
                        self._show(cell, port, step.value)
            else:
                self._writer.write(cell.address, step)

    def _show(self, cell: _Cell, port: _Port, scopes: LocalScopes | None = None) -> None:
        """The port's record, for the kernel and for the core.

        scopes: as they are to be in the middle of a change, whose entries are not written to the end yet.
        """
        scopes = scopes or cell.table.table.locals[port.identity.number]
        assert port.flows is not None
        self._programs.policy.set_port(
            port.nic.port,
            port_policy(
                cell.address,
                port.identity.number,
                cell.epoch,
                (scopes.ingress.rules, scopes.egress.rules),
                (_allowed(scopes.ingress), _allowed(scopes.egress)),
                self._programs.policy.ticks(port.pickup_until_s),
            ),
        )
        port.shown = PortPolicy(port.identity.number, cell.epoch, port.flows, port.pickup_until_s)

    def _next_epoch(self, name: str, cell: _Cell) -> None:
        cell.epoch = cell.epoch % 0xFFFFFFFF + 1
        for port in self._ports.values():
            if port.cell == name and port.flows is not None:
                self._show(cell, port)

    def _pair(self, cell: _Cell, others: frozenset[Address]) -> None:
        """Cells that it may have to do with."""
        self._writer.pairs(cell.address, others, cell.others)
        cell.others = others

    def _others(self, policy: CellPolicy) -> frozenset[Address]:
        """Addresses of the cells that an allowing rule names."""
        peers = [peer for rule in policy.rules if not rule.deny for peer in rule.peers]
        found = {ANY_CELL} if any(isinstance(peer, Anyone) for peer in peers) else set()
        for name in {peer.cell for peer in peers if isinstance(peer, CellPeer)}:
            known = self._configuration.cell(name) if self._configuration is not None else None
            if known is not None:
                found.add(self._plan.network(SubnetId(known.number, 0)).network_address.packed)
        return frozenset(found)

    def sweep(self) -> None:
        """All guests have been found again after a start: what an agent before left, and nobody needs, goes."""
        if self._swept:
            return
        self._swept = True
        removed = self._writer.sweep((c.address, c.table.table, c.others) for c in self._cells.values())
        if removed or self._writer.changed:
            for name, cell in self._cells.items():
                self._next_epoch(name, cell)
        for port_id in set(self._programs.policy.ports()) - self._ports.keys():
            self._programs.policy.remove_port(port_id)

    # ------------------------------------------------------------------ what the core asks

    def port(self, endpoint: Endpoint) -> PortPolicy | None:
        """What holds at a port."""
        port = self._ports.get(endpoint.port)
        return port.shown if port is not None else None

    def decide(
        self,
        direction: Direction,
        local: Endpoint,
        relation: Relation,
        remote: int | Address,
        protocol: int,
        port: int,
    ) -> Decision | None:
        """By the cell's table, that the kernel has, too."""
        here = self._ports.get(local.port)
        cell = self._cells.get(here.cell) if here is not None and here.flows is not None else None
        if here is None or cell is None:
            return Decision(relation in (Relation.SUBNET, Relation.CELL))
        table = cell.table.table
        try:
            found = table.decide(direction, here.identity.number, relation, remote, protocol, port)
        except UnknownIdentityError:
            if isinstance(remote, bytes) or not self._learn(cell, remote):
                return None
            found = table.decide(direction, here.identity.number, relation, remote, protocol, port)
        if found.verdict is None:
            return Decision(found.allow)
        self.rule_flows[found.verdict.rule] += 1
        return Decision(found.allow, found.verdict.rule, found.verdict.log)

    def _learn(self, cell: _Cell, number: int) -> bool:
        """Put an identity that is known into a cell's table."""
        encoding = self._exchange.get(number)
        if encoding is None:
            return False
        try:
            identity = decode_identity_untrusted(encoding)
        except IdentityError as error:
            log.error("identity %016x, as its host says, is none: %s", number, error)
            return False
        try:
            self._write(cell, cell.table.add_remote(identity))
        except BpfError as error:
            log.error("an identity stays on the slow path: %s", error)
        return True

    def forget(self, numbers: Iterable[int]) -> None:
        """Identities that had to make room."""
        for number in numbers:
            for cell in self._cells.values():
                if number not in cell.locals:
                    self._write(cell, cell.table.remove_remote_number(number))

    def may_talk(self, own: int, other: int) -> bool:
        """By the rules of the own cell, either direction."""
        address, there = (self._plan.network(SubnetId(n, 0)).network_address.packed for n in (own, other))
        cell = next((c for c in self._cells.values() if c.address == address), None)
        return cell is not None and not cell.others.isdisjoint((there, ANY_CELL))

    def may_reach(self, endpoint: Endpoint, external: Address) -> bool:
        """By the cell's table; asked once per identity, address and epoch."""
        port = self._ports.get(endpoint.port)
        cell = self._cells.get(port.cell) if port is not None and port.flows is not None else None
        if port is None or cell is None:
            return False
        key = (port.cell, cell.epoch, port.identity.number, external)
        if key not in self._reach:
            if len(self._reach) >= MAX_REACH:
                self._reach.clear()
            self._reach[key] = cell.table.table.may_reach(port.identity.number, external)
        return self._reach[key]

    def reaches_host(self, endpoint: Endpoint) -> bool:
        """Whether any rule lets anything pass between a guest and its host."""
        port = self._ports.get(endpoint.port)
        if port is None or port.flows is None:
            return False
        policy = self.policies.cell(port.cell)
        found, rules = self._host_rules.get(port.cell, (None, []))
        if found is not policy:
            rules = [rule for rule in policy.rules if not rule.deny and OwnHost() in rule.peers]
            self._host_rules[port.cell] = (policy, rules)
        return any(policy.selects(rule.endpoints, port.identity) for rule in rules)

    def told(self, event: FlowEvent) -> None:
        """For the flow log."""
        self.flow_log.agent(event)

    def picked_up(self) -> None:
        """Counted."""
        self.pickups += 1

    def set_clock(self, now: float) -> None:
        """Read the clock of the flows; it goes as fast as ours, but begins elsewhere."""
        self._clock_s = self._programs.flows.now_s() - now

    def now_s(self, now: float) -> float:
        """The time by the clock of the flows."""
        return now + self._clock_s

    # ------------------------------------------------------------------ for people

    def is_policed_port(self, port_id: int) -> bool:
        """Whether a policy is enforced at a port."""
        port = self._ports.get(port_id)
        return port is not None and port.flows is not None

    def policed_ports(self) -> list[PolicedPort]:
        """Those of this host."""
        ports = self._ports.values()
        return [PolicedPort(p.nic, p.cell, p.identity, p.flows) for p in ports if p.flows is not None]

    def identities_of(self, cell: str) -> tuple[tuple[Identity, ...], tuple[Identity, ...]]:
        """What a cell's table knows: of local endpoints, and of remote ends."""
        found = self._cells.get(cell)
        return found.table.identities() if found is not None else ((), ())

    def cells(self) -> list[str]:
        """Cells whose policy is enforced here."""
        return sorted(self._cells)

    def rule(self, number: int) -> Rule | None:
        """A rule in force here, by its number."""
        found = (cell.table.rules.get(number) for cell in self._cells.values())
        return next((rule for rule in found if rule is not None), None)

    def identity(self, number: int) -> Identity | None:
        """What a number stands for, if that is known."""
        encoding = self._exchange.get(number)
        return decode_identity_untrusted(encoding) if encoding is not None else None

    def table_of(self, cell: str) -> CellTable | None:
        """The compiled policy of a cell that is enforced here."""
        found = self._cells.get(cell)
        return found.table if found is not None else None


def _both(before: Identity, after: Identity) -> Identity:
    """All that either has; the new one alone where that is too much for one."""
    labels, exports = {*before.labels, *after.labels}, {*before.exports, *after.exports}
    try:
        return Identity(after.cell, tuple(sorted(labels)), tuple(sorted(exports)))
    except IdentityError:
        return after


def _allowed(scope: Scope) -> frozenset[Relation]:
    return frozenset(relation for relation in DEFAULT_RELATIONS if scope.default(relation))
