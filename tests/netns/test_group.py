"""Broadcast and multicast by the tools that people use, between guests on three hosts, and what the wire shows of it.

host A   one, two (shop/web)   lone (lab/web)      host B   three (shop/web)   base (shop/db)
host C   four (shop/web)
"""

import re
import subprocess
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager

import pytest
from bare_fixtures import NIC, WEB_GROUP, BareBench, PatientWitness, Place, WireWitness, bare_bench, between_hosts

from divhook.core.addressing import BROADCAST_MAC
from divhook.lab.bare import BareSpec

ADDRESS = {"one": "10.1.1.11", "two": "10.1.1.12", "three": "10.1.1.13", "four": "10.1.1.14"}
WEB = tuple(
    BareSpec(name, host, "shop", "web", ADDRESS[name])
    for name, host in (("one", "A"), ("two", "A"), ("three", "B"), ("four", "C"))
)
OUTSIDERS = (BareSpec("lone", "A", "lab", "web", "10.2.1.15"), BareSpec("base", "B", "shop", "db", "10.1.2.16"))
BROADCASTS = ("255.255.255.255", "10.1.1.255")


SETTLE_S = 0.5
"""For what is under way."""


def raw(address: str) -> bytes:
    return bytes(map(int, address.split(".")))


@pytest.fixture(scope="module")
def bench() -> Iterator[BareBench]:
    with bare_bench((*WEB, *OUTSIDERS), quiet=()) as made:
        for guest in made.lab.bare.values():
            guest.exec("sysctl", "-qw", "net.ipv4.icmp_echo_ignore_broadcasts=0")
        yield made


@contextmanager
def witnesses(bench: BareBench) -> Iterator[tuple[dict[str, PatientWitness], WireWitness]]:
    """What arrives at each guest, and what passes the switch."""
    with ExitStack() as stack:
        guests = {
            name: stack.enter_context(closing(PatientWitness(Place(guest.namespace), NIC)))
            for name, guest in bench.lab.bare.items()
        }
        yield guests, stack.enter_context(closing(WireWitness(Place(bench.lab.switch))))


def pinged(bench: BareBench, name: str, target: str, count: int) -> "subprocess.CompletedProcess[str]":
    """A broadcast ping; it ends after a second, whoever answers."""
    words = ("ping", "-n", "-b", "-c", str(count), "-i", "0.2", "-w", "2", "-I", NIC, target)
    return bench.guest(name).exec(*words, check=False)


@pytest.mark.parametrize("target", BROADCASTS)
def test_every_guest_of_the_subnet_on_every_host_answers_a_broadcast_ping(bench: BareBench, target: str) -> None:
    output = pinged(bench, "one", target, 6).stdout  # it ends with its own answer to the last
    answers = {name: len(re.findall(f"from {address}: icmp_seq=[1-5] ", output)) for name, address in ADDRESS.items()}
    assert answers == dict.fromkeys(ADDRESS, 5), output
    assert not re.search(r"from 10\.(2\.1|1\.2)\.", output)


@pytest.mark.parametrize("target", BROADCASTS)
def test_a_broadcast_is_one_frame_on_the_wire_and_reaches_no_other_subnet(bench: BareBench, target: str) -> None:
    with witnesses(bench) as (guests, wire):
        pinged(bench, "one", target, 5)
        time.sleep(SETTLE_S)
        arrived = {name: [f for f in each.frames() if f[30:34] == raw(target)] for name, each in guests.items()}
        frames = [f for f in wire.frames() if not between_hosts(f)]
    sent = arrived["two"]
    assert len(sent) == 5
    assert {f[:12] for f in sent} == {BROADCAST_MAC + bench.macs["one"]}
    assert arrived["three"] == arrived["four"] == sent
    assert arrived["one"] == arrived["lone"] == arrived["base"] == []
    requests = [f for f in frames if f[0] & 1]
    assert [f[14:] for f in requests] == [f[14:] for f in sent]
    assert {f[:12] for f in requests} == {WEB_GROUP + bench.pmacs["A"]}
    bench.assert_clean_wire(frames)
