"""The initramfs writer, checked against an independent reader."""

import shutil
import subprocess

import pytest

from divhook.lab import image


def test_archive_is_read_by_busybox_cpio(tmp_path: object) -> None:
    busybox = shutil.which("busybox")
    if busybox is None:
        pytest.skip("busybox is missing")
    archive = image.newc([("init", 0o755, b"#!/bin/sh\n"), ("etc/a/b", 0o644, b"12345")])
    done = subprocess.run([busybox, "cpio", "-tv"], input=archive, capture_output=True, check=True)
    lines = [line.split() for line in done.stdout.decode().splitlines()]
    listed = {words[-1]: words[0] for words in lines}
    assert listed["init"] == "-rwxr-xr-x"
    assert listed["etc/a/b"] == "-rw-r--r--"
    assert listed["etc/a"] == listed["proc"] == "drwxr-xr-x"
    assert listed["dev/console"] == "crw-------"


def test_archive_is_the_same_every_time() -> None:
    files = [("a", 0o644, b"x"), ("b/c", 0o755, b"")]
    assert image.newc(files) == image.newc(files)


@pytest.mark.parametrize(
    ("modinfo", "names"),
    [
        (
            b"license=GPL\0depends=virtio_ring,virtio,net-failover\0retpoline=Y\0",
            ["virtio_ring", "virtio", "net_failover"],
        ),
        (b"license=GPL\0depends=\0", []),
        (b"license=GPL\0", []),
    ],
)
def test_dependencies_come_from_modinfo(modinfo: bytes, names: list[str]) -> None:
    assert image.module_dependencies(b"\x7fELF\0" + modinfo) == names


def test_module_names_are_the_kernels() -> None:
    assert image.module_name("virtio-net.ko.xz") == "virtio_net"


def test_a_forced_accelerator_is_not_probed(monkeypatch: pytest.MonkeyPatch, tmp_path) -> None:  # type: ignore[no-untyped-def]
    monkeypatch.setenv("DIVHOOK_LAB_ACCEL", "tcg")
    assert image._accelerator(tmp_path, tmp_path, tmp_path, pytest.fail) == "qemu"
