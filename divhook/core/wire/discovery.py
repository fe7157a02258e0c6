"""Discovery messages: an ARP packet (RFC 826) with an authenticated trailer. Codec and bit diagram below."""

from dataclasses import dataclass
from enum import IntEnum, unique

from divhook.core.addressing import Address, Mac


@unique
class MessageType(IntEnum):
    """What a discovery frame says. Codes are stable."""

    REQUEST = 1  # who holds tpa? multicast to the subnet's group
    REPLY = 2  # unicast: the claim for the address that was asked for; echoes the nonce
    ANNOUNCE = 3  # a new or repeated claim
    PROBE = 4  # unicast REQUEST: refresh, source check, fence check
    MOVED = 5  # not here: the claim names the host that holds it
    GONE = 6  # not here, and the owner gave it up
    CHALLENGE = 7  # unicast: prove that your session is live; carries a fresh nonce
    CHALLENGE_REPLY = 8  # echoes that nonce
    CENSUS = 9  # multicast: which host numbers are taken in this subnet?
    CENSUS_REPLY = 10  # bitmaps in the payload
    STALE = 11  # a receiver knows a higher claim: it is in this message


@dataclass(frozen=True, slots=True)
class Claim:
    """Who holds an endpoint (docs/protocol.md). (stamp, host) is totally ordered; the higher wins."""

    address: Address
    vmac: Mac
    host: Mac  # pmac of the claiming host
    stamp: int  # 64-bit hybrid logical clock, microseconds of the wall clock at its base
    born: int  # stamp of the endpoint's first start with this address
    guest_id: int  # 64 bits, hash of domain UUID and NIC MAC
    identity: int  # 64 bits, policy identity; 0 until policy exists
    tentative: bool = False

    @property
    def order(self) -> tuple[int, Mac]:
        """Sort key: the higher claim wins."""
        return (self.stamp, self.host)


@dataclass(frozen=True, slots=True)
class Message:
    """One discovery frame, decoded and (when it comes from Authenticator.open_untrusted) authenticated.

    source, destination: Ethernet addresses; source is also ARP sha, the sender's pmac.
    spa: the asking endpoint's address, or zero; tpa: the address asked for or spoken of.
    claim: the sender's statement on `tpa` (REPLY, ANNOUNCE, MOVED, STALE, GONE), or on `spa` (REQUEST, PROBE: so
    that the responder can install the requester's mapping before it replies); None where it has none.
    """

    type: MessageType
    source: Mac
    destination: Mac
    spa: Address
    tpa: Address
    claim: Claim | None = None
    nonce: int = 0  # chosen by a requester, echoed in the answer
    payload: bytes = b""  # CENSUS_REPLY bitmaps
