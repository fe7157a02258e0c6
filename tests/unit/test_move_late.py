"""Late senders of a NIC that has moved: what the kernel and the agent send on is counted, noted, and told."""

import asyncio
from types import SimpleNamespace
from typing import Any, cast

import pytest

from divhook.agent import forwarding
from divhook.agent.forwarding import Forwarding, LateSenders
from divhook.agent.move_record import MoveRecord
from divhook.agent.move_sides import QUEUE_FRAMES, Coming
from divhook.core.addressing import parse_address, parse_mac
from divhook.core.moves.messages import MAX_NOTES
from divhook.core.moves.states import SourceState
from divhook.core.moves.unread import RING_BYTES
from divhook.core.outputs import Drop, ToNewHost
from divhook.core.reasons import DropReason

HOST, ADDRESS = parse_mac("06:00:00:00:00:0a"), parse_address("10.1.1.5")
PACKET = ToNewHost(ADDRESS, HOST, b"packet")


class Story:
    """One move that is over but for its late senders."""

    def __init__(self) -> None:
        self.executed: list[Any] = []
        self.told: list[int] = []
        self.kernel = 0
        self.taken = True
        plane = SimpleNamespace(execute=self.executed.extend, fastpath=SimpleNamespace(sent_on=lambda _: self.kernel))
        self.leaving = SimpleNamespace(
            nic=SimpleNamespace(key="k"),
            move=SimpleNamespace(state=SourceState.MOVED, claim=SimpleNamespace(address=ADDRESS)),
            record=MoveRecord("source", "g", HOST),
            channel=SimpleNamespace(send=lambda *_: self.taken),
            sent_on=0,
            told_late=0,
            used_s=0.0,
        )
        moves: Any = {"k": self.leaving}
        self.late = LateSenders(
            cast(Any, plane),
            Forwarding(cast(Any, plane), lambda _: True),
            moves,
            lambda leaving: self.told.append(leaving.record.late),
        )

    def lines(self) -> list[str]:
        return [line["what"] for line in self.leaving.record.row()["timeline"]]


def test_what_goes_over_the_channel_and_what_the_kernel_sends_are_one_count(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(forwarding, "LOOK_S", 0.001)

    async def play() -> None:
        story = Story()
        story.late.watch(cast(Any, story.leaving))
        story.late.packet(PACKET)
        story.kernel = 7
        await asyncio.sleep(0.05)
        assert story.leaving.record.late == 8
        assert story.lines() == ["the last late packet sent on, of 8"]
        assert story.told[-1] == 8
        told = len(story.told)
        await asyncio.sleep(0.05)
        assert len(story.told) == told
        story.kernel = 3  # a new entry, which begins at nought
        await asyncio.sleep(0.05)
        assert story.leaving.record.late == 11
        story.leaving.move.state = SourceState.DONE
        story.kernel = 9
        await asyncio.sleep(0.05)
        assert story.leaving.record.late == 11

    asyncio.run(play())


@pytest.mark.parametrize("channel", [None, "full"])
def test_what_finds_no_way_is_dropped_with_its_reason_and_not_told_as_sent(channel: str | None) -> None:
    async def play() -> None:
        story = Story()
        story.taken = False
        if channel is None:
            story.leaving.channel = None
        story.late.packet(PACKET)
        (dropped,) = story.executed
        assert isinstance(dropped, Drop)
        assert dropped.reason is DropReason.MOVE_NOT_HANDED_OVER
        assert (story.leaving.record.late, story.lines()) == (0, [])

    asyncio.run(play())


def test_a_record_with_all_its_lines_still_fits_a_message() -> None:
    record = MoveRecord("destination", "g", HOST, late=3, late_at_s=1.0)
    for number in range(MAX_NOTES + 5):
        record.note(str(number))
    assert len(record.lines()) == MAX_NOTES
    assert record.lines()[-1] == (1.0, "the last late packet came, of 3")


def test_what_is_kept_for_a_tap_is_bounded_in_frames_and_bytes() -> None:
    coming = Coming(cast(Any, None), MoveRecord("destination", "g", HOST))
    assert coming.take([b"x"] * (QUEUE_FRAMES + 3)) == 3
    assert len(coming.kept()) == QUEUE_FRAMES
    large = b"x" * (RING_BYTES // 3)
    assert coming.take([large] * 5) == 2
    assert (coming.kept(), coming.kept()) == ([large] * 3, [])
