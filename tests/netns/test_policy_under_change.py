"""Policies that change all the time: who may always talk loses nothing, who may never gets nothing through.

DIVHOOK_POLICY_CHANGES=1000: so many changes in a row (40 without it).
"""

import os
import random
import statistics
import struct
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from bare_fixtures import NIC, BareBench, bare_bench
from flow_packets import SYN, tcp
from streams import PORT, build, streaming

from divhook.core.addressing import SubnetId, parse_address, parse_mac, rmac
from divhook.lab.bare import BareSpec

CHANGES = int(os.environ.get("DIVHOOK_POLICY_CHANGES", "40"))
WEB = BareSpec("web", "A", "shop", "web", "10.1.1.11", labels="tier=web")
BATCH = BareSpec("batch", "A", "shop", "web", "10.1.1.12", labels="tier=batch")
DB = BareSpec("db", "B", "shop", "db", "10.1.2.21", labels="tier=db")
NEAR = BareSpec("near", "A", "shop", "db", "10.1.2.22", labels="tier=db")
ALWAYS = (("web", "db"), ("web", "near"))
NEVER = (("batch", "db"), ("batch", "near"))


@pytest.fixture(scope="module")
def bench() -> Iterator[BareBench]:
    with bare_bench((WEB, BATCH, DB, NEAR), hosts=2, quiet=()) as made:
        yield made


