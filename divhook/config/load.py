"""Load /etc/divhook: divhook.yaml (may be missing) and cells/*.yaml, each checked alone and then all together."""

from collections.abc import Collection, Iterable
from dataclasses import dataclass, field
from pathlib import Path

from divhook.config.configuration import Configuration, StaticEndpoint, address_fault
from divhook.config.model import DEFAULT_DIRECTORY, CellConfig, EndpointConfig, HostConfig, SubnetConfig
from divhook.config.problems import ConfigError, Position, Problem, did_you_mean
from divhook.config.source import MAX_FILE_BYTES, Document, read_yaml
from divhook.config.source import Path as Place
from divhook.config.validate import Model, validate
from divhook.core.addressing import ZERO_ADDRESS, Address, AddressPlan, SubnetId, address_text, mac_text

HOST_FILE = "divhook.yaml"
CELLS_DIRECTORY = "cells"
MAX_CELL_FILES = 65536
"""As many as an address plan can have cells."""


def load(directory: Path = Path(DEFAULT_DIRECTORY)) -> Configuration:
    """Read a configuration directory. Raises ConfigError with every problem of every file."""
    loader = _Loader()
    host_file = directory / HOST_FILE
    host: HostConfig | None = HostConfig()
    if host_file.exists():
        host = loader.read(HostConfig, host_file)
    stray = directory / "divhook.yml"
    if stray.exists():
        loader.problem(Position(str(stray)), "this file is not read", f"rename it to {HOST_FILE}")
    cells = [(path, cell) for path in loader.cell_files(directory) if (cell := loader.read(CellConfig, path))]
    return loader.finish(host, cells)


def load_file(path: Path) -> Configuration:
    """Check one file alone: a host file by its name, else a cell file. Raises ConfigError."""
    loader = _Loader()
    if path.name == HOST_FILE:
        return loader.finish(loader.read(HostConfig, path), [])
    cell = loader.read(CellConfig, path)
    above = path.absolute().parent.parent / HOST_FILE
    host = HostConfig()
    if above.exists():
        try:  # the address plan decides what a cell may hold; mistakes in that file are not this file's
            host = validate(HostConfig, read_yaml(str(above), above.read_bytes()))
        except (ConfigError, OSError):
            host = HostConfig()
    return loader.finish(host, [(path, cell)] if cell else [])


