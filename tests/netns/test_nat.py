"""Source NAT under real agents and with real tools: nobody outside knows a way back to a guest.

near, mid (host A) and db (host B) go out with a pool of their host, alien with host A's own address.
"""

import sys
import time
from collections.abc import Iterator
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path

import pytest
from bare_fixtures import ADDRESS, Place, WireWitness, wait_for
from nat_bench import BEHIND, POOL, R1, SRV, NatBench, nat_bench
from test_external import hops

from divhook.lab.namespaces import Namespaces

VIRTUAL = IPv4Network("10.0.0.0/8")
PAGES = ("python3", "-m", "http.server", "8080", "--directory", "/usr/share/common-licenses")
ECHO = """
import socket
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
s.bind(("", 7000))
while True:
    data, peer = s.recvfrom(100)
    s.sendto(f"{peer[0]} {peer[1]} {data.decode()}".encode(), peer)
"""
ASK = """
import socket, sys
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
s.settimeout(5)
s.bind(("", 5000))
for _ in range(3):
    s.sendto(sys.argv[2].encode(), (sys.argv[1], 7000))
    print(s.recv(100).decode())
"""

LARGE_BYTES = 2_000_000
FETCH = """
import sys, time, urllib.request
with urllib.request.urlopen(sys.argv[1], timeout=20) as page:
    count = 0
    while data := page.read(40_000):
        count += len(data)
        time.sleep(0.1)
print(count)
"""
LARGE = """
import socket, time
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
s.setsockopt(socket.IPPROTO_IP, 10, 2)  # IP_MTU_DISCOVER: always DF
s.bind(("", 7001))
data, peer = s.recvfrom(100)
for size in [1400] * 20:
    try:
        s.sendto(bytes(size), peer)
    except OSError:  # it knows by now
        s.sendto(bytes(1200), peer)
        break
    time.sleep(0.1)
"""
GET = """
import socket, sys
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
s.settimeout(8)
s.sendto(b"x", (sys.argv[1], 7001))
print(len(s.recv(2000)))
"""


@pytest.fixture(scope="module")
def bench() -> Iterator[NatBench]:
    with nat_bench() as made:
        yield made


def host_address(bench: NatBench, name: str = "A") -> str:
    return str(bench.lab.host(name).plan.address)


def listens(place: Namespaces, port: str) -> bool:
    """Whether a server program has come so far; on a busy machine that takes a while."""
    return wait_for(lambda: port in place.run("ss", "-ltun").stdout, 30)


def external_ipv4(frames: list[bytes]) -> list[tuple[str, str]]:
    """(source, destination) of all that is not between guests."""
    pairs = [(IPv4Address(f[26:30]), IPv4Address(f[30:34])) for f in frames if f[12:14] == b"\x08\x00"]
    return [(str(a), str(b)) for a, b in pairs if not (a in VIRTUAL and b in VIRTUAL)]


def test_http_through_router_and_nat_from_a_pool_and_with_the_hosts_address(bench: NatBench) -> None:
    witness = WireWitness(Place(bench.lab.switch))
    try:
        with bench.serving(bench.behind, *PAGES):
            assert listens(bench.behind, ":8080")
            for name in ("near", "db", "alien"):
                page = bench.guest(name).exec("curl", "-sm", "5", f"http://{BEHIND}:8080/GPL-2", check=False).stdout
                assert "GNU GENERAL PUBLIC LICENSE" in page, (name, bench.drops(), bench.status())
        frames = witness.frames(0.2)
    finally:
        witness.close()
    there = external_ipv4(frames)
    assert len(there) > 30
    assert not [pair for pair in there if IPv4Address(pair[0]) in VIRTUAL or IPv4Address(pair[1]) in VIRTUAL]
    seen = {source for source, target in there if target == BEHIND}
    assert seen <= {*POOL["A"], *POOL["B"], host_address(bench)}
    assert len(seen) == 3
    assert {frame[6:12] for frame in frames} <= {*bench.pmacs.values(), *bench.outside_macs.values()}


def test_ping_has_one_hop_of_the_hosts_own(bench: NatBench) -> None:
    for name in ("near", "alien"):
        for target, ttl in ((BEHIND, "62"), (SRV, "63")):
            ping = bench.ping(name, target, 5)
            assert (ping.received, ping.ttls) == (5, {ttl}), (name, ping.output, bench.drops(), bench.translations())
    assert ADDRESS["near"] in bench.translations()
    assert any(address in bench.translations() for address in POOL["A"])
    assert bench.status()["connections"] != 0


