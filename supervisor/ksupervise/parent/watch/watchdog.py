"""Notices that the child hangs: silence first, then witnesses, then the stacks of all its threads as evidence.

How long a silence may last is `core/patience.py`'s to say. What is no hang is told apart here: a debugger that holds a
thread, a parent that was itself stopped or suspended meanwhile, a process that works.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path

from ksupervise.core.patience import Doing, Limit, Patience, Slowest, limit, validation_limit
from ksupervise.parent.watch import gpu, stacks
from ksupervise.parent.watch.witness import Activity, Look, State, Witness, activity, describe
from ksupervise.wire import PHASE_BETWEEN, PHASE_EVALUATE, PHASE_OUTSIDE, PHASE_STAGE, PHASE_TRAIN, Control

_GAP = 5.0  # seconds between two looks of ours after which it was we who stood still
_IDLE_CORES = 0.05
_IDLE_BYTES = 20_000.0  # a second
_IDLE_GPU = 0.05  # share
_WINDOW = 10.0  # seconds over which the witnesses look, or half of the limit
_STACKS_WAIT = 2.0  # seconds that a process may take to write its stacks


class Watchdog:
    """Watches one attempt. Everything runs on the loop's thread.

    Attributes:
        slowest: what this run has taught so far, by the ordinal of the fit: another fit may have another pace.
    """

    def __init__(
        self,
        patience: Patience,
        slowest: dict[int, Slowest],
        control: Control,
        pid: int,
        dump: Path | None,
        ask: Callable[[], bool],
        note: Callable[[str], None],
        environment: Mapping[str, str],
    ) -> None:
        """`ask` has the stacks written to `dump`, False if nobody can. `note` tells the user something once."""
        self.slowest = slowest
        self._patience = patience
        self._control = control
        self._witness = Witness(pid)
        self._dump = dump
        self._ask = ask
        self._note = note
        self._environment = environment
        self._from = self._last = time.monotonic()  # silence before that is not the child's
        self._first: Look | None = None
        self._asked: tuple[float, int] | None = None  # when, and how long the file was then
        self._gpu: _Gpu | None = None
        self._said = ""

    def look(self, trainer: int, keras: bool) -> str:
        """What is wrong, "" as long as nothing is. Called about once a second."""
        now, before = time.monotonic(), self._last
        self._last = now
        if now - before > _GAP:
            self._excuse(now)
        control = self._control
        fit, doing = control.integer("fit"), _doing(control)
        seen = self.slowest[fit] = self.slowest.get(fit, Slowest()).with_other(_slowest(control))
        if doing is Doing.STARTING and not keras:
            return ""  # any program: nobody knows what silence means there
        # A stage is a sign of life, too, and the witness begins anew there: what came before must not be held against
        # an idle moment behind it. TensorFlow waits there, at times for seconds, for an old iterator's autotuning.
        since = max(self._from, control["beat"], control["phase_since"], control["staged_at"])
        allowed = limit(doing, seen, self._patience)
        silence = now - since
        if doing is Doing.VALIDATING and silence <= allowed.idle:
            whole = validation_limit(seen, self._patience)
            lasted = now - max(self._from, control["phase_since"])
            if lasted > whole.idle:
                words = f"a validation has gone on for {lasted:.0f} s"
                judged = self._judge(now, trainer, whole, lasted, words)
                return self._learn(fit, doing, lasted, whole=True) if judged else ""
        if silence < allowed.idle / 2:
            self._first = self._asked = None
            return ""
        if self._first is None:
            self._first = self._witness.look(trainer or None)
            self._gpu = _Gpu(self._environment)
        if silence <= allowed.idle:
            return ""
        words = f"no sign of life for {silence:.0f} s {doing.value}"
        judged = self._judge(now, trainer, allowed, silence, words)
        return self._learn(fit, doing, silence) if judged else ""

    def _learn(self, fit: int, doing: Doing, seconds: float, *, whole: bool = False) -> str:
        """The judgement stands. Were it wrong, the next attempt must not meet it again. Returns its words."""
        self.slowest[fit] = self.slowest[fit].after_stall(doing, seconds, whole=whole)
        return self._said

    def _judge(self, now: float, trainer: int, allowed: Limit, seconds: float, seen: str) -> bool:
        """It is a stall. `seconds`: what is more than is allowed. The words about it are in `_said`."""
        look = self._witness.look(trainer or None)
        self._first = self._first or look
        since = activity(self._first, look)
        if since.seconds < min(_WINDOW, allowed.idle / 2):
            return False  # over a moment everybody looks idle
        if look.state is State.TRACED:
            self._note(f"{seen}: {describe(look)}; that is no stall, it is waited for")
            self._excuse(now)
            return False
        if seconds <= allowed.busy and allowed.idle < allowed.busy and not self._is_idle(look, since):
            return False
        written = self._stacks(now)
        if written is None:
            return False
        if stacks.is_debugged(written):
            self._note(f"{seen}: a debugger holds it at {stacks.place(written) or 'its prompt'}; it is waited for")
            self._excuse(now)
            return False
        self._said = self._words(seen, allowed, look, since, written)
        return True

    def _words(self, seen: str, allowed: Limit, look: Look, since: Activity, written: str) -> str:
        words = f"{seen} ({allowed.idle:.0f} s are allowed: {allowed.reason}); {describe(look, since)}"
        at = stacks.place(written)
        if at:
            words += f"; it stands at {at}"
        return f"{words}; all stacks: {self._dump}" if written else words

    def _is_idle(self, look: Look, since: Activity) -> bool:
        if look.state in (State.STOPPED, State.BLOCKED):
            return True
        if since.cores is None:
            return False
        moved = (since.read or 0.0) + (since.written or 0.0)
        busy_gpu = self._gpu is not None and self._gpu.share is not None and self._gpu.share > _IDLE_GPU
        return since.cores < _IDLE_CORES and moved < _IDLE_BYTES and not busy_gpu

    def _stacks(self, now: float) -> str | None:
        """The stacks of all threads; "" if they cannot be had, None as long as they may still come."""
        if self._asked is None:
            self._asked = (now, stacks.size(self._dump))
            return None if self._ask() else ""
        asked, size = self._asked
        written = stacks.read(self._dump, size)
        if now - asked < _STACKS_WAIT and not written.endswith("\n"):
            return None
        return written

    def _excuse(self, now: float) -> None:
        self._from, self._first, self._asked = now, None, None


class _Gpu:
    """The GPU's use, asked for beside the loop: nvidia-smi may take its time."""

    def __init__(self, environment: Mapping[str, str]) -> None:
        self.share: float | None = None
        if gpu.available():
            threading.Thread(target=self._measure, args=(environment,), name="gpu", daemon=True).start()

    def _measure(self, environment: Mapping[str, str]) -> None:
        self.share = gpu.utilization(environment=environment)


def _slowest(control: Control) -> Slowest:
    names = ("slowest_step", "slowest_test", "slowest_validation", "slowest_between")
    return Slowest(*(control[name] for name in names))


def _doing(control: Control) -> Doing:
    phase = control.integer("phase")
    if phase == PHASE_OUTSIDE:
        return Doing.OUTSIDE if control.integer("fit") else Doing.STARTING
    if phase == PHASE_TRAIN:
        return Doing.TRAINING if control.integer("warm") else Doing.FIRST
    known = {PHASE_EVALUATE: Doing.VALIDATING, PHASE_STAGE: Doing.STAGING, PHASE_BETWEEN: Doing.BETWEEN}
    return known.get(phase, Doing.OUTSIDE)  # a child that scribbles must not bring us down
