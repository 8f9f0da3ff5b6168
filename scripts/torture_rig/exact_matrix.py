"""Which cases there are: data source × callbacks × kind of fit × point of interruption. Names only, no Keras.

The names are those of `exact_cases.py`. The whole product has tens of thousands of cases; `pruned` is what is worth
running, `sampled` a few of the product that meet every name as far as they suffice.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

Position = tuple[int, int, int]  # fit, epoch, batch

ARRAYS = ("numpy", "numpy_split", "numpy_class_weight", "numpy_sample_weight", "tensors")
PIPELINES = (
    "tfdata",
    "tfdata_own_seed_only",
    "tfdata_map_random",
    "tfdata_map_layer",
    "tfdata_map_generator",
    "tfdata_map_stateless",
    "tfdata_parallel_map",
    "tfdata_cache_before",
    "tfdata_cache_after",
    "tfdata_cache_random",
    "tfdata_cache_disk",
    "tfdata_prefetch",
    "tfdata_repeat",
    "tfdata_shards",
    "tfdata_filter",
    "tfdata_split",
    "tfdata_split_once",
    "tfdata_joined",
    "tfdata_from_generator",
    "tfdata_from_generator_plain",
    "tfdata_numpy_function",
    "tfdata_py_function",
)
PYTHONIC = (
    "pydataset",
    "pydataset_reshuffles",
    "pydataset_augments",
    "pydataset_threads",
    "pydataset_processes",
    "generator",
)
UNSEEDED = (
    "unseeded_numpy",
    "unseeded_tfdata",
    "unseeded_tfdata_map_random",
    "unseeded_tfdata_repeat",
    "unseeded_tfdata_numpy_function",
    "unseeded_pydataset",
)
# Read ahead, in another thread, by functions that draw from generators which outlive the iterator: how far, is chance.
AHEAD = (
    "tfdata_from_generator",
    "tfdata_numpy_function",
    "tfdata_map_layer",
    "tfdata_map_generator",
    "pydataset_augments",
    "generator",
)
UNKNOWN_LENGTH = ("tfdata_shards", "tfdata_filter", "tfdata_from_generator")
# Cannot be saved, nor drawn again the same: it is gone back to an epoch's end, so there has to be one.
ONLY_EPOCHS = ("unseeded_tfdata_numpy_function",)
SOURCES = ARRAYS + PIPELINES + PYTHONIC + UNSEEDED
CALLBACKS = (
    "none",
    "patient",
    "stops",
    "checkpoints",
    "checkpoints_by_batch",
    "logs",
    "logs_by_batch",
    "schedule",
    "swap_then_save",
    "save_then_swap",
    "nan",
    "lambda_appending",
    "lambda_truncating",
    "own_backup",
    "get_set",
    "state_dict",
    "attributes",
    "own_generators",
    "peeks",
    "evaluates",
)
SEVERAL_FITS = ("freeze", "folds", "loop", "stopped_then")
VARIANTS = (
    "plain",
    "several_steps",
    "validation_freq",
    "initial_epoch",
    "mirrored",
    "float16",
    "accumulating",
    *SEVERAL_FITS,
)

# point → for each life that does not reach the end: where, from which share of the planned steps on, by what
POINTS: dict[str, tuple[tuple[str, tuple[float, float], str], ...]] = {
    "fresh": (("fresh", (0.1, 0.6), "SIGKILL"),),
    "batch": (("batch", (0.3, 0.9), "SIGKILL"),),
    "batch_early": (("batch", (0.05, 0.25), "SIGKILL"),),
    "batch_term": (("batch", (0.1, 0.9), "SIGTERM"),),
    "first_batch": (("first_batch", (0.2, 0.7), "SIGKILL"),),
    "last_batch": (("last_batch", (0.0, 0.7), "SIGKILL"),),
    # Where the length of the data is unknown, it leaves at the begin of a batch that there is none of.
    "last_batch_term": (("last_batch", (0.0, 0.7), "SIGTERM"),),
    "validation": (("validation", (0.1, 0.6), "SIGKILL"),),
    "validation_term": (("validation", (0.1, 0.6), "SIGTERM"),),
    "epoch_begin": (("epoch_begin", (0.1, 0.7), "SIGKILL"),),
    "epoch_end_first": (("epoch_end_first", (0.1, 0.8), "SIGKILL"),),
    "epoch_end_last": (("epoch_end_last", (0.1, 0.8), "SIGKILL"),),
    "epoch_end_term": (("epoch_end_last", (0.1, 0.6), "SIGTERM"),),
    "train_end": (("train_end", (0.0, 0.0), "SIGKILL"),),
    "staging": (("staging", (0.1, 0.8), "SIGKILL"),),
    "writing": (("writing", (0.1, 0.7), "SIGKILL"),),
    "between": (("between", (0.0, 0.5), "SIGKILL"),),
    "after": (("after", (0.0, 0.0), "SIGKILL"),),
    "evaluate": (("evaluate", (0.0, 0.0), "SIGKILL"),),
    "twice": (("batch", (0.1, 0.4), "SIGKILL"), ("batch", (0.5, 0.9), "SIGKILL")),
    "twice_early": (("batch", (0.2, 0.8), "SIGKILL"), ("start", (0.0, 0.0), "SIGKILL")),
    "thrice": (
        ("batch", (0.1, 0.3), "SIGKILL"),
        ("epoch_begin", (0.3, 0.5), "SIGTERM"),
        ("validation", (0.5, 0.65), "SIGKILL"),
    ),
    "parent_term": (("batch", (0.1, 0.8), "PARENT_SIGTERM"),),
    "parent_kill": (("batch", (0.1, 0.8), "PARENT_SIGKILL"),),
}
NOT_IN_CONTROLS = ("staging", "writing", "parent_term", "parent_kill", "fresh")


@dataclass(frozen=True)
class Case:
    """One row of the table."""

    source: str
    callbacks: str
    variant: str
    point: str

    @property
    def name(self) -> str:
        """What `--only` matches."""
        return f"{self.source}/{self.callbacks}/{self.variant}/{self.point}"

    @property
    def script(self) -> tuple[str, str, str]:
        """The script's arguments."""
        return self.source, self.callbacks, self.variant

    @property
    def seeded(self) -> bool:
        """The same bits are promised; otherwise every sample exactly once an epoch."""
        return not self.source.startswith("unseeded")


