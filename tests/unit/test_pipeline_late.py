"""Packets that come for a guest that has moved away, and what its new host makes of them."""

import pytest
from pipeline_hosts import APP, DB, FAR, HOST_A, HOST_B, HOST_C, WEB, Net, frame_of, ipv4

from divhook.core.endpoint import PORT_WIRE, PortState
from divhook.core.outputs import Drop, ToGuest, ToNewHost
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


def test_a_late_packet_goes_to_the_new_host_with_who_sent_it_and_is_checked_there(net: Net) -> None:
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
