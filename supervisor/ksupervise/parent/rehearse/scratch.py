"""A run that is made for a rehearsal: a parent of its own, a store of its own, and nothing of it left afterwards."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import FrameType

import ksupervise
from ksupervise.errors import KsuperviseError
from ksupervise.parent.stop import stop
from ksupervise.parent.voice import Voice
from ksupervise.wire import ENV_RUN_DIR

_PR_SET_PDEATHSIG = 1  # linux/prctl.h
_LEAVING = 60.0  # seconds from `stop` to SIGKILL
_DYING = 10.0  # seconds that killed processes may take to go
_SLACK = 3  # pages left on a full disk: the journal can say so, and the smallest checkpoint takes five
_TRIES = 20  # what is written meanwhile may be in the way
# Its module path is ours, whatever the working directory holds; the rest is `ksupervise`.
_PROGRAM = """
import sys
sys.path[:] = [*filter(None, sys.path), sys.argv[1]]
from ksupervise.parent.rehearse.scratch import enter
enter(int(sys.argv[2]), sys.argv[3])
from ksupervise.cli import main
main(sys.argv[4:])
"""


class Disk:
    """A small file system in memory, which can be filled: a real full disk that is nobody else's."""

    def __init__(self, folder: Path) -> None:
        """Mount it at `folder`. Raises OSError where that is not allowed."""
        self.folder = folder
        _mount("-t", "tmpfs", "-o", "mode=700", "ksupervise-rehearsal", str(folder))

    def fill(self) -> None:
        """From now on nothing more fits, but a few lines of the journal. Raises OSError."""
        for attempt in range(_TRIES):
            about = os.statvfs(self.folder)
            used = (about.f_blocks - about.f_bfree) * about.f_frsize
            try:
                _mount("-o", f"remount,size={used + _SLACK * about.f_frsize}", str(self.folder))
                return
            except OSError:
                if attempt == _TRIES - 1:
                    raise

    def free(self) -> None:
        """There is room again. Raises OSError."""
        _mount("-o", "remount,size=50%", str(self.folder))

    def close(self) -> None:
        """Unmount it; what it held is gone."""
        for flags in ((), ("-l",)):
            if os.path.ismount(self.folder):
                subprocess.run(["umount", *flags, str(self.folder)], check=False, capture_output=True)


def _mount(*words: str) -> None:
    if sys.platform != "linux" or shutil.which("mount") is None:
        raise OSError(errno.ENOTSUP, "there is no way to mount one here")
    done = subprocess.run(["mount", *words], check=False, capture_output=True, text=True, stdin=subprocess.DEVNULL)
    if done.returncode:
        raise OSError(errno.EPERM, " ".join(done.stderr.split()) or f"mount failed with {done.returncode}")


