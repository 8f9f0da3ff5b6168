"""The judgement: cause, budget and exit code of one attempt's end."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ksupervise.core.actions import Cause, Finish, RunState
from ksupervise.core.events import Evidence, StopKind
from ksupervise.core.policy import Circumstances, History, Judgement, Policy, judge, stopped

from .world import exited, killed

FIRST = History(attempt=1)
TRAINED = History(attempt=2, stepped=True, mark=10)
CLOSED = exited(0, orderly=True, keras=True, stepped=True)


def judged(
    evidence: Evidence,
    seen: Circumstances | None = None,
    history: History = TRAINED,
    policy: Policy | None = None,
) -> Judgement:
    """The judgement, in circumstances of no note."""
    return judge(evidence, seen or Circumstances(), history, policy or Policy())


# Causes, the strongest first ----------------------------------------------------------------------


def test_survivors_outweigh_everything() -> None:
    evidence = replace(CLOSED, survivors=(11, 12))
    judgement = judged(evidence, Circumstances(stop=StopKind.USER, refused="no"))
    assert (judgement.cause, judgement.finish and judgement.finish.exit_code) == (Cause.UNKILLABLE, 125)
    assert "11, 12" in judgement.detail


def test_a_refusal_outweighs_a_stop() -> None:
    judgement = judged(exited(2), Circumstances(stop=StopKind.TERM, refused="no"))
    assert judgement.finish == Finish(RunState.FAILED, 2, "no")


def test_completion_outweighs_a_stop_that_touched_nothing() -> None:
    assert judged(CLOSED, Circumstances(stop=StopKind.TERM)).cause is Cause.COMPLETED
    assert judged(CLOSED, Circumstances(stop=StopKind.TERM, signalled=True)).cause is Cause.PREEMPTED


def test_a_plain_program_that_exits_0_is_completed() -> None:
    assert judged(exited(0), history=FIRST).finish == Finish(RunState.COMPLETED, 0, "completed")


@pytest.mark.parametrize("kind", StopKind)
def test_who_asked_decides_the_exit_code_of_a_stop(kind: StopKind) -> None:
    by_user = kind in (StopKind.USER, StopKind.COMMAND)
    state, code = (RunState.INTERRUPTED, 130) if by_user else (RunState.PREEMPTED, 75)
    assert stopped(kind).finish == Finish(state, code, kind.value)


@pytest.mark.parametrize(
    ("evidence", "seen", "cause", "detail"),
    [
        (killed(9), Circumstances(stalled=61.4), Cause.STALLED, "no step for 61 s"),
        (killed(15), Circumstances(stalled=61.4), Cause.PREEMPTED, "SIGTERM to the child from outside"),
        (exited(75), Circumstances(left="drained"), Cause.PREEMPTED, "drained"),
        (exited(0, orderly=True), Circumstances(left="drained"), Cause.PREEMPTED, "drained"),
        (killed(15), Circumstances(), Cause.PREEMPTED, "SIGTERM to the child from outside"),
        (killed(11), Circumstances(), Cause.SIGNAL, "killed by SIGSEGV"),
        (killed(99), Circumstances(), Cause.SIGNAL, "killed by signal 99"),
        (exited(0, fit_open=True), Circumstances(), Cause.TRAINER_DIED, "the trainer died inside a fit"),
        (exited(1, exception="OSError"), Circumstances(), Cause.EXCEPTION, "OSError (exit code 1)"),
        (exited(75), Circumstances(), Cause.EXITED, "exit code 75"),
    ],
)
def test_causes_after_which_another_attempt_is_made(
    evidence: Evidence, seen: Circumstances, cause: Cause, detail: str
) -> None:
    judgement = judged(evidence, seen)
    assert judgement.finish is None
    assert judgement.cause is cause
    assert judgement.detail.startswith(detail)
    assert judgement.charged == (cause is not Cause.PREEMPTED)


# What is hopeless ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "evidence",
    [
        exited(2),
        exited(126),
        exited(127),
        exited(1, exception="SyntaxError"),
        exited(1, exception="ModuleNotFoundError"),
        exited(1, exception="ValueError", keras=True),
        exited(3, orderly=True, keras=True),
    ],
)
def test_what_no_second_attempt_would_do_better_ends_with_its_own_code(evidence: Evidence) -> None:
    judgement = judged(evidence, history=FIRST)
    assert judgement.cause is Cause.USER_ERROR
    assert judgement.finish is not None
    assert (judgement.finish.state, judgement.finish.exit_code) == (RunState.FAILED, evidence.exit_code)
    assert judged(replace(evidence, stepped=True), history=FIRST).finish is None, "it trained"
    assert judged(evidence, history=TRAINED).finish is None, "it trained before"


@pytest.mark.parametrize("evidence", [killed(9), exited(1), exited(1, exception="OSError"), exited(1, keras=True)])
def test_what_may_go_better_next_time_is_tried_again_even_before_any_step(evidence: Evidence) -> None:
    assert judged(evidence, history=FIRST).finish is None


# The budget ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(("failures", "last"), [(0, False), (1, False), (2, True)])
def test_three_failures_are_the_end(failures: int, last: bool) -> None:
    judgement = judged(killed(9), history=replace(TRAINED, failures=failures))
    assert (judgement.finish is not None) == last
    if judgement.finish is not None:
        assert (judgement.finish.state, judgement.finish.exit_code) == (RunState.GAVE_UP, 125)


@pytest.mark.parametrize(("evidence", "code"), [(exited(3), 3), (killed(11), 139), (exited(0, fit_open=True), 1)])
def test_a_failure_final_on_the_first_attempt_keeps_its_own_code(evidence: Evidence, code: int) -> None:
    finish = judged(evidence, history=FIRST, policy=Policy(max_failures=1)).finish
    assert finish is not None
    assert (finish.state, finish.exit_code) == (RunState.FAILED, code)


def test_the_last_failure_allowed_is_forgiven_if_it_made_progress() -> None:
    worn = replace(TRAINED, failures=2)
    assert judged(killed(9, checkpoint_step=10), history=worn).finish is not None
    assert judged(killed(9, checkpoint_step=11), history=worn).finish is None


STEPS = st.none() | st.integers(0, 5)


@given(st.lists(st.tuples(STEPS, st.booleans(), st.booleans()), max_size=12))
def test_laws_of_the_history(attempts: list[tuple[int | None, bool, bool]]) -> None:
    history = History(attempt=1)
    for step, charged, stepped in attempts:
        evidence = killed(9, checkpoint_step=step, stepped=stepped)
        later = history.after(evidence, charged=charged)
        progress = step is not None and step > (history.mark or 0)
        assert later.attempt == history.attempt
        assert later.stepped == (history.stepped or stepped), "never forgotten"
        assert later.mark == (step if progress else history.mark), "never goes back"
        assert (later.fruitless == 0) == progress
        if progress:
            assert later.failures == 0
        else:
            assert later.failures == history.failures + charged
        assert later.failures <= later.fruitless
        history = later
