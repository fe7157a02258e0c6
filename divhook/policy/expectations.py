"""Policy tests: what an owner expects of the policies, checked offline (`divhook policy test FILE`).

    guests:                                   the ends that the expectations speak of
      web-1: {cell: shop, subnet: web, labels: {tier: web}}
      db-1:  {cell: shop, subnet: db}
      world: {address: 192.0.2.7}
      its-host: {host: true}                  the host that the guest on the other side is on
    expect:
      - {from: web-*, to: db-1, allow: tcp/5432}       all of it must pass
      - {from: world, to: db-1, deny: any}             nothing of it may pass
      - {to: db-1, only: true}                         nothing passes but what an `allow` here says, from any guest here

`allow` and `deny` hold for whole ranges: a rule that takes one port away breaks them. Names may have `*` and `?`.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Annotated, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, WithJsonSchema, model_validator

from divhook.config.problems import ConfigError, Position, Problem, did_you_mean
from divhook.config.source import read_yaml
from divhook.config.validate import validate
from divhook.config.values import BadValueError, DomainName, GuestName, Ipv4, Line, Name, Switch, fault, text_of
from divhook.core.verdict import Direction
from divhook.policy.explain import End, Side, decide, external_end, guest_end, host_end
from divhook.policy.files import PolicySet
from divhook.policy.identity import IdentityError, Workload, guest_matches
from divhook.policy.labels import parse_labels
from divhook.policy.model import Services
from divhook.policy.peers import listed
from divhook.policy.services import Service
from divhook.policy.space import joined, pieces, sample

MAX_ENDS = 4096
"""Guests of one test file."""


class _Model(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, use_attribute_docstrings=True)


def _labels(value: object) -> object:
    try:
        return parse_labels(value)
    except BadValueError as error:
        raise fault(error.message, error.hint) from None


def _patterns(value: object) -> tuple[str, ...]:
    items, single = listed(value)
    for index, item in enumerate(items):
        try:
            text_of(item, "a guest of this file")
        except BadValueError as error:
            raise fault(error.message, error.hint, () if single else (index,)) from None
    return tuple(str(item) for item in items)


_LABELS = {"type": "object", "additionalProperties": {"type": "string"}}
_PATTERN = {"type": "string", "minLength": 1}
_PATTERNS = {"anyOf": [_PATTERN, {"type": "array", "items": _PATTERN}]}
Labels = Annotated[tuple[tuple[str, str], ...], BeforeValidator(_labels), WithJsonSchema(_LABELS)]
Patterns = Annotated[tuple[str, ...], BeforeValidator(_patterns), WithJsonSchema(_PATTERNS)]


class EndModel(_Model):
    """A guest (cell and subnet), an external end (address, dns, or both), or the guest's own host."""

    cell: Name | None = None
    """Cell of the guest."""
    subnet: Name | None = None
    """Subnet of the guest."""
    guest: GuestName | None = None
    """Name of the guest in libvirt. Without it: as it is called here."""
    labels: Labels = Field(default=(), json_schema_extra={"default": {}})
    """Labels of the guest."""
    address: Ipv4 | None = None
    """External address."""
    dns: DomainName | None = None
    """External DNS name."""
    host: Switch = False
    """Whether it is the host that the guest is on."""

    @model_validator(mode="after")
    def _is_one_end(self) -> Self:
        external = self.address is not None or self.dns is not None
        if self.host and (external or self.cell or self.subnet or self.guest or self.labels):
            raise fault("the host is nothing else", "write {host: true} alone")
        if external and (self.cell or self.subnet or self.guest or self.labels):
            raise fault("this is a guest and an external end at once", "a guest has no `address` and no `dns` here")
        if not self.host and not external and (self.cell is None or self.subnet is None):
            raise fault(
                "this end is nobody", "add `cell` and `subnet`, `address` or `dns` of an external end, or `host: true`"
            )
        return self


class ExpectModel(_Model):
    """One expectation."""

    from_: Patterns = Field(default=("*",), alias="from")
    """Sources: names or patterns of guests of this file. Without it: all."""
    to: Patterns
    """Destinations."""
    allow: Services | None = None
    """What must pass."""
    deny: Services | None = None
    """What must not pass."""
    only: Switch = False
    """Whether nothing else may reach `to`, from any guest of this file."""
    comment: Line | None = None
    """One line for people."""

    @model_validator(mode="after")
    def _expects(self) -> Self:
        if self.allow is None and self.deny is None and not self.only:
            raise fault("this expects nothing", "add allow, deny, or only: true")
        if self.allow is not None and self.deny is not None:
            raise fault("this expects `allow` and `deny`", "write two expectations")
        return self


class ExpectationsFile(_Model):
    """A policy test file."""

    guests: dict[str, EndModel] = Field(min_length=1, max_length=MAX_ENDS)
    """The ends that expectations speak of, by name."""
    expect: tuple[ExpectModel, ...]
    """The expectations."""

    @model_validator(mode="after")
    def _expects(self) -> Self:
        if not self.expect:
            raise fault("this file expects nothing", "one line per expectation", ("expect",))
        return self


@dataclass(frozen=True, slots=True)
class Failure:
    """One expectation that does not hold for one pair. side: the decision that breaks it."""

    where: Position
    text: str


