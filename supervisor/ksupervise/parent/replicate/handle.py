"""One worker process (`ksupervise.replicas.worker`) and what it says: JSON lines in both directions.

A call into a dead mount may never return, so none is made here. A worker that says nothing for too long is killed; if
not even SIGKILL reaches it (D state), it is left behind and told of.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from typing import Any

# Seconds without a word. A worker may wait for a minute between two tries, and then ask with a time-out of a minute; or
# a request fails after a minute and is repeated once. With less, workers would be ended that only wait for their place.
SILENCE = 150.0
_MOST = 1 << 20  # bytes of one line

Report = dict[str, Any]


class Handle:
    """Speaks with one worker. Everything runs on one thread; nothing blocks.

    Attributes:
        pid: its process id, which also leads its session.
        heard_at: when it said something last (CLOCK_MONOTONIC).
    """

    def __init__(self, arguments: list[str], configuration: Mapping[str, Any]) -> None:
        """Start it. Raises OSError."""
        self._popen = subprocess.Popen(
            [sys.executable, "-m", "ksupervise.replicas.worker", *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            start_new_session=True,  # Ctrl-C is for us
            env=_environment(),
        )
        self.pid = self._popen.pid
        assert self._popen.stdin is not None
        assert self._popen.stdout is not None
        self._stdin, self._stdout = self._popen.stdin.fileno(), self._popen.stdout.fileno()
        os.set_blocking(self._stdin, False)
        os.set_blocking(self._stdout, False)
        self._buffer = b""
        self.ended = False
        self.heard_at = time.monotonic()
        self.order(configuration)

    def fileno(self) -> int:
        """Where its reports come from."""
        return self._stdout

    def order(self, order: Mapping[str, Any]) -> None:
        """Send one. A worker that reads no more gets none: its silence will be noticed."""
        with contextlib.suppress(OSError):
            os.write(self._stdin, json.dumps(order).encode() + b"\n")

    def reports(self) -> list[Report]:
        """What it said since. Sets `ended` when there is nothing more to come."""
        while not self.ended:
            try:
                data = os.read(self._stdout, 65536)
            except BlockingIOError:
                break
            self.ended = not data
            self._buffer = (self._buffer + data)[-_MOST:]
        *lines, self._buffer = self._buffer.split(b"\n")
        if lines:
            self.heard_at = time.monotonic()
        return [report for line in lines if (report := _parsed(line))]

    @property
    def silent(self) -> bool:
        """It has said nothing for too long."""
        return time.monotonic() - self.heard_at > SILENCE

    def kill(self) -> bool:
        """Kill it. False: it survives that, in a call into the kernel that does not return."""
        with contextlib.suppress(OSError):
            os.killpg(self._popen.pid, signal.SIGKILL)
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._popen.wait(1.0)
        return self._popen.returncode is not None

    def close(self) -> None:
        """End it and forget it."""
        self.kill()
        for pipe in (self._popen.stdin, self._popen.stdout):
            if pipe is not None:
                with contextlib.suppress(OSError):
                    pipe.close()


def _environment() -> dict[str, str]:
    """Ours, with the way to our package: the worker is a module of it."""
    import ksupervise

    root = os.path.dirname(os.path.dirname(os.path.abspath(ksupervise.__file__)))
    known = os.environ.get("PYTHONPATH", "")
    return {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, [root, known]))}


def _parsed(line: bytes) -> Report | None:
    try:
        report = json.loads(line)
    except ValueError:
        return None
    return report if isinstance(report, dict) and isinstance(report.get("op"), str) else None


def converse(
    arguments: list[str],
    configuration: Mapping[str, Any],
    heard: Callable[[Report], bool],
    silence: float = SILENCE,
) -> bool:
    """Run a worker while `heard` answers True to its reports; False if it ended, or fell silent, before.

    Blocks; for what comes before the loop and behind it. The worker is gone afterwards. Raises OSError.
    """
    handle = Handle(arguments, configuration)
    try:
        return listen(handle, heard, silence)
    finally:
        handle.close()


def listen(handle: Handle, heard: Callable[[Report], bool], silence: float = SILENCE) -> bool:
    """The same with a worker that runs already, and runs on."""
    import select

    while True:
        readable = select.select([handle], [], [], min(1.0, silence))[0]
        for report in handle.reports() if readable else ():
            if not heard(report):
                return True
        if handle.ended or time.monotonic() - handle.heard_at > silence:
            return False
