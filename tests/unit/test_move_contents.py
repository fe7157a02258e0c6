"""What goes with a guest from agent to agent: counters, groups, who is told; and what its port may do meanwhile."""

import pytest
from agent_fakes import Host, Lan, Vm, settle, story, vm

from divhook.abi.entries import LocalEndpoint, RemoteEndpoint
from divhook.adapters.libvirt import EventKind
from divhook.agent.move_contents import counters_of, hosts_of_talkers
from divhook.core.addressing import parse_address
from divhook.core.endpoint import PortState
from divhook.core.moves.messages import Handover
from divhook.core.moves.source import FORWARD_S
from divhook.core.wire.discovery import Claim

GROUP = parse_address("239.1.2.3")
POLICY = "cell: shop\ndefault: allow\n"


async def running(lan: Lan) -> tuple[Host, Host, Vm, Vm]:
    """Guest 1 runs on A, and has its port on B."""
    a, b = await lan.host(), await lan.host()
    web, copy = vm(1), vm(1)
    await a.start(web)
    await settle()
    await b.hook(copy, "migrate")
    await b.begin(copy)
    return a, b, web, copy


def claim_on(host: Host) -> Claim:
    (claim,) = host.agent.dataplane.pipeline.discovery.claims()
    return claim


def handed(a: Host, b: Host, web: Vm, copy: Vm) -> Handover:
    handover = a.agent.guests.handover_of(a.nic(web), claim_on(a))
    b.agent.guests.handed_over(b.nic(copy), handover)
    return handover


@story
async def test_counters_and_groups_go_on_where_they_were(lan: Lan) -> None:
    a, b, web, copy = await running(lan)
    members = a.agent.dataplane.pipeline.groups.members
    members.restore(a.nic(web).port, GROUP, a.agent.dataplane.now())
    handover = handed(a, b, web, copy)
    assert handover.groups == (GROUP,)
    before = counters_of(a.nic(web), a.agent.dataplane)
    assert before["sent_packets"] > 0
    b.nic(copy).carried = before | {"sent_packets": 7000}
    b.event(EventKind.RESUMED, copy)
    assert b.agent.dataplane.pipeline.groups.members.of(b.nic(copy).port) == [GROUP]
    after = counters_of(b.nic(copy), b.agent.dataplane)
    assert after["sent_packets"] == 7000 + 10 * b.nic(copy).port
    assert after["received_bytes"] >= before["received_bytes"]
    onward = b.agent.guests.handover_of(b.nic(copy), claim_on(b))
    assert onward.forwarders == (a.uplink.mac,)


@story
async def test_policy_files_that_differ_are_told_of_and_equal_ones_are_not(
    lan: Lan, caplog: pytest.LogCaptureFixture
) -> None:
    a, b, web, copy = await running(lan)
    enforcements = [host.agent.enforcement for host in (a, b)]
    for enforcement in enforcements:
        enforcement._kept.mkdir(parents=True, exist_ok=True)
        (enforcement._kept / "shop.yaml").write_text(POLICY)
        (enforcement._kept / "lab.yaml").write_text(str(id(enforcement)))
    assert handed(a, b, web, copy).policy != ""
    assert "differ" not in caplog.text
    (enforcements[0]._kept / "shop.yaml").write_text(POLICY + "# stricter\n")
    handed(a, b, web, copy)
    assert "the policy files of cell shop differ from those of host" in caplog.text


@story
async def test_what_it_sends_may_pass_before_libvirt_says_that_it_runs_and_nothing_is_claimed(lan: Lan) -> None:
    a, b, web, copy = await running(lan)
    handed(a, b, web, copy)
    nic = b.nic(copy)
    assert not b.programs.entries[nic.ifindex].speaks
    b.agent.guests.may_speak(nic)
    entry = b.programs.entries[nic.ifindex]
    assert (entry.state, entry.speaks, b.port(copy).passes) == (PortState.INCOMING, True, True)
    assert b.agent.dataplane.pipeline.discovery.claims() == []
    assert nic.address not in b.programs.known
    b.event(EventKind.RESUMED, copy)
    entry = b.programs.entries[nic.ifindex]
    assert (entry.state, entry.speaks) == (PortState.ACTIVE, False)
    b.agent.guests.may_speak(nic)  # too late
    assert b.port(copy).state is PortState.ACTIVE


