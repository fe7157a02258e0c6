"""What a rule speaks of on the wire: protocols, ports, ICMP types; and how ranges of them become prefixes.

    any    PROTOCOL    tcp|udp|sctp/PORT    …/LOW-HIGH    …/NAME    icmp/TYPE    icmp/TYPE/CODE    icmp/NAME

A packet is one point of a space of 24 bits, and a service is a range in it. ICMP's type and code are in the place of
the port, so that `icmp/TYPE` is a prefix:

     0        8                24
    +--------+----------------+        /0   any protocol
    |protocol|      port      |        /8   a protocol, any port
    +--------+----------------+        /24  one port
    |   1    | type  |  code  |        /16  an ICMP type, any code
    +--------+-------+--------+

The port is the destination port of a flow's first packet. Names are a table of this module and never /etc/services: a
policy means the same on every host.
"""

import re
from dataclasses import dataclass
from typing import NamedTuple

from divhook.config.problems import did_you_mean
from divhook.config.values import BadValueError, shown

ICMP, TCP, UDP, SCTP = 1, 6, 17, 132
MAX_PORT = 0xFFFF
SPACE_BITS = 24
"""Protocol and port together."""

PROTOCOLS = {"icmp": ICMP, "igmp": 2, "ipip": 4, "tcp": TCP, "udp": UDP, "gre": 47, "esp": 50, "ah": 51, "ospf": 89,
             "vrrp": 112, "sctp": SCTP}  # fmt: skip
"""IANA protocol numbers that have a name in policies; any other protocol is written as a number."""
PROTOCOL_NAMES = {number: name for name, number in PROTOCOLS.items()}

_TCP_NAMES = {
    "ftp": 21, "ssh": 22, "telnet": 23, "smtp": 25, "dns": 53, "http": 80, "kerberos": 88, "pop3": 110, "imap": 143,
    "ldap": 389, "https": 443, "smb": 445, "submissions": 465, "syslog": 514, "submission": 587, "ldaps": 636,
    "dns-over-tls": 853, "rsync": 873, "imaps": 993, "pop3s": 995, "mssql": 1433, "nfs": 2049, "etcd": 2379,
    "mysql": 3306, "rdp": 3389, "iscsi": 3260, "postgresql": 5432, "amqp": 5672, "vnc": 5900, "redis": 6379,
    "kubernetes": 6443, "http-alt": 8080, "https-alt": 8443, "elasticsearch": 9200, "memcached": 11211,
    "mongodb": 27017,
}  # fmt: skip
_UDP_NAMES = {
    "dns": 53, "tftp": 69, "kerberos": 88, "ntp": 123, "snmp": 161, "snmp-trap": 162, "https": 443, "ike": 500,
    "syslog": 514, "openvpn": 1194, "radius": 1812, "nfs": 2049, "ike-nat": 4500, "sip": 5060, "memcached": 11211,
    "wireguard": 51820,
}  # fmt: skip
SERVICE_NAMES = {TCP: _TCP_NAMES, UDP: _UDP_NAMES, SCTP: {"s1ap": 36412, "ngap": 38412, "diameter": 3868}}
"""Port names by protocol (IANA service registry, without its rarities)."""
ICMP_NAMES: dict[str, tuple[int, int | None]] = {
    "echo-reply": (0, None), "destination-unreachable": (3, None), "network-unreachable": (3, 0),
    "host-unreachable": (3, 1), "port-unreachable": (3, 3), "fragmentation-needed": (3, 4), "redirect": (5, None),
    "echo-request": (8, None), "ping": (8, None), "time-exceeded": (11, None), "parameter-problem": (12, None),
    "timestamp-request": (13, None), "timestamp-reply": (14, None),
}  # fmt: skip
"""name: (type, code); code None is any code (RFC 792)."""


class Prefix(NamedTuple):
    """A prefix of the space of protocol and port: `value` has 24 bits, those after `length` are zero."""

    value: int
    length: int

    def covers(self, other: "Prefix") -> bool:
        """Whether all of the other is inside."""
        return self.length <= other.length and (self.value ^ other.value) >> (SPACE_BITS - self.length) == 0

    @property
    def last(self) -> int:
        """The last point inside."""
        return self.value | ((1 << (SPACE_BITS - self.length)) - 1)


