"""`divhook COMMAND …`: finds the command's module, and turns its errors into one line and an exit code.

Each command is a module with `add_arguments(parser)` and `run(args) -> exit code`; its docstring's first line is its
help. Only the module of the command that is asked for is imported: `divhook check` must not need libvirt.
Exit codes: 0 done, 1 refused or failed, 2 wrong usage, 130 interrupted.
"""

import argparse
import importlib
import os
import sys
from collections.abc import Sequence

import divhook
from divhook.cli.errors import CommandError, UsageError

COMMANDS = {
    "check": "check configuration files, offline",
    "policy": "who may talk to whom: check, test and explain offline, put in force",
    "assign": "give a guest's NIC its cell and subnet",
    "key": "make or show the cluster key",
    "schema": "print the JSON schema of the configuration files",
    "status": "show how this host's agent is",
    "endpoints": "list the guest NICs of this host",
    "moves": "list guests that move from or to this host",
    "neighbors": "list which host holds which address",
    "leases": "list the DHCP leases of this host's guests",
    "groups": "list the multicast groups that this host's guests are in",
    "flows": "list the flows of guests whose cell has a policy",
    "drops": "list, or follow, what was dropped, where and why",
    "metrics": "print this host's figures for Prometheus",
    "reload": "make the agent read its files again",
    "lab": "several hosts on this one machine, to try things",
    "install": "put hook, libvirt network and systemd unit on this host",
    "agent": "run this host's agent (systemd does this)",
}
"""name: what `divhook --help` says. The module is divhook.cli.<name>."""


def build_parser(selected: str | None) -> argparse.ArgumentParser:
    """The parser; only the selected command has its arguments, and its module is imported."""
    parser = argparse.ArgumentParser(
        prog="divhook",
        description="Multi-tenant virtual networks for libvirt/KVM hosts.",
        epilog="`divhook COMMAND --help` explains a command and gives examples.",
    )
    parser.add_argument("--version", action="version", version=f"divhook {divhook.__version__}")
    commands = parser.add_subparsers(dest="divhook_command", metavar="COMMAND", required=True)
    for name, text in COMMANDS.items():
        if name != selected:
            commands.add_parser(name, help=text)
            continue
        module = importlib.import_module(f"divhook.cli.{name}")
        command = commands.add_parser(
            name,
            help=text,
            description=module.DESCRIPTION,
            epilog=module.EXAMPLES,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        module.add_arguments(command)
        command.set_defaults(divhook_run=module.run)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point of the `divhook` command. Returns the exit code."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    selected = next((a for a in arguments if not a.startswith("-")), None)
    try:
        args = build_parser(selected if selected in COMMANDS else None).parse_args(arguments)
        code: int = args.divhook_run(args)
        sys.stdout.flush()
    except CommandError as error:
        print(f"divhook: {error}", file=sys.stderr)
        return 2 if isinstance(error, UsageError) else 1
    except BrokenPipeError:  # `divhook drops | head`; the interpreter would complain again when it closes stdout
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        return 1
    except KeyboardInterrupt:
        return 130
    return code


if __name__ == "__main__":
    sys.exit(main())
