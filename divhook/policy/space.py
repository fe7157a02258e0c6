"""All flows between two ends, as few services: pieces of the space of protocol and port in which every packet is alike.

Rules cut the space at the borders of their services. Between two borders nothing changes, so one packet of each piece
tells what holds for all: so that "nothing else" can be checked, and not only sampled.
"""

from collections.abc import Iterable
from itertools import pairwise

from divhook.policy.services import MAX_PORT, Service


def pieces(services: Iterable[Service]) -> list[Service]:
    """The space cut at every border of some services, as ranges that do not overlap, in order of protocol and port.

    The protocols that none of them names are one piece: Service(None).
    """
    borders: dict[int, set[int]] = {}
    for service in services:
        if service.protocol is not None:
            borders.setdefault(service.protocol, {0, MAX_PORT + 1}).update((service.low, service.high + 1))
    found = []
    for protocol, cuts in sorted(borders.items()):
        ordered = sorted(cuts)
        found += [Service(protocol, a, b - 1) for a, b in pairwise(ordered)]
    return [*found, Service()]


def sample(piece: Service, named: Iterable[Service]) -> Service:
    """A packet of a piece: its first port; of the rest, a protocol that no service names."""
    if piece.protocol is not None:
        return Service(piece.protocol, piece.low, piece.low)
    taken = {service.protocol for service in named}
    free = next(protocol for protocol in range(255, -1, -1) if protocol not in taken)
    return Service(free, 0, 0)


def joined(found: Iterable[Service]) -> list[Service]:
    """Adjacent pieces as one."""
    result: list[Service] = []
    for piece in found:
        last = result[-1] if result else None
        if last is not None and last.protocol == piece.protocol is not None and last.high + 1 == piece.low:
            result[-1] = Service(piece.protocol, last.low, piece.high)
        else:
            result.append(piece)
    return result
