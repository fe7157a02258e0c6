"""Another version of the programs, with maps of another layout: it takes over what there is, there and back."""

import importlib.util
import json
import logging
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from types import ModuleType

import bpf_frames as f
import pytest
from bpf_bench import PORT_ID, host_entry, port_entry, run
from bpf_frames import ethernet
from bpf_objects import alive, pinned
from later_version import ABI_VERSION, make_later_version
from test_attach import IPV6, TCX, filters, mode, pin_dir, send_from_guest, tap

from divhook.abi import entries
from divhook.abi.entries import LocalEndpoint, RemoteEndpoint
from divhook.abi.layout import HOST_NAT, HostConfig
from divhook.adapters.bpf import FROM_GUEST, AttachMode, BpfError, Programs, programs, teardown, versions
from divhook.core.addressing import parse_address, parse_mac
from divhook.core.flow import Flow, FlowKey
from divhook.core.reasons import DropReason as R
from divhook.core.wire.discovery import Claim
from divhook.lab.processes import wait_until

__all__ = ["mode", "pin_dir", "tap"]

HERE, THERE = parse_address("10.1.1.66"), parse_address("10.1.1.68")
NAT_ADDRESS = parse_address("192.0.2.160")
CLAIM = Claim(THERE, parse_mac("52:54:00:a1:b2:c3"), f.PEER, 0x1122334455667788, 0x99AABBCC, 0xDDEEFF0011, 0x2233)
LOCAL = LocalEndpoint(parse_mac("52:54:00:0a:0b:0c"), 77, 12, 1450)
REMOTE = RemoteEndpoint(CLAIM, 1400)
Load = Callable[..., Programs]


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_later_version(tmp_path_factory.mktemp("later"))


@pytest.fixture
def later(package: Path, pin_dir: Path) -> Callable[[], AbstractContextManager[Load]]:
    """`with later() as load:` as long as the body runs, this process is of the later version."""
    spec = importlib.util.spec_from_file_location("later_layout", package / "divhook" / "abi" / "layout.py")
    assert spec is not None
    assert spec.loader is not None
    other: ModuleType = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(other)
    layouts = {name: (key, getattr(other, kind.__name__, kind)) for name, (key, kind) in programs._LAYOUTS.items()}

    @contextmanager
    def version() -> Iterator[Load]:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(entries, "layout", other)
            patch.setattr(programs, "layout", other)
            patch.setattr(programs, "_LAYOUTS", layouts)
            yield lambda **named: Programs.load(
                pin_dir.with_name(f"v{ABI_VERSION}"),
                package / "divhook" / "bpf" / "divhook.o",
                host=host_entry(),
                **named,
            )

    return version


def filled(loaded: Programs, tap: int) -> Programs:
    """A port on the tap, an endpoint here and one elsewhere, a group, a peer, and something counted."""
    loaded.configure(host_entry())
    loaded.set_port(tap, port_entry())
    loaded.set_endpoint(HERE, LOCAL)
    loaded.set_endpoint(THERE, REMOTE)
    loaded.set_groups({f.GROUP})
    loaded.add_peer(f.PEER)
    loaded.nat.set_addresses({NAT_ADDRESS})
    loaded.nat.open(77, f.OTHER_MAC)
    loaded.attach_port(tap)
    send_from_guest()
    return loaded


def contents(loaded: Programs) -> dict[str, object]:
    groups = sorted(loaded._maps["groups"].all_keys())
    buckets = dict(next(loaded._maps["buckets"].batches()))
    return {
        "ports": loaded.ports(),
        "endpoints": loaded.endpoints(),
        "groups": groups,
        "peers": loaded.peers(),
        "drops": loaded.drop_counters(),
        "traffic": loaded.traffic(PORT_ID),
        "buckets": buckets,
        "attached": loaded.attached(),
        "nat": (loaded.nat.is_open(), loaded.nat.addresses()),
        "nat is looked at": HostConfig.from_buffer_copy(loaded._maps["config"].get(bytes(4)) or b"").flags & HOST_NAT,
    }


def whole(pin_dir: Path) -> list[str]:
    return sorted(path.name for path in pin_dir.parent.iterdir())


def test_an_upgrade_and_a_downgrade_carry_everything(
    pin_dir: Path, mode: AttachMode, tap: int, later: Callable[[], AbstractContextManager[Load]]
) -> None:
    before = filled(Programs.load(pin_dir, mode=mode), tap)
    before.test_run(FROM_GUEST, ethernet(f.ipv4()), tap)
    before.attach_uplink(socket.if_nametoindex("uplink0"))
    expected = contents(before)
    assert expected["endpoints"] == {HERE: LOCAL, THERE: REMOTE}
    assert expected["nat"] == (True, {NAT_ADDRESS})
    assert expected["nat is looked at"]
    before.close()
    for _ in range(2):
        with later() as load:
            upgraded = load(mode=mode)
            assert contents(upgraded) == expected
            assert whole(pin_dir) == [f"v{ABI_VERSION}"]
            upgraded.close()
        downgraded = Programs.load(pin_dir, mode=mode, host=host_entry())
        assert contents(downgraded) == expected
        assert whole(pin_dir) == [pin_dir.name]
        downgraded.close()
    send_from_guest()
    last = Programs.load(pin_dir, mode=mode)
    assert last.drop_counters() == {(PORT_ID, R.IPV6_UNSUPPORTED): (2, 2 * len(IPV6))}
    last.close()
    assert filters().count("direct-action") == (mode == "tc")


