"""Whom a rule speaks of: its endpoints and peers, as one of these, and what the files call them.

    Selection   endpoints of the own cell: subnet, group, guest pattern, labels, all at once; `except` takes some away
    CellPeer    another cell, one of its subnets, or one of the groups that it exports
    Cidr        external addresses of a prefix, without exceptions
    DnsName     external addresses that a DNS name, or any name below one, resolves to
    Anyone      everybody: own cell, other cells, outside; but not the host
    OwnHost     the host that the endpoint is on

Prefixes and names never match a guest: inside the virtual space a guest is known by who it is, not by its address.
The text (`str`) of each is canonical: equal texts mean equal peers, and numbers in the compiled table are hashes of it.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from ipaddress import IPv4Network
from typing import Any, TypeVar

from divhook.config.problems import did_you_mean
from divhook.config.values import (
    BadValueError,
    parse_domain_name,
    parse_guest_name,
    parse_name,
    parse_network,
    shown,
)
from divhook.core.addressing import Address
from divhook.policy.identity import GUEST_LABEL, SUBNET_LABEL, Identity
from divhook.policy.labels import Selector, parse_selector

MAX_PEERS = 256
"""Entries of one `from` or `to`."""
EVERYTHING = IPv4Network("0.0.0.0/0")

Fault = tuple[tuple[str | int, ...], str, str]
"""Path below the value, message, hint."""


@dataclass(frozen=True, slots=True)
class Selection:
    """Endpoints of the policy's own cell. With nothing set: all of them.

    members: what the group is made of. Files give the name alone; bind() adds what the cell has under that name, so
    that a group that is made of something else is another selection.
    """

    subnet: str | None = None
    group: str | None = None
    guest: str | None = None
    labels: Selector | None = None
    exclude: tuple["Selection", ...] = ()
    members: tuple["Selection", ...] = ()
    _hash: int = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        parts = (self.subnet, self.group, self.guest, self.labels, self.exclude, self.members)
        object.__setattr__(self, "_hash", hash(parts))  # once: tables are full of these

    def __hash__(self) -> int:
        return self._hash

    def bind(self, groups: Mapping[str, tuple["Selection", ...]]) -> "Selection":
        """The same with the members of the groups that it names."""
        if self.group is None and not self.exclude:
            return self
        exclude = tuple(e.bind(groups) for e in self.exclude)
        return replace(self, exclude=exclude, members=groups[self.group] if self.group else ())

    def matches(self, identity: Identity) -> bool:
        """Whether an endpoint of the own cell is one of these. Groups must be bound."""
        if self.subnet is not None and (SUBNET_LABEL, self.subnet) not in identity.pairs:
            return False
        if self.guest is not None and (GUEST_LABEL, self.guest) not in identity.pairs:
            return False
        if self.group is not None and not any(m.matches(identity) for m in self.members):
            return False
        if self.labels is not None and not self.labels.matches(dict(identity.labels)):
            return False
        return not any(e.matches(identity) for e in self.exclude)

    def __str__(self) -> str:
        parts = [f"{name} {value}" for name in ("subnet", "group", "guest") if (value := getattr(self, name))]
        parts += [f"labels {self.labels}"] if self.labels else []
        text = " and ".join(parts) or "cell"
        return text + (f" except ({'; '.join(str(e) for e in self.exclude)})" if self.exclude else "")


@dataclass(frozen=True, slots=True)
class CellPeer:
    """Endpoints of another cell, by what that cell shows."""

    cell: str
    subnet: str | None = None
    group: str | None = None

    def matches(self, identity: Identity) -> bool:
        """Whether an endpoint of another cell is one of these."""
        return (
            identity.cell == self.cell
            and (self.subnet is None or (SUBNET_LABEL, self.subnet) in identity.pairs)
            and (self.group is None or self.group in identity.exports)
        )

    def __str__(self) -> str:
        parts = [f"{name} {value}" for name in ("cell", "subnet", "group") if (value := getattr(self, name))]
        return " and ".join(parts)


@dataclass(frozen=True, slots=True)
class Cidr:
    """External addresses by prefix."""

    network: IPv4Network
    exclude: tuple[IPv4Network, ...] = ()

    def covers(self, prefix: IPv4Network) -> bool:
        """Whether all addresses of a prefix are in it, for a prefix that no boundary of it cuts."""
        return prefix.subnet_of(self.network) and not any(prefix.subnet_of(e) for e in self.exclude)

    def contains(self, address: Address) -> bool:
        """Whether it has an address."""
        return self.covers(IPv4Network(address))

    def __str__(self) -> str:
        text = "external" if self.network == EVERYTHING else str(self.network)
        return text + (f" except ({'; '.join(str(e) for e in self.exclude)})" if self.exclude else "")


@dataclass(frozen=True, slots=True)
class DnsName:
    """External addresses by name. `*.example.net`: every name below example.net, not itself."""

    name: str

    def matches(self, name: str) -> bool:
        """Whether a name that a guest resolves belongs to it."""
        name = name.lower().rstrip(".")
        return name.endswith(self.name[1:]) if self.name.startswith("*.") else name == self.name

    def __str__(self) -> str:
        return f"dns {self.name}"


@dataclass(frozen=True, slots=True)
class Anyone:
    """Everybody."""

    def __str__(self) -> str:
        return "any"


@dataclass(frozen=True, slots=True)
class OwnHost:
    """The host that the endpoint is on, whichever that is: nothing else is it, and it is nothing else."""

    def __str__(self) -> str:
        return "host"


Peer = Selection | CellPeer | Cidr | DnsName | Anyone | OwnHost
ALL = Selection()
"""Every endpoint of the own cell."""
EXTERNAL = Cidr(EVERYTHING)

T = TypeVar("T")


def content_text(peer: Peer) -> str:
    """Canonical text with what groups are made of: what compiled numbers are hashes of."""
    if not isinstance(peer, Selection):
        return str(peer)
    groups = [f"{s.group}: {'; '.join(str(m) for m in s.members)}" for s in (peer, *peer.exclude) if s.group]
    return f"{peer}" + (f" with {' and '.join(groups)}" if groups else "")


_SELECTION_KEYS = ("subnet", "group", "guest", "labels", "except")
_MEMBER_KEYS = ("subnet", "guest", "labels", "except")
_EXCEPT_KEYS = ("subnet", "group", "guest", "labels")
_PEER_KEYS = ("subnet", "group", "guest", "labels", "cell", "cidr", "dns", "except")


class PeerFaults(Exception):  # noqa: N818 - a carrier of several faults, not shown as an error itself
    """Everything that is wrong with one list of peers."""

    def __init__(self, faults: list[Fault]) -> None:
        super().__init__("; ".join(message for _, message, _ in faults))
        self.faults = faults


def parse_guest_pattern(value: object) -> str:
    """A guest's name, or a pattern with `*` and `?`. Raises BadValueError."""
    text = parse_guest_name(value)
    if "[" in text or "]" in text:
        raise BadValueError(f"{shown(text)}: a pattern has only * and ?", "several patterns are several peers")
    return text


