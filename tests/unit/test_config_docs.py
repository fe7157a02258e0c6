"""Documentation, schemas, examples and the model say the same."""

import re
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel
from pydantic_core import PydanticUndefined

from divhook.cli.main import main
from divhook.config.dhcp_options import KNOWN
from divhook.config.domain import _ATTRIBUTES
from divhook.config.external import ExternalConfig, ExternalRouteConfig, NextHopConfig, OnLinkConfig
from divhook.config.load import load
from divhook.config.model import (
    AddressesConfig,
    CellConfig,
    DiscoveryConfig,
    EndpointConfig,
    HostConfig,
    LimitsConfig,
    RouteConfig,
    SubnetSettings,
)
from divhook.config.schema import SCHEMAS, schema_text
from divhook.core.addressing import SubnetId

ROOT = Path(__file__).parents[2]
DOCUMENT = (ROOT / "docs" / "configuration.md").read_text()
SECTIONS: dict[str, type[BaseModel]] = {
    "divhook.yaml": HostConfig,
    "addresses": AddressesConfig,
    "discovery": DiscoveryConfig,
    "limits": LimitsConfig,
    "external": ExternalConfig,
    "external: on_link": OnLinkConfig,
    "external: routes": ExternalRouteConfig,
    "external: via": NextHopConfig,
    "cells/*.yaml": CellConfig,
    "subnets": SubnetSettings,
    "routes": RouteConfig,
    "endpoints": EndpointConfig,
}


def rows(section: str) -> dict[str, list[str]]:
    """First column (in backquotes): other columns, of the table of a section."""
    body = re.split(rf"^##+ {re.escape(section)}\n", DOCUMENT, flags=re.MULTILINE)[1]
    body = re.split(r"^##", body, flags=re.MULTILINE)[0]
    cells = [[c.strip() for c in line.strip("|").split(" | ")] for line in body.splitlines() if line.startswith("| `")]
    return {row[0].strip("`"): row[1:] for row in cells}


def default_of(model: type[BaseModel], key: str) -> Any:
    field = model.model_fields[key]
    extra = field.json_schema_extra
    if isinstance(extra, dict) and "default" in extra:
        return extra["default"]
    return field.get_default(call_default_factory=True, validated_data={})


@pytest.mark.parametrize("section", SECTIONS)
def test_every_key_is_documented_and_no_other(section: str) -> None:
    assert list(rows(section)) == list(SECTIONS[section].model_fields)


@pytest.mark.parametrize("section", SECTIONS)
def test_documented_defaults_are_the_models(section: str) -> None:
    for key, (documented, *_) in rows(section).items():
        default = default_of(SECTIONS[section], key)
        if documented == "needed":
            assert default is PydanticUndefined, key
        elif documented.startswith("`"):
            shown = {True: "on", False: "off"}.get(default, default) if isinstance(default, bool) else default
            assert documented == f"`{shown}`", key
        elif documented == "below":
            assert isinstance(default, BaseModel), key
        else:
            assert default in (None, (), {}), key


@pytest.mark.parametrize("section", SECTIONS)
def test_every_key_says_what_it_is_in_the_schema(section: str) -> None:
    assert all(field.description for field in SECTIONS[section].model_fields.values())


def test_documented_dhcp_options_are_those_known() -> None:
    forms = {"int32": "number, -2147483648 to 2147483647", "uint8": "number, 0 to 255",
             "uint32": "number, 0 to 4294967295", "flag": "`true` or `false`"}  # fmt: skip
    assert rows("options") == {name: [str(code), forms.get(form, form)] for name, (code, form) in KNOWN.items()}


def test_documented_metadata_attributes_are_those_known() -> None:
    assert tuple(rows("A guest's place")) == _ATTRIBUTES


@pytest.mark.parametrize("name", SCHEMAS)
def test_the_published_schema_is_the_models(name: str) -> None:
    assert (ROOT / "docs" / "schema" / f"{name}.json").read_text() == schema_text(name), (
        f"run: divhook schema {name} > docs/schema/{name}.json"
    )


def test_the_examples_are_good_and_hold_the_demo(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", str(ROOT / "policies")]) == 0
    assert capsys.readouterr().out.endswith("2 cells, 4 subnets, 2 endpoints in 10.0.0.0/8 as 8+8+8 bits\n")
    config = load(ROOT / "policies")
    assert config.find_subnet("shop", "web").id == SubnetId(1, 1)
    assert config.find_subnet("shop", "db").id == SubnetId(1, 2)
    assert config.find_subnet("lab", "web").id == SubnetId(2, 1)


def test_the_example_host_file_shows_every_key_with_its_default() -> None:
    host = load(ROOT / "policies").host
    assert host == HostConfig()
    assert host.model_fields_set == set(HostConfig.model_fields) - {"uplink"}
    for part in (host.addresses, host.limits, host.discovery, host.external):
        assert part.model_fields_set == set(type(part).model_fields)


@pytest.mark.parametrize("path", ["divhook.yaml", "cells/shop.yaml", "cells/lab.yaml"])
def test_examples_name_their_schema_for_editors(path: str) -> None:
    file = ROOT / "policies" / path
    first = file.read_text().splitlines()[0]
    schema = first.removeprefix("# yaml-language-server: $schema=")
    assert schema != first
    assert (file.parent / schema).resolve().parent == ROOT / "docs" / "schema"
    assert (file.parent / schema).is_file()
