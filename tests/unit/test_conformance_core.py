"""Policy conformance by the core: two pipelines, the agent's own enforcement over tables in memory."""

import random
from pathlib import Path
from types import SimpleNamespace

import pytest
from agent_fakes import FakeFlowTable, FakePolicyMaps
from policy_conformance import CAST, Guest, Step, groups, write_policies

from divhook.agent.enforcement import Enforcement
from divhook.agent.flow_log import FlowLog
from divhook.agent.nic import Nic
from divhook.config.configuration import Configuration
from divhook.core.addressing import AddressPlan, Mac, parse_mac
from divhook.core.dhcp import SubnetService
from divhook.core.discovery import Discovery
from divhook.core.endpoint import Endpoint, PortState, PortTable
from divhook.core.outputs import Output, ToGuest, ToWire
from divhook.core.pipeline import Pipeline
from divhook.core.router import SubnetFacts, Topology

PLAN = AddressPlan()
PMACS = {"A": parse_mac("02:a0:0a:0b:0c:0d"), "B": parse_mac("02:b0:1a:1b:1c:1d")}
WALL_US = 1_700_000_000_000_000
NOW = 1000.0


class Tables:
    """Flow tables of ports in memory; their clock stands still."""

    ticks_per_s = 250

    def now_s(self) -> float:
        return NOW

    def install(self, _port: int) -> FakeFlowTable:
        return FakeFlowTable(4096)

    def remove(self, _port: int) -> None:
        """Its owner lets go of it."""


class Host:
    """One host with its guests."""

    def __init__(self, name: str, directory: Path, configuration: Configuration) -> None:
        self.name = name
        self.pmac = PMACS[name]
        self.discovery = Discovery(self.pmac, PLAN, random.Random(name), WALL_US)
        self.ports = PortTable()
        topology: Topology = {
            subnet: SubnetFacts(1500, SubnetService(PLAN.router(subnet), PLAN.mask(), PLAN.broadcast(subnet)))
            for subnet in configuration.subnets
        }
        self.pipeline = Pipeline(PLAN, self.pmac, self.ports, topology, self.discovery)
        programs = SimpleNamespace(policy=FakePolicyMaps(), flows=Tables())
        exchange = self.pipeline.identities
        self.enforcement = Enforcement(directory, directory / name, PLAN, programs, exchange, FlowLog())  # type: ignore[arg-type]
        self.enforcement.start(configuration)
        self.pipeline.policies = self.enforcement
        self.discovery.ready(NOW)
        for guest in CAST.values():
            if guest.host == name:
                self._start(guest, configuration)

    def _start(self, guest: Guest, configuration: Configuration) -> None:
        nic = Nic(guest.name, guest.name, guest.placement(configuration), guest.vmac, True, guest.address)
        nic.port, nic.labels = guest.number, guest.labels
        standing = self.enforcement.admit(nic, NOW, live=True)
        self.ports.put(
            Endpoint(
                guest.number,
                nic.placement.id,
                guest.vmac,
                guest.address,
                guest.name,
                guest.name,
                state=PortState.ACTIVE,
                identity=standing.identity,
            )
        )
        self.discovery.activate(guest.address, guest.vmac, guest.number, standing.identity, None, NOW)

    def meet(self, other: "Host") -> None:
        """Know the other's guests."""
        for record in other.discovery.records():
            self.discovery.adopt(record.claim, NOW)
            encoding = other.pipeline.identities.get(record.claim.identity)
            assert encoding is not None
            self.pipeline.identities.know(record.claim.identity, encoding)


class World:
    """Both hosts."""

    def __init__(self, directory: Path, policies: dict[str, str]) -> None:
        configuration = write_policies(directory, policies)
        self.hosts = {name: Host(name, directory, configuration) for name in PMACS}
        self.hosts["A"].meet(self.hosts["B"])
        self.hosts["B"].meet(self.hosts["A"])

    def arrives(self, step: Step) -> bool:
        """Send one packet."""
        sender = self.hosts[step.source.host]
        out = sender.pipeline.from_guest_ipv4(step.source.number, step.packet, False, NOW)
        if step.source.host != step.destination.host:
            frames = [each.frame for each in out if isinstance(each, ToWire)]
            assert all(frame[:6] == PMACS[step.destination.host] for frame in frames)
            out = [each for frame in frames for each in self._by_wire(sender.pmac, frame, step)]
        return [each.port for each in out if isinstance(each, ToGuest)] == [step.destination.number]

    def _by_wire(self, host: Mac, frame: bytes, step: Step) -> list[Output]:
        return self.hosts[step.destination.host].pipeline.from_wire_ipv4(host, frame[14:], False, NOW)


@pytest.mark.conformance
@pytest.mark.parametrize("group", groups(), ids=lambda group: group.cases[0][0])
def test_the_core_decides_as_the_documentation_says(group, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    world = World(tmp_path, group.policies)
    wrong = [
        f"{name}: {step.text}" for name, steps in group.cases for step in steps if world.arrives(step) != step.passes
    ]
    assert not wrong, "\n".join(wrong)
