"""The DHCP server: client states, where answers go, what is refused, and requests that wait. Whole frames."""

from dataclasses import replace

import pytest
from dhcp_bytes import (
    ACK,
    ADDRESS,
    ALL_ONES,
    BROADCAST,
    DECLINE,
    DISCOVER,
    ENDPOINT,
    INFORM,
    MASK,
    NAK,
    OFFER,
    OTHER,
    RELEASE,
    REQUEST,
    ROUTER,
    SERVICE,
    VMAC,
    ZERO,
    bootp,
    packet,
    tlv,
    to_guest,
)
from scapy.layers.inet import IP, UDP, fragment
from scapy.packet import Raw

from divhook.core.dhcp import (
    MAX_PENDING,
    PENDING_LIFE_S,
    DhcpResult,
    DhcpServer,
    Lease,
    LeaseChange,
    LeaseEvent,
)
from divhook.core.endpoint import PortState
from divhook.core.reasons import DropReason

LEASE = (51, b"\0\0\x0e\x10")
CLIENT_ID = b"\x01" + VMAC
BY_DEFAULT = ((1, MASK), (3, ROUTER))
NOT_OURS, FENCED_TEXT = b"not the address of this port", b"another host holds this address"
TENTATIVE = replace(ENDPOINT, state=PortState.TENTATIVE)
FENCED = replace(ENDPOINT, state=PortState.FENCED)
TO_ALL = {"destination": ALL_ONES, "mac": b"\xff" * 6}


def event(kind: LeaseChange, lease_s: int = 0, detail: str = "", **fields) -> LeaseEvent:
    described = {"hostname": "", "vendor_class": "", "client_id": b"", "address": ADDRESS} | fields
    return LeaseEvent(kind=kind, port=11, lease_s=lease_s, detail=detail, **described)


def bound(state: str = "selecting") -> LeaseEvent:
    return event(LeaseChange.BOUND, 3600, state)


def offer(**fields) -> bytes:
    return bootp(tlv((53, OFFER), (54, ROUTER), LEASE, *BY_DEFAULT), op=2, yiaddr=ADDRESS, **fields)


def ack(**fields) -> bytes:
    return bootp(tlv((53, ACK), (54, ROUTER), LEASE, *BY_DEFAULT), op=2, yiaddr=ADDRESS, **fields)


def nak(why: bytes = NOT_OURS, **fields) -> bytes:
    return bootp(tlv((53, NAK), (54, ROUTER), (56, why)), op=2, **fields)


def discover(*options: tuple[int, bytes], **fields) -> bytes:
    return packet(bootp(tlv((53, DISCOVER), *options), **fields))


SELECTING = packet(bootp(tlv((53, REQUEST), (54, ROUTER), (50, ADDRESS))))
INIT_REBOOT = packet(bootp(tlv((53, REQUEST), (50, ADDRESS))))
RENEWING = packet(bootp(tlv((53, REQUEST)), ciaddr=ADDRESS), source=ADDRESS, destination=ROUTER)
REBINDING = packet(bootp(tlv((53, REQUEST)), ciaddr=ADDRESS), source=ADDRESS)
RELEASING = packet(bootp(tlv((53, RELEASE), (54, ROUTER)), ciaddr=ADDRESS), source=ADDRESS, destination=ROUTER)
DECLINING = packet(bootp(tlv((53, DECLINE), (54, ROUTER), (50, ADDRESS))))
INFORMING = packet(bootp(tlv((53, INFORM)), ciaddr=ADDRESS), source=ADDRESS)


def handle(ip_packet: bytes, endpoint=ENDPOINT, service=SERVICE, server: DhcpServer | None = None, now=100.0):
    return (server or DhcpServer()).handle(endpoint, service, None, ip_packet, now)


def server_with_lease() -> DhcpServer:
    server = DhcpServer()
    assert handle(SELECTING, server=server).event == bound()
    return server


# ── DISCOVER ──


def test_discover_is_offered_the_endpoints_address_by_unicast():
    assert handle(discover()) == DhcpResult(frames=(to_guest(offer()),))


def test_discover_with_broadcast_flag_is_offered_by_broadcast():
    assert handle(discover(flags=0x8000)) == DhcpResult(frames=(to_guest(offer(flags=0x8000), **TO_ALL),))


