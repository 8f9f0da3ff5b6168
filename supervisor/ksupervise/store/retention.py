"""Which checkpoints stay. Pure: from a list to a list."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ksupervise.store.checkpoint import Checkpoint


def to_keep(checkpoints: Sequence[Checkpoint], keep: int) -> list[Checkpoint]:
    """The checkpoints that stay, newest first: the newest `keep`, and those that are pinned.

    Pinned are, of every completed fit, the newest final state and the newest end of an epoch (raised
    epochs go on from there: a final state may hold EMA- or best-overwritten weights), and the newest
    checkpoint of the newest fit; of that also the newest that is not approximate (see `core/resume.py`).

    Args:
        checkpoints: all valid ones, newest first.
        keep: at least 1.

    Raises:
        ValueError: `keep` is less than 1.
    """
    if keep < 1:
        raise ValueError("at least one checkpoint must be kept")
    pinned = _pinned(checkpoints)
    return [each for number, each in enumerate(checkpoints) if number < keep or number in pinned]


def _pinned(checkpoints: Sequence[Checkpoint]) -> set[int]:
    positions = [each.manifest.position for each in checkpoints]
    newest: dict[tuple[int, str], int] = {}  # the first seen is the newest
    for number, position in enumerate(positions):
        newest.setdefault((position.fit, position.kind), number)
    completed = {position.fit for position in positions if position.kind == "final"}
    pinned = {number for (fit, kind), number in newest.items() if fit in completed and kind != "batch"}
    if positions:
        last_fit = max(position.fit for position in positions)
        of_it = [number for number, each in enumerate(positions) if each.fit == last_fit]
        exact = (number for number in of_it if not checkpoints[number].manifest.extra.get("approximate"))
        pinned |= {of_it[0], next(exact, of_it[0])}
    return pinned
