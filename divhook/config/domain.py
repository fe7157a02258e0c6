"""What a guest's libvirt domain XML says about its divhook NICs.

    <metadata>
      <divhook:guest xmlns:divhook="urn:divhook:guest:1">
        <divhook:nic mac="52:54:00:…" cell="shop" subnet="web" address="10.1.1.20" hostname="front"
                     labels="tier=web,env=prod"/>
      </divhook:guest>
    </metadata>

`mac` may be left out where the guest has one divhook NIC; `address`, `hostname` and `labels` are optional. cell and
subnet are names or numbers. A NIC is ours if its source is our libvirt network or our bridge: a live domain names both,
and its interface type is then `bridge`. The XML is whatever an administrator of a guest can write: sizes are bounded,
document type declarations (entities) refused, and anything unknown in our own namespace is an error and not ignored.
"""

import re
import xml.etree.ElementTree as ET
from dataclasses import dataclass

from divhook.config.problems import did_you_mean
from divhook.config.values import (
    MAX_ALLOWED_ADDRESSES,
    BadValueError,
    parse_guest_mac,
    parse_hostname,
    parse_ipv4,
    shown,
)
from divhook.core.addressing import Address, Mac, address_text, mac_text

NAMESPACE = "urn:divhook:guest:1"
PREFIX = "divhook"
MAX_XML_BYTES = 4 << 20
"""libvirt itself limits an XML document to 4 MiB (REMOTE_STRING_MAX)."""
MAX_NICS = 64
"""divhook NICs of one guest. A PCIe guest with more is not known."""
MAX_TEXT = 255
"""Any attribute that is read here."""

_ATTRIBUTES = ("mac", "cell", "subnet", "address", "hostname", "labels", "allowed-addresses")


class DomainError(ValueError):
    """A domain's XML is not usable. The text is meant for a person and names the guest where it is known."""


@dataclass(frozen=True, slots=True)
class Assignment:
    """Where the metadata puts a NIC. cell, subnet: names or numbers, not yet looked up. labels: as they are written."""

    cell: str
    subnet: str
    address: Address | None = None
    hostname: str | None = None
    labels: str | None = None
    allowed: tuple[Address, ...] = ()


@dataclass(frozen=True, slots=True)
class DomainNic:
    """One divhook NIC of a guest.

    target: its tap; None before libvirt has made it. mtu: bytes, as `<mtu size=…/>` has it. only: it is the guest's
    single divhook NIC. note: what else its metadata says that could explain a missing assignment.
    """

    mac: Mac
    target: str | None = None
    alias: str | None = None
    mtu: int | None = None
    model: str | None = None
    assignment: Assignment | None = None
    only: bool = True
    note: str = ""


@dataclass(frozen=True, slots=True)
class Domain:
    """A guest as libvirt describes it. nics: the divhook ones only, in the XML's order."""

    uuid: str
    name: str
    nics: tuple[DomainNic, ...]

    def nic(self, mac: Mac) -> DomainNic | None:
        """A NIC by MAC."""
        return next((n for n in self.nics if n.mac == mac), None)


def parse_domain(
    xml: str | bytes, *, network: str = "divhook", bridge: str = "divbr0", metadata: bool = True
) -> Domain:
    """Read a domain. network, bridge: what makes a NIC ours. Raises DomainError.

    A guest with no divhook NIC gives a Domain with no nics, whatever its metadata says. metadata: False leaves it
    unread, and every assignment None.
    """
    root = _parse_xml(xml)
    if root.tag != "domain":
        raise DomainError(f"this is no libvirt domain: the XML starts with <{root.tag[:40]}>")
    name = (root.findtext("name") or "").strip()
    uuid = (root.findtext("uuid") or "").strip().lower()
    if not 0 < len(name) <= MAX_TEXT or not name.isprintable() or not re.fullmatch(r"[0-9a-f-]{36}", uuid):
        raise DomainError("this domain XML has no usable <name> and <uuid>")
    try:
        elements = [i for i in root.findall("devices/interface") if _is_ours(i, network, bridge)]
        if not elements:
            return Domain(uuid, name, ())
        if len(elements) > MAX_NICS:
            raise DomainError(f"{len(elements)} divhook NICs: at most {MAX_NICS} are supported")
        macs = [_mac_of(e) for e in elements]
        for mac in macs:
            if macs.count(mac) > 1:
                raise DomainError(f"two NICs have the MAC {mac_text(mac)}: give each its own")
        assignments = _read_metadata(root.findall(f"metadata/{{{NAMESPACE}}}guest"), macs) if metadata else {}
        strangers = ", ".join(mac_text(m) for m in assignments if m not in macs)
        note = f"its metadata speaks of {strangers}, which is no divhook NIC of this guest" if strangers else ""
        nics = tuple(
            DomainNic(
                mac=mac,
                target=_attribute(element, "target", "dev"),
                alias=_attribute(element, "alias", "name"),
                mtu=_mtu_of(element),
                model=_attribute(element, "model", "type"),
                assignment=assignments.get(mac),
                only=len(macs) == 1,
                note=note,
            )
            for mac, element in zip(macs, elements, strict=True)
        )
    except (DomainError, BadValueError) as error:
        hint = f" ({error.hint})" if isinstance(error, BadValueError) and error.hint else ""
        raise DomainError(f"guest '{name}': {error}{hint}") from None
    return Domain(uuid, name, nics)


