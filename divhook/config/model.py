"""What the files may hold: divhook.yaml (HostConfig) and cells/*.yaml (CellConfig).

Unknown keys are refused, values are never converted from another type, everything is frozen. docs/configuration.md has
every key for people; docs/schema has the same as JSON schema for editors. Tests hold the three together.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from ipaddress import IPv4Network
from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Field, WithJsonSchema, model_validator

from divhook.config import dhcp_options
from divhook.config.external import ExternalConfig
from divhook.config.values import (
    MAX_ALLOWED_ADDRESSES,
    MAX_LIST,
    MAX_MTU,
    NAME_PATTERN,
    AbsolutePath,
    BadValueError,
    BootFile,
    DomainName,
    GroupRate,
    GuestMac,
    GuestName,
    Hostname,
    Interface,
    Ipv4,
    LeaseS,
    Line,
    Mtu,
    Name,
    Network,
    StrictModel,
    Switch,
    fault,
    faults,
    shown,
)
from divhook.core.addressing import Address, AddressPlan, PlanError, SubnetId

DEFAULT_DIRECTORY = "/etc/divhook"
MAX_STATIC_ENDPOINTS = 65536
"""Static endpoints of one cell."""


class AddressesConfig(StrictModel):
    """How a virtual address is cut. Must be the same on every host of a cluster."""

    supernet: Network = Field(
        default_factory=lambda: AddressPlan().supernet, json_schema_extra={"default": "10.0.0.0/8"}
    )
    """All virtual addresses. Must not overlap anything that the hosts themselves use."""
    cell_bits: int = Field(default=8, ge=0, le=16)
    """Bits of an address that say the cell."""
    subnet_bits: int = Field(default=8, ge=0, le=16)
    """Bits that say the subnet within the cell."""
    host_bits: int = Field(default=8, ge=2, le=16)
    """Bits that say the endpoint within the subnet. Prefix length plus the three must be 32."""

    @model_validator(mode="after")
    def _is_a_plan(self) -> Self:
        net = self.supernet
        if net.is_multicast or net.is_loopback or net.is_link_local or net.is_reserved or net.prefixlen == 0:
            raise fault(f"supernet {net} is not usable for unicast addresses", "for example 10.0.0.0/8", ["supernet"])
        try:
            self.plan()
        except PlanError as error:
            hint = f"cell_bits, subnet_bits and host_bits must add up to {32 - net.prefixlen} for {net}"
            raise fault(str(error), hint) from None
        return self

    def plan(self) -> AddressPlan:
        """The core's form."""
        return AddressPlan(self.supernet, self.cell_bits, self.subnet_bits, self.host_bits)


def _parse_ethertype(value: object) -> object:
    return "0x88b5" if value == 0x88B5 else value


_ETHERTYPE_SCHEMA: dict[str, Any] = {"enum": ["arp", "0x88b5", 0x88B5]}
Ethertype = Annotated[Literal["arp", "0x88b5"], BeforeValidator(_parse_ethertype), WithJsonSchema(_ETHERTYPE_SCHEMA)]


class DiscoveryConfig(StrictModel):
    """How hosts find each other."""

    ethertype: Ethertype = "arp"
    """`0x88b5` is for fabrics that inspect or suppress ARP. Must be the same on every host."""


class LimitsConfig(StrictModel):
    """Rates that one guest or neighbour may cost the agent. Above them frames are dropped, with a counted reason."""

    divert_pps: int = Field(default=5000, ge=1, le=10_000_000)
    """Frames/s that one port may divert to the agent; enforced in the kernel."""
    divert_burst: int = Field(default=2000, ge=1, le=10_000_000)
    """Frames that one port may divert at once above that rate."""
    dhcp_pps: int = Field(default=20, ge=1, le=100_000)
    """DHCP messages/s that are answered per port."""
    miss_pps_port: int = Field(default=20, ge=1, le=100_000)
    """Discoveries/s of unknown addresses that one port may cause."""
    miss_pps_host: int = Field(default=50, ge=1, le=100_000)
    """Discoveries/s of unknown addresses that all ports of a host may cause together."""


