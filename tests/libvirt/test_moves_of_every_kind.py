"""However a guest with two NICs moves, no packet is lost or doubled: by number, both ways, in its subnet and routed.

`make move-tests` runs it in both modes of the fast path, with a longer series.
"""

from collections.abc import Callable, Iterator

import pytest
from lab_cast import Cast
from moving import EXTENDED, MOVES, ORDINARY, Traveller, remove, two_legged

from divhook.lab.lab import Lab
from divhook.lab.processes import wait_until

pytestmark = pytest.mark.one_mode


@pytest.fixture(scope="module")
def traveller(lab: Lab, cast: Cast) -> Iterator[Traveller]:
    found = two_legged(lab, cast)
    yield found
    found.end()
    remove(lab, found.name)


KINDS = {
    "live": ORDINARY,
    "not live": ("--persistent", "--undefinesource"),
    "post-copy": (*ORDINARY, "--postcopy", "--postcopy-after-precopy"),
    "peer-to-peer": (*ORDINARY, "--p2p"),
    "tunnelled": (*ORDINARY, "--p2p", "--tunnelled"),
    "defined in both places": ("--live", "--persistent"),
}


@pytest.mark.parametrize("kind", KINDS)
def test_move_loses_and_doubles_nothing(
    traveller: Traveller, kind: str, record_property: Callable[[str, object], None]
) -> None:
    target = traveller.elsewhere
    with traveller.talking() as conversation:
        attempt = traveller.move(target, *KINDS[kind])
    print(f"\n{kind}: to {target} in {attempt.took_s:.2f} s\n{conversation}")
    record_property("migrate_s", round(attempt.took_s, 2))
    traveller.settled(target)


def test_moves_without_a_rest_lose_nothing(traveller: Traveller) -> None:
    with traveller.talking():
        for _ in range(MOVES):
            traveller.move(traveller.elsewhere)
    traveller.settled(traveller.place)


def test_guest_that_arrives_suspended_stays_so_and_is_reached_there_once_it_is_resumed(traveller: Traveller) -> None:
    """`--suspend`: no RESUMED comes at first. Its host holds its address all the same, from libvirt's commit on."""
    source, target = traveller.place, traveller.elsewhere
    traveller.begin(target, *ORDINARY, "--suspend").succeeded()
    assert traveller.runs_on() == [target]
    there = traveller.lab.host(target)
    assert there.virsh("domstate", traveller.name).strip() == "paused"
    assert wait_until(lambda: traveller.active_on() == [target], 30, 0.1), traveller.active_on()
    assert not traveller.known_on(source)
    there.virsh("resume", traveller.name)
    traveller.settled(target)


def save_and_restore(traveller: Traveller) -> None:
    traveller.host().virsh("save", traveller.name, "/run/divhook-lab/saved-mover")
    assert traveller.active_on() == []
    traveller.lab.host("A").virsh("restore", "/run/divhook-lab/saved-mover")


def managed_save_and_start(traveller: Traveller) -> None:
    traveller.host().virsh("managedsave", traveller.name)
    assert traveller.active_on() == []
    traveller.lab.host("A").virsh("start", traveller.name)


@pytest.mark.parametrize("sleep", [save_and_restore, managed_save_and_start] if EXTENDED else [save_and_restore])
def test_connections_of_a_saved_guest_live_when_it_wakes(
    traveller: Traveller, sleep: Callable[[Traveller], None]
) -> None:
    if traveller.place != "A":
        traveller.move("A")
    sleep(traveller)
    traveller.settled("A")


def test_both_hosts_tell_the_same_story_of_a_move(traveller: Traveller) -> None:
    source, target = traveller.place, traveller.elsewhere
    traveller.move(target)
    traveller.settled(target)

    def told(place: str) -> list[str]:
        last = traveller.records(place)[-1]
        return [f"{line['where']}: {line['what']}" for line in last["timeline"]]

    def complete() -> bool:
        return set(told(source)) == set(told(target))

    assert wait_until(complete, 10, 0.2), (told(source), told(target))
    assert [traveller.records(place)[-1]["role"] for place in (source, target)] == ["source", "destination"]
    story = told(source)
    for line in ("destination: hook migrate", "source: paused (QEMU)", "destination: runs here: claimed and announced"):
        assert line in story, story
