"""What the agent tells the programs, as values of its own world; each packs itself into its layout."""

import ctypes
from dataclasses import dataclass, field
from ipaddress import IPv4Network

from divhook.abi import layout
from divhook.abi.layout import PortBucket, WireBucket
from divhook.core.addressing import ZERO_ADDRESS, Address, Mac
from divhook.core.endpoint import MAX_PORT, PortState

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


PORT_IPV4_RATE = Rate(5_000, 500)
"""A tenth of what the slow path carries on the machine it was measured on: one guest cannot fill it."""
PORT_ARP_RATE = Rate(200, 100)
PORT_DHCP_RATE = Rate(10, 10)
PEER_IPV4_RATE = Rate(20_000, 2_000)
STRANGER_IPV4_RATE = Rate(200, 100)
PEER_DISCOVERY_RATE = Rate(10_000, 2_000)
"""PROTOCOL: a boot storm brings 4,200 requests/s to an agent."""
STRANGER_DISCOVERY_RATE = Rate(500, 500)


@dataclass(frozen=True, slots=True)
class HostEntry:
    """Map `config`: this host.

    pmac: MAC of the uplink. divbr_ifindex, divbr_mac: where diverted frames go. supernet, host_bits: the address plan.
    The rates limit what from_wire hands to the agent, for all known peers together and for all strangers together.
    """

    pmac: Mac
    divbr_ifindex: int
    divbr_mac: Mac
    supernet: IPv4Network
    host_bits: int
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
        return layout.HostConfig(
            layout.ABI_VERSION,
            self.divbr_ifindex,
            packed_address(self.supernet.network_address.packed),
            packed_address(self.supernet.netmask.packed),
            packed_address(((1 << self.host_bits) - 1).to_bytes(4, "big")),
            packed_mac(self.pmac),
            packed_mac(self.divbr_mac),
            rates,
        )


@dataclass(frozen=True, slots=True)
class PortEntry:
    """Map `ports`: one guest NIC.

    port_id: 1..65535, what the mark says. address: None until one is assigned; then only DHCP and ARP probes pass.
    router: the subnet's router, to which a client without address may send DHCP. Rates limit what reaches the agent.
    """

    port_id: int
    state: PortState
    vmac: Mac
    address: Address | None
    router: Address = ZERO_ADDRESS
    ipv4_rate: Rate = field(default=PORT_IPV4_RATE)
    arp_rate: Rate = field(default=PORT_ARP_RATE)
    dhcp_rate: Rate = field(default=PORT_DHCP_RATE)

    def __post_init__(self) -> None:
        if not 0 < self.port_id <= MAX_PORT:
            raise ValueError(f"port id {self.port_id} is not in 1..{MAX_PORT}")

    def pack(self) -> layout.Port:
        """struct port. Raises ValueError where a field is out of range."""
        rates = (layout.Rate * layout.BUCKETS)()
        rates[PortBucket.IPV4] = self.ipv4_rate.pack()
        rates[PortBucket.ARP] = self.arp_rate.pack()
        rates[PortBucket.DHCP] = self.dhcp_rate.pack()
        return layout.Port(
            self.port_id,
            int(self.state),
            packed_address(self.address or ZERO_ADDRESS),
            packed_address(self.router),
            packed_mac(self.vmac),
            (ctypes.c_uint8 * 2)(),
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
        )


@dataclass(frozen=True, slots=True)
class TrafficCount:
    """What a port (0: the uplink) handed to the agent, and drops that map `drops` had no room for."""

    diverted_packets: int
    diverted_bytes: int
    uncounted_drops: int
