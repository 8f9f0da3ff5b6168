"""A cgroup in which memory runs out on demand, so that the kernel's own killer takes a chosen process.

For rehearsals. A SIGKILL of ours would look the same to the child; only the kernel's is counted by the cgroup, and so
shows whether an out-of-memory kill is recognized as one. Linux only, and only where a cgroup may be made.
"""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

_ROOM = 16 * 1024 * 1024  # bytes that the eater finds free
_BEYOND = 64  # MiB beyond the limit at which it gives up
_GOING = 2.0  # seconds in which the kernel lets go of a group whose last process ended
# It joins the group, and eats until the killer comes. Its score makes it the next choice, before any of the run's.
_EATER = """
import sys
group, megabytes = sys.argv[1:]
for path, text in ((group, "0"), ("/proc/self/oom_score_adj", "500")):
    with open(path, "w") as stream:
        stream.write(text)
held = [b"x" * (1 << 20) for _ in range(int(megabytes))]
"""


class Squeeze:
    """A cgroup of our own, empty at first and without a limit.

    Attributes:
        procs: the file by which a process joins it: it writes "0" there.
    """

    def __init__(self, groups: Sequence[Mapping[str, Any]]) -> None:
        """`groups` as in `OomCounter.read`: it is made below or beside the first of them. Raises OSError."""
        if not groups:
            raise OSError(errno.ENOTSUP, "memory is not accounted for by cgroups here")
        self._first = groups[0]["version"] == 1
        self._folder = _place(Path(groups[0]["path"]), self._first) / f"ksupervise-rehearsal-{secrets.token_hex(4)}"
        self._folder.mkdir()
        self.procs = self._folder / "cgroup.procs"
        try:
            self._no_swap()
            self._number("memory.usage_in_bytes" if self._first else "memory.current")
        except OSError:
            self.remove()
            raise

    def enter(self, pid: int) -> None:
        """Move process `pid` into the group. Raises OSError."""
        self.procs.write_text(str(pid))

    def kill(self, pid: int, seconds: float) -> str:
        """Let memory run out with process `pid` as the first choice; wait at most `seconds` for its end.

        Returns "", or why the kernel did not take it.
        """
        before = self._kills()
        try:
            self.enter(pid)
            Path(f"/proc/{pid}/oom_score_adj").write_text("1000")
            limit = self._number("memory.usage_in_bytes" if self._first else "memory.current") + _ROOM
            self._set_limit(str(limit))
        except OSError as error:
            return f"process {pid} could not be put under a limit: {error.strerror}"
        megabytes = str(limit // (1 << 20) + _BEYOND)
        eater = subprocess.Popen(
            [sys.executable, "-I", "-S", "-c", _EATER, str(self.procs), megabytes],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        try:
            end = time.monotonic() + seconds
            while not is_gone(pid) and time.monotonic() < end:
                time.sleep(0.002)
        finally:
            eater.kill()
            eater.wait()
            with contextlib.suppress(OSError):
                self._set_limit("-1" if self._first else "max")
        if not is_gone(pid):
            return f"memory ran out in its cgroup, and the kernel did not take process {pid} within {seconds:.0f} s"
        return "" if self._kills() > before else f"process {pid} ended before memory had run out"

    def remove(self) -> None:
        """Remove the group; processes that are still in it go back to where it was made."""
        with contextlib.suppress(OSError):
            for pid in self.procs.read_text().split():
                with contextlib.suppress(OSError):
                    (self._folder.parent / "cgroup.procs").write_text(pid)
        end = time.monotonic() + _GOING
        while self._folder.exists():
            with contextlib.suppress(OSError):
                self._folder.rmdir()
            if time.monotonic() >= end:
                return
            time.sleep(0.01)

    def _set_limit(self, text: str) -> None:
        (self._folder / ("memory.limit_in_bytes" if self._first else "memory.max")).write_text(text)

    def _no_swap(self) -> None:
        path = self._folder / ("memory.swappiness" if self._first else "memory.swap.max")
        if path.exists():  # not on a kernel without swap
            path.write_text("0")

    def _number(self, name: str) -> int:
        return int((self._folder / name).read_text())

    def _kills(self) -> int:
        """What the group counts; 0 where it does not."""
        with contextlib.suppress(OSError):
            lines = (self._folder / ("memory.oom_control" if self._first else "memory.events")).read_text().split("\n")
            return next((int(line.split()[1]) for line in lines if line.startswith("oom_kill ")), 0)
        return 0


def _place(group: Path, first: bool) -> Path:
    """Where a group with a limit can be made. Version 2 allows none below a group that holds processes itself."""
    if first:
        return group
    for folder in (group, group.parent):
        with contextlib.suppress(OSError):
            if "memory" in (folder / "cgroup.subtree_control").read_text().split():
                return folder
    raise OSError(errno.EBUSY, f"neither {group} nor the cgroup above it hands memory limits on")


def is_gone(pid: int) -> bool:
    """There is no such process, or it is a zombie."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    except PermissionError:
        return False
    try:
        stat = Path(f"/proc/{pid}/stat").read_bytes()
    except OSError:
        return os.path.exists("/proc/self/stat")  # it went just now; elsewhere there is no /proc
    return stat.rpartition(b")")[2].split()[0] in (b"Z", b"X")
