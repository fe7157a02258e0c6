"""Broadcast and multicast where ports have a policy: every copy is asked about, and so is the frame for the wire."""

import pytest
from pipeline_hosts import APP, FAR, HOST_A, HOST_B, LAN, WEB, Net, frame_of, from_guest, ipv4, on_wire, udp
from test_pipeline_policy import FAR_LABELS, IN, OUT, PORT, UDP, net, policies

from divhook.core.addressing import group_mac
from divhook.core.endpoint import Endpoint
from divhook.core.identities import number_of
from divhook.core.outputs import Drop, ToGuest
from divhook.core.reasons import DropReason as R

__all__ = ["net"]

ALL = b"\xff" * 6
GROUP = group_mac(LAN)


def broadcast(guest: Endpoint, port: int = PORT) -> bytes:
    return udp(guest.address or b"", b"\xff" * 4, 4000, port)


def copy(guest: Endpoint, sender: Endpoint, packet: bytes) -> ToGuest:
    return ToGuest(guest.port, frame_of(ALL, sender.vmac, packet))


def test_a_receivers_policy_denies_it_its_own_copy_alone(net: Net) -> None:
    policies(net).police(APP, (IN, UDP, PORT))
    packet = broadcast(WEB)
    wire = on_wire(HOST_A, GROUP, packet)
    assert net.sent(net.a, WEB, from_guest(WEB, packet, ALL)) == [copy(APP, WEB, packet), wire]
    policies(net).police(APP)
    assert net.sent(net.a, WEB, from_guest(WEB, packet, ALL)) == [Drop(R.POLICY_DENIED, APP.port, packet), wire]


def test_a_senders_policy_denies_each_copy_and_the_wire(net: Net) -> None:
    policies(net).police(WEB, (OUT, UDP, PORT))
    packet = broadcast(WEB)
    assert net.sent(net.a, WEB, from_guest(WEB, packet, ALL)) == [
        copy(APP, WEB, packet),
        on_wire(HOST_A, GROUP, packet),
    ]
    other = broadcast(WEB, PORT + 1)
    assert net.sent(net.a, WEB, from_guest(WEB, other, ALL)) == [
        Drop(R.POLICY_DENIED, APP.port, other),
        Drop(R.POLICY_DENIED, WEB.port, other),
    ]


def test_from_the_wire_each_receiver_is_asked_and_an_unknown_sender_waited_for(net: Net) -> None:
    policies(net).police(APP)
    policies(net).police(WEB, (IN, UDP, PORT))
    policies(net).known = set()
    packet = broadcast(FAR)
    assert net.a.pipeline.from_wire(frame_of(GROUP, HOST_B, packet), net.now) == []
    policies(net).known = {number_of(FAR_LABELS)}
    net.settle()
    net.settle()
    assert net.a.take() == [copy(WEB, FAR, packet), Drop(R.POLICY_DENIED, APP.port, packet)]


@pytest.mark.parametrize(("more", "offset", "passes"), [(True, 0, True), (False, 1480, False)])
def test_a_fragment_that_shows_no_port_passes_no_rule_of_a_port(
    net: Net, more: bool, offset: int, passes: bool
) -> None:
    policies(net).police(APP, (IN, UDP, PORT))
    payload = b"\x0f\xa0" + PORT.to_bytes(2, "big") + bytes(20)
    packet = ipv4(WEB.address or b"", b"\xff" * 4, payload, protocol=UDP, more=more, offset=offset)
    [first, _] = net.sent(net.a, WEB, from_guest(WEB, packet, ALL))
    assert isinstance(first, ToGuest) is passes


def test_no_flow_is_opened_by_it(net: Net) -> None:
    policies(net).police(APP, (IN, UDP, PORT))
    policies(net).police(WEB, (OUT, UDP, PORT))
    net.sent(net.a, WEB, from_guest(WEB, broadcast(WEB), ALL))
    answer = udp(APP.address or b"", WEB.address or b"", PORT, 4000)
    assert net.sent(net.a, APP, from_guest(APP, answer)) == [Drop(R.POLICY_DENIED, APP.port, answer)]
