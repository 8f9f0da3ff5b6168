"""What an object remembers: what changed since the fit began, and nothing that stayed as the script made it."""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from ksupervise.child.attributes import Attributes

from .helpers import Thing, same, through_a_checkpoint

MIB = 1024 * 1024


def begun(owner: Any, without: tuple[str, ...] = ()) -> Attributes:
    attributes = Attributes(owner, "prefix", without)
    attributes.begin()
    return attributes


def carried(attributes: Attributes) -> list[str]:
    return sorted(attributes.capture({}))


def test_only_what_changed_is_carried() -> None:
    owner = Thing(stays=[1, 2], grows=[1], counts=0, data=np.arange(9), path="x")
    attributes = begun(owner)
    assert carried(attributes) == []
    owner.grows.append(2)
    owner.counts += 1
    owner.new = {"made": "during the fit"}
    assert carried(attributes) == ["counts", "grows", "new"]
    attributes.begin()
    assert carried(attributes) == []


def test_what_is_put_back_as_it_was_is_carried_no_longer() -> None:
    owner = Thing(counts=0)
    attributes = begun(owner)
    owner.counts = 1
    assert carried(attributes) == ["counts"]
    owner.counts = 0
    assert carried(attributes) == []


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ([1], (1,)),
        ({1}, frozenset({1})),
        ({"a": 1, "b": 2}, {"b": 2, "a": 1}),
        (deque([1], 2), deque([1], 3)),
        (np.float32(1), np.float64(1)),
        (np.zeros(4, "f4"), np.zeros(4, "i4")),
        (np.zeros((2, 3)), np.zeros((3, 2))),
        (random.Random(1), random.Random(2)),
    ],
)
def test_another_kind_of_the_same_value_is_a_change(before: Any, after: Any) -> None:
    owner = Thing(value=before)
    attributes = begun(owner)
    owner.value = after
    assert carried(attributes) == ["value"]


def test_the_prefix_and_what_is_not_ours() -> None:
    owner = Thing(model=[1], own=np.zeros(3))
    attributes = begun(owner, ("model",))
    owner.model.append(2)
    owner.own[0] = 1
    arrays: dict[str, Any] = {}
    assert list(attributes.capture(arrays)) == ["own"]
    assert list(arrays) == ["prefix/own"]


def test_of_a_built_in_callback_only_the_listed_ones_are_looked_at() -> None:
    owner = Thing(wait=0, best=1.0, other=object())
    attributes = Attributes(owner, "prefix")
    assert attributes.capture({}, only=("wait", "best", "missing")) == {"wait": 0, "best": 1.0}
    assert not attributes.skipped


# Arrays -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("nbytes", [8, 4096, 16 * MIB])
@pytest.mark.parametrize("at", [0.0, 0.37, 1.0])
def test_a_change_in_place_of_any_byte_is_seen(nbytes: int, at: float) -> None:
    owner = Thing(array=np.zeros(nbytes, "u1"))
    attributes = begun(owner)
    owner.array[int(at * (nbytes - 1))] = 1
    assert carried(attributes) == ["array"]


@pytest.mark.parametrize(
    "view", [lambda array: array[::2], lambda array: array.T, lambda array: array[..., 1:], lambda array: array[2, 3]]
)
def test_a_change_in_place_is_seen_through_any_view(view: Callable[[Any], Any]) -> None:
    base = np.zeros((6, 8))
    owner = Thing(array=view(base))
    attributes = begun(owner)
    base[:] = 1
    assert carried(attributes) == (["array"] if isinstance(owner.array, np.ndarray) else [])
    arrays: dict[str, Any] = {}
    saved = attributes.capture(arrays)
    fresh = Thing(array=view(np.zeros((6, 8))))
    begun(fresh).put_back(saved, through_a_checkpoint(arrays))
    assert same(np.ascontiguousarray(fresh.array), np.ascontiguousarray(owner.array))


def test_a_large_array_is_sampled() -> None:
    """To read all of it at every stage would cost more than a training step: a single byte may be missed."""
    owner = Thing(array=np.zeros(40 * MIB, "u1"))
    attributes = begun(owner)
    owner.array[::1000] = 1
    assert carried(attributes) == ["array"]
    owner.array[:] = 0
    assert carried(attributes) == []
    owner.array = np.zeros(40 * MIB + 1, "u1")
    assert carried(attributes) == ["array"]


