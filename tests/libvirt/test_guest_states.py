"""One guest is paused, reset, rebooted, saved, restored and moved: afterwards it has its network, and only once."""

import json
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from host_state import rows
from lab_cast import Cast

from divhook.lab.demo import ping
from divhook.lab.guest import GuestSpec, LabGuest, Nic
from divhook.lab.host import LabHost
from divhook.lab.lab import Lab
from divhook.lab.processes import wait_until

NAME = "traveller"
PINGS = 60
STEPS = ["hook migrate", "hook start: the tap is there", "ready: frames are queued", "runs here: claimed and announced"]


@pytest.fixture(scope="module")
def traveller(lab: Lab, cast: Cast) -> Iterator[LabGuest]:
    guest = lab.start(GuestSpec(NAME, (Nic("shop", "web"),)), "A")
    guest.wait_address()
    yield guest
    for host in lab.hosts.values():
        host.try_virsh("destroy", NAME)
        host.try_virsh("managedsave-remove", NAME)
        host.try_virsh("undefine", NAME)


def endpoint(host: LabHost) -> dict[str, Any] | None:
    return next((row for row in rows(host, "endpoints") if row["guest"] == NAME), None)


def boots(guest: LabGuest) -> int:
    return guest.console.count(f"divhook guest {NAME}: up after")


def assert_talks(cast: Cast, guest: LabGuest, address: str) -> None:
    """Both ways, within the subnet and routed, with the address it had."""
    assert guest.wait_address() == address
    for other in ("web1", "web2", "db1"):
        assert ping(guest, cast.address(other), 2).received == 2
        assert ping(getattr(cast, other), address, 2).received == 2


def test_pause_and_resume_change_nothing(lab: Lab, cast: Cast, traveller: LabGuest) -> None:
    host, address = lab.host("A"), traveller.wait_address()
    before = endpoint(host)
    host.virsh("suspend", NAME)
    assert ping(cast.web2, address, 1, wait_s=1).received == 0
    assert endpoint(host) == before
    host.virsh("resume", NAME)
    assert endpoint(host) == before
    assert_talks(cast, traveller, address)


@pytest.mark.parametrize("how", ["reset", "reboot"])
def test_reboot_keeps_port_and_address(lab: Lab, cast: Cast, traveller: LabGuest, how: str) -> None:
    host, address = lab.host("A"), traveller.wait_address()
    before, booted = endpoint(host), boots(traveller)
    host.virsh(how, NAME)
    assert wait_until(lambda: boots(traveller) == booted + 1, 120, 0.2)
    traveller.wait_up()
    assert endpoint(host) == before
    assert_talks(cast, traveller, address)


def save_and_restore(host: LabHost) -> None:
    host.virsh("save", NAME, "/run/divhook-lab/saved")
    assert endpoint(host) is None
    host.virsh("restore", "/run/divhook-lab/saved")


def managed_save_and_start(host: LabHost) -> None:
    host.virsh("managedsave", NAME)
    assert endpoint(host) is None
    host.virsh("start", NAME)


@pytest.mark.parametrize("sleep", [save_and_restore, managed_save_and_start])
def test_saved_guest_wakes_with_its_address_and_without_asking_dhcp(
    lab: Lab, cast: Cast, traveller: LabGuest, sleep: Callable[[LabHost], None]
) -> None:
    host, address = lab.host("A"), traveller.wait_address()
    traveller.exec("echo awake >/tmp/memory; rm -f /run/dhcp.env")
    sleep(host)
    now = endpoint(host)
    assert now is not None
    assert (now["address"], now["state"]) == (address, "active")
    assert traveller.exec("cat /tmp/memory") == "awake\n"
    assert_talks(cast, traveller, address)
    assert traveller.run("cat /run/dhcp.env").code != 0


def said_of_move(host: LabHost) -> dict[str, Any]:
    """The last move that a host has part in, without what differs from one to the next."""
    move = json.loads(host.divhook("moves", "--json").stdout)[-1]
    what = [(line["where"], line["what"]) for line in move["timeline"]]
    return {"guest": move["guest"], "role": move["role"], "state": move["state"], "what": what}


def test_live_migration_there_and_back_loses_no_packet_and_leaves_nothing(
    lab: Lab, cast: Cast, traveller: LabGuest
) -> None:
    """Ten a second: the few that queue up during the pause find room in ping's own buffer, of some 7 KiB."""
    address = traveller.wait_address()
    for source, target, talker in (("A", "B", cast.web2), ("B", "A", cast.db1)):
        here, there = lab.host(source), lab.host(target)
        uri = f"qemu+tcp://host{target}/system"
        with ThreadPoolExecutor(1) as pool:
            pings = pool.submit(talker.run, f"ping -i 0.1 -c {PINGS} -W 5 {address}")
            here.virsh("migrate", "--live", "--persistent", "--undefinesource", NAME, uri, timeout_s=180)
            received = pings.result().output
        assert f"{PINGS} packets transmitted, {PINGS} packets received, 0% packet loss" in received
        assert "DUP" not in received
        assert said_of_move(here)["state"] == "moved"
        arrival = said_of_move(there)
        assert (arrival["guest"], arrival["role"], arrival["state"]) == (NAME, "destination", "active")
        assert [what for where, what in arrival["what"] if what in STEPS] == STEPS
        assert wait_until(lambda there=there: (endpoint(there) or {}).get("state") == "active", 30, 0.1)
        assert wait_until(lambda here=here: endpoint(here) is None, 30, 0.1)
        assert_talks(cast, LabGuest(there, NAME), address)
