"""The compiled table by example: what stands in its maps, what a look-up costs, what a change writes."""

from pathlib import Path

import pytest
from policy_files import read_shop

from divhook.core.verdict import Direction, Relation
from divhook.policy import table as table_module
from divhook.policy.cell import CellPolicy
from divhook.policy.compile import CellTable, compile_policy
from divhook.policy.identity import Identity, Workload, identify
from divhook.policy.peers import DnsName
from divhook.policy.prefixes import pack
from divhook.policy.services import TCP, UDP
from divhook.policy.table import PolicyMap, Step, Table, UnknownIdentityError

IN, OUT = Direction.INGRESS, Direction.EGRESS


def guest(policy: CellPolicy, name: str, subnet: str = "web") -> Identity:
    return identify(Workload("shop", subnet, name), policy)


def compiled(policy: CellPolicy) -> Table:
    ends = [guest(policy, "web-1"), guest(policy, "db-1", "db")]
    return compile_policy(policy, ends, [*ends, Identity("lab", (("divhook:subnet", "ci"),))])


def steps(cell: CellTable, policy: CellPolicy) -> list[Step]:
    return [step for delta in cell.set_policy(policy) for step in delta.steps()]


def test_no_rule_costs_no_look_up(tmp_path: Path) -> None:
    policy = read_shop(tmp_path, "egress:\n  - {to: external, allow: any}\n")
    table, web = compiled(policy), guest(policy, "web-1").number
    assert table.decide(IN, web, Relation.SUBNET, web, TCP, 80) == (True, None, 0)
    assert table.decide(IN, web, Relation.OTHER, web, TCP, 80) == (False, None, 0)


def test_a_rule_for_everybody_is_one_entry_per_relation(tmp_path: Path) -> None:
    policy = read_shop(tmp_path, "ingress:\n  - {from: any, allow: tcp/443, log: on}\n")
    table, web = compiled(policy), guest(policy, "web-1").number
    assert sorted((k.remote, k.protocol, k.port, k.length) for k in table.entries) == [
        (r, TCP, 443, 24) for r in (Relation.CELL, Relation.OTHER, Relation.EXTERNAL)
    ]
    found = table.decide(IN, web, Relation.EXTERNAL, bytes([192, 0, 2, 1]), TCP, 443)
    assert found == (True, (True, True, policy.rules[0].number), 2)


def test_a_single_peer_costs_one_more_look_up(tmp_path: Path) -> None:
    policy = read_shop(tmp_path, "ingress:\n  - {from: {subnet: db}, deny: tcp/22}\n")
    table = compiled(policy)
    web, db = guest(policy, "web-1").number, guest(policy, "db-1", "db").number
    assert table.decide(IN, web, Relation.CELL, db, TCP, 22) == (False, (False, False, policy.rules[0].number), 3)
    assert table.decide(IN, web, Relation.CELL, db, TCP, 23) == (True, None, 3)
    assert table.decide(IN, web, Relation.SUBNET, web, TCP, 22) == (True, None, 2)


def test_endpoints_with_the_same_rules_share_a_scope_and_peers_a_class(tmp_path: Path) -> None:
    policy = read_shop(
        tmp_path, "ingress:\n  - {from: {subnet: web}, deny: tcp/22}\n  - {from: {guest: x-*}, deny: udp}\n"
    )
    ends = [guest(policy, name) for name in ("x-1", "x-2", "y")] + [guest(policy, "db-1", "db")]
    table = compile_policy(policy, ends, ends)
    assert len({scopes.ingress.rules for scopes in table.locals.values()}) == 1
    assert {scopes.egress.rules for scopes in table.locals.values()} == {0}
    assert sorted(c >> 63 for c in table.identities.values()) == [0, 1, 1]
    assert table.identities[ends[3].number] == 0