def test_flows_of_tracked_ports_go_on_in_the_tables_that_they_are_in(
    pin_dir: Path, tap: int, later: Callable[[], AbstractContextManager[Load]]
) -> None:
    key = FlowKey(HERE, THERE, 1001, 2002, 6)
    before = filled(Programs.load(pin_dir), tap)
    table = before.flows.install(PORT_ID, bound=64)
    table.put(key, Flow(before.flows.now_s(), opened_by_high=True, answered=True))
    flow = table.get(key)
    table.close()
    before.close()
    with later() as load:
        load().close()
    after = Programs.load(pin_dir, host=host_entry())
    carried, other = after.flows.table(PORT_ID), after.flows.table(PORT_ID + 1)
    assert carried is not None
    assert (dict(carried.items()), other) == ({key: flow}, None)
    carried.close()
    after.close()


def test_no_frame_meets_no_program_while_they_are_replaced(
    pin_dir: Path, mode: AttachMode, tap: int, later: Callable[[], AbstractContextManager[Load]]
) -> None:
    """What no program has dropped would be seen by a filter behind them."""
    filled(Programs.load(pin_dir, mode=mode), tap).close()
    run("tc qdisc add dev near0 clsact 2>/dev/null || true")
    run("tc filter add dev near0 ingress prio 9 u32 match u32 0 0 action mirred egress mirror dev uplink0")
    ended = threading.Event()
    sent = [0]

    def guest() -> None:
        with socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0) as sender:
            sender.bind(("far0", 0))
            while not ended.is_set():
                sent[0] += sender.send(IPV6) > 0

    sender = threading.Thread(target=guest)  # a thread is in its maker's network namespace
    sender.start()
    try:
        for step in range(20):
            if step % 4 == 2:
                with later() as load:
                    load(mode=mode).close()
            else:
                Programs.load(pin_dir, mode=mode, host=host_entry()).close()
    finally:
        ended.set()
        sender.join()
    assert sent[0] > 1000
    assert "Sent 0 bytes 0 pkt" in run("tc -s filter show dev near0 ingress prio 9")
    run("tc filter del dev near0 ingress prio 1") if mode == "tc" else teardown(pin_dir)
    send_from_guest()
    assert f"Sent {len(IPV6) - 14} bytes 1 pkt" in run("tc -s filter show dev near0 ingress prio 9")


def test_every_frame_is_counted_once_while_the_same_version_is_loaded_again(
    pin_dir: Path, mode: AttachMode, tap: int
) -> None:
    loaded = filled(Programs.load(pin_dir, mode=mode), tap)
    with socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0) as sender:
        sender.bind(("far0", 0))
        for _ in range(5):
            reload = threading.Thread(target=lambda: Programs.load(pin_dir, mode=mode).close())
            reload.start()
            while reload.is_alive():
                sender.send(IPV6)
            reload.join()
        sent = json.loads(run("ip -s -j link show dev far0"))[0]["stats64"]["tx"]["packets"]
    assert loaded.drop_counters() == {(PORT_ID, R.IPV6_UNSUPPORTED): (sent, sent * len(IPV6))}
    loaded.close()


@pytest.mark.parametrize("attached", [True, False])
def test_an_upgrade_that_was_cut_short_goes_on_in_either_direction(
    pin_dir: Path,
    mode: AttachMode,
    tap: int,
    later: Callable[[], AbstractContextManager[Load]],
    monkeypatch: pytest.MonkeyPatch,
    attached: bool,
) -> None:
    """Killed after the new directory was whole: before anything was switched, or after all was."""
    before = filled(Programs.load(pin_dir, mode=mode), tap)
    expected = contents(before)
    before.close()

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    for back in (False, True):
        with later() as load:
            with monkeypatch.context() as patch:
                patch.setattr(versions, "remove", killed) if attached else patch.setattr(Programs, "_take_over", killed)
                with pytest.raises(KeyboardInterrupt):
                    load(mode=mode)
            assert whole(pin_dir) == sorted([pin_dir.name, f"v{ABI_VERSION}"])
            if not back:
                resumed = load(mode=mode)
                assert contents(resumed) == expected
                resumed.close()
        again = Programs.load(pin_dir, mode=mode, host=host_entry())
        assert contents(again) == expected
        assert whole(pin_dir) == [pin_dir.name]
        again.close()