@dataclass(frozen=True, slots=True)
class Expectation:
    """One expectation with its ends found."""

    model: ExpectModel
    where: Position
    sources: tuple[str, ...]
    targets: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Expectations:
    """A good test file against the policies. checked() is what `divhook policy test` reports."""

    ends: dict[str, End]
    expectations: tuple[Expectation, ...]
    policies: PolicySet

    def failures(self) -> list[Failure]:
        """Every expectation that does not hold, in file order."""
        return [f for e in self.expectations for f in (*self._stated(e), *self._only(e))]

    def _pairs(self, sources: tuple[str, ...], targets: tuple[str, ...]) -> Iterator[tuple[str, str]]:
        for source in sources:
            for target in targets:
                if source != target and (self.ends[source].identity or self.ends[target].identity):
                    yield source, target

    def _stated(self, expectation: Expectation) -> Iterator[Failure]:
        wanted = expectation.model.allow or expectation.model.deny
        if wanted is None:
            return
        must_pass = expectation.model.allow is not None
        for source, target in self._pairs(expectation.sources, expectation.targets):
            outcome = self._outcome(source, target, wanted)
            wrong = [p for p, allow, _ in outcome if allow is not must_pass and any(w.covers(p) for w in wanted)]
            if wrong:
                side = next(s for p, allow, s in outcome if p == wrong[0])
                verb = "must pass" if must_pass else "must not pass"
                yield Failure(expectation.where, f"{source} → {target} {_list(wrong)} {verb}: {_because(side)}")

    def _only(self, expectation: Expectation) -> Iterator[Failure]:
        if not expectation.model.only:
            return
        for source, target in self._pairs(tuple(self.ends), expectation.targets):
            expected = [
                service
                for e in self.expectations
                if e.model.allow and source in e.sources and target in e.targets
                for service in e.model.allow
            ]
            outcome = self._outcome(source, target, expected)
            more = [p for p, allow, _ in outcome if allow and not any(s.covers(p) for s in expected)]
            if more:
                side = next(s for p, _, s in outcome if p == more[0])
                text = f"{source} → {target} {_list(more)} passes and is not expected: {_because(side)}"
                yield Failure(expectation.where, text)

    def _outcome(self, source: str, target: str, also: Iterable[Service]) -> list[tuple[Service, bool, Side]]:
        """Every piece of the service space, whether it passes, and the side that decided: one that denies, if any."""
        a, b = self.ends[source], self.ends[target]
        sides = []
        for direction, local, other in ((Direction.EGRESS, a, b), (Direction.INGRESS, b, a)):
            if local.identity is not None:
                sides.append((self.policies.cell(local.identity.cell), direction, local.identity, other.remote))
        named = [*also, *(s for policy, *_ in sides for rule in policy.rules for s in rule.services)]
        result = []
        for piece in pieces(named):
            point = sample(piece, named)
            decided = [decide(*side, point) for side in sides]
            denying = next((side for side in decided if not side.allow), None)
            result.append((piece, denying is None, denying or decided[-1]))
        return result


def _list(found: list[Service]) -> str:
    texts = [("every other protocol" if p.protocol is None else str(p)) for p in joined(found)]
    return ", ".join(texts[:4]) + (f" and {len(texts) - 4} more" if len(texts) > 4 else "")


def _because(side: Side) -> str:
    action = "allows" if side.allow else "denies"
    if side.rule is not None:
        return f"{side.direction} of cell {side.cell} {action} it by {side.rule.where}: {side.rule}"
    return f"{side.direction} of cell {side.cell} {action} it by default ({side.where or f'built in: {side.relation}'})"


def read_expectations(file: str, content: bytes, policies: PolicySet) -> Expectations:
    """A test file. Raises ConfigError."""
    document = read_yaml(file, content)
    model = validate(ExpectationsFile, document)
    problems: list[Problem] = []
    ends: dict[str, End] = {}
    for name, end in model.guests.items():
        where = document.at_key(("guests", name))
        if end.host:
            ends[name] = host_end()
            continue
        if end.cell is None or end.subnet is None:
            ends[name] = external_end(end.address, () if end.dns is None else (end.dns.lower(),))
            continue
        known = policies.configuration.cell(end.cell) if policies.configuration else None
        if known is not None and end.subnet not in known.subnets:
            hint = did_you_mean(end.subnet, known.subnets, "subnets")
            at = document.at(("guests", name, "subnet"))
            problems.append(Problem(at, f"cell {end.cell!r} has no subnet {end.subnet!r}", hint))
        try:
            ends[name] = guest_end(Workload(end.cell, end.subnet, end.guest or name, end.labels), policies)
        except IdentityError as error:
            problems.append(Problem(where, str(error)))
    found: list[Expectation] = []
    for index, expect in enumerate(model.expect):
        sides: list[tuple[str, ...]] = []
        for key, patterns in (("from", expect.from_), ("to", expect.to)):
            for place, pattern in enumerate(patterns):
                if not any(guest_matches(pattern, name) for name in model.guests):
                    hint = did_you_mean(pattern, model.guests, "guests here")
                    where = document.at(("expect", index, key, place))
                    problems.append(Problem(where, f"no guest of this file is called {pattern!r}", hint))
            sides.append(tuple(n for n in model.guests if any(guest_matches(p, n) for p in patterns)))
        found.append(Expectation(expect, document.at(("expect", index)), sides[0], sides[1]))
    if problems:
        raise ConfigError(problems)
    return Expectations(ends, tuple(found), policies)
