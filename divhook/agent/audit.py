"""What people ask of policies in force: who talks now and by which rule, what was denied, what a change would do.

Answers of the control socket; nothing here changes anything. What may be long is done in pieces, or in a thread that
has its own copy of what it needs: frames come first.
"""

import asyncio
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from divhook.agent.agent import Agent
from divhook.agent.control import RequestError
from divhook.agent.enforcement import PolicedPort
from divhook.config.problems import ConfigError
from divhook.core.addressing import Address, address_text
from divhook.core.flow import Flow, FlowKey, FlowKind, TcpState, timeout_s
from divhook.core.flow_log import FlowEvent
from divhook.core.reasons import reason_text
from divhook.core.verdict import Direction, Relation, relation_of
from divhook.core.wire.icmp import TYPE_ECHO
from divhook.core.wire.ipv4 import Protocol
from divhook.policy.cell import CellPolicy, Rule
from divhook.policy.compile import compile_policy
from divhook.policy.files import PolicyLoader, PolicySet
from divhook.policy.identity import Identity, IdentityError
from divhook.policy.services import Service
from divhook.policy.table import Table, UnknownIdentityError

MAX_FLOWS_TOLD = 100_000
"""Rows of one answer; `truncated` says that there are more."""
MAX_EVENTS_TOLD = 1024
"""Events of one answer of the flow log."""
TURN = 256
"""Flows read before frames have their turn."""


class LiveFlow(NamedTuple):
    """A flow at a policed port of this host."""

    at: PolicedPort
    key: FlowKey
    flow: Flow

    @property
    def opener(self) -> tuple[Address, int]:
        """Who began it: address and port."""
        ends = (self.key.high, self.key.high_port), (self.key.low, self.key.low_port)
        return ends[0 if self.flow.opened_by_high else 1]

    @property
    def target(self) -> tuple[Address, int]:
        """The other end."""
        ends = (self.key.low, self.key.low_port), (self.key.high, self.key.high_port)
        return ends[0 if self.flow.opened_by_high else 1]

    @property
    def outward(self) -> bool:
        """Whether the port's own guest began it."""
        return self.opener[0] == self.at.nic.address

    @property
    def service(self) -> int:
        """The number that policies go by: destination port; of an echo, its type and code."""
        return self.target[1] if self.key.kind is FlowKind.PAIR else TYPE_ECHO << 8


# ------------------------------------------------------------------ flows


async def live_flows(agent: Agent, guest: str | None = None) -> AsyncIterator[LiveFlow]:
    """All that have not timed out. Reads the kernel's tables, a few entries at a time."""
    now_s = agent.programs.flows.now_s()
    for at in agent.enforcement.policed_ports():
        if guest is not None and at.nic.guest != guest:
            continue
        for count, (key, entry) in enumerate(at.flows.items(), 1):
            if isinstance(entry, Flow) and now_s - entry.seen_s <= timeout_s(key, entry):
                yield LiveFlow(at, key, entry)
            if count % TURN == 0:
                await asyncio.sleep(0)


async def flows(agent: Agent, request: dict[str, Any]) -> dict[str, Any]:
    """{"flows": rows, "truncated": bool}. guest: only those at its ports."""
    guests, now_s = _guests(agent), agent.programs.flows.now_s()
    wanted = request.get("guest")
    rows: list[dict[str, Any]] = []
    async for live in live_flows(agent, str(wanted) if wanted is not None else None):
        if len(rows) == MAX_FLOWS_TOLD:
            return {"flows": rows, "truncated": True}
        (source, source_port), (destination, destination_port) = live.opener, live.target
        rule, allow = _verdict(agent, live, _table(agent, live.at.cell))
        sent, answered = live.flow.counts
        rows.append(
            {
                "guest": live.at.nic.guest,
                "port": live.at.nic.port,
                "direction": str(_direction(live)),
                "protocol": _protocol(live.key.protocol),
                "source": address_text(source),
                "source_port": source_port,
                "source_guest": guests.get(source),
                "destination": address_text(destination),
                "destination_port": destination_port,
                "destination_guest": guests.get(destination),
                "state": state_of(live.key, live.flow),
                "packets": sent.packets,
                "bytes": sent.bytes,
                "reply_packets": answered.packets,
                "reply_bytes": answered.bytes,
                "idle_s": round(max(0.0, now_s - live.flow.seen_s), 1),
                "verdict": "allow" if allow else "deny",
                **_named(agent, rule),
            }
        )
    return {"flows": rows, "truncated": False}


def state_of(key: FlowKey, flow: Flow) -> str:
    """For people."""
    if key.protocol != Protocol.TCP:
        return "answered" if flow.answered else "one way"
    if flow.closed:
        return "reset" if TcpState.RESET in flow.tcp else "closed"
    if flow.tcp == (TcpState.OPEN, TcpState.OPEN):
        return "open"
    return "closing" if any(state >= TcpState.FIN for state in flow.tcp) else "opening"


