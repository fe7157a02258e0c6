"""Policies in the pipeline: who is asked, when, and what waits for it."""

from dataclasses import replace

import pytest
from pipeline_hosts import (
    APP,
    DB,
    FAR,
    FOREIGN,
    HOST_A,
    HOST_B,
    MOLE,
    ROUTER,
    SPY,
    WEB,
    Net,
    from_guest,
    in_port,
    on_wire,
    udp,
)
from toy_policies import ToyPolicies

from divhook.core.addressing import ZERO_ADDRESS
from divhook.core.endpoint import PORT_WIRE, Endpoint
from divhook.core.identities import number_of
from divhook.core.outputs import Drop
from divhook.core.reasons import DropReason
from divhook.core.verdict import Direction
from divhook.core.wire.discovery import MessageType

IN, OUT, UDP = Direction.INGRESS, Direction.EGRESS, 17
FAR_LABELS = b"far's labels"
PORT = 2000


def to_port(guest: Endpoint, other: Endpoint) -> bytes:
    """UDP to PORT of the other."""
    assert guest.address is not None
    assert other.address is not None
    return udp(guest.address, other.address, 4000, PORT)


@pytest.fixture
def net() -> Net:
    net = Net()
    for host in (net.a, net.b):
        host.pipeline.policies = ToyPolicies()
    far = replace(FAR, identity=number_of(FAR_LABELS))
    net.b.ports.put(far)
    net.b.discovery.activate(far.address, far.vmac, far.port, far.identity, None, net.now)
    net.b.pipeline.identities.set_own({far.identity: FAR_LABELS})
    net.run(1)
    net.a.take()
    net.b.take()
    net.log.clear()
    return net


def policies(net: Net, host: str = "a") -> ToyPolicies:
    found = getattr(net, host).pipeline.policies
    assert isinstance(found, ToyPolicies)
    return found


def test_between_two_guests_of_a_host_both_sides_are_asked(net: Net) -> None:
    packet = to_port(WEB, APP)
    policies(net).police(WEB)
    assert net.sent(net.a, WEB, from_guest(WEB, packet)) == [Drop(DropReason.POLICY_DENIED, WEB.port, packet)]
    policies(net).police(WEB, (OUT, UDP, PORT))
    policies(net).police(APP)
    assert net.sent(net.a, WEB, from_guest(WEB, packet)) == [Drop(DropReason.POLICY_DENIED, WEB.port, packet)]
    policies(net).police(APP, (IN, UDP, PORT))
    assert net.sent(net.a, WEB, from_guest(WEB, packet)) == [in_port(APP, WEB.vmac, packet)]


def test_a_frame_waits_for_the_identity_of_its_destination(net: Net) -> None:
    packet = to_port(WEB, FAR)
    policies(net).police(WEB, (OUT, UDP, PORT))
    policies(net).known = set()
    net.know(net.a, WEB, FAR.address)
    assert net.a.pipeline.from_guest(WEB.port, from_guest(WEB, packet), net.now) == []
    policies(net).known = {number_of(FAR_LABELS)}
    net.settle()
    assert net.a.take() == [on_wire(HOST_A, HOST_B, packet)]
    assert [m.type for m in net.log][-2:] == [MessageType.IDENTITY, MessageType.IDENTITY_REPLY]
    assert [told.encoding for told in net.a.pipeline.learned] == [FAR_LABELS]


def test_a_frame_from_the_wire_waits_for_the_identity_of_its_source(net: Net) -> None:
    packet = to_port(FAR, WEB)
    policies(net).police(WEB, (IN, UDP, PORT))
    policies(net).known = set()
    net.know(net.b, FAR, WEB.address)
    assert net.a.pipeline.from_wire(on_wire(HOST_B, HOST_A, packet).frame, net.now) == []
    policies(net).known = {number_of(FAR_LABELS)}
    net.settle()
    assert net.a.take() == [in_port(WEB, FAR.vmac, packet)]


