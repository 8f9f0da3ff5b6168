"""The judgement: cause, budget and exit code of one attempt's end."""

from __future__ import annotations

import errno
import json
from dataclasses import fields, replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ksupervise.core.actions import Cause, Finish, RunState
from ksupervise.core.events import Evidence, StopKind
from ksupervise.core.policy import Circumstances, History, Judgement, Policy, history_from_json, judge, stopped

from .world import exited, failure, killed

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
    assert judgement.detail == "process 11, 12 survives SIGKILL (in D state?); not relaunching beside it"


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
        (killed(9), Circumstances(stalled="silent for 61 s"), Cause.STALLED, "silent for 61 s"),
        (killed(15), Circumstances(stalled="silent"), Cause.PREEMPTED, "SIGTERM to the child from outside"),
        (exited(75), Circumstances(left="drained"), Cause.PREEMPTED, "drained"),
        (exited(0, orderly=True), Circumstances(left="drained"), Cause.PREEMPTED, "drained"),
        (killed(15), Circumstances(), Cause.PREEMPTED, "SIGTERM to the child from outside"),
        (killed(11), Circumstances(), Cause.NATIVE_CRASH, "native crash, killed by SIGSEGV"),
        (killed(99), Circumstances(), Cause.SIGNAL, "killed by signal 99"),
        (exited(0, fit_open=True), Circumstances(), Cause.TRAINER_DIED, "the trainer died inside a fit"),
        (exited(1, exception="OSError"), Circumstances(), Cause.EXCEPTION, "OSError, at train.py:12 in load (exit "),
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


def test_a_stalled_one_that_cannot_be_killed_is_told_with_its_stall() -> None:
    judgement = judged(killed(9, survivors=(7,)), Circumstances(stalled="silent for 61 s"))
    assert judgement.cause is Cause.UNKILLABLE
    assert judgement.detail == "silent for 61 s; process 7 survives SIGKILL (in D state?); not relaunching beside it"


def test_one_that_ends_well_in_the_moment_in_which_it_is_killed_for_a_stall_has_ended_well() -> None:
    """No exit code of its own comes from SIGKILL."""
    seen = Circumstances(stalled="silent", signalled=True)
    assert judged(CLOSED, seen).cause is Cause.COMPLETED
    assert judged(replace(CLOSED, orderly=False), seen).cause is Cause.STALLED, "it may be its wrapper's code"


def test_exit_0_after_a_signal_of_ours_proves_nothing() -> None:
    seen = Circumstances(signalled=True)
    assert judged(replace(CLOSED, orderly=False), seen).finish is None


@pytest.mark.parametrize("left", ["", "drained"])
def test_an_orderly_exit_0_in_a_fit_is_an_interruption_unless_it_had_said_that_it_leaves(left: str) -> None:
    judgement = judged(replace(CLOSED, fit_open=True), Circumstances(left=left))
    assert judgement.cause is (Cause.PREEMPTED if left else Cause.INTERRUPTED)
    assert judgement.finish == (
        None if left else Finish(RunState.INTERRUPTED, 0, "the script ended with exit code 0 inside a fit")
    )


def test_who_asked_and_what_for_is_told() -> None:
    seen = Circumstances(stop=StopKind.NOTICE, stop_words="aws: the instance goes at 12:00", signalled=True)
    judgement = judged(killed(15), seen)
    assert (judgement.cause, judgement.detail) == (Cause.PREEMPTED, "aws: the instance goes at 12:00")


def test_the_deadline_is_a_cause_of_its_own() -> None:
    judgement = judged(exited(75, fit_open=True), Circumstances(stop=StopKind.DEADLINE))
    assert judgement.cause is Cause.DEADLINE
    assert judgement.finish == Finish(RunState.PREEMPTED, 75, "the deadline")


def test_sigterm_to_us_after_the_cgroups_oom_is_told_as_lack_of_memory() -> None:
    """systemd answers an out-of-memory kill in a unit with SIGTERM to the rest of it."""
    evidence = killed(9, oom="the cgroup's limit of 2 GB was reached")
    judgement = judged(evidence, Circumstances(stop=StopKind.TERM))
    assert judgement.cause is Cause.OUT_OF_MEMORY
    words = "out of memory: the cgroup's limit of 2 GB was reached; then SIGTERM"
    assert judgement.finish == Finish(RunState.PREEMPTED, 75, words)
    assert judged(evidence, Circumstances(stop=StopKind.USER)).cause is Cause.INTERRUPTED
    assert judged(evidence, Circumstances(stop=StopKind.NOTICE)).cause is Cause.PREEMPTED
    assert judged(killed(9), Circumstances(stop=StopKind.TERM)).cause is Cause.PREEMPTED


