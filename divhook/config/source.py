"""YAML text to plain data, with the line and column of every key and value.

Plain values are read by the YAML 1.2 core schema, as editors do, and not by YAML 1.1: `no` and `on` are text (a country
code stays one), `52:54:00:11:22:33` is text and not a base-60 number, `010` is ten. Mappings become dicts with text
keys, sequences become tuples. Anchors, aliases and merge keys (`<<`) work. Tags beyond the standard scalars and
collections are refused: a configuration file never names code.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass

import yaml
from yaml._yaml import CParser
from yaml.composer import Composer
from yaml.parser import Parser
from yaml.reader import Reader, ReaderError
from yaml.resolver import BaseResolver
from yaml.scanner import Scanner

from divhook.config.problems import ConfigError, Position, Problem

MAX_FILE_BYTES = 1 << 20
"""A configuration file larger than this is a mistake."""
MAX_NODES = 200_000
"""Values after expansion of aliases: a few lines of nested aliases could otherwise fill the memory."""
MAX_DEPTH = 32
"""Nesting, which also ends an alias that contains itself."""

SHALLOW = 64
"""Nesting, and columns that a line is indented by, up to which text is given to libyaml."""

Path = tuple[str | int, ...]
"""Where a value is: keys and list indices from the root."""

_BRACKETS = re.compile(r"[\[\]{}]")
_LONG_INDENT = re.compile(rf"^[ \t?:-]{{{SHALLOW},}}", re.MULTILINE)
_TAG = "tag:yaml.org,2002:"


class _Resolver(BaseResolver):
    """YAML 1.2 core schema (https://yaml.org/spec/1.2.2/#103-core-schema), plus the merge key."""


for _name, _pattern, _first in (
    ("null", r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    ("bool", r"true|True|TRUE|false|False|FALSE", list("tTfF")),
    ("int", r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+", list("-+0123456789")),
    ("float", r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?", list("-+.0123456789")),
    ("merge", r"<<", ["<"]),
):
    _Resolver.add_implicit_resolver(_TAG + _name, re.compile(rf"^(?:{_pattern})$"), _first)


class _SlowComposer(Reader, Scanner, Parser, Composer, _Resolver):
    """Text to node tree; no constructor, so no tag can create an object. Its errors are those that people see."""

    def __init__(self, text: str) -> None:
        Reader.__init__(self, text)
        Scanner.__init__(self)
        Parser.__init__(self)
        Composer.__init__(self)
        _Resolver.__init__(self)


class _FastComposer(CParser, _Resolver):
    """The same by libyaml, ten times as fast. It nests on the C stack: only for text that cannot be deep."""

    def __init__(self, text: str) -> None:
        CParser.__init__(self, text)
        _Resolver.__init__(self)


def _node_of(text: str) -> yaml.Node | None:
    """The root of the tree. Raises ReaderError, MarkedYAMLError, RecursionError."""
    if not _needs_care(text):
        try:
            node: yaml.Node | None = _FastComposer(text).get_single_node()
            return node
        except (yaml.YAMLError, ValueError):
            pass  # the other one says it better
    return _SlowComposer(text).get_single_node()


def _needs_care(text: str) -> bool:
    """Whether the two could differ: tabs, `?` and further documents, which they read in their own ways; nesting.

    Deeper than SHALLOW is what brackets say, quoted ones too, or what a line begins with.
    """
    body = text.removeprefix("---\n")
    if not body.strip() or "---" in body or "\t" in text or "?" in text:
        return True
    depth = deepest = 0
    for bracket in _BRACKETS.findall(text):
        if bracket in "[{":
            depth += 1
            deepest = max(deepest, depth)
        else:
            depth -= 1
    return deepest > SHALLOW or _LONG_INDENT.search(text) is not None


@dataclass(frozen=True, slots=True)
class Document:
    """One file's data, and where each part of it stands."""

    file: str
    data: object
    keys: Mapping[Path, Position]
    values: Mapping[Path, Position]

    def at(self, path: Path) -> Position:
        """Position of a value, or of the nearest thing around it that exists."""
        for end in range(len(path), -1, -1):
            if path[:end] in self.values:
                return self.values[path[:end]]
        return Position(self.file, 1, 1)

    def at_key(self, path: Path) -> Position:
        """Position of the key that leads to a value."""
        return self.keys.get(path) or self.at(path)


def read_yaml(file: str, content: bytes) -> Document:
    """Parse one file. An empty one is an empty mapping. Raises ConfigError with every problem found."""
    if len(content) > MAX_FILE_BYTES:
        raise ConfigError([Problem(Position(file), f"the file is larger than {MAX_FILE_BYTES} bytes")])
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        column = error.start - (content.rfind(b"\n", 0, error.start) + 1) + 1
        where = Position(file, line, column)
        raise ConfigError([Problem(where, "the file is not UTF-8 text", "save it as UTF-8")]) from None
    if odd := re.search("[\x85\u2028\u2029]", text):  # line breaks for the parser, for no editor: lines would not agree
        raise ConfigError([_odd_character(file, text, odd.start(), ord(odd.group()))])
    try:
        node = _node_of(text)
    except ReaderError as error:
        raise ConfigError([_odd_character(file, text, error.position, error.character)]) from None
    except yaml.MarkedYAMLError as error:
        raise ConfigError([_syntax_problem(file, text, error)]) from None
    except RecursionError:
        raise ConfigError([Problem(Position(file, 1, 1), f"nested deeper than {MAX_DEPTH} levels")]) from None
    builder = _Builder(file)
    data = builder.build(node, ()) if node is not None else {}
    if builder.problems:
        raise ConfigError(builder.problems)
    return Document(file, {} if data is None else data, builder.keys, builder.values)


def _odd_character(file: str, text: str, index: int, code: int) -> Problem:
    line, column = text.count("\n", 0, index) + 1, index - text.rfind("\n", 0, index)
    return Problem(Position(file, line, column), f"character U+{code:04X} is not allowed here", "remove it")


def _syntax_problem(file: str, text: str, error: yaml.MarkedYAMLError) -> Problem:
    mark = error.problem_mark or error.context_mark
    where = Position(file, mark.line + 1, mark.column + 1) if mark else Position(file)
    message = error.problem or error.context or "not valid YAML"
    line = text.split("\n")[mark.line] if mark and mark.line <= text.count("\n") else ""
    if "\t" in line[: mark.column + 1 if mark else 0] or "'\\t'" in message:
        return Problem(where, "a tab where YAML wants spaces", "indent with spaces, never with tabs")
    if "single document" in (error.context or ""):
        return Problem(where, "a second YAML document starts here", "one file holds one document: remove '---'")
    hint = ""
    if "mapping values are not allowed" in message:
        hint = "a ': ' inside a value needs quotes around the value; or the indentation is off"
    elif "undefined alias" in message:
        hint = "write the &anchor before the *alias; a value that starts with * needs quotes"
    elif "expected <block end>" in message or "could not find expected ':'" in message:
        hint = "look at the indentation and for a missing ':' here or on the line above"
    elif "cannot start any token" in message:
        hint = "quote the value"
    return Problem(where, f"not valid YAML: {message}", hint)


class _Builder:
    """Walks a node tree once; collects data, positions and problems."""

    def __init__(self, file: str) -> None:
        self.file = file
        self.keys: dict[Path, Position] = {}
        self.values: dict[Path, Position] = {}
        self.problems: list[Problem] = []
        self._nodes = 0

    def build(self, node: yaml.Node, path: Path) -> object:
        where = self._position(node)
        self.values[path] = where
        self._nodes += 1
        if len(path) > MAX_DEPTH:
            self._problem(where, f"nested deeper than {MAX_DEPTH} levels", "does an alias contain itself?")
            return None
        if self._nodes > MAX_NODES:
            if self._nodes == MAX_NODES + 1:
                self._problem(where, f"more than {MAX_NODES} values", "aliases multiply what they repeat")
            return None
        if isinstance(node, yaml.ScalarNode):
            return self._scalar(node)
        if isinstance(node, yaml.SequenceNode) and node.tag == _TAG + "seq":
            return tuple(self.build(item, (*path, index)) for index, item in enumerate(node.value))
        if isinstance(node, yaml.MappingNode) and node.tag == _TAG + "map":
            return self._mapping(node, path)
        self._refuse_tag(node)
        return None

    def _mapping(self, node: yaml.MappingNode, path: Path) -> dict[str, object]:
        data: dict[str, object] = {}
        for key_node, value_node in self._merged(node, 0):
            key = key_node.value
            self.keys[(*path, key)] = self._position(key_node)
            data[key] = self.build(value_node, (*path, key))
        return data

    def _merged(self, node: yaml.MappingNode, depth: int) -> list[tuple[yaml.ScalarNode, yaml.Node]]:
        """Key and value nodes with merge keys resolved: a mapping's own keys win, then the first that is merged."""
        own: dict[str, tuple[yaml.ScalarNode, yaml.Node]] = {}
        inherited: list[yaml.Node] = []
        self._nodes += len(node.value)
        for key_node, value_node in node.value:
            where = self._position(key_node)
            if not isinstance(key_node, yaml.ScalarNode):
                self._problem(where, "a key must be a plain word", "quote a key that starts with [ or {")
            elif key_node.tag == _TAG + "merge":
                inherited += value_node.value if isinstance(value_node, yaml.SequenceNode) else [value_node]
            elif key_node.value in own:
                first = self._position(own[key_node.value][0])
                self._problem(where, f"key {key_node.value!r} is here twice", f"first on line {first.line}: keep one")
            else:
                own[key_node.value] = (key_node, value_node)
        for source in inherited:
            if not isinstance(source, yaml.MappingNode) or depth > MAX_DEPTH or self._nodes > MAX_NODES:
                self._problem(self._position(source), "'<<' merges mappings only", "write <<: *anchor of a mapping")
                continue
            for key_node, value_node in self._merged(source, depth + 1):
                own.setdefault(key_node.value, (key_node, value_node))
        return list(own.values())

    def _scalar(self, node: yaml.ScalarNode) -> object:
        text: str = node.value
        match node.tag.removeprefix(_TAG):
            case "str" | "merge":
                return text
            case "null":
                return None
            case "bool" if text.lower() in ("true", "false"):
                return text.lower() == "true"
            case "int" if re.fullmatch(r"[-+]?[0-9]{1,40}", text):
                return int(text)
            case "int" if re.fullmatch(r"0o[0-7]{1,40}|0x[0-9a-fA-F]{1,40}", text):
                return int(text, 0)
            case "float" if re.fullmatch(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?", text):
                return float(text)
        self._refuse_tag(node)
        return None

    def _refuse_tag(self, node: yaml.Node) -> None:
        tag = node.tag.replace(_TAG, "!!")
        self._problem(self._position(node), f"tag {tag} is not allowed here", "remove the tag, or quote the value")

    def _position(self, node: yaml.Node) -> Position:
        return Position(self.file, node.start_mark.line + 1, node.start_mark.column + 1)

    def _problem(self, where: Position, message: str, hint: str) -> None:
        self.problems.append(Problem(where, message, hint))
