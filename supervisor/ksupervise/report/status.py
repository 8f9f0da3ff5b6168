"""`ksupervise status`: one run's standing, for people and as JSON."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ksupervise.core.actions import RunState
from ksupervise.core.ledger import Account, account
from ksupervise.errors import RunNotFound
from ksupervise.parent import journal, run
from ksupervise.parent.run import RunRecord
from ksupervise.report import costs, replicas
from ksupervise.report.live import Live
from ksupervise.report.live import read as read_live
from ksupervise.report.units import span
from ksupervise.store import Checkpoint, CheckpointStore, Owner, RunLayout, owner_is_alive, read_owner


@dataclass(frozen=True)
class Standing:
    """Everything that `status` knows about a run."""

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
    accounts = account(records, time.time())
    owner = read_owner(layout.lock)
    state = _state(record, owner)
    live = read_live(layout, accounts)
    child = _child_pid(records) if state is RunState.RUNNING else None
    newest = CheckpointStore(directory, record.id).newest()
    places = replicas.as_json(records, time.time())
    return Standing(directory, record, state, accounts, owner, live, newest, child, _commit_failed(records), places)


def _state(record: RunRecord, owner: Owner | None) -> RunState:
    """The recorded state; "running" with a dead owner is "lost"."""
    state = RunState(record.state)
    if state is RunState.RUNNING and (owner is None or owner_is_alive(owner) is False):
        return RunState.LOST
    return state


def _child_pid(records: list[dict[str, Any]]) -> int | None:
    launched = [record for record in records if record["event"] == "launched"]
    return launched[-1].get("pid") if launched else None


def _commit_failed(records: list[dict[str, Any]]) -> str | None:
    """Why the latest commit failed, None if it did not."""
    commits = [record for record in records if record["event"] in ("committed", "commit_failed")]
    return commits[-1].get("reason") if commits else None


def as_json(standing: Standing) -> dict[str, Any]:
    """The documented object."""
    accounts, live, newest = standing.accounts, standing.live, standing.newest
    running = standing.state is RunState.RUNNING
    attempts = [attempt.as_json() for attempt in accounts.attempts]
    executed = accounts.steps_executed
    if attempts and attempts[-1]["ended"] is None and live is not None and live.executed:
        attempts[-1].update(first_step=live.first_step, last_step=live.step)
        executed += live.executed
    if attempts and attempts[-1]["ended"] is None and standing.state is RunState.LOST:
        attempts[-1].update(cause="lost", detail="the parent was killed or the machine went away")
        if live is not None and live.executed:  # unless its child still saves
            attempts[-1]["lost_steps"] = max(0, live.step - (newest.manifest.position.step if newest else 0))
    position = newest.manifest.position if newest else None
    return {
        "run": standing.record.name,
        "state": standing.state.value,
        "detail": standing.record.detail,
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
    lines.append(f"work       {facts['steps_executed']} steps executed, {facts['lost_steps']} lost{share}")
    lines += [f"clock      {flag}" for flag in facts["clock"]]
    if facts["pid"]:
        lines.append(f"processes  parent {facts['pid']}, child {facts['child_pid']}")
    return "\n".join([*lines, "attempts", *_attempt_lines(facts["attempts"])])


def _state_text(standing: Standing, facts: dict[str, Any]) -> str:
    text = standing.state.value.replace("_", " ")
    if standing.state is RunState.RUNNING and facts["phase"]:
        return f"{text} ({facts['phase']})"
    if standing.state is RunState.LOST:
        return f"{text}: its parent is gone; the same command goes on"
    code = facts["exit_code"]
    return f"{text}, exit code {code}: {facts['detail']}" if code is not None else text


def _checkpoint_text(checkpoint: dict[str, Any] | None) -> str:
    if checkpoint is None:
        return "none yet"
    return f"step {checkpoint['step']}, {span(checkpoint['age_s'])} old: {checkpoint['path']}"


def _attempt_lines(attempts: list[dict[str, Any]]) -> list[str]:
    rows = [("  #", "resumed", "steps", "lost", "took", "ended by")]
    for attempt in attempts:
        resumed = "start" if attempt["resumed_from"] is None else str(attempt["resumed_from"])
        trained = attempt["first_step"] is not None
        steps = f"{attempt['first_step']}–{attempt['last_step']}" if trained else "–"
        took = span((attempt["ended"] or time.time()) - attempt["started"])
        cause = attempt["detail"] or attempt["cause"] or "still running"
        rows.append((f"{attempt['number']:>3}", resumed, steps, str(attempt["lost_steps"]), took, cause))
    widths = [max(len(row[column]) for row in rows) for column in range(5)]
    return ["  ".join([*(cell.rjust(width) for cell, width in zip(row, widths, strict=False)), row[5]]) for row in rows]
