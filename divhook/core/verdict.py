"""What the core asks a policy, and what it gets: the seam to divhook/policy, which the core does not import.

Default deny: who cannot be asked about (an identity that is unknown) is waited for, and what waits too long is dropped.
"""

from collections.abc import Callable
from dataclasses import dataclass
from enum import IntEnum
from typing import NamedTuple, Protocol

from divhook.core.addressing import Address, AddressPlan
from divhook.core.endpoint import Endpoint
from divhook.core.flow import FlowStore
from divhook.core.flow_log import FlowEvent

PICKUP_MOVED_S = 30.0
"""After a guest has come here without its flows: docs/protocol.md, moves."""
PICKUP_TRACKED_S = 7_440.0
"""After a port has become tracked while its guest talked. RFC 5382 REQ-5: an idle connection is good for 2 h 4 min."""


class Direction(IntEnum):
    """Which side of a flow decides: enum policy_direction. INGRESS: the local end is the destination."""

    INGRESS = 1
    EGRESS = 2

    def __str__(self) -> str:
        return self.name.lower()


class Relation(IntEnum):
    """Where the remote end is, as seen from the local end: enum policy_relation. Read off the two addresses."""

    SUBNET = 1
    CELL = 2
    OTHER = 3
    EXTERNAL = 4
    HOST = 5  # an address of the host that the endpoint is on

    def __str__(self) -> str:
        return ("", "same subnet", "same cell", "other cell", "external", "its host")[self]


def relation_of(
    plan: AddressPlan, local: Address, remote: Address, is_host: Callable[[Address], bool] = lambda _: False
) -> Relation:
    """Where remote is, as seen from an endpoint's address. is_host: whether it is this host's own."""
    if is_host(remote):
        return Relation.HOST
    here, there = plan.locate(local), plan.locate(remote)
    if there is None or here is None:
        return Relation.EXTERNAL
    if here.cell != there.cell:
        return Relation.OTHER
    return Relation.SUBNET if here == there else Relation.CELL


class Decision(NamedTuple):
    """What a policy says. rule: number of the rule that decides; 0: a default does. log: the flow is to be told."""

    allow: bool
    rule: int = 0
    log: bool = False


@dataclass(frozen=True, slots=True)
class PortPolicy:
    """What holds at a port that is tracked.

    identity: of its endpoint. epoch: of its cell's policy; another one than a flow's asks about the flow again. flows:
    those of the port, shared with the kernel. pickup_until_s: until then, by the clock of the flows, a TCP segment in
    mid-stream may begin a flow that the policy allows from either side; 0: none does.
    """

    identity: int
    epoch: int
    flows: FlowStore
    pickup_until_s: float = 0.0


class Policies(Protocol):
    """Who may talk to whom: the agent's, over policy/table.py."""

    def port(self, endpoint: Endpoint) -> PortPolicy | None:
        """What holds at a port of this host; None where nothing but the plan does: its cell has no policy."""

    def decide(
        self,
        direction: Direction,
        local: Endpoint,
        relation: Relation,
        remote: int | Address,
        protocol: int,
        port: int,
    ) -> Decision | None:
        """Whether a flow may begin at (EGRESS) or reach (INGRESS) a local endpoint, by that endpoint's cell.

        remote: an endpoint's identity, or an address (Relation.EXTERNAL, Relation.HOST). port: destination port of the
        flow's first packet; of ICMP, type << 8 | code; else 0. None: nothing is known of that identity yet.
        A port without policy: everything within the cell, nothing else.
        """

    def may_talk(self, own: int, other: int) -> bool:
        """Whether any rule of a cell (its number) could allow anything to or from another: asked before discovery."""

    def may_reach(self, endpoint: Endpoint, external: Address) -> bool:
        """Whether any rule or default could allow anything between the two: asked before ARP is answered."""

    def reaches_host(self, endpoint: Endpoint) -> bool:
        """Whether any rule could allow anything between an endpoint and its host: asked before the host has a route."""

    def told(self, event: FlowEvent) -> None:
        """For the flow log."""

    def picked_up(self) -> None:
        """A flow has begun in mid-stream: to be counted."""

    def now_s(self, now: float) -> float:
        """The time by the clock of the flows."""


class NoPolicies:
    """Everything within a cell, nothing else: what holds where there is no policy at all."""

    def port(self, endpoint: Endpoint) -> PortPolicy | None:
        """None is tracked."""
        return None

    def decide(
        self,
        direction: Direction,
        local: Endpoint,
        relation: Relation,
        remote: int | Address,
        protocol: int,
        port: int,
    ) -> Decision | None:
        """The built-in defaults."""
        return Decision(relation in (Relation.SUBNET, Relation.CELL))

    def may_talk(self, own: int, other: int) -> bool:
        """No."""
        return False

    def may_reach(self, endpoint: Endpoint, external: Address) -> bool:
        """No."""
        return False

    def reaches_host(self, endpoint: Endpoint) -> bool:
        """No."""
        return False

    def told(self, event: FlowEvent) -> None:
        """Nobody listens."""

    def picked_up(self) -> None:
        """Nobody counts."""

    def now_s(self, now: float) -> float:
        """The same."""
        return now