def possible(case: Case) -> bool:
    """Whether the script makes sense, and gives the same bits if it is left alone."""
    pipeline = "tfdata" in case.source
    if case.callbacks == "peeks" and not pipeline:
        return False
    if case.source in AHEAD and _stops_reading(case):
        return False
    if _seeds_little(case) and (
        case.callbacks not in ("none", "attributes", "logs") or case.variant in ("folds", "stopped_then")
    ):
        return False
    if case.variant == "mirrored" and case.source not in ("numpy", "tfdata", "tfdata_repeat"):
        return False
    if case.variant == "several_steps" and case.source == "unseeded_tfdata_repeat":
        return False  # three steps at a time draw more than an epoch's 16: its samples are not those of one pass
    if case.variant == "several_steps" and case.source in UNKNOWN_LENGTH:
        return False  # nobody tells the witness how many steps an epoch's last execution had
    if case.callbacks == "nan" and case.variant in SEVERAL_FITS:
        return False  # a model of NaNs has nothing more to learn
    return case.point != "between" or case.variant in SEVERAL_FITS


def _stops_reading(case: Case) -> bool:
    """Somebody else draws from those generators as well, or goes on after the data was not read to its end."""
    if case.source == "generator" and case.variant in SEVERAL_FITS:
        return True
    return case.callbacks in ("own_generators", "peeks", "nan")


def _seeds_little(case: Case) -> bool:
    """Not for callbacks that stop by the loss, name files by it, or draw from generators that nobody seeds."""
    return not case.seeded or case.source == "tfdata_own_seed_only"


def product() -> Iterator[Case]:
    """Everything there is."""
    cases = (Case(*names) for names in itertools.product(SOURCES, CALLBACKS, VARIANTS, POINTS))
    return filter(possible, cases)


