"""Guests that move between the hosts of a World: taps, a QEMU on each side, hand-over channels, and who read what.

    talker ──▶ host A ─▶ tap ─▶ QEMU ─▶ guest      paused: QEMU reads one frame more, and holds it
                 │ copies (channel, in order, may break)
                 └────────▶ host B ─▶ tap ─▶ QEMU ─▶ guest

The machines of core/moves and Discovery are the real ones; what agent/guests.py does with them is played here. Every
frame that was sent into a tap is read by exactly one guest, or counted with a reason: invariant 5.
"""

from collections import Counter
from dataclasses import dataclass, field

from simulator import Frame, Guest, Host, World

from divhook.core.addressing import Address, group_mac
from divhook.core.discovery import ClaimState, Fenced
from divhook.core.moves.destination import DestinationMove
from divhook.core.moves.source import Lost, MovedOut, SendFrames, SourceAction, SourceMove, Stayed, knows
from divhook.core.moves.states import DestinationEvent, SourceEvent, SourceState
from divhook.core.moves.unread import Delivered, Unread
from divhook.core.wire.discovery import Claim

READ_S = (0.00001, 0.0004)
"""After how long a running guest reads what is in its tap."""
SAMPLE_S = 0.02


@dataclass
class Tap:
    """A port's queue, and the QEMU behind it."""

    queue: list[int] = field(default_factory=list)
    tx: int = 0
    running: bool = True
    holds: int | None = None
    gone: bool = False


@dataclass
class Channel:
    """In order, both ways, until it breaks; what is under way then is lost."""

    open: bool = False
    last: float = 0.0


@dataclass
class MoveRun:
    """One NIC's move. ends: when which way it ends was decided."""

    guest: Guest
    source: Host
    target: Host
    channel: Channel = field(default_factory=Channel)
    leaving: SourceMove | None = None
    coming: DestinationMove = field(default_factory=DestinationMove)
    over: bool = False
    announced: Claim | None = None


