"""divhook.yaml and cells/*.yaml as a whole: defaults, cross-checks, and every mistake with its place and a way out."""

from ipaddress import IPv4Network
from pathlib import Path

import pytest

from divhook.agent.topology import topology_of
from divhook.config.configuration import Configuration, UnknownPlaceError
from divhook.config.load import check, load, load_file
from divhook.config.problems import ConfigError
from divhook.core.addressing import AddressPlan, SubnetId, parse_address, parse_mac

SHOP = """\
cell: shop
number: 1
subnets:
  web: {number: 1, dns: [192.0.2.53, 192.0.2.54], lease: 2h}
  db: {number: 2}
endpoints:
  - guest: shop-db
    subnet: db
    address: 10.1.2.20
"""
LAB = "cell: lab\nnumber: 2\nsubnets:\n  web: {number: 1}\n"


class Etc:
    """A configuration directory under construction."""

    def __init__(self, root: Path) -> None:
        self.root = root
        (root / "cells").mkdir()

    def put(self, name: str, text: str | bytes) -> "Etc":
        (self.root / name).write_bytes(text.encode() if isinstance(text, str) else text)
        return self

    def load(self) -> Configuration:
        return load(self.root)

    def problems(self) -> list[str]:
        """Every problem as text, without the directory."""
        with pytest.raises(ConfigError) as caught:
            load(self.root)
        return [str(p).replace(f"{self.root}/", "") for p in caught.value.problems]


@pytest.fixture
def etc(tmp_path: Path) -> Etc:
    return Etc(tmp_path)


def test_no_file_at_all_gives_the_defaults(tmp_path: Path) -> None:
    config = load(tmp_path / "missing")
    assert config.plan == AddressPlan()
    assert config.host.uplink is None
    assert config.host.key_file == "/etc/divhook/cluster.key"
    assert config.host.fastpath is True
    assert config.host.bridge == "divbr0"
    assert config.cells == ()


def test_every_host_key_is_read(etc: Etc) -> None:
    etc.put(
        "divhook.yaml",
        "uplink: enp7s0\ncluster: east\nkey_file: /k\nfastpath: off\n"
        "addresses: {supernet: 172.16.0.0/12, cell_bits: 6, subnet_bits: 5, host_bits: 9}\n"
        "libvirt_uri: test:///default\nbridge: br7\nnetwork: other\nqueue: 7\ndiscovery: {ethertype: 0x88b5}\n"
        "limits: {divert_pps: 11, divert_burst: 12, dhcp_pps: 13, miss_pps_port: 14, miss_pps_host: 15}\n"
        "log_level: debug\n",
    )
    host = etc.load().host
    assert (host.uplink, host.cluster, host.key_file, host.fastpath) == ("enp7s0", "east", "/k", False)
    assert (host.libvirt_uri, host.bridge, host.network, host.queue) == ("test:///default", "br7", "other", 7)
    assert (host.discovery.ethertype, host.log_level) == ("0x88b5", "debug")
    assert tuple(host.limits.model_dump().values()) == (11, 12, 13, 14, 15)
    assert etc.load().plan == AddressPlan(IPv4Network("172.16.0.0/12"), 6, 5, 9)


def test_subnets_are_found_by_place_name_and_number(etc: Etc) -> None:
    config = etc.put("cells/shop.yaml", SHOP).put("cells/lab.yaml", LAB).load()
    web = config.find_subnet("shop", "web")
    assert config.subnet(SubnetId(1, 1)) is web
    assert config.find_subnet("1", "1") is web
    assert config.find_subnet(1, 1) is web
    assert config.find_subnet("lab", "web").id == SubnetId(2, 1)
    assert config.subnet(SubnetId(2, 2)) is None
    assert (str(web), web.dns, web.lease_s) == (
        "shop/web",
        (parse_address("192.0.2.53"), parse_address("192.0.2.54")),
        7200,
    )


@pytest.mark.parametrize(
    ("cell", "subnet", "text"),
    [
        ("web", "web", "cell 'web' is not known here; cells: lab, shop"),
        ("shpo", "web", "cell 'shpo' is not known here; did you mean 'shop'?"),
        ("9", "web", "cell '9' is not known here; cells: lab, shop"),
        ("shop", "dbs", "cell 'shop' has no subnet 'dbs'; did you mean 'db'?"),
        ("shop", "9", "cell 'shop' has no subnet '9'; subnets: db, web"),
    ],
)
def test_an_unknown_place_is_named_with_those_that_exist(etc: Etc, cell: str, subnet: str, text: str) -> None:
    config = etc.put("cells/shop.yaml", SHOP).put("cells/lab.yaml", LAB).load()
    with pytest.raises(UnknownPlaceError) as caught:
        config.find_subnet(cell, subnet)
    assert str(caught.value) == text


