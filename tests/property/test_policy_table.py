"""The compiled table says what docs/policy.md says, and keeps saying it through every change."""

from hypothesis import given, settings
from hypothesis import strategies as st
from policy_strategies import ANSWERS, NAMES, STRANGERS, edits, ends, points, policies

from divhook.core.addressing import Address
from divhook.core.verdict import Direction, Relation
from divhook.policy.cell import CellPolicy, Remote, Rule
from divhook.policy.compile import CellTable, compile_policy
from divhook.policy.identity import Identity
from divhook.policy.peers import Anyone, CellPeer, Cidr, DnsName, OwnHost, Peer, Selection
from divhook.policy.table import Delta, LocalScopes, PolicyMap, Table, Verdict

HOST_ADDRESS = bytes((192, 0, 2, 1))
"""In prefixes of rules: they mean others, and not the host."""
MANY = settings(max_examples=100, deadline=None)


# --- docs/policy.md, "What decides", row by row, and no look at the code under test ---------------------------------


def selects(policy: CellPolicy, wanted: Selection, end: Identity) -> bool:
    have = dict(end.labels)
    patterns = {value for key, value in end.labels if key == "divhook:guest"}
    return (
        end.cell == policy.cell
        and wanted.subnet in (None, have["divhook:subnet"])
        and (wanted.guest is None or wanted.guest in patterns)
        and (wanted.group is None or any(selects(policy, m, end) for m in policy.groups[wanted.group]))
        and (wanted.labels is None or wanted.labels.matches(have))
        and not any(selects(policy, e, end) for e in wanted.exclude)
    )


def is_peer(policy: CellPolicy, peer: Peer, remote: Remote) -> bool:
    if remote.host or isinstance(peer, OwnHost):
        return remote.host and isinstance(peer, OwnHost)
    if isinstance(peer, Anyone):
        return True
    if remote.identity is not None:
        if isinstance(peer, Selection):
            return selects(policy, peer, remote.identity)
        if not isinstance(peer, CellPeer) or remote.identity.cell != peer.cell:
            return False
        subnet = dict(remote.identity.labels)["divhook:subnet"]
        return peer.subnet in (None, subnet) and (peer.group is None or peer.group in remote.identity.exports)
    assert remote.address is not None
    value = int.from_bytes(remote.address, "big")
    if isinstance(peer, Cidr):
        inside = [int(n.network_address) <= value <= int(n.broadcast_address) for n in (peer.network, *peer.exclude)]
        return inside[0] and not any(inside[1:])
    if isinstance(peer, DnsName):
        return any(n == peer.name or (peer.name[0] == "*" and n.endswith(peer.name[1:])) for n in remote.names)
    return False


def relation_of(policy: CellPolicy, local: Identity, remote: Remote) -> Relation:
    if remote.identity is None:
        return Relation.HOST if remote.host else Relation.EXTERNAL
    if remote.identity.cell != policy.cell:
        return Relation.OTHER
    same = dict(remote.identity.labels)["divhook:subnet"] == dict(local.labels)["divhook:subnet"]
    return Relation.SUBNET if same else Relation.CELL


def speaks(
    policy: CellPolicy, rule: Rule, way: Direction, local: Identity, remote: Remote, protocol: int, port: int
) -> bool:
    return (
        rule.direction == way
        and any(selects(policy, e, local) for e in rule.endpoints)
        and any(is_peer(policy, p, remote) for p in rule.peers)
        and any(s.protocol is None or (s.protocol == protocol and s.low <= port <= s.high) for s in rule.services)
    )


def takes_whole(peer: Peer, relation: Relation) -> bool:
    """any, cell, external and host do not single a peer out."""
    if relation is Relation.HOST:
        return True
    if str(peer) == "cell":
        return relation in (Relation.SUBNET, Relation.CELL)
    return str(peer) == "any" or (str(peer) == "external" and relation is Relation.EXTERNAL)


