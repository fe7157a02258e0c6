"""docs/protocol.md says what the code does: its drawings and tables are made from the code.

.venv/bin/python -m tests.unit.test_protocol_doc        writes them anew
"""

import ast
import inspect
import re
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from types import ModuleType

import pytest

from divhook.core import auth, census, keys
from divhook.core.discovery.claims import CLAIM_TRANSITIONS
from divhook.core.discovery.limits import Limits
from divhook.core.discovery.source_check import ROWS
from divhook.core.moves import asking, reads, source, unread
from divhook.core.moves import messages as messages_of_moves
from divhook.core.moves.states import move_states_markdown
from divhook.core.neighbor import transition_table_markdown
from divhook.core.reasons import reason_text
from divhook.core.wire import discovery
from divhook.core.wire.discovery import ANSWERS, CLAIMS_ON_SPA, FRAME_FIELDS, TRAILER_FIELDS, MessageType

DOCUMENT = Path(__file__).parents[2] / "docs" / "protocol.md"


CLAIMLESS = {MessageType.CHALLENGE, MessageType.CHALLENGE_REPLY, MessageType.CENSUS_REPLY}
SECOND_OF_A_PAIR = {
    "negative_max_s": "the longest such silence",
    "misses_per_s_host": "and of all ports together",
    "source_probes_per_s": "and of all pairs together",
    "challenges_per_s": "and of all hosts together",
    "answers_per_s": "and of all such answers together",
    "announce_interval_s": "between two of them",
}
"""Limits without a comment of their own: it stands in the line before."""


def comments(source: str) -> dict[str, str]:
    """{name: comment} of lines like `NAME = 1  # comment`."""
    return dict(re.findall(r"^\s+(\w+)(?:: \w+)? = [^#\n]+?  # (.+)$", source, re.MULTILINE))


def frame() -> str:
    return f"```\n{discovery.render_diagrams()}\n```"


def frame_fields() -> str:
    lines = ["| offset | bytes | field | meaning |", "| --- | --- | --- | --- |"]
    offset = 0
    for field in (*FRAME_FIELDS, *TRAILER_FIELDS):
        lines.append(f"| {offset} | {field.size} | {field.name} | {field.meaning} |")
        offset += field.size
    lines.append(
        f"| {offset} | 0 to {discovery.MAX_PAYLOAD} | payload | census bitmaps; the floor of a CHALLENGE_REPLY |"
    )
    lines.append(f"| end | {discovery.TAG_LENGTH} | tag | over everything before it, but for a VLAN tag |")
    return "\n".join(lines)


def messages() -> str:
    said = comments(inspect.getsource(MessageType))
    lines = ["| code | type | ARP | its claim is on | nonce | meaning |", "| --- | --- | --- | --- | --- | --- |"]
    for kind in MessageType:
        arp, nonce = ("reply", "echo") if kind in ANSWERS else ("request", "fresh")
        claim = "" if kind in CLAIMLESS else "spa" if kind in CLAIMS_ON_SPA else "the address spoken of"
        lines.append(f"| {kind.value} | {kind.name} | {arp} | {claim} | {nonce} | {said[kind.name]} |")
    return "\n".join(lines)


def claim_states() -> str:
    return f"```mermaid\n{CLAIM_TRANSITIONS.mermaid()}```\n\n{CLAIM_TRANSITIONS.markdown()}".rstrip()


def neighbour_states() -> str:
    return transition_table_markdown().rstrip()


def source_check() -> str:
    lines = ["| case (a = source address, p = sending pmac) | action | reason if dropped |", "| --- | --- | --- |"]
    for row in ROWS:
        reason = f"`{reason_text(row.reason)}`" if row.reason is not None else ""
        lines.append(f"| {row.case} | {row.action.name.lower()} | {reason} |")
    return "\n".join(lines)


def constants(module: ModuleType, only: set[str]) -> list[tuple[str, object, str]]:
    """(name, value, docstring) of a module's public bounds; one docstring may stand for several in a row."""
    found: list[tuple[str, object, str]] = []
    waiting: list[str] = []
    for node in ast.parse(inspect.getsource(module)).body:
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
            waiting.append(node.targets[0].id)
        elif isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
            text = " ".join(str(node.value.value).split())
            found += [(name, getattr(module, name), text) for name in waiting]
            waiting = []
        else:
            waiting = []
    return [
        (name, value, text)
        for name, value, text in found
        if not only or name in only
        if isinstance(value, int | float) and not isinstance(value, bool) and not name.startswith("_")
    ]


def limits() -> str:
    said = SECOND_OF_A_PAIR | comments(inspect.getsource(Limits))
    lines = ["| name | value | meaning |", "| --- | --- | --- |"]
    lines += [f"| `Limits.{f.name}` | {f.default:,} | {said.get(f.name, '')} |" for f in fields(Limits)]
    for module, only in (
        (auth, set[str]()),
        (census, set[str]()),
        (discovery, {"MAX_PAYLOAD", "BLOCK_HOSTS"}),
        (messages_of_moves, set[str]()),
        (source, set[str]()),
        (reads, set[str]()),
        (unread, set[str]()),
        (asking, set[str]()),
        (keys, {"MAX_KEYS", "MAX_KEY_FILE"}),
    ):
        place = module.__name__.removeprefix("divhook.core.")
        lines += [f"| `{place}.{name}` | {value:,} | {text} |" for name, value, text in constants(module, only)]
    return "\n".join(lines)


GENERATED: dict[str, Callable[[], str]] = {
    "messages": messages,
    "frame": frame,
    "frame fields": frame_fields,
    "claim states": claim_states,
    "neighbour states": neighbour_states,
    "source check": source_check,
    "limits": limits,
    "move states": lambda: move_states_markdown().rstrip(),
}


def block(name: str) -> str:
    return f"<!-- from the code: {name} -->\n{GENERATED[name]()}\n<!-- end -->"


def rewritten(text: str) -> str:
    """The document with every generated block made anew."""
    return re.sub(
        r"<!-- from the code: ([\w ]+) -->\n.*?<!-- end -->", lambda match: block(match[1]), text, flags=re.DOTALL
    )


@pytest.mark.parametrize("name", GENERATED)
def test_document_holds_what_the_code_says(name: str):
    assert block(name) in DOCUMENT.read_text(), "run: .venv/bin/python -m tests.unit.test_protocol_doc"


def test_document_holds_nothing_generated_that_the_code_does_not_say():
    text = DOCUMENT.read_text()
    assert rewritten(text) == text
    assert text.count("<!-- from the code:") == len(GENERATED)


def test_every_limit_is_explained():
    rows = [line.split(" | ") for line in limits().splitlines()[2:]]
    assert [row[0] for row in rows if row[2].strip(" |") == ""] == []


if __name__ == "__main__":
    DOCUMENT.write_text(rewritten(DOCUMENT.read_text()))
