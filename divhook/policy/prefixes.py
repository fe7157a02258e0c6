"""Prefixes of a space of up to 32 bits, as whole numbers ordered so that a prefix stands before all that it covers.

    packed = value << 6 | length        sorted: 10.0.0.0/8, 10.0.0.0/16, 10.0.0.0/24, 10.0.1.0/24, 10.1.0.0/16, …

So what a prefix covers is one slice of a sorted list, and what covers a prefix is found by asking for its shorter ones.
"""

from bisect import bisect_left, bisect_right, insort
from collections.abc import Iterable, Iterator

ADDRESS_BITS = 32
LENGTH_BITS = 6
_LENGTH_MASK = (1 << LENGTH_BITS) - 1


def pack(value: int, length: int) -> int:
    """One prefix as a number. value: zero after `length` bits."""
    return value << LENGTH_BITS | length


def unpack(packed: int) -> tuple[int, int]:
    """(value, length)."""
    return packed >> LENGTH_BITS, packed & _LENGTH_MASK


def last_of(packed: int, bits: int) -> int:
    """The last point of the space that a prefix covers."""
    value, length = unpack(packed)
    return value | ((1 << (bits - length)) - 1)


def covering(packed: int, bits: int) -> Iterator[int]:
    """A prefix and all that cover it, the longest first."""
    value, length = unpack(packed)
    for shorter in range(length, -1, -1):
        yield pack(value >> (bits - shorter) << (bits - shorter), shorter)


class PrefixSet:
    """A sorted set of packed prefixes."""

    def __init__(self, bits: int, prefixes: Iterable[int] = ()) -> None:
        self._bits = bits
        self._sorted = sorted(set(prefixes))

    def add(self, packed: int) -> None:
        """Add one that is not there."""
        insort(self._sorted, packed)

    def remove(self, packed: int) -> None:
        """Remove one that is there."""
        del self._sorted[bisect_left(self._sorted, packed)]

    def below(self, packed: int) -> list[int]:
        """Those that a prefix covers, itself too, in order."""
        end = bisect_right(self._sorted, pack(last_of(packed, self._bits), _LENGTH_MASK))
        return self._sorted[bisect_left(self._sorted, packed) : end]
