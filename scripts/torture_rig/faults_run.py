"""One run of `scripts/torture faults`: started, hit, started again where that is right, and judged."""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import json
import os
import random
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from faults_hygiene import Holdings
from faults_list import Fault
from faults_outside import BEFORE, OUTSIDE
from kill import PHASES, RECORD, Expected, Live, processes_of
from scripts.weights_digest import digest
from tests.store.fuse import Mount

from ksupervise.report import status

HERE = Path(__file__).resolve().parent
JOB, ZYGOTE = HERE / "faults_job.py", HERE / "faults_zygote.py"
EVERY = 1.0  # seconds: --every
PATIENCE = 150.0  # seconds until something that should happen counts as a hang
STOP = threading.Event()  # all runs end at once
_TOO_MANY = 3  # attempts more than there should be that are looked at
_PHASE, _STEP, _STAGED_STEP = 16, 20, 24  # words of the control page


@dataclass
class Outcome:
    """What one run came to. `problems` is empty for a good one.

    Attributes:
        named: cause of each attempt, as the journal has it.
        detect: seconds from each fault to the end of its attempt.
        lost: steps lost by each attempt that did not complete.
        autograph: files that TensorFlow itself left in the temporary directory.
    """

    fault: Fault
    seed: int
    at: str = ""
    options: str = ""
    named: list[str] = field(default_factory=list)
    details: list[str] = field(default_factory=list)
    detect: list[float] = field(default_factory=list)
    lost: list[int] = field(default_factory=list)
    codes: list[int] = field(default_factory=list)
    state: str = ""
    leftovers: list[str] = field(default_factory=list)
    autograph: int = 0
    seconds: float = 0.0
    problems: list[str] = field(default_factory=list)

    def facts(self) -> dict[str, Any]:
        """For --json."""
        facts = {name: value for name, value in vars(self).items() if name != "fault"}
        return {"fault": self.fault.name, **facts}


def environment(fault: Fault, folder: Path, at: str = "") -> dict[str, str]:
    """The script's."""
    (folder / "tmp").mkdir(exist_ok=True)
    ours = {
        "FAULT": fault.act,
        "FAULT_AT": at,
        "FAULT_TIMES": str(fault.times),
        "FAULT_DIR": str(folder),
        "FAULT_DATA": fault.data,
        "FAULT_PACE": str(fault.pace),
        "FAULT_SECONDS": str(fault.seconds),
        "TMPDIR": str(folder / "tmp"),
        "TF_CPP_MIN_LOG_LEVEL": "3",
    }
    return {**os.environ, **ours}


def script(fault: Fault, folder: Path, zygote: Path | None) -> list[str]:
    """The command that is supervised."""
    launcher = [sys.executable] if zygote is None else [sys.executable, "-I", "-S", str(ZYGOTE), str(zygote)]
    if fault.script:
        path = folder / "train.py"
        path.write_text(fault.script)
        return [*launcher, str(path)]
    arguments = ["--count", str(folder / "count"), "--out", str(folder / "out"), *fault.arguments]
    return [*launcher, str(JOB), *arguments]


def results(folder: Path, steps: int) -> Expected:
    """What a script left, with the steps that it took."""
    history = hashlib.sha256((folder / "out.history").read_bytes()).hexdigest()
    return Expected(digest(str(folder / "out.weights.h5")), history, steps)


