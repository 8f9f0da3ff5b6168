"""What goes wrong in the script of `scripts/torture faults`, done by itself, when and where its environment says.

FAULT names the act, FAULT_AT the place ("step:57", "test:2:7" for epoch and batch, "epoch_end:1", "data:40", "before"),
FAULT_TIMES how often (0: always), FAULT_DIR a folder. Before an act is done the file FAULT_DIR/fired gets a line with
the process, the time and the place: that is how the rig knows. `mark` does nothing more; the rig does the rest.
"""

from __future__ import annotations

import ctypes
import json
import mmap
import os
import platform
import resource
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

PATIENCE = 60.0  # seconds that an act waits for the rig
NAME = os.environ.get("FAULT", "")
FOLDER = Path(os.environ.get("FAULT_DIR", "."))
TIMES = int(os.environ.get("FAULT_TIMES", "1"))
SECONDS = float(os.environ.get("FAULT_SECONDS", "12"))
_PLACE, *_NUMBERS = os.environ.get("FAULT_AT", "").split(":")
_AT = tuple(int(number) for number in _NUMBERS)
model: Any = None  # the one that is trained


class Torture(Exception):
    """Raised on purpose."""


def here(place: str, *numbers: int) -> None:
    """The script is at a place: the act is done if it is that one. Data is counted, and late is not too late."""
    if place != _PLACE or NAME not in ACTS:
        return
    if numbers == _AT or (place == "data" and numbers >= _AT):
        act(place, *numbers)


def act(place: str, *numbers: int) -> None:
    """Do it, if it has not been done often enough."""
    if not TIMES or done() < TIMES:
        tell(place, *numbers)
        ACTS[NAME]()


def done() -> int:
    """How often it was done, by all attempts."""
    try:
        return (FOLDER / "fired").read_bytes().count(b"\n")
    except FileNotFoundError:
        return 0


def tell(place: str, *numbers: int) -> None:
    """Tell the rig."""
    at = ":".join([place, *map(str, numbers)])
    line = json.dumps({"pid": os.getpid(), "mono": time.monotonic(), "at": at}) + "\n"
    fd = os.open(FOLDER / "fired", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    os.write(fd, line.encode())
    os.close(fd)


def _await_go() -> None:
    """Wait until the rig has prepared the rest."""
    end = time.monotonic() + PATIENCE
    while not (FOLDER / "go").exists() and time.monotonic() < end:
        time.sleep(0.01)


# Exceptions ---------------------------------------------------------------------------------------


def _raise() -> NoReturn:
    raise Torture("raised on purpose")


def _connection() -> NoReturn:
    raise ConnectionError("torture: the server is away")


def _memory_error() -> NoReturn:
    raise MemoryError("torture: not enough")


def _rlimit() -> None:
    """A real one: the address space may not grow any more."""
    import numpy as np

    size = int(Path("/proc/self/statm").read_text().split()[0]) * mmap.PAGESIZE
    resource.setrlimit(resource.RLIMIT_AS, (size + (64 << 20), resource.RLIM_INFINITY))
    np.ones(1 << 28)  # 2 GiB


def _resource_exhausted() -> NoReturn:
    """As TensorFlow words it on a GPU."""
    import tensorflow as tf

    words = "OOM when allocating tensor with shape[64,256,56,56] and type float on "
    words += "/job:localhost/replica:0/task:0/device:GPU:0 by allocator GPU_0_bfc"
    raise tf.errors.ResourceExhaustedError(None, None, words)


def _nan() -> None:
    """The weights are no numbers any more; what notices is in the script."""
    for variable in model.trainable_variables:
        variable.assign(variable * float("nan"))


def _enospc() -> None:
    with open(FOLDER / "small" / "log", "wb", buffering=0) as stream:
        stream.writelines(bytes(1 << 16) for _ in range(64))


def _async_exc() -> None:
    """Another thread raises it in this one."""

    def throw(thread: int) -> None:
        raised = ctypes.py_object(Torture)
        ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread), raised)

    threading.Thread(target=throw, args=(threading.get_ident(),)).start()


def _signal_exc() -> None:
    def handler(number: int, frame: object) -> None:
        raise Torture("raised by a signal's handler")

    signal.signal(signal.SIGUSR2, handler)
    os.kill(os.getpid(), signal.SIGUSR2)


def _exit_3() -> NoReturn:
    sys.exit(3)


def _exit_0() -> NoReturn:
    raise SystemExit


def _remove_word() -> None:
    """The file that the pipeline reads goes away."""
    (FOLDER / "word").unlink()


# Crashes ------------------------------------------------------------------------------------------


def crash_here() -> None:
    """The function that the stacks have to name."""
    CRASHES[NAME]()


def _segfault() -> None:
    ctypes.string_at(0)


def _sigbus() -> None:
    with open(FOLDER / "short", "w+b") as stream:
        stream.truncate(2 * mmap.PAGESIZE)
        mapped = mmap.mmap(stream.fileno(), 2 * mmap.PAGESIZE)
        os.ftruncate(stream.fileno(), 0)
        mapped[mmap.PAGESIZE]


