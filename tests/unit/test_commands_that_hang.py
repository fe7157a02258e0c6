"""nft, iptables and tc that take too long on a busy host, and end in the very moment when they are given up."""

import asyncio

import pytest

from divhook.adapters import rules
from divhook.adapters.links import wall


class EndsWhenGivenUp:
    returncode = 0

    async def communicate(self, _given: bytes = b"") -> tuple[bytes, bytes]:
        await asyncio.sleep(60)
        return b"", b""

    def kill(self) -> None:
        raise ProcessLookupError

    async def wait(self) -> int:
        return 0


@pytest.fixture(autouse=True)
def _hanging(monkeypatch: pytest.MonkeyPatch) -> None:
    async def start(*_command: str, **_options: object) -> EndsWhenGivenUp:
        return EndsWhenGivenUp()

    monkeypatch.setattr(asyncio, "create_subprocess_exec", start)
    monkeypatch.setattr(rules, "_TIMEOUT_S", 0.01)
    monkeypatch.setattr(wall, "_TC_TIMEOUT_S", 0.01)


def test_nft_that_hangs_is_told_as_such() -> None:
    with pytest.raises(rules.RulesError, match="took more than"):
        asyncio.run(rules._run("nft", "list", "tables"))


def test_tc_that_hangs_is_told_as_such() -> None:
    assert asyncio.run(wall._tc("qdisc", "show")) == (1, "tc did not answer")
