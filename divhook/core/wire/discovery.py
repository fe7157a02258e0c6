"""Discovery frames: an ARP packet (RFC 826) between hosts, with an authenticated trailer (docs/protocol.md).

    0          14                 42                                            end
    +----------+------------------+------------------------------------+--------+---------+
    | Ethernet | ARP, 28 bytes    | trailer: magic … nonce, payload    |  tag   | padding |
    +----------+------------------+------------------------------------+--------+---------+
    |<---------------- covered by the tag, but for a VLAN tag -------->|

Any station reads it as ARP; `sha` is the sender's pmac, never a guest's MAC. Bit diagrams: `render_diagrams`.
This file turns bytes into values and back. Nothing it parses is true until core/auth.py has opened it.
"""

import struct
from dataclasses import dataclass
from enum import IntEnum, unique

from divhook.core.addressing import Address, Mac
from divhook.core.reasons import DropReason
from divhook.core.wire.errors import WireError


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
    IDENTITY = 12  # unicast: what does this identity, in the payload, stand for?
    IDENTITY_REPLY = 13  # its encoding in the payload; echoes the nonce
    MOVE = 14  # multicast: whoever runs this guest id, hand it over to the address in the payload
    PREPARE = 15  # unicast, to hosts of talkers: the endpoint is about to move to the host whose pmac is the payload
    PREPARED = 16  # it is known now; echoes the nonce


@dataclass(frozen=True, slots=True)
class Claim:
    """Who holds an endpoint (docs/protocol.md). (stamp, host) is totally ordered; the higher wins."""

    address: Address
    vmac: Mac
    host: Mac  # pmac of the claiming host
    stamp: int  # 64-bit hybrid logical clock, microseconds of the wall clock at its base
    born: int  # stamp of the endpoint's first start with this address
    guest_id: int  # 64 bits, hash of domain UUID and NIC MAC
    identity: int  # 64 bits, of the guest's labels: docs/policy.md; 0 where the host says none
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
    that the responder can install the requester's mapping before it replies); None where it has none. A REQUEST whose
    spa is zero asks whether anybody has tpa, and states a claim on that.
    """

    type: MessageType
    source: Mac
    destination: Mac
    spa: Address
    tpa: Address
    claim: Claim | None = None
    nonce: int = 0  # chosen by a requester, echoed in the answer
    payload: bytes = b""  # CENSUS_REPLY bitmaps, IDENTITY number, IDENTITY_REPLY encoding, MOVE, PREPARE: whereto


# --- the frame ------------------------------------------------------------------------------------------------

ETHER_TYPE_ARP = 0x0806
ETHER_TYPE_LOCAL = 0x88B5
"""IEEE 802 local experimental EtherType 1: the option for fabrics that inspect or suppress ARP."""
_VLAN_TYPES = (0x8100, 0x88A8)

ETHERNET_LENGTH = 14
ARP_LENGTH = 28
TRAILER_OFFSET = ETHERNET_LENGTH + ARP_LENGTH
"""Where the trailer starts in an untagged frame: what the eBPF programs look at."""
MAGIC = b"\xd1\x7e"
VERSION = 1
ALGORITHM_HMAC_SHA256_128 = 1
TAG_LENGTH = 16
MAX_PAYLOAD = 1024
"""Bytes. With it a frame is 1,162 bytes: below the smallest MTU that an uplink may have (1280)."""

FLAG_CLAIM = 0x0001
FLAG_TENTATIVE = 0x0002

ANSWERS = frozenset(
    {
        MessageType.REPLY,
        MessageType.MOVED,
        MessageType.GONE,
        MessageType.STALE,
        MessageType.CHALLENGE_REPLY,
        MessageType.CENSUS_REPLY,
        MessageType.IDENTITY_REPLY,
        MessageType.PREPARED,
    }
)
"""Sent as ARP replies; their nonce is an echo. All others are ARP requests and carry a nonce of their own."""
CLAIMS_ON_SPA = frozenset({MessageType.REQUEST, MessageType.PROBE})
"""Their claim speaks of spa, the asker's own address, if that is not zero; that of all others speaks of tpa."""


@dataclass(frozen=True, slots=True)
class Field:
    """One fixed field of the frame: a struct code (network order), and what it means for the diagrams."""

    name: str
    code: str
    meaning: str

    @property
    def size(self) -> int:
        """Bytes."""
        return struct.calcsize(">" + self.code)


