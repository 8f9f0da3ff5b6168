"""`ksupervise checkpoints` and `verify`: what is in the store, why it is kept, and whether it is whole."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ksupervise.errors import KsuperviseError
from ksupervise.parent import journal, run
from ksupervise.parent.room import size_text
from ksupervise.store import (
    Checkpoint,
    CheckpointStore,
    DamagedCheckpoint,
    NewerFormat,
    Retention,
    RunLock,
    StoreUnreadable,
    retention_from_json,
    why_kept,
)
from ksupervise.wire import VARIABLES


def open_store(directory: Path) -> CheckpointStore:
    """The store of the run in `directory`. Raises RunNotFound, RunDamaged."""
    return CheckpointStore(directory, run.load(directory / "run.json").id)


# The list


def as_json(store: CheckpointStore, retention: Retention) -> list[dict[str, Any]]:
    """The documented list, newest first; then what does not count, with the reason.

    `retention` explains why each is kept, where the run's journal does not tell what is in force.

    Raises StoreUnreadable if the directory cannot be read.
    """
    found = store.survey()
    kept = why_kept(found.valid, _in_force(store, retention))
    whole = [_entry(each) | {"kept": [reason.words for reason in reasons]} for each, reasons in kept]
    damaged = [{"seq": None, "path": path, "valid": False, "reason": reason} for path, reason in found.damaged]
    unknown = [{"seq": None, "path": path, "valid": None, "reason": str(error)} for path, error in found.unknown]
    return whole + damaged + unknown


def _in_force(store: CheckpointStore, usual: Retention) -> Retention:
    """What the parent that supervised last kept to, as its journal has it."""
    told: dict[str, Any] = {}
    for record in journal.read(Path(store.layout.journal)):
        told = record.get("retention", told)
    try:
        return retention_from_json(told) if told else usual
    except (AttributeError, TypeError, ValueError):  # another version wrote it
        return usual


def _entry(checkpoint: Checkpoint) -> dict[str, Any]:
    manifest, at = checkpoint.manifest, checkpoint.manifest.position
    return {
        "seq": manifest.seq,
        "step": at.step,
        "fit": at.fit,
        "epoch": at.epoch,
        "batch": at.batch,
        "kind": at.kind,
        "path": checkpoint.path,
        "bytes": manifest.size,
        "valid": True,
        "created": manifest.created,
        "origin": manifest.origin,
        "attempt": manifest.attempt,
    }


def as_text(entries: list[dict[str, Any]]) -> str:
    """The same for people."""
    if not entries:
        return "no checkpoints yet"
    header = ("seq", "step", "fit", "epoch", "batch", "kind", "size", "made by", "kept as", "path")
    rows = [
        (
            *(str(entry[name]) for name in ("seq", "step", "fit", "epoch", "batch", "kind")),
            size_text(entry["bytes"]),
            entry["origin"],
            ", ".join(entry["kept"]) or "goes next",
            entry["path"],
        )
        for entry in entries
        if entry["valid"]
    ]
    lines = _table([header, *rows], right=5, also_right=(6,)) if rows else []
    for entry in entries:
        if not entry["valid"]:
            word = "DAMAGED" if entry["valid"] is False else "UNKNOWN"
            lines.append(f"  {word}: {_located(entry['path'], entry['reason'])}")
    return "\n".join(lines)


def _located(path: str, reason: str) -> str:
    """What is wrong, and where, if the words do not say it."""
    return reason if path in reason else f"{path}: {reason}"


def _table(rows: Sequence[Sequence[str]], right: int, also_right: tuple[int, ...] = ()) -> list[str]:
    """Aligned lines; the first `right` columns, and those, to the right. The last is not padded."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]) - 1)]
    lines = []
    for row in rows:
        cells = [
            cell.rjust(width) if number < right or number in also_right else cell.ljust(width)
            for number, (cell, width) in enumerate(zip(row, widths, strict=False))
        ]
        lines.append("  ".join([*cells, row[-1]]).rstrip())
    return lines


# Verifying


@dataclass(frozen=True)
class Finding:
    """What reading one checkpoint showed.

    Attributes:
        path: where it lies, or lay.
        state: "whole", "damaged", or "unknown" for one that could not be judged.
        reason: what is wrong, "" for a whole one.
        checkpoint: what its manifest says, None where that is not known.
        exit_code: what the command comes to for it.
        aside: where it lies now, "" if it was not moved.
    """

    path: str
    state: str
    reason: str = ""
    checkpoint: Checkpoint | None = None
    exit_code: int = 0
    aside: str = ""


