"""A lab whose cells have source NAT: a plain server on the switch, and a router whose network has no way back.

guests   near .67, mid .72 (shop/web), db .69 (shop/db, host B), from a pool; alien (cell lab), with host A's address
wire     SRV     R1 ── 198.51.100.0/24 ── BEHIND .10: neither SRV, R1 nor BEHIND knows a route to 10.0.0.0/8
pool     172.30.0.210 to .213 on host A, .220 to .223 on host B
"""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from bare_fixtures import ALIEN, DB, NEAR, BareBench, bare_bench
from external_bench import mac_of, network_behind
from policy_bench import apply_policies

from divhook.core.addressing import Mac
from divhook.lab.bare import BareSpec
from divhook.lab.lab import FIRST_STATION, NETWORK
from divhook.lab.namespaces import Namespaces

MID = BareSpec("mid", "A", "shop", "web", "10.1.1.72")
CAST = (NEAR, MID, DB, ALIEN)
SRV, R1 = (f"{NETWORK}.{FIRST_STATION + len(CAST) + n}" for n in range(2))
BEHIND = "198.51.100.10"
POOL = {host: [f"{NETWORK}.2{number}{n}" for n in range(4)] for number, host in enumerate("AB", 1)}
NAT = "/run/netns/divhook-nat"
SETTINGS = f"""\
external:
  on_link:
    - prefix: {NETWORK}.0/24
  routes:
    - prefix: 198.51.100.0/24
      via: [{{address: {R1}}}]
  pools:
    public: {NETWORK}.2${{number}}0-{NETWORK}.2${{number}}3
"""
SHOP = "cell: shop\nnumber: 1\nsnat: {pool: public}\nsubnets:\n  web: {number: 1}\n  db: {number: 2, mtu: 1300}\n"
LAB = "cell: lab\nnumber: 2\n%ssubnets:\n  web: {number: 1}\n  install: {number: 2}\n"
POLICY = f"""\
egress:
  - {{from: {{subnet: web}}, to: {{cidr: {NETWORK}.0/24}}, allow: any}}
  - {{to: {{cidr: 198.51.100.0/24}}, allow: any}}
ingress:
  - {{from: {{cidr: 0.0.0.0/0}}, allow: any}}
"""


class NatBench(BareBench):
    """The bench with its outside."""

    srv: Namespaces
    router: Namespaces
    behind: Namespaces
    outside_macs: dict[str, Mac]

    def add_outside(self) -> None:
        self.srv, self.router = self.lab.add_station("SRV"), self.lab.add_station("R1")
        self.behind = network_behind(self.lab, self.router)
        self.behind.ip(f"route add {NETWORK}.0/24 via 198.51.100.1")
        self.outside_macs = {"SRV": mac_of(self.srv), "R1": mac_of(self.router)}

    def status(self, host: str = "A") -> dict[str, object]:
        """What the agent says of its NAT."""
        return dict(self.lab.host(host).ask_agent({"op": "status"})["result"]["nat"])

    def translations(self, host: str = "A") -> str:
        """The connections of the namespace that translates, by a plain tool."""
        words = ("nsenter", f"--net={NAT}", "conntrack", "-L")
        return self.lab.host(host).namespaces.run(*words, check=False).stdout

    def set_snat(self, line: str) -> None:
        """Of cell lab, on host A: the line of the cell's file."""
        host = self.lab.host("A")
        (host.root / "etc-divhook" / "cells" / "lab.yaml").write_text(LAB % line)
        answer = host.ask_agent({"op": "reload"})
        assert answer.get("ok"), answer


@contextmanager
def nat_bench() -> Iterator[NatBench]:
    with tempfile.TemporaryDirectory(prefix="divhook-nat-") as directory:
        cells = Path(directory) / "cells"
        cells.mkdir()
        (cells / "shop.yaml").write_text(SHOP)
        (cells / "lab.yaml").write_text(LAB % "snat: host\n")
        with bare_bench(CAST, hosts=2, settings=SETTINGS, bench_class=NatBench, quiet=(), cells=cells) as bench:
            assert isinstance(bench, NatBench)
            bench.add_outside()
            apply_policies(bench.lab, dict.fromkeys(("shop", "lab"), POLICY))
            yield bench