def test_an_empty_configuration_says_that_there_are_no_cells(tmp_path: Path) -> None:
    with pytest.raises(UnknownPlaceError, match=r"^cell 'web' is not known here; cells: none$"):
        load(tmp_path).find_subnet("web", "web")


def test_static_addresses_are_reserved_in_their_subnet_only(etc: Etc) -> None:
    config = etc.put("cells/shop.yaml", SHOP).load()
    assert list(config.static_addresses(SubnetId(1, 2))) == [parse_address("10.1.2.20")]
    assert config.static_addresses(SubnetId(1, 1)) == {}
    assert config.endpoints[0].source == "cells/shop.yaml:7"


def test_the_limit_of_group_frames_is_a_number_or_off(etc: Etc) -> None:
    text = "cell: a\nnumber: 1\nsubnets: {x: {number: 1}, y: {number: 2, group_pps: 7}, z: {number: 3, group_pps: off}}"
    config = etc.put("cells/a.yaml", text).load()
    assert [config.find_subnet("a", name).group_limit for name in "xyz"] == [200, 7, None]


def test_the_mtu_follows_the_uplink_up_to_the_slow_paths_limit(etc: Etc) -> None:
    config = etc.put("cells/a.yaml", "cell: a\nnumber: 1\nsubnets: {x: {number: 1}, y: {number: 2, mtu: 1400}}").load()
    assert [config.find_subnet("a", "x").mtu_with(m) for m in (1500, 9000)] == [1500, 3990]
    assert config.find_subnet("a", "y").mtu_with(1500) == 1400


def test_a_route_leads_to_the_router_where_it_names_no_next_hop(etc: Etc) -> None:
    text = (
        "cell: a\nnumber: 3\nsubnets:\n  x:\n    number: 4\n    routes:\n"
        "      - destination: 198.51.100.0/24\n      - {destination: 203.0.113.0/25, via: 10.3.4.9}\n"
    )
    config = etc.put("cells/a.yaml", text).load()
    assert config.find_subnet("a", "x").routes_via(config.plan) == (
        (IPv4Network("198.51.100.0/24"), parse_address("10.3.4.1")),
        (IPv4Network("203.0.113.0/25"), parse_address("10.3.4.9")),
    )


def test_dhcp_options_are_encoded_by_name_and_number(etc: Etc) -> None:
    text = (
        "cell: a\nnumber: 3\nsubnets:\n  x:\n    number: 4\n    options:\n      time-offset: -3600\n"
        "      tftp-server-name: boot\n      150: [192.0.2.7, 192.0.2.8]\n      19: true\n      224: 'hex:0b:ad'\n"
        "      225: text\n      226: [192.0.2.9]\n      default-ttl: 61\n      vendor-specific: 'hex:010203'\n"
    )
    options = etc.put("cells/a.yaml", text).load().find_subnet("a", "x").dhcp_options
    assert options == (
        (2, b"\xff\xff\xf1\xf0"),
        (19, b"\x01"),
        (23, b"\x3d"),
        (43, b"\x01\x02\x03"),
        (66, b"boot"),
        (150, b"\xc0\x00\x02\x07\xc0\x00\x02\x08"),
        (224, b"\x0b\xad"),
        (225, b"text"),
        (226, b"\xc0\x00\x02\x09"),
    )


