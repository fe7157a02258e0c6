"""Tables of flows in the kernel: made, found again and bounded each by itself; none where a port is not tracked."""

from collections.abc import Iterator

import bpf_frames as f
import pytest
from bpf_bench import PORT_ID, Bench
from bpf_flows import BESIDE_ID, SLACK_S, FlowBench, entries
from flow_packets import ACK, BESIDE, FAR, SYN, TCP, UDP, WEB, echo, ip, segment, tcp, udp

from divhook.abi import layout
from divhook.abi.flow_entries import pack_flow, pack_flow_key, unpack_flow, unpack_flow_key
from divhook.adapters.bpf import FROM_GUEST, BpfError, syscall
from divhook.adapters.bpf.flows import flow_bound, kernel_ticks_per_s
from divhook.core.flow import Flow, FlowClass, FlowCount, FlowEntry, FlowKey, FlowKind, Fragments, TcpState

NEW, ESTABLISHED, REPLY, RELATED, INVALID, UNTRACKED = FlowClass
FLOOD = 100_000


@pytest.fixture
def flows(bench: Bench) -> Iterator[FlowBench]:
    made = FlowBench(bench)
    yield made
    made.close()


@pytest.fixture
def untracked(bench: Bench) -> Iterator[FlowBench]:
    made = FlowBench(bench, tracked=False)
    yield made
    made.close()


def test_untracked_port_leaves_no_flows(untracked: FlowBench) -> None:
    for packet in (tcp(WEB, FAR, 5000, 22, SYN), tcp(FAR, WEB, 22, 5000, SYN | ACK), echo(WEB, BESIDE, 3)):
        assert untracked.run(packet).flows == (0, 0)
    assert [entries(table) for table in untracked.tables.values()] == [{}, {}]


def test_packet_between_two_tracked_ports_is_in_both_tables_as_each_sees_it(flows: FlowBench) -> None:
    assert flows.check(udp(WEB, BESIDE, 999, 53)) == [NEW, NEW]
    assert flows.check(udp(BESIDE, WEB, 53, 999)) == [REPLY, REPLY]
    (mine,), (theirs,) = (entries(flows.tables[address]).values() for address in (WEB, BESIDE))
    assert isinstance(mine, Flow)
    assert isinstance(theirs, Flow)
    assert (mine.local_identity, mine.remote_identity) == (theirs.remote_identity, theirs.local_identity)


def test_port_without_a_table_finds_every_packet_invalid(flows: FlowBench) -> None:
    flows.programs.flows.remove(PORT_ID)
    assert flows.run(udp(WEB, BESIDE, 999, 53)).flows == (INVALID, NEW)
    assert flows.programs.flows.table(PORT_ID) is None
    flows.programs.flows.remove(PORT_ID)


@pytest.mark.parametrize("packet", [tcp(WEB, FAR, 5000, 22, ACK), echo(FAR, WEB, 3, reply=True)])
def test_invalid_packets_are_forwarded_while_there_is_no_policy(flows: FlowBench, packet: bytes) -> None:
    assert INVALID in flows.run(packet).flows


def test_segmented_packet_counts_its_segments(flows: FlowBench) -> None:
    flows.check(tcp(WEB, FAR, 5000, 22, SYN))
    packet = ip(WEB, FAR, TCP, segment(5000, 22, ACK, bytes(2500)))
    assert flows.check(packet, gso_size=1000, segments=3) == [ESTABLISHED]
    (flow,) = entries(flows.tables[WEB]).values()
    assert isinstance(flow, Flow)
    assert flow.counts == (FlowCount(4, 40 + len(packet)), FlowCount())


def test_bytes_after_the_packet_do_not_count(flows: FlowBench) -> None:
    packet = tcp(WEB, FAR, 5000, 22, SYN)
    assert flows.run(packet, padding=6).flows == (NEW, 0)
    (flow,) = entries(flows.tables[WEB]).values()
    assert isinstance(flow, Flow)
    assert flow.counts[0] == FlowCount(1, len(packet))


def test_later_fragments_do_not_prolong_the_memory_of_their_first(flows: FlowBench) -> None:
    assert flows.check(udp(WEB, FAR, 999, 53, identification=7, more_fragments=True)) == [NEW]
    classes = []
    for _ in range(2):
        flows.age(20)
        classes += flows.check(ip(WEB, FAR, UDP, bytes(16), identification=7, fragment_offset=16))
    assert classes == [ESTABLISHED, INVALID]


# the adapter


@pytest.mark.parametrize(
    ("key", "entry"),
    [
        (
            FlowKey(WEB, FAR, 0x0102, 0x0304, TCP),
            Flow(12.5, True, True, (TcpState.FIN, TcpState.OPEN), (FlowCount(1, 2), FlowCount(3, 4)), 5, 6, 7),
        ),
        (FlowKey(WEB, FAR, 0x0506, 0x0506, 1, FlowKind.ECHO_BY_HIGH), Flow(0.5, False)),
        (
            FlowKey(WEB, FAR, 0x0708, 0, TCP, FlowKind.FRAGMENTS_BY_LOW),
            Fragments(3.0, FlowKey(WEB, FAR, 0x0102, 0x0304, TCP)),
        ),
    ],
)
def test_entries_survive_packing(flows: FlowBench, key: FlowKey, entry: FlowEntry) -> None:
    raw_key = pack_flow_key(key)
    assert unpack_flow_key(raw_key) == key
    assert unpack_flow(key, pack_flow(entry, 1000), 1000) == entry
    table = flows.tables[WEB]
    table.put(key, entry)
    assert table.get(key) == entry
    assert dict(table.items()) == {key: entry}
    assert table.delete(key)
    assert not table.delete(key)
    assert table.get(key) is None


