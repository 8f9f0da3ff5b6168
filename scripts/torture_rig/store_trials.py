"""What the parts of `scripts/torture store` share: trials, their verdicts, the table, processes and what they leave."""

from __future__ import annotations

import concurrent.futures
import contextlib
import multiprocessing.resource_tracker
import os
import random
import re
import select
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parents[1]))  # what is tortured, and a file system that fails, are shared with the tests

MARK = "KSUPERVISE_TORTURE_STORE"  # in the environment of every process that we start
PATIENCE = 120.0  # seconds until something that should happen counts as a hang
MEGA = 1_000_000


@dataclass(frozen=True)
class Verdict:
    """What one trial came to.

    Attributes:
        trial: its name within its line, by which it can be repeated.
        said: what it is counted under.
        flaw: what is wrong; empty for a good one.
        numbers: to be summed over the line.
    """

    trial: str
    said: str
    flaw: str = ""
    numbers: dict[str, int] = field(default_factory=dict)


@dataclass
class Line:
    """One line of the table: some trials of one kind. What is bad with a control does not count."""

    part: str
    what: str
    control: bool = False
    verdicts: list[Verdict] = field(default_factory=list)
    skipped: str = ""

    @property
    def bad(self) -> list[Verdict]:
        """Those with a flaw."""
        return [verdict for verdict in self.verdicts if verdict.flaw]

    def found(self) -> str:
        """What was found, in words."""
        if self.skipped:
            return f"skipped: {self.skipped}"
        words = [f"{said} {count}" for said, count in Counter(verdict.said for verdict in self.verdicts).most_common()]
        sums: Counter[str] = Counter()
        for verdict in self.verdicts:
            sums.update(verdict.numbers)
        return ", ".join(words + [f"{count} {what}" for what, count in sums.items()])

    def facts(self) -> dict[str, Any]:
        """For --json."""
        return {**asdict(self), "bad": len(self.bad)}


@dataclass(frozen=True)
class Bench:
    """Where and how the parts work.

    Attributes:
        base: a folder of our own; everything lies in it.
        seed: what all randomness comes from, with the trial's name.
        quick: few trials, no controls.
        runs: trials of each random part in the place of its own number; None: its own.
        only: the one trial to do, by name; empty: all.
        jobs: trials at a time.
    """

    base: Path
    seed: int
    quick: bool
    runs: int | None
    only: str
    jobs: int

    def names(self, what: str, full: int, quick: int) -> list[str]:
        """The trials of one line."""
        count = self.runs if self.runs is not None else quick if self.quick else full
        return self.chosen(f"{what}:{number}" for number in range(1, count + 1))

    def chosen(self, names: Iterable[str]) -> list[str]:
        """Those that were asked for."""
        return [name for name in names if self.only in ("", name)]

    def random(self, trial: str) -> random.Random:
        """What decides in that trial, always alike."""
        return random.Random(f"{self.seed} {trial}")

    def folder(self, trial: str) -> Path:
        """A new folder for that trial."""
        path = self.base / re.sub(r"[^\w.-]", "_", trial)
        path.mkdir()
        return path

    def map(self, trial: Callable[[str], Verdict], names: Sequence[str]) -> list[Verdict]:
        """Try all of them, some at a time. What a trial raises makes it a bad one."""
        with concurrent.futures.ThreadPoolExecutor(self.jobs) as pool:
            try:
                return list(pool.map(lambda name: _verdict(trial, name), names))
            except BaseException:
                pool.shutdown(wait=True, cancel_futures=True)
                raise


def _verdict(trial: Callable[[str], Verdict], name: str) -> Verdict:
    try:
        return trial(name)
    except Exception as error:
        return Verdict(name, "broken", f"{type(error).__name__}: {error}")


class Writer:
    """A process that saves again and again, and says `begin N` and `saved N` around each, on its stdout."""

    def __init__(self, command: Sequence[str | int | Path], log: Path, pass_fds: Sequence[int] = ()) -> None:
        self._log = log
        with open(log, "wb") as complaints:
            self.process = subprocess.Popen(
                [sys.executable, *map(str, command)],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=complaints,
                pass_fds=pass_fds,
            )
        assert self.process.stdout is not None
        self._stdout = self.process.stdout.fileno()
        self._text = b""
        self.pid = self.process.pid
        self.lines: list[str] = []

    def read(self, seconds: float) -> bool:
        """Take what it says within that time; False at its end."""
        ready, _, _ = select.select([self._stdout], [], [], max(0.0, seconds))
        if not ready:
            return True
        data = os.read(self._stdout, 65536)
        *lines, self._text = (self._text + data).split(b"\n")
        self.lines += [line.decode() for line in lines]
        for line in self.lines[-len(lines) :] if lines else []:
            if line.startswith("pid "):
                self.pid = int(line.split()[1])
        return bool(data)

    def wait_for(self, word: str) -> None:
        """Until a line begins so. Raises RuntimeError if it ends before, TimeoutError if it hangs."""
        end = time.monotonic() + PATIENCE
        while not any(line.startswith(word) for line in self.lines):
            if not self.read(end - time.monotonic()):
                raise RuntimeError(f"the writer ended before it said {word!r}: {self.words()}")
            if time.monotonic() > end:
                raise TimeoutError(f"the writer never said {word!r}")

    def listen(self, seconds: float) -> None:
        """Take what it says for that long, or to its end."""
        end = time.monotonic() + seconds
        while (left := end - time.monotonic()) > 0 and self.read(left):
            pass

    def kill(self) -> None:
        """SIGKILL; then take what was still on the way."""
        for pid in {self.pid, self.process.pid}:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self.finish()

    def finish(self) -> None:
        """Wait for its end. Raises TimeoutError."""
        end = time.monotonic() + PATIENCE
        while self.read(end - time.monotonic()):
            if time.monotonic() > end:
                raise TimeoutError("the writer does not end")
        self.process.wait(PATIENCE)

    def close(self) -> None:
        """Nothing of it is left."""
        if self.process.poll() is None:
            self.kill()
        assert self.process.stdout is not None
        self.process.stdout.close()

    @property
    def saved(self) -> int:
        """The newest that it acknowledged, 0 if there is none."""
        return max(self.numbers("saved "), default=0)

    def numbers(self, word: str) -> list[int]:
        """The numbers of the lines that begin so."""
        return [int(line.split()[1]) for line in self.lines if line.startswith(word)]

    def words(self) -> str:
        """The end of what it said and complained of."""
        return " | ".join([*self.lines[-3:], self._log.read_bytes()[-2000:].decode(errors="replace")])


def deaf() -> None:
    """In a pool's process: a Ctrl-C is for the one that waits; what is in hand is finished."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def mark_ours(base: Path) -> None:
    """Every process that is started from now on carries our mark in its environment."""
    multiprocessing.resource_tracker.ensure_running()  # it cleans up after our pools, so it must outlive them
    os.environ[MARK] = str(base)
    os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"


def marked(base: Path) -> Iterator[int]:
    """Processes that carry our mark, but for this one."""
    mark = f"{MARK}={base}".encode()
    for entry in os.scandir("/proc"):
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            with contextlib.suppress(OSError):
                if mark in Path(entry.path, "environ").read_bytes().split(b"\0"):
                    yield int(entry.name)


def end_all(base: Path) -> None:
    """Nothing that we started goes on."""
    for pid in marked(base):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
