"""Log files that Keras' callbacks write: their length belongs to a checkpoint.

What a dead attempt wrote behind the checkpoint that is gone back to will be written again. It is cut off, so that no
row and no step is there twice. Files of other runs in the same directory are not touched.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Sequence
from typing import Any

_EVENTS = "events.out.tfevents."

# Trainers of this run's earlier attempts: (pid, wall time of its claim, wall time until which it can have written).
earlier: Sequence[tuple[int, float, float]] = ()


def of(callback: Any) -> CsvLog | EventLog | None:
    """The log that one of Keras' own callbacks writes."""
    kind = next((cls.__name__ for cls in type(callback).__mro__ if cls.__module__.startswith("keras.")), "")
    if kind == "CSVLogger":
        return CsvLog(callback)
    return EventLog(callback) if kind == "TensorBoard" else None


class CsvLog:
    """The file of a CSVLogger."""

    def __init__(self, logger: Any) -> None:
        self._logger = logger
        self._append = logger.append

    def state(self) -> dict[str, Any]:
        """Its length, and the columns: they were chosen at the first epoch's end."""
        stream = getattr(self._logger, "csv_file", None)
        try:
            if stream is not None and not stream.closed:
                stream.flush()
            return {"size": os.path.getsize(self._logger.filename), "keys": self._logger.keys}
        except OSError:
            return {}

    def at_begin(self) -> dict[str, Any]:
        """Its state before the fit. What it is going to overwrite does not count."""
        return self.state() if self._append else {}

    def go_back(self, state: dict[str, Any]) -> str:
        """Before `on_train_begin`: let it go on behind `state`. Returns what the user should know, or ""."""
        path, size = self._logger.filename, int(state.get("size", 0))
        try:
            there = os.path.getsize(path)
            if there > size:
                os.truncate(path, size)
        except OSError:
            there = 0
        if size:
            self._logger.append = True
        return f"{path} is shorter than it was: rows of earlier epochs are missing" if there < size else ""

    def begun(self, state: dict[str, Any]) -> None:
        """After `on_train_begin`."""
        self._logger.append = self._append
        if state.get("keys"):
            self._logger.keys = list(state["keys"])

    def discard(self) -> None:
        """The fit was complete: nothing was written in this attempt."""


class EventLog:
    """The event files of a TensorBoard callback: each attempt writes its own."""

    def __init__(self, board: Any) -> None:
        self._board = board
        self._ours: dict[str, int] = {}  # of earlier attempts, as far as they count

    def state(self) -> dict[str, Any]:
        """Path in the log directory → length, for all that this run wrote."""
        for writer in getattr(self._board, "_writers", {}).values():
            writer.flush()
        return {"files": {**self._ours, **{name: self._size(name) for name in self._written_by_us()}}}

    def at_begin(self) -> dict[str, Any]:
        """Its state before the fit."""
        return self.state()

    def go_back(self, state: dict[str, Any]) -> str:
        """Before `on_train_begin`: cut off what earlier attempts wrote behind `state`."""
        files = dict(state.get("files", {}))
        if files:
            self.discard()  # the description of the model, which the first attempt has written
        self._ours = {name: int(size) for name, size in files.items()}
        missing = [name for name, size in self._ours.items() if self._size(name) < size]
        for name in self._written(earlier):
            path = os.path.join(self._board.log_dir, name)
            try:
                if name not in self._ours:
                    os.unlink(path)
                elif os.path.getsize(path) > self._ours[name]:
                    os.truncate(path, self._ours[name])
            except OSError:
                missing.append(name)
        return f"event files in {self._board.log_dir} are not what they were: {', '.join(missing)}" if missing else ""

    def begun(self, state: dict[str, Any]) -> None:
        """After `on_train_begin`."""
        if state.get("files"):
            self._board._should_write_train_graph = False

    def discard(self) -> None:
        """Take back what was written in this attempt."""
        for writer in self._board._writers.values():
            writer.close()
        self._board._writers.clear()
        for name in self._written_by_us():
            try:
                os.unlink(os.path.join(self._board.log_dir, name))
            except OSError:
                pass

    def _size(self, name: str) -> int:
        try:
            return os.path.getsize(os.path.join(self._board.log_dir, name))
        except OSError:
            return 0

    def _written_by_us(self) -> list[str]:
        return self._written([(os.getpid(), 0.0, float("inf"))])

    def _written(self, writers: Sequence[tuple[int, float, float]]) -> list[str]:
        """Event files that one of `writers` made on this host."""
        found = []
        for folder in ("train", "validation"):
            try:
                entries = sorted(os.listdir(os.path.join(self._board.log_dir, folder)))
            except OSError:
                continue
            found += [f"{folder}/{entry}" for entry in entries if any(_made_by(entry, *writer) for writer in writers)]
        return found


def _made_by(name: str, pid: int, since: float, until: float) -> bool:
    """By the name that TensorFlow gives: events.out.tfevents.SECONDS.HOST.PID.NUMBER.v2."""
    seconds, _, rest = name.removeprefix(_EVENTS).partition(".")
    if not name.startswith(_EVENTS) or not seconds.isdigit() or not since - 1 <= int(seconds) <= until + 1:
        return False
    return f".{rest}".startswith(f".{socket.gethostname()}.{pid}.")
