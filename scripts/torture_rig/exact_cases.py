"""Training scripts of many kinds in one: `exact_cases.py SOURCE CALLBACKS VARIANT`, run in a folder of its own.

It knows nothing of ksupervise. `LIVES=place@fit:epoch:batch/SIGNAL,…` says where each of its lives ends: at the first
passage of that place from that position on, once there is something to go back to. It leaves `result.json` (what was
computed), `steps.jsonl` (a witness: every step that was trained, in all lives) and `files/` (what callbacks wrote).

`CONTROL=backup` or `recipe` adds what a script without ksupervise would do for itself.
"""

import collections
import contextlib
import functools
import hashlib
import importlib
import json
import os
import random
import signal
import sys
import time
from pathlib import Path

import keras
import numpy as np
import tensorflow as tf
from keras import layers

SOURCE, CALLBACKS, VARIANT = sys.argv[1:4]
CONTROL = os.environ.get("CONTROL", "")
LIFE = int(os.environ.get("LIFE") or os.environ.get("KSUPERVISE_ATTEMPT") or "1")
SLOW = float(os.environ.get("SLOW", "0"))  # seconds a step, so that checkpoints fall into the middle of epochs
LAST_BATCH = int(os.environ.get("LAST_BATCH", "-1"))  # number of an epoch's last batch, where Keras does not know it
FEATURES, TRAINED, HELD_OUT, BATCH = 12, 256, 64, 16
FILES = Path("files")


# Lives and how they end


class Plan:
    """Where this life ends."""

    def __init__(self) -> None:
        lives = os.environ.get("LIVES", "").split(",")
        self.place, self.at, self.signal = "", (0, 0, 0), ""
        self.may_wait = not CONTROL
        if len(lives) >= LIFE and lives[LIFE - 1]:
            self.place, _, rest = lives[LIFE - 1].partition("@")
            at, _, self.signal = rest.partition("/")
            self.at = tuple(map(int, at.split(":")))


PLAN = Plan()
AT = [0, 0, 0]  # fit, epoch, batch: where this life is
SEEN: set[str] = set()  # checkpoints that a "fresh" one would be new to


def saved() -> list[str]:
    """What the next life could go back to."""
    run_dir = os.environ.get("KSUPERVISE_RUN_DIR")
    folder = Path(run_dir, "checkpoints") if run_dir else Path("saved")
    with contextlib.suppress(OSError):
        return [path.name for path in folder.glob("*" if run_dir else "*/*")]
    return []


def something_saved() -> bool:
    """A stage may still be on its way to a slow disk: wait a little, once."""
    end = time.monotonic() + (5 if any(AT) and PLAN.may_wait else 0)
    while not saved() and time.monotonic() < end:
        time.sleep(0.005)
        PLAN.may_wait = False
    return bool(saved())


def passes(place: str) -> None:
    """This life comes by `place`: perhaps it ends here."""
    if PLAN.place != place or tuple(AT) < PLAN.at or not something_saved():
        return
    PLAN.place = ""
    with open("ends", "a") as stream:
        stream.write(f"{LIFE} {place} {AT}\n")
    who, _, name = PLAN.signal.rpartition("_")
    pid = int(Path("supervisor.pid").read_text()) if who else os.getpid()
    os.kill(pid, getattr(signal, name))


def passes_batch() -> None:
    if AT[2] == 0:
        passes("first_batch")
    if AT[2] == LAST_BATCH:
        passes("last_batch")
    if PLAN.place == "fresh":
        now = set(saved())
        if SEEN and now - SEEN:
            passes("fresh")
        SEEN.update(now)
    passes("batch")


# The witness: what was trained, in all lives, whatever becomes of them

IDS: list[list[int]] = []


def note_ids(ids: np.ndarray) -> None:
    IDS.append([round(float(number) * 1000) for number in ids])


class First(keras.callbacks.Callback):
    """Before all other callbacks of the script."""

    def on_epoch_begin(self, epoch: int, logs: object = None) -> None:
        AT[1:] = epoch, 0

    def on_train_batch_begin(self, batch: int, logs: object = None) -> None:
        AT[2] = batch
        IDS.clear()
        time.sleep(SLOW)

    def on_epoch_end(self, epoch: int, logs: object = None) -> None:
        passes("epoch_end_first")

    def on_train_end(self, logs: object = None) -> None:
        passes("train_end")
        (FILES / f"ended-{AT[0]}.json").write_text(json.dumps(numbers(logs or {})))


