"""bpf(2): maps, pins, links and test runs. Layouts: union bpf_attr, linux/bpf.h.

Every call takes and returns file descriptors of the caller; nothing is kept here. Raises BpfError.
"""

import ctypes
import errno
import os
import platform
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from divhook.adapters.bpf.errors import interface_text, os_error

_NUMBERS = {"x86_64": 321, "aarch64": 280, "riscv64": 280, "ppc64le": 361, "s390x": 351}
_LIBC = ctypes.CDLL(None, use_errno=True)

MAP_CREATE, MAP_LOOKUP_ELEM, MAP_UPDATE_ELEM, MAP_DELETE_ELEM, MAP_GET_NEXT_KEY = 0, 1, 2, 3, 4
OBJ_PIN, OBJ_GET = 6, 7
PROG_TEST_RUN = 10
MAP_GET_FD_BY_ID = 14
OBJ_GET_INFO_BY_FD = 15
BTF_GET_FD_BY_ID = 19
MAP_LOOKUP_BATCH = 24
LINK_CREATE, LINK_UPDATE, LINK_DETACH = 28, 29, 34

BPF_ANY, BPF_NOEXIST = 0, 1
BPF_TCX_INGRESS = 46
BPF_F_BEFORE = 1 << 3
LINK_TYPE_TCX = 11

BATCH = 1024
"""Entries that are read at once: more than any chain of a hash map has."""
ARRAY_OF_MAPS = 12
"""enum bpf_map_type"""
PER_CPU_TYPES = (5, 6, 10)
"""enum bpf_map_type: per-CPU hash, per-CPU array, per-CPU LRU hash."""

SK_BUFF_LENGTH = 192
"""sizeof(struct __sk_buff) of Linux 6.1; it only grows, and the kernel takes a shorter one."""
SK_BUFF_MARK, SK_BUFF_IFINDEX, SK_BUFF_CB, SK_BUFF_GSO_SEGS, SK_BUFF_GSO_SIZE = 8, 40, 48, 164, 176

U32 = ctypes.c_uint32
U64 = ctypes.c_uint64


class _MapCreateAttr(ctypes.Structure):
    _fields_ = (
        ("map_type", U32),
        ("key_size", U32),
        ("value_size", U32),
        ("max_entries", U32),
        ("map_flags", U32),
        ("inner_map_fd", U32),
        ("numa_node", U32),
        ("map_name", ctypes.c_char * 16),
    )


class _ElemAttr(ctypes.Structure):
    _fields_ = (("map_fd", U32), ("pad", U32), ("key", U64), ("value", U64), ("flags", U64))


class _ObjAttr(ctypes.Structure):
    _fields_ = (("pathname", U64), ("bpf_fd", U32), ("file_flags", U32))


class _IdAttr(ctypes.Structure):
    _fields_ = (("id", U32), ("next_id", U32), ("open_flags", U32))


class _InfoAttr(ctypes.Structure):
    _fields_ = (("bpf_fd", U32), ("info_len", U32), ("info", U64))


class _TestRunAttr(ctypes.Structure):
    _fields_ = (
        ("prog_fd", U32),
        ("retval", U32),
        ("data_size_in", U32),
        ("data_size_out", U32),
        ("data_in", U64),
        ("data_out", U64),
        ("repeat", U32),
        ("duration", U32),
        ("ctx_size_in", U32),
        ("ctx_size_out", U32),
        ("ctx_in", U64),
        ("ctx_out", U64),
        ("flags", U32),
        ("cpu", U32),
        ("batch_size", U32),
        ("pad", U32),
    )


class _LinkCreateAttr(ctypes.Structure):
    _fields_ = (
        ("prog_fd", U32),
        ("target_ifindex", U32),
        ("attach_type", U32),
        ("flags", U32),
        ("relative", U32),
        ("pad", U32),
        ("expected_revision", U64),
    )


class _LinkUpdateAttr(ctypes.Structure):
    _fields_ = (("link_fd", U32), ("new_prog_fd", U32), ("flags", U32), ("old_prog_fd", U32))


class _BatchAttr(ctypes.Structure):
    _fields_ = (
        ("in_batch", U64),
        ("out_batch", U64),
        ("keys", U64),
        ("values", U64),
        ("count", U32),
        ("map_fd", U32),
        ("elem_flags", U64),
        ("flags", U64),
    )


