"""`external:` of divhook.yaml: what it means, and what is wrong with it where."""

from ipaddress import IPv4Network
from pathlib import Path

import pytest

from divhook.config.external import MAX_NEXT_HOPS, MAX_ON_LINK, mtu_of
from divhook.config.load import load
from divhook.config.problems import ConfigError
from divhook.core.addressing import address_text, parse_address

WHOLE = """\
external:
  on_link:
    - prefix: 192.0.2.0/24
    - {prefix: 198.51.100.7, mtu: 1400}
  routes:
    - prefix: 0.0.0.0/0
      via: [{address: 192.0.2.1, weight: 3}, {address: 192.0.2.2}, {address: 198.51.100.7, weight: 0}]
    - {prefix: 203.0.113.0/24, via: [{address: 192.0.2.3}], mtu: 1300}
"""
CELL = "cell: a\nnumber: 1\nsubnets: {x: {number: 1}}\n"


def write(directory: Path, host: str, cell: str = "") -> Path:
    (directory / "cells").mkdir(exist_ok=True)
    (directory / "divhook.yaml").write_text(host)
    if cell:
        (directory / "cells" / "a.yaml").write_text(cell)
    return directory


def test_every_key_of_the_outside_is_read(tmp_path: Path) -> None:
    config = load(write(tmp_path, WHOLE, CELL))
    external = config.host.external
    assert [(each.prefix, each.mtu) for each in external.on_link] == [
        (IPv4Network("192.0.2.0/24"), None),
        (IPv4Network("198.51.100.7/32"), 1400),
    ]
    assert [(route.prefix, route.mtu) for route in external.routes] == [
        (IPv4Network("0.0.0.0/0"), None),
        (IPv4Network("203.0.113.0/24"), 1300),
    ]
    assert [(hop.address, hop.weight) for hop in external.routes[0].via] == [
        (parse_address("192.0.2.1"), 3),
        (parse_address("192.0.2.2"), 1),
        (parse_address("198.51.100.7"), 0),
    ]


def test_without_the_key_nothing_is_outside(tmp_path: Path) -> None:
    external = load(write(tmp_path, "queue: 7\n", CELL)).host.external
    assert (external.on_link, external.routes) == ((), ())


def test_the_mtu_is_the_smaller_of_what_is_configured_and_the_uplinks() -> None:
    assert [mtu_of(None, 1500), mtu_of(None, 9000), mtu_of(1400, 1500), mtu_of(3000, 1500)] == [1500, 3990, 1400, 1500]


LINK = "external:\n  on_link: [{prefix: 192.0.2.0/24}]\n"
ONE_PLACE = "virtual addresses are the guests' own: choose another prefix, or another supernet"
MISTAKES = [
    ("external: {on_link: [{prefix: 192.0.2.1/24}]}",
     "1:31: '192.0.2.1/24' is not an IPv4 network (did you mean 192.0.2.0/24?)"),
    ("external: {on_link: [{prefix: 10.1.1.0/24}]}",
     f"1:31: 10.1.1.0/24 is in the virtual supernet 10.0.0.0/8 ({ONE_PLACE})"),
    ("external: {on_link: [{prefix: 0.0.0.0/0}]}",
     "1:31: 0.0.0.0/0 has no unicast addresses of servers (a prefix of unicast addresses, as in 192.0.2.0/24)"),
    ("external: {on_link: [{prefix: 192.0.2.1}, {prefix: 192.0.2.1/32}]}",
     "1:52: 192.0.2.1/32 is here twice (keep one)"),
    ("external: {on_link: [{prefix: 192.0.2.1, mtu: 9000}]}",
     "1:47: an MTU of 9000 is too large: the slow path (netfilterqueue) loses packets above 3990 bytes (3990 at most, "
     "also where the uplink takes more)"),
    ("external: {online: []}", "1:12: unknown key 'online' (did you mean 'on_link'?)"),
    (LINK + "  routes: [{prefix: 0.0.0.0/0, via: [{address: 198.51.100.1}]}]",
     "3:48: next hop 198.51.100.1 is not on link (add `- prefix: 198.51.100.1` to on_link)"),
    (LINK + "  routes: [{prefix: 0.0.0.0/0, via: [{address: 192.0.2.1}, {address: 192.0.2.1}]}]",
     "3:70: next hop 192.0.2.1 is here twice (give one of them more weight)"),
    (LINK + "  routes: [{prefix: 0.0.0.0/0, via: [{address: 192.0.2.1, weight: 0}]}]",
     "3:37: every next hop has weight 0 (0 is for those that wait for others)"),
    (LINK + "  routes: [{prefix: 0.0.0.0/0, via: []}]", 
     "3:37: 'via' must not be empty (Its routers: flows are spread over those that answer)"),
    (LINK + "  routes: [{prefix: 10.2.0.0/16, via: [{address: 192.0.2.1}]}]",
     f"3:21: 10.2.0.0/16 is in the virtual supernet 10.0.0.0/8 ({ONE_PLACE})"),
    ("external: {pools: {public: 10.2.0.0/30}}",
     f"1:28: 10.2.0.0-10.2.0.3 is in the virtual supernet 10.0.0.0/8 ({ONE_PLACE})"),
    ("external: {pools: {public: 192.0.2.9-192.0.2.4}}",
     "1:28: '192.0.2.9-192.0.2.4': a range goes from its lowest to its highest address"),
    ("external: {pools: {public: 192.0.0.0/16}}",
     "1:28: '192.0.0.0/16' has 65536 addresses: a pool takes 256"),
    ("external: {pools: {public: 224.0.0.4}}",
     "1:28: 224.0.0.4/32 has no unicast addresses of servers (unicast addresses that are routed to this host, or on "
     "its link)"),
    ("external: {pools: {a: 192.0.2.4/30, b: 192.0.2.7-192.0.2.8}}",
     "1:40: pool 'b' overlaps pool 'a' (an address belongs to one pool)"),
    ("external: {on_link: [{prefix: 192.0.2.4}], pools: {a: 192.0.2.4/30}}",
     "1:55: pool 'a' has the server on link 192.0.2.4 in it (a pool's addresses are NAT's alone: take others)"),
    (LINK + "  routes: [{prefix: 0.0.0.0/0, via: [{address: 192.0.2.1}]}]\n  pools: {a: 192.0.2.0/30}",
     "4:14: pool 'a' has the next hop 192.0.2.1 in it (a pool's addresses are NAT's alone: take others)"),
]  # fmt: skip


