"""IGMP: what hosts say of their groups (versions 1 to 3), and what a querier asks (version 3).

     0       1       2               4               6               8
    +-------+-------+---------------+-------------------------------+
    | type  | resp. |   checksum    |             group             |   0x12, 0x16 report, 0x17 leave (RFC 1112, 2236)
    +-------+-------+---------------+---------------+---------------+
    | 0x22  |   0   |   checksum    |       0       | no. of records|   report (RFC 3376 §4.2), then the records:
    +-------+-------+---------------+---------------+---------------+
    | type  |aux len| no. of sources|             group             |   sources of 4 bytes, aux len words
    +-------+-------+---------------+-------------------------------+

    +-------+-------+---------------+-------------------------------+-------+-------+---------------+
    | 0x11  | resp. |   checksum    |   group, or 0 for all of them | S QRV | QQIC  | no. of sources|   query (§4.1)
    +-------+-------+---------------+-------------------------------+-------+-------+---------------+

Of a record it matters whether the host may still want the group. Lists of sources are not kept: a member gets the whole
group, and its own stack filters by source (RFC 4541 §2.1.2 leaves that to the switch).
"""

from dataclasses import dataclass
from enum import IntEnum, unique
from struct import Struct

from divhook.core.addressing import ZERO_ADDRESS, Address
from divhook.core.reasons import DropReason
from divhook.core.wire.checksum import checksum, verifies
from divhook.core.wire.errors import WireError

IGMP_MIN = 8
QUERY_LENGTH = 12
ROUTER_ALERT = bytes((148, 4, 0, 0))
"""The IPv4 option of all IGMP from version 2 on (RFC 2113)."""

TYPE_QUERY = 0x11
TYPE_REPORT_V1 = 0x12
TYPE_REPORT_V2 = 0x16
TYPE_LEAVE_V2 = 0x17
TYPE_REPORT_V3 = 0x22

_FIXED = Struct("!BBH4s")
_RECORD = Struct("!BBH4s")
_QUERY = Struct("!BBH4sBBH")


@unique
class RecordType(IntEnum):
    """RFC 3376 §4.2.12."""

    MODE_IS_INCLUDE = 1
    MODE_IS_EXCLUDE = 2
    CHANGE_TO_INCLUDE = 3
    CHANGE_TO_EXCLUDE = 4
    ALLOW_NEW_SOURCES = 5
    BLOCK_OLD_SOURCES = 6


@dataclass(frozen=True, slots=True)
class Wish:
    """A host wants a group, or perhaps does not any more: then it is asked."""

    group: Address
    wanted: bool


def parse_igmp_untrusted(payload: bytes) -> list[Wish]:
    """A host's message, from the payload of an unfragmented IPv4 packet; its wishes in order.

    Raises WireError(IGMP_REFUSED): malformed, or of a type that a host does not send (queries, routing protocols). What
    follows the message, and records of unknown types, are not looked at (RFC 3376 §4.2.11, §4.2.12).
    """
    if len(payload) < IGMP_MIN:
        raise WireError(DropReason.IGMP_REFUSED, f"{len(payload)} bytes")
    if not verifies(payload):
        raise WireError(DropReason.IGMP_REFUSED, "checksum")
    kind, _, _, group = _FIXED.unpack_from(payload)
    if kind in (TYPE_REPORT_V1, TYPE_REPORT_V2, TYPE_LEAVE_V2):
        return [_wish(group, kind != TYPE_LEAVE_V2)]
    if kind != TYPE_REPORT_V3:
        raise WireError(DropReason.IGMP_REFUSED, f"type {kind:#04x}")
    wishes = []
    at = IGMP_MIN
    for _ in range(int.from_bytes(group[2:], "big")):
        if at + _RECORD.size > len(payload):
            raise WireError(DropReason.IGMP_REFUSED, f"record at {at} of {len(payload)} bytes")
        record, aux_words, sources, address = _RECORD.unpack_from(payload, at)
        at += _RECORD.size + 4 * (aux_words + sources)
        if at > len(payload):
            raise WireError(DropReason.IGMP_REFUSED, f"a record up to {at} of {len(payload)} bytes")
        if record in (RecordType.MODE_IS_INCLUDE, RecordType.CHANGE_TO_INCLUDE):
            wishes.append(_wish(address, sources > 0))
        elif record == RecordType.BLOCK_OLD_SOURCES:
            wishes.append(_wish(address, False))
        elif record in (RecordType.MODE_IS_EXCLUDE, RecordType.CHANGE_TO_EXCLUDE, RecordType.ALLOW_NEW_SOURCES):
            wishes.append(_wish(address, True))
    return wishes


def _wish(group: Address, wanted: bool) -> Wish:
    if group[0] >> 4 != 14:
        raise WireError(DropReason.IGMP_REFUSED, f"{group.hex('.')} is no group")
    return Wish(group, wanted)


def query(response_s: float, robustness: int, interval_s: int, group: Address = ZERO_ADDRESS) -> bytes:
    """A query: of one group, or general (zero). response_s: up to 12.7, to the tenth; interval_s: up to 127.

    Hosts of version 2 read its first 8 bytes (RFC 3376 §7.2.1).
    """
    fixed = _QUERY.pack(TYPE_QUERY, round(response_s * 10), 0, group, robustness, interval_s, 0)
    return fixed[:2] + checksum(fixed).to_bytes(2, "big") + fixed[4:]
