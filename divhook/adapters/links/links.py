"""Links, through netlink: divbr0 and its ports, the uplink, the blackhole route of the virtual space.

divbr0 has taps only, no address, no ARP, no IPv6, no multicast; each port is isolated and neither learns nor floods.
So a port that is set up reaches no other port even with every netfilter rule gone; wall.py keeps it from the host's
stack.
dvhost is how guests reach the host itself, where a policy says so: one end of a veth pair, in the host's own stack. It
has no address and no ARP; the only routes by it are those of guests that have such a rule, and what comes in by it is
for an address of the host, or goes nowhere (a rule of the routing policy, which no firewall has a part in).
Every method brings about a state and may be called again. Methods are coroutines; none takes more than a few
milliseconds of the loop.
"""

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Interface, IPv4Network, IPv6Address, ip_address
from pathlib import Path
from typing import Any, Literal

from pyroute2 import AsyncIPRoute, NetlinkError
from pyroute2.netlink.rtnl import RTMGRP_LINK

from divhook.adapters.links.errors import LinkError
from divhook.adapters.links.sysctl import write_sysctl
from divhook.adapters.links.uplink import (
    RESOLV_CONFS,
    Link,
    UplinkInfo,
    check_uplink,
    choose_uplink,
    overlap_of_resolvers,
    set_offloads,
    switch_off_lro,
)
from divhook.adapters.links.wall import unwall_port, wall_bridge, wall_port
from divhook.core.addressing import Address, Mac, parse_mac

BRIDGE_MAC: Mac = b"\x06\xd1\xd1\xd1\xd1\xd1"
"""MAC of divbr0, the same everywhere: it never leaves the host, and no guest sees it."""
HOST_LINK_MAC: Mac = b"\x06\xd1\xd1\xd1\xd1\xd2"
"""MAC of dvhost, the same everywhere (bpf/abi.h): it never leaves the host, and no guest sees it."""
HOST_LINK, HOST_LINK_PEER = "dvhost", "dvhostp"
PORT_GROUP = 0xD1
"""Link group of every port (`ip link show group 209`): by it netfilter rules know ports without naming them."""

_IFF_UP, _IFF_LOOPBACK, _IFF_NOARP, _IFF_MULTICAST = 0x1, 0x8, 0x80, 0x1000  # linux/if.h
_AF_INET, _AF_BRIDGE, _AF_UNSPEC = 2, 7, 0
_RT_TABLE_LOCAL = 255  # linux/rtnetlink.h
_ROUTE_PROTOCOL = 0xD1  # marks our route among all: `ip route show proto 209`
_EEXIST, _ENODEV, _ESRCH, _ENOENT = 17, 19, 3, 2
_HOST_LINK_MTU = 65_535
_SCOPE_LINK, _HOST_RULE_PRIORITY = 253, 1  # after the rule for the local table, which has priority 0
# Frames to 01:80:c2:00:00:0X would be the port's own stack's: by this they are divbr0's, and so its wall's. The kernel
# allows less for the whole bridge (no 0, 1, 2) than for a port (no 1, which it drops itself).
_MOST_GROUPS, _EVERY_GROUP = 0xFFF8, 0xFFFD
_PORT_SETTINGS = {
    "isolated": 1,
    "learning": 0,
    "unicast_flood": 0,
    "mcast_flood": 0,
    "bcast_flood": 0,
    "mode": 0,  # no hairpin
    "group_fwd_mask": _EVERY_GROUP,
}
_WATCH_AGAIN_S = 0.5
_HOST_RULE = {"iifname": HOST_LINK, "priority": _HOST_RULE_PRIORITY, "action": "blackhole", "protocol": _ROUTE_PROTOCOL}

