"""A policy between real guests: default deny for a subnet, opened by a label in a guest's metadata while it runs."""

import time
from collections.abc import Iterator

import pytest
from lab_cast import Cast, drops, listing, policy_in_force

from divhook.lab.demo import ping
from divhook.lab.lab import Lab
from divhook.lab.processes import wait_until

CLOSED = """cell: shop
subnets:
  db: {ingress: deny}
ingress:
  - {from: {labels: tier=front}, to: {subnet: db}, allow: icmp/ping}
"""


@pytest.fixture
def closed(lab: Lab) -> Iterator[None]:
    """The policy is in force, and at the end none is."""
    with policy_in_force(lab, CLOSED):
        yield
    _label(lab)


def _label(lab: Lab, *labels: str) -> None:
    """Give web1, which runs, these labels."""
    given = ("--labels", ",".join(labels)) if labels else ()
    lab.host("A").divhook("assign", "web1", "--cell", "shop", "--subnet", "web", *given)
    wanted = dict(label.split("=") for label in labels)
    rows = lambda: [r for r in listing(lab.host("A"), "endpoints") if r["guest"] == "web1"]  # noqa: E731
    assert wait_until(lambda: rows()[0]["labels"] == wanted, 10, 0.1), rows()
    time.sleep(0.5)  # the announcement is on its way


@pytest.mark.usefixtures("closed")
def test_a_label_opens_a_closed_subnet_and_its_loss_closes_it_again(lab: Lab, cast: Cast) -> None:
    address = cast.address("db1")
    assert ping(cast.web1, address, 2, wait_s=1).received == 0
    assert sum(drops(lab.host("B"), "policy_denied", guest) for guest in ("(wire)", "db1")) >= 2
    assert ping(cast.db1, cast.address("web1"), 2).received == 2  # its own ping, and the reply
    _label(lab, "tier=front")
    assert ping(cast.web1, address, 2).received == 2
    assert ping(cast.web2, address, 2, wait_s=1).received == 0
    _label(lab, "tier=back")
    assert ping(cast.web1, address, 2, wait_s=1).received == 0
