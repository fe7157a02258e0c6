"""Labels of guests, and selectors over them, in the way of Kubernetes.

    labels     key=value, for example tier=web: 1 to 63 of letters, digits and -_./ in a key, up to 63 of -_. in a value
    selector   requirements joined by commas, all must hold:
                 tier=web   tier!=web   env in (prod, stage)   env notin (test)   canary   !canary

`!=` and `notin` also hold for a guest that has no such label. A key never has a colon: those are divhook's own.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from divhook.config.values import BadValueError, shown, text_of

MAX_LABELS = 16
"""Labels of one guest."""
MAX_REQUIREMENTS = 16
"""Requirements of one selector."""
KEY_PATTERN = r"[A-Za-z0-9](?:[A-Za-z0-9._/-]{0,61}[A-Za-z0-9])?"
VALUE_PATTERN = r"(?:[A-Za-z0-9](?:[A-Za-z0-9._-]{0,61}[A-Za-z0-9])?)?"

_REQUIREMENT = re.compile(
    rf"\s*(?:(?P<no>!)\s*(?P<absent>{KEY_PATTERN})"
    rf"|(?P<key>{KEY_PATTERN})\s*(?:(?P<op>==|=|!=)\s*(?P<value>{VALUE_PATTERN})"
    rf"|\s(?P<set>in|notin)\s*\((?P<values>[^()]*)\))?)\s*(?P<end>,|$)"
)


@dataclass(frozen=True, slots=True)
class Requirement:
    """One condition on one label. values: sorted; empty for `exists` and `absent`."""

    key: str
    kind: Literal["in", "notin", "exists", "absent"]
    values: tuple[str, ...] = ()

    def holds(self, labels: Mapping[str, str]) -> bool:
        """Whether a guest's labels meet it."""
        value = labels.get(self.key)
        match self.kind:
            case "in":
                return value in self.values
            case "notin":
                return value not in self.values
            case "exists":
                return value is not None
            case "absent":
                return value is None

    def __str__(self) -> str:
        match self.kind:
            case "exists":
                return self.key
            case "absent":
                return f"!{self.key}"
        if len(self.values) == 1:
            return f"{self.key}{'=' if self.kind == 'in' else '!='}{self.values[0]}"
        return f"{self.key} {self.kind} ({', '.join(self.values)})"


@dataclass(frozen=True, slots=True)
class Selector:
    """Requirements that must all hold, in order of key."""

    requirements: tuple[Requirement, ...]

    def matches(self, labels: Mapping[str, str]) -> bool:
        """Whether a guest's labels meet every requirement."""
        return all(r.holds(labels) for r in self.requirements)

    def contradiction(self) -> str:
        """The key whose requirements no guest can meet; empty where there is none."""
        allowed: dict[str, set[str]] = {}
        for r in self.requirements:
            if r.kind == "in":
                allowed[r.key] = allowed.get(r.key, set(r.values)) & set(r.values)
        for r in self.requirements:
            if r.kind == "notin" and r.key in allowed:
                allowed[r.key] -= set(r.values)
            if r.kind == "absent" and (r.key in allowed or Requirement(r.key, "exists") in self.requirements):
                return r.key
        return next((key for key, values in allowed.items() if not values), "")

    def __str__(self) -> str:
        return ", ".join(str(r) for r in self.requirements)


def parse_selector(value: object) -> Selector:
    """A selector's text. Raises BadValueError."""
    if isinstance(value, Mapping):
        better = ", ".join(f"{key}={item}" for key, item in value.items() if isinstance(item, str))
        raise BadValueError("a selector must be text, not a mapping", f"write labels: {better or 'tier=web'}")
    text = text_of(value, "a selector")
    found: list[Requirement] = []
    at = 0
    while at < len(text) or not found or text[at - 1 : at] == ",":
        match = _REQUIREMENT.match(text, at)
        if match is None or len(found) == MAX_REQUIREMENTS:
            what = "is too long" if match else f"is no selector: it can't be read from {shown(text[at:])} on"
            hint = (
                f"at most {MAX_REQUIREMENTS} requirements" if match else "as in: tier=web, env in (prod, stage), !old"
            )
            raise BadValueError(f"{shown(text)} {what}", hint)
        found.append(_requirement(match, text))
        at = match.end()
    return Selector(tuple(sorted(set(found), key=lambda r: (r.key, r.kind, r.values))))


def _requirement(match: re.Match[str], text: str) -> Requirement:
    if match["no"]:
        return Requirement(match["absent"], "absent")
    if match["op"]:
        return Requirement(match["key"], "notin" if match["op"] == "!=" else "in", (match["value"],))
    if not match["set"]:
        return Requirement(match["key"], "exists")
    values = [v.strip() for v in match["values"].split(",")]
    for value in values:
        if not value or not re.fullmatch(VALUE_PATTERN, value):
            raise BadValueError(f"{shown(text)}: {shown(value)} is no label value", "letters, digits and -_. (63)")
    return Requirement(match["key"], "in" if match["set"] == "in" else "notin", tuple(sorted(set(values))))


def parse_labels(value: object) -> tuple[tuple[str, str], ...]:
    """A guest's labels: a mapping, or `key=value` joined by commas. Sorted by key. Raises BadValueError."""
    if isinstance(value, str):
        pairs = [tuple(p.strip() for p in item.partition("=")[::2]) for item in value.split(",") if item.strip()]
    elif isinstance(value, Mapping):
        pairs = [(key, text_of(item, f"label {key}")) for key, item in value.items()]
    else:
        raise BadValueError(f"labels must be a mapping, not {shown(value)}", "as in {tier: web, env: prod}")
    for key, item in pairs:
        if not re.fullmatch(KEY_PATTERN, key):
            raise BadValueError(f"{shown(key)} is no label key", "letters, digits and -_./ (63 at most), as in tier")
        if not re.fullmatch(VALUE_PATTERN, item):
            raise BadValueError(f"{shown(item)} is no value of label {key}", "letters, digits and -_. (63 at most)")
    if len(pairs) > MAX_LABELS:
        raise BadValueError(f"{len(pairs)} labels: at most {MAX_LABELS}", "labels are for kinds of guests")
    if len({key for key, _ in pairs}) < len(pairs):
        raise BadValueError(f"{shown(value)}: a label is here twice", "each key has one value")
    return tuple(sorted((key, item) for key, item in pairs))
