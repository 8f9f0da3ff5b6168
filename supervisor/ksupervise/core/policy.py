"""The judgement: what follows from a death, another attempt or a verdict. Pure.

Two ledgers run beside each other, after NVIDIA's resiliency-ext. The wide one is the budget: failures *without
progress*, whatever their cause; an attempt after which a checkpoint of a later step exists costs nothing, a preemption
never does, and where nobody knows whether there was progress nothing is charged. The narrow ones stop sooner what is
known not to pass: the same failure at the same step, memory that does not suffice twice. They never reset the wide one,
or causes that take turns would loop for ever; and more than a hundred failures in an hour are the end, whatever they
got done.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

from ksupervise.core import causes
from ksupervise.core.actions import Cause, Finish, RunState
from ksupervise.core.causes import Named
from ksupervise.core.events import Evidence, Failure, StopKind

EXIT_REFUSED = 2
EXIT_PREEMPTED = 75
EXIT_GAVE_UP = 125
EXIT_INTERRUPTED = 130

# Shell conventions: misuse, not executable, not found. No second attempt will do better.
_HOPELESS_EXITS = frozenset({2, 126, 127})
# What an interpreter raises before a script has done anything worth repeating.
_HOPELESS_EXCEPTIONS = frozenset({"SyntaxError", "IndentationError", "TabError", "ImportError", "ModuleNotFoundError"})
_MANY = 3  # attempts in a row without progress that are worth a word
_WORKED = 60.0  # seconds after which a script has done something, whatever it is
_FROM_ONE = 2  # failures from one checkpoint after which an older one is tried, once


@dataclass(frozen=True)
class Policy:
    """The knobs. Times in seconds.

    Attributes:
        never_retry, always_retry: exit codes, a signal as 128 + its number.
        window_failures: so many failures within `window` are the end.
        row: so many attempts in a row without progress are the end, whatever they cost.
    """

    max_failures: int = 3
    grace: float = 30.0
    never_retry: frozenset[int] = frozenset()
    always_retry: frozenset[int] = frozenset()
    stage_wait: float = 5.0  # a Ctrl-C waits this long for the stage before it is passed on
    kill_after: float = 5.0  # from SIGTERM after a drain's deadline to SIGKILL
    settle_wait: float = 900.0  # for the last commit of an attempt and the evidence
    give_up_killing: float = 30.0  # a child in D state: reported, never relaunched upon
    window: float = 3600.0
    window_failures: int = 100
    row: int = 100


@dataclass(frozen=True)
class History:
    """What earlier attempts left behind, as far as the judgement needs it.

    Attributes:
        attempt: number of the latest attempt.
        stepped: some attempt began a step.
        mark: step of the newest checkpoint when the last attempt was judged, None before the first.
        failures: consecutive charged failures without progress.
        fruitless: consecutive attempts without progress, free ones included: it paces the relaunch.
        signs: failures that would be no accident a second time, each with its step; progress beyond it forgets one.
        memory: ends by lack of memory since there was progress.
        from_seq: the checkpoint that the last failures went on from, 0 for none.
        from_failures: how many they were.
        went_back: since there was progress, an older checkpoint has been tried.
        recent: wall times of the failures that count for the window, in seconds.
    """

    attempt: int = 0
    stepped: bool = False
    mark: int | None = None
    failures: int = 0
    fruitless: int = 0
    signs: frozenset[tuple[str, int]] = frozenset()
    memory: int = 0
    from_seq: int = 0
    from_failures: int = 0
    went_back: bool = False
    recent: tuple[float, ...] = ()

    def progressed(self, evidence: Evidence) -> bool:
        """A checkpoint of a later step exists."""
        step = evidence.checkpoint_step
        return evidence.checkpoint_known and step is not None and step > (self.mark or 0)

    def after(self, evidence: Evidence, judgement: Judgement) -> History:
        """This history with one more judged attempt."""
        stepped = self.stepped or evidence.stepped
        if not evidence.checkpoint_known:
            return replace(self, stepped=stepped, fruitless=self.fruitless + 1, recent=judgement.recent)
        progress = self.progressed(evidence)
        before = History(signs=self.signs) if progress else self
        mark = evidence.checkpoint_step if progress else self.mark
        signs = before.signs | ({(judgement.sign, evidence.step)} if judgement.sign else set())
        if progress:
            signs = frozenset((sign, step) for sign, step in signs if step >= (mark or 0))
        out_of_memory = judgement.cause is Cause.OUT_OF_MEMORY
        charged = judgement.charged
        return History(
            attempt=self.attempt,
            stepped=stepped,
            mark=mark,
            failures=before.failures + (charged and not progress),
            fruitless=0 if progress else self.fruitless + 1,
            signs=frozenset(signs),
            memory=before.memory + (out_of_memory and not progress),
            from_seq=evidence.resumed_seq if charged and not progress else before.from_seq,
            from_failures=before.failures_from(evidence) + 1 if charged and not progress else before.from_failures,
            went_back=before.went_back or bool(judgement.back_to),
            recent=judgement.recent,
        )

    def failures_from(self, evidence: Evidence) -> int:
        """How many of the last failures had gone on from the checkpoint that this attempt went on from."""
        return self.from_failures if self.from_seq == evidence.resumed_seq else 0

    def as_json(self) -> dict[str, Any]:
        """For the journal: a parent that takes the run over goes on with it."""
        return {**asdict(self), "signs": sorted(self.signs)}


def history_from_json(values: Mapping[str, Any]) -> History:
    """What `as_json` made. Raises TypeError, ValueError for anything else."""
    known = {field.name: values[field.name] for field in fields(History) if field.name in values}
    signs = frozenset((_text(sign), _count(step)) for sign, step in known.pop("signs", ()))
    recent = tuple(map(_time, known.pop("recent", ())))
    flags = {name: _flag(known.pop(name)) for name in ("stepped", "went_back") if name in known}
    mark = known.pop("mark", None)
    checked: dict[str, Any] = {name: _count(value) for name, value in known.items()}
    return History(**checked, **flags, mark=None if mark is None else _count(mark), signs=signs, recent=recent)


def _count(value: object) -> int:
    if type(value) is not int or value < 0:
        raise ValueError(f"{value!r} is not a count")
    return value


def _flag(value: object) -> bool:
    if type(value) is not bool:
        raise ValueError(f"{value!r} is neither true nor false")
    return value


def _text(value: object) -> str:
    if type(value) is not str:
        raise ValueError(f"{value!r} is not a text")
    return value


def _time(value: object) -> float:
    if type(value) is not float:
        raise ValueError(f"{value!r} is not a time")
    return value


@dataclass(frozen=True)
class Circumstances:
    """What we did to the child, or were told by it, during the attempt.

    Attributes:
        stop: who asked it to stop, None for nobody. `stop_words`: the same for people.
        signalled: we sent it a signal: exit 0 proves nothing any more.
        stalled: what was seen when it did not get on, "" if it did.
    """

    stop: StopKind | None = None
    stop_words: str = ""
    signalled: bool = False
    left: str = ""
    refused: str = ""
    stalled: str = ""


@dataclass(frozen=True)
class Judgement:
    """Why the attempt ended, and what follows: a verdict, or (None) another attempt.

    Attributes:
        charged: it counts as a failure, unless there was progress.
        sign: of a failure that would be no accident at the same step once more.
        back_to: number of the checkpoint that the next attempt goes on from, 0 for the newest.
        recent: as in `History`.
    """

    cause: Cause
    detail: str
    finish: Finish | None = None
    charged: bool = False
    sign: str = ""
    back_to: int = 0
    recent: tuple[float, ...] = ()


def judge(evidence: Evidence, seen: Circumstances, history: History, policy: Policy) -> Judgement:
    """Name the cause of one attempt's end and what follows from it."""
    if evidence.survivors:
        pids = ", ".join(map(str, evidence.survivors))
        detail = f"process {pids} survives SIGKILL (in D state?); not relaunching beside it"
        if seen.stalled:
            detail = f"{seen.stalled}; {detail}"
        return _verdict(Cause.UNKILLABLE, detail, RunState.GAVE_UP, EXIT_GAVE_UP)
    if seen.refused:
        return _verdict(Cause.REFUSED, seen.refused, RunState.FAILED, EXIT_REFUSED)
    if _completed(evidence, seen):
        return _complete(evidence)
    if seen.stop is not None:
        return _stopped_with(evidence, seen.stop, seen.stop_words)
    if evidence.exit_code == 0 and evidence.orderly and not seen.left:
        detail = "the script ended with exit code 0 inside a fit"
        return _verdict(Cause.INTERRUPTED, detail, RunState.INTERRUPTED, 0)
    return _failed(evidence, causes.name(evidence, seen.left, seen.stalled), history, policy)


