"""Who owns a run: an flock on a file, and in the file a note for people and for other parents.

The lock decides, the note explains. The lock belongs to the open file description: it lives as long as
any process holds a copy of the descriptor, so a child that inherits it keeps the run owned until its own
death, also when the parent was killed. Nobody has to clean up after a crash.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import time
from contextlib import suppress
from dataclasses import asdict, dataclass, fields
from typing import TYPE_CHECKING

from ksupervise.store.faults import StoreUnwritable, write_fault

if TYPE_CHECKING:
    from ksupervise.store.atomic import StrPath

_MAX_NOTE = 64 * 1024  # bytes
_TRIES = 10  # the lock file vanished between open and lock: somebody archives the run at this moment
_NO_LOCKS = frozenset({errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS, errno.EINVAL})


@dataclass(frozen=True)
class Owner:
    """What the note says. Advisory: it may be outdated.

    Attributes:
        pid: the owner's process id on its host.
        start_time: when that process started, in clock ticks since its machine's boot; None if unknown.
            With the pid it names a process for good: pids are used again.
        boot_id: names the boot of the machine; empty if unknown.
        host: name of the machine.
        address: where the owner listens; empty if nowhere.
        acquired: wall clock, seconds since 1970.
    """

    pid: int
    start_time: int | None
    boot_id: str
    host: str
    address: str
    acquired: float


class RunLock:
    """The lock of one run. One object is one claim; it is not for sharing between threads."""

    def __init__(self, path: StrPath) -> None:
        self.path = os.fspath(path)
        self._fd: int | None = None
        self._pid = 0  # who acquired it: a forked copy of this object may close, but not rewrite the note

    def acquire(self, address: str = "") -> bool:
        """Try to become the owner, without waiting. False: somebody else is; see `read_owner`.

        Raises:
            StoreFull, StoreUnwritable: the file cannot be made, or this file system has no locks.
            RuntimeError: this object holds it already.
        """
        if self._fd is not None:
            raise RuntimeError(f"{self.path} is already held by this very object")
        try:
            self._fd = _lock(self.path)
        except OSError as error:
            raise _lock_fault(error, self.path) from error
        if self._fd is None:
            return False
        self._pid = os.getpid()
        self.announce(address)
        return True

    def announce(self, address: str) -> None:
        """Write the note anew, with where the owner listens. A note that cannot be written is not missed.

        Raises:
            RuntimeError: the lock is not held.
        """
        note = json.dumps(asdict(_this_process(address))).encode()
        try:
            # In place: a new file would not be the locked one. Readers take a torn note for none.
            os.pwrite(self.fileno(), note, 0)
            os.ftruncate(self.fileno(), len(note))
        except OSError:
            pass

    def fileno(self) -> int:
        """The descriptor, to be handed to the child with `pass_fds`; otherwise it is closed on exec.

        Raises:
            RuntimeError: the lock is not held.
        """
        if self._fd is None:
            raise RuntimeError(f"{self.path} is not held")
        return self._fd

    @property
    def held(self) -> bool:
        """Whether this object holds its descriptor."""
        return self._fd is not None

    def release(self) -> None:
        """Let go of this process' copy; the run is free when the last copy is closed. Twice is harmless.

        Never LOCK_UN: that would free it under the feet of a child that still writes.
        """
        if self._fd is None:
            return
        fd, self._fd = self._fd, None
        with suppress(OSError):
            if self._pid == os.getpid():
                os.ftruncate(fd, 0)
        with suppress(OSError):  # a mount that went away reports that here; the descriptor is gone all the same
            os.close(fd)


def read_owner(path: StrPath) -> Owner | None:
    """What the note says, or None: nobody wrote one, it is being written, or it makes no sense."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        try:
            text = os.read(fd, _MAX_NOTE)
        finally:
            os.close(fd)
        return _owner(json.loads(text))
    except (OSError, ValueError, TypeError, RecursionError):
        return None


def owner_is_alive(owner: Owner) -> bool | None:
    """Whether that very process still runs. None: it is on another machine, nobody here can know."""
    if owner.host != _host():
        return None
    boot = boot_id()
    if owner.boot_id and boot and owner.boot_id != boot:
        return False  # the machine was booted since
    if owner.start_time is None or not os.path.exists("/proc/self/stat"):
        return _pid_exists(owner.pid)
    return start_time(owner.pid) == owner.start_time


def _lock(path: str) -> int | None:
    """A descriptor that holds the lock of the file now at `path`; None if somebody else holds it."""
    for _ in range(_TRIES):
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        ours = False
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            ours = _is_file_at(fd, path)
        except BlockingIOError:
            return None
        finally:
            if not ours:
                os.close(fd)
        if ours:
            return fd
    return None


def _is_file_at(fd: int, path: str) -> bool:
    # A lock on a file that was renamed or removed meanwhile excludes nobody who comes after us.
    try:
        return os.path.samestat(os.fstat(fd), os.stat(path))
    except FileNotFoundError:
        return False


def _lock_fault(error: OSError, path: str) -> StoreUnwritable:
    if error.errno not in _NO_LOCKS:
        return write_fault(error, path)
    return StoreUnwritable(
        f"Cannot lock {path}: its file system has no locks ({os.strerror(error.errno or 0)}). "
        "Choose a local disk with --store, and this place with --replica."
    )


def _owner(values: object) -> Owner:
    if type(values) is not dict or set(values) != {each.name for each in fields(Owner)}:
        raise ValueError("not a note of ours")
    owner = Owner(**values)
    for text in (owner.boot_id, owner.host, owner.address):
        if type(text) is not str:
            raise ValueError("not a text")
    if type(owner.pid) is not int or not 0 < owner.pid < 2**31:
        raise ValueError("not a process id")
    if type(owner.start_time) not in (int, type(None)) or type(owner.acquired) not in (int, float):
        raise ValueError("not a time")
    return owner


def _this_process(address: str) -> Owner:
    pid = os.getpid()
    return Owner(pid, start_time(pid), boot_id(), _host(), address, time.time())


def _host() -> str:
    return os.uname().nodename


def boot_id() -> str:
    """Names this boot of the machine; empty where nothing tells."""
    try:
        with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as file:
            return file.read().strip()
    except OSError:
        return ""


def start_time(pid: int) -> int | None:
    """When a process started, in clock ticks since its machine's boot (field 22 of /proc/PID/stat).

    None if there is no such process, it is a zombie, or there is no /proc.
    """
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            # The second field is the command's name in brackets; it may hold spaces and brackets.
            after_name = file.read().rpartition(b")")[2].split()
    except OSError:
        return None
    return None if after_name[0] in (b"Z", b"X") else int(after_name[19])


def _pid_exists(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
