"""What checkpoints cost, how often they are made, and what decides that."""

from __future__ import annotations

import time
from typing import Any

from ksupervise.report.live import Live
from ksupervise.report.units import brief, span


def as_json(live: Live | None, *, running: bool) -> dict[str, Any] | None:
    """What checkpoints cost and how often they are made, None before the first stage."""
    if live is None or not live.staged_at:
        return None
    return {
        "stage_s": round(live.stage_seconds, 4),
        "stage_every_s": round(live.stage_every, 2),
        "stage_bound_by": live.stage_term,
        "commit_s": round(live.persist, 4),
        "commit_slowdown": round(live.slowdown, 3),
        "commit_every_s": round(live.commit_every, 2),
        "commit_bound_by": live.commit_term,
        "mttf_s": round(live.mttf),
        "overhead": round(_overhead(live), 5),
        "slots": live.slots,
        "staged_step": live.staged_step if running else None,
        "staged_age_s": round(max(0.0, time.monotonic() - live.staged_at), 1) if running else None,
    }


def _overhead(live: Live) -> float:
    """Share of time that checkpoints cost at this pace."""
    stages = live.stage_seconds / live.stage_every if live.stage_every else 0.0
    return stages + (live.persist * live.slowdown / live.commit_every if live.commit_every else 0.0)


_WHY = {
    "shortest": "cheap",
    "copy": "the copy takes so long",
    "overhead": "by --overhead",
    "every": "by --every",
    "disk": "the disk takes so long",
    "failures": "by how often machines go",
}


def _takes(seconds: float) -> str:
    return f"takes {brief(seconds)} beside it" if seconds else "the first is under way"


def lines(facts: dict[str, Any] | None) -> list[str]:
    """The same for people."""
    if facts is None:
        return []
    newest = ""
    if facts["staged_age_s"] is not None:
        newest = f"; the newest: step {facts['staged_step']}, {span(facts['staged_age_s'])} old"
    if facts["slots"] == 0:
        every = f"every {brief(facts['stage_every_s'])} ({_WHY[facts['stage_bound_by']]})"
        stops = f"memory is short, training waits {brief(facts['stage_s'])} for it"
        return [f"to disk    {every}; {stops}; overhead {facts['overhead']:.2%}{newest}"]
    place = "; one copy, memory is short" if facts["slots"] == 1 else ""
    stage, commit = _WHY[facts["stage_bound_by"]], _WHY[facts["commit_bound_by"]]
    memory = f"every {brief(facts['stage_every_s'])} ({stage}), stops training for {brief(facts['stage_s'])}"
    disk = f"every {brief(facts['commit_every_s'])} ({commit}), {_takes(facts['commit_s'])}"
    return [f"in memory  {memory}{newest}{place}", f"to disk    {disk}; overhead {facts['overhead']:.2%}"]