def _completed(evidence: Evidence, seen: Circumstances) -> bool:
    clean = evidence.exit_code == 0 and not evidence.fit_open
    # It was SIGKILL that a stalled one was sent, which leaves no exit code: this one was done just before.
    outrun = bool(seen.stalled) and evidence.orderly
    return clean and (not seen.signalled or outrun) and not seen.left


def _complete(evidence: Evidence) -> Judgement:
    if not evidence.nan:
        return _verdict(Cause.COMPLETED, "completed", RunState.COMPLETED, 0)
    detail = f"completed, but the loss was not a number: TerminateOnNaN ended the training at step {evidence.step}"
    return _verdict(Cause.NAN_STOP, detail, RunState.COMPLETED, 0)


def stopped(stop: StopKind, words: str = "") -> Judgement:
    """The judgement of an attempt that was asked to stop, and did."""
    detail = words or stop.value
    if stop.by_user:
        return _verdict(Cause.INTERRUPTED, detail, RunState.INTERRUPTED, EXIT_INTERRUPTED)
    cause = Cause.DEADLINE if stop is StopKind.DEADLINE else Cause.PREEMPTED
    return _verdict(cause, detail, RunState.PREEMPTED, EXIT_PREEMPTED)


def _stopped_with(evidence: Evidence, stop: StopKind, words: str) -> Judgement:
    """systemd answers an out-of-memory kill in a unit with SIGTERM to the rest of it."""
    judgement = stopped(stop, words)
    if stop is not StopKind.TERM or not evidence.oom:
        return judgement
    detail = f"out of memory: {evidence.oom}; then {judgement.detail}"
    return _verdict(Cause.OUT_OF_MEMORY, detail, RunState.PREEMPTED, EXIT_PREEMPTED)


