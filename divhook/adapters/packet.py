"""Packet sockets (packet(7)): frames out of any link, diverted frames that NFQUEUE does not carry, group MACs."""

import ctypes
import errno
import socket
import struct
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TypeVar

from divhook.core.addressing import Mac

Message = TypeVar("Message")

# linux/if_packet.h, linux/if_ether.h, asm-generic/socket.h
_SOL_PACKET = 263
_PACKET_ADD_MEMBERSHIP, _PACKET_DROP_MEMBERSHIP, _PACKET_MR_MULTICAST = 1, 2, 0
_PACKET_STATISTICS, _PACKET_VNET_HDR, _PACKET_IGNORE_OUTGOING = 6, 15, 23
_ETH_P_IP, _ETH_P_ALL = 0x0800, 0x0003
_SO_RCVBUFFORCE, _SO_SNDBUFFORCE, _SO_ATTACH_FILTER, _SO_MARK, _SO_RCVMARK = 33, 32, 26, 36, 75

SEND_BUFFER = 4 << 20
"""Bytes in flight towards drivers; past it a frame is refused, not waited for."""


class _SockaddrLl(ctypes.Structure):
    _fields_ = (
        ("family", ctypes.c_ushort),
        ("protocol_be", ctypes.c_ushort),
        ("ifindex", ctypes.c_int),
        ("hatype", ctypes.c_ushort),
        ("pkttype", ctypes.c_ubyte),
        ("halen", ctypes.c_ubyte),
        ("addr", ctypes.c_ubyte * 8),
    )


_libc = ctypes.CDLL(None, use_errno=True)


class FrameSender:
    """Sends whole Ethernet frames out of links by ifindex. Receives nothing (protocol 0).

    Frames go through the link's queue discipline. PACKET_QDISC_BYPASS would pass by an administrator's shaping, by
    libvirt's <bandwidth> of a tap and by captures: not used.
    """

    def __init__(self) -> None:
        self._socket = socket.socket(socket.AF_PACKET, socket.SOCK_RAW | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC, 0)
        self._socket.setsockopt(socket.SOL_SOCKET, _SO_SNDBUFFORCE, SEND_BUFFER)
        self._to = _SockaddrLl(family=socket.AF_PACKET)
        self.refused = 0
        """Frames that the kernel did not take."""

    def send(self, ifindex: int, frame: bytes) -> bool:
        """Send; False where the kernel does not take it (link down or gone, queue full, too long for the link)."""
        self._to.ifindex = ifindex
        self._to.protocol_be = int.from_bytes(frame[12:14], sys.byteorder)
        sent = _libc.sendto(
            self._socket.fileno(), frame, len(frame), 0, ctypes.byref(self._to), ctypes.sizeof(self._to)
        )
        if sent == len(frame):
            return True
        code = ctypes.get_errno()
        if code in (errno.EBADF, errno.EFAULT, errno.ENOTSOCK):
            raise OSError(code, errno.errorcode[code])
        self.refused += 1
        return False

    def close(self) -> None:
        """Close the socket."""
        self._socket.close()


@dataclass(frozen=True, slots=True)
class DivertCounts:
    """received: frames taken in; lost: the socket was full; gso: IPv4 without source and larger than a frame."""

    received: int
    lost: int
    gso: int


_LOAD_WORD, _LOAD_HALF, _LOAD_BYTE, _AND, _JUMP_EQUAL, _RETURN = 0x20, 0x28, 0x30, 0x54, 0x15, 0x06  # linux/filter.h
_PROTOCOL, _MARK = 0xFFFFF000, 0xFFFFF014  # SKF_AD_OFF + SKF_AD_…
_ALL, _NONE = 0x40000, 0
_ADMIT = (
    (_LOAD_WORD, 0, 0, _MARK),
    (_AND, 0, 0, 0xFF),
    (_JUMP_EQUAL, 0, 8, 0xD1),
    (_LOAD_HALF, 0, 0, _PROTOCOL),
    (_JUMP_EQUAL, 5, 0, 0x0806),  # ARP
    (_JUMP_EQUAL, 4, 0, 0x8035),  # RARP
    (_JUMP_EQUAL, 3, 0, 0x88B5),  # discovery, where the fabric meddles with ARP
    (_JUMP_EQUAL, 0, 3, 0x0800),
    (_LOAD_BYTE, 0, 0, 14 + 12),  # IPv4 from 0.0.0.0/8: divbr0's wall keeps it from the host's stack
    (_JUMP_EQUAL, 0, 1, 0),
    (_RETURN, 0, 0, _ALL),
    (_RETURN, 0, 0, _NONE),
)

RECEIVE_BUFFER = 8 << 20
"""Bytes of diverted frames that wait for the agent: some 10,000 small ones."""
BATCH = 64
"""Frames per read(), so that no sender keeps the agent's loop for itself."""
_FRAME_MAX = 65536 + 64
_VNET_HEADER = struct.Struct("=BBHHHH")  # linux/virtio_net.h: flags, gso type, header length, gso size, start, offset
_NEEDS_CHECKSUM = 1


def _complete_checksum(frame: bytes, start: int, offset: int) -> bytes:
    """Fill in the Internet checksum (RFC 1071) that the guest left to its NIC."""
    if start + offset + 2 > len(frame):
        return frame
    covered = frame[start:]
    if len(covered) % 2:
        covered += b"\0"
    total = sum(struct.unpack(f"!{len(covered) // 2}H", covered))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    checksum = (~total & 0xFFFF) or 0xFFFF
    return frame[: start + offset] + checksum.to_bytes(2, "big") + frame[start + offset + 2 :]


