"""A guest reaches no socket, address or route of the host, not the wire, not another port: with no agent alive, and
whatever an administrator has flushed. In place of from_guest a marker that passes everything (marker.py)."""

import time
from collections.abc import Callable
from contextlib import closing

import pytest
from host_bench import (
    GUEST_ADDRESSES,
    GUEST_MACS,
    HOST_ADDRESS,
    WIRE_ADDRESS,
    Bench,
    LocalDelivery,
    Witness,
    wait_for,
)
from hostile_frames import ALL_ONES, BRIDGE_MAC, ROUTER_MAC, ethernet, hostile_frames, ipv4, udp

pytestmark = pytest.mark.no_agent

FIREWALLD_LIKE = """
nft -f - <<'END'
table inet firewalld {
  chain filter_PREROUTING { type filter hook prerouting priority filter + 10; policy accept;
    ct state established,related accept; }
  chain filter_INPUT { type filter hook input priority filter + 10; policy accept;
    ct state established,related accept
    ct state invalid drop
    reject; }
  chain filter_FORWARD { type filter hook forward priority filter + 10; policy drop; }
}
END
"""
DOCKER_LIKE = """
iptables -P FORWARD ACCEPT
iptables -t nat -A POSTROUTING -s 10.0.0.0/8 -j MASQUERADE
iptables -t nat -A PREROUTING -p udp --dport 53 -j REDIRECT --to-ports 5353
"""


def flush_all(bench: Bench) -> None:
    bench.host.run("iptables -t raw -F; nft flush ruleset")


def as_it_is(bench: Bench) -> None:
    pass


def flush_raw(bench: Bench) -> None:
    bench.host.run("iptables -t raw -F")


def flush_and_lose_from_guest(bench: Bench) -> None:
    flush_all(bench)
    bench.unmark()


def flush_and_lose_port_filters(bench: Bench) -> None:
    flush_all(bench)
    bench.unwall_ports()


def br_netfilter(bench: Bench) -> None:
    bench.host.sysctl("bridge/bridge-nf-call-iptables", 1)


def ip_forward(bench: Bench) -> None:
    bench.host.sysctl("ipv4/ip_forward", 1)


def loose_rp_filter(bench: Bench) -> None:
    """systemd's sysctl.d/50-default.conf, which udev applies to new links."""
    for link in ("all", "divbr0", "tap1", "tap2"):
        bench.host.sysctl(f"ipv4/conf/{link}/rp_filter", 2)


def firewalld(bench: Bench) -> None:
    bench.host.run(FIREWALLD_LIKE)


def docker(bench: Bench) -> None:
    ip_forward(bench)
    br_netfilter(bench)
    bench.host.run(DOCKER_LIKE)


class Watch:
    """Everything that a frame of guest 1 could wrongly reach."""

    def __init__(self, bench: Bench) -> None:
        self._local = LocalDelivery(bench.host)
        self._witnesses = {
            "the wire": Witness(bench.wire, "w0"),
            "guest 2": Witness(bench.guests[1], "eth0"),
            "guest 1, as an answer": Witness(bench.guests[0], "eth0"),
        }

    def seen(self) -> list[str]:
        found = self._local.seen()
        for name, witness in self._witnesses.items():
            found += [f"{name} got {frame[:42].hex()}" for frame in witness.frames()]
        return found

    def close(self) -> None:
        self._local.close()
        for witness in self._witnesses.values():
            witness.close()


def send_everything(bench: Bench, but: str = "no such group") -> None:
    macs = {
        "divbr0": BRIDGE_MAC,
        "its tap": bench.ports[0].mac,
        "the router": ROUTER_MAC,
        "guest 2": GUEST_MACS[1],
        "broadcast": ALL_ONES,
        "a group": bytes.fromhex("01005e000001"),
        "LLDP's group": bytes.fromhex("0180c200000e"),
        "STP's group": bytes.fromhex("0180c2000000"),
        "802.1X's group": bytes.fromhex("0180c2000003"),
        "LACP's group": bytes.fromhex("0180c2000002"),
    }
    frames = hostile_frames(GUEST_MACS[0], macs, *GUEST_ADDRESSES, HOST_ADDRESS, WIRE_ADDRESS)
    bench.guest_sends(*(frame for name, frame in frames.items() if not name.endswith(f"to {but}")))


@pytest.mark.parametrize("host", [as_it_is, br_netfilter, ip_forward, loose_rp_filter, firewalld, docker])
@pytest.mark.parametrize(
    "state", [as_it_is, flush_raw, flush_all, flush_and_lose_from_guest, flush_and_lose_port_filters]
)
def test_nothing_of_a_hostile_guest_crosses(
    ruled: Bench, host: Callable[[Bench], None], state: Callable[[Bench], None]
) -> None:
    host(ruled)
    state(ruled)
    if state is not as_it_is:
        host(ruled)  # the host's own rules are there again, ours are not
    with closing(Watch(ruled)) as watch:
        time.sleep(0.05)
        watch.seen()
        send_everything(ruled)
        time.sleep(0.1)
        assert watch.seen() == []


