"""Machines that train one run after the other, and what each writes into the journal. Their clocks may differ."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

Record = dict[str, Any]


@dataclass
class Machine:
    """One that was booted `up` seconds before the beginning of all, and whose wall clock is `ahead` by so many."""

    host: str
    ahead: float = 0.0
    up: float = 1000.0
    lives: int = 0

    def life(self) -> Life:
        """A parent begins."""
        self.lives += 1
        return Life(self, f"{self.host}{self.lives}")


@dataclass
class Life:
    """One parent's records; `now` is true time, in seconds since the beginning of all."""

    machine: Machine
    name: str
    told: int = 0

    def says(self, event: str, now: float, **fields: Any) -> Record:
        """Any record. No two have the very same time."""
        machine = self.machine
        self.told += 1
        at, mono = 1e6 + now + machine.ahead, machine.up + now + 1e-6 * self.told
        return {"event": event, "at": at, "mono": mono, "life": self.name, **fields}

    def took(self, now: float) -> Record:
        """It owns the run now."""
        return self.says("taken", now, host=self.machine.host, boot=f"{self.machine.host}'s")

    def launched(self, now: float, attempt: int) -> Record:
        """An attempt began."""
        return self.says("launched", now, attempt=attempt, pid=17)

    def trains(self, now: float, attempt: int, resumed: int | None = None) -> list[Record]:
        """It was launched, and its fit began."""
        told = [self.launched(now, attempt), self.says("fit_began", now, attempt=attempt, fit=1)]
        back = {"attempt": attempt, "step": resumed, "guarantee": "exact"}
        return told if resumed is None else [*told, self.says("resumed", now, **back)]

    def committed(self, now: float, attempt: int, step: int, seq: int = 0) -> Record:
        """A checkpoint became durable; numbered by tens of steps unless it is said."""
        return self.says("committed", now, attempt=attempt, step=step, seq=seq or step // 10)

    def ended(self, now: float, attempt: int, first: int, last: int, cause: str = "completed") -> Record:
        """It saw its own attempt end."""
        steps = {"first_step": first, "last_step": last, "executed": last - first}
        return self.says("attempt_ended", now, attempt=attempt, cause=cause, detail=cause, **steps)

    def found_lost(self, now: float, attempt: int, ended: Record) -> Record:
        """It found that another's attempt has no end: `ended` is the last that is known of it."""
        told = {"cause": "lost", "detail": "machine lost", "ended": ended["at"]}
        return self.says("attempt_ended", now, attempt=attempt, **told)

    def superseded(self, now: float, by: str = "Run job is owned by b now, as /r says: it took it. Stop.") -> Record:
        """A replica said that another machine took the run over."""
        return self.says("replica", now, op="superseded", place="/r", by=by)