def _waiting(receive: Callable[[], Message]) -> Iterator[Message]:
    """At most BATCH messages; ends where none waits, or the link is down."""
    for _ in range(BATCH):
        try:
            yield receive()
        except (BlockingIOError, InterruptedError):
            return
        except OSError as error:
            if error.errno != errno.ENETDOWN:  # told once; it is heard again when the link is up again
                raise
            return


class DivertSocket:
    """Diverted frames on divbr0 that IPv4's NFQUEUE does not carry, each with its mark.

    These are ARP, RARP, discovery, and IPv4 whose source is 0.0.0.0 (DHCP of a guest without address), marked by tc.
    Everything else is kept out by a filter in the kernel.
    """

    def __init__(self, divbr_ifindex: int) -> None:
        self._socket = socket.socket(socket.AF_PACKET, socket.SOCK_RAW | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC, 0)
        program = b"".join(struct.pack("=HBBI", *instruction) for instruction in _ADMIT)
        self._program = ctypes.create_string_buffer(program, len(program))
        filter_struct = struct.pack("@HP", len(_ADMIT), ctypes.addressof(self._program))
        self._socket.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, filter_struct)
        self._socket.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, RECEIVE_BUFFER)
        self._socket.setsockopt(socket.SOL_SOCKET, _SO_RCVMARK, 1)
        self._socket.setsockopt(_SOL_PACKET, _PACKET_IGNORE_OUTGOING, 1)
        self._socket.setsockopt(_SOL_PACKET, _PACKET_VNET_HDR, 1)
        self._socket.bind((socket.if_indextoname(divbr_ifindex), _ETH_P_ALL))
        self._received = self._lost = self._gso = 0

    def fileno(self) -> int:
        """For the event loop: readable when a frame waits."""
        return self._socket.fileno()

    def read(self) -> list[tuple[int, bytes]]:
        """At most BATCH frames that wait, each (mark, whole Ethernet frame); empty when none does.

        Empty too while divbr0 is down, and for good once it is gone: Links.watch tells of that.
        """
        frames: list[tuple[int, bytes]] = []
        for data, ancillary, _, _ in _waiting(lambda: self._socket.recvmsg(_FRAME_MAX, 64)):
            mark = next((int.from_bytes(v, sys.byteorder) for _, kind, v in ancillary if kind == _SO_MARK), 0)
            flags, gso_type, _, _, start, offset = _VNET_HEADER.unpack_from(data)
            frame = data[_VNET_HEADER.size :]
            if gso_type:
                self._gso += 1
                continue
            frames.append((mark, _complete_checksum(frame, start, offset) if flags & _NEEDS_CHECKSUM else frame))
        return frames

    def counts(self) -> DivertCounts:
        """Totals since the socket was opened."""
        raw = self._socket.getsockopt(_SOL_PACKET, _PACKET_STATISTICS, 8)  # reading resets the kernel's
        packets, drops = struct.unpack("=II", raw)
        self._received += packets - drops
        self._lost += drops
        return DivertCounts(self._received, self._lost, self._gso)

    def close(self) -> None:
        """Close the socket."""
        self._socket.close()


class HostSocket:
    """What the host's own stack sends to guests, and the program at dvhost's peer lets pass: IPv4 packets.

    Whole and with checksums: dvhost has its offloads off while frames are the agent's.
    """

    def __init__(self, peer_ifindex: int) -> None:
        self._socket = socket.socket(
            socket.AF_PACKET, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC, 0
        )
        self._socket.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, RECEIVE_BUFFER)
        self._socket.setsockopt(_SOL_PACKET, _PACKET_IGNORE_OUTGOING, 1)
        self._socket.bind((socket.if_indextoname(peer_ifindex), _ETH_P_IP))

    def fileno(self) -> int:
        """For the event loop: readable when a packet waits."""
        return self._socket.fileno()

    def read(self) -> list[bytes]:
        """At most BATCH packets that wait; empty when none does, or while the link is down."""
        return list(_waiting(lambda: self._socket.recv(_FRAME_MAX)))

    def close(self) -> None:
        """Close the socket."""
        self._socket.close()


class GroupMembership:
    """Group MACs that a link admits on behalf of this process. They end with it."""

    def __init__(self, ifindex: int) -> None:
        self._ifindex = ifindex
        self._socket = socket.socket(socket.AF_PACKET, socket.SOCK_RAW | socket.SOCK_CLOEXEC, 0)
        self._joined: set[Mac] = set()

    @property
    def joined(self) -> frozenset[Mac]:
        """Group MACs joined now."""
        return frozenset(self._joined)

    def _set(self, option: int, group: Mac) -> None:
        request = struct.pack("=iHH8s", self._ifindex, _PACKET_MR_MULTICAST, len(group), group)  # struct packet_mreq
        self._socket.setsockopt(_SOL_PACKET, option, request)

    def join(self, group: Mac) -> None:
        """Admit a group MAC. Raises OSError where the link is gone."""
        if group not in self._joined:
            self._set(_PACKET_ADD_MEMBERSHIP, group)
            self._joined.add(group)

    def leave(self, group: Mac) -> None:
        """Admit it no more."""
        if group in self._joined:
            self._joined.remove(group)
            self._set(_PACKET_DROP_MEMBERSHIP, group)

    def close(self) -> None:
        """Leave all."""
        self._socket.close()
        self._joined.clear()
