"""Offloads, segments, checksums and lengths as real virtio NICs make them, over the fast path and beside it.

One lab for the module: big1, big2 on host A and far on B in subnet web; narrow on B in a subnet with MTU 1400, and bare
on B in web, whose NIC has no offload at all.
"""

import json
import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import pytest
from lab_cast import listing

from divhook.lab.demo import trace
from divhook.lab.guest import GuestSpec, LabGuest, Nic, domain_xml
from divhook.lab.host import LabHost
from divhook.lab.lab import Lab

CELL = """\
cell: shop
number: 1
owner: shop team <shop@example.net>
subnets:
  web: {number: 1, mtu: 1500}
  narrow: {number: 3, mtu: 1400}
"""
PLACES = {
    "big1": ("A", "web"),
    "big2": ("A", "web"),
    "far": ("B", "web"),
    "narrow": ("B", "narrow"),
    "bare": ("B", "web"),
}
WAYS = [("big1", "big2"), ("big1", "far"), ("far", "big1"), ("big1", "narrow"), ("narrow", "big1"), ("far", "narrow")]
"""Same host, across both ways, routed across both ways, routed on one host."""

NO_OFFLOADS = """<model type='virtio'/>
      <driver>
        <host csum='off' gso='off' tso4='off' tso6='off' ecn='off' ufo='off' mrg_rxbuf='off'/>
        <guest csum='off' tso4='off' tso6='off' ecn='off' ufo='off'/>
      </driver>"""

# virtio 1.2 §5.1.3: bits of a NIC's negotiated features
CSUM, GUEST_CSUM, GUEST_TSO4, HOST_TSO4 = 0, 1, 7, 11
OFFLOADS = ("tx", "rx", "sg", "tso", "gso")
STREAM_BYTES = 2_000_000
STREAM_PORT, OPTION_PORT = 5000, 6000
UNTIL_GOT = "i=0; until [ -s /tmp/got ] || [ $((i += 1)) = 100 ]; do sleep 0.1; done"
ETH_LEN, MTU, NARROW_MTU, IP_ICMP_LEN = 14, 1500, 1400, 28

ADDRESSES: dict[str, str] = {}
TAPS: dict[str, str] = {}


@pytest.fixture(scope="module")
def guests(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, LabGuest]]:
    cells = tmp_path_factory.mktemp("cells")
    (cells / "shop.yaml").write_text(CELL)
    with Lab(tmp_path_factory.mktemp("offloads"), hosts=2, cells=cells) as lab:
        wanted = [(GuestSpec(name, (Nic("shop", subnet),)), host) for name, (host, subnet) in PLACES.items()]
        spec, host = wanted.pop()
        path = lab.host(host).outside("/run/divhook-lab/bare.xml")
        path.write_text(domain_xml(spec, lab.image).replace("<model type='virtio'/>", NO_OFFLOADS))
        lab.host(host).virsh("create", "/run/divhook-lab/bare.xml")
        every = [*lab.start_all(wanted), LabGuest(lab.host(host), spec.name).wait_up()]
        for guest in every:
            ADDRESSES[guest.name] = guest.wait_address()
            TAPS[guest.name] = tap(guest)
        greet = "; ".join(f"ping -c 1 -W 5 {address}" for address in ADDRESSES.values())
        with ThreadPoolExecutor() as pool:
            list(pool.map(lambda guest: guest.run(greet), every))
        yield {guest.name: guest for guest in every}


def features(guest: LabGuest) -> set[int]:
    """Bits of features that the guest's NIC has negotiated."""
    bits = guest.exec("cat /sys/class/net/eth0/device/features").strip()
    return {number for number, bit in enumerate(bits) if bit == "1"}


def tap(guest: LabGuest) -> str:
    """The guest's tap on its host."""
    match = re.search(r"<target dev='([^']+)'", guest.host.virsh("dumpxml", guest.name))
    assert match is not None
    return match[1]


def link(host: LabHost, name: str) -> tuple[int, int, int, int]:
    """Packets and bytes received, packets and bytes sent by an interface of a host, as the kernel counts skbs."""
    (row,) = json.loads(host.exec("ip", "-j", "-s", "link", "show", name).stdout)
    received, sent = row["stats64"]["rx"], row["stats64"]["tx"]
    return received["packets"], received["bytes"], sent["packets"], sent["bytes"]


def counted(guest: LabGuest) -> tuple[int, int]:
    """Packets and bytes that came from the guest and were forwarded, as the programs count them."""
    (port,) = (row["port"] for row in listing(guest.host, "endpoints") if row["guest"] == guest.name)
    (pin,) = guest.host.exec("sh", "-c", "echo /sys/fs/bpf/divhook/v*/maps/traffic").stdout.split()
    key = f"key hex {port % 256:02x} {port // 256 % 16:02x} 00 00"
    row = json.loads(guest.host.exec(*f"bpftool -j map lookup pinned {pin} {key}".split()).stdout)
    values = [cpu["value"] for cpu in row["formatted"]["values"]]
    return sum(value["from_packets"] for value in values), sum(value["from_bytes"] for value in values)


