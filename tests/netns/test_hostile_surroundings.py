"""Guests talk, and reach nothing of their host, whatever else the host's administrator has set up or flushed."""

import re
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from itertools import pairwise

import pytest
from bare_fixtures import ADDRESS, CAST, BareBench, Everywhere, Place, WireWitness, bare_bench, between_hosts
from guest_attacks import attacks
from test_walls import DOCKER_LIKE, FIREWALLD_LIKE

from divhook.lab.bare import BareSpec

CONNTRACK = """
nft -f - <<'END'
table inet tracker {
  chain prerouting { type filter hook prerouting priority -150; policy accept;
    ct state invalid counter drop
    ct state new counter accept; }
  chain input { type filter hook input priority 0; policy accept;
    ct state invalid counter drop; }
  chain forward { type filter hook forward priority 0; policy accept;
    ct state new counter drop; }
}
END
"""
DROP_ALL = """
nft -f - <<'END'
table inet firewalld {
  chain input { type filter hook input priority filter; policy drop;
    ct state established,related accept
    iifname lo accept; }
  chain forward { type filter hook forward priority filter; policy drop; }
}
END
"""
SETTINGS = {
    "plain": "sysctl -qw net.ipv4.ip_forward=0; sysctl -qew net.bridge.bridge-nf-call-iptables=0",
    "br_netfilter": "sysctl -qw net.bridge.bridge-nf-call-iptables=1 net.bridge.bridge-nf-call-arptables=1",
    "ip_forward": "sysctl -qw net.ipv4.ip_forward=1",
    "firewalld": FIREWALLD_LIKE,
    "drop input and forward": DROP_ALL,
    "conntrack": CONNTRACK,
    "docker": f"sysctl -qw net.ipv4.ip_forward=1\n{DOCKER_LIKE}",
    "all together": "sysctl -qw net.bridge.bridge-nf-call-iptables=1 net.ipv4.ip_forward=1\n"
    + DOCKER_LIKE
    + DROP_ALL
    + CONNTRACK,
}
UNDO = """
sysctl -qw net.ipv4.ip_forward=0 net.bridge.bridge-nf-call-iptables=0 net.bridge.bridge-nf-call-arptables=0
for table in firewalld tracker; do nft delete table inet $table 2>/dev/null; done
iptables -t nat -F; nft delete table ip nat 2>/dev/null; iptables -P FORWARD ACCEPT
nft delete table ip filter 2>/dev/null
true
"""
COLD = tuple(BareSpec(f"cold{n}", "B", "shop", "web", f"10.1.1.{80 + n}") for n in range(2 * len(SETTINGS)))
ROUTER = "10.1.1.1"
"""The agent answers for it whatever the fast path knows, by way of the host's netfilter."""
PAIRS = (("near", "far", "64"), ("near", "db", "63"), ("far", "db", "63"), ("db", "near", "63"))
HALF_MIB = 1 << 19

# Takes one TCP stream and one UDP datagram on port 5000, and says how many bytes and what.
SERVER = """
import socket
u = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); u.bind(("0.0.0.0", 5000))
t = socket.create_server(("0.0.0.0", 5000)); print("ready", flush=True)
u.settimeout(20); t.settimeout(20)
c, _ = t.accept(); c.settimeout(20); n = 0
while data := c.recv(65536): n += len(data)
print(n, u.recv(65536).decode()[:8], flush=True)
"""
CLIENT = """
import socket, sys
t = socket.create_connection((sys.argv[1], 5000), 20); t.sendall(b"x" * int(sys.argv[2])); t.close()
u = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
for size in (8, 1400, 3000): u.sendto(b"datagram" + b"y" * (size - 8), (sys.argv[1], 5000))
"""


@pytest.fixture(scope="module")
def bare() -> Iterator[BareBench]:
    """The usual lab, with two guests for each setting that nobody has talked to yet."""
    with bare_bench((*CAST, *COLD)) as bench:
        yield bench


@contextmanager
def every_host(bare: BareBench, script: str) -> Iterator[None]:
    """A setting on all hosts, undone after."""
    try:
        for host in bare.lab.hosts.values():
            host.exec("sh", "-euc", script or "true")
        yield
    finally:
        for host in bare.lab.hosts.values():
            host.exec("sh", "-c", UNDO)


def streams(bare: BareBench, source: str, target: str) -> str:
    """What the target says that it got by TCP and UDP."""
    with bare.in_guest(target, SERVER) as server:
        assert server.stdout is not None
        server.stdout.readline()
        with bare.in_guest(source, CLIENT, ADDRESS[target], str(HALF_MIB)) as client:
            assert client.wait(30) == 0, client.communicate()
        return server.communicate(timeout=30)[0].strip()


