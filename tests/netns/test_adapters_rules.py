"""Rules are set as one, known to be whole, restored when somebody took them, and gone without a trace."""

import asyncio
import select
from collections.abc import Iterator

import pytest
from host_bench import GUEST_ADDRESSES, GUEST_MACS, QUEUE, Bench, wait_for
from hostile_frames import ROUTER_MAC, ethernet, ipv4, udp

from divhook.adapters.nfqueue import DivertQueue
from divhook.adapters.rules import Rules, RulesError, RulesWatcher

pytestmark = pytest.mark.no_agent

FLUSHES = [
    "nft flush ruleset",
    "iptables -t raw -F",
    "nft delete table ip divhook",
    "nft delete table bridge divhook",
    "nft flush chain ip divhook unqueued",
    "nft insert rule bridge divhook forward accept",
    "nft add table ip divhook '{ flags dormant; }'",
    "iptables -t raw -D PREROUTING 1",
]


@pytest.fixture
def watcher(bench: Bench) -> Iterator[RulesWatcher]:
    with bench.host.entered():
        made = RulesWatcher()
    yield made
    made.close()


def dump(bench: Bench) -> str:
    return bench.host.run(
        "nft -s list ruleset; iptables-save | grep -v '^#'; ip -d link | grep -v timer; ip route; ip rule"
    )


@pytest.mark.parametrize("flush", FLUSHES)
def test_what_an_administrator_takes_away_is_told_and_restored(bench: Bench, watcher: RulesWatcher, flush: str) -> None:
    async def story() -> None:
        rules = Rules(QUEUE)
        assert not await rules.intact()
        await rules.ensure()
        assert await rules.intact()
        whole = bench.host.run("nft -s list ruleset")
        assert watcher.changed()
        assert not watcher.changed()

        bench.host.run(flush)
        assert select.select([watcher], [], [], 1.0)[0]
        assert watcher.changed()
        assert not await rules.intact()

        await rules.ensure()
        assert await rules.intact()
        assert sorted(bench.host.run("nft -s list ruleset").split("\n")) == sorted(whole.split("\n"))

    bench.on_host(story())


def test_ensure_again_changes_nothing_and_doubles_nothing(bench: Bench) -> None:
    async def story() -> None:
        await Rules(QUEUE).ensure()
        before = dump(bench)
        again = Rules(QUEUE)
        await again.ensure()
        await again.ensure()
        assert await again.intact()
        assert sorted(dump(bench).split("\n")) == sorted(before.split("\n"))

    bench.on_host(story())


@pytest.mark.parametrize(
    "others", ["", "iptables -t raw -A PREROUTING -i up0 -p udp --dport 9 -j DROP", "nft add table ip x"]
)
def test_teardown_leaves_the_hosts_own_rules_and_nothing_else(bench: Bench, others: str) -> None:
    if others:
        bench.host.run(others)
    before = dump(bench)

    async def story() -> None:
        rules = Rules(QUEUE)
        await rules.ensure()
        assert dump(bench) != before
        await rules.teardown()
        await rules.teardown()
        assert not await rules.intact()

    bench.on_host(story())
    assert dump(bench) == before


def test_a_rule_ahead_of_the_queue_can_stop_service_but_lets_nothing_by(ruled: Bench) -> None:
    """-299 drops what another raw rule has accepted before the NFQUEUE rule."""
    ruled.host.run("iptables -t raw -I PREROUTING 1 -j ACCEPT")
    ruled.host.run("nft add table ip later; nft add chain ip later c '{ type filter hook prerouting priority -298; }'")
    ruled.host.run("nft add rule ip later c meta mark and 0xff == 0xd1 counter")
    packet = ipv4(GUEST_ADDRESSES[0], "10.21.22.23", 17, udp(1001, 53, b"x"))
    ruled.guest_sends(ethernet(ROUTER_MAC, GUEST_MACS[0], 0x0800, packet))
    assert wait_for(lambda: "packets 1 bytes" in ruled.host.run("nft list chain ip divhook unqueued"))
    assert "packets 0 bytes" in ruled.host.run("nft list chain ip later c")


def test_a_restore_brings_service_back_within_a_second(ruled: Bench) -> None:
    packets: list[bytes] = []
    packet = ipv4(GUEST_ADDRESSES[0], "10.21.22.23", 17, udp(1001, 53, b"x"))
    with ruled.host.entered():
        queue = DivertQueue(QUEUE, lambda mark, hardware, packet: packets.append(packet))

    async def story() -> None:
        loop = asyncio.get_running_loop()
        rules, watcher = Rules(QUEUE), RulesWatcher()
        await rules.ensure()
        watcher.changed()
        hurry = asyncio.Event()
        loop.add_reader(watcher.fileno(), lambda: watcher.changed() and hurry.set())
        started = loop.time()
        ruled.host.run("nft flush ruleset; iptables -t raw -F")
        await hurry.wait()
        await rules.ensure()
        assert loop.time() - started < 1.0
        loop.remove_reader(watcher.fileno())
        watcher.close()

    ruled.on_host(story())
    ruled.guest_sends(ethernet(ROUTER_MAC, GUEST_MACS[0], 0x0800, packet))
    assert wait_for(lambda: bool(queue.read()))
    assert packets == [packet]
    queue.close()


def test_iptables_legacy_works_and_says_that_it_must_be_polled(bench: Bench, tmp_path_factory, monkeypatch) -> None:  # type: ignore[no-untyped-def]
    directory = tmp_path_factory.mktemp("bin")
    (directory / "iptables").symlink_to("/usr/sbin/iptables-legacy")
    monkeypatch.setenv("PATH", f"{directory}:/usr/sbin:/usr/bin:/sbin:/bin")

    async def story() -> None:
        rules = Rules(QUEUE)
        await rules.ensure()
        assert rules.needs_poll
        assert await rules.intact()
        bench.host.run("iptables-legacy -t raw -F")
        assert not await rules.intact()
        await rules.ensure()
        assert await rules.intact()
        await rules.teardown()
        assert "NFQUEUE" not in bench.host.run("iptables-legacy-save")

    bench.on_host(story())


def test_without_nft_the_error_says_what_to_install(bench: Bench, monkeypatch: pytest.MonkeyPatch, tmp_path) -> None:  # type: ignore[no-untyped-def]
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(RulesError, match="nft is not installed"):
        bench.on_host(Rules(QUEUE).ensure())