def test_traceroute_shows_each_router_once(bench: NatBench) -> None:
    for name in ("near", "alien"):
        words = ("traceroute", "-I", "-n", "-q", "1", "-w", "2", "-m", "5", BEHIND)
        shown = hops(bench.guest(name).exec(*words, check=False).stdout)
        assert shown == [str(bench.guest(name).spec.address).rsplit(".", 1)[0] + ".1", R1, BEHIND]


def test_a_guest_learns_the_mtu_of_a_network_behind_a_router(bench: NatBench) -> None:
    bench.router.ip("link set in0 mtu 1300")
    bench.behind.ip("link set net0 mtu 1300")
    try:
        for name in ("near", "alien"):
            words = ("ping", "-n", "-c", "2", "-i", "0.2", "-W", "2", "-M", "do", "-s", "1400", BEHIND)
            said = bench.guest(name).exec(*words, check=False).stdout
            assert "mtu = 1300" in said, said
            assert R1 in said
    finally:
        bench.router.ip("link set in0 mtu 1500")
        bench.behind.ip("link set net0 mtu 1500")
        for name in ("near", "alien"):
            bench.guest(name).namespace.ip("route flush cache")


def test_a_server_learns_the_mtu_of_a_guest(bench: NatBench) -> None:
    with bench.running(bench.behind, LARGE):
        assert listens(bench.behind, ":7001")
        got = bench.guest("db").exec(sys.executable, "-c", GET, BEHIND, check=False).stdout
    assert got.strip() == "1200", (got, bench.drops())
    routes = [bench.behind.run("ip", "route", "get", address).stdout for address in POOL["B"]]
    assert any("mtu 1300" in route for route in routes), routes


def test_datagrams_in_fragments_pass(bench: NatBench) -> None:
    for name in ("near", "alien"):
        assert bench.ping(name, SRV, 3, size=3000).received == 3, name


def test_two_guests_use_one_port_of_a_server_from_one_port_of_their_own(bench: NatBench) -> None:
    with bench.running(bench.srv, ECHO):
        assert listens(bench.srv, ":7000")
        answers: dict[str, list[str]] = {}
        for name in ("near", "mid", "alien"):
            done = bench.guest(name).exec(sys.executable, "-c", ASK, SRV, name, check=False).stdout
            answers[name] = done.splitlines()
    assert all(len(set(lines)) == 1 and len(lines) == 3 for lines in answers.values()), answers
    [near, mid, alien] = [lines[0].split() for lines in answers.values()]
    assert (near[2], mid[2], alien[2]) == ("near", "mid", "alien")
    assert len({tuple(each[:2]) for each in (near, mid, alien)}) == 3
    assert near[0] in POOL["A"]
    assert mid[0] in POOL["A"]
    assert alien[0] == host_address(bench)
    assert int(alien[1]) >= 61000


def test_nobody_outside_reaches_a_guest_or_hears_of_nat(bench: NatBench) -> None:
    pool, host = POOL["A"][0], host_address(bench)
    assert "0 received" in bench.srv.run("ping", "-n", "-c", "2", "-i", "0.2", "-W", "1", pool, check=False).stdout
    for target in (pool, host):
        words = ("curl", "-sm", "0.7", f"http://{target}:61234/")
        assert bench.srv.run(*words, check=False).returncode == 28  # no answer at all, and no RST
    assert pool in bench.srv.run("ip", "neighbour").stdout
    bench.srv.ip(f"route add {VIRTUAL} via {host}")
    try:
        before = bench.drops()
        bench.srv.run("ping", "-n", "-c", "2", "-i", "0.2", "-W", "0.5", ADDRESS["near"], check=False)
        assert bench.new_drops(before, 2)["A", "(wire)", "nat_untranslated"] == 2
    finally:
        bench.srv.ip(f"route del {VIRTUAL} via {host}")


def test_who_is_not_permitted_reaches_nothing(bench: NatBench) -> None:
    before = bench.drops()
    assert bench.ping("db", SRV, 3, wait_s=0.3).received == 0
    assert bench.new_drops(before, 3)["B", "db", "policy_denied"] == 3


