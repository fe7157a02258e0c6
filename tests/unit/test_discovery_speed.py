import sys
from time import perf_counter

from discovery_hosts import DB, HOST_A, HOST_B, WEB, Wire

from divhook.core.discovery import Found, Outcome

CALLS = 20_000


def best_of_five_us(call) -> float:
    """Microseconds per call, in the best of five rounds: other processes only make it slower."""
    best = float("inf")
    for _ in range(5):
        start = perf_counter()
        for _ in range(CALLS):
            call()
        best = min(best, perf_counter() - start)
    return best / CALLS * 1e6


def test_known_neighbours_cost_microseconds(capsys):
    wire = Wire(HOST_A, HOST_B)
    wire.start_web(HOST_A)
    wire.start_db(HOST_B)
    host, now = wire.hosts[HOST_B], wire.now
    host.resolve(WEB, 1, DB, now)
    wire.settle()
    assert isinstance(host.resolve(WEB, 1, DB, now), Found)
    assert host.check_source(HOST_A, WEB, DB, now) is Outcome.DELIVER
    resolve_us = best_of_five_us(lambda: host.resolve(WEB, 1, DB, now, "frame"))
    check_us = best_of_five_us(lambda: host.check_source(HOST_A, WEB, DB, now, "frame"))
    with capsys.disabled():
        print(f"\nresolve of a known neighbour {resolve_us:.2f} µs, source check {check_us:.2f} µs")
    slack = 30 if sys.gettrace() else 3  # a slow or busy machine; one that measures coverage
    assert resolve_us < 2 * slack
    assert check_us < 4 * slack