def test_discover_that_wishes_another_address_and_lease_gets_what_is_configured():
    wish = discover((50, OTHER), (51, b"\0\0\0\1"), ciaddr=OTHER)
    assert handle(wish) == DhcpResult(frames=(to_guest(offer()),))


def test_discover_to_the_subnets_broadcast_address_is_answered():
    ip_packet = packet(bootp(tlv((53, DISCOVER))), destination=BROADCAST)
    assert handle(ip_packet) == DhcpResult(frames=(to_guest(offer()),))


def test_rapid_commit_is_answered_with_a_plain_offer():
    assert handle(discover((80, b""), (55, b"\x01\x03\x50"))) == DhcpResult(frames=(to_guest(offer()),))


def test_secs_and_xid_are_copied():
    result = handle(discover(secs=0xABCD, xid=0xFFFFFFFE))
    assert result.frames == (to_guest(offer(secs=0xABCD, xid=0xFFFFFFFE)),)


# ── REQUEST, in the four states of RFC 2131 §4.3.2 ──


@pytest.mark.parametrize(
    ("ip_packet", "answer", "change"),
    [
        (SELECTING, to_guest(ack()), bound("selecting")),
        (INIT_REBOOT, to_guest(ack()), bound("init-reboot")),
        (RENEWING, to_guest(ack(ciaddr=ADDRESS)), event(LeaseChange.RENEWED, 3600, "renewing")),
        (REBINDING, to_guest(ack(ciaddr=ADDRESS)), event(LeaseChange.RENEWED, 3600, "rebinding")),
    ],
    ids=["selecting", "init-reboot", "renewing", "rebinding"],
)
def test_request_for_the_endpoints_address_is_acknowledged(ip_packet, answer, change):
    assert handle(ip_packet) == DhcpResult(frames=(answer,), event=change)


REFUSED_REQUESTS = {
    "selecting": packet(bootp(tlv((53, REQUEST), (54, ROUTER), (50, OTHER)))),
    "init-reboot": packet(bootp(tlv((53, REQUEST), (50, OTHER)))),
    "renewing": packet(bootp(tlv((53, REQUEST)), ciaddr=OTHER), source=OTHER, destination=ROUTER),
    "rebinding": packet(bootp(tlv((53, REQUEST)), ciaddr=OTHER), source=OTHER),
}


@pytest.mark.parametrize("state", REFUSED_REQUESTS)
def test_request_for_another_address_gets_nak_by_broadcast_and_ends_the_lease(state):
    server = server_with_lease()
    result = handle(REFUSED_REQUESTS[state], server=server)
    refusal = event(LeaseChange.REFUSED, 0, NOT_OURS.decode())
    assert result == DhcpResult(frames=(to_guest(nak(), **TO_ALL),), event=refusal)
    assert server.leases(100.0) == []


def test_nak_keeps_the_broadcast_flag_and_echoes_the_client_id_but_gives_no_options():
    asked = packet(bootp(tlv((53, REQUEST), (50, OTHER), (55, b"\x01\x03\x06"), (61, CLIENT_ID)), flags=0x8000))
    service = replace(SERVICE, next_server=OTHER, boot_file="x", t1_s=1, t2_s=2)
    expected = bootp(tlv((53, NAK), (54, ROUTER), (61, CLIENT_ID), (56, NOT_OURS)), op=2, flags=0x8000)
    assert handle(asked, service=service).frames == (to_guest(expected, **TO_ALL),)


def test_selecting_another_server_is_silent_and_keeps_what_is_bound():
    server = server_with_lease()
    elsewhere = packet(bootp(tlv((53, REQUEST), (54, OTHER), (50, ADDRESS))))
    assert handle(elsewhere, server=server) == DhcpResult()
    assert len(server.leases(100.0)) == 1


def test_ack_to_a_client_without_address_follows_the_broadcast_flag():
    asked = packet(bootp(tlv((53, REQUEST), (54, ROUTER), (50, ADDRESS)), flags=0x8000))
    assert handle(asked).frames == (to_guest(ack(flags=0x8000), **TO_ALL),)


def test_ack_to_a_client_with_address_goes_to_it_whatever_the_flag():
    asked = packet(bootp(tlv((53, REQUEST)), ciaddr=ADDRESS, flags=0x8000), source=ADDRESS)
    assert handle(asked).frames == (to_guest(ack(ciaddr=ADDRESS, flags=0x8000)),)