@pytest.mark.parametrize("way", ["from the guest", "from the wire"])
def test_a_host_that_does_not_say_who_its_guest_is_costs_the_frame(net: Net, way: str) -> None:
    policies(net).known = set()
    net.b.pipeline.identities.set_own({})
    net.b.pipeline.identities._known.clear()
    policies(net).police(WEB)
    net.know(net.b, FAR, WEB.address)
    if way == "from the guest":
        packet, port = to_port(WEB, FAR), WEB.port
        assert net.sent(net.a, WEB, from_guest(WEB, packet)) == []
    else:
        packet, port = to_port(FAR, WEB), PORT_WIRE
        assert net.heard(net.a, on_wire(HOST_B, HOST_A, packet).frame) == []
    net.run(2)
    assert net.a.take() == [Drop(DropReason.IDENTITY_UNKNOWN, port, packet)]


def test_a_neighbour_that_is_forgotten_while_its_identity_is_asked_for(net: Net) -> None:
    packet = to_port(WEB, FAR)
    policies(net).police(WEB, (OUT, UDP, PORT))
    policies(net).known = set()
    assert net.a.pipeline.from_guest(WEB.port, from_guest(WEB, packet), net.now) == []
    for message in net.a.discovery.messages_to_send():
        net.b.discovery.receive(message, net.now)
    for message in net.b.discovery.messages_to_send():
        net.a.discovery.receive(message, net.now)
    net.a.collect(net.now)
    net.a.discovery._resolver.forget(FAR.address)
    net.settle()
    assert net.a.take() == [Drop(DropReason.NO_SUCH_ENDPOINT, WEB.port, packet)]


def test_an_unknown_identity_on_the_own_host_is_no_pass(net: Net) -> None:
    packet = to_port(WEB, APP)
    policies(net).police(WEB, (OUT, UDP, PORT))
    policies(net).known = {1}
    assert net.sent(net.a, WEB, from_guest(WEB, packet)) == [Drop(DropReason.IDENTITY_UNKNOWN, WEB.port, packet)]


def test_what_no_rule_can_allow_between_cells_is_not_even_asked_for(net: Net) -> None:
    packet = to_port(WEB, MOLE)
    policies(net).police(WEB, (OUT, UDP, PORT))
    assert net.sent(net.a, WEB, from_guest(WEB, packet)) == [Drop(DropReason.CELL_DENIED, WEB.port, packet)]
    assert net.log == []
    policies(net).talks = {(3, 5)}
    hop = udp(WEB.address, MOLE.address, 4000, PORT, ttl=63)
    assert net.sent(net.a, WEB, from_guest(WEB, packet)) == [on_wire(HOST_A, HOST_B, hop)]
    (refused,) = net.heard(net.b, on_wire(HOST_A, HOST_B, hop).frame)  # the other cell has no policy there
    assert refused == Drop(DropReason.CELL_DENIED, PORT_WIRE, hop)
    policies(net, "b").police(MOLE, (IN, UDP, PORT))
    (passed,) = net.heard(net.b, on_wire(HOST_A, HOST_B, hop).frame)
    assert passed.port == MOLE.port


def test_between_cells_of_one_host_the_other_must_have_a_policy_too(net: Net) -> None:
    packet = to_port(WEB, SPY)
    policies(net).police(WEB, (OUT, UDP, PORT))
    policies(net).talks = {(3, 5)}
    assert net.sent(net.a, WEB, from_guest(WEB, packet)) == [Drop(DropReason.CELL_DENIED, WEB.port, packet)]
    policies(net).police(SPY, (IN, UDP, PORT))
    (passed,) = net.sent(net.a, WEB, from_guest(WEB, packet))
    assert passed.port == SPY.port


def test_another_cells_router_serves_nobody_elses_guests(net: Net) -> None:
    policies(net).police(WEB)
    policies(net).talks = {(3, 5)}
    packet = udp(WEB.address, ROUTER[FOREIGN])
    assert net.sent(net.a, WEB, from_guest(WEB, packet)) == [Drop(DropReason.CELL_DENIED, WEB.port, packet)]


def test_errors_of_a_router_are_asked_about_by_whom_they_are_about(net: Net) -> None:
    pipeline = net.a.pipeline
    net.know(net.a, WEB, FAR.address)
    assert pipeline._identity_of(DB.address) == DB.identity
    assert pipeline._identity_of(FAR.address) == number_of(FAR_LABELS)
    assert pipeline._identity_of(ZERO_ADDRESS) == 0