def expected(
    policy: CellPolicy, way: Direction, local: Identity, remote: Remote, protocol: int, port: int
) -> tuple[bool, Rule | None]:
    relation = relation_of(policy, local, remote)
    matching = [r for r in policy.rules if speaks(policy, r, way, local, remote, protocol, port)]
    deciding = [r for r in matching if r.deny] or matching
    if not deciding:
        if relation in (Relation.OTHER, Relation.HOST):
            return False, None
        built_in = relation is not Relation.EXTERNAL
        subnet = dict(local.labels)["divhook:subnet"]
        for key in ((subnet, way, relation), (None, way, relation)):
            if key in policy.defaults:
                return policy.defaults[key].allow, None
        return built_in, None

    def rank(rule: Rule) -> tuple[bool, int, object]:
        widths = [
            2**24 if s.protocol is None else s.high - s.low + 1
            for s in rule.services
            if s.protocol is None or (s.protocol == protocol and s.low <= port <= s.high)
        ]
        return any(takes_whole(p, relation) for p in rule.peers), min(widths), first_place(policy, rule)

    named = min(deciding, key=rank)
    return not named.deny, named


def first_place(policy: CellPolicy, rule: Rule) -> tuple[int, int]:
    """File order. Rules that say the same are one, in the place of the first."""
    line = min(r.where.line for r in policy.rules if r == rule)
    return line, min(i for i, r in enumerate(policy.rules) if r == rule and r.where.line == line)


# --- the table ------------------------------------------------------------------------------------------------------


def remote_key(remote: Remote) -> int | Address:
    if remote.identity is not None:
        return remote.identity.number
    if remote.host:
        return HOST_ADDRESS
    assert remote.address is not None
    return remote.address


def compiled(policy: CellPolicy) -> Table:
    local, remotes = ends(policy)
    return compile_policy(policy, local, [r.identity for r in remotes if r.identity is not None], ANSWERS)


@MANY
@given(policies(), st.lists(points, min_size=1, max_size=6, unique=True))
def test_the_look_up_gives_what_the_documentation_says(policy: CellPolicy, flows: list[tuple[int, int]]) -> None:
    table = compiled(policy)
    local, remotes = ends(policy)
    for end in local:
        for remote in remotes:
            for way in Direction:
                relation = relation_of(policy, end, remote)
                for protocol, port in flows:
                    allow, rule = expected(policy, way, end, remote, protocol, port)
                    found = table.decide(way, end.number, relation, remote_key(remote), protocol, port)
                    verdict = None if rule is None else Verdict(allow, rule.log, rule.number)
                    assert (found.allow, found.verdict) == (allow, verdict), (
                        str(rule),
                        way,
                        end,
                        remote,
                        protocol,
                        port,
                    )
                    assert found.lookups <= 3


@MANY
@given(policies())
def test_no_entry_repeats_what_the_entry_around_it_says(policy: CellPolicy) -> None:
    entries = compiled(policy).entries
    for key, verdict in entries.items():
        point = key.protocol << 16 | key.port
        around = (
            key._replace(protocol=(v := point >> 24 - n << 24 - n) >> 16, port=v & 0xFFFF, length=n)
            for n in range(key.length - 1, -1, -1)
        )
        assert next((entries[k] for k in around if k in entries), None) != verdict


def plain(table: Table) -> tuple[dict[object, object], ...]:
    return dict(table.locals), dict(table.identities), dict(table.prefixes), dict(table.entries)


def apply(table: Table, delta: Delta) -> None:
    for step in delta.steps():
        write(table, step.map, step.key, step.value)


def write(table: Table, name: str, key: object, value: object | None) -> None:
    if value is None:
        del getattr(table, name)[key]
    else:
        getattr(table, name)[key] = value


def members_of(policy: CellPolicy) -> tuple[list[Identity], list[Identity]]:
    local, remotes = ends(policy)
    return local, [r.identity for r in remotes if r.identity is not None]


