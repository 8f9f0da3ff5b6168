"""How long a silence may last before it is a stall: learned from the run itself. Pure.

A beat comes from the training's own thread at each batch; one from a helper thread would hide a hang. The limit of a
phase is five times the slowest interval seen in it, after NVIDIA's resiliency-ext; until one was seen it is a generous
guess, for the first step is compiled. Silence alone proves little, so there is a second witness: a tree of processes
that uses the processor, the disk or the GPU is given much longer than one that does nothing.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from enum import Enum

_FACTOR = 5.0  # times the slowest interval seen
_CEILING = 3600.0  # seconds; no learned limit is longer, unless the slowest itself was nearly as long
_MARGIN = 2.0  # times the slowest interval that are allowed in any case
_UNLEARNED = 1800.0  # seconds for the first step and the first validation batch: they are compiled
_VALIDATION = 7200.0  # seconds for the whole of the first validation
_VALIDATION_FLOOR = 600.0
_BETWEEN = 1800.0  # seconds for callbacks at an epoch's end, until one was seen
_STAGE = 600.0
_STARTING = 3600.0  # seconds before the first fit: there the script may do anything
_BUSY = 6.0  # times longer for who is busy
_BUSY_FLOOR = 1800.0  # and at least so many seconds
DEFAULT_FLOOR = 300.0  # seconds; below it no limit is learned: storage may be away for a while


class Doing(Enum):
    """What the trainer was last known to do."""

    STARTING = "before the first fit"
    FIRST = "in the first step, which is compiled"
    TRAINING = "in training"
    BETWEEN = "at an epoch's end"
    VALIDATING = "in validation"
    STAGING = "while the state was staged"
    OUTSIDE = "outside fit"


@dataclass(frozen=True)
class Slowest:
    """The longest that was seen of each in one fit, in seconds; 0 for what was not seen yet."""

    step: float = 0.0
    test_batch: float = 0.0
    validation: float = 0.0
    between: float = 0.0

    def with_other(self, other: Slowest) -> Slowest:
        """The longest of both: what earlier attempts taught holds on."""
        return Slowest(*(max(one, two) for one, two in zip(vars(self).values(), vars(other).values(), strict=True)))

    def after_stall(self, doing: Doing, seconds: float, *, whole: bool = False) -> Slowest:
        """What a silence of `seconds` that was taken for a stall teaches: the next one may last twice as long.

        A judgement that was wrong is not made three times in a row; a real hang is only found later. `whole`: it was
        a validation that lasted so long.
        """
        field = "validation" if whole else _LEARNED.get(doing)
        if field is None:
            return self
        return self.with_other(replace(Slowest(), **{field: 2 * seconds / _FACTOR}))


@dataclass(frozen=True)
class Patience:
    """The setting.

    Attributes:
        floor: seconds; no limit is shorter.
        fixed: seconds without a step that are a stall in any case (`--stall DUR`), None to learn them.
    """

    floor: float = DEFAULT_FLOOR
    fixed: float | None = None


@dataclass(frozen=True)
class Limit:
    """Seconds of silence that are too long for who does nothing, and for who is busy; and why so many."""

    idle: float
    busy: float
    reason: str


def limit(doing: Doing, seen: Slowest, patience: Patience) -> Limit:
    """How long the trainer may be silent where it is."""
    if patience.fixed is not None:
        return _fixed(doing, patience.fixed)
    if doing is Doing.OUTSIDE:  # it has trained, and may serve now, or wait for somebody
        return Limit(math.inf, math.inf, "outside fit")
    learned = {
        Doing.TRAINING: ("the slowest step", seen.step),
        Doing.VALIDATING: ("the slowest batch", seen.test_batch),
        Doing.BETWEEN: ("the slowest before", seen.between),
    }
    word, longest = learned.get(doing, ("", 0.0))
    if longest:
        idle = max(patience.floor, min(_CEILING, _FACTOR * longest), _MARGIN * longest)
        times = f"{idle / longest:.2g} times {word}, {_seconds(longest)}"
        reason = times if idle > patience.floor else "the shortest limit"
    else:
        idle, reason = max(patience.floor, _GUESSES[doing]), "nothing was seen yet to learn from"
    if doing is Doing.STARTING:  # a script that works may work as long as it likes
        return Limit(idle, math.inf, "outside fit")
    return Limit(idle, max(_BUSY_FLOOR, _BUSY * idle), reason)


def validation_limit(seen: Slowest, patience: Patience) -> Limit:
    """How long a whole validation may last, however regular its batches: it may have no end."""
    if not seen.validation:
        seconds = max(patience.floor, _VALIDATION)
        return Limit(seconds, _BUSY * seconds, "nothing was seen yet to learn from")
    seconds = max(_VALIDATION_FLOOR, patience.floor, _FACTOR * seen.validation)
    return Limit(seconds, _BUSY * seconds, f"{_FACTOR:.0f} times the longest, {_seconds(seen.validation)}")


def _fixed(doing: Doing, seconds: float) -> Limit:
    """What the user gave holds from the first step on; start, compilation and the rest keep their own floor."""
    if doing in (Doing.TRAINING, Doing.VALIDATING, Doing.BETWEEN):
        return Limit(seconds, seconds, "--stall")
    own = limit(doing, Slowest(), Patience(floor=seconds))
    return replace(own, reason="--stall") if own.idle == seconds else own


def _seconds(seconds: float) -> str:
    return f"{seconds:.1f} s" if seconds < 10 else f"{seconds:.0f} s"


_LEARNED = {Doing.TRAINING: "step", Doing.VALIDATING: "test_batch", Doing.BETWEEN: "between"}
_GUESSES = {
    Doing.STARTING: _STARTING,
    Doing.FIRST: _UNLEARNED,
    Doing.TRAINING: _UNLEARNED,
    Doing.BETWEEN: _BETWEEN,
    Doing.VALIDATING: _UNLEARNED,
    Doing.STAGING: _STAGE,
}
