"""Which checkpoints stay, and why. Pure: from a list to a list.

A checkpoint stays while one policy or another wants it. Each policy has a rank: what a cap on bytes or a full disk
takes first. Within a rank the oldest goes first.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import IntEnum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from typing import Any

    from ksupervise.store.checkpoint import Checkpoint


COMPLETED_FITS = 4 * 1024**3  # bytes that the final states of completed fits may take
MINUTE, HOUR = 60.0, 3600.0  # seconds


@dataclass(frozen=True)
class Retention:
    """What is kept besides what must be kept.

    Attributes:
        newest: so many of the newest, at least 1.
        best: name of a monitored value and "min" or "max": the checkpoint with the best one. None for none.
        every: ends of epochs whose number is a multiple of it. None for none.
        bytes: what all checkpoints together may take; beyond it optional ones go. None for no cap.
        ages: seconds. For each, one checkpoint that much older than the newest: what poisoned the training
            (a NaN that nobody saw, a broken batch) has not reached it.

    Raises:
        ValueError: a value is out of bounds.
    """

    newest: int = 3
    best: tuple[str, str] | None = None
    every: int | None = None
    bytes: int | None = None
    ages: tuple[float, ...] = (10 * MINUTE, HOUR)

    def __post_init__(self) -> None:
        if self.newest < 1:
            raise ValueError("at least one checkpoint must be kept")
        if self.best is not None and self.best[1] not in ("min", "max"):
            raise ValueError(f"{self.best[1]!r} is neither min nor max")
        if (self.every is not None and self.every < 1) or (self.bytes is not None and self.bytes < 1):
            raise ValueError("every and bytes begin at 1")
        if not all(0 < age < math.inf for age in self.ages):
            raise ValueError("an age is longer than nothing")


def retention_from_json(values: Mapping[str, Any]) -> Retention:
    """The Retention that `dataclasses.asdict` and JSON made `values` of. Raises TypeError, ValueError for another's."""
    plain: Any = {name: tuple(value) if isinstance(value, list) else value for name, value in values.items()}
    return Retention(**plain)


class Rank(IntEnum):
    """How dear a checkpoint is: the lowest goes first."""

    NONE = 0  # no policy wants it
    AGE = 1
    EVERY = 2
    BEST = 3
    NEWEST = 4
    SECOND = 5  # a cap leaves the newest two; only a full disk takes the second
    LAW = 6  # what the run needs to go on: nothing takes it


@dataclass(frozen=True)
class Reason:
    """Why a checkpoint stays: in words for people, and how dear that makes it."""

    words: str
    rank: Rank


def to_keep(
    checkpoints: Sequence[Checkpoint], retention: Retention | int, cap: int = COMPLETED_FITS
) -> list[Checkpoint]:
    """The checkpoints that stay, newest first: those that a policy wants, and those that are pinned.

    Pinned are, of every completed fit, the newest final state and the newest end of an epoch (raised
    epochs go on from there: a final state may hold EMA- or best-overwritten weights), and the newest
    checkpoint of the newest fit; of that also the newest that is not approximate (see `core/resume.py`).

    Args:
        checkpoints: all valid ones, newest first.
        retention: the policies; a number stands for so many of the newest and nothing else.
        cap: bytes. When completed fits take more, the older ones lose the end of their last epoch.

    Raises:
        ValueError: `retention` is less than 1.
    """
    return [each for each, reasons in why_kept(checkpoints, retention, cap) if reasons]


def why_kept(
    checkpoints: Sequence[Checkpoint], retention: Retention | int, cap: int = COMPLETED_FITS
) -> list[tuple[Checkpoint, tuple[Reason, ...]]]:
    """Each of `checkpoints` with the reasons for which it stays, none for one that goes. Raises as `to_keep`."""
    retention = as_retention(retention)
    reasons = _reasons(checkpoints, retention, cap)
    if retention.bytes is not None:
        for number in _beyond(checkpoints, reasons, retention.bytes):
            reasons[number] = []
    return [(each, tuple(why)) for each, why in zip(checkpoints, reasons, strict=True)]


