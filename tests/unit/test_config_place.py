"""Where a NIC belongs: metadata, cell files, both; and the text where nobody can say."""

from pathlib import Path

import pytest

from divhook.config.configuration import Configuration, Placement, PlacementError
from divhook.config.domain import Assignment, DomainNic, guest_element, read_assignments
from divhook.config.load import load
from divhook.config.problems import ConfigError
from divhook.core.addressing import SubnetId, parse_address, parse_mac

SHOP = """\
cell: shop
number: 1
subnets:
  web: {number: 1}
  db: {number: 2}
endpoints:
  - {guest: shop-db, subnet: db, address: 10.1.2.20, hostname: db}
  - {mac: 52:54:00:aa:bb:cc, subnet: web, address: 10.1.1.30}
  - {guest: two, subnet: web, address: 10.1.1.40}
  - {guest: two, subnet: db}
  - {guest: pinned, mac: 52:54:00:dd:ee:ff, subnet: web}
"""
MAC = parse_mac("52:54:00:11:22:33")


@pytest.fixture
def config(tmp_path: Path) -> Configuration:
    (tmp_path / "cells").mkdir()
    (tmp_path / "cells" / "shop.yaml").write_text(SHOP)
    return load(tmp_path)


def nic(
    cell: str = "", subnet: str = "", address: str = "", hostname: str = "", mac: bytes = MAC, only: bool = True
) -> DomainNic:
    wanted = Assignment(cell, subnet, parse_address(address) if address else None, hostname or None)
    return DomainNic(mac=mac, assignment=wanted if cell else None, only=only)


def refusal(config: Configuration, nic: DomainNic, guest: str) -> str:
    with pytest.raises(PlacementError) as caught:
        config.place(nic, guest)
    return str(caught.value)


def test_metadata_places_a_nic(config: Configuration) -> None:
    placement = config.place(nic("shop", "web", "10.1.1.7", "front"), "web1")
    web = config.find_subnet("shop", "web")
    assert placement == Placement(SubnetId(1, 1), web, parse_address("10.1.1.7"), "front", "metadata")


def test_metadata_may_use_numbers_and_leave_the_address_open(config: Configuration) -> None:
    placement = config.place(nic("1", "2"), "web1")
    assert (placement.id, placement.address, placement.hostname) == (SubnetId(1, 2), None, None)


def test_a_cell_file_places_a_guest_by_name(config: Configuration) -> None:
    placement = config.place(nic(), "shop-db")
    db = config.find_subnet("shop", "db")
    assert placement == Placement(SubnetId(1, 2), db, parse_address("10.1.2.20"), "db", "cells/shop.yaml:7")


def test_a_cell_file_places_a_nic_by_mac_whatever_the_guest(config: Configuration) -> None:
    placement = config.place(nic(mac=parse_mac("52:54:00:aa:bb:cc"), only=False), "any")
    assert (placement.id, placement.address, placement.source) == (
        SubnetId(1, 1),
        parse_address("10.1.1.30"),
        "cells/shop.yaml:8",
    )


def test_a_cell_file_adds_what_the_metadata_leaves_open(config: Configuration) -> None:
    placement = config.place(nic("shop", "db"), "shop-db")
    assert (placement.address, placement.hostname) == (parse_address("10.1.2.20"), "db")
    assert placement.source == "metadata, cells/shop.yaml:7"


def test_agreement_of_both_is_fine(config: Configuration) -> None:
    placement = config.place(nic("shop", "db", "10.1.2.20", "db"), "shop-db")
    assert placement.address == parse_address("10.1.2.20")


def test_one_entry_per_subnet_serves_a_guest_with_two_nics_that_say_their_subnet(config: Configuration) -> None:
    web = config.place(nic("shop", "web", only=False), "two")
    db = config.place(nic("shop", "db", only=False), "two")
    assert (web.address, web.source) == (parse_address("10.1.1.40"), "metadata, cells/shop.yaml:9")
    assert (db.address, db.source) == (None, "metadata, cells/shop.yaml:10")


def test_a_second_nic_elsewhere_is_no_conflict_with_an_entry_by_guest_name(config: Configuration) -> None:
    placement = config.place(nic("shop", "web", only=False), "shop-db")
    assert (placement.id, placement.address, placement.source) == (SubnetId(1, 1), None, "metadata")


WHO = "guest 'web1', NIC 52:54:00:11:22:33: "
DB = "guest 'shop-db', NIC 52:54:00:11:22:33: "