@dataclass(frozen=True, slots=True)
class Service:
    """A protocol (None: any) and a range of ports, both ends included; of ICMP, type << 8 | code."""

    protocol: int | None = None
    low: int = 0
    high: int = MAX_PORT

    @property
    def width(self) -> int:
        """Points of the space that it has: what makes one service narrower than another."""
        return (1 << SPACE_BITS) if self.protocol is None else self.high - self.low + 1

    def matches(self, protocol: int, port: int) -> bool:
        """Whether a packet belongs to it. port: 0 where the protocol has none."""
        return self.protocol is None or (self.protocol == protocol and self.low <= port <= self.high)

    def covers(self, other: "Service") -> bool:
        """Whether all of the other is inside."""
        return self.protocol is None or (
            self.protocol == other.protocol and self.low <= other.low and other.high <= self.high
        )

    def overlaps(self, other: "Service") -> bool:
        """Whether any packet belongs to both."""
        if self.protocol is None or other.protocol is None:
            return True
        return self.protocol == other.protocol and self.low <= other.high and other.low <= self.high

    def prefixes(self) -> tuple[Prefix, ...]:
        """The fewest prefixes that make up the range, in order: at most 30."""
        if self.protocol is None:
            return (Prefix(0, 0),)
        found, low, base = [], self.low, self.protocol << 16
        while low <= self.high:
            size = (low & -low) or MAX_PORT + 1  # the largest block that may start here …
            while low + size - 1 > self.high:  # … and does not reach too far
                size >>= 1
            found.append(Prefix(base | low, SPACE_BITS - size.bit_length() + 1))
            low += size
        return tuple(found)

    def __str__(self) -> str:
        if self.protocol is None:
            return "any"
        name = PROTOCOL_NAMES.get(self.protocol, str(self.protocol))
        if (self.low, self.high) == (0, MAX_PORT):
            return name
        if self.protocol == ICMP:
            kind, code = self.low >> 8, self.low & 0xFF
            return f"icmp/{kind}" if self.high != self.low else f"icmp/{kind}/{code}"
        return f"{name}/{self.low}" + (f"-{self.high}" if self.high != self.low else "")


ANY_SERVICE = Service()
_EXAMPLES = "as in tcp/443, udp/5000-5100, icmp/echo-request, sctp, 47 or any"


def parse_service(value: object) -> Service:
    """One service as a file or a command line has it. Raises BadValueError."""
    if isinstance(value, int) and not isinstance(value, bool):
        value = str(value)
    if not isinstance(value, str) or not value:
        raise BadValueError(f"{shown(value)} is no service", _EXAMPLES)
    text = value.lower()
    if text == "any":
        return ANY_SERVICE
    word, slash, rest = text.partition("/")
    protocol = _protocol(word, value)
    if not slash:
        return Service(protocol)
    if protocol == ICMP:
        return _icmp(rest, value)
    if protocol not in SERVICE_NAMES:
        raise BadValueError(f"{shown(value)}: only tcp, udp, sctp and icmp have ports or types", f"write {word}")
    low, dash, high = rest.partition("-")
    if dash and low.isdigit() and high.isdigit():
        first, last = _port(low, value), _port(high, value)
        if first > last:
            raise BadValueError(f"{shown(value)}: the range ends before it starts", f"write {word}/{last}-{first}")
        return Service(protocol, first, last)
    port = _port(rest, value) if rest.isascii() and rest.isdigit() else _named(protocol, word, rest, value)
    return Service(protocol, port, port)


def _protocol(word: str, value: str) -> int:
    if word.isascii() and word.isdigit():
        if int(word) > 255:
            hint = f"for a port write tcp/{word} or udp/{word}" if int(word) <= MAX_PORT else ""
            raise BadValueError(f"{word} is no IP protocol: 0 to 255", hint)
        return int(word)
    if word not in PROTOCOLS:
        homes = [name for name in ("tcp", "udp", "sctp") if word in SERVICE_NAMES[PROTOCOLS[name]]]
        hint = f"write {' or '.join(f'{home}/{word}' for home in homes)}" if homes else ""
        hint = hint or did_you_mean(word, [*PROTOCOLS, "any"], "protocols")
        raise BadValueError(f"{'' if word == value else shown(value) + ': '}{word!r} is no protocol", hint)
    return PROTOCOLS[word]


def _port(text: str, value: str) -> int:
    if len(text) > 5 or int(text) > MAX_PORT:
        raise BadValueError(f"{shown(value)}: {text} is no port", f"0 to {MAX_PORT}")
    return int(text)


def _named(protocol: int, word: str, name: str, value: str) -> int:
    names = SERVICE_NAMES[protocol]
    if name in names:
        return names[name]
    if not re.fullmatch(r"[a-z][a-z0-9-]*", name):
        raise BadValueError(f"{shown(value)} is no service", _EXAMPLES)
    homes = [home for home in ("tcp", "udp", "sctp") if name in SERVICE_NAMES[PROTOCOLS[home]]]
    hint = f"write {' or '.join(f'{home}/{name}' for home in homes)}" if homes else ""
    hint = hint or did_you_mean(name, names, "known") + " or write the port's number"
    raise BadValueError(f"{shown(value)}: no port of {word} is called {name!r}", hint)


def _icmp(rest: str, value: str) -> Service:
    if rest in ICMP_NAMES:
        kind, code = ICMP_NAMES[rest]
    elif match := re.fullmatch(r"([0-9]{1,3})(?:/([0-9]{1,3}))?", rest):
        kind, code = int(match[1]), int(match[2]) if match[2] else None
        if kind > 255 or (code or 0) > 255:
            raise BadValueError(f"{shown(value)}: ICMP types and codes are 0 to 255", "as in icmp/3/4")
    else:
        hint = did_you_mean(rest, ICMP_NAMES, "ICMP types")
        raise BadValueError(f"{shown(value)}: {rest!r} is no ICMP type", f"{hint} or write its number")
    if code is None:
        return Service(ICMP, kind << 8, kind << 8 | 0xFF)
    return Service(ICMP, kind << 8 | code, kind << 8 | code)
