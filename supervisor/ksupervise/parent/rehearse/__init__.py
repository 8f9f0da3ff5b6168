"""`ksupervise rehearse`: do a disaster to a run, and see what survives.

What is done is what happens in earnest: a signal, the kernel's own killer, a disk that is full. Only a full disk under
a run that is going on is played by its parent, for a real one would cost it older checkpoints.
"""

from __future__ import annotations

import os
import shlex
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from ksupervise.core.actions import RunState
from ksupervise.parent import process, run
from ksupervise.parent.rehearse import deeds
from ksupervise.parent.rehearse.full import fill_disk
from ksupervise.parent.rehearse.outside import Subject, how_called
from ksupervise.parent.rehearse.ready import await_ready
from ksupervise.parent.rehearse.recovery import Recovery
from ksupervise.parent.rehearse.scene import WITH_PARENT, CannotRehearse, Rehearsal, Say, Scene
from ksupervise.parent.rehearse.scratch import OwnParent, cleaned_up, ended_by_signals
from ksupervise.parent.watch.oom import OomCounter
from ksupervise.store import Owner, owner_is_alive, read_owner

__all__ = ["WHAT", "CannotRehearse", "Rehearsal", "on_new", "on_running"]

WHAT = ("preempt", "crash", "hang", "oom", "lost", "disk-full")
_EVERY = "2s"  # checkpoints of a new run whose disk will be full


def on_running(directory: Path, what: str, *, wait: float, yes: bool, say: Say) -> Rehearsal:
    """Do `what` to the run in `directory`, which is going on, and wait `wait` seconds at most for each next thing.

    `yes`: somebody calls it again when its parent is gone. Raises CannotRehearse, RunNotFound, RunDamaged.
    """
    subject = Subject(directory)
    owner = _owner_here(subject)
    if what in WITH_PARENT and not yes:
        raise CannotRehearse(_needs_a_yes(subject, what, owner))
    with ended_by_signals(), cleaned_up() as undo:
        return _practise(Scene(what, subject, wait, say, undo))


def on_new(what: str, command: Sequence[str], *, store: Path | None, wait: float, keep: bool, say: Say) -> Rehearsal:
    """Do `what` to a new run of `command`, which is stopped and removed afterwards, unless it is to be kept.

    `store`: where it lives, None for a temporary directory. `wait`: seconds that each next thing may take.
    Raises CannotRehearse, CommandNotFound, CommandNotExecutable.
    """
    process.resolve(command)
    options = {"hang": ["--stall", f"auto:{deeds.STALL_FLOOR:g}s"], "disk-full": ["--every", _EVERY]}.get(what, [])
    with ended_by_signals(), cleaned_up() as undo:
        parent = OwnParent(command, what, store, options)
        undo.callback(parent.close, keep=keep)
        scene = Scene(what, Subject(parent.directory), wait, say, undo, parent)
        _prepare(scene)
        say(
            f"{shlex.join(command)} is run as {parent.directory.name}, in {parent.directory.parent}. What the script "
            "itself writes elsewhere it really writes"
        )
        parent.start(str(scene.squeeze.procs) if scene.squeeze else "")
        if keep and parent.disk is not None:
            scene.notes.append("the run was not kept: its store was a disk in memory")
        found = _practise(scene)
        parent.leave()
        kept = str(parent.directory) if keep and parent.disk is None else ""
    return replace(found, kept=kept)


def _prepare(scene: Scene) -> None:
    """What has to be there before the run begins."""
    assert scene.parent is not None
    if scene.what == "oom":
        deeds.make_squeeze(scene, OomCounter().read()["groups"])
    if scene.what == "disk-full":
        try:
            scene.parent.mount()
            scene.subject = Subject(scene.parent.directory)
        except OSError as error:
            scene.notes.append(f"no disk of its own could be made ({error.strerror})")


def _owner_here(subject: Subject) -> Owner:
    record = run.load(Path(subject.layout.run_json))
    owner = read_owner(subject.layout.lock)
    new = "or rehearse on a new one: ksupervise rehearse WHAT -- COMMAND"
    if record.state != RunState.RUNNING.value or owner is None or owner_is_alive(owner) is False:
        raise CannotRehearse(f"run {subject.name} is not running: call it and rehearse while it trains, {new}")
    if owner_is_alive(owner) is None:
        raise CannotRehearse(f"run {subject.name} is supervised on {owner.host}: rehearse there, {new}")
    try:
        os.kill(owner.pid, 0)
    except OSError as error:
        raise CannotRehearse(
            f"run {subject.name} is supervised by process {owner.pid}, which is not yours ({error.strerror}): rehearse "
            f"as its user, {new}"
        ) from None
    return owner


def _needs_a_yes(subject: Subject, what: str, owner: Owner) -> str:
    happens = "be killed with its child" if what == "lost" else "save and exit with 75"
    return (
        f"its parent, process {owner.pid} ({how_called(owner.pid)}), would {happens}, and somebody (systemd, cron, "
        f"you) has to call run {subject.name} again. If that is so: --yes. Without this run: ksupervise rehearse "
        f"{what} -- COMMAND"
    )


def _practise(scene: Scene) -> Rehearsal:
    before, pace = await_ready(scene)
    if scene.what == "disk-full":
        return fill_disk(scene, before)
    called = "" if scene.parent is not None else how_called(scene.parent_pid())
    mark = len(scene.subject.records())
    on_disk = scene.step_on_disk()
    deed = deeds.DEEDS[scene.what](scene, before)
    scene.say(f"{deed.words}; waiting until it trains again")
    after = Recovery(scene, deed, mark, called)
    after.follow(deed.at + deed.patience + scene.wait)
    return after.result(on_disk, pace)
