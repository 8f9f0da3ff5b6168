"""`enotconn`: the store's mount goes away while checkpoints are written, and comes back.

The mount is a FUSE file system of our own (tests/store/fuse.py); its process is killed at a random moment, as Colab's
Drive or a gcsfuse dies. From then on the kernel answers ENOTCONN.
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from kill import JOB, RECORD, ZYGOTE, processes_of, zygote
from store_controls import Peers
from store_trials import HERE, MEGA, PATIENCE, Bench, Line, Verdict, Writer
from store_writer import RUN, commit, flaws_of, state_of
from tests.store.fuse import mounted, why_not

from ksupervise.store import CheckpointStore

PART = "enotconn"
TRIALS, QUICK_TRIALS, TRAININGS = 30, 6, 3
SIZES = (1 * MEGA, 12 * MEGA)
MOMENTS = (0.02, 1.0)  # seconds after the first save began
AWAY = 40  # steps that the training makes before the mount is back


def lines(bench: Bench, peers: Peers | None) -> Iterator[Line]:
    """Ours. Nobody else's writer says what it lost here."""
    del peers
    if reason := why_not():
        yield Line(PART, "ksupervise", skipped=reason)
        return
    trials = bench.names(f"{PART}/ksupervise", TRIALS, QUICK_TRIALS)
    yield Line(PART, "ksupervise", verdicts=bench.map(lambda trial: _trial(bench, trial), trials))
    trials = bench.names(f"{PART}/training", TRAININGS, 1)
    if trials and importlib.util.find_spec("tensorflow") is None:
        yield Line(PART, "a whole training", skipped="tensorflow is not installed")
    elif trials:
        with zygote(bench.folder(f"{PART}/zygote")) as socket:
            found = bench.map(lambda trial: _training(bench, trial, socket), trials)
        yield Line(PART, "a whole training", verdicts=found)


def _trial(bench: Bench, trial: str) -> Verdict:
    chance = bench.random(trial)
    size = chance.randint(*SIZES)
    folder = bench.folder(trial)
    backing, place = folder / "backing", folder / "mounted"
    backing.mkdir()
    place.mkdir()
    with mounted(backing, place) as mount, contextlib.closing(_writer(place, size)) as writer:
        writer.wait_for("begin")
        writer.listen(chance.uniform(*MOMENTS))
        mount.kill()
        writer.finish()
    with mounted(backing, place):
        store = CheckpointStore(place / "run", RUN)
        flaw = _unclear(writer) or flaws_of(store, writer.saved) or _stuck(store, size)
    return Verdict(
        trial, "broken" if flaw else "refused, whole after the remount", flaw, {"acknowledged": writer.saved}
    )


def _writer(place: Path, size: int) -> Writer:
    return Writer([HERE / "store_writer.py", place / "run", size], place.with_name("log"))


def _unclear(writer: Writer) -> str:
    """What is wrong with how it ended; it must say what happened, in words."""
    last = writer.lines[-1] if writer.lines else ""
    if writer.process.returncode != 0 or not last.startswith("refused "):
        return f"the writer ended with {writer.process.returncode}: {writer.words()}"
    return "" if "mount went away" in last else f"it did not say what happened: {last}"


def _stuck(store: CheckpointStore, size: int) -> str:
    """The next owner sweeps and commits."""
    store.sweep()
    if left := os.listdir(store.layout.tmp) + os.listdir(store.layout.trash):
        return f"not swept: {left}"
    seq = store.next_seq()
    commit(store, seq, size, state_of(seq, size))
    return flaws_of(store, seq)


def _training(bench: Bench, trial: str, socket: Path) -> Verdict:
    """A supervised training goes on without its store, and has its checkpoints there again when the mount is back."""
    folder = bench.folder(trial)
    backing, place = folder / "backing", folder / "mounted"
    backing.mkdir()
    place.mkdir()
    job = Job(folder, place, socket)
    try:
        with mounted(backing, place) as mount:
            job.start()
            job.wait_until(lambda: job.newest(backing) >= 2)
            time.sleep(bench.random(trial).uniform(0.0, 0.5))
            mount.kill()
            then = job.steps()
            job.wait_until(lambda: job.steps() >= then + AWAY and "training goes on" in job.console())
        lost = job.newest(backing)
        with mounted(backing, place):
            code = job.wait()
            flaw = f"exit code {code}: {job.console()[-1500:]}" if code else job.flaws(backing, lost)
    finally:
        job.end()
    return Verdict(trial, "broken" if flaw else "went on, completed", flaw, {"steps": job.steps()})


class Job:
    """One supervised job whose store is on the mount; what it counts and leaves besides is not."""

    def __init__(self, folder: Path, place: Path, socket: Path) -> None:
        self._folder, self._store = folder, ["--store", str(place / "store")]
        script = [str(ZYGOTE), str(socket), str(JOB), "--count", str(folder / "count"), "--out", str(folder / "out")]
        options = [*self._store, "--name", "job", "--every", "1s"]
        self._command = [sys.executable, "-m", "ksupervise", *options, sys.executable, *script, "--epochs", "40"]
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Begin to train."""
        with open(self._folder / "console", "wb") as console:
            self._process = subprocess.Popen(
                self._command, stdin=subprocess.DEVNULL, stdout=console, stderr=console, cwd=self._folder
            )

    def console(self) -> str:
        """All that was said."""
        return (self._folder / "console").read_text(errors="replace")

    def steps(self) -> int:
        """Steps that were trained, as the job itself counts them."""
        path = self._folder / "count"
        return path.stat().st_size // RECORD.size if path.exists() else 0

    def newest(self, backing: Path) -> int:
        """Number of the newest checkpoint, by its name; 0 if there is none."""
        names = [path.name for path in (backing / "store" / "job" / "checkpoints").glob("*")]
        return max((int(name.partition("-")[0]) for name in names), default=0)

    def wait_until(self, so: Callable[[], bool]) -> None:
        """Raises RuntimeError if the job ends before, TimeoutError if it hangs."""
        assert self._process is not None
        end = time.monotonic() + PATIENCE
        while not so():
            if self._process.poll() is not None:
                raise RuntimeError(f"the job ended with {self._process.returncode}: {self.console()[-1500:]}")
            if time.monotonic() > end:
                raise TimeoutError("the job hangs")
            time.sleep(0.01)

    def wait(self) -> int:
        """Its exit code. Raises TimeoutExpired."""
        assert self._process is not None
        return self._process.wait(PATIENCE)

    def flaws(self, backing: Path, lost: int) -> str:
        """What is wrong with what it left, `lost` being the newest checkpoint while the mount was away."""
        if self.newest(backing) <= lost:
            return f"no checkpoint since the mount is back: {lost} is the newest"
        for command in ("status", "verify"):
            words = [sys.executable, "-m", "ksupervise", command, *self._store, "job", "--json"]
            done = subprocess.run(words, capture_output=True, text=True, check=False, timeout=PATIENCE)
            if done.returncode:
                return f"{command} ends with {done.returncode}: {done.stdout[-500:]}{done.stderr[-500:]}"
            if command == "status" and json.loads(done.stdout)["state"] != "completed":
                return f"its state is {json.loads(done.stdout)['state']}"
        return ""

    def end(self) -> None:
        """Nothing of it goes on."""
        if self._process is not None and self._process.poll() is None:
            self._process.kill()
            self._process.wait()
        for pid in processes_of(Path(self._store[1]) / "job"):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
