"""What one attempt staged, until it is durable: what is committed at once, what waits, what a newer one supersedes.

A stage is in memory that outlives the child, so it is committed only as often as the machine's death is to be feared
(`core/cadence.py`); at once where it ends something (a fit, an attempt), or where the user asked for it. The newest one
waits, and is not given back to the child, until it is due, superseded, or the child is gone.
"""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from ksupervise.parent.journal import Journal
from ksupervise.parent.pace import Pacer
from ksupervise.parent.persist import Committed, Persister, commit
from ksupervise.parent.room import Room, beyond_cap, make_room, size_text
from ksupervise.parent.stage import Stage
from ksupervise.parent.voice import Voice
from ksupervise.store import COMPLETED_FITS, Checkpoint, CheckpointStore, Retention, StoreFull
from ksupervise.wire import Control

_LAST_CHANCE = 1.2  # a commit begins before a deadline when so many times what it takes is left
_PLENTY = 3.0  # and at once if there is time for so many of them: then a newer stage can follow
_MARGIN = 1.0  # seconds
_FAILED = "commit-failed"  # what is said once under this name, until it is over
_REHEARSED = 600.0  # seconds; no rehearsal of a full disk lasts longer

Message = dict[str, Any]


@dataclass(frozen=True)
class Shelf:
    """What commits work with; the same for all attempts of a parent. `when_committed` is called after each."""

    holder: str
    retention: Retention
    store: CheckpointStore
    stage: Stage
    persister: Persister
    pacer: Pacer
    journal: Journal
    voice: Voice
    when_committed: Callable[[], None] = lambda: None


@dataclass(frozen=True)
class _Staged:
    """A stage by its slot and description."""

    index: int
    about: dict[str, Any]

    @property
    def seq(self) -> int:
        return int(self.about["seq"])


