"""The two YAML parsers of config/source.py: where the fast one takes a text, both find the same tree, marks and all."""

from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from divhook.config import source
from divhook.config.problems import ConfigError

ROOT = Path(__file__).parent.parent.parent
TEXTS = [path.read_text() for path in sorted([*ROOT.glob("policies/**/*.yaml"), *ROOT.glob("bench/cells/*.yaml")])]
PARTS = (
    "a;b: ;- ;{;};[;];, ;: ;:;\n;\n  ;\n    ;';\";#; # ;&x ;*x;<<: ;!!str ;|\n;>-\n;"
    "? ;10.1.1.1;52:54:00:00:00:01;~;\\;%;@;---;é;\t"
)
BITS = st.sampled_from(PARTS.split(";"))


def shape(node: yaml.Node | None, depth: int = 0) -> object:
    """Kinds, tags, values and positions, but of what is empty: one says before the next token, one behind the last.

    An alias may contain itself.
    """
    if node is None or depth > 8:
        return None
    mark = (node.start_mark.line, node.start_mark.column)
    if isinstance(node, yaml.ScalarNode):
        return node.tag, node.value, mark if node.value else None
    if isinstance(node, yaml.SequenceNode):
        return node.tag, mark, [shape(each, depth + 1) for each in node.value]
    assert isinstance(node, yaml.MappingNode)
    return node.tag, mark, [(shape(key, depth + 1), shape(value, depth + 1)) for key, value in node.value]


def both(text: str) -> None:
    if source._needs_care(text):
        return
    try:
        fast = source._FastComposer(text).get_single_node()
    except (yaml.YAMLError, ValueError):
        return  # then the other one decides
    assert shape(fast) == shape(source._SlowComposer(text).get_single_node()), text


@pytest.mark.parametrize("text", TEXTS)
def test_both_read_the_examples_alike(text: str) -> None:
    both(text)


@given(st.lists(BITS, max_size=25).map("".join))
def test_both_read_anything_alike(text: str) -> None:
    both(text)


@given(st.data())
def test_both_read_changed_examples_alike(data: st.DataObject) -> None:
    text = data.draw(st.sampled_from(TEXTS))
    at = data.draw(st.integers(0, len(text)))
    end = data.draw(st.integers(at, min(len(text), at + 3)))
    both(text[:at] + data.draw(BITS | st.just("")) + text[end:])


@pytest.mark.parametrize("text", ["[" * 100_000, "- " * 100_000, "{a: " * 100_000, "? " * 100_000])
def test_text_that_nests_without_end_is_refused_and_ends_no_agent(text: str) -> None:
    with pytest.raises(ConfigError):
        source.read_yaml("cells/shop.yaml", text.encode())
