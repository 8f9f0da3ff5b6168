"""From the child's death to its successor's first step, and where the time goes.

The killer notes when it kills, and waits on a pidfd of its own: nobody can know earlier. The parent runs with a
stopwatch around its loop (`workloads/watched.py`), the child says when its first line ran, when Keras was imported and
when its first step was trained (`workloads/phases.py`): cold, with `--standby`, and in a shell loop with Keras'
BackupAndRestore, beside the start of the script alone. supervisord and torchrun relaunch a tiny child beside it, where
they are on PATH.
"""

from __future__ import annotations

import json
import os
import random
import select
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import relaunchers
from measure import EXAMPLES, WORKLOADS, Report, ended, environment, journal, ksupervise, tell, wait_for

Ready = Callable[[list[dict[str, Any]], int], bool]  # journal, attempt → it may be killed
POLL = 0.1  # seconds; what a supervisor without pidfd commonly sleeps


@dataclass(frozen=True)
class Death:
    """One kill and what followed, in seconds after it."""

    limit: float  # a pidfd of the killer's
    noticed: float
    swept: float
    settled: float
    decided: float
    launching: float
    spawned: float
    started: float  # the child's first own line
    backoff: float  # of that, waited on purpose


def run(report: Report, folder: Path, *, quick: bool, random: random.Random) -> None:
    """Kill a tiny child, and one with a staged state of 30 MB."""
    kills = 3 if quick else 12
    tell("control: a loop that polls every 100 ms")
    report.add("control: death noticed by a poll every 100 ms", "ms", _polled(kills, random))
    tell("tiny child, two deaths under each parent")
    tiny = [_tiny(folder / f"tiny{number}", 2, random) for number in range(kills)]
    _enter(report, "tiny child, first death under its parent", [first for first, _ in tiny])
    _enter(report, "tiny child, second death", [second for _, second in tiny])
    relaunchers.enter(report, folder / "relaunchers", kills, random)
    tell("Keras child with 30 MB staged")
    keras = _keras(folder / "keras", kills + 1, random)
    _enter(report, "Keras child, 30 MB staged", keras[1:], beyond=True)
    report.raw["keras_first"] = vars(keras[0])
    _to_first_step(report, folder, 2 if quick else 6)


def _enter(report: Report, name: str, deaths: Sequence[Death], *, beyond: bool = False) -> None:
    """`beyond`: the aim is for what comes on top of the kernel's own time to end a large process."""

    def add(what: str, values: list[float], aim: tuple[str, float] | None = None) -> None:
        report.add(what, "ms", [1000 * value for value in values], aim)

    add(f"{name}: noticed", [death.noticed for death in deaths], None if beyond else ("≤", 5))
    add("  of that the kernel (until any pidfd could tell)", [death.limit for death in deaths])
    add("  beyond it", [death.noticed - death.limit for death in deaths], ("≤", 5) if beyond else None)
    add("  noticed → swept, last output read", [death.swept - death.noticed for death in deaths])
    add("  → leftovers committed, newest checkpoint known", [death.settled - death.swept for death in deaths])
    add("  → decided, journal synced, line said", [death.decided - death.settled for death in deaths])
    add("  → launch begins (backoff left out)", [death.launching - death.decided - death.backoff for death in deaths])
    add("  → exec of the next attempt", [death.spawned - death.launching for death in deaths])
    add("  kill → exec (backoff left out)", [death.spawned - death.backoff for death in deaths])
    add("  exec → the script's first line", [death.started - death.spawned for death in deaths])
    report.raw[name] = [vars(death) for death in deaths]


def _polled(kills: int, rng: random.Random) -> list[float]:
    """Milliseconds until a loop that polls sees the death."""
    delays = []
    for _ in range(2 * kills):
        child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
        end = time.monotonic() + 0.1 + rng.random() * POLL
        killed = 0.0
        while child.poll() is None:
            nap = time.monotonic() + POLL
            if not killed and end < nap:
                time.sleep(max(0.0, end - time.monotonic()))
                child.kill()
                killed = time.monotonic()
            time.sleep(max(0.0, nap - time.monotonic()))
        delays.append(1000 * (time.monotonic() - killed))
    return delays


