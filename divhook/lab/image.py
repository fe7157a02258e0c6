"""The guests' kernel and initramfs, made from Debian packages and kept in a cache.

Kernel and modules come out of linux-image-cloud-amd64 (apt-get download: nothing is installed); user
space is busybox-static and a few of this machine's own programs with their libraries. The archive is
written here (cpio "newc", kernel Documentation/driver-api/early-userspace/buffer-format.rst), without
compression: under TCG unpacking costs more than reading.

    CACHE/*.deb  vmlinuz-VERSION  initramfs-HASH  kvm-HASH
"""

import fcntl
import hashlib
import io
import lzma
import os
import re
import shutil
import stat
import subprocess
import tarfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

from divhook.lab import processes
from divhook.lab.errors import LabError

DEFAULT_CACHE = Path("/var/cache/divhook-lab")
KERNEL_PACKAGE = "linux-image-cloud-amd64"
MODULES = ("virtio_pci", "virtio_net", "8021q", "evdev", "button")
PROGRAMS = ("iperf3", "socat")
QEMU = "qemu-system-x86_64"
PROBE_TIMEOUT_S = 8.0
"""A guest boots within 2 s where KVM is real. Nested without help it would take minutes."""
PROBE_TOKEN = "divhook-probe-ok"


@dataclass(frozen=True, slots=True)
class Image:
    """What a guest boots. `accelerator` is the libvirt domain type: kvm, or qemu for TCG."""

    kernel: Path
    initramfs: Path
    accelerator: str


def cache_directory() -> Path:
    """Where images are kept: $DIVHOOK_LAB_CACHE, else /var/cache/divhook-lab."""
    return Path(os.environ.get("DIVHOOK_LAB_CACHE", DEFAULT_CACHE))


def build(cache: Path, progress: Callable[[str], None], programs: Sequence[Path] = ()) -> Image:
    """The image, from the cache or made now. programs: static, for /usr/bin. Raises LabError with what to install."""
    cache.mkdir(parents=True, exist_ok=True)
    with locked(cache / "lock"):
        package = _kernel_package(cache, progress)
        kernel = cache / f"vmlinuz-{package.stem}"
        userland = [*_userland(), *((f"usr/bin/{path.name}", 0o755, path.read_bytes()) for path in programs)]
        digest = hashlib.sha256(package.name.encode())
        for name, mode, content in userland:
            digest.update(f"{name} {mode:o} {len(content)} ".encode() + content)
        initramfs = cache / f"initramfs-{digest.hexdigest()[:16]}"
        if not kernel.exists() or not initramfs.exists():
            progress("building the guests' initramfs")
            image, modules = _unpack(package)
            replace(kernel, image)
            listing = "".join(f"{name}\n" for name, _ in modules).encode()
            files = [(f"lib/modules/{name}.ko", 0o644, content) for name, content in modules]
            replace(initramfs, newc([*userland, *files, ("etc/modules", 0o644, listing)]))
        return Image(kernel, initramfs, _accelerator(cache, kernel, initramfs, progress))


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold an exclusive file lock: two labs, one cache."""
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def replace(path: Path, content: bytes) -> None:
    """Write a file whole or not at all."""
    draft = path.with_name(path.name + ".part")
    draft.write_bytes(content)
    draft.rename(path)


def _apt(*arguments: str, cwd: Path) -> str:
    done = subprocess.run(arguments, capture_output=True, text=True, cwd=cwd, check=False)
    if done.returncode:
        raise LabError(
            f"{' '.join(arguments)}: {done.stderr.strip()}\n  Is this Debian, and does `apt-get update` work?"
        )
    return done.stdout


def _kernel_package(cache: Path, progress: Callable[[str], None]) -> Path:
    found = sorted(cache.glob("linux-image-*.deb"))
    if found:
        return found[-1]
    progress(f"downloading the guests' kernel ({KERNEL_PACKAGE}, 27 MB, once)")
    pattern = re.compile(r"Depends: (linux-image-\S+)")
    match = pattern.search(_apt("apt-cache", "depends", KERNEL_PACKAGE, cwd=cache))
    if not match:
        _apt("apt-get", "-q", "update", cwd=cache)
        match = pattern.search(_apt("apt-cache", "depends", KERNEL_PACKAGE, cwd=cache))
    if not match:
        raise LabError(f"apt knows no package {KERNEL_PACKAGE}: the lab needs Debian's amd64 archive in its sources")
    draft = cache / "download"
    shutil.rmtree(draft, ignore_errors=True)
    draft.mkdir()
    try:
        _apt("apt-get", "-q", "-o", "APT::Sandbox::User=root", "download", match[1], cwd=draft)
    except LabError:  # a stale package list names a version that is gone
        _apt("apt-get", "-q", "update", cwd=draft)
        _apt("apt-get", "-q", "-o", "APT::Sandbox::User=root", "download", match[1], cwd=draft)
    (package,) = draft.glob("*.deb")
    target = cache / package.name
    package.rename(target)
    draft.rmdir()
    return target


def _unpack(package: Path) -> tuple[bytes, list[tuple[str, bytes]]]:
    """The kernel, and the wanted modules with all they depend on, in the order to load them."""
    data = subprocess.run(["dpkg-deb", "--fsys-tarfile", str(package)], capture_output=True, check=True).stdout
    kernel = b""
    modules: dict[str, bytes] = {}
    with tarfile.open(fileobj=io.BytesIO(data)) as archive:
        for member in archive:
            base = os.path.basename(member.name)
            content = archive.extractfile(member) if member.isfile() else None
            if content is None:
                continue
            if base.startswith("vmlinuz-"):
                kernel = content.read()
            elif base.endswith((".ko", ".ko.xz")):
                raw = content.read()
                modules[module_name(base)] = lzma.decompress(raw) if base.endswith(".xz") else raw
    if not kernel:
        raise LabError(f"{package} holds no kernel: remove it and try again")
    ordered: dict[str, bytes] = {}

    def add(name: str) -> None:
        if name in ordered or name not in modules:  # not there: built into the kernel
            return
        for dependency in module_dependencies(modules[name]):
            add(dependency)
        ordered[name] = modules[name]

    for wanted in MODULES:
        add(module_name(wanted))
    return kernel, list(ordered.items())


def module_name(file: str) -> str:
    """The kernel's name of a module file: no suffix, underscores."""
    return file.partition(".")[0].replace("-", "_")


