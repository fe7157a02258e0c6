"""What passes at a port with a policy: default deny, by flow, by epoch, by who the ends are."""

from dataclasses import replace

import pytest
from flow_packets import (
    ACK,
    BESIDE,
    FAR,
    FIN,
    ICMP,
    OTHER_SUBNET,
    ROUTER,
    RST,
    SYN,
    TCP,
    TIME_EXCEEDED,
    UDP,
    WEB,
    echo,
    icmp_error,
    ip,
    message,
    tcp,
    udp,
)
from toy_policies import ToyPolicies

from divhook.core.addressing import AddressPlan, SubnetId
from divhook.core.endpoint import Endpoint, PortState
from divhook.core.flow import Flow, FlowTable, TcpState
from divhook.core.guard import Guard, Unsure
from divhook.core.reasons import DropReason
from divhook.core.verdict import Decision, Direction, NoPolicies, Relation, relation_of
from divhook.core.wire.ipv4 import header_untrusted

PLAN = AddressPlan()
ENDPOINT = Endpoint(5, SubnetId(21, 37), bytes(6), WEB, "web", "uuid", state=PortState.ACTIVE, identity=100)
IDENTITY = {FAR: 7, BESIDE: 8, OTHER_SUBNET: 9}
NOW = 50.0
IN, OUT = Direction.INGRESS, Direction.EGRESS
OUTSIDE = bytes((192, 0, 2, 1))
DENIED, UNKNOWN = DropReason.POLICY_DENIED, DropReason.FLOW_UNKNOWN


class Port:
    """A guarded port and its policies."""

    def __init__(self) -> None:
        self.policies = ToyPolicies()
        self.guard = Guard(PLAN, self.policies, lambda address: IDENTITY.get(address, 0))
        self.identities = dict(IDENTITY)
        self.now = NOW

    def says(self, packet: bytes) -> DropReason | Unsure | None:
        header = header_untrusted(packet)
        outward = header.source == WEB
        remote = header.destination if outward else header.source
        return self.guard.check(ENDPOINT, header, packet, outward, self.identities.get(remote, 0), self.now)

    @property
    def flows(self) -> list[Flow]:
        table = self.policies.ports[ENDPOINT.port].flows
        assert isinstance(table, FlowTable)
        return [entry for _, entry in table.items() if isinstance(entry, Flow)]


@pytest.fixture
def port() -> Port:
    return Port()


def test_a_port_without_policy_passes_everything(port: Port) -> None:
    assert port.says(tcp(FAR, WEB, 9, 9, ACK)) is None
    assert not port.policies.asked


def test_default_deny_in_both_directions_with_reason_and_event(port: Port) -> None:
    port.policies.police(ENDPOINT)
    assert port.says(tcp(FAR, WEB, 4000, 80, SYN)) is DENIED
    assert port.says(udp(WEB, FAR, 4000, 53)) is DENIED
    assert port.policies.asked == [(IN, Relation.SUBNET, 7), (OUT, Relation.SUBNET, 7)]
    first, second = port.policies.events
    assert (first.outward, first.source, first.destination) == (False, FAR, WEB)
    assert (first.protocol, first.source_port, first.destination_port) == (TCP, 4000, 80)
    assert (first.reason, first.local_identity, first.remote_identity) == (DENIED, 100, 7)
    assert (second.outward, second.destination_port, second.ended, second.kernel) == (True, 53, False, False)
    assert port.flows == []


def test_replies_of_an_allowed_flow_pass_and_nothing_else(port: Port) -> None:
    port.policies.police(ENDPOINT, (OUT, TCP, 80))
    assert port.says(tcp(WEB, FAR, 4000, 80, SYN)) is None
    assert port.says(tcp(FAR, WEB, 80, 4000, SYN | ACK)) is None
    assert port.says(tcp(WEB, FAR, 4000, 80, ACK)) is None
    assert port.says(tcp(FAR, WEB, 80, 4001, ACK)) is UNKNOWN
    assert port.says(tcp(FAR, WEB, 81, 4000, SYN)) is DENIED
    (flow,) = port.flows
    assert flow.tcp == (TcpState.OPEN, TcpState.OPEN)
    assert (flow.local_identity, flow.remote_identity, flow.epoch) == (100, 7, 1)
    assert len(port.policies.asked) == 2  # for the first packet of each flow alone


