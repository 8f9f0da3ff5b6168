"""What a process does that says nothing: seen from outside, on real ones."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest
from tests.store import fuse

from ksupervise.parent.watch import witness
from ksupervise.parent.watch.witness import Activity, Look, State, Witness, activity, describe, leftovers

LINUX = sys.platform == "linux"
PATIENCE = 20.0  # seconds that anything may take on a loaded machine

pytestmark = pytest.mark.skipif(not LINUX, reason="/proc")

WAITS = "import sys; print('ready', flush=True); sys.stdin.read(1); print('on', flush=True); sys.stdin.read(1)"
# Says how it got on after each half second of processor time that it used.
SPINS = """
import time
print('ready', flush=True)
while True:
    end = time.process_time() + 0.5
    while time.process_time() < end:
        pass
    print('spun', flush=True)
"""
THREADS = """
import threading, sys
for _ in range(3):
    threading.Thread(target=threading.Event().wait, daemon=True).start()
"""
BURN = """
def burn(seconds):
    import time
    end = time.process_time() + seconds
    while time.process_time() < end:
        pass
"""
BURNT = 0.26  # seconds of the 0.3 that are burnt; the kernel counts them in hundredths, and rounds down


class Running:
    """A python of ours that says `ready`."""

    def __init__(self, program: str, *arguments: str, **environment: str) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", program, *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, **environment},
            start_new_session=True,
        )
        self.pid = self.process.pid

    def hear(self) -> str:
        """The next line that it says; empty if it has ended."""
        assert self.process.stdout is not None
        return self.process.stdout.readline().strip()

    def go_on(self) -> str:
        """Let it, and hear what it says then."""
        assert self.process.stdin is not None
        self.process.stdin.write("x")
        self.process.stdin.flush()
        return self.hear()

    def end(self) -> None:
        """With all of its session."""
        for number in (signal.SIGCONT, signal.SIGKILL):
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.pid, number)
        self.process.wait(PATIENCE)
        for pipe in (self.process.stdin, self.process.stdout):
            assert pipe is not None
            with contextlib.suppress(BrokenPipeError):
                pipe.close()


Start = Callable[..., Running]


@pytest.fixture
def start() -> Iterator[Start]:
    """Start a program and wait until it is ready."""
    started: list[Running] = []

    def begin(program: str, *arguments: str, **environment: str) -> Running:
        started.append(Running(program, *arguments, **environment))
        assert started[-1].hear() == "ready"
        return started[-1]

    yield begin
    for each in started:
        each.end()


def until(found: Callable[[], bool], what: str) -> None:
    """Ask again and again; each question is work enough to be no burden."""
    end = time.monotonic() + PATIENCE
    while not found():
        assert time.monotonic() < end, f"never: {what}"


# What it does -------------------------------------------------------------------------------------


def test_one_that_spins(start: Start) -> None:
    spinning = start(SPINS)
    watching = Witness(spinning.pid)
    first = watching.look()
    assert [spinning.hear() for _ in range(2)] == ["spun", "spun"]
    second = watching.look()
    seen = activity(first, second)
    assert seen.cores is not None
    assert 0.5 <= (second.cpu or 0) - (first.cpu or 0) <= 2.0 + seen.seconds
    assert seen.cores == pytest.approx(((second.cpu or 0) - (first.cpu or 0)) / seen.seconds)
    assert (second.state, second.processes, second.threads) == (State.RUNNING, 1, {"R": 1})
    assert describe(second, seen).startswith("busy: ")


def test_one_that_waits(start: Start) -> None:
    waiting = start(WAITS)
    watching = Witness(waiting.pid)
    until(lambda: watching.look().threads == {"S": 1}, "it waits")
    first = watching.look()
    spinning = start(SPINS)  # another's
    assert spinning.hear() == "spun"
    second = watching.look()
    assert second.state is State.RUNNING
    assert activity(first, second).cores == 0.0
    assert describe(second, activity(first, second)) == "idle"
    assert describe(second) == "running"


def test_bytes_are_counted(start: Start, tmp_path: Path) -> None:
    program = WAITS.replace("print('on'", f"open({str(tmp_path / 'file')!r}, 'w').write('x' * 10**7); print('on'")
    writing = start(program)
    watching = Witness(writing.pid)
    first = watching.look()
    assert writing.go_on() == "on"
    second = watching.look()
    assert first.written is not None
    assert second.written is not None
    assert 10**7 <= second.written - first.written < 10**7 + 10**5
    seen = activity(first, second)
    assert seen.written == pytest.approx((second.written - first.written) / seen.seconds)
    assert "moving" in describe(second, seen)


def test_one_that_was_stopped_with_all_its_threads(start: Start) -> None:
    stopped = start(THREADS + WAITS)
    os.kill(stopped.pid, signal.SIGSTOP)
    os.waitpid(stopped.pid, os.WUNTRACED)
    look = Witness(stopped.pid).look()
    assert (look.state, look.threads) == (State.STOPPED, {"T": 4})
    assert describe(look) == "stopped by a signal (state T)"
    os.kill(stopped.pid, signal.SIGCONT)
    until(lambda: Witness(stopped.pid).look().state is State.RUNNING, "it goes on")


TRACER = """
import ctypes, os, sys
libc = ctypes.CDLL(None, use_errno=True)
open('/proc/self/comm', 'w').write('a (tracer')
request, pid = int(sys.argv[1]), int(sys.argv[2])
if libc.ptrace(request, pid, None, None):
    print(os.strerror(ctypes.get_errno()), flush=True)
