"""What a lab's hosts are told in divhook.yaml."""

import pytest

from divhook.lab.errors import LabError
from divhook.lab.host import FASTPATH_VARIABLE, host_settings


@pytest.mark.parametrize(
    ("variable", "further", "text"),
    [
        (None, "", "uplink: up0\n"),
        ("on", "", "uplink: up0\nfastpath: on\n"),
        ("off", "queue: 7\n", "uplink: up0\nqueue: 7\nfastpath: off\n"),
        ("off", "fastpath: on\n", "uplink: up0\nfastpath: on\n"),
    ],
)
def test_the_environment_decides_on_the_fast_path_where_the_lab_does_not(
    monkeypatch: pytest.MonkeyPatch, variable: str | None, further: str, text: str
) -> None:
    monkeypatch.delenv(FASTPATH_VARIABLE, raising=False)
    if variable is not None:
        monkeypatch.setenv(FASTPATH_VARIABLE, variable)
    assert host_settings(further) == text


def test_a_mode_that_there_is_not_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(FASTPATH_VARIABLE, "of a test that is marked no_agent")
    with pytest.raises(LabError, match="not on or off"):
        host_settings()
