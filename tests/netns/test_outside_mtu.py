"""MTUs that differ: an uplink of 9,000 bytes, guests' subnets of 3,990 and 1,500, a server of 1,500."""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from bare_fixtures import NIC, BareBench, bare_bench
from policy_bench import apply_policies

from divhook.lab.bare import BareLab, BareSpec
from divhook.lab.host import HostPlan
from divhook.lab.lab import FIRST_STATION, NETWORK
from divhook.lab.namespaces import Namespaces

UPLINK_MTU, LARGE, SMALL = 9000, 3990, 1500
CAST = (BareSpec("big", "A", "shop", "web", "10.1.1.11"), BareSpec("small", "A", "shop", "db", "10.1.2.12"))
NEAR, FAR = (f"{NETWORK}.{FIRST_STATION + len(CAST) + n}" for n in range(2))
"""A server whose NIC takes 1,500 bytes, and one that takes what the wire does."""
SETTINGS = f"""\
external:
  on_link:
    - prefix: {NETWORK}.0/24
    - {{prefix: {NEAR}, mtu: {SMALL}}}
"""
CELL = f"cell: shop\nnumber: 1\nsubnets:\n  web: {{number: 1, mtu: {LARGE}}}\n  db: {{number: 2, mtu: {SMALL}}}\n"
POLICY = "defaults: {egress: {external: allow}, ingress: {external: allow}}\n"


class JumboLab(BareLab):
    """Its wire takes 9,000 bytes."""

    def _attach(self, member: Namespaces, plan: HostPlan) -> None:
        super()._attach(member, plan)
        self.switch.ip(f"link set p{plan.name} mtu {UPLINK_MTU}")
        member.ip(f"link set up0 mtu {UPLINK_MTU}")


class MtuBench(BareBench):
    near: Namespaces
    far: Namespaces

    def add_servers(self) -> None:
        self.near, self.far = self.lab.add_station("NEAR"), self.lab.add_station("FAR")
        self.near.ip(f"link set up0 mtu {SMALL}")
        for station in (self.near, self.far):
            station.ip("route add 10.0.0.0/8 dev up0")
        self.guest("big").namespace.ip(f"link set {NIC} mtu {LARGE}")
        self.guest("big").host.namespaces.ip(f"link set t-big mtu {LARGE}")
        apply_policies(self.lab, {"shop": POLICY})


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MtuBench]:
    cells = tmp_path_factory.mktemp("cells")
    (cells / "shop.yaml").write_text(CELL)
    with bare_bench(CAST, 1, SETTINGS, (), MtuBench, cells, JumboLab) as made:
        assert isinstance(made, MtuBench)
        made.add_servers()
        yield made


def sized(place: Namespaces, target: str, size: int, *options: str) -> str:
    """What ping says of two IP packets of so many bytes."""
    words = ("ping", "-n", "-c", "2", "-i", "0.1", "-W", "1", "-s", str(size - 28), *options, target)
    return place.run(*words, check=False).stdout


def fresh(place: Namespaces) -> None:
    place.ip("route flush cache")


def test_a_guest_of_a_large_subnet_is_told_what_a_small_server_takes(bench: MtuBench) -> None:
    guest = bench.guest("big").namespace
    told = sized(guest, NEAR, LARGE, "-M", "do")
    assert re.search(rf"From 10\.1\.1\.1 icmp_seq=1 Frag needed and DF set \(mtu = {SMALL}\)", told), told
    assert f"mtu {SMALL}" in guest.run("ip", "route", "get", NEAR).stdout
    assert "2 received" in sized(guest, NEAR, SMALL, "-M", "do")
    fresh(guest)
    assert "2 received" in sized(guest, NEAR, LARGE, "-M", "dont")  # cut by the host, and the answer by the server
    assert "2 received" in sized(guest, FAR, LARGE, "-M", "do")


def test_a_large_server_is_told_what_each_subnet_takes(bench: MtuBench) -> None:
    for name, router, mtu in (("big", "10.1.1.1", LARGE), ("small", "10.1.2.1", SMALL)):
        told = sized(bench.far, bench.address(name), UPLINK_MTU, "-M", "do")
        assert re.search(rf"From {re.escape(router)} icmp_seq=1 Frag needed and DF set \(mtu = {mtu}\)", told), told
        assert "2 received" in sized(bench.far, bench.address(name), mtu, "-M", "do")
        fresh(bench.far)
        assert "2 received" in sized(bench.far, bench.address(name), UPLINK_MTU, "-M", "dont")


def test_tcp_finds_its_way_between_them(bench: MtuBench, tmp_path: Path) -> None:
    page = tmp_path / "page"
    page.write_bytes(bytes(300_000))
    program = f"import http.server as h,os; os.chdir({str(tmp_path)!r}); h.test(h.SimpleHTTPRequestHandler,port=8080)"
    for server, address in ((bench.near, NEAR), (bench.far, FAR)):
        with bench.running(server, program):
            for name in ("big", "small"):
                url = f"http://{address}:8080/page"
                words = (
                    "curl",
                    "-sm",
                    "20",
                    "--retry",
                    "5",
                    "--retry-connrefused",
                    "--retry-delay",
                    "1",
                    "-o",
                    "/dev/null",
                )
                got = bench.guest(name).exec(*words, "-w", "%{size_download}", url, check=False)
                assert got.stdout == "300000", (name, address, got)