@pytest.mark.parametrize("setting", SETTINGS)
def test_guests_talk_and_reach_nothing_of_the_host(bare: BareBench, setting: str) -> None:
    first = 2 * list(SETTINGS).index(setting)
    with every_host(bare, SETTINGS[setting]):
        # What A's agent has to decide: a guest's frame, one from the wire, one to itself.
        for source, target in (("near", f"cold{first}"), (f"cold{first + 1}", "near"), ("near", ROUTER)):
            found = bare.ping(source, target, 2, 0.02)
            assert found.received == 2, (source, target, found.output)
        for source, target, ttl in PAIRS:
            found = bare.ping(source, target, 2, 0.02)
            assert (found.received, found.ttls) == (2, {ttl}), found.output
            large = bare.ping(source, target, 2, 0.02, size=3000)
            assert large.received == 2, large.output
        for source, target, _ in PAIRS[:2]:
            assert streams(bare, source, target) == f"{HALF_MIB} datagram"
        assert bare.ping("near", "alien", 2, 0.02, wait_s=0.5).received == 0
        assert_nothing_crosses(bare)


def assert_nothing_crosses(bare: BareBench) -> None:
    frames = [frame for kind in attacks().values() for _, frame, _ in kind]
    with closing(Everywhere(bare, but=("mal",))) as everywhere:
        time.sleep(0.1)
        everywhere.seen()
        bare.guest_sends("mal", *frames)
        time.sleep(0.3)
        assert everywhere.seen() == []


@pytest.mark.parametrize("setting", ["br_netfilter", "conntrack"])
def test_the_settings_are_in_force(bare: BareBench, setting: str) -> None:
    """What the tests above set works here: else they show nothing."""
    with every_host(bare, SETTINGS[setting]):
        host = bare.lab.host("A")
        if setting == "br_netfilter":
            assert host.exec("sysctl", "-n", "net.bridge.bridge-nf-call-iptables").stdout.strip() == "1"
        else:
            bare.lab.host("B").exec("ping", "-c", "1", "-W", "2", host.plan.address)
            rules = host.exec("nft", "list", "ruleset").stdout
            assert re.search(r"ct state new counter packets [1-9]\d* bytes \d+ accept", rules), rules


FLUSHES = {
    "nft flush ruleset": ("nft flush ruleset",),
    "iptables -t raw -F": ("iptables -t raw -F",),
    "both, again and again": ("nft flush ruleset", "iptables -t raw -F") * 3,
    "the tables deleted": ("nft delete table bridge divhook", "nft delete table ip divhook"),
}


@pytest.mark.parametrize("flush", FLUSHES)
def test_a_flush_leaks_nothing_and_service_is_back_within_a_second(
    bare: BareBench, flush: str, fastpath: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    """The fast path does not even notice: what it forwards passes no netfilter."""
    host = bare.lab.host("A")
    hostile = [frame for kind in attacks().values() for _, frame, _ in kind]
    with ExitStack() as stack:
        host.exec("sysctl", "-qw", "net.ipv4.ip_forward=1")
        stack.callback(host.exec, "sysctl", "-qw", "net.ipv4.ip_forward=0")
        everywhere = stack.enter_context(closing(Everywhere(bare, but=("mal", "near", "far", "db"))))
        wire = stack.enter_context(closing(WireWitness(Place(bare.lab.switch))))
        everywhere.seen()
        stop = threading.Event()
        flooder = threading.Thread(target=_keep_sending, args=(bare, hostile, stop))
        with (
            bare.steady_ping("near", "far", 3, 0.02) as far,
            bare.steady_ping("near", "db", 3, 0.02) as db,
            bare.steady_ping("near", ROUTER, 3, 0.02) as router,
        ):
            flooder.start()
            for command in FLUSHES[flush]:
                time.sleep(0.4)
                host.exec("sh", "-c", command)
        stop.set()
        flooder.join()
        time.sleep(0.2)
        gaps = {name: longest_gap_s(p.result.output) for name, p in (("far", far), ("db", db), ("router", router))}
        with capsys.disabled():
            print(f"\n    {flush}: longest silence", ", ".join(f"{gap:.2f} s to {name}" for name, gap in gaps.items()))
        frames = wire.frames()
        bare.assert_clean_wire(frames)
        talking = {ADDRESS[name] for name in ("near", "far", "db")}
        assert {address for f in frames if not between_hosts(f) for address in addresses(f)} <= talking
        assert not [line for line in everywhere.seen() if "the wire has" not in line]
        assert max(gaps.values()) < 1
        if fastpath:
            assert all(each.result.received == each.result.sent for each in (far, db))


def addresses(frame: bytes) -> Sequence[str]:
    return [".".join(map(str, frame[at : at + 4])) for at in (26, 30)]


def _keep_sending(bare: BareBench, frames: Sequence[bytes], stop: threading.Event) -> None:
    while not stop.is_set():
        for at in range(0, len(frames), 16):
            bare.guest_sends("mal", *frames[at : at + 16])
            time.sleep(0.01)


def longest_gap_s(output: str) -> float:
    """Longest time between two answers of a ping -D."""
    times = [float(line[1:].partition("]")[0]) for line in output.splitlines() if "bytes from" in line]
    assert len(times) > 20, output
    return max(b - a for a, b in pairwise(times))
