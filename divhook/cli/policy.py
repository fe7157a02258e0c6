"""`divhook policy`: check, test and explain policies, offline; compare, and have the agent apply, changed files."""

import argparse
import dataclasses
import json
from ipaddress import IPv4Address
from pathlib import Path
from typing import Any

from divhook.cli.client import add_socket_argument, ask
from divhook.cli.errors import CommandError, UsageError
from divhook.cli.flows import end_text
from divhook.cli.listing import cell, table
from divhook.config.model import DEFAULT_DIRECTORY
from divhook.config.problems import ConfigError, Problem
from divhook.config.values import BadValueError, parse_domain_name, parse_guest_name, parse_name
from divhook.policy.analyse import warnings
from divhook.policy.cell import Remote
from divhook.policy.expectations import read_expectations
from divhook.policy.explain import End, Explanation, explain, external_end, guest_end, host_end, text_of
from divhook.policy.files import PolicySet, load, load_file
from divhook.policy.identity import Identity, IdentityError, Workload
from divhook.policy.labels import parse_labels
from divhook.policy.services import Service, parse_service

DESCRIPTION = """\
Who may talk to whom: check, test and explain the files in policies/, offline. The agent takes a changed file within a
second by itself; `apply` has it do so now, and answers when the kernel goes by it."""
EXAMPLES = """\
examples:
  divhook policy check                                       problems and warnings, with file, line and column
  divhook policy diff                                        what the changed files would do, also to flows that live
  divhook policy apply                                       read the files now; answers when they are in force
  divhook policy counters                                    how often has each rule decided?
  divhook policy test tests/shop.yaml                        do the policies do what their owner expects?
  divhook policy explain shop-web-1 10.1.2.7 tcp/5432        guests that run
  divhook policy explain shop/web/web-1 shop/db/db-1 tcp/5432
  divhook policy explain shop/web,tier=web 192.0.2.7 udp/dns --why-not

An end of `explain` is a guest that this host's agent knows, by name or address; or CELL/SUBNET[/GUEST][,LABEL=VALUE…]
for a guest, which need not exist; or an external address or DNS name; or `host`, the host that the guest at the other
end is on. Both sides are judged by the files of this host.
docs/policy.md says what the files hold and what decides."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of the command."""
    commands = parser.add_subparsers(dest="policy_command", metavar="COMMAND", required=True)
    check = commands.add_parser("check", help="find mistakes, and rules that are hardly meant")
    check.add_argument(
        "path", nargs="?", type=Path, default=Path(DEFAULT_DIRECTORY), metavar="PATH",
        help=f"a configuration directory, or one policy file ({DEFAULT_DIRECTORY})",
    )  # fmt: skip
    check.add_argument("--strict", action="store_true", help="warnings are failures, too")
    apply = commands.add_parser("apply", help="have the agent read the files now; done when they are in force")
    apply.add_argument("--check", action="store_true", help="only say what would change, as `diff` does")
    diff = commands.add_parser("diff", help="say what files would change: rules, and flows that live now")
    diff.add_argument(
        "path", nargs="?", type=Path, metavar="PATH",
        help="a configuration directory with other policies/ (without it: the agent's own, as it is now)",
    )  # fmt: skip
    counters = commands.add_parser("counters", help="list rules in force with the flows that each has decided")
    names = commands.add_parser("names", help="list DNS names of rules, and what they resolve to")
    for command in (apply, diff, counters, names):
        add_socket_argument(command)
    test = commands.add_parser("test", help="compare the policies with what a file expects of them")
    test.add_argument("file", type=Path, nargs="+", metavar="FILE", help="files of expectations")
    why = commands.add_parser("explain", help="say which rules decide a flow, and why")
    why.add_argument("source", metavar="SRC", help="who starts the flow")
    why.add_argument("destination", metavar="DST", help="whom it goes to")
    why.add_argument("service", metavar="SERVICE", help="tcp/443, udp/dns, icmp/echo-request, 47")
    why.add_argument("--why-not", action="store_true", help="of a denied flow, also rules that nearly allow it")
    for command in (test, why):
        command.add_argument(
            "--config", type=Path, default=Path(DEFAULT_DIRECTORY), metavar="DIR", help=f"({DEFAULT_DIRECTORY})"
        )
    add_socket_argument(why)
    for command in (check, test, why, apply, diff, counters, names):
        command.add_argument("--json", action="store_true", help="print JSON, for programs")


def run(args: argparse.Namespace) -> int:
    """Run one of them. Returns 0 where all is well (or the flow passes), else 1. Raises CommandError."""
    if args.policy_command == "check":
        return _check(args)
    online = {"apply": _apply, "diff": _diff, "counters": _counters, "names": _names}
    if args.policy_command in online:
        return online[args.policy_command](args)
    return _test(args) if args.policy_command == "test" else _explain(args)


