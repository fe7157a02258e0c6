"""A NIC's port: its id, its entry in the core's table and its twin in the programs' map, the program on its tap.

The id is what marks name a port by. A restarted agent goes on with the ids that the map has; fresh ones go round, so
that one is not used again soon: frames under way still carry it.
"""

import logging
from collections.abc import Callable, Iterable

from divhook.abi.entries import NO_LIMIT, PORT_GROUP_RATE, LocalEndpoint, PortEntry, Rate
from divhook.abi.layout import MAX_PORTS
from divhook.adapters.bpf.errors import BpfError
from divhook.adapters.bpf.programs import FROM_GUEST, Programs
from divhook.agent.control import RequestError
from divhook.agent.dataplane import Dataplane
from divhook.agent.enforcement import Enforcement, Standing
from divhook.agent.nic import Nic
from divhook.agent.registry import Registry
from divhook.config.configuration import Configuration
from divhook.core.endpoint import MAX_PORT, PORT_WIRE, Endpoint, PortState

LAST_PORT = "last port"

log = logging.getLogger(__name__)


class Ports:
    """Every port of this host. uplink_mtu: bytes of IP packet, for subnets that the files have no more."""

    def __init__(
        self,
        registry: Registry,
        programs: Programs,
        dataplane: Dataplane,
        configuration: Configuration,
        uplink_mtu: int,
        enforcement: Enforcement | None = None,
    ) -> None:
        self._registry = registry
        self._programs = programs
        self._dataplane = dataplane
        self._plan = configuration.plan
        self._limits = configuration.host.limits
        self._uplink_mtu = uplink_mtu
        self._enforcement = enforcement
        self._policed: dict[int, Standing] = {}

    def make(self, nic: Nic, state: PortState, used: set[int]) -> None:
        """Make the NIC's tap a port. used: ids of the others. Raises RequestError or BpfError; then call `remove`."""
        nic.port = self._id_for(nic, used)
        self.put(nic, state)
        self._programs.attach_port(nic.ifindex)

    def passes(self, nic: Nic) -> bool:
        """Whether the programs pass traffic of this very NIC and address, or know it as fenced, from before this start.

        Such a port must go on as it is: made anew, as TENTATIVE, it would divert the flows that it forwards.
        """
        entry = self._programs.ports().get(nic.ifindex)
        return (
            entry is not None
            and (entry.vmac, entry.address) == (nic.mac, nic.address)
            and entry.state in (PortState.ACTIVE, PortState.FENCED)
        )

    def _id_for(self, nic: Nic, used: set[int]) -> int:
        """The id that the tap has already (a restarted agent), or a fresh one."""
        ports = self._programs.ports()
        adopted = ports.get(nic.ifindex)
        if adopted is not None and adopted.port_id not in used and adopted.vmac == nic.mac:
            return adopted.port_id
        slots = {port % MAX_PORTS for port in used | {PORT_WIRE} | {entry.port_id for entry in ports.values()}}
        last = self._registry.get(LAST_PORT)
        for step in range(MAX_PORT):
            port = (last + step) % MAX_PORT + 1
            if port % MAX_PORTS not in slots:
                self._registry.put(LAST_PORT, port)
                self._dataplane.forget_port(port)  # what was counted for late frames of its last owner
                return port
        raise RequestError(f"{nic}: this host has {MAX_PORTS - 1} ports already")

    def put(self, nic: Nic, state: PortState) -> None:
        """Tell the core and the kernel of a port, of its address, or of its state. Raises RequestError or BpfError."""
        pipeline = self._dataplane.pipeline
        facts = pipeline.topology.get(nic.placement.id)
        mtu = facts.mtu if facts is not None else self._uplink_mtu
        standing = self._standing(nic, live=state is PortState.ACTIVE)
        nic.identity = standing.identity
        endpoint = Endpoint(
            nic.port,
            nic.placement.id,
            nic.mac,
            nic.address,
            nic.guest,
            nic.guest_uuid,
            mtu=mtu,
            state=state,
            identity=standing.identity,
            allowed=nic.placement.allowed,
            translated=self._translated(nic),
            speaks=nic.speaks,
        )
        try:
            pipeline.ports.put(endpoint)
        except ValueError as error:
            raise RequestError(f"{nic}: {error}") from error
        pipeline.hostnames[nic.port] = nic.placement.hostname or nic.guest
        self._dataplane.ifindex_of[nic.port] = nic.ifindex
        shown = nic.address if state in (PortState.ACTIVE, PortState.FENCED) else None
        held = pipeline.ports.port(nic.port).held  # type: ignore[union-attr]
        self._dataplane.fastpath.remove_local(nic.port, but={shown, *held} - {None})
        self._programs.set_port(nic.ifindex, self._entry(nic, state))
        if shown is not None:
            entry = LocalEndpoint(
                nic.mac,
                nic.ifindex,
                nic.port,
                mtu,
                fenced=state is PortState.FENCED,
                tracked=standing.policed,
                policed=standing.policed,
                identity=standing.identity,
                translated=endpoint.translated,
            )
            self._dataplane.fastpath.set_local(shown, entry)
        self._dataplane.shared.sync()
        if self._enforcement is not None:
            self._enforcement.told_policed(nic)

    def _standing(self, nic: Nic, live: bool) -> Standing:
        if self._enforcement is None:
            return Standing(nic.identity, policed=False)
        self._policed[nic.port] = standing = self._enforcement.admit(nic, self._dataplane.now(), live)
        return standing

    def _entry(self, nic: Nic, state: PortState) -> PortEntry:
        policed = nic.port in self._policed and self._policed[nic.port].policed
        return PortEntry(
            nic.port,
            state,
            nic.mac,
            nic.address,
            router=self._plan.router(nic.placement.id),
            ipv4_rate=Rate(self._limits.divert_pps, self._limits.divert_burst),
            dhcp_rate=Rate(self._limits.dhcp_pps, max(self._limits.dhcp_pps, 1)),
            group_rate=self._group_rate(nic),
            tracked=policed,
            policed=policed,
            shares=bool(nic.placement.allowed),
            translated=self._translated(nic),
            speaks=nic.speaks and state is PortState.INCOMING,
        )

    def _translated(self, nic: Nic) -> bool:
        facts = self._dataplane.pipeline.topology.get(nic.placement.id)
        return facts is not None and facts.translated

    def _group_rate(self, nic: Nic) -> Rate:
        facts = self._dataplane.pipeline.topology.get(nic.placement.id)
        if facts is None:
            return PORT_GROUP_RATE
        return Rate(facts.group_pps, facts.group_pps) if facts.group_pps is not None else NO_LIMIT

    def remove(self, nic: Nic) -> None:
        """Forget the port everywhere. What the kernel refuses is told, and tried again by `keep_true`."""
        self._dataplane.pipeline.ports.remove(nic.port)
        self._dataplane.pipeline.forget_port(nic.port)
        tell_kernel(self._dataplane.shared.sync)
        self._dataplane.forget_port(nic.port)
        self._take_off(nic.ifindex, nic.port)
        self._policed.pop(nic.port, None)
        if self._enforcement is not None:
            tell_kernel(self._enforcement.leave, nic.port)

    def keep_true(self, nics: Iterable[Nic]) -> None:
        """Bring the kernel back to what the core has: ports of these NICs, programs on their taps, and no others."""
        ports, attached = self._programs.ports(), self._programs.attached()
        wanted = {nic.ifindex: nic for nic in nics if nic.port}
        for ifindex, nic in wanted.items():
            endpoint = self._dataplane.pipeline.ports.port(nic.port)
            if endpoint is None:
                continue
            entry = self._entry(nic, endpoint.state)
            if ports.get(ifindex) != entry:
                log.warning("%s: its port was not what it must be: set again", nic)
                tell_kernel(self._programs.set_port, ifindex, entry)
            if attached.get(ifindex) != FROM_GUEST:
                log.warning("%s: the program was missing on %s: attached again", nic, nic.ifname)
                tell_kernel(self._programs.attach_port, ifindex)
        tell_kernel(self._dataplane.fastpath.keep_true)
        tell_kernel(self._dataplane.shared.keep_true)
        tell_kernel(self._dataplane.group_lists.keep_true)
        for ifindex in ports.keys() - wanted.keys():
            self._take_off(ifindex, ports[ifindex].port_id)

    def topology_changed(self, nics: Iterable[Nic]) -> None:
        """Tell core and kernel of ports in subnets that have another MTU or limit: both compare with the same."""
        pipeline, ports = self._dataplane.pipeline, self._programs.ports()
        self._dataplane.group_lists.again()
        for nic in nics:
            endpoint, facts = pipeline.ports.port(nic.port), pipeline.topology.get(nic.placement.id)
            if endpoint is None or facts is None:
                continue
            there = ports.get(nic.ifindex)
            changed = (facts.mtu, facts.translated) != (endpoint.mtu, endpoint.translated)
            if changed or (there is not None and there.group_rate != self._group_rate(nic)):
                tell_kernel(self.put, nic, endpoint.state)

    def _take_off(self, ifindex: int, port: int) -> None:
        tell_kernel(self._dataplane.fastpath.remove_local, port)
        tell_kernel(self._programs.detach_port, ifindex)
        tell_kernel(self._programs.remove_port, ifindex)
        tell_kernel(self._programs.forget_port_counters, port)


def tell_kernel(step: Callable[..., None], *arguments: object) -> None:
    """One step that may fail alone: the log has why, and keep_true tries again."""
    try:
        step(*arguments)
    except BpfError as error:
        log.error("%s", error)
