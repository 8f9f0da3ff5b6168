"""Where the training stands in its data, and how a later attempt gets back there.

Two ways, chosen by what is exact for the source:

- *iterator state*: TensorFlow serializes the iterator, shuffle buffer included. Exact for the rest of the
  epoch whether the script is seeded or not; nothing is drawn again.
- *replay*: make as many iterators as were made (each takes the next seeds of a seeded `.shuffle`), then draw
  and drop the batches that were trained already. Works for every source that yields the same again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from ksupervise.child import randomness

STATE_LIMIT = 64 * 1024 * 1024  # bytes of a serialized iterator; a larger shuffle buffer is replayed


def is_known(iterator: Any) -> bool:
    """Keras' EpochIterator as we know it (3.8 and later). Otherwise only an epoch's end can be gone back to."""
    return all(hasattr(iterator, name) for name in ("_get_iterator", "_enumerate_iterator", "data_adapter"))


class Position:
    """The position in one fit's training data. `iterator` is Keras' EpochIterator."""

    def __init__(self, iterator: Any) -> None:
        self._keras = iterator
        self._made = 0
        self._made_before_epoch = 0
        self._last: Any = None
        self._plan: dict[str, Any] | None = None
        self._at_epoch_begin: dict[str, Any] | None = None
        self._after_skip: Callable[[], None] | None = None
        self.adapter = type(iterator.data_adapter).__name__
        self._watch()

    def _watch(self) -> None:
        """Count the iterators that Keras makes, and keep the last."""
        get_iterator = self._keras._get_iterator
        enumerate_iterator = self._keras._enumerate_iterator
        self._enumerate = enumerate_iterator
        self._get_iterator = get_iterator
        self._keras._get_iterator = lambda: _Watched(get_iterator(), self._on_made)
        self._keras._enumerate_iterator = self._enumerate_from_here

    def _on_made(self, iterator: Any) -> None:
        self._made += 1
        self._last = iterator

    @property
    def steps(self) -> int | None:
        """Batches an epoch has, None while that is unknown."""
        batches = self._keras.num_batches
        return None if batches is None else int(batches)

    @property
    def steps_per_execution(self) -> int:
        """Optimizer steps between two looks of ours."""
        return int(getattr(self._keras, "steps_per_execution", 1) or 1)

    def begin_epoch(self) -> None:
        """An epoch begins; its iterator is not made yet."""
        self._made_before_epoch = self._made
        self._at_epoch_begin = randomness.capture() if self._drawn_by_python else None

    @property
    def _drawn_by_python(self) -> bool:
        """The source runs the script's own code, with python's and numpy's generators."""
        return self.adapter not in ("ArrayDataAdapter", "TFDatasetAdapter")

    @property
    def _persistent(self) -> bool:
        """One iterator serves several epochs."""
        return getattr(self._keras, "steps_per_epoch", None) is not None

    def capture(self, batch: int, *, inside: bool) -> dict[str, Any]:
        """The position before batch number `batch` of the epoch in hand, or (not `inside`) between two epochs."""
        seen = int(getattr(self._keras, "_steps_seen", 0) or 0)
        position: dict[str, Any] = {
            "adapter": self.adapter,
            # Iterators that must have been made before the one that the next batch comes from.
            "earlier": self._made_before_epoch if inside else self._made,
            # Batches drawn from an iterator that serves several epochs; Keras counts the one that is about to be.
            "seen": seen - self.steps_per_execution if inside else seen,
            "batch": batch,
            "num_batches": self._keras._num_batches,
        }
        if self._persistent:
            position["earlier"] = self._made - (1 if self._keras._current_iterator is not None else 0)
        if inside and self._at_epoch_begin is not None:
            position["randomness"] = self._at_epoch_begin
        if (batch or self._persistent) and not self._exact_by_replay:
            state = _serialize(self._last)
            if state is not None:
                position["state"] = state
        return position

    @property
    def _exact_by_replay(self) -> bool:
        """A seeded tf.data pipeline: only replay also repeats the random operations inside it."""
        return self._drawn_by_python or (self.adapter == "TFDatasetAdapter" and randomness.seeded())

    def resume(self, position: dict[str, Any], after_skip: Callable[[], None]) -> str:
        """Arrange that the next epoch begins at `position`; `after_skip` is called once it is reached.

        Returns the guarantee that holds, in words.
        """
        self._plan = position
        self._after_skip = after_skip
        if position.get("num_batches") is not None and self._keras._num_batches is None:
            self._keras._num_batches = position["num_batches"]
        if self.adapter == "TFDatasetAdapter":
            self._drop_iterators(int(position["earlier"]))
        return self._guarantee(position)

    def pass_by(self, position: dict[str, Any]) -> None:
        """The fit was complete: later ones over the same pipeline find its shuffle where this one left it."""
        if self.adapter == "TFDatasetAdapter":
            self._drop_iterators(int(position["earlier"]))

    def _guarantee(self, position: dict[str, Any]) -> str:
        if self._drawn_by_python:
            return "position replayed, exact if the data source draws the same again"
        if randomness.seeded():
            return "exact" if self.adapter == "ArrayDataAdapter" else "exact if the pipeline yields the same again"
        if position["batch"] and "state" not in position:
            return "state exact, this epoch's order drawn anew (the script sets no seed)"
        return "exactly once, later epochs in a new order (the script sets no seed)"

    def _drop_iterators(self, count: int) -> None:
        for _ in range(count):
            iter(self._get_iterator())
            self._made += 1

    def _enumerate_from_here(self) -> Iterator[Any]:
        plan, self._plan = self._plan, None
        if plan is None:
            return iter(self._enumerate())
        return self._resumed(plan)

    def _resumed(self, plan: dict[str, Any]) -> Iterator[Any]:
        """Keras' own enumeration, its first batches dropped."""
        batch, stride = int(plan["batch"]), self.steps_per_execution
        if self._persistent and plan["seen"]:
            self._seek_persistent(plan)
        elif plan.get("randomness"):
            randomness.put_back(plan["randomness"])
        restored = False
        for begin, end, iterator in self._enumerate():
            if begin < batch:
                if self._persistent and plan["seen"]:
                    continue  # it was moved there already
                if "state" in plan:
                    restored = restored or _deserialize(iterator, plan["state"])
                else:
                    _draw(iterator, min(stride, batch - begin))
                continue
            if self._after_skip is not None:
                after_skip, self._after_skip = self._after_skip, None
                after_skip()
            yield begin, end, iterator

    def _seek_persistent(self, plan: dict[str, Any]) -> None:
        """Move an iterator that serves several epochs to where it stood."""
        keras = self._keras
        keras._current_iterator = iter(keras._get_iterator())
        if "state" in plan:
            _deserialize(keras._current_iterator, plan["state"])
        else:
            _draw(keras._current_iterator, int(plan["seen"]))
        # Keras counts the batches of this epoch again while it enumerates the ones we pass over.
        keras._steps_seen = int(plan["seen"]) - _passed(plan, self.steps_per_execution)


