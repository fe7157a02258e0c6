"""Who an endpoint is to a policy: its identity, 64 bits that a claim carries from host to host (docs/protocol.md §5).

An identity has the cell, the guest's labels and the groups that its cell exports to others. Everything that a rule can
see of an endpoint is in it, so that equal identities are treated alike. What is no label becomes a reserved one:

    divhook:subnet = web        the subnet
    divhook:guest  = db-*       each guest pattern of the cell's policy that the guest's name matches

The pattern and not the name: a thousand guests that only `web-*` speaks of share one identity. The owner computes it
with its own cell's files. Hosts of the same cell find groups, labels and patterns in it; hosts of other cells match the
cell, the subnet and the exported groups only.

The number is the first 64 bits of SHA-256 over the encoding, big-endian:

     0        1             1+n
    +--------+-----------+--------+-----------+-------+-------+--------+-------+---  …
    | 1      | cell text | labels | key text  | value | …     | groups | name  | …
    +--------+-----------+--------+-----------+-------+-------+--------+-------+---  …
     version    a text is its length (1 byte) and UTF-8; labels and groups are counts (1 byte)
"""

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from divhook.core.addressing import Address

if TYPE_CHECKING:
    from divhook.policy.cell import CellPolicy

SUBNET_LABEL = "divhook:subnet"
GUEST_LABEL = "divhook:guest"
MAX_IDENTITY_BYTES = 1024
"""An encoded identity: it fits the payload of one discovery frame."""
_VERSION = 1


class IdentityError(ValueError):
    """No identity can be made, or the bytes are none. The text is meant for a person."""


@dataclass(frozen=True, slots=True)
class Workload:
    """A guest NIC as policies see it. labels: sorted, unique keys (labels.parse_labels makes them)."""

    cell: str
    subnet: str
    guest: str = ""
    labels: tuple[tuple[str, str], ...] = ()
    address: Address | None = None


@dataclass(frozen=True, slots=True)
class Identity:
    """What policies know of an endpoint. labels: sorted (key, value), reserved ones too; exports: sorted names."""

    cell: str
    labels: tuple[tuple[str, str], ...] = ()
    exports: tuple[str, ...] = ()
    number: int = field(init=False, compare=False)
    pairs: frozenset[tuple[str, str]] = field(init=False, compare=False, repr=False)

    def __post_init__(self) -> None:
        digest = hashlib.sha256(self.encode()).digest()
        object.__setattr__(self, "number", int.from_bytes(digest[:8], "big"))
        object.__setattr__(self, "pairs", frozenset(self.labels))

    @property
    def subnet(self) -> str:
        """Name of the subnet; empty where the identity has none."""
        return next((value for key, value in self.labels if key == SUBNET_LABEL), "")

    def encode(self) -> bytes:
        """The bytes that the number is the hash of. Raises IdentityError where they are too many."""
        parts = [bytes([_VERSION]), _text(self.cell), bytes([min(len(self.labels), 255)])]
        parts += [_text(t) for pair in self.labels for t in pair]
        parts += [bytes([min(len(self.exports), 255)]), *(_text(name) for name in self.exports)]
        encoded = b"".join(parts)
        if len(encoded) > MAX_IDENTITY_BYTES or max(len(self.labels), len(self.exports)) > 255:
            raise IdentityError(
                f"labels, matched guest patterns and exported groups need {len(encoded)} bytes, more than "
                f"{MAX_IDENTITY_BYTES} (fewer or shorter labels, or groups by label in place of guest patterns)"
            )
        return encoded

    def __str__(self) -> str:
        labels = ", ".join(f"{key.removeprefix('divhook:')}={value}" for key, value in self.labels)
        exports = f"; exported: {', '.join(self.exports)}" if self.exports else ""
        return f"{self.cell} ({labels}{exports})"


def _text(text: str) -> bytes:
    raw = text.encode()
    if len(raw) > 255:
        raise IdentityError(f"{text[:40]!r}… is longer than 255 bytes")
    return bytes([len(raw)]) + raw


def decode_identity_untrusted(data: bytes) -> Identity:
    """An identity from another host's bytes: only the canonical encoding is taken. Raises IdentityError."""
    try:
        if len(data) > MAX_IDENTITY_BYTES or data[0] != _VERSION:
            raise IdentityError("not an identity of version 1")
        texts, counts, at = [], [], 1

        def take(count: int) -> None:
            nonlocal at
            for _ in range(count):
                end = at + 1 + data[at]
                if end > len(data):
                    raise IdentityError("an identity that is cut off")
                texts.append(data[at + 1 : end].decode())
                at = end

        take(1)
        for each in (2, 1):
            counts.append(data[at])
            at += 1
            take(counts[-1] * each)
    except (IndexError, UnicodeDecodeError):
        raise IdentityError("an identity that is cut off or no text") from None
    if at != len(data):
        raise IdentityError("bytes after the identity")
    pairs = texts[1 : 1 + 2 * counts[0]]
    labels = tuple(zip(pairs[::2], pairs[1::2], strict=True))
    exports = tuple(texts[1 + 2 * counts[0] :])
    if sorted(set(labels)) != list(labels) or sorted(set(exports)) != list(exports):
        raise IdentityError("labels or groups that are not in order")
    return Identity(texts[0], labels, exports)


def identify(workload: Workload, policy: "CellPolicy") -> Identity:
    """The identity of a guest NIC by its own cell's policy. Raises IdentityError, whose text names the guest."""
    labels = [*workload.labels, (SUBNET_LABEL, workload.subnet)]
    labels += [(GUEST_LABEL, p) for p in policy.guest_patterns if guest_matches(p, workload.guest)]
    try:
        bare = Identity(workload.cell, tuple(sorted(labels)))
        return Identity(bare.cell, bare.labels, tuple(sorted(policy.exported_groups_of(bare))))
    except IdentityError as error:
        raise IdentityError(f"guest '{workload.guest}' in {workload.cell}/{workload.subnet}: {error}") from None


def guest_matches(pattern: str, name: str) -> bool:
    """Whether a guest's name matches a pattern of `*` (any text) and `?` (one character), case and all."""
    pieces, at = pattern.split("*"), 0
    if len(pieces) == 1:
        return len(name) == len(pattern) and _same(pattern, name)
    first, last = pieces[0], pieces[-1]
    if len(name) < len(first) + len(last) or not _same(first, name[: len(first)]):
        return False
    end = len(name) - len(last)
    if not _same(last, name[end:]):
        return False
    at = len(first)
    for piece in pieces[1:-1]:  # leftmost place of each: no backtracking, so no pattern is slow
        while at + len(piece) <= end and not _same(piece, name[at : at + len(piece)]):
            at += 1
        if at + len(piece) > end:
            return False
        at += len(piece)
    return True


def _same(pattern: str, text: str) -> bool:
    return all(p in ("?", t) for p, t in zip(pattern, text, strict=True))


def content_number(parts: Iterable[str], *, top: bool = False) -> int:
    """64 bits that stand for some texts, the same on every host, after every restart. top: the highest bit is set."""
    digest = hashlib.sha256()
    for part in parts:
        raw = part.encode()
        digest.update(len(raw).to_bytes(4, "big") + raw)
    number = int.from_bytes(digest.digest()[:8], "big")
    return number | 1 << 63 if top else number