@dataclass(slots=True)
class _Loader:
    """Collects problems over all files."""

    problems: list[Problem] = field(default_factory=list)
    documents: dict[Path, Document] = field(default_factory=dict)

    def problem(self, where: Position, message: str, hint: str = "") -> None:
        self.problems.append(Problem(where, message, hint))

    def read(self, model: type[Model], path: Path) -> Model | None:
        try:
            with path.open("rb") as file:
                content = file.read(MAX_FILE_BYTES + 1)
        except OSError as error:
            self.problem(Position(str(path)), f"can't be read: {error.strerror}")
            return None
        try:
            self.documents[path] = read_yaml(str(path), content)
            return validate(model, self.documents[path])
        except ConfigError as error:
            self.problems += error.problems
            return None

    def cell_files(self, directory: Path) -> list[Path]:
        """cells/*.yaml in order of name. What looks like a cell file but would be ignored is a problem."""
        cells = directory / CELLS_DIRECTORY
        try:
            files = sorted(p for p in cells.iterdir() if not p.name.startswith("."))
        except FileNotFoundError:
            return []
        except OSError as error:
            self.problem(Position(str(cells)), f"can't be read: {error.strerror}")
            return []
        for path in files:
            if path.suffix in (".yml", ".json"):
                hint = f"rename it to {path.stem}.yaml"
                self.problem(Position(str(path)), "this file is not read: cell files end in .yaml", hint)
        files = [p for p in files if p.suffix == ".yaml"]
        if len(files) > MAX_CELL_FILES:
            self.problem(Position(str(cells)), f"more than {MAX_CELL_FILES} cell files")
        return files[:MAX_CELL_FILES]

    def finish(self, host: HostConfig | None, cells: list[tuple[Path, CellConfig]]) -> Configuration:
        """Check all that parsed against each other. Raises ConfigError."""
        plan = host.addresses.plan() if host else None
        names: dict[object, Position] = {}
        numbers: dict[object, Position] = {}
        for path, cell in cells:
            document = self.documents[path]
            self._once(names, cell.cell, document.at(("cell",)), f"cell name {cell.cell!r}")
            self._once(numbers, cell.number, document.at(("number",)), f"cell number {cell.number}")
        if host is not None and plan is not None:
            self._outside(host, plan)
        checks = _CellChecks(self, plan, host.external.pools if host else None)
        for path, cell in cells:
            checks.check(cell, self.documents[path])
        checks.shared()
        if self.problems or host is None or plan is None:
            raise ConfigError(self.problems)
        return Configuration(host, plan, tuple(c for _, c in cells), tuple(checks.endpoints), checks.subnets)

    def _outside(self, host: HostConfig, plan: AddressPlan) -> None:
        """What is external is not virtual."""
        document = next((d for path, d in self.documents.items() if path.name == HOST_FILE), None)
        if document is None:
            return
        inside: list[tuple[Place, object]] = [
            (("on_link", index, "prefix"), each.prefix)
            for index, each in enumerate(host.external.on_link)
            if each.prefix.overlaps(plan.supernet)
        ]
        inside += [
            (("routes", index, "prefix"), each.prefix)
            for index, each in enumerate(host.external.routes)
            if each.prefix.subnet_of(plan.supernet)
        ]
        inside += [
            (("pools", name), pool)
            for name, pool in host.external.pools.items()
            if any(network.overlaps(plan.supernet) for network in pool.networks())
        ]
        for place, what in inside:
            hint = "virtual addresses are the guests' own: choose another prefix, or another supernet"
            self.problem(document.at(("external", *place)), f"{what} is in the virtual supernet {plan.supernet}", hint)

    def _once(self, seen: dict[object, Position], key: object, where: Position, what: str) -> None:
        if key in seen:
            self.problem(where, f"{what} is also in {seen[key]}", "each belongs to one place: change one of them")
        else:
            seen[key] = where


