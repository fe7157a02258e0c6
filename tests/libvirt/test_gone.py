"""What has ended is gone: on its host to the last counter, and for its peers at once, not when entries age."""

import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
from host_state import assert_back, everything, memory_kib, open_files, registry, rows
from lab_cast import Cast

from divhook.lab.demo import ping
from divhook.lab.guest import GuestSpec, LabGuest, Nic
from divhook.lab.host import LabHost
from divhook.lab.lab import Lab
from divhook.lab.processes import wait_until

GONE_AT_PEERS_S = 10.0
"""A neighbour lives 60 s: who forgets in this time has been told."""
CYCLES = 10
MEMORY_GROWTH_KIB = 2048


def qemu_pid(guest: LabGuest) -> int:
    return int(Path(guest.host.outside(f"/run/libvirt/qemu/{guest.name}.pid")).read_text())


ENDS: dict[str, Callable[[LabGuest], object]] = {
    "destroyed": lambda guest: guest.host.virsh("destroy", guest.name),
    "off-from-within": lambda guest: guest.run("(sleep 0.2; poweroff -f) &"),
    "shut-down": lambda guest: guest.host.virsh("shutdown", guest.name),
    "crashed": lambda guest: os.kill(qemu_pid(guest), signal.SIGKILL),
}


def known(host: LabHost, address: str) -> bool:
    """Whether a host believes to know who holds an address."""
    states = {row["address"]: row["state"] for row in rows(host, "neighbors")}
    return states.get(address) in ("REACHABLE", "STALE", "PROBE")


def states(host: LabHost, guest: str) -> list[str]:
    return [row["state"] for row in rows(host, "endpoints") if row["guest"] == guest]


def test_every_end_of_a_guest_is_complete_and_told_to_peers(lab: Lab, cast: Cast) -> None:
    here, there = lab.host("B"), lab.host("A")
    before = everything(here)
    guests = lab.start_all([(GuestSpec(name, (Nic("shop", "web"),)), "B") for name in ENDS])
    addresses = [guest.wait_address() for guest in guests]
    assert len(set(addresses)) == len(ENDS)
    for address in addresses:
        assert ping(cast.web1, address, 2).received == 2
        assert known(there, address)
    for guest in guests:
        ENDS[guest.name](guest)
    assert wait_until(lambda: not set(ENDS) & {row["guest"] for row in rows(here, "endpoints")}, 60, 0.1)
    assert wait_until(lambda: not any(known(there, address) for address in addresses), GONE_AT_PEERS_S, 0.1)
    assert_back(here, before, without=("reservations",))
    assert {entry[2] for entry in registry(here, "reservation")} >= set(ENDS), "stopped guests keep their addresses"
    for guest in guests:
        here.virsh("undefine", guest.name)
    assert_back(here, before)
    assert all(ping(cast.web1, address, 1, wait_s=1).received == 0 for address in addresses)


def test_nic_that_is_detached_takes_nothing_of_its_neighbours_with_it(lab: Lab, cast: Cast) -> None:
    here, there = lab.host("A"), lab.host("B")
    before = everything(here)
    guest = lab.start(GuestSpec("twolegged", (Nic("shop", "web"), Nic("shop", "db"))), "A")
    stays, goes = guest.wait_address("eth0"), guest.wait_address("eth1")
    with_both = [row for row in rows(here, "endpoints") if row["guest"] == "twolegged"]
    assert ping(cast.db1, goes, 2).received == 2
    assert known(there, goes)
    here.virsh("detach-device-alias", "twolegged", "net1", "--live")
    assert wait_until(lambda: goes not in {row["address"] for row in rows(here, "endpoints")}, 30, 0.1)
    assert wait_until(lambda: not known(there, goes), GONE_AT_PEERS_S, 0.1)
    left = [row for row in rows(here, "endpoints") if row["guest"] == "twolegged"]
    assert left == [row for row in with_both if row["address"] == stays]
    assert ping(cast.web2, stays, 2).received == 2
    guest.stop()
    assert_back(here, before)


def test_hot_plugged_nic_works_and_unplugged_is_gone(lab: Lab, cast: Cast) -> None:
    host, mac = lab.host("A"), "52:54:00:77:0a:01"
    before = everything(host)
    guest = lab.start(GuestSpec("plug"), "A")
    host.virsh("attach-interface", "plug", "network", "divhook", "--mac", mac, "--model", "virtio", "--live")
    host.divhook("assign", "plug", "--cell", "shop", "--subnet", "web", "--mac", mac)
    guest.exec("for i in $(seq 50); do [ -e /sys/class/net/eth0 ] && break; sleep 0.2; done; ip link set eth0 up")
    guest.exec("udhcpc -i eth0 -s /etc/udhcpc.sh -t 60 -T 1 -n -q", timeout_s=120)
    address = guest.wait_address()
    assert ping(guest, cast.address("web2"), 3).received == 3
    assert ping(cast.db1, address, 3).received == 3
    # a network that forwards to a bridge shows as type bridge in a running guest
    host.virsh("detach-interface", "plug", "bridge", "--mac", mac, "--live")
    assert wait_until(lambda: states(host, "plug") == [], 30, 0.1)
    guest.stop()
    assert_back(host, before)


def test_ten_starts_right_after_the_destroy_leave_one_guest_that_talks(lab: Lab, cast: Cast) -> None:
    """What libvirt says of the last life comes late: it must not end the next one."""
    host = lab.host("B")
    lab.define(GuestSpec("reborn", (Nic("shop", "web"), Nic("lab", "web"))), "B")
    host.virsh("start", "reborn")
    assert wait_until(lambda: states(host, "reborn") == ["active", "active"], 30, 0.1)
    first = [row["address"] for row in rows(host, "endpoints") if row["guest"] == "reborn"]
    host.virsh("destroy", "reborn")
    assert wait_until(lambda: states(host, "reborn") == [], 30, 0.1)
    before, files, memory = everything(host), open_files(host), memory_kib(host)
    for _ in range(CYCLES):
        host.virsh("start", "reborn")
        host.virsh("destroy", "reborn")
    host.virsh("start", "reborn")
    guest = LabGuest(host, "reborn").wait_up()
    address = guest.wait_address()
    assert {address, guest.wait_address("eth1")} == set(first), "the addresses that it had at first"
    assert ping(cast.web1, address, 3).received == 3
    assert states(host, "reborn") == ["active", "active"]
    host.virsh("destroy", "reborn")
    assert_back(host, before)
    assert open_files(host) == files
    assert memory_kib(host) - memory < MEMORY_GROWTH_KIB
    host.virsh("undefine", "reborn")


@pytest.mark.parametrize("signalled", ["crashed", "destroyed"])
def test_host_stays_in_the_group_of_a_stopped_guest_and_leaves_with_its_definition(
    lab: Lab, cast: Cast, signalled: str
) -> None:
    host = lab.host("A")
    before = everything(host)
    guest = lab.start(GuestSpec("lonely", (Nic("lab", "install"),)), "A", wait=False)
    assert len(everything(host)["groups"]) == len(before["groups"]) + 1
    ENDS[signalled](guest)
    assert_back(host, before, without=("reservations", "groups", "memberships"))
    assert len(everything(host)["groups"]) == len(before["groups"]) + 1  # its address is defended
    host.virsh("undefine", "lonely")
    assert_back(host, before)
