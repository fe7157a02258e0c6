"""The address plan: cell and subnet can be read off any virtual address, with no look-up.

        10.0.0.0/8 as 8+8+8 (the default)
     0        8        16       24      32
    +--------+--------+--------+--------+
    |   10   |  cell  | subnet |  host  |
    +--------+--------+--------+--------+

A MAC is 6 bytes; an address is 4 bytes (IPv4) in network order. Only this module and core/wire
count on four. Router MACs and group MACs are functions of (cell, subnet), in locally administered space:

    rmac       02:d1:CC:CC:SS:SS      group MAC  03:d1:CC:CC:SS:SS      all hosts  03:d1:ff:ff:ff:ff
                                      of a cell  03:d1:CC:CC:ff:ff
"""

from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network
from typing import NamedTuple

Mac = bytes
"""6 bytes, as on the wire."""
Address = bytes
"""A virtual or physical network address in network order: 4 bytes for IPv4."""

BROADCAST_MAC: Mac = b"\xff" * 6
ALL_HOSTS_GROUP: Mac = b"\x03\xd1\xff\xff\xff\xff"
RMAC_PREFIX = b"\x02\xd1"
GROUP_PREFIX = b"\x03\xd1"
ZERO_ADDRESS: Address = bytes(4)
LIMITED_BROADCAST: Address = b"\xff" * 4


class SubnetId(NamedTuple):
    """A subnet's place in the plan. Neither number says anything without the other."""

    cell: int
    subnet: int

    def __str__(self) -> str:
        return f"{self.cell}.{self.subnet}"


class PlanError(ValueError):
    """The address plan, or a number in it, is not usable. The text is meant for a person."""


def mac_text(mac: Mac) -> str:
    """52:54:00:... form of a MAC."""
    return mac.hex(":")


def parse_mac(text: str) -> Mac:
    """A MAC from its usual text form (colons or dashes). Raises ValueError."""
    raw = bytes.fromhex(text.replace(":", "").replace("-", ""))
    if len(raw) != 6:
        raise ValueError(f"{text!r} is not a MAC address: it has {len(raw)} bytes, not 6")
    return raw


def address_text(address: Address) -> str:
    """Dotted form of an address."""
    return str(IPv4Address(address))


def parse_address(text: str) -> Address:
    """An address from its text form. Raises ValueError."""
    return IPv4Address(text).packed


@dataclass(frozen=True, slots=True)
class AddressPlan:
    """How a virtual address is cut into cell, subnet and host.

    supernet: e.g. IPv4Network("10.0.0.0/8"); its length plus the three widths must be 32.
    cell_bits, subnet_bits: 0..16 each (they go into rmac); host_bits: 2..16.
    Raises PlanError where that does not hold.
    """

    supernet: IPv4Network = IPv4Network("10.0.0.0/8")
    cell_bits: int = 8
    subnet_bits: int = 8
    host_bits: int = 8

    def __post_init__(self) -> None:
        if not 0 <= self.cell_bits <= 16 or not 0 <= self.subnet_bits <= 16 or not 2 <= self.host_bits <= 16:
            raise PlanError("address plan: cell and subnet take 0 to 16 bits each, host 2 to 16")
        total = self.supernet.prefixlen + self.cell_bits + self.subnet_bits + self.host_bits
        if total != 32:
            raise PlanError(
                f"address plan: /{self.supernet.prefixlen} + {self.cell_bits} + {self.subnet_bits} + "
                f"{self.host_bits} bits is {total}, not 32"
            )

    @property
    def max_cell(self) -> int:
        """Highest cell number."""
        return (1 << self.cell_bits) - 1

    @property
    def max_subnet(self) -> int:
        """Highest subnet number."""
        return (1 << self.subnet_bits) - 1

    @property
    def max_host(self) -> int:
        """Highest host number, which is the broadcast address."""
        return (1 << self.host_bits) - 1

    @property
    def prefix_length(self) -> int:
        """Length of every subnet's prefix."""
        return 32 - self.host_bits

    def contains(self, address: Address) -> bool:
        """Whether the address is virtual."""
        base = int(self.supernet.network_address)
        return (int.from_bytes(address, "big") ^ base) >> (32 - self.supernet.prefixlen) == 0

    def locate(self, address: Address) -> SubnetId | None:
        """(cell, subnet) of a virtual address; None outside the supernet."""
        if not self.contains(address):
            return None
        value = int.from_bytes(address, "big") >> self.host_bits
        return SubnetId((value >> self.subnet_bits) & self.max_cell, value & self.max_subnet)

    def check(self, subnet: SubnetId) -> None:
        """Raise PlanError where a number is outside the plan."""
        if not 0 <= subnet.cell <= self.max_cell:
            raise PlanError(f"cell number {subnet.cell} is outside the address plan: 0 to {self.max_cell}")
        if not 0 <= subnet.subnet <= self.max_subnet:
            raise PlanError(f"subnet number {subnet.subnet} is outside the address plan: 0 to {self.max_subnet}")

    def address(self, subnet: SubnetId, host: int) -> Address:
        """The address of a host number in a subnet. Raises PlanError."""
        self.check(subnet)
        if not 0 <= host <= self.max_host:
            raise PlanError(f"host number {host} is outside the address plan: 0 to {self.max_host}")
        value = (subnet.cell << self.subnet_bits | subnet.subnet) << self.host_bits | host
        return (int(self.supernet.network_address) | value).to_bytes(4, "big")

    def host_number(self, address: Address) -> int:
        """The host part of a virtual address."""
        return int.from_bytes(address, "big") & self.max_host

    def network(self, subnet: SubnetId) -> IPv4Network:
        """The subnet's prefix."""
        return IPv4Network((int.from_bytes(self.address(subnet, 0), "big"), self.prefix_length))

    def mask(self) -> Address:
        """The mask of every subnet."""
        return (0xFFFFFFFF << self.host_bits & 0xFFFFFFFF).to_bytes(4, "big")

    def router(self, subnet: SubnetId) -> Address:
        """The virtual router: the first host address."""
        return self.address(subnet, 1)

    def broadcast(self, subnet: SubnetId) -> Address:
        """The subnet-directed broadcast address."""
        return self.address(subnet, self.max_host)

    def assignable(self, address: Address) -> bool:
        """Whether an endpoint may hold this address: virtual, and not network, router or broadcast."""
        return self.contains(address) and 2 <= self.host_number(address) < self.max_host


def rmac(subnet: SubnetId) -> Mac:
    """MAC of the subnet's virtual router, the same on every host."""
    return RMAC_PREFIX + subnet.cell.to_bytes(2, "big") + subnet.subnet.to_bytes(2, "big")


def cell_group_mac(cell: int) -> Mac:
    """Multicast MAC that hosts with a port in a cell join where multicast is routed within the cell.

    With 16 bits of subnet it is also that of subnet 65535: hosts get frames for nobody then, and drop them.
    """
    return GROUP_PREFIX + cell.to_bytes(2, "big") + b"\xff\xff"


def group_mac(subnet: SubnetId) -> Mac:
    """Multicast MAC that hosts with a port in the subnet join."""
    return GROUP_PREFIX + subnet.cell.to_bytes(2, "big") + subnet.subnet.to_bytes(2, "big")