def verify(store: CheckpointStore) -> list[Finding]:
    """Read every byte of every checkpoint, newest first. Writes nothing.

    Raises StoreUnreadable if the directory itself cannot be read.
    """
    found = store.survey()
    read = [finding for each in found.valid if (finding := _examine(store, each)) is not None]
    damaged = [Finding(path, "damaged", reason, exit_code=1) for path, reason in found.damaged]
    return read + damaged + [_unknown(path, error) for path, error in found.unknown]


def _examine(store: CheckpointStore, checkpoint: Checkpoint) -> Finding | None:
    """What its bytes show; None if its owner removed it meanwhile."""
    try:
        store.verify(checkpoint)
    except DamagedCheckpoint as damage:
        now = next((each for each in store.survey().valid if each.path == checkpoint.path), None)
        if now is not None and now.manifest != checkpoint.manifest:  # its owner thinned it meanwhile
            return _examine(store, now)
        if now is None and not os.path.lexists(checkpoint.path):
            return None
        return Finding(checkpoint.path, "damaged", damage.reason_in(checkpoint.path), checkpoint, exit_code=1)
    except (NewerFormat, StoreUnreadable) as error:
        return replace(_unknown(checkpoint.path, error), checkpoint=checkpoint)
    return Finding(checkpoint.path, "whole", "", checkpoint)


def _unknown(path: str, error: KsuperviseError) -> Finding:
    return Finding(path, "unknown", str(error), exit_code=error.exit_code)


_AT_WORK = (
    "its parent is at work: to have them set aside, stop the run and verify again; none is ever loaded unverified"
)


def set_aside_damaged(store: CheckpointStore, findings: Sequence[Finding]) -> tuple[list[Finding], str]:
    """Move what was found damaged out of the way, if nobody owns the run; why not, "" if it was done."""
    if not any(finding.state == "damaged" for finding in findings):
        return list(findings), ""
    lock = RunLock(store.layout.lock)
    try:
        if not lock.acquire():
            return list(findings), _AT_WORK
        return [_aside(store, finding) for finding in findings], ""
    except KsuperviseError as error:
        return list(findings), f"they could not be set aside: {error}"
    finally:
        lock.release()


def _aside(store: CheckpointStore, finding: Finding) -> Finding:
    """Set it aside if it is still what was found; a parent may have been there in the meantime."""
    if finding.state != "damaged":
        return finding
    found = store.survey()
    listed = next((each for each in found.valid if each.path == finding.path), None)
    torn = any(path == finding.path for path, _ in found.damaged)
    if not torn and (listed is None or listed != finding.checkpoint):
        return finding
    return replace(finding, aside=store.set_aside(finding.path, finding.reason))


def findings_as_json(findings: Sequence[Finding]) -> list[dict[str, Any]]:
    """For programs: the entries of `checkpoints --json`, with what reading showed."""
    return [
        {
            **(_entry(finding.checkpoint) if finding.checkpoint else {"seq": None, "path": finding.path}),
            "valid": {"whole": True, "damaged": False}.get(finding.state),
            "reason": finding.reason,
            "files": _sizes(finding),
            "set_aside": finding.aside or None,
        }
        for finding in findings
    ]


def _sizes(finding: Finding) -> dict[str, int]:
    files = finding.checkpoint.manifest.files if finding.checkpoint else ()
    return {record.name: record.size for record in files}


def exit_code(findings: Sequence[Finding]) -> int:
    """1 if one is damaged; else, if one could not be judged, what that error comes to."""
    codes = [finding.exit_code for finding in findings]
    return 1 if 1 in codes else max(codes, default=0)


def findings_as_text(findings: Sequence[Finding]) -> str:
    """For people: a line for each, and the count."""
    rows = [_finding_row(finding) for finding in findings]
    lines = _table(rows, right=0) if rows else []
    counts = {state: sum(1 for each in findings if each.state == state) for state in ("whole", "damaged", "unknown")}
    lines.append(f"{counts['whole']} whole, {counts['damaged']} damaged" + _and_unknown(counts["unknown"]))
    return "\n".join(lines + [f"set aside: {finding.aside}" for finding in findings if finding.aside])


def _and_unknown(count: int) -> str:
    return f", {count} that could not be judged" if count else ""


def _finding_row(finding: Finding) -> tuple[str, ...]:
    if finding.checkpoint is None:
        return finding.state, "", "", "", _described(finding)
    manifest, at = finding.checkpoint.manifest, finding.checkpoint.manifest.position
    where = f"step {at.step}"
    return finding.state, where, at.kind, size_text(manifest.size), _described(finding)


def _described(finding: Finding) -> str:
    """Its path, and what is wrong, or what it holds: variables, and all the rest."""
    if finding.reason:
        return _located(finding.path, finding.reason)
    sizes = _sizes(finding)
    state = sizes.get(VARIABLES, 0)
    return f"{finding.path}  (state {size_text(state)}, rest {size_text(sum(sizes.values()) - state)})"
