"""A NIC's address after it was chosen: lost, refused, declined, leased; and files that change under running guests."""

import asyncio
import logging
from ipaddress import IPv4Network

import pytest
from agent_fakes import DB, SHOP_YAML, WEB, Host, Lan, Vm, settle, story, vm
from dhcp_bytes import DECLINE, DISCOVER, NAK, REQUEST, bootp, packet, tlv

from divhook.adapters.libvirt import EventKind
from divhook.agent.addresses import MAX_DECLINES
from divhook.agent.control import RequestError
from divhook.agent.nic import Phase
from divhook.core.addressing import Address, address_text, parse_address
from divhook.core.census import QUARANTINE_S, Chosen, Confirmed, Lost, Refused
from divhook.core.endpoint import PortState

ROUTER = parse_address("10.1.1.1")


def dhcp(guest: Vm, kind: bytes, requested: Address | None = None) -> bytes:
    options = [(53, kind), *([(50, requested), (54, ROUTER)] if requested is not None else [])]
    return packet(bootp(tlv(*options), chaddr=guest.cards[0].octets))


def bound(host: Host, guest: Vm) -> Address:
    """DISCOVER and REQUEST; the address that was acknowledged."""
    host.said(guest, dhcp(guest, DISCOVER), group=True)
    address = host.address(guest)
    host.said(guest, dhcp(guest, REQUEST, address), group=True)
    answer = host.answers(guest)[-1]
    assert answer[42 + 16 : 42 + 20] == address
    return address


async def running(host: Host, guest: Vm) -> Address:
    await host.start(guest)
    await settle()
    return host.address(guest)


# ---------------------------------------------------------------------- the search goes on


@story
async def test_an_address_lost_after_the_start_hook_is_replaced_and_given_up(lan: Lan) -> None:
    host, web = await lan.host(), vm(1)
    await host.begin(web)
    nic, first = host.nic(web), host.address(web)
    guests = host.agent.guests
    guests.census_event(Lost(nic.guest_id, first, "it belongs to another"))
    assert (nic.address, host.port(web).address, host.reserved()) == (None, None, {})
    assert host.programs.entries[nic.ifindex].address is None
    guests.run(guests._parse(web.xml))
    second = parse_address("10.1.1.88")
    guests.census_event(Chosen(nic.guest_id, second))
    assert (host.port(web).address, host.port(web).state, host.reserved()) == (
        second,
        PortState.TENTATIVE,
        {"vm1": second},
    )
    guests.census_event(Confirmed(nic.guest_id, first))  # of the one that was lost
    assert host.port(web).state is PortState.TENTATIVE
    guests.census_event(Confirmed(nic.guest_id, second))
    assert (host.port(web).state, nic.phase) == (PortState.ACTIVE, Phase.RUNNING)


@story
async def test_a_former_address_that_was_lost_is_not_claimed_as_known(lan: Lan) -> None:
    host, web = await lan.host(), vm(1)
    first = await running(host, web)
    await host.shut(web)
    await host.begin(web)
    nic = host.nic(web)
    assert (nic.known, nic.address) == (True, first)
    host.agent.guests.census_event(Lost(nic.guest_id, first, "it belongs to another"))
    host.agent.guests.census_event(Chosen(nic.guest_id, parse_address("10.1.1.88")))
    web.state = "running"
    await host.hook(web, "started")
    assert host.port(web).state is PortState.TENTATIVE
    assert first not in host.agent.dataplane.census._reserved


@pytest.mark.parametrize("fate", [Lost, Refused])
@story
async def test_what_befalls_an_address_while_its_tap_is_set_up(lan: Lan, fate: type) -> None:
    host, web = await lan.host(), vm(1)
    before = host.traces()
    host.links.slow_s = 0.2
    await host.prepare(web)
    starting = asyncio.create_task(host.hook(web, "start"))
    await settle(0.1)
    nic = host.nic(web)
    if fate is Lost:
        host.agent.guests.census_event(Lost(nic.guest_id, host.address(web), "it belongs to another"))
        await starting
        assert (nic.phase, host.port(web).address, host.reserved()) == (Phase.PLUGGED, None, {})
        await host.shut(web)
    else:
        host.agent.guests.census_event(Refused(nic.guest_id, "subnet full"))
        with pytest.raises(RequestError, match=r"guest vm1, NIC .*: subnet full"):
            await starting
        await host.shut(web)
    assert host.traces() == before