def _passed(plan: dict[str, Any], stride: int) -> int:
    return -(-int(plan["batch"]) // stride) * stride


class Validation:
    """The iterators of a fit's validation data: a shuffled pipeline takes other seeds for each of them."""

    def __init__(self) -> None:
        self._watched: Any = None
        self._owed = 0
        self.made = 0

    def resume(self, made: int) -> None:
        """The run has made that many before this attempt."""
        self._owed = made

    def begin(self, iterator: Any) -> None:
        """A validation begins; `iterator` is Keras' EpochIterator over its data, or None."""
        if iterator is None or iterator is self._watched:
            return
        self._watched = iterator
        get_iterator = iterator._get_iterator
        iterator._get_iterator = lambda: _Watched(get_iterator(), self._on_made)
        if type(iterator.data_adapter).__name__ == "TFDatasetAdapter":
            for _ in range(self._owed):
                iter(get_iterator())
        self.made += self._owed
        self._owed = 0

    def _on_made(self, iterator: Any) -> None:
        self.made += 1


class _Watched:
    """An iterable that tells when it is iterated over."""

    def __init__(self, iterable: Any, on_made: Callable[[Any], None]) -> None:
        self._iterable = iterable
        self._on_made = on_made

    def __iter__(self) -> Any:
        iterator = iter(self._iterable)
        self._on_made(iterator)
        return iterator

    def __getattr__(self, name: str) -> Any:
        return getattr(self._iterable, name)


def _draw(iterator: Any, count: int) -> None:
    for _ in range(count):
        try:
            next(iterator)
        except StopIteration:
            return


def _serialize(iterator: Any) -> list[Any] | None:
    """A tf.data iterator as byte arrays, None if it cannot be (a python function in it) or is too large."""
    import numpy as np

    try:
        import tensorflow as tf

        pieces = tf.raw_ops.SerializeIterator(resource_handle=iterator._iterator_resource, external_state_policy=1)
        texts = [tf.io.serialize_tensor(piece).numpy() for piece in pieces]
    except Exception:
        return None
    if sum(map(len, texts)) > STATE_LIMIT:
        return None
    lengths = np.array([len(text) for text in texts], np.int64)
    return [lengths, np.frombuffer(b"".join(texts), np.uint8)]


def _deserialize(iterator: Any, state: list[Any]) -> bool:
    import tensorflow as tf

    lengths, content = state
    text, pieces, offset = content.tobytes(), [], 0
    for length in lengths.tolist():
        pieces.append(tf.io.parse_tensor(text[offset : offset + length], tf.variant))
        offset += length
    tf.raw_ops.DeserializeIterator(resource_handle=iterator._iterator_resource, serialized=tf.stack(pieces))
    return True
