"""Prune never takes what is pinned, nor the last valid one: all histories hypothesis can think of."""

from __future__ import annotations

import os
import shutil
import tempfile
from typing import cast

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from ksupervise.store import (
    CHUNK,
    Checkpoint,
    CheckpointStore,
    FileRecord,
    Kind,
    Manifest,
    RunLayout,
    to_keep,
    to_thin,
)

from .helpers import KINDS, RUN, assert_whole, at, put


def listed(entries: list[tuple[int, Kind]]) -> list[Checkpoint]:
    """Checkpoints of those fits and kinds, newest first."""
    made = [
        Checkpoint(str(seq), Manifest(RUN, seq, 1, "h", at(seq, kind, fit), "interval", 0.0, ()))
        for seq, (fit, kind) in enumerate(entries, 1)
    ]
    return made[::-1]


def kept_numbers(entries: list[tuple[int, Kind]], keep: int) -> list[int]:
    return [each.manifest.seq for each in to_keep(listed(entries), keep)]


def test_the_newest_stay() -> None:
    assert kept_numbers([(1, "batch")] * 5, 2) == [5, 4]
    assert kept_numbers([], 1) == []


def test_a_completed_fit_keeps_its_final_and_its_last_epoch() -> None:
    fit: list[tuple[int, Kind]] = [(1, "epoch"), (1, "epoch"), (1, "batch"), (1, "final")]
    assert kept_numbers([*fit, (2, "epoch"), (2, "batch"), (2, "batch")], 1) == [7, 4, 2]


def test_an_open_fit_pins_no_epoch() -> None:
    assert kept_numbers([(1, "epoch"), (1, "batch"), (1, "batch")], 1) == [3]


def test_the_newest_that_is_not_approximate_stays() -> None:
    """It is what the next attempt goes back to."""
    exact, *later = listed([(1, "epoch"), (1, "batch"), (1, "batch"), (1, "batch")])[::-1]
    for each in later:
        each.manifest.extra["approximate"] = True
    assert [each.manifest.seq for each in to_keep([*later[::-1], exact], 2)] == [4, 3, 1]


def completed(fits: int, *, models: int, size: int = 100) -> list[Checkpoint]:
    """An epoch's end and the final state of so many fits, newest first; the models take turns."""
    made = []
    for seq in range(1, 2 * fits + 1):
        fit, kind = (seq + 1) // 2, "final" if seq % 2 == 0 else "epoch"
        record = FileRecord("state.safetensors", size, CHUNK, (0,))
        extra = {"model": (fit - 1) % models + 1}
        manifest = Manifest(RUN, seq, 1, "h", at(seq, cast(Kind, kind), fit), "interval", 0.0, (record,), extra)
        made.append(Checkpoint(str(seq), manifest))
    return made[::-1]


def test_of_many_completed_fits_the_older_ones_are_thinned() -> None:
    """Below the cap everything stays; above it the last state of each model does, and every final of some kind."""
    fits = completed(10, models=2)
    assert len(to_keep(fits, 1)) == 20
    assert to_thin(fits, 1) == []
    kept = to_keep(fits, 1, cap=500)
    finals = [each.manifest.position.fit for each in kept if each.manifest.position.kind == "final"]
    assert finals == list(range(10, 0, -1))
    assert [each.manifest.position.fit for each in kept if each.manifest.position.kind == "epoch"] == [10, 9]
    assert [each.manifest.position.fit for each in to_thin(kept, 1, cap=500)] == [1, 2, 3, 4, 5]
    assert [each.manifest.position.fit for each in to_thin(kept, 1, cap=0)] == list(range(1, 9)), (
        "9 and 10 are the last"
    )


def test_models_of_their_own_are_never_thinned() -> None:
    assert to_thin(completed(10, models=10), 1, cap=0) == []


def test_thinning_leaves_a_valid_checkpoint(store: CheckpointStore) -> None:
    checkpoint = put(store, 1, at(1, "final"))
    thinner = store.thin(checkpoint, "state.safetensors")
    assert [each.manifest for each in store.checkpoints()] == [thinner.manifest]
    assert store.damaged() == []
    store.verify(thinner)
    assert thinner.manifest.extra["thin"] is True
    assert not os.path.exists(os.path.join(checkpoint.path, "state.safetensors"))
    assert to_thin([thinner], 0, cap=0) == []