class HostConfig(StrictModel):
    """divhook.yaml: one host. Every key has a default."""

    uplink: Interface | None = None
    """NIC on the flat layer 2 of all hosts. Without it: the NIC of the default route, else the only one that is up."""
    cluster: Name = "divhook"
    """Name of the cluster. Goes into the derived keys: hosts of two clusters never believe each other."""
    key_file: AbsolutePath = f"{DEFAULT_DIRECTORY}/cluster.key"
    """The cluster key, as `divhook key new` writes it; the same on every host, readable by root only."""
    fastpath: Switch = True
    """Whether the kernel forwards what the agent has decided before. `off`: the agent decides every frame."""
    addresses: AddressesConfig = AddressesConfig()
    """The address plan."""
    libvirt_uri: Line = "qemu:///system"
    """Connection to the local libvirt."""
    bridge: Interface = "divbr0"
    """Bridge that holds the guests' taps; the agent makes it."""
    network: Line = "divhook"
    """libvirt network that stands for the bridge."""
    queue: int = Field(default=0xD1, ge=0, le=65535)
    """NFQUEUE number for diverted frames."""
    discovery: DiscoveryConfig = DiscoveryConfig()
    """How hosts find each other."""
    handover_port: int = Field(default=7209, ge=1, le=65535)
    """TCP port on which other hosts' agents hand over guests that move here; each host tells its own."""
    limits: LimitsConfig = LimitsConfig()
    """Rates that one guest or neighbour may cost the agent."""
    resolvers: tuple[Ipv4, ...] = Field(default=(), max_length=MAX_LIST)
    """Name servers that the agent asks for DNS names in policies. Without it: those of /etc/resolv.conf."""
    external: ExternalConfig = ExternalConfig()
    """What is outside the virtual address space, and how it is reached. Without it: nothing is."""
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    """What goes to the journal."""


class RouteConfig(StrictModel):
    """A route that guests learn by DHCP (RFC 3442)."""

    destination: Network
    """Prefix that is reached this way."""
    via: Ipv4 | None = None
    """Next hop, an address of the subnet. Without it: the virtual router."""


def _parse_options(value: object) -> dict[int, bytes]:
    if not isinstance(value, Mapping):
        raise fault(f"DHCP options must be a mapping, not {shown(value)}", "one line per option, `code or name: value`")
    options: dict[int, bytes] = {}
    found: list[tuple[tuple[str | int, ...], str, str]] = []
    for key, item in value.items():
        try:
            code, payload = dhcp_options.encode_option(key, item)
        except BadValueError as error:
            found.append(((key,), error.message, error.hint))
            continue
        if code in options:
            found.append(((key,), f"DHCP option {code} is here twice, by name and by number", "keep one"))
        options[code] = payload
    if found:
        raise faults(found)
    return options


_OPTION_VALUE: dict[str, Any] = {
    "anyOf": [
        {"type": ["string", "integer", "boolean"]},
        {"type": "array", "items": {"type": "string", "format": "ipv4"}},
    ]
}
_OPTIONS_SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": dict.fromkeys(dhcp_options.KNOWN, _OPTION_VALUE),
    "patternProperties": {"^[0-9]{1,3}$": _OPTION_VALUE},
    "additionalProperties": False,
}
DhcpOptions = Annotated[dict[int, bytes], BeforeValidator(_parse_options), WithJsonSchema(_OPTIONS_SCHEMA)]


class SubnetSettings(StrictModel):
    """One subnet of a cell."""

    number: int = Field(ge=0)
    """Its number in the address plan, unique in the cell."""
    dns: tuple[Ipv4, ...] = Field(default=(), max_length=MAX_LIST)
    """DNS servers for the guests."""
    domain: DomainName | None = None
    """DNS domain of the guests."""
    search: tuple[DomainName, ...] = Field(default=(), max_length=MAX_LIST)
    """Domain search list (RFC 3397)."""
    mtu: Mtu | None = None
    """Bytes of IP packet. Without it: the uplink's MTU, at most 3990."""
    lease: LeaseS = Field(default=3600, json_schema_extra={"default": "1h"})
    """DHCP lease time: seconds, or a number with s, m, h, d or w."""
    ntp: tuple[Ipv4, ...] = Field(default=(), max_length=MAX_LIST)
    """NTP servers for the guests."""
    routes: tuple[RouteConfig, ...] = Field(default=(), max_length=MAX_LIST)
    """Routes besides the default route, which always leads to the virtual router."""
    next_server: Ipv4 | None = None
    """PXE: the TFTP server (siaddr)."""
    boot_file: BootFile | None = None
    """PXE: the file to load from it."""
    options: DhcpOptions = Field(default_factory=dict)
    """Further DHCP options by number or name."""

    group_pps: GroupRate = Field(default=200, json_schema_extra={"default": 200})
    """Broadcast and multicast frames/s that one port may send; enforced in the kernel. `off`: no limit of their own."""

    @property
    def group_limit(self) -> int | None:
        """The same; None for no limit."""
        return self.group_pps or None

    @property
    def lease_s(self) -> int:
        """Lease time in seconds."""
        return self.lease

    @property
    def dhcp_options(self) -> tuple[tuple[int, bytes], ...]:
        """The further options as (code, payload), in code order."""
        return tuple(sorted(self.options.items()))

    def mtu_with(self, uplink_mtu: int) -> int:
        """MTU of the guests, on a host whose uplink takes uplink_mtu bytes."""
        return self.mtu if self.mtu is not None else min(uplink_mtu, MAX_MTU)


