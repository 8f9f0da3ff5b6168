"""Named histories: what happens to a run, what is done about it, and the verdict."""

from __future__ import annotations

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
    ChildExited,
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

from .world import CTRL_C, LEAVES, NOTICE, SIGTERM, STALL, STOP_COMMAND, Run, exited, killed

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
    assert run.happens(CTRL_C) == (RequestStage(), SetTimer(Timer.STAGE, 5.0))
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
    run.happens(STOP_COMMAND, SIGTERM, LEAVES)
    run.dies(DRAINED)
    assert run.outcome == ("interrupted", 130)


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
    assert done(run.dies(CRASHED)) == [EndAttempt(Cause.STALLED, "no step for 60 s"), Relaunch(1)]


def test_a_stall_within_a_drain_is_the_drains_own_matter() -> None:
    run = Run().in_fit()
    run.happens(SIGTERM)
    assert run.happens(STALL) == ()


# Errors of the script -----------------------------------------------------------------------------


def test_an_import_error_before_any_step_is_the_scripts_own() -> None:
    run = Run().launched()
    actions = run.dies(exited(1, exception="ImportError", orderly=True))
    assert cause(actions) is Cause.USER_ERROR
    assert run.outcome == ("failed", 1)


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