def _direction(live: LiveFlow) -> Direction:
    return Direction.EGRESS if live.outward else Direction.INGRESS


def _verdict(agent: Agent, live: LiveFlow, table: Table | None) -> tuple[int, bool]:
    """(rule or 0, whether it may be) of a flow by a table, as its next packet would be judged under it."""
    if table is None:
        return 0, True
    local, remote = live.at.nic.address, live.target[0] if live.outward else live.opener[0]
    relation = relation_of(
        agent.configuration.plan, local or remote, remote, agent.dataplane.pipeline.border.externals.is_own
    )
    other = remote if relation in (Relation.EXTERNAL, Relation.HOST) else live.flow.remote_identity
    try:
        found = table.decide(
            _direction(live), live.at.identity.number, relation, other, live.key.protocol, live.service
        )
    except UnknownIdentityError:
        return 0, True
    return (found.verdict.rule if found.verdict is not None else 0), found.allow


def _table(agent: Agent, cell: str) -> Table | None:
    found = agent.enforcement.table_of(cell)
    return found.table if found is not None else None


# ------------------------------------------------------------------ the flow log


def flow_log(agent: Agent, request: dict[str, Any]) -> dict[str, Any]:
    """Events from number `since` on (none: only those to come), oldest first: {"next", "missed", "events"}."""
    log, since = agent.enforcement.flow_log, request.get("since")
    if not isinstance(since, int):
        return {"next": log.told, "missed": 0, "events": []}
    missed = max(0, log.told - len(log.recent) - since)
    fresh = list(log.recent)[max(0, len(log.recent) - (log.told - since)) :][:MAX_EVENTS_TOLD]
    guests = _guests(agent)
    by_port = {nic.port: nic.guest for nic in agent.guests.all() if nic.port}
    events = [_event(agent, event, guests, by_port) for event in fresh]
    return {"next": min(since, log.told) + missed + len(events), "missed": missed, "events": events}


def _event(agent: Agent, event: FlowEvent, guests: dict[Address, str], by_port: dict[int, str]) -> dict[str, Any]:
    service = _protocol(event.protocol)
    if event.protocol == Protocol.ICMP:
        service += f"/{event.source_port}/{event.destination_port}"
    elif event.destination_port:
        service += f"/{event.destination_port}"
    return {
        "time": round(time.time() - (time.monotonic() - event.time_s), 6),
        "guest": by_port.get(event.port),
        "port": event.port,
        "direction": "from_guest" if event.outward else "to_guest",
        "verdict": "allow" if event.reason is None else "deny",
        "reason": reason_text(event.reason) if event.reason is not None else None,
        "source": address_text(event.source),
        "source_port": event.source_port,
        "source_guest": guests.get(event.source),
        "destination": address_text(event.destination),
        "destination_port": event.destination_port,
        "destination_guest": guests.get(event.destination),
        "service": service,
        "ended": event.ended,
        "picked_up": event.picked_up,
        "where": "kernel" if event.kernel else "agent",
        **_named(agent, event.rule),
    }


def _named(agent: Agent, number: int) -> dict[str, Any]:
    rule = agent.enforcement.rule(number) if number else None
    if rule is None:
        return {"rule": "a rule that is gone" if number else "default", "rule_place": None}
    return {"rule": str(rule), "rule_place": str(rule.where)}


def _guests(agent: Agent) -> dict[Address, str]:
    return {nic.address: nic.guest for nic in agent.guests.all() if nic.address is not None}


def _protocol(number: int) -> str:
    return str(Service(number))


# ------------------------------------------------------------------ rules


def counters(agent: Agent, _request: dict[str, Any]) -> list[dict[str, Any]]:
    """Every rule in force here, with how many flows (of what is no flow: packets) it has decided."""
    enforcement = agent.enforcement
    kernel, rows = agent.programs.policy.rule_counts(), []
    for cell in enforcement.cells():
        for rule in _rules_of(enforcement.policies.cell(cell)):
            rows.append(
                {
                    "cell": cell,
                    "where": str(rule.where),
                    "rule": str(rule),
                    "comment": rule.comment,
                    "flows": kernel.get(rule.number, 0) + enforcement.rule_flows[rule.number],
                }
            )
    return rows


def _rules_of(policy: CellPolicy) -> Iterator[Rule]:
    """Those that say the same count as one."""
    return iter({rule.number: rule for rule in reversed(policy.rules)}.values())


# ------------------------------------------------------------------ who somebody is


