"""The append-only record of events: one JSON object a line, in `RUN/journal.jsonl`.

Each record names the life that wrote it ("life", see `core/clock.py`): journals of several machines are merged.
"""

from __future__ import annotations

import contextlib
import json
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ksupervise.core.clock import MERGED, in_order

LIFE = os.urandom(4).hex()  # of this process
_FLAGS = os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC


class Journal:
    """Appends records. A disk that is full loses records, never the run: see `failed`."""

    def __init__(self, path: Path) -> None:
        """Open `path` for appending; a line torn by an earlier death spoils no other. Raises OSError."""
        self.path = path
        self._fd = os.open(path, _FLAGS, 0o600)
        self.failed: OSError | None = None
        self.unwritten: list[dict[str, Any]] = []  # records that the disk did not take
        size = os.fstat(self._fd).st_size
        self._torn = bool(size) and os.pread(self._fd, 1, size - 1) != b"\n"

    def write(self, event: str, **fields: Any) -> dict[str, Any]:
        """Append one record and return it. "at" is wall time, "mono" CLOCK_MONOTONIC, both in s."""
        record = _record(event, fields)
        line = b"\n" * self._torn + _line(record) + b"\n"
        try:
            self._append(line)
        except OSError as error:
            self.failed = self.failed or error
            if not self._written_anew(line):
                self.unwritten.append(record)
        return record

    def _written_anew(self, line: bytes) -> bool:
        """The file was opened anew, and then took the line."""
        with contextlib.suppress(OSError):
            if self._reopen():
                self._append(b"\n" + line)
                return True
        return False

    def _append(self, line: bytes) -> None:
        self._torn = os.write(self._fd, line) < len(line)  # a disk that fills up takes half a line

    def _reopen(self) -> bool:
        """After a mount went away and came back the old descriptor never works again. False: it is still away."""
        try:
            fd = os.open(self.path, _FLAGS, 0o600)
        except OSError:
            return False
        self.close()
        self._fd = fd
        return True

    def sync(self) -> None:
        """Make what was written durable; called at the ends of attempts and runs."""
        try:
            os.fsync(self._fd)
        except OSError as error:
            self.failed = self.failed or error

    def close(self) -> None:
        """Close the file. A mount that went away reports that here too."""
        try:
            os.close(self._fd)
        except OSError as error:
            self.failed = self.failed or error


def read(path: Path) -> Iterator[dict[str, Any]]:
    """All whole records, life by life, the oldest first; torn or foreign lines are passed over. No file: none."""
    try:
        lines = path.read_bytes().splitlines()
    except FileNotFoundError:
        return
    for record in in_order(found for line in lines if (found := _parsed(line)) is not None):
        yield dict(record)


def merge(path: Path, told: bytes) -> None:
    """Append the records of another machine's journal that this one lacks, and note whose they are. Raises OSError.

    What that machine noted of the kind is its own affair. A journal may come many times, and in any order.
    """
    known = path.read_bytes().splitlines() if path.exists() else []
    here = set(known)
    lives = {record.get("life") for line in known if (record := _parsed(line)) is not None}
    lacking: list[bytes] = []
    came: list[str] = []
    for line in told.splitlines():
        record = None if line in here else _parsed(line)
        if record is None or record["event"] == MERGED:
            continue
        here.add(line)
        lacking.append(line)
        life = record.get("life")
        if isinstance(life, str) and life not in lives and life not in came:
            came.append(life)
    if not lacking:
        return
    if came:  # first, for a disk that takes half of it
        lacking.insert(0, _line(_record(MERGED, {"lives": came})))
    fd = os.open(path, _FLAGS, 0o600)
    try:
        with open(fd, "ab", closefd=False) as file:
            file.write(b"".join(line + b"\n" for line in ([b""] if known else []) + lacking))
        os.fsync(fd)
    finally:
        os.close(fd)


def _record(event: str, fields: dict[str, Any]) -> dict[str, Any]:
    now = {"at": round(time.time(), 3), "mono": round(time.monotonic(), 4), "life": LIFE}
    return {"event": event, **now, **fields}


def _line(record: dict[str, Any]) -> bytes:
    return json.dumps(record, separators=(",", ":")).encode()


def _parsed(line: bytes) -> dict[str, Any] | None:
    """The record in a line, None for a torn or foreign one."""
    try:
        record = json.loads(line)
    except (ValueError, RecursionError):  # torn, or brackets upon brackets
        return None
    return record if isinstance(record, dict) and "event" in record else None
