"""A debugger that holds a process: `faults_tracer.py PID SECONDS`. It attaches to all threads, waits, and lets go."""

from __future__ import annotations

import ctypes
import os
import sys
import time

_ATTACH, _DETACH = 16, 17  # sys/ptrace.h
_WALL = 0x40000000  # waitpid for threads too


def main() -> None:
    """Hold and let go."""
    libc = ctypes.CDLL(None, use_errno=True)
    libc.ptrace.argtypes = [ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p]
    threads = [int(name) for name in os.listdir(f"/proc/{sys.argv[1]}/task")]
    held = []
    for thread in threads:
        if libc.ptrace(_ATTACH, thread, None, None) == 0:
            os.waitpid(thread, _WALL)
            held.append(thread)
    if not held:
        sys.exit(f"cannot trace {sys.argv[1]}: {os.strerror(ctypes.get_errno())}")
    time.sleep(float(sys.argv[2]))
    for thread in held:
        libc.ptrace(_DETACH, thread, None, None)


if __name__ == "__main__":
    main()