def errors(guest: LabGuest) -> dict[str, int]:
    """What the guest's stack has refused of what it was given: all checksum and header errors."""
    found: dict[str, int] = {}
    heads: dict[str, list[str]] = {}
    for line in guest.exec("cat /proc/net/snmp").splitlines():
        kind, *words = line.split()
        if kind not in heads:
            heads[kind] = words
            continue
        for name, word in zip(heads.pop(kind), words, strict=True):
            if name in ("InCsumErrors", "InErrs", "InErrors", "InHdrErrors", "ReasmFails"):
                found[kind + name] = int(word)
    return found


def send(one: LabGuest, other: LabGuest) -> bool:
    """Whether a stream of random bytes by TCP is the same at the other end."""
    listen = f"(timeout 40 socat -u -b 65536 TCP-LISTEN:{STREAM_PORT},reuseaddr STDOUT | sha256sum >/tmp/got)"
    other.exec(f"rm -f /tmp/got; {listen} >/dev/null 2>&1 &")
    make = f"dd if=/dev/urandom of=/tmp/sent bs=100000 count={STREAM_BYTES // 100000} 2>/dev/null"
    to = f"TCP:{ADDRESSES[other.name]}:{STREAM_PORT},retry=50,interval=0.1"
    sent = one.exec(f"[ -e /tmp/sent ] || {make}; socat -u -b 65536 /tmp/sent {to} && sha256sum </tmp/sent")
    return other.exec(f"{UNTIL_GOT}; cat /tmp/got") == sent


def pings(one: LabGuest, other: LabGuest, *sizes: int) -> int:
    """Answers to a ping of each size (bytes of payload); don't-fragment is set where it fits the guest's MTU."""
    command = f"for size in {' '.join(map(str, sizes))}; do ping -c 1 -s $size -W 2 {ADDRESSES[other.name]}; done"
    return one.run(command).output.count(" bytes from ")


def unreachables(guest: LabGuest) -> int:
    """ICMP destination unreachable messages, of which one is fragmentation needed, that a guest has been sent."""
    return int(guest.exec("awk '/^Icmp:/ && ++n == 2 {print $5}' /proc/net/snmp"))


@dataclass(frozen=True, slots=True)
class Crossing:
    """What moved while something was sent: packets and bytes at both taps and at the sender's uplink."""

    came: tuple[int, int]
    crossed: tuple[int, int]
    went: tuple[int, int]
    counted: tuple[int, int]
    seen_by_agents: int

    @classmethod
    def total(cls, one: LabGuest, other: LabGuest) -> "Crossing":
        """Since the beginning of time."""
        agents = {one.host.name: one.host, other.host.name: other.host}.values()
        return cls(
            link(one.host, TAPS[one.name])[:2],
            link(one.host, "up0")[2:],
            link(other.host, TAPS[other.name])[2:],
            counted(one),
            sum(host.ask_agent({"op": "status"})["result"]["slow_path"]["from_guest"] for host in agents),
        )


def mean(new: tuple[int, int], old: tuple[int, int]) -> float:
    """Bytes per frame between two counts of (packets, bytes)."""
    return (new[1] - old[1]) / max(1, new[0] - old[0])


def test_guests_have_negotiated_offloads_and_the_bare_one_none(guests: dict[str, LabGuest]) -> None:
    wanted = {CSUM, GUEST_CSUM, GUEST_TSO4, HOST_TSO4}
    assert {name: features(guest) & wanted for name, guest in guests.items()} == {
        "big1": wanted,
        "big2": wanted,
        "far": wanted,
        "narrow": wanted,
        "bare": set(),
    }


@pytest.mark.parametrize(("one", "other"), WAYS)
def test_stream_arrives_whole_in_segments_that_nobody_has_cut(
    guests: dict[str, LabGuest], fastpath: bool, one: str, other: str
) -> None:
    sender, receiver = guests[one], guests[other]
    refused = errors(sender), errors(receiver)
    before = Crossing.total(sender, receiver)
    assert send(sender, receiver)
    after = Crossing.total(sender, receiver)
    assert (errors(sender), errors(receiver)) == refused
    assert mean(after.came, before.came) > 2 * MTU
    if fastpath:  # else the agent sends segments one by one
        assert mean(after.went, before.went) > 2 * MTU
        assert sender.host is receiver.host or mean(after.crossed, before.crossed) > 2 * MTU
        assert after.seen_by_agents == before.seen_by_agents
        # counted as they would be on a wire
        packets, octets = (new - old for new, old in zip(after.counted, before.counted, strict=True))
        assert packets >= STREAM_BYTES / (MTU - 40)
        assert octets >= STREAM_BYTES


