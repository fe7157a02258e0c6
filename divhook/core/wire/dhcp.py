"""DHCP messages (RFC 2131 §2, options RFC 2132): codec, both directions, and encoders of option values.

     0                   1                   2                   3
     0 1 2 3 4 5 6 7 8 9 0 1 2 3 4 5 6 7 8 9 0 1 2 3 4 5 6 7 8 9 0 1
    +---------------+---------------+---------------+---------------+
    |     op (1)    |   htype (1)   |   hlen (1)    |   hops (1)    |
    +---------------+---------------+---------------+---------------+
    |                            xid (4)                            |
    +-------------------------------+-------------------------------+
    |           secs (2)            |B|          zero (15)          |
    +-------------------------------+-------------------------------+
    |                ciaddr (4)  yiaddr (4)  siaddr (4)  giaddr (4) |
    +---------------------------------------------------------------+
    |                 chaddr (16)  sname (64)  file (128)           |
    +---------------------------------------------------------------+
    |   magic cookie 63 82 53 63, then options: (code, length, data)|
    +---------------------------------------------------------------+

Option 0 is one byte of padding, 255 ends a field. Instances of the same option are pieces of one value (RFC 3396).
Option 52 says that `file` (1), `sname` (2) or both (3) hold options too; the pieces are joined in the order
options, file, sname (RFC 3396 §5). Here 52 is part of the encoding: it is never in `DhcpMessage.options`.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from enum import IntEnum, unique

from divhook.core.addressing import ZERO_ADDRESS, Address, Mac
from divhook.core.reasons import DropReason
from divhook.core.wire.errors import WireError

SERVER_PORT = 67
CLIENT_PORT = 68
MAGIC_COOKIE = b"\x63\x82\x53\x63"
FIXED_BYTES = 236
"""Everything before the magic cookie."""
MIN_BYTES = 300
"""Shortest message sent: BOOTP's size (RFC 1542 §2.1), which some clients insist on."""
DEFAULT_MAX_BYTES = 548
"""Longest message any client takes: an IP datagram of 576 bytes (RFC 2131 §2) less IP and UDP header."""
MAX_REQUEST_BYTES = 1472
"""Longest message taken from a guest, one Ethernet frame's worth: bounds what a pending request costs."""
HTYPE_ETHERNET = 1
_BROADCAST_FLAG = 0x8000
_FILE_BYTES, _SNAME_BYTES = 128, 64
_PAD, _OVERLOAD, _END = 0, 52, 255


class Op(IntEnum):
    """Who speaks."""

    REQUEST = 1
    REPLY = 2


@unique
class DhcpType(IntEnum):
    """Option 53."""

    DISCOVER = 1
    OFFER = 2
    REQUEST = 3
    DECLINE = 4
    ACK = 5
    NAK = 6
    RELEASE = 7
    INFORM = 8


@unique
class Option(IntEnum):
    """Option codes that divhook reads or writes (RFC 2132 unless said)."""

    MASK = 1
    ROUTER = 3
    DNS = 6
    HOSTNAME = 12
    DOMAIN = 15
    MTU = 26
    BROADCAST = 28
    NTP = 42
    REQUESTED_ADDRESS = 50
    LEASE_TIME = 51
    OVERLOAD = 52
    MESSAGE_TYPE = 53
    SERVER_ID = 54
    PARAMETER_LIST = 55
    MESSAGE = 56
    MAX_SIZE = 57
    T1 = 58
    T2 = 59
    VENDOR_CLASS = 60
    CLIENT_ID = 61
    TFTP_SERVER = 66
    BOOT_FILE = 67
    RAPID_COMMIT = 80  # RFC 4039
    RELAY_AGENT = 82  # RFC 3046
    SEARCH = 119  # RFC 3397
    ROUTES = 121  # RFC 3442
    ROUTES_MICROSOFT = 249  # the same value, asked for by old Windows


def _malformed(detail: str) -> WireError:
    return WireError(DropReason.DHCP_MALFORMED, detail)


