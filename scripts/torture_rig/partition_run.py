"""The machines of `scripts/torture partition`, what is done to them, and how a history is judged by what they left."""

from __future__ import annotations

import contextlib
import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from kill import HERE, RECORD, Expected
from lost import HARMLESS, MARK, processes_of
from lost_places import BucketReplica, Held, held_in
from partition_net import CUTS, Deed, Deeds, Link, linked
from tests.replicas.s3_server import Server

T = TypeVar("T")

JOB = HERE / "partition_job.py"
EVERY = "1s"  # --every
KEEP = 2  # --replica-keep
SLOW, FAST = "0.35", "0"  # seconds a step: while something is to happen, and afterwards
WIDTH = "64"  # small checkpoints: it is not about their bytes
PATIENCE = 240.0  # seconds until what does not happen counts as a hang
TAKEOVER = 100.0  # seconds from a machine's start until it owns the run of one that says nothing any more
NOTICED = 200.0  # seconds until one that was superseded has stopped, counted from when it can hear of it
INTERVAL = 20.0  # seconds between an owner's signs of life
LEAST_PATIENCE = 60.0  # seconds without one after which it may be taken over
DRAINED = 75  # ksupervise's exit code for what another call goes on with
OWNER = re.compile(r".*/owner/(\d+)-([^/]+)\.\d+")  # a sign of life
SHIM = """
import os, time
_skew, _time, _time_ns = int(os.environ["TORTURE_SKEW"]), time.time, time.time_ns
time.time = lambda: _time() + _skew
time.time_ns = lambda: _time_ns() + _skew * 10**9
"""  # a sitecustomize: the wall clock of all Python on a machine


@dataclass
class Outcome:
    """What one run came to. `problems` is empty for a good one.

    Attributes:
        story: what happened, shortly.
        taken_over: seconds from a machine's start until it was the owner, of each takeover.
        noticed: seconds until a superseded owner had stopped, of each.
        late: manifests that an owner finished after it had been superseded, under its own name.
    """

    seed: int
    history: str
    story: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    taken_over: list[float] = field(default_factory=list)
    noticed: list[float] = field(default_factory=list)
    late: int = 0
    seconds: float = 0.0


@dataclass(frozen=True)
class Clocks:
    """Seconds that a machine's clocks are ahead of ours: the wall clock, and the monotonic ones (None: the same)."""

    wall: int = 0
    monotonic: int | None = None