def test_a_training_that_terminate_on_nan_ended_is_complete_and_says_what_it_is() -> None:
    judgement = judged(replace(CLOSED, nan=True, step=41))
    assert judgement.cause is Cause.NAN_STOP
    words = "completed, but the loss was not a number: TerminateOnNaN ended the training at step 41"
    assert judgement.finish == Finish(RunState.COMPLETED, 0, words)


# What is hopeless ---------------------------------------------------------------------------------


HOPELESS = [
    exited(2),
    exited(126),
    exited(127),
    exited(1, exception="SyntaxError"),
    exited(1, exception="IndentationError"),
    exited(1, exception="TabError"),
    exited(1, exception="ImportError"),
    exited(1, exception="ModuleNotFoundError"),
    exited(1, exception="ValueError", keras=True),
    exited(1, exception="FileExistsError", keras=True),
    exited(3, orderly=True, keras=True),
]


@pytest.mark.parametrize("evidence", HOPELESS)
def test_what_no_second_attempt_would_do_better_ends_with_its_own_code_and_no_word_of_ours(evidence: Evidence) -> None:
    judgement = judged(evidence, history=FIRST)
    assert judgement.cause is Cause.USER_ERROR
    assert judgement.finish is not None
    assert (judgement.finish.state, judgement.finish.exit_code) == (RunState.FAILED, evidence.exit_code)
    assert judgement.finish.silent
    assert judged(replace(evidence, stepped=True), history=FIRST).finish is None, "it trained"


@pytest.mark.parametrize("evidence", [each for each in HOPELESS if not each.failure or "File" not in each.failure.name])
def test_the_same_is_tried_again_in_a_run_that_has_trained(evidence: Evidence) -> None:
    assert judged(evidence, history=TRAINED).finish is None


@pytest.mark.parametrize(
    "evidence",
    [
        killed(9),
        exited(1),
        exited(1, exception="OSError"),
        exited(1, exception="FileExistsError"),
        exited(1, keras=True),
        exited(1, exception="ConnectionResetError", keras=True, orderly=True),
        exited(1, exception="TimeoutError", keras=True, orderly=True),
        exited(1, exception="MemoryError", keras=True, orderly=True),
        exited(1, failure=failure("OSError", errno=errno.ESTALE), keras=True, orderly=True),
        exited(1, failure=failure("OSError", errno=errno.ENOSPC), keras=True, orderly=True),
        exited(0, fit_open=True, keras=True, exception="ValueError"),
    ],
)
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


def test_failures_that_made_progress_are_counted_anew() -> None:
    history = replace(TRAINED, failures=2, fruitless=2, memory=1, from_seq=3, from_failures=1, went_back=True)
    evidence = killed(9, checkpoint_step=11, resumed_seq=4)
    later = history.after(evidence, judged(evidence, history=history))
    assert (later.failures, later.fruitless, later.memory, later.went_back) == (0, 0, 0, False)
    assert (later.from_seq, later.from_failures) == (0, 0), "it ended elsewhere"


def test_progress_forgets_the_failures_that_it_got_past() -> None:
    history = replace(TRAINED, signs=frozenset({("a", 10), ("b", 12), ("c", 13)}))
    evidence = killed(9, checkpoint_step=12)
    later = history.after(evidence, judged(evidence, history=history))
    assert later.signs == {("b", 12), ("c", 13)}


def test_without_progress_no_failure_is_forgotten_even_one_before_any_step() -> None:
    evidence = killed(11, step=0, checkpoint_step=10)
    later = TRAINED.after(evidence, judged(evidence))
    assert later.signs == {("11 ", 0)}


def test_of_an_attempt_whose_progress_nobody_knows_nothing_is_kept_but_that_it_was() -> None:
    evidence = killed(9, checkpoint_known=False, oom="so it was", stepped=True, step=17, resumed_seq=4)
    history = replace(TRAINED, stepped=False, fruitless=1)
    later = history.after(evidence, judged(evidence, history=history))
    assert later == replace(history, stepped=True, fruitless=2, recent=(0.0,))
    crash = replace(evidence, signal=11, oom="")
    assert history.after(crash, judged(crash, history=history)).signs == frozenset()


# Exit codes that the user knows better ------------------------------------------------------------


