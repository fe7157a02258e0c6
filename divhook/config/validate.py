"""A document against a model: every mistake as a problem with its place and a hint, not only the first."""

from collections.abc import Mapping
from typing import Any, TypeVar, get_args

from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails

from divhook.config.problems import ConfigError, Problem, did_you_mean
from divhook.config.source import Document, Path
from divhook.config.values import shown

Model = TypeVar("Model", bound=BaseModel)


def validate(model: type[Model], document: Document) -> Model:
    """The document as a model. Raises ConfigError."""
    try:
        return model.model_validate(document.data)
    except ValidationError as error:
        raise ConfigError(p for e in error.errors(include_url=False) for p in _problems(model, document, e)) from None


def _problems(model: type[BaseModel], document: Document, error: ErrorDetails) -> list[Problem]:
    path: Path = tuple(part for part in error["loc"] if part != "[key]")
    ctx: Mapping[str, Any] = error.get("ctx", {})
    value = error["input"]
    if error["type"] == "divhook":
        where = document.at_key if error["loc"][-1:] == ("[key]",) else document.at
        return [Problem(where((*path, *below)), text, hint) for below, text, hint in ctx["faults"]]
    key = str(path[-1]) if path else ""
    in_list = len(path) > 1 and isinstance(path[-1], int)
    name = f"item {key} of {shown(str(path[-2]))}" if in_list else shown(key)  # on one line, whatever is in a key
    at = document.at(path)
    match error["type"]:
        case "extra_forbidden":
            parent = _model_at(model, path[:-1])
            hint = did_you_mean(key, _fields(parent) if parent else (), "possible here")
            return [Problem(document.at_key(path), f"unknown key {key!r}", hint)]
        case "missing":
            message = f"key {name} is missing"
            return [Problem(_container(document, path[:-1]), message, _purpose(model, path))]
        case "model_type" | "dict_type":
            what = "the file" if not path else name
            message, hint = f"{what} must be a mapping, not {shown(value)}", "indented lines of `key: value`"
        case "tuple_type":
            message = f"{name} must be a list, not {shown(value)}"
            short = isinstance(value, (str, int)) and str(value).isprintable()
            hint = f"write [{value}]" if short else "one line with `- ` per item, or [a, b]"
        case "int_type" | "int_from_float":
            message = f"{name} must be a whole number, not {shown(value)}"
            hint = "without the quotes" if isinstance(value, str) and value.strip().isdigit() else ""
        case "greater_than_equal":
            message, hint = f"{name} is {shown(value)}: it must be at least {ctx['ge']}", ""
        case "less_than_equal":
            message, hint = f"{name} is {shown(value)}: it must be at most {ctx['le']}", ""
        case "literal_error":
            choices = _choices(model, path)
            message = f"{name} can't be {shown(value)}"
            hint = did_you_mean(str(value), choices, "possible")
        case "too_long":
            message, hint = f"{name} has more than {ctx['max_length']} entries", ""
        case "too_short":
            message, hint = f"{name} must not be empty", _purpose(model, path)
        case _:
            message, hint = f"{name}: {error['msg']}", ""
    return [Problem(at, message, hint)]


def _container(document: Document, path: Path) -> Any:
    """Where a missing key is reported: at the key that holds the mapping, or at the list item."""
    return document.at_key(path) if path and isinstance(path[-1], str) else document.at(path)


def _fields(model: type[BaseModel]) -> dict[str, FieldInfo]:
    """Fields by the name that a file has: the alias where there is one (`from` is no name in Python)."""
    return {field.alias or name: field for name, field in model.model_fields.items()}


def _annotation(model: type[BaseModel], path: Path) -> Any:
    """Type that the model has at a path: fields of models, values of dicts, items of tuples."""
    here: Any = model
    for part in path:
        if isinstance(here, type) and issubclass(here, BaseModel):
            field = _fields(here).get(str(part))
            here = field.annotation if field else None
        else:
            here = next((a for a in reversed(get_args(here)) if a is not Ellipsis), None)
    return here


def _model_at(model: type[BaseModel], path: Path) -> type[BaseModel] | None:
    here = _annotation(model, path)
    return here if isinstance(here, type) and issubclass(here, BaseModel) else None


def _choices(model: type[BaseModel], path: Path) -> list[str]:
    """Words that a Literal allows, also where it stands beside None."""
    choices = [*get_args(_annotation(model, path))]
    return [str(c) for choice in choices for c in (get_args(choice) or (choice,)) if c is not type(None)]


def _purpose(model: type[BaseModel], path: Path) -> str:
    """First sentence of a key's documentation."""
    parent = _model_at(model, path[:-1])
    field = _fields(parent).get(str(path[-1])) if parent else None
    return (field.description or "").split("\n")[0].rstrip(".").split(". ")[0] if field else ""
