"""YAML to data with positions: what is accepted, and the one error (with its place) for everything else."""

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from divhook.config.problems import ConfigError, Position
from divhook.config.source import MAX_FILE_BYTES, read_yaml


def problems(text: str | bytes) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        read_yaml("f", text.encode() if isinstance(text, str) else text)
    return [str(p) for p in caught.value.problems]


@pytest.mark.parametrize(
    ("text", "data"),
    [
        ("", {}),
        ("# only a comment\n", {}),
        ("a: no\nb: on\nc: y", {"a": "no", "b": "on", "c": "y"}),
        ("a: true\nb: False\nc: ~\nd:", {"a": True, "b": False, "c": None, "d": None}),
        ("a: 010\nb: 0x10\nc: 0o10\nd: -1", {"a": 10, "b": 16, "c": 8, "d": -1}),
        ("a: 52:54:00:11:22:33\nb: 1:30\nc: 2024-01-02", {"a": "52:54:00:11:22:33", "b": "1:30", "c": "2024-01-02"}),
        ("a: 1.5\nb: 10.1.2.3\nc: 1_000", {"a": 1.5, "b": "10.1.2.3", "c": "1_000"}),
        ("a: [1, {b: 2}]", {"a": (1, {"b": 2})}),
        ("66: a\ntrue: b", {"66": "a", "true": "b"}),
        ("a: !!str 5", {"a": "5"}),
        ("a: &x {b: 1, c: 2}\nd: {<<: *x, c: 3}", {"a": {"b": 1, "c": 2}, "d": {"b": 1, "c": 3}}),
        ("a: &x {k: 1}\nb: &y {k: 2, l: 3}\nc: {<<: [*x, *y]}", {
            "a": {"k": 1}, "b": {"k": 2, "l": 3}, "c": {"k": 1, "l": 3}
        }),
        ("\ufeffa: 1", {"a": 1}),
    ],
)  # fmt: skip
def test_plain_values_are_read_as_an_editor_reads_them(text: str, data: object) -> None:
    assert read_yaml("f", text.encode()).data == data


def test_every_key_and_value_has_its_place() -> None:
    document = read_yaml("f", b"a:\n  - x: 1\n    yy:   2\n")
    assert document.at_key(("a", 0, "yy")) == Position("f", 3, 5)
    assert document.at(("a", 0, "yy")) == Position("f", 3, 11)
    assert document.at(("a", 0)) == Position("f", 2, 5)
    assert document.at(("a", 0, "nothing", "below")) == Position("f", 2, 5)


def test_a_merged_value_stands_where_it_was_written() -> None:
    document = read_yaml("f", b"a: &x\n  k: 1\nb:\n  <<: *x\n")
    assert document.at(("b", "k")) == Position("f", 2, 6)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("a: 1\nb: 2\na: 3", "f:3:1: key 'a' is here twice (first on line 1: keep one)"),
        ("66: 1\n'66': 3", "f:2:1: key '66' is here twice (first on line 1: keep one)"),
        ("a:\n\tb: 1", "f:2:1: a tab where YAML wants spaces (indent with spaces, never with tabs)"),
        ("a: b: c", "f:1:5: not valid YAML: mapping values are not allowed here (a ': ' inside a value needs "
         "quotes around the value; or the indentation is off)"),
        ("a: *x", "f:1:4: not valid YAML: found undefined alias 'x' (write the &anchor before the *alias; a value that "
         "starts with * needs quotes)"),
        ("a: 1\n b: 2", "f:2:3: not valid YAML: mapping values are not allowed here (a ': ' inside a value needs "
         "quotes around the value; or the indentation is off)"),
        ("a: @x", "f:1:4: not valid YAML: found character '@' that cannot start any token (quote the value)"),
        ("a: 1\n---\nb: 2", "f:2:1: a second YAML document starts here (one file holds one document: remove '---')"),
        ("a: !!python/object/apply:os.system [ls]",
         "f:1:4: tag !!python/object/apply:os.system is not allowed here (remove the tag, or quote the value)"),
        ("a: !secret x", "f:1:4: tag !secret is not allowed here (remove the tag, or quote the value)"),
        ("a: !!int x", "f:1:4: tag !!int is not allowed here (remove the tag, or quote the value)"),
        ("[a]: 1", "f:1:1: a key must be a plain word (quote a key that starts with [ or {)"),
        ("a: {<<: 3}", "f:1:9: '<<' merges mappings only (write <<: *anchor of a mapping)"),
        (b"a: 1\nb: \xff", "f:2:4: the file is not UTF-8 text (save it as UTF-8)"),
        ("a: 1\nb: \x07", "f:2:4: character U+0007 is not allowed here (remove it)"),
        ("a: 1\nb: x\u2028y", "f:2:5: character U+2028 is not allowed here (remove it)"),
        ("\x00", "f:1:1: character U+0000 is not allowed here (remove it)"),
        (b"#" * (MAX_FILE_BYTES + 1), "f: the file is larger than 1048576 bytes"),
        ("a: &x [*x]", "f:1:4: nested deeper than 32 levels (does an alias contain itself?)"),
    ],
)  # fmt: skip
def test_a_mistake_is_reported_with_its_place(text: str | bytes, problem: str) -> None:
    assert problems(text) == [problem]


def test_aliases_that_multiply_are_refused_quickly() -> None:
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 10)]
    assert "more than 200000 values" in problems("\n".join(lines))[0]


def test_merge_keys_that_multiply_are_refused_quickly() -> None:
    lines = ["a0: &a0 {k0: 0}"]
    lines += [f"a{n}: &a{n} {{<<: [{', '.join([f'*a{n - 1}'] * 10)}]}}" for n in range(1, 10)]
    assert problems("\n".join(lines))


def test_deep_nesting_is_refused() -> None:
    assert "nested deeper" in problems("[" * 5000)[0]


@given(st.one_of(st.binary(max_size=200), st.text("abc:-[]{}&*!<>|'\"#\t\n 01%@`~,?", max_size=60).map(str.encode)))
def test_any_bytes_give_a_document_or_the_one_error(content: bytes) -> None:
    with contextlib.suppress(ConfigError):
        read_yaml("f", content)