FRAME_FIELDS = (
    Field("destination MAC", "6s", "group MAC of the subnet, all-hosts group, or a peer's pmac"),
    Field("source MAC", "6s", "pmac of the sender"),
    Field("EtherType", "H", "0x0806, or 0x88b5 by option"),
    Field("htype = 1", "H", "Ethernet"),
    Field("ptype = 0x0800", "H", "IPv4"),
    Field("hlen = 6", "B", ""),
    Field("plen = 4", "B", ""),
    Field("oper", "H", "1 request for questions, 2 reply for answers"),
    Field("sha", "6s", "equal to the source MAC"),
    Field("spa", "4s", "questions: the asking address, or zero; answers: the address spoken of"),
    Field("tha", "6s", "questions: zero; answers: equal to the destination MAC"),
    Field("tpa", "4s", "questions: the address asked for or spoken of; answers: the asking address"),
)
TRAILER_FIELDS = (
    Field("magic = 0xd17e", "2s", "tells discovery from any other ARP"),
    Field("version", "B", "1"),
    Field("algorithm", "B", "1: HMAC-SHA256, truncated to 128 bits"),
    Field("key id", "B", "which key of the ring made the tag"),
    Field("type", "B", "MessageType"),
    Field("flags", "H", "1: the claim fields are filled; 2: the claim is tentative"),
    Field("trailer length", "H", "bytes from magic to the end of the tag"),
    Field("vmac", "6s", "claim: MAC of the guest NIC"),
    Field("claim host", "6s", "claim: pmac of the host that holds the endpoint"),
    Field("zero", "H", "reserved"),
    Field("stamp", "Q", "claim: hybrid logical clock"),
    Field("born", "Q", "claim: stamp of the first start with this address"),
    Field("guest id", "Q", "claim: hash of domain UUID and NIC MAC"),
    Field("identity", "Q", "claim: policy identity, 0 until known"),
    Field("session", "Q", "random, new at every start of the sender's agent"),
    Field("sequence", "Q", "1, 2, 3 … within the session"),
    Field("nonce", "Q", "questions: fresh; answers: the echo of the question's"),
)
_ARP = struct.Struct(">HHBBH6s4s6s4s")
_TRAILER = struct.Struct(">" + "".join(field.code for field in TRAILER_FIELDS))
TRAILER_LENGTH = _TRAILER.size + TAG_LENGTH
"""Length of a trailer with no payload."""


@dataclass(frozen=True, slots=True)
class Envelope:
    """What the Authenticator adds to a message."""

    session: int
    sequence: int
    key_id: int
    algorithm: int = ALGORITHM_HMAC_SHA256_128
    ether_type: int = ETHER_TYPE_ARP


def is_discovery(frame: bytes) -> bool:
    """Whether an untagged frame claims to be discovery: the test that the eBPF programs make, too."""
    ether_type = frame[12:14]
    return frame[TRAILER_OFFSET : TRAILER_OFFSET + 2] == MAGIC and ether_type in (b"\x08\x06", b"\x88\xb5")


def emit(message: Message, envelope: Envelope) -> bytes:
    """The untagged frame up to its tag: exactly the bytes that the tag covers.

    Raises ValueError where the message cannot be said: a payload over MAX_PAYLOAD, a claim on another address.
    """
    if len(message.payload) > MAX_PAYLOAD:
        raise ValueError(f"payload of {len(message.payload)} bytes, at most {MAX_PAYLOAD}")
    answer = message.type in ANSWERS
    claim = message.claim
    flags = 0
    claim_fields: tuple[bytes, bytes, int, int, int, int, int] = (bytes(6), bytes(6), 0, 0, 0, 0, 0)
    if claim is not None:
        if claim.address != _claimed(message.type, message.spa, message.tpa):
            raise ValueError(f"a {message.type.name} with a claim on an address that it does not speak of")
        flags = FLAG_CLAIM | (FLAG_TENTATIVE if claim.tentative else 0)
        claim_fields = (claim.vmac, claim.host, 0, claim.stamp, claim.born, claim.guest_id, claim.identity)
    arp = _ARP.pack(
        1,
        0x0800,
        6,
        4,
        2 if answer else 1,
        message.source,
        message.tpa if answer else message.spa,
        message.destination if answer else bytes(6),
        message.spa if answer else message.tpa,
    )
    trailer = _TRAILER.pack(
        MAGIC,
        VERSION,
        envelope.algorithm,
        envelope.key_id,
        message.type,
        flags,
        TRAILER_LENGTH + len(message.payload),
        *claim_fields,
        envelope.session,
        envelope.sequence,
        message.nonce,
    )
    ether_type = envelope.ether_type.to_bytes(2, "big")
    return message.destination + message.source + ether_type + arp + trailer + message.payload


