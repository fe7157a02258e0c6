"""When QEMU's main loop reads a tap, and when it sleeps: the last thousands of steps, kept by the kernel's perf events.

    tracepoints of one thread   sys_enter_ppoll   the loop sleeps
                                sys_enter_read    of the tap's descriptor, and then
                                sys_exit_read     a frame, or none
        └─▶ one ring, overwritten from behind (write_backward), which nobody reads until the guest is paused

perf_event_open(2), <linux/perf_event.h>; needs CAP_PERFMON, and CAP_SYS_ADMIN for a tracefs.
"""

import ctypes
import errno
import fcntl
import functools
import mmap
import os
import platform
import struct
import time

from divhook.core.moves.reads import Doing, Step

RING_PAGES = 64
"""Of the ring: some 5,000 steps; a power of two."""
MAX_STEPS = 1000
"""That are looked at: a few rounds of the main loop are enough."""
_PERF_EVENT_OPEN = {"x86_64": 298, "aarch64": 241, "riscv64": 241, "ppc64le": 319, "s390x": 331}
_TYPE_TRACEPOINT = 2
_SAMPLE_TIME, _SAMPLE_RAW = 1 << 2, 1 << 10
_DISABLED, _USE_CLOCKID, _WRITE_BACKWARD = 1 << 0, 1 << 25, 1 << 27
_ATTR = struct.Struct("=IIQQQQQIIQQQQIiQIHH")  # perf_event_attr up to PERF_ATTR_SIZE_VER5
_ANY_CPU, _NO_GROUP, _CLOEXEC = -1, -1, 1 << 3
_IOC_ENABLE, _IOC_SET_OUTPUT, _IOC_SET_FILTER = 0x2400, 0x2405, 0x40082406
_DATA_HEAD = struct.Struct("=Q")
_DATA_HEAD_AT = 1024  # in perf_event_mmap_page
_RECORD = struct.Struct("=IHH")
_RECORD_SAMPLE = 9
_SAMPLE = struct.Struct("=QIH")  # its time, the size of its raw part, and that part's common_type
_ARGUMENT_AT = _RECORD.size + 8 + 4 + 16  # the first argument, or the result, of syscall_trace_enter and _exit
_RESULT = struct.Struct("=q")
_FSOPEN, _FSCONFIG, _FSMOUNT = 430, 431, 432  # the same on every architecture; Linux 5.2
_FSOPEN_CLOEXEC, _FSCONFIG_CMD_CREATE, _FSMOUNT_CLOEXEC = 1, 6, 1
_libc = ctypes.CDLL(None, use_errno=True)


