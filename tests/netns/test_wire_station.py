"""A station on the wire without the key: what it forges, repeats or floods changes no table and reaches no guest.

A  near, mal      B  far, db, cold1 …      C  no guest      X  the station, its MAC known to nobody
"""

import json
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path

import pytest
from bare_fixtures import (
    ADDRESS,
    CAST,
    WEB_GROUP,
    BareBench,
    Drops,
    Everywhere,
    Place,
    WireWitness,
    bare_bench,
    wait_for,
)
from hostile_frames import ALL_ONES, echo_request, ethernet, ipv4, udp

from divhook.core.addressing import ALL_HOSTS_GROUP, parse_address, parse_mac
from divhook.core.wire.discovery import (
    ANSWERS,
    CLAIMS_ON_SPA,
    Claim,
    Envelope,
    Message,
    MessageType,
    emit,
    is_discovery,
    parse_discovery_untrusted,
)
from divhook.lab.bare import BareSpec
from divhook.lab.namespaces import Namespaces

COLD = tuple(BareSpec(f"cold{n}", "B", "shop", "web", f"10.1.1.{80 + n}") for n in range(8))
STATION = "X"
NEAR, FAR, NOBODY = ADDRESS["near"], ADDRESS["far"], "10.1.1.222"
IPV4, ARP = 0x0800, 0x0806
KINDS = tuple(MessageType)


class Wire(BareBench):
    """The bench with the station, as tests of this file use it."""

    station: Namespaces
    mac: bytes

    def add_station(self) -> None:
        self.station = self.lab.add_station(STATION)
        [link] = json.loads(self.station.run("ip", "-j", "link", "show", "up0").stdout)
        self.mac = parse_mac(link["address"])
        # A switch that learns would follow forged MACs: jamming, not what is tested here.
        self.lab.switch.ip(f"link set p{STATION} type bridge_slave learning off")
        # Nor does a switch look at IPv4: br_netfilter would keep malformed packets to itself.
        self.lab.switch.run("sysctl", "-qw", "net.bridge.bridge-nf-call-iptables=0", check=False)

    def station_sends(self, *frames: bytes) -> None:
        self.send(self.station, "up0", *frames)


@pytest.fixture(scope="module")
def wire() -> Iterator[Wire]:
    with bare_bench((*CAST, *COLD), bench_class=Wire) as bench:
        assert isinstance(bench, Wire)
        bench.add_station()
        yield bench


@contextmanager
def nothing_changes(wire: Wire) -> Iterator[None]:
    """In the body tables stay as they are, nothing arrives anywhere, and guests' traffic loses nothing."""
    wire.ping("near", "far", 1)
    wire.ping("near", "db", 1)
    believed, endpoints = wire.neighbours(), wire.endpoints()
    assert believed["A", FAR][0] == wire.pmacs["B"].hex(":")
    with closing(Everywhere(wire, but=("near", "far"))) as everywhere:
        with wire.steady_ping("near", "far", 1.5, 0.05) as steady:
            yield
        assert steady.result.received == steady.result.sent, steady.result.output
        assert [line for line in everywhere.seen() if "the wire has" not in line] == []
    assert wire.neighbours() == believed
    assert wire.endpoints() == endpoints


def forged(
    kind: MessageType, source: bytes, destination: bytes, host: bytes, address: str = FAR, key_id: int = 1
) -> bytes:
    """A discovery frame, right but for its tag: `host` holds the address, with a stamp above all others."""
    on_spa = kind in CLAIMS_ON_SPA
    spoken = parse_address(address)
    claim = Claim(spoken, b"\x52\x54\x00\xba\xdb\xad", host, 1 << 61, 1, 7, 0)
    spa, tpa = (spoken, parse_address(NEAR)) if on_spa else (bytes(4), spoken)
    payload = bytes(8) if kind is MessageType.CHALLENGE_REPLY else b""
    message = Message(kind, source, destination, spa, tpa, claim, nonce=0x1122334455667788, payload=payload)
    return emit(message, Envelope(0xABCDEF, 1 << 40, key_id)) + b"\x5a" * 16


def test_forged_discovery_is_refused_by_its_tag_and_changes_nothing(wire: Wire) -> None:
    sent: Counter[str] = Counter()
    with nothing_changes(wire):
        before = wire.drops()
        for kind in KINDS:
            for source in (wire.mac, wire.pmacs["B"]):
                for address in (FAR, NEAR, ADDRESS["db"], NOBODY):
                    for key_id in (0, 1, 255):
                        wire.station_sends(forged(kind, source, wire.pmacs["A"], source, address, key_id))
                        sent["A"] += 1
                        if sent["A"] % 20 == 0:
                            time.sleep(0.01)
        counted = wire.new_drops(before, sent.total())
        assert counted == Counter({("A", "(wire)", "discovery_auth"): sent["A"]})


