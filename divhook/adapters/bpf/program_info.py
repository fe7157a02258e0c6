"""What the kernel says of a loaded program: struct bpf_prog_info, linux/bpf.h (as of Linux 5.16)."""

import ctypes
import struct
from dataclasses import dataclass

from divhook.adapters.bpf.errors import os_error
from divhook.adapters.bpf.syscall import OBJ_GET_INFO_BY_FD, _call, _InfoAttr

_INFO_LENGTH = 232
_JITED_LENGTH, _XLATED_LENGTH, _VERIFIED = 16, 20, 216
_INSTRUCTION_LENGTH = 8


@dataclass(frozen=True, slots=True)
class ProgramInfo:
    """Instructions that the verifier walked, all paths taken together; those of the program as it runs; machine code.

    xlated: eBPF instructions, subprograms included. jited_bytes: 0 where the JIT is off.
    """

    verified: int
    xlated: int
    jited_bytes: int


def program_info(fd: int) -> ProgramInfo:
    """Of a program by its descriptor, which stays the caller's. Raises BpfError."""
    info = ctypes.create_string_buffer(_INFO_LENGTH)
    code = _call(OBJ_GET_INFO_BY_FD, _InfoAttr(fd, _INFO_LENGTH, ctypes.addressof(info)))
    if code < 0:
        raise os_error("cannot ask for a program's size", -code)
    verified, xlated, jited = (
        struct.unpack_from("=I", info, offset)[0] for offset in (_VERIFIED, _XLATED_LENGTH, _JITED_LENGTH)
    )
    return ProgramInfo(verified, xlated // _INSTRUCTION_LENGTH, jited)
