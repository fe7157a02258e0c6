"""The two sides of a move as the agent holds them: machine, record, channel, and the tap that is watched or filled."""

from typing import Protocol

from divhook.adapters.tap_capture import TapSender
from divhook.agent.move_channel import Channel
from divhook.agent.move_record import MoveRecord
from divhook.agent.move_tap import TapWatch
from divhook.agent.nic import Nic
from divhook.core.addressing import Mac
from divhook.core.moves.destination import DestinationMove
from divhook.core.moves.messages import Handover
from divhook.core.moves.source import SourceMove
from divhook.core.moves.unread import RING_BYTES
from divhook.core.wire.discovery import Claim

QUEUE_FRAMES = 4096
"""Length of the tap's queue at the destination; as many as the source keeps for it."""


class Owner(Protocol):
    """Guests: who keeps NICs, ports and claims."""

    def all(self) -> list[Nic]:
        """Every NIC."""

    def of(self, guest_uuid: str) -> list[Nic]:
        """Those of one guest."""

    def resumed(self, guest_uuid: str) -> None:
        """The guest runs here."""

    def may_speak(self, nic: Nic) -> None:
        """All is ready for a NIC that comes in."""

    def leaving(self, nic: Nic, host: Mac | None) -> None:
        """A NIC is about to move to a host, which is ready for it; None: it stays."""

    def moved_out(self, nic: Nic, claim: Claim) -> None:
        """Another host holds it now."""

    def stayed(self, nic: Nic, announce: bool) -> None:
        """A move was given up."""

    def handed_over(self, nic: Nic, handover: Handover) -> None:
        """What the former host says of it."""

    def handover_of(self, nic: Nic, claim: Claim) -> Handover:
        """What to say of it to the next host."""

    def flows_of(self, nic: Nic, within_s: float) -> list[bytes] | None:
        """Its connections that were seen within so long, as the other host takes them; None: not tracked here."""

    def take_flows(self, nic: Nic, exported: bytes) -> int:
        """Connections from the former host. Raises ValueError."""

    def pick_up(self, nic: Nic) -> None:
        """It came without its connections: take up those in mid-stream that policy allows."""


class Leaving:
    """A NIC that leaves: its machine, the capture of its tap, the channel."""

    def __init__(self, nic: Nic, move: SourceMove, record: MoveRecord) -> None:
        self.nic = nic
        self.move = move
        self.record = record
        self.watch: TapWatch | None = None
        self.channel: Channel | None = None
        self.ended_s = 0.0
        self.used_s = 0.0
        self.sent_on = 0
        self.told_late = 0
        self.flows_s = 0.0
        self.noted_first = False

    def counters(self) -> tuple[int, int]:
        """(tx_packets, tx_dropped) of its tap."""
        return self.watch.counters() if self.watch is not None else (0, 0)

    def drain(self) -> None:
        """Read all that its tap has got."""
        if self.watch is not None:
            self.watch.drain()

    def look(self) -> bool:
        """Find out what the guest has not seen, which is paused now. False where that can't be told yet."""
        return self.watch is not None and self.watch.look()

    def let_go(self) -> None:
        """Its tap may go."""
        if self.watch is not None:
            self.watch.let_go()


class Coming:
    """A NIC that comes, and what was sent to it before it could be put into its tap.

    loaded: QEMU has the state of the guest's NIC. Before that it reads one frame with a shorter virtio_net_hdr than the
    guest's driver has agreed on, holds it, and gives the guest rubbish once it runs (virtio_net_set_mrg_rx_bufs in
    QEMU's hw/net/virtio-net.c changes the length).
    """

    def __init__(self, nic: Nic, record: MoveRecord) -> None:
        self.nic = nic
        self.move = DestinationMove()
        self.record = record
        self.channel: Channel | None = None
        self.sender: TapSender | None = None
        self.loaded = False
        self._waiting: list[bytes] = []
        self._waiting_bytes = 0
        self.announced: Claim | None = None
        self.flows = 0

    def kept(self) -> list[bytes]:
        """What was kept, which is not any more."""
        kept, self._waiting, self._waiting_bytes = self._waiting, [], 0
        return kept

    def take(self, frames: list[bytes]) -> int:
        """Into the tap, or kept for it. How many found no room."""
        if not self.loaded or not self.move.on_frames(len(frames)):
            return sum(1 for frame in frames if not self._keep(frame))
        if not self.record.copied:
            self.record.note(f"first frames from the source ({len(frames)})")
        sender = self.sender
        failed = sum(1 for frame in frames if sender is None or not sender.send(frame))
        self.record.copied += len(frames) - failed
        return failed

    def _keep(self, frame: bytes) -> bool:
        if len(self._waiting) >= QUEUE_FRAMES or self._waiting_bytes + len(frame) > RING_BYTES:
            return False
        self._waiting.append(frame)
        self._waiting_bytes += len(frame)
        return True