def _diff(args: argparse.Namespace) -> int:
    path = getattr(args, "path", None)
    answer = ask(args.socket, "policy diff", directory=str(path.absolute()) if path else None)
    if args.json:
        print(json.dumps(answer, indent=2))
        return 0
    for rule in answer["rules"]:
        print(f"{rule['change']} {rule['where']}: {rule['rule']}" if rule["where"] else f"~ {rule['rule']}")
    for flow in answer["ended"]:
        ends = f"{end_text(flow, 'source')} → {end_text(flow, 'destination')} {flow['protocol']}"
        why = flow["rule_place"] or "the default"
        print(f"ends: {cell(ends)} ({flow['state']}), {flow['direction']} of {cell(flow['guest'])}: {cell(why)}")
    ended, checked = len(answer["ended"]), answer["flows_checked"]
    if not answer["rules"]:
        print("nothing would change")
    else:
        print(f"{len(answer['rules'])} changes; {ended} of {checked} flows that live on this host would end")
    return 0


def _counters(args: argparse.Namespace) -> int:
    rows = ask(args.socket, "policy counters")
    if args.json:
        print(json.dumps(rows, indent=2))
    else:
        print(table(rows, ("flows", "where", "rule", "comment")) if rows else "no policy is enforced on this host")
    return 0


def _names(args: argparse.Namespace) -> int:
    rows = ask(args.socket, "policy names")
    if args.json:
        print(json.dumps(rows, indent=2))
    else:
        columns = ("cell", "name", "state", "addresses", "problem")
        print(table(rows, columns) if rows else "no rule on this host has a DNS name")
    return 0


def _apply(args: argparse.Namespace) -> int:
    if args.check:
        return _diff(args)
    answer = ask(args.socket, "policy apply")
    if args.json:
        print(json.dumps(answer))
    else:
        changed = answer["changed"]
        what = f"{changed} cell{'s' * (changed != 1)} changed" if changed else "nothing changed"
        print(f"policies are in force: {what}, {answer['ms']:.0f} ms")
    return 0


def _check(args: argparse.Namespace) -> int:
    problems: list[Problem] = []
    doubts: list[Problem] = []
    counts = ""
    try:
        if not args.path.exists():
            raise CommandError(f"{args.path}: there is no such file or directory")
        policies = load(args.path) if args.path.is_dir() else load_file(args.path)
        doubts = warnings(policies)
        counts = policies_summary(policies)
    except ConfigError as error:
        problems = list(error.problems)
    bad = bool(problems) or (args.strict and bool(doubts))
    if args.json:
        print(json.dumps({"ok": not bad, "problems": _plain(problems), "warnings": _plain(doubts)}, indent=2))
        return int(bad)
    for problem in problems:
        print(problem)
    for doubt in doubts:
        print(warning_text(doubt))
    if problems:
        print(f"{len(problems)} problem{'s' * (len(problems) != 1)}")
    else:
        found = f"{len(doubts)} warning{'s' * (len(doubts) != 1)}" if doubts else "good"
        print(f"{args.path}: {found}: {counts}")
    return int(bad)


def policies_summary(policies: PolicySet) -> str:
    """How much there is, for people."""
    rules = sum(len(policy.rules) for policy in policies.cells.values())
    groups = sum(len(policy.groups) for policy in policies.cells.values())
    cells = len(policies.cells)
    counts = ((rules, "rule"), (groups, "group"), (cells, "cell"))
    rule, group, cell = (f"{count} {word}{'s' * (count != 1)}" for count, word in counts)
    return f"{rule} and {group} of {cell}"


def warning_text(doubt: Problem) -> str:
    """A warning as `check` prints it."""
    return str(dataclasses.replace(doubt, message=f"warning: {doubt.message}"))


def _plain(problems: list[Problem]) -> list[dict[str, Any]]:
    return [dataclasses.asdict(p.where) | {"message": p.message, "hint": p.hint} for p in problems]


def _policies(directory: Path) -> PolicySet:
    try:
        return load(directory)
    except ConfigError as error:
        raise CommandError(f"the policies are not usable:\n{error}") from None


def _test(args: argparse.Namespace) -> int:
    policies = _policies(args.config)
    failures: list[tuple[str, str]] = []
    count = 0
    for path in args.file:
        try:
            expectations = read_expectations(str(path), path.read_bytes(), policies)
        except OSError as error:
            raise CommandError(f"{path}: can't be read: {error.strerror}") from None
        except ConfigError as error:
            raise CommandError(f"the expectations are not usable:\n{error}") from None
        count += len(expectations.expectations)
        failures += [(str(f.where), f.text) for f in expectations.failures()]
    broken = len({where for where, _ in failures})
    if args.json:
        rows = [{"where": where, "message": text} for where, text in failures]
        print(json.dumps({"ok": not failures, "expectations": count, "failures": rows}, indent=2))
        return int(bool(failures))
    for where, text in failures:
        print(f"{where}: {text}")
    print(f"{broken} of {count} expectations broken" if failures else f"{count} expectations hold")
    return int(bool(failures))