else:
    if request == 16:
        os.waitpid(pid, 0x40000000)  # __WALL: until it has stopped
    print('ready', flush=True)
    sys.stdin.read()
"""


@pytest.mark.parametrize(("request_", "letters"), [(16, "tSSS"), (0x4206, "SSSS")], ids=["attach", "seize"])
def test_one_that_is_traced(start: Start, request_: int, letters: str) -> None:
    traced = start(THREADS + WAITS)
    until(lambda: Witness(traced.pid).look().threads == {"S": 4}, "all wait")
    tracer = Running(TRACER, str(request_), str(traced.pid))
    try:
        if (answer := tracer.hear()) != "ready":
            pytest.skip(f"nothing may be traced here: {answer}")
        look = Witness(traced.pid).look()
        assert (look.state, look.tracer) == (State.TRACED, (tracer.pid, "a (tracer"))
        assert sorted("".join(name * count for name, count in look.threads.items())) == sorted(letters)
        assert describe(look) == f"a debugger is attached (process {tracer.pid}, a (tracer)"
    finally:
        tracer.end()


def test_a_tracer_of_one_thread_alone(start: Start) -> None:
    """As `strace -p TID`."""
    traced = start(THREADS + WAITS)
    until(lambda: Witness(traced.pid).look().threads == {"S": 4}, "all wait")
    thread = max(int(name) for name in os.listdir(f"/proc/{traced.pid}/task"))
    tracer = Running(TRACER, "16", str(thread))
    try:
        if (answer := tracer.hear()) != "ready":
            pytest.skip(f"nothing may be traced here: {answer}")
        assert Witness(traced.pid).look().tracer == (tracer.pid, "a (tracer")
    finally:
        tracer.end()


@pytest.fixture
def mount(tmp_path: Path) -> Iterator[fuse.Mount]:
    """A file system that will not answer, once its process is stopped; it holds a file `data`."""
    if reason := fuse.why_not():
        pytest.skip(reason)
    for name in ("backing", "mount"):
        (tmp_path / name).mkdir()
    (tmp_path / "backing/data").write_bytes(b"x" * 100_000)
    with fuse.mounted(tmp_path / "backing", tmp_path / "mount") as mounted:
        yield mounted
        os.kill(mounted.pid, signal.SIGCONT)


READS = """
import os, signal, sys, threading
signal.signal(signal.SIGUSR1, lambda *_: None)
fd = os.open(sys.argv[1], os.O_RDONLY)
def read():
    os.kill(int(sys.argv[2]), signal.SIGSTOP)
    print('ready', flush=True)
    os.read(fd, 50_000)
"""


def hang(start: Start, program: str, mount: fuse.Mount) -> Running:
    """Start it; it stops the file system's process, then reads."""
    return start(program, os.path.join(mount.path, "data"), str(mount.pid))


