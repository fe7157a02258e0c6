"""Policy files below /etc/divhook/policies, joined to one policy per cell.

    policies/shop.yaml          cell shop
    policies/shop/*.yaml        cell shop, too: for example one file per team
    policies/shop/.…, *.yml     hidden files are not read; what looks like a policy but is not read is a problem

The path says whose file it is, so that whoever may write below policies/shop speaks for shop only. All files of a cell
count together. A mistake anywhere gives problems and no policies: the caller keeps what it had.
"""

import gc
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from ipaddress import IPv4Network
from operator import attrgetter
from pathlib import Path

from divhook.config.configuration import Configuration
from divhook.config.load import load as load_configuration
from divhook.config.model import DEFAULT_DIRECTORY
from divhook.config.problems import ConfigError, Position, Problem, did_you_mean
from divhook.config.source import MAX_FILE_BYTES, Document, read_yaml
from divhook.config.source import Path as Place
from divhook.config.validate import validate
from divhook.core.addressing import AddressPlan
from divhook.core.verdict import Direction, Relation
from divhook.policy.cell import CellPolicy, Default, DefaultKey, Rule
from divhook.policy.model import MAX_GROUPS, MAX_RULES, Defaults, EgressModel, IngressModel, PolicyFile
from divhook.policy.peers import CellPeer, Peer, Selection

POLICIES_DIRECTORY = "policies"
MAX_POLICY_FILES = 4096
"""Policy files of one host."""
_RELATIONS = {"subnet": Relation.SUBNET, "cell": Relation.CELL, "external": Relation.EXTERNAL}


Mention = tuple[str, str, str]
"""(subnet or group, cell, name): what a file speaks of and maybe another one defines."""


@dataclass(frozen=True, slots=True)
class ParsedFile:
    """One file that is good by itself. owner: the cell that its path says; None where the path says nothing."""

    document: Document
    model: PolicyFile
    owner: str | None
    rules: tuple[Rule, ...]
    mentions: Mapping[Mention, list[Position]]
    cidrs: Mapping[IPv4Network, list[Position]]


@dataclass(frozen=True, slots=True)
class PolicySet:
    """The policies of all cells that have files, and what they were checked against."""

    cells: Mapping[str, CellPolicy] = field(default_factory=dict)
    configuration: Configuration | None = None

    def cell(self, name: str) -> CellPolicy:
        """A cell's policy; the defaults alone where it has no file."""
        return self.cells.get(name) or CellPolicy(name)


class PolicyLoader:
    """Reads policies again and again; a file that has not changed is not parsed again."""

    def __init__(self) -> None:
        self._parsed: dict[Path, tuple[bytes, ParsedFile]] = {}

    def load(self, directory: Path, configuration: Configuration | None = None) -> PolicySet:
        """Policies of a configuration directory. Raises ConfigError with every problem of every file."""
        with _without_collector():
            return self._load(directory, configuration)

    def _load(self, directory: Path, configuration: Configuration | None) -> PolicySet:
        problems: list[Problem] = []
        parsed: dict[Path, tuple[bytes, ParsedFile]] = {}
        for path, owner in _policy_files(directory / POLICIES_DIRECTORY, problems):
            try:
                content = _content(path)
                known = self._parsed.get(path)
                parsed[path] = known if known and known[0] == content else (content, _parse(path, content, owner))
            except ConfigError as error:
                problems += error.problems
        self._parsed = parsed
        return join([file for _, file in parsed.values()], configuration, problems)


