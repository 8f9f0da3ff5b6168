"""Prune never takes what is pinned, nor the last valid one: all histories hypothesis can think of."""

from __future__ import annotations

import math
import os
import shutil
import tempfile
from dataclasses import replace
from typing import TYPE_CHECKING, Any, cast

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from ksupervise.store import (
    CHUNK,
    Checkpoint,
    CheckpointStore,
    DamagedCheckpoint,
    FileRecord,
    Kind,
    Manifest,
    Position,
    Retention,
    RunLayout,
    monitored,
    to_free,
    to_keep,
    to_thin,
    why_kept,
)

from .helpers import KINDS, RUN, assert_whole, at, flip, put

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


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
    later = Checkpoint("later", replace(checkpoint.manifest, position=at(2, "batch", 2), extra={"model": 1}))
    assert to_thin([later, checkpoint], 1, cap=0) == [checkpoint]
    assert to_thin([later, thinner], 1, cap=0) == [], "it is thin already"


def test_what_a_killed_thinning_left_is_swept(store: CheckpointStore) -> None:
    checkpoint = put(store, 1, at(1, "final"))
    thinner = store.thin(checkpoint, "state.safetensors")
    for name in ("state.safetensors", ".MANIFEST.json.tmp.1.aa"):
        with open(os.path.join(checkpoint.path, name), "wb") as stream:
            stream.write(b"left")
    assert store.checkpoints() == [thinner], "it is valid all the while"
    assert len(store.sweep()) == 2
    assert sorted(os.listdir(checkpoint.path)) == ["MANIFEST.json", "extra.json"]


def test_what_a_thinning_left_that_was_killed_at_once_is_swept(store: CheckpointStore) -> None:
    checkpoint = put(store, 1, at(1, "final"))
    for directory in (checkpoint.path, store.layout.aside):
        with open(os.path.join(directory, ".MANIFEST.json.tmp.1.aa"), "wb") as stream:
            stream.write(b"half")
    assert len(store.sweep()) == 2
    assert sorted(os.listdir(checkpoint.path)) == ["MANIFEST.json", "extra.json", "state.safetensors"]
    assert_whole(store, checkpoint)


def test_a_rollback_keeps_the_newest_of_the_newest_fit() -> None:
    assert kept_numbers([(2, "batch"), (2, "batch"), (1, "batch"), (1, "batch")], 1) == [4, 2]


def test_keep_must_be_positive() -> None:
    with pytest.raises(ValueError, match="at least one"):
        to_keep([], 0)


@pytest.mark.parametrize(
    "wrong",
    [{"newest": 0}, {"best": ("loss", "less")}, {"every": 0}, {"bytes": 0}, {"ages": (0.0,)}, {"ages": (math.nan,)}],
)
def test_a_policy_out_of_bounds_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"at least|neither|begin|longer"):
        Retention(**wrong)


# Best, every k-th, and the cap


def epochs(values: list[float | None], *, fit: int = 1, size: int = 0) -> list[Checkpoint]:
    """The end of an epoch for each value of val_loss, newest first; None for an epoch that was not monitored."""
    made = []
    for number, value in enumerate(values, 1):
        extra = {} if value is None else {"monitored": {"val_loss": value}}
        record = FileRecord("state.safetensors", size, CHUNK, (0,) if size else ())
        position = Position(fit=fit, epoch=number, batch=0, step=number, kind="epoch")
        made.append(Checkpoint(str(number), Manifest(RUN, number, 1, "h", position, "epoch", 0.0, (record,), extra)))
    return made[::-1]


def seqs(checkpoints: list[Checkpoint]) -> list[int]:
    """Their numbers."""
    return [each.manifest.seq for each in checkpoints]


@pytest.mark.parametrize(
    ("values", "direction", "best"),
    [
        ([3.0, 1.0, 2.0, 4.0], "min", 2),
        ([3.0, 1.0, 2.0, 4.0, 0.0], "max", 4),
        ([2.0, 1.0, 1.0, 3.0], "min", 2),  # of equal ones the older
        ([2.0, math.nan, 5.0, 6.0], "min", 1),
        ([2.0, math.nan, 1.0, 1.5], "max", 1),
        ([2.0, -math.inf, 5.0, 6.0], "min", 1),
        ([None, 7.0, None, None], "max", 2),
        ([math.nan, None, math.nan], "min", None),
        ([], "min", None),
    ],
)
def test_the_best_stays(values: list[float | None], direction: str, best: int | None) -> None:
    everything = epochs(values)
    newest = seqs(everything[:1])
    kept = seqs(to_keep(everything, Retention(newest=1, best=("val_loss", direction), ages=())))
    assert kept == newest + ([best] if best not in (None, *newest) else [])


