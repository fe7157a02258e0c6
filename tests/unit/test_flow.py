"""Flows: what each packet is to those that are there, what it leaves, and when they end."""

import itertools

import pytest
from flow_packets import (
    ACK,
    BESIDE,
    FAR,
    FIN,
    GRE,
    OTHER_SUBNET,
    PARAMETER,
    PSH,
    REDIRECT,
    ROUTER,
    RST,
    SOURCE_QUENCH,
    SYN,
    TCP,
    TIME_EXCEEDED,
    TIMESTAMP,
    UDP,
    UNREACHABLE,
    WEB,
    datagram,
    echo,
    icmp_error,
    ip,
    message,
    sctp,
    segment,
    tcp,
    udp,
)

from divhook.core.addressing import Address, AddressPlan
from divhook.core.flow import (
    HEARD,
    SENT,
    TIMEOUTS_S,
    Flow,
    FlowClass,
    FlowCount,
    FlowEntry,
    FlowKey,
    FlowKind,
    FlowTable,
    Fragments,
    TcpEvent,
    TcpState,
    judge,
    note,
    transition_tables_markdown,
)
from divhook.core.wire.ipv4 import header_untrusted

NEW, ESTABLISHED, REPLY, RELATED, INVALID, UNTRACKED = FlowClass
NONE, SENT_SYN, OPEN, SENT_FIN, FIN_ACKED, RESET = TcpState
T0 = 1000.0
OUTSIDE = bytes((198, 51, 100, 9))
SSH = FlowKey(WEB, FAR, 5000, 22, TCP)


class Tracker:
    """A table of 64, the web server's, and its clock."""

    def __init__(self, bound: int = 64) -> None:
        self.table = FlowTable(bound)
        self.now = T0

    def see(self, *packets: bytes) -> list[FlowClass]:
        return [self._see(packet) for packet in packets]

    def _see(self, packet: bytes) -> FlowClass:
        header = header_untrusted(packet)
        judgement = judge(self.table, AddressPlan(), header, packet, self.now)
        note(self.table, judgement, header, self.now, local_identity=7, remote_identity=9, epoch=3)
        return judgement.flow_class

    def entries(self) -> dict[FlowKey, FlowEntry]:
        return dict(self.table.items())

    def tcp(self, key: FlowKey = SSH) -> tuple[TcpState, TcpState]:
        flow = self.entries()[key]
        assert isinstance(flow, Flow)
        return flow.tcp


@pytest.fixture
def web() -> Tracker:
    return Tracker()


def out(flags: int, source: Address = WEB, destination: Address = FAR) -> bytes:
    return tcp(source, destination, 5000, 22, flags)


def back(flags: int, source: Address = FAR, destination: Address = WEB) -> bytes:
    return tcp(source, destination, 22, 5000, flags)


HANDSHAKE = (out(SYN), back(SYN | ACK), out(ACK))


def test_connection_from_first_to_last_segment(web: Tracker) -> None:
    states = []
    classes = []
    for packet in (
        *HANDSHAKE,
        out(ACK | PSH),
        back(ACK),
        out(FIN | ACK),
        back(ACK),
        back(ACK | PSH),
        back(FIN | ACK),
        out(ACK),
    ):
        classes += web.see(packet)
        states.append(web.tcp())
    assert classes == [NEW, REPLY, ESTABLISHED, ESTABLISHED, REPLY, ESTABLISHED, REPLY, REPLY, REPLY, ESTABLISHED]
    assert states == [
        (SENT_SYN, NONE),
        (OPEN, SENT_SYN),
        (OPEN, OPEN),
        (OPEN, OPEN),
        (OPEN, OPEN),
        (SENT_FIN, OPEN),
        (FIN_ACKED, OPEN),
        (FIN_ACKED, OPEN),
        (FIN_ACKED, SENT_FIN),
        (FIN_ACKED, FIN_ACKED),
    ]


def test_entry_has_all_that_a_verdict_needs(web: Tracker) -> None:
    web.see(*HANDSHAKE)
    assert web.entries() == {
        SSH: Flow(
            seen_s=T0,
            opened_by_high=False,
            answered=True,
            tcp=(OPEN, OPEN),
            counts=(FlowCount(2, 80), FlowCount(1, 40)),
            local_identity=7,
            remote_identity=9,
            epoch=3,
        )
    }


