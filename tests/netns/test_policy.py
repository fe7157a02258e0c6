"""Policies in force: real packets of guests on two hosts, under real agents, in either mode of the fast path."""

import signal
import time
from collections.abc import Iterator

import pytest
from policy_bench import PolicyBench

from divhook.lab.bare import BareLab, BareSpec
from divhook.lab.processes import wait_until

WEB = BareSpec("web", "A", "shop", "web", "10.1.1.11")
WEB2 = BareSpec("web2", "B", "shop", "web", "10.1.1.12", labels="tier=web")
BATCH = BareSpec("batch", "A", "shop", "web", "10.1.1.13", labels="tier=batch")
DB = BareSpec("db", "B", "shop", "db", "10.1.2.21", labels="tier=db")
DB2 = BareSpec("db2", "A", "shop", "db", "10.1.2.22", labels="tier=db")
ALIEN = BareSpec("alien", "A", "lab", "web", "10.2.1.31")
ALIEN2 = BareSpec("alien2", "B", "lab", "web", "10.2.1.32")
CLOSED = """
defaults: {ingress: deny}
ingress:
  - {from: {labels: "tier=web"}, to: {labels: "tier=db"}, allow: tcp/5432}
  - {from: {guest: web}, to: {labels: "tier=db"}, allow: tcp/5432}
"""
WRITERS = """
defaults: {ingress: deny}
ingress:
  - {from: {labels: "role=writer"}, to: {labels: "tier=db"}, allow: tcp/5432}
"""


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PolicyBench]:
    cast = (WEB, WEB2, BATCH, DB, DB2, ALIEN, ALIEN2)
    with BareLab(tmp_path_factory.mktemp("policy") / "lab", cast) as lab:
        made = PolicyBench(lab)
        try:
            yield made
        finally:
            made.close()


@pytest.fixture(autouse=True)
def _no_policy(bench: PolicyBench) -> None:
    bench.apply({})


def test_without_files_a_cell_talks_to_itself_and_to_nobody_else(bench: PolicyBench) -> None:
    web, db, alien = bench["web"], bench["db"], bench["alien2"]
    assert web.says("tcp", db, 80)
    assert db.says("udp", web, 443)
    assert not web.says("tcp", alien, 80)
    assert not any(row["policed"] for host in "AB" for row in bench.ask(host, "endpoints"))


@pytest.mark.parametrize("to", ["db", "db2"])
def test_default_deny_lets_in_what_a_label_allows(bench: PolicyBench, to: str) -> None:
    bench.apply({"shop": CLOSED})
    web, web2, batch, db = bench["web"], bench["web2"], bench["batch"], bench[to]
    assert web.says("tcp", db, 5432)
    assert web2.says("tcp", db, 5432)
    assert not web.says("tcp", db, 80)
    assert not web.says("udp", db, 5432)
    assert not batch.says("tcp", db, 5432)
    assert not db.says("tcp", web, 80)
    assert not web.says("udp", web2, 80)


def test_a_change_ends_what_is_forbidden_and_leaves_the_rest(bench: PolicyBench) -> None:
    web, batch, db, db2 = bench["web"], bench["batch"], bench["db"], bench["db2"]
    for to in (db, db2):
        assert web.says("keep", to, 80)
        assert web.says("keep", to, 5432)
        assert batch.says("keep", to, 5432)
    bench.apply({"shop": CLOSED})  # ports become tracked under live connections: they are picked up
    for to in (db, db2):
        assert web.says("again", to, 5432)
        assert not web.says("again", to, 80)
        assert not batch.says("again", to, 5432)
    bench.apply({"shop": CLOSED.replace("tcp/5432", "tcp/80")})
    for to in (db, db2):
        assert not web.says("again", to, 5432)
        assert web.says("tcp", to, 80)
    picked = sum(bench.ask(host, "status")["policy"]["picked_up"] for host in "AB")
    assert picked >= 2


