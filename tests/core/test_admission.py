"""Calling a run again: DESIGN's table (section 9), row by row."""

from __future__ import annotations

import itertools

import pytest

from ksupervise.core.actions import RunState
from ksupervise.core.admission import Admission, Verb, admit

VERDICT_OF_THE_USER = (RunState.INTERRUPTED, 130)
ENDED_FOR_GOOD = [(RunState.FAILED, 1), (RunState.FAILED, 2), (RunState.GAVE_UP, 125), VERDICT_OF_THE_USER]
TO_GO_ON = [
    (RunState.PREEMPTED, 75),
    (RunState.INTERRUPTED, 0),  # the script ended inside a fit
    (RunState.RUNNING, None),  # its owner is dead
    (RunState.LOST, None),
]


def called(
    state: RunState | None,
    code: int | None = None,
    *,
    changed: bool = False,
    interactive: bool = False,
    retry: bool = False,
) -> Admission:
    """The run is called again, by cron unless said otherwise."""
    return admit(state, code, changed=changed, interactive=interactive, retry=retry)


def test_a_run_that_nobody_knows_starts() -> None:
    assert called(None) == Admission(Verb.START)


def test_a_completed_run_says_so_and_is_done_at_once() -> None:
    for interactive, retry in itertools.product([True, False], repeat=2):
        admission = called(RunState.COMPLETED, 0, interactive=interactive, retry=retry)
        assert (admission.verb, admission.exit_code) == (Verb.DONE, 0)
        assert "--fresh" in admission.line


def test_a_completed_run_whose_script_changed_starts() -> None:
    admission = called(RunState.COMPLETED, 0, changed=True)
    assert (admission.verb, admission.exit_code) == (Verb.START, 0)
    assert "changed" in admission.line


@pytest.mark.parametrize(("state", "code"), TO_GO_ON)
def test_a_preempted_interrupted_or_lost_run_resumes_whoever_calls(state: RunState, code: int | None) -> None:
    for changed, interactive, retry in itertools.product([True, False], repeat=3):
        admission = called(state, code, changed=changed, interactive=interactive, retry=retry)
        assert admission.verb is Verb.RESUME


@pytest.mark.parametrize(("state", "code"), ENDED_FOR_GOOD)
class TestARunThatFailedGaveUpOrWasStopped:
    """It goes on only if somebody wants it to."""

    def test_declines_with_the_same_code_when_nothing_changed(self, state: RunState, code: int) -> None:
        admission = called(state, code)
        assert (admission.verb, admission.exit_code) == (Verb.DECLINE, code)
        assert "--retry" in admission.line
        assert f"exit code {code}" in admission.line

    def test_goes_on_from_a_terminal(self, state: RunState, code: int) -> None:
        assert called(state, code, interactive=True) == Admission(Verb.RETRY)

    def test_goes_on_with_retry(self, state: RunState, code: int) -> None:
        assert called(state, code, retry=True) == Admission(Verb.RETRY)

    def test_goes_on_when_the_script_changed(self, state: RunState, code: int) -> None:
        assert called(state, code, changed=True) == Admission(Verb.RETRY)


def test_what_a_declined_run_is_said_to_be() -> None:
    assert called(RunState.GAVE_UP, 125).line.startswith("the run gave up before")
    assert called(RunState.FAILED, 1).line.startswith("the run failed before")
    assert called(*VERDICT_OF_THE_USER).line.startswith("the run was stopped by the user before")


def test_a_failure_without_a_recorded_code_is_still_a_failure() -> None:
    assert called(RunState.FAILED).exit_code == 1
