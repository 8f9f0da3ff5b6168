"""Ctrl-C in mid-epoch, as the user sends it: to ksupervise. `interrupted_script.py CASE OUT`."""

import json
import os
import signal
import sys
import traceback
from pathlib import Path

import keras
import numpy as np

OUT = Path(sys.argv[2])
keras.utils.set_random_seed(7)


class CtrlC(keras.callbacks.Callback):
    def on_train_batch_end(self, batch: int, logs: object = None) -> None:
        if int(self.model.optimizer.iterations.numpy()) == 25:
            os.kill(int(os.environ["PARENT"]) if "PARENT" in os.environ else os.getppid(), signal.SIGINT)


model = keras.Sequential([keras.layers.Input((8,)), keras.layers.Dense(4), keras.layers.Dense(1)])
model.compile("adam", "mse")
x = np.arange(640 * 8, dtype="float32").reshape(640, 8) / 1000
try:
    model.fit(x, x[:, :1], epochs=400, batch_size=8, verbose=0, callbacks=[CtrlC()])
except KeyboardInterrupt:
    steps = int(model.optimizer.iterations.numpy())
    OUT.with_suffix(".json").write_text(json.dumps({"steps": steps, "traceback": traceback.format_exc()}))
    sys.exit(3)
