"""A run, looked at from outside, as anybody can: its journal, its control page, its owner's note.

Times are of CLOCK_MONOTONIC, which the journal's "mono" is too: everything happens on one machine within one boot.
"""

from __future__ import annotations

import contextlib
import os
import shlex
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ksupervise.parent import journal
from ksupervise.parent.launch import LIVE
from ksupervise.parent.rehearse.squeeze import is_gone
from ksupervise.parent.stage import live_page
from ksupervise.store import Owner, RunLayout, owner_is_alive, read_owner

_TAIL = 12  # lines of the script's output that explain a failure

Record = Mapping[str, Any]


@dataclass(frozen=True)
class Glance:
    """The newest attempt's control page at one moment."""

    at: float
    attempt: int
    phase: int
    fit: int
    step: int
    executed: int
    warm: bool
    staged_step: int
    stage_every: float
    commit_every: float
    slowest_step: float


class Subject:
    """A run, looked at from outside."""

    def __init__(self, directory: Path) -> None:
        self.layout = RunLayout(directory)
        self.name = directory.name
        self._records: list[Record] = []
        self._size = -1

    def records(self) -> Sequence[Record]:
        """The journal as it is now; only ever longer."""
        try:
            size = os.stat(self.layout.journal).st_size
        except OSError:
            return self._records
        if size != self._size:
            self._records, self._size = list(journal.read(Path(self.layout.journal))), size
        return self._records

    def attempt(self) -> int:
        """Number of the newest attempt, 0 before the first."""
        return int(last(self.records(), "launched").get("attempt", 0))

    def glance(self) -> Glance | None:
        """What the control page says; None if there is none."""
        attempt = self.attempt()
        try:
            page = live_page(Path(self.layout.attempt(attempt)) / LIVE)
        except (OSError, ValueError):
            return None
        words = {name: page.integer(name) for name in ("phase", "fit", "step", "executed", "staged_step")}
        times = {name: page[name] for name in ("stage_every", "commit_every", "slowest_step")}
        found = Glance(time.monotonic(), attempt, warm=bool(page.integer("warm")), **words, **times)  # type: ignore[arg-type]
        page.close()
        return found

    def trainer(self, attempt: int) -> int:
        """The process that trains in `attempt`, 0 if none does."""
        pid = int(last(self.records(), "claimed", attempt).get("pid", 0))
        return 0 if not pid or is_gone(pid) else pid

    def owner(self) -> Owner | None:
        """Whoever supervises it on this machine, None if nobody does."""
        owner = read_owner(self.layout.lock)
        return owner if owner is not None and owner_is_alive(owner) else None

    def tail(self) -> str:
        """The last lines that the newest attempt's script printed."""
        with contextlib.suppress(OSError):
            text = Path(self.layout.output_log(self.attempt())).read_bytes()[-8192:].decode(errors="replace")
            return "\n".join(text.splitlines()[-_TAIL:])
        return ""


def last(records: Sequence[Record], event: str, attempt: int | None = None) -> Record:
    """The newest record of that event, empty if there is none."""
    wanted = (r for r in reversed(records) if r["event"] == event and attempt in (None, r.get("attempt")))
    return next(wanted, {})


def how_called(pid: int) -> str:
    """The command by which process `pid` was started, and where."""
    import psutil

    try:
        known = psutil.Process(pid)
        return f"cd {shlex.quote(known.cwd())} && {shlex.join(known.cmdline())}"
    except psutil.Error:
        return "its command cannot be read"
