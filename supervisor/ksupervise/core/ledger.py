"""The accounts: computed from the journal's records, never kept. Pure.

A record is a JSON object with "event" and "at" (wall seconds). Steps are run-wide optimizer steps.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

Record = Mapping[str, Any]


@dataclass(frozen=True)
class AttemptAccount:
    """One life of the child, as `status --json` shows it."""

    number: int
    started: float
    ended: float | None = None
    cause: str | None = None
    detail: str = ""
    exit: int | None = None
    signal: int | None = None
    first_step: int | None = None
    last_step: int | None = None
    resumed_from: int | None = None
    guarantee: str = ""
    executed: int = 0
    lost_steps: int = 0
    trained_from: float | None = None

    def as_json(self) -> dict[str, Any]:
        """The documented fields."""
        names = "number cause detail exit signal started ended first_step last_step resumed_from lost_steps guarantee"
        return {name: getattr(self, name) for name in names.split()}


@dataclass(frozen=True)
class Account:
    """The run's accounts.

    Attributes:
        attempts: oldest first.
        steps_executed: every trained step, repeated ones too.
        lost_steps: steps trained after the checkpoint that was resumed from, trained again.
        goodput: share of wall time spent on progress that was kept, 0..1, None before any step.
        checkpoint: the newest "committed" record, None before the first.
    """

    attempts: tuple[AttemptAccount, ...] = ()
    steps_executed: int = 0
    lost_steps: int = 0
    goodput: float | None = None
    checkpoint: Record | None = field(default=None)


def account(records: Iterable[Record], now: float) -> Account:
    """The accounts of a whole journal, as of wall time `now`."""
    attempts: dict[int, AttemptAccount] = {}
    committed: Record | None = None
    for record in records:
        if record.get("event") == "committed":
            committed = record
        number = record.get("attempt")
        if isinstance(number, int):
            current = attempts.get(number) or AttemptAccount(number, float(record.get("at", now)))
            attempts[number] = _enter(current, record)
    return _close(_with_losses(list(attempts.values()), committed), committed, now)


def _enter(attempt: AttemptAccount, record: Record) -> AttemptAccount:
    """`attempt` with one more of its records entered."""
    event, at = record.get("event"), float(record.get("at", 0.0))
    if event == "launched":
        return replace(attempt, started=at)
    if event == "fit_began":
        return replace(attempt, trained_from=attempt.trained_from or at)
    if event == "resumed":  # of several (completed fits are put back first) the last one counts
        return replace(attempt, resumed_from=record.get("step"), guarantee=str(record.get("guarantee", "")))
    if event == "attempt_ended":
        taken = ("cause", "detail", "exit", "signal", "first_step", "last_step", "executed")
        ended = float(record.get("ended", at))  # a lost one was entered later than it ended
        return replace(attempt, ended=ended, **{name: record[name] for name in taken if name in record})
    return attempt


def _with_losses(attempts: list[AttemptAccount], committed: Record | None) -> list[AttemptAccount]:
    """Lost work of each attempt: what it began beyond the point the next one resumed from."""
    newest = committed.get("step", 0) if committed else 0
    point: int | None = None
    out = []
    for attempt in reversed(attempts):
        if attempt.last_step is not None and attempt.cause != "completed":
            kept = newest if point is None else point
            out.append(replace(attempt, lost_steps=max(0, attempt.last_step - kept)))
        else:
            out.append(attempt)
        if attempt.first_step is not None or attempt.resumed_from is not None:
            point = attempt.resumed_from or 0
    return out[::-1]


def _close(attempts: list[AttemptAccount], committed: Record | None, now: float) -> Account:
    executed = sum(attempt.executed for attempt in attempts)
    lost = sum(attempt.lost_steps for attempt in attempts)
    return Account(tuple(attempts), executed, lost, _goodput(attempts, now), committed)


def _goodput(attempts: list[AttemptAccount], now: float) -> float | None:
    if not any(attempt.executed for attempt in attempts):
        return None
    useful = 0.0
    for attempt in attempts:
        if attempt.trained_from is not None and attempt.executed:
            kept = 1.0 - min(1.0, attempt.lost_steps / attempt.executed)
            useful += ((attempt.ended or now) - attempt.trained_from) * kept
    wall = (attempts[-1].ended or now) - attempts[0].started
    return max(0.0, min(1.0, useful / wall)) if wall > 0 else None
