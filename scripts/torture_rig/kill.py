"""`scripts/torture kill`: jobs that are killed at chosen moments, and what is left of them.

Every run is one small training, supervised, hit one to four times (child or parent, SIGKILL or SIGTERM) inside a
training step, a stage, a commit, a validation, or anywhere. It must end with the weights and History of the undisturbed
job, and a counter that the job itself keeps must show that nothing was trained twice but the loss that the
journal admits. Most attempts are forks of a warm zygote; some runs are cold.
"""

from __future__ import annotations

import argparse
import collections
import concurrent.futures
import contextlib
import hashlib
import itertools
import json
import mmap
import os
import random
import shutil
import signal
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
JOB, ZYGOTE = HERE / "job.py", HERE / "zygote.py"
RECORD = struct.Struct("<qd")
EVERY = 1.0  # seconds: --every
PHASES = {"train": 1, "validation": 2, "stage": 3}  # wire.PHASE_*
# Where to hit: shares of all hits. Stages, commits and validations are short, so they are aimed at.
PLACES = {"train": 0.40, "stage": 0.15, "commit": 0.15, "validation": 0.17, "anywhere": 0.13}
PATIENCE = 120.0  # seconds until something that should happen counts as a hang


@dataclass
class Hit:
    """One kill: whom, with what, where it was aimed and where it landed."""

    who: str
    signal: str
    aim: str
    landed: str = ""


@dataclass
class Outcome:
    """What one run came to. `problems` is empty for a good one."""

    seed: int
    cold: bool
    hits: list[Hit] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    attempts: int = 0
    executed: int = 0
    counted: int = 0
    lost: int = 0
    longest_loss: float = 0.0
    resumed: int = 0


class Live:
    """The control page of the newest attempt, read without a system call."""

    def __init__(self, run: Path) -> None:
        self._run = run
        self._number = 0
        self._words: memoryview | None = None

    def look(self, number: int) -> memoryview | None:
        """The page's words for attempt `number`, None until there is one."""
        if self._number != number:
            path = self._run / "attempts" / f"{number:03d}" / "live"
            with contextlib.suppress(OSError, ValueError), open(path, "rb") as stream:
                page = mmap.mmap(stream.fileno(), 4096, access=mmap.ACCESS_READ)
                self._words, self._number = memoryview(page).cast("Q"), number
                return self._words
            return None
        return self._words


