"""One order and one time for the records of many lives, on one machine or on several. Pure.

A life is what one parent wrote; its records name it ("life"), so that they are known again wherever in a journal they
stand: a run that goes from machine to machine has its journals merged. Within a life, and between lives of one boot of
one machine, the monotonic clock tells how much time went by; it stands still while the machine is suspended. Between
boots there is only the wall clock, and between machines there are two: time is clamped, so that it never runs
backwards, and what looked wrong is flagged.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

TAKEN = "taken"  # the event that begins a life; it names "host" and "boot"
MERGED = "merged"  # the event that says which "lives" came from another machine
_SAID_BY_OTHERS = ("attempt_ended", "committed")  # of a lost attempt, by the parent that found it
_TOLERANCE = 60.0  # seconds by which the clocks may differ before it is worth a word

Record = Mapping[str, Any]


@dataclass(frozen=True)
class Life:
    """What one parent wrote, oldest first.

    Attributes:
        name: as its records have it; "" in journals that do not name lives.
        records: at least one.
        host: its machine, "" if unknown.
        boot: of that machine, "" if unknown.
    """

    name: str
    records: tuple[Record, ...]
    host: str = ""
    boot: str = ""

    @property
    def superseded(self) -> bool:
        """Another machine took the run over while this one was not heard of: the two may have lived side by side."""
        return any("superseded" in (record.get("event"), record.get("op")) for record in self.records)

    @property
    def first_attempt(self) -> int | None:
        """The first that it launched, None if it launched none."""
        told = [record for record in self.records if isinstance(record.get("attempt"), int)]
        launched = [record["attempt"] for record in told if record.get("event") == "launched"]
        # Of a journal that was cut short, the other records tell.
        others = [record["attempt"] for record in told if record.get("event") not in _SAID_BY_OTHERS]
        return min(launched or others, default=None)


@dataclass(frozen=True)
class Timeline:
    """When the records of a journal happened.

    Attributes:
        lives: oldest first.
        times: for each record, life by life, seconds since the first one. Within a life they never fall. No life
            begins before the one before it ended, unless that was superseded: then not before that one began.
        flags: what was wrong with the clocks, in words.
    """

    lives: tuple[Life, ...] = ()
    times: tuple[float, ...] = ()
    flags: tuple[str, ...] = ()


def lives(records: Iterable[Record]) -> list[Life]:
    """The lives that wrote these records, oldest first: each attempt's number was taken when it began."""
    known: dict[str | int, list[Record]] = {}
    nameless = 0
    for record in sorted(records, key=lambda record: record.get("event") == MERGED):  # who merges lives later
        name = record.get("life")
        if not isinstance(name, str):
            nameless += record.get("event") == TAKEN
            known.setdefault(nameless, []).append(record)
        else:
            known.setdefault(name, []).append(record)
    found = [_life(name, told) for name, told in known.items()]
    reached, order = 0, []
    for life in found:  # one that launched nothing stays behind the one that it stood behind
        reached = life.first_attempt or reached
        order.append(reached)
    return [found[index] for index in sorted(range(len(found)), key=order.__getitem__)]


def in_order(records: Iterable[Record]) -> list[Record]:
    """The records, life by life."""
    return [record for life in lives(records) for record in life.records]


def lives_here(records: Iterable[Record]) -> list[Life]:
    """The lives on the machine whose journal this is, oldest first."""
    known = list(records)
    came = {name for record in known if record.get("event") == MERGED for name in record.get("lives") or ()}
    return [life for life in lives(known) if life.name not in came]


def _life(name: str | int, told: list[Record]) -> Life:
    taken = next((record for record in told if record.get("event") == TAKEN), {})
    if isinstance(name, str):  # they may have come in pieces
        told = sorted(told, key=lambda record: float(record.get("mono", math.inf)))
    about = str(taken.get("host") or ""), str(taken.get("boot") or "")
    return Life(name if isinstance(name, str) else "", tuple(told), *about)


def timeline(records: Iterable[Record]) -> Timeline:
    """The times of a journal's records, whatever their order in it."""
    known = tuple(lives(records))
    placing = _Placing(known, [_offsets(life) for life in known])
    times = [at for index in range(len(known)) for at in placing.place(index)]
    return Timeline(known, tuple(times), placing.flags)


