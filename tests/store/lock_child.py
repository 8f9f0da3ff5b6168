"""A process that plays a part in the lock's tests: `lock_child.py PART PATH`.

It says one line when it has done its part, then lives until its standard input ends.
"""

from __future__ import annotations

import os
import subprocess
import sys

from ksupervise.store import RunLock


def wait_for_end() -> None:
    sys.stdin.read()


def hold(path: str) -> None:
    """Acquire, and say whether it worked."""
    lock = RunLock(path)
    print("acquired" if lock.acquire("somewhere") else "refused", flush=True)
    wait_for_end()


def hand_down(path: str) -> None:
    """Acquire, start a child that inherits the descriptor, say its pid."""
    lock = RunLock(path)
    lock.acquire()
    command = [sys.executable, __file__, "live", path]
    child = subprocess.Popen(command, pass_fds=[lock.fileno()], stdin=sys.stdin, stdout=subprocess.DEVNULL)
    print(child.pid, flush=True)
    wait_for_end()


def leave(path: str) -> None:
    """Acquire, start a child that inherits nothing, say its pid."""
    lock = RunLock(path)
    lock.acquire()
    command = [sys.executable, __file__, "live", path]
    child = subprocess.Popen(command, close_fds=False, stdin=sys.stdin, stdout=subprocess.DEVNULL)
    print(child.pid, flush=True)
    wait_for_end()


def live(_: str) -> None:
    """Only be there."""
    wait_for_end()


PARTS = {"hold": hold, "hand_down": hand_down, "leave": leave, "live": live}

if __name__ == "__main__":
    PARTS[sys.argv[1]](os.fspath(sys.argv[2]))
