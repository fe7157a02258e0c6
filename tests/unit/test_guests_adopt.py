"""Guests without hooks: a restarted agent, hot-plug, lost hooks and events, a reconcile in the middle of things."""

import asyncio
import logging
from dataclasses import replace

import pytest
from agent_fakes import WEB, Card, Host, Lan, Vm, settle, story, vm

from divhook.adapters.bpf.errors import BpfError
from divhook.adapters.bpf.programs import FROM_GUEST
from divhook.adapters.libvirt import EventKind
from divhook.adapters.links import LinkEvent
from divhook.agent.control import RequestError
from divhook.agent.nic import Phase
from divhook.core.addressing import group_mac, parse_address
from divhook.core.discovery import ClaimState
from divhook.core.endpoint import PortState


def errors(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [r.getMessage() for r in caplog.records if r.levelno >= logging.ERROR]


async def fenced(lan: Lan) -> tuple[Host, Host, Vm, Vm]:
    """Two hosts that run the same guest: it is fenced on the second."""
    a, b = await lan.host(), await lan.host()
    one, copy = vm(1, address="10.1.1.77"), vm(1, address="10.1.1.77")
    lan.cut.add(b)
    await b.start(copy)
    await settle()
    await a.start(one)
    lan.cut.clear()
    await settle(700)
    assert b.port(copy).state is PortState.FENCED
    return a, b, one, copy


# ---------------------------------------------------------------------- the agent restarts


@story
async def test_a_restarted_agent_goes_on_with_port_address_and_claim(lan: Lan) -> None:
    a, b = await lan.host(), await lan.host()
    web, far = vm(1, cards=2), vm(2)
    await a.start(web)
    await b.start(far)
    await settle()
    web_traces = a.traces()
    ports = {nic.key: (nic.port, nic.address, nic.ifindex) for nic in a.agent.guests.all()}
    claims = a.agent.dataplane.pipeline.discovery.claims()
    await a.restart()
    assert {nic.key: (nic.port, nic.address, nic.ifindex) for nic in a.agent.guests.all()} == ports
    assert a.agent.dataplane.pipeline.discovery.claims() == claims
    await settle()
    after = a.traces()
    assert {k: v for k, v in after.items() if k != "nics"} == {k: v for k, v in web_traces.items() if k != "nics"}
    assert b.port(far).state is PortState.ACTIVE


@story
async def test_a_restarted_agent_changes_nothing_for_the_programs(lan: Lan, caplog: pytest.LogCaptureFixture) -> None:
    host, web = await lan.host(), vm(1)
    await host.start(web)
    await settle()
    before = host.programs.ports()
    await host.restart()
    assert host.programs.ports() == before
    assert [r.getMessage() for r in caplog.records if r.levelno >= logging.WARNING] == []


@pytest.mark.parametrize("address", ["", "10.1.1.66"])
@story
async def test_a_port_that_passes_traffic_passes_it_all_through_its_adoption(lan: Lan, address: str) -> None:
    host, web = await lan.host(), vm(1, address=address)
    await host.start(web)
    await settle()
    assert host.programs.endpoint(host.address(web)) is not None
    host.programs.written.clear()
    await host.restart()
    assert host.port(web).state is PortState.ACTIVE
    assert host.programs.written == []


@story
async def test_a_fixed_address_goes_on_without_a_gap_where_the_registry_was_lost(lan: Lan) -> None:
    host, web = await lan.host(), vm(1, address="10.1.1.66")
    await host.start(web)
    await settle()
    host.programs.written.clear()
    await host.stop()
    (host.paths.state / "registry.sqlite").unlink()
    host.boot()
    await host.agent.reconcile()
    assert host.port(web).state is PortState.ACTIVE
    assert host.programs.written == []


@story
async def test_a_fenced_port_stays_fenced_all_through_its_adoption(lan: Lan) -> None:
    _, b, _, copy = await fenced(lan)
    b.programs.written.clear()
    await b.restart()
    assert b.port(copy).state is PortState.FENCED
    assert b.programs.written == []


@story
async def test_a_port_with_another_address_than_its_guest_has_now_passes_nothing_before_the_claim(lan: Lan) -> None:
    host, web = await lan.host(), vm(1, address="10.1.1.66")
    await host.start(web)
    await settle()
    ifindex = host.nic(web).ifindex
    other = parse_address("10.1.1.99")
    host.programs.entries[ifindex] = replace(host.programs.entries[ifindex], address=other)
    host.programs.written.clear()
    await host.restart()
    states = [entry.state for key, entry in host.programs.written if key == ifindex]
    assert states == [PortState.TENTATIVE, PortState.ACTIVE]


@story
async def test_stopped_guests_addresses_are_defended_after_a_restart(lan: Lan) -> None:
    host, web, other = await lan.host(), vm(1), vm(2)
    other.cards[0].mac = web.cards[0].mac  # the same first choice
    await host.start(web)
    await settle()
    address = host.address(web)
    await host.shut(web)
    await host.restart()
    await host.start(other)
    assert host.address(other) != address


@story
async def test_quarantine_outlives_a_restart_unless_the_address_has_an_owner_again(lan: Lan) -> None:
    host, web, heir = await lan.host(), vm(1, address="10.1.1.66"), vm(2, address="10.1.1.66")
    await host.start(web)
    await host.shut(web)
    await host.agent.guests.ended(web.uuid, 1e9, defined=False)
    host.libvirt.vms.clear()
    await host.restart()
    assert host.agent.dataplane.census._released.keys() == {parse_address("10.1.1.66")}
    await host.start(heir)
    await host.shut(heir)
    await host.restart()
    census = host.agent.dataplane.census
    assert (census._released.keys(), census._reserved.keys()) == (set(), {parse_address("10.1.1.66")})


@story
async def test_a_guest_that_ended_while_the_agent_was_away_is_forgotten_and_its_port_shut(lan: Lan) -> None:
    host, web, other = await lan.host(), vm(1), vm(2)
    await host.start(web)
    await host.start(other)
    await settle()
    web_address, other_address = host.address(web), host.address(other)
    host.agent.registry.save_lease(web_address, {"until": 1e12})
    web.state = "off"
    host.libvirt.vms.remove(other)
    await host.restart()
    assert (host.agent.guests.all(), host.programs.entries) == ([], {})
    assert FROM_GUEST not in host.programs.on.values()
    assert host.reserved() == {"vm1": web_address}
    assert host.agent.registry.quarantined(0).keys() == {other_address}
    assert host.agent.registry.leases() == {}
    assert host.agent.dataplane.pipeline.discovery.claims() == []


@story
async def test_a_fence_outlives_a_restart(lan: Lan) -> None:
    a, b, one, copy = await fenced(lan)
    lan.cut.add(b)
    await b.restart()
    assert (b.port(copy).state, b.nic(copy).phase) == (PortState.FENCED, Phase.RUNNING)
    lan.cut.clear()
    await settle(15)
    assert b.port(copy).state is PortState.FENCED
    await a.shut(one)
    await settle(15)
    assert b.port(copy).state is PortState.ACTIVE


@story
async def test_one_guest_that_cannot_be_adopted_stops_no_other_and_no_hook(
    lan: Lan, caplog: pytest.LogCaptureFixture
) -> None:
    host = await lan.host(reconciled=False)
    good, lost, taken, broken = vm(1), vm(2, place="shop/cellar"), vm(3), vm(4)
    taken.cards[0].mac = good.cards[0].mac
    for guest in (broken, lost, good, taken):
        host.tap(guest)
        guest.state = "running"
        host.libvirt.vms.append(guest)
    del host.links.taps[broken.cards[0].tap]
    await host.agent.reconcile()
    await settle()
    assert host.agent.guests.reconciled
    assert [nic.guest for nic in host.agent.guests.all()] == ["vm1"]
    assert host.port(good).state is PortState.ACTIVE
    told = "\n".join(errors(caplog))
    for text in ("there is no link vnet", "no subnet 'cellar'", "this MAC is used by guest vm1"):
        assert told.count(text) == 1
    await host.agent.reconcile()
    assert "\n".join(errors(caplog)) == told  # said once
    await host.start(vm(5))


@pytest.mark.parametrize("method", ["set_port", "attach_port", "set_groups"])
@story
async def test_a_kernel_that_refuses_an_adoption_leaves_nothing_and_is_asked_again(lan: Lan, method: str) -> None:
    host, web = await lan.host(), vm(1)
    await host.start(web)
    await settle()
    await host.stop()
    if method == "set_groups":
        host.boot()
        host.programs.fail.add(method)
        await host.agent.reconcile()
    else:
        host.programs.fail.add(method)
        host.boot()
        await host.agent.reconcile()
    assert host.agent.guests.reconciled
    assert host.agent.guests.all() == []
    assert host.agent.dataplane.pipeline.discovery.claims() == []
    host.programs.fail.clear()
    await host.agent.reconcile()
    await settle()
    assert host.port(web).state is PortState.ACTIVE


@story
async def test_a_nic_that_the_kernel_refuses_costs_the_guests_other_nic_nothing(
    lan: Lan, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    host, web = await lan.host(), vm(1, cards=2)
    await host.start(web)
    await settle()
    first, attach = host.nic(web).ifindex, host.programs.attach_port

    def refuses(ifindex: int) -> None:
        if ifindex == first:
            raise BpfError("the kernel refuses this one")
        attach(ifindex)

    monkeypatch.setattr(host.programs, "attach_port", refuses)
    await host.restart()
    assert [nic.mac for nic in host.agent.guests.all()] == [web.cards[1].octets]
    assert host.port(web, 1).state is PortState.ACTIVE
    assert errors(caplog) == ["NIC stays without network: the kernel refuses this one"]


@story
async def test_a_lease_that_cannot_be_read_does_not_keep_the_agent_from_serving(lan: Lan) -> None:
    host, web = await lan.host(), vm(1)
    await host.start(web)
    await settle()
    host.agent.registry._db.execute("INSERT INTO lease VALUES (?, '{}')", (host.address(web),))
    await host.restart()
    assert host.agent.guests.reconciled
    assert host.port(web).state is PortState.ACTIVE


@story
async def test_a_bug_in_one_adoption_is_told_and_the_rest_goes_on(
    lan: Lan, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    host, web, bad = await lan.host(), vm(1), vm(2)
    await host.start(web)
    await settle()
    await host.stop()
    host.boot()
    adopt = host.agent.guests.adopt

    async def fragile(guest: object, listed_s: float) -> None:
        if getattr(guest, "name", "") == "vm2":
            raise KeyError("a bug")
        await adopt(guest, listed_s)  # type: ignore[arg-type]

    bad.state = "running"
    host.libvirt.vms.insert(0, bad)
    monkeypatch.setattr(host.agent.guests, "adopt", fragile)
    await host.agent.reconcile()
    assert host.port(web).state is PortState.ACTIVE
    assert errors(caplog) == ["guest vm2 was not looked after; please report this trace"]


@story
async def test_a_guest_whose_file_changed_meanwhile_keeps_its_place_until_its_next_start(lan: Lan) -> None:
    host, web = await lan.host(), vm(1)
    await host.start(web)
    await settle()
    address = host.address(web)
    web.cards[0].place = "shop/db"
    await host.restart()
    assert (host.port(web).subnet, host.address(web), host.port(web).state) == (WEB, address, PortState.ACTIVE)
    await host.shut(web)
    await host.start(web)
    await settle()
    assert str(parse_address("10.1.2.0")[:3]) == str(host.address(web)[:3])
    assert host.reserved() == {"vm1": host.address(web)}
    census = host.agent.dataplane.census
    assert (census._reserved, list(census._released)) == ({}, [address])


@story
async def test_a_start_under_way_when_the_agent_restarts_goes_on(lan: Lan) -> None:
    host, web = await lan.host(), vm(1)
    await host.prepare(web)
    await host.restart()
    await host.hook(web, "start")
    await host.restart()
    await settle()
    assert (host.port(web).state, host.agent.dataplane.pipeline.discovery.claims()) == (PortState.TENTATIVE, [])
    web.state = "running"
    await host.hook(web, "started")
    await settle()
    assert host.port(web).state is PortState.ACTIVE


@story
async def test_an_agent_that_restarts_in_the_middle_of_a_move_claims_nothing_before_the_guest_is_here(lan: Lan) -> None:
    a, b = await lan.host(), await lan.host()
    web, copy = vm(1), vm(1)
    await a.start(web)
    await settle()
    claims = a.agent.dataplane.pipeline.discovery.claims()
    await b.hook(copy, "migrate")
    await b.begin(copy)
    await b.hook(copy, "started")
    copy.state = "paused"
    await b.restart()
    await settle()
    assert (b.port(copy).state, b.agent.dataplane.pipeline.discovery.claims()) == (PortState.INCOMING, [])
    assert a.agent.dataplane.pipeline.discovery.claims() == claims
    b.event(EventKind.RESUMED, copy)
    assert (b.port(copy).state, b.address(copy)) == (PortState.ACTIVE, claims[0].address)


@story
async def test_a_guest_that_its_owner_paused_keeps_its_claim_over_a_restart(lan: Lan) -> None:
    host, web = await lan.host(), vm(1)
    await host.start(web)
    await settle()
    claims = host.agent.dataplane.pipeline.discovery.claims()
    web.state = "paused"
    await host.restart()
    assert (host.port(web).state, host.agent.dataplane.pipeline.discovery.claims()) == (PortState.ACTIVE, claims)


# ---------------------------------------------------------------------- hot-plug


@story
async def test_a_hot_plugged_nic_is_adopted_and_an_unplugged_one_forgotten(lan: Lan) -> None:
    host, web = await lan.host(), vm(1)
    await host.start(web)
    await settle()
    before = host.traces()
    web.cards.append(Card("52:54:00:5a:01:99", "shop/db"))
    host.tap(web)
    host.event(EventKind.DEVICE_ADDED, web)
    await settle()
    assert (host.port(web, 1).state, host.port(web, 1).address is not None) == (PortState.ACTIVE, True)
    web.cards.pop()
    host.event(EventKind.DEVICE_REMOVED, web)
    await settle()
    after = host.traces()
    assert after == before
    assert host.reserved() == {"vm1": host.address(web)}  # or every detach would keep one for good


@story
async def test_a_nic_without_tap_yet_is_tried_again_when_the_tap_is_a_port(lan: Lan) -> None:
    host, web = await lan.host(), vm(1)
    await host.start(web)
    web.cards.append(Card("52:54:00:5a:01:99"))
    await host.agent.reconcile()
    assert len(host.agent.guests.all()) == 1
    host.tap(web)
    tap = host.links.taps[web.cards[1].tap]
    await host.agent._link_event(LinkEvent("changed", tap, "vnet", True, True, True, became_port=True))
    await settle(5)
    assert host.port(web, 1).state is PortState.ACTIVE


@story
async def test_a_tap_that_leaves_the_bridge_is_looked_into(lan: Lan) -> None:
    host, web = await lan.host(), vm(1, cards=2)
    await host.start(web)
    await settle()
    tap = host.nic(web, 1).ifindex
    await host.agent._link_event(LinkEvent("new", tap, "vnet", True, True, True, became_port=True))
    web.cards.pop()  # `virsh update-device` to another network
    await host.agent._link_event(LinkEvent("changed", tap, "vnet", False, True, True))
    await settle()
    assert [nic.mac for nic in host.agent.guests.all()] == [web.cards[0].octets]
    assert tap not in host.programs.entries


@story
async def test_a_removed_nics_address_is_free_for_the_mac_that_follows_it(lan: Lan) -> None:
    host, web = await lan.host(), vm(1, address="10.1.1.66")
    await host.start(web)
    await host.shut(web)
    web.cards[0].mac = "52:54:00:5a:01:98"  # `virsh edit`
    await host.start(web)
    assert host.port(web).address == parse_address("10.1.1.66")


@story
async def test_nics_that_a_stopped_guest_has_no_more_keep_no_address(lan: Lan) -> None:
    host, web = await lan.host(), vm(1, cards=2)
    await host.start(web)
    await settle()
    kept = host.address(web)
    await host.shut(web)
    web.cards.pop()
    await host.agent.reconcile()
    assert host.reserved() == {"vm1": kept}


# ---------------------------------------------------------------------- reconcile in the middle


@story
async def test_a_nic_that_waits_for_its_start_hook_survives_reconcile(lan: Lan) -> None:
    host, web = await lan.host(), vm(1)
    await host.prepare(web)
    nic = host.nic(web)
    await host.agent.reconcile()
    web.cards[0].tap = ""
    await host.agent.reconcile()
    assert (host.nic(web), nic.phase) == (nic, Phase.PREPARED)


@story
async def test_an_incoming_nic_survives_reconcile_and_claims_nothing(lan: Lan) -> None:
    host, web = await lan.destination(), vm(1, address="10.1.1.77")
    await host.hook(web, "migrate")
    await host.agent.reconcile()  # libvirt does not list it yet
    host.libvirt.vms.append(web)
    web.state = "starting"
    await host.hook(web, "prepare")
    await host.agent.reconcile()
    host.tap(web)
    await host.agent.reconcile()
    await host.hook(web, "start")
    await host.agent.reconcile()
    await host.hook(web, "started")
    web.state = "paused"
    await host.agent.reconcile()
    await settle(40)
    await host.agent.reconcile()
    assert (host.port(web).state, host.agent.dataplane.pipeline.discovery.claims()) == (PortState.INCOMING, [])
    web.state = "running"
    host.event(EventKind.RESUMED, web)
    assert host.port(web).state is PortState.ACTIVE


@story
async def test_a_move_that_is_given_up_leaves_nothing_and_the_source_its_guest(lan: Lan) -> None:
    a, b = await lan.host(), await lan.host()
    web, copy = vm(1), vm(1)
    await a.start(web)
    await settle()
    before, claims = b.traces(), a.agent.dataplane.pipeline.discovery.claims()
    await b.hook(copy, "migrate")
    await b.begin(copy)
    await b.hook(copy, "started")
    await settle()
    assert (b.port(copy).state, b.address(copy)) == (PortState.INCOMING, a.address(web))
    await b.shut(copy)
    b.libvirt.vms.clear()
    b.event(EventKind.STOPPED, copy)
    await settle(40)
    assert (b.traces(), b.reserved()) == (before, {})
    assert a.agent.dataplane.pipeline.discovery.claims() == claims
    assert a.port(web).state is PortState.ACTIVE


@story
async def test_a_move_that_arrives_takes_the_claim_with_a_higher_stamp_and_the_same_birth(lan: Lan) -> None:
    a, b = await lan.host(), await lan.host()
    web, copy = vm(1), vm(1)
    await a.start(web)
    await settle()
    (old,) = a.agent.dataplane.pipeline.discovery.claims()
    await b.hook(copy, "migrate")
    await b.begin(copy)
    await b.hook(copy, "started")
    copy.state = "running"
    b.event(EventKind.RESUMED, copy)
    (new,) = b.agent.dataplane.pipeline.discovery.claims()
    assert new.stamp > old.stamp
    assert (new.address, new.guest_id, new.host) == (old.address, old.guest_id, b.uplink.mac)
    await settle()
    assert a.port(web).state is PortState.FENCED
    await a.shut(web)
    assert b.port(copy).state is PortState.ACTIVE


@pytest.mark.parametrize("incoming", [False, True], ids=["started lost", "RESUMED lost"])
@story
async def test_a_hook_or_event_that_was_lost_is_made_good(lan: Lan, incoming: bool) -> None:
    host, web = await lan.destination(), vm(1, address="10.1.1.77")
    if incoming:
        await host.hook(web, "migrate")
    await host.begin(web)
    if incoming:
        await host.hook(web, "started")
    web.state = "running"
    assert host.port(web).state is not PortState.ACTIVE
    await host.agent.reconcile()
    assert host.port(web).state is PortState.ACTIVE


@story
async def test_an_old_list_of_guests_does_not_end_what_began_since(lan: Lan) -> None:
    host, web = await lan.host(), vm(1, cards=2)
    await host.start(web)
    await settle()
    await host.shut(web)
    card = web.cards.pop()
    web.state = "running"
    host.libvirt.slow_s = 40.0
    listing = asyncio.create_task(host.agent.reconcile())  # libvirt says: it runs, with one NIC
    await settle(1)
    web.cards.append(card)
    web.state = "off"
    await host.start(web)
    await listing
    await settle()
    assert [host.port(web, index).state for index in (0, 1)] == [PortState.ACTIVE] * 2


@story
async def test_a_guest_that_libvirt_runs_no_more_is_forgotten_though_nothing_was_said(lan: Lan) -> None:
    host, web, half = await lan.host(), vm(1), vm(2)
    before = host.traces()
    await host.start(web)
    await host.prepare(half)
    web.state = half.state = "off"
    await host.agent.reconcile()
    assert [nic.guest for nic in host.agent.guests.all()] == ["vm2"]  # libvirt may be about to start it
    await settle(31)
    await host.agent.reconcile()
    assert host.traces() == before


@story
async def test_many_who_want_to_reconcile_get_it_once_more(lan: Lan) -> None:
    host = await lan.host()
    host.libvirt.slow_s, host.libvirt.asked = 1.0, 0
    await asyncio.gather(*(host.agent.reconcile() for _ in range(50)))
    assert host.libvirt.asked == 2  # one is under way, and one will see what the other 49 have seen
    running = asyncio.create_task(host.agent.reconcile())
    await settle(0.5)
    await asyncio.gather(running, *(host.agent.reconcile() for _ in range(50)))
    assert host.libvirt.asked == 4


@story
async def test_frames_are_read_between_the_guests_of_a_long_reconcile(lan: Lan) -> None:
    host = await lan.host()
    host.libvirt.vms += [vm(number) for number in range(200)]
    turns = 0

    async def other_work() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    working = asyncio.create_task(other_work())
    await host.agent.reconcile()
    working.cancel()
    assert turns >= 200


@story
async def test_a_renamed_guest_keeps_its_address(lan: Lan) -> None:
    host, web = await lan.host(), vm(1)
    await host.start(web)
    await settle()
    address = host.address(web)
    await host.shut(web)
    web.name = "www"
    await host.agent.reconcile()
    await host.start(web)
    assert (host.reserved(), host.port(web).guest) == ({"www": address}, "www")


# ---------------------------------------------------------------------- what others do to the kernel


@story
async def test_a_port_or_program_that_somebody_removed_is_put_back(lan: Lan, caplog: pytest.LogCaptureFixture) -> None:
    host, web, other = await lan.host(), vm(1), vm(2)
    await host.start(web)
    await host.start(other)
    await settle()
    ports, attached = host.programs.ports(), host.programs.attached()
    host.programs.remove_port(host.nic(web).ifindex)
    host.programs.detach_port(host.nic(other).ifindex)
    await host.agent.reconcile()
    assert (host.programs.ports(), host.programs.attached()) == (ports, attached)
    assert [r.getMessage() for r in caplog.records if r.levelno == logging.WARNING] == [
        "guest vm1, NIC 52:54:00:5a:01:01: its port was not what it must be: set again",
        "guest vm2, NIC 52:54:00:5a:02:01: the program was missing on vnet102: attached again",
    ]


@story
async def test_the_uplinks_program_is_put_back(lan: Lan) -> None:
    host = await lan.host()
    attached = host.programs.attached()
    host.programs.on.clear()
    await host.agent._ensure_links()
    assert host.programs.attached() == attached


@story
async def test_a_step_that_fails_ends_neither_the_others_nor_the_next_time(
    lan: Lan, caplog: pytest.LogCaptureFixture
) -> None:
    host = await lan.host()
    done: list[float] = []

    async def fails() -> None:
        raise KeyError("a bug")

    async def works() -> None:
        done.append(asyncio.get_running_loop().time())

    host.agent._spawn(host.agent._every(10.0, fails, works))
    await settle(35)
    assert len(done) == 3
    assert len(errors(caplog)) == 3


@story
async def test_bad_metadata_of_a_running_guest_costs_it_nothing_until_its_next_start(lan: Lan) -> None:
    host, web = await lan.host(), vm(1)
    await host.start(web)
    await settle()
    address = host.address(web)
    web.cards[0].place = "shop/web' colour='red"
    await host.agent.reconcile()
    await host.restart()
    assert (host.address(web), host.port(web).state) == (address, PortState.ACTIVE)
    await host.shut(web)
    with pytest.raises(RequestError, match="unknown attribute 'colour'"):
        await host.start(web)


@story
async def test_the_groups_of_adopted_guests_are_joined(lan: Lan) -> None:
    host, web = await lan.host(), vm(1)
    await host.start(web)
    await settle()
    await host.restart()
    assert group_mac(WEB) in host.agent.dataplane.groups
    assert host.programs.groups == host.agent.dataplane.groups
    assert host.agent.dataplane.pipeline.discovery.state(host.address(web)) is ClaimState.ACTIVE
