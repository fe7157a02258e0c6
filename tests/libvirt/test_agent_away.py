"""The agent is stopped, killed and started again under running guests."""

import signal
import time
from collections.abc import Iterator

import pytest
from lab_cast import Cast, listing

from divhook.lab.demo import ping
from divhook.lab.errors import LabError
from divhook.lab.guest import GuestSpec, Nic
from divhook.lab.host import LabHost
from divhook.lab.lab import Lab
from divhook.lab.processes import wait_until

HOOK_DEADLINE_S = 6.0


@pytest.fixture
def host_without_agent(lab: Lab, cast: Cast) -> Iterator[LabHost]:
    host = lab.host("A")
    host.agent_stop()
    yield host
    host.agent_start()


def test_without_an_agent_guests_of_divhook_are_refused_in_time_with_a_remedy_and_others_start(
    lab: Lab, host_without_agent: LabHost
) -> None:
    host = host_without_agent
    lab.define(GuestSpec("unlucky", (Nic("shop", "web"),)), "A")
    begin = time.monotonic()
    with pytest.raises(LabError) as refusal:
        host.virsh("start", "unlucky")
    assert time.monotonic() - begin < HOOK_DEADLINE_S
    host.virsh("undefine", "unlucky")
    text = str(refusal.value)
    assert "agent" in text
    assert "systemctl start divhook-agent" in text
    assert set(host.guests()) == {"web1", "other1"}
    bystander = lab.start(GuestSpec("bystander"), "A")
    assert bystander.exec("hostname") == "bystander\n"
    bystander.stop()


def test_after_its_peers_restart_an_idle_agent_still_finds_it(lab: Lab, cast: Cast) -> None:
    assert ping(cast.web1, cast.address("db1"), 3).received == 3
    lab.host("B").agent_stop(signal.SIGKILL)
    lab.host("B").agent_start()
    result = ping(cast.web1, cast.address("db1"), 30)
    assert result.received >= 29, (result, listing(lab.host("B"), "drops"), lab.host("B").agent_log.read_text()[-2000:])


def test_a_guest_that_ends_while_the_agent_is_away_is_gone_after(lab: Lab, cast: Cast) -> None:
    host = lab.host("A")
    guest = lab.start(GuestSpec("brief", (Nic("shop", "web"),)), "A")
    before = guest.wait_address()
    host.agent_stop(signal.SIGKILL)
    guest.stop()
    host.agent_start()
    assert wait_until(lambda: "brief" not in {row["guest"] for row in listing(host, "endpoints")}, 30, 0.2)
    assert before not in {row["address"] for row in listing(host, "endpoints")}
