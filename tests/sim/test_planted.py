"""The simulator sees what it is there to see: each broken rule makes some run fail, under the invariant's number."""

import pytest
from chaos import Chaos
from simulator import InvariantError

from divhook.core.discovery.claims import Claims
from divhook.core.discovery.limits import HoldBudget
from divhook.core.discovery.resolve import Resolver
from divhook.core.discovery.seam import Seam, Stamps

SEEDS = range(300)
heard, withdraw, fence = Resolver.heard, Claims.withdraw, Claims._fence


def accept_lower_claims(self, claim, now, install=False, matched=False):
    entry = self.table.get(claim.address)
    if entry is not None:
        entry.claim = None
    return heard(self, claim, now, install, matched)


def never_fence(self, local, owner, now):
    pass


def never_free(self, local, now):
    pass


def fence_but_answer(self, local, owner, now):
    fence(self, local, owner, now)
    self._seam.active[owner.address] = local.claim


def claim_after_the_end(self, address, now, gone):
    claim = self._seam.active.get(address)
    withdraw(self, address, now, gone)
    if claim is not None:
        self._seam.active[address] = claim


def forget_stamps(self, stamp):
    pass


def never_repeat(self, interval_s, share):
    return 1e9


def give_frames_back_twice(self, queue):
    return tuple(queue)


def forget_own_claims(self, claim):
    pass


def failures():
    """Texts of the failures of run after run."""
    for seed in SEEDS:
        try:
            Chaos(seed).run()
        except InvariantError as error:
            yield str(error)
        except RuntimeError:
            pass  # a transition table refuses what the fault led to


@pytest.mark.parametrize(
    ("where", "name", "fault", "invariant"),
    [
        (Resolver, "heard", accept_lower_claims, "3"),
        (Resolver, "retire", forget_own_claims, "3"),
        (Claims, "_fence", never_fence, "6"),
        (Claims, "_free", never_free, "2"),
        (Claims, "_fence", fence_but_answer, "9"),
        (Claims, "withdraw", claim_after_the_end, "9"),
        (Stamps, "observe", forget_stamps, "3"),
        (Seam, "jittered", never_repeat, "6"),
        (HoldBudget, "drain", give_frames_back_twice, "5"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_planted_fault_is_found(monkeypatch, where, name, fault, invariant):
    monkeypatch.setattr(where, name, fault)
    found = set()
    for failure in failures():
        found.add(failure.split(":", 1)[0])
        if f"invariant {invariant}" in found:
            return
    pytest.fail(f"found only {found}")


def test_failure_names_its_seed_and_tells_the_story(monkeypatch):
    monkeypatch.setattr(Claims, "withdraw", claim_after_the_end)
    first, second, *story = next(failures()).splitlines()
    assert "claims what it does not run" in first
    assert second.startswith("seed ")
    assert any("start 10.3." in line for line in story)