def read_assignments(xml: str) -> list[tuple[Mac | None, Assignment]]:
    """The entries of a `<guest>` metadata element alone, as virDomainGetMetadata gives it. Raises DomainError."""
    root = _parse_xml(xml)
    try:
        return _read_guest(root)
    except BadValueError as error:
        raise DomainError(f"{error}" + (f" ({error.hint})" if error.hint else "")) from None


def _parse_xml(xml: str | bytes) -> ET.Element:
    if len(xml) > MAX_XML_BYTES:
        raise DomainError(f"the domain XML is larger than {MAX_XML_BYTES} bytes")
    try:  # as text, so that no encoding can hide a declaration from the look at it
        text = xml if isinstance(xml, str) else xml.decode()
        if "<!DOCTYPE" in text:
            raise DomainError("the domain XML has a document type declaration: libvirt never writes one")
        return ET.fromstring(text)
    except (ET.ParseError, UnicodeError) as error:
        raise DomainError(f"this is not well-formed XML: {error}") from None


def _is_ours(interface: ET.Element, network: str, bridge: str) -> bool:
    source = interface.find("source")
    if source is None or interface.get("type") not in ("network", "bridge"):
        return False
    return source.get("network") == network or source.get("bridge") == bridge


def _attribute(interface: ET.Element, child: str, name: str) -> str | None:
    element = interface.find(child)
    value = element.get(name) if element is not None else None
    return None if value is None else _bounded(value, f"<{child} {name}=…>")


def _bounded(value: str, what: str) -> str:
    """The value, if it can stand in a message or a log line."""
    if len(value) > MAX_TEXT:
        raise DomainError(f"{what} is longer than {MAX_TEXT} characters")
    if not value.isprintable():
        raise DomainError(f"{what} has a control character")
    return value


def _mac_of(interface: ET.Element) -> Mac:
    text = _attribute(interface, "mac", "address")
    if text is None:
        raise DomainError("a divhook NIC has no <mac address=…/>")
    return parse_guest_mac(text)


def _mtu_of(interface: ET.Element) -> int | None:
    text = _attribute(interface, "mtu", "size")
    if text is None:
        return None
    if not (text.isascii() and text.isdigit() and 1 <= int(text) <= 65535):
        raise DomainError(f"<mtu size={shown(text)}/> is no MTU")
    return int(text)


def _read_metadata(guests: list[ET.Element], macs: list[Mac]) -> dict[Mac, Assignment]:
    if len(guests) > 1:
        raise DomainError(f"metadata has {len(guests)} <{PREFIX}:guest> elements: keep one")
    assignments: dict[Mac, Assignment] = {}
    for stated, assignment in _read_guest(guests[0]) if guests else []:
        if stated is None and len(macs) > 1:
            listed = ", ".join(mac_text(m) for m in macs)
            raise DomainError(f"<{PREFIX}:nic> without `mac`, but the guest has several divhook NICs: {listed}")
        mac = macs[0] if stated is None else stated
        if mac in assignments:
            raise DomainError(f"metadata assigns NIC {mac_text(mac)} twice: keep one <{PREFIX}:nic>")
        assignments[mac] = assignment
    return assignments


