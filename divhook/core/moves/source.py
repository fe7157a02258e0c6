"""A NIC that leaves this host: what to copy, to whom, and when it is gone. Tables: states.py; arithmetic: unread.py.

Copy, don't move: each frame for the paused guest is still sent into its own tap. libvirt's outcome decides which copy
lives: a commit deletes the tap here, an abort the one at the destination.

Invariants: no copy leaves before QEMU has read what it will read; copies leave in the order of their delivery, each
once; a move that was given up leaves the claim here, with a new stamp if anything was sent on.
"""

from dataclasses import dataclass

from divhook.core.addressing import Mac
from divhook.core.moves.states import SOURCE_ENDS, SOURCE_TRANSITIONS, SourceEvent, SourceState
from divhook.core.moves.unread import Delivered, Unread
from divhook.core.reasons import DropReason
from divhook.core.transitions import TransitionError
from divhook.core.wire.discovery import Claim

LINK_S = 5.0
"""How long the source tries to reach the destination's agent; then the destination announces, and that is all."""
FORWARD_S = 90.0
"""A neighbour's lifetime and 30 s: how long late senders' frames are sent on; renewed by use."""


@dataclass(frozen=True, slots=True)
class SendFrames:
    """To the destination, in this order."""

    frames: tuple[Delivered, ...]


@dataclass(frozen=True, slots=True)
class SendFlows:
    """States of connections, ahead of the first copy. changed: those that changed since the last time; else all."""

    changed: bool


@dataclass(frozen=True, slots=True)
class SendCommitted:
    """Tell the destination that libvirt has committed: the guest's QEMU is gone here."""


@dataclass(frozen=True, slots=True)
class MovedOut:
    """The endpoint is at the destination: give the claim up silently, believe that one, send late frames on."""

    claim: Claim


@dataclass(frozen=True, slots=True)
class Stayed:
    """The move was given up. announce: the guest was paused for it, so take a new stamp."""

    announce: bool


@dataclass(frozen=True, slots=True)
class Lost:
    """Frames that nobody will read, to be counted."""

    reason: DropReason
    frames: int


SourceAction = SendFrames | SendFlows | SendCommitted | MovedOut | Stayed | Lost


