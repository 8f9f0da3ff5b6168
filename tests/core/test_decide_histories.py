"""Named histories: what happens to a run, what is done about it, and the verdict."""

from __future__ import annotations

import errno
from dataclasses import replace

import pytest

from ksupervise.core.actions import (
    Action,
    Cause,
    ClearTimer,
    EndAttempt,
    Finish,
    Launch,
    RaiseDrain,
    Relaunch,
    RequestStage,
    RunState,
    SetTimer,
    Settle,
    Signal,
    Target,
)
from ksupervise.core.decide import Phase
from ksupervise.core.events import (
    Advised,
    ChildExited,
    Evidence,
    Failure,
    FitBegan,
    FitEnded,
    Refused,
    Released,
    Settled,
    Spawned,
    SpawnFailed,
    Staged,
    Start,
    StopAsked,
    StopKind,
    Timer,
    TimerFired,
)
from ksupervise.core.policy import Policy

from .world import CTRL_C, LEAVES, NOTICE, SIGTERM, STALL, STOP_COMMAND, Run, exited, failure, killed

DRAINED = exited(75, fit_open=True, stepped=True)
CRASHED = killed(9, fit_open=True, stepped=True)
RAISED = exited(1, exception="ValueError", keras=True, orderly=True, fit_open=True, stepped=True)
DONE_WELL = exited(0, orderly=True, keras=True, stepped=True)

INT = Signal("INT", Target.TRAINER)
TERM = Signal("TERM", Target.TRAINER)
KILL = Signal("KILL", Target.GROUP)


def done(actions: tuple[Action, ...]) -> list[Action]:
    """`actions` without the forgetting of timers, which is never wrong, and without the limit of the last commit."""
    limit = SetTimer(Timer.SETTLE, Policy().settle_wait)
    return [action for action in actions if not isinstance(action, ClearTimer) and action != limit]


def cause(actions: tuple[Action, ...]) -> Cause:
    """The cause of the attempt that these actions end."""
    return next(action.cause for action in actions if isinstance(action, EndAttempt))


def detail(actions: tuple[Action, ...]) -> str:
    """The words for the end of the attempt that these actions end."""
    return next(action.detail for action in actions if isinstance(action, EndAttempt))


def told(run: Run) -> str:
    """The words of the verdict."""
    return run.world.verdicts[0].detail


# The plain life -----------------------------------------------------------------------------------


def test_a_run_that_nothing_happens_to() -> None:
    run = Run()
    assert run.happens(Start()) == (Launch(1),)
    assert run.happens(Spawned(), FitBegan(1), Staged(5), FitEnded(1)) == ()
    assert done(run.happens(ChildExited())) == [Settle()]
    actions = run.happens(Settled(DONE_WELL))
    assert done(actions) == [EndAttempt(Cause.COMPLETED, "completed"), Finish(RunState.COMPLETED, 0, "completed")]


def test_a_command_that_cannot_be_executed() -> None:
    run = Run()
    run.happens(Start(), SpawnFailed(127, "not found"))
    assert run.outcome == ("failed", 127)


# Ctrl-C -------------------------------------------------------------------------------------------


def test_ctrl_c_in_a_fit_stages_first_and_is_then_passed_on() -> None:
    run = Run().in_fit()
    assert run.happens(CTRL_C) == (RequestStage(hold=True), SetTimer(Timer.STAGE, 5.0))
    assert done(run.happens(Staged(7))) == [INT, SetTimer(Timer.GRACE, 30.0)]
    run.dies(exited(1, exception="KeyboardInterrupt", fit_open=True, stepped=True))
    assert run.outcome == ("interrupted", 130)


def test_ctrl_c_is_passed_on_when_no_stage_comes() -> None:
    run = Run().in_fit()
    assert done(run.happens(CTRL_C, TimerFired(Timer.STAGE))) == [INT, SetTimer(Timer.GRACE, 30.0)]


def test_ctrl_c_is_passed_on_when_the_fit_ends_meanwhile() -> None:
    run = Run().in_fit()
    assert INT in run.happens(CTRL_C, FitEnded(1))


@pytest.mark.parametrize("run", [Run().launched(), Run().after_fit()], ids=["before", "after"])
def test_ctrl_c_outside_a_fit_is_passed_on_at_once(run: Run) -> None:
    assert done(run.happens(CTRL_C)) == [INT, SetTimer(Timer.GRACE, 30.0)]


def test_the_second_and_the_third_ctrl_c_hurry() -> None:
    run = Run().in_fit()
    run.happens(CTRL_C)
    assert done(run.happens(CTRL_C)) == [TERM, SetTimer(Timer.GRACE, 5.0)]
    assert done(run.happens(CTRL_C)) == [KILL, SetTimer(Timer.KILL, 30.0)]
    assert run.happens(CTRL_C) == ()
    run.dies(CRASHED)
    assert run.outcome == ("interrupted", 130)


def test_the_second_and_the_third_ctrl_c_hurry_outside_a_fit_too() -> None:
    run = Run().launched()
    assert INT in run.happens(CTRL_C)
    assert TERM in run.happens(CTRL_C)
    assert KILL in run.happens(CTRL_C)


def test_a_script_that_swallows_ctrl_c_and_exits_0_was_interrupted_all_the_same() -> None:
    run = Run().in_fit()
    run.happens(CTRL_C, Staged(7), FitEnded(1))
    run.dies(DONE_WELL)
    assert run.outcome == ("interrupted", 130)


