"""How often to stage, and how often to commit: from what each costs and from how often machines go. Pure.

A *stage* guards against the death of the process and stops training while it is made; a *commit* guards against the
loss of the machine and slows training down while it lasts. Both are paid from one budget, `--overhead`.

The interval between commits is Young's (CACM 17, 1974; Daly, FGCS 22, 2006): √(2 · cost · mean time to failure). What
is announced (a preemption with notice) is saved when it comes, so only the rest of the failures counts:
√(2 · cost · MTTF / (1 - announced share)). Everything is worked out anew from each measurement, in both directions.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

SHORTEST = 2.0  # seconds between two stages, whatever they cost: a relaunch takes longer than that in any case
_BUSY = 1.2  # an interval is at least this many times what it is spent on
_PRIOR_MTTF = 7200.0  # seconds: one interruption in two hours is what spot machines and Colab do
_MOST_ANNOUNCED = 0.9  # share: some machine always goes without a word
_COMMITS_SHARE = 0.5  # of the budget that commits may take at most; stages have what commits leave


@dataclass(frozen=True)
class Costs:
    """What was measured, in seconds; 0 for what was not yet.

    Attributes:
        stage: for which a stage stops training.
        persist: that a commit takes.
        slowdown: share of that time by which training is slower, 0..1.
    """

    stage: float = 0.0
    persist: float = 0.0
    slowdown: float = 0.5

    @property
    def commit(self) -> float:
        """Seconds of training that a commit costs."""
        return self.persist * self.slowdown


@dataclass(frozen=True)
class Hazard:
    """Interruptions of the machine as this run met them.

    Attributes:
        observed: seconds that attempts lasted.
        interruptions: of them, ended by a preemption or a lost machine.
        announced: of those, with notice.
    """

    observed: float = 0.0
    interruptions: int = 0
    announced: int = 0

    @property
    def mttf(self) -> float:
        """Seconds between interruptions: the run's own experience behind one of the prior's."""
        return (_PRIOR_MTTF + self.observed) / (1 + self.interruptions)

    @property
    def announced_share(self) -> float:
        """Of the interruptions to come, those that will be announced; the prior's one is not."""
        return min(_MOST_ANNOUNCED, self.announced / (1 + self.interruptions))


@dataclass(frozen=True)
class Pace:
    """Seconds between stages and between commits, each with the term that binds it (one of `TERMS`)."""

    stage: float
    stage_term: str
    commit: float
    commit_term: str


SHORTEST_TERM, COPY, OVERHEAD, EVERY, DISK, FAILURES = TERMS = (
    "shortest",  # SHORTEST
    "copy",  # a stage takes most of the time
    "overhead",  # what --overhead allows
    "every",  # the ceiling, --every
    "disk",  # a commit takes most of the time
    "failures",  # how often machines go
)


def pace(costs: Costs, hazard: Hazard, overhead: float, every: float) -> Pace:
    """The intervals in force.

    Args:
        overhead: share of time that checkpoints may cost, 0..1.
        every: seconds, the ceiling of both. Only what cannot be done faster exceeds it.
    """
    unannounced = hazard.mttf / (1.0 - hazard.announced_share)
    commit, commit_term = _longest(
        (math.sqrt(2.0 * (costs.stage + costs.commit) * unannounced), FAILURES),
        (costs.commit / (overhead * _COMMITS_SHARE), OVERHEAD),
    )
    commit, commit_term = _bounded(commit, commit_term, every, (_BUSY * costs.persist, DISK))
    left = max(overhead - costs.commit / commit, overhead * (1.0 - _COMMITS_SHARE)) if commit else overhead
    stage, stage_term = _longest((SHORTEST, SHORTEST_TERM), (costs.stage / left, OVERHEAD))
    stage, stage_term = _bounded(stage, stage_term, every, (_BUSY * costs.stage, COPY))
    return Pace(stage, stage_term, max(commit, stage), commit_term)


def _bounded(seconds: float, term: str, ceiling: float, floor: tuple[float, str]) -> tuple[float, str]:
    """Not above the ceiling, and, whatever that says, not below the floor."""
    return _longest((seconds, term) if seconds <= ceiling else (ceiling, EVERY), floor)


def _longest(*terms: tuple[float, str]) -> tuple[float, str]:
    return max(terms, key=lambda each: each[0])
