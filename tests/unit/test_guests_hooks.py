"""A guest's life by libvirt's hooks: in order, out of order, repeated, refused; nothing is left that should not be."""

import asyncio
import time

import pytest
from agent_fakes import ALL_SYSTEMS_MAC, LAB, TINY, UPLINK_IFINDEX, WEB, Card, Lan, Vm, settle, story, vm

from divhook.adapters.libvirt import EventKind
from divhook.agent.control import RequestError
from divhook.agent.nic import Phase
from divhook.agent.registry import RegistryError
from divhook.core.addressing import ALL_HOSTS_GROUP, group_mac, parse_address
from divhook.core.discovery import ClaimState
from divhook.core.endpoint import MAX_PORT, PortState


@story
async def test_a_new_address_is_claimed_once_nobody_objected_for_600_ms(lan: Lan) -> None:
    host, web = await lan.host(), vm(1)
    await host.prepare(web)
    assert host.nic(web).phase is Phase.PREPARED
    assert host.agent.dataplane.groups == {ALL_HOSTS_GROUP, group_mac(WEB)}
    await host.hook(web, "start")
    assert (host.port(web).state, host.port(web).address) == (PortState.TENTATIVE, host.address(web))
    web.state = "running"
    await host.hook(web, "started")
    await settle(0.5)
    assert host.port(web).state is PortState.TENTATIVE
    await settle(0.2)
    nic, port = host.nic(web), host.port(web)
    assert (nic.phase, port.state) == (Phase.RUNNING, PortState.ACTIVE)
    entry = host.programs.entries[nic.ifindex]
    assert (entry.port_id, entry.state, entry.vmac, entry.address) == (nic.port, PortState.ACTIVE, nic.mac, nic.address)
    assert [c.address for c in host.agent.dataplane.pipeline.discovery.claims()] == [nic.address]
    (kept,) = host.agent.registry.reservations()
    assert (kept.address, kept.born > 0, kept.fixed) == (nic.address, True, False)


@story
async def test_what_the_hook_waits_for_no_longer_begins_nothing(lan: Lan) -> None:
    host, web = await lan.host(), vm(1)
    for operation in ("migrate", "prepare"):
        with pytest.raises(RequestError, match="after the hook's deadline"):
            await host.hook(web, operation, until_s=time.monotonic() - 0.001)
    assert host.agent.guests.all() == []
    assert host.agent.registry.reservations() == []
    await host.hook(web, "prepare", until_s=time.monotonic() + 60)
    assert host.nic(web).phase is Phase.PREPARED


@story
async def test_an_address_it_had_before_is_claimed_as_soon_as_the_guest_runs(lan: Lan) -> None:
    host, web = await lan.host(), vm(1)
    await host.start(web)
    await settle()
    first = host.address(web)
    (born,) = [r.born for r in host.agent.registry.reservations()]
    await host.shut(web)
    await host.start(web)
    assert (host.port(web).state, host.address(web)) == (PortState.ACTIVE, first)
    assert [r.born for r in host.agent.registry.reservations()] == [born]


@story
async def test_a_configured_address_is_claimed_as_soon_as_the_guest_runs(lan: Lan) -> None:
    host, web = await lan.host(), vm(1, address="10.1.1.77")
    await host.start(web)
    assert (host.port(web).state, host.address(web)) == (PortState.ACTIVE, parse_address("10.1.1.77"))


@story
async def test_ten_lives_leave_the_host_as_it_was_but_for_the_reservation(lan: Lan) -> None:
    host, web = await lan.host(), vm(1, cards=2)
    before = host.traces()
    for _ in range(10):
        await host.start(web)
        await settle()
        await host.shut(web)
        await settle()
        assert host.traces() == before
    assert host.agent.dataplane.census._reserved.keys() == {r.address for r in host.agent.registry.reservations()}


@pytest.mark.parametrize(
    "operations",
    [
        ("stopped", "release"),
        ("started",),
        ("prepare", "started", "stopped", "release"),
        ("prepare", "prepare", "release"),
        ("prepare", "start", "start", "started", "started", "stopped", "stopped", "release", "release"),
        ("prepare", "start", "release", "started"),
        ("start", "started", "release"),
        ("restore", "prepare", "start", "started", "stopped"),
        ("migrate", "release"),
        ("migrate", "migrate", "prepare", "prepare", "start", "started", "stopped"),
        ("prepare", "start", "prepare", "start", "started", "stopped"),
        ("reconnect", "attach", "no-such-operation"),
    ],
    ids=" ".join,
)
@story
async def test_steps_in_any_order_leave_nothing(lan: Lan, operations: tuple[str, ...]) -> None:
    host, web = await lan.destination(), vm(1, cards=2)
    host.tap(web)
    before = host.traces()
    for operation in operations:
        await host.hook(web, operation)
    await settle()
    assert host.traces() == before


