"""libvirt: read and write the divhook metadata of one guest (virDomainGetMetadata, virDomainSetMetadata).

A persistent guest that runs has two descriptions, the definition and the live one; each has its own metadata and NICs.
A blocking connection of its own, for commands; the agent's connection is in libvirt.py.
"""

from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

import libvirt

from divhook.config.domain import NAMESPACE, PREFIX


class LibvirtMetadataError(Exception):
    """libvirt refuses; the text names URI or guest and carries libvirt's own words."""


@dataclass(frozen=True, slots=True)
class Description:
    """One of the two descriptions of a guest. metadata: its `<guest>` element without namespace, or None."""

    live: bool
    xml: str
    metadata: str | None


class GuestMetadata:
    """A guest's metadata through its own connection; a context manager. Raises LibvirtMetadataError throughout."""

    def __init__(self, uri: str, guest: str) -> None:
        libvirt.registerErrorHandler(lambda _context, _error: None, None)  # else the library prints errors itself
        self._guest = guest
        try:
            self._connection = libvirt.open(uri)
        except libvirt.libvirtError as error:
            raise LibvirtMetadataError(f"libvirt does not answer at {uri}: {error}") from None
        try:
            self._domain: Any = self._connection.lookupByName(guest)
        except libvirt.libvirtError as error:
            names = sorted(domain.name() for domain in self._connection.listAllDomains())
            self._connection.close()
            if error.get_error_code() != libvirt.VIR_ERR_NO_DOMAIN:
                raise LibvirtMetadataError(f"guest '{guest}': {error}") from None
            known = ", ".join(names[:20]) or "none"
            raise LibvirtMetadataError(f"libvirt at {uri} has no guest '{guest}'; guests: {known}") from None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._connection.close()

    def descriptions(self) -> list[Description]:
        """The definition, if it is persistent, and the live one, if it runs."""
        try:
            scopes = [
                live for live, there in ((False, self._domain.isPersistent()), (True, self._domain.isActive())) if there
            ]
            return [Description(live, self._xml(live), self._metadata(live)) for live in scopes]
        except libvirt.libvirtError as error:
            raise LibvirtMetadataError(f"guest '{self._guest}': {error}") from None

    def write(self, live: bool, metadata: str | None) -> None:
        """Replace the metadata of one description; None removes it."""
        try:
            self._domain.setMetadata(libvirt.VIR_DOMAIN_METADATA_ELEMENT, metadata, PREFIX, NAMESPACE, _scope(live))
        except libvirt.libvirtError as error:
            raise LibvirtMetadataError(f"guest '{self._guest}': metadata can't be written: {error}") from None

    def _xml(self, live: bool) -> str:
        xml: str = self._domain.XMLDesc(0 if live else libvirt.VIR_DOMAIN_XML_INACTIVE)
        return xml

    def _metadata(self, live: bool) -> str | None:
        try:
            xml: str = self._domain.metadata(libvirt.VIR_DOMAIN_METADATA_ELEMENT, NAMESPACE, _scope(live))
        except libvirt.libvirtError as error:
            if error.get_error_code() == libvirt.VIR_ERR_NO_DOMAIN_METADATA:
                return None
            raise
        return xml


def _scope(live: bool) -> int:
    return int(libvirt.VIR_DOMAIN_AFFECT_LIVE if live else libvirt.VIR_DOMAIN_AFFECT_CONFIG)