def problems(directory: Path) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        load(directory)
    return [str(problem).removeprefix(f"{directory}/") for problem in caught.value.problems]


@pytest.mark.parametrize(("text", "problem"), MISTAKES)
def test_a_mistake_outside_is_reported_with_its_place_and_a_way_out(tmp_path: Path, text: str, problem: str) -> None:
    assert problems(write(tmp_path, text)) == [f"divhook.yaml:{problem}"]


def test_lists_are_bounded(tmp_path: Path) -> None:
    many = ", ".join(f"{{prefix: 192.{n >> 8}.{n & 255}.1}}" for n in range(MAX_ON_LINK + 1))
    assert (
        f"'on_link' has more than {MAX_ON_LINK} entries"
        in problems(write(tmp_path, f"external: {{on_link: [{many}]}}"))[0]
    )
    hops = ", ".join(f"{{address: 192.0.2.{n + 1}}}" for n in range(MAX_NEXT_HOPS + 1))
    text = LINK + f"  routes: [{{prefix: 0.0.0.0/0, via: [{hops}]}}]"
    assert f"'via' has more than {MAX_NEXT_HOPS} entries" in problems(write(tmp_path, text))[0]


POOLS = "external: {pools: {public: 192.0.2.160/30, more: 192.0.2.9}}\n"
NATTED = "cell: a\nnumber: 1\nsnat: %s\nsubnets: {x: {number: 1}}\n"


def test_a_cell_has_source_nat_from_a_pool_of_its_host(tmp_path: Path) -> None:
    config = load(write(tmp_path, POOLS, NATTED % "{pool: public}"))
    snat = config.cells[0].snat
    assert snat is not None
    pool = config.host.external.pools[snat.pool]
    assert [address_text(address) for address in pool.addresses()] == [f"192.0.2.{n}" for n in range(160, 164)]
    assert str(config.host.external.pools["more"]) == "192.0.2.9-192.0.2.9"


@pytest.mark.parametrize(
    ("snat", "problem"),
    [
        (
            "{pool: publik}",
            "3:7: cell 'a' has source NAT from pool 'publik', which this host has not (give it its part, in "
            "divhook.yaml: `external: pools: publik:`, or did you mean 'public'?)",
        ),
        (
            "on",
            "3:7: snat can't be 'on' (write `snat: host`, or `snat: {pool: NAME}` with a pool of `external` in "
            "divhook.yaml)",
        ),
    ],
)
def test_a_mistake_in_snat_is_reported_with_its_place_and_a_way_out(tmp_path: Path, snat: str, problem: str) -> None:
    assert problems(write(tmp_path, POOLS, NATTED % snat)) == [f"cells/a.yaml:{problem}"]
