"""A network namespace with divbr0, a port and an uplink, and the programs loaded below a bpffs of its own."""

import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
from bpf_bench import Bench, host_entry, port_entry
from bpf_frames import GROUP, PEER
from bpf_host import bpffs_at, loaded_programs, network_namespace

from divhook.adapters.bpf import Programs


@pytest.fixture(scope="module")
def namespace() -> Iterator[None]:
    """The test's thread in a network namespace of its own."""
    with network_namespace():
        yield


@pytest.fixture(scope="module")
def bpffs(namespace: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A bpffs of the test's own."""
    with bpffs_at(tmp_path_factory.mktemp("bpffs")) as path:
        yield path


@pytest.fixture(scope="module")
def loaded(bpffs: Path) -> Iterator[Programs]:
    """The programs, loaded once for a module."""
    with loaded_programs(bpffs) as programs:
        yield programs


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