def test_table_outlives_whoever_made_it(flows: FlowBench) -> None:
    flows.run(tcp(WEB, FAR, 5000, 22, SYN))
    made = flows.programs.flows.install(PORT_ID)
    found = flows.programs.flows.table(PORT_ID)
    assert found is not None
    for other in (made, found):
        assert entries(other) == entries(flows.tables[WEB])
        other.close()


def test_clock_is_that_of_the_entries(flows: FlowBench) -> None:
    before = flows.programs.flows.now_s()
    flows.run(tcp(WEB, FAR, 5000, 22, SYN))
    (flow,) = entries(flows.tables[WEB]).values()
    assert before <= flow.seen_s <= flows.programs.flows.now_s()
    assert kernel_ticks_per_s() in (100, 250, 300, 1000)


def test_entry_of_a_cpu_that_is_ahead_is_live(flows: FlowBench) -> None:
    flows.check(udp(WEB, FAR, 999, 53))
    flows.age(-SLACK_S)
    assert flows.run(udp(FAR, WEB, 53, 999)).flows == (0, REPLY)


def test_bound_leaves_each_cpu_its_share() -> None:
    assert flow_bound(2) == layout.FLOWS_PER_PORT
    assert flow_bound(128) == 128 * layout.FLOWS_PER_CPU > layout.FLOWS_PER_PORT


def test_table_that_is_too_large_is_refused_in_words(flows: FlowBench) -> None:
    flows.programs.flows.remove(BESIDE_ID)
    with pytest.raises(BpfError, match=rf"cannot make the map flows_{BESIDE_ID} of \d+ entries"):
        flows.programs.flows.install(BESIDE_ID, 1 << 31)


# bounds


def test_flood_of_one_port_leaves_the_flows_of_another_alone(flows: FlowBench) -> None:
    """100,000 connections that are only begun: by a guest, to a peer."""
    for port in range(1000, 1200):
        assert flows.check(udp(BESIDE, FAR, port, 53)) == [NEW]
    before = entries(flows.tables[BESIDE])
    bound = flow_bound(syscall.possible_cpus(), 512)
    frame = bytearray(f.ethernet(tcp(WEB, FAR, 5000, 22, SYN), source=f.VMAC, destination=f.STRANGER))
    run, ifindex = flows.programs.test_run, flows.ifindexes[WEB]
    for number in range(FLOOD):
        frame[34:38] = (number + 0x10000).to_bytes(4, "big")
        assert run(FROM_GUEST, bytes(frame), ifindex).flows[0] == NEW
    assert entries(flows.tables[BESIDE]) == before
    assert bound // 2 < len(entries(flows.tables[WEB])) <= bound


def test_full_table_keeps_what_is_in_use(flows: FlowBench) -> None:
    """A connection that talks outlives ten times as many beginnings as there is room for."""
    for packet in (tcp(WEB, FAR, 5000, 22, SYN), tcp(FAR, WEB, 22, 5000, SYN | ACK), tcp(WEB, FAR, 5000, 22, ACK)):
        flows.run(packet)
    for number in range(5120):
        assert flows.run(tcp(WEB, FAR, 6000 + number, 22, SYN)).flows == (NEW, 0)
        if number % 16 == 0:
            assert flows.run(tcp(FAR, WEB, 22, 5000, ACK)).flows == (0, REPLY)


def test_flows_that_move_to_another_port_are_the_same_there_and_their_replies_pass(flows: FlowBench) -> None:
    flows.check(tcp(WEB, FAR, 5000, 22, SYN))
    flows.check(tcp(FAR, WEB, 22, 5000, SYN | ACK))
    now_s = flows.programs.flows.now_s()
    exported = list(flows.tables[WEB].export(now_s, 1e9))
    assert list(flows.tables[WEB].export(now_s + 100, 50)) == []
    (key,) = entries(flows.tables[WEB])
    before = entries(flows.tables[WEB])[key]
    flows.tables[WEB].delete(key)
    assert flows.tables[WEB].merge_untrusted(now_s, b"".join(exported)) == 1
    after = entries(flows.tables[WEB])[key]
    assert isinstance(before, Flow)
    assert isinstance(after, Flow)
    assert (after.tcp, after.counts, after.opened_by_high, after.answered, after.epoch) == (
        before.tcp,
        before.counts,
        before.opened_by_high,
        before.answered,
        0,
    )
    assert abs(after.seen_s - before.seen_s) < SLACK_S
    assert REPLY in flows.run(tcp(FAR, WEB, 22, 5000, ACK)).flows


def test_a_flow_that_was_seen_later_here_is_not_set_back_and_nonsense_is_refused(flows: FlowBench) -> None:
    flows.check(tcp(WEB, FAR, 5000, 22, SYN))
    now_s = flows.programs.flows.now_s()
    (exported,) = flows.tables[WEB].export(now_s, 1e9)
    flows.check(tcp(FAR, WEB, 22, 5000, SYN | ACK))
    (here,) = entries(flows.tables[WEB]).values()
    flows.tables[WEB].merge_untrusted(now_s - 10, exported)
    assert list(entries(flows.tables[WEB]).values()) == [here]
    kind_at = 8 + 13
    for bad in (exported[:-1], exported[:kind_at] + b"\xee" + exported[kind_at + 1 :]):
        with pytest.raises(ValueError):
            flows.tables[WEB].merge_untrusted(now_s, bad)
