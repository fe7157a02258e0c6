"""Why a flow passes or not: both sides' rules, read as docs/policy.md says, with no compiled table in between.

The source's egress decides, then the destination's ingress; an end that is external, or a host, has no side of its own.
Of each side the deciding rule is named, or the default; `why_not` adds rules that would have allowed it, and what they
lack.
"""

from collections.abc import Iterable
from dataclasses import dataclass

from divhook.config.problems import Position
from divhook.core.addressing import address_text
from divhook.core.verdict import Direction, Relation
from divhook.policy.cell import CellPolicy, Default, Remote, Rule
from divhook.policy.compile import split_peers
from divhook.policy.files import PolicySet
from divhook.policy.identity import Identity, Workload, identify
from divhook.policy.services import Service

MAX_NEAR = 5
"""Rules that `why_not` names per side."""


@dataclass(frozen=True, slots=True)
class End:
    """One end of a flow: a guest, running or not, with its identity; an external address or name, or a host."""

    name: str
    remote: Remote
    workload: Workload | None = None

    @property
    def identity(self) -> Identity | None:
        """Of a guest."""
        return self.remote.identity


@dataclass(frozen=True, slots=True)
class Missed:
    """A rule that would have allowed the flow but for one thing."""

    rule: Rule
    lacks: str


@dataclass(frozen=True, slots=True)
class Side:
    """One side's decision. rule: None where the default decided. others: further rules that speak of the flow."""

    direction: Direction
    cell: str
    relation: Relation
    allow: bool
    log: bool
    rule: Rule | None
    default: Default
    others: tuple[Rule, ...] = ()
    missed: tuple[Missed, ...] = ()

    @property
    def where(self) -> Position | None:
        """Where the deciding line is; None for what is built in."""
        return self.rule.where if self.rule else self.default.where


@dataclass(frozen=True, slots=True)
class Explanation:
    """Both sides. allow: what becomes of the flow."""

    source: End
    destination: End
    service: Service
    sides: tuple[Side, ...]

    @property
    def allow(self) -> bool:
        """Every side that there is allows it."""
        return all(side.allow for side in self.sides)


def guest_end(workload: Workload, policies: PolicySet) -> End:
    """A guest, running or not. Raises IdentityError."""
    identity = identify(workload, policies.cell(workload.cell))
    name = "/".join(part for part in (workload.cell, workload.subnet, workload.guest) if part)
    return End(name, Remote(identity), workload)


def external_end(address: bytes | None, names: Iterable[str] = ()) -> End:
    """An external address, a name, or both."""
    names = tuple(names)
    return End(names[0] if address is None else address_text(address), Remote(None, address, names))


def host_end() -> End:
    """The host that the other end is on."""
    return End("host", Remote(host=True))


def explain(
    source: End, destination: End, service: Service, policies: PolicySet, *, why_not: bool = False
) -> Explanation:
    """What becomes of a flow. service: one point (a protocol and at most one port)."""
    sides = []
    for direction, local, other in (
        (Direction.EGRESS, source, destination),
        (Direction.INGRESS, destination, source),
    ):
        if local.identity is not None:
            policy = policies.cell(local.identity.cell)
            sides.append(decide(policy, direction, local.identity, other.remote, service, why_not=why_not))
    return Explanation(source, destination, service, tuple(sides))


def decide(
    policy: CellPolicy,
    direction: Direction,
    local: Identity,
    remote: Remote,
    service: Service,
    *,
    why_not: bool = False,
) -> Side:
    """One side's decision on one point of the service space."""
    relation = policy.relation(local, remote)
    matching = []
    for rule in policy.rules:
        if rule.direction is direction and policy.selects(rule.endpoints, local):
            covering = [s for s in rule.services if s.covers(service)]
            if covering and any(policy.meets(p, remote) for p in rule.peers):
                whole = relation in split_peers(rule.peers)[0] or (
                    relation is Relation.SUBNET and Relation.CELL in split_peers(rule.peers)[0]
                )
                matching.append((rule, (not rule.deny, whole, min(s.width for s in covering), rule.place)))
    matching.sort(key=lambda pair: pair[1])
    rules = [rule for rule, _ in matching]
    default = policy.default(local.subnet, direction, relation)
    allow = not rules[0].deny if rules else default.allow
    return Side(
        direction=direction,
        cell=policy.cell,
        relation=relation,
        allow=allow,
        log=bool(rules and rules[0].log),
        rule=rules[0] if rules else None,
        default=default,
        others=tuple(rules[1:]),
        missed=tuple(_missed(policy, direction, local, remote, service)) if why_not and not allow else (),
    )


def _missed(
    policy: CellPolicy, direction: Direction, local: Identity, remote: Remote, service: Service
) -> list[Missed]:
    """Allowing rules that would speak of the flow but for one thing."""
    found: list[Missed] = []
    for rule in policy.rules:
        if rule.deny or rule.direction is not direction:
            continue
        tests: tuple[tuple[bool, Iterable[object], str], ...] = (
            (policy.selects(rule.endpoints, local), rule.endpoints, str(local)),
            (any(policy.meets(p, remote) for p in rule.peers), rule.peers, _shown_remote(remote)),
            (any(s.covers(service) for s in rule.services), rule.services, str(service)),
        )
        failed = [(wanted, have) for ok, wanted, have in tests if not ok]
        if len(failed) == 1 and len(found) < MAX_NEAR:
            wanted, have = failed[0]
            found.append(Missed(rule, f"is for {'; '.join(str(w) for w in wanted)}, not for {have}"))
    return found


def _shown_remote(remote: Remote) -> str:
    if remote.identity is not None:
        return str(remote.identity)
    if remote.host:
        return "the guest's own host"
    parts = [*remote.names, *([address_text(remote.address)] if remote.address else [])]
    return " = ".join(parts)


def text_of(explanation: Explanation) -> list[str]:
    """The explanation for people, as lines."""
    verdict = "allowed" if explanation.allow else "denied"
    lines = [f"{explanation.source.name} → {explanation.destination.name} {explanation.service}: {verdict}", ""]
    for title, end in (("source", explanation.source), ("destination", explanation.destination)):
        if end.identity is not None:
            lines.append(f"  {title:<12} {end.identity}, identity {end.identity.number:016x}")
        else:
            where = "" if end.remote.host else "external: "
            lines.append(f"  {title:<12} {where}{_shown_remote(end.remote)}")
    for side in explanation.sides:
        action = "allow" if side.allow else "deny"
        lines += [
            "",
            f"  {side.direction} of cell {side.cell} ({side.relation}): {action}{', logged' if side.log else ''}",
        ]
        if side.rule is not None:
            lines.append(f"    {side.rule.where}: {side.rule}")
            lines += [f'    "{side.rule.comment}"'] if side.rule.comment else []
        elif side.default.where is not None:
            lines.append(f"    {side.default.where}: default of this direction, no rule speaks of the flow")
        else:
            lines.append(f"    built-in default: {side.relation} is {action}, no rule speaks of the flow")
        lines += [f"    also {other.where}: {other}" for other in side.others]
        for missed in side.missed:
            lines.append(f"    not {missed.rule.where}: {missed.lacks}")
    missing = [s for s in ("egress", "ingress") if s not in [str(side.direction) for side in explanation.sides]]
    if missing:
        lines += ["", f"  no {missing[0]}: that end is no guest and has no policy"]
    return lines
