"""One cell's policy as its files have it together: the meaning, without their form. docs/policy.md defines it.

A rule speaks of a packet if one of its endpoints is the local end, one of its peers the remote end, and one of its
services the packet's. Of the rules that speak: a deny wins over any allow; where none speaks, the default of the local
end's subnet decides, by where the remote end is (its relation). The order of rules does not change a verdict.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from divhook.config.problems import Position
from divhook.core.addressing import Address
from divhook.core.verdict import Direction, Relation
from divhook.policy.identity import Identity, content_number
from divhook.policy.peers import Anyone, CellPeer, Cidr, DnsName, OwnHost, Peer, Selection
from divhook.policy.services import Service


class Remote(NamedTuple):
    """The remote end of a flow: a guest by its identity, an external address with the DNS names it is known by, or the
    host that the local end is on."""

    identity: Identity | None = None
    address: Address | None = None
    names: tuple[str, ...] = ()
    host: bool = False


@dataclass(frozen=True, slots=True)
class Rule:
    """One rule. number: 64 bits of its content, so that it survives lines that come and go around it."""

    cell: str
    direction: Direction
    endpoints: tuple[Selection, ...]
    peers: tuple[Peer, ...]
    services: tuple[Service, ...]
    deny: bool
    log: bool
    where: Position = field(compare=False)
    comment: str = field(default="", compare=False)
    number: int = field(init=False, compare=False)
    place: tuple[str, int, int] = field(init=False, compare=False, repr=False)
    """For file order."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "place", (self.where.file, self.where.line, self.where.column))
        parts = ["rule", self.cell, str(self)] + (["log"] if self.log else [])
        object.__setattr__(self, "number", content_number(parts))

    def __str__(self) -> str:
        action = "deny" if self.deny else "allow"
        services = ", ".join(str(s) for s in self.services)
        own, others = ("; ".join(str(e) for e in side) for side in (self.endpoints, self.peers))
        way = f"from {others} to {own}" if self.direction is Direction.INGRESS else f"from {own} to {others}"
        return f"{self.direction} {action} {services} {way}"


class Default(NamedTuple):
    """What holds where no rule speaks, and where that is written (None: built in)."""

    allow: bool
    where: Position | None = None


BUILT_IN: Mapping[Relation, Default] = {
    Relation.SUBNET: Default(True),
    Relation.CELL: Default(True),
    Relation.OTHER: Default(False),
    Relation.EXTERNAL: Default(False),
    Relation.HOST: Default(False),
}
"""Within a cell everything, between cells, to the outside and to hosts nothing."""

DefaultKey = tuple[str | None, Direction, Relation]
"""(subnet, or None for the whole cell; direction; relation)."""


@dataclass(frozen=True, slots=True)
class CellPolicy:
    """A cell's whole policy. groups: name → members; group_places: where each is defined."""

    cell: str
    rules: tuple[Rule, ...] = ()
    groups: Mapping[str, tuple[Selection, ...]] = field(default_factory=dict)
    exports: frozenset[str] = frozenset()
    defaults: Mapping[DefaultKey, Default] = field(default_factory=dict)
    group_places: Mapping[str, Position] = field(default_factory=dict, compare=False)
    _patterns: list[str] | None = field(init=False, repr=False, compare=False, default=None)
    _bound: dict[Selection, Selection] = field(init=False, repr=False, compare=False, default_factory=dict)

    @property
    def guest_patterns(self) -> list[str]:
        """The guest patterns of all groups and rules, sorted: part of identities."""
        if self._patterns is None:
            parts = [m for members in self.groups.values() for m in members]
            parts += [s for r in self.rules for s in (*r.endpoints, *r.peers) if isinstance(s, Selection)]
            found = {s.guest for part in parts for s in (part, *part.exclude) if s.guest is not None}
            object.__setattr__(self, "_patterns", sorted(found))
        return self._patterns or []

    def default(self, subnet: str, direction: Direction, relation: Relation) -> Default:
        """What holds for an endpoint of a subnet where no rule speaks. Between cells, and for hosts, always deny."""
        for key in ((subnet, direction, relation), (None, direction, relation)):
            if key in self.defaults:
                return self.defaults[key]
        return BUILT_IN[relation]

    def groups_of(self, identity: Identity) -> tuple[str, ...]:
        """Groups of this cell that one of its endpoints is in."""
        return tuple(name for name, members in self.groups.items() if any(m.matches(identity) for m in members))

    def exported_groups_of(self, identity: Identity) -> tuple[str, ...]:
        """Those of them that other cells may name."""
        return tuple(name for name in self.groups_of(identity) if name in self.exports)

    def bind(self, selection: Selection) -> Selection:
        """A selection with the members of the groups that it names."""
        if selection not in self._bound:
            self._bound[selection] = selection.bind(self.groups)
        return self._bound[selection]

    def selects(self, endpoints: Iterable[Selection], identity: Identity) -> bool:
        """Whether an endpoint of this cell is one of some."""
        return any(self.bind(e).matches(identity) for e in endpoints)

    def meets(self, peer: Peer, remote: Remote) -> bool:
        """Whether the remote end is a peer."""
        match peer:
            case Anyone():
                return not remote.host
            case OwnHost():
                return remote.host
            case Selection():
                identity = remote.identity
                return identity is not None and identity.cell == self.cell and self.bind(peer).matches(identity)
            case CellPeer():
                return remote.identity is not None and peer.matches(remote.identity)
            case Cidr():
                return remote.address is not None and peer.contains(remote.address)
            case DnsName():
                return remote.identity is None and any(peer.matches(name) for name in remote.names)

    def relation(self, local: Identity, remote: Remote) -> Relation:
        """Where the remote end is, as seen from an endpoint of this cell."""
        if remote.identity is None:
            return Relation.HOST if remote.host else Relation.EXTERNAL
        if remote.identity.cell != self.cell:
            return Relation.OTHER
        return Relation.SUBNET if remote.identity.subnet == local.subnet else Relation.CELL
