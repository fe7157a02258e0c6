"""The agent is killed, upgraded and downgraded under traffic; flows that the kernel knows do not notice.

    A: near, beside      B: far, cold (same subnet), db (another)      C: no guest at first

DIVHOOK_LIFE_CYCLES (`make upgrade-test CYCLES=100`) says how often; the figures are printed.
"""

import functools
import os
import shutil
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from bare_fixtures import DB, FAR, NEAR, BareBench, bare_bench, wait_for
from bpf_objects import alive, pinned
from later_version import ABI_VERSION, make_later_version
from streams import Streams, build, streaming, transferring

import divhook
import divhook.lab.host
from divhook.lab.bare import NIC, BareSpec
from divhook.lab.host import BRIDGE, LabHost

CYCLES = int(os.environ.get("DIVHOOK_LIFE_CYCLES", "8"))
PER_SECOND = int(os.environ.get("DIVHOOK_LIFE_RATE", "6000"))
"""Datagrams of each pair in each direction."""
UPGRADE_EVERY = 4
BESIDE = BareSpec("beside", "A", "shop", "web", "10.1.1.71")
COLD = BareSpec("cold", "B", "shop", "web", "10.1.1.72")
PAIRS = [("near", "beside"), ("near", "far"), ("near", "db"), ("beside", "far")]
TCP_PAIRS = [("near", "far"), ("db", "near"), ("beside", "near")]
TCP_BYTES_PER_S = 1 << 20
MORE_BY_CHANCE = 10
"""TCP segments: on a busy machine some are sent again since acknowledgements are late, with an event and without."""
PAIRS += [(target, source) for source, target in PAIRS]


@pytest.fixture(scope="module")
def life() -> Iterator[BareBench]:
    with bare_bench((NEAR, BESIDE, FAR, DB, COLD), hosts=3, quiet=()) as bench:
        for source, target in PAIRS:
            assert bench.ping(source, target, 3).received == 3
        yield bench