@contextmanager
def _without_collector() -> Iterator[None]:
    """Reading makes objects and no garbage: with the collector looking on, 100,000 rules take ten times as long."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


def load(directory: Path = Path(DEFAULT_DIRECTORY)) -> PolicySet:
    """Cells and policies of a configuration directory, together. Raises ConfigError with every problem of both."""
    problems: list[Problem] = []
    configuration = None
    try:
        configuration = load_configuration(directory)
    except ConfigError as error:
        problems += error.problems
    try:
        found = PolicyLoader().load(directory, configuration)
    except ConfigError as error:
        problems += error.problems
    if problems:
        raise ConfigError(problems)
    return found


def load_file(path: Path) -> PolicySet:
    """One policy file alone, against the cells of the configuration directory that it lies in, if any."""
    directory = path.absolute().parent
    owner = path.stem if directory.name == POLICIES_DIRECTORY else None
    if directory.parent.name == POLICIES_DIRECTORY:
        owner, directory = directory.name, directory.parent
    configuration = None
    if owner is not None:
        try:  # mistakes in the cells' files are not this file's
            configuration = load_configuration(directory.parent)
        except ConfigError:
            configuration = None
    return join([_parse(path, _content(path), owner)], configuration)


def is_policy_file(path: Path) -> bool:
    """Whether a file lies where policies do."""
    directory = path.absolute().parent
    return POLICIES_DIRECTORY in (directory.name, directory.parent.name)


def _content(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(MAX_FILE_BYTES + 1)
    except OSError as error:
        raise ConfigError([Problem(Position(str(path)), f"can't be read: {error.strerror}")]) from None


def _parse(path: Path, content: bytes, owner: str | None) -> ParsedFile:
    document = read_yaml(str(path), content)
    model = validate(PolicyFile, document)
    found = [_rule(model.cell, Direction.INGRESS, r, document.at(("ingress", i))) for i, r in enumerate(model.ingress)]
    found += [_rule(model.cell, Direction.EGRESS, r, document.at(("egress", i))) for i, r in enumerate(model.egress)]
    rules = tuple(sorted(found, key=attrgetter("place")))
    return ParsedFile(document, model, owner, rules, *_mentions_of(document, model.cell))


def _rule(cell: str, direction: Direction, model: IngressModel | EgressModel, where: Position) -> Rule:
    return Rule(
        cell=cell,
        direction=direction,
        endpoints=model.endpoints,
        peers=tuple(_own(cell, p) for p in model.peers),
        services=model.services,
        deny=model.action == "deny",
        log=model.log,
        where=where,
        comment=model.comment or "",
    )


def _own(cell: str, peer: Peer) -> Peer:
    """A peer that names its own cell is a selection like any other."""
    if isinstance(peer, CellPeer) and peer.cell == cell:
        return Selection(subnet=peer.subnet, group=peer.group)
    return peer


def _policy_files(directory: Path, problems: list[Problem]) -> list[tuple[Path, str]]:
    """(file, cell that owns it), in order of name. What would be silently ignored is a problem."""
    files: list[tuple[Path, str]] = []
    try:
        for path in _visible(directory):
            if path.is_dir():
                files += [(below, path.name) for below in _visible(path)]
            else:
                files.append((path, path.stem))
    except FileNotFoundError:
        return []
    except OSError as error:
        problems.append(Problem(Position(str(directory)), f"can't be read: {error.strerror}"))
    for path, _ in files:
        if path.is_dir():
            problems.append(Problem(Position(str(path)), "this directory is not read", "put its files one level up"))
        elif path.suffix in (".yml", ".json"):
            hint = f"rename it to {path.stem}.yaml"
            problems.append(Problem(Position(str(path)), "this file is not read: policy files end in .yaml", hint))
    files = [(path, owner) for path, owner in files if path.suffix == ".yaml" and not path.is_dir()]
    if len(files) > MAX_POLICY_FILES:
        problems.append(Problem(Position(str(directory)), f"more than {MAX_POLICY_FILES} policy files"))
    return files[:MAX_POLICY_FILES]


def _visible(directory: Path) -> list[Path]:
    return sorted(p for p in directory.iterdir() if not p.name.startswith("."))


def join(
    files: list[ParsedFile], configuration: Configuration | None = None, problems: list[Problem] | None = None
) -> PolicySet:
    """Good files to policies, checked against each other and the cells. Raises ConfigError, also for `problems`."""
    found = list(problems or [])
    by_cell: dict[str, list[ParsedFile]] = {}
    for file in files:
        cell = file.model.cell
        if file.owner is not None and file.owner != cell:
            hint = f"write cell: {file.owner}, or move the file"
            where = file.document.at(("cell",))
            found.append(Problem(where, f"the file belongs to cell {file.owner!r} by its path, not to {cell!r}", hint))
            continue
        by_cell.setdefault(cell, []).append(file)
    cells = {cell: _Joiner(cell, configuration, found).join(members) for cell, members in sorted(by_cell.items())}
    if found:
        raise ConfigError(found)
    return PolicySet(cells, configuration)


class _Joiner:
    """Makes one cell's policy of its files."""

    def __init__(self, cell: str, configuration: Configuration | None, problems: list[Problem]) -> None:
        self.cell = cell
        self.configuration = configuration
        self.problems = problems
        self.plan = configuration.plan if configuration else AddressPlan()
        self.groups: dict[str, tuple[Selection, ...]] = {}
        self.places: dict[str, Position] = {}

    def problem(self, where: Position, message: str, hint: str = "") -> None:
        self.problems.append(Problem(where, message, hint))

    def join(self, files: list[ParsedFile]) -> CellPolicy:
        if self.configuration is not None and self.configuration.cell(self.cell) is None:
            known = did_you_mean(self.cell, [c.cell for c in self.configuration.cells], "cells")
            where = files[0].document.at(("cell",))
            self.problem(where, f"cell {self.cell!r} has no file in cells/", f"{known} or add its file")
        defaults: dict[DefaultKey, Default] = {}
        rules: list[Rule] = []
        exports: set[str] = set()
        for file in files:
            self._groups(file)
            self._defaults(file, defaults)
        for file in files:
            exports |= self._exports(file)
            self._references(file)
            rules += file.rules
        first = files[0].document.at(("cell",))
        if len(rules) > MAX_RULES:
            self.problem(first, f"cell {self.cell!r} has {len(rules)} rules: at most {MAX_RULES}", "use ranges, groups")
        if len(self.groups) > MAX_GROUPS:
            self.problem(first, f"cell {self.cell!r} has {len(self.groups)} groups: at most {MAX_GROUPS}")
        return CellPolicy(self.cell, tuple(rules), self.groups, frozenset(exports), defaults, self.places)

    def _groups(self, file: ParsedFile) -> None:
        for name, members in file.model.groups.items():
            where = file.document.at_key(("groups", name))
            if name in self.groups:
                self.problem(where, f"group {name!r} is also in {self.places[name]}", "one group has one place")
            self.groups[name], self.places[name] = members, where

    def _defaults(self, file: ParsedFile, defaults: dict[DefaultKey, Default]) -> None:
        blocks: list[tuple[str | None, Place, Defaults]] = [(None, ("defaults",), file.model.defaults)]
        blocks += [(name, ("subnets", name), block) for name, block in file.model.subnets.items()]
        for subnet, place, block in blocks:
            if subnet is not None:
                self._subnet(self.cell, subnet, file.document.at_key(place))
            for direction, settings in ((Direction.INGRESS, block.ingress), (Direction.EGRESS, block.egress)):
                for word, relation in _RELATIONS.items():
                    if (action := getattr(settings, word)) is None:
                        continue
                    where = file.document.at((*place, str(direction), word))
                    key = (subnet, direction, relation)
                    if key in defaults:
                        text = f"this default is also in {defaults[key].where}"
                        self.problem(where, text, "one default has one place")
                    defaults[key] = Default(action == "allow", where)

    def _exports(self, file: ParsedFile) -> set[str]:
        for index, name in enumerate(file.model.exports):
            self._group(name, file.document.at(("exports", index)))
        return set(file.model.exports)

    def _references(self, file: ParsedFile) -> None:
        """What rules and groups name must exist, and prefixes must be external."""
        for (kind, cell, name), places in file.mentions.items():
            if kind == "subnet":
                self._subnet(cell, name, *places)
            elif cell == self.cell:
                self._group(name, *places)
        virtual = self.plan.supernet
        first, last = int(virtual.network_address), int(virtual.broadcast_address)
        for network, places in file.cidrs.items():
            if network.prefixlen >= virtual.prefixlen and first <= int(network.network_address) <= last:
                hint = "guests are matched by subnet, group, guest or labels: an address can pass from one to another"
                for where in places:
                    text = f"{network} is inside the virtual address space {virtual}"
                    self.problem(where, text, self._named(network) or hint)

    def _named(self, network: IPv4Network) -> str:
        """What to write for a virtual prefix that is a subnet."""
        found = self.plan.locate(network.network_address.packed)
        subnet = self.configuration.subnet(found) if self.configuration and found else None
        if subnet is None:
            return ""
        cell = f"cell: {subnet.cell}, " if subnet.cell != self.cell else ""
        return f"write {{{cell}subnet: {subnet.name}}}"

    def _subnet(self, cell: str, subnet: str, *places: Position) -> None:
        known = self.configuration.cell(cell) if self.configuration else None
        if known is not None and subnet not in known.subnets:
            hint = did_you_mean(subnet, known.subnets, "subnets")
            for where in places:
                self.problem(where, f"cell {cell!r} has no subnet {subnet!r}", hint)

    def _group(self, group: str, *places: Position) -> None:
        if group not in self.groups:
            hint = did_you_mean(group, self.groups, "groups")
            for where in places:
                self.problem(where, f"cell {self.cell!r} has no group {group!r}", hint)