# Each row: a file, and its one problem.
HOST_MISTAKES = [
    ("uplnk: eth0", "1:1: unknown key 'uplnk' (did you mean 'uplink'?)"),
    ("a: 1", "1:1: unknown key 'a' (possible here: addresses, bridge, cluster, discovery, external, fastpath, "
     "handover_port, key_file, libvirt_uri, limits, log_level, network, queue, resolvers, uplink)"),
    ("queue: 70000", "1:8: 'queue' is 70000: it must be at most 65535"),
    ("queue: '7'", "1:8: 'queue' must be a whole number, not '7' (without the quotes)"),
    ("queue: true", "1:8: 'queue' must be a whole number, not true"),
    ("fastpath: maybe", "1:11: 'maybe' is neither on nor off (write on or off)"),
    ("log_level: warn", "1:12: 'log_level' can't be 'warn' (did you mean 'warning'?)"),
    ("discovery: {ethertype: ARP}", "1:24: 'ethertype' can't be 'ARP' (possible: 0x88b5, arp)"),
    ("discovery: arp", "1:12: 'discovery' must be a mapping, not 'arp' (indented lines of `key: value`)"),
    ("limits:\n  divert_pps: 0", "2:15: 'divert_pps' is 0: it must be at least 1"),
    ("limits:\n  divert_pp: 9", "2:3: unknown key 'divert_pp' (did you mean 'divert_pps'?)"),
    ("key_file: cluster.key", "1:11: 'cluster.key' is not an absolute path (it starts with /)"),
    ("uplink: a-name-of-16-by", None),
    ("uplink: a-name-of-16-byt",
     "1:9: 'a-name-of-16-byt' is no name of a network interface (as `ip link` shows it: 15 "
     "bytes at most)"),
    ("addresses: {supernet: 10.1.0.0/8}", "1:23: '10.1.0.0/8' is not an IPv4 network (did you mean 10.0.0.0/8?)"),
    ("addresses: {supernet: 224.0.0.0/8}",
     "1:23: supernet 224.0.0.0/8 is not usable for unicast addresses (for example 10.0.0.0/8)"),
    ("addresses: {host_bits: 9}", "1:12: address plan: /8 + 8 + 8 + 9 bits is 33, not 32 (cell_bits, subnet_bits and "
     "host_bits must add up to 24 for 10.0.0.0/8)"),
    ("- a", "1:1: the file must be a mapping, not a list (indented lines of `key: value`)"),
]  # fmt: skip


@pytest.mark.parametrize(("text", "problem"), HOST_MISTAKES)
def test_a_mistake_in_divhook_yaml_is_reported_with_its_place(etc: Etc, text: str, problem: str | None) -> None:
    etc.put("divhook.yaml", text)
    if problem is None:
        etc.load()
    else:
        assert etc.problems() == [f"divhook.yaml:{problem}"]


CELL_MISTAKES = [
    ("number: 1\nsubnets: {a: {number: 1}}", "1:1: key 'cell' is missing (Name of the cell)"),
    ("cell: a\nnumber: 1\nsubnets:\n  web: {}",
     "4:3: key 'number' is missing (Its number in the address plan, unique in the cell)"),
    ("cell: a\nnumber: 1\nsubnets: {}", "3:10: 'subnets' must not be empty (Its subnets by name)"),
    ("cell: true\nnumber: 1\nsubnets: {a: {number: 1}}",
     "1:7: a name must be text, not true (write it in quotes: \"true\")"),
    ("cell: 12\nnumber: 1\nsubnets: {a: {number: 1}}",
     "1:7: a name must be text, not 12 (write it in quotes: \"12\")"),
    ("cell: '12'\nnumber: 1\nsubnets: {a: {number: 1}}", "1:7: '12' is a number, not a name (a name has at least one "
     "letter)"),
    ("cell: My Shop\nnumber: 1\nsubnets: {a: {number: 1}}",
     "1:7: 'My Shop' is not a name: 1 to 63 of a-z, 0-9 and '-', no '-' at an end (RFC 1123) (for example 'my-shop')"),
    ("cell: a\nnumber: 256\nsubnets: {a: {number: 1}}",
     "2:9: cell number 256 is outside the address plan (0 to 255, by cell_bits of divhook.yaml)"),
    ("cell: a\nnumber: -1\nsubnets: {a: {number: 1}}", "2:9: 'number' is -1: it must be at least 0"),
    ("cell: a\nnumber: 1\nsubnets: {A_: {number: 1}}",
     "3:11: 'A_' is not a name: 1 to 63 of a-z, 0-9 and '-', no '-' at an end (RFC 1123) (for example 'a')"),
]  # fmt: skip


@pytest.mark.parametrize(("text", "problem"), CELL_MISTAKES)
def test_a_mistake_in_a_cell_file_is_reported_with_its_place(etc: Etc, text: str, problem: str) -> None:
    assert etc.put("cells/x.yaml", text).problems() == [f"cells/x.yaml:{problem}"]


def test_each_problem_is_one_line_whatever_is_in_a_key(etc: Etc) -> None:
    assert etc.put("cells/x.yaml", 'cell: a\nnumber: 1\nsubnets: {"b\\n": 5}').problems() == [
        "cells/x.yaml:3:11: 'b\\n' is not a name: 1 to 63 of a-z, 0-9 and '-', no '-' at an end (RFC 1123) "
        "(for example 'b')",
        r"cells/x.yaml:3:18: 'b\n' must be a mapping, not 5 (indented lines of `key: value`)",
    ]


