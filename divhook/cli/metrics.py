"""`divhook metrics`: this host's figures as Prometheus reads them.

Text exposition format 0.0.4 (prometheus.io/docs/instrumenting/exposition_formats): for the textfile collector of
node_exporter, or anything that runs a command. The agent opens no port for it.
"""

import argparse
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from divhook.cli import client
from divhook.cli.errors import CommandError

DESCRIPTION = """\
Print this host's counters and states in the text format of Prometheus. An agent that does not answer gives divhook_up 0
and exit code 1."""
EXAMPLES = """\
examples:
  divhook metrics
  divhook metrics > /var/lib/prometheus/node-exporter/divhook.prom.new &&
    mv /var/lib/prometheus/node-exporter/divhook.prom.new /var/lib/prometheus/node-exporter/divhook.prom"""

Row = Mapping[str, Any]


@dataclass(slots=True)
class Exposition:
    """Families in order, each with its samples."""

    lines: list[str] = field(default_factory=list)

    def family(self, name: str, kind: str, text: str, samples: Iterable[tuple[Mapping[str, object], float]]) -> None:
        """kind: gauge or counter. One that has no samples is left out."""
        rows = [f"divhook_{name}{_labels(labels)} {value:.15g}" for labels, value in samples]
        if rows:
            self.lines += [f"# HELP divhook_{name} {text}", f"# TYPE divhook_{name} {kind}", *rows]

    def single(self, name: str, kind: str, text: str, value: float) -> None:
        """A family of one sample without labels."""
        self.family(name, kind, text, [({}, value)])

    def text(self) -> str:
        """The whole exposition."""
        return "\n".join(self.lines) + "\n"


def _labels(labels: Mapping[str, object]) -> str:
    if not labels:
        return ""
    pairs = (f'{key}="{_escaped(str(value))}"' for key, value in labels.items())
    return "{" + ",".join(pairs) + "}"


def _escaped(value: str) -> str:
    return value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")


def render(status: Row, endpoints: Iterable[Row], drops: Iterable[Row], rules: Iterable[Row]) -> str:
    """Answers of the agent as an exposition."""
    out = Exposition()
    out.single("up", "gauge", "Whether the agent answers.", 1)
    out.family("info", "gauge", "Version of the agent.", [({"version": status["version"]}, 1)])
    out.single("uptime_seconds", "gauge", "Since the agent's start.", status["uptime_s"])
    for name, key, good, text in (
        ("libvirt_connected", "libvirt", "connected", "Whether the agent is connected to libvirt."),
        ("config_ok", "config", "ok", "Whether the configuration files are in force as they are."),
    ):
        out.single(name, "gauge", text, status[key] == good)
    out.single("reconciled", "gauge", "Whether libvirt has told what runs here.", status["reconciled"])
    policy = status["policy"]
    text = "Whether the policy files are in force as they are; else the last good ones are."
    out.single("policy_files_ok", "gauge", text, policy["files"] == "ok")
    out.single("policy_changes_total", "counter", "Changes of policies put in force.", policy["applied"])
    out.single("policy_rules", "gauge", "Rules in force here.", policy["rules"])
    out.single("flows_picked_up_total", "counter", "TCP flows begun in mid-stream.", policy["picked_up"])
    out.single("flow_log_lost_total", "counter", "Events of the flow log above their rate.", policy["log_lost"])
    out.single("neighbours", "gauge", "Endpoints of other hosts that are known.", status["neighbours"])
    out.single("peers", "gauge", "Hosts that have proved their key.", status["peers"])
    text = "How often flushed rules were put back."
    out.single("rules_restored_total", "counter", text, status["rules_restored"])
    paths = [("fast", key, status["fast_path"]) for key in ("from_guest", "to_guest")]
    paths += [("slow", key, status["slow_path"]) for key in ("from_guest", "from_wire", "to_guest", "to_wire")]
    text = "Frames by path and direction; those of the fast path of guests that run now."
    out.family("frames", "gauge", text, [({"path": path, "direction": key}, row[key]) for path, key, row in paths])
    text = "Frames that the kernel could not hand to the agent."
    lost = [({"where": key.removesuffix("_lost")}, status["slow_path"][key]) for key in ("queue_lost", "socket_lost")]
    out.family("frames_lost_total", "counter", text, lost)
    nat = status["nat"]
    if nat["cells"]:
        out.single("nat_ok", "gauge", "Whether all cells with source NAT are translated.", int(nat["state"] == "ok"))
        out.single("nat_connections", "gauge", "Connections that are translated now.", nat["connections"])
        out.single("nat_connections_limit", "gauge", "As many as the kernel keeps.", nat["limit"])
        text = "Connections of source NAT that found no room, by why."
        why = [({"why": key}, nat[key]) for key in ("refused", "table_full", "no_port")]
        out.family("nat_refused_total", "counter", text, why)
    moves = status["moves"]
    text = "Guests that move, by direction."
    out.family("moves", "gauge", text, [({"direction": key}, moves[key]) for key in ("leaving", "coming")])
    text = "Packets of moves that are remembered, copied to the new host or sent on to it late."
    out.family("move_packets", "gauge", text, [({"kind": key}, moves[key]) for key in ("copied", "late")])
    _of_endpoints(out, list(endpoints))
    for unit in ("packets", "bytes"):
        samples = [({k: row[k] for k in ("guest", "reason", "where")}, row[unit]) for row in drops]
        out.family(
            f"dropped_{unit}_total", "counter", f"Dropped {unit}, by guest and reason; consumed is no loss.", samples
        )
    text = "Flows that a rule has decided."
    out.family("rule_flows_total", "counter", text, [({k: r[k] for k in ("cell", "where")}, r["flows"]) for r in rules])
    return out.text()


def _of_endpoints(out: Exposition, endpoints: list[Row]) -> None:
    states: dict[str, int] = {"fenced": 0}
    for row in endpoints:
        states[row["state"]] = states.get(row["state"], 0) + 1
    out.family("endpoints", "gauge", "Guests' NICs by state.", [({"state": s}, n) for s, n in sorted(states.items())])
    for direction in ("sent", "received"):
        for unit in ("packets", "bytes"):
            samples = [
                ({k: row[k] for k in ("guest", "nic", "cell", "subnet")}, row[f"{direction}_{unit}"])
                for row in endpoints
                if f"{direction}_{unit}" in row
            ]
            out.family(
                f"guest_{direction}_{unit}_total", "counter", f"What a guest's NIC {direction}, in {unit}.", samples
            )


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of the command."""
    client.add_socket_argument(parser)


def run(args: argparse.Namespace) -> int:
    """Print the exposition. Raises CommandError where the agent does not answer."""
    try:
        answers = [client.ask(args.socket, op) for op in ("status", "endpoints", "drops", "policy counters")]
    except CommandError:
        print("divhook_up 0")
        raise
    print(render(*answers), end="")
    return 0
