"""JSON schemas of policy files and of their tests: docs/schema/*.json and `divhook schema`."""

from pydantic import BaseModel

from divhook.policy.expectations import ExpectationsFile
from divhook.policy.model import PolicyFile

POLICY_SCHEMAS: dict[str, tuple[type[BaseModel], str]] = {
    "policy": (PolicyFile, "policies/CELL.yaml, policies/CELL/*.yaml: who may talk to whom in a cell"),
    "policy-test": (ExpectationsFile, "what a cell's owner expects of policies: divhook policy test"),
}
"""name: (model, title)."""