@pytest.mark.parametrize(
    ("guest", "wanted", "text"),
    [
        ("web1", nic(), WHO + "belongs to no cell and subnet (run `divhook assign web1 --cell CELL --subnet SUBNET`, "
         "or name it in a cell file)"),
        ("web1", nic("shp", "web"), WHO + "cell 'shp' is not known here; did you mean 'shop'? (correct it with "
         "`divhook assign web1 --cell … --subnet …`, or add a cell file)"),
        ("web1", nic("shop", "x"), WHO + "cell 'shop' has no subnet 'x'; subnets: db, web (correct it with `divhook "
         "assign web1 --cell … --subnet …`, or add a cell file)"),
        ("web1", nic("shop", "web", "10.1.2.7"), WHO + "address 10.1.2.7 is not in subnet shop/web, which is "
         "10.1.1.0/24 (by metadata: choose another, or none)"),
        ("web1", nic("shop", "web", "10.1.1.1"), WHO + "address 10.1.1.1 is the virtual router of subnet shop/web (by "
         "metadata: choose another, or none)"),
        ("web1", nic("shop", "web", "10.1.1.0"), WHO + "address 10.1.1.0 is the network or broadcast address of subnet "
         "shop/web, which is 10.1.1.0/24 (by metadata: choose another, or none)"),
        ("web1", nic("shop", "db", "10.1.2.20"), WHO + "address 10.1.2.20 belongs to guest 'shop-db' by "
         "cells/shop.yaml:7 (choose another, or remove that)"),
        ("web1", nic("shop", "web", "10.1.1.30"), WHO + "address 10.1.1.30 belongs to 52:54:00:aa:bb:cc by "
         "cells/shop.yaml:8 (choose another, or remove that)"),
        ("shop-db", nic("shop", "web"), DB + "the guest's metadata says subnet shop/web, but cells/shop.yaml:7 says "
         "shop/db (make them agree, or remove one)"),
        ("shop-db", nic("shop", "db", "10.1.2.21"), DB + "the guest's metadata says address 10.1.2.21, but "
         "cells/shop.yaml:7 says 10.1.2.20 (make them agree, or remove one)"),
        ("shop-db", nic("shop", "db", hostname="x"), DB + "the guest's metadata says hostname x, but cells/shop.yaml:7 "
         "says db (make them agree, or remove one)"),
        ("shop-db", nic(only=False), DB + "cells/shop.yaml:7 names the guest, which has several divhook NICs (add "
         "`mac:` there)"),
        ("two", nic(), "guest 'two', NIC 52:54:00:11:22:33: cells/shop.yaml:9 and cells/shop.yaml:10 both name the "
         "guest (add `mac:` there, or remove one)"),
        ("web1", nic(mac=parse_mac("52:54:00:dd:ee:ff")), "guest 'web1', NIC 52:54:00:dd:ee:ff: cells/shop.yaml:11 "
         "gives this MAC to guest 'pinned' (two guests must not share a MAC: change one)"),
    ],
)  # fmt: skip
def test_a_nic_without_a_usable_place_is_refused_by_name(
    config: Configuration, guest: str, wanted: DomainNic, text: str
) -> None:
    assert refusal(config, wanted, guest) == text


def test_a_note_on_the_metadata_is_passed_on(config: Configuration) -> None:
    stray = DomainNic(mac=MAC, note="its metadata speaks of 52:54:00:11:22:34")
    assert "belongs to no cell and subnet; its metadata speaks of 52:54:00:11:22:34 (run" in refusal(config, stray, "g")


def allowed(*addresses: str) -> DomainNic:
    wanted = Assignment("shop", "web", parse_address("10.1.1.7"), allowed=tuple(map(parse_address, addresses)))
    return DomainNic(mac=MAC, assignment=wanted, only=True)


def test_metadata_may_allow_further_addresses_but_no_other_nics(config: Configuration) -> None:
    assert config.place(allowed("10.1.1.100"), "web1").allowed == (parse_address("10.1.1.100"),)
    for address, why in (
        ("10.1.1.7", "allowed address 10.1.1.7 is its own address already"),
        ("10.1.1.1", "allowed address 10.1.1.1 is the virtual router"),
        ("10.1.2.9", "allowed address 10.1.2.9 is not in subnet shop/web"),
        ("10.1.1.255", "allowed address 10.1.1.255 is the network or broadcast address"),
    ):
        assert why in refusal(config, allowed(address), "web1")


def test_a_cell_file_may_allow_an_address_to_several_but_none_that_is_fixed(tmp_path: Path) -> None:
    (tmp_path / "cells").mkdir()
    path = tmp_path / "cells" / "shop.yaml"
    text = "cell: shop\nnumber: 1\nsubnets: {web: {number: 1}}\nendpoints:\n"
    text += "".join(f"  - {{guest: {name}, subnet: web, allowed_addresses: [10.1.1.100]}}\n" for name in ("a", "b"))
    path.write_text(text)
    config = load(tmp_path)
    assert config.allowed_addresses() == {parse_address("10.1.1.100")}
    assert config.place(nic("shop", "web"), "b").allowed == (parse_address("10.1.1.100"),)
    path.write_text(text + "  - {guest: c, subnet: web, address: 10.1.1.100}\n")
    with pytest.raises(ConfigError, match=r"address 10.1.1.100 is the fixed one of cells/shop.yaml:7"):
        load(tmp_path)


def test_metadata_keeps_allowed_addresses_as_they_were_written() -> None:
    wanted = Assignment("shop", "web", allowed=(parse_address("10.1.1.100"), parse_address("10.1.1.101")))
    xml = guest_element([(MAC, wanted)], namespaced=True)
    assert 'allowed-addresses="10.1.1.100 10.1.1.101"' in xml
    assert read_assignments(xml) == [(MAC, wanted)]