class Run:
    """One supervised job and what happens to it.

    Attributes:
        numbers: of the place where the fault is.
        launcher: what ksupervise is started through.
        first: more of ksupervise's options, for its first life only.
        between: what is done once a ksupervise has ended.
        undo: what is done in the end.
        mount: a file system that can hang.
    """

    def __init__(self, fault: Fault, folder: Path, seed: int, zygote: Path | None) -> None:
        self.fault = fault
        self.folder = folder
        self.run_dir = folder / "store" / "job"
        self.random = random.Random(f"{seed}-{fault.name}")
        self.outcome = Outcome(fault, seed)
        self.numbers, self.outcome.at = self._place()
        self.options = list(self.random.choice(fault.options))
        self.outcome.options = " ".join(self.options)
        self.zygote = zygote if fault.warm else None
        self.launcher: list[str] = []
        self.first: list[str] = []
        self.between: list[Callable[[], None]] = []
        self.undo = contextlib.ExitStack()
        self.mount: Mount | None = None
        self.trainer = 0
        self._live = Live(self.run_dir)
        self._moments: list[float] = []
        self._holdings = Holdings(self.run_dir)
        self._process: subprocess.Popen[bytes] | None = None
        self._looked = 0.0

    def _place(self) -> tuple[tuple[int, ...], str]:
        kind, *ranges = self.random.choice(self.fault.places).split(":")
        numbers = []
        for text in ranges:
            low, _, high = text.partition("-")
            numbers.append(self.random.randint(int(low), int(high or low)))
        return tuple(numbers), ":".join([kind, *map(str, numbers)])

    # What the outside needs

    @property
    def parent(self) -> int:
        """ksupervise's process."""
        assert self._process is not None
        return self._process.pid

    def strike(self, action: Callable[[], object]) -> None:
        """Do it, and note when."""
        self._moments.append(time.monotonic())
        action()

    def wait(self, condition: Callable[[], bool], what: str) -> None:
        """Until it holds. Raises TimeoutError."""
        end = time.monotonic() + PATIENCE
        while not condition():
            if time.monotonic() > end:
                raise TimeoutError(f"waited for {what}")
            if STOP.is_set():
                raise InterruptedError("interrupted")
            time.sleep(0.005)

    def staged(self) -> int:
        """Step of the newest stage."""
        words = self._live.look(len(self._of("launched")))
        return 0 if words is None else words[_STAGED_STEP]

    def is_dead(self, pid: int) -> bool:
        """Gone, or not collected yet."""
        with contextlib.suppress(OSError):
            return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] in "ZX"
        return True

    def say(self, words: bytes) -> None:
        """To whoever reads ksupervise's stdin."""
        assert self._process is not None
        assert self._process.stdin is not None
        self._process.stdin.write(words)
        self._process.stdin.flush()

    # The run

    def torment(self, planned: Expected | None) -> Outcome:
        """All of it. `planned`: what the undisturbed script leaves."""
        began = time.monotonic()
        with self.undo:
            try:
                if self.fault.before:
                    BEFORE[self.fault.before](self)
                for life, code in enumerate(self.fault.lives):
                    self._live_through(life, code)
                self._judge(planned)
            except Exception as error:
                self.outcome.problems.append(f"{type(error).__name__}: {error}")
            finally:
                self._end()
        self.outcome.seconds = round(time.monotonic() - began, 1)
        return self.outcome

    def _live_through(self, life: int, expected: int | None) -> None:
        self._start(life)
        if life == 0 and self.fault.outside:
            self.wait(lambda: bool(self._fired()) or self._is_over(), "the place of the fault")
            if self._is_over():
                raise RuntimeError(f"it ended with {self._exit_code()} before the place of the fault")
            self.trainer = self._fired()[0]["pid"]
            self._holdings.note(self.parent)
            OUTSIDE[self.fault.outside](self)
        self.wait(lambda: self._is_over() or self._is_endless(), "the end of ksupervise")
        code = self._exit_code()
        self.outcome.codes.append(code)
        if code != (-signal.SIGKILL if expected is None else expected):
            self.outcome.problems.append(f"exit code {code} of ksupervise, {expected} is right")
        for then in self.between:
            then()
        self.between.clear()
        if expected is not None:
            self._clean()

    def _start(self, life: int) -> None:
        extra = self.first if life == 0 else list(self.fault.again)
        options = ["--store", str(self.run_dir.parent), "--name", "job", "--every", f"{EVERY}s", "--grace", "10s"]
        supervise = [sys.executable, "-m", "ksupervise", *options, *self.options, *extra, "--"]
        command = [*self.launcher, *supervise, *script(self.fault, self.folder, self.zygote)]
        with open(self.folder / "console", "ab") as console:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE if self.fault.outside == "answer" else subprocess.DEVNULL,
                stdout=console,
                stderr=console,
                cwd=self.folder,
                env=environment(self.fault, self.folder, self.outcome.at),
                start_new_session=True,
            )

    def _is_over(self) -> bool:
        assert self._process is not None
        self._holdings.note(self._process.pid)
        return self._process.poll() is not None

    def _is_endless(self) -> bool:
        """It was launched far too often: no need to see more of it. It is ended."""
        now = time.monotonic()
        if now - self._looked > 0.5:
            self._looked = now
            if len(self._of("launched")) > len(self.fault.causes) + _TOO_MANY:
                self._flaw("it would have gone on; it was ended")
                self._kill_parent()
                return True
        return False

    def _kill_parent(self) -> None:
        assert self._process is not None
        if self._process.poll() is None:
            self._process.kill()
            self._process.wait()

    def _exit_code(self) -> int:
        assert self._process is not None
        return self._process.returncode

    def _fired(self) -> list[dict[str, Any]]:
        with contextlib.suppress(FileNotFoundError):
            return [json.loads(line) for line in (self.folder / "fired").read_text().splitlines(keepends=True)]
        return []

    def _of(self, event: str) -> list[dict[str, Any]]:
        return [record for record in self._records() if record["event"] == event]

    def _records(self) -> list[dict[str, Any]]:
        records = []
        with contextlib.suppress(FileNotFoundError):
            for line in (self.run_dir / "journal.jsonl").read_text().splitlines():
                with contextlib.suppress(ValueError):
                    records.append(json.loads(line))
        return records

    def _end(self) -> None:
        """Nothing of it goes on, whatever happened."""
        if self._process is not None:
            self._kill_parent()
        if self.mount is not None:
            self.mount.kill()
        for pid in processes_of(self.run_dir):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    # The judgement

    def _judge(self, planned: Expected | None) -> None:
        out, fault = self.outcome, self.fault
        facts = status.as_json(status.read(self.run_dir))
        out.state = facts["state"]
        out.named = [str(attempt["cause"]) for attempt in facts["attempts"]]
        out.details = [attempt["detail"] for attempt in facts["attempts"]]
        if out.state != fault.state:
            self._flaw(f"the run is {out.state}, {fault.state} is right: {facts['detail']}")
        if len(out.named) != len(fault.causes):
            self._flaw(f"{len(out.named)} attempts, {len(fault.causes)} are right")
        for number, (named, right) in enumerate(zip(out.named, fault.causes, strict=False), 1):
            if named not in right.split("|"):
                self._flaw(f"attempt {number}: cause {named}, {right} is right: {out.details[number - 1]}")
        self._judge_words()
        self._judge_console()
        self._judge_losses(facts)
        self._measure()
        if planned is not None and fault.state == "completed":
            self._judge_results(planned, facts["lost_steps"])

    def _flaw(self, text: str) -> None:
        self.outcome.problems.append(text)

    def _judge_words(self) -> None:
        out, fault = self.outcome, self.fault
        ended = [detail for named, detail in zip(out.named, out.details, strict=True) if named != "completed"]
        for detail in ended:
            if not re.search(fault.words, detail):
                self._flaw(f"/{fault.words}/ is not in the detail: {detail}")
            if fault.stacks:
                self._judge_stacks(detail)
        if fault.last_words and not (ended and re.search(fault.last_words, ended[-1])):
            self._flaw(f"/{fault.last_words}/ is not in the last detail: {ended[-1:]}")

    def _judge_stacks(self, detail: str) -> None:
        named = re.search(r"all stacks: (\S+)", detail)
        if named is None:
            self._flaw(f"no file with stacks is named: {detail}")
        elif not Path(named[1]).exists() or self.fault.stacks not in Path(named[1]).read_text():
            self._flaw(f"{named[1]} does not show {self.fault.stacks}")

    def _judge_console(self) -> None:
        text = (self.folder / "console").read_text(errors="replace")
        lines = [line for line in text.splitlines() if line.strip()]
        if self.fault.console and not re.search(self.fault.console, text):
            self._flaw(f"/{self.fault.console}/ was never said")
        last, right = (lines or [""])[-1], self.fault.last_line
        if right and ("ksupervise" in last or not re.search(right, last)):
            self._flaw(f"/{right}/ is not the last line: {last}")
        for line in lines:
            if re.search(r"ksupervise failed inside|ksupervise/(parent|core|cli)\S*\.py\", line|UnexpectedEvent", line):
                self._flaw(f"a fault of ksupervise's own: {line.strip()[:200]}")
                break

    def _judge_losses(self, facts: dict[str, Any]) -> None:
        """Nothing is lost that was staged, and what was not is no more than an interval's work."""
        records = self._of("claimed")
        times = self._counted()
        for attempt in facts["attempts"]:
            lost, number = attempt["lost_steps"], attempt["number"]
            if attempt["cause"] == "completed":
                continue
            self.outcome.lost.append(lost)
            words = self._live.look(number)
            if self.fault.lost == "any" or not lost or words is None:
                continue
            if self.fault.lost == "none" and words[_PHASE] != PHASES["validation"]:
                self._flaw(f"attempt {number} lost {lost} steps, none is right")
            kept = max(self._kept(number, words), attempt["resumed_from"] or 0)
            if lost > words[_STEP] - kept:
                self._flaw(f"attempt {number} lost {lost} steps; {words[_STEP]} were begun and {kept} held")
            pids = {record["pid"] for record in records if record["attempt"] == number}
            self._judge_loss(number, lost, [at for pid, at in times if pid in pids])

    def _kept(self, number: int, words: memoryview) -> int:
        """The newest step that cannot be lost: what was staged, or committed where the memory went too."""
        if self.fault.lost != "commit":
            return int(words[_STAGED_STEP])
        return max((each["step"] for each in self._of("committed") if each["attempt"] == number), default=0)

    def _judge_loss(self, number: int, lost: int, times: list[float]) -> None:
        if lost >= len(times):
            return
        seconds = times[-1] - times[-1 - lost]
        gap = max((b - a for a, b in itertools.pairwise(times)), default=0.0)
        if seconds > EVERY + 2 * gap + 0.25:
            self._flaw(f"attempt {number} lost {seconds:.2f} s of work, the interval is {EVERY} s")

    def _counted(self) -> list[tuple[int, float]]:
        with contextlib.suppress(FileNotFoundError):
            return list(RECORD.iter_unpack((self.folder / "count").read_bytes()))
        return []

    def _judge_results(self, planned: Expected, lost: int) -> None:
        counted = len(self._counted())
        if not planned.steps <= counted <= planned.steps + lost:
            self._flaw(f"{counted} steps counted, planned {planned.steps}, lost {lost} by the journal")
        found = results(self.folder, 0)
        if found.digest != planned.digest:
            self._flaw("the final weights differ")
        if found.history != planned.history:
            self._flaw("the History differs")

    def _measure(self) -> None:
        """The time from each fault to the end of its attempt."""
        if not self.fault.detects:
            return
        fired = [each["mono"] for each in self._fired()]
        moments = sorted([*self._moments, *(fired[1:] if self._moments else fired)])
        launched = {record["attempt"]: record["mono"] for record in self._of("launched")}
        for record in self._of("attempt_ended"):
            begun = launched.get(record["attempt"], 0.0)
            before = [moment for moment in moments if begun <= moment <= record["mono"]]
            if before and record["cause"] != "completed":
                self.outcome.detect.append(record["mono"] - before[-1])

    # What is left

    def _clean(self) -> None:
        daemon = self.folder / "daemon"
        strangers = [int(daemon.read_text())] if daemon.exists() else []
        launched = [record["pid"] for record in self._of("launched") if "pid" in record]
        autograph, left = self._holdings.left([*strangers, self.trainer], launched, self.folder / "tmp")
        self.outcome.autograph += autograph
        self.outcome.leftovers += left
        self.outcome.problems += [f"left behind: {each}" for each in left]