@pytest.mark.parametrize("value", ["0.5", True, None, [0.5], {}])
def test_what_is_no_number_is_not_monitored(value: object) -> None:
    [checkpoint] = epochs([1.0])
    assert monitored(checkpoint, "val_loss") == 1.0
    checkpoint.manifest.extra["monitored"]["val_loss"] = value
    assert monitored(checkpoint, "val_loss") is None
    checkpoint.manifest.extra["monitored"] = value
    assert monitored(checkpoint, "val_loss") is None


def test_the_best_that_lost_its_weights_is_not_the_best() -> None:
    everything = epochs([1.0, 2.0, 3.0])
    everything[-1].manifest.extra["thin"] = True
    assert seqs(to_keep(everything, Retention(newest=1, best=("val_loss", "min"), ages=()))) == [3, 2]


def test_every_kth_epoch_of_every_fit_stays() -> None:
    second = [
        Checkpoint(f"2-{each.path}", replace(each.manifest, seq=each.manifest.seq + 10))
        for each in epochs([None] * 5, fit=2)
    ]
    everything = [*second, *epochs([None] * 7)]
    assert seqs(to_keep(everything, Retention(newest=1, every=3, ages=()))) == [15, 13, 6, 3]


def test_of_an_epoch_that_was_trained_twice_the_newer_end_stays() -> None:
    again = [Checkpoint("again", replace(epochs([None] * 2)[0].manifest, seq=9, attempt=2))]
    newest, *older = epochs([None] * 3)
    everything = [newest, *again, *older]
    assert seqs(to_keep(everything, Retention(newest=1, every=2, ages=()))) == [3, 9]


def test_the_middle_of_an_epoch_is_no_kth() -> None:
    everything = [Checkpoint("b", replace(epochs([None])[0].manifest, position=at(9))), *epochs([None])]
    middle = Checkpoint("m", replace(everything[0].manifest, position=replace(at(5), epoch=2)))
    assert to_keep([everything[0], middle, everything[1]], Retention(newest=1, every=1, ages=())) == everything


def test_what_is_kept_beyond_the_newest_is_told() -> None:
    everything = epochs([0.5, None, 0.7, 0.8, 0.9])
    told = why_kept(everything, Retention(newest=2, best=("val_loss", "min"), every=3, ages=()))
    words = {each.manifest.seq: [reason.words for reason in reasons] for each, reasons in told}
    assert words == {5: ["newest"], 4: ["newest"], 3: ["every 3 epochs"], 2: [], 1: ["best val_loss"]}


def test_beyond_the_cap_optional_ones_go_as_ranked() -> None:
    everything = epochs([0.5, 0.6, 0.7, 0.8, 0.9, 1.0, 1.1], size=100)
    for each, created in zip(everything, [2000.0, 1990.0, 1980.0, 1900.0, 1800.0, 1500.0, 1390.0], strict=True):
        object.__setattr__(each.manifest, "created", created)
    retention = Retention(newest=4, best=("val_loss", "max"), every=2, ages=(600.0,))
    assert seqs(to_keep(everything, retention)) == [7, 6, 5, 4, 2, 1], (
        "1 is old enough, and 2 both follows it and is even"
    )
    order = {600: [7, 6, 5, 4, 2, 1], 500: [7, 6, 5, 4, 2], 400: [7, 6, 5, 4], 300: [7, 6, 5], 200: [7, 6], 1: [7, 6]}
    for limit, kept in order.items():
        assert seqs(to_keep(everything, replace(retention, bytes=limit))) == kept


def test_the_best_goes_after_every_kth_and_before_the_newest() -> None:
    everything = epochs([0.1, 0.6, 0.7, 0.8, 0.9], size=100)
    retention = Retention(newest=3, best=("val_loss", "min"), every=2, ages=())
    assert seqs(to_keep(everything, retention)) == [5, 4, 3, 2, 1]
    assert seqs(to_keep(everything, replace(retention, bytes=400))) == [5, 4, 3, 1]
    assert seqs(to_keep(everything, replace(retention, bytes=300))) == [5, 4, 3]
    assert seqs(to_keep(everything, replace(retention, bytes=299))) == [5, 4]


def test_no_cap_takes_what_a_completed_fit_needs() -> None:
    everything = completed(5, models=5)
    assert to_keep(everything, Retention(newest=1, bytes=1)) == everything


def test_a_full_disk_takes_the_second_newest_last() -> None:
    everything = epochs([0.1, 0.6, 0.7, 0.8, 0.9])
    retention = Retention(newest=3, best=("val_loss", "min"), ages=())
    assert seqs(to_free(everything, retention)) == [2, 1, 3, 4]