def lose_wall_of_bridge(bench: Bench) -> None:
    bench.host.run("tc qdisc del dev divbr0 clsact")


def lose_rp_filter(bench: Bench) -> None:
    bench.host.sysctl("ipv4/conf/divbr0/rp_filter", 0)


def lose_isolation(bench: Bench) -> None:
    bench.unwall_ports()
    for port in ("tap1", "tap2"):
        bench.host.run(f"bridge link set dev {port} isolated off flood on mcast_flood on bcast_flood on")


@pytest.mark.parametrize(
    ("lose", "who"),
    [
        (lose_wall_of_bridge, "socket 2/0 ('0.0.0.0', 67) got something"),
        (lose_rp_filter, "socket 2/0 ('0.0.0.0', 53) got something"),
        (lose_rp_filter, "guest 1, as an answer got"),
        (lose_isolation, "guest 2 got"),
    ],
)
def test_each_wall_is_needed_once_the_rules_are_flushed(ruled: Bench, lose: Callable[[Bench], None], who: str) -> None:
    """The control of the tests above: with one wall taken away the watch does see something cross."""
    flush_all(ruled)
    lose(ruled)
    if who.startswith("guest 1"):
        ruled.host.run("ip route del blackhole 10.0.0.0/8")
        ruled.host.run(
            "ip route add 10.11.12.0/24 dev divbr0; ip neigh add 10.11.12.13 lladdr 52:54:00:01:02:03 dev divbr0"
        )
        ruled.host.run("ip link set divbr0 arp on; bridge link set dev tap1 flood on")
    with closing(Watch(ruled)) as watch:
        watch.seen()
        send_everything(ruled)
        assert wait_for(lambda: any(line.startswith(who) for line in watch.seen()))


def test_a_port_that_lost_from_guest_passes_nothing_even_where_isolation_is_lost(ruled: Bench) -> None:
    flush_all(ruled)
    ruled.unmark()
    for port in ("tap1", "tap2"):
        ruled.host.run(f"bridge link set dev {port} isolated off flood on mcast_flood on bcast_flood on")
    with closing(Watch(ruled)) as watch:
        watch.seen()
        send_everything(ruled)
        time.sleep(0.1)
        assert watch.seen() == []


def test_rp_filter_refuses_a_guests_source_before_delivery_and_before_forwarding(ruled: Bench) -> None:
    ip_forward(ruled)
    flush_all(ruled)

    def refused() -> int:
        return int(ruled.host.run("nstat -az TcpExtIPReversePathFilter").split()[-2])

    before = refused()
    to_host = ipv4(GUEST_ADDRESSES[0], HOST_ADDRESS, 17, udp(1001, 53, b"x"))
    onward = ipv4(GUEST_ADDRESSES[0], WIRE_ADDRESS, 17, udp(1001, 53, b"x"))
    ruled.guest_sends(*(ethernet(ROUTER_MAC, GUEST_MACS[0], 0x0800, packet) for packet in (to_host, onward)))
    assert wait_for(lambda: refused() == before + 2)


def test_a_port_that_was_plugged_in_while_no_agent_ran_reaches_no_port_that_is_set_up_nor_the_host(
    ruled: Bench,
) -> None:
    """But by LACP's group, which no setting of the bridge takes from a port that is not set up."""
    flush_all(ruled)
    ruled.host.run("ip link set tap1 nomaster; ip link set tap1 master divbr0; tc qdisc del dev tap1 clsact")
    with closing(Watch(ruled)) as watch:
        watch.seen()
        send_everything(ruled, but="LACP's group")
        time.sleep(0.1)
        assert watch.seen() == []


def test_a_flood_of_the_slow_path_with_no_agent_is_dropped_by_the_queue_not_delivered(ruled: Bench) -> None:
    packet = ipv4(GUEST_ADDRESSES[0], HOST_ADDRESS, 17, udp(1001, 53, b"x"))
    with closing(Watch(ruled)) as watch:
        ruled.guest_sends(*[ethernet(ROUTER_MAC, GUEST_MACS[0], 0x0800, packet)] * 2000)
        time.sleep(0.1)
        assert watch.seen() == []


def test_the_hosts_own_traffic_and_its_other_bridge_are_untouched(ruled: Bench) -> None:
    """Own sockets to the wire and back, marked loopback traffic, and two guests of another bridge."""
    ruled.host.run(f"ping -c 1 -W 2 {WIRE_ADDRESS}")
    ruled.wire.run(f"ping -c 1 -W 2 {HOST_ADDRESS}")
    ruled.host.run("ping -c 1 -W 2 -m 209 127.0.0.1")
    ruled.host.run("ip link add virbr7 type bridge; ip link set virbr7 up")
    for number, guest in enumerate(ruled.guests, 1):
        ruled.host.run(f"ip link add other{number} master virbr7 type veth peer name eth1 netns {guest.name}")
        ruled.host.run(f"ip link set other{number} up")
        guest.run(f"ip addr add 198.51.100.{number}/24 dev eth1; ip link set eth1 up")
    ruled.guests[0].run("ping -c 1 -W 2 198.51.100.2")