class SubnetConfig(SubnetSettings):
    """A subnet with its place: what the agent works with."""

    id: SubnetId
    cell: str
    name: str

    def __str__(self) -> str:
        return f"{self.cell}/{self.name}"

    def routes_via(self, plan: AddressPlan) -> tuple[tuple[IPv4Network, Address], ...]:
        """(destination, next hop) of every extra route."""
        router = plan.router(self.id)
        return tuple((r.destination, r.via if r.via is not None else router) for r in self.routes)


class EndpointConfig(StrictModel):
    """A guest NIC that gets its place here and not from the guest's own metadata."""

    guest: GuestName | None = None
    """Name of the guest in libvirt. Enough for a guest with one divhook NIC in this subnet."""
    mac: GuestMac | None = None
    """MAC of the NIC. With `guest` both must match."""
    subnet: Name
    """Name of a subnet of this cell."""
    address: Ipv4 | None = None
    """Fixed address. Without it: one chosen by the agent, stable over restarts."""
    hostname: Hostname | None = None
    """Host name that DHCP gives. Without it: the guest's name, where that is a host name."""
    labels: Line | None = None
    """Labels for policies, `key=value` joined by commas, as in `tier=web, env=prod`."""
    allowed_addresses: tuple[Ipv4, ...] = Field(default=(), max_length=MAX_ALLOWED_ADDRESSES)
    """Further addresses of the subnet that the guest may take, and others that are allowed them may take from it."""

    @model_validator(mode="after")
    def _names_a_nic(self) -> Self:
        if self.guest is None and self.mac is None:
            raise fault("this endpoint names no NIC", "add `guest: NAME` or `mac: ADDRESS`")
        return self


@dataclass(frozen=True, slots=True)
class Snat:
    """Which addresses a cell goes out with: those of a pool of each host, or (None) the host's own."""

    pool: str | None


def _parse_snat(value: object) -> Snat:
    if value == "host":
        return Snat(None)
    if isinstance(value, dict) and list(value) == ["pool"] and isinstance(value["pool"], str):
        return Snat(value["pool"])
    raise fault(
        f"snat can't be {shown(value)}",
        "write `snat: host`, or `snat: {pool: NAME}` with a pool of `external` in divhook.yaml",
    )


_SNAT_SCHEMA: dict[str, Any] = {
    "anyOf": [
        {"enum": ["host"]},
        {
            "type": "object",
            "properties": {"pool": {"type": "string", "pattern": NAME_PATTERN}},
            "required": ["pool"],
            "additionalProperties": False,
        },
    ]
}
SnatChoice = Annotated[Snat, BeforeValidator(_parse_snat), WithJsonSchema(_SNAT_SCHEMA)]


class CellConfig(StrictModel):
    """cells/*.yaml: one cell, that is one tenant."""

    cell: Name
    """Name of the cell."""
    number: int = Field(ge=0)
    """Its number in the address plan, unique in the cluster."""
    owner: Line | None = None
    """Who is responsible: for people."""
    subnets: dict[Name, SubnetSettings] = Field(min_length=1)
    """Its subnets by name."""
    multicast: Literal["subnet", "cell"] = "subnet"
    """How far a multicast group reaches. `cell`: the router forwards it to members in the cell's other subnets."""
    snat: SnatChoice | None = None
    """Source NAT: what its guests send outside goes with another source address. Without it: with their own."""
    endpoints: tuple[EndpointConfig, ...] = Field(default=(), max_length=MAX_STATIC_ENDPOINTS)
    """NICs that get their subnet, and maybe their address, here."""

    @property
    def name(self) -> str:
        """Name of the cell."""
        return self.cell
