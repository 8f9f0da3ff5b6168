"""What Python is doing, written where the parent finds it: when native code crashes, and when the parent asks.

faulthandler writes it from within the signal, without the interpreter's help: a thread that holds the GIL for ever, or
a heap that is in ruins, does not hinder it. Nothing of it appears on the script's stderr, and a script that enables
faulthandler itself has it its own way.
"""

from __future__ import annotations

import faulthandler
import os
import signal

asked_by = 0  # number of the signal that asks this process for the stacks of all its threads, 0 for none
_CANDIDATES = 8  # of the highest real-time signals: Slurm and scripts use SIGUSR1 and SIGUSR2


def watch(path: str) -> int:
    """Have stacks appended to `path`. Returns `asked_by`. What cannot be had is done without."""
    global asked_by
    try:
        fd = _opened(path)
        if not faulthandler.is_enabled():
            faulthandler.enable(fd)
        asked_by = _listen(fd)
    except (OSError, ValueError, RuntimeError):
        pass
    return asked_by


def _opened(path: str) -> int:
    import fcntl

    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
    try:
        return fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 200)  # out of the way of the script's own numbers
    finally:
        os.close(fd)


def _listen(fd: int) -> int:
    highest = int(getattr(signal, "SIGRTMAX", 0))  # not on macOS
    for number in range(highest - 1, highest - 1 - _CANDIDATES if highest else -1, -1):
        if signal.getsignal(number) is signal.SIG_DFL:
            faulthandler.register(number, fd)
            return number
    return 0
