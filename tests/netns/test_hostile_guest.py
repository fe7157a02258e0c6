"""Every frame of a hostile guest is dropped by its own reason, counted once, and is seen nowhere, under real agents."""

import time
from collections.abc import Iterator
from contextlib import closing

import pytest
from bare_fixtures import ADDRESS, BareBench, Drops, Everywhere, Place, wait_for
from guest_attacks import ARP, OWN, ROUTER, WEB_GROUP, WEB_RMAC, arp, attacks
from host_bench import Witness
from hostile_frames import ALL_ONES, ethernet

ATTACKS = attacks()


@pytest.fixture(autouse=True)
def the_agents_live_and_serve(bare: BareBench) -> Iterator[None]:
    """Around each test: the same agents, no bug met, and both the neighbours and the hostile guest are served."""
    pids = [host.agent_pid for host in bare.lab.hosts.values()]
    yield
    assert [host.agent_pid for host in bare.lab.hosts.values()] == pids
    for host in bare.lab.hosts.values():
        log = host.agent_log.read_text()
        assert "Traceback" not in log, log[-3000:]
    for target in ("far", "db"):
        found = bare.ping("near", target)
        assert found.received == found.sent, found.output
    with closing(Witness(Place(bare.guest("mal").namespace), "eth0")) as own:
        bare.guest_sends("mal", ethernet(ALL_ONES, OWN, ARP, arp(tpa=ROUTER)))
        answer = arp(2, sha=WEB_RMAC, spa=ROUTER, tha=OWN, tpa=ADDRESS["mal"])
        end = time.monotonic() + 5
        while (seen := own.frames(0.5)) != [ethernet(OWN, WEB_RMAC, ARP, answer)]:
            assert time.monotonic() < end, seen


@pytest.mark.parametrize("kind", ATTACKS)
def test_each_frame_is_dropped_once_by_its_reason_and_seen_nowhere(bare: BareBench, kind: str) -> None:
    with closing(Everywhere(bare, but=("mal",))) as everywhere:
        time.sleep(0.1)
        everywhere.seen()
        expected, wrong = bare.drops(), []
        for name, frame, reason in ATTACKS[kind]:
            expected["A", "mal", reason] += 1
            bare.guest_sends("mal", frame)
            if not _counted(bare, expected):
                wrong.append(f"{name}: not {reason}, or not alone: {bare.drops() - expected}")
                expected = bare.drops()
        assert wrong == []
        time.sleep(0.2)
        assert bare.drops() == expected
        assert everywhere.seen() == []


def _counted(bare: BareBench, expected: Drops) -> bool:
    return wait_for(lambda: bare.drops() >= expected, 3)


def test_a_frame_too_short_for_its_tag_goes_nowhere(bare: BareBench) -> None:
    """The kernel drops it as it unpacks the tag, ahead of tc: there is no counter of ours for it."""
    with closing(Everywhere(bare, but=("mal",))) as everywhere:
        before = bare.drops()
        for length in (0, 1, 2, 3):
            for ethertype in (0x8100, 0x88A8):
                bare.guest_sends("mal", ethernet(ALL_ONES, OWN, ethertype, bytes(length)))
        time.sleep(0.2)
        assert everywhere.seen() == []
        assert set(bare.drops() - before) <= {("A", "mal", "vlan_tagged"), ("A", "mal", "truncated")}


def test_a_guests_discovery_frames_never_reach_discovery(bare: BareBench) -> None:
    before = [bare.slow_path(name)["discovery"] for name in bare.lab.hosts]
    believed = bare.neighbours()
    with closing(Everywhere(bare, but=("mal",))) as everywhere:
        everywhere.seen()
        bare.guest_sends("mal", *(frame for _, frame, _ in ATTACKS["discovery"]))
        bare.guest_sends("mal", ethernet(WEB_GROUP, OWN, ARP, arp(tpa=ADDRESS["near"]) + b"\xd1\x7e" + bytes(94)))
        time.sleep(0.3)
        assert everywhere.seen() == []
    assert [bare.slow_path(name)["discovery"] for name in bare.lab.hosts] == before
    assert bare.neighbours() == believed