SUBNET_MISTAKES = [
    ("number: 300", "11: subnet number 300 is outside the address plan (0 to 255, by subnet_bits of divhook.yaml)"),
    ("dns: 192.0.2.53", "8: 'dns' must be a list, not '192.0.2.53' (write [192.0.2.53])"),
    (r'dns: "a\nb"', r"8: 'dns' must be a list, not 'a\nb' (one line with `- ` per item, or [a, b])"),
    ("dns: [192.0.2.53, 192.0.2.530]",
     "21: '192.0.2.530' is not an IPv4 address (four numbers of 0 to 255, as in 10.1.2.5)"),
    ("ntp: ['2001:db8::1']", "9: '2001:db8::1' is not an IPv4 address (IPv6 is not supported yet)"),
    ("ntp: [7]", "9: an address must be text, not 7 (write it in quotes: \"7\")"),
    ("domain: example.net.", "11: 'example.net.' is not a domain name (without the dot at the end)"),
    ("search: [a..b]", "12: 'a..b' is not a domain name (labels of letters, digits and '-', joined by dots)"),
    ("mtu: 9000", "8: an MTU of 9000 is too large: the slow path (netfilterqueue) loses packets above 3990 bytes "
     "(3990 at most, also where the uplink takes more)"),
    ("mtu: 575", "8: an MTU of 575 is too small (IPv4 needs 576 at least (RFC 791))"),
    ("mtu: '1500'", "8: an MTU must be a whole number, not '1500' (for example 1500)"),
    ("lease: 1 hour",
     "10: '1 hour' is no lease time (seconds, or a number with a unit: \"90s\", \"30m\", \"1h\", \"7d\")"),
    ("lease: 59", "10: a lease of 59 s is outside 60 s to 31622400 s (one year)"),
    ("group_pps: 0", "14: a rate of 0 frames/s is outside 1 to 10000000 (or `off` for no limit)"),
    ("group_pps: on", "14: a rate must be a whole number or off, not 'on' (for example 200)"),
    ("leese: 1h", "3: unknown key 'leese' (did you mean 'lease'?)"),
    ("boot_file: ünix", "14: 'ünix' is no boot file name (1 to 127 printable ASCII characters)"),
    ("routes: [{via: 10.1.1.9}]", "12: key 'destination' is missing (Prefix that is reached this way)"),
    ("routes: [{destination: 192.0.2.0/24, via: 10.1.2.9}]",
     "45: address 10.1.2.9 is not in subnet a/web, which is 10.1.1.0/24 (the next hop must be in the guests' own "
     "subnet; without `via` it is the virtual router)"),
    ("options: {66: 5}", "17: DHCP option 66 must be text, not 5 (quotes make it text: \"5\")"),
    ("options: {3: [10.1.1.9]}", "16: DHCP option 3 is not free to set (the router follows from the address plan)"),
    ("options: {tftp-server: a}",
     "26: unknown DHCP option 'tftp-server' (did you mean 'tftp-server-name'? Or give its number.)"),
    ("options: {66: a, tftp-server-name: b}", "38: DHCP option 66 is here twice, by name and by number (keep one)"),
    ("options: {224: 5}", "18: DHCP option 224 must be text, a list of addresses, or \"hex:0a0b\", not 5"),
    ("options: {224: 'hex:0'}", "18: DHCP option 224: 'hex:0' is not hex (two digits per byte, as in \"hex:0a0b0c\")"),
    ("options: {224: ''}", "18: DHCP option 224 has 0 bytes (1 to 255 fit into one)"),
    ("options: {default-ttl: 256}", "26: DHCP option default-ttl must be a whole number of 0 to 255, not 256"),
    ("options: [a]", "12: DHCP options must be a mapping, not a list (one line per option, `code or name: value`)"),
]  # fmt: skip


@pytest.mark.parametrize(("line", "problem"), SUBNET_MISTAKES)
def test_a_mistake_in_a_subnet_is_reported_with_its_place(etc: Etc, line: str, problem: str) -> None:
    number = "" if line.startswith("number") else "  number: 1\n"
    text = f"cell: a\nnumber: 1\nsubnets:\n web:\n{number}  {line}\n"
    row = 5 + (number != "")
    column, rest = problem.split(":", 1)
    if "options" in line and "must be a mapping" not in problem:
        column = problem.split(":", 1)[0]
    assert etc.put("cells/x.yaml", text).problems() == [f"cells/x.yaml:{row}:{column}:{rest}"]


