"""Run a Keras script as it is, with a clock in its fits. Call: timed.py RESULT.json SCRIPT [ARGS]...

The clock looks only at epochs: a hook at batches would cost more than what is to be measured.
"""

import json
import os
import runpy
import sys
import time
from collections.abc import Callable
from pathlib import Path

started = time.monotonic()
result, script = Path(sys.argv[1]), sys.argv[2]
sys.argv = sys.argv[2:]

import keras  # noqa: E402


def supervisor_cpu() -> float:
    """CPU seconds of our parent process, if that is a supervisor: they are taken from the same cores."""
    if "KSUPERVISE_ATTEMPT" not in os.environ:
        return 0.0
    fields = Path(f"/proc/{os.getppid()}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


class Clock(keras.callbacks.Callback):  # type: ignore[misc]
    """When each epoch ended, the CPU time used until then, and the time that ksupervise's callbacks took of it."""

    def __init__(self) -> None:
        super().__init__()
        self.ends: list[float] = []
        self.cpu: list[float] = []
        self.hook: list[float] = []
        self.in_hook = 0.0

    def on_train_begin(self, logs: object = None) -> None:
        # The caller is Keras' CallbackList; ksupervise has put its own callbacks into it.
        for ours in sys._getframe(1).f_locals["self"].callbacks:
            if type(ours).__name__.startswith("Ksupervise"):
                for name in [name for name in dir(ours) if name.startswith("on_")]:
                    setattr(ours, name, self.timed(getattr(ours, name)))

    def timed(self, method: Callable[..., object]) -> Callable[..., object]:
        """`method`, with the time it takes added up."""

        def run(*args: object, **kwargs: object) -> object:
            began = time.perf_counter()
            try:
                return method(*args, **kwargs)
            finally:
                self.in_hook += time.perf_counter() - began

        return run

    def on_epoch_end(self, epoch: int, logs: object = None) -> None:
        self.ends.append(time.perf_counter())
        self.cpu.append(time.process_time() + supervisor_cpu())
        self.hook.append(self.in_hook)


fits: list[dict[str, object]] = []
plain_fit = keras.Model.fit


def fit(self, *args, **kwargs):  # type: ignore[no-untyped-def]
    clock = Clock()
    kwargs["callbacks"] = [*(kwargs.get("callbacks") or []), clock]
    began = time.perf_counter()
    history = plain_fit(self, *args, **kwargs)
    ended = time.perf_counter()
    steps = int(clock.params["steps"])
    fits.append(
        {"began": began, "ends": clock.ends, "cpu": clock.cpu, "hook": clock.hook, "ended": ended, "steps": steps}
    )
    return history


keras.Model.fit = fit
runpy.run_path(script, run_name="__main__")
attempt = os.environ.get("KSUPERVISE_ATTEMPT")
result.write_text(json.dumps({"started": started, "fits": fits, "attempt": attempt}))