def _tiny(folder: Path, deaths: int, rng: random.Random) -> list[Death]:
    """A child that does nothing: without progress there is a backoff from the second death on."""

    def ready(records: list[dict[str, Any]], attempt: int) -> bool:
        return (folder / f"started-{attempt}").exists()

    return _deaths(folder, [str(WORKLOADS / "tiny.py"), str(deaths)], deaths, ready, rng)


def _keras(folder: Path, deaths: int, rng: random.Random) -> list[Death]:
    """A training that dies of SIGKILL in mid-fit, each time after it has staged something new."""

    def ready(records: list[dict[str, Any]], attempt: int) -> bool:
        return any(record["event"] == "committed" and record["attempt"] == attempt for record in records)

    script = [str(WORKLOADS / "started.py"), str(WORKLOADS / "mlp.py"), "--megabytes", "30", "--epochs", "100000"]
    return _deaths(folder, script, deaths, ready, rng)


def _deaths(folder: Path, script: list[str], deaths: int, ready: Ready, rng: random.Random) -> list[Death]:
    folder.mkdir(parents=True)
    marks = folder / "marks.jsonl"
    command = [sys.executable, str(WORKLOADS / "watched.py"), str(marks), sys.executable, *script]
    killed: list[tuple[float, float]] = []
    with (
        (folder / "output.txt").open("wb") as output,
        ended(
            subprocess.Popen(
                command, cwd=folder, env=environment(), stdin=subprocess.DEVNULL, stdout=output, stderr=output
            )
        ) as parent,
    ):
        for attempt in range(1, deaths + 1):
            wait_for(lambda a=attempt: ready(journal(folder), a), parent)  # type: ignore[misc]
            time.sleep(0.05 + 0.1 * rng.random())
            launched = [record for record in journal(folder) if record["event"] == "launched"]
            killed.append(_kill(launched[-1]["pid"]))
        wait_for((folder / f"started-{deaths + 1}").exists, parent)
        time.sleep(0.1)
    return [_death(folder, marks, attempt, *times) for attempt, times in enumerate(killed, 1)]


def _kill(pid: int) -> tuple[float, float]:
    """When it was killed, and when a pidfd told so."""
    fd = os.pidfd_open(pid)
    watch = select.poll()
    watch.register(fd, select.POLLIN)
    killed = time.monotonic()
    os.kill(pid, signal.SIGKILL)
    watch.poll()
    dead = time.monotonic()
    os.close(fd)
    return killed, dead


def _death(folder: Path, marks: Path, attempt: int, killed: float, dead: float) -> Death:
    """What followed the kill of `attempt`, from the stopwatch's marks."""
    lines = [json.loads(line) for line in marks.read_bytes().splitlines()]
    at = {line["what"]: line["at"] for line in lines if line["attempt"] == attempt}
    (backoff,) = (r["delay"] for r in journal(folder) if r["event"] == "relaunch" and r["attempt"] == attempt + 1)
    return Death(
        limit=dead - killed,
        noticed=at["ChildExited"] - killed,
        swept=at["Settle done"] - killed,
        settled=at["Settled"] - killed,
        decided=at["Relaunch done"] - killed,
        launching=at["Launch"] - killed,
        spawned=at["Launch done"] - killed,
        started=float((folder / f"started-{attempt + 1}").read_text()) - killed,
        backoff=backoff,
    )


LONG = ("--epochs", "100000", "--batch-size", "8")  # so that EarlyStopping does not end it while it is measured
STAGES = ("started", "imported", "first step begins", "first step")


def _to_first_step(report: Report, folder: Path, kills: int) -> None:
    """The digits example: how long until it trains, alone, and after a kill in mid-training."""
    tell("digits example: the script alone")
    alone = [_alone(folder / f"alone{number}") for number in range(kills + 1)][
        1:
    ]  # the first one fills the disk's cache
    cold_start = statistics.median(alone)
    report.add("digits example alone: exec → first step", "ms", [1000 * value for value in alone])
    ours = [ksupervise(), "--every", "2s"]
    ways: dict[str, tuple[list[str], str, float | None]] = {
        "shell loop and BackupAndRestore": (["sh", "-c", 'while ! "$@"; do :; done', "loop"], "digits_backup.py", None),
        "ksupervise": (ours, "", 1.1),
        "ksupervise --standby": ([*ours, "--standby"], "", 0.5),
    }
    for number, (way, (front, script, bound)) in enumerate(ways.items()):
        tell(f"digits example: {way}")
        path = WORKLOADS / script if script else EXAMPLES / "digits_cnn.py"
        lives = _lives(folder / f"way{number}", front, path, kills, warm="--standby" in front)
        _enter_lives(report, way, lives, cold_start, bound)