def test_what_a_killed_thinning_left_is_swept(store: CheckpointStore) -> None:
    checkpoint = put(store, 1, at(1, "final"))
    thinner = store.thin(checkpoint, "state.safetensors")
    for name in ("state.safetensors", ".MANIFEST.json.tmp.1.aa"):
        with open(os.path.join(checkpoint.path, name), "wb") as stream:
            stream.write(b"left")
    assert store.checkpoints() == [thinner], "it is valid all the while"
    assert len(store.sweep()) == 2
    assert sorted(os.listdir(checkpoint.path)) == ["MANIFEST.json", "extra.json"]


def test_a_rollback_keeps_the_newest_of_the_newest_fit() -> None:
    assert kept_numbers([(2, "batch"), (2, "batch"), (1, "batch"), (1, "batch")], 1) == [4, 2]


@given(st.lists(st.tuples(st.integers(1, 3), st.sampled_from(KINDS)), max_size=12), st.integers(1, 4))
def test_laws_of_what_is_kept(entries: list[tuple[int, Kind]], keep: int) -> None:
    everything = listed(entries)
    kept = to_keep(everything, keep)
    assert kept[:keep] == everything[:keep]
    assert [each for each in everything if each in kept] == kept, "order stays, none invented"
    assert to_keep(kept, keep) == kept, "twice is once"
    for fit in {fit for fit, kind in entries if kind == "final"}:
        for kind in ("final", "epoch"):
            of_kind = [
                each for each in everything if (each.manifest.position.fit, each.manifest.position.kind) == (fit, kind)
            ]
            assert of_kind[:1] == [each for each in of_kind[:1] if each in kept]


def test_keep_must_be_positive() -> None:
    with pytest.raises(ValueError, match="at least one"):
        to_keep([], 0)


class Histories(RuleBasedStateMachine):
    """Commits, prunes, damage and restarts in any order, beside a list that says what must be there."""

    def __init__(self) -> None:
        super().__init__()
        memory = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
        self.root = tempfile.mkdtemp(dir=memory)
        RunLayout(self.root).create()
        self.store = CheckpointStore(self.root, RUN)
        self.valid: list[Checkpoint] = []  # newest first
        self.damaged: list[str] = []
        self.seed = 0
        self.fit = 1
        self.attempt = 1

    def teardown(self) -> None:
        shutil.rmtree(self.root)

    @rule(kind=st.sampled_from(KINDS))
    def commit(self, kind: Kind) -> None:
        self.seed += 1
        self.valid.insert(0, put(self.store, self.seed, at(self.seed, kind, self.fit), attempt=self.attempt))
        self.fit += kind == "final"

    @rule(keep=st.integers(1, 3))
    def prune(self, keep: int) -> None:
        must_stay = to_keep(self.valid, keep)
        removed = self.store.prune(keep)
        assert {each.path for each in self.valid} - set(removed) == {each.path for each in must_stay}
        self.valid = must_stay

    @precondition(lambda self: len(self.valid) > 1)
    @rule(data=st.data())
    def damage(self, data: st.DataObject) -> None:
        victim = data.draw(st.sampled_from(self.valid))
        os.truncate(os.path.join(victim.path, "state.safetensors"), 17)
        self.valid.remove(victim)
        self.damaged.append(victim.path)

    @precondition(lambda self: self.damaged)
    @rule()
    def set_aside(self) -> None:
        for path, reason in self.store.damaged():
            self.store.set_aside(path, reason)
        self.damaged = []

    @rule(back=st.booleans())
    def relaunch(self, back: bool) -> None:
        self.attempt += 1
        self.fit = max(1, self.fit - back)
        self.store = CheckpointStore(self.root, RUN)
        self.store.sweep()

    @invariant()
    def the_store_knows_what_is_valid(self) -> None:
        assert self.store.checkpoints() == self.valid
        assert sorted(path for path, _ in self.store.damaged()) == sorted(self.damaged)
        assert os.listdir(self.store.layout.tmp) == os.listdir(self.store.layout.trash) == []
        if self.valid:
            assert_whole(self.store, self.valid[0])


Histories.TestCase.settings = settings(
    max_examples=40, stateful_step_count=20, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
TestHistories = Histories.TestCase