def _failed(evidence: Evidence, named: Named, history: History, policy: Policy) -> Judgement:
    row = 0 if history.progressed(evidence) else history.fruitless + 1
    if row >= policy.row:
        detail = f"{named.detail}; {row} attempts in a row without a newer checkpoint"
        return _verdict(named.cause, detail, RunState.GAVE_UP, EXIT_GAVE_UP)
    if named.cause is Cause.PREEMPTED:
        words = f"; {row} attempts in a row without a newer checkpoint" if row >= _MANY else ""
        return Judgement(named.cause, named.detail + words, recent=history.recent)
    if _may_have_worked(evidence):
        named = replace(named, sign="")  # nobody knows where it was
    code = _own_exit_code(evidence)
    recent = _within(policy, evidence.at, (*history.recent, evidence.at))
    final = _final_by_its_nature(evidence, named, history, policy, code)
    if final is not None:
        return final
    if len(recent) >= policy.window_failures:
        detail = f"{named.detail}; {len(recent)} failures within {policy.window / 60:.0f} minutes"
        return _verdict(named.cause, detail, RunState.GAVE_UP, EXIT_GAVE_UP)
    judgement = Judgement(named.cause, named.detail, sign=named.sign, recent=recent)
    if code in policy.always_retry or not evidence.checkpoint_known:
        return judgement
    charged = replace(judgement, charged=True)
    later = history.after(evidence, charged)
    if later.memory > 1:
        return _gave_up(named, history, code, "it was so the last time, too")
    if named.cause is not Cause.OUT_OF_MEMORY and _is_poison(evidence, later):
        return replace(
            charged,
            detail=f"{named.detail}; it was the second failure from that checkpoint: an older one is tried, once",
            back_to=evidence.older_seq,
        )
    if (named.sign, evidence.step) in history.signs:
        return _same_again(evidence, named, history)
    if later.failures >= policy.max_failures:
        return _gave_up(named, history, code, f"{later.failures} failures without a newer checkpoint")
    return charged


