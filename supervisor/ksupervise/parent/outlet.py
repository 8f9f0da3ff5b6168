"""Where the child's stdout and stderr lead: a terminal of its own where ours is one, else a pipe.

Law 1: a script that asks `isatty()`, for colours, for the width of a progress bar, gets the answer that it would get
without us. The child's terminal translates nothing, ours does: bytes arrive as they were written.
"""

from __future__ import annotations

import fcntl
import os
import sys
import termios
from dataclasses import dataclass


@dataclass(frozen=True)
class Outlet:
    """One way out of the child.

    Attributes:
        read: our end.
        write: the child's end, closed here once the child has it.
        stream: 0 or 1, our console's stream that it is copied to.
        terminal: our own terminal that it stands for, None for a pipe.
    """

    read: int
    write: int
    stream: int
    terminal: int | None = None

    def resize(self) -> None:
        """Tell the child's terminal the size of ours."""
        if self.terminal is not None:
            size = fcntl.ioctl(self.terminal, termios.TIOCGWINSZ, bytes(8))
            fcntl.ioctl(self.read, termios.TIOCSWINSZ, size)


def open_outlets(consoles: tuple[int, int] = (1, 2)) -> tuple[Outlet, Outlet]:
    """The child's stdout and stderr; one for both where ours lead to the same place, so that their order stays."""
    out = _outlet(0, consoles[0])
    if _same(*consoles):
        return out, out
    try:
        return out, _outlet(1, consoles[1])
    except OSError:
        os.close(out.read)
        os.close(out.write)
        raise


def _same(one: int, other: int) -> bool:
    try:
        return os.path.sameopenfile(one, other)
    except OSError:
        return False  # one of them is closed


def read(fd: int, size: int = 65536) -> bytes:
    """What the child wrote, b"" once nobody can write there any more."""
    try:
        return os.read(fd, size)
    except OSError:
        return b""  # Linux reports EIO for a terminal that the last writer has closed


def _outlet(stream: int, console: int) -> Outlet:
    if sys.platform != "linux" or not os.isatty(console):
        return Outlet(*os.pipe(), stream)
    master, slave = os.openpty()
    modes = termios.tcgetattr(slave)
    modes[1] &= ~termios.OPOST
    termios.tcsetattr(slave, termios.TCSANOW, modes)
    outlet = Outlet(master, slave, stream, console)
    outlet.resize()
    return outlet
