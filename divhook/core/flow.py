"""Flows: which packets belong together, so that policy can let replies pass. The twin of divhook/bpf/lib/flow.h.

    packet                                   flow                            class
    TCP SYN                                  none, or closed                 NEW
    TCP, any other                           none                            INVALID: no flow starts in mid-stream
    UDP, SCTP (by ports), other protocols    none                            NEW
    ICMP echo request / reply                none                            NEW / INVALID
    any of these                             live                            ESTABLISHED or REPLY, by its direction
    ICMP error                               quotes a packet of a live one   RELATED, else INVALID
    ICMP, any other                                                          UNTRACKED
    fragment after the first, with ports     of its first fragment           as its flow, or INVALID

A flow has one key for both directions. TCP is followed by what each side has sent and the other has acknowledged (SENT
and HEARD), without sequence numbers. Time ends a flow when it is looked up; room is made by forgetting the least
recently used. docs/adr/flow-state-per-port.md says why.

`judge` looks, `note` writes: between the two is the place of a verdict. Both work on any FlowStore: a FlowTable, or a
port's table in the kernel, so that packets which the agent forwards count as well.
"""

from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass, replace
from enum import IntEnum, unique
from typing import NamedTuple, Protocol

from divhook.core.addressing import Address, AddressPlan
from divhook.core.transitions import TransitionTable
from divhook.core.wire.icmp import ICMP_HEADER, TYPE_ECHO, TYPE_ECHO_REPLY
from divhook.core.wire.ipv4 import IPV4_HEADER, Header
from divhook.core.wire.ipv4 import Protocol as Ip

SCTP = 132
ROUTER_NUMBER = 1

_MIN_PAYLOAD: dict[int, int] = {Ip.ICMP: ICMP_HEADER, Ip.TCP: 20, Ip.UDP: 8, SCTP: 12}
"""Bytes of the transport header, for protocols whose flows are told apart by it."""
_PORTS = frozenset((Ip.TCP, Ip.UDP, SCTP))
_QUOTED = 8
"""Bytes of the transport header that an ICMP error quotes (RFC 792)."""
RELATED_TYPES = frozenset((3, 11, 12))
"""ICMP errors that end hosts must heed. Not source quench (RFC 6633), not redirect: guests have one router."""


@unique
class FlowKind(IntEnum):
    """What a key stands for: enum flow_kind of abi.h."""

    PAIR = 0  # either side may open it
    ECHO_BY_LOW = 1  # ICMP echo: requests come from the lower address
    ECHO_BY_HIGH = 2
    FRAGMENTS_BY_LOW = 3  # a datagram in fragments, sent by the lower address: tells the flow
    FRAGMENTS_BY_HIGH = 4


@unique
class FlowClass(IntEnum):
    """What a packet is to the flows of a port: enum flow_class."""

    NEW = 1
    ESTABLISHED = 2
    REPLY = 3
    RELATED = 4
    INVALID = 5
    UNTRACKED = 6


@unique
class TcpState(IntEnum):
    """What one side of a connection has got to: enum flow_tcp."""

    NONE = 0
    SYN = 1  # sent SYN
    OPEN = 2  # its SYN was acknowledged
    FIN = 3  # sent FIN
    FIN_ACKED = 4  # its FIN was acknowledged
    RESET = 5  # either side sent RST: both are in it


@unique
class TcpEvent(IntEnum):
    """A segment, by its flags."""

    SYN = 1
    SYN_ACK = 2
    ACK = 3
    FIN = 4
    RST = 5


_S, _E = TcpState, TcpEvent


def _rows(**moves: dict[TcpEvent, TcpState]) -> dict[TcpState, dict[TcpEvent, TcpState]]:
    """Every state has every event: where none is named, it stays. RST ends all."""
    return {s: dict.fromkeys(_E, s) | {_E.RST: _S.RESET} | moves.get(s.name, {}) for s in _S}


SENT: TransitionTable[TcpState, TcpEvent] = TransitionTable(
    _rows(
        NONE={_E.SYN: _S.SYN, _E.SYN_ACK: _S.SYN},
        SYN={_E.FIN: _S.FIN},  # RFC 9293, 3.10.4: close in SYN-RECEIVED
        OPEN={_E.FIN: _S.FIN},
    )
)
"""The side that sends the segment."""
HEARD: TransitionTable[TcpState, TcpEvent] = TransitionTable(
    _rows(
        SYN=dict.fromkeys((_E.SYN_ACK, _E.ACK, _E.FIN), _S.OPEN),
        FIN=dict.fromkeys((_E.SYN_ACK, _E.ACK, _E.FIN), _S.FIN_ACKED),
    )
)
"""The side that it is sent to: all but a plain SYN acknowledge."""

