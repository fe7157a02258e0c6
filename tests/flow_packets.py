"""Packets for flow tests, and random sequences of them: few addresses and ports, so that they meet."""

import struct
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from divhook.core.addressing import Address
from divhook.core.flow import TIMEOUTS_S
from divhook.core.wire.ipv4 import Ipv4

WEB = bytes((10, 21, 37, 54))
BESIDE = bytes((10, 21, 37, 77))
FAR = bytes((10, 21, 37, 99))
OTHER_SUBNET = bytes((10, 21, 36, 8))
ROUTER = bytes((10, 21, 37, 1))

FIN, SYN, RST, PSH, ACK, URG = 0x01, 0x02, 0x04, 0x08, 0x10, 0x20
ICMP, TCP, UDP, GRE, SCTP = 1, 6, 17, 47, 132

UNREACHABLE, SOURCE_QUENCH, REDIRECT, TIME_EXCEEDED, PARAMETER = 3, 4, 5, 11, 12
TIMESTAMP, TIMESTAMP_REPLY = 13, 14


def ip(source: Address, destination: Address, protocol: int, payload: bytes, **fields: Any) -> bytes:
    """A whole IPv4 packet; fields: of Ipv4."""
    return Ipv4(source=source, destination=destination, protocol=protocol, payload=payload, **fields).emit()


def segment(sport: int, dport: int, flags: int, payload: bytes = b"", *, data_offset: int = 5) -> bytes:
    """A TCP header, without checksum, and what follows."""
    return struct.pack("!HHIIBBHHH", sport, dport, 0x11223344, 0x55667788, data_offset << 4, flags, 512, 0, 0) + payload


def tcp(source: Address, destination: Address, sport: int, dport: int, flags: int, **fields: Any) -> bytes:
    return ip(source, destination, TCP, segment(sport, dport, flags), **fields)


def datagram(sport: int, dport: int, payload: bytes = b"datagram") -> bytes:
    return struct.pack("!HHHH", sport, dport, 8 + len(payload), 0) + payload


def udp(source: Address, destination: Address, sport: int, dport: int, **fields: Any) -> bytes:
    return ip(source, destination, UDP, datagram(sport, dport), **fields)


def message(kind: int, code: int, rest: bytes, payload: bytes = b"") -> bytes:
    """An ICMP message, without checksum."""
    return struct.pack("!BBH4s", kind, code, 0, rest) + payload


def echo(source: Address, destination: Address, identifier: int, *, reply: bool = False, **fields: Any) -> bytes:
    rest = struct.pack("!HH", identifier, 9)
    return ip(source, destination, ICMP, message(0 if reply else 8, 0, rest, b"pingpingpingping"), **fields)


def icmp_error(source: Address, destination: Address, quoted: bytes, kind: int = UNREACHABLE, code: int = 1) -> bytes:
    """quoted: as much of a packet as the error has."""
    return ip(source, destination, ICMP, message(kind, code, bytes(4), quoted))


def sctp(source: Address, destination: Address, sport: int, dport: int, **fields: Any) -> bytes:
    return ip(source, destination, SCTP, struct.pack("!HHII", sport, dport, 7, 0) + b"chunks..", **fields)


@dataclass(frozen=True, slots=True)
class Age:
    """All entries grow older by so many seconds."""

    seconds: int


Pick = Callable[[Sequence[Any]], Any]
"""Takes one: random.Random.choice, or Hypothesis."""

_NO_OPERATIONS = b"\x01\x01\x01\x01"
_MARGIN_S = 20
_AGES = sorted({limit + margin for limit in TIMEOUTS_S.values() for margin in (-_MARGIN_S, _MARGIN_S)})
_TCP_FLAGS = (SYN, SYN, SYN | ACK, SYN | ACK, ACK, ACK, ACK | PSH, FIN | ACK, RST, RST | ACK, SYN | URG)
_WRONG_FLAGS = (0, FIN, SYN | FIN, SYN | RST, FIN | RST | ACK, SYN | FIN | RST | ACK | PSH | URG, PSH)
_ERRORS = (UNREACHABLE, UNREACHABLE, TIME_EXCEEDED, PARAMETER, SOURCE_QUENCH, REDIRECT)
_FRAGMENT = struct.pack("!HHIIBBHHH", 80, 5000, 1, 1, 0x50, SYN, 1, 0, 0) + b"four"  # looks like a transport header
_PAIRS = tuple((a, b) for a in (WEB, BESIDE) for b in (WEB, BESIDE, FAR, OTHER_SUBNET) if a != b)


