"""Tells the kernel of addresses that move between endpoints: who may take which, and who has it.

Map `shared` is what from_guest checks sources by; map `endpoints` is where others' frames go. Both follow the core's
PortTable, in the same turn of the loop in which it changed.
"""

from divhook.adapters.bpf.programs import Programs
from divhook.agent.fastpath import FastPath
from divhook.core.addressing import Address
from divhook.core.endpoint import PortTable


class SharedMaps:
    """Keeps the two maps. What an agent before has left is gone once `keep_true` has run."""

    def __init__(self, programs: Programs, fastpath: FastPath, ports: PortTable) -> None:
        self._programs = programs
        self._fastpath = fastpath
        self._ports = ports
        self._told: dict[int, dict[Address, bool]] = {}

    def sync(self) -> None:
        """Bring the kernel up to date with what has changed. Raises BpfError; then the next call tries again."""
        for port in list(self._ports.moved):
            self._tell(port, self._wanted(port))
            self._ports.moved.discard(port)

    def _wanted(self, port: int) -> dict[Address, bool]:
        endpoint = self._ports.port(port)
        return {a: a in endpoint.held for a in endpoint.allowed} if endpoint is not None else {}

    def _tell(self, port: int, wanted: dict[Address, bool]) -> None:
        before = self._told.get(port, {})
        if before != wanted:
            self._programs.set_shared(port, wanted)
        for address in before.keys() | wanted.keys():
            holder = self._ports.at(address)
            if holder is not None and address in holder.held:
                self._fastpath.share_local(address, holder.address)
            elif before.get(address):
                self._fastpath.share_local(address, None)
        if wanted:
            self._told[port] = wanted
        else:
            self._told.pop(port, None)

    def keep_true(self) -> None:
        """Bring the kernel back to what it was told. Raises BpfError."""
        known = self._programs.shared()
        for port in known.keys() | self._told.keys():
            if known.get(port, {}) != self._told.get(port, {}):
                self._programs.set_shared(port, self._told.get(port, {}))
