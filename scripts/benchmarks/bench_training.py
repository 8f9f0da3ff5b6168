"""What ksupervise costs at its default settings: steps a second, beside the same script without it.

Separate processes, in random order within each pair; import, tracing and the first epoch are left out. What
comes once a fit (the final state made durable) is shown apart: a short fit would only multiply it. CPU time is the
number to look at where others use the machine: it feels them less. The time inside ksupervise's callbacks is all
that training waits for; what the parent takes from the other core is in the CPU time only.
"""

from __future__ import annotations

import json
import random
import statistics
import sys
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from measure import EXAMPLES, WORKLOADS, Report, alternate, finish, journal, ksupervise, tell


@dataclass(frozen=True)
class Timing:
    """One process' only fit."""

    rate: float  # steps a second, from the first epoch's end to the last one's
    cpu: float  # seconds of CPU for a step, of script and supervisor together
    hook: float  # share of the time that ksupervise's callbacks took, stages included
    epoch: float  # seconds that the median epoch took: stages are in few of them
    ending: float  # seconds from the last epoch's end to fit's return
    steps: int
    commits: int


def run(report: Report, folder: Path, *, quick: bool, random: random.Random) -> None:
    """Measure all workloads, each long enough for several stages at the default."""
    pairs = 3 if quick else 10
    workloads = {
        "digits CNN": (10.0, [str(EXAMPLES / "digits_cnn.py")]),
        "MLP, 30 MB of state": (10.0, [str(WORKLOADS / "mlp.py"), "--megabytes", "30"]),
        "ResNet50, 307 MB of state": (60.0, [str(WORKLOADS / "resnet50.py")]),
    }
    for name, (seconds, command) in workloads.items():
        place = folder / name.split()[0]
        trial = _train(command, 4, place / "trial", supervised=False)
        epochs = max(4, round(seconds / trial.epoch / (2 if quick else 1)))
        tell(f"{name}: {pairs} pairs of {epochs} epochs")
        plain, supervised = [], []
        for one, other in alternate(
            random,
            pairs,
            lambda k, c=command, e=epochs, p=place: _train(c, e, p / f"plain{k}", supervised=False),  # type: ignore[misc]
            lambda k, c=command, e=epochs, p=place: _train(c, e, p / f"supervised{k}", supervised=True),  # type: ignore[misc]
        ):
            plain.append(one)
            supervised.append(other)
            tell(f"  {one.rate:.1f} steps/s plain, {other.rate:.1f} supervised: {other.rate / one.rate:.4f}")
        _enter(report, name, plain, supervised)


def _enter(report: Report, name: str, plain: list[Timing], supervised: list[Timing]) -> None:
    pairs = list(zip(plain, supervised, strict=True))
    overhead = [100 * (p.rate / s.rate - 1) for p, s in pairs]
    report.add(f"{name}: a step takes more than plain", "%", overhead, ("≤", 1))
    report.add("  CPU time for a step (script and supervisor), of plain", "", [s.cpu / p.cpu for p, s in pairs])
    report.add("  time inside ksupervise's callbacks, stages included", "%", [100 * each.hook for each in supervised])
    report.add("  median epoch's speed, of plain", "", [p.epoch / s.epoch for p, s in pairs])
    report.add("  plain", "steps/s", [timing.rate for timing in plain])
    report.add("  supervised", "steps/s", [timing.rate for timing in supervised])
    report.add("  once a fit, at its end: more than plain", "s", [s.ending - p.ending for p, s in pairs])
    report.add("  checkpoints committed in a fit", "", [float(timing.commits) for timing in supervised])
    report.add("  steps timed in a fit", "", [float(timing.steps) for timing in supervised])
    report.raw[name] = {"plain": [vars(timing) for timing in plain], "supervised": [vars(t) for t in supervised]}


def _train(script: list[str], epochs: int, folder: Path, *, supervised: bool) -> Timing:
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
    if supervised and not commits:
        raise SystemExit("bench: no checkpoint was committed; this would measure nothing")
    steps = fit["steps"] * (len(ends) - 1)
    epoch = statistics.median(later - earlier for earlier, later in pairwise(ends))
    cpu = (fit["cpu"][-1] - fit["cpu"][0]) / steps
    hook = (fit["hook"][-1] - fit["hook"][0]) / (ends[-1] - ends[0])
    return Timing(steps / (ends[-1] - ends[0]), cpu, hook, epoch, fit["ended"] - ends[-1], steps, commits)