@dataclass(frozen=True, slots=True)
class DhcpMessage:
    """One message. chaddr is 6 bytes (htype Ethernet); sname and file without their trailing NULs.

    options: (code, whole value) in order, each code once, never 0, 52 or 255. Raises ValueError where that does not
    hold.
    """

    op: Op
    xid: int
    chaddr: Mac
    secs: int = 0
    broadcast: bool = False
    ciaddr: Address = ZERO_ADDRESS
    yiaddr: Address = ZERO_ADDRESS
    siaddr: Address = ZERO_ADDRESS
    giaddr: Address = ZERO_ADDRESS
    sname: bytes = b""
    file: bytes = b""
    options: tuple[tuple[int, bytes], ...] = ()

    def __post_init__(self) -> None:
        if len(self.chaddr) != 6 or any(len(a) != 4 for a in (self.ciaddr, self.yiaddr, self.siaddr, self.giaddr)):
            raise ValueError("DHCP: chaddr takes 6 bytes, addresses 4")
        if len(self.sname) > _SNAME_BYTES or len(self.file) > _FILE_BYTES:
            raise ValueError(f"DHCP: sname takes {_SNAME_BYTES} bytes, file {_FILE_BYTES}")
        codes = [code for code, _ in self.options]
        if len(set(codes)) != len(codes) or any(not _PAD < c < _END or c == _OVERLOAD for c in codes):
            raise ValueError(f"DHCP: option codes {codes} repeat, or hold 0, 52 or 255")

    def option(self, code: int) -> bytes | None:
        """Value of an option."""
        return next((value for c, value in self.options if c == code), None)

    def address_option(self, code: int) -> Address | None:
        """Value of an option that is one address. Raises WireError(DHCP_MALFORMED) where it is not 4 bytes."""
        value = self.option(code)
        if value is not None and len(value) != 4:
            raise _malformed(f"option {code} has {len(value)} bytes, not 4")
        return value

    def emit(self, max_size: int = DEFAULT_MAX_BYTES) -> bytes:
        """The message in at most max_size bytes (not below 300); see `encode` for what does not fit."""
        return encode(self, max_size)[0]


def parse_dhcp_untrusted(payload: bytes) -> DhcpMessage:
    """Decode a UDP payload. Raises WireError(DHCP_MALFORMED), and nothing else.

    A message without the magic cookie (BOOTP) is malformed; one without option 53 is not. A missing end option is
    tolerated, an option that runs over the end of its field is not.
    """
    start = FIXED_BYTES + len(MAGIC_COOKIE)
    if not start <= len(payload) <= MAX_REQUEST_BYTES:
        raise _malformed(f"{len(payload)} bytes, not {start} to {MAX_REQUEST_BYTES}")
    if payload[0] not in (Op.REQUEST, Op.REPLY):
        raise _malformed(f"op {payload[0]}")
    if payload[1] != HTYPE_ETHERNET or payload[2] != 6:
        raise _malformed(f"htype {payload[1]} hlen {payload[2]}: not Ethernet")
    if payload[FIXED_BYTES:start] != MAGIC_COOKIE:
        raise _malformed("no magic cookie: BOOTP, or noise")
    sname, file = payload[44:108], payload[108:236]
    options: dict[int, bytes] = {}
    _collect(payload[start:], options)
    overload = options.pop(_OVERLOAD, None)
    if overload is not None:
        if overload not in (b"\x01", b"\x02", b"\x03"):
            raise _malformed(f"option overload {overload.hex()}")
        if overload[0] & 1:
            _collect(file, options)
            file = b""
        if overload[0] & 2:
            _collect(sname, options)
            sname = b""
        if _OVERLOAD in options:
            raise _malformed("option overload inside an overloaded field")
    return DhcpMessage(
        op=Op(payload[0]),
        xid=int.from_bytes(payload[4:8], "big"),
        secs=int.from_bytes(payload[8:10], "big"),
        broadcast=bool(payload[10] & 0x80),
        ciaddr=payload[12:16],
        yiaddr=payload[16:20],
        siaddr=payload[20:24],
        giaddr=payload[24:28],
        chaddr=payload[28:34],
        sname=sname.split(b"\0", 1)[0],
        file=file.split(b"\0", 1)[0],
        options=tuple(options.items()),
    )


def _collect(field: bytes, options: dict[int, bytes]) -> None:
    """Add a field's options to those found so far, joining pieces (RFC 3396)."""
    at = 0
    while at < len(field) and field[at] != _END:
        code = field[at]
        at += 1
        if code == _PAD:
            continue
        if at >= len(field) or at + 1 + field[at] > len(field):
            raise _malformed(f"option {code} runs over the end of its field")
        length = field[at]
        options[code] = options.get(code, b"") + field[at + 1 : at + 1 + length]
        at += 1 + length


