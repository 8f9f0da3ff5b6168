"""Save a model's training state in several ways, between the batches of one supervised fit.

Call under ksupervise: checkpoints.py RESULT.json ROUNDS SEED SECONDS SIZE. In each round the ways come in random order.
First one by one, with training stopped until the state is durable; then each in a window of training of at least so
many seconds, beside a window without saves.
"""

import json
import os
import random
import shutil
import sys
import threading
import time
from collections.abc import Generator, Iterator
from dataclasses import dataclass
from pathlib import Path

import keras

from workloads.ways import OURS, Memory, Ours, Way, build, cpu_seconds, peers, size_of, variables

result, rounds, rng = Path(sys.argv[1]), int(sys.argv[2]), random.Random(int(sys.argv[3]))
seconds, size = float(sys.argv[4]), sys.argv[5]
place = Path("saved").resolve()  # as Orbax wants it
STEPS = 5  # of training after a save, at least
COLD = 2  # rounds that touch every page of both slots, and make every directory


@dataclass(frozen=True)
class Window:
    """A while of training."""

    seconds: float
    steps: int
    saves: int


class Rounds(keras.callbacks.Callback):  # type: ignore[misc]
    """All rounds; `_all` is gone on with at each batch's begin, and a `yield` in it trains one batch."""

    def __init__(self) -> None:
        super().__init__()
        self.list: keras.callbacks.CallbackList = None
        self.found: dict[str, object] = {}
        self._going_on = self._all()

    def get_state(self) -> dict[str, object]:
        """Nothing of ours belongs into the checkpoint, least of all the arrays."""
        return {}

    def set_state(self, state: dict[str, object]) -> None:
        """Nothing was kept."""

    def on_train_batch_begin(self, batch: int, logs: object = None) -> None:
        self._batch = batch
        if next(self._going_on, "over") == "over":
            self.model.stop_training = True

    def _all(self) -> Iterator[None]:
        for _ in range(3):  # the first of them is traced
            yield
        self._prepare()
        saves: dict[str, list[dict[str, float]]] = {}
        costs: dict[str, list[dict[str, float]]] = {}
        for number in range(COLD + rounds):
            for name in self._shuffled(self._ways):
                save = self._save(self._ways[name])
                if number >= COLD:
                    saves.setdefault(name, []).append(save)
                yield
        for _ in range(rounds):
            for name in self._shuffled(self._trained_beside):
                yield
                costs.setdefault(name, []).append((yield from self._cost(self._ways[name])))
        self.found.update(saves=saves, costs=costs)

    def _shuffled(self, ways: dict[str, Way]) -> list[str]:
        return rng.sample(sorted(ways), len(ways))

    def _prepare(self) -> None:
        """What the ways need; called once the optimizer has its variables."""
        found = variables(self.model)
        size = sum(variable.value.numpy().nbytes for variable in found.values())
        self.found.update(bytes=size, variables=len(found))
        self._ours = Ours(self.list)
        self._trained_beside = {OURS: self._ours.way(), **peers(self.model, place)}
        self._ways = {**self._trained_beside, **Memory(size, place).limits()}

    def _save(self, way: Way) -> dict[str, float]:
        """One save, with training stopped until it is durable."""
        self._ours.batch = self._batch
        cpu, began = cpu_seconds(), time.monotonic()
        way.start()
        stalled = time.monotonic() - began
        durable = way.finish() - began
        cpu = cpu_seconds() - cpu
        path = self._ours.newest() if way is self._ways[OURS] else way.path
        size = size_of(path) if path is not None else 0
        self._clean(way)
        return {"stall": stalled, "durable": durable, "cpu": cpu, "bytes": size}

    def _clean(self, way: Way) -> None:
        """The next way finds nothing of this one, and nothing of it is still to be written."""
        way.clean()
        os.sync()

    def _cost(self, way: Way) -> Generator[None, None, dict[str, float]]:
        """A window with saves and one without, in random order; the time that a save took from training."""
        if rng.random() < 0.5:
            plain = yield from self._window(None)
            saving = yield from self._window(way)
        else:
            saving = yield from self._window(way)
            plain = yield from self._window(None)
        step = plain.seconds / plain.steps
        cost = (saving.seconds - saving.steps * step) / saving.saves
        return {"cost": cost, "step": step, **vars(saving)}

    def _window(self, way: Way | None) -> Generator[None, None, Window]:
        """Train for a while, and save at its begin; again where that was soon durable."""
        steps, saves, began = 0, 0, time.monotonic()
        while time.monotonic() - began < seconds or steps < STEPS:
            waiter = self._begin(way)
            saves += 1
            for _ in range(STEPS):
                yield
                steps += 1
            while waiter is not None and waiter.is_alive():
                yield
                steps += 1
        took = time.monotonic() - began
        if way is not None:
            self._clean(way)
        yield
        return Window(took, steps, saves)

    def _begin(self, way: Way | None) -> threading.Thread | None:
        """Save; what comes back ends when it is durable."""
        if way is None:
            return None
        self._ours.batch = self._batch
        way.start()
        waiter = threading.Thread(target=way.finish)
        waiter.start()
        return waiter


shutil.rmtree(place, ignore_errors=True)
place.mkdir()
model, inputs, targets, batch_size = build(size)
callback = Rounds()
callback.list = keras.callbacks.CallbackList([callback], model=model, add_history=True, epochs=10**6, verbose=0)
model.fit(inputs, targets, batch_size=batch_size, epochs=10**6, verbose=0, callbacks=callback.list)
result.write_text(json.dumps(callback.found))
