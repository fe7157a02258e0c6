"""Labs for the tests that need real guests: one per session and mode, below a directory of their own."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from divhook.lab.lab import PLAIN, Lab


@pytest.fixture(scope="session")
def lab_directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("lab")


@pytest.fixture(scope="module")
def plain_lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    """Two hosts with plain bridges: the lab without divhook."""
    with Lab(tmp_path_factory.mktemp("plain"), hosts=2, mode=PLAIN) as lab:
        yield lab
