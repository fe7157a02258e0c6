"""The internet checksum: RFC 1071, and its incremental update by RFC 1624.

The sum is over 16-bit words in one's complement, where 2^16 = 1 (modulo 65535). A whole buffer read as one big
integer is therefore its own sum once reduced modulo 65535, which Python does in C. The one thing the modulus
can't tell is 0x0000 from 0xffff; a one's complement sum is zero only if every word is.
"""

ODD = 1


def ones_sum(data: bytes) -> int:
    """One's complement sum, 0..0xffff, of the 16-bit big-endian words of data; an odd last byte is padded with zero."""
    value = int.from_bytes(data, "big") << (8 * (len(data) & ODD))
    return value % 0xFFFF or (0xFFFF if value else 0)


def checksum(data: bytes) -> int:
    """The checksum, 0..0xffff, to be put where data now holds zero (RFC 1071)."""
    return 0xFFFF - ones_sum(data)


def verifies(data: bytes) -> bool:
    """Whether data, its checksum field included, sums to 0xffff. All zeros does not: no sender makes that."""
    return ones_sum(data) == 0xFFFF


def update(old_checksum: int, old_word: int, new_word: int) -> int:
    """The checksum after one 16-bit word of the data changed: HC' = ~(~HC + ~m + m') (RFC 1624, equation 3)."""
    total = (0xFFFF - old_checksum) + (0xFFFF - old_word) + new_word
    total = (total & 0xFFFF) + (total >> 16)
    total = (total & 0xFFFF) + (total >> 16)
    return 0xFFFF - total
