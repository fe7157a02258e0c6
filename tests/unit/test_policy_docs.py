"""docs/policy.md, the schemas, the examples and the code say the same."""

import re
from pathlib import Path

import pytest
from pydantic import BaseModel

from divhook.cli.main import main
from divhook.config.schema import model_schema_text
from divhook.core.verdict import Relation
from divhook.policy.cell import BUILT_IN
from divhook.policy.files import MAX_POLICY_FILES
from divhook.policy.model import (
    MAX_GROUPS,
    MAX_RULES,
    MAX_SERVICES,
    EgressModel,
    IngressModel,
    PolicyFile,
    RelationDefaults,
)
from divhook.policy.peers import MAX_PEERS
from divhook.policy.schema import POLICY_SCHEMAS
from divhook.policy.table import MAX_ENTRIES, MAX_PREFIXES

ROOT = Path(__file__).parents[2]
DOCUMENT = (ROOT / "docs" / "policy.md").read_text()


def rows(section: str) -> dict[str, list[str]]:
    """First column (without backquotes): other columns, of the tables of a section."""
    body = re.split(rf"^##+ {re.escape(section)}\n", DOCUMENT, flags=re.MULTILINE)[1]
    body = re.split(r"^##", body, flags=re.MULTILINE)[0]
    lines = [line for line in body.splitlines() if line.startswith("| ") and not line.startswith("| ---")]
    cells = [[c.strip() for c in line.strip("|").split(" | ")] for line in lines[1:]]
    return {row[0].strip("`"): row[1:] for row in cells}


def keys(model: type[BaseModel]) -> set[str]:
    return {field.alias or name for name, field in model.model_fields.items()}


@pytest.mark.parametrize(
    ("section", "models"),
    [("Files", [PolicyFile]), ("defaults", [RelationDefaults]), ("rules", [IngressModel, EgressModel])],
)
def test_every_key_is_documented_and_no_other(section: str, models: list[type[BaseModel]]) -> None:
    for model in models:
        assert set(rows(section)) == keys(model)


def test_documented_defaults_are_the_codes() -> None:
    documented = {key: columns[0].strip("`") for key, columns in rows("defaults").items()}
    built_in = {key: "allow" if BUILT_IN[Relation[key.upper()]].allow else "deny" for key in documented}
    assert documented == built_in
    assert not BUILT_IN[Relation.OTHER].allow


def test_documented_bounds_are_the_codes() -> None:
    assert {key: value[0] for key, value in rows("What a packet costs").items() if value[0][0].isdigit()} == {
        "rules of a cell": f"{MAX_RULES:,}",
        "groups of a cell": f"{MAX_GROUPS:,}",
        "peers, services of a rule": f"{MAX_PEERS:,}, {MAX_SERVICES:,}",
        "policy files of a host; size of one": f"{MAX_POLICY_FILES:,}; 1 MiB",
        "compiled entries of a cell on a host": f"{MAX_ENTRIES:,}",
        "external prefixes of a cell": f"{MAX_PREFIXES:,}",
    }


@pytest.mark.parametrize("name", POLICY_SCHEMAS)
def test_the_published_schema_is_the_models(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    text = model_schema_text(*POLICY_SCHEMAS[name])
    assert (ROOT / "docs" / "schema" / f"{name}.json").read_text() == text, (
        f"run: divhook schema {name} > docs/schema/{name}.json"
    )
    assert main(["schema", name]) == 0
    assert capsys.readouterr().out == text


def test_the_examples_are_good_and_do_what_their_owner_expects(capsys: pytest.CaptureFixture[str]) -> None:
    etc = str(ROOT / "policies")
    assert main(["policy", "check", "--strict", etc]) == 0
    assert "good: 7 rules and 2 groups of 2 cells" in capsys.readouterr().out
    assert main(["policy", "test", "--config", etc, f"{etc}/tests/shop.yaml"]) == 0
    assert capsys.readouterr().out == "7 expectations hold\n"


def test_the_documents_own_example_is_good(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    example = re.search(r"```yaml\n(# /etc/divhook/policies/shop.yaml\n.*?)```", DOCUMENT, re.DOTALL)
    assert example is not None
    path = tmp_path / "shop.yaml"
    path.write_text(example[1])
    assert main(["policy", "check", "--strict", str(path)]) == 0
    assert "good: 3 rules and 1 group of 1 cell" in capsys.readouterr().out


def test_a_new_host_has_a_place_for_policies(tmp_path: Path) -> None:
    assert main(["install", "--root", str(tmp_path)]) == 0
    assert (tmp_path / "etc/divhook/policies").is_dir()


@pytest.mark.parametrize("path", ["policies/shop.yaml", "policies/lab.yaml"])
def test_examples_name_their_schema_for_editors(path: str) -> None:
    file = ROOT / "policies" / path
    schema = file.read_text().splitlines()[0].removeprefix("# yaml-language-server: $schema=")
    assert (file.parent / schema).resolve() == ROOT / "docs" / "schema" / "policy.json"
