"""How often to stage and to commit: the terms, their ceilings and floors, and what never may happen."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ksupervise.core.cadence import (
    COPY,
    DISK,
    EVERY,
    FAILURES,
    OVERHEAD,
    SHORTEST,
    SHORTEST_TERM,
    TERMS,
    Costs,
    Hazard,
    pace,
)

RESNET50 = Costs(stage=0.08, persist=0.27, slowdown=0.5)  # on a CPU, with Adam: 307 MB of state
QUIET = Hazard()


def test_a_large_model_on_a_cpu() -> None:
    """At one percent: a stage about every ten seconds, a commit about every minute."""
    found = pace(RESNET50, QUIET, 0.01, 300.0)
    assert 8.0 <= found.stage <= 12.0
    assert found.stage_term == OVERHEAD
    assert found.commit == pytest.approx(math.sqrt(2 * (0.08 + 0.135) * 7200))
    assert found.commit_term == FAILURES


def test_what_costs_nothing_is_done_as_often_as_is_of_use() -> None:
    found = pace(Costs(), QUIET, 0.01, 300.0)
    assert (found.stage, found.stage_term) == (SHORTEST, SHORTEST_TERM)


def test_every_is_the_ceiling_of_both() -> None:
    found = pace(Costs(stage=30.0, persist=2.0), QUIET, 0.01, 60.0)
    assert (found.stage, found.stage_term) == (60.0, EVERY)
    assert (found.commit, found.commit_term) == (60.0, EVERY)
    assert pace(Costs(), QUIET, 0.01, 0.2).stage == 0.2, "also of the shortest"


def test_what_cannot_be_done_faster_exceeds_it() -> None:
    found = pace(Costs(stage=2.0, persist=10.0), QUIET, 0.01, 1.0)
    assert found.stage == pytest.approx(2.4)
    assert found.commit == pytest.approx(12.0)
    assert (found.stage_term, found.commit_term) == (COPY, DISK)


def test_machines_that_go_more_often_are_feared_more() -> None:
    often = Hazard(observed=3600.0, interruptions=5)
    assert pace(RESNET50, often, 0.01, 300.0).commit < pace(RESNET50, QUIET, 0.01, 300.0).commit
    assert Hazard(observed=24 * 3600.0).mttf > QUIET.mttf, "a day without one is evidence too"


def test_what_is_announced_is_feared_less() -> None:
    silent, announced = Hazard(7200.0, 4, 0), Hazard(7200.0, 4, 4)
    assert pace(RESNET50, announced, 0.01, 3000.0).commit > pace(RESNET50, silent, 0.01, 3000.0).commit
    assert Hazard(1e6, 1000, 1000).announced_share <= 0.9


SECONDS = st.floats(0.0, 1e4)


@given(SECONDS, SECONDS, st.floats(0, 1), SECONDS, st.integers(0, 50), st.floats(1e-5, 1), st.floats(0.01, 1e5))
def test_laws_of_the_pace(
    stage: float, persist: float, slowdown: float, observed: float, interruptions: int, overhead: float, every: float
) -> None:
    costs, hazard = Costs(stage, persist, slowdown), Hazard(observed, interruptions, interruptions // 2)
    found = pace(costs, hazard, overhead, every)
    assert found.stage_term in TERMS
    assert found.commit_term in TERMS
    assert 0 < found.stage <= found.commit
    assert found.stage >= 1.2 * stage * 0.999
    assert found.commit >= 1.2 * persist * 0.999
    assert found.commit <= max(every, 1.2 * persist, found.stage) * 1.001
    if {EVERY, COPY, DISK}.isdisjoint({found.stage_term, found.commit_term}):
        spent = stage / found.stage + costs.commit / found.commit
        assert spent <= overhead * 1.001, "the budget holds unless the user asked for more"


@given(SECONDS, SECONDS, st.floats(1.001, 10))
def test_it_follows_the_costs_in_both_directions(stage: float, persist: float, factor: float) -> None:
    cheap, dear = Costs(stage, persist), Costs(stage * factor, persist * factor)
    first, then = pace(cheap, QUIET, 0.01, 1e5), pace(dear, QUIET, 0.01, 1e5)
    assert first.stage <= then.stage * 1.0001
    assert first.commit <= then.commit * 1.0001