def parse_dns_name(value: object) -> str:
    """A DNS name or `*.` and one, in lower case. Raises BadValueError."""
    if isinstance(value, str) and "*" in value.removeprefix("*."):
        raise BadValueError(f"{shown(value)}: * stands for whole labels at the start only", "as in *.example.net")
    text = parse_domain_name(value.removeprefix("*.") if isinstance(value, str) else value)
    if text.replace(".", "").isdigit():
        raise BadValueError(f"{shown(value)} is an address, not a DNS name", f"write cidr: {text}/32")
    return ("*." if isinstance(value, str) and value.startswith("*.") else "") + text.lower()


def parse_peers(value: object) -> tuple[Peer, ...]:
    """`from` of an ingress rule, `to` of an egress rule: one peer or a list. Raises PeerFaults."""
    return _list(value, _peer)


def parse_endpoints(value: object) -> tuple[Selection, ...]:
    """The own side of a rule: endpoints of the own cell. Raises PeerFaults."""

    def endpoint(item: object) -> tuple[Selection | None, list[Fault]]:
        if item == "cell":
            return ALL, []
        return _selection(item, _SELECTION_KEYS, "endpoint")

    return _list(value, endpoint)


def parse_members(value: object) -> tuple[Selection, ...]:
    """What makes up a group. Raises PeerFaults."""

    def member(item: object) -> tuple[Selection | None, list[Fault]]:
        if isinstance(item, Mapping) and "group" in item:
            return None, [(("group",), "a group is not made of groups", "repeat the other group's members here")]
        return _selection(item, _MEMBER_KEYS, "member")

    return _list(value, member)


def listed(value: object) -> tuple[tuple[object, ...], bool]:
    """What a file has as one value or as a list of them: the values, and whether it is one without a list."""
    return (tuple(value), False) if isinstance(value, (tuple, list)) else ((value,), True)


def _list(value: object, parse: Callable[[object], tuple[T | None, list[Fault]]]) -> tuple[T, ...]:
    items, single = listed(value)
    if not items:
        raise PeerFaults([((), "an empty list matches nobody", "leave the rule out, or name somebody")])
    if len(items) > MAX_PEERS:
        raise PeerFaults([((), f"{len(items)} entries: at most {MAX_PEERS}", "make a group of them")])
    found: list[T] = []
    faults: list[Fault] = []
    for index, item in enumerate(items):
        parsed, wrong = parse(item)
        faults += [(path if single else (index, *path), message, hint) for path, message, hint in wrong]
        if parsed is not None and parsed not in found:
            found.append(parsed)
    if faults:
        raise PeerFaults(faults)
    return tuple(found)


