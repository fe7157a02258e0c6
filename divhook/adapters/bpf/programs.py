"""The tc programs and their maps, as the agent uses them: load or adopt, attach, fill, count, tear down.

Everything is pinned below one directory of a bpffs and so outlives the process:

    <bpffs>/divhook/v2/maps/      adopted by the next load; by another version's, what they hold
                      /programs/  replaced by the next load
                      /links/     tcx links, switched to the new program by the next load

Calls are synchronous and short (a map operation is about 1 µs): fit for the event loop's thread. They act on the
network namespace of the calling thread.
"""

import ctypes
import os
import struct
from collections.abc import Iterator, Mapping, Set
from dataclasses import replace
from pathlib import Path
from typing import Literal, Self

import divhook
from divhook.abi import layout
from divhook.abi.entries import (
    EndpointEntry,
    GroupList,
    HostEntry,
    PortEntry,
    TrafficCount,
    packed_address,
    packed_mac,
    unpack_endpoint,
)
from divhook.adapters.bpf import syscall, tc, tcx, versions
from divhook.adapters.bpf.bpffs import is_bpffs
from divhook.adapters.bpf.carry import carry
from divhook.adapters.bpf.elf import load_object
from divhook.adapters.bpf.errors import BpfError, os_error
from divhook.adapters.bpf.external import ExternalMaps
from divhook.adapters.bpf.flows import TICKS, FlowTables, kernel_ticks_per_s
from divhook.adapters.bpf.nat import NatMaps
from divhook.adapters.bpf.policy import PolicyMaps
from divhook.adapters.bpf.ring import Ring
from divhook.core.addressing import Address, Mac
from divhook.core.endpoint import PORT_WIRE
from divhook.core.reasons import DropReason

OBJECT_FILE = Path(divhook.__file__).parent / "bpf" / "divhook.o"
FROM_GUEST = "from_guest"
FROM_WIRE = "from_wire"
FROM_NAT = "from_nat"
FROM_HOST = "from_host"

AttachMode = Literal["auto", "tcx", "tc"]
"""How programs are attached; auto: tcx links where the kernel has them, else tc filters."""

PASS, DROP, REDIRECT = -1, 2, 7
"""Verdicts of the programs: TC_ACT_UNSPEC (on to the next filter, and the stack), TC_ACT_SHOT, TC_ACT_REDIRECT."""

_U32 = struct.Struct("=I")
_PRESENT = _U32.pack(1)

_PER_CPU = {"drops", "traffic", "rule_counts"}
_LAYOUTS: dict[str, tuple[int, type[ctypes.Structure] | type[ctypes.c_uint32]]] = {
    "config": (4, layout.HostConfig),
    "ports": (4, layout.Port),
    "endpoints": (4, layout.Endpoint),
    "buckets": (4, layout.Buckets),
    "shared": (8, ctypes.c_uint32),
    "group_lists": (8, layout.GroupList),
    "groups": (8, ctypes.c_uint32),
    "peers": (8, ctypes.c_uint32),
    "drops": (4, layout.DropCount),
    "traffic": (4, layout.Traffic),
    "flows": (4, ctypes.c_uint32),
    "port_policies": (4, layout.PortPolicy),
    "policy_entries": (ctypes.sizeof(layout.PolicyKey), layout.PolicyEntry),
    "policy_identities": (ctypes.sizeof(layout.IdentityKey), layout.PolicyClass),
    "policy_prefixes": (ctypes.sizeof(layout.ExternalKey), layout.PolicyClass),
    "cell_pairs": (ctypes.sizeof(layout.CellPair), ctypes.c_uint32),
    "rule_counts": (8, layout.RuleCount),
    "prefixes": (ctypes.sizeof(layout.PrefixKey), layout.Prefix),
    "next_hops": (4, layout.NextHops),
    "nat": (4, layout.NatConfig),
    "nat_addresses": (4, ctypes.c_uint32),
}
FLOW_LOG = "flow_log"
"""The ring. Maps that are neither here nor there are the programs' own."""


