"""How often seeds were taken from the generators of a pipeline's shuffles: it decides the order of what comes next.

A seeded `.shuffle` takes the next seeds for every iterator that reads it, whoever made that: Keras, a callback that
peeks, the other half of a split. TensorFlow shows the count to nobody, but it is written in the serialized state of any
iterator over the node. An iterator that is not drawn from does not touch the source; the seeds that it takes itself
are put back by writing the count into its state, and the state into it.

That state has an entry for each place in the shuffle's buffer, 0.3 s of work for 50,000. So for shuffles that take
their seeds at once when an iterator is made, the iterators are counted instead.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from typing import Any

from ksupervise.child.data.pipeline import FoundShuffle, Pipeline, shuffles_of
from ksupervise.child.disguise import disguise

SEEDS_TAKEN = b"epoch_num_random_samples"  # TensorFlow's name for it
_SEEDS = 2  # taken at a time


Counts = dict[str, int | None]


class Shuffles:
    """The seeded shuffles of some pipelines; and those that the script's callbacks read while the fit lasts.

    Each has a key that is the same in every attempt: its seeds, the size of its buffer, and its place among its like.

    Attributes:
        failure: why they could not be followed, "" if they could. It is no reason to go without checkpoints.
    """

    def __init__(self, pipelines: Sequence[Pipeline]) -> None:
        self._shuffles: dict[str, Shuffle] = {}
        self.failure = ""
        self._pending: Counts = {}  # of shuffles that nobody has read yet in this attempt
        for pipeline in pipelines:
            for found in pipeline.shuffles:
                self._add(found)

    def _add(self, found: FoundShuffle) -> None:
        same = next((shuffle for shuffle in self._shuffles.values() if shuffle.node is found.node), None)
        if same is not None:
            same.at_once, same.quiet = same.at_once and found.at_once, same.quiet and found.quiet
            return
        key = base = ",".join(str(int(getattr(found.node, name))) for name in ("_seed", "_seed2", "_buffer_size"))
        number = 1
        while key in self._shuffles:
            number += 1
            key = f"{base}#{number}"
        shuffle = self._shuffles[key] = Shuffle(found.node, at_once=found.at_once, quiet=found.quiet)
        count = self._pending.pop(key, None)
        if count is not None:
            self._put_back(shuffle, count)

    def watch(self) -> None:
        """Begin to count the iterators that are made."""
        _watch_iterators()
        _watching.append(self)

    def leave(self) -> None:
        """Count no longer."""
        if self in _watching:
            _watching.remove(self)

    def making(self, dataset: Any) -> None:
        """An iterator over `dataset` is about to be made."""
        found = list(shuffles_of(dataset))
        if any(all(each.node is not shuffle.node for shuffle in self._shuffles.values()) for each in found):
            with _Unwatched():
                for each in found:
                    self._add(each)
        for shuffle in self._shuffles.values():
            if shuffle.at_once:  # once for each way on which it is read: zip((ds, ds))
                shuffle.counted += sum(each.node is shuffle.node and each.at_once for each in found)

    def read(self, *, amid: bool = False) -> Counts:
        """The count of each; None for one that an iterator may be taking seeds from at this moment (`amid`).

        Those that are counted begin with the fit, in each attempt: what was taken before it is the same in all.
        """
        counts: Counts = {}
        with _Unwatched():
            for key, shuffle in self._shuffles.items():
                counts[key] = None if amid and not shuffle.quiet else self._count_of(shuffle)
        return {**self._pending, **counts}

    def _count_of(self, shuffle: Shuffle) -> int | None:
        try:
            return shuffle.count
        except Exception as error:
            self.failure = f"{error!r}"
            return None

    def put_back(self, counts: Counts) -> None:
        """Set each to its count; None leaves it as it is."""
        with _Unwatched():
            for key, count in counts.items():
                if key not in self._shuffles:
                    self._pending[key] = count
                elif count is not None:
                    self._put_back(self._shuffles[key], count)

    def _put_back(self, shuffle: Shuffle, count: int) -> None:
        try:
            shuffle.put_back(count)
        except Exception as error:
            self.failure = f"{error!r}"


def earlier(one: Counts, other: Counts) -> Counts:
    """Of each shuffle the lower count; None where one is not known."""
    counts = {key: (one.get(key), other.get(key)) for key in {**one, **other}}
    return {key: None if None in pair else min(pair) for key, pair in counts.items()}  # type: ignore[type-var]


class Shuffle:
    """One seeded, reshuffling `.shuffle`.

    Attributes:
        node: the dataset.
        at_once: it takes its seeds when an iterator over the whole pipeline is made, not when that is drawn from.
        quiet: it takes none while such an iterator is being read.
        counted: how often it took seeds at once since the fit began.
    """

    def __init__(self, node: Any, *, at_once: bool, quiet: bool) -> None:
        self.node = node
        self.at_once = at_once
        self.quiet = quiet
        self.counted = 0

    @property
    def count(self) -> int:
        """How often seeds were taken: since the fit began if they are counted, else since it was made."""
        return self.counted if self.at_once else self.read()

    def read(self) -> int:
        """Look the count up. Leaves the generator as it was."""
        iterator, pieces, at = self._look()
        count = _values(pieces[at])[0] // _SEEDS - 1  # to look takes seeds once more
        self._write(iterator, pieces, at, count)
        return count

    def put_back(self, count: int) -> None:
        """Set the generator to where it is after seeds were taken `count` times."""
        if self.at_once and self.counted == count:
            return
        iterator, pieces, at = self._look()
        if not self.at_once:
            self._write(iterator, pieces, at, count)
            return
        before_the_fit = _values(pieces[at])[0] // _SEEDS - 1 - self.counted
        self._write(iterator, pieces, at, before_the_fit + count)
        self.counted = count

    def _look(self) -> tuple[Any, Any, int]:
        """An iterator over the node, its serialized state, and which piece of that holds the count."""
        import tensorflow as tf

        iterator = iter(self.node)
        pieces = tf.raw_ops.SerializeIterator(resource_handle=iterator._iterator_resource, external_state_policy=1)
        for at in range(min(len(pieces), 8)):
            if SEEDS_TAKEN in tf.io.serialize_tensor(pieces[at]).numpy():
                return iterator, pieces, at
        raise ValueError("an iterator's state does not tell the seeds of its shuffle")

    def _write(self, iterator: Any, pieces: Any, at: int, count: int) -> None:
        import tensorflow as tf

        values = _values(pieces[at])
        changed = _with_values(pieces[at], [count * _SEEDS, *values[1:]])
        # The one operation that puts variants together and has a kernel; what comes later overwrites.
        state = tf.dynamic_stitch([tf.range(len(pieces)), [at]], [pieces, tf.stack([changed])])
        tf.raw_ops.DeserializeIterator(resource_handle=iterator._iterator_resource, serialized=state)


def _unpacked(piece: Any) -> tuple[Any, Any, int]:
    """One piece of an iterator's state: the message around it, the message in it, and how many values that holds."""
    import tensorflow as tf
    from tensorflow.core.framework import tensor_pb2

    outer = tensor_pb2.TensorProto.FromString(tf.io.serialize_tensor(piece).numpy())
    content, size, shift, at = outer.tensor_content, 0, 0, 0
    while True:  # a length (varint), and a VariantTensorDataProto
        byte = content[at]
        size |= (byte & 0x7F) << shift
        at, shift = at + 1, shift + 7
        if not byte & 0x80:
            break
    inner = tensor_pb2.VariantTensorDataProto.FromString(content[at : at + size])
    keys = inner.metadata.split(b"@@")[1:]
    if len(inner.tensors) != 1 or not keys or keys[0] != SEEDS_TAKEN:
        raise ValueError("an iterator's state is not laid out as expected")
    return outer, inner, len(keys)