class OwnParent:
    """A `ksupervise` process over a run that is ours, and its store. To be used as a context.

    Attributes:
        directory: of the run.
        disk: what the store lies on, if it is one that can be filled.
    """

    def __init__(self, command: Sequence[str], what: str, store: Path | None, options: Sequence[str]) -> None:
        """`store`: where the run shall live, None for a temporary directory. Raises OSError."""
        self._command = list(command)
        self._options = list(options)
        self._given = None if store is None or store.exists() else store  # to be removed if it stays empty
        self._store = Path(tempfile.mkdtemp(prefix="ksupervise-rehearsal-")) if store is None else store.absolute()
        name = f"rehearsal-{what}-{secrets.token_hex(3)}"
        self.directory = self._store / name
        self._scratch = self._store if store is None else self.directory
        self.disk: Disk | None = None
        self._process: subprocess.Popen[bytes] | None = None
        # Where it is read from when the parent could not even begin; else the script's own output is in its log.
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115 - closed in `close`

    def mount(self) -> None:
        """Give the store a disk of its own. Raises OSError."""
        folder = self._store / f"{self.directory.name}.disk"
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        try:
            self.disk = Disk(folder)
        except OSError:
            folder.rmdir()
            raise
        if self._scratch == self.directory:
            self._scratch = folder
        self._store, self.directory = folder, folder / self.directory.name

    @property
    def pid(self) -> int:
        """The parent's."""
        assert self._process is not None
        return self._process.pid

    def start(self, group: str = "") -> None:
        """Call the run, or call it again. `group`: the `cgroup.procs` by which the parent joins a cgroup first."""
        words = ["--name", self.directory.name, "--store", str(self._store), *self._options, "--", *self._command]
        root = str(Path(ksupervise.__file__).resolve().parent.parent)
        flags = ["-I"] if sys.flags.isolated else []
        self._process = subprocess.Popen(
            [sys.executable, *flags, "-c", _PROGRAM, root, str(os.getpid()), group, *words],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=self._errors,
            start_new_session=True,  # a Ctrl-C is ours: what follows from it is decided in one place
        )

    def ended(self) -> int | None:
        """Its exit code (negative: the signal that killed it), None while it lives."""
        return None if self._process is None else self._process.poll()

    def last_words(self) -> str:
        """The last that ksupervise itself said, "" for nothing."""
        self._errors.seek(0)
        prefix = Voice.PREFIX.encode()
        lines = [line for line in self._errors.read().splitlines() if line.startswith(prefix)]
        return lines[-1][len(prefix) :].decode(errors="replace") if lines else ""

    def leave(self) -> None:
        """Have it save and stop, and wait for that."""
        if self._process is None or self._process.poll() is not None:
            return
        with contextlib.suppress(KsuperviseError):
            stop(self.directory)
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(_LEAVING)

    def close(self, *, keep: bool) -> None:
        """End whatever still lives, and remove what was made, the run's directory too unless it is to be kept."""
        end = time.monotonic() + _DYING
        if self._process is not None:
            kill_all(tree(self._process.pid), strays(self.directory))
            self._process.wait()
            while (left := strays(self.directory)) and time.monotonic() < end:
                kill_all(left)
                time.sleep(0.01)
        self._errors.close()
        if self.disk is not None:
            self.disk.close()
        if not keep or self.disk is not None:
            shutil.rmtree(self._scratch, ignore_errors=True)
        if self._given is not None:
            with contextlib.suppress(OSError):
                self._given.rmdir()


def enter(caller: int, group: str) -> None:
    """In the new parent, before it is one: it goes when its caller, process `caller`, is killed; it joins `group`."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)
        if os.getppid() != caller:
            raise SystemExit(128 + signal.SIGTERM)
    if group:
        with contextlib.suppress(OSError):  # then its cgroup counts nothing: the rehearsal will say so
            Path(group).write_text("0")


def tree(pid: int) -> list[int]:
    """Process `pid` first, then all its descendants; nothing if it is gone."""
    import psutil

    try:
        return [pid, *(each.pid for each in psutil.Process(pid).children(recursive=True))]
    except psutil.Error:
        return []


def strays(directory: Path) -> list[int]:
    """Processes of this user that carry the mark of the run in `directory`."""
    import psutil

    found = []
    for candidate in psutil.process_iter():
        with contextlib.suppress(psutil.Error, OSError):
            if candidate.pid != os.getpid() and candidate.environ().get(ENV_RUN_DIR) == str(directory):
                found.append(candidate.pid)
    return found


def kill_all(*groups: Sequence[int]) -> None:
    """SIGKILL to all of them, in that order."""
    for pid in dict.fromkeys(pid for group in groups for pid in group):
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.kill(pid, signal.SIGKILL)


@contextlib.contextmanager
def ended_by_signals() -> Iterator[None]:
    """SIGTERM and SIGHUP end us as Ctrl-C does: by an exception, so that nothing is left behind."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def interrupt(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    numbers = [n for n in (signal.SIGTERM, signal.SIGHUP) if signal.getsignal(n) is not signal.SIG_IGN]  # nohup
    before = {number: signal.signal(number, interrupt) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextlib.contextmanager
def cleaned_up() -> Iterator[contextlib.ExitStack]:
    """What is put on the stack is done at the end, whatever happens, and no second Ctrl-C keeps it from being done."""
    undo = contextlib.ExitStack()
    try:
        yield undo
    finally:
        with _undisturbed():
            undo.close()


@contextlib.contextmanager
def _undisturbed() -> Iterator[None]:
    """Signals that would end us are ignored."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    before = {number: signal.signal(number, signal.SIG_IGN) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
