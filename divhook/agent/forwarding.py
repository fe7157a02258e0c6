"""Endpoints that have moved, in core and kernel alike, and what comes late for them.

From here: what comes late is sent on, as long as something does. To here: it is taken from the host that sends it on.
"""

import asyncio
import contextlib
import time
from collections.abc import Callable, Mapping

from divhook.adapters.bpf.errors import BpfError
from divhook.agent.dataplane import Dataplane
from divhook.agent.move_sides import Leaving
from divhook.agent.nic import Key
from divhook.agent.ports import tell_kernel
from divhook.core.addressing import Address, Mac
from divhook.core.endpoint import PORT_WIRE
from divhook.core.moves.messages import MoveMessage, emit
from divhook.core.moves.source import FORWARD_S
from divhook.core.moves.states import SourceState
from divhook.core.outputs import Drop, ToNewHost
from divhook.core.reasons import DropReason

LOOK_S, LOOK_CLOSELY_S = 0.1, 2.0
"""How often the kernel is asked what it has sent on; less often when it has sent nothing for so long."""


class Forwarding:
    """This host's. leaving: whether the move of an endpoint from here is not over yet, and so will end it."""

    def __init__(self, plane: Dataplane, leaving: Callable[[Address], bool]) -> None:
        self._plane = plane
        self._leaving = leaving
        self._loop = asyncio.get_running_loop()

    def begin(self, address: Address, host: Mac) -> None:
        """What comes late for an endpoint that has moved to a host is sent on."""
        self._plane.pipeline.moved[address] = host
        self._tell(address, host)

    def end(self, address: Address | None) -> None:
        """Nothing is sent on any more, were it but by the word of the agent before this one."""
        if address is not None and self._plane.pipeline.moved.pop(address, None) is not None:
            self._tell(address, None)

    def _tell(self, address: Address, host: Mac | None) -> None:
        tell_kernel(self._plane.fastpath.forward, address, host, self._plane.now())

    def sent_on(self, address: Address) -> int:
        """How many packets the kernel has sent on; begins anew with each entry. Raises BpfError."""
        return self._plane.fastpath.sent_on(address)

    def adopted(self, address: Address, host: Mac) -> None:
        """The agent before this one had it sent on: it is, for a while."""
        self._plane.pipeline.moved[address] = host
        self._loop.call_later(FORWARD_S, self._not_adopted, address, host)

    def _not_adopted(self, address: Address, host: Mac) -> None:
        if not self._leaving(address) and self._plane.pipeline.moved.get(address) == host:
            self.end(address)

    def came_from(self, address: Address, host: Mac | None) -> None:
        """An endpoint of this host was on that one, which sends on what still comes there; None: no more."""
        former = self._plane.pipeline.former
        if host is None:
            former.pop(address, None)
        else:
            former[address] = host
        tell_kernel(self._plane.fastpath.came_from, address, host)


class LateSenders:
    """What still comes for NICs that have moved from here: sent on by the kernel, or over the channel, and noted.

    leaving: the moves. tell: says to the other agent what is noted of one.
    """

    def __init__(
        self,
        plane: Dataplane,
        forwarding: Forwarding,
        leaving: Mapping[Key, Leaving],
        tell: Callable[[Leaving], None],
    ) -> None:
        self._plane = plane
        self._forwarding = forwarding
        self._leaving = leaving
        self._tell = tell
        self._loop = asyncio.get_running_loop()

    def packet(self, packet: ToNewHost) -> None:
        """One that the kernel has left to the agent."""
        leaving = next((each for each in self._leaving.values() if each.move.claim.address == packet.address), None)
        channel = leaving.channel if leaving is not None else None
        if leaving is None or channel is None or not channel.send(emit(MoveMessage.LATE, packet.host + packet.packet)):
            self._plane.execute([Drop(DropReason.MOVE_NOT_HANDED_OVER, PORT_WIRE, packet.packet)])
            return
        self._noted(leaving, 1)

    def watch(self, leaving: Leaving) -> None:
        """From now on what the kernel sends on is noted, too."""
        self._loop.call_later(LOOK_S, self._look, leaving)

    def _look(self, leaving: Leaving) -> None:
        if self._leaving.get(leaving.nic.key) is not leaving or leaving.move.state is not SourceState.MOVED:
            return
        before = leaving.sent_on
        with contextlib.suppress(BpfError):
            leaving.sent_on = self._forwarding.sent_on(leaving.move.claim.address)
        new = leaving.sent_on - before if leaving.sent_on >= before else leaving.sent_on
        if new:
            self._noted(leaving, new)
        elif leaving.told_late != leaving.record.late:
            leaving.told_late = leaving.record.late
            self._tell(leaving)
        closely = self._loop.time() - leaving.used_s < LOOK_CLOSELY_S
        self._loop.call_later(LOOK_S if closely else LOOK_CLOSELY_S, self._look, leaving)

    def _noted(self, leaving: Leaving, packets: int) -> None:
        leaving.used_s = self._loop.time()
        leaving.record.late += packets
        leaving.record.late_at_s = time.time()
