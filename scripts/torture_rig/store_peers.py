"""What people save with today, behind one face: the controls of `scripts/torture store`.

`serve SOCKET` is a zygote (see zygote.py) that has imported all of it; through that zygote, `write NAME FOLDER BYTES`
saves again and again and says `begin N` and `saved N`, `check NAME FOLDER BYTES` tries to get something back, and
`rot NAME FOLDER BYTES SEED FIRST LAST` loads what was damaged. Each uses its tool as its documentation does.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import random
import shutil
import sys
from pathlib import Path
from typing import Any

import store_damage

KEEP = 3
WIDTH = 256


def build(size: int) -> Any:
    """A compiled model with about `size` bytes in its variables, optimizer included."""
    import keras

    units = max(1, size // (4 * 3 * WIDTH))
    layers = [keras.Input((WIDTH,)), keras.layers.Dense(units, name="wide"), keras.layers.Dense(1, name="last")]
    model = keras.Sequential(layers, name="model")
    model.compile("adam", "mse")
    model.optimizer.build(model.trainable_variables)
    return model


def fill(model: Any, seq: int) -> None:
    """Give every variable the content of number `seq`."""
    for variable, value in _contents(model, seq):
        variable.assign(value)


def number_of(model: Any) -> int:
    """The number whose content the model's variables have, every byte of it. Raises ValueError if it is none's."""
    seq = int(model.layers[-1].bias.numpy()[0])
    for variable, value in _contents(model, seq):
        if variable.numpy().tobytes() != value.tobytes():
            raise ValueError(f"loaded without complaint, but {variable.path} is not what was saved")
    return seq


def _contents(model: Any, seq: int) -> list[tuple[Any, Any]]:
    import numpy as np

    source = np.random.default_rng(seq)
    contents = [
        (variable, (source.random(variable.shape) * 1000).astype(variable.dtype)) for variable in model.variables
    ]
    for variable, value in contents:
        if variable is model.layers[-1].bias:
            value[0] = seq
    return contents


class Peer:
    """A way to save. `folder` is its own; `candidates` are what a person would try, the tool's own choice first."""

    label = ""

    def __init__(self, folder: Path, model: Any) -> None:
        self.folder, self.model = folder, model

    def save(self, seq: int) -> None:
        """Save the model as number `seq`; return when the tool says it is done."""
        raise NotImplementedError

    def candidates(self) -> list[Path]:
        """All that there is to load."""
        return [path for path in [self.folder / self.label] if path.exists()]

    def load(self, path: Path) -> None:
        """Into the model. Raises whatever the tool raises."""
        raise NotImplementedError


class KerasFile(Peer):
    label = "model.keras"

    def save(self, seq: int) -> None:
        self.model.save(self.folder / self.label)

    def load(self, path: Path) -> None:
        import keras

        self.model = keras.saving.load_model(path)


class Weights(Peer):
    label = "model.weights.h5"

    def save(self, seq: int) -> None:
        self.model.save_weights(self.folder / self.label, overwrite=True)

    def load(self, path: Path) -> None:
        self.model.load_weights(path)


class Backup(Peer):
    label = "BackupAndRestore"

    def __init__(self, folder: Path, model: Any) -> None:
        import keras

        super().__init__(folder, model)
        self._callback = keras.callbacks.BackupAndRestore(str(folder / self.label))
        self._callback.set_model(model)

    def save(self, seq: int) -> None:
        self._callback.on_epoch_end(seq)

    def load(self, path: Path) -> None:
        self._callback.on_train_begin()


class Orbax(Peer):
    label = "OrbaxCheckpoint"

    def __init__(self, folder: Path, model: Any) -> None:
        super().__init__(folder, model)
        self._callback: Any = None

    def save(self, seq: int) -> None:
        import keras

        if self._callback is None:
            self._callback = keras.callbacks.OrbaxCheckpoint(str(self.folder / self.label), max_to_keep=KEEP)
            self._callback.set_model(self.model)
        self._callback.on_epoch_end(seq)
        self._callback.wait_until_finished()

    def candidates(self) -> list[Path]:
        steps = [path for path in (self.folder / self.label).glob("*") if path.name.isdigit()]
        return sorted(steps, key=lambda path: int(path.name), reverse=True)

    def load(self, path: Path) -> None:
        ocp = importlib.import_module("orbax.checkpoint").v1
        util = importlib.import_module("keras.src.saving.orbax_util")
        wanted = util.build_orbax_abstract_pytree(str(path), self.model.get_state_tree())
        self.model.set_state_tree(ocp.load_checkpointables(str(path), {"pytree": wanted})["pytree"])


