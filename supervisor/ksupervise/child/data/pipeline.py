"""A tf.data pipeline: what in it is random, and how it is brought back to where it stood.

- A seeded `.shuffle` takes the next seeds of its generator for every iterator over it: see `shuffles.py`.
- Variables that its functions captured (a Keras layer in `map`, a `tf.random.Generator`) are saved by value.
- A `.cache()` in memory died with the process. Where the order or the values in it were drawn at random, one pass over
  the data fills it again.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from ksupervise.child import randomness

# Operations that draw from a generator hidden in their kernel: the same again only if drawn again from the start.
_STATEFUL = frozenset(
    {"Multinomial", "TruncatedNormal", "ParameterizedTruncatedNormal", "SampleDistortedBoundingBox"}
    | {"SampleDistortedBoundingBoxV2"}
)
# As they stand in a serialized NodeDef: tag of the field "op", length, name.
_SUSPECT = re.compile(
    b"\x12(?:[\x06-\x7f]Random|"
    + b"|".join(re.escape(bytes([len(name)]) + name.encode()) for name in sorted(_STATEFUL))
    + b")",
    re.DOTALL,
)
_PYTHON = frozenset({"PyFunc", "EagerPyFunc", "PyFuncStateless"})


@dataclass(frozen=True)
class FoundShuffle:
    """A shuffle, and how it is read.

    Attributes:
        node: the dataset.
        at_once: it is begun to be read when an iterator over the whole is made, not when that is drawn from.
        quiet: it is not begun anew while an iterator over the whole is being read, as one before `.repeat` is, or in
            the second part of a concatenation.
    """

    node: Any
    at_once: bool
    quiet: bool


class Pipeline:
    """What the python objects of a dataset tell about it.

    Attributes:
        shuffles: its seeded, reshuffling shuffles.
        variables: those that its functions captured.
        draws: a function of it holds random operations with a state of their own.
        races: some of those run in parallel, so that not even an undisturbed run repeats itself.
        seeded: all that is random in it has a seed, and the order is deterministic.
        python: it runs python code: a generator, a py_function.
        caches: it has a cache.
        frozen: it has a cache in memory with something random before it.
        hidden: a shuffle of it is out of our reach: inside a function.
    """

    def __init__(self, dataset: Any) -> None:
        self.dataset = dataset
        self.shuffles: list[FoundShuffle] = []
        self.variables: list[Any] = []
        self.draws = self.races = self.python = self.caches = self.frozen = self.hidden = False
        self.seeded = _deterministic(dataset)
        self._files: list[str] = []
        if dataset is not None:
            self.shuffles = list(shuffles_of(dataset))
            self._visit(dataset)

    def _visit(self, node: Any) -> bool:
        """Look at `node` and all that it reads. True if anything random is among that."""
        random = self._look_at_functions(node)
        if type(node).__name__ in ("_ShuffleDataset", "_RandomDataset", "_GlobalShuffleDataset"):
            random = True
            self.seeded = self.seeded and _has_seed(node)
            if type(node).__name__ != "_ShuffleDataset":
                self.hidden = self.hidden or bool(getattr(node, "_rerandomize", True))
        for source in inputs(node):
            random = self._visit(source) or random
        if type(node).__name__ == "CacheDataset":
            self._look_at_cache(node, random)
        return random

    def _look_at_functions(self, node: Any) -> bool:
        random = False
        for function in _functions(node):
            graph = function.graph
            operations = _operations(graph)
            drawn = {name for name, _ in operations if _is_stateful(name)}
            random_ones = (seed for name, seed in operations if _is_stateful(name) or name.startswith("ShuffleDataset"))
            self.seeded = self.seeded and all(random_ones)
            self.draws = self.draws or bool(drawn)
            self.python = self.python or any(name in _PYTHON for name, _ in operations)
            known = {id(variable) for variable in self.variables}
            found = [variable for variable in graph.variables if id(variable) not in known]
            self.variables += found
            captured = any(getattr(tensor.dtype, "name", "") == "variant" for tensor in function.captured_inputs)
            self.hidden = self.hidden or captured
            random = random or bool(drawn) or bool(found) or captured
            self.races = self.races or (bool(drawn or found) and hasattr(node, "_num_parallel_calls"))
        return random

    def _look_at_cache(self, node: Any, random: bool) -> None:
        self.caches = True
        name = getattr(node, "_filename", b"")
        text = name.numpy() if hasattr(name, "numpy") else name
        if text:
            self._files.append(os.fsdecode(text))
        elif random or self.python:
            self.frozen = True

    @property
    def places(self) -> int:
        """In the buffers of all its shuffles: each is a piece of an iterator's state."""
        return sum(_integer(found.node._buffer_size) for found in self.shuffles)

    @property
    def pure(self) -> bool:
        """An iterator's own state says all about what it will yield."""
        return not (self.draws or self.python or self.variables or self.caches or self.hidden)

    def values(self) -> list[Any]:
        """The captured variables' values, as arrays."""
        import numpy as np

        return [np.array(variable) for variable in self.variables]

    def put_back(self, values: list[Any]) -> None:
        """Give the captured variables their values."""
        for variable, value in zip(self.variables, values, strict=True):
            variable.assign(value)

    def remove_locks(self) -> None:
        """A killed attempt leaves the lock files of a cache on disk, at which the next one would fail."""
        for name in self._files:
            folder, stem = os.path.split(os.path.abspath(name))
            try:
                for entry in os.listdir(folder):
                    if entry.startswith(stem + "_") and entry.endswith(".lockfile"):
                        os.unlink(os.path.join(folder, entry))
            except OSError:
                pass