class Last(keras.callbacks.Callback):
    """After all other callbacks of the script."""

    def __init__(self) -> None:
        super().__init__()
        self._stream = os.open("steps.jsonl", os.O_WRONLY | os.O_APPEND | os.O_CREAT)

    def on_train_batch_begin(self, batch: int, logs: object = None) -> None:
        passes_batch()

    def on_train_batch_end(self, batch: int, logs: object = None) -> None:
        if self.params.get("steps"):  # an epoch's last execution may be shorter than Keras says
            batch = min(batch, self.params["steps"] - 1)
        record = [LIFE, *AT, batch, [number for ids in IDS for number in ids]]
        os.write(self._stream, json.dumps(record).encode() + b"\n")

    def on_test_batch_begin(self, batch: int, logs: object = None) -> None:
        passes("validation")

    def on_epoch_begin(self, epoch: int, logs: object = None) -> None:
        passes("epoch_begin")

    def on_epoch_end(self, epoch: int, logs: object = None) -> None:
        passes("epoch_end_last")

    def get_state(self) -> dict[str, object]:
        """Whoever copies the training's state asks for ours: a life can end in the middle of that."""
        passes("staging")
        return {}

    def set_state(self, state: dict[str, object]) -> None:
        pass


class InEvaluate(keras.callbacks.Callback):
    def on_test_batch_begin(self, batch: int, logs: object = None) -> None:
        passes("evaluate")


# Data


def table(samples: int = TRAINED, seed: int = 3) -> tuple[np.ndarray, np.ndarray]:
    """Features, the last column a number that tells the samples apart, and labels."""
    generator = np.random.default_rng(seed)
    x = generator.normal(size=(samples, FEATURES)).astype("float32")
    y = (x[:, :3].sum(axis=1) + generator.normal(size=samples) * 0.7 > 0).astype("float32")
    numbers = np.arange(samples, dtype="float32")[:, None] / 1000
    return np.concatenate([x, numbers], axis=1), y[:, None]


class Data:
    """What `fit` is given."""

    def __init__(self, *train: object, validation: object = None, seed: int | None = 17, **fit: object) -> None:
        self.train, self.validation, self.seed, self.fit = train, validation, seed, fit


def held_out() -> tuple[np.ndarray, np.ndarray]:
    return table(HELD_OUT, seed=4)


def slices(samples: int = TRAINED) -> tf.data.Dataset:
    return tf.data.Dataset.from_tensor_slices(table(samples))


def validating(shuffle: bool = False) -> tf.data.Dataset:
    dataset = tf.data.Dataset.from_tensor_slices(held_out())
    return (dataset.shuffle(HELD_OUT) if shuffle else dataset).batch(BATCH)


def pipeline(dataset: tf.data.Dataset, seed: int | None = 17, batch: bool = True, **fit: object) -> Data:
    fit.setdefault("validation", validating())
    return Data(dataset.batch(BATCH) if batch else dataset, seed=seed, **fit)


def added(noise: tf.Tensor) -> tf.Tensor:
    """As many random numbers as a sample has features; its own number stays."""
    return tf.concat([noise * 0.1, tf.zeros((1,))], 0)


def numpy_arrays(seed: int | None = 17) -> Data:
    return Data(*table(), validation=held_out(), seed=seed)


def numpy_split() -> Data:
    return Data(*table(TRAINED + HELD_OUT), validation_split=0.2)


def numpy_class_weight() -> Data:
    return Data(*table(), validation=held_out(), class_weight={0: 1.0, 1: 2.5})


def numpy_sample_weight() -> Data:
    weights = np.random.default_rng(8).uniform(0.5, 2, size=TRAINED).astype("float32")
    return Data(*table(), validation=(*held_out(), weights[:HELD_OUT]), sample_weight=weights)


def tensors() -> Data:
    return Data(*map(tf.constant, table()), validation=tuple(map(tf.constant, held_out())))


def shuffled(seed: int | None = 17) -> Data:
    return pipeline(slices().shuffle(100), seed, validation=validating(shuffle=True))


def own_seed_only() -> Data:
    return pipeline(slices().shuffle(100, seed=5), None)


def map_random(seed: int | None = 17) -> Data:
    dataset = slices().shuffle(TRAINED)
    return pipeline(dataset.map(lambda x, y: (x + added(tf.random.normal((FEATURES,))), y)), seed)


