"""A guest's frames, added up from what the programs and the agent counted."""

from dataclasses import dataclass, field

from divhook.abi.entries import TrafficCount
from divhook.agent.traffic import Tally, Traffic
from divhook.core.reasons import DropReason


@dataclass
class Kernel:
    """Counters of the programs."""

    ports: dict[int, TrafficCount] = field(default_factory=dict)
    drops: dict[tuple[int, DropReason | int], tuple[int, int]] = field(default_factory=dict)

    def traffic(self, port_id: int) -> TrafficCount:
        return self.ports.get(port_id, TrafficCount())

    def drop_counters(self) -> dict[tuple[int, DropReason | int], tuple[int, int]]:
        return self.drops


def test_every_way_that_a_frame_can_take_counts_once_at_its_own_port() -> None:
    kernel = Kernel(
        {3: TrafficCount(1, 100, 20, 2_000, 300, 30_000, uncounted_drops=4), 5: TrafficCount(diverted_packets=9)},
        {
            (3, DropReason.SPOOF_MAC): (50, 5_000),
            (3, 200): (600, 60_000),  # a reason of another version
            (3, DropReason.CONSUMED): (7_000, 294_000),  # ARP: each was answered
            (0, DropReason.CONSUMED): (1, 1),
            (5, DropReason.SPOOF_IPV4): (1, 60),
        },
    )
    traffic = Traffic(kernel, {3: Tally(80_000, 8_000_000), 5: Tally(1, 1)})
    assert traffic.sent(3) == Tally(1 + 20 + 4 + 50 + 600 + 7_000, 100 + 2_000 + 5_000 + 60_000 + 294_000)
    assert traffic.received(3) == Tally(300 + 7_000 + 80_000, 30_000 + 7_000 * 42 + 8_000_000)
    assert (traffic.answered(3), traffic.answered(5)) == (7_000, 0)
    assert traffic.forwarded(3) == kernel.ports[3]
    assert (traffic.sent(5), traffic.received(5)) == (Tally(10, 60), Tally(1, 1))


def test_a_port_that_nobody_has_used_counts_nothing() -> None:
    traffic = Traffic(Kernel(), {})
    assert (traffic.sent(8), traffic.received(8)) == (Tally(), Tally())
