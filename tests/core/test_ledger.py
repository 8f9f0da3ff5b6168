"""The accounts: from the journal's records to attempts, lost work and goodput."""

from __future__ import annotations

from typing import Any

import pytest

from ksupervise.core.ledger import Account, account

Record = dict[str, Any]


def launched(attempt: int, at: float) -> Record:
    """An attempt began."""
    return {"event": "launched", "attempt": attempt, "at": at}


def fit_began(attempt: int, at: float) -> Record:
    """Training began."""
    return {"event": "fit_began", "attempt": attempt, "at": at, "fit": 1}


def resumed(attempt: int, step: int, guarantee: str = "exact") -> Record:
    """A checkpoint was put back."""
    return {"event": "resumed", "attempt": attempt, "at": 0.0, "step": step, "guarantee": guarantee}


def committed(attempt: int, step: int) -> Record:
    """A checkpoint became durable."""
    return {"event": "committed", "attempt": attempt, "at": 0.0, "step": step}


def ended(attempt: int, at: float, first: int | None, last: int | None, cause: str = "signal") -> Record:
    """An attempt is over, having trained from step `first` to `last`."""
    executed = last - first if first is not None and last is not None else 0
    steps = {"first_step": first, "last_step": last, "executed": executed}
    return {"event": "attempt_ended", "attempt": attempt, "at": at, "cause": cause, "signal": 9, "exit": None, **steps}


def accounts(*records: Record, now: float = 100.0) -> Account:
    """The accounts of these records; what is said of a state comes with the record before it."""
    at, known = 0.0, []
    for record in records:
        at = at if record["event"] in ("committed", "resumed") else record["at"]
        known.append({**record, "at": at})
    return account(known, now)


def test_nothing_happened_yet() -> None:
    assert accounts() == Account()


def test_an_attempt_in_hand_is_open() -> None:
    (attempt,) = accounts(launched(1, 5.0)).attempts
    assert (attempt.number, attempt.started, attempt.ended, attempt.cause) == (1, 5.0, None, None)


def test_a_run_without_mishap_lost_nothing() -> None:
    run = accounts(launched(1, 0.0), fit_began(1, 10.0), committed(1, 100), ended(1, 100.0, 0, 100, "completed"))
    assert (run.steps_executed, run.lost_steps, run.attempts[0].resumed_from) == (100, 0, None)
    assert run.goodput == pytest.approx(0.9), "ten seconds of a hundred went by before the fit"


def test_lost_work_is_what_lies_beyond_the_point_of_the_resume() -> None:
    run = accounts(
        *(launched(1, 0.0), fit_began(1, 0.0), committed(1, 40), ended(1, 50.0, 0, 50)),
        *(launched(2, 50.0), fit_began(2, 50.0), resumed(2, 40), ended(2, 100.0, 40, 90, "completed")),
    )
    assert [attempt.lost_steps for attempt in run.attempts] == [10, 0]
    assert (run.steps_executed, run.lost_steps) == (100, 10)
    assert [attempt.resumed_from for attempt in run.attempts] == [None, 40]
    assert run.attempts[1].guarantee == "exact"
    assert run.goodput == pytest.approx((50 * 0.8 + 50) / 100)


def test_a_start_from_nothing_loses_everything_before_it() -> None:
    run = accounts(launched(1, 0.0), ended(1, 50.0, 0, 50), launched(2, 50.0), ended(2, 60.0, 0, 5, "completed"))
    assert [attempt.lost_steps for attempt in run.attempts] == [50, 0]


def test_an_attempt_that_never_trained_changes_nothing() -> None:
    run = accounts(
        *(launched(1, 0.0), committed(1, 40), ended(1, 50.0, 0, 50)),
        *(launched(2, 50.0), ended(2, 51.0, None, None)),
        *(launched(3, 60.0), resumed(3, 40), ended(3, 80.0, 40, 60, "completed")),
    )
    assert [attempt.lost_steps for attempt in run.attempts] == [10, 0, 0]


