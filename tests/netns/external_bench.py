"""A lab with an outside: a plain server on the switch, two plain routers, and a machine behind them.

guests   near .67, far .68 (shop/web), db .69 (shop/db): permitted     alien (lab/web), ops (lab/ops): not permitted
wire     SRV     R1, R2 ── 198.51.100.0/24 ── BEHIND .10
"""

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from bare_fixtures import ALIEN, DB, FAR, NEAR, BareBench, bare_bench
from policy_bench import apply_policies

from divhook.core.addressing import Mac, parse_mac
from divhook.lab.bare import BareLab, BareSpec
from divhook.lab.lab import FIRST_STATION, NETWORK, SYSCTL_NO_IPV6
from divhook.lab.namespaces import Namespaces

OPS = BareSpec("ops", "B", "lab", "install", "10.2.2.71")
CAST = (NEAR, FAR, DB, ALIEN, OPS)
SRV, R1, R2 = (f"{NETWORK}.{FIRST_STATION + len(CAST) + n}" for n in range(3))
BEHIND = "198.51.100.10"
VIRTUAL = "10.0.0.0/8"
SETTINGS = f"""\
external:
  on_link:
    - prefix: {NETWORK}.0/24
  routes:
    - prefix: 198.51.100.0/24
      via: [{{address: {R1}}}, {{address: {R2}}}]
"""
OPEN = f"""\
cell: shop
egress:
  - {{to: {{cidr: {NETWORK}.0/24}}, allow: any}}
  - {{to: {{cidr: 198.51.100.0/24}}, allow: any}}
ingress:
  - {{from: {{cidr: {NETWORK}.0/24}}, allow: [icmp, tcp/5201, udp/5201]}}
  - {{from: {{cidr: 198.51.100.0/24}}, allow: [icmp, tcp/5201]}}
"""


class ExternalBench(BareBench):
    """The bench with its outside."""

    srv: Namespaces
    routers: tuple[Namespaces, Namespaces]
    behind: Namespaces
    outside_macs: dict[str, Mac]

    def add_outside(self) -> None:
        self.srv = self.lab.add_station("SRV")
        self.routers = self.lab.add_station("R1"), self.lab.add_station("R2")
        self.behind = Namespaces(self.lab.directory / "ns", "BEHIND")
        self.behind.create(("net",), SYSCTL_NO_IPV6)
        self.behind.ip("link add br0 type bridge", "link set br0 up", f"address add {BEHIND}/24 dev br0")
        for number, router in enumerate(self.routers, 1):
            there = self.behind.file("net")
            router.ip(
                f"link add in0 type veth peer name r{number} netns {there}",
                f"address add 198.51.100.{number}/24 dev in0",
                "link set in0 up",
                f"route add {VIRTUAL} dev up0",
            )
            router.run("sysctl", "-qw", "net.ipv4.ip_forward=1", "net.ipv4.conf.all.send_redirects=0")
            self.behind.ip(f"link set r{number} master br0 up")
        self.behind.ip(f"route add {VIRTUAL} via 198.51.100.1")
        self.srv.ip(f"route add {VIRTUAL} dev up0")
        self.outside_macs = {name: mac_of(each) for name, each in zip(("SRV", "R1", "R2"), self.stations, strict=True)}
        self.permit(OPEN)

    @property
    def stations(self) -> Sequence[Namespaces]:
        return (self.srv, *self.routers)

    def permit(self, text: str) -> None:
        """The policy of cell shop, on every host; empty: it has none."""
        apply_policies(self.lab, {"shop": text.removeprefix("cell: shop\n")} if text else {})

    def outside(self, host: str) -> dict[str, tuple[str, str, bool]]:
        """address → (state, MAC, the kernel forwards to it) of what a host knows outside."""
        rows = self.lab.host(host).ask_agent({"op": "neighbors"})["result"]
        return {
            row["address"]: (row["state"], row["host"], row["kernel"])
            for row in rows
            if row["vmac"] in ("external", "next hop")
        }


def network_behind(lab: BareLab, router: Namespaces) -> Namespaces:
    """A machine at BEHIND, in a network of its own behind a router, which forwards; it has no route beyond."""
    behind = Namespaces(lab.directory / "ns", "BEHIND")
    behind.create(("net",), SYSCTL_NO_IPV6)
    router.ip(
        f"link add in0 type veth peer name net0 netns {behind.file('net')}",
        "address add 198.51.100.1/24 dev in0",
        "link set in0 up",
    )
    router.run("sysctl", "-qw", "net.ipv4.ip_forward=1", "net.ipv4.conf.all.send_redirects=0")
    behind.ip(f"address add {BEHIND}/24 dev net0", "link set net0 up")
    return behind


def mac_of(station: Namespaces) -> Mac:
    [link] = json.loads(station.run("ip", "-j", "link", "show", "up0").stdout)
    return parse_mac(link["address"])


@contextmanager
def external_bench(directory: Path | None = None) -> Iterator[ExternalBench]:
    with bare_bench(CAST, settings=SETTINGS, bench_class=ExternalBench, quiet=()) as bench:
        assert isinstance(bench, ExternalBench)
        bench.add_outside()
        yield bench
