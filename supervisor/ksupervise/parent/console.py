"""What the child prints, byte for byte to our own stdout and stderr, and readable to a log file.

The console is written by a thread of its own: a terminal that is stopped (Ctrl-S), a pipe that
nobody reads or a closed window never stall the training. A console that is merely slow gets everything: while it
is `full` the loop reads no more, and the script waits as it would without us. One that takes nothing for
a second is blocked: what does not fit the queue then is dropped from the console, never from the log.
"""

from __future__ import annotations

import codecs
import os
import re
import threading
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path

QUEUE_BYTES = 4 * 1024 * 1024
_PIECE = 4096  # bytes written at a time: a pipe takes so much as soon as its reader has made a page free
_BLOCKED = 1.0  # seconds without taking a piece after which a console is blocked, not slow
_CLOSING = 60.0  # seconds that a slow console may take for the last of it
_REWRITES = re.compile("\r|\x08+|\n")


class Console:
    """The two console streams, written in order by one daemon thread."""

    def __init__(self, stdout: int = 1, stderr: int = 2) -> None:
        self._fds = (stdout, stderr)
        self._queue: deque[tuple[int, bytes]] = deque()
        self._bytes = 0
        self._dropped = 0
        self._condition = threading.Condition()
        self._closing = False
        self._moved = time.monotonic()
        self.when_room: Callable[[], None] = _nothing
        self._mid_line = [False, False]
        self._thread = threading.Thread(target=self._write_all, name="console", daemon=True)
        self._thread.start()

    @property
    def full(self) -> bool:
        """Better to wait: `when_room` is called, on the console's thread, once there is room again."""
        return self._bytes >= QUEUE_BYTES and not self._blocked()

    def _blocked(self, seconds: float = _BLOCKED) -> bool:
        return time.monotonic() - self._moved > seconds

    def write(self, stream: int, data: bytes) -> None:
        """Queue `data` for stream 0 (stdout) or 1 (stderr). Never blocks."""
        with self._condition:
            if self._bytes + len(data) > QUEUE_BYTES and self._blocked():
                self._dropped += len(data)
            else:
                self._enqueue(stream, data)

    def say(self, line: str) -> None:
        """Queue a line of our own for stderr; it never starts inside a line of the script's, and is in no log: kept."""
        shared = self._fds[0] != self._fds[1] and _same_file(*self._fds)
        with self._condition:
            inside = self._mid_line[1] or (shared and self._mid_line[0])
            self._enqueue(1, (b"\n" if inside else b"") + line.encode(errors="replace") + b"\n")
            if shared:
                self._mid_line[0] = False

    def _enqueue(self, stream: int, data: bytes) -> None:
        if not self._queue and not self._bytes:
            self._moved = time.monotonic()
        self._queue.append((stream, data))
        self._bytes += len(data)
        self._mid_line[stream] = not data.endswith(b"\n")
        self._condition.notify()

    def close(self, seconds: float = 2.0) -> None:
        """Write what is queued; a console that takes nothing for `seconds` is not waited for."""
        with self._condition:
            self._closing = True
            self._condition.notify()
        end = time.monotonic() + max(_CLOSING, seconds)
        while self._thread.is_alive() and not self._blocked(seconds) and time.monotonic() < end:
            self._thread.join(0.05)

    def _write_all(self) -> None:
        while True:
            with self._condition:
                while not self._queue and not self._closing:
                    self._condition.wait()
                if not self._queue:
                    return
                stream, data = self._queue.popleft()
            self._write_fully(self._fds[stream], data)
            with self._condition:
                self._bytes -= len(data)
                room = self._bytes <= QUEUE_BYTES // 2 < self._bytes + len(data)
                dropped, self._dropped = (self._dropped, 0) if not self._queue else (0, self._dropped)
            if dropped:
                note = f"\nksupervise: the console was blocked; {dropped} bytes are in the log only\n"
                self._write_fully(self._fds[1], note.encode())
            if room:
                self.when_room()

    def _write_fully(self, fd: int, data: bytes) -> None:
        """Write all of `data`; a console that is gone takes nothing any more, and nobody minds."""
        view = memoryview(data)
        while view:
            try:
                view = view[os.write(fd, view[:_PIECE]) :]
                self._moved = time.monotonic()
            except BlockingIOError:
                _wait_writable(fd)
            except OSError:
                self._moved = time.monotonic()
                return


def _nothing() -> None:
    """Nobody waits for room."""


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
    line an epoch. A terminal's columns are characters, so characters are what is overwritten; bytes that are no
    UTF-8 pass unchanged.

    A log that has grown long goes on in a new file; the one before it is kept as `PATH.1`.
    """

    LINE_LIMIT = 64 * 1024  # characters; a longer line is written in pieces
    TAIL = 64 * 1024  # characters that are remembered
    ROTATE_AT = 64 * 1024 * 1024  # bytes; what is older than this and the file before it goes

    def __init__(self, path: Path) -> None:
        """Append to `path`. Raises OSError."""
        self._path = path
        self._fd: int | None = _open_to_append(path)
        self._size = os.fstat(self._fd).st_size
        self._tail = ""
        self._decoder = codecs.getincrementaldecoder("utf-8")("surrogateescape")
        self._line = ""
        self._cursor = 0
        self.failed: OSError | None = None

    @property
    def tail(self) -> str:
        """The last of what was written, the unfinished line included."""
        return (self._tail + self._line)[-self.TAIL :]

    def write(self, data: bytes) -> None:
        """Take raw output. A disk that is full costs the log, never the training: see `failed`."""
        self._append(self._collapse(self._decoder.decode(data)))

    def _collapse(self, text: str) -> str:
        """Enter `text` into the line in hand; return the lines that are now over."""
        over = []
        position = 0
        for match in _REWRITES.finditer(text):
            over.append(self._put(text[position : match.start()]))
            position = match.end()
            over.append(self._control(match.group()))
        over.append(self._put(text[position:]))
        return "".join(over)

    def _put(self, text: str) -> str:
        end = self._cursor + len(text)
        self._line = self._line[: self._cursor] + text + self._line[end:]
        self._cursor = end
        return self._take_line() if len(self._line) > self.LINE_LIMIT else ""

    def _control(self, control: str) -> str:
        if control == "\n":
            return self._take_line() + "\n"
        self._cursor = 0 if control == "\r" else max(0, self._cursor - len(control))
        return ""

    def _take_line(self) -> str:
        line, self._line, self._cursor = self._line, "", 0
        return line

    def _append(self, text: str) -> None:
        if not text or self._fd is None:
            return
        self._tail = (self._tail + text)[-self.TAIL :]
        try:
            self._size += os.write(self._fd, text.encode(errors="surrogateescape"))
            if self._size > self.ROTATE_AT:
                self._rotate()
        except OSError as error:
            self.failed = self.failed or error

    def _rotate(self) -> None:
        self._size = 0
        if not self._path.is_file():
            return  # /dev/null
        os.replace(self._path, f"{self._path}.1")
        fd = _open_to_append(self._path)
        assert self._fd is not None
        os.close(self._fd)
        self._fd = fd

    def close(self) -> None:
        """Write the unfinished line and close."""
        rest = self._collapse(self._decoder.decode(b"", final=True)) + self._take_line()
        self._append(rest and rest + "\n")
        if self._fd is None:
            return
        fd, self._fd = self._fd, None
        try:
            os.close(fd)
        except OSError as error:  # a mount that went away
            self.failed = self.failed or error


def _open_to_append(path: Path) -> int:
    return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
