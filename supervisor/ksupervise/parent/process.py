"""The child as a process: spawned in a session of its own, watched, signalled, swept away.

Linux gives the parent three things that make this exact: a pidfd (death noticed in a millisecond,
no pid ever confused), PR_SET_CHILD_SUBREAPER (an orphaned grandchild becomes ours, so a double fork
does not escape) and PR_SET_PDEATHSIG (a child that has not claimed its run dies with its parent).
Elsewhere SIGCHLD and the process group have to do.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from pathlib import Path

from ksupervise.errors import CommandNotExecutable, CommandNotFound
from ksupervise.parent.outlet import open_outlets

_PR_SET_PDEATHSIG = 1  # linux/prctl.h
_PR_SET_CHILD_SUBREAPER = 36


def resolve(command: Sequence[str], path: str | None = None) -> str:
    """The executable that `command` names, found as a shell finds it.

    Raises CommandNotFound or CommandNotExecutable, each with what to do.
    """
    name = command[0]
    found = _search(name, path if path is not None else os.environ.get("PATH", os.defpath))
    if found is None:
        raise CommandNotFound(f"{name}: command not found; is it installed, and on PATH?")
    if os.path.isdir(found):
        raise CommandNotExecutable(f"{name} is a directory, not a program")
    if not os.access(found, os.X_OK):
        hint = f"python {name}" if name.endswith(".py") else f"chmod +x {name}"
        raise CommandNotExecutable(f"{name} is not executable; did you mean: {hint}")
    return found


def _search(name: str, path: str) -> str | None:
    if os.path.dirname(name):
        return name if os.path.exists(name) else None
    places = [os.path.join(folder or ".", name) for folder in path.split(os.pathsep)]
    present = [place for place in places if os.path.isfile(place)]
    executable = [place for place in present if os.access(place, os.X_OK)]
    return next(iter(executable + present), None)


def become_subreaper() -> None:
    """Let orphans of the child's tree become our children, so that the sweep finds them."""
    if sys.platform == "linux":
        _libc().prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None, use_errno=True)


def _handed_over() -> tuple[int, ...]:
    """Descriptors that our caller opened for the script: `<(zcat data.csv)`, `3<file`, LISTEN_FDS."""
    handed = []
    for name in os.listdir("/dev/fd"):
        with contextlib.suppress(OSError, ValueError):  # that of the listing itself is closed again
            if int(name) > 2 and os.get_inheritable(int(name)):
                handed.append(int(name))
    return tuple(handed)


_HANDED_OVER = _handed_over()  # before anything of ours is opened


class Child:
    """One spawned command, leader of its own session and process group.

    Attributes:
        pid: its process id, also the id of its session and group.
        outlets: its stdout and stderr, by our ends' descriptors; one if both lead through one terminal.
    """

    def __init__(
        self,
        command: Sequence[str],
        environment: Mapping[str, str],
        *,
        inherit: Sequence[int],
    ) -> None:
        """Spawn. `inherit`: descriptors that stay open across exec. Raises OSError."""
        out, err = open_outlets()
        self.outlets = {outlet.read: outlet for outlet in (out, err)}
        try:
            self._popen = subprocess.Popen(
                command,
                env=dict(environment),
                stdout=out.write,
                stderr=err.write,
                start_new_session=True,
                pass_fds=(*inherit, *_HANDED_OVER),
                preexec_fn=_die_with(os.getpid()),  # noqa: PLW1509 - one prctl, no lock, no import
            )
        except OSError:
            for outlet in self.outlets.values():
                os.close(outlet.read)
            raise
        finally:
            for outlet in self.outlets.values():
                os.close(outlet.write)
        self.pid = self._popen.pid
        self.pidfd: int | None = os.pidfd_open(self.pid) if hasattr(os, "pidfd_open") else None

    def gone(self) -> bool:
        """True once the child has ended; its status is collected then."""
        return self._popen.poll() is not None

    @property
    def exit_code(self) -> int | None:
        """The exit code, None if it was killed or lives."""
        code = self._popen.returncode
        return code if code is not None and code >= 0 else None

    @property
    def signal(self) -> int | None:
        """Number of the signal that killed it, None if it exited or lives."""
        code = self._popen.returncode
        return -code if code is not None and code < 0 else None

    def send(self, number: int, *, group: bool = False, pid: int | None = None) -> None:
        """Send a signal to the child, to `pid` or to the whole group. The dead do not mind."""
        with contextlib.suppress(ProcessLookupError, PermissionError):
            if group:
                os.killpg(self.pid, number)
            else:
                os.kill(pid or self.pid, number)

    def sweep(self, seconds: float, spare: Collection[int] = ()) -> tuple[int, ...]:
        """Kill whatever is left of the child's tree; return the pids that will not die.

        Waits at most `seconds`. Escapees of the session are found because we are their subreaper. `spare`: other
        children of ours, which are left alone with all that they started.
        """
        end = time.monotonic() + seconds
        while True:
            self.send(signal.SIGKILL, group=True)
            left = _kill_children({self.pid}, spare)
            if not self.gone():
                left.append(self.pid)
            if not left:
                return ()
            if time.monotonic() > end:
                return tuple(left)
            time.sleep(0.002)

    def resize(self) -> None:
        """Our terminal has a new size: so has the child's."""
        for outlet in self.outlets.values():
            outlet.resize()
        if any(outlet.terminal is not None for outlet in self.outlets.values()):
            self.send(signal.SIGWINCH, group=True)  # it is nobody's controlling terminal: the kernel tells no one

    def _close_outlets(self) -> None:
        for fd in self.outlets:
            os.close(fd)
        self.outlets = {}

    def close(self) -> None:
        """Close our ends of its pipes and its pidfd."""
        self._close_outlets()
        if self.pidfd is not None:
            os.close(self.pidfd)
            self.pidfd = None


