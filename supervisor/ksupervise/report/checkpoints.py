"""`ksupervise checkpoints` and `verify`: what is in the store, and whether it is whole."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ksupervise.parent import run
from ksupervise.store import Checkpoint, CheckpointStore, DamagedCheckpoint


def open_store(directory: Path) -> CheckpointStore:
    """The store of the run in `directory`. Raises RunNotFound, RunDamaged."""
    return CheckpointStore(directory, run.load(directory / "run.json").id)


def as_json(store: CheckpointStore) -> list[dict[str, Any]]:
    """The documented list, newest first; damaged ones come last, with their reason."""
    whole = [_entry(checkpoint) for checkpoint in store.checkpoints()]
    return whole + [{"seq": None, "path": path, "valid": False, "reason": reason} for path, reason in store.damaged()]


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
    lines = ["  seq       step  fit  epoch  batch  kind         MB  made by     path"]
    for entry in entries:
        if not entry["valid"]:
            lines.append(f"  DAMAGED: {entry['reason']}: {entry['path']}")
            continue
        lines.append(
            f"{entry['seq']:>5} {entry['step']:>10} {entry['fit']:>4} {entry['epoch']:>6} {entry['batch']:>6}  "
            f"{entry['kind']:<6} {entry['bytes'] / 1e6:>8.1f}  {entry['origin']:<10}  {entry['path']}"
        )
    return "\n".join(lines)


@dataclass(frozen=True)
class Finding:
    """What reading one checkpoint showed. `reason` is "" for a whole one."""

    path: str
    reason: str


def verify(store: CheckpointStore) -> list[Finding]:
    """Read every byte of every checkpoint."""
    findings = [Finding(path, reason) for path, reason in store.damaged()]
    for checkpoint in store.checkpoints():
        try:
            store.verify(checkpoint)
            findings.append(Finding(checkpoint.path, ""))
        except DamagedCheckpoint as damage:
            findings.append(Finding(checkpoint.path, damage.reason))
    return findings
