"""A host's own services: reached by guests where a rule says so, else by nothing, whatever is set or flushed around.

guests   near .67 (shop/web, permitted), db .69 (shop/db, not), alien (lab/web, a cell without policy): all on host A
behind   a machine in a network of host A's own, 192.0.2.0/24
"""

import re
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from bare_fixtures import ADDRESS, ALIEN, NEAR, BareBench, Place, WireWitness, bare_bench, wait_for
from policy_bench import apply_policies

from divhook.lab.bare import BareSpec
from divhook.lab.host import LabHost
from divhook.lab.lab import SYSCTL_NO_IPV6
from divhook.lab.namespaces import Namespaces

DB = BareSpec("db", "A", "shop", "db", "10.1.2.69")
ELSEWHERE, BEHIND = "192.0.2.1", "192.0.2.2"
RULE = "cell: shop\negress:\n  - {from: {subnet: web}, to: host, allow: [icmp/echo-request, tcp/8080, udp/53]}\n"
WIDE = """\
cell: shop
egress:
  - {to: any, allow: any}
  - {to: external, allow: any}
  - {to: {cidr: 0.0.0.0/0}, allow: any}
"""


class HostBench(BareBench):
    """Two hosts; A has a network of its own, and forwards."""

    behind: Namespaces

    @property
    def host(self) -> LabHost:
        return self.lab.host("A")

    @property
    def address_of_host(self) -> str:
        return str(self.host.plan.address)

    def add_network(self) -> None:
        self.behind = Namespaces(self.lab.directory / "ns", "BEHIND")
        self.behind.create(("net",), SYSCTL_NO_IPV6)
        self.behind.ip(f"link add in0 type veth peer name own0 netns {self.host.namespaces.file('net')}")
        self.host.namespaces.ip(
            f"address add {ELSEWHERE}/24 dev own0",
            "link set own0 up",
        )
        self.behind.ip(f"address add {BEHIND}/24 dev in0", "link set in0 up", f"route add default via {ELSEWHERE}")
        self.sysctl("net.ipv4.ip_forward=1")

    def sysctl(self, *settings: str) -> None:
        self.host.namespaces.run("sysctl", "-qw", *settings)

    def permit(self, text: str) -> None:
        apply_policies(self.lab, {"shop": text.removeprefix("cell: shop\n")})

    def routes(self) -> str:
        return self.host.namespaces.run("ip", "route", "show", "dev", "dvhost").stdout

    @contextmanager
    def page(self) -> Iterator[list[str]]:
        """A web server of the host on port 8080; the lines of its log, once the block is over."""
        log: list[str] = []
        program = "import http.server as h,sys; sys.stderr=sys.stdout; h.test(h.SimpleHTTPRequestHandler,port=8080)"
        with self.running(self.host.namespaces, program) as server:
            assert wait_for(lambda: ":8080" in self.host.namespaces.run("ss", "-ltn").stdout)
            yield log
            server.terminate()
            log += (server.communicate(timeout=10)[0] or "").splitlines()

    def fetches(self, guest: str, size: int = 0) -> bool:
        url = f"http://{self.address_of_host}:8080/"
        return self.guest(guest).exec("curl", "-sfm", "3", "-o", "/dev/null", url, check=False).returncode == 0

    def from_host(self, *words: str) -> str:
        return self.host.namespaces.run("ping", "-n", "-c", "2", "-i", "0.1", "-W", "0.5", *words, check=False).stdout


@pytest.fixture(scope="module")
def bench() -> Iterator[HostBench]:
    with bare_bench((NEAR, DB, ALIEN), hosts=2, bench_class=HostBench, quiet=()) as made:
        assert isinstance(made, HostBench)
        made.add_network()
        made.permit(RULE)
        yield made


