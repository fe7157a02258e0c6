"""The guests that the session's tests share, and questions to a host's agent."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from divhook.lab.guest import LabGuest
from divhook.lab.host import LabHost
from divhook.lab.lab import Lab


@dataclass(frozen=True, slots=True)
class Cast:
    """Running guests with addresses: web1 on A, web2 and db1 on B in cell shop; other1 on A in cell lab."""

    web1: LabGuest
    web2: LabGuest
    db1: LabGuest
    other1: LabGuest

    def address(self, name: str) -> str:
        guest: LabGuest = getattr(self, name)
        return guest.wait_address()


def listing(host: LabHost, command: str, *arguments: str) -> list[dict[str, Any]]:
    """What `divhook COMMAND --json` lists on a host, in a stable order."""
    rows: list[dict[str, Any]] = json.loads(host.divhook(command, *arguments, "--json").stdout)
    return sorted(rows, key=str)


def drops(host: LabHost, reason: str, guest: str) -> int:
    """Frames of a guest that a host dropped for a reason."""
    return sum(row["packets"] for row in listing(host, "drops", "--reason", reason) if row["guest"] == guest)


@contextmanager
def policy_in_force(lab: Lab, text: str) -> Iterator[None]:
    """Cell shop has this policy on every host while the body runs, and none at the end."""
    files = {host: host.root / "etc-divhook" / "policies" / "shop.yaml" for host in lab.hosts.values()}
    for host, path in files.items():
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
        host.divhook("policy", "apply")
    yield
    for host, path in files.items():
        path.unlink()
        host.divhook("policy", "apply")
