"""Frames for the differential test: those of the other tests, and what becomes of them by seeded mutation."""

import random
import struct

import bpf_frames as f
from test_from_guest import DROPS, PASSES
from test_from_wire import DISCOVERY, DIVERTED, DROPPED, HERE, UNTOUCHED, wire

SHORT_UDP = [f.ipv4(ports[:n], protocol=f.UDP) for ports in (b"\0\x43\0\x44", b"\0\x44\0\x43") for n in range(5)]
"""Datagrams too short for their ports, or just not: read past the end, padding would pass for ports."""
GUEST_CORPUS = [
    *PASSES.values(),
    *(frame for frame, _ in DROPS.values()),
    *(f.ethernet(packet + padding) for packet in SHORT_UDP for padding in (b"", b"\0\x43\0\x44")),
]
WIRE_CORPUS = [
    *DIVERTED.values(),
    *DISCOVERY.values(),
    *UNTOUCHED.values(),
    *(frame for frame, _ in DROPPED.values()),
    *(wire(f.ipv4(b"\0\x43\0\x44"[:n], protocol=f.UDP, **HERE) + b"\0\x44\0\x44"[n:]) for n in range(5)),
]

MACS = (
    *(f.VMAC, f.PMAC, f.DIVBR_MAC, f.PEER, f.STRANGER, f.OTHER_MAC, f.BROADCAST, f.GROUP, f.FOREIGN_GROUP),
    *(f.MDNS_GROUP, bytes(6), bytes.fromhex("03d1ffffffff"), bytes.fromhex("02d100150025")),
)
ADDRESSES = (
    *(f.ADDRESS, f.ROUTER, f.NEIGHBOUR, f.SUBNET_BROADCAST, f.OUTSIDE, f.LIMITED_BROADCAST, f.MULTICAST, f.NONE),
    *(bytes((10, 21, 37, 0)), bytes((10, 255, 255, 255)), bytes((11, 0, 0, 0)), bytes((9, 255, 255, 255))),
    *(bytes((239, 255, 255, 255)), bytes((240, 0, 0, 1)), bytes((223, 1, 2, 255)), bytes((127, 0, 0, 1))),
)
TYPES = (f.IPV4, f.ARP, f.RARP, f.IPV6, f.VLAN, f.QINQ, f.OLD_QINQ, f.DISCOVERY, 0, 0x05DC, 0x88CC)
PORTS = (67, 68, 66, 69, 53, 5353)
EDGES = (0, 1, 2, 3, 4, 5, 6, 0x11, 0x40, 0x45, 0x46, 0x4F, 0x55, 0x7F, 0x80, 0x83, 0x89, 0x94, 0xFF)
LONGEST = 1600
"""Bytes."""
SHORTEST = {f.IPV4: 14 + 20, f.IPV6: 14 + 40}
"""Bytes that test-run wants at least, by EtherType; of the others 14."""


def _put(frame: bytearray, at: int, value: bytes) -> None:
    if at + len(value) <= len(frame):
        frame[at : at + len(value)] = value


def _below_tags(frame: bytes) -> int:
    at = 14
    while frame[at - 2 : at] in (b"\x81\x00", b"\x88\xa8", b"\x91\x00"):
        at += 4
    return at


