"""A training script with many faces: `script.py CASE OUT`. It knows nothing of ksupervise.

`INTERRUPT=where:step` makes it kill itself in its first life (`LIVES=n`: in its first n), once a checkpoint is there to
go back to (`INSIDE=1`: one of this life, inside the epoch in hand). Steps are counted through all lives, with
`life:step` in each. It leaves OUT.json: a digest of all final weights, the History of each fit, and what it executed.
"""

import contextlib
import functools
import hashlib
import json
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import keras
import numpy as np
import tensorflow as tf
from keras import layers

CASE, OUT = sys.argv[1], Path(sys.argv[2])
EPOCHS = int(os.environ.get("EPOCHS", "4"))
WHERE, _, STEP = os.environ.get("INTERRUPT", "never:0").partition(":")
LIFE = int(os.environ.get("KSUPERVISE_ATTEMPT", "1"))
INTERRUPTED = int(os.environ.get("LIVES", "1")) >= LIFE
SHRUNK = os.environ.get("SHRINK") if LIFE > 1 else None  # how many samples are left in later lives


def count(kind: str) -> None:
    """The witness outside ksupervise: one byte for everything that happened, in all lives."""
    with open(f"{OUT}.{kind}", "ab") as stream:
        stream.write(b".")


def can_be_gone_back_to(run_dir: str, epoch: int) -> bool:
    """A checkpoint is there; with INSIDE one that was made in this life, inside this epoch."""
    if not os.environ.get("INSIDE"):
        return any(os.scandir(Path(run_dir, "checkpoints")))
    with contextlib.suppress(OSError):  # one that is being pruned
        found = Path(run_dir, "checkpoints").glob("*/MANIFEST.json")
        manifests = [json.loads(path.read_text()) for path in found]
        positions = [manifest["position"] for manifest in manifests if manifest["attempt"] == LIFE]
        return any(position["batch"] > 0 and position["epoch"] == epoch for position in positions)
    return False


def die_here(where: str, step: int, epoch: int = 0) -> None:
    if not INTERRUPTED or where != WHERE or step < int(STEP):
        return
    run_dir = os.environ.get("KSUPERVISE_RUN_DIR")
    if run_dir and soon(lambda: can_be_gone_back_to(run_dir, epoch)):
        tear(os.environ.get("TEAR"))
        if os.environ.get("WITH") == "CLIENT":
            kill_the_client(run_dir)
        else:
            os.kill(os.getpid(), getattr(signal, os.environ.get("WITH", "SIGKILL")))


@functools.cache
def first_look() -> float:
    return time.monotonic()


def soon(condition: Callable[[], bool]) -> bool:
    """It holds, or will in a moment: on a busy machine the training may be over before a checkpoint is written."""
    while not (holds := condition()) and time.monotonic() < first_look() + 3:
        os.sched_yield()
    return holds