def _read_guest(guest: ET.Element) -> list[tuple[Mac | None, Assignment]]:
    _refuse_unknown(guest, ())
    if len(guest) > MAX_NICS:
        raise DomainError(f"metadata has {len(guest)} <{PREFIX}:nic> elements: at most {MAX_NICS} are supported")
    found = []
    for nic in guest:
        if nic.tag not in (f"{{{NAMESPACE}}}nic", "nic"):
            tag = nic.tag.removeprefix(f"{{{NAMESPACE}}}") if isinstance(nic.tag, str) else "?"
            raise DomainError(f"metadata: unknown element <{tag[:40]}>: <{PREFIX}:guest> holds <{PREFIX}:nic> only")
        _refuse_unknown(nic, _ATTRIBUTES)
        if len(nic):
            raise DomainError(f"metadata: <{PREFIX}:nic> holds attributes, no elements")
        for required in ("cell", "subnet"):
            if not nic.get(required, "").strip():
                raise DomainError(f"metadata: <{PREFIX}:nic> has no `{required}`")
        mac, address, hostname = nic.get("mac"), nic.get("address"), nic.get("hostname")
        assignment = Assignment(
            nic.attrib["cell"].strip(),
            nic.attrib["subnet"].strip(),
            parse_ipv4(address) if address is not None else None,
            parse_hostname(hostname) if hostname is not None else None,
            nic.get("labels"),
            _allowed(nic.get("allowed-addresses", "")),
        )
        found.append((parse_guest_mac(mac) if mac is not None else None, assignment))
    return found


def _allowed(text: str) -> tuple[Address, ...]:
    words = text.replace(",", " ").split()
    if len(words) > MAX_ALLOWED_ADDRESSES:
        raise DomainError(f"metadata: {len(words)} `allowed-addresses`: at most {MAX_ALLOWED_ADDRESSES} are supported")
    return tuple(parse_ipv4(word) for word in words)


def _refuse_unknown(element: ET.Element, known: tuple[str, ...]) -> None:
    for name, value in element.attrib.items():
        plain = name.removeprefix(f"{{{NAMESPACE}}}")
        if name not in known and plain in known:
            raise DomainError(f"metadata: attribute {plain!r} must have no prefix")
        if name not in known:
            hint = did_you_mean(plain, known, "known") if known else "it has none"
            raise DomainError(f"metadata: unknown attribute {plain[:40]!r}: {hint}")
        _bounded(value, f"metadata: attribute {plain!r}")
    if (element.text or "").strip() or any((child.tail or "").strip() for child in element):
        raise DomainError("metadata: text between the elements")


def assigned(current: str | None, mac: Mac, assignment: Assignment | None, *, only: bool) -> str | None:
    """Metadata with one NIC set, or removed where assignment is None; the other NICs stay as they are.

    current: the `<guest>` element, or None where there is none. only: the NIC is the guest's single divhook NIC, so
    that an entry without mac means it. Returns the new element without namespace, as virDomainSetMetadata wants it
    (libvirt adds prefix and namespace itself), or None where nothing is left. Raises DomainError.
    """
    entries = read_assignments(current) if current else []
    if not only and any(m is None for m, _ in entries):
        raise DomainError(f"metadata has a <{PREFIX}:nic> without `mac`, but the guest has several divhook NICs")
    kept = [(m, a) for m, a in entries if m != mac and not (m is None and only)]
    if assignment is not None:
        kept.append((mac, assignment))
    return guest_element(kept, namespaced=False) if kept else None


def guest_element(entries: list[tuple[Mac | None, Assignment]], *, namespaced: bool) -> str:
    """The metadata element as text: with prefix and namespace for a domain XML, without for virDomainSetMetadata."""
    prefix = f"{PREFIX}:" if namespaced else ""
    guest = ET.Element(f"{prefix}guest", {f"xmlns:{PREFIX}": NAMESPACE} if namespaced else {})
    for stated, entry in entries:
        values = {
            "mac": mac_text(stated) if stated is not None else None,
            "cell": entry.cell,
            "subnet": entry.subnet,
            "address": address_text(entry.address) if entry.address is not None else None,
            "hostname": entry.hostname,
            "labels": entry.labels,
            "allowed-addresses": " ".join(map(address_text, entry.allowed)) or None,
        }
        ET.SubElement(guest, f"{prefix}nic", {name: value for name, value in values.items() if value is not None})
    ET.indent(guest)
    return ET.tostring(guest, encoding="unicode")
