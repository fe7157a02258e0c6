"""The key file: what is accepted, and that each mistake is named with its line and without the secret."""

import pytest

from divhook.core.keys import (
    MAX_KEY_FILE,
    MAX_KEYS,
    PURPOSE_DISCOVERY,
    Key,
    KeyFileError,
    KeyRing,
    hkdf_sha256,
    new_key_text,
    parse_key_text,
)

ONE = bytes(range(1, 33))
TWO = bytes(range(33, 65))


def test_hkdf_agrees_with_rfc_5869_test_case_1():
    output = hkdf_sha256(b"\x0b" * 22, bytes(range(13)), bytes(range(0xF0, 0xFA)), 42)
    assert output.hex() == ("3cb25f25faacd57a90434f64d0362f2a2d2d0a90cf1a5a4c5db02d56ecc4c5bf34007208d5b887185865")


def test_hkdf_agrees_with_rfc_5869_test_case_3_without_salt_and_info():
    output = hkdf_sha256(b"\x0b" * 22, b"", b"", 42)
    assert output.hex() == ("8da4e775a563c18f715f802a063c5a31b8a11f5c5ee1879ec3454e5f3c738d2d9d201395faa4b61a96c8")


def test_new_key_file_is_read_back():
    text = new_key_text(ONE, "2026-01-02T03:04:05Z")
    assert parse_key_text(text) == KeyRing((Key(1, ONE, send=True),))
    assert "2026-01-02T03:04:05Z" in text


def test_a_newline_in_the_note_can_not_add_a_key():
    assert len(parse_key_text(new_key_text(ONE, f"now\nkey 9 accept {TWO.hex()}")).keys) == 1


def test_new_key_file_takes_32_random_bytes_and_no_fewer():
    with pytest.raises(ValueError, match="32 random bytes, not 31"):
        new_key_text(ONE[:31], "now")


def test_ring_in_rotation_has_an_old_and_a_new_key():
    ring = parse_key_text(
        f"# comment\n\ndivhook-keys 1  # version\n  key 1 accept {ONE.hex()} # old\nkey 2 send {TWO.hex().upper()}\n"
    )
    assert ring == KeyRing((Key(1, ONE), Key(2, TWO, send=True)))
    assert ring.sending == Key(2, TWO, send=True)


def test_keys_differ_by_purpose_and_by_cluster():
    key = Key(1, ONE)
    derived = {
        key.derive(PURPOSE_DISCOVERY, "a"),
        key.derive(PURPOSE_DISCOVERY, "b"),
        key.derive("divhook hand-over v1", "a"),
        ONE,
    }
    assert len(derived) == 4
    assert {len(d) for d in derived} == {32}


def test_secret_is_not_in_the_repr_and_fingerprints_tell_keys_apart():
    assert ONE.hex() not in repr(KeyRing((Key(1, ONE, send=True),)))
    assert repr(ONE) not in repr(Key(1, ONE))
    assert Key(1, ONE).fingerprint() != Key(1, TWO).fingerprint()
    assert Key(1, ONE).fingerprint() == Key(2, ONE, send=True).fingerprint()
    assert Key(1, ONE).fingerprint() not in ONE.hex()


A, B = ONE.hex(), TWO.hex()
MISTAKES = [
    ("", "k: the file is empty; make one with 'divhook key new'"),
    (f"key 1 send {A}", "k:1: the first line must be 'divhook-keys 1'; make a key file with 'divhook key new'"),
    ("divhook-keys 2", "k:1: the first line must be 'divhook-keys 1'; make a key file with 'divhook key new'"),
    (
        f"divhook-keys 1\nkey 1 accept {A}",
        "k: no key has the role 'send'; give it to the key that this host is to send with",
    ),
    (f"divhook-keys 1\nkey 1 {A}", "k:2: expected 'key ID send|accept SECRET'"),
    (f"divhook-keys 1\nkeys 1 send {A}", "k:2: expected 'key ID send|accept SECRET'"),
    (f"divhook-keys 1\n\nkey 256 send {A}", "k:3: a key id is a number from 0 to 255"),
    (f"divhook-keys 1\nkey {'9' * 5000} send {A}", "k:2: a key id is a number from 0 to 255"),
    (f"divhook-keys 1\nkey ² send {A}", "k:2: a key id is a number from 0 to 255"),
    (f"divhook-keys 1\nkey 1 both {A}", "k:2: the role is 'send' or 'accept'"),
    (f"divhook-keys 1\nkey 1 send {A[:-1]}", "k:2: a secret is 64 hex digits; this one has 63 characters"),
    (f"divhook-keys 1\nkey 1 send {A[:-1]}g", "k:2: a secret is 64 hex digits; this one has 64 characters"),
    ("divhook-keys 1\nkey 1 send " + "0" * 64, "k:2: the secret is all zero; make one with 'divhook key new'"),
    (f"divhook-keys 1\nkey 1 send {A}\nkey 1 accept {B}", "k:3: key id 1 is taken by line 2; give it another"),
    (
        f"divhook-keys 1\nkey 1 send {A}\nkey 2 accept {A}",
        "k:3: key 2 has the secret of another key; a new key needs a new secret",
    ),
    (
        f"divhook-keys 1\nkey 1 send {A}\nkey 2 send {B}",
        "k:3: line 2 has the role 'send' already; make one of them 'accept'",
    ),
    ("divhook-keys 1\n" + "#" * MAX_KEY_FILE, f"k: longer than {MAX_KEY_FILE} bytes; this is not a divhook key file"),
]


@pytest.mark.parametrize(("text", "error"), MISTAKES, ids=[error.split(";")[0] for _, error in MISTAKES])
def test_mistake_is_named_with_its_line_and_a_way_out_and_no_secret(text: str, error: str):
    with pytest.raises(KeyFileError) as raised:
        parse_key_text(text, "k")
    assert str(raised.value) == error
    assert A[:16] not in str(raised.value)


def test_more_keys_than_a_ring_holds_are_refused():
    lines = [f"key {n} accept {bytes([n] * 32).hex()}" for n in range(1, MAX_KEYS + 1)]
    full = "\n".join(["divhook-keys 1", f"key 0 send {A}", *lines[:-1]])
    assert len(parse_key_text(full).keys) == MAX_KEYS
    with pytest.raises(KeyFileError, match=f"k:{MAX_KEYS + 2}: more than {MAX_KEYS} keys"):
        parse_key_text(f"{full}\n{lines[-1]}", "k")


@pytest.mark.parametrize(
    "keys",
    [
        (),
        (Key(1, ONE),),
        (Key(1, ONE, send=True), Key(1, TWO)),
        (Key(1, ONE, send=True), Key(2, TWO, send=True)),
        (Key(256, ONE, send=True),),
        (Key(1, ONE[:16], send=True),),
    ],
)
def test_ring_that_makes_no_sense_is_refused(keys: tuple[Key, ...]):
    with pytest.raises(ValueError):
        KeyRing(keys)
