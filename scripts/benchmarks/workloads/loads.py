"""Bring a training state back in several ways. Call under ksupervise: loads.py RESULT.jsonl ROUNDS SEED SIZE

Each attempt but the first was brought back by ksupervise; it measures the other ways, saves and ends itself. Either
the child dies and the parent still holds its state in memory, or both die and the state is read from disk.
"""

import json
import os
import random
import shutil
import signal
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import keras

from workloads.ways import Memory, Ours, Way, build, drop, peers, variables

result, rounds, seed, size = Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3], sys.argv[4]
attempt = int(os.environ["KSUPERVISE_ATTEMPT"])
rng = random.Random(f"{seed} {attempt}")
place, plan = Path("saved").resolve(), Path("how-the-next-one-comes-back")


def loading(way: Way) -> dict[str, float]:
    """Seconds to load what lies on the disk alone, then once more."""
    assert way.load is not None
    assert way.path is not None
    drop(way.path)
    found = {}
    for name in ("cold", "warm"):
        began = time.monotonic()
        way.load()
        found[name] = time.monotonic() - began
    return found


class Rounds(keras.callbacks.Callback):  # type: ignore[misc]
    """One round an attempt; a `yield` in `_all` trains one batch."""

    def __init__(self) -> None:
        super().__init__()
        self.list: keras.callbacks.CallbackList = None
        self._going_on = self._all()

    def get_state(self) -> dict[str, object]:
        """Nothing of ours belongs into the checkpoint."""
        return {}

    def set_state(self, state: dict[str, object]) -> None:
        """Nothing was kept."""

    def on_train_batch_begin(self, batch: int, logs: object = None) -> None:
        self._batch = batch
        if next(self._going_on, "over") == "over":
            self.model.stop_training = True

    def _all(self) -> Iterator[None]:
        for _ in range(3):
            yield
        ways = peers(self.model, place)
        memory = Memory(sum(each.value.numpy().nbytes for each in variables(self.model).values()), place)
        direct = memory.limits()["O_DIRECT write, fsync"]
        if attempt == 1:
            for way in (*ways.values(), direct):
                way.start()
                way.finish()
        else:
            ways["read, memcpy to fresh pages"] = replace(direct, load=memory.read_and_copy)
            found = {name: loading(ways[name]) for name in rng.sample(sorted(ways), len(ways))}
            with result.open("a") as file:
                file.write(json.dumps({"attempt": attempt, "from": came_back, "loads": found}) + "\n")
        if attempt <= rounds:
            yield
            self._die()

    def _die(self) -> None:
        """Once a checkpoint is on the disk. Attempts take turns: from memory, from disk."""
        ours = Ours(self.list)
        ours.batch = self._batch
        way = ours.way()
        way.start()
        way.finish()
        drop(ours.newest())
        plan.write_text("disk" if attempt % 2 == 0 else "memory")
        if attempt % 2 == 0:
            os.kill(os.getppid(), signal.SIGKILL)
        os.kill(os.getpid(), signal.SIGKILL)


if attempt == 1:
    shutil.rmtree(place, ignore_errors=True)
    place.mkdir()
else:
    came_back = plan.read_text()
    plan.unlink()  # an attempt that nobody planned fails here
model, inputs, targets, batch_size = build(size)
callback = Rounds()
callback.list = keras.callbacks.CallbackList([callback], model=model, add_history=True, epochs=10**6, verbose=0)
model.fit(inputs, targets, batch_size=batch_size, epochs=10**6, verbose=0, callbacks=callback.list)
