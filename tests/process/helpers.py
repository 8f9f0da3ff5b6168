"""A place with a store of its own, in which the real command line runs real children."""

from __future__ import annotations

import contextlib
import io
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, TypeVar

import psutil

import ksupervise
from ksupervise import cli

T = TypeVar("T")

SUPERVISOR = str(Path(ksupervise.__file__).resolve().parent.parent)
PYTHON = sys.executable
# Not `-m ksupervise` with a PYTHONPATH: the environment is the child's alone, and without anything of the rig's.
KSUPERVISE = (
    PYTHON,
    "-I",
    "-c",
    f"import sys; sys.path.insert(0, {SUPERVISOR!r}); from ksupervise.cli import main; main()",
)
PREFIX = b"ksupervise: "
PATIENCE = 20.0  # seconds that anything may take on a loaded machine

# Says `ready`, then every signal it gets, and goes on for ever.
TALKER = """
import os, signal
def say(number, frame):
    os.write(1, f"got {signal.Signals(number).name}\\n".encode())
for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1):
    signal.signal(number, say)
if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:
    signal.signal(signal.SIGHUP, say)
os.write(1, b"ready\\n")
while True:
    signal.pause()
"""

# The same, but it ends with its own code at the first signal, after it said so.
LEAVER = TALKER.replace("\nfor number", "\n    os._exit(7)\nfor number", 1)


def until(found: Callable[[], T | None], what: str, seconds: float = PATIENCE) -> T:
    """The first true answer of `found`, asked again and again for at most `seconds`."""
    end = time.monotonic() + seconds
    while True:
        answer = found()
        if answer:
            return answer
        assert time.monotonic() < end, f"no {what} within {seconds:.0f} s"
        time.sleep(0.005)


@dataclass(frozen=True)
class Done:
    """What a command came to."""

    code: int
    out: bytes
    err: bytes
    seconds: float

    @property
    def ours(self) -> list[str]:
        """The lines that ksupervise said."""
        return [line.decode() for line in self.err.splitlines() if line.startswith(PREFIX)]

    @property
    def theirs(self) -> bytes:
        """What the script wrote to stderr."""
        return b"".join(line for line in self.err.splitlines(keepends=True) if not line.startswith(PREFIX))

    def said(self, text: str) -> bool:
        """Whether a line of ours holds `text`."""
        return any(text in line for line in self.ours)


class _Stream:
    """What arrives on a pipe, collected by a thread. Without a pipe: nothing."""

    def __init__(self, pipe: IO[bytes] | None) -> None:
        self._pipe = pipe
        self._data = bytearray()
        self._ended = False
        self._condition = threading.Condition()
        self._thread = threading.Thread(target=self._collect, daemon=True)
        self._thread.start()

    def _collect(self) -> None:
        while self._pipe is not None and (data := os.read(self._pipe.fileno(), 65536)):
            with self._condition:
                self._data += data
                self._condition.notify_all()
        with self._condition:
            self._ended = True
            self._condition.notify_all()

    @property
    def data(self) -> bytes:
        with self._condition:
            return bytes(self._data)

    def wait_for(self, wanted: Callable[[bytes], bool], what: str) -> bytes:
        with self._condition:
            self._condition.wait_for(lambda: self._ended or wanted(bytes(self._data)), PATIENCE)
            data = bytes(self._data)
        assert wanted(data), f"{what} did not come: {data[-2000:]!r}"
        return data

    def close(self) -> bytes:
        """Everything; waits for the end of the stream."""
        self._thread.join(PATIENCE)
        assert not self._thread.is_alive(), "somebody still holds the pipe"
        if self._pipe is not None:
            self._pipe.close()
        return bytes(self._data)


class Parent:
    """A supervising process that runs."""

    def __init__(self, command: Sequence[str], **arguments: Any) -> None:
        self.began = time.monotonic()
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        self.process = subprocess.Popen(command, bufsize=0, **{**pipes, **arguments})
        self._out, self._err = _Stream(self.process.stdout), _Stream(self.process.stderr)
        self._done: Done | None = None

    @property
    def pid(self) -> int:
        return self.process.pid

    @property
    def out(self) -> bytes:
        """What came out so far."""
        return self._out.data

    @property
    def err(self) -> bytes:
        """What came out on stderr so far."""
        return self._err.data

    def line(self, text: str, times: int = 1) -> str:
        """Wait for the `times`-th line that begins with `text` on stdout; the whole line."""
        return self._line(self._out, text, times)

    def err_line(self, text: str, times: int = 1) -> str:
        """Wait for the `times`-th line that holds `text` on stderr; the whole line."""
        return self._line(self._err, text, times, inside=True)

    def _line(self, stream: _Stream, text: str, times: int, *, inside: bool = False) -> str:
        def matching(data: bytes) -> list[bytes]:
            whole = data.split(b"\n")[:-1]
            return [line for line in whole if (text.encode() in line if inside else line.startswith(text.encode()))]

        data = stream.wait_for(lambda data: len(matching(data)) >= times, f"line {text!r}")
        return matching(data)[times - 1].decode()

    def send(self, number: int) -> None:
        """Signal the parent alone."""
        self.process.send_signal(number)

    def wait(self) -> Done:
        """Its end."""
        if self._done is None:
            code = self.process.wait(PATIENCE)
            seconds = time.monotonic() - self.began
            self._done = Done(code, self._out.close(), self._err.close(), seconds)
        return self._done

    def kill(self) -> None:
        """SIGKILL, and wait for it; the output may still be held by what it left behind."""
        self.process.kill()
        self.process.wait(PATIENCE)

    def end(self) -> None:
        """For the teardown: whatever happened, it is over."""
        if self._done is None:
            with contextlib.suppress(ProcessLookupError):
                self.process.kill()
            self.process.wait(PATIENCE)
            self._out.close()
            self._err.close()