def test_an_identity_that_is_not_known_has_to_wait(tmp_path: Path) -> None:
    policy = read_shop(tmp_path, "ingress:\n  - {from: {subnet: db}, deny: tcp/22}\n")
    table, web = compiled(policy), guest(policy, "web-1").number
    with pytest.raises(UnknownIdentityError, match="is not known"):
        table.decide(IN, web, Relation.CELL, 4711, TCP, 22)
    with pytest.raises(UnknownIdentityError, match="is not local"):
        table.decide(IN, 4711, Relation.CELL, web, TCP, 22)


def test_external_prefixes_are_cut_at_exceptions_and_names(tmp_path: Path) -> None:
    office = "{cidr: 192.0.2.0/24, except: 192.0.2.128/25}"
    policy = read_shop(
        tmp_path, f"egress:\n  - {{to: {office}, allow: any}}\n  - {{to: {{dns: a.example}}, deny: udp}}\n"
    )
    cell = CellTable("shop")
    cell.set_policy(policy)
    web = guest(policy, "web-1")
    cell.add_local(web)
    assert set(cell.table.prefixes) == {pack(0xC0000200, 24), pack(0xC0000280, 25)}
    assert cell.table.prefixes[pack(0xC0000280, 25)] == 0
    delta = cell.set_names({DnsName("a.example"): [bytes([192, 0, 2, 7])], DnsName("other.example"): [bytes(4)]})
    assert set(delta.prefixes.added) == {pack(0xC0000207, 32)}

    def passes(last: int, protocol: int) -> bool:
        return cell.table.decide(OUT, web.number, Relation.EXTERNAL, bytes([192, 0, 2, last]), protocol, 53).allow

    assert [passes(7, UDP), passes(7, TCP), passes(8, UDP), passes(200, TCP)] == [False, True, True, False]
    assert set(cell.set_names({}).prefixes.removed) == {pack(0xC0000207, 32)}
    assert passes(7, UDP)


def test_lines_that_move_and_comments_write_nothing(tmp_path: Path) -> None:
    one = "  - {from: {subnet: web}, allow: tcp/1-100}\n"
    two = "  - {from: any, to: {subnet: db}, deny: udp}\n"
    first = read_shop(tmp_path, f"ingress:\n{one}{two}")
    cell = CellTable("shop")
    cell.set_policy(first)
    cell.add_local(guest(first, "db-1", "db"))
    cell.add_remote(guest(first, "web-1"))
    moved = read_shop(tmp_path, f"\n# a comment\n\ningress:\n{one}\n\n{two[:-2]}, comment: x}}\n")
    assert steps(cell, moved) == []
    assert [str(r.where).rsplit(":", 2)[1] for r in cell.rules.values()] == ["6", "9"]
    assert steps(cell, read_shop(tmp_path, f"ingress:\n{two}{one}")) == []


def test_one_port_that_changes_is_two_writes(tmp_path: Path) -> None:
    text = "ingress:\n" + "".join(f"  - {{from: {{subnet: web}}, deny: tcp/{port}}}\n" for port in range(10, 20))
    policy = read_shop(tmp_path, text)
    cell = CellTable("shop")
    cell.set_policy(policy)
    cell.add_local(guest(policy, "db-1", "db"))
    cell.add_remote(guest(policy, "web-1"))
    written = steps(cell, read_shop(tmp_path, text.replace("tcp/15}", "tcp/99}")))
    assert [(s.map, s.key.port, s.value is None) for s in written] == [  # type: ignore[attr-defined]
        ("entries", 99, False),
        ("entries", 15, True),
    ]


def test_a_default_that_changes_writes_scopes_only(tmp_path: Path) -> None:
    policy = read_shop(tmp_path, "ingress:\n  - {from: any, allow: tcp/443}\n")
    cell = CellTable("shop")
    cell.set_policy(policy)
    cell.add_local(guest(policy, "web-1"))
    written = steps(cell, read_shop(tmp_path, "defaults: {ingress: deny}\ningress:\n  - {from: any, allow: tcp/443}\n"))
    assert [s.map for s in written] == ["locals"]