def test_a_large_array_that_stays_is_not_carried() -> None:
    """A callback that holds the validation set does not put it into every checkpoint."""
    owner = Thing(validation=(np.ones((5, MIB), "f4"), np.ones(MIB)), step=0)
    attributes = begun(owner)
    owner.step = 1
    arrays: dict[str, Any] = {}
    assert attributes.capture(arrays) == {"step": 1}
    assert not arrays


# Putting back -------------------------------------------------------------------------------------


def test_everything_comes_back() -> None:
    owner = Thing(rows=[1], best=None, weights=np.zeros(3), seen=set())
    attributes = begun(owner)
    owner.rows.append(2)
    owner.best = np.float32(0.5)
    owner.weights = [np.arange(3.0), np.ones(2)]
    owner.seen |= {"a", "b"}
    arrays: dict[str, Any] = {}
    saved = attributes.capture(arrays)
    fresh = Thing(rows=[1], best=None, weights=np.zeros(3), seen=set())
    begun(fresh).put_back(saved, through_a_checkpoint(arrays))
    assert same(vars(fresh), vars(owner))
    fresh.weights[0][0] = 7  # its own, and writable


GENERATORS: list[Callable[[], Any]] = [
    lambda: random.Random(1),
    lambda: np.random.RandomState(1),
    lambda: np.random.default_rng(1),
    lambda: np.random.Generator(np.random.Philox(1)),
]


@pytest.mark.parametrize("make", GENERATORS)
def test_a_generator_keeps_its_identity(make: Callable[[], Any]) -> None:
    """Whoever else holds it (a function in the pipeline) draws on from the same place."""
    owner = Thing(rng=make())
    attributes = begun(owner)
    owner.rng.random()
    arrays: dict[str, Any] = {}
    saved = attributes.capture(arrays)
    shared = make()
    fresh = Thing(rng=shared)
    begun(fresh).put_back(saved, through_a_checkpoint(arrays))
    assert fresh.rng is shared
    assert shared.random() == owner.rng.random()


def test_a_generator_in_the_place_of_another_kind_is_made_anew() -> None:
    owner = Thing(rng=None)
    attributes = begun(owner)
    owner.rng = np.random.default_rng(3)
    owner.rng.random()
    arrays: dict[str, Any] = {}
    saved = attributes.capture(arrays)
    fresh = Thing(rng=random.Random(3))
    begun(fresh).put_back(saved, arrays)
    assert fresh.rng.random() == owner.rng.random()


def test_generators_alone() -> None:
    """What is noted before each item of a PyDataset: cheap, and put back into the same objects."""
    owner = Thing(one=np.random.RandomState(1), two=random.Random(1), data=np.zeros(99), name="x")
    attributes = Attributes(owner, "prefix")
    states = attributes.generators()
    assert sorted(states) == ["one", "two"]
    drawn = [owner.one.rand(), owner.two.random()]
    attributes.put_back_generators(states)
    assert [owner.one.rand(), owner.two.random()] == drawn


def test_a_snapshot_is_a_copy() -> None:
    owner = Thing(order=np.arange(5), epoch=0)
    attributes = begun(owner)
    owner.order[:] = owner.order[::-1].copy()
    owner.epoch = 1
    snapshot = attributes.snapshot()
    owner.order[:] = 0
    owner.epoch = 2
    attributes.put_back_snapshot(snapshot)
    assert owner.order.tolist() == [4, 3, 2, 1, 0]
    assert owner.epoch == 1


class Variable:
    """Of the looks of tf.Variable and of Keras' own."""

    trainable = True

    def __init__(self, value: Any) -> None:
        self.value = np.array(value)
        self.shape, self.dtype = self.value.shape, self.value.dtype

    def assign(self, value: Any) -> None:
        assert np.shape(value) == self.shape
        self.value = np.array(value)

    def __array__(self, dtype: Any = None, copy: Any = None) -> Any:
        return self.value


class Metric:
    """Of the looks of a Keras metric."""

    def __init__(self, *variables: Variable) -> None:
        self.variables = variables

    def reset_state(self) -> None: ...

    def update_state(self) -> None: ...


def test_variables_and_metrics_are_carried_by_value() -> None:
    def make() -> Thing:
        return Thing(step=Variable(0), mean=Metric(Variable(0.0), Variable([1.0, 2.0])), same=Variable(3))

    owner = make()
    attributes = begun(owner)
    owner.step.assign(4)
    owner.mean.variables[1].assign([5.0, 6.0])
    arrays: dict[str, Any] = {}
    saved = attributes.capture(arrays)
    assert sorted(saved) == ["mean", "step"]
    fresh = make()
    step, mean = fresh.step, fresh.mean
    begun(fresh).put_back(saved, through_a_checkpoint(arrays))
    assert (fresh.step, fresh.mean) == (step, mean)
    assert step.value == 4
    assert mean.variables[1].value.tolist() == [5.0, 6.0]