class Tensorflow(Peer):
    label = "tf.train.Checkpoint"

    def _checkpoint(self) -> Any:
        import tensorflow as tf

        return tf.train.Checkpoint(variables=[variable.value for variable in self.model.variables])

    def save(self, seq: int) -> None:
        self._checkpoint().write(str(self.folder / f"{seq:06d}"))
        for path in sorted(self.folder.glob("*.index"))[:-KEEP]:
            for each in self.folder.glob(f"{path.stem}.*"):
                each.unlink()

    def candidates(self) -> list[Path]:
        return [path.with_suffix("") for path in sorted(self.folder.glob("*.index"), reverse=True)]

    def load(self, path: Path) -> None:
        self._checkpoint().read(str(path)).assert_consumed()


class Safetensors(Peer):
    label = "safetensors"

    def save(self, seq: int) -> None:
        numpy = importlib.import_module("safetensors.numpy")
        numpy.save_file({v.path: v.numpy() for v in self.model.variables}, self.folder / f"{seq:06d}.safetensors")
        for path in sorted(self.folder.glob("*.safetensors"))[:-KEEP]:
            path.unlink()

    def candidates(self) -> list[Path]:
        return sorted(self.folder.glob("*.safetensors"), reverse=True)

    def load(self, path: Path) -> None:
        arrays = importlib.import_module("safetensors.numpy").load_file(path)
        for variable in self.model.variables:
            variable.assign(arrays[variable.path])


PEERS: dict[str, type[Peer]] = {
    peer.label: peer for peer in (KerasFile, Weights, Backup, Orbax, Tensorflow, Safetensors)
}
NEEDS: dict[str, str] = {"OrbaxCheckpoint": "orbax.checkpoint", "safetensors": "safetensors.numpy"}


def write(name: str, folder: Path, size: int) -> None:
    """Save until killed."""
    print("pid", os.getpid(), flush=True)
    peer = PEERS[name](folder, build(size))
    seq = 1
    while True:
        fill(peer.model, seq)
        print("begin", seq, flush=True)
        peer.save(seq)
        print("saved", seq, flush=True)
        seq += 1


def check(name: str, folder: Path, size: int) -> None:
    """Say what the tool's own choice comes to, and which numbers can be had at all."""
    found: list[int] = []
    first = "nothing there"
    for number, path in enumerate(PEERS[name](folder, build(size)).candidates()):
        try:
            peer = PEERS[name](folder, build(size))
            peer.load(path)
            found.append(number_of(peer.model))
            words = "ok"
        except Exception as error:
            words = f"{type(error).__name__}: {error}"[:200]
        if number == 0:
            first = words
    print(json.dumps({"first": first, "intact": found}), flush=True)


def rot(name: str, folder: Path, size: int, seed: str, begin: int, end: int) -> None:
    """Save once, then damage a copy and load it, `begin` to `end`; say what each came to."""
    print("pid", os.getpid(), flush=True)
    good = folder / "good"
    if not good.exists():
        good.mkdir()
        peer = PEERS[name](good, build(size))
        fill(peer.model, 1)
        peer.save(1)
    for number in range(begin, end + 1):
        chance = random.Random(f"{seed} {number}")
        place = folder / str(number)
        shutil.copytree(good, place)
        store_damage.hurt(sorted(path for path in place.rglob("*") if path.is_file()), chance)
        print("begin", number, flush=True)
        print("saved", number, _loaded(name, place, size), flush=True)
        shutil.rmtree(place)


def _loaded(name: str, folder: Path, size: int) -> str:
    try:
        peer = PEERS[name](folder, build(size))
        [path, *_] = peer.candidates()
        peer.load(path)
    except Exception:
        return "detected"
    try:
        return "harmless" if number_of(peer.model) == 1 else "silent"
    except Exception:
        return "silent"


def serve(path: str) -> None:
    """Import what there is, then fork one process for each client."""
    import zygote

    os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
    for module in ("tensorflow", *NEEDS.values()):
        with contextlib.suppress(ImportError):
            importlib.import_module(module)
    zygote.serve(path)


def main(argv: list[str]) -> None:
    """As the first words say."""
    word, *rest = argv
    if word == "serve":
        serve(rest[0])
        return
    name, folder, size, *more = rest
    if word == "write":
        write(name, Path(folder), int(size))
    elif word == "check":
        check(name, Path(folder), int(size))
    else:
        rot(name, Path(folder), int(size), more[0], int(more[1]), int(more[2]))


if __name__ == "__main__":
    main(sys.argv[1:])
