"""Labels, selectors, guest patterns and identities: who an endpoint is to rules, on every host."""

import hashlib

import pytest

from divhook.config.problems import Position
from divhook.config.values import BadValueError
from divhook.core.verdict import Direction
from divhook.policy.cell import CellPolicy, Rule
from divhook.policy.identity import (
    MAX_IDENTITY_BYTES,
    Identity,
    IdentityError,
    Workload,
    content_number,
    decode_identity_untrusted,
    guest_matches,
    identify,
)
from divhook.policy.labels import parse_labels, parse_selector
from divhook.policy.peers import ALL, Anyone, Selection
from divhook.policy.services import ANY_SERVICE


@pytest.mark.parametrize(
    ("text", "shown", "meets", "fails"),
    [
        ("tier=web", "tier=web", {"tier": "web"}, {"tier": "db"}),
        (" tier == web ", "tier=web", {"tier": "web"}, {}),
        ("tier!=web", "tier!=web", {}, {"tier": "web"}),
        ("env in (prod, stage)", "env in (prod, stage)", {"env": "stage"}, {"env": "test"}),
        ("env notin (b,a,b)", "env notin (a, b)", {"env": "c"}, {"env": "a"}),
        ("env in (prod)", "env=prod", {"env": "prod"}, {}),
        ("canary", "canary", {"canary": ""}, {}),
        ("!canary", "!canary", {"tier": "web"}, {"canary": "x"}),
        ("tier=", "tier=", {"tier": ""}, {"tier": "x"}),
        ("b,a=1, !c", "a=1, b, !c", {"a": "1", "b": "2"}, {"a": "1", "b": "2", "c": "3"}),
        ("k8s.io/app-name=x_1.y", "k8s.io/app-name=x_1.y", {"k8s.io/app-name": "x_1.y"}, {}),
        ("in in (in)", "in=in", {"in": "in"}, {}),
    ],
)
def test_a_selector_is_read_shown_and_applied(
    text: str, shown: str, meets: dict[str, str], fails: dict[str, str]
) -> None:
    selector = parse_selector(text)
    assert str(selector) == shown
    assert parse_selector(shown) == selector
    assert selector.matches(meets)
    assert not selector.matches(fails)


@pytest.mark.parametrize(
    "text",
    ["", ",", "a=1,", "=x", "a b", "a=b=c", "a in", "a in b", "a in ()", "a in (b", "-a", "a=b c", "!a=b", "a:b=c", 5],
)
def test_what_is_no_selector_is_refused(text: object) -> None:
    with pytest.raises(BadValueError):
        parse_selector(text)


def test_a_selector_has_a_bounded_number_of_requirements() -> None:
    with pytest.raises(BadValueError, match="is too long"):
        parse_selector(",".join(f"k{n}=v" for n in range(17)))


@pytest.mark.parametrize(
    ("text", "key"),
    [
        ("a=1,a=2", "a"),
        ("a in (1,2),a!=1,a!=2", "a"),
        ("a,!a", "a"),
        ("a=1,!a", "a"),
        ("a=1,a in (1,2)", ""),
        ("a!=1,!a", ""),
    ],
)
def test_a_selector_that_nobody_can_meet_is_seen(text: str, key: str) -> None:
    assert parse_selector(text).contradiction() == key


def test_labels_are_read_from_text_and_from_mappings() -> None:
    assert parse_labels("tier=web, env=prod") == (("env", "prod"), ("tier", "web"))
    assert parse_labels({"tier": "web", "a": ""}) == (("a", ""), ("tier", "web"))
    assert parse_labels("") == ()


NO_LABELS = ["divhook:subnet=web", "a=1,a=2", "a=b c", {"a": 5}, {"a": "x" * 64}, {"x" * 64: ""}, ["a"],
             {f"k{n}": "" for n in range(17)}]  # fmt: skip


@pytest.mark.parametrize("wrong", NO_LABELS)
def test_what_are_no_labels_is_refused(wrong: object) -> None:
    with pytest.raises(BadValueError):
        parse_labels(wrong)


@pytest.mark.parametrize(
    ("pattern", "yes", "no"),
    [
        ("web-1", ["web-1"], ["web-10", "Web-1", "web-"]),
        ("web-*", ["web-", "web-1"], ["web", "xweb-1"]),
        ("*", ["", "x"], []),
        ("?b-*1", ["db-1", "ab-x1"], ["b-1", "db-2"]),
        ("a*b*c", ["abc", "axbxc", "abbcc"], ["ac", "acb", "abcx"]),
        ("a*bc*bd", ["abcbd", "axbcxbd"], ["abcd", "abd"]),
        ("*a*", ["a", "xax"], ["x"]),
    ],
)
def test_guest_patterns_have_stars_and_question_marks(pattern: str, yes: list[str], no: list[str]) -> None:
    assert [n for n in yes if not guest_matches(pattern, n)] == []
    assert [n for n in no if guest_matches(pattern, n)] == []


