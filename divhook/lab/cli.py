"""`divhook lab …`: the lab from the command line.

divhook lab up [--hosts N] [--plain]         divhook lab guest start NAME --host H --cell C --subnet S
divhook lab status | down                    divhook lab guest stop|console NAME
divhook lab virsh|exec|shell HOST …          divhook lab guest exec NAME CMD…
divhook lab capture [--seconds N]
"""

import argparse
import os
import shlex
import signal
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import FrameType

from divhook.lab.errors import LabError
from divhook.lab.lab import AGENT, PLAIN, Lab, default_directory

EXIT_FAILURE = 1


def say(message: str) -> None:
    """A line of progress, on standard error."""
    print(f"lab: {message}", file=sys.stderr, flush=True)


def _lab(options: argparse.Namespace) -> Lab:
    return Lab(options.dir, progress=say).require_up()


def _up(options: argparse.Namespace) -> int:
    lab = Lab(
        options.dir, hosts=options.hosts, mode=PLAIN if options.plain else AGENT, cells=options.cells, progress=say
    )
    try:
        lab.up()
    except BaseException:
        if not options.keep:
            lab.down()
        raise
    return _status(options)


def _down(options: argparse.Namespace) -> int:
    Lab(options.dir, progress=say).down()
    return 0


def _status(options: argparse.Namespace) -> int:
    lab = Lab(options.dir)
    if not lab.is_up:
        print(f"no lab is up below {lab.directory}")
        return EXIT_FAILURE
    print(f"lab below {lab.directory}, {'plain bridges' if lab.mode == PLAIN else 'divhook'}")
    for host in lab.hosts.values():
        agent = host.agent_pid
        line = f"  host {host.name}  {host.plan.address}  {host.plan.mac}"
        if lab.mode == AGENT:
            line += f"  agent {'pid ' + str(agent) if agent else 'NOT RUNNING: ' + str(host.agent_log)}"
        print(line)
        for guest in host.guests():
            print(f"    guest {guest}")
    return 0


def _virsh(options: argparse.Namespace) -> int:
    return _lab(options).host(options.host).interactive("virsh", "-c", "qemu:///system", *options.arguments)


def _exec(options: argparse.Namespace) -> int:
    return _lab(options).host(options.host).interactive(*options.command)


def _shell(options: argparse.Namespace) -> int:
    return _lab(options).host(options.host).interactive("bash", "--norc", "-i")


def _guest_start(options: argparse.Namespace) -> int:
    guest = _lab(options).start_guest(
        options.name, options.host, options.cell, options.subnet, options.address, options.mac
    )
    address = guest.wait_address() if not options.no_wait else "not waited for"
    print(f"{guest.name} runs on host {guest.host.name}; virsh start took {guest.start_s:.2f} s; address {address}")
    return 0


def _guest_stop(options: argparse.Namespace) -> int:
    _lab(options).guest(options.name).stop()
    return 0


def _guest_console(options: argparse.Namespace) -> int:
    guest = _lab(options).guest(options.name)
    return guest.host.interactive("virsh", "-c", "qemu:///system", "console", options.name)


def _guest_exec(options: argparse.Namespace) -> int:
    command = options.command[0] if len(options.command) == 1 else shlex.join(options.command)
    result = _lab(options).guest(options.name).run(command, options.timeout)
    sys.stdout.write(result.output)
    return result.code


def _capture(options: argparse.Namespace) -> int:
    lab = _lab(options)
    capture = lab.capture(f"capture-{os.getpid()}", snap_length=options.snap_length)
    say(f"capturing on the switch{f' for {options.seconds:g} s' if options.seconds else ' until Ctrl-C'}")
    try:
        time.sleep(options.seconds or 10**9)
    except KeyboardInterrupt:
        pass
    finally:
        path = capture.stop()
    print(path)
    return 0


def parser() -> argparse.ArgumentParser:
    """The command line of `divhook lab`."""
    top = argparse.ArgumentParser(prog="divhook lab", description="several libvirt hosts with divhook on one machine")
    fill(top)
    return top


