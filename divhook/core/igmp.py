"""Which port of this host is in which group: IGMP snooping (RFC 4541), with the virtual router as the querier.

    port becomes active          ──▶ general query, again after STARTUP_QUERY_INTERVAL_S, then every QUERY_INTERVAL_S
    report                       ──▶ member for GROUP_MEMBERSHIP_S
    leave, or sources blocked    ──▶ LAST_MEMBER_QUERY_COUNT queries for the group, LAST_MEMBER_QUERY_INTERVAL_S apart;
                                     no report by then: no member

Each host asks its own ports, in frames to that port alone, and tells no other host: the subnet's group MAC brings
every group frame to each host of the subnet, and a host without a member drops it. No IGMP crosses to another guest or
to the wire, so no host suppresses its report because another sent one (RFC 4541 §2.1.1). A guest that asks itself is
refused: there is one querier. Times are RFC 3376 §8's defaults.
"""

from dataclasses import dataclass, field

from divhook.core.addressing import Address, AddressPlan, Mac, SubnetId, rmac
from divhook.core.discovery.timers import Timers
from divhook.core.endpoint import Endpoint, PortState, PortTable
from divhook.core.outputs import Output, ToGuest
from divhook.core.reasons import DropReason
from divhook.core.wire.ethernet import ipv4_frame
from divhook.core.wire.igmp import ROUTER_ALERT, parse_igmp_untrusted, query
from divhook.core.wire.ipv4 import Header, Ipv4, Protocol

ROBUSTNESS = 2
QUERY_INTERVAL_S = 125
QUERY_RESPONSE_INTERVAL_S = 10.0
GROUP_MEMBERSHIP_S = ROBUSTNESS * QUERY_INTERVAL_S + QUERY_RESPONSE_INTERVAL_S
STARTUP_QUERY_INTERVAL_S = QUERY_INTERVAL_S / 4
STARTUP_QUERY_COUNT = ROBUSTNESS
LAST_MEMBER_QUERY_INTERVAL_S = 1.0
LAST_MEMBER_QUERY_COUNT = ROBUSTNESS
MAX_GROUPS_PER_PORT = 64
"""Linux takes 20 for a socket (igmp_max_memberships)."""
ALL_SYSTEMS: Address = bytes((224, 0, 0, 1))
LINK_LOCAL_GROUPS = b"\xe0\x00\x00"
"""224.0.0.0/24: never routed, and without membership (RFC 3171 §3, RFC 4541 §2.1.2)."""

Key = tuple[SubnetId, Address]


def link_address(group: Address) -> Mac:
    """The MAC of an IPv4 group (RFC 1112 §6.4)."""
    return bytes((1, 0, 0x5E, group[1] & 0x7F, group[2], group[3]))


@dataclass(slots=True)
class _Port:
    """A port that is asked. groups: members, with the questions still to come before one ends; None: none."""

    subnet: SubnetId
    vmac: Mac
    queries: int = 0
    groups: dict[Address, int | None] = field(default_factory=dict)


