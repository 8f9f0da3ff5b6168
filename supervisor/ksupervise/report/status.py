"""`ksupervise status`: one run's standing, for people and as JSON."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ksupervise.core.actions import RunState
from ksupervise.core.clock import Life, lives_here
from ksupervise.core.ledger import Account, AttemptAccount, account
from ksupervise.errors import RunNotFound
from ksupervise.parent import journal, run
from ksupervise.parent.run import RunRecord
from ksupervise.report import costs, replicas
from ksupervise.report.live import Live
from ksupervise.report.live import read as read_live
from ksupervise.report.units import span
from ksupervise.store import Checkpoint, CheckpointStore, Owner, RunLayout, owner_is_alive, read_owner

_TO_HAVE_IT_BACK = "if nobody trains it there any more, the same command goes on with it here"

Record = dict[str, Any]


@dataclass(frozen=True)
class Moved:
    """The run is another machine's. `to`: that machine, None if unknown. `detail`: how that is known."""

    to: str | None
    detail: str


@dataclass(frozen=True)
class Standing:
    """Everything that `status` knows about a run.

    Attributes:
        moved: it went to another machine, and how that came out is not known here; None as far as is known.
    """

    directory: Path
    record: RunRecord
    state: RunState
    accounts: Account
    owner: Owner | None
    live: Live | None
    newest: Checkpoint | None
    child_pid: int | None
    commit_failed: str | None
    replicas: list[dict[str, Any]]
    moved: Moved | None = None


def find(store: Path, name: str | None) -> Path:
    """The directory of run `name`, or of the store's only or latest run. Raises RunNotFound."""
    if name is not None:
        if not (store / name / "run.json").exists():
            known = ", ".join(path.name for path in runs(store)) or "none"
            raise RunNotFound(f"there is no run {name!r} in {store}; runs there: {known}")
        return store / name
    found = runs(store)
    if not found:
        raise RunNotFound(f"there are no runs in {store}; is --store right?")
    return max(found, key=lambda path: (path / "run.json").stat().st_mtime)


def runs(store: Path) -> list[Path]:
    """The directories of all runs in `store`, by name."""
    return sorted(path.parent for path in store.glob("*/run.json"))


def read(directory: Path) -> Standing:
    """The standing of the run in `directory`. Raises RunNotFound, RunDamaged, NewerFormat."""
    layout = RunLayout(directory)
    record = run.load(directory / "run.json")
    records = list(journal.read(Path(layout.journal)))
    owner = read_owner(layout.lock)
    state = _state(record, owner)
    running = state is RunState.RUNNING
    accounts = account(records, time.time() if running else None)
    here = lives_here(records)
    moved = None if running else _moved(accounts, here, records)
    away = bool(accounts.attempts) and not _is_of(accounts.attempts[-1], here)
    live = None if away else read_live(layout, accounts)
    child = _child_pid(here) if running else None
    newest = CheckpointStore(directory, record.id).newest()
    places = replicas.as_json(records, time.time())
    failed = _commit_failed(here)
    return Standing(directory, record, state, accounts, owner, live, newest, child, failed, places, moved)


def _state(record: RunRecord, owner: Owner | None) -> RunState:
    """The recorded state; "running" with a dead owner is "lost"."""
    state = RunState(record.state)
    if state is RunState.RUNNING and (owner is None or owner_is_alive(owner) is False):
        return RunState.LOST
    return state


def _is_of(attempt: AttemptAccount, lives: Sequence[Life]) -> bool:
    return attempt.life in [life.name for life in lives]


def _moved(accounts: Account, here: Sequence[Life], records: Sequence[Record]) -> Moved | None:
    """Where the run went. `here`: the lives on this machine."""
    last = accounts.attempts[-1] if accounts.attempts else None
    if last is not None and not _is_of(last, here):
        if any(record["event"] == "verdict" and record.get("life") == last.life for record in records):
            return None  # it ended there in good order: everybody may go on with it
        on = f"on {last.host}" if last.host else "on another machine"
        step = "" if last.last_step is None else f", which had come to step {last.last_step} at least"
        return Moved(last.host or None, f"attempt {last.number} was begun {on}{step}")
    last_life = here[-1].records if here else ()
    said = [record for record in last_life if "superseded" in (record.get("event"), record.get("op"))]
    if not said:
        return None
    detail = str(said[-1].get("by") or "another machine took it over").partition(". ")[0]
    return Moved(None, detail)


def _child_pid(here: Sequence[Life]) -> int | None:
    launched = [record for record in here[-1].records if record["event"] == "launched"] if here else []
    return launched[-1].get("pid") if launched else None


def _commit_failed(here: Sequence[Life]) -> str | None:
    """Why the latest commit failed on this machine, None if it did not."""
    made = [each for life in here for each in life.records if each["event"] in ("committed", "commit_failed")]
    return made[-1].get("reason") if made else None


