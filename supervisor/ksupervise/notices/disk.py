"""The disk of the store is filling up: save while there is room, and say so once."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

from ksupervise.notices.ear import Question
from ksupervise.notices.notice import Announcer, Unavailable, plain
from ksupervise.notices.pace import Pace

RECOVERED = 1.2  # times the limit: free space that wavers about the limit is one notice, not many


def free_bytes(path: Path) -> int:
    """Bytes that we may still write on the file system of `path`. Raises OSError."""
    return shutil.disk_usage(path).free


class Source:
    """The file system of the store.

    Args:
        announcer: is told when it is low.
        path: of the store, or anything on its file system.
        least: bytes below which it is low; asked at each look, since what a checkpoint needs is learned on the way.
        pace: how often to look.
        free: measures.
    """

    name = "disk"
    hint = ""

    def __init__(
        self,
        announcer: Announcer,
        path: Path,
        least: Callable[[], int],
        pace: Pace,
        free: Callable[[Path], int] = free_bytes,
    ) -> None:
        self._announcer = announcer
        self._path = path
        self._least = least
        self._pace = pace
        self._free = free
        self.place = f"the file system of {plain(str(path))}"

    def questions(self) -> tuple[Question, ...]:
        """How much is free?"""
        return (Question("its free space", self._look, self._pace.disk),)

    def hang_up(self) -> None:
        """Nothing can end a look that hangs; it is left behind."""

    def _look(self) -> None:
        try:
            free = self._free(self._path)
        except OSError as error:
            raise Unavailable(str(error)) from error
        least = self._least()
        if free < least:
            text = f"{self._path}: only {_megabytes(free)} are free, less than {_megabytes(least)}; make room"
            self._announcer.heard("low", text, final=False)
        elif free >= RECOVERED * least:
            self._announcer.gone("low")


def _megabytes(count: float) -> str:
    return f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{count / 1e6:.0f} MB"