@story
async def test_a_guest_that_comes_in_where_no_host_has_this_key_is_refused_with_a_remedy(lan: Lan) -> None:
    """Nobody else would believe its claim: that host is of another cluster."""
    host, web = await lan.host(), vm(1)
    before = host.traces()
    await host.hook(web, "migrate")
    host.tap(web)
    with pytest.raises(RequestError, match="divhook key show"):
        await host.hook(web, "start")
    await host.shut(web)
    assert host.traces() == before


@story
async def test_a_start_hook_without_prepare_makes_up_for_it(lan: Lan) -> None:
    host, web = await lan.host(), vm(1)
    host.tap(web)
    await host.hook(web, "start")
    await host.hook(web, "started")
    await settle()
    assert host.port(web).state is PortState.ACTIVE


@story
async def test_every_life_has_its_own_port_id(lan: Lan) -> None:
    host, web = await lan.host(), vm(1)
    ids = []
    for _ in range(3):
        await host.start(web)
        ids.append(host.nic(web).port)
        await host.shut(web)
    assert ids == [1, 2, 3]
    assert host.programs.forgotten == [1, 2, 3]


@story
async def test_port_ids_go_round_and_skip_those_in_use(lan: Lan) -> None:
    host, first, second = await lan.host(), vm(1), vm(2)
    await host.start(first)
    host.agent.registry.put("last port", MAX_PORT)
    await host.start(second)
    assert (host.nic(first).port, host.nic(second).port) == (1, 2)


@story
async def test_a_host_without_a_free_port_id_refuses_and_leaves_nothing(lan: Lan) -> None:
    host, web = await lan.host(), vm(1)
    before = host.traces()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("divhook.agent.ports.MAX_PORTS", 3)
        await host.start(vm(2, cards=2))
        before = host.traces()
        with pytest.raises(RequestError, match="guest vm1, NIC 52:54:00:5a:01:01: this host has 2 ports already"):
            await host.start(web)
    assert host.traces() == before


# ---------------------------------------------------------------------- refusals and failures


def refused() -> list[tuple[Vm, str]]:
    """Guests that may not start, and what their owner reads."""
    jumbo, stretched, lost = vm(1, place="shop/tiny"), vm(1), vm(1, cards=2)
    stretched.cards[0].mtu = 1501
    lost.cards[1].place = ""
    second = vm(1, cards=2)
    second.cards[1] = Card("52:54:00:5a:01:02", "shop/cellar")
    late = vm(1, cards=2)
    late.cards[1].address = "10.1.1.66"
    return [
        (jumbo, "mtu 3000, but this host's uplink takes 1500"),
        (stretched, r"<mtu size='1501'/> is more than the 1500"),
        (lost, "52:54:00:5a:01:02: belongs to no cell and subnet"),
        (second, "cell 'shop' has no subnet 'cellar'"),
        (late, "address 10.1.1.66 belongs to guest holder"),
        (Vm("thief", 3, [Card("52:54:00:5a:09:01")]), "this MAC is used by guest holder"),
    ]


@pytest.mark.parametrize(("guest", "text"), refused(), ids=lambda value: getattr(value, "name", ""))
@story
async def test_a_refused_guest_leaves_nothing_of_any_nic(lan: Lan, guest: Vm, text: str) -> None:
    host, holder = await lan.host(), vm(9, "holder", address="10.1.1.66")
    await host.start(holder)
    before, reserved = host.traces(), host.reserved()
    with pytest.raises(RequestError, match=text):
        await host.prepare(guest)
    assert host.traces() == before  # before libvirt calls `stopped` and `release`
    await host.shut(guest)
    assert (host.traces(), host.reserved()) == (before, reserved)


