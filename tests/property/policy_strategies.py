"""Small random policies, guests and flows: few names, so that rules meet, cover and contradict each other."""

from dataclasses import replace
from ipaddress import IPv4Network

from hypothesis import strategies as st

from divhook.config.problems import Position
from divhook.core.verdict import Direction, Relation
from divhook.policy.cell import BUILT_IN, CellPolicy, Default, DefaultKey, Remote, Rule
from divhook.policy.identity import Identity, Workload, identify
from divhook.policy.labels import parse_selector
from divhook.policy.peers import ALL, EXTERNAL, Anyone, CellPeer, Cidr, DnsName, OwnHost, Peer, Selection
from divhook.policy.services import ICMP, SCTP, TCP, UDP, Service

SUBNETS = ("web", "db")
GROUPS = ("front", "back")
PATTERNS = ("web-*", "web-1", "*", "?b-1")
SELECTORS = tuple(parse_selector(t) for t in ("tier=a", "tier in (a, b)", "tier!=a", "env", "!env, tier=b"))
NETWORKS = tuple(
    IPv4Network(n) for n in ("192.0.0.0/16", "192.0.2.0/24", "192.0.2.64/26", "192.0.2.65/32", "198.51.100.0/24")
)
ADDRESSES = tuple(
    bytes(a) for a in ([192, 0, 2, 65], [192, 0, 2, 66], [192, 0, 2, 1], [192, 0, 7, 1], [203, 0, 113, 9])
)
NAMES = (DnsName("a.example.net"), DnsName("*.example.net"))
PORTS = (0, 1, 2, 3, 7, 8, 79, 80, 81, 443, 1023, 1024, 32767, 32768, 65534, 65535)

plain = st.builds(
    Selection,
    subnet=st.sampled_from((None, None, *SUBNETS)),
    guest=st.sampled_from((None, None, *PATTERNS)),
    labels=st.sampled_from((None, None, *SELECTORS)),
)
members = st.lists(plain.filter(lambda s: s != ALL), min_size=1, max_size=2).map(tuple)
selections = st.one_of(
    st.just(ALL),
    st.builds(
        Selection,
        subnet=st.sampled_from((None, *SUBNETS)),
        group=st.sampled_from((None, *GROUPS)),
        labels=st.sampled_from((None, None, *SELECTORS)),
        exclude=st.lists(st.one_of(plain, st.builds(Selection, group=st.sampled_from(GROUPS))), max_size=1).map(tuple),
    ),
    plain,
)
cell_peers = st.builds(
    CellPeer, st.just("lab"), subnet=st.sampled_from((None, "ci")), group=st.sampled_from((None, "shown"))
)


@st.composite
def cidrs(draw: st.DrawFn) -> Cidr:
    network = draw(st.sampled_from(NETWORKS))
    inside = [n for n in NETWORKS if n != network and n.subnet_of(network)]
    return Cidr(network, tuple(draw(st.lists(st.sampled_from(inside), max_size=2, unique=True)) if inside else ()))


peers: st.SearchStrategy[Peer] = st.one_of(
    st.just(Anyone()), st.just(EXTERNAL), st.just(OwnHost()), selections, cell_peers, cidrs(), st.sampled_from(NAMES)
)


@st.composite
def services(draw: st.DrawFn) -> Service:
    if draw(st.integers(0, 5)) == 0:
        return draw(st.sampled_from((Service(), Service(TCP), Service(ICMP), Service(47), Service(ICMP, 0x800, 0x8FF))))
    low, high = sorted((draw(st.sampled_from(PORTS)), draw(st.sampled_from(PORTS))))
    return Service(draw(st.sampled_from((TCP, TCP, UDP))), low, high)


@st.composite
def rules(draw: st.DrawFn) -> Rule:
    return Rule(
        cell="shop",
        direction=draw(st.sampled_from(Direction)),
        endpoints=tuple(draw(st.lists(selections, min_size=1, max_size=2, unique=True))),
        peers=tuple(draw(st.lists(peers, min_size=1, max_size=3, unique=True))),
        services=tuple(draw(st.lists(services(), min_size=1, max_size=3, unique=True))),
        deny=draw(st.booleans()),
        log=draw(st.booleans()),
        where=Position("shop.yaml", draw(st.integers(1, 40)), 3),
    )


SETTABLE = [r for r in BUILT_IN if r not in (Relation.OTHER, Relation.HOST)]


@st.composite
def policies(draw: st.DrawFn) -> CellPolicy:
    keys: list[DefaultKey] = [(subnet, d, r) for subnet in (None, *SUBNETS) for d in Direction for r in SETTABLE]
    defaults = draw(st.dictionaries(st.sampled_from(keys), st.builds(Default, st.booleans()), max_size=4))
    groups = {name: draw(members) for name in GROUPS}
    found = tuple(draw(st.lists(rules(), max_size=7)))
    places = {name: Position("shop.yaml", line, 3) for line, name in enumerate(GROUPS, 50)}
    return CellPolicy("shop", found, groups, frozenset(GROUPS[:1]), defaults, places)


@st.composite
def edits(draw: st.DrawFn, policy: CellPolicy, other: CellPolicy) -> CellPolicy:
    """A policy after one edit of its file: as people change policies, but for the last, which is another file."""
    found = list(policy.rules)
    at = draw(st.integers(0, len(found) - 1)) if found else 0
    match draw(st.sampled_from(("add", "add", "remove", "services", "move", "groups", "file"))):
        case "add":
            found.insert(at, draw(rules()))
        case "remove":
            del found[at : at + 1]
        case "services" if found:
            found[at] = replace(found[at], services=(draw(services()), *found[at].services[1:]))
        case "move" if found:
            found[at] = replace(found[at], where=Position("shop.yaml", draw(st.integers(1, 40)), 3))
        case "groups":
            return replace(policy, groups=other.groups)
        case "file":
            return other
    return replace(policy, rules=tuple(found))


GUESTS = tuple(
    Workload("shop", subnet, guest, labels)
    for subnet, guest, labels in (
        ("web", "web-1", (("tier", "a"),)),
        ("web", "web-2", (("env", "x"), ("tier", "b"))),
        ("db", "db-1", (("tier", "b"),)),
        ("db", "other", ()),
    )
)
"""Guests of the cell: rules of random policies tell all of them apart or none."""
STRANGERS = (
    Identity("lab", (("divhook:subnet", "ci"),), ("shown",)),
    Identity("lab", (("divhook:subnet", "web"), ("tier", "a"))),
    Identity("yard", (("divhook:subnet", "ci"),), ("shown",)),
)
ANSWERS = {NAMES[0]: (ADDRESSES[1],), NAMES[1]: (ADDRESSES[1], ADDRESSES[4])}
RESOLVED = {ADDRESSES[1]: ("a.example.net",), ADDRESSES[4]: ("b.example.net",)}
"""The names that each address is an answer to, as ANSWERS has it the other way round."""


def ends(policy: CellPolicy) -> tuple[list[Identity], list[Remote]]:
    """Local identities by a policy, and every remote end that there is to try."""
    local = [identify(guest, policy) for guest in GUESTS]
    external = [Remote(address=a, names=RESOLVED.get(a, ())) for a in ADDRESSES]
    return local, [*(Remote(i) for i in (*local, *STRANGERS)), *external, Remote(host=True)]


points = st.one_of(
    st.tuples(st.sampled_from((TCP, UDP)), st.sampled_from(PORTS)),
    st.tuples(st.just(ICMP), st.sampled_from((0x0800, 0x0801, 0x0303))),
    st.sampled_from(((47, 0), (SCTP, 80), (2, 0))),
)
