"""Hostile and random DHCP: parsers return or raise the one error, the server answers or drops, answers can be read."""

from hypothesis import given
from hypothesis import strategies as st

from divhook.core.addressing import SubnetId, parse_address, parse_mac
from divhook.core.dhcp import DhcpServer, SubnetService
from divhook.core.endpoint import Endpoint, PortState
from divhook.core.reasons import DropReason
from divhook.core.wire.dhcp import (
    DhcpMessage,
    DhcpType,
    Op,
    Option,
    encode,
    parse_dhcp_untrusted,
)
from divhook.core.wire.errors import WireError
from divhook.core.wire.ethernet import parse_ethernet_untrusted
from divhook.core.wire.ipv4 import Ipv4, Protocol, parse_ipv4_untrusted
from divhook.core.wire.udp import Udp, parse_udp_untrusted

VMAC, ROUTER, ADDRESS = parse_mac("52:54:00:a1:b2:c3"), parse_address("10.7.9.1"), parse_address("10.7.9.42")
ALL_ONES, ZERO, OTHER = b"\xff" * 4, bytes(4), parse_address("10.7.9.43")
SERVICE = SubnetService(
    router=ROUTER,
    mask=parse_address("255.255.255.0"),
    broadcast=parse_address("10.7.9.255"),
    dns=(ROUTER,),
    domain="eng.example",
    search=("eng.example", "example"),
    routes=((parse_address("10.17.0.0"), 16, ROUTER),),
    extra=((224, b"e" * 300), (225, b"f" * 200), (43, b"")),
)

addresses = st.sampled_from([ZERO, ADDRESS, OTHER, ROUTER, ALL_ONES]) | st.binary(min_size=4, max_size=4)
codes = st.integers(1, 254).filter(lambda code: code != Option.OVERLOAD)
option_lists = st.lists(st.tuples(codes, st.binary(max_size=600)), max_size=12, unique_by=lambda option: option[0])
names = st.binary(max_size=64).filter(lambda name: b"\0" not in name)
messages = st.builds(
    DhcpMessage,
    op=st.sampled_from(Op),
    xid=st.integers(0, 0xFFFFFFFF),
    chaddr=st.binary(min_size=6, max_size=6),
    secs=st.integers(0, 0xFFFF),
    broadcast=st.booleans(),
    ciaddr=addresses,
    yiaddr=addresses,
    siaddr=addresses,
    giaddr=addresses,
    sname=names | st.just(b""),
    file=names | st.just(b""),
    options=option_lists.map(tuple),
)
limits = st.integers(0, 1472)
asked_options = st.fixed_dictionaries(
    {Option.MESSAGE_TYPE: st.sampled_from(DhcpType).map(lambda kind: bytes([kind]))},
    optional={
        Option.REQUESTED_ADDRESS: addresses | st.binary(max_size=5),
        Option.SERVER_ID: addresses | st.binary(max_size=5),
        Option.PARAMETER_LIST: st.binary(max_size=300),
        Option.MAX_SIZE: st.binary(max_size=3),
        Option.CLIENT_ID: st.binary(max_size=300),
        Option.HOSTNAME: st.binary(max_size=80),
        Option.LEASE_TIME: st.binary(max_size=5),
    },
).map(lambda options: tuple((int(code), value) for code, value in options.items()))
requests = st.builds(
    DhcpMessage,
    op=st.sampled_from([Op.REQUEST, Op.REQUEST, Op.REQUEST, Op.REPLY]),
    xid=st.integers(0, 0xFFFFFFFF),
    chaddr=st.sampled_from([VMAC, VMAC, VMAC, bytes(6)]),
    broadcast=st.booleans(),
    ciaddr=addresses,
    giaddr=st.sampled_from([ZERO, ZERO, ZERO, OTHER]),
    options=asked_options,
)
endpoints = st.builds(
    Endpoint,
    port=st.integers(1, 3),
    subnet=st.just(SubnetId(7, 9)),
    vmac=st.just(VMAC),
    address=st.sampled_from([ADDRESS, ADDRESS, ADDRESS, None]),
    guest=st.just("web"),
    guest_uuid=st.just("u"),
    mtu=st.integers(576, 9000),
    state=st.sampled_from(PortState),
)


def packet(payload: bytes, source: bytes, destination: bytes) -> bytes:
    datagram = Udp(68, 67, payload).emit(source, destination)
    return Ipv4(source=source, destination=destination, protocol=Protocol.UDP, payload=datagram).emit()


