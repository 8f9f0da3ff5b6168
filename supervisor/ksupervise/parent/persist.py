"""What was staged becomes durable, and comes back verified: one thread, one thing at a time.

The loop submits work and goes on; the answer comes back to the loop as a call on its own thread.
"""

from __future__ import annotations

import functools
import queue
import threading
from collections.abc import Callable, Container, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from ksupervise.core.resume import Plan, plan
from ksupervise.errors import KsuperviseError
from ksupervise.parent.room import Room
from ksupervise.parent.stage import Stage, content, fill
from ksupervise.store import (
    Checkpoint,
    CheckpointStore,
    Damage,
    DamagedCheckpoint,
    Position,
    Retention,
    StoreFull,
)
from ksupervise.wire import Slot

Answer = Callable[[Any, Exception | None], None]


class Persister:
    """A daemon thread that runs submitted functions in order and hands each result to `deliver`."""

    def __init__(self, deliver: Callable[[Callable[[], None]], None]) -> None:
        """`deliver` takes a function and calls it on the loop's thread."""
        self._deliver = deliver
        self._work: queue.SimpleQueue[tuple[Callable[[], Any], Answer] | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="persister", daemon=True)
        self._thread.start()

    def submit(self, work: Callable[[], Any], answer: Answer) -> None:
        """Run `work` on the thread; then `answer(result, None)` or `answer(None, error)` on the loop's."""
        self._work.put((work, answer))

    def close(self, seconds: float) -> None:
        """Let the work in hand end, waiting at most `seconds`."""
        self._work.put(None)
        self._thread.join(seconds)

    def _run(self) -> None:
        while (entry := self._work.get()) is not None:
            work, answer = entry
            try:
                result, error = work(), None
            except Exception as caught:
                result, error = None, caught
            self._deliver(lambda a=answer, r=result, e=error: a(r, e))  # type: ignore[misc]


@dataclass(frozen=True)
class Candidate:
    """A checkpoint as `core.resume` looks at it.

    `checkpoint` is None for a stage that could not be committed yet: then `slot` holds it.
    """

    checkpoint: Checkpoint | None
    slot: int | None
    seq: int
    fit: int
    epoch: int
    kind: str
    epochs: int
    stopped: bool
    approximate: bool
    thin: bool


@dataclass(frozen=True)
class Restored:
    """What a fit's restore came to.

    `set_aside`: (path, reason) of checkpoints found damaged.
    """

    plan: Plan[Candidate]
    slot: int | None
    set_aside: tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class Committed:
    """A checkpoint, and what had to go to make room for it on a full disk, in that order.

    `set_aside`: (path, reason) of checkpoints that were found damaged when others were to go for them.
    """

    checkpoint: Checkpoint
    freed: tuple[Checkpoint, ...] = ()
    set_aside: tuple[Damage, ...] = ()


def commit(
    store: CheckpointStore,
    slot: Slot,
    about: dict[str, Any],
    *,
    holder: str,
    retention: Retention | int,
) -> Committed:
    """Make the content of `slot` a checkpoint. A full disk gives up what `retention` has as optional, once.

    Raises StoreFull, StoreUnwritable, OSError.
    """
    room = Room(store, retention, sum(size for _, size in about["files"].values()))
    write = functools.partial(_commit, store, slot, about, holder)
    room.make(refused=False)
    try:
        checkpoint = write()
    except StoreFull as full:
        if _is_published(store, about["seq"]) or not room.make(refused=True):
            raise StoreFull(f"{full}{room.cost()}") from full
        try:
            checkpoint = write()
        except StoreFull:
            raise StoreFull(f"{full}{room.cost()}") from full
    return Committed(checkpoint, tuple(room.freed), tuple(room.set_aside))


