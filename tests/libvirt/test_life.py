"""Guests come and go in every way that libvirt knows, and leave nothing behind."""

import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
from lab_cast import Cast, listing, snapshot

from divhook.lab.demo import ping
from divhook.lab.guest import GuestSpec, LabGuest, Nic
from divhook.lab.host import LabHost
from divhook.lab.lab import Lab
from divhook.lab.processes import wait_until

GONE_WITHIN_S = 30.0
CYCLES = 10


def destroy(guest: LabGuest) -> None:
    guest.host.virsh("destroy", guest.name)


def shut_down_from_within(guest: LabGuest) -> None:
    guest.run("(sleep 0.5; poweroff -f) &")


def shut_down_by_acpi(guest: LabGuest) -> None:
    guest.host.virsh("shutdown", guest.name)


def crash(guest: LabGuest) -> None:
    os.kill(qemu_pid(guest), signal.SIGKILL)


def qemu_pid(guest: LabGuest) -> int:
    return int(Path(guest.host.outside(f"/run/libvirt/qemu/{guest.name}.pid")).read_text())


def settled(host: LabHost, name: str) -> bool:
    return name not in host.guests() and name not in {row["guest"] for row in listing(host, "endpoints")}


@pytest.mark.parametrize("end", [destroy, shut_down_from_within, shut_down_by_acpi, crash])
def test_guest_that_ends_leaves_nothing(lab: Lab, cast: Cast, end: Callable[[LabGuest], None]) -> None:
    host = lab.host("B")
    before = snapshot(host)
    guest = lab.start(GuestSpec("fleeting", (Nic("shop", "web"),)), "B")
    address = guest.wait_address()
    assert ping(cast.web1, address, 2).received == 2
    end(guest)
    assert wait_until(lambda: settled(host, "fleeting"), GONE_WITHIN_S, 0.2)
    host.virsh("undefine", "fleeting")
    assert wait_until(lambda: snapshot(host) == before, 10, 0.5), (snapshot(host), before)
    assert address not in {row["address"] for row in listing(host, "leases")}
    assert ping(cast.web1, address, 2, wait_s=1).received == 0


def test_guest_has_its_address_again_at_the_next_start(lab: Lab, cast: Cast) -> None:
    first = lab.start(GuestSpec("regular", (Nic("shop", "web"),)), "A")
    address = first.wait_address()
    destroy(first)
    lab.host("A").virsh("start", "regular")
    again = LabGuest(lab.host("A"), "regular").wait_up()
    assert again.wait_address() == address
    again.stop()


def test_configured_address_is_given(lab: Lab, cast: Cast) -> None:
    guest = lab.start_guest("fixed", "B", "shop", "db", address="10.1.2.77")
    assert guest.wait_address() == "10.1.2.77"
    assert ping(cast.web1, "10.1.2.77", 3).received == 3
    guest.stop()


def test_address_of_a_cell_file_is_given(lab: Lab, cast: Cast) -> None:
    guest = lab.start(GuestSpec("shop-db", (Nic("shop", "db"),), metadata=False), "A")
    assert guest.wait_address() == "10.1.2.20"
    assert guest.dhcp_options()["hostname"] == "db"
    guest.stop()


def test_one_guest_in_two_cells_talks_in_each(lab: Lab, cast: Cast) -> None:
    guest = lab.start(GuestSpec("both", (Nic("shop", "web"), Nic("lab", "web"))), "B")
    assert guest.wait_address("eth0").startswith("10.1.1.")
    assert guest.wait_address("eth1").startswith("10.2.1.")
    assert ping(guest, f"-I eth0 {cast.address('web1')}", 3).received == 3
    assert ping(guest, f"-I eth1 {cast.address('other1')}", 3).received == 3
    guest.stop()


def test_bridge_interface_works_as_the_network_does(lab: Lab, cast: Cast) -> None:
    guest = lab.start(GuestSpec("bridged", (Nic("shop", "web"),), bridge="divbr0"), "A")
    guest.wait_address()
    assert ping(guest, cast.address("web2"), 3).received == 3
    guest.stop()


def test_hot_plugged_nic_works_and_unplugged_is_gone(lab: Lab, cast: Cast) -> None:
    host = lab.host("A")
    before = snapshot(host)
    guest = lab.start(GuestSpec("plug"), "A")
    mac = "52:54:00:77:0a:01"
    host.virsh("attach-interface", "plug", "network", "divhook", "--mac", mac, "--model", "virtio", "--live")
    host.divhook("assign", "plug", "--cell", "shop", "--subnet", "web", "--mac", mac)
    guest.exec("for i in $(seq 50); do [ -e /sys/class/net/eth0 ] && break; sleep 0.2; done; ip link set eth0 up")
    guest.exec("udhcpc -i eth0 -s /etc/udhcpc.sh -t 60 -T 1 -n -q", timeout_s=120)
    address = guest.wait_address()
    assert ping(guest, cast.address("web2"), 3).received == 3
    assert ping(cast.db1, address, 3).received == 3
    # a network that forwards to a bridge shows as type bridge in a running guest
    host.virsh("detach-interface", "plug", "bridge", "--mac", mac, "--live")
    assert wait_until(lambda: not listing(host, "endpoints", "--guest", "plug"), GONE_WITHIN_S, 0.2)
    guest.stop()
    assert wait_until(lambda: snapshot(host) == before, 10, 0.5), (snapshot(host), before)


def test_ten_cycles_leave_the_host_as_it_was(lab: Lab, cast: Cast) -> None:
    host = lab.host("B")

    def agent_memory_kib() -> int:
        text = Path(f"/proc/{host.agent_pid}/status").read_text()
        return next(int(line.split()[1]) for line in text.splitlines() if line.startswith("VmRSS"))

    def open_files() -> int:
        return len(os.listdir(f"/proc/{host.agent_pid}/fd"))

    def cycle() -> None:
        host.virsh("start", "cyclic")
        host.virsh("destroy", "cyclic")

    lab.define(GuestSpec("cyclic", (Nic("shop", "db"),)), "B")
    cycle()
    assert wait_until(lambda: settled(host, "cyclic"), GONE_WITHIN_S, 0.2)
    before, files, memory = snapshot(host), open_files(), agent_memory_kib()
    for _ in range(CYCLES):
        cycle()
    assert wait_until(lambda: settled(host, "cyclic"), GONE_WITHIN_S, 0.2)
    assert wait_until(lambda: snapshot(host) == before, 10, 0.5), (snapshot(host), before)
    assert open_files() <= files
    assert agent_memory_kib() - memory < 2048
    host.virsh("undefine", "cyclic")