@pytest.fixture(scope="module")
def later(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_later_version(tmp_path_factory.mktemp("later"))


@pytest.fixture(scope="module")
def binary(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(tmp_path_factory.mktemp("stream"))


def changed(directory: Path, module: str, setting: str, value: str) -> Path:
    """A copy of the package with another default; what PYTHONPATH needs."""
    shutil.copytree(Path(divhook.__file__).parent, directory / "divhook", ignore=shutil.ignore_patterns("__pycache__"))
    text = (directory / "divhook" / module).read_text()
    assert text.count(setting) == 1
    name = setting.rpartition(" = ")[0]
    (directory / "divhook" / module).write_text(text.replace(setting, f"{name} = {value}"))
    return directory


def versions(host: LabHost) -> str:
    """Names of the directories of pins."""
    return " ".join(host.exec("ls", "/sys/fs/bpf/divhook").stdout.split())


def reconciled(host: LabHost) -> bool:
    return bool(host.ask_agent({"op": "status"})["result"]["reconciled"])


def restart(host: LabHost, number: signal.Signals, package: Path | None = None) -> float:
    """End the agent and start it again, or another version's; returns how long no agent was reconciled."""
    begin = time.monotonic()
    host.agent_stop(number)
    with pytest.MonkeyPatch.context() as patch:
        if package is not None:
            environment = divhook.lab.host.package_environment() | {"PYTHONPATH": str(package)}
            patch.setattr(divhook.lab.host, "package_environment", lambda: environment)
        host.agent_start()
    assert wait_for(lambda: reconciled(host), 60), host.agent_log.read_text()[-2000:]
    return time.monotonic() - begin


def test_no_datagram_of_a_known_flow_is_lost_whatever_becomes_of_the_agents(
    life: BareBench, binary: Path, later: Path, fastpath: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    """With the fast path off every frame is the agent's: its flows only have to be there again."""
    hosts = [life.lab.host("A"), life.lab.host("B")]
    away_s = []
    rate, cycles = (PER_SECOND, CYCLES) if fastpath else (100, UPGRADE_EVERY)
    begin = time.monotonic()
    with streaming(life, binary, PAIRS, rate) as eventful, transferring(life, TCP_PAIRS, TCP_BYTES_PER_S) as tcp:
        for cycle in range(cycles):
            host = hosts[cycle % 2]
            upgrade = cycle % UPGRADE_EVERY == UPGRADE_EVERY - 2
            number = signal.SIGTERM if cycle % 5 == 4 else signal.SIGKILL
            away_s.append(restart(host, number, later if upgrade else None))
            if upgrade:
                assert versions(host) == f"v{ABI_VERSION}"
                away_s.append(restart(host, signal.SIGKILL))
        time.sleep(0.5)
    took_s = time.monotonic() - begin
    with streaming(life, binary, PAIRS, rate) as quiet, transferring(life, TCP_PAIRS, TCP_BYTES_PER_S) as quiet_tcp:
        time.sleep(min(took_s, 120) if cycles > 20 else 4)
    with capsys.disabled():
        print(f"\n    {cycles} restarts and {len(away_s) - cycles} upgrades with a downgrade: {eventful}; {tcp}")
        print(f"    without event: {quiet}; {quiet_tcp}")
        print(f"    agent away each time: median {sorted(away_s)[len(away_s) // 2]:.1f} s, max {max(away_s):.1f} s")
    check(quiet)
    if fastpath:
        check(eventful)
        assert tcp.lost <= quiet_tcp.lost * tcp.segments / quiet_tcp.segments + MORE_BY_CHANCE
    for source, target in PAIRS:
        assert life.ping(source, target, 3).received == 3


def check(streams: Streams) -> None:
    assert streams.overflowed == 0
    assert streams.lost == 0, str(streams)  # the whole account, gap by gap
    assert not any(each.doubled for each in streams.accounts), str(streams)


def test_while_its_agent_is_away_a_host_forwards_what_it_knows_and_nothing_else(
    life: BareBench, fastpath: bool
) -> None:
    host = life.lab.host("A")
    for source, target in PAIRS:
        assert life.ping(source, target, 3).received == 3
    host.agent_stop(signal.SIGKILL)
    for source, target in PAIRS:
        assert life.ping(source, target, 3, wait_s=1).received == (3 if fastpath else 0)
    for source, target in (("near", "cold"), ("cold", "near"), ("beside", "db")):
        known = fastpath and target == "db"  # by its address, whoever asks
        assert life.ping(source, target, 3, wait_s=1).received == (3 if known else 0), (source, target)
    host.agent_start()
    assert wait_for(lambda: reconciled(host), 60)
    for source, target in (*PAIRS, ("near", "cold"), ("cold", "near"), ("beside", "db")):
        assert wait_for(lambda pair=(source, target): life.ping(*pair, 1, wait_s=1).received == 1, 10), (source, target)


@pytest.fixture(scope="module")
def forgetful(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The package with neighbours that live 3 s."""
    return changed(tmp_path_factory.mktemp("forgetful"), "core/discovery/limits.py", "reachable_s: float = 60.0", "3.0")


def test_flows_outlive_many_lifetimes_without_the_agent_of_one_end(
    life: BareBench, binary: Path, forgetful: Path, fastpath: bool
) -> None:
    """The other end's agent hears nothing from it any more, but its frames."""
    if not fastpath:
        return  # no flow outlives an agent
    hosts = [life.lab.host(name) for name in "AB"]
    for host in hosts:
        restart(host, signal.SIGTERM, forgetful)
    for source, target in PAIRS:
        assert life.ping(source, target, 3).received == 3
    with streaming(life, binary, PAIRS, 200) as streams:
        time.sleep(4)
        hosts[0].agent_stop(signal.SIGKILL)
        time.sleep(20)
        restart(hosts[0], signal.SIGKILL)
        time.sleep(1)
    restart(hosts[1], signal.SIGTERM)
    check(streams)


def move(life: BareBench, name: str, source: LabHost, target: LabHost) -> None:
    """The guest runs on another host from now on: its veth goes there, and each libvirt tells what it runs."""
    guest = life.guest(name)
    guest.namespace.ip(f"link delete {NIC}")
    peer = target.namespaces.file("net")
    guest.namespace.ip(f"link add {NIC} address {guest.spec.mac} type veth peer name {guest.spec.tap} netns {peer}")
    target.namespaces.ip(f"link set {guest.spec.tap} master {BRIDGE} up")
    guest.namespace.ip(
        f"link set {NIC} up",
        f"address replace {life.address(name)}/24 dev {NIC}",
        f"route replace default via 10.1.1.1 dev {NIC}",
    )
    for host, add in ((source, False), (target, True)):
        file = host.root / "etc-divhook" / "guests.xml"
        domains = file.read_text().removesuffix("</node>").replace(guest.spec.xml(), "")
        file.write_text(domains + (guest.spec.xml() if add else "") + "</node>")
        restart(host, signal.SIGTERM)
    guest.host = target


def test_a_neighbour_that_moved_while_the_agent_was_away_is_found_at_once_after(
    life: BareBench, fastpath: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its old host says so, on the first frame that still goes there."""
    host, old, new = (life.lab.host(name) for name in "ABC")
    assert life.ping("near", "far", 3).received == 3
    host.agent_stop(signal.SIGKILL)
    move(life, "far", old, new)
    assert life.ping("near", "far", 3, wait_s=1).received == 0
    host.agent_start()
    assert wait_for(lambda: reconciled(host), 60)
    begin = time.monotonic()
    assert wait_for(lambda: life.ping("near", "far", 1, wait_s=1).received == 1, 30)
    with capsys.disabled():
        print(f"\n    moved while the agent was away: found {time.monotonic() - begin:.1f} s after it was back")
    assert life.neighbours()["A", life.address("far")][0] == new.plan.mac
    assert life.ping("far", "near", 3).received == 3
    assert life.ping("far", "db", 3).received == 3


TRACES = {
    "rules": "nft list ruleset; iptables-save; ip6tables-save",
    "filters": "for i in /sys/class/net/*; do tc filter show dev ${i##*/} ingress; done; bpftool net show",
    "pins": "find /sys/fs/bpf -mindepth 1 ! -name '*.debug'",
    "routes": "ip route show table all type blackhole",
    "links": "ip -d -o link show group 209; ip -o link show type bridge",
}


@pytest.fixture(scope="module")
def by_filters(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The package as it is on a kernel without tcx links."""
    return changed(tmp_path_factory.mktemp("filters"), "adapters/bpf/programs.py", 'mode: AttachMode = "auto"', '"tc"')


def test_teardown_leaves_no_program_no_map_no_link_and_no_rule_however_they_were_attached(
    life: BareBench, by_filters: Path, later: Path
) -> None:
    """The last test of the file: two hosts are not usable after."""
    with_links = {"prog", "map", "link"} if tcx_here() else {"prog", "map"}
    for name, package, kinds in (("A", later, with_links), ("B", by_filters, {"prog", "map"})):
        host = life.lab.host(name)
        shell = functools.partial(in_shell, host)
        restart(host, signal.SIGKILL, package)
        ours = pinned(shell)
        assert {kind for kind, _ in ours} == kinds
        assert ours <= alive(shell)
        assert ("divhook:from_guest" in in_shell(host, TRACES["filters"])) is ("link" not in kinds)
        host.agent_stop()
        host.divhook("agent", "--teardown")  # of this version, whatever made it
        assert wait_for(lambda ours=ours, shell=shell: not ours & alive(shell), 10), ours & alive(shell)
        left = {part: in_shell(host, command) for part, command in TRACES.items()}
        assert "divhook" not in left["rules"], left
        assert "NFQUEUE" not in left["rules"], left
        assert "divhook" not in left["filters"], left
        assert {part: left[part].strip() for part in ("pins", "routes", "links")} == dict.fromkeys(
            ("pins", "routes", "links"), ""
        )


def tcx_here() -> bool:
    return tuple(map(int, os.uname().release.split(".")[:2])) >= (6, 6)


def in_shell(host: LabHost, command: str) -> str:
    return host.exec("bash", "-c", command, check=False).stdout
