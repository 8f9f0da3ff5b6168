"""All replicas of a run that is being trained: a worker for each, watched, started again, told of new checkpoints.

A replica that fails is reported and tried again; it never ends or delays training. Everything runs on the loop's
thread; `finish` alone waits.
"""

from __future__ import annotations

import selectors
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ksupervise.parent.replicate.handle import Handle, Report
from ksupervise.parent.room import size_text
from ksupervise.parent.signals import STOPS, SignalPipe
from ksupervise.parent.voice import Voice

LAST_COPY = 600.0  # seconds that the final state of a completed run may take to its replicas
_AGAIN = (1.0, 300.0)  # seconds before a worker is started again: doubled each time, at most
_HOPELESS = ("refused", "local")  # kinds of failures that time does not cure
_FIRST_WORD = 2.0  # seconds before the first of them
_FAILING = 10.0  # seconds in which a place that fails may be there again, at the end
_PROGRESS = 30.0  # seconds between two words about an upload that is waited for
# Reports that say where a replica stands: they go into the journal, and `status` reads them there.
_KEPT = ("there", "replicated", "arrived", "abandoned", "failed", "removed", "room", "superseded")

Record = Callable[..., None]


def about(place: str, text: str) -> str:
    """`text` with the place that it is about, once."""
    return text if place in text else f"replica {place}: {text}"


@dataclass
class _Post:
    """A replica's worker.

    Attributes:
        name: of the place, without anything secret.
        again: when it is started again (CLOCK_MONOTONIC), if there is none.
        failures: in a row, of the worker itself.
        trouble: kind of the latest failure, "" once something went well again.
    """

    name: str
    configuration: Mapping[str, Any]
    handle: Handle | None = None
    again: float = 0.0
    failures: int = 0
    trouble: str = ""
    stuck: list[Handle] = field(default_factory=list)


