"""The control socket: one JSON object per line in, one per line out, for the hook and the command line.

Root only (mode 0600). Requests name an "op"; the answer is {"ok": true, "result": …} or {"ok": false, "error": text}.
"""

import asyncio
import contextlib
import json
import logging
import os
import socket
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

MAX_REQUEST_BYTES = 4 << 20
"""A domain XML with many devices is some 10 KiB; libvirt itself limits strings to 4 MiB."""
MAX_CLIENTS = 64

Handler = Callable[[dict[str, Any]], Awaitable[Any]]
log = logging.getLogger(__name__)


class RequestError(Exception):
    """The request can't be granted; the text goes to the person who asked."""


class ControlServer:
    """Serves a unix socket. Handlers by op; a handler returns a JSON value or raises RequestError."""

    def __init__(self, path: Path, handlers: dict[str, Handler]) -> None:
        self._path = path
        self._handlers = handlers
        self._server: asyncio.Server | None = None
        self._clients = 0

    async def start(self) -> None:
        """Bind and listen. A stale socket file of a dead agent is replaced; a live one raises RequestError."""
        self._path.parent.mkdir(parents=True, exist_ok=True)
        if self._path.exists():
            with socket.socket(socket.AF_UNIX) as probe:
                try:
                    probe.connect(str(self._path))
                except OSError:
                    self._path.unlink(missing_ok=True)
                else:
                    raise RequestError(f"another agent already answers at {self._path}")
        old = os.umask(0o177)
        try:
            self._server = await asyncio.start_unix_server(self._client, self._path, limit=MAX_REQUEST_BYTES)
        finally:
            os.umask(old)

    async def stop(self) -> None:
        """Close the socket and remove its file."""
        if self._server is not None:
            self._server.close()
            self._path.unlink(missing_ok=True)

    async def _client(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._clients += 1
        try:
            if self._clients > MAX_CLIENTS:
                writer.write(_line({"ok": False, "error": f"more than {MAX_CLIENTS} clients at once"}))
                return
            while line := await reader.readline():
                writer.write(_line(await self._answer(line)))
                await writer.drain()
        except (ConnectionError, ValueError, asyncio.LimitOverrunError):
            pass
        finally:
            self._clients -= 1
            writer.close()
            with contextlib.suppress(OSError):
                await writer.wait_closed()

    async def _answer(self, line: bytes) -> dict[str, Any]:
        try:
            request = json.loads(line)
        except ValueError:
            return {"ok": False, "error": "the request is not JSON"}
        op = request.get("op") if isinstance(request, dict) else None
        handler = self._handlers.get(op) if isinstance(op, str) else None
        if handler is None:
            known = ", ".join(sorted(self._handlers))
            return {"ok": False, "error": f"unknown request {op!r}; known: {known}"}
        try:
            return {"ok": True, "result": await handler(request)}
        except RequestError as error:
            return {"ok": False, "error": str(error)}
        except Exception:
            log.exception("request %s failed", op)
            return {"ok": False, "error": "internal error, see the agent's log: journalctl -u divhook-agent"}


def _line(value: dict[str, Any]) -> bytes:
    return json.dumps(value).encode() + b"\n"
