"""Run a Keras script as it is, with a clock in its fits. Call: timed.py RESULT.json SCRIPT [ARGS]...

The clock looks only at epochs: a hook at batches would cost more than what is to be measured.
"""

import json
import os
import runpy
import sys
import time
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
    """When each epoch ended, and the CPU time used until then."""

    def __init__(self) -> None:
        super().__init__()
        self.ends: list[float] = []
        self.cpu: list[float] = []

    def on_epoch_end(self, epoch: int, logs: object = None) -> None:
        self.ends.append(time.perf_counter())
        self.cpu.append(time.process_time() + supervisor_cpu())


fits: list[dict[str, object]] = []
plain_fit = keras.Model.fit


def fit(self, *args, **kwargs):  # type: ignore[no-untyped-def]
    clock = Clock()
    kwargs["callbacks"] = [*(kwargs.get("callbacks") or []), clock]
    began = time.perf_counter()
    history = plain_fit(self, *args, **kwargs)
    ended = time.perf_counter()
    steps = int(clock.params["steps"])
    fits.append({"began": began, "ends": clock.ends, "cpu": clock.cpu, "ended": ended, "steps": steps})
    return history


keras.Model.fit = fit
runpy.run_path(script, run_name="__main__")
attempt = os.environ.get("KSUPERVISE_ATTEMPT")
result.write_text(json.dumps({"started": started, "fits": fits, "attempt": attempt}))
