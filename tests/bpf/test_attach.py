"""Loading, adopting, attaching by tcx link and by tc filter, replacing, and leaving nothing behind."""

import asyncio
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import bpf_frames as f
import pytest
from bpf_bench import PORT_ID, host_entry, port_entry, run
from bpf_frames import ethernet

import divhook
from divhook.abi import layout
from divhook.abi.entries import TrafficCount
from divhook.adapters.bpf import (
    FROM_GUEST,
    FROM_WIRE,
    AttachMode,
    BpfError,
    Programs,
    ensure_bpffs,
    pin_dir_in,
    teardown,
)
from divhook.adapters.bpf.bpffs import is_bpffs
from divhook.adapters.bpf.syscall import possible_cpus
from divhook.core.endpoint import PortState
from divhook.core.reasons import DropReason as R

IPV6 = ethernet(b"\x60" + bytes(39), f.IPV6)


TCX = tuple(map(int, os.uname().release.split(".")[:2])) >= (6, 6)
"""Whether the kernel has tcx links; before, tc filters are all there is."""


@pytest.fixture(params=["tcx", "tc"] if TCX else ["tc"])
def mode(request: pytest.FixtureRequest) -> AttachMode:
    mode: AttachMode = request.param
    return mode


@pytest.fixture
def tap(namespace: None) -> Iterator[int]:
    """A veth pair, far0 to near0, standing for a guest's NIC and its tap: made anew for each test."""
    run("ip link add near0 type veth peer name far0 && ip link set near0 up && ip link set far0 up")
    yield socket.if_nametoindex("near0")
    subprocess.run(["ip", "link", "delete", "near0"], check=False, capture_output=True)


@pytest.fixture
def pin_dir(bpffs: Path) -> Iterator[Path]:
    yield pin_dir_in(bpffs)
    teardown(pin_dir_in(bpffs))


@pytest.fixture
def programs(pin_dir: Path, mode: AttachMode) -> Iterator[Programs]:
    programs = Programs.load(pin_dir, mode=mode)
    programs.configure(host_entry())
    yield programs
    programs.close()


def send_from_guest() -> None:
    with socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0) as guest:
        guest.bind(("far0", 0))
        guest.send(IPV6)


def filters() -> str:
    return run("tc filter show dev near0 ingress")


def drops(programs: Programs) -> int:
    return sum(packets for packets, _ in programs.drop_counters().values())


def test_attached_program_sees_frames_and_detached_sees_none(programs: Programs, tap: int) -> None:
    programs.set_port(tap, port_entry())
    send_from_guest()
    assert programs.drop_counters() == {}
    programs.attach_port(tap)
    assert programs.attached() == {tap: FROM_GUEST}
    send_from_guest()
    assert programs.drop_counters() == {(PORT_ID, R.IPV6_UNSUPPORTED): (1, len(IPV6))}
    programs.detach_port(tap)
    assert programs.attached() == {}
    send_from_guest()
    assert drops(programs) == 1


def test_attaching_twice_leaves_one_program(programs: Programs, tap: int) -> None:
    programs.attach_port(tap)
    programs.attach_port(tap)
    send_from_guest()
    assert drops(programs) == 1
    assert filters().count("direct-action") <= 1


def test_the_agent_gone_everything_goes_on_and_the_next_one_adopts_it(
    programs: Programs, pin_dir: Path, mode: AttachMode, tap: int
) -> None:
    programs.set_port(tap, port_entry())
    programs.attach_port(tap)
    programs.close()
    send_from_guest()
    following = Programs.load(pin_dir, mode=mode)
    assert following.ports() == {tap: port_entry()}
    assert following.attached() == {tap: FROM_GUEST}
    assert following.drop_counters() == {(PORT_ID, R.IPV6_UNSUPPORTED): (1, len(IPV6))}
    send_from_guest()
    assert following.drop_counters() == {(PORT_ID, R.IPV6_UNSUPPORTED): (2, 2 * len(IPV6))}
    following.close()


