"""`--standby`: one warm interpreter beside the running attempt, which becomes the next one.

It is started once the attempt trains steadily, imports what that was seen to import, and waits (`child/standby.py`).
It holds the same pipes, environment and number as the cold launch would give it, and nothing else of the run: it has
claimed nothing, and says nothing before it is released. It dies with us: by the signal that every child has for that,
and at the end of its gate. Whatever is wrong with it, the launch is a cold one.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import signal
import socket
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ksupervise import wire
from ksupervise.parent.launch import Attempt, marks_of, stacks_of
from ksupervise.parent.process import Child
from ksupervise.parent.voice import Voice
from ksupervise.store import RunLayout

STEADY = 3  # batches of a fit after which its attempt trains steadily
QUIET = 30.0  # seconds after the last import of a script that trains in a loop of its own, after which it does
_TRIES = 2  # interpreters that may die while they wait for one attempt
_PAUSE = 0.5  # seconds between two looks
_HIGH_FD = 200  # inherited descriptors go where no script's own numbers are
_LEAST_ROOM = 256 * 2**20  # bytes of memory that must be left while one waits
_GONE = 5.0  # seconds that a killed one may take to go

Imports = dict[str, Any]


class Standby:
    """The warm interpreter of one parent. Everything runs on the loop's thread.

    Attributes:
        was_killed: set once one was killed by somebody else, such as the kernel for want of memory.
    """

    def __init__(
        self,
        command: Sequence[str],
        environment: Mapping[str, str],
        layout: RunLayout,
        lock_fd: int,
        script: str,
        *,
        usage: Callable[[], tuple[int, int] | None],
        watch: Callable[[int, Callable[[], None]], None],
        unwatch: Callable[[int], None],
        record: Callable[..., None],
        voice: Voice,
    ) -> None:
        """`usage`: bytes in use and allowed, where a cgroup has a limit. `watch`: have a descriptor looked at."""
        self._command = command
        self._environment = environment
        self._layout = layout
        self._lock_fd = lock_fd
        self._script = script
        self._usage = usage
        self._watch = watch
        self._unwatch = unwatch
        self._record = record
        self._voice = voice
        self._imports: Imports | None = None  # the latest that any attempt told
        self._heard = 0.0  # when
        self._text = _stamp(script)
        self._looked = 0.0
        self._tries: dict[int, int] = {}  # number of an attempt → interpreters that were started for it
        self._given_up = "" if sys.platform == "linux" else "this system has no memfd and no /proc"
        self._child: Child | None = None
        self._gate: socket.socket | None = None
        self._decoder = wire.Decoder()
        self._number = 0
        self._began = 0.0
        self.was_killed = False

    @property
    def pids(self) -> tuple[int, ...]:
        """The interpreter that waits, if there is one: the sweep is to leave it alone."""
        return () if self._child is None else (self._child.pid,)

    def look(self, attempt: Attempt | None, *, stopping: bool) -> None:
        """See whether one is wanted, and whether the one that is there still is. `attempt`: the one that runs."""
        now = time.monotonic()
        if now - self._looked < _PAUSE and not stopping:
            return
        self._looked = now
        self._look_after(stopping=stopping)
        if attempt is None or stopping or self._child is not None or self._given_up:
            return
        self._hear(attempt, now)
        if self._imports is not None and self._is_steady(attempt, now) and self._tries.get(attempt.number, 0) < _TRIES:
            self._start(attempt.number + 1)

    def _look_after(self, *, stopping: bool) -> None:
        if self._child is None:
            return
        room = self._room()
        if self._child.gone():
            self.was_killed = self._child.signal == signal.SIGKILL
            self.discard(f"it ended (exit {self._child.exit_code}, signal {self._child.signal})")
        elif stopping:
            self.discard("the run stops")
        elif _stamp(self._script) != self._text:
            self._imports = None
            self.discard("the script has changed")
        elif room is not None and room < _LEAST_ROOM:
            self._give_up(f"only {room >> 20} MiB of memory are left")

    def _hear(self, attempt: Attempt, now: float) -> None:
        """What this attempt imported, if it was a cold one, which alone tells."""
        told = attempt.facts.imports
        if told is None or told is self._imports or told.get("pid") != attempt.child.pid:
            return
        self._imports, self._heard, self._text = told, now, _stamp(self._script)
        if told.get("objection"):
            self._give_up(str(told["objection"]))
        elif not _runs_directly(self._command, told.get("argv")):
            self._give_up("something stands between us and the interpreter, which would be run early too")

    def _is_steady(self, attempt: Attempt, now: float) -> bool:
        control = attempt.control
        if attempt.facts.claimant:
            return control.integer("trained") > 0 and control.integer("warm") >= STEADY
        return now - max(self._heard, attempt.launched) > QUIET

    def _start(self, number: int) -> None:
        assert self._imports is not None
        wanted, room = int(self._imports.get("rss") or 0), self._room()
        if room is not None and room < wanted + _LEAST_ROOM:
            self._give_up(f"it would take {wanted >> 20} MiB of memory, and {room >> 20} MiB are left")
            return
        self._tries[number - 1] = self._tries.get(number - 1, 0) + 1
        ours, theirs = socket.socketpair()
        held: list[int] = []
        try:
            held = [fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, _HIGH_FD) for fd in (self._lock_fd, theirs.fileno())]
            marks = marks_of(number, held[0], stacks_of(self._layout, number))
            environment = {**self._environment, **marks, wire.ENV_PRELOAD: str(held[1])}
            self._child = Child(self._command, environment, inherit=held)
        except OSError as error:
            ours.close()
            self._give_up(f"it cannot be started: {error}")
            return
        finally:
            theirs.close()
            for fd in held:
                os.close(fd)
        self._gate, self._number, self._began = ours, number, time.monotonic()
        self._decoder = wire.Decoder()
        self._record("standby", what="started", next=number, pid=self._child.pid)
        if not self._send({"op": "import", "entries": self._imports["entries"]}):
            self.discard("it does not read what it is told")
            return
        ours.setblocking(False)
        self._watch(ours.fileno(), self._on_message)

    def _send(self, message: dict[str, Any]) -> bool:
        assert self._gate is not None
        try:
            self._gate.settimeout(1.0)
            self._gate.sendall(wire.encode(message))
        except OSError:
            return False
        return True

    def _on_message(self) -> None:
        assert self._gate is not None
        try:
            data = self._gate.recv(65536)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            self._unwatch(self._gate.fileno())  # its end is seen when we look
        for message in self._decoder.feed(data):
            if message.get("op") == "warm":
                seconds = round(time.monotonic() - self._began, 3)
                self._record("standby", what="warm", next=self._number, rss=message.get("rss"), seconds=seconds)
                rss = int(message.get("rss") or 0) >> 20
                self._voice.once("standby", f"a warm interpreter waits to be the next attempt ({rss} MiB of memory)")
            elif message.get("op") == "useless":
                self._give_up(str(message.get("why")))
                return

    def take(self, number: int) -> Standby | None:
        """Itself, if the interpreter that waits can be attempt `number`; else it is gone."""
        if self._child is None:
            return None
        if self._number != number or self._child.gone() or _stamp(self._script) != self._text:
            self.discard("it was not fit for the attempt that came")
            return None
        return self

    def release(self) -> Child | None:
        """Have it begin its attempt; it is a child like any other then. None if it has just ended."""
        assert self._child is not None
        child, number = self._child, self._number
        if not self._send({"op": "go"}):
            self.discard("it ended when it was needed")
            return None
        self._let_go()
        for outlet in child.outlets.values():
            outlet.resize()
        self._record("standby", what="released", next=number, pid=child.pid)
        return child

    def useless(self, why: str) -> None:
        """An attempt began in one, and could not go on: the script is not the same twice."""
        self._give_up(why)

    def discard(self, why: str) -> None:
        """End the one that is there."""
        child = self._child
        if child is None:
            return
        self._let_go()
        end = time.monotonic() + _GONE
        child.send(signal.SIGKILL, group=True)
        while not child.gone() and time.monotonic() < end:
            time.sleep(0.001)
        child.close()
        self._record("standby", what="discarded", next=self._number, why=why)

    def _give_up(self, why: str) -> None:
        self.discard(why)
        self._given_up = why
        self._record("standby", what="off", why=why)
        self._voice.say(f"--standby: no interpreter is kept warm: {why}")

    def _let_go(self) -> None:
        self._child = None
        if self._gate is not None:
            self._unwatch(self._gate.fileno())
            self._gate.close()
            self._gate = None

    def _room(self) -> int | None:
        """Bytes of memory that are left for us; None if nobody knows."""
        left = [_available()]
        usage = self._usage()
        if usage is not None:
            left.append(usage[1] - usage[0])
        return min((each for each in left if each is not None), default=None)


def _available() -> int | None:
    """Bytes that the machine has left."""
    with contextlib.suppress(OSError, ValueError):
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) << 10
    return None


def _stamp(script: str) -> tuple[int, ...]:
    """By which a changed script is known."""
    try:
        found = Path(script).stat()
    except OSError:
        return ()
    return found.st_ino, found.st_size, found.st_mtime_ns


def _runs_directly(command: Sequence[str], words: object) -> bool:
    """The interpreter is what `command` becomes, and nothing of the user's runs before it.

    `words` are its own: `python train.py`, or `python ./train.py` where the script names its interpreter itself. A
    shell in between would do twice what it does before.
    """
    if not isinstance(words, list) or not words:
        return False
    given = list(command)
    return words[1:] == given[1:] or words[-len(given) :] == given
