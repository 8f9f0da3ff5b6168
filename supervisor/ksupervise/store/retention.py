"""Which checkpoints stay. Pure: from a list to a list."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ksupervise.store.checkpoint import Checkpoint


COMPLETED_FITS = 4 * 1024**3  # bytes that the final states of completed fits may take


def to_keep(checkpoints: Sequence[Checkpoint], keep: int, cap: int = COMPLETED_FITS) -> list[Checkpoint]:
    """The checkpoints that stay, newest first: the newest `keep`, and those that are pinned.

    Pinned are, of every completed fit, the newest final state and the newest end of an epoch (raised
    epochs go on from there: a final state may hold EMA- or best-overwritten weights), and the newest
    checkpoint of the newest fit; of that also the newest that is not approximate (see `core/resume.py`).

    Args:
        checkpoints: all valid ones, newest first.
        keep: at least 1.
        cap: bytes. When completed fits take more, the older ones lose the end of their last epoch.

    Raises:
        ValueError: `keep` is less than 1.
    """
    if keep < 1:
        raise ValueError("at least one checkpoint must be kept")
    pinned = _pinned(checkpoints, cap)
    return [each for number, each in enumerate(checkpoints) if number < keep or number in pinned]


def to_thin(checkpoints: Sequence[Checkpoint], keep: int, cap: int = COMPLETED_FITS) -> list[Checkpoint]:
    """Final states of completed fits beyond `cap` bytes whose variables need not be kept, oldest first.

    A later fit has trained the same model further: to go on from there, what its callbacks and its History hold
    suffices. The last state of each model always stays whole, and so do the newest `keep` checkpoints.
    """
    last: dict[int, int] = {}  # model → the newest fit that trained it
    for each in checkpoints:
        fit, model = each.manifest.position.fit, _model_of(each)
        last[model] = max(last.get(model, fit), fit)
    total, beyond = 0, []
    for number, each in enumerate(checkpoints):
        if each.manifest.position.kind != "final":
            continue
        total += each.manifest.size
        superseded = last[_model_of(each)] > each.manifest.position.fit
        if total > cap and superseded and number >= keep and not each.manifest.extra.get("thin"):
            beyond.append(each)
    return beyond[::-1]


def _model_of(checkpoint: Checkpoint) -> int:
    """The first fit of the model that was trained; one that is not known is its own."""
    return int(checkpoint.manifest.extra.get("model", checkpoint.manifest.position.fit))


def _pinned(checkpoints: Sequence[Checkpoint], cap: int) -> set[int]:
    positions = [each.manifest.position for each in checkpoints]
    newest: dict[tuple[int, str], int] = {}  # the first seen is the newest
    for number, position in enumerate(positions):
        newest.setdefault((position.fit, position.kind), number)
    completed = {position.fit for position in positions if position.kind == "final"}
    pinned, total = set(), 0
    for number in sorted(number for (fit, kind), number in newest.items() if fit in completed and kind != "batch"):
        total += checkpoints[number].manifest.size
        if total <= cap or positions[number].kind == "final":
            pinned.add(number)
    if positions:
        last_fit = max(position.fit for position in positions)
        of_it = [number for number, each in enumerate(positions) if each.fit == last_fit]
        exact = (number for number in of_it if not checkpoints[number].manifest.extra.get("approximate"))
        pinned |= {of_it[0], next(exact, of_it[0])}
    return pinned