def test_loading_again_switches_what_is_attached_to_the_new_program(
    programs: Programs, pin_dir: Path, mode: AttachMode, tap: int
) -> None:
    def attached_program() -> str:
        """tcx: the id that the link shows; tc: the filter's."""
        pin = pin_dir / "links" / f"{FROM_GUEST}_{tap}"
        return run(f"bpftool link show pinned {pin} | head -1") if mode == "tcx" else filters()

    programs.attach_port(tap)
    before = attached_program()
    following = Programs.load(pin_dir, mode=mode)
    assert attached_program() != before
    assert following.attached() == {tap: FROM_GUEST}
    following.close()


def test_tap_that_vanished_is_no_error(programs: Programs, pin_dir: Path, tap: int) -> None:
    programs.attach_port(tap)
    run("ip link delete near0")
    assert programs.attached() == {}
    assert list((pin_dir / "links").iterdir()) == []
    programs.detach_port(tap)
    programs.detach_port(tap)


def test_interface_that_took_a_dead_ones_index_gets_a_link_of_its_own(programs: Programs, tap: int) -> None:
    programs.attach_port(tap)
    run(f"ip link delete near0; ip link add near0 index {tap} type veth peer name far0 && ip link set near0 up")
    run("ip link set far0 up")
    programs.attach_port(tap)
    assert programs.attached() == {tap: FROM_GUEST}
    send_from_guest()
    assert drops(programs) == 1


def test_attaching_to_no_interface_says_so(programs: Programs) -> None:
    with pytest.raises(BpfError, match=r"interface number 2147483646: No such device"):
        programs.attach_port(0x7FFFFFFE)


def test_uplink_that_changes_leaves_the_old_one_alone(programs: Programs, tap: int) -> None:
    other = socket.if_nametoindex("uplink0")
    programs.attach_uplink(tap)
    programs.attach_uplink(other)
    assert programs.attached() == {other: FROM_WIRE}
    programs.detach_uplink()
    programs.detach_uplink()
    assert programs.attached() == {}


def test_filter_that_libvirts_bandwidth_put_on_the_tap_still_sees_what_we_pass(programs: Programs, tap: int) -> None:
    run(
        "tc qdisc add dev near0 ingress && "
        "tc filter add dev near0 parent ffff: protocol all u32 match u32 0 0 action mirred egress mirror dev uplink0"
    )
    programs.set_port(tap, port_entry())
    programs.attach_port(tap)
    assert programs.attached() == {tap: FROM_GUEST}
    with socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0) as guest:
        guest.bind(("far0", 0))
        for _ in range(3):
            guest.send(ethernet(f.ipv4()))
            guest.send(IPV6)
    assert programs.traffic(PORT_ID).diverted_packets == 3
    assert " 3 pkt" in run("tc -s filter show dev near0 parent ffff:")
    programs.detach_port(tap)
    assert "mirred" in run("tc filter show dev near0 parent ffff:")


def test_priority_that_is_taken_is_named(pin_dir: Path, tap: int) -> None:
    programs = Programs.load(pin_dir, mode="tc")
    run("tc qdisc add dev near0 clsact && tc filter add dev near0 ingress protocol all prio 1 u32 match u32 0 0")
    with pytest.raises(BpfError, match=r"priority 1 .*tc filter show dev near0 ingress"):
        programs.attach_port(tap)
    programs.teardown()


if TCX:

    def test_program_goes_ahead_of_those_that_are_there(pin_dir: Path, tap: int) -> None:
        programs = Programs.load(pin_dir, mode="tcx")
        programs.configure(host_entry())
        programs.attach_port(tap)
        programs.attach_uplink(tap)
        with socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0) as sender:
            sender.bind(("far0", 0))
            sender.send(f.discovery(destination=f.FOREIGN_GROUP))
        assert programs.drop_counters() == {(0, R.NOT_JOINED): (1, 138)}
        programs.teardown()


