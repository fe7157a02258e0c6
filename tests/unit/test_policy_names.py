"""DNS names of rules: what is asked when, and which address stays how long."""

import pytest

from divhook.policy import names
from divhook.policy.names import (
    KEEP_S,
    MAX_QUESTIONS,
    MAX_TTL_S,
    MIN_TTL_S,
    RETRY_S,
    STALE_S,
    NameBook,
    NameState,
)
from divhook.policy.peers import DnsName

WWW, FTP, WILD = DnsName("www.example.net"), DnsName("ftp.example.net"), DnsName("*.example.net")
A, B, C = (bytes([192, 0, 2, n]) for n in (1, 2, 3))
VIRTUAL = bytes([10, 1, 1, 5])


def external(address: bytes) -> bool:
    return address[0] != 10


def book(*wanted: DnsName, cell: str = "shop") -> NameBook:
    made = NameBook(external)
    made.want(cell, wanted, 0.0)
    made.take_changed()
    return made


def ask(made: NameBook, now: float, *addresses: bytes, ttl_s: float = 60.0) -> None:
    """One due question, answered at once."""
    (name,) = made.take_due(now)
    made.answered(name, addresses, ttl_s, now)


def state(made: NameBook) -> NameState:
    (row,) = made.rows()
    return row.state


def test_a_name_is_asked_for_at_once_and_its_cell_told_of_the_answer() -> None:
    made = NameBook(external)
    made.want("shop", [WWW], 5.0)
    assert (made.next_timer(), state(made), made.addresses("shop")) == (5.0, NameState.PENDING, {})
    assert made.take_changed() == ["shop"]
    assert made.take_due(5.0) == ["www.example.net"]
    assert made.take_due(5.0) == []
    made.answered("www.example.net", [A, B], 60, 5.1)
    assert made.take_changed() == ["shop"]
    assert made.addresses("shop") == {WWW: frozenset((A, B))}
    assert state(made) is NameState.GOOD
    assert made.names_at("shop", A) == ("www.example.net",)
    assert made.names_at("lab", A) == ()


@pytest.mark.parametrize(("ttl_s", "again_s"), [(0, MIN_TTL_S), (60, 60), (604_800, MAX_TTL_S)])
def test_a_name_is_asked_for_again_when_its_ttl_is_over_within_floor_and_ceiling(ttl_s: float, again_s: float) -> None:
    made = book(WWW)
    ask(made, 1.0, A, ttl_s=ttl_s)
    assert made.next_timer() == 1.0 + again_s
    assert made.take_due(0.9 + again_s) == []
    assert made.take_due(1.0 + again_s) == ["www.example.net"]


def test_the_same_answer_changes_nothing() -> None:
    made = book(WWW)
    ask(made, 0.0, A)
    made.take_changed()
    ask(made, 60.0, A)
    assert made.take_changed() == []


def test_an_address_outlives_the_answers_it_was_in_by_an_hour() -> None:
    made = book(WWW)
    ask(made, 0.0, A)
    ask(made, 60.0, B)
    assert made.addresses("shop") == {WWW: frozenset((A, B))}
    ask(made, 120.0, B)
    made.take_changed()
    made.expire(59.9 + KEEP_S)
    assert made.take_changed() == []
    made.expire(60.0 + KEEP_S)
    assert made.take_changed() == ["shop"]
    assert made.addresses("shop") == {WWW: frozenset((B,))}


def test_an_address_that_is_answered_again_stays() -> None:
    made = book(WWW)
    ask(made, 0.0, A)
    ask(made, 60.0, B)
    ask(made, 120.0, A)
    made.expire(120.0 + KEEP_S)
    assert made.addresses("shop") == {WWW: frozenset((A,))}


def test_the_last_answer_stays_for_a_day_while_none_comes_and_the_state_says_so() -> None:
    made = book(WWW)
    ask(made, 0.0, A)
    for _ in range(400):
        now = made.next_timer()
        assert now is not None
        made.take_due(now)
        made.failed("www.example.net", "no answer within 10 s", now)
        made.expire(now)
        if now < 60.0 + STALE_S:
            assert state(made) is NameState.STALE
    (row,) = made.rows()
    assert (row.state, row.addresses, row.problem) == (NameState.FAILED, (), "no answer within 10 s")


def test_failures_are_retried_less_and_less_often_until_an_answer_comes() -> None:
    made = book(WWW)
    at, waits = 0.0, []
    for _ in range(9):
        made.take_due(at)
        made.failed("www.example.net", "refused", at)
        due = made.next_timer()
        assert due is not None
        waits.append(due - at)
        at = due
    assert waits == [RETRY_S[0] * 2**n for n in range(6)] + [RETRY_S[1]] * 3
    ask(made, at, A)
    made.take_due(at + 60)
    made.failed("www.example.net", "refused", at + 60)
    assert made.next_timer() == at + 60 + RETRY_S[0]


def test_that_a_name_has_no_address_is_an_answer() -> None:
    made = book(WWW)
    ask(made, 0.0, A)
    ask(made, 60.0)
    assert state(made) is NameState.GOOD, "what it had stays for an hour"
    made.expire(60.0 + KEEP_S)
    assert (state(made), made.addresses("shop")) == (NameState.EMPTY, {})


def test_addresses_that_are_no_external_ones_are_not_used() -> None:
    made = book(WWW)
    ask(made, 0.0, VIRTUAL, A)
    (row,) = made.rows()
    assert row.addresses == (A,)
    assert row.problem == "answers with addresses that are not external are not used"
    assert row.plain() == {
        "cell": "shop",
        "name": "www.example.net",
        "state": "good",
        "addresses": ["192.0.2.1"],
        "problem": "answers with addresses that are not external are not used",
        "evicted": 0,
    }


