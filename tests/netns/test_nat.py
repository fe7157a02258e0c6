"""Source NAT under real agents and with real tools: nobody outside knows a way back to a guest."""

from collections.abc import Iterator

import pytest
from bare_fixtures import ADDRESS, wait_for
from nat_bench import BEHIND, POOL, SRV, NatBench, nat_bench


@pytest.fixture(scope="module")
def bench() -> Iterator[NatBench]:
    with nat_bench() as made:
        yield made


def test_http_through_router_and_nat(bench: NatBench) -> None:
    pages = ("python3", "-m", "http.server", "8080", "--directory", "/usr/share/common-licenses")
    with bench.serving(bench.behind, *pages):
        assert wait_for(lambda: "8080" in bench.behind.run("ss", "-ltn").stdout)
        for name in ("near", "db"):
            page = bench.guest(name).exec("curl", "-sm", "5", f"http://{BEHIND}:8080/GPL-2", check=False).stdout
            assert "GNU GENERAL PUBLIC LICENSE" in page, bench.drops()


def test_ping_through_nat_has_one_hop_of_the_hosts_own(bench: NatBench) -> None:
    for target, ttl in ((BEHIND, "62"), (SRV, "63")):
        ping = bench.ping("near", target, 5)
        assert (ping.received, ping.ttls) == (5, {ttl}), (ping.output, bench.drops(), bench.translations())
    assert ADDRESS["near"] in bench.translations()
    assert any(address in bench.translations() for address in POOL["A"])
