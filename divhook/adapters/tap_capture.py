"""What is sent into one tap, seen right before the tap takes it; and frames sent into one with their offloads.

A packet socket on the link sees each frame after its queue discipline, in the order in which the tap gets it, whoever
sent it: tc's redirects, the agent. A filter keeps out what comes from the guest. Segmented frames and unfinished
checksums stay so: a virtio_net_hdr goes before each.
"""

import ctypes
import errno
import socket
import struct

_SOL_PACKET = 263
_PACKET_STATISTICS, _PACKET_VNET_HDR = 6, 15
_ETH_P_ALL = 0x0003
_SO_RCVBUFFORCE, _SO_SNDBUFFORCE, _SO_ATTACH_FILTER = 33, 32, 26
_SO_TIMESTAMPNS = 35
_LOAD_WORD, _JUMP_EQUAL, _RETURN = 0x20, 0x15, 0x06  # linux/filter.h
_PACKET_TYPE = 0xFFFFF004  # SKF_AD_OFF + SKF_AD_PKTTYPE
_PACKET_OUTGOING = 4
_ONLY_OUTGOING = (
    (_LOAD_WORD, 0, 0, _PACKET_TYPE),
    (_JUMP_EQUAL, 0, 1, _PACKET_OUTGOING),
    (_RETURN, 0, 0, 0x40000),
    (_RETURN, 0, 0, 0),
)
_RTM_NEWSTATS, _RTM_GETSTATS, _NLM_F_REQUEST = 92, 94, 1  # linux/rtnetlink.h, linux/if_link.h
_IFLA_STATS_LINK_64 = 1
_STATS = 16 + 12 + 4
"""Where they are in the reply: behind nlmsghdr, if_stats_msg and the attribute's header."""
_LINK_STATS = struct.Struct("=8Q")  # the first of rtnl_link_stats64: rx and tx in turn; packets, bytes, errors, dropped
_TIMESPEC = struct.Struct("@qq")

CAPTURE_BUFFER = 32 << 20
"""Bytes, as the kernel counts them, of frames that wait to be read: some 10,000."""
BATCH = 256
"""Frames per read()."""
VNET_HEADER = 10
_FRAME_MAX = 65536 + 64


class TapCapture:
    """Everything that goes into a tap from now on."""

    def __init__(self, ifindex: int) -> None:
        self._ifindex = ifindex
        self._route = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, socket.NETLINK_ROUTE)
        self._route.settimeout(1.0)
        self._socket = socket.socket(socket.AF_PACKET, socket.SOCK_RAW | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC, 0)
        program = b"".join(struct.pack("=HBBI", *instruction) for instruction in _ONLY_OUTGOING)
        self._program = ctypes.create_string_buffer(program, len(program))
        filter_struct = struct.pack("@HP", len(_ONLY_OUTGOING), ctypes.addressof(self._program))
        self._socket.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, filter_struct)
        self._socket.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, CAPTURE_BUFFER)
        self._socket.setsockopt(socket.SOL_SOCKET, _SO_TIMESTAMPNS, 1)
        self._socket.setsockopt(_SOL_PACKET, _PACKET_VNET_HDR, 1)
        self.before = self.counters() or (0, 0)  # and so ahead of the first frame that is seen
        self._socket.bind((socket.if_indextoname(ifindex), _ETH_P_ALL))

    def fileno(self) -> int:
        """For the event loop."""
        return self._socket.fileno()

    def read(self) -> list[tuple[int, bytes]]:
        """At most BATCH frames, each (wall clock in ns, virtio_net_hdr and frame); empty when none waits."""
        frames: list[tuple[int, bytes]] = []
        for _ in range(BATCH):
            try:
                data, ancillary, _, _ = self._socket.recvmsg(_FRAME_MAX, 64)
            except (BlockingIOError, InterruptedError):
                break
            except OSError as error:
                if error.errno != errno.ENETDOWN:  # told once, when the tap goes
                    raise
                continue
            at_ns = 0
            for level, kind, value in ancillary:
                if level == socket.SOL_SOCKET and kind == _SO_TIMESTAMPNS:
                    seconds, nanoseconds = _TIMESPEC.unpack(value[: _TIMESPEC.size])
                    at_ns = seconds * 1_000_000_000 + nanoseconds
            frames.append((at_ns, data))
        return frames

    def lost(self) -> int:
        """Frames since the last call that found the socket full."""
        return int(struct.unpack("=II", self._socket.getsockopt(_SOL_PACKET, _PACKET_STATISTICS, 8))[1])

    def counters(self) -> tuple[int, int] | None:
        """(tx_packets, tx_dropped) of the tap: what QEMU has read, and what found no room. None once it is gone."""
        body = struct.pack("=BBHII", 0, 0, 0, self._ifindex, 1 << (_IFLA_STATS_LINK_64 - 1))
        try:
            self._route.send(struct.pack("=IHHII", 16 + len(body), _RTM_GETSTATS, _NLM_F_REQUEST, 0, 0) + body)
            reply = self._route.recv(4096)
        except OSError:
            return None
        kind = struct.unpack_from("=IH", reply)[1]
        if kind != _RTM_NEWSTATS or len(reply) < _STATS + _LINK_STATS.size:
            return None
        _, tx_packets, _, _, _, _, _, tx_dropped = _LINK_STATS.unpack_from(reply, _STATS)
        return tx_packets, tx_dropped

    def close(self) -> None:
        """Close the sockets."""
        self._socket.close()
        self._route.close()


class TapSender:
    """Frames into one tap, each with its virtio_net_hdr."""

    def __init__(self, ifindex: int) -> None:
        self._socket = socket.socket(socket.AF_PACKET, socket.SOCK_RAW | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC, 0)
        self._socket.setsockopt(socket.SOL_SOCKET, _SO_SNDBUFFORCE, CAPTURE_BUFFER)
        self._socket.setsockopt(_SOL_PACKET, _PACKET_VNET_HDR, 1)
        self._socket.bind((socket.if_indextoname(ifindex), 0))

    def send(self, frame: bytes) -> bool:
        """False where the kernel does not take it."""
        try:
            return self._socket.send(frame) == len(frame)
        except OSError:
            return False

    def close(self) -> None:
        """Close the socket."""
        self._socket.close()


def queue_length(ifindex: int, frames: int) -> bool:
    """Set how many frames a tap queues for its guest; False where the link is gone. (ioctl SIOCSIFTXQLEN.)"""
    import fcntl

    try:
        name = socket.if_indextoname(ifindex)
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as control:
            fcntl.ioctl(control, 0x8943, struct.pack("16si20x", name.encode(), frames))
    except OSError:
        return False
    return True
