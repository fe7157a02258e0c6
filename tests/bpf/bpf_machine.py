"""A machine that runs a tc program of an object file, one instruction after the other, and counts them.

Hardware counters are rarely there in virtual machines, and time is never the same twice; the number of instructions and
of helper calls that a frame costs is. What runs is the code as compiled (RFC 9669), before verifier and JIT, on the
maps of a loaded `Programs` as they are; the kernel's maps are not changed. Memory is regions of 4 GiB each:

    region 1: struct __sk_buff   2: the frame   3: stacks   4 and more: keys' values, as they are looked up
"""

import struct
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from divhook.adapters.bpf import syscall

MASK64, MASK32 = (1 << 64) - 1, (1 << 32) - 1
SK_BUFF, FRAME, STACKS, VALUES = 1, 2, 3, 4
STACK_BYTES, MAX_CALLS, MAX_INSTRUCTIONS = 512, 8, 100_000
MAP_REGION = 1 << 20
LENGTH, MARK, VLAN_PRESENT, IFINDEX, DATA, DATA_END, GSO_SIZE = 0, 8, 20, 40, 76, 80, 176
"""Offsets in struct __sk_buff, linux/bpf.h."""

HELPERS = {
    1: "map_lookup_elem",
    2: "map_update_elem",
    5: "ktime_get_ns",
    9: "skb_store_bytes",
    23: "redirect",
    26: "skb_load_bytes",
    28: "csum_diff",
    32: "skb_change_type",
    38: "skb_change_tail",
    39: "skb_pull_data",
    118: "jiffies64",
}
REDIRECT = 7


@dataclass(frozen=True, slots=True)
class Cost:
    """What one frame came to: verdict, the frame after, instructions executed, helpers called by name."""

    verdict: int
    frame: bytes
    instructions: int
    helpers: Counter[str]


@dataclass(frozen=True, slots=True)
class Code:
    """The instructions of an object: a call goes to an index, a map is a number in `maps`."""

    instructions: list[tuple[int, int, int, int, int]]  # opcode, dst, src, offset, immediate
    entries: dict[str, int]
    maps: list[str]


