"""Who may talk to whom, between real guests, and what the switch sees of it."""

import pytest
from lab_cast import Cast, drops

from divhook.core.addressing import AddressPlan, parse_mac
from divhook.lab.demo import iperf, ping, trace
from divhook.lab.guest import GuestSpec, Nic
from divhook.lab.lab import Lab
from divhook.lab.wire import examine, read_pcap


def test_address_mask_router_and_options_come_from_the_agent(cast: Cast) -> None:
    options = cast.web1.dhcp_options()
    address = cast.address("web1")
    assert address.startswith("10.1.1.")
    wanted = {
        "ip": address,
        "mask": "24",
        "router": "10.1.1.1",
        "serverid": "10.1.1.1",
        "dns": "192.0.2.53",
        "domain": "web.shop.example.net",
        "search": "web.shop.example.net shop.example.net",
        "lease": "3600",
        "broadcast": "10.1.1.255",
    }
    assert {name: options.get(name) for name in wanted} == wanted


def test_addresses_of_a_subnet_differ(cast: Cast) -> None:
    assert cast.address("web1") != cast.address("web2")


@pytest.mark.parametrize(("one", "other"), [("web1", "web2"), ("web2", "web1")])
def test_same_subnet_on_two_hosts_talks_without_a_hop(cast: Cast, one: str, other: str) -> None:
    guest, address = getattr(cast, one), cast.address(other)
    result = ping(guest, address, 5)
    assert (result.received, result.ttls) == (5, {64})
    assert trace(guest, address) == [address]


@pytest.mark.parametrize(("one", "other"), [("web1", "db1"), ("db1", "web1"), ("web2", "db1"), ("db1", "web2")])
def test_two_subnets_of_a_cell_talk_through_one_router(cast: Cast, one: str, other: str) -> None:
    guest, address = getattr(cast, one), cast.address(other)
    result = ping(guest, address, 5)
    assert (result.received, result.ttls) == (5, {63})
    assert trace(guest, address) == [guest.dhcp_options()["router"], address]


@pytest.mark.parametrize(
    ("one", "other", "host"), [("web1", "other1", "A"), ("web2", "other1", "B"), ("other1", "db1", "A")]
)
def test_two_cells_do_not_talk_and_the_senders_host_counts_it(
    lab: Lab, cast: Cast, one: str, other: str, host: str
) -> None:
    elsewhere = "B" if host == "A" else "A"
    before = drops(lab.host(host), "cell_denied", one)
    assert ping(getattr(cast, one), cast.address(other), 3, wait_s=1).received == 0
    assert drops(lab.host(host), "cell_denied", one) - before == 3
    assert drops(lab.host(elsewhere), "cell_denied", one) == 0


def test_the_routers_address_answers_ping_locally(cast: Cast) -> None:
    result = ping(cast.web1, "10.1.1.1", 3)
    assert (result.received, result.ttls) == (3, {64})


@pytest.mark.parametrize(("one", "other"), [("web1", "web2"), ("web1", "db1"), ("web2", "db1")])
def test_tcp_and_udp_pass_at_full_size(cast: Cast, one: str, other: str) -> None:
    server, address = getattr(cast, other), cast.address(other)
    server.exec("pidof iperf3 || { iperf3 -s -D; sleep 0.2; }")
    tcp = iperf(getattr(cast, one), f"-c {address} -n 2000000")
    assert tcp["sum_received"]["bytes"] > 1_000_000
    udp = iperf(getattr(cast, one), f"-c {address} -u -b 2000000 -t 1 -l 1472")["sum"]
    assert udp["packets"] > 100
    assert udp["lost_percent"] <= 1


def test_fragments_pass_both_ways(cast: Cast) -> None:
    for other in ("web2", "db1"):
        output = cast.web1.exec(f"ping -c 3 -s 4000 -W 10 {cast.address(other)}")
        assert "3 packets received" in output


def test_the_switch_sees_hosts_and_groups_only(lab: Lab, cast: Cast) -> None:
    capture = lab.capture("clean")
    newcomer = lab.start(GuestSpec("newcomer", (Nic("shop", "web"),)), "A")
    newcomer.wait_address()
    assert ping(newcomer, cast.address("web2"), 3).received == 3
    assert ping(newcomer, cast.address("db1"), 3).received == 3
    ping(newcomer, cast.address("other1"), 2, wait_s=1)
    newcomer.run("ping -c 2 -W 1 -b 10.1.1.255; ping -c 2 -W 1 255.255.255.255; arping -c 2 -w 2 10.1.1.77")
    guests = {parse_mac(guest.mac) for guest in (cast.web1, cast.web2, cast.db1, cast.other1, newcomer)}
    newcomer.stop()
    uplinks = {parse_mac(host.plan.mac) for host in lab.hosts.values()}
    report = examine(read_pcap(capture.stop()), uplinks, guests, AddressPlan())
    assert report.clean, report
    assert report.ipv4_frames >= 12
    assert report.discovery_groups
    assert capture.dropped == 0
