"""What is read off files, by rules alone and by the table, is one and the same; and no YAML gives another error."""

from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from policy_strategies import ends, points, policies, services
from test_policy_table import expected

from divhook.config.problems import ConfigError
from divhook.core.verdict import Direction
from divhook.policy.analyse import warnings
from divhook.policy.cell import CellPolicy
from divhook.policy.expectations import read_expectations
from divhook.policy.explain import decide
from divhook.policy.files import PolicySet, load_file
from divhook.policy.identity import Identity, IdentityError, decode_identity_untrusted
from divhook.policy.services import Service
from divhook.policy.space import pieces, sample


@settings(max_examples=100, deadline=None)
@given(policies(), st.lists(points, min_size=1, max_size=3, unique=True))
def test_explain_says_what_the_documentation_says(policy: CellPolicy, flows: list[tuple[int, int]]) -> None:
    local, remotes = ends(policy)
    for end in local:
        for remote in remotes:
            for way in Direction:
                for protocol, port in flows:
                    allow, rule = expected(policy, way, end, remote, protocol, port)
                    side = decide(policy, way, end, remote, Service(protocol, port, port), why_not=True)
                    assert (side.allow, side.rule and side.rule.number) == (allow, rule and rule.number)
                    assert side.log is bool(rule and rule.log)
                    assert not (side.allow and side.missed)


@settings(max_examples=100, deadline=None)
@given(policies())
def test_no_policy_confuses_the_warnings(policy: CellPolicy) -> None:
    for problem in warnings(PolicySet({"shop": policy})):
        assert problem.message


@given(services())
def test_prefixes_of_a_range_are_the_range(service: Service) -> None:
    covered = sum(p.last - p.value + 1 for p in service.prefixes())
    assert covered == service.width
    for point in (service.low, service.high, (service.low + service.high) // 2):
        packed = (service.protocol or 0) << 16 | point
        assert sum(p.value <= packed <= p.last for p in service.prefixes()) == 1


@given(st.lists(services(), max_size=5), services())
def test_in_a_piece_of_the_space_all_packets_are_alike(cutting: list[Service], any_of: Service) -> None:
    for piece in pieces(cutting):
        point = sample(piece, cutting)
        for service in cutting:
            assert service.covers(piece) == service.covers(point)
            assert service.overlaps(piece) == service.covers(piece) or piece.protocol is None


texts = st.text(st.characters(codec="utf-8"), max_size=12)


@given(texts, st.sets(st.tuples(texts, texts), max_size=5), st.sets(texts, max_size=4))
def test_an_identity_survives_the_way_to_another_host(
    cell: str, labels: set[tuple[str, str]], groups: set[str]
) -> None:
    identity = Identity(cell, tuple(sorted(labels)), tuple(sorted(groups)))
    again = decode_identity_untrusted(identity.encode())
    assert again == identity
    assert again.number == identity.number


@given(st.binary(max_size=80), st.data())
def test_bytes_from_a_host_are_an_identity_or_the_one_declared_error(junk: bytes, data: st.DataObject) -> None:
    good = Identity("shop", (("a", "1"), ("divhook:subnet", "web")), ("g",)).encode()
    at = data.draw(st.integers(0, len(good)))
    for raw in (junk, b"\x01" + junk, good[:at] + junk + good[at:], good[:at] + junk):
        try:
            identity = decode_identity_untrusted(raw)
        except IdentityError:
            continue
        assert identity.encode() == raw


SCALARS = st.one_of(
    st.none(), st.booleans(), st.integers(-3, 70_000), st.floats(), st.text(max_size=6),
    st.sampled_from(["any", "cell", "external", "web", "shop", "allow", "deny", "tcp/443", "tcp/1-9", "icmp/8", "a=b",
                     "192.0.2.0/24", "10.1.0.0/16", "*.example.net", "web-*", "g"]),
)  # fmt: skip
KEYS = st.one_of(
    st.text(max_size=4),
    st.sampled_from(["cell", "subnet", "group", "guest", "labels", "cidr", "dns", "except", "from", "to", "allow", "g",
                     "deny", "log", "comment", "ingress", "egress", "groups", "exports", "defaults", "subnets", "only",
                     "external", "guests", "expect", "address"]),
)  # fmt: skip


def nested(inner: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return st.one_of(st.lists(inner, max_size=3), st.dictionaries(KEYS, inner, max_size=4))


VALUES = st.recursive(SCALARS, nested, max_leaves=12)
PEERS = st.one_of(SCALARS, st.dictionaries(KEYS, VALUES, max_size=3), st.lists(VALUES, max_size=2))
RULE = st.fixed_dictionaries({"from": PEERS}, optional={"to": PEERS, "allow": VALUES, "deny": VALUES})
RULES = st.lists(st.one_of(VALUES, RULE), max_size=2)
PARTS = {"ingress": RULES, "egress": RULES, "groups": st.dictionaries(KEYS, PEERS, max_size=2), "exports": VALUES,
         "defaults": VALUES, "subnets": VALUES}  # fmt: skip
FILES = st.one_of(VALUES, st.fixed_dictionaries({"cell": st.just("shop")}, optional=PARTS))
EXPECTATION = st.fixed_dictionaries({"to": SCALARS}, optional={"from": VALUES, "allow": VALUES, "only": VALUES})
GUESTS = st.dictionaries(st.sampled_from("ab"), VALUES, max_size=2)
EXPECTATIONS = st.one_of(VALUES, st.fixed_dictionaries({"guests": GUESTS, "expect": st.lists(EXPECTATION, max_size=2)}))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("policies")


def told(error: ConfigError, file: str) -> bool:
    return bool(error.problems) and all(p.where.file == file and p.where.line > 0 and p.message for p in error.problems)


@settings(max_examples=300, deadline=None)
@given(FILES)
def test_any_yaml_is_a_policy_or_problems_with_a_place(folder: Path, data: Any) -> None:
    path = folder / "any.yaml"
    path.write_text(yaml.safe_dump(data, allow_unicode=True))
    try:
        policies = load_file(path)
    except ConfigError as error:
        assert told(error, str(path))  # noqa: PT017
    else:
        warnings(policies)


@settings(max_examples=200, deadline=None)
@given(EXPECTATIONS)
def test_any_yaml_is_expectations_or_problems_with_a_place(data: Any) -> None:
    try:
        found = read_expectations("t.yaml", yaml.safe_dump(data, allow_unicode=True).encode(), PolicySet())
    except ConfigError as error:
        assert told(error, "t.yaml")  # noqa: PT017
    else:
        assert all(f.where.line > 0 for f in found.failures())
