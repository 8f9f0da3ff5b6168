"""Pipelines whose shuffles are watched, and the same left alone: prints what came of each as JSON.

One process for all of them, because TensorFlow's import costs seconds. It plays the part of Keras: each epoch an
iterator is made and read to its end, then one too many is made, and a callback peeks.
"""

import itertools
import json
import os
from collections.abc import Callable

os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"

import tensorflow as tf

from ksupervise.child.data.pipeline import Pipeline
from ksupervise.child.data.shuffles import Shuffles

EPOCHS, SAVED_BEHIND = 5, 2
Datasets = list[tf.data.Dataset]


def numbers(begin: int = 0, end: int = 20) -> tf.data.Dataset:
    return tf.data.Dataset.range(begin, end)


def single() -> Datasets:
    return [numbers().shuffle(20, seed=1)]


def small_buffer() -> Datasets:
    return [numbers().shuffle(3, seed=1)]


def batched_and_prefetched() -> Datasets:
    return [numbers().shuffle(20, seed=1).batch(4).prefetch(2)]


def chained() -> Datasets:
    return [numbers().shuffle(20, seed=1).shuffle(5, seed=2).shuffle(2, seed=3).batch(4)]


def chained_through_interleave() -> Datasets:
    """The order of the files, then that of their records: the recipe of TensorFlow's own guide."""
    files = numbers(0, 4).shuffle(4, seed=1)
    records = files.interleave(
        lambda number: tf.data.Dataset.range(number * 10, number * 10 + 6),
        cycle_length=2,
        num_parallel_calls=2,
        deterministic=True,
    )
    return [records.shuffle(8, seed=2).batch(3).prefetch(1)]


def repeated_three_times() -> Datasets:
    return [numbers().shuffle(20, seed=1).batch(5).repeat(3)]


def repeated_endlessly() -> Datasets:
    return [numbers().shuffle(20, seed=1).batch(4).repeat()]


def repeated_then_shuffled() -> Datasets:
    return [numbers().shuffle(20, seed=1).repeat(2).shuffle(7, seed=2)]


def concatenated() -> Datasets:
    return [numbers().shuffle(20, seed=1).concatenate(numbers(20, 40).shuffle(20, seed=2))]


def concatenated_with_itself() -> Datasets:
    shuffled = numbers().shuffle(20, seed=1)
    return [shuffled.concatenate(shuffled.map(lambda number: number + 100))]


def zipped() -> Datasets:
    both = tf.data.Dataset.zip((numbers().shuffle(20, seed=1), numbers().shuffle(20, seed=2)))
    return [both.map(lambda one, other: one * 100 + other)]


def zipped_with_itself() -> Datasets:
    shuffled = numbers().shuffle(20, seed=1)
    return [tf.data.Dataset.zip((shuffled, shuffled)).map(lambda one, other: one * 100 + other)]


def sampled() -> Datasets:
    parts = [numbers(0, 10).shuffle(10, seed=1), numbers(10, 20).shuffle(10, seed=2)]
    return [tf.data.Dataset.sample_from_datasets(parts, [0.3, 0.7], seed=3)]


def cached_before() -> Datasets:
    return [numbers().cache().shuffle(20, seed=1)]


def cached_after() -> Datasets:
    return [numbers().shuffle(20, seed=1).cache().shuffle(4, seed=2)]


def split() -> Datasets:
    """One shuffle under two pipelines."""
    shuffled = numbers().shuffle(20, seed=1, reshuffle_each_iteration=True)
    return [shuffled.take(15).shuffle(4, seed=2).batch(4), shuffled.skip(15).batch(4)]


def split_once() -> Datasets:
    shuffled = numbers().shuffle(20, seed=1, reshuffle_each_iteration=False)
    return [shuffled.take(15).shuffle(15, seed=2), shuffled.skip(15)]


def same_seeds_twice() -> Datasets:
    """Two shuffles that nothing but their place tells apart."""
    one, other = numbers(0, 10).shuffle(10, seed=1), numbers(10, 20).shuffle(10, seed=1)
    return [one.concatenate(other)]


PIPELINES: list[Callable[[], Datasets]] = [
    single,
    small_buffer,
    batched_and_prefetched,
    chained,
    chained_through_interleave,
    repeated_three_times,
    repeated_endlessly,
    repeated_then_shuffled,
    concatenated,
    concatenated_with_itself,
    zipped,
    zipped_with_itself,
    sampled,
    cached_before,
    cached_after,
    split,
    split_once,
    same_seeds_twice,
]


def epoch(datasets: Datasets, amid: Callable[[], object] = lambda: None) -> list[list[object]]:
    """What they yield, 40 elements at most; `amid` is called while they are being read."""
    found: list[list[object]] = []
    for dataset in datasets:
        found.append([])
        for element in itertools.islice(iter(dataset), 40):
            found[-1].append(element.numpy().tolist())
            amid()
    for dataset in datasets:
        iter(dataset)
        next(iter(dataset))
    return found


def made_by(make: Callable[[], Datasets]) -> Datasets:
    """Without the prefetch that TensorFlow adds by itself: how far that had read when an iterator is dropped is chance,
    so that a pipeline left alone does not repeat itself either."""
    options = tf.data.Options()
    options.experimental_optimization.inject_prefetch = False
    return [dataset.with_options(options) for dataset in make()]


def try_out(make: Callable[[], Datasets]) -> dict[str, object]:
    left_alone = made_by(make)
    expected = [epoch(left_alone) for _ in range(EPOCHS)]

    datasets = made_by(make)
    shuffles = Shuffles([Pipeline(dataset) for dataset in datasets])
    shuffles.watch()
    first, seen, saved = shuffles.read(), [], None
    for number in range(EPOCHS):
        seen.append(epoch(datasets, lambda: shuffles.read(amid=True)))
        shuffles.read()
        if number == SAVED_BEHIND:
            saved = shuffles.read()
    shuffles.leave()

    fresh = made_by(make)
    pipelines = [Pipeline(dataset) for dataset in fresh]
    again = Shuffles(pipelines)
    again.watch()
    if any(pipeline.frozen for pipeline in pipelines):
        again.put_back(first)
        epoch(fresh)
    assert saved is not None
    again.put_back(saved)
    told = again.read()
    resumed = [epoch(fresh) for _ in range(SAVED_BEHIND + 1, EPOCHS)]
    again.leave()
    return {
        "varies": expected[0] != expected[1],
        "transparent": seen == expected,
        "told": told == saved,
        "resumed": resumed == expected[SAVED_BEHIND + 1 :],
        "failures": [shuffles.failure, again.failure],
    }


if __name__ == "__main__":
    tf.random.set_seed(7)
    print(json.dumps({make.__name__: try_out(make) for make in PIPELINES}))
