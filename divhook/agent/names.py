"""The DNS names of rules, kept resolved: the book (divhook/policy/names.py) with a resolver, a clock and a file.

The file has what exact names resolved to, so that connections to them live through the agent's restart also where no
name server answers. It is no state that anything depends on: without it, names are unknown until they are resolved.
"""

import asyncio
import contextlib
import json
import logging
import math
import time
from collections.abc import Awaitable, Callable, Collection, Mapping
from ipaddress import IPv4Address
from pathlib import Path
from typing import Protocol

from divhook.adapters.resolver import Answer, ResolverError
from divhook.core.addressing import Address
from divhook.policy.names import EXPIRE_S, NameBook
from divhook.policy.peers import DnsName

SAVE_S = 10.0
"""At most so often is the file written …"""
SAVE_AGAIN_S = 3600.0
"""… and no less often where no address changes: it says until when they hold."""
SHORTEST_WAIT_S = 0.05

Changed = Callable[[str, Mapping[DnsName, frozenset[Address]]], None]
"""Called with a cell and all its names that have addresses: what CellTable.set_names takes."""
log = logging.getLogger(__name__)


class Resolves(Protocol):
    """divhook.adapters.resolver.Resolver, or what stands for it in a test."""

    def resolve(self, name: str) -> Awaitable[Answer]:
        """Addresses of a name. Raises ResolverError."""


class Names:
    """What the policies' DNS names resolve to. `run` for as long as the agent lives; all else is called on its loop."""

    def __init__(self, book: NameBook, resolver: Resolves, changed: Changed, file: Path | None = None) -> None:
        self.book = book
        self._resolver = resolver
        self._changed = changed
        self._file = file
        self._saved: dict[str, set[str]] = {}
        self._saved_s = -math.inf
        self._wake = asyncio.Event()
        self._loop = asyncio.get_running_loop()
        self._questions: set[asyncio.Task[None]] = set()
        self._told: set[str] = set()
        self._restore()

    def want(self, cell: str, names: Collection[DnsName]) -> None:
        """The names of a cell's rules now, all of them. What is known of them is told at once, by `changed`."""
        self.book.want(cell, names, self._loop.time())
        self._tell()

    def want_all(self, wanted: Mapping[str, Collection[DnsName]]) -> None:
        """The same for all cells at once; a cell that is missing wants none."""
        now = self._loop.time()
        for cell in sorted({*self.book.cells(), *wanted}):
            self.book.want(cell, wanted.get(cell, ()), now)
        self._tell()

    def learned(self, cell: str, name: str, addresses: Collection[Address], ttl_s: float) -> None:
        """What a guest of a cell is about to get for a name: for the local resolver, before it sends the answer."""
        self.book.learned(cell, name, addresses, ttl_s, self._loop.time())
        self._tell()

    def rows(self) -> list[dict[str, object]]:
        """For status: every name, its state and addresses."""
        return [row.plain() for row in self.book.rows()]

    def summary(self) -> dict[str, int]:
        """For status: how many names are in which state."""
        counts: dict[str, int] = {}
        for row in self.book.rows():
            counts[str(row.state)] = counts.get(str(row.state), 0) + 1
        return counts

    async def run(self) -> None:
        """Keep every name resolved."""
        expire_s = self._loop.time() + EXPIRE_S
        save_s = self._loop.time() + SAVE_S
        try:
            while True:
                now = self._loop.time()
                for name in self.book.take_due(now):
                    question = self._loop.create_task(self._ask(name))
                    self._questions.add(question)
                    question.add_done_callback(self._questions.discard)
                if now >= expire_s:
                    expire_s = now + EXPIRE_S
                    self.book.expire(now)
                    self._tell()
                if now >= save_s:
                    save_s = now + SAVE_S
                    self._save()
                self._wake.clear()
                wake_s = min(expire_s, save_s, self.book.next_timer() or math.inf)
                with contextlib.suppress(TimeoutError):  # not wait_for: Python 3.11's can lose a cancellation
                    async with asyncio.timeout(max(SHORTEST_WAIT_S, wake_s - self._loop.time())):
                        await self._wake.wait()
        finally:
            for question in self._questions:
                question.cancel()
            await asyncio.gather(*self._questions, return_exceptions=True)
            self._save()

    async def _ask(self, name: str) -> None:
        try:
            answer = await self._resolver.resolve(name)
            self.book.answered(name, answer.addresses, answer.ttl_s, self._loop.time())
            self._told.discard(name)
        except ResolverError as error:
            self._failed(name, str(error))
        except Exception as error:  # an answer from outside can break no more than its own name
            log.exception("resolving %s failed; please report this trace", name)
            self._failed(name, f"internal error: {error}")
        self._tell()

    def _failed(self, name: str, problem: str) -> None:
        self.book.failed(name, problem, self._loop.time())
        if name not in self._told:  # once, until it works again
            self._told.add(name)
            log.warning("DNS name %s of a policy: %s; what it resolved to stays in force for a day", name, problem)

    def _tell(self) -> None:
        self._wake.set()
        for cell in self.book.take_changed():
            try:
                self._changed(cell, self.book.addresses(cell))
            except Exception:
                log.exception("the addresses of names of cell %s were not taken; please report this trace", cell)

    # --- the file ------------------------------------------------------------------------------------------------

    def _restore(self) -> None:
        if self._file is None:
            return
        offset_s = time.time() - self._loop.time()
        try:
            raw = json.loads(self._file.read_bytes())
            known = {
                str(name): {IPv4Address(text).packed: float(goes_s) - offset_s for text, goes_s in addresses.items()}
                for name, addresses in raw["names"].items()
            }
        except FileNotFoundError:
            return
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            log.warning("%s: not usable (%s): DNS names are unknown until they are resolved", self._file, error)
            return
        now = self._loop.time()
        self.book.restore({n: {a: t for a, t in pairs.items() if t > now} for n, pairs in known.items()})

    def _save(self) -> None:
        names = self.book.dump()
        shape = {name: set(addresses) for name, addresses in names.items()}
        now = self._loop.time()
        if self._file is None or (shape == self._saved and now < self._saved_s + SAVE_AGAIN_S):
            return
        offset_s = time.time() - self._loop.time()
        wall = {n: {text: round(t + offset_s) for text, t in pairs.items()} for n, pairs in names.items()}
        draft = self._file.with_suffix(".new")
        try:
            draft.write_text(json.dumps({"names": wall}))
            draft.replace(self._file)
            self._saved, self._saved_s = shape, now
        except OSError as error:
            log.warning("%s: can't be written: %s", self._file, error.strerror)