class Memberships:
    """Of all ports of this host. `changed` has what is to be looked at again: the owner empties it."""

    def __init__(self, plan: AddressPlan, ports: PortTable) -> None:
        self._plan = plan
        self._table = ports
        self._ports: dict[int, _Port] = {}
        self._timers = Timers()
        self._out: list[Output] = []
        self.changed: set[Key] = set()

    # ------------------------------------------------------------------ look-ups

    def is_member(self, port: int, group: Address) -> bool:
        """Whether a port gets a group."""
        known = self._ports.get(port)
        return known is not None and group in known.groups

    def groups(self) -> dict[Key, list[int]]:
        """Every group that has members, and their ports."""
        found: dict[Key, list[int]] = {}
        for port, known in self._ports.items():
            for group in known.groups:
                found.setdefault((known.subnet, group), []).append(port)
        return found

    def of(self, port: int) -> list[Address]:
        """Groups of a port."""
        known = self._ports.get(port)
        return sorted(known.groups) if known is not None else []

    # ------------------------------------------------------------------ what guests say

    def heard(self, endpoint: Endpoint, header: Header, packet: bytes, now: float) -> DropReason:
        """IGMP of an active port: it ends here. Raises WireError(IGMP_REFUSED)."""
        if header.is_fragment:
            return DropReason.IGMP_REFUSED
        self.ports_changed(now)
        known = self._ports.get(endpoint.port)
        if known is None:
            return DropReason.PORT_NOT_ACTIVE
        reason = DropReason.CONSUMED
        for wish in parse_igmp_untrusted(packet[header.header_length :]):
            if wish.group.startswith(LINK_LOCAL_GROUPS):
                continue
            if not wish.wanted:
                if known.groups.get(wish.group, 0) is None:
                    known.groups[wish.group] = LAST_MEMBER_QUERY_COUNT
                    self._ask_again(endpoint.port, wish.group, now)
            elif wish.group in known.groups or len(known.groups) < MAX_GROUPS_PER_PORT:
                self._join(endpoint.port, known, wish.group, now)
            else:
                reason = DropReason.IGMP_REFUSED
        return reason

    def restore(self, port: int, group: Address, now: float) -> None:
        """A port was a member to an agent before this one."""
        self.ports_changed(now)
        known = self._ports.get(port)
        if known is not None and len(known.groups) < MAX_GROUPS_PER_PORT:
            self._join(port, known, group, now)

    def _join(self, port: int, known: _Port, group: Address, now: float) -> None:
        if group not in known.groups:
            self.changed.add((known.subnet, group))
        known.groups[group] = None
        self._timers.set(("group", port, group), now + GROUP_MEMBERSHIP_S, lambda _: self._end(port, group))

    def _end(self, port: int, group: Address) -> None:
        known = self._ports[port]
        del known.groups[group]
        self.changed.add((known.subnet, group))

    # ------------------------------------------------------------------ what is asked

    def ports_changed(self, now: float) -> None:
        """Ports have come, gone, or changed: who is new is asked, who is another has no groups."""
        if not self._table.touched:
            return
        self._table.touched.clear()
        active = {e.port: e for e in self._table.all() if e.state is PortState.ACTIVE}
        for port, known in list(self._ports.items()):
            endpoint = active.get(port)
            if endpoint is None or (endpoint.subnet, endpoint.vmac) != (known.subnet, known.vmac):
                self._forget(port)
        for port, endpoint in active.items():
            if port not in self._ports:
                self._ports[port] = _Port(endpoint.subnet, endpoint.vmac)
                self._ask_all(port, now)

    def _forget(self, port: int) -> None:
        known = self._ports.pop(port)
        self._timers.cancel(("general", port))
        for group in known.groups:
            self._timers.cancel(("group", port, group))
            self.changed.add((known.subnet, group))

    def _ask_all(self, port: int, now: float) -> None:
        known = self._ports[port]
        known.queries = min(known.queries + 1, STARTUP_QUERY_COUNT)
        self._ask(port, known, ALL_SYSTEMS, query(QUERY_RESPONSE_INTERVAL_S, ROBUSTNESS, QUERY_INTERVAL_S))
        wait_s = STARTUP_QUERY_INTERVAL_S if known.queries < STARTUP_QUERY_COUNT else QUERY_INTERVAL_S
        self._timers.set(("general", port), now + wait_s, lambda at: self._ask_all(port, at))

    def _ask_again(self, port: int, group: Address, now: float) -> None:
        """Ask for one group; unless a report comes, this ends the membership after the last question."""
        known = self._ports[port]
        left = known.groups[group]
        if not left:
            self._end(port, group)
            return
        known.groups[group] = left - 1
        self._ask(port, known, group, query(LAST_MEMBER_QUERY_INTERVAL_S, ROBUSTNESS, QUERY_INTERVAL_S, group))
        when = now + LAST_MEMBER_QUERY_INTERVAL_S
        self._timers.set(("group", port, group), when, lambda at: self._ask_again(port, group, at))

    def _ask(self, port: int, known: _Port, destination: Address, message: bytes) -> None:
        packet = Ipv4(
            source=self._plan.router(known.subnet),
            destination=destination,
            protocol=Protocol.IGMP,
            payload=message,
            ttl=1,
            dscp_ecn=0xC0,
            options=ROUTER_ALERT,
        ).emit()
        frame = ipv4_frame(link_address(destination), rmac(known.subnet), packet)
        self._out.append(ToGuest(port, frame))

    # ------------------------------------------------------------------ time

    def outputs(self) -> list[Output]:
        """Queries since the last call."""
        out, self._out = self._out, []
        return out

    def next_timer(self) -> float | None:
        """When on_timer wants to be called."""
        return self._timers.next()

    def on_timer(self, now: float) -> None:
        """Its time has come."""
        self._timers.run(now)