class Place:
    """A working directory, a store, and the commands that were started there."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.store = root / "store"
        self.parents: list[Parent] = []
        self.environ = clean_environ()

    def write(self, name: str, text: str, mode: int = 0o644) -> str:
        """Make a file; its path."""
        path = self.root / name
        path.write_text(text, encoding="utf-8")
        path.chmod(mode)
        return str(path)

    def script(self, text: str, name: str = "script.py") -> list[str]:
        """Make a script; the command that runs it."""
        return [PYTHON, self.write(name, text)]

    def start(
        self,
        *words: str,
        store: bool = True,
        env: Mapping[str, str] | None = None,
        streams: Mapping[str, int] | None = None,
        **arguments: Any,
    ) -> Parent:
        """Start `ksupervise --store STORE WORDS`."""
        options = ["--store", str(self.store)] if store else []
        environ = {**self.environ, **(env or {})}
        arguments = {"stdin": subprocess.DEVNULL, "cwd": self.root, **(streams or {}), **arguments}
        parent = Parent([*KSUPERVISE, *options, *words], env=environ, **arguments)
        self.parents.append(parent)
        return parent

    def run(self, *words: str, **arguments: Any) -> Done:
        """Start it and wait for its end."""
        return self.start(*words, **arguments).wait()

    def report(self, *words: str) -> Done:
        """`ksupervise status|logs|… WORDS` on this store; in this process, to save time."""
        return call(words[0], "--store", str(self.store), *words[1:])

    def plain(self, command: Sequence[str], env: Mapping[str, str] | None = None) -> Done:
        """What `command` does without us."""
        began = time.monotonic()
        done = subprocess.run(
            command,
            env={**self.environ, **(env or {})},
            cwd=self.root,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=PATIENCE,
            check=False,
        )
        return Done(done.returncode, done.stdout, done.stderr, time.monotonic() - began)

    def status(self, *words: str) -> dict[str, Any]:
        """`ksupervise status --json`."""
        done = self.report("status", "--json", *words)
        assert done.code == 0, done.err
        return dict(json.loads(done.out))

    @property
    def run_dir(self) -> Path:
        """The directory of the store's only run."""
        found = [path for path in self.store.iterdir() if path.name != ".archive"]
        assert len(found) == 1, found
        return found[0]

    def record(self) -> dict[str, Any]:
        """The run's run.json."""
        return dict(json.loads((self.run_dir / "run.json").read_bytes()))

    def events(self, name: str) -> list[dict[str, Any]]:
        """The journal's events of that name."""
        lines = (self.run_dir / "journal.jsonl").read_bytes().splitlines()
        return [record for record in map(json.loads, lines) if record["event"] == name]

    def marked(self) -> list[psutil.Process]:
        """Living processes that carry the mark of a run here."""
        mark = b"KSUPERVISE_RUN_DIR=" + os.fsencode(self.root)
        found = []
        for path in Path("/proc").glob("[0-9]*/environ"):
            with contextlib.suppress(psutil.Error, OSError):
                if mark in path.read_bytes():
                    found.append(psutil.Process(int(path.parent.name)))
        return found

    def close(self) -> None:
        """End everything; afterwards no process of a run may be left (law 7)."""
        for parent in self.parents:
            parent.process.poll()
        aborted = [parent for parent in self.parents if parent.process.returncode is None]
        for parent in aborted:
            parent.process.kill()
        left = self.marked() if self.parents else []
        for process in left:
            with contextlib.suppress(psutil.Error):
                process.kill()
        for parent in self.parents:
            parent.end()
        gone = aborted or any(parent.process.returncode == -signal.SIGKILL for parent in self.parents)
        assert gone or not left, f"left behind: {left}"


def call(*words: str) -> Done:
    """`ksupervise WORDS` in this process: for what ends without a run."""
    out, err = io.TextIOWrapper(io.BytesIO()), io.TextIOWrapper(io.BytesIO())
    began = time.monotonic()
    code: object = None
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            cli.main(list(words))
        except SystemExit as end:
            code = end.code
        out.flush()
        err.flush()
    assert isinstance(code, int)
    assert isinstance(out.buffer, io.BytesIO)
    assert isinstance(err.buffer, io.BytesIO)
    return Done(code, out.buffer.getvalue(), err.buffer.getvalue(), time.monotonic() - began)


def clean_environ() -> dict[str, str]:
    """The environment without what would steer the parent or the child's interpreter."""
    foreign = ("KSUPERVISE_", "PYTHON", "SLURM_", "OMPI_", "PMI_", "RANK")
    return {name: value for name, value in os.environ.items() if not name.startswith(foreign)}


def alive(pid: int) -> bool:
    """A process of that number lives, and is no zombie."""
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def wait_gone(pid: int) -> None:
    """Wait for the end of process `pid`."""
    until(lambda: not alive(pid), f"end of process {pid}")