@pytest.mark.parametrize("method", ["set_port", "attach_port", "set_groups"])
@story
async def test_a_kernel_that_refuses_fails_the_start_in_words_and_nothing_is_left(lan: Lan, method: str) -> None:
    host, web = await lan.host(), vm(1, cards=2)
    before = host.traces()
    with host.refusing(method), pytest.raises(RequestError, match=f"guest vm1: the kernel refuses {method}"):
        await host.begin(web)
    assert host.traces() == before
    await host.start(web)  # and a second try finds no trace of the first
    await settle()
    assert [host.port(web, card).state for card in (0, 1)] == [PortState.ACTIVE] * 2


@story
async def test_the_second_nics_missing_tap_takes_the_firsts_port_with_it(lan: Lan) -> None:
    host, web = await lan.host(), vm(1, cards=2)
    before = host.traces()
    await host.prepare(web)
    del host.links.taps[web.cards[1].tap]
    with pytest.raises(RequestError, match="NIC 52:54:00:5a:01:02: there is no link vnet"):
        await host.hook(web, "start")
    assert host.traces() == before


@story
async def test_a_full_disk_fails_the_start_in_words_and_ends_no_other_guest(lan: Lan) -> None:
    host, web, other = await lan.host(), vm(1), vm(2)
    await host.start(other)
    await settle()
    before = host.traces()

    def full(*_: object) -> None:
        raise RegistryError("registry.sqlite: database or disk is full")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(host.agent.registry, "reserve", full)
        patch.setattr(host.agent.registry, "save_lease", full)
        with pytest.raises(RequestError, match=r"guest vm1: .*disk is full"):
            await host.start(web)
        assert host.traces() == before
        await host.shut(other)
        assert host.agent.guests.all() == []
        assert host.programs.entries == {}


@story
async def test_a_kernel_that_refuses_removal_is_asked_again_by_reconcile(lan: Lan) -> None:
    host, web = await lan.host(), vm(1)
    before = host.traces()
    await host.start(web)
    await settle()
    with host.refusing("detach_port", "remove_port", "set_groups"):
        await host.shut(web)
    assert host.agent.guests.all() == []
    assert host.programs.entries != {}
    await host.agent.reconcile()
    assert host.traces() == before


@story
async def test_an_objection_from_another_host_refuses_a_configured_address(lan: Lan) -> None:
    a, b = await lan.host(), await lan.host()
    await a.start(vm(9, "holder", address="10.1.1.66"))
    thief, before = vm(1, address="10.1.1.66"), b.traces()
    with pytest.raises(RequestError, match=r"guest vm1, NIC .*: address 10\.1\.1\.66 belongs to another guest"):
        await b.start(thief)
    await settle()
    assert (b.traces(), b.reserved()) == (before, {})


@story
async def test_guests_of_two_hosts_never_choose_one_address(lan: Lan) -> None:
    a, b = await lan.host(), await lan.host()
    twins = [vm(1, "one"), vm(2, "two")]
    twins[1].cards[0].mac = twins[0].cards[0].mac  # one hash, so one first choice
    await asyncio.gather(a.start(twins[0]), b.start(twins[1]))
    await settle(3)
    assert a.address(twins[0]) != b.address(twins[1])
    assert (a.port(twins[0]).state, b.port(twins[1]).state) == (PortState.ACTIVE, PortState.ACTIVE)
    assert b.reserved() == {"two": b.address(twins[1])}


@story
async def test_an_agent_that_has_not_reconciled_refuses_prepare_and_start_and_says_nothing(lan: Lan) -> None:
    host, web = await lan.host(reconciled=False), vm(1)
    host.tap(web)
    before = host.traces()
    for operation in ("prepare", "migrate", "restore", "start"):
        with pytest.raises(RequestError, match="has not yet learned from libvirt"):
            await host.hook(web, operation)
    await host.hook(web, "started")
    await settle()
    assert (host.traces(), lan.frames) == (before, [])


@story
async def test_bad_xml_is_refused_by_name_and_a_guest_without_our_nics_is_none_of_our_business(lan: Lan) -> None:
    host, web = await lan.host(), vm(1)
    before = host.traces()
    with pytest.raises(RequestError, match="not well-formed"):
        await host.agent.guests.hook("prepare", "begin", "<domain")
    await host.agent.guests.hook("prepare", "begin", web.xml.replace("network='divhook'", "network='default'"))
    await settle()
    assert host.traces() == before


# ---------------------------------------------------------------------- many at once


