"""A PyDataset as the source of the data: its items are numbered, so those that were trained need not be loaded again.

It reads ahead of the training. What the generators of random numbers were before each item is therefore noted, and
put back before the first item that is loaded after a resume.
"""

from __future__ import annotations

import threading
from typing import Any

from ksupervise.child import randomness
from ksupervise.child.attributes import Attributes


def remembered_by(dataset: Any) -> Attributes | None:
    """What a PyDataset remembers: the order of its indices, say. None for any other source."""
    if not (hasattr(dataset, "__getitem__") and hasattr(dataset, "on_epoch_end") and hasattr(dataset, "num_batches")):
        return None
    return Attributes(dataset, "dataset", ("_workers", "_use_multiprocessing", "_max_queue_size"))


class Items:
    """Stands before one PyDataset inside Keras' adapter.

    Attributes:
        indexed: it is loaded on one thread. Of several, nobody knows which drew what.
        draws: loading an item was seen to draw from python's or numpy's global generator.
    """

    def __init__(self, epoch_iterator: Any, dataset: Any) -> None:
        self._keras = epoch_iterator
        self._dataset = dataset
        self._lock = threading.Lock()
        self._count = 0
        self._before: dict[int, dict[str, Any]] = {}
        self._skip = 0
        self._state: dict[str, Any] | None = None
        self._stand_in: Any = None
        self.draws = False
        self._attributes = Attributes(dataset, "dataset")
        adapter = epoch_iterator.data_adapter
        self.indexed = getattr(adapter, "enqueuer", None) is None
        if self.indexed:
            adapter.py_dataset = self

    @classmethod
    def of(cls, epoch_iterator: Any) -> Items | None:
        """The items that Keras' `epoch_iterator` reads; None if its source is no PyDataset."""
        dataset = getattr(epoch_iterator.data_adapter, "py_dataset", None)
        return None if dataset is None else cls(epoch_iterator, dataset)

    def leave(self) -> None:
        """The fit is over: Keras has its dataset back."""
        if self.indexed:
            self._keras.data_adapter.py_dataset = self._dataset

    def restart(self) -> None:
        """An iterator over the dataset is about to be made."""
        with self._lock:
            self._count = 0
            self._before = {}

    def before(self, number: int) -> dict[str, Any]:
        """The generators' states before item `number` was, or will be, loaded."""
        with self._lock:
            return self._before.get(number) or self._now()

    def skip(self, count: int, state: dict[str, Any], *, draws: bool) -> None:
        """Of the next iterator's items do not load the first `count`; before the next, put back `state`.

        The global generators only if the items draw from them (`draws`): else they are the callbacks' alone.
        """
        self._skip, self._state, self._stand_in, self.draws = count, state, None, draws

    def __getitem__(self, index: Any) -> Any:
        with self._lock:
            number, self._count = self._count, self._count + 1
            if number < self._skip:
                if self._stand_in is None:
                    self._stand_in = self._dataset[index]  # whatever it holds, it is not trained on
                return self._stand_in
            if self._state is not None:
                state, self._state = self._state, None
                if self.draws:
                    randomness.put_back(state["randomness"])
                self._attributes.put_back_generators(state["generators"])
            self._skip = 0
            before = self._before[number] = self._now()
            self._forget()
        item = self._dataset[index]
        self.draws = self.draws or not randomness.equal(before["randomness"], randomness.capture())
        return item

    def _forget(self) -> None:
        """Drop what was noted before items that have been trained since."""
        trained = int(self._keras._steps_seen) - 2 * int(getattr(self._keras, "steps_per_execution", 1) or 1)
        while self._before and (oldest := next(iter(self._before))) < trained:
            del self._before[oldest]

    def _now(self) -> dict[str, Any]:
        return {"randomness": randomness.capture(), "generators": self._attributes.generators()}

    def __getattr__(self, name: str) -> Any:
        return getattr(self._dataset, name)

    def __len__(self) -> int:
        return len(self._dataset)
