"""Where a guest belongs: by its metadata, by `divhook assign`, by a cell file, for each of its NICs."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from host_state import rows
from lab_cast import Cast

from divhook.lab.demo import ping
from divhook.lab.errors import LabError
from divhook.lab.guest import GuestSpec, LabGuest, Nic, default_mac
from divhook.lab.host import LabHost
from divhook.lab.lab import Lab
from divhook.lab.processes import wait_until

pytestmark = pytest.mark.one_mode

BY_MAC = "52:54:00:9a:07:01"
ANNEX = f"""
cell: annex
number: 9
owner: annex
subnets:
  north: {{number: 3}}
  south: {{number: 4}}
endpoints:
  - mac: {BY_MAC}
    subnet: north
    address: 10.9.3.33
    hostname: by-mac
  - guest: called
    subnet: south
    address: 10.9.4.44
  - guest: addressless
    subnet: south
"""


@pytest.fixture(scope="module")
def annex(lab: Lab, cast: Cast) -> Iterator[LabHost]:
    """Host A with one more cell; only this host has its file."""
    host = lab.host("A")
    path: Path = host.outside("/etc/divhook/cells/annex.yaml")
    path.write_text(ANNEX)
    host.divhook("reload")
    yield host
    path.unlink()
    host.divhook("reload")


def places(host: LabHost, guest: str) -> list[tuple[str, str, str]]:
    """(cell, subnet, address) of each NIC."""
    found = [row for row in rows(host, "endpoints") if row["guest"] == guest]
    return [(row["subnet"].split("/")[0], row["subnet"].split("/")[-1], row["address"]) for row in found]


def test_cell_file_places_by_mac_and_by_name_with_address_and_host_name(lab: Lab, annex: LabHost) -> None:
    """One NIC is on the bridge, the others on libvirt's network: it is the same."""
    specs = [
        GuestSpec("anyname", (Nic("", "", mac=BY_MAC),), metadata=False),
        GuestSpec("called", (Nic("", ""),), metadata=False),
        GuestSpec("addressless", (Nic("", ""),), bridge="divbr0", metadata=False),
    ]
    mac, name, free = lab.start_all([(spec, "A") for spec in specs])
    assert mac.wait_address() == "10.9.3.33"
    assert mac.dhcp_options()["hostname"] == "by-mac"
    assert name.wait_address() == "10.9.4.44"
    assert free.wait_address().startswith("10.9.4.")
    assert free.wait_address() not in ("10.9.4.1", "10.9.4.44")
    assert ping(mac, "10.9.4.44", 2).ttls == {63}
    assert ping(name, free.wait_address(), 2).ttls == {64}
    for guest in (mac, name, free):
        guest.stop()


def test_address_that_a_file_gives_by_mac_is_no_other_guests(lab: Lab, annex: LabHost) -> None:
    lab.define(GuestSpec("thief", (Nic("annex", "north", "10.9.3.33"),)), "A")
    with pytest.raises(LabError, match=f"10.9.3.33 belongs to {BY_MAC}"):
        annex.virsh("start", "thief")
    annex.virsh("undefine", "thief")


def test_one_guest_in_three_cells_is_a_member_of_each_and_a_bridge_of_none(
    lab: Lab, cast: Cast, annex: LabHost
) -> None:
    nics = (Nic("shop", "db", "10.1.2.99"), Nic("lab", "web"), Nic("annex", "south"))
    guest = lab.start(GuestSpec("broker", nics), "A")
    addresses = [guest.wait_address(f"eth{number}") for number in range(3)]
    assert [address.rsplit(".", 1)[0] for address in addresses] == ["10.1.2", "10.2.1", "10.9.4"]
    assert addresses[0] == "10.1.2.99"
    assert ping(guest, f"-I eth0 {cast.address('db1')}", 2).received == 2
    assert ping(guest, f"-I eth1 {cast.address('other1')}", 2).received == 2
    assert ping(cast.db1, addresses[0], 2).received == 2
    assert ping(cast.other1, addresses[1], 2).received == 2
    assert ping(cast.other1, addresses[0], 1, wait_s=1).received == 0, "another cell's address of the same guest"
    assert ping(guest, f"-I eth1 {cast.address('db1')}", 1, wait_s=1).received == 0
    guest.stop()


def test_assign_places_a_guest_that_had_none_and_moves_it_at_its_next_start(lab: Lab, cast: Cast) -> None:
    host = lab.host("A")
    lab.define(GuestSpec("assigned", (Nic("", ""), Nic("", "")), metadata=False), "A")
    first, second = default_mac("assigned", 0), default_mac("assigned", 1)
    with pytest.raises(LabError, match="divhook assign assigned --cell"):
        host.virsh("start", "assigned")
    done = host.divhook("assign", "assigned", "--cell", "shop", "--subnet", "web", check=False)
    assert done.returncode != 0
    assert first in done.stderr
    assert second in done.stderr
    host.divhook("assign", "assigned", "--mac", first, "--cell", "shop", "--subnet", "web")
    host.divhook("assign", "assigned", "--mac", second, "--cell", "shop", "--subnet", "db", "--address", "10.1.2.71")
    host.virsh("start", "assigned")
    guest = LabGuest(host, "assigned").wait_up()
    assert guest.wait_address("eth0").startswith("10.1.1.")
    assert guest.wait_address("eth1") == "10.1.2.71"
    assert ping(guest, f"-I eth0 {cast.address('web2')}", 2).received == 2
    before = places(host, "assigned")
    host.divhook("assign", "assigned", "--mac", first, "--cell", "lab", "--subnet", "web")
    assert places(host, "assigned") == before
    host.virsh("destroy", "assigned")
    assert wait_until(lambda: not places(host, "assigned"), 30, 0.1)
    host.virsh("start", "assigned")
    assert sorted(address.rsplit(".", 1)[0] for _, _, address in places(host, "assigned")) == ["10.1.2", "10.2.1"]
    host.virsh("destroy", "assigned")
    host.divhook("assign", "assigned", "--mac", first, "--remove")
    with pytest.raises(LabError, match=first):
        host.virsh("start", "assigned")
    host.virsh("undefine", "assigned")


def test_assign_refuses_what_the_agent_would(lab: Lab, cast: Cast) -> None:
    host = lab.host("A")
    for arguments, named in {
        ("--cell", "nowhere", "--subnet", "web"): "nowhere",
        ("--cell", "shop", "--subnet", "cellar"): "cellar",
        ("--cell", "shop", "--subnet", "web", "--address", "10.1.2.9"): "10.1.2.9",
    }.items():
        before = host.virsh("dumpxml", "web1")
        done = host.divhook("assign", "web1", *arguments, check=False)
        assert done.returncode != 0
        assert named in done.stderr
        assert host.virsh("dumpxml", "web1") == before
