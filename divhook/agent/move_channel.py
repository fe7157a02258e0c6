"""One hand-over channel: messages over TLS, bounded, in a task of its own. Whatever goes wrong ends it, and only it."""

import asyncio
import contextlib
import logging
import ssl
from collections.abc import Callable

from divhook.adapters.handover import Pinned, StrangerError
from divhook.core.moves.asking import HostAddress
from divhook.core.moves.messages import MessageReader, MoveMessage, MoveMessageError

READ_BYTES = 1 << 16
MAX_UNSENT = 32 << 20
"""Bytes that wait for a slow peer; what is more is not sent, and counted."""
HANDSHAKE_S = 5.0

Receive = Callable[[MoveMessage, bytes], None]
log = logging.getLogger(__name__)


class Channel:
    """`receive` is called with each message; it may raise MoveMessageError, which ends the channel."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer
        self.closed = False

    @classmethod
    async def connect(cls, pinned: Pinned, address: HostAddress, port: int, deadline_s: float) -> "Channel":
        """Raises OSError (TimeoutError, ssl.SSLError) or StrangerError."""
        async with asyncio.timeout(deadline_s):
            reader, writer = await asyncio.open_connection(str(address), port, ssl=pinned.client)
        try:
            pinned.check(writer.get_extra_info("ssl_object"))
        except StrangerError:
            writer.close()
            raise
        return cls(reader, writer)

    def send(self, *messages: bytes) -> bool:
        """Queue messages; False where the channel is closed, or the peer does not take what was sent before."""
        if self.closed or self._writer.transport.get_write_buffer_size() > MAX_UNSENT:
            return False
        for message in messages:
            self._writer.write(message)
        return True

    async def run(self, receive: Receive) -> str:
        """Read to the end. Returns why it ended, for people."""
        messages = MessageReader()
        try:
            while data := await self._reader.read(READ_BYTES):
                for kind, body in messages.feed_untrusted(data):
                    receive(kind, body)
            return "the other side closed it"
        except MoveMessageError as error:
            return f"the other side's mistake: {error}"
        except (OSError, ssl.SSLError) as error:
            return str(error) or type(error).__name__
        finally:
            self.close()

    def close(self) -> None:
        """Send what is queued, then close."""
        if not self.closed:
            self.closed = True
            with contextlib.suppress(OSError, RuntimeError):
                self._writer.close()
