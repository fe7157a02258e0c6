"""Source NAT of this host: from the files to the namespace that translates, to the core and to the kernel's maps.

    divhook.yaml: external.pools ─┐         ┌─▶ the namespace and its rules (adapters/links/nat.py)
    cells/*.yaml: snat ───────────┴─▶ Plan ─┴─▶ Border.nat, maps nat and nat_addresses

The order of a change: the namespace first, then who may send to it. What goes wrong leaves a cell with NAT without an
outside, and is told: nothing is sent untranslated.
"""

import asyncio
import logging
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network
from typing import Any

from divhook.adapters.bpf.errors import BpfError
from divhook.adapters.bpf.programs import FROM_NAT, Programs
from divhook.adapters.links import LinkError
from divhook.adapters.links.nat import NAT_MAC, NatFigures, NatNamespace, Translation
from divhook.agent.dataplane import Dataplane
from divhook.config.configuration import Configuration
from divhook.core.addressing import Address, AddressPlan, SubnetId
from divhook.core.nat import Nat

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Plan:
    """What is to be translated, and the addresses that are NAT's own here."""

    translations: tuple[Translation, ...] = ()
    pool: frozenset[Address] = frozenset()

    def __bool__(self) -> bool:
        return bool(self.translations)


def plan_of(configuration: Configuration) -> Plan:
    """What the files say. A cell whose pool is not here any more is left out: nothing of it is translated."""
    pools = configuration.host.external.pools
    cells: dict[str, list[IPv4Network]] = {}
    for cell in configuration.cells:
        if cell.snat is not None and cell.snat.pool in pools:
            cells.setdefault(cell.snat.pool, []).append(_cell_prefix(configuration.plan, cell.number))
    return Plan(
        tuple(
            Translation(tuple(prefixes), IPv4Address(pools[name].first), IPv4Address(pools[name].last))
            for name, prefixes in cells.items()
        ),
        frozenset(address for pool in pools.values() for address in pool.addresses()),
    )


def _cell_prefix(plan: AddressPlan, cell: int) -> IPv4Network:
    first = plan.network(SubnetId(cell, 0)).network_address
    return IPv4Network((first, plan.supernet.prefixlen + plan.cell_bits))


class NatService:
    """Keeps all of it in step. mtu: of the uplink."""

    def __init__(
        self, programs: Programs, dataplane: Dataplane, mtu: int, namespace: NatNamespace | None = None
    ) -> None:
        self.ifindex = 0  # of the host's end of the link to the namespace; 0 before there was one
        self.problem = ""
        self.set_again = 0
        self._programs = programs
        self._dataplane = dataplane
        self._border = dataplane.pipeline.border
        self._mtu = mtu
        self._namespace = namespace or NatNamespace()
        self._plan: Plan | None = None
        self._lock = asyncio.Lock()

    async def apply(self, configuration: Configuration) -> None:
        """Translate as the files say. What goes wrong is told, and nothing of a cell with NAT leaves."""
        async with self._lock:
            plan = plan_of(configuration)
            if plan != self._plan or self.problem:
                self._plan = plan
                await self._apply(plan)

    async def _apply(self, plan: Plan) -> None:
        try:
            if not plan:
                self._close()
            else:
                ifindex = await asyncio.to_thread(self._namespace.ensure, self._mtu)
                await self._namespace.wall()
                await asyncio.to_thread(self._namespace.translate, plan.translations)
                self._programs.attach(FROM_NAT, ifindex)
                gone = self._programs.nat.set_addresses(plan.pool)
                if gone:  # what was translated to them can get no reply any more
                    await asyncio.to_thread(self._namespace.forget)
                self._programs.nat.open(ifindex, NAT_MAC)
                self._border.nat = Nat(NAT_MAC, plan.pool)
                self._dataplane.nat_ifindex = self.ifindex = ifindex
            self.problem = ""
        except (LinkError, BpfError, OSError) as error:
            self._close()
            self.problem = str(error)
            log.error("nothing is translated, and cells with `snat` have no outside: %s", error)

    def _close(self) -> None:
        self._border.nat = None
        self._programs.nat.close()

    async def keep_true(self) -> None:
        """Bring back what somebody has removed."""
        async with self._lock:
            if not self._plan:
                return
            there = self._programs.attached().get(self.ifindex) == FROM_NAT
            if there and not self.problem and await asyncio.to_thread(self._namespace.intact):
                return
            log.warning("the namespace that translates, or the way to it, was not what it must be: set again")
            self.set_again += 1
            await self._apply(self._plan)

    async def status(self) -> dict[str, Any]:
        """For `divhook status`."""
        if not self._plan:
            return {"cells": 0}
        try:
            figures = await asyncio.to_thread(self._namespace.figures)
        except LinkError as error:
            figures, self.problem = NatFigures(), str(error)
        return {
            "cells": sum(len(each.prefixes) for each in self._plan.translations),
            "addresses": len(self._plan.pool),
            "state": self.problem or "ok",
            "connections": figures.connections,
            "limit": figures.limit,
            "refused": figures.refused,
            "table_full": figures.table_full,
            "no_port": figures.no_port,
            "invalid": figures.invalid,
        }
