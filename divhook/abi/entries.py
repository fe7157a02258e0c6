"""What the agent tells the programs, as values of its own world; each packs itself into its layout."""

import ctypes
from dataclasses import dataclass, field

from divhook.abi import layout
from divhook.abi.layout import EndpointKind, PortBucket, WireBucket
from divhook.core.addressing import ZERO_ADDRESS, Address, AddressPlan, Mac
from divhook.core.endpoint import MAX_PORT, PortState
from divhook.core.wire.discovery import Claim
from divhook.core.wire.ethernet import ZERO_MAC, is_group

MAX_RATE = 0xFFFFFFFF


def packed_mac(mac: Mac) -> layout.Mac:
    """struct mac. Raises ValueError where it is not six bytes."""
    if len(mac) != 6:
        raise ValueError(f"a MAC has 6 bytes, not {len(mac)}")
    return layout.Mac(layout.Octets6(*mac))


def packed_address(address: Address) -> "ctypes.Array[ctypes.c_uint8]":
    """Four bytes in network order. Raises ValueError."""
    if len(address) != 4:
        raise ValueError(f"an IPv4 address has 4 bytes, not {len(address)}")
    return layout.Octets4(*address)


@dataclass(frozen=True, slots=True)
class Rate:
    """A token bucket: packets per second, and how many packets at once. Zero per second: nothing passes."""

    packets_per_s: int
    burst_packets: int

    def __post_init__(self) -> None:
        if not 0 <= self.packets_per_s <= MAX_RATE or not 1 <= self.burst_packets <= MAX_RATE:
            raise ValueError(f"rate of {self.packets_per_s}/s, burst {self.burst_packets}: out of range")

    def pack(self) -> layout.Rate:
        """struct rate"""
        return layout.Rate(self.packets_per_s, self.burst_packets)

    @classmethod
    def unpack(cls, raw: layout.Rate) -> "Rate":
        """From struct rate."""
        return cls(raw.packets_per_s, max(1, raw.burst_packets))


NO_LIMIT = Rate(MAX_RATE, MAX_RATE)
"""An interval of no nanoseconds: everything passes."""
PORT_IPV4_RATE = Rate(5_000, 500)
"""A tenth of what the slow path carries on the machine it was measured on: one guest cannot fill it."""
PORT_ARP_RATE = Rate(200, 100)
PORT_DHCP_RATE = Rate(10, 10)
PORT_GROUP_RATE = Rate(200, 200)
"""A frame to all costs each host of a subnet, and a copy for each port there: 200/s to 64 ports are 12,800 copies/s."""
PEER_IPV4_RATE = Rate(20_000, 2_000)
STRANGER_IPV4_RATE = Rate(200, 100)
PEER_DISCOVERY_RATE = Rate(10_000, 2_000)
"""PROTOCOL: a boot storm brings 4,200 requests/s to an agent."""
STRANGER_DISCOVERY_RATE = Rate(500, 500)


