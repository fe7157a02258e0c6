"""`divhook schema`: the JSON schema of the configuration files."""

import argparse

from divhook.config.schema import SCHEMAS, model_schema_text
from divhook.policy.schema import POLICY_SCHEMAS

DESCRIPTION = """\
Print the JSON schema of divhook.yaml (host), of a file in cells/ (cell) or policies/ (policy), or of expectations
for `divhook policy test` (policy-test), so that an editor completes it."""
EXAMPLES = """\
examples:
  divhook schema cell > cell.json
and as the first line of a cell file, for editors with yaml-language-server:
  # yaml-language-server: $schema=cell.json"""


ALL = SCHEMAS | POLICY_SCHEMAS


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of the command."""
    parser.add_argument("file", nargs="?", choices=sorted(ALL), default="host", help="which file (host)")


def run(args: argparse.Namespace) -> int:
    """Print the schema."""
    print(model_schema_text(*ALL[args.file]), end="")
    return 0
