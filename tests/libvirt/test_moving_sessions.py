"""Connections like SSH's, under a policy that denies all but new ones to tcp/22: they survive every move, of both ends.

web2 is the server and moves; web1 in its subnet and db1 in another are clients. Their hosts' policies are stateful:
nothing lets what the server says pass but the state of the flow, which has to move with the guest.
"""

from collections.abc import Callable, Iterator

import pytest
from host_state import rows
from lab_cast import Cast, policy_in_force
from moving import Traveller, begin_move

from bench.moves.traffic import Flow
from divhook.lab.demo import ping
from divhook.lab.lab import Lab

POLICY = """cell: shop
defaults: {ingress: deny, egress: deny}
groups:
  clients: [{guest: web1}, {guest: db1}]
ingress:
  - {from: {group: clients}, to: {guest: web2}, allow: tcp/22}
egress:
  - {from: {group: clients}, to: {guest: web2}, allow: tcp/22}
"""


@pytest.fixture(scope="module")
def policy(lab: Lab, cast: Cast) -> Iterator[None]:
    with policy_in_force(lab, POLICY):
        yield


@pytest.fixture
def server(lab: Lab, cast: Cast, policy: None) -> Iterator[Traveller]:
    flows = [
        Flow(0, "web1", "eth0", "web", cast.address("web1")),
        Flow(1, "db1", "eth0", "db", cast.address("db1")),
    ]
    traveller = Traveller(lab, cast.web2, [cast.web1, cast.db1], flows)
    yield traveller
    traveller.end()
    for name, home in (("web1", "A"), ("web2", "B")):  # where they are already, but for a failure
        here = lab.guest(name).host
        if here.name != home:
            begin_move(here, name, home).succeeded()


def picked_up(lab: Lab) -> int:
    """Flows that a host took up in mid-stream, on its policy's word alone: no state of theirs had come with a guest."""
    return sum(host.ask_agent({"op": "status"})["result"]["policy"]["picked_up"] for host in lab.hosts.values())


def denied(lab: Lab) -> int:
    found = [row for host in lab.hosts.values() for row in rows(host, "drops") if row["reason"] == "policy_denied"]
    return sum(int(row["packets"]) for row in found)


def assert_closed(lab: Lab, server: Traveller) -> None:
    """The policy is in force where the guests are: no ping to the server, and nothing that the server begins."""
    before = denied(lab)
    client, web2 = server.talk.flows[0], lab.guest("web2")
    assert ping(lab.guest("web1"), server.talk.address, 1, wait_s=1).received == 0
    assert ping(web2, client.address, 1, wait_s=1).received == 0
    assert denied(lab) >= before + 2


def test_sessions_survive_moves_of_the_server_of_a_client_and_of_both_at_once(
    lab: Lab, server: Traveller, record_property: Callable[[str, object], None]
) -> None:
    before = picked_up(lab)

    server.move("A")
    server.settled("A")
    assert_closed(lab, server)

    begin_move(lab.host("A"), "web1", "B").succeeded()
    server.where.moved(lab.guest("web1"))
    server.settled("A")
    assert_closed(lab, server)

    attempts = [server.begin("B"), begin_move(lab.host("B"), "web1", "A")]
    for attempt in attempts:
        attempt.succeeded()
    server.where.moved(lab.guest("web1"))
    server.settled("B")
    assert_closed(lab, server)

    record_property("sessions", server.sessions())
    assert picked_up(lab) == before, "the states of their flows came with the guests"
