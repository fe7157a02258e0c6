"""A policy of 10,000 rules, changed again and again under traffic: quickly, without a wrong verdict, without a leak."""

import os
import re
import statistics
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from bare_fixtures import BareBench, bare_bench
from streams import PORT, build, streaming

from divhook.lab.bare import BareSpec

WEB = BareSpec("web", "A", "shop", "web", "10.1.1.11", labels="tier=web")
BATCH = BareSpec("batch", "A", "shop", "web", "10.1.1.13", labels="tier=batch")
DB = BareSpec("db", "B", "shop", "db", "10.1.2.21", labels="tier=db")
RULES, IN_A_FILE = 10_000, 50
CHANGES = int(os.environ.get("DIVHOOK_POLICY_CHANGES", "60"))
"""1,000 take two minutes."""
HEAD = f"""cell: shop
defaults: {{ingress: deny}}
ingress:
  - {{from: {{labels: "tier=web"}}, to: {{labels: "tier=db"}}, allow: udp/{PORT}}}
"""


@pytest.fixture(scope="module")
def bench() -> Iterator[BareBench]:
    with bare_bench((WEB, BATCH, DB), hosts=2) as made:
        yield made


def ask(bench: BareBench, host: str, op: str) -> Any:
    answer = bench.lab.host(host).ask_agent({"op": op}, timeout_s=60)
    assert answer["ok"], answer
    return answer["result"]


def policies(bench: BareBench, host: str) -> Path:
    directory = bench.lab.host(host).root / "etc-divhook" / "policies" / "shop"
    directory.mkdir(parents=True, exist_ok=True)
    return directory


def rules(number: int, first: str = "") -> str:
    """A file of rules that concern db and others, none of them the traffic."""
    lines = [
        f'  - {{from: {{labels: "tier=t{number}"}}, to: {{labels: "tier=db"}}, allow: tcp/{2000 + at}}}'
        for at in range(IN_A_FILE)
    ]
    return "\n".join(["cell: shop\ningress:", first or lines[0], *lines[1:], ""])


def memory_kib(bench: BareBench, host: str) -> int:
    status = Path(f"/proc/{bench.lab.host(host).agent_pid}/status").read_text()
    found = re.search(r"VmRSS:\s+(\d+)", status)
    assert found is not None
    return int(found[1])


def test_one_rule_of_ten_thousand_changes_under_traffic(
    bench: BareBench, tmp_path: Path, fastpath: bool, request: pytest.FixtureRequest
) -> None:
    changes, rate = (CHANGES, 5_000) if fastpath else (50, 300)
    for host in "AB":
        (policies(bench, host) / "a.yaml").write_text(HEAD)
        for number in range(RULES // IN_A_FILE):
            (policies(bench, host) / f"r{number:03}.yaml").write_text(rules(number))
    for host in "AB":
        ask(bench, host, "policy apply")
    quiet = [_change(bench, turn) for turn in range(15)]
    for guest in ("web", "batch"):  # neighbours are known
        bench.guest(guest).exec("ping", "-c1", "-W1", bench.address("db"), check=False)
    took_ms: list[float] = []
    before = memory_kib(bench, "B")
    with streaming(bench, build(tmp_path), [("web", "db"), ("batch", "db")], rate) as streams:
        time.sleep(0.5)
        for turn in range(changes):
            took_ms.append(_change(bench, turn))
    good, bad = streams.accounts
    median, loaded = statistics.median(quiet), statistics.median(took_ms)
    print(f"one rule of {RULES:,}: {median:.1f} ms when quiet; {loaded:.1f} ms under traffic, worst {max(took_ms):.0f}")
    print(
        f"{changes} changes: {good.sent:,} datagrams may pass, {good.lost} lost; {bad.sent:,} not, {bad.received} did"
    )
    print(f"the agent's memory: {before:,} KiB before, {memory_kib(bench, 'B'):,} after")
    early = sum(count for _, first, count in good.gaps if first == 0)  # before the receiver had its socket
    assert (good.lost - early, bad.received) == (0, 0), good.gaps
    assert bad.sent > 0
    assert memory_kib(bench, "B") < before * 1.1 + 8192
    status = ask(bench, "B", "status")
    assert status["policy"]["rules"] == RULES + 1


def _change(bench: BareBench, turn: int) -> float:
    """Milliseconds from the command to its answer, at the host of db."""
    path = policies(bench, "B") / f"r{turn % (RULES // IN_A_FILE):03}.yaml"
    other = f'  - {{from: {{labels: "tier=web"}}, to: {{labels: "tier=db"}}, allow: tcp/{3000 + turn}}}'
    path.write_text(rules(turn % (RULES // IN_A_FILE), other))
    begin = time.monotonic()
    ask(bench, "B", "policy apply")  # or the agent had seen it by itself
    return (time.monotonic() - begin) * 1e3
