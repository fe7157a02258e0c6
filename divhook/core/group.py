"""Broadcast and multicast: one frame on the wire, one copy for every local port that is meant, none for the sender.

    from_guest   ──▶ the other ports of its subnet here
                 ──▶ ToWire, once: group MAC of the subnet, source own pmac
    from_wire    ──▶ the ports of the source's subnet here, once the source check has passed

A guest gets what it would get on a LAN of its own: destination ff:ff:ff:ff:ff:ff, or the MAC of the IPv4 group
(RFC 1112 §6.4); source the sender's vmac; the packet as it was sent, TTL included. Nothing of it leaves the subnet:
the receivers follow from the source address, which anti-spoof or the source check has made sure of, and never from a
MAC of the frame. A broadcast of another subnet is not forwarded (RFC 2644). 224.0.0.0/24 is everybody's.

Nobody is told of an error: RFC 1122 §3.2.2 forbids it for what was sent to a group.
"""

from collections.abc import Sequence

from divhook.core.addressing import (
    BROADCAST_MAC,
    LIMITED_BROADCAST,
    Address,
    AddressPlan,
    Mac,
    SubnetId,
    group_mac,
)
from divhook.core.endpoint import Endpoint, PortState, PortTable
from divhook.core.outputs import Output, ToGuest, ToWire
from divhook.core.reasons import DropReason
from divhook.core.router import Topology
from divhook.core.wire.ipv4 import Header, Protocol

LINK_LOCAL_GROUPS = b"\xe0\x00\x00"
"""224.0.0.0/24: never routed, and without membership (RFC 3171 §3, RFC 4541 §2.1.2)."""


def is_multicast(address: Address) -> bool:
    """224.0.0.0/4."""
    return address[0] >> 4 == 14


def link_destination(address: Address) -> Mac:
    """The MAC that frames to a broadcast or multicast address bear (RFC 1112 §6.4)."""
    if not is_multicast(address):
        return BROADCAST_MAC
    return bytes((1, 0, 0x5E, address[1] & 0x7F, address[2], address[3]))


class Groups:
    """Who of this host gets what is sent to all, or to a group."""

    def __init__(self, plan: AddressPlan, pmac: Mac, ports: PortTable, topology: Topology) -> None:
        self._plan = plan
        self._pmac = pmac
        self._ports = ports
        self._topology = topology

    def from_guest(
        self, endpoint: Endpoint, header: Header, packet: bytes, group: bool, out: list[Output]
    ) -> DropReason | None:
        """A packet of an active port to a group address; group: its frame went to a group MAC, as it must."""
        if not group:
            return DropReason.L2_MULTICAST_MISMATCH
        reason = self._refused(endpoint.subnet, header)
        if reason is not None:
            return reason
        facts = self._topology.get(endpoint.subnet)
        if facts is None:
            return DropReason.PORT_NOT_ACTIVE
        if header.total_length > facts.mtu:
            return DropReason.FRAGMENTATION_NEEDED
        for receiver in self.receivers(endpoint.subnet, header.destination):
            if receiver.port != endpoint.port:
                out.append(self.to_guest(receiver, header, endpoint.vmac, packet))
        frame = group_mac(endpoint.subnet) + self._pmac + b"\x08\x00" + packet
        out.append(ToWire(frame))
        return None

    def from_wire(self, source: SubnetId, header: Header) -> Sequence[Endpoint] | DropReason:
        """Ports that are to get a group frame whose source address is in a subnet, or why none."""
        reason = self._refused(source, header)
        if reason is not None:
            return reason
        receivers = self.receivers(source, header.destination)
        if not receivers:
            return DropReason.NO_MEMBER
        fitting = [receiver for receiver in receivers if header.total_length <= receiver.mtu]
        return fitting or DropReason.FRAGMENTATION_NEEDED

    def receivers(self, source: SubnetId, destination: Address) -> list[Endpoint]:
        """Active ports of the sender's subnet that take a destination, in port order, the sender perhaps among them."""
        return [e for e in self._ports.in_subnet(source) if e.state is PortState.ACTIVE]

    def to_guest(self, receiver: Endpoint, header: Header, vmac: Mac, packet: bytes) -> ToGuest:
        """The packet in a frame for one of them."""
        return ToGuest(receiver.port, link_destination(header.destination) + vmac + b"\x08\x00" + packet)

    def _refused(self, source: SubnetId, header: Header) -> DropReason | None:
        destination = header.destination
        if is_multicast(destination):
            local = destination.startswith(LINK_LOCAL_GROUPS) and header.protocol != Protocol.IGMP
            return None if local else DropReason.MULTICAST_UNSUPPORTED
        if destination != LIMITED_BROADCAST and self._plan.locate(destination) != source:
            return DropReason.DIRECTED_BROADCAST
        return None
