"""The cluster key: a text file with a few keys, of which one is sent with and all are accepted.

    # anything after '#' is a comment
    divhook-keys 1                      format version, first line that is not a comment
    key 1 accept 6f0c…64 hex digits     key id 0..255, role, 256-bit secret
    key 2 send   91ab…

Rotation, three steps, each on every host before the next: add the new key as `accept`; make it `send` and the old
one `accept`; remove the old one. At no step do two hosts fail to understand each other.

What signs frames is never the secret itself but a key derived from it per purpose and cluster (HKDF, RFC 5869), so
that no message of one purpose or cluster can pass for another's.
"""

import hmac
import re
from dataclasses import dataclass, field

SECRET_LENGTH = 32
MAX_KEYS = 8
"""Keys in one file. Rotation needs two."""
MAX_KEY_FILE = 16_384
"""Bytes."""
PURPOSE_DISCOVERY = "divhook discovery v1"
PURPOSE_HANDOVER = "divhook hand-over v1"
PURPOSE_FINGERPRINT = "divhook fingerprint v1"
DEFAULT_CLUSTER = "divhook"
FORMAT_LINE = "divhook-keys 1"

_HEX_SECRET = re.compile(rf"[0-9a-fA-F]{{{2 * SECRET_LENGTH}}}")


class KeyFileError(ValueError):
    """The key file cannot be used. The text says where (source:line) and what to do, and never holds a secret."""


def hkdf_sha256(secret: bytes, salt: bytes, info: bytes, length: int = 32) -> bytes:
    """HKDF with SHA-256 (RFC 5869), extract then expand. length: bytes, at most 255 * 32."""
    pseudo_random_key = hmac.digest(salt or bytes(32), secret, "sha256")
    output = block = b""
    for counter in range(1, (length + 31) // 32 + 1):
        block = hmac.digest(pseudo_random_key, block + info + bytes([counter]), "sha256")
        output += block
    return output[:length]


@dataclass(frozen=True, slots=True)
class Key:
    """One secret of the cluster, by the id that frames name it with."""

    key_id: int
    secret: bytes = field(repr=False)
    send: bool = False

    def derive(self, purpose: str, cluster: str) -> bytes:
        """32 bytes for one purpose in one cluster."""
        return hkdf_sha256(self.secret, cluster.encode(), purpose.encode())

    def fingerprint(self) -> str:
        """8 hex digits that tell two keys apart and give nothing away, for people to compare between hosts."""
        return self.derive(PURPOSE_FINGERPRINT, "").hex()[:8]


@dataclass(frozen=True, slots=True)
class KeyRing:
    """1 to MAX_KEYS keys with distinct ids, exactly one of them to send with. Raises ValueError otherwise."""

    keys: tuple[Key, ...]

    def __post_init__(self) -> None:
        if not 1 <= len(self.keys) <= MAX_KEYS:
            raise ValueError(f"{len(self.keys)} keys: a key ring has 1 to {MAX_KEYS}")
        if len({key.key_id for key in self.keys}) != len(self.keys):
            raise ValueError("two keys have the same id")
        if sum(key.send for key in self.keys) != 1:
            raise ValueError("exactly one key must have the role 'send'")
        for key in self.keys:
            if not 0 <= key.key_id <= 255 or len(key.secret) != SECRET_LENGTH:
                raise ValueError(f"key {key.key_id}: ids are 0 to 255, secrets {SECRET_LENGTH} bytes")

    @property
    def sending(self) -> Key:
        """The key that own frames are sealed with."""
        return next(key for key in self.keys if key.send)


def new_key_text(random32: bytes, created: str, key_id: int = 1) -> str:
    """A key file with one fresh key. random32: 32 bytes from the system's generator; created: for people."""
    if len(random32) != SECRET_LENGTH:
        raise ValueError(f"a secret takes {SECRET_LENGTH} random bytes, not {len(random32)}")
    note = created.replace("\n", " ").replace("\r", " ")
    return (
        f"# divhook cluster key, made {note}. The same file on every host, mode 0600.\n"
        "# Who reads it can claim any address of any guest. To rotate: add a key with the role 'accept' on every\n"
        "# host; then give it the role 'send' and the old one 'accept', on every host; then remove the old one.\n"
        f"{FORMAT_LINE}\n"
        f"key {key_id} send {random32.hex()}\n"
    )


def parse_key_text(text: str, source: str = "cluster.key") -> KeyRing:
    """The ring that a key file describes. source: file name for errors. Raises KeyFileError."""
    if len(text) > MAX_KEY_FILE:
        raise KeyFileError(f"{source}: longer than {MAX_KEY_FILE} bytes; this is not a divhook key file")
    keys: dict[int, tuple[Key, int]] = {}
    sender_line = 0
    versioned = False
    for number, raw in enumerate(text.splitlines(), 1):
        words = raw.split("#", 1)[0].split()
        if not words:
            continue
        where = f"{source}:{number}"
        if not versioned:
            if words != FORMAT_LINE.split():
                raise KeyFileError(
                    f"{where}: the first line must be '{FORMAT_LINE}'; make a key file with 'divhook key new'"
                )
            versioned = True
            continue
        key = _parse_key_line(words, where)
        if key.key_id in keys:
            raise KeyFileError(f"{where}: key id {key.key_id} is taken by line {keys[key.key_id][1]}; give it another")
        if any(hmac.compare_digest(other.secret, key.secret) for other, _ in keys.values()):
            raise KeyFileError(f"{where}: key {key.key_id} has the secret of another key; a new key needs a new secret")
        if key.send and sender_line:
            raise KeyFileError(f"{where}: line {sender_line} has the role 'send' already; make one of them 'accept'")
        sender_line = number if key.send else sender_line
        keys[key.key_id] = (key, number)
        if len(keys) > MAX_KEYS:
            raise KeyFileError(f"{where}: more than {MAX_KEYS} keys; remove those that no host sends with any more")
    if not versioned:
        raise KeyFileError(f"{source}: the file is empty; make one with 'divhook key new'")
    if not sender_line:
        raise KeyFileError(f"{source}: no key has the role 'send'; give it to the key that this host is to send with")
    return KeyRing(tuple(key for key, _ in keys.values()))


def _parse_key_line(words: list[str], where: str) -> Key:
    if words[0] != "key" or len(words) != 4:
        raise KeyFileError(f"{where}: expected 'key ID send|accept SECRET'")
    _, key_id, role, secret = words
    if not (key_id.isascii() and key_id.isdigit() and len(key_id) <= 3 and int(key_id) <= 255):
        raise KeyFileError(f"{where}: a key id is a number from 0 to 255")
    if role not in ("send", "accept"):
        raise KeyFileError(f"{where}: the role is 'send' or 'accept'")
    if not _HEX_SECRET.fullmatch(secret):
        raise KeyFileError(
            f"{where}: a secret is {2 * SECRET_LENGTH} hex digits; this one has {len(secret)} characters"
        )
    if not any(bytes.fromhex(secret)):
        raise KeyFileError(f"{where}: the secret is all zero; make one with 'divhook key new'")
    return Key(int(key_id), bytes.fromhex(secret), send=role == "send")
