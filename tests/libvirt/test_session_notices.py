"""The session that outlives moves in other tests notices each byte that is lost, doubled or another: talk.c itself."""

import json
import socket
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from bench.moves.traffic import build
from divhook.lab.processes import wait_until

pytestmark = pytest.mark.no_agent
AT = 640
"""Which byte of a direction meets the fault: in the middle of a line."""


def pass_on(source: socket.socket, sink: socket.socket, change: Callable[[bytes], bytes]) -> None:
    """All that comes, with the byte at AT changed."""
    count = 0
    with suppress(OSError):
        while data := source.recv(4096):
            if count <= AT < count + len(data):
                at = AT - count
                data = data[:at] + change(data[at : at + 1]) + data[at + 1 :]
            count += len(data)
            sink.sendall(data)


@pytest.fixture(scope="module")
def talk(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(tmp_path_factory.mktemp("talk"))


@pytest.fixture
def server(talk: Path) -> Iterator[int]:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = int(free.getsockname()[1])
    process = subprocess.Popen([talk, "serve", str(port), "40"])
    yield port
    process.kill()
    process.wait()


def unchanged(byte: bytes) -> bytes:
    return byte


CHANGES: dict[str, Callable[[bytes], bytes]] = {
    "lost": lambda _: b"",
    "doubled": lambda byte: byte + byte,
    "another": lambda byte: bytes([byte[0] ^ 1]),
}


@pytest.mark.parametrize("to_server", [True, False], ids=["to the server", "to the client"])
@pytest.mark.parametrize("change", CHANGES)
def test_session_ends_with_its_first_wrong_byte(
    talk: Path, server: int, tmp_path: Path, change: str, to_server: bool
) -> None:
    said = run_through(talk, server, tmp_path, *[CHANGES[change], unchanged][:: 1 if to_server else -1])
    assert said["state"] == "garbled"


def test_session_goes_on_where_nothing_is_wrong(talk: Path, server: int, tmp_path: Path) -> None:
    said = run_through(talk, server, tmp_path, unchanged, unchanged)
    assert said["state"] == "ended"
    assert 64 * int(str(said["answered"])) > 2 * AT
    assert int(str(said["ticks"])) > 0


def run_through(
    talk: Path, server: int, tmp_path: Path, up: Callable[[bytes], bytes], down: Callable[[bytes], bytes]
) -> dict[str, object]:
    """What a session says whose bytes pass here: until it ends itself, or is long past AT."""
    file = tmp_path / "session.json"
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        client = subprocess.Popen([talk, "session", "-", "127.0.0.1", str(port), "4", str(file)])
        near, _ = listener.accept()
        assert wait_until(lambda: answers(server), 10, 0.05)
        with near, socket.create_connection(("127.0.0.1", server)) as far:
            threads = [threading.Thread(target=pass_on, args=args) for args in ((near, far, up), (far, near, down))]
            for thread in threads:
                thread.start()
            long_past = lambda: file.exists() and json.loads(file.read_text())["answered"] > 3 * AT // 64  # noqa: E731
            wait_until(lambda: client.poll() is not None or long_past(), 20, 0.02)
            client.terminate()
            client.wait(10)
            for each in (near, far):
                with suppress(OSError):
                    each.shutdown(socket.SHUT_RDWR)
            for thread in threads:
                thread.join(10)
    said: dict[str, object] = json.loads(file.read_text())
    return said


def answers(port: int) -> bool:
    with suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
        return True
    return False
