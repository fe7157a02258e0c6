"""What a policy file may hold: policies/CELL.yaml and policies/CELL/*.yaml. docs/policy.md has every key for people.

The models hold the text's form only; divhook/policy/files.py joins the files of a cell and checks what they say of each
other. Unknown keys are refused and nothing is converted, as in the other files (divhook/config/model.py).
"""

from collections.abc import Callable
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, WithJsonSchema, model_validator

from divhook.config.values import NAME_PATTERN, BadValueError, Line, Name, Switch, fault, faults, shown
from divhook.policy.peers import ALL, Peer, PeerFaults, Selection, listed, parse_endpoints, parse_members, parse_peers
from divhook.policy.services import Service, parse_service

MAX_SERVICES = 64
"""Services of one rule."""
MAX_GROUPS = 4096
"""Groups of one cell."""
MAX_RULES = 131_072
"""Rules of one cell, over all its files and both directions."""

Action = Literal["allow", "deny"]


class _Model(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, use_attribute_docstrings=True)


def _parse_services(value: object) -> tuple[Service, ...]:
    items, single = listed(value)
    found: dict[Service, None] = {}
    wrong: list[tuple[tuple[str | int, ...], str, str]] = []
    if not items:
        raise fault("an empty list of services", "write any for every service")
    if len(items) > MAX_SERVICES:
        raise fault(f"{len(items)} services: at most {MAX_SERVICES} in one rule", "use ranges, or a second rule")
    for index, item in enumerate(items):
        try:
            found[parse_service(item)] = None
        except BadValueError as error:
            wrong.append((() if single else (index,), error.message, error.hint))
    if wrong:
        raise faults(wrong)
    return tuple(found)


def _peers(parse: Callable[[object], Any]) -> BeforeValidator:
    def checked(value: object) -> Any:
        try:
            return parse(value)
        except PeerFaults as error:
            raise faults(error.faults) from None

    return BeforeValidator(checked)


def _parse_default(value: object) -> object:
    if isinstance(value, str):
        if value not in ("allow", "deny"):
            raise fault(f"a default can't be {shown(value)}", "write allow, deny, or a mapping as in {subnet: deny}")
        return {"subnet": value, "cell": value, "external": value}
    return value


def _either(*schemas: dict[str, Any]) -> dict[str, Any]:
    return {"anyOf": [*schemas, {"type": "array", "minItems": 1, "items": {"anyOf": list(schemas)}}]}


def _object(required: list[str], **properties: Any) -> dict[str, Any]:
    schema: dict[str, Any] = {"type": "object", "properties": properties, "additionalProperties": False}
    return schema | ({"required": required} if required else {"minProperties": 1})


_NAME = {"type": "string", "pattern": NAME_PATTERN}
_TEXT = {"type": "string", "minLength": 1, "maxLength": 255}
_PREFIX = {"type": "string", "pattern": "^[0-9.]+/[0-9]+$"}
_BARE = {"subnet": _NAME, "group": _NAME, "guest": _TEXT, "labels": _TEXT}
_SELECTION = _object([], **_BARE, **{"except": _either(_object([], **_BARE))})
_MEMBER = _object([], **{k: v for k, v in _SELECTION["properties"].items() if k != "group"})
_PEERS = _either(
    {"enum": ["any", "cell", "external", "host"]},
    _SELECTION,
    _object(["cell"], cell=_NAME, subnet=_NAME, group=_NAME),
    _object(["cidr"], cidr=_PREFIX, **{"except": _either(_PREFIX)}),
    _object(["dns"], dns=_TEXT),
)
_SERVICES = _either({"type": "string"}, {"type": "integer", "minimum": 0, "maximum": 255})

Services = Annotated[tuple[Service, ...], BeforeValidator(_parse_services), WithJsonSchema(_SERVICES)]
Peers = Annotated[tuple[Any, ...], _peers(parse_peers), WithJsonSchema(_PEERS)]
Endpoints = Annotated[tuple[Any, ...], _peers(parse_endpoints), WithJsonSchema(_either({"enum": ["cell"]}, _SELECTION))]
Members = Annotated[tuple[Any, ...], _peers(parse_members), WithJsonSchema(_either(_MEMBER))]


