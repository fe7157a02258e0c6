"""divhook as a contender: the real agents, on the same wire with the same guests (divhook.lab.bare)."""

import sys
from collections.abc import Sequence
from pathlib import Path

from bench.plain import address
from divhook.lab.bare import BareLab, BareSpec
from divhook.lab.errors import LabError
from divhook.lab.host import package_environment

CELLS = Path(__file__).parent / "cells"
LIMITS = "limits: {divert_pps: 1000000, divert_burst: 100000, miss_pps_port: 1000, miss_pps_host: 1000}\n"
"""What is measured is what the slow path bears, not where it is throttled."""
PLAN = "addresses: {supernet: 10.0.0.0/8, cell_bits: 4, subnet_bits: 12, host_bits: 8}\n"
"""A cell of 10.16.0.0/12 has room for 100,000 endpoints."""


POLICY = """\
cell: bench
defaults: {ingress: deny, egress: deny}
ingress:
  - {from: {subnet: web}, to: {subnet: web}, allow: [tcp, udp, icmp]}
  - {from: {subnet: web}, to: {subnet: db}, allow: [tcp, udp, icmp]}
  - {from: {subnet: db}, to: {subnet: web}, allow: [tcp, udp, icmp]}
egress:
  - {from: {subnet: web}, to: {subnet: web}, allow: [tcp, udp, icmp]}
  - {from: {subnet: web}, to: {subnet: db}, allow: [tcp, udp, icmp]}
  - {from: {subnet: db}, to: {subnet: web}, allow: [tcp, udp, icmp]}
"""
"""Nothing passes but by a rule, in either direction; every flow is kept at both of its ends."""


class DivhookLab(BareLab):
    """Contender divhook (fastpath on), divhook-slow (off) or divhook-policy (on, with POLICY in force)."""

    def __init__(self, directory: Path, guests: Sequence[BareSpec], fastpath: bool, policy: bool = False) -> None:
        super().__init__(
            directory, guests, cells=CELLS, settings=f"{LIMITS}{PLAN}fastpath: {'on' if fastpath else 'off'}\n"
        )
        self.detail = f"fastpath: {'on' if fastpath else 'off'}{', stateful policy, default deny' if policy else ''}"
        self._policy = policy

    def _up(self) -> None:
        super()._up()
        for guest in self.bare.values():
            guest.configure()
        if self._policy:
            for host in self.hosts.values():
                directory = host.root / "etc-divhook" / "policies"
                directory.mkdir(exist_ok=True)
                (directory / "bench.yaml").write_text(POLICY)
                host.ask_agent({"op": "policy apply"})

    def forwarders(self) -> list[int]:
        """The agents' pids."""
        return [pid for host in self.hosts.values() if (pid := host.agent_pid) is not None]

    def know_endpoints(self, count: int) -> None:
        """Let the kernel of both hosts know so many, all at the guest web. Raises LabError."""
        self._fill("endpoints", count, address("web"))

    def have_rules(self, count: int) -> None:
        """Let the kernel of both hosts have entries of so many rules. Raises LabError."""
        self._fill("rules", count)

    def _fill(self, what: str, count: int, *arguments: str) -> None:
        environment = [f"{name}={value}" for name, value in package_environment().items()]
        command = ["env", *environment, sys.executable, "-m", f"bench.{what}", str(count), *arguments]
        for host in self.hosts.values():
            known = int(host.exec(*command).stdout)
            if known < count:
                raise LabError(f"the kernel of host {host.name} has {known} {what}, not {count}")
