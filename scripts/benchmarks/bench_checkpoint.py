"""What a checkpoint costs: how long training stalls, and after how long the state is on the disk.

All ways take turns between the batches of one supervised process. ksupervise's own is what a user gets: the copy
into the stage by the hook, the commit by the parent (write, digests, fsync, manifest, rename, fsync).
"""

from __future__ import annotations

import json
import math
import random
import sys
from pathlib import Path

from measure import WORKLOADS, Report, finish, ksupervise, tell

SIZES = (1, 30, 300)  # MB of state


def run(report: Report, folder: Path, *, quick: bool, random: random.Random) -> None:
    """Measure all ways at each size."""
    rounds = 3 if quick else 10
    result = folder / "result.json"
    tell(f"{rounds} rounds of 7 ways at {SIZES} MB")
    script = [str(WORKLOADS / "checkpoints.py"), str(result), str(rounds), str(random.randrange(2**32))]
    # Only the stages that are asked for: none by time.
    options = ["--every", "24h", "--overhead", "0.00001"]
    finish([ksupervise(), *options, sys.executable, *script, *map(str, SIZES)], folder / "run")
    found = json.loads(result.read_bytes())
    report.raw["timings"] = found
    for size, ways in found.items():
        report.notes.append(f"{float(size):g} MB, bytes written: {_bytes(ways)}")
        for name in sorted(ways, key=lambda name: (name.startswith("limit"), name != "ksupervise stage", name)):
            stalls, durables, _ = zip(*ways[name], strict=True)
            label = f"{float(size):>3g} MB  {name}"
            if not name.startswith("limit: write"):
                report.add(f"{label}: stalls", "ms", [1000 * value for value in stalls])
                label = "       "
            report.add(f"{label} durable after", "ms", [1000 * each for each in durables if not math.isnan(each)])


def _bytes(ways: dict[str, list[tuple[float, float, int]]]) -> str:
    return ", ".join(f"{name} {timings[-1][2]:,}" for name, timings in sorted(ways.items()))
