"""What the moves' benchmark makes of what the guests tell it."""

from dataclasses import replace

import pytest

from bench.moves import chart, record
from bench.moves.scene import Move
from bench.moves.traffic import Conversation, Flow, account

FLOW = Flow(0, "client-b", "eth0", "web", "10.1.1.30")
SEEN = {FLOW: {0: 5.0, 1: 6.0, 2: 107.0}}
SPOKEN = {FLOW: {0: 4.0, 1: 5.0, 2: 103.0}}
HOOKS = (("B", "migrate", 30.0), ("B", "start", 40.0), ("A", "stopped", 20.0))
MOVE = Move("A", "B", 0.0, 1.5, 100.0, 98.0, 1.0, 1.098, HOOKS)


def told(sent: int, steps: list[int | None], **counts: int) -> dict[str, object]:
    received = sum(1 for step in steps if step is not None)
    zero = {"doubled": 0, "reordered": 0, "overflowed": 0}
    return {"sent": sent, "received": received, "arrived_us": steps} | zero | counts


def test_account_knows_which_numbers_are_missing_also_at_the_end() -> None:
    found = account(told(7, []), told(0, [1_000_000, 1000, None, None, 50_000]))
    assert found.arrivals_us == [1_000_000, 1_001_000, None, None, 1_051_000]
    assert found.missing == [(2, 2), (5, 2)]
    assert (found.lost, found.gap_ms) == (4, 50.0)


def test_what_a_full_socket_lost_is_not_the_networks() -> None:
    found = account(told(5, []), told(0, [1000, 1000, None, 1000], overflowed=1))
    assert (found.lost, found.overflowed, found.network_lost) == (2, 1, 1)


def rows(lost: int, tap_dropped: int = 0, contender: str = "divhook") -> list[record.Row]:
    whole, holed = told(3, [1000, 1000, 1000]), told(3, [1000, *[None] * lost, *[1000] * (2 - lost)])
    conversation = Conversation({FLOW: account(whole, whole)}, {FLOW: account(whole, holed)})
    sessions: dict[Flow, dict[str, object]] = {FLOW: {"stall_us": 120_000, "state": "open"}}
    return record.rows(contender, 0, MOVE, conversation, sessions, SEEN, SPOKEN, tap_dropped)


def test_row_says_where_the_client_was_and_adds_both_directions() -> None:
    (row,) = rows(lost=1)
    assert (row.client, row.subnet, row.sent, row.lost, row.gap_ms) == ("destination", "same", 6, 1, 101.0)
    assert (row.silence_ms, record.added_ms(row)) == (98.0, 3.0)
    assert (row.downtime_ms, row.pause_ms, row.tcp_stall_ms) == (100.0, 98.0, 120.0)


def test_verdict_holds_without_loss_and_falls_with_one_packet() -> None:
    assert [good for _, good, _ in record.verdicts(rows(lost=0))] == [True] * 7
    assert [good for _, good, _ in record.verdicts(rows(lost=1))] == [False, *[True] * 6]
    assert [good for _, good, _ in record.verdicts(rows(lost=1, tap_dropped=1))] == [True] * 7


@pytest.mark.parametrize(("gap_ms", "expected"), [(105.0, [True, True]), (106.0, [False, True]), (121.0, [False] * 2)])
def test_gap_is_held_to_the_guests_own_pause(gap_ms: float, expected: list[bool]) -> None:
    row = replace(rows(lost=0)[0], gap_ms=gap_ms, silence_ms=99.0)
    assert [good for _, good, _ in record.verdicts([row])][3:5] == expected


@pytest.mark.parametrize(("gap_ms", "expected"), [(103.0, [True, True]), (104.0, [False, True]), (119.0, [False] * 2)])
def test_gap_is_held_to_what_the_guest_itself_did_not_say(gap_ms: float, expected: list[bool]) -> None:
    row = replace(rows(lost=0)[0], gap_ms=gap_ms)
    assert [good for _, good, _ in record.verdicts([row])][5:] == expected


def test_longest_gap_is_between_two_arrivals_in_a_row_whatever_their_numbers() -> None:
    assert record.longest_gap({0: 5.0, 2: 6.0, 1: 107.0}) == (2, 1)
    assert record.longest_gap({7: 1.0}) == (-1, -1)


def test_time_of_hooks_is_told_by_operation_and_place_and_in_all() -> None:
    assert rows(lost=0)[0].hook_ms == 90.0
    text = record.hook_table([MOVE, replace(MOVE, hooks_ms=(*HOOKS[:2], ("A", "stopped", 24.0)))])
    assert "| start | destination | 40.0 (40.0) |" in text
    assert "| stopped | source | 22.0 (24.0) |" in text
    assert "| all of a migration | | 92.0 (94.0) |" in text
    assert record.hook_table([replace(MOVE, hooks_ms=())]) == ""


def test_a_duplicate_and_a_broken_connection_are_not_met() -> None:
    (row,) = rows(lost=0)
    bad = [replace(row, duplicated=1, tcp_state="Connection reset by peer")]
    assert [good for _, good, _ in record.verdicts(bad)][:3] == [True, False, False]


def test_table_has_both_contenders_and_nobody_is_judged_by_the_bridge() -> None:
    bridge = rows(lost=1, contender="bridge")
    text = record.table([*rows(lost=0), *bridge])
    assert "| divhook | destination | same | 1 | 6 | 0 |" in text
    assert "| bridge | destination | same | 1 | 6 | 1 |" in text
    assert record.verdicts(bridge) == []


def test_chart_draws_each_arrival_and_each_loss() -> None:
    found = account(told(4, []), told(4, [1000, 1000, None, 100_000]))
    svg = chart.arrivals([("bridge", "to the guest", found, 99.0)])
    assert (svg.count("<circle"), svg.count('stroke="#d1495b"')) == (3, 1)
    assert "gap 100 ms, 1 lost" in svg
