"""A file that appears: for every platform that has no notice of its own, or whose notice somebody else hears.

An empty file, or one with any text, is final. Its first line may be a number, the seconds that are left; or the whole
a JSON object with any of `seconds`, `final` (false: advisory) and `text`.
"""

from __future__ import annotations

import json
import math
import os
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ksupervise.notices.ear import Question
from ksupervise.notices.notice import Announcer, Unavailable, plain
from ksupervise.notices.pace import Pace

LARGEST = 4096  # bytes that are read

_ABSENT = (FileNotFoundError, NotADirectoryError)


@dataclass(frozen=True)
class _Word:
    """What the file says; `whole` is False while its writer may still be at it."""

    text: str = ""
    final: bool = True
    seconds: float | None = None
    whole: bool = True


class Source:
    """The file at `path`, looked at from a thread of its own: on a dead NFS a look may never come back."""

    name = "file"
    hint = ""

    def __init__(self, announcer: Announcer, path: Path, pace: Pace) -> None:
        self._announcer = announcer
        self._path = Path(os.path.abspath(path.expanduser()))
        self._pace = pace
        self._seen: tuple[int, ...] | None = None  # which file, in which state
        self._unfinished: tuple[int, ...] | None = None
        self._waited_for = False
        self._word = _Word()
        self._until: float | None = None
        self.place = f"the notice file {plain(str(self._path))}"

    def questions(self) -> tuple[Question, ...]:
        """Is it there?"""
        return (Question("its state", self._look, self._pace.file),)

    def hang_up(self) -> None:
        """Nothing can end a look that hangs; it is left behind."""

    def _look(self) -> None:
        status = self._status()
        if status is None:
            self._seen, self._unfinished, self._waited_for = None, None, True
            self._announcer.gone("file")
            return
        state = (status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns)
        if state != self._seen:
            word = self._read(status)
            if not word.whole and self._waited_for and state != self._unfinished:
                self._unfinished = state  # perhaps its writer is not done: `echo 60 > FILE` is two steps
                return
            self._seen, self._word = state, word
            self._until = None if word.seconds is None else self._announcer.clock() + word.seconds
        text = f"{self._path} is there" + (f": {self._word.text}" if self._word.text else "")
        self._announcer.heard("file", text, final=self._word.final, until=self._until)

    def _status(self) -> os.stat_result | None:
        try:
            return self._path.stat()
        except _ABSENT:
            return None
        except (OSError, ValueError) as error:
            raise Unavailable(str(error)) from error

    def _read(self, status: os.stat_result) -> _Word:
        """What it says; a file that cannot be read, or is none, is there all the same."""
        if not stat.S_ISREG(status.st_mode):
            return _Word()
        try:
            # It may have been replaced by a pipe since: never wait for one.
            with open(os.open(self._path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as file:
                return _understood(file.read(LARGEST))
        except OSError:
            return _Word()


def _understood(content: bytes) -> _Word:
    text = content.decode("utf-8", "replace").strip()
    if not text:
        return _Word(whole=False)
    if text.startswith("{"):
        return _from_json(text)
    first, _, rest = text.partition("\n")
    seconds = _seconds(first)
    return _Word(text=plain(first if seconds is None else rest), seconds=seconds)


def _from_json(text: str) -> _Word:
    try:
        fields: Any = json.loads(text)
    except (ValueError, RecursionError):
        return _Word(text=plain(text), whole=False)
    words = fields.get("text")
    return _Word(
        text=plain(words) if isinstance(words, str) else "",
        final=fields.get("final") is not False,
        seconds=_seconds(fields.get("seconds")),
    )


def _seconds(value: object) -> float | None:
    """A number of seconds that makes sense; None for anything else. Below 0 is 0."""
    if isinstance(value, bool) or not isinstance(value, (int, float, str)):
        return None
    try:
        seconds = float(value)
    except (ValueError, OverflowError):
        return None
    return max(0.0, seconds) if math.isfinite(seconds) else None
