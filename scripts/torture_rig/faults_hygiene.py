"""What a run leaves behind, read from /proc and its directories."""

from __future__ import annotations

import contextlib
import json
import os
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

from kill import processes_of

PROC = Path("/proc")
_SETTLING = 2.0  # seconds that the kernel may take to take the killed away


class Holdings:
    """What a run holds while it lives: its memory files and the address where its parents listened."""

    def __init__(self, run_dir: Path) -> None:
        self._run_dir = run_dir
        self._memory: set[tuple[int, int]] = set()
        self._addresses: set[str] = set()
        self._looked = 0.0

    def note(self, parent: int) -> None:
        """Look at a living parent, twice a second at most."""
        now = time.monotonic()
        if now - self._looked < 0.5:
            return
        self._looked = now
        self._memory |= set(_memory_files(parent))
        with contextlib.suppress(OSError, ValueError):
            address = json.loads((self._run_dir / "lock").read_text())["address"]
            if address:
                self._addresses.add(address)

    def left(self, strangers: Iterable[int], sessions: Iterable[int], temporary: Path) -> tuple[int, list[str]]:
        """Files that TensorFlow leaves in any case, and everything else that is left.

        `strangers`: processes that must be gone; `sessions`: leaders of sessions of which nothing may be left.
        """
        end = time.monotonic() + _SETTLING
        while (found := [*self._processes(set(strangers), set(sessions))]) and time.monotonic() < end:
            time.sleep(0.02)
        found += [f"a memory file in process {pid}" for pid in self._holders()]
        table = (PROC / "net/unix").read_text()
        found += [f"socket {each}" for each in self._addresses if each and f" {each}\n" in table]
        found += [f"in the run's tmp/: {name}" for name in _names(self._run_dir / "tmp")]
        names = _names(temporary)
        autograph = [name for name in names if name.startswith("__autograph_generated_file")]
        found += [f"temporary file {name}" for name in names if name not in autograph]
        for name in autograph:
            (temporary / name).unlink()
        return len(autograph), found

    def _processes(self, strangers: set[int], sessions: set[int]) -> Iterator[str]:
        marked = set(processes_of(self._run_dir))
        for pid, state, session in _table():
            if state not in "ZX" and (pid in marked or pid in strangers - {0} or session in sessions):
                with contextlib.suppress(OSError):
                    words = (PROC / str(pid) / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
                    yield f"process {pid} ({state}): {words[:80]}"

    def _holders(self) -> Iterator[int]:
        for entry in os.scandir(PROC):
            if entry.name.isdigit() and self._memory and self._memory & set(_memory_files(int(entry.name))):
                yield int(entry.name)


def _table() -> Iterator[tuple[int, str, int]]:
    """Process, state, session."""
    for entry in os.scandir(PROC):
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                words = Path(entry.path, "stat").read_text().rpartition(")")[2].split()
                yield int(entry.name), words[0], int(words[3])


def _memory_files(pid: int) -> Iterator[tuple[int, int]]:
    """Of ksupervise's, by device and number."""
    with contextlib.suppress(OSError):
        for entry in os.scandir(PROC / str(pid) / "fd"):
            with contextlib.suppress(OSError):
                if "memfd:ksupervise" in os.readlink(entry.path):
                    found = os.stat(entry.path)
                    yield found.st_dev, found.st_ino


def _names(folder: Path) -> list[str]:
    with contextlib.suppress(OSError):
        return sorted(os.listdir(folder))
    return []
