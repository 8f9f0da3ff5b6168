"""Ways to break ksupervise: each drops one part of the state. Some case must notice."""

from __future__ import annotations

import re
import shutil
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Mutant:
    """One textual change, and the cases that should notice, the likeliest first."""

    name: str
    file: str
    old: str
    new: str
    cases: tuple[str, ...]
    times: int = 1

    def matches(self, pattern: str) -> bool:
        """Whether `--only` means it."""
        return re.search(pattern, self.name) is not None

    def apply(self, supervisor: Path, copy: Path) -> str:
        """Make a broken copy. Returns why the mutation does not fit the code any more, "" if it does."""
        shutil.copytree(supervisor, copy, ignore=shutil.ignore_patterns("__pycache__"))
        path = copy / "ksupervise" / self.file
        text = path.read_text() if path.exists() else ""
        found = text.count(self.old)
        if found != self.times:
            return f"{self.file} has its text {found} times instead of {self.times}"
        path.write_text(text.replace(self.old, self.new))
        return ""


def _mutants() -> tuple[Mutant, ...]:
    """All of them, by the file that they change."""
    return (*_STATE, *_CALLBACKS, *_LOGS, *_RANDOMNESS, *_DATA, *_FIT)


def _without(name: str, words: str, *cases: str) -> Mutant:
    """The optimizer's variables but for those whose path has one of `words` in it."""
    loop, end = "        for variable in optimizer.variables:\n", "yield name, variable\n"
    condition = " and ".join(f"{word!r} not in variable.path" for word in words.split())
    new = f"{loop}            if {condition}:\n                {end}"
    return Mutant(f"without {name}", "child/state.py", f"{loop}            {end}", new, cases)