def parse_discovery_untrusted(frame: bytes) -> tuple[Message, Envelope, bytes, bytes]:
    """(message, envelope, tag, covered bytes) of a frame; nothing in it is authenticated yet.

    One VLAN tag is skipped; bytes after the trailer are padding. Neither is covered. A frame has one form only:
    what the parser takes, `emit` gives back byte for byte. Raises WireError(DISCOVERY_MALFORMED).
    """
    if int.from_bytes(frame[12:14], "big") in _VLAN_TYPES:
        frame = frame[:12] + frame[16:]
    if len(frame) < TRAILER_OFFSET + TRAILER_LENGTH:
        raise _malformed(f"{len(frame)} bytes, at least {TRAILER_OFFSET + TRAILER_LENGTH}")
    destination, source = frame[:6], frame[6:12]
    ether_type = int.from_bytes(frame[12:14], "big")
    if ether_type not in (ETHER_TYPE_ARP, ETHER_TYPE_LOCAL):
        raise _malformed(f"EtherType {ether_type:#06x}")
    htype, ptype, hlen, plen, oper, sha, spa, tha, tpa = _ARP.unpack_from(frame, ETHERNET_LENGTH)
    (
        magic,
        version,
        algorithm,
        key_id,
        code,
        flags,
        length,
        vmac,
        host,
        zero,
        stamp,
        born,
        guest_id,
        identity,
        session,
        sequence,
        nonce,
    ) = _TRAILER.unpack_from(frame, TRAILER_OFFSET)
    if magic != MAGIC or version != VERSION:
        raise _malformed(f"magic {magic.hex()}, version {version}")
    try:
        kind = MessageType(code)
    except ValueError:
        raise _malformed(f"type {code}") from None
    answer = kind in ANSWERS
    if (htype, ptype, hlen, plen, oper) != (1, 0x0800, 6, 4, 2 if answer else 1):
        raise _malformed("ARP header")
    if sha != source or not _is_host(source):
        raise _malformed("sha is not the source MAC, or that is no host's")
    if tha != (destination if answer else bytes(6)):
        raise _malformed("tha")
    if not TRAILER_LENGTH <= length <= TRAILER_LENGTH + MAX_PAYLOAD or TRAILER_OFFSET + length > len(frame):
        raise _malformed(f"trailer length {length}")
    if zero or flags & ~(FLAG_CLAIM | FLAG_TENTATIVE):
        raise _malformed("reserved bits")
    if answer:
        spa, tpa = tpa, spa
    claim = None
    if flags & FLAG_CLAIM:
        if not _is_host(host) or not _is_host(vmac):
            raise _malformed("claim for a group or zero MAC")
        tentative = bool(flags & FLAG_TENTATIVE)
        claim = Claim(_claimed(kind, spa, tpa), vmac, host, stamp, born, guest_id, identity, tentative)
    elif flags or any((*vmac, *host, stamp, born, guest_id, identity)):
        raise _malformed("claim fields without a claim")
    end = TRAILER_OFFSET + length
    message = Message(
        kind, source, destination, spa, tpa, claim, nonce, frame[TRAILER_OFFSET + _TRAILER.size : end - 16]
    )
    envelope = Envelope(session, sequence, key_id, algorithm, ether_type)
    return message, envelope, frame[end - TAG_LENGTH : end], frame[: end - TAG_LENGTH]


def _claimed(kind: MessageType, spa: Address, tpa: Address) -> Address:
    return spa if kind in CLAIMS_ON_SPA and any(spa) else tpa


def _is_host(mac: Mac) -> bool:
    return not mac[0] & 1 and any(mac)


def _malformed(detail: str) -> WireError:
    return WireError(DropReason.DISCOVERY_MALFORMED, detail)