def whole(pick: Pick, source: Address, destination: Address, **fields: Any) -> bytes:
    """A packet that may be of a flow between two endpoints."""
    kind = pick(("tcp", "tcp", "tcp", "udp", "echo", "sctp", "gre"))
    sport, dport = (5000, 80) if source < destination else (80, 5000)
    if pick((False,) * 9 + (True,)):
        sport, dport = dport, sport
    if kind == "tcp":
        return tcp(source, destination, sport, dport, pick(pick((_TCP_FLAGS,) * 9 + (_WRONG_FLAGS,))), **fields)
    if kind == "udp":
        return udp(source, destination, sport, dport, **fields)
    if kind == "sctp":
        return sctp(source, destination, sport, dport, **fields)
    if kind == "gre":
        return ip(source, destination, GRE, b"\x00\x00\x08\x00tunnelled", **fields)
    return echo(source, destination, pick((3, 0x0403)), reply=pick((False, True)), **fields)


def _cut(pick: Pick, source: Address, destination: Address) -> bytes:
    """A packet that is too short for its protocol, or has something wrong."""
    return bytes(
        pick(
            (
                ip(source, destination, TCP, segment(5000, 80, SYN)[:16]),
                ip(source, destination, TCP, segment(5000, 80, SYN, data_offset=4)),
                ip(source, destination, UDP, b"\x13\x88\x00\x50"),
                ip(source, destination, SCTP, b"\x13\x88\x00\x50\x00\x00\x00\x00"),
                ip(source, destination, ICMP, b"\x08\x00\x00\x00"),
                ip(source, destination, GRE, b""),
                ip(source, destination, ICMP, message(8, 1, b"\x00\x03\x00\x09")),
                ip(
                    source,
                    destination,
                    ICMP,
                    message(pick((TIMESTAMP, TIMESTAMP_REPLY)), 0, b"\x00\x03\x00\x09", bytes(12)),
                ),
            )
        )
    )


def _error(pick: Pick, source: Address, destination: Address) -> bytes:
    """About a packet that went the other way, mostly."""
    to = pick((source,) * 5 + (FAR, BESIDE))
    sent_by, to = pick(((destination, to),) * 5 + ((to, destination),))
    quoted = whole(pick, sent_by, to, **pick(({}, {}, {"options": _NO_OPERATIONS}, _fragment(pick))))
    quoted = quoted[: pick((len(quoted),) * 5 + (28, 27, 20, 19, 0))]
    if quoted:
        quoted = bytes((pick((quoted[0],) * 8 + (0x44, 0x65, 0x4F)),)) + quoted[1:]
    reporter = pick((source, source, ROUTER)) if destination in (WEB, BESIDE) else source
    return icmp_error(reporter, destination, quoted, pick(_ERRORS), pick((0, 1, 4)))


def _fragment(pick: Pick) -> dict[str, Any]:
    """Offset and flags of a part of a datagram: mostly the first."""
    return {
        "identification": pick((7, 8)),
        **pick(({"more_fragments": True}, {"more_fragments": True, "fragment_offset": 24})),
    }


def walk(pick: Pick, steps: int) -> Iterator[bytes | Age]:
    """Packets between endpoints, and time: mostly of a few flows, as they would come or in any order."""
    pairs = [pick(_PAIRS), pick(_PAIRS)]
    for _ in range(steps):
        source, destination = pick((pairs[0], pairs[0], pairs[1], pick(_PAIRS)))
        if pick((False, True)):
            source, destination = destination, source
        yield _step(pick, source, destination)


def _step(pick: Pick, source: Address, destination: Address) -> bytes | Age:
    kind = pick(("whole",) * 24 + ("first", "first", "later", "later", "error", "error", "error", "cut", "age"))
    if kind == "age":
        return Age(pick((1, 1, *_AGES)))
    if kind == "cut":
        return _cut(pick, source, destination)
    if kind == "error":
        return _error(pick, source, destination)
    fields: dict[str, Any] = {"options": pick((b"", b"", b"", _NO_OPERATIONS))}
    if kind == "first":
        fields |= {"identification": pick((7, 8)), "more_fragments": True}
    if kind == "later":
        fields |= _fragment(pick) | {"fragment_offset": pick((24, 1480)), "more_fragments": pick((True, False))}
        return ip(source, destination, pick((TCP, TCP, UDP, ICMP, SCTP, GRE)), _FRAGMENT, **fields)
    return whole(pick, source, destination, **fields)