def test_a_removal_reads_the_newest_that_stays(store: CheckpointStore, root: Path) -> None:
    made = [put(store, seed) for seed in range(1, 5)]
    flip(made[3].file_path("state.safetensors"), 20)
    again = CheckpointStore(root, RUN)
    with pytest.raises(DamagedCheckpoint, match=r"state\.safetensors: .*crc32 differs") as raised:
        again.prune(2)
    assert raised.value.path == made[3].path
    assert again.checkpoints() == made[::-1], "nothing was removed"
    again.set_aside(raised.value.path, raised.value.reason)
    assert again.prune(2) == [made[0].path]


def test_one_that_would_stay_alone_is_read_though_it_was_just_written(store: CheckpointStore) -> None:
    made = [put(store, seed) for seed in range(1, 4)]
    flip(made[2].file_path("state.safetensors"), 20)
    with pytest.raises(DamagedCheckpoint):
        store.prune(1)
    assert store.checkpoints() == made[::-1]


def test_what_was_just_written_is_believed_for_one_removal(store: CheckpointStore) -> None:
    made = [put(store, seed) for seed in range(1, 6)]
    assert store.prune(4) == [made[0].path]
    flip(made[4].file_path("state.safetensors"), 20)
    with pytest.raises(DamagedCheckpoint):
        store.prune(3)
    assert store.checkpoints() == made[:0:-1]


def policies() -> st.SearchStrategy[Retention]:
    """Any retention, with and without each policy."""
    return st.builds(
        Retention,
        newest=st.integers(1, 4),
        best=st.none() | st.tuples(st.just("val_loss"), st.sampled_from(["min", "max"])),
        every=st.none() | st.integers(1, 3),
        bytes=st.none() | st.integers(1, 1500),
        ages=st.sampled_from([(), (600.0,), (30.0, 600.0)]),
    )


@st.composite
def anything(draw: st.DrawFn) -> list[Checkpoint]:
    """Up to a dozen checkpoints, newest first, of any fit, kind, age, size and value."""
    made = []
    for seq in range(1, draw(st.integers(0, 12)) + 1):
        position = Position(
            fit=draw(st.integers(1, 3)),
            epoch=draw(st.integers(0, 6)),
            batch=0,
            step=seq,
            kind=draw(st.sampled_from(KINDS)),
        )
        extra = {
            "approximate": draw(st.booleans()),
            "monitored": draw(st.sampled_from([{}, {"val_loss": 0.5}, {"val_loss": 1.5}, {"val_loss": math.nan}])),
        }
        record = FileRecord("state", draw(st.sampled_from([1, 100, 700])), CHUNK, (0,))
        created = draw(st.sampled_from([0.0, 20.0, 700.0, 3700.0]))
        made.append(Checkpoint(str(seq), Manifest(RUN, seq, 1, "h", position, "interval", created, (record,), extra)))
    return made[::-1]


@given(anything(), policies())
def test_laws_of_what_is_kept(everything: list[Checkpoint], retention: Retention) -> None:
    kept = to_keep(everything, retention)
    assert kept == [each for each in everything if each in kept], "order stays, none invented"
    assert kept[: min(2, retention.newest)] == everything[: min(2, retention.newest)]
    for fit in {each.manifest.position.fit for each in everything if each.manifest.position.kind == "final"}:
        for kind in ("final", "epoch"):
            of_kind = [
                each for each in everything if (each.manifest.position.fit, each.manifest.position.kind) == (fit, kind)
            ]
            assert of_kind[:1] == [each for each in of_kind[:1] if each in kept]
    assert [each for each, reasons in why_kept(everything, retention) if reasons] == kept


@given(anything(), policies())
def test_laws_of_the_cap(everything: list[Checkpoint], retention: Retention) -> None:
    """What a cap takes is optional, and it takes no more than it must."""
    free = to_keep(everything, replace(retention, bytes=None))
    kept = to_keep(everything, retention)
    gone = [each for each in free if each not in kept]
    assert all(each in free for each in kept)
    if gone and retention.bytes is not None:
        order = to_free(everything, retention)
        last = max(gone, key=order.index)
        assert sum(each.manifest.size for each in [*kept, last]) > retention.bytes
        assert all(order.index(each) < order.index(last) for each in gone if each is not last)


@given(anything(), policies())
def test_laws_of_a_full_disk(everything: list[Checkpoint], retention: Retention) -> None:
    """Whatever retention is in force, what the run needs to go on is not among what may go."""
    order = to_free(everything, retention)
    needed = to_keep(everything, Retention(newest=1, ages=()))
    assert not [each for each in needed if each in order]
    assert sorted(seqs([*order, *needed])) == sorted(seqs(everything))
    superfluous = [each for each in everything if each not in to_keep(everything, replace(retention, bytes=None))]
    assert order[: len(superfluous)] == superfluous[::-1], "first what nobody wants, the oldest first"


