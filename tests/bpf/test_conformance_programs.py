"""Policy conformance by the programs: the maps of two hosts, as the agent's own enforcement writes them; test-runs."""

import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
from bpf_bench import host_entry, port_entry, run
from bpf_host import bpffs_at, loaded_programs
from policy_conformance import CAST, Group, Guest, Step, groups, write_policies

from divhook.abi.entries import LocalEndpoint, RemoteEndpoint
from divhook.adapters.bpf import DROP, FROM_GUEST, FROM_WIRE, REDIRECT, Programs
from divhook.agent.enforcement import Enforcement, Standing
from divhook.agent.flow_log import FlowLog
from divhook.agent.nic import Nic
from divhook.config.configuration import Configuration
from divhook.core.addressing import AddressPlan, parse_mac
from divhook.core.endpoint import Endpoint
from divhook.core.identities import IdentityExchange
from divhook.core.verdict import Direction, relation_of
from divhook.core.wire.discovery import Claim

PLAN = AddressPlan()
PMACS = {"A": parse_mac("02:a0:0a:0b:0c:0d"), "B": parse_mac("02:b0:1a:1b:1c:1d")}
IPV4 = b"\x08\x00"


def tap(guest: Guest) -> int:
    return socket.if_nametoindex(f"c-{guest.name}")


class Host:
    """The programs of one host, and its enforcement."""

    def __init__(self, name: str, programs: Programs, directory: Path, configuration: Configuration) -> None:
        self.name = name
        self.pmac = PMACS[name]
        self.programs = programs
        programs.configure(host_entry(pmac=self.pmac, fastpath=True))
        self.exchange = IdentityExchange(self.pmac)
        self.enforcement = Enforcement(directory, directory / name, PLAN, programs, self.exchange, FlowLog())
        self.enforcement.start(configuration)
        self.guests = {guest.name: guest for guest in CAST.values() if guest.host == name}
        self.standings = {guest.name: self._start(guest, configuration) for guest in self.guests.values()}

    def _start(self, guest: Guest, configuration: Configuration) -> Standing:
        nic = Nic(guest.name, guest.name, guest.placement(configuration), guest.vmac, True, guest.address)
        nic.port, nic.labels, nic.ifindex = guest.number, guest.labels, tap(guest)
        standing = self.enforcement.admit(nic, 0.0, live=True)
        entry = port_entry(
            port_id=guest.number,
            vmac=guest.vmac,
            address=guest.address,
            router=PLAN.router(nic.placement.id),
            tracked=standing.policed,
            policed=standing.policed,
        )
        self.programs.set_port(nic.ifindex, entry)
        kernel = LocalEndpoint(
            guest.vmac,
            nic.ifindex,
            guest.number,
            1500,
            tracked=standing.policed,
            policed=standing.policed,
            identity=standing.identity,
        )
        self.programs.set_endpoint(guest.address, kernel)
        return standing

    def meet(self, other: "Host") -> None:
        """Know the other's guests, as if one frame of each had come and been decided by the agent."""
        for guest in other.guests.values():
            number = other.standings[guest.name].identity
            if other is not self:
                claim = Claim(guest.address, guest.vmac, other.pmac, 5, 5, guest.number, number)
                self.programs.set_endpoint(guest.address, RemoteEndpoint(claim, 1500))
                encoding = other.exchange.get(number)
                assert encoding is not None
                self.exchange.know(number, encoding)
            for local in self.guests.values():
                self._ask(local, guest, number)

    def _ask(self, local: Guest, remote: Guest, number: int) -> None:
        subnet = PLAN.locate(local.address)
        assert subnet is not None
        end = Endpoint(
            local.number, subnet, local.vmac, local.address, "", "", identity=self.standings[local.name].identity
        )
        relation = relation_of(PLAN, local.address, remote.address)
        for direction in Direction:
            assert self.enforcement.decide(direction, end, relation, number, 6, 1) is not None

    def close(self) -> None:
        for guest in CAST.values():
            self.programs.remove_endpoint(guest.address)
        for guest in self.guests.values():
            self.programs.remove_port(tap(guest))
            self.enforcement.leave(guest.number)
            self.programs.forget_port_counters(guest.number)
        assert not self.programs.policy.ports()
        assert not list(self.programs.policy.keys("policy_entries"))


class World:
    """Both hosts."""

    def __init__(self, loaded: dict[str, Programs], directory: Path, policies: dict[str, str]) -> None:
        configuration = write_policies(directory, policies)
        self.hosts = {name: Host(name, programs, directory, configuration) for name, programs in loaded.items()}
        for host in self.hosts.values():
            for other in self.hosts.values():
                host.meet(other)

    def arrives(self, step: Step) -> bool:
        """One packet through the programs of the one host, and where it went to the wire, of the other."""
        sender, receiver = self.hosts[step.source.host], self.hosts[step.destination.host]
        frame = receiver.pmac + step.source.vmac + IPV4 + step.packet
        ran = sender.programs.test_run(FROM_GUEST, frame, tap(step.source))
        if ran.verdict == REDIRECT and sender is not receiver:
            assert ran.frame[:12] == receiver.pmac + sender.pmac
            ran = receiver.programs.test_run(FROM_WIRE, ran.frame, socket.if_nametoindex("uplink0"))
        assert ran.verdict in (REDIRECT, DROP), f"{step.text}: the programs left it to the agent"
        assert ran.verdict == DROP or ran.frame[:6] == step.destination.vmac
        return ran.verdict == REDIRECT

    def close(self) -> None:
        for host in self.hosts.values():
            host.close()


@pytest.fixture(scope="module")
def programs(namespace: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Programs]]:
    for name in CAST:
        run(f"ip link add c-{name} type veth peer name d-{name} && ip link set c-{name} up")
    with (
        bpffs_at(tmp_path_factory.mktemp("a")) as a,
        bpffs_at(tmp_path_factory.mktemp("b")) as b,
        loaded_programs(a) as at_a,
        loaded_programs(b) as at_b,
    ):
        yield {"A": at_a, "B": at_b}
    for name in CAST:
        run(f"ip link del c-{name}")


@pytest.mark.conformance
@pytest.mark.parametrize("group", groups(), ids=lambda group: group.cases[0][0])
def test_the_programs_decide_as_the_documentation_says(
    group: Group, programs: dict[str, Programs], tmp_path: Path
) -> None:
    world = World(programs, tmp_path, dict(group.policies))
    try:
        wrong = [f"{name}: {s.text}" for name, steps in group.cases for s in steps if world.arrives(s) != s.passes]
    finally:
        world.close()
    assert not wrong, "\n".join(wrong)
