"""`divhook schema`: the JSON schema of the configuration files."""

import argparse

from divhook.config.schema import SCHEMAS, schema_text

DESCRIPTION = """\
Print the JSON schema of divhook.yaml (host) or of a file in cells/ (cell), so that an editor completes it."""
EXAMPLES = """\
examples:
  divhook schema cell > cell.json
and as the first line of a cell file, for editors with yaml-language-server:
  # yaml-language-server: $schema=cell.json"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of the command."""
    parser.add_argument("file", nargs="?", choices=sorted(SCHEMAS), default="host", help="which file (host)")


def run(args: argparse.Namespace) -> int:
    """Print the schema."""
    print(schema_text(args.file), end="")
    return 0
