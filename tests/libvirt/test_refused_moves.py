"""A move to a host that refuses: the error says what to do, the guest goes on, and nothing of it is left there."""

import shutil
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager

import pytest
from host_state import assert_back, everything
from lab_cast import Cast
from moving import Traveller
from test_running_on import reconciled

from bench.moves.traffic import Flow
from divhook.lab.host import LabHost
from divhook.lab.lab import Lab
from divhook.lab.processes import wait_until

pytestmark = pytest.mark.one_mode


@pytest.fixture(scope="module")
def guest(lab: Lab, cast: Cast) -> Iterator[Traveller]:
    """web1, on A. It talks to web2 in its subnet and to db1 in another, both on B: the host that will refuse it."""
    flows = [
        Flow(0, "web2", "eth0", "web", cast.address("web2")),
        Flow(1, "db1", "eth0", "db", cast.address("db1")),
    ]
    traveller = Traveller(lab, cast.web1, [cast.web2, cast.db1], flows)
    yield traveller
    traveller.end()


@contextmanager
def other_cluster_key(host: LabHost) -> Iterator[None]:
    """As on a host of another cluster, or one whose key file was not copied."""
    path = host.outside("/etc/divhook/cluster.key")
    own = path.read_bytes()
    host.divhook("key", "new", "--force")
    host.divhook("reload")
    try:
        yield
    finally:
        path.write_bytes(own)
        host.divhook("reload")


@contextmanager
def cell_unknown(host: LabHost) -> Iterator[None]:
    """Guests of it that run there go on."""
    path = host.outside("/etc/divhook/cells/shop.yaml")
    aside = path.with_suffix(".aside")
    shutil.move(path, aside)
    host.divhook("reload")
    try:
        yield
    finally:
        shutil.move(aside, path)
        host.divhook("reload")


@contextmanager
def agent_away(host: LabHost) -> Iterator[None]:
    host.agent_stop()
    try:
        yield
    finally:
        host.agent_start()
        assert wait_until(lambda: reconciled(host), 60, 0.1)


REASONS: dict[str, tuple[Callable[[LabHost], AbstractContextManager[None]], tuple[str, ...]]] = {
    "other cluster key": (other_cluster_key, ("web1", "cluster key", "divhook key show")),
    "cell unknown": (cell_unknown, ("web1", "cell 'shop' is not known", "add a cell file")),
    "agent away": (agent_away, ("web1", "agent is not running", "systemctl start divhook-agent")),
}


@pytest.mark.parametrize("why", REASONS)
def test_refused_move_costs_nothing_and_leaves_nothing(lab: Lab, guest: Traveller, why: str) -> None:
    reason, names = REASONS[why]
    there = lab.host("B")
    before = everything(there)
    with guest.talking(), reason(there):
        error = guest.begin("B").end().error
    assert error is not None, "the move was not refused"
    assert [name for name in names if name not in error] == [], error
    guest.settled("A")
    assert_back(there, before)
