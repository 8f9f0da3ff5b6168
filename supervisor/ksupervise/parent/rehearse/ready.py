"""Before anything is done: there is a checkpoint to go back to, and it trains."""

from __future__ import annotations

import time

from ksupervise.parent.rehearse.outside import Glance, last
from ksupervise.parent.rehearse.scene import FEW, LOOK, CannotRehearse, Scene
from ksupervise.wire import PHASE_OUTSIDE


def await_ready(scene: Scene) -> tuple[Glance, float]:
    """Wait until there is something to go back to and it trains; its page then, and seconds a step takes."""
    subject, end = scene.subject, time.monotonic() + scene.wait
    seen: list[Glance] = []
    scene.say("waiting for a checkpoint and a few steps more")
    while True:
        scene.check()
        glance = subject.glance()
        in_fit = glance is not None and glance.fit > 0 and glance.phase != PHASE_OUTSIDE
        if not in_fit and scene.parent is None:
            raise CannotRehearse(
                f"run {subject.name} is inside no fit at the moment: try again when `ksupervise status` shows that it "
                "trains"
            )
        if glance is not None and in_fit and glance.warm:
            if seen and seen[0].attempt != glance.attempt:
                seen.clear()
            seen.append(glance)
            steps = glance.step - seen[0].step
            if _has_way_back(scene, glance) and steps >= FEW and subject.trainer(glance.attempt):
                return glance, (glance.at - seen[0].at) / steps
            if len(seen) > 2:
                seen.pop()  # the first and the newest will do
        if time.monotonic() >= end:
            raise CannotRehearse(_not_ready(scene, glance))
        time.sleep(LOOK)


def _has_way_back(scene: Scene, glance: Glance) -> bool:
    """A checkpoint of this very attempt: with one, a failure costs none of those that the run is allowed."""
    return bool(last(scene.subject.records(), "committed", glance.attempt))


def _not_ready(scene: Scene, glance: Glance | None) -> str:
    subject = scene.subject
    records = subject.records()
    attempt = subject.attempt()
    if not last(records, "hooked", attempt):
        lacks = "our hook did not arrive in the script (not Python, or an interpreter that ignores PYTHONPATH)"
    elif not last(records, "claimed", attempt):
        lacks = "no call of model.fit was seen"
    elif glance is None or not glance.executed:
        lacks = "no step was begun"
    elif not _has_way_back(scene, glance):
        failed = last(records, "commit_failed", attempt).get("reason", "")
        lacks = "there is no checkpoint of this attempt" + (f": {failed}" if failed else "")
    else:
        lacks = f"it did not get on from step {glance.step}"
    return (
        f"nothing was done to run {subject.name}: after {scene.wait:.0f} s {lacks}. If it only needs longer: --wait; "
        f"else {scene.see}"
    )
