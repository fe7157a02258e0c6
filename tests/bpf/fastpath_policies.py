"""Policies of a world: the agent's own enforcement over the real maps, and twins of the flows for its core.

The programs keep flows in the kernel's tables; the core, which sees every frame, keeps its own. What the agent would
have written for a frame that was diverted is carried over to the kernel's, as it does: from then on both know the same.
"""

import random
from dataclasses import replace
from ipaddress import IPv4Network
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from divhook.adapters.bpf import Programs
from divhook.adapters.bpf.flows import PortFlows
from divhook.agent.enforcement import Enforcement
from divhook.agent.flow_log import FlowLog
from divhook.config.problems import Position
from divhook.core.addressing import Address, AddressPlan, SubnetId
from divhook.core.endpoint import Endpoint
from divhook.core.flow import Flow, FlowCount, FlowEntry, FlowKey, FlowTable
from divhook.core.flow_log import FlowEvent
from divhook.core.identities import IdentityExchange
from divhook.core.verdict import Decision, Direction, PortPolicy, Relation
from divhook.policy.cell import CellPolicy, Default, DefaultKey, Rule
from divhook.policy.files import PolicySet
from divhook.policy.identity import SUBNET_LABEL, Identity
from divhook.policy.labels import parse_selector
from divhook.policy.peers import ALL, EXTERNAL, Anyone, CellPeer, Cidr, OwnHost, Peer, Selection
from divhook.policy.services import Service, parse_service

TIERS = ("web", "db", "batch")
SERVICES = (
    "icmp/8",
    "icmp/8",
    "any",
    "tcp",
    "udp",
    "icmp",
    "tcp/5001",
    "udp/33434",
    "udp/53",
    "icmp/8",
    "icmp/13",
    "sctp",
    "tcp/40001",
    "47",
)
MANY = 1 << 20
"""Flows of a twin: it forgets none, and a port's table in the kernel has room for all of a world."""


def cell_name(number: int) -> str:
    return f"c{number}"


def identity(subnet: SubnetId, tier: str) -> Identity:
    """Of a guest elsewhere."""
    labels = ((SUBNET_LABEL, f"s{subnet.subnet}"), ("tier", tier))
    return Identity(cell_name(subnet.cell), tuple(sorted(labels)))


class TwinTable(FlowTable):
    """Remembers what was written since it was last asked."""

    def __init__(self) -> None:
        super().__init__(MANY)
        self.written: set[FlowKey] = set()

    def put(self, key: FlowKey, entry: FlowEntry) -> None:
        self.written.add(key)
        super().put(key, entry)

    def delete(self, key: FlowKey) -> bool:
        self.written.add(key)
        return super().delete(key)


class TwinPolicies:
    """The enforcement's answers, with flows of the core's own."""

    def __init__(self, enforcement: Enforcement, programs: Programs) -> None:
        self.enforcement = enforcement
        self._programs = programs
        self.tables: dict[int, TwinTable] = {}

    def port(self, endpoint: Endpoint) -> PortPolicy | None:
        real = self.enforcement.port(endpoint)
        if real is None:
            self.tables.pop(endpoint.port, None)
            return None
        return replace(real, flows=self.tables.setdefault(endpoint.port, TwinTable()))

    def decide(
        self, direction: Direction, local: Endpoint, relation: Relation, remote: int | Address, protocol: int, port: int
    ) -> Decision | None:
        return self.enforcement.decide(direction, local, relation, remote, protocol, port)

    def may_talk(self, own: int, other: int) -> bool:
        return self.enforcement.may_talk(own, other)

    def may_reach(self, endpoint: Endpoint, external: Address) -> bool:
        return self.enforcement.may_reach(endpoint, external)

    def reaches_host(self, endpoint: Endpoint) -> bool:
        return self.enforcement.reaches_host(endpoint)

    def told(self, event: FlowEvent) -> None:
        """The kernel's is not compared."""

    def picked_up(self) -> None:
        """The same."""

    def now_s(self, now: float) -> float:
        return self._programs.flows.now_s()

    # ------------------------------------------------------------------ the kernel's tables

    def adopt(self, before: "TwinPolicies") -> None:
        """Another agent: flows go on."""
        self.tables = before.tables

    def settle(self) -> None:
        """Ports that are not policed any more have no flows any more."""
        self.tables = {port: table for port, table in self.tables.items() if self._real(port) is not None}

    def done(self, diverted: bool) -> None:
        """A frame is done with: the programs have written what it told, or the agent does."""
        for port_id, table in self.tables.items():
            written, table.written = table.written, set()
            real = self._real(port_id) if diverted and written else None
            for key in written if real is not None else ():
                entry = table.get(key)
                if entry is None:
                    real.delete(key)
                else:
                    real.put(key, entry)

    def _real(self, port_id: int) -> PortFlows | None:
        port = self.enforcement._ports.get(port_id)
        return port.flows if port is not None else None

    def differences(self) -> list[str]:
        """Flows that only one has, or has otherwise; but for times, and counts, which segments share out."""
        lines = []
        for port_id, table in self.tables.items():
            real = self._real(port_id)
            if real is None:
                continue
            kernel = {key: _plain(entry) for key, entry in real.items()}
            core = {key: _plain(entry) for key, entry in table.items()}
            lines += [
                f"flow {key} of port {port_id}: kernel {kernel.get(key)}, must be {core.get(key)}"
                for key in kernel.keys() | core.keys()
                if kernel.get(key) != core.get(key)
            ]
        return lines


