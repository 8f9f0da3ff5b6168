"""A notice, and saying each one once."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

# Reckoned anew at each poll, a deadline wanders by the whole second to which a server cuts its Date. Less than this
# is not nearer.
SLACK = 2.0  # seconds
LONGEST = 200  # characters of somebody else's text that are shown


class Unavailable(Exception):
    """No answer, or none that could be from the source. The text says which, for people."""


class Unusable(Exception):
    """The source cannot be watched here at all. The text says why, for people."""


@dataclass(frozen=True)
class Notice:
    """Word from outside that this machine may go.

    Attributes:
        source: who said so: aws, gcp, azure, file or disk.
        text: what was announced, in one line for people.
        final: it has a deadline: save and leave. Otherwise it is advisory: save and go on.
        seconds: left as of now for a final one; None if nobody said how many.
    """

    source: str
    text: str
    final: bool
    seconds: float | None = None


@dataclass
class _Told:
    final: bool
    until: float | None


class Announcer:
    """Tells what one source hears: each thing once, and again when it comes nearer or becomes final.

    Args:
        source: the notices' source.
        tell: is given every notice; called on the watcher's thread.
        silent: set when nothing is to be told any more.
        lead: seconds before its deadline from which on a final notice is told as one. Further away it is told as
            advisory: a reboot that Azure announces for next week is no reason to leave today.
        clock: seconds, monotonic.
    """

    def __init__(
        self,
        source: str,
        tell: Callable[[Notice], None],
        silent: threading.Event,
        *,
        lead: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.clock = clock
        self._source = source
        self._tell = tell
        self._silent = silent
        self._lead = lead
        self._told: dict[str, _Told] = {}

    def heard(self, key: str, text: str, *, final: bool, until: float | None = None) -> None:
        """`key` is announced (still), for the moment `until` on the clock; None: nobody said for when."""
        left = None if until is None else max(0.0, until - self.clock())
        final = final and (left is None or left <= self._lead)
        if self._silent.is_set() or not _is_news(self._told.get(key), final, until):
            return
        self._tell(Notice(self._source, plain(text), final, left if final else None))
        self._told[key] = _Told(final, until)  # last: a notice that could not be told is told at the next look

    def gone(self, key: str) -> None:
        """`key` is not announced (any more): should it come back, it is news."""
        self._told.pop(key, None)


def _is_news(told: _Told | None, final: bool, until: float | None) -> bool:
    """Something new, something that has become final, or come nearer. A deadline is never put off."""
    if told is None or (final and not told.final):
        return True
    if told.final and not final:
        return False
    return until is not None and (told.until is None or until < told.until - SLACK)


def plain(text: str, most: int = LONGEST) -> str:
    """`text` as one line of printable characters, cut to `most`: it goes to a terminal and comes from anybody."""
    line = " ".join("".join(char if char.isprintable() else " " for char in text).split())
    return line if len(line) <= most else line[: most - 1] + "…"
