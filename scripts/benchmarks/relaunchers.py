"""The first relaunch of a killed script under what else relaunches scripts: those of them that are on PATH."""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from measure import WORKLOADS, Report, ended, environment, ksupervise, tell, wait_for

_SETTLED = (
    1.2  # seconds that a script has run when it is killed: before, supervisord takes it for one that cannot start
)
_PEERS = ("supervisord", "torchrun")
_CONFIGURATION = """
[supervisord]
nodaemon=true
logfile={folder}/log
pidfile={folder}/pid
[program:reborn]
command={python} {script} {lives}
directory={folder}
"""


@dataclass(frozen=True)
class Life:
    """`pid`, and CLOCK_MONOTONIC second of its first line."""

    pid: int
    began: float


def enter(report: Report, folder: Path, kills: int, rng: random.Random) -> None:
    """Each with its own defaults, in turns; from the kill to the script's first line."""
    found = [name for name in _PEERS if shutil.which(name)]
    report.notes += [f"{name} is not on PATH: left out" for name in _PEERS if name not in found]
    if not found:
        return
    times: dict[str, list[float]] = {name: [] for name in ("ksupervise", *found)}
    tell(f"a tiny child under {', '.join(times)}")
    for number in range(kills):
        for name in rng.sample(list(times), len(times)):
            times[name].append(1000 * _relaunch(name, folder / f"{name}{number}", rng))
    for name, values in times.items():
        report.add(f"tiny child under {name}: kill → the next one's first line", "ms", values)


def _relaunch(name: str, folder: Path, rng: random.Random) -> float:
    """Seconds from the first kill to the next first line."""
    folder.mkdir(parents=True)
    lives = folder / "lives"
    with (
        (folder / "output.txt").open("wb") as output,
        ended(
            subprocess.Popen(
                _command(name, folder, lives),
                cwd=folder,
                env=environment(),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )
        ) as parent,
    ):
        first = wait_for(lambda: _lives(lives), parent)[0]
        time.sleep(_SETTLED + rng.random())  # whoever polls is met anywhere between two looks
        killed = time.monotonic()
        os.kill(first.pid, signal.SIGKILL)
        second = wait_for(lambda: _lives(lives)[1:], parent)[0]
        os.killpg(parent.pid, signal.SIGKILL)
        os.kill(second.pid, signal.SIGKILL)
        return second.began - killed


def _command(name: str, folder: Path, lives: Path) -> Sequence[str]:
    script = str(WORKLOADS / "reborn.py")
    if name == "ksupervise":
        return [ksupervise(), sys.executable, script, str(lives)]
    if name == "torchrun":
        return ["torchrun", "--standalone", "--max-restarts=3", script, str(lives)]
    file = folder / "supervisord.conf"
    file.write_text(_CONFIGURATION.format(folder=folder, python=sys.executable, script=script, lives=lives))
    return ["supervisord", "-c", str(file)]


def _lives(path: Path) -> list[Life]:
    """The script's lives so far."""
    lines = path.read_text().splitlines(keepends=True) if path.exists() else []
    found = [line.split() for line in lines if line.endswith("\n")]
    return [Life(int(pid), float(began)) for pid, began in found]
