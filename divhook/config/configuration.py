"""The whole configuration of a host, and where a guest's NIC belongs by it.

A NIC's place comes from the guest's own metadata (DomainNic.assignment), from an endpoint in a cell file, or from both
where they agree: one may add the address or host name that the other leaves open. Where they differ the guest is
refused: nobody can say which of the two is the mistake.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

from divhook.config.domain import DomainNic
from divhook.config.model import CellConfig, EndpointConfig, HostConfig, SubnetConfig
from divhook.config.problems import Position, did_you_mean
from divhook.core.addressing import Address, AddressPlan, Mac, SubnetId, address_text, mac_text


class UnknownPlaceError(LookupError):
    """There is no such cell or subnet. The text names it and those that exist."""


class PlacementError(Exception):
    """A NIC has no usable place. The text names guest, NIC and remedy."""


@dataclass(frozen=True, slots=True)
class StaticEndpoint:
    """An endpoint of a cell file."""

    subnet: SubnetConfig
    config: EndpointConfig
    where: Position

    @property
    def source(self) -> str:
        """Its place relative to the configuration's directory: cells/shop.yaml:12."""
        return f"cells/{self.where.file.rsplit('/', 1)[-1]}:{self.where.line}"


@dataclass(frozen=True, slots=True)
class Placement:
    """Where one NIC belongs. address, hostname: None where nothing fixes them. source: who says so, for people.

    labels: `key=value` joined by commas, as metadata and cell file have them; not looked at yet.
    allowed: further addresses that it may take.
    """

    id: SubnetId
    subnet: SubnetConfig
    address: Address | None
    hostname: str | None
    source: str
    labels: str = ""
    allowed: tuple[Address, ...] = ()


