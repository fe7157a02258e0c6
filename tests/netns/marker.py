"""A stand-in for from_guest that validates nothing: every frame of a port gets the mark and divbr0's MAC.

So what the tests throw at the walls is more than a guest can: no anti-spoof, no parsing before them.
"""

import ctypes
import os
import struct

from pyroute2 import AsyncIPRoute

_BPF, _PROG_LOAD, _SCHED_CLS = 321, 5, 3  # x86-64 system call; linux/bpf.h
_STORE_BYTES, _CHANGE_TYPE = 9, 32
_INGRESS = 0xFFFFFFF2

_libc = ctypes.CDLL(None, use_errno=True)


def _instruction(code: int, dst: int = 0, src: int = 0, offset: int = 0, value: int = 0) -> bytes:
    return struct.pack("=BBhi", code, src << 4 | dst, offset, value)


def _program(mark: int, mac: bytes) -> bytes:
    word, half = struct.unpack("=ih", mac)
    return b"".join(
        (
            _instruction(0xBF, 6, 1),  # r6 = skb
            _instruction(0xB4, 2, value=struct.unpack("=i", struct.pack("=I", mark))[0]),
            _instruction(0x63, 6, 2, 8),  # skb->mark = r2
            _instruction(0x62, 10, offset=-8, value=word),
            _instruction(0x6A, 10, offset=-4, value=half),
            _instruction(0xBF, 1, 6),
            _instruction(0xB7, 2, value=0),
            _instruction(0xBF, 3, 10),
            _instruction(0x07, 3, value=-8),
            _instruction(0xB7, 4, value=6),
            _instruction(0xB7, 5, value=0),
            _instruction(0x85, value=_STORE_BYTES),
            _instruction(0xBF, 1, 6),
            _instruction(0xB7, 2, value=0),  # PACKET_HOST
            _instruction(0x85, value=_CHANGE_TYPE),
            _instruction(0xB7, 0, value=-1),  # TC_ACT_UNSPEC: on to the next filter
            _instruction(0x95),
        )
    )


def load(mark: int, mac: bytes) -> int:
    """File descriptor of the program."""
    code = _program(mark, mac)
    instructions, licence = ctypes.create_string_buffer(code, len(code)), ctypes.create_string_buffer(b"GPL")
    attributes = struct.pack(
        "=IIQQ", _SCHED_CLS, len(code) // 8, ctypes.addressof(instructions), ctypes.addressof(licence)
    ).ljust(128, b"\0")
    descriptor = _libc.syscall(_BPF, _PROG_LOAD, attributes, len(attributes))
    if descriptor < 0:
        raise OSError(ctypes.get_errno(), "BPF_PROG_LOAD")
    return int(descriptor)


async def attach(ifindex: int, mark: int, mac: bytes) -> None:
    """Put it at the ingress of a link that has clsact, ahead of every other filter."""
    descriptor = load(mark, mac)
    try:
        async with AsyncIPRoute() as netlink:
            await netlink.tc(
                "replace-filter",
                "bpf",
                ifindex,
                1,
                fd=descriptor,
                name="marker",
                parent=_INGRESS,
                prio=1,
                direct_action=True,
            )
    finally:
        os.close(descriptor)