@story
async def test_an_incoming_port_stays_incoming_whatever_its_search_finds(lan: Lan) -> None:
    host, web = await lan.destination(), vm(1)
    await host.hook(web, "migrate")
    await host.begin(web)
    nic = host.nic(web)
    host.agent.guests.census_event(Lost(nic.guest_id, host.address(web), "it belongs to another"))
    assert host.port(web).state is PortState.INCOMING
    host.agent.guests.census_event(Chosen(nic.guest_id, parse_address("10.1.1.88")))
    assert host.programs.entries[nic.ifindex].state is PortState.INCOMING


@story
async def test_a_guest_that_runs_without_address_is_given_one_as_soon_as_there_is_one(
    lan: Lan, caplog: pytest.LogCaptureFixture
) -> None:
    host, web = await lan.host(), vm(1)
    await host.begin(web)
    nic = host.nic(web)
    host.agent.guests.census_event(Lost(nic.guest_id, host.address(web), "it belongs to another"))
    host.agent.dataplane.census.cancel(nic.guest_id, host.agent.dataplane.now())
    host.agent.guests.census_event(Refused(nic.guest_id, "subnet full"))
    web.state = "running"
    await host.hook(web, "started")
    await host.agent.reconcile()
    await settle()
    assert host.port(web).state is PortState.ACTIVE
    assert [r.getMessage() for r in caplog.records if r.levelno == logging.ERROR] == [f"{nic}: subnet full"]


@story
async def test_an_address_of_a_guest_that_never_ran_is_free_at_once(lan: Lan) -> None:
    host, web, other = await lan.host(), vm(1), vm(2)
    other.cards[0].mac = web.cards[0].mac
    await host.prepare(web)
    await settle(0.1)
    first = host.address(web)
    await host.shut(web)
    assert host.reserved() == {}
    await host.start(other)
    assert first in (host.address(other), *host.agent.dataplane.census._released)
    assert host.agent.registry.quarantined(0) == {}


@story
async def test_two_guests_of_one_host_that_want_one_address(lan: Lan) -> None:
    host, one, two = await lan.host(), vm(1, address="10.1.1.66"), vm(2, address="10.1.1.66")
    results = await asyncio.gather(host.start(one), host.start(two), return_exceptions=True)
    assert results[0] is None
    assert "address 10.1.1.66 is held by another guest of this host" in str(results[1])
    assert [nic.guest for nic in host.agent.guests.all()] == ["vm1"]
    assert host.port(one).state is PortState.ACTIVE  # the loser's end did not withdraw the winner's claim


@story
async def test_a_configured_address_that_changes_is_quarantined_and_free_for_others_then(lan: Lan) -> None:
    host, web = await lan.host(), vm(1, address="10.1.1.66")
    await running(host, web)
    await host.shut(web)
    web.cards[0].address = "10.1.1.67"
    await running(host, web)
    census = host.agent.dataplane.census
    assert host.reserved() == {"vm1": parse_address("10.1.1.67")}
    assert (list(census._reserved), list(census._released)) == ([], [parse_address("10.1.1.66")])
    assert host.agent.registry.quarantined(0).keys() == {parse_address("10.1.1.66")}


# ---------------------------------------------------------------------- leases


@story
async def test_a_client_is_answered_once_its_address_is_confirmed(lan: Lan) -> None:
    host, web = await lan.host(), vm(1)
    await host.start(web)
    host.said(web, dhcp(web, DISCOVER), group=True)
    await settle(0.3)
    assert host.answers(web) == []
    await settle(0.5)
    (offer,) = host.answers(web)
    assert offer[42 + 16 : 42 + 20] == host.address(web)


@story
async def test_a_lease_is_saved_and_restored_and_ends_with_its_guest(lan: Lan) -> None:
    host, web = await lan.host(), vm(1)
    await running(host, web)
    address = bound(host, web)
    (lease,) = host.agent.dataplane.pipeline.dhcp.leases(host.agent.dataplane.now())
    await host.restart()
    (restored,) = host.agent.dataplane.pipeline.dhcp.leases(host.agent.dataplane.now())
    assert (restored.address, restored.port, restored.client_id) == (address, lease.port, lease.client_id)
    assert restored.remaining_s == pytest.approx(lease.remaining_s, abs=5)
    await host.shut(web)
    assert host.traces()["leases"] == ([], {})


