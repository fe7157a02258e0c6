"""The agent is stopped, killed and started again under running guests."""

import signal
import time
from collections.abc import Iterator

import pytest
from lab_cast import Cast, listing, snapshot

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


def test_start_is_refused_in_time_with_cause_and_remedy(lab: Lab, host_without_agent: LabHost) -> None:
    lab.define(GuestSpec("unlucky", (Nic("shop", "web"),)), "A")
    begin = time.monotonic()
    with pytest.raises(LabError) as refusal:
        host_without_agent.virsh("start", "unlucky")
    assert time.monotonic() - begin < HOOK_DEADLINE_S
    host_without_agent.virsh("undefine", "unlucky")
    text = str(refusal.value)
    assert "agent" in text
    assert "systemctl start divhook-agent" in text
    assert set(host_without_agent.guests()) == {"web1", "other1"}


def test_guest_without_divhook_nic_starts_without_the_agent(lab: Lab, host_without_agent: LabHost) -> None:
    guest = lab.start(GuestSpec("bystander"), "A")
    assert guest.exec("hostname") == "bystander\n"
    guest.stop()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_after_a_restart_everything_is_there_once_and_traffic_goes_on(
    lab: Lab, cast: Cast, number: signal.Signals
) -> None:
    host = lab.host("A")
    assert ping(cast.web1, cast.address("web2"), 3).received == 3
    endpoints, before = listing(host, "endpoints"), snapshot(host)
    host.agent_stop(number)
    host.agent_start()
    assert wait_until(lambda: all(row["state"] == "active" for row in listing(host, "endpoints")), 30, 0.2)
    assert listing(host, "endpoints") == endpoints
    assert snapshot(host) == before
    assert ping(cast.web1, cast.address("web2"), 5).received == 5
    assert ping(cast.db1, cast.address("web1"), 5).received == 5


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


def test_teardown_removes_all_that_the_agent_made(cast: Cast, tmp_path_factory: pytest.TempPathFactory) -> None:
    with Lab(tmp_path_factory.mktemp("teardown"), hosts=1) as other:
        host = other.host("A")
        host.agent_stop()
        host.divhook("agent", "--teardown")
        after = snapshot(host)
        assert "divbr0" not in after["links"]
        assert "divhook" not in after["nft"] + after["iptables"] + after["bpffs"] + after["tc"]
        assert "10.0.0.0/8" not in after["routes"]