# Policies that leave something to be removed, what is committed right before, and what rots then.
SPARING = st.builds(Retention, newest=st.integers(1, 3), every=st.none() | st.just(2), ages=st.just(()))
COMMITS = st.lists(st.sampled_from(["batch", "batch", *KINDS]), max_size=3)
ROT = st.sets(st.integers(0, 2))


class Histories(RuleBasedStateMachine):
    """Commits, removals, damage, bit rot and restarts in any order, beside a list that says what must be there.

    Rot is what listing does not notice. A removal does: before it the newest that stays is read in full. Only where
    another one stays beside it, and this process wrote it since it last removed any, that is believed to be whole.
    """

    def __init__(self) -> None:
        super().__init__()
        memory = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
        self.root = tempfile.mkdtemp(dir=memory)
        RunLayout(self.root).create()
        self.store = CheckpointStore(self.root, RUN)
        self.listed: list[Checkpoint] = []  # newest first
        self.rotten: set[str] = set()
        self.damaged: list[str] = []
        self.fresh = ""
        self.seed = 0
        self.fit = 1
        self.attempt = 1

    def teardown(self) -> None:
        shutil.rmtree(self.root)

    def whole(self) -> list[Checkpoint]:
        return [each for each in self.listed if each.path not in self.rotten]

    @initialize()
    def begin(self) -> None:
        self.commit(["batch"] * 4)

    @rule(kinds=COMMITS)
    def commit(self, kinds: list[Kind]) -> None:
        for kind in kinds:
            self.seed += 1
            made = put(self.store, self.seed, at(self.seed, kind, self.fit), attempt=self.attempt)
            self.listed.insert(0, made)
            self.fresh = made.path
            self.fit += kind == "final"

    @rule(kinds=COMMITS, rot=ROT, retention=SPARING)
    def prune(self, kinds: list[Kind], rot: set[int], retention: Retention) -> None:
        self.commit(kinds)
        self.rot(rot)
        must_stay = to_keep(self.listed, retention)
        self.remove(lambda: self.store.prune(retention), [each for each in self.listed if each not in must_stay])

    @rule(kinds=COMMITS, rot=ROT, retention=SPARING, wanted=st.integers(1, 20_000))
    def free(self, kinds: list[Kind], rot: set[int], retention: Retention, wanted: int) -> None:
        self.commit(kinds)
        self.rot(rot)
        may_go = to_free(self.listed, retention)
        gained = [sum(each.manifest.size for each in may_go[:number]) for number in range(len(may_go))]
        victims = [each for each, before in zip(may_go, gained, strict=True) if before < wanted]
        self.remove(lambda: [each.path for each in self.store.free(wanted, retention, refused=True)], victims)

    def rot(self, numbers: set[int]) -> None:
        """Turn a bit of those over, counted from the newest."""
        for number, each in enumerate(self.listed):
            if number in numbers and each.path not in self.rotten:
                flip(each.file_path("state.safetensors"), 20)
                self.rotten.add(each.path)

    def remove(self, act: Callable[[], list[str]], victims: list[Checkpoint]) -> None:
        """A removal of `victims`, or its refusal: then all is as it was, and the newest that would stay is rotten."""
        survivors = [each for each in self.listed if each not in victims]
        believed = len(survivors) > 1 and survivors[0].path == self.fresh
        before = self.whole()
        damage, removed = None, list[str]()
        try:
            removed = act()
        except DamagedCheckpoint as error:
            damage = error
        if damage is not None:
            assert damage.path == survivors[0].path
            assert damage.path in self.rotten
            assert not believed, "it was read without need"
            assert self.store.checkpoints() == self.listed
            self.store.set_aside(damage.path, damage.reason)
            self.listed.remove(survivors[0])
            return
        assert sorted(removed) == sorted(each.path for each in victims)
        self.listed = survivors
        if removed:
            assert believed or survivors[0].path not in self.rotten, "there is none whole that is newer"
            assert believed or self.whole() or not before, "the last one that is whole was removed"
            self.fresh = ""

    @precondition(lambda self: len(self.listed) > 1)
    @rule(data=st.data())
    def damage(self, data: st.DataObject) -> None:
        victim = data.draw(st.sampled_from(self.listed))
        os.truncate(os.path.join(victim.path, "state.safetensors"), 17)
        self.listed.remove(victim)
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
        self.fresh = ""
        self.store.sweep()

    @invariant()
    def the_store_knows_what_is_there(self) -> None:
        assert self.store.checkpoints() == self.listed
        assert sorted(path for path, _ in self.store.damaged()) == sorted(self.damaged)
        assert os.listdir(self.store.layout.tmp) == os.listdir(self.store.layout.trash) == []
        for each in self.whole()[:1]:
            assert_whole(self.store, each)


Histories.TestCase.settings = settings(
    max_examples=50, stateful_step_count=12, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
TestHistories = Histories.TestCase
