"""What is outside, between the core and the kernel: declared at the start, published once used, taken back when silent.

    divhook.yaml ──▶ ExternalMap ──▶ map prefixes               the slow path used it ──▶ map endpoints
a next hop falls silent, or answers again ──▶ map next_hops   another MAC, or silence ──▶ exchanged, or taken back
"""

import logging
from collections.abc import Iterable

from divhook.abi.entries import ExternalEndpoint
from divhook.adapters.bpf.errors import BpfError
from divhook.adapters.bpf.programs import Programs
from divhook.config.external import ExternalConfig, mtu_of
from divhook.core.addressing import Address, address_text, mac_text
from divhook.core.external import (
    ExternalChanged,
    ExternalConflict,
    ExternalEvent,
    ExternalIdle,
    ExternalMap,
    Externals,
    NextHop,
    OnLink,
    Route,
    RouteChanged,
)

log = logging.getLogger(__name__)


def external_map(config: ExternalConfig, uplink_mtu: int) -> ExternalMap:
    """What the file declares, on a host whose uplink takes uplink_mtu bytes of IP packet."""
    on_link = [OnLink(each.prefix, mtu_of(each.mtu, uplink_mtu)) for each in config.on_link]
    links = ExternalMap(on_link)
    routes = []
    for route in config.routes:
        hops = tuple(NextHop(hop.address, hop.weight) for hop in route.via)
        found = [links.get(hop.address) for hop in hops]
        link_mtu = min(each.mtu for each in found if each is not None)
        routes.append(Route(route.prefix, hops, min(mtu_of(route.mtu, uplink_mtu), link_mtu)))
    return ExternalMap(on_link, routes)


class Outside:
    """Keeps the kernel's part. enabled: the fast path; without it every frame is the agent's, and the kernel knows
    servers and next hops so that their frames have the larger share of what it hands on.

    host_ifindex: of the link by which the host's stack has packets of guests.
    """

    def __init__(self, programs: Programs, externals: Externals, enabled: bool, host_ifindex: int = 0) -> None:
        self.conflicts = 0
        self._programs = programs
        self._externals = externals
        self._enabled = enabled
        self._host_ifindex = host_ifindex
        self._published: set[Address] = set()
        self._full = False
        externals.used_elsewhere = self._took_use
        externals.heard_elsewhere = self._heard

    def start(self) -> None:
        """Tell the kernel what is declared, and nothing else. Raises BpfError."""
        for number, route in enumerate(self._externals.map.routes):
            self._programs.external.set_next_hops(number, route, self._externals.slots(route))
        self._programs.external.declare(self._externals.map, self._externals.own, self._host_ifindex)

    def wants(self, addresses: Iterable[Address]) -> bool:
        """Whether `used` has something to publish."""
        return any(a not in self._published for a in addresses)

    def knows(self, address: Address) -> bool:
        """Whether the kernel forwards to it by itself."""
        return self._enabled and address in self._published

    def used(self, addresses: Iterable[Address]) -> None:
        """The slow path has just sent to these servers and next hops, or delivered from them."""
        for address in addresses:
            if address not in self._published:
                self._publish(address)

    def event(self, event: ExternalEvent) -> None:
        """Of the externals. Raises BpfError."""
        if isinstance(event, ExternalChanged):
            if event.address in self._published:
                self._publish(event.address)
        elif isinstance(event, ExternalIdle):
            self._take_back(event.address)
        elif isinstance(event, RouteChanged):
            number = self._externals.map.routes.index(event.route)
            self._programs.external.set_next_hops(number, event.route, event.slots)
            ways = sorted({address_text(a) for a in event.slots})
            log.warning("%s goes by %s from now on", event.route.prefix, ", ".join(ways))
        elif isinstance(event, ExternalConflict):
            self.conflicts += 1
            log.error(
                "%s is claimed by %s, but %s answers for it and keeps it: two servers have one address, or somebody "
                "forges ARP",
                address_text(event.address),
                mac_text(event.rival),
                mac_text(event.mac),
            )

    def adopt(self, address: Address, entry: ExternalEndpoint, now: float) -> bool:
        """An agent before this one had published it: as if it had just asked for a guest. Whether it stays."""
        if self._externals.adopt(address, entry.mac, now):
            self._published.add(address)
            return True
        return False

    def _publish(self, address: Address) -> None:
        mac = self._externals.mac(address)
        if mac is None:
            self._take_back(address)
            return
        try:
            known = self._programs.endpoint(address)
            if not isinstance(known, ExternalEndpoint) or known.mac != mac:
                self._programs.set_endpoint(address, ExternalEndpoint(mac))
            self._published.add(address)
            self._full = False
        except BpfError as error:
            if not self._full:
                log.error("a server stays on the slow path: %s", error)
            self._full = True
            self._take_back(address)

    def _take_back(self, address: Address) -> None:
        if address in self._published:
            self._published.discard(address)
            self._programs.remove_endpoint(address)

    def _took_use(self, address: Address) -> bool:
        entry = self._programs.endpoint(address) if address in self._published else None
        if not isinstance(entry, ExternalEndpoint) or not entry.used:
            return False
        if not entry.heard:  # else `heard` clears both
            self._programs.set_endpoint(address, ExternalEndpoint(entry.mac))
        return True

    def _heard(self, address: Address) -> bool:
        entry = self._programs.endpoint(address) if address in self._published else None
        if not isinstance(entry, ExternalEndpoint) or not entry.heard:
            return False
        self._programs.set_endpoint(address, ExternalEndpoint(entry.mac))
        return True