def map_layer() -> Data:
    augment = keras.Sequential([layers.RandomFlip("horizontal"), layers.RandomBrightness(0.2, value_range=(0, 1))])

    def look(x: tf.Tensor, y: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        image = augment(tf.reshape(x[:, :FEATURES], (-1, 2, 2, 3)), training=True)
        return tf.concat([tf.reshape(image, (-1, FEATURES)), x[:, FEATURES:]], 1), y

    return pipeline(slices().shuffle(TRAINED).batch(BATCH).map(look).prefetch(2), batch=False)


def map_generator() -> Data:
    generator = tf.random.Generator.from_seed(7)
    return pipeline(slices().shuffle(TRAINED).map(lambda x, y: (x + added(generator.normal((FEATURES,))), y)))


def map_stateless() -> Data:
    seeds = tf.data.Dataset.counter()
    dataset = tf.data.Dataset.zip(slices().shuffle(TRAINED), seeds)
    return pipeline(
        dataset.map(lambda pair, n: (pair[0] + added(tf.random.stateless_normal((FEATURES,), (n, 3))), pair[1]))
    )


def parallel_map() -> Data:
    dataset = slices().shuffle(TRAINED)
    return pipeline(
        dataset.map(lambda x, y: (tf.tanh(x), y), num_parallel_calls=2).batch(BATCH).prefetch(4), batch=False
    )


def cache_before() -> Data:
    return pipeline(slices().map(lambda x, y: (tf.tanh(x), y)).cache().shuffle(TRAINED))


def cache_after() -> Data:
    return pipeline(slices().shuffle(TRAINED).cache())


def cache_random() -> Data:
    """An augmentation that is drawn once, in the first epoch, and cached."""
    return pipeline(slices().map(lambda x, y: (x + added(tf.random.normal((FEATURES,))), y)).cache().shuffle(TRAINED))


def cache_disk() -> Data:
    return pipeline(slices().shuffle(TRAINED).cache("cached").shuffle(50))


def prefetch() -> Data:
    return pipeline(slices().shuffle(TRAINED).batch(BATCH).prefetch(tf.data.AUTOTUNE), batch=False)


def repeat(seed: int | None = 17) -> Data:
    steps = 13 if seed is not None else TRAINED // BATCH
    return pipeline(slices().shuffle(TRAINED).repeat(), seed, steps_per_epoch=steps)


def shards() -> Data:
    x, y = table()
    files = tf.data.Dataset.range(4).shuffle(4)
    x, y = (tf.constant(part.reshape(4, TRAINED // 4, -1)) for part in (x, y))
    rows = files.interleave(
        lambda n: tf.data.Dataset.from_tensor_slices((x[n], y[n])),
        cycle_length=2,
        num_parallel_calls=2,
        deterministic=True,
    )
    return pipeline(rows.shuffle(64))


def filtered() -> Data:
    return pipeline(slices().shuffle(TRAINED).filter(lambda x, y: x[0] > -1.0))


def split() -> Data:
    """Validation and training samples from one shuffle: a beginner's mistake, and a common one."""
    dataset = slices(TRAINED + HELD_OUT).shuffle(TRAINED + HELD_OUT)
    return pipeline(dataset.skip(HELD_OUT), validation=dataset.take(HELD_OUT).batch(BATCH))


def split_once() -> Data:
    dataset = slices(TRAINED + HELD_OUT).shuffle(TRAINED + HELD_OUT, reshuffle_each_iteration=False)
    return pipeline(dataset.skip(HELD_OUT).shuffle(64), validation=dataset.take(HELD_OUT).batch(BATCH))


def joined() -> Data:
    left, right = slices().take(128).shuffle(128), slices().skip(128).shuffle(128)
    both = tf.data.Dataset.zip(left, right).map(lambda a, b: ((a[0] + b[0]) / 2, a[1]))
    return pipeline(left.concatenate(both))


def from_generator() -> Data:
    x, y = table()

    def rows():
        for index in np.random.permutation(TRAINED):
            yield x[index] + np.random.normal(size=FEATURES + 1).astype("float32") * 0.1, y[index]

    spec = (tf.TensorSpec((FEATURES + 1,)), tf.TensorSpec((1,)))
    return pipeline(tf.data.Dataset.from_generator(rows, output_signature=spec))


def from_generator_plain() -> Data:
    """The generator draws nothing; the pipeline shuffles."""
    x, y = table()
    spec = (tf.TensorSpec((FEATURES + 1,)), tf.TensorSpec((1,)))
    dataset = tf.data.Dataset.from_generator(lambda: zip(x, y, strict=True), output_signature=spec)
    return pipeline(dataset.apply(tf.data.experimental.assert_cardinality(TRAINED)).shuffle(TRAINED))


def numpy_function(seed: int | None = 17) -> Data:
    def noisy(x: np.ndarray) -> np.ndarray:
        noise = np.random.normal(size=x.shape).astype("float32") * 0.1
        noise[-1] = 0
        return x + noise

    def look(x: tf.Tensor, y: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        return tf.ensure_shape(tf.numpy_function(noisy, [x], tf.float32), (FEATURES + 1,)), y

    return pipeline(slices().shuffle(TRAINED).map(look), seed)


def py_function() -> Data:
    def look(x: tf.Tensor, y: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        return tf.ensure_shape(tf.py_function(tf.tanh, [x], tf.float32), (FEATURES + 1,)), y

    return pipeline(slices().shuffle(TRAINED).map(look))


class Batches(keras.utils.PyDataset):
    """Batches in a fixed order, or (`reshuffles`) in an order of its own for each epoch."""

    def __init__(self, *, reshuffles: bool = False, augments: bool = False, **kwargs: object) -> None:
        super().__init__(**kwargs)
        self.x, self.y = table()
        self.reshuffles, self.augments = reshuffles, augments
        self.random = np.random.RandomState(21)
        self.order = np.arange(TRAINED)
        self.epochs = 0

    def __len__(self) -> int:
        return TRAINED // BATCH

    def __getitem__(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        chosen = self.order[index * BATCH : (index + 1) * BATCH]
        x = self.x[chosen]
        if self.augments:
            x = x + np.random.normal(size=x.shape).astype("float32") * 0.1
        return x, self.y[chosen]

    def on_epoch_end(self) -> None:
        self.epochs += 1
        if self.reshuffles:
            self.random.shuffle(self.order)
            self.x[:, 0] += 0.01 * self.epochs


def py_dataset(seed: int | None = 17, **kwargs: object) -> Data:
    return Data(Batches(**kwargs), validation=held_out(), seed=seed)


def generator() -> Data:
    x, y = table()

    def batches():
        own = np.random.RandomState(5)
        while True:
            chosen = own.permutation(TRAINED)[:BATCH]
            yield x[chosen] + np.random.normal(size=(BATCH, FEATURES + 1)).astype("float32") * 0.1, y[chosen]

    return Data(batches(), validation=held_out(), steps_per_epoch=13)


SOURCES = {
    "numpy": numpy_arrays,
    "numpy_split": numpy_split,
    "numpy_class_weight": numpy_class_weight,
    "numpy_sample_weight": numpy_sample_weight,
    "tensors": tensors,
    "tfdata": shuffled,
    "tfdata_own_seed_only": own_seed_only,
    "tfdata_map_random": map_random,
    "tfdata_map_layer": map_layer,
    "tfdata_map_generator": map_generator,
    "tfdata_map_stateless": map_stateless,
    "tfdata_parallel_map": parallel_map,
    "tfdata_cache_before": cache_before,
    "tfdata_cache_after": cache_after,
    "tfdata_cache_random": cache_random,
    "tfdata_cache_disk": cache_disk,
    "tfdata_prefetch": prefetch,
    "tfdata_repeat": repeat,
    "tfdata_shards": shards,
    "tfdata_filter": filtered,
    "tfdata_split": split,
    "tfdata_split_once": split_once,
    "tfdata_joined": joined,
    "tfdata_from_generator": from_generator,
    "tfdata_from_generator_plain": from_generator_plain,
    "tfdata_numpy_function": numpy_function,
    "tfdata_py_function": py_function,
    "pydataset": py_dataset,
    "pydataset_reshuffles": functools.partial(py_dataset, reshuffles=True),
    "pydataset_augments": functools.partial(py_dataset, augments=True),
    "pydataset_threads": functools.partial(py_dataset, reshuffles=True, workers=2),
    "pydataset_processes": functools.partial(py_dataset, workers=2, use_multiprocessing=True),
    "generator": generator,
    "unseeded_numpy": functools.partial(numpy_arrays, seed=None),
    "unseeded_tfdata": functools.partial(shuffled, seed=None),
    "unseeded_tfdata_map_random": functools.partial(map_random, seed=None),
    "unseeded_tfdata_repeat": functools.partial(repeat, seed=None),
    "unseeded_tfdata_numpy_function": functools.partial(numpy_function, seed=None),
    "unseeded_pydataset": functools.partial(py_dataset, seed=None, reshuffles=True),
}


# Models


class Recording(keras.Model):
    """Tells the witness which samples a step was trained on."""

    def train_step(self, batch: tuple[tf.Tensor, ...]) -> dict[str, tf.Tensor]:
        tf.numpy_function(note_ids, [batch[0][:, -1]], [])
        return super().train_step(batch)


def network() -> keras.Model:
    # Where the script sets no global seed, each layer has its own: then its weights are a function of the script.
    own = SOURCE == "tfdata_own_seed_only"

    def dense(units: int, seed: int, activation: str) -> layers.Layer:
        initializer = keras.initializers.GlorotUniform(seed=seed if own else None)
        return layers.Dense(units, activation=activation, kernel_initializer=initializer)

    inputs = keras.Input((FEATURES + 1,))
    x = dense(16, 1, "relu")(inputs[:, :FEATURES])
    x = layers.BatchNormalization()(x)
    x = layers.Dropout(0.3, seed=2 if own else None)(x)
    x = layers.GaussianNoise(0.1, seed=3 if own else None)(x)
    outputs = dense(1, 4, "sigmoid")(x)
    return (Recording if SOURCE.startswith("unseeded") else keras.Model)(
        inputs, layers.Activation("linear", dtype="float32")(outputs)
    )


def compiled(model: keras.Model, rate: float = 1e-2, **arguments: object) -> keras.Model:
    if VARIANT == "accumulating":
        options = {"use_ema": True, "ema_overwrite_frequency": 7, "gradient_accumulation_steps": 3}
    else:
        options = {"use_ema": True} if "swap" in CALLBACKS else {}
    if VARIANT == "several_steps":
        arguments["steps_per_execution"] = 3
    optimizer = keras.optimizers.Adam(rate, **options)
    metrics = ["accuracy", keras.metrics.AUC(name="auc", num_thresholds=20)]
    # Without XLA: compiling costs seconds, and the witness has to see the samples.
    model.compile(optimizer, "binary_crossentropy", metrics=metrics, jit_compile=False, **arguments)
    return model


# Callbacks


class Poison(keras.callbacks.Callback):
    """Makes the loss NaN at one step."""

    def on_train_batch_begin(self, batch: int, logs: object = None) -> None:
        if AT[1] == 2 and batch == 9:
            kernel = self.model.trainable_variables[0]
            kernel.assign(kernel * float("nan"))


class Remembers(keras.callbacks.Callback):
    """Steers the learning rate by what it has seen. How it is asked for that differs: see its children."""

    def __init__(self) -> None:
        super().__init__()
        self.steps = 0
        self.losses = {"smooth": 0.0, "all": []}
        self.by_epoch: dict[int, float] = {}
        self.recent = np.zeros(4)
        self.pair = (1, "a")
        self.names = {"loss"}
        self.queue = collections.deque([0.0], maxlen=3)

    def on_train_batch_end(self, batch: int, logs: dict[str, float]) -> None:
        self.steps += 1
        self.losses["smooth"] = 0.9 * self.losses["smooth"] + 0.1 * logs["loss"]
        self.recent[self.steps % 4] = logs["loss"]
        self.queue.append(float(logs["loss"]))
        factor = 1 + 0.1 * np.tanh(self.losses["smooth"] + self.recent.sum() + sum(self.queue))
        self.model.optimizer.learning_rate = 5e-3 * factor * (1 + self.steps % 3)

    def on_epoch_end(self, epoch: int, logs: dict[str, float]) -> None:
        self.losses["all"].append(float(logs["loss"]))
        self.by_epoch[epoch] = sum(self.losses["all"]) * len(self.by_epoch or "1")
        self.pair = (self.pair[0] + len(self.names), self.pair[1] + "b")
        self.names.add(f"epoch {epoch}")

    def on_train_end(self, logs: object = None) -> None:
        told = [self.steps, self.losses, self.by_epoch, self.recent.tolist(), self.pair, sorted(self.names)]
        (FILES / f"remembered-{AT[0]}.json").write_text(json.dumps([*told, list(self.queue)]))


class GetSet(Remembers):
    def get_state(self) -> dict[str, object]:
        return {name: vars(self)[name] for name in ("steps", "losses", "by_epoch", "recent", "pair")} | {
            "names": sorted(self.names),
            "queue": list(self.queue),
        }

    def set_state(self, state: dict[str, object]) -> None:
        vars(self).update(state)
        self.names, self.queue = set(state["names"]), collections.deque(state["queue"], maxlen=3)


class StateDict(GetSet):
    get_state = property()  # raises AttributeError: it has only the other two
    set_state = property()

    def state_dict(self) -> dict[str, object]:
        return GetSet.get_state(self)

    def load_state_dict(self, state: dict[str, object]) -> None:
        GetSet.set_state(self, state)


class Jitters(keras.callbacks.Callback):
    """Draws from generators of its own, and from those that it shares with all others."""

    def __init__(self) -> None:
        super().__init__()
        self.new, self.old, self.plain = np.random.default_rng(5), np.random.RandomState(6), random.Random(7)

    def on_train_batch_begin(self, batch: int, logs: object = None) -> None:
        factor = self.new.uniform(0.5, 1) * self.old.uniform(0.5, 1) * self.plain.uniform(0.5, 1)
        self.model.optimizer.learning_rate = 2e-2 * factor

    def on_train_batch_end(self, batch: int, logs: object = None) -> None:
        shared = (
            random.uniform(0.5, 1),
            np.random.uniform(0.5, 1),
            float(tf.random.uniform(())),
            float(keras.random.uniform(())),
        )
        weight = self.model.trainable_variables[-1]
        weight.assign_add(tf.fill(weight.shape, 1e-3 * sum(shared)))


class Peeks(keras.callbacks.Callback):
    """Looks at a batch of the training data at each epoch's end, as people do who log pictures."""

    def __init__(self, dataset: tf.data.Dataset) -> None:
        super().__init__()
        self.dataset = dataset

    def on_epoch_end(self, epoch: int, logs: object = None) -> None:
        x = next(iter(self.dataset))[0]
        with open(FILES / "peeked.txt", "a") as stream:
            stream.write(f"{epoch} {float(tf.reduce_sum(x))!r}\n")
        self.model.optimizer.learning_rate = 1e-2 * (1 + 0.1 * float(tf.tanh(tf.reduce_sum(x))))


class Evaluates(keras.callbacks.Callback):
    """Evaluates other data at each epoch's end."""

    def __init__(self, data: Data) -> None:
        super().__init__()
        other = table(48, seed=6)
        self.other = tf.data.Dataset.from_tensor_slices(other).shuffle(48).batch(8) if is_pipeline(data) else other

    def on_epoch_end(self, epoch: int, logs: dict[str, float]) -> None:
        arguments = {} if isinstance(self.other, tf.data.Dataset) else {"batch_size": 8}
        data = (self.other,) if arguments == {} else self.other
        logs["other_loss"] = self.model.evaluate(*data, verbose=0, **arguments)[0]
        self.model.optimizer.learning_rate = 1e-2 / (1 + logs["other_loss"])


def is_pipeline(data: Data) -> bool:
    return isinstance(data.train[0], tf.data.Dataset)


def lambda_writing(mode: str) -> list[keras.callbacks.Callback]:
    """The example of Keras' own documentation: a file that a closure writes to."""
    stream = open(FILES / f"lambda-{AT[0]}.txt", mode, buffering=1)  # noqa: SIM115
    return [
        keras.callbacks.LambdaCallback(
            on_epoch_end=lambda epoch, logs: stream.write(f"{epoch} {float(logs['loss'])!r}\n"),
            on_train_batch_end=lambda batch, logs: stream.write(f"batch {batch}\n") if batch % 5 == 0 else None,
            on_train_end=lambda logs: stream.close(),
        )
    ]


def checkpoints() -> list[keras.callbacks.Callback]:
    best = keras.callbacks.ModelCheckpoint(f"{FILES}/best-{AT[0]}.keras", save_best_only=True)
    # The first loss is the highest: a later one is only taken for it if the first is forgotten.
    worst = keras.callbacks.ModelCheckpoint(f"{FILES}/worst-{AT[0]}.keras", "loss", mode="max", save_best_only=True)
    name = f"{FILES}/fit-{AT[0]}-epoch-{{epoch:02d}}-{{loss:.4f}}.weights.h5"
    return [best, worst, keras.callbacks.ModelCheckpoint(name, save_weights_only=True)]


def plain_checkpoint() -> keras.callbacks.Callback:
    return keras.callbacks.ModelCheckpoint(f"{FILES}/fit-{AT[0]}-epoch-{{epoch:02d}}.keras")


def tensorboard(**arguments: object) -> keras.callbacks.Callback:
    stand_in_for_tensorboard()
    return keras.callbacks.TensorBoard(f"{FILES}/tb-{AT[0]}", write_graph=False, **arguments)


def stand_in_for_tensorboard() -> None:
    """Keras' callback needs three functions of the package `tensorboard`; TensorFlow no longer brings it."""
    if importable("tensorboard"):
        return

    def write(name: str, data: object, step: int | None = None, **_: object) -> bool:
        return tf.summary.write(name, tf.convert_to_tensor(data, tf.float32), step=step)

    summary = importlib.import_module("tensorflow.summary")  # what Keras imports; `tf.summary` is another object
    summary.scalar = summary.histogram = summary.image = write


def importable(name: str) -> bool:
    with contextlib.suppress(ImportError):
        return __import__(name) is not None
    return False


def swap_and_save(swap_first: bool) -> list[keras.callbacks.Callback]:
    both = [keras.callbacks.SwapEMAWeights(swap_on_epoch=True), plain_checkpoint()]
    return both if swap_first else both[::-1]


MAKERS = {
    "none": lambda data: [],
    "patient": lambda data: [
        keras.callbacks.EarlyStopping(patience=3, restore_best_weights=True),
        keras.callbacks.ReduceLROnPlateau(patience=2, factor=0.5, cooldown=1, min_delta=0.1),
    ],
    "stops": lambda data: [
        # The first loss is the highest: it stops after the fourth epoch, and goes back to the weights of the first.
        keras.callbacks.EarlyStopping("loss", mode="max", patience=3, restore_best_weights=True),
        keras.callbacks.CSVLogger(f"{FILES}/log-{AT[0]}.csv"),
    ],
    "checkpoints": lambda data: checkpoints(),
    "checkpoints_by_batch": lambda data: [
        keras.callbacks.ModelCheckpoint(
            f"{FILES}/fit-{AT[0]}-{{epoch}}-{{batch}}.weights.h5", save_weights_only=True, save_freq=7
        )
    ],
    "logs": lambda data: [
        keras.callbacks.CSVLogger(f"{FILES}/log-{AT[0]}.csv"),
        keras.callbacks.CSVLogger(f"{FILES}/appended.csv", append=True, separator=";"),
        tensorboard(),
    ],
    # Epochs are written there only if they end on a fourth batch: Keras' way.
    "logs_by_batch": lambda data: [tensorboard(update_freq=4, histogram_freq=1)],
    "schedule": lambda data: [keras.callbacks.LearningRateScheduler(lambda epoch, rate: rate * 0.8)],
    "swap_then_save": lambda data: swap_and_save(True),
    "save_then_swap": lambda data: swap_and_save(False),
    "nan": lambda data: [
        Poison(),
        keras.callbacks.TerminateOnNaN(),
        keras.callbacks.CSVLogger(f"{FILES}/log-{AT[0]}.csv"),
    ],
    "lambda_appending": lambda data: lambda_writing("a"),
    "lambda_truncating": lambda data: lambda_writing("w"),
    "own_backup": lambda data: [keras.callbacks.BackupAndRestore(f"backup-{AT[0]}"), *checkpoints()],
    "get_set": lambda data: [GetSet()],
    "state_dict": lambda data: [StateDict()],
    "attributes": lambda data: [Remembers()],
    "own_generators": lambda data: [Jitters()],
    "peeks": lambda data: [Peeks(data.train[0])],
    "evaluates": lambda data: [Evaluates(data)],
}


# What a script does for itself where there is no ksupervise


def controlled(model: keras.Model) -> tuple[keras.Model, list[keras.callbacks.Callback], int]:
    """The model to train, a callback more, and the epoch to begin with."""
    folder = Path("saved", str(AT[0]))
    if CONTROL == "backup":
        return model, [keras.callbacks.BackupAndRestore(str(folder))], 0
    folder.mkdir(parents=True, exist_ok=True)
    callback = keras.callbacks.ModelCheckpoint(str(folder / "{epoch:02d}.keras"))
    for path in sorted(folder.glob("*.keras"), reverse=True):
        # Not readable: it was being written. The one before it is.
        with contextlib.suppress(Exception):
            custom = {"Recording": Recording}
            return keras.models.load_model(path, custom_objects=custom), [callback], int(path.stem)
    return model, [callback], 0


# Training

HISTORIES: list[keras.callbacks.History] = []


def fit(model: keras.Model, data: Data, train: object = None, **more: object) -> keras.Model:
    """One fit; what it trained, which is another model after the recipe's `load_model`."""
    AT[:] = [len(HISTORIES), 0, 0]
    arguments = {"epochs": 4, "verbose": 0, "validation_data": data.validation, **data.fit, **more}
    if isinstance(data.train[0], (np.ndarray, tf.Tensor)):
        arguments["batch_size"] = BATCH
        if data.validation is not None:
            arguments["validation_batch_size"] = BATCH
    callbacks = [First(), *MAKERS[CALLBACKS](data), Last()]
    if CONTROL:
        model, extra, begin = controlled(model)
        callbacks = [callbacks[0], *extra, *callbacks[1:]]
        arguments["initial_epoch"] = max(begin, arguments.get("initial_epoch", 0))
    if CALLBACKS == "stops":
        arguments["epochs"] += 3
    HISTORIES.append(model.fit(*(train or data.train), callbacks=callbacks, **arguments))
    AT[:] = [len(HISTORIES), 0, 0]
    passes("between")
    return model


def train(data: Data) -> list[keras.Model]:
    if VARIANT == "folds":
        return [fit(compiled(network()), data, fold(data, number), epochs=2) for number in range(2)]
    if VARIANT == "mirrored":
        with tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"]).scope():
            model = compiled(network())
    else:
        model = compiled(network())
    if VARIANT == "freeze":
        model = fit(model, data, epochs=2)
        model.layers[2].trainable = False
        return [fit(compiled(model, 1e-3), data, epochs=3)]
    if VARIANT == "loop":
        for _ in range(12):
            model = fit(model, data, epochs=1)
        return [model]
    if VARIANT == "stopped_then":
        stops = keras.callbacks.EarlyStopping("loss", mode="max", patience=1)
        with added_callbacks(stops):
            model = fit(model, data, epochs=6)
        return [fit(model, data, epochs=3)]
    more = {
        "validation_freq": {"validation_freq": 2, "epochs": 5},
        "initial_epoch": {"initial_epoch": 2, "epochs": 6},
    }
    return [fit(model, data, **more.get(VARIANT, {}))]


@contextlib.contextmanager
def added_callbacks(*callbacks: keras.callbacks.Callback):
    before = MAKERS[CALLBACKS]
    MAKERS[CALLBACKS] = lambda data: [*before(data), *callbacks]
    yield
    MAKERS[CALLBACKS] = before


def fold(data: Data, number: int) -> tuple[object, ...]:
    if isinstance(data.train[0], np.ndarray):
        return tuple(part[number::2] for part in data.train)
    if is_pipeline(data):
        return (data.train[0].shard(2, number),)
    return data.train


def digest(model: keras.Model) -> str:
    total = hashlib.sha256()
    variables = [*model.variables, *getattr(model.optimizer, "variables", [])]
    for variable in variables:
        total.update(np.ascontiguousarray(keras.ops.convert_to_numpy(variable)).tobytes())
    return total.hexdigest()


def numbers(values: object) -> object:
    """Plain JSON, every float to its last bit."""
    if isinstance(values, dict):
        return {str(key): numbers(value) for key, value in values.items()}
    if isinstance(values, (list, tuple)):
        return [numbers(value) for value in values]
    return repr(float(values))


def main() -> None:
    # Some hardware's kernels may race; a script that wants the same bits twice says so itself. CPU ones do not.
    passes("start")
    if VARIANT == "mirrored":
        tf.config.set_logical_device_configuration(
            tf.config.list_physical_devices("CPU")[0], [tf.config.LogicalDeviceConfiguration()] * 2
        )
    if VARIANT == "float16":
        keras.mixed_precision.set_global_policy("mixed_float16")
    FILES.mkdir(exist_ok=True)
    seeded = not (SOURCE.startswith("unseeded") or SOURCE == "tfdata_own_seed_only")
    if seeded:
        keras.utils.set_random_seed(17)
    data = SOURCES[SOURCE]()
    models = train(data)
    passes("after")
    evaluated = models[0].evaluate(*held_out(), batch_size=BATCH, verbose=0, callbacks=[InEvaluate()])
    draws = [random.random(), tf.random.uniform(()), keras.random.uniform(())] if seeded else []
    if seeded and SOURCE != "generator":  # that one never ends: how far it was read ahead is chance
        draws.append(np.random.rand())
    result = {
        "weights": [digest(model) for model in models],
        "histories": [numbers(history.history) for history in HISTORIES],
        "stopped": [bool(model.stop_training) for model in models],
        "epochs": [[int(epoch) for epoch in history.epoch] for history in HISTORIES],
        "evaluated": numbers(evaluated),
        "draws afterwards": numbers(draws),
    }
    Path("result.json").write_text(json.dumps(result))
    print("done", flush=True)


main()
