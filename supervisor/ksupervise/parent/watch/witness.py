"""What a silent process does: whether it can run at all, and how much its whole tree computes and moves.

It reads and says; what follows from it is decided elsewhere. On Linux all is read from /proc: one look costs one file
for each process of the machine (its parent and its times), one for each of the tree's (its bytes), and one for each
thread of the process that is looked at. Elsewhere psutil tells less of it, and what it does not tell is unknown.
"""

from __future__ import annotations

import os
import sys
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import NamedTuple

from ksupervise.parent.room import size_text

_PROC = "/proc"
_IDLE_CORES = 0.02  # what threads that only wait come to; and what words call idle
_IDLE_BYTES = 1000.0  # a second


class State(Enum):
    """What the threads of one process are doing, all together."""

    UNKNOWN = "unknown"
    GONE = "gone"
    ZOMBIE = "zombie"  # dead, not collected yet
    TRACED = "traced"  # by a debugger, or by strace
    STOPPED = "stopped"  # every thread, by a signal
    BLOCKED = "blocked"  # the main thread, or every one, in a call of the kernel that no signal ends
    RUNNING = "running"  # running, or waiting as programs wait


@dataclass(frozen=True)
class Look:
    """One look.

    Attributes:
        at: when, in seconds on the monotonic clock.
        state: of the process that was looked at.
        threads: how many of its threads are in which state, by the letters of proc(5).
        blocked: the names of kernel functions in which threads of it wait uninterruptibly, one for each such
            thread; "" where that is not to be read.
        tracer: process id and name of its tracer; the id is 0 for one outside of our container.
        processes: how many the whole tree has.
        cpu: seconds of processor time that the whole tree has used, its dead included; None if unknown.
        read_bytes, written: bytes that calls of the tree have read and written, files, pipes and terminals alike;
            None if unknown.
        storage: bytes that disks have moved for it, in both directions; None if unknown.
    """

    at: float
    state: State = State.UNKNOWN
    threads: Mapping[str, int] = field(default_factory=dict)
    blocked: tuple[str, ...] = ()
    tracer: tuple[int, str] | None = None
    processes: int = 0
    cpu: float | None = None
    read_bytes: int | None = None
    written: int | None = None
    storage: int | None = None


class Activity(NamedTuple):
    """What happened between two looks. Rates; None is unknown."""

    seconds: float
    cores: float | None  # 1.0: one core was busy all the time
    read: float | None  # bytes a second, as the others
    written: float | None
    storage: float | None


def activity(earlier: Look, later: Look) -> Activity:
    """What the tree did from one look of a Witness to another. All unknown if no time lies between them."""
    seconds = later.at - earlier.at

    def rate(before: float | None, after: float | None) -> float | None:
        return None if before is None or after is None or seconds <= 0 else max(0.0, after - before) / seconds

    return Activity(
        seconds,
        rate(earlier.cpu, later.cpu),
        rate(earlier.read_bytes, later.read_bytes),
        rate(earlier.written, later.written),
        rate(earlier.storage, later.storage),
    )


def describe(look: Look, since: Activity | None = None) -> str:
    """What a look saw, in words. `since`, the activity up to it, tells idle from busy."""
    if look.state is State.TRACED:
        pid, name = look.tracer or (0, "")
        who = f"process {pid}, {name or 'of unknown name'}" if pid else "outside of this container"
        return f"a debugger is attached ({who})"
    if look.state is State.STOPPED:
        return "stopped by a signal (state T)"
    if look.state is State.BLOCKED:
        return f"in uninterruptible sleep (D){_where(look.blocked)}"
    if look.state is State.ZOMBIE:
        return "dead, and not yet collected (zombie)"
    if look.state is State.GONE:
        return "gone"
    parts = [_pace(since)] if since is not None else []
    if look.blocked:
        count = f"{len(look.blocked)} of {sum(look.threads.values())} threads"
        parts.append(f"{count} in uninterruptible sleep (D){_where(look.blocked)}")
    return ", ".join(filter(None, parts)) or ("running" if look.state is State.RUNNING else "unknown")


def _where(functions: Iterable[str]) -> str:
    named = [name for name, _ in Counter(filter(None, functions)).most_common(1)]
    return f" in {named[0]}" if named else ""


def _pace(since: Activity) -> str:
    """`idle`, `busy: 1.9 cores`, `idle, moving 3.0 MB/s`."""
    if since.cores is None:
        return ""
    words = "idle" if since.cores < _IDLE_CORES else f"busy: {since.cores:.{1 if since.cores >= 0.1 else 2}f} cores"
    moved = max(since.storage or 0.0, (since.read or 0.0) + (since.written or 0.0))
    return words if moved < _IDLE_BYTES else f"{words}, moving {size_text(int(moved))}/s"