# What cannot be carried ---------------------------------------------------------------------------


class Model:
    """Callable, as a Keras model or layer is."""

    def __call__(self) -> None: ...


def test_what_the_script_made_is_not_complained_about() -> None:
    owner = Thing(model=Model(), function=len, kind=Thing, method=[].append)
    attributes = begun(owner)
    owner.model, owner.function = Model(), print
    assert carried(attributes) == []
    assert not attributes.skipped


def test_what_cannot_be_stored_is_named() -> None:
    owner = Thing(later=1, stream=object(), table=[{"deep": {1: object()}}])
    attributes = begun(owner)
    owner.later = Thing()
    assert carried(attributes) == []
    assert attributes.skipped == {"later (Thing)", "stream (object)", "table (list)"}


class Frame:
    """Of the looks of a pandas.DataFrame: its `assign` is something else."""

    def __init__(self, *values: float) -> None:
        self.values = np.array(values)
        self.shape = self.values.shape

    def assign(self, **columns: Any) -> None: ...

    def __array__(self, dtype: Any = None, copy: Any = None) -> Any:
        return self.values


def test_a_table_is_no_variable() -> None:
    owner = Thing(rows=Frame(1.0))
    attributes = begun(owner)
    owner.rows = Frame(1.0, 2.0)
    arrays: dict[str, Any] = {}
    begun(Thing(rows=Frame(1.0))).put_back(attributes.capture(arrays), arrays)
    assert attributes.skipped == {"rows (Frame)"}


class Unconnected:
    """A client that talks to its server as soon as it is looked at."""

    def __getattr__(self, name: str) -> Any:
        raise RuntimeError("not connected")


def test_an_object_that_cannot_be_looked_at_is_named() -> None:
    """It is in the way of nothing: least of all may it end a run that has only just begun."""
    owner = Thing(client=Unconnected(), counts=0)
    attributes = begun(owner)
    owner.counts = 1
    assert carried(attributes) == ["counts"]
    assert attributes.skipped == {"client (Unconnected)"}
    assert attributes.generators() == {}


@pytest.mark.parametrize("value", [np.ones(2, np.longdouble), np.zeros(2, "V7")], ids=["longdouble", "void"])
def test_an_array_that_no_file_can_hold_is_named(value: Any) -> None:
    """Otherwise not one checkpoint could be written."""
    owner = Thing(array=None)
    attributes = begun(owner)
    owner.array = value
    arrays: dict[str, Any] = {}
    assert attributes.capture(arrays) == {}
    through_a_checkpoint(arrays)
    assert attributes.skipped == {"array (ndarray)"}


def test_what_the_script_holds_too_stays_the_same_object() -> None:
    """`losses = []; callback = Recorder(losses)`: after a resume the script's own list is filled."""
    shared: dict[str, Any] = {
        "losses": [1.0],
        "table": {"a": [1]},
        "seen": {1},
        "buffer": np.zeros(3),
        "last": deque([1], 2),
    }
    owner, arrays = Thing(**shared), dict[str, Any]()
    attributes = Attributes(owner, "x")
    attributes.begin()
    owner.losses.append(2.0)
    owner.table["a"].append(2)
    owner.table["b"] = [3]
    owner.seen.add(2)
    owner.buffer[1] = 5.0
    owner.last.append(7)
    saved = attributes.capture(arrays)
    again: dict[str, Any] = {
        "losses": [1.0],
        "table": {"a": [1]},
        "seen": {1},
        "buffer": np.zeros(3),
        "last": deque([1], 2),
    }
    inner = again["table"]["a"]
    Attributes(Thing(**again), "x").put_back(saved, arrays)
    assert again["losses"] == [1.0, 2.0]
    assert again["table"] == {"a": [1, 2], "b": [3]}
    assert again["table"]["a"] is inner
    assert again["seen"] == {1, 2}
    assert again["buffer"].tolist() == [0.0, 5.0, 0.0]
    assert list(again["last"]) == [1, 7]


def test_what_was_bound_anew_does_not_write_into_what_it_was_before() -> None:
    default = [0]
    owner, arrays = Thing(values=default), dict[str, Any]()
    attributes = Attributes(owner, "x")
    attributes.begin()
    owner.values = [1, 2]
    saved = attributes.capture(arrays)
    fresh = Thing(values=default)
    Attributes(fresh, "x").put_back(saved, arrays)
    assert (fresh.values, default) == ([1, 2], [0])