def _sigfpe() -> None:
    _machine_code(b"\x31\xc9\x31\xd2\xb8\x01\x00\x00\x00\xf7\xf1", signal.SIGFPE)  # 1 / 0


def _sigill() -> None:
    _machine_code(b"\x0f\x0b", signal.SIGILL)  # ud2


def _machine_code(code: bytes, number: int) -> None:
    """Run it; on another processor than it is for the signal has to do."""
    if platform.machine() != "x86_64":
        signal.raise_signal(number)
    page = mmap.mmap(-1, mmap.PAGESIZE, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
    page.write(code)
    ctypes.CFUNCTYPE(None)(ctypes.addressof(ctypes.c_char.from_buffer(page)))()


def _bad_alloc() -> None:
    """C++'s own."""
    operator_new = ctypes.CDLL("libstdc++.so.6")._Znwm
    operator_new.argtypes = [ctypes.c_size_t]
    operator_new(1 << 60)


# Hangs --------------------------------------------------------------------------------------------


def hang_here() -> None:
    """The function that the stacks have to name."""
    HANGS[NAME]()


def _deadlock() -> None:
    lock = threading.Lock()
    lock.acquire()
    lock.acquire()


def _lock_gil() -> None:
    """Native code that waits for itself and keeps the GIL. Not sleep(3): any signal would end it."""
    mutex, libc = ctypes.create_string_buffer(128), ctypes.PyDLL(None)
    libc.pthread_mutex_lock(mutex)
    libc.pthread_mutex_lock(mutex)


def _wait() -> None:
    threading.Event().wait()


def _read_nfs() -> None:
    _await_go()
    (FOLDER / "nfs" / "data").read_bytes()


# What is slow, and no hang ------------------------------------------------------------------------


def _sleep() -> None:
    time.sleep(SECONDS)


def _compute() -> None:
    end = time.monotonic() + SECONDS
    while time.monotonic() < end:
        sum(range(10_000))


def _debug() -> None:
    breakpoint()  # noqa: T100 - the rig answers


# Others -------------------------------------------------------------------------------------------


def _devour() -> None:
    """All memory there is, page by page; the cgroup has less than that."""
    _await_go()
    held = [bytearray(os.urandom(1 << 20) * 32) for _ in range(400)]
    raise Torture(f"{len(held)} pieces of 32 MiB, and nobody minded")


def _daemon() -> None:
    """One that forks twice, leads a session of its own and has no environment."""
    code = (
        "import os, sys\n"
        "if not os.fork():\n"
        "    os.setsid()\n"
        "    if not os.fork():\n"
        "        open(sys.argv[1], 'w').write(str(os.getpid()))\n"
        "        os.execve('/bin/sleep', ['sleep', '600'], {})\n"
        "    os._exit(0)\n"
        "os.wait()\n"
    )
    path = FOLDER / "daemon"
    subprocess.run([sys.executable, "-I", "-S", "-c", code, str(path)], env={}, check=True)
    _await(path)


def _await(path: Path) -> None:
    end = time.monotonic() + PATIENCE
    while not (path.exists() and path.read_text()) and time.monotonic() < end:
        time.sleep(0.01)


def _poison() -> None:
    """From now on the state itself is bad: see `fail_if_poisoned`."""
    model.flag.assign(1.0)
    _poisoned.append(os.getpid())


_poisoned: list[int] = []


def fail_if_poisoned() -> None:
    """Who resumes from a poisoned state dies in its first step, before there can be another such state."""
    if NAME == "poison" and not _poisoned and float(model.flag):
        tell("poisoned")
        os.kill(os.getpid(), signal.SIGKILL)


def begin() -> None:
    """At the script's begin."""
    if NAME == "mkdir":
        os.mkdir(FOLDER / "logs")
    if FOLDER.is_dir():
        (FOLDER / "word").write_text("1")


CRASHES: dict[str, Callable[[], None]] = {
    "abort": os.abort,
    "segfault": _segfault,
    "sigbus": _sigbus,
    "sigfpe": _sigfpe,
    "sigill": _sigill,
}
HANGS: dict[str, Callable[[], None]] = {"deadlock": _deadlock, "lock_gil": _lock_gil, "wait": _wait}
ACTS: dict[str, Callable[[], None]] = {
    "mark": lambda: None,
    "mkdir": lambda: None,
    "raise": _raise,
    "connection": _connection,
    "memory_error": _memory_error,
    "rlimit": _rlimit,
    "resource_exhausted": _resource_exhausted,
    "nan": _nan,
    "enospc": _enospc,
    "async_exc": _async_exc,
    "signal_exc": _signal_exc,
    "exit_3": _exit_3,
    "os_exit": lambda: os._exit(5),
    "exit_0": _exit_0,
    "remove_word": _remove_word,
    "bad_alloc": _bad_alloc,
    "nfs": _read_nfs,
    "sleep": _sleep,
    "compute": _compute,
    "debug": _debug,
    "devour": _devour,
    "daemon": _daemon,
    "poison": _poison,
    **dict.fromkeys(CRASHES, crash_here),
    **dict.fromkeys(HANGS, hang_here),
}
