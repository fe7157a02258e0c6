"""`divhook assign`: give a guest's NIC its cell and subnet, by writing it into the guest's libvirt metadata."""

import argparse
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

from divhook.adapters.libvirt_metadata import Description, GuestMetadata, LibvirtMetadataError
from divhook.cli.errors import CommandError, UsageError
from divhook.config.configuration import Configuration, PlacementError, UnknownPlaceError
from divhook.config.domain import Assignment, Domain, DomainError, DomainNic, assigned, guest_element, parse_domain
from divhook.config.load import load
from divhook.config.model import DEFAULT_DIRECTORY
from divhook.config.problems import ConfigError
from divhook.config.values import BadValueError, parse_guest_mac, parse_hostname, parse_ipv4
from divhook.core.addressing import Address, Mac, address_text, mac_text
from divhook.policy.labels import parse_labels

Value = TypeVar("Value")
DESCRIPTION = """\
Give a guest's NIC its cell and subnet, and maybe a fixed address. This is kept in the guest's own libvirt metadata, so
it moves with the guest. A running guest takes its labels over at once, all else at its next start. The guest needs a
NIC on the network `divhook`:
  <interface type='network'><source network='divhook'/></interface>"""
EXAMPLES = """\
examples:
  divhook assign web-a --cell shop --subnet web
  divhook assign db --cell shop --subnet db --address 10.1.2.20 --hostname db
  divhook assign gateway --mac 52:54:00:12:34:56 --cell lab --subnet web    a guest with several divhook NICs
  divhook assign web-a --cell shop --subnet web --labels tier=web,env=prod
  divhook assign lb-a --cell shop --subnet web --allow 10.1.1.100          it may take this address, too
  divhook assign web-a --remove
  divhook assign web-a --cell shop --subnet web --print                    only print the XML, for a template"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of the command."""
    parser.add_argument("guest", metavar="GUEST", help="the guest's name in libvirt")
    parser.add_argument("--cell", metavar="CELL", help="name or number of the cell")
    parser.add_argument("--subnet", metavar="SUBNET", help="name or number of the subnet in the cell")
    parser.add_argument("--address", type=_typed(parse_ipv4), metavar="ADDRESS", help="fixed address (default: chosen)")
    parser.add_argument("--hostname", type=_typed(parse_hostname), metavar="NAME", help="host name that DHCP gives")
    parser.add_argument(
        "--allow",
        type=_typed(_allowed),
        action="append",
        metavar="ADDRESS",
        help="further address that it may take, as VRRP does; may be repeated (default: what it has in that subnet "
        "already; `none`: no more)",
    )
    parser.add_argument(
        "--labels", type=_typed(_labels), metavar="K=V,…", help="labels for policies, as in tier=web,env=prod"
    )
    parser.add_argument("--mac", type=_typed(parse_guest_mac), metavar="MAC", help="which NIC, where there are several")
    parser.add_argument("--remove", action="store_true", help="take the assignment away")
    parser.add_argument("--print", action="store_true", help="print the metadata XML; contact and change nothing")
    parser.add_argument("--connect", metavar="URI", help="libvirt connection (default: libvirt_uri of divhook.yaml)")
    parser.add_argument(
        "--config", type=Path, default=Path(DEFAULT_DIRECTORY), metavar="DIR", help=f"({DEFAULT_DIRECTORY})"
    )


def _labels(value: object) -> str:
    return ",".join(f"{key}={item}" for key, item in parse_labels(value))


def _allowed(value: object) -> Address | None:
    return None if value == "none" else parse_ipv4(value)


def _typed(parse: Callable[[object], Value]) -> Callable[[str], Value]:
    """A parser of the configuration's values as argparse's `type`."""

    def convert(text: str) -> Value:
        try:
            return parse(text)
        except BadValueError as error:
            hint = f" ({error.hint})" if error.hint else ""
            raise argparse.ArgumentTypeError(f"{error.message}{hint}") from None

    return convert


@dataclass(frozen=True, slots=True)
class _Part:
    """One description of the guest (definition or live), parsed."""

    description: Description
    domain: Domain


def run(args: argparse.Namespace) -> int:
    """Assign, remove or print. Raises CommandError."""
    if args.remove and (
        args.cell or args.subnet or args.address or args.hostname or args.labels or args.allow or args.print
    ):
        raise UsageError("--remove takes the whole assignment away: leave the other options out")
    if not args.remove and not (args.cell and args.subnet):
        raise UsageError("--cell and --subnet are both needed, or --remove")
    if args.allow and None in args.allow and len(args.allow) > 1:
        raise UsageError("--allow none takes all further addresses away: leave the others out")
    try:
        configuration = load(args.config)
    except ConfigError as error:
        first = error.problems[0]
        raise CommandError(
            f"the configuration has {len(error.problems)} problems, the first: {first}; see divhook check {args.config}"
        ) from None
    wanted = (
        None
        if args.remove
        else Assignment(
            args.cell, args.subnet, args.address, args.hostname, args.labels, tuple(a for a in args.allow or () if a)
        )
    )
    try:
        if args.print and wanted is not None:
            _check(configuration, DomainNic(args.mac or bytes(6), assignment=wanted, only=not args.mac), args)
            print(guest_element([(args.mac, wanted)], namespaced=True))
            return 0
        with GuestMetadata(args.connect or configuration.host.libvirt_uri, args.guest) as guest:
            return _write(guest, configuration, wanted, args)
    except (LibvirtMetadataError, DomainError, PlacementError) as error:
        raise CommandError(str(error)) from None


