"""Services, their prefixes, and the pieces that they cut the space into."""

import pytest

from divhook.config.values import BadValueError
from divhook.policy.prefixes import PrefixSet, covering, last_of, pack, unpack
from divhook.policy.services import ICMP, SCTP, TCP, UDP, Prefix, Service, parse_service
from divhook.policy.space import joined, pieces, sample


@pytest.mark.parametrize(
    ("text", "service", "shown"),
    [
        ("any", Service(), "any"),
        ("ANY", Service(), "any"),
        ("tcp", Service(TCP), "tcp"),
        (47, Service(47), "gre"),
        ("6", Service(TCP), "tcp"),
        ("200", Service(200), "200"),
        ("tcp/443", Service(TCP, 443, 443), "tcp/443"),
        ("6/443", Service(TCP, 443, 443), "tcp/443"),
        ("TCP/https", Service(TCP, 443, 443), "tcp/443"),
        ("udp/dns", Service(UDP, 53, 53), "udp/53"),
        ("sctp/diameter", Service(SCTP, 3868, 3868), "sctp/3868"),
        ("udp/5000-5100", Service(UDP, 5000, 5100), "udp/5000-5100"),
        ("tcp/7-7", Service(TCP, 7, 7), "tcp/7"),
        ("tcp/0-65535", Service(TCP), "tcp"),
        ("icmp", Service(ICMP), "icmp"),
        ("icmp/8", Service(ICMP, 0x0800, 0x08FF), "icmp/8"),
        ("icmp/ping", Service(ICMP, 0x0800, 0x08FF), "icmp/8"),
        ("icmp/3/4", Service(ICMP, 0x0304, 0x0304), "icmp/3/4"),
        ("icmp/fragmentation-needed", Service(ICMP, 0x0304, 0x0304), "icmp/3/4"),
    ],
)
def test_a_service_is_read_and_shown(text: object, service: Service, shown: str) -> None:
    assert parse_service(text) == service
    assert str(service) == shown
    assert parse_service(shown) == service


@pytest.mark.parametrize(
    "wrong", [True, None, "", "tcp/", "tcp/-5", "tcp/5-", "tcp/1-2-3", "icmp/3/4/5", "tcp/٣", 256, -1]
)
def test_what_is_no_service_is_refused(wrong: object) -> None:
    with pytest.raises(BadValueError):
        parse_service(wrong)


@pytest.mark.parametrize(
    ("service", "prefixes"),
    [
        (Service(), [(0, 0)]),
        (Service(TCP), [(TCP << 16, 8)]),
        (Service(TCP, 80, 80), [(TCP << 16 | 80, 24)]),
        (Service(ICMP, 0x0800, 0x08FF), [(ICMP << 16 | 0x0800, 16)]),
        (Service(UDP, 1, 6), [(UDP << 16 | 1, 24), (UDP << 16 | 2, 23), (UDP << 16 | 4, 23), (UDP << 16 | 6, 24)]),
        (Service(UDP, 1024, 65535), [(UDP << 16 | 1 << at, 14 - (at - 10)) for at in range(10, 16)]),
    ],
)
def test_a_range_becomes_the_fewest_prefixes(service: Service, prefixes: list[tuple[int, int]]) -> None:
    assert [tuple(p) for p in service.prefixes()] == prefixes


def test_the_worst_range_takes_thirty_prefixes() -> None:
    found = Service(TCP, 1, 65534).prefixes()
    assert len(found) == 30
    assert sum(p.last - p.value + 1 for p in found) == 65534


def test_prefixes_cover_what_lies_within_them() -> None:
    assert Prefix(0, 0).covers(Prefix(TCP << 16 | 80, 24))
    assert Prefix(TCP << 16, 8).covers(Prefix(TCP << 16, 8))
    assert not Prefix(TCP << 16 | 80, 24).covers(Prefix(TCP << 16, 8))
    assert not Prefix(TCP << 16, 8).covers(Prefix(UDP << 16 | 80, 24))


def test_services_know_what_they_share() -> None:
    web, high, all_tcp = Service(TCP, 80, 90), Service(TCP, 85, 99), Service(TCP)
    assert web.overlaps(high)
    assert not web.covers(high)
    assert all_tcp.covers(web)
    assert not web.overlaps(Service(TCP, 91, 92))
    assert not web.overlaps(Service(UDP, 80, 90))
    assert Service().covers(all_tcp)
    assert not all_tcp.covers(Service())
    assert all_tcp.overlaps(Service())
    assert web.matches(TCP, 80)
    assert not web.matches(TCP, 91)
    assert not web.matches(UDP, 80)
    assert Service().matches(47, 0)
    assert (web.width, all_tcp.width, Service().width) == (11, 65536, 1 << 24)


def test_packed_prefixes_stand_before_what_they_cover() -> None:
    ordered = [
        pack(0x0A000000, 8),
        pack(0x0A000000, 24),
        pack(0x0A000100, 24),
        pack(0x0A010000, 16),
        pack(0x0B000000, 8),
    ]
    assert sorted(ordered) == ordered
    assert unpack(ordered[2]) == (0x0A000100, 24)
    assert last_of(ordered[3], 32) == 0x0A01FFFF
    assert list(covering(pack(0x0A000100, 24), 32))[:2] == [pack(0x0A000100, 24), pack(0x0A000000, 23)]
    assert len(list(covering(pack(0x0A000100, 24), 32))) == 25
    prefixes = PrefixSet(32, ordered)
    assert prefixes.below(ordered[0]) == ordered[:4]
    prefixes.remove(ordered[2])
    prefixes.add(pack(0x0A0000FF, 32))
    assert prefixes.below(ordered[1]) == [ordered[1], pack(0x0A0000FF, 32)]


def test_the_space_is_cut_where_services_begin_and_end() -> None:
    services = [Service(TCP, 80, 90), Service(TCP, 85, 65535), Service(UDP), Service()]
    found = pieces(services)
    assert [str(p) for p in found] == ["tcp/0-79", "tcp/80-84", "tcp/85-90", "tcp/91-65535", "udp", "any"]
    assert [str(p) for p in joined(found)] == ["tcp", "udp", "any"]
    assert [str(p) for p in joined([found[0], found[2], found[3]])] == ["tcp/0-79", "tcp/85-65535"]
    assert sample(found[1], services) == Service(TCP, 80, 80)
    assert sample(found[-1], [Service(255), *services]) == Service(254, 0, 0)
