"""The newest attempt's control page. It is a file in shared memory: even a killed child has told how far it came."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ksupervise.core.cadence import TERMS
from ksupervise.core.ledger import Account
from ksupervise.parent.launch import LIVE
from ksupervise.parent.stage import live_page
from ksupervise.store import RunLayout
from ksupervise.wire import PHASE_NAMES


@dataclass(frozen=True)
class Live:
    """The newest attempt's control page: where the training is now, and what its checkpoints cost.

    Durations in seconds; `beat` and `staged_at` are CLOCK_MONOTONIC. `slots`: 2 or 1 in memory, 0 for straight to disk,
    None while that is unknown.
    """

    phase: str
    fit: int
    epoch: int
    epochs: int
    batch: int
    step: int
    executed: int
    first_step: int
    staged_step: int
    beat: float
    staged_at: float
    stage_seconds: float
    stage_every: float
    stage_term: str
    commit_every: float
    commit_term: str
    persist: float
    slowdown: float
    mttf: float
    slots: int | None


_WORDS = ("fit", "epoch", "epochs", "batch", "step", "executed", "first_step", "staged_step")
_TIMES = ("beat", "staged_at", "stage_seconds", "stage_every", "commit_every", "persist", "slowdown", "mttf")


def read(layout: RunLayout, accounts: Account) -> Live | None:
    """What the page says; None if there is none, or nothing was trained yet."""
    if not accounts.attempts:
        return None
    try:
        page = live_page(Path(layout.attempt(accounts.attempts[-1].number)) / LIVE)
    except (OSError, ValueError):
        return None
    numbers: dict[str, Any] = {name: page.integer(name) for name in _WORDS}
    times: dict[str, Any] = {name: page[name] for name in _TIMES}
    terms: dict[str, Any] = {name: TERMS[page.integer(name) % len(TERMS)] for name in ("stage_term", "commit_term")}
    phase = PHASE_NAMES[page.integer("phase") % len(PHASE_NAMES)]
    slots = page.integer("slots") - 1
    found = Live(phase=phase, slots=slots if slots >= 0 else None, **numbers, **times, **terms)
    page.close()
    return found if found.fit else None
