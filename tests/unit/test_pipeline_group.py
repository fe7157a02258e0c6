"""Broadcast and multicast in the pipeline: who gets a copy, in what frame, and who never does."""

import pytest
from pipeline_hosts import (
    APP,
    BACK,
    FAR,
    FOREIGN,
    HOST_A,
    HOST_B,
    HOST_C,
    LAN,
    LOG,
    MOLE,
    MTU,
    OUTSIDE,
    PLAN,
    ROUTER,
    SPY,
    STRANGER,
    WEB,
    Net,
    frame_of,
    from_guest,
    ipv4,
    on_wire,
    udp,
)

from divhook.core.addressing import Address, Mac, SubnetId, group_mac
from divhook.core.endpoint import Endpoint, PortState
from divhook.core.outputs import Drop, ToGuest
from divhook.core.reasons import DropReason as R

LIMITED, ALL = b"\xff" * 4, b"\xff" * 6
GROUP = group_mac(LAN)
MDNS, VRRP = bytes((224, 0, 0, 251)), bytes((224, 0, 0, 18))
BROADCASTS = (LIMITED, PLAN.broadcast(LAN))
TO_ALL = {LIMITED: ALL, PLAN.broadcast(LAN): ALL, MDNS: b"\x01\0\x5e\0\0\xfb", VRRP: b"\x01\0\x5e\0\0\x12"}
"""Destinations that each endpoint of the subnet gets, and the MAC that they come with."""


@pytest.fixture
def net() -> Net:
    return Net()


def say(guest: Endpoint, packet: bytes, destination: Mac = ALL) -> bytes:
    return from_guest(guest, packet, destination)


def copy(guest: Endpoint, sender: Endpoint, packet: bytes, destination: Mac = ALL) -> ToGuest:
    return ToGuest(guest.port, frame_of(destination, sender.vmac, packet))


def wire(packet: bytes, host: Mac = HOST_B, group: Mac = GROUP) -> bytes:
    return frame_of(group, host, packet)


# --- from a guest


@pytest.mark.parametrize("destination", TO_ALL)
def test_one_copy_for_each_other_port_of_the_subnet_and_one_frame_on_the_wire(net, destination):
    for ttl in (1, 255):
        packet = udp(WEB.address, destination, ttl=ttl)
        assert net.sent(net.a, WEB, say(WEB, packet, TO_ALL[destination])) == [
            copy(APP, WEB, packet, TO_ALL[destination]),
            on_wire(HOST_A, GROUP, packet),
        ]
    assert net.log == []


def test_the_mac_of_a_copy_follows_from_the_address_not_from_the_frame(net):
    packet = udp(WEB.address, MDNS)
    [to_app, _] = net.sent(net.a, WEB, say(WEB, packet, ALL))
    assert to_app == copy(APP, WEB, packet, TO_ALL[MDNS])


def test_what_follows_the_packet_in_its_frame_goes_nowhere(net):
    packet = udp(WEB.address, LIMITED)
    out = net.sent(net.a, WEB, say(WEB, packet + b"secret"))
    assert out == [copy(APP, WEB, packet), on_wire(HOST_A, GROUP, packet)]


@pytest.mark.parametrize("state", [PortState.TENTATIVE, PortState.INCOMING, PortState.FENCED])
def test_a_port_that_is_not_active_gets_no_copy_and_sends_none(net, state):
    net.a.put(APP, state)
    packet = udp(WEB.address, LIMITED)
    assert net.sent(net.a, WEB, say(WEB, packet)) == [on_wire(HOST_A, GROUP, packet)]
    own = udp(APP.address, LIMITED)
    [dropped] = net.sent(net.a, APP, say(APP, own))
    assert isinstance(dropped, Drop)
    assert dropped.reason is R.PORT_NOT_ACTIVE


@pytest.mark.parametrize("subnet", [BACK, FOREIGN, SubnetId(3, 200), SubnetId(9, 9)])
def test_broadcast_of_another_subnet_is_not_forwarded(net, subnet):
    packet = udp(WEB.address, PLAN.broadcast(subnet))
    assert net.sent(net.a, WEB, say(WEB, packet)) == [Drop(R.DIRECTED_BROADCAST, WEB.port, packet)]


def test_a_broadcast_longer_than_the_subnets_packets_is_dropped_in_silence(net):
    fits, longer = (ipv4(WEB.address, LIMITED, bytes(MTU[LAN] - 20 + extra)) for extra in (0, 1))
    assert net.sent(net.a, WEB, say(WEB, fits))[-1] == on_wire(HOST_A, GROUP, fits)
    assert net.sent(net.a, WEB, say(WEB, longer)) == [Drop(R.FRAGMENTATION_NEEDED, WEB.port, longer)]


