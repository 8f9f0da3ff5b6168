"""The training's pulse on the control page: what it does, since when, and the slowest that each of its doings was.

Only the training's own thread writes here. One that beats from a helper thread lives on while the training hangs.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator

from ksupervise.wire import PHASE_BETWEEN, PHASE_EVALUATE, PHASE_STAGE, PHASE_TRAIN, Control

_WARM = 3  # batches that tell nothing of the pace: the first is compiled, the next fill the pipelines
# Fields of the page by their number: `batch` runs at each step.
_PHASE, _WARMTH, _TRAINED, _BEAT, _SINCE = 16, 26, 27, 32, 35
_STEP, _TEST, _VALIDATION, _BETWEEN = 36, 37, 38, 39


class Beat:
    """Of one fit. What another one was like tells nothing of its pace."""

    def __init__(self, control: Control) -> None:
        self._words = control.words
        self._times = control.times
        self._words[_WARMTH] = 0
        for field in (_STEP, _TEST, _VALIDATION, _BETWEEN):
            self._times[field] = 0.0
        self._before = 0.0  # when the batch before this one began, in this epoch or validation
        self._test_batches = 0

    def enter(self, phase: int, *, finished: bool = True) -> None:
        """Something else begins. `finished`: the batch before it was trained to its end."""
        if self._before and finished and self._words[_PHASE] == PHASE_TRAIN:
            self._words[_TRAINED] = 1
            self._words[_WARMTH] = max(1, self._words[_WARMTH])
        self._times[_SINCE] = time.monotonic()
        self._words[_PHASE] = phase
        self._before = 0.0

    def batch(self) -> None:
        """A batch of the training begins."""
        now, words, times = time.monotonic(), self._words, self._times
        if words[_PHASE] != PHASE_TRAIN:
            if words[_PHASE] == PHASE_BETWEEN:
                self._note(_BETWEEN, now - times[_SINCE])
            self.enter(PHASE_TRAIN)
        elif self._before:
            if words[_WARMTH] < _WARM:
                words[_WARMTH] += 1
                words[_TRAINED] = 1
            elif now - self._before > times[_STEP]:
                times[_STEP] = now - self._before
        self._before = times[_BEAT] = now

    def test_batch(self) -> None:
        """A batch of a validation begins."""
        now = time.monotonic()
        self._test_batches += 1
        if self._before and self._test_batches > _WARM:
            self._note(_TEST, now - self._before)
        self._before = self._times[_BEAT] = now

    def end_validation(self) -> None:
        """A validation is over."""
        if self._words[_PHASE] == PHASE_EVALUATE:
            self._note(_VALIDATION, time.monotonic() - self._times[_SINCE])
        self.enter(PHASE_TRAIN)

    @contextlib.contextmanager
    def staging(self) -> Iterator[None]:
        """The state is staged here; what was done before goes on afterwards, and is as old as it was."""
        phase, since, began = self._words[_PHASE], self._times[_SINCE], time.monotonic()
        self._times[_SINCE] = began
        self._words[_PHASE] = PHASE_STAGE
        try:
            yield
        finally:
            self._times[_SINCE] = since + time.monotonic() - began
            self._words[_PHASE] = phase

    def _note(self, field: int, seconds: float) -> None:
        self._times[field] = max(self._times[field], seconds)
