"""A host for the programs: a network namespace with divbr0, ports and an uplink, and a bpffs of its own."""

import ctypes
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from bpf_bench import run
from bpf_frames import DIVBR_MAC, PMAC

from divhook.adapters.bpf import Programs, ensure_bpffs, pin_dir_in

CLONE_NEWNET = 0x40000000
MNT_DETACH = 2
LIBC = ctypes.CDLL(None, use_errno=True)


@contextmanager
def network_namespace() -> Iterator[None]:
    """The calling thread in a network namespace of its own: divbr0, veth pairs port0/guest0 and uplink0/wire0."""
    with open("/proc/thread-self/ns/net") as home:
        if LIBC.unshare(CLONE_NEWNET) != 0:
            raise OSError(f"cannot make a network namespace: {os.strerror(ctypes.get_errno())}")
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


@contextmanager
def bpffs_at(path: Path) -> Iterator[Path]:
    """A bpffs of the caller's own, mounted on a directory that is there."""
    ensure_bpffs(path)
    try:
        yield path
    finally:
        LIBC.umount2(os.fsencode(path), MNT_DETACH)


@contextmanager
def loaded_programs(bpffs: Path, object_file: Path | None = None) -> Iterator[Programs]:
    """The programs of an object, the package's by default."""
    programs = Programs.load(pin_dir_in(bpffs), object_file)
    try:
        yield programs
    finally:
        programs.teardown()
