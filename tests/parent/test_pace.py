"""What was measured becomes intervals, on the page that the child goes by."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from typing import Any

import pytest

from ksupervise.core.cadence import TERMS, Hazard
from ksupervise.parent.pace import Pacer, hazard_of
from ksupervise.wire import PAGE, PHASE_EVALUATE, PHASE_TRAIN, Control


class Clock:
    """CLOCK_MONOTONIC, moved by the test."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(time, "monotonic", clock)
    return clock


@pytest.fixture
def control() -> Iterator[Control]:
    fd = os.memfd_create("page")
    os.ftruncate(fd, PAGE)
    control = Control(fd)
    control["phase"] = PHASE_TRAIN
    yield control
    control.close()
    os.close(fd)


def test_the_child_goes_by_the_page(clock: Clock, control: Control) -> None:
    pacer = Pacer(0.01, 300.0, [])
    pacer.tell(control)
    assert control["stage_every"] == pacer.pace.stage > 0
    pacer.staged(control, 0.1, cold=False)
    assert control["stage_every"] == pytest.approx(10.0)
    assert TERMS[control.integer("stage_term")] == "overhead"


def test_costs_are_followed_in_both_directions(clock: Clock, control: Control) -> None:
    pacer = Pacer(0.01, 300.0, [])
    for stall in [0.1] * 5 + [0.5] * 20:
        pacer.staged(control, stall, cold=False)
    assert control["stage_every"] == pytest.approx(50.0, rel=0.05)
    for stall in [0.1] * 20:
        pacer.staged(control, stall, cold=False)
    assert control["stage_every"] == pytest.approx(10.0, rel=0.05)


def test_a_cold_stage_says_little(clock: Clock, control: Control) -> None:
    pacer = Pacer(0.01, 300.0, [])
    pacer.staged(control, 0.4, cold=True)
    assert control["stage_every"] == pytest.approx(10.0), "a fourth of it, as long as nothing better is known"
    pacer.staged(control, 0.1, cold=False)
    pacer.staged(control, 9.9, cold=True)
    assert control["stage_every"] == pytest.approx(10.0)


def commit(pacer: Pacer, control: Control, clock: Clock, *, free: float, slowed: float) -> None:
    """Ten seconds of training at `free` steps a second, then a commit of two seconds at `slowed`."""
    control["executed"] = control.integer("executed") + int(10 * free)
    clock.now += 10
    pacer.commit_begins(control)
    control["executed"] = control.integer("executed") + int(2 * slowed)
    clock.now += 2
    pacer.commit_ended(control, 2.0)


def test_how_far_a_commit_slows_training_is_measured(clock: Clock, control: Control) -> None:
    pacer = Pacer(0.01, 3000.0, [])
    for _ in range(20):
        commit(pacer, control, clock, free=100, slowed=90)
    assert control["slowdown"] == pytest.approx(0.1, abs=0.02)
    often = control["commit_every"]
    for _ in range(20):
        commit(pacer, control, clock, free=100, slowed=20)
    assert control["slowdown"] == pytest.approx(0.8, abs=0.02)
    assert control["commit_every"] > often
    assert control["persist"] == pytest.approx(2.0)


def test_what_tells_nothing_changes_nothing(clock: Clock, control: Control) -> None:
    pacer = Pacer(0.01, 300.0, [])
    commit(pacer, control, clock, free=100, slowed=50)
    before = control["slowdown"]
    commit(pacer, control, clock, free=1, slowed=0)  # two steps in that time: no pace can be told from that
    assert control["slowdown"] == before
    control["phase"] = PHASE_EVALUATE
    commit(pacer, control, clock, free=100, slowed=0)
    assert control["slowdown"] == before, "a validation executes no step"


def record(event: str, at: float, **fields: Any) -> dict[str, Any]:
    return {"event": event, "at": at, **fields}


def test_interruptions_are_learned_from_the_journal() -> None:
    records = [
        record("launched", 0.0),
        record("attempt_ended", 100.0, cause="signal"),
        record("launched", 100.0),
        record("attempt_ended", 400.0, cause="preempted"),
        record("launched", 5000.0),
        record("attempt_ended", 5600.0, cause="lost"),
        record("launched", 6000.0),
    ]
    assert hazard_of(records) == Hazard(observed=1000.0, interruptions=2, announced=1)
    assert hazard_of([]) == Hazard()
    assert hazard_of([record("attempt_ended", 5.0, cause="lost")]).observed == 0.0
