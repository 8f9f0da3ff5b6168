"""One time for the records of many lives. Pure.

Within a life (of one parent), and between lives of one boot of one machine, the monotonic clock tells how much time
went by; it stands still while the machine is suspended. Between boots and machines there is only the wall clock, which
may have been set in between: it is clamped, so that time never runs backwards, and what looked wrong is flagged.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

TAKEN = "taken"  # the event that begins a life; it names "host" and "boot"
_TOLERANCE = 60.0  # seconds by which the clocks may differ before it is worth a word

Record = Mapping[str, Any]


@dataclass(frozen=True)
class Timeline:
    """Seconds since the first record for each record, never falling; and what was wrong with the clocks, in words."""

    times: tuple[float, ...] = ()
    flags: tuple[str, ...] = ()


def timeline(records: Iterable[Record]) -> Timeline:
    """The times of a journal's records, in its order."""
    times: list[float] = []
    flags: list[str] = []
    before: Record | None = None
    life: Record = {}
    for record in records:
        if before is None:
            times.append(0.0)
        else:
            taken = record if record.get("event") == TAKEN else life
            passed, flag = _between(before, record, same=_same_boot(life, taken))
            times.append(times[-1] + passed)
            flags += [flag] if flag else []
        life = record if record.get("event") == TAKEN else life
        before = record
    return Timeline(tuple(times), tuple(flags))


def _same_boot(one: Record, other: Record) -> bool:
    """The monotonic clocks of two lives are one clock."""
    if one is other:
        return True
    known = bool(one.get("boot")) and bool(one.get("host"))
    return known and (one.get("boot"), one.get("host")) == (other.get("boot"), other.get("host"))


def _between(before: Record, after: Record, *, same: bool) -> tuple[float, str]:
    """Seconds between two records, and what is wrong with the clocks ("" for nothing)."""
    wall = float(after.get("at", 0.0)) - float(before.get("at", 0.0))
    if "mono" not in before or "mono" not in after:
        return max(0.0, wall), ""
    steady = float(after["mono"]) - float(before["mono"])
    if not same or steady < 0:
        back = f"the wall clock went back by {-wall:.0f} s between two lives: that time is counted as none"
        return max(0.0, wall), back if wall < -_TOLERANCE else ""
    if wall - steady > _TOLERANCE:
        return steady, f"the machine was suspended, or its clock set forward, by {wall - steady:.0f} s"
    if steady - wall > _TOLERANCE:
        return steady, f"the wall clock was set back by {steady - wall:.0f} s"
    return steady, ""
