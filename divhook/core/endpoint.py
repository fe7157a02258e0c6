"""Endpoints and ports: what the data plane knows of a guest NIC on this host."""

from dataclasses import dataclass, replace
from enum import IntEnum

from divhook.core.addressing import Address, Mac, SubnetId
from divhook.core.reasons import DropReason

PORT_WIRE = 0
"""Port id that stands for the uplink in marks."""
MAX_PORT = 0xFFFF
"""Port ids are 16 bits of the mark."""


class PortState(IntEnum):
    """What a port may pass."""

    TENTATIVE = 1  # address not confirmed yet: DHCP waits, data does not pass
    ACTIVE = 2
    INCOMING = 3  # destination of a move, not resumed yet
    FENCED = 4  # another host holds a better claim: nothing passes


@dataclass(frozen=True, slots=True)
class Endpoint:
    """One guest NIC: (cell, subnet, address, guest MAC), and the port it hangs on.

    address is None while no address has been assigned. mtu in bytes of IP packet. identity: what policies know it by.
    speaks: it is INCOMING, and all is ready for its guest: what that sends shows that it runs here.
    allowed: addresses that it may take besides its own; held: those of them that it has now (PortTable.hold).
    translated: its cell has source NAT.
    """

    port: int
    subnet: SubnetId
    vmac: Mac
    address: Address | None
    guest: str  # domain name, for people
    guest_uuid: str
    mtu: int = 1500
    state: PortState = PortState.TENTATIVE
    identity: int = 0
    allowed: tuple[Address, ...] = ()
    held: tuple[Address, ...] = ()
    translated: bool = False
    speaks: bool = False

    @property
    def passes(self) -> bool:
        """Whether what it sends is forwarded."""
        return self.state is PortState.ACTIVE or (self.state is PortState.INCOMING and self.speaks)

    def speaks_from(self, address: Address) -> bool:
        """Whether its packets may have this source."""
        return address == self.address or address in self.held

    def with_state(self, state: PortState) -> "Endpoint":
        """The same endpoint in another state."""
        return replace(self, state=state)


class PortTable:
    """Local endpoints by port, by address and by vmac. At most MAX_PORT; a port holds one endpoint."""

    def __init__(self) -> None:
        self._by_port: dict[int, Endpoint] = {}
        self._by_subnet: dict[SubnetId, dict[int, Endpoint]] = {}
        self.generation = 0  # goes up with every change
        self._holder: dict[Address, int] = {}  # of addresses that move between endpoints
        self.moved: set[int] = set()  # ports that may take other addresses now, or hold others; as `touched`
        self.unasked: set[int] = set()  # ports that may hold addresses that nobody knows of; as `touched`
        self.touched: set[SubnetId] = set()  # subnets whose ports have changed; whoever acts on that empties it
        self._by_address: dict[Address, Endpoint] = {}

    def put(self, endpoint: Endpoint) -> None:
        """Insert or replace the endpoint of a port. Raises ValueError where another port has its address."""
        if not 0 < endpoint.port <= MAX_PORT:
            raise ValueError(f"port id {endpoint.port} is not in 1..{MAX_PORT}")
        if endpoint.address is not None:
            holder = self._by_address.get(endpoint.address)
            if holder is not None and holder.port != endpoint.port:
                raise ValueError(f"address is held by port {holder.port} ({holder.guest})")
        self.remove(endpoint.port)
        self._insert(endpoint)

    def _insert(self, endpoint: Endpoint) -> None:
        """With the addresses that it holds, as far as it still may."""
        mine = endpoint.allowed if endpoint.state is PortState.ACTIVE else ()
        held = tuple(address for address in mine if self._holder.get(address) == endpoint.port)
        endpoint = replace(endpoint, held=held)
        if endpoint.allowed:
            self.moved.add(endpoint.port)
            self.unasked.add(endpoint.port)
        self._by_port[endpoint.port] = endpoint
        self.generation += 1
        self._by_subnet.setdefault(endpoint.subnet, {})[endpoint.port] = endpoint
        self.touched.add(endpoint.subnet)
        if endpoint.address is not None:
            self._by_address[endpoint.address] = endpoint

    def remove(self, port: int) -> Endpoint | None:
        """Forget a port; returns what was there."""
        old = self._by_port.pop(port, None)
        if old is None:
            return None
        self._by_subnet[old.subnet].pop(port)
        if not self._by_subnet[old.subnet]:
            del self._by_subnet[old.subnet]
        self.touched.add(old.subnet)
        self.generation += 1
        if old.allowed:
            self.moved.add(port)
            self.unasked.add(port)
        if old.address is not None:
            self._by_address.pop(old.address, None)
        return old

    def port(self, port: int) -> Endpoint | None:
        """Endpoint of a port id."""
        return self._by_port.get(port)

    def at(self, address: Address) -> Endpoint | None:
        """Local endpoint that holds an address."""
        own = self._by_address.get(address)
        if own is not None or address not in self._holder:
            return own
        holder = self._by_port.get(self._holder[address])
        return holder if holder is not None and address in holder.held else None

    def active_at(self, address: Address) -> Endpoint | DropReason:
        """The same where its port is active, or why a packet for the address goes to none."""
        local = self.at(address)
        if local is None:
            return DropReason.NOT_LOCAL
        return local if local.state is PortState.ACTIVE else DropReason.PORT_NOT_ACTIVE

    def hold(self, address: Address, port: int | None) -> None:
        """An address that moves between endpoints is this port's from now on, or no port's of this host."""
        before = self._holder.pop(address, None)
        if port is not None:
            self._holder[address] = port
        for each in {before, port} - {None}:
            endpoint = self._by_port.get(each or 0)
            if endpoint is not None:
                self._insert(endpoint)

    def held(self) -> list[tuple[Address, Endpoint | None]]:
        """Addresses that were taken, and by whom; None where that port is gone, or may not have it any more."""
        return [(address, self.at(address)) for address in sorted(self._holder)]

    def all(self) -> list[Endpoint]:
        """Every endpoint, in port order."""
        return [self._by_port[p] for p in sorted(self._by_port)]

    def in_subnet(self, subnet: SubnetId) -> list[Endpoint]:
        """Local endpoints of a subnet, in port order."""
        there = self._by_subnet.get(subnet, {})
        return [there[port] for port in sorted(there)]

    def subnets(self, cell: int) -> list[SubnetId]:
        """Subnets of a cell that have a port here, in order."""
        return sorted(subnet for subnet in self._by_subnet if subnet.cell == cell)
