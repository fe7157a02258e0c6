"""The benchmark's own programs: compiled once, and run in guests and on hosts."""

import json
import subprocess
import sysconfig
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from divhook.core.addressing import Mac
from divhook.lab.errors import LabError
from divhook.lab.namespaces import Namespaces

SOURCES = Path(__file__).parent
CC = ["gcc", "-O2", "-D_GNU_SOURCE", "-Wall", "-Wextra", "-Wno-unused-parameter", "-Werror"]
MULTIARCH = sysconfig.get_config_var("MULTIARCH") or "x86_64-linux-gnu"
CLANG = ["clang", "-O2", "-g", "-Wall", "-Werror", "-target", "bpf", "-mcpu=v3", f"-I/usr/include/{MULTIARCH}", "-c"]


def compile_c(command: Sequence[str], source: Path, output: Path, *after: str) -> Path:
    """Run a compiler. Raises LabError with its words."""
    arguments = [*command, str(source), "-o", str(output), *after]
    done = subprocess.run(arguments, capture_output=True, text=True, check=False)
    if done.returncode:
        raise LabError(f"{source.name}: {done.stderr.strip()}")
    return output


class Toolbox:
    """Compiles into a directory, which must be there."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.traffic = compile_c([*CC, "-pthread"], SOURCES / "traffic.c", directory / "traffic")
        self.inject = compile_c(CC, SOURCES / "inject.c", directory / "inject", "-lbpf")
        self.programs = compile_c(CLANG, SOURCES / "programs.c", directory / "programs.o")

    def bare_redirect(self, target: int, dst_mac: Mac, src_mac: Mac) -> Path:
        """A redirect program for one hook: everything in it is a constant."""
        flags = [f"-DTARGET={target}", f"-DDST_MAC={_braces(dst_mac)}", f"-DSRC_MAC={_braces(src_mac)}"]
        output = self.directory / f"redirect-{target}-{dst_mac.hex()}-{src_mac.hex()}.o"
        return compile_c([*CLANG, *flags], SOURCES / "bare_redirect.c", output)


def _braces(mac: Mac) -> str:
    return "{" + ",".join(str(octet) for octet in mac) + "}"


def attach_tc(namespace: Namespaces, device: str, program: Path, section: str = "tc") -> None:
    """A tc program at the ingress of a device. Raises LabError."""
    namespace.run("tc", "qdisc", "replace", "dev", device, "clsact")
    attach = f"filter replace dev {device} ingress prio 1 handle 1 bpf da object-file {program} section {section}"
    namespace.run("tc", *attach.split())


def result(text: str) -> dict[str, Any]:
    """What a program printed. Raises LabError where it is no JSON object."""
    try:
        found = json.loads(text)
    except ValueError:
        found = None
    if not isinstance(found, dict):
        raise LabError(f"not a result: {text[:200]!r}")
    return found