def test_a_broadcast_from_a_forged_address_is_dropped(net):
    for source in (APP.address, ROUTER[LAN], OUTSIDE, bytes(4)):
        [dropped] = net.sent(net.a, WEB, say(WEB, udp(source, LIMITED)))
        assert isinstance(dropped, Drop)
        assert dropped.reason is R.SPOOF_IPV4


def test_broadcast_to_a_subnet_that_was_removed_from_the_files_is_dropped(net):
    del net.a.pipeline.topology[LAN]
    packet = udp(WEB.address, LIMITED)
    assert net.sent(net.a, WEB, say(WEB, packet)) == [Drop(R.PORT_NOT_ACTIVE, WEB.port, packet)]


# --- from the wire


@pytest.mark.parametrize("destination", TO_ALL)
def test_every_active_port_of_the_subnet_gets_it_from_the_senders_vmac(net, destination):
    net.know(net.b, FAR, WEB.address)
    net.log.clear()
    packet = udp(FAR.address, destination, ttl=1)
    assert net.heard(net.a, wire(packet)) == [copy(g, FAR, packet, TO_ALL[destination]) for g in (WEB, APP)]
    assert net.log == []


def test_a_sender_that_is_not_known_is_asked_of_its_host_once_and_then_heard(net):
    packet = udp(FAR.address, LIMITED)
    assert net.heard(net.a, wire(packet)) == [copy(g, FAR, packet) for g in (WEB, APP)]
    assert [(m.type.name, m.source, m.destination) for m in net.log] == [
        ("PROBE", HOST_A, HOST_B),
        ("REPLY", HOST_B, HOST_A),
    ]


def heard(net: Net, address: Address, destination: Address, host: Mac = HOST_B, group: Mac = GROUP) -> list[R]:
    out = net.heard(net.a, wire(udp(address, destination), host, group))
    assert all(isinstance(o, Drop) for o in out), out
    return [o.reason for o in out if isinstance(o, Drop)]


@pytest.mark.parametrize("destination", TO_ALL)
def test_only_the_host_that_holds_the_source_is_believed(net, destination):
    net.know(net.b, FAR, WEB.address)
    assert heard(net, WEB.address, destination) == [R.SPOOF_LOCAL]
    assert heard(net, FAR.address, destination, HOST_C) == [R.UNKNOWN_HOST]
    assert heard(net, FAR.address, destination, STRANGER) == [R.UNKNOWN_HOST]
    assert heard(net, FAR.address, destination, HOST_A) == [R.UNKNOWN_HOST]
    assert heard(net, PLAN.address(LAN, 99), destination) == [R.UNVERIFIED]
    assert heard(net, ROUTER[LAN], destination) == [R.SPOOF_SOURCE]
    assert heard(net, OUTSIDE, destination) == ([R.EXTERNAL_UNSUPPORTED] if destination == BROADCASTS[1] else [])


def test_a_group_frame_reaches_the_subnet_of_its_source_alone_whatever_group_it_was_sent_to(net):
    net.know(net.b, MOLE, SPY.address)
    packet = udp(MOLE.address, LIMITED)
    assert net.heard(net.a, wire(packet)) == [copy(SPY, MOLE, packet)]
    assert heard(net, MOLE.address, PLAN.broadcast(LAN)) == [R.DIRECTED_BROADCAST]


def test_without_an_active_port_of_the_subnet_nobody_is_asked(net):
    net.a.put(SPY, PortState.INCOMING)
    assert heard(net, MOLE.address, LIMITED, group=group_mac(FOREIGN)) == [R.NO_MEMBER]
    assert net.log == []


def test_a_longer_packet_than_a_port_takes_is_dropped(net):
    net.know(net.b, LOG, WEB.address)
    packet = ipv4(LOG.address, LIMITED, bytes(MTU[BACK] - 19))
    [dropped] = net.heard(net.a, wire(packet, group=group_mac(BACK)))
    assert dropped == Drop(R.FRAGMENTATION_NEEDED, 0, packet)


def test_group_is_heard_while_a_port_of_its_subnet_is_not_fenced(net):
    net.a.put(SPY, PortState.FENCED)
    assert heard(net, MOLE.address, PLAN.broadcast(FOREIGN), group=group_mac(FOREIGN)) == [R.NOT_JOINED]


def test_ports_that_changed_while_the_source_was_asked_for_get_what_they_may_by_then(net):
    packet = udp(FAR.address, LIMITED)
    assert net.a.pipeline.from_wire(wire(packet), net.now) == []
    net.a.put(APP, PortState.FENCED)
    net.settle()
    assert net.a.take() == [copy(WEB, FAR, packet)]


def test_nobody_left_while_the_source_was_asked_for_is_a_drop(net):
    packet = udp(MOLE.address, LIMITED)
    assert net.a.pipeline.from_wire(wire(packet, group=group_mac(FOREIGN)), net.now) == []
    net.a.put(SPY, PortState.FENCED)
    net.settle()
    assert net.a.take() == [Drop(R.NO_MEMBER, 0, packet)]