def _enter_lives(
    report: Report, way: str, lives: Sequence[dict[str, float]], cold_start: float, bound: float | None
) -> None:
    def add(what: str, values: Sequence[float]) -> None:
        report.add(what, "ms", [1000 * value for value in values])

    add(f"{way}: kill → first step", [life["first step"] for life in lives])
    before = ""
    for stage in (*(("noticed", "launched") if "launched" in lives[0] else ()), *STAGES):
        add(f"  {before or 'kill'} → {stage}", [life[stage] - (life[before] if before else 0) for life in lives])
        before = stage
    ratios = [life["first step"] / cold_start for life in lives]
    report.add("  ÷ the script alone", "", ratios, None if bound is None else ("≤", bound))
    report.raw[way] = list(lives)


def _alone(folder: Path) -> float:
    """Seconds from the script's exec to the end of its first step."""
    folder.mkdir()
    marks = folder / "marks.jsonl"
    began = time.monotonic()
    with _started([], EXAMPLES / "digits_cnn.py", folder) as process:
        wait_for(lambda: _marked(marks, "first step", 1), process)
        process.kill()
    return float(_marked(marks, "first step", 1)["at"]) - began


def _lives(folder: Path, front: list[str], script: Path, kills: int, *, warm: bool) -> list[dict[str, float]]:
    """What followed each kill, in seconds after it. A kill waits for something to go back to, and for the standby."""
    folder.mkdir()
    marks = folder / "marks.jsonl"
    found = []
    with _started(front, script, folder) as process:
        for life in range(1, kills + 1):
            pid = wait_for(lambda n=life: _marked(marks, "third step", n), process)["pid"]  # type: ignore[misc]
            wait_for(lambda n=life: _may_be_killed(folder, n, warm=warm), process)  # type: ignore[misc]
            killed = time.monotonic()
            os.kill(pid, signal.SIGKILL)
            wait_for(lambda n=life: _marked(marks, "third step", n + 1), process)  # type: ignore[misc]
            times = {stage: _marked(marks, stage, life + 1)["at"] - killed for stage in STAGES}
            for event, stage in (("attempt_ended", "noticed"), ("launched", "launched")):
                for record in journal(folder):
                    number = record.get("attempt") if event == "launched" else record.get("attempt", 0) + 1
                    if record["event"] == event and number == life + 1:
                        times[stage] = record["mono"] - killed
            found.append(times)
        process.send_signal(signal.SIGTERM if front and "sh" not in front else signal.SIGKILL)
        if "sh" in front:
            os.kill(_marked(marks, "third step", kills + 1)["pid"], signal.SIGKILL)
    return found


def _may_be_killed(folder: Path, life: int, *, warm: bool) -> bool:
    records = journal(folder)
    if not records:  # the shell loop: not in the middle of a save, from which BackupAndRestore cannot come back
        saves = list((folder / "out" / "backup").glob("*"))
        return len(saves) > 1 and 0.2 < time.time() - max(save.stat().st_mtime for save in saves) < 0.6
    saved = any(record["event"] == "committed" and record["attempt"] == life for record in records)
    ready = any(
        record["event"] == "standby" and record["what"] == "warm" and record["next"] == life + 1 for record in records
    )
    return saved and (ready or not warm)


def _started(front: list[str], script: Path, folder: Path) -> AbstractContextManager[subprocess.Popen[bytes]]:
    command = [*front, sys.executable, str(WORKLOADS / "phases.py"), "marks.jsonl", str(script), *LONG]
    with (folder / "output.txt").open("wb") as output:
        return ended(
            subprocess.Popen(
                command, cwd=folder, env=environment(), stdin=subprocess.DEVNULL, stdout=output, stderr=output
            )
        )


def _marked(marks: Path, what: str, life: int) -> Any:
    """The mark of that life, None as long as there is none."""
    lines = marks.read_text().splitlines() if marks.exists() else []
    found = [mark for mark in map(json.loads, lines) if mark["what"] == what]
    return found[life - 1] if len(found) >= life else None
