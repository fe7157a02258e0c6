"""`divhook install --root`: files only, below a directory."""

import stat
from pathlib import Path

import pytest

from divhook.cli.main import main
from divhook.hook import qemu


def installed(root: Path) -> dict[str, int]:
    return {str(p.relative_to(root)): stat.S_IMODE(p.stat().st_mode) for p in root.rglob("*") if p.is_file()}


def test_install_puts_hook_and_unit_with_their_modes(tmp_path: Path) -> None:
    assert main(["install", "--root", str(tmp_path)]) == 0
    assert installed(tmp_path) == {
        "etc/divhook/divhook.yaml": 0o644,
        "etc/libvirt/hooks/qemu.d/divhook": 0o755,
        "etc/systemd/system/divhook-agent.service": 0o644,
    }
    hook = tmp_path / "etc/libvirt/hooks/qemu.d/divhook"
    assert hook.read_text() == Path(qemu.__file__).read_text()
    unit = (tmp_path / "etc/systemd/system/divhook-agent.service").read_text()
    assert "bin/divhook agent\n" in unit
    assert "WatchdogSec=" in unit


def test_install_again_changes_nothing_and_remove_takes_it_away(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    main(["install", "--root", str(tmp_path)])
    before = {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*")}
    capsys.readouterr()
    assert main(["install", "--root", str(tmp_path)]) == 0
    assert capsys.readouterr().out.count("up to date") == 2
    assert {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*")} == before
    assert main(["install", "--root", str(tmp_path), "--remove"]) == 0
    assert installed(tmp_path) == {"etc/divhook/divhook.yaml": 0o644}


def test_a_configuration_that_exists_is_never_touched(tmp_path: Path) -> None:
    config = tmp_path / "etc/divhook/divhook.yaml"
    config.parent.mkdir(parents=True)
    config.write_text("uplink: eth7\n")
    assert main(["install", "--root", str(tmp_path)]) == 0
    assert config.read_text() == "uplink: eth7\n"


def test_print_writes_nothing(tmp_path: Path) -> None:
    assert main(["install", "--root", str(tmp_path), "--print"]) == 0
    assert installed(tmp_path) == {}
