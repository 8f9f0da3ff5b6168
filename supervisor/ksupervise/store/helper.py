"""A thread beside the one that works, for what lets go of the GIL: digests and reading ahead."""

from __future__ import annotations

import contextlib
import queue
import threading
from typing import TYPE_CHECKING, Generic, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable

T = TypeVar("T")


class Helper(Generic[T]):
    """Calls functions on a thread of its own, one at a time, and hands their results back in order.

    The thread starts with the first call and ends with `close`. Where none can be had (the interpreter ends, or too
    many are there), a call is made when its result is asked for: slower, not different.

    Args:
        name: the thread's.
        alone: start no thread; for so little work that it is not worth one.
    """

    def __init__(self, name: str, *, alone: bool = False) -> None:
        self._name = name
        self._alone = alone
        self._calls: queue.SimpleQueue[Callable[[], T] | None] = queue.SimpleQueue()
        self._results: queue.SimpleQueue[tuple[T, None] | tuple[None, BaseException]] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None

    def begin(self, call: Callable[[], T]) -> None:
        """Have `call` called. Its result must be taken, even if only by `close`."""
        if self._thread is None and not self._alone:
            self._thread = self._start()
        self._calls.put(call)

    def result(self) -> T:
        """Wait for the oldest call whose result was not taken yet; what it returned. Raises what it raised."""
        if self._thread is None:
            self._make_one()
        value, error = self._results.get()
        try:
            if error is not None:
                raise error
        finally:
            del error  # its traceback holds this frame: the two would keep each other, and a block of memory
        return value  # type: ignore[return-value]  # there was no error

    def close(self) -> None:
        """Wait for the call in hand; those not begun are not made. Afterwards there is no thread. Twice is harmless."""
        with contextlib.suppress(queue.Empty):
            while True:
                self._calls.get_nowait()
        if self._thread is not None:
            self._calls.put(None)
            self._thread.join()
            self._thread = None

    def _start(self) -> threading.Thread | None:
        # A daemon: if the interpreter ends in mid-call, nobody waits for the result any more.
        thread = threading.Thread(target=self._run, name=self._name, daemon=True)
        try:
            thread.start()
        except RuntimeError:
            self._alone = True
            return None
        return thread

    def _run(self) -> None:
        while self._make_one():
            pass

    def _make_one(self) -> bool:
        """Make the next call. False: there is none any more. Nothing of it is held when its result can be taken."""
        call = self._calls.get()
        if call is None:
            return False
        try:
            value = call()
            del call
            self._results.put((value, None))
        except BaseException as error:
            self._results.put((None, error))
        return True