class MapInfo(ctypes.Structure):
    """struct bpf_map_info, as far as it is needed. btf_id: 0 where the kernel has no types of the map."""

    _fields_ = (
        ("type", U32),
        ("id", U32),
        ("key_size", U32),
        ("value_size", U32),
        ("max_entries", U32),
        ("map_flags", U32),
        ("name", ctypes.c_char * 16),
        ("ifindex", U32),
        ("btf_vmlinux_value_type_id", U32),
        ("netns_dev", U64),
        ("netns_ino", U64),
        ("btf_id", U32),
        ("btf_key_type_id", U32),
        ("btf_value_type_id", U32),
        ("pad", U32),
    )


class _BtfInfo(ctypes.Structure):
    _fields_ = (("btf", U64), ("btf_size", U32), ("id", U32), ("name", U64), ("name_len", U32), ("kernel_btf", U32))


class _LinkInfo(ctypes.Structure):
    """struct bpf_link_info, with its union as `tcx`."""

    _fields_ = (
        ("type", U32),
        ("id", U32),
        ("prog_id", U32),
        ("pad", U32),
        ("tcx_ifindex", U32),
        ("tcx_attach_type", U32),
        ("rest", ctypes.c_uint8 * 64),
    )


def _call(command: int, attr: ctypes.Structure) -> int:
    """The result, or minus errno."""
    number = _NUMBERS.get(platform.machine())
    if number is None:
        return -errno.ENOSYS
    result: int = _LIBC.syscall(number, command, ctypes.byref(attr), ctypes.sizeof(attr))
    return result if result >= 0 else -ctypes.get_errno()


def _pathname(path: Path) -> "ctypes.Array[ctypes.c_char]":
    return ctypes.create_string_buffer(os.fsencode(path))


def _address(buffer: "ctypes.Array[ctypes.c_char] | ctypes.Structure") -> int:
    return ctypes.addressof(buffer)


def pin(fd: int, path: Path) -> None:
    """Give a map, program or link a name in bpffs."""
    name = _pathname(path)
    code = _call(OBJ_PIN, _ObjAttr(_address(name), fd, 0))
    if code < 0:
        raise os_error(f"cannot pin {path}", -code)


def open_pinned(path: Path) -> int | None:
    """Descriptor of what is pinned there; None where nothing is."""
    name = _pathname(path)
    fd = _call(OBJ_GET, _ObjAttr(_address(name), 0, 0))
    if fd == -errno.ENOENT:
        return None
    if fd < 0:
        raise os_error(f"cannot open {path}", -fd)
    return fd


