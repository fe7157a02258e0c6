"""What is outside, as the programs see it: map `prefixes` (what, by longest prefix) and map `next_hops` (by route)."""

import struct
from collections.abc import Iterable, Mapping
from ipaddress import IPv4Network

from divhook.abi import layout
from divhook.abi.entries import packed_address
from divhook.adapters.bpf import syscall
from divhook.core.addressing import Address
from divhook.core.external import ExternalMap, OwnAddress, Route

MAX_OWN_ADDRESSES = 64
"""Of the host on its uplink."""
_U32 = struct.Struct("=I")


def _prefix_key(prefix: IPv4Network) -> bytes:
    return bytes(layout.PrefixKey(prefix.prefixlen, packed_address(prefix.network_address.packed)))


class ExternalMaps:
    """Written at the agent's start, and next hops whenever one falls silent or is back."""

    def __init__(self, maps: Mapping[str, syscall.Map]) -> None:
        self._prefixes = maps["prefixes"]
        self._next_hops = maps["next_hops"]

    def declare(self, externals: ExternalMap, own: Iterable[OwnAddress], host_ifindex: int = 0) -> None:
        """Exactly this is outside, or the host, whose stack has guests' packets by the link host_ifindex (0: by none).

        Routes must have their next hops first. Raises BpfError.
        """
        wanted: dict[bytes, bytes] = {}
        for number, route in enumerate(externals.routes):
            wanted[_prefix_key(route.prefix)] = bytes(layout.Prefix(layout.PREFIX_ROUTE, route.mtu, number))
        for each in externals.on_link:
            wanted[_prefix_key(each.prefix)] = bytes(layout.Prefix(layout.PREFIX_ON_LINK, each.mtu, 0))
        for host in list(own)[:MAX_OWN_ADDRESSES]:
            key = _prefix_key(IPv4Network((host.address, 32)))
            wanted[key] = bytes(layout.Prefix(layout.PREFIX_HOST, 0, host_ifindex))
        for key in set(self._prefixes.all_keys()) - wanted.keys():
            self._prefixes.delete(key)
        for key, value in wanted.items():
            if self._prefixes.get(key) != value:
                self._prefixes.put(key, value)

    def set_next_hops(self, number: int, route: Route, slots: Iterable[Address]) -> None:
        """A route's flows go these ways from now on. number: of the route in its ExternalMap."""
        value = layout.NextHops()
        for slot, address in enumerate(slots):
            value.slots_be[slot] = packed_address(address)
        for index, hop in enumerate(route.hops):
            value.hops_be[index] = packed_address(hop.address)
        if self._next_hops.get(_U32.pack(number)) != bytes(value):
            self._next_hops.put(_U32.pack(number), bytes(value))

    def prefixes(self) -> set[tuple[str, int, int]]:
        """(prefix, kind, MTU) of all, as the programs have them."""
        found = set()
        for raw in self._prefixes.all_keys():
            key, value = layout.PrefixKey.from_buffer_copy(raw), self._prefixes.get(raw)
            if value is not None:
                entry = layout.Prefix.from_buffer_copy(value)
                network = IPv4Network((bytes(key.address_be), key.prefix_bits))
                found.add((str(network), entry.kind, entry.mtu))
        return found
