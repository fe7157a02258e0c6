"""Source NAT, as the core sees it: a namespace of the host that takes guests' packets, and gives them back translated.

The kernel's conntrack in that namespace decides ports and addresses; the core decides what goes in, and where what
comes out goes to. Invariants (core/border.py, bpf/lib/nat.h):

- what a cell with NAT sends outside goes into the namespace, or nowhere;
- what comes out of it has a source of NAT's own, or is for a guest; all else is NAT_UNTRANSLATED.
"""

from dataclasses import dataclass

from divhook.core.addressing import Address, Mac


@dataclass(frozen=True, slots=True)
class Nat:
    """mac: of the namespace's own end of the link to it. pool: addresses that nobody else has."""

    mac: Mac
    pool: frozenset[Address] = frozenset()

    def owns(self, address: Address) -> bool:
        """Whether guests' packets are translated to this address here."""
        return address in self.pool
