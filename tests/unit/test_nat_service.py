"""Source NAT from the files to the namespace, the core and the maps: in step, or shut."""

import asyncio
from collections.abc import Sequence
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from agent_fakes import FakePrograms
from test_config_external import POOLS, write

from divhook.adapters.bpf.programs import FROM_NAT
from divhook.adapters.links import LinkError
from divhook.adapters.links.nat import NAT_MAC, NatFigures, Translation, rules
from divhook.agent.nat import NatService, plan_of
from divhook.config.configuration import Configuration
from divhook.config.load import load
from divhook.core.addressing import Address, parse_address
from divhook.core.nat import Nat

IFINDEX = 9
TWO = "cell: b\nnumber: 3\nsnat: {pool: more}\nsubnets: {x: {number: 1}}\n"
ONE = "cell: a\nnumber: 1\nsnat: {pool: public}\nsubnets: {x: {number: 1}}\n"
NONE = "cell: a\nnumber: 1\nsubnets: {x: {number: 1}}\n"
POOL = frozenset(parse_address(f"192.0.2.{n}") for n in (9, 160, 161, 162, 163))


class FakeNamespace:
    """fail: what goes wrong, once."""

    def __init__(self) -> None:
        self.done: list[object] = []
        self.fail = ""
        self.there = True
        self.ports = (32768, 60999, "")

    def ensure(self, mtu: int) -> int:
        if self.fail:
            raise LinkError(self.fail)
        self.done.append(("ensure", mtu))
        return IFINDEX

    async def wall(self) -> None:
        self.done.append("wall")

    def translate(self, translations: Sequence[Translation]) -> None:
        self.done.append(tuple(translations))

    def forget(self) -> None:
        self.done.append("forget")

    def host_ports(self) -> tuple[int, int, str]:
        return self.ports

    def intact(self, translations: Sequence[Translation]) -> bool:
        return self.there

    def figures(self) -> NatFigures:
        if self.fail:
            raise LinkError(self.fail)
        return NatFigures(connections=3, limit=100)


class Made:
    def __init__(self, directory: Path, *own: Address) -> None:
        self.directory = directory
        self.programs = FakePrograms()
        self.namespace = FakeNamespace()
        self.announced: list[float] = []
        self.border = SimpleNamespace(nat=None, announce_pool=self.announced.append)
        plane: Any = SimpleNamespace(
            pipeline=SimpleNamespace(border=self.border), nat_ifindex=0, now=lambda: 7.0, inject=lambda now, out: None
        )
        self.plane = plane
        programs: Any = self.programs
        namespace: Any = self.namespace
        self.service = NatService(programs, plane, 1500, own, namespace)

    def files(self, *cells: str, host: str = POOLS) -> Configuration:
        write(self.directory, host)
        for name in ("a", "b"):
            (self.directory / "cells" / f"{name}.yaml").unlink(missing_ok=True)
        for name, text in zip("ab", cells, strict=False):
            (self.directory / "cells" / f"{name}.yaml").write_text(text)
        return load(self.directory)

    def apply(self, *cells: str, host: str = POOLS) -> None:
        asyncio.run(self.service.apply(self.files(*cells, host=host)))


@pytest.fixture
def made(tmp_path: Path) -> Made:
    return Made(tmp_path)


def test_each_cell_goes_out_with_its_pool(made: Made) -> None:
    plan = plan_of(made.files(ONE, TWO))
    assert plan.translations == (
        Translation((IPv4Network("10.1.0.0/16"),), IPv4Address("192.0.2.160"), IPv4Address("192.0.2.163")),
        Translation((IPv4Network("10.3.0.0/16"),), IPv4Address("192.0.2.9"), IPv4Address("192.0.2.9")),
    )
    assert plan.pool == POOL
    text = rules(plan.translations)
    assert "ip saddr { 10.1.0.0/16 } snat to 192.0.2.160-192.0.2.163 persistent" in text
    assert text.count("policy drop") == 4


def test_the_namespace_is_ready_before_anything_goes_there(made: Made) -> None:
    made.apply(ONE)
    assert made.namespace.done == [("ensure", 1500), "wall", plan_of(made.files(ONE)).translations]
    assert made.programs.on[IFINDEX] == FROM_NAT
    assert made.programs.nat.way == (IFINDEX, NAT_MAC)
    assert made.programs.nat.pool == POOL
    assert made.border.nat == Nat(NAT_MAC, POOL)
    assert made.plane.nat_ifindex == IFINDEX
    assert made.announced == [7.0]
    made.apply(ONE)
    assert len(made.namespace.done) == 3  # nothing has changed


