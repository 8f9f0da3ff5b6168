"""What became of a run after it was interrupted."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator, Sequence

from ksupervise.core.actions import RunState
from ksupervise.errors import EXIT_DRAINED
from ksupervise.parent.rehearse.outside import Record, last
from ksupervise.parent.rehearse.scene import LOOK, WITH_PARENT, Deed, Rehearsal, Scene, common
from ksupervise.parent.rehearse.scratch import OwnParent

# What each should be named. A stand-in for the out-of-memory killer is a signal, and says so itself.
_NAMES = {
    "preempt": ("preempted",),
    "crash": ("signal",),
    "hang": ("stalled",),
    "oom": ("out_of_memory", "signal"),
    "lost": ("lost", "parent_lost"),
}


class Recovery:
    """What became of the run after the deed."""

    def __init__(self, scene: Scene, deed: Deed, mark: int, called: str) -> None:
        """`mark`: records that the journal had before. `called`: the command that has to be called again."""
        self._scene = scene
        self._deed = deed
        self._mark = mark
        self._called = called
        self._training: float | None = None
        self._back: float | None = None
        self._again = False  # the same command was called again, by us
        self._failure = self._advice = ""

    def follow(self, end: float) -> None:
        """Look until it is past where it was, ended otherwise, or `end` has come."""
        while not self._is_over():
            self._watch_parent()
            if not self._failure and time.monotonic() >= end:
                self._failure, self._advice = self._why_not()
            time.sleep(LOOK)

    @property
    def _news(self) -> Sequence[Record]:
        return self._scene.subject.records()[self._mark :]

    @property
    def _ended(self) -> Record:
        """The end of the attempt to which it was done."""
        return last(self._news, "attempt_ended", self._deed.glance.attempt)

    @property
    def _step(self) -> int:
        """The last step that was begun before the end."""
        return int(self._ended.get("last_step") or self._deed.glance.step)

    def _is_over(self) -> bool:
        glance = self._scene.subject.glance()
        if glance is not None and glance.attempt > self._deed.glance.attempt and glance.executed:
            self._training = self._training or glance.at
            if self._ended and glance.step > self._step:
                self._back = glance.at
        verdict = last(self._news, "verdict")
        if self._back is None and self._is_final(verdict):
            self._take(verdict)
        return self._back is not None or bool(self._failure)

    def _is_final(self, verdict: Record) -> bool:
        """A preempted run is meant to be called again; and a verdict before that says nothing about what follows."""
        called = last(self._news, "supervised")
        if not verdict or (called and called["mono"] > verdict["mono"]):
            return False
        return bool(called) or self._scene.what != "preempt" or verdict.get("state") != RunState.PREEMPTED.value

    def _take(self, verdict: Record) -> None:
        state, detail = str(verdict.get("state")), str(verdict.get("detail", ""))
        again = self._scene.subject.attempt() > self._deed.glance.attempt
        if state == RunState.COMPLETED.value and again:
            self._back = float(verdict["mono"])
            return
        self._failure = f"the run {state.replace('_', ' ')}: {detail}"
        self._advice = self._scene.see
        if state == RunState.COMPLETED.value:
            self._failure = "the training was over before it was done"
            self._advice = "rehearse with a longer one"

    def _watch_parent(self) -> None:
        """Of a new run the parent is ours to call again; of another, somebody else's."""
        scene, parent = self._scene, self._scene.parent
        gone = scene.subject.owner() is None if parent is None else parent.ended() is not None
        if not gone or self._failure:
            return
        if scene.what in WITH_PARENT and not self._again:
            if parent is not None:
                self._call_again(parent)
        elif parent is not None and not self._is_final(last(self._news, "verdict")):
            self._failure = f"its parent ended without a verdict: {parent.last_words() or 'it said nothing'}"
            self._advice = "that is a fault of ksupervise: report it, with what it said"

    def _call_again(self, parent: OwnParent) -> None:
        expected = EXIT_DRAINED if self._scene.what == "preempt" else -signal.SIGKILL
        code = parent.ended()
        if code != expected:
            self._failure = f"its parent exited with {code}, not with {expected}: {parent.last_words()}"
            self._advice = self._scene.see
            return
        parent.start()
        self._again = True

    def _why_not(self) -> tuple[str, str]:
        """The time is over: what is missing, and what to do."""
        scene, waited = self._scene, f"within {self._deed.patience + self._scene.wait:.0f} s"
        logs = f"give it longer with --wait, or {scene.see}"
        attempt = self._deed.glance.attempt
        if scene.what in WITH_PARENT and not last(self._news, "supervised"):
            gone = scene.subject.owner() is None
            if not gone:
                return f"its parent did not leave {waited}", logs
            kept = f"its state is kept at step {scene.step_on_disk()}"
            return f"nobody called it again {waited}; {kept}", f"have systemd or cron call, or call: {self._called}"
        if not self._ended:
            return f"nobody noticed {waited}", logs
        if scene.subject.attempt() <= attempt:
            return f"no other attempt was launched {waited}", logs
        if self._training is None:
            return f"attempt {scene.subject.attempt()} began no step {waited}", logs
        return f"attempt {scene.subject.attempt()} did not come past step {self._step} {waited}", logs

    def result(self, on_disk: int, pace: float) -> Rehearsal:
        """All that is known. `pace`: seconds a step takes. `on_disk`: step of the newest checkpoint at the deed."""
        scene, deed, news = self._scene, self._deed, self._news
        glance, ended = deed.glance, self._ended
        asked = last(news, "stop_asked") if scene.what == "preempt" else {}
        launched = next((r for r in news if r["event"] == "launched" and r["attempt"] > glance.attempt), {})
        resumed = self._resumed()
        start = None if resumed is None else int(resumed["step"])
        lost = 0 if self._training is None else max(0, self._step - (start or 0))
        failure, advice = self._failure, self._advice
        if not failure and start is None:
            failure = "the training began anew, though there was a checkpoint"
            advice = scene.see
        after = self._after
        return Rehearsal(
            **common(scene, deed, on_disk),
            step=self._step,
            cause=str(ended.get("cause", "")),
            detail=str(ended.get("detail", "")),
            noticed=after((asked or ended).get("mono")),
            relaunched=after(launched.get("mono")),
            training=after(self._training),
            back=after(self._back),
            resumed_from=start,
            lost_steps=lost,
            lost_seconds=round(lost * pace, 3),
            guarantee="" if resumed is None else str(resumed.get("guarantee", "")),
            failure=failure,
            advice=advice,
            notes=(*scene.notes, *self._remarks()),
            output=scene.subject.tail() if failure else "",
        )

    def _remarks(self) -> Iterator[str]:
        attempts = self._scene.subject.attempt() - self._deed.glance.attempt
        cause = self._ended.get("cause")
        if cause and cause not in _NAMES[self._scene.what]:
            yield f"it was named {cause}, and should have been {_NAMES[self._scene.what][0]}"
        if attempts > 1:
            yield f"it took {attempts} attempts"

    def _resumed(self) -> Record | None:
        """Where it went on; None if it began from nothing. Completed fits come first."""
        later = [r for r in self._news if r["event"] == "resumed" and r.get("attempt", 0) > self._deed.glance.attempt]
        return later[-1] if later else None

    def _after(self, mono: float | None) -> float | None:
        return None if mono is None else round(max(0.0, mono - self._deed.at), 3)
