"""The names of rules, kept resolved by a loop that a made-up resolver answers."""

import asyncio
import contextlib
import json
import logging
import time
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path

import pytest

from divhook.adapters.resolver import Answer, ResolverError
from divhook.agent import names
from divhook.agent.names import Names
from divhook.core.addressing import Address
from divhook.policy.names import NameBook
from divhook.policy.peers import DnsName

WWW, FTP = DnsName("www.example.net"), DnsName("ftp.example.net")
A, B = bytes([192, 0, 2, 1]), bytes([192, 0, 2, 2])


class Told:
    """What the agent would give to its tables."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, dict[DnsName, frozenset[Address]]]] = []
        self.event = asyncio.Event()

    def __call__(self, cell: str, addresses: Mapping[DnsName, frozenset[Address]]) -> None:
        self.calls.append((cell, dict(addresses)))
        self.event.set()

    async def wait(self, wanted: dict[DnsName, frozenset[Address]]) -> None:
        async with asyncio.timeout(5):
            while not self.calls or self.calls[-1][1] != wanted:
                self.event.clear()
                await self.event.wait()


class Script:
    """A resolver by table: an answer, or an error to raise."""

    def __init__(self, table: dict[str, Answer | Exception]) -> None:
        self.table = table
        self.asked: list[str] = []

    async def resolve(self, name: str) -> Answer:
        self.asked.append(name)
        found = self.table[name]
        if isinstance(found, Exception):
            raise found
        return found


def run(script: Script, body: Callable[[Names, Told], Awaitable[None]], file: Path | None = None) -> Told:
    async def main() -> Told:
        told = Told()
        made = Names(NameBook(lambda address: address[0] != 10), script, told, file)
        task = asyncio.create_task(made.run())
        try:
            await body(made, told)
        finally:
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task
        return told

    return asyncio.run(main())


def test_names_are_resolved_and_their_cell_is_told() -> None:
    async def body(made: Names, told: Told) -> None:
        made.want("shop", [WWW, FTP])
        await told.wait({WWW: frozenset((A,)), FTP: frozenset((B,))})
        assert made.summary() == {"good": 2}
        assert [row["addresses"] for row in made.rows()] == [["192.0.2.2"], ["192.0.2.1"]]

    run(Script({"www.example.net": Answer((A,), 60), "ftp.example.net": Answer((B,), 60)}), body)


def test_what_a_guest_resolved_is_told_before_the_call_returns() -> None:
    async def body(made: Names, told: Told) -> None:
        made.want("shop", [DnsName("*.example.net")])
        made.learned("shop", "cdn.example.net", [B], 60)
        assert told.calls[-1] == ("shop", {DnsName("*.example.net"): frozenset((B,))})

    run(Script({}), body)


def test_a_failure_is_logged_once_and_its_reason_is_in_the_status(caplog: pytest.LogCaptureFixture) -> None:
    script = Script({"www.example.net": ResolverError("no answer within 10 s"), "ftp.example.net": Answer((B,), 60)})

    async def body(made: Names, told: Told) -> None:
        made.want("shop", [WWW, FTP])
        await told.wait({FTP: frozenset((B,))})
        made._failed("www.example.net", "no answer within 10 s")
        assert made.summary() == {"good": 1, "failed": 1}
        assert [row["problem"] for row in made.rows()] == ["", "no answer within 10 s"]

    with caplog.at_level(logging.WARNING):
        run(script, body)
    assert [r.getMessage() for r in caplog.records] == [
        "DNS name www.example.net of a policy: no answer within 10 s; what it resolved to stays in force for a day"
    ]


def test_a_bug_in_one_question_or_one_table_ends_nothing_else(caplog: pytest.LogCaptureFixture) -> None:
    async def body(made: Names, told: Told) -> None:
        def refuse(cell: str, addresses: Mapping[DnsName, frozenset[Address]]) -> None:
            made._changed = told
            raise ValueError(cell)

        made._changed = refuse
        made.want("lab", [WWW])
        made.want("shop", [WWW, FTP])
        await told.wait({FTP: frozenset((B,))})
        assert made.summary() == {"failed": 2, "good": 1}

    run(Script({"www.example.net": ValueError("odd"), "ftp.example.net": Answer((B,), 60)}), body)
    assert [r.getMessage() for r in caplog.records] == [
        "the addresses of names of cell lab were not taken; please report this trace",
        "resolving www.example.net failed; please report this trace",
        "DNS name www.example.net of a policy: internal error: odd; what it resolved to stays in force for a day",
    ]


def test_what_was_known_is_in_force_at_once_after_a_restart(tmp_path: Path) -> None:
    file = tmp_path / "names.json"

    async def first(made: Names, told: Told) -> None:
        made.want("shop", [WWW])
        await told.wait({WWW: frozenset((A,))})

    run(Script({"www.example.net": Answer((A,), 60)}), first, file)
    (kept,) = json.loads(file.read_text())["names"].items()
    assert kept[0] == "www.example.net"
    assert kept[1]["192.0.2.1"] == pytest.approx(time.time() + 60 + 86_400, abs=30)

    async def second(made: Names, told: Told) -> None:
        made.want("shop", [WWW])
        assert told.calls == [("shop", {WWW: frozenset((A,))})]
        assert made.summary() == {"stale": 1}

    run(Script({"www.example.net": ResolverError("away")}), second, file)


@pytest.mark.parametrize("text", ["", "[]", '{"names": {"a": 5}}', '{"names": {"a": {"x": 1}}}'])
def test_a_file_that_is_broken_costs_no_more_than_what_it_knew(
    text: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    file = tmp_path / "names.json"
    file.write_text(text)

    async def body(made: Names, told: Told) -> None:
        made.want("shop", [WWW])
        await told.wait({WWW: frozenset((A,))})

    run(Script({"www.example.net": Answer((A,), 60)}), body, file)
    assert "not usable" in caplog.text
    assert json.loads(file.read_text())["names"].keys() == {"www.example.net"}


def test_a_file_that_cannot_be_written_is_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    async def body(made: Names, told: Told) -> None:
        made.want("shop", [WWW])
        await told.wait({WWW: frozenset((A,))})

    run(Script({"www.example.net": Answer((A,), 60)}), body, tmp_path / "gone" / "names.json")
    assert "names.json: can't be written: No such file or directory" in caplog.text


def test_the_file_is_written_and_addresses_go_while_the_agent_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(names, "SAVE_S", 0.01)
    monkeypatch.setattr(names, "EXPIRE_S", 0.01)
    file = tmp_path / "names.json"
    stays_s = time.time() + 0.5
    file.write_text(json.dumps({"names": {"www.example.net": {"192.0.2.1": stays_s}}}))

    async def body(made: Names, told: Told) -> None:
        made.want("shop", [WWW])
        await told.wait({WWW: frozenset((A,))})
        await told.wait({})
        async with asyncio.timeout(5):
            while json.loads(file.read_text()) != {"names": {}}:
                await asyncio.sleep(0.01)

    run(Script({"www.example.net": ResolverError("away")}), body, file)
