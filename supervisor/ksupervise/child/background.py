"""Threads of ours beside the training.

They are started below `threading`, so that the script's `threading.enumerate()` is what it would be without us, and
(on Linux) with the lowest priority: what they do may take its time.
"""

from __future__ import annotations

import _thread
import os
import sys
from collections.abc import Callable

_LOWEST = 19  # nice value; on Linux each thread has one of its own


class Task:
    """A function at work on a thread of its own."""

    def __init__(self, work: Callable[[], None], *, hurried: bool = False) -> None:
        """`hurried`: somebody waits for it, so it keeps the priority of the rest."""
        self._done = _thread.allocate_lock()
        self._done.acquire()
        self._hurried = hurried
        self._error: BaseException | None = None
        try:
            _thread.start_new_thread(self._run, (work,))
        except RuntimeError:  # no memory for one, or too many of them: then it is done here
            self._hurried = True
            self._run(work)

    def _run(self, work: Callable[[], None]) -> None:
        try:
            if not self._hurried and sys.platform == "linux":
                os.setpriority(os.PRIO_PROCESS, _thread.get_native_id(), _LOWEST)
            work()
        except BaseException as error:
            self._error = error
        finally:
            self._done.release()

    @property
    def done(self) -> bool:
        """It came to its end, one way or the other."""
        return not self._done.locked()

    def join(self, seconds: float = -1) -> bool:
        """Wait for its end, with no limit if none is given, and raise what it raised. False if it was not in time."""
        if not self._done.acquire(True, seconds):
            return False
        self._done.release()
        if self._error is not None:
            raise self._error
        return True


def in_two(work: Callable[[list[int]], None], sizes: list[int]) -> None:
    """Call `work` with the numbers of about half the things, by size, here, and with the others on a second thread."""
    total, first, cut = sum(sizes), 0, 0
    while 2 * first < total:
        first += sizes[cut]
        cut += 1
    other = Task(lambda: work(list(range(cut, len(sizes)))), hurried=True)
    try:
        work(list(range(cut)))
    finally:
        other.join()
