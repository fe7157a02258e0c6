"""A ring buffer of the kernel (BPF_MAP_TYPE_RINGBUF), read by one process: kernel/bpf/ringbuf.c.

    page 0   consumer position, ours to write        page 1   producer position
    page 2…  records, twice in a row, so that none is torn: length word, page offset, payload, padded to 8 bytes

Bit 31 of the length: still being written; bit 30: given up. A word is read in one access, and x86-64 and the barrier
in a system call (the poll before) keep the order of the rest.
"""

import mmap
import struct
from collections.abc import Iterator

from divhook.adapters.bpf.errors import os_error

_BUSY, _GIVEN_UP = 1 << 31, 1 << 30
_HEADER = 8
_POSITION = struct.Struct("=Q")
_LENGTH = struct.Struct("=I")


class Ring:
    """Records in the order of coming. Owns its descriptor, which is readable when there is something."""

    def __init__(self, fd: int, size: int) -> None:
        """size: of map's max_entries, bytes. Raises BpfError."""
        self.fd = fd
        self._mask = size - 1
        try:
            self._consumer = mmap.mmap(fd, mmap.PAGESIZE, mmap.MAP_SHARED, mmap.PROT_READ | mmap.PROT_WRITE)
            self._records = mmap.mmap(
                fd, mmap.PAGESIZE + 2 * size, mmap.MAP_SHARED, mmap.PROT_READ, offset=mmap.PAGESIZE
            )
        except OSError as error:
            raise os_error("the flow log cannot be mapped", error.errno or 0) from None

    def read(self, limit: int = 4096) -> Iterator[bytes]:
        """At most so many records that are there now."""
        at: int = _POSITION.unpack_from(self._consumer)[0]
        for _ in range(limit):
            if at >= _POSITION.unpack_from(self._records)[0]:
                return
            place = mmap.PAGESIZE + (at & self._mask)
            word: int = _LENGTH.unpack_from(self._records, place)[0]
            if word & _BUSY:
                return
            length = word & ~_GIVEN_UP
            payload = self._records[place + _HEADER : place + _HEADER + length]
            at += (length + _HEADER + 7) // 8 * 8
            _POSITION.pack_into(self._consumer, 0, at)
            if not word & _GIVEN_UP:
                yield payload

    def close(self) -> None:
        """Give up mapping; the descriptor stays the caller's."""
        self._consumer.close()
        self._records.close()