def test_forged_discovery_to_groups_wakes_only_who_has_joined(wire: Wire) -> None:
    with nothing_changes(wire):
        before, woken = wire.drops(), wire.slow_path("C")["discovery"]
        for group in (WEB_GROUP, ALL_HOSTS_GROUP):
            wire.station_sends(*(forged(kind, wire.mac, group, wire.mac) for kind in KINDS))
        counted = wire.new_drops(before, 6 * len(KINDS))
        expected: Drops = Counter()
        for host in "AB":
            expected[host, "(wire)", "discovery_auth"] = 2 * len(KINDS)
        expected["C", "(wire)", "discovery_auth"] = expected["C", "(wire)", "not_joined"] = len(KINDS)
        assert counted == expected
    assert wire.slow_path("C")["discovery"] - woken == len(KINDS)


def test_malformed_discovery_is_dropped_by_its_reason(wire: Wire) -> None:
    good = forged(MessageType.ANNOUNCE, wire.mac, wire.pmacs["A"], wire.mac)
    cases = {
        "short": (good[:-1], "discovery_malformed"),
        "trailer alone": (good[:44], "discovery_malformed"),
        "too long": (good + bytes(1100), "discovery_malformed"),
        "version 2": (good[:44] + b"\x02" + good[45:], "discovery_malformed"),
        "type 99": (good[:47] + b"\x63" + good[48:], "discovery_malformed"),
        "sha of another": (good[:22] + wire.pmacs["B"] + good[28:], "discovery_malformed"),
        "length past the end": (good[:50] + b"\x04\x00" + good[52:], "discovery_malformed"),
        "tagged": (good[:12] + b"\x81\x00\x00\x07" + good[12:], "vlan_tagged"),
    }
    with nothing_changes(wire):
        for name, (frame, reason) in cases.items():
            before = wire.drops()
            wire.station_sends(frame)
            assert wire.new_drops(before) == Counter({("A", "(wire)", reason): 1}), name


def recorded(wire: Wire, names: Sequence[str]) -> list[bytes]:
    """What hosts really say as these guests are asked for, and as agents start: discovery frames."""
    with closing(WireWitness(Place(wire.lab.switch))) as witness:
        for name in names:
            assert wire.ping("near", name, 1).received == 1
        return [frame for frame in witness.frames() if is_discovery(frame)]


def test_repeated_and_re_aimed_frames_are_refused(wire: Wire) -> None:
    frames = recorded(wire, ["cold0", "cold1"])
    kinds = {parse_discovery_untrusted(f)[0].type for f in frames}
    assert {MessageType.REQUEST, MessageType.REPLY} <= kinds
    expected: Drops = Counter()
    with nothing_changes(wire):
        before = wire.drops()
        for frame in frames:
            for host, pmac in wire.pmacs.items():
                wire.station_sends(pmac + frame[6:])  # the tag covers whom it is for
                reason = "discovery_replay" if frame[:6] == pmac else _re_aimed(frame)
                expected[host, "(wire)", reason] += 1
            if frame[0] & 1:
                wire.station_sends(frame, frame[:6] + wire.mac + frame[12:22] + wire.mac + frame[28:])  # and from whom
                for host in "AB":  # the sender, too, gets its own frame back
                    expected[host, "(wire)", "discovery_replay"] += 1
                    expected[host, "(wire)", "discovery_auth"] += 1
                expected["C", "(wire)", "not_joined"] += 2
        assert wire.new_drops(before, expected.total()) == expected
    for name in ("cold0", "cold1"):
        assert wire.neighbours()["A", ADDRESS.get(name, wire.address(name))][0] == wire.pmacs["B"].hex(":")


def _re_aimed(frame: bytes) -> str:
    """An answer names its receiver in tha, too."""
    return "discovery_malformed" if frame[20:22] == b"\0\2" else "discovery_auth"


