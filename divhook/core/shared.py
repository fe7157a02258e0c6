"""Addresses that move between endpoints: VRRP's, or any that a guest announces by gratuitous ARP.

An endpoint may be allowed addresses besides its own; several endpoints, on any hosts, may be allowed the same one.

    gratuitous ARP (RFC 5227 §3, RFC 826) of an endpoint that is allowed it    it holds the address from now on: a new
                                                                             claim, announced; who had it gives it up
    the answer to the router's question, which a port that becomes active   the same, while nobody is known to hold
    is asked for each address                                               it: so a restarted agent finds it again

The newest gratuitous ARP wins, among endpoints that are allowed the address. Invariants: nobody else's ARP moves it; a
packet from it passes only at the port that holds it; a port that is not active holds none.
"""

from divhook.core.addressing import ZERO_ADDRESS, Address, AddressPlan, rmac
from divhook.core.discovery import Discovery, Yielded
from divhook.core.endpoint import Endpoint, PortState, PortTable
from divhook.core.outputs import Output, ToGuest
from divhook.core.reasons import DropReason
from divhook.core.router import TokenBucket
from divhook.core.wire.arp import ARP_REPLY, ARP_REQUEST, Arp
from divhook.core.wire.ethernet import ETHERTYPE_ARP, Ethernet

MOVES_PER_S = 5.0
MOVES_BURST = 20.0
"""Claims that one port may make: each is announced to all hosts, three times."""
ANSWER_S = 1.0
"""A question is answered within this time, or not."""


class SharedAddresses:
    """Of this host's ports: who takes what, and the claims for it."""

    def __init__(self, plan: AddressPlan, ports: PortTable, discovery: Discovery) -> None:
        self._plan = plan
        self._ports = ports
        self._discovery = discovery
        self._moves = TokenBucket(MOVES_PER_S, MOVES_BURST)
        self._asked: dict[int, tuple[bytes, tuple[Address, ...], float]] = {}  # vmac, addresses, when

    def forget_port(self, port: int) -> None:
        """A port is gone."""
        self._moves.forget(port)

    def heard(self, endpoint: Endpoint, arp: Arp, now: float) -> DropReason | None:
        """ARP of an active port from an address that it may take. A reason where it moves addresses too often."""
        address = arp.spa
        if address in endpoint.held or not (arp.tpa == address or self._answered(endpoint, arp, now)):
            return None
        own = self._discovery.claim(endpoint.address) if endpoint.address is not None else None
        if own is None:
            return DropReason.PORT_NOT_ACTIVE
        if not self._moves.take(endpoint.port, now):
            return DropReason.RESOLVE_RATE_PORT
        self._discovery.take(address, endpoint.vmac, own.guest_id, own.identity, now)
        self._ports.hold(address, endpoint.port)
        return None

    def _answered(self, endpoint: Endpoint, arp: Arp, now: float) -> bool:
        """Whether it answers a question, and nobody is known to hold the address."""
        asked = self._asked.get(endpoint.port)
        if asked is None or now > asked[2] + ANSWER_S:
            return False
        if arp.operation != ARP_REPLY or arp.tpa != self._plan.router(endpoint.subnet):
            return False
        entry = self._discovery.neighbours.get(arp.spa)
        return self._ports.at(arp.spa) is None and (entry is None or entry.found is None)

    def yielded(self, event: Yielded) -> None:
        """Another host's guest has taken it."""
        self._ports.hold(event.address, None)

    def refresh(self, now: float) -> list[Output]:
        """Ports may have changed: give up what they hold no more, follow identities, ask new ones what they hold."""
        for address, holder in self._ports.held():
            claim = self._discovery.claim(address)
            own = self._discovery.claim(holder.address) if holder is not None and holder.address is not None else None
            if holder is None or own is None:
                self._ports.hold(address, None)
                self._discovery.withdraw(address, now)
            elif claim is not None and claim.identity != own.identity:
                self._discovery.take(address, holder.vmac, own.guest_id, own.identity, now)
        out: list[Output] = []
        while self._ports.unasked:
            port = self._ports.unasked.pop()
            endpoint = self._ports.port(port)
            if endpoint is None or endpoint.state is not PortState.ACTIVE:
                self._asked.pop(port, None)
            elif self._asked.get(port, ())[:2] != (endpoint.vmac, endpoint.allowed):
                self._asked[port] = (endpoint.vmac, endpoint.allowed, now)
                out += [self._question(endpoint, address) for address in endpoint.allowed]
        return out

    def _question(self, endpoint: Endpoint, address: Address) -> ToGuest:
        mac = rmac(endpoint.subnet)
        request = Arp(ARP_REQUEST, mac, self._plan.router(endpoint.subnet), bytes(6), address)
        return ToGuest(endpoint.port, Ethernet(endpoint.vmac, mac, ETHERTYPE_ARP, request.emit()).emit())


def may_be_shared(endpoint: Endpoint, arp: Arp) -> bool:
    """Whether the sender speaks from an address that it may take."""
    return arp.spa not in (ZERO_ADDRESS, endpoint.address) and arp.spa in endpoint.allowed
