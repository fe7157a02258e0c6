"""The guests that the session's tests share, and questions to a host's agent."""

import json
from dataclasses import dataclass
from typing import Any

from divhook.lab.guest import LabGuest
from divhook.lab.host import LabHost


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


SNAPSHOTS = {
    "links": "ip -o link | sed 's/.*: \\(.*\\): <.*/\\1/' | sort",
    "nft": "nft list tables | sort | while read -r line; do nft -s list $line; done",
    "iptables": "iptables-save | grep -v '^#' | sed 's/\\[[0-9:]*\\]//'",
    "tc": "for d in up0 divbr0; do tc qdisc show dev $d; tc filter show dev $d ingress; done | sed 's/ id [0-9]*//'",
    "routes": "ip route show table all | sort",
    "bpffs": "find /sys/fs/bpf | sort",
    "files": "find /run/divhook /etc/divhook | sort",
    "memberships": "ip maddress show dev up0 | sort",
}


def snapshot(host: LabHost) -> dict[str, str]:
    """What an agent makes on its host, in a form that can be compared."""
    return {name: host.exec("sh", "-c", command, check=False).stdout for name, command in SNAPSHOTS.items()}
