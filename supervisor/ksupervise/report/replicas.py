"""Where a run's replicas stand, from what their workers told the journal.

A journal may hold what other machines wrote. Their workers' places may have other names, and their commits are not
here: only what was written on this machine counts, by the last life that had replicas.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ksupervise.core.clock import in_order, lives_here
from ksupervise.report.units import span

Record = Mapping[str, Any]


def as_json(records: Sequence[Record], now: float) -> list[dict[str, Any]]:
    """Each place with the newest checkpoint that it has.

    "state" is `cached` (taken, but perhaps still on this machine), `uploaded`, `none` (nothing is there yet) or
    `superseded` (another machine took the run over). "lag_s": seconds since the first commit that is not there, 0 if
    all are; "behind": how many those are. "failed": why it fails now, None if it does not.
    """
    everywhere = {int(each.get("seq", 0)): each for each in _committed(in_order(records))}
    here = lives_here(records)
    told = [_told(life.records) for life in here]
    places: dict[str, dict[str, Any]] = {}
    for record in next((each for each in reversed(told) if each), []):
        _enter(places.setdefault(record["place"], _nothing(record["place"])), record)
    for place in places.values():
        known = everywhere.get(place["seq"] or 0)
        made = [each for life in here for each in _committed(life.records)]
        missing = [each for each in made if _is_newer(each, place["seq"] or 0, known)]
        place["step"] = None if known is None else known.get("step")
        place["behind"] = len(missing)
        place["lag_s"] = round(max(0.0, now - float(missing[0].get("at", now))), 1) if missing else 0.0
    return list(places.values())


def _committed(records: Sequence[Record]) -> list[Record]:
    return [record for record in records if record.get("event") == "committed"]


def _told(records: Sequence[Record]) -> list[Record]:
    """What workers said of their places."""
    return [record for record in records if record.get("event") == "replica" and isinstance(record.get("place"), str)]


def _is_newer(made: Record, seq: int, there: Record | None) -> bool:
    """Than checkpoint number `seq`, which is there. Two machines may both have given a number away."""
    if there is None:
        return int(made.get("seq", 0)) > seq
    return _order(made) > _order(there)


def _order(committed: Record) -> tuple[int, int]:
    return int(committed.get("attempt", 0)), int(committed.get("seq", 0))


def _nothing(place: str) -> dict[str, Any]:
    return {"place": place, "state": "none", "seq": None, "failed": None}


def _enter(place: dict[str, Any], record: Record) -> None:
    op = record.get("op")
    if op in ("there", "replicated", "arrived"):
        seq = int(record.get("seq", 0))
        state = "uploaded" if op == "arrived" else str(record.get("arrival", "uploaded"))
        if seq >= (place["seq"] or 0):
            place.update(seq=seq, state=state)
        place["failed"] = None
    elif op == "failed":
        place["failed"] = str(record.get("reason", ""))
    elif op == "superseded":
        place["state"] = "superseded"


def lines(places: Sequence[Mapping[str, Any]]) -> list[str]:
    """The same for people, two lines a place at most."""
    shown = []
    for number, place in enumerate(places):
        head = "replica    " if not number else " " * 11
        shown.append(f"{head}{place['place']}: {_standing(place)}")
        if place["failed"]:
            shown.append(f"{'':11}failing: {place['failed']}")
    return shown


def _standing(place: Mapping[str, Any]) -> str:
    if place["state"] == "superseded":
        return "taken over by another machine"
    if place["seq"] is None:
        return "nothing there yet"
    words = {"cached": "taken, perhaps not uploaded yet"}.get(place["state"], place["state"])
    at = f"checkpoint {place['seq']}" if place["step"] is None else f"step {place['step']}"
    behind = f"; {place['behind']} behind, for {span(place['lag_s'])}" if place["behind"] else ", nothing newer"
    return f"{at} {words}{behind}"
