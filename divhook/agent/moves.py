"""Moving guests: hooks, libvirt's and QEMU's events, and the channel, put to the machines of core/moves.

One move is that of one NIC. Nothing here makes libvirt wait: hooks only start things. A hand-over that is late, or
cannot be had, leaves the announcement, and the record says so.
"""

import asyncio
import contextlib
import json
import logging
import time
from collections.abc import Callable, Coroutine
from typing import Any

from divhook.adapters.handover import Pinned, StrangerError
from divhook.adapters.libvirt import EventKind, GuestEvent
from divhook.adapters.tap_capture import TapSender, queue_length
from divhook.adapters.tap_hold import qemu_pid
from divhook.agent import move_contents
from divhook.agent.dataplane import Dataplane
from divhook.agent.forwarding import Forwarding, LateSenders
from divhook.agent.move_channel import HANDSHAKE_S, Channel
from divhook.agent.move_record import MoveRecord, records
from divhook.agent.move_sides import QUEUE_FRAMES, Coming, Leaving, Owner
from divhook.agent.move_tap import TapWatch
from divhook.agent.nic import Key, Nic
from divhook.core.addressing import Address, mac_text
from divhook.core.endpoint import PORT_WIRE
from divhook.core.keys import KeyRing
from divhook.core.moves.asking import Asked, HostAddress, MoveQuestions
from divhook.core.moves.destination import LATE_S
from divhook.core.moves.messages import (
    Handover,
    MoveMessage,
    MoveMessageError,
    claim_to_json,
    claim_untrusted,
    counters_untrusted,
    emit,
    emit_frames,
    emit_handover,
    late_untrusted,
    notes_untrusted,
    object_untrusted,
    parse_frames_untrusted,
    parse_handover_untrusted,
)
from divhook.core.moves.source import (
    FORWARD_S,
    LINK_S,
    Lost,
    MovedOut,
    SendCommitted,
    SendFlows,
    SendFrames,
    SourceAction,
    SourceMove,
    Stayed,
    knows,
)
from divhook.core.moves.states import DestinationEvent, SourceEvent, SourceState
from divhook.core.outputs import Drop
from divhook.core.reasons import DropReason
from divhook.core.wire.discovery import Claim

MAX_MOVES = 128
"""NICs that leave, and that come, at one time; more are announced only."""
HANDOVER_S = 5.0
"""How long a new connection may take to say what it hands over."""
LOOK_S, LOOK_TRIES = 0.01, 10
"""How often, and how many times more, it is looked whether what the paused guest has not seen can be told."""
SETTLE_S = 0.002
SETTLE_TRIES = 20
"""What QEMU takes, once it has told that it is done, to have read its last frame: looked at so often, so far apart."""
PAUSE_SLACK_NS = 3_000_000
"""How much earlier than libvirt's SUSPENDED the pause was, where QEMU's own event is missing."""
HOLD_S = 1.0
"""How long a tap is held after its port is gone, for frames that are on their way into it."""
PREPARE_AGAIN_S = 20.0
"""How often the hosts of talkers are told of a move whose copy lasts: they remember it for a minute."""
LOADED_STATE = "completed"
"""In which QEMU's migration is at the destination, once the guest can go on there."""
SETTLED_STATES = frozenset({"completed", "postcopy-active"})
UNMOVED_STATES = frozenset({"failed", "cancelled", "cancelling"})
"""In which a migration of QEMU's leaves the guest where it was."""
FLOWS_PER_MESSAGE = 4096
"""Connections in one message: some 350 KiB."""
FLOWS_AGAIN_S = 1.0
"""Connections that were seen so long before the first telling are told again at the pause."""
ALL_FLOWS_S = 1e9
MIGRATED = 3  # VIR_DOMAIN_EVENT_STOPPED_MIGRATED

log = logging.getLogger(__name__)