def to_free(checkpoints: Sequence[Checkpoint], retention: Retention | int) -> list[Checkpoint]:
    """All that may go when the disk is full, in the order in which it goes. Raises as `to_keep`.

    What no policy wants is first, then what is optional as ranked, last of all the second newest. The newest and
    what is pinned stay.
    """
    reasons = _reasons(checkpoints, as_retention(retention), COMPLETED_FITS)
    return [checkpoints[number] for number in _cheapest_first(reasons, Rank.SECOND)]


def as_retention(retention: Retention | int) -> Retention:
    """The policies that a mere number stands for. Raises ValueError if it is less than 1."""
    return retention if isinstance(retention, Retention) else Retention(newest=retention, ages=())


def to_thin(
    checkpoints: Sequence[Checkpoint], retention: Retention | int, cap: int = COMPLETED_FITS
) -> list[Checkpoint]:
    """Final states of completed fits beyond `cap` bytes whose variables need not be kept, oldest first.

    A later fit has trained the same model further: to go on from there, what its callbacks and its History hold
    suffices. The last state of each model always stays whole, and so do the newest and what is kept as the best or
    as every k-th.
    """
    retention = as_retention(retention)
    last: dict[int, int] = {}  # model → the newest fit that trained it
    for each in checkpoints:
        fit, model = each.manifest.position.fit, _model_of(each)
        last[model] = max(last.get(model, fit), fit)
    total, beyond = 0, []
    for number, (each, reasons) in enumerate(why_kept(checkpoints, retention, cap)):
        if each.manifest.position.kind != "final":
            continue
        total += each.manifest.size
        superseded = last[_model_of(each)] > each.manifest.position.fit
        wanted = number < retention.newest or any(reason.rank in (Rank.EVERY, Rank.BEST) for reason in reasons)
        if total > cap and superseded and not wanted and not each.manifest.extra.get("thin"):
            beyond.append(each)
    return beyond[::-1]


def monitored(checkpoint: Checkpoint, name: str) -> float | None:
    """The value of that name at the end of the epoch that it stands at; None if there is none, or it is not finite."""
    values = checkpoint.manifest.extra.get("monitored")
    value = values.get(name) if isinstance(values, dict) else None
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return value if -math.inf < value < math.inf else None


def _reasons(checkpoints: Sequence[Checkpoint], retention: Retention, cap: int) -> list[list[Reason]]:
    """For each checkpoint why it stays, a cap on bytes left out of account."""
    reasons: list[list[Reason]] = [[] for _ in checkpoints]
    for number in range(min(retention.newest, len(checkpoints))):
        rank = (Rank.LAW, Rank.SECOND, Rank.NEWEST)[min(number, 2)]
        reasons[number].append(Reason("newest", rank))
    if retention.best is not None:
        best = _best(checkpoints, *retention.best)
        if best is not None:
            reasons[best].append(Reason(f"best {retention.best[0]}", Rank.BEST))
    if retention.every is not None:
        for number in _every(checkpoints, retention.every):
            words = "every epoch" if retention.every == 1 else f"every {retention.every} epochs"
            reasons[number].append(Reason(words, Rank.EVERY))
    for age in retention.ages:
        for number, words in _aged(checkpoints, age):
            reasons[number].append(Reason(words, Rank.AGE))
    for number, words in _pinned(checkpoints, cap).items():
        if number or words == "completed fit":  # the newest of all stays in any case
            reasons[number].append(Reason(words, Rank.LAW))
    return reasons


def _beyond(checkpoints: Sequence[Checkpoint], reasons: Sequence[Sequence[Reason]], limit: int) -> Iterator[int]:
    """Those wanted ones that must go so that the others take at most `limit` bytes, as far as that can be."""
    total = sum(each.manifest.size for each, why in zip(checkpoints, reasons, strict=True) if why)
    for number in _cheapest_first(reasons, Rank.NEWEST):
        if total <= limit:
            return
        if reasons[number]:
            total -= checkpoints[number].manifest.size
            yield number


def _cheapest_first(reasons: Sequence[Sequence[Reason]], dearest: Rank) -> list[int]:
    """Numbers of the checkpoints up to that rank, the lowest rank first and in each the oldest first."""
    ranks = [max((reason.rank for reason in why), default=Rank.NONE) for why in reasons]
    optional = [number for number, rank in enumerate(ranks) if rank <= dearest]
    return sorted(optional, key=lambda number: (ranks[number], -number))