ENDPOINT_MISTAKES = [
    ("{subnet: web}", "3: this endpoint names no NIC (add `guest: NAME` or `mac: ADDRESS`)"),
    ("{guest: g, subnet: wep}", "22: cell 'a' has no subnet 'wep' (did you mean 'web'?)"),
    ("{guest: g, subnet: web, address: 10.1.2.9}",
     "36: address 10.1.2.9 is not in subnet a/web, which is 10.1.1.0/24 (10.1.1.2 to 10.1.1.254)"),
    ("{guest: g, subnet: web, address: 10.1.1.1}",
     "36: address 10.1.1.1 is the virtual router of subnet a/web (10.1.1.2 to 10.1.1.254)"),
    ("{guest: g, subnet: web, address: 10.1.1.255}", "36: address 10.1.1.255 is the network or broadcast address of "
     "subnet a/web, which is 10.1.1.0/24 (10.1.1.2 to 10.1.1.254)"),
    ("{guest: g, subnet: web, address: 192.0.2.9}",
     "36: address 192.0.2.9 is not in subnet a/web, which is 10.1.1.0/24 (10.1.1.2 to 10.1.1.254)"),
    ("{guest: a/b, subnet: web}", "11: 'a/b' is no name of a libvirt guest (as `virsh list --all` shows it)"),
    ("{mac: 52:54:00:11:22, subnet: web}",
     "9: '52:54:00:11:22' is not a MAC address (six bytes in hex, as in 52:54:00:12:34:56)"),
    ("{mac: 53:54:00:11:22:33, subnet: web}",
     "9: 53:54:00:11:22:33 is no unicast address (a guest's MAC has an even first byte)"),
    ("{mac: 02:d1:00:11:22:33, subnet: web}", "9: 02:d1:00:11:22:33 is in the space of divhook's own router and group "
     "MACs (02:d1, 03:d1) (give the guest another MAC, for example one that starts with 52:54:00)"),
    ("{guest: g, subnet: web, hostname: g.example.net}", "37: 'g.example.net' is not a host name: letters, digits and "
     "'-', at most 63 (RFC 1123) (only 'g': the domain is the subnet's)"),
]  # fmt: skip


@pytest.mark.parametrize(("endpoint", "problem"), ENDPOINT_MISTAKES)
def test_a_mistake_in_an_endpoint_is_reported_with_its_place(etc: Etc, endpoint: str, problem: str) -> None:
    text = f"cell: a\nnumber: 1\nsubnets: {{web: {{number: 1}}}}\nendpoints:\n- {endpoint}\n"
    assert etc.put("cells/x.yaml", text).problems() == [f"cells/x.yaml:5:{problem}"]


def test_duplicates_across_files_name_both_places(etc: Etc) -> None:
    first = (
        "cell: shop\nnumber: 1\nsubnets: {web: {number: 1}}\nendpoints:\n"
        "  - {mac: 52:54:00:11:22:33, subnet: web, address: 10.1.1.7}\n  - {guest: g, subnet: web}\n"
        "  - {guest: h, subnet: web, address: 10.1.1.7}\n  - {guest: g, subnet: web}\n"
    )
    second = (
        "cell: shop\nnumber: 1\nsubnets: {web: {number: 1}, db: {number: 1}}\nendpoints:\n"
        "  - {mac: 52:54:00:11:22:33, subnet: db}\n"
    )
    problems = etc.put("cells/a.yaml", first).put("cells/b.yaml", second).problems()
    hint = "each belongs to one place: change one of them"
    assert [p.replace(f"{etc.root}/", "") for p in problems] == [
        f"cells/a.yaml:7:38: address 10.1.1.7 is also in cells/a.yaml:5:52 ({hint})",
        f"cells/a.yaml:8:13: guest 'g' in subnet shop/web is also in cells/a.yaml:6:13 ({hint})",
        f"cells/b.yaml:1:7: cell name 'shop' is also in cells/a.yaml:1:7 ({hint})",
        f"cells/b.yaml:2:9: cell number 1 is also in cells/a.yaml:2:9 ({hint})",
        f"cells/b.yaml:3:42: subnet number 1 is also in cells/b.yaml:3:25 ({hint})",
        f"cells/b.yaml:5:11: MAC 52:54:00:11:22:33 is also in cells/a.yaml:5:11 ({hint})",
    ]


