"""Labs for the tests that need real guests, below pytest's own directories.

`lab` and its `cast` live for the whole session: a test leaves hosts, agents and the cast as it found them.
"""

from collections.abc import Iterator

import pytest
from lab_cast import Cast

from bench.moves.traffic import build
from divhook.lab.guest import GuestSpec, Nic
from divhook.lab.lab import NETWORK, PLAIN, Lab


@pytest.fixture(scope="module")
def plain_lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    """Two hosts with plain bridges: the lab without divhook."""
    with Lab(tmp_path_factory.mktemp("plain"), hosts=2, mode=PLAIN) as lab:
        yield lab


@pytest.fixture(scope="session")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    """Two hosts with libvirtd and agent, and the cells of policies/cells. Guests have /usr/bin/talk (bench/moves).

    Whatever is on the wire is declared; without a policy that is of no consequence.
    """
    talk = build(tmp_path_factory.mktemp("programs"))
    settings = f"external:\n  on_link: [{{prefix: {NETWORK}.0/24}}]\n"
    with Lab(tmp_path_factory.mktemp("lab"), hosts=2, programs=(talk,), settings=settings) as lab:
        yield lab


@pytest.fixture(scope="session")
def cast(lab: Lab) -> Cast:
    places = {"web1": ("A", "shop", "web"), "web2": ("B", "shop", "web"), "db1": ("B", "shop", "db")}
    places["other1"] = ("A", "lab", "web")
    wanted = [(GuestSpec(name, (Nic(cell, subnet),)), host) for name, (host, cell, subnet) in places.items()]
    guests = lab.start_all(wanted)
    for guest in guests:
        guest.wait_address()
    return Cast(*guests)
