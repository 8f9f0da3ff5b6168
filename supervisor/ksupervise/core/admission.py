"""What happens when a run is called again: DESIGN's table, as a function. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from ksupervise.core.actions import RunState

_EXIT_INTERRUPTED = 130


class Verb(Enum):
    """What the call comes to."""

    START = "start"  # nothing is known of the run, or its script changed since it was completed
    RESUME = "resume"
    RETRY = "retry"  # with a new budget
    DONE = "done"  # completed before: nothing to do
    DECLINE = "decline"  # it failed or was stopped, nothing changed, nobody is there to want it again


@dataclass(frozen=True)
class Admission:
    """The verb, the exit code if it ends here, and what to say about it ("" for nothing)."""

    verb: Verb
    exit_code: int = 0
    line: str = ""


def admit(
    state: RunState | None,
    exit_code: int | None,
    *,
    changed: bool,
    interactive: bool,
    retry: bool,
) -> Admission:
    """What a call of a run comes to.

    Args:
        state: the recorded state, None for a run that does not exist; RUNNING means that its owner is dead.
        exit_code: of the recorded verdict.
        changed: the script's text changed since.
        interactive: somebody sits at a terminal or in a notebook.
        retry: --retry was given.
    """
    if state is None:
        return Admission(Verb.START)
    if state is RunState.COMPLETED:
        return _completed(changed)
    ended_for_good = state in (RunState.FAILED, RunState.GAVE_UP) or exit_code == _EXIT_INTERRUPTED
    if not ended_for_good:
        return Admission(Verb.RESUME)
    if interactive or retry or changed:
        return Admission(Verb.RETRY)
    code = 1 if exit_code is None else exit_code
    ended = {RunState.FAILED: "failed", RunState.GAVE_UP: "gave up"}.get(state, "was stopped by the user")
    line = f"the run {ended} before (exit code {code}) and nothing changed; --retry goes on"
    return Admission(Verb.DECLINE, code, line)


def _completed(changed: bool) -> Admission:
    if changed:
        line = "the run was completed, its script changed since: unchanged fits return at once"
        return Admission(Verb.START, 0, line)
    return Admission(Verb.DONE, 0, "the run is completed; --fresh trains it anew (the old one is archived)")
