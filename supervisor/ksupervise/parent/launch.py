"""One attempt from the parent's side: environment, child, output, control page, dialogue."""

from __future__ import annotations

import contextlib
import fcntl
import os
import sys
import time
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from ksupervise import wire
from ksupervise.parent import run
from ksupervise.parent.console import LogFile
from ksupervise.parent.process import Child
from ksupervise.parent.stage import live_page
from ksupervise.parent.trainer import Dialogue, Facts
from ksupervise.store import RunLayout, StoreUnwritable, write_fault

LIVE = "live"  # the control page's name in the attempt's directory
STACKS = "stacks.txt"  # what Python did when native code crashed, or when it hung
COMPILED = "compiled"  # in the run's directory: what JAX has compiled, with --standby
_JAX_CACHE = "JAX_COMPILATION_CACHE_DIR"
_HASHES = "PYTHONHASHSEED"  # the order of sets of strings
_HIGH_FD = 200  # inherited descriptors go where no script's own numbers are


@dataclass
class Attempt:
    """Everything that belongs to one life of the child."""

    number: int
    child: Child
    control: wire.Control
    live_fd: int
    dialogue: Dialogue
    log: LogFile
    log_path: str
    open_outputs: set[int] = field(default_factory=set)
    survivors: tuple[int, ...] = ()
    unwritten: str = ""  # why its log and its control page are not in the run's directory
    stacks: Path | None = None  # where the child's interpreters write them
    oom_mark: dict[str, Any] = field(default_factory=dict)  # what the out-of-memory counters read at its launch
    launched: float = field(default_factory=time.monotonic)
    ended: bool = False  # noticed by SIGCHLD, where there is no pidfd
    warm: bool = False  # its interpreter was started before it was needed

    @property
    def facts(self) -> Facts:
        """What the child told."""
        return self.dialogue.facts

    def close(self) -> None:
        """Give back every descriptor."""
        self.child.close()
        self.log.close()
        self.control.close()
        with contextlib.suppress(OSError):  # the mount that it lies on went away
            os.close(self.live_fd)


class Warm(Protocol):
    """An interpreter that waits."""

    def release(self) -> Child | None:
        """Have it begin its attempt. None if it cannot."""


def stacks_of(layout: RunLayout, number: int) -> Path:
    """Where the interpreters of attempt `number` write stacks."""
    return Path(layout.attempt(number)) / STACKS


def marks_of(number: int, lock_fd: int, stacks: Path | None) -> dict[str, str]:
    """What the environment of attempt `number` has besides the run's."""
    marks = {wire.ENV_ATTEMPT: str(number), wire.ENV_LOCK_FD: str(lock_fd)}
    return marks if stacks is None else {**marks, wire.ENV_STACKS: str(stacks)}


def launch(
    number: int,
    command: Sequence[str],
    environment: Mapping[str, str],
    layout: RunLayout,
    lock_fd: int,
    open_dialogue: Callable[[int, wire.Control, int, Sequence[int]], Dialogue],
    *,
    without_disk: bool = False,
    warm: Warm | None = None,
) -> Attempt:
    """Start attempt `number`. With `without_disk` it is started even if nothing can be written for it.

    `warm` is an interpreter that waits to be this attempt: it is used unless that cannot be.

    Raises OSError when the command cannot be executed, StoreUnwritable, StoreFull.
    """
    log_path, unwritten = layout.output_log(number), ""
    with contextlib.ExitStack() as undo:
        # Every file before the child: nothing that fails after the spawn may leave it running.
        try:
            control, live_fd, log = _open_files(Path(layout.make_attempt(number)) / LIVE, Path(log_path), undo)
        except (OSError, StoreUnwritable) as error:
            unwritten = str(error)
            if not without_disk or sys.platform != "linux":
                raise error if isinstance(error, StoreUnwritable) else write_fault(error, log_path) from error
            with _page_in_memory() as live:
                control, live_fd, log = _open_files(live, Path(os.devnull), undo)
        inherited = fcntl.fcntl(lock_fd, fcntl.F_DUPFD_CLOEXEC, _HIGH_FD)
        undo.callback(os.close, inherited)
        stacks = None if unwritten else stacks_of(layout, number)
        marks = marks_of(number, inherited, stacks)
        child = warm.release() if warm is not None and stacks is not None else None
        used = child is not None
        if child is None:
            child = Child(command, {**environment, **marks}, inherit=[inherited])
        undo.pop_all()
        os.close(inherited)
    dialogue = open_dialogue(number, control, live_fd, tuple(child.outlets))
    outputs = set(child.outlets)
    return Attempt(
        number, child, control, live_fd, dialogue, log, log_path, outputs, unwritten=unwritten, stacks=stacks, warm=used
    )


