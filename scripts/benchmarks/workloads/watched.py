"""ksupervise with a stopwatch around its loop. Call: watched.py MARKS.jsonl COMMAND..."""

import json
import os
import sys
import time
from typing import Any

from ksupervise import cli
from ksupervise.parent import loop

marks = os.open(sys.argv[1], os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
attempt = 1  # whose end is awaited; what follows an end belongs to it


def mark(what: str) -> None:
    os.write(marks, json.dumps({"what": what, "attempt": attempt, "at": time.monotonic()}).encode() + b"\n")


decide, perform = loop.decide, loop.Supervisor._perform


def watched_decide(state: Any, event: Any) -> Any:
    mark(type(event).__name__)
    return decide(state, event)


def watched_perform(self: Any, action: Any) -> None:
    global attempt
    name = type(action).__name__
    mark(name)
    perform(self, action)
    mark(f"{name} done")
    if name == "Launch":
        attempt = action.attempt


loop.decide, loop.Supervisor._perform = watched_decide, watched_perform  # type: ignore[method-assign]
cli.main(sys.argv[2:])