class RelationDefaults(_Model):
    """What holds where no rule speaks, by where the other end is."""

    subnet: Action | None = None
    """The other end is in the same subnet."""
    cell: Action | None = None
    """The other end is in another subnet of the cell."""
    external: Action | None = None
    """The other end is outside the virtual address space."""


_ACTION = {"enum": ["allow", "deny"]}
_DEFAULT_SCHEMA = {"anyOf": [_ACTION, _object([], subnet=_ACTION, cell=_ACTION, external=_ACTION)]}
DirectionDefaults = Annotated[RelationDefaults, BeforeValidator(_parse_default), WithJsonSchema(_DEFAULT_SCHEMA)]


class Defaults(_Model):
    """What holds where no rule speaks. `ingress: deny` is short for all three."""

    ingress: DirectionDefaults = Field(default_factory=RelationDefaults)
    """To these endpoints."""
    egress: DirectionDefaults = Field(default_factory=RelationDefaults)
    """From these endpoints."""


class _RuleModel(_Model):
    allow: Services | None = None
    """Services that may pass. A rule has this or `deny`."""
    deny: Services | None = None
    """Services that may not, whatever else allows them."""
    log: Switch = False
    """Whether flows that this rule decides are logged."""
    comment: Line | None = None
    """One line for people."""

    @model_validator(mode="after")
    def _decides(self) -> Self:
        if (self.allow is None) == (self.deny is None):
            which = "neither `allow` nor `deny`" if self.allow is None else "both `allow` and `deny`"
            raise fault(f"this rule has {which}", "one of them, as in allow: tcp/443")
        return self

    @property
    def services(self) -> tuple[Service, ...]:
        """What the rule speaks of, whichever way it decides."""
        return self.allow or self.deny or ()

    @property
    def action(self) -> Action:
        """allow or deny."""
        return "deny" if self.allow is None else "allow"


class IngressModel(_RuleModel):
    """A rule for what comes to endpoints of the cell."""

    from_: Peers = Field(alias="from")
    """Who may or may not reach them: any, cell, external, host, or a list of peers."""
    to: Endpoints = Field(default_factory=lambda: (ALL,), json_schema_extra={"default": "cell"})
    """Endpoints of the cell that the rule is for. Without it: all."""

    @property
    def endpoints(self) -> tuple[Selection, ...]:
        """The own side."""
        return self.to

    @property
    def peers(self) -> tuple[Peer, ...]:
        """The other side."""
        return self.from_


class EgressModel(_RuleModel):
    """A rule for what leaves endpoints of the cell."""

    from_: Endpoints = Field(default_factory=lambda: (ALL,), alias="from", json_schema_extra={"default": "cell"})
    """Endpoints of the cell that the rule is for. Without it: all."""
    to: Peers
    """Whom they may or may not reach: any, cell, external, host, or a list of peers."""

    @property
    def endpoints(self) -> tuple[Selection, ...]:
        """The own side."""
        return self.from_

    @property
    def peers(self) -> tuple[Peer, ...]:
        """The other side."""
        return self.to


class PolicyFile(_Model):
    """One policy file of a cell. All files of a cell count together; their order, and that of rules, says nothing."""

    cell: Name
    """The cell that the file belongs to; the file's path says the same."""
    defaults: Defaults = Field(default_factory=Defaults)
    """What holds where no rule speaks."""
    subnets: dict[Name, Defaults] = Field(default_factory=dict)
    """Other defaults for the endpoints of single subnets."""
    groups: dict[Name, Members] = Field(default_factory=dict, max_length=MAX_GROUPS)
    """Groups of endpoints by name: who is one of its members belongs to it."""
    exports: tuple[Name, ...] = Field(default=(), max_length=MAX_GROUPS)
    """Groups that other cells may name in their rules."""
    ingress: tuple[IngressModel, ...] = Field(default=(), max_length=MAX_RULES)
    """Rules for what comes to endpoints of the cell."""
    egress: tuple[EgressModel, ...] = Field(default=(), max_length=MAX_RULES)
    """Rules for what leaves endpoints of the cell."""