def test_errors_about_a_flow_pass_while_its_policy_holds(port: Port) -> None:
    port.policies.police(ENDPOINT, (OUT, UDP, 53))
    sent = udp(WEB, OTHER_SUBNET, 4000, 53)
    assert port.says(sent) is None
    error = icmp_error(ROUTER, WEB, sent[:28], TIME_EXCEEDED, 0)
    assert port.says(error) is None
    assert port.says(icmp_error(ROUTER, WEB, udp(WEB, FAR, 1, 2)[:28])) is UNKNOWN
    port.policies.police(ENDPOINT, epoch=2)
    assert port.says(error) is DENIED
    assert port.flows == []


def test_a_change_ends_what_it_forbids_and_renews_the_rest(port: Port) -> None:
    port.policies.police(ENDPOINT, (IN, TCP, 80), (IN, TCP, 81))
    for number in (80, 81):
        assert port.says(tcp(FAR, WEB, 4000, number, SYN)) is None
    port.policies.police(ENDPOINT, (IN, TCP, 80), epoch=2)
    assert port.says(tcp(WEB, FAR, 80, 4000, SYN | ACK)) is None  # a reply asks for its opener
    assert port.policies.asked[-1][0] is IN
    assert port.says(tcp(WEB, FAR, 81, 4000, SYN | ACK)) is DENIED
    assert port.policies.events[-1].ended
    (flow,) = port.flows
    assert (flow.epoch, flow.answered) == (2, True)
    assert port.says(tcp(FAR, WEB, 4000, 81, ACK)) is UNKNOWN


@pytest.mark.parametrize("who", ["local", "remote"])
def test_an_end_that_is_another_now_is_asked_about_again(port: Port, who: str) -> None:
    port.policies.police(ENDPOINT, (IN, UDP, 53))
    assert port.says(udp(FAR, WEB, 4000, 53)) is None
    if who == "local":
        policy = port.policies.ports[ENDPOINT.port]
        port.policies.ports[ENDPOINT.port] = replace(policy, identity=101)
    else:
        port.identities[FAR] = 77
    assert port.says(udp(FAR, WEB, 4000, 53)) is None
    assert (port.flows[0].local_identity, port.flows[0].remote_identity) == ((101, 7) if who == "local" else (100, 77))
    port.policies.allowed[ENDPOINT.port].clear()
    assert port.says(udp(FAR, WEB, 4000, 53)) is None  # the same ends, the same epoch: not asked


def test_an_unknown_identity_gets_no_verdict(port: Port) -> None:
    port.policies.police(ENDPOINT, (IN, UDP, 53))
    port.policies.known = set()
    assert port.says(udp(FAR, WEB, 4000, 53)) == Unsure(7, FAR)
    assert port.flows == []
    port.policies.police(ENDPOINT, (IN, TCP, 80), pickup_until_s=1e9)
    assert port.says(tcp(FAR, WEB, 4000, 80, ACK)) == Unsure(7, FAR)


def test_icmp_is_asked_about_by_type_and_code(port: Port) -> None:
    port.policies.police(ENDPOINT, (OUT, ICMP, 8 << 8), (IN, ICMP, 13 << 8))
    assert port.says(echo(WEB, FAR, 1)) is None
    assert port.says(echo(FAR, WEB, 1, reply=True)) is None
    assert port.says(echo(FAR, WEB, 2)) is DENIED
    assert port.policies.events[-1].source_port == 8
    assert port.says(echo(FAR, WEB, 3, reply=True)) is UNKNOWN
    assert port.says(ip(FAR, WEB, ICMP, message(13, 0, bytes(4)))) is None
    assert port.says(ip(FAR, WEB, ICMP, message(5, 1, bytes(4)))) is DENIED
    assert (port.policies.events[-1].source_port, port.policies.events[-1].destination_port) == (5, 1)


