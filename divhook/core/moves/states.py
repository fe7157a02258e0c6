"""The states of a move, as data: one table for the host that a NIC leaves, one for the host that it comes to.

    source                                             destination
    ASKED ◀─────────── MOVE (discovery, group) ─────── ASKING       hook `migrate`
      │ TLS ─────────────────────────────────────────▶   │
    LINKED ─────────── HANDOVER ─────────────────────▶ HANDED
      │                                                  │          hook `start`: the tap exists
    READY ◀─────────── READY ───────────────────────── READY
      │ QEMU's STOP: the guest is paused                 │
    PAUSED                                               │
      │ QEMU's MIGRATION event: what it read is known    │
    COPYING ────────── FRAMES: unread ones, then live ─▶ │          queued in the tap
      │                                                  │          first frame from the tap, or RESUMED
    MOVED ◀─────────── ACTIVE (new claim) ──────────── ACTIVE       announced
      │ late senders' frames are sent on                 │
    DONE                                               DONE

Nothing waits for the other host: a guest that runs before its hand-over came is announced all the same.
"""

from enum import Enum, auto

from divhook.core.transitions import TransitionTable


class SourceState(Enum):
    """The host that the NIC leaves."""

    ASKED = auto()  # connecting
    LINKED = auto()  # handed over; the destination has no port yet
    READY = auto()  # the destination can queue frames
    WAITING = auto()  # paused, and the destination is not ready: copies wait here
    PAUSED = auto()  # paused; not known yet what QEMU has read
    COPYING = auto()  # each frame for the guest goes to its tap here, and a copy to the destination
    ALONE = auto()  # no channel: the destination announces, and that is all
    MOVED = auto()  # it runs there; late frames are sent on
    STAYED = auto()  # end: the move was given up, the guest is here
    DONE = auto()  # end


class SourceEvent(Enum):
    """What can happen to it."""

    LINKED = auto()  # the channel is there
    READY = auto()  # the destination says so
    PAUSED = auto()  # QMP STOP, or libvirt SUSPENDED
    SETTLED = auto()  # QEMU has read what it will read
    RESUMED = auto()  # the guest runs here
    ACTIVE = auto()  # the destination has claimed
    LOST = auto()  # no channel any more, or none to be had
    ABANDONED = auto()  # the destination's port is gone: libvirt gave the move up
    ENDED = auto()  # the guest's QEMU is gone here
    EXPIRED = auto()  # nobody needs to be sent on any more


_S, _E = SourceState, SourceEvent
_UNDONE = {_E.ACTIVE: _S.MOVED, _E.LOST: _S.ALONE, _E.ABANDONED: _S.STAYED}
SOURCE_TRANSITIONS: TransitionTable[SourceState, SourceEvent] = TransitionTable(
    {
        _S.ASKED: _UNDONE
        | {
            _E.LINKED: _S.LINKED,
            _E.PAUSED: _S.WAITING,
            _E.ENDED: _S.ALONE,
            _E.EXPIRED: _S.STAYED,
            _E.RESUMED: _S.ASKED,
        },
        _S.LINKED: _UNDONE | {_E.READY: _S.READY, _E.PAUSED: _S.WAITING, _E.RESUMED: _S.LINKED, _E.ENDED: _S.LINKED},
        _S.READY: _UNDONE | {_E.PAUSED: _S.PAUSED, _E.RESUMED: _S.READY, _E.ENDED: _S.COPYING, _E.SETTLED: _S.READY},
        _S.WAITING: _UNDONE
        | {
            _E.LINKED: _S.WAITING,
            _E.READY: _S.PAUSED,
            _E.SETTLED: _S.WAITING,
            _E.RESUMED: _S.STAYED,
            _E.PAUSED: _S.WAITING,
            _E.ENDED: _S.WAITING,
            _E.EXPIRED: _S.STAYED,
        },
        _S.PAUSED: _UNDONE
        | {_E.SETTLED: _S.COPYING, _E.RESUMED: _S.STAYED, _E.PAUSED: _S.PAUSED, _E.ENDED: _S.COPYING},
        _S.COPYING: _UNDONE
        | {_E.RESUMED: _S.STAYED, _E.PAUSED: _S.COPYING, _E.SETTLED: _S.COPYING, _E.ENDED: _S.COPYING},
        _S.ALONE: {
            _E.ACTIVE: _S.MOVED,
            _E.RESUMED: _S.STAYED,
            _E.ENDED: _S.DONE,
            _E.PAUSED: _S.ALONE,
            _E.SETTLED: _S.ALONE,
            _E.LOST: _S.ALONE,
            _E.EXPIRED: _S.STAYED,
        },
        _S.MOVED: {
            _E.EXPIRED: _S.DONE,
            _E.LOST: _S.MOVED,
            _E.ABANDONED: _S.DONE,
            _E.RESUMED: _S.STAYED,
            _E.ENDED: _S.MOVED,
            _E.PAUSED: _S.MOVED,
            _E.SETTLED: _S.MOVED,
            _E.ACTIVE: _S.MOVED,
        },
    }
)
SOURCE_ENDS = frozenset({_S.STAYED, _S.DONE})


class DestinationState(Enum):
    """The host that the NIC comes to."""

    ASKING = auto()  # no hand-over, no port
    HANDED = auto()  # hand-over, no port
    WAITING = auto()  # port, no hand-over
    READY = auto()  # both: frames are queued in the tap
    ACTIVE = auto()  # claimed and announced; late copies still arrive
    GONE = auto()  # end: libvirt gave the move up
    DONE = auto()  # end


class DestinationEvent(Enum):
    """What can happen to it."""

    HANDED = auto()  # the hand-over has come
    PORT = auto()  # hook `start`
    RUNS = auto()  # first frame from the tap, RESUMED, or the source says that libvirt has committed
    LOST = auto()  # no channel any more
    GONE = auto()  # hook `stopped`, the tap is gone
    EXPIRED = auto()  # no late frame is to be expected any more


_D, _V = DestinationState, DestinationEvent
DESTINATION_TRANSITIONS: TransitionTable[DestinationState, DestinationEvent] = TransitionTable(
    {
        _D.ASKING: {_V.HANDED: _D.HANDED, _V.PORT: _D.WAITING, _V.LOST: _D.ASKING, _V.GONE: _D.GONE},
        _D.HANDED: {_V.HANDED: _D.HANDED, _V.PORT: _D.READY, _V.LOST: _D.ASKING, _V.GONE: _D.GONE},
        _D.WAITING: {_V.HANDED: _D.READY, _V.RUNS: _D.ACTIVE, _V.LOST: _D.WAITING, _V.GONE: _D.GONE},
        _D.READY: {_V.HANDED: _D.READY, _V.RUNS: _D.ACTIVE, _V.LOST: _D.WAITING, _V.GONE: _D.GONE},
        _D.ACTIVE: {
            _V.HANDED: _D.ACTIVE,
            _V.RUNS: _D.ACTIVE,
            _V.LOST: _D.ACTIVE,
            _V.GONE: _D.GONE,
            _V.EXPIRED: _D.DONE,
        },
    }
)
DESTINATION_ENDS = frozenset({_D.GONE, _D.DONE})


def move_states_markdown() -> str:
    """Both tables for docs/protocol.md, drawn from the code."""
    parts = []
    for title, table in (("Source", SOURCE_TRANSITIONS), ("Destination", DESTINATION_TRANSITIONS)):
        parts.append(f"{title}:\n\n{table.markdown()}")
    return "\n".join(parts)