@pytest.mark.parametrize("unicast", [False, True])
@pytest.mark.parametrize("server_id", [False, True])
@pytest.mark.parametrize("requested", [False, True])
@pytest.mark.parametrize("ciaddr", [False, True])
def test_only_the_four_rows_of_the_table_are_requests(unicast, server_id, requested, ciaddr):
    options = [(53, REQUEST)] + [(54, ROUTER)] * server_id + [(50, ADDRESS)] * requested
    message = bootp(tlv(*options), ciaddr=ADDRESS if ciaddr else ZERO)
    result = handle(packet(message, destination=ROUTER if unicast else ALL_ONES))
    if (unicast, server_id, requested, ciaddr) in {(0, 1, 1, 0), (0, 0, 1, 0), (1, 0, 0, 1), (0, 0, 0, 1)}:
        assert len(result.frames) == 1
        assert result.drop is None
    else:
        assert result == DhcpResult(drop=DropReason.DHCP_MALFORMED)


# ── RELEASE, DECLINE, INFORM ──


def test_release_ends_the_lease_without_an_answer():
    server = server_with_lease()
    assert handle(RELEASING, server=server) == DhcpResult(event=event(LeaseChange.RELEASED))
    assert server.leases(100.0) == []


def test_decline_ends_the_lease_without_an_answer():
    server = server_with_lease()
    assert handle(DECLINING, server=server) == DhcpResult(event=event(LeaseChange.DECLINED))
    assert server.leases(100.0) == []


@pytest.mark.parametrize("ip_packet", [RELEASING, DECLINING], ids=["release", "decline"])
def test_giving_up_a_lease_that_is_not_held_changes_nothing(ip_packet):
    assert handle(ip_packet) == DhcpResult()


@pytest.mark.parametrize(
    "ip_packet",
    [
        packet(bootp(tlv((53, RELEASE), (54, OTHER)), ciaddr=ADDRESS)),
        packet(bootp(tlv((53, RELEASE), (54, ROUTER)), ciaddr=OTHER)),
        packet(bootp(tlv((53, DECLINE), (54, OTHER), (50, ADDRESS)))),
        packet(bootp(tlv((53, DECLINE), (54, ROUTER), (50, OTHER)))),
    ],
    ids=["release at another server", "release of another address", "decline to another", "decline of another"],
)
def test_giving_up_what_is_not_ours_changes_nothing(ip_packet):
    server = server_with_lease()
    assert handle(ip_packet, server=server) == DhcpResult()
    assert len(server.leases(100.0)) == 1


@pytest.mark.parametrize(
    "ip_packet",
    [
        packet(bootp(tlv((53, RELEASE)), ciaddr=ADDRESS)),
        packet(bootp(tlv((53, RELEASE), (54, ROUTER)))),
        packet(bootp(tlv((53, DECLINE), (50, ADDRESS)))),
        packet(bootp(tlv((53, DECLINE), (54, ROUTER)))),
    ],
    ids=["release without server", "release without address", "decline without server", "decline without address"],
)
def test_giving_up_without_saying_what_or_to_whom_is_malformed(ip_packet):
    server = server_with_lease()
    assert handle(ip_packet, server=server) == DhcpResult(drop=DropReason.DHCP_MALFORMED)
    assert len(server.leases(100.0)) == 1


@pytest.mark.parametrize("change", [LeaseChange.RELEASED, LeaseChange.DECLINED])
def test_networkds_release_and_decline_by_unicast_without_server_id_are_taken(change):
    kind = RELEASE if change is LeaseChange.RELEASED else DECLINE
    ip_packet = packet(bootp(tlv((53, kind)), ciaddr=ADDRESS), source=ADDRESS, destination=ROUTER)
    server = server_with_lease()
    assert handle(ip_packet, server=server) == DhcpResult(event=event(change))
    assert server.leases(100.0) == []


@pytest.mark.parametrize("flags", [0, 0x8000])
def test_inform_is_told_options_but_no_address_and_no_lease(flags):
    asked = packet(bootp(tlv((53, INFORM), (55, b"\x3a\x01\x33\x3b")), ciaddr=ADDRESS, flags=flags), source=ADDRESS)
    expected = bootp(tlv((53, ACK), (54, ROUTER), (1, MASK)), op=2, ciaddr=ADDRESS, flags=flags)
    service = replace(SERVICE, t1_s=5, t2_s=6)
    result = handle(asked, service=service)
    assert result == DhcpResult(frames=(to_guest(expected),), event=event(LeaseChange.INFORMED))


