"""`ksupervise logs`: the output of an attempt, or the journal, as it is on disk."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

from ksupervise.errors import RunNotFound
from ksupervise.store import RunLayout


def write_log(directory: Path, attempt: int | None, *, events: bool) -> None:
    """Copy the log of `attempt` (None: the latest), or with `events` the journal, to stdout."""
    layout = RunLayout(directory)
    path = Path(layout.journal) if events else _log(layout, attempt)
    older = Path(f"{path}.1")  # a long log goes on in a new file
    try:
        for part in (older, path) if older.is_file() else (path,):
            with open(part, "rb") as stream:
                shutil.copyfileobj(stream, sys.stdout.buffer)
    except FileNotFoundError:
        raise RunNotFound(f"there is no log at {path}") from None
    sys.stdout.buffer.flush()


def _log(layout: RunLayout, attempt: int | None) -> Path:
    if attempt is None:
        numbers = [int(path.name) for path in Path(layout.attempts).glob("[0-9]*")]
        attempt = max(numbers, default=1)
    return Path(layout.output_log(attempt))
