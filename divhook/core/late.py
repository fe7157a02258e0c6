"""Packets for an endpoint that has moved: what its former host does with them, and how its new one takes them.

    former host   sender known where it speaks from, same cell, it fits ─▶ to_wire, to the new host, src := pmac
                  else ─▶ to_new_host, over the hand-over channel: the new host checks who sent it
    new host      from the former host ─▶ the sender's claim, which that has checked

Nothing is sent on twice: what comes back from the new host goes over the channel, or is MOVE_RETURNS.
"""

from collections.abc import Callable

from divhook.core.addressing import Address, AddressPlan, Mac
from divhook.core.discovery import Discovery
from divhook.core.endpoint import Endpoint
from divhook.core.outputs import Output, ToNewHost, ToWire
from divhook.core.reasons import DropReason
from divhook.core.router import Topology
from divhook.core.wire.discovery import Claim
from divhook.core.wire.ethernet import ipv4_frame
from divhook.core.wire.ipv4 import Header


class LatePackets:
    """One host's. holder: the endpoint here that holds an address. heard: is told of a sender whose packet went on."""

    def __init__(
        self,
        plan: AddressPlan,
        pmac: Mac,
        topology: Topology,
        discovery: Discovery,
        holder: Callable[[Address], Endpoint | None],
        heard: Callable[[Address], None],
    ) -> None:
        self.former: dict[Address, Mac] = {}  # endpoints here that came with a hand-over, and wherefrom
        self.moved: dict[Address, Mac] = {}  # endpoints that have moved away with a hand-over, and whereto
        self._plan = plan
        self._pmac = pmac
        self._topology = topology
        self._discovery = discovery
        self._holder = holder
        self._heard = heard

    def from_wire(self, host: Mac, header: Header, packet: bytes, now: float, out: list[Output]) -> DropReason | None:
        """For nobody here; but for one that has moved away, its new host has the packet from us. None: sent on."""
        there = self.moved.get(header.destination)
        if there is None:
            return DropReason.NOT_LOCAL
        if host == self._pmac:
            return DropReason.MOVE_RETURNS
        if host != there and self._by_our_word(host, header, there, now):
            self._heard(header.source)
            out.append(ToWire(ipv4_frame(there, self._pmac, packet)))
            return None
        out.append(ToNewHost(header.destination, host, packet))
        return None

    def sender(self, host: Mac, header: Header) -> Claim | None:
        """The sender's claim, where the receiver's former host has sent a packet on: that has checked who sent it."""
        if self.former.get(header.destination) != host or self._holder(header.source) is not None:
            return None
        entry = self._discovery.neighbours.get(header.source)
        found = entry.found if entry is not None else None
        return found.claim if found is not None and found.claim.host != host else None

    def _by_our_word(self, host: Mac, header: Header, there: Mac, now: float) -> bool:
        """Whether the new host is to take a late packet as it is: it comes from where its sender is known to be."""
        sender, moved = (self._discovery.neighbours.get(a) for a in (header.source, header.destination))
        source, target = self._plan.locate(header.source), self._plan.locate(header.destination)
        facts = self._topology.get(target) if target is not None else None
        if sender is None or moved is None or moved.found is None or source is None or target is None or facts is None:
            return False
        return (
            moved.found.claim.host == there
            and source.cell == target.cell
            and self._holder(header.source) is None
            and sender.speaks_from(host, now)
            and header.total_length <= facts.mtu
        )
