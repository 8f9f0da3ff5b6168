"""The accounts: computed from the journal's records, never kept. Pure.

A record is a JSON object with "event" and "at" (wall seconds). Steps are run-wide optimizer steps.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from ksupervise.core.clock import timeline

Record = Mapping[str, Any]


@dataclass(frozen=True)
class AttemptAccount:
    """One life of the child, as `status --json` shows it.

    `started` and `ended` are wall times; `span` is when it began, began to train and ended on the journal's own
    timeline, in seconds, None for what did not happen yet.
    """

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
    span: tuple[float, float | None, float | None] = (0.0, None, None)

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
        clock_flags: what was wrong with the machine's clocks, in words.
    """

    attempts: tuple[AttemptAccount, ...] = ()
    steps_executed: int = 0
    lost_steps: int = 0
    goodput: float | None = None
    checkpoint: Record | None = field(default=None)
    clock_flags: tuple[str, ...] = ()


def account(records: Iterable[Record], now: float) -> Account:
    """The accounts of a whole journal, as of wall time `now`."""
    known = list(records)
    line = timeline(known)
    attempts: dict[int, AttemptAccount] = {}
    committed: Record | None = None
    latest: dict[int, tuple[float, float]] = {}  # each attempt's last record: its wall time, its place on the timeline
    for record, at in zip(known, line.times, strict=True):
        if record.get("event") == "committed":
            committed = record
        number = record.get("attempt")
        if isinstance(number, int):
            wall = float(record.get("at", now))
            current = attempts.get(number) or AttemptAccount(number, wall, span=(at, None, None))
            attempts[number] = _enter(current, record, at, latest.get(number, (wall, at)))
            latest[number] = (wall, at)
    until = line.times[-1] + max(0.0, now - float(known[-1].get("at", now))) if known else 0.0
    account = _close(_with_losses(list(attempts.values()), committed), committed, until)
    return replace(account, clock_flags=line.flags)


def _enter(attempt: AttemptAccount, record: Record, at: float, before: tuple[float, float]) -> AttemptAccount:
    """`attempt` with one more of its records entered. `at`: its place on the timeline; `before`: that of the last."""
    event, wall = record.get("event"), float(record.get("at", 0.0))
    began, trained, _ = attempt.span
    if event == "launched":
        return replace(attempt, started=wall, span=(at, None, None))
    if event == "fit_began":
        return replace(attempt, span=(began, at if trained is None else trained, None))
    if event == "resumed":  # of several (completed fits are put back first) the last one counts
        return replace(attempt, resumed_from=record.get("step"), guarantee=str(record.get("guarantee", "")))
    if event == "attempt_ended":
        taken = ("cause", "detail", "exit", "signal", "first_step", "last_step", "executed")
        ended, end = wall, at
        if "ended" in record:  # a lost one was entered later than it ended
            ended = float(record["ended"])
            end = before[1] + max(0.0, ended - before[0])
        span = (began, trained, end)
        return replace(attempt, ended=ended, span=span, **{name: record[name] for name in taken if name in record})
    return attempt


def _with_losses(attempts: list[AttemptAccount], committed: Record | None) -> list[AttemptAccount]:
    """Lost work of each attempt: what it began beyond the earliest point that a later one resumed from."""
    newest = committed.get("step", 0) if committed else 0
    point: int | None = None
    out = []
    for attempt in reversed(attempts):
        if attempt.last_step is not None and attempt.cause != "completed":
            kept = newest if point is None else point
            kept = max(kept, attempt.first_step or 0)  # what was there before it is not its own
            out.append(replace(attempt, lost_steps=max(0, attempt.last_step - kept)))
        else:
            out.append(attempt)
        if attempt.first_step is not None or attempt.resumed_from is not None:
            resumed = attempt.resumed_from or 0
            point = resumed if point is None else min(point, resumed)
    return out[::-1]


def _close(attempts: list[AttemptAccount], committed: Record | None, until: float) -> Account:
    executed = sum(attempt.executed for attempt in attempts)
    lost = sum(attempt.lost_steps for attempt in attempts)
    return Account(tuple(attempts), executed, lost, _goodput(attempts, until), committed)


def _goodput(attempts: list[AttemptAccount], until: float) -> float | None:
    if not any(attempt.executed for attempt in attempts):
        return None
    useful = 0.0
    for attempt in attempts:
        _, trained, ended = attempt.span
        if trained is not None and attempt.executed:
            kept = 1.0 - min(1.0, attempt.lost_steps / attempt.executed)
            useful += ((until if ended is None else ended) - trained) * kept
    last = attempts[-1].span[2]
    wall = (until if last is None else last) - attempts[0].span[0]
    return max(0.0, min(1.0, useful / wall)) if wall > 0 else None
