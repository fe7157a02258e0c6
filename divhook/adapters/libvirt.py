"""libvirt: which guests run, their XML, and what happens to them.

libvirt's client library has an event loop of its own, run here in one thread; every call into libvirt is made in a
second one, since each can block for as long as libvirtd likes. Events reach the owner through a callback that is
called in the event thread: it must hand over (loop.call_soon_threadsafe) and return. The connection is opened again
when libvirtd restarts.
"""

import asyncio
import contextlib
import json
import logging
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from enum import Enum
from typing import Any, TypeVar

import libvirt
import libvirt_qemu

RETRY_S = 0.5
KEEPALIVE_S = 5
KEEPALIVE_COUNT = 3
log = logging.getLogger(__name__)
Result = TypeVar("Result")


class LibvirtError(Exception):
    """libvirtd does not answer; the text names the URI."""


class EventKind(Enum):
    """What happened, in the words of libvirt's events."""

    CONNECTED = "connected"
    DISCONNECTED = "disconnected"
    STARTED = "started"
    RESUMED = "resumed"
    SUSPENDED = "suspended"
    STOPPED = "stopped"
    UNDEFINED = "undefined"
    DEVICE_ADDED = "device-added"
    DEVICE_REMOVED = "device-removed"
    METADATA_CHANGED = "metadata-changed"
    QEMU_STOP = "qemu-stop"
    QEMU_RESUME = "qemu-resume"
    QEMU_MIGRATION = "qemu-migration"


@dataclass(frozen=True, slots=True)
class GuestEvent:
    """One event. detail: libvirt's detail number for lifecycle events, the device alias for devices."""

    kind: EventKind
    guest: str = ""
    guest_uuid: str = ""
    detail: int | str = 0
    at_ns: int = 0  # QEMU's own: nanoseconds of the wall clock


@dataclass(frozen=True, slots=True)
class Guest:
    """A domain as libvirt knows it now. running: it has a QEMU, paused or not. xml: live XML where running."""

    name: str
    uuid: str
    running: bool
    paused: bool
    xml: str


_LIFECYCLE = {
    libvirt.VIR_DOMAIN_EVENT_STARTED: EventKind.STARTED,
    libvirt.VIR_DOMAIN_EVENT_RESUMED: EventKind.RESUMED,
    libvirt.VIR_DOMAIN_EVENT_SUSPENDED: EventKind.SUSPENDED,
    libvirt.VIR_DOMAIN_EVENT_STOPPED: EventKind.STOPPED,
    libvirt.VIR_DOMAIN_EVENT_UNDEFINED: EventKind.UNDEFINED,
}


_QEMU = {"STOP": EventKind.QEMU_STOP, "RESUME": EventKind.QEMU_RESUME, "MIGRATION": EventKind.QEMU_MIGRATION}
"""QEMU's monitor events: only they have the time of a pause, and they come earlier than libvirt's own."""