def tear(folder: str | None) -> None:
    """`TEAR=FOLDER`: it dies while the files in OUT.FOLDER are being written."""
    for path in Path(f"{OUT}.{folder}").iterdir() if folder else ():
        os.truncate(path, path.stat().st_size // 2)


def kill_the_client(run_dir: str) -> None:
    """The supervised process dies, this one (a fork of the zygote, not of its tree) lives on for now."""
    records = map(json.loads, Path(run_dir, "journal.jsonl").read_text().splitlines())
    client = next(record["pid"] for record in records if record["event"] == "launched")
    with contextlib.suppress(ProcessLookupError):
        os.kill(client, signal.SIGKILL)


def fill_the_disk(step: int) -> None:
    """`FILL=PATH`: from step 20 to step 60 the disk that PATH is on has no room."""
    path = os.environ.get("FILL")
    if path and step == 20:
        with open(path, "wb", buffering=0) as stream, contextlib.suppress(OSError):
            while True:
                stream.write(bytes(4096))
    if path and step == 60:
        os.unlink(path)


TRAINED: list[int] = []  # batches, in this life


class Witness(keras.callbacks.Callback):
    def __init__(self) -> None:
        super().__init__()
        self.steps = self.epoch = 0

    def on_train_batch_begin(self, batch: int, logs: object = None) -> None:
        die_here("batch", self.steps, self.epoch)
        die_here("life", len(TRAINED), self.epoch)
        fill_the_disk(self.steps)

    def on_train_batch_end(self, batch: int, logs: object = None) -> None:
        self.steps += 1
        TRAINED.append(batch)
        count("steps")

    def on_test_batch_begin(self, batch: int, logs: object = None) -> None:
        die_here("validation", self.steps)

    def on_epoch_end(self, epoch: int, logs: object = None) -> None:
        die_here("epoch_end", self.steps)

    def on_epoch_begin(self, epoch: int, logs: object = None) -> None:
        self.epoch = epoch
        die_here("epoch_begin", self.steps)


def data(samples: int = 640) -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(3)
    x = generator.normal(size=(samples, 12)).astype("float32")
    return x, (x[:, :3].sum(axis=1) > 0).astype("int32")


def body() -> list[layers.Layer]:
    return [
        layers.Dense(24, activation="relu"),
        layers.BatchNormalization(),
        layers.Dropout(0.4),
        layers.GaussianNoise(0.1),
        layers.Dense(1, activation="sigmoid"),
    ]


def built() -> keras.Model:
    return keras.Sequential([keras.Input((12,)), *body()])


def unbuilt() -> keras.Model:
    return keras.Sequential(body())


def functional() -> keras.Model:
    inputs = keras.Input((12,))
    left, right = layers.Dense(16, activation="tanh")(inputs), layers.Dense(16)(inputs)
    outputs = layers.Dense(1, activation="sigmoid")(layers.Dropout(0.3)(layers.concatenate([left, right])))
    return keras.Model(inputs, outputs)


class OwnStep(keras.Model):
    """Its own train_step, a metric and a counter of its own, a variable that Keras does not know."""

    def __init__(self) -> None:
        super().__init__()
        self.net = unbuilt()
        self.tracker = keras.metrics.Mean(name="own_loss")
        self.seen = tf.Variable(0, dtype=tf.int64, trainable=False)

    def call(self, x: tf.Tensor, training: bool = False) -> tf.Tensor:
        return self.net(x, training=training)

    def train_step(self, batch: tuple[tf.Tensor, tf.Tensor]) -> dict[str, tf.Tensor]:
        x, y = batch
        with tf.GradientTape() as tape:
            prediction = self(x, training=True)
            loss = tf.reduce_mean(keras.losses.binary_crossentropy(y[:, None], prediction))
            loss = loss * (1.0 + tf.cast(self.seen % 7, tf.float32) / 10.0)
        self.optimizer.apply_gradients(
            zip(tape.gradient(loss, self.trainable_variables), self.trainable_variables, strict=True)
        )
        self.seen.assign_add(1)
        self.tracker.update_state(loss)
        return {"own_loss": self.tracker.result()}

    @property
    def metrics(self) -> list[keras.metrics.Metric]:
        return [self.tracker]


class Counting(keras.Model):
    """Counts for each epoch how often it was trained on which sample: the first column is its number."""

    def __init__(self, samples: int, batches: int) -> None:
        super().__init__()
        self.net = unbuilt()
        self.batches = batches
        self.seen = tf.Variable(tf.zeros((EPOCHS, samples), tf.int32), trainable=False)

    def call(self, x: tf.Tensor, training: bool = False) -> tf.Tensor:
        return self.net(x[:, 1:], training=training)

    def train_step(self, batch: tuple[tf.Tensor, tf.Tensor]) -> dict[str, tf.Tensor]:
        numbers = tf.cast(batch[0][:, 0], tf.int64)
        epoch = tf.fill(tf.shape(numbers), tf.cast(self.optimizer.iterations, tf.int64) // self.batches)
        self.seen.scatter_nd_add(tf.stack([epoch, numbers], axis=1), tf.ones_like(numbers, tf.int32))
        return super().train_step(batch)


class Noisy(keras.Model):
    """Draws inside its compiled step, from a state that TensorFlow shows to nobody."""

    def __init__(self) -> None:
        super().__init__()
        self.dense = layers.Dense(1, activation="sigmoid")

    def call(self, x: tf.Tensor) -> tf.Tensor:
        return self.dense(x + tf.random.normal(tf.shape(x)))


class OwnFit(keras.Model):
    """Overrides fit, as some libraries do."""

    def __init__(self) -> None:
        super().__init__()
        self.net = unbuilt()

    def call(self, x: tf.Tensor, training: bool = False) -> tf.Tensor:
        return self.net(x, training=training)

    def fit(self, *args: object, **kwargs: object) -> keras.callbacks.History:
        kwargs.setdefault("shuffle", True)
        return super().fit(*args, **kwargs)


class Gan(keras.Model):
    """No call, two optimizers that Keras does not compile: the GAN of Keras' own examples."""

    def __init__(self) -> None:
        super().__init__()
        self.discriminator = keras.Sequential([keras.Input((12,)), layers.Dense(16, "relu"), layers.Dense(1)])
        self.generator = keras.Sequential([keras.Input((4,)), layers.Dense(16, "relu"), layers.Dense(12)])
        self.noise = keras.random.SeedGenerator(5)

    def compile(self) -> None:
        super().compile()
        self.d_optimizer = keras.optimizers.Adam(1e-3)
        self.g_optimizer = keras.optimizers.RMSprop(1e-3)
        self.loss_fn = keras.losses.BinaryCrossentropy(from_logits=True)

    def train_step(self, batch: tuple[tf.Tensor, tf.Tensor]) -> dict[str, tf.Tensor]:
        real, _ = batch
        size = tf.shape(real)[0]
        fake = self.generator(keras.random.normal((size, 4), seed=self.noise))
        both, labels = tf.concat([fake, real], 0), tf.concat([tf.ones((size, 1)), tf.zeros((size, 1))], 0)
        with tf.GradientTape() as tape:
            d_loss = self.loss_fn(labels, self.discriminator(both))
        weights = self.discriminator.trainable_weights
        self.d_optimizer.apply_gradients(zip(tape.gradient(d_loss, weights), weights, strict=True))
        noise = keras.random.normal((size, 4), seed=self.noise)
        with tf.GradientTape() as tape:
            g_loss = self.loss_fn(tf.zeros((size, 1)), self.discriminator(self.generator(noise)))
        weights = self.generator.trainable_weights
        self.g_optimizer.apply_gradients(zip(tape.gradient(g_loss, weights), weights, strict=True))
        return {"d_loss": d_loss, "g_loss": g_loss}


def compiled(model: keras.Model, **arguments: object) -> keras.Model:
    arguments = {"optimizer": "adam", "loss": "binary_crossentropy", "metrics": ["accuracy", "auc"], **arguments}
    model.compile(**arguments)
    return model


def pipeline(x: np.ndarray, y: np.ndarray) -> tf.data.Dataset:
    dataset = tf.data.Dataset.from_tensor_slices((x, y)).shuffle(640, seed=11)
    noisy = dataset.map(lambda a, b: (a + tf.random.normal(tf.shape(a), stddev=0.01), b))
    return noisy.batch(32).prefetch(2)


class OwnOrder(keras.utils.PyDataset):
    """Keeps an order and a generator of its own, and augments with that and with numpy's."""

    def __init__(self, x: np.ndarray, y: np.ndarray) -> None:
        super().__init__()
        self.x, self.y = x, y
        self.order = np.arange(len(x))
        self.generator = np.random.RandomState(7)

    def __len__(self) -> int:
        return len(self.x) // 8

    def __getitem__(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        count(f"loads{LIFE}")
        rows = self.order[index * 8 : index * 8 + 8]
        noise = self.generator.normal(size=(8, 12)) + np.random.normal(size=(8, 12))
        return self.x[rows] + noise.astype("float32"), self.y[rows]

    def on_epoch_end(self) -> None:
        self.generator.shuffle(self.order)


class Odd(keras.callbacks.Callback):
    """Remembers what cannot be stored."""

    def get_state(self) -> object:
        return {"own": object()}

    def set_state(self, state: object) -> None:
        raise AssertionError("nothing was kept")


def numbered(x: np.ndarray) -> np.ndarray:
    """The samples with their numbers as a first column."""
    return np.concatenate([np.arange(len(x), dtype="float32")[:, None], x], axis=1)


def by_python(a: tf.Tensor) -> tf.Tensor:
    result = tf.py_function(lambda value: value, [a], tf.float32)
    return tf.ensure_shape(result, (None, 12))


def split(x: np.ndarray, y: np.ndarray) -> tuple[tf.data.Dataset, tf.data.Dataset]:
    """Chained shuffles, the halves of a split that read the same one, a Keras layer that draws."""
    noise = layers.GaussianNoise(0.1, seed=5)
    shuffled = tf.data.Dataset.from_tensor_slices((x, y)).shuffle(640, seed=1).shuffle(32, seed=2)
    training = shuffled.take(480).shuffle(100, seed=3).batch(16).map(lambda a, b: (noise(a, training=True), b))
    return training, shuffled.skip(480).batch(16)


def foreign_event_file() -> Path:
    """An event file that another process wrote into the same directory, before."""
    path = Path(f"{OUT}.tensorboard", "train", "events.out.tfevents.1700000000.elsewhere.4.0.v2")
    path.parent.mkdir(parents=True, exist_ok=True)
    if not path.exists():
        path.write_bytes(b"theirs")
    return path


def logging() -> list[keras.callbacks.Callback]:
    foreign_event_file()
    board = keras.callbacks.TensorBoard(f"{OUT}.tensorboard", update_freq=1)
    return [board, keras.callbacks.CSVLogger(f"{OUT}.csv")]


def events(path: Path) -> Iterator[list[object]]:
    """What a TensorBoard would show of a file. Descriptions of the model are named only."""
    for event in tf.compat.v1.train.summary_iterator(str(path)):
        for value in event.summary.value:
            number = tf.make_ndarray(value.tensor)
            row = [path.parent.name, value.tag, event.step]
            yield [*row, float(number)] if number.dtype.kind == "f" and not number.shape else row


def logged() -> dict[str, object]:
    """All that is in the log files."""
    foreign = foreign_event_file()
    ours = [path for path in Path(f"{OUT}.tensorboard").rglob("events.*") if path != foreign]
    rows = sorted(row for path in ours for row in events(path))
    return {"events": rows, "csv": Path(f"{OUT}.csv").read_text(), "foreign": foreign.read_text()}


FITS: list[keras.callbacks.History] = []
ADDED = {  # to the callbacks of the plain case
    "odd_callback": lambda: [Odd()],
    "backup": lambda: [keras.callbacks.BackupAndRestore(f"{OUT}.backup")],
    "logs": logging,
}


def fit(model: keras.Model, *args: object, **kwargs: object) -> None:
    callbacks = [*kwargs.pop("callbacks", []), Witness()]  # type: ignore[misc]
    kwargs = {"epochs": EPOCHS, "batch_size": 32, "verbose": 0, **kwargs}
    if isinstance(args[0], tf.data.Dataset):
        kwargs.pop("batch_size")
    FITS.append(model.fit(*args, callbacks=callbacks, **kwargs))


def train() -> list[keras.Model]:
    x, y = data()
    if SHRUNK:
        x, y = x[: int(SHRUNK)], y[: int(SHRUNK)]
    if CASE in ("built", "unbuilt", "functional", "unseeded", *ADDED):
        model = compiled({"functional": functional, "unbuilt": unbuilt}.get(CASE, built)())
        fit(model, x, y, validation_data=data(200), callbacks=ADDED.get(CASE, list)())
    elif CASE == "own_step":
        model = compiled(OwnStep(), loss=None, metrics=None)
        fit(model, x, y)
    elif CASE == "own_step_unused_metrics":
        model = compiled(OwnStep(), loss="mse", metrics=["mae"])
        fit(model, x, y)
    elif CASE == "loss_scale":
        keras.mixed_precision.set_global_policy("mixed_float16")
        model = compiled(built(), optimizer=keras.optimizers.Adam(1e-2))
        fit(model, x, y)
    elif CASE == "ema":
        averaged = keras.optimizers.AdamW(1e-2, use_ema=True, ema_overwrite_frequency=7, gradient_accumulation_steps=3)
        model = compiled(unbuilt(), optimizer=averaged)
        fit(model, x, y)
    elif CASE == "own_fit":
        model = compiled(OwnFit())
        fit(model, x, y)
    elif CASE == "gan":
        model = Gan()
        model.compile()
        fit(model, x, y)
    elif CASE == "tfdata":
        model = compiled(unbuilt())
        fit(model, pipeline(x, y), validation_data=pipeline(*data(96)))
    elif CASE == "repeat":
        model = compiled(built())
        fit(model, pipeline(x, y).repeat(), steps_per_epoch=17)
    elif CASE == "several_steps":
        model = compiled(built(), steps_per_execution=3)
        fit(model, x, y)
    elif CASE == "callbacks":
        model = compiled(built(), optimizer=keras.optimizers.SGD(0.5))
        fit(
            model,
            x,
            y,
            validation_data=data(200),
            callbacks=[
                keras.callbacks.EarlyStopping(patience=2, restore_best_weights=True),
                keras.callbacks.ReduceLROnPlateau(patience=1, factor=0.5),
                keras.callbacks.LearningRateScheduler(lambda epoch, rate: rate * 0.9),
                keras.callbacks.ModelCheckpoint(f"{OUT}.best.keras", save_best_only=True),
                keras.callbacks.CSVLogger(f"{OUT}.csv"),
            ],
        )
    elif CASE == "two_fits":
        model = compiled(built())
        fit(model, x, y, epochs=2)
        model.layers[0].trainable = False
        compiled(model, optimizer=keras.optimizers.Adam(1e-4))
        fit(model, x, y, epochs=EPOCHS)
    elif CASE == "same_pipeline":
        model, dataset = compiled(unbuilt()), pipeline(x, y)
        fit(model, dataset, epochs=2)
        fit(model, dataset)
    elif CASE == "folds":
        models = []
        for fold in range(3):
            models.append(compiled(built()))
            fit(models[-1], x[fold::3], y[fold::3], epochs=2)
        return models
    elif CASE == "unknown_length":
        model = compiled(built())
        fit(model, pipeline(x, y).unbatch().filter(lambda a, b: b >= 0).batch(32))
    elif CASE == "by_python_unseeded":
        model = compiled(built())
        dataset = tf.data.Dataset.from_tensor_slices((x, y)).repeat(2).shuffle(640).batch(8)
        fit(model, dataset.map(lambda a, b: (by_python(a), b)), epochs=1)
    elif CASE == "counted_unseeded":
        model = compiled(Counting(640, 80))
        fit(model, numbered(x), y, batch_size=8)
    elif CASE == "counted_tfdata_unseeded":
        model = compiled(Counting(640, 80))
        fit(model, tf.data.Dataset.from_tensor_slices((numbered(x), y)).shuffle(200).batch(8).prefetch(2))
    elif CASE == "own_order":
        model = compiled(built())
        fit(model, OwnOrder(x, y))
    elif CASE == "draws_in_step":
        model = compiled(Noisy())
        fit(model, x, y)
    elif CASE == "split":
        model, (training, validation) = compiled(built()), split(x, y)
        fit(model, training, validation_data=validation)
    else:
        raise SystemExit(f"no case {CASE}")
    return [model]


def digest(models: list[keras.Model]) -> str:
    total = hashlib.sha256()
    for model in models:
        for weight in model.get_weights():
            total.update(np.ascontiguousarray(weight).tobytes())
    return total.hexdigest()


if "unseeded" not in CASE:
    keras.utils.set_random_seed(17)
trained = train()
die_here("after", 0)
evaluated = (
    []
    if CASE in ("gan", "own_step", "own_step_unused_metrics", "folds") or isinstance(trained[0], Counting)
    else trained[0].evaluate(*data(200), verbose=0)
)
result = {
    "digest": digest(trained),
    "histories": [history.history for history in FITS],
    "epochs": [history.epoch for history in FITS],
    "evaluated": evaluated,
}
if CASE == "logs":
    result |= logged()
if isinstance(trained[0], Counting):
    result["seen"] = np.unique(trained[0].seen.numpy()).tolist()
Path(f"{OUT}.json").write_text(json.dumps(result, sort_keys=True))
print("done", flush=True)