class Commits:
    """One attempt's stages. Everything runs on the loop's thread."""

    def __init__(self, shelf: Shelf, attempt: int, control: Control, send: Callable[[Message], None]) -> None:
        """`send` tells the trainer, if there is one."""
        self._shelf = shelf
        self._attempt = attempt
        self._control = control
        self._send = send
        self._waiting: _Staged | None = None
        self._hand: set[int] = set()  # seqs that are being committed
        self._deadline: float | None = None
        self._refused_until = 0.0
        newest = shelf.stage.newest()
        # Newest seq that was handed to the persister; what the slots hold now was an earlier attempt's.
        self.submitted = int(newest[1]["seq"]) if newest is not None else 0
        self._settled: set[int] = set()
        self.when_settled: Callable[[], None] = lambda: None

    def is_settled(self, seq: int) -> bool:
        """State `seq` is committed, or was given up."""
        return seq in self._settled

    def taken(self) -> list[int]:
        """For each slot the seq that is still to be committed from it, 0 for none: an earlier trainer's."""
        held = [slot.read_description() for slot in self._shelf.stage.slots]
        seqs = [int(about["seq"]) if about is not None and about.get("staged") else 0 for about in held]
        return [seq if seq in self._hand else 0 for seq in seqs]

    def staged(self, index: int, about: dict[str, Any], told: Message) -> None:
        """The child finished a stage."""
        if self._waiting is not None:
            self._free(self._waiting, committed=False)
        self._waiting = _Staged(index, about)
        self._shelf.pacer.staged(self._control, float(told.get("stall", 0.0)), cold=bool(told.get("cold")))
        if told.get("durable", True):
            self._submit()
        elif self._is_due(self._shelf.pacer.pace.stage / 2):
            self._submit(refused=time.monotonic() < self._refused_until)

    def saved(self, told: Message) -> None:
        """The child wrote a state straight into the store."""
        seq = int(told["seq"])
        self.submitted = max(self.submitted, seq)
        self._settled.add(seq)
        pacer = self._shelf.pacer
        pacer.staged(self._control, float(told.get("stall", 0.0)), cold=False)
        pacer.committed_at = time.monotonic()
        self._write("committed", seq=seq, **dict(told["position"]), path=str(told["path"]))
        self._tell_recovered(int(told["position"]["step"]))
        self._make_room()
        self._shelf.when_committed()
        self.when_settled()

    def unsaved(self, told: Message) -> None:
        """The child could not write a state straight into the store; if the disk is full, the next one may fit."""
        shelf = self._shelf
        self._settled.add(int(told["seq"]))
        self._failed(int(told["seq"]), str(told["reason"]))
        if told.get("full"):
            room = Room(shelf.store, shelf.retention, int(told["size"]))
            shelf.persister.submit(lambda: room.make(refused=True), lambda made, error: self._tell_freed(room.freed))
        self.when_settled()

    def now(self, seq: int) -> None:
        """Somebody waits for state `seq`."""
        if self._waiting is not None and self._waiting.seq == seq:
            self._submit()

    def drain(self, deadline: float) -> None:
        """All ends at `deadline` (CLOCK_MONOTONIC): what waits is committed now, if that leaves time for one more."""
        self._deadline = deadline
        if self._waiting is not None and deadline - time.monotonic() > _PLENTY * self._shelf.pacer.expected:
            self._submit()

    def refuse(self, seconds: float) -> float:
        """Refuse ordinary commits as a full disk does, for a rehearsal; returns for how many seconds.

        What ends something, a drain above all, is committed all the same, and no older checkpoint is given up.
        """
        seconds = max(0.0, min(seconds, _REHEARSED))
        self._refused_until = time.monotonic() + seconds
        return seconds

    def look(self) -> None:
        """Commit what waits, if it is due. Called about once a second."""
        if self._waiting is not None and self._is_last_chance():
            self._submit()
        elif self._waiting is not None and self._is_due(0.0):
            self._submit(refused=time.monotonic() < self._refused_until)

    def leftovers(self) -> None:
        """The child is gone: submit what it staged last, also what it could not announce any more."""
        newest = self._shelf.stage.newest()
        self._waiting = None
        if newest is not None and newest[1]["seq"] > self.submitted and newest[1].get("staged"):
            self._waiting = _Staged(*newest)
            self._submit()

    def _is_due(self, tolerance: float) -> bool:
        """The interval between commits is over, give or take `tolerance` seconds; one at a time."""
        pacer = self._shelf.pacer
        if self._hand:
            return False
        return pacer.committed_at is None or time.monotonic() - pacer.committed_at >= pacer.pace.commit - tolerance

    def _is_last_chance(self) -> bool:
        if self._deadline is None:
            return False
        return self._deadline - time.monotonic() <= _LAST_CHANCE * self._shelf.pacer.expected + _MARGIN

    def _submit(self, *, refused: bool = False) -> None:
        staged, self._waiting = self._waiting, None
        assert staged is not None
        shelf, slot = self._shelf, self._shelf.stage.slots[staged.index]
        self.submitted = staged.seq
        if not self._hand:
            shelf.pacer.commit_begins(self._control)
        self._hand.add(staged.seq)

        def work() -> tuple[Committed, float]:
            began = time.monotonic()
            if refused:
                raise StoreFull(f"{os.strerror(errno.ENOSPC)} (a rehearsal of it: `ksupervise rehearse disk-full`)")
            made = commit(shelf.store, slot, staged.about, holder=shelf.holder, retention=shelf.retention)
            return made, time.monotonic() - began

        shelf.persister.submit(work, lambda found, error: self._committed(staged, found, error))

    def _committed(self, staged: _Staged, found: tuple[Committed, float] | None, error: Exception | None) -> None:
        self._hand.discard(staged.seq)
        self._settled.add(staged.seq)
        if found is not None:
            self._enter(staged, *found)
        else:
            self._failed(staged.seq, str(error))
        self._free(staged, committed=found is not None)
        self.when_settled()
        if found is not None:
            self._make_room()
            self._shelf.when_committed()

    def _enter(self, staged: _Staged, made: Committed, seconds: float) -> None:
        pacer, path = self._shelf.pacer, made.checkpoint.path
        pacer.committed_at = time.monotonic()
        pacer.commit_ended(self._control, seconds)
        self._write("committed", seq=staged.seq, **staged.about["position"], path=path, seconds=round(seconds, 4))
        for damaged, reason in made.set_aside:
            self._write("set_aside", path=damaged, reason=reason)
            self._shelf.voice.say(f"a damaged checkpoint was set aside: {damaged}: {reason}", urgent=True)
        self._tell_freed(made.freed)
        self._tell_recovered(staged.about["position"]["step"])

    def _failed(self, seq: int, reason: str) -> None:
        self._write("commit_failed", seq=seq, reason=reason)
        note = f"a checkpoint could not be written, training goes on: {reason}"
        self._shelf.voice.once(_FAILED, note, urgent=True)

    def _tell_recovered(self, step: int) -> None:
        if self._shelf.voice.forget(_FAILED):
            self._shelf.voice.say(f"checkpoints can be written again: that of step {step} is on the disk", urgent=True)

    def _tell_freed(self, freed: Sequence[Checkpoint]) -> None:
        if freed:
            self._write("freed", seqs=[checkpoint.manifest.seq for checkpoint in freed])
            size = size_text(sum(checkpoint.manifest.size for checkpoint in freed))
            number = "an older checkpoint" if len(freed) == 1 else f"{len(freed)} older checkpoints"
            note = f"the disk is full: {number} ({size}) removed to make room, and more will be as it is needed"
            self._shelf.voice.once("freed", note, urgent=True)

    def _free(self, staged: _Staged, *, committed: bool) -> None:
        self._send({"op": "free", "slot": staged.index, "seq": staged.seq, "committed": committed})

    def _make_room(self) -> None:
        shelf = self._shelf
        shelf.persister.submit(
            lambda: (make_room(shelf.store, shelf.retention), beyond_cap(shelf.store, shelf.retention)),
            self._made_room,
        )

    def _made_room(self, found: tuple[list[Checkpoint], int] | None, error: Exception | None) -> None:
        thinned, beyond = found or ([], 0)
        if beyond:
            allowed = size_text(self._shelf.retention.bytes or 0)
            note = f"--keep-bytes {allowed}: the newest two and what the run needs to go on take {size_text(beyond)}"
            self._shelf.voice.once("beyond-cap", note)
        for checkpoint in thinned:
            self._write("thinned", seq=checkpoint.manifest.seq, fit=checkpoint.manifest.position.fit)
            size = f"{COMPLETED_FITS / 1024**3:.0f} GiB"
            note = f"completed fits take more than {size}: from now on only the last weights of each model are kept"
            self._shelf.voice.once("thinned", note)
        if error is not None:
            note = f"old checkpoints could not be removed: {error}"
            self._shelf.voice.once(f"prune-failed {type(error).__name__}", note, urgent=True)

    def _write(self, event: str, **fields: Any) -> None:
        self._shelf.voice.record(self._shelf.journal.write(event, attempt=self._attempt, **fields))
