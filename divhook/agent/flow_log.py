"""The flow log of this host: what the programs and the agent tell of flows, in one stream, to whoever listens."""

import logging
from collections import OrderedDict, deque
from collections.abc import Callable, Iterable

from divhook.abi.policy_entries import LOG_RATE, unpack_flow_event
from divhook.core.discovery.limits import TokenBucket
from divhook.core.flow_log import FlowEvent

MAX_RECENT = 4096
"""Events kept for who asks later."""
MAX_LISTENERS = 64
MAX_BUCKETS = 4096

Listener = Callable[[FlowEvent], None]
log = logging.getLogger(__name__)


class FlowLog:
    """`recent`: the last events, of all `told`. lost: the agent's own, above the rate of their port."""

    def __init__(self) -> None:
        self.recent: deque[FlowEvent] = deque(maxlen=MAX_RECENT)
        self.lost = 0
        self.told = 0
        self._listeners: list[Listener] = []
        self._buckets: OrderedDict[int, TokenBucket] = OrderedDict()

    def listen(self, listener: Listener) -> Callable[[], None]:
        """Call for every event from now on; returns what ends it. Raises ValueError where there are too many."""
        if len(self._listeners) >= MAX_LISTENERS:
            raise ValueError(f"more than {MAX_LISTENERS} follow the flow log at once")
        self._listeners.append(listener)
        return lambda: self._listeners.remove(listener) if listener in self._listeners else None

    def kernel(self, records: Iterable[bytes]) -> None:
        """Records of the ring. One that this version cannot read is told and left out."""
        for record in records:
            try:
                self._tell(unpack_flow_event(record))
            except ValueError as error:
                log.error("a record of the flow log cannot be read: %s", error)

    def agent(self, event: FlowEvent) -> None:
        """Of a packet that the agent decided, within the rate of its port."""
        bucket = self._buckets.get(event.port)
        if bucket is None:
            bucket = self._buckets[event.port] = TokenBucket(LOG_RATE.packets_per_s, LOG_RATE.burst_packets)
            if len(self._buckets) > MAX_BUCKETS:
                self._buckets.popitem(last=False)
        if bucket.take(event.time_s):
            self._tell(event)
        else:
            self.lost += 1

    def _tell(self, event: FlowEvent) -> None:
        self.recent.append(event)
        self.told += 1
        for listener in list(self._listeners):
            listener(event)