def test_the_hosts_own_sockets_are_as_before(bench: NatBench) -> None:
    host = bench.lab.host("A")
    with bench.serving(bench.srv, *PAGES), bench.serving(host.namespaces, *PAGES):
        assert listens(bench.srv, ":8080")
        assert listens(host.namespaces, ":8080")
        assert "GNU" in host.exec("curl", "-sm", "5", f"http://{SRV}:8080/GPL-2", check=False).stdout
        there = bench.srv.run("curl", "-sm", "5", f"http://{host_address(bench)}:8080/GPL-2", check=False)
        assert "GNU" in there.stdout
    with bench.steady_ping("alien", SRV, 1, 0.1) as steady:
        pings = host.exec("ping", "-n", "-c", "5", "-i", "0.2", "-W", "2", SRV, check=False).stdout
    assert "5 received" in pings
    assert steady.result.received == steady.result.sent
    large = host.exec("ping", "-n", "-c", "2", "-i", "0.2", "-W", "2", "-s", "3000", SRV, check=False).stdout
    assert "2 received" in large


def test_a_cells_file_turns_nat_on_and_off(bench: NatBench) -> None:
    bench.set_snat("")
    try:
        assert bench.ping("alien", SRV, 2, wait_s=0.5).received == 0  # it knows no way back
        assert bench.status()["cells"] == 1
    finally:
        bench.set_snat("snat: host\n")
    assert bench.ping("alien", SRV, 2).received == 2


def test_guests_among_themselves_are_not_translated(bench: NatBench) -> None:
    ping = bench.ping("near", "db", 3)
    assert (ping.received, ping.ttls) == (3, {"63"})
    assert ADDRESS["db"] not in bench.translations()


def test_what_an_administrator_does_to_the_hosts_rules_and_conntrack_is_nothing_to_nat(bench: NatBench) -> None:
    host = bench.lab.host("A")
    witness = WireWitness(Place(bench.lab.switch))
    try:
        with bench.steady_ping("near", BEHIND, 2, 0.1) as one, bench.steady_ping("alien", BEHIND, 2, 0.1) as two:
            time.sleep(0.5)
            host.exec("sh", "-c", "nft flush ruleset; sysctl -qw net.ipv4.ip_forward=1; conntrack -F", check=False)
            time.sleep(0.5)
        frames = witness.frames(0.2)
    finally:
        witness.close()
    assert min(one.result.received, two.result.received) >= 15, (one.result.output, two.result.output)
    there = external_ipv4(frames)
    assert there
    assert not [pair for pair in there if IPv4Address(pair[0]) in VIRTUAL or IPv4Address(pair[1]) in VIRTUAL]


def test_translations_outlive_the_agent(bench: NatBench, fastpath: bool, tmp_path: Path) -> None:
    host = bench.lab.host("A")
    (tmp_path / "large").write_bytes(bytes(LARGE_BYTES))
    bench.ping("near", BEHIND, 3)
    bench.ping("alien", SRV, 3)
    with bench.serving(bench.behind, *PAGES[:-1], str(tmp_path)):
        assert listens(bench.behind, ":8080")
        with (
            bench.steady_ping("near", BEHIND, 8, 0.1) as one,
            bench.steady_ping("alien", SRV, 8, 0.1) as two,
            bench.in_guest("mid", FETCH, f"http://{BEHIND}:8080/large") as transfer,
        ):
            time.sleep(1)
            host.agent_stop()
            before = bench.translations()
            time.sleep(0.5)
            host.agent_start()
            assert wait_for(lambda: host.ask_agent({"op": "status"}).get("result", {}).get("reconciled"), 40)
            after = bench.translations()
            fetched, _ = transfer.communicate(timeout=40)
    assert fetched.strip() == str(LARGE_BYTES)
    assert ADDRESS["near"] in before
    assert ADDRESS["near"] in after
    if fastpath:
        for each in (one, two):
            assert each.result.received == each.result.sent, each.result.output
    assert bench.ping("near", BEHIND, 3).received == 3
    assert bench.ping("alien", BEHIND, 3).received == 3


def test_a_host_that_is_torn_down_has_nothing_of_nat_left(bench: NatBench) -> None:
    host = bench.lab.host("A")
    assert "divnat0" in host.exec("ip", "link").stdout
    host.agent_stop()
    assert "namespace of NAT" in host.divhook("agent", "--teardown").stdout
    assert "divnat0" not in host.exec("ip", "link").stdout
    assert not (host.root / "run" / "netns" / "divhook-nat").exists()