@story
async def test_guests_that_start_at_once_do_not_mix_their_answers(lan: Lan) -> None:
    host = await lan.host()
    host.links.slow_s = 0.01
    cast = [
        vm(number, place=place) for number, place in enumerate(["shop/web"] * 8 + ["shop/db"] * 4 + ["lab/web"] * 4)
    ]
    await asyncio.gather(*(host.start(guest) for guest in cast))
    await settle()
    plan = host.agent.configuration.plan
    ends = [host.port(guest) for guest in cast]
    assert {end.state for end in ends} == {PortState.ACTIVE}
    assert len({end.address for end in ends}) == len({end.port for end in ends}) == len(cast)
    assert all(plan.locate(end.address or b"") == end.subnet for end in ends)
    assert {end.guest for end in ends if end.subnet == LAB} == {f"vm{n}" for n in range(12, 16)}


@story
async def test_hooks_of_one_guest_wait_for_each_other(lan: Lan) -> None:
    host, web = await lan.host(), vm(1)
    before = host.traces()
    host.links.slow_s = 0.5
    await host.prepare(web)
    starting = asyncio.create_task(host.hook(web, "start"))
    await settle(0.2)
    stopping = asyncio.create_task(host.hook(web, "stopped"))
    await settle(0.1)
    assert not stopping.done()
    await asyncio.gather(starting, stopping)
    assert host.traces() == before


@story
async def test_a_hook_that_libvirt_gave_up_is_still_complete(lan: Lan) -> None:
    host, web = await lan.host(), vm(1, cards=2)
    before = host.traces()
    host.links.slow_s = 0.5
    await host.prepare(web)
    starting = asyncio.create_task(host.hook(web, "start"))
    await settle(0.7)
    starting.cancel()
    await asyncio.wait([starting])
    assert host.traces() == before


@story
async def test_a_tap_that_goes_while_the_next_is_set_up_takes_only_its_own_nic(lan: Lan) -> None:
    host, web = await lan.host(), vm(1, cards=2)
    host.links.slow_s = 0.5
    await host.prepare(web)
    starting = asyncio.create_task(host.hook(web, "start"))
    await settle(0.7)
    host.agent.guests.tap_gone(host.links.taps.pop(web.cards[0].tap))
    await starting
    await host.hook(web, "started")
    await settle()
    assert [nic.mac for nic in host.agent.guests.all()] == [web.cards[1].octets]
    assert host.port(web, 1).state is PortState.ACTIVE


@story
async def test_a_tap_belongs_to_one_nic(lan: Lan) -> None:
    host, web, thief = await lan.host(), vm(1), vm(2)
    await host.start(web)
    before = host.programs.ports()
    thief.cards[0].tap = web.cards[0].tap
    with pytest.raises(RequestError, match="its tap vnet101 is that of guest vm1"):
        await host.begin(thief)
    assert host.programs.ports() == before


# ---------------------------------------------------------------------- libvirt's events


@story
async def test_a_late_event_of_the_last_life_does_not_end_the_next(lan: Lan) -> None:
    host, web = await lan.host(), vm(1)
    await host.start(web)
    await settle()
    await host.shut(web)
    host.libvirt.slow_s = 0.1  # what libvirt said before the next start comes back after it
    host.event(EventKind.STOPPED, web)
    host.event(EventKind.UNDEFINED, web)
    await settle(0.05)
    await host.start(web)
    await settle()
    assert host.port(web).state is PortState.ACTIVE
    assert host.reserved() == {"vm1": host.address(web)}


@story
async def test_a_transient_guest_that_is_made_again_meanwhile_keeps_its_address(lan: Lan) -> None:
    host, web = await lan.host(), vm(1)
    await host.start(web)
    await settle()
    address = host.address(web)
    await host.shut(web)
    host.libvirt.vms.clear()
    host.libvirt.slow_s = 0.1
    host.event(EventKind.STOPPED, web)
    await settle(0.05)
    await host.start(web)
    await settle()
    assert (host.port(web).state, host.reserved()) == (PortState.ACTIVE, {"vm1": address})
    assert host.agent.registry.quarantined(0) == {}


@pytest.mark.parametrize("kind", [EventKind.STOPPED, EventKind.UNDEFINED])
@story
async def test_an_event_in_the_middle_of_a_start_changes_nothing(lan: Lan, kind: EventKind) -> None:
    host, web = await lan.host(), vm(1)
    await host.prepare(web)
    host.event(kind, web)
    await settle(0.01)
    await host.hook(web, "start")
    host.event(kind, web)
    await settle(0.01)
    web.state = "running"
    await host.hook(web, "started")
    host.event(kind, web)
    await settle()
    assert host.port(web).state is PortState.ACTIVE