def as_json(standing: Standing) -> dict[str, Any]:
    """The documented object."""
    accounts, live, newest = standing.accounts, standing.live, standing.newest
    running = standing.state is RunState.RUNNING
    attempts = [attempt.as_json() for attempt in accounts.attempts]
    executed = accounts.steps_executed
    is_open = bool(attempts) and attempts[-1]["ended"] is None
    if is_open and live is not None and live.executed:
        executed += live.executed - accounts.attempts[-1].executed
        attempts[-1].update(first_step=live.first_step, last_step=live.step, at_least=False)
    if is_open and standing.state is RunState.LOST and standing.moved is None:
        attempts[-1].update(cause="lost", detail="the parent was killed or the machine went away")
        if live is not None and live.executed:  # unless its child still saves
            attempts[-1]["lost_steps"] = max(0, live.step - (newest.manifest.position.step if newest else 0))
    position = newest.manifest.position if newest else None
    return {
        "run": standing.record.name,
        "state": standing.state.value,
        "detail": standing.record.detail,
        "moved": None if standing.moved is None else asdict(standing.moved),
        "exit_code": standing.record.exit_code,
        "attempt": attempts[-1]["number"] if attempts else 0,
        "attempts": attempts,
        "fit": live.fit if live else (position.fit if position else None),
        "epoch": live.epoch if live else (position.epoch if position else None),
        "step": live.step if live else (position.step if position else 0),
        "steps_executed": executed,
        "lost_steps": sum(attempt["lost_steps"] for attempt in attempts),
        "phase": live.phase if live and running else None,
        "checkpoint": _checkpoint(newest),
        "commit_failed": standing.commit_failed,
        "checkpointing": costs.as_json(live, running=running),
        "replicas": standing.replicas,
        "at_least": any(attempt["at_least"] for attempt in attempts),
        "goodput": accounts.goodput,
        "clock": list(accounts.clock_flags),
        "pid": standing.owner.pid if standing.owner and running else None,
        "child_pid": standing.child_pid,
        "store": str(standing.directory.parent),
        "path": str(standing.directory),
    }


def _checkpoint(newest: Checkpoint | None) -> dict[str, Any] | None:
    if newest is None:
        return None
    manifest = newest.manifest
    return {
        "seq": manifest.seq,
        "step": manifest.position.step,
        "path": newest.path,
        "age_s": round(max(0.0, time.time() - manifest.created), 1),
        "valid": True,  # it is listed: its manifest parses and every size matches
    }


def as_text(standing: Standing) -> str:
    """The same for people: a few aligned lines."""
    facts = as_json(standing)
    lines = [
        f"run        {facts['run']}  ({standing.directory})",
        f"state      {_state_text(standing, facts)}",
    ]
    if standing.moved is not None:
        lines += [f"           {standing.moved.detail}", f"           {_TO_HAVE_IT_BACK}"]
    if standing.live is not None:
        live = standing.live
        lines.append(
            f"position   fit {live.fit}, epoch {min(live.epoch + 1, live.epochs)} of {live.epochs}, step {live.step}"
        )
    lines.append(f"checkpoint {_checkpoint_text(facts['checkpoint'])}")
    if facts["commit_failed"]:
        lines.append(f"           newer ones could not be written: {facts['commit_failed']}")
    lines += costs.lines(facts["checkpointing"])
    lines += replicas.lines(facts["replicas"])
    goodput = facts["goodput"]
    share = "" if goodput is None else f", goodput {goodput:.0%}"
    more = "+" if facts["at_least"] else ""
    lines.append(f"work       {facts['steps_executed']}{more} steps executed, {facts['lost_steps']}{more} lost{share}")
    lines += [f"clock      {flag}" for flag in facts["clock"]]
    if facts["pid"]:
        lines.append(f"processes  parent {facts['pid']}, child {facts['child_pid']}")
    lines += ["attempts", *_attempt_lines(facts["attempts"], running=standing.state is RunState.RUNNING)]
    if more:
        lines.append("  +: that many are known of; how far it came before the machine went is not known here")
    return "\n".join(lines)


def _state_text(standing: Standing, facts: dict[str, Any]) -> str:
    text = standing.state.value.replace("_", " ")
    if standing.state is RunState.RUNNING and facts["phase"]:
        return f"{text} ({facts['phase']})"
    if standing.moved is not None:
        return f"moved to {standing.moved.to or 'another machine'}"
    if standing.state is RunState.LOST:
        return f"{text}: its parent is gone; the same command goes on"
    code = facts["exit_code"]
    return f"{text}, exit code {code}: {facts['detail']}" if code is not None else text


def _checkpoint_text(checkpoint: dict[str, Any] | None) -> str:
    if checkpoint is None:
        return "none yet"
    return f"step {checkpoint['step']}, {span(checkpoint['age_s'])} old: {checkpoint['path']}"


def _attempt_lines(attempts: list[dict[str, Any]], *, running: bool) -> list[str]:
    several = len({attempt["host"] for attempt in attempts} - {""}) > 1
    rows = [("  #", "resumed", "steps", "lost", "took", *["on"] * several, "ended by")]
    for attempt in attempts:
        resumed = "start" if attempt["resumed_from"] is None else str(attempt["resumed_from"])
        more = "+" if attempt["at_least"] else ""
        trained = attempt["first_step"] is not None
        steps = f"{attempt['first_step']}–{attempt['last_step']}{more}" if trained else f"–{more}"
        lost = f"{attempt['lost_steps']}{more}"
        open_end = "still running" if running and attempt is attempts[-1] else "not known here"
        cause = attempt["detail"] or attempt["cause"] or open_end
        on = [attempt["host"] or "?"] * several
        rows.append((f"{attempt['number']:>3}", resumed, steps, lost, span(attempt["seconds"]), *on, cause))
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]) - 1)]
    return [
        "  ".join([*(cell.rjust(width) for cell, width in zip(row, widths, strict=False)), row[-1]]) for row in rows
    ]