def test_one_that_waits_for_a_dead_file_system(start: Start, mount: fuse.Mount) -> None:
    reading = hang(start, READS + "read()", mount)
    watching = Witness(reading.pid)

    def blocked() -> bool:
        os.kill(reading.pid, signal.SIGUSR1)  # in vain, and some kernels wait uninterruptibly only from then on
        return watching.look().state is State.BLOCKED

    until(blocked, "it waits uninterruptibly")
    look = watching.look()
    assert (look.state, look.threads) == (State.BLOCKED, {"D": 1})
    assert len(look.blocked) == 1
    assert describe(look).startswith("in uninterruptible sleep (D)")
    if look.blocked[0]:
        assert describe(look) == f"in uninterruptible sleep (D) in {look.blocked[0]}"


def test_its_other_threads_may_wait_as_ever(start: Start, mount: fuse.Mount) -> None:
    reading = hang(start, THREADS + READS + "read()", mount)
    watching = Witness(reading.pid)

    def blocked() -> bool:
        for name in os.listdir(f"/proc/{reading.pid}/task"):
            os.kill(int(name), signal.SIGUSR1)
        return watching.look().threads == {"S": 3, "D": 1}

    until(blocked, "its main thread waits uninterruptibly")
    assert watching.look().state is State.BLOCKED


def test_one_of_whose_threads_waits_for_a_dead_file_system(start: Start, mount: fuse.Mount) -> None:
    program = READS + "thread = threading.Thread(target=read, daemon=True); thread.start(); thread.join()"
    reading = hang(start, program, mount)
    watching = Witness(reading.pid)

    def blocked() -> bool:
        for name in os.listdir(f"/proc/{reading.pid}/task"):
            os.kill(int(name), signal.SIGUSR1)
        return watching.look().threads == {"S": 1, "D": 1}

    until(blocked, "one of them waits uninterruptibly")
    look = watching.look()
    assert look.state is State.RUNNING
    assert describe(look).startswith("1 of 2 threads in uninterruptible sleep (D)")


def test_one_that_is_dead(start: Start) -> None:
    dying = start(f"{BURN}\nburn(0.3)\n{WAITS}")
    watching = Witness(dying.pid)
    used = watching.look().cpu
    assert used is not None
    assert used >= BURNT
    dying.process.kill()
    os.waitid(os.P_PID, dying.pid, os.WEXITED | os.WNOWAIT)
    look = watching.look()
    assert look.state is State.ZOMBIE
    assert "zombie" in describe(look)
    dying.process.wait(PATIENCE)
    look = watching.look()
    assert (look.state, look.processes, describe(look)) == (State.GONE, 0, "gone")
    assert look.cpu is not None
    assert look.cpu >= used, "what it used is not forgotten"


def test_a_main_thread_that_ended_before_the_others(start: Start) -> None:
    program = (
        "import ctypes, sys, threading;"
        "threading.Thread(target=lambda: (print('ready', flush=True), sys.stdin.read())).start();"
        "ctypes.CDLL(None).syscall(60, 0)"  # exit, of this thread alone
    )
    if os.uname().machine != "x86_64":
        pytest.skip("the number of a system call")
    odd = start(program)
    until(lambda: Witness(odd.pid).look().threads == {"S": 1}, "its main thread is gone")
    assert Witness(odd.pid).look().state is State.RUNNING


# Whose it is --------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["a) R 1 1 1", "(((", "x y", ") S ("])
def test_a_name_that_looks_like_more_fields(start: Start, name: str) -> None:
    odd = start(f"open('/proc/self/comm', 'w').write({name!r});" + WAITS)
    assert Path(f"/proc/{odd.pid}/comm").read_text() == f"{name}\n"
    until(lambda: Witness(odd.pid).look().threads == {"S": 1}, "it waits")
    look = Witness(odd.pid).look()
    assert (look.state, look.processes) == (State.RUNNING, 1)
    assert look.cpu is not None
    assert look.cpu < 10


