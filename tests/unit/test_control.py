"""The control socket: who may ask, and what a bad request costs."""

import asyncio
import json
import stat
from pathlib import Path
from typing import Any

import pytest

from divhook.agent.control import MAX_CLIENTS, ControlServer, RequestError


async def _double(request: dict[str, Any]) -> int:
    return int(request["n"]) * 2


async def _refuse(_request: dict[str, Any]) -> None:
    raise RequestError("no, because of this")


async def _break(_request: dict[str, Any]) -> None:
    raise ZeroDivisionError


HANDLERS = {"double": _double, "refuse": _refuse, "break": _break}


def talk(path: Path, *lines: bytes) -> list[Any]:
    async def run() -> list[Any]:
        server = ControlServer(path, dict(HANDLERS))
        await server.start()
        try:
            assert stat.S_IMODE(path.stat().st_mode) == 0o600
            reader, writer = await asyncio.open_unix_connection(path)
            answers = []
            for line in lines:
                writer.write(line + b"\n")
                answers.append(json.loads(await reader.readline()))
            writer.close()
            await writer.wait_closed()
            return answers
        finally:
            await server.stop()

    return asyncio.run(run())


def test_requests_are_answered_one_by_one_on_one_connection(tmp_path: Path) -> None:
    answers = talk(tmp_path / "s", b'{"op": "double", "n": 4}', b'{"op": "refuse"}', b'{"op": "double", "n": 5}')
    assert answers == [
        {"ok": True, "result": 8},
        {"ok": False, "error": "no, because of this"},
        {"ok": True, "result": 10},
    ]
    assert not (tmp_path / "s").exists()


@pytest.mark.parametrize("line", [b"nonsense", b"[]", b"3", b'{"op": 4}', b'{"op": "other"}', b"{}"])
def test_a_bad_request_gets_an_error_and_the_connection_lives(tmp_path: Path, line: bytes) -> None:
    bad, good = talk(tmp_path / "s", line, b'{"op": "double", "n": 1}')
    assert bad["ok"] is False
    assert good == {"ok": True, "result": 2}


def test_a_bug_in_a_handler_is_told_without_its_inside(tmp_path: Path) -> None:
    assert talk(tmp_path / "s", b'{"op": "break"}') == [
        {"ok": False, "error": "internal error, see the agent's log: journalctl -u divhook-agent"}
    ]


def test_a_stale_socket_is_replaced_and_a_live_one_is_respected(tmp_path: Path) -> None:
    path = tmp_path / "s"

    async def run() -> None:
        first = ControlServer(path, {})
        await first.start()
        with pytest.raises(RequestError, match="another agent already answers"):
            await ControlServer(path, {}).start()
        await first.stop()
        path.touch()
        second = ControlServer(path, {})
        await second.start()
        await second.stop()

    asyncio.run(run())


def test_clients_beyond_the_bound_are_told_so(tmp_path: Path) -> None:
    path = tmp_path / "s"

    async def run() -> bytes:
        server = ControlServer(path, dict(HANDLERS))
        await server.start()
        streams = [await asyncio.open_unix_connection(path) for _ in range(MAX_CLIENTS)]
        for reader, writer in streams:
            writer.write(b'{"op": "double", "n": 1}\n')
            await reader.readline()
        reader, last = await asyncio.open_unix_connection(path)
        answer = await reader.readline()
        for writer in [last, *(pair[1] for pair in streams)]:
            writer.close()
        await server.stop()
        return answer

    assert b"clients at once" in asyncio.run(run())