def _within(policy: Policy, now: float, times: tuple[float, ...]) -> tuple[float, ...]:
    """Those of the last window. A clock that was set back makes them fewer, never more."""
    return tuple(at for at in times if 0 <= now - at < policy.window)[-policy.window_failures :]


def _final_by_its_nature(
    evidence: Evidence, named: Named, history: History, policy: Policy, code: int
) -> Judgement | None:
    """What is final at once, whatever the budget."""
    if code in policy.always_retry:
        return None
    if code in policy.never_retry:
        return _gave_up(named, history, code, "by --never-retry-exit")
    if _hopeless(evidence, history):
        finish = Finish(RunState.FAILED, code, named.detail, silent=True)
        return Judgement(Cause.USER_ERROR, named.detail, finish)
    failure = evidence.failure
    begun_before = history.stepped and not evidence.stepped
    if failure is not None and begun_before and causes.is_in_the_way(failure):
        return _not_rerunnable(failure, named)
    return None


def _hopeless(evidence: Evidence, history: History) -> bool:
    """Nothing was trained yet, ever, and the error lies in the script or its call."""
    if history.stepped or evidence.stepped or evidence.exit_code in (None, 0):
        return False
    failure = evidence.failure
    if failure is not None and causes.is_transient(failure):
        return False
    if _may_have_worked(evidence):
        return False
    if evidence.keras and (failure is not None or evidence.orderly):
        return True
    raised = failure is not None and failure.name in _HOPELESS_EXCEPTIONS
    return raised or evidence.exit_code in _HOPELESS_EXITS


def _may_have_worked(evidence: Evidence) -> bool:
    """Nothing was seen of a fit, and yet it ran for long: a loop of the script's own, or no Keras at all."""
    return not evidence.claimed and evidence.lasted >= _WORKED


def _not_rerunnable(failure: Failure, named: Named) -> Judgement:
    detail = f"the script cannot be run a second time, it got further the first time: {named.detail}"
    if causes.is_in_the_way(failure):
        detail += "; let it accept what an earlier attempt left (exist_ok=True), then --retry"
    return _verdict(Cause.NOT_RERUNNABLE, detail, RunState.GAVE_UP, EXIT_GAVE_UP)


def _is_poison(evidence: Evidence, later: History) -> bool:
    """It failed twice from one checkpoint: the state itself may be what is wrong."""
    many = bool(evidence.resumed_seq) and later.from_failures >= _FROM_ONE
    return many and bool(evidence.older_seq) and not later.went_back


def _same_again(evidence: Evidence, named: Named, history: History) -> Judgement:
    if history.stepped and not evidence.stepped and evidence.failure is not None:
        return _not_rerunnable(evidence.failure, named)
    where = f"at step {evidence.step}" if evidence.stepped else "before any step"
    detail = f"{named.detail}; the same {where} as before: it would happen again{_advice(named)}"
    return _verdict(named.cause, detail, RunState.GAVE_UP, EXIT_GAVE_UP)


def _gave_up(named: Named, history: History, code: int, why: str) -> Judgement:
    """The child's own code if there was only one attempt: nothing was retried."""
    if history.attempt <= 1:
        return _verdict(named.cause, named.detail + _advice(named), RunState.FAILED, code)
    return _verdict(named.cause, f"{named.detail}; {why}{_advice(named)}", RunState.GAVE_UP, EXIT_GAVE_UP)


def _advice(named: Named) -> str:
    return f". What helps: {named.advice}" if named.advice else ""


def _own_exit_code(evidence: Evidence) -> int:
    """The child's own code as a shell would report it."""
    if evidence.signal is not None:
        return 128 + evidence.signal
    return evidence.exit_code or 1


def _verdict(cause: Cause, detail: str, state: RunState, exit_code: int) -> Judgement:
    return Judgement(cause, detail, Finish(state, exit_code, detail))