@story
async def test_after_a_partition_the_younger_guest_with_a_chosen_address_gets_another(lan: Lan) -> None:
    a, b, oracle = await lan.host(), await lan.host(), await lan.host()
    lan.cut.update((b, oracle))
    web = vm(1)
    wanted = await running(oracle, web)  # what the hash of its MAC gives where nothing is taken
    elder = vm(2, address=address_text(wanted))
    await b.start(elder)
    await settle()
    assert await running(a, web) == wanted
    assert bound(a, web) == wanted
    lan.cut.discard(b)
    await settle(700)  # claims are repeated
    fresh = a.address(web)
    assert (b.address(elder), b.port(elder).state) == (wanted, PortState.ACTIVE)
    assert fresh != wanted
    assert (a.port(web).state, a.reserved()) == (PortState.ACTIVE, {web.name: fresh})
    a.said(web, dhcp(web, REQUEST, wanted), group=True)  # the client reboots, or asks again
    assert b"\x35\x01" + NAK in a.answers(web)[-1]
    assert bound(a, web) == fresh


@story
async def test_a_declined_address_is_quarantined_and_another_offered(lan: Lan) -> None:
    host, web = await lan.host(), vm(1)
    await running(host, web)
    first = bound(host, web)
    host.said(web, dhcp(web, DECLINE, first), group=True)
    nic = host.nic(web)
    assert (nic.address, host.port(web).state, host.reserved()) == (None, PortState.TENTATIVE, {})
    assert host.agent.registry.quarantined(0).keys() == {first}
    assert host.agent.dataplane.pipeline.discovery.claims() == []
    host.said(web, dhcp(web, DISCOVER), group=True)
    await settle()
    second = bound(host, web)
    assert second != first
    assert (host.port(web).state, host.reserved()) == (PortState.ACTIVE, {"vm1": second})
    await host.shut(web)
    web.state = "off"
    await running(host, web)
    assert host.address(web) == second


@story
async def test_a_declining_guest_keeps_its_end_from_nobody(lan: Lan) -> None:
    host, web = await lan.host(), vm(1)
    before = host.traces()
    await running(host, web)
    first = bound(host, web)
    web.state = "off"
    host.event(EventKind.STOPPED, web)
    host.said(web, dhcp(web, DECLINE, first), group=True)  # was still in the queue
    await settle()
    assert host.traces() == before


@story
async def test_one_guest_cannot_decline_a_whole_subnet_into_quarantine(lan: Lan) -> None:
    host, web = await lan.host(), vm(1)
    await running(host, web)
    for _ in range(MAX_DECLINES + 3):
        host.said(web, dhcp(web, DECLINE, bound(host, web)), group=True)
        await settle()
    assert len(host.agent.registry.quarantined(0)) == MAX_DECLINES
    assert host.port(web).state is PortState.ACTIVE
    await settle(QUARANTINE_S)
    host.said(web, dhcp(web, DECLINE, bound(host, web)), group=True)
    assert len(host.agent.registry.quarantined(0)) == MAX_DECLINES + 1


@story
async def test_a_configured_address_that_is_declined_stays_and_is_told(
    lan: Lan, caplog: pytest.LogCaptureFixture
) -> None:
    host, web = await lan.host(), vm(1, address="10.1.1.66")
    await running(host, web)
    for _ in range(MAX_DECLINES + 3):
        host.said(web, dhcp(web, DECLINE, bound(host, web)), group=True)
    assert (host.port(web).state, host.address(web)) == (PortState.ACTIVE, parse_address("10.1.1.66"))
    told = [r.getMessage() for r in caplog.records if "declined its configured address 10.1.1.66" in r.getMessage()]
    assert len(told) == MAX_DECLINES


# ---------------------------------------------------------------------- the files change


