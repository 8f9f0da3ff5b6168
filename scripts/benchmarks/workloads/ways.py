"""The ways to save a training state that are compared: ksupervise's, the peers', and the limits of the machine.

Each way is seen from the training: `start` is what training waits for, `finish` returns when the state is durable.
Nobody but ksupervise calls fsync. Here it is called for the peers in `finish`, at no cost to their stall.
"""

from __future__ import annotations

import json
import mmap
import os
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from safetensors.numpy import load_file, save_file

from ksupervise.wire import Control
from workloads import resnet50

OURS = "ksupervise"
BLOCK, PAGE = 8 * 1024 * 1024, 4096
POLL = 0.002  # seconds between two looks at the journal, which itself says when a checkpoint was durable
PATIENCE = 300.0  # seconds


def _nothing() -> None:
    """Nothing is to be done."""


@dataclass(frozen=True)
class Way:
    """One way to save and to load.

    Attributes:
        start: what training waits for.
        finish: return when the state is durable; the CLOCK_MONOTONIC second at which it was.
        load: bring the state back, None if that is measured elsewhere.
        path: the file or directory that is written, None for memory.
        clean: forget what was saved.
    """

    start: Callable[[], object]
    finish: Callable[[], float]
    load: Callable[[], object] | None = None
    path: Path | None = None
    clean: Callable[[], object] = _nothing


def files_in(path: Path) -> list[Path]:
    """The file at `path`, or all files below it."""
    return [path] if path.is_file() else sorted(each for each in path.rglob("*") if each.is_file())


def size_of(path: Path) -> int:
    """Bytes of the files at `path`."""
    return sum(each.stat().st_size for each in files_in(path))


def sync(path: Path) -> None:
    """Make a file, or every file and directory below one, durable, and the name of it."""
    below = sorted(path.rglob("*")) if path.is_dir() else []
    for each in [*below, path, path.parent]:
        fd = os.open(each, os.O_RDONLY)
        os.fsync(fd)
        os.close(fd)


def drop(path: Path) -> None:
    """Take the files at `path`, which are on the disk, out of the page cache where the file system lets us."""
    for each in files_in(path):
        fd = os.open(each, os.O_RDONLY)
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(fd)


def remove(path: Path) -> None:
    """Remove a file or a directory, if there is one."""
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def written(start: Callable[[], object], path: Path, load: Callable[[], object] | None = None) -> Way:
    """A way by which training waits until all is written to `path`."""

    def finish() -> float:
        sync(path)
        return time.monotonic()

    return Way(start, finish, load, path, lambda: remove(path))


def build(size: str) -> tuple[keras.Model, np.ndarray, np.ndarray, int]:
    """A compiled model whose state has so many MB, or "resnet50"; its data, and the batches' size."""
    if size == "resnet50":
        return resnet50.build(), *resnet50.noise(), resnet50.BATCH
    width = max(8, round((float(size) * 1e6 / 12) ** 0.5))  # each weight has three copies of 4 bytes: Adam's moments
    dense = keras.layers.Dense
    model = keras.Sequential([keras.Input((64,)), dense(width, activation="relu"), dense(width), dense(1)])
    model.compile("adam", "mse")
    data = np.random.default_rng(0).random((64 * 256, 64), dtype=np.float32)
    return model, data, data[:, :1], 64


def variables(model: keras.Model) -> dict[str, Any]:
    """Every variable of the model and of its optimizer, by a name of its own."""
    found = [*model.variables, *model.optimizer.variables]
    return {f"{number}/{variable.path}": variable for number, variable in enumerate(found)}


def peers(model: keras.Model, folder: Path) -> dict[str, Way]:
    """What others write into `folder`, an absolute path. `model` is built, and its optimizer too."""
    found = variables(model)
    backup = keras.callbacks.BackupAndRestore(str(folder / "backup"), save_freq=1)
    backup.set_model(model)
    checkpoint = tf.train.Checkpoint(**{str(n): variable.value for n, variable in enumerate(found.values())})
    tensors = folder / "model.safetensors"

    def save_tensors() -> None:
        save_file({name: np.asarray(variable) for name, variable in found.items()}, tensors)

    def load_tensors() -> None:
        for name, array in load_file(tensors).items():
            found[name].assign(array)

    keras_file, weights = folder / "model.keras", folder / "model.weights.h5"
    ways = {
        "model.save .keras": written(
            lambda: model.save(keras_file), keras_file, lambda: keras.models.load_model(keras_file)
        ),
        "save_weights .h5": written(lambda: model.save_weights(weights), weights, lambda: model.load_weights(weights)),
        "BackupAndRestore": written(lambda: backup.on_train_batch_end(0), folder / "backup", backup.on_train_begin),
        "tf.train.Checkpoint.write": written(
            lambda: checkpoint.write(str(folder / "tf" / "state")),
            folder / "tf",
            lambda: checkpoint.read(str(folder / "tf" / "state")).assert_consumed(),
        ),
        "safetensors save_file": written(save_tensors, tensors, load_tensors),
    }
    if hasattr(keras.callbacks, "OrbaxCheckpoint"):
        ways["OrbaxCheckpoint"] = _orbax(model, folder / "orbax")
    return ways


