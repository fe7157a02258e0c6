"""What people ask of policies in force, by the commands themselves, of guests that talk."""

import contextlib
import io
import json
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from policy_bench import PolicyBench

from divhook.cli import drops
from divhook.cli.main import main
from divhook.lab.bare import BareLab, BareSpec
from divhook.lab.processes import wait_until

WEB = BareSpec("web", "A", "shop", "web", "10.1.1.11", labels="tier=web")
DB = BareSpec("db", "B", "shop", "db", "10.1.2.21", labels="tier=db")
NEAR = BareSpec("near", "A", "shop", "db", "10.1.2.22", labels="tier=db")
POLICY = """
defaults: {ingress: deny}
ingress:
  - {from: {labels: "tier=web"}, to: {labels: "tier=db"}, allow: tcp/5432, log: on, comment: queries}
  - {from: {labels: "tier=web"}, to: {labels: "tier=db"}, deny: udp/80, log: on}
  - {from: {dns: www.example.net}, to: {subnet: web}, allow: tcp/443}
"""
RULE = "shop.yaml:5:5"


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PolicyBench]:
    with BareLab(tmp_path_factory.mktemp("audit") / "lab", (WEB, DB, NEAR)) as lab:
        made = PolicyBench(lab)
        try:
            made.apply({"shop": POLICY})
            yield made
        finally:
            made.close()


class Cli:
    """`divhook` on a host of the lab."""

    def __init__(self, bench: PolicyBench, host: str) -> None:
        self._socket = str(bench.lab.host(host).outside("/run/divhook") / "agent.sock")
        self.etc = bench.etc(host)

    def __call__(self, *arguments: str, code: int = 0) -> str:
        out = io.StringIO()
        with contextlib.redirect_stdout(out):
            assert main([*arguments, "--socket", self._socket]) == code, out.getvalue()
        return out.getvalue()

    def json(self, *arguments: str) -> Any:
        return json.loads(self(*arguments, "--json"))


@pytest.fixture(scope="module")
def cli(bench: PolicyBench) -> Cli:
    return Cli(bench, "A")


def test_flows_are_listed_with_guests_state_and_the_rule_that_lets_them(bench: PolicyBench, cli: Cli) -> None:
    assert bench["web"].says("keep", bench["near"], 5432)
    rows = [f for f in cli.json("flows", "--guest", "near")["flows"] if f["state"] == "open"]
    assert len(rows) == 1
    (row,) = rows
    assert (row["source_guest"], row["destination_guest"], row["destination_port"]) == ("web", "near", 5432)
    assert (row["direction"], row["protocol"], row["verdict"]) == ("ingress", "tcp", "allow")
    assert row["rule_place"].endswith(RULE)
    assert row["packets"] >= 2
    assert row["reply_packets"] >= 2
    assert row["idle_s"] < 60
    (egress,) = [f for f in cli.json("flows", "--guest", "web")["flows"] if f["source_port"] == row["source_port"]]
    assert (egress["direction"], egress["rule"]) == ("egress", "default")
    text = cli("flows")
    assert "near:5432" in text
    assert text.splitlines()[0].split() == [
        "GUEST",
        "DIRECTION",
        "PROTOCOL",
        "SOURCE",
        "DESTINATION",
        "STATE",
        "SENT",
        "ANSWERED",
        "IDLE",
        "RULE",
    ]


def test_what_a_policy_denies_and_logs_is_followed_with_guests_rule_and_reason(bench: PolicyBench, cli: Cli) -> None:
    heard: list[dict[str, Any]] = []
    since = bench.ask("A", "flow log")["next"]
    assert bench["web"].says("tcp", bench["near"], 5432)
    assert not bench["web"].says("udp", bench["near"], 80)
    assert not bench["near"].says("tcp", bench["web"], 80)

    def seen() -> bool:
        nonlocal since
        answer = bench.ask("A", "flow log", since=since)
        since = answer["next"]
        heard.extend(answer["events"])
        return len({(e["verdict"], e["service"]) for e in heard}) >= 3

    assert wait_until(seen, 5, 0.05), heard
    by_kind = {(e["verdict"], e["service"], e["rule_place"] and e["rule_place"].rpartition("/")[2]): e for e in heard}
    allowed = by_kind["allow", "tcp/5432", RULE]
    assert (allowed["source_guest"], allowed["destination_guest"], allowed["reason"]) == ("web", "near", None)
    denied = by_kind["deny", "udp/80", "shop.yaml:6:5"]
    assert (denied["guest"], denied["reason"], denied["rule"]) == (
        "near",
        "policy_denied",
        "ingress deny udp/80 from labels tier=web to labels tier=db",
    )
    default = by_kind["deny", "tcp/80", None]
    assert (default["guest"], default["rule"], default["direction"]) == ("web", "default", "to_guest")
    assert all(abs(e["time"] - time.time()) < 60 for e in heard)
    line = drops.line_of(denied)
    assert f"deny web:{denied['source_port']} → near:80 udp/80 at near: " in line
    assert line.endswith("shop.yaml:6:5: ingress deny udp/80 from labels tier=web to labels tier=db")


