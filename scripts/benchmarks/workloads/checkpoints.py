"""Save a model's training state in several ways, between the batches of one supervised fit.

Call under ksupervise: checkpoints.py RESULT.json ROUNDS SEED MEGABYTES... The ways come in random order in each
round; each is followed by a training step, and none begins before the last one's bytes are on the disk.
"""

import json
import mmap
import os
import random
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import keras
import numpy as np
from keras import layers

from ksupervise.wire import Control

result, rounds, rng = Path(sys.argv[1]), int(sys.argv[2]), random.Random(int(sys.argv[3]))
sizes = [float(word) for word in sys.argv[4:]]
run_dir = Path(os.environ["KSUPERVISE_RUN_DIR"])
place = Path("saved")
BLOCK, PAGE = 8 * 1024 * 1024, 4096
COLD = 2  # rounds that touch every page of both slots, and make every directory

Timing = tuple[float, float, int]  # training stalls, durable after, bytes


def sync(path: Path) -> int:
    """Make a file, or every file in a directory, durable; its bytes."""
    paths = [path] if path.is_file() else [*sorted(path.iterdir()), path]
    for each in [*paths, path.parent]:
        fd = os.open(each, os.O_RDONLY)
        os.fsync(fd)
        os.close(fd)
    return sum(each.stat().st_size for each in paths if each.is_file())


def blocking(save: Callable[[Path], object], name: str) -> Callable[[], Timing]:
    """A way that stalls training until all is written; fsync could be anybody's afterwards."""

    def way() -> Timing:
        began = time.monotonic()
        save(place / name)
        stalled = time.monotonic() - began
        size = sync(place / name)
        return stalled, time.monotonic() - began, size

    return way


def committed() -> Iterator[float]:
    """When ksupervise's checkpoints became durable, on the monotonic clock."""
    for line in (run_dir / "journal.jsonl").read_bytes().splitlines():
        record = json.loads(line)
        if record["event"] == "committed":
            yield record["mono"]


class Ways(keras.callbacks.Callback):  # type: ignore[misc]
    """All ways, one before each batch."""

    def __init__(self) -> None:
        super().__init__()
        self.list: keras.callbacks.CallbackList = None
        self.found: dict[str, list[Timing]] = {}
        self.turns: list[str] = []
        self.rounds = 0
        fd = os.open(run_dir / "attempts" / f"{int(os.environ['KSUPERVISE_ATTEMPT']):03d}" / "live", os.O_RDWR)
        self.control = Control(fd)
        os.close(fd)

    def get_state(self) -> dict[str, object]:
        """Nothing of ours belongs into the checkpoint, least of all the arrays."""
        return {}

    def set_state(self, state: dict[str, object]) -> None:
        """Nothing was kept."""

    def prepare(self) -> None:
        """What the ways need; called once the optimizer has its variables."""
        variables = [*self.model.variables, *self.model.optimizer.variables]
        self.bytes = sum(np.asarray(variable).nbytes for variable in variables)
        self.source = np.random.default_rng(0).integers(0, 255, self.bytes, dtype=np.uint8)
        self.warm = self.source.copy()
        aligned = mmap.mmap(-1, -(-self.bytes // PAGE) * PAGE)
        aligned[: self.bytes] = self.source.data
        self.aligned = memoryview(aligned)
        backup = keras.callbacks.BackupAndRestore(str(place / "backup"), save_freq=1)
        backup.set_model(self.model)
        self.ways: dict[str, Callable[[], Timing]] = {
            "ksupervise stage": self.stage,
            "keras model.save .keras": blocking(self.model.save, "model.keras"),
            "keras save_weights .h5": blocking(self.model.save_weights, "model.weights.h5"),
            "keras BackupAndRestore": blocking(lambda path: backup.on_train_batch_end(0), "backup"),
            "limit: memcpy to warm pages": self.copy,
            "limit: write, fsync": blocking(self.write, "buffered"),
            "limit: write by O_DIRECT, fsync": blocking(self.write_direct, "direct"),
        }

    def on_train_batch_begin(self, batch: int, logs: object = None) -> None:
        if batch < 3:
            return  # tracing
        if batch == 3:
            self.prepare()
        if not self.turns:
            self.rounds += 1
            self.turns = rng.sample(sorted(self.ways), len(self.ways))
        name = self.turns.pop()
        timing = self.ways[name]()
        if self.rounds > COLD:
            self.found.setdefault(name, []).append(timing)
        shutil.rmtree(place)
        place.mkdir()
        os.sync()

    def stage(self) -> Timing:
        """Ask for a stage as the parent would: the callback that ksupervise appended makes it at this batch."""
        hook = self.list.callbacks[-1]
        before = len(list(committed()))
        self.control["drain"] = Control.STAGE
        began = time.monotonic()
        hook.on_train_batch_begin(0)
        stalled = time.monotonic() - began
        while len(times := list(committed())) == before:
            time.sleep(0.005)  # the record tells the time
        newest = max(run_dir.glob("checkpoints/*"), key=lambda path: path.name)
        return stalled, times[-1] - began, sum(path.stat().st_size for path in newest.iterdir())

    def copy(self) -> Timing:
        began = time.monotonic()
        np.copyto(self.warm, self.source)
        return time.monotonic() - began, float("nan"), self.bytes

    def write(self, path: Path) -> None:
        with path.open("wb", buffering=0) as file:
            file.write(self.source.data)

    def write_direct(self, path: Path) -> None:
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | getattr(os, "O_DIRECT", 0), 0o600)
        for start in range(0, len(self.aligned), BLOCK):
            os.write(fd, self.aligned[start : start + BLOCK])
        os.close(fd)


def measure(megabytes: float) -> dict[str, list[Timing]]:
    """All ways with a model of that much state (weights, and Adam's two moments)."""
    width = max(8, round((megabytes * 1e6 / 12) ** 0.5))
    model = keras.Sequential([keras.Input((64,)), layers.Dense(width), layers.Dense(width), layers.Dense(1)])
    model.compile("adam", "mse")
    batches = 3 + (rounds + COLD) * 7
    ways = Ways()
    ways.list = keras.callbacks.CallbackList([ways], model=model, add_history=True, epochs=1, steps=batches, verbose=0)
    data = np.random.default_rng(0).random((batches * 4, 64), dtype=np.float32)
    model.fit(data, data[:, :1], batch_size=4, verbose=0, callbacks=ways.list)
    return ways.found


shutil.rmtree(place, ignore_errors=True)
place.mkdir()
result.write_text(json.dumps({str(size): measure(size) for size in sizes}))