class _Process(NamedTuple):
    """One process at one look."""

    pid: int
    start: float  # with the pid it names a process for good: pids are used again
    parent: int
    session: int
    state: str  # a letter of proc(5)
    cpu: float  # seconds: of its own threads
    reaped: float  # seconds: of the dead children that it collected, and of theirs
    moved: tuple[int, int, int] | None = None  # bytes: read, written, storage; those of collected children included

    @property
    def key(self) -> tuple[int, float]:
        return self.pid, self.start

    def used(self) -> tuple[float, ...]:
        """Seconds of CPU and bytes, as they go into the sums."""
        return (self.cpu + self.reaped, *(self.moved or (0, 0, 0)))

    def inherited(self, before: _Process) -> tuple[float, ...]:
        """What of `used` may have come from children that it collected since. Of bytes it is not told apart."""
        return (self.reaped - before.reaped, *(b - a for a, b in zip(before.used()[1:], self.used()[1:], strict=True)))


class Witness:
    """Looks at a process and all below it. One object for the life of the process; not for several threads."""

    def __init__(self, root_pid: int, proc: str = _PROC) -> None:
        """`root_pid` leads the tree, and its session if it has one of its own. `proc` is another /proc for tests."""
        self._root = root_pid
        self._proc = proc
        self._start: float | None = None  # of the root, since its first look
        self._seen: dict[tuple[int, float], _Process] = {}
        self._dead = (0.0, 0.0, 0.0, 0.0)  # `used` by dead ones that nobody of the tree collected
        self._told = False  # bytes were told of any process

    def look(self, trainer: int | None = None) -> Look:
        """One look, now. `trainer`: whose threads tell the state, if not the root's. Never raises."""
        pid = self._root if trainer is None else trainer
        linux = sys.platform == "linux"
        at = time.monotonic()
        table = {process.pid: process for process in (_table(self._proc) if linux else _table_elsewhere(self._root))}
        if not table:
            return Look(at, State.UNKNOWN if linux else State.GONE)
        tree = self._tree(table)
        if linux:
            tree = {key: self._with_bytes(process) for key, process in tree.items()}
        self._count_the_dead(tree)
        self._seen = tree
        cpu, *moved = map(sum, zip(self._dead, *(process.used() for process in tree.values()), strict=True))
        self._told = self._told or any(process.moved for process in tree.values())
        read, written, storage = map(int, moved) if self._told else (None, None, None)
        here = table[pid] if pid in table and table[pid].key in tree else None
        state, threads, blocked, tracer = _state(self._proc, here) if linux else (_state_elsewhere(here), {}, (), None)
        return Look(at, state, threads, blocked, tracer, len(tree), cpu, read, written, storage)

    def _tree(self, table: Mapping[int, _Process]) -> dict[tuple[int, float], _Process]:
        """The root, its session, all below them, and what was of the tree once: it may have been orphaned."""
        root = table.get(self._root)
        if self._start is None and root is not None:
            self._start = root.start
        children: dict[int, list[_Process]] = {}
        for process in table.values():
            children.setdefault(process.parent, []).append(process)
        found = [p for p in table.values() if p.session == self._root or p.key in self._seen]
        if root is not None and root.start == self._start:
            found.append(root)
        tree: dict[tuple[int, float], _Process] = {}
        while found:
            process = found.pop()
            if process.key not in tree:
                tree[process.key] = process
                found += children.get(process.pid, [])
        return tree

    def _with_bytes(self, process: _Process) -> _Process:
        before = self._seen.get(process.key)
        return process._replace(moved=_bytes_of(self._proc, process.pid) or (before.moved if before else None))

    def _count_the_dead(self, tree: Mapping[tuple[int, float], _Process]) -> None:
        """Keep what the dead used, as far as it is not in the sums of those who collected them.

        Else the sum would fall when a worker ends that nobody waits for, and hide what all others do.
        """
        keys = {pid: (pid, start) for pid, start in self._seen}
        left: dict[tuple[int, float] | None, tuple[float, ...]] = {}
        for key, process in self._seen.items():
            if key in tree:
                continue
            heir = keys.get(process.parent)
            while heir is not None and heir not in tree:
                heir = keys.get(self._seen[heir].parent)
            left[heir] = tuple(map(sum, zip(left.get(heir, (0.0,) * 4), process.used(), strict=True)))
        for heir, used in left.items():
            known = (0.0,) * 4 if heir is None else tree[heir].inherited(self._seen[heir])
            more = (max(0.0, of_dead - of_heir) for of_dead, of_heir in zip(used, known, strict=True))
            a, b, c, d = map(sum, zip(self._dead, more, strict=True))
            self._dead = a, b, c, d


def leftovers(marker_env: str, value: str, proc: str = _PROC) -> list[int]:
    """This user's living processes, ours apart, that were started with `marker_env`=`value` in their environment."""
    if sys.platform != "linux":
        return _leftovers_elsewhere(marker_env, value)
    mark = os.fsencode(f"{marker_env}={value}")
    found = []
    for pid in _pids(proc):
        path = os.path.join(proc, str(pid), "environ")
        if pid != os.getpid() and _is_ours(path) and mark in _read(path).split(b"\0"):
            found.append(pid)
    return sorted(found)


def _is_ours(path: str) -> bool:
    try:
        return os.stat(path).st_uid == os.geteuid()
    except OSError:
        return False


# /proc; its formats are in proc(5) ----------------------------------------------------------------


