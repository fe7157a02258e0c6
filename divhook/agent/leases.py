"""DHCP leases in the registry: a client that renews after the agent's restart finds its lease."""

import time
from typing import Any

from divhook.agent.nic import Nic
from divhook.agent.registry import Registry
from divhook.core.addressing import Address
from divhook.core.dhcp import DhcpServer, Lease


def save(registry: Registry, server: DhcpServer, nic: Nic, now: float) -> None:
    """Keep what the server has for a NIC's port now, or that it has nothing. Raises RegistryError."""
    if nic.address is not None:
        lease = next((x for x in server.leases(now) if x.port == nic.port), None)
        registry.save_lease(nic.address, _saved(lease) if lease is not None else None)


def restore(registry: Registry, server: DhcpServer, nics: list[Nic], now: float) -> None:
    """Give the server back the leases of NICs that run; those of all others have ended. Raises RegistryError."""
    running = {nic.address: nic for nic in nics if nic.port}
    leases = []
    for address, value in registry.leases().items():
        nic = running.get(address)
        if nic is None:
            registry.save_lease(address, None)
        else:
            leases.append(_lease(nic, address, value))
    server.restore(leases, now)


def of(server: DhcpServer, nic: Nic, now: float) -> dict[str, Any] | None:
    """A NIC's lease, for the host that it moves to."""
    lease = next((x for x in server.leases(now) if x.port == nic.port), None)
    return _saved(lease) if lease is not None else None


def take_over(registry: Registry, server: DhcpServer, nic: Nic, value: dict[str, Any], now: float) -> None:
    """The lease of a NIC that has come, as `of` gave it. One that is malformed is none: the client asks again."""
    assert nic.address is not None
    try:
        lease = _lease(nic, nic.address, value)
    except (KeyError, TypeError, ValueError):
        return
    server.restore([lease], now)
    registry.save_lease(nic.address, value)


def _saved(lease: Lease) -> dict[str, object]:
    return {
        "lease_s": lease.lease_s,
        "until": time.time() + lease.remaining_s,
        "hostname": lease.hostname,
        "vendor_class": lease.vendor_class,
        "client_id": lease.client_id.hex(),
    }


def _lease(nic: Nic, address: Address, value: dict[str, Any]) -> Lease:
    return Lease(
        nic.port,
        nic.placement.id,
        nic.mac,
        address,
        value["lease_s"],
        max(0.0, value["until"] - time.time()),
        value["hostname"],
        value["vendor_class"],
        bytes.fromhex(value["client_id"]),
    )