@pytest.mark.parametrize(("evidence", "code"), [(exited(3), 3), (killed(11), 139), (exited(139), 139)])
def test_a_code_never_to_be_retried_ends_the_run_at_once(evidence: Evidence, code: int) -> None:
    policy = Policy(never_retry=frozenset({code}))
    finish = judged(evidence, history=FIRST, policy=policy).finish
    assert finish is not None
    assert (finish.state, finish.exit_code) == (RunState.FAILED, code)
    finish = judged(evidence, policy=policy).finish
    assert finish is not None
    assert (finish.state, finish.exit_code) == (RunState.GAVE_UP, 125)
    assert "--never-retry-exit" in finish.detail


@pytest.mark.parametrize(("evidence", "code"), [(exited(3), 3), (killed(11), 139), (exited(2), 2)])
def test_a_code_always_to_be_retried_is_never_charged(evidence: Evidence, code: int) -> None:
    worn = replace(TRAINED, failures=2, signs=frozenset({("11 ", 0), ("exit 3", 0)}), memory=1)
    judgement = judged(replace(evidence, stepped=True), history=worn, policy=Policy(always_retry=frozenset({code})))
    assert (judgement.finish, judgement.charged) == (None, False)
    assert judged(evidence, history=FIRST, policy=Policy(always_retry=frozenset({code}))).finish is None


# Poison -------------------------------------------------------------------------------------------

FROM_7 = replace(TRAINED, from_seq=7, from_failures=1, failures=1)


def test_the_second_failure_from_one_checkpoint_goes_back_to_the_older_one() -> None:
    judgement = judged(killed(9, resumed_seq=7, older_seq=5), history=FROM_7)
    assert (judgement.finish, judgement.back_to, judgement.charged) == (None, 5, True)
    assert "an older one is tried, once" in judgement.detail


@pytest.mark.parametrize(
    ("evidence", "history"),
    [
        (killed(9, resumed_seq=7, older_seq=0), FROM_7),
        (killed(9, resumed_seq=6, older_seq=5), FROM_7),
        (killed(9, resumed_seq=7, older_seq=5), replace(FROM_7, went_back=True)),
        (killed(9, resumed_seq=7, older_seq=5), replace(FROM_7, from_failures=0)),
        (killed(9, resumed_seq=0, older_seq=5), replace(FROM_7, from_seq=0)),
        (killed(9, resumed_seq=7, older_seq=5, checkpoint_step=11), FROM_7),
        (killed(9, resumed_seq=7, older_seq=5, checkpoint_known=False), FROM_7),
        (killed(15, resumed_seq=7, older_seq=5), FROM_7),
        (killed(9, resumed_seq=7, older_seq=5, oom="so it was"), FROM_7),
    ],
    ids=[
        "no older one",
        "from another",
        "once already",
        "the first",
        "from none",
        "progress",
        "unknown",
        "preempted",
        "lack of memory",
    ],
)
def test_nothing_else_goes_back(evidence: Evidence, history: History) -> None:
    judgement = judged(evidence, history=history)
    assert (judgement.finish, judgement.back_to) == (None, 0)
    assert "older" not in judgement.detail


# Many of them -------------------------------------------------------------------------------------


@pytest.mark.parametrize(("fruitless", "words"), [(0, ""), (1, ""), (2, "; 3 attempts in a row"), (8, "; 9 attempts")])
def test_preemptions_without_progress_are_counted_in_words_from_the_third_on(fruitless: int, words: str) -> None:
    history = replace(TRAINED, fruitless=fruitless, recent=(1.0,))
    judgement = judged(killed(15, checkpoint_step=10), history=history)
    assert judgement.detail.startswith("SIGTERM to the child from outside" + words)
    assert ("in a row" in judgement.detail) == bool(words)
    assert judgement.recent == (1.0,), "it does not count for the window"
    assert judged(killed(15, checkpoint_step=11), history=history).detail == "SIGTERM to the child from outside"


def test_a_hundred_failures_within_an_hour_are_the_end_whatever_they_got_done() -> None:
    history = replace(TRAINED, recent=tuple(map(float, range(99))))
    finish = judged(killed(9, checkpoint_step=99, at=100.0), history=history).finish
    assert finish is not None
    assert finish.exit_code == 125
    assert finish.detail == "killed by SIGKILL; 100 failures within 60 minutes"
    assert judged(killed(9, checkpoint_step=99, at=3600.0), history=history).finish is None, "the first is too long ago"
    fewer = replace(history, recent=history.recent[1:])
    assert judged(killed(9, checkpoint_step=99, at=100.0), history=fewer).finish is None


