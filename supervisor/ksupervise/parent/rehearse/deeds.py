"""What is done to a run."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ksupervise.core.patience import DEFAULT_FLOOR, Doing, Patience, Slowest, limit
from ksupervise.parent.rehearse.outside import Glance, last
from ksupervise.parent.rehearse.scene import LOOK, CannotRehearse, Deed, Scene
from ksupervise.parent.rehearse.scratch import kill_all, strays, tree
from ksupervise.parent.rehearse.squeeze import Squeeze
from ksupervise.wire import PHASE_TRAIN

STALL_FLOOR = 10.0  # seconds; of the stall watch over a new run
_KILLER = 20.0  # seconds that the kernel may take to kill


def _crash(scene: Scene, before: Glance) -> Deed:
    glance, trainer = scene.now(before)
    at = time.monotonic()
    kill_all([trainer])
    return Deed(f"SIGKILL to the trainer, process {trainer}", at, glance)


def _hang(scene: Scene, before: Glance) -> Deed:
    allowed = _allowed_silence(scene, before)
    end = time.monotonic() + scene.wait
    while True:
        glance, trainer = scene.now(before)
        scene.undo.callback(_continue, trainer)
        at = time.monotonic()
        os.kill(trainer, signal.SIGSTOP)
        # Elsewhere than in a step a silence may last much longer; and it must have come to a stand for good.
        stopped = scene.subject.glance()
        if stopped is not None and stopped.phase == PHASE_TRAIN and stopped.warm:
            break
        os.kill(trainer, signal.SIGCONT)
        if at >= end:
            raise CannotRehearse(f"run {scene.subject.name} was not seen inside a step for {scene.wait:.0f} s")
        time.sleep(LOOK / 10)
    words = f"SIGSTOP to the trainer, process {trainer}; {allowed:.0f} s of silence are allowed"
    return Deed(words, at, glance, allowed)


def _continue(pid: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGCONT)


def _allowed_silence(scene: Scene, glance: Glance) -> float:
    """Seconds after which the run's own watch finds a stall. Raises CannotRehearse if nobody watches."""
    known = last(scene.subject.records(), "supervised").get("stall")
    if scene.parent is not None:
        known = {"watched": True, "floor": STALL_FLOOR, "fixed": None}
    if known is None:
        known = {"watched": True, "floor": None, "fixed": None}
        scene.notes.append("its journal does not tell its --stall: the default, auto, is assumed")
    if not known["watched"]:
        raise CannotRehearse(
            f"run {scene.subject.name} is not watched for hangs (--stall off): nobody would end this one. Call it with "
            "--stall auto"
        )
    floor = DEFAULT_FLOOR if known["floor"] is None else float(known["floor"])
    patience = Patience(floor, known["fixed"])
    return limit(Doing.TRAINING, Slowest(step=glance.slowest_step), patience).idle


def _preempt(scene: Scene, before: Glance) -> Deed:
    glance, _ = scene.now(before)
    parent = scene.parent_pid()
    at = time.monotonic()
    os.kill(parent, signal.SIGTERM)
    return Deed(f"SIGTERM to the parent, process {parent}, as when its place is taken back", at, glance)


def _lose(scene: Scene, before: Glance) -> Deed:
    glance, trainer = scene.now(before)
    parent = scene.parent_pid()
    doomed = list(dict.fromkeys([*tree(parent), *tree(trainer), *strays(Path(scene.subject.layout.root))]))
    at = time.monotonic()
    kill_all(doomed)  # the parent first: it must not see its child die
    scene.notes.append("the machine itself did not go: a lost one is named so by its host or its boot")
    words = f"SIGKILL to the parent, process {parent}, and to all {len(doomed) - 1} of its child at once"
    return Deed(f"{words}, as when the machine goes", at, glance)


def _run_out_of_memory(scene: Scene, before: Glance) -> Deed:
    glance, trainer = scene.now(before)
    if scene.parent is None:
        _squeeze_beside(scene, last(scene.subject.records(), "launched", glance.attempt).get("oom") or {})
    at = time.monotonic()
    if scene.squeeze is not None:
        reason = scene.squeeze.kill(trainer, _KILLER)
        if not reason:
            words = f"the kernel's out-of-memory killer was made to take the trainer, process {trainer}"
            return Deed(words, at, glance)
        scene.notes.append(f"{reason}: {_STANDS_IN}")
        glance, trainer = scene.now(glance)
        at = time.monotonic()
    kill_all([trainer])
    return Deed(f"SIGKILL to the trainer, process {trainer}, in the out-of-memory killer's stead", at, glance)


def _squeeze_beside(scene: Scene, mark: Mapping[str, Any]) -> None:
    """For a run that is going on: its parent stays where it is. `mark`: its cgroups, as the journal has them."""
    groups = mark.get("groups") or []
    make_squeeze(scene, groups)
    if scene.squeeze is not None and groups[0]["version"] == 1:
        scene.notes.append(
            "memory ran out in a cgroup of the trainer's own, and version 1 counts a kill only there: where the "
            "kernel's log cannot be read either, it is named a SIGKILL"
        )


def make_squeeze(scene: Scene, groups: Sequence[Mapping[str, Any]]) -> None:
    """Give the scene a cgroup, if one can be made; `groups` as in `OomCounter.read`."""
    try:
        scene.squeeze = Squeeze(groups)
        scene.undo.callback(scene.squeeze.remove)
    except OSError as error:
        scene.notes.append(f"no cgroup can be made here ({error.strerror}): {_STANDS_IN}")


_STANDS_IN = (
    "a SIGKILL stood in for the kernel's out-of-memory killer, which sends just that. That it would be named one was "
    "not tried"
)


DEEDS: dict[str, Callable[[Scene, Glance], Deed]] = {
    "preempt": _preempt,
    "crash": _crash,
    "hang": _hang,
    "oom": _run_out_of_memory,
    "lost": _lose,
}
