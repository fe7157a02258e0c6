"""What each guest sent and received: the programs' part and the agent's, added up.

    sent      diverted to the agent + forwarded + ended in the kernel (answered or dropped)
    received  forwarded to it + answers of the kernel to its ARP + frames that the agent sent it

So both are what the guest's own NIC counts, but for a segmented frame, which may count as one or by its segments, and
frames that the kernel drops ahead of tc. The programs count since the port exists, the agent since its own start.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol, Self

from divhook.abi.entries import TrafficCount
from divhook.core.endpoint import PORT_WIRE
from divhook.core.reasons import DropReason
from divhook.core.wire.arp import ARP_LENGTH
from divhook.core.wire.ethernet import ETH_HEADER

ARP_ANSWER_BYTES = ETH_HEADER + ARP_LENGTH


class KernelCounters(Protocol):
    """What is asked of Programs."""

    def traffic(self, port_id: int) -> TrafficCount:
        """What was handed on for a port."""

    def drop_counters(self) -> Mapping[tuple[int, DropReason | int], tuple[int, int]]:
        """(port id, reason) → (packets, bytes)."""


@dataclass(slots=True)
class Tally:
    """Frames and their bytes."""

    packets: int = 0
    octets: int = 0

    def add(self, packets: int, octets: int) -> Self:
        """So many more."""
        self.packets += packets
        self.octets += octets
        return self


class Traffic:
    """All ports at one moment. delivered: what the agent itself sent into each port's tap."""

    def __init__(self, kernel: KernelCounters, delivered: Mapping[int, Tally]) -> None:
        self._kernel = kernel
        self._delivered = delivered
        self._ended: dict[int, Tally] = {}
        self._answered: dict[int, int] = {}
        for (port, reason), (packets, octets) in kernel.drop_counters().items():
            self._ended.setdefault(port, Tally()).add(packets, octets)
            if reason == DropReason.CONSUMED and port != PORT_WIRE:
                self._answered[port] = packets

    def forwarded(self, port: int) -> TrafficCount:
        """What the programs handed on."""
        return self._kernel.traffic(port)

    def answered(self, port: int) -> int:
        """ARP requests that the kernel answered."""
        return self._answered.get(port, 0)

    def sent(self, port: int) -> Tally:
        """By the guest."""
        kernel, ended = self.forwarded(port), self._ended.get(port, Tally())
        packets = kernel.diverted_packets + kernel.from_packets + ended.packets + kernel.uncounted_drops
        return Tally(packets, kernel.diverted_bytes + kernel.from_bytes + ended.octets)

    def received(self, port: int) -> Tally:
        """By the guest."""
        kernel, agent, answered = self.forwarded(port), self._delivered.get(port, Tally()), self.answered(port)
        octets = kernel.to_bytes + agent.octets + answered * ARP_ANSWER_BYTES
        return Tally(kernel.to_packets + agent.packets + answered, octets)