_BRIDGE_SYSCTLS = {
    "ipv4/conf/{}/rp_filter": 1,
    "ipv4/conf/{}/accept_local": 0,
    "ipv4/conf/{}/route_localnet": 0,
    "ipv4/conf/{}/forwarding": 0,
    "ipv6/conf/{}/disable_ipv6": 1,
}
_PORT_SYSCTLS = {
    "ipv4/conf/{}/rp_filter": 1,
    "ipv4/conf/{}/accept_local": 0,
    "ipv4/conf/{}/forwarding": 0,
    "ipv6/conf/{}/disable_ipv6": 1,
}
_HOST_LINK_SYSCTLS = {
    "ipv4/conf/{}/rp_filter": 1,
    "ipv4/conf/{}/accept_local": 0,
    "ipv4/conf/{}/route_localnet": 0,
    "ipv4/conf/{}/forwarding": 0,
    "ipv6/conf/{}/disable_ipv6": 1,
}


@dataclass(frozen=True, slots=True)
class HostLink:
    """dvhost, in the host's stack, and its peer, where the program is."""

    ifindex: int
    peer_ifindex: int


@dataclass(frozen=True, slots=True)
class BridgeInfo:
    """divbr0, as the tc program needs it."""

    ifindex: int
    mac: Mac


@dataclass(frozen=True, slots=True)
class PortLink:
    """A port of divbr0. mac is the tap's own, not the guest's; mtu in bytes of IP packet."""

    ifindex: int
    name: str
    mac: Mac
    mtu: int


@dataclass(frozen=True, slots=True)
class LinkEvent:
    """A link appeared, went or changed.

    master_is_bridge: it is a port of the watched bridge. became_port: and was not before; libvirt makes a tap first and
    a port of it then, so the event is mostly "changed".
    """

    kind: Literal["new", "gone", "changed"]
    ifindex: int
    name: str
    master_is_bridge: bool
    up: bool
    carrier: bool
    became_port: bool = False


def _decode(message: Any) -> Link:
    info = message.get("linkinfo")
    kind = info.get("kind") if info else None
    data = info.get("data") if info else None
    flags = message["flags"]
    mac = message.get("address")
    return Link(
        ifindex=message["index"],
        name=message.get("ifname") or "",
        mac=parse_mac(mac) if mac and len(mac) == 17 else b"",
        mtu=message.get("mtu") or 0,
        kind=kind,
        master=message.get("master"),
        up=bool(flags & _IFF_UP),
        carrier=bool(message.get("carrier")),
        loopback=bool(flags & _IFF_LOOPBACK),
        bond_mode=data.get("bond_mode") if kind == "bond" and data else None,
        netns_peer=message.get("link_netnsid") is not None,
    )


