"""Servers and routers without an agent, under real agents and with real tools, in either mode of the fast path."""

import re
import time
from collections import Counter
from collections.abc import Iterator

import pytest
from bare_fixtures import ADDRESS, DB, FAR, NEAR, Place, WireWitness, wait_for
from external_bench import BEHIND, OPEN, R1, SRV, ExternalBench, external_bench

from divhook.core.addressing import mac_text, parse_address
from divhook.core.wire.arp import reply_frame, request_frame
from divhook.core.wire.ethernet import ETHERTYPE_ARP

HOP = re.compile(r"^ ?\d+  ([\d.]+|\*)", re.MULTILINE)


@pytest.fixture(scope="module")
def bench() -> Iterator[ExternalBench]:
    with external_bench() as made:
        yield made


def from_server(bench: ExternalBench, target: str, *options: str) -> str:
    return bench.srv.run("ping", "-n", "-W", "1", "-i", "0.1", *options, target, check=False, timeout_s=20).stdout


def hops(output: str) -> list[str]:
    return HOP.findall(output)


def test_guests_and_a_plain_server_reach_each_other_over_one_hop(bench: ExternalBench, fastpath: bool) -> None:
    for name in ("near", "far", "db"):
        ping = bench.ping(name, SRV, 5)
        assert (ping.received, ping.ttls) == (5, {"63"}), ping.output
        answer = from_server(bench, ADDRESS[name], "-c", "5")
        assert "5 received" in answer, answer
        assert "ttl=63" in answer, answer
    assert bench.outside("A")[SRV] == ("REACHABLE", mac_text(bench.outside_macs["SRV"]), fastpath)


def test_guests_and_a_network_behind_routers_reach_each_other(bench: ExternalBench) -> None:
    for name in ("near", "db"):
        ping = bench.ping(name, BEHIND, 5)
        assert (ping.received, ping.ttls) == (5, {"62"}), ping.output
    back = bench.behind.run("ping", "-n", "-c", "3", "-i", "0.1", "-W", "1", ADDRESS["near"], check=False).stdout
    assert "3 received" in back, back
    assert "ttl=62" in back, back


def test_traceroute_shows_each_router_once_in_either_direction(bench: ExternalBench) -> None:
    words = ("traceroute", "-I", "-n", "-q", "1", "-w", "1", "-m", "6")
    out = hops(bench.guest("near").exec(*words, BEHIND, check=False).stdout)
    assert (out[0], out[2:]) == ("10.1.1.1", [BEHIND])
    assert hops(bench.guest("near").exec(*words, SRV, check=False).stdout) == ["10.1.1.1", SRV]
    assert hops(bench.srv.run(*words, ADDRESS["near"], check=False).stdout) == ["10.1.1.1", ADDRESS["near"]]
    back = hops(bench.behind.run(*words, ADDRESS["near"], check=False).stdout)
    assert back == ["198.51.100.1", "10.1.1.1", ADDRESS["near"]]


@pytest.mark.parametrize("reverse", [(), ("-R",)], ids=["to the server", "from the server"])
def test_a_plain_server_and_a_guest_exchange_data(
    bench: ExternalBench, reverse: tuple[str, ...], fastpath: bool
) -> None:
    size = "8M" if fastpath else "1M"
    before = bench.drops()
    with bench.serving(bench.srv, "iperf3", "-s"):
        time.sleep(0.3)
        done = bench.guest("near").exec("iperf3", "-c", SRV, "-n", size, *reverse, check=False, timeout_s=40)
    assert done.returncode == 0, done.stdout + done.stderr
    print(done.stdout.splitlines()[-3])
    with bench.serving(bench.guest("far").namespace, "iperf3", "-s"):
        time.sleep(0.3)
        opened = bench.srv.run("iperf3", "-c", ADDRESS["far"], "-n", size, *reverse, check=False, timeout_s=40)
    assert opened.returncode == 0, opened.stdout + opened.stderr
    lost = {key: count for key, count in (bench.drops() - before).items() if key[1] == "(wire)"}
    assert not lost, "what the kernel has cut is from the server, too; and one that answers is no stranger"