@dataclass(frozen=True, slots=True)
class Configuration:
    """divhook.yaml and all cell files, checked as a whole (load.py makes it)."""

    host: HostConfig
    plan: AddressPlan
    cells: tuple[CellConfig, ...] = ()
    endpoints: tuple[StaticEndpoint, ...] = ()
    subnets: Mapping[SubnetId, SubnetConfig] = field(default_factory=dict)

    def subnet(self, subnet: SubnetId) -> SubnetConfig | None:
        """A subnet by its place in the plan."""
        return self.subnets.get(subnet)

    def cell(self, cell: str | int) -> CellConfig | None:
        """A cell by name or number (also as digits)."""
        return next((c for c in self.cells if str(cell) in (c.cell, str(c.number))), None)

    def find_subnet(self, cell: str | int, subnet: str | int) -> SubnetConfig:
        """A subnet by names or numbers. Raises UnknownPlaceError with what exists."""
        found = self.cell(cell)
        if found is None:
            known = did_you_mean(str(cell), [c.cell for c in self.cells], "cells")
            raise UnknownPlaceError(f"cell '{cell}' is not known here; {known}")
        for name, settings in found.subnets.items():
            if str(subnet) in (name, str(settings.number)):
                return self.subnets[SubnetId(found.number, settings.number)]
        known = did_you_mean(str(subnet), found.subnets, "subnets")
        raise UnknownPlaceError(f"cell '{found.cell}' has no subnet '{subnet}'; {known}")

    def static_addresses(self, subnet: SubnetId) -> dict[Address, StaticEndpoint]:
        """Addresses that the cell files give away: never to be chosen for another NIC."""
        return {e.config.address: e for e in self.endpoints if e.config.address is not None and e.subnet.id == subnet}

    def allowed_addresses(self) -> set[Address]:
        """Addresses that cell files let endpoints take from each other: never to be chosen for a NIC."""
        return {address for e in self.endpoints for address in e.config.allowed_addresses}

    def place(self, nic: DomainNic, guest_name: str) -> Placement:
        """Where a guest's NIC belongs. Raises PlacementError, whose text names guest, NIC and remedy."""
        who = f"guest '{guest_name}', NIC {mac_text(nic.mac)}"
        wanted = nic.assignment
        subnet: SubnetConfig | None = None
        if wanted is not None:
            try:
                subnet = self.find_subnet(wanted.cell, wanted.subnet)
            except UnknownPlaceError as error:
                remedy = f"correct it with `divhook assign {guest_name} --cell … --subnet …`, or add a cell file"
                raise PlacementError(f"{who}: {error} ({remedy})") from None
        static = self._static(nic, guest_name, subnet, who)
        if subnet is None or wanted is None:
            if static is None:
                remedy = f"run `divhook assign {guest_name} --cell CELL --subnet SUBNET`, or name it in a cell file"
                note = f"; {nic.note}" if nic.note else ""
                raise PlacementError(f"{who}: belongs to no cell and subnet{note} ({remedy})")
            return self._check(
                Placement(
                    static.subnet.id,
                    static.subnet,
                    static.config.address,
                    static.config.hostname,
                    static.source,
                    static.config.labels or "",
                    static.config.allowed_addresses,
                ),
                nic,
                who,
            )
        if static is None:
            labels = wanted.labels or ""
            placement = Placement(
                subnet.id, subnet, wanted.address, wanted.hostname, "metadata", labels, wanted.allowed
            )
            return self._check(placement, nic, who)
        pairs = [("subnet", str(subnet), str(static.subnet))]
        if wanted.address is not None and static.config.address is not None:
            pairs.append(("address", address_text(wanted.address), address_text(static.config.address)))
        if wanted.hostname is not None and static.config.hostname is not None:
            pairs.append(("hostname", wanted.hostname, static.config.hostname))
        if wanted.labels is not None and static.config.labels is not None:
            pairs.append(("labels", wanted.labels, static.config.labels))
        for what, here, there in pairs:
            if here != there:
                raise PlacementError(
                    f"{who}: the guest's metadata says {what} {here}, but {static.source} says {there} "
                    "(make them agree, or remove one)"
                )
        address = wanted.address if wanted.address is not None else static.config.address
        hostname = wanted.hostname if wanted.hostname is not None else static.config.hostname
        source = f"metadata, {static.source}"
        labels = (wanted.labels if wanted.labels is not None else static.config.labels) or ""
        allowed = tuple(dict.fromkeys((*wanted.allowed, *static.config.allowed_addresses)))
        return self._check(Placement(subnet.id, subnet, address, hostname, source, labels, allowed), nic, who)

    def _static(self, nic: DomainNic, guest_name: str, subnet: SubnetConfig | None, who: str) -> StaticEndpoint | None:
        """The cell files' endpoint for a NIC: one that names its MAC, else one that names only the guest.

        Where the guest has several NICs, one by guest name alone counts only for the NIC whose metadata has its subnet.
        """
        for endpoint in self.endpoints:
            if endpoint.config.mac == nic.mac:
                if endpoint.config.guest not in (None, guest_name):
                    raise PlacementError(
                        f"{who}: {endpoint.source} gives this MAC to guest '{endpoint.config.guest}' "
                        "(two guests must not share a MAC: change one)"
                    )
                return endpoint
        by_name = [e for e in self.endpoints if e.config.mac is None and e.config.guest == guest_name]
        if subnet is not None:
            same = next((e for e in by_name if e.subnet.id == subnet.id), None)
            return same or (by_name[0] if by_name and nic.only else None)
        if by_name and not nic.only:
            raise PlacementError(
                f"{who}: {by_name[0].source} names the guest, which has several divhook NICs (add `mac:` there)"
            )
        if len(by_name) > 1:
            places = " and ".join(e.source for e in by_name)
            raise PlacementError(f"{who}: {places} both name the guest (add `mac:` there, or remove one)")
        return by_name[0] if by_name else None

    def _check(self, placement: Placement, nic: DomainNic, who: str) -> Placement:
        for shared in placement.allowed:
            why = allowed_fault(self.plan, placement.subnet, shared, placement.address, self)
            if why:
                raise PlacementError(f"{who}: {why} (by {placement.source}: change its allowed addresses)")
        address = placement.address
        if address is None:
            return placement
        text = address_text(address)
        why = address_fault(self.plan, placement.subnet, address)
        if why:
            raise PlacementError(f"{who}: {why} (by {placement.source}: choose another, or none)")
        holder = self.static_addresses(placement.id).get(address)
        if holder is not None and holder.source not in placement.source:
            owner: str | Mac | None = holder.config.guest or holder.config.mac
            owner = mac_text(owner) if isinstance(owner, bytes) else f"guest '{owner}'"
            raise PlacementError(
                f"{who}: address {text} belongs to {owner} by {holder.source} (choose another, or remove that)"
            )
        return placement


def allowed_fault(
    plan: AddressPlan,
    subnet: SubnetConfig,
    address: Address,
    own: Address | None,
    configuration: Configuration,
) -> str:
    """Why an endpoint of a subnet can't be allowed an address besides its own; empty where it can."""
    holder = configuration.static_addresses(subnet.id).get(address)
    if holder is not None:
        return f"allowed address {address_text(address)} is the fixed address of {holder.source}"
    if address == own:
        return f"allowed address {address_text(address)} is its own address already"
    why = address_fault(plan, subnet, address)
    return f"allowed {why}" if why else ""


def address_fault(plan: AddressPlan, subnet: SubnetConfig, address: Address) -> str:
    """Why an endpoint of a subnet can't have an address; empty where it can."""
    text, network = address_text(address), plan.network(subnet.id)
    if plan.locate(address) != subnet.id:
        return f"address {text} is not in subnet {subnet}, which is {network}"
    if address == plan.router(subnet.id):
        return f"address {text} is the virtual router of subnet {subnet}"
    if not plan.assignable(address):
        return f"address {text} is the network or broadcast address of subnet {subnet}, which is {network}"
    return ""