def test_a_script_that_is_done_before_ctrl_c_reaches_it_is_done() -> None:
    run = Run().in_fit()
    run.happens(CTRL_C)
    run.dies(DONE_WELL)
    assert run.outcome == ("completed", 0)


def test_a_script_deaf_to_ctrl_c_is_killed_after_the_grace() -> None:
    run = Run().after_fit()
    run.happens(CTRL_C)
    assert KILL in run.happens(TimerFired(Timer.GRACE))


# SIGTERM, notices, the deadline -------------------------------------------------------------------


def test_sigterm_in_a_fit_drains() -> None:
    run = Run().in_fit()
    assert run.happens(SIGTERM) == (RaiseDrain(30.0), SetTimer(Timer.DRAIN, 30.0))
    run.happens(Staged(7), LEAVES)
    run.dies(DRAINED)
    assert run.outcome == ("preempted", 75)


def test_a_drain_that_takes_too_long_becomes_sigterm_and_then_sigkill() -> None:
    run = Run().in_fit()
    assert done(run.happens(SIGTERM, TimerFired(Timer.DRAIN))) == [TERM, SetTimer(Timer.GRACE, 5.0)]
    assert done(run.happens(TimerFired(Timer.GRACE))) == [KILL, SetTimer(Timer.KILL, 30.0)]
    run.dies(CRASHED)
    assert run.outcome == ("preempted", 75)


def test_sigterm_before_the_first_fit_is_passed_on_at_once() -> None:
    run = Run().launched()
    assert done(run.happens(SIGTERM)) == [TERM, SetTimer(Timer.GRACE, 30.0)]
    run.dies(killed(15))
    assert run.outcome == ("preempted", 75)


def test_sigterm_in_code_after_a_fit_waits_for_it_until_the_deadline() -> None:
    run = Run().after_fit()
    assert run.happens(SIGTERM) == (RaiseDrain(30.0), SetTimer(Timer.DRAIN, 30.0))
    assert TERM in run.happens(TimerFired(Timer.DRAIN))


def test_a_script_that_ends_within_the_drain_is_done() -> None:
    run = Run().after_fit()
    run.happens(SIGTERM)
    run.dies(DONE_WELL)
    assert run.outcome == ("completed", 0)


def test_a_drain_has_the_grace_that_the_notice_leaves() -> None:
    assert RaiseDrain(7.0) in Run().in_fit().happens(NOTICE)


def test_a_notice_within_a_drain_only_brings_its_deadline_nearer() -> None:
    run = Run().in_fit()
    run.happens(SIGTERM)
    assert run.happens(NOTICE) == (RaiseDrain(7.0), SetTimer(Timer.DRAIN, 7.0))
    assert run.happens(StopAsked(StopKind.NOTICE, grace=20.0)) == ()
    assert run.happens(SIGTERM) == ()


def test_repeated_sigterms_hurry_nobody() -> None:
    run = Run().launched()
    run.happens(SIGTERM)
    assert run.happens(SIGTERM) == ()
    assert run.happens(StopAsked(StopKind.HANGUP)) == ()


def test_ctrl_c_within_a_preemptions_drain_makes_it_the_users_stop() -> None:
    run = Run().in_fit()
    run.happens(SIGTERM)
    assert run.happens(CTRL_C) == (), "the state is being saved already"
    assert TERM in run.happens(CTRL_C), "and the second one hurries"
    run.dies(killed(15))
    assert run.outcome == ("interrupted", 130)


def test_a_preemption_within_a_users_stop_leaves_it_the_users() -> None:
    run = Run().in_fit()
    run.happens(STOP_COMMAND)
    assert run.happens(SIGTERM) == (), "nor does it hurry"
    run.happens(LEAVES)
    run.dies(DRAINED)
    assert run.outcome == ("interrupted", 130)


def test_a_preemption_after_ctrl_c_was_passed_on_does_not_hurry() -> None:
    run = Run().launched()
    run.happens(CTRL_C)
    assert run.happens(SIGTERM) == ()
    run.dies(killed(2))
    assert run.outcome == ("interrupted", 130)


def test_of_two_preemptions_the_first_is_told() -> None:
    run = Run().in_fit()
    run.happens(SIGTERM, StopAsked(StopKind.DEADLINE), LEAVES)
    actions = run.dies(DRAINED)
    assert (cause(actions), detail(actions)) == (Cause.PREEMPTED, "SIGTERM")


def test_of_two_words_of_the_user_the_first_is_told() -> None:
    run = Run().in_fit()
    run.happens(STOP_COMMAND, CTRL_C)
    assert detail(run.dies(killed(15))) == "stopped by the user (ksupervise stop)"
    run = Run().in_fit()
    run.happens(CTRL_C, STOP_COMMAND)
    assert detail(run.dies(killed(15))) == "interrupted by the user (Ctrl-C)"


# ksupervise stop ----------------------------------------------------------------------------------


def test_the_stop_command_drains_and_is_final() -> None:
    run = Run().in_fit()
    assert run.happens(STOP_COMMAND) == (RaiseDrain(30.0), SetTimer(Timer.DRAIN, 30.0))
    run.happens(LEAVES)
    run.dies(DRAINED)
    assert run.outcome == ("interrupted", 130)


