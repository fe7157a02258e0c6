"""What the agents say that guests sent and received is what the guests' own NICs counted, kernel and agent together."""

import json
from collections.abc import Iterator
from typing import NamedTuple

import pytest
from bare_fixtures import DB, FAR, NEAR, BareBench, bare_bench, wait_for
from hostile_frames import ethernet, ipv4, udp

from divhook.lab.bare import NIC, BareSpec

NEXT = BareSpec("next", "A", "shop", "web", "10.1.1.77")
DRY = BareSpec("dry", "A", "shop", "web", "10.1.1.75")
ROUTER = "10.1.1.1"
ECHO_BYTES = 14 + 20 + 8 + 56
ARP_BYTES = 42
COUNT = 100


class Counts(NamedTuple):
    sent_packets: int = 0
    sent_bytes: int = 0
    received_packets: int = 0
    received_bytes: int = 0

    def since(self, before: "Counts") -> "Counts":
        return Counts(*(now - then for now, then in zip(self, before, strict=True)))


@pytest.fixture(scope="module")
def pair() -> Iterator[BareBench]:
    with bare_bench((NEAR, NEXT, DRY, FAR, DB), hosts=2, quiet=("dry",)) as bench:
        yield bench


def told(bench: BareBench, name: str) -> Counts:
    """By the agent."""
    row = bench.guest(name).endpoint()
    return Counts(*(int(str(row[field])) for field in Counts._fields))


def own(bench: BareBench, name: str) -> Counts:
    """By the guest's NIC."""
    [link] = json.loads(bench.guest(name).exec("ip", "-j", "-s", "link", "show", NIC).stdout)
    tx, rx = link["stats64"]["tx"], link["stats64"]["rx"]
    return Counts(tx["packets"], tx["bytes"], rx["packets"], rx["bytes"])


def paths(bench: BareBench, host: str) -> dict[str, int]:
    """Frames from guests by who forwarded them, and ARP requests that the kernel answered."""
    status = bench.lab.host(host).ask_agent({"op": "status"})["result"]
    fast, slow = status["fast_path"], status["slow_path"]
    return {"kernel": fast["from_guest"], "agent": slow["from_guest"], "kernel ARP": fast["arp_answered"]}


def gone_through(before: dict[str, int], after: dict[str, int]) -> dict[str, int]:
    return {path: after[path] - before[path] for path in after if after[path] != before[path]}


@pytest.mark.parametrize("target", ["next", "far", "db"])
def test_a_hundred_pings_are_a_hundred_frames_each_way_at_both_ends(
    pair: BareBench, fastpath: bool, target: str
) -> None:
    """On one host, in one subnet, routed; by the kernel alone once the flow is known, or by the agent alone."""
    pair.ping("near", target)
    before, through = {name: told(pair, name) for name in ("near", target)}, paths(pair, "A")
    nics = {name: own(pair, name) for name in ("near", target)}
    assert pair.ping("near", target, COUNT, 0.005).received == COUNT
    each = Counts(COUNT, COUNT * ECHO_BYTES, COUNT, COUNT * ECHO_BYTES)
    for name in ("near", target):
        assert own(pair, name).since(nics[name]) == each
        assert told(pair, name).since(before[name]) == each
    frames = 2 * COUNT if target == "next" else COUNT
    assert gone_through(through, paths(pair, "A")) == {"kernel" if fastpath else "agent": frames}


def test_arp_counts_whoever_answers(pair: BareBench, fastpath: bool) -> None:
    guest = pair.guest("near")
    before, through = told(pair, "near"), paths(pair, "A")
    guest.exec("ip", "neigh", "flush", "dev", NIC)
    assert pair.ping("near", ROUTER, 1).received == 1
    assert told(pair, "near").since(before) == Counts(2, ARP_BYTES + ECHO_BYTES, 2, ARP_BYTES + ECHO_BYTES)
    assert gone_through(through, paths(pair, "A")) == ({"kernel ARP": 1, "agent": 1} if fastpath else {"agent": 2})


def test_dhcp_counts(pair: BareBench) -> None:
    before, nic = told(pair, "dry"), own(pair, "dry")
    command = ("busybox", "udhcpc", "-i", NIC, "-f", "-q", "-n", "-t", "5", "-T", "3", "-s", "/bin/true")
    pair.guest("dry").exec(*command)
    counted = told(pair, "dry").since(before)
    assert (counted.sent_packets, counted.received_packets) == (2, 2)
    assert counted == own(pair, "dry").since(nic)


def test_a_frame_that_is_dropped_was_sent_all_the_same(pair: BareBench) -> None:
    before, near = told(pair, "dry"), told(pair, "near")
    foreign = ipv4("10.1.1.99", str(NEAR.address), 17, udp(1, 2, b"x"))
    other_cell = ipv4(str(DRY.address), "10.2.1.9", 17, udp(1, 2, b"x"))
    frames = [ethernet(b"\x02\xd1\x00\x01\x00\x01", pair.macs["dry"], 0x0800, each) for each in (foreign, other_cell)]
    pair.guest_sends("dry", *frames)
    sent = Counts(2, sum(map(len, frames)))
    assert wait_for(lambda: told(pair, "dry").since(before) == sent), told(pair, "dry").since(before)
    assert told(pair, "near") == near


def test_neighbours_show_whether_the_kernel_has_them(pair: BareBench, fastpath: bool) -> None:
    host = pair.lab.host("A")
    assert pair.ping("near", "far").received == 3
    [row] = [each for each in host.ask_agent({"op": "neighbors"})["result"] if each["address"] == FAR.address]
    assert row["kernel"] is fastpath
    status = host.ask_agent({"op": "status"})["result"]["fast_path"]
    assert status["state"] == ("on" if fastpath else "off")
    assert (status["neighbours"] > 0) is fastpath
    shown = host.divhook("status").stdout
    assert f"state:        {'on' if fastpath else 'off'}" in shown
