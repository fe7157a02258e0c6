"""The package as a later version might be: another ABI version, with fields that this one does not know.

struct endpoint   a field ahead of all others, so that every other one is elsewhere
struct port       a field behind them
"""

import re
import shutil
import subprocess
from pathlib import Path

import divhook
from divhook.abi import layout

ABI_VERSION = 99
_PACKAGE = Path(divhook.__file__).parent


def _edit(path: Path, *edits: tuple[str, str]) -> None:
    text = path.read_text()
    for pattern, replacement in edits:
        text, count = re.subn(pattern, replacement, text)
        assert count == 1, (path, pattern, count)
    path.write_text(text)


def make_later_version(directory: Path) -> Path:
    """Copy the package below `directory`, change it and build its object. Returns what PYTHONPATH needs."""
    package = directory / "divhook"
    shutil.copytree(_PACKAGE, package, ignore=shutil.ignore_patterns("__pycache__", "*.o"))
    abi_h = package / "bpf" / "abi.h"
    abi_h.write_text(re.sub(r"_Static_assert\(.*?\);", "", abi_h.read_text(), flags=re.DOTALL))
    _edit(
        abi_h,
        (rf"#define DIVHOOK_ABI_VERSION {layout.ABI_VERSION}\n", f"#define DIVHOOK_ABI_VERSION {ABI_VERSION}\n"),
        (r"(struct endpoint \{\n)", r"\1\t__u64 weight;\n"),
        (r"(struct port \{\n(?:.+\n)+?)(\};)", r"\1\t__u64 colour;\n\2"),
    )
    _edit(
        package / "abi" / "layout.py",
        (rf"ABI_VERSION = {layout.ABI_VERSION}\n", f"ABI_VERSION = {ABI_VERSION}\n"),
        (r"(class Endpoint\(.*\n.*\n\n    _fields_ = \(\n)", r'\1        ("weight", ctypes.c_uint64),\n'),
        (r"(class Port\((?:.*\n)+?)(    \)\n)", r'\1        ("colour", ctypes.c_uint64),\n\2'),
    )
    machine = subprocess.run(["uname", "-m"], capture_output=True, text=True, check=True).stdout.strip()
    flags = f"-O2 -g -target bpf -mcpu=v3 -I/usr/include/{machine}-linux-gnu"
    source = package / "bpf" / "divhook.c"
    subprocess.run(["clang", *flags.split(), "-c", str(source), "-o", str(source.with_suffix(".o"))], check=True)
    return directory