_FIN, _SYN, _RST, _ACK = 0x01, 0x02, 0x04, 0x10
_EVENTS = {
    _SYN: _E.SYN,
    _SYN | _ACK: _E.SYN_ACK,
    _ACK: _E.ACK,
    _FIN | _ACK: _E.FIN,
    _RST: _E.RST,
    _RST | _ACK: _E.RST,
}
"""Flags that occur together; PSH, URG, ECE, CWR tell nothing."""

TIMEOUTS_S = {
    "FLOW_TCP_OPEN_S": 432_000,  # RFC 5382 REQ-5: no less than 2 h 4 min. 5 days, as conntrack: the bound is the limit
    "FLOW_TCP_TRANSITORY_S": 240,  # opening, closing or closed: RFC 5382 REQ-5; after RST, RFC 7857, 2.1
    "FLOW_UDP_ONE_WAY_S": 120,  # RFC 4787 REQ-5: no less than 2 minutes
    "FLOW_UDP_BOTH_WAYS_S": 300,  # RFC 4787 REQ-5 c: recommended
    "FLOW_ICMP_S": 60,  # RFC 5508 REQ-2: no less than 60 s
    "FLOW_OTHER_S": 600,  # no RFC; as conntrack
    "FLOW_FRAGMENT_S": 30,  # receivers give up by then: ipfrag_time of Linux, 15 s in RFC 791, 3.2
}
"""Seconds without a packet, by the names of abi.h."""


class FlowKey(NamedTuple):
    """struct flow_key. Addresses in order, ports with them; ports 0 where the protocol has none."""

    low: Address
    high: Address
    low_port: int
    high_port: int
    protocol: int
    kind: FlowKind = FlowKind.PAIR


@dataclass(frozen=True, slots=True)
class FlowCount:
    """Packets (segments of what is segmented) and bytes of IP packets."""

    packets: int = 0
    bytes: int = 0


@dataclass(frozen=True, slots=True)
class Flow:
    """One flow. counts and tcp: the opener's, the other's. seen_s: time of its last packet. answered: by the other.

    local_identity: of the endpoint whose table it is. epoch: of the policy that let it in.
    """

    seen_s: float
    opened_by_high: bool
    answered: bool = False
    tcp: tuple[TcpState, TcpState] = (TcpState.NONE, TcpState.NONE)
    counts: tuple[FlowCount, FlowCount] = (FlowCount(), FlowCount())
    local_identity: int = 0
    remote_identity: int = 0
    epoch: int = 0

    @property
    def closed(self) -> bool:
        """Nothing more is to come but what was late: a SYN begins anew."""
        return TcpState.RESET in self.tcp or self.tcp == (TcpState.FIN_ACKED, TcpState.FIN_ACKED)


@dataclass(frozen=True, slots=True)
class Fragments:
    """Which flow the fragments of a datagram are of. seen_s: time of the first one."""

    seen_s: float
    flow: FlowKey


FlowEntry = Flow | Fragments


class FlowStore(Protocol):
    """Where entries are."""

    def get(self, key: FlowKey) -> FlowEntry | None:
        """The entry, used now."""

    def put(self, key: FlowKey, entry: FlowEntry) -> None:
        """Insert or exchange; what was least recently used goes where full."""

    def delete(self, key: FlowKey) -> bool:
        """Remove; False where it was not there."""


class FlowTable:
    """Entries in memory, at most `bound`."""

    def __init__(self, bound: int) -> None:
        if bound < 1:
            raise ValueError(f"a table of {bound} flows")
        self._bound = bound
        self._entries: OrderedDict[FlowKey, FlowEntry] = OrderedDict()

    def __len__(self) -> int:
        return len(self._entries)

    def get(self, key: FlowKey) -> FlowEntry | None:
        """The entry, used now."""
        entry = self._entries.get(key)
        if entry is not None:
            self._entries.move_to_end(key)
        return entry

    def put(self, key: FlowKey, entry: FlowEntry) -> None:
        """Insert or exchange; what was least recently used goes where full."""
        self._entries[key] = entry
        self._entries.move_to_end(key)
        if len(self._entries) > self._bound:
            self._entries.popitem(last=False)

    def delete(self, key: FlowKey) -> bool:
        """Remove; False where it was not there."""
        return self._entries.pop(key, None) is not None

    def items(self) -> Iterator[tuple[FlowKey, FlowEntry]]:
        """All of them, least recently used first."""
        return iter(list(self._entries.items()))