def _die_with(parent: int) -> Callable[[], None] | None:
    """A function for the forked child: SIGKILL when `parent` dies, also if it died just now.

    The trainer takes this back when it claims the run: from then on it saves before it leaves.
    """
    if sys.platform != "linux":
        return None
    libc = _libc()  # loaded before the fork: nothing may be imported after it

    def arrange() -> None:
        libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        if os.getppid() != parent:
            os.kill(os.getpid(), signal.SIGKILL)

    return arrange


def remove_temporary(paths: Iterable[str], prefix: str) -> None:
    """Remove the files that a killed child would have removed itself: regular ones of ours, called `prefix…`."""
    for path in paths:
        with contextlib.suppress(OSError):
            found = os.lstat(path)
            ours = stat.S_ISREG(found.st_mode) and found.st_uid == os.getuid()
            if ours and os.path.basename(path).startswith(prefix):
                os.unlink(path)


def reap_orphans(spare: Collection[int]) -> None:
    """Collect the dead that became ours because we are their subreaper; those of `spare` are collected elsewhere."""
    if sys.platform != "linux":
        return  # they are init's there
    with contextlib.suppress(ChildProcessError):
        while (dead := os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)) and dead.si_pid not in spare:
            _reap(dead.si_pid)


def _kill_children(known: Collection[int], spare: Collection[int]) -> list[int]:
    """SIGKILL and reap all our descendants but `known` ones and the trees of `spare`; return those still there."""
    if not _has_children({*known, *spare}):
        return []
    import psutil

    left, spared = [], set(spare)
    for pid in spare:
        with contextlib.suppress(psutil.Error):
            spared.update(each.pid for each in psutil.Process(pid).children(recursive=True))
    for process in psutil.Process().children(recursive=True):
        if process.pid in spared or process.pid in known:
            continue
        with contextlib.suppress(psutil.Error, OSError):
            process.kill()
        if not _reap(process.pid):
            left.append(process.pid)
    return left


def _has_children(known: Collection[int]) -> bool:
    """We have more children than those, dead or alive. Mostly not: that spares psutil's import and its walk over all.

    Without children there are no descendants: an orphan becomes our child where we are a subreaper, and is out of
    sight where we are not.
    """
    try:
        told = [path.read_text() for path in Path("/proc/self/task").glob("[0-9]*/children")]
        if told:  # not every kernel tells
            return not set(map(int, " ".join(told).split())) <= set(known)
    except (OSError, ValueError):
        pass
    try:
        os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    except ChildProcessError:
        return False
    return True


def _reap(pid: int) -> bool:
    try:
        return os.waitpid(pid, os.WNOHANG)[0] == pid
    except ChildProcessError:
        return not Path(f"/proc/{pid}").exists() and sys.platform == "linux"
    except OSError as error:
        return error.errno == errno.ECHILD
