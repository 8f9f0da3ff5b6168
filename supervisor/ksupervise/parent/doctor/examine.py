"""What `ksupervise doctor` finds out: about the interpreter, the store, the machine. What it means is said elsewhere.

All that can hang or crash is tried in processes of its own, side by side, each for a bounded time: the interpreter that
the command starts, in the environment that a run gives it, with a few lines of ours instead of the script
(`child/trial.py`); the store and the kernel (`parent/doctor/probes.py`); nvidia-smi. They are ended with us.
"""

from __future__ import annotations

import contextlib
import os
import re
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from ksupervise import notices
from ksupervise.errors import KsuperviseError
from ksupervise.notices import Finding
from ksupervise.parent import boot, process, run
from ksupervise.parent.doctor.probes import Found, read_report
from ksupervise.parent.doctor.surroundings import Surrounding, limits, memory, processors, surroundings
from ksupervise.parent.launch import child_environment
from ksupervise.parent.link import Connection, Listener
from ksupervise.parent.owned import run_directory
from ksupervise.parent.supervise import refuse_ranks
from ksupervise.parent.watch import gpu, host
from ksupervise.parent.watch.oom import OomCounter
from ksupervise.settings import Settings

INTERPRETER_SECONDS = 180.0  # a cold import of TensorFlow from a network disk takes a minute
PROBE_SECONDS = 15.0
_TURN = 0.05  # seconds between two looks at processes
_LEAVING = 2.0  # seconds from SIGTERM to SIGKILL
_TAIL = 4000  # bytes of what a process said, at most
_PACKAGES = Path(__file__).resolve().parents[3]

_PYTHON = re.compile(r"(python|pypy)\d*(\.\d+)*t?")
# Programs that become the one that they are given, or start it as it is. What may stand between is recognized below.
_PASSING = frozenset({"env", "nice", "ionice", "nohup", "taskset", "numactl", "stdbuf", "time", "timeout", "setarch"})
_BETWEEN = re.compile(r"-.*|[A-Za-z_]\w*=.*|\d[\d.,:smhd-]*", re.DOTALL)

# In the interpreter that is examined. What does not get our hook finds our part all the same, to look at its Keras.
_TRIAL = """
import sys
if 'ksupervise' not in sys.modules: sys.path.insert(0, {boot!r})
from ksupervise.child import trial
trial.main({report!r}, {seconds})
"""
_QUERY = ("--query-gpu=name,driver_version,memory.total,memory.used", "--format=csv,noheader,nounits")
_PROBE = (
    "import sys; sys.path.insert(0, {packages!r}); from ksupervise.parent.doctor.probes import main; main({words!r})"
)


@dataclass(frozen=True)
class Start:
    """How an interpreter is started.

    Attributes:
        words: what stands before it, the interpreter and its options; () if there is none to be examined.
        unknown: why it cannot be known which interpreter the command starts, "" if it can; `words` are then those of
            the `python` on PATH.
        fault: why the command cannot be run at all, "" if it can.
    """

    words: tuple[str, ...]
    unknown: str = ""
    fault: str = ""


@dataclass
class Ended:
    """What a process of ours came to.

    Attributes:
        found: by name, what it reported.
        doing: what it had begun, and not ended.
        code: its exit code, negative for a signal; None if its time was over.
        out, err: the ends of what it wrote to stdout and stderr.
        seconds: that it took.
    """

    found: dict[str, Found]
    doing: str = ""
    code: int | None = 0
    out: str = ""
    err: str = ""
    seconds: float = 0.0


@dataclass
class Heard:
    """What an interpreter told us by our hook: hello, Keras' version, a claim at its fit, and what went wrong."""

    hello: bool = False
    keras: bool = False
    claimed: bool = False
    notes: list[str] = field(default_factory=list)


class Card(NamedTuple):
    """A graphics card, as nvidia-smi has it; its memory in MiB, as text."""

    name: str
    driver: str
    memory: str
    used: str