def _mentions_of(
    document: Document, own: str
) -> tuple[dict[Mention, list[Position]], dict[IPv4Network, list[Position]]]:
    """Names and prefixes in groups and rules, with every place. Read off the text: the model has no places."""
    data = document.data if isinstance(document.data, dict) else {}
    groups = data.get("groups") or {}
    sources: list[tuple[Place, object]] = [(("groups", name), members) for name, members in groups.items()]
    for key in ("ingress", "egress"):
        rules = enumerate(data.get(key) or ())
        sources += [((key, index, side), rule.get(side)) for index, rule in rules for side in ("from", "to")]
    found: dict[Mention, list[Position]] = {}
    cidrs: dict[IPv4Network, list[Position]] = {}
    for start, value in sources:
        for place, peer in _mappings(value, start):
            for kind in ("subnet", "group"):
                if isinstance(name := peer.get(kind), str):
                    mention = (kind, str(peer.get("cell", own)), name)
                    found.setdefault(mention, []).append(document.at((*place, kind)))
            if isinstance(cidr := peer.get("cidr"), str):
                cidrs.setdefault(IPv4Network(cidr), []).append(document.at((*place, "cidr")))
    return found, cidrs


def _mappings(value: object, place: Place) -> Iterator[tuple[Place, Mapping[str, object]]]:
    """Every mapping of a list of peers (or of one peer), exceptions too."""
    if isinstance(value, tuple):
        for index, item in enumerate(value):
            yield from _mappings(item, (*place, index))
    elif isinstance(value, Mapping):
        yield place, value
        yield from _mappings(value.get("except"), (*place, "except"))