class LibvirtWatch:
    """A connection that stays up, its events, and calls that do not block the caller's loop."""

    def __init__(self, uri: str, on_event: Callable[[GuestEvent], None], network: str = "") -> None:
        """network: name of the one that stands for the bridge; it is started where it is defined and not active."""
        self._uri = uri
        self._network = network
        self._on_event = on_event
        self._connection: Any = None
        self._stopping = threading.Event()
        self._threads: list[threading.Thread] = []
        self._calls = ThreadPoolExecutor(max_workers=1, thread_name_prefix="libvirt-call")

    @property
    def connected(self) -> bool:
        """Whether libvirtd answered last time it was asked."""
        return self._connection is not None

    def start(self) -> None:
        """Start both threads. CONNECTED follows as soon as libvirtd answers."""
        libvirt.registerErrorHandler(lambda *_: None, None)
        libvirt.virEventRegisterDefaultImpl()
        libvirt.virEventAddTimeout(500, lambda *_: None, None)  # lets the loop notice stop()
        for target in (self._run_events, self._keep_connected):
            thread = threading.Thread(target=target, name=f"libvirt{target.__name__}", daemon=True)
            thread.start()
            self._threads.append(thread)

    def stop(self) -> None:
        """End the threads and close the connection."""
        self._stopping.set()
        for thread in self._threads:
            thread.join(2)
        self._calls.shutdown(wait=False, cancel_futures=True)

    async def guests(self) -> list[Guest]:
        """Every domain with its XML. Raises LibvirtError."""
        return await self._call(self._guests)

    async def guest(self, uuid: str) -> Guest | None:
        """One domain; None where libvirt does not know it. Raises LibvirtError."""
        return await self._call(self._guest, uuid)

    async def _call(self, function: Callable[..., Result], *arguments: object) -> Result:
        try:
            return await asyncio.get_running_loop().run_in_executor(self._calls, function, *arguments)
        except libvirt.libvirtError as error:
            raise LibvirtError(f"libvirt at {self._uri}: {error}") from error

    def _open(self) -> Any:
        connection = self._connection
        if connection is None:
            raise LibvirtError(f"libvirt at {self._uri} does not answer: is libvirtd running?")
        return connection

    def _guests(self) -> list[Guest]:
        found = []
        for domain in self._open().listAllDomains():
            try:
                found.append(_describe(domain))
            except libvirt.libvirtError:  # gone meanwhile
                continue
        return found

    def _guest(self, uuid: str) -> Guest | None:
        try:
            return _describe(self._open().lookupByUUIDString(uuid))
        except libvirt.libvirtError as error:
            if error.get_error_code() == libvirt.VIR_ERR_NO_DOMAIN:
                return None
            raise

    def _run_events(self) -> None:
        while not self._stopping.is_set():
            libvirt.virEventRunDefaultImpl()

    def _keep_connected(self) -> None:
        told = ""
        while not self._stopping.is_set():
            if self._connection is None:
                try:
                    self._connect()
                    told = ""
                except libvirt.libvirtError as error:
                    if str(error) != told:
                        told = str(error)
                        log.warning("libvirt at %s: %s; trying again", self._uri, error)
            self._stopping.wait(RETRY_S)
        if self._connection is not None:
            self._connection.close()

    def _connect(self) -> None:
        connection = libvirt.open(self._uri)
        with contextlib.suppress(libvirt.libvirtError):  # a driver that runs in this process needs none
            connection.setKeepAlive(KEEPALIVE_S, KEEPALIVE_COUNT)
            connection.registerCloseCallback(self._closed, None)
        connection.domainEventRegisterAny(None, libvirt.VIR_DOMAIN_EVENT_ID_LIFECYCLE, self._lifecycle, None)
        connection.domainEventRegisterAny(
            None, libvirt.VIR_DOMAIN_EVENT_ID_DEVICE_ADDED, self._device, EventKind.DEVICE_ADDED
        )
        connection.domainEventRegisterAny(
            None, libvirt.VIR_DOMAIN_EVENT_ID_DEVICE_REMOVED, self._device, EventKind.DEVICE_REMOVED
        )
        connection.domainEventRegisterAny(None, libvirt.VIR_DOMAIN_EVENT_ID_METADATA_CHANGE, self._metadata, None)
        for name in _QEMU:
            with contextlib.suppress(libvirt.libvirtError):  # a driver that is not QEMU's
                libvirt_qemu.qemuMonitorEventRegister(connection, None, name, self._qemu, None, 0)
        self._start_network(connection)
        self._connection = connection
        self._on_event(GuestEvent(EventKind.CONNECTED))

    def _start_network(self, connection: Any) -> None:
        """A libvirtd that starts before the bridge is there holds its network for stopped, and guests with it."""
        try:
            network = connection.networkLookupByName(self._network)
            if not network.isActive():
                network.create()
                log.info("started libvirt's network %s", self._network)
        except libvirt.libvirtError as error:
            if error.get_error_code() != libvirt.VIR_ERR_NO_NETWORK:
                log.warning("libvirt's network %s: %s", self._network, error)

    def _closed(self, _connection: Any, reason: int, _opaque: Any) -> None:
        log.warning("libvirt at %s closed the connection (reason %d)", self._uri, reason)
        self._connection = None
        self._on_event(GuestEvent(EventKind.DISCONNECTED, detail=reason))

    def _lifecycle(self, _connection: Any, domain: Any, event: int, detail: int, _opaque: Any) -> None:
        kind = _LIFECYCLE.get(event)
        if kind is not None:
            self._on_event(GuestEvent(kind, domain.name(), domain.UUIDString(), detail))

    def _qemu(
        self, _connection: Any, domain: Any, event: str, seconds: int, micros: int, details: str | None, _opaque: Any
    ) -> None:
        kind = _QEMU.get(event)
        if kind is None:
            return
        try:
            status = str(json.loads(details or "{}").get("status", ""))
        except (ValueError, AttributeError):
            status = ""
        at_ns = seconds * 1_000_000_000 + micros * 1000
        self._on_event(GuestEvent(kind, domain.name(), domain.UUIDString(), status, at_ns))

    def _device(self, _connection: Any, domain: Any, alias: str, kind: EventKind) -> None:
        self._on_event(GuestEvent(kind, domain.name(), domain.UUIDString(), alias))

    def _metadata(self, _connection: Any, domain: Any, _kind: int, namespace: str | None, _opaque: Any) -> None:
        self._on_event(GuestEvent(EventKind.METADATA_CHANGED, domain.name(), domain.UUIDString(), namespace or ""))


def _describe(domain: Any) -> Guest:
    state = domain.state()[0]
    running = state not in (libvirt.VIR_DOMAIN_SHUTOFF, libvirt.VIR_DOMAIN_CRASHED)
    paused = state == libvirt.VIR_DOMAIN_PAUSED
    return Guest(domain.name(), domain.UUIDString(), running, paused, domain.XMLDesc())
