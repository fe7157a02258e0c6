"""Diverted IPv4 packets, out of the kernel's NFQUEUE (libnetfilter_queue, through netfilterqueue).

Every packet gets the verdict DROP as it is read: the agent emits what it decides to by itself. The kernel splits GSO
and completes checksums before it queues, so a packet is what a NIC would have seen. With the agent away nothing has
bound the queue, and without `bypass` in the rules the kernel drops.

netfilterqueue 1.1.0 reads into 4,096 bytes and loses, without a word, packets above about 3,990. So this module reads
the socket itself and hands over what it read; and it sets the copy range anew after bind(), which caps it at 4,016.

Of a packet that the kernel has cut it tells bytes of the IP header for a source MAC: the segment's own MAC header is
gone. The program at the uplink puts the MAC of such a packet into its mark and its priority, which segments inherit
(bpf/abi.h).
"""

import contextlib
import errno
import socket
import struct
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import cast

from netfilterqueue import COPY_PACKET, NetfilterQueue, Packet

from divhook.abi.layout import MARK_SEGMENTS

MAX_PACKET = 0xFFFF - 4
"""Bytes of the longest IP packet that arrives whole: the payload attribute's own length is 16 bits."""
MAX_WAITING = 4096
"""Packets that the kernel holds for the agent; past it new ones are dropped, and counted as queue_dropped."""
RECEIVE_BUFFER = 16 << 20
"""Bytes of messages that wait on the socket; past it packets are dropped, and counted as user_dropped."""
BATCH = 64
"""Packets per read(), so that no sender keeps the agent's loop for itself."""

_PROC = Path("/proc/thread-self/net/netfilter/nfnetlink_queue")
_BUFFER = MAX_PACKET + 4096  # a message: the packet and its metadata
_SOL_NETLINK, _NETLINK_NO_ENOBUFS = 270, 5
_NFQNL_MSG_CONFIG, _NFQA_CFG_PARAMS = (3 << 8) | 2, 2  # linux/netfilter/nfnetlink_queue.h
_NLM_F_REQUEST = 1
_HEADERS, _NFQA_PRIORITY = 20, 21  # nlmsghdr and nfgenmsg; linux/netfilter/nfnetlink_queue.h, since Linux 5.18

DivertCallback = Callable[[int, bytes | None, bytes], None]
"""(mark, source MAC or None, IPv4 packet)."""


@dataclass(frozen=True, slots=True)
class QueueCounts:
    """waiting: in the kernel now. queue_dropped: no room among MAX_WAITING. user_dropped: no room on the socket."""

    waiting: int
    queue_dropped: int
    user_dropped: int


def _priority(message: bytes) -> bytes:
    """The packet's priority, of four bytes; zero is not told."""
    at = _HEADERS
    while at + 4 <= len(message):
        length, kind = struct.unpack_from("=HH", message, at)
        if kind == _NFQA_PRIORITY or length < 4:
            return message[at + 4 : at + 8]
        at += (length + 3) & ~3
    return bytes(4)


class DivertQueue:
    """One NFQUEUE, bound for as long as this lives. Raises OSError where another process has it."""

    def __init__(self, queue_number: int, callback: DivertCallback) -> None:
        self._number = queue_number
        self._callback = callback
        self._left = 0
        self._message = b""
        self._error: Exception | None = None
        self._queue = NetfilterQueue()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)  # about the buffer's size, if not privileged
            self._queue.bind(queue_number, self._packet, MAX_WAITING, COPY_PACKET, MAX_PACKET, RECEIVE_BUFFER)
        self._socket = socket.socket(fileno=self._queue.get_fd())
        self._socket.setsockopt(_SOL_NETLINK, _NETLINK_NO_ENOBUFS, 1)
        self._copy_whole_packets()

    def _copy_whole_packets(self) -> None:
        #   nlmsghdr | nfgenmsg: family, version, queue | nlattr NFQA_CFG_PARAMS: copy range, mode
        body = struct.pack("=BB", 0, 0) + struct.pack("!H", self._number)
        body += struct.pack("=HH", 9, _NFQA_CFG_PARAMS) + struct.pack("!IB3x", MAX_PACKET, COPY_PACKET)
        self._socket.send(struct.pack("=IHHII", 16 + len(body), _NFQNL_MSG_CONFIG, _NLM_F_REQUEST, 0, 0) + body)

    def fileno(self) -> int:
        """For the event loop: readable when a packet waits."""
        return int(self._queue.get_fd())

    def read(self) -> int:
        """Call back for at most BATCH packets that wait; how many. What the callback raises is raised at the end."""
        self._left = BATCH
        self._queue.run_socket(cast(socket.socket, self))
        if self._error is not None:
            error, self._error = self._error, None
            raise error
        return BATCH - self._left

    def recv(self, _size: int) -> bytes:
        """What netfilterqueue calls for the next message: bounded per read(), and with room for any packet."""
        if self._left == 0:
            raise BlockingIOError(errno.EAGAIN, "enough for now")
        self._message = self._socket.recv(_BUFFER, socket.MSG_DONTWAIT)
        self._left -= 1
        return self._message

    def _packet(self, packet: Packet) -> None:
        packet.drop()
        try:
            hardware, mark = packet.get_hw(), packet.get_mark()
            if mark & MARK_SEGMENTS:
                hardware = (mark >> 16).to_bytes(2, "big") + _priority(self._message)
                mark &= 0xFFFF & ~MARK_SEGMENTS
            self._callback(mark, hardware[:6] if hardware else None, packet.get_payload())
        except Exception as error:  # through libnetfilter_queue it would lose its way
            self._error = error

    def counts(self) -> QueueCounts:
        """Totals of this queue, from the kernel."""
        with contextlib.suppress(FileNotFoundError):
            for line in _PROC.read_text().splitlines():
                number, _, waiting, _, _, queue_dropped, user_dropped, *_ = (int(field) for field in line.split())
                if number == self._number:
                    return QueueCounts(waiting, queue_dropped, user_dropped)
        return QueueCounts(0, 0, 0)

    def close(self) -> None:
        """Give the queue back. The kernel drops what waits, and all that comes."""
        self._socket.detach()  # the descriptor is netfilterqueue's
        self._queue.unbind()