class SourceMove:
    """One NIC. peer: pmac of the destination. Every input returns what to do, in order."""

    def __init__(self, claim: Claim, peer: Mac) -> None:
        self.claim = claim
        self.peer = peer
        self.state = SourceState.ASKED
        self.unread: Unread | None = None
        self.linked = False
        self.copied = 0
        self.unread_at_pause = 0
        self._settled = False
        self._paused = False

    @property
    def ended(self) -> bool:
        """Whether there is nothing left to do."""
        return self.state in SOURCE_ENDS

    def on_linked(self) -> None:
        """The channel is there, and the hand-over is on its way."""
        self._step(SourceEvent.LINKED)
        self.linked = True

    def on_ready(self, tx_packets: int) -> list[SourceAction]:
        """The destination's port can queue frames."""
        self._step(SourceEvent.READY)
        return [SendFlows(changed=False), *(self.on_settled(tx_packets) if self._settled else [])]

    def on_frame(self, frame: Delivered) -> list[SourceAction]:
        """A frame was sent into the guest's tap."""
        if self.unread is None:
            return []
        self.unread.delivered(frame)
        if self.state in (SourceState.COPYING, SourceState.MOVED) and self.linked:
            self.copied += 1
            return [SendFrames((frame,))]
        return []

    def on_paused(self, stop_ns: int, tx_dropped: int) -> None:
        """The guest was paused at stop_ns of the wall clock. A second telling, less exact, changes nothing."""
        self._step(SourceEvent.PAUSED)
        if not self._paused:
            self._paused = True
            if self.unread is not None:
                self.unread.paused(stop_ns, tx_dropped)

    def on_settled(self, tx_packets: int) -> list[SourceAction]:
        """QEMU has read what it will read; the tap's counter by now."""
        if self._paused:
            self._settled = True
        before = self.state
        self._step(SourceEvent.SETTLED)
        return self._flush(tx_packets) if before is SourceState.PAUSED else []

    def on_active(self, claim: Claim, tx_packets: int, tx_dropped: int, now_ns: int) -> list[SourceAction]:
        """The destination has claimed the endpoint: the guest runs there, so it is paused here, told or not."""
        if self.state in (SourceState.READY, SourceState.LINKED, SourceState.ASKED):
            self.on_paused(now_ns, tx_dropped)
        before = self.state
        self._step(SourceEvent.ACTIVE)
        if before is SourceState.MOVED:
            return []
        self.claim = claim
        actions: list[SourceAction] = []
        if before in (SourceState.PAUSED, SourceState.WAITING, SourceState.ALONE):
            actions += self._flush(tx_packets)
        return [*actions, MovedOut(claim)]

    def on_resumed(self) -> list[SourceAction]:
        """The guest runs here."""
        was_paused = self._paused
        self._step(SourceEvent.RESUMED)
        self._paused = self._settled = False
        if self.unread is not None:
            self.unread.resumed()
        return [Stayed(was_paused)] if self.state is SourceState.STAYED else []

    def on_abandoned(self) -> list[SourceAction]:
        """The destination has no port for it any more."""
        if self.state is SourceState.ALONE:
            return []
        self._step(SourceEvent.ABANDONED)
        return [Stayed(self._paused)] if self.state is SourceState.STAYED else []

    def on_lost(self) -> None:
        """No channel: from here on the announcement is all there is."""
        self.linked = False
        self._step(SourceEvent.LOST)

    def on_ended(self, tx_packets: int) -> list[SourceAction]:
        """The guest's QEMU is gone here: libvirt has committed the move."""
        before = self.state
        self._step(SourceEvent.ENDED)
        actions: list[SourceAction] = []
        if before in (SourceState.READY, SourceState.PAUSED):
            actions += self._flush(tx_packets)
        if self.linked:
            actions.append(SendCommitted())
        elif before is SourceState.ALONE and self.unread is not None:
            lost = len(self.unread.unseen(tx_packets))
            actions += [Lost(DropReason.MOVE_NOT_HANDED_OVER, lost)] if lost else []
        return actions

    def on_expired(self) -> list[SourceAction]:
        """No late sender any more; or, before the move, its time is over."""
        before = self.state
        self._step(SourceEvent.EXPIRED)
        return [] if before is SourceState.MOVED else [Stayed(self._paused)]

    def _flush(self, tx_packets: int) -> list[SourceAction]:
        unread = self.unread
        actions: list[SourceAction] = [SendFlows(changed=True)] if self.linked else []
        if unread is None:
            return actions
        frames = tuple(unread.unseen(tx_packets))
        self.unread_at_pause = sum(1 for f in frames if unread.stop_ns is None or f.at_ns <= unread.stop_ns)
        if unread.overflow:
            actions.append(Lost(DropReason.MOVE_COPY_OVERFLOW, unread.overflow))
        doubtful = unread.doubtful(tx_packets)
        if doubtful:
            actions.append(Lost(DropReason.MOVE_DOUBTFUL, doubtful))
        if frames and self.linked:
            self.copied += len(frames)
            actions.append(SendFrames(frames))
        elif frames:
            actions.append(Lost(DropReason.MOVE_NOT_HANDED_OVER, len(frames)))
        return actions

    def _step(self, event: SourceEvent) -> None:
        if self.state not in SOURCE_ENDS:
            self.state = SOURCE_TRANSITIONS.next(self.state, event)


def knows(state: SourceState, event: SourceEvent) -> bool:
    """Whether the table has a row for it: events of other hosts may come at any time."""
    try:
        SOURCE_TRANSITIONS.next(state, event)
    except TransitionError:
        return False
    return True