@dataclass(frozen=True, slots=True)
class HostEntry:
    """Map `config`: this host.

    pmac, uplink_ifindex: the NIC on the wire. divbr_ifindex, divbr_mac: where diverted frames go. fastpath: whether
    map `endpoints` is used, or every valid frame goes to the agent. ticks_per_s: of jiffies; Programs puts it in.
    The rates limit what from_wire hands to the agent, for all known peers together and for all strangers together.
    """

    pmac: Mac
    uplink_ifindex: int
    divbr_ifindex: int
    divbr_mac: Mac
    plan: AddressPlan
    fastpath: bool = True
    ticks_per_s: int = 0
    peer_ipv4_rate: Rate = PEER_IPV4_RATE
    stranger_ipv4_rate: Rate = STRANGER_IPV4_RATE
    peer_discovery_rate: Rate = PEER_DISCOVERY_RATE
    stranger_discovery_rate: Rate = STRANGER_DISCOVERY_RATE

    def pack(self) -> layout.HostConfig:
        """struct host_config. Raises ValueError where a field is out of range."""
        rates = (layout.Rate * layout.BUCKETS)()
        rates[WireBucket.PEER_IPV4] = self.peer_ipv4_rate.pack()
        rates[WireBucket.STRANGER_IPV4] = self.stranger_ipv4_rate.pack()
        rates[WireBucket.PEER_DISCOVERY] = self.peer_discovery_rate.pack()
        rates[WireBucket.STRANGER_DISCOVERY] = self.stranger_discovery_rate.pack()
        plan, cell_length = self.plan, self.plan.supernet.prefixlen + self.plan.cell_bits
        return layout.HostConfig(
            layout.ABI_VERSION,
            layout.HOST_FASTPATH if self.fastpath else 0,
            self.divbr_ifindex,
            self.uplink_ifindex,
            packed_address(plan.supernet.network_address.packed),
            packed_address(plan.supernet.netmask.packed),
            packed_address((0xFFFFFFFF << (32 - cell_length) & 0xFFFFFFFF).to_bytes(4, "big")),
            packed_address(plan.max_host.to_bytes(4, "big")),
            plan.host_bits,
            plan.subnet_bits,
            self.ticks_per_s,
            packed_mac(self.pmac),
            packed_mac(self.divbr_mac),
            rates,
        )


@dataclass(frozen=True, slots=True)
class PortEntry:
    """Map `ports`: one guest NIC.

    port_id: 1..65535, what the mark says. address: None until one is assigned; then only DHCP and ARP probes pass.
    router: the subnet's router, to which a client without address may send DHCP. Rates limit what reaches the agent.
    tracked: its flows are kept; it has a table for them. group_rate: of broadcast and multicast, whoever forwards it.
    shares: map `shared` has addresses that it may take. speaks: of an incoming one, that what it sends is forwarded.
    policed: only those flows pass that its record in map `port_policies` lets in; it is tracked, too.
    translated: its cell has source NAT.
    """

    port_id: int
    state: PortState
    vmac: Mac
    address: Address | None
    router: Address = ZERO_ADDRESS
    ipv4_rate: Rate = field(default=PORT_IPV4_RATE)
    arp_rate: Rate = field(default=PORT_ARP_RATE)
    dhcp_rate: Rate = field(default=PORT_DHCP_RATE)
    tracked: bool = False
    group_rate: Rate = field(default=PORT_GROUP_RATE)
    policed: bool = False
    shares: bool = False
    translated: bool = False
    speaks: bool = False

    def __post_init__(self) -> None:
        if not 0 < self.port_id <= MAX_PORT:
            raise ValueError(f"port id {self.port_id} is not in 1..{MAX_PORT}")
        if is_group(self.vmac) or self.vmac == ZERO_MAC:
            raise ValueError(f"{self.vmac.hex(':')} is no guest's MAC")

    def pack(self) -> layout.Port:
        """struct port. Raises ValueError where a field is out of range."""
        rates = (layout.Rate * layout.BUCKETS)()
        rates[PortBucket.IPV4] = self.ipv4_rate.pack()
        rates[PortBucket.ARP] = self.arp_rate.pack()
        rates[PortBucket.DHCP] = self.dhcp_rate.pack()
        rates[PortBucket.GROUP] = self.group_rate.pack()
        return layout.Port(
            self.port_id,
            int(self.state),
            packed_address(self.address or ZERO_ADDRESS),
            packed_address(self.router),
            packed_mac(self.vmac),
            layout.PORT_TRACKED * self.tracked
            | layout.PORT_POLICED * self.policed
            | layout.PORT_SHARES * self.shares
            | layout.PORT_TRANSLATED * self.translated
            | layout.PORT_SPEAKS * self.speaks,
            rates,
        )

    @classmethod
    def unpack(cls, raw: layout.Port) -> "PortEntry":
        """From struct port."""
        address = bytes(raw.address_be)
        return cls(
            raw.port_id,
            PortState(raw.state),
            bytes(raw.vmac.octets),
            address if address != ZERO_ADDRESS else None,
            bytes(raw.router_be),
            Rate.unpack(raw.rates[PortBucket.IPV4]),
            Rate.unpack(raw.rates[PortBucket.ARP]),
            Rate.unpack(raw.rates[PortBucket.DHCP]),
            bool(raw.flags & layout.PORT_TRACKED),
            Rate.unpack(raw.rates[PortBucket.GROUP]),
            bool(raw.flags & layout.PORT_POLICED),
            bool(raw.flags & layout.PORT_SHARES),
            bool(raw.flags & layout.PORT_TRANSLATED),
            bool(raw.flags & layout.PORT_SPEAKS),
        )