def test_what_a_killed_start_was_making_is_swept_away(
    pin_dir: Path, tap: int, later: Callable[[], AbstractContextManager[Load]], monkeypatch: pytest.MonkeyPatch
) -> None:
    before = filled(Programs.load(pin_dir), tap)
    expected = contents(before)
    before.close()
    with later() as load:
        with monkeypatch.context() as patch:
            patch.setattr(programs, "carry", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
            patch.setattr(versions, "remove", lambda *_: None)
            with pytest.raises(KeyboardInterrupt):
                load()
        assert whole(pin_dir) == sorted([pin_dir.name, f"v{ABI_VERSION}_filling"])
        upgraded = load()
        assert contents(upgraded) == expected
        assert whole(pin_dir) == [f"v{ABI_VERSION}"]
        upgraded.close()


def test_an_upgrade_that_the_kernel_refuses_leaves_everything_as_it_was(
    pin_dir: Path, mode: AttachMode, tap: int, tmp_path: Path
) -> None:
    loaded = filled(Programs.load(pin_dir, mode=mode), tap)
    expected, pins = contents(loaded), sorted(pin_dir.parent.rglob("*"))
    (tmp_path / "divhook.o").write_text("not an object")
    with pytest.raises(BpfError, match=r"cannot be loaded"):
        Programs.load(pin_dir.with_name("v98"), tmp_path / "divhook.o", mode=mode, host=host_entry())
    assert contents(loaded) == expected
    assert sorted(pin_dir.parent.rglob("*")) == pins
    loaded.close()


def test_a_map_without_types_is_left_to_the_agent_and_told(
    pin_dir: Path, tap: int, caplog: pytest.LogCaptureFixture
) -> None:
    older = pin_dir.with_name("v1")
    (older / "maps").mkdir(parents=True)
    run(f"bpftool map create {older}/maps/ports type hash key 4 value 8 entries 9 name ports")
    run(f"bpftool map update pinned {older}/maps/ports key 1 0 0 0 value 1 0 0 0 0 0 0 0")
    with caplog.at_level(logging.WARNING):
        loaded = Programs.load(pin_dir, host=host_entry())
    assert loaded.ports() == {}
    assert [r.getMessage() for r in caplog.records] == [
        f"map ports: what {older}/maps held cannot be taken over: the kernel has no types of it"
    ]
    assert whole(pin_dir) == [pin_dir.name]
    loaded.close()


def test_programs_that_this_version_has_not_are_detached_with_their_version(pin_dir: Path, tap: int) -> None:
    older = filled(Programs.load(pin_dir.with_name("v1"), mode="tcx" if TCX else "tc"), tap)
    if TCX:
        links = pin_dir.with_name("v1") / "links"
        (links / f"{FROM_GUEST}_{tap}").rename(links / f"to_moon_{tap}")
    older.close()
    loaded = Programs.load(pin_dir, host=host_entry())
    assert loaded.attached() == ({} if TCX else {tap: FROM_GUEST})
    assert "from_" not in run("bpftool net show dev near0") or not TCX
    loaded.close()


if TCX:

    @pytest.mark.parametrize("modes", [("tc", "tcx"), ("tcx", "tc")])
    @pytest.mark.parametrize("version", ["own", "other"])
    def test_another_way_of_attaching_replaces_the_first(
        pin_dir: Path, tap: int, modes: tuple[AttachMode, AttachMode], version: str
    ) -> None:
        first = pin_dir if version == "own" else pin_dir.with_name("v1")
        before = filled(Programs.load(first, mode=modes[0]), tap)
        before.close()
        after = Programs.load(pin_dir, mode=modes[1], host=host_entry())
        assert after.attached() == {tap: FROM_GUEST}
        assert filters().count("direct-action") == (modes[1] == "tc")
        send_from_guest()
        assert after.drop_counters()[PORT_ID, R.IPV6_UNSUPPORTED] == (2, 2 * len(IPV6))
        after.close()


def test_teardown_removes_every_version_in_every_state(pin_dir: Path, bpffs: Path, tap: int, mode: AttachMode) -> None:
    for name in ("v1_gone", "v2_filling", "v7"):
        loaded = Programs.load(pin_dir.parent.with_name(name) / "v3", mode=mode)
        loaded.attach_port(tap)
        loaded.attach_uplink(socket.if_nametoindex("uplink0"))
        loaded.close()
        pin_dir.parent.mkdir(exist_ok=True)
        (pin_dir.parent.with_name(name) / "v3").rename(pin_dir.with_name(name))
        pin_dir.parent.with_name(name).rmdir()
    ours = pinned(run, str(bpffs))
    assert ours <= alive(run)
    assert {kind for kind, _ in ours} == {"prog", "map"} | ({"link"} if mode == "tcx" else set())
    teardown(pin_dir)
    assert [path for path in bpffs.rglob("*") if not path.name.endswith(".debug")] == []
    assert "divhook" not in run("for i in near0 uplink0; do tc filter show dev $i ingress; done")
    assert wait_until(lambda: not ours & alive(run), 5, 0.1)  # the kernel frees them a moment later