@dataclass
class Findings:
    """All that was found out.

    Attributes:
        command: what would be supervised.
        start: how its interpreter was started.
        settings: what it would be supervised with.
        store: where runs live, absolute.
        interpreter: what `child/trial.py` found.
        heard: what our hook told meanwhile.
        disk, machine: what `parent/doctor/probes.py` found.
        cards: None where nvidia-smi is not there; [] where it does not answer, or knows none.
        surroundings: what we are inside of.
        notices: which clouds `auto` listens to, and why.
        limits: of `ulimit`; None for none.
        memory: of the machine, in bytes.
        processors: that may be used.
        cgroup: bytes in use and the limit; None without one.
        cgroup_version: 1 or 2; None where there are no cgroups.
        oom_counted: our cgroup's counter of the out-of-memory killer can be read.
        suspended: seconds for which the machine slept since it was booted.
        year: of the wall clock.
        environ: the environment.
        refused: why no run can be begun so at all, "" if one can.
    """

    command: tuple[str, ...]
    start: Start
    settings: Settings
    store: Path
    interpreter: Ended
    heard: Heard
    disk: Ended
    machine: Ended
    cards: list[Card] | None
    surroundings: list[Surrounding]
    notices: tuple[Finding, ...]
    limits: dict[str, int | None]
    memory: dict[str, int]
    processors: int
    cgroup: tuple[int, int] | None
    cgroup_version: int | None
    oom_counted: bool
    suspended: float
    year: int
    environ: Mapping[str, str]
    refused: str


def examine(
    command: Sequence[str],
    settings: Settings,
    environ: Mapping[str, str] = os.environ,
    *,
    say: Callable[[str], None] = lambda text: None,
    interpreter_seconds: float = INTERPRETER_SECONDS,
    probe_seconds: float = PROBE_SECONDS,
) -> Findings:
    """Find it all out; takes as long as TensorFlow's import, and never much longer than `interpreter_seconds`.

    Args:
        command: what would be supervised; it is not run.
        settings: what it would be supervised with.
        environ: the environment that it would be run in.
        say: is given what is being waited for.

    Raises:
        OSError: not even a temporary folder is to be had.
    """
    start = interpreter_of(command)
    directory, refused = _run_directory(settings, command, environ)
    counter = OomCounter()
    mark = counter.read()
    store = settings.store.absolute()
    with _folder() as folder, contextlib.ExitStack() as undo:
        trial = _Trial(start, folder, environ, settings.seed, interpreter_seconds)  # the first: it takes longest
        undo.callback(trial.close)
        tried = {
            "disk": _probe("disk", ["store", str(store), *map(str, directory)], folder, probe_seconds),
            "machine": _probe("machine", ["machine"], folder, probe_seconds),
        }
        if gpu.available():
            with contextlib.suppress(OSError):
                tried["cards"] = _Process(["nvidia-smi", *_QUERY], "cards", folder, probe_seconds, environ)
        for each in tried.values():
            undo.callback(each.close)
        _wait(tried.values(), trial)
        if not trial.over:
            say("trying the interpreter: TensorFlow's import takes some seconds …")
            _wait([trial], trial)
        return Findings(
            command=tuple(command),
            start=start,
            settings=settings,
            store=store,
            interpreter=trial.end(),
            heard=trial.heard,
            disk=tried["disk"].end(),
            machine=tried["machine"].end(),
            cards=_cards(tried["cards"].end()) if "cards" in tried else [] if gpu.available() else None,
            surroundings=surroundings(environ),
            notices=notices.explain(environ),
            limits=limits(),
            memory=memory(),
            processors=processors(),
            cgroup=counter.usage(),
            cgroup_version=mark["groups"][0]["version"] if mark["groups"] else None,
            oom_counted=bool(mark["groups"]) and mark["groups"][0]["oom_kill"] is not None,
            suspended=host.suspended_between(0.0, 0.0, host.clock(), time.monotonic()),
            year=time.gmtime().tm_year,
            environ=environ,
            refused=refused,
        )


def _run_directory(settings: Settings, command: Sequence[str], environ: Mapping[str, str]) -> tuple[list[Path], str]:
    """The run's directory, and why there can be no run."""
    try:
        refuse_ranks(environ)
        return [run_directory(settings, command, run.find_script(command))], ""
    except KsuperviseError as error:
        return [], str(error)


@contextlib.contextmanager
def _folder() -> Iterator[Path]:
    """A folder of ours in memory or on a local disk. It goes with us, also if we are told to leave."""
    heeded = [number for number in (signal.SIGTERM, signal.SIGHUP) if signal.getsignal(number) is signal.SIG_DFL]
    before = {number: signal.signal(number, _leave) for number in heeded}
    try:
        with tempfile.TemporaryDirectory(prefix="ksupervise-doctor-", ignore_cleanup_errors=True) as folder:
            yield Path(folder)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _leave(number: int, _: object) -> None:
    sys.exit(128 + number)


