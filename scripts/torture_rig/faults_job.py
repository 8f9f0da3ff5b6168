"""A small training job that knows nothing of ksupervise, and in which things go wrong as its environment says.

FAULT_DATA chooses where its data come from, FAULT_PACE the seconds that a step takes beside its arithmetic. Every
finished step adds one record (process id, CLOCK_MONOTONIC seconds) to `--count FILE`: a witness of what was executed.
"""

import argparse
import itertools
import os
import struct
import time

import faults_acts as acts
import keras
import tensorflow as tf
from keras import layers
from sklearn.datasets import load_digits

RECORD = struct.Struct("<qd")
DATA = os.environ.get("FAULT_DATA", "numpy")
PACE = float(os.environ.get("FAULT_PACE", "0.01"))
EPOCHS = 6


class CountSteps(keras.callbacks.Callback):
    def __init__(self, path):
        super().__init__()
        self._fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)

    def on_train_batch_end(self, batch, logs=None):
        os.write(self._fd, RECORD.pack(os.getpid(), time.monotonic()))


class Places(keras.callbacks.Callback):
    """Where things go wrong."""

    def on_epoch_begin(self, epoch, logs=None):
        self.epoch = epoch

    def on_train_batch_begin(self, batch, logs=None):
        acts.fail_if_poisoned()
        acts.here("step", int(self.model.optimizer.iterations))

    def on_train_batch_end(self, batch, logs=None):
        time.sleep(PACE)

    def on_test_batch_begin(self, batch, logs=None):
        time.sleep(PACE)
        acts.here("test", self.epoch, batch)
        if acts.NAME == "slow_validation" and self.epoch == 3:
            if batch == 0:
                acts.tell("test", self.epoch, batch)
            time.sleep(acts.SECONDS / 14)

    def on_epoch_end(self, epoch, logs=None):
        acts.here("epoch_end", epoch)


class Flag(layers.Layer):
    """Passes on what it gets. Its variable takes part in nothing but the state."""

    def build(self, shape):
        self.flag = self.add_weight(name="flag", shape=(), initializer="zeros", trainable=False)

    def call(self, inputs):
        acts.here("trace", *([] if acts.model is None else [0]))
        return inputs


class Checked(keras.Model):
    """Whose loss has to be a number."""

    def compute_loss(self, *args, **kwargs):
        loss = super().compute_loss(*args, **kwargs)
        return tf.debugging.check_numerics(loss, "the loss") if DATA == "numerics" else loss


calls = itertools.count(1)


def look(image):
    """A function of the script's own inside its pipeline."""
    acts.here("data", next(calls))
    return image


class Items(keras.utils.PyDataset):
    """Batch by batch, on two threads."""

    def __init__(self, x, y):
        super().__init__(workers=2)
        self.x, self.y = x, y

    def __len__(self):
        return len(self.x) // 32

    def __getitem__(self, index):
        acts.here("data", next(calls))
        return self.x[32 * index : 32 * index + 32], self.y[32 * index : 32 * index + 32]


def training_data(x, y):
    """Arguments for fit."""
    if DATA == "pydataset":
        return {"x": Items(x, y)}
    if DATA in ("map", "py_function"):
        data = tf.data.Dataset.from_tensor_slices((x, y)).batch(32)
        if DATA == "map":
            word = str(acts.FOLDER / "word")
            return {"x": data.map(lambda a, b: (a * tf.strings.to_number(tf.io.read_file(word)), b))}
        return {"x": data.map(lambda a, b: (tf.ensure_shape(tf.py_function(look, [a], tf.float32), (32, 64)), b))}
    if DATA == "untuned":
        # An iterator's end waits, now and then, for its autotuning thread, which sleeps up to as long as it has lived.
        options = tf.data.Options()
        options.autotune.enabled = False
        return {"x": tf.data.Dataset.from_tensor_slices((x, y)).shuffle(1280).batch(32).with_options(options)}
    return {"x": x, "y": y, "batch_size": 32}


def forever(x, y):
    while True:
        yield x[:32], y[:32]


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", required=True)
    parser.add_argument("--out", required=True)
    args = parser.parse_args()
    acts.begin()

    keras.utils.set_random_seed(7)
    digits = load_digits()
    x = (digits.images / 16.0).astype("float32").reshape(len(digits.images), -1)
    x_train, y_train, x_val, y_val = x[:1280], digits.target[:1280], x[1280:1760], digits.target[1280:1760]

    inputs = keras.Input((64,))
    flag = Flag()
    hidden = layers.Dropout(0.3)(layers.Dense(64, activation="relu")(flag(inputs)))
    model = Checked(inputs, layers.Dense(7 if DATA == "bad_shape" else 10, activation="softmax")(hidden))
    loss = "no_such_loss" if DATA == "bad_compile" else "sparse_categorical_crossentropy"
    model.compile("adam", "categorical_crossentropy" if DATA == "bad_shape" else loss, metrics=["accuracy"])
    acts.model, model.flag = model, flag.flag
    acts.here("before")
    validation = forever(x_val, y_val) if DATA == "endless" else (x_val, y_val)
    callbacks = [CountSteps(args.count), Places()]
    if DATA == "terminate":
        callbacks.append(keras.callbacks.TerminateOnNaN())
    history = model.fit(
        **training_data(x_train, y_train), epochs=EPOCHS, validation_data=validation, verbose=2, callbacks=callbacks
    )
    model.save_weights(args.out + ".weights.h5")
    with open(args.out + ".history", "w") as stream:
        stream.write(repr(sorted(history.history.items())))


if __name__ == "__main__":
    main()
