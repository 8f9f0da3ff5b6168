"""The accounts: computed from the journal's records, never kept. Pure.

A record is a JSON object with "event" and "at" (wall seconds). Steps are run-wide optimizer steps.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from ksupervise.core.clock import Life, timeline

Record = Mapping[str, Any]


@dataclass(frozen=True)
class AttemptAccount:
    """One life of the child, as `status --json` shows it.

    `started` and `ended` are wall times of the attempt's own machine; `seconds` is how long it lasted, or has lasted;
    `span` is when it began, began to train and ended on the journal's own timeline, in seconds, None for what did not
    happen yet. `at_least`: what it did last is not known, its steps and what is lost of them are what is known.
    `host`: its machine, "" if unknown. `life`: its parent's, see `core/clock.py`.
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
    at_least: bool = False
    seconds: float = 0.0
    host: str = ""
    life: str = ""
    span: tuple[float, float | None, float | None] = (0.0, None, None)

    def as_json(self) -> dict[str, Any]:
        """The documented fields."""
        names = "number cause detail exit signal started ended first_step last_step resumed_from lost_steps guarantee"
        return {name: getattr(self, name) for name in f"{names} at_least seconds host".split()}


@dataclass(frozen=True)
class Account:
    """The run's accounts.

    Attributes:
        attempts: oldest first.
        steps_executed: every trained step, repeated ones too.
        lost_steps: steps trained after the checkpoint that was resumed from, trained again.
        at_least: so many steps are known of; there may have been more.
        goodput: share of wall time spent on progress that was kept, 0..1, None before any step.
        checkpoint: the newest "committed" record, None before the first.
        clock_flags: what was wrong with the machines' clocks, in words.
    """

    attempts: tuple[AttemptAccount, ...] = ()
    steps_executed: int = 0
    lost_steps: int = 0
    at_least: bool = False
    goodput: float | None = None
    checkpoint: Record | None = field(default=None)
    clock_flags: tuple[str, ...] = ()


def account(records: Iterable[Record], now: float | None) -> Account:
    """The accounts of a whole journal, in whatever order its lives stand in it.

    `now`: wall time of the machine whose parent wrote last, and goes on; None if nobody is known to.
    """
    line = timeline(records)
    attempts: dict[tuple[int, int], _Attempt] = {}  # by number and life: two machines may have counted alike
    committed: Record | None = None
    times = iter(line.times)
    for index, life in enumerate(line.lives):
        for record in life.records:
            at = next(times)
            if record.get("event") == "committed":
                committed = record
            number = record.get("attempt")
            if isinstance(number, int):
                _attempt(attempts, number, index, life, record, at).enter(record, at, index)
    until = None
    if now is not None and line.lives:
        until = line.times[-1] + max(0.0, now - float(line.lives[-1].records[-1].get("at", now)))
    open_now = list(attempts.values())[-1:] if until is not None else []
    closed = [each.closed(until if each in open_now else None) for each in attempts.values()]
    return replace(_close(_with_losses(closed, committed), committed), clock_flags=line.flags)


def _attempt(
    attempts: dict[tuple[int, int], _Attempt], number: int, index: int, life: Life, record: Record, at: float
) -> _Attempt:
    """The attempt that a record of life `index` is about: its own one, or else one that was found lost."""
    mine = attempts.get((number, index))
    if mine is None and record.get("event") != "launched":
        mine = next((each for (known, _), each in reversed(attempts.items()) if known == number), None)
    if mine is None:
        account = AttemptAccount(number, float(record.get("at", 0.0)), host=life.host, life=life.name)
        mine = attempts[number, index] = _Attempt(index, replace(account, span=(at, None, None)))
    return mine


@dataclass
class _Attempt:
    """An attempt whose records are being entered.

    Attributes:
        life: index of the life that launched it.
        account: as far as it was entered.
        latest: its own last record: its wall time, its place on the timeline.
        known: newest step that a checkpoint of it has.
        own_end: its own parent saw it end.
        told: its control page, which outlives both, told how far it came.
    """

    life: int
    account: AttemptAccount
    latest: tuple[float, float] | None = None
    known: int | None = None
    own_end: bool = False
    told: bool = False

    def enter(self, record: Record, at: float, life: int) -> None:
        """One more record about it. `at`: its place on the timeline; `life`: who wrote it."""
        event, own = record.get("event"), life == self.life
        wall = float(record.get("at", 0.0))
        began, trained, ended = self.account.span
        if event == "launched":
            self.account = replace(self.account, started=wall, span=(at, None, None))
        elif event == "fit_began":
            self.account = replace(self.account, span=(began, at if trained is None else trained, ended))
        elif event == "resumed":  # of several (completed fits are put back first) the last one counts
            guarantee = str(record.get("guarantee", ""))
            self.account = replace(self.account, resumed_from=record.get("step"), guarantee=guarantee)
        elif event == "committed" and isinstance(record.get("step"), int):
            self.known = max(self.known or 0, record["step"])
        elif event == "attempt_ended" and (own or self._tells_more(record)):
            self._end(record, at, wall)
            self.own_end, self.told = own, "executed" in record
        if own and event != "attempt_ended":
            self.latest = (wall, at)

    def _tells_more(self, record: Record) -> bool:
        """Another parent found it lost. Who was there knows better; of two who were not, who found its traces."""
        return not self.own_end and (self.account.ended is None or "executed" in record)

    def _end(self, record: Record, at: float, wall: float) -> None:
        taken = ("cause", "detail", "exit", "signal", "first_step", "last_step", "executed")
        if "ended" in record:  # a lost one was entered later than it ended
            before = self.latest or (wall, at)
            wall = max(before[0], float(record["ended"]))
            at = before[1] + wall - before[0]
        span = (*self.account.span[:2], at)
        told = {name: record[name] for name in taken if name in record}
        self.account = replace(self.account, ended=wall, span=span, **told)

    def closed(self, until: float | None) -> AttemptAccount:
        """Its account. `until`: where on the timeline it is now, None if nobody is known to go on with it."""
        began, trained, ended = self.account.span
        alive = ended is None and until is not None
        end = ended if ended is not None else until
        if end is None:
            end = began if self.latest is None else self.latest[1]
        account = replace(self.account, seconds=max(0.0, end - began))
        if alive or self.own_end or self.told:
            return account
        if self.known is None:
            return replace(account, at_least=trained is not None)
        first = account.resumed_from or 0
        last = max(first, self.known)
        return replace(account, first_step=first, last_step=last, executed=last - first, at_least=True)


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


def _close(attempts: list[AttemptAccount], committed: Record | None) -> Account:
    executed = sum(attempt.executed for attempt in attempts)
    lost = sum(attempt.lost_steps for attempt in attempts)
    at_least = any(attempt.at_least for attempt in attempts)
    return Account(tuple(attempts), executed, lost, at_least, _goodput(attempts), committed)


def _goodput(attempts: list[AttemptAccount]) -> float | None:
    if not any(attempt.executed for attempt in attempts):
        return None
    useful = 0.0
    for attempt in attempts:
        began, trained, _ = attempt.span
        if trained is not None and attempt.executed:
            kept = 1.0 - min(1.0, attempt.lost_steps / attempt.executed)
            useful += max(0.0, began + attempt.seconds - trained) * kept
    end = max(attempt.span[0] + attempt.seconds for attempt in attempts)
    wall = end - attempts[0].span[0]
    return max(0.0, min(1.0, useful / wall)) if wall > 0 else None