def _value_length(name: str, cpus: int) -> int:
    length = ctypes.sizeof(_LAYOUTS[name][1])
    return (length + 7) // 8 * 8 * cpus if name in _PER_CPU else length


def _sums(raw: bytes, width: int) -> list[int]:
    """Per-CPU values of `width` 64-bit counters each, added up."""
    counters = struct.unpack(f"={len(raw) // 8}Q", raw)
    return [sum(counters[at::width]) for at in range(width)]


def _mac_key(mac: Mac) -> bytes:
    return bytes(layout.MacKey(packed_mac(mac)))


class Programs:
    """The programs with their maps. Made by `load`; `close` gives up descriptors and leaves all running."""

    def __init__(self, pin_dir: Path, programs: dict[str, int], maps: dict[str, syscall.Map], use_tcx: bool) -> None:
        self._pin_dir = pin_dir
        self._programs = programs
        self._maps = maps
        self._use_tcx = use_tcx
        self.flows = FlowTables(maps["flows"], programs[TICKS])
        self.policy = PolicyMaps(maps, self.flows)
        self.external = ExternalMaps(maps)
        self.nat = NatMaps(maps)
        self.flow_log: Ring | None = None

    @classmethod
    def load(
        cls, pin_dir: Path, object_file: Path | None = None, mode: AttachMode = "auto", host: HostEntry | None = None
    ) -> Self:
        """Load the programs, adopt the maps or make them, and switch what is attached to the new programs.

        pin_dir: below a bpffs, from `pin_dir_in`; made where missing, and filled with what another version's maps hold.
        object_file: the package's own by default. host: configured before any frame meets the new programs; None leaves
        what is there. Raises BpfError: no capability, no bpffs, no libbpf, maps of another layout, program refused.
        What was attached before goes on then.
        """
        there = next(path for path in (pin_dir, *pin_dir.parents) if path.exists())
        if not is_bpffs(there):
            raise BpfError(f"{there} is not in a bpf file system: `mount -t bpf bpf /sys/fs/bpf`, or the like")
        versions.sweep(pin_dir.parent)
        fresh = not pin_dir.exists()
        directory = versions.filling(pin_dir) if fresh else pin_dir
        try:
            self = cls._load_in(directory, object_file or OBJECT_FILE, mode)
            if host is not None:
                self.configure(host)
            if fresh:
                for other in versions.others(pin_dir)[:1]:
                    carry(other / "maps", self._maps)
                if host is not None and self.nat.is_open():
                    self.configure(host)  # once more: what was carried translates, and that shows in the flags
                directory.rename(pin_dir)
                self._pin_dir = pin_dir
        except BaseException:
            if fresh:
                versions.remove(directory)
            raise
        self._ensure_buckets(PORT_WIRE)
        self._take_over()
        for other in versions.others(pin_dir):
            versions.remove(other)
        return self

    @classmethod
    def _load_in(cls, directory: Path, object_file: Path, mode: AttachMode) -> Self:
        """The programs and maps, pinned; what is attached stays as it is."""
        for part in ("maps", "programs", "links"):
            try:
                (directory / part).mkdir(mode=0o700, parents=True, exist_ok=True)
            except OSError as error:
                raise os_error(f"cannot make {directory / part}", error.errno or 0) from None
        loaded = load_object(object_file, directory / "maps")
        cpus = syscall.possible_cpus()
        maps = {
            name: syscall.Map(name, fd, _LAYOUTS[name][0], _value_length(name, cpus))
            for name, fd in loaded.maps.items()
            if name in _LAYOUTS
        }
        rings = {name: fd for name, fd in loaded.maps.items() if name == FLOW_LOG}
        for fd in [fd for name, fd in loaded.maps.items() if name not in _LAYOUTS and name not in rings]:
            os.close(fd)
        for name, fd in loaded.programs.items():
            fresh = directory / "programs" / f"{name}_new"
            fresh.unlink(missing_ok=True)
            syscall.pin(fd, fresh)
            fresh.rename(directory / "programs" / name)
        use_tcx = mode == "tcx" or (mode == "auto" and syscall.tcx_supported(loaded.programs[FROM_GUEST]))
        made = cls(directory, loaded.programs, maps, use_tcx)
        made.flow_log = Ring(rings[FLOW_LOG], layout.FLOW_LOG_BYTES) if rings else None
        return made

    def _take_over(self) -> None:
        """Whatever any version has attached, in whatever way, is these programs from here on; no frame meets none."""
        links = [directory / "links" for directory in (self._pin_dir, *versions.others(self._pin_dir))]
        for ifindex, name in self.attached().items():
            self._attach(name, ifindex)
        if self._use_tcx:
            for other in links[1:]:
                tcx.take_over(other, links[0], self._programs)
            for ifindex, name in tc.attached().items():
                self._attach(name, ifindex)
                tc.detach(ifindex)
        else:
            for each in links:
                for ifindex, name in tcx.attached(each).items():
                    self._attach(name, ifindex)
                    tcx.detach(each, name, ifindex)

    # attaching

    def attached(self) -> dict[int, str]:
        """Interfaces that carry one of the programs now, with its name."""
        return tcx.attached(self._pin_dir / "links") if self._use_tcx else tc.attached()

    def attach(self, program: str, ifindex: int) -> None:
        """A program at the ingress of an interface; detached from any other first. Raises BpfError."""
        for other, name in self.attached().items():
            if name == program and other != ifindex:
                self._detach(program, other)
        self._attach(program, ifindex)

    def attach_port(self, ifindex: int) -> None:
        """from_guest at the ingress of a tap; again is no error. Raises BpfError."""
        self._attach(FROM_GUEST, ifindex)

    def detach_port(self, ifindex: int) -> None:
        """No error where the tap is gone. Raises BpfError."""
        self._detach(FROM_GUEST, ifindex)

    def attach_uplink(self, ifindex: int) -> None:
        """from_wire at the ingress of the uplink; detached from any other interface first. Raises BpfError."""
        self.attach(FROM_WIRE, ifindex)

    def attach_host(self, ifindex: int) -> None:
        """The same for from_host, at the peer of dvhost."""
        self.attach(FROM_HOST, ifindex)

    def detach_uplink(self) -> None:
        """Detach from_wire wherever it is. Raises BpfError."""
        for ifindex, name in self.attached().items():
            if name == FROM_WIRE:
                self._detach(FROM_WIRE, ifindex)

    def _attach(self, program: str, ifindex: int) -> None:
        if program not in self._programs:
            return  # another version's, which takes it along
        if self._use_tcx:
            tcx.attach(self._pin_dir / "links", program, self._programs[program], ifindex)
        else:
            tc.attach(program, self._programs[program], ifindex)

    def _detach(self, program: str, ifindex: int) -> None:
        if self._use_tcx:
            tcx.detach(self._pin_dir / "links", program, ifindex)
        else:
            tc.detach(ifindex)

    # filling

    def configure(self, host: HostEntry) -> None:
        """Say who this host is. Until then from_guest drops everything and from_wire passes everything."""
        packed = replace(host, ticks_per_s=kernel_ticks_per_s()).pack()
        if self.nat.is_open():  # by the agent before this one: what it translates goes on
            packed.flags |= layout.HOST_NAT
        self._maps["config"].put(_U32.pack(0), bytes(packed))

    def set_port(self, ifindex: int, entry: PortEntry) -> None:
        """Insert or update the port of an interface; its buckets and counters go on. Raises BpfError where full.

        Ids must be distinct modulo MAX_PORTS, 0 being the uplink's: counters are kept by that.
        """
        self._ensure_buckets(entry.port_id)
        self._put_changed("ports", _U32.pack(ifindex), bytes(entry.pack()))

    def _put_changed(self, name: str, key: bytes, value: bytes) -> None:
        """The kernel uses the memory of an exchanged entry again at once, while a program may still read it: so what
        is right already, as all is for a restarted agent, is left alone."""
        if self._maps[name].get(key) != value:
            self._maps[name].put(key, value)

    def remove_port(self, ifindex: int) -> None:
        """Everything from that interface is PORT_UNKNOWN from now on. Its counters stay."""
        self._maps["ports"].delete(_U32.pack(ifindex))

    def ports(self) -> dict[int, PortEntry]:
        """ifindex → port, as the programs see it."""
        found = {}
        for key in self._maps["ports"].all_keys():
            raw = self._maps["ports"].get(key)
            if raw is not None:
                found[_U32.unpack(key)[0]] = PortEntry.unpack(layout.Port.from_buffer_copy(raw))
        return found

    def set_endpoint(self, address: Address, entry: EndpointEntry) -> None:
        """Insert or exchange what is known of an address: no frame sees neither. Raises BpfError where full."""
        self._put_changed("endpoints", address, bytes(entry.pack()))

    def remove_endpoint(self, address: Address) -> None:
        """Frames for it, and from it, are the agent's from now on; no error where it was not known."""
        self._maps["endpoints"].delete(address)

    def endpoint(self, address: Address) -> EndpointEntry | None:
        """What the programs know of an address."""
        raw = self._maps["endpoints"].get(address)
        return unpack_endpoint(address, layout.Endpoint.from_buffer_copy(raw)) if raw is not None else None

    def endpoint_batches(self) -> Iterator[dict[Address, EndpointEntry]]:
        """All that they know, also from before this load, some at a time: to be read between other things."""
        for batch in self._maps["endpoints"].batches():
            yield {address: unpack_endpoint(address, layout.Endpoint.from_buffer_copy(raw)) for address, raw in batch}

    def endpoints(self) -> dict[Address, EndpointEntry]:
        """The same at once: some 20 µs each."""
        return {address: entry for batch in self.endpoint_batches() for address, entry in batch.items()}

    def set_groups(self, groups: Set[Mac]) -> None:
        """Exactly these group MACs are listened to. Raises BpfError where there are more than MAX_GROUPS."""
        table = self._maps["groups"]
        wanted = {_mac_key(group) for group in groups}
        present = set(table.all_keys())
        for key in present - wanted:
            table.delete(key)
        for key in wanted - present:
            table.put(key, _PRESENT)

    def set_group_list(self, network: Address, group: Address, entry: GroupList) -> None:
        """Who gets copies of what is sent to a group in a subnet. Raises BpfError where full."""
        self._put_changed("group_lists", network + group, bytes(entry.pack()))

    def remove_group_list(self, network: Address, group: Address) -> None:
        """Nobody, or the agent decides; no error where there was none."""
        self._maps["group_lists"].delete(network + group)

    def group_lists(self) -> dict[tuple[Address, Address], GroupList]:
        """All lists, by network and group."""
        found = {}
        for key in self._maps["group_lists"].all_keys():
            raw = self._maps["group_lists"].get(key)
            if raw is not None:
                found[key[:4], key[4:]] = GroupList.unpack(layout.GroupList.from_buffer_copy(raw))
        return found

    def set_shared(self, port_id: int, addresses: Mapping[Address, bool]) -> None:
        """The addresses that a port may take, and which of them it has. Raises BpfError where full."""
        table = self._maps["shared"]
        present = {key for key in table.all_keys() if layout.SharedKey.from_buffer_copy(key).port_id == port_id}
        wanted = {bytes(layout.SharedKey(port_id, packed_address(a))): held for a, held in addresses.items()}
        for key in present - wanted.keys():
            table.delete(key)
        for key, held in wanted.items():
            table.put(key, _U32.pack(layout.SHARED_HELD if held else layout.SHARED_ALLOWED))

    def shared(self) -> dict[int, dict[Address, bool]]:
        """What `set_shared` has set, by port id."""
        found: dict[int, dict[Address, bool]] = {}
        for raw in self._maps["shared"].all_keys():
            key, value = layout.SharedKey.from_buffer_copy(raw), self._maps["shared"].get(raw)
            if value is not None:
                held = _U32.unpack(value)[0] == layout.SHARED_HELD
                found.setdefault(key.port_id, {})[bytes(key.address_be)] = held
        return found

    def add_peer(self, pmac: Mac) -> None:
        """An authenticated peer: its frames use the peers' share. The least recently used goes where full."""
        self._maps["peers"].put(_mac_key(pmac), _PRESENT)

    def peers(self) -> list[Mac]:
        """The peers that are there, also from before this load."""
        return [bytes(layout.MacKey.from_buffer_copy(key).mac.octets) for key in self._maps["peers"].all_keys()]

    def remove_peer(self, pmac: Mac) -> None:
        """No peer any more; no error where it was none."""
        self._maps["peers"].delete(_mac_key(pmac))

    def _ensure_buckets(self, port_id: int) -> None:
        self._maps["buckets"].put(_U32.pack(port_id), bytes(ctypes.sizeof(layout.Buckets)), syscall.BPF_NOEXIST)

    # counting

    def drop_counters(self) -> dict[tuple[int, DropReason | int], tuple[int, int]]:
        """(port id, reason) → (packets, bytes). A code that this version does not know stays a number."""
        found: dict[tuple[int, DropReason | int], tuple[int, int]] = {}
        known = {int(reason): reason for reason in DropReason}
        for raw_key in self._maps["drops"].all_keys():
            key = layout.DropKey.from_buffer_copy(raw_key)
            raw = self._maps["drops"].get(raw_key)
            if raw is not None:
                packets, octets = _sums(raw, 2)
                found[key.port_id, known.get(key.reason, key.reason)] = (packets, octets)
        return found

    def traffic(self, port_id: int) -> TrafficCount:
        """What was handed on for a port, or for the uplink (0)."""
        raw = self._maps["traffic"].get(_U32.pack(port_id % layout.MAX_PORTS))
        assert raw is not None  # an array
        return TrafficCount(*_sums(raw, 7))

    def forget_port_counters(self, port_id: int) -> None:
        """Remove all that is counted for a port: before its id is given to another endpoint, after remove_port."""
        for raw_key in list(self._maps["drops"].all_keys()):
            if layout.DropKey.from_buffer_copy(raw_key).port_id == port_id:
                self._maps["drops"].delete(raw_key)
        self._maps["buckets"].delete(_U32.pack(port_id))
        zero = bytes(_value_length("traffic", syscall.possible_cpus()))
        self._maps["traffic"].put(_U32.pack(port_id % layout.MAX_PORTS), zero)
        if port_id == PORT_WIRE:
            self._ensure_buckets(PORT_WIRE)

    # tests, and the end

    def test_run(
        self, program: str, frame: bytes, ifindex: int, mark: int = 0, gso_size: int = 0, gso_segs: int = 0
    ) -> syscall.TestRun:
        """One frame through a program as if received on ifindex; counters and buckets move. Raises BpfError.

        gso_size, gso_segs: of a frame that is to be cut into so many segments of so many bytes of payload.
        """
        return syscall.run_frame(self._programs[program], frame, ifindex, mark, gso_size, gso_segs)

    def close(self) -> None:
        """Give up the descriptors; what is pinned goes on working."""
        for fd in self._programs.values():
            os.close(fd)
        self._programs = {}
        if self.flow_log is not None:
            self.flow_log.close()
            os.close(self.flow_log.fd)
            self.flow_log = None
        for table in self._maps.values():
            table.close()

    def teardown(self) -> None:
        """Detach everything, unpin everything, remove the directories. The object is closed."""
        self.close()
        teardown(self._pin_dir)


def teardown(pin_dir: Path) -> None:
    """Remove all that divhook of any version ever attached or pinned beside pin_dir; works when nothing can be loaded.

    Acts on the network namespace of the calling thread. Nothing there is no error. Raises BpfError.
    """
    for ifindex in tc.attached():
        tc.detach(ifindex)
    root = pin_dir.parent
    for version in list(root.iterdir()) if root.is_dir() else ():
        versions.remove(version)
    if root.is_dir():
        root.rmdir()