@pytest.mark.parametrize(
    ("stop", "outcome"),
    [(CTRL_C, ("interrupted", 130)), (STOP_COMMAND, ("interrupted", 130)), (SIGTERM, ("preempted", 75))],
)
class TestAStopInAnOddMoment:
    """No request to stop is lost, whenever it comes."""

    def test_before_the_start(self, stop: StopAsked, outcome: tuple[str, int]) -> None:
        run = Run()
        run.happens(stop)
        assert run.outcome == outcome

    def test_while_the_child_is_being_spawned(self, stop: StopAsked, outcome: tuple[str, int]) -> None:
        run = Run()
        run.happens(Start(), stop)
        assert run.happens(Spawned())[-1] == SetTimer(Timer.GRACE, 30.0)
        run.dies(killed(15))
        assert run.outcome == outcome

    def test_while_a_stalled_child_is_being_killed(self, stop: StopAsked, outcome: tuple[str, int]) -> None:
        run = Run().in_fit()
        assert done(run.happens(STALL)) == [KILL, SetTimer(Timer.KILL, 30.0)]
        run.happens(stop)
        run.dies(CRASHED)
        assert run.outcome == outcome

    def test_while_the_evidence_is_gathered(self, stop: StopAsked, outcome: tuple[str, int]) -> None:
        run = Run().in_fit()
        run.happens(ChildExited(), stop, Settled(CRASHED))
        assert run.outcome == outcome

    def test_while_the_next_attempt_is_awaited(self, stop: StopAsked, outcome: tuple[str, int]) -> None:
        run = Run().in_fit()
        run.dies(CRASHED)
        run.happens(stop)
        assert run.outcome == outcome

    def test_while_the_child_leaves_of_its_own_accord(self, stop: StopAsked, outcome: tuple[str, int]) -> None:
        run = Run().in_fit()
        run.happens(LEAVES, stop)
        run.dies(DRAINED)
        assert run.outcome == outcome

    def test_after_the_verdict(self, stop: StopAsked, outcome: tuple[str, int]) -> None:
        run = Run().after_fit()
        run.dies(DONE_WELL)
        assert run.happens(stop) == ()
        assert run.outcome == ("completed", 0)


# Deaths and the budget ----------------------------------------------------------------------------


def test_a_killed_child_is_launched_again() -> None:
    run = Run().in_fit()
    actions = run.dies(CRASHED)
    assert done(actions) == [EndAttempt(Cause.SIGNAL, "killed by SIGKILL"), Relaunch(1)]
    assert run.happens(TimerFired(Timer.BACKOFF)) == (Launch(2),)


def test_three_failures_without_a_newer_checkpoint_are_the_end() -> None:
    run = Run().in_fit()
    run.dies(CRASHED)
    run.in_fit().dies(CRASHED)
    assert run.outcome is None
    run.in_fit().dies(CRASHED)
    assert run.outcome == ("gave_up", 125)
    assert "3 failures without a newer checkpoint" in run.world.verdicts[0].detail


def test_a_newer_checkpoint_gives_the_budget_back() -> None:
    run = Run()
    for step in range(1, 20):
        run.in_fit().dies(killed(9, stepped=True, fit_open=True, checkpoint_step=step))
    assert run.phase is Phase.WAITING
    assert run.world.state.history.failures == 0


def test_the_same_checkpoint_again_is_no_progress() -> None:
    run = Run()
    for _ in range(4):
        run.in_fit().dies(killed(9, stepped=True, fit_open=True, checkpoint_step=10))
    assert run.outcome == ("gave_up", 125), "the first made progress, three more did not"


@pytest.mark.parametrize("drained", [True, False], ids=["left", "killed by SIGTERM"])
def test_a_preemption_of_the_child_alone_costs_nothing(drained: bool) -> None:
    run = Run()
    for _ in range(9):
        run.in_fit()
        if drained:
            run.happens(LEAVES)
        assert cause(run.dies(DRAINED if drained else killed(15, stepped=True))) is Cause.PREEMPTED
    assert run.phase is Phase.WAITING
    assert run.world.state.history.failures == 0


def test_a_preemption_without_progress_still_paces_the_relaunch() -> None:
    run = Run()
    run.in_fit().dies(killed(15))
    assert run.in_fit().dies(killed(15))[-1] == Relaunch(2)


def test_a_child_that_says_it_leaves_and_does_not_is_ended() -> None:
    run = Run().in_fit()
    assert run.happens(LEAVES) == (SetTimer(Timer.DRAIN, 30.0),)
    assert TERM in run.happens(TimerFired(Timer.DRAIN))
    assert KILL in run.happens(TimerFired(Timer.GRACE))
    assert cause(run.dies(CRASHED)) is Cause.PREEMPTED
    assert run.phase is Phase.WAITING


def test_a_stalled_child_is_killed_and_launched_again() -> None:
    run = Run().in_fit()
    run.happens(STALL)
    assert done(run.dies(CRASHED)) == [EndAttempt(Cause.STALLED, STALL.detail), Relaunch(1)]


def test_a_stall_within_a_drain_is_the_drains_own_matter() -> None:
    run = Run().in_fit()
    run.happens(SIGTERM)
    assert run.happens(STALL) == ()


