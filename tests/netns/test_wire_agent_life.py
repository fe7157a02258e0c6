"""Agents that are killed, stopped, given other keys or torn down, while guests talk."""

import re
import signal
import time
from collections.abc import Iterator, Sequence
from contextlib import closing

import pytest
from bare_fixtures import ADDRESS, DB, FAR, MAL, NEAR, BareBench, Everywhere, Place, WireWitness, bare_bench, wait_for
from guest_attacks import OTHERS, PMAC, attacks, to_router
from hostile_frames import ethernet, ipv4, udp
from test_hostile_surroundings import longest_gap_s

from divhook.core.keys import parse_key_text
from divhook.core.wire.discovery import is_discovery
from divhook.lab.bare import BareSpec

COLD = tuple(BareSpec(f"cold{n}", "B", "shop", "web", f"10.1.1.{80 + n}") for n in range(6))
SPOOF = to_router(ipv4(ADDRESS["mal"], ADDRESS["near"], 17, udp(1, 2, b"x")), source=OTHERS)
STRANGER = b"\x52\x54\x00\x0b\xad\x01"
ECHO_REPLY = b"\0\0\xff\xff" + bytes(4)
"""Nobody answers it."""
KERNEL = {
    "rules": "nft -s list ruleset",
    "tc": "for l in up0 divbr0 $(ls -1 /sys/class/net | grep ^t-); do tc filter show dev $l ingress; done",
    "links": "ip -d -o link | sed 's/ qlen.*//'",
    "routes": "ip route show table all",
    "pins": "find /sys/fs/bpf -mindepth 1 ! -name '*.debug'",
}


@pytest.fixture(scope="module")
def life() -> Iterator[BareBench]:
    with bare_bench((MAL, NEAR, FAR, DB, *COLD), hosts=2) as bench:
        yield bench


def kernel(bench: BareBench, host: str, parts: Sequence[str] = tuple(KERNEL)) -> dict[str, str]:
    """What divhook has made of a host, without numbers that change by themselves."""
    texts = {part: bench.lab.host(host).exec("sh", "-c", KERNEL[part]).stdout for part in parts}
    texts = {part: "\n".join(sorted(text.splitlines())) for part, text in texts.items()}
    return {
        part: re.sub(r"\b(id|jited_len|packets|bytes|tag|name) \S+|handle \S+", "", text)
        for part, text in texts.items()
    }


