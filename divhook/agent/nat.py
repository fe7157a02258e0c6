"""Source NAT of this host: from the files to the namespace that translates, to the core and to the kernel's maps.

    divhook.yaml: external.pools ─┐         ┌─▶ the namespace and its rules (adapters/links/nat.py)
    cells/*.yaml: snat ───────────┴─▶ Plan ─┴─▶ Border.nat, maps nat and nat_addresses

The order of a change: the namespace first, then who may send to it. What goes wrong leaves a cell with NAT without an
outside, and is told: nothing is sent untranslated.
"""

import asyncio
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network
from typing import Any

from divhook.adapters.bpf.errors import BpfError
from divhook.adapters.bpf.programs import FROM_NAT, Programs
from divhook.adapters.links import LinkError
from divhook.adapters.links.nat import NAT_MAC, NatFigures, NatNamespace, Translation
from divhook.agent.dataplane import Dataplane
from divhook.config.configuration import Configuration
from divhook.core.addressing import Address, AddressPlan, SubnetId, address_text
from divhook.core.nat import FIRST_PORT, Nat

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Plan:
    """What is to be translated, the addresses that are NAT's own here, and the host's, where cells go out with it.

    problem: why some cell of the files is not translated, and so has no outside.
    """

    translations: tuple[Translation, ...] = ()
    pool: frozenset[Address] = frozenset()
    host: Address | None = None
    problem: str = ""

    def __bool__(self) -> bool:
        return bool(self.translations)


def plan_of(configuration: Configuration, own: Sequence[Address] = ()) -> Plan:
    """What the files say. own: the host's addresses on the uplink. What can't be translated is left out, and told."""
    pools = configuration.host.external.pools
    cells: dict[str | None, list[IPv4Network]] = {}
    problems: list[str] = []
    for cell in configuration.cells:
        if cell.snat is None:
            continue
        if cell.snat.pool is None and not own:
            problems.append(f"cell {cell.cell} has `snat: host`, but the uplink has no IPv4 address")
        elif cell.snat.pool is not None and cell.snat.pool not in pools:
            problems.append(f"cell {cell.cell}: there is no pool {cell.snat.pool} since the agent has started")
        else:
            cells.setdefault(cell.snat.pool, []).append(_cell_prefix(configuration.plan, cell.number))
    pool_of = {name: frozenset(each.addresses()) for name, each in pools.items()}
    pool = frozenset[Address]().union(*pool_of.values())
    problems += [
        f"{address_text(min(each.intersection(own)))} is this host's own address, and in pool {name}"
        for name, each in pool_of.items()
        if each.intersection(own)
    ]
    translations = []
    for name, prefixes in cells.items():
        if name is None:
            mine = IPv4Address(own[0])
            translations.append(Translation(tuple(prefixes), mine, mine, FIRST_PORT))
        elif not pool_of[name].intersection(own):
            first, last = IPv4Address(pools[name].first), IPv4Address(pools[name].last)
            translations.append(Translation(tuple(prefixes), first, last))
    host = own[0] if None in cells else None
    return Plan(tuple(translations), pool.difference(own), host, "; ".join(problems))


def _cell_prefix(plan: AddressPlan, cell: int) -> IPv4Network:
    first = plan.network(SubnetId(cell, 0)).network_address
    return IPv4Network((first, plan.supernet.prefixlen + plan.cell_bits))


def _warn_of_ports(first: int, last: int, reserved: str) -> None:
    """The host must not take ports of NAT's for its own connections: their answers would be NAT's."""
    if last >= FIRST_PORT and not reserved:
        log.warning(
            "this host takes ports %d to %d for its own connections, NAT with its address those from %d on: answers to "
            "the host's are lost. Run: sysctl -w net.ipv4.ip_local_reserved_ports=%d-65535",
            first,
            last,
            FIRST_PORT,
            FIRST_PORT,
        )


class NatService:
    """Keeps all of it in step. mtu: of the uplink. own: the host's addresses on it."""

    def __init__(
        self,
        programs: Programs,
        dataplane: Dataplane,
        mtu: int,
        own: Sequence[Address] = (),
        namespace: NatNamespace | None = None,
    ) -> None:
        self.ifindex = 0  # of the host's end of the link to the namespace; 0 before there was one
        self.problem = ""
        self.set_again = 0
        self._programs = programs
        self._dataplane = dataplane
        self._border = dataplane.pipeline.border
        self._mtu = mtu
        self._own = tuple(own)
        self._namespace = namespace or NatNamespace()
        self._plan: Plan | None = None
        self._lock = asyncio.Lock()

    async def apply(self, configuration: Configuration) -> None:
        """Translate as the files say. What goes wrong is told, and nothing of a cell with NAT leaves."""
        async with self._lock:
            plan = plan_of(configuration, self._own)
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
                gone = self._programs.nat.set_addresses(plan.pool, plan.host)
                if gone:  # what was translated to them can get no reply any more
                    await asyncio.to_thread(self._namespace.forget)
                self._programs.nat.open(ifindex, NAT_MAC)
                self._border.nat = Nat(NAT_MAC, plan.pool, plan.host)
                self._border.announce_pool(self._dataplane.now())
                self._dataplane.inject(self._dataplane.now(), [])
                if plan.host is not None:
                    _warn_of_ports(*self._namespace.host_ports())
                self._dataplane.nat_ifindex = self.ifindex = ifindex
            self.problem = ""
            if plan.problem:
                log.error("%s: nothing of such a cell goes outside", plan.problem)
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
            if there and not self.problem and await asyncio.to_thread(self._namespace.intact, self._plan.translations):
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
            "addresses": len(self._plan.pool) + (self._plan.host is not None),
            "state": self.problem or self._plan.problem or "ok",
            "connections": figures.connections,
            "limit": figures.limit,
            "refused": figures.refused,
            "table_full": figures.table_full,
            "no_port": figures.no_port,
            "invalid": figures.invalid,
        }
