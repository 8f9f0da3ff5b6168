"""A full disk: no death. Saves are refused for a while, training goes on, and then they succeed again."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Sequence

from ksupervise.parent.link import ask
from ksupervise.parent.rehearse.outside import Glance, Record, last
from ksupervise.parent.rehearse.scene import FEW, LOOK, CannotRehearse, Deed, Rehearsal, Scene, common

_PLAYED = (
    "the parent refused its saves as a full disk does, but the disk was not full: what would have been given up for a "
    "newer checkpoint was not tried"
)
_MORE = 10.0  # seconds beyond the intervals in which a save is to be expected


def fill_disk(scene: Scene, before: Glance) -> Rehearsal:
    """Do it, undo it, and tell what the run did meanwhile. Raises CannotRehearse."""
    mark, on_disk = len(scene.subject.records()), scene.step_on_disk()
    glance, _ = scene.now(before)
    at = time.monotonic()
    free: Callable[[], object]
    if scene.parent is not None and scene.parent.disk is not None:
        free, over = scene.parent.disk.free, at + scene.wait
        scene.parent.disk.fill()
        words = "the disk of its store was made full"
    else:
        free, over = functools.partial(_play, scene, 0.0), at + _play(scene, _long_enough(scene, glance))
        scene.undo.callback(free)
        words = "its parent was asked to refuse saves as a full disk does"
        scene.notes.append(_PLAYED)
    deed = Deed(words, at, glance)
    scene.say(f"{words}; waiting until a save is refused")
    watch = _FullDisk(scene, deed, mark)
    watch.follow(over, free)
    return watch.result(on_disk)


def _long_enough(scene: Scene, glance: Glance) -> float:
    """Seconds within which something is to be saved."""
    return min(scene.wait, glance.commit_every + glance.stage_every + _MORE)


def _play(scene: Scene, seconds: float) -> float:
    """Ask the parent to play a full disk for so long, 0 to end it; for how long it will. Raises CannotRehearse."""
    owner = scene.subject.owner()
    message = {"op": "rehearse", "what": "disk-full", "seconds": seconds}
    answer = None if owner is None else ask(owner.address, message)
    if seconds and (answer is None or answer.get("op") != "rehearsing"):
        raise CannotRehearse(
            f"the parent of run {scene.subject.name} does not play a full disk: is it of an older version? As root a "
            "real one is made for a new run: ksupervise rehearse disk-full -- COMMAND"
        )
    return 0.0 if answer is None else float(answer.get("seconds", 0.0))


class _FullDisk:
    """What a run does while its saves are refused, and after."""

    def __init__(self, scene: Scene, deed: Deed, mark: int) -> None:
        self._scene = scene
        self._deed = deed
        self._mark = mark
        self._noticed: Record = {}
        self._steps = 0
        self._freed = deed.at
        self._saved: Record = {}
        self._failure = self._advice = ""

    @property
    def _news(self) -> Sequence[Record]:
        return self._scene.subject.records()[self._mark :]

    def follow(self, over: float, free: Callable[[], object]) -> None:
        """Until a save was refused and a few steps more (at most until `over`); `free` it; until a save succeeds."""
        while not self._failure and not self._went_on() and time.monotonic() < over:
            time.sleep(LOOK)
            self._check()
        free()
        self._freed = time.monotonic()
        while not self._failure and not self._is_saved():
            if time.monotonic() >= self._freed + self._scene.wait:
                self._failure = "no checkpoint was made after there was room again"
                self._advice = f"give it longer with --wait, or {self._scene.see}"
            time.sleep(LOOK)
            self._check()
        if not self._failure and not self._noticed:
            self._scene.notes.append("nothing was to be saved while the disk was full: this proves little")

    def _went_on(self) -> bool:
        """It was noticed, and a few steps were begun since."""
        refused = [r for r in self._news if r["event"] in ("commit_failed", "freed")]
        glance = self._scene.subject.glance()
        if refused and not self._noticed:
            self._noticed = refused[0]
        if glance is not None and glance.attempt == self._deed.glance.attempt:
            self._steps = glance.step - self._deed.glance.step
        return bool(self._noticed) and self._steps >= FEW

    def _check(self) -> None:
        """It must not die of it."""
        ended = last(self._news, "attempt_ended", self._deed.glance.attempt)
        if ended and ended.get("cause") in ("completed", "nan_stop"):
            self._failure = "the training was over before it was done"
            self._advice = "rehearse with a longer one"
        elif ended:
            self._failure = f"the attempt ended: {ended.get('detail')}"
            self._advice = f"{self._scene.see}; does it write to the same disk itself?"

    def _is_saved(self) -> bool:
        later = (r for r in self._news if r["event"] == "committed" and r["mono"] >= self._freed)
        self._saved = next(later, {})
        return bool(self._saved)

    def result(self, on_disk: int) -> Rehearsal:
        """All that is known."""
        news = self._news
        saved = self._saved.get("mono")
        named = self._noticed
        gave_up = f"{len(named.get('seqs', ()))} older checkpoints were given up for a newer one"
        return Rehearsal(
            **common(self._scene, self._deed, on_disk),
            step=self._deed.glance.step,
            cause=str(named.get("event", "")),
            detail=gave_up if named.get("event") == "freed" else str(named.get("reason", "")),
            noticed=round(named["mono"] - self._deed.at, 3) if named else None,
            back=round(saved - self._deed.at, 3) if saved is not None else None,
            refused=sum(r["event"] == "commit_failed" for r in news),
            steps_meanwhile=self._steps,
            failure=self._failure,
            advice=self._advice,
            notes=tuple(self._scene.notes),
            output=self._scene.subject.tail() if self._failure else "",
        )