_STATE = (
    Mutant(
        "without seed generators",
        "child/state.py",
        '        yield "model", variable\n',
        '        if "seed" not in variable.path:\n            yield "model", variable\n',
        ("numpy/none/plain/batch",),
    ),
    Mutant(
        "without metric accumulators",
        "child/state.py",
        "    for variable in model.metrics_variables:\n",
        "    for variable in ():\n",
        ("numpy/none/plain/batch", "tfdata/none/plain/batch"),
    ),
    Mutant(
        "without Keras' own seed generator",
        "child/state.py",
        '        yield "random", seeds.state\n',
        "        yield from ()\n",
        ("numpy/own_generators/plain/batch",),
    ),
    _without("the optimizers' variables", "/", "numpy/none/plain/batch"),
    _without("the learning rate", "learning_rate", "numpy/schedule/plain/batch", "numpy/schedule/plain/epoch_begin"),
    _without("averages", "average", "numpy/none/accumulating/batch", "numpy/swap_then_save/plain/batch"),
    _without("accumulated gradients", "accumulator", "numpy/none/accumulating/batch", "numpy/none/accumulating/twice"),
    _without("the loss scale", "step_counter dynamic_scale", "numpy/none/float16/batch"),
)
_CALLBACKS = (
    Mutant(
        "EarlyStopping forgets its patience",
        "child/callbacks.py",
        '("wait", "best", "best_epoch", "stopped_epoch", "best_weights")',
        '("best", "best_epoch", "stopped_epoch", "best_weights")',
        ("numpy/stops/plain/last_batch", "numpy/stops/plain/batch", "numpy/stops/plain/thrice"),
    ),
    Mutant(
        "EarlyStopping forgets the best weights",
        "child/callbacks.py",
        '"stopped_epoch", "best_weights")',
        '"stopped_epoch")',
        ("numpy/stops/plain/train_end", "numpy/stops/plain/batch"),
    ),
    Mutant(
        "ReduceLROnPlateau forgets",
        "child/callbacks.py",
        '("wait", "best", "cooldown_counter")',
        "()",
        ("numpy/patient/plain/batch", "numpy/patient/plain/thrice", "numpy/patient/plain/epoch_end_last"),
    ),
    Mutant(
        "ModelCheckpoint forgets the best value",
        "child/callbacks.py",
        '"ModelCheckpoint": ("best", ',
        '"ModelCheckpoint": (',
        ("numpy/checkpoints/plain/batch", "numpy/checkpoints/plain/validation"),
    ),
    Mutant(
        "ModelCheckpoint forgets its count of batches",
        "child/callbacks.py",
        '"ModelCheckpoint": ("best", "_batches_seen_since_last_saving", ',
        '"ModelCheckpoint": ("best", ',
        ("numpy/checkpoints_by_batch/plain/batch", "numpy/checkpoints_by_batch/plain/twice"),
    ),
    Mutant(
        "History forgets",
        "child/callbacks.py",
        '("history", "epoch")',
        "()",
        ("numpy/none/plain/batch",),
    ),
    Mutant(
        "TensorBoard forgets its steps",
        "child/callbacks.py",
        '("_global_train_batch", ',
        "(",
        ("numpy/logs_by_batch/plain/batch", "numpy/logs_by_batch/plain/thrice"),
    ),
    Mutant(
        "SwapEMAWeights forgets which weights are in",
        "child/callbacks.py",
        '("_ema_weights_in_model",)',
        "()",
        ("numpy/swap_then_save/plain/epoch_begin", "numpy/swap_then_save/plain/epoch_end_last"),
    ),
    Mutant(
        "a callback's attributes are not kept",
        "child/callbacks.py",
        '        elif self._methods is None:\n            state["attributes"]',
        '        elif not self.key:\n            state["attributes"]',
        ("numpy/attributes/plain/batch",),
    ),
    Mutant(
        "a callback's set_state is not called",
        "child/callbacks.py",
        'if "own" in state and self._methods is not None:',
        'if "own" in state and not self._methods:',
        ("numpy/get_set/plain/batch", "numpy/state_dict/plain/batch"),
    ),
    Mutant(
        "a callback's generators are not put back",
        "child/codec.py",
        "        value.bit_generator.state = state\n",
        "        pass\n",
        ("numpy/own_generators/plain/batch",),
    ),
)
_LOGS = (
    Mutant(
        "rows of a CSV file stay",
        "child/logs.py",
        "            if there > size:\n                os.truncate(path, size)\n",
        "            pass\n",
        ("numpy/logs/plain/epoch_end_last", "numpy/stops/plain/epoch_end_last"),
    ),
    Mutant(
        "TensorBoard's events stay",
        "child/logs.py",
        "                    os.truncate(path, self._ours[name])\n",
        "                    pass\n",
        ("numpy/logs_by_batch/plain/epoch_end_last", "numpy/logs_by_batch/plain/validation"),
    ),
)
_RANDOMNESS = (
    Mutant(
        "python's generator is not put back",
        "child/randomness.py",
        'random.setstate(states["python"])',
        "pass",
        ("numpy/own_generators/plain/batch",),
    ),
    Mutant(
        "numpy's generator is not put back",
        "child/randomness.py",
        'np.random.set_state(states["numpy"])',
        "pass",
        ("numpy/own_generators/plain/batch", "pydataset_augments/none/plain/batch"),
    ),
    Mutant(
        "TensorFlow's generator is not put back",
        "child/randomness.py",
        "context._rng.setstate(generator)",
        "pass",
        ("numpy/own_generators/plain/batch",),
    ),
)
_DATA = (
    Mutant(
        "an iterator's state is not put back",
        "child/data/position.py",
        '                deserialize(iterator, plan["state"])\n',
        "                pass\n",
        ("numpy/none/plain/batch", "numpy/none/plain/twice", "unseeded_numpy/none/plain/batch"),
    ),
    Mutant(
        "no batches are drawn again",
        "child/data/position.py",
        "            for drawn in range(place):\n",
        "            for drawn in range(0):\n",
        ("tfdata_map_random/none/plain/batch", "tfdata_cache_before/none/plain/batch"),
    ),
    Mutant(
        "shuffles forget their seeds",
        "child/data/position.py",
        '        self._shuffles.put_back(then["shuffles"])\n',
        "",
        ("tfdata_map_random/none/plain/batch", "tfdata/none/plain/batch", "tfdata/none/plain/epoch_begin"),
    ),
    Mutant(
        "the validation's shuffles are not kept",
        "child/data/position.py",
        "Shuffles([self._train, self._validation])",
        "Shuffles([self._train])",
        ("tfdata/none/plain/batch", "tfdata/none/plain/epoch_begin", "tfdata_split/none/plain/batch"),
    ),
    Mutant(
        "variables that the pipeline captured are not put back",
        "child/data/position.py",
        '        self._train.put_back(then["variables"][0])\n',
        "",
        ("tfdata_map_generator/none/plain/batch", "tfdata_map_layer/none/plain/batch"),
    ),
    Mutant(
        "a cache in memory is not filled again",
        "child/data/position.py",
        "        if self._first is not None and not self._persistent and count:\n",
        "        if not count:\n",
        ("tfdata_cache_after/none/plain/batch", "tfdata_cache_random/none/plain/batch"),
    ),
    Mutant(
        "lock files of a cache on disk stay",
        "child/data/position.py",
        "            self._train.remove_locks()\n",
        "",
        ("tfdata_cache_disk/none/plain/batch_early",),
    ),
    Mutant(
        "a PyDataset's attributes are not put back",
        "child/data/position.py",
        "            attributes.put_back_snapshot(snapshot)\n",
        "            pass\n",
        ("pydataset_reshuffles/none/plain/batch", "pydataset_threads/none/plain/batch"),
    ),
    Mutant(
        "a PyDataset's items are drawn with other random numbers",
        "child/data/items.py",
        '                randomness.put_back(state["randomness"])\n',
        "",
        ("pydataset_augments/none/plain/batch",),
    ),
)
_FIT = (
    Mutant(
        "accumulators are not put back after the epoch's begin",
        "child/fit.py",
        "            state.put_back(self._model, _variables_of(arrays))\n            self._roster",
        "            self._roster",
        ("numpy/none/plain/batch", "numpy/none/plain/twice"),
    ),
    Mutant(
        "that a fit had stopped is forgotten",
        "child/fit.py",
        'ended = saved["stopped"] or self._epoch >= self._epochs',
        "ended = self._epoch >= self._epochs",
        ("numpy/stops/plain/train_end",),
    ),
    Mutant(
        "stop_training is not put back",
        "child/fit.py",
        'self._model.stop_training = bool(saved["stopped"])',
        "self._model.stop_training = False",
        ("numpy/stops/plain/train_end", "numpy/stops/plain/after"),
        times=2,
    ),
    Mutant(
        "the last logs are forgotten",
        "child/fit.py",
        '            self._last_logs = codec.decode(saved["logs"], arrays)\n',
        "            pass\n",
        ("numpy/stops/plain/train_end", "numpy/none/plain/train_end"),
    ),
    Mutant(
        "an epoch's logs are forgotten where its end is not known",
        "child/fit.py",
        "            self._keep_logs(self._loaded)\n",
        "",
        ("tfdata_filter/none/plain/last_batch_term", "tfdata_filter/none/plain/validation"),
    ),
)
MUTANTS = _mutants()