def _best(checkpoints: Sequence[Checkpoint], name: str, direction: str) -> int | None:
    """Number of the one with the best value of that name; of equal ones the oldest. A NaN is no value."""
    best: tuple[float, int] | None = None
    for number, each in enumerate(checkpoints):
        value = monitored(each, name)
        if value is not None and not each.manifest.extra.get("thin"):
            entry = (value if direction == "max" else -value, number)
            best = entry if best is None else max(best, entry)
    return None if best is None else best[1]


def _every(checkpoints: Sequence[Checkpoint], every: int) -> Iterator[int]:
    """Ends of every so many epochs, of each fit; of one that was trained twice the newer."""
    seen = set()
    for number, each in enumerate(checkpoints):
        at = each.manifest.position
        end = (at.fit, at.epoch, at.kind)
        if at.kind != "batch" and at.epoch and at.epoch % every == 0 and end not in seen:
            seen.add(end)
            yield number


def _aged(checkpoints: Sequence[Checkpoint], age: float) -> Iterator[tuple[int, str]]:
    """The one that is old enough, and the one that will follow it: two are enough for ever.

    Old enough is the newest that is `age` older than the newest of all. What follows it is the oldest that is not:
    it stays until it is old enough itself, and by then it is replaced by one that was new when it became so. So,
    with gaps of up to g between checkpoints, the one that is old enough is between `age` and 2 `age` + g old.

    A clock that was put back parts the list. Only what lies after that can follow; what lies before counts as not
    older than can be proved. If none is proved to be old enough, the oldest of all is as good as it gets.
    """
    if not checkpoints:
        return
    ages, since_jump = _ages(checkpoints)
    following = max(number for number, each in enumerate(ages[:since_jump]) if each < age)
    old = next((number for number, each in enumerate(ages) if each >= age), len(ages) - 1)
    if old != following:
        yield old, _span(age)
    yield following, f"next {_span(age)}"


def _ages(checkpoints: Sequence[Checkpoint]) -> tuple[list[float], int]:
    """How much older than the newest each is at least, in seconds; and how many lie after the clock was last put back.

    The order is the list's. Of two neighbours the clock's difference counts only if it goes forward.
    """
    ages, since_jump = [0.0], 0
    for number in range(1, len(checkpoints)):
        passed = checkpoints[number - 1].manifest.created - checkpoints[number].manifest.created
        ages.append(ages[-1] + max(0.0, passed))
        if passed < 0 and not since_jump:
            since_jump = number
    return ages, since_jump or len(ages)


def _span(seconds: float) -> str:
    """`10 min`, `1 h`."""
    if seconds % HOUR == 0:
        return f"{seconds / HOUR:.0f} h"
    return f"{seconds / MINUTE:.0f} min" if seconds % MINUTE == 0 else f"{seconds:g} s"


def _model_of(checkpoint: Checkpoint) -> int:
    """The first fit of the model that was trained; one that is not known is its own."""
    return int(checkpoint.manifest.extra.get("model", checkpoint.manifest.position.fit))


def _pinned(checkpoints: Sequence[Checkpoint], cap: int) -> dict[int, str]:
    """Numbers of what the run needs to go on, and why."""
    positions = [each.manifest.position for each in checkpoints]
    newest: dict[tuple[int, str], int] = {}  # the first seen is the newest
    for number, position in enumerate(positions):
        newest.setdefault((position.fit, position.kind), number)
    completed = {position.fit for position in positions if position.kind == "final"}
    pinned, total = {}, 0
    for number in sorted(number for (fit, kind), number in newest.items() if fit in completed and kind != "batch"):
        total += checkpoints[number].manifest.size
        if total <= cap or positions[number].kind == "final":
            pinned[number] = "completed fit"
    if positions:
        last_fit = max(position.fit for position in positions)
        of_it = [number for number, each in enumerate(positions) if each.fit == last_fit]
        exact = (number for number in of_it if not checkpoints[number].manifest.extra.get("approximate"))
        pinned.setdefault(of_it[0], "newest of its fit")
        pinned.setdefault(next(exact, of_it[0]), "newest exact")
    return pinned
