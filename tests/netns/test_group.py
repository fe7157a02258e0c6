"""Broadcast and multicast by the tools that people use, between guests on three hosts, and what the wire shows of it.

host A   one, two (shop/web)   lone (lab/web)      host B   three (shop/web)   base (shop/db)
host C   four (shop/web)
"""

import re
import socket
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path

import pytest
from bare_fixtures import (
    NIC,
    WEB_GROUP,
    BareBench,
    Place,
    bare_bench,
    between_hosts,
    wait_for,
    witnesses,
)

from divhook.core.addressing import BROADCAST_MAC
from divhook.core.addressing import parse_address as raw
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


@pytest.fixture(scope="module")
def bench() -> Iterator[BareBench]:
    with bare_bench((*WEB, *OUTSIDERS), quiet=()) as made:
        for guest in made.lab.bare.values():
            guest.exec("sysctl", "-qw", "net.ipv4.icmp_echo_ignore_broadcasts=0")
        yield made


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


# --- multicast

GROUP, PORT = "239.1.2.3", 5007
MDNS = "224.0.0.251"


@contextmanager
def members(bench: BareBench, names: Sequence[str], directory: Path) -> Iterator[Callable[[], dict[str, str]]]:
    """socat in each of these guests, in the group; what each has received."""
    with ExitStack() as stack:
        for name in names:
            socat = (
                "socat",
                "-u",
                f"UDP4-RECV:{PORT},ip-add-membership={GROUP}:{NIC},reuseaddr",
                f"CREATE:{directory}/{name}",
            )
            process = subprocess.Popen(bench.guest(name).namespace.enter(*socat))
            stack.callback(process.wait)
            stack.callback(process.kill)
        hosts = {bench.guest(name).host.name for name in names}
        assert wait_for(lambda: all(joined(bench, host) for host in hosts), 10)
        yield lambda: {name: (directory / name).read_text() for name in names if (directory / name).exists()}


def joined(bench: BareBench, host: str) -> list[str]:
    """Groups that the agent of a host knows members of."""
    rows = bench.lab.host(host).ask_agent({"op": "groups"})["result"]
    return [row["guest"] for row in rows if row["group"] == GROUP]


def tell(bench: BareBench, name: str, text: str, ttl: int = 1) -> None:
    """One datagram to the group."""
    target = f"UDP4-DATAGRAM:{GROUP}:{PORT},ip-multicast-if={bench.address(name)},ip-multicast-ttl={ttl}"
    bench.guest(name).exec("socat", "-u", "-", target, input_text=text)


def test_only_members_get_a_group_and_others_see_nothing(bench: BareBench, tmp_path: Path) -> None:
    with members(bench, ("two", "four", "base", "lone"), tmp_path) as received, witnesses(bench) as (guests, wire):
        for number in range(5):
            tell(bench, "one", f"{number};")
        time.sleep(SETTLE_S)
        got = received()
        seen = {name: [f for f in each.frames() if f[30:34] == raw(GROUP)] for name, each in guests.items()}
        frames = [f for f in wire.frames() if f[30:34] == raw(GROUP)]
    assert got == {"two": "0;1;2;3;4;", "four": "0;1;2;3;4;", "base": "", "lone": ""}
    assert {name: len(each) for name, each in seen.items()} == {
        **dict.fromkeys(("one", "three", "lone", "base"), 0),
        **dict.fromkeys(("two", "four"), 5),
    }
    assert [f[:12] for f in frames] == [WEB_GROUP + bench.pmacs["A"]] * 5
    bench.assert_clean_wire(frames)


def test_who_left_gets_no_more(bench: BareBench, tmp_path: Path) -> None:
    with members(bench, ("two",), tmp_path) as received:
        tell(bench, "four", "while;")
        time.sleep(SETTLE_S)
        assert received() == {"two": "while;"}
    assert wait_for(lambda: not joined(bench, "A"), 5)
    with witnesses(bench) as (guests, _):
        tell(bench, "four", "after;")
        time.sleep(SETTLE_S)
        assert [f for f in guests["two"].frames() if f[30:34] == raw(GROUP)] == []
    assert bench.lab.drops("A").get(("(wire)", "no_member"), 0) > 0


def test_mdns_finds_a_service_on_another_host(bench: BareBench, tmp_path: Path) -> None:
    configuration = tmp_path / "avahi.conf"
    configuration.write_text("[server]\nhost-name=printer\nenable-dbus=no\nuse-ipv6=no\n[rlimits]\n")
    command = (
        "mkdir -p /run/avahi-daemon && mount -t tmpfs none /run/avahi-daemon && "
        f"exec avahi-daemon --no-drop-root --no-chroot --no-rlimits -f {configuration}"
    )
    words = bench.guest("four").namespace.enter("unshare", "-m", "sh", "-c", command)
    avahi = subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        with Place(bench.guest("one").namespace).entered():
            asker = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        with closing(asker):
            asker.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_IF, socket.inet_aton(ADDRESS["one"]))
            asker.settimeout(0.5)
            question = bytes(5) + b"\1" + bytes(6) + b"\7printer\5local\0\0\1\0\1"
            assert wait_for(lambda: address_told(asker, question) == raw(ADDRESS["four"]), 15)
    finally:
        avahi.kill()
        avahi.wait()


def address_told(asker: socket.socket, question: bytes) -> bytes:
    """The last four bytes of an answer: its A record, where it has one alone."""
    asker.sendto(question, (MDNS, 5353))
    try:
        return asker.recv(1500)[-4:]
    except TimeoutError:
        return b""


def test_members_stay_over_an_agents_restart(bench: BareBench, tmp_path: Path) -> None:
    """From the kernel's lists with the fast path; else once the guest has answered, within 10 s."""
    with members(bench, ("two",), tmp_path) as received:
        host = bench.lab.host("A")
        host.agent_stop()
        host.agent_start()
        bench.lab.wait_active()
        assert wait_for(lambda: joined(bench, "A"), 12)
        assert wait_for(lambda: bool(tell(bench, "four", "again;") or received().get("two")), 5)
