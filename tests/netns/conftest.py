"""Fixtures of the netns tier."""

import os
from collections.abc import Iterator

import pytest
from bare_fixtures import bare
from host_bench import Bench

__all__ = ["bare"]


@pytest.fixture
def bench() -> Iterator[Bench]:
    made = Bench(f"ka{os.getpid() % 10000}")
    try:
        made.cable()
        yield made
    finally:
        made.remove()


@pytest.fixture
def laid_out(bench: Bench) -> Bench:
    """divbr0 with two ports and the marker; no netfilter rules, no agent."""
    bench.on_host(bench.lay_out())
    return bench


@pytest.fixture
def ruled(laid_out: Bench) -> Bench:
    """The same with the rules."""
    laid_out.on_host(laid_out.set_rules())
    return laid_out