def test_a_stall_kills_only_who_trains_undisturbed() -> None:
    for run in (Run().launched(), Run().in_fit(), Run().after_fit()):
        assert done(run.happens(STALL)) == [KILL, SetTimer(Timer.KILL, 30.0)]
        assert run.happens(STALL) == (), "once is enough"
    run = Run().in_fit()
    run.happens(CTRL_C)
    assert run.happens(STALL) == (), "its time is bounded already"


def test_two_stalls_in_one_place_are_still_worth_a_third_attempt() -> None:
    run = Run()
    for _ in range(2):
        run.in_fit().happens(STALL)
        run.dies(CRASHED)
    assert run.phase is Phase.WAITING
    run.in_fit().happens(STALL)
    run.dies(CRASHED)
    assert run.outcome == ("gave_up", 125)
    assert STALL.detail in told(run)


# The same again -----------------------------------------------------------------------------------


def raised(name: str, step: int, **about: object) -> Evidence:
    """An exception in training at that step; the newest checkpoint is of step 10."""
    about = {"checkpoint_step": 10, "fit_open": True, "keras": True, "orderly": True, "stepped": True, **about}
    return exited(1, exception=name, step=step, **about)


def test_the_same_failure_at_the_same_step_once_more_ends_the_run_and_is_shown() -> None:
    run = Run().in_fit()
    run.dies(raised("ValueError", 17))
    actions = run.in_fit().dies(raised("ValueError", 17))
    assert run.outcome == ("gave_up", 125)
    assert cause(actions) is Cause.EXCEPTION
    words = "ValueError, at train.py:12 in load (exit code 1); the same at step 17 as before: it would happen again"
    assert told(run) == words


def test_the_same_failure_at_another_step_is_another_failure() -> None:
    run = Run().in_fit()
    run.dies(raised("ValueError", 17))
    run.in_fit().dies(raised("ValueError", 18))
    assert run.phase is Phase.WAITING


def test_another_failure_at_the_same_step_is_another_failure() -> None:
    run = Run().in_fit()
    run.dies(raised("ValueError", 17))
    run.in_fit().dies(raised("ZeroDivisionError", 17))
    assert run.phase is Phase.WAITING


def test_the_same_exception_from_another_line_is_another_failure() -> None:
    run = Run().in_fit()
    run.dies(raised("ValueError", 17))
    elsewhere = replace(raised("ValueError", 17), failure=failure("ValueError", where="train.py:13 in load"))
    run.in_fit().dies(elsewhere)
    assert run.phase is Phase.WAITING


def test_the_same_failure_is_known_again_with_others_in_between() -> None:
    run = Run(Policy(max_failures=9)).in_fit()
    run.dies(raised("ValueError", 17))
    run.in_fit().dies(CRASHED)
    run.in_fit().dies(killed(15))
    run.in_fit().dies(raised("ValueError", 17))
    assert run.outcome == ("gave_up", 125)


def test_the_same_failure_at_the_same_step_is_known_again_even_if_a_later_checkpoint_was_made_before_it() -> None:
    run = Run().in_fit()
    run.dies(raised("ValueError", 17))
    run.in_fit().dies(raised("ValueError", 17, checkpoint_step=16))
    assert run.outcome == ("gave_up", 125)


@pytest.mark.parametrize(
    "passing",
    [
        failure("ConnectionResetError"),
        failure("OSError", errno=errno.EIO),
        failure("URLError", "<urlopen error timed out>"),
        failure("OSError", "No space left on device", errno=errno.ENOSPC),
        failure("UnavailableError", "Socket closed"),
    ],
    ids=lambda failure: failure.name,
)
def test_trouble_of_the_surroundings_at_the_same_step_is_charged_and_no_more(passing: Failure) -> None:
    evidence = replace(raised("OSError", 17), failure=passing)
    run = Run().in_fit()
    run.dies(evidence)
    run.in_fit().dies(evidence)
    assert run.phase is Phase.WAITING
    assert run.world.state.history.failures == 1, "the first had made a checkpoint"
    run.in_fit().dies(evidence)
    run.in_fit().dies(evidence)
    assert "3 failures without a newer checkpoint" in told(run)


def test_native_code_that_crashes_twice_in_one_place_would_crash_again() -> None:
    crash = killed(11, step=17, stepped=True, fit_open=True, crash="train.py:9 in step; all stacks: stacks.txt")
    run = Run().in_fit()
    run.dies(crash)
    run.in_fit().dies(replace(crash, crash="train.py:9 in step; all stacks: another/stacks.txt"))
    assert run.outcome == ("gave_up", 125)
    assert "native crash, killed by SIGSEGV; Python stood at train.py:9 in step; all stacks: another" in told(run)


def test_an_exception_twice_before_keras_is_there_would_be_raised_again() -> None:
    """Nothing was ever trained: nothing of an earlier attempt can be in its way."""
    run = Run().launched()
    run.dies(exited(1, exception="ZeroDivisionError"))
    actions = run.launched().dies(exited(1, exception="ZeroDivisionError"))
    assert cause(actions) is Cause.EXCEPTION
    assert "the same before any step as before" in told(run)


def test_native_code_that_crashes_elsewhere_is_tried_a_third_time() -> None:
    run = Run().in_fit()
    run.dies(killed(11, step=17, stepped=True, fit_open=True, crash="train.py:9 in step; all stacks: stacks.txt"))
    run.in_fit().dies(killed(11, step=17, stepped=True, fit_open=True, crash="train.py:8 in step; …"))
    assert run.phase is Phase.WAITING


