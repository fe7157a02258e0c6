"""Replay of corpus/: inputs that broke a parser once, or sit on an edge, with the outcome that README.md states."""

import re
from pathlib import Path

import pytest
from wire_strategies import CODECS

from divhook.core.wire.errors import WireError

CORPUS = Path(__file__).parent / "corpus"
PARSERS = {codec.name: codec.parse for codec in CODECS}
FILES = sorted(path for name in PARSERS for path in (CORPUS / name).glob("*"))


def described() -> dict[tuple[str, str], str]:
    """(codec, input) → outcome, of each table row in README.md."""
    found = {}
    codec = ""
    for line in (CORPUS / "README.md").read_text().splitlines():
        if heading := re.fullmatch(r"## (\w+)", line):
            codec = heading[1]
        elif row := re.fullmatch(r"\| ([a-z0-9-]+) \| (?!outcome)(\w+) \| .+ \|", line):
            found[codec, row[1]] = row[2]
    return found


DESCRIBED = described()


def test_every_input_is_described_and_every_description_has_its_input() -> None:
    assert {(path.parent.name, path.stem) for path in FILES} == {key for key in DESCRIBED if key[0] in PARSERS}
    assert {path.suffix for path in FILES} == {".bin"}


@pytest.mark.parametrize("path", FILES, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_input_ends_as_described(path: Path) -> None:
    try:
        PARSERS[path.parent.name](path.read_bytes())
    except WireError as error:
        outcome = error.reason.name.lower()
    else:
        outcome = "accepted"
    assert outcome == DESCRIBED[path.parent.name, path.stem]