def test_inform_binds_nothing():
    server = DhcpServer()
    handle(INFORMING, server=server)
    assert server.leases(100.0) == []


def test_inform_without_ciaddr_is_answered_at_its_source():
    asked = packet(bootp(tlv((53, INFORM))), source=ADDRESS)
    expected = bootp(tlv((53, ACK), (54, ROUTER), *BY_DEFAULT), op=2)
    assert handle(asked).frames == (to_guest(expected),)


@pytest.mark.parametrize(("source", "ciaddr"), [(ADDRESS, OTHER), (OTHER, ZERO), (ZERO, ZERO)])
def test_inform_of_another_address_is_a_spoof(source, ciaddr):
    asked = packet(bootp(tlv((53, INFORM)), ciaddr=ciaddr), source=source)
    assert handle(asked) == DhcpResult(drop=DropReason.SPOOF_IPV4)


# ── port states ──


@pytest.mark.parametrize(
    "ip_packet", [discover(), SELECTING, INIT_REBOOT, RENEWING, REBINDING], ids=["D", "S", "I", "RN", "RB"]
)
@pytest.mark.parametrize("endpoint", [TENTATIVE, replace(TENTATIVE, address=None), replace(ENDPOINT, address=None)])
def test_what_comes_before_the_confirmation_waits_and_is_then_answered_as_if_sent_now(ip_packet, endpoint):
    server = DhcpServer()
    assert handle(ip_packet, endpoint, server=server) == DhcpResult(waiting=True)
    assert server.leases(100.0) == []
    late = server.confirmed(ENDPOINT, SERVICE, None, 100.0 + PENDING_LIFE_S)
    assert late == handle(ip_packet)
    assert server.confirmed(ENDPOINT, SERVICE, None, 100.0 + PENDING_LIFE_S) == DhcpResult()


def test_only_the_last_request_of_a_port_waits():
    server = DhcpServer()
    handle(discover(xid=1), TENTATIVE, server=server)
    handle(discover(xid=2), TENTATIVE, server=server)
    assert server.confirmed(ENDPOINT, SERVICE, None, 100.0).frames == (to_guest(offer(xid=2)),)


def test_a_confirmation_that_is_none_keeps_the_request():
    server = DhcpServer()
    handle(discover(), TENTATIVE, server=server)
    assert server.confirmed(TENTATIVE, SERVICE, None, 101.0) == DhcpResult(waiting=True)
    assert server.confirmed(ENDPOINT, SERVICE, None, 102.0).frames == (to_guest(offer()),)


def test_a_request_that_waited_too_long_is_not_answered():
    server = DhcpServer()
    handle(discover(), TENTATIVE, server=server)
    assert server.confirmed(TENTATIVE, SERVICE, None, 109.0).waiting
    assert server.confirmed(ENDPOINT, SERVICE, None, 100.1 + PENDING_LIFE_S) == DhcpResult()


def test_full_table_of_waiting_requests_loses_the_oldest():
    server = DhcpServer()
    for port in range(1, MAX_PENDING + 2):
        assert handle(discover(), replace(TENTATIVE, port=port), server=server).waiting
    answered = [
        port
        for port in range(1, MAX_PENDING + 2)
        if server.confirmed(replace(ENDPOINT, port=port), SERVICE, None, 100.0).frames
    ]
    assert answered == list(range(2, MAX_PENDING + 2))


def test_full_table_takes_another_request_of_a_waiting_port_without_a_loss():
    server = DhcpServer()
    for port in range(1, MAX_PENDING + 1):
        handle(discover(), replace(TENTATIVE, port=port), server=server)
    handle(discover(), replace(TENTATIVE, port=5), server=server)
    assert server.confirmed(replace(ENDPOINT, port=1), SERVICE, None, 100.0).frames


@pytest.mark.parametrize("ip_packet", [SELECTING, INIT_REBOOT, RENEWING, REBINDING], ids=["S", "I", "RN", "RB"])
def test_every_request_of_a_fenced_endpoint_gets_nak(ip_packet):
    server = server_with_lease()
    result = handle(ip_packet, FENCED, server=server)
    refusal = event(LeaseChange.REFUSED, 0, FENCED_TEXT.decode())
    assert result == DhcpResult(frames=(to_guest(nak(FENCED_TEXT), **TO_ALL),), event=refusal)
    assert server.leases(100.0) == []


