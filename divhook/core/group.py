"""Broadcast and multicast: one frame on the wire, one copy for every local port that is meant, none for the sender.

    from_guest   ──▶ the other ports of its subnet here
                 ──▶ ToWire, once: group MAC of the subnet, source own pmac
    from_wire    ──▶ the ports of the source's subnet here, once the source check has passed

A guest gets what it would get on a LAN of its own: destination ff:ff:ff:ff:ff:ff, or the MAC of the IPv4 group;
source the sender's vmac; the packet as it was sent, TTL included. The receivers follow from the source address, which
anti-spoof or the source check has made sure of, and never from a MAC of the frame: so nothing leaves the subnet.

    broadcast            every port of the subnet; another subnet's is not forwarded (RFC 2644)
    224.0.0.0/24         every port of the subnet, whatever its TTL
    any other group      its members (igmp.py)

Where the cell's file says `multicast: cell`, the virtual router forwards groups to members in the cell's other
subnets: TTL-1, from the rmac of the member's subnet. Not forwarded: TTL 1, 224.0.0.0/24, and 239.255.0.0/16, the local
scope of RFC 2365 §6.1. The reverse path is right by the source check, which is by host and not by way. On the wire it
is one frame still, to the cell's group MAC; the host that delivers it decrements.

Where ports have a policy, each copy is asked about: egress of a sender that is here, ingress of the receiver. The frame
for the wire is asked about as if it were for an endpoint of the sender's own identity: whom it reaches is not known.

Nobody is told of an error: RFC 1122 §3.2.2 forbids it for what was sent to a group.
"""

from collections.abc import Iterator, Sequence

from divhook.core.addressing import (
    ALL_HOSTS_GROUP,
    BROADCAST_MAC,
    LIMITED_BROADCAST,
    Address,
    AddressPlan,
    Mac,
    SubnetId,
    cell_group_mac,
    group_mac,
    rmac,
)
from divhook.core.endpoint import Endpoint, PortState, PortTable
from divhook.core.guard import Guard, Unsure
from divhook.core.igmp import LINK_LOCAL_GROUPS, Memberships, link_address
from divhook.core.outputs import Drop, Output, ToGuest, ToWire
from divhook.core.reasons import DropReason
from divhook.core.router import Topology
from divhook.core.verdict import Relation
from divhook.core.wire.ethernet import ipv4_frame
from divhook.core.wire.ipv4 import Header, Protocol, decrement_ttl, fragment

LOCAL_SCOPE = b"\xef\xff"
"""239.255.0.0/16: may not cross a boundary of any kind (RFC 2365 §6.1)."""


def is_multicast(address: Address) -> bool:
    """224.0.0.0/4."""
    return address[0] >> 4 == 14


def link_destination(address: Address) -> Mac:
    """The MAC that frames to a broadcast or multicast address bear."""
    return link_address(address) if is_multicast(address) else BROADCAST_MAC