def test_the_last_attempts_loss_is_counted_from_the_newest_checkpoint() -> None:
    run = accounts(launched(1, 0.0), committed(1, 30), committed(1, 40), ended(1, 50.0, 0, 50))
    assert run.lost_steps == 10
    assert run.checkpoint == {**committed(1, 40), "at": 0.0}


def test_going_back_to_an_older_checkpoint_loses_what_earlier_attempts_had_kept() -> None:
    run = accounts(
        *(launched(1, 0.0), committed(1, 50), ended(1, 50.0, 0, 60)),
        *(launched(2, 50.0), resumed(2, 50), ended(2, 51.0, 50, 55)),
        *(launched(3, 60.0), resumed(3, 50), ended(3, 61.0, None, None)),
        *(launched(4, 70.0), resumed(4, 40), ended(4, 80.0, 40, 100, "completed")),
    )
    assert [attempt.lost_steps for attempt in run.attempts] == [20, 5, 0, 0]
    assert run.steps_executed == 100 + run.lost_steps


def test_without_any_checkpoint_everything_is_lost() -> None:
    assert accounts(launched(1, 0.0), ended(1, 50.0, 0, 50)).lost_steps == 50


def test_of_several_resumes_the_last_one_counts() -> None:
    run = accounts(launched(1, 0.0), resumed(1, 20), resumed(1, 30, "exactly once"))
    assert (run.attempts[0].resumed_from, run.attempts[0].guarantee) == (30, "exactly once")


def test_goodput_needs_a_step() -> None:
    assert accounts(launched(1, 0.0), ended(1, 50.0, None, None)).goodput is None


def test_goodput_of_an_open_attempt_counts_until_now() -> None:
    records = (launched(1, 0.0), fit_began(1, 0.0), ended(1, 50.0, 0, 50, "completed"), launched(2, 50.0))
    assert accounts(*records, now=200.0).goodput == pytest.approx(0.25)


def test_goodput_is_counted_on_the_steady_clock() -> None:
    """The wall clock was set back by an hour in mid-training."""
    records = (launched(1, 5000.0), fit_began(1, 5010.0), ended(1, 1500.0, 0, 50, "completed"))
    steady = [{**record, "mono": mono} for record, mono in zip(records, (7.0, 17.0, 107.0), strict=True)]
    run = account(steady, 1500.0)
    assert run.goodput == pytest.approx(0.9)
    assert run.clock_flags == ("the wall clock was set back by 3600 s",)
    assert (run.attempts[0].started, run.attempts[0].ended) == (5000.0, 1500.0), "shown as the clock showed it"


def test_a_clock_that_jumps_between_lives_costs_no_goodput() -> None:
    assert accounts(launched(1, 1000.0), fit_began(1, 1001.0), ended(1, 5.0, 0, 50, "completed")).goodput == 0.0


def test_records_of_no_attempt_and_unknown_ones_are_passed_over() -> None:
    known = (launched(1, 0.0), ended(1, 50.0, 0, 50))
    foreign: tuple[Record, ...] = ({"event": "verdict", "at": 1.0}, {"event": "new thing", "attempt": 1, "at": 2.0})
    assert accounts(*known, *foreign) == accounts(*known)


def test_what_status_documents_is_there() -> None:
    (attempt,) = accounts(launched(1, 0.0), committed(1, 40), ended(1, 50.0, 0, 50)).attempts
    documented = {"number", "cause", "exit", "started", "ended", "first_step", "last_step", "resumed_from"}
    assert documented | {"lost_steps"} <= set(attempt.as_json())
    assert attempt.as_json()["lost_steps"] == 10


def test_a_lost_attempt_ended_before_it_was_entered() -> None:
    """Its end is found out by the next parent, hours later maybe."""
    lost = {**ended(1, 5000.0, 0, 10, cause="lost"), "ended": 60.0}
    found = accounts(launched(1, 0.0), fit_began(1, 10.0), lost, now=5000.0)
    assert found.attempts[0].ended == 60.0