def test_native_code_that_crashes_twice_before_any_step_of_a_run_would_crash_again() -> None:
    run = Run().launched()
    run.dies(killed(11))
    run.launched().dies(killed(11))
    assert run.outcome == ("gave_up", 125)
    assert "the same before any step as before" in told(run)


def test_native_code_that_crashes_twice_before_the_first_step_of_a_later_attempt_would_crash_again() -> None:
    run = Run().in_fit()
    run.dies(killed(9, step=17, stepped=True, fit_open=True, checkpoint_step=10))
    run.launched().dies(killed(11, checkpoint_step=10))
    actions = run.launched().dies(killed(11, checkpoint_step=10))
    assert run.outcome == ("gave_up", 125)
    assert cause(actions) is Cause.NATIVE_CRASH, "it is not the script that cannot be run twice"


def test_a_code_of_the_scripts_own_at_the_same_step_once_more_ends_the_run() -> None:
    run = Run().in_fit()
    run.dies(exited(3, step=17, stepped=True, fit_open=True))
    run.in_fit().dies(exited(3, step=17, stepped=True, fit_open=True))
    assert told(run) == "exit code 3; the same at step 17 as before: it would happen again"


def test_a_code_without_a_step_says_too_little_to_be_known_again() -> None:
    run = Run().launched()
    run.dies(exited(3))
    run.launched().dies(exited(3))
    assert run.phase is Phase.WAITING


def test_not_a_number_twice_in_one_place_comes_with_advice() -> None:
    nan = replace(raised("Exception", 17), failure=failure("InvalidArgumentError", "loss : Tensor had NaN values"))
    run = Run().in_fit()
    run.dies(nan)
    assert cause(run.in_fit().dies(nan)) is Cause.NAN
    assert "it would happen again. What helps: a smaller learning rate" in told(run)


# Memory -------------------------------------------------------------------------------------------

OOM = killed(9, oom="the cgroup's limit of 2 GB", stepped=True, fit_open=True, step=17, checkpoint_step=10)


def test_lack_of_memory_is_tried_once_more_and_then_ends_with_advice() -> None:
    run = Run().in_fit()
    run.dies(CRASHED)
    assert cause(run.in_fit().dies(replace(OOM, checkpoint_step=None))) is Cause.OUT_OF_MEMORY
    assert run.phase is Phase.WAITING
    run.in_fit().dies(replace(OOM, checkpoint_step=None, step=18))
    assert run.outcome == ("gave_up", 125)
    words = "out of memory: the cgroup's limit of 2 GB; it was so the last time, too. What helps: a smaller batch"
    assert told(run).startswith(words)


def test_lack_of_memory_at_the_same_step_is_no_accident_even_after_progress() -> None:
    run = Run().in_fit()
    run.dies(OOM)
    run.in_fit().dies(OOM)
    assert run.outcome == ("gave_up", 125)
    assert "the same at step 17 as before: it would happen again. What helps: a smaller batch" in told(run)


def test_lack_of_memory_in_the_script_counts_with_that_in_the_machine() -> None:
    run = Run(Policy(max_failures=9)).in_fit()
    run.dies(replace(OOM, checkpoint_step=None))
    run.in_fit().dies(raised("MemoryError", 19, checkpoint_step=None))
    assert run.outcome == ("gave_up", 125)


def test_lack_of_memory_with_progress_in_between_goes_on() -> None:
    run = Run()
    for step in range(1, 9):
        run.in_fit().dies(replace(OOM, checkpoint_step=step, step=2 * step + 10))
        run.in_fit().dies(replace(OOM, checkpoint_step=step, step=2 * step + 11))
        assert run.phase is Phase.WAITING


def test_lack_of_memory_is_not_the_checkpoints_fault() -> None:
    from_seven = replace(OOM, resumed_seq=7, older_seq=5)
    run = Run().in_fit()
    run.dies(from_seven)
    run.in_fit().dies(replace(from_seven, step=18))
    actions = run.in_fit().dies(replace(from_seven, step=19))
    assert not any(isinstance(action, Relaunch) for action in actions)
    assert "it was so the last time, too" in told(run)


# Poison -------------------------------------------------------------------------------------------

POISONED = killed(9, stepped=True, fit_open=True, step=17, checkpoint_step=10, resumed_seq=7, older_seq=5)


def test_two_failures_from_one_checkpoint_go_back_to_the_older_one_once() -> None:
    run = Run(Policy(max_failures=4)).in_fit()
    run.dies(replace(POISONED, resumed_seq=0))
    assert run.in_fit().dies(POISONED)[-1] == Relaunch(1)
    actions = run.in_fit().dies(POISONED)
    assert actions[-1] == Relaunch(2, back_to=5)
    assert "the second failure from that checkpoint" in next(a.detail for a in actions if isinstance(a, EndAttempt))
    older = replace(POISONED, resumed_seq=5, older_seq=3)
    assert run.in_fit().dies(older)[-1] == Relaunch(3), "from there on the budget decides"
    run.in_fit().dies(older)
    assert run.outcome == ("gave_up", 125)


