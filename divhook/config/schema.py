"""JSON schemas of the files, generated from the models: docs/schema/*.json and `divhook schema`."""

import json

from pydantic import BaseModel

from divhook.config.model import CellConfig, HostConfig

SCHEMAS: dict[str, tuple[type[BaseModel], str]] = {
    "host": (HostConfig, "divhook.yaml: one host of a divhook cluster"),
    "cell": (CellConfig, "cells/*.yaml: one cell (tenant) of a divhook cluster"),
}
"""name: (model, title)."""


def schema_text(name: str) -> str:
    """The schema of `host` or `cell` as JSON text with a final newline."""
    return model_schema_text(*SCHEMAS[name])


def model_schema_text(model: type[BaseModel], title: str) -> str:
    """The schema of a model as JSON text with a final newline."""
    schema = {"$schema": "https://json-schema.org/draft/2020-12/schema"} | model.model_json_schema() | {"title": title}
    return json.dumps(schema, indent=2, ensure_ascii=False, sort_keys=True) + "\n"
