"""A hundred guests boot at once: each DHCP client, at its own host's agent, gets the address that is its own."""

import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from divhook.lab.bare import NIC, BareLab, BareSpec

pytestmark = pytest.mark.one_mode

GUESTS = 100
DEADLINE_S = 60
SCRIPT = """#!/bin/sh
[ "$1" = bound ] && echo "bound $ip $router $mask"
exit 0
"""


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[BareLab]:
    specs = [BareSpec(f"n{n}", "AB"[n % 2], "shop", "web" if n % 3 else "db") for n in range(GUESTS)]
    with BareLab(tmp_path_factory.mktemp("hundred") / "lab", specs) as it:
        yield it


def test_a_hundred_clients_at_once_are_all_served_with_their_own_address(lab: BareLab, tmp_path: Path) -> None:
    script = tmp_path / "bound.sh"
    script.write_text(SCRIPT)
    script.chmod(0o755)
    begin = time.monotonic()
    command = ("busybox", "udhcpc", "-i", NIC, "-f", "-q", "-n", "-t", "10", "-T", "3", "-s", str(script))
    clients = {
        name: subprocess.Popen(
            guest.namespace.enter(*command), stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        )
        for name, guest in lab.bare.items()
    }
    bound = {}
    for name, client in clients.items():
        output, _ = client.communicate(timeout=DEADLINE_S)
        bound[name] = next((line.split()[1] for line in output.splitlines() if line.startswith("bound")), None)
    print(f"{GUESTS} clients bound within {time.monotonic() - begin:.1f} s of the first start")
    assert bound == {name: guest.endpoint()["address"] for name, guest in lab.bare.items()}
    assert len(set(bound.values())) == GUESTS
    for host in "AB":
        assert [key for key in lab.drops(host) if key[0] != "(wire)"] == []