def test_a_request_that_waits_for_a_port_that_is_then_fenced_gets_nak():
    server = DhcpServer()
    handle(INIT_REBOOT, TENTATIVE, server=server)
    assert server.confirmed(FENCED, SERVICE, None, 100.0).frames == (to_guest(nak(FENCED_TEXT), **TO_ALL),)


@pytest.mark.parametrize(
    ("ip_packet", "state"),
    [
        (discover(), PortState.FENCED),
        (INFORMING, PortState.FENCED),
        (INFORMING, PortState.TENTATIVE),
        *[(p, PortState.INCOMING) for p in (discover(), SELECTING, RENEWING, INFORMING, RELEASING, DECLINING)],
    ],
)
def test_a_port_that_is_not_active_gets_no_service(ip_packet, state):
    result = handle(ip_packet, replace(ENDPOINT, state=state), server=server_with_lease())
    assert result == DhcpResult(drop=DropReason.PORT_NOT_ACTIVE)


# ── hostile packets ──

GOOD = bootp(tlv((53, DISCOVER)))


@pytest.mark.parametrize(
    ("ip_packet", "reason"),
    [
        (packet(bootp(tlv((53, OFFER)), op=2)), DropReason.ROGUE_DHCP),
        (packet(bootp(tlv((53, DISCOVER)), op=2)), DropReason.ROGUE_DHCP),
        (packet(bootp(tlv((53, OFFER)))), DropReason.ROGUE_DHCP),
        (packet(bootp(tlv((53, ACK)))), DropReason.ROGUE_DHCP),
        (packet(bootp(tlv((53, NAK)))), DropReason.ROGUE_DHCP),
        (packet(bootp(tlv((53, OFFER)), op=2), dport=68, sport=67), DropReason.ROGUE_DHCP),
        (packet(b"noise", dport=68), DropReason.ROGUE_DHCP),
        (packet(GOOD, destination=OTHER), DropReason.ROGUE_DHCP),
        (packet(GOOD, dport=69), DropReason.DHCP_MALFORMED),
        (packet(bootp(tlv((53, DISCOVER)), giaddr=OTHER)), DropReason.DHCP_MALFORMED),
        (packet(bootp(tlv((53, DISCOVER)), chaddr=VMAC[:5] + b"\xc4")), DropReason.SPOOF_MAC),
        (packet(bootp(tlv((12, b"bootp")))), DropReason.DHCP_MALFORMED),
        (packet(bootp(b"", cookie=bytes(4))), DropReason.DHCP_MALFORMED),
        (packet(bootp(tlv((53, b"\0")))), DropReason.DHCP_MALFORMED),
        (packet(bootp(tlv((53, b"\x09")))), DropReason.DHCP_MALFORMED),
        (packet(bootp(tlv((53, b"\x01\x01")))), DropReason.DHCP_MALFORMED),
        (packet(bootp(tlv((53, b"")))), DropReason.DHCP_MALFORMED),
        (packet(bootp(tlv((53, b"\x01"), (53, b"\x01")))), DropReason.DHCP_MALFORMED),
        (packet(bootp(tlv((53, REQUEST), (50, ADDRESS[:3])))), DropReason.DHCP_MALFORMED),
        (packet(bootp(tlv((53, REQUEST), (54, ROUTER + b"\0"), (50, ADDRESS)))), DropReason.DHCP_MALFORMED),
        (packet(bootp(tlv((53, DISCOVER), (61, b"i" * 255), (61, b"i")))), DropReason.DHCP_MALFORMED),
        (packet(b""), DropReason.DHCP_MALFORMED),
        (packet(GOOD)[:40], DropReason.TRUNCATED),
        (b"", DropReason.TRUNCATED),
        (packet(GOOD)[:-1] + b"\1", DropReason.UDP_MALFORMED),
        (bytes(IP(src="0.0.0.0", dst="255.255.255.255", proto=6) / Raw(GOOD)), DropReason.DHCP_MALFORMED),
        (bytes(fragment(IP(dst="255.255.255.255") / UDP(sport=68, dport=67) / Raw(GOOD), 160)[0]),
         DropReason.DHCP_MALFORMED),
        (bytes(fragment(IP(dst="255.255.255.255") / UDP(sport=68, dport=67) / Raw(GOOD), 160)[1]),
         DropReason.DHCP_MALFORMED),
    ],
    ids=[
        "an offer", "op reply", "offer with op request", "ack with op request", "nak with op request",
        "offer to a client's port", "noise to a client's port", "to another server", "to no port of ours",
        "relayed", "another's chaddr", "no message type", "BOOTP", "type 0", "type 9", "type of two bytes",
        "type empty", "type twice", "requested address short", "server id long", "client id of 256 bytes", "empty",
        "truncated", "nothing", "UDP checksum", "TCP", "first fragment", "second fragment",
    ],
)  # fmt: skip
def test_hostile_packet_is_dropped_with_its_reason(ip_packet, reason):
    server = server_with_lease()
    before = server.leases(100.0)
    assert handle(ip_packet, server=server) == DhcpResult(drop=reason)
    assert server.leases(100.0) == before


