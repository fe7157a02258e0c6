"""What clients are told: each option byte by byte, which are told, in which order, in how much room."""

from dataclasses import replace

import pytest
from dhcp_bytes import (
    ACK,
    ADDRESS,
    BROADCAST,
    DISCOVER,
    ENDPOINT,
    MASK,
    OFFER,
    OTHER,
    REQUEST,
    ROUTER,
    SERVICE,
    VMAC,
    bootp,
    packet,
    tlv,
    to_guest,
)

from divhook.core.addressing import parse_address
from divhook.core.dhcp import DhcpResult, DhcpServer, SubnetService

LEASE = (51, b"\0\0\x0e\x10")
CLIENT_ID = b"\xff\x01\x02\x03\x04"
FULL = replace(
    SERVICE,
    dns=(parse_address("10.7.9.1"), parse_address("9.9.9.10")),
    domain="eng.apple.com",
    search=("eng.apple.com", "marketing.apple.com"),
    mtu=1400,
    ntp=(parse_address("10.7.9.5"), parse_address("10.7.9.6")),
    routes=((parse_address("10.17.0.0"), 16, parse_address("10.7.9.254")),),
    t1_s=600,
    t2_s=0x0BB8,
    next_server=parse_address("10.7.9.77"),
    boot_file="pxelinux.0",
    extra=((43, b"\x06\x01\x08"), (252, b"http://wpad/")),
)
ROUTES = bytes.fromhex("10 0a11 0a0709fe 00 0a070901")
SEARCH = b"\x03eng\x05apple\x03com\x00\x09marketing\xc0\x04"
TIMES = (LEASE, (58, b"\0\0\x02\x58"), (59, b"\0\0\x0b\xb8"))
BOOT = {"siaddr": parse_address("10.7.9.77"), "file": b"pxelinux.0"}


def ask(*options: tuple[int, bytes], service=SERVICE, hostname=None, endpoint=ENDPOINT) -> DhcpResult:
    return DhcpServer().handle(endpoint, service, hostname, packet(bootp(tlv((53, DISCOVER), *options))), 0.0)


def offered(*options: tuple[int, bytes], **fields) -> tuple[bytes, ...]:
    return (to_guest(bootp(tlv((53, OFFER), (54, ROUTER), *options), op=2, yiaddr=ADDRESS, **fields)),)


@pytest.mark.parametrize(
    ("code", "value"),
    [
        (1, MASK),
        (3, ROUTER),
        (6, bytes.fromhex("0a070901 0909090a")),
        (12, b"web-1"),
        (15, b"eng.apple.com"),
        (26, b"\x05\x78"),
        (28, BROADCAST),
        (42, bytes.fromhex("0a070905 0a070906")),
        (43, b"\x06\x01\x08"),
        (66, b"10.7.9.77"),
        (67, b"pxelinux.0"),
        (119, SEARCH),
        (121, ROUTES),
        (249, ROUTES),
        (252, b"http://wpad/"),
    ],
)
def test_each_option_that_is_asked_for_is_told_alone(code, value):
    result = ask((55, bytes([code])), service=FULL, hostname="web-1")
    assert result == DhcpResult(frames=offered(*TIMES, (code, value), **BOOT))


@pytest.mark.parametrize("code", [6, 12, 15, 42, 43, 66, 67, 119, 121, 249, 2, 33, 80, 82])
def test_what_is_not_configured_is_not_told(code):
    assert ask((55, bytes([code]))) == DhcpResult(frames=offered(LEASE))


@pytest.mark.parametrize("code", [50, 51, 53, 54, 55, 57, 61])
def test_protocol_options_in_the_list_change_nothing(code):
    assert ask((55, bytes([code]))) == DhcpResult(frames=offered(LEASE))


def test_without_a_list_mask_and_router_are_told():
    assert ask(service=FULL).frames == offered(*TIMES, (1, MASK), (3, ROUTER), **BOOT)


def test_options_come_in_the_order_asked_each_once():
    result = ask((55, bytes([28, 6, 1, 28, 3, 15])), service=replace(FULL, t1_s=None, t2_s=None))
    dns, domain = (6, bytes.fromhex("0a070901 0909090a")), (15, b"eng.apple.com")
    assert result.frames == offered(LEASE, (28, BROADCAST), dns, (1, MASK), (3, ROUTER), domain, **BOOT)


def test_the_mask_comes_before_the_router_whatever_the_order_asked():
    assert ask((55, bytes([28, 3, 26, 1]))).frames == offered(
        LEASE, (28, BROADCAST), (1, MASK), (3, ROUTER), (26, b"\x05\xdc")
    )


def test_t1_and_t2_by_default_are_told_when_asked():
    assert ask((55, b"\x3a\x3b")).frames == offered(LEASE, (58, b"\0\0\x07\x08"), (59, b"\0\0\x0c\x4e"))


def test_configured_t1_is_told_unasked_and_not_twice():
    service = replace(SERVICE, t1_s=600)
    assert ask((55, b"\x3a"), service=service).frames == offered(LEASE, (58, b"\0\0\x02\x58"))


def test_client_id_is_echoed_unaltered_before_what_was_asked():
    assert ask((61, CLIENT_ID), (55, b"\x01")).frames == offered(LEASE, (61, CLIENT_ID), (1, MASK))


