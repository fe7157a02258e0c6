"""A start that is refused, at whatever step, leaves host, agent and peers as they were."""

import time
from collections.abc import Callable, Iterator

import pytest
from host_state import assert_back, everything, open_files, registry, rows
from lab_cast import Cast

from divhook.lab.errors import LabError
from divhook.lab.guest import GuestSpec, Nic, default_mac, domain_xml
from divhook.lab.host import LabHost
from divhook.lab.lab import Lab
from divhook.lab.processes import wait_until

pytestmark = pytest.mark.one_mode

FIRST, SECOND = default_mac("bad", 0), default_mac("bad", 1)
NOBODYS = "52:54:00:0b:ad:01"
WEB_AND_DB = GuestSpec("bad", (Nic("shop", "web"), Nic("shop", "db")))


DEFENDED = ("reservations", "groups", "memberships")
"""What a guest that is defined and does not run has: its address, and the groups where that is defended."""


def as_it_is(xml: str) -> str:
    return xml


def refuse(lab: Lab, spec: GuestSpec, edit: Callable[[str], str] = as_it_is, keeps: tuple[str, ...] = ()) -> str:
    """Start on host A what must not start. Returns virsh's error; asserts that nothing is left.

    keeps: what a guest that is defined and does not run may have.
    """
    host = lab.host("A")
    path = "/run/divhook-lab/bad.xml"
    before, files = everything(host), open_files(host)
    host.outside(path).write_text(edit(domain_xml(spec, lab.image)))
    host.virsh("define", path)
    try:
        with pytest.raises(LabError) as refusal:
            host.virsh("start", "bad")
        assert_back(host, before, without=keeps)
        assert open_files(host) == files
    finally:
        host.try_virsh("destroy", "bad")
        host.try_virsh("undefine", "bad")
    assert wait_until(lambda: registry(host, "reservation") == before["reservations"], 10, 0.1)
    return str(refusal.value)


@pytest.mark.parametrize(
    ("spec", "names"),
    [
        (GuestSpec("bad", (Nic("nowhere", "web"),)), ("bad", FIRST, "nowhere", "lab, shop")),
        (GuestSpec("bad", (Nic("shop", "cellar"),)), ("bad", FIRST, "cellar", "db, web")),
        (GuestSpec("bad", (Nic("shop", "web", "10.1.2.9"),)), ("bad", FIRST, "10.1.2.9", "10.1.1.0/24")),
        (GuestSpec("bad", (Nic("shop", "web", "10.1.1.1"),)), ("bad", FIRST, "10.1.1.1", "virtual router")),
        (GuestSpec("bad", (Nic("shop", "web", "10.1.1.255"),)), ("bad", FIRST, "10.1.1.255")),
        (GuestSpec("bad", (Nic("shop", "web", "10.1.1.300"),)), ("bad", "10.1.1.300")),
        (
            GuestSpec("bad", (Nic("shop", "db", "10.1.2.20"),)),
            ("bad", FIRST, "10.1.2.20", "shop-db", "cells/shop.yaml"),
        ),
        (GuestSpec("bad", (Nic("shop", "web", mac="02:d1:00:01:00:01"),)), ("bad", "02:d1:00:01:00:01")),
    ],
    ids=["cell", "subnet", "outside", "router", "broadcast", "no-address", "anothers-in-a-file", "router-mac"],
)
def test_refusal_names_guest_nic_and_mistake(lab: Lab, cast: Cast, spec: GuestSpec, names: tuple[str, ...]) -> None:
    error = refuse(lab, spec)
    assert [name for name in names if name not in error] == [], error


def test_group_mac_is_refused_by_libvirt_itself(lab: Lab) -> None:
    spec = GuestSpec("bad", (Nic("shop", "web", mac="03:d1:00:01:00:01"),))
    with pytest.raises(LabError, match="multicast"):
        lab.define(spec, "A")


def test_one_mac_twice_in_a_guest_is_refused(lab: Lab, cast: Cast) -> None:
    def same_mac(xml: str) -> str:
        return xml.replace(f"<mac address='{SECOND}'/>", f"<mac address='{FIRST}'/>")

    error = refuse(lab, WEB_AND_DB, same_mac)
    assert FIRST in error
    assert "two NICs" in error