def test_a_rogue_packet_does_not_displace_a_request_that_waits():
    server = DhcpServer()
    handle(discover(), TENTATIVE, server=server)
    handle(packet(b"noise", dport=68), TENTATIVE, server=server)
    assert server.confirmed(ENDPOINT, SERVICE, None, 100.0).frames == (to_guest(offer()),)


# ── lease state ──


def lease(**fields) -> Lease:
    plain = {
        "port": 11,
        "subnet": ENDPOINT.subnet,
        "vmac": VMAC,
        "address": ADDRESS,
        "lease_s": 3600,
        "remaining_s": 3600.0,
        "hostname": "",
        "vendor_class": "",
        "client_id": b"",
    }
    return Lease(**(plain | fields))


def test_a_lease_runs_from_its_ack_and_is_renewed_by_the_next():
    server = server_with_lease()
    assert server.leases(1100.0) == [lease(remaining_s=2600.0)]
    handle(RENEWING, server=server, now=1900.0)
    assert server.leases(1900.0) == [lease()]


def test_a_lease_that_ran_out_is_forgotten():
    server = server_with_lease()
    assert server.leases(3699.9) == [lease(remaining_s=pytest.approx(0.1))]
    assert server.leases(3700.0) == []
    assert server.leases(100.0) == []


def test_an_infinite_lease_does_not_run_out():
    server = DhcpServer()
    handle(SELECTING, service=replace(SERVICE, lease_s=0xFFFFFFFF), server=server)
    assert server.leases(1e12) == [lease(lease_s=0xFFFFFFFF, remaining_s=float("inf"))]


def test_a_clients_words_are_bounded_and_printable():
    words = ((12, b"evil\n\x1b[31m" + b"h" * 100), (60, b"MSFT 5.0\x00\xff"), (61, CLIENT_ID))
    server = DhcpServer()
    result = handle(packet(bootp(tlv((53, REQUEST), (50, ADDRESS), *words))), server=server)
    seen = {"hostname": "evil??[31m" + "h" * 54, "vendor_class": "MSFT 5.0??", "client_id": CLIENT_ID}
    assert result.event == event(LeaseChange.BOUND, 3600, "init-reboot", **seen)
    assert server.leases(100.0) == [lease(**seen)]


def test_leases_move_to_another_server_with_their_remaining_time():
    moved = [replace(one, port=44) for one in server_with_lease().leases(200.0)]
    server = DhcpServer()
    server.restore(moved, 5000.0)
    assert server.leases(5500.0) == [lease(port=44, remaining_s=3000.0)]
    release = handle(RELEASING, replace(ENDPOINT, port=44), server=server, now=5500.0)
    assert release.event == replace(event(LeaseChange.RELEASED), port=44)


def test_a_lease_that_ran_out_meanwhile_is_not_restored():
    server = DhcpServer()
    server.restore([lease(remaining_s=0.0)], 0.0)
    assert server.leases(0.0) == []


def test_a_forgotten_port_has_neither_lease_nor_request():
    server = server_with_lease()
    handle(discover(), TENTATIVE, server=server)
    server.forget(11)
    server.forget(12)
    assert server.leases(100.0) == []
    assert server.confirmed(ENDPOINT, SERVICE, None, 100.0) == DhcpResult()


def test_another_client_of_the_same_port_takes_the_lease_over():
    server = server_with_lease()
    rom = packet(bootp(tlv((53, REQUEST), (54, ROUTER), (50, ADDRESS), (61, b"\0rom"))))
    handle(rom, server=server, now=200.0)
    assert server.leases(200.0) == [lease(client_id=b"\0rom")]