def test_between_cells_both_have_to_agree(bench: PolicyBench) -> None:
    web, alien, alien2, db = bench["web"], bench["alien"], bench["alien2"], bench["db"]
    shop = "ingress:\n  - {from: {cell: lab}, to: {subnet: web}, allow: tcp/443}\n"
    lab = "egress:\n  - {to: {cell: shop, subnet: web}, allow: tcp}\n"
    bench.apply({"shop": shop})
    assert not alien.says("tcp", web, 443)
    bench.apply({"lab": lab})
    assert not alien2.says("tcp", web, 443)
    bench.apply({"shop": shop, "lab": lab})
    for each in (alien, alien2):
        assert each.says("tcp", web, 443)
        assert not each.says("tcp", web, 80)
        assert not each.says("tcp", db, 443)
        assert not web.says("tcp", each, 443)


def test_a_label_that_is_taken_away_ends_the_flow(bench: PolicyBench) -> None:
    bench.apply({"shop": WRITERS})
    web, db = bench["web"], bench["db"]
    files = [bench.etc("A") / "cells" / "shop.yaml"]
    before = [path.read_text() for path in files]
    assert not web.says("tcp", db, 5432)
    try:
        _label(bench, "tier=web, role=writer")
        assert web.says("keep", db, 5432)
        assert web.says("again", db, 5432)
        _label(bench, "tier=web, role=reader")
        assert not web.says("again", db, 5432)
        assert not web.says("tcp", db, 5432)
    finally:
        for path, text in zip(files, before, strict=True):
            path.write_text(text)
        bench.ask("A", "reload")


def _label(bench: PolicyBench, labels: str) -> None:
    """Of guest web, by its host's cell file."""
    path = bench.etc("A") / "cells" / "shop.yaml"
    text = path.read_text().split("endpoints:")[0]
    path.write_text(f"{text}endpoints:\n  - {{guest: web, subnet: web, labels: '{labels}'}}\n")
    bench.ask("A", "reload")
    wanted = dict(pair.split("=") for pair in labels.replace(" ", "").split(","))
    assert wait_until(lambda: _labels(bench) == wanted, 5, 0.05), _labels(bench)
    time.sleep(0.3)  # the announcement is on its way


def _labels(bench: PolicyBench) -> dict[str, str]:
    return next(dict(row["labels"]) for row in bench.ask("A", "endpoints") if row["guest"] == "web")


def test_connections_live_through_a_killed_agent_in_default_deny(bench: PolicyBench) -> None:
    bench.apply({"shop": CLOSED})
    web, db = bench["web"], bench["db"]
    assert web.says("keep", db, 5432)
    for host in "AB":
        bench.lab.host(host).agent_stop(signal.SIGKILL)
        bench.lab.host(host).agent_start()
    bench.lab.wait_active()
    assert web.says("again", db, 5432, 5)
    assert not web.says("tcp", db, 80)
    assert not bench["batch"].says("tcp", db, 5432)
    assert web.says("tcp", db, 5432, 3)


def test_a_bad_file_changes_nothing_and_is_told(bench: PolicyBench) -> None:
    bench.apply({"shop": CLOSED})
    web, db = bench["web"], bench["db"]
    for host in "AB":
        (bench.etc(host) / "policies" / "shop.yaml").write_text(
            "cell: shop\ningress:\n  - {from: any, allow: tcp/htpp}\n"
        )
        answer = bench.lab.host(host).ask_agent({"op": "policy apply"})
        assert "shop.yaml:3" in answer["error"]
        assert "shop.yaml:3" in bench.ask(host, "status")["policy"]["files"]
    assert web.says("tcp", db, 5432)
    assert not web.says("tcp", db, 80)


def test_what_is_denied_is_counted(bench: PolicyBench) -> None:
    bench.apply({"shop": CLOSED})
    before = time.monotonic()
    assert not bench["batch"].says("udp", bench["db2"], 5432)
    drops = bench.lab.drops("A")
    assert drops["batch", "policy_denied"] >= 1, (drops, before)