class Machine:
    """One with a disk, a name and a link of its own."""

    def __init__(self, run: Run, name: str, link: Link, clocks: Clocks) -> None:
        self.name, self.link = name, link
        self.folder = run.folder / name
        self.folder.mkdir()
        self.run_dir = self.folder / "store" / "job"
        self.out = self.folder / "out"
        self._run, self._clocks = run, clocks
        self._pace = self.folder / "pace"
        self._lives = 0
        self.began = 0.0
        self.process: subprocess.Popen[bytes] | None = None
        self.slow()

    def start(self) -> None:
        """Train here."""
        self._lives += 1
        options = ["--store", str(self.folder / "store"), "--name", "job", "--every", EVERY]
        options += ["--replica", self._run.replica.url, "--replica-keep", str(KEEP)]
        job = [str(JOB), "--width", WIDTH, "--count", str(self.folder / "count"), "--out", str(self.out)]
        command = [sys.executable, "-m", "ksupervise", *options, sys.executable, *job]
        self.began = time.monotonic()
        with open(self._console, "wb") as console:
            self.process = subprocess.Popen(
                [*self.link.enter(self.name, self._clocks.monotonic), *command],
                stdin=subprocess.DEVNULL,
                stdout=console,
                stderr=console,
                cwd=self.folder,
                env=self._environ(),
                start_new_session=True,
            )

    def _environ(self) -> dict[str, str]:
        environ = {**os.environ, **self._run.replica.environ, "AWS_ENDPOINT_URL": self.link.url}
        environ |= {MARK: str(self.folder), "TORTURE_PACE": str(self._pace)}
        if self._clocks.wall:
            (self.folder / "sitecustomize.py").write_text(SHIM)
            path = os.pathsep.join([str(self.folder), *filter(None, [os.environ.get("PYTHONPATH")])])
            environ |= {"TORTURE_SKEW": str(self._clocks.wall), "PYTHONPATH": path}
        return environ

    @property
    def _console(self) -> Path:
        return self.folder / f"console{self._lives}"

    @property
    def words(self) -> str:
        """What its latest call has said."""
        return self._console.read_text(errors="replace")

    @property
    def last_words(self) -> str:
        """The end of that, in a line."""
        return " | ".join(self.words.splitlines()[-3:])

    def slow(self) -> None:
        """Train so slowly that there is time for things to happen."""
        self._set_pace(SLOW)

    def hurry(self) -> None:
        """Train on as fast as it goes."""
        self._set_pace(FAST)

    def _set_pace(self, seconds: str) -> None:
        fresh = self.folder / "pace.new"
        fresh.write_text(seconds)
        os.replace(fresh, self._pace)

    def records(self, *events: str) -> list[dict[str, Any]]:
        """What its journal has of these."""
        found = []
        with contextlib.suppress(FileNotFoundError):
            for line in (self.run_dir / "journal.jsonl").read_bytes().splitlines():
                with contextlib.suppress(ValueError):  # torn
                    record = json.loads(line)
                    if record["event"] in events:
                        found.append(record)
        return found

    @property
    def steps(self) -> int:
        """Steps that were trained here, all told."""
        with contextlib.suppress(FileNotFoundError):
            return (self.folder / "count").stat().st_size // RECORD.size
        return 0

    @property
    def alive(self) -> bool:
        """Its latest call runs."""
        return self.process is not None and self.process.poll() is None

    def copies(self) -> int:
        """Checkpoints that it has brought to the bucket."""
        return sum(1 for deed in self._run.deeds.all() if deed.who == self.name and deed.key.endswith("/MANIFEST.json"))

    def owned_since(self) -> float | None:
        """When this call gave its first sign of life as the owner (CLOCK_MONOTONIC)."""
        for deed in self._run.deeds.all():
            if deed.who == self.name and deed.at >= self.began and OWNER.fullmatch(deed.key) and deed.verb == "wrote":
                return deed.at
        return None

    def signal(self, number: int) -> None:
        """To everything of it."""
        for pid in processes_of(self.folder):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)

    def die(self) -> None:
        """All of it, at one moment: nobody says a word."""
        end = time.monotonic() + 10.0
        while [*processes_of(self.folder)] and time.monotonic() < end:
            self.signal(signal.SIGKILL)
            time.sleep(0.02)
        if self.process is not None:
            self.process.kill()
            self.process.wait()


