"""Policies in force in a whole agent, kernel faked: what is written, in which order, and what stays."""

import sys

from agent_fakes import Host, Lan, settle, story, vm

from divhook.abi.policy_entries import policy_entry, unpack_port_policy
from divhook.core.endpoint import Endpoint
from divhook.core.verdict import PICKUP_TRACKED_S, Direction, Relation
from divhook.policy.table import EntryKey

CLOSED = "cell: shop\ndefaults: {ingress: deny}\ningress:\n  - {from: {labels: tier=web}, allow: tcp/80}\n"
CLOSED += "  - {from: cell, allow: tcp/443}\n"
IN, OUT = Direction.INGRESS, Direction.EGRESS
TCP = 6


def write(host: Host, text: str | None, name: str = "shop") -> None:
    path = host.paths.config / "policies" / f"{name}.yaml"
    path.parent.mkdir(exist_ok=True)
    if text is None:
        path.unlink()
    else:
        path.write_text(text)


async def running(lan: Lan, policy: str | None = None) -> tuple[Host, Endpoint]:
    """A host with a guest that runs."""
    host = await lan.host()
    if policy is not None:
        write(host, policy)
        await host.agent.apply_policies()
    await host.start(vm(1))
    await settle()
    return host, endpoint(host)


def endpoint(host: Host) -> Endpoint:
    return host.agent.dataplane.pipeline.ports.all()[0]


def allows(host: Host, port: int, remote: int) -> bool | None:
    found = host.agent.enforcement.decide(IN, endpoint(host), Relation.SUBNET, remote, TCP, port)
    return found.allow if found is not None else None


@story
async def test_a_cell_without_policy_is_not_policed_but_its_guests_have_identities(lan: Lan) -> None:
    host, guest = await running(lan)
    assert host.agent.enforcement.port(guest) is None
    assert guest.identity != 0
    assert host.agent.dataplane.pipeline.discovery.claims()[0].identity == guest.identity
    (entry,) = host.programs.ports().values()
    assert not entry.policed
    assert host.programs.policy.written == []
    assert allows(host, 80, 12345) is True


@story
async def test_a_new_guest_is_policed_from_its_first_frame_and_picks_nothing_up(lan: Lan) -> None:
    host, guest = await running(lan, CLOSED)
    policy = host.agent.enforcement.port(guest)
    assert policy is not None
    assert (policy.identity, policy.pickup_until_s) == (guest.identity, 0)
    (entry,) = host.programs.ports().values()
    assert entry.policed
    assert entry.tracked
    assert allows(host, 80, guest.identity) is False  # it has no label
    assert allows(host, 443, guest.identity) is True
    assert allows(host, 80, 4711) is None  # nobody knows who that is


@story
async def test_policies_that_come_while_guests_talk_pick_their_connections_up(lan: Lan) -> None:
    host, guest = await running(lan)
    write(host, CLOSED)
    assert (await host.agent.apply_policies())["changed"] == 1
    policy = host.agent.enforcement.port(endpoint(host))
    assert policy is not None
    assert policy.pickup_until_s > PICKUP_TRACKED_S
    raw = host.programs.policy.port(guest.port)
    assert raw is not None
    assert unpack_port_policy(raw).pickup_until_ticks > PICKUP_TRACKED_S * 250
    write(host, None)
    await host.agent.apply_policies()
    assert host.agent.enforcement.port(endpoint(host)) is None
    (entry,) = host.programs.ports().values()
    assert not entry.policed
    assert host.programs.policy.ports() == []
    assert host.programs.flows.tables == {}
    assert not any(host.programs.policy.tables.values())


@story
async def test_a_change_is_written_before_its_epoch(lan: Lan) -> None:
    host, guest = await running(lan, CLOSED)
    before = host.agent.enforcement.port(guest)
    written = host.programs.policy.written
    written.clear()
    write(host, CLOSED.replace("tcp/443", "tcp/444"))
    await host.agent.apply_policies()
    after = host.agent.enforcement.port(guest)
    assert before is not None
    assert after is not None
    assert after.epoch == before.epoch + 1
    assert written[-1][0] == "port_policies"
    assert {table for table, _, _ in written[:-1]} == {"policy_entries"}


@story
async def test_a_port_does_not_get_its_new_default_before_the_rules_that_it_leans_on(lan: Lan) -> None:
    host, _ = await running(lan, CLOSED)
    written = host.programs.policy.written
    written.clear()
    write(host, "cell: shop\ningress:\n  - {from: {labels: tier!=web}, to: {labels: '!old'}, deny: any}\n")
    await host.agent.apply_policies()
    scopes: set[int] = set()
    opened = []
    for table, key, value in written:
        if table == "policy_entries" and isinstance(key, bytes) and value == policy_entry(False, False, _rule(host)):
            scopes.add(int.from_bytes(key[4:12], sys.byteorder))
        if table == "port_policies" and value is not None:
            record = unpack_port_policy(value)
            if record.allowed[0]:
                opened.append(record.scopes[0] in scopes)
    assert opened
    assert all(opened)


def _rule(host: Host) -> int:
    (rule,) = host.agent.enforcement.policies.cell("shop").rules
    return rule.number


@story
async def test_a_bad_file_leaves_all_as_it_was_also_over_a_restart(lan: Lan) -> None:
    host, guest = await running(lan, CLOSED)
    enforcement = host.agent.enforcement
    kept = host.paths.state / "policies" / "shop.yaml"
    await host.agent.in_thread(enforcement.keep)
    assert kept.read_text() == CLOSED
    write(host, "cell: shop\ningress: nonsense\n")
    assert "shop.yaml:2" in await host.agent.reload_all()
    assert "shop.yaml:2" in enforcement.problem
    assert enforcement.port(guest) is not None
    enforcement.start(host.agent.configuration)
    assert enforcement.policies.cell("shop").rules[0].services[0].low == 80
    kept.write_text("nonsense")
    enforcement.start(host.agent.configuration)
    closed = enforcement.policies.cell("shop")
    assert not any(closed.default("web", d, r).allow for d in Direction for r in (Relation.SUBNET, Relation.CELL))


@story
async def test_what_an_agent_before_left_goes_once_all_guests_are_found(lan: Lan) -> None:
    host, guest = await running(lan, CLOSED)
    maps, enforcement = host.programs.policy, host.agent.enforcement
    maps.tables["policy_entries"][b"somebody else's"] = b"?"
    maps.records[4000] = maps.records[guest.port]
    before = enforcement.port(guest)
    enforcement._swept = False
    enforcement.sweep()
    after = enforcement.port(guest)
    assert b"somebody else's" not in maps.tables["policy_entries"]
    assert maps.ports() == [guest.port]
    assert before is not None
    assert after is not None
    assert after.epoch > before.epoch


@story
async def test_every_entry_of_a_table_is_in_the_kernel(lan: Lan) -> None:
    host, _ = await running(lan, CLOSED)
    table = host.agent.enforcement.table_of("shop")
    assert table is not None
    assert all(isinstance(key, EntryKey) for key in table.table.entries)
    assert len(host.programs.policy.tables["policy_entries"]) == len(table.table.entries)