def test_the_side_that_opens_is_told_whichever_address_is_lower(web: Tracker) -> None:
    assert web.see(back(SYN), out(SYN | ACK), back(ACK)) == [NEW, REPLY, ESTABLISHED]
    flow = web.entries()[SSH]
    assert isinstance(flow, Flow)
    assert flow.opened_by_high


@pytest.mark.parametrize("flags", [ACK, SYN | ACK, FIN | ACK, RST, RST | ACK, ACK | PSH])
def test_nothing_but_a_syn_starts_a_connection(web: Tracker, flags: int) -> None:
    assert web.see(out(flags)) == [INVALID]
    assert web.entries() == {}


@pytest.mark.parametrize(
    "flags", [0, FIN, SYN | FIN, SYN | RST, FIN | RST, FIN | RST | ACK, SYN | FIN | RST | ACK, PSH]
)
def test_flags_that_no_tcp_sends_are_invalid_and_change_nothing(web: Tracker, flags: int) -> None:
    assert web.see(out(flags)) == [INVALID]
    web.see(*HANDSHAKE)
    before = web.entries()
    assert web.see(out(flags), back(flags)) == [INVALID, INVALID]
    assert web.entries() == before


@pytest.mark.parametrize("payload", [segment(5000, 22, SYN)[:19], segment(5000, 22, SYN, data_offset=4)])
def test_tcp_header_that_is_not_whole_is_invalid(web: Tracker, payload: bytes) -> None:
    assert web.see(ip(WEB, FAR, TCP, payload)) == [INVALID]
    assert web.entries() == {}


def test_repeated_syn_is_of_the_flow_that_it_opened(web: Tracker) -> None:
    assert web.see(out(SYN), out(SYN), back(SYN | ACK), back(SYN | ACK)) == [NEW, ESTABLISHED, REPLY, REPLY]
    assert web.tcp() == (OPEN, SENT_SYN)


def test_simultaneous_open(web: Tracker) -> None:
    assert web.see(out(SYN), back(SYN), out(SYN | ACK), back(SYN | ACK)) == [NEW, REPLY, ESTABLISHED, REPLY]
    assert web.tcp() == (OPEN, OPEN)


def test_simultaneous_close(web: Tracker) -> None:
    web.see(*HANDSHAKE, out(FIN | ACK), back(FIN | ACK), out(ACK), back(ACK))
    assert web.tcp() == (FIN_ACKED, FIN_ACKED)


def test_refused_connection_is_closed_and_can_be_tried_again(web: Tracker) -> None:
    assert web.see(out(SYN), back(RST | ACK)) == [NEW, REPLY]
    assert web.tcp() == (RESET, RESET)
    assert web.see(out(SYN)) == [NEW]
    assert web.tcp() == (SENT_SYN, NONE)


@pytest.mark.parametrize(
    "closing", [(out(RST),), (back(RST | ACK),), (out(FIN | ACK), back(FIN | ACK), out(ACK), back(ACK))]
)
def test_what_was_late_still_belongs_to_a_closed_connection_and_a_syn_from_either_side_is_new(
    web: Tracker, closing: tuple[bytes, ...]
) -> None:
    web.see(*HANDSHAKE, *closing)
    assert web.see(back(FIN | ACK), out(ACK)) == [REPLY, ESTABLISHED]
    assert web.see(back(SYN)) == [NEW]
    flow = web.entries()[SSH]
    assert isinstance(flow, Flow)
    assert (flow.opened_by_high, flow.answered, flow.tcp) == (True, False, (SENT_SYN, NONE))
    assert flow.counts == (FlowCount(1, 40), FlowCount())


def test_syn_on_an_open_connection_is_no_new_one(web: Tracker) -> None:
    """RFC 9293, 3.10.7.4: it is answered by an acknowledgement, and that by RST where the sender has forgotten."""
    web.see(*HANDSHAKE)
    assert web.see(out(SYN), back(ACK), out(RST), out(SYN)) == [ESTABLISHED, REPLY, ESTABLISHED, NEW]


def test_half_closed_connection_carries_on(web: Tracker) -> None:
    web.see(*HANDSHAKE, out(FIN | ACK), back(ACK))
    web.now += TIMEOUTS_S["FLOW_TCP_TRANSITORY_S"]
    assert web.see(back(ACK | PSH), out(ACK)) == [REPLY, ESTABLISHED]