def module_dependencies(module: bytes) -> list[str]:
    """Names in the `depends=` string of a module's .modinfo section."""
    match = re.search(rb"\0depends=([^\0]*)\0", module)
    return [module_name(name) for name in match[1].decode().split(",") if name] if match else []


def _userland() -> list[tuple[str, int, bytes]]:
    """Programs, libraries and scripts as (path, mode, content)."""
    busybox = shutil.which("busybox", path=processes.CLEAN_PATH)
    if busybox is None:
        raise LabError("busybox is missing: apt-get install busybox-static")
    files = {"bin/busybox": Path(busybox).read_bytes()}
    for program in PROGRAMS:
        path = shutil.which(program, path=processes.CLEAN_PATH)
        if path is None:
            raise LabError(f"{program} is missing: apt-get install {program}")
        listing = subprocess.run(["ldd", path], capture_output=True, text=True, check=True).stdout
        files[f"usr/bin/{program}"] = Path(path).read_bytes()
        for library in re.findall(r"(/\S+) \(0x", listing):
            files[library.lstrip("/")] = Path(library).read_bytes()
    scripts = resources.files("divhook.lab") / "initramfs"
    files["init"] = (scripts / "init").read_bytes()
    files["etc/control.sh"] = (scripts / "control.sh").read_bytes()
    files["etc/udhcpc.sh"] = (scripts / "udhcpc.sh").read_bytes()
    files["etc/acpi/PWRF/00000080"] = b"#!/bin/sh\npoweroff -f\n"
    return [(name, 0o755, content) for name, content in sorted(files.items())]


def newc(files: Iterable[tuple[str, int, bytes]]) -> bytes:
    """A cpio archive of (path, permissions, content), its directories, and /dev/console."""
    out = io.BytesIO()
    number = 0

    def entry(name: str, mode: int, content: bytes = b"", device: tuple[int, int] = (0, 0)) -> None:
        nonlocal number
        number += 1
        raw = name.encode() + b"\0"
        fields = (number, mode, 0, 0, 1, 0, len(content), 0, 0, *device, len(raw), 0)
        header = b"070701" + b"".join(b"%08X" % field for field in fields) + raw
        out.write(header + bytes(-len(header) % 4) + content + bytes(-len(content) % 4))

    seen: set[str] = set()
    for directory in ("dev", "proc", "sys", "run", "tmp", "var", "sbin", "usr/sbin"):
        _parents(directory + "/x", seen, entry)
    entry("dev/console", stat.S_IFCHR | 0o600, device=(5, 1))
    for name, permissions, content in files:
        _parents(name, seen, entry)
        entry(name, stat.S_IFREG | permissions, content)
    number = -1
    entry("TRAILER!!!", 0)
    return out.getvalue()


def _parents(name: str, seen: set[str], entry: Callable[[str, int], None]) -> None:
    parts = name.split("/")[:-1]
    for depth in range(1, len(parts) + 1):
        directory = "/".join(parts[:depth])
        if directory not in seen:
            seen.add(directory)
            entry(directory, stat.S_IFDIR | 0o755)


def _accelerator(cache: Path, kernel: Path, initramfs: Path, progress: Callable[[str], None]) -> str:
    """kvm where a guest was seen to boot with it on this machine, else qemu (TCG). $DIVHOOK_LAB_ACCEL decides."""
    forced = os.environ.get("DIVHOOK_LAB_ACCEL")
    if forced:
        return {"tcg": "qemu", "qemu": "qemu", "kvm": "kvm"}[forced]
    qemu = shutil.which(QEMU, path=processes.CLEAN_PATH)
    if qemu is None:
        raise LabError(f"{QEMU} is missing: apt-get install qemu-system-x86")
    if not os.access("/dev/kvm", os.R_OK | os.W_OK):
        return "qemu"
    release = os.uname().release
    boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    key = hashlib.sha256(f"{release} {boot} {os.stat(qemu).st_mtime_ns} {kernel.name}".encode()).hexdigest()[:16]
    verdict = cache / f"kvm-{key}"
    if not verdict.exists():
        progress(f"trying whether KVM boots a guest here (at most {PROBE_TIMEOUT_S:.0f} s, once)")
        replace(verdict, b"kvm\n" if _boots_with_kvm(qemu, kernel, initramfs) else b"qemu\n")
    return verdict.read_text().strip()


def _boots_with_kvm(qemu: str, kernel: Path, initramfs: Path) -> bool:
    command = [qemu, "-accel", "kvm", "-machine", "pc", "-cpu", "qemu64", "-m", "192", "-nographic", "-no-reboot"]
    command += ["-net", "none", "-kernel", str(kernel), "-initrd", str(initramfs)]
    command += ["-append", f"console=ttyS0 quiet panic=-1 divhook.probe={PROBE_TOKEN}"]
    try:
        done = subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, timeout=PROBE_TIMEOUT_S, check=False
        )
    except subprocess.TimeoutExpired:
        return False
    return PROBE_TOKEN.encode() in done.stdout