# Which interpreter --------------------------------------------------------------------------------


def interpreter_of(command: Sequence[str]) -> Start:
    """The interpreter that `command` starts, as far as that can be known without running it."""
    try:
        process.resolve(command)
    except KsuperviseError as error:
        return Start(_python_on_path(), fault=str(error))
    words = _words(list(command))
    if words:
        return Start(tuple(words))
    return Start(_python_on_path(), unknown=f"what `{command[0]}` starts cannot be known without running it")


def _python_on_path() -> tuple[str, ...]:
    return ("python",) if shutil.which("python") else ()


def _words(command: list[str], depth: int = 3) -> list[str]:
    """What comes before the script in `command`: its interpreter with its options. [] if that is not Python."""
    name = os.path.basename(command[0])
    if _PYTHON.fullmatch(name):
        return [command[0], *interpreter_options(command[1:])]
    if name in _PASSING:
        between = 1
        while between < len(command) and _BETWEEN.fullmatch(command[between]):
            between += 1
        rest = _words(command[between:], depth) if command[between:] else []
        return [*command[:between], *rest] if rest else []
    shebang = _shebang(command[0]) if depth else []
    return _words(shebang, depth - 1) if shebang else []


def _shebang(name: str) -> list[str]:
    """The words of a script's first line: its interpreter, and one argument."""
    path = shutil.which(name)
    try:
        with open(path or name, "rb") as stream:
            line = stream.readline(256)
    except OSError:
        return []
    if not line.startswith(b"#!"):
        return []
    words = os.fsdecode(line[2:].strip()).split(None, 1)
    if words[1:] and os.path.basename(words[0]) == "env":
        words[1:] = [word for word in words[1].split() if word != "-S"]
    return words


def interpreter_options(words: Sequence[str]) -> list[str]:
    """The options of Python's own at the beginning of `words`, without -c and -m and what only says something."""
    options: list[str] = []
    rest = list(words)
    while rest and rest[0].startswith("-") and rest[0] not in ("-", "--"):
        word = rest.pop(0)
        if word == "--check-hash-based-pycs" and rest:
            options += [word, rest.pop(0)]
            continue
        kept, ended, wants = _letters(word)
        if kept:
            options.append("-" + kept)
        if wants and rest:
            options.append(rest.pop(0))
        if ended:
            break
    return options


def _letters(word: str) -> tuple[str, bool, bool]:
    """Of one word: the letters to keep, whether the options end with it, whether the next word belongs to it."""
    kept = ""
    for at, letter in enumerate(word[1:], 1):
        if letter in "cm":
            return kept, True, False
        if letter in "WX":
            return kept + word[at:], False, at == len(word) - 1
        if letter not in "ihV?-":
            kept += letter
    return kept, False, False


def keeping_away(words: Sequence[str]) -> list[str]:
    """Those of an interpreter's options with which it does not read PYTHONPATH, or imports no sitecustomize."""
    at = next((at for at, word in enumerate(words) if _PYTHON.fullmatch(os.path.basename(word))), len(words))
    letters = [word[1:] for word in words[at + 1 :] if re.fullmatch(r"-[A-VYZa-z]+", word)]
    return [f"-{letter}" for letter in "IES" if any(letter in each for each in letters)]


# Processes of ours --------------------------------------------------------------------------------


