"""Where a fit goes on: chosen from the positions of the valid checkpoints. Pure."""

from __future__ import annotations

from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import Enum
from typing import Generic, Protocol, TypeVar


class Known(Protocol):
    """What is known of one checkpoint."""

    @property
    def seq(self) -> int:
        """Its number in the run."""

    @property
    def fit(self) -> int:
        """Ordinal of the fit it was made in."""

    @property
    def epoch(self) -> int:
        """Epochs done when it was made."""

    @property
    def kind(self) -> str:
        """ "batch", "epoch" or "final"."""

    @property
    def epochs(self) -> int:
        """Epochs that the fit had been asked for."""

    @property
    def stopped(self) -> bool:
        """The script's callbacks had ended the fit early."""

    @property
    def thin(self) -> bool:
        """Only the rest of the final state was kept: a later fit has trained the same model further."""

    @property
    def approximate(self) -> bool:
        """Its place in the data cannot be gone back to: the rest of that epoch would be drawn in a new order."""


class Mode(Enum):
    """What a fit does first."""

    FRESH = "fresh"  # nothing is known of it: train from the start
    RESUME = "resume"  # put a checkpoint back and go on
    SKIP = "skip"  # it was complete: put its final state back and return


_LOST_BEFORE_APPROXIMATE = 2

K = TypeVar("K", bound=Known)


@dataclass(frozen=True)
class Plan(Generic[K]):
    """The mode, and the checkpoint it needs. `refusal` says why neither would be right.

    `passed_over`: a newer one that is approximate. `unsaved`: an exception ended the fit, and the script went on; what
    later fits made counts, so this one is trained without checkpoints until it ends in another way.
    """

    mode: Mode
    checkpoint: K | None = None
    refusal: str = ""
    passed_over: K | None = None
    unsaved: bool = False


def plan(
    fit: int,
    epochs: int,
    known: Sequence[K],
    begun: Mapping[int, int] | None = None,
    abandoned: Container[int] = (),
) -> Plan[K]:
    """How fit number `fit`, asked for `epochs` epochs, begins. `known` is newest first.

    A checkpoint older than the newest of an earlier fit is of no use: that fit was trained further
    since, so everything after it has to be trained again.

    `begun`: how many attempts have begun this fit from which checkpoint (its seq; 0 from nothing). The newest that is
    not approximate is gone back to, until the same epoch was lost twice: then the newest of all, so that a run that
    is preempted more often than an epoch takes comes to its end. `abandoned`: fits that an exception ended.
    """
    found = _choose(fit, epochs, known, begun)
    later = any(checkpoint.fit > fit for checkpoint in known)
    return replace(found, unsaved=True) if fit in abandoned and later and found.mode is not Mode.SKIP else found


def _choose(fit: int, epochs: int, known: Sequence[K], begun: Mapping[int, int] | None) -> Plan[K]:
    found = _plan(fit, epochs, [each for each in known if not (each.approximate and each.fit == fit)])
    since = max((checkpoint.seq for checkpoint in known if checkpoint.fit < fit), default=0)
    floor = found.checkpoint.seq if found.checkpoint is not None else since
    newer = next((each for each in known if each.approximate and each.fit == fit and each.seq > floor), None)
    if newer is None or found.mode is Mode.SKIP or found.refusal:
        return found
    lost = (begun or {}).get(0 if found.checkpoint is None else found.checkpoint.seq, 0)
    lost += found.checkpoint is not None  # the attempt that made it lost that epoch as well
    return (
        _within(epochs, newer, Mode.RESUME) if lost >= _LOST_BEFORE_APPROXIMATE else replace(found, passed_over=newer)
    )


def _plan(fit: int, epochs: int, known: Sequence[K]) -> Plan[K]:
    since = max((checkpoint.seq for checkpoint in known if checkpoint.fit < fit), default=0)
    mine = [checkpoint for checkpoint in known if checkpoint.fit == fit and checkpoint.seq > since]
    if not mine:
        return Plan(Mode.FRESH)
    final = next((checkpoint for checkpoint in mine if checkpoint.kind == "final"), None)
    if final is None:
        return _within(epochs, mine[0], Mode.RESUME)
    if final.epochs == epochs or (final.stopped and epochs > final.epoch):
        return Plan(Mode.SKIP, final)
    if mine[0] is not final:  # such training has begun already
        return _within(epochs, mine[0], Mode.RESUME)
    # The script asks for more than was trained. The final state may hold averaged or best weights,
    # so training goes on from the last epoch's own end.
    last = next((checkpoint for checkpoint in mine if checkpoint.kind == "epoch"), final)
    if last.thin:
        reason = f"it was trained to epoch {final.epochs} and then further by a later fit; its weights were not kept"
        return Plan(Mode.RESUME, None, reason)
    return _within(epochs, last, Mode.RESUME)


def _within(epochs: int, checkpoint: K, mode: Mode) -> Plan[K]:
    trained = checkpoint.epoch + (1 if checkpoint.kind == "batch" else 0)
    if trained > epochs:
        return Plan(mode, None, f"it has trained {trained} epochs, the script now asks for {epochs}")
    return Plan(mode, checkpoint)
