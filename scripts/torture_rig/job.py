"""A small training job that knows nothing of ksupervise and counts its own steps.

Dropout, batch normalization, validation, EarlyStopping and a learning-rate schedule by plateau: everything whose
state a careless resume would lose. Every finished step adds one record (process id, CLOCK_MONOTONIC seconds) to
`--count FILE`: a witness of what was really executed, kept outside ksupervise.
"""

import argparse
import os
import struct
import time

import keras
import numpy as np
from keras import layers
from sklearn.datasets import load_digits

RECORD = struct.Struct("<qd")


class CountSteps(keras.callbacks.Callback):
    def __init__(self, path: str) -> None:
        super().__init__()
        self._fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)

    def on_train_batch_end(self, batch: int, logs: object = None) -> None:
        os.write(self._fd, RECORD.pack(os.getpid(), time.monotonic()))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--epochs", type=int, default=12)
    parser.add_argument("--width", type=int, default=512)
    parser.add_argument("--count", required=True)
    parser.add_argument("--out", required=True)
    args = parser.parse_args()

    keras.utils.set_random_seed(7)
    digits = load_digits()
    x = (digits.images / 16.0).astype("float32").reshape(len(digits.images), -1)
    x_train, y_train, x_val, y_val = x[:1280], digits.target[:1280], x[1280:], digits.target[1280:]
    x_val, y_val = np.repeat(x_val, 8, axis=0), np.repeat(y_val, 8, axis=0)  # a validation worth hitting

    model = keras.Sequential(
        [
            layers.Dense(args.width, activation="relu"),
            layers.BatchNormalization(),
            layers.Dropout(0.3),
            layers.Dense(args.width, activation="relu"),
            layers.GaussianNoise(0.1),
            layers.Dense(10, activation="softmax"),
        ]
    )
    model.compile("adam", "sparse_categorical_crossentropy", metrics=["accuracy"])
    history = model.fit(
        x_train,
        y_train,
        batch_size=32,
        epochs=args.epochs,
        validation_data=(x_val, y_val),
        verbose=2,
        callbacks=[
            keras.callbacks.EarlyStopping(patience=6, restore_best_weights=True),
            keras.callbacks.ReduceLROnPlateau(factor=0.5, patience=2),
            CountSteps(args.count),
        ],
    )
    model.save_weights(args.out + ".weights.h5")
    with open(args.out + ".history", "w") as stream:
        stream.write(repr(sorted(history.history.items())))


if __name__ == "__main__":
    main()