@MANY
@given(st.lists(policies(), min_size=2, max_size=4), st.data())
def test_changes_one_after_the_other_give_what_compiling_afresh_gives(
    steps: list[CellPolicy], data: st.DataObject
) -> None:
    cell = CellTable("shop")
    local: dict[int, Identity] = {}
    remote: dict[int, Identity] = {}
    policy, names = steps[0], {}
    cell.set_policy(policy)
    for end in (*members_of(policy)[0][:2], STRANGERS[0]):
        remote[end.number] = end
        cell.add_remote(end)
    for end in members_of(policy)[0][1:3]:
        local[end.number] = end
        cell.add_local(end)
    written = Table(*(PolicyMap(m) for m in plain(cell.table)))  # type: ignore[arg-type]
    pool = [i for p in steps for i in members_of(p)[1] if i.cell == "shop"]
    for step in steps:
        for _ in range(4):
            match data.draw(st.sampled_from(("policy",) * 5 + ("local", "remote", "no local", "no remote", "names"))):
                case "policy":
                    policy = data.draw(edits(policy, step))
                    deltas = cell.set_policy(policy)
                case "local":
                    end = data.draw(st.sampled_from(pool))
                    local[end.number] = end
                    deltas = [cell.add_local(end)]
                case "remote":
                    end = data.draw(st.sampled_from((*pool, *STRANGERS)))
                    remote[end.number] = end
                    deltas = [cell.add_remote(end)]
                case "no local":
                    end = data.draw(st.sampled_from(pool))
                    local.pop(end.number, None)
                    deltas = [cell.remove_local(end)]
                case "no remote":
                    end = data.draw(st.sampled_from((*pool, *STRANGERS)))
                    remote.pop(end.number, None)
                    deltas = [cell.remove_remote(end)]
                case "names":
                    names = {n: ANSWERS[n] for n in data.draw(st.lists(st.sampled_from(NAMES), unique=True))}
                    deltas = [cell.set_names(names)]
            for delta in deltas:
                before = plain(written)
                apply(written, delta)
                parts = (delta.locals, delta.identities, delta.prefixes, delta.entries)
                for changes, old, new in zip(parts, before, plain(written), strict=True):
                    assert changes.added == {k: v for k, v in new.items() if k not in old}
                    assert changes.changed == {k: v for k, v in new.items() if k in old and old[k] != v}
                    assert changes.removed == {k: v for k, v in old.items() if k not in new}
            fresh = compile_policy(policy, local.values(), remote.values(), names)
            assert plain(cell.table) == plain(fresh)
            assert plain(written) == plain(fresh)


@settings(max_examples=40, deadline=None)
@given(st.data(), policies(), st.lists(points, min_size=1, max_size=2, unique=True), st.integers(0, 7))
def test_while_a_change_is_written_no_flow_has_a_verdict_that_is_neither_old_nor_new(
    data: st.DataObject, first: CellPolicy, flows: list[tuple[int, int]], sample: int
) -> None:
    second = data.draw(edits(first, data.draw(policies())))
    members = {f"{name}-{n}": m for n, p in enumerate((first, second)) for name, m in p.groups.items()}
    local, remotes = ends(CellPolicy("shop", (*first.rules, *second.rules), members))
    local = local[1:3]
    cell = CellTable("shop")
    cell.set_names(ANSWERS)
    cell.set_policy(first)
    for end in local:
        cell.add_local(end)
    for remote in remotes:
        if remote.identity is not None:
            cell.add_remote(remote.identity)
    written = Table(*(PolicyMap(m) for m in plain(cell.table)))  # type: ignore[arg-type]
    asked = [(w, e, r, f) for w in Direction for e in local for r in remotes for f in flows][sample::8]

    def verdicts() -> list[bool]:
        return [written.decide(w, e.number, relation_of(first, e, r), remote_key(r), *f).allow for w, e, r, f in asked]

    steps = [step for delta in cell.set_policy(second) for step in delta.steps()]
    seen = [verdicts()]
    for step in steps:
        write(written, *step)
        seen.append(verdicts())
    for question, states in zip(asked, zip(*seen, strict=True), strict=True):
        if states[0] == states[-1]:
            assert set(states) == {states[0]}, question


def test_a_scope_has_its_defaults_even_without_rules() -> None:
    policy = CellPolicy("shop")
    local, _ = ends(policy)
    table = compile_policy(policy, local[:1], [])
    (scopes,) = table.locals.values()
    assert isinstance(scopes, LocalScopes)
    assert scopes.ingress == scopes.egress == (0, True, True, False)
    assert not table.entries
