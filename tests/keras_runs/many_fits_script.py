"""Fits one model many times, as people do who change the data between fits: `many_fits_script.py _ OUT`."""

import json
import os
import sys
from pathlib import Path

import keras
import numpy as np

OUT = Path(sys.argv[2])
FITS = 12
LEAVE_AT = int(os.environ.get("LEAVE_AT", "-1"))


class Witness(keras.callbacks.Callback):
    """Counts, and leaves in the first life."""

    def on_train_batch_begin(self, batch: int, logs: object = None) -> None:
        if batch == 3 and len(FITTED) == LEAVE_AT and os.environ.get("KSUPERVISE_ATTEMPT") == "1":
            sys.exit()

    def on_train_batch_end(self, batch: int, logs: object = None) -> None:
        with open(f"{OUT}.steps", "ab") as stream:
            stream.write(b".")


keras.utils.set_random_seed(5)
x = np.random.default_rng(1).normal(size=(256, 6)).astype("float32")
y = (x[:, :1] > 0).astype("float32")
model = keras.Sequential([keras.layers.Dense(8, activation="relu"), keras.layers.Dropout(0.3), keras.layers.Dense(1)])
model.compile("adam", "mse")
FITTED: list[float] = []
for _ in range(FITS):
    history = model.fit(x, y, batch_size=32, epochs=1, verbose=0, callbacks=[Witness()])
    FITTED.append(history.history["loss"][0])
weights = [weight.tolist() for weight in model.get_weights()]
Path(f"{OUT}.json").write_text(json.dumps({"losses": FITTED, "weights": weights}))