def timeout_s(key: FlowKey, entry: FlowEntry) -> int:
    """After so long without a packet an entry is as none."""
    if isinstance(entry, Fragments):
        name = "FLOW_FRAGMENT_S"
    elif key.protocol == Ip.TCP:
        both_open = entry.tcp == (TcpState.OPEN, TcpState.OPEN)
        name = "FLOW_TCP_OPEN_S" if both_open else "FLOW_TCP_TRANSITORY_S"
    elif key.protocol == Ip.UDP:
        name = "FLOW_UDP_BOTH_WAYS_S" if entry.answered else "FLOW_UDP_ONE_WAY_S"
    else:
        name = "FLOW_ICMP_S" if key.protocol == Ip.ICMP else "FLOW_OTHER_S"
    return TIMEOUTS_S[name]


def _live(store: FlowStore, key: FlowKey, now: float) -> FlowEntry | None:
    entry = store.get(key)
    return entry if entry is not None and now - entry.seen_s <= timeout_s(key, entry) else None


def _u16(data: bytes, at: int) -> int:
    return data[at] << 8 | data[at + 1]


def _key(source: Address, destination: Address, protocol: int, transport: bytes) -> FlowKey | None:
    """The key of a packet with these first bytes of transport header; None of ICMP that is no echo."""
    from_high = source > destination
    low, high = (destination, source) if from_high else (source, destination)
    if protocol in _PORTS:
        ports = _u16(transport, 0), _u16(transport, 2)
        return FlowKey(low, high, ports[from_high], ports[not from_high], protocol)
    if protocol != Ip.ICMP:
        return FlowKey(low, high, 0, 0, protocol)
    if transport[0] not in (TYPE_ECHO, TYPE_ECHO_REPLY) or transport[1]:
        return None
    # Two pings that cross with one id are two flows: else one's requests would pass as the other's replies.
    by_high = from_high == (transport[0] == TYPE_ECHO)
    kind = FlowKind.ECHO_BY_HIGH if by_high else FlowKind.ECHO_BY_LOW
    return FlowKey(low, high, _u16(transport, 4), _u16(transport, 4), protocol, kind)


@dataclass(frozen=True, slots=True)
class Judgement:
    """What a packet is, and what `note` needs. key, flow: of the flow that it is of, or starts.

    Of an INVALID packet, key and event are there where it is TCP of a flow that is not known.
    """

    flow_class: FlowClass
    from_high: bool = False
    key: FlowKey | None = None
    flow: Flow | None = None
    event: TcpEvent | None = None
    fragments: FlowKey | None = None  # to be remembered: this is the first


_INVALID = Judgement(FlowClass.INVALID)


def judge(store: FlowStore, plan: AddressPlan, header: Header, packet: bytes, now: float) -> Judgement:
    """What a whole IPv4 packet, whose header has passed header_untrusted, is to the flows of a store.

    Nothing changes, but that what is looked up counts as used. now: seconds, of the clock of seen_s.
    """
    protocol, from_high = header.protocol, header.source > header.destination
    transport = packet[header.header_length : header.total_length]
    minimum = _MIN_PAYLOAD.get(protocol)
    event: TcpEvent | None = None
    fragments: FlowKey | None = None
    opens = True
    if header.is_fragment and minimum is not None:
        low, high = sorted((header.source, header.destination))
        kind = FlowKind.FRAGMENTS_BY_HIGH if from_high else FlowKind.FRAGMENTS_BY_LOW
        fragments = FlowKey(low, high, _u16(packet, 4), 0, protocol, kind)
    if fragments is not None and header.fragment_offset:
        entry = _live(store, fragments, now)
        if not isinstance(entry, Fragments):
            return _INVALID
        key, fragments, opens = entry.flow, None, False
    else:
        if minimum is not None and len(transport) < minimum:
            return _INVALID
        found = _key(header.source, header.destination, protocol, transport)
        if found is None:
            return _related(store, plan, header, transport, now)
        key = found
        if protocol == Ip.TCP:
            event = _EVENTS.get(transport[13] & (_FIN | _SYN | _RST | _ACK))
            if event is None or transport[12] >> 4 < 5:
                return _INVALID
            opens = event is TcpEvent.SYN
        elif protocol == Ip.ICMP:
            opens = transport[0] == TYPE_ECHO
    flow = _live(store, key, now)
    assert not isinstance(flow, Fragments)  # by its kind
    if flow is not None and event is TcpEvent.SYN and flow.closed:
        flow = None
    if flow is not None:
        flow_class = FlowClass.ESTABLISHED if flow.opened_by_high == from_high else FlowClass.REPLY
    elif opens:
        flow_class = FlowClass.NEW
    elif event is not None:
        flow_class = FlowClass.INVALID
    else:
        return _INVALID
    return Judgement(flow_class, from_high, key, flow, event, fragments)


