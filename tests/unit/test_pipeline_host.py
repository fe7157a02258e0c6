"""The pipeline between guests and their own host: what reaches its stack, what comes back, and what is refused."""

from ipaddress import IPv4Network

import pytest
from pipeline_hosts import APP, DB, HOST_A, MTU, PLAN, RMAC, WEB, Net
from toy_policies import ToyPolicies

from divhook.core.addressing import Address, parse_address
from divhook.core.endpoint import PORT_WIRE, Endpoint
from divhook.core.external import ExternalMap, Externals, OwnAddress
from divhook.core.outputs import Drop, Output, ToGuest, ToHost
from divhook.core.pipeline import Pipeline
from divhook.core.reasons import DropReason
from divhook.core.verdict import Direction
from divhook.core.wire import icmp
from divhook.core.wire.ethernet import ETHERTYPE_IPV4, Ethernet
from divhook.core.wire.icmp import IcmpEcho
from divhook.core.wire.ipv4 import Ipv4, Protocol

OWN, STRANGE = parse_address("192.0.2.10"), parse_address("192.0.2.11")
PING = (Direction.EGRESS, Protocol.ICMP, icmp.TYPE_ECHO << 8)
DNS = (Direction.EGRESS, Protocol.UDP, 53)


@pytest.fixture
def net() -> Net:
    """Host A, with nothing outside; WEB may ping it and ask it for names, DB nothing, and APP has no policy."""
    net = Net()
    own = [OwnAddress(OWN, IPv4Network("192.0.2.0/24"))]
    before = net.a.pipeline
    machine = Externals(HOST_A, ExternalMap(), own)
    pipeline = Pipeline(PLAN, HOST_A, net.a.ports, before.topology, before.discovery, machine)
    policies = ToyPolicies()
    policies.police(WEB, PING, DNS)
    policies.police(DB)
    pipeline.policies = policies
    net.a.pipeline = pipeline
    return net


def echo(source: Address, destination: Address, reply: bool = False, **fields: object) -> bytes:
    message = IcmpEcho(reply, 1, 1, bytes(8)).emit()
    return Ipv4(source=source, destination=destination, protocol=Protocol.ICMP, payload=message, **fields).emit()  # type: ignore[arg-type]


def datagram(source: Address, destination: Address, ports: tuple[int, int], size: int = 8) -> bytes:
    payload = b"".join(part.to_bytes(2, "big") for part in (*ports, 8 + size, 0)) + bytes(size)
    return Ipv4(source=source, destination=destination, protocol=Protocol.UDP, payload=payload).emit()


def guest_sends(net: Net, guest: Endpoint, packet: bytes) -> list[Output]:
    return net.a.pipeline.from_guest_ipv4(guest.port, packet, False, net.now)


def host_sends(net: Net, packet: bytes) -> list[Output]:
    return net.a.pipeline.from_host(packet, net.now)


def refused(reason: DropReason, port: int, packet: bytes) -> list[Output]:
    return [Drop(reason, port, packet)]


@pytest.mark.parametrize("ttl", [1, 64])
def test_a_permitted_packet_reaches_the_hosts_stack_as_it_is(net: Net, ttl: int) -> None:
    packet = echo(WEB.address or b"", OWN, ttl=ttl)
    assert guest_sends(net, WEB, packet) == [ToHost(packet)]


def test_replies_come_back_from_the_router_with_their_ttl(net: Net) -> None:
    guest_sends(net, WEB, echo(WEB.address or b"", OWN))
    reply = echo(OWN, WEB.address or b"", reply=True)
    frame = Ethernet(WEB.vmac, RMAC[WEB.subnet], ETHERTYPE_IPV4, reply).emit()
    assert host_sends(net, reply) == [ToGuest(WEB.port, frame)]


def test_without_a_rule_or_a_policy_it_is_no_service(net: Net) -> None:
    for guest in (DB, APP):
        packet = echo(guest.address or b"", OWN)
        assert guest_sends(net, guest, packet) == refused(DropReason.HOST_SERVICE, guest.port, packet)
    other = datagram(WEB.address or b"", OWN, (40_000, 22))
    assert guest_sends(net, WEB, other) == refused(DropReason.HOST_SERVICE, WEB.port, other)


def test_what_is_no_reply_needs_a_rule_of_its_own(net: Net) -> None:
    guest_sends(net, WEB, datagram(WEB.address or b"", OWN, (40_000, 53)))
    for packet in (echo(OWN, WEB.address or b""), datagram(OWN, WEB.address or b"", (53, 40_001))):
        assert host_sends(net, packet) == refused(DropReason.POLICY_DENIED, PORT_WIRE, packet)
    answer = datagram(OWN, WEB.address or b"", (53, 40_000))
    assert isinstance(host_sends(net, answer)[0], ToGuest)
    unasked = echo(OWN, WEB.address or b"", reply=True)
    assert host_sends(net, unasked) == refused(DropReason.FLOW_UNKNOWN, PORT_WIRE, unasked)


def test_what_the_host_would_forward_or_lease_or_send_to_nobody_ends(net: Net) -> None:
    forwarded = echo(STRANGE, WEB.address or b"")
    assert host_sends(net, forwarded) == refused(DropReason.HOST_FORWARDED, PORT_WIRE, forwarded)
    lease = datagram(OWN, WEB.address or b"", (67, 68))
    assert host_sends(net, lease) == refused(DropReason.ROGUE_DHCP, PORT_WIRE, lease)
    to_nobody = echo(OWN, PLAN.address(WEB.subnet, 200))
    assert host_sends(net, to_nobody) == refused(DropReason.NOT_LOCAL, PORT_WIRE, to_nobody)
    no_policy = echo(OWN, APP.address or b"")
    assert host_sends(net, no_policy) == refused(DropReason.POLICY_DENIED, PORT_WIRE, no_policy)
    long = datagram(OWN, WEB.address or b"", (53, 40_000), MTU[WEB.subnet])
    assert host_sends(net, long) == refused(DropReason.FRAGMENTATION_NEEDED, PORT_WIRE, long)
    cut = forwarded[:12]
    assert [each.reason for each in host_sends(net, cut) if isinstance(each, Drop)] == [DropReason.TRUNCATED]


def test_errors_about_flows_with_others_do_not_reach_the_host(net: Net) -> None:
    """A guest has a flow with another; an ICMP error about that, sent to the host, is part of no flow with the host."""
    mine, theirs = WEB.address or b"", APP.address or b""
    quoted = datagram(theirs, mine, (53, 40_000))
    guest_sends(net, WEB, datagram(mine, theirs, (40_000, 53)))
    error = Ipv4(source=mine, destination=OWN, protocol=Protocol.ICMP, payload=icmp_error(quoted)).emit()
    assert guest_sends(net, WEB, error) == refused(DropReason.FLOW_UNKNOWN, WEB.port, error)


def icmp_error(quoted: bytes) -> bytes:
    head = bytes((3, 3, 0, 0, 0, 0, 0, 0)) + quoted[:28]
    total = sum(int.from_bytes(head[at : at + 2], "big") for at in range(0, len(head), 2))
    total = (total & 0xFFFF) + (total >> 16)
    return head[:2] + (~((total & 0xFFFF) + (total >> 16)) & 0xFFFF).to_bytes(2, "big") + head[4:]
