"""The set-ups of docs/external.md run as they stand there, on one host whose uplink is in 192.0.2.0/24 as well.

server .80 and .97, routers .1 and .2 on the switch; 198.51.100.10 is behind router .1
"""

import re
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from bare_fixtures import BareBench, bare_bench, wait_for

from divhook.lab.bare import BareSpec
from divhook.lab.host import host_settings
from divhook.lab.lab import SYSCTL_NO_IPV6
from divhook.lab.namespaces import Namespaces

pytestmark = pytest.mark.one_mode
DOCUMENT = (Path(__file__).parents[2] / "docs" / "external.md").read_text()
CAST = (BareSpec("web1", "A", "shop", "web", "10.1.1.67"), BareSpec("db1", "A", "shop", "db", "10.1.2.69"))
SERVER, CLIENT, BEHIND = "192.0.2.80", "192.0.2.97", "198.51.100.10"
VIRTUAL = "10.0.0.0/8"


class SetupBench(BareBench):
    """Servers and routers on the wire, and a network behind one of them."""

    server: Namespaces
    router: Namespaces
    behind: Namespaces

    def add_outside(self) -> None:
        self.server, self.router = self.lab.add_station("SRV"), self.lab.add_station("R1")
        self.behind = Namespaces(self.lab.directory / "ns", "BEHIND")
        self.behind.create(("net",), SYSCTL_NO_IPV6)
        self.lab.host("A").namespaces.ip("address add 192.0.2.11/24 dev up0")
        for station in (self.server, self.router):
            station.ip("address flush dev up0")
        self.server.ip(f"address add {SERVER}/24 dev up0", f"address add {CLIENT}/24 dev up0")
        self.router.ip(
            "address add 192.0.2.1/24 dev up0",
            "address add 192.0.2.2/24 dev up0",
            f"link add in0 type veth peer name r1 netns {self.behind.file('net')}",
            "address add 198.51.100.1/24 dev in0",
            "link set in0 up",
        )
        self.router.run("sysctl", "-qw", "net.ipv4.ip_forward=1", "net.ipv4.conf.all.send_redirects=0")
        self.behind.ip(f"address add {BEHIND}/24 dev r1", "link set r1 up", "route add default via 198.51.100.1")

    def use(self, setup: str) -> None:
        """The host's files are those of this set-up, and nothing else."""
        host = self.lab.host("A")
        host.agent_stop()
        for name, text in files(setup).items():
            file = host.root / "etc-divhook" / name
            file.parent.mkdir(exist_ok=True)
            file.write_text(
                host_settings("libvirt_uri: test:///etc/divhook/guests.xml\n" + text) if "/" not in name else text
            )
        if "policies/shop.yaml" not in files(setup):
            (host.root / "etc-divhook/policies/shop.yaml").unlink(missing_ok=True)
        host.agent_start()
        assert wait_for(lambda: host.ask_agent({"op": "status"}).get("result", {}).get("reconciled"), 40)
        assert host.ask_agent({"op": "status"})["result"]["policy"]["files"] == "ok"

    @contextmanager
    def listening(self, place: Namespaces, port: int) -> Iterator[None]:
        """A web server, on whatever port."""
        command = place.enter("python3", "-m", "http.server", str(port), "--directory", "/usr/share/common-licenses")
        with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
            try:
                assert wait_for(lambda: f":{port}" in place.run("ss", "-ltn").stdout, 30)
                yield
            finally:
                process.kill()

    def reads(self, place: Namespaces, address: str, port: int, wait_s: float = 5) -> bool:
        """Whether a page is got from there."""
        words = ("curl", "-sm", str(wait_s), f"http://{address}:{port}/GPL-2")
        return "GNU GENERAL PUBLIC LICENSE" in place.run(*words, check=False).stdout


def files(setup: str) -> dict[str, str]:
    """Text by name, as the document has them."""
    body = re.split(rf"^### {re.escape(setup)}\n", DOCUMENT, flags=re.MULTILINE)[1]
    body = re.split(r"^##", body, flags=re.MULTILINE)[0]
    blocks = re.findall(r"```yaml\n(.*?)```", body, re.DOTALL)
    return {block.splitlines()[0].removeprefix("# ").split(":")[0]: block for block in blocks}


@pytest.fixture(scope="module")
def bench() -> Iterator[SetupBench]:
    with bare_bench(CAST, hosts=1, bench_class=SetupBench, quiet=()) as made:
        assert isinstance(made, SetupBench)
        made.add_outside()
        yield made


def test_isolated(bench: SetupBench) -> None:
    bench.use("Isolated")
    web = bench.guest("web1").namespace
    assert bench.ping("web1", "db1", 2).received == 2
    with bench.listening(bench.server, 5432):
        assert not bench.reads(web, SERVER, 5432, 0.7)


def test_servers_on_the_same_layer_2(bench: SetupBench) -> None:
    bench.use("Servers on the same layer 2")
    bench.server.ip(f"route add {VIRTUAL} dev up0")
    web, db = bench.guest("web1").namespace, bench.guest("db1").namespace
    try:
        with bench.listening(bench.server, 5432), bench.listening(web, 443):
            assert bench.reads(web, SERVER, 5432)
            assert not bench.reads(db, SERVER, 5432, 0.7)
            words = ("curl", "-sm", "5", "--interface", CLIENT, "http://10.1.1.67:443/GPL-2")
            assert "GNU GENERAL" in bench.server.run(*words, check=False).stdout
    finally:
        bench.server.ip(f"route del {VIRTUAL} dev up0")


def test_networks_behind_routers(bench: SetupBench) -> None:
    bench.use("Networks behind routers")
    bench.router.ip(f"route add {VIRTUAL} dev up0")
    web, db = bench.guest("web1").namespace, bench.guest("db1").namespace
    try:
        with bench.listening(bench.behind, 80), bench.listening(web, 443):
            time.sleep(0.2)
            assert bench.reads(web, BEHIND, 80)
            assert bench.reads(db, BEHIND, 80)
            assert bench.reads(bench.behind, "10.1.1.67", 443)
    finally:
        bench.router.ip(f"route del {VIRTUAL} dev up0")


def test_networks_behind_routers_with_nat(bench: SetupBench) -> None:
    bench.use("Networks behind routers, with NAT")
    web, db = bench.guest("web1").namespace, bench.guest("db1").namespace
    with bench.listening(bench.behind, 80), bench.listening(web, 443):
        assert bench.reads(web, BEHIND, 80), bench.drops()
        assert not bench.reads(db, BEHIND, 80, 0.7)
        assert not bench.reads(bench.behind, "10.1.1.67", 443, 0.7)
    status = bench.lab.host("A").ask_agent({"op": "status"})["result"]["nat"]
    assert (status["state"], status["cells"], status["addresses"]) == ("ok", 1, 8)