class Moves:
    """Every move of this host."""

    def __init__(
        self,
        dataplane: Dataplane,
        questions: MoveQuestions,
        owner: Owner,
        pinned: Pinned,
        pid_of: Callable[[str], int] = qemu_pid,
    ) -> None:
        """pid_of: of a guest's QEMU, by the guest's name; raises OSError or ValueError."""
        self.pinned = pinned
        self._pid_of = pid_of
        self.records = records()
        self._plane = dataplane
        self._questions = questions
        self._owner = owner
        self._leaving: dict[Key, Leaving] = {}
        self._coming: dict[Key, Coming] = {}
        self._paused: set[str] = set()
        self._migrating: set[str] = set()  # QEMU sends them, to another host or to a file
        self._tasks: set[asyncio.Task[None]] = set()
        self._server: asyncio.Server | None = None
        self._connections = 0
        self._loop = asyncio.get_running_loop()
        self.forwarding = Forwarding(dataplane, self._is_leaving)
        self.late_senders = LateSenders(dataplane, self.forwarding, self._leaving, self._say_source_notes)
        dataplane.fastpath.on_forwarded = self.forwarding.adopted

    def _is_leaving(self, address: Address) -> bool:
        return any(each.move.claim.address == address for each in self._leaving.values())

    async def listen(self, address: HostAddress, port: int) -> None:
        """Take hand-overs at this address. Raises OSError."""
        self._server = await asyncio.start_server(
            self._served, str(address), port, ssl=self.pinned.server, ssl_handshake_timeout=HANDSHAKE_S
        )
        self._questions.where = (address, port)

    async def stop(self) -> None:
        """Close everything. Moves under way go on without us, announced only."""
        if self._server is not None:
            self._server.close()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for leaving in list(self._leaving.values()):
            self._close_source(leaving)
        for coming in list(self._coming.values()):
            self._loaded(coming)  # one may be spoilt, and all would be lost
            self._close_destination(coming)

    def counts(self) -> dict[str, int]:
        """For status and metrics."""
        return {
            "leaving": len(self._leaving),
            "coming": len(self._coming),
            "remembered": len(self.records),
            "copied": sum(r.copied for r in self.records if r.role == "source"),
            "late": sum(r.late for r in self.records),
        }

    # ------------------------------------------------------------------ source

    def asked(self) -> None:
        """Hosts that are to run guests of ours have asked for the hand-over."""
        for question in self._questions.asked():
            nic = next((n for n in self._owner.all() if n.guest_id == question.guest_id and not n.incoming), None)
            if nic is not None and nic.address is not None and nic.port:
                self._ask_one(nic, question)

    def _ask_one(self, nic: Nic, question: Asked) -> None:
        old = self._leaving.get(nic.key)
        if old is not None and (old.move.peer == question.peer and not old.move.ended):
            return
        claim = next((c for c in self._plane.pipeline.discovery.claims() if c.address == nic.address), None)
        if claim is None or len(self._leaving) >= MAX_MOVES:
            return
        if old is not None:
            self._close_source(old)
        record = MoveRecord("source", nic.guest, nic.mac, question.peer, nic.address)
        record.note("asked for the hand-over")
        self.records.append(record)
        leaving = self._leaving[nic.key] = Leaving(nic, SourceMove(claim, question.peer), record)
        self._watch(leaving)
        if nic.guest_uuid in self._paused:  # by its owner: no pause will be told
            leaving.move.on_paused(time.time_ns(), leaving.counters()[1])
            record.note("the guest is paused already")
        self._spawn(self._link(leaving, question))

    def _watch(self, leaving: Leaving) -> None:
        nic, move = leaving.nic, leaving.move
        try:
            leaving.watch = TapWatch(
                nic, leaving.record, self._pid_of, lambda frame: self._act(leaving, move.on_frame(frame))
            )
        except OSError as error:
            log.warning("%s: its tap cannot be watched, so what comes during its pause is lost: %s", nic, error)
            return
        move.unread = leaving.watch.unread

    async def _link(self, leaving: Leaving, question: Asked) -> None:
        move, record = leaving.move, leaving.record
        try:
            channel = await Channel.connect(self.pinned, question.address, question.port, LINK_S)
        except (OSError, StrangerError) as error:
            self._lost(
                leaving, f"no hand-over: {question.address} port {question.port}: {error or 'no answer in time'}"
            )
            return
        if move.ended:
            channel.close()
            return
        leaving.channel = channel
        if not knows(move.state, SourceEvent.LINKED):
            channel.close()
            return
        move.on_linked()
        channel.send(emit_handover(self._owner.handover_of(leaving.nic, move.claim)))
        record.note("handed over")
        why = await channel.run(lambda kind, body: self._from_destination(leaving, kind, body))
        if not move.ended:
            self._lost(leaving, f"the channel ended: {why}")

    def _lost(self, leaving: Leaving, why: str) -> None:
        move = leaving.move
        if knows(move.state, SourceEvent.LOST):
            told = move.state is not SourceState.MOVED
            move.on_lost()
            leaving.record.note(why)
            if told:
                log.warning("%s: %s; its new host announces it all the same", leaving.nic, why)
        self._state(leaving)
        if move.state is SourceState.ALONE:
            self._loop.call_later(FORWARD_S, self._expire_source, leaving)

    def _from_destination(self, leaving: Leaving, kind: MoveMessage, body: bytes) -> None:
        move, record = leaving.move, leaving.record
        if kind is MoveMessage.READY and knows(move.state, SourceEvent.READY):
            record.note("the destination is ready")
            leaving.drain()
            self._owner.leaving(leaving.nic, move.peer)
            self._act(leaving, move.on_ready(leaving.counters()[0]))
            self._loop.call_later(PREPARE_AGAIN_S, self._prepare_again, leaving)
        elif kind is MoveMessage.ACTIVE:
            claim = claim_untrusted(object_untrusted(body))
            if claim.address != move.claim.address or claim.guest_id != move.claim.guest_id or claim.host != move.peer:
                raise MoveMessageError("ACTIVE for another endpoint")
            self.active_elsewhere(leaving.nic, claim)
        elif kind is MoveMessage.ABANDONED and knows(move.state, SourceEvent.ABANDONED):
            record.note("the destination gave it up")
            self._act(leaving, move.on_abandoned())
        elif kind is MoveMessage.NOTES:
            record.other = notes_untrusted(body)
        self._state(leaving)

    def _prepare_again(self, leaving: Leaving) -> None:
        """The guest's memory takes long to copy: its talkers must still know whereto when it is paused."""
        if self._leaving.get(leaving.nic.key) is leaving and leaving.move.state is SourceState.READY:
            self._owner.leaving(leaving.nic, leaving.move.peer)
            self._loop.call_later(PREPARE_AGAIN_S, self._prepare_again, leaving)

    def active_elsewhere(self, nic: Nic, claim: Claim) -> bool:
        """The destination says so, on the channel or by its announcement. False where nothing moves there."""
        leaving = self._leaving.get(nic.key)
        if leaving is None or claim.host != leaving.move.peer or not knows(leaving.move.state, SourceEvent.ACTIVE):
            return False
        if leaving.move.state is SourceState.MOVED:
            return True
        leaving.record.note("active at the destination")
        self._plane.drain()
        leaving.drain()
        self._act(leaving, leaving.move.on_active(claim, *leaving.counters(), time.time_ns()))
        self._state(leaving)
        return True

    def event(self, event: GuestEvent) -> None:
        """libvirt's, and QEMU's through it."""
        uuid, kind = event.guest_uuid, event.kind
        if kind in (EventKind.QEMU_STOP, EventKind.SUSPENDED):
            self._paused.add(uuid)
        elif kind in (EventKind.RESUMED, EventKind.STOPPED, EventKind.QEMU_RESUME):
            self._paused.discard(uuid)
        if kind is EventKind.QEMU_MIGRATION and event.detail not in UNMOVED_STATES:
            self._migrating.add(uuid)
        elif kind in (EventKind.QEMU_MIGRATION, EventKind.RESUMED, EventKind.STOPPED):
            self._migrating.discard(uuid)
        for leaving in [each for key, each in self._leaving.items() if key[0] == uuid]:
            self._source_event(leaving, event)
        for coming in [each for key, each in self._coming.items() if key[0] == uuid]:
            if kind is EventKind.QEMU_MIGRATION and event.detail == LOADED_STATE and not coming.loaded:
                coming.record.note("all is loaded (QEMU)", event.at_ns / 1e9)
                self._loaded(coming)
            elif kind is EventKind.QEMU_RESUME:
                coming.record.note("resumed (QEMU)", event.at_ns / 1e9)
                self._loaded(coming)
                self._owner.resumed(uuid)

    def _source_event(self, leaving: Leaving, event: GuestEvent) -> None:
        move, record, kind = leaving.move, leaving.record, event.kind
        if kind is EventKind.QEMU_STOP and knows(move.state, SourceEvent.PAUSED):
            record.note("paused (QEMU)", event.at_ns / 1e9)
            move.on_paused(event.at_ns, leaving.counters()[1])
            self._plane.drain()  # what it has sent goes out before it runs elsewhere
            self._look(leaving, LOOK_TRIES)
        elif kind is EventKind.SUSPENDED and knows(move.state, SourceEvent.PAUSED):
            move.on_paused(time.time_ns() - PAUSE_SLACK_NS, leaving.counters()[1])
        elif kind is EventKind.QEMU_MIGRATION and event.detail in SETTLED_STATES:
            record.note(f"migration {event.detail} (QEMU)", event.at_ns / 1e9)
            self._loop.call_later(SETTLE_S, self._settle, leaving)
        elif kind is EventKind.RESUMED and knows(move.state, SourceEvent.RESUMED):
            record.note("resumed here")
            self._act(leaving, move.on_resumed())
        elif kind is EventKind.STOPPED:
            if event.detail == MIGRATED or move.state is SourceState.MOVED:
                self._gone(leaving, "stopped, migrated")
            elif knows(move.state, SourceEvent.ABANDONED):
                record.note("the guest has ended")
                self._act(leaving, move.on_abandoned())
        self._state(leaving)

    def _look(self, leaving: Leaving, tries: int) -> None:
        """What can be told of a paused guest is told at once; else when QEMU says that it is done."""
        if leaving.look():
            self._settled(leaving)
        elif tries and leaving.move.state is SourceState.PAUSED:
            self._loop.call_later(LOOK_S, self._look, leaving, tries - 1)

    def _settle(self, leaving: Leaving, tries: int = SETTLE_TRIES) -> None:
        move = leaving.move
        if not knows(move.state, SourceEvent.SETTLED):
            return
        leaving.drain()
        if tries and move.unread is not None and not move.unread.settled(leaving.counters()[0]):
            self._loop.call_later(SETTLE_S, self._settle, leaving, tries - 1)
            return
        self._settled(leaving)

    def _settled(self, leaving: Leaving) -> None:
        self._act(leaving, leaving.move.on_settled(leaving.counters()[0]))
        self._state(leaving)

    def _gone(self, leaving: Leaving, what: str) -> None:
        """The guest's QEMU is gone here."""
        if not leaving.ended_s and knows(leaving.move.state, SourceEvent.ENDED):
            leaving.ended_s = self._loop.time()
            leaving.record.note(what)
            leaving.drain()
            self._act(leaving, leaving.move.on_ended(leaving.counters()[0]))
            self._loop.call_later(HOLD_S, leaving.let_go)

    def _act(self, leaving: Leaving, actions: list[SourceAction]) -> None:
        for action in actions:
            if isinstance(action, SendFrames):
                self._send_frames(leaving, [frame.data for frame in action.frames])
            elif isinstance(action, SendFlows):
                self._send_flows(leaving, action.changed)
            elif isinstance(action, SendCommitted):
                self._say(leaving.channel, MoveMessage.COMMITTED)
            elif isinstance(action, MovedOut):
                leaving.used_s = self._loop.time()
                self._say_counters(leaving)
                self._forward(leaving)
                self._owner.moved_out(leaving.nic, action.claim)
                self._loop.call_later(FORWARD_S, self._expire_source, leaving)
                self._loop.call_later(HOLD_S, leaving.let_go)
                self.late_senders.watch(leaving)
            elif isinstance(action, Lost):
                self._plane.execute([Drop(action.reason, PORT_WIRE)] * action.frames)
                leaving.record.note(f"{action.frames} frames lost: {action.reason.name.lower()}")
            elif isinstance(action, Stayed):
                self._say(leaving.channel, MoveMessage.ABANDONED)
                self._close_source(leaving)
                self._owner.leaving(leaving.nic, None)
                self._owner.stayed(leaving.nic, action.announce)

    def _say_counters(self, leaving: Leaving) -> None:
        if leaving.channel is not None and leaving.nic.port:
            counters = {"counters": move_contents.counters_of(leaving.nic, self._plane)}
            leaving.channel.send(emit(MoveMessage.COUNTERS, json.dumps(counters).encode()))

    def _send_flows(self, leaving: Leaving, changed: bool) -> None:
        now = self._loop.time()
        within_s = now - leaving.flows_s + FLOWS_AGAIN_S if changed else ALL_FLOWS_S
        leaving.flows_s = now
        flows = self._owner.flows_of(leaving.nic, within_s)
        if leaving.channel is None or flows is None:
            return
        leaving.record.note(f"{'changed' if changed else 'all'} connections: {len(flows)}")
        for first in range(0, len(flows), FLOWS_PER_MESSAGE):
            leaving.channel.send(emit(MoveMessage.FLOWS, b"".join(flows[first : first + FLOWS_PER_MESSAGE])))

    def _send_frames(self, leaving: Leaving, frames: list[bytes]) -> None:
        if not leaving.noted_first:
            leaving.noted_first = True
            leaving.record.note(f"first frames sent on ({len(frames)})")
        if leaving.channel is None or not leaving.channel.send(*emit_frames(frames)):
            self._act(leaving, [Lost(DropReason.MOVE_COPY_OVERFLOW, len(frames))])

    def _forward(self, leaving: Leaving) -> None:
        """What late senders bring goes over the channel, and is there taken as if it had come from the wire."""
        self.forwarding.begin(leaving.move.claim.address, leaving.move.peer)

    def _expire_source(self, leaving: Leaving) -> None:
        if leaving.move.ended or self._leaving.get(leaving.nic.key) is not leaving:
            return
        left_s = leaving.used_s + FORWARD_S - self._loop.time()
        if leaving.move.state is SourceState.MOVED and left_s > 0.01:
            self._loop.call_later(left_s, self._expire_source, leaving)
        elif knows(leaving.move.state, SourceEvent.EXPIRED):
            actions = leaving.move.on_expired()
            self._close_source(leaving)
            if not leaving.ended_s:
                self._act(leaving, actions)

    def _close_source(self, leaving: Leaving) -> None:
        self._state(leaving)
        if leaving.watch is not None:
            leaving.watch.close()
        if leaving.channel is not None:
            leaving.channel.close()
        if self._leaving.get(leaving.nic.key) is leaving:
            del self._leaving[leaving.nic.key]
            self.forwarding.end(leaving.move.claim.address)

    def leaves(self, nic: Nic) -> bool:
        """Whether the guest was paused to move away, or has moved: then its end here is no end."""
        leaving = self._leaving.get(nic.key)
        if leaving is None:
            return False
        return leaving.move.state not in (SourceState.ASKED, SourceState.LINKED, SourceState.READY, SourceState.STAYED)

    def may_have_moved(self, guest_uuid: str) -> bool:
        """Whether QEMU has sent it elsewhere, and it is paused since. One that shuts down is but paused."""
        return guest_uuid in self._paused and guest_uuid in self._migrating

    def replace_keys(self, keys: KeyRing, cluster: str) -> None:
        """Take a changed key file. Channels that are open stay."""
        self.pinned.replace(keys, cluster)

    def left(self, key: Key) -> bool:
        """Whether the NIC has moved away: what libvirt still lists of it here is about to end."""
        leaving = self._leaving.get(key)
        return leaving is not None and leaving.move.state is SourceState.MOVED

    # ------------------------------------------------------------------ destination

    def expect(self, nic: Nic) -> None:
        """Hook `migrate`: ask whoever runs it to hand it over."""
        old = self._leaving.get(nic.key)
        if old is not None:  # it comes back: nothing is sent on from here any more
            self._close_source(old)
        before = self._coming.pop(nic.key, None)
        if before is not None:
            self._close_destination(before)
        if len(self._coming) >= MAX_MOVES:
            return
        record = MoveRecord("destination", nic.guest, nic.mac)
        record.note("hook migrate")
        self.records.append(record)
        self._coming[nic.key] = Coming(nic, record)
        if not self._questions.ask(nic.guest_id, nic.mac, nic.placement.id, self._loop.time()):
            record.note("no hand-over: this agent does not listen for one")
        self._plane.inject(self._loop.time(), [])

    def port_ready(self, nic: Nic) -> None:
        """Hook `start`: the tap exists."""
        coming = self._coming.get(nic.key)
        if coming is None:
            return
        coming.record.note("hook start: the tap is there")
        coming.record.address = nic.address
        if queue_length(nic.ifindex, QUEUE_FRAMES):
            with contextlib.suppress(OSError):
                coming.sender = TapSender(nic.ifindex)
        coming.move.step(DestinationEvent.PORT)
        if coming.channel is not None:
            self._ready(coming)

    def _ready(self, coming: Coming) -> None:
        if coming.nic.port and coming.sender is not None and coming.channel is not None:
            self._owner.may_speak(coming.nic)
            self._say(coming.channel, MoveMessage.READY)
            coming.record.note("ready: frames are queued")
            self._deliver(coming, coming.kept())
        self._coming_state(coming)

    def _loaded(self, coming: Coming) -> None:
        """QEMU has the state of the guest's NIC."""
        coming.loaded = True
        self._deliver(coming, coming.kept())

    def runs(self, nic: Nic, what: str = "runs here") -> None:
        """The guest runs here, and its claim is made."""
        coming = self._coming.get(nic.key)
        if coming is None or coming.announced is not None:
            return
        coming.announced = next((c for c in self._plane.pipeline.discovery.claims() if c.address == nic.address), None)
        coming.record.note(f"{what}: claimed and announced")
        if not coming.move.handed:
            coming.record.note("without a hand-over")
            log.warning("%s: came without a hand-over; what was sent to it during its pause is lost", nic)
        if not coming.flows:
            self._owner.pick_up(nic)
        self.forwarding.end(nic.address)
        if coming.record.peer is not None and nic.address is not None:
            self.forwarding.came_from(nic.address, coming.record.peer)
        coming.move.step(DestinationEvent.RUNS)
        self._loaded(coming)  # not before: of a channel that has ended, what it brought is taken from here on
        if coming.channel is not None and coming.announced is not None:
            coming.channel.send(emit(MoveMessage.ACTIVE, json.dumps(claim_to_json(coming.announced)).encode()))
        self._questions.answered(nic.guest_id)
        self._loop.call_later(1.0, self._say_notes, coming)
        self._loop.call_later(LATE_S + HANDOVER_S, self._expire_destination, coming)
        self._coming_state(coming)

    def first_frame(self, nic: Nic) -> None:
        """The first frame from the tap of a guest that comes in."""
        coming = self._coming.get(nic.key)
        if coming is not None and coming.announced is None:
            coming.record.note("first frame from the tap")

    def gone(self, nic: Nic) -> None:
        """The NIC is not here any more: libvirt gave the move up, the guest ended, or it has moved on."""
        leaving = self._leaving.get(nic.key)
        if leaving is not None and leaving.nic is nic:
            if self.leaves(nic):
                if leaving.move.state is not SourceState.MOVED:
                    self._forward(leaving)
                self._gone(leaving, "the tap is gone")
            elif knows(leaving.move.state, SourceEvent.ABANDONED):
                self._act(leaving, leaving.move.on_abandoned())
        coming = self._coming.get(nic.key)
        if coming is not None and coming.nic is nic:
            moved_on = leaving is not None and self.leaves(nic)
            if moved_on:
                self._say_notes(coming)
                return
            coming.move.step(DestinationEvent.GONE)
            coming.record.note("gone from here")
            self._say(coming.channel, MoveMessage.ABANDONED)
            self._say_notes(coming)
            self._close_destination(coming)

    async def _served(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        channel = Channel(reader, writer)
        if self._connections >= MAX_MOVES:
            channel.close()
            return
        self._connections += 1
        task = asyncio.current_task()
        if task is not None:
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
        held: list[Coming] = []
        timer = self._loop.call_later(HANDOVER_S, lambda: None if held else channel.close())
        try:
            self.pinned.check(writer.get_extra_info("ssl_object"))
            why = await channel.run(lambda kind, body: self._from_source(channel, held, kind, body))
            for coming in held:
                if coming.channel is channel:
                    coming.channel = None
                    if coming.move.step(DestinationEvent.LOST):
                        coming.record.note(f"the channel ended: {why}")
                        self._coming_state(coming)
        except StrangerError as error:
            log.warning("a hand-over was refused: %s", error)
        except asyncio.CancelledError:
            pass
        finally:
            timer.cancel()
            channel.close()
            self._connections -= 1

    def _from_source(self, channel: Channel, held: list[Coming], kind: MoveMessage, body: bytes) -> None:
        if kind is MoveMessage.HANDOVER:
            self._handed(channel, held, parse_handover_untrusted(body))
            return
        if not held:
            raise MoveMessageError(f"{kind.name} before HANDOVER")
        coming = held[0]
        if kind is MoveMessage.FRAMES:
            self._deliver(coming, parse_frames_untrusted(body))
        elif kind is MoveMessage.FLOWS:
            try:
                coming.flows += self._owner.take_flows(coming.nic, body)
            except ValueError as error:
                raise MoveMessageError(str(error)) from None
        elif kind is MoveMessage.LATE:
            host, packet = late_untrusted(body, coming.nic.address)
            coming.record.late += 1
            coming.record.late_at_s = time.time()
            now = self._loop.time()
            self._plane.inject(now, self._plane.pipeline.from_former(host, packet, now))
        elif kind is MoveMessage.COMMITTED and not coming.move.ended:
            coming.record.note("the source has committed")
            if coming.announced is None and coming.nic.port:
                self._owner.resumed(coming.nic.guest_uuid)
        elif kind is MoveMessage.COUNTERS:
            coming.nic.carried = counters_untrusted(body)
        elif kind is MoveMessage.ABANDONED:
            coming.record.note("the source gave it up")
            coming.kept()  # the guest has read them there
        elif kind is MoveMessage.NOTES:
            coming.record.other = notes_untrusted(body)
        self._coming_state(coming)

    def _handed(self, channel: Channel, held: list[Coming], handover: Handover) -> None:
        coming = next((c for c in self._coming.values() if c.nic.guest_id == handover.claim.guest_id), None)
        if coming is None or coming.move.ended or held:
            raise MoveMessageError("a hand-over that nobody asked for")
        if handover.claim.vmac != coming.nic.mac:
            raise MoveMessageError("a hand-over of another NIC")
        held.append(coming)
        coming.channel = channel
        coming.record.peer = handover.claim.host
        coming.record.note("handed over")
        self._questions.answered(handover.claim.guest_id)
        self._owner.handed_over(coming.nic, handover)
        self.forwarding.end(handover.claim.address)
        coming.record.address = coming.nic.address
        coming.move.step(DestinationEvent.HANDED)
        if coming.nic.port:
            self._ready(coming)
        if coming.announced is not None:
            channel.send(emit(MoveMessage.ACTIVE, json.dumps(claim_to_json(coming.announced)).encode()))

    def _deliver(self, coming: Coming, frames: list[bytes]) -> None:
        if not frames:
            return
        onward = self._leaving.get(coming.nic.key)
        if onward is not None and onward.move.state is SourceState.MOVED:  # it has moved on already
            self._send_frames(onward, frames)
            return
        failed = coming.take(frames)
        if failed:
            self._plane.execute([Drop(DropReason.MOVE_QUEUE_FULL, coming.nic.port)] * min(failed, QUEUE_FRAMES))

    def _say_notes(self, coming: Coming) -> None:
        if coming.channel is not None:
            coming.channel.send(emit(MoveMessage.NOTES, json.dumps({"notes": coming.record.lines()}).encode()))

    def _expire_destination(self, coming: Coming) -> None:
        coming.move.step(DestinationEvent.EXPIRED)
        self._close_destination(coming)

    def _close_destination(self, coming: Coming) -> None:
        self._coming_state(coming)
        if coming.announced is not None and self._coming.get(coming.nic.key) in (None, coming):
            self.forwarding.came_from(coming.announced.address, None)
        if coming.channel is not None:
            coming.channel.close()
        if coming.sender is not None:
            coming.sender.close()
            coming.sender = None
        self._questions.answered(coming.nic.guest_id)
        if self._coming.get(coming.nic.key) is coming:
            del self._coming[coming.nic.key]

    # ------------------------------------------------------------------ both

    def _state(self, leaving: Leaving) -> None:
        record, move = leaving.record, leaving.move
        changed = record.state != move.state.name.lower()
        record.state = move.state.name.lower()
        record.copied, record.unread = move.copied, move.unread_at_pause
        if changed and move.state in (SourceState.MOVED, SourceState.DONE):
            self._loop.call_later(1.0, self._say_source_notes, leaving)
        if changed:
            log.info("%s to host %s: %s", leaving.nic, mac_text(move.peer), record.state)

    def _say_source_notes(self, leaving: Leaving) -> None:
        if leaving.channel is not None:
            leaving.channel.send(emit(MoveMessage.NOTES, json.dumps({"notes": leaving.record.lines()}).encode()))

    @staticmethod
    def _coming_state(coming: Coming) -> None:
        state = coming.move.state.name.lower()
        if coming.record.state != state:
            coming.record.state = state
            log.info("%s comes: %s", coming.nic, state)

    @staticmethod
    def _say(channel: Channel | None, kind: MoveMessage) -> None:
        if channel is not None:
            channel.send(emit(kind))

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        async def guarded() -> None:
            try:
                await work
            except asyncio.CancelledError:
                raise
            except Exception:
                log.exception("a move met a bug; please report it with this trace")

        task = self._loop.create_task(guarded())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