class Run:
    """One supervised job and its tormentor."""

    def __init__(self, folder: Path, seed: int, socket: Path | None) -> None:
        self.folder = folder
        self.random = random.Random(seed)
        self.outcome = Outcome(seed, cold=socket is None)
        self.run_dir = folder / "store" / "job"
        self.live = Live(self.run_dir)
        launcher = [sys.executable] + ([str(ZYGOTE), str(socket)] if socket else [])
        job = [str(JOB), "--count", str(folder / "count"), "--out", str(folder / "out")]
        options = ["--store", str(folder / "store"), "--name", "job", "--every", f"{EVERY}s", "--max-failures", "5"]
        self.command = [sys.executable, "-m", "ksupervise", *options, *launcher, *job]
        self.process: subprocess.Popen[bytes] | None = None
        self._hit_attempt = 0
        self._looked = 0.0

    def torment(self, planned: Expected) -> Outcome:
        """Start, hit, restart, and judge."""
        try:
            self._start()
            for _ in range(self.random.choice((1, 2, 2, 3, 3, 4))):
                if not self._hit():
                    break
            self._finish()
            self._judge(planned)
        except Exception as error:
            self.outcome.problems.append(f"{type(error).__name__}: {error}")
        finally:
            self._end()
        return self.outcome

    def _start(self) -> None:
        with open(self.folder / "console", "ab") as console:
            self.process = subprocess.Popen(
                self.command, stdin=subprocess.DEVNULL, stdout=console, stderr=console, cwd=self.folder
            )

    def _records(self, event: str) -> list[dict[str, Any]]:
        with contextlib.suppress(OSError):
            lines = (self.run_dir / "journal.jsonl").read_bytes().split(b"\n")
            records = [json.loads(line) for line in lines if event.encode() in line]
            return [record for record in records if record["event"] == event]
        return []

    def _attempt(self) -> int:
        launched = self._records("launched")
        return int(launched[-1]["attempt"]) if launched else 0

    def _hit(self) -> bool:
        """One aimed kill. False if the job was over first."""
        assert self.process is not None
        number = self._await_attempt(self._hit_attempt)
        if not number:
            return False
        aim = self.random.choices(list(PLACES), list(PLACES.values()))[0]
        if not self._aim(number, aim):
            return False
        who, name = self.random.choice(("child", "child", "parent")), self.random.choice(("KILL", "KILL", "TERM"))
        hit = Hit(who, name, aim, self._landed(number))
        if not self._fire(number, hit):
            return False
        self.outcome.hits.append(hit)
        self._hit_attempt = number
        if who == "parent":
            self._restart()
        return True

    def _await_attempt(self, after: int) -> int:
        end = time.monotonic() + PATIENCE
        while time.monotonic() < end:
            number = self._attempt()
            if number > after:
                return number
            if self.process is not None and self.process.poll() is not None:
                return 0
            time.sleep(0.002)
        raise TimeoutError(f"no attempt after {after}")

    def _aim(self, number: int, aim: str) -> bool:
        """Wait for the moment; False if the attempt was over before it came."""
        if aim == "anywhere":
            return self._wait(self.random.uniform(0.0, 8.0 if self.outcome.cold else 4.0))
        steps = self.random.randint(1, 150)
        end = time.monotonic() + PATIENCE
        while time.monotonic() < end:
            words = self.live.look(number)
            if words is not None and words[21] >= steps and self._is_there(words, aim):
                delay = {"train": 0.02, "validation": 0.04}.get(aim, 0.003)
                until = time.monotonic() + self.random.uniform(0.0, delay)
                while time.monotonic() < until:
                    pass
                if self._is_there(words, aim):
                    return True
            if words is None or words[21] < steps:
                time.sleep(0.001)
            if self.process is not None and self.process.poll() is not None:
                return False
            if self._attempt_over(number):
                return self._is_alive()
        raise TimeoutError(f"never saw {aim} in attempt {number}")

    def _attempt_over(self, number: int) -> bool:
        """Looked at rarely: it reads the journal."""
        now = time.monotonic()
        if now - self._looked < 0.2:
            return False
        self._looked = now
        return any(record.get("attempt") == number for record in self._records("attempt_ended"))

    def _is_alive(self) -> bool:
        return self.process is not None and self.process.poll() is None

    def _wait(self, seconds: float) -> bool:
        assert self.process is not None
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(seconds)
        return self._is_alive()

    def _is_there(self, words: memoryview, aim: str) -> bool:
        if aim == "commit":
            with contextlib.suppress(OSError):
                return any(True for _ in os.scandir(self.run_dir / "tmp"))
            return False
        return bool(words[16] == PHASES[aim])

    def _landed(self, number: int) -> str:
        words = self.live.look(number)
        if words is None or not words[17]:
            return "outside fit"
        if words[16] != PHASES["stage"] and self._is_there(words, "commit"):
            return "commit"
        names = {phase: name for name, phase in PHASES.items()}
        return names.get(words[16], "outside fit")

    def _fire(self, number: int, hit: Hit) -> bool:
        assert self.process is not None
        pid = self.process.pid
        if hit.who == "child":
            ours = [r for r in self._records("claimed") + self._records("launched") if r.get("attempt") == number]
            pid = ours[0]["pid"] if ours else 0
        try:
            os.kill(pid, getattr(signal, f"SIG{hit.signal}")) if pid else None
        except ProcessLookupError:
            return False
        return bool(pid)

    def _restart(self) -> None:
        assert self.process is not None
        code = self.process.wait(PATIENCE)
        if code == 0:
            return
        if self.outcome.hits[-1].signal == "TERM" and code != 75:
            self.outcome.problems.append(f"the parent left a SIGTERM with {code}, not 75")
        self._start()

    def _finish(self) -> None:
        assert self.process is not None
        code = self.process.wait(2 * PATIENCE)
        if code != 0:
            self.outcome.problems.append(f"exit code {code}")

    def _status(self) -> dict[str, Any]:
        command = [sys.executable, "-m", "ksupervise", "status", "--store", str(self.folder / "store"), "job", "--json"]
        answer = subprocess.run(command, capture_output=True, check=True, timeout=PATIENCE)
        return dict(json.loads(answer.stdout))

    def _judge(self, planned: Expected) -> None:
        out, say = self.outcome, self.outcome.problems.append
        status = self._status()
        out.attempts, out.executed, out.lost = status["attempt"], status["steps_executed"], status["lost_steps"]
        counted = list(RECORD.iter_unpack((self.folder / "count").read_bytes()))
        out.counted = len(counted)
        found = Expected.of(self.folder, 0)
        if found.digest != planned.digest:
            say("the final weights differ")
        if found.history != planned.history:
            say("the History differs")
        if not planned.steps <= out.counted <= planned.steps + out.lost:
            say(f"{out.counted} steps counted, planned {planned.steps}, lost {out.lost} by the journal")
        if out.executed != planned.steps + out.lost:
            say(f"{out.executed} steps executed by the journal, planned {planned.steps}, lost {out.lost}")
        out.resumed = sum(1 for attempt in status["attempts"] if (attempt["resumed_from"] or 0) > 0)
        self._judge_resumes(status)
        self._judge_losses(status, counted)
        self._judge_leftovers()

    def _judge_resumes(self, status: dict[str, Any]) -> None:
        """Every attempt after the first checkpoint resumed from one."""
        committed = self._records("committed")
        first = committed[0]["attempt"] if committed else None
        for attempt in status["attempts"]:
            trained = attempt["first_step"] is not None
            if first is not None and attempt["number"] > first and trained and not attempt["resumed_from"]:
                self.outcome.problems.append(f"attempt {attempt['number']} began from nothing after a checkpoint")

    def _judge_losses(self, status: dict[str, Any], counted: list[tuple[int, float]]) -> None:
        """No loss is longer than the interval between two stages and the step or validation in hand."""
        pids = {record["attempt"]: record["pid"] for record in self._records("claimed")}
        for attempt in status["attempts"]:
            times = [at for pid, at in counted if pid == pids.get(attempt["number"])]
            lost = attempt["lost_steps"]
            if not lost or not times or lost >= len(times):
                continue
            seconds = times[-1] - times[-1 - lost]
            gap = max((b - a for a, b in itertools.pairwise(times)), default=0.0)
            self.outcome.longest_loss = max(self.outcome.longest_loss, seconds)
            if seconds > EVERY + 2 * gap + 0.25:
                self.outcome.problems.append(
                    f"attempt {attempt['number']} lost {seconds:.2f} s of work, the interval is {EVERY} s"
                )

    def _judge_leftovers(self) -> None:
        left = [entry.name for entry in os.scandir(self.run_dir / "tmp")]
        if left:
            self.outcome.problems.append(f"left in tmp/: {left}")
        strays = list(processes_of(self.run_dir))
        if strays:
            self.outcome.problems.append(f"processes left: {strays}")

    def _end(self) -> None:
        if self.process is not None and self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        for pid in processes_of(self.run_dir):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