def test_ack_is_told_the_same_options_as_offer():
    asked = packet(bootp(tlv((53, REQUEST), (50, ADDRESS), (55, b"\x77\x0c"))))
    result = DhcpServer().handle(ENDPOINT, FULL, "web-1", asked, 0.0)
    options = tlv((53, ACK), (54, ROUTER), *TIMES, (119, SEARCH), (12, b"web-1"))
    assert result.frames == (to_guest(bootp(options, op=2, yiaddr=ADDRESS, **BOOT)),)


def test_mtu_is_the_ports_where_the_subnet_says_more_or_nothing():
    port = replace(ENDPOINT, mtu=1450)
    for service in (replace(SERVICE, mtu=9000), SERVICE):
        assert ask((55, b"\x1a"), service=service, endpoint=port).frames == offered(LEASE, (26, b"\x05\xaa"))


def test_a_default_route_that_is_configured_is_not_added_again():
    service = replace(SERVICE, routes=((bytes(4), 0, OTHER),))
    assert ask((55, b"\x79"), service=service).frames == offered(LEASE, (121, b"\0" + OTHER))


@pytest.mark.parametrize("hostname", ["web.eng", "a", "a" * 63, "0-9"])
def test_a_host_name_is_told(hostname):
    assert ask((55, b"\x0c"), hostname=hostname).frames == offered(LEASE, (12, hostname.encode()))


@pytest.mark.parametrize("hostname", ["", "my guest", "web_1", "-a", "a-", "a..b", "a" * 64, "wäb", "a\n", "a.b." * 70])
def test_what_is_no_host_name_is_not_told(hostname):
    assert ask((55, b"\x0c"), hostname=hostname).frames == offered(LEASE)


def test_extra_options_replace_what_is_made_here():
    service = replace(SERVICE, extra=((3, OTHER),))
    assert ask((55, b"\x03"), service=service).frames == offered(LEASE, (3, OTHER))


LONG = replace(SERVICE, extra=((224, b"a" * 200), (225, b"b" * 200), (226, b"c" * 200)))
WANT = (55, bytes([224, 225, 226]))
HEAD = ((53, OFFER), (54, ROUTER), LEASE)


@pytest.mark.parametrize("limit", [None, b"\x02\x40", b"\x00\x00", b"\x02", b"\x02\x3f"])
def test_without_a_legal_maximum_the_answer_fits_576_bytes(limit):
    result = ask(*([(57, limit)] if limit is not None else []), WANT, service=LONG)
    # the second goes to the options field as far as it fits, then to file; the third finds no room
    rest = 308 - 1 - 3 - 15 - 202 - 2
    first = tlv(*HEAD, (224, b"a" * 200), (225, b"b" * rest), (52, b"\x01"))
    expected = bootp(first, op=2, yiaddr=ADDRESS, file=tlv((225, b"b" * (200 - rest))))
    assert len(expected) == 548
    assert result == DhcpResult(frames=(to_guest(expected),), omitted=(226,))


def test_a_client_that_takes_more_gets_more():
    result = ask((57, b"\x05\xdc"), WANT, service=LONG)
    assert result == DhcpResult(frames=offered(LEASE, (224, b"a" * 200), (225, b"b" * 200), (226, b"c" * 200)))


def test_the_answer_never_exceeds_the_ports_mtu():
    for limit in (b"\xff\xff", b"\x05\xdc"):
        result = ask((57, limit), WANT, service=LONG, endpoint=replace(ENDPOINT, mtu=600))
        assert len(result.frames[0]) <= 14 + 600


def test_a_long_option_is_split_by_rfc_3396():
    value = bytes(range(250)) + bytes(50)
    service = replace(SERVICE, extra=((43, value),))
    result = ask((57, b"\x05\xdc"), (55, b"\x2b"), service=service)
    assert result.frames == offered(LEASE, (43, value[:255]), (43, value[255:]))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"lease_s": 0}, "lease time"),
        ({"lease_s": 1 << 32}, "lease time"),
        ({"t1_s": 3500}, "order"),
        ({"t2_s": 3601}, "order"),
        ({"t1_s": -1}, "order"),
        ({"mtu": 67}, "MTU"),
        ({"mtu": 65536}, "MTU"),
        ({"boot_file": "b" * 128}, "boot file"),
        ({"boot_file": "ö"}, "boot file"),
        ({"domain": ""}, "domain name"),
        ({"domain": "ä"}, "domain name"),
        ({"search": ("a..b",)}, "DNS name"),
        ({"routes": ((OTHER, 24, ROUTER),)}, "prefix"),
        ({"extra": ((53, b"\x05"),)}, "option 53"),
        ({"extra": ((0, b""),)}, "option 0"),
        ({"extra": ((255, b""),)}, "option 255"),
        ({"extra": ((256, b""),)}, "option 256"),
        ({"extra": ((43, b"a"), (43, b"b"))}, "twice"),
    ],
)
def test_a_service_that_cannot_be_told_is_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        SubnetService(router=ROUTER, mask=MASK, broadcast=BROADCAST, **fields)


def test_client_hardware_address_is_echoed():
    assert ask().frames[0][14 + 28 + 28 : 14 + 28 + 44] == VMAC + bytes(10)