def test_udp_sctp_and_other_protocols_may_be_opened_by_either_side(web: Tracker) -> None:
    assert web.see(udp(FAR, WEB, 53, 999), udp(WEB, FAR, 999, 53), udp(FAR, WEB, 53, 999)) == [NEW, REPLY, ESTABLISHED]
    assert web.see(sctp(WEB, FAR, 1, 2), sctp(FAR, WEB, 2, 1), sctp(FAR, WEB, 2, 2)) == [NEW, REPLY, NEW]
    assert web.see(ip(WEB, FAR, GRE, b"a"), ip(FAR, WEB, GRE, b"b"), ip(FAR, WEB, 50, b"c")) == [NEW, REPLY, NEW]


def test_protocol_with_the_same_ports_is_another_flow(web: Tracker) -> None:
    assert web.see(udp(WEB, FAR, 5000, 22), sctp(FAR, WEB, 22, 5000), out(SYN)) == [NEW, NEW, NEW]


def test_echo_reply_passes_only_after_its_request(web: Tracker) -> None:
    assert web.see(echo(FAR, WEB, 5, reply=True)) == [INVALID]
    assert web.see(echo(WEB, FAR, 5), echo(FAR, WEB, 5, reply=True), echo(WEB, FAR, 5)) == [NEW, REPLY, ESTABLISHED]
    assert web.see(echo(FAR, WEB, 6, reply=True)) == [INVALID]


def test_pings_that_cross_with_one_id_do_not_answer_each_other(web: Tracker) -> None:
    assert web.see(echo(WEB, FAR, 5), echo(FAR, WEB, 5), echo(FAR, WEB, 5, reply=True)) == [NEW, NEW, REPLY]
    assert web.see(echo(WEB, FAR, 5, reply=True)) == [REPLY]
    assert {key.kind for key in web.entries()} == {FlowKind.ECHO_BY_LOW, FlowKind.ECHO_BY_HIGH}


@pytest.mark.parametrize("kind", [SOURCE_QUENCH, REDIRECT, TIMESTAMP, 10, 255])
def test_other_icmp_is_never_part_of_a_flow(web: Tracker, kind: int) -> None:
    web.see(out(SYN))
    assert web.see(ip(FAR, WEB, 1, message(kind, 0, bytes(4), out(SYN)))) == [UNTRACKED]
    assert len(web.entries()) == 1


# ICMP errors


QUOTABLE = {
    "tcp": (out(SYN),),
    "established tcp": (*HANDSHAKE, out(ACK | PSH)),
    "udp": (udp(WEB, FAR, 999, 53),),
    "sctp": (sctp(WEB, FAR, 1, 2),),
    "echo": (echo(WEB, FAR, 5),),
    "gre": (ip(WEB, FAR, GRE, b"tunnelled"),),
    "options": (udp(WEB, FAR, 999, 53, options=b"\x01\x01\x01\x01"),),
    "first fragment": (udp(WEB, FAR, 999, 53, more_fragments=True),),
}


@pytest.mark.parametrize("name", QUOTABLE)
@pytest.mark.parametrize("kind", [UNREACHABLE, TIME_EXCEEDED, PARAMETER])
@pytest.mark.parametrize("reporter", [FAR, ROUTER, bytes((10, 21, 36, 1)), OUTSIDE])
def test_error_about_a_live_flow_is_related(web: Tracker, name: str, kind: int, reporter: Address) -> None:
    packets = QUOTABLE[name]
    error = icmp_error(reporter, WEB, packets[-1], kind)
    assert web.see(error) == [INVALID]
    web.see(*packets)
    before = web.entries()
    web.now += 1
    assert web.see(error) == [RELATED]
    assert web.entries() == before, "an error keeps no flow alive"


def test_error_is_related_for_the_port_that_reports_as_well(web: Tracker) -> None:
    web.see(udp(FAR, WEB, 53, 999))
    assert web.see(icmp_error(WEB, FAR, udp(FAR, WEB, 53, 999)[:28])) == [RELATED]


def test_error_about_an_echo_reply_is_related_to_the_request(web: Tracker) -> None:
    web.see(echo(FAR, WEB, 5))
    assert web.see(icmp_error(FAR, WEB, echo(WEB, FAR, 5, reply=True))) == [RELATED]
    assert web.see(icmp_error(FAR, WEB, echo(WEB, FAR, 5))) == [INVALID]


def test_guest_cannot_report_on_a_flow_of_others(web: Tracker) -> None:
    web.see(out(SYN))
    assert web.see(icmp_error(BESIDE, WEB, out(SYN)), icmp_error(OTHER_SUBNET, WEB, out(SYN))) == [INVALID, INVALID]