def test_all_problems_of_all_files_come_at_once(etc: Etc) -> None:
    etc.put("divhook.yaml", "queue: x\nuplnk: y\n").put("cells/a.yaml", "cell: [\n").put("cells/b.yaml", "cell: b\n")
    assert [p.split(": ")[0] for p in etc.problems()] == [
        "cells/a.yaml:2:1",
        "cells/b.yaml:1:1",
        "cells/b.yaml:1:1",
        "divhook.yaml:1:8",
        "divhook.yaml:2:1",
    ]


def test_several_bad_options_are_each_reported(etc: Etc) -> None:
    text = "cell: a\nnumber: 1\nsubnets:\n  x:\n    number: 1\n    options:\n      1: a\n      66: 1\n      nope: 2\n"
    assert [p.split(": ")[0] for p in etc.put("cells/a.yaml", text).problems()] == [
        "cells/a.yaml:7:10",
        "cells/a.yaml:8:11",
        "cells/a.yaml:9:13",
    ]


def test_a_bad_host_file_does_not_hide_a_cell_files_own_mistakes_nor_invent_some(etc: Etc) -> None:
    etc.put("divhook.yaml", "queue: x\n").put("cells/a.yaml", SHOP.replace("shop-db", "a/b"))
    assert [p.split(": ")[0] for p in etc.problems()] == ["cells/a.yaml:7:12", "divhook.yaml:1:8"]


def test_a_file_that_would_be_ignored_is_a_problem(etc: Etc) -> None:
    etc.put("divhook.yml", "").put("cells/shop.yml", SHOP).put("cells/.shop.yaml.swp", "x").put("cells/shop.yaml~", "x")
    assert etc.problems() == [
        "cells/shop.yml: this file is not read: cell files end in .yaml (rename it to shop.yaml)",
        "divhook.yml: this file is not read (rename it to divhook.yaml)",
    ]


def test_an_unreadable_file_is_a_problem(etc: Etc) -> None:
    (etc.root / "cells" / "dir.yaml").mkdir()
    assert etc.problems() == ["cells/dir.yaml: can't be read: Is a directory"]


def test_one_file_is_checked_alone_against_the_plan_beside_it(etc: Etc) -> None:
    etc.put("divhook.yaml", "addresses: {cell_bits: 4, subnet_bits: 12}").put(
        "cells/a.yaml", SHOP.replace("10.", "90.")
    )
    with pytest.raises(ConfigError, match=r"a.yaml:9:14: address 90.1.2.20 is not in subnet shop/db"):
        load_file(etc.root / "cells" / "a.yaml")
    assert load_file(etc.root / "divhook.yaml").plan.cell_bits == 4


def test_check_of_a_missing_path_says_so(tmp_path: Path) -> None:
    config, problems = check(tmp_path / "nowhere")
    assert config is None
    assert [str(p) for p in problems] == [f"{tmp_path}/nowhere: there is no such file or directory"]


def test_values_are_frozen(etc: Etc) -> None:
    config = etc.put("cells/shop.yaml", SHOP).load()
    with pytest.raises(ValueError, match="frozen"):
        config.host.queue = 3  # type: ignore[misc]
    with pytest.raises(ValueError, match="frozen"):
        config.find_subnet("shop", "web").lease = 3  # type: ignore[misc]


def test_the_mac_of_a_static_endpoint_needs_no_quotes(etc: Etc) -> None:
    text = "cell: a\nnumber: 1\nsubnets: {x: {number: 1}}\nendpoints:\n  - mac: 52:54:00:11:22:33\n    subnet: x\n"
    assert etc.put("cells/a.yaml", text).load().endpoints[0].config.mac == parse_mac("52:54:00:11:22:33")


def test_multicast_stays_in_its_subnet_unless_the_cell_says_otherwise(etc: Etc) -> None:
    text = "cell: {0}\nnumber: {1}\nsubnets: {{x: {{number: 1}}}}\n"
    etc.put("cells/a.yaml", text.format("a", 1))
    config = etc.put("cells/b.yaml", text.format("b", 2) + "multicast: cell\n").load()
    routed = {subnet.cell: facts.groups_routed for subnet, facts in topology_of(config, 1500).items()}
    assert routed == {1: False, 2: True}
    etc.put("cells/b.yaml", text.format("b", 2) + "multicast: everywhere\n")
    assert "'multicast' can't be 'everywhere'" in etc.problems()[0]
