"""What the core asks its shell to do. Frozen values; the shell sends, counts and logs them."""

from dataclasses import dataclass

from divhook.core.addressing import Address, Mac
from divhook.core.reasons import DropReason


@dataclass(frozen=True, slots=True)
class ToWire:
    """Send a whole Ethernet frame out of the uplink. Its source MAC is always the own pmac."""

    frame: bytes


@dataclass(frozen=True, slots=True)
class ToNat:
    """Send a whole Ethernet frame into the namespace that translates (core/nat.py)."""

    frame: bytes


@dataclass(frozen=True, slots=True)
class ToGuest:
    """Send a whole Ethernet frame into a port's tap."""

    port: int
    frame: bytes


@dataclass(frozen=True, slots=True)
class ToHost:
    """Give the host's own stack an IP packet of a guest, as if it had come in by a device."""

    packet: bytes


@dataclass(frozen=True, slots=True)
class ToNewHost:
    """A late sender's packet, for an endpoint that has moved away: over the hand-over channel. host: who sent it."""

    address: Address
    host: Mac
    packet: bytes


@dataclass(frozen=True, slots=True)
class Drop:
    """A frame ended here. port: the local port it came from or was for; 0 where it concerns the wire alone."""

    reason: DropReason
    port: int
    frame: bytes = b""


@dataclass(frozen=True, slots=True)
class JoinGroup:
    """The uplink must admit this group MAC (first port of the subnet)."""

    group: Mac


@dataclass(frozen=True, slots=True)
class LeaveGroup:
    """The uplink need not admit this group MAC any more."""

    group: Mac


Output = ToWire | ToNat | ToGuest | ToHost | ToNewHost | Drop | JoinGroup | LeaveGroup