def read_object(path: Path) -> Code:
    """Read an ELF object (64 bits, little-endian) as clang makes it, with calls and maps resolved."""
    data = path.read_bytes()
    at, count, names_at = struct.unpack_from("<Q", data, 40)[0], *struct.unpack_from("<HH", data, 60)
    heads = [struct.unpack_from("<IIQQQQIIQQ", data, at + 64 * n) for n in range(count)]

    def text(table: tuple[int, ...], offset: int) -> str:
        start = table[4] + offset
        return data[start : data.index(b"\0", start)].decode()

    names = [text(heads[names_at], head[0]) for head in heads]
    symtab = heads[names.index(".symtab")]
    symbols = [struct.unpack_from("<IBBHQQ", data, symtab[4] + 24 * n) for n in range(symtab[5] // 24)]
    symbol_names = [text(heads[symtab[6]], symbol[0]) for symbol in symbols]
    starts: dict[int, int] = {}
    raw: list[tuple[int, int, int, int, int]] = []
    for index, head in enumerate(heads):
        if names[index] in (".text", "tc"):
            starts[index] = len(raw)
            for offset in range(head[4], head[4] + head[5], 8):
                opcode, registers, jump, immediate = struct.unpack_from("<BBhi", data, offset)
                raw.append((opcode, registers & 15, registers >> 4, jump, immediate))
    maps: list[str] = []
    for head in heads:
        if head[1] != 9 or head[7] not in starts:  # SHT_REL
            continue
        for offset in range(head[4], head[4] + head[5], 16):
            where, info = struct.unpack_from("<QQ", data, offset)
            number, kind = info >> 32, info & MASK32
            _, _, _, section, value, _ = symbols[number]
            place = starts[head[7]] + where // 8
            opcode, dst, src, jump, immediate = raw[place]
            if kind == 1:  # R_BPF_64_64: a map
                if symbol_names[number] not in maps:
                    maps.append(symbol_names[number])
                raw[place] = opcode, dst, 1, jump, maps.index(symbol_names[number])
            else:  # R_BPF_64_32: a subprogram, as far from here as a relative call would say
                target = starts[section] + value // 8 + immediate + 1
                raw[place] = opcode, dst, src, jump, target - place - 1
    entries = {
        symbol_names[n]: starts[symbol[3]] + symbol[4] // 8
        for n, symbol in enumerate(symbols)
        if symbol[3] in starts and symbol[1] >> 4 == 1
    }
    return Code(raw, entries, maps)


def stack_bytes(code: Code, program: str) -> int:
    """What a program's deepest chain of calls takes of the stack, as Linux 6.1 counts: 32 at a time for each."""
    calls = {at: at + word[4] + 1 for at, word in enumerate(code.instructions) if (word[0], word[2]) == (0x85, 1)}
    starts = sorted({*code.entries.values(), *calls.values(), len(code.instructions)})

    def deepest(start: int) -> int:
        end = starts[starts.index(start) + 1]
        depth, pointers = 1, set()
        for opcode, dst, src, offset, immediate in code.instructions[start:end]:
            if (opcode & 7 in (2, 3) and dst == 10) or (opcode & 7 == 1 and src == 10):
                depth = max(depth, -offset)
            elif opcode == 0xBF and src == 10:
                pointers.add(dst)
            elif opcode == 0x07 and dst in pointers:
                depth = max(depth, -immediate)
                pointers.remove(dst)
        below = max((deepest(target) for at, target in calls.items() if start <= at < end), default=0)
        return -(-depth // 32) * 32 + below

    return deepest(code.entries[program])


def signed(value: int, bits: int) -> int:
    """Two's complement."""
    return value - (1 << bits) if value >> (bits - 1) & 1 else value


ALU: dict[int, Callable[[int, int, int], int]] = {
    0x0: lambda a, b, _: a + b,
    0x1: lambda a, b, _: a - b,
    0x2: lambda a, b, _: a * b,
    0x3: lambda a, b, _: a // b if b else 0,
    0x4: lambda a, b, _: a | b,
    0x5: lambda a, b, _: a & b,
    0x6: lambda a, b, bits: a << (b % bits),
    0x7: lambda a, b, bits: a >> (b % bits),
    0x8: lambda a, _b, _: -a,
    0x9: lambda a, b, _: a % b if b else a,
    0xA: lambda a, b, _: a ^ b,
    0xB: lambda _a, b, _: b,
    0xC: lambda a, b, bits: signed(a, bits) >> (b % bits),
}
JUMP: dict[int, Callable[[int, int, int], bool]] = {
    0x0: lambda _a, _b, _: True,
    0x1: lambda a, b, _: a == b,
    0x2: lambda a, b, _: a > b,
    0x3: lambda a, b, _: a >= b,
    0x4: lambda a, b, _: a & b != 0,
    0x5: lambda a, b, _: a != b,
    0x6: lambda a, b, bits: signed(a, bits) > signed(b, bits),
    0x7: lambda a, b, bits: signed(a, bits) >= signed(b, bits),
    0xA: lambda a, b, _: a < b,
    0xB: lambda a, b, _: a <= b,
    0xC: lambda a, b, bits: signed(a, bits) < signed(b, bits),
    0xD: lambda a, b, bits: signed(a, bits) <= signed(b, bits),
}
SIZES = {0x00: 4, 0x08: 2, 0x10: 1, 0x18: 8}


@dataclass(slots=True)
class Machine:
    """Runs the programs of `code` on `maps`; sizes: of a key, and of a value, by one CPU where each has its own.

    inner: for a map of maps, the name of the one map that it is to hold. ticks: what jiffies64 says.
    """

    code: Code
    maps: Mapping[str, syscall.Map]
    sizes: Mapping[str, tuple[int, int]]
    inner: Mapping[str, str] = field(default_factory=dict)
    ticks: int = 0
    _regions: dict[int, bytearray] = field(default_factory=dict)
    _values: dict[tuple[str, bytes], int] = field(default_factory=dict)
    _helpers: Counter[str] = field(default_factory=Counter)

    def run(self, program: str, frame: bytes, ifindex: int, gso_size: int = 0) -> Cost:
        """One frame through a program, from the maps as they are in the kernel now."""
        skb = bytearray(syscall.SK_BUFF_LENGTH)
        for offset, value in ((LENGTH, len(frame)), (IFINDEX, ifindex), (GSO_SIZE, gso_size)):
            struct.pack_into("<I", skb, offset, value)
        self._regions = {SK_BUFF: skb, FRAME: bytearray(frame), STACKS: bytearray(STACK_BYTES * MAX_CALLS)}
        self._values, self._helpers = {}, Counter()
        verdict, instructions = self._execute(self.code.entries[program])
        return Cost(signed(verdict & MASK32, 32), bytes(self._regions[FRAME]), instructions, self._helpers)

    def _execute(self, at: int) -> tuple[int, int]:
        registers = [0] * 11
        registers[1], registers[10] = SK_BUFF << 32, (STACKS << 32) + STACK_BYTES
        callers: list[tuple[int, list[int]]] = []
        for executed in range(1, MAX_INSTRUCTIONS):
            opcode, dst, src, offset, immediate = self.code.instructions[at]
            at += 1
            kind = opcode & 7
            if kind in (4, 7):
                registers[dst] = self._alu(opcode, registers[dst], registers[src], immediate)
            elif opcode == 0x18:
                high = self.code.instructions[at][4]
                at += 1
                value = (immediate & MASK32) | (high & MASK32) << 32
                registers[dst] = (MAP_REGION + immediate) << 32 if src == 1 else value
            elif kind == 1:
                registers[dst] = self._load(registers[src] + offset, SIZES[opcode & 0x18])
            elif kind in (2, 3) and opcode & 0xE0 == 0x60:
                value = immediate if kind == 2 else registers[src]
                self._write(registers[dst] + offset, (value & MASK64).to_bytes(8, "little")[: SIZES[opcode & 0x18]])
            elif opcode == 0x85 and src == 1:
                callers.append((at, registers[6:]))
                registers[10] += STACK_BYTES
                at += immediate
            elif opcode == 0x85:
                self._helpers[HELPERS[immediate]] += 1
                registers[0] = self._help(immediate, registers) & MASK64
            elif opcode == 0x95:
                if not callers:
                    return registers[0], executed
                at, registers[6:] = callers.pop()
            elif kind in (5, 6):
                bits = 64 if kind == 5 else 32
                mask = (1 << bits) - 1
                operand = registers[src] if opcode & 8 else immediate
                if JUMP[opcode >> 4](registers[dst] & mask, operand & mask, bits):
                    at += offset
            else:
                raise NotImplementedError(f"opcode {opcode:#x}")
        raise RuntimeError("the program does not end")

    @staticmethod
    def _alu(opcode: int, value: int, operand: int, immediate: int) -> int:
        bits = 64 if opcode & 7 == 7 else 32
        mask = (1 << bits) - 1
        if opcode >> 4 == 0xD:
            length = immediate // 8
            low = (value & (1 << immediate) - 1).to_bytes(length, "little")
            return int.from_bytes(low, "big" if opcode & 8 else "little")
        right = (operand if opcode & 8 else immediate) & mask
        return ALU[opcode >> 4](value & mask, right, bits) & mask

    def _load(self, address: int, size: int) -> int:
        region, offset = address >> 32, address & MASK32
        if region == SK_BUFF and offset in (DATA, DATA_END):  # the verifier makes pointers of these
            return (FRAME << 32) + (0 if offset == DATA else len(self._regions[FRAME]))
        return int.from_bytes(self._read(address, size), "little")

    def _read(self, address: int, length: int) -> bytes:
        start = address & MASK32
        found = bytes(self._regions[address >> 32][start : start + length])
        assert len(found) == length, f"read beyond a region: {address:#x}"
        return found

    def _write(self, address: int, content: bytes) -> None:
        region, start = self._regions[address >> 32], address & MASK32
        assert start + len(content) <= len(region), f"write beyond a region: {address:#x}"
        region[start : start + len(content)] = content

    def _map(self, name: str) -> int:
        """Address of a map."""
        if name not in self.code.maps:
            self.code.maps.append(name)
        return (MAP_REGION + self.code.maps.index(name)) << 32

    def _value(self, name: str, key: bytes, fresh: bytes | None = None) -> int:
        """Address of a key's value, or 0."""
        if (name, key) not in self._values:
            value = fresh if fresh is not None else self.maps[name].get(key)
            if value is None:
                return 0
            region = VALUES + len(self._values)
            self._regions[region] = bytearray(value[: self.sizes[name][1]])
            self._values[name, key] = region << 32
        return self._values[name, key]

    def _help(self, number: int, registers: list[int]) -> int:
        frame = self._regions[FRAME]
        a, b, c, d, e = registers[1:6]
        name = HELPERS[number]
        if name.startswith("map_"):
            table = self.code.maps[(a >> 32) - MAP_REGION]
            key = self._read(b, self.sizes[table][0])
            if name == "map_lookup_elem" and table in self.inner:
                return self._map(self.inner[table])
            if name == "map_lookup_elem":
                return self._value(table, key)
            self._value(table, key, self._read(c, self.sizes[table][1]))
        elif name == "skb_load_bytes":
            if b + d > len(frame):
                return -14
            self._write(c, frame[b : b + d])
        elif name == "skb_store_bytes":
            if b + d > len(frame):
                return -14
            frame[b : b + d] = self._read(c, d)
        elif name == "csum_diff":
            assert not b
            words = struct.unpack(f"<{d // 4}I", self._read(c, d))
            total = sum(words, e)
            while total >> 32:
                total = (total & MASK32) + (total >> 32)
            return total
        elif name == "skb_change_tail":
            self._regions[FRAME] = frame[:b] + bytes(max(0, b - len(frame)))
            struct.pack_into("<I", self._regions[SK_BUFF], LENGTH, b)
        elif name == "redirect":
            return REDIRECT
        elif name == "ktime_get_ns":
            return time.monotonic_ns()
        elif name == "jiffies64":
            return self.ticks
        return 0
