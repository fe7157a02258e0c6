"""`divhook install`: put hook, libvirt network and systemd unit on this host, or take them away."""

import argparse
import os
import shutil
import subprocess
import sys
from pathlib import Path

import divhook
from divhook.cli.errors import CommandError
from divhook.config.model import DEFAULT_DIRECTORY, HostConfig
from divhook.hook import qemu as hook

DESCRIPTION = """\
Make this host ready: the hook below /etc/libvirt/hooks/qemu.d, the libvirt network `divhook`, the systemd unit
divhook-agent.service (enabled, and started where there is a cluster key), and an /etc/divhook to begin with.
Safe to run again, also after an upgrade. Files of /etc/divhook that exist are never touched."""
EXAMPLES = """\
examples:
  divhook install
  divhook install --print          say what would be done
  divhook install --remove         take it all away but /etc/divhook and /var/lib/divhook"""

HOOK = Path("/etc/libvirt/hooks/qemu.d/divhook")
UNIT = Path("/etc/systemd/system/divhook-agent.service")
CONFIG = Path(DEFAULT_DIRECTORY) / "divhook.yaml"
NETWORK_XML = f"""<network>
  <name>{hook.NETWORK}</name>
  <forward mode='bridge'/>
  <bridge name='{hook.BRIDGE}'/>
</network>
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of the command."""
    parser.add_argument("--remove", action="store_true", help="take it away again")
    parser.add_argument("--print", action="store_true", dest="dry", help="only say what would be done")
    parser.add_argument("--root", type=Path, default=Path("/"), metavar="DIR", help="below this directory; files only")


def shipped(directory: str, name: str) -> str:
    """A text file of the source tree, or its copy in the installed package. Raises CommandError."""
    package = Path(divhook.__file__).parent
    for place in (package.parent / directory / name, package / "data" / directory / name):
        if place.exists():
            return place.read_text()
    raise CommandError(f"this installation lacks {directory}/{name}: install divhook again")


def unit_text() -> str:
    """The systemd unit, with the path of this very installation. Raises CommandError."""
    start = f"ExecStart={Path(sys.prefix) / 'bin' / 'divhook'} agent"
    lines = shipped("systemd", UNIT.name).splitlines()
    return "\n".join(start if line.startswith("ExecStart=") else line for line in lines) + "\n"


class _Steps:
    """Does things, or says them."""

    def __init__(self, dry: bool, root: Path) -> None:
        self._dry = dry
        self._root = root
        self.live = root == Path("/")

    def path(self, path: Path) -> Path:
        """A path below the root that was asked for."""
        return self._root / path.relative_to("/")

    def write(self, path: Path, text: str, mode: int) -> None:
        """Write a file whole, or leave it where it is the same already."""
        target = self.path(path)
        if target.exists() and target.read_text() == text and target.stat().st_mode & 0o777 == mode:
            print(f"  {path}: up to date")
            return
        print(f"  {path}")
        if not self._dry:
            target.parent.mkdir(parents=True, exist_ok=True)
            fresh = target.with_name(f".{target.name}.new")
            fresh.write_text(text)
            fresh.chmod(mode)
            os.replace(fresh, target)

    def directory(self, path: Path) -> None:
        """Make a directory that may exist."""
        if not self._dry:
            self.path(path).mkdir(parents=True, exist_ok=True)

    def remove(self, path: Path) -> None:
        """Remove a file that may not exist."""
        if self.path(path).exists():
            print(f"  remove {path}")
            if not self._dry:
                self.path(path).unlink()

    def command(self, *words: str, needed: bool = True, stdin: str = "") -> bool:
        """Run a command on the live system. Raises CommandError where it fails and is needed."""
        if not self.live or shutil.which(words[0]) is None:
            return False
        print(f"  {' '.join(words)}")
        if self._dry:
            return True
        done = subprocess.run(words, capture_output=True, text=True, input=stdin, check=False)
        if done.returncode and needed:
            raise CommandError(f"`{' '.join(words)}` failed: {done.stderr.strip()}")
        return done.returncode == 0


def run(args: argparse.Namespace) -> int:
    """Install or remove. Raises CommandError."""
    steps = _Steps(args.dry, args.root)
    if steps.live and os.geteuid() != 0 and not args.dry:
        raise CommandError("only root can install; or try --print")
    systemd = steps.live and Path("/run/systemd/system").is_dir()
    if args.remove:
        _remove(steps, systemd)
    else:
        _install(steps, systemd)
    return 0


def _virsh(steps: _Steps, *words: str, needed: bool = True, stdin: str = "") -> bool:
    return steps.command("virsh", "-q", "-c", "qemu:///system", *words, needed=needed, stdin=stdin)


def _install(steps: _Steps, systemd: bool) -> None:
    print("divhook install:")
    new_hook = not steps.path(HOOK).exists()
    steps.write(HOOK, Path(hook.__file__).read_text(), 0o755)
    steps.write(UNIT, unit_text(), 0o644)
    for directory in ("cells", "policies"):
        steps.directory(CONFIG.parent / directory)
    if not steps.path(CONFIG).exists():
        steps.write(CONFIG, shipped("policies", CONFIG.name), 0o644)
    if not _virsh(steps, "net-info", hook.NETWORK, needed=False):
        _virsh(steps, "net-define", "/dev/stdin", stdin=NETWORK_XML)
    _virsh(steps, "net-autostart", hook.NETWORK, needed=False)  # the agent starts it, once its bridge is there
    if systemd:
        if new_hook:  # libvirtd looks for hooks when it starts; guests run on
            for daemon in ("libvirtd.service", "virtqemud.service"):  # one daemon, or one per driver
                steps.command("systemctl", "try-restart", daemon, needed=False)
        steps.command("systemctl", "daemon-reload")
        steps.command("systemctl", "enable", "--quiet", UNIT.name)
    key = Path(HostConfig.model_fields["key_file"].default)
    if not steps.path(key).exists():
        print(f"next: put the cluster key in {key} (on the first host: `divhook key new`), describe a cell in")
        print(f"      {DEFAULT_DIRECTORY}/cells/, check both with `divhook check`, then: systemctl start {UNIT.stem}")
    elif systemd:
        steps.command(str(Path(sys.prefix) / "bin" / "divhook"), "check")
        steps.command("systemctl", "restart", UNIT.name)


def _remove(steps: _Steps, systemd: bool) -> None:
    print("divhook install --remove:")
    if systemd:
        steps.command("systemctl", "disable", "--now", UNIT.name, needed=False)
    steps.command(str(Path(sys.prefix) / "bin" / "divhook"), "agent", "--teardown", needed=False)
    _virsh(steps, "net-destroy", hook.NETWORK, needed=False)
    _virsh(steps, "net-undefine", hook.NETWORK, needed=False)
    steps.remove(HOOK)
    steps.remove(UNIT)
    if systemd:
        steps.command("systemctl", "daemon-reload")
