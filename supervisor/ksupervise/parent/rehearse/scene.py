"""What a rehearsal works with, and what it comes to."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from ksupervise.errors import EXIT_USAGE, KsuperviseError
from ksupervise.parent.rehearse.outside import Glance, Subject, last
from ksupervise.parent.rehearse.scratch import OwnParent
from ksupervise.parent.rehearse.squeeze import Squeeze

LOOK = 0.05  # seconds between two looks
FEW = 3  # steps that are trained on before and after something is done

WITH_PARENT = ("preempt", "lost")  # the parent goes too: somebody has to call the run again

Say = Callable[[str], None]


class CannotRehearse(KsuperviseError):
    """Nothing was done, or the run was not in a state in which it would tell anything."""

    exit_code = EXIT_USAGE
    slug = "cannot-rehearse"


@dataclass(frozen=True)
class Rehearsal:
    """What was done, and what survived. Times in seconds after the deed; None for what did not happen.

    Attributes:
        what: one of `WHAT`. deed: the same in words. at: when, wall time.
        new: the run was made for it.
        cause, detail: as the journal names what happened, "" if it named nothing.
        relaunched, training, back: the next attempt was launched, began a step, was past where it was interrupted.
        step: the last begun before the end. resumed_from: None for a start from nothing.
        lost_seconds: how long the steps that were trained again had taken, None where that is not known.
        memory_step, disk_step: of the newest state held in memory and on disk at the deed; 0 for none.
        stage_every, commit_every: seconds between those, as the run has it.
        refused: saves that the full disk refused. steps_meanwhile: that were trained under it.
        failure: why it did not survive, "" if it did. advice: what to do then.
        notes: what else is to be known. output: the last of the script's output, where it may explain a failure.
    """

    what: str
    run: str
    new: bool
    deed: str
    at: float
    attempt: int
    step: int
    memory_step: int
    disk_step: int
    stage_every: float
    commit_every: float
    cause: str = ""
    detail: str = ""
    noticed: float | None = None
    relaunched: float | None = None
    training: float | None = None
    back: float | None = None
    resumed_from: int | None = None
    lost_steps: int = 0
    lost_seconds: float | None = None
    guarantee: str = ""
    refused: int = 0
    steps_meanwhile: int = 0
    failure: str = ""
    advice: str = ""
    notes: tuple[str, ...] = ()
    output: str = ""
    kept: str = ""  # directory of the run, if it is there afterwards


@dataclass
class Scene:
    """What a rehearsal works with. `parent`: of a run that was made for it. `notes`: for the report."""

    what: str
    subject: Subject
    wait: float
    say: Say
    undo: contextlib.ExitStack
    parent: OwnParent | None = None
    squeeze: Squeeze | None = None
    notes: list[str] = field(default_factory=list)

    def check(self) -> None:
        """Raises CannotRehearse when the run ended before anything was done to it."""
        ended = self.parent is not None and self.parent.ended() is not None
        if not ended and (self.parent is not None or self.subject.owner() is not None):
            return
        detail = last(self.subject.records(), "verdict").get("detail", "")
        reason = detail or (self.parent.last_words() if self.parent else "") or "its parent is gone"
        tail = self.subject.tail()
        raise CannotRehearse(
            f"run {self.subject.name} ended before anything was done to it ({reason}); give it a training that lasts "
            f"a minute or more, and that works" + (f". The last it printed:\n{tail}" if tail else "")
        )

    def parent_pid(self) -> int:
        """Of the process that supervises it. Raises CannotRehearse if there is none."""
        if self.parent is not None:
            return self.parent.pid
        owner = self.subject.owner()
        if owner is None:
            raise CannotRehearse(f"the parent of run {self.subject.name} is gone")
        return owner.pid

    def now(self, before: Glance) -> tuple[Glance, int]:
        """The page and the trainer of this moment. Raises CannotRehearse when it trains no more."""
        glance = self.subject.glance() or before
        trainer = self.subject.trainer(glance.attempt)
        if not trainer or not glance.executed:
            raise CannotRehearse(f"run {self.subject.name} stopped training before anything was done to it; try again")
        return glance, trainer

    @property
    def see(self) -> str:
        """Where to look for what went wrong."""
        again = " (rehearse with --keep, and the run is still there)" if self.parent is not None else ""
        return f"see what the script printed: `ksupervise logs`{again}"

    def step_on_disk(self) -> int:
        """Of the newest checkpoint, 0 if there is none."""
        return int(last(self.subject.records(), "committed").get("step", 0))


@dataclass(frozen=True)
class Deed:
    """`at`: when. `glance`: the page just before. `patience`: seconds that it may take until it is noticed at all."""

    words: str
    at: float
    glance: Glance
    patience: float = 0.0


def common(scene: Scene, deed: Deed, on_disk: int) -> dict[str, Any]:
    """What every report has."""
    glance = deed.glance
    return {
        "what": scene.what,
        "run": scene.subject.name,
        "new": scene.parent is not None,
        "deed": deed.words,
        "at": round(time.time() - (time.monotonic() - deed.at), 3),
        "attempt": glance.attempt,
        "memory_step": glance.staged_step,
        "disk_step": on_disk,
        "stage_every": round(glance.stage_every, 3),
        "commit_every": round(glance.commit_every, 3),
    }
