"""From configuration to what the core works with: facts of every subnet."""

from divhook.config.configuration import Configuration
from divhook.config.model import SubnetConfig
from divhook.core.addressing import AddressPlan
from divhook.core.dhcp import SubnetService
from divhook.core.router import SubnetFacts, Topology


def topology_of(configuration: Configuration, uplink_mtu: int) -> Topology:
    """Facts of every configured subnet on a host whose uplink takes uplink_mtu bytes of IP packet."""
    routed = {cell.number for cell in configuration.cells if cell.multicast == "cell"}
    translated = {cell.number for cell in configuration.cells if cell.snat is not None}
    return {
        subnet.id: SubnetFacts(
            subnet.mtu_with(uplink_mtu),
            _service(configuration.plan, subnet, uplink_mtu),
            subnet.group_limit,
            subnet.id.cell in routed,
            subnet.id.cell in translated,
        )
        for subnet in configuration.subnets.values()
    }


def _service(plan: AddressPlan, subnet: SubnetConfig, uplink_mtu: int) -> SubnetService:
    routes = tuple(
        (destination.network_address.packed, destination.prefixlen, via) for destination, via in subnet.routes_via(plan)
    )
    return SubnetService(
        router=plan.router(subnet.id),
        mask=plan.mask(),
        broadcast=plan.broadcast(subnet.id),
        dns=tuple(subnet.dns),
        domain=subnet.domain,
        search=tuple(subnet.search),
        mtu=subnet.mtu_with(uplink_mtu),
        ntp=tuple(subnet.ntp),
        routes=routes,
        lease_s=subnet.lease_s,
        next_server=subnet.next_server,
        boot_file=subnet.boot_file or "",
        extra=subnet.dhcp_options,
    )