@pytest.mark.parametrize(
    ("mistake", "names"),
    [
        (lambda xml: xml.replace('subnet="web"', 'subnet="web" colour="red"', 1), ("colour",)),
        (lambda xml: xml.replace('cell="shop" subnet="web"', 'subnet="web"', 1), ("cell",)),
        (lambda xml: xml.replace(f' mac="{FIRST}"', f' mac="{SECOND}"', 1), (SECOND, "twice")),
        (lambda xml: xml.replace(f' mac="{FIRST}"', f' mac="{NOBODYS}"', 1), (NOBODYS,)),
        (lambda xml: xml.replace("<divhook:nic", "<divhook:nick", 1), ("nick",)),
    ],
    ids=["attribute", "no-cell", "one-nic-twice", "nobodys-nic", "element"],
)
def test_bad_metadata_is_refused_by_name(
    lab: Lab, cast: Cast, mistake: Callable[[str], str], names: tuple[str, ...]
) -> None:
    error = refuse(lab, WEB_AND_DB, mistake)
    assert [name for name in ("bad", *names) if name not in error] == [], error


def test_second_nic_in_use_elsewhere_gives_back_the_first(lab: Lab, cast: Cast) -> None:
    """The first NIC is good, and has its address before the other host objects to the second."""
    address = cast.address("web2")
    error = refuse(lab, GuestSpec("bad", (Nic("shop", "db"), Nic("shop", "web", address))))
    assert address in error
    assert lab.host("B").plan.mac in error


def test_address_and_mac_of_a_running_guest_of_this_host_are_refused(lab: Lab, cast: Cast) -> None:
    address, mac = cast.address("web1"), cast.web1.mac
    assert address in refuse(lab, GuestSpec("bad", (Nic("shop", "web", address),)))
    assert mac in refuse(lab, GuestSpec("bad", (Nic("shop", "web", mac=mac),)))


def test_failure_of_qemu_after_all_hooks_leaves_the_addresses_reserved_and_no_more(lab: Lab, cast: Cast) -> None:
    def wrong_firmware(xml: str) -> str:
        return xml.replace("<type arch='x86_64'", "<loader type='rom'>/etc/hostname</loader><type arch='x86_64'")

    refuse(lab, GuestSpec("bad", (Nic("shop", "web"), Nic("lab", "install"))), wrong_firmware, DEFENDED)


@pytest.fixture
def full_subnet(lab: Lab) -> Iterator[LabHost]:
    """A subnet whose every address belongs to a guest of the cell file."""
    host = lab.host("A")
    path = host.outside("/etc/divhook/cells/crowd.yaml")
    lines = ["cell: crowd", "number: 77", "owner: crowd", "subnets:", "  hall: {number: 5}", "endpoints:"]
    lines += [f"  - {{guest: g{n}, subnet: hall, address: 10.77.5.{n}}}" for n in range(2, 255)]
    path.write_text("\n".join(lines) + "\n")
    host.divhook("reload")
    yield host
    path.unlink()
    host.divhook("reload")


def test_full_subnet_is_refused_by_name(lab: Lab, cast: Cast, full_subnet: LabHost) -> None:
    error = refuse(lab, GuestSpec("bad", (Nic("crowd", "hall"),)))
    assert "full" in error
    assert "10.77.5.0/24" in error


def test_refused_starts_at_once_leave_nothing_either(lab: Lab, cast: Cast) -> None:
    """Many refusals are no burden: neither memory nor locks nor addresses add up, and a good start comes through."""
    host = lab.host("A")
    before = everything(host)
    lab.define(GuestSpec("bad", (Nic("shop", "web"), Nic("shop", "web", cast.address("web2")))), "A")
    for _ in range(5):
        with pytest.raises(LabError):
            host.virsh("start", "bad")
    host.virsh("undefine", "bad")
    assert_back(host, before)
    begin = time.monotonic()
    good = lab.start(GuestSpec("good", (Nic("shop", "web"),)), "A", wait=False)
    assert [row["state"] for row in rows(host, "endpoints") if row["guest"] == "good"] != []
    assert time.monotonic() - begin < 30
    good.stop()
    assert_back(host, before)
