"""Signals to the parent become bytes on a pipe that the loop reads; handlers do nothing else."""

from __future__ import annotations

import os
import signal
from types import FrameType

from ksupervise.core.events import StopKind

STOPS = {
    signal.SIGTERM: StopKind.TERM,
    signal.SIGINT: StopKind.USER,
    signal.SIGHUP: StopKind.HANGUP,
    signal.SIGUSR1: StopKind.SCHEDULER,  # Slurm's --signal
    signal.SIGUSR2: StopKind.SCHEDULER,
}
_OTHERS = (signal.SIGCHLD, signal.SIGWINCH)


class SignalPipe:
    """While open, SIGTERM, SIGINT, SIGHUP, SIGUSR1, SIGUSR2, SIGTSTP, SIGCHLD and SIGWINCH arrive through `fileno()`.

    A signal that was ignored when we started (nohup ignores SIGHUP) stays ignored. Once closed, the stop
    signals are ignored to the process' end: the verdict is reached, and systemd's second SIGTERM must not change it.
    """

    def __init__(self) -> None:
        self._read, self._write = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC) if hasattr(os, "pipe2") else _pipe()
        self._wakeup = signal.set_wakeup_fd(self._write, warn_on_full_buffer=False)
        self._previous = {}
        for number in (*STOPS, signal.SIGTSTP, *_OTHERS):
            if number in _OTHERS or signal.getsignal(number) is not signal.SIG_IGN:
                self._previous[number] = signal.signal(number, _noted)

    def fileno(self) -> int:
        """The readable end."""
        return self._read

    def read(self) -> list[int]:
        """Numbers of the signals that arrived since the last call."""
        try:
            return list(os.read(self._read, 4096))
        except BlockingIOError:
            return []

    def close(self) -> None:
        """Listen no more."""
        for number, handler in self._previous.items():
            signal.signal(number, signal.SIG_IGN if number in STOPS else handler)
        signal.set_wakeup_fd(self._wakeup)
        os.close(self._read)
        os.close(self._write)


def _noted(number: int, frame: FrameType | None) -> None:
    """The byte on the wake-up pipe says it all."""


def _pipe() -> tuple[int, int]:
    read, write = os.pipe()
    os.set_blocking(read, False)
    os.set_blocking(write, False)
    return read, write