def test_progress_from_the_older_checkpoint_gives_the_budget_back_and_another_going_back() -> None:
    run = Run().in_fit()
    run.dies(replace(POISONED, resumed_seq=0))
    run.in_fit().dies(POISONED)
    run.in_fit().dies(POISONED)
    run.in_fit().dies(replace(POISONED, resumed_seq=5, older_seq=3, checkpoint_step=20))
    from_nine = replace(POISONED, resumed_seq=9, older_seq=8, checkpoint_step=20)
    run.in_fit().dies(from_nine)
    assert run.in_fit().dies(from_nine)[-1] == Relaunch(2, back_to=8)


def test_a_preemption_between_two_failures_from_one_checkpoint_does_not_hide_them() -> None:
    run = Run().in_fit()
    run.dies(replace(POISONED, resumed_seq=0))
    run.in_fit().dies(POISONED)
    run.in_fit().dies(killed(15, checkpoint_step=10, resumed_seq=7, older_seq=5))
    assert run.in_fit().dies(POISONED)[-1] == Relaunch(3, back_to=5)


def test_a_preemption_of_an_attempt_from_another_checkpoint_lays_nothing_to_that_ones_charge() -> None:
    run = Run(Policy(max_failures=9)).in_fit()
    run.dies(replace(POISONED, resumed_seq=0))
    run.in_fit().dies(POISONED)
    run.in_fit().dies(killed(15, checkpoint_step=10, resumed_seq=6, older_seq=5))
    assert run.in_fit().dies(replace(POISONED, resumed_seq=6))[-1] == Relaunch(3)


def test_the_older_checkpoint_is_tried_even_if_the_budget_is_just_spent() -> None:
    run = Run(Policy(max_failures=2)).in_fit()
    run.dies(replace(POISONED, resumed_seq=0))
    run.in_fit().dies(POISONED)
    assert run.in_fit().dies(POISONED)[-1] == Relaunch(2, back_to=5)
    run.in_fit().dies(replace(POISONED, resumed_seq=5, older_seq=3))
    assert run.outcome == ("gave_up", 125)


# A second run of the script -----------------------------------------------------------------------


def test_what_an_earlier_attempt_left_in_the_way_ends_the_run_with_its_line() -> None:
    run = Run().in_fit()
    run.dies(CRASHED)
    there = failure("FileExistsError", "[Errno 17] File exists: 'logs'", "train.py:8", errno.EEXIST)
    actions = run.launched().dies(exited(1, failure=there, keras=True, orderly=True))
    assert cause(actions) is Cause.NOT_RERUNNABLE
    assert run.outcome == ("gave_up", 125)
    assert "cannot be run a second time" in told(run)
    assert "FileExistsError: [Errno 17] File exists: 'logs', at train.py:8 (exit code 1)" in told(run)
    assert "exist_ok=True" in told(run)


def test_the_same_exception_in_training_is_an_exception_like_any_other() -> None:
    run = Run().in_fit()
    run.dies(CRASHED)
    actions = run.in_fit().dies(raised("FileExistsError", 3, checkpoint_step=None))
    assert cause(actions) is Cause.EXCEPTION
    assert run.phase is Phase.WAITING


def test_the_same_exception_in_the_first_attempt_is_the_scripts_own() -> None:
    run = Run().launched()
    assert cause(run.dies(exited(1, exception="FileExistsError", keras=True, orderly=True))) is Cause.USER_ERROR


def test_any_exception_twice_before_the_first_step_of_a_run_that_trained_means_it_cannot_be_run_again() -> None:
    run = Run().in_fit()
    run.dies(killed(9, step=17, stepped=True, fit_open=True, checkpoint_step=10))
    error = exited(1, exception="KeyError", keras=True, orderly=True, checkpoint_step=10)
    run.launched().dies(error)
    assert run.phase is Phase.WAITING
    assert cause(run.launched().dies(error)) is Cause.NOT_RERUNNABLE


# Verdicts that the user decides -------------------------------------------------------------------


def test_a_code_that_the_user_says_is_final_is() -> None:
    run = Run(Policy(never_retry=frozenset({139}))).in_fit()
    run.dies(CRASHED)
    run.in_fit().dies(killed(11, stepped=True, fit_open=True, checkpoint_step=50))
    assert run.outcome == ("gave_up", 125)
    assert "--never-retry-exit" in told(run)


def test_a_code_that_the_user_says_is_always_worth_another_attempt_is() -> None:
    run = Run(Policy(always_retry=frozenset({137})))
    for _ in range(20):
        run.in_fit().dies(CRASHED)
    assert run.phase is Phase.WAITING
    assert run.world.state.history.failures == 0


# What costs nothing -------------------------------------------------------------------------------


def test_many_preemptions_without_progress_are_told_with_their_number() -> None:
    run = Run()
    words = [detail(run.in_fit().dies(killed(15))) for _ in range(4)]
    plain = "SIGTERM to the child from outside"
    assert words[:2] == [plain, plain]
    assert words[2:] == [f"{plain}; {row} attempts in a row without a newer checkpoint" for row in (3, 4)]
    run.in_fit().dies(killed(15, checkpoint_step=10, stepped=True))
    assert detail(run.in_fit().dies(killed(15, checkpoint_step=10))) == plain


def test_where_nobody_knows_of_progress_nothing_is_charged() -> None:
    run = Run()
    for _ in range(20):
        run.in_fit().dies(killed(11, stepped=True, fit_open=True, step=17, checkpoint_known=False))
    assert run.phase is Phase.WAITING
    assert run.world.state.history.failures == 0