def test_no_pattern_is_slow() -> None:
    assert not guest_matches("*a" * 100 + "b", "a" * 255)


def rule(endpoint: Selection = ALL, cell: str = "shop", line: int = 1, comment: str = "", *, log: bool = False) -> Rule:
    where = Position("shop.yaml", line, 5)
    return Rule(cell, Direction.INGRESS, (endpoint,), (Anyone(),), (ANY_SERVICE,), False, log, where, comment)


POLICY = CellPolicy(
    "shop",
    (rule(Selection(guest="db-*")), rule(Selection(subnet="web", exclude=(Selection(guest="web-9"),)))),
    {"front": (Selection(subnet="web"),), "ops": (Selection(guest="ops"),)},
    frozenset({"front"}),
)


def test_an_identity_has_labels_subnet_matched_patterns_and_exported_groups() -> None:
    web = identify(Workload("shop", "web", "web-1", (("tier", "a"),)), POLICY)
    assert web == Identity("shop", (("divhook:subnet", "web"), ("tier", "a")), ("front",))
    db = identify(Workload("shop", "db", "db-7"), POLICY)
    assert db == Identity("shop", (("divhook:guest", "db-*"), ("divhook:subnet", "db")))
    assert str(web) == "shop (subnet=web, tier=a; exported: front)"
    assert (web.subnet, Identity("x").subnet) == ("web", "")
    assert POLICY.groups_of(web) == ("front",)


def test_guests_that_no_rule_tells_apart_are_one_identity() -> None:
    some = {identify(Workload("shop", "db", f"db-{n}"), POLICY).number for n in range(50)}
    assert len(some) == 1
    assert (
        identify(Workload("shop", "web", "web-9"), POLICY).number
        != identify(Workload("shop", "web", "web-8"), POLICY).number
    )


def test_the_number_is_the_hash_of_the_documented_encoding() -> None:
    identity = Identity("shop", (("a", "1"), ("divhook:subnet", "web")), ("front",))
    encoded = b"\x01\x04shop\x02\x01a\x011\x0edivhook:subnet\x03web\x01\x05front"
    assert identity.encode() == encoded
    assert identity.number == int.from_bytes(hashlib.sha256(encoded).digest()[:8], "big")
    assert decode_identity_untrusted(encoded) == identity


def test_an_identity_that_is_too_large_names_the_guest() -> None:
    labels = tuple((f"{n:063}", "x" * 63) for n in range(16))
    with pytest.raises(IdentityError) as caught:
        identify(Workload("shop", "web", "web-1", labels), POLICY)
    assert str(caught.value) == (
        "guest 'web-1' in shop/web: labels, matched guest patterns and exported groups need 2075 bytes, more than 1024 "
        "(fewer or shorter labels, or groups by label in place of guest patterns)"
    )
    with pytest.raises(IdentityError, match="longer than 255 bytes"):
        Identity("x" * 256)


GOOD = Identity("shop", (("a", "1"), ("b", "2")), ("f", "g")).encode()


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\x02" + GOOD[1:],
        GOOD + b"\0",
        GOOD.replace(b"\x01a\x011", b"\x01c\x011"),
        GOOD.replace(b"\x01f\x01g", b"\x01g\x01f"),
        GOOD.replace(b"\x01f\x01g", b"\x01f\x01f"),
        GOOD.replace(b"\x01a", b"\x01\xff"),
        GOOD.replace(b"\x01g", b"\x09g"),
        b"\x01" + bytes(MAX_IDENTITY_BYTES),
        *(GOOD[:n] for n in range(1, len(GOOD))),
    ],
)
def test_only_the_canonical_encoding_is_taken_from_another_host(data: bytes) -> None:
    with pytest.raises(IdentityError):
        decode_identity_untrusted(data)


def test_content_numbers_tell_lists_of_texts_apart() -> None:
    numbers = {content_number(parts) for parts in (["ab"], ["a", "b"], ["b", "a"], [], [""])}
    assert len(numbers) == 5
    assert content_number(["a"], top=True) == content_number(["a"]) | 1 << 63


def test_a_rules_number_is_its_content_and_not_its_place() -> None:
    assert rule().number == rule(line=9, comment="x").number
    others = [rule(), rule(Selection(subnet="web")), rule(cell="lab"), rule(log=True)]
    assert len({r.number for r in others}) == 4