def _commit(store: CheckpointStore, slot: Slot, about: dict[str, Any], holder: str) -> Checkpoint:
    files = {name: content(slot, offset, size) for name, (offset, size) in about["files"].items()}
    return store.commit(
        Position(**about["position"]),
        files,
        seq=about["seq"],
        attempt=about["attempt"],
        holder=holder,
        origin=about["origin"],
        extra=about.get("extra", {}),
    )


def _is_published(store: CheckpointStore, seq: int) -> bool:
    """Whether a checkpoint of that number is there (only the last sync failed); True if that cannot be known."""
    try:
        return any(each.manifest.seq == seq for each in store.checkpoints())
    except KsuperviseError:
        return True


def restore(
    store: CheckpointStore,
    stage: Stage,
    fit: int,
    epochs: int,
    begun: Mapping[int, int] | None = None,
    abandoned: Container[int] = (),
    passed_over: Sequence[range] = (),
) -> Restored:
    """Find the checkpoint that fit number `fit` goes on from and hold it, verified, in a slot.

    The newest one that proves valid wins; one that does not is set aside with its reason. Those with a number in
    `passed_over` are not looked at.
    """
    aside: list[tuple[str, str]] = []
    for path, reason in store.damaged():
        aside.append((store.set_aside(path, reason), reason))
    while True:
        usable = [each for each in known(store, stage) if not any(each.seq in numbers for numbers in passed_over)]
        chosen = plan(fit, epochs, usable, begun, abandoned)
        candidate = chosen.checkpoint
        if candidate is None:
            return Restored(chosen, None, tuple(aside))
        try:
            return Restored(chosen, hold(store, stage, candidate), tuple(aside))
        except DamagedCheckpoint as damage:
            assert candidate.checkpoint is not None  # a stage in memory is read by nobody here
            reason = damage.reason_in(candidate.checkpoint.path)
            aside.append((store.set_aside(candidate.checkpoint.path, reason), reason))


def known(store: CheckpointStore, stage: Stage) -> list[Candidate]:
    """Every valid checkpoint, newest first; a stage not yet committed is one of them."""
    found = [_on_disk(checkpoint) for checkpoint in store.checkpoints()]
    newest = stage.newest()
    if newest is None:
        return found
    index, about = newest
    for place, candidate in enumerate(found):
        if candidate.seq == about["seq"]:
            found[place] = replace(candidate, slot=index)
            return found
    return sorted([*found, _in_memory(index, about)], key=lambda candidate: -candidate.seq)


def _on_disk(checkpoint: Checkpoint) -> Candidate:
    manifest = checkpoint.manifest
    return _candidate(checkpoint, None, manifest.seq, vars(manifest.position), manifest.extra)


def _in_memory(index: int, about: dict[str, Any]) -> Candidate:
    return _candidate(None, index, about["seq"], about["position"], about.get("extra", {}))


def _candidate(
    checkpoint: Checkpoint | None, slot: int | None, seq: int, at: dict[str, Any], extra: dict[str, Any]
) -> Candidate:
    epochs, stopped = int(extra.get("epochs", 0)), bool(extra.get("stopped", False))
    approximate, thin = bool(extra.get("approximate", False)), bool(extra.get("thin", False))
    return Candidate(checkpoint, slot, seq, at["fit"], at["epoch"], at["kind"], epochs, stopped, approximate, thin)


def hold(store: CheckpointStore, stage: Stage, candidate: Candidate) -> int:
    """Index of the slot that holds `candidate`: as it was staged, or read and verified from disk."""
    if candidate.slot is not None:
        return candidate.slot
    assert candidate.checkpoint is not None
    newest = stage.newest()
    index = 0 if newest is None else 1 - newest[0]
    manifest = candidate.checkpoint.manifest
    files = {file.name: (file.size, store.read(candidate.checkpoint, file.name)) for file in manifest.files}
    about = {"position": vars(manifest.position), "attempt": manifest.attempt, "origin": manifest.origin}
    fill(stage.slots[index], files, manifest.seq, {**about, "extra": manifest.extra})
    return index