def test_causes_that_take_turns_do_not_go_on_for_ever() -> None:
    run = Run().in_fit()
    run.dies(raised("ValueError", 17, checkpoint_step=None))
    run.in_fit().happens(STALL)
    run.dies(CRASHED)
    run.in_fit().dies(replace(OOM, checkpoint_step=None))
    assert run.outcome == ("gave_up", 125)


def test_a_hundred_failures_in_an_hour_are_too_many_even_with_progress() -> None:
    run = Run()
    for step in range(1, 100):
        run.in_fit().dies(killed(9, stepped=True, fit_open=True, checkpoint_step=step, at=30.0 * step))
    assert run.phase is Phase.WAITING
    run.in_fit().dies(killed(9, stepped=True, fit_open=True, checkpoint_step=100, at=3000.0))
    assert run.outcome == ("gave_up", 125)
    assert "100 failures within 60 minutes" in told(run)


def test_a_failure_every_minute_with_progress_goes_on_all_night() -> None:
    run = Run()
    for step in range(1, 500):
        run.in_fit().dies(killed(9, stepped=True, fit_open=True, checkpoint_step=step, at=60.0 * step))
    assert run.phase is Phase.WAITING


# What a shell makes of it -------------------------------------------------------------------------


def test_the_shells_143_is_the_sigterm_that_its_child_got() -> None:
    run = Run().in_fit()
    assert cause(run.dies(exited(143, fit_open=True, stepped=True))) is Cause.PREEMPTED
    assert run.world.state.history.failures == 0


def test_the_shells_139_is_a_native_crash() -> None:
    assert cause(Run().in_fit().dies(exited(139, fit_open=True, stepped=True))) is Cause.NATIVE_CRASH


@pytest.mark.parametrize(("oom", "expected"), [("", Cause.SIGNAL), ("the kernel says so", Cause.OUT_OF_MEMORY)])
def test_the_shells_137_is_lack_of_memory_only_if_the_machine_counted_one(oom: str, expected: Cause) -> None:
    run = Run().in_fit()
    actions = run.dies(exited(137, fit_open=True, stepped=True, oom=oom))
    assert cause(actions) is expected
    assert "(exit code 137)" in detail(actions) or oom


# Warnings -----------------------------------------------------------------------------------------


def test_a_warning_in_a_fit_has_the_state_saved_and_the_training_go_on() -> None:
    run = Run().in_fit()
    assert run.happens(Advised()) == (RequestStage(hold=False),)
    assert run.phase is Phase.RUNNING
    run.dies(DONE_WELL)
    assert run.outcome == ("completed", 0)


@pytest.mark.parametrize("run", [Run(), Run().launched(), Run().after_fit()], ids=["before", "launched", "after a fit"])
def test_a_warning_where_nothing_is_trained_changes_nothing(run: Run) -> None:
    before = run.world
    assert run.happens(Advised()) == ()
    assert run.world == before


def test_a_warning_within_a_drain_or_after_the_verdict_changes_nothing() -> None:
    run = Run().in_fit()
    run.happens(SIGTERM)
    assert run.happens(Advised()) == ()
    run.dies(DRAINED)
    assert run.happens(Advised()) == ()
    assert run.outcome == ("preempted", 75)


def test_a_notice_is_told_in_its_own_words() -> None:
    run = Run().in_fit()
    run.happens(StopAsked(StopKind.NOTICE, 60.0, "gcp: preempted"), LEAVES)
    assert detail(run.dies(DRAINED)) == "gcp: preempted"
    assert told(run) == "gcp: preempted"


def test_a_notice_between_two_attempts_is_told_in_its_own_words() -> None:
    run = Run().in_fit()
    run.dies(CRASHED)
    run.happens(StopAsked(StopKind.NOTICE, 60.0, "gcp: preempted"))
    assert run.outcome == ("preempted", 75)
    assert told(run) == "gcp: preempted"


def test_the_deadline_ends_the_run_as_a_preemption_with_a_cause_of_its_own() -> None:
    run = Run().in_fit()
    assert run.happens(StopAsked(StopKind.DEADLINE, 20.0)) == (RaiseDrain(20.0), SetTimer(Timer.DRAIN, 20.0))
    run.happens(LEAVES)
    assert cause(run.dies(DRAINED)) is Cause.DEADLINE
    assert run.outcome == ("preempted", 75)


# Errors of the script -----------------------------------------------------------------------------


def test_an_import_error_before_any_step_is_the_scripts_own() -> None:
    run = Run().launched()
    actions = run.dies(exited(1, exception="ImportError", orderly=True))
    assert cause(actions) is Cause.USER_ERROR
    assert run.outcome == ("failed", 1)
    assert run.world.verdicts[0].silent, "its own traceback has the last word"


def test_the_same_error_after_a_step_was_ever_made_is_tried_again() -> None:
    run = Run().in_fit()
    run.dies(CRASHED)
    run.launched().dies(exited(1, exception="ImportError", orderly=True))
    assert run.phase is Phase.WAITING


def test_an_error_in_the_middle_of_a_fit_is_tried_again() -> None:
    run = Run().in_fit()
    assert cause(run.dies(RAISED)) is Cause.EXCEPTION
    assert run.phase is Phase.WAITING


