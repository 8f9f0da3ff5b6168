"""The judgement: what a death means, and whether to try again. Pure.

The budget is spent by failures *without progress* only: an attempt after which a checkpoint of a
later step exists costs nothing (after NVIDIA resiliency-ext's progress tracker), a preemption
never does.
"""

from __future__ import annotations

import signal as signals
from dataclasses import dataclass

from ksupervise.core.actions import Cause, Finish, RunState
from ksupervise.core.events import Evidence, StopKind

EXIT_REFUSED = 2
EXIT_PREEMPTED = 75
EXIT_GAVE_UP = 125
EXIT_INTERRUPTED = 130

# Shell conventions: misuse, not executable, not found. No second attempt will do better.
_HOPELESS_EXITS = frozenset({2, 126, 127})
# What an interpreter raises before a script has done anything worth repeating.
_HOPELESS_EXCEPTIONS = frozenset({"SyntaxError", "IndentationError", "TabError", "ImportError", "ModuleNotFoundError"})


@dataclass(frozen=True)
class Policy:
    """The knobs. Times in seconds."""

    max_failures: int = 3
    grace: float = 30.0
    stage_wait: float = 5.0  # a Ctrl-C waits this long for the stage before it is passed on
    kill_after: float = 5.0  # from SIGTERM after a drain's deadline to SIGKILL
    settle_wait: float = 900.0  # for the last commit of an attempt and the evidence
    give_up_killing: float = 30.0  # a child in D state: reported, never relaunched upon


@dataclass(frozen=True)
class History:
    """What earlier attempts left behind, as far as the judgement needs it.

    Attributes:
        attempt: number of the latest attempt.
        stepped: some attempt began a step.
        mark: step of the newest checkpoint when the last attempt was judged, None before the first.
        failures: consecutive charged failures without progress.
        fruitless: consecutive attempts without progress, free ones included: it paces the relaunch.
    """

    attempt: int = 0
    stepped: bool = False
    mark: int | None = None
    failures: int = 0
    fruitless: int = 0

    def after(self, evidence: Evidence, *, charged: bool) -> History:
        """This history with one more judged attempt."""
        step = evidence.checkpoint_step
        progress = step is not None and step > (self.mark or 0)
        return History(
            attempt=self.attempt,
            stepped=self.stepped or evidence.stepped,
            mark=step if progress else self.mark,
            failures=(0 if progress else self.failures) + (1 if charged and not progress else 0),
            fruitless=0 if progress else self.fruitless + 1,
        )


@dataclass(frozen=True)
class Circumstances:
    """What we did to the child, or were told by it, during the attempt."""

    stop: StopKind | None = None
    signalled: bool = False  # we sent it a signal: exit 0 proves nothing any more
    left: str = ""
    refused: str = ""
    stalled: float = 0.0


@dataclass(frozen=True)
class Judgement:
    """Why the attempt ended, and what follows: a verdict, or (None) another attempt."""

    cause: Cause
    detail: str
    finish: Finish | None = None
    charged: bool = False


def judge(evidence: Evidence, seen: Circumstances, history: History, policy: Policy) -> Judgement:
    """Name the cause of one attempt's end and what follows from it."""
    if evidence.survivors:
        pids = ", ".join(map(str, evidence.survivors))
        detail = f"process {pids} survives SIGKILL (in D state?); not relaunching beside it"
        return _verdict(Cause.UNKILLABLE, detail, RunState.GAVE_UP, EXIT_GAVE_UP)
    if seen.refused:
        return _verdict(Cause.REFUSED, seen.refused, RunState.FAILED, EXIT_REFUSED)
    if _completed(evidence, seen):
        return _verdict(Cause.COMPLETED, "completed", RunState.COMPLETED, 0)
    if seen.stop is not None:
        return stopped(seen.stop)
    if evidence.exit_code == 0 and evidence.orderly and not seen.left:
        detail = "the script ended with exit code 0 inside a fit"
        return _verdict(Cause.INTERRUPTED, detail, RunState.INTERRUPTED, 0)
    return _failed(evidence, seen, history, policy)


def _completed(evidence: Evidence, seen: Circumstances) -> bool:
    clean = evidence.exit_code == 0 and not evidence.fit_open
    return clean and not seen.signalled and not seen.left


def stopped(stop: StopKind) -> Judgement:
    """The judgement of an attempt that was asked to stop, and did."""
    if stop.by_user:
        return _verdict(Cause.INTERRUPTED, stop.value, RunState.INTERRUPTED, EXIT_INTERRUPTED)
    return _verdict(Cause.PREEMPTED, stop.value, RunState.PREEMPTED, EXIT_PREEMPTED)


def _failed(evidence: Evidence, seen: Circumstances, history: History, policy: Policy) -> Judgement:
    cause, detail = _cause_of_failure(evidence, seen)
    if cause is Cause.PREEMPTED:
        return Judgement(cause, detail)
    own_code = _own_exit_code(evidence)
    if _hopeless(evidence, history):
        return _verdict(Cause.USER_ERROR, detail, RunState.FAILED, own_code)
    failures = history.after(evidence, charged=True).failures
    if failures < policy.max_failures:
        return Judgement(cause, detail, charged=True)
    if history.attempt == 1:
        return _verdict(cause, detail, RunState.FAILED, own_code)
    detail += f"; {failures} failures without a newer checkpoint"
    return _verdict(cause, detail, RunState.GAVE_UP, EXIT_GAVE_UP)


def _cause_of_failure(evidence: Evidence, seen: Circumstances) -> tuple[Cause, str]:
    if seen.left:
        return Cause.PREEMPTED, seen.left
    if evidence.signal == signals.SIGTERM:
        return Cause.PREEMPTED, "SIGTERM to the child from outside"
    if seen.stalled:
        return Cause.STALLED, f"no step for {seen.stalled:.0f} s"
    if evidence.signal is not None:
        return Cause.SIGNAL, f"killed by {_signal_name(evidence.signal)}"
    if evidence.exit_code == 0:
        return Cause.TRAINER_DIED, "the trainer died inside a fit, though the exit code is 0"
    code = f"exit code {evidence.exit_code}"
    if evidence.exception:
        return Cause.EXCEPTION, f"{evidence.exception} ({code})"
    return Cause.EXITED, code


def _hopeless(evidence: Evidence, history: History) -> bool:
    """Nothing was trained yet, ever, and the error lies in the script or its call."""
    if history.stepped or evidence.stepped or evidence.exit_code in (None, 0):
        return False
    if evidence.keras and (evidence.exception or evidence.orderly):
        return True
    return evidence.exception in _HOPELESS_EXCEPTIONS or evidence.exit_code in _HOPELESS_EXITS


def _own_exit_code(evidence: Evidence) -> int:
    """The child's own code as a shell would report it."""
    if evidence.signal is not None:
        return 128 + evidence.signal
    return evidence.exit_code or 1


def _signal_name(number: int) -> str:
    try:
        return signals.Signals(number).name
    except ValueError:
        return f"signal {number}"


def _verdict(cause: Cause, detail: str, state: RunState, exit_code: int) -> Judgement:
    return Judgement(cause, detail, Finish(state, exit_code, detail))