def test_a_trainer_below_the_root(start: Start) -> None:
    program = (
        "import subprocess, sys;"
        f"child = subprocess.Popen([sys.executable, '-c', {THREADS + WAITS!r}], stdin=subprocess.PIPE,"
        " stdout=subprocess.PIPE);"
        "child.stdout.readline(); print('ready', flush=True); sys.stdin.read()"
    )
    root = start(program)
    (trainer,) = psutil.Process(root.pid).children()
    watching = Witness(root.pid)
    assert watching.look().processes == 2
    trainer.send_signal(signal.SIGSTOP)
    until(lambda: watching.look(trainer.pid).threads == {"T": 4}, "it is stopped")
    assert watching.look(trainer.pid).state is State.STOPPED
    assert watching.look().state is State.RUNNING
    assert watching.look(os.getpid()).state is State.GONE, "not of this tree"


WORKERS = (
    BURN
    + """
import os, sys
{setup}
def fork():
    pid = os.fork()
    if not pid:
        burn(0.3)
        os.write(1, b'ready\\n')
        os.read(0, 1)
        os._exit(0)
    return pid
pid = fork()
try:
    os.waitpid(pid, 0)
except ChildProcessError:
    pass
os.write(1, b'ended\\n')
os.read(0, 1)
"""
)


@pytest.mark.parametrize(
    "setup", ["", "import signal; signal.signal(signal.SIGCHLD, signal.SIG_IGN)"], ids=["collected", "not collected"]
)
def test_what_a_worker_used_stays_counted_when_it_ends(start: Start, setup: str) -> None:
    root = start(WORKERS.format(setup=setup))
    watching = Witness(root.pid)
    first = watching.look()
    assert first.processes == 2
    assert root.go_on() == "ended"
    second = watching.look()
    assert second.processes == 1
    assert first.cpu is not None
    assert second.cpu is not None
    assert BURNT <= first.cpu <= second.cpu < first.cpu + 0.25, "neither lost nor counted twice"


def test_what_a_worker_wrote_stays_counted_when_it_ends(start: Start) -> None:
    program = WORKERS.format(setup="import signal; signal.signal(signal.SIGCHLD, signal.SIG_IGN)")
    root = start(program.replace("burn(0.3)", "open('/dev/null', 'wb', 0).write(bytes(10**6))"))
    watching = Witness(root.pid)
    first = watching.look()
    assert root.go_on() == "ended"
    second = watching.look()
    assert 10**6 <= (first.written or 0) <= (second.written or 0) < 10**6 + 10**5


def test_a_worker_that_nobody_saw_counts_when_it_was_collected(start: Start) -> None:
    root = start(BURN + "import os\nos.write(1, b'ready\\n')\nos.read(0, 1)\n" + WORKERS.format(setup=""))
    watching = Witness(root.pid)
    first = watching.look()
    assert root.go_on() == "ready"
    assert root.go_on() == "ended"
    second = watching.look()
    assert (second.cpu or 0) - (first.cpu or 0) >= BURNT


@pytest.mark.parametrize("new_session", [False, True])
def test_an_orphan_still_counts(start: Start, new_session: bool) -> None:
    """The middle one of three ends, the last one goes on. In a session of its own it is known if it was seen before."""
    program = (
        f"{BURN}\nimport os, select\n"
        "if not os.fork():\n"
        "    if not os.fork():\n"
        f"        os.setsid() if {new_session} else None\n"
        "        burn(0.3)\n"
        "        os.write(1, b'ready\\n')\n"
        "        end = select.poll()\n"
        "        end.register(0, 0)\n"
        "        end.poll()\n"  # until nobody is left who could write to it
        "    else:\n"
        "        os.read(0, 1)\n"
        "    os._exit(0)\n"
        "os.wait()\n"
        "os.write(1, b'ended\\n')\n"
        "os.read(0, 1)\n"
    )
    root = start(program)
    watching = Witness(root.pid)
    first = watching.look()
    assert first.processes == 3
    assert root.go_on() == "ended"
    second = watching.look()
    assert second.processes == 2
    assert (second.cpu or 0) >= (first.cpu or 0) >= BURNT


def test_an_orphan_that_was_never_seen_is_known_by_its_session(start: Start) -> None:
    root = start(
        "import os, sys\n"
        "if not os.fork():\n"
        "    if os.fork():\n"
        "        os._exit(0)\n"
        "    sys.stdin.read()\n"
        "else:\n"
        "    os.wait()\n"
        "    print('ready', flush=True)\n"
        "    sys.stdin.read()\n"
    )
    assert Witness(root.pid).look().processes == 2