@story
async def test_a_subnet_that_the_files_have_no_more_serves_its_guests_until_they_stop(
    lan: Lan, caplog: pytest.LogCaptureFixture
) -> None:
    host, web, db = await lan.host(), vm(1), vm(2, place="shop/db")
    await running(host, web)
    await running(host, db)
    host.write("cells/shop.yaml", SHOP_YAML.replace("  db: {number: 2}\n", ""))
    assert host.agent.reload() == ""
    topology = host.agent.dataplane.pipeline.topology
    assert DB in topology
    assert [r.getMessage() for r in caplog.records if r.levelno == logging.ERROR] == [
        "guest vm2, NIC 52:54:00:5a:02:01 runs in shop/db, which the files have no more: until it stops"
    ]
    await host.agent.reconcile()
    assert DB in topology
    await host.shut(db)
    await host.agent.reconcile()
    assert (DB in topology, WEB in topology) == (False, True)
    with pytest.raises(RequestError, match="has no subnet 'db'"):
        await host.start(db)


@story
async def test_a_reload_takes_the_cells_but_neither_plan_nor_host_settings(lan: Lan) -> None:
    host, web = await lan.host(), vm(1)
    await running(host, web)
    ports, old = host.programs.ports(), host.agent.configuration
    text = (host.paths.config / "divhook.yaml").read_text()
    host.write("divhook.yaml", f"{text}bridge: divbr7\nnetwork: other\nlimits: {{dhcp_pps: 1}}\n")
    host.write("cells/new.yaml", "cell: new\nnumber: 7\nsubnets:\n  only: {number: 1}\n")
    assert host.agent.reload() == ""
    assert host.agent.configuration.host == old.host
    assert host.agent.configuration.cell("new") is not None
    await host.agent.reconcile()
    assert host.programs.ports() == ports
    await host.start(vm(2, place="new/only"))


@story
async def test_a_changed_mtu_counts_for_guests_that_run_in_core_and_kernel_alike(lan: Lan) -> None:
    host, web, db = await lan.host(), vm(1), vm(2, place="shop/db")
    await running(host, web)
    await running(host, db)
    host.write("cells/shop.yaml", SHOP_YAML.replace("db: {number: 2}", "db: {number: 2, mtu: 900}"))
    assert host.agent.reload() == ""
    assert (host.port(web).mtu, host.port(db).mtu) == (1500, 900)
    entries = host.programs.endpoints()
    assert [entries[host.address(each)].mtu for each in (web, db)] == [1500, 900]


@story
async def test_a_changed_address_plan_is_refused_and_the_old_files_stay_in_force(lan: Lan) -> None:
    host, web = await lan.host(), vm(1)
    await running(host, web)
    old = host.agent.configuration
    text = (host.paths.config / "divhook.yaml").read_text()
    host.write("divhook.yaml", f"{text}addresses: {{supernet: 10.128.0.0/9, cell_bits: 7}}\n")
    assert "the address plan has changed" in host.agent.reload()
    assert host.agent.configuration == old
    assert old.plan.supernet == IPv4Network("10.0.0.0/8")


@pytest.mark.parametrize("mistake", ["cell: [", "cell: shop\nnumber: 1\nsubnets:\n  web: {number: 900}\n"])
@story
async def test_a_mistake_in_the_files_leaves_everything_as_it_was_and_is_said(lan: Lan, mistake: str) -> None:
    host = await lan.host()
    old, topology = host.agent.configuration, dict(host.agent.dataplane.pipeline.topology)
    host.write("cells/shop.yaml", mistake)
    assert "cells/shop.yaml:" in host.agent.reload()
    assert host.agent.config_error != ""
    assert (host.agent.configuration, host.agent.dataplane.pipeline.topology) == (old, topology)
    host.write("cells/shop.yaml", SHOP_YAML)
    await host.agent._reload_changed()
    assert host.agent.config_error == ""


@story
async def test_a_reload_between_prepare_and_start_changes_nothing_for_that_guest(lan: Lan) -> None:
    host, web = await lan.host(), vm(1, place="shop/db")
    await host.prepare(web)
    host.write("cells/shop.yaml", SHOP_YAML.replace("db: {number: 2}", "db: {number: 9}"))
    assert host.agent.reload() == ""
    await host.hook(web, "start")
    web.state = "running"
    await host.hook(web, "started")
    await settle()
    assert (host.port(web).subnet, host.port(web).state) == (DB, PortState.ACTIVE)
