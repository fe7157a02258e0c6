"""Policies as a set of what is allowed, for tests of those who ask them."""

from dataclasses import dataclass, field

from divhook.core.addressing import Address
from divhook.core.endpoint import Endpoint
from divhook.core.flow import FlowTable
from divhook.core.flow_log import FlowEvent
from divhook.core.verdict import Decision, Direction, PortPolicy, Relation

Service = tuple[Direction, int, int]
"""(direction, protocol, port)."""


@dataclass
class ToyPolicies:
    """allowed, by port id. rules: services that a rule decides, with its number; logged: those that are told.

    known: identities that can be decided about; None: all. talks: (own cell, other cell).
    """

    ports: dict[int, PortPolicy] = field(default_factory=dict)
    allowed: dict[int, set[Service]] = field(default_factory=dict)
    logged: set[Service] = field(default_factory=set)
    known: set[int] | None = None
    talks: set[tuple[int, int]] = field(default_factory=set)
    events: list[FlowEvent] = field(default_factory=list)
    pickups: int = 0
    offset_s: float = 500.0
    asked: list[tuple[Direction, Relation, int | Address]] = field(default_factory=list)

    def police(self, endpoint: Endpoint, *allowed: Service, epoch: int = 1, pickup_until_s: float = 0.0) -> None:
        """Default deny at a port, but for these."""
        before = self.ports.get(endpoint.port)
        flows = before.flows if before is not None else FlowTable(64)
        self.ports[endpoint.port] = PortPolicy(endpoint.identity, epoch, flows, pickup_until_s)
        self.allowed[endpoint.port] = set(allowed)

    def port(self, endpoint: Endpoint) -> PortPolicy | None:
        return self.ports.get(endpoint.port)

    def decide(
        self, direction: Direction, local: Endpoint, relation: Relation, remote: int | Address, protocol: int, port: int
    ) -> Decision | None:
        self.asked.append((direction, relation, remote))
        if self.known is not None and isinstance(remote, int) and remote not in self.known:
            return None
        service = (direction, protocol, port)
        allow = service in self.allowed[local.port]
        return Decision(allow, 7 if allow else 0, service in self.logged)

    def may_talk(self, own: int, other: int) -> bool:
        return (own, other) in self.talks

    def may_reach(self, endpoint: Endpoint, external: Address) -> bool:
        return bool(self.allowed.get(endpoint.port))

    def told(self, event: FlowEvent) -> None:
        self.events.append(event)

    def picked_up(self) -> None:
        self.pickups += 1

    def now_s(self, now: float) -> float:
        return now + self.offset_s