@contextlib.contextmanager
def _page_in_memory() -> Iterator[Path]:
    """A path, for now, by which memory can be opened like a file."""
    memory = os.memfd_create("ksupervise-live", os.MFD_CLOEXEC)
    try:
        yield Path(f"/proc/self/fd/{memory}")
    finally:
        os.close(memory)


def _open_files(live: Path, log_path: Path, undo: contextlib.ExitStack) -> tuple[wire.Control, int, LogFile]:
    """The control page, a descriptor of it for the child, and the log. Raises OSError."""
    with contextlib.ExitStack() as here:
        control = live_page(live, create=True)
        here.callback(control.close)
        fd = os.open(live, os.O_RDWR | os.O_CLOEXEC)
        here.callback(os.close, fd)
        log = LogFile(log_path)
        here.callback(log.close)
        undo.push(here.pop_all())
    return control, fd, log


def child_environment(
    environ: Mapping[str, str],
    *,
    name: str,
    run_dir: str,
    boot: str,
    address: str,
    seed: int | None,
    standby: bool = False,
) -> dict[str, str]:
    """The script's environment with what our hook needs to find its way, and the seeds of the run.

    Keras is seeded where `--seed` was given, now (`seed`) or when the run began. With `standby` what the script imports
    is recorded, and JAX keeps what it compiles in the run's directory, unless the user has it kept elsewhere.
    """
    record = run.load(Path(run_dir) / "run.json")
    outer = environ.get(wire.ENV_BOOT)
    given = environ.get("PYTHONPATH", "")
    # An empty part of a path that is not empty means the working directory.
    path = [part for part in given.split(os.pathsep) if part != outer] if given else []
    ours = {
        wire.ENV_RUN: name,
        wire.ENV_RUN_DIR: run_dir,
        wire.ENV_BOOT: boot,
        wire.ENV_ADDRESS: address,
        wire.ENV_PIN: str(record.seed),
        "PYTHONPATH": os.pathsep.join([boot, *path]),
    }
    if seed is None and record.seed_given:
        seed = record.seed
    if seed is not None:
        ours[wire.ENV_SEED] = str(seed)
    defaults = {"PYTHONUNBUFFERED": "1", _HASHES: _hash_seed(ours[wire.ENV_PIN])}
    if standby:
        ours[wire.ENV_PRELOAD] = "record"
        defaults[_JAX_CACHE] = os.path.join(run_dir, COMPILED)
    else:
        environ = {key: value for key, value in environ.items() if key != wire.ENV_PRELOAD}
    if environ.get(_HASHES) == _hash_seed(environ.get(wire.ENV_PIN, "")):
        ours[_HASHES] = _hash_seed(ours[wire.ENV_PIN])  # a run inside a run: it was not the user who set it
    # Unbuffered: what the script printed before it was killed is seen. The user's own choice stands.
    return {**defaults, **environ, **ours}


def _hash_seed(pin: str) -> str:
    """PYTHONHASHSEED for the run's seed. Never 0, which would switch the randomization off: the script could tell."""
    return str(1 + zlib.crc32(b"hash" + pin.encode()) % (2**32 - 1))
