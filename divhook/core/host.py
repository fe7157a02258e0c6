"""Between guests and the host that they are on: the pipeline's part for packets to and from the host's own addresses.

    from_guest   to an address of this host ─ policy: a rule for `host` ─▶ to_host, into the host's own stack
    from_host    from an address of this host ─ port here? ─ policy: a reply, or a rule ─▶ to_guest, src := rmac

The host is the last hop, as the router of the guest's subnet is: its TTL is not decremented (RFC 1812 §5.2.1.1), and
traceroute shows the host alone. What its stack sees is the guest's own address, so that its firewall and its logs do.
Default deny: without a rule that says `host` no packet goes either way; a rule for all that is outside says nothing of
it. What the host would only forward, from whomever, is no packet of the host.
"""

from divhook.core import validate
from divhook.core.endpoint import Endpoint, PortTable
from divhook.core.external import Externals
from divhook.core.guard import Guard
from divhook.core.outputs import Output, ToHost
from divhook.core.reasons import DropReason
from divhook.core.router import Router
from divhook.core.wire.ipv4 import Header, header_untrusted


class HostDoor:
    """One host's traffic with its own guests."""

    def __init__(self, ports: PortTable, router: Router, guard: Guard, externals: Externals) -> None:
        self._ports = ports
        self._router = router
        self._guard = guard
        self._externals = externals

    def from_guest(
        self, endpoint: Endpoint, header: Header, packet: bytes, now: float, out: list[Output]
    ) -> DropReason | None:
        """A guest's packet to an address of the host. None: sent."""
        if self._guard.policies.port(endpoint) is None:
            return DropReason.HOST_SERVICE
        verdict = self._guard.check(endpoint, header, packet, True, 0, now)
        if verdict is not None:
            return verdict if verdict is DropReason.FLOW_UNKNOWN else DropReason.HOST_SERVICE
        out.append(ToHost(packet))
        return None

    def from_host(self, packet: bytes, now: float, out: list[Output]) -> DropReason | None:
        """A packet that the host's stack sends to a guest. None: delivered."""
        header = header_untrusted(packet)
        packet = packet[: header.total_length]
        if not self._externals.is_own(header.source):
            return DropReason.HOST_FORWARDED
        if validate.touches_dhcp(validate.udp_ports(header, packet)):
            return DropReason.ROGUE_DHCP
        local = self._ports.active_at(header.destination)
        if isinstance(local, DropReason):
            return local
        if self._guard.policies.port(local) is None:
            return DropReason.POLICY_DENIED
        if header.total_length > local.mtu:
            return DropReason.FRAGMENTATION_NEEDED  # the route that led here has the guest's MTU
        verdict = self._guard.check(local, header, packet, False, 0, now)
        if verdict is not None:
            return verdict if isinstance(verdict, DropReason) else DropReason.IDENTITY_UNKNOWN
        out.append(self._router.to_guest(local, packet))
        return None
