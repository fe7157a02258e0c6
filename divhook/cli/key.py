"""`divhook key`: make or show the cluster key."""

import argparse
import os
import secrets
import stat
import sys
from datetime import UTC, datetime
from pathlib import Path

from divhook.cli.errors import CommandError
from divhook.cli.listing import table
from divhook.config.model import HostConfig
from divhook.core.keys import MAX_KEY_FILE, KeyFileError, new_key_text, parse_key_text

DEFAULT_FILE = Path(HostConfig.model_fields["key_file"].default)
DESCRIPTION = """\
The cluster key authenticates what hosts tell each other. All hosts of a cluster have the same key file, readable by
root only: who has it can claim any guest's address."""
EXAMPLES = f"""\
examples:
  divhook key new                      make {DEFAULT_FILE}; copy it to the other hosts by a safe way
  divhook key new --out next.key --id 2   a further key, to be merged into the file (rotation: docs/configuration.md)
  divhook key show                     ids, roles and fingerprints, to compare two hosts; never the secrets"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of the command."""
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True)
    new = actions.add_parser("new", help="make a key file with a fresh key")
    new.add_argument("--out", type=Path, default=DEFAULT_FILE, metavar="FILE", help=f"({DEFAULT_FILE})")
    new.add_argument("--force", action="store_true", help="replace the file if it exists")
    new.add_argument("--id", type=int, default=1, metavar="N", help="the key's id, 0 to 255 (1)")
    show = actions.add_parser("show", help="show ids, roles and fingerprints, never secrets")
    show.add_argument("file", nargs="?", type=Path, default=DEFAULT_FILE, metavar="FILE", help=f"({DEFAULT_FILE})")


def run(args: argparse.Namespace) -> int:
    """Make or show. Raises CommandError."""
    return _new(args.out, args.id, args.force) if args.action == "new" else _show(args.file)


def _new(path: Path, key_id: int, force: bool) -> int:
    if not 0 <= key_id <= 255:
        raise CommandError(f"key id {key_id} is outside 0 to 255")
    created = datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC")
    text = new_key_text(secrets.token_bytes(32), created, key_id)
    fingerprint = parse_key_text(text).sending.fingerprint()
    target = path.with_name(f".{path.name}.{os.getpid()}") if force else path
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        with os.fdopen(descriptor, "w") as file:
            os.fchmod(descriptor, 0o600)
            file.write(text)
            file.flush()
            os.fsync(descriptor)
        if force:
            target.replace(path)
    except FileExistsError:
        raise CommandError(
            f"{path} exists: hosts that have another key would not believe this one any more. "
            "--force replaces it; docs/configuration.md says how to rotate without a gap"
        ) from None
    except OSError as error:
        raise CommandError(f"can't write {path}: {error.strerror}") from None
    print(
        f"{path}: new key {key_id}, fingerprint {fingerprint}. Copy the file to every host of the cluster (mode 0600)."
    )
    return 0


def _show(path: Path) -> int:
    try:
        with path.open("rb") as file:
            mode = stat.S_IMODE(os.fstat(file.fileno()).st_mode)
            text = file.read(MAX_KEY_FILE + 1).decode("ascii", "replace")
        ring = parse_key_text(text, str(path))
    except FileNotFoundError:
        raise CommandError(
            f"there is no {path}: make it with `divhook key new`, or copy it from another host"
        ) from None
    except OSError as error:
        raise CommandError(f"can't read {path}: {error.strerror}") from None
    except KeyFileError as error:
        raise CommandError(str(error)) from None
    rows = [{"id": k.key_id, "role": "send" if k.send else "accept", "fingerprint": k.fingerprint()} for k in ring.keys]
    print(table(rows, ("id", "role", "fingerprint")))
    if mode & 0o077:
        print(f"divhook: {path} is open to others (mode {mode:04o}): chmod 600 {path}", file=sys.stderr)
        return 1
    return 0