def test_a_rule_opens_what_it_says_and_the_host_sees_the_guest(bench: HostBench) -> None:
    ping = bench.ping("near", bench.address_of_host, 5)
    assert (ping.received, ping.ttls) == (5, {"64"}), ping.output
    with bench.page() as log:
        assert bench.fetches("near")
    assert [line for line in log if line.startswith(ADDRESS["near"])], log
    trace = bench.guest("near").exec("traceroute", "-I", "-n", "-q", "1", "-m", "4", bench.address_of_host).stdout
    assert re.findall(r"^ ?\d+  (\S+)", trace, re.MULTILINE) == [bench.address_of_host]


@pytest.mark.parametrize("reverse", [(), ("-R",)], ids=["to the host", "from the host"])
def test_a_guest_and_its_host_exchange_data(bench: HostBench, reverse: tuple[str, ...], fastpath: bool) -> None:
    bench.permit(RULE.replace("udp/53", "tcp/5201"))
    with bench.running(bench.host.namespaces, "import os; os.execvp('iperf3', ['iperf3', '-s'])"):
        assert wait_for(lambda: ":5201" in bench.host.namespaces.run("ss", "-ltn").stdout)
        size = "16M" if fastpath else "500K"
        words = ("iperf3", "-c", bench.address_of_host, "-n", size, *reverse)
        done = bench.guest("near").exec(*words, check=False, timeout_s=40)
    bench.permit(RULE)
    assert done.returncode == 0, done.stdout + done.stderr
    print(done.stdout.splitlines()[-3])


def test_without_a_rule_nothing_arrives_and_each_packet_has_its_reason(bench: HostBench) -> None:
    bench.permit(RULE)
    stack = bench.stack_counters("A")
    for guest in ("db", "alien"):
        before = bench.drops()
        assert bench.ping(guest, bench.address_of_host, 3, wait_s=0.3).received == 0
        assert bench.new_drops(before, 3) == Counter({("A", guest, "host_service"): 3})
    before = bench.drops()
    assert bench.guest("near").exec("nc", "-znw1", bench.address_of_host, "22", check=False).returncode != 0
    assert set(bench.new_drops(before, 1)) == {("A", "near", "host_service")}
    assert bench.stack_counters("A") == stack
    assert bench.routes().split("\n")[0].startswith(ADDRESS["near"])


def test_only_the_word_host_means_the_host(bench: HostBench) -> None:
    bench.permit(WIDE)
    stack, before = bench.stack_counters("A"), bench.drops()
    assert bench.ping("near", bench.address_of_host, 3, wait_s=0.3).received == 0
    assert bench.new_drops(before, 3) == Counter({("A", "near", "host_service"): 3})
    assert bench.stack_counters("A") == stack
    assert bench.routes() == ""
    bench.permit(RULE)


def test_other_addresses_of_this_and_other_hosts_stay_out_of_reach(bench: HostBench) -> None:
    bench.permit(WIDE + RULE.partition("egress:\n")[2])
    stack = bench.stack_counters("A")
    others = ("127.0.0.1", "169.254.0.1", ELSEWHERE, BEHIND, str(bench.lab.host("B").plan.address))
    try:
        for rp_filter in (0, 1, 2):
            bench.sysctl(*(f"net.ipv4.conf.{link}.rp_filter={rp_filter}" for link in ("all", "default", "dvhost")))
            for target in others[1:]:
                before = bench.drops()
                assert bench.ping("near", target, 1, wait_s=0.2).received == 0
                assert bench.new_drops(before, 1).total() == 1
            assert bench.stack_counters("A") == stack
            assert bench.ping("near", bench.address_of_host, 2).received == 2
            stack = bench.stack_counters("A")
    finally:
        bench.sysctl("net.ipv4.conf.all.rp_filter=0")
        bench.permit(RULE)


def test_the_host_speaks_only_when_it_is_spoken_to_or_a_rule_says_so(bench: HostBench) -> None:
    before = bench.drops()
    assert "0 received" in bench.from_host(ADDRESS["near"])
    assert bench.new_drops(before, 2) == Counter({("A", "(wire)", "policy_denied"): 2})
    for unreachable in (DB.address, ALIEN.address):
        bench.from_host(str(unreachable))  # no route
    assert bench.drops() - before == Counter({("A", "(wire)", "policy_denied"): 2})
    bench.permit(f"{RULE}ingress:\n  - {{from: host, to: {{subnet: web}}, allow: icmp}}\n")
    answer = bench.from_host(ADDRESS["near"])
    assert "2 received" in answer, answer
    assert "ttl=64" in answer, answer
    bench.permit(RULE)
    before = bench.drops()
    assert "0 received" in bench.from_host(ADDRESS["near"])
    assert bench.new_drops(before, 2)["A", "(wire)", "policy_denied"] == 2


