"""Which machine this is, which boot of it, and how its clocks stand. Reads only; nothing here raises."""

from __future__ import annotations

import os
import time
from pathlib import Path

_PROC = Path("/proc")


def boot_id(proc: Path = _PROC) -> str:
    """Names this boot of the machine; empty where nothing tells (no Linux).

    A container has its machine's: it stays the same when only the container is started anew. `proc` is another
    /proc for tests.
    """
    try:
        return (proc / "sys/kernel/random/boot_id").read_text(encoding="utf-8").strip()
    except (OSError, ValueError):
        return ""


def hostname() -> str:
    """The machine's name, as the kernel has it."""
    return os.uname().nodename


def same_boot(a: str, b: str) -> bool:
    """Two ids of `boot_id` may be of one boot. Only two that are known and differ say that they are not."""
    return not a or not b or a == b


def clock() -> float:
    """Seconds on a clock that only goes forward, and that runs on while the machine is suspended.

    The latter only on Linux (CLOCK_BOOTTIME); elsewhere it is time.monotonic(). Its zero means nothing: compare two
    readings of one boot.
    """
    kind = getattr(time, "CLOCK_BOOTTIME", None)
    return time.monotonic() if kind is None else time.clock_gettime(kind)


def suspended_between(boot0: float, mono0: float, boot1: float, mono1: float) -> float:
    """Seconds for which the machine was suspended between two moments.

    `boot0` and `boot1` are what `clock` said at these moments, `mono0` and `mono1` what time.monotonic() said, which
    stands still meanwhile. The few microseconds between the two readings of a moment are in the answer; it is never
    negative. Always 0 where there is no CLOCK_BOOTTIME.
    """
    return max(0.0, (boot1 - boot0) - (mono1 - mono0))