def test_http_through_the_router(bench: ExternalBench) -> None:
    pages = ("python3", "-m", "http.server", "8080", "--directory", "/usr/share/common-licenses")
    with bench.serving(bench.behind, *pages):
        assert wait_for(lambda: "8080" in bench.behind.run("ss", "-ltn").stdout)
        page = bench.guest("db").exec("curl", "-sm", "5", f"http://{BEHIND}:8080/GPL-2", check=False).stdout
    assert "GNU GENERAL PUBLIC LICENSE" in page


def test_who_is_not_permitted_reaches_nothing_outside_and_each_packet_has_its_reason(bench: ExternalBench) -> None:
    host = str(bench.lab.host("A").plan.address)
    for name, at in (("alien", "A"), ("ops", "B")):
        before = bench.drops()
        for target in (SRV, BEHIND, R1):
            assert bench.ping(name, target, 2, wait_s=0.3).received == 0
        assert bench.new_drops(before, 6)[at, name, "policy_denied"] == 6
        before = bench.drops()
        assert bench.ping(name, host, 2, wait_s=0.3).received == 0
        reason = "host_service" if at == "A" else "policy_denied"
        assert bench.new_drops(before, 2)[at, name, reason] == 2
        before = bench.drops()
        assert "0 received" in from_server(bench, bench.address(name), "-c", "1")
        assert bench.new_drops(before, 1)[at, "(wire)", "policy_denied"] >= 1  # its ARP: nobody answers


def test_no_guest_reaches_its_hosts_own_addresses(bench: ExternalBench) -> None:
    before, stack = bench.drops(), bench.stack_counters("A")
    assert bench.ping("near", str(bench.lab.host("A").plan.address), 3, wait_s=0.3).received == 0
    assert bench.new_drops(before, 3) == Counter({("A", "near", "host_service"): 3})
    other = str(bench.lab.host("B").plan.address)
    before = bench.drops()
    assert bench.ping("near", other, 3, wait_s=0.3).received == 0
    assert bench.new_drops(before, 3)["B", "(wire)", "spoof_source"] == 3
    assert bench.stack_counters("A") == stack


def test_ingress_is_what_the_policy_says(bench: ExternalBench) -> None:
    from_server(bench, ADDRESS["near"], "-c", "1")
    before = bench.drops()
    words = ("curl", "-sm", "0.5", f"http://{ADDRESS['near']}:80/")
    assert bench.srv.run(*words, check=False).returncode != 0
    assert bench.new_drops(before, 1)["A", "(wire)", "policy_denied"] >= 1


def test_a_policy_that_is_taken_away_ends_the_flow(bench: ExternalBench) -> None:
    with bench.steady_ping("near", SRV, 3, 0.05) as steady:
        time.sleep(1)
        bench.permit("cell: shop\n")
        before = bench.drops()
        time.sleep(0.5)
        denied = bench.drops() - before
        bench.permit(OPEN)
    assert denied["A", "near", "policy_denied"] >= 5
    assert 0 < steady.result.received < steady.result.sent
    assert bench.ping("near", SRV, 2).received == 2


def test_forged_arp_changes_nothing(bench: ExternalBench) -> None:
    """The server answers for guests' addresses, floods replies, and router 1 claims the server's address."""
    bench.ping("near", "far", 1)
    bench.ping("near", SRV, 1)
    believed, srv, thief = bench.neighbours(), bench.outside_macs["SRV"], bench.outside_macs["R1"]
    pmac = bench.pmacs["A"]
    before = bench.drops()
    with bench.steady_ping("near", "far", 1.5, 0.05) as guests, bench.steady_ping("near", SRV, 1.5, 0.05) as server:
        for _ in range(100):
            for claimed in (FAR.address, NEAR.address, DB.address):
                assert claimed is not None
                spa = parse_address(claimed)
                bench.send(bench.srv, "up0", reply_frame(srv, spa, pmac, spa), request_frame(srv, spa, spa))
            mine = parse_address(SRV)
            bench.send(bench.routers[0], "up0", reply_frame(thief, mine, pmac, mine), request_frame(thief, mine, mine))
            time.sleep(0.005)
    for station in bench.stations:  # plain machines: what they believe of each other's forgeries is their own affair
        station.ip("neighbour flush dev up0")
    assert guests.result.received == guests.result.sent, guests.result.output
    assert server.result.received == server.result.sent, server.result.output
    counted = bench.new_drops(before, 100)
    assert counted["A", "(wire)", "unknown_host"] >= 600
    assert counted["A", "(wire)", "external_conflict"] >= 100
    assert bench.outside("A")[SRV][1] == mac_text(srv)
    assert {k: v for k, v in bench.neighbours().items() if k in believed} == believed


