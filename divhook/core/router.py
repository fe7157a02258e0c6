"""The virtual router of every subnet: what it answers by itself.

It exists on each host, has the first address of the subnet and a MAC that is the same everywhere, and does what
RFC 1812 asks of a router that guests can see: ARP for its address, ping, time exceeded, host and network unreachable,
fragmentation needed, port unreachable for its own address. It serves its own host's guests only: every answer goes
straight back into the port that caused it. To the wire go errors alone, on packets of externals to these guests.

ICMP errors are limited per port (RFC 1812 §4.3.2.8); a guest that provokes more gets silence: the methods that send
an error return ICMP_RATE_LIMITED then, for the packet to be counted under, and None otherwise.
"""

from dataclasses import dataclass
from functools import partial

from divhook.core.addressing import Address, AddressPlan, Mac, SubnetId, rmac
from divhook.core.dhcp import SubnetService
from divhook.core.endpoint import Endpoint
from divhook.core.outputs import Output, ToGuest, ToWire
from divhook.core.reasons import DropReason
from divhook.core.wire import icmp
from divhook.core.wire.ethernet import ETHERTYPE_IPV4, Ethernet
from divhook.core.wire.ipv4 import Header, Protocol

ICMP_ERRORS_PER_S = 50.0
ICMP_ERROR_BURST = 50.0


@dataclass(frozen=True, slots=True)
class SubnetFacts:
    """What the data plane needs to know of a subnet: MTU in bytes of IP packet, and what DHCP hands out.

    group_pps: broadcast and multicast frames/s that a port of it may send; None: no limit of their own.
    groups_routed: multicast of this subnet goes to members in all subnets of the cell.
    translated: what its guests send outside gets another source address (NAT).
    """

    mtu: int
    service: SubnetService
    group_pps: int | None = 200
    groups_routed: bool = False
    translated: bool = False


Topology = dict[SubnetId, SubnetFacts]
"""The subnets that exist in the cells this host knows."""


class TokenBucket:
    """At most `burst` at once and `rate` per second after that; keyed, at most `bound` keys (then all share one)."""

    def __init__(self, rate: float, burst: float, bound: int = 4096) -> None:
        self._rate = rate
        self._burst = burst
        self._bound = bound
        self._levels: dict[object, tuple[float, float]] = {}

    def take(self, key: object, now: float) -> bool:
        """Whether one more is allowed now."""
        if key not in self._levels and len(self._levels) >= self._bound:
            key = None
        level, since = self._levels.get(key, (self._burst, now))
        level = min(self._burst, level + (now - since) * self._rate)
        allowed = level >= 1
        self._levels[key] = (level - 1 if allowed else level, now)
        return allowed

    def forget(self, key: object) -> None:
        """The key is gone (its port was removed)."""
        self._levels.pop(key, None)


class Router:
    """Builds the router's own packets for one host's guests."""

    def __init__(self, plan: AddressPlan) -> None:
        self._plan = plan
        self._errors = TokenBucket(ICMP_ERRORS_PER_S, ICMP_ERROR_BURST)

    def forget_port(self, port: int) -> None:
        """A port is gone."""
        self._errors.forget(port)

    def to_guest(self, endpoint: Endpoint, packet: bytes) -> ToGuest:
        """A packet of the router's own, in a frame for the guest."""
        frame = Ethernet(endpoint.vmac, rmac(endpoint.subnet), ETHERTYPE_IPV4, packet).emit()
        return ToGuest(endpoint.port, frame)

    def receive(self, endpoint: Endpoint, header: Header, packet: bytes, now: float, out: list[Output]) -> DropReason:
        """A packet to a router address of the endpoint's cell. Every one ends here; answers go to `out`."""
        if header.protocol == Protocol.ICMP:
            reply = icmp.echo_reply(packet)
            if reply is not None:
                out.append(self.to_guest(endpoint, reply))
                return DropReason.CONSUMED
        elif header.protocol == Protocol.UDP and not header.is_fragment:
            limited = self._error(endpoint, header, packet, now, out, icmp.port_unreachable, header.destination)
            return limited or DropReason.ROUTER_SERVICE
        return DropReason.ROUTER_SERVICE

    def time_exceeded(
        self, endpoint: Endpoint, header: Header, packet: bytes, now: float, out: list[Output]
    ) -> DropReason | None:
        """The TTL ran out at the one hop there is."""
        return self._error(endpoint, header, packet, now, out, icmp.time_exceeded)

    def host_unreachable(
        self, endpoint: Endpoint, header: Header, packet: bytes, now: float, out: list[Output]
    ) -> DropReason | None:
        """Nobody holds the destination (RFC 1812 §5.2.7.1)."""
        return self._error(endpoint, header, packet, now, out, icmp.host_unreachable)

    def net_unreachable(
        self, endpoint: Endpoint, header: Header, packet: bytes, now: float, out: list[Output]
    ) -> DropReason | None:
        """No such subnet, or no way out of the virtual space."""
        return self._error(endpoint, header, packet, now, out, icmp.net_unreachable)

    def too_big(
        self, endpoint: Endpoint, header: Header, packet: bytes, mtu: int, now: float, out: list[Output]
    ) -> DropReason | None:
        """DF is set and the next subnet's MTU is smaller (RFC 1191)."""
        return self._error(endpoint, header, packet, now, out, partial(icmp.fragmentation_needed, mtu=mtu))

    def tell_external(
        self,
        local: Endpoint,
        header: Header,
        packet: bytes,
        mac: Mac,
        pmac: Mac,
        now: float,
        out: list[Output],
        mtu: int | None = None,
    ) -> DropReason | None:
        """The same errors for an external whose packet to a guest can't go on: back to the MAC it came from.

        mtu: fragmentation needed; None: the TTL ran out. Limited per guest, as the guest's own.
        """
        if not icmp.may_answer_with_error(header, packet):
            return None
        if not self._errors.take(local.port, now):
            return DropReason.ICMP_RATE_LIMITED
        build = icmp.time_exceeded if mtu is None else partial(icmp.fragmentation_needed, mtu=mtu)
        error = build(packet, self._plan.router(local.subnet), header.source)
        out.append(ToWire(Ethernet(mac, pmac, ETHERTYPE_IPV4, error).emit()))
        return None

    def _error(
        self,
        endpoint: Endpoint,
        header: Header,
        packet: bytes,
        now: float,
        out: list[Output],
        build: icmp.ErrorBuilder,
        speaker: Address | None = None,
    ) -> DropReason | None:
        if not icmp.may_answer_with_error(header, packet):
            return None
        if not self._errors.take(endpoint.port, now):
            return DropReason.ICMP_RATE_LIMITED
        speaker = speaker or self._plan.router(endpoint.subnet)
        out.append(self.to_guest(endpoint, build(packet, speaker, header.source)))
        return None