def _field(frame: bytearray, rng: random.Random) -> None:
    """Give one field of a header a value that matters there."""
    l3 = _below_tags(frame)
    match rng.randrange(12):
        case 0:
            _put(frame, 0, rng.choice(MACS))
        case 1:
            _put(frame, 6, rng.choice(MACS))
        case 2:
            _put(frame, l3 - 2, rng.choice(TYPES).to_bytes(2, "big"))
        case 3:
            _put(frame, l3 + rng.choice((12, 16)), rng.choice(ADDRESSES))
        case 4:  # spa or tpa
            _put(frame, l3 + rng.choice((14, 24)), rng.choice(ADDRESSES))
        case 5:  # sha or tha
            _put(frame, l3 + rng.choice((8, 18)), rng.choice(MACS))
        case 6:
            _put(frame, l3, bytes((rng.choice((0x45, 0x46, 0x47, 0x4F, 0x44, 0x65, 0x40)),)))
        case 7:
            length = len(frame) - l3 + rng.choice((0, 0, -1, 1, -8, 8, -20))
            _put(frame, l3 + 2, (length & 0xFFFF).to_bytes(2, "big"))
        case 8:
            flags = rng.choice((0, 0x2000, 0x4000, 0x8000, 0x2001, 1, 2, 3, 185, 0x1FFF, 0x1FFE, 0x3FFF))
            _put(frame, l3 + 6, flags.to_bytes(2, "big"))
        case 9:
            _put(frame, l3 + 9, bytes((rng.choice((f.TCP, f.UDP, f.ICMP, f.GRE)),)))
        case 10:
            at = l3 + (frame[l3] & 15) * 4 if len(frame) > l3 else l3
            _put(frame, at + rng.choice((0, 2)), rng.choice(PORTS).to_bytes(2, "big"))
        case _:  # ARP's operation, or discovery's magic
            at, value = rng.choice(((6, 1), (6, 2), (6, 3), (6, 4), (28, 0xD17E)))
            _put(frame, l3 + at, value.to_bytes(2, "big"))


def _bytes(frame: bytearray, rng: random.Random) -> None:
    """Change, cut, or add anything anywhere; headers more often than what they carry."""
    at = rng.randrange(min(len(frame), 80) + 1) if rng.random() < 0.8 else rng.randrange(len(frame) + 1)
    match rng.randrange(7):
        case 0 if at < len(frame):
            frame[at] ^= 1 << rng.randrange(8)
        case 1 if at < len(frame):
            frame[at] = rng.choice(EDGES)
        case 2:
            del frame[at:]
        case 3:
            del frame[at : at + rng.randrange(1, 9)]
        case 4:
            frame[at:at] = frame[at : at + rng.randrange(1, 9)]
        case 5:
            frame += rng.randbytes(rng.randrange(1, 60))
        case _:
            frame[12:12] = rng.choice((b"\x81\x00", b"\x88\xa8", b"\x91\x00")) + rng.randbytes(2)


def _options(frame: bytearray, rng: random.Random) -> None:
    """Put options into an IPv4 header, and make the lengths right again."""
    l3 = _below_tags(frame)
    if len(frame) < l3 + 20:
        return
    options = b"".join(
        rng.choice((b"\x01", b"\x00", b"\x94\x04\x00\x00", b"\x44\x03\x05", b"\x83\x03\x04", b"\x07\x02", b"\x07\x01"))
        for _ in range(rng.randrange(1, 10))
    )[:40]
    options += bytes(-len(options) % 4)
    frame[l3 + 20 : l3 + 20] = options
    frame[l3] = 0x45 + len(options) // 4
    _put(frame, l3 + 2, (len(frame) - l3 & 0xFFFF).to_bytes(2, "big"))


def seal(frame: bytearray) -> None:
    """A true IPv4 header checksum, where there is a header."""
    l3 = _below_tags(frame)
    length = max(20, (frame[l3] & 15) * 4) if len(frame) > l3 else 20
    if len(frame) < l3 + length:
        return
    header = bytes(frame[l3 : l3 + 10]) + b"\0\0" + bytes(frame[l3 + 12 : l3 + length])
    struct.pack_into("!H", frame, l3 + 10, f.rfc1071(header))


def altered(frame: bytes, rng: random.Random, changes: tuple[int, ...] = (1, 1, 2, 3)) -> bytes:
    """The frame after one of so many changes; often with its checksum made true again."""
    fresh = bytearray(frame)
    for _ in range(rng.choice(changes)):
        rng.choice((_field, _field, _field, _bytes, _bytes, _options))(fresh, rng)
    if rng.random() < 0.7:
        seal(fresh)
    return bytes(fresh)


def mutant(corpus: list[bytes], rng: random.Random) -> bytes:
    """A frame of the corpus after none to four changes."""
    return runnable(altered(rng.choice(corpus), rng, (0, 1, 1, 2, 2, 3, 4))[:LONGEST])


def runnable(frame: bytes) -> bytes:
    """The frame, filled with zeros to what test-run takes."""
    frame = frame.ljust(14, b"\0")
    return frame.ljust(SHORTEST.get(frame[12] << 8 | frame[13], 14), b"\0")