def test_the_host_is_no_router_for_a_guest_nor_to_one(bench: HostBench) -> None:
    """It forwards, and has a rule that sends a guest's packets on; and a machine behind it has a route to the guest."""
    counters = bench.stack_counters("A")
    rules = f"""table ip mine {{ chain pre {{ type nat hook prerouting priority dstnat;
        iifname "dvhost" tcp dport 8080 dnat to {BEHIND}:8080
        }}
    }}"""
    bench.host.namespaces.run("nft", "-f", "-", input_text=rules)
    bench.sysctl("net.ipv4.ip_forward=0", "net.ipv4.ip_forward=1")  # also of dvhost
    witness = WireWitness(Place(bench.lab.switch))
    try:
        with bench.running(bench.behind, "import http.server as h; h.test(h.SimpleHTTPRequestHandler, port=8080)"):
            assert wait_for(lambda: ":8080" in bench.behind.run("ss", "-ltn").stdout)
            assert not bench.fetches("near")
        before = bench.drops()
        for target in (ADDRESS["near"], str(DB.address)):
            bench.behind.run("ping", "-n", "-c", "2", "-i", "0.1", "-W", "0.3", target, check=False)
        assert bench.new_drops(before, 2) == Counter({("A", "(wire)", "host_forwarded"): 2})
        assert not [frame for frame in witness.frames() if frame[12:14] == b"\x08\x00" and BEHIND_BYTES in frame[:34]]
    finally:
        witness.close()
        bench.host.namespaces.run("nft", "delete", "table", "ip", "mine")
    after = bench.stack_counters("A")
    assert after["Ip:ForwDatagrams"] - counters["Ip:ForwDatagrams"] == 2, (
        "those of the machine behind, as far as dvhost"
    )
    assert bench.ping("near", bench.address_of_host, 2).received == 2


BEHIND_BYTES = bytes(map(int, BEHIND.split(".")))


def test_without_any_netfilter_rule_it_is_the_same(bench: HostBench) -> None:
    for _ in range(3):
        bench.host.namespaces.run("nft", "flush", "ruleset")
        before = bench.drops()
        assert bench.ping("near", bench.address_of_host, 2).received >= 1
        assert bench.ping("db", bench.address_of_host, 2, wait_s=0.3).received == 0
        assert bench.new_drops(before, 2)["A", "db", "host_service"] == 2


def test_known_flows_go_on_while_the_agent_is_away(bench: HostBench, fastpath: bool) -> None:
    bench.ping("near", bench.address_of_host, 2)
    with bench.steady_ping("near", bench.address_of_host, 6, 0.05) as steady:
        time.sleep(0.3)
        bench.host.agent_stop()
        time.sleep(0.3)
        bench.host.agent_start()
        assert wait_for(lambda: bench.host.ask_agent({"op": "status"}).get("result", {}).get("reconciled"), 40)
    if fastpath:
        assert steady.result.received == steady.result.sent, steady.result.output
    assert bench.ping("near", bench.address_of_host, 3).received == 3
    assert bench.routes().splitlines()[0].startswith(ADDRESS["near"])


def test_teardown_leaves_the_host_without_it(bench: HostBench) -> None:
    """The last test of the file."""
    bench.host.agent_stop()
    assert "dvhost" in bench.host.namespaces.run("ip", "rule").stdout
    bench.host.divhook("agent", "--teardown")
    left = "".join(bench.host.namespaces.run("ip", *what).stdout for what in (("rule",), ("link",), ("route",)))
    assert "dvhost" not in left
    assert "10.1." not in left
