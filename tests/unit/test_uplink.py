"""Which link may be the uplink: by what the kernel tells of each."""

from dataclasses import replace
from pathlib import Path

import pytest

from divhook.adapters.links.errors import LinkError
from divhook.adapters.links.uplink import Link, check_uplink, choose_uplink, overlap_of_resolvers
from divhook.core.addressing import AddressPlan

ETH0 = Link(2, "eth0", b"\x52\x54\x00\x0a\x0b\x0c", 1500, None, None, up=True, carrier=True)
ETH1 = replace(ETH0, ifindex=3, name="eth1", mac=b"\x52\x54\x00\x0d\x0e\x0f")
LOOPBACK = Link(1, "lo", bytes(6), 65536, None, None, up=True, carrier=True, loopback=True)
BOND = replace(ETH0, ifindex=4, name="bond0", kind="bond", bond_mode=1)
DOCKER = replace(ETH0, ifindex=5, name="docker0", kind="bridge")
VETH = replace(ETH0, ifindex=6, name="uplink0", kind="veth", netns_peer=True)


def test_the_nic_of_the_default_route_wins_over_one_that_is_merely_up() -> None:
    assert choose_uplink([LOOPBACK, ETH0, ETH1], [ETH1.ifindex]) == "eth1"


def test_of_two_default_routes_the_first_wins() -> None:
    assert choose_uplink([LOOPBACK, ETH0, ETH1], [ETH0.ifindex, ETH1.ifindex]) == "eth0"


def test_a_default_route_through_a_tunnel_or_a_bridge_says_nothing() -> None:
    tunnel = replace(ETH0, ifindex=9, name="wg0", kind="wireguard", mac=b"")
    assert choose_uplink([LOOPBACK, ETH0, DOCKER, tunnel], [tunnel.ifindex, DOCKER.ifindex]) == "eth0"


@pytest.mark.parametrize(
    "also", [DOCKER, replace(ETH1, up=False), replace(ETH1, master=7), replace(VETH, netns_peer=False), VETH]
)
def test_the_only_nic_that_is_up_is_found_among_other_links(also: Link) -> None:
    assert choose_uplink([LOOPBACK, also, ETH0], []) == "eth0"


def test_a_lab_hosts_veth_is_found_where_there_is_no_nic() -> None:
    assert choose_uplink([LOOPBACK, DOCKER, VETH], []) == "uplink0"


def test_two_candidates_are_named_and_none_is_guessed() -> None:
    with pytest.raises(LinkError, match=r"eth0, eth1\. Name it as `uplink:` in /etc/divhook/divhook\.yaml"):
        choose_uplink([LOOPBACK, ETH1, ETH0], [])


@pytest.mark.parametrize(
    ("mode", "name"), [(0, "balance-rr"), (1, "active-backup"), (2, "balance-xor"), (4, "802.3ad")]
)
def test_a_bond_of_a_mode_that_keeps_macs_is_taken(mode: int, name: str) -> None:
    assert check_uplink(replace(BOND, bond_mode=mode), None).bond_mode == name


@pytest.mark.parametrize(("mode", "name"), [(5, "balance-tlb"), (6, "balance-alb")])
def test_a_bond_of_a_mode_that_rewrites_macs_is_refused_with_the_way_out(mode: int, name: str) -> None:
    with pytest.raises(LinkError, match=f"bond0 is a bond of mode {name}.*use active-backup, balance-xor or 802.3ad"):
        check_uplink(replace(BOND, bond_mode=mode), None)


def test_a_port_of_a_bond_points_to_the_bond() -> None:
    with pytest.raises(LinkError, match="eth0 is a port of the bond bond0: name bond0 instead"):
        check_uplink(replace(ETH0, master=BOND.ifindex), BOND)


def test_a_tap_is_no_uplink() -> None:
    with pytest.raises(LinkError, match="uplink vnet0 is a tap or tun device"):
        check_uplink(replace(ETH0, name="vnet0", kind="tun"), None)


def test_resolvers_inside_the_virtual_space_are_named_and_rubbish_is_skipped(tmp_path: Path) -> None:
    file = tmp_path / "resolv.conf"
    file.write_bytes(
        b"# nameserver 10.0.0.1\nnameserver\nnameserver fe80::1%eth0\n\xff\xfe\nnameserver 10.254.253.252\n"
    )
    assert overlap_of_resolvers(AddressPlan().supernet, (tmp_path / "none", file)) == [
        f"name server 10.254.253.252 in {file}"
    ]
