"""Packets that come for a guest that has moved away, and what its new host makes of them."""

import pytest
from pipeline_hosts import APP, DB, FAR, HOST_A, HOST_B, HOST_C, STRANGER, WEB, Net, frame_of, ipv4

from divhook.core.endpoint import PORT_WIRE, PortState
from divhook.core.outputs import Drop, ToGuest, ToNewHost, ToWire
from divhook.core.reasons import DropReason as R

LATE = ipv4(FAR.address, WEB.address)


@pytest.fixture
def net() -> Net:
    """WEB has moved from A to C with a hand-over; FAR on B still sends to A."""
    net = Net()
    net.know(net.b, FAR, WEB.address)
    net.a.pipeline.moved[WEB.address] = HOST_C
    net.a.ports.remove(WEB.port)
    net.c.start(WEB, net.now)
    net.a.discovery.moved_out(WEB.address, net.c.discovery.claim(WEB.address), net.now)
    return net


def test_a_late_packet_of_a_known_sender_goes_on_over_the_wire_and_is_taken_by_the_word_of_the_former_host(
    net: Net,
) -> None:
    net.a.discovery.adopt(net.b.discovery.claim(FAR.address), net.now)
    (sent,) = net.a.pipeline.from_wire(frame_of(HOST_A, HOST_B, LATE), net.now)
    assert sent == ToWire(frame_of(HOST_C, HOST_A, LATE))
    net.c.discovery.adopt(net.b.discovery.claim(FAR.address), net.now)
    given = [ToGuest(WEB.port, frame_of(WEB.vmac, FAR.vmac, LATE))]
    assert net.c.pipeline.from_wire(sent.frame, net.now) != given  # nobody has said that A sends on
    net.run(1)
    net.c.pipeline.former[WEB.address] = HOST_A
    assert net.c.pipeline.from_wire(sent.frame, net.now) == given
    assert net.c.pipeline.from_wire(frame_of(HOST_C, HOST_B, LATE), net.now) == given
    to_other = ipv4(FAR.address, APP.address)
    net.c.start(APP, net.now)
    assert net.c.pipeline.from_wire(frame_of(HOST_C, HOST_A, to_other), net.now) != [
        ToGuest(APP.port, frame_of(APP.vmac, FAR.vmac, to_other))
    ]


def test_a_former_host_may_not_speak_for_a_guest_that_is_here(net: Net) -> None:
    net.b.ports.remove(FAR.port)
    net.c.start(FAR, net.now)
    net.c.pipeline.former[WEB.address] = HOST_A
    assert net.c.pipeline.from_wire(frame_of(HOST_C, HOST_A, LATE), net.now) == [Drop(R.SPOOF_LOCAL, PORT_WIRE, LATE)]


def test_what_is_not_from_where_its_sender_is_known_to_be_is_handed_over_for_the_new_host_to_judge(net: Net) -> None:
    net.a.discovery.adopt(net.b.discovery.claim(FAR.address), net.now)
    for host in (HOST_C, STRANGER):  # C: what the new host sends would go round
        assert net.a.pipeline.from_wire(frame_of(HOST_A, host, LATE), net.now) == [ToNewHost(WEB.address, host, LATE)]
    net.a.pipeline.moved[WEB.address] = HOST_B  # it has moved on since: C takes nothing from A
    assert net.a.pipeline.from_wire(frame_of(HOST_A, HOST_B, LATE), net.now)[0] == ToNewHost(WEB.address, HOST_B, LATE)


def test_a_late_packet_of_an_unknown_sender_goes_to_the_new_host_with_who_sent_it_and_is_checked_there(
    net: Net,
) -> None:
    net.a.discovery.neighbours.remove(FAR.address)
    late = net.a.pipeline.from_wire(frame_of(HOST_A, HOST_B, LATE), net.now)
    assert late == [ToNewHost(WEB.address, HOST_B, LATE)]
    net.c.discovery.adopt(net.b.discovery.claim(FAR.address), net.now)
    assert net.c.pipeline.from_former(HOST_B, LATE, net.now) == [ToGuest(WEB.port, frame_of(WEB.vmac, FAR.vmac, LATE))]
    assert net.c.pipeline.from_former(HOST_A, LATE, net.now) == []  # held: A is asked, and does not have FAR


def test_what_a_guest_of_the_new_host_sent_before_is_given_to_the_one_that_came(net: Net) -> None:
    net.b.ports.remove(FAR.port)
    net.c.start(FAR, net.now)
    assert net.a.pipeline.from_wire(frame_of(HOST_A, HOST_C, LATE), net.now) == [ToNewHost(WEB.address, HOST_C, LATE)]
    assert net.c.pipeline.from_former(HOST_C, LATE, net.now) == [ToGuest(WEB.port, frame_of(WEB.vmac, FAR.vmac, LATE))]
    net.c.put(FAR, PortState.INCOMING)
    assert net.c.pipeline.from_former(HOST_C, LATE, net.now) == [Drop(R.PORT_NOT_ACTIVE, PORT_WIRE, LATE)]


def test_it_is_never_sent_on_and_a_forged_one_not_even_given(net: Net) -> None:
    """Neither of the two is here; or it bears our own pmac on the wire."""
    assert net.c.pipeline.from_former(HOST_C, LATE, net.now) == [Drop(R.MOVE_RETURNS, PORT_WIRE, LATE)]
    assert net.a.pipeline.from_wire(frame_of(HOST_A, HOST_A, LATE), net.now) == [Drop(R.MOVE_RETURNS, PORT_WIRE, LATE)]
    short = LATE[:12]
    (drop,) = net.c.pipeline.from_former(HOST_C, short, net.now)
    assert isinstance(drop, Drop)


def test_cells_and_policies_hold_for_it(net: Net) -> None:
    net.c.start(DB, net.now)
    routed = ipv4(DB.address, WEB.address)
    (given,) = net.c.pipeline.from_former(HOST_C, routed, net.now)
    assert isinstance(given, ToGuest)
    foreign = ipv4(APP.address, WEB.address)
    assert net.c.pipeline.from_former(HOST_C, foreign, net.now) == [Drop(R.MOVE_RETURNS, PORT_WIRE, foreign)]
