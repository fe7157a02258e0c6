"""Endpoints that have moved, in core and kernel alike.

From here: what comes late is sent on, as long as something does. To here: it is taken from the host that sends it on.
"""

import asyncio
from collections.abc import Callable

from divhook.agent.dataplane import Dataplane
from divhook.agent.ports import tell_kernel
from divhook.core.addressing import Address, Mac
from divhook.core.moves.source import FORWARD_S


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