def fill(top: argparse.ArgumentParser) -> None:
    """Add the lab's options and subcommands; each sets `run`, a function of the parsed options."""
    top.add_argument(
        "--dir", type=Path, default=default_directory(), help="the lab's directory ($DIVHOOK_LAB_DIR; %(default)s)"
    )
    commands = top.add_subparsers(required=True, metavar="COMMAND")

    def add(
        to: "argparse._SubParsersAction[argparse.ArgumentParser]",
        name: str,
        run: Callable[[argparse.Namespace], int],
        text: str,
    ) -> argparse.ArgumentParser:
        command = to.add_parser(name, help=text, description=text)
        command.set_defaults(run=run)
        return command

    up = add(commands, "up", _up, "bring a lab up")
    up.add_argument("--hosts", type=int, default=2, help="how many hosts (%(default)s)")
    up.add_argument("--cells", type=Path, help="directory of cell files (policies/cells)")
    up.add_argument("--plain", action="store_true", help="plain bridges without divhook, to compare with")
    up.add_argument("--keep", action="store_true", help="leave what is there when it fails, to look at")
    add(commands, "status", _status, "hosts, agents and guests")
    add(commands, "down", _down, "remove the lab, also a half-made one")
    virsh = add(commands, "virsh", _virsh, "run virsh on a host")
    virsh.add_argument("host", metavar="HOST")
    virsh.add_argument("arguments", nargs=argparse.REMAINDER, metavar="ARGS")
    run = add(commands, "exec", _exec, "run a command on a host")
    run.add_argument("host", metavar="HOST")
    run.add_argument("command", nargs=argparse.REMAINDER, metavar="CMD")
    shell = add(commands, "shell", _shell, "a shell on a host")
    shell.add_argument("host", metavar="HOST")
    capture = add(commands, "capture", _capture, "capture what passes over the switch into a pcap file")
    capture.add_argument("--seconds", type=float, help="how long (until Ctrl-C)")
    capture.add_argument("--snap-length", type=int, default=65535, help="bytes of each frame (%(default)s)")

    guest = commands.add_parser("guest", help="start, stop and enter guests")
    actions = guest.add_subparsers(required=True, metavar="ACTION")
    start = add(actions, "start", _guest_start, "start a guest and wait for its address")
    start.add_argument("name")
    start.add_argument("--host", required=True)
    start.add_argument("--cell", required=True)
    start.add_argument("--subnet", required=True)
    start.add_argument("--address")
    start.add_argument("--mac")
    start.add_argument("--no-wait", action="store_true", help="do not wait for the address")
    add(actions, "stop", _guest_stop, "destroy and undefine a guest").add_argument("name")
    add(actions, "console", _guest_console, "the guest's console (leave with Ctrl-])").add_argument("name")
    execute = add(actions, "exec", _guest_exec, "run a shell command in a guest; its output and exit code")
    execute.add_argument("--timeout", type=float, default=60.0, help="seconds (%(default)s)")
    execute.add_argument("name")
    execute.add_argument("command", nargs=argparse.REMAINDER, metavar="CMD")


def run(options: argparse.Namespace) -> int:
    """Run what parser() or fill() parsed; errors go to standard error. Returns the exit code."""
    interrupt_on_sigterm()
    try:
        code = options.run(options)
    except LabError as error:
        say(str(error))
        return EXIT_FAILURE
    except KeyboardInterrupt:
        say("interrupted")
        return 130
    return int(code)


def interrupt_on_sigterm() -> None:
    """Let SIGTERM and SIGHUP clean up as Ctrl-C does."""

    def interrupt(_number: int, _frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    signal.signal(signal.SIGTERM, interrupt)
    signal.signal(signal.SIGHUP, interrupt)


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point; `arguments` without the words `divhook lab`."""
    return run(parser().parse_args(arguments))


if __name__ == "__main__":
    sys.exit(main())