def test_the_stream_is_printed_until_it_is_interrupted(
    bench: PolicyBench, cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    def talk() -> None:
        time.sleep(0.3)
        bench["web"].says("udp", bench["near"], 80)

    turns = 0

    def sleep(_: float) -> None:
        nonlocal turns
        turns += 1
        if turns > 30:
            raise KeyboardInterrupt
        threading.Event().wait(0.1)

    talker = threading.Thread(target=talk)
    talker.start()
    monkeypatch.setattr(drops.time, "sleep", sleep)
    lines = cli("drops", "--follow", "--json", "--guest", "near", code=130).splitlines()
    talker.join()
    assert "udp/80" in [json.loads(line)["service"] for line in lines]


def test_each_rule_is_counted(bench: PolicyBench, cli: Cli) -> None:
    def count() -> dict[str, int]:
        return {row["where"].rpartition("/")[2]: row["flows"] for row in cli.json("policy", "counters")}

    before = count()
    assert before.keys() == {RULE, "shop.yaml:6:5", "shop.yaml:7:5"}
    assert bench["web"].says("tcp", bench["near"], 5432)
    assert bench["web"].says("tcp", bench["near"], 5432)
    after = count()
    assert {place: after[place] - before[place] for place in after} == {RULE: 2, "shop.yaml:6:5": 0, "shop.yaml:7:5": 0}
    assert "queries" in cli("policy", "counters")


def test_a_flow_between_guests_that_run_is_explained_by_who_they_are(bench: PolicyBench, cli: Cli) -> None:
    assert bench["web"].says("tcp", bench["db"], 5432)
    config = ("--config", str(cli.etc))
    for ends in (("web", "near"), ("web", "10.1.2.21"), ("10.1.1.11", "shop/db/db-9,tier=db")):
        text = cli("policy", "explain", *ends, "tcp/5432", *config)
        assert ": allowed" in text.splitlines()[0]
        assert f"{RULE}: ingress allow tcp/5432 from labels tier=web to labels tier=db" in text
        assert "shop/web/web on this host" in text
    assert "10.1.2.21 on host " in cli("policy", "explain", "web", "10.1.2.21", "tcp/5432", *config)
    denied = cli("policy", "explain", "near", "web", "tcp/5432", "--why-not", *config, code=1)
    assert ": denied" in denied.splitlines()[0]
    assert "shop.yaml:3:21" in denied


def test_what_a_change_would_do_is_told_and_nothing_is_done(bench: PolicyBench, cli: Cli, tmp_path: Path) -> None:
    assert bench["web"].says("keep", bench["near"], 5432)
    assert cli("policy", "diff").strip() == "nothing would change"
    (tmp_path / "policies").mkdir()
    (tmp_path / "policies" / "shop.yaml").write_text("cell: shop\n" + POLICY.replace("tcp/5432", "tcp/5433"))
    answer = cli.json("policy", "diff", str(tmp_path))
    assert [(r["change"], r["rule"].split(" from")[0]) for r in answer["rules"]] == [
        ("-", "ingress allow tcp/5432"),
        ("+", "ingress allow tcp/5433"),
    ]
    ended = [f for f in answer["ended"] if f["state"] == "open"]
    assert ended
    assert {(f["source_guest"], f["destination_guest"], f["destination_port"]) for f in ended} == {
        ("web", "near", 5432)
    }
    text = cli("policy", "diff", str(tmp_path))
    assert "→ near:5432 tcp (open), ingress of near: the default" in text
    assert bench["web"].says("again", bench["near"], 5432)
    (tmp_path / "policies" / "shop.yaml").write_text("cell: shop\nrules: []\n")
    with contextlib.redirect_stderr(io.StringIO()) as error:
        cli("policy", "diff", str(tmp_path), code=1)
    assert "shop.yaml:2:1: unknown key 'rules'" in error.getvalue()


def test_names_of_rules_are_listed_with_how_they_stand(cli: Cli) -> None:
    (row,) = cli.json("policy", "names")
    assert (row["cell"], row["name"], row["addresses"]) == ("shop", "www.example.net", [])
    assert row["state"] in ("pending", "failed")
    assert "www.example.net" in cli("policy", "names")