def write_process(proc: Path, pid: int, start: int = 100, state: str = "S") -> None:
    """Its stat files, in another /proc."""
    line = f"{pid} (x) {state} 1 {pid + 1} {pid + 1} 0 -1 0 0 0 0 0 10 0 0 0 20 0 1 0 {start} 0\n"
    for path in (proc / f"{pid}/stat", proc / f"{pid}/task/{pid}/stat"):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(line)


def test_a_number_that_was_given_to_another_process_is_not_the_root(tmp_path: Path) -> None:
    write_process(tmp_path, 7)
    watching = Witness(7, str(tmp_path))
    assert watching.look().state is State.RUNNING
    write_process(tmp_path, 7, start=200)
    assert (watching.look().state, watching.look().processes) == (State.GONE, 0)


def test_the_bytes_of_a_zombie_are_not_told_any_more(tmp_path: Path) -> None:
    write_process(tmp_path, 7)
    io = tmp_path / "7/io"
    io.write_text("rchar: 10\nwchar: 20\nsyscr: 1\nsyscw: 2\nread_bytes: 4\nwrite_bytes: 3\ncancelled_write_bytes: 1\n")
    watching = Witness(7, str(tmp_path))
    look = watching.look()
    assert (look.read_bytes, look.written, look.storage) == (10, 20, 7)
    write_process(tmp_path, 7, state="Z")
    io.unlink()
    look = watching.look()
    assert look.state is State.ZOMBIE
    assert (look.read_bytes, look.written, look.storage) == (10, 20, 7)


def test_where_nothing_can_be_read_nothing_is_known(tmp_path: Path) -> None:
    look = Witness(os.getpid(), str(tmp_path / "none")).look()
    assert (look.state, look.cpu, look.read_bytes) == (State.UNKNOWN, None, None)
    assert describe(look) == "unknown"
    assert describe(look, activity(look, look)) == "unknown"


def test_files_that_hold_something_else(tmp_path: Path) -> None:
    (tmp_path / "7").mkdir()
    (tmp_path / "7/stat").write_text("7 (x) S 1\n")
    (tmp_path / "8").mkdir()
    assert Witness(7, str(tmp_path)).look().state is State.UNKNOWN
    (tmp_path / "7/stat").write_text(f"7 (x) S {'nonsense ' * 50}\n")
    assert Witness(7, str(tmp_path)).look().state is State.UNKNOWN
    write_process(tmp_path, 7)
    (tmp_path / "7/io").write_text("rchar 5\nnonsense\n: \n")
    (tmp_path / "7/task/7/status").write_text("TracerPid:\tnobody\n")
    look = Witness(7, str(tmp_path)).look()
    assert (look.state, look.read_bytes) == (State.RUNNING, None)


# Words --------------------------------------------------------------------------------------------


def seen(cores: float | None = 0.0, moved: float | None = 0.0, storage: float | None = 0.0) -> Activity:
    return Activity(1.0, cores, moved, 0.0, storage)


@pytest.mark.parametrize(
    ("look", "since", "text"),
    [
        (Look(0, State.RUNNING), seen(1.94), "busy: 1.9 cores"),
        (Look(0, State.RUNNING), seen(0.05), "busy: 0.05 cores"),
        (Look(0, State.RUNNING), seen(0.01), "idle"),
        (Look(0, State.RUNNING), seen(0.0, 3e6), "idle, moving 3.0 MB/s"),
        (Look(0, State.RUNNING), seen(0.0, 0.0, 3e6), "idle, moving 3.0 MB/s"),
        (Look(0, State.RUNNING), seen(None, None, None), "running"),
        (Look(0, State.TRACED, tracer=(123, "gdb")), None, "a debugger is attached (process 123, gdb)"),
        (Look(0, State.TRACED, tracer=(0, "")), None, "a debugger is attached (outside of this container)"),
        (Look(0, State.BLOCKED, {"D": 1}, ("",)), None, "in uninterruptible sleep (D)"),
        (
            Look(0, State.BLOCKED, {"D": 3}, ("", "nfs_wait_bit_killable", "nfs_wait_bit_killable")),
            seen(0.0),
            "in uninterruptible sleep (D) in nfs_wait_bit_killable",
        ),
        (
            Look(0, State.RUNNING, {"S": 30, "D": 1}, ("folio_wait_bit_common",)),
            seen(0.0),
            "idle, 1 of 31 threads in uninterruptible sleep (D) in folio_wait_bit_common",
        ),
    ],
)
def test_in_words(look: Look, since: Activity | None, text: str) -> None:
    assert describe(look, since) == text