@dataclass(frozen=True, slots=True)
class LocalEndpoint:
    """Map `endpoints`: behind a port of this host. mtu: bytes of an IP packet in its subnet.

    tracked, policed, translated: as its port. next: pmac of the host that it is about to move to; former: of
    the one that it came from, which sends on what comes there late.
    """

    vmac: Mac
    ifindex: int
    port_id: int
    mtu: int
    fenced: bool = False
    tracked: bool = False
    identity: int = 0
    policed: bool = False
    translated: bool = False
    next: Mac | None = None
    former: Mac | None = None

    def pack(self) -> layout.Endpoint:
        """struct endpoint. Raises ValueError where a field is out of range."""
        kind = EndpointKind.FENCED if self.fenced else EndpointKind.LOCAL
        flags = layout.ENDPOINT_TRACKED * self.tracked | layout.ENDPOINT_POLICED * self.policed
        flags |= layout.ENDPOINT_TRANSLATED * self.translated
        here = {"ifindex": self.ifindex, "port_id": self.port_id, "next": packed_mac(self.next or ZERO_MAC)}
        host = packed_mac(self.former or ZERO_MAC)
        return _endpoint(kind, self.vmac, self.mtu, **here, host=host, flags=flags, identity=self.identity)


@dataclass(frozen=True, slots=True)
class RemoteEndpoint:
    """Map `endpoints`: a neighbour, as discovery has it. used: whether a frame has passed since this was written.

    heard: whether one came from it. next: pmac of the host that it is about to move to. forwarded: it has moved there
    from here, and what still comes for it is sent on. sent_on: so many packets so far, mod 2^24.
    """

    claim: Claim
    mtu: int
    used: bool = False
    heard: bool = False
    next: Mac | None = None
    forwarded: bool = False
    sent_on: int = 0

    def pack(self) -> layout.Endpoint:
        """struct endpoint. Raises ValueError where a field is out of range."""
        claim = self.claim
        return _endpoint(
            EndpointKind.REMOTE,
            claim.vmac,
            self.mtu,
            stamp=claim.stamp,
            born=claim.born,
            guest_id=claim.guest_id,
            identity=claim.identity,
            host=packed_mac(claim.host),
            next=packed_mac(self.next or ZERO_MAC),
            flags=layout.ENDPOINT_FORWARDED * self.forwarded,
            used=self.sent_on * layout.ENDPOINT_SENT_ON
            | layout.ENDPOINT_USED * self.used
            | layout.ENDPOINT_HEARD * self.heard,
        )


@dataclass(frozen=True, slots=True)
class ExternalEndpoint:
    """Map `endpoints`: a server or router without an agent. used, heard: as of RemoteEndpoint."""

    mac: Mac
    used: bool = False
    heard: bool = False

    def pack(self) -> layout.Endpoint:
        """struct endpoint."""
        used = layout.ENDPOINT_USED * self.used | layout.ENDPOINT_HEARD * self.heard
        return _endpoint(EndpointKind.EXTERNAL, ZERO_MAC, 0, host=packed_mac(self.mac), used=used)


