"""`external:` of divhook.yaml: what is outside the virtual address space, and how a host's guests reach it.

    on_link    servers and routers on the uplink's own layer 2: they are asked for by ordinary ARP
    routes     prefixes behind next hops; each next hop is on_link
    pools      addresses of this host's own, that cells with source NAT go out with

A route may be wider than what is on link, and an on_link prefix inside a route: the longest prefix decides.
"""

from collections.abc import Iterator
from ipaddress import IPv4Address, IPv4Network
from typing import Self

from pydantic import Field, model_validator

from divhook.config.values import MAX_MTU, AddressRange, Ipv4, Mtu, Name, Prefix, Range, StrictModel, faults
from divhook.core.addressing import Address, address_text

MAX_ON_LINK = 1024
"""Prefixes on link, and routes: as many as the programs' table of prefixes takes of each."""
MAX_ROUTES = 1024
MAX_NEXT_HOPS = 16
MAX_WEIGHT = 16
MAX_POOLS = 4
"""Of source NAT: 256 addresses each, as many as the programs' table takes."""

_Fault = tuple[tuple[str | int, ...], str, str]


class OnLinkConfig(StrictModel):
    """Servers and routers on the uplink's own layer 2."""

    prefix: Prefix
    """An address, or a prefix."""
    mtu: Mtu | None = None
    """Bytes of IP packet that these servers take. Without it: the uplink's MTU, at most 3990."""


class NextHopConfig(StrictModel):
    """A router of a route."""

    address: Ipv4
    """Its address, which is on link."""
    weight: int = Field(default=1, ge=0, le=MAX_WEIGHT)
    """Its share of the flows, beside the other next hops. 0: takes over when all others are silent."""


class ExternalRouteConfig(StrictModel):
    """A network behind routers."""

    prefix: Prefix
    """`0.0.0.0/0` is everything that no longer prefix names."""
    via: tuple[NextHopConfig, ...] = Field(min_length=1, max_length=MAX_NEXT_HOPS)
    """Its routers: flows are spread over those that answer."""
    mtu: Mtu | None = None
    """Bytes of IP packet that go this way. Without it: the next hop's."""


class ExternalConfig(StrictModel):
    """What is outside the virtual address space."""

    on_link: tuple[OnLinkConfig, ...] = Field(default=(), max_length=MAX_ON_LINK)
    """Servers and routers on the uplink's own layer 2."""
    routes: tuple[ExternalRouteConfig, ...] = Field(default=(), max_length=MAX_ROUTES)
    """Networks behind routers."""
    pools: dict[Name, Range] = Field(default_factory=dict, max_length=MAX_POOLS)
    """Addresses for source NAT, by the names that cells have for them: this host's own part, and nobody else's."""

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        found = [*self._twice(), *self._hops(), *self._pool_faults()]
        if found:
            raise faults(found)
        return self

    def is_on_link(self, address: Address) -> bool:
        """Whether an address is one of the uplink's own layer 2."""
        return any(IPv4Address(address) in each.prefix for each in self.on_link)

    def _twice(self) -> Iterator[_Fault]:
        for key, prefixes in (
            ("on_link", [each.prefix for each in self.on_link]),
            ("routes", [each.prefix for each in self.routes]),
        ):
            for index, prefix in enumerate(prefixes):
                if prefix in prefixes[:index]:
                    yield (key, index, "prefix"), f"{prefix} is here twice", "keep one"
                elif key == "on_link" and (why := unusable(prefix)):
                    yield (key, index, "prefix"), why, "a prefix of unicast addresses, as in 192.0.2.0/24"

    def _pool_faults(self) -> Iterator[_Fault]:
        hops = {hop.address for route in self.routes for hop in route.via}
        servers = {each.prefix[0].packed for each in self.on_link if each.prefix.prefixlen == 32}
        seen: dict[str, AddressRange] = {}
        for name, pool in self.pools.items():
            why = next((why for network in pool.networks() if (why := unusable(network))), "")
            if why:
                yield ("pools", name), why, "unicast addresses that are routed to this host, or on its link"
            for what, addresses in (("next hop", hops), ("server on link", servers)):
                for address in sorted(addresses):
                    if pool.first <= address <= pool.last:
                        text = f"pool {name!r} has the {what} {address_text(address)} in it"
                        yield ("pools", name), text, "a pool's addresses are NAT's alone: take others"
                        break
            for other, taken in seen.items():
                if pool.first <= taken.last and taken.first <= pool.last:
                    yield ("pools", name), f"pool {name!r} overlaps pool {other!r}", "an address belongs to one pool"
            seen[name] = pool

    def _hops(self) -> Iterator[_Fault]:
        for index, route in enumerate(self.routes):
            seen: set[Address] = set()
            for number, hop in enumerate(route.via):
                place = ("routes", index, "via", number, "address")
                if not self.is_on_link(hop.address):
                    hint = f"add `- prefix: {address_text(hop.address)}` to on_link"
                    yield place, f"next hop {address_text(hop.address)} is not on link", hint
                if hop.address in seen:
                    yield place, f"next hop {address_text(hop.address)} is here twice", "give one of them more weight"
                seen.add(hop.address)
            if all(hop.weight == 0 for hop in route.via):
                yield ("routes", index, "via"), "every next hop has weight 0", "0 is for those that wait for others"


def unusable(prefix: IPv4Network) -> str:
    """Why a prefix holds no servers' addresses; empty where it does."""
    whole = prefix.prefixlen == 0
    if whole or prefix.is_multicast or prefix.is_loopback or prefix.is_reserved or prefix[0].packed[0] == 0:
        return f"{prefix} has no unicast addresses of servers"
    return ""


def mtu_of(configured: int | None, uplink_mtu: int) -> int:
    """Bytes of IP packet that go out, on a host whose uplink takes uplink_mtu."""
    return min(configured if configured is not None else MAX_MTU, uplink_mtu)
