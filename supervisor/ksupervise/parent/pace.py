"""What stages and commits cost, as measured while they happen; and the intervals that follow (`core/cadence.py`)."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from ksupervise.core.cadence import TERMS, Costs, Hazard, Pace, pace
from ksupervise.wire import PHASE_TRAIN, Control

_WEIGHT = 0.3  # of a new measurement against what was known
_ENOUGH = 3.0  # steps that a commit must last for their pace to tell anything
_COLD = 4.0  # how much dearer memory is at its first use
_MACHINE = ("preempted", "lost")  # causes that took the machine, not only the process


@dataclass(frozen=True)
class _Mark:
    """Where the training stood at a time."""

    at: float
    executed: int
    epoch: int
    training: bool

    @classmethod
    def of(cls, control: Control) -> _Mark:
        training = control.integer("phase") == PHASE_TRAIN
        return cls(time.monotonic(), control.integer("executed"), control.integer("epoch"), training)

    def pace_until(self, end: _Mark) -> float | None:
        """Steps a second, None if something else was done in between."""
        if not (self.training and end.training) or self.epoch != end.epoch or end.at <= self.at:
            return None
        return (end.executed - self.executed) / (end.at - self.at)


class Pacer:
    """Keeps the costs of one run, and writes the intervals to the attempt's control page.

    Attributes:
        pace: the intervals in force.
        committed_at: CLOCK_MONOTONIC second of the last commit of this parent, None before the first.
    """

    def __init__(self, overhead: float, every: float, records: Iterable[Mapping[str, Any]]) -> None:
        """`records`: the journal so far."""
        self._overhead = overhead
        self._every = every
        self._began = time.monotonic()
        self._earlier = hazard_of(records)
        self._costs = Costs()
        self._free: float | None = None  # steps a second while nothing is committed
        self._since: _Mark | None = None  # the last commit's end
        self._commit_began: _Mark | None = None
        self.committed_at: float | None = None
        self.pace = self._worked_out()

    @property
    def expected(self) -> float:
        """Seconds that the next commit may take."""
        return self._costs.persist

    def staged(self, control: Control, stall: float, *, cold: bool) -> None:
        """A stage stopped training for `stall` seconds; a `cold` one costs several times what the next ones will."""
        if not cold:
            self._costs = replace(self._costs, stage=_towards(self._costs.stage, stall))
        elif not self._costs.stage:
            self._costs = replace(self._costs, stage=stall / _COLD)
        self.tell(control)

    def commit_begins(self, control: Control) -> None:
        """From now on something is persisted."""
        mark = _Mark.of(control)
        free = self._since.pace_until(mark) if self._since is not None else None
        if free:
            self._free = free
        self._commit_began = mark

    def commit_ended(self, control: Control, seconds: float) -> None:
        """It took so many seconds."""
        self._costs = replace(self._costs, persist=_towards(self._costs.persist, seconds))
        end, begin = _Mark.of(control), self._commit_began
        slowed = begin.pace_until(end) if begin is not None else None
        if slowed is not None and self._free and self._free * seconds >= _ENOUGH:
            slowdown = min(1.0, max(0.0, 1.0 - slowed / self._free))
            self._costs = replace(self._costs, slowdown=_towards(self._costs.slowdown, slowdown))
        self._since, self._commit_began = end, None
        self.tell(control)

    def tell(self, control: Control) -> None:
        """Write what is in force to the page: the child goes by it, and `status` shows it."""
        self.pace = self._worked_out()
        control["stage_every"], control["stage_term"] = self.pace.stage, TERMS.index(self.pace.stage_term)
        control["commit_every"], control["commit_term"] = self.pace.commit, TERMS.index(self.pace.commit_term)
        control["persist"], control["slowdown"] = self._costs.persist, self._costs.slowdown
        control["stage_seconds"] = self._costs.stage
        control["mttf"] = self._hazard().mttf

    def _worked_out(self) -> Pace:
        return pace(self._costs, self._hazard(), self._overhead, self._every)

    def _hazard(self) -> Hazard:
        return replace(self._earlier, observed=self._earlier.observed + time.monotonic() - self._began)


def _towards(known: float, measured: float) -> float:
    return measured if not known else known + _WEIGHT * (measured - known)


def hazard_of(records: Iterable[Mapping[str, Any]]) -> Hazard:
    """The interruptions of the machine that a journal tells of."""
    observed, interruptions, announced, began = 0.0, 0, 0, None
    ended_before: set[int] = set()  # attempts: another machine may have found one lost that told its end itself
    for record in records:
        if record["event"] == "launched":
            began = float(record["at"])
        elif record["event"] == "attempt_ended" and record.get("attempt") not in ended_before:
            ended_before |= {record["attempt"]} if "attempt" in record else set()
            ended = float(record.get("ended", record["at"]))
            observed += max(0.0, ended - began) if began is not None else 0.0
            began = None
            interruptions += record.get("cause") in _MACHINE
            announced += record.get("cause") == "preempted"
    return Hazard(observed, interruptions, announced)