class _Process:
    """A command in a session of its own, which reports into a file, for a bounded time."""

    def __init__(self, command: Sequence[str], name: str, folder: Path, seconds: float, env: Mapping[str, str]) -> None:
        self._report, self._out, self._err = (folder / f"{name}.{end}" for end in ("report", "out", "err"))
        self._began, self._seconds, self._took = time.monotonic(), seconds, 0.0
        self._timed_out = False
        with open(self._out, "wb") as out, open(self._err, "wb") as err:
            self._popen = subprocess.Popen(
                command,
                env=dict(env),
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=err,
                start_new_session=True,
            )

    @property
    def over(self) -> bool:
        """It has ended, or its time is over."""
        if not self._took:
            took = time.monotonic() - self._began
            ended = self._has_ended()
            if ended or took >= self._seconds:
                self._timed_out, self._took = not ended, took
        return bool(self._took)

    def end(self) -> Ended:
        """What it came to; if it has not, it is ended."""
        self.close()
        found, doing = read_report(self._report)
        code = None if self._timed_out else self._popen.returncode
        return Ended(found, doing, code, _tail(self._out), _tail(self._err), self._took)

    def close(self) -> None:
        """End it and what it started. One in uninterruptible sleep is left behind: it goes when it can."""
        if self._popen.returncode is not None:
            return
        for number in (signal.SIGTERM, signal.SIGKILL):
            if not self._has_ended():
                self._send(number)
                self._await_end(_LEAVING)
        self._send(signal.SIGKILL)  # the group has its number as long as it is not collected
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._popen.wait(_TURN)

    def _send(self, number: int) -> None:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self._popen.pid, number)

    def _has_ended(self) -> bool:
        try:
            return os.waitid(os.P_PID, self._popen.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None
        except ChildProcessError:
            return True

    def _await_end(self, seconds: float) -> None:
        until = time.monotonic() + seconds
        while not self._has_ended() and time.monotonic() < until:
            time.sleep(_TURN / 5)


def _tail(path: Path) -> str:
    try:
        return path.read_bytes()[-_TAIL:].decode(errors="replace")
    except OSError:
        return ""


def _probe(name: str, words: list[str], folder: Path, seconds: float) -> _Process:
    """A process of our own interpreter that tries what `words` name."""
    arguments = [str(folder / f"{name}.report"), str(int(seconds + _LEAVING) + 1), *words]
    program = _PROBE.format(packages=str(_PACKAGES), words=arguments)
    return _Process([sys.executable, "-I", "-c", program], name, folder, seconds, os.environ)


class _Trial:
    """The interpreter that is examined, and what our hook tells from inside it."""

    def __init__(
        self, start: Start, folder: Path, environ: Mapping[str, str], seed: int | None, seconds: float
    ) -> None:
        self.heard = Heard()
        self.process: _Process | None = None
        self._fault = ""
        self._listener = Listener(folder)
        self._connections: list[Connection] = []
        if start.words:
            archive = folder / "boot.zip"
            boot.pack(archive)
            run.save(folder / "run.json", run.new("doctor", start.words, ""))
            environment = child_environment(
                environ,
                name="doctor",
                run_dir=str(folder),
                boot=str(archive),
                address=self._listener.address,
                seed=seed,
            )
            report = str(folder / "trial.report")
            program = _TRIAL.format(boot=str(archive), report=report, seconds=int(seconds + _LEAVING) + 1)
            try:
                self.process = _Process([*start.words, "-c", program], "trial", folder, seconds, environment)
            except OSError as error:
                self._fault = f"{start.words[0]}: {error.strerror}"

    @property
    def over(self) -> bool:
        """It has ended, or there is none."""
        return self.process is None or self.process.over

    def serve(self, seconds: float) -> None:
        """Hear what it says, for so long."""
        sockets = [self._listener.sock, *(each.sock for each in self._connections)]
        ready, _, _ = select.select(sockets, [], [], seconds)
        if self._listener.sock in ready and (peer := self._listener.accept()) is not None:
            self._connections.append(peer)
        for connection in self._connections:
            for message in connection.receive() if connection.sock in ready else ():
                self._take(connection, message)
        for connection in [each for each in self._connections if not each.open]:
            self._connections.remove(connection)
            connection.close()

    def _take(self, connection: Connection, message: Found) -> None:
        operation = message.get("op")
        self.heard.hello |= operation == "hello"
        self.heard.keras |= operation == "keras"
        if operation == "note":
            self.heard.notes.append(str(message.get("text")))
        if operation == "claim":
            self.heard.claimed = True
            connection.send({"op": "claim", "granted": False})  # then its fit is left alone

    def end(self) -> Ended:
        """What it came to."""
        for _ in range(len(self._connections) + 2):
            self.serve(0.0)  # what it said last
        return self.process.end() if self.process is not None else Ended({}, code=126, err=self._fault)

    def close(self) -> None:
        """Leave nothing of it behind."""
        if self.process is not None:
            self.process.close()
        for connection in self._connections:
            connection.close()
        self._listener.close()


def _wait(processes: Iterable[_Process | _Trial], trial: _Trial) -> None:
    """Until all of them are over; meanwhile the interpreter is heard."""
    while any(not each.over for each in processes):
        trial.serve(_TURN)


def _cards(ended: Ended) -> list[Card]:
    """What nvidia-smi answered, if it did."""
    lines = ended.out.splitlines() if ended.code == 0 else []
    return [Card(*map(str.strip, line.split(","))) for line in lines if line.count(",") == 3]