def who(agent: Agent, request: dict[str, Any]) -> dict[str, Any] | None:
    """A guest of this host by name or address, or another host's by address: its identity. None: nobody known."""
    text = str(request.get("end"))
    for nic in agent.guests.all():
        if text in (nic.guest, address_text(nic.address) if nic.address is not None else None):
            identity = agent.enforcement.identity_of(nic)
            return _identity(identity, nic.guest, "this host", nic.placement.subnet.name)
    for entry in agent.dataplane.pipeline.discovery.neighbours:
        if entry.claim is not None and address_text(entry.address) == text:
            try:
                known = agent.enforcement.identity(entry.claim.identity)
            except IdentityError:
                known = None
            if known is None:
                raise RequestError(f"{text} is on host {entry.claim.host.hex(':')}, which has not said yet who it is")
            return _identity(known, text, f"host {entry.claim.host.hex(':')}", known.subnet)
    return None


def _identity(identity: Identity, name: str, host: str, subnet: str) -> dict[str, Any]:
    return {
        "name": name,
        "host": host,
        "cell": identity.cell,
        "subnet": subnet,
        "labels": [list(pair) for pair in identity.labels],
        "exports": list(identity.exports),
    }


# ------------------------------------------------------------------ what a change would do


@dataclass(frozen=True, slots=True)
class _Question:
    """What the thread needs to compile a cell as it would be."""

    cell: str
    locals: tuple[Identity, ...]
    remotes: tuple[Identity, ...]


async def diff(agent: Agent, request: dict[str, Any]) -> dict[str, Any]:
    """What other files (`directory`: a configuration directory) would change: rules, and flows that live now.

    Nothing is put in force. Raises RequestError with every mistake of the files.
    """
    path = Path(str(request.get("directory") or agent.paths.config))
    configuration, before = agent.configuration, agent.enforcement.policies
    asked = [_Question(cell, *agent.enforcement.identities_of(cell)) for cell in agent.enforcement.cells()]
    names = {cell: agent.names.book.addresses(cell) for cell in agent.enforcement.cells()}

    def compiled() -> tuple[PolicySet, dict[str, Table]]:
        fresh = PolicyLoader().load(path, configuration)
        tables = {
            q.cell: compile_policy(fresh.cell(q.cell), q.locals, q.remotes, names[q.cell])
            for q in asked
            if fresh.cell(q.cell) != before.cell(q.cell)
        }
        return fresh, tables

    try:
        after, tables = await asyncio.get_running_loop().run_in_executor(None, compiled)
    except ConfigError as error:
        raise RequestError(f"the files have mistakes:\n{error}") from error
    rules = _changed_rules(before, after)
    ended: list[dict[str, Any]] = []
    checked = 0
    async for live in live_flows(agent):
        if live.at.cell not in tables or len(ended) == MAX_FLOWS_TOLD:
            continue
        checked += 1
        rule, allow = _verdict(agent, live, tables[live.at.cell])
        if not allow and _verdict(agent, live, _table(agent, live.at.cell))[1]:
            found = next((r for r in after.cell(live.at.cell).rules if r.number == rule), None)
            ended.append(_flow_line(agent, live) | {"rule_place": str(found.where) if found else None})
    return {"rules": rules, "flows_checked": checked, "ended": ended}


def _flow_line(agent: Agent, live: LiveFlow) -> dict[str, Any]:
    guests = _guests(agent)
    (source, source_port), (destination, port) = live.opener, live.target
    return {
        "guest": live.at.nic.guest,
        "direction": str(_direction(live)),
        "protocol": _protocol(live.key.protocol),
        "source": address_text(source),
        "source_port": source_port,
        "source_guest": guests.get(source),
        "destination": address_text(destination),
        "destination_port": port,
        "destination_guest": guests.get(destination),
        "state": state_of(live.key, live.flow),
    }


def _changed_rules(before: PolicySet, after: PolicySet) -> list[dict[str, Any]]:
    """Rules and defaults that come and go, by cell."""
    rows = []
    for cell in sorted({*before.cells, *after.cells}):
        old, new = before.cell(cell), after.cell(cell)
        if old == new:
            continue
        was, will = (Counter(rule.number for rule in policy.rules) for policy in (old, new))
        for sign, policy, other in (("-", old, will), ("+", new, was)):
            rows += [
                {"change": sign, "cell": cell, "where": str(rule.where), "rule": str(rule)}
                for rule in policy.rules
                if not other[rule.number]
            ]
        for key in sorted({*old.defaults, *new.defaults}, key=lambda k: (k[0] or "", k[1], k[2])):
            subnet, direction, relation = key
            had, has = (policy.defaults.get(key) for policy in (old, new))
            for sign, default in (("-", had), ("+", has)):
                if default is not None and (had is None or has is None or had.allow is not has.allow):
                    what = f"default {direction}, {relation}: {'allow' if default.allow else 'deny'}"
                    text = f"{what} (subnet {subnet})" if subnet else what
                    where = str(default.where) if default.where else "built in"
                    rows.append({"change": sign, "cell": cell, "where": where, "rule": text})
        if old.groups != new.groups or old.exports != new.exports:
            rows.append({"change": "~", "cell": cell, "where": "", "rule": "members of groups, or exports"})
    return rows