def test_names_below_a_wildcard_come_from_what_guests_of_the_cell_resolve() -> None:
    made = book(WILD)
    made.want("lab", [WILD], 0.0)
    made.take_changed()
    assert made.take_due(0.0) == []
    assert made.next_timer() is None
    made.learned("shop", "WWW.Example.net.", [A, VIRTUAL], 60, 1.0)
    made.learned("shop", "example.net", [B], 60, 1.0)
    made.learned("shop", "www.example.org", [C], 60, 1.0)
    assert made.take_changed() == ["shop"]
    assert made.addresses("shop") == {WILD: frozenset((A,))}
    assert made.addresses("lab") == {}
    assert {row.state for row in made.rows()} == {NameState.LEARNED}
    made.expire(1.0 + 60 + KEEP_S)
    assert (made.take_changed(), made.addresses("shop")) == (["shop"], {})


def test_what_a_guest_got_for_an_exact_name_counts_for_its_cell_beside_the_own_answer() -> None:
    made = book(WWW)
    made.want("lab", [WWW], 0.0)
    ask(made, 0.0, A)
    made.take_changed()
    made.learned("shop", "www.example.net", [B], 60, 1.0)
    assert made.take_changed() == ["shop"]
    assert made.addresses("shop") == {WWW: frozenset((A, B))}
    assert made.addresses("lab") == {WWW: frozenset((A,))}


def test_an_answer_for_what_no_rule_names_teaches_nothing() -> None:
    made = book(WWW)
    made.learned("lab", "www.example.net", [A], 60, 1.0)
    made.learned("shop", "www.example.net", [VIRTUAL], 60, 1.0)
    made.answered("gone.example.net", [A], 60, 1.0)
    made.failed("gone.example.net", "refused", 1.0)
    assert (made.take_changed(), made.addresses("shop")) == ([], {})


def test_names_that_rules_have_no_more_are_forgotten_also_while_they_are_asked_for() -> None:
    made = book(WWW, FTP, WILD)
    assert made.take_due(0.0) == ["ftp.example.net", "www.example.net"]
    made.learned("shop", "x.example.net", [C], 60, 0.0)
    made.want("shop", [WWW], 1.0)
    made.answered("ftp.example.net", [A], 60, 1.0)
    made.answered("www.example.net", [B], 60, 1.0)
    assert made.addresses("shop") == {WWW: frozenset((B,))}
    made.want("shop", [], 2.0)
    assert (made.rows(), made.next_timer()) == ([], None)
    made.want("shop", [WWW], 3.0)
    assert (state(made), made.next_timer()) == (NameState.PENDING, 3.0)


def test_the_same_names_again_change_nothing() -> None:
    made = book(WWW, WILD)
    made.want("shop", [WILD, WWW], 1.0)
    assert made.take_changed() == []


def test_a_bounded_number_of_questions_is_under_way() -> None:
    made = book(*(DnsName(f"n{n:02}.example.net") for n in range(MAX_QUESTIONS + 1)))
    assert len(made.take_due(0.0)) == MAX_QUESTIONS
    assert (made.take_due(0.0), made.next_timer()) == ([], None)
    made.failed("n00.example.net", "refused", 0.0)
    assert made.take_due(0.0) == [f"n{MAX_QUESTIONS}.example.net"]


def test_more_names_than_there_is_room_for_match_nobody_and_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(names, "MAX_NAMES", 2)
    made = book(WWW, WILD)
    made.want("lab", [FTP], 0.0)
    made.learned("lab", "ftp.example.net", [A], 60, 0.0)
    assert [(r.cell, r.name, r.state) for r in made.rows()] == [
        ("lab", "ftp.example.net", NameState.NO_ROOM),
        ("shop", "*.example.net", NameState.LEARNED),
        ("shop", "www.example.net", NameState.PENDING),
    ]
    assert made.rows()[0].problem == "more than 2 names in the rules of this host"
    assert (made.addresses("lab"), made.take_due(0.0)) == ({}, ["www.example.net"])
    made.want("shop", [WILD], 1.0)
    made.want("lab", [FTP, DnsName("a.example.net")], 2.0)
    assert made.take_due(2.0) == ["ftp.example.net"], "the one that has waited for room gets it"
    assert made.rows()[0].state is NameState.NO_ROOM


def test_the_addresses_of_a_name_are_bounded_and_the_newest_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(names, "MAX_ADDRESSES", 2)
    monkeypatch.setattr(names, "MAX_WILDCARD_ADDRESSES", 1)
    made = book(WWW, WILD)
    ask(made, 0.0, A, B)
    ask(made, 60.0, C)
    assert made.addresses("shop")[WWW] == {A, C}
    made.learned("shop", "a.example.net", [A], 60, 60.0)
    made.learned("shop", "b.example.net", [B], 60, 61.0)
    assert made.addresses("shop")[WILD] == {B}
    assert [(r.name, r.evicted) for r in made.rows()] == [("*.example.net", 1), ("www.example.net", 1)]


def test_a_restarted_agent_goes_on_with_what_was_known() -> None:
    made = book(WWW, FTP)
    made.take_due(0.0)
    made.answered("www.example.net", [A], 60, 0.0)
    assert made.dump() == {"www.example.net": {"192.0.2.1": 60 + STALE_S}}
    after = NameBook(external)
    after.restore({"www.example.net": {A: 500.0, VIRTUAL: 500.0}, "ftp.example.net": {B: 500.0}})
    after.want("shop", [WWW], 100.0)
    assert (after.addresses("shop"), state(after)) == ({WWW: frozenset((A,))}, NameState.STALE)
    assert after.take_due(100.0) == ["www.example.net"]
    after.answered("www.example.net", [A], 60, 100.0)
    assert state(after) is NameState.GOOD