def pruned() -> list[Case]:
    """Hundreds: each name by itself with the points that matter for it, all points for two plain trainings."""
    points = ("batch", "epoch_begin", "epoch_end_last", "validation")
    cases = [Case(source, "none", "plain", point) for source in SOURCES for point in (*points, "twice")]
    around = ("batch", "epoch_begin", "epoch_end_first", "epoch_end_last", "validation", "train_end", "thrice")
    for callbacks in CALLBACKS:
        cases += [Case("numpy", callbacks, "plain", point) for point in around]
        cases += [Case("tfdata", callbacks, "plain", point) for point in ("batch", "epoch_end_last")]
    for variant in VARIANTS:
        cases += [
            Case(source, callbacks, variant, point)
            for source, callbacks in (("numpy", "patient"), ("tfdata", "none"), ("tfdata_repeat", "none"))
            for point in ("batch", "epoch_end_last", "twice", "between")
        ]
    cases += [Case(source, "none", "plain", "last_batch_term") for source in UNKNOWN_LENGTH]
    cases += [Case("numpy", "patient", "plain", point) for point in POINTS]
    cases += [Case("tfdata", "logs", "plain", point) for point in POINTS]
    return [case for case in dict.fromkeys(cases) if possible(case)]


def sampled(runs: int, seed: int, points: Sequence[str] = tuple(POINTS)) -> list[Case]:
    """`runs` cases of the product: each next one meets as many names, and pairs of names, as yet unmet as it can."""
    chance = random.Random(seed)
    met: set[object] = set()
    chosen: list[Case] = []
    while len(chosen) < runs:
        offered = [case for case in (_any(chance, points) for _ in range(300)) if possible(case)]
        best = max(offered, key=lambda case: _worth(case, met))
        met.update(_names(best))
        met.update(itertools.combinations(_names(best), 2))
        chosen.append(best)
    return chosen


def _any(chance: random.Random, points: Sequence[str]) -> Case:
    # Half of all runs train in the plain way: other kinds are fewer, and hide less elsewhere.
    variant = chance.choice(("plain", chance.choice(VARIANTS)))
    return Case(chance.choice(SOURCES), chance.choice(CALLBACKS), variant, chance.choice(points))


def _names(case: Case) -> list[tuple[str, str]]:
    return [(kind, getattr(case, kind)) for kind in ("source", "callbacks", "variant", "point")]


def _worth(case: Case, met: set[object]) -> int:
    names = _names(case)
    pairs = itertools.combinations(names, 2)
    return sum(100 for name in names if name not in met) + sum(1 for pair in pairs if pair not in met)


def lives(case: Case, steps: Sequence[Position], seed: int) -> str:
    """What the script is told in LIVES: chosen by the seed among the positions that a plain run came by."""
    chance = random.Random(f"{seed}/{case.name}")
    if case.source in ONLY_EPOCHS:
        steps = [position for position in steps if position[:2] > steps[0][:2]]
    return ",".join(
        f"{place}@{':'.join(map(str, _target(place, steps, _within(chance, share))))}/{name}"
        for place, share, name in POINTS[case.point]
    )


def _within(chance: random.Random, share: tuple[float, float]) -> float:
    return chance.uniform(*share)


def _target(place: str, steps: Sequence[Position], share: float) -> Position:
    fit, epoch, batch = steps[int(share * (len(steps) - 1))]
    if place == "between":
        return fit + 1, 0, 0
    if place in ("after", "evaluate", "train_end", "start"):
        return 0, 0, 0
    return (fit, epoch, batch) if place in ("batch", "fresh", "staging", "writing") else (fit, epoch, 0)


def chosen(pattern: str, cases: Iterable[Case]) -> list[Case]:
    """Those of `cases` whose name `pattern` matches; if there are none, those of the whole product."""
    import re

    wanted = re.compile(pattern)
    return [case for case in cases if wanted.search(case.name)] or [
        case for case in product() if wanted.search(case.name)
    ]