EndpointEntry = LocalEndpoint | RemoteEndpoint | ExternalEndpoint


def _endpoint(kind: EndpointKind, vmac: Mac, mtu: int, **fields: object) -> layout.Endpoint:
    if not 0 <= mtu <= 0xFFFF:
        raise ValueError(f"an MTU of {mtu} bytes is not in 0..65535")
    return layout.Endpoint(vmac=packed_mac(vmac), mtu=mtu, kind=kind, **fields)


def unpack_endpoint(address: Address, raw: layout.Endpoint) -> EndpointEntry:
    """From struct endpoint, under the key that it was found by."""
    vmac, host, following = bytes(raw.vmac.octets), bytes(raw.host.octets), bytes(raw.next.octets)
    upcoming = following if following != ZERO_MAC else None
    used, heard = bool(raw.used & layout.ENDPOINT_USED), bool(raw.used & layout.ENDPOINT_HEARD)
    if raw.kind == EndpointKind.EXTERNAL:
        return ExternalEndpoint(host, used, heard)
    if raw.kind != EndpointKind.REMOTE:
        fenced, tracked = raw.kind == EndpointKind.FENCED, bool(raw.flags & layout.ENDPOINT_TRACKED)
        policed = bool(raw.flags & layout.ENDPOINT_POLICED)
        translated = bool(raw.flags & layout.ENDPOINT_TRANSLATED)
        return LocalEndpoint(
            vmac,
            raw.ifindex,
            raw.port_id,
            raw.mtu,
            fenced,
            tracked,
            raw.identity,
            policed,
            translated,
            upcoming,
            host if host != ZERO_MAC else None,
        )
    claim = Claim(address, vmac, host, raw.stamp, raw.born, raw.guest_id, raw.identity)
    forwarded = bool(raw.flags & layout.ENDPOINT_FORWARDED)
    return RemoteEndpoint(claim, raw.mtu, used, heard, upcoming, forwarded, raw.used // layout.ENDPOINT_SENT_ON)


@dataclass(frozen=True, slots=True)
class GroupList:
    """Map `group_lists`: (ifindex, port id) of those that get a copy. The flags are of a subnet's own list."""

    mtu: int
    members: tuple[tuple[int, int], ...] = ()
    complete: bool = False
    routed: bool = False
    agents: bool = False

    def pack(self) -> layout.GroupList:
        """struct group_list. Raises ValueError where there are too many members."""
        if len(self.members) > layout.MAX_GROUP_MEMBERS:
            raise ValueError(f"{len(self.members)} members of a list that has room for {layout.MAX_GROUP_MEMBERS}")
        flags = layout.GROUP_LIST_COMPLETE * self.complete | layout.GROUP_LIST_ROUTED * self.routed
        raw = layout.GroupList(len(self.members), self.mtu, flags | layout.GROUP_LIST_AGENTS * self.agents)
        for at, (ifindex, port_id) in enumerate(self.members):
            raw.members[at] = layout.GroupMember(ifindex, port_id)
        return raw

    @classmethod
    def unpack(cls, raw: layout.GroupList) -> "GroupList":
        """From struct group_list."""
        members = tuple((raw.members[at].ifindex, raw.members[at].port_id) for at in range(raw.count))
        flags = (layout.GROUP_LIST_COMPLETE, layout.GROUP_LIST_ROUTED, layout.GROUP_LIST_AGENTS)
        return cls(raw.mtu, members, *(bool(raw.flags & flag) for flag in flags))


@dataclass(frozen=True, slots=True)
class TrafficCount:
    """What the programs handed on for a port (0: the uplink), and drops that map `drops` had no room for.

    diverted: to the agent. from: came from the port, and were forwarded. to: were forwarded to it.
    """

    diverted_packets: int = 0
    diverted_bytes: int = 0
    from_packets: int = 0
    from_bytes: int = 0
    to_packets: int = 0
    to_bytes: int = 0
    uncounted_drops: int = 0
