"""Which CIDR and DNS peers every external address matches, as few prefixes: its longest matching one has the answer.

CIDRs and their exceptions either lie within each other or apart. So the boundaries of all of them, and the addresses
that names resolve to, cut the space into pieces in which all addresses match the same peers:

    192.0.2.0/24 except 192.0.2.128/25;  192.0.0.0/16        192.0.0.0/16     {the /16}
                                                             192.0.2.0/24     {the /16, the /24}
                                                             192.0.2.128/25   {the /16}
"""

from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Mapping
from ipaddress import IPv4Network

from divhook.core.addressing import Address
from divhook.policy.peers import Cidr, DnsName, Peer
from divhook.policy.prefixes import ADDRESS_BITS, PrefixSet, covering, pack


def pack_network(network: IPv4Network) -> int:
    """A network as a packed prefix."""
    return pack(int(network.network_address), network.prefixlen)


class ExternalPrefixes:
    """The pieces and what each matches, kept in step with peers and answers."""

    def __init__(self) -> None:
        self._boundaries: Counter[int] = Counter()
        self._pieces = PrefixSet(ADDRESS_BITS)
        self._cidrs: defaultdict[int, dict[Cidr, frozenset[int]]] = defaultdict(dict)
        self._names: frozenset[DnsName] = frozenset()
        self._answers: dict[DnsName, frozenset[int]] = {}
        self._named: defaultdict[int, set[DnsName]] = defaultdict(set)

    def change(
        self, gone: list[Cidr], come: list[Cidr], lost: Iterable[DnsName], new: Iterable[DnsName]
    ) -> dict[int, frozenset[Peer] | None]:
        """CIDRs and DNS names that rules had and have. Returns the pieces that match something else (None: gone)."""
        stale: dict[int, None] = {}
        for cidr in gone:
            network = pack_network(cidr.network)
            exceptions = self._cidrs[network].pop(cidr)
            if not self._cidrs[network]:
                del self._cidrs[network]
            self._cut((network, *exceptions), -1, stale)
        for cidr in come:
            network = pack_network(cidr.network)
            exceptions = self._cidrs[network][cidr] = frozenset(pack_network(e) for e in cidr.exclude)
            self._cut((network, *exceptions), +1, stale)
        for cidr in (*gone, *come):
            stale.update(dict.fromkeys(self._pieces.below(pack_network(cidr.network))))
        self._names = self._names.difference(lost).union(new)
        self._use(lost, -1, stale)
        self._use(new, +1, stale)
        return {piece: self._match(piece) for piece in stale}

    def set_names(self, addresses: Mapping[DnsName, Collection[Address]]) -> dict[int, frozenset[Peer] | None]:
        """Other answers. Returns the pieces that match something else (None: gone)."""
        answers = {
            name: frozenset(pack(int.from_bytes(a, "big"), ADDRESS_BITS) for a in found)
            for name, found in addresses.items()
        }
        changed = frozenset(n for n in {*answers, *self._answers} if answers.get(n) != self._answers.get(n))
        stale: dict[int, None] = {}
        self._use(changed & self._names, -1, stale)
        self._answers = answers
        self._use(changed & self._names, +1, stale)
        return {piece: self._match(piece) for piece in stale}

    def _use(self, names: Iterable[DnsName], sign: int, stale: dict[int, None]) -> None:
        for name in names:
            for address in self._answers.get(name, ()):
                (self._named[address].add if sign > 0 else self._named[address].remove)(name)
                if not self._named[address]:
                    del self._named[address]
                self._cut((address,), sign, stale)

    def _cut(self, boundaries: Iterable[int], sign: int, stale: dict[int, None]) -> None:
        for boundary in boundaries:
            before = self._boundaries[boundary]
            self._boundaries[boundary] += sign
            if before == 0:
                self._pieces.add(boundary)
            elif before + sign == 0:
                del self._boundaries[boundary]
                self._pieces.remove(boundary)
            stale[boundary] = None

    def _match(self, piece: int) -> frozenset[Peer] | None:
        if piece not in self._boundaries:
            return None
        around = list(covering(piece, ADDRESS_BITS))
        found: set[Peer] = set(self._named.get(piece, ()))
        for network in around:
            for cidr, exceptions in self._cidrs.get(network, {}).items():
                if not exceptions or exceptions.isdisjoint(around):
                    found.add(cidr)
        return frozenset(found)
