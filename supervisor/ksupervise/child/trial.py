"""What `ksupervise doctor` tries in the interpreter that a run would use: never imported in a run.

Nothing is looked up by version: a small model is fitted with our hook in place, and the place in the data is gone back
to for each kind of source, with the code that a run would do it with. What was found is appended to a file, a line for
each part, so that a crash or a hang tells what it came in.
"""

from __future__ import annotations

import json
import os
import platform
import signal
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from typing import Any

_BATCHES = 4  # of an epoch
_STOP = 2  # the place to go back to is before this one, in the second epoch
_FRAMES = 8  # from a callback up to fit


def main(path: str, seconds: int) -> None:
    """Try everything, write what was found to `path`, and end the process, after so many seconds at the latest."""
    signal.alarm(seconds)  # whoever started us may be gone
    try:
        os.nice(5)  # a run may be at work beside it
    except OSError:
        pass
    warnings.simplefilter("ignore")  # -W error is for the script
    found = _Report(path)
    found.add("python", lambda: {"version": platform.python_version(), "executable": sys.executable})
    keras = found.add("keras", _keras)
    if "error" not in keras and keras["backend"] == "tensorflow":
        found.add("devices", _devices)
        fitted = found.add("fit", _fit)
        if fitted.get("position"):
            _try_sources(found)
    os._exit(0)  # whatever threads of TensorFlow are left


