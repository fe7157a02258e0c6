"""Policy conformance on the wire: raw packets between guests of two hosts with real agents."""

import select
import socket
import time
from collections.abc import Iterator, Mapping

import pytest
from namespaces import entered
from policy_bench import apply_policies
from policy_conformance import CAST, Group, Step, groups

from divhook.core.addressing import address_text, parse_mac, rmac
from divhook.lab.bare import NIC, BareLab, BareSpec

ETH_P_IP = 0x0800
ARRIVES_S = 2.0
"""What passes is there after some milliseconds; what comes later is counted as lost."""
LEFT_OUT_S = 0.02
"""What is denied is waited for so long; all that came later is found at the end of the group."""
ANNOUNCED_S = 0.1
"""New identities are with the other host by then."""


class Wire:
    """A packet socket in each guest."""

    def __init__(self, lab: BareLab) -> None:
        self.lab = lab
        self.sockets: dict[str, socket.socket] = {}
        self.heard: dict[str, set[object]] = {name: set() for name in CAST}
        for name, guest in lab.bare.items():
            with entered(guest.namespace.file("net")):
                self.sockets[name] = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(ETH_P_IP))
                self.sockets[name].bind((NIC, ETH_P_IP))
                self.sockets[name].setblocking(False)

    def close(self) -> None:
        for each in self.sockets.values():
            each.close()

    def arrives(self, step: Step) -> bool:
        """Send one packet, and wait for it as long as it should take."""
        spec, source = self.lab.bare[step.source.name].spec, step.source
        router = rmac(source.subnet_id)
        self.sockets[source.name].send(router + parse_mac(spec.mac) + ETH_P_IP.to_bytes(2, "big") + step.packet)
        end = time.monotonic() + (ARRIVES_S if step.passes else LEFT_OUT_S)
        while not self.has(step) and (left := end - time.monotonic()) > 0:
            select.select([self.sockets[step.destination.name]], [], [], left)
            self.drain(step.destination.name)
        return self.has(step)

    def has(self, step: Step) -> bool:
        """Whether it has arrived."""
        return step.mark in self.heard[step.destination.name]

    def drain(self, name: str) -> None:
        """Read what has arrived."""
        while True:
            try:
                frame, origin = self.sockets[name].recvfrom(2048)
            except BlockingIOError:
                return
            if origin[2] != socket.PACKET_OUTGOING and not frame[0] & 1:  # the querier's is not ours
                packet = frame[14:]
                assert frame[:6] == parse_mac(self.lab.bare[name].spec.mac), frame.hex()
                self.heard[name].add(Step.mark_of(packet))


@pytest.fixture(scope="module")
def wire(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Wire]:
    specs = [
        BareSpec(
            guest.name,
            guest.host,
            guest.cell,
            guest.subnet,
            address_text(guest.address),
            labels=",".join(f"{key}={value}" for key, value in guest.labels) or None,
        )
        for guest in CAST.values()
    ]
    with BareLab(tmp_path_factory.mktemp("conformance") / "lab", specs) as lab:
        made = Wire(lab)
        try:
            yield made
        finally:
            made.close()


def put_in_force(lab: BareLab, policies: Mapping[str, str]) -> None:
    """From none at all: flows of a group before are gone, and guests are found talking."""
    apply_policies(lab, {})
    apply_policies(lab, policies)
    time.sleep(ANNOUNCED_S)


@pytest.mark.conformance
def test_packets_arrive_as_the_documentation_says(wire: Wire) -> None:
    wrong: list[str] = []
    begin = time.monotonic()
    steps = 0
    for group in groups():
        put_in_force(wire.lab, group.policies)
        wrong += _wrong_of(wire, group)
        steps += sum(len(s) for _, s in group.cases)
    print(f"\n    {steps} packets of {sum(len(g.cases) for g in groups())} cases in {time.monotonic() - begin:.0f} s")
    assert not wrong, "\n".join(wrong)


def _wrong_of(wire: Wire, group: Group) -> list[str]:
    wrong = [f"{name}: {s.text}" for name, steps in group.cases for s in steps if wire.arrives(s) != s.passes]
    for name in CAST:
        wire.drain(name)
    for name, steps in group.cases:
        sent = {s.mark for s in steps if s.passes}  # a fragment may be sent twice: it may not pass, then it may
        late = [s for s in steps if not s.passes and s.mark not in sent and wire.has(s)]
        wrong += [f"{name}: {s.text}: came late" for s in late if f"{name}: {s.text}" not in wrong]
    return wrong
