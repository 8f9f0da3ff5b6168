"""`scripts/torture lost`: machines that are lost with their disks, at random moments, and runs that go on elsewhere.

Every run is one small training with a replica: a folder that goes away now and then, or a bucket behind bad weather.
Once to three times everything of it is killed at one moment and its store removed; then it goes on with an empty store,
as on another machine. It must end with the weights and History of the undisturbed job, resume each time from the newest
checkpoint that was complete in the replica, and leave neither processes nor more checkpoints than were to be kept.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import contextlib
import json
import os
import random
import shutil
import signal
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from kill import JOB, ZYGOTE, Expected, plain_job, zygote
from lost_places import BucketReplica, FolderReplica, Held, Replica, held_in
from tests.replicas.s3_server import Server, serving

RECORD = struct.Struct("<qd")
EVERY = "250ms"  # --every: there is always something on its way
KEEP = 2  # --replica-keep
KINDS = ("folder", "s3")
PATIENCE = 240.0  # seconds until a life that does not end counts as a hang
AWAY = 5  # times in a row that a machine may find the replica out of reach, and be started again
TRY_AGAIN = 75  # ksupervise's exit code for that
SETTLED = 2.0  # seconds that processes may take to go once the parent has gone
MARK = "KSUPERVISE_TORTURE_LOST"


@dataclass
class Loss:
    """A machine that was lost.

    Attributes:
        aim: what the moment was counted from.
        held: what the replica had then, None for nothing.
        reached: step that the training had come to.
        resumed: step from which the next machine that trained went on.
    """

    aim: str
    held: Held | None = None
    reached: int = 0
    resumed: int | None = None


@dataclass
class Outcome:
    """What one run came to. `problems` is empty for a good one."""

    seed: int
    kind: str
    losses: list[Loss] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    spells: int = 0
    away: int = 0
    final: bool = False
    seconds: float = 0.0


class Machine:
    """One with a disk of its own: a life of the run."""

    def __init__(self, run: Run, number: int) -> None:
        self.folder = run.folder / f"machine{number}"
        self.folder.mkdir()
        self.run_dir = self.folder / "store" / "job"
        self.console = self.folder / "console"
        self._run = run
        self.began = time.time()
        self.process: subprocess.Popen[bytes] | None = None
        options = ["--store", str(self.folder / "store"), "--name", "job", "--every", EVERY]
        options += ["--replica", run.replica.url, "--replica-keep", str(KEEP)]
        self._command = [sys.executable, "-m", "ksupervise", *options, *run.launcher, *run.job]

    def start(self) -> None:
        """Train here."""
        environ = {**os.environ, **self._run.replica.environ, MARK: str(self._run.folder)}
        with open(self.console, "ab") as console:
            self.process = subprocess.Popen(
                self._command,
                stdin=subprocess.DEVNULL,
                stdout=console,
                stderr=console,
                cwd=self._run.folder,
                env=environ,
            )

    def records(self, *events: str) -> list[dict[str, Any]]:
        """What the journal has of this life: what came from the replica happened before."""
        try:
            lines = (self.run_dir / "journal.jsonl").read_bytes().splitlines()
        except FileNotFoundError:
            return []
        found = []
        for line in lines:
            with contextlib.suppress(ValueError):  # torn
                record = json.loads(line)
                if record["event"] in events and record["at"] >= self.began:
                    found.append(record)
        return found

    def copies(self) -> int:
        """Checkpoints that the replica has taken in this life."""
        return sum(1 for record in self.records("replica") if record.get("op") == "replicated")

    def resumed(self) -> int | None:
        """Step that the first attempt here began at, None if none came so far."""
        found = self.records("resumed")
        return int(found[0]["step"]) if found else None

    def pids(self) -> set[int]:
        """Of the trainers that there were."""
        return {record["pid"] for record in self.records("claimed", "launched") if record.get("pid")}

    def lose(self) -> None:
        """Everything dies at one moment, the parent first: nobody saves anything. The disk is still there."""
        assert self.process is not None
        self.process.kill()
        quiet = 0
        while quiet < 2:  # the zygote may just be forking a trainer
            found = [*processes_of(self._run.folder)]
            for pid in found:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            quiet = 0 if found else quiet + 1
            time.sleep(0.02)
        self.process.wait()


class Run:
    """One run and what becomes of its machines."""

    def __init__(self, folder: Path, seed: int, replica: Replica, socket: Path, outcome: Outcome) -> None:
        self.folder = folder
        self.random = random.Random(seed)
        self.replica = replica
        self.launcher = [sys.executable, str(ZYGOTE), str(socket)]
        self.job = [str(JOB), "--count", str(folder / "count"), "--out", str(folder / "out")]
        self.outcome = outcome
        self._begun = 0
        self._left: tuple[list[Held], list[str]] = ([], [])

    def torment(self, planned: Expected) -> None:
        """Lose machines until it completes, and judge."""
        began = time.monotonic()
        try:
            wanted = self.random.choice((1, 2, 2, 3))
            while not self._life(lose=len(self.outcome.losses) < wanted):
                pass
            self._judge(planned)
        except Exception as error:
            self._say(f"{type(error).__name__}: {error}")
        finally:
            self._end()
            self.outcome.spells = self.replica.spells
            self.outcome.problems += self.replica.flaws
            self.outcome.seconds = time.monotonic() - began

    def _life(self, *, lose: bool) -> bool:
        """One machine's. True if the run was completed on it."""
        self._begun += 1
        self.machine = machine = Machine(self, self._begun)
        weather = self.random.random() < 0.75
        with contextlib.ExitStack() as stack:
            if weather:
                stack.enter_context(self.replica.bad_weather(lambda: machine.copies() > 0))
            machine.start()
            aim = self._await_moment(machine) if lose else ""
            if aim:
                machine.lose()
            else:
                self._await_end(machine)
        self._judge_resume(machine)
        if not aim:
            return self._completed(machine)
        complete, _ = held_in(self.replica)
        reached, _ = self._trained(machine)
        self.outcome.losses.append(Loss(aim, complete[-1] if complete else None, reached))
        self._judge_attempts(machine)
        shutil.rmtree(machine.folder / "store", ignore_errors=True)  # it may have died before there was one
        return False

    def _await_moment(self, machine: Machine) -> str:
        """What the moment of the loss was counted from, once that has come; "" if the run ended before."""
        assert machine.process is not None
        first = not self.outcome.losses
        aim = self.random.choice(("a copy", "a copy", "the start")) if not first else "a copy"
        if aim == "the start":
            wait = self.random.uniform(0.0, 8.0)
        else:
            nth, wait = self.random.randint(1, 4), self.random.uniform(0.0, 0.6)
            end = time.monotonic() + PATIENCE
            while machine.copies() < nth:
                if machine.process.poll() is not None:
                    return ""
                if time.monotonic() > end:
                    raise TimeoutError(f"machine {self._begun}: no copy {nth} came to the replica")
                time.sleep(0.01)
        with contextlib.suppress(subprocess.TimeoutExpired):
            machine.process.wait(wait)
        return "" if machine.process.poll() is not None else aim

    def _await_end(self, machine: Machine) -> None:
        """Until the parent leaves. Once the script has done its work the sky clears, for what is judged afterwards."""
        assert machine.process is not None
        end = time.monotonic() + PATIENCE
        while machine.process.poll() is None:
            if time.monotonic() > end:
                raise TimeoutError(f"machine {self._begun} does not end: {self._last_words(machine)}")
            if any(record.get("cause") == "completed" for record in machine.records("attempt_ended")):
                self.replica.calm()
            time.sleep(0.05)

    def _completed(self, machine: Machine) -> bool:
        assert machine.process is not None
        code = machine.process.returncode
        if code == 0:
            return True
        words = machine.console.read_text()
        if code == TRY_AGAIN and ("cannot be looked into" in words or "could not be fetched" in words):
            self.outcome.away += 1
            if self.outcome.away <= AWAY:
                return False
        raise RuntimeError(f"machine {self._begun} left with {code}: {self._last_words(machine)}")

    def _last_words(self, machine: Machine) -> str:
        return " | ".join(machine.console.read_text(errors="replace").splitlines()[-3:])

    def _trained(self, machine: Machine) -> tuple[int, list[float]]:
        """The step that a machine came to, and when each of its own was done."""
        pids = machine.pids()
        with contextlib.suppress(FileNotFoundError):
            data = (self.folder / "count").read_bytes()
            times = [
                at for pid, at in RECORD.iter_unpack(data[: len(data) // RECORD.size * RECORD.size]) if pid in pids
            ]
            if times:
                return (machine.resumed() or 0) + len(times), times
        return machine.resumed() or 0, []

    def _judge_resume(self, machine: Machine) -> None:
        """It went on from what the replica had when the machine before was lost, or from something newer."""
        _, times = self._trained(machine)
        at = machine.resumed()
        if not self.outcome.losses or (at is None and not times):
            return  # nothing was trained here
        before = self.outcome.losses[-1]
        before.resumed = at or 0
        held = before.held.step if before.held else 0
        if before.resumed < held:
            self._say(
                f"machine {self._begun} began at step {before.resumed}, the replica had step {held} "
                f"({before.held}) when the one before was lost at step {before.reached}"
            )

    def _judge_attempts(self, machine: Machine) -> None:
        """Nothing but us ended an attempt."""
        ended = [record for record in machine.records("attempt_ended") if record["cause"] not in HARMLESS]
        for record in ended:
            self._say(f"machine {self._begun}, attempt {record.get('attempt')}: {record['cause']}, {record['detail']}")

    def _judge(self, planned: Expected) -> None:
        self._judge_attempts(self.machine)
        found = Expected.of(self.folder, 0)
        if found.digest != planned.digest:
            self._say("the final weights differ")
        if found.history != planned.history:
            self._say("the History differs")
        reached = self._last_step()
        if reached != planned.steps:
            self._say(f"the last machine came to step {reached}, planned {planned.steps}")
        self._judge_replica(planned)
        self._judge_leftovers()

    def _last_step(self) -> int:
        """The step that the last machine came to, or found the run completed at: then it had nothing to train."""
        reached, times = self._trained(self.machine)
        before = self.outcome.losses[-1].held if self.outcome.losses else None
        if not times and self.machine.resumed() is None and before is not None and before.kind == "final":
            record = json.loads((self.machine.run_dir / "run.json").read_bytes())
            return before.step if record["state"] == "completed" else reached
        return reached

    def _judge_replica(self, planned: Expected) -> None:
        """It holds no more than is to be kept; and, if the final state came there in time, nothing half."""
        complete, partial = held_in(self.replica)
        finals = [each for each in complete if each.kind == "final"]
        self.outcome.final = any(each.step == planned.steps for each in finals)
        if len(complete) > KEEP + len(finals):
            self._say(f"{len(complete)} checkpoints in the replica at the end, {KEEP} are to be kept: {complete}")
        if not complete:
            self._say("the replica is empty at the end")
        if self.outcome.final and partial:
            self._say(f"left half in the replica: {partial}")

    def _judge_leftovers(self) -> None:
        end = time.monotonic() + SETTLED
        while (strays := list(processes_of(self.folder))) and time.monotonic() < end:
            time.sleep(0.05)
        if strays:
            self._say(f"processes left: {[*map(_command_of, strays)]}")
        for name in ("tmp", "incoming"):
            with contextlib.suppress(FileNotFoundError):
                if left := os.listdir(self.machine.run_dir / name):
                    self._say(f"left in {name}/: {left}")

    def _say(self, problem: str) -> None:
        self.outcome.problems.append(problem)

    def _end(self) -> None:
        for pid in processes_of(self.folder):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


HARMLESS = ("completed", "lost", "parent_lost")


def processes_of(folder: Path) -> Iterator[int]:
    """Processes of a run: with our mark in their environment, or, as the zygote's trainers, at home in its folder."""
    mark = f"{MARK}={folder}".encode()
    for entry in os.scandir("/proc"):
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                home = os.readlink(f"{entry.path}/cwd") == str(folder)
                if home or mark in Path(entry.path, "environ").read_bytes().split(b"\0"):
                    yield int(entry.name)


def _command_of(pid: int) -> str:
    with contextlib.suppress(OSError):
        return f"{pid} {Path(f'/proc/{pid}/cmdline').read_bytes().replace(bytes(1), b' ').decode()[:120].strip()}"
    return str(pid)


def main() -> int:
    """Run, print, and return 1 if anything went wrong."""
    parser = argparse.ArgumentParser(prog="scripts/torture lost", description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--runs", type=int, default=None, help="default: 50, with --quick 6")
    parser.add_argument("--seed", type=int, default=None, help="of the first run; each run has the next")
    parser.add_argument("--only", choices=KINDS, default=None, help="kind of the replica; else they take turns")
    parser.add_argument("--jobs", type=int, default=2, help="runs at a time")
    parser.add_argument("--quick", action="store_true", help="few runs")
    parser.add_argument("--keep", action="store_true", help="leave the folders of failed runs")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    seed = args.seed if args.seed is not None else random.SystemRandom().randrange(10**6)
    runs = args.runs if args.runs is not None else 6 if args.quick else 50
    kinds = [args.only] if args.only else list(KINDS)
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    base = Path(os.path.realpath(tempfile.mkdtemp(prefix="torture-lost-")))
    try:
        return torture(base, runs, seed, kinds, args.jobs, keep=args.keep, as_json=args.json)
    finally:
        if args.keep:
            print(f"left: {base}", file=sys.stderr)
        else:
            shutil.rmtree(base, ignore_errors=True)


def torture(base: Path, runs: int, seed: int, kinds: Sequence[str], jobs: int, *, keep: bool, as_json: bool) -> int:
    """All runs; the exit code."""
    began = time.monotonic()
    (base / "plain").mkdir()
    planned = plain_job(base / "plain")
    stream = sys.stderr if as_json else sys.stdout

    def say(text: str) -> None:
        print(text, file=stream, flush=True)

    say(f"seed {seed}; undisturbed: {planned.steps} steps, weights {planned.digest[:12]}")
    outcomes: list[Outcome] = []
    with zygote(base) as socket, serving() as server, concurrent.futures.ThreadPoolExecutor(jobs) as pool:

        def one(index: int) -> Outcome:
            kind = kinds[(seed + index) % len(kinds)]
            return one_run(base / f"run{seed + index}", seed + index, kind, socket, server, planned, keep=keep)

        for outcome in pool.map(one, range(runs)):
            outcomes.append(outcome)
            say(f"{len(outcomes):>4}/{runs} {row(outcome)}")
    return summary(outcomes, time.monotonic() - began, as_json=as_json)


def one_run(
    folder: Path, seed: int, kind: str, socket: Path, server: Server, planned: Expected, *, keep: bool
) -> Outcome:
    """One, of that kind."""
    folder.mkdir()
    outcome = Outcome(seed, kind)
    number = random.Random(f"weather {seed}")
    with contextlib.ExitStack() as stack:
        replica: Replica = (
            FolderReplica(folder, number)
            if kind == "folder"
            else stack.enter_context(BucketReplica.on(server, f"bucket-{seed}", number))
        )
        Run(folder, seed, replica, socket, outcome).torment(planned)
    if not (outcome.problems and keep):
        shutil.rmtree(folder, ignore_errors=True)
    return outcome


def row(outcome: Outcome) -> str:
    """One line, and one more for each problem."""
    losses = ", ".join(
        f"at {loss.reached} held {loss.held.step if loss.held else '-'} "
        f"resumed {'-' if loss.resumed is None else loss.resumed}"
        for loss in outcome.losses
    )
    flaws = "".join(f"\n    FAILED: {problem}" for problem in outcome.problems)
    late = "" if outcome.final or flaws else ", the final state did not get there"
    return (
        f"{outcome.kind:<6} seed {outcome.seed}: lost {losses or 'never'}; {outcome.spells} bad moments"
        f"{f', {outcome.away} times away' if outcome.away else ''}{late}, {outcome.seconds:.0f} s{flaws}"
    )


def summary(outcomes: Sequence[Outcome], seconds: float, *, as_json: bool) -> int:
    """Print the counts; 1 if a run failed."""
    failed = [outcome for outcome in outcomes if outcome.problems]
    losses = [loss for outcome in outcomes for loss in outcome.losses]
    steps = sorted(max(0, loss.reached - loss.resumed) for loss in losses if loss.resumed is not None)
    if as_json:
        facts = {
            "runs": len(outcomes),
            "good": len(outcomes) - len(failed),
            "losses": len(losses),
            "with_a_copy": sum(loss.held is not None for loss in losses),
            "steps_lost": steps,
            "bad_moments": sum(outcome.spells for outcome in outcomes),
            "away": sum(outcome.away for outcome in outcomes),
            "finals_there": sum(outcome.final for outcome in outcomes),
            "seconds": round(seconds, 1),
        }
        print(json.dumps({**facts, "problems": {outcome.seed: outcome.problems for outcome in failed}}))
        return 1 if failed else 0
    if steps:
        print(f"\nsteps lost by a loss: {steps[len(steps) // 2]} in the middle, {steps[-1]} at most")
    for outcome in failed:
        print(f"FAILED: scripts/torture lost --runs 1 --seed {outcome.seed} --only {outcome.kind}")
    print(f"machine loss: {len(outcomes) - len(failed)} of {len(outcomes)} good, {len(losses)} losses, {seconds:.0f} s")
    return 1 if failed else 0


if __name__ == "__main__":
    raise SystemExit(main())