class Links:
    """The host's links. Open it inside the event loop, and in the network namespace that it is for."""

    def __init__(self, bridge: str = "divbr0", resolv_confs: Sequence[Path] = RESOLV_CONFS) -> None:
        self._bridge = bridge
        self._resolv_confs = resolv_confs
        self._netlink: Any = None

    async def open(self) -> None:
        """Connect to netlink."""
        self._netlink = AsyncIPRoute()
        await self._netlink.setup_endpoint()

    async def close(self) -> None:
        """Disconnect. Changes nothing on the host."""
        if self._netlink is not None:
            self._netlink.close()
            self._netlink = None

    # -- what is there

    async def links(self) -> list[Link]:
        """Every link of the host."""
        return [_decode(message) async for message in await self._netlink.get_links()]

    async def link(self, name_or_ifindex: str | int) -> Link:
        """One link. Raises LinkError where there is none of that name or index."""
        return _decode(await self._describe(name_or_ifindex))

    async def _describe(self, name_or_ifindex: str | int) -> Any:
        key = {"ifname": name_or_ifindex} if isinstance(name_or_ifindex, str) else {"index": name_or_ifindex}
        try:
            for message in await self._netlink.link("get", **key):
                return message
        except NetlinkError as error:
            if error.code != _ENODEV:
                raise
        raise LinkError(f"there is no link {name_or_ifindex}")

    # -- divbr0 and its ports

    async def ensure_bridge(self, bridge: str | None = None, mtu: int | None = None) -> BridgeInfo:
        """Make the bridge, or bring it to what it must be, with its wall. mtu: the uplink's; None leaves it.

        Raises LinkError where a link of that name is no bridge or the wall cannot be set.
        """
        name = bridge or self._bridge
        settings = {
            "br_stp_state": 0,
            "br_mcast_snooping": 0,
            "br_mcast_querier": 0,
            "br_group_fwd_mask": _MOST_GROUPS,
        }
        try:
            await self._netlink.link("add", ifname=name, kind="bridge", address=BRIDGE_MAC.hex(":"), **settings)
        except NetlinkError as error:
            if error.code != _EEXIST:
                raise
        link = await self.link(name)
        if link.kind != "bridge":
            raise LinkError(f"{name} exists and is not a bridge: remove or rename it")
        for sysctl, value in _BRIDGE_SYSCTLS.items():
            write_sysctl(sysctl.format(name), value)
        await self._netlink.flush_addr(index=link.ifindex)
        await self._netlink.link("set", index=link.ifindex, kind="bridge", **settings)
        await wall_bridge(name)
        change: dict[str, Any] = {"flags": _IFF_UP | _IFF_NOARP, "change": _IFF_UP | _IFF_NOARP | _IFF_MULTICAST}
        if link.mac != BRIDGE_MAC:
            change["address"] = BRIDGE_MAC.hex(":")
        if mtu is not None and mtu != link.mtu:
            change["mtu"] = mtu
        await self._netlink.link("set", index=link.ifindex, **change)
        return BridgeInfo(link.ifindex, BRIDGE_MAC)

    async def ensure_port(self, port: str | int) -> PortLink:
        """Shut a port of the bridge off from all others and from the host. Raises LinkError where it is no port.

        On a port that is so already this changes nothing, and so causes no event.
        """
        described = await self._describe(port)
        link = _decode(described)
        bridge = await self.link(self._bridge)
        if link.master != bridge.ifindex:
            raise LinkError(f"{link.name} is not a port of {self._bridge}")
        for sysctl, value in _PORT_SYSCTLS.items():
            write_sysctl(sysctl.format(link.name), value)
        await wall_port(link.name)
        present = described.get("linkinfo").get("slave_data")
        if any(present.get(setting) != value for setting, value in _PORT_SETTINGS.items()):
            await self._netlink.brport("set", index=link.ifindex, **_PORT_SETTINGS)
        if described.get("group") != PORT_GROUP:
            await self._netlink.link("set", index=link.ifindex, group=PORT_GROUP)
        return PortLink(link.ifindex, link.name, link.mac, link.mtu)

    async def ports_of_bridge(self) -> list[PortLink]:
        """Every port of the bridge, whether set up or not; none where there is no bridge."""
        links = await self.links()
        master = next((link.ifindex for link in links if link.name == self._bridge), None)
        return [
            PortLink(link.ifindex, link.name, link.mac, link.mtu)
            for link in links
            if master is not None and link.master == master
        ]

    async def teardown(self, bridge: str | None = None) -> None:
        """Remove the bridge, if it is there. Its ports are left down: without walls a guest would reach the host."""
        name = bridge or self._bridge
        for port in await self.ports_of_bridge():
            await self._netlink.link("set", index=port.ifindex, group=0, flags=0, change=_IFF_UP)
            await unwall_port(port.name)
        try:
            link = await self.link(name)
        except LinkError:
            return
        await self._netlink.link("del", index=link.ifindex)

    # -- the virtual space

    async def ensure_blackhole(self, supernet: IPv4Network) -> None:
        """Route the virtual space nowhere: with ip_forward on, nothing of it can be routed by the host's stack."""
        try:
            await self._netlink.route("add", dst=str(supernet), type="blackhole", proto=_ROUTE_PROTOCOL)
        except NetlinkError as error:
            if error.code != _EEXIST:
                raise

    async def remove_blackhole(self, supernet: IPv4Network) -> None:
        """Undo ensure_blackhole."""
        try:
            await self._netlink.route("del", dst=str(supernet), type="blackhole", proto=_ROUTE_PROTOCOL)
        except NetlinkError as error:
            if error.code != _ESRCH:
                raise

    # -- the host itself

    async def ensure_host_link(self, offloads: bool) -> HostLink:
        """Make dvhost and its peer, or bring them to what they must be. offloads: whether segments may stay together.

        Raises LinkError where a link of that name is something else.
        """
        try:
            peer = {"ifname": HOST_LINK_PEER}
            await self._netlink.link("add", ifname=HOST_LINK, kind="veth", peer=peer)
        except NetlinkError as error:
            if error.code != _EEXIST:
                raise
        ends = [await self.link(HOST_LINK), await self.link(HOST_LINK_PEER)]
        for end in ends:
            if end.kind != "veth":
                raise LinkError(f"{end.name} exists and is not divhook's: remove or rename it")
            for sysctl, value in _HOST_LINK_SYSCTLS.items():
                write_sysctl(sysctl.format(end.name), value)
        if ends[0].mac != HOST_LINK_MAC:
            await self._netlink.link("set", index=ends[0].ifindex, address=HOST_LINK_MAC.hex(":"))
        await self._netlink.flush_addr(index=ends[0].ifindex)
        set_offloads(HOST_LINK, offloads)
        with_arp = {"flags": _IFF_UP | _IFF_NOARP, "change": _IFF_UP | _IFF_NOARP | _IFF_MULTICAST}
        for end in ends:
            mtu = {} if end.mtu == _HOST_LINK_MTU else {"mtu": _HOST_LINK_MTU}
            await self._netlink.link("set", index=end.ifindex, **with_arp, **mtu)
        try:
            await self._netlink.rule("add", **_HOST_RULE)
        except NetlinkError as error:
            if error.code != _EEXIST:
                raise
        return HostLink(ends[0].ifindex, ends[1].ifindex)

    async def host_routes(self) -> dict[Address, int]:
        """Guests that the host's stack reaches by dvhost, each with the MTU of the way."""
        found: dict[Address, int] = {}
        ifindex = (await self.link(HOST_LINK)).ifindex
        async for message in await self._netlink.get_routes(family=_AF_INET, oif=ifindex):
            if message.get("oif") == ifindex and message["proto"] == _ROUTE_PROTOCOL and message["dst_len"] == 32:
                metrics = message.get("metrics")
                found[IPv4Address(message.get("dst")).packed] = (metrics.get("mtu") if metrics else None) or 0
        return found

    async def set_host_routes(self, wanted: Mapping[Address, int], source: Address) -> None:
        """Exactly these guests, each with its MTU, are reached by dvhost. source: what the host speaks from."""
        ifindex, present = (await self.link(HOST_LINK)).ifindex, await self.host_routes()
        common = {"oif": ifindex, "proto": _ROUTE_PROTOCOL, "scope": _SCOPE_LINK}
        for address, mtu in wanted.items():
            if present.get(address) != mtu:
                route = {"dst": f"{IPv4Address(address)}/32", "prefsrc": str(IPv4Address(source)), **common}
                await self._netlink.route("replace", metrics={"mtu": mtu}, **route)
        for address in present.keys() - wanted.keys():
            try:
                await self._netlink.route("del", dst=f"{IPv4Address(address)}/32", **common)
            except NetlinkError as error:
                if error.code != _ESRCH:
                    raise

    async def remove_host_link(self) -> None:
        """Undo ensure_host_link, and the routes with it."""
        try:
            await self._netlink.rule("del", **_HOST_RULE)
        except NetlinkError as error:
            if error.code != _ENOENT:
                raise
        try:
            link = await self.link(HOST_LINK)
        except LinkError:
            return
        if link.kind == "veth":
            await self._netlink.link("del", index=link.ifindex)

    async def addresses(self, ifindex: int) -> list[IPv4Interface]:
        """IPv4 addresses of a link, each with the prefix that is on link by it."""
        return [
            IPv4Interface((message.get("local") or message.get("address"), message["prefixlen"]))
            async for message in await self._netlink.get_addr(family=_AF_INET, index=ifindex)
        ]

    async def overlaps(self, supernet: IPv4Network) -> list[str]:
        """Addresses, routes and name servers of this host inside the virtual space, one line each for a person."""
        names = {link.ifindex: link.name for link in await self.links()}
        found = []
        async for message in await self._netlink.get_addr(family=_AF_INET):
            address = message.get("local") or message.get("address")
            network = IPv4Network((address, message["prefixlen"]), strict=False)
            if network.overlaps(supernet):
                found.append(f"address {address}/{message['prefixlen']} on {names.get(message['index'], '?')}")
        async for message in await self._netlink.get_routes(family=_AF_INET):
            table, length = message.get("table") or message["table"], message["dst_len"]
            if table == _RT_TABLE_LOCAL or length <= 1:  # a default route, or half of one, is no overlap
                continue
            if message["proto"] == _ROUTE_PROTOCOL:
                continue
            network = IPv4Network((message.get("dst"), length))
            if network.overlaps(supernet):
                via = names.get(message.get("oif") or 0, f"table {table}")
                found.append(f"route {network} on {via}")
        return found + overlap_of_resolvers(supernet, self._resolv_confs)

    # -- the uplink

    async def find_uplink(self) -> str:
        """Name of the NIC with the default route, else of the only NIC that is up. Raises LinkError."""
        routes = [
            (message.get("priority") or 0, message.get("oif"))
            async for message in await self._netlink.get_routes(family=_AF_INET)
            if message["dst_len"] == 0 and message.get("oif")
        ]
        return choose_uplink(await self.links(), [ifindex for _, ifindex in sorted(routes)])

    async def uplink_info(self, name: str) -> UplinkInfo:
        """Describe the uplink. Raises LinkError where that link cannot be one."""
        link = await self.link(name)
        return check_uplink(link, await self.link(link.master) if link.master else None)

    async def address_of(self, name: str) -> IPv4Address | IPv6Address | None:
        """An address by which other hosts reach this one over the uplink, or over the bridge or bond that it is in."""
        link = await self.link(name)
        for ifindex in [link.ifindex, *([link.master] if link.master else [])]:
            async for message in await self._netlink.get_addr(index=ifindex):
                address = ip_address(message.get("local") or message.get("address"))
                if not address.is_link_local and not address.is_loopback:
                    return address
        return None

    async def disable_lro(self, name: str) -> bool:
        """Switch large receive offload of the uplink off. True if it was on. Raises LinkError."""
        return switch_off_lro(name)

    # -- changes

    async def watch(self) -> AsyncIterator[LinkEvent]:
        """Every change of a link from now on, until the iterator is closed.

        Should netlink fail (events lost), it is asked anew: then every link is told again, as "changed" or "gone".
        """
        known: dict[int, Link] = {}
        again = False
        while True:
            netlink = AsyncIPRoute()
            try:
                await netlink.bind(RTMGRP_LINK)
                present = {link.ifindex: link for link in await self.links()}
                for link in known.values() if again else ():
                    if link.ifindex not in present:
                        yield self._event("gone", link, None, present)
                for link in present.values() if again else ():
                    before = known.get(link.ifindex)
                    yield self._event("new" if before is None else "changed", link, before, present)
                known, again = present, True
                while True:
                    async for message in netlink.get():
                        if message["event"] in ("RTM_NEWLINK", "RTM_DELLINK") and message["family"] != _AF_BRIDGE:
                            yield self._learn(message, known)
            except (NetlinkError, OSError):
                await asyncio.sleep(_WATCH_AGAIN_S)
            finally:
                netlink.close()

    def _learn(self, message: Any, known: dict[int, Link]) -> LinkEvent:
        link = _decode(message)
        if message["event"] == "RTM_DELLINK":
            known.pop(link.ifindex, None)
            return self._event("gone", link, None, known)
        before = known.get(link.ifindex)
        known[link.ifindex] = link
        return self._event("new" if before is None else "changed", link, before, known)

    def _event(
        self, kind: Literal["new", "gone", "changed"], link: Link, before: Link | None, known: dict[int, Link]
    ) -> LinkEvent:
        if kind == "gone":
            return LinkEvent(kind, link.ifindex, link.name, False, False, False)
        master = known.get(link.master or 0)
        is_port = master is not None and master.name == self._bridge
        became_port = is_port and (before is None or before.master != link.master)
        return LinkEvent(kind, link.ifindex, link.name, is_port, link.up, link.carrier, became_port)
