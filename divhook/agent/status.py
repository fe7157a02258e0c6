"""What the agent says of itself on the control socket: status, endpoints, neighbours, drops, leases."""

import inspect
import os
import time
from typing import Any

import divhook
from divhook.adapters.bpf.policy import RULE_PICKED_UP
from divhook.agent import audit
from divhook.agent.agent import Agent
from divhook.agent.control import Handler, RequestError
from divhook.agent.move_contents import totals
from divhook.agent.nic import Nic
from divhook.agent.traffic import Traffic
from divhook.config.problems import ConfigError
from divhook.core.addressing import address_text, mac_text
from divhook.core.endpoint import PORT_WIRE
from divhook.core.neighbor import NeighbourState
from divhook.core.reasons import DropReason, reason_text


def handlers(agent: "AgentHolder") -> dict[str, Handler]:
    """Requests by op. They are served only once the agent has started."""
    return {
        "status": agent.answer(_status),
        "endpoints": agent.answer(_endpoints),
        "neighbors": agent.answer(_neighbors),
        "drops": agent.answer(_drops),
        "leases": agent.answer(_leases),
        "moves": agent.answer(_moves),
        "groups": agent.answer(_groups),
        "reload": agent.answer(_reload),
        "policy apply": agent.answer(_policy_apply),
        "policy names": agent.answer(_policy_names),
        "policy counters": agent.answer(audit.counters),
        "policy diff": agent.answer(audit.diff),
        "policy who": agent.answer(audit.who),
        "flows": agent.answer(audit.flows),
        "flow log": agent.answer(audit.flow_log),
    }


class AgentHolder:
    """Lets requests be bound before the agent exists."""

    def __init__(self) -> None:
        self.agent: Agent | None = None

    def answer(self, function: Any) -> Handler:
        """A handler that calls function(agent, request), and awaits what it returns if it is of that kind."""

        async def handler(request: dict[str, Any]) -> Any:
            if self.agent is None or not hasattr(self.agent, "guests"):
                raise RequestError("the agent is still starting")
            answer = function(self.agent, request)
            return await answer if inspect.isawaitable(answer) else answer

        return handler


async def _status(agent: Agent, _request: dict[str, Any]) -> dict[str, Any]:
    plane = agent.dataplane
    discovery = plane.pipeline.discovery
    queue_lost, socket_lost = plane.queue_losses()
    counters = plane.counters
    return {
        "version": divhook.__version__,
        "pid": os.getpid(),
        "uptime_s": round(time.time() - agent.started_s, 1),
        "reconciled": agent.guests.reconciled,
        "libvirt": "connected" if agent.libvirt.connected else "not connected",
        "config": agent.config_error or "ok",
        "uplink": {"name": agent.uplink.name, "pmac": mac_text(agent.uplink.mac), "mtu": agent.uplink.mtu},
        "supernet": str(agent.configuration.plan.supernet),
        "endpoints": len(agent.guests.all()),
        "neighbours": len(discovery.neighbours),
        "peers": plane.authenticator.peer_count,
        "groups": sorted(mac_text(group) for group in plane.groups),
        "rules_restored": agent.rules_restored,
        "policy": _policy(agent),
        "fast_path": _fast_path(agent),
        "nat": await agent.nat.status(),
        "moves": agent.moves.counts(),
        "slow_path": {
            "from_guest": counters.from_guest,
            "from_wire": counters.from_wire,
            "discovery": counters.discovery,
            "to_guest": counters.to_guest,
            "to_wire": counters.to_wire,
            "send_failed": counters.send_failed,
            "queue_lost": queue_lost,
            "socket_lost": socket_lost,
        },
    }


def _policy(agent: Agent) -> dict[str, Any]:
    enforcement = agent.enforcement
    return {
        "files": enforcement.problem or "ok",
        "enforced": enforcement.cells(),
        "rules": sum(len(enforcement.policies.cell(name).rules) for name in enforcement.cells()),
        "applied": enforcement.applied,
        "identities": len(agent.dataplane.pipeline.identities),
        "picked_up": enforcement.pickups + agent.programs.policy.rule_counts().get(RULE_PICKED_UP, 0),
        "log_lost": enforcement.flow_log.lost,
        "names": agent.names.summary(),
    }


def _policy_names(agent: Agent, _request: dict[str, Any]) -> list[dict[str, object]]:
    return agent.names.rows()


async def _policy_apply(agent: Agent, _request: dict[str, Any]) -> dict[str, Any]:
    try:
        return await agent.apply_policies()
    except ConfigError as error:
        raise RequestError(f"nothing is changed, the last good policies stay in force:\n{error}") from error


def _traffic(agent: Agent) -> Traffic:
    return Traffic(agent.programs, agent.dataplane.counters.delivered)