def test_without_a_cell_with_nat_there_is_no_namespace_and_no_way(made: Made) -> None:
    made.programs.nat.way = (4, NAT_MAC)  # an agent before this one left it
    made.apply(NONE)
    assert made.namespace.done == []
    assert made.programs.nat.way is None
    assert asyncio.run(made.service.status()) == {"cells": 0}
    made.apply(ONE)
    made.apply(NONE)
    assert made.border.nat is None
    assert made.programs.nat.way is None


def test_what_was_translated_to_an_address_that_is_gone_is_forgotten(made: Made) -> None:
    made.apply(ONE)
    made.apply(ONE, host="external: {pools: {public: 192.0.2.160/31}}\n")
    assert made.namespace.done[-1] == "forget"


def test_what_goes_wrong_shuts_nat_is_told_and_tried_again(made: Made) -> None:
    made.apply(ONE)
    made.namespace.fail = "no namespace"
    made.apply(ONE, TWO)
    assert made.border.nat is None
    assert made.programs.nat.way is None
    assert asyncio.run(made.service.status())["state"] == "no namespace"
    made.namespace.fail = ""
    asyncio.run(made.service.keep_true())
    assert made.border.nat is not None
    assert made.service.set_again == 1


def test_what_somebody_removed_comes_back(made: Made) -> None:
    made.apply(ONE)
    asyncio.run(made.service.keep_true())
    assert made.service.set_again == 0
    made.namespace.there = False
    asyncio.run(made.service.keep_true())
    made.namespace.there = True
    del made.programs.on[IFINDEX]
    asyncio.run(made.service.keep_true())
    assert made.service.set_again == 2
    assert made.programs.on[IFINDEX] == FROM_NAT


def test_status_has_the_figures(made: Made) -> None:
    made.apply(ONE, TWO)
    status = asyncio.run(made.service.status())
    assert (status["cells"], status["addresses"], status["connections"], status["limit"]) == (2, 5, 3, 100)
    assert status["state"] == "ok"


HOSTED = "cell: b\nnumber: 3\nsnat: host\nsubnets: {x: {number: 1}}\n"
MINE = parse_address("192.0.2.11")


def test_a_cell_goes_out_with_the_hosts_own_address_and_ports_of_nats(tmp_path: Path) -> None:
    made = Made(tmp_path, MINE, parse_address("192.0.2.12"))
    made.apply(ONE, HOSTED)
    plan = plan_of(made.files(ONE, HOSTED), [MINE])
    assert plan.translations[1] == Translation(
        (IPv4Network("10.3.0.0/16"),), IPv4Address("192.0.2.11"), IPv4Address("192.0.2.11"), 61000
    )
    text = rules(plan.translations)
    assert "ip saddr { 10.3.0.0/16 } meta l4proto { tcp, udp } snat to 192.0.2.11:61000-65535" in text
    assert "ip saddr { 10.3.0.0/16 } ip protocol icmp snat to 192.0.2.11\n" in text
    assert made.border.nat == Nat(NAT_MAC, POOL, MINE)
    assert made.programs.nat.pool == POOL | {MINE}


@pytest.mark.parametrize(
    ("ports", "warned"), [((32768, 60999, ""), False), ((1024, 65535, ""), True), ((1024, 65535, "61000-65535"), False)]
)
def test_ports_that_the_host_takes_itself_are_warned_of(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, ports: tuple[int, int, str], warned: bool
) -> None:
    made = Made(tmp_path, MINE)
    made.namespace.ports = ports
    made.apply(NONE, HOSTED)
    assert ("ip_local_reserved_ports=61000-65535" in caplog.text) is warned


def test_what_the_files_ask_for_and_the_host_has_not_is_told(tmp_path: Path) -> None:
    made = Made(tmp_path)
    made.apply(ONE, HOSTED)
    status = asyncio.run(made.service.status())
    assert status["state"] == "cell b has `snat: host`, but the uplink has no IPv4 address"
    assert made.border.nat == Nat(NAT_MAC, POOL)


@pytest.mark.parametrize(("last", "pool", "others"), [(9, "more", ["192.0.2.160"]), (161, "public", [])])
def test_a_pool_with_the_hosts_own_address_translates_nothing(
    tmp_path: Path, last: int, pool: str, others: list[str]
) -> None:
    mine = parse_address(f"192.0.2.{last}")
    plan = plan_of(Made(tmp_path).files(ONE, HOSTED), [mine])
    assert plan.problem == f"192.0.2.{last} is this host's own address, and in pool {pool}"
    assert mine not in plan.pool
    assert plan.host == mine
    assert [str(each.first) for each in plan.translations] == [*others, f"192.0.2.{last}"]