class Run:
    """One history."""

    def __init__(self, folder: Path, seed: int, replica: BucketReplica, outcome: Outcome, server: Server) -> None:
        self.folder = folder
        self.random = random.Random(seed)
        self.replica = replica
        self.outcome = outcome
        self.deeds = Deeds()
        self.machines: list[Machine] = []
        self._server = server
        self._ends = contextlib.ExitStack()
        self._began = time.monotonic()

    def torment(self, history: Callable[[Run], Machine], planned: Expected) -> None:
        """Play it, and judge."""
        try:
            self._judge(history(self), planned)
        except Exception as error:
            self.problem(f"{type(error).__name__}: {error}")
        finally:
            for machine in self.machines:
                machine.die()
            self._ends.close()
            self.outcome.problems += self.replica.flaws
            self.outcome.seconds = time.monotonic() - self._began

    def machine(self, name: str, clocks: Clocks | None = None) -> Machine:
        """A new one, with an empty disk."""
        link = self._ends.enter_context(linked(self._server, name, self.deeds))
        self.machines.append(Machine(self, name, link, clocks or Clocks()))
        return self.machines[-1]

    def say(self, text: str) -> None:
        """To the story."""
        self.outcome.story.append(f"{time.monotonic() - self._began:.0f} s {text}")

    def problem(self, text: str) -> None:
        """Something is not as it should be."""
        self.outcome.problems.append(f"{time.monotonic() - self._began:.0f} s: {text}")

    def until(self, found: Callable[[], T | None], what: str, seconds: float = PATIENCE) -> T:
        """The first true answer. Raises TimeoutError."""
        end = time.monotonic() + seconds
        while not (answer := found()):
            if time.monotonic() > end:
                raise TimeoutError(f"no {what} within {seconds:.0f} s: {self._whole_state()}")
            time.sleep(0.05)
        return answer

    def _whole_state(self) -> str:
        return "; ".join(f"{each.name}: {each.last_words}" for each in self.machines if each.process)

    def pause(self, least: float, most: float) -> None:
        """Let some time go by: what happens to the machines happens at any moment."""
        time.sleep(self.random.uniform(least, most))

    def train(self, machine: Machine, copies: int) -> None:
        """Start it, and let it bring so many checkpoints to the bucket."""
        before = machine.copies()
        machine.start()
        self.await_copies(machine, before + copies)
        self.say(f"{machine.name} trains")

    def await_copies(self, machine: Machine, copies: int) -> None:
        """It has brought so many, all told."""

        def there() -> bool:
            if not machine.alive and machine.copies() < copies:
                raise RuntimeError(f"{machine.name} left: {machine.last_words}")
            return machine.copies() >= copies

        self.until(there, f"{copies} copies of {machine.name}'s")

    def cut(self, machine: Machine) -> None:
        """Cut it off, one way or the other."""
        kind = self.random.choice(CUTS)
        machine.link.cut(kind)
        self.say(f"{machine.name} cut off ({kind})")

    def heal(self, machine: Machine) -> None:
        """Let it through again."""
        machine.link.heal()
        self.say(f"{machine.name} back")

    def await_takeover(self, machine: Machine, since: float | None = None, within: float = TAKEOVER) -> None:
        """It becomes the owner in bounded time, counted from its start or from `since`."""
        begun = since or machine.began

        def owned() -> float | None:
            at = machine.owned_since()
            if at is None and not machine.alive:
                raise RuntimeError(f"{machine.name} left before it owned the run: {machine.last_words}")
            return at

        seconds = self.until(owned, f"takeover by {machine.name}") - begun
        self.outcome.taken_over.append(round(seconds, 1))
        self.say(f"{machine.name} owns it")
        if seconds > within:
            self.problem(f"{machine.name} owned the run after {seconds:.0f} s, not within {within:.0f}")

    def await_superseded(self, machine: Machine) -> None:
        """It finds out that the run is another's, says so and leaves with 75."""
        began = time.monotonic()
        self.until(lambda: not machine.alive, f"end of {machine.name}, which was superseded")
        seconds = time.monotonic() - began
        assert machine.process is not None
        self.outcome.noticed.append(round(seconds, 1))
        self.say(f"{machine.name} left")
        if machine.process.returncode != DRAINED:
            self.problem(f"{machine.name} left with {machine.process.returncode}: {machine.last_words}")
        if "is owned by process" not in machine.words or "its checkpoints stay valid" not in machine.words:
            self.problem(f"{machine.name} did not say why it stopped: {machine.last_words}")
        if seconds > NOTICED:
            self.problem(f"{machine.name} stopped {seconds:.0f} s after it could know that it was superseded")

    def await_busy(self, machine: Machine) -> None:
        """It finds a living owner and leaves with 75, without a step."""
        steps = machine.steps
        self.until(lambda: not machine.alive, f"end of {machine.name}, which finds a living owner")
        assert machine.process is not None
        self.say(f"{machine.name} found it taken")
        if machine.process.returncode != DRAINED:
            self.problem(f"{machine.name} left with {machine.process.returncode}: {machine.last_words}")
        if machine.steps != steps:
            self.problem(f"{machine.name} trained {machine.steps - steps} steps of a run that it did not own")

    def await_goes_on(self, machine: Machine) -> None:
        """It brings a checkpoint more to the bucket: it owns the run as before."""
        self.await_copies(machine, machine.copies() + 1)
        self.say(f"{machine.name} goes on")

    def signs(self, machine: Machine) -> list[float]:
        """When it gave signs of life as the owner (CLOCK_MONOTONIC, seconds)."""
        found = [deed for deed in self.deeds.all() if deed.who == machine.name and deed.verb == "wrote"]
        return [deed.at for deed in found if OWNER.fullmatch(deed.key)]

    def held(self) -> Held | None:
        """The newest complete checkpoint in the bucket."""
        complete, _ = held_in(self.replica)
        return complete[-1] if complete else None

    def expect_resumed(self, machine: Machine, held: Held | None) -> None:
        """Its first attempt went on from that, or from something newer."""
        found = self.until(lambda: machine.records("resumed"), f"resume of {machine.name}")
        step = int(found[-1]["step"])
        if held is not None and step < held.step:
            self.problem(f"{machine.name} began at step {step}, the bucket had step {held.step} ({held})")

    def finish(self, machine: Machine) -> Machine:
        """Let it come to the end."""
        machine.hurry()
        self.until(lambda: not machine.alive, f"end of {machine.name}")
        assert machine.process is not None
        if machine.process.returncode != 0:
            self.problem(f"{machine.name} left with {machine.process.returncode}: {machine.last_words}")
        self.say(f"{machine.name} completed")
        return machine

    def _judge(self, winner: Machine, planned: Expected) -> None:
        found = Expected.of(winner.folder, 0)
        if found.digest != planned.digest:
            self.problem("the final weights differ")
        if found.history != planned.history:
            self.problem("the History differs")
        for machine in self.machines:
            if machine is not winner and (machine.folder / "out.history").exists():
                self.problem(f"{machine.name} came to the end, too")
            for record in machine.records("attempt_ended"):
                if record["cause"] not in (*HARMLESS, "preempted"):
                    self.problem(f"{machine.name}: attempt ended by {record['cause']}, {record['detail']}")
        self._judge_replica(planned)
        self._judge_deeds()
        self._judge_leftovers()

    def _judge_replica(self, planned: Expected) -> None:
        complete, partial = held_in(self.replica)
        finals = [each for each in complete if each.kind == "final"]
        if not any(each.step == planned.steps for each in finals):
            self.problem(f"the final state is not in the bucket: {complete}")
        if len(complete) > KEEP + len(finals):
            self.problem(f"{len(complete)} checkpoints in the bucket at the end, {KEEP} are to be kept: {complete}")
        if partial:
            self.problem(f"left half in the bucket: {partial}")

    def _judge_deeds(self) -> None:
        """Once there is a new owner, nobody else writes or removes what is its own."""
        wrote: dict[str, str] = {}
        owner = ""
        for deed in self.deeds.all():
            if deed.verb == "wrote":
                if OWNER.fullmatch(deed.key) and self._is_first_sign(deed):
                    owner = deed.who
                if owner not in ("", deed.who) and deed.key.endswith("/MANIFEST.json"):
                    self.outcome.late += 1
            whose = wrote.get(deed.key, deed.who)
            if whose != deed.who and deed.who != owner:
                self.problem(f"{deed.who} {deed.verb} {deed.key} of {whose}, while {owner} owned the run")
            if deed.verb == "wrote":
                wrote[deed.key] = deed.who

    def _is_first_sign(self, deed: Deed) -> bool:
        match = OWNER.fullmatch(deed.key)
        assert match is not None
        signs = [each for each in self.deeds.all() if each.verb == "wrote" and OWNER.fullmatch(each.key)]
        same = [each for each in signs if f"/{match[1]}-{match[2]}." in each.key]
        return deed is same[0]

    def _judge_leftovers(self) -> None:
        end = time.monotonic() + 5.0
        while (left := [pid for each in self.machines for pid in processes_of(each.folder)]) and time.monotonic() < end:
            time.sleep(0.05)
        if left:
            self.problem(f"processes left: {left}")
