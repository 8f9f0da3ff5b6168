"""What the child prints, byte for byte to our own stdout and stderr, and readable to a log file.

The console is written by a thread of its own: a terminal that is stopped (Ctrl-S), a pipe that
nobody reads or a closed window never stall the training. What does not fit the queue is dropped from the
console, never from the log.
"""

from __future__ import annotations

import os
import re
import threading
from collections import deque
from pathlib import Path

QUEUE_BYTES = 4 * 1024 * 1024
_REWRITES = re.compile(rb"\r|\x08+|\n")


class Console:
    """The two console streams, written in order by one daemon thread."""

    def __init__(self, stdout: int = 1, stderr: int = 2) -> None:
        self._fds = (stdout, stderr)
        self._queue: deque[tuple[int, bytes]] = deque()
        self._bytes = 0
        self._dropped = 0
        self._condition = threading.Condition()
        self._closing = False
        self._mid_line = [False, False]
        self._thread = threading.Thread(target=self._write_all, name="console", daemon=True)
        self._thread.start()

    def write(self, stream: int, data: bytes) -> None:
        """Queue `data` for stream 0 (stdout) or 1 (stderr). Never blocks."""
        with self._condition:
            if self._bytes + len(data) > QUEUE_BYTES:
                self._dropped += len(data)
                return
            self._queue.append((stream, data))
            self._bytes += len(data)
            self._mid_line[stream] = not data.endswith(b"\n")
            self._condition.notify()

    def say(self, line: str) -> None:
        """Queue a line of our own for stderr; it never starts inside a line of the script's."""
        shared = self._fds[0] != self._fds[1] and _same_file(*self._fds)
        with self._condition:
            inside = self._mid_line[1] or (shared and self._mid_line[0])
        self.write(1, (b"\n" if inside else b"") + line.encode(errors="replace") + b"\n")
        if shared:
            self._mid_line[0] = False

    def close(self, seconds: float = 2.0) -> None:
        """Write what is queued, waiting at most `seconds` for a console that does not read."""
        with self._condition:
            self._closing = True
            self._condition.notify()
        self._thread.join(seconds)

    def _write_all(self) -> None:
        while True:
            with self._condition:
                while not self._queue and not self._closing:
                    self._condition.wait()
                if not self._queue:
                    return
                stream, data = self._queue.popleft()
            _write_fully(self._fds[stream], data)
            with self._condition:
                self._bytes -= len(data)
                dropped, self._dropped = (self._dropped, 0) if not self._queue else (0, self._dropped)
            if dropped:
                note = f"\nksupervise: the console was blocked; {dropped} bytes are in the log only\n"
                _write_fully(self._fds[1], note.encode())


def _write_fully(fd: int, data: bytes) -> None:
    """Write all of `data`; a console that is gone takes nothing any more, and nobody minds."""
    view = memoryview(data)
    while view:
        try:
            view = view[os.write(fd, view) :]
        except BlockingIOError:
            _wait_writable(fd)
        except OSError:
            return


def _wait_writable(fd: int) -> None:
    import select

    select.select([], [fd], [], 1.0)


def _same_file(one: int, other: int) -> bool:
    try:
        return os.path.sameopenfile(one, other)
    except OSError:
        return False


class LogFile:
    """A log in which rewritten lines (progress bars: `\\r`, `\\b`) appear once, as they last stood.

    Keras' progress bar rewrites its line some 20 times a second, 19 MB an hour; collapsed it is a
    line an epoch.
    """

    LINE_LIMIT = 64 * 1024  # a longer line is written in pieces

    def __init__(self, path: Path) -> None:
        """Append to `path`. Raises OSError."""
        self._fd: int | None = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        self._line = bytearray()
        self._cursor = 0
        self.failed: OSError | None = None

    def write(self, data: bytes) -> None:
        """Take raw output. A disk that is full ends the log, never the training: see `failed`."""
        out = bytearray()
        position = 0
        for match in _REWRITES.finditer(data):
            self._put(data[position : match.start()], out)
            position = match.end()
            self._control(match.group(), out)
        self._put(data[position:], out)
        self._append(out)

    def _put(self, text: bytes, out: bytearray) -> None:
        self._line[self._cursor : self._cursor + len(text)] = text
        self._cursor += len(text)
        if len(self._line) > self.LINE_LIMIT:
            out += self._line
            self._line.clear()
            self._cursor = 0

    def _control(self, control: bytes, out: bytearray) -> None:
        if control == b"\n":
            out += self._line + b"\n"
            self._line.clear()
            self._cursor = 0
        elif control == b"\r":
            self._cursor = 0
        else:
            self._cursor = max(0, self._cursor - len(control))

    def _append(self, data: bytes | bytearray) -> None:
        if not data or self._fd is None:
            return
        try:
            os.write(self._fd, data)
        except OSError as error:
            self.failed = self.failed or error

    def close(self) -> None:
        """Write the unfinished line and close."""
        if self._line:
            self._append(self._line + b"\n")
            self._line.clear()
        if self._fd is not None:
            os.close(self._fd)
            self._fd = None