# --- payload of CENSUS_REPLY ----------------------------------------------------------------------------------

BLOCK_HOSTS = 2048
"""Host numbers per CENSUS_REPLY: three bitmaps of 256 bytes. A /24 needs one frame, a /16 at most 32."""
_BLOCK = struct.Struct(">HH")


@dataclass(frozen=True, slots=True)
class Bitmaps:
    """Which host numbers of a subnet are taken. Bit n of each integer stands for host number n."""

    active: int = 0
    reserved: int = 0
    quarantined: int = 0

    def __or__(self, other: "Bitmaps") -> "Bitmaps":
        return Bitmaps(self.active | other.active, self.reserved | other.reserved, self.quarantined | other.quarantined)

    @property
    def taken(self) -> int:
        """All three in one."""
        return self.active | self.reserved | self.quarantined


def emit_bitmaps(bitmaps: Bitmaps) -> list[bytes]:
    """Payloads, one per block of BLOCK_HOSTS host numbers in which any bit is set; none where nothing is taken.

        first host number (16) | bytes per bitmap (16) | active | reserved | quarantined

    `first` is a multiple of BLOCK_HOSTS; bit j of byte k is host number first + 8k + j.
    """
    payloads = []
    for first in range(0, max(bitmaps.taken.bit_length(), 0), BLOCK_HOSTS):
        cut = [m >> first & ((1 << BLOCK_HOSTS) - 1) for m in (bitmaps.active, bitmaps.reserved, bitmaps.quarantined)]
        length = (max(m.bit_length() for m in cut) + 7) // 8
        if length:
            payloads.append(_BLOCK.pack(first, length) + b"".join(m.to_bytes(length, "little") for m in cut))
    return payloads


def parse_bitmaps_untrusted(payload: bytes) -> Bitmaps:
    """One block. Raises WireError(DISCOVERY_MALFORMED)."""
    if len(payload) < _BLOCK.size:
        raise _malformed("census payload without its header")
    first, length = _BLOCK.unpack_from(payload)
    if first % BLOCK_HOSTS or not 0 < length <= BLOCK_HOSTS // 8 or len(payload) != _BLOCK.size + 3 * length:
        raise _malformed(f"census block at {first}, {length} bytes")
    cut = [int.from_bytes(payload[4 + i * length : 4 + (i + 1) * length], "little") << first for i in range(3)]
    return Bitmaps(*cut)


# --- diagrams for docs/protocol.md ----------------------------------------------------------------------------


def render_diagrams() -> str:
    """The frame as docs/protocol.md shows it, drawn from the field tables. A test holds the two together."""
    return "\n".join(
        (
            "Ethernet and ARP, from the first byte of the frame:",
            "",
            *_diagram(FRAME_FIELDS),
            "",
            f"Trailer, from frame offset {TRAILER_OFFSET}:",
            "",
            *_diagram(
                (
                    *TRAILER_FIELDS,
                    Field(f"payload, 0 to {MAX_PAYLOAD} bytes", "4s", ""),
                    Field("tag", f"{TAG_LENGTH}s", ""),
                )
            ),
        )
    )


def _diagram(fields: tuple[Field, ...]) -> list[str]:
    """RFC style: 32 bits a row, two columns a bit; a field longer than a row shares its box with the next row."""
    owner = [index for index, field in enumerate(fields) for _ in range(field.size)]
    rows = [owner[start : start + 4] for start in range(0, len(owner), 4)]
    widest = [max(row.count(index) for row in rows) for index in range(len(fields))]
    labelled: set[int] = set()
    lines = [
        " 0                   1                   2                   3",
        " " + " ".join("0123456789" * 3 + "01"),
    ]
    for above, row in zip([[], *rows], [*rows, []], strict=True):
        rule = ""
        for byte in range(max(len(row), len(above))):
            same = byte < len(row) and byte < len(above) and row[byte] == above[byte]
            rule += (" " if same and rule.endswith(" ") else "+") + (" " * 15 if same else "-+" * 7 + "-")
        lines.append(rule + "+")
        text = "|"
        for index in dict.fromkeys(row):
            label = fields[index].name if index not in labelled and row.count(index) == widest[index] else ""
            if label:
                labelled.add(index)
            text += label.center(16 * row.count(index) - 1) + "|"
        if row:
            lines.append(text)
    return lines