@pytest.mark.parametrize("restarted", ["A", "B"])
def test_repeated_frames_are_refused_after_a_restart_of_either_agent(wire: Wire, restarted: str) -> None:
    frames = recorded(wire, ["cold2", "cold3"] if restarted == "A" else ["cold4", "cold5"])
    wire.lab.host(restarted).agent_stop()
    with closing(WireWitness(Place(wire.lab.switch))) as witness:
        wire.lab.host(restarted).agent_start()
        wire.lab.wait_active()
        time.sleep(1)
        assert wire.ping("near", "far", 5, 0.2).received >= 1
        frames += [frame for frame in witness.frames() if is_discovery(frame)]
    time.sleep(3.2)  # core/auth.py FRESH_S: until then a frame of a live session may still be new to somebody
    with nothing_changes(wire):
        before = wire.drops()
        for frame in frames:
            wire.station_sends(frame)
            time.sleep(0.005)
        time.sleep(0.5)
    counted = wire.new_drops(before, 1)
    assert counted["A", "(wire)", "discovery_replay"] >= 3, counted
    assert {reason for _, _, reason in counted} <= {
        "discovery_replay",
        "discovery_unchallenged",
        "discovery_auth",
        "not_joined",
    }


def test_plain_arp_on_a_virtual_address_reaches_nobodys_arp(wire: Wire) -> None:
    def arp(operation: int, spa: str, tpa: str, tha: bytes = bytes(6)) -> bytes:
        fixed = bytes.fromhex("000108000604") + operation.to_bytes(2, "big")
        return fixed + wire.mac + parse_address(spa) + tha + parse_address(tpa)

    victim = wire.pmacs["A"]
    cases = [
        ethernet(victim, wire.mac, ARP, arp(2, address, "172.30.0.11", victim))
        for address in (FAR, NEAR, "10.1.1.1", NOBODY)
    ]
    cases += [ethernet(victim, wire.mac, ARP, arp(op, FAR, FAR)) for op in (1, 2)]
    cases += [ethernet(victim, wire.mac, ARP, arp(1, "172.30.0.99", NEAR))]
    with nothing_changes(wire):
        for frame in cases:
            before = wire.drops()
            wire.station_sends(frame)
            assert wire.new_drops(before) == Counter({("A", "(wire)", "unknown_host"): 1}), frame.hex()
        before = wire.drops()
        wire.station_sends(ethernet(ALL_ONES, wire.mac, ARP, arp(2, FAR, FAR)))
        assert wire.new_drops(before, 3) == Counter({(host, "(wire)", "unknown_host"): 1 for host in "ABC"})
    for host in wire.lab.hosts.values():
        assert "10." not in host.exec("ip", "-4", "neigh").stdout


def test_data_from_a_mac_that_is_no_hosts_is_dropped(wire: Wire) -> None:
    victim = wire.pmacs["A"]

    def data(source: str, target: str = NEAR, destination: bytes = victim) -> bytes:
        return ethernet(destination, wire.mac, IPV4, ipv4(source, target, 1, echo_request()))

    def sent_by(port: int, to: int, destination: bytes = victim) -> bytes:
        return ethernet(destination, wire.mac, IPV4, ipv4(FAR, NEAR, 17, udp(port, to, bytes(300))))

    tagged = data(FAR)[:12] + bytes.fromhex("81000005") + data(FAR)[12:]
    cases = {
        "a guest of another host": (data(FAR), "unknown_host"),
        "a guest of the same host": (data(ADDRESS["mal"]), "spoof_local"),
        "the very guest": (data(NEAR), "spoof_local"),
        "another subnet": (data(ADDRESS["db"]), "unknown_host"),
        "nobody": (data(NOBODY), "unknown_host"),
        "the router": (data("10.1.1.1"), "spoof_source"),
        "another cell": (data(ADDRESS["alien"]), "cell_denied"),
        "the wire": (data("172.30.0.12"), "external_unsupported"),
        "to nobody": (data(FAR, NOBODY), "not_local"),
        "to another host's guest": (data(NEAR, FAR), "not_local"),
        "to the router": (data(FAR, "10.1.1.1"), "not_local"),
        "to the host": (data(FAR, "172.30.0.11"), "spoof_source"),
        "by broadcast": (data(FAR, destination=ALL_ONES), "l2_multicast_mismatch"),
        "DHCP offer": (sent_by(67, 68), "rogue_dhcp"),
        "tagged": (tagged, "vlan_tagged"),
        "cut short": (data(FAR)[:-1], "truncated"),
        "false checksum": (data(FAR)[:24] + b"\xde\xad" + data(FAR)[26:], "ipv4_checksum"),
    }
    with nothing_changes(wire):
        for name, (frame, reason) in cases.items():
            before = wire.drops()
            wire.station_sends(frame)
            hosts = "ABC" if name == "by broadcast" else "A"
            assert wire.new_drops(before) == Counter({(h, "(wire)", reason): 1 for h in hosts}), name
        before = wire.drops()
        wire.station_sends(data(FAR, destination=WEB_GROUP))
        expected = {
            ("A", "(wire)", "wire_group_unicast"),
            ("B", "(wire)", "wire_group_unicast"),
            ("C", "(wire)", "not_joined"),
        }
        assert wire.new_drops(before, 3) == Counter(dict.fromkeys(expected, 1))


