"""Before a run begins: what its replicas hold of it, who else may own it, and what is brought here.

Each question is put to a worker process of its own, which may be killed; what it answers is judged by
`core/adoption.py`.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ksupervise.core.adoption import Local, Order, Seen, choose, verdict
from ksupervise.errors import EXIT_DRAINED, KsuperviseError, RunNotFound, UsageError
from ksupervise.parent import journal, run
from ksupervise.parent.replicate.fleet import about
from ksupervise.parent.replicate.handle import Report, converse
from ksupervise.settings import Settings
from ksupervise.store import CheckpointStore, RunLayout

_PATIENCE = 20.0  # seconds for which a place that does not answer is asked again

Say = Callable[[str], None]


class ReplicaAway(KsuperviseError):
    """A machine without the run cannot look into the place where it may be."""

    exit_code = EXIT_DRAINED
    slug = "replica-away"


@dataclass
class Found:
    """What was looked up, for those who own the run from here on.

    Attributes:
        places: what the user gave, by the names under which they are told of.
        token: no attempt up to this number is this parent's.
        away: places that could not be looked at; their workers try again.
        behind: places that lack the newest checkpoint that is here, or how the run ended.
        fetch: what is to be brought here first, None for nothing.
        record: the run's as it lies there, for a machine that has none.
    """

    places: tuple[str, ...] = ()
    token: int = 0
    away: list[str] = field(default_factory=list)
    behind: list[str] = field(default_factory=list)
    fetch: Seen | None = None
    record: str = ""


def look_into(settings: Settings, layout: RunLayout, script: str, say: Say) -> Found:
    """Look into all replicas: is there something newer than here? Nothing is changed there or here.

    Raises UsageError for a replica that holds another run, ReplicaAway.
    """
    found = Found(settings.replica)
    if not found.places:
        return found
    name = Path(layout.root).name
    local = _local(layout)
    seen: list[Seen] = []
    kinds: set[str] = set()  # of failures
    records: dict[str, str] = {}
    for index, place in enumerate(found.places):
        generations, kind = _look(place, name, say)
        kinds |= {kind} - {""}
        if generations is None:
            found.away.append(place)
        seen += _seen(index, generations or ())
        records |= {str(each.get("run_id")): str(each.get("record")) for each in generations or ()}
    if local is None and not seen and found.away and not settings.fresh:
        text = (
            f"{', '.join(found.away)} cannot be looked into, and there is nothing of run {name} here: it may be there"
        )
        if "unreachable" not in kinds:
            raise UsageError(f"{text}. Mend what is said above, or begin anew with --fresh")
        raise ReplicaAway(f"{text}. Try again when it can be reached, or begin anew with --fresh")
    named = settings.name is not None
    chosen = choose(local, seen, digest=run.digest(script), named=named, fresh=settings.fresh)
    if chosen.refusal:
        refusal = chosen.refusal.replace("--name", f"--name {name}", 1)
        raise UsageError(f"run {name}, {', '.join(found.places)}: {refusal}")
    found.token = chosen.token
    found.fetch = chosen.fetch
    if chosen.fetch is not None:
        found.record = records.get(chosen.fetch.run_id, "")
    elif local is None:
        say(f"{', '.join(found.places)}: nothing of run {name} is there yet")
    elif not settings.fresh:
        has = {each.place for each in seen if each.run_id == local.run_id and each.told and _has(each, local)}
        known = [(index, place) for index, place in enumerate(found.places) if place not in found.away]
        found.behind = [place for index, place in known if index not in has]
    return found


def _has(seen: Seen, local: Local) -> bool:
    """The place has all that is here, or more."""
    return local.newest is None or (seen.newest is not None and seen.newest >= local.newest)


def _local(layout: RunLayout) -> Local | None:
    try:
        record = run.load(Path(layout.run_json))
    except RunNotFound:
        return None
    newest = CheckpointStore(layout.root, record.id).newest()
    return Local(record.id, None if newest is None else newest.manifest.order)


def _look(place: str, name: str, say: Say) -> tuple[list[Mapping[str, Any]] | None, str]:
    """The generations that a place has of the run, None if it cannot be looked at; then the kind of failure, too."""
    answers: list[Report] = []

    def heard(report: Report) -> bool:
        if report["op"] == "beat":
            return True
        answers.append(report)
        return False

    whole = converse(["look"], {"place": place, "name": name, "patience": _PATIENCE}, heard)
    if whole and answers[0]["op"] == "found":
        return list(answers[0].get("generations") or ()), ""
    say(about(place, str(answers[0].get("reason")) if answers else "it does not answer"))
    return None, str(answers[0].get("kind")) if answers else "unreachable"


def _seen(place: int, generations: Sequence[Mapping[str, Any]]) -> list[Seen]:
    """What a place holds, as far as it makes sense."""
    seen = []
    for each in generations:
        newest = each.get("newest")
        seen.append(
            Seen(
                place,
                int(each["number"]),
                str(each.get("run_id") or ""),
                str(each.get("script_digest") or ""),
                _order(newest["order"]) if newest else None,
                int(newest["step"]) if newest else 0,
                int(each.get("token") or 0),
                int(each.get("told") or 0),
            )
        )
    return seen


def _order(found: Sequence[Any]) -> Order:
    attempt, seq, holder = found
    return int(attempt), int(seq), str(holder)


def fetch(found: Found, layout: RunLayout, say: Say) -> None:
    """Bring a generation's newest checkpoint, and what goes with it, into the local store. Only while owning the run.

    Raises ReplicaAway.
    """
    seen = found.fetch
    assert seen is not None
    place = found.places[seen.place]
    if seen.newest is not None:
        say(f"replica {place} has step {seen.step} of this run, newer than what is here: fetching it")
    last: list[Report] = []

    def heard(report: Report) -> bool:
        if report["op"] == "skipped":
            say(f"replica {place}: {report.get('key')} was passed over: {report.get('reason')}")
        if report["op"] in ("fetching", "beat", "skipped"):
            return True
        last.append(report)
        return False

    configuration = {
        "place": place,
        "name": Path(layout.root).name,
        "directory": str(layout.root),
        "generation": seen.number,
        "run": seen.run_id,
    }
    whole = converse(["fetch"], configuration, heard)
    report = last[0] if whole else {"op": "failed", "reason": "it does not answer"}
    if report["op"] != "fetched" and "incoming" not in report:
        reason = report.get("reason") or "nothing there proved whole"
        raise ReplicaAway(
            f"replica {place}: the run could not be fetched: {reason}. What came is kept, and the same command goes on"
        )
    _settle(layout, report)
    if report["op"] == "fetched":
        say(f"replica {place}: step {report.get('step')} is here")
    else:
        say(f"replica {place}: {report.get('reason')}")


def _settle(layout: RunLayout, report: Report) -> None:
    """Put the run's record and journal where they belong. The checkpoints are there already."""
    incoming, path = Path(str(report["incoming"])), Path(layout.run_json)
    journal.merge(Path(layout.journal), (incoming / "journal.jsonl").read_bytes())
    record = run.load(path if path.exists() else incoming / "run.json")
    newest = CheckpointStore(layout.root, record.id).newest()
    ended = verdict(journal.read(Path(layout.journal)), 0 if newest is None else newest.manifest.seq)
    run.save(path, record if ended is None else run.ended(record, ended))
    shutil.rmtree(incoming, ignore_errors=True)


def holder_of(holder: str) -> str:
    """A holder's name as part of a key: letters, digits and dashes."""
    return (
        "".join(letter if letter.isascii() and letter.isalnum() else "-" for letter in holder)[:48]
        + f"-{os.urandom(3).hex()}"
    )
