"""The conformance suite of policies: what docs/policy.md promises, as data, and how a case becomes packets.

The same cases are run three ways (pytest -m conformance): by the core on two hosts (unit), by the programs' test-run on
the maps of two hosts (bpf), and by real packets between two hosts with real agents (netns). A step says what is sent
and whether it arrives:

    web>db tcp/80 S: pass         from the case's own ephemeral port to port 80; flags S SA A F R
    db>web tcp:80 SA: pass        the way back: from port 80 to the ephemeral port
    web>db udp/53, sctp/9, gre    the same with other protocols;   udp/53 first, udp/53 rest: in two fragments
    web>db echo, db>web echo-reply, web>db icmp/13
    db>web error web>db udp/53    ICMP unreachable, by db, about such a packet

    host A   web, batch: shop/web    db2: shop/db    alien, stranger: lab/web
    host B   web2: shop/web          db: shop/db

Policies of a case come while the guests run: TCP in mid-stream is picked up where it is allowed.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import flow_packets as f

from divhook.config.configuration import Configuration, Placement
from divhook.config.load import load
from divhook.core.addressing import Address, Mac, SubnetId, parse_address, parse_mac

CELLS = Path(__file__).parent.parent / "policies" / "cells"
FIRST_EPHEMERAL = 40_000
FLAGS = {"S": f.SYN, "SA": f.SYN | f.ACK, "A": f.ACK, "F": f.FIN | f.ACK, "R": f.RST}
SUBNETS = {("shop", "web"): SubnetId(1, 1), ("shop", "db"): SubnetId(1, 2), ("lab", "web"): SubnetId(2, 1)}


@dataclass(frozen=True, slots=True)
class Guest:
    """One of the cast."""

    name: str
    number: int
    host: str
    cell: str
    subnet: str
    address: Address
    labels: tuple[tuple[str, str], ...] = ()

    @property
    def subnet_id(self) -> SubnetId:
        return SUBNETS[self.cell, self.subnet]

    @property
    def vmac(self) -> Mac:
        return parse_mac(f"52:54:00:c0:{self.number:02x}:01")

    def placement(self, configuration: Configuration) -> Placement:
        """Its place, as its metadata would say."""
        return Placement(self.subnet_id, configuration.subnets[self.subnet_id], self.address, None, "test")


def _guest(number: int, name: str, host: str, place: str, address: str, **labels: str) -> Guest:
    cell, subnet = place.split("/")
    return Guest(name, number, host, cell, subnet, parse_address(address), tuple(sorted(labels.items())))


CAST = {
    guest.name: guest
    for guest in (
        _guest(1, "web", "A", "shop/web", "10.1.1.11", tier="web"),
        _guest(2, "web2", "B", "shop/web", "10.1.1.12", tier="web"),
        _guest(3, "batch", "A", "shop/web", "10.1.1.13", tier="batch"),
        _guest(4, "db", "B", "shop/db", "10.1.2.21", tier="db"),
        _guest(5, "db2", "A", "shop/db", "10.1.2.22", tier="db"),
        _guest(6, "alien", "A", "lab/web", "10.2.1.31", role="tester"),
        _guest(7, "stranger", "A", "lab/web", "10.2.1.32"),
    )
}


@dataclass(frozen=True, slots=True)
class Step:
    """One packet, and whether it arrives."""

    text: str
    source: Guest
    destination: Guest
    packet: bytes
    passes: bool

    @property
    def mark(self) -> bytes:
        """What tells it from all others, on its way, too."""
        return self.mark_of(self.packet)

    @staticmethod
    def mark_of(packet: bytes) -> bytes:
        """Identification, fragment offset, protocol, addresses."""
        return packet[4:8] + packet[9:10] + packet[12:20]


@dataclass(frozen=True, slots=True)
class Case:
    """policies: text by cell, without the line that names it. steps: as above."""

    name: str
    policies: tuple[tuple[str, str], ...]
    steps: tuple[str, ...]

    def packets(self, number: int, first_id: int) -> list[Step]:
        """Its steps for sending. number, first_id: make ports and identifications its own."""
        return [_step(text, FIRST_EPHEMERAL + number, first_id + n) for n, text in enumerate(self.steps)]


_STEP = re.compile(r"(\S+)>(\S+) (.+): (pass|deny)")
_SERVICE = re.compile(r"(tcp|udp|sctp)([/:])(\d+)(?: (\w+))?")


def _step(text: str, ephemeral: int, identification: int) -> Step:
    match = _STEP.fullmatch(text)
    assert match, text
    source, destination = CAST[match[1]], CAST[match[2]]
    packet = _packet(source, destination, match[3], ephemeral, identification)
    return Step(text, source, destination, packet, match[4] == "pass")


def _packet(source: Guest, destination: Guest, what: str, ephemeral: int, identification: int) -> bytes:
    ends, fields = (source.address, destination.address), {"identification": identification}
    if what.startswith("error "):
        _, pair, quoted = what.split(" ", 2)
        about = _packet(*(CAST[name] for name in pair.split(">")), quoted, ephemeral, identification)  # type: ignore[arg-type]
        body = f.message(f.UNREACHABLE, 1, bytes(4), about[:28])
        return _with_checksum(*ends, body, fields)
    if what in ("echo", "echo-reply"):
        rest = ephemeral.to_bytes(2, "big") + b"\0\1"
        return _with_checksum(*ends, f.message(0 if what == "echo-reply" else 8, 0, rest, b"ping"), fields)
    if what.startswith("icmp/"):
        return _with_checksum(*ends, f.message(int(what[5:]), 0, bytes(4), bytes(12)), fields)
    if what == "gre":
        return f.ip(*ends, f.GRE, b"\0\0\x08\0tunnelled", **fields)
    match = _SERVICE.fullmatch(what)
    assert match, what
    kind, port, extra = match[1], int(match[3]), match[4]
    sport, dport = (ephemeral, port) if match[2] == "/" else (port, ephemeral)
    if kind == "tcp":
        return f.tcp(*ends, sport, dport, FLAGS[extra], **fields)
    if extra in ("first", "rest"):
        whole = f.datagram(sport, dport, bytes(range(24)))
        part, offset = (whole[:16], 0) if extra == "first" else (whole[16:], 16)
        fields = {"identification": ephemeral - FIRST_EPHEMERAL + 0xC000}  # one datagram's
        return f.ip(*ends, f.UDP, part, more_fragments=extra == "first", fragment_offset=offset, **fields)
    return (f.udp if kind == "udp" else f.sctp)(*ends, sport, dport, **fields)


def _with_checksum(source: Address, destination: Address, body: bytes, fields: Mapping[str, int]) -> bytes:
    total = sum(int.from_bytes(body[at : at + 2].ljust(2, b"\0"), "big") for at in range(0, len(body), 2))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    body = body[:2] + (0xFFFF - total).to_bytes(2, "big") + body[4:]
    return f.ip(source, destination, f.ICMP, body, **fields)


# ---------------------------------------------------------------------- peers × directions × protocols × places

SERVICES = "[tcp/80, udp/53, sctp/9, icmp/echo-request, gre]"
LAB_BOTH = """\
groups: {testers: {labels: "role=tester"}}
exports: [testers]
egress: [{to: {cell: shop}, allow: any}]
"""
LAB_BACK = LAB_BOTH.replace("egress: [{to", "ingress: [{from")


@dataclass(frozen=True, slots=True)
class Peer:
    """A kind of peer, as files have it, a guest that it takes, and one that it does not."""

    name: str
    text: str
    taken: str
    other: str | None


PEERS = (
    Peer("any", "any", "web", None),
    Peer("any, of another cell", "any", "alien", None),
    Peer("cell", "cell", "batch", "alien"),
    Peer("subnet", "{subnet: web}", "web", "OTHER_DB"),
    Peer("group", "{group: front}", "web", "batch"),
    Peer("guest", "{guest: web}", "web", "batch"),
    Peer("guest pattern", '{guest: "w?b*"}', "web", "batch"),
    Peer("label", '{labels: "tier=web"}', "web", "batch"),
    Peer("label in", '{labels: "tier in (web, none)"}', "web", "batch"),
    Peer("label not", '{labels: "tier!=batch, tier"}', "web", "batch"),
    Peer("two that must hold", '{subnet: web, labels: "tier=batch"}', "batch", "web"),
    Peer("except", "{subnet: web, except: {guest: batch}}", "web", "batch"),
    Peer("other cell", "{cell: lab}", "stranger", "batch"),
    Peer("subnet of another cell", "{cell: lab, subnet: web}", "stranger", "batch"),
    Peer("group of another cell", "{cell: lab, group: testers}", "alien", "stranger"),
)
PLACES = {"other host": ("db", "db2"), "same host": ("db2", "db")}

EXCHANGES: Mapping[str, tuple[str, ...]] = {
    "tcp": (
        "{a}>{b} tcp/80 S: pass",
        "{b}>{a} tcp:80 SA: pass",
        "{a}>{b} tcp/80 A: pass",
        "{b}>{a} tcp:80 F: pass",
        "{a}>{b} tcp/81 S: deny",
        "{b}>{a} tcp/80 S: deny",
        "{n} tcp/80 S: deny",
    ),
    "udp": (
        "{a}>{b} udp/53: pass",
        "{b}>{a} udp:53: pass",
        "{a}>{b} udp/53 first: pass",
        "{a}>{b} udp/53 rest: pass",
        "{a}>{b} udp/54: deny",
        "{b}>{a} udp/53: deny",
        "{n} udp/53: deny",
    ),
    "icmp": (
        "{b}>{a} echo-reply: deny",
        "{a}>{b} echo: pass",
        "{b}>{a} echo-reply: pass",
        "{b}>{a} echo: deny",
        "{a}>{b} icmp/13: deny",
        "{n} echo: deny",
    ),
    "sctp": ("{a}>{b} sctp/9: pass", "{b}>{a} sctp:9: pass", "{a}>{b} sctp/10: deny", "{n} sctp/9: deny"),
    "gre": ("{b}>{a} gre: deny", "{a}>{b} gre: pass", "{b}>{a} gre: pass", "{n} gre: deny"),
}


def _matrix() -> Iterator[Case]:
    for direction in ("ingress", "egress"):
        inward = direction == "ingress"
        peer_key, own_key = ("from", "to") if inward else ("to", "from")
        for peer in PEERS:
            rule = f'{{{peer_key}: {peer.text}, {own_key}: {{labels: "tier=db"}}, allow: {SERVICES}}}'
            shop = f'defaults: {{{direction}: deny}}\ngroups: {{front: {{subnet: web, labels: "tier=web"}}}}\n'
            policies = (("shop", f"{shop}{direction}:\n  - {rule}\n"), ("lab", LAB_BOTH if inward else LAB_BACK))
            for protocol, steps in EXCHANGES.items():
                for place, (db, other_db) in PLACES.items():
                    a, b = (peer.taken, db) if inward else (db, peer.taken)
                    name = other_db if peer.other == "OTHER_DB" else peer.other
                    if peer.other == "OTHER_DB" and protocol == "gre":
                        name = None  # no ports: the one place's packet would be a reply to the other's
                    n = "" if name is None else f"{name}>{b}" if inward else f"{a}>{name}"
                    chosen = [s for s in steps if n or not s.startswith("{n}")]
                    texts = tuple(s.format(a=a, b=b, n=n) for s in chosen)
                    yield Case(f"{direction}, {peer.name}, {protocol}, {place}", policies, texts)


# ---------------------------------------------------------------------- single promises

DENY = "defaults: {ingress: deny}\n"
WEB_TO_DB = DENY + 'ingress:\n  - {from: {labels: "tier=web"}, to: {subnet: db}, allow: %s}\n'


def _shop(text: str) -> tuple[tuple[str, str], ...]:
    return (("shop", text),)


def _rules(*rules: str) -> tuple[tuple[str, str], ...]:
    lines = "".join(f"  - {{from: {{subnet: web}}, to: {{subnet: db}}, {rule}}}\n" for rule in rules)
    return _shop(f"{DENY}ingress:\n{lines}")


_SINGLE: tuple[tuple[str, tuple[tuple[str, str], ...], tuple[str, ...]], ...] = (
    # order says nothing: a deny wins
    ("allow, then deny", _rules("allow: tcp/80", "deny: tcp/80"), ("web>{b} tcp/80 S: deny",)),
    ("deny, then allow", _rules("deny: tcp/80", "allow: tcp/80"), ("web>{b} tcp/80 S: deny",)),
    (
        "a narrow deny in a wide allow",
        _rules("allow: tcp", "deny: tcp/81-83"),
        ("web>{b} tcp/80 S: pass", "web>{b} tcp/81 S: deny", "web>{b} tcp/83 S: deny", "web>{b} tcp/84 S: pass"),
    ),
    (
        "a narrow allow in a wide deny",
        _rules("deny: tcp", "allow: tcp/80", "allow: udp"),
        ("web>{b} tcp/80 S: deny", "web>{b} tcp/81 S: deny", "web>{b} udp/80: pass"),
    ),
    (
        "a deny for one peer, an allow for all",
        _shop(f"{DENY}ingress:\n  - {{from: any, allow: any}}\n  - {{from: {{guest: batch}}, deny: any}}\n"),
        ("web>{b} tcp/80 S: pass", "batch>{b} tcp/80 S: deny", "batch>{b} udp/53: deny", "batch>{b} echo: deny"),
    ),
    ("allows add up", _rules("allow: tcp/80", "allow: tcp/443"), ("web>{b} tcp/80 S: pass", "web>{b} tcp/443 S: pass")),
    # services
    (
        "a range has both its ends",
        _rules("allow: tcp/8000-8100"),
        (
            "web>{b} tcp/7999 S: deny",
            "web>{b} tcp/8000 S: pass",
            "web>{b} tcp/8100 S: pass",
            "web>{b} tcp/8101 S: deny",
        ),
    ),
    ("a protocol by number", _rules("allow: 47"), ("web>{b} gre: pass", "web>{b} tcp/80 S: deny")),
    ("any service", _rules("allow: any"), ("web>{b} gre: pass", "web>{b} sctp/9: pass", "web>{b} icmp/13: pass")),
    ("a name of a port", _rules("allow: tcp/https"), ("web>{b} tcp/443 S: pass", "web>{b} udp/443: deny")),
    (
        "ICMP types by number and code",
        _rules("allow: [icmp/13/0, icmp/8]"),
        ("web>{b} icmp/13: pass", "web>{b} icmp/17: deny", "web>{b} echo: pass", "web>{b} tcp/80 S: deny"),
    ),
    # defaults
    ("deny within the subnet", _shop("defaults: {ingress: {subnet: deny}}\n"), ("web>web2 tcp/80 S: deny",)),
    ("deny within the subnet, not the cell", _shop("defaults: {ingress: {subnet: deny}}\n"), ("web>{b} echo: pass",)),
    (
        "deny between subnets",
        _shop("defaults: {ingress: {cell: deny}}\n"),
        ("web>{b} udp/53: deny", "web>web2 udp/53: pass", "web>batch udp/53: pass"),
    ),
    ("egress deny within the subnet", _shop("defaults: {egress: {subnet: deny}}\n"), ("web>batch udp/9: deny",)),
    (
        "a subnet's own default",
        _shop("subnets: {db: {ingress: deny}}\n"),
        ("web>{b} tcp/80 S: deny", "{b}>web tcp/80 S: pass", "web>{b} tcp:80 SA: pass", "{b}>web tcp/80 A: pass"),
    ),
    (
        "a subnet's own default, egress",
        _shop("subnets: {db: {egress: deny}}\n"),
        ("{b}>web tcp/80 S: deny", "web>{b} tcp/80 S: pass", "{b}>web tcp:80 SA: pass"),
    ),
    (
        "a subnet that allows in a cell that denies",
        _shop("defaults: {ingress: deny}\nsubnets: {db: {ingress: allow}}\n"),
        ("web>{b} tcp/80 S: pass", "{b}>web udp/53: deny", "web>batch udp/53: deny"),
    ),
    # state
    (
        "no reply without a request",
        _shop(WEB_TO_DB % "[tcp/80, udp/53, icmp/8]"),
        ("{b}>web udp:53: deny", "{b}>web echo-reply: deny", "{b}>batch tcp:80 SA: deny", "{b}>web tcp:80 R: deny"),
    ),
    (
        "mid-stream passes where the flow would, as guests ran before",
        _shop(WEB_TO_DB % "tcp/80"),
        ("web>{b} tcp/80 A: pass", "{b}>web tcp:80 A: pass", "web>{b} tcp/80 F: pass", "{b}>web tcp:80 A: pass"),
    ),
    (
        "mid-stream passes nowhere else",
        _shop(WEB_TO_DB % "tcp/80"),
        ("web>{b} tcp/81 A: deny", "batch>{b} tcp/80 A: deny", "{b}>batch tcp:80 A: deny", "web>{b} tcp/80 R: deny"),
    ),
    (
        "a reset is of its flow, and what follows for a while",
        _shop(WEB_TO_DB % "tcp/80"),
        ("web>{b} tcp/80 S: pass", "{b}>web tcp:80 R: pass", "web>{b} tcp/80 A: pass"),
    ),
    (
        "a request that was denied makes no flow",
        _shop(WEB_TO_DB % "tcp/80"),
        ("batch>{b} tcp/80 S: deny", "{b}>batch tcp:80 SA: deny", "batch>{b} tcp/80 A: deny"),
    ),
    (
        "an error about a live flow",
        _shop(WEB_TO_DB % "udp/53"),
        ("{b}>web error web>{b} udp/53: deny", "web>{b} udp/53: pass", "{b}>web error web>{b} udp/53: pass"),
    ),
    (
        "an error about another's flow",
        _shop(WEB_TO_DB % "udp/53"),
        ("web>{b} udp/53: pass", "batch>web error web>{b} udp/53: deny", "web>{b} udp:53: deny"),
    ),
    (
        "fragments follow their first",
        _shop(WEB_TO_DB % "udp/53"),
        (
            "web>{b} udp/53 rest: deny",
            "web>{b} udp/53 first: pass",
            "web>{b} udp/53 rest: pass",
            "batch>{b} udp/53 first: deny",
            "batch>{b} udp/53 rest: deny",
        ),
    ),
    (
        "an established flow and a new one of the same port",
        _shop(WEB_TO_DB % "tcp/80"),
        ("web>{b} tcp/80 S: pass", "web>{b} tcp/80 S: pass", "{b}>web tcp:80 S: pass"),
    ),
    # between cells
    ("no policy at all", (), ("alien>{b} tcp/80 S: deny", "{b}>alien udp/53: deny", "web>{b} tcp/80 S: pass")),
    (
        "ingress alone",
        _shop("ingress: [{from: {cell: lab}, allow: any}]\n"),
        ("alien>{b} tcp/80 S: deny", "alien>{b} echo: deny", "{b}>alien tcp/80 S: deny"),
    ),
    (
        "egress alone",
        (("lab", "egress: [{to: {cell: shop}, allow: any}]\n"),),
        ("alien>{b} tcp/80 S: deny", "{b}>alien tcp/80 S: deny"),
    ),
    (
        "both, one service",
        (
            ("shop", "ingress: [{from: {cell: lab}, to: {subnet: db}, allow: tcp/80}]\n"),
            ("lab", "egress: [{to: {cell: shop, subnet: db}, allow: tcp}]\n"),
        ),
        (
            "alien>{b} tcp/80 S: pass",
            "{b}>alien tcp:80 SA: pass",
            "alien>{b} tcp/80 A: pass",
            "alien>{b} tcp/81 S: deny",
            "alien>web tcp/80 S: deny",
            "{b}>alien tcp/80 S: deny",
            "{b}>alien error alien>{b} tcp/80 A: pass",
        ),
    ),
    (
        "both say any, each to the other only",
        (
            ("shop", "ingress: [{from: any, allow: any}]\negress: [{to: any, allow: any}]\n"),
            ("lab", "ingress: [{from: any, allow: any}]\negress: [{to: any, allow: any}]\n"),
        ),
        ("alien>{b} udp/53: pass", "{b}>alien echo: pass", "web>alien tcp/80 S: pass", "stranger>{b} gre: pass"),
    ),
    (
        "an allow between cells that a deny takes back",
        (
            ("shop", "ingress: [{from: {cell: lab}, allow: any}, {from: {cell: lab, subnet: web}, deny: udp}]\n"),
            ("lab", "egress: [{to: any, allow: any}]\n"),
        ),
        ("alien>{b} udp/53: deny", "alien>{b} tcp/80 S: pass", "alien>{b} echo: pass"),
    ),
)


def _single() -> Iterator[Case]:
    for name, policies, steps in _SINGLE:
        for place, (db, _) in PLACES.items():
            yield Case(f"{name}, {place}", policies, tuple(s.replace("{b}", db) for s in steps))


CASES = (*_matrix(), *_single())


@dataclass(slots=True)
class Group:
    """Cases with the same policies, with their steps."""

    policies: Mapping[str, str]
    cases: list[tuple[str, list[Step]]] = field(default_factory=list)


def groups() -> list[Group]:
    """All cases; those with the same policies together."""
    found: dict[tuple[tuple[str, str], ...], Group] = {}
    identification = 1
    for number, case in enumerate(CASES):
        group = found.setdefault(case.policies, Group(dict(case.policies)))
        group.cases.append((case.name, case.packets(number, identification)))
        identification += len(case.steps)
    assert identification < 0xC000  # from there on are fragments
    return list(found.values())


def write_policies(directory: Path, policies: Mapping[str, str]) -> Configuration:
    """A configuration directory with the cells of the source tree and these policies alone."""
    for kind in ("cells", "policies"):
        (directory / kind).mkdir(parents=True, exist_ok=True)
    for path in CELLS.glob("*.yaml"):
        (directory / "cells" / path.name).write_text(path.read_text())
    for path in (directory / "policies").glob("*.yaml"):
        path.unlink()
    for cell, text in policies.items():
        (directory / "policies" / f"{cell}.yaml").write_text(f"cell: {cell}\n{text}")
    return load(directory)
