"""An address that moves between guests: keepalived's on hosts A and B, asked for from C and from A; and who may not.

host A   first (keepalived), near, thief      host B   second (keepalived)      host C   far, other (shop/db)
"""

import os
import re
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest
from bare_fixtures import NIC, BareBench, SteadyPing, bare_bench, wait_for

from divhook.lab.bare import BareSpec

VIRTUAL = "10.1.1.100"
PING_INTERVAL_S, ADVERT_S = 0.01, 0.1
MAX_LOST_S = 1.0
"""keepalived itself waits for three advertisements and a skew: 0.3 to 0.4 s."""
UNDER_WAY_S = 0.1
"""What is on its way to the former holder's host when the address moves is lost."""
CAST = (
    BareSpec("first", "A", "shop", "web", "10.1.1.21", allowed=(VIRTUAL,)),
    BareSpec("second", "B", "shop", "web", "10.1.1.22", allowed=(VIRTUAL,)),
    BareSpec("near", "A", "shop", "web", "10.1.1.23"),
    BareSpec("thief", "A", "shop", "web", "10.1.1.24"),
    BareSpec("far", "C", "shop", "web", "10.1.1.25"),
    BareSpec("other", "C", "shop", "db", "10.1.2.26"),
)
CONFIGURATION = f"""\
global_defs {{
  router_id NAME
  vrrp_version 3
  vrrp_garp_master_delay 1
}}
vrrp_instance virtual {{
  state BACKUP
  interface {NIC}
  virtual_router_id 51
  priority PRIORITY
  advert_int {ADVERT_S}
  virtual_ipaddress {{
    {VIRTUAL}/24
  }}
}}
"""


@pytest.fixture(scope="module")
def bench() -> Iterator[BareBench]:
    with bare_bench(CAST, quiet=()) as made:
        yield made


@contextmanager
def keepalived(bench: BareBench, name: str, priority: int, directory: Path) -> Iterator["subprocess.Popen[bytes]"]:
    path = directory / f"{name}.conf"
    path.write_text(CONFIGURATION.replace("NAME", name).replace("PRIORITY", str(priority)))
    pids = [word for option in "pr" for word in (f"-{option}", f"{directory}/{name}.{option}")]
    words = ("keepalived", "-n", "-l", "-P", "-f", str(path), *pids)
    with (directory / f"{name}.log").open("wb") as log:
        process = subprocess.Popen(bench.guest(name).namespace.enter(*words), stdout=log, stderr=log)
        try:
            yield process
        finally:
            process.terminate()
            process.wait(10)


def pinging(bench: BareBench) -> dict[str, SteadyPing]:
    """From a guest of the holder's host, of another, and of another subnet; under way when this returns."""
    pings = {n: SteadyPing(bench.guest(n), VIRTUAL, 3, PING_INTERVAL_S) for n in ("near", "far", "other")}
    time.sleep(0.5)
    return pings


def lost(pings: dict[str, SteadyPing], what: str) -> dict[str, int]:
    for ping in pings.values():
        ping.end()
    missing = {name: ping.result.sent - ping.result.received for name, ping in pings.items()}
    print(f"{what}: lost of {pings['far'].result.sent} pings, {PING_INTERVAL_S * 1000:.0f} ms apart: {missing}")
    return missing


def holds(bench: BareBench, name: str) -> bool:
    return f"inet {VIRTUAL}/" in bench.guest(name).exec("ip", "-4", "addr", "show", NIC).stdout


def answers(bench: BareBench, name: str) -> bool:
    return bench.ping(name, VIRTUAL, 1, wait_s=0.5).received == 1