def test_the_window_ends_what_is_always_retried_and_what_nobody_knows_of() -> None:
    history = replace(TRAINED, recent=tuple(map(float, range(99))))
    policy = Policy(always_retry=frozenset({3}))
    assert judged(exited(3, at=99.0), history=history, policy=policy).finish is not None
    assert judged(killed(9, at=99.0, checkpoint_known=False), history=history).finish is not None


def test_a_clock_that_was_set_back_makes_the_window_emptier_never_fuller() -> None:
    history = replace(TRAINED, recent=tuple(map(float, range(1000, 1099))))
    judgement = judged(killed(9, at=500.0), history=history)
    assert judgement.finish is None
    assert judgement.recent == (500.0,)


def test_the_window_forgets_what_is_older() -> None:
    judgement = judged(killed(9, at=4000.0), history=replace(TRAINED, recent=(1.0, 400.0, 401.0, 4000.0)))
    assert judgement.recent == (401.0, 4000.0, 4000.0)


# The history --------------------------------------------------------------------------------------

STEPS = st.none() | st.integers(0, 5)
ENDS = st.builds(
    killed,
    st.sampled_from([9, 11, 15]),
    checkpoint_step=STEPS,
    checkpoint_known=st.booleans(),
    stepped=st.booleans(),
    step=st.integers(0, 5),
    resumed_seq=st.integers(0, 2),
    older_seq=st.integers(0, 1),
    oom=st.sampled_from(["", "so it was"]),
    at=st.floats(0, 10**6),
)


@given(st.lists(ENDS, max_size=12))
def test_laws_of_the_history(ends: list[Evidence]) -> None:
    history, went_back = FIRST, 0
    for evidence in ends:
        judgement = judged(evidence, history=history, policy=Policy(max_failures=9))
        later = history.after(evidence, judgement)
        progress = history.progressed(evidence)
        assert later.attempt == history.attempt
        assert later.stepped == (history.stepped or evidence.stepped), "never forgotten"
        assert later.mark == (evidence.checkpoint_step if progress else history.mark), "never goes back"
        assert (later.fruitless == 0) == progress
        assert later.failures == (0 if progress else history.failures + judgement.charged)
        assert not judgement.charged or evidence.checkpoint_known
        assert later.failures <= later.fruitless
        went_back = 0 if progress else went_back + bool(judgement.back_to)
        assert went_back <= 1
        assert later.went_back == bool(went_back)
        if judgement.finish is not None:
            break
        history = later


COUNTS = st.integers(0, 2**62)
HISTORIES = st.builds(
    History,
    attempt=COUNTS,
    stepped=st.booleans(),
    mark=st.none() | COUNTS,
    failures=COUNTS,
    fruitless=COUNTS,
    signs=st.frozensets(st.tuples(st.text(), COUNTS)),
    memory=COUNTS,
    from_seq=COUNTS,
    from_failures=COUNTS,
    went_back=st.booleans(),
    recent=st.lists(st.floats(allow_nan=False)).map(tuple),
)


@given(HISTORIES)
def test_a_history_comes_back_from_the_journal(history: History) -> None:
    assert history_from_json(json.loads(json.dumps(history.as_json()))) == history


def test_a_history_from_an_older_journal_lacks_what_it_did_not_know() -> None:
    assert history_from_json({"failures": 2}) == History(failures=2)
    assert history_from_json({"failures": 2, "unheard of": 1}) == History(failures=2)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=6,
)
NAMES = [field.name for field in fields(History)]


@given(HISTORIES, st.sampled_from(NAMES), JSON)
def test_garbage_in_a_history_is_refused_or_harmless(history: History, name: str, garbage: object) -> None:
    """What is taken can be judged with; nothing but the two errors is raised."""
    try:
        taken = history_from_json({**history.as_json(), name: garbage})
    except (TypeError, ValueError):
        return
    assert history_from_json(taken.as_json()) == taken
    judged(killed(9), history=taken)


@pytest.mark.parametrize(
    "garbage",
    [
        {"failures": "3"},
        {"failures": -1},
        {"failures": True},
        {"failures": 1.0},
        {"stepped": 1},
        {"went_back": None},
        {"mark": "10"},
        {"mark": -1},
        {"signs": 7},
        {"signs": ["ab", 1]},
        {"signs": [[1, 2]]},
        {"signs": [["a", "2"]]},
        {"signs": [["a", 2, 3]]},
        {"recent": 5},
        {"recent": ["1"]},
        {"recent": [10**400]},
    ],
)
def test_a_history_that_is_none_is_refused(garbage: dict[str, Any]) -> None:
    with pytest.raises((TypeError, ValueError)):
        history_from_json(garbage)
