"""ksupervise with a stopwatch around its loop. Call: watched.py MARKS.jsonl COMMAND..."""

import json
import os
import sys
import time
from typing import Any

from ksupervise import cli
from ksupervise.core.actions import Launch
from ksupervise.core.decide import decide
from ksupervise.parent import loop


class Stopwatch:
    """Notes when each event was taken up, and when each action began and was done."""

    def __init__(self, path: str) -> None:
        self._fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        self._attempt = 1  # whose end is awaited; what follows an end belongs to it
        self._perform = loop.Supervisor._perform

    def mark(self, what: str) -> None:
        mark = {"what": what, "attempt": self._attempt, "at": time.monotonic()}
        os.write(self._fd, json.dumps(mark).encode() + b"\n")

    def decide(self, state: Any, event: Any) -> Any:
        self.mark(type(event).__name__)
        return decide(state, event)

    def perform(self, supervisor: loop.Supervisor, action: Any) -> None:
        name = type(action).__name__
        self.mark(name)
        self._perform(supervisor, action)
        self.mark(f"{name} done")
        if isinstance(action, Launch):
            self._attempt = action.attempt


def perform(supervisor: loop.Supervisor, action: Any) -> None:
    """In place of `Supervisor._perform`."""
    watch.perform(supervisor, action)


watch = Stopwatch(sys.argv[1])
vars(loop)["decide"] = watch.decide
loop.Supervisor._perform = perform  # type: ignore[method-assign, assignment]
cli.main(sys.argv[2:])
