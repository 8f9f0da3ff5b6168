"""What the child's interpreters wrote of their stacks, in faulthandler's form."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, field
from pathlib import Path

_FRAME = re.compile(r'  File "(?P<file>.*)", line (?P<line>\d+) in (?P<name>.*)')
_LIMIT = 1024 * 1024  # bytes of a file that are looked at, its last
_NOT_THE_USERS = re.compile(r"[/\\](site-packages|dist-packages)[/\\]|[/\\]lib[/\\]python\d|boot\.zip|^<|__autograph")
_DEBUGGERS = re.compile(
    r"[/\\](lib[/\\]python\d[\w.]*|(site|dist)-packages)([/\\]\w+)*[/\\](bdb|pdb|ipdb|pudb|debugpy)(\.py|[/\\])"
    r"|[/\\]pydevd\w*\.py"
)


def read(path: Path | None, since: int = 0) -> str:
    """The text from byte `since` on; "" for no file."""
    if path is None:
        return ""
    try:
        with open(path, "rb") as stream:
            stream.seek(max(since, os.fstat(stream.fileno()).st_size - _LIMIT))
            return stream.read(_LIMIT).decode(errors="replace")
    except OSError:
        return ""


def size(path: Path | None) -> int:
    """Bytes written so far."""
    try:
        return 0 if path is None else path.stat().st_size
    except OSError:
        return 0


def crash(text: str) -> str:
    """Where Python stood at the last crash: `train.py:12 in load`; "" if there was none."""
    begin = text.rfind("Fatal Python error:")
    if begin < 0:
        return ""
    threads = _threads(text[begin:])
    crashed = [thread for thread in threads if thread.current]
    return _place(crashed or threads[::-1])  # one that is not Python's has none: then what the main thread did


def place(text: str) -> str:
    """Where the thread stands that runs the training: the innermost line of the user's own, of the last dump."""
    return _place(_threads(text)[::-1])  # the main thread is written last


def is_debugged(text: str) -> bool:
    """A debugger's prompt holds a thread."""
    return bool(_DEBUGGERS.search(text))


@dataclass
class _Thread:
    """One thread's frames, the innermost first. `current`: the one that the signal met."""

    current: bool
    frames: list[re.Match[str]] = field(default_factory=list)


def _threads(text: str) -> list[_Thread]:
    """The threads, in the order in which they were written."""
    threads: list[_Thread] = []
    for line in text.splitlines():
        frame = _FRAME.match(line)
        if "(most recent call first)" in line:
            threads.append(_Thread(line.startswith("Current thread")))
        elif frame is not None and threads:
            threads[-1].frames.append(frame)
    return threads


def _place(threads: list[_Thread]) -> str:
    for thread in threads:
        for frame in thread.frames:
            if not _NOT_THE_USERS.search(frame["file"]):
                return f"{os.path.basename(frame['file'])}:{frame['line']} in {frame['name']}"
    return ""


def remove_if_empty(path: Path | None) -> None:
    """Most attempts write nothing."""
    if path is not None and not size(path):
        path.unlink(missing_ok=True)
