"""A network namespace with divbr0, a port and an uplink, and the programs loaded below a bpffs of its own."""

import ctypes
import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
from bpf_bench import Bench, host_entry, port_entry, run
from bpf_frames import DIVBR_MAC, GROUP, PEER, PMAC

from divhook.adapters.bpf import Programs, ensure_bpffs, pin_dir_in

CLONE_NEWNET = 0x40000000
MNT_DETACH = 2
LIBC = ctypes.CDLL(None, use_errno=True)


@pytest.fixture(scope="module")
def namespace() -> Iterator[None]:
    """The test's thread in a network namespace of its own: divbr0, veth pairs port0/guest0 and uplink0/wire0."""
    with open("/proc/thread-self/ns/net") as home:
        if LIBC.unshare(CLONE_NEWNET) != 0:
            pytest.fail(f"cannot make a network namespace: {os.strerror(ctypes.get_errno())}")
        try:
            run(
                "sysctl -qw net.ipv6.conf.default.disable_ipv6=1 net.ipv6.conf.all.disable_ipv6=1 && "
                "ip link set lo up && "
                f"ip link add divbr0 address {DIVBR_MAC.hex(':')} type bridge && ip link set divbr0 arp off up && "
                "ip link add port0 type veth peer name guest0 && ip link set port0 master divbr0 && "
                f"ip link add uplink0 address {PMAC.hex(':')} type veth peer name wire0 && "
                "for i in port0 guest0 uplink0 wire0; do ip link set $i up; done"
            )
            yield
        finally:
            LIBC.setns(home.fileno(), CLONE_NEWNET)


@pytest.fixture(scope="module")
def bpffs(namespace: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A bpffs of the test's own."""
    path = tmp_path_factory.mktemp("bpffs")
    ensure_bpffs(path)
    yield path
    LIBC.umount2(os.fsencode(path), MNT_DETACH)


@pytest.fixture(scope="module")
def loaded(bpffs: Path) -> Iterator[Programs]:
    """The programs, loaded once for a module."""
    programs = Programs.load(pin_dir_in(bpffs))
    yield programs
    programs.teardown()


@pytest.fixture
def bench(loaded: Programs) -> Iterator[Bench]:
    """The programs, configured as new: an active port without limits that matter, one group, one peer."""
    port, uplink = socket.if_nametoindex("port0"), socket.if_nametoindex("uplink0")
    loaded.configure(host_entry())
    loaded.set_port(port, port_entry())
    loaded.set_groups({GROUP})
    loaded.add_peer(PEER)
    yield Bench(loaded, port, uplink)
    for ifindex, entry in loaded.ports().items():
        loaded.remove_port(ifindex)
        loaded.forget_port_counters(entry.port_id)
    loaded.forget_port_counters(0)
