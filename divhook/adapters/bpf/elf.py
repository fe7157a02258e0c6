"""libbpf.so.1 by ctypes, for the one thing that raw bpf() would need much code for: loading an ELF object with BTF."""

import ctypes
import ctypes.util
import errno
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from divhook.adapters.bpf.errors import REMEDIES, BpfError

_LIBBPF_WARN = 0
_LOG_LINES = 12
"""Lines of libbpf's log that an error text quotes."""

_PrintFunction = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_int, ctypes.c_char_p, ctypes.c_void_p)


@dataclass(frozen=True, slots=True)
class LoadedObject:
    """Descriptors, owned by the receiver."""

    programs: dict[str, int]
    maps: dict[str, int]


def _library() -> Any:
    try:
        lib = ctypes.CDLL("libbpf.so.1", use_errno=True)
    except OSError as error:
        raise BpfError(f"libbpf.so.1 cannot be loaded ({error}); on Debian: apt install libbpf1") from None
    pointer, text = ctypes.c_void_p, ctypes.c_char_p
    for name, result, arguments in (
        ("bpf_object__open_file", pointer, [text, pointer]),
        ("bpf_object__next_map", pointer, [pointer, pointer]),
        ("bpf_object__next_program", pointer, [pointer, pointer]),
        ("bpf_map__name", text, [pointer]),
        ("bpf_map__fd", ctypes.c_int, [pointer]),
        ("bpf_map__set_pin_path", ctypes.c_int, [pointer, text]),
        ("bpf_program__name", text, [pointer]),
        ("bpf_program__fd", ctypes.c_int, [pointer]),
        ("bpf_object__load", ctypes.c_int, [pointer]),
        ("bpf_object__close", None, [pointer]),
        ("libbpf_set_print", pointer, [_PrintFunction]),
    ):
        function = getattr(lib, name)
        function.restype, function.argtypes = result, arguments
    return lib


class _Log:
    """Collects libbpf's warnings while it works; what it prints by itself would go to stderr."""

    def __init__(self, lib: Any) -> None:
        self._lib = lib
        self._vsnprintf = ctypes.CDLL(None).vsnprintf
        self.lines: list[str] = []
        self._function = _PrintFunction(self._print)

    def _print(self, level: int, template: bytes, arguments: int) -> int:
        if level <= _LIBBPF_WARN:
            buffer = ctypes.create_string_buffer(16384)
            self._vsnprintf(buffer, len(buffer), template, ctypes.c_void_p(arguments))
            self.lines += buffer.value.decode(errors="replace").splitlines()
        return 0

    def __enter__(self) -> "_Log":
        self._lib.libbpf_set_print(self._function)
        return self

    def __exit__(self, *_: object) -> None:
        self._lib.libbpf_set_print(_PrintFunction())


def _each(following: Any, handle: int) -> list[int]:
    found: list[int] = []
    item = following(handle, None)
    while item:
        found.append(item)
        item = following(handle, item)
    return found


def load_object(object_file: Path, map_dir: Path) -> LoadedObject:
    """Load all programs; every map is pinned below map_dir, or adopted from there. Raises BpfError."""
    if not object_file.is_file():
        raise BpfError(f"{object_file} is missing: run `make bpf` in the source tree, or install the package again")
    lib = _library()
    with _Log(lib) as log:
        handle = lib.bpf_object__open_file(os.fsencode(object_file), None)
        if not handle:
            raise _load_error(object_file, map_dir, ctypes.get_errno(), log.lines)
        try:
            maps = {lib.bpf_map__name(item).decode(): item for item in _each(lib.bpf_object__next_map, handle)}
            for name, item in maps.items():
                lib.bpf_map__set_pin_path(item, os.fsencode(map_dir / name))
            code = lib.bpf_object__load(handle)
            if code < 0:
                raise _load_error(object_file, map_dir, -code, log.lines)
            programs = _each(lib.bpf_object__next_program, handle)
            return LoadedObject(
                {lib.bpf_program__name(item).decode(): os.dup(lib.bpf_program__fd(item)) for item in programs},
                {name: os.dup(lib.bpf_map__fd(item)) for name, item in maps.items()},
            )
        finally:
            lib.bpf_object__close(handle)


def _load_error(object_file: Path, map_dir: Path, code: int, lines: list[str]) -> BpfError:
    if any("parameter mismatch" in line for line in lines):
        return BpfError(
            f"the maps pinned below {map_dir} have another layout than {object_file}: "
            "run `divhook agent --teardown` (guests' traffic stops until the agent runs again)",
            code,
        )
    remedy = REMEDIES.get(code)
    text = f"{object_file} cannot be loaded: {os.strerror(code) if code else errno.errorcode.get(code, 'refused')}"
    quoted = "".join(f"\n  {line}" for line in lines[-_LOG_LINES:])
    return BpfError(text + (f" ({remedy})" if remedy else "") + quoted, code)