def _write(
    guest: GuestMetadata, configuration: Configuration, wanted: Assignment | None, args: argparse.Namespace
) -> int:
    host = configuration.host
    parts = [_Part(d, _without_metadata(d.xml, host.network, host.bridge)) for d in guest.descriptions()]
    mac = _choose(parts, args, host.network)
    nic = next((n for p in parts if (n := p.domain.nic(mac)) is not None), None)
    dropped: tuple[Address, ...] = ()
    if wanted is not None and args.allow is None:
        wanted, dropped = _keep_allowed(configuration, wanted, parts, mac)
    if wanted is not None and nic is not None:
        _check(configuration, DomainNic(mac, assignment=wanted, only=nic.only), args)
    changed = []
    for part in parts:
        there = part.domain.nic(mac)
        if there is None and wanted is not None:
            continue  # hot-plugged: in the live description only, or the other way round
        before = part.description.metadata
        after = _after(before, mac, wanted, there is not None and there.only, args.guest)
        if after is not None or before is not None:
            guest.write(part.description.live, after)
        changed.append("running guest" if part.description.live else "definition")
    what = "no cell and subnet any more" if wanted is None else f"cell {wanted.cell}, subnet {wanted.subnet}"
    if wanted is not None and wanted.address is not None:
        what += f", address {address_text(wanted.address)}"
    if wanted is not None and wanted.allowed:
        what += f", may take {_listed(wanted.allowed)}"
    print(f"guest '{args.guest}', NIC {mac_text(mac)}: {what} (written to its {' and '.join(changed)})")
    if dropped:
        print(f"It may no more take {_listed(dropped)}, which belong to its former subnet.")
    if "running guest" in changed:
        print("It runs: labels count at once, all else takes effect at its next start.")
    return 0


def _listed(addresses: tuple[Address, ...]) -> str:
    return ", ".join(address_text(a) for a in addresses)


def _keep_allowed(
    configuration: Configuration, wanted: Assignment, parts: list[_Part], mac: Mac
) -> tuple[Assignment, tuple[Address, ...]]:
    """The assignment with the addresses that the NIC may take already, and those that it loses with its subnet."""
    before = next((n.assignment for p in parts if (n := p.domain.nic(mac)) is not None and n.assignment), None)
    if before is None or not before.allowed:
        return wanted, ()
    try:
        there, here = (configuration.find_subnet(a.cell, a.subnet).id for a in (before, wanted))
    except UnknownPlaceError:
        there, here = (before.cell, before.subnet), (wanted.cell, wanted.subnet)  # type: ignore[assignment]
    if there != here:
        return wanted, before.allowed
    return replace(wanted, allowed=before.allowed), ()


def _without_metadata(xml: str, network: str, bridge: str) -> Domain:
    """The domain, or, where its metadata is what is wrong, the domain without: assign must be able to mend it."""
    try:
        return parse_domain(xml, network=network, bridge=bridge)
    except DomainError:
        start, end = xml.find("<metadata>"), xml.rfind("</metadata>")
        if start < 0 or end < start:
            raise
        return parse_domain(xml[:start] + xml[end + len("</metadata>") :], network=network, bridge=bridge)


def _after(before: str | None, mac: Mac, wanted: Assignment | None, only: bool, guest: str) -> str | None:
    """The new metadata. What can't be read can only be cleared."""
    try:
        return assigned(before, mac, wanted, only=only)
    except DomainError as error:
        if wanted is None:
            return None
        remedy = f"`divhook assign {guest} --mac {mac_text(mac)} --remove` clears it"
        raise CommandError(f"guest '{guest}': {error} ({remedy})") from None


def _choose(parts: list[_Part], args: argparse.Namespace, network: str) -> Mac:
    macs = sorted({nic.mac for part in parts for nic in part.domain.nics})
    listed = ", ".join(mac_text(m) for m in macs)
    mac: Mac | None = args.mac
    if mac is not None:
        if mac in macs or args.remove:
            return mac
        raise CommandError(f"guest '{args.guest}' has no divhook NIC {mac_text(mac)}; it has: {listed or 'none'}")
    if len(macs) == 1:
        return macs[0]
    if not macs:
        raise CommandError(
            f"guest '{args.guest}' has no divhook NIC: add <interface type='network'><source network='{network}'/>"
            f"</interface>, for example with `virsh attach-interface {args.guest} network {network} --config`"
        )
    raise CommandError(f"guest '{args.guest}' has several divhook NICs: say which by --mac; it has {listed}")


def _check(configuration: Configuration, nic: DomainNic, args: argparse.Namespace) -> None:
    """Raise PlacementError where the agent would refuse this; where there are no cell files, say so and go on."""
    if configuration.cells:
        configuration.place(nic, args.guest)
    else:
        print(f"divhook: not checked: there are no cell files in {args.config}/cells", file=sys.stderr)