@pytest.mark.parametrize(("one", "other"), [("big1", "bare"), ("far", "bare"), ("bare", "big1")])
def test_a_nic_without_offloads_gets_segments_that_it_can_take(
    guests: dict[str, LabGuest], one: str, other: str
) -> None:
    sender, receiver = guests[one], guests[other]
    before, refused = link(receiver.host, TAPS[other]), errors(receiver)
    assert send(sender, receiver)
    assert errors(receiver) == refused
    if other == "bare":
        assert mean(link(receiver.host, TAPS[other])[2:], before[2:]) <= MTU + ETH_LEN


def test_an_uplink_without_offloads_carries_segments_cut_in_software(guests: dict[str, LabGuest]) -> None:
    one, far, narrow = guests["big1"], guests["far"], guests["narrow"]
    hosts = one.host, far.host
    try:
        for host in hosts:
            host.exec("ethtool", "-K", "up0", *(word for name in OFFLOADS for word in (name, "off")))
        before, refused = link(one.host, "up0"), {name: errors(guest) for name, guest in guests.items()}
        assert send(one, far)
        assert send(narrow, one)
        assert mean(link(one.host, "up0")[2:], before[2:]) <= MTU + ETH_LEN
        assert {name: errors(guest) for name, guest in guests.items()} == refused
    finally:
        for host in hosts:
            host.exec("ethtool", "-K", "up0", *(word for name in OFFLOADS for word in (name, "on")))


@pytest.mark.parametrize("other", ["big2", "far"])
def test_a_packet_of_the_mtu_passes_a_subnet_and_one_byte_more_does_not(
    guests: dict[str, LabGuest], other: str
) -> None:
    one, receiver = guests["big1"], guests[other]
    whole = MTU - IP_ICMP_LEN
    try:
        for guest in (one, receiver):
            guest.exec("ip link set eth0 mtu 1600")  # else its own stack would cut or refuse
        assert pings(one, receiver, whole, whole, whole + 1, whole) == 3
    finally:
        for guest in (one, receiver):
            guest.exec(f"ip link set eth0 mtu {MTU}")


@pytest.mark.parametrize("one", ["big2", "far"])
def test_a_cached_route_to_a_smaller_mtu_is_told_to_the_sender_who_goes_on(
    guests: dict[str, LabGuest], one: str
) -> None:
    sender, receiver = guests[one], guests["narrow"]
    whole = NARROW_MTU - IP_ICMP_LEN
    try:
        receiver.exec(f"ip link set eth0 mtu {MTU}")  # it says by its MSS that it takes more than its subnet carries
        told = unreachables(sender)
        assert pings(sender, receiver, whole, whole) == 2
        assert unreachables(sender) == told
        assert send(sender, receiver)
        assert unreachables(sender) > told
        assert pings(sender, receiver, whole + 1) == 1  # cut by the sender now
    finally:
        receiver.exec(f"ip link set eth0 mtu {NARROW_MTU}")


@pytest.mark.parametrize(("one", "other"), [*WAYS, ("far", "bare")])
def test_fragments_arrive_the_last_ones_of_a_few_bytes_too(guests: dict[str, LabGuest], one: str, other: str) -> None:
    refused = errors(guests[other])
    last_of_3, last_of_1 = 2 * (MTU - 20) - 8 + 3, 3 * (NARROW_MTU - 24) - 8 + 1
    assert pings(guests[one], guests[other], 4000, last_of_3, last_of_1) == 3
    assert errors(guests[other]) == refused


@pytest.mark.parametrize(("one", "other"), WAYS)
def test_ip_options_arrive(guests: dict[str, LabGuest], one: str, other: str) -> None:
    receiver = guests[other]
    option = "9e08d17e01020304"  # RFC 4727 §3.4: for experiments, so nobody on the way has an opinion
    listen = f"timeout 20 socat -u -d -d -d -d UDP-RECV:{OPTION_PORT},ip-recvopts STDOUT >/tmp/got 2>/tmp/log"
    receiver.exec(f"rm -f /tmp/got; {listen} & i=0; until grep -q :{OPTION_PORT:04X} /proc/net/udp; do sleep 0.1; done")
    to = f"UDP:{ADDRESSES[other]}:{OPTION_PORT},ip-options=x{option}"
    guests[one].exec(f"echo an option | socat -u STDIN {to}")
    got = receiver.exec(f"{UNTIL_GOT}; cat /tmp/got /tmp/log; killall socat")
    assert got.startswith("an option\n")
    assert option in got.replace(" ", ""), got


@pytest.mark.parametrize(
    ("one", "other", "routers"),
    [("big1", "big2", 0), ("big1", "far", 0), ("far", "narrow", 1), ("big1", "narrow", 1), ("narrow", "big1", 1)],
)
def test_one_router_is_seen_between_subnets_and_none_within(
    guests: dict[str, LabGuest], one: str, other: str, routers: int
) -> None:
    router = guests[one].dhcp_options()["router"]
    assert trace(guests[one], ADDRESSES[other]) == [router] * routers + [ADDRESSES[other]]
