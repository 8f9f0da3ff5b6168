"""SIGTERM to the trainer itself: Slurm and systemd may signal parent and child at once.

Inside a fit it is noted, and the next batch saves and leaves. It is listened to only where the script left SIGTERM
alone, and only while the fit lasts: a fit that ended by an exception, and a process that was forked from ours, die of
it as they would without us.
"""

from __future__ import annotations

import os
import signal
from types import FrameType

_SIGTERM = frozenset({signal.SIGTERM})
_listening: Sigterm | None = None
_mask: frozenset[int] | set[int] = frozenset()  # of the thread that forks
_hooked = False


class Sigterm:
    """Listens while the frame `fit` is on the stack. `noted`: it came."""

    def __init__(self, fit: FrameType) -> None:
        self.noted = False
        self._fit = (id(fit), fit.f_code)  # the frame itself would keep alive whatever the script holds in it

    def listen(self) -> None:
        """Begin."""
        global _listening
        try:
            if signal.getsignal(signal.SIGTERM) is signal.SIG_DFL:
                signal.signal(signal.SIGTERM, self._came)
                _listening = self
                _hook_forks()
        except ValueError:
            pass  # not the main thread

    def stop(self) -> None:
        """End; a handler that the script has set since is left alone."""
        global _listening
        _listening = None
        try:
            if signal.getsignal(signal.SIGTERM) == self._came:
                signal.signal(signal.SIGTERM, signal.SIG_DFL)
        except ValueError:
            pass

    def _came(self, number: int, frame: FrameType | None) -> None:
        if self._is_inside(frame):
            self.noted = True
            return
        self.stop()
        os.kill(os.getpid(), number)

    def _is_inside(self, frame: FrameType | None) -> bool:
        while frame is not None:
            if (id(frame), frame.f_code) == self._fit:
                return True
            frame = frame.f_back
        return False


def _hook_forks() -> None:
    global _hooked
    if not _hooked:
        _hooked = True
        os.register_at_fork(before=_hold, after_in_parent=_release, after_in_child=_forget)


def _hold() -> None:
    """A SIGTERM to the fork must find it without our handler, however early it comes: until then it waits."""
    global _mask
    if _listening is not None:
        _mask = signal.pthread_sigmask(signal.SIG_BLOCK, _SIGTERM)


def _release() -> None:
    if _listening is not None:
        signal.pthread_sigmask(signal.SIG_SETMASK, _mask)


def _forget() -> None:
    if _listening is not None:
        _listening.stop()
        signal.pthread_sigmask(signal.SIG_SETMASK, _mask)
