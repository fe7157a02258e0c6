"""A NIC that comes to this host: when frames may be queued for it, and when it is claimed. Table: states.py.

Invariant: nothing is claimed before the guest runs here, or libvirt has committed it to run here.
"""

from divhook.core.moves.states import DESTINATION_ENDS, DESTINATION_TRANSITIONS, DestinationEvent, DestinationState

LATE_S = 90.0
"""How long after its activation the former host may send frames on: a neighbour's lifetime and 30 s."""


class DestinationMove:
    """One NIC."""

    def __init__(self) -> None:
        self.state = DestinationState.ASKING
        self.received = 0
        self.late = 0
        """Of them, after the guest ran: they may have been overtaken."""

    @property
    def ended(self) -> bool:
        """Whether there is nothing left to do."""
        return self.state in DESTINATION_ENDS

    @property
    def handed(self) -> bool:
        """Whether the hand-over has come and its channel is there."""
        return self.state in (DestinationState.HANDED, DestinationState.READY)

    def step(self, event: DestinationEvent) -> bool:
        """Take an event; whether the state is another now. What comes after the end is ignored."""
        if self.state in DESTINATION_ENDS:
            return False
        before = self.state
        self.state = DESTINATION_TRANSITIONS.next(before, event)
        return self.state is not before

    def on_frames(self, count: int) -> bool:
        """Copies from the source: whether they go into the tap now."""
        if self.state not in (DestinationState.READY, DestinationState.ACTIVE):
            return False
        self.received += count
        if self.state is DestinationState.ACTIVE:
            self.late += count
        return True
