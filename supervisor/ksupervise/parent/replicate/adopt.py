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

from ksupervise.core.adoption import Choice, Local, Order, Seen, choose
from ksupervise.errors import EXIT_DRAINED, KsuperviseError, RunBusy, RunNotFound, UsageError
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
    """

    places: dict[str, str] = field(default_factory=dict)
    token: int = 0
    away: list[str] = field(default_factory=list)


def adopt(settings: Settings, layout: RunLayout, script: str, say: Say) -> Found:
    """Look into all replicas, and bring here what is newer there than here.

    Raises UsageError for a replica that holds another run, ReplicaAway, RunBusy.
    """
    found = Found({place: place for place in settings.replica})
    if not found.places:
        return found
    name = Path(layout.root).name
    local = _local(layout)
    seen: list[Seen] = []
    kinds: set[str] = set()
    for index, place in enumerate(found.places):
        generations, kind = _look(place, name, say)
        kinds.add(kind)
        if generations is None:
            found.away.append(place)
        seen += _seen(index, generations or ())
    if local is None and len(found.away) == len(found.places) and not settings.fresh:
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
    if chosen.fetch is not None:
        _fetch(list(found.places)[chosen.fetch.place], layout, chosen, say)
    return found


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
            )
        )
    return seen


def _order(found: Sequence[Any]) -> Order:
    attempt, seq, holder = found
    return int(attempt), int(seq), str(holder)


def _fetch(place: str, layout: RunLayout, chosen: Choice, say: Say) -> None:
    """Bring a generation's newest checkpoint, and what goes with it, into the local store."""
    seen = chosen.fetch
    assert seen is not None
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
    incoming, record = Path(str(report["incoming"])), Path(layout.run_json)
    if not record.exists():
        run.save(record, run.load(incoming / "run.json"))
    journal.merge(Path(layout.journal), (incoming / "journal.jsonl").read_bytes())
    shutil.rmtree(incoming, ignore_errors=True)


def claim(configuration: Mapping[str, Any], say: Say) -> int | None:
    """Become the owner of the run in one place; the token there, None if it cannot be reached now.

    Raises RunBusy if somebody else owns it and lives.
    """
    last: list[Report] = []
    place = configuration["place"]

    def heard(report: Report) -> bool:
        if report["op"] == "waiting":
            say(f"replica {place}: another machine had this run; waiting for a sign of life of it, a minute as a rule")
        if report["op"] in ("waiting", "beat"):
            return True
        last.append(report)
        return False

    whole = converse(["claim"], configuration, heard)
    report = last[0] if whole else {"op": "failed", "reason": "it does not answer"}
    if report["op"] == "owned":
        if report.get("line"):
            say(f"replica {place}: the run is taken over from {report['line']}")
        return int(report["token"])
    if report["op"] == "busy":
        raise RunBusy(f"run {configuration['name']} is being trained by {report.get('who')}: {place} shows it alive")
    say(about(place, str(report.get("reason"))))
    return None


def holder_of(holder: str) -> str:
    """A holder's name as part of a key: letters, digits and dashes."""
    return (
        "".join(letter if letter.isascii() and letter.isalnum() else "-" for letter in holder)[:48]
        + f"-{os.urandom(3).hex()}"
    )