def dataset_of(source: Any) -> Any:
    """The tf.data.Dataset that `source` is (or a Keras EpochIterator reads); None if there is none."""
    adapter = getattr(source, "data_adapter", None)
    dataset = getattr(adapter, "_dataset", None) or getattr(source, "_distributed_dataset", None) or source
    return dataset if hasattr(dataset, "_variant_tensor") and hasattr(dataset, "_inputs") else None


def shuffles_of(dataset: Any, *, at_once: bool = True, quiet: bool = True) -> Iterator[FoundShuffle]:
    """The seeded, reshuffling shuffles that `dataset` reads, downstream first. One may be there on several ways."""
    kind = type(dataset).__name__
    shuffles = kind == "_ShuffleDataset"
    if shuffles and _has_seed(dataset) and getattr(dataset, "_reshuffle_each_iteration", True) is not False:
        yield FoundShuffle(dataset, at_once=at_once, quiet=quiet)
    for number, source in enumerate(inputs(dataset)):
        amid = kind == "_RepeatDataset" or (kind == "_ConcatenateDataset" and number > 0)
        yield from shuffles_of(source, at_once=at_once and not amid and not shuffles, quiet=quiet and not amid)


def _has_seed(node: Any) -> bool:
    return any(_integer(getattr(node, name, 0)) for name in ("_seed", "_seed2"))


def inputs(node: Any) -> list[Any]:
    """The datasets that `node` reads."""
    return list(node._inputs()) if hasattr(node, "_inputs") else []


def _functions(node: Any) -> Iterator[Any]:
    wrappers = node._functions() if hasattr(node, "_functions") else ()
    return (wrapper.function for wrapper in wrappers if hasattr(wrapper, "function"))


def _operations(graph: Any) -> list[tuple[str, bool]]:
    """Every operation of a graph, nested functions included: its name, and whether it has a seed."""
    definition = graph.as_graph_def()
    nodes = [*definition.node, *(node for function in definition.library.function for node in function.node_def)]
    return [(node.op, _operation_has_seed(node)) for node in nodes]


def graphs(function: Any, depth: int = 4) -> list[Any]:
    """What `function` was compiled to; of a plain python function, what those that it holds on to were."""
    if hasattr(function, "_concrete_variable_creation_fn"):
        cache = getattr(function, "_function_cache", None)
        concrete = [function._concrete_variable_creation_fn, *getattr(cache, "_primary", {}).values()]
        return list({id(each.graph): each.graph for each in concrete if hasattr(each, "graph")}.values())
    cells = (getattr(function, "__closure__", None) or ()) if depth else ()
    contents = (cell.cell_contents for cell in cells)
    return [graph for held in contents if callable(held) for graph in graphs(held, depth - 1)]


def draws(graph: Any) -> bool:
    """A graph holds random operations with a state of their own.

    The graph of a large model's step has tens of thousands of operations: where none of the names is among its bytes
    they need not be looked at one by one.
    """
    if not _SUSPECT.search(graph.as_graph_def().SerializeToString()):
        return False
    return any(_is_stateful(name) for name, _ in _operations(graph))


def _operation_has_seed(node: Any) -> bool:
    if node.op.startswith("ShuffleDataset"):
        return randomness.seeded()  # its seeds are inputs, whose values the graph does not show
    return any(node.attr[name].i for name in ("seed", "seed2") if name in node.attr)


def _is_stateful(operation: str) -> bool:
    return operation in _STATEFUL or operation.startswith("Random")


def _integer(value: Any) -> int:
    try:
        return int(value)
    except (TypeError, ValueError):
        return 0


def _deterministic(dataset: Any) -> bool:
    options = dataset.options() if hasattr(dataset, "options") else None
    return getattr(options, "deterministic", None) is not False