class Groups:
    """Who of this host gets what is sent to all, or to a group."""

    def __init__(self, plan: AddressPlan, pmac: Mac, ports: PortTable, topology: Topology, guard: Guard) -> None:
        self._guard = guard
        self._plan = plan
        self._pmac = pmac
        self._ports = ports
        self._topology = topology
        self.members = Memberships(plan, ports)

    def from_guest(
        self, endpoint: Endpoint, header: Header, packet: bytes, group: bool, now: float, out: list[Output]
    ) -> DropReason | None:
        """A packet of an active port to a group address; group: its frame went to a group MAC, as it must.

        Raises WireError for IGMP that no host says.
        """
        if not group:
            return DropReason.L2_MULTICAST_MISMATCH
        if header.protocol == Protocol.IGMP:
            return self.members.heard(endpoint, header, packet, now)
        if self._stray(endpoint.subnet, header):
            return DropReason.DIRECTED_BROADCAST
        facts = self._topology.get(endpoint.subnet)
        if facts is None:
            return DropReason.PORT_NOT_ACTIVE
        if header.total_length > facts.mtu:
            return DropReason.FRAGMENTATION_NEEDED
        routed = self._routed(endpoint.subnet, header)
        copies = [
            _copy(receiver, header, endpoint.vmac, packet)
            for receiver in self._receivers(endpoint.subnet, header.destination)
            if receiver.port != endpoint.port
        ]
        if routed:
            copies.extend(self._beyond(endpoint.subnet, header, packet))
        out.extend(self._let_through(endpoint, header, packet, copies))
        if self._guard.check_group(endpoint, header, packet, True, endpoint.identity, Relation.SUBNET) is not None:
            return DropReason.POLICY_DENIED
        target = cell_group_mac(endpoint.subnet.cell) if routed else group_mac(endpoint.subnet)
        out.append(ToWire(ipv4_frame(target, self._pmac, packet)))
        return None

    def _let_through(
        self, sender: Endpoint, header: Header, packet: bytes, copies: Sequence[ToGuest]
    ) -> Iterator[Output]:
        """Those copies that the policies of both ends allow; a drop for each of the others."""
        denied: set[int] = set()
        for copy in copies:
            receiver = self._ports.port(copy.port)
            if receiver is None or receiver.port in denied:
                continue
            relation = Relation.SUBNET if receiver.subnet == sender.subnet else Relation.CELL
            for end, other in ((sender, receiver), (receiver, sender)):
                verdict = self._guard.check_group(end, header, packet, end is sender, other.identity, relation)
                if verdict is not None:
                    denied.add(receiver.port)
                    yield Drop(_reason(verdict), receiver.port, packet)
                    break
            else:
                yield copy

    def asker(self, source: SubnetId, header: Header) -> Endpoint | DropReason:
        """A port that is to get a group frame with a source in a subnet: for it the source is asked for.

        Else why there is none.
        """
        if header.protocol == Protocol.IGMP:
            return DropReason.IGMP_REFUSED  # each host asks its own ports
        if self._stray(source, header):
            return DropReason.DIRECTED_BROADCAST
        subnets = self._ports.subnets(source.cell) if self._routed(source, header) else [source]
        for subnet in (source, *subnets):
            for receiver in self._receivers(subnet, header.destination):
                return receiver
        return DropReason.NO_MEMBER

    def from_wire(
        self, source: SubnetId, header: Header, vmac: Mac, identity: int, packet: bytes
    ) -> Sequence[Output] | DropReason | Unsure:
        """The copies for local ports of a group frame whose source has been checked, or why there are none.

        vmac, identity: the sender's. A drop takes the place of a copy that a port's policy denies.
        """
        refused = self.asker(source, header)
        if isinstance(refused, DropReason):
            return refused
        near = self._receivers(source, header.destination)
        copies = [_copy(receiver, header, vmac, packet) for receiver in near if header.total_length <= receiver.mtu]
        if self._routed(source, header):
            copies.extend(self._beyond(source, header, packet))
        out: list[Output] = []
        for copy in copies:
            receiver = self._ports.port(copy.port)
            assert receiver is not None
            relation = Relation.SUBNET if receiver.subnet == source else Relation.CELL
            verdict = self._guard.check_group(receiver, header, packet, False, identity, relation)
            if isinstance(verdict, Unsure):
                return verdict
            out.append(copy if verdict is None else Drop(verdict, receiver.port, packet))
        return out or DropReason.FRAGMENTATION_NEEDED

    def listened(self) -> set[Mac]:
        """Group MACs that this host must hear: all hosts', and those of ports that are not fenced."""
        heard = {ALL_HOSTS_GROUP}
        for endpoint in self._ports.all():
            if endpoint.state is not PortState.FENCED:
                heard |= self.of_subnet(endpoint.subnet)
        return heard

    def of_subnet(self, subnet: SubnetId) -> set[Mac]:
        """Group MACs that a host with a port in a subnet must hear for it."""
        facts = self._topology.get(subnet)
        routed = facts is not None and facts.groups_routed
        return {group_mac(subnet), cell_group_mac(subnet.cell)} if routed else {group_mac(subnet)}

    # ------------------------------------------------------------------ inside

    def _stray(self, source: SubnetId, header: Header) -> bool:
        """Whether it is another subnet's broadcast."""
        destination = header.destination
        if is_multicast(destination) or destination == LIMITED_BROADCAST:
            return False
        return self._plan.locate(destination) != source

    def _routed(self, source: SubnetId, header: Header) -> bool:
        """Whether the router forwards it beyond its subnet."""
        facts, destination = self._topology.get(source), header.destination
        if facts is None or not facts.groups_routed or header.ttl <= 1 or not is_multicast(destination):
            return False
        return not destination.startswith((LINK_LOCAL_GROUPS, LOCAL_SCOPE))

    def _receivers(self, subnet: SubnetId, destination: Address) -> list[Endpoint]:
        """Active ports of a subnet that take a destination, in port order, the sender perhaps among them."""
        active = [e for e in self._ports.in_subnet(subnet) if e.state is PortState.ACTIVE]
        if not is_multicast(destination) or destination.startswith(LINK_LOCAL_GROUPS):
            return active
        return [e for e in active if self.members.is_member(e.port, destination)]

    def _beyond(self, source: SubnetId, header: Header, packet: bytes) -> Iterator[ToGuest]:
        """Copies for members in the other subnets of the cell; what may not be cut to their MTU is dropped for them."""
        forwarded = decrement_ttl(packet)
        for subnet in self._ports.subnets(source.cell):
            if subnet == source:
                continue
            for receiver in self._receivers(subnet, header.destination):
                if header.total_length <= receiver.mtu:
                    yield _copy(receiver, header, rmac(subnet), forwarded)
                elif not header.dont_fragment:
                    for piece in fragment(forwarded, receiver.mtu):
                        yield _copy(receiver, header, rmac(subnet), piece)


def _reason(verdict: DropReason | Unsure) -> DropReason:
    return verdict if isinstance(verdict, DropReason) else DropReason.IDENTITY_UNKNOWN


def _copy(receiver: Endpoint, header: Header, source: Mac, packet: bytes) -> ToGuest:
    return ToGuest(receiver.port, ipv4_frame(link_destination(header.destination), source, packet))
