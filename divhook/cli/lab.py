"""`divhook lab`: several hosts on this one machine."""

import argparse
import importlib

DESCRIPTION = """\
Several divhook hosts on this one machine: each a set of namespaces with its own libvirtd and agent, and real guests."""
EXAMPLES = """\
examples:
  divhook lab up
  divhook lab guest start web-a --host a --cell shop --subnet web
  divhook lab virsh a list
  divhook lab down"""
_MODULE = "divhook.lab.cli"  # by name: the layers keep cli and lab apart


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of the command."""
    importlib.import_module(_MODULE).fill(parser)


def run(args: argparse.Namespace) -> int:
    """Run the lab's command; it reports its own errors."""
    code: int = importlib.import_module(_MODULE).run(args)
    return code