def test_teardown_leaves_nothing(pin_dir: Path, bpffs: Path, mode: AttachMode, tap: int) -> None:
    programs = Programs.load(pin_dir, mode=mode)
    programs.attach_port(tap)
    programs.attach_uplink(socket.if_nametoindex("uplink0"))
    programs.teardown()
    assert [path for path in bpffs.rglob("*") if not path.name.endswith(".debug")] == []
    assert "divhook" not in filters()
    assert "from_" not in run("bpftool net show dev near0; bpftool net show dev uplink0")


def test_it_works_in_the_thread_of_a_running_event_loop(programs: Programs, tap: int) -> None:
    async def agent() -> dict[int, str]:
        programs.attach_port(tap)
        return programs.attached()

    assert asyncio.run(agent()) == {tap: FROM_GUEST}


def test_unconfigured_host_drops_guests_and_touches_nothing_from_the_wire(pin_dir: Path, tap: int) -> None:
    programs = Programs.load(pin_dir)
    programs.set_port(tap, port_entry())
    assert programs.test_run(FROM_GUEST, ethernet(f.ipv4()), tap).verdict == 2
    assert programs.test_run(FROM_WIRE, f.discovery(), tap).verdict == -1
    assert programs.drop_counters() == {(0, R.PORT_UNKNOWN): (1, 58)}
    programs.teardown()


# tables


@pytest.fixture
def tables(pin_dir: Path) -> Iterator[Programs]:
    programs = Programs.load(pin_dir)
    programs.configure(host_entry())
    yield programs
    programs.close()


def test_port_table_reads_back_what_was_written(tables: Programs) -> None:
    plain = port_entry(address=None, state=PortState.INCOMING)
    tables.set_port(77, port_entry(port_id=1))
    tables.set_port(78, plain)
    tables.set_port(77, port_entry(port_id=1, state=PortState.FENCED))
    assert tables.ports() == {77: port_entry(port_id=1, state=PortState.FENCED), 78: plain}
    tables.remove_port(77)
    tables.remove_port(77)
    assert tables.ports() == {78: plain}


def test_full_port_table_is_an_error_and_removal_makes_room(tables: Programs) -> None:
    for number in range(1, layout.MAX_PORTS + 1):
        tables.set_port(number, port_entry(port_id=number))
    with pytest.raises(BpfError, match=r"the table is full"):
        tables.set_port(layout.MAX_PORTS + 1, port_entry(port_id=layout.MAX_PORTS + 1))
    tables.remove_port(1)
    tables.forget_port_counters(1)
    tables.set_port(layout.MAX_PORTS + 1, port_entry(port_id=layout.MAX_PORTS + 1))


def test_groups_become_exactly_what_is_set(tables: Programs) -> None:
    groups = {b"\x03\xd1" + number.to_bytes(4, "big") for number in range(layout.MAX_GROUPS)}
    tables.set_groups(groups)
    with pytest.raises(BpfError, match=r"the table is full"):
        tables.set_groups({*groups, f.GROUP})
    tables.set_groups({f.GROUP})
    assert tables.test_run(FROM_WIRE, f.discovery(destination=f.GROUP), 1).verdict == 7
    gone = next(iter(groups - {f.GROUP}))
    assert tables.test_run(FROM_WIRE, f.discovery(destination=gone), 1).verdict == 2


def test_peers_beyond_the_bound_push_out_others(tables: Programs) -> None:
    for number in range(layout.MAX_PEERS + 100):
        tables.add_peer(b"\x02\x77" + number.to_bytes(4, "big"))
    assert len(tables.peers()) <= layout.MAX_PEERS


def test_peers_are_there_for_the_next_load_until_they_are_removed(tables: Programs) -> None:
    before = set(tables.peers())
    tables.add_peer(b"\x02\x79\x01\x02\x03\x04")
    assert set(tables.peers()) - before == {b"\x02\x79\x01\x02\x03\x04"}
    tables.remove_peer(b"\x02\x79\x01\x02\x03\x04")
    assert set(tables.peers()) == before


