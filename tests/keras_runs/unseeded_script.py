"""A training script that sets no seed anywhere: `unseeded_script.py CASE OUT`. It knows nothing of ksupervise.

Each of its lives appends one JSON line to OUT.lives for every place at which it drew. `INTERRUPT=where:step` makes it
kill itself in its first life, once a checkpoint is there to go back to.
"""

import hashlib
import json
import os
import random
import signal
import sys
from pathlib import Path

import keras
import numpy as np
from keras import layers
from sklearn.model_selection import train_test_split

OUT = Path(sys.argv[2])
WHERE, _, STEP = os.environ.get("INTERRUPT", "never:0").partition(":")
FIT = int(os.environ.get("FIT", "2"))  # the fit in which it dies, or after which
ATTEMPT = os.environ.get("KSUPERVISE_ATTEMPT", "1")


def digest(*arrays: np.ndarray) -> str:
    return hashlib.sha256(b"".join(np.ascontiguousarray(array).tobytes() for array in arrays)).hexdigest()


def drew(place: str, **more: object) -> None:
    """What every generator gives here, in this life."""
    drawn = {
        "random": random.random(),
        "numpy": np.random.rand(),
        "default_rng": np.random.default_rng().integers(10**12).item(),
        "SeedSequence": str(np.random.SeedSequence().entropy),
        "keras": keras.ops.convert_to_numpy(keras.random.SeedGenerator().state).tolist(),
        **more,
    }
    with open(f"{OUT}.lives", "a") as stream:
        stream.write(json.dumps({"attempt": ATTEMPT, "place": place, "drawn": drawn}) + "\n")


def die_here(where: str, step: int) -> None:
    if ATTEMPT != "1" or where != WHERE or step < int(STEP):
        return
    manifests = Path(os.environ.get("KSUPERVISE_RUN_DIR", "/nowhere"), "checkpoints").glob("*/MANIFEST.json")
    if any(json.loads(path.read_text())["position"]["fit"] == FIT for path in manifests):
        os.kill(os.getpid(), signal.SIGKILL)


class Witness(keras.callbacks.Callback):
    steps = 0

    def on_train_batch_begin(self, batch: int, logs: object = None) -> None:
        die_here("batch", self.steps)

    def on_train_batch_end(self, batch: int, logs: object = None) -> None:
        self.steps += 1
        np.random.default_rng()  # entropy is drawn during a fit, too


x = np.arange(800 * 6, dtype="float32").reshape(800, 6) % 17 / 17
y = (x[:, 0] > x[:, 1]).astype("int32")
x_train, x_test, y_train, y_test = train_test_split(x, y, test_size=0.2)
model = keras.Sequential(
    [keras.Input((6,)), layers.Dense(8, "relu"), layers.Dropout(0.3), layers.Dense(1, "sigmoid", name="last")]
)
model.compile("adam", "binary_crossentropy")
drew("before", split=digest(x_train, x_test), weights=digest(*model.get_weights()))

model.fit(x_train, y_train, epochs=4, batch_size=16, verbose=0, callbacks=[Witness()])
drew("between")
model.fit(x_train, y_train, epochs=4, batch_size=16, verbose=0, callbacks=[Witness()])
drew("after", split=digest(*train_test_split(x)))
die_here("after", 0)
Path(f"{OUT}.json").write_text(json.dumps({"digest": digest(*model.get_weights())}))