def processes_of(run_dir: Path) -> Iterator[int]:
    """Processes that carry the run's mark in their environment."""
    mark = f"KSUPERVISE_RUN_DIR={run_dir}".encode()
    for entry in os.scandir("/proc"):
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                if mark in Path(entry.path, "environ").read_bytes().split(b"\0"):
                    yield int(entry.name)


@dataclass(frozen=True)
class Expected:
    """What an undisturbed job leaves."""

    digest: str
    history: str
    steps: int

    @classmethod
    def of(cls, folder: Path, steps: int) -> Expected:
        """Read from a folder that a job wrote to."""
        digest = subprocess.run(
            [sys.executable, str(HERE.parent / "weights_digest.py"), str(folder / "out.weights.h5")],
            capture_output=True,
            check=True,
            text=True,
        ).stdout.split()[0]
        return cls(digest, hashlib.sha256((folder / "out.history").read_bytes()).hexdigest(), steps)


def plain_job(folder: Path) -> Expected:
    """Run the job without ksupervise."""
    command = [sys.executable, str(JOB), "--count", str(folder / "count"), "--out", str(folder / "out")]
    with open(folder / "console", "wb") as console:
        subprocess.run(command, check=True, stdout=console, stderr=console, timeout=600)
    return Expected.of(folder, (folder / "count").stat().st_size // RECORD.size)


@contextlib.contextmanager
def zygote(folder: Path) -> Iterator[Path]:
    """A warm zygote's socket."""
    socket = folder / "zygote.sock"
    with open(folder / "zygote.log", "wb") as log:
        process = subprocess.Popen(
            [sys.executable, str(ZYGOTE), "serve", str(socket)], stdout=subprocess.PIPE, stderr=log, text=True
        )
    try:
        assert process.stdout is not None
        if process.stdout.readline().strip() != "ready":
            raise RuntimeError((folder / "zygote.log").read_text())
        yield socket
    finally:
        process.kill()
        process.wait()


def main() -> int:
    """Run, print, and return 1 if anything went wrong."""
    parser = argparse.ArgumentParser(prog="scripts/torture kill", description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--runs", type=int, default=20)
    parser.add_argument("--seed", type=int, default=None, help="of the first run; each run has the next")
    parser.add_argument("--cold", type=int, default=None, help="runs with cold interpreters (default: a tenth)")
    parser.add_argument("--jobs", type=int, default=2, help="runs at a time")
    parser.add_argument("--keep", action="store_true", help="leave the folders of failed runs")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    seed = args.seed if args.seed is not None else random.SystemRandom().randrange(10**6)
    cold = args.cold if args.cold is not None else max(1, args.runs // 10)
    base = Path(tempfile.mkdtemp(prefix="torture-"))
    try:
        return torture(base, args.runs, seed, cold, args.jobs, keep=args.keep, as_json=args.json)
    finally:
        if not args.keep:
            shutil.rmtree(base, ignore_errors=True)


def torture(base: Path, runs: int, seed: int, cold: int, jobs: int, *, keep: bool, as_json: bool) -> int:
    """All runs; the exit code."""
    began = time.monotonic()
    (base / "plain").mkdir()
    planned = plain_job(base / "plain")
    stream = sys.stderr if as_json else sys.stdout

    def say(text: str) -> None:
        print(text, file=stream, flush=True)

    say(f"undisturbed: {planned.steps} steps, weights {planned.digest[:12]}")
    outcomes: list[Outcome] = []
    with zygote(base) as socket, concurrent.futures.ThreadPoolExecutor(jobs) as pool:

        def one(index: int) -> Outcome:
            folder = base / f"run{index}"
            folder.mkdir()
            outcome = Run(folder, seed + index, None if index < cold else socket).torment(planned)
            if not (outcome.problems and keep):
                shutil.rmtree(folder, ignore_errors=True)
            return outcome

        for outcome in pool.map(one, range(runs)):
            outcomes.append(outcome)
            hits = " ".join(f"{h.who}:{h.signal}@{h.landed.replace(' ', '-')}" for h in outcome.hits) or "none"
            flaw = "".join(f"\n    FAILED: {problem}" for problem in outcome.problems)
            kind = "cold" if outcome.cold else "warm"
            say(f"{len(outcomes):>4}/{runs} {kind} seed {outcome.seed}: {outcome.attempts} attempts, {hits}{flaw}")
    return summary(outcomes, planned, time.monotonic() - began, as_json=as_json)


def summary(outcomes: list[Outcome], planned: Expected, seconds: float, *, as_json: bool) -> int:
    """Print the counts; 1 if a run failed."""
    hits = [hit for outcome in outcomes for hit in outcome.hits]
    places = collections.Counter(hit.landed for hit in hits)
    kinds = collections.Counter(f"{hit.who} {hit.signal}" for hit in hits)
    failed = [outcome for outcome in outcomes if outcome.problems]
    inside = len(hits) - places["outside fit"]
    share = {
        "inside fit": inside,
        "stage or commit": places["stage"] + places["commit"],
        "validation": places["validation"],
        "outside fit": places["outside fit"],
    }
    counted = sum(outcome.counted for outcome in outcomes)
    facts: dict[str, object] = {
        "runs": len(outcomes),
        "cold": sum(outcome.cold for outcome in outcomes),
        "failed": len(failed),
        "hits": len(hits),
        "kinds": dict(kinds),
        "landed": dict(places),
        "attempts": sum(outcome.attempts for outcome in outcomes),
        "resumed": sum(outcome.resumed for outcome in outcomes),
        "planned_steps": planned.steps,
        "steps_counted": counted,
        "steps_lost": sum(outcome.lost for outcome in outcomes),
        "longest_loss_s": round(max((outcome.longest_loss for outcome in outcomes), default=0.0), 3),
        "seconds": round(seconds, 1),
    }
    if as_json:
        print(json.dumps({**facts, "problems": {o.seed: o.problems for o in failed}}))
        return 1 if failed else 0
    print(f"\nruns {facts['runs']} (cold {facts['cold']}), attempts {facts['attempts']}, resumed {facts['resumed']}")
    print("hits " + ", ".join(f"{count} {kind}" for kind, count in kinds.most_common()))
    percent = {name: 100 * count / max(1, len(hits)) for name, count in share.items()}
    print("landed " + ", ".join(f"{name} {value:.0f}%" for name, value in percent.items()))
    print(
        f"steps counted {counted} = {planned.steps} planned x {len(outcomes)} + "
        f"{counted - planned.steps * len(outcomes)}; the journals admit {facts['steps_lost']} lost; "
        f"longest loss {facts['longest_loss_s']} s (interval {EVERY} s)"
    )
    for outcome in failed:
        print(
            f"FAILED: scripts/torture kill --runs 1 --seed {outcome.seed}{' --cold 1' if outcome.cold else ' --cold 0'}"
        )
    print(f"kill torture: {len(outcomes) - len(failed)} good, {len(failed)} bad, {seconds:.0f} s")
    return 1 if failed else 0


if __name__ == "__main__":
    raise SystemExit(main())