@dataclass
class _Placing:
    """Lives that are put one behind the other.

    Attributes:
        lives: all of them, in order.
        offsets: for each life seconds since its first record for each of its records.
        latest: by machine, and by boot of a machine, its newest record and when it was.
        floor: no life begins before it.
        end: of the life that was placed last.
        said: what was wrong with single clocks.
        apart: by how many seconds the clocks of two machines differ, and which machines.
    """

    lives: Sequence[Life]
    offsets: Sequence[Sequence[float]]
    latest: dict[tuple[str, ...], tuple[Record, float]] = field(default_factory=dict)
    floor: float = 0.0
    end: float = 0.0
    said: list[str] = field(default_factory=list)
    apart: tuple[float, str, str] = (0.0, "", "")

    @property
    def flags(self) -> tuple[str, ...]:
        """What was wrong, in words."""
        seconds, one, other = self.apart
        if not seconds:
            return tuple(self.said)
        named = f"of {one} and {other}" if one and other else "of two machines"
        words = f"the clocks {named} differ by {seconds:.0f} s at least: the time between their attempts is a guess"
        return (*self.said, words)

    def place(self, index: int) -> list[float]:
        """When the records of a life happened; those before it have been placed."""
        life = self.lives[index]
        begin = self._begin(index) if index else 0.0
        self.said += _flags(life)
        times = [begin + offset for offset in self.offsets[index]]
        for key in _clocks(life):
            self.latest[key] = (life.records[-1], times[-1])
        self.floor = max(self.floor, begin if life.superseded else times[-1])
        self.end = times[-1]
        return times

    def _begin(self, index: int) -> float:
        """When a life began: by its own machine's clocks, if that was here before."""
        life, before = self.lives[index], self.lives[index - 1]
        first = life.records[0]
        for key in _clocks(life):
            if key in self.latest:
                last, at = self.latest[key]
                passed, flag = _between_lives(last, first, same_boot=len(key) > 1)
                self.said += [flag] if flag else []
                return max(self.floor, at + passed)
        begin = self.end + _wall(before.records[-1], first)
        latest, whose = self._ceiling(index)
        self._differ(self.floor - begin, before.host, life.host)
        self._differ(begin - latest, whose, life.host)
        return max(self.floor, min(begin, latest))

    def _differ(self, seconds: float, one: str, other: str) -> None:
        if seconds > max(_TOLERANCE, self.apart[0]):
            self.apart = (seconds, one, other)

    def _ceiling(self, index: int) -> tuple[float, str]:
        """When a life on a new machine began at the latest, and which machine tells: one that came back after it."""
        took = 0.0
        for life, offsets in zip(self.lives[index:], self.offsets[index:], strict=True):
            for key in _clocks(life):
                if key in self.latest:
                    last, at = self.latest[key]
                    steady = _between_lives(last, life.records[0], same_boot=len(key) > 1)[0]
                    return at + max(steady, _wall(last, life.records[0])) - took, life.host
            took += offsets[-1]
        return math.inf, ""


def _clocks(life: Life) -> list[tuple[str, ...]]:
    """Under which a life's clocks are known again: those of its boot, that of its machine."""
    return [(life.host, life.boot)] * bool(life.host and life.boot) + [(life.host,)] * bool(life.host)


def _offsets(life: Life) -> list[float]:
    offsets = [0.0]
    for before, after in pairwise(life.records):
        offsets.append(offsets[-1] + _between(before, after)[0])
    return offsets


def _flags(life: Life) -> list[str]:
    return [flag for before, after in pairwise(life.records) if (flag := _between(before, after)[1])]


def _wall(before: Record, after: Record) -> float:
    return float(after.get("at", 0.0)) - float(before.get("at", 0.0))


def _between(before: Record, after: Record) -> tuple[float, str]:
    """Seconds between two records of one life, and what is wrong with the clocks ("" for nothing)."""
    passed, flag = _between_lives(before, after, same_boot=True)
    return (passed, flag) if passed >= 0 else (max(0.0, _wall(before, after)), "")


def _between_lives(before: Record, after: Record, *, same_boot: bool) -> tuple[float, str]:
    """The same for two lives on one machine. Less than none where they lived side by side."""
    wall = _wall(before, after)
    if "mono" not in before or "mono" not in after:
        return wall, ""
    if not same_boot:
        back = f"the wall clock went back by {-wall:.0f} s between two lives: that time is counted as none"
        return wall, back if wall < -_TOLERANCE else ""
    steady = float(after["mono"]) - float(before["mono"])
    if wall - steady > _TOLERANCE:
        return steady, f"the machine was suspended, or its clock set forward, by {wall - steady:.0f} s"
    if steady - wall > _TOLERANCE:
        return steady, f"the wall clock was set back by {steady - wall:.0f} s"
    return steady, ""
