"""A training that stands still in its first two lives until it is killed. `standby_script.py OUT`

It draws unseeded numbers around its imports, and leaves what it drew, what it can see of its interpreter and a digest
of its weights.
"""

import os
import random
import sys

life = int(os.environ.get("KSUPERVISE_ATTEMPT", "1"))
before = [random.random(), len(sys.meta_path), [name for name in ("numpy", "keras", "absl") if name in sys.modules]]
os.environ["KERAS_BACKEND"] = "tensorflow"
os.environ["TF_CPP_MIN_LOG_LEVEL"] = "2"

import numpy as np  # noqa: E402

between = [random.random(), float(np.random.rand()), float(np.random.default_rng().random())]
entropy = np.random.SeedSequence().entropy

import hashlib  # noqa: E402
import json  # noqa: E402
import signal  # noqa: E402
import threading  # noqa: E402
import warnings  # noqa: E402

import keras  # noqa: E402
import tensorflow as tf  # noqa: E402


def seen() -> list[object]:
    """What the imports changed."""
    ours = ("KSUPERVISE_", "PYTHON", "JAX_COMPILATION_CACHE_DIR")
    return [
        {name: value for name, value in os.environ.items() if not name.startswith(ours)},
        sorted(name for name in sys.modules if name.split(".")[0] not in {"ksupervise", *sys.stdlib_module_names}),
        sys.path,
        [repr(entry) for entry in warnings.filters],
        [type(finder).__name__ for finder in sys.meta_path if type(finder).__module__[:10] != "ksupervise"],
        [repr(signal.getsignal(number)) for number in range(1, 32)],
        [thread.name for thread in threading.enumerate()],
        [random.random(), float(np.random.rand()), float(np.random.default_rng().random())],
        [os.sched_getscheduler(0), os.nice(0), sys.getrecursionlimit()],
        [keras.__version__, keras.__spec__.origin, tf.__version__, repr(keras.src), type(keras.__loader__).__name__],
        [tf.config.list_physical_devices()[0].name, keras.backend.backend()],
    ]


facts = [before, between, entropy, seen()]


class Waits(keras.callbacks.Callback):
    """Until somebody kills it."""

    def on_epoch_end(self, epoch: int, logs: object = None) -> None:
        if "KSUPERVISE_ATTEMPT" in os.environ and life < 3 and epoch == life:
            while True:
                signal.pause()


x, y = np.random.rand(320, 8).astype("float32"), np.random.rand(320, 1).astype("float32")
keras.utils.set_random_seed(5)
model = keras.Sequential([keras.Input((8,)), keras.layers.Dense(16, "relu"), keras.layers.Dropout(0.3)])
model.add(keras.layers.Dense(1))
model.compile("adam", "mse")
history = model.fit(x, y, epochs=4, batch_size=16, verbose=0, callbacks=[Waits()])
digest = hashlib.sha256(b"".join(weight.tobytes() for weight in model.get_weights())).hexdigest()
with open(f"{sys.argv[1]}-{life}.json", "w") as file:
    json.dump([facts, history.history, digest], file)