def test_between_two_looks() -> None:
    first = Look(10.0, cpu=5.0, read_bytes=100, written=None, storage=0)
    second = Look(12.0, cpu=8.0, read_bytes=50, written=9, storage=4)
    assert activity(first, second) == (2.0, 1.5, 0.0, None, 2.0)
    assert activity(first, first).cores is None


# What is left -------------------------------------------------------------------------------------


def test_what_carries_the_mark_is_found(start: Start, tmp_path: Path) -> None:
    value = str(tmp_path)
    ours = start(WAITS, KSUPERVISE_TEST_MARK=value)
    for other in (f"{value}x", value[:-1], ""):
        start(WAITS, KSUPERVISE_TEST_MARK=other)
    start(WAITS, OTHER_KSUPERVISE_TEST_MARK=value)
    escaped = start(
        "import os, sys\nif os.fork(): os._exit(0)\nos.setsid()\nprint('ready', flush=True)\nsys.stdin.read()",
        KSUPERVISE_TEST_MARK=value,
    )
    found = leftovers("KSUPERVISE_TEST_MARK", value)
    assert ours.pid in found
    assert len(found) == 2
    (orphan,) = set(found) - {ours.pid}
    assert orphan != escaped.pid
    for pid in found:
        os.kill(pid, signal.SIGKILL)
    ours.process.wait(PATIENCE)
    until(lambda: leftovers("KSUPERVISE_TEST_MARK", value) == [], "all are gone")


def test_what_looks_is_not_left_over(monkeypatch: pytest.MonkeyPatch) -> None:
    program = (
        "from ksupervise.parent.watch.witness import leftovers\n"
        "print('ready', leftovers('KSUPERVISE_TEST_MARK', 'here'))"
    )
    environment = {**os.environ, "KSUPERVISE_TEST_MARK": "here"}
    command = [sys.executable, "-c", program]
    out = subprocess.run(command, env=environment, check=True, capture_output=True, text=True, timeout=60).stdout
    assert out == "ready []\n"


# Where there is no /proc --------------------------------------------------------------------------


@pytest.fixture
def elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on macOS: psutil tells."""
    monkeypatch.setattr(witness, "sys", SimpleNamespace(platform="darwin"))


@pytest.mark.usefixtures("elsewhere")
def test_elsewhere_time_is_counted(start: Start) -> None:
    root = start(WORKERS.format(setup=""))
    watching = Witness(root.pid)
    first = watching.look()
    assert (first.state, first.processes, first.written) == (State.RUNNING, 2, None)
    assert first.cpu is not None
    assert first.cpu >= BURNT
    assert root.go_on() == "ended"
    second = watching.look()
    assert second.processes == 1
    assert (second.cpu or 0) >= first.cpu
    assert describe(second, activity(first, second)).startswith(("idle", "busy"))


@pytest.mark.usefixtures("elsewhere")
def test_elsewhere_the_stopped_and_the_dead_are_known(start: Start) -> None:
    stopped = start(WAITS)
    watching = Witness(stopped.pid)
    os.kill(stopped.pid, signal.SIGSTOP)
    os.waitpid(stopped.pid, os.WUNTRACED)
    assert watching.look().state is State.STOPPED
    stopped.end()
    assert watching.look().state is State.GONE


@pytest.mark.usefixtures("elsewhere")
def test_elsewhere_what_carries_the_mark_is_found(start: Start, tmp_path: Path) -> None:
    ours = start(WAITS, KSUPERVISE_TEST_MARK=str(tmp_path))
    assert leftovers("KSUPERVISE_TEST_MARK", str(tmp_path)) == [ours.pid]