class TapReads:
    """Steps of a process's main thread at one descriptor. Raises OSError where the kernel does not show them."""

    def __init__(self, pid: int, descriptor: int) -> None:
        self._events: list[int] = []
        self._ring: mmap.mmap | None = None
        try:
            self._sleeps = self._add("sys_enter_ppoll", pid)
            size = (1 + RING_PAGES) * mmap.PAGESIZE
            self._ring = mmap.mmap(self._events[0], size, mmap.MAP_SHARED, mmap.PROT_READ)
            self._tries = self._add("sys_enter_read", pid, f"fd == {descriptor}")
            self._results = self._add("sys_exit_read", pid, "ret != 8")  # what an eventfd gives
            for event in self._events:
                fcntl.ioctl(event, _IOC_ENABLE, 0)
        except OSError:
            self.close()
            raise

    def ring(self) -> bytes:
        """As it is now: records, the latest first. What is written meanwhile can but damage the oldest."""
        if self._ring is None:
            return b""
        (head,) = _DATA_HEAD.unpack_from(self._ring, _DATA_HEAD_AT)
        data = self._ring[mmap.PAGESIZE :]
        (after,) = _DATA_HEAD.unpack_from(self._ring, _DATA_HEAD_AT)
        start, damaged = head % len(data), (head - after) % (1 << 64)  # it grows downwards
        return (data[start:] + data[:start])[: max(0, min(-head % (1 << 64), len(data) - damaged))]

    def close(self) -> None:
        """Watch no more. Idempotent. Waits for all processors where nobody else watches: not for an event loop."""
        if self._ring is not None:
            self._ring.close()
            self._ring = None
        while self._events:
            os.close(self._events.pop())

    def _add(self, name: str, pid: int, condition: str = "") -> int:
        """The tracepoint's number; its steps go into the ring of the first one."""
        number = _tracepoint(name)
        flags = _DISABLED | _USE_CLOCKID | _WRITE_BACKWARD
        attr = ctypes.create_string_buffer(
            _ATTR.pack(
                *(_TYPE_TRACEPOINT, _ATTR.size, number, 1, _SAMPLE_TIME | _SAMPLE_RAW, 0, flags),
                *(0, 0, 0, 0, 0, 0, 0, time.CLOCK_MONOTONIC, 0, 0, 0, 0),
            )
        )
        call = _PERF_EVENT_OPEN.get(platform.machine())
        if call is None:
            raise OSError(errno.ENOSYS, f"perf_event_open: its number is not known for {platform.machine()}")
        event = _called(call, attr, pid, _ANY_CPU, _NO_GROUP, _CLOEXEC)
        self._events.append(event)
        if condition:
            fcntl.ioctl(event, _IOC_SET_FILTER, condition.encode() + b"\0")
        if event != self._events[0]:
            fcntl.ioctl(event, _IOC_SET_OUTPUT, self._events[0])
        return number

    def steps(self, ring: bytes) -> list[Step] | None:
        """The latest ones in it, MAX_STEPS at most, oldest first. None: it reads just now, and may have counted it."""
        offset_ns = _realtime_offset_ns()
        found: list[Step] = []
        result: int | None = None  # of the read that ended next
        at = 0
        while at + _RECORD.size + _SAMPLE.size <= len(ring) and len(found) < MAX_STEPS:
            kind, _, size = _RECORD.unpack_from(ring, at)
            if size < _RECORD.size or at + size > len(ring):
                break
            if kind == _RECORD_SAMPLE:
                at_ns, _, number = _SAMPLE.unpack_from(ring, at + _RECORD.size)
                if number == self._results:
                    (result,) = _RESULT.unpack_from(ring, at + _ARGUMENT_AT)
                elif number == self._sleeps:
                    found.append(Step(at_ns + offset_ns, Doing.SLEEP))
                elif number == self._tries:
                    if result is None:
                        return None
                    found.append(Step(at_ns + offset_ns, Doing.READ if result > 0 else Doing.DRY))
                    result = None
            at += size
        return found[::-1]


def _realtime_offset_ns() -> int:
    """Of the wall clock from the monotonic one: the tightest of a few looks at both."""
    looks = [(time.monotonic_ns(), time.time_ns(), time.monotonic_ns()) for _ in range(3)]
    begin, wall, end = min(looks, key=lambda look: look[2] - look[0])
    return wall - (begin + end) // 2


@functools.cache
def _tracepoint(name: str) -> int:
    """Its number, from a tracefs that is mounted nowhere: a host may have none."""
    context = _called(_FSOPEN, b"tracefs", _FSOPEN_CLOEXEC)
    try:
        _called(_FSCONFIG, context, _FSCONFIG_CMD_CREATE, None, None, 0)
        directory = _called(_FSMOUNT, context, _FSMOUNT_CLOEXEC, 0)
    finally:
        os.close(context)
    try:
        file = os.open(f"events/syscalls/{name}/id", os.O_RDONLY | os.O_CLOEXEC, dir_fd=directory)
    finally:
        os.close(directory)
    with open(file, encoding="ascii") as text:
        return int(text.read())


def _called(number: int, *arguments: bytes | ctypes.Array[ctypes.c_char] | int | None) -> int:
    result: int = _libc.syscall(number, *arguments)
    if result < 0:
        error = ctypes.get_errno()
        raise OSError(error, f"system call {number}: {os.strerror(error)}")
    return result