def test_the_wire_has_no_guests_mac_and_no_guests_arp(bench: ExternalBench) -> None:
    witness = WireWitness(Place(bench.lab.switch))
    try:
        bench.ping("near", SRV, 2)
        bench.ping("db", BEHIND, 2)
        from_server(bench, ADDRESS["far"], "-c", "2")
        frames = witness.frames(0.3)
    finally:
        witness.close()
    known = {*bench.pmacs.values(), *bench.outside_macs.values()}
    assert len(frames) > 10
    assert {frame[6:12] for frame in frames} <= known
    vmacs = set(bench.macs.values())
    assert not any(mac in frame[:14] or mac in frame[22:28] for frame in frames for mac in vmacs)
    arp = [frame for frame in frames if frame[12:14] == ETHERTYPE_ARP.to_bytes(2, "big")]
    assert all(frame[22:28] in known for frame in arp)


def test_datagrams_in_fragments_pass_each_way(bench: ExternalBench) -> None:
    whole = from_server(bench, ADDRESS["near"], "-c", "2", "-s", "3000")
    assert "2 received" in whole, whole
    assert bench.ping("near", SRV, 2, size=3000).received == 2
    before = bench.drops(consumed=True)
    ping = bench.ping("db", BEHIND, 2, size=3000)
    assert ping.received == 2, (ping.output, bench.outside("B"), bench.drops(consumed=True) - before)


def test_flows_go_over_when_a_router_is_silent_and_come_back(bench: ExternalBench, fastpath: bool) -> None:
    """Many flows, spread over both: after the failover all go by the one that is left."""
    router = bench.routers[0]
    with bench.steady_ping("near", BEHIND, 12, 0.1) as one, bench.steady_ping("db", BEHIND, 12, 0.1) as two:
        time.sleep(1.5)
        router.ip("link set up0 down")
        bench.behind.ip("route replace 10.0.0.0/8 via 198.51.100.2")
        time.sleep(5)
        router.ip("link set up0 up", "route replace 10.0.0.0/8 dev up0")
        assert wait_for(lambda: bench.outside("A").get(R1, ("",))[0] in ("REACHABLE", "STALE", "PROBE"), 6)
        time.sleep(1)
    bench.behind.ip("route replace 10.0.0.0/8 via 198.51.100.1")
    lost = [each.result.sent - each.result.received for each in (one, two)]
    print(f"lost of {one.result.sent} at 10/s: {lost}")
    assert max(lost) <= 40, (one.result.output, two.result.output)
    assert bench.ping("near", BEHIND, 3).received == 3


def test_an_agent_that_starts_again_loses_no_known_flow(bench: ExternalBench, fastpath: bool) -> None:
    host = bench.lab.host("A")
    bench.ping("near", SRV, 3)
    with bench.steady_ping("near", SRV, 8, 0.05) as steady:
        time.sleep(0.5)
        host.agent_stop()
        time.sleep(0.5)
        host.agent_start()
        assert wait_for(lambda: host.ask_agent({"op": "status"}).get("result", {}).get("reconciled"), 40)
    if fastpath:
        assert steady.result.received == steady.result.sent, steady.result.output
    assert bench.ping("near", SRV, 3).received == 3
