"""Random worlds. DIVHOOK_SIM_RUNS=20000 makes a long run of it (a hundred runs take about a second)."""

import os

import pytest
from chaos import Chaos

RUNS = int(os.environ.get("DIVHOOK_SIM_RUNS", "120"))


@pytest.mark.parametrize("seed", range(RUNS))
def test_every_rule_holds_whatever_happens(seed):
    Chaos(seed).run()
