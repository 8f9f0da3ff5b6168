"""Where the training stands in its data, and how a later attempt gets back there.

Whatever the source, an iterator made in the same circumstances (`_circumstances`: the counts of the shuffles, captured
variables, the generators of random numbers, a PyDataset's attributes) yields the same batches. From there a position
inside an epoch is reached in one of three ways, the first that is exact:

- *iterator state*: TensorFlow serializes the iterator, shuffle buffer included. Nothing is drawn again, and unseeded
  order is kept as well. For arrays, and for pipelines that hold nothing else that is random.
- *by index*: a PyDataset is not asked for the batches that were trained; the generators of random numbers are set to
  what they were when the next one was made.
- *replay*: the batches that were trained are drawn again, and dropped.

Where none is exact (an unseeded pipeline that cannot be serialized), only an epoch's end is: a checkpoint inside the
epoch is then marked approximate.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NoReturn

from ksupervise.child import randomness
from ksupervise.child.data.items import Items, remembered_by
from ksupervise.child.data.iterators import State, deserialize, serialize
from ksupervise.child.data.pipeline import Pipeline, dataset_of
from ksupervise.child.data.shuffles import SEEDS_TAKEN, Shuffles, earlier

_SMALL = 1024 * 1024  # bytes up to which it is preferred to drawing again
_PLACES = 10_000  # in shuffle buffers: to serialize more takes longer than to draw some batches again
_ARRAYS = ("ArrayDataAdapter",)
_UNORDERED = "exactly once, later epochs in a new order (the script sets no seed)"


def is_known(iterator: Any) -> bool:
    """Keras' EpochIterator as we know it (3.8 and later). Otherwise only an epoch's end can be gone back to."""
    return all(hasattr(iterator, name) for name in ("_get_iterator", "_enumerate_iterator", "data_adapter"))


class Position:
    """The position in one fit's data. `iterator` is Keras' EpochIterator, `validation` what fit is to validate on."""

    def __init__(self, iterator: Any, validation: Any) -> None:
        self._keras = iterator
        self.adapter = type(iterator.data_adapter).__name__
        self._train = Pipeline(dataset_of(iterator))
        self._validation = Pipeline(dataset_of(validation))
        self._shuffles = Shuffles([self._train, self._validation])
        sources = (getattr(iterator.data_adapter, "py_dataset", None), validation)
        self._remembered = [attributes for attributes in map(remembered_by, sources) if attributes is not None]
        self._items = Items.of(iterator)
        self._last: Any = None  # the iterator that batches come from
        self._made: dict[str, Any] | None = None  # circumstances in which it was made
        self._first: dict[str, Any] | None = None  # those of the fit's first, where they are needed later
        self._first_validation: dict[str, Any] | None = None
        self._epochs = 0  # that were drawn to their end, in all attempts
        self._before: dict[str, Any] = {}  # circumstances at the end of the epoch before
        self._plan: dict[str, Any] | None = None
        self._after_skip: Callable[[], None] | None = None
        self._refuse: Callable[[str], NoReturn]
        self._too_large = False  # the serialized iterator, when it was tried
        self._get_iterator = iterator._get_iterator
        self._enumerate = iterator._enumerate_iterator
        iterator._get_iterator = lambda: _Watched(self._get_iterator(), self._before_making, self._on_made)
        iterator._enumerate_iterator = self._enumerate_from_here

    def begin(self, *, later_attempt: bool) -> None:
        """The fit begins."""
        if later_attempt:
            self._train.remove_locks()
            self._validation.remove_locks()
        for attributes in self._remembered:
            attributes.begin()
        self._shuffles.watch()
        self._before = self._circumstances()

    def end(self) -> None:
        """The fit is over."""
        self._shuffles.leave()
        if self._items is not None:
            self._items.leave()

    @property
    def steps(self) -> int | None:
        """Batches an epoch has, None while that is unknown."""
        batches = self._keras.num_batches
        return None if batches is None else int(batches)

    @property
    def steps_per_execution(self) -> int:
        """Optimizer steps between two looks of ours."""
        return int(getattr(self._keras, "steps_per_execution", 1) or 1)

    @property
    def drawn_by_python(self) -> bool:
        """The source runs the script's own code, with python's and numpy's generators, ahead of the training."""
        if self._items is not None and self._items.indexed:
            return self._items.draws
        return self._items is not None or self._train.python

    @property
    def _persistent(self) -> bool:
        """One iterator serves several epochs."""
        return getattr(self._keras, "steps_per_epoch", None) is not None

    # What decides what comes next

    @property
    def _in_hand(self) -> bool:
        """An iterator that serves several epochs is being read."""
        return self._persistent and self._keras._current_iterator is not None

    def _circumstances(self, *, inside: bool = False) -> dict[str, Any]:
        """All that decides what an iterator that is made now will yield; `inside` an epoch one is being read."""
        return {
            "shuffles": self._shuffles.read(amid=inside or self._in_hand),
            "variables": [self._train.values(), self._validation.values()],
            "attributes": [attributes.snapshot() for attributes in self._remembered],
            "randomness": randomness.capture(),
        }

    def _put_back(self, then: dict[str, Any]) -> None:
        self._shuffles.put_back(then["shuffles"])
        self._train.put_back(then["variables"][0])
        self._validation.put_back(then["variables"][1])
        for attributes, snapshot in zip(self._remembered, then["attributes"], strict=True):
            attributes.put_back_snapshot(snapshot)
        randomness.put_back(then["randomness"])  # the last: making an iterator over a dataset may draw as well

    def _before_making(self) -> None:
        """Keras is about to make an iterator."""
        plan = self._plan
        if plan is not None and plan.get("made") is not None:
            self._plan = None
            self._put_back(plan["made"])
            self._made = plan["made"]
        else:
            self._made = self._circumstances()
        if self._first is None and (self._train.frozen or self._redraws_all):
            self._first = self._made
        if self._items is not None:
            self._items.restart()

    def _on_made(self, iterator: Any) -> None:
        self._last = iterator

    # Saving it

    def end_epoch(self) -> None:
        """An epoch is over, and the script's callbacks have seen its end."""
        self._epochs += 1
        self._before = self._circumstances()

    def begin_validation(self) -> None:
        """A validation begins; its iterator is not made yet."""
        if self._validation.frozen and self._first_validation is None:
            self._first_validation = self._circumstances()

    def capture(self, batch: int, *, inside: bool) -> dict[str, Any]:
        """The position before batch number `batch` of the epoch in hand, or (not `inside`) between two epochs."""
        seen = int(getattr(self._keras, "_steps_seen", 0) or 0)
        seen -= self.steps_per_execution if inside else 0  # Keras counts the batch that is about to be drawn
        position: dict[str, Any] = {
            "adapter": self.adapter,
            "epochs": self._epochs,
            "batch": batch,
            "seen": seen,  # batches drawn from an iterator that serves several epochs
            "num_batches": self._keras._num_batches,
            "made": self._made if inside or self._in_hand else None,
            "before": self._before,
            "now": self._circumstances(inside=inside),
            "first": self._first,
            "first_validation": self._first_validation,
            "approximate": False,
            "failure": self._shuffles.failure,
        }
        drawn = seen if self._persistent else batch
        if (inside or self._in_hand) and drawn:
            self._capture_place(position, drawn)
        return position

    def _capture_place(self, position: dict[str, Any], drawn: int) -> None:
        """How to get behind the first `drawn` batches of the iterator in hand."""
        if self._items is not None and self._items.indexed:
            position["item"] = self._items.before(drawn)
            position["draws"] = self._items.draws
            return
        if self._keeps_state:
            state = serialize(self._last)
            small = state is not None and state.nbytes <= _SMALL
            if state is not None and ((small and self._tells_shuffles(state)) or not self._replays):
                position["state"] = state
                return
            self._too_large = not small
        position["approximate"] = not self._replays

    def _tells_shuffles(self, state: State) -> bool:
        """The seeds of every shuffle are in `state`. Not of one that has been read to its end: it is gone."""
        told = int(state.tobytes().count(SEEDS_TAKEN))
        return told >= len(self._train.shuffles)

    @property
    def _keeps_state(self) -> bool:
        if self._too_large or self._items is not None or self._train.python:
            return False
        if self._replays and self._train.places > _PLACES:
            return False
        return self.adapter in _ARRAYS or self._train.pure or not self._train.seeded

    @property
    def _replays(self) -> bool:
        """Drawing the same number of batches again comes to the same place."""
        return self._train.seeded or self.adapter not in (*_ARRAYS, "TFDatasetAdapter")

    @property
    def _redraws_all(self) -> bool:
        """What earlier epochs took from the source cannot be counted: they have to be drawn again."""
        return not self._persistent and (self._train.hidden or self.adapter == "GeneratorDataAdapter")

    # Going back to it

    def resume(
        self,
        position: dict[str, Any],
        after_skip: Callable[[], None],
        refuse: Callable[[str], NoReturn],
    ) -> str:
        """Arrange that the next epoch begins at `position`.

        `after_skip` is called there; `refuse` if the data has no such position. Returns the guarantee that holds,
        in words.
        """
        self._refuse = refuse
        self._check(position)
        if position.get("num_batches") is not None and self._keras._num_batches is None:
            self._keras._num_batches = position["num_batches"]
        self._redraw(position)
        inside = position["made"] is not None
        # Callbacks that draw or peek when an epoch begins shall find what they found then; but no shuffle may be
        # further than it was when the iterator in hand was made, which may have been epochs ago.
        self._put_back(_earlier(position["before"], position["made"]) if inside else position["now"])
        self._before = position["before"]
        if inside:
            self._plan = position
            self._after_skip = after_skip
        return self._guarantee(position)

    def _check(self, position: dict[str, Any]) -> None:
        then, now = position.get("num_batches"), self._keras._num_batches
        if position["made"] is None or self._persistent or then is None or now is None or then == now:
            return
        if position["batch"] >= now or "state" in position:
            self._refuse(
                f"the data has {now} batches an epoch and had {then} when the checkpoint was made, "
                f"inside an epoch, behind batch {position['batch']}"
            )

    def pass_by(self, position: dict[str, Any]) -> None:
        """The fit was complete: later ones over the same pipeline find it as this one left it."""
        self._redraw(position)
        self._put_back(position["now"])

    def _redraw(self, position: dict[str, Any]) -> None:
        """Draw again what left something behind in that process' memory only."""
        self._first, self._first_validation = position["first"], position["first_validation"]
        self._epochs = position["epochs"]
        count = self._epochs if self._redraws_all else min(self._epochs, 1)
        if self._first is not None and not self._persistent and count:
            self._put_back(self._first)
            for _ in range(count):
                _drain(iter(self._get_iterator()))
                if self._keras._num_batches is not None:
                    iter(self._get_iterator())  # Keras makes one too many where it knows the length
        if self._first_validation is not None:
            self._put_back(self._first_validation)
            _drain(iter(self._validation.dataset))

    def _guarantee(self, position: dict[str, Any]) -> str:
        train, inside = self._train, bool(position["batch"])
        failure = position["failure"] or self._shuffles.failure
        if failure:
            return (
                f"the state is exact, the order of the data may differ: its shuffles could not be followed ({failure})"
            )
        if position["approximate"]:
            return "approximate: the state is exact, the rest of this epoch is drawn in a new order"
        if not train.seeded and self.adapter in (*_ARRAYS, "TFDatasetAdapter"):
            return _UNORDERED
        if self._items is not None:
            if not self._items.indexed:
                return "exact, unless the parallel workers draw random numbers" + (", position replayed" * inside)
            return "exact"
        if self.adapter not in (*_ARRAYS, "TFDatasetAdapter") or train.python:
            return "exact if the script's own code yields the same again, position replayed"
        if train.races:
            return "exactly once (random operations in a parallel map draw in no fixed order)"
        return "exact" if "state" in position or not inside else "exact, position replayed"

    def _enumerate_from_here(self) -> Iterator[Any]:
        plan = self._plan
        if plan is None:
            return iter(self._enumerate())
        return self._resumed(plan)

    def _resumed(self, plan: dict[str, Any]) -> Iterator[Any]:
        """Keras' own enumeration, its first batches passed over."""
        batch, stride = int(plan["batch"]), self.steps_per_execution
        place = int(plan["seen"]) if self._persistent else batch
        if self._items is not None and plan.get("item") is not None:
            self._items.skip(place, plan["item"], draws=plan["draws"])
        reached = not place
        if self._persistent and place:
            keras = self._keras
            keras._current_iterator = iter(keras._get_iterator())
            self._go_to(keras._current_iterator, plan, place)
            # Keras counts the batches of this epoch again while it enumerates those that we pass over.
            keras._steps_seen = place - -(-batch // stride) * stride
            reached = True
        for begin, end, iterator in self._enumerate():
            if begin < batch:
                continue
            if not reached:
                self._go_to(iterator, plan, place)
                reached = True
            if self._after_skip is not None:
                self._shuffles.put_back(plan["now"]["shuffles"])
                after_skip, self._after_skip = self._after_skip, None
                after_skip()
            yield begin, end, iterator

    def _go_to(self, iterator: Any, plan: dict[str, Any], place: int) -> None:
        """Move a new iterator behind its first `place` batches."""
        if "state" in plan:
            try:
                deserialize(iterator, plan["state"])
            except Exception as error:
                self._refuse(f"the data is not what it was when the checkpoint was made: {error}")
        elif not plan["approximate"]:
            for drawn in range(place):
                if next(iterator, None) is None:
                    self._refuse(f"the data ends after {drawn} batches, the checkpoint was made behind {place}")


def _earlier(one: dict[str, Any], other: dict[str, Any]) -> dict[str, Any]:
    return {**one, "shuffles": earlier(one["shuffles"], other["shuffles"])}


class _Watched:
    """An iterable that tells before and after it is iterated over."""

    def __init__(self, iterable: Any, before: Callable[[], None], after: Callable[[Any], None]) -> None:
        self._iterable = iterable
        self._before = before
        self._after = after

    def __iter__(self) -> Any:
        self._before()
        iterator = iter(self._iterable)
        self._after(iterator)
        return iterator

    def __getattr__(self, name: str) -> Any:
        return getattr(self._iterable, name)


def _drain(iterator: Iterator[Any]) -> None:
    for _ in iterator:
        pass
