import pytest
from discovery_hosts import DB, HOST_A, NOBODY, WEB, claim_of

from divhook.core.neighbor import (
    TRANSITIONS,
    USABLE,
    Found,
    Neighbour,
    NeighbourEvent,
    NeighbourState,
    NeighbourTable,
    transition_table_markdown,
)
from divhook.core.transitions import TransitionError


def after(state: NeighbourState, event: NeighbourEvent) -> NeighbourState | None:
    try:
        return TRANSITIONS.next(state, event)
    except TransitionError:
        return None


@pytest.mark.parametrize("state", NeighbourState)
def test_host_that_confirms_its_claim_is_reachable_from_every_state(state):
    assert after(state, NeighbourEvent.CONFIRMED) is NeighbourState.REACHABLE


def test_time_alone_never_makes_an_entry_unusable():
    assert {after(s, NeighbourEvent.IDLE) for s in USABLE} - {None} <= USABLE


def test_only_silence_or_denial_fails_an_entry():
    causes = {e for s in NeighbourState for e in NeighbourEvent if after(s, e) is NeighbourState.FAILED}
    assert causes == {NeighbourEvent.SILENT, NeighbourEvent.DENIED}


def test_every_state_can_be_left_and_reached():
    reached = {after(s, e) for s in NeighbourState for e in NeighbourEvent if after(s, e) is not s}
    assert reached - {None} == set(NeighbourState)
    assert all(any(after(s, e) not in (None, s) for e in NeighbourEvent) for s in NeighbourState)


def test_unknown_event_is_our_bug_and_leaves_the_entry_as_it_was():
    entry = Neighbour(WEB, NeighbourState.REACHABLE, claim_of(HOST_A, 5))
    before = (entry.state, entry.claim, entry.found)
    with pytest.raises(TransitionError, match="SILENT in state REACHABLE"):
        entry.step(NeighbourEvent.SILENT)
    assert (entry.state, entry.claim, entry.found) == before


def test_found_is_set_exactly_while_the_entry_is_usable():
    claim = claim_of(HOST_A, 5)
    for state in NeighbourState:
        for event in NeighbourEvent:
            new = after(state, event)
            if new is not None:
                entry = Neighbour(WEB, state, claim)
                entry.step(event)
                assert entry.found == (Found(claim, new) if new in USABLE else None)


def test_overflow_names_the_least_recently_used_entry():
    table = NeighbourTable(2)
    web, db = table.add(WEB), table.add(DB)
    assert table.overflow() is None
    table.used(web, 7.0)
    table.add(NOBODY)
    assert table.overflow() is db
    assert web.used_s == 7.0


def test_drawing_and_table_hold_every_transition():
    text = transition_table_markdown()
    for state in NeighbourState:
        for event in NeighbourEvent:
            new = after(state, event)
            assert (f"| {state.name} | {event.name} |" in text) == (new is not None)
            if new is not None:
                assert f"{state.name} --> {new.name}: {event.name}\n" in text
