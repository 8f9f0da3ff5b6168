"""What nobody announces to the loop: notices, the deadline, a child that hangs, memory that runs short.

It looks about once a second and posts events; what they mean is decided elsewhere.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from ksupervise import notices, settings
from ksupervise.core.events import Advised, Event, Stalled, StopAsked, StopKind
from ksupervise.core.patience import DEFAULT_FLOOR, Patience, Slowest
from ksupervise.notices import Notice
from ksupervise.parent.launch import Attempt
from ksupervise.parent.voice import Voice
from ksupervise.parent.watch import host
from ksupervise.parent.watch.oom import OomCounter
from ksupervise.parent.watch.watchdog import Watchdog
from ksupervise.settings import Settings
from ksupervise.store import CheckpointStore

_MARGIN = 2.0  # seconds before an announced end by which we want to be gone
_ROOM_FOR = 2  # checkpoints that the disk should have room for
_PAUSE = 0.5  # seconds between two looks: the loop turns with every piece of output
_SUSPENDED = 60.0  # seconds of sleep that are worth a word

Post = Callable[[Event], None]
Record = Callable[..., None]


class Lookout:
    """Of one parent. Everything but `_least_room` runs on the loop's thread.

    Attributes:
        oom: the machine's counters of its out-of-memory killer.
    """

    def __init__(
        self,
        chosen: Settings,
        store: CheckpointStore,
        environment: Mapping[str, str],
        *,
        post: Post,
        call_soon: Callable[[Callable[[], None]], None],
        record: Record,
        voice: Voice,
    ) -> None:
        """`call_soon` brings a call from another thread to the loop's."""
        self._settings = chosen
        self._store = store
        self._environment = environment
        self._post = post
        self._call_soon = call_soon
        self._record = record
        self._voice = voice
        self._looked = 0.0
        self._slowest: dict[int, Slowest] = {}
        self._watchdog: Watchdog | None = None
        self._asleep = host.clock() - time.monotonic()
        self.oom = OomCounter()
        self._watch: notices.Watch | None = None

    def launched(self, attempt: Attempt) -> None:
        """An attempt has begun."""
        if self._watch is None:  # not before: the first attempt does not wait for it
            self._listen()
        attempt.oom_mark = self.oom.read()
        stall = self._settings.stall
        self._watchdog = None
        if stall.watched:
            patience = Patience(DEFAULT_FLOOR if stall.floor is None else stall.floor, stall.fixed)
            self._watchdog = Watchdog(
                patience,
                self._slowest,
                attempt.control,
                attempt.child.pid,
                attempt.stacks,
                lambda: _ask_for_stacks(attempt),
                lambda text: self._voice.once(text, text),
                self._environment,
            )

    def _listen(self) -> None:
        self._watch = notices.watch(
            self._settings.notice,
            tell=lambda notice: self._call_soon(lambda: self._heard(notice)),
            note=lambda text: self._call_soon(lambda: self._voice.once(text, text)),
            store=Path(self._store.layout.root),
            least=self._least_room,
        )
        self._record("listening", notices=self._watch.names)

    def ended(self) -> None:
        """The attempt is over. What it taught of its pace holds on."""
        self._watchdog = None

    def due(self) -> float:
        """Seconds until something is to be looked at that cannot wait for the next regular look."""
        if self._settings.deadline is None:
            return float("inf")
        return self._settings.deadline - self._settings.grace - settings.now()

    def look(self, attempt: Attempt | None, *, stopping: bool) -> None:
        """Look at everything, unless that was just done."""
        now = time.monotonic()
        if now - self._looked < _PAUSE and self.due() > 0:
            return
        self._looked = now
        self._note_sleep()
        if attempt is not None:
            self._note_memory(attempt)
        if stopping:
            return
        if self.due() <= 0 and self._settings.deadline is not None:
            self._post(StopAsked(StopKind.DEADLINE, max(0.0, self._settings.deadline - settings.now())))
        elif attempt is not None and self._watchdog is not None:
            stalled = self._watchdog.look(attempt.dialogue.trainer_pid, bool(attempt.facts.keras))
            if stalled:
                self._post(Stalled(stalled))

    def close(self) -> None:
        """Listen no more."""
        if self._watch is not None:
            self._watch.close()

    def _heard(self, notice: Notice) -> None:
        left = None if notice.seconds is None else max(0.0, notice.seconds)
        self._record("notice", source=notice.source, text=notice.text, final=notice.final, seconds=left)
        if notice.source == "disk":  # a save would make it worse; what has to go goes when it is full
            self._voice.say(f"disk: {notice.text}", urgent=True)
            return
        if not notice.final:
            self._voice.say(f"{notice.source}: {notice.text}; what is trained is saved, and it goes on", urgent=True)
            self._post(Advised())
            return
        words = f"{notice.source}: {notice.text}"
        self._voice.say(f"{words}; saving and leaving", urgent=True)
        grace = None if left is None else max(0.0, left - min(_MARGIN, left / 4))
        self._post(StopAsked(StopKind.NOTICE, grace, words))

    def _least_room(self) -> int:
        """Bytes that the next checkpoints need. Called on a watcher's thread."""
        newest = self._store.newest()
        return 0 if newest is None else _ROOM_FOR * newest.manifest.size

    def _note_memory(self, attempt: Attempt) -> None:
        """For the next parent, in case that a whole cgroup is killed."""
        usage = self.oom.usage()
        if usage is not None:
            attempt.control["memory_used"], attempt.control["memory_limit"] = usage

    def _note_sleep(self) -> None:
        asleep = host.clock() - time.monotonic()
        if asleep - self._asleep > _SUSPENDED:
            seconds = round(asleep - self._asleep)
            self._record("suspended", seconds=seconds)
            self._voice.say(f"the machine was suspended for {seconds} s")
        self._asleep = asleep


def _ask_for_stacks(attempt: Attempt) -> bool:
    """Have the process that trains write its stacks. False if it does not know how."""
    known = attempt.facts.stacks
    pid = next((pid for pid in (attempt.dialogue.trainer_pid, attempt.child.pid) if pid in known), 0)
    if not pid:
        return False
    attempt.child.send(known[pid], pid=pid)
    return True


def usage_of(control: Any) -> tuple[int, int] | None:
    """Bytes used and allowed when they were last noted, None if there was no limit."""
    used, allowed = control.integer("memory_used"), control.integer("memory_limit")
    return (used, allowed) if allowed else None
