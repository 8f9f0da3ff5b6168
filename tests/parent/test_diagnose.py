"""The evidence: what the store holds and could be gone back to, and whose last words count."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from tests.store.helpers import RUN, at

from ksupervise.core.events import Failure
from ksupervise.parent.launch import Attempt
from ksupervise.parent.trainer import Facts
from ksupervise.parent.watch import diagnose
from ksupervise.parent.watch.diagnose import Held, held
from ksupervise.store import Checkpoint, CheckpointStore, Manifest, RunLayout, StoreUnreadable

NOW = 1_700_000_000.0


def checkpoint(seq: int, age: float, *, fit: int = 1, attempt: int = 1) -> Checkpoint:
    """Number `seq`, of step 10 · `seq`, made `age` minutes ago."""
    created = NOW - 60 * age
    manifest = Manifest(RUN, seq, attempt, "h", at(10 * seq, fit=fit), "interval", created, ())
    return Checkpoint(f"checkpoint-{seq}", manifest)


def shelf(*made: Checkpoint) -> CheckpointStore:
    """A store that holds these, in any order."""
    found = sorted(made, key=lambda each: each.manifest.order, reverse=True)
    store = SimpleNamespace(newest=lambda: next(iter(found), None), checkpoints=lambda: list(found))
    return cast("CheckpointStore", store)


# What the store holds -----------------------------------------------------------------------------


def test_an_empty_store_holds_nothing() -> None:
    assert held(shelf(), 0) == Held(0, None, 0)
    assert held(shelf(), 3) == Held(0, None, 0)


def test_the_newest_is_told_and_nothing_older_for_an_attempt_that_began_from_none() -> None:
    assert held(shelf(checkpoint(1, 30), checkpoint(2, 5)), 0) == Held(2, 20, 0)


@pytest.mark.parametrize(
    ("ages", "older"),
    [
        ((40, 30, 11, 2, 1), 3),  # number 5 was made a minute ago: number 3 is exactly ten minutes older
        ((40, 30, 10.9, 2, 1), 2),
        ((5, 4, 3, 2, 1), 4),
        ((300, 250, 200, 150, 100), 4),
        ((11, 5, 4, 3, 1), 1),
    ],
)
def test_the_newest_that_is_ten_minutes_older_is_chosen_else_the_one_before(
    ages: tuple[float, ...], older: int
) -> None:
    made = [checkpoint(seq, age) for seq, age in enumerate(ages, start=1)]
    assert held(shelf(*made), 5) == Held(5, 50, older)


def test_what_was_made_after_the_one_it_went_on_from_is_not_older() -> None:
    made = [checkpoint(1, 9), checkpoint(2, 8), checkpoint(3, 7, attempt=2), checkpoint(4, 6, attempt=2)]
    assert held(shelf(*made), 2) == Held(4, 40, 1)


def test_the_first_has_none_before_it() -> None:
    assert held(shelf(checkpoint(1, 30), checkpoint(2, 5)), 1) == Held(2, 20, 0)


def test_another_fits_are_not_gone_back_to() -> None:
    made = [checkpoint(1, 60, fit=1), checkpoint(2, 40, fit=1), checkpoint(3, 3, fit=2), checkpoint(4, 1, fit=2)]
    assert held(shelf(*made), 4).older == 3
    assert held(shelf(*made), 3).older == 0


def test_one_that_is_gone_meanwhile_leaves_nothing_to_compare_with() -> None:
    """Damaged and set aside, or removed: nobody knows how old it was."""
    assert held(shelf(checkpoint(1, 30), checkpoint(3, 1)), 2) == Held(3, 30, 0)


def test_a_clock_that_was_set_back_leaves_the_one_before() -> None:
    made = [checkpoint(1, 30), checkpoint(2, -600), checkpoint(3, 1)]
    assert held(shelf(*made), 3).older == 1, "the second is of the future, the first is old enough"
    assert held(shelf(checkpoint(1, -700), checkpoint(2, -600), checkpoint(3, 1)), 3).older == 2


def test_the_real_store_is_asked_in_the_same_way(tmp_path: Path) -> None:
    RunLayout(tmp_path / "run").create()
    store = CheckpointStore(tmp_path / "run", RUN)
    for seq in (1, 2, 3):
        store.commit(at(10 * seq), {}, seq=seq, attempt=1, holder="h", origin="interval")
    assert held(store, 3) == Held(3, 30, 2)


def test_a_store_that_cannot_be_asked_is_not_an_empty_one() -> None:
    def refuse() -> None:
        raise StoreUnreadable("it does not answer")

    with pytest.raises(StoreUnreadable):
        held(cast("CheckpointStore", SimpleNamespace(newest=refuse)), 0)


# The evidence -------------------------------------------------------------------------------------

CHILD, TRAINER, WORKER = 100, 101, 102
BAD, WORSE = Failure("ValueError"), Failure("KeyError")


def attempt(facts: Facts | None = None, stacks: Path | None = None, trained: int = 1, **child: Any) -> Attempt:
    """One that is over."""
    words = {"executed": 1, "trained": trained, "step": 17}
    stand_in = SimpleNamespace(
        facts=facts or Facts(),
        control=SimpleNamespace(integer=words.__getitem__),
        child=SimpleNamespace(**{"pid": CHILD, "exit_code": 1, "signal": None, **child}),
        log=SimpleNamespace(tail="x" * 5000 + "the end"),
        survivors=(7,),
        stacks=stacks,
        launched=time.monotonic() - 3600.0,
    )
    return cast("Attempt", stand_in)


def test_where_the_store_could_not_be_asked_progress_is_unknown() -> None:
    evidence = diagnose.evidence(attempt(), None, "")
    assert not evidence.checkpoint_known
    assert (evidence.checkpoint_step, evidence.checkpoint_seq, evidence.older_seq) == (None, 0, 0)


def test_everything_finds_its_place() -> None:
    facts = Facts(hooked=True, keras="3.15", fit_open=True, resumed_seq=4, nan=True)
    evidence = diagnose.evidence(attempt(facts), Held(5, 50, 3), "so says the kernel")
    assert evidence.checkpoint_known
    assert (evidence.checkpoint_seq, evidence.checkpoint_step, evidence.older_seq) == (5, 50, 3)
    assert (evidence.resumed_seq, evidence.step, evidence.stepped) == (4, 17, True)
    assert (evidence.hooked, evidence.keras, evidence.fit_open, evidence.nan) == (True, True, True, True)
    assert evidence.lasted >= 3600.0
    assert (evidence.claimed, diagnose.evidence(attempt(Facts(claimant=9)), None, "").claimed) == (False, True)
    assert (evidence.oom, evidence.survivors) == ("so says the kernel", (7,))
    assert evidence.tail.endswith("the end")
    assert len(evidence.tail) == 4096


def test_one_that_ended_no_step_of_its_own_made_none_whatever_step_it_was_put_back_to() -> None:
    evidence = diagnose.evidence(attempt(trained=0), None, "")
    assert (evidence.stepped, evidence.step) == (False, 17)


def test_of_exit_code_and_signal_one_is_told() -> None:
    killed = diagnose.evidence(attempt(exit_code=137, signal=9), None, "")
    assert (killed.exit_code, killed.signal) == (None, 9)
    exited = diagnose.evidence(attempt(exit_code=3), None, "")
    assert (exited.exit_code, exited.signal) == (3, None)


def test_a_crash_is_told_with_the_file_of_its_stacks(tmp_path: Path) -> None:
    path = tmp_path / "stacks.txt"
    assert diagnose.evidence(attempt(stacks=path), None, "").crash == ""
    path.write_text(
        "Fatal Python error: Segmentation fault\n\nCurrent thread 0x01 (most recent call first):\n"
        '  File "/u/train.py", line 9 in step\n'
    )
    assert diagnose.evidence(attempt(stacks=path), None, "").crash == f"train.py:9 in step; all stacks: {path}"


@pytest.mark.parametrize(
    ("trainer", "exits", "failure", "orderly"),
    [
        (0, {}, None, False),
        (0, {CHILD: None}, None, True),
        (0, {CHILD: BAD}, BAD, True),
        (0, {WORKER: BAD}, BAD, False),
        (0, {WORKER: None}, None, False),
        (CHILD, {CHILD: BAD}, BAD, True),
        (TRAINER, {}, None, False),
        (TRAINER, {TRAINER: BAD}, BAD, True),
        (TRAINER, {CHILD: WORSE, TRAINER: BAD}, WORSE, True),
        (TRAINER, {CHILD: None}, None, False),
        (TRAINER, {CHILD: WORSE}, WORSE, False),
        (TRAINER, {TRAINER: None, WORKER: BAD}, None, True),
        (TRAINER, {CHILD: None, WORKER: BAD}, BAD, False),
    ],
)
def test_whose_last_words_count(
    trainer: int, exits: dict[int, Failure | None], failure: Failure | None, orderly: bool
) -> None:
    """A trainer that said nothing was killed, whatever its wrapper says; else the child's own word comes first."""
    facts = replace(Facts(claimant=trainer), exits=exits)
    evidence = diagnose.evidence(attempt(facts), None, "")
    assert (evidence.failure, evidence.orderly) == (failure, orderly)