def test_a_group_that_gets_other_members_moves_ends_between_classes(tmp_path: Path) -> None:
    rule = "ingress:\n  - {from: {group: g}, deny: tcp/22}\n"
    first = read_shop(tmp_path, f"groups: {{g: {{subnet: web}}}}\n{rule}")
    cell = CellTable("shop")
    cell.set_policy(first)
    web, db = guest(first, "web-1"), guest(first, "db-1", "db")
    for end in (web, db):
        cell.add_local(end)
        cell.add_remote(end)
    assert not cell.table.decide(IN, db.number, Relation.CELL, web.number, TCP, 22).allow
    cell.set_policy(read_shop(tmp_path, f"groups: {{g: {{subnet: db}}}}\n{rule}"))
    assert cell.table.decide(IN, db.number, Relation.CELL, web.number, TCP, 22).allow
    assert not cell.table.decide(IN, db.number, Relation.SUBNET, db.number, TCP, 22).allow


def test_a_table_past_its_bounds_says_which(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rules = "ingress:\n  - {from: any, allow: tcp/1-100}\n  - {from: {cidr: 192.0.2.0/24}, allow: any}\n"
    table = compiled(read_shop(tmp_path, rules))
    assert table.over_bounds() == ""
    monkeypatch.setattr(table_module, "MAX_PREFIXES", 0)
    assert table.over_bounds() == ("1 external prefixes: at most 0 (fewer port ranges, or fewer rules with many peers)")
    monkeypatch.setattr(table_module, "MAX_ENTRIES", 3)
    assert "table entries: at most 3" in table.over_bounds()


A_DENIES = "  - {from: {subnet: web}, deny: tcp/80}\n"
A_ALLOWS = "  - {from: {subnet: web}, allow: tcp/80}\n"
ISOLATED = "defaults: {ingress: deny}\n"


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (f"{A_DENIES}  - {{from: any, allow: tcp/80}}\n", f"{A_ALLOWS}  - {{from: any, deny: tcp/80}}\n"),
        (f"{A_ALLOWS}  - {{from: any, deny: tcp/80}}\n", "  []\n"),
        (f"{A_DENIES}  - {{from: any, allow: tcp/80}}\n", f"{A_ALLOWS}  - {{from: any, deny: tcp}}\n"),
    ],
    ids=["two rules change sides", "a deny and what it held down go", "a wide deny takes the place of a narrow one"],
)
def test_what_is_denied_before_and_after_is_denied_at_every_moment(tmp_path: Path, before: str, after: str) -> None:
    first = read_shop(tmp_path, f"{ISOLATED}ingress:\n{before}")
    second = read_shop(tmp_path, f"{ISOLATED}ingress:\n{after}")
    cell = CellTable("shop")
    cell.set_policy(first)
    web, db = guest(first, "web-1"), guest(first, "db-1", "db")
    cell.add_local(db)
    cell.add_remote(web)
    written = Table(*(PolicyMap(m) for m in (cell.table.locals, cell.table.identities, {}, cell.table.entries)))

    def passes() -> bool:
        return written.decide(IN, db.number, Relation.CELL, web.number, TCP, 80).allow

    assert not passes()
    for step in steps(cell, second):
        if step.value is None:
            getattr(written, step.map).pop(step.key)
        else:
            getattr(written, step.map)[step.key] = step.value
        assert not passes(), step
    assert dict(written.entries) == dict(cell.table.entries)


def test_of_rules_alike_the_first_in_the_file_is_named_also_after_they_change_places(tmp_path: Path) -> None:
    logged = "  - {from: any, allow: tcp/80, log: on}\n"
    silent = "  - {from: any, to: {subnet: web}, allow: tcp/80}\n"
    first = read_shop(tmp_path, f"ingress:\n{logged}{silent}")
    cell = CellTable("shop")
    cell.set_policy(first)
    cell.add_local(guest(first, "web-1"))
    assert {v.log for v in cell.table.entries.values()} == {True}
    cell.set_policy(read_shop(tmp_path, f"ingress:\n{silent}{logged}"))
    assert {v.log for v in cell.table.entries.values()} == {False}