def encode(message: DhcpMessage, max_size: int) -> tuple[bytes, tuple[int, ...]]:
    """(payload of 300 to max_size bytes, codes of the options that found no room).

    Options are placed in order, so the first are the last to be left out. Where the options field is too short, those
    of file and sname that the message does not use are taken (overload), and as a last resort a value is split
    between fields (RFC 3396).
    """
    room = max(max_size, MIN_BYTES) - FIXED_BYTES - len(MAGIC_COOKIE)
    options, file, sname = _Field(room), _Field(_FILE_BYTES), _Field(_SNAME_BYTES)
    omitted: list[int] = []
    if sum(_encoded_bytes(len(value)) for _, value in message.options) <= options.free:
        for code, value in message.options:
            options.put(code, value)
    else:
        fields = [options]
        fields += [file] if not message.file else []
        fields += [sname] if not message.sname else []
        if len(fields) > 1:
            options.free -= 3  # for option 52 itself
        for code, value in message.options:
            if not _place(code, value, fields):
                omitted.append(code)
        overload = bool(file.data) | bool(sname.data) << 1
        if overload:
            options.data += bytes([_OVERLOAD, 1, overload])
    head = b"".join(
        (
            bytes([message.op, HTYPE_ETHERNET, 6, 0]),
            message.xid.to_bytes(4, "big"),
            message.secs.to_bytes(2, "big"),
            (_BROADCAST_FLAG if message.broadcast else 0).to_bytes(2, "big"),
            message.ciaddr + message.yiaddr + message.siaddr + message.giaddr,
            message.chaddr + bytes(10),
            (sname.closed() or message.sname).ljust(_SNAME_BYTES, b"\0"),
            (file.closed() or message.file).ljust(_FILE_BYTES, b"\0"),
        )
    )
    return (head + MAGIC_COOKIE + options.data + bytes([_END])).ljust(MIN_BYTES, b"\0"), tuple(omitted)


class _Field:
    """A field that takes options: what it holds, and the bytes free before its end option."""

    def __init__(self, size: int) -> None:
        self.data = b""
        self.free = size - 1

    def put(self, code: int, value: bytes) -> None:
        for at in range(0, len(value) or 1, 255):
            piece = value[at : at + 255]
            self.data += bytes([code, len(piece)]) + piece
            self.free -= 2 + len(piece)

    def closed(self) -> bytes:
        return self.data + bytes([_END]) if self.data else b""


def _encoded_bytes(length: int) -> int:
    return length + 2 * max(1, -(-length // 255))


def _place(code: int, value: bytes, fields: list[_Field]) -> bool:
    """Put an option whole into the first field with room, else split it over the fields in their order."""
    for field in fields:
        if _encoded_bytes(len(value)) <= field.free:
            field.put(code, value)
            return True
    pieces: list[tuple[_Field, bytes]] = []
    rest = value
    for field in fields:
        # so many bytes, and the two before every 255 of them, fit
        take = max(0, field.free - 2 * -(-field.free // 257))
        if take:
            pieces.append((field, rest[:take]))
            rest = rest[take:]
    if rest or not value:  # what is empty cannot be split
        return False
    for field, piece in pieces:
        if piece:
            field.put(code, piece)
    return True


def encode_routes(routes: Iterable[tuple[Address, int, Address]]) -> bytes:
    """Value of option 121 (RFC 3442) from (prefix, length, gateway): only the significant bytes of each prefix.

    Raises ValueError where a prefix has bits beyond its length.
    """
    value = b""
    for prefix, length, gateway in routes:
        if not 0 <= length <= 32 or int.from_bytes(prefix, "big") & (0xFFFFFFFF >> length):
            raise ValueError(f"route {prefix.hex('.')}/{length} has bits beyond its prefix length")
        value += bytes([length]) + prefix[: (length + 7) // 8] + gateway
    return value


def encode_search(names: Iterable[str]) -> bytes:
    """Value of option 119 (RFC 3397): DNS names, compressed by pointers into the value itself (RFC 1035 §4.1.4).

    Raises ValueError where a name is no DNS name.
    """
    value = b""
    seen: dict[tuple[str, ...], int] = {}
    for name in names:
        labels = tuple(name.rstrip(".").lower().split("."))
        if len(name) > 253 or not all(0 < len(label) <= 63 and label.isascii() for label in labels):
            raise ValueError(f"{name!r} is not a DNS name")
        for i in range(len(labels)):
            known = seen.get(labels[i:])
            if known is not None:
                value += (0xC000 | known).to_bytes(2, "big")
                break
            if len(value) < 0x4000:
                seen[labels[i:]] = len(value)
            value += bytes([len(labels[i])]) + labels[i].encode("ascii")
        else:
            value += b"\0"
    return value