def test_counters_of_one_port_are_forgotten_and_others_stay(tables: Programs) -> None:
    for number in (1, 2):
        tables.set_port(number, port_entry(port_id=number))
        tables.test_run(FROM_GUEST, IPV6, 1 if number == 1 else socket.if_nametoindex("port0"))
    tables.set_port(socket.if_nametoindex("port0"), port_entry(port_id=2))
    tables.test_run(FROM_GUEST, IPV6, socket.if_nametoindex("port0"))
    tables.forget_port_counters(1)
    assert (2, R.IPV6_UNSUPPORTED) in tables.drop_counters()
    assert not any(port == 1 for port, _ in tables.drop_counters())
    assert tables.traffic(1) == TrafficCount()


def test_full_drop_table_counts_what_it_cannot_tell_apart(tables: Programs) -> None:
    port0 = socket.if_nametoindex("port0")
    tables.set_port(port0, port_entry())
    table = tables._maps["drops"]
    value = bytes(16 * possible_cpus())
    for number in range(layout.MAX_DROP_COUNTERS):
        table.put(bytes(layout.DropKey(number // 64 + 10_000, number % 64)), value)
    tables.test_run(FROM_GUEST, IPV6, port0)
    assert (PORT_ID, R.IPV6_UNSUPPORTED) not in tables.drop_counters()
    assert tables.traffic(PORT_ID).uncounted_drops == 1


# errors that a person reads


def test_maps_of_another_layout_are_refused_with_the_way_out(pin_dir: Path, bpffs: Path) -> None:
    (pin_dir / "maps").mkdir(parents=True)
    run(f"bpftool map create {pin_dir}/maps/ports type hash key 4 value 8 entries 9 name ports")
    with pytest.raises(BpfError, match=r"another layout .*\n?.*divhook agent --teardown"):
        Programs.load(pin_dir)
    teardown(pin_dir)
    Programs.load(pin_dir).teardown()


def test_teardown_takes_other_versions_along_and_needs_nothing_to_be_there(pin_dir: Path, tap: int) -> None:
    old = pin_dir.with_name("v0")
    programs = Programs.load(old)
    programs.attach_port(tap)
    programs.close()
    teardown(pin_dir)
    assert not pin_dir.parent.exists()
    send_from_guest()
    assert "from_" not in run("bpftool net show dev near0")
    teardown(pin_dir)


def test_directory_that_is_no_bpffs_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BpfError, match=r"mount -t bpf"):
        Programs.load(tmp_path / "divhook")


def test_missing_object_says_how_to_build_it(pin_dir: Path) -> None:
    with pytest.raises(BpfError, match=r"make bpf"):
        Programs.load(pin_dir, Path("/nowhere/divhook.o"))


def test_object_that_is_none_is_refused(pin_dir: Path, tmp_path: Path) -> None:
    (tmp_path / "text.o").write_text("not an object")
    with pytest.raises(BpfError, match=r"text\.o cannot be loaded"):
        Programs.load(pin_dir, tmp_path / "text.o")


def test_without_capabilities_the_error_names_them(pin_dir: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from divhook.adapters.bpf import *\n"
        "try: Programs.load(Path(sys.argv[1]))\n"
        "except BpfError as error: print(error)"
    )
    command = ["setpriv", "--bounding-set=-all", "--inh-caps=-all", sys.executable, "-c", code]
    root = Path(divhook.__file__).parent.parent
    done = subprocess.run([*command, str(pin_dir)], cwd=root, capture_output=True, text=True, check=True)
    assert "CAP_BPF" in done.stdout


def test_bpffs_is_mounted_once(bpffs: Path, tmp_path: Path) -> None:
    assert not is_bpffs(tmp_path)
    ensure_bpffs(bpffs)
    assert is_bpffs(bpffs)
    assert run("cat /proc/self/mountinfo").count(str(bpffs)) == 1