def _plain(entry: FlowEntry) -> FlowEntry:
    if isinstance(entry, Flow):
        return replace(entry, seen_s=0.0, counts=(FlowCount(), FlowCount()))
    return replace(entry, seen_s=0.0)


class WorldPolicies:
    """What people have written, and change; outlives agents."""

    def __init__(self, rng: random.Random, plan: AddressPlan, subnets: list[SubnetId]) -> None:
        self._rng = rng
        self._plan = plan
        self._subnets = subnets
        self._cells = sorted({subnet.cell for subnet in subnets})
        self.cells: dict[str, CellPolicy] = {}
        self.known = {i.number: i for s in subnets for tier in TIERS if (i := identity(s, tier))}
        for cell in self._cells:
            self.rewrite(cell)

    def rewrite(self, cell: int | None = None) -> str:
        """Another policy for a cell; its name."""
        rng = self._rng
        cell = rng.choice(self._cells) if cell is None else cell
        name = cell_name(cell)
        if rng.random() < 0.15:
            self.cells.pop(name, None)
            return name
        rules = [self._rule(name, cell, line) for line in range(rng.choice((0, 2, 6, 12)))]
        keys: list[DefaultKey] = [(None, d, r) for d in Direction for r in (Relation.SUBNET, Relation.CELL)]
        keys += [(None, d, Relation.EXTERNAL) for d in Direction]
        defaults = {key: Default(rng.random() < 0.5) for key in keys if rng.random() < 0.5}
        if rng.random() < 0.4:
            rules.append(self._host_rule(name))
        self.cells[name] = CellPolicy(name, tuple(rules), defaults=defaults)
        return name

    def _rule(self, name: str, cell: int, line: int) -> Rule:
        rng = self._rng
        own = [Selection(), Selection(subnet=self._subnet(cell)), self._tier()]
        return Rule(
            name,
            rng.choice(list(Direction)),
            (rng.choice(own),),
            tuple(rng.sample(self._peers(cell), rng.choice((1, 1, 2)))),
            self._services(),
            rng.random() < 0.4,
            rng.random() < 0.2,
            Position("world", line + 1),
        )

    def _host_rule(self, name: str) -> Rule:
        services = tuple(parse_service(text) for text in ("any", "udp", "icmp"))
        picked = (self._rng.choice(services),)
        ways = list(Direction)
        place = Position("world", 99)
        return Rule(name, self._rng.choice(ways), (Selection(),), (OwnHost(),), picked, False, False, place)

    def _subnet(self, cell: int) -> str:
        return f"s{self._rng.choice([s for s in self._subnets if s.cell == cell]).subnet}"

    def _tier(self) -> Selection:
        return Selection(labels=parse_selector(f"tier={self._rng.choice(TIERS)}"))

    def _peers(self, cell: int) -> list[Peer]:
        others = [c for c in self._cells if c != cell] or [cell + 1]
        other = self._rng.choice(others)
        return [
            Anyone(),
            ALL,
            EXTERNAL,
            OwnHost(),
            Selection(subnet=self._subnet(cell)),
            self._tier(),
            CellPeer(cell_name(other)),
            CellPeer(cell_name(other), subnet=f"s{self._rng.choice(self._subnets).subnet}"),
            Cidr(IPv4Network("192.0.2.0/24")),
        ]

    def _services(self) -> tuple[Service, ...]:
        return tuple(parse_service(text) for text in self._rng.sample(SERVICES, self._rng.choice((1, 1, 2))))

    def set(self) -> PolicySet:
        return PolicySet(dict(self.cells))

    def configuration(self) -> Any:
        """As far as the enforcement asks: numbers of cells."""
        numbers = {cell_name(cell): cell for cell in self._cells}
        return SimpleNamespace(cell=lambda name: SimpleNamespace(number=numbers[name]) if name in numbers else None)


def enforcement_of(
    policies: WorldPolicies, plan: AddressPlan, programs: Programs, exchange: IdentityExchange
) -> Enforcement:
    """The agent's, with these policies as if read from files."""
    made = Enforcement(Path("/nowhere"), Path("/nowhere"), plan, programs, exchange, FlowLog())
    made.policies = policies.set()
    made._configuration = policies.configuration()
    return made
