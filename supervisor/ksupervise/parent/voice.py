"""What ksupervise itself says: on stderr, prefixed, never inside a line of the script's."""

from __future__ import annotations

import json
from typing import Any

from ksupervise.parent.console import Console


class Voice:
    """Says lines, or with `json_log` the journal's records as JSON lines."""

    PREFIX = "ksupervise: "

    def __init__(self, console: Console, *, quiet: bool = False, json_log: bool = False) -> None:
        self._console = console
        self._quiet = quiet
        self._json_log = json_log
        self._said: set[str] = set()

    def say(self, line: str, *, urgent: bool = False) -> None:
        """Say `line`; with --quiet only if it is `urgent`."""
        if self._json_log:
            self._console.say(json.dumps({"event": "message", "text": line}))
        elif urgent or not self._quiet:
            self._console.say(self.PREFIX + line)

    def once(self, key: str, line: str, *, urgent: bool = False) -> None:
        """Say `line` unless something was said under `key` before."""
        if key not in self._said:
            self._said.add(key)
            self.say(line, urgent=urgent)

    def forget(self, key: str) -> bool:
        """What was said under `key` is over; said again it is news. False: nothing was."""
        said = key in self._said
        self._said.discard(key)
        return said

    def record(self, record: dict[str, Any]) -> None:
        """Show a journal record, with --json-log only."""
        if self._json_log:
            self._console.say(json.dumps(record))
