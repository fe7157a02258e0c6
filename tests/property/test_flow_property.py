"""Any packets in any order, with any time between: what holds of flows whatever comes."""

from typing import Any

from flow_packets import SYN, Age, walk
from hypothesis import given, settings
from hypothesis import strategies as st

from divhook.core.addressing import AddressPlan
from divhook.core.flow import Flow, FlowClass, FlowKey, FlowTable, Fragments, TcpState, judge, note, timeout_s
from divhook.core.wire.ipv4 import Ipv4, header_untrusted, parse_ipv4_untrusted

PLAN = AddressPlan()
IN_A_FLOW = {FlowClass.ESTABLISHED, FlowClass.REPLY}


@st.composite
def walks(draw: st.DrawFn) -> list[bytes | Age]:
    def pick(choices: Any) -> Any:
        return draw(st.sampled_from(choices))

    return list(walk(pick, draw(st.integers(1, 30))))


def run(table: FlowTable, steps: list[bytes | Age]) -> list[FlowClass | None]:
    """The class of each packet, None for time."""
    now = 1000.0
    classes: list[FlowClass | None] = []
    for step in steps:
        if isinstance(step, Age):
            now += step.seconds
            classes.append(None)
            continue
        header = header_untrusted(step)
        before = dict(table.items())
        judgement = judge(table, PLAN, header, step, now)
        assert dict(table.items()) == before, "judging changes nothing"
        note(table, judgement, header, now)
        after = dict(table.items())
        _holds(header.source > header.destination, judgement.flow_class, before, after, now)
        classes.append(judgement.flow_class)
    return classes


def _holds(
    from_high: bool,
    flow_class: FlowClass,
    before: dict[FlowKey, Flow | Fragments],
    after: dict[FlowKey, Flow | Fragments],
    now: float,
) -> None:
    """What a packet may change, by its class."""
    changed = {key for key in after if after[key] != before.get(key)}
    flows = [after[key] for key in changed if isinstance(after[key], Flow)]
    live = {key for key, entry in before.items() if now - entry.seen_s <= timeout_s(key, entry)}
    if flow_class not in {*IN_A_FLOW, FlowClass.NEW}:
        assert not changed
        return
    assert len(flows) <= 1
    for flow in flows:
        assert isinstance(flow, Flow)
        assert (flow.opened_by_high == from_high) == (flow_class is not FlowClass.REPLY)
        assert flow.seen_s == now
    for key in changed:
        old, new = before.get(key), after[key]
        if isinstance(old, Flow) and isinstance(new, Flow) and flow_class in IN_A_FLOW:
            assert key in live, "what has ended does not go on"
            assert all(was <= becomes for was, becomes in zip(old.tcp, new.tcp, strict=True)), "a side never goes back"
            assert (old.opened_by_high, old.local_identity, old.epoch) == (
                new.opened_by_high,
                new.local_identity,
                new.epoch,
            )
        if isinstance(new, Flow) and flow_class is FlowClass.NEW:
            assert key not in live or (isinstance(old, Flow) and old.closed), "a live flow is not opened again"
            assert new.tcp in {(TcpState.NONE, TcpState.NONE), (TcpState.SYN, TcpState.NONE)}


@settings(max_examples=150, deadline=None)
@given(walks())
def test_every_packet_changes_only_what_its_class_allows(steps: list[bytes | Age]) -> None:
    run(FlowTable(1000), steps)


@settings(max_examples=100, deadline=None)
@given(walks(), st.integers(1, 4))
def test_table_never_holds_more_than_its_bound(steps: list[bytes | Age], bound: int) -> None:
    table = FlowTable(bound)
    for step in steps:
        run(table, [step])
        assert len(table) <= bound


@settings(max_examples=100, deadline=None)
@given(walks())
def test_no_tcp_flow_begins_in_mid_stream(steps: list[bytes | Age]) -> None:
    def starts(packet: Ipv4) -> bool:
        return packet.fragment_offset == 0 and len(packet.payload) >= 20 and packet.payload[13] & 0x17 == SYN

    table = FlowTable(1000)
    opened = set()
    for step, flow_class in zip(steps, run(table, steps), strict=True):
        if isinstance(step, Age):
            continue
        packet = parse_ipv4_untrusted(step)
        ends = frozenset((packet.source, packet.destination))
        if packet.protocol == 6 and starts(packet):
            opened.add(ends)
        if packet.protocol == 6 and flow_class not in (FlowClass.INVALID,):
            assert ends in opened


@settings(max_examples=100, deadline=None)
@given(walks())
def test_mirrored_addresses_make_a_mirrored_table(steps: list[bytes | Age]) -> None:
    """Nothing depends on which address is the lower one."""
    mirrored = [step if isinstance(step, Age) else _mirror(step) for step in steps]
    straight, other = FlowTable(1000), FlowTable(1000)
    assert run(straight, steps) == run(other, mirrored)
    assert sorted(entry.tcp for _, entry in straight.items() if isinstance(entry, Flow)) == sorted(
        entry.tcp for _, entry in other.items() if isinstance(entry, Flow)
    )


def _flip(address: bytes) -> bytes:
    """Reverses the order of addresses; a router stays one, the plan stays the same."""
    host = address[3] if address[3] == 1 else 0xFE - address[3]
    return bytes((address[0], 0xFF - address[1], 0xFF - address[2], host))


def _mirror(data: bytes) -> bytes:
    packet = bytearray(data)
    places = [12, 16]
    inside = (packet[0] & 15) * 4 + 8
    if packet[9] == 1 and len(packet) >= inside + 20:
        places += [inside + 12, inside + 16]
    for at in places:
        packet[at : at + 4] = _flip(bytes(packet[at : at + 4]))
    length = (packet[0] & 15) * 4
    packet[10:12] = bytes(2)
    total = sum(int.from_bytes(packet[at : at + 2], "big") for at in range(0, length, 2)) % 0xFFFF
    packet[10:12] = (0xFFFF - total).to_bytes(2, "big")
    return bytes(packet)
