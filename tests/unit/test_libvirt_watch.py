"""The libvirt connection, against libvirt's own test driver: no daemon, no guest."""

import asyncio
import threading
from pathlib import Path

import libvirt
import pytest

from divhook.adapters.libvirt import EventKind, GuestEvent, LibvirtError, LibvirtWatch

DOMAIN = """<domain type='test'><name>{0}</name><uuid>{1}</uuid><memory>1024</memory><vcpu>1</vcpu>
<os><type>hvm</type></os></domain>"""
UUIDS = ("11111111-0000-4000-8000-000000000001", "22222222-0000-4000-8000-000000000002")


def test_guests_are_listed_and_unknown_ones_are_none(tmp_path: Path) -> None:
    node = tmp_path / "node.xml"
    node.write_text("<node>" + "".join(DOMAIN.format(f"g{n}", uuid) for n, uuid in enumerate(UUIDS)) + "</node>")
    events: list[GuestEvent] = []
    connected = threading.Event()

    def on_event(event: GuestEvent) -> None:
        events.append(event)
        connected.set()

    watch = LibvirtWatch(f"test://{node}", on_event)

    async def run() -> None:
        assert not watch.connected
        watch.start()
        assert await asyncio.to_thread(connected.wait, 10)
        assert watch.connected
        guests = await watch.guests()
        assert {(g.name, g.uuid, g.running, g.paused) for g in guests} == {
            ("g0", UUIDS[0], True, False),
            ("g1", UUIDS[1], True, False),
        }
        one = await watch.guest(UUIDS[1])
        assert one is not None
        assert "<name>g1</name>" in one.xml
        assert await watch.guest("33333333-0000-4000-8000-000000000003") is None

    try:
        asyncio.run(run())
    finally:
        watch.stop()
    assert events[0].kind is EventKind.CONNECTED


def test_the_network_of_the_bridge_is_started_where_it_is_defined_and_stopped(tmp_path: Path) -> None:
    node = tmp_path / "node.xml"
    network = "<network><name>divhook</name><forward mode='bridge'/><bridge name='divbr0'/></network>"
    node.write_text(f"<node>{network}</node>")
    connection = libvirt.open(f"test://{node}")
    found = connection.networkLookupByName("divhook")
    found.destroy()
    LibvirtWatch(f"test://{node}", lambda _event: None, "divhook")._start_network(connection)
    assert found.isActive()
    LibvirtWatch(f"test://{node}", lambda _event: None, "elsewhere")._start_network(connection)
    connection.close()


def test_without_libvirtd_the_error_names_the_uri() -> None:
    watch = LibvirtWatch("qemu+unix:///system?socket=/nowhere", lambda _event: None)
    with pytest.raises(LibvirtError, match="qemu\\+unix"):
        asyncio.run(watch.guests())
    watch.stop()
