"""What the tests of notices share."""

from __future__ import annotations

import queue
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ksupervise.notices import Notice, Pace, Watch, watch
from ksupervise.notices.notice import Announcer

from .emulator import PATIENCE

# Everything at once, but patient with a loaded machine.
QUICK = Pace(
    aws=0.01,
    azure=0.01,
    gcp=0.01,
    gcp_hold=1.0,
    file=0.01,
    disk=0.01,
    timeout=10.0,
    azure_first=10.0,
    retry=0.01,
    retry_most=0.02,
    slow=0.01,
)
NOWHERE = Path("/nonexistent/dmi")


class Clock:
    """A monotonic clock, moved by the test."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


class Heard:
    """Keeps what a watch tells and notes, and the watches themselves."""

    def __init__(self) -> None:
        self._notices: queue.Queue[Notice] = queue.Queue()
        self._notes: queue.Queue[str] = queue.Queue()
        self._watches: list[Watch] = []

    def watch(self, choice: str, environ: Mapping[str, str], pace: Pace = QUICK, **more: Any) -> Watch:
        """Watch, until the test is over."""
        made = watch(
            choice, tell=self._notices.put, note=self._notes.put, environ=environ, dmi=NOWHERE, pace=pace, **more
        )
        return self.keep(made)

    def keep(self, made: Watch) -> Watch:
        """Close it when the test is over."""
        self._watches.append(made)
        return made

    def announcer(self, source: str, clock: Clock, lead: float = 900.0) -> Announcer:
        """For a source that the test asks itself, without threads."""
        return Announcer(source, self._notices.put, threading.Event(), lead=lead, clock=clock)

    def notice(self) -> Notice:
        """The next notice, waited for."""
        return self._notices.get(timeout=PATIENCE)

    def note(self) -> str:
        """The next note, waited for."""
        return self._notes.get(timeout=PATIENCE)

    def notices(self) -> list[Notice]:
        """The notices that are there and were not taken yet."""
        return _drained(self._notices)

    def notes(self) -> list[str]:
        """The notes that are there and were not taken yet."""
        return _drained(self._notes)

    def close(self) -> None:
        """End the watches. Raises AssertionError if a thread of theirs is left."""
        ears = [ear for made in self._watches for ear in made._ears]
        for made in self._watches:
            made.close()
        assert not [ear for ear in ears if ear._thread.is_alive()]


def _drained(entries: queue.Queue[Any]) -> list[Any]:
    found = []
    while not entries.empty():
        found.append(entries.get_nowait())
    return found