class MovingWorld(World):
    """A World in which guests move."""

    def __init__(self, seed: int, hosts: int, **options: object) -> None:
        self.taps: dict[tuple[int, Address], Tap] = {}
        self.moves: dict[Address, MoveRun] = {}
        self.where: dict[Address, Host] = {}
        self.read: Counter[int] = Counter()
        self.put: dict[int, set[str]] = {}
        self.counted: Counter[str] = Counter()
        self.sent_on = self.copies = 0
        super().__init__(seed, hosts, **options)  # type: ignore[arg-type]

    # --- taps and guests

    def put_into_tap(self, host: Host, address: Address, number: int, copy: bool = False) -> None:
        """A frame for a guest: into its tap, seen by the capture of a move."""
        tap = self.taps.get((host.number, address))
        self.put.setdefault(number, set())
        if tap is None or tap.gone:
            self.counted["no tap"] += 1
            self.put[number].add("no tap")
            return
        tap.queue.append(number)
        run = self.moves.get(address)
        if run is not None and run.source is host and run.leaving is not None and not copy:
            data = number.to_bytes(4, "big")
            self.act(run, run.leaving.on_frame(Delivered(self.ns, data)))
        self.at(self.now + self.rng.uniform(*READ_S), lambda: self.guest_reads(tap))

    def guest_reads(self, tap: Tap) -> None:
        """QEMU takes what waits; the guest of a running one has it."""
        if tap.gone:
            return
        while tap.queue:
            if not tap.running and tap.holds is not None:
                return
            number = tap.queue.pop(0)
            tap.tx += 1
            if tap.running:
                self.guest_has(number)
            else:
                tap.holds = number

    def guest_has(self, number: int) -> None:
        self.read[number] += 1
        if self.read[number] > 1:
            self.fail("5", "frame", number, "is read twice")

    @property
    def ns(self) -> int:
        return round(self.now * 1e9)

    def start_here(self, guest: Guest, host: Host) -> None:
        """A guest starts, with a tap."""
        self.taps[host.number, guest.address] = Tap()
        self.where[guest.address] = host
        self.start(guest, host)

    def _end(self, host: Host, frame: Frame, fate: str) -> None:
        super()._end(host, frame, fate)
        if fate == "delivered":
            self.put_into_tap(host, frame.target, frame.number)

    def _from_wire(self, host: Host, pmac: bytes, origin: Frame) -> None:
        run = self.moves.get(origin.target)
        moved = run is not None and run.source is host and run.leaving is not None
        if moved and run is not None and run.leaving is not None and run.leaving.state is SourceState.MOVED:
            agent = host.agent
            if agent is not None and agent.state(origin.target) is None and run.channel.open:
                self.say(run, lambda: self.late(run, origin))
        super()._from_wire(host, pmac, origin)

    def late(self, run: MoveRun, origin: Frame) -> None:
        """A late sender's frame at the new host."""
        if run.target.agent is not None and run.target.agent.state(run.guest.address) is ClaimState.ACTIVE:
            self.sent_on += 1
            self._frames += 1
            frame = Frame(self._frames, origin.source, origin.target, origin)
            self._end(run.target, frame, "delivered")

    # --- a move

    def begin(self, guest: Guest, source: Host, target: Host) -> MoveRun:
        """libvirt's `migrate` hook at the target."""
        self.note("move", guest, source, target)
        run = self.moves[guest.address] = MoveRun(guest, source, target)
        return run

    def say(self, run: MoveRun, what: "object") -> None:
        """Over the channel: arrives in order, or not at all where it breaks first."""
        assert callable(what)
        channel = run.channel
        if not channel.open:
            return
        channel.last = max(channel.last + 1e-7, self.now + self.rng.uniform(0.0001, 0.002))
        self.at(channel.last, lambda: what() if channel.open else None)

    def asked(self, run: MoveRun) -> None:
        """The target's question has come: the source captures, and connects."""
        claim = self.own_claim(run)
        if run.over or claim is None:
            return
        run.leaving = SourceMove(claim, run.target.pmac)
        tap = self.taps[run.source.number, run.guest.address]
        run.leaving.unread = Unread(tap.tx, 0)
        self.sample(run)

    def sample(self, run: MoveRun) -> None:
        """Every 20 ms, as agent/moves.py does."""
        unread = run.leaving.unread if run.leaving is not None else None
        if unread is not None and unread.stop_ns is None and not run.over:
            unread.sample(self.tx(run), 0)
            self.at(self.now + SAMPLE_S, lambda: self.sample(run))

    def link(self, run: MoveRun) -> None:
        """The source's agent has connected: it hands over."""
        leaving = run.leaving
        if leaving is None or not knows(leaving.state, SourceEvent.LINKED) or run.target.agent is None:
            return
        run.channel.open = True
        leaving.on_linked()
        self.say(run, lambda: self.handed(run, leaving.claim))

    def own_claim(self, run: MoveRun) -> Claim | None:
        agent = run.source.agent
        if agent is None or not run.source.ready:
            return None
        return next((claim for claim in agent.claims() if claim.address == run.guest.address), None)

    def handed(self, run: MoveRun, claim: Claim) -> None:
        if run.target.agent is None or run.coming.ended:
            return
        run.target.agent.observe(claim)
        run.coming.step(DestinationEvent.HANDED)
        self.ready(run)
        if run.announced is not None:
            self.say(run, lambda: self.active(run, run.announced))

    def port(self, run: MoveRun) -> None:
        """Hook `start` at the target."""
        if run.over:
            return
        self.taps[run.target.number, run.guest.address] = Tap(running=False, holds=-1)
        run.coming.step(DestinationEvent.PORT)
        self.ready(run)

    def ready(self, run: MoveRun) -> None:
        if run.coming.handed and (run.target.number, run.guest.address) in self.taps:
            self.say(run, lambda: self.told_ready(run))

    def told_ready(self, run: MoveRun) -> None:
        leaving = run.leaving
        if leaving is not None and knows(leaving.state, SourceEvent.READY):
            self.act(run, leaving.on_ready(self.tx(run)))

    def tx(self, run: MoveRun) -> int:
        return self.taps[run.source.number, run.guest.address].tx

    def pause(self, run: MoveRun) -> None:
        """QMP STOP at the source; told a little later."""
        self.note("pause", run.guest)
        tap, stop_ns = self.taps[run.source.number, run.guest.address], self.ns
        tap.running = False

        def told() -> None:
            leaving = run.leaving
            if leaving is not None and not run.over and knows(leaving.state, SourceEvent.PAUSED) and not tap.running:
                leaving.on_paused(stop_ns, 0)

        self.at(self.now + self.rng.uniform(0.0002, 0.004), told)

    def settle(self, run: MoveRun) -> None:
        """QMP MIGRATION completed: QEMU has read its last frame."""
        tap = self.taps[run.source.number, run.guest.address]
        self.guest_reads(tap)
        leaving = run.leaving
        if leaving is not None and not run.over and knows(leaving.state, SourceEvent.SETTLED) and not tap.running:
            self.act(run, leaving.on_settled(tap.tx))

    def commit(self, run: MoveRun) -> None:
        """The guest runs at the target; the source's QEMU ends a little later."""
        guest, target = run.guest, run.target
        self.note("runs at target", guest, target)
        self._run_guest(guest, target)  # and the source's libvirt has it as paused, for a moment more
        self.where[guest.address] = target
        tap = self.taps[target.number, guest.address]
        tap.running, tap.holds = True, None
        self.guest_reads(tap)
        run.coming.step(DestinationEvent.RUNS)
        if target.agent is not None and target.ready:
            run.announced = claim = self.activate(guest, target)
            self.say(run, lambda: self.active(run, claim))
        self.at(self.now + self.rng.uniform(0.01, 0.03), lambda: self.source_ends(run))

    def active(self, run: MoveRun, claim: Claim) -> None:
        """The source hears of the new claim: by the channel, or by the announcement."""
        leaving, agent = run.leaving, run.source.agent
        if leaving is None or agent is None or not knows(leaving.state, SourceEvent.ACTIVE):
            return
        self.act(run, leaving.on_active(claim, self.tx(run), 0, self.ns))
        self.after_call(run.source)

    def source_ends(self, run: MoveRun) -> None:
        key = (run.source.number, run.guest.address)
        tap = self.taps[key]
        leaving, agent = run.leaving, run.source.agent
        tap.gone = True
        run.source.running.pop(run.guest.address, None)
        self._members[group_mac(self.subnet(run.guest.address))].subtract((run.source.number,))
        if leaving is not None and knows(leaving.state, SourceEvent.ENDED):
            self.act(run, leaving.on_ended(tap.tx))
        if agent is not None and agent.state(run.guest.address) is not None and run.source.ready:
            agent.withdraw(run.guest.address, self.now, gone=leaving is None or leaving.state is not SourceState.MOVED)
            self.after_call(run.source)
        run.over = True

    def abort(self, run: MoveRun) -> None:
        """libvirt gives the move up: the target's QEMU and tap go, the guest runs on at the source."""
        self.note("abort", run.guest)
        run.over = True
        target_tap = self.taps.pop((run.target.number, run.guest.address), None)
        if target_tap is not None:
            target_tap.gone = True
        run.coming.step(DestinationEvent.GONE)
        tap = self.taps[run.source.number, run.guest.address]
        if tap.holds is not None:
            self.guest_has(tap.holds)
        tap.running, tap.holds = True, None
        leaving = run.leaving
        if leaving is not None and knows(leaving.state, SourceEvent.RESUMED):
            self.act(run, leaving.on_resumed())
        self.say(run, lambda: self.abandoned(run))
        self.guest_reads(tap)

    def abandoned(self, run: MoveRun) -> None:
        leaving = run.leaving
        if leaving is not None and knows(leaving.state, SourceEvent.ABANDONED):
            self.act(run, leaving.on_abandoned())

    def cut(self, run: MoveRun) -> None:
        """The channel breaks."""
        if not run.channel.open:
            return
        self.note("channel breaks", run.guest)
        run.channel.open = False
        if run.leaving is not None and knows(run.leaving.state, SourceEvent.LOST):
            run.leaving.on_lost()
        run.coming.step(DestinationEvent.LOST)

    def kill_agent(self, host: Host) -> None:
        """Its channels break, and what it captured is forgotten."""
        for run in self.moves.values():
            if host in (run.source, run.target):
                self.cut(run)
                if host is run.source:
                    run.leaving = None
        super().kill_agent(host)

    def act(self, run: MoveRun, actions: list[SourceAction]) -> None:
        """What agent/moves.py does with them."""
        for action in actions:
            if isinstance(action, SendFrames):
                numbers = [int.from_bytes(frame.data, "big") for frame in action.frames]
                self.say(run, lambda numbers=numbers: self.copied(run, numbers))
            elif isinstance(action, MovedOut):
                agent = run.source.agent
                assert agent is not None
                agent.moved_out(run.guest.address, action.claim, self.now)
            elif isinstance(action, Lost):
                self.counted[action.reason.name] += action.frames
            elif isinstance(action, Stayed):
                self.stayed(run, action.announce)

    def stayed(self, run: MoveRun, announce: bool) -> None:
        if announce and run.source.ready and run.guest.address in run.source.running:
            self.activate(run.guest, run.source)

    def copied(self, run: MoveRun, numbers: list[int]) -> None:
        if run.coming.on_frames(len(numbers)):
            self.copies += len(numbers)
            for number in numbers:
                self.put_into_tap(run.target, run.guest.address, number, copy=True)

    def _handle(self, host: Host, event: object) -> None:
        if isinstance(event, Fenced):
            run = self.moves.get(event.address)
            if run is not None and run.source is host and event.owner.host == run.target.pmac:
                self.active(run, event.owner)
                agent = host.agent
                if agent is not None and agent.state(event.address) is ClaimState.FENCED:
                    agent.moved_out(event.address, event.owner, self.now)  # paused: moved without a hand-over
                return
        super()._handle(host, event)
