"""`divhook agent --teardown` takes a host back to before the agent's first start, also with a guest running."""

from collections.abc import Iterator

import pytest
from host_state import differences, rows, system

from divhook.lab.errors import LabError
from divhook.lab.guest import GuestSpec, LabGuest, Nic
from divhook.lab.host import LabHost
from divhook.lab.lab import Lab
from divhook.lab.processes import wait_until

SMALL_PLAN = "addresses: {supernet: 10.0.0.0/8, cell_bits: 8, subnet_bits: 13, host_bits: 3}\n"
ADDRESSES = 5
"""A /29 without network, router and broadcast address."""


@pytest.fixture(scope="module")
def fresh(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    """One host whose agent has never run yet, with a plan of tiny subnets."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(LabHost, "agent_start", lambda _host: None)
        cells = tmp_path_factory.mktemp("cells")
        (cells / "shop.yaml").write_text("cell: shop\nnumber: 1\nowner: shop\nsubnets:\n  web: {number: 1}\n")
        lab = Lab(tmp_path_factory.mktemp("fresh"), hosts=1, cells=cells, settings=SMALL_PLAN)
        lab.up()
    yield lab
    lab.down()


def test_full_life_of_a_host_ends_where_it_began(fresh: Lab) -> None:
    host = fresh.host("A")
    before = system(host)
    host.agent_start()
    assert wait_until(lambda: host.ask_agent({"op": "status"})["result"]["reconciled"], 30, 0.1)
    used = system(host)
    assert {"links", "nft", "iptables", "tc", "routes", "bpffs", "memberships", "run"} <= set(differences(before, used))

    names = [f"g{number}" for number in range(ADDRESSES)]
    for name in names:
        fresh.define(GuestSpec(name, (Nic("shop", "web"),), memory_mib=64), "A")
        host.virsh("start", "--paused", name)
    given = {row["address"] for row in rows(host, "endpoints")}
    assert given == {f"10.1.0.{number}" for number in range(10, 10 + ADDRESSES)}
    fresh.define(GuestSpec("last", (Nic("shop", "web"),)), "A")
    with pytest.raises(LabError, match=r"subnet full.*10\.1\.0\.8/29"):
        host.virsh("start", "last")
    for name in (*names[1:], "last"):
        LabGuest(host, name).stop()

    host.agent_stop()
    host.divhook("agent", "--teardown")
    left = differences(before, system(host))
    assert set(left) <= {"links", "tc", "addresses"}, left
    assert "divbr0" not in system(host)["links"], "the running guest keeps its tap, and nothing else"
    host.virsh("destroy", names[0])
    assert wait_until(lambda: not differences(before, system(host)), 10, 0.2), differences(before, system(host))
    host.divhook("agent", "--teardown")
    assert differences(before, system(host)) == {}

    host.agent_start()
    assert set(differences(used, system(host))) == {"memberships"}, "a start after a teardown is like the first"
    host.virsh("undefine", names[0])  # till then its address was defended
    assert wait_until(lambda: not differences(used, system(host)), 10, 0.2), differences(used, system(host))