class Map:
    """A hash or array map: keys and values are bytes of fixed length. Owns its descriptor."""

    def __init__(self, name: str, fd: int, key_length: int, value_length: int) -> None:
        self.name = name
        self.fd = fd
        self._key_length = key_length
        self._value = ctypes.create_string_buffer(value_length)

    def _key(self, key: bytes) -> "ctypes.Array[ctypes.c_char]":
        if len(key) != self._key_length:
            raise ValueError(f"map {self.name}: a key has {self._key_length} bytes, not {len(key)}")
        return ctypes.create_string_buffer(key, self._key_length)

    def get(self, key: bytes) -> bytes | None:
        """The value, or None. Of a per-CPU map: all CPUs' values, each padded to 8 bytes."""
        key_buffer = self._key(key)
        code = _call(MAP_LOOKUP_ELEM, _ElemAttr(self.fd, 0, _address(key_buffer), _address(self._value), 0))
        if code == -errno.ENOENT:
            return None
        if code < 0:
            raise os_error(f"map {self.name}: cannot read", -code)
        return self._value.raw

    def put(self, key: bytes, value: bytes, flags: int = BPF_ANY) -> bool:
        """Write; False where flags is BPF_NOEXIST and the key is there. Raises BpfError where the map is full."""
        if len(value) != len(self._value):
            raise ValueError(f"map {self.name}: a value has {len(self._value)} bytes, not {len(value)}")
        key_buffer, value_buffer = self._key(key), ctypes.create_string_buffer(value, len(value))
        attr = _ElemAttr(self.fd, 0, _address(key_buffer), _address(value_buffer), flags)
        code = _call(MAP_UPDATE_ELEM, attr)
        if code == -errno.EEXIST and flags == BPF_NOEXIST:
            return False
        if code < 0:
            raise os_error(f"map {self.name}: cannot write", -code)
        return True

    def delete(self, key: bytes) -> bool:
        """Remove; False where it was not there."""
        key_buffer = self._key(key)
        code = _call(MAP_DELETE_ELEM, _ElemAttr(self.fd, 0, _address(key_buffer), 0, 0))
        if code < 0 and code != -errno.ENOENT:
            raise os_error(f"map {self.name}: cannot delete", -code)
        return code == 0

    def all_keys(self) -> Iterator[bytes]:
        """All keys. One that is added or removed meanwhile may be missed, or make others come twice."""
        next_key = ctypes.create_string_buffer(self._key_length)
        previous: ctypes.Array[ctypes.c_char] | None = None
        while True:
            attr = _ElemAttr(self.fd, 0, _address(previous) if previous else 0, _address(next_key), 0)
            code = _call(MAP_GET_NEXT_KEY, attr)
            if code == -errno.ENOENT:
                return
            if code < 0:
                raise os_error(f"map {self.name}: cannot list", -code)
            yield next_key.raw
            previous = ctypes.create_string_buffer(next_key.raw, self._key_length)

    def batches(self) -> Iterator[list[tuple[bytes, bytes]]]:
        """All keys and values, some at a time; values as of `get`. What is there all the time comes once."""
        key_length, value_length = self._key_length, len(self._value)
        place = ctypes.create_string_buffer(max(8, key_length))
        keys = ctypes.create_string_buffer(BATCH * key_length)
        values = ctypes.create_string_buffer(BATCH * value_length)
        begun = code = 0
        while code != -errno.ENOENT:
            attr = _BatchAttr(
                _address(place) if begun else 0, _address(place), _address(keys), _address(values), BATCH, self.fd, 0, 0
            )
            code, begun = _call(MAP_LOOKUP_BATCH, attr), 1
            if code < 0 and code != -errno.ENOENT:
                raise os_error(f"map {self.name}: cannot list", -code)
            found_keys, found_values = keys.raw, values.raw
            yield [
                (
                    found_keys[at * key_length : (at + 1) * key_length],
                    found_values[at * value_length : (at + 1) * value_length],
                )
                for at in range(attr.count)
            ]

    def close(self) -> None:
        """Give up the descriptor; a pinned map stays."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1


def map_create(kind: int, name: str, key_length: int, value_length: int, max_entries: int) -> int:
    """Descriptor of a new map. kind: enum bpf_map_type; name: at most 15 letters, digits, _ and dots."""
    fd = _call(MAP_CREATE, _MapCreateAttr(kind, key_length, value_length, max_entries, 0, 0, 0, name.encode()))
    if fd < 0:
        raise os_error(f"cannot make the map {name} of {max_entries} entries", -fd)
    return fd


def map_by_id(map_id: int) -> int | None:
    """Descriptor of a map that something holds; None where it is gone. Needs CAP_SYS_ADMIN."""
    fd = _call(MAP_GET_FD_BY_ID, _IdAttr(map_id))
    if fd == -errno.ENOENT:
        return None
    if fd < 0:
        raise os_error(f"cannot open map {map_id}", -fd)
    return fd


def possible_cpus() -> int:
    """How many values a per-CPU map holds for a key."""
    last = Path("/sys/devices/system/cpu/possible").read_text().strip().replace("-", ",").split(",")[-1]
    return int(last) + 1


def map_info(fd: int) -> MapInfo:
    """What a map is, for one whose layout is not this version's."""
    info = MapInfo()
    code = _call(OBJ_GET_INFO_BY_FD, _InfoAttr(fd, ctypes.sizeof(info), _address(info)))
    if code < 0:
        raise os_error("cannot examine a map", -code)
    return info


def btf_bytes(btf_id: int) -> bytes:
    """The types that the kernel keeps beside a map, as adapters/bpf/btf.py reads them."""
    fd = _call(BTF_GET_FD_BY_ID, _IdAttr(btf_id))
    if fd < 0:
        raise os_error("cannot open the types of a map", -fd)
    try:
        info = _BtfInfo()
        code = _call(OBJ_GET_INFO_BY_FD, _InfoAttr(fd, ctypes.sizeof(info), _address(info)))
        if code == 0:
            buffer = ctypes.create_string_buffer(info.btf_size)
            info = _BtfInfo(btf=_address(buffer), btf_size=len(buffer))
            code = _call(OBJ_GET_INFO_BY_FD, _InfoAttr(fd, ctypes.sizeof(info), _address(info)))
        if code < 0:
            raise os_error("cannot read the types of a map", -code)
        return buffer.raw
    finally:
        os.close(fd)