def test_a_killed_agent_comes_back_to_the_same_state_and_traffic_goes_on(
    life: BareBench, fastpath: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    host = life.lab.host("A")
    life.guest_sends("mal", SPOOF)
    time.sleep(0.2)
    endpoints, believed, state, drops = life.endpoints(), life.neighbours(), kernel(life, "A"), life.drops()
    assert drops["A", "mal", "spoof_mac"] == 1
    for number in (signal.SIGKILL, signal.SIGTERM):
        with life.steady_ping("near", "far", 60, 0.05) as out, life.steady_ping("far", "near", 60, 0.05) as back:
            time.sleep(1)
            begin = time.monotonic()
            host.agent_stop(number)
            host.agent_start()
            took_s = time.monotonic() - begin
            time.sleep(2)
            out.stop()
            back.stop()
        gaps = longest_gap_s(out.result.output), longest_gap_s(back.result.output)
        with capsys.disabled():
            print(f"\n    {number.name}: back in {took_s:.1f} s; silence of {gaps[0]:.1f} s out, {gaps[1]:.1f} s back")
        assert max(gaps) < took_s + 1.5
        if fastpath:  # the last one may have been on its way
            assert max(each.result.sent - each.result.received for each in (out, back)) <= 1
        assert life.endpoints() == endpoints
        assert kernel(life, "A") == state
        assert life.drops()["A", "mal", "spoof_mac"] == drops["A", "mal", "spoof_mac"]
    for (name, address), found in life.neighbours().items():
        assert believed.get((name, address), found) == found
    life.guest_sends("mal", SPOOF)
    assert wait_for(lambda: life.drops()["A", "mal", "spoof_mac"] == 2)  # once: the programs are not there twice
    for source, target in (("near", "db"), ("far", "near"), ("db", "near")):
        assert life.ping(source, target).received == 3


def test_with_the_agent_stopped_the_kernel_state_stays_and_nothing_new_crosses(life: BareBench, fastpath: bool) -> None:
    """Nothing at all without the fast path. With it, flows that the agent had decided go on."""
    host = life.lab.host("A")
    before = life.drops()["A", "mal", "spoof_mac"]
    assert life.ping("near", "far").received == 3
    state = kernel(life, "A")
    host.agent_stop()
    try:
        assert kernel(life, "A") == state
        with closing(Everywhere(life, but=("mal",))) as everywhere:
            everywhere.seen()
            life.guest_sends("mal", *(frame for kind in attacks().values() for _, frame, _ in kind), SPOOF)
            time.sleep(0.3)
            assert everywhere.seen() == []
            packet = ipv4(ADDRESS["far"], ADDRESS["near"], 1, ECHO_REPLY)
            for source, arrives in ((STRANGER, False), (life.pmacs["B"], fastpath)):
                frame = ethernet(PMAC, source, 0x0800, packet)
                life.send(life.lab.host("B").namespaces, "up0", frame)
                time.sleep(0.3)
                as_seen = ethernet(life.macs["near"], life.macs["far"], 0x0800, packet)
                expected = [f"near got {as_seen.hex()}"] if arrives else []
                assert everywhere.seen() == [*expected, f"the wire has {frame.hex()}"]
        for source, target, known in (("near", "far", True), ("far", "near", True), ("near", "cold5", False)):
            found = life.ping(source, target, 5, wait_s=1)
            assert found.received == (5 if known and fastpath else 0), (source, target, found.output)
    finally:
        host.agent_start()
        life.lab.wait_active()
    spoofs = sum(reason == "spoof_mac" for kind in ("links", "discovery") for _, _, reason in attacks()[kind]) + 1
    assert life.drops()["A", "mal", "spoof_mac"] == before + spoofs  # counted by the kernel meanwhile
    for source, target in (("near", "far"), ("far", "near")):
        assert life.ping(source, target).received == 3
    # a restarted agent drops the first frame of a host that has not proved its key to it yet
    assert wait_for(lambda: life.ping("near", "cold5", 1, wait_s=1).received == 1)


def test_keys_rotate_while_guests_talk_and_addresses_are_found(life: BareBench) -> None:
    old = life.lab.host("A").root / "etc-divhook" / "cluster.key"
    [first] = parse_key_text(old.read_text()).keys
    one, two = first.secret.hex(), "7c" * 32
    cold = iter(spec.name for spec in COLD)

    def set_keys(*lines: str) -> None:
        for host in life.lab.hosts.values():
            path = host.root / "etc-divhook" / "cluster.key"
            fresh = path.with_name("fresh")
            fresh.write_text("divhook-keys 1\n" + "".join(f"{line}\n" for line in lines))
            fresh.chmod(0o600)
            fresh.replace(path)
            time.sleep(0.7)  # hosts are never changed at once
            assert life.ping("near", next(cold), 1).received == 1 if host.name == "A" else True
        time.sleep(2)

    with closing(WireWitness(Place(life.lab.switch))) as wire:
        assert life.ping("near", next(cold), 1).received == 1
        recorded = [f for f in wire.frames() if is_discovery(f) and f[6:12] == life.pmacs["B"]]
        before = life.drops()
        with life.steady_ping("near", "far", 10) as steady, life.steady_ping("db", "near", 10) as routed:
            set_keys(f"key 1 send {one}", f"key 2 accept {two}")
            set_keys(f"key 1 accept {one}", f"key 2 send {two}")
            set_keys(f"key 2 send {two}")
        counted = life.drops() - before
        assert life.ping("near", next(cold), 1).received == 1
        spoken = {frame[46] for frame in wire.frames() if is_discovery(frame)}
    assert spoken == {1, 2}
    for each in (steady, routed):
        assert each.result.received == each.result.sent == 100, each.result.output
    assert not [reason for _, _, reason in counted if reason.startswith("discovery_auth")], counted
    before = life.drops()
    life.send(life.lab.host("B").namespaces, "up0", *(PMAC + frame[6:] for frame in recorded))
    assert set(life.new_drops(before, len(recorded))) == {("A", "(wire)", "discovery_auth")}


def test_a_key_file_with_a_mistake_changes_nothing(life: BareBench) -> None:
    host = life.lab.host("A")
    path = host.root / "etc-divhook" / "cluster.key"
    good = path.read_text()
    try:
        path.write_text("divhook-keys 1\nkey 2 send not-hex\n")
        assert wait_for(lambda: host.ask_agent({"op": "status"})["result"]["config"] != "ok", 5)
        assert life.ping("near", "far").received == 3
    finally:
        path.write_text(good)
    assert wait_for(lambda: host.ask_agent({"op": "status"})["result"]["config"] == "ok", 5)


def test_teardown_removes_everything_that_the_agent_made(life: BareBench) -> None:
    """The last test of the file: the lab is not usable after."""
    host = life.lab.host("A")
    host.agent_stop()
    host.divhook("agent", "--teardown")
    left = kernel(life, "A", ("rules", "tc", "routes", "pins"))
    assert left["rules"].strip() == ""
    assert left["tc"].strip() == ""
    assert left["pins"].strip() == ""
    assert "blackhole" not in left["routes"]
    assert "divbr0" not in host.exec("ip", "-o", "link").stdout
    links = host.exec("ip", "-d", "-o", "link").stdout
    assert "group 209" not in links
    assert not [
        line for line in links.splitlines() if "t-near@" in line and ",UP" in line
    ]  # else it would be the host's
    assert "clsact" not in host.exec("tc", "qdisc").stdout
    with closing(Everywhere(life, but=("mal",))) as everywhere:
        everywhere.seen()
        life.guest_sends("mal", SPOOF)
        time.sleep(0.2)
        assert everywhere.seen() == []
