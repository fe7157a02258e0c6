"""Everything that divhook keeps on a lab host, in a form that two moments can be compared by."""

import json
import os
import re
import sqlite3
from collections import Counter
from pathlib import Path
from typing import Any

from divhook.abi.layout import MAX_PORTS, EndpointKind
from divhook.adapters.bpf import pin_dir_in
from divhook.agent.agent import BPFFS
from divhook.core.addressing import ALL_HOSTS_GROUP, mac_text
from divhook.lab.host import LabHost
from divhook.lab.processes import wait_until

SETTLE_S = 45.0
"""Longer than a reconcile interval."""
PARTS = {
    "links": "ip -o link | sed 's/^[0-9]*: //; s/: <.*//' | sort",
    "nft": "nft -s list ruleset | grep -v '^#'",
    "iptables": "iptables-save | grep -v '^[#:]'",
    "tc": "tc qdisc show | sed 's/ [0-9a-f]*: dev/ dev/' | sort; bpftool net show | sed 's/ id [0-9]*//; s/([0-9]*)//'",
    "routes": "{ ip route show table all; ip rule; } | sort",
    "addresses": "ip -o address | sed 's/^[0-9]*: //'",
    "memberships": "ip maddress show dev up0 | sort",
    "bpffs": "find /sys/fs/bpf -path '*divhook*' | sed 's/from_host_[0-9]*$/from_host/' | sort",
    "run": "find /run/divhook | sort",
}
MAPS = ("ports", "endpoints", "groups", "buckets", "traffic", "drops")
DUMPS = {name: f"bpftool -j map dump pinned {pin_dir_in(BPFFS)}/maps/{name}" for name in MAPS}
WIRE = 0
"""The uplink's port id."""


def _run(host: LabHost, commands: dict[str, str]) -> dict[str, str]:
    """All commands in one shell: each nsenter costs."""
    mark = "--8<--"
    script = f"\necho; echo '{mark}'\n".join(commands.values())
    output = host.exec("bash", "-c", f"{{ {script}\n}} 2>&1", check=False).stdout
    return dict(zip(commands, [text.strip() for text in output.split(mark)], strict=True))


def system(host: LabHost) -> dict[str, str]:
    """Links, rules, filters, routes, addresses, pins and sockets. Tables of nft in the order of their names."""
    parts = _run(host, PARTS)
    tables = re.split(r"^(?=table )", parts["nft"], flags=re.MULTILINE)
    return {**parts, "nft": "".join(sorted(text.strip() + "\n" for text in tables))}


def _map(text: str) -> Any:
    return [entry["formatted"] for entry in json.loads(text)]


def kernel_maps(host: LabHost) -> dict[str, Any]:
    """What the programs know: ports, their endpoints and groups, and counters that belong to no port."""
    dumped = {name: _map(text) for name, text in _run(host, DUMPS).items()}
    ports = {entry["key"]: entry["value"] for entry in dumped["ports"]}
    counted = {entry["key"] for entry in dumped["buckets"]} | {entry["key"]["port_id"] for entry in dumped["drops"]}
    slots = {e["key"] for e in dumped["traffic"] if any(any(cpu["value"].values()) for cpu in e["values"])}
    local = [entry for entry in dumped["endpoints"] if entry["value"]["kind"] != EndpointKind.REMOTE]
    return {
        "ports": ports,
        "endpoints": {entry["key"]: entry["value"] for entry in local},
        "groups": sorted(mac_text(bytes(entry["key"]["mac"]["octets"])) for entry in dumped["groups"]),
        "stray counters": sorted(counted - {WIRE} - {port["port_id"] for port in ports.values()}),
        "stray slots": sorted(slots - {WIRE} - {port["port_id"] % MAX_PORTS for port in ports.values()}),
    }


def registry(host: LabHost, table: str) -> list[tuple[Any, ...]]:
    """The rows of a table of the agent's registry."""
    path = host.outside("/var/lib/divhook") / "registry.sqlite"
    with sqlite3.connect(f"file:{path}?mode=ro", uri=True) as connection:
        return sorted(connection.execute(f"SELECT * FROM {table}"))


def claims(host: LabHost) -> dict[str, Any]:
    """Claims in the registry: address → claim, with those that were given up."""
    return {bytes(address).hex(): json.loads(value)["claim"] for address, value in registry(host, "claim")}


TRAFFIC = ("sent_packets", "sent_bytes", "received_packets", "received_bytes")
"""An endpoint's counters."""


def rows(host: LabHost, command: str) -> list[dict[str, Any]]:
    """What `divhook COMMAND --json` lists, without starting a Python for it; without what traffic changes."""
    answer = host.ask_agent({"op": command})
    assert answer["ok"], answer
    result: list[dict[str, Any]] = answer["result"]
    return [{key: value for key, value in row.items() if key not in TRAFFIC} for row in result]


def open_files(host: LabHost) -> Counter[str]:
    """The agent's descriptors by kind."""
    kinds: Counter[str] = Counter()
    directory = Path(f"/proc/{host.agent_pid}/fd")
    for name in os.listdir(directory):
        try:
            target = os.readlink(directory / name)
        except FileNotFoundError:
            continue
        kinds[target.split("[")[0] if target.startswith(("socket:", "pipe:")) else target] += 1
    return kinds


def memory_kib(host: LabHost) -> int:
    """The agent's resident memory."""
    text = Path(f"/proc/{host.agent_pid}/status").read_text()
    return next(int(line.split()[1]) for line in text.splitlines() if line.startswith("VmRSS"))


def _by_nic(row: dict[str, Any]) -> str:
    return str(row["nic"])


def everything(host: LabHost) -> dict[str, Any]:
    """All of it but what only ages (quarantine, former claims), in an order that is not that of the guests' coming."""
    leases = [{k: v for k, v in row.items() if k != "remaining_s"} for row in rows(host, "leases")]
    return {
        **system(host),
        **kernel_maps(host),
        "reservations": registry(host, "reservation"),
        "saved leases": [address for address, _ in registry(host, "lease")],
        "endpoints": sorted(rows(host, "endpoints"), key=_by_nic),
        "leases": sorted(leases, key=_by_nic),
        "guests": sorted(host.guests()),
    }


def differences(before: dict[str, Any], after: dict[str, Any]) -> dict[str, tuple[Any, Any]]:
    """What is not the same; empty where all is."""
    return {name: (before[name], after[name]) for name in before if before[name] != after[name]}


def assert_back(
    host: LabHost, before: dict[str, Any], timeout_s: float = SETTLE_S, without: tuple[str, ...] = ()
) -> None:
    """Everything is as it was, at the latest after `timeout_s`; `without` some parts."""
    left: dict[str, tuple[Any, Any]] = {}

    def is_back() -> bool:
        left.update(differences(before, everything(host)))
        for part in without:
            left.pop(part, None)
        return not left

    assert wait_until(lambda: left.clear() or is_back(), timeout_s, 0.2), left


def groups_joined(host: LabHost) -> set[str]:
    """Group MACs that the uplink admits, without the one of all hosts."""
    return set(kernel_maps(host)["groups"]) - {mac_text(ALL_HOSTS_GROUP)}