def test_data_from_a_host_that_does_not_hold_the_source_is_dropped(wire: Wire) -> None:
    """C has the key, and no guest: its frames are held until it has been asked, and dropped as it denies."""

    def data(source: str) -> bytes:
        return ethernet(wire.pmacs["A"], wire.pmacs["C"], IPV4, ipv4(source, NEAR, 1, echo_request()))

    def from_c(source: str) -> Drops:
        before = wire.drops()
        wire.send(wire.lab.host("C").namespaces, "up0", data(source))
        return wire.new_drops(before)

    assert wait_for(lambda: from_c(FAR) == Counter({("A", "(wire)", "spoof_source"): 1}), 10)
    with nothing_changes(wire):
        for source, reason in ((FAR, "spoof_source"), (NEAR, "spoof_local"), (NOBODY, "unverified")):
            time.sleep(0.15)  # one question per pair and 0.1 s
            assert from_c(source) == Counter({("A", "(wire)", reason): 1}), source


FLOOD = """
import socket, sys, time
frame = bytes.fromhex(sys.argv[1])
s = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0); s.bind(("up0", 0))
end = time.monotonic() + float(sys.argv[2]); sent = 0
while time.monotonic() < end:
    for _ in range(100):
        try: s.send(frame); sent += 1
        except OSError: pass
    time.sleep(0.005)
print(sent)
"""


def test_a_flood_of_garbage_is_limited_in_the_kernel_and_real_peers_resolve_meanwhile(
    wire: Wire, capsys: pytest.CaptureFixture[str]
) -> None:
    seconds = 4.0
    garbage = forged(MessageType.REQUEST, wire.mac, wire.pmacs["A"], wire.mac)
    before, woken = wire.drops(), wire.slow_path("A")["discovery"]
    with wire.running(wire.station, FLOOD, garbage.hex(), str(seconds)) as flood:
        time.sleep(0.5)
        with wire.steady_ping("near", "far", 3) as steady:
            firsts = [wire.ping("near", name, 1) for name in ("cold6", "cold7")]
        sent = int(flood.communicate(timeout=60)[0])
    counted = wire.new_drops(before)
    woken = wire.slow_path("A")["discovery"] - woken
    with capsys.disabled():
        print(
            f"\n    {sent / seconds:.0f} frames/s sent, {woken / seconds:.0f}/s reached the agent; ping {steady.result}"
        )
    assert [first.received for first in firsts] == [1, 1]
    assert steady.result.received == steady.result.sent, steady.result.output
    limited, refused = (counted["A", "(wire)", f"discovery_{why}"] for why in ("rate_limited", "auth"))
    assert limited + refused == sent
    assert refused <= 500 * (seconds + 2)
    assert woken <= refused + 50


def test_the_wire_shows_hosts_and_groups_only_and_a_host_without_port_sleeps(wire: Wire) -> None:
    before, woken = wire.drops(), wire.slow_path("C")["discovery"]
    with closing(WireWitness(Place(wire.lab.switch))) as witness:
        for _ in range(2):
            wire.ping("near", NOBODY, 1, wait_s=1)
            wire.ping("near", "10.1.2.223", 1, wait_s=1)
            wire.ping("far", "10.1.1.224", 1, wait_s=1)
            wire.ping("near", "far", 1)
            wire.ping("db", "near", 1)
        frames = witness.frames()
    wire.assert_clean_wire(frames)
    asked = [
        m for m in (parse_discovery_untrusted(f)[0] for f in frames if is_discovery(f)) if m.type is MessageType.REQUEST
    ]
    assert len(asked) >= 6
    assert not [m for m in asked if m.type in ANSWERS]
    assert wire.slow_path("C")["discovery"] == woken
    assert wire.new_drops(before)["C", "(wire)", "not_joined"] == len(asked)


def test_no_agent_met_a_bug(wire: Wire) -> None:
    for host in wire.lab.hosts.values():
        assert "Traceback" not in Path(host.agent_log).read_text()