class _CellChecks:
    """What a cell file alone can't say: numbers against the plan, addresses against subnets, duplicates anywhere."""

    def __init__(self, loader: _Loader, plan: AddressPlan | None, pools: Collection[str] | None) -> None:
        self.loader = loader
        self._pools = pools
        self.plan = plan
        self.subnets: dict[SubnetId, SubnetConfig] = {}
        self.endpoints: list[StaticEndpoint] = []
        self._seen: dict[object, Position] = {}
        self._shared: list[tuple[Address, Position]] = []

    def check(self, cell: CellConfig, document: Document) -> None:
        plan, problem = self.plan, self.loader.problem
        if plan is not None and cell.number > plan.max_cell:
            hint = f"0 to {plan.max_cell}, by cell_bits of {HOST_FILE}"
            problem(document.at(("number",)), f"cell number {cell.number} is outside the address plan", hint)
            return
        if cell.snat is not None and cell.snat.pool and self._pools is not None and cell.snat.pool not in self._pools:
            what = f"cell {cell.cell!r} has source NAT from pool {cell.snat.pool!r}, which this host has not"
            hint = f"give it its part, in {HOST_FILE}: `external: pools: {cell.snat.pool}:`"
            if self._pools:
                hint += f", or {did_you_mean(cell.snat.pool, self._pools, 'pools')}"
            problem(document.at(("snat",)), what, hint)
        by_name: dict[str, SubnetConfig] = {}
        numbers: dict[object, Position] = {}
        for name, settings in cell.subnets.items():
            at = document.at(("subnets", name, "number"))
            self.loader._once(numbers, settings.number, at, f"subnet number {settings.number}")
            if plan is not None and settings.number > plan.max_subnet:
                hint = f"0 to {plan.max_subnet}, by subnet_bits of {HOST_FILE}"
                problem(at, f"subnet number {settings.number} is outside the address plan", hint)
                continue
            subnet = SubnetConfig.model_construct(
                **{key: getattr(settings, key) for key in type(settings).model_fields},
                id=SubnetId(cell.number, settings.number),
                cell=cell.cell,
                name=name,
            )
            by_name[name] = self.subnets[subnet.id] = subnet
            if plan is not None:
                self._routes(plan, subnet, document, ("subnets", name, "routes"))
        for index, endpoint in enumerate(cell.endpoints):
            place: Place = ("endpoints", index)
            if endpoint.subnet not in cell.subnets:
                hint = did_you_mean(endpoint.subnet, cell.subnets, "subnets")
                problem(document.at((*place, "subnet")), f"cell {cell.cell!r} has no subnet {endpoint.subnet!r}", hint)
            elif endpoint.subnet in by_name:
                self._endpoint(by_name[endpoint.subnet], endpoint, document, place)

    def _routes(self, plan: AddressPlan, subnet: SubnetConfig, document: Document, place: Place) -> None:
        for index, route in enumerate(subnet.routes):
            if route.via is None or route.via == ZERO_ADDRESS or route.via == plan.router(subnet.id):
                continue
            if why := address_fault(plan, subnet, route.via):
                hint = "the next hop must be in the guests' own subnet; without `via` it is the virtual router"
                self.loader.problem(document.at((*place, index, "via")), why, hint)

    def _allowed(self, subnet: SubnetConfig, endpoint: EndpointConfig, document: Document, place: Place) -> None:
        for index, address in enumerate(endpoint.allowed_addresses):
            at = document.at((*place, "allowed_addresses", index))
            if self.plan is not None and (why := address_fault(self.plan, subnet, address)):
                self.loader.problem(at, why, _free_range(self.plan, subnet.id))
            else:
                self._shared.append((address, at))

    def shared(self) -> None:
        """No address is one endpoint's own and another's to take."""
        own = {e.config.address: e for e in self.endpoints if e.config.address is not None}
        for address, at in self._shared:
            if address in own:
                hint = "an address is fixed, or goes from one guest to another: change one of them"
                self.loader.problem(
                    at, f"address {address_text(address)} is the fixed one of {own[address].source}", hint
                )

    def _endpoint(self, subnet: SubnetConfig, endpoint: EndpointConfig, document: Document, place: Place) -> None:
        self.endpoints.append(StaticEndpoint(subnet, endpoint, document.at(place)))
        once = self.loader._once
        if endpoint.mac is not None:
            text = mac_text(endpoint.mac)
            once(self._seen, ("mac", endpoint.mac), document.at((*place, "mac")), f"MAC {text}")
        else:
            key = ("guest", endpoint.guest, subnet.id)
            once(self._seen, key, document.at((*place, "guest")), f"guest {endpoint.guest!r} in subnet {subnet}")
        self._allowed(subnet, endpoint, document, place)
        if endpoint.address is None or self.plan is None:
            return
        at = document.at((*place, "address"))
        if why := address_fault(self.plan, subnet, endpoint.address):
            self.loader.problem(at, why, _free_range(self.plan, subnet.id))
        else:
            once(self._seen, ("address", endpoint.address), at, f"address {address_text(endpoint.address)}")


def _free_range(plan: AddressPlan, subnet: SubnetId) -> str:
    first, last = plan.address(subnet, 2), plan.address(subnet, plan.max_host - 1)
    return f"{address_text(first)} to {address_text(last)}"


def check(path: Path) -> tuple[Configuration | None, Iterable[Problem]]:
    """What `divhook check` does: load a directory or a file; the configuration, or its problems."""
    try:
        if not path.exists():
            return None, [Problem(Position(str(path)), "there is no such file or directory")]
        return (load(path) if path.is_dir() else load_file(path)), []
    except ConfigError as error:
        return None, error.problems