def _values(piece: Any) -> list[int]:
    import tensorflow as tf

    _, inner, count = _unpacked(piece)
    packed = tf.io.parse_tensor(inner.tensors[0].SerializeToString(), tf.variant)
    values = tf.raw_ops.UncompressElement(
        compressed=packed, output_types=[tf.int64] * count, output_shapes=[()] * count
    )
    return [int(value) for value in values]


def _with_values(piece: Any, values: Sequence[int]) -> Any:
    import tensorflow as tf

    outer, inner, _ = _unpacked(piece)
    packed = tf.raw_ops.CompressElement(components=[tf.constant(value, tf.int64) for value in values])
    inner.tensors[0].ParseFromString(tf.io.serialize_tensor(packed).numpy())
    content, size = inner.SerializeToString(), b""
    rest = len(content)
    while rest >= 0x80:
        size += bytes([rest & 0x7F | 0x80])
        rest >>= 7
    outer.tensor_content = size + bytes([rest]) + content
    return tf.io.parse_tensor(outer.SerializeToString(), tf.variant)


_watching: list[Shuffles] = []
_watched: set[type] = set()


class _Unwatched:
    """Iterators of our own are not counted."""

    def __enter__(self) -> None:
        self._watching = _watching[:]
        _watching.clear()

    def __exit__(self, *_: object) -> None:
        _watching[:] = self._watching


def _watch_iterators() -> None:
    """Hear of every iterator that is made eagerly over a dataset, once and for all."""
    for module_name, class_name in (
        ("tensorflow.python.data.ops.iterator_ops", "OwnedIterator"),
        ("tensorflow.python.data.ops.multi_device_iterator_ops", "OwnedMultiDeviceIterator"),
    ):
        module = sys.modules.get(module_name)
        cls = getattr(module, class_name, None)
        if cls is not None and cls not in _watched:
            _watched.add(cls)
            cls.__init__ = disguise(_counted(cls.__init__), cls.__init__, getattr(module, "__file__", "") or "")


def _tell(dataset: Any) -> None:
    for shuffles in tuple(_watching):
        try:
            shuffles.making(dataset)
        except Exception as error:
            shuffles.failure = f"{error!r}"  # TensorFlow is not as we know it


def _counted(original: Callable[..., None]) -> Callable[..., None]:
    def __init__(self: Any, dataset: Any = None, *args: Any, **kwargs: Any) -> None:  # noqa: N807
        if dataset is not None:
            _tell(dataset)
        original(self, dataset, *args, **kwargs)

    return __init__