def _related(store: FlowStore, plan: AddressPlan, header: Header, message: bytes, now: float) -> Judgement:
    """ICMP that is no echo. An error is related where it quotes a packet of a live flow, sent by whom it is told."""
    if message[0] not in RELATED_TYPES:
        return Judgement(FlowClass.UNTRACKED)
    quoted = message[ICMP_HEADER:]
    if len(quoted) < IPV4_HEADER:
        return _INVALID
    length, source, destination = (quoted[0] & 15) * 4, quoted[12:16], quoted[16:20]
    if quoted[0] >> 4 != 4 or length < IPV4_HEADER or _u16(quoted, 6) & 0x1FFF or source != header.destination:
        return _INVALID
    if not _may_report(plan, header.source, destination):
        return _INVALID
    transport = quoted[length : length + _QUOTED]
    if quoted[9] in _MIN_PAYLOAD and len(transport) < _QUOTED:
        return _INVALID
    key = _key(source, destination, quoted[9], transport)
    flow = _live(store, key, now) if key is not None else None
    if not isinstance(flow, Flow):
        return _INVALID
    return Judgement(FlowClass.RELATED, key=key, flow=flow)


def _may_report(plan: AddressPlan, reporter: Address, quoted_to: Address) -> bool:
    """A guest tells of what was sent to it; the router of anything on the way, and so may the outside."""
    return reporter == quoted_to or not plan.contains(reporter) or plan.host_number(reporter) == ROUTER_NUMBER


def note(
    store: FlowStore,
    judgement: Judgement,
    header: Header,
    now: float,
    *,
    packets: int = 1,
    local_identity: int = 0,
    remote_identity: int = 0,
    epoch: int = 0,
) -> None:
    """Keep what a packet has told that is NEW, ESTABLISHED or REPLY; all other classes tell nothing.

    packets: segments in it. The identities and the epoch are those of a flow that begins.
    """
    key, flow, event = judgement.key, judgement.flow, judgement.event
    if key is None or judgement.flow_class in (FlowClass.RELATED, FlowClass.INVALID):
        return
    if flow is None:
        begun = SENT.next(TcpState.NONE, event) if event is not None else TcpState.NONE
        store.put(
            key,
            Flow(
                now,
                judgement.from_high,
                tcp=(begun, TcpState.NONE),
                counts=(FlowCount(packets, header.total_length), FlowCount()),
                local_identity=local_identity,
                remote_identity=remote_identity,
                epoch=epoch,
            ),
        )
    else:
        store.put(key, _stepped(flow, judgement.flow_class is FlowClass.REPLY, event, packets, header, now))
    if judgement.fragments is not None:
        store.put(judgement.fragments, Fragments(now, key))


def _stepped(flow: Flow, reply: bool, event: TcpEvent | None, packets: int, header: Header, now: float) -> Flow:
    (opener, other), (sent, answered) = flow.tcp, flow.counts
    if event is not None:
        opener = (HEARD if reply else SENT).next(opener, event)
        other = (SENT if reply else HEARD).next(other, event)
    count = answered if reply else sent
    count = FlowCount(count.packets + packets, count.bytes + header.total_length)
    return replace(
        flow,
        seen_s=now,
        answered=flow.answered or reply,
        tcp=(opener, other),
        counts=(sent, count) if reply else (count, answered),
    )


def transition_tables_markdown() -> str:
    """Both tables of a TCP connection's sides, for the docs."""
    return f"The side that sends:\n\n{SENT.markdown()}\nThe side that it is sent to:\n\n{HEARD.markdown()}"