def test_keepalived_fails_over_between_hosts_under_ping(bench: BareBench, tmp_path: Path) -> None:
    with ExitStack() as stack:
        stack.enter_context(keepalived(bench, "first", 150, tmp_path))
        stack.enter_context(keepalived(bench, "second", 100, tmp_path))
        one_master = wait_for(lambda: holds(bench, "first") and not holds(bench, "second"), 10)
        assert one_master, (tmp_path / "second.log").read_text()
        for name in ("near", "far", "other", "second"):
            assert wait_for(lambda name=name: answers(bench, name), 5), name
        pings = pinging(bench)
        speaker = int((tmp_path / "first.r").read_text())
        os.kill(speaker, signal.SIGSTOP)  # its address stays: only its silence, and the other's ARP, tell
        assert wait_for(lambda: holds(bench, "second"), 5)
        missing = lost(pings, "the speaker hangs")
        assert max(missing.values()) * PING_INTERVAL_S < UNDER_WAY_S, "its guest answers until the other has it"
        believed = bench.neighbours()
        assert believed["C", VIRTUAL] == (bench.pmacs["B"].hex(":"), bench.macs["second"].hex(":"))
        # The one before may not speak from it any more, though its kernel still has it.
        before = bench.drops(hosts="A")
        bench.guest("first").exec("ping", "-c1", "-W1", "-I", VIRTUAL, "10.1.1.23", check=False)
        assert (bench.drops(hosts="A") - before)["A", "first", "spoof_ipv4"] == 1
        os.kill(speaker, signal.SIGCONT)
        assert wait_for(lambda: holds(bench, "first") and not holds(bench, "second"), 5)
        for name in ("near", "far", "other", "second"):
            assert wait_for(lambda name=name: answers(bench, name), 2), name
        assert bench.neighbours()["C", VIRTUAL][0] == bench.pmacs["A"].hex(":")
        pings = pinging(bench)
        bench.guest("first").exec("ip", "link", "set", NIC, "down")
        assert wait_for(lambda: holds(bench, "second"), 5)
        assert max(lost(pings, "the guest is gone").values()) * PING_INTERVAL_S < MAX_LOST_S
        bench.guest("first").exec("ip", "link", "set", NIC, "up")


def announce(bench: BareBench, name: str) -> None:
    bench.guest(name).exec("arping", "-U", "-c", "1", "-w", "1", "-I", NIC, "-s", VIRTUAL, VIRTUAL, check=False)


def test_an_agents_restart_finds_the_holder_again(bench: BareBench) -> None:
    bench.guest("second").exec("ip", "addr", "add", f"{VIRTUAL}/24", "dev", NIC)
    announce(bench, "second")
    assert wait_for(lambda: answers(bench, "far"), 3)
    host = bench.lab.host("B")
    host.agent_stop()
    host.agent_start()
    bench.lab.wait_active()
    for name in ("far", "near", "other"):
        assert wait_for(lambda name=name: answers(bench, name), 5), name
    bench.guest("second").exec("ip", "addr", "del", f"{VIRTUAL}/24", "dev", NIC)


def test_whoever_is_not_allowed_the_address_cannot_take_it(bench: BareBench) -> None:
    bench.guest("second").exec("ip", "addr", "add", f"{VIRTUAL}/24", "dev", NIC)
    bench.guest("thief").exec("ip", "addr", "add", f"{VIRTUAL}/24", "dev", NIC)
    announce(bench, "second")
    assert wait_for(lambda: answers(bench, "far"), 3)
    before, believed = bench.drops(), bench.neighbours()["C", VIRTUAL]
    announce(bench, "thief")
    bench.guest("thief").exec("ping", "-c1", "-W1", "-I", VIRTUAL, "10.1.1.23", check=False)
    counted = bench.new_drops(before, 2)
    assert counted["A", "thief", "spoof_arp_spa"] >= 1
    assert counted["A", "thief", "spoof_ipv4"] + counted["A", "thief", "spoof_arp_spa"] >= 2
    assert bench.neighbours()["C", VIRTUAL] == believed
    assert re.fullmatch(r"[0-9a-f:]{17}", believed[0])
    assert answers(bench, "far")
    for name in ("second", "thief"):
        bench.guest(name).exec("ip", "addr", "del", f"{VIRTUAL}/24", "dev", NIC)