@story
async def test_the_end_of_a_guest_is_told_to_all_hosts_and_its_address_defended(lan: Lan) -> None:
    a, b = await lan.host(), await lan.host()
    web = vm(1)
    await a.start(vm(9, "neighbour"))  # without a port in the subnet a does not hear who asks for its addresses
    await a.start(web)
    await settle()
    address = a.address(web)
    b_thief = vm(2, address=".".join(str(octet) for octet in address))
    web.state = "off"
    a.event(EventKind.STOPPED, web)  # no hook came
    await settle()
    assert [nic.guest for nic in a.agent.guests.all()] == ["neighbour"]
    assert a.agent.dataplane.pipeline.discovery.state(address) is None
    with pytest.raises(RequestError, match="belongs to another guest"):
        await b.start(b_thief)


@story
async def test_a_transient_guests_address_is_in_quarantine_but_not_for_itself(lan: Lan) -> None:
    host, web = await lan.host(), vm(1)
    await host.start(web)
    await settle()
    address = host.address(web)
    await host.shut(web)
    host.libvirt.vms.clear()
    host.event(EventKind.STOPPED, web)
    await settle()
    assert host.reserved() == {}
    assert host.agent.registry.quarantined(0).keys() == {address}
    other = vm(2)
    other.cards[0].mac = web.cards[0].mac  # the same first choice
    await host.start(other)
    assert host.address(other) != address
    await host.shut(other)
    await host.start(web)
    await settle()
    assert host.address(web) == address
    assert host.agent.registry.quarantined(0) == {}


@story
async def test_undefined_before_its_end_was_seen_is_quarantined_all_the_same(lan: Lan) -> None:
    host, web = await lan.host(), vm(1)
    await host.start(web)
    await settle()
    address = host.address(web)
    host.libvirt.vms.clear()
    host.event(EventKind.UNDEFINED, web)
    host.event(EventKind.STOPPED, web)
    await settle()
    assert (host.agent.guests.all(), host.reserved()) == ([], {})
    (until_s, _) = host.agent.dataplane.census._released[address]
    assert until_s - host.agent.dataplane.now() > 590


@story
async def test_libvirtd_away_when_an_event_is_looked_into_is_no_bug_and_no_end(lan: Lan) -> None:
    host, web = await lan.host(), vm(1)
    await host.start(web)
    host.libvirt.away = True
    for kind in EventKind:
        host.event(kind, web)
    await settle()
    assert host.port(web).state is PortState.ACTIVE


@story
async def test_no_frame_leaves_with_a_guests_mac(lan: Lan) -> None:
    a, b = await lan.host(), await lan.host()
    one, two = vm(1), vm(2)
    await asyncio.gather(a.start(one), b.start(two))
    await settle(3)
    tap = a.nic(one).ifindex
    await asyncio.gather(a.shut(one), b.shut(two))
    await settle()
    assert {frame[6:12] for frame in lan.frames} == {a.uplink.mac, b.uplink.mac}
    assert all(f[:6] == ALL_SYSTEMS_MAC for ifindex, f in a.sent.frames if ifindex == tap)
    assert {ifindex for ifindex, _ in a.sent.frames} == {UPLINK_IFINDEX, tap}
    assert not [f for f in lan.frames if f[:6] == b"\xff" * 6 or f[:6] == group_mac(TINY)]


@story
async def test_a_guest_is_fenced_only_by_its_owner_and_free_again_when_that_is_gone(lan: Lan) -> None:
    a, b = await lan.host(), await lan.host()
    web = vm(1, address="10.1.1.77")
    lan.cut.add(b)
    await b.start(vm(1, address="10.1.1.77"))
    await settle()
    await a.start(web)
    await settle()
    lan.cut.clear()
    copy = vm(1, address="10.1.1.77")
    await settle(700)  # both repeat their claims; a's is newer
    assert (a.port(web).state, b.port(copy).state) == (PortState.ACTIVE, PortState.FENCED)
    assert b.programs.entries[b.nic(copy).ifindex].state is PortState.FENCED
    await a.shut(web)
    await settle(15)
    assert b.port(copy).state is PortState.ACTIVE
    assert b.agent.dataplane.pipeline.discovery.state(b.address(copy)) is ClaimState.ACTIVE
    assert group_mac(WEB) in b.agent.dataplane.groups