def test_error_is_only_for_the_sender_of_what_it_quotes(web: Tracker) -> None:
    web.see(udp(WEB, FAR, 999, 53), udp(FAR, WEB, 53, 999))
    assert web.see(icmp_error(ROUTER, WEB, udp(FAR, WEB, 53, 999))) == [INVALID]


WRONG_QUOTES = {
    "sent by another": udp(BESIDE, FAR, 999, 53),
    "of another flow": udp(WEB, FAR, 999, 54),
    "no header": udp(WEB, FAR, 999, 53)[:19],
    "no ports": udp(WEB, FAR, 999, 53)[:27],
    "IPv6": b"\x65" + udp(WEB, FAR, 999, 53)[1:],
    "short header": b"\x44" + udp(WEB, FAR, 999, 53)[1:],
    "options cut off": b"\x4f" + udp(WEB, FAR, 999, 53)[1:],
    "later fragment": udp(WEB, FAR, 999, 53, fragment_offset=64),
    "error about an error": icmp_error(WEB, FAR, udp(FAR, WEB, 53, 999)),
    "nothing": b"",
}


@pytest.mark.parametrize("name", WRONG_QUOTES)
def test_error_that_quotes_anything_else_is_invalid(web: Tracker, name: str) -> None:
    web.see(udp(WEB, FAR, 999, 53))
    assert web.see(icmp_error(FAR, WEB, WRONG_QUOTES[name])) == [INVALID]


def test_error_about_a_flow_that_has_ended_is_invalid(web: Tracker) -> None:
    web.see(udp(WEB, FAR, 999, 53))
    web.now += TIMEOUTS_S["FLOW_UDP_ONE_WAY_S"] + 1
    assert web.see(icmp_error(FAR, WEB, udp(WEB, FAR, 999, 53))) == [INVALID]


# fragments


def pieces(
    source: Address, destination: Address, protocol: int, payload: bytes, identification: int = 77
) -> list[bytes]:
    """A datagram in three."""
    cuts = (0, 24, 48, len(payload))
    return [
        ip(
            source,
            destination,
            protocol,
            payload[at:end],
            identification=identification,
            fragment_offset=at,
            more_fragments=end < len(payload),
        )
        for at, end in itertools.pairwise(cuts)
    ]


LONG = {
    "udp": (UDP, datagram(999, 53, bytes(60))),
    "tcp": (TCP, segment(999, 53, SYN, bytes(60))),
    "echo": (1, message(8, 0, b"\x00\x05\x00\x01", bytes(60))),
    "sctp": (132, b"\x03\xe7\x00\x35" + bytes(60)),
}


@pytest.mark.parametrize("name", LONG)
def test_later_fragments_go_with_their_first(web: Tracker, name: str) -> None:
    first, second, third = pieces(WEB, FAR, *LONG[name])
    assert web.see(second) == [INVALID]
    assert web.see(first, second, third, third) == [NEW, ESTABLISHED, ESTABLISHED, ESTABLISHED]
    flows = [entry for entry in web.entries().values() if isinstance(entry, Flow)]
    assert [flow.counts[0].packets for flow in flows] == [4]


def test_fragments_of_a_reply_are_replies(web: Tracker) -> None:
    web.see(udp(WEB, FAR, 999, 53))
    assert web.see(*pieces(FAR, WEB, UDP, datagram(53, 999, bytes(60)))) == [REPLY, REPLY, REPLY]


def test_both_sides_may_use_one_identification(web: Tracker) -> None:
    mine = pieces(WEB, FAR, UDP, datagram(999, 53, bytes(60)))
    theirs = pieces(FAR, WEB, UDP, datagram(88, 888, bytes(60)))
    assert web.see(mine[0], theirs[0], theirs[1], mine[1]) == [NEW, NEW, ESTABLISHED, ESTABLISHED]
    assert web.see(*pieces(FAR, WEB, UDP, datagram(53, 999, bytes(60)), 78)) == [REPLY, REPLY, REPLY]


def test_fragments_wait_a_short_time_only_for_their_first(web: Tracker) -> None:
    first, second, third = pieces(WEB, FAR, UDP, datagram(999, 53, bytes(60)))
    web.see(first)
    web.now += TIMEOUTS_S["FLOW_FRAGMENT_S"]
    assert web.see(second) == [ESTABLISHED]
    web.now += 1
    assert web.see(third) == [INVALID], "the second has not prolonged it"