def _fast_path(agent: Agent) -> dict[str, Any]:
    """What the kernel did by itself for the guests that run now, each since its port exists."""
    fastpath, traffic = agent.dataplane.fastpath, _traffic(agent)
    ports = [nic.port for nic in agent.guests.all() if nic.port]
    forwarded = [traffic.forwarded(port) for port in ports]
    return {
        "state": "on" if fastpath.enabled else "off",
        "neighbours": len(fastpath),
        "from_guest": sum(count.from_packets for count in forwarded),
        "to_guest": sum(count.to_packets for count in forwarded),
        "arp_answered": sum(traffic.answered(port) for port in ports),
        "late": fastpath.late,
    }


def _state(agent: Agent, nic: Nic) -> str:
    endpoint = agent.dataplane.pipeline.ports.port(nic.port) if nic.port else None
    return endpoint.state.name.lower() if endpoint is not None else nic.phase.value


def _endpoints(agent: Agent, _request: dict[str, Any]) -> list[dict[str, Any]]:
    traffic = _traffic(agent)
    rows = []
    for nic in agent.guests.all():
        rows.append(
            {
                "guest": nic.guest,
                "nic": mac_text(nic.mac),
                "cell": nic.placement.subnet.cell,
                "subnet": nic.placement.subnet.name,
                "address": address_text(nic.address) if nic.address is not None else None,
                "port": nic.port or None,
                "ifname": nic.ifname or None,
                "state": _state(agent, nic),
                "source": nic.placement.source,
                "labels": dict(nic.labels),
                "identity": f"{nic.identity:016x}",
                "policed": agent.enforcement.is_policed_port(nic.port),
                **totals(nic, traffic),
            }
        )
    return rows


def _neighbors(agent: Agent, _request: dict[str, Any]) -> list[dict[str, Any]]:
    now = agent.dataplane.now()
    return [
        {
            "address": address_text(entry.address),
            "host": mac_text(entry.claim.host) if entry.claim is not None else None,
            "vmac": mac_text(entry.claim.vmac) if entry.claim is not None else None,
            "state": entry.state.name,
            "kernel": agent.dataplane.fastpath.knows(entry.address),
            "age_s": round(now - entry.confirmed_s, 1) if entry.confirmed_s > 0 else None,
        }
        for entry in agent.dataplane.pipeline.discovery.neighbours
    ] + [
        {
            "address": address_text(address),
            "host": mac_text(mac) if any(mac) else None,
            "vmac": "next hop" if hop else "external",
            "state": state.name,
            "kernel": agent.dataplane.outside.knows(address),
            "age_s": None,
        }
        for address, state, mac, hop in agent.dataplane.pipeline.border.externals.known()
        if any(mac) or state is not NeighbourState.FAILED
    ]


def _drops(agent: Agent, request: dict[str, Any]) -> list[dict[str, Any]]:
    guest_of = {nic.port: nic.guest for nic in agent.guests.all() if nic.port}
    rows: list[dict[str, Any]] = []
    counted = [("kernel", key, value) for key, value in agent.programs.drop_counters().items()]
    counted += [("agent", key, (v[0], v[1])) for key, v in agent.dataplane.counters.drops.items()]
    for where, (port, reason), (packets, octets) in counted:
        if int(reason) == DropReason.CONSUMED and not request.get("all"):
            continue
        rows.append(
            {
                "port": port,
                "guest": "(wire)" if port == PORT_WIRE else guest_of.get(port, "?"),
                "reason": reason_text(int(reason)),
                "packets": packets,
                "bytes": octets,
                "where": where,
            }
        )
    return sorted(rows, key=lambda row: (row["port"], row["reason"]))


def _moves(agent: Agent, _request: dict[str, Any]) -> list[dict[str, Any]]:
    return [record.row() for record in agent.moves.records]


def _leases(agent: Agent, _request: dict[str, Any]) -> list[dict[str, Any]]:
    leases = agent.dataplane.pipeline.dhcp.leases(agent.dataplane.now())
    guest_of = {nic.port: nic.guest for nic in agent.guests.all() if nic.port}
    return [
        {
            "guest": guest_of.get(lease.port, "?"),
            "nic": mac_text(lease.vmac),
            "address": address_text(lease.address),
            "remaining_s": round(lease.remaining_s),
            "hostname": lease.hostname,
        }
        for lease in leases
    ]


def _groups(agent: Agent, _request: dict[str, Any]) -> list[dict[str, Any]]:
    """Who is in which multicast group."""
    members = agent.dataplane.pipeline.groups.members
    return [
        {
            "guest": nic.guest,
            "nic": mac_text(nic.mac),
            "cell": nic.placement.subnet.cell,
            "subnet": nic.placement.subnet.name,
            "group": address_text(group),
        }
        for nic in agent.guests.all()
        for group in members.of(nic.port)
    ]


async def _reload(agent: Agent, _request: dict[str, Any]) -> dict[str, Any]:
    problem = await agent.reload_all()
    if problem:
        raise RequestError(problem)
    return {"cells": len(agent.configuration.cells)}
