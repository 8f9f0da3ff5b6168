"""What a replica's process and whoever started it say to each other: JSON lines on stdin and stdout."""

from __future__ import annotations

import json
import math
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import IO, Any

from ksupervise.errors import UsageError
from ksupervise.replicas.place import Place, ReplicaFault, ReplicaFull, ReplicaRefused

CEILING = 60.0  # seconds between two tries
BEAT = 1.0  # seconds between two beats while bytes move
_QUIET = 10.0  # seconds between two while a single call lasts
_SLOW = 2 * 1024 * 1024  # bytes per second below which a call counts as one that hangs
_PATIENCE = 60.0  # seconds for which a fetch tries again


Opener = Callable[[], Place]  # opens the place; may raise ReplicaFault


@dataclass(frozen=True)
class Config:
    """What the parent tells at the start.

    Attributes:
        directory: the run's, here.
        run: its id.
        name: its name.
        place: as the user gave it.
        generation: number of the run's generation there; None to find or begin the one of this id.
        keep: complete checkpoints to keep there.
        rate: bytes per second at most; None for no cap.
        holder: who owns the run, as a part of a key; "" to own nothing and write all the same.
        attempt: the least number of an attempt, which is the fencing token.
        finish: one in so many uploads is always finished.
        token: what a `claim` of this holder got; None if it got none.
        pid: the process with which the ownership ends.
        interval: seconds between signs of life as the owner, None for the place's own.
    """

    directory: str
    run: str
    name: str
    place: str
    generation: int | None = None
    keep: int = 2
    rate: float | None = None
    holder: str = ""
    attempt: int = 1
    finish: int = 3
    token: int | None = None
    pid: int | None = None
    interval: float | None = None


@dataclass(frozen=True)
class FetchConfig:
    """What a fetch or a look is told.

    Attributes:
        name: the run's name.
        place: as the user gave it.
        directory: the run's, here; a look needs none.
        generation: number of the generation that is meant; None for the newest.
        run: its id, "" if any will do: with it another run's is never fetched.
        patience: seconds for which an unreachable place is tried again.
    """

    name: str
    place: str
    directory: str = ""
    generation: int | None = None
    run: str = ""
    patience: float = _PATIENCE


class Ended(Exception):
    """Stdin was closed, or the time to finish is over."""


class Orders:
    """What stdin says, heard by a thread of its own."""

    def __init__(self, stdin: IO[bytes], clock: Callable[[], float] = time.monotonic) -> None:
        """Begin to listen. `clock`: seconds that never go back."""
        self._clock = clock
        self._changed = threading.Condition()
        self._woken = True  # there is something to do at the start
        self._closed = False
        self._deadline: float | None = None
        # A daemon: it may be in a read that never returns when we leave.
        threading.Thread(target=self._listen, args=(stdin,), name="orders", daemon=True).start()

    @property
    def finishing(self) -> bool:
        """The end has been announced."""
        return self._deadline is not None

    @property
    def over(self) -> bool:
        """It is time to leave."""
        return self._closed or self._left() == 0

    def take_wake(self) -> bool:
        """Whether there were new commits since the last call."""
        woken, self._woken = self._woken, False
        return woken

    def wait(self, seconds: float) -> bool:
        """Until there is an order, at most so long; whether there is one. Raises Ended."""
        with self._changed:
            found = self._changed.wait_for(lambda: self._woken or self.finishing or self._closed, seconds)
        self.check()
        return found

    def sleep(self, seconds: float) -> None:
        """So long, but no longer than until the end is announced; a wake does not shorten it. Raises Ended."""
        finishing = self.finishing
        left = self._left()
        with self._changed:
            announced = lambda: self._closed or self.finishing != finishing  # noqa: E731
            self._changed.wait_for(announced, seconds if left is None else min(seconds, left))
        self.check()

    def check(self) -> None:
        """Raise Ended when it is time to leave."""
        if self.over:
            raise Ended

    def _left(self) -> float | None:
        return None if self._deadline is None else max(0.0, self._deadline - self._clock())

    def _listen(self, stdin: IO[bytes]) -> None:
        with suppress(OSError, ValueError):  # ValueError: closed under our feet
            for line in stdin:
                self._hear(line)
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def _hear(self, line: bytes) -> None:
        try:
            order = json.loads(line)
            op, seconds = order["op"], float(order.get("seconds", 0.0))
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
            return  # a parent of another version: what is not understood is not done
        with self._changed:
            if op == "wake":
                self._woken = True
            elif op == "finish":
                self._deadline = self._clock() + (seconds if math.isfinite(seconds) else 0.0)
                self._woken = True
            self._changed.notify_all()


class Reports:
    """JSON lines on stdout. A reader that has gone is none of ours any more: then Ended is raised."""

    def __init__(self, stdout: IO[bytes], clock: Callable[[], float] = time.monotonic) -> None:
        """Write to `stdout`. `clock`: seconds that never go back."""
        self._stdout, self._clock = stdout, clock
        self._lock = threading.Lock()
        self._bytes = 0
        self._last = -math.inf

    def tell(self, op: str, **values: Any) -> None:
        """One report."""
        line = json.dumps({"op": op, **values}, separators=(",", ":")).encode() + b"\n"
        try:
            with self._lock:
                self._stdout.write(line)
                self._stdout.flush()
        except (OSError, ValueError) as error:
            raise Ended from error
        self._last = self._clock()

    def moved(self, count: int) -> None:
        """So many bytes more have gone; told once in a while."""
        self._bytes += count
        if self._clock() - self._last >= BEAT:
            self.beat()

    def beat(self) -> None:
        """A sign of life, before and after what may last."""
        self.tell("beat", bytes=self._bytes)

    @contextmanager
    def patience(self, size: int) -> Iterator[None]:
        """Around one call that may read or write `size` bytes without a word: it is given the time of a slow place.

        Signs of life go on for so long and no longer: after that it counts as a hang.
        """
        self.beat()
        over = threading.Event()
        seconds = size / _SLOW
        if seconds > _QUIET:
            threading.Thread(
                target=self._bear, args=(over, self._clock() + seconds), name="patience", daemon=True
            ).start()
        try:
            yield
        finally:
            over.set()

    def _bear(self, over: threading.Event, end: float) -> None:
        with suppress(Ended):
            while not over.wait(_QUIET) and self._clock() < end:
                self.beat()


def tell_failure(reports: Reports, error: BaseException | None, again: float | None) -> None:
    """Report what went wrong, and in how many seconds it is tried again; None for never."""
    kinds = {ReplicaFull: "full", ReplicaRefused: "refused", UsageError: "refused", ReplicaFault: "unreachable"}
    kind = next((text for each, text in kinds.items() if isinstance(error, each)), "local")
    reports.tell("failed", reason=str(error), kind=kind, again_s=None if again is None else round(again, 3))


def config_from_json(kind: type[Any], line: bytes) -> Any:
    """The configuration of that kind in a JSON line. Raises UsageError for what is none, a key too many among it."""
    try:
        return kind(**json.loads(line))
    except (ValueError, TypeError, RecursionError) as error:
        raise UsageError(f"not a configuration of a replica's process: {error}") from error