def _orbax(model: keras.Model, path: Path) -> Way:
    """Keras' callback, saving in the background, which is its default. It removes older ones by itself."""
    callback = keras.callbacks.OrbaxCheckpoint(str(path), save_freq=1)
    callback.set_model(model)

    def finish() -> float:
        callback.wait_until_finished()
        sync(path)
        return time.monotonic()

    return Way(lambda: callback.on_train_batch_end(0), finish, lambda: keras.models.load_model(path), path)


class Memory:
    """As many bytes as the state has, in touched pages, and the limits that the machine sets with them."""

    def __init__(self, size: int, folder: Path) -> None:
        whole = mmap.mmap(-1, -(-size // PAGE) * PAGE)  # page-aligned, as O_DIRECT wants it
        self._source = np.frombuffer(whole, dtype=np.uint8)
        self._source[:] = np.random.default_rng(0).integers(0, 255, len(self._source), dtype=np.uint8)
        self._warm = self._source.copy()
        self._buffered, self._direct = folder / "buffered", folder / "direct"

    def limits(self) -> dict[str, Way]:
        """The ways to copy and to write."""
        now = time.monotonic
        return {
            "memcpy, warm pages": Way(lambda: np.copyto(self._warm, self._source), now),
            "memcpy, fresh pages": Way(self._copy_to_fresh, now, None, None, self._let_go),
            "write, fsync": written(lambda: self._write(self._buffered, 0), self._buffered),
            "O_DIRECT write, fsync": written(
                lambda: self._write(self._direct, getattr(os, "O_DIRECT", 0)), self._direct
            ),
        }

    def read_and_copy(self) -> None:
        """The limit of loading: read what `limits` wrote, copy it to fresh pages."""
        with self._direct.open("rb", buffering=0) as file:
            for start in range(0, len(self._warm), BLOCK):
                file.readinto(self._warm[start : start + BLOCK].data)
        self._copy_to_fresh()

    def _copy_to_fresh(self) -> None:
        self._fresh = mmap.mmap(-1, len(self._source))
        self._fresh.write(self._source.data)

    def _let_go(self) -> None:
        self._fresh.close()

    def _write(self, path: Path, flags: int) -> None:
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | flags, 0o600)
        for start in range(0, len(self._source), BLOCK):
            os.write(fd, self._source.data[start : start + BLOCK])
        os.close(fd)


class Journal:
    """What the supervisor has committed since the last look."""

    def __init__(self, run_dir: Path) -> None:
        self._file = (run_dir / "journal.jsonl").open("rb")
        self._rest = b""
        self.skip()

    def skip(self) -> None:
        """What is there by now is not of interest."""
        for _ in self.committed():
            pass

    def committed(self) -> Iterator[float]:
        """When checkpoints became durable, on the monotonic clock."""
        *lines, self._rest = (self._rest + self._file.read()).split(b"\n")
        for line in lines:
            record = json.loads(line)
            if record["event"] == "commit_failed":
                raise RuntimeError(f"no checkpoint: {record['reason']}")
            if record["event"] == "committed":
                yield float(record["mono"])


class Ours:
    """ksupervise's way, asked for as the parent asks: by the control page."""

    def __init__(self, callback_list: keras.callbacks.CallbackList) -> None:
        self.run_dir = Path(os.environ["KSUPERVISE_RUN_DIR"])
        self.batch = 0  # the one that is about to begin
        self._hook = callback_list.callbacks[0]
        if type(self._hook).__name__ != "KsuperviseFirst":
            raise RuntimeError("not supervised: the first callback is not ksupervise's")
        live = self.run_dir / "attempts" / f"{int(os.environ['KSUPERVISE_ATTEMPT']):03d}" / "live"
        fd = os.open(live, os.O_RDWR)
        self._control = Control(fd)
        os.close(fd)
        self._journal = Journal(self.run_dir)

    def way(self) -> Way:
        """Ask, and let the callback see this batch begin once more: it stages. The parent commits by itself."""
        return Way(self._start, self.wait)

    def _start(self) -> None:
        self._journal.skip()
        self._control["drain"] = Control.STAGE
        self._hook.on_train_batch_begin(self.batch)

    def wait(self) -> float:
        """Wait for the next commit."""
        end = time.monotonic() + PATIENCE
        while time.monotonic() < end:
            for durable in self._journal.committed():
                return durable
            time.sleep(POLL)
        raise RuntimeError(f"no checkpoint in {PATIENCE:.0f} s")

    def newest(self) -> Path:
        """The newest checkpoint's directory."""
        return max(self.run_dir.glob("checkpoints/*"), key=lambda path: path.name)


def cpu_seconds() -> float:
    """CPU time of this process and of its supervisor, in seconds."""
    # The clock of another process, as clock_getcpuclockid(3) makes it: /proc counts in hundredths of a second.
    return time.process_time() + time.clock_gettime(~os.getppid() << 3 | 2)