def parses_or_is_refused(payload: bytes) -> None:
    try:
        parse_dhcp_untrusted(payload)
    except WireError as error:
        reason = error.reason
    else:
        return
    assert reason is DropReason.DHCP_MALFORMED


@given(st.binary(max_size=1600))
def test_noise_is_parsed_or_dhcp_malformed(payload):
    parses_or_is_refused(payload)


@given(messages, st.lists(st.tuples(st.integers(0, 1471), st.integers(0, 255)), max_size=8), st.integers(0, 1472))
def test_a_broken_message_is_parsed_or_dhcp_malformed(message, changes, cut):
    payload = bytearray(message.emit(1472))
    for at, value in changes:
        payload[at % len(payload)] = value
    parses_or_is_refused(bytes(payload))
    parses_or_is_refused(bytes(payload[:cut]))


@given(messages, limits)
def test_what_is_written_is_read_back_but_for_what_is_named_as_omitted(message, limit):
    payload, omitted = encode(message, limit)
    assert 300 <= len(payload) <= max(300, limit)
    parsed = parse_dhcp_untrusted(payload)
    # overloading and splitting may change the order in which options are found, never their values
    assert dict(parsed.options) == {code: value for code, value in message.options if code not in omitted}
    assert (parsed.sname, parsed.file) == (message.sname, message.file)
    assert parsed.xid == message.xid


@given(messages)
def test_with_room_for_all_a_message_comes_back_the_same(message):
    payload, omitted = encode(message, 65000)
    assert omitted == ()
    if len(payload) <= 1472:
        assert parse_dhcp_untrusted(payload) == message


@given(endpoints, st.binary(max_size=600))
def test_the_server_takes_any_noise(endpoint, noise):
    result = DhcpServer().handle(endpoint, SERVICE, "web", noise, 1.0)
    assert result.drop is not None
    assert result.frames == ()


@given(st.lists(st.tuples(endpoints, requests, addresses, st.sampled_from([ALL_ONES, ROUTER, OTHER])), max_size=6))
def test_every_answer_is_for_the_port_that_asked_and_gives_its_address_alone(exchanges):
    server = DhcpServer()
    now = 0.0
    waiting: dict[int, DhcpMessage] = {}
    for endpoint, request, source, destination in exchanges:
        now += 1.0
        payload = request.emit(1472)
        result = server.handle(endpoint, SERVICE, "web", packet(payload, source, destination), now)
        assert (result.drop is not None) + bool(result.frames) + result.waiting <= 1
        for frame in result.frames:
            check_answer(frame, endpoint, request)
        if result.waiting:
            waiting[endpoint.port] = request
        late = server.confirmed(endpoint, SERVICE, "web", now)
        for frame in late.frames:
            check_answer(frame, endpoint, waiting[endpoint.port])
    assert all(lease.address == ADDRESS for lease in server.leases(now))


def check_answer(frame: bytes, endpoint: Endpoint, request: DhcpMessage) -> None:
    ethernet = parse_ethernet_untrusted(frame)
    assert ethernet.source == parse_mac("02:d1:00:07:00:09")
    ip = parse_ipv4_untrusted(ethernet.payload)
    assert ip.source == ROUTER
    assert (ethernet.destination, ip.destination) in ((VMAC, ADDRESS), (b"\xff" * 6, ALL_ONES))
    assert len(ethernet.payload) <= endpoint.mtu
    udp = parse_udp_untrusted(ip.payload, ip.source, ip.destination)
    assert (udp.source_port, udp.destination_port) == (67, 68)
    answer = parse_dhcp_untrusted(udp.payload)
    assert (answer.op, answer.xid, answer.chaddr) == (Op.REPLY, request.xid, VMAC)
    assert answer.yiaddr in (ZERO, ADDRESS)
    assert answer.ciaddr in (ZERO, ADDRESS)
    assert answer.option(Option.SERVER_ID) == ROUTER
    assert answer.option(Option.CLIENT_ID) == request.option(Option.CLIENT_ID)
    kind = (answer.option(Option.MESSAGE_TYPE) or b"\0")[0]
    if kind == DhcpType.NAK:
        allowed = {Option.MESSAGE_TYPE, Option.SERVER_ID, Option.CLIENT_ID, Option.MESSAGE}
        assert {code for code, _ in answer.options} <= allowed
        assert answer.yiaddr == ZERO
    else:
        assert endpoint.state is PortState.ACTIVE
