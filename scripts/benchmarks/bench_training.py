"""What ksupervise costs at its default settings: CPU time for a step, beside the same script without it.

Both run at the same time on the same cores, so that the scheduler gives them turns of milliseconds, and what else the
machine does falls on both alike: one after the other, or each on its own core, the same script was seen to differ from
itself by 6 to 10 % in wall time. CPU time is of script and supervisor together, over the time in which both trained.
What training waits for without using a processor is not in it; that is the time inside ksupervise's callbacks, shown
below (here it holds the waits for the other one's turns, too). Import, tracing and the first epoch are left out. What
comes once a fit (the final state made durable) is shown apart: a short fit would only multiply it.
"""

from __future__ import annotations

import json
import random
import statistics
import sys
from bisect import bisect_right
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from measure import EXAMPLES, WORKLOADS, Report, finish, journal, ksupervise, tell


@dataclass(frozen=True)
class Fit:
    """One process' only fit."""

    ends: list[float]  # of its epochs, on the clock that all processes share
    cpu: list[float]  # seconds of CPU used until each, by script and supervisor together
    hook: float  # share of the time that ksupervise's callbacks took, stages included
    ending: float  # seconds from the last epoch's end to fit's return
    steps: int  # of an epoch
    commits: int

    @property
    def epoch(self) -> float:
        """Seconds of the median epoch."""
        return statistics.median(later - earlier for earlier, later in pairwise(self.ends))

    def cpu_of_a_step(self, began: float, ended: float) -> float:
        """Seconds of CPU for a step between two moments of the fit."""
        (first, before), (last, after) = self._at(began), self._at(ended)
        return (after - before) / (self.steps * (last - first))

    def _at(self, moment: float) -> tuple[float, float]:
        """Epochs that had passed at that moment, with the part of the one that ran, and CPU used until then."""
        index = min(max(1, bisect_right(self.ends, moment)), len(self.ends) - 1)
        earlier, later = self.ends[index - 1], self.ends[index]
        part = (moment - earlier) / (later - earlier)
        return index - 1 + part, self.cpu[index - 1] + part * (self.cpu[index] - self.cpu[index - 1])


@dataclass(frozen=True)
class Pair:
    """Both at the same time."""

    plain: Fit
    supervised: Fit

    @property
    def cpu(self) -> tuple[float, float]:
        """Seconds of CPU for a step, plain and supervised, while both trained."""
        began = max(self.plain.ends[0], self.supervised.ends[0])
        ended = min(self.plain.ends[-1], self.supervised.ends[-1])
        return self.plain.cpu_of_a_step(began, ended), self.supervised.cpu_of_a_step(began, ended)

    @property
    def overhead(self) -> float:
        """Percent that a supervised step takes more."""
        plain, supervised = self.cpu
        return 100 * (supervised / plain - 1)


def run(report: Report, folder: Path, *, quick: bool, random: random.Random) -> None:
    """Measure all workloads, each long enough for several stages at the default."""
    workloads = {
        "digits CNN": (30.0, 12, [str(EXAMPLES / "digits_cnn.py")]),
        "MLP, 30 MB of state": (30.0, 12, [str(WORKLOADS / "mlp.py"), "--megabytes", "30"]),
        "ResNet50, 307 MB of state": (120.0, 6, [str(WORKLOADS / "resnet50.py")]),
    }
    for name, (seconds, count, command) in workloads.items():
        place = folder / name.split()[0]
        trial = _beside(command, 4, place / "trial", random)
        epochs = max(4, round(seconds / trial.plain.epoch / (2 if quick else 1)))
        count = 2 if quick else count
        tell(f"{name}: {count} pairs of {epochs} epochs")
        pairs = []
        for number in range(count):
            pairs.append(_beside(command, epochs, place / str(number), random))
            one, other = pairs[-1].cpu
            tell(
                f"  {1000 * one:.2f} ms of CPU a step plain, {1000 * other:.2f} supervised: {pairs[-1].overhead:+.2f} %"
            )
        _enter(report, name, pairs)


def _enter(report: Report, name: str, pairs: list[Pair]) -> None:
    fits = [pair.supervised for pair in pairs]
    if not all(fit.commits > 1 for fit in fits):
        raise SystemExit("bench: no checkpoint was committed in mid-fit; this would measure nothing")
    report.add(f"{name}: CPU time for a step, more than plain", "%", [pair.overhead for pair in pairs], ("≤", 1))
    report.add("  time inside ksupervise's callbacks, stages included", "%", [100 * fit.hook for fit in fits])
    report.add("  plain", "ms", [1000 * pair.cpu[0] for pair in pairs])
    report.add("  supervised", "ms", [1000 * pair.cpu[1] for pair in pairs])
    report.add("  once a fit, at its end: more than plain", "s", [p.supervised.ending - p.plain.ending for p in pairs])
    report.add("  checkpoints committed in a fit", "", [float(fit.commits) for fit in fits])
    report.add("  steps timed in a fit", "", [float(fit.steps * (len(fit.ends) - 1)) for fit in fits])
    report.raw[name] = [{"plain": vars(pair.plain), "supervised": vars(pair.supervised)} for pair in pairs]


def _beside(script: list[str], epochs: int, folder: Path, random: random.Random) -> Pair:
    """Both ways at once, begun in random order."""
    with ThreadPoolExecutor(2) as pool:
        both = {
            supervised: pool.submit(_train, script, epochs, folder / f"{supervised:d}", supervised=supervised)
            for supervised in random.sample((False, True), 2)
        }
        return Pair(both[False].result(), both[True].result())


def _train(script: list[str], epochs: int, folder: Path, *, supervised: bool) -> Fit:
    result = folder / "result.json"
    command = [sys.executable, str(WORKLOADS / "timed.py"), str(result), *script, "--epochs", str(epochs)]
    # Keras' progress bar goes where the script's output goes anyway, and both ways pay for it.
    finish([ksupervise(), *command] if supervised else command, folder)
    answer = json.loads(result.read_bytes())
    if answer["attempt"] != ("1" if supervised else None):
        raise SystemExit(f"bench: {folder} was {answer['attempt'] or 'not'} supervised")
    (fit,) = answer["fits"]
    ends = fit["ends"]
    commits = sum(record["event"] == "committed" for record in journal(folder))
    hook = (fit["hook"][-1] - fit["hook"][0]) / (ends[-1] - ends[0])
    return Fit(ends, fit["cpu"], hook, fit["ended"] - ends[-1], fit["steps"], commits)