@pytest.mark.parametrize(
    ("evidence", "code"), [(RAISED, 1), (CRASHED, 137), (exited(42), 42)], ids=["raised", "killed", "exited"]
)
def test_with_one_failure_allowed_the_first_attempts_own_code_is_ours(evidence: object, code: int) -> None:
    run = Run(Policy(max_failures=1)).in_fit()
    run.dies(evidence)  # type: ignore[arg-type]
    assert run.outcome == ("failed", code)


def test_exit_0_with_a_fit_open_is_interrupted_never_completed() -> None:
    run = Run().in_fit()
    run.dies(exited(0, orderly=True, keras=True, fit_open=True, stepped=True))
    assert run.outcome == ("interrupted", 0)


def test_exit_0_of_a_wrapper_whose_trainer_died_in_a_fit_is_tried_again() -> None:
    run = Run().in_fit()
    run.happens(Released())
    assert cause(run.dies(exited(0, fit_open=True, stepped=True))) is Cause.TRAINER_DIED
    assert run.phase is Phase.WAITING


def test_exit_0_of_a_wrapper_whose_trainer_left_is_a_preemption() -> None:
    run = Run().in_fit()
    run.happens(LEAVES, Released())
    actions = run.dies(exited(0, orderly=True, fit_open=True, stepped=True))
    assert cause(actions) is Cause.PREEMPTED, "the word counts, not the exit code"
    assert run.phase is Phase.WAITING


def test_a_checkpoint_that_does_not_fit_is_final() -> None:
    run = Run().launched()
    run.happens(Refused("layer dense has 10 units, not 12"))
    run.dies(exited(2, keras=True))
    assert run.outcome == ("failed", 2)
    assert run.world.verdicts[0].detail == "layer dense has 10 units, not 12"


# What survives SIGKILL ----------------------------------------------------------------------------


def unkillable() -> Run:
    """A run whose child is still there when the time to kill it is over."""
    run = Run().in_fit()
    assert done(run.happens(STALL, TimerFired(Timer.KILL))) == [Settle()]
    return run


def test_a_child_that_cannot_be_killed_is_never_relaunched_beside() -> None:
    run = unkillable()
    run.happens(Settled(killed(9, survivors=(4711,))))
    assert run.outcome == ("gave_up", 125)
    assert "4711" in run.world.verdicts[0].detail


def test_a_child_that_dies_in_the_very_last_moment_is_launched_again() -> None:
    run = unkillable()
    assert run.happens(ChildExited()) == ()
    assert cause(run.happens(Settled(CRASHED))) is Cause.STALLED
    assert run.phase is Phase.WAITING


def test_a_store_that_does_not_take_the_last_stage_ends_the_run() -> None:
    run = Run().in_fit()
    run.happens(ChildExited())
    verdict = done(run.happens(TimerFired(Timer.SETTLE)))[-1]
    assert isinstance(verdict, Finish)
    assert verdict.exit_code == 125
    assert run.happens(Settled(CRASHED)) == ()


# What a stranger found ----------------------------------------------------------------------------


def test_a_loop_of_the_scripts_own_is_restarted_like_any_program() -> None:
    """No fit was seen, and it ran for an hour: nobody may call that an error before the first step."""
    run = Run().launched()
    run.dies(exited(1, exception="RuntimeError", keras=True, orderly=True, lasted=3600.0))
    assert run.phase is Phase.WAITING
    run.launched().dies(exited(1, exception="RuntimeError", keras=True, orderly=True, lasted=3600.0))
    assert run.phase is Phase.WAITING, "nobody knows where it was: it is no second time at the same step"


@pytest.mark.parametrize(
    ("lasted", "claimed", "is_the_scripts"),
    [(9.0, False, True), (59.9, False, True), (60.0, False, False), (3600.0, True, True)],
)
def test_one_that_failed_at_once_is_an_error_of_the_script(lasted: float, claimed: bool, is_the_scripts: bool) -> None:
    """So is one that prepared its data for an hour, and failed in the first step of a fit."""
    run = Run().launched()
    run.dies(exited(1, exception="RuntimeError", keras=True, orderly=True, lasted=lasted, claimed=claimed))
    assert (run.outcome == ("failed", 1)) == is_the_scripts


def test_what_costs_nothing_does_not_go_on_for_ever_either() -> None:
    run = Run(Policy(always_retry=frozenset({5}), row=9))
    for _ in range(8):
        run.launched().dies(exited(5))
        assert run.phase is Phase.WAITING
    run.launched().dies(killed(15))
    assert run.outcome == ("gave_up", 125)
    assert "9 attempts in a row without a newer checkpoint" in told(run)


def test_preemptions_with_progress_go_on_for_ever() -> None:
    run = Run(Policy(row=3))
    for step in range(1, 12):
        run.in_fit().dies(killed(15, stepped=True, checkpoint_step=step))
        assert run.phase is Phase.WAITING


def test_only_where_something_is_in_the_way_that_is_the_advice() -> None:
    run = Run().in_fit()
    run.dies(killed(9, stepped=True, checkpoint_step=4))
    for _ in range(2):
        run.launched().dies(exited(1, exception="KeyError", keras=True, orderly=True, checkpoint_step=4))
    assert run.outcome == ("gave_up", 125)
    assert "exist_ok" not in told(run)
