"""systemd's two datagram protocols: readiness and watchdog (sd_notify(3)), and structured log entries (the journal)."""

import contextlib
import logging
import os
import socket
import struct

JOURNAL_SOCKET = "/run/systemd/journal/socket"
_PRIORITIES = {logging.DEBUG: 7, logging.INFO: 6, logging.WARNING: 4, logging.ERROR: 3, logging.CRITICAL: 2}


def notify(state: str) -> None:
    """Tell the service manager, where there is one: "READY=1", "WATCHDOG=1", "STATUS=…"."""
    path = os.environ.get("NOTIFY_SOCKET")
    if not path:
        return
    address = "\0" + path[1:] if path.startswith("@") else path
    with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as connection:
        connection.sendto(state.encode(), address)


def watchdog_interval_s() -> float | None:
    """How often to say WATCHDOG=1: half of what systemd waits; None where it does not watch."""
    microseconds = os.environ.get("WATCHDOG_USEC", "")
    return int(microseconds) / 2e6 if microseconds.isdigit() else None


def _field(name: str, value: str) -> bytes:
    data = value.encode("utf-8", "replace")
    if b"\n" not in data:
        return name.encode() + b"=" + data + b"\n"
    return name.encode() + b"\n" + struct.pack("<Q", len(data)) + data + b"\n"


class JournalHandler(logging.Handler):
    """Sends records to the journal with their fields: PRIORITY, CODE_FILE, LOGGER, and all DIVHOOK_… extras."""

    def __init__(self, path: str = JOURNAL_SOCKET) -> None:
        super().__init__()
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC)
        self._path = path

    def emit(self, record: logging.LogRecord) -> None:
        """One datagram per record; what does not fit or nobody takes is lost, never an error."""
        fields = [
            _field("MESSAGE", self.format(record)),
            _field("PRIORITY", str(_PRIORITIES.get(record.levelno, 6))),
            _field("SYSLOG_IDENTIFIER", "divhook-agent"),
            _field("LOGGER", record.name),
            _field("CODE_FILE", record.pathname),
            _field("CODE_LINE", str(record.lineno)),
        ]
        fields += [_field(k, str(v)) for k, v in record.__dict__.items() if k.startswith("DIVHOOK_")]
        try:
            self._socket.sendto(b"".join(fields), self._path)
        except OSError:
            self.handleError(record)

    def close(self) -> None:
        """Close the socket."""
        self._socket.close()
        super().close()


def set_up_logging(level: str, to_journal: bool) -> None:
    """Root logger: the journal where we run under systemd, else standard error with times."""
    handler: logging.Handler
    if to_journal:
        handler = JournalHandler()
        handler.setFormatter(logging.Formatter("%(message)s"))
    else:
        handler = logging.StreamHandler()
        handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    root = logging.getLogger()
    root.handlers = [handler]
    root.setLevel(level.upper())