def tcx_supported(program_fd: int) -> bool:
    """Whether the kernel has tcx links (6.6): an interface that cannot exist is then what it complains about."""
    return _call(LINK_CREATE, _LinkCreateAttr(program_fd, 0x7FFFFFFF, BPF_TCX_INGRESS, 0, 0, 0, 0)) == -errno.ENODEV


def link_create(program_fd: int, ifindex: int) -> int:
    """Attach at the ingress of an interface, ahead of all others. The link lives as long as its descriptor or pin."""
    fd = _call(LINK_CREATE, _LinkCreateAttr(program_fd, ifindex, BPF_TCX_INGRESS, BPF_F_BEFORE, 0, 0, 0))
    if fd < 0:
        raise os_error(f"cannot attach to {interface_text(ifindex)}", -fd)
    return fd


def link_update(link_fd: int, program_fd: int) -> bool:
    """Exchange the program, no packet passing between; False where the interface is gone."""
    code = _call(LINK_UPDATE, _LinkUpdateAttr(link_fd, program_fd, 0, 0))
    if code in (-errno.ENOLINK, -errno.ENODEV):
        return False
    if code < 0:
        raise os_error("cannot exchange an attached program", -code)
    return True


def link_detach(link_fd: int) -> None:
    """Detach at once, whoever else holds the link. Not an error where the interface is gone."""
    _call(LINK_DETACH, _ObjAttr(link_fd, 0, 0))


def link_ifindex(link_fd: int) -> int:
    """Where a tcx link is attached; 0 where that interface is gone."""
    info = _LinkInfo()
    code = _call(OBJ_GET_INFO_BY_FD, _InfoAttr(link_fd, ctypes.sizeof(info), _address(info)))
    if code < 0:
        raise os_error("cannot read a link", -code)
    return int(info.tcx_ifindex) if info.type == LINK_TYPE_TCX else 0


@dataclass(frozen=True, slots=True)
class TestRun:
    """What a program made of one frame: its verdict (TC_ACT_*, signed), the frame and the mark as it left them.

    target: ifindex where a forwarded frame goes, else 0. flows: FlowClass at the port that it comes from, and at
    the one that it goes to; 0 where that is not tracked.
    """

    __test__ = False

    verdict: int
    frame: bytes
    mark: int
    target: int
    flows: tuple[int, int]


def run_frame(program_fd: int, frame: bytes, ifindex: int, mark: int, gso_size: int, gso_segs: int) -> TestRun:
    """BPF_PROG_TEST_RUN: one frame as if received on ifindex (one of the network namespace of the caller)."""
    data_in = ctypes.create_string_buffer(frame, len(frame))
    data_out = ctypes.create_string_buffer(len(frame) + 256)
    context = bytearray(SK_BUFF_LENGTH)
    fields = {
        SK_BUFF_MARK: mark,
        SK_BUFF_IFINDEX: ifindex,
        SK_BUFF_GSO_SEGS: gso_segs,
        SK_BUFF_GSO_SIZE: gso_size,
    }
    for offset, value in fields.items():
        struct.pack_into("=I", context, offset, value)
    context_in = ctypes.create_string_buffer(bytes(context), SK_BUFF_LENGTH)
    context_out = ctypes.create_string_buffer(SK_BUFF_LENGTH)
    attr = _TestRunAttr(
        prog_fd=program_fd,
        data_size_in=len(frame),
        data_size_out=len(data_out),
        data_in=_address(data_in),
        data_out=_address(data_out),
        repeat=1,
        ctx_size_in=SK_BUFF_LENGTH,
        ctx_size_out=SK_BUFF_LENGTH,
        ctx_in=_address(context_in),
        ctx_out=_address(context_out),
    )
    code = _call(PROG_TEST_RUN, attr)
    if code < 0:
        raise os_error("cannot run the program on a test frame", -code)
    out_mark = U32.from_buffer_copy(context_out, SK_BUFF_MARK).value
    target, outward, inward = (U32 * 3).from_buffer_copy(context_out, SK_BUFF_CB)
    return TestRun(
        ctypes.c_int32(attr.retval).value, data_out.raw[: attr.data_size_out], out_mark, target, (outward, inward)
    )