@pytest.fixture(scope="module")
def stream(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(tmp_path_factory.mktemp("stream"))


@pytest.fixture(autouse=True)
def _no_policy_after(bench: BareBench) -> Iterator[None]:
    yield
    for host in bench.lab.hosts:
        write(bench, host, {})
        apply(bench, host)


def write(bench: BareBench, host: str, files: dict[str, str]) -> None:
    """Exactly these files in policies/shop/."""
    directory = bench.lab.host(host).root / "etc-divhook" / "policies" / "shop"
    directory.mkdir(parents=True, exist_ok=True)
    for path in directory.glob("*.yaml"):
        if path.stem not in files:
            path.unlink()
    for name, text in files.items():
        draft = directory / f".{name}"
        draft.write_text(f"cell: shop\n{text}")
        draft.rename(directory / f"{name}.yaml")


def apply(bench: BareBench, host: str) -> float:
    """Seconds until the agent has answered."""
    begin = time.monotonic()
    answer = bench.lab.host(host).ask_agent({"op": "policy apply"}, timeout_s=60)
    assert answer["ok"], answer
    return time.monotonic() - begin


def policy(rng: random.Random) -> str:
    """Any policy under which web always reaches the databases on the port, and batch never does."""
    port = f"udp/{PORT}"
    low, high = rng.randrange(PORT - 900, PORT + 1), rng.randrange(PORT, PORT + 900)
    allow = rng.sample(
        [
            f'{{from: {{labels: "tier=web"}}, to: {{subnet: db}}, allow: {port}}}',
            f"{{from: {{guest: web}}, to: {{labels: tier=db}}, allow: udp/{low}-{high}}}",
            "{from: {group: front}, to: {labels: tier=db}, allow: [udp, icmp]}",
            f"{{from: {{labels: tier notin (batch)}}, to: {{subnet: db}}, allow: [{port}, tcp]}}",
            "{from: {subnet: web, except: {guest: batch}}, to: {labels: tier=db}, allow: any}",
        ],
        rng.randint(1, 3),
    )
    deny = [
        f"{{from: {{labels: tier=batch}}, to: {{subnet: db}}, deny: [{port}, tcp/1-{rng.randint(2, 900)}]}}",
        "{from: {guest: batch}, to: {labels: tier=db}, deny: any}",
        f"{{from: {{subnet: web, except: {{guest: web}}}}, to: {{subnet: db}}, deny: udp/{low}-{high}}}",
    ]
    closed = rng.random() < 0.5
    denied = rng.sample(deny, rng.randint(0 if closed else 1, 2))
    noise = [f"{{from: any, to: {{subnet: db}}, allow: tcp/{rng.randint(1, 65535)}}}" for _ in range(rng.randint(0, 8))]
    noise += [f"{{from: {{guest: g{rng.randint(0, 9)}}}, deny: udp/{rng.randint(1, 9000)}}}" for _ in range(3)]
    rules = [*allow, *denied, *noise]
    rng.shuffle(rules)
    default = "subnets: {db: {ingress: deny}}\n" if closed else ""
    group = rng.choice(("{guest: web}", "[{guest: web}, {guest: 'x*'}]", "{labels: tier=web}"))
    named = "named: [{guest: web}, {guest: batch}]"  # who a guest is stays the same: hosts change one after the other
    return f"groups: {{front: {group}, {named}}}\n{default}ingress:\n" + "".join(f"  - {rule}\n" for rule in rules)


def test_changes_under_traffic_are_right_at_every_moment(bench: BareBench, stream: Path, fastpath: bool) -> None:
    rng = random.Random(4)
    for host in bench.lab.hosts:
        write(bench, host, {"rules": policy(rng)})
        apply(bench, host)
    for source, target in ALWAYS:
        assert bench.ping(source, target, count=1).sent == 1  # hosts know each other's guests
    per_second = 2000 if fastpath else 100
    took_s: list[float] = []
    with streaming(bench, stream, [*ALWAYS, *NEVER], per_second) as streams:
        time.sleep(0.5)
        for _ in range(CHANGES):
            for host in bench.lab.hosts:
                write(bench, host, {"rules": policy(rng)})
                took_s.append(apply(bench, host))
        time.sleep(0.5)
    print(f"\n    {CHANGES} changes on each host, median {statistics.median(took_s) * 1e3:.1f} ms: {streams}")
    by_pair = {each.pair: each for each in streams.accounts}
    assert streams.overflowed == 0
    assert {pair: by_pair[pair].received for pair in NEVER} == dict.fromkeys(NEVER, 0)
    assert {pair: (by_pair[pair].lost, by_pair[pair].doubled) for pair in ALWAYS} == dict.fromkeys(ALWAYS, (0, 0))
    assert all(by_pair[pair].sent > per_second / 2 for pair in (*ALWAYS, *NEVER))
    for host in bench.lab.hosts.values():
        log = host.agent_log.read_text()
        assert "Traceback" not in log, log[-3000:]


def test_a_scan_costs_the_scanner_and_nobody_else(bench: BareBench, stream: Path, fastpath: bool) -> None:
    """A SYN flood from one guest: others' flows live, its table keeps its bound, the reason is counted."""
    for host in bench.lab.hosts:
        write(bench, host, {"rules": "ingress:\n  - {from: {guest: batch}, to: {subnet: db}, deny: tcp/1-1000}\n"})
        apply(bench, host)
    before, overflowed = bench.drops(hosts=("A",)), backlog_drops()
    with streaming(bench, stream, [("web", "near")], 1000 if fastpath else 100) as streams:
        time.sleep(0.3)
        flood(bench, 40_000 if fastpath else 2_000)
        time.sleep(0.3)
    overflowed = backlog_drops() - overflowed
    assert streams.lost == 0 or streams.lost <= overflowed, f"{streams}; {overflowed} did not fit a CPU's own queue"
    found = bench.drops(hosts=("A",)) - before
    assert found["A", "batch", "policy_denied"] > 0, found
    answer = bench.lab.host("A").ask_agent({"op": "flows", "guest": "batch"})["result"]
    assert len(answer["flows"]) <= 16_384


def flood(bench: BareBench, count: int) -> None:
    """SYNs from as many ports, half of them to what is denied."""
    source, target = parse_address(str(BATCH.address)), parse_address(str(NEAR.address))
    head = rmac(SubnetId(1, 1)) + parse_mac(BATCH.mac) + struct.pack("!H", 0x0800)
    frames = [head + tcp(source, target, 1024 + n % 64_000, 1 + n % 2000, SYN) for n in range(count)]
    for at in range(0, count, 100):
        bench.send(bench.guest("batch").namespace, NIC, *frames[at : at + 100])
        time.sleep(0.001)  # a CPU's queue of what veths hand over has room for 1,000, whoever they are from


def backlog_drops() -> int:
    """What found no room there: before any program of ours."""
    return sum(int(line.split()[1], 16) for line in Path("/proc/net/softnet_stat").read_text().splitlines())
