"""One NIC of one guest on this host: what it is, and how far it has come."""

import hashlib
import math
from collections import deque
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

from divhook.config.configuration import Placement
from divhook.core.addressing import Address, Mac, mac_text

Key = tuple[str, Mac]
"""UUID of the guest and MAC: what makes a NIC."""


class Phase(Enum):
    """How far a NIC has come."""

    PREPARED = "prepared"  # no tap yet
    PLUGGED = "plugged"  # port exists, address not claimed yet
    RUNNING = "running"  # claimed here, perhaps fenced


@dataclass(slots=True, eq=False)
class Nic:
    """One NIC of one guest.

    fixed: its address is configured. known: it had this address before, and was defended while it did not run.
    started: the guest runs here. confirmed: nobody objected to the address. refusal: why there is none, in words.
    began_s: when its life here began, or was first seen. labels: sorted pairs. identity: what claims say of it.
    speaks: it comes in, and all is ready for it: what it sends may be forwarded before libvirt says that it runs.
    handed: the host that it comes from has handed it over; born, lease, carried, groups, former: what came with it: the
    stamp of its first start, its DHCP lease, what it sent and received so far, its multicast groups, and hosts that may
    still send frames on.
    """

    guest: str
    guest_uuid: str
    placement: Placement
    mac: Mac
    fixed: bool
    address: Address | None = None
    phase: Phase = Phase.PREPARED
    incoming: bool = False
    known: bool = False
    started: bool = False
    confirmed: bool = False
    refusal: str = ""
    port: int = 0
    ifindex: int = 0
    ifname: str = ""
    began_s: float = -math.inf
    labels: tuple[tuple[str, str], ...] = ()
    identity: int = 0
    handed: bool = False
    born: int = 0
    lease: dict[str, Any] | None = None
    speaks: bool = False
    carried: dict[str, int] = field(default_factory=dict)
    groups: tuple[Address, ...] = ()
    former: tuple[Mac, ...] = ()
    declined_s: deque[float] = field(default_factory=deque)

    @property
    def key(self) -> Key:
        """What makes a NIC."""
        return (self.guest_uuid, self.mac)

    @property
    def guest_id(self) -> int:
        """64 bits that are the same wherever the guest runs."""
        return guest_id_of(self.guest_uuid, self.mac)

    def __str__(self) -> str:
        return f"guest {self.guest}, NIC {mac_text(self.mac)}"


def guest_id_of(guest_uuid: str, mac: Mac) -> int:
    """64 bits that name a NIC wherever its guest runs."""
    return int.from_bytes(hashlib.sha256(guest_uuid.encode() + mac).digest()[:8], "big")