def test_external_ends_are_asked_about_by_address(port: Port) -> None:
    port.policies.police(ENDPOINT, (OUT, TCP, 443))
    assert port.says(tcp(WEB, OUTSIDE, 4000, 443, SYN)) is None
    assert port.policies.asked == [(OUT, Relation.EXTERNAL, OUTSIDE)]
    assert port.says(tcp(OUTSIDE, WEB, 443, 4000, SYN | ACK)) is None


def test_what_a_rule_logs_is_told_once_when_it_begins(port: Port) -> None:
    port.policies.police(ENDPOINT, (IN, TCP, 80))
    port.policies.logged = {(IN, TCP, 80)}
    assert port.says(tcp(FAR, WEB, 4000, 80, SYN)) is None
    assert port.says(tcp(WEB, FAR, 80, 4000, SYN | ACK)) is None
    (event,) = port.policies.events
    assert (event.reason, event.rule) == (None, 7)


@pytest.mark.parametrize(
    ("ports", "service", "by_web"),
    [
        ((4000, 80), (OUT, TCP, 80), True),  # web speaks to the lower port: it opened
        ((80, 4000), (IN, TCP, 80), False),
        ((80, 4000), (OUT, TCP, 4000), True),  # not by the lower one, but allowed by the other
        ((40000, 80), (OUT, TCP, 80), True),
        ((443, 443), (OUT, TCP, 443), True),
    ],
)
def test_connections_are_picked_up_while_the_port_does_so(
    port: Port, ports: tuple[int, int], service: tuple[Direction, int, int], by_web: bool
) -> None:
    port.policies.logged = {service}
    port.policies.police(ENDPOINT, service, pickup_until_s=NOW + port.policies.offset_s + 30)
    assert port.says(tcp(WEB, FAR, *ports, ACK)) is None
    (flow,) = port.flows
    assert flow.opened_by_high is (by_web is (WEB > FAR))
    assert flow.tcp == (TcpState.OPEN, TcpState.OPEN)
    assert (port.policies.pickups, port.policies.events[0].picked_up) == (1, True)
    assert port.says(tcp(FAR, WEB, *ports[::-1], FIN | ACK)) is None
    port.now += 31
    assert port.says(tcp(WEB, FAR, 5000, 80, ACK)) is UNKNOWN


def test_what_is_not_picked_up(port: Port) -> None:
    until_s = NOW + port.policies.offset_s + 30
    port.policies.police(ENDPOINT, (OUT, TCP, 40000), (OUT, TCP, 4000), pickup_until_s=until_s)
    assert port.says(tcp(FAR, WEB, 40000, 80, ACK)) is UNKNOWN  # who has the ephemeral port opened it
    assert port.says(tcp(FAR, WEB, 4000, 80, RST)) is UNKNOWN
    assert port.says(udp(FAR, WEB, 4000, 80)) is DENIED
    assert port.says(tcp(FAR, WEB, 4000, 80, SYN)) is DENIED
    assert port.policies.pickups == 0
    assert port.says(tcp(FAR, WEB, 4000, 80, SYN | ACK)) is None  # the answer to a SYN that passed before
    assert port.flows[0].tcp == (TcpState.OPEN, TcpState.SYN)
    assert port.says(tcp(WEB, FAR, 80, 4001, SYN | ACK)) is UNKNOWN


def test_relations_are_read_off_the_addresses() -> None:
    assert relation_of(PLAN, WEB, FAR) is Relation.SUBNET
    assert relation_of(PLAN, WEB, OTHER_SUBNET) is Relation.CELL
    assert relation_of(PLAN, WEB, bytes((10, 22, 37, 5))) is Relation.OTHER
    assert relation_of(PLAN, WEB, OUTSIDE) is Relation.EXTERNAL


def test_without_policies_a_cell_talks_to_itself() -> None:
    none = NoPolicies()
    allowed = {r for r in Relation if none.decide(IN, ENDPOINT, r, 1, TCP, 80) == Decision(True)}
    assert allowed == {Relation.SUBNET, Relation.CELL}
    assert none.port(ENDPOINT) is None
    assert not none.may_talk(1, 2)
    assert none.now_s(3.0) == 3.0
    none.picked_up()
    assert (str(IN), str(Relation.OTHER)) == ("ingress", "other cell")
