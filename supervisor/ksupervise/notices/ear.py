"""Asking again and again on threads of their own, and saying once when nobody answers."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

from ksupervise.notices.notice import plain
from ksupervise.notices.pace import Pace

if TYPE_CHECKING:
    from tenacity import RetryCallState, Retrying

ENOUGH = 3  # failures in a row that are worth a word; one or two are the weather


@dataclass(frozen=True)
class Question:
    """One thing that is asked again and again.

    Attributes:
        what: its name among those of its source.
        ask: asks once and announces what it hears. Raises Unavailable (or anything) where no answer came.
        every: seconds from an answer to the next question.
    """

    what: str
    ask: Callable[[], None]
    every: float


class Source(Protocol):
    """One place from which notices come."""

    name: str
    place: str  # what does not answer, for people: "the metadata service at …"
    hint: str  # what may help if it never has, for people; or ""

    def questions(self) -> tuple[Question, ...]:
        """What is to be asked, each on a thread of its own."""
        ...

    def hang_up(self) -> None:
        """Make questions under way end soon."""
        ...


@dataclass
class Health:
    """Whether a source answers; said once when it does not, and once when it does again."""

    source: Source
    note: Callable[[str], None]
    slow: float  # seconds between two questions where nothing has ever answered
    _failures: dict[str, int] = field(default_factory=dict)  # in a row, by question
    _answered: set[str] = field(default_factory=set)
    _noted: bool = False
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def failed(self, what: str, error: Exception) -> None:
        """`what` was not answered, once more."""
        with self._lock:
            count = self._failures[what] = self._failures.get(what, 0) + 1
            say = count >= ENOUGH and not self._noted
            self._noted = self._noted or say
            never = what not in self._answered
        if say:
            self.note(self._complaint(what, error, never=never))

    def answered(self, what: str) -> None:
        """`what` was answered."""
        with self._lock:
            self._failures.pop(what, None)
            self._answered.add(what)
            back = self._noted and all(count < ENOUGH for count in self._failures.values())
            self._noted = self._noted and not back
        if back:
            self.note(f"{self.source.name}: {self.source.place} answers again; its notices are heard")

    def is_lost(self, what: str) -> bool:
        """It has never been answered and has failed often enough that it is not worth asking often."""
        with self._lock:
            return what not in self._answered and self._failures.get(what, 0) >= ENOUGH

    def _complaint(self, what: str, error: Exception, *, never: bool) -> str:
        source = self.source
        text = f"{source.name}: {source.place} failed {ENOUGH} times when asked for {what}: {plain(str(error))}. "
        text += "Until it answers no notice from there is heard; training goes on"
        if not never:
            return text
        return f"{text}, and it is asked again every {self.slow:g} s{'. ' + source.hint if source.hint else ''}"


class Ear:
    """The thread of one question. Whatever happens, it neither raises nor ends before it is told to.

    Args:
        question: what to ask.
        health: of its source.
        pace: how long to wait after failures.
        closing: set when it is to end.
    """

    def __init__(self, question: Question, health: Health, pace: Pace, closing: threading.Event) -> None:
        self._question = question
        self._health = health
        self._pace = pace
        self._closing = closing
        name = f"ksupervise-notice-{health.source.name}"
        # A daemon: a question that hangs (a file on a dead NFS) must never hold up our exit.
        self._thread = threading.Thread(target=self._listen, name=name, daemon=True)

    def start(self) -> None:
        """Begin to ask. Raises RuntimeError if no thread is to be had."""
        # Not on the thread: it imports logging, and a fork in the middle of that runs only half of its fork hooks.
        import tenacity  # noqa: F401

        self._thread.start()

    def join(self, seconds: float) -> None:
        """Wait for its end, at most `seconds`."""
        self._thread.join(seconds)

    def _listen(self) -> None:
        while not self._closing.is_set():
            try:
                self._retrying()(self._once)  # until there is an answer, or closing
            except Exception as error:  # a fault of our own: it must not make us deaf in silence
                self._failed(error)
            self._closing.wait(self._question.every)

    def _retrying(self) -> Retrying:
        from tenacity import (
            Retrying,
            sleep_using_event,
            stop_when_event_set,
            wait_exponential,
            wait_fixed,
            wait_random,
        )

        pace = self._pace
        quick = wait_exponential(multiplier=pace.retry, max=pace.retry_most) + wait_random(0, pace.retry)
        slow = wait_fixed(pace.slow) + wait_random(0, pace.slow / 10)

        def wait(state: RetryCallState) -> float:
            lost = self._health.is_lost(self._question.what)
            return float((slow if lost else quick)(state))

        return Retrying(stop=stop_when_event_set(self._closing), sleep=sleep_using_event(self._closing), wait=wait)

    def _once(self) -> None:
        try:
            self._question.ask()
        except Exception as error:
            self._failed(error)
            raise
        self._health.answered(self._question.what)

    def _failed(self, error: Exception) -> None:
        """Count it, unless it failed because we hung up."""
        if not self._closing.is_set():
            with contextlib.suppress(Exception):  # whoever is given the note has failed: nobody to tell it to
                self._health.failed(self._question.what, error)