def _pids(folder: str) -> list[int]:
    try:
        return [int(name) for name in os.listdir(folder) if name.isdigit()]
    except OSError:
        return []


def _read(path: str) -> bytes:
    """The whole file; nothing where it cannot be read: its process may just have gone."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return b""
    try:
        parts = []
        while part := os.read(fd, 65536):
            parts.append(part)
        return b"".join(parts)
    except OSError:
        return b""
    finally:
        os.close(fd)


def _stat(path: str) -> list[bytes]:
    """The fields of a stat file from the third, the state, on.

    The second is the name in brackets, which may hold spaces and brackets.
    """
    return _read(path).rpartition(b")")[2].split()


def _table(proc: str) -> Iterator[_Process]:
    """All processes that are to be seen."""
    tick = os.sysconf("SC_CLK_TCK")
    for pid in _pids(proc):
        fields = _stat(f"{proc}/{pid}/stat")
        try:
            state, parent, session = fields[0].decode(), int(fields[1]), int(fields[3])
            own, children = int(fields[11]) + int(fields[12]), int(fields[13]) + int(fields[14])
            yield _Process(pid, float(fields[19]), parent, session, state, own / tick, children / tick)
        except (IndexError, ValueError):
            continue  # gone meanwhile


def _bytes_of(proc: str, pid: int) -> tuple[int, int, int] | None:
    """Bytes read and written by calls, and moved by disks. None: it may not be read, as with another user's."""
    found = {
        name: value for name, _, value in (line.partition(b": ") for line in _read(f"{proc}/{pid}/io").splitlines())
    }
    try:
        disks = int(found[b"read_bytes"]) + int(found[b"write_bytes"])
        return int(found[b"rchar"]), int(found[b"wchar"]), disks
    except (KeyError, ValueError):
        return None


def _state(
    proc: str, process: _Process | None
) -> tuple[State, dict[str, int], tuple[str, ...], tuple[int, str] | None]:
    """What the threads of a process do: together, by letters, where those in state D are, and who traces it."""
    if process is None:
        return State.GONE, {}, (), None
    folder = f"{proc}/{process.pid}/task"
    letters = {tid: fields[0].decode() for tid in _pids(folder) if (fields := _stat(f"{folder}/{tid}/stat"))}
    living = {tid: letter for tid, letter in letters.items() if letter not in "ZX"}
    if not living:
        return (State.ZOMBIE if letters or process.state == "Z" else State.GONE), {}, (), None
    blocked = tuple(_wait_of(f"{folder}/{tid}/wchan") for tid, letter in living.items() if letter == "D")
    tracer = _tracer(proc, folder, process.pid, living)
    counts = dict(Counter(living.values()))
    if tracer is not None:
        return State.TRACED, counts, blocked, tracer
    if set(living.values()) == {"T"}:
        return State.STOPPED, counts, blocked, None
    if living.get(process.pid) == "D" or set(living.values()) == {"D"}:
        return State.BLOCKED, counts, blocked, None
    return State.RUNNING, counts, blocked, None


def _wait_of(path: str) -> str:
    name = _read(path).decode(errors="replace").strip()
    return "" if name == "0" else name


def _tracer(proc: str, folder: str, main: int, living: Mapping[int, str]) -> tuple[int, str] | None:
    """Of the main thread, or of one that a tracer has stopped: a debugger may hold only some of them."""
    for tid in [main, *(tid for tid, letter in living.items() if letter == "t")]:
        for line in _read(f"{folder}/{tid}/status").splitlines():
            name, _, value = line.partition(b":\t")
            if name == b"TracerPid" and value.isdigit() and int(value):
                return int(value), _read(f"{proc}/{int(value)}/comm").decode(errors="replace").strip()
    return (0, "") if "t" in living.values() else None


# Elsewhere ----------------------------------------------------------------------------------------


def _table_elsewhere(root: int) -> Iterator[_Process]:
    """The root and all below it, as psutil knows them."""
    import psutil

    try:
        top = psutil.Process(root)
        found = [top, *top.children(recursive=True)]
    except psutil.Error:
        return
    for each in found:
        try:
            with each.oneshot():
                times = each.cpu_times()
                dead = float(getattr(times, "children_user", 0.0)) + float(getattr(times, "children_system", 0.0))
                own = times.user + times.system
                yield _Process(each.pid, each.create_time(), each.ppid() or 0, 0, each.status(), own, dead)
        except psutil.Error:
            continue  # gone meanwhile, or not ours to ask


def _state_elsewhere(process: _Process | None) -> State:
    if process is None:
        return State.GONE
    known = {
        "stopped": State.STOPPED,
        "tracing-stop": State.TRACED,
        "zombie": State.ZOMBIE,
        "disk-sleep": State.BLOCKED,
    }
    return known.get(process.state, State.RUNNING)


def _leftovers_elsewhere(marker_env: str, value: str) -> list[int]:
    import psutil

    found = []
    for process in psutil.process_iter():
        try:
            ours = process.pid != os.getpid() and process.uids().effective == os.geteuid()
            if ours and process.environ().get(marker_env) == value:
                found.append(process.pid)
        except (psutil.Error, OSError):
            continue
    return sorted(found)