class Fleet:
    """Of one parent."""

    def __init__(
        self,
        configurations: Sequence[Mapping[str, Any]],
        *,
        watch: Callable[[int, Callable[[], None]], None],
        unwatch: Callable[[int], None],
        record: Record,
        voice: Voice,
        superseded: Callable[[str], None],
    ) -> None:
        """`configurations`: one for each worker. `superseded` is told when another machine has taken the run over."""
        self._posts = [_Post(str(each["place"]), each) for each in configurations]
        self._watch = watch
        self._unwatch = unwatch
        self._record = record
        self._voice = voice
        self._superseded = superseded
        self._lost = False
        self._incomplete: set[str] = set()

    def __bool__(self) -> bool:
        return bool(self._posts)

    @property
    def pids(self) -> set[int]:
        """Of all workers: who sweeps what an attempt left behind leaves them alone."""
        handles = [handle for post in self._posts for handle in (post.handle, *post.stuck) if handle is not None]
        return {handle.pid for handle in handles}

    def committed(self) -> None:
        """There is a new checkpoint."""
        for post in self._posts:
            self._incomplete.add(post.name)
            if post.handle is not None:
                post.handle.order({"op": "wake"})

    def look(self) -> None:
        """Start what is to be started, end what has fallen silent. Called about once a second."""
        now = time.monotonic()
        for post in self._posts:
            if self._lost:
                return  # another machine writes there now
            if post.handle is None:
                if now >= post.again:
                    self._start(post)
            elif post.handle.silent:
                self._end(post, "it does not answer")

    def _start(self, post: _Post) -> None:
        try:
            handle = Handle([], post.configuration)
        except OSError as error:
            self._fail(post, f"its process cannot be started: {error.strerror}")
            return
        post.handle = handle
        self._watch(handle.fileno(), lambda: self._on_reports(post, handle))

    def _on_reports(self, post: _Post, handle: Handle) -> None:
        for report in handle.reports():
            self._heard(post, report)
        if handle.ended and post.handle is handle:
            self._end(post, "its process ended")

    def _heard(self, post: _Post, report: Report) -> None:
        op = report["op"]
        if op in _KEPT:
            self._record("replica", place=post.name, **report)
        if op == "idle" or (op == "finished" and report.get("complete")):
            self._incomplete.discard(post.name)
        elif op in ("there", "replicated", "arrived"):
            post.failures, post.trouble = 0, ""
            if self._voice.forget(f"replica {post.name}"):
                self._voice.say(f"replica {post.name}: it is there again")
        elif op == "failed":
            post.trouble = str(report.get("kind"))
            again = report.get("again_s")
            when = f"; it is tried again in {float(again):.0f} s" if again else ""
            self._tell(
                post, f"{str(report.get('reason')).rstrip('.')}{when}; training goes on", str(report.get("kind"))
            )
        elif op == "room":
            self._tell_of_room(post, report)
        elif op == "superseded":
            self._lost = True
            self._superseded(str(report.get("by") or f"another machine took the run over, as {post.name} says"))

    def _tell_of_room(self, post: _Post, report: Report) -> None:
        free, needed = report.get("bytes"), report.get("needed")
        if isinstance(free, int) and isinstance(needed, int) and free < needed:
            words = f"{size_text(free)} are free, about {size_text(needed)} will be needed"
            self._voice.say(f"replica {post.name}: {words}; free some (Drive: empty the trash)", urgent=True)

    def _tell(self, post: _Post, text: str, kind: str = "") -> None:
        self._voice.once(f"replica {post.name}", about(post.name, text), urgent=kind != "unreachable")

    def _fail(self, post: _Post, why: str) -> None:
        wait = min(_AGAIN[1], _AGAIN[0] * 2**post.failures)
        post.failures += 1
        post.again = time.monotonic() + wait
        if not self._lost:
            self._record("replica", place=post.name, op="failed", kind="worker", reason=why)
            self._tell(post, f"{why}, tried again in {wait:.0f} s; training goes on")

    def _end(self, post: _Post, why: str) -> None:
        handle, post.handle = post.handle, None
        assert handle is not None
        self._unwatch(handle.fileno())
        if handle.kill():
            handle.close()
        else:
            post.stuck.append(handle)
            why += ", and not even SIGKILL ends it (its mount hangs)"
        self._fail(post, why)

    def finish(self, seconds: float, said: Callable[[str], None], signals: SignalPipe) -> None:
        """Let each upload the newest checkpoint and go, waiting at most `seconds`, or until a signal asks to stop.

        One that fails is not waited for long, one that refuses not at all.
        """
        began = time.monotonic()
        word = began + _FIRST_WORD
        with selectors.DefaultSelector() as selector:
            for post in [] if self._lost else self._posts:
                if post.handle is None:  # it would have been tried again later
                    self._start(post)
                if post.handle is not None:
                    post.handle.order({"op": "finish", "seconds": round(seconds, 1)})
                    self._unwatch(post.handle.fileno())
                    selector.register(post.handle, selectors.EVENT_READ, post)
            selector.register(signals.fileno(), selectors.EVENT_READ)
            while waited := [
                key.data for key in selector.get_map().values() if key.data and self._is_hoped_for(key.data)
            ]:
                failing = all(post.trouble for post in waited)
                left = began + (min(seconds, _FAILING) if failing else seconds) - time.monotonic()
                if left <= 0:
                    break
                for key, _ in selector.select(min(left, 1.0)):
                    if key.data is not None:
                        self._finish(key.data, selector)
                    elif any(number in STOPS for number in signals.read()):
                        return  # Ctrl-C, or whoever else does not want to wait
                if time.monotonic() > word:
                    word += _PROGRESS
                    names = ", ".join(post.name for post in waited)
                    said(f"the newest checkpoint is still on its way to {names}; {left:.0f} s are left; Ctrl-C: now")

    def _is_hoped_for(self, post: _Post) -> bool:
        return post.handle is not None and not post.handle.silent and post.trouble not in _HOPELESS

    def _finish(self, post: _Post, selector: selectors.BaseSelector) -> None:
        handle = post.handle
        assert handle is not None
        for report in handle.reports():
            self._heard(post, report)
        if handle.ended:
            selector.unregister(handle)
            post.handle = None
            handle.close()

    @property
    def incomplete(self) -> list[str]:
        """Places that do not have the newest checkpoint."""
        return [] if self._lost else sorted(self._incomplete)

    def close(self) -> None:
        """End all workers."""
        for post in self._posts:
            if post.handle is not None:
                self._unwatch(post.handle.fileno())
                post.handle.close()
                post.handle = None
            for handle in post.stuck:
                handle.close()