def _explain(args: argparse.Namespace) -> int:
    policies = _policies(args.config)
    source, destination = (_end(text, policies, args.socket) for text in (args.source, args.destination))
    if source.identity is None and destination.identity is None:
        raise UsageError("neither end is a guest: no policy has a say in that")
    try:
        service = parse_service(args.service)
    except BadValueError as error:
        raise UsageError(_text(error)) from None
    found = explain(source, destination, _point(service), policies, why_not=args.why_not)
    if args.json:
        print(json.dumps(_answer(found), indent=2))
    else:
        print("\n".join(text_of(found)))
    return 0 if found.allow else 1


def _point(service: Service) -> Service:
    """One packet of a service: its first port or type."""
    if service.protocol is None:
        raise UsageError("`any` is no single flow (write one service, as in tcp/443)")
    return Service(service.protocol, service.low, service.low)


def _end(text: str, policies: PolicySet, agent: Path) -> End:
    """An end of a flow as it is written on the command line: hypothetical, else one that the agent knows.

    Raises UsageError.
    """
    if text == "host":
        return host_end()
    if "/" not in text and "," not in text and (running := _running(text, agent)) is not None:
        return running
    place, _, labels = text.partition(",")
    try:
        if "/" in place:
            cell, subnet, *guest = place.split("/", 2)
            known = policies.configuration.cell(cell) if policies.configuration else None
            if policies.configuration and policies.configuration.cells and known is None:
                raise UsageError(f"{text}: cell '{cell}' is not known here")
            if known is not None and subnet not in known.subnets:
                raise UsageError(
                    f"{text}: cell '{cell}' has no subnet '{subnet}' (subnets: {', '.join(known.subnets)})"
                )
            name = parse_guest_name(guest[0]) if guest else ""
            return guest_end(Workload(parse_name(cell), parse_name(subnet), name, parse_labels(labels)), policies)
        if labels:
            raise UsageError(f"{text}: only guests have labels (write CELL/SUBNET,{labels})")
        return _external(place, policies)
    except BadValueError as error:
        raise UsageError(f"{text}: {_text(error)}") from None
    except IdentityError as error:
        raise UsageError(str(error)) from None


def _running(text: str, agent: Path) -> End | None:
    """A guest by name or address, as the agent of this host knows it. None where there is no agent, or it does not."""
    if not agent.exists():
        return None
    found = ask(agent, "policy who", end=text)
    if found is None:
        return None
    labels = tuple((str(key), str(value)) for key, value in found["labels"])
    identity = Identity(str(found["cell"]), labels, tuple(found["exports"]))
    return End(f"{found['cell']}/{found['subnet']}/{found['name']} on {found['host']}", Remote(identity))


def _external(text: str, policies: PolicySet) -> End:
    try:
        address = IPv4Address(text).packed
    except ValueError:
        return external_end(None, (parse_domain_name(text.rstrip(".")).lower(),))
    if policies.configuration is not None and policies.configuration.plan.contains(address):
        hint = "the agent knows no guest there; write CELL/SUBNET/GUEST for one that need not exist"
        raise UsageError(f"{text} is in the virtual address space ({hint})")
    return external_end(address)


def _text(error: BadValueError) -> str:
    return error.message + (f" ({error.hint})" if error.hint else "")


def _answer(found: Explanation) -> dict[str, Any]:
    def end(end: End) -> dict[str, Any]:
        if end.identity is None:
            return {"name": end.name, "identity": None}
        return {
            "name": end.name,
            "identity": f"{end.identity.number:016x}",
            "cell": end.identity.cell,
            "labels": [list(pair) for pair in end.identity.labels],
            "exports": list(end.identity.exports),
        }

    return {
        "allow": found.allow,
        "service": str(found.service),
        "source": end(found.source),
        "destination": end(found.destination),
        "sides": [
            {
                "direction": str(side.direction),
                "cell": side.cell,
                "relation": str(side.relation),
                "allow": side.allow,
                "log": side.log,
                "rule": None if side.rule is None else str(side.rule),
                "where": None if side.where is None else str(side.where),
                "also": [{"rule": str(r), "where": str(r.where)} for r in side.others],
                "missed": [{"rule": str(m.rule), "where": str(m.rule.where), "lacks": m.lacks} for m in side.missed],
            }
            for side in found.sides
        ],
    }