@story
async def test_hosts_of_neighbours_and_the_own_kernel_are_told_where_it_goes_and_when_it_stays(lan: Lan) -> None:
    a, b, web, copy = await running(lan)
    c, other = await lan.host(), vm(2)
    await c.start(other)
    await settle()
    plane_a, plane_c, address = a.agent.dataplane, c.agent.dataplane, a.address(web)
    handed(a, b, web, copy)
    plane_a.pipeline.discovery.adopt(claim_on(c), plane_a.now())
    plane_c.pipeline.discovery.adopt(claim_on(a), plane_c.now())
    assert hosts_of_talkers(plane_a, b.uplink.mac) == [c.uplink.mac]
    a.agent.guests.leaving(a.nic(web), b.uplink.mac)
    await settle(0.1)
    assert plane_c.pipeline.discovery.next_of(address) == b.uplink.mac
    shown = a.programs.known[address]
    assert isinstance(shown, LocalEndpoint)
    assert shown.next == b.uplink.mac
    a.agent.guests.leaving(a.nic(web), None)
    shown = a.programs.known[address]
    assert isinstance(shown, LocalEndpoint)
    assert shown.next is None
    with a.refusing("set_endpoint"):
        a.agent.guests.leaving(a.nic(web), b.uplink.mac)  # told, and no more


@story
async def test_the_kernel_learns_of_the_new_place_in_one_step(lan: Lan) -> None:
    """Between a port's entry and its successor no frame meets none."""
    a, b, web, copy = await running(lan)
    address = a.address(web)
    handed(a, b, web, copy)
    b.event(EventKind.RESUMED, copy)
    a.programs.written.clear()
    a.agent.guests.moved_out(a.nic(web), claim_on(b))
    written = [entry for key, entry in a.programs.written if key == address]
    (entry,) = written
    assert isinstance(entry, RemoteEndpoint)
    assert entry.claim == claim_on(b)
    assert a.programs.known[address] == entry


@story
async def test_late_packets_are_sent_on_by_the_kernel_and_by_the_next_agent(lan: Lan) -> None:
    a, b, web, copy = await running(lan)
    address = a.address(web)
    handed(a, b, web, copy)
    b.event(EventKind.RESUMED, copy)
    b.agent.moves.forwarding.came_from(address, a.uplink.mac)
    arrived = b.programs.known[address]
    assert isinstance(arrived, LocalEndpoint)
    assert arrived.former == b.agent.dataplane.pipeline.former[address] == a.uplink.mac
    a.agent.guests.moved_out(a.nic(web), claim_on(b))
    a.agent.moves.forwarding.begin(address, b.uplink.mac)
    assert RemoteEndpoint(claim_on(b), 1500, forwarded=True) == a.programs.known[address]
    a.libvirt.vms.remove(web)
    await a.restart()
    await settle(0.1)
    assert a.agent.dataplane.pipeline.moved == {address: b.uplink.mac}
    await settle(FORWARD_S + 1)
    assert a.agent.dataplane.pipeline.moved == {}
    b.agent.moves.forwarding.came_from(address, None)
    assert b.agent.dataplane.pipeline.former == {}


@story
async def test_where_the_new_place_finds_no_room_the_old_one_is_removed(lan: Lan) -> None:
    a, b, web, copy = await running(lan)
    handed(a, b, web, copy)
    b.event(EventKind.RESUMED, copy)
    address, nic, there = a.address(web), a.nic(web), claim_on(b)
    with a.refusing("set_endpoint"):
        a.agent.guests.moved_out(nic, there)
    assert address not in a.programs.known
    assert a.agent.guests.all() == []