def test_fragments_end_with_their_flow(web: Tracker) -> None:
    first, second, _ = pieces(WEB, FAR, UDP, datagram(999, 53, bytes(60)))
    web.see(first)
    assert web.table.delete(FlowKey(WEB, FAR, 999, 53, UDP))
    assert web.see(second) == [INVALID]


def test_refused_first_fragment_tells_nothing(web: Tracker) -> None:
    first, second, _ = pieces(WEB, FAR, TCP, segment(999, 53, ACK, bytes(60)))
    assert web.see(first, second) == [INVALID, INVALID]
    assert web.entries() == {}


def test_fragments_without_ports_need_no_first(web: Tracker) -> None:
    first, second, third = pieces(WEB, FAR, GRE, bytes(60))
    assert web.see(third, first, second) == [NEW, ESTABLISHED, ESTABLISHED]
    assert not [entry for entry in web.entries().values() if isinstance(entry, Fragments)]


def test_fragment_of_a_flow_does_not_move_tcp_along(web: Tracker) -> None:
    web.see(*HANDSHAKE)
    web.see(*pieces(WEB, FAR, TCP, segment(5000, 22, ACK, segment(0, 0, RST) * 3)))
    assert web.tcp() == (OPEN, OPEN)


# time and room


LIFETIMES = {
    "FLOW_TCP_OPEN_S": (HANDSHAKE, out(ACK)),
    "FLOW_TCP_TRANSITORY_S": ((out(SYN),), back(SYN | ACK)),
    "FLOW_UDP_ONE_WAY_S": ((udp(WEB, FAR, 9, 53),), udp(FAR, WEB, 53, 9)),
    "FLOW_UDP_BOTH_WAYS_S": ((udp(WEB, FAR, 9, 53), udp(FAR, WEB, 53, 9)), udp(FAR, WEB, 53, 9)),
    "FLOW_ICMP_S": ((echo(WEB, FAR, 5),), echo(FAR, WEB, 5, reply=True)),
    "FLOW_OTHER_S": ((sctp(WEB, FAR, 1, 2),), sctp(FAR, WEB, 2, 1)),
}


@pytest.mark.parametrize("name", LIFETIMES)
def test_flow_lives_as_long_as_its_timeout_says(name: str) -> None:
    packets, probe = LIFETIMES[name]
    for age, live in ((TIMEOUTS_S[name], True), (TIMEOUTS_S[name] + 0.004, False)):
        web = Tracker()
        web.see(*packets)
        web.now += age
        assert (web.see(probe)[0] in (ESTABLISHED, REPLY)) == live


def test_each_packet_renews_a_flow(web: Tracker) -> None:
    web.see(udp(WEB, FAR, 9, 53))
    for _ in range(5):
        web.now += TIMEOUTS_S["FLOW_UDP_ONE_WAY_S"]
        assert web.see(udp(WEB, FAR, 9, 53)) == [ESTABLISHED]


def test_entry_from_a_clock_that_is_ahead_is_live(web: Tracker) -> None:
    web.see(udp(WEB, FAR, 9, 53))
    web.now -= 0.008
    assert web.see(udp(FAR, WEB, 53, 9)) == [REPLY]


def test_full_table_forgets_the_least_recently_used() -> None:
    web = Tracker(bound=3)
    for port in (1, 2, 3):
        web.see(udp(WEB, FAR, port, 53))
    web.see(udp(FAR, WEB, 53, 1))
    web.see(udp(WEB, FAR, 4, 53))
    assert [key.low_port for key in web.entries()] == [3, 1, 4]
    assert web.see(udp(FAR, WEB, 53, 2)) == [NEW]


def test_table_has_room_for_something() -> None:
    with pytest.raises(ValueError, match="0 flows"):
        FlowTable(0)


def test_delete_says_whether_there_was_one(web: Tracker) -> None:
    web.see(out(SYN))
    assert web.table.delete(SSH)
    assert not web.table.delete(SSH)
    assert len(web.table) == 0


def test_tables_are_whole_and_drawn_for_the_docs() -> None:
    for state in TcpState:
        for event in TcpEvent:
            assert SENT.next(state, event) >= state
            assert HEARD.next(state, event) >= state
    text = transition_tables_markdown()
    assert "| NONE | SYN | SYN |" in text
    assert "| FIN | ACK | FIN_ACKED |" in text