def _peer(item: object) -> tuple[Peer | None, list[Fault]]:
    match item:
        case "any":
            return Anyone(), []
        case "cell":
            return ALL, []
        case "external":
            return EXTERNAL, []
        case "host":
            return OwnHost(), []
        case str():
            return None, [((), f"{shown(item)} is no peer", _spelled(item))]
        case Mapping() if "cidr" in item:
            return _cidr(item)
        case Mapping() if "dns" in item:
            return _alone(item, "dns", lambda: DnsName(parse_dns_name(item["dns"])))
        case Mapping() if "cell" in item:
            return _cell(item)
    return _selection(item, _PEER_KEYS, "peer")


def _spelled(text: str) -> str:
    """What somebody who wrote bare text for a peer may have meant."""
    for key, parse in (("cidr", parse_network), ("subnet", parse_name), ("dns", parse_dns_name)):
        try:
            parse(text)
        except BadValueError:
            if key == "cidr" and text.replace(".", "").isdigit() and text.count(".") == 3:
                return f"write {{cidr: {text}/32}}"
            continue
        if key == "subnet":
            alone = "any, cell, external, host"
            return f"write {{subnet: {text}}}, {{group: {text}}} or {{guest: {text}}}; alone stand {alone}"
        return f"write {{{key}: {text}}}"
    return "a peer is any, cell, external, host, or a mapping such as {subnet: web}"


def _selection(item: object, keys: tuple[str, ...], what: str) -> tuple[Selection | None, list[Fault]]:
    if not isinstance(item, Mapping):
        return None, [((), f"{shown(item)} is no {what}", f"a mapping such as {{subnet: web}} or {{{keys[1]}: …}}")]
    faults = _unknown(item, keys)
    if not set(item) & {"subnet", "group", "guest", "labels"} and not faults:
        return None, [((), f"this {what} names nobody", f"add one of {', '.join(k for k in keys if k != 'except')}")]
    parsers: dict[str, Callable[[object], Any]] = {
        "subnet": parse_name,
        "group": parse_name,
        "guest": parse_guest_pattern,
        "labels": parse_selector,
    }
    values: dict[str, Any] = {}
    for key, parse in parsers.items():
        if key in item and key in keys:
            values[key] = _value(item, key, parse, faults)
    if "except" in item and "except" in keys:
        try:
            values["exclude"] = _list(item["except"], lambda e: _selection(e, _EXCEPT_KEYS, "exception"))
        except PeerFaults as wrong:
            faults += [(("except", *path), message, hint) for path, message, hint in wrong.faults]
    return (None if faults else Selection(**values)), faults


def _cell(item: Mapping[Any, object]) -> tuple[CellPeer | None, list[Fault]]:
    faults: list[Fault] = []
    for key in ("guest", "labels", "except"):
        if key in item:
            hint = "match by its subnet, or by a group that it exports; for endpoints of your own cell leave `cell` out"
            faults.append(((key,), f"`{key}` of another cell can't be seen from here", hint))
    faults += _unknown(item, _PEER_KEYS)
    values: dict[str, Any] = {
        key: _value(item, key, parse_name, faults) for key in ("cell", "subnet", "group") if key in item
    }
    return (None if faults else CellPeer(**values)), faults


def _cidr(item: Mapping[Any, object]) -> tuple[Cidr | None, list[Fault]]:
    faults = _not_with(item, "cidr", ("cidr", "except"))
    network = _value(item, "cidr", parse_network, faults)
    exceptions, single = listed(item.get("except", ()))
    exclude: list[IPv4Network] = []
    for index, text in enumerate(exceptions):
        below: tuple[str | int, ...] = ("except",) if single else ("except", index)
        try:
            exception = parse_network(text)
        except BadValueError as error:
            faults.append((below, error.message, error.hint))
            continue
        if network is not None and not exception.subnet_of(network):
            faults.append((below, f"{exception} is not in {network}", "an exception is a part of its prefix"))
        elif exception == network:
            faults.append((below, f"the exception is all of {network}", "nothing is left: leave the peer out"))
        exclude.append(exception)
    return (None if faults or network is None else Cidr(network, tuple(sorted(set(exclude))))), faults


def _alone(item: Mapping[Any, object], key: str, make: Callable[[], Peer]) -> tuple[Peer | None, list[Fault]]:
    faults = _not_with(item, key, (key,))
    try:
        peer = make()
    except BadValueError as error:
        faults.append(((key,), error.message, error.hint))
    return (None if faults else peer), faults


def _value(item: Mapping[Any, object], key: str, parse: Callable[[object], T], faults: list[Fault]) -> T | None:
    try:
        return parse(item[key])
    except BadValueError as error:
        faults.append(((key,), error.message, error.hint))
        return None


def _not_with(item: Mapping[Any, object], key: str, allowed: tuple[str, ...]) -> list[Fault]:
    faults = _unknown(item, _PEER_KEYS)
    for other in item:
        if other in _PEER_KEYS and other not in allowed:
            faults.append(((other,), f"`{other}` can't stand beside `{key}`", "they never meet: write two peers"))
    return faults


def _unknown(item: Mapping[Any, object], known: tuple[str, ...]) -> list[Fault]:
    return [
        ((key,), f"unknown key {key!r}", did_you_mean(str(key), known, "possible here"))
        for key in item
        if key not in known
    ]