class _Report:
    """A file of JSON lines: what is begun (`doing`), and what each part came to."""

    def __init__(self, path: str) -> None:
        self._path = path

    def add(self, name: str, find: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """Note what `find` returns, or how it failed, under `name`."""
        self._write({"doing": name})
        try:
            answer = find()
        except BaseException as error:
            answer = {"error": f"{type(error).__name__}: {error}"}
        self._write({"name": name, "found": answer})
        return answer

    def _write(self, record: dict[str, Any]) -> None:
        with open(self._path, "a", encoding="utf-8") as stream:
            stream.write(json.dumps(record) + "\n")


def _keras() -> dict[str, Any]:
    began = time.monotonic()
    import keras

    seconds = time.monotonic() - began
    backend = keras.backend.backend() if hasattr(keras, "backend") else "unknown"
    module = sys.modules.get("tensorflow")
    return {
        "version": str(keras.__version__),
        "backend": str(backend),
        "tensorflow": str(getattr(module, "__version__", "")),
        "seconds": round(seconds, 1),
    }


def _devices() -> dict[str, Any]:
    """The GPUs that TensorFlow sees. They are left alone from then on: somebody may be training there."""
    import tensorflow as tf

    gpus = tf.config.list_physical_devices("GPU")
    tpus = tf.config.list_physical_devices("TPU")
    names = [str(tf.config.experimental.get_device_details(gpu).get("device_name", gpu.name)) for gpu in gpus]
    if gpus:
        tf.config.set_visible_devices([], "GPU")
    return {"gpus": names, "tpus": len(tpus), "deterministic": os.environ.get("TF_DETERMINISTIC_OPS", "")}


# The hook -----------------------------------------------------------------------------------------

_found_iterator: list[Any] = []  # Keras' own, of the fit below
_strategy: list[Any] = []


def _fit() -> dict[str, Any]:
    """A fit of three epochs that is told to begin with the third."""
    import keras
    import numpy as np

    from ksupervise.child import hook, state
    from ksupervise.child.data import position

    model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
    model.compile("adam", "mse", jit_compile=False)
    begun: list[int] = []

    class Look(keras.callbacks.Callback):  # type: ignore[misc]
        def on_train_begin(self, logs: Any = None) -> None:
            _found_iterator.extend(_iterator_above())
            self.model._initial_epoch = 2

        def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
            begun.append(epoch)

    x = np.arange(16, dtype="float32").reshape(8, 2)
    model.fit(x, x[:, :1], batch_size=2, epochs=3, verbose=0, callbacks=[Look()])
    model._initial_epoch = None
    before = {name: np.array(array) for name, array in state.Inventory(model).read().items()}
    model.fit(x, x[:, :1], batch_size=2, verbose=0)
    state.put_back(model, before)
    after = state.Inventory(model).read()
    _strategy.append(model.distribute_strategy)
    return {
        "hooked": sys.modules["keras.src.callbacks.callback_list"].CallbackList in hook._hooked,
        "initial_epoch": begun == [2],
        "position": bool(_found_iterator) and position.is_known(_found_iterator[0]),
        "build": hasattr(model, "_symbolic_build"),
        "variables": len(before),
        "put_back": all(bool(np.array_equal(before[name], np.array(after[name]))) for name in before),
    }


def _iterator_above() -> Iterator[Any]:
    """`epoch_iterator` of the fit that calls, if it has such a variable."""
    for depth in range(1, _FRAMES):
        try:
            iterator = sys._getframe(depth).f_locals.get("epoch_iterator")
        except ValueError:
            return
        if iterator is not None:
            yield iterator
            return


# The place in the data ----------------------------------------------------------------------------


def _try_sources(found: _Report) -> None:
    """First those without a seed: TensorFlow keeps one that was set."""
    from ksupervise.child import randomness

    sources = _sources()
    if not randomness.seeded():
        for name in ("arrays", "dataset"):
            found.add(f"unseeded {name}", lambda name=name: _there_and_back(sources[name], None))  # type: ignore[misc]
    for name, make in sources.items():
        found.add(f"source {name}", lambda make=make: _there_and_back(make, 7))  # type: ignore[misc]


def _there_and_back(make: Callable[[], Any], seed: int | None) -> dict[str, Any]:
    """Draw two epochs, note a place in the second, go back to it with everything made anew, and compare the rest."""
    iterator, place = _begin(make, seed)
    list(_drawn(iterator))
    place.end_epoch()
    saved: list[dict[str, Any]] = []
    rest = list(_drawn(iterator, lambda: saved.append(place.capture(_STOP, inside=True))))[_STOP:]
    place.end()
    iterator, later_place = _begin(make, seed, later=True)
    guarantee = later_place.resume(saved[0], lambda: None, _refuse)
    came = list(_drawn(iterator))
    later_place.end()
    return {"guarantee": guarantee, "same": came == rest, "batches": len(rest)}


def _begin(make: Callable[[], Any], seed: int | None, *, later: bool = False) -> tuple[Any, Any]:
    """Keras' iterator over a new source, and where it stands: as fit makes them."""
    import keras

    from ksupervise.child.data import position

    if seed is not None:
        keras.utils.set_random_seed(seed)
    arguments = make()
    iterator = type(_found_iterator[0])(distribute_strategy=_strategy[0], **arguments)
    iterator.reset()
    place = position.Position(iterator, None)
    place.begin(later_attempt=later)
    return iterator, place


def _drawn(iterator: Any, at_stop: Callable[[], None] | None = None) -> Iterator[bytes]:
    """The batches of one epoch; `at_stop` is called where the checkpoint is made."""
    with iterator.catch_stop_iteration():
        for begin, _, data in iterator:
            if begin == _STOP and at_stop is not None:
                at_stop()
            yield _bytes_of(next(data))


def _bytes_of(batch: Any) -> bytes:
    if isinstance(batch, (tuple, list)):
        return b"|".join(map(_bytes_of, batch))
    return batch.numpy().tobytes() if hasattr(batch, "numpy") else b""


def _refuse(reason: str) -> Any:
    raise ValueError(reason)


def _sources() -> dict[str, Callable[[], dict[str, Any]]]:
    """One of each kind, as arguments of Keras' iterator. Each call makes it anew."""
    import keras
    import numpy as np
    import tensorflow as tf

    x = np.arange(2 * _BATCHES, dtype="float32").reshape(2 * _BATCHES, 1)

    class Items(keras.utils.PyDataset):  # type: ignore[misc]
        def __len__(self) -> int:
            return _BATCHES

        def __getitem__(self, index: int) -> tuple[Any, Any]:
            return x[2 * index : 2 * index + 2] + np.random.rand(2, 1).astype("float32") * self.noise, x[:2]

        def __init__(self, *, workers: int, noise: bool) -> None:
            super().__init__(workers=workers)
            self.noise = noise

    def shuffled() -> Any:
        return tf.data.Dataset.from_tensor_slices((x, x)).shuffle(len(x)).batch(2)

    def yielding() -> Iterator[tuple[Any, Any]]:
        for index in range(_BATCHES):
            yield x[2 * index : 2 * index + 2], x[:2]

    def endless() -> Iterator[tuple[Any, Any]]:
        while True:
            yield from yielding()

    spec = tf.TensorSpec((2, 1), tf.float32)
    return {
        "arrays": lambda: {"x": x, "y": x, "batch_size": 2, "shuffle": True},
        "dataset": lambda: {"x": shuffled()},
        "augmented": lambda: {"x": shuffled().map(lambda a, b: (a + tf.random.uniform(tf.shape(a)), b))},
        "pydataset": lambda: {"x": Items(workers=1, noise=True)},
        "workers": lambda: {"x": Items(workers=2, noise=False)},
        "from_generator": lambda: {"x": tf.data.Dataset.from_generator(yielding, output_signature=(spec, spec))},
        "generator": lambda: {"x": endless(), "steps_per_epoch": _BATCHES},
    }
